"""The service itself: an honest one, for faults come from outside (faults.py)."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import (
    HTTPException,
    NotAuthorizedException,
    NotFoundException,
    ValidationException,
)
from litestar.handlers import BaseRouteHandler
from litestar.params import FromQuery, HeaderParameter, JSONBody, PathParameter, QueryParameter
from msgspec import Meta

from darkpearl.gateways import Answer, Operation
from darkpearl.gateways.http import Page
from darkpearl.paysim import rules
from darkpearl.paysim.faults import MAX_BODY_BYTES, Behaviour
from darkpearl.paysim.ledger import KeyReusedError, Ledger
from darkpearl.paysim.webhooks import Webhooks

TICK_SECONDS = 0.05
"""How often the clock is looked at while nothing is due."""
_KEY = r"^[A-Za-z0-9._:-]{1,200}$"
Key = Annotated[str, HeaderParameter(name="Idempotency-Key", pattern=_KEY)]
PaymentKey = Annotated[str, PathParameter(pattern=_KEY)]

_log = logging.getLogger(__name__)


class Money(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a capture and of a refund."""

    amount: Annotated[str, Meta(pattern=r"^[0-9]{1,14}(\.[0-9]{1,4})?$")]
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")]


class Authorization(Money, frozen=True, forbid_unknown_fields=True):
    """Body of an authorisation."""

    capture: bool = False
    token: str | None = None


class Service:
    """The books, and whom to tell."""

    def __init__(self, ledger: Ledger, behaviour: Behaviour, webhooks: Webhooks | None) -> None:
        self.ledger = ledger
        self._behaviour = behaviour
        self._webhooks = webhooks

    async def ask(
        self, operation: Operation, key: str, payment_key: str, money: Money | None = None
    ) -> Response[Answer]:
        """The answer to a call."""
        asked = rules.Request(operation, key, payment_key)
        if money:
            given = msgspec.structs.asdict(money)
            amount = int(Decimal(given.pop("amount")) * rules.SCALE)
            asked = msgspec.structs.replace(asked, amount=amount, **given)
        answer = await self.ledger.do(partial(rules.ask, request=asked, behaviour=self._behaviour))
        if answer.outcome == "pending":
            return Response(answer, status_code=HTTPStatus.ACCEPTED)
        verdict = self._behaviour.verdict(operation, key, asked.token)
        if self._webhooks and verdict.webhook == "first":
            await self._webhooks.deliver(key)
        return Response(answer, status_code=HTTPStatus.OK)

    @asynccontextmanager
    async def running(self, _: Litestar) -> AsyncIterator[None]:
        """Decide what is pending and send what is to be sent, while the service runs."""
        chores: list[Callable[[], Awaitable[bool]]] = [
            partial(self.ledger.do, partial(rules.decide_due, behaviour=self._behaviour))
        ]
        if self._webhooks:
            chores.append(self._webhooks.deliver_due)
        tasks = [asyncio.create_task(_repeat(chore)) for chore in chores]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._webhooks:
                await self._webhooks.close()
            await self.ledger.close()


Asked = NamedDependency[Service]


@post("/v1/payments")
async def authorize(service: Asked, key: Key, data: JSONBody[Authorization]) -> Response[Answer]:
    """Hold money, or take it at once. The key becomes the name of the payment."""
    return await service.ask("authorize", key, key, data)


@post("/v1/payments/{payment_key:str}/capture")
async def capture(
    service: Asked, key: Key, payment_key: PaymentKey, data: JSONBody[Money]
) -> Response[Answer]:
    """Take what is held."""
    return await service.ask("capture", key, payment_key, data)


@post("/v1/payments/{payment_key:str}/void")
async def void(service: Asked, key: Key, payment_key: PaymentKey) -> Response[Answer]:
    """Undo a payment wholly, even before it was heard of."""
    return await service.ask("void", key, payment_key)


@post("/v1/payments/{payment_key:str}/refunds")
async def refund(
    service: Asked, key: Key, payment_key: PaymentKey, data: JSONBody[Money]
) -> Response[Answer]:
    """Give back a part of what was taken."""
    return await service.ask("refund", key, payment_key, data)


@get("/v1/calls/{key:str}")
async def get_call(service: Asked, key: Annotated[str, PathParameter()]) -> Answer:
    """The outcome of a call."""
    answer = await service.ledger.do(partial(rules.lookup, idempotency_key=key))
    if answer is None:
        raise NotFoundException(f"{key} was never heard of")
    return answer


@get("/v1/payments")
async def list_payments(
    service: Asked,
    since: FromQuery[datetime],
    cursor: Annotated[int, QueryParameter(ge=0)] = 0,
) -> Page:
    """A page of what was authorised since then."""
    if since.tzinfo is None:
        raise ValidationException("since needs a time zone")
    return await service.ledger.do(partial(rules.payments, since=since, after=cursor))


@get("/v1/ledger")
async def get_ledger(service: Asked) -> dict[str, Any]:
    """The sums of the books."""
    return await service.ledger.do(rules.summary)


def create_app(
    ledger: Ledger,
    behaviour: Behaviour,
    webhooks: Webhooks | None = None,
    token: str | None = None,
) -> Litestar:
    """The ASGI application; the ledger and the webhooks are closed when it shuts down.

    Args:
        ledger: the books.
        behaviour: what is decided, and how it is told.
        webhooks: where to; None tells nobody.
        token: bearer token that callers have to have; None lets everyone in.
    """

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        given = connection.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise NotAuthorizedException("the bearer token is missing or wrong")

    service = Service(ledger, behaviour, webhooks)
    return Litestar(
        [authorize, capture, void, refund, get_call, list_payments, get_ledger],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        guards=[guard] if token else [],
        lifespan=[service.running],
        request_max_body_size=MAX_BODY_BYTES,
        exception_handlers={
            HTTPException: _on_http_exception,
            KeyReusedError: _on_key_reused,
            Exception: _on_exception,
        },
        openapi_config=None,
        logging_config=None,
    )


async def _repeat(chore: Callable[[], Awaitable[bool]]) -> None:
    """Again at once while there is something to do, else after a tick."""
    while True:
        try:
            if await chore():
                continue
        except Exception:  # noqa: BLE001 - a full disk, say, which may pass
            _log.exception("trying again")
        await asyncio.sleep(TICK_SECONDS)


def _on_http_exception(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    return _problem(error.status_code, error.detail, error.extra)


def _on_key_reused(_: Request[Any, Any, Any], error: KeyReusedError) -> Response[dict[str, Any]]:
    return _problem(HTTPStatus.CONFLICT, str(error))


def _on_exception(_: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
    _log.error("%s", error, exc_info=error)
    return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "")


def _problem(status: int, detail: str, errors: Any = None) -> Response[dict[str, Any]]:
    told = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(
        told | ({"errors": errors} if errors else {}),
        status_code=status,
        media_type="application/problem+json",
    )
