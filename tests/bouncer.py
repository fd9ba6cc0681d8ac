"""PgBouncer before the server of the tests, in transaction mode and others."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from shop import Shop

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(
    PGBOUNCER is None, reason="there is no pgbouncer here (Debian: apt install pgbouncer)"
)
PASSWORD = "of tests alone"
SESSIONS = 2
"""That the pooler has with the server, for however many clients."""
IGNORES = {"refused": "", "dropped": "ignore_startup_parameters = options"}
"""What a pooler does with the options that a login brings."""

Pooled = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def pooled(
    database_url: str, shop: Shop, until: Callable[..., Awaitable[None]]
) -> Iterator[Pooled]:
    """Runs a PgBouncer in some mode, and gives the address of darkpearl_api through it."""
    server = conninfo_to_dict(database_url)

    @asynccontextmanager
    async def run(mode: str, more: str = "", user: str = "darkpearl_api") -> AsyncIterator[str]:
        await shop.run(f"alter role darkpearl_api password '{PASSWORD}'")
        await shop.run(  # as db migrate does; the database of a test is a copy, which has lost it
            f"alter role darkpearl_api in database {server['dbname']} set search_path = darkpearl"
        )
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        (folder / "users").write_text(
            f'"darkpearl_api" "{PASSWORD}"\n"{server["user"]}" "{server["password"]}"\n'
        )
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={server['host']} port={server['port']}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {folder}/users\npool_mode = {mode}\ndefault_pool_size = {SESSIONS}\n"
            f"{more}\n"
        )
        # It doesn't run as root.
        account: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
        process = subprocess.Popen(  # noqa: ASYNC220 - it is at once
            [str(PGBOUNCER), "--quiet", folder / "pgbouncer.ini"],
            stderr=subprocess.PIPE,
            **account,
        )

        async def answers() -> bool:
            assert process.poll() is None, process.communicate()[1].decode()
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        try:
            await until(answers)
            yield make_conninfo(
                host="127.0.0.1", port=port, user=user, dbname=server["dbname"], sslmode="disable"
            )
        finally:
            process.terminate()
            process.communicate(timeout=20)

    with tempfile.TemporaryDirectory(prefix="darkpearl-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)  # for root's `nobody`
        yield run
