"""Who takes webhooks, and does with them what a test says."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from standardwebhooks import Webhook

Json = dict[str, Any]
Answer = Callable[[Json], Awaitable[int | bytes]]
"""What a receiver does with an event: a status, or an answer word for word; b"" hangs up."""


class Receiver:
    """An HTTP server that takes webhooks, and verifies each by the library."""

    def __init__(self) -> None:
        self.secret = ""
        self.events: list[Json] = []
        """Those that it answered with 2xx, in order."""
        self.taken: set[int] = set()
        """Their ids."""
        self.tried: list[int] = []
        """Ids of all that came."""
        self.signatures = 0
        """Of what came last."""
        self.answer: Answer | None = None
        self.port = 0
        self._came = asyncio.Event()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?shop=1"

    @property
    def ids(self) -> list[int]:
        return [each["data"]["id"] for each in self.events]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """It is gone: who connects is refused."""
        assert self._server
        self._server.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition holds, looked at whenever an event has come."""
        while not condition():
            self._came.clear()
            await self._came.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                assert head[0] == "POST /hook?shop=1 HTTP/1.1"
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                assert headers["host"].endswith(f":{self.port}")
                raw = [line for line in head if line.lower().startswith("webhook-signature: ")]
                headers["webhook-signature"] = raw[0].split(": ", 1)[1]
                body = await reader.readexactly(int(headers["content-length"]))
                Webhook(self.secret).verify(body, headers)
                event: Json = json.loads(body)
                cell = f"@{event['data']['cell']}" if "cell" in event["data"] else ""
                assert headers["webhook-id"] == f"event-{event['data']['id']}{cell}"
                self.signatures = len(headers["webhook-signature"].split())
                self.tried.append(event["data"]["id"])
                status = await self.answer(event) if self.answer else 204
                if status == b"":
                    break
                if isinstance(status, int):
                    if 200 <= status < 300:
                        self.events.append(event)
                        self.taken.add(event["data"]["id"])
                        self._came.set()
                    status = f"HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n".encode()
                writer.write(status)
        writer.close()
