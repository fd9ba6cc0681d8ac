"""Health: the process runs, and it can serve."""

import asyncio
from typing import Annotated, Literal

from litestar import Router, get
from litestar.datastructures import State
from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.api.access import Caller
from darkpearl.api.problems import refusals
from darkpearl.api.tokens import ANONYMOUS
from darkpearl.cells.reach import Reach
from darkpearl.database import Pool
from darkpearl.errors import READ_ONLY, DarkPearlError, UnavailableError, why_read_only

READY_SECONDS = 2.0
"""Longer than this the database counts as away; a probe doesn't wait for ever."""


class Health(Struct):
    """How the service is."""

    status: Literal["ok"] = "ok"


class Readiness(Struct):
    """How the service is, and whether anybody works on what it takes in."""

    listener_seen: Annotated[
        bool | None,
        Meta(
            description="whether a listener is alive; without one orders are taken, and wait;"
            " null: the database doesn't say"
        ),
    ]
    status: Literal["ok"] = "ok"
    missing_cells: Annotated[
        list[str] | UnsetType,
        Meta(
            description="there where other cells don't answer: their names."
            " What is theirs isn't served meanwhile"
        ),
    ] = UNSET


HINT = "Run `darkpearl db migrate`."

_READY = "select to_regclass('orders') is not null as here, " + ", ".join(
    f"current_setting('{name}') as {name}" for name in READ_ONLY
)
_LISTENER = "select has_listener() as seen"


@get("/live", summary="Whether the process runs")
async def get_liveness() -> Health:
    """Answers as long as the process does, whatever the database does."""
    return Health()


@get(
    "/ready",
    summary="Whether it can serve",
    responses=refusals(needs_token=False, counts=False),
)
async def get_readiness(state: State) -> Readiness:
    """Asks the database, as a caller without a token does; once for all who ask meanwhile.

    It can serve without a listener, and what is of other cells without this one's database.
    """
    probing: asyncio.Task[bool | None] | None = state.probing
    if probing is None or probing.done():
        probing = state.probing = asyncio.create_task(_probe(state.pool))
    listener_seen = await asyncio.shield(probing)
    reach: Reach = state.reach
    await reach.directory()
    names = [each.name for each in await reach.look()]
    return Readiness(listener_seen, missing_cells=names or UNSET)


async def _probe(pool: Pool) -> bool | None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            row = await Caller(pool, ANONYMOUS).run((_READY, {}))
    except TimeoutError:
        raise UnavailableError(f"The database gave no answer in {READY_SECONDS:g} s.") from None
    except UnavailableError:
        raise
    except DarkPearlError as error:  # such as a role that doesn't exist yet
        raise UnavailableError("The database is not set up.", hint=HINT) from error
    if not row or not row["here"]:
        raise UnavailableError("The schema is not there.", hint=HINT)
    if why := why_read_only(row.get):
        raise UnavailableError(f"The database can't be written to: {why}.")
    try:
        async with asyncio.timeout(READY_SECONDS):
            seen = await Caller(pool, ANONYMOUS).run((_LISTENER, {}))
    except (TimeoutError, DarkPearlError):  # such as a database that isn't migrated so far
        return None
    return bool(seen and seen["seen"])


router = Router(
    "/health", route_handlers=[get_liveness, get_readiness], tags=["health"], security=[{}]
)
