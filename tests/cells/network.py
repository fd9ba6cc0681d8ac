"""A road to a server that can be cut off: the way there is closed, or swallows what is sent."""

import asyncio
from contextlib import suppress
from typing import Self


class Road:
    """A port that leads to another one, for as long as it is open.

    Args:
        host: of the server.
        port: of the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def restore(self) -> None:
        """Lead there, from the same port as before."""
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._lead, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """As if the server were dead: connections end, and no other is taken."""
        if self._server:
            self._server.close()
        self._server = None
        for each in list(self._writers):
            each.transport.abort()
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def swallow(self) -> None:
        """As if the network were cut: nothing arrives, and nobody is told."""
        self._open.clear()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        await self._open.wait()
        there, back = await asyncio.open_connection(*self._to)
        self._writers.add(back)
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pass_on(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await source.read(65536):
                await self._open.wait()
                target.write(block)
                await target.drain()
        target.close()
