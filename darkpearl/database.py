"""Connections, alone or in a pool.

Every connection of ours is made here, so that each has the schema in its search path and read
committed, whatever the database's defaults are, and each end notices when the other is gone: the
server within a second, so a killed listener's locks do not outlive it, and the client of a server
that vanished without a word within half a minute.

A pooler in transaction mode, such as PgBouncer, gives a client another session of the server for
each transaction. A pool does with that; who needs a session of its own is told.
"""

import asyncio
import contextlib
import select
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool

from darkpearl.config import ConfigError
from darkpearl.errors import refuse_read_only

LISTENER_ROLE = "darkpearl_listener"
"""The login of listeners, of webhooks and of housekeeping."""
API_ROLE = "darkpearl_api"
"""The login of the API's sessions: the only ones whose claims the database believes."""
RECONNECT_SECONDS = 2.0
CHECK_SECONDS = 1.0
"""How long who needs a connection waits until dead ones are thrown out of a pool."""
RUN_AS_OWNER = 160_000
"""The first server whose subscriptions may write as the owner of a table."""
_KEEPALIVES = "keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=25000"
"""A server that vanishes without a word, as in a failover, is given up after 25 seconds; by what
systems do when nothing is said, after a quarter of an hour or, at rest, two hours."""
_SETTINGS = {
    "search_path": "darkpearl",
    "client_connection_check_interval": "1s",
    "jit": "off",
    "default_transaction_isolation": "read committed",
}
_SET = "select " + ", ".join(f"set_config('{each}', %s, false)" for each in _SETTINGS)
_POOLER_TRIES = 10
"""Transactions after which a pooler counts as one that leaves sessions alone."""

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]


class PoolerError(ConfigError):
    """The address is that of a pooler that doesn't give its clients sessions of their own."""

    def __init__(self) -> None:
        super().__init__(
            "the address leads through a pooler, which in transaction mode loses what a session"
            " listens to, locks and prepares; give DARKPEARL_LISTENER_DATABASE_URL PostgreSQL's"
            " own address"
        )


class Pool(AsyncConnectionPool[Connection]):
    """Connections, and how long a statement on them may take, as PostgreSQL writes it."""

    statement_timeout = "0"
    cell = 0
    """The number of the cell that the database is; 0 while nobody has asked."""
    is_of_a_cell = False
    """Only that cell will do: what else is at its address is no connection."""


def check_address(name: str, url: str) -> None:
    """Refuse an address that libpq can't read, whose own words would repeat a part of it.

    Raises:
        ConfigError: naming the setting, and nothing of its value.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigError(f"{name}: what was given is not allowed; it can't be read") from None


def with_options(url: str, options: str) -> str:
    """The same address, with server options added to those that it has."""
    given = conninfo_to_dict(url).get("options")
    return make_conninfo(url, options=f"{given} {options}" if given else options)


def as_role(url: str, role: str) -> str:
    """The same address, acting as a role that its login is a member of.

    Least privilege for a login that could do more, such as the owner of the embedded server.
    """
    return with_options(url, f"-c role={role}")


def read_json_exactly(connection: psycopg.AsyncConnection[Any]) -> None:
    """Have numbers within JSON come as Decimal, as those of columns do: some are money."""
    set_json_loads(msgspec.json.Decoder(float_hook=Decimal).decode, connection)


def name_columns(connection: psycopg.AsyncConnection[Any]) -> None:
    """Have rows come as dicts, as those of a pool do."""
    connection.row_factory = dict_row


def _with_keepalives(url: str) -> str:
    """The address with what keeps watch on the server; what it says of that itself stays."""
    return make_conninfo(_KEEPALIVES, **conninfo_to_dict(url))


async def is_direct(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Nobody stands between: the session is the process that its login was answered by.

    A pooler answers logins itself, and hands out process ids of its own making, which cancel
    requests come back to it with.
    """
    return await _backend_pid(connection) == connection.info.backend_pid


async def _backend_pid(connection: psycopg.AsyncConnection[Any]) -> int:
    found = await connection.execute("select pg_backend_pid() as pid")
    row = await found.fetchone()
    return int(row["pid"] if isinstance(row, dict) else row[0])  # type: ignore[index]


async def refuse_another(connection: psycopg.AsyncConnection[Any], cell: int) -> None:
    """Refuse to take one database for another, as where an address leads to the wrong place.

    Args:
        connection: to a database.
        cell: the number of the cell that it has to be; 0: whichever it is.

    Raises:
        psycopg.OperationalError: it is another.
    """
    if not cell:
        return
    found = await (await connection.execute("select darkpearl.this_cell() as cell")).fetchone()
    has = found["cell"] if isinstance(found, dict) else found and found[0]
    if has != cell:
        raise psycopg.OperationalError(
            f"the database at the address of cell {cell} is another: it is cell {has}"
        )


