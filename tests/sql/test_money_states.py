"""Every status that money can have leads on: docs/operations.md says how, and misses none."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from shop import Shop

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"^\| (payment|refund|dispute) (.+)\|(.*)\|(.*)\|$", re.MULTILINE)
WORD = re.compile(r"`(\w+)")


def rows() -> Iterator[tuple[str, set[str], str, set[str]]]:
    """What is in a status, which ones, what leads on by itself, and which functions do."""
    section = DOCUMENT.read_text().partition("## Where money can stand")[2].partition("\n## ")[0]
    for kind, statuses, by_itself, by_hand in ROW.findall(section):
        yield kind, set(WORD.findall(statuses)), by_itself.strip(), set(WORD.findall(by_hand))


@pytest.mark.parametrize("kind", ["payment", "refund", "dispute"])
async def test_every_status_has_a_way_out(shop: Shop, kind: str) -> None:
    """By itself, or by a function that there is for people; an end says that it is one."""
    told = {status for what, statuses, _, _ in rows() if what == kind for status in statuses}
    ended = {"won", "lost"} if kind == "dispute" else set()
    there = await shop.values(f"select unnest(enum_range(null::{kind}_status))::text")
    assert told == set(there) - ended


async def test_what_is_done_by_hand_can_be(shop: Shop) -> None:
    """Each function that the table names may be called by staff; no row leads nowhere."""
    staffs = await shop.values(
        "select proname::text from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " and has_function_privilege('service_role', oid, 'execute')"
    )
    for kind, statuses, by_itself, by_hand in rows():
        assert by_itself or by_hand, (kind, statuses)
        assert by_hand <= set(staffs)
