"""routines/10_base.sql: the clock, ids, who acts, and history that refuses changes."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from shop import Shop

LogIn = Callable[[str], Awaitable[AsyncConnection[Any]]]

HISTORIES = ["stock_movements", "saga_events", "order_items", "payments", "orders"]


@pytest.fixture
async def history(shop: Shop) -> UUID:
    """An order that left a row in every table of history."""
    product = await shop.product(on_hand=5)
    return await shop.fulfilled((product, 2))


async def test_the_clock_is_the_servers(shop: Shop) -> None:
    """Unless a test turns it, the clock tells the time of the server, also within a transaction."""
    await shop.run("begin")
    first = await shop.row("select clock() as ours, clock_timestamp() as theirs")
    second = await shop.row("select clock() as ours, clock_timestamp() as theirs")
    await shop.run("commit")
    assert first["ours"] <= first["theirs"] <= second["ours"] <= second["theirs"]


async def test_every_time_stamp_reads_the_clock(shop: Shop) -> None:
    """A day turned forward shows in every row that is written, in whichever table."""
    await shop.turn_clock(86400)
    await shop.run("update warehouses set name = 'Lisboa' where id = %s", shop.lisbon)
    product = await shop.product(on_hand=5)
    await shop.fulfilled((product, 1))
    for table, column in [
        ("products", "created_at"),
        ("warehouses", "updated_at"),
        ("inventory", "updated_at"),
        ("stock_movements", "created_at"),
        ("orders", "created_at"),
        ("orders", "updated_at"),
        ("payments", "created_at"),
        ("payments", "updated_at"),
        ("sagas", "created_at"),
        ("sagas", "updated_at"),
        ("saga_events", "created_at"),
    ]:
        late = f"select max({column}) > now() + interval '23 hours' from {table}"
        assert await shop.value(late), f"{table}.{column}"


async def test_ids_are_version_seven_and_sort_by_time(shop: Shop) -> None:
    """Ids made one after another are unique, of version 7 and variant 1, and sort as made."""
    made = await shop.values("select new_id() from generate_series(1, 2000)")
    assert {(each.version, each.variant) for each in made} == {(7, "specified in RFC 4122")}
    assert len(set(made)) == 2000
    milliseconds = [each.int >> 80 for each in made]
    assert milliseconds == sorted(milliseconds)
    now = await shop.value("select extract(epoch from clock()) * 1000")
    assert abs(milliseconds[-1] - now) < 5000


@pytest.mark.parametrize("role", ["darkpearl_app", "darkpearl_reader", "darkpearl_listener"])
async def test_claims_of_other_logins_are_not_believed(log_in: LogIn, role: str) -> None:
    """Who isn't the API's login signs as itself and is no customer, whatever claims it sets."""
    connection = await log_in(role)
    claims = json.dumps({"sub": str(uuid4())})
    await connection.execute("select set_config('request.jwt.claims', %s, false)", [claims])
    row = await (await connection.execute("select current_actor(), current_customer()")).fetchone()
    assert row == {"current_actor": role, "current_customer": None}


async def test_a_superusers_claims_are_not_believed_either(shop: Shop) -> None:
    """Taking on the API's role is not logging in as it."""
    await shop.run("select set_config('request.jwt.claims', %s, false)", '{"sub": "eve"}')
    async with shop.acting_as("darkpearl_api"):
        assert await shop.value("select current_actor()") != "eve"
        assert await shop.value("select current_customer()") is None


async def test_claims_of_the_api_are_believed(log_in: LogIn) -> None:
    """The API's sessions act for the subject of the token, who is a customer if that's its role."""
    connection = await log_in("darkpearl_api")
    ask = "select current_actor() as actor, current_customer() as customer"

    async def told(claims: str) -> Any:
        await connection.execute("select set_config('request.jwt.claims', %s, false)", [claims])
        return await (await connection.execute(ask)).fetchone()

    subject = uuid4()
    row = await (await connection.execute(ask)).fetchone()
    assert row == {"actor": "darkpearl_api", "customer": None}
    token = json.dumps({"sub": str(subject)})
    for role, customer in (
        ("none", None),
        ("anon", None),
        ("service_role", None),
        ("authenticated", str(subject)),
    ):
        await connection.execute("select set_config('role', %s, false)", [role])
        assert await told(token) == {"actor": str(subject), "customer": customer}
    nobody = {"actor": "darkpearl_api", "customer": None}
    assert await told("") == nobody
    assert await told("{}") == nobody
    assert await told('{"sub": ""}') == nobody


async def test_a_refusal_says_all_it_was_given(shop: Shop) -> None:
    """What is refused comes with its SQLSTATE, message, detail and hint, percent signs included."""
    with pytest.raises(psycopg.Error) as told:
        await shop.run("select refuse('DP015', 'more than 100 %', '101 %.', 'Use %s.')")
    said = told.value.diag
    assert (said.sqlstate, said.message_primary) == ("DP015", "more than 100 %")
    assert (said.message_detail, said.message_hint) == ("101 %.", "Use %s.")


@pytest.mark.parametrize("change", ["update {} set warehouse_id = warehouse_id", "delete from {}"])
@pytest.mark.parametrize("table", ["stock_movements", "saga_events", "order_items"])
async def test_history_refuses_change(shop: Shop, history: UUID, table: str, change: str) -> None:
    """Rows of history are neither updated nor deleted, by a superuser no more than by others."""
    assert history
    before = await shop.rows(f"select * from {table}")
    with shop.refused("DP005"):
        await shop.run(change.format(table))
    assert await shop.rows(f"select * from {table}") == before != []


@pytest.mark.parametrize("table", ["orders", "payments"])
async def test_documents_refuse_removal(shop: Shop, history: UUID, table: str) -> None:
    """An order and its payment are never deleted."""
    assert history
    with shop.refused("DP005"):
        await shop.run(f"delete from {table}")


@pytest.mark.parametrize("table", HISTORIES)
async def test_history_refuses_truncate(shop: Shop, history: UUID, table: str) -> None:
    """TRUNCATE is refused as DELETE is, also when it comes with CASCADE."""
    assert history
    with shop.refused("DP005"):
        await shop.run(f"truncate {table} cascade")


@pytest.mark.parametrize(
    "change", ["update {} set message = 'else'", "delete from {}", "truncate {}"]
)
async def test_a_partition_of_events_refuses_change(shop: Shop, history: UUID, change: str) -> None:
    """Addressing a partition goes round no guard."""
    partition = await shop.value(
        "select distinct tableoid::regclass::text from saga_events where saga_id = %s", history
    )
    assert partition != "saga_events"
    with shop.refused("DP005"):
        await shop.run(change.format(partition))


async def test_a_partition_made_later_refuses_change(shop: Shop) -> None:
    """What housekeeping adds is guarded like what was there from the start."""
    await shop.turn_clock(400 * 86400)
    (partition, *_) = await shop.values("select ensure_event_partitions()")
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    assert await shop.value(f"select count(*) > 0 from {partition}")
    for change in ["update {} set message = 'else'", "delete from {}", "truncate {}"]:
        with shop.refused("DP005"):
            await shop.run(change.format(partition))
