"""`darkpearl restore-check`: what a restore leaves wrong, made to happen, found, and mended."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection
from shop import Shop
from stand_in import StandIn
from terminal import Ask, Run

from darkpearl import database, doctor, schema
from darkpearl.doctor import restore
from darkpearl.gateways import GatewayPayment

HERE = Path(__file__).parent
Connect = Callable[..., Awaitable[AsyncConnection[Any]]]


class Books(StandIn):
    """A gateway whose list is what the test says."""

    def __init__(self, *listed: GatewayPayment) -> None:
        super().__init__()
        self.listed = listed

    async def payments(self, _: object) -> AsyncIterator[GatewayPayment]:
        for each in self.listed:
            yield each


@pytest.fixture
def ask(run: Run, shop: Shop) -> Ask:
    """Makes one check; its line."""

    async def of(check: str) -> dict[str, Any]:
        shop.audited = False  # troubles are made on purpose
        done = await run("restore-check", "--json", "--only", check)
        assert done.errors == ""
        return next(line for line in done.rows if line["check"] == check)

    return of


def test_every_check_is_tried() -> None:
    """Each trouble is made to happen in a test of this folder: no check goes without."""
    tried = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    asked = set(re.findall(r'ask\("([a-z-]+)"\)', tried))
    names = {doctor.name_of(each) for each in doctor.AFTER_RESTORE}
    whole_server = {"connection", "recovery"}  # of these the tests of a whole restore tell
    assert names - asked <= whole_server


def test_the_page_has_a_row_for_every_check() -> None:
    """docs/operations.md tells of each line what it says when it is fine, and in their order."""
    page = (HERE.parents[1] / "docs/operations.md").read_text()
    told = page.split("\n### Before listeners start\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \|", told, re.MULTILINE)
    assert rows == [(doctor.name_of(each), each.__doc__) for each in doctor.AFTER_RESTORE]


async def test_a_copy_is_told_what_it_lacks_and_is_right_afterwards(run: Run, shop: Shop) -> None:
    """Of a copy its routines are not taken for granted; db after-restore mends all there is."""
    await shop.fulfilled((await shop.product(on_hand=10), 2))
    before = await run("restore-check", "--json")
    assert [line["check"] for line in before.rows] == [
        doctor.name_of(each) for each in doctor.AFTER_RESTORE
    ]
    wrong = {line["check"]: line["state"] for line in before.rows if line["state"] != "ok"}
    assert wrong == {"routines": "fail", "analysed": "warn"}
    assert all(line["mend"] for line in before.rows if line["state"] != "ok")
    assert before.code == 1
    assert (await run("db", "after-restore")).code == 0
    after = await run("restore-check")
    assert (after.code, after.said.splitlines()[-1]) == (
        0,
        f"0 fail, 0 warn, {len(doctor.AFTER_RESTORE)} ok",
    )
    assert (await run("restore-check", "--quiet")).said.count("\n") == 1
    assert (await run("restore-check", "--only", "fsync")).code == 2


async def test_nothing_is_changed(shop: Shop, database_url: str, run: Run) -> None:
    """It asks in sessions that can't write, and no comparison of books is written down."""
    await schema.migrate(database_url)
    url = database.with_options(database_url, restore.SESSION)
    async with schema.connect(url) as connection:
        cursor = await connection.execute("show default_transaction_read_only")
        assert await cursor.fetchall() == [("on",)]
    count = "select count(*) from action_log"
    before = await shop.value(count)
    await run("restore-check")
    assert await shop.value(count) == before


async def test_no_database_is_said_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line fails, no other is asked, and the exit code is 2."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    done = await run("restore-check", "--json")
    (line,) = done.rows
    assert (done.code, line["check"], line["state"]) == (2, "connection", "fail")


