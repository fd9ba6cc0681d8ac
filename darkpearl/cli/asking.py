"""What commands ask of the database: to look, as whoever logs in; to act, as staff.

A command has no logic of its own: it calls a function, or selects from a view with filters.

Of several cells, what lists (`finding`, `in_each`) asks all, and says in each row which. What is
about one thing goes where that is, since naming it (`order_id`, `warehouse_id`, `Session.seek`)
leads there. --cell narrows both.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any
from uuid import UUID

import msgspec
import rich_click as click

from darkpearl import database, embedded, schema
from darkpearl.cells import directory as directories
from darkpearl.cells.directory import Cell, Directory, address_of
from darkpearl.cli import where
from darkpearl.cli.console import fail
from darkpearl.cli.statements import IS_HERE, Row, Statement
from darkpearl.config import Settings
from darkpearl.errors import UnavailableError, problem_of

STAFF_ROLE = "service_role"
ORDERS_OF_A_CELL = 10**12
"""Order numbers of cell n begin at n times as many."""
INCOMPLETE = 3
"""The exit code of a command that found nobody in one of the cells that it asked."""
_OURS = "-c search_path=darkpearl"
_LOOKS = f"{_OURS} -c default_transaction_read_only=on -c statement_timeout=60s"
_AWAY = "darkpearl.away"
_CELL = "darkpearl.cell"


class Refusal(click.ClickException):
    """The database refuses what was asked for: as a wrong command."""

    exit_code = 2


class Session:
    """A connection to a cell, and statements whose rows have names.

    Args:
        url: where it begins.
        begin: a statement that comes before all others, in each cell.
        stack: closes what is opened.
        number: of the cell that it has to be, and never leaves; 0: whichever it is.
    """

    def __init__(self, url: str, begin: str, stack: contextlib.AsyncExitStack, number: int) -> None:
        self._url = url
        self._begin = begin
        self._stack = stack
        self._stays = number != 0
        self._connection: Any = None
        self._known: Directory | None = None
        self._at: int | None = None

    async def open(self, url: str, number: int = 0) -> None:
        """Connect to a cell, where it goes on; if its number is known, to no other.

        Raises:
            schema.SchemaError: it is away.
        """
        connection = await self._stack.enter_async_context(schema.connect(url))
        database.name_columns(connection)
        database.read_json_exactly(connection)
        if self._begin:
            await connection.execute(self._begin.encode())
        await database.refuse_another(connection, number)
        self._connection = connection

    async def rows(self, query: str, parameters: Sequence[Any] | Row | None = None) -> list[Row]:
        """Every row of a statement; none of one that returns nothing."""
        cursor = await self._connection.execute(query.encode(), parameters)
        return [] if cursor.description is None else list(await cursor.fetchall())

    async def first(self, query: str, *parameters: Any) -> Row | None:
        """The first row, if there is one."""
        return next(iter(await self.rows(query, parameters or None)), None)

    async def one(self, refusal: str, query: str, *parameters: Any) -> Row:
        """The first row.

        Raises:
            Refusal: in these words, if there is none.
        """
        found = await self.first(query, *parameters)
        if found is None:
            raise Refusal(refusal)
        return found

    async def cells(self) -> list[Cell]:
        """The cells that are to be asked: all, or none when this is the only one."""
        if self._stays:
            return []
        if self._known is None:
            self._known = await directories.read_directory(self._connection, self._url)
            self._at = self._known.here
        return self._known.several

    def beside(self, cell: Cell) -> contextlib.AbstractAsyncContextManager["Session"]:
        """Another session like this one, which stays in a cell."""
        return _session(cell.url, self._begin, cell.number)

    async def go_to(self, number: int) -> None:
        """Go on in a cell.

        Raises:
            schema.SchemaError: it is away.
        """
        for cell in await self.cells():
            if cell.number == number != self._at:
                try:
                    await self.open(cell.url, number)
                except schema.SchemaError as error:
                    raise schema.SchemaError(f"cell {cell.name}: {error}") from error
                self._at = number

    async def seek(self, query: str, *values: Any, hint: int | None = None) -> None:
        """Go on in the cell where a statement finds something; stay, when none does.

        Args:
            query: finds a row where the thing is.
            values: its parameters.
            hint: the number of the cell that is asked first, and alone if it is there.

        Raises:
            schema.SchemaError: a cell that may have it doesn't answer.
        """
        cells = await self.cells()
        first = hint if hint in {each.number for each in cells} else self._at
        away: list[str] = []

        async def finds(cell: Cell) -> bool:
            try:
                async with self.beside(cell) as session:
                    return await session.first(query, *values) is not None
            except schema.SchemaError as error:
                away.append(f"cell {cell.name}: {error}")
                return False

        for is_first in (True, False):
            some = [each for each in cells if (each.number == first) is is_first]
            found = await asyncio.gather(*map(finds, some))
            for cell, is_there in zip(some, found, strict=True):
                if is_there:
                    await self.go_to(cell.number)
                    return
        if away:
            raise schema.SchemaError(f"it is in none that answers; {'; '.join(away)}")


def looking(settings: Settings) -> contextlib.AbstractAsyncContextManager[Session]:
    """A session that only reads, with the rights of the login itself."""
    return _session(database.with_options(where.running(settings), _LOOKS), "", _named())


def acting(
    settings: Settings, role: str = STAFF_ROLE
) -> contextlib.AbstractAsyncContextManager[Session]:
    """A session of staff; what it does is written down with the name of the login."""
    url = database.with_options(where.running(settings), _OURS)
    return _session(url, f"set role {role}", _named())


async def in_each(
    opened: contextlib.AbstractAsyncContextManager[Session],
    call: Callable[[Session], Awaitable[list[Row]]],
    names: Collection[str | None] = (),
) -> list[Row]:
    """What a call finds in each cell, with `cell` before it where there are several.

    A cell that doesn't answer is told once, and makes the command end with INCOMPLETE.

    Args:
        opened: looking() or acting().
        call: is made at the same time in a session for each.
        names: of the cells that are asked; all, if none is named.
    """
    async with opened as session:
        cells = await session.cells()
        if not cells:
            return await call(session)

    async def ask(cell: Cell) -> list[Row]:
        try:
            async with session.beside(cell) as there:
                return [{"cell": cell.name, **row} for row in await call(there)]
        except schema.SchemaError as error:
            tell_away(cell.name, error)
            return []

    some = [cell for cell in cells if not names or cell.name in names]
    return [row for rows in await asyncio.gather(*map(ask, some)) for row in rows]


def finding(settings: Settings, statement: Statement) -> Callable[[], Awaitable[list[Row]]]:
    """A look that finds what a statement does in all cells, in sessions of its own each time."""

    async def look() -> list[Row]:
        async def call(session: Session) -> list[Row]:
            return await session.rows(statement.query, statement.values or None)

        return statement.merged(await in_each(looking(settings), call))

    return look


def act(settings: Settings, call: Callable[[Session], Awaitable[list[Row]]]) -> list[Row]:
    """What a call in a session of staff returns, in the cell of what it names."""

    async def run() -> list[Row]:
        async with acting(settings) as session:
            return await call(session)

    return asyncio.run(run())


def act_in_each(
    settings: Settings,
    call: Callable[[Session], Awaitable[list[Row]]],
    names: Collection[str | None] = (),
) -> list[Row]:
    """What a call in sessions of staff returns, in every cell, or in those of some names."""
    return asyncio.run(in_each(acting(settings), call, names))


def over_cells(command: click.Command, default: str = "all, or the one it is in") -> click.Command:
    """Give a command, or all of a group, the option that narrows it to one cell."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            over_cells(each, default)
        if not command.invoke_without_command:
            return command
    option = click.Option(
        ["--cell"], expose_value=False, callback=_narrowed, metavar="NAME",
        help=f"Of several, ask this one alone: its name or number.  [default: {default}]",
    )  # fmt: skip
    command.params.append(option)
    return command


