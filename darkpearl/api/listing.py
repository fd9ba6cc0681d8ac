"""Lists: which part of one a client asks for, and the way on from there.

A page is cut by limit and offset, with the number of rows that match, up to a number; or by a
cursor, which says after which row to go on: rows that come and go meanwhile move nothing, and
nothing is counted. The cursor holds the sort and the last row's values of it, in text that is
nobody's business. Which rows a page has is found in the table; only they are looked up in the view.
"""

import base64
from typing import Annotated, Any, Generic, Literal, LiteralString, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from litestar import Request
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.api.access import Caller, Parameters
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.parameters import Period, read_values
from darkpearl.errors import BadRequestError, FieldError

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_OFFSET = 1_000_000_000
MAX_OFFSET_OF_OTHERS = 10_000
"""Of all but staff: each row that is left out is one that the policies look at."""
MOST_COUNTED = 10_000
NO_CURSOR = FieldError("cursor", "Expected the next of a page")

FURTHER = "a cursor leads further"

T = TypeVar("T")

Limit = Annotated[int, QueryParameter(ge=1, le=MAX_LIMIT, description="Rows at most")]
Offset = Annotated[
    int | None,
    QueryParameter(ge=0, le=MAX_OFFSET, description="Rows to leave out at the start"),
]
Cursor = Annotated[
    str | None,
    QueryParameter(
        max_length=2000,
        description="`next` of the page before, or empty to start: pages that aren't counted",
    ),
]
Sort = Annotated[
    str | None,
    QueryParameter(
        min_length=1, max_length=200, description="Fields, each with - in front for descending"
    ),
]


class Page(Struct, Generic[T], kw_only=True):
    """A part of a list. `count` is how many rows match in all, however few are in `data`."""

    data: list[T]
    count: int | UnsetType = UNSET
    count_relation: Annotated[
        Literal["more_than"] | UnsetType,
        Meta(description="There where more rows match than `count`"),
    ] = UNSET
    limit: int
    offset: int | UnsetType = UNSET
    next: Annotated[
        str | None, Meta(description="The cursor of the next page; null on the last")
    ] = None


class Filters:
    """A where clause out of literal conditions; those without a value are left out."""

    def __init__(self) -> None:
        self.parameters: Parameters = {}
        self.wrong: list[FieldError] = []
        self._conditions: list[LiteralString] = []

    def add(self, condition: LiteralString, **values: Any) -> "Filters":
        """Add a condition, unless one of its values is None."""
        if None not in values.values():
            self._conditions.append(f"({condition})")
            self.parameters |= values
        return self

    def values(self, name: str, kind: type[T] | Any, given: list[str] | None) -> list[T] | None:
        """The values of a filter that takes several; what is wrong with them is told by page()."""
        if given is None:
            return None
        found, wrong = read_values(name, kind, given)
        self.wrong += wrong
        return None if wrong else found

    def any_of(
        self, column: LiteralString, kind: type[T] | Any, given: list[str] | None, of: LiteralString
    ) -> list[T] | None:
        """Add that a column has one of some values, of a type of the database; returns them."""
        values: list[T] | None = self.values(column, kind, given)
        if values is not None and len(values) == 1:  # an equation leads to an index more often
            self.add(f"{column} = %({column})s", **{column: values[0]})
        else:
            self.add(f"{column} = any(%({column})s::{of}[])", **{column: values})
        return values

    def within(self, column: LiteralString, period: Period) -> "Filters":
        """Add what a period asks of a column."""
        self.add(f"{column} >= %(start)s", start=period.start)
        return self.add(f"{column} < %(end)s", end=period.end)

    def where(self, more: str = "") -> str:
        """The clause, with one condition more; nothing when there is none."""
        conditions = [*self._conditions, *([f"({more})"] if more else [])]
        return f"where {' and '.join(conditions)}" if conditions else ""


class Column(NamedTuple):
    """One column of a sort."""

    name: str
    descending: bool

    @property
    def comes_after(self) -> str:
        """How a value that comes later compares."""
        return "<" if self.descending else ">"


class _Start(Struct, array_like=True):
    """The content of a cursor: a sort, and the values of its columns in the last row."""

    sort: Annotated[str, Meta(min_length=1)]
    values: list[Any]


_decode = msgspec.json.Decoder(_Start).decode


class _Rows(Struct, Generic[T]):
    """The database's answer: one row more than was asked for says that there is more."""

    data: list[T]
    count: int | None


