"""Views for who reads everything: what stands in each cell, united where they are asked.

At the database that they are made at there are then, in PostgreSQL's own terms,

    darkpearl_cell_<n>     a foreign server for each cell, with a user mapping for darkpearl_reader,
                           and a schema of foreign tables
    darkpearl_cells        the schema of the views, which belong to darkpearl_reader

The database itself is one of the servers: a view on its own tables would keep a release from
changing them. A view reads as its owner, so whoever may read it goes to the cells as
darkpearl_reader, and as nobody else. All of it is made in one transaction, and what is as it
should be already is left as it is: what others have built on it stays, or the command says what is
in the way.
"""

import functools
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from darkpearl import schema
from darkpearl.cells.catalogue import SHARED
from darkpearl.cells.joining import without_secrets
from darkpearl.cells.queries import QUIETLY, value
from darkpearl.cells.replication import CellError

READER = "darkpearl_reader"
VIEWS = "darkpearl_cells"
SERVER = "darkpearl_cell_"
LEFT_OUT = {
    *SHARED,  # the same in every cell
    *("cell_overview", "exported_products"),
    # Of one order or saga at a time, with no word of its warehouse; the tables behind them have it.
    *("order_cancellations", "order_groups", "order_refunds", "order_returns", "order_shipments"),
    *("saga_history", "sagas_from_events"),
    *("spent_ids", "spent_up_to"),
}
"""What a reader may read and no view unites."""
TOLD_BY_EACH = {"feed", "moved_warehouses"}
"""What names a warehouse, and is told of one that has moved by the cell that it happened in."""
_FETCH_SIZE = "10000"
_NOT_OF_SERVERS = ("user", "client_encoding", "application_name", "fallback_application_name")
_HAS_FDW = "select exists (select from pg_available_extensions where name = 'postgres_fdw')"
_CELLS = "select number, name, url from darkpearl.cells where removed_at is null order by number"
_COLUMNS = (
    "select c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod)"
    " from pg_class as c inner join pg_attribute as a on a.attrelid = c.oid"
    " where c.relnamespace = to_regnamespace(quote_ident(%s)) and c.relkind = any(%s)"
    " and not c.relispartition and a.attnum > 0 and not a.attisdropped"
    " and has_column_privilege('darkpearl_reader', c.oid, a.attnum, 'select')"
    " order by c.relname, a.attnum"
)
_KINDS, _FOREIGN_KIND = ["r", "p", "v"], ["f"]
_MADE = "select srvname::text from pg_foreign_server where srvname ~ '^darkpearl_cell_[0-9]+$'"
_OPTIONS = "select unnest(srvoptions) from pg_foreign_server where srvname = %s"
_VIEWS = (
    "select relname::text from pg_class where relnamespace = to_regnamespace(quote_ident(%s))"
    " and relkind = 'v' and relowner = 'darkpearl_reader'::regrole"
)

Columns = dict[str, dict[str, str]]
"""By relation, the type of each column."""


async def make_views(url: str, name: str = VIEWS) -> str:
    """Make the views anew, as the cells and their release are now.

    Args:
        url: the cell to make them at, as a superuser.
        name: the schema of the views.

    Returns:
        What there is now, in a line.

    Raises:
        CellError: a cell can't be read by darkpearl_reader, or another view is in the way.
        schema.SchemaError: this cell can't be reached, or fails.
    """
    async with schema.connect(url) as here:
        await _check(here)
        known = await _rows(here, _CELLS)
        if len(known) == 1:
            raise CellError("there is no other cell: read the database itself")
        seen = [await _look(called, address) for _, called, address in known]
        columns = functools.reduce(_common, (found for found, _ in seen))
        sources = {cell: f"{SERVER}{cell}" for cell, _, _ in known}
        async with here.transaction():
            for each in (*QUIETLY, "create extension if not exists postgres_fdw"):
                await here.execute(each)
            outdated = []
            for (cell, _, address), (_, password) in zip(known, seen, strict=True):
                await _server(here, sources[cell], address, password)
                outdated += await _foreign_tables(here, sources[cell], columns)
            await _views(here, name, sources, columns)
            for path in outdated:
                await _drop(here, "foreign table", *path)
            for server in await _servers(here):
                if server not in sources.values():
                    await _drop_server(here, server)
            await _try(here, name)
    return f"{len(columns)} views in {name}, of {len(sources)} cells"