def _narrowed(context: click.Context, _option: object, name: str | None) -> None:
    """Have a command take a cell's address for its own."""
    if name is None:
        return
    settings: Settings = context.obj
    here = where.running(settings)

    async def known() -> list[Cell]:
        async with _session(database.with_options(here, _LOOKS)) as session:
            return await session.cells() or [Cell(1, "home", here)]

    for cell in asyncio.run(known()):
        if name in {cell.name, str(cell.number)}:
            break
    else:
        raise Refusal(f"there is no cell {name}")
    context.meta[_CELL] = cell.number
    api, listener = (address_of(each, cell.url) for each in where.logins(settings))
    context.obj = msgspec.structs.replace(
        settings,
        database_url=address_of(here, cell.url),
        api_database_url=api,
        listener_database_url=listener,
    )


def all_cells(settings: Settings, seconds: float) -> list[Cell]:
    """Which there are, if there are several, and the database says so in that time."""

    async def known() -> Directory:
        async with asyncio.timeout(seconds):
            return await directories.directory_at(where.running(settings))

    try:
        return asyncio.run(known()).several
    except (schema.SchemaError, embedded.EmbeddedError, TimeoutError):
        return []


def only(cells: list[Cell]) -> list[Cell]:
    """Those of the cells that --cell leaves."""
    return [each for each in cells if _named() in {0, each.number}]


