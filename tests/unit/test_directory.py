"""Which cell a request is for, as a program knows it."""

from uuid import UUID, uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict

from darkpearl.cells.directory import Cell, Directory, address_of

CELLS = {number: Cell(number, f"cell{number}", f"host=h{number}") for number in (1, 2)}


def test_a_cell_is_reached_by_the_programs_own_login() -> None:
    """Another cell's address gives the place alone: login, password and options stay."""
    own = "postgresql://api:secret@home:5433/shop?sslmode=require"
    found = conninfo_to_dict(address_of(own, "host=north port=5434 dbname=store user=postgres"))
    wanted = conninfo_to_dict("postgresql://api:secret@north:5434/store?sslmode=require")
    assert found == wanted
    assert "port" not in conninfo_to_dict(address_of(own, "host=north"))


def test_an_id_names_its_cell_only_where_there_is_one() -> None:
    """The last byte counts in a UUIDv7 and for a cell that is known: others are clients' own."""
    directory = Directory(1, CELLS, {})
    assert directory.of_id(UUID("01a22ee7-19d7-7506-acc8-16a97c5c5502")) == 2
    assert directory.of_id(UUID("01a22ee7-19d7-7506-acc8-16a97c5c5503")) is None
    assert directory.of_id(uuid4()) is None
    assert [cell.number for cell in directory.others] == [2]


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("service=ours user=api", "service=theirs", {"service": "theirs", "user": "api"}),
        (
            "service=ours",
            "host=north dbname=shop",
            {"service": "ours", "host": "north", "hostaddr": "", "port": "", "dbname": "shop"},
        ),
        ("host=home user=api", "host=::1 port=5 service=x", {"host": "::1", "port": "5"}),
        ("host=home dbname=shop", "north.example", {"host": "north.example"}),
    ],
)
def test_another_cell_is_never_taken_for_the_own(
    own: str, other: str, expected: dict[str, str]
) -> None:
    """A service file says who logs in; what it says of the place isn't the other cell's."""
    found = conninfo_to_dict(address_of(own, other))
    assert {**found, **expected} == found
    assert expected.get("service") == found.get("service")
    again = conninfo_to_dict(address_of(own, address_of(own, other)))
    assert again == found
