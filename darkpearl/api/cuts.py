"""The cut that a page is of a list: its order, the place after which it begins, its statement.

Which rows a page has is found in a table; only they are looked up in the view. Where a list is of
several cells, each is asked for the same cut: rows of other cells' warehouses, of which there
are old copies, are left out, and texts are in the order of their characters, which is one in all.
"""

from typing import Annotated, Any, Generic, LiteralString, NamedTuple, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from darkpearl.api.access import Parameters, Statement

MOST_COUNTED = 10_000
TIE = "warehouse_id"
"""What decides between rows of one id in two cells, or in one that a warehouse has moved to."""
IS_OWN = (
    "not array[warehouse_id] <@ array(select moved.warehouse_id from moved_cells() as moved"
    " where moved.cell <> this_cell())"
)
_MOVED = "(select json_object_agg(m.warehouse_id, m.cell) from moved_cells() as m)"

T = TypeVar("T")


class Column(NamedTuple):
    """One column of a sort."""

    name: str
    descending: bool
    by_character: bool = False
    """Its texts are compared character by character, whatever the database's collation is."""

    @property
    def comes_after(self) -> str:
        """How a value that comes later compares."""
        return "<" if self.descending else ">"

    @property
    def compared(self) -> str:
        """What is compared, as SQL."""
        return f'{self.name} collate "C"' if self.by_character else self.name


class Start(Struct, array_like=True):
    """The content of a cursor: a sort, and the values of its columns in the last row.

    One more value is that of TIE.
    """

    sort: Annotated[str, Meta(min_length=1)]
    values: list[Any]


class Rows(Struct, Generic[T]):
    """The database's answer: one row more than was asked for says that there is more."""

    data: list[T]
    count: int | None = None
    moved: dict[str, int] | None = None
    """The warehouses that have left a cell or come to it, and the number of the cell of each."""


class Cut(NamedTuple):
    """A list, and how it is cut into pages."""

    relation: LiteralString
    """The table or view of which the list is."""
    table: LiteralString
    """Under a view, where its rows are found and counted; else empty."""
    unique: str
    where: str
    """Which rows it has."""
    parameters: Parameters
    order: list[Column]

    def page(
        self, after: list[Any], limit: int, offset: int, *, counted: bool, spread: bool = False
    ) -> Statement:
        """The statement of one page, whose row is Rows.

        Args:
            after: the values of the first columns of the order, to go on after; empty at the start.
            limit: rows; one more is asked for.
            offset: rows to leave out.
            counted: whether to say how many there are in all, up to one more than MOST_COUNTED.
            spread: whether to say which warehouses have moved.
        """
        by = self._by
        key = [self.unique, *([TIE] if self.unique == "id" else [])]
        found_in, shown = self.table or self.relation, ", ".join(key) if self.table else "*"
        rows = (
            f"select {shown} from {found_in} {self._beyond(after)}"  # noqa: S608
            f" order by {by} limit %(limit)s + 1 offset %(offset)s"
        )
        if self.table:  # offset 0 keeps the view from being joined before the page is cut
            same = " and ".join(f"r.{name} = cut.{name}" for name in key)
            row = f"select * from {self.relation} as r where {same} offset 0"  # noqa: S608
            rows = f"select row.* from ({rows}) as cut, lateral ({row}) as row order by {by}"  # noqa: S608
        data = f"select coalesce(json_agg(page), '[]') from ({rows}) as page"  # noqa: S608
        having = f"select from {found_in} {_clause(self.where)} limit {MOST_COUNTED + 1}"
        count = f"select count(*) from ({having}) as counted"  # noqa: S608
        columns = f"({data}) as data, case when %(counted)s then ({count}) end as count"
        if spread:
            columns += f", {_MOVED} as moved"
        values = {
            **self.parameters,
            **_marked(after),
            "counted": counted,
            "limit": limit,
            "offset": offset,
        }
        return f"select {columns}", values

    def places(self, rows: int) -> Statement:
        """The statement of where the first rows stand: the values of their order, as Rows."""
        found_in = self.table or self.relation
        names = ", ".join(each.name for each in self.order)
        first = (
            f"select {names} from {found_in} {_clause(self.where)}"  # noqa: S608
            f" order by {self._by} limit %(limit)s"
        )
        data = f"select coalesce(json_agg(json_build_array({names})), '[]') from ({first}) as f"  # noqa: S608
        return f"select ({data}) as data, {_MOVED} as moved", {**self.parameters, "limit": rows}

    def values(self, row: Any) -> list[Any]:
        """The values of the order in a row of a page."""
        return [getattr(row, each.name) for each in self.order]

    @property
    def _by(self) -> str:
        return ", ".join(
            f"{each.compared} desc" if each.descending else each.compared for each in self.order
        )

    def _beyond(self, after: list[Any]) -> str:
        """The clause for rows after those whose values are `after_0`, `after_1` and so on."""
        order = self.order[: len(after)]
        if not order:
            return _clause(self.where)
        marks = [f"%(after_{at})s" for at in range(len(order))]
        if len({each.descending for each in order}) == 1:  # a row comparison, which indexes serve
            names = ", ".join(each.compared for each in order)
            return _clause(self.where, f"({names}) {order[0].comes_after} ({', '.join(marks)})")
        return _clause(
            self.where,
            " or ".join(
                "("
                + " and ".join(
                    [
                        *(f"{order[i].compared} = {marks[i]}" for i in range(at)),
                        f"{each.compared} {each.comes_after} {marks[at]}",
                    ]
                )
                + ")"
                for at, each in enumerate(order)
            ),
        )


def ordered(sort: str, unique: str) -> list[Column]:
    """The columns of a sort, up to one that decides between any two rows."""
    order = [Column(each.removeprefix("-"), each.startswith("-")) for each in sort.split(",")]
    names = [each.name for each in order]
    if unique in names:
        return order[: names.index(unique) + 1]
    return [*order, Column(unique, order[-1].descending)]


def over_cells(cut: Cut, kind: type[Any]) -> Cut:
    """The same cut of each of several cells, so that what comes of it can be merged.

    Args:
        cut: of one cell, whose relation has a warehouse_id.
        kind: what a row is.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    order = [each._replace(by_character=_is_text(types[each.name])) for each in cut.order]
    if order[-1].name == "id" and TIE in types:
        order.append(Column(TIE, order[-1].descending))
    return cut._replace(where=f"{cut.where} and {IS_OWN}" if cut.where else IS_OWN, order=order)


def _is_text(kind: Any) -> bool:
    return (get_args(kind)[0] if get_origin(kind) is Annotated else kind) is str


def _clause(*conditions: str) -> str:
    given = [each for each in conditions if each]
    return f"where {' and '.join(f'({each})' for each in given)}" if given else ""


def _marked(after: list[Any]) -> Parameters:
    return {f"after_{at}": value for at, value in enumerate(after)}
