"""`darkpearl doctor`: troubles of a whole server, made to happen on one of its own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from terminal import Ask, done

from darkpearl import embedded, schema

OPTIONS = {
    "max_prepared_transactions": "5",
    "max_connections": "20",
    "archive_mode": "on",
    "archive_command": "false",
    "autovacuum": "off",
}
Until = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """A server that is safe, as one in production, with a schema."""
    server = embedded.start(home, OPTIONS)
    try:
        asyncio.run(schema.migrate(server.url))
        yield server.url
    finally:
        if left := embedded.running(home):
            embedded.stop(left)


@pytest.fixture
def ask(address: str, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Has the doctor make one check of it; its line."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", address)

    async def of(check: str) -> dict[str, Any]:
        found = await asyncio.to_thread(done, ("doctor", "--json", "--only", check))
        return next(line for line in found.rows if line["check"] == check)

    return of


async def test_promises_that_are_kept(ask: Ask, address: str, until: Until) -> None:
    """One by one they are broken: by a role that doesn't wait for its commits, by a setting."""
    assert (await ask("fsync"))["state"] == "ok"
    assert (await ask("synchronous-commit"))["says"] == "on"
    with psycopg.connect(address, autocommit=True) as admin:
        admin.execute("alter role darkpearl_listener set synchronous_commit = off")
        line = await ask("synchronous-commit")
        assert (line["state"], "role darkpearl_listener" in line["says"]) == ("fail", True)
        admin.execute("alter role darkpearl_listener reset synchronous_commit")
        admin.execute("alter system set full_page_writes = off")
        admin.execute("select pg_reload_conf()")

        async def is_off() -> bool:
            line = await ask("fsync")
            says: str = line["says"]
            return line["state"] == "fail" and says.startswith("full_page_writes off")

        await until(is_off)
        admin.execute("alter system reset all")
        admin.execute("select pg_reload_conf()")


async def test_a_prepared_transaction(ask: Ask, address: str) -> None:
    """Forgotten by whoever prepared it: told with the statements that end it, one of which does."""
    assert (await ask("prepared"))["state"] == "ok"
    with psycopg.connect(address, autocommit=True) as one:
        one.execute("begin; select from darkpearl.sagas for update; prepare transaction 'lost'")
        line = await ask("prepared")
        assert line["state"] == "fail"
        statement = line["mend"].partition(" or ")[2].partition(",")[0]
        one.execute(statement.encode())
    assert (await ask("prepared"))["state"] == "ok"


async def test_sessions_that_fill_the_server(ask: Ask, address: str) -> None:
    """A warning while there is some room, a failure when there is next to none, or none at all."""
    assert (await ask("connections"))["state"] == "ok"
    taken = [await psycopg.AsyncConnection.connect(address) for _ in range(13)]
    assert (await ask("connections"))["state"] == "warn"
    taken += [await psycopg.AsyncConnection.connect(address) for _ in range(3)]
    assert (await ask("connections"))["state"] == "fail"
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            taken.append(await psycopg.AsyncConnection.connect(address))
    assert (await ask("connection"))["mend"].startswith("End sessions")
    for each in taken:
        await each.close()


async def test_wal_that_is_not_archived(ask: Ask, address: str, until: Until) -> None:
    """A backup that has stopped is worse than an old one: told with the file that failed."""
    with psycopg.connect(address, autocommit=True) as admin:
        admin.execute("select pg_switch_wal()")

        async def failed() -> bool:
            line = await ask("backup")
            return bool(line["state"] == "fail" and "can't be archived" in line["says"])

        await until(failed)


async def test_autovacuum_that_is_off(ask: Ask) -> None:
    """For the whole server."""
    line = await ask("vacuum")
    assert (line["state"], line["says"]) == ("fail", "autovacuum is off for all tables")


async def test_a_page_that_is_broken(ask: Ask, address: str, home: Path) -> None:
    """What the disk has changed is found when it is read, and told from then on."""
    line = await ask("checksums")
    if "no checksums" in line["says"]:
        pytest.skip("a server before 18 has no checksums unless it is told to")
    with psycopg.connect(address, autocommit=True) as admin:
        admin.execute("create table broken as select generate_series(1, 1000) as n; checkpoint")
        found = admin.execute(
            "select current_setting('data_directory') || '/' || pg_relation_filepath('broken')"
        ).fetchone()
        assert found
    embedded.stop(embedded.running(home) or pytest.fail("it runs"))
    with open(found[0], "r+b") as file:  # noqa: ASYNC230, PTH123 - nobody waits
        file.seek(5000)
        file.write(b"broken")
    port = str(conninfo_to_dict(address)["port"])
    server = embedded.start(home, {**OPTIONS, "port": port})
    with psycopg.connect(server.url, autocommit=True) as admin:
        with pytest.raises(psycopg.errors.DataCorrupted):
            admin.execute("select count(*) from broken")
        admin.execute("drop table broken")
        admin.execute("select pg_stat_force_next_flush()")
    line = await ask("checksums")
    assert (line["state"], line["says"]) == ("fail", "1 pages were broken when they were read")