class Listing:
    """The part of a list that a request asks for."""

    def __init__(
        self,
        caller: Caller,
        request: Request[Any, Any, Any],
        limit: int,
        offset: int | None,
        cursor: str | None,
        sort: str | None,
    ) -> None:
        self._caller = caller
        self._request = request
        self._limit = limit
        self._offset = offset
        self._cursor = cursor
        self._sort = sort

    async def page(
        self,
        kind: type[T],
        relation: LiteralString,
        filters: Filters,
        *,
        sorts: tuple[str, ...],
        unique: str = "id",
        table: LiteralString = "",
    ) -> JsonResponse[Page[T]]:
        """The page, with a Link to the next.

        Args:
            kind: what a row is.
            relation: the table or view of which the list is.
            filters: which rows of it.
            sorts: the fields by which the list may be sorted, none of them nullable; the first,
                with its sign, is the order that a list has by itself.
            unique: the field that decides between rows that are equal by the sort.
            table: under a view, where its rows are found and counted; it has the columns of the
                filters and the sorts.

        Raises:
            BadRequestError: there is no such sort or cursor, or a filter has what is no value.
        """
        if filters.wrong:
            raise BadRequestError(
                "Some parameters aren't as the schema says.", errors=filters.wrong
            )
        order, after = self._position(kind, sorts, unique)
        where = filters.where(_beyond(order) if after else "")
        by = ", ".join(f"{name} desc" if descending else name for name, descending in order)
        found_in, shown = table or relation, unique if table else "*"
        rows = (
            f"select {shown} from {found_in} {where}"  # noqa: S608
            f" order by {by} limit %(limit)s + 1 offset %(offset)s"
        )
        if table:  # offset 0 keeps the view from being joined before the page is cut
            row = f"select * from {relation} as r where r.{unique} = cut.{unique} offset 0"  # noqa: S608
            rows = f"select row.* from ({rows}) as cut, lateral ({row}) as row order by {by}"  # noqa: S608
        data = f"select coalesce(json_agg(page), '[]') from ({rows}) as page"  # noqa: S608
        counted = f"select from {found_in} {filters.where()} limit {MOST_COUNTED + 1}"
        count = f"select count(*) from ({counted}) as counted"  # noqa: S608
        statement = f"select ({data}) as data, case when %(counted)s then ({count}) end as count"
        parameters = {
            **filters.parameters,
            **{f"after_{at}": value for at, value in enumerate(after)},
            "counted": self._cursor is None,
            "limit": self._limit,
            "offset": self._offset or 0,
        }
        found = await self._caller.get(_Rows[kind], (statement, parameters))  # type: ignore[valid-type]
        page: Page[T] = Page(data=found.data[: self._limit], limit=self._limit)
        if found.count is not None:
            page.count, page.offset = min(found.count, MOST_COUNTED), self._offset or 0
            if found.count > MOST_COUNTED:
                page.count_relation = "more_than"
        if len(found.data) > self._limit:
            page.next = _encoded(order, page.data[-1])
        return JsonResponse(page, headers=self._links(page.next))

    def _position(
        self, kind: type[Any], sorts: tuple[str, ...], unique: str
    ) -> tuple[list[Column], list[Any]]:
        """The order of the list, down to a unique column, and the values to go on after."""
        wrong = []
        start = _Start("", [])
        if self._cursor is not None and self._offset is not None:
            wrong.append(FieldError("offset", "A cursor needs none"))
        if not self._caller.is_staff and (self._offset or 0) > MAX_OFFSET_OF_OTHERS:
            wrong.append(
                FieldError("offset", f"Expected `int` <= {MAX_OFFSET_OF_OTHERS}: {FURTHER}")
            )
        if self._cursor:
            try:
                start = _decode(base64.urlsafe_b64decode(self._cursor + "=="))
            except (ValueError, msgspec.DecodeError, RecursionError):
                wrong.append(NO_CURSOR)
        sort = start.sort or self._sort or sorts[0]
        order = _order(sort, unique)
        allowed = {each.removeprefix("-") for each in (*sorts, unique)}
        wrong += [
            FieldError("sort", f"{name!r} is none of {', '.join(sorted(allowed))}")
            for name in sort.split(",")
            if name.removeprefix("-") not in allowed
        ]
        if self._sort and order != _order(self._sort, unique):
            wrong.append(FieldError("sort", f"The cursor goes on by {sort}"))
        if start.sort and not wrong:
            types = {field.name: field.type for field in msgspec.structs.fields(kind)}
            try:
                start.values = [
                    msgspec.convert(value, types[each.name])
                    for each, value in zip(order, start.values, strict=True)
                ]
            except (ValueError, msgspec.ValidationError):
                wrong.append(NO_CURSOR)
        if wrong:
            raise BadRequestError("Some parameters aren't as the schema says.", errors=wrong)
        return order, start.values

    def _links(self, cursor: str | None) -> dict[str, str]:
        if cursor is None:
            return {}
        asked = parse_qsl(self._request.scope["query_string"].decode(), keep_blank_values=True)
        kept = [each for each in asked if each[0] not in {"cursor", "offset"}]
        query = urlencode([*kept, ("cursor", cursor)])
        return {"Link": f'<{self._request.scope["path"]}?{query}>; rel="next"'}


async def listing(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = None,
    cursor: Cursor = None,
    sort: Sort = None,
) -> Listing:
    """The part of a list that a request asks for."""
    return Listing(caller, request, limit, offset, cursor, sort)


def _beyond(order: list[Column]) -> str:
    """The condition for rows after those whose values are `after_0`, `after_1` and so on."""
    marks = [f"%(after_{at})s" for at in range(len(order))]
    if len({each.descending for each in order}) == 1:  # a row comparison, which an index can serve
        names = ", ".join(each.name for each in order)
        return f"({names}) {order[0].comes_after} ({', '.join(marks)})"
    return " or ".join(
        "("
        + " and ".join(
            [
                *(f"{order[i].name} = {marks[i]}" for i in range(at)),
                f"{each.name} {each.comes_after} {marks[at]}",
            ]
        )
        + ")"
        for at, each in enumerate(order)
    )


def _order(sort: str, unique: str) -> list[Column]:
    """The columns of a sort, up to one that decides between any two rows."""
    order = [Column(each.removeprefix("-"), each.startswith("-")) for each in sort.split(",")]
    names = [each.name for each in order]
    if unique in names:
        return order[: names.index(unique) + 1]
    return [*order, Column(unique, order[-1].descending)]


def _encoded(order: list[Column], row: Any) -> str:
    """The cursor that goes on after a row."""
    sort = ",".join("-" * each.descending + each.name for each in order)
    start = msgspec.json.encode(_Start(sort, [getattr(row, each.name) for each in order]))
    return base64.urlsafe_b64encode(start).rstrip(b"=").decode()
