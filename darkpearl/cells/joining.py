"""How a database becomes a cell.

Every step looks first whether it was done, so a run that was killed is simply run again. The row
of the cell comes first, since it gives the number.
"""

from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from darkpearl import database, schema
from darkpearl.cells.catalogue import SHARED, publish, replicate, slot_of
from darkpearl.cells.plans import take_plans
from darkpearl.cells.queries import one, value
from darkpearl.cells.replication import CellError

_LOCK = "select pg_advisory_lock(hashtextextended('darkpearl cells', 0))"
_SECRETS = ("password", "passfile", "sslpassword")
_SERVER = (
    "select current_setting('wal_level'), (select rolsuper from pg_roles where"
    " rolname = current_user), to_regproc('darkpearl.this_cell')"
)
_HOLDS = (
    "select exists (select from darkpearl.warehouses) or exists (select from darkpearl.products)"
    " or exists (select from darkpearl.orders)"
)
_HAS_OTHERS = "select exists (select from darkpearl.cells where number <> 1 and removed_at is null)"
KNOWN = "select number, url, removed_at from darkpearl.cells where name = %s"
_GIVE = (
    "insert into darkpearl.cells (number, name, url)"
    " select max(number) + 1, %s, %s from darkpearl.cells returning number"
)
_LAWS = {
    "cells_name_is_a_word": "a cell's name is lower case letters, digits, - and _, the first a"
    " letter, and 50 at most",
    "cells_number_fits_an_id": "255 numbers have been given, and there are no more",
    "cells_url_has_no_password": "an address that others read has no word password in it",
}
_IS_NOW_AT = "update darkpearl.cells set url = %s where number = %s"
_FOUND_AT = "update darkpearl.cells set url = %s where number = 1 and url is null"


async def add(home: str, url: str, name: str, *, home_url: str = "") -> AsyncIterator[str]:
    """Make an empty database a cell of home; says what it does, in a line each, as it goes.

    Args:
        home: home, as a superuser.
        url: the database, as a superuser. Kept without its password, for the others.
        name: what the cell is called.
        home_url: where the cell's server reaches home, with a login that may replicate; if not
            given, `home`. Only superusers of the cell can read it there.

    Raises:
        CellError: a server isn't fit for it, or the database isn't.
        schema.SchemaError: one of them can't be reached, or fails.
    """
    async with schema.connect(home) as at_home, schema.connect(url) as there:
        home_url = home_url or spelled_out(home, at_home)
        await _check_home(at_home, home)
        await _check_cell(there, at_home)
        await lock(at_home)
        number = await _number(at_home, there, name, url)
        yield f"{name} is cell {number}"
        applied = await schema.migrate(url)
        yield f"migrations there: {', '.join(applied) or 'nothing new'}"
        async with there.transaction():
            await there.execute("set local role darkpearl_owner")
            await there.execute("select darkpearl.become_cell(%s)", [number])
        yield f"its ids end in {number:02x}, its order numbers begin with {number}"
        if await take_plans(at_home, there):
            await schema.migrate(url)
            yield "its plans have the numbers that they have at home"
        await at_home.execute(_FOUND_AT, [without_secrets(home_url)])
        await publish(at_home)
        yield f"home publishes {', '.join(SHARED)}"
        await replicate(at_home, there, home, slot_of(number), home_url)
        yield "the catalogue is there"


async def refuse_reset(url: str) -> None:
    """Refuse to throw a database away that others depend on, or that would forget which one it is.

    Raises:
        CellError: it is a cell beside home, or home that has some.
        schema.SchemaError: it can't be reached.
    """
    async with schema.connect(url) as connection:
        if await value(connection, "select to_regproc('darkpearl.this_cell')") is None:
            return
        number = await value(connection, "select darkpearl.this_cell()")
        if number != 1 or await value(connection, _HAS_OTHERS):
            raise CellError(
                f"this is cell {number} of several: remove the others first, or drop the database"
            )


def without_secrets(url: str) -> str:
    """The address, for everybody to see."""
    parts = conninfo_to_dict(url)
    return make_conninfo("", **{name: parts[name] for name in parts if name not in _SECRETS})


def spelled_out(url: str, connection: AsyncConnection[Any]) -> str:
    """The address with what it leaves to the environment: others have another one."""
    parts, info = conninfo_to_dict(url), connection.info
    found = info.get_parameters() | {"dbname": info.dbname}
    wanted = ["port", "dbname", *(["user"] if parts.pop("service", None) else [])]
    if not {"host", "hostaddr"} & parts.keys():
        found, wanted = {"host": info.host, **found}, ["host", "hostaddr", *wanted]
    return make_conninfo("", **{name: found[name] for name in wanted if name in found} | parts)


