"""The schema: migrate, re-apply the routines, seed, reset, status, drift.

Tables and types are state: they change through the files in sql/migrations, each applied once
and marked in the same transaction, so that a killed run is run again. Routines are code: all files
in sql/routines are applied anew, in one transaction, by every migrate that finds them or the
database otherwise than the last one left them. sql/schema is what migrations add up to: `drift`.

Every file runs with search_path = darkpearl. yoyo keeps its books in `darkpearl_migrations`.
"""

import asyncio
import difflib
import glob
import os
import re
import secrets
import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from yoyo import read_migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import Migration, MigrationList, default_migration_table

from darkpearl import fingerprint, taking
from darkpearl.errors import refuse_read_only

SCHEMA = "darkpearl"
BOOKS = "darkpearl_migrations"
OLDEST_SERVER = 15
CONNECT_SECONDS = 10
QUEUE_SECONDS = 120
"""How long a migrate waits for another one to finish."""
LOCK_SECONDS = 5
"""How long a statement waits for a table that is in use; whoever waits makes others wait."""
MIGRATE_LOCK = 0x6461726B70656172
"""Key of the advisory lock of whoever migrates: "darkpear" in ASCII."""
RETRYABLE = {"55P03", "40P01"}  # lock_not_available, deadlock_detected
_HOLDS_SOMETHING = (
    "select exists (select from darkpearl.products) or exists (select from darkpearl.warehouses)"
    " or exists (select from darkpearl.stock_movements)"
)


class SchemaError(RuntimeError):
    """The database can't be reached or brought to the schema; one line that says why."""


class ReadOnlyError(SchemaError):
    """The address is that of a server that can't be written to."""


class Status(msgspec.Struct, frozen=True):
    """Where a database stands: server version as '18.4', ids of migrations in order.

    `unknown` are migrations that were applied and that this release doesn't have.
    `hides_statistics`: the planner has to guess how many rows have a status.
    """

    server: str
    hides_statistics: bool
    applied: list[str]
    pending: list[str]
    unknown: list[str]


def files(part: str) -> list[Path]:
    """SQL files of one folder of sql/ ('schema', 'routines', 'migrations') in order."""
    return sorted((folder() / part).glob("*.sql"))


def folder() -> Path:
    """The folder sql/: inside the package when installed, beside it in a checkout."""
    inside = Path(__file__).with_name("sql")
    return inside if inside.exists() else Path(__file__).parents[1] / "sql"


async def migrate(url: str) -> list[str]:
    """Apply pending migrations, then all routines. Two at once queue up.

    Where nothing is pending, and files and database are as the last migrate left them, nothing is
    touched: whoever is at work there is in nobody's way.

    Returns:
        The ids of the migrations that were applied.

    Raises:
        ReadOnlyError: the server can't be written to.
        SchemaError: a file failed (named with its line), the database was too busy, it is of
            another release, or sagas under way need a function that is in no file any more.
    """
    async with connect(url) as connection:
        refuse_read_only(connection)
        await connection.execute(f"set lock_timeout = '{QUEUE_SECONDS}s'")
        await connection.execute("select pg_advisory_lock(%s)", [MIGRATE_LOCK])
        await connection.execute(f"set lock_timeout = '{LOCK_SECONDS}s'")
        found = await status_on(connection)
        if unknown := found.unknown:
            raise SchemaError(
                f"the database is of another release, and was left as it is: it has migrations"
                f" that this one doesn't know ({', '.join(unknown)})"
            )
        if not found.pending and await fingerprint.matches(connection, files("routines")):
            return []
        await connection.execute(f"create schema if not exists {BOOKS}")
        await fingerprint.forget(connection)
        applied = await asyncio.to_thread(_apply_pending, url)
        await _apply_routines(connection)
        await fingerprint.write(connection, files("routines"))
    return applied


async def seed(url: str) -> bool:
    """Load sql/seed.sql into a database that holds nothing, not even a past; says whether it did.

    Raises:
        SchemaError: the file failed.
    """
    async with connect(url) as connection, connection.transaction():
        found = await connection.execute(_HOLDS_SOMETHING)
        if (row := await found.fetchone()) and row[0]:
            return False
        await _run(connection, [folder() / "seed.sql"])
        return True


async def reset(url: str) -> None:
    """Drop everything of ours in the database, data included, and migrate anew.

    Raises:
        SchemaError: somebody uses the tables, or a file failed.
    """
    async with connect(url) as connection, connection.transaction():
        await connection.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
        await connection.execute(f"drop schema if exists {SCHEMA}, {BOOKS} cascade")
    await migrate(url)


async def status(url: str) -> Status:
    """Applied and pending migrations.

    Raises:
        SchemaError: the database can't be reached.
    """
    async with connect(url) as connection:
        return await status_on(connection)


