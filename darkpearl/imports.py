"""Imports and exports: files in CSV, in and out by COPY.

Lines are staged as they are and read by one SQL function for each kind; all rules are there.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import NamedTuple

from darkpearl import csvfile, database, schema

STAFF_ROLE = "service_role"
READER_ROLE = "darkpearl_reader"


class Kind(NamedTuple):
    """What can be imported and exported.

    Attributes:
        staged_in: the table where lines wait.
        run: the statement that imports them; takes whether bad ones are left out.
    """

    staged_in: str
    run: str


KINDS = {
    "products": Kind("product_imports", "select * from import_products(%s)"),
    "inventory": Kind("inventory_imports", "select * from import_inventory(%s)"),
    "movements": Kind("movement_imports", "select * from import_movements(%s)"),
    "orders": Kind("order_imports", "select * from place_imported_orders('', %s)"),
}


class Imported(NamedTuple):
    """What became of a file: its lines, how many of them are bad, and what has changed."""

    lines: int
    bad: int
    changed: int


async def import_lines(
    url: str,
    kind: str,
    lines: Iterable[bytes],
    *,
    skip_bad: bool,
    tell: Callable[[int, str], None],
) -> Imported:
    """Import a file, as staff: all of it or nothing, or what isn't bad.

    Args:
        url: the database; a login that may act as service_role.
        kind: one of KINDS.
        lines: the file, cut behind each newline.
        skip_bad: leave bad lines out, and import the rest.
        tell: is called with the number of each bad line and what is wrong with it.

    Raises:
        CsvError: the file isn't what it is to be.
        schema.SchemaError: the database can't be written to.
    """
    chosen = KINDS[kind]
    staff = database.with_options(database.as_role(url, STAFF_ROLE), "-c search_path=darkpearl")
    async with schema.connect(staff) as connection, connection.cursor() as cursor:
        await cursor.execute("select open_import(%s)", [kind])
        ((columns,),) = await cursor.fetchall()
        header, records = csvfile.read(lines, columns)
        copy = f"copy {chosen.staged_in} (line, problem, {', '.join(header)}) from stdin"
        async with cursor.copy(copy.encode()) as staged:
            for record in records:
                await staged.write_row((record.line, record.problem, *record.fields))
        await cursor.execute(chosen.run.encode(), [skip_bad])
        (counted,) = await cursor.fetchall()
        query = (
            f"select line, problem from {chosen.staged_in} where problem is not null order by line"  # noqa: S608
        )
        await cursor.execute(query.encode())
        async for line, problem in cursor:
            tell(line, problem)
    return Imported(*counted)


async def export(url: str, kind: str) -> AsyncIterator[bytes]:
    """The file of a kind, a piece at a time.

    Args:
        url: the database; a login that may act as darkpearl_reader.
        kind: one of KINDS.

    Raises:
        schema.SchemaError: the database can't be read.
    """
    reader = database.with_options(database.as_role(url, READER_ROLE), "-c search_path=darkpearl")
    copy = f"copy (select * from exported_{kind}) to stdout with (format csv, header)"  # noqa: S608
    async with (
        schema.connect(reader) as connection,
        connection.cursor() as cursor,
        cursor.copy(copy.encode()) as rows,
    ):
        async for piece in rows:
            yield bytes(piece)