def asked_at(home: str, number: int, url: str) -> str:
    """Where a cell is asked, given what `cells` says.

    Home's address there is for the others, by the login that reads the catalogue; it is asked at
    the one that is in use.
    """
    return home if number == 1 else url


async def lock(at_home: AsyncConnection[Any]) -> None:
    """One change of the cells at a time, as long as the session lasts.

    Raises:
        CellError: another one goes on.
    """
    await at_home.execute(f"set lock_timeout = '{schema.LOCK_SECONDS}s'")
    try:
        await at_home.execute(_LOCK)
    except psycopg.errors.LockNotAvailable:
        raise CellError("another command changes cells: wait for its end") from None


async def refuse_away_from_home(connection: AsyncConnection[Any]) -> None:
    """Refuse what is done at home alone.

    Raises:
        CellError: the database is another cell, or has no schema of this release.
    """
    if await value(connection, "select to_regproc('darkpearl.become_cell')") is None:
        raise CellError("home has no schema of this release: darkpearl db migrate first")
    if (number := await value(connection, "select darkpearl.this_cell()")) != 1:
        raise CellError(f"this is cell {number}: give the address of home, cell 1")


async def _check_home(connection: AsyncConnection[Any], home: str) -> None:
    await _refuse_pooler(connection, "home")
    wal_level, is_superuser, _ = await one(connection, _SERVER)
    if not is_superuser:
        raise CellError("home's login is no superuser: it makes a slot and a publication")
    if wal_level != "logical":
        raise CellError(f"home's wal_level is {wal_level}: set it to logical, and restart")
    await refuse_away_from_home(connection)
    status = await schema.status(home)
    if status.pending:
        raise CellError(f"home wants a migrate first: {', '.join(status.pending)}")
    if status.unknown:
        raise CellError(
            f"home is of another release: it has {', '.join(status.unknown)}, which is unknown here"
        )


async def _refuse_pooler(connection: AsyncConnection[Any], which: str) -> None:
    """Listeners and replication want the server itself, at the address that all are given."""
    if not await database.is_direct(connection):
        raise CellError(f"the address of {which} is a pooler's: give PostgreSQL's own")


async def _check_cell(there: AsyncConnection[Any], at_home: AsyncConnection[Any]) -> None:
    await _refuse_pooler(there, "the cell")
    _, is_superuser, has_schema = await one(there, _SERVER)
    if not is_superuser:
        raise CellError("the cell's login is no superuser: a subscription writes past row security")
    is_there = await identity(there)
    if is_there == await identity(at_home):
        raise CellError("that is home itself")
    if has_schema is None:
        if await value(there, "select to_regnamespace('darkpearl')"):
            raise CellError("the database is of another release: take an empty one")
    elif await value(there, "select darkpearl.this_cell()") == 1 and await value(there, _HOLDS):
        raise CellError("the database has data already: take an empty one")


async def identity(connection: AsyncConnection[Any]) -> Any:
    """What tells a database from every other, by whatever address it is reached."""
    return await one(
        connection,
        "select system_identifier, (select oid from pg_database where datname = current_database())"
        " from pg_control_system()",
    )


async def _number(
    at_home: AsyncConnection[Any], there: AsyncConnection[Any], name: str, url: str
) -> int:
    """The number of the cell, which it has from a run before, or gets now.

    Raises:
        CellError: the name stands for another or is none, the database is a cell under another
            number, or no number is left.
    """
    address = without_secrets(spelled_out(url, there))
    is_numbered = await value(there, "select to_regproc('darkpearl.this_cell')")
    has = await value(there, "select darkpearl.this_cell()") if is_numbered else 1
    known = await one(at_home, KNOWN, name)
    number, at, removed_at = known or (None, None, None)
    is_another = at != address and has != number
    if known is not None and (number == 1 or removed_at is not None or is_another):
        raise CellError(f"there is or was a cell {name}, at {at or 'home'}: choose another name")
    if has not in {1, number}:
        raise CellError(f"the database is cell {has} already, and none that home calls {name}")
    if number is None:
        try:
            return int(await value(at_home, _GIVE, name, address))
        except psycopg.errors.CheckViolation as error:
            law = error.diag.constraint_name or ""
            raise CellError(_LAWS.get(law, law.replace("_", " "))) from None
    if at != address:  # it has gone to another place
        await at_home.execute(_IS_NOW_AT, [address, number])
    return int(number)
