"""The feed: what happened to orders, payments, refunds and stock, by one cursor.

A client that waits holds no connection meanwhile. All that wait in a process share its looks at how
far the feed can be read, so their number costs the database nothing.
"""

import asyncio
import time
from typing import Annotated, Any

from litestar import Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.events import LAST_ID, POLL_SECONDS, stopping
from darkpearl.api.problems import refusals
from darkpearl.feed import Horizon
from darkpearl.models.feed import Events, Topic, written

LONGEST_WAIT_SECONDS = 30
MAX_WAITS = 200
"""Requests of one process that wait at once."""

_READ = "select events as data, next from read_feed(%(after)s, %(upto)s, %(topics)s, %(limit)s)"

After = Annotated[
    int,
    QueryParameter(ge=0, le=LAST_ID, description="`next` of the answer before; 0: the beginning"),
]
Wait = Annotated[
    float,
    QueryParameter(
        ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds to wait for when there is nothing new"
    ),
]
Limit = Annotated[int, QueryParameter(ge=1, le=1000, description="Events at most")]
Topics = Annotated[
    list[Topic] | None,
    QueryParameter(name="topic", description="Of these topics, each a parameter; else of all"),
]


class Looks:
    """The looks of a process at how far the feed can be read: one at a time, shared by all."""

    def __init__(self) -> None:
        self._horizon = Horizon()
        self._one_at_a_time = asyncio.Lock()
        self._looked_at = float("-inf")

    async def horizon(self, caller: Caller) -> int:
        """The id up to which all is decided, as of a moment ago.

        Raises:
            ForbiddenError: the caller may not read the feed.
            DarkPearlError: the database can't say.
        """
        asked_at = time.monotonic()
        async with self._one_at_a_time:
            if self._looked_at < asked_at:  # nobody has looked since
                began_at = time.monotonic()
                row = await caller.run(self._horizon.look)
                if row is not None:
                    self._horizon.see(row)
                self._looked_at = began_at
            return self._horizon.id


@get("/", summary="Follow what happens", responses=refusals(400))
async def list_events(
    caller: NamedDependency[Caller],
    state: State,
    after: After = 0,
    wait: Wait = 0,
    limit: Limit = 100,
    topic: Topics = None,
) -> JsonResponse[Events]:
    """What happened after an event, in order; nothing is missed when you go on from `next`.

    With `wait`, an answer without events comes only when so many seconds have passed.
    """
    until = time.monotonic() + wait
    with state.waits.held(caller.key, is_staff=caller.is_staff):
        while True:
            upto = await state.looks.horizon(caller)
            events = Events([], after)
            if after < upto:
                asked = {"after": after, "upto": upto, "topics": written(topic), "limit": limit}
                events = await caller.get(Events, (_READ, asked))
            left = until - time.monotonic()
            if events.data or left <= 0 or caller.has_expired:
                break
            if after == events.next and await stopping(state, min(POLL_SECONDS, left)):
                break
            after = events.next
    return JsonResponse[Any](events, headers={"Cache-Control": "no-store"})


router = Router("/events", route_handlers=[list_events], tags=["events"])
