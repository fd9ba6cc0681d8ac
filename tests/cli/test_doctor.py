"""`darkpearl doctor`: each trouble is made to happen, found, and told with its mend."""

import asyncio
import json
import re
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bouncer import IGNORES, Pooled, needs_pgbouncer
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from shop import APPROVED, DECLINED, PENDING, Shop
from terminal import Ask, Run

from darkpearl import doctor, schema
from darkpearl.doctor import check as checks
from darkpearl.doctor.check import Patient, Verdict

DAY = 86_400
HERE = Path(__file__).parent
Until = Callable[..., Awaitable[None]]
Connect = Callable[..., Awaitable[AsyncConnection[Any]]]


def test_every_check_is_tried() -> None:
    """Each trouble is made to happen in a test, here or over cells: no check goes without."""
    files = [*HERE.glob("test_doctor*.py"), HERE.parent / "cells/test_examined.py"]
    tried = "".join(path.read_text() for path in files)
    asked = set(re.findall(r'ask\("([a-z-]+)"\)', tried))
    names = {doctor.name_of(each) for each in (*doctor.CHECKS, *doctor.CELLS, *doctor.DEEP)}
    assert names - asked == {"drift"}  # this one has a test of its own below


def test_the_run_book_has_a_section_for_every_check() -> None:
    """docs/operations.md tells of each line what it says when it is fine, and in their order."""
    page = (HERE.parents[1] / "docs/operations.md").read_text()
    book = page.split("\n## Run book\n")[1].split("\n## ")[0]
    sections = re.findall(r"^### (\S+)\n\n(.+?)$", book, re.MULTILINE)
    told = [
        (doctor.name_of(each), each.__doc__)
        for each in (*doctor.CHECKS, *doctor.CELLS, *doctor.DEEP)
    ]
    assert sections == told


async def test_all_of_a_system_is_asked(run: Run, shop: Shop, database_url: str) -> None:
    """A line for each check in their order; of a new database nothing but what is so here."""
    await schema.migrate(database_url)  # a copy is another database
    done = await run("doctor", "--json")
    assert [line["check"] for line in done.rows] == [doctor.name_of(one) for one in doctor.CHECKS]
    wrong = {line["check"]: line["state"] for line in done.rows if line["state"] != "ok"}
    unsafe = await shop.value("select current_setting('fsync')") == "off"
    assert wrong == {
        **({"fsync": "fail", "synchronous-commit": "fail"} if unsafe else {}),
        "listeners": "fail",
        "backup": "warn",
        "audit": "warn",
        "housekeeping": "warn",
    }
    assert done.code == 1
    assert all(line["mend"] for line in done.rows if line["state"] != "ok")
    plain = await run("doctor", "--quiet")
    assert plain.code == 1
    lines = plain.said.splitlines()
    assert len(lines) == len(wrong) + 1
    told = r"^fail +listeners +none is alive.* -> darkpearl listener$"
    assert re.search(told, plain.said, re.MULTILINE)
    assert (
        lines[-1]
        == f"{list(wrong.values()).count('fail')} fail, 3 warn, {len(done.rows) - len(wrong)} ok"
    )
    assert (await run("doctor", "--only", "version")).code == 0
    assert (await run("doctor", "--only", "nothing")).code == 2


