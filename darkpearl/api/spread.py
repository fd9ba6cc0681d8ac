"""Lists over several cells: each is asked for the same cut, and the rows are merged by their order.

A warehouse that moves is shown by one cell at any time: the one that its own catalogue says has it.
For the moment until all have heard of a move two may say so, or none; they are asked again then.
"""

import asyncio
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from darkpearl.api.access import Caller, Statement
from darkpearl.api.cuts import Column, Cut, Rows
from darkpearl.api.routing import SETTLING_SECONDS, SETTLING_TRIES, Answers, Routed, moving
from darkpearl.cells.directory import Cell
from darkpearl.cells.reach import AwayError

T = TypeVar("T")


class Merged(NamedTuple):
    """A page of several cells."""

    data: list[Any]
    """In its order; there are more where there are more than were asked for."""
    total: int | None
    """How many rows there are; None where nobody asked."""
    away: list[Cell]
    """The cells whose rows are missing."""


async def merged_page(
    caller: Routed,
    kind: type[Any],
    cut: Cut,
    after: list[Any],
    limit: int,
    offset: int,
    *,
    counted: bool,
) -> Merged:
    """The rows of a page, of all cells that a list is of.

    Args:
        caller: who asks.
        kind: what a row is.
        cut: the list, whose order decides between any two rows of whatever cells.
        after: as for Cut.page().
        limit: rows.
        offset: rows to leave out, of all cells together.
        counted: whether to say how many there are.

    Raises:
        AwayError: none of the cells answers.
        DarkPearlError: what one of them says.
    """
    if offset:
        after = await _place(caller, kind, cut, offset)
    answers = await _ask(caller, kind, cut.page(after, limit, 0, counted=counted, spread=True))
    rows = [row for each in answers.found.values() for row in each.data]
    counts = [each.count for each in answers.found.values() if each.count is not None]
    merged = _in_order(cut.order, [(cut.values(row), row) for row in rows])
    return Merged(merged, sum(counts) if counted else None, answers.away)


async def _place(caller: Routed, kind: type[Any], cut: Cut, offset: int) -> list[Any]:
    """The values of the last row that an offset leaves out, or of the last there is."""
    answers = await _ask(caller, list[Any], cut.places(offset))
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    places = [
        [
            msgspec.convert(value, types[column.name])
            for column, value in zip(cut.order, each, strict=True)
        ]
        for answer in answers.found.values()
        for each in answer.data
    ]
    merged = _in_order(cut.order, [(each, each) for each in places])[:offset]
    return merged[-1] if merged else []


def _in_order(order: list[Column], rows: list[tuple[list[Any], T]]) -> list[T]:
    """Rows of several cells by the values of their order."""
    for at in reversed(range(len(order))):
        rows.sort(key=lambda row: row[0][at], reverse=order[at].descending)
    return [row for _, row in rows]


async def _ask(caller: Routed, kind: Any, statement: Statement) -> Answers[Rows[Any]]:
    """What each cell has, once they agree which has what."""
    over = list(caller.route.over)

    async def look(here: Caller) -> Rows[Any]:
        return await here.get(Rows[kind], statement)

    for _ in range(SETTLING_TRIES):
        answers = await caller.ask_all(look, over)
        if not answers.found:
            raise AwayError(*answers.away)
        moved = {number: each.moved or {} for number, each in answers.found.items()}
        strayed = _strayed(moved, caller.route.warehouse_ids).intersection(caller.cells)
        if strayed.difference(over):
            over += strayed.difference(over)
        elif _is_agreed(moved):
            return answers
        else:
            await asyncio.sleep(SETTLING_SECONDS)
    raise moving()


def _strayed(moved: dict[int, dict[str, int]], wanted: frozenset[UUID]) -> set[int]:
    """The cells that have warehouses which others are asked for."""
    return {
        cell
        for each in moved.values()
        for warehouse, cell in each.items()
        if not wanted or UUID(warehouse) in wanted
    }


def _is_agreed(moved: dict[int, dict[str, int]]) -> bool:
    """Whether each warehouse that has moved is shown by one cell, among those that answered.

    Args:
        moved: by the number of the cell, the warehouses that have moved and what it says has them.
    """
    said = [(warehouse, cell) for each in moved.values() for warehouse, cell in each.items()]
    shown = [
        warehouse
        for number, each in moved.items()
        for warehouse, cell in each.items()
        if cell == number
    ]
    return len(shown) == len(set(shown)) and all(
        moved[cell].get(warehouse, cell) == cell for warehouse, cell in said if cell in moved
    )