async def drop_views(url: str, name: str = VIEWS) -> None:
    """Drop the views, and what they were made of.

    Raises:
        CellError: something else stands on them.
        schema.SchemaError: the cell can't be reached, or fails.
    """
    async with schema.connect(url) as here, here.transaction():
        for relation in await _views_in(here, name):
            await _drop(here, "view", name, relation)
        await _drop(here, "schema", name)
        for server in await _servers(here):
            await _drop_server(here, server)


async def _check(here: AsyncConnection[Any]) -> None:
    if not await value(here, "select rolsuper from pg_roles where rolname = current_user"):
        raise CellError("the login is no superuser: it makes an extension and servers")
    if await value(here, "select to_regclass('darkpearl.cells')") is None:
        raise CellError("the database has no schema of this release: darkpearl db migrate first")
    if not await value(here, _HAS_FDW):
        raise CellError(
            "the server has no postgres_fdw: install PostgreSQL's contrib modules"
            " (Debian and postgres images have them, the embedded server doesn't)"
        )


async def _look(called: str, address: str | None) -> tuple[Columns, str]:
    """What darkpearl_reader may read in a cell, and the password it logs in with.

    Raises:
        CellError: it can't log in, or does so without a password, which postgres_fdw demands.
    """
    if not address:
        raise CellError(f"home doesn't say where cell {called} is: its url is empty")
    try:
        async with schema.connect(make_conninfo(address, user=READER)) as there:
            found, password = await _columns(there), there.info.password
    except schema.SchemaError as error:
        raise CellError(f"{READER} can't read cell {called}: {error}") from error
    if not password:
        raise CellError(
            f"{READER} has no password in ~/.pgpass for cell {called}: postgres_fdw wants one"
        )
    return found, password


async def _columns(
    connection: AsyncConnection[Any], name: str = schema.SCHEMA, kinds: list[str] = _KINDS
) -> Columns:
    """What darkpearl_reader may read of a schema, types with theirs."""
    await connection.execute("set search_path = pg_catalog")
    found: Columns = {}
    for relation, column, of_type in await _rows(connection, _COLUMNS, name, kinds):
        if relation not in LEFT_OUT:
            found.setdefault(relation, {})[column] = of_type
    return found


def _common(here: Columns, there: Columns) -> Columns:
    """What both have: cells may be of two releases while one is rolled out."""
    return {
        relation: {
            column: of_type
            for column, of_type in columns.items()
            if there[relation].get(column) == of_type
        }
        for relation, columns in here.items()
        if relation in there
    }


async def _server(here: AsyncConnection[Any], server: str, address: str, password: str) -> None:
    """The foreign server, at the address that is known now, and who reads there."""
    place = conninfo_to_dict(without_secrets(address))
    wanted = {name: str(place[name]) for name in place if name not in _NOT_OF_SERVERS}
    wanted |= {"fetch_size": _FETCH_SIZE, "async_capable": "true", "connect_timeout": "10"}
    had = dict(str(each).split("=", 1) for (each,) in await _rows(here, _OPTIONS, server))
    if not had:
        await _run(here, "create server {} foreign data wrapper postgres_fdw", server)
    changes = [
        *(sql.SQL("drop {}").format(sql.Identifier(each)) for each in had.keys() - wanted.keys()),
        *(
            sql.SQL("{} {} {}").format(
                sql.SQL("set" if each in had else "add"), sql.Identifier(each), sql.Literal(text)
            )
            for each, text in wanted.items()
        ),
    ]
    await here.execute(
        sql.SQL("alter server {} options ({})").format(
            sql.Identifier(server), sql.SQL(", ").join(changes)
        )
    )
    await _run(here, "drop user mapping if exists for {} server {}", READER, server)
    await here.execute(
        sql.SQL("create user mapping for {} server {} options (user {}, password {})").format(
            sql.Identifier(READER), sql.Identifier(server), READER, password
        )
    )


async def _foreign_tables(
    here: AsyncConnection[Any], server: str, columns: Columns
) -> list[tuple[str, str]]:
    """The tables of a cell; those that are outdated step aside, and are returned."""
    await _schema(here, server)
    had = await _columns(here, server, _FOREIGN_KIND)
    outdated = [(server, relation) for relation in had if relation not in columns]
    for relation, types in columns.items():
        if had.get(relation) == types:
            continue
        if relation in had:
            outdated.append((server, f"{relation}_before"))
            await _run(
                here, "alter foreign table {}.{} rename to {}", server, relation, outdated[-1][1]
            )
        described = [
            sql.SQL("{} {}").format(sql.Identifier(column), _trusted(of_type))
            for column, of_type in types.items()
        ]
        await here.execute(
            sql.SQL(
                "create foreign table {} ({}) server {} options (schema_name {}, table_name {})"
            ).format(
                sql.Identifier(server, relation),
                sql.SQL(", ").join(described),
                sql.Identifier(server),
                schema.SCHEMA,
                relation,
            )
        )
    await _run(here, "grant select on all tables in schema {} to {}", server, READER)
    return outdated


