"""The feed: what happened to orders, payments, refunds and stock, by one cursor.

A client that waits holds no connection meanwhile. All that wait in a process share its looks at how
far the feed can be read, so their number costs the database nothing.

With several cells the cursor holds a place in each. One that is away keeps its place, so what
happened there is told once it is back; the others are told meanwhile.
"""

import asyncio
import time
from collections import defaultdict
from typing import Annotated, Any

from litestar import Router, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from msgspec import UNSET, Struct

from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.events import POLL_SECONDS, stopping
from darkpearl.api.problems import refusals
from darkpearl.api.routing import HOME, Answers, Routed
from darkpearl.cells.reach import AwayError
from darkpearl.feed import Horizon, Part, Places, cursor_of, merged, read_places
from darkpearl.models.feed import Event, Events, Topic, written

LONGEST_WAIT_SECONDS = 30
MAX_WAITS = 200
"""Requests of one process that wait at once."""

_READ = "select events as data, next from read_feed(%(after)s, %(upto)s, %(topics)s, %(limit)s)"

After = Annotated[
    str,
    QueryParameter(
        pattern=r"^([0-9]{1,18}|[0-9]{1,3}-[0-9]{1,18}(_[0-9]{1,3}-[0-9]{1,18})*)$",
        description="`next` of the answer before, as it is; 0: the beginning",
    ),
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


class _Found(Struct):
    """What comes next in the feed of one cell."""

    data: list[Event]
    next: int


class Looks:
    """The looks of a process at how far a feed can be read: one at a time, shared by all."""

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


def looks_by_cell() -> defaultdict[int, Looks]:
    """The looks of a process at the feed of each cell, by its number."""
    return defaultdict(Looks)


@get("/", summary="Follow what happens", responses=refusals(400))
async def list_events(
    caller: NamedDependency[Caller],
    state: State,
    after: After = "0",
    wait: Wait = 0,
    limit: Limit = 100,
    topic: Topics = None,
) -> JsonResponse[Events]:
    """What happened after an event, in order; nothing is missed when you go on from `next`.

    With `wait`, an answer without events comes only when so many seconds have passed.
    """
    until = time.monotonic() + wait
    here = (await state.reach.directory()).here or HOME
    # Of every cell there is, so that an API at the address of another reads on where this one was.
    places = dict.fromkeys(caller.cells, 0) | read_places(after, here)
    with state.waits.held(caller.key, is_staff=caller.is_staff):
        while True:
            answers = await _next(caller, state.looks, here, places, written(topic), limit)
            before, (data, places) = places, merged(answers.found, places, limit)
            left = until - time.monotonic()
            if data or left <= 0 or caller.has_expired:
                break
            if places == before and await stopping(state, min(POLL_SECONDS, left)):
                break
    missing = [each.name for each in answers.away]
    events = Events(data, cursor_of(places, here), missing or UNSET)
    return JsonResponse[Any](events, headers={"Cache-Control": "no-store"})


async def _next(
    caller: Caller,
    looks: defaultdict[int, Looks],
    here: int,
    places: Places,
    topics: str | None,
    limit: int,
) -> Answers[Part[Event]]:
    """What comes next in each cell that answers.

    Raises:
        AwayError: none does.
        DarkPearlError: what one of them says.
    """

    async def look(there: Caller) -> Part[Event]:
        number = there.number or here
        place = places.get(number, 0)
        upto = await looks[number].horizon(there)
        if place >= upto:
            return Part([], place, is_last=True)
        asked = {"after": place, "upto": upto, "topics": topics, "limit": limit}
        found = await there.get(_Found, (_READ, asked))
        return Part(found.data, found.next, is_last=found.next >= upto)

    if not isinstance(caller, Routed):
        return Answers({here: await look(caller)}, [])
    answers = await caller.ask_all(look)
    if not answers.found:
        raise AwayError(*answers.away)
    return answers


router = Router("/events", route_handlers=[list_events], tags=["events"])
