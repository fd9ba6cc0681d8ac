"""One webhook on its way: signed as Standard Webhooks has it, and sent once."""

import asyncio
import ssl
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

import httpx
from standardwebhooks import Webhook

from darkpearl import __version__
from darkpearl.outside import NOT_COMPRESSED, UnreadableError, read_whole
from darkpearl.webhooks.addresses import RefusedAddressError, resolve

CONCURRENCY = 8
"""Webhooks that an endpoint is sent at once."""
LONGEST_ANSWER_BYTES = 65_536
"""Of an answer, of which nothing but the status counts: for the connection to be used again."""
_HEADERS = NOT_COMPRESSED | {
    "Content-Type": "application/json",
    "User-Agent": f"DarkPearl/{__version__}",
}


class Sent(NamedTuple):
    """What became of a webhook that was sent."""

    error: str | None
    """Why it didn't come through; None, it did."""
    is_gone: bool = False
    """The endpoint says that it is gone for good."""


class Sender:
    """The connections to one endpoint.

    Args:
        url: where it is.
        secrets: sign what is sent, each by itself.
        tls: whom to believe; shared by all, since it is dear to make.
        timeout_seconds: for all of a webhook, from the look-up of the name to the answer.
        to_private: addresses that aren't public are taken too.
        cell: what the ids of webhooks end in, so that those of two cells are no repeats.
    """

    def __init__(
        self,
        url: str,
        secrets: list[str],
        tls: ssl.SSLContext,
        *,
        timeout_seconds: float,
        to_private: bool,
        cell: str = "",
    ) -> None:
        self._cell = cell
        self._url = httpx.URL(url)
        self._webhooks = [Webhook(each) for each in secrets]
        self._seconds = timeout_seconds
        self._to_private = to_private
        self._one_look_up = asyncio.Lock()
        self._client = httpx.AsyncClient(
            verify=tls,
            trust_env=False,  # a proxy would connect to where it likes
            timeout=timeout_seconds,
            limits=httpx.Limits(max_connections=CONCURRENCY),
        )

    async def send(self, event_id: int, body: str) -> Sent:
        """Send a webhook and wait for its answer. Raises nothing of the network's."""
        try:
            async with asyncio.timeout(self._seconds):
                status = await self._post(event_id, body)
        except (TimeoutError, httpx.TimeoutException):
            return Sent(f"no answer within {self._seconds:g} s")
        except RefusedAddressError as error:
            return Sent(str(error))
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            return Sent(f"{type(error).__name__}: {error}"[:500])
        if HTTPStatus(200) <= status < HTTPStatus(300):
            return Sent(None)
        redirect = ", a redirect, which is not followed" if 300 <= status < 400 else ""  # noqa: PLR2004
        return Sent(f"it answered {status}{redirect}", is_gone=status == HTTPStatus.GONE)

    async def _post(self, event_id: int, body: str) -> int:
        """The status of the answer."""
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        async with self._one_look_up:
            address = await resolve(self._url.host, port, to_private=self._to_private)
        name, now = f"event-{event_id}{self._cell}", datetime.now(UTC)
        request = self._client.build_request(
            "POST",
            self._url.copy_with(host=address),
            content=body.encode(),
            headers=_HEADERS
            | {
                "Host": self._url.netloc.decode(),
                "webhook-id": name,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": " ".join(
                    each.sign(name, now, body) for each in self._webhooks
                ),
            },
            extensions={"sni_hostname": self._url.host},  # the certificate is the name's
        )
        response = await self._client.send(request, stream=True)
        try:
            await read_whole(response, LONGEST_ANSWER_BYTES)
        except UnreadableError:
            await response.aclose()
        return response.status_code

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
