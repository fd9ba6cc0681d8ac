"""Both ends of each transfer between cells: what one says of it, beside what the other does.

Each cell's audit proves its own end. That the goods are in one of the two, and in one alone, only
who reads both can tell.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

ENDS = (
    "select e.*, (select max(removed_before) from retention where kind = 'movements') as"
    " forgotten_before, clock() as seen_at from transfer_ends as e"
)
UNSETTLED = timedelta(minutes=1)
"""Cells are read one after the other: what changed in this time may be half seen."""
Row = dict[str, Any]


def disagreements(ends: Iterable[Row], since: datetime | None, *, is_whole: bool) -> list[Row]:
    """What no order of events explains, as findings of an audit.

    Args:
        ends: the rows of ENDS in every cell that answered.
        since: of what has changed since then.
        is_whole: all cells answered, so that an end which isn't there is missing.
    """
    rows = list(ends)
    forgotten = [each["forgotten_before"] for each in rows if each["forgotten_before"]]
    # Two cells may have chosen one id for goods between other places.
    sent = {
        (each["id"], each["warehouse_id"], each["other_warehouse_id"]): each
        for each in rows
        if each["is_outgoing"]
    }
    come = {
        (each["id"], each["other_warehouse_id"], each["warehouse_id"]): each
        for each in rows
        if not each["is_outgoing"]
    }
    found = []
    for key in sorted({*sent, *come}):
        latest = max(
            (each for each in (sent.get(key), come.get(key)) if each),
            key=lambda each: each["changed_at"],
        )
        at = latest["changed_at"]
        if at > latest["seen_at"] - UNSETTLED or (since and at < since):
            continue
        is_known = is_whole and not (forgotten and at < max(forgotten))
        if said := _disagreement(sent.get(key), come.get(key), is_known=is_known):
            end = sent.get(key) or latest
            detail = f"{end['quantity']} units of product {end['product_id']}"
            found.append({"finding": said, "subject": key[0], "detail": detail})
    return found


def _disagreement(sent: Row | None, come: Row | None, *, is_known: bool) -> str:
    """What is wrong with a transfer; empty if nothing is.

    Args:
        sent: what the cell says that the goods left.
        come: what the other one says.
        is_known: of an end that isn't there nothing was ever known.
    """
    if sent is None:
        is_in = come is not None and come["said"] == "arrived"
        return "goods came in that no cell has sent" if is_in and is_known else ""
    if come is None:
        return (
            "goods have left, and arrived nowhere" if sent["said"] == "arrived" and is_known else ""
        )
    if (sent["product_id"], sent["quantity"]) != (come["product_id"], come["quantity"]):
        return "other goods came in than have left"
    if (sent["said"], come["said"]) == ("undone", "arrived"):
        return "goods came in, and were put back"
    if (sent["said"], come["said"]) == ("arrived", "refused"):
        return "goods were refused, and not put back"
    return ""
