"""Backups that are taken under load, restored, and worked on: `make restore`.

A shop with orders under way, a listener and a payment service. A dump and a base backup are taken
while all of them work; then they go on, and end by SIGKILL. Each backup is restored to a server of
its own, the dump as of its beginning, the base backup to a moment after it; restore-check says what
is to be done, and the restored shop goes on beside a gateway whose books know more than it does.
"""

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from server import free_port
from storm import SECRET, Rows, Storm, disagreement
from terminal import Done, done

from darkpearl import embedded, schema
from darkpearl.embedded import wheel
from darkpearl.gateways import GatewayPayment
from darkpearl.gateways.http import HttpGateway

ORDERS = int(os.environ.get("DARKPEARL_TEST_RESTORE_ORDERS", "1000"))
PACE_SECONDS = 0.05
LOT = 5
LOST = 100_000
PATIENCE_SECONDS = 120
STALE = {"routines", "analysed", "statistics"}
"""What a dump may lack, and db after-restore puts right."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's user may pass through."""
    with tempfile.TemporaryDirectory(prefix="darkpearl-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
async def storm(folder: Path) -> AsyncIterator[Storm]:
    """A server that archives its WAL, with a shop."""
    archive = folder / "wal"
    archive.mkdir()
    wheel.account_for(folder).give(archive)
    options = {"archive_mode": "on", "archive_command": f"cp %p {archive}/%f"}
    with embedded.serve(folder / "home", options, exclusive=True, say=lambda _: None) as server:
        await schema.migrate(server.url)
        storm = Storm(folder / "home", server)
        await storm.rows("insert into warehouses (code, name) values ('A', 'A')")
        await storm.rows(
            "insert into products (sku, name, unit_price)"
            " select 'R' || n, 'P', 9.99 + n from generate_series(1, 40) as n"
        )
        await storm.rows(
            "select receive_stock(w.id, p.id, %s) from warehouses as w, products as p", ORDERS
        )
        yield storm


async def run(program: str, *arguments: str | Path, server: embedded.Server) -> None:
    """Run a program of PostgreSQL on a server, through its socket."""
    parts = conninfo_to_dict(server.socket_url())
    process = await asyncio.create_subprocess_exec(
        *(embedded.binaries() / program, *arguments),
        cwd="/",
        env={"PGHOST": str(server.run), "PGPORT": str(server.port), "PGUSER": str(parts["user"])},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def place_orders(storm: Storm, placed: list[UUID], is_over: asyncio.Event) -> None:
    """Orders of two lines, some at a time, until it is over."""
    products = [row["id"] for row in await storm.rows("select id from products order by sku")]
    warehouse = await storm.value("select id from warehouses")
    async with storm.session("darkpearl_app") as connection:
        while not is_over.is_set():
            ids = [uuid4() for _ in range(LOT)]
            async with connection.transaction():
                for at, each in enumerate(ids, len(placed)):
                    lines = [
                        {"product_id": str(products[(at + k) % 40]), "quantity": 1} for k in (0, 7)
                    ]
                    await connection.execute(
                        "select place_order(%s, %s, p_order_id => %s)",
                        [warehouse, json.dumps(lines), each],
                    )
            placed += ids
            await asyncio.sleep(PACE_SECONDS)


async def until(condition: Any) -> None:
    """Look again and again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what others do is looked at
            await asyncio.sleep(0.05)


async def backed_up(storm: Storm, folder: Path, gateway: tuple[str, ...]) -> datetime:
    """Take both backups under load; all that works is killed in the end. The moment to go to."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    placed: list[UUID] = []
    is_over = asyncio.Event()

    async def reached(number: float) -> None:
        async def is_there() -> bool:
            if placing.done():
                placing.result()
            return len(placed) >= number

        await until(is_there)

    async def one_is_paid() -> bool:
        return await storm.value(
            "select exists (select from orders as o inner join payments as p on p.order_id = o.id"
            " where o.created_at > %s and p.status = 'captured')",
            moment,
        )

    async with storm.process("paysim", "--port", str(port), *gateway):
        placing = asyncio.create_task(place_orders(storm, placed, is_over))
        async with storm.process("listener", DARKPEARL_GATEWAY_URL=url):
            await reached(ORDERS * 0.3)
            base = ("-D", folder / "base", "-X", "none", "-c", "fast")
            dump = ("-Fc", "-f", folder / "dump", "darkpearl")
            await asyncio.gather(
                run("pg_basebackup", *base, server=storm.server),
                run("pg_dump", *dump, server=storm.server),
            )
            await run(
                *("pg_dumpall", "--globals-only", "-f", folder / "roles"), server=storm.server
            )
            await reached(ORDERS * 0.7)
            moment: datetime = await storm.value("select clock_timestamp()")
            await reached(max(ORDERS, len(placed) + ORDERS * 0.3))
            await until(one_is_paid)  # which nobody knows of after the restore
            is_over.set()
            await placing
    last = await storm.value("select pg_walfile_name(pg_switch_wal())")

    async def is_archived() -> bool:
        return (folder / "wal" / last).exists()

    await until(is_archived)
    return moment


def check(url: str, gateway: str, *options: str) -> tuple[Done, dict[str, dict[str, Any]]]:
    """The lines of restore-check, by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DARKPEARL_DATABASE_URL", url)
        patch.setenv("DARKPEARL_GATEWAY", "http")
        patch.setenv("DARKPEARL_GATEWAY_URL", gateway)
        patch.setenv("DARKPEARL_WEBHOOK_SECRET", SECRET)
        asked = done(("restore-check", "--json", *options))
        if not options:
            assert done(("db", "after-restore", "--lost", LOST)).code == 0
    return asked, {line["check"]: line for line in asked.rows}


async def works_on(restored: Storm, folder: Path, began: datetime, stale: set[str]) -> None:
    """It is told what is wrong and lost; then every order ends, and each is paid once or not."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ledger = folder / f"ledger-{port}"
    for each in folder.glob("paysim.db*"):  # noqa: ASYNC240 - nobody waits
        shutil.copy(each, f"{ledger}{each.name.removeprefix('paysim.db')}")
    async with restored.process("paysim", "--port", str(port), "--ledger", str(ledger)):
        gateway = HttpGateway(url, webhook_secret=SECRET)

        async def answers() -> bool:
            try:
                return await anext(gateway.payments(began), None) is not None
            except Exception:  # noqa: BLE001 - it is only starting
                return False

        await until(answers)
        open_before = await restored.value("select count(*) from sagas where ready_at is not null")
        assert open_before > 0, "nothing was under way"
        _, lines = await asyncio.to_thread(check, restored.server.url, url)
        wrong = {name for name, line in lines.items() if line["state"] != "ok"}
        assert wrong - stale == {"payments"}
        _, lines = await asyncio.to_thread(check, restored.server.url, url, "--since", "2020-01-01")
        assert {name for name, line in lines.items() if line["state"] != "ok"} == {"payments"}
        theirs = await books(gateway, began)
        ours = {str(row["id"]) for row in await paid(restored)}
        lost = {key for key in theirs if key.partition(":")[0] not in ours and theirs[key].captured}
        assert lines["payments"]["says"].startswith(f"{len(lost)} of orders that are lost: ")

        async def all_ended() -> bool:
            return not await restored.value("select count(*) from sagas where ready_at is not null")

        async with restored.process("listener", DARKPEARL_GATEWAY_URL=url):
            await until(all_ended)
            await new_order(restored, all_ended)
        theirs = await books(gateway, began)
        await gateway.close()
    rows = await paid(restored)
    for row in rows:
        wrong_with = disagreement(row, theirs.pop(row["idempotency_key"], None))
        assert not wrong_with, (wrong_with, row, await restored.story(row["id"]))
    assert {key for key in theirs if theirs[key].captured} == lost
    assert await restored.rows("select * from audit") == []
    ended = sum(1 for row in rows if row["status"] in ("fulfilled", "cancelled"))
    assert ended == len(rows)
    print(  # noqa: T201
        f"\n{len(rows)} orders here, {open_before} under way; {len(lost)} lost ones were paid"
    )


async def new_order(restored: Storm, all_ended: Any) -> None:
    """An order that is placed afterwards has a number that nobody has had, and gets through."""
    lines = json.dumps(
        [{"product_id": await restored.value("select min(id::text) from products"), "quantity": 1}]
    )
    number = await restored.value(
        "select order_number from place_order((select id from warehouses), %s)", lines
    )
    assert number > LOST
    await until(all_ended)


async def paid(restored: Storm) -> Rows:
    """Every order with its payment."""
    return await restored.rows(
        "select p.*, o.id, o.status::text, o.total_amount"
        " from orders as o left join payments as p on p.order_id = o.id"
    )


async def books(gateway: HttpGateway, began: datetime) -> dict[str, GatewayPayment]:
    """The gateway's, by the names of its payments."""
    return {each.payment_key: each async for each in gateway.payments(began)}


@asynccontextmanager
async def serving(
    home: Path, meanwhile: Awaitable[None] | None = None, **options: str
) -> AsyncIterator[Storm]:
    """A server of its own on what is there; stopped at the end."""
    starting = asyncio.create_task(asyncio.to_thread(embedded.start, home, options))
    if meanwhile:
        await meanwhile
    server = await starting
    try:
        yield Storm(home, server)
    finally:
        embedded.stop(server)


async def test_restored_shops_go_on(storm: Storm, folder: Path) -> None:
    """No order that was restored is lost, done twice or charged twice; lost ones are told of."""
    began = datetime.now(UTC)
    paysim = ("--ledger", str(folder / "paysim.db"), "--latency-ms=200", "--decline-rate=0.1")
    moment = await backed_up(storm, folder, paysim)

    async with serving(a_home(folder, "dumped")) as restored:
        with_roles = ("-f", folder / "roles", "postgres")
        await run("psql", "-X", "-q", *with_roles, server=restored.server)
        await run(
            *("pg_restore", "--exit-on-error", "-d", "darkpearl", folder / "dump"),
            server=restored.server,
        )
        await works_on(restored, folder, began, STALE)

    home, port = recovering(folder, moment), str(free_port())
    async with serving(home, let_go_on(home, port), port=port) as restored:
        assert await restored.value("select max(created_at) from orders") <= moment
        assert await restored.value("select count(*) from orders") >= ORDERS * 0.6
        await works_on(restored, folder, began, {"analysed"})


def a_home(folder: Path, name: str) -> Path:
    """A home whose password is that of the server before: it comes with the roles."""
    (folder / name).mkdir(mode=0o711)
    shutil.copy(folder / "home" / "password", folder / name / "password")
    return folder / name


def recovering(folder: Path, moment: datetime) -> Path:
    """The home of a server that will recover the base backup, to a moment, and pause there."""
    home = a_home(folder, "recovered")
    (folder / "base").rename(home / "data")
    with (home / "data" / "postgresql.auto.conf").open("a") as settings:
        settings.write(
            f"restore_command = 'cp {folder}/wal/%f %p'\n"
            f"recovery_target_time = '{moment.isoformat()}'\n"
        )
    (home / "data" / "recovery.signal").touch()
    account = wheel.account_for(home)
    subprocess.run(["/bin/chown", "-R", account.name, home / "data"], check=True)
    return home


async def let_go_on(home: Path, port: str) -> None:
    """It is told that the server pauses at its target, and how it goes on."""
    password = (home / "password").read_text().strip()
    url = f"postgresql://darkpearl:{password}@127.0.0.1:{port}/darkpearl"

    async def is_paused() -> bool:
        try:
            async with await psycopg.AsyncConnection.connect(url) as connection:
                state = await connection.execute("select pg_get_wal_replay_pause_state()")
                return await state.fetchone() == ("paused",)
        except psycopg.OperationalError:
            return False

    await until(is_paused)
    _, lines = await asyncio.to_thread(check, url, "http://127.0.0.1:1", "--only", "recovery")
    assert lines["recovery"]["says"] == "the server is in recovery, and paused"
    statement = lines["recovery"]["mend"].rpartition(": ")[2].rstrip(".")
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement.encode())
