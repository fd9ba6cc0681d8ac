"""The progress of an order's saga as server-sent events.

A stream holds no connection between its looks at the database: each is one short query by event
id. Within a saga, ids grow with commits, because every event is written under the saga's lock; so
the last id that a client has seen says all that it has missed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, HeaderParameter
from litestar.response import Stream
from litestar.response.sse import ServerSentEventMessage
from litestar.status_codes import HTTP_200_OK, HTTP_204_NO_CONTENT

from darkpearl.api.access import Caller
from darkpearl.api.bodies import encoder
from darkpearl.api.problems import refusals
from darkpearl.errors import NotFoundError, RateLimitError, UnavailableError
from darkpearl.models.sagas import SagaEvent

POLL_SECONDS = 0.2
PING_SECONDS = 15.0
BATCH = 100
LAST_ID = 2**63 - 1
"""No event has a higher one, whatever a client says."""
MAX_STREAMS = 200
"""Streams of one process at most: each costs the database five short queries a second."""
MAX_STREAMS_EACH = 20
"""Streams of one customer at most."""

NOTHING_FOLLOWS = {
    HTTP_204_NO_CONTENT: ResponseSpec(
        None, description="The saga has ended, and Last-Event-ID is its last event"
    )
}

LastEventId = Annotated[
    int | None,
    HeaderParameter(name="Last-Event-ID", ge=0, description="The last event seen; the next follow"),
]

logger = logging.getLogger(__name__)

_LOOK = "select * from follow_saga(%(id)s, %(after)s, %(limit)s)"


class _Look(msgspec.Struct):
    """The result of one look at a saga."""

    ended: bool
    events: list[SagaEvent]


@get(
    "/{order_id:uuid}/events",
    summary="Follow an order",
    media_type="text/event-stream",
    exclude_from_compression=True,
    responses=refusals(400, 404) | NOTHING_FOLLOWS,
)
async def follow_order(
    caller: NamedDependency[Caller],
    state: State,
    order_id: FromPath[UUID],
    last_event_id: LastEventId = None,
) -> Stream | Response[None]:
    """The history of the order's saga as server-sent events, then each new event as it is written.

    The stream ends when the saga has ended. A client that comes back after that with the id of
    the last event gets 204, which tells an EventSource to stay away.
    """
    state.streams.check(caller.key, is_staff=caller.is_staff)
    after = min(last_event_id or 0, LAST_ID)
    look = await _look(caller, order_id, after)
    if look is None:
        raise NotFoundError(f"There is no order {order_id}.")
    if look.ended and not look.events:
        return Response(None, status_code=HTTP_204_NO_CONTENT)
    return Stream(
        _follow(caller, state, order_id, after, look),
        status_code=HTTP_200_OK,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _look(caller: Caller, order_id: UUID, after: int) -> _Look | None:
    return await caller.find(_Look, (_LOOK, {"id": order_id, "after": after, "limit": BATCH}))


async def _follow(
    caller: Caller, state: State, order_id: UUID, after: int, first: _Look
) -> AsyncIterator[bytes]:
    """Events until the saga or the token has ended, the client is gone or the server stops."""
    look: _Look | None = first
    said = time.monotonic()
    with _ended_by_refusals(), state.streams.held(caller.key, is_staff=caller.is_staff):
        while look is not None and not caller.has_expired:
            for event in look.events:
                after, said = event.id, time.monotonic()
                yield _message(event)
            if look.ended and len(look.events) < BATCH:
                return
            if len(look.events) < BATCH and await stopping(state, POLL_SECONDS):
                return
            if time.monotonic() - said >= PING_SECONDS:
                said = time.monotonic()
                yield b": ping\r\n\r\n"
            look = await _look(caller, order_id, after)


@contextmanager
def _ended_by_refusals() -> Iterator[None]:
    """A stream ends where it can't go on: the client comes back with the id of its last event."""
    try:
        yield
    except UnavailableError as error:
        logger.warning("a stream ended: %s (%s)", error, error.__cause__)
    except RateLimitError:  # the caller opened others since it was let in
        return


async def stopping(state: State, seconds: float) -> bool:
    """Wait so long, or until the server stops; says whether it does."""
    try:
        async with asyncio.timeout(seconds):
            await state.stopping.wait()
    except TimeoutError:
        return False
    return True


def _message(event: SagaEvent) -> bytes:
    return ServerSentEventMessage(
        id=event.id, event=event.event_type, data=encoder.encode(event)
    ).encode()
