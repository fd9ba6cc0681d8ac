"""Any payment service that speaks the contract of docs/gateway.md."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import msgspec

from darkpearl.gateways import (
    Answer,
    AnsweredError,
    Call,
    GatewayPayment,
    SignatureError,
    WebhookEvent,
    whole_characters,
)
from darkpearl.outside import NOT_COMPRESSED, UnreadableError, read_whole

SIGNATURE_HEADER = "darkpearl-signature"
TOLERANCE_SECONDS = 300
CONNECT_SECONDS = 5.0
KEEPALIVE_SECONDS = 3.0
"""Less than servers do (5 s is common), or the other side hangs up on what is just being sent."""
LONGEST_ANSWER_BYTES = 65_536
LONGEST_PAGE_BYTES = 1_048_576
LONGEST_CURSOR = 1000
_ASK_AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_NO_ACCESS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
"""It refuses us, whatever we ask: no order's fault."""


class GatewayError(RuntimeError):
    """The service refuses what it is asked or how, or answers outside of the contract."""


class OddAnswerError(GatewayError, AnsweredError):
    """The service answered outside of the contract; it is up."""


class Page(msgspec.Struct):
    """A page of payments, and the cursor of the next one when there is one."""

    payments: list[GatewayPayment]
    next: Annotated[str, msgspec.Meta(max_length=LONGEST_CURSOR)] | None = None


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_event = msgspec.json.Decoder(WebhookEvent).decode
_decode_page = msgspec.json.Decoder(Page).decode


class HttpGateway:
    """Asks over HTTP, on connections that are kept.

    It never tries again by itself. What may have been done (a timeout, a broken connection, a 5xx)
    is answered as unknown; a request that the service finds wrong is declined, since it would be
    wrong again; what can't have been meant raises GatewayError.
    """

    name = "http"

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        webhook_secret: str | None = None,
        concurrency: int = 64,
        timeout_seconds: float = 10.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            url: where the service's /v1 is.
            token: sent as bearer token.
            webhook_secret: what webhooks are signed with; several, divided by commas, while it
                is being changed. Without one every webhook is refused.
            concurrency: connections at most.
            timeout_seconds: how long the service may be silent.
            transport: instead of the network.
        """
        self._secrets = [each.strip() for each in (webhook_secret or "").split(",") if each.strip()]
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=NOT_COMPRESSED | ({"Authorization": f"Bearer {token}"} if token else {}),
            timeout=httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)),
            transport=_Connections(concurrency, transport),
        )

    async def authorize(self, call: Call) -> Answer:
        """POST /v1/payments."""
        return await self._ask(
            "/v1/payments",
            call,
            amount=call.amount,
            currency=call.currency,
            capture=call.capture,
            token=call.token,
        )

    async def capture(self, call: Call) -> Answer:
        """POST /v1/payments/{payment_key}/capture."""
        path = f"{_path(call)}/capture"
        return await self._ask(path, call, amount=call.amount, currency=call.currency)

    async def void(self, call: Call) -> Answer:
        """POST /v1/payments/{payment_key}/void."""
        return await self._ask(f"{_path(call)}/void", call)

    async def refund(self, call: Call) -> Answer:
        """POST /v1/payments/{payment_key}/refunds."""
        path = f"{_path(call)}/refunds"
        return await self._ask(path, call, amount=call.amount, currency=call.currency)

    async def lookup(self, call: Call) -> Answer | None:
        """GET /v1/calls/{idempotency_key}."""
        return await self._fetch("GET", f"/v1/calls/{quote(call.idempotency_key, safe='')}")

    async def payments(self, since: datetime) -> AsyncIterator[GatewayPayment]:
        """GET /v1/payments, page by page.

        Raises:
            GatewayError: the service doesn't answer as it should.
        """
        parameters = {"since": since.isoformat()}
        followed: set[int] = set()  # hashes of cursors
        while True:
            try:
                response = await self._client.get(
                    "/v1/payments",
                    params=parameters,
                    extensions={"most_bytes": LONGEST_PAGE_BYTES},
                )
            except httpx.TransportError as error:
                raise GatewayError(f"GET /v1/payments: {_said(error)}") from error
            if response.status_code != HTTPStatus.OK:
                raise GatewayError(_refused(response))
            page = _decode(_decode_page, response)
            for payment in page.payments:
                yield payment
            if page.next is None:
                return
            if hash(page.next) in followed:
                raise OddAnswerError(f"{_what(response)}: the pages go round in circles")
            followed.add(hash(page.next))
            parameters["cursor"] = page.next

    def webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent | None:
        """The event, its signature checked."""
        verify(headers.get(SIGNATURE_HEADER), body, self._secrets)
        event = _decode_event(whole_characters(body))
        return msgspec.structs.replace(event, answer=self._named(event.answer))

    async def payment_key(self, reference: str) -> None:
        """Events of this contract have their key."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, path: str, call: Call, **body: Any) -> Answer:
        answer = await self._fetch(
            "POST",
            path,
            content=msgspec.json.encode(body),
            headers={"Content-Type": "application/json", "Idempotency-Key": call.idempotency_key},
        )
        if answer is None:
            raise GatewayError(f"POST {path}: there is no such thing: is the URL right?")
        return answer

    async def _fetch(self, method: str, path: str, **request: Any) -> Answer | None:
        """The answer; None for 404."""
        try:
            response = await self._client.request(method, path, **request)
        except UnreadableError as error:
            raise OddAnswerError(f"{method} {path}: {error}") from None
        except httpx.TransportError as error:
            return Answer("unknown", gateway=self.name, message=_said(error))
        if response.is_success:
            return self._named(_decode(_decode_answer, response))
        if response.status_code == HTTPStatus.NOT_FOUND:
            return None
        if response.is_server_error or response.status_code in _ASK_AGAIN:
            return Answer("unknown", gateway=self.name, message=_refused(response))
        if response.status_code in _NO_ACCESS:
            raise GatewayError(_refused(response))
        # To look a call up wrongly says nothing of the call.
        refused = response.is_client_error and response.status_code != HTTPStatus.CONFLICT
        if refused and method == "POST":
            code = f"http_{response.status_code}"
            return Answer("declined", gateway=self.name, code=code, message=_refused(response))
        # Under a key that was used for something else, that may have been done.
        raise OddAnswerError(_refused(response))

    def _named(self, answer: Answer) -> Answer:
        return msgspec.structs.replace(answer, gateway=self.name)


