"""Selects of commands, whose rows may come from several cells."""

from collections.abc import Sequence
from typing import Any, NamedTuple

IS_HERE = "not array[warehouse_id] <@ (select closed_warehouses())"
"""A row is no copy that a warehouse has left behind."""

Row = dict[str, Any]


class Statement(NamedTuple):
    """A select, what its rows are in the order of, and how many at most.

    Args:
        select: all but the order.
        order: names columns of the rows, so that those of several cells can be put together.
        values: parameters of the select.
        limit: rows at most.
    """

    select: str
    order: str
    values: Sequence[Any] = ()
    limit: int | None = None

    @property
    def query(self) -> str:
        """All of it, for one cell."""
        most = "" if self.limit is None else f" limit {self.limit:d}"
        return f"{self.select} order by {self.order}{most}"

    def merged(self, rows: list[Row]) -> list[Row]:
        """Rows of several cells as if they were of one."""
        for term in reversed(self.order.split(", ")):
            name, _, how = term.partition(" ")
            is_backward = how.startswith("desc")
            none_is_first = how.endswith("first") or (is_backward and not how.endswith("last"))
            some = [row for row in rows if row[name] is not None]
            none = [row for row in rows if row[name] is None]
            some.sort(key=lambda row, name=name: row[name], reverse=is_backward)  # type: ignore[misc]
            rows = none + some if none_is_first else some + none
        return rows[: self.limit]


class Filters:
    """Conditions of a query; those without a value are left out."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self._values: list[Any] = []

    def add(self, condition: str, value: Any) -> "Filters":
        """Add a condition, unless its value is None, an empty tuple or False."""
        if value is not None and value != () and value is not False:
            self._conditions.append(condition)
            self._values += [list(value) if isinstance(value, tuple) else value] * condition.count(
                "%s"
            )
        return self

    def statement(self, select: str, order: str, limit: int) -> Statement:
        """The statement; of rows of a warehouse without the copies of those that have moved."""
        is_here = [IS_HERE] if "warehouse_id" in select else []
        conditions = " and ".join(self._conditions + is_here)
        where = f" where {conditions}" if conditions else ""
        return Statement(select + where, order, self._values, limit)