async def test_numbers_that_would_be_given_again(ask: Ask, shop: Shop, run: Run) -> None:
    """Of rows that are here, of webhooks that were sent, of what was lost, as --lost says."""
    await shop.fulfilled((await shop.product(on_hand=10), 1))
    assert (await ask("counters"))["state"] == "ok"
    await shop.run("alter table orders alter order_number restart with 1")
    line = await ask("counters")
    assert (line["state"], line["says"]) == ("fail", "behind their tables: orders.order_number")
    assert (await run("db", "after-restore")).code == 0
    last = await shop.value("select pg_sequence_last_value('saga_events_id_seq')")
    await shop.run(
        "insert into webhook_endpoints (url, secret, position)"
        " values ('https://a.example', 's', %s)",
        last + 50,
    )
    assert "webhook_endpoints.position" in (await ask("counters"))["says"]
    assert (await run("db", "after-restore", "--lost", 1000)).code == 0
    line = await ask("counters")
    assert (line["state"], line["says"].partition(";")[0]) == (
        "ok",
        f"the next order is 1002, the next event {last + 50 + 1000 + 1}",
    )
    placed = await shop.order((shop.products[0], 1))
    assert await shop.value("select order_number from orders where id = %s", placed) == 1002


async def test_tables_and_roles_as_they_were(ask: Ask, shop: Shop) -> None:
    """Another owner's tables, and the roles that a restore on a new server lacks."""
    assert (await ask("owners"))["state"] == "ok"
    assert (await ask("roles"))["state"] == "ok"
    await shop.run("alter table action_log owner to current_user")
    line = await ask("owners")
    assert (line["state"], "--no-owner" in line["mend"]) == ("fail", True)