async def _views(
    here: AsyncConnection[Any], name: str, sources: dict[int, str], columns: Columns
) -> None:
    """The views over all cells: in place where a release has only added to them, else anew."""
    await _schema(here, name)
    for relation in await _views_in(here, name):
        if relation not in columns:
            await _drop(here, "view", name, relation)
    for relation, types in columns.items():
        legs = sql.SQL(" union all ").join(
            _leg(cell, source, relation, types) for cell, source in sources.items()
        )
        made = sql.SQL("create or replace view {} as {}").format(
            sql.Identifier(name, relation), legs
        )
        try:
            async with here.transaction():
                await here.execute(made)
        except psycopg.errors.InvalidTableDefinition:
            await _drop(here, "view", name, relation)
            await here.execute(made)
        await _run(here, "alter view {}.{} owner to {}", name, relation, READER)


def _leg(cell: int, source: str, relation: str, types: dict[str, str]) -> sql.Composed:
    """What one cell has, but for what it kept of warehouses that are another's."""
    mine: sql.Composable = sql.SQL("")
    for column, key in (("warehouse_id", "id"), ("warehouse", "code")):
        if column in types and relation not in TOLD_BY_EACH:
            mine = sql.SQL(
                " where x.{} = any(array(select w.{} from darkpearl.warehouses as w"
                " where w.cell = {}))"
            ).format(sql.Identifier(column), sql.Identifier(key), cell)
            break
    return sql.SQL("select {}::smallint as cell, {} from {} as x{}").format(
        cell,
        sql.SQL(", ").join(sql.Identifier("x", column) for column in types),
        sql.Identifier(source, relation),
        mine,
    )


async def _try(here: AsyncConnection[Any], name: str) -> None:
    """Read from every cell as a reader does.

    Raises:
        CellError: this server can't, though the command can.
    """
    try:
        async with here.transaction():
            await _run(here, "set local role {}", READER)
            await _run(here, "select count(*) from {}.moved_warehouses", name)
            await here.execute("set local role none")
    except psycopg.Error as error:
        said = " ".join(str(error).split())
        raise CellError(f"this server can't read all cells as {READER}: {said}") from error


async def _drop_server(here: AsyncConnection[Any], server: str) -> None:
    """A server, and its tables."""
    for relation in await _columns(here, server, _FOREIGN_KIND):
        await _drop(here, "foreign table", server, relation)
    await _drop(here, "schema", server)
    await _run(here, "drop user mapping if exists for {} server {}", READER, server)
    await _drop(here, "server", server)


async def _drop(here: AsyncConnection[Any], kind: LiteralString, *path: str) -> None:
    """Drop what there may be, never with what others have built on it.

    Raises:
        CellError: somebody has.
    """
    statement = sql.SQL("drop " + kind + " if exists {}").format(sql.Identifier(*path))
    try:
        async with here.transaction():
            await here.execute(statement)
    except psycopg.errors.DependentObjectsStillExist as error:
        said = " ".join((error.diag.message_detail or "").split())
        raise CellError(f"{kind} {'.'.join(path)} is in use: {said}") from error


async def _schema(here: AsyncConnection[Any], name: str) -> None:
    """A schema, in which darkpearl_reader may look."""
    if await value(here, "select to_regnamespace(quote_ident(%s))", name) is None:
        await _run(here, "create schema {}", name)
    await _run(here, "grant usage on schema {} to {}", name, READER)


async def _views_in(here: AsyncConnection[Any], name: str) -> list[str]:
    return [relation for (relation,) in await _rows(here, _VIEWS, name)]


async def _servers(here: AsyncConnection[Any]) -> list[str]:
    return [server for (server,) in await _rows(here, _MADE)]


async def _rows(connection: AsyncConnection[Any], query: str, *values: Any) -> list[Any]:
    """Every row of a query."""
    return await (await connection.execute(query.encode(), values or None)).fetchall()


async def _run(here: AsyncConnection[Any], statement: LiteralString, *names: str) -> None:
    """A statement about things by their names."""
    await here.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _trusted(of_type: str) -> sql.SQL:
    """A type as format_type() of another cell writes it."""
    return sql.SQL(of_type)