def _named() -> int:
    context = click.get_current_context(silent=True)
    return context.meta.get(_CELL, 0) if context else 0


def tell_away(name: str, why: object) -> None:
    """Say that a cell doesn't answer: once in a command, whose exit code says so, too."""
    context = click.get_current_context(silent=True)
    told: set[str] = context.meta.setdefault(_AWAY, set()) if context else set()
    if name not in told:
        told.add(name)
        fail(f"cell {name} is left out: {why}", INCOMPLETE)


def ended(code: Any) -> Any:
    """The exit code of a command that has ended with `code`: INCOMPLETE, if it left a cell out."""
    context = click.get_current_context(silent=True)
    return code or (INCOMPLETE if context and context.meta.get(_AWAY) else 0)


@contextlib.asynccontextmanager
async def _session(url: str, begin: str = "", number: int = 0) -> AsyncIterator[Session]:
    """A session, in which a statement comes before all others.

    Raises:
        Refusal: the database refuses what is asked for in the block, or this login.
        schema.SchemaError: it is away, busy, or something is wrong with it.
    """
    try:
        async with contextlib.AsyncExitStack() as stack:
            session = Session(url, begin, stack, number)
            await session.open(url, number)
            yield session
    except schema.SchemaError as error:
        if is_refusal(error):
            raise Refusal(str(error)) from error
        raise


def is_refusal(error: schema.SchemaError) -> bool:
    """Whether the same would be refused again, for what it asks or who asks."""
    problem = problem_of(getattr(error.__cause__, "sqlstate", None) or "08000")
    return problem is not None and problem.kind is not UnavailableError


async def order_id(session: Session, order: UUID | int) -> UUID:
    """The id of an order that may be named by its number, and of the saga that carries it.

    The session goes on in the cell that has it.

    Raises:
        Refusal: no order has this number.
    """
    if isinstance(order, UUID):
        await session.seek(
            f"select from sagas where id = %s and {IS_HERE} union all"  # noqa: S608
            f" select from orders where id = %s and {IS_HERE}",
            *(order, order),
            hint=cell_of(order),
        )
        return order
    query = f"select id from orders where order_number = %s and {IS_HERE}"  # noqa: S608
    await session.seek(query, order, hint=order // ORDERS_OF_A_CELL or 1)
    found = await session.one(f"there is no order {order}", query, order)
    return UUID(str(found["id"]))


def cell_of(of: UUID) -> int:
    """The number of the cell that made an id, if the database did: a hint where to look first."""
    return of.bytes[-1]


async def warehouse_id(session: Session, name: str, *, stays: bool = False) -> UUID:
    """The id of a warehouse that may be named by its code.

    The session goes on in its cell, unless it `stays`: then that may be away.

    Raises:
        Refusal: there is none.
    """
    found = await _id_of(session, "warehouses", "code", name)
    if not stays and await session.cells():
        row = await session.first("select cell from warehouses where id = %s", found)
        await session.go_to(row["cell"] if row else 0)
    return found


async def product_id(session: Session, name: str) -> UUID:
    """The id of a product that may be named by its SKU.

    Raises:
        Refusal: there is none.
    """
    return await _id_of(session, "products", "sku", name)


async def _id_of(session: Session, table: str, column: str, name: str) -> UUID:
    found = await session.one(
        f"there is no {table.removesuffix('s')} {name}",
        f"select id from {table} where {column} = %s or id::text = %s limit 1",  # noqa: S608
        *(name, name.lower()),
    )
    return UUID(str(found["id"]))