async def status_on(connection: AsyncConnection[Any]) -> Status:
    """The same, of whoever is connected to it already."""
    books = f"{BOOKS}.{default_migration_table}"
    found = await connection.execute("select to_regclass(%s)", [books])
    applied: list[str] = []
    if await found.fetchone() != (None,):
        order = f"select migration_id from {books} order by migration_id"  # noqa: S608
        applied = [each for (each,) in await (await connection.execute(order)).fetchall()]
    known = [each.id for each in _migrations()]
    pending = [each for each in known if each not in applied]
    unknown = [each for each in applied if each not in known]
    hides = await fingerprint.hides_statistics(connection)
    return Status(_version(connection), hides, applied, pending, unknown)


async def drift(url: str, pg_dump: Path) -> str:
    """The schema of the migrations against that of sql/schema, as a unified diff; '' when equal.

    Both are built in databases of their own on the server of `url`, and dropped again. The plans
    of saga types in the database of `url` itself, if there are any, are compared as well.

    Args:
        url: a server and a role that may create databases.
        pg_dump: the program; its version must be at least the server's.

    Raises:
        SchemaError: a file failed, or pg_dump did.
    """
    async with scratch_database(url) as migrated, scratch_database(url) as stated:
        await migrate(migrated)
        async with connect(stated) as connection:
            async with connection.transaction():
                await _run(connection, files("schema"))
            await _apply_routines(connection)
            plans = await fingerprint.plans(connection)
        one, two = [await asyncio.to_thread(_dump, each, pg_dump) for each in (migrated, stated)]
    async with connect(url) as connection:
        here = await fingerprint.plans(connection) or plans
    return "".join(
        [
            *difflib.unified_diff(one, two, "sql/migrations", "sql/schema"),
            *difflib.unified_diff(here, plans, "plans in the database", "sql/routines"),
        ]
    )


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[AsyncConnection[Any]]:
    """A connection in autocommit.

    Raises:
        SchemaError: in place of any error of the database that leaves the block.
    """
    try:
        async with await AsyncConnection.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="darkpearl schema",
        ) as connection:
            if connection.info.server_version < OLDEST_SERVER * 10_000:
                raise SchemaError(
                    f"PostgreSQL {_version(connection)} is too old; {OLDEST_SERVER} or newer"
                )
            yield connection
    except psycopg.Error as error:
        raise _told(error) from error


def _version(connection: AsyncConnection[Any]) -> str:
    return connection.info.parameter_status("server_version") or "unknown"


def _told(error: psycopg.Error, path: Path | None = None, text: str = "") -> SchemaError:
    """The error as one line, with file and line number where they are known."""
    said = error.diag.message_primary or (str(error).strip() or repr(error)).splitlines()[0]
    for more in (error.diag.message_detail, error.diag.message_hint):
        said += f"; {' '.join(more.split())}" if more else ""
    if error.sqlstate in RETRYABLE:
        said = f"the database is busy, try again ({said})"
    if path is None:
        return (ReadOnlyError if error.sqlstate == "25006" else SchemaError)(said)
    place = f"sql/{path.parent.name}/{path.name}"
    if position := error.diag.statement_position:
        place += f":{text.count(chr(10), 0, int(position)) + 1}"
    return SchemaError(f"{place}: {said}")


async def _run(connection: AsyncConnection[Any], paths: Iterable[Path]) -> None:
    """Run whole files in the caller's transaction."""
    await connection.execute(f"set local search_path = {SCHEMA}")
    for path in paths:
        text = path.read_text(encoding="utf-8")
        try:
            await connection.execute(text.encode())
        except psycopg.Error as error:
            raise _told(error, path, text) from error


async def _apply_routines(connection: AsyncConnection[Any]) -> None:
    """Apply sql/routines and drop the functions that are in no file any more.

    `create or replace` writes a function's row, so the rows of schema darkpearl that this
    transaction has not written once the last file with functions has run are of functions that
    left the files (or changed their arguments). Files after it may grant on all functions, which
    writes the rows too. Functions of sql/schema are kept by name. The drop is not a cascade: a
    function that something still uses is an error. Views, triggers and policies that leave the
    files need a line in a migration.
    """
    paths = files("routines")
    kept = [name for path in files("schema") for name in _defined(path)]
    last = max((at for at, path in enumerate(paths, 1) if _defined(path)), default=0)
    async with taking.all_taken(connection, LOCK_SECONDS):
        await _run(connection, paths[:last])
        found = await connection.execute(
            """
            select oid::regprocedure::text from pg_proc
            where pronamespace = to_regnamespace(%s) and not proname = any(%s)
              and xmin <> pg_current_xact_id()::xid
            """,
            [SCHEMA, kept],
        )
        orphans = [name for (name,) in await found.fetchall()]
        await _run(connection, paths[last:])
        await _refuse_needed(connection, orphans)
        for name in orphans:
            try:
                await connection.execute(f"drop routine {name}")
            except psycopg.errors.DependentObjectsStillExist as error:
                uses = error.diag.message_detail
                raise SchemaError(f"{name} is in no file any more, but {uses}") from error


