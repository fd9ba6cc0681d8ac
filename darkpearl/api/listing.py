"""Lists: which part of one a client asks for, and the way on from there.

A page is cut by limit and offset, with the number of rows that match, up to a number; or by a
cursor, which says after which row to go on: rows that come and go meanwhile move nothing, and
nothing is counted. The cursor holds the sort and the last row's values of it, in text that is
nobody's business. Which rows a page has is found in the table; only they are looked up in the view.
"""

import base64
from typing import Annotated, Any, Generic, Literal, LiteralString, TypeVar
from urllib.parse import parse_qsl, urlencode

import msgspec
from litestar import Request
from litestar.di import NamedDependency
from litestar.params import QueryParameter
from msgspec import UNSET, Meta, Struct, UnsetType

from darkpearl.api.access import Caller, Parameters, Statement
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.cuts import MOST_COUNTED, TIE, Column, Cut, Rows, Start, ordered, over_cells
from darkpearl.api.parameters import Period, read_values
from darkpearl.api.routing import Routed
from darkpearl.api.spread import Merged, merged_page
from darkpearl.errors import BadRequestError, FieldError

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
MAX_OFFSET = 1_000_000_000
MAX_OFFSET_OF_OTHERS = 10_000
"""Of all but staff: each row that is left out is one that the policies look at. Of staff too where
a list is of several cells, each of which says where so many rows stand."""
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
        Literal["more_than", "at_least"] | UnsetType,
        Meta(
            description="There where more rows match than `count`, or may: some cells don't answer"
        ),
    ] = UNSET
    limit: int
    offset: int | UnsetType = UNSET
    next: Annotated[
        str | None, Meta(description="The cursor of the next page; null on the last")
    ] = None
    missing_cells: Annotated[
        list[str] | UnsetType,
        Meta(description="There where cells don't answer: their names. Their rows are missing"),
    ] = UNSET


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

    def where(self, *more: LiteralString) -> str:
        """The conditions in one, with some more; empty when there is none."""
        return " and ".join([*self._conditions, *more])


_decode = msgspec.json.Decoder(Start).decode


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
        cut = Cut(relation, table, unique, filters.where(), filters.parameters, order)
        if self._is_spread:
            cut = over_cells(cut, kind)
        data, count, away = await self._found(kind, cut, after)
        limit = self._limit
        page: Page[T] = Page(data=data[:limit], limit=limit)
        if count is not None:
            page.count, page.offset = min(count, MOST_COUNTED), self._offset or 0
            if count > MOST_COUNTED:
                page.count_relation = "more_than"
            elif away:
                page.count_relation = "at_least"
        if away:
            page.missing_cells = [each.name for each in away]
        if len(data) > limit:
            page.next = _encoded(order, cut.values(page.data[-1]))
        return JsonResponse(page, headers=self._links(page.next))

    async def page_of(
        self,
        whole: Statement,
        kind: type[T],
        relation: LiteralString,
        filters: Filters,
        *,
        sorts: tuple[str, ...],
    ) -> JsonResponse[Page[T]]:
        """A page of what belongs to something; if there is none, that is looked for.

        Args:
            whole: finds it, where the caller may see it.
            kind: what a row of the page is.
            relation: the view of which the list is.
            filters: which rows of it.
            sorts: as those of page().

        Raises:
            NotFoundError: there is no such thing for the caller.
        """
        page = await self.page(kind, relation, filters, sorts=sorts)
        if not page.content.data:
            asked = self._caller.cell
            await self._caller.get(dict, whole)
            if self._caller.cell != asked:  # where its id is somebody else's
                return await self.page(kind, relation, filters, sorts=sorts)
        return page

    @property
    def _is_spread(self) -> bool:
        return isinstance(self._caller, Routed) and bool(self._caller.route.over)

    async def _found(self, kind: type[T], cut: Cut, after: list[Any]) -> Merged:
        """The rows of the page and one more, and how many there are, in one cell or in several."""
        caller, limit, offset = self._caller, self._limit, self._offset or 0
        counted = self._cursor is None
        if isinstance(caller, Routed) and caller.route.over:
            return await merged_page(caller, kind, cut, after, limit, offset, counted=counted)
        statement = cut.page(after[: len(cut.order)], limit, offset, counted=counted)
        found = await caller.get(Rows[kind], statement)  # type: ignore[valid-type]
        return Merged(found.data, found.count, [])

    def _position(
        self, kind: type[Any], sorts: tuple[str, ...], unique: str
    ) -> tuple[list[Column], list[Any]]:
        """The order of the list, down to a unique column, and the values to go on after."""
        wrong = []
        start = Start("", [])
        if self._cursor is not None and self._offset is not None:
            wrong.append(FieldError("offset", "A cursor needs none"))
        is_far = (self._offset or 0) > MAX_OFFSET_OF_OTHERS
        if is_far and not (self._caller.is_staff and not self._is_spread):
            wrong.append(
                FieldError("offset", f"Expected `int` <= {MAX_OFFSET_OF_OTHERS}: {FURTHER}")
            )
        if self._cursor:
            try:
                start = _decode(base64.urlsafe_b64decode(self._cursor + "=="))
            except (ValueError, msgspec.DecodeError, RecursionError):
                wrong.append(NO_CURSOR)
        sort = start.sort or self._sort or sorts[0]
        order = ordered(sort, unique)
        allowed = {each.removeprefix("-") for each in (*sorts, unique)}
        wrong += [
            FieldError("sort", f"{name!r} is none of {', '.join(sorted(allowed))}")
            for name in sort.split(",")
            if name.removeprefix("-") not in allowed
        ]
        if self._sort and order != ordered(self._sort, unique):
            wrong.append(FieldError("sort", f"The cursor goes on by {sort}"))
        if start.sort and not wrong:
            types = {field.name: field.type for field in msgspec.structs.fields(kind)}
            try:
                # With one value more where it was made over several cells.
                tie = [TIE] if TIE in types and len(start.values) > len(order) else []
                names = [*(each.name for each in order), *tie]
                start.values = [
                    msgspec.convert(value, types[name])
                    for name, value in zip(names, start.values, strict=True)
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


def _encoded(order: list[Column], values: list[Any]) -> str:
    """The cursor that goes on after a row."""
    sort = ",".join("-" * each.descending + each.name for each in order)
    start = msgspec.json.encode(Start(sort, values))
    return base64.urlsafe_b64encode(start).rstrip(b"=").decode()
