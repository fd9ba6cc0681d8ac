"""Orders that name no warehouse, where several cells have some: as an API over them places them.

Each cell is asked what it could serve, and the one whose offer is best has the order. An id and a
reference are one over all cells: who places under them holds them at home meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import msgspec

from darkpearl import schema
from darkpearl.cells.directory import Cell
from darkpearl.cells.offers import HOME, OFFER, TOO_LITTLE, Offer, best_of, too_little
from darkpearl.cli.asking import Refusal, Session
from darkpearl.cli.statements import Row
from darkpearl.errors import from_sqlstate

_HOLD = "select hold_names(null, %s, %s)"
_LAW = "select law_of_names(%s, %s) as law"

Names = tuple[UUID | None, str | None]
"""An id and a reference that are asked for."""
Place = Callable[[Session], Awaitable[list[Row]]]
"""Places the order in the cell of a session."""


async def placed(session: Session, items: str, names: Names, place: Place) -> list[Row]:
    """What placing an order gives, in the cell that is to have it.

    Args:
        session: of staff.
        items: of the order, as JSON.
        names: of the order, if it has some.
        place: places it.

    Raises:
        Refusal: no cell can serve it, or its id or reference is taken.
        schema.SchemaError: it may have been placed before in a cell that is away.
    """
    cells = {each.number: each for each in await session.cells()}
    if not cells:
        return await place(session)
    gone: dict[int, Refusal] = {}
    async with _held(session, cells.get(HOME), names):
        while True:
            number = await _best(session, items, gone)
            try:
                async with session.beside(cells[number]) as there:
                    return await place(there)
            except Refusal as error:
                if not _has_too_little(error):
                    raise
                gone[number] = error  # somebody else was quicker


@asynccontextmanager
async def _held(session: Session, home: Cell | None, names: Names) -> AsyncIterator[None]:
    """Have nobody else place under the names meanwhile, once it is known that nobody has.

    Raises:
        Refusal: somebody has.
        schema.SchemaError: a cell doesn't say, or home is away.
    """
    if not any(names):
        yield
        return
    if home is None:
        raise schema.SchemaError("where home is isn't known")
    async with session.beside(home) as holder:
        await holder.rows("begin")
        await holder.rows(_HOLD, names)
        answers = await _asked(session, lambda there: there.one("", _LAW, *names))
        for each in answers.values():
            if isinstance(each, dict) and each["law"]:
                error = from_sqlstate("23505", constraint=each["law"])
                raise Refusal(f"{error.title.lower()}; {error.detail}")
        if away := _away(answers):
            raise schema.SchemaError(f"it may have been placed there: {away[0]}")
        yield


async def _best(session: Session, items: str, gone: dict[int, Refusal]) -> int:
    """The cell that is to have the order, but for those whose offer is gone.

    Raises:
        Refusal: there is none, or the order makes no sense; home's word counts for that.
        schema.SchemaError: no cell answers.
    """

    async def offer(there: Session) -> Offer:
        (found,) = await there.rows(OFFER, {"items": items})
        return msgspec.convert(found, Offer)

    answers = await _asked(session, offer, gone)
    offers = {cell.number: each for cell, each in answers.items() if isinstance(each, Offer)}
    refused = {cell.number: each for cell, each in answers.items() if isinstance(each, Refusal)}
    if (best := best_of(offers, refused, gone)) is not None:
        return best
    if not offers:
        raise schema.SchemaError("; ".join(_away(answers)))
    away = [cell.name for cell, each in answers.items() if isinstance(each, schema.SchemaError)]
    error = too_little(offers.values(), away)
    raise Refusal(f"{error.title.lower()}; {error.detail} {error.hint}")


async def _asked(
    session: Session, call: Callable[[Session], Awaitable[Any]], but: Collection[int] = ()
) -> dict[Cell, Any]:
    """What a call gives in each cell but some: its result, a Refusal, or the SchemaError."""

    async def ask(cell: Cell) -> Any:
        try:
            async with session.beside(cell) as there:
                return await call(there)
        except (Refusal, schema.SchemaError) as error:
            return error

    cells = [each for each in await session.cells() if each.number not in but]
    return dict(zip(cells, await asyncio.gather(*map(ask, cells)), strict=True))


def _away(answers: dict[Cell, Any]) -> list[str]:
    """The cells that don't answer, each with why."""
    return [
        f"cell {cell.name}: {each}"
        for cell, each in answers.items()
        if isinstance(each, schema.SchemaError)
    ]


def _has_too_little(refusal: Refusal) -> bool:
    told = refusal.__cause__
    return getattr(told and told.__cause__, "sqlstate", None) == TOO_LITTLE
