"""Which cells there are, and which of them has what: for programs that go to the right one.

Every cell has the same catalogue and so the same directory, a moment late. It is a hint: a database
refuses what isn't its own, and names the cell that it is of.
"""

from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from darkpearl import database, schema
from darkpearl.database import Connection

_PLACE = ("service", "host", "hostaddr", "port", "dbname")
"""What of a cell's address says where it is; who logs in, and how, is the program's own."""
_KNOWN = "select this_cell() as here, k.* from (select) as one left join known_cells() as k on true"


@dataclass(frozen=True)
class Cell:
    """A cell, and where a program that has logged in to another one reaches it."""

    number: int
    name: str
    url: str
    """Empty where nobody has said."""


@dataclass(frozen=True)
class Directory:
    """The cells as one of them knows them."""

    here: int
    """The number of the cell that was asked."""
    cells: dict[int, Cell]
    """By number, the one that was asked among them."""
    of_warehouse: dict[UUID, int]
    """The number of the cell that has a warehouse."""

    @property
    def others(self) -> list[Cell]:
        """All but the one that was asked."""
        return [cell for cell in self.cells.values() if cell.number != self.here]

    @property
    def several(self) -> list[Cell]:
        """All whose address is known; none, where that is one alone."""
        known = [cell for cell in self.cells.values() if cell.url]
        return known if len(known) > 1 else []

    def of_id(self, of: UUID) -> int | None:
        """The number of the cell that made an id, if it says so: clients may choose any."""
        number = of.bytes[-1]
        return number if of.version == 7 and number in self.cells else None  # noqa: PLR2004 - RFC 9562


async def read_directory(connection: Connection, url: str) -> Directory:
    """What a cell knows of all cells.

    Args:
        connection: to the cell; whoever it logged in as, that login reaches the others.
        url: its address, which gives the login, the password and the options for the others.

    Raises:
        psycopg.Error: it can't be asked.
    """
    found = await (await connection.execute(_KNOWN)).fetchall()
    number = int(found[0]["here"])
    cells: dict[int, Cell] = {}
    of_warehouse: dict[UUID, int] = {}
    for row in found:
        if row["number"] is None:  # the only row, where the catalogue isn't there yet
            continue
        is_here = row["number"] == number
        address = url if is_here else row["url"] and address_of(url, row["url"])
        cells[row["number"]] = Cell(row["number"], row["name"], address or "")
        of_warehouse |= dict.fromkeys(row["warehouse_ids"], row["number"])
    return Directory(number, cells, of_warehouse)


async def directory_at(url: str) -> Directory:
    """The same by the address of the cell.

    Raises:
        schema.SchemaError: it doesn't answer.
    """
    options = "-c search_path=darkpearl -c statement_timeout=5s"
    async with schema.connect(database.with_options(url, options)) as connection:
        database.name_columns(connection)
        return await read_directory(connection, url)


def address_of(own: str, other: str) -> str:
    """Where a login reaches another cell: its own address, but for the place.

    An address that can't be read is taken for a host, which doesn't answer.
    """
    ours = conninfo_to_dict(own)
    try:
        theirs = conninfo_to_dict(other)
    except psycopg.ProgrammingError:
        theirs = {"host": other}
    if {"host", "hostaddr"} & theirs.keys():
        theirs.pop("service", None)  # of a login, which is the program's own
    kept = {name: value for name, value in ours.items() if name not in _PLACE}
    place = {name: theirs[name] for name in _PLACE if name in theirs}
    if "service" in ours and "service" not in theirs:
        # It has the login, and nothing of the place: what is empty isn't taken from there.
        place = {**dict.fromkeys(_PLACE, ""), **place, "service": ours["service"]}
    return make_conninfo("", **kept, **place)
