"""Connections, alone or in a pool.

Every connection of ours is made here, so that each has the schema in its search path, and each end
notices when the other is gone: the server within a second, so a killed listener's locks do not
outlive it, and the client of a server that vanished without a word within half a minute.
"""

import contextlib
import select
from collections.abc import AsyncIterator, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from darkpearl.config import ConfigError
from darkpearl.errors import refuse_read_only

RECONNECT_SECONDS = 2.0
_KEEPALIVES = "keepalives_idle=10 keepalives_interval=5 keepalives_count=3 tcp_user_timeout=25000"
"""A server that vanishes without a word, as in a failover, is given up after 25 seconds; by what
systems do when nothing is said, after a quarter of an hour or, at rest, two hours."""
_OPTIONS = "-c search_path=darkpearl -c client_connection_check_interval=1s -c jit=off"

Row = dict[str, Any]
Connection = psycopg.AsyncConnection[Row]
Pool = AsyncConnectionPool[Connection]


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


def _ours(url: str) -> str:
    """The address with what every connection of ours has; what it says of keepalives stays."""
    return make_conninfo(_KEEPALIVES, **conninfo_to_dict(with_options(url, _OPTIONS)))


@contextlib.asynccontextmanager
async def connect(url: str, name: str) -> AsyncIterator[Connection]:
    """One connection in autocommit, which `pg_stat_activity` shows under a name.

    Raises:
        psycopg.OperationalError: no server can be had.
        psycopg.errors.ReadOnlySqlTransaction: it can't be written to.
    """
    connection = await Connection.connect(
        _ours(url), autocommit=True, row_factory=dict_row, application_name=name
    )
    async with connection:
        refuse_read_only(connection)
        yield connection


async def _check(connection: psycopg.AsyncConnection[Row]) -> None:
    """Notice that the server has hung up. It is asked only when it said something by itself.

    A question on every checkout would be a round trip for each request of the API.
    """
    unread = select.poll()
    unread.register(connection.fileno(), select.POLLIN)
    if unread.poll(0):
        await AsyncConnectionPool.check_connection(connection)


def open_pool(url: str, *, size: int, name: str, login: str = "") -> Pool:
    """A pool, not yet opened: `async with` it. Its connections are in autocommit.

    Args:
        url: where to connect to.
        size: connections at most.
        name: what `pg_stat_activity` shows as application_name.
        login: whose session it is to be, whatever the address says. Only a superuser can be
            somebody else; without the right a connection isn't had.
    """

    async def log_in(connection: psycopg.AsyncConnection[Row]) -> None:
        await connection.execute(
            sql.SQL("set session authorization {}").format(sql.Identifier(login))
        )

    return AsyncConnectionPool(
        _ours(url),
        min_size=1,
        max_size=size,
        open=False,
        timeout=5,
        # Then the next who needs one tries at once, so that no long backoff outlasts an outage.
        reconnect_timeout=RECONNECT_SECONDS,
        configure=log_in if login else None,
        check=_check,
        kwargs={"row_factory": dict_row, "application_name": name, "autocommit": True},
    )


async def fetch_all(
    connection: Connection, query: str, parameters: Sequence[Any] | Row = ()
) -> list[Row]:
    """Every row of one statement, which is a transaction of its own."""
    cursor = await connection.execute(query.encode(), parameters)
    return await cursor.fetchall()
