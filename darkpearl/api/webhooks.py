"""Webhooks: payment gateways tell something by themselves.

A sender is known by its signature alone, which the gateway's own code checks over the
bytes as they came. What follows from an event is the database's to decide.

With several cells an event goes to the one that made the call, as its key says, and on to where the
payment is now. What no cell knows is written once, in the cell that the key names, else home.
"""

import asyncio
import hashlib
import logging
import re
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Router, post
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException
from litestar.params import FromPath
from msgspec import Meta, Struct

from darkpearl.api.access import Caller, Parameters
from darkpearl.api.admission import OTHERS
from darkpearl.api.problems import refusals
from darkpearl.api.routing import HOME, Route, Routed, moving, named_by
from darkpearl.api.tokens import Identity
from darkpearl.cells.directory import Cell
from darkpearl.cells.reach import AwayError, Reach
from darkpearl.errors import BadRequestError, ConflictError, NotFoundError, UnavailableError
from darkpearl.gateways import Answer, Gateway, SignatureError, WebhookEvent

LOOKUP_SECONDS = 10.0
_log = logging.getLogger(__name__)

_RECORDED = "record_gateway_event(%(gateway)s, %(event_id)s, %(idempotency_key)s, %(answer)s)"
_RECORD = f"select {_RECORDED} as disposition"
_RECORD_IF_KNOWN = (
    f"select case when knows_call(%(idempotency_key)s) then {_RECORDED} end as disposition"
)
_CELL_OF_KEY = re.compile(r"@(\d{1,3})(?=:|$)")


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
    told = {
        "gateway": gateway,
        "event_id": _name(event.event_id),
        "idempotency_key": event.idempotency_key and _name(event.idempotency_key),
        "answer": msgspec.json.encode(_clean(event.answer)).decode(),
    }
    return await _record(state.reach, _identity(known.name), told)


async def _record(reach: Reach, identity: Identity, told: Parameters) -> Receipt:
    """Have an event written down, in the cell that it is for.

    Raises:
        UnavailableError: that cell is away, or it may be; or its warehouse is moving.
    """
    here = (await reach.directory()).here
    if len(reach.cells) < 2:  # noqa: PLR2004 - alone
        return await _recorded(Caller(reach.own[OTHERS], identity), _RECORD, told)
    caller = Routed(reach, OTHERS, identity, "", Route(here))
    named = _CELL_OF_KEY.search(told["idempotency_key"] or "")
    first = int(named[1]) if named else HOME
    first = first if first in reach.cells else HOME if HOME in reach.cells else here
    if told["idempotency_key"] and (receipt := await _find(caller, first, told)):
        return receipt
    return await caller.ask(first, partial(_recorded, query=_RECORD, told=told))


async def _find(caller: Routed, first: int, told: Parameters) -> Receipt | None:
    """Have an event written down by the cell that knows its call; None when none does.

    One cell after the other, since it is a write: the one that made the call has it nearly always.

    Raises:
        UnavailableError: as _record().
    """
    to_ask = [first, *sorted(set(caller.cells) - {first})]
    away: list[Cell] = []
    while to_ask:
        number = to_ask.pop(0)
        try:
            receipt = await caller.ask(
                number, partial(_recorded, query=_RECORD_IF_KNOWN, told=told)
            )
        except AwayError as error:
            away += error.cells
        except ConflictError as error:  # its warehouse has moved
            moved_to = named_by(error)
            if moved_to is None:
                raise
            if moved_to.cell not in to_ask:
                raise (AwayError(*away) if away else moving()) from error
            to_ask.remove(moved_to.cell)
            to_ask.insert(0, moved_to.cell)
        else:
            if receipt.disposition:
                return receipt
    if away:
        raise AwayError(*away)
    return None


async def _recorded(there: Caller, query: str, told: Parameters) -> Receipt:
    row = await there.run((query, told))
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
