"""How far the feed can be read: what a process that follows it has to remember between its looks.

Ids are drawn in one order and committed in another. look_for_horizon() of routines/73_feed.sql says
up to which id all is decided, by a mark that was left at the look before.

With several cells each has a feed of its own. Who follows all of them has a place in each, and
reads them as one, by the time of what happened.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

Places = dict[int, int]
"""How far the feed of each cell has been read, by the number of the cell."""


class Happened(Protocol):
    """What a feed tells."""

    id: int
    created_at: datetime


E = TypeVar("E", bound=Happened)


class Part(NamedTuple, Generic[E]):
    """What comes next in the feed of a cell."""

    events: Sequence[E]
    next: int
    """Where to go on, when all of these have been told."""
    is_last: bool
    """Nothing comes after it for now."""


class Horizon:
    """The horizon as one process knows it. Looks come one after another, never two at once."""

    def __init__(self) -> None:
        self.id = 0
        """All up to this id is decided."""
        self._mark: dict[str, Any] = {"last": None, "writers": None}

    @property
    def look(self) -> tuple[str, dict[str, Any]]:
        """The statement of the next look: in read committed, before the one that reads."""
        return "select * from look_for_horizon(%(last)s, %(writers)s)", self._mark

    def see(self, row: dict[str, Any]) -> bool:
        """Take in what the look has found; says whether there is more to read than before."""
        self._mark = {"last": row["last"], "writers": row["writers"]}
        known, self.id = self.id, max(self.id, row["horizon"] or 0)
        return self.id > known


def read_places(cursor: str, here: int) -> Places:
    """The places that a cursor stands for: a number is the one in the cell that was asked.

    Raises:
        ValueError: it is none.
    """
    if cursor.isascii() and cursor.isdecimal():
        return {here: int(cursor)}
    places = [each.split("-") for each in cursor.split("_")]
    if not all(each.isascii() and each.isdecimal() for pair in places for each in pair):
        raise ValueError("a place is two numbers")
    return {int(cell): int(place) for cell, place in places}


def cursor_of(places: Places, here: int) -> int | str:
    """The cursor of places: a number while there is no other cell than the one that was asked."""
    if places.keys() == {here}:
        return places[here]
    return "_".join(f"{cell}-{place}" for cell, place in sorted(places.items()))


def merged(parts: dict[int, Part[E]], places: Places, limit: int) -> tuple[list[E], Places]:
    """The next of several feeds as one, and the places after them.

    Those of a cell stay in their order; between cells what happened first is first. It ends where
    what comes next in a cell isn't known yet.

    Args:
        parts: the next of each cell, as many as `limit` if there are so many.
        places: where each cell was before; cells without a part stay where they are.
        limit: events at most.
    """
    told: list[E] = []
    taken = dict.fromkeys(parts, 0)
    while len(told) < limit:
        left = {cell: part for cell, part in parts.items() if taken[cell] < len(part.events)}
        if not left or any(cell not in left and not part.is_last for cell, part in parts.items()):
            break
        first = min(left, key=lambda cell: left[cell].events[taken[cell]].created_at)
        told.append(left[first].events[taken[first]])
        taken[first] += 1
    after = dict(places)
    for cell, part in parts.items():
        if taken[cell] == len(part.events):
            after[cell] = part.next
        elif taken[cell]:
            after[cell] = part.events[taken[cell] - 1].id
    return told, after