async def _refuse_needed(connection: AsyncConnection[Any], orphans: list[str]) -> None:
    """Refuse to drop functions that sagas under way need: they end by the plan they began with."""
    found = await connection.execute(
        "select to_regprocedure('darkpearl.functions_in_use()') is not null"
    )
    if not ((row := await found.fetchone()) and row[0]):
        return
    needed = await connection.execute(
        "select function::text, saga_type, plan_version, sagas from darkpearl.functions_in_use()"
        " where function = any(%s::regprocedure[]) order by 1, 2, 3 limit 1",
        [orphans],
    )
    if row := await needed.fetchone():
        name, saga_type, version, sagas = row
        raise SchemaError(
            f"{name} is in no file any more, but {sagas} sagas of {saga_type} that have not ended"
            f" follow version {version} of its plan, which names it; put it back until they have"
        )


def _defined(path: Path) -> list[str]:
    """Names of the functions that a file creates."""
    defines = r"^\s*create\s+(?:or\s+replace\s+)?(?:function|procedure)\s+(?:darkpearl\.)?(\w+)"
    text = path.read_text(encoding="utf-8")
    return re.findall(defines, text, re.IGNORECASE | re.MULTILINE)


class _Books(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo ships no types
    """yoyo's backend, with a migration and its mark in one transaction.

    A file runs whole instead of split: no parser has to understand its dollar quotes, and an
    error tells its line. `-- transactional: false` files (create index concurrently) go yoyo's
    own way and must be repeatable.
    """

    def apply_one(self, migration: Migration, force: bool = False, mark: bool = True) -> None:  # noqa: FBT001, FBT002
        migration.load()
        if not migration.use_transactions:
            super().apply_one(migration, force, mark)
            return
        path = Path(migration.path)
        text = path.read_text(encoding="utf-8")
        with self.transaction():
            self.execute(f"set local search_path = {SCHEMA}")
            try:
                self.cursor().execute(text.encode())
            except psycopg.Error as error:
                raise _told(error, path, text) from error
            self.execute("reset role")  # the file may have become the owner of the schema
            self.execute(f"set local search_path = {BOOKS}")
            self.log_migration(migration, "apply")
            self.mark_one(migration, log=False)

    def get_log_data(self, *about: Any, **more: Any) -> dict[str, Any]:
        """As yoyo's, for whoever has no name on this machine too, as in a container."""
        os.environ.setdefault("LOGNAME", str(os.getuid()))
        return dict(super().get_log_data(*about, **more))


def _migrations() -> MigrationList:
    return read_migrations(glob.escape(str(folder() / "migrations")))


def _apply_pending(url: str) -> list[str]:
    """Apply what isn't applied. The caller holds MIGRATE_LOCK, so a lock row is a dead run's."""
    arguments = conninfo_to_dict(url, application_name="darkpearl schema")
    arguments["options"] = f"{arguments.get('options', '')} -c lock_timeout={LOCK_SECONDS}s"
    arguments["schema"] = BOOKS
    database = arguments.pop("dbname", None)
    address = DatabaseURI("postgresql+psycopg", None, None, None, None, database, arguments)
    with _Books(address, default_migration_table) as books:
        if books.lock_table not in books.list_tables():
            books.create_lock_table()
        books.break_lock()
        pending = books.to_apply(_migrations())
        with books.lock():
            books.apply_migrations(pending)
        if missing := [each.id for each in books.to_apply(_migrations())]:
            raise SchemaError(f"not applied: {', '.join(missing)}; see what they depend on")
        return [each.id for each in pending]


@asynccontextmanager
async def scratch_database(url: str) -> AsyncIterator[str]:
    """An empty database on the server of `url`, dropped at the end.

    Raises:
        SchemaError: the role of `url` may not create databases.
    """
    name = f"darkpearl_scratch_{secrets.token_hex(4)}"
    database = sql.Identifier(name)
    async with connect(url) as connection:
        await connection.execute(sql.SQL("create database {} template template0").format(database))
        try:
            yield make_conninfo(url, dbname=name)
        finally:
            await connection.execute(sql.SQL("drop database {} with (force)").format(database))


def _dump(url: str, pg_dump: Path) -> list[str]:
    """The schema as lines of SQL, but for numbers that some servers keep of columns (pg_attver)."""
    secret = (address := conninfo_to_dict(url)).pop("password", "")  # not for the process list
    done = subprocess.run(
        [
            pg_dump, "--schema-only", "--no-owner", "--restrict-key=x",
            f"--exclude-schema={BOOKS}", f"--dbname={make_conninfo('', **address)}",
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "PGPASSWORD": str(secret)},
    )  # fmt: skip
    if done.returncode:
        raise SchemaError((done.stderr.strip() or "pg_dump failed").splitlines()[-1])
    return [line for line in done.stdout.splitlines(keepends=True) if "(pg_attver=" not in line]
