"""Which cell a request goes to, where there are several: that of its warehouse, or of its id.

A handler says nothing of it. What a request is for is read from its path, its query and its body,
before the handler begins; its caller then acts there. The directory is a hint, and so is
what an id says of itself: a database refuses what isn't its own, names the cell that it is of, and
the caller goes there. So nothing is done in two cells, and a warehouse may move meanwhile.

A router that is for something else says so with `opt={"cells": …}`: CATALOGUE is read here and
written at home, HERE is what each cell has for itself.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

import msgspec
from litestar import Request
from litestar.handlers import HTTPRouteHandler

from darkpearl.api.access import Caller, Execute, Statement, made_in
from darkpearl.api.parameters import MOST_VALUES
from darkpearl.api.tokens import Identity
from darkpearl.cells.directory import Cell, Directory
from darkpearl.cells.reach import AwayError, Reach
from darkpearl.errors import PROBLEMS, ConflictError, NotFoundError, UnavailableError

BODY = "body"
CATALOGUE = "catalogue"
HERE = "here"
HOME_ALONE = "home"
ID = "id"
LIST = "list"
HOME = 1
"""The number of the cell that the catalogue is written in."""
ELSEWHERE = "DP050"
MOVING = "DP053"
SETTLING_TRIES = 20
SETTLING_SECONDS = 0.05
"""Between tries: cells hear one after the other that a warehouse has changed hands."""

_NAMED = re.compile(r"Warehouse (.*) is of cell (\d+)")
T = TypeVar("T")
Do = Callable[[Caller], Awaitable[T]]
"""Does something in one cell; what it does is one transaction."""


class _ForAWarehouse(msgspec.Struct):
    """What of a body says where it goes to; goods that are fetched, where they leave."""

    warehouse_id: UUID | None = None
    from_warehouse_id: UUID | None = None


_read = msgspec.json.Decoder(_ForAWarehouse).decode


class Route(NamedTuple):
    """Where a request goes to."""

    cell: int
    """The number of the cell that is asked first."""
    of_id: UUID | None = None
    """The order, saga or shelf that it is for: whichever cell has it."""
    over: tuple[int, ...] = ()
    """The cells that a list is of: those of the warehouses that it asks for, else all."""
    warehouse_ids: frozenset[UUID] = frozenset()
    """The warehouses that a list asks for; none: all."""
    is_anywhere: bool = False
    """Any other cell will do where that one is away."""


@cache
def routed_by(handler: HTTPRouteHandler, *, has_id: bool) -> str:
    """By what the requests of a handler go to a cell.

    Args:
        handler: of a route.
        has_id: whether its path has an id.

    Returns:
        CATALOGUE, or HOME_ALONE for what is written of it; ID, of the order, saga or shelf in its
        path; LIST, by the warehouses in its query; BODY, by the warehouse in it; HERE.
    """
    kind = handler.opt.get("cells", "")
    if kind == CATALOGUE:
        reads = handler.http_methods <= {"GET", "HEAD", "OPTIONS"}
        return CATALOGUE if reads else HOME_ALONE
    if kind:
        return str(kind)
    if has_id:
        return ID
    taken = handler.parsed_fn_signature.parameters
    if "listing" in taken or "warehouse_id" in taken:
        return LIST
    body = handler.parsed_data_field
    fields = getattr(body and body.annotation, "__struct_fields__", ())
    return BODY if "warehouse_id" in fields else HERE


async def route(request: Request[Any, Any, Any], reach: Reach, known: Directory) -> Route:
    """Where a request goes to."""
    handler = request.route_handler
    if not isinstance(handler, HTTPRouteHandler):
        return Route(known.here)
    ids = [each for each in request.path_params.values() if isinstance(each, UUID)]
    by = routed_by(handler, has_id=bool(ids))
    cell, of_id = known.here, None
    over, wanted = tuple[int, ...](), frozenset[UUID]()
    if by == ID:
        of_id = ids[0]
        cell = known.of_id(of_id) or cell
    elif by == HOME_ALONE:
        cell = HOME
    elif by == BODY:
        cell = await _cell_of(_warehouse_in(await request.body()), reach, known)
    elif by == LIST:
        wanted = frozenset(_uuids(request.query_params.getall("warehouse_id", [])))
        asked = {await _cell_of(each, reach, known) for each in wanted}
        over = tuple(sorted(asked & reach.cells.keys()) or reach.cells)
    cell = cell if cell in reach.cells else known.here
    return Route(cell, of_id, over, wanted, is_anywhere=by == CATALOGUE)


async def _cell_of(warehouse_id: UUID | None, reach: Reach, known: Directory) -> int:
    """The cell of a warehouse; of one that isn't known the one here."""
    if warehouse_id is not None and warehouse_id not in known.of_warehouse:
        known = await reach.read()
    return known.of_warehouse.get(warehouse_id, known.here) if warehouse_id else known.here