async def test_a_role_that_is_missing(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles are the server's, and in no dump of a database."""
    monkeypatch.setattr(restore, "_ROLES", (*restore._ROLES, "darkpearl_nobody"))
    line = await ask("roles")
    assert (line["state"], line["says"]) == ("fail", "darkpearl_nobody missing")


async def test_texts_that_sort_otherwise(ask: Ask, shop: Shop) -> None:
    """Indexes were made by the rules of another system: told with both of them."""
    assert (await ask("collation"))["state"] == "ok"
    await shop.run("update pg_database set datcollversion = '0' where datname = current_database()")
    assert (await ask("collation"))["state"] == "fail"


async def test_tables_that_the_planner_does_not_know(ask: Ask, shop: Shop) -> None:
    """Statistics are in no dump."""
    await shop.run("analyze")
    assert (await ask("analysed"))["state"] == "ok"
    await shop.run("delete from pg_statistic where starelid = 'warehouses'::regclass")
    line = await ask("analysed")
    assert (line["state"], line["says"]) == ("warn", "1 tables without statistics: warehouses")


async def test_a_subscription(ask: Ask, shop: Shop) -> None:
    """One that goes on writing here, or can't write to tables with row security, is a question."""
    assert (await ask("subscriptions"))["says"] == "none"
    login = f"subscriber_{uuid4().hex}"
    await shop.run(f"create role {login} superuser")
    try:
        await shop.run(
            "create subscription of_home connection 'host=nowhere' publication catalogue"
            " with (connect = false, slot_name = none)"
        )
        await shop.run(f"alter subscription of_home owner to {login}")
        await shop.run(f"alter role {login} nosuperuser")
        line = await ask("subscriptions")
        assert (line["state"], line["says"]) == (
            "fail",
            f"of_home of {login} can't write to tables with row security",
        )
    finally:
        await shop.run(f"alter role {login} superuser")
        await shop.run("drop subscription of_home")
        await shop.run(f"drop role {login}")


async def test_home_of_other_cells(ask: Ask, shop: Shop) -> None:
    """Their slots are on the server before: a copy is told whose home it would go on as."""
    assert (await ask("cells"))["says"] == "this is the only one"
    await shop.run("insert into cells (number, name, url) values (2, 'north', 'host=nowhere')")
    line = await ask("cells")
    assert (line["state"], line["says"]) == ("warn", "it is home of north; no slot here of north")
    await shop.run("update cells set removed_at = now() where number = 2")
    assert (await ask("cells"))["state"] == "ok"


async def test_somebody_who_is_at_work_already(ask: Ask, connect: Connect) -> None:
    """A listener that runs asks the gateway before anybody has decided anything."""
    assert (await ask("nobody-at-work"))["state"] == "ok"
    await connect(application_name="darkpearl listener")
    line = await ask("nobody-at-work")
    assert (line["state"], line["says"]) == ("warn", "sessions of darkpearl listener")


async def test_what_was_under_way(ask: Ask, shop: Shop) -> None:
    """Orders, and calls that were out: how many, how old, and what becomes of them."""
    assert (await ask("moment"))["says"] == "there is no order"
    assert (await ask("under-way"))["says"].startswith("0 sagas, 0 calls")
    product = await shop.product(on_hand=10)
    await shop.order((product, 1))
    await shop.advance()
    await shop.order((product, 1))
    assert (await ask("moment"))["says"].startswith("the last order is of ")
    assert (await ask("under-way"))["says"].startswith("2 sagas, 1 calls among them")


async def test_actions_on_many_that_go_on(ask: Ask, shop: Shop) -> None:
    """A batch that was under way then would go on now: told with how it is stopped."""
    assert (await ask("batches"))["says"] == "none"
    product = await shop.product(on_hand=10)
    await shop.order((product, 1))
    async with shop.acting_as("service_role"):
        await shop.rows("select * from cancel_orders('{}', 'all of them', false)")
    line = await ask("batches")
    assert (line["state"], line["says"]) == (
        "warn",
        "cancel_orders go on once listeners start",
    )
    statement = line["mend"].partition("select ")[2].rstrip(".")
    async with shop.acting_as("service_role"):
        await shop.run(f"select {statement}")
    assert (await ask("batches"))["state"] == "ok"


async def test_the_gateways_books(ask: Ask, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Money of lost orders is told by its key; calls without an answer are the listeners'."""
    product = await shop.product(on_hand=10)
    order = await shop.order((product, 1))
    await shop.advance()
    payment = await shop.payment(order)
    key, currency = payment["idempotency_key"], payment["currency"]

    def there(payment_key: str, captured: int) -> GatewayPayment:
        return GatewayPayment(
            payment_key=payment_key, reference="r", currency=currency, authorized=captured,
            captured=captured, refunded=0, voided=False, created_at=now,
        )  # fmt: skip

    now = await shop.value("select clock()")
    lost = f"{uuid4()}:process_payment"
    soon = f"{await shop.order((product, 1))}:process_payment"
    for listed, state, says in (
        ((there(key, 10),), "ok", "1 wait for an answer, which listeners ask for"),
        ((there(lost, 10),), "fail", f"1 of orders that are lost: {lost}; 1 wait for an answer"),
        ((there(soon, 10),), "ok", "2 wait for an answer, which listeners ask for"),
        ((there(lost, 0),), "ok", "1 wait for an answer, which listeners ask for"),
    ):
        books = Books(*listed)
        monkeypatch.setattr("darkpearl.cli.doctor.make_gateway", lambda _, books=books: books)
        line = await ask("payments")
        assert (line["state"], line["says"][: len(says)]) == (state, says)
    monkeypatch.undo()


async def test_a_gateway_without_books(ask: Ask) -> None:
    """The mock moves no money, and so nothing is missing."""
    assert (await ask("payments"))["says"] == "the mock, which keeps no books"


async def test_whom_a_copy_would_tell(ask: Ask, shop: Shop) -> None:
    """Receivers of production get what a copy of it does, unless somebody switches them off."""
    assert (await ask("webhooks"))["says"].startswith("0 endpoints are told")
    await shop.rows("select * from create_webhook_endpoint('https://a.example')")
    line = await ask("webhooks")
    assert (line["state"], "1 endpoints are told" in line["says"]) == ("warn", True)
    await shop.run("update webhook_endpoints set is_enabled = false")
    assert (await ask("webhooks"))["state"] == "ok"


async def test_answers_that_are_kept(ask: Ask, shop: Shop) -> None:
    """What was answered after the last of them is done again when it is sent again."""
    assert "no answer is kept" in (await ask("requests"))["says"]
    await shop.run("select end_request('key', sha256('what'), '{}')")
    assert (await ask("requests"))["says"].startswith("1 answers are kept, the last of ")


async def test_books_that_contradict_each_other(ask: Ask, shop: Shop) -> None:
    """A restore of another moment for some tables than for others: no listener may start."""
    product = await shop.product(on_hand=10)
    assert (await ask("books"))["state"] == "ok"
    async with shop.unguarded():
        await shop.run("update inventory set quantity_available = 9 where product_id = %s", product)
    assert (await ask("books"))["state"] == "fail"
