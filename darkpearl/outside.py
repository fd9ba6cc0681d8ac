"""Answers of outside systems, read whole up to a bound.

What somebody else sends is as long as they like, and a compressed answer is a thousand times longer
than it looks: so none is asked for, none is taken, and what is too long is given up on the way.
How long an answer may take is its caller's to bound: a drip of bytes is never silent.
"""

from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

NOT_COMPRESSED = {"Accept-Encoding": "identity"}
"""The header of a request whose answer read_whole() takes."""


class UnreadableError(httpx.RemoteProtocolError):
    """An answer that is too long, or compressed."""


async def read_whole(response: httpx.Response, most_bytes: int) -> None:
    """Read the body of a response; one that can't be read is closed, and with it its connection.

    Raises:
        UnreadableError: it is longer than so many bytes, or compressed.
        httpx.TransportError: it breaks off.
    """
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - clients are async
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        await response.aclose()
        raise UnreadableError(f"the answer is compressed: {encoding[:20]}")
    response.stream = _Bounded(response.stream, most_bytes)
    try:
        await response.aread()
    except BaseException:
        await response.aclose()
        raise


def reading(most_bytes: int) -> dict[str, list[Callable[[httpx.Response], Awaitable[None]]]]:
    """Event hooks of a client that reads each of its answers like that."""

    async def read(response: httpx.Response) -> None:
        await read_whole(response, most_bytes)

    return {"response": [read]}


class _Bounded(httpx.AsyncByteStream):
    """The same stream, up to so many bytes."""

    def __init__(self, stream: httpx.AsyncByteStream, most_bytes: int) -> None:
        self._stream = stream
        self._most_bytes = most_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts, as they come.

        Raises:
            UnreadableError: there are more.
        """
        left = self._most_bytes
        async for part in self._stream:
            left -= len(part)
            if left < 0:
                raise UnreadableError(f"the answer is longer than {self._most_bytes} bytes")
            yield part

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()
