"""Webhooks: payment gateways tell something by themselves.

A sender is known by its signature alone, which the gateway's own code checks over the
bytes as they came. What follows from an event is the database's to decide.
"""

import asyncio
import hashlib
import logging
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException
from litestar.params import FromPath
from msgspec import Meta, Struct

from darkpearl.api.access import Caller
from darkpearl.api.problems import refusals
from darkpearl.api.tokens import Identity
from darkpearl.errors import BadRequestError, NotFoundError, UnavailableError
from darkpearl.gateways import Answer, Gateway, SignatureError, WebhookEvent

LOOKUP_SECONDS = 10.0
_log = logging.getLogger(__name__)

_RECORD = (
    "select record_gateway_event("
    "%(gateway)s, %(event_id)s, %(idempotency_key)s, %(answer)s) as disposition"
)


class Receipt(Struct):
    """That a webhook was taken, so that the gateway need not send it again."""

    disposition: Annotated[
        Literal["applied", "duplicate", "stale", "unmatched", "ignored"],
        Meta(
            description="applied: it was news; duplicate: it came before; stale: nobody waits for"
            " it; unmatched: it belongs to nothing known, or contradicts it; ignored: it says"
            " nothing of a payment"
        ),
    ]


@post(
    "/{gateway:str}",
    status_code=200,
    summary="Take an event of a payment gateway",
    responses=refusals(400, 401, 404, 413, needs_token=False),
)
async def receive_webhook(
    request: Request[Any, Any, State], state: State, gateway: FromPath[str]
) -> Receipt:
    """Takes what the gateway signed, once, however often it is delivered."""
    known: Gateway = state.gateway
    if gateway != known.name:
        raise NotFoundError(f"The gateway here is {known.name}.")
    try:
        event = known.webhook(dict(request.headers), await request.body())
    except SignatureError as error:
        raise NotAuthorizedException(f"Not signed by {gateway}: {error}") from None
    except ValueError as error:
        raise BadRequestError(f"The body is no event: {error}") from None
    if event and event.idempotency_key is None and event.payment_reference:
        event = await _with_key(known, event, event.payment_reference)
    if event is None:
        return Receipt("ignored")
    row = await Caller(state.pool, _identity(known.name)).run(
        (
            _RECORD,
            {
                "gateway": gateway,
                "event_id": _name(event.event_id),
                "idempotency_key": event.idempotency_key and _name(event.idempotency_key),
                "answer": msgspec.json.encode(_clean(event.answer)).decode(),
            },
        )
    )
    return Receipt(row["disposition"] if row else "ignored")


async def _with_key(gateway: Gateway, event: WebhookEvent, reference: str) -> WebhookEvent | None:
    """The event with the key of its payment; None when that is none of ours.

    Raises:
        UnavailableError: the gateway doesn't say; it will send the event again.
    """
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            key = await gateway.payment_key(reference)
    except Exception as error:
        _log.warning("event %s: its payment can't be looked up: %s", event.event_id, error)
        raise UnavailableError("The gateway doesn't say which payment this is about.") from error
    return msgspec.structs.replace(event, idempotency_key=key) if key else None


def _name(text: str) -> str:
    """A name without the character that no text of the database can hold, told from others."""
    if "\0" not in text:
        return text
    return f"{text.replace(chr(0), '')}:{hashlib.sha256(text.encode()).hexdigest()}"


def _clean(answer: Answer) -> Answer:
    """The answer without that character."""
    said = {name: getattr(answer, name) for name in ("reference", "code", "message", "currency")}
    cleaned = {name: text and text.replace("\0", "") for name, text in said.items()}
    return msgspec.structs.replace(answer, **cleaned)


def _identity(gateway: str) -> Identity:
    """A gateway that has proved who it is."""
    claims = {"role": "service_role", "sub": f"gateway {gateway}"}
    return Identity("service_role", msgspec.json.encode(claims).decode())


router = Router(
    "/payments/webhooks", route_handlers=[receive_webhook], tags=["payments"], security=[{}]
)
