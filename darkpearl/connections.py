"""HTTP connections: uvicorn's, with a bound to how much and how long each may keep us waiting.

uvicorn bounds the silence between two requests. What it leaves open is here: a head, a body or
trailers without end, an answer that nobody takes, and more connections than there is room for.
docs/operations.md lists the bounds.
"""

import asyncio
import math
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD_BYTES = 65_536
"""Of a head, of trailers, and of what stands between two pieces of a body."""
LARGEST_TARGET_BYTES = 8_192
"""Of path and query. The framework keeps what it has read of the last thousand."""
LARGEST_REST_BYTES = 10_000_000
"""Of a body that goes on after its answer: enough for a client to notice that it has one."""
MOST_PIPELINED = 16
"""Requests that wait on a connection for the answer to the one before them."""
MOST_CONNECTIONS = 1000
PATIENCE_SECONDS = 10.0
"""How long a client is waited for: for the end of a head, of a body, or to take an answer."""
LEAST_TAKEN_BYTES = 50_000
"""How much of a large answer has to be taken in that time for the rest to get as much again."""


def room() -> int:
    """Connections at most: half of the files that this process may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 2)
    )


class Http(HttpToolsProtocol):
    """uvicorn's fast HTTP/1.1, with these bounds. Trailers are left out: they are no headers."""

    deadline = math.inf
    """When the client has kept us waiting for too long; it doesn't while we work for it."""
    _unsent = 0
    """Bytes of the answer that were still to be taken when its turn began."""
    _apart = 0
    """Bytes that came since a head, a body's piece or a request ended, without the chunk it did."""
    _rest = 0
    """Bytes of a body that came after its answer."""
    _in_body = False
    _is_idle = False
    has_served = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection. When there is no room, the one that is missed least goes for it."""
        if self.limit_concurrency and len(self.connections) + 1 >= self.limit_concurrency:
            waiting: list[Any] = [each for each in self.connections if each.deadline < math.inf]  # type: ignore[union-attr]
            if waiting:
                missed_least = min(waiting, key=lambda each: (each.has_served, each.deadline))
                self.connections.discard(missed_least)
                missed_least.transport.abort()
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take what has come, and end a connection whose request doesn't come to its point."""
        if self._is_idle:
            self._is_idle = False
            self._wait()
        self._apart += len(data)
        super().data_received(data)
        if self._apart > LARGEST_HEAD_BYTES:
            if self._in_body and self.cycle.response_started:
                self.transport.abort()
            else:
                self.send_400_response("The request is too long beside its body.")

    def on_url(self, url: bytes) -> None:
        """A piece of the path and the query has come."""
        if len(self.url) + len(url) > LARGEST_TARGET_BYTES:
            raise ValueError("the path and the query are too long")
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header has come, or a trailer, which could pretend to be one."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head of a request has ended."""
        self._in_body = True
        self._apart = self._rest = 0
        self._wait()
        super().on_headers_complete()
        if len(self.pipeline) > MOST_PIPELINED:
            raise ValueError("too many requests wait for the answer to another")

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come."""
        self._apart = 0
        if self.cycle.response_complete:
            self._rest += len(body)
            if self._rest > LARGEST_REST_BYTES:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has ended, and the head of the next may follow."""
        self._in_body = False
        self._apart = 0
        super().on_message_complete()
        self._take_turns()

    def on_response_complete(self) -> None:
        """An answer has ended; its request may not have."""
        self.has_served = True
        super().on_response_complete()
        self._take_turns()

    def pause_writing(self) -> None:
        """The client takes an answer more slowly than it is made."""
        self._wait()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._take_turns()

    def look(self, now: float) -> None:
        """End the connection if its client keeps us waiting for too long."""
        if now < self.deadline:
            return
        if 0 < self.transport.get_write_buffer_size() <= self._unsent - LEAST_TAKEN_BYTES:
            self._wait()
        else:
            self.transport.abort()

    def _take_turns(self) -> None:
        """Whose turn it is: ours while a request is unanswered and its client takes what we say."""
        if self._in_body:  # it has the time that it was given
            return
        self._is_idle = self.cycle is None or self.cycle.response_complete
        if self._is_idle or self.flow.write_paused:
            self._wait()
        else:
            self.deadline = math.inf

    def _wait(self) -> None:
        """From now on it is the client's turn."""
        self.deadline = self.loop.time() + PATIENCE_SECONDS
        self._unsent = self.transport.get_write_buffer_size()


def look(connections: set[Any]) -> None:
    """Look at all connections of a server: called once a second, so that none needs a timer."""
    now = asyncio.get_running_loop().time()
    for each in tuple(connections):
        each.look(now)
