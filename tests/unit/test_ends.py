"""cells/ends.py: what cells say of the two ends of a transfer."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from darkpearl.cells.ends import UNSETTLED, disagreements

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=40)
PRODUCT, LEFT, CAME = uuid4(), uuid4(), uuid4()
Row = dict[str, Any]


def ends(
    sent: str = "", come: str = "", at: datetime = NOW - 2 * UNSETTLED, **other: Any
) -> list[Row]:
    """The ends of a transfer; of the one that came, with something else."""
    end = {
        "id": uuid4(),
        "product_id": PRODUCT,
        "quantity": 4,
        "changed_at": at,
        "seen_at": NOW,
        "forgotten_before": NOW - timedelta(days=30),
    }
    out = {"is_outgoing": True, "said": sent, "warehouse_id": LEFT, "other_warehouse_id": CAME}
    into = {"is_outgoing": False, "said": come, "warehouse_id": CAME, "other_warehouse_id": LEFT}
    return ([end | out] if sent else []) + ([end | into | other] if come else [])


@pytest.mark.parametrize(
    ("sent", "come", "said"),
    [
        ("arrived", "arrived", ""),
        ("undone", "refused", ""),
        ("undone", "", ""),
        ("in_transit", "", ""),
        ("in_transit", "arrived", ""),
        ("in_transit", "refused", ""),
        ("", "refused", ""),
        ("arrived", "", "goods have left, and arrived nowhere"),
        ("arrived", "refused", "goods were refused, and not put back"),
        ("undone", "arrived", "goods came in, and were put back"),
        ("", "arrived", "goods came in that no cell has sent"),
    ],
)
def test_goods_are_in_one_cell_and_in_one_alone(sent: str, come: str, said: str) -> None:
    """What both ends say may be on its way to agree, or never can."""
    found = disagreements(ends(sent, come), None, is_whole=True)
    assert [each["finding"] for each in found] == ([said] if said else [])


def test_one_id_of_two_cells_is_two_transfers() -> None:
    """Goods that go the other way under an id that another cell chose too are others."""
    rows = ends("arrived", "arrived")
    turned = {"warehouse_id": CAME, "other_warehouse_id": LEFT, "said": "undone", "quantity": 7}
    back = {"warehouse_id": LEFT, "other_warehouse_id": CAME, "said": "refused", "quantity": 7}
    rows += [rows[0] | turned, rows[1] | back]
    for found in (rows, rows[::-1]):
        assert disagreements(found, None, is_whole=True) == []


def test_what_came_in_is_what_has_left() -> None:
    """Another number of units, or another product, is a finding."""
    for other in ({"quantity": 5}, {"product_id": uuid4()}):
        (found,) = disagreements(ends("arrived", "arrived", **other), None, is_whole=True)
        assert found["finding"] == "other goods came in than have left"
        assert found["detail"] == f"4 units of product {PRODUCT}"


def test_an_end_that_is_not_there_need_not_be_missing() -> None:
    """A cell that is away may have it, retention may have removed it, it may just be written."""
    for rows, is_whole in (
        (ends("arrived"), False),
        (ends("", "arrived"), False),
        (ends("arrived", at=LONG_AGO), True),
        (ends("arrived", at=NOW), True),
    ):
        assert disagreements(rows, None, is_whole=is_whole) == []


def test_only_what_has_changed_since_is_told() -> None:
    """As of the rest of an audit."""
    rows = ends("undone", "arrived")
    assert disagreements(rows, NOW - 3 * UNSETTLED, is_whole=True)
    assert disagreements(rows, NOW - UNSETTLED, is_whole=True) == []
