"""Which cells there are, and which of them has what: for programs that go to the right one.

Every cell has the same catalogue and so the same directory, a moment late. It is a hint: a database
refuses what isn't its own, and names the cell that it is of.
"""

from dataclasses import dataclass
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from darkpearl.database import Connection

_PLACE = ("host", "hostaddr", "port", "dbname")
"""What of a cell's address says where it is; who logs in, and how, is the program's own."""
_HERE = "select this_cell() as number"
_KNOWN = "select * from known_cells()"


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
    here = await (await connection.execute(_HERE)).fetchone()
    found = await (await connection.execute(_KNOWN)).fetchall()
    number = int(here["number"]) if here else 1
    cells: dict[int, Cell] = {}
    of_warehouse: dict[UUID, int] = {}
    for row in found:
        is_here = row["number"] == number
        address = url if is_here else row["url"] and address_of(url, row["url"])
        cells[row["number"]] = Cell(row["number"], row["name"], address or "")
        of_warehouse |= dict.fromkeys(row["warehouse_ids"], row["number"])
    return Directory(number, cells, of_warehouse)


def address_of(own: str, other: str) -> str:
    """Where a login reaches another cell: its own address, but for the place."""
    ours = conninfo_to_dict(own)
    theirs = conninfo_to_dict(other)
    kept = {name: value for name, value in ours.items() if name not in _PLACE}
    return make_conninfo("", **kept, **{name: theirs[name] for name in _PLACE if name in theirs})