def _warehouse_in(body: bytes) -> UUID | None:
    """The warehouse that a body names; None too where the handler will refuse it."""
    try:
        found = _read(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found.from_warehouse_id or found.warehouse_id


def _uuids(given: list[str]) -> list[UUID]:
    """The ids in a filter, up to the most that one takes; what is none the handler will refuse."""
    found: list[UUID] = []
    for each in ",".join(given).split(",")[:MOST_VALUES]:
        with suppress(ValueError):
            found.append(UUID(each))
    return found


class Answers(NamedTuple, Generic[T]):
    """What came of asking several cells the same."""

    found: dict[int, T]
    """By the number of the cell."""
    away: list[Cell]
    """Those that didn't answer."""


class Named(NamedTuple):
    """What a refusal says of another cell."""

    warehouse: str
    """The code of the warehouse that it is about."""
    cell: int


class _Try(NamedTuple, Generic[T]):
    """What came of asking one cell for what has an id."""

    found: T | None = None
    is_here: bool = False
    """It has the id, though this caller may see nothing of it."""
    named: int | None = None
    """The cell that it says to go to."""
    refusal: AwayError | NotFoundError | None = None


class Routed(Caller):
    """The maker of a request, in one of several cells: the one that the request is for.

    Args:
        reach: to the cells.
        kind: of its pools.
        identity: as whom it acts in each.
        key: what it is counted under.
        route: where the request goes to.
    """

    def __init__(self, reach: Reach, kind: str, identity: Identity, key: str, route: Route) -> None:
        super().__init__(reach.own[kind], identity, key)
        self._reach = reach
        self._kind = kind
        self._route = route
        self._cell = route.cell

    @property
    def cell(self) -> int:
        """Where it acts next: where it has found what the request is for, once it has."""
        return self._cell

    @cell.setter
    def cell(self, number: int) -> None:
        self._cell = number

    def in_cell(self, number: int, *, is_anywhere: bool = False) -> "Routed":
        """The same, for what is in one cell; or for what any can say, if that one is away."""
        route = Route(number, is_anywhere=is_anywhere)
        return Routed(self._reach, self._kind, self._identity, self.key, route)

    @property
    def cells(self) -> dict[int, Cell]:
        """All that can be asked, by number."""
        return self._reach.cells

    @property
    def route(self) -> Route:
        """Where the request goes to."""
        return self._route

    def has(self, number: int, warehouse_id: UUID) -> bool:
        """Whether a cell has a warehouse, as the directory says: rows of others are old copies."""
        return self._reach.cell_of(warehouse_id) in {number, None}

    async def new_id(self) -> UUID:
        """A UUIDv7 of the cell that the request goes to."""
        return made_in(self.cell)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Execute]:
        """A transaction in the cell that is asked first; act() finds the right one."""
        async with (await self.at(self.cell)).transaction() as execute:
            yield execute

    async def run(self, *statements: Statement) -> dict[str, Any] | None:
        """As for every caller, where the request is for."""
        row = await self.act(lambda here: here.run(*statements))
        if row is None and self._route.is_anywhere:  # who has ordered it sees it where that was
            others = set(self.cells) - {self.cell}
            answers = await self.ask_all(lambda here: here.run(*statements), others)
            row = next((each for each in answers.found.values() if each), None)
        return row

    async def at(self, number: int, of_id: UUID | None = None) -> Caller:
        """The same caller in one cell, whatever the request is for."""
        return Caller(await self._reach.pool(number, self._kind), self._identity, self.key, of_id)

    async def ask(self, number: int, do: Do[T], of_id: UUID | None = None) -> T:
        """Do something in one cell, if what has an id is there.

        Raises:
            ConflictError: ELSEWHERE, it isn't.
            AwayError: it is away, and was not waited for.
            DarkPearlError: whatever is said there.
        """

        async def asked() -> T:
            return await do(await self.at(number, of_id))

        return await self._reach.ask(number, asked)

    async def ask_all(self, do: Do[T], numbers: Iterable[int] = ()) -> Answers[T]:
        """Do something in several cells at once, by default in all.

        Raises:
            DarkPearlError: what the first says that refuses.
        """
        asked = list(numbers) or list(self._reach.cells)
        came = await asyncio.gather(*(self.ask(each, do) for each in asked), return_exceptions=True)
        away: list[Cell] = []
        for each in came:
            if isinstance(each, AwayError):
                away += each.cells
            elif isinstance(each, BaseException):
                raise each
        found = {
            number: each
            for number, each in zip(asked, came, strict=True)
            if not isinstance(each, BaseException)
        }
        return Answers(found, away)

    async def act(self, do: Do[T]) -> T:
        """Do something where the request is for.

        Raises:
            AwayError: that cell is away; or nobody else has the id, and it may be there.
            DarkPearlError: whatever is said there.
        """
        if self._route.of_id:
            return await self._act_on(self._route.of_id, do)
        for _ in range(SETTLING_TRIES):
            asked, told = {self.cell}, set[str]()
            while True:
                try:
                    return await self.ask(self.cell, do)
                except AwayError:
                    others = [each for each in self._reach.cells if each not in asked]
                    if not self._route.is_anywhere or not others:
                        raise
                    number = others[0]
                except ConflictError as error:
                    named = named_by(error)
                    if named is None or named.cell not in self._reach.cells:
                        raise
                    if named.cell in asked and named.warehouse not in told:
                        raise  # two warehouses, and no cell has both
                    if named.cell in asked:
                        break  # each says that the other has it: not all have heard of a move
                    self._reach.doubt()
                    told.add(named.warehouse)
                    number = named.cell
                asked.add(number)
                self.cell = number
            await asyncio.sleep(SETTLING_SECONDS)
        raise moving()

    async def _act_on(self, of_id: UUID, do: Do[T]) -> T:
        """Do something with what has an id: where it says, or that cell says, or it is found.

        In one cell after the other, since it may be a write. An id that clients chose in several is
        found in the first that shows it to this caller.
        """
        for _ in range(SETTLING_TRIES):
            tries: dict[int, _Try[T]] = {}
            to_ask, is_searched = [self.cell], False
            while to_ask and to_ask[0] not in tries:
                number = to_ask.pop(0)
                came = tries[number] = await self._try(number, of_id, do)
                if came.found is not None:
                    self.cell = number
                    return came.found
                if came.named:
                    to_ask.insert(0, came.named)
                if not to_ask and not is_searched:
                    to_ask, is_searched = await self._that_have(of_id, tries), True
            if not to_ask:
                return await self._unfound(do, list(tries.values()))
            # Each says that the other has it: not all have heard of a move.
            await asyncio.sleep(SETTLING_SECONDS)
        raise moving()

    async def _try(self, number: int, of_id: UUID, do: Do[T]) -> "_Try[T]":
        """Do it in one cell, if what has the id is there."""
        try:
            found = await self.ask(number, do, of_id)
        except (AwayError, NotFoundError) as error:
            return _Try(refusal=error)
        except ConflictError as error:
            named = named_by(error)
            if error.code != ELSEWHERE or (named and named.cell not in self._reach.cells):
                raise
            self._reach.doubt()
            return _Try(named=named.cell if named else None)
        return _Try(found, is_here=True)

    async def _that_have(self, of_id: UUID, tries: dict[int, "_Try[T]"]) -> list[int]:
        """The other cells that have an id; those that don't say are written down."""

        async def look(here: Caller) -> bool:
            try:
                await here.run(("select refuse_id_elsewhere(%(id)s)", {"id": of_id}))
            except ConflictError:
                return False
            return True

        others = sorted(set(self._reach.cells) - set(tries))
        if not others:
            return []
        answers = await self.ask_all(look, others)
        for each in answers.away:
            tries[each.number] = _Try(refusal=AwayError(each))
        return [each for each in others if answers.found.get(each)]

    async def _unfound(self, do: Do[T], tries: list["_Try[T]"]) -> T:
        """What is to be said of an id that nobody who answers has, or shows to this caller."""
        refused = [each.refusal for each in tries if each.refusal]
        away = [cell for each in refused if isinstance(each, AwayError) for cell in each.cells]
        if away and not self.is_staff:  # what is here may be somebody else's, and theirs there
            raise AwayError(*away)
        for each in (each for each in refused if isinstance(each, NotFoundError)):
            raise each
        if any(each.is_here for each in tries):
            return None  # type: ignore[return-value]  # as it came
        if away:
            raise AwayError(*away)
        return await self.ask(self.cell, do)  # in the words of the database


def named_by(error: ConflictError) -> Named | None:
    """Where a refusal of the database says to go to."""
    named = _NAMED.match(error.detail) if error.code == ELSEWHERE else None
    return Named(named[1], int(named[2])) if named else None


def moving() -> UnavailableError:
    """The error for a warehouse that the cells don't agree about for longer than usual."""
    return UnavailableError(title=PROBLEMS[MOVING].title, code=MOVING)