async def test_a_reader_may_ask_all_of_it(
    run: Run, shop: Shop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What darkpearl_reader isn't shown is said to be so, and no check breaks for it."""
    await schema.migrate(database_url)
    await shop.run("alter role darkpearl_reader password 'of tests alone'")
    reader = make_conninfo(database_url, user="darkpearl_reader", password="of tests alone")
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", reader)
    monkeypatch.setenv("DARKPEARL_API_DATABASE_URL", database_url)
    monkeypatch.setenv("DARKPEARL_LISTENER_DATABASE_URL", database_url)
    done = await run("doctor", "--json")
    lines = {line["check"]: line for line in done.rows}
    assert len(lines) == len(doctor.CHECKS)
    assert "can't be asked" not in done.said
    hidden = {name for name, line in lines.items() if "this login may not" in line["says"]}
    assert hidden == {"migrations", "routines", "disk"}
    assert lines["login"]["says"] == "darkpearl_reader doesn't see what other sessions do"


async def test_no_database_is_said_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line fails, no other is asked, and the exit code is 2."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    done = await run("doctor", "--json")
    (line,) = done.rows
    assert (done.code, line["check"], line["state"]) == (2, "connection", "fail")
    assert "DARKPEARL_DATABASE_URL" in line["mend"]
    assert done.errors.count("\n") == 1


async def test_a_server_that_says_nothing_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that takes connections and answers none keeps the doctor for as long as a check."""
    monkeypatch.setattr("darkpearl.cli.doctor.CHECK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("DARKPEARL_DATABASE_URL", f"postgresql://127.0.0.1:{port}/none")
        began = time.monotonic()
        done = await run("doctor", "--json")
        assert time.monotonic() - began < 5
        assert (done.code, done.rows[0]["says"]) == (2, "no answer within 0.5 s")


async def test_a_check_that_hangs_keeps_no_other(database_url: str) -> None:
    """Nor does one that breaks, or that won't be cancelled: each is a failure of its own."""

    async def fine(_: Patient) -> Verdict:
        """The first."""
        return checks.ok("fine")

    async def hangs(patient: Patient) -> Verdict:
        """In the database, and again when it is told to stop."""
        try:
            await patient.row("select pg_sleep(60)")
        finally:
            await asyncio.sleep(60)
        return checks.ok("never")

    async def breaks(_: Patient) -> Verdict:
        """It is wrong."""
        raise ZeroDivisionError

    patient = Patient(database_url, database_url, database_url, None, False, False)  # type: ignore[arg-type]  # noqa: FBT003
    began = time.monotonic()
    found = [
        each async for each in doctor.examine(patient, (fine, hangs, breaks, fine), seconds=0.3)
    ]
    assert time.monotonic() - began < 5
    assert [(each.check, each.state) for each in found] == [
        ("fine", "ok"),
        ("hangs", "fail"),
        ("breaks", "fail"),
        ("fine", "ok"),
    ]
    assert found[1].says == "no answer within 0.3 s"
    assert "ZeroDivisionError" in found[2].says


async def test_who_may_not_read_is_told(
    run: Run, shop: Shop, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login in no role of ours finds out by its own line, with the grant that mends it."""
    await shop.run("alter role darkpearl_listener password 'of tests alone'")
    url = make_conninfo(database_url, user="darkpearl_listener", password="of tests alone")
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", url)
    done = await run("doctor", "--json", "--only", "login")
    line = done.rows[1]
    assert (line["check"], line["state"]) == ("login", "fail")
    assert "grant darkpearl_reader to darkpearl_listener" in line["mend"]


async def test_logins_of_the_processes(
    ask: Ask, database_url: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the setting that is to be corrected."""
    assert (await ask("login"))["state"] == "ok"
    assert (await ask("listener-login"))["state"] == (await ask("api-login"))["state"] == "ok"
    await shop.run("alter role darkpearl_reader password 'of tests alone'")
    wrong = make_conninfo(database_url, user="darkpearl_reader", password="of tests alone")
    monkeypatch.setenv("DARKPEARL_API_DATABASE_URL", wrong)
    monkeypatch.setenv("DARKPEARL_LISTENER_DATABASE_URL", wrong)
    for check, setting in (("listener-login", "LISTENER"), ("api-login", "API")):
        line = await ask(check)
        assert (line["state"], f"DARKPEARL_{setting}_DATABASE_URL" in line["mend"]) == (
            "fail",
            True,
        )
    assert (await ask("api-login"))["says"].startswith("not as darkpearl_api")


async def test_a_server_that_is_too_new(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that this release was never tried with; made so by knowing only older ones."""
    assert (await ask("version"))["state"] == "ok"
    monkeypatch.setattr("darkpearl.doctor.server.NEWEST_SERVER", 14)
    assert (await ask("version"))["state"] == "warn"


async def test_a_server_that_cannot_be_written_to(ask: Ask, shop: Shop) -> None:
    """By its setting."""
    assert (await ask("writable"))["state"] == "ok"
    name = await shop.value("select current_database()")
    await shop.run(f"alter database {name} set default_transaction_read_only = on")
    assert (await ask("writable"))["says"] == "default_transaction_read_only is on"


async def test_clocks_that_are_apart(ask: Ask, shop: Shop) -> None:
    """By seconds a warning, by minutes a failure; and one that was set back."""
    assert (await ask("clocks"))["state"] == "ok"
    await shop.order((await shop.product(on_hand=1), 1))
    await shop.turn_clock(-3)
    assert "was set back" in (await ask("clocks"))["says"]
    await shop.turn_clock(33)
    assert (await ask("clocks"))["state"] == "warn"
    await shop.turn_clock(70)
    line = await ask("clocks")
    assert (line["state"], "100 s apart" in line["says"]) == ("fail", True)


async def test_hidden_statistics(ask: Ask, shop: Shop) -> None:
    """The planner has to guess: told with the statement that mends it, which does."""
    assert (await ask("statistics"))["state"] == "ok"
    await shop.run("alter function pg_catalog.enum_eq(anyenum, anyenum) not leakproof")
    line = await ask("statistics")
    assert line["state"] == "warn"
    await shop.run(line["mend"].partition(";")[0])
    assert (await ask("statistics"))["state"] == "ok"


async def test_migrations(ask: Ask, shop: Shop) -> None:
    """Pending ones, and those of a newer release."""
    assert (await ask("migrations"))["state"] == "ok"
    books = "darkpearl_migrations._yoyo_migration"
    await shop.run(f"update {books} set migration_id = '9999.of-the-future'")
    line = await ask("migrations")
    assert (line["state"], "9999.of-the-future" in line["says"]) == ("fail", True)
    await shop.run(f"delete from {books}")
    line = await ask("migrations")
    assert (line["state"], line["mend"]) == ("fail", "darkpearl db migrate")


async def test_routines(ask: Ask, shop: Shop, run: Run) -> None:
    """Of a copy, or changed by hand: db migrate puts them right."""
    assert (await run("db", "migrate")).code == 0
    assert (await ask("routines"))["state"] == "ok"
    await shop.run("grant select on payment_tokens to darkpearl_app")
    line = await ask("routines")
    assert (line["state"], line["mend"]) == ("fail", "darkpearl db migrate")
    assert (await run("db", "migrate")).code == 0
    assert (await ask("routines"))["state"] == "ok"


async def test_an_index_that_is_not_whole(ask: Ask, shop: Shop) -> None:
    """As one whose building has failed leaves it."""
    assert (await ask("indexes"))["state"] == "ok"
    product = await shop.product(on_hand=9)
    for _ in range(2):
        await shop.order((product, 1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        await shop.run("create unique index concurrently broken on orders (currency)")
    line = await ask("indexes")
    assert (line["state"], line["says"]) == ("fail", "not valid: broken")


async def test_tables_that_were_changed_by_hand(run: Run, shop: Shop) -> None:
    """Compared with a database that is made for it, when it is asked for."""
    await shop.run("drop index sagas_troubles_idx; alter table orders disable trigger user")
    done = await run("doctor", "--json", "--only", "drift")
    line = done.rows[-1]
    assert (line["check"], line["state"]) == ("drift", "fail")
    told = await run("doctor", "--deep", "--quiet", "--only", "version")
    assert "without index sagas_troubles_idx" in told.said
    await shop.run("alter table orders enable trigger user")
    await shop.run(
        "create index sagas_troubles_idx on sagas (status, id)"
        " where status in ('compensated', 'stuck')"
    )
    assert (await run("doctor", "--json", "--only", "drift")).rows[-1]["says"] == "none"


async def listens(shop: Shop, name: str, **more: str) -> None:
    """A listener says that it is there."""
    said = {"version": "0.2.0", "gateway": "mock", "breaker": "closed", "activity": "idle"} | more
    async with shop.acting_as("darkpearl_listener"):
        await shop.run(
            "select report_listener(new_id(), %s, 7, %s, %s, %s::breaker_state, %s, 0)",
            *(name, said["version"], said["gateway"], said["breaker"], said["activity"]),
        )


async def test_listeners(ask: Ask, run: Run, shop: Shop) -> None:
    """None is a failure; one that fell silent a warning; one alive is fine."""
    assert (await ask("listeners"))["state"] == "fail"
    assert (await ask("silent-listeners"))["state"] == "ok"
    await listens(shop, "one")
    assert (await ask("listeners"))["says"] == "1: one 7"
    await shop.turn_clock(60)
    assert (await ask("listeners"))["state"] == "fail"
    await listens(shop, "two")
    line = await ask("silent-listeners")
    assert (line["state"], line["says"]) == ("warn", "not heard of any more: one 7, for 60 s")
    assert "kill -9 7 on one" in line["mend"]
    *command, _ = line["mend"].partition("darkpearl ")[2].split()
    assert (await run(*command, "it is replaced")).code == 0
    assert (await ask("silent-listeners"))["state"] == "ok"


async def test_listeners_that_get_nothing_done(ask: Ask, shop: Shop) -> None:
    """Some of them are a warning, all of them a failure, with what the database said."""
    await listens(shop, "one", activity="backing off: database: no space left on device")
    line = await ask("listeners")
    told = "each pass fails of one 7 of 1: backing off: database: no space left on device"
    assert (line["state"], line["says"]) == ("fail", told)
    await listens(shop, "two")
    assert (await ask("listeners"))["state"] == "warn"


async def test_listeners_of_different_minds(ask: Ask, shop: Shop) -> None:
    """Another version; another gateway; a gateway that answers some, or none."""
    await listens(shop, "one")
    assert (await ask("listener-versions"))["state"] == "ok"
    assert (await ask("listener-gateways"))["state"] == "ok"
    await listens(shop, "two", version="0.1.9", breaker="open")
    assert "two 7 of 0.1.9" in (await ask("listener-versions"))["says"]
    assert (await ask("listener-gateways"))[
        "says"
    ] == "the gateway doesn't answer two 7, but others"
    await shop.run("update listeners set breaker = 'half_open'")
    assert (await ask("listener-gateways"))["says"] == "the gateway answers none of 2 listeners"
    await listens(shop, "three", gateway="stripe")
    assert "different gateways: mock, stripe" in (await ask("listener-gateways"))["says"]


@needs_pgbouncer
async def test_a_pooler_between(ask: Ask, pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in transaction mode loses what listeners listen to; one in session mode doesn't."""
    assert (await ask("pooler"))["state"] == "ok"
    for mode, state in (("transaction", "fail"), ("session", "ok")):
        for ignores in IGNORES.values():
            async with pooled(mode, ignores) as url:
                monkeypatch.setenv("DARKPEARL_LISTENER_DATABASE_URL", url)
                assert (await ask("pooler"))["state"] == state, (mode, ignores)


async def test_the_bell(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard; made deaf by not waiting for it, it is a failure."""
    assert (await ask("bell"))["state"] == "ok"
    monkeypatch.setattr("darkpearl.doctor.listening.SLOW_BELL_SECONDS", 0.0)
    assert (await ask("bell"))["state"] == "warn"
    monkeypatch.setattr("darkpearl.doctor.listening.BELL_SECONDS", 0.0)
    assert (await ask("bell"))["state"] == "fail"


async def test_a_forgotten_idle_lock(ask: Ask, run: Run, connect: Connect) -> None:
    """Held by a session that is no listener: told with its pid, ended by the command it names."""
    assert (await ask("idle-lock"))["state"] == "ok"
    forgotten = await connect(application_name="a console")
    await forgotten.execute("select pg_advisory_lock(idle_lock_key())")
    line = await ask("idle-lock")
    assert (line["state"], "a console" in line["says"]) == ("warn", True)
    assert (await run(*line["mend"].split()[1:])).code == 0
    assert (await ask("idle-lock"))["state"] == "ok"


async def test_stuck_sagas(ask: Ask, shop: Shop) -> None:
    """By step and cause, with how many."""
    assert (await ask("stuck"))["state"] == "ok"
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order, sqlstate="P0001")
    await shop.advance()
    line = await ask("stuck")
    assert (line["state"], line["says"]) == ("fail", "1 at reserve_stock (poison)")


async def test_work_that_waits(ask: Ask, shop: Shop) -> None:
    """For half a minute a warning, for minutes a failure; and what is under way for a week."""
    assert (await ask("ready"))["state"] == (await ask("oldest-unfinished"))["state"] == "ok"
    await shop.order((await shop.product(on_hand=1), 1))
    assert (await ask("ready"))["state"] == (await ask("oldest-unfinished"))["state"] == "ok"
    await shop.turn_clock(60)
    assert (await ask("ready"))["state"] == "warn"
    await shop.turn_clock(600)
    line = await ask("ready")
    assert (line["state"], line["says"]) == ("fail", "1 sagas, the oldest for 11 minutes")
    await shop.turn_clock(8 * DAY)
    line = await ask("oldest-unfinished")
    assert (line["state"], line["says"]) == ("warn", "at reserve_stock for 8 days")


async def test_plans_that_nobody_ends(ask: Ask, shop: Shop) -> None:
    """Sagas of a week ago that follow a plan which was replaced."""
    await shop.order((await shop.product(on_hand=1), 1))
    await shop.run(
        "insert into saga_steps select n.* from saga_steps as s, jsonb_populate_record(s,"
        " jsonb_build_object('plan_version', s.plan_version + 1)) as n"
        " where s.saga_type = 'order_fulfilment' and s.plan_version ="
        " (select max(plan_version) from saga_steps where saga_type = 'order_fulfilment')"
    )
    assert (await ask("plan-versions"))["state"] == "ok"
    await shop.turn_clock(8 * DAY)
    line = await ask("plan-versions")
    assert (line["state"], line["says"].startswith("1 of order_fulfilment ")) == ("warn", True)


async def test_parcels_that_nobody_packs(ask: Ask, shop: Shop) -> None:
    """Orders that have waited for longer than their step may."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    await shop.order((await shop.product(on_hand=1), 1))
    await shop.settle(await shop.advance(), APPROVED)
    assert (await ask("parcels"))["says"] == "1 wait"
    await shop.turn_clock(40 * DAY)
    line = await ask("parcels")
    assert (line["state"], line["says"]) == ("warn", "1 orders have waited for too long")


async def test_the_gateway(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mock where money is meant; one that is away; a setting that is wrong."""
    assert (await ask("gateway"))["state"] == "ok"
    monkeypatch.setenv("DARKPEARL_ENVIRONMENT", "production")
    assert (await ask("gateway"))["says"] == "it is the mock: nobody is charged"
    monkeypatch.delenv("DARKPEARL_ENVIRONMENT")
    monkeypatch.setenv("DARKPEARL_GATEWAY", "http")
    monkeypatch.setenv("DARKPEARL_GATEWAY_URL", "http://127.0.0.1:9")
    line = await ask("gateway")
    assert (line["state"], line["says"].startswith("http doesn't answer: ")) == ("fail", True)
    monkeypatch.delenv("DARKPEARL_GATEWAY_URL")
    assert "DARKPEARL_GATEWAY_URL" in (await ask("gateway"))["says"]


async def test_a_forgotten_pause(ask: Ask, run: Run, shop: Shop) -> None:
    """Until when, by whom and why; and the command that ends it does."""
    assert (await ask("pause"))["state"] == "ok"
    await run("gateway", "pause", 3600, "--reason", "maintenance")
    line = await ask("pause")
    assert line["state"] == "warn"
    assert line["says"].endswith(f"UTC, by {await shop.value('select session_user')} (maintenance)")
    await run(*line["mend"].replace("…", "it-is-over").split()[1:])
    assert (await ask("pause"))["state"] == "ok"


async def test_webhooks_of_the_gateway(
    ask: Ask, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a secret they are refused; with a wrong one none comes for those who wait."""
    assert (await ask("webhook-secret"))["state"] == "ok"
    monkeypatch.setenv("DARKPEARL_GATEWAY", "http")
    monkeypatch.setenv("DARKPEARL_GATEWAY_URL", "http://127.0.0.1:9")
    assert "is not set" in (await ask("webhook-secret"))["says"]
    monkeypatch.setenv("DARKPEARL_WEBHOOK_SECRET", "a secret of the tests")
    assert (await ask("webhook-secret"))["state"] == "ok"
    await shop.order((await shop.product(on_hand=1), 1))
    pending = PENDING | {"gateway": "http", "deadline_seconds": 100_000}
    await shop.settle(await shop.advance(), pending)
    assert (await ask("webhook-secret"))["says"] == "1 payments wait for one"
    await shop.turn_clock(1200)
    line = await ask("webhook-secret")
    assert (line["state"], "DARKPEARL_WEBHOOK_SECRET" in line["mend"]) == ("fail", True)


async def test_what_gateways_have_told(ask: Ask, shop: Shop) -> None:
    """Events that belong to nothing, and banks that want money back."""
    assert (await ask("unmatched"))["state"] == (await ask("disputes"))["state"] == "ok"
    await shop.told("none:of_ours", APPROVED, "evt_1")
    assert (await ask("unmatched"))["says"] == "1 of mock"
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    dispute = {"outcome": "disputed", "gateway": "mock", "dispute": "open", "reference": "dp_1"}
    dispute |= {"amount": "10.00", "currency": "USD", "code": "fraudulent"}
    assert await shop.told(f"{order}:process_payment", dispute) == "applied"
    assert (await ask("disputes"))["says"] == "1 open"


async def test_refunds_that_came_to_nothing(ask: Ask, shop: Shop) -> None:
    """Somebody waits for money."""
    assert (await ask("failed-refunds"))["state"] == "ok"
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    refund = (await shop.refund(order, 10))["id"]
    await shop.settle(await shop.advance(), APPROVED)
    await shop.told(f"{refund}:refund_payment", DECLINED)
    assert (await ask("failed-refunds"))["state"] == "fail"


async def test_endpoints_that_are_off(ask: Ask, run: Run, shop: Shop) -> None:
    """Which, and why; it is fine again when somebody has switched it on."""
    assert (await ask("webhook-endpoints"))["state"] == "ok"
    (made,) = (await run("webhooks", "add", "https://shop.example/hook", "--json")).rows
    await shop.run("update webhook_endpoints set is_enabled = false, off_because = 'gone'")
    assert (await ask("webhook-endpoints"))["says"] == "https://shop.example/hook: gone"
    await run("webhooks", "enable", made["id"])
    assert (await ask("webhook-endpoints"))["state"] == "ok"


async def test_reconciliation(ask: Ask, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never made, made with differences, made without, and made long ago."""
    assert (await ask("reconciliation"))["state"] == "ok"
    monkeypatch.setenv("DARKPEARL_GATEWAY", "http")
    monkeypatch.setenv("DARKPEARL_GATEWAY_URL", "http://127.0.0.1:9")
    assert (await ask("reconciliation"))["says"] == "never made"
    record = "select record_upkeep('reconciliation', p_detail => %s)"
    async with shop.acting_as("darkpearl_reader"):
        await shop.run(record, json.dumps({"differences": 2}))
    assert (await ask("reconciliation"))["state"] == "fail"
    await shop.run(record, json.dumps({"differences": 0}))
    assert (await ask("reconciliation"))["state"] == "ok"
    await shop.turn_clock(8 * DAY)
    assert (await ask("reconciliation"))["says"] == "8 days ago"
    with shop.refused("DP015"):
        await shop.run("select record_upkeep('a nap')")


async def test_a_session_that_blocks(
    ask: Ask, run: Run, shop: Shop, connect: Connect, until: Until, database_url: str
) -> None:
    """Who, what it holds and whom it blocks; ended by the command that is named."""
    await shop.product(on_hand=1)
    assert (await ask("blocking"))["state"] == "ok"
    waiter = await connect()
    holder = await AsyncConnection.connect(database_url, application_name="a console")
    await holder.execute("select from darkpearl.inventory for update")
    waiting = asyncio.create_task(waiter.execute("update inventory set reorder_point = 1"))

    async def waits() -> Any:
        return await shop.value("select count(*) from pg_locks where not granted")

    await until(waits)
    line = await ask("blocking")
    pid = holder.info.backend_pid
    assert line["state"] == "fail"
    assert f"pid {pid} (" in line["says"]
    assert f"holds inventory, blocks {waiter.info.backend_pid}" in line["says"]
    locks = (await run("db", "inspect", "locks", "--json")).rows
    assert [(row["pid"], row["blocks"]) for row in locks] == [(pid, [waiter.info.backend_pid])]
    ended = await run(*line["mend"].rpartition("darkpearl ")[2].split())
    assert (ended.code, ended.said) == (0, f"session {pid} is ended\n")
    await waiting
    await holder.close()
    assert (await ask("blocking"))["state"] == "ok"
    assert (await run("db", "end-session", pid)).code == 2


async def test_sessions_that_rest_in_a_transaction(
    ask: Ask, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that hold a snapshot; both after a time that is none here."""
    assert (await ask("idle-in-transaction"))["state"] == (await ask("snapshots"))["state"] == "ok"
    monkeypatch.setattr("darkpearl.doctor.sessions.IDLE_SECONDS", 0)
    monkeypatch.setattr("darkpearl.doctor.sessions.SNAPSHOT_SECONDS", 0)
    resting = await connect(application_name="a lunch")
    await resting.execute("begin isolation level repeatable read; select from orders")
    line = await ask("idle-in-transaction")
    assert (line["state"], "a lunch" in line["says"]) == ("warn", True)
    line = await ask("snapshots")
    assert (line["state"], "a lunch" in line["says"]) == ("warn", True)
    monkeypatch.setattr("darkpearl.doctor.sessions.IDLE_LIMIT_SECONDS", 0)
    assert (await ask("idle-in-transaction"))["state"] == "fail"


async def test_a_replication_slot_that_nobody_reads(ask: Ask, shop: Shop) -> None:
    """It keeps WAL."""
    assert (await ask("replication-slots"))["state"] == "ok"
    await shop.run("select pg_create_physical_replication_slot('forgotten', true)")
    try:
        line = await ask("replication-slots")
        assert (line["state"], line["says"].startswith("forgotten: nobody reads it")) == (
            "warn",
            True,
        )
    finally:
        await shop.run("select pg_drop_replication_slot('forgotten')")


async def test_the_notification_queue(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used of it, against bounds that are below nothing here."""
    assert (await ask("notification-queue"))["says"] == "0% used"
    monkeypatch.setattr("darkpearl.doctor.sessions.QUEUE_USED", 0.0)
    assert (await ask("notification-queue"))["state"] == "warn"


async def test_vacuum(ask: Ask, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched off for a table; or behind, by bounds that are low here."""
    assert (await ask("vacuum"))["state"] == "ok"
    await shop.run("alter table sagas set (autovacuum_enabled = off)")
    line = await ask("vacuum")
    assert (line["state"], line["says"]) == ("fail", "autovacuum is off for sagas")
    await shop.run("alter table sagas reset (autovacuum_enabled)")
    monkeypatch.setattr("darkpearl.doctor.storage.DEAD_ROWS", 1)
    await shop.product()
    for name in "abc":
        await shop.run("update products set name = %s", name)
    await shop.run("select pg_stat_force_next_flush()")
    line = await ask("vacuum")
    assert (line["state"], line["says"]) == ("warn", "dead rows: products 3")


async def test_transaction_ids(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a bound that is low here."""
    assert (await ask("wraparound"))["state"] == "ok"
    monkeypatch.setattr("darkpearl.doctor.storage.FREEZE_LIMIT", 0)
    assert (await ask("wraparound"))["state"] == "fail"


async def test_partitions(ask: Ask, shop: Shop) -> None:
    """Missing ahead, missing now, and events that came without."""
    assert (await ask("partitions"))["state"] == (await ask("default-partition"))["state"] == "ok"
    await shop.turn_clock(32 * DAY)
    assert (await ask("partitions"))["state"] == "warn"
    await shop.turn_clock(200 * DAY)
    assert (await ask("partitions"))["state"] == "fail"
    await shop.order((await shop.product(), 1))
    assert "events in saga_events_default" in (await ask("default-partition"))["says"]


async def test_the_disk(ask: Ask, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server on this machine; the disk is said to be as full as it never gets in a test."""
    assert str(conninfo_to_dict(database_url)["host"]) == "127.0.0.1"
    found = {0.5: "ok", 0.1: "warn", 0.01: "fail"}
    for share, state in found.items():
        usage = shutil._ntuple_diskusage(2**40, 0, int(2**40 * share))  # type: ignore[attr-defined]
        monkeypatch.setattr(
            "darkpearl.doctor.storage.shutil.disk_usage", lambda _, usage=usage: usage
        )
        line = await ask("disk")
        assert (line["state"], f"{share:.0%}" in line["says"]) == (state, True)


async def test_backups(ask: Ask, run: Run, shop: Shop) -> None:
    """None is noted, one is, and one is old."""
    assert (await ask("backup"))["says"] == "none was ever noted here"
    assert (await run("db", "backed-up", "--note", "nightly")).said == "noted\n"
    line = await ask("backup")
    assert (line["state"], line["says"].endswith("nightly")) == ("ok", True)
    await shop.turn_clock(3 * DAY)
    assert (await ask("backup"))["state"] == "warn"


async def test_audits(ask: Ask, run: Run, shop: Shop) -> None:
    """Never run, run, long ago, and with findings."""
    assert (await ask("audit"))["says"] == "never run"
    assert (await run("audit")).code == 0
    assert (await ask("audit"))["state"] == "ok"
    await shop.turn_clock(8 * DAY)
    assert (await ask("audit"))["state"] == "warn"
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    async with shop.unguarded():
        await shop.run("update orders set total_amount = 1 where id = %s", order)
    assert (await run("audit")).code == 1
    assert (await ask("audit"))["state"] == "fail"


async def test_housekeeping(ask: Ask, run: Run, shop: Shop) -> None:
    """What is to go and that nobody looks at."""
    await shop.run("update retention set keep_days = null")
    assert (await ask("housekeeping"))["state"] == "ok"
    await shop.run("update retention set keep_days = 400 where kind = 'gateway_events'")
    assert (await ask("housekeeping"))["says"] == "nobody has looked at gateway_events"
    assert (await run("retention", "apply")).code == 0
    assert (await ask("housekeeping"))["state"] == "ok"