async def _make_ours(connection: psycopg.AsyncConnection[Any]) -> None:
    """Give a session of our own what every session of ours has."""
    await connection.execute(_SET.encode(), list(_SETTINGS.values()))


@contextlib.asynccontextmanager
async def connect(url: str, name: str) -> AsyncIterator[Connection]:
    """One connection in autocommit, which `pg_stat_activity` shows under a name.

    Raises:
        PoolerError: the address is that of a pooler in transaction mode.
        psycopg.OperationalError: no server can be had.
        psycopg.errors.ReadOnlySqlTransaction: it can't be written to.
    """
    try:
        connection = await _open(url, name)
    except psycopg.OperationalError as error:
        if "unsupported startup parameter" in str(error):  # PgBouncer takes no options
            raise PoolerError from None
        raise
    async with connection:
        refuse_read_only(connection)
        if not await is_direct(connection):
            await _refuse_transaction_mode(connection, url, name)
        await _make_ours(connection)
        yield connection


async def _open(url: str, name: str) -> Connection:
    return await Connection.connect(
        _with_keepalives(url), autocommit=True, row_factory=dict_row, application_name=name
    )


async def _refuse_transaction_mode(connection: Connection, url: str, name: str) -> None:
    """Refuse a pooler that has two clients share a session, or one change it, between transactions.

    Raises:
        PoolerError: it was seen to.
    """
    seen = set()
    async with await _open(url, name) as another:
        for _ in range(_POOLER_TRIES):
            seen.add(await _backend_pid(connection))
            if len(seen) > 1 or await _backend_pid(another) in seen:
                raise PoolerError


async def _check(connection: psycopg.AsyncConnection[Row]) -> None:
    """Notice that the server has hung up. It is asked only when it said something by itself.

    A question on every checkout would be a round trip for each request of the API.
    """
    unread = select.poll()
    unread.register(connection.fileno(), select.POLLIN)
    if unread.poll(0):
        await AsyncConnectionPool.check_connection(connection)


def open_pool(
    url: str, *, size: int, name: str, login: str = "", statement_timeout: str = "0"
) -> Pool:
    """A pool, not yet opened: `async with` it. Its connections are in autocommit.

    Through a pooler nothing is left in a session: what isn't set by the transaction itself is what
    the login has by itself, and no statement is prepared.

    Args:
        url: where to connect to.
        size: connections at most.
        name: what `pg_stat_activity` shows as application_name.
        login: whose session it is to be, whatever the address says. Only a superuser can be
            somebody else, and only without a pooler; else a connection isn't had.
        statement_timeout: kept with the pool, for its transactions to set.
    """

    async def configure(connection: psycopg.AsyncConnection[Row]) -> None:
        if pool.is_of_a_cell:
            await refuse_another(connection, pool.cell)
        if not await is_direct(connection):
            connection.prepare_threshold = None
            if login and connection.info.user != login:
                raise psycopg.OperationalError(f"through a pooler the login has to be {login}")
            return
        if login:
            await connection.execute(
                sql.SQL("set session authorization {}").format(sql.Identifier(login))
            )
        await _make_ours(connection)

    looking: asyncio.Task[None] | None = None

    async def check(connection: psycopg.AsyncConnection[Row]) -> None:
        """A server that hung up did so on all, each of which would cost a longer pause."""
        nonlocal looking
        try:
            await _check(connection)
        except psycopg.Error:
            if looking is None or looking.done():
                looking = asyncio.create_task(pool.check())  # who asks may give up meanwhile
            await asyncio.wait({looking}, timeout=CHECK_SECONDS)
            raise

    pool = Pool(
        _with_keepalives(url),
        min_size=1,
        max_size=size,
        open=False,
        timeout=5,
        # Then the next who needs one tries at once, so that no long backoff outlasts an outage.
        reconnect_timeout=RECONNECT_SECONDS,
        configure=configure,
        check=check,
        kwargs={"row_factory": dict_row, "application_name": name, "autocommit": True},
    )
    pool.statement_timeout = statement_timeout
    return pool


async def fetch_all(
    connection: Connection, query: str, parameters: Sequence[Any] | Row = ()
) -> list[Row]:
    """Every row of one statement, which is a transaction of its own."""
    cursor = await connection.execute(query.encode(), parameters)
    return await cursor.fetchall()
