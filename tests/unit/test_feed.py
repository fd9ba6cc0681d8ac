"""darkpearl/feed.py: the feeds of several cells, read as one."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple

import pytest

from darkpearl.feed import Part, Places, cursor_of, merged, read_places

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Told(NamedTuple):
    """An event of a cell."""

    cell: int
    id: int
    created_at: datetime


def happened(cell: int, number: int, second: float) -> Told:
    """An event of a cell."""
    return Told(cell, number, BEGIN + timedelta(seconds=second))


@pytest.mark.parametrize("places", [{1: 0}, {1: 4711}, {1: 4711, 2: 993}, {2: 5}, {1: 3, 255: 0}])
def test_a_cursor_is_read_as_it_was_written(places: Places) -> None:
    """It goes through a query as it is, and back to the same places."""
    written = str(cursor_of(places, 1))
    assert read_places(written, 1) == places
    assert all(each.isalnum() or each in "-_" for each in written)


def test_one_cell_has_a_number() -> None:
    """Alone, a cursor is the place; asked of another cell, a number is that one's."""
    assert cursor_of({1: 4711}, 1) == 4711
    assert cursor_of({2: 993}, 2) == 993
    assert read_places("4711", 2) == {2: 4711}
    assert cursor_of({2: 993}, 1) == "2-993"


@pytest.mark.parametrize(
    "cursor", ["", "-1", "1-", "1-2-3", "a", "1-2_", "\u0661", "1.5", "1-2,3-4"]
)
def test_what_is_no_cursor(cursor: str) -> None:
    """It is refused, and not taken for another."""
    with pytest.raises(ValueError, match=r"\w"):
        read_places(cursor, 1)


def test_what_happened_first_is_told_first() -> None:
    """Between cells by their times, within one by its ids, though its clock has gone back."""
    parts = {
        1: Part([happened(1, 5, 1), happened(1, 6, 9), happened(1, 7, 3)], 7, is_last=True),
        2: Part([happened(2, 5, 0), happened(2, 8, 4)], 8, is_last=True),
    }
    told, after = merged(parts, {1: 4, 2: 4}, 10)
    assert [(each.cell, each.id) for each in told] == [(2, 5), (1, 5), (2, 8), (1, 6), (1, 7)]
    assert after == {1: 7, 2: 8}


def test_nothing_overtakes_what_is_not_known_yet() -> None:
    """While a cell still looks through its history, later events of others wait for it."""
    parts = {
        1: Part([happened(1, 5, 1)], 1000, is_last=False),
        2: Part([happened(2, 5, 0), happened(2, 8, 4)], 8, is_last=True),
    }
    told, after = merged(parts, {}, 10)
    assert [(each.cell, each.id) for each in told] == [(2, 5), (1, 5)]
    assert after == {1: 1000, 2: 5}


def test_who_is_away_keeps_its_place() -> None:
    """A cell without a part is where it was, and holds up nobody."""
    told, after = merged({1: Part([happened(1, 5, 1)], 5, is_last=True)}, {1: 4, 2: 17}, 10)
    assert [each.id for each in told] == [5]
    assert after == {1: 5, 2: 17}


def test_all_is_told_once() -> None:
    """Read in any pieces, with cells that come, go away and return, none is lost or told twice."""
    for seed in range(200):
        random = Random(seed)
        feeds = {
            cell: [
                happened(cell, 3 * n + 1, random.uniform(0, 50))
                for n in range(random.randrange(30))
            ]
            for cell in (1, 2, 7)
        }
        told: list[Told] = []
        cursor = "0"
        while len(told) < sum(len(each) for each in feeds.values()):
            places = read_places(cursor, 1)
            limit = random.randint(1, 7)
            parts = {}
            for cell in random.sample([1, 2, 7], random.randint(1, 3)):
                place = places.get(cell, 0)
                upto = place + random.randint(1, 40)  # as far as it looks at once
                found = [each for each in feeds[cell] if place < each.id <= upto][:limit]
                after = found[-1].id if len(found) == limit else upto
                parts[cell] = Part(found, after, is_last=after >= 100)
            events, places = merged(parts, places, limit)
            assert len(events) <= limit
            told += events
            cursor = str(cursor_of(places, 1))
        for cell, events in feeds.items():
            assert [each for each in told if each.cell == cell] == events