class _Connections(httpx.AsyncBaseTransport):
    """Connections of which the one used last is used next, so that those not needed expire.

    httpx's own pool looks at every connection for every other one at each request: at 64 of them
    that is most of what a request costs.
    """

    def __init__(self, number: int, instead: httpx.AsyncBaseTransport | None = None) -> None:
        verify = httpx.create_ssl_context()
        limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_SECONDS)
        self._all = [
            instead or httpx.AsyncHTTPTransport(verify, limits=limits) for _ in range(number)
        ]
        self._free: asyncio.LifoQueue[httpx.AsyncBaseTransport] = asyncio.LifoQueue()
        for each in self._all:
            self._free.put_nowait(each)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The whole response, from a connection that is free again."""
        connection = await self._free.get()
        try:
            response = await connection.handle_async_request(request)
            await read_whole(response, request.extensions.get("most_bytes", LONGEST_ANSWER_BYTES))
        finally:
            self._free.put_nowait(connection)
        return response

    async def aclose(self) -> None:
        """Close them all."""
        for each in self._all:
            await each.aclose()


def sign(secret: str, body: bytes, at: float) -> str:
    """The signature header of a body that is sent at a time (seconds of the epoch)."""
    return f"t={int(at)},v1={_digest(secret, str(int(at)), body)}"


def verify(header: str | None, body: bytes, secrets: list[str]) -> None:
    """Accept a body that was signed with any of the secrets, within the tolerance of now.

    Raises:
        SignatureError: saying what is wrong with the header, and nothing of what would be right.
    """
    if not header:
        raise SignatureError(f"there is no {SIGNATURE_HEADER} header")
    parts = [part.strip().partition("=")[::2] for part in header.split(",")]
    times = [value for name, value in parts if name == "t"]
    given = [value.encode() for name, value in parts if name == "v1"]
    if len(times) != 1 or not given or not (times[0].isascii() and times[0].isdigit()):
        raise SignatureError(f"{SIGNATURE_HEADER} isn't t=<seconds>,v1=<signature>")
    expected = [_digest(secret, times[0], body).encode() for secret in secrets]
    if not any(hmac.compare_digest(one, other) for one in expected for other in given):
        raise SignatureError("the signature is wrong")
    if abs(time.time() - int(times[0])) > TOLERANCE_SECONDS:
        raise SignatureError(f"it was signed more than {TOLERANCE_SECONDS} s from now")


def _digest(secret: str, at: str, body: bytes) -> str:
    return hmac.new(secret.encode(), at.encode() + b"." + body, "sha256").hexdigest()


def _path(call: Call) -> str:
    return f"/v1/payments/{quote(call.payment_key, safe='')}"


def _decode(decode: Any, response: httpx.Response) -> Any:
    try:
        return decode(response.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise OddAnswerError(f"{_what(response)}: {error}") from None


def _what(response: httpx.Response) -> str:
    return f"{response.request.method} {response.request.url.path}: {response.status_code}"


def _refused(response: httpx.Response) -> str:
    """Method, path, status, and what the problem document says, if it is one."""
    try:
        detail = msgspec.json.decode(response.content, type=dict[str, Any]).get("detail", "")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        detail = response.reason_phrase
    return f"{_what(response)} {str(detail)[:300]}".rstrip()


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
