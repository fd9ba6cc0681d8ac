"""`darkpearl cells`: the databases that warehouses are divided among."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import rich_click as click

from darkpearl import cells as places
from darkpearl import database
from darkpearl.cli import asking, showing
from darkpearl.cli.console import out, tell
from darkpearl.cli.statements import Row
from darkpearl.cli.where import running
from darkpearl.config import Settings

T = TypeVar("T")

_LISTED = "select * from cell_overview order by number"
COLUMNS = ("number", "name", "url", "warehouses", "created_at", "removed_at")
STATE_COLUMNS = (
    *("number", "name", "server", "warehouses", "ready", "stuck", "sessions", "lag_seconds"),
    *("kept_bytes", "trouble"),
)


@click.group(no_args_is_help=False)
def cells() -> None:
    """Divide the warehouses among several databases.

    Run these at home, the first of them, as a superuser. The passwords of the others are
    libpq's to find: in ~/.pgpass, or PGPASSWORD.
    """


@cells.command()
@click.argument("url")
@click.option("--name", required=True, help="What it is called: lower case, digits, - and _.")
@click.option(
    "--home-url",
    default="",
    help="Where its server reaches this database, with a login that may replicate; kept there,"
    " for superusers alone.  [default: the address in use]",
)
@click.pass_obj
def add(settings: Settings, url: str, name: str, home_url: str) -> None:
    """Make the empty database at URL a cell; again after a failure goes on where it was."""
    for option, address in (("URL", url), ("--home-url", home_url)):
        database.check_address(option, address)

    _refusing(tell(places.add(running(settings), url, name, home_url=home_url)))
    out.print(
        f"next: make a warehouse with cell {name}'s number, and run an API and listeners there",
        markup=False,
        soft_wrap=True,
    )


@cells.command(name="list")
@showing.as_json
@showing.watch
@click.pass_obj
def list_cells(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """List the cells that there are and were; in any of them."""

    async def look() -> list[Row]:
        async with asking.looking(settings) as session:
            return await session.rows(_LISTED)

    showing.show(look, COLUMNS, as_json=as_json, watch=watch)


@cells.command()
@click.argument("name")
@click.option("--url", default="", help="Where it is, as a superuser.  [default: as it is listed]")
@click.option("--gone", "is_gone", is_flag=True, help="It isn't there any more: don't ask it.")
@showing.yes
@click.pass_obj
def remove(settings: Settings, name: str, url: str, *, is_gone: bool, yes: bool) -> None:
    """Let a cell go, whose warehouses are inactive: it keeps its data, and gets no catalogue."""
    database.check_address("--url", url)
    if not yes:
        click.confirm(f"Remove cell {name}?", abort=True, err=True)
    number = _refusing(places.remove(running(settings), name, url=url, is_gone=is_gone))
    out.print(f"cell {number} is removed; its number is not given again")


@cells.command(name="move-warehouse")
@click.argument("code")
@click.option("--to", required=True, help="The cell it goes to: its name or its number.")
@click.option(
    "--source-url",
    default="",
    help="Where that cell's server reaches the one that has it, as a superuser, or with REPLICATION"
    " and BYPASSRLS; kept there until it is over.  [default: the address that this command uses]",
)
@click.option("--undo", "is_undone", is_flag=True, help="Take back one that hasn't ended.")
@showing.yes
@click.pass_obj
def move_warehouse(
    settings: Settings, code: str, *, to: str, source_url: str, is_undone: bool, yes: bool
) -> None:
    """Move the warehouse CODE to another cell; again after a failure goes on where it was."""
    database.check_address("--source-url", source_url)
    if not (yes or is_undone):
        click.confirm(f"Move {code} to cell {to}?", abort=True, err=True)

    if is_undone:
        _refusing(places.undo(running(settings), code, to))
        out.print(f"{code} stays where it was")
    else:
        _refusing(tell(places.move(running(settings), code, to, source_url=source_url)))


@cells.command()
@showing.as_json
@showing.watch
@click.pass_obj
def status(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """Show how each cell is: its server, how late its catalogue is, and what it has to do."""

    async def look() -> list[Row]:
        try:
            return await places.states(running(settings))
        except places.CellError as error:
            raise asking.Refusal(str(error)) from error

    showing.show(look, STATE_COLUMNS, as_json=as_json, watch=watch)


@cells.command()
@click.option("--schema", "name", default=places.VIEWS, show_default=True, help="Of the views.")
@click.option("--drop", "is_dropped", is_flag=True, help="Drop them, and what they are made of.")
@click.pass_obj
def views(settings: Settings, name: str, *, is_dropped: bool) -> None:
    """Make views over all cells, by postgres_fdw; again after a release or a new cell.

    At the database that is to be asked, as a superuser of it. darkpearl_reader owns the views, and
    logs in to the other cells with the password that libpq finds for it here.
    """
    if is_dropped:
        _refusing(places.drop_views(running(settings), name))
        out.print(f"there are no views in {name} any more", markup=False)
    else:
        out.print(_refusing(places.make_views(running(settings), name)), markup=False)


def _refusing(work: Coroutine[Any, Any, T]) -> T:
    """Run it; what can't be is told as a wrong command.

    Raises:
        asking.Refusal: it can't be.
    """
    try:
        return asyncio.run(work)
    except places.CellError as error:
        raise asking.Refusal(str(error)) from error
