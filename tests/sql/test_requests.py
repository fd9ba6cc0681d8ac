"""routines/70_requests.sql: whose keys they are, what is kept, and for how long."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from shop import Row, Shop

LogIn = Callable[[str], Awaitable[AsyncConnection[Row]]]
Ask = Callable[..., Awaitable[str | None]]

BEGIN = "select begin_request(%s, sha256('asked')) as first"
END = "select end_request(%s, sha256('asked'), %s)"
HOUR = 3600


@pytest.fixture
async def ask(log_in: LogIn) -> Ask:
    """Asks as the API does for a customer, and answers; what was answered before, if it was."""
    connection = await log_in("darkpearl_api")

    async def asked(
        customer: UUID | None, key: str, answer: str = "", role: str = "authenticated"
    ) -> str | None:
        async with connection.transaction():
            await connection.execute(f"set local role {role}".encode())
            claims = json.dumps({"sub": str(customer)}) if customer else ""
            await connection.execute("select set_config('request.jwt.claims', %s, true)", [claims])
            row = await (await connection.execute(BEGIN, [key])).fetchone()
            assert row
            if row["first"] is None:
                await connection.execute(END, [key, answer])
            first: str | None = row["first"]
            return first

    return asked


async def test_keys_are_the_callers_own(ask: Ask) -> None:
    """Each customer, and each role, has keys of its own: nobody is given another's answer."""
    alice, bob = uuid4(), uuid4()
    assert await ask(alice, "k", "hers") is None
    assert await ask(bob, "k", "his") is None
    assert await ask(None, "k", "nobody's") is None
    assert await ask(alice, "k", "staff's", "service_role") is None
    assert await ask(alice, "k") == "hers"
    assert await ask(bob, "k") == "his"
    assert await ask(None, "k") == "nobody's"
    assert await ask(alice, "k", role="service_role") == "staff's"


async def test_nobody_reads_or_writes_the_answers(shop: Shop) -> None:
    """The table is out of every role's reach but through the functions."""
    for role in ("service_role", "authenticated", "darkpearl_app", "darkpearl_reader"):
        async with shop.acting_as(role):
            for statement in ("select from", "delete from"):
                with shop.refused("42501"):
                    await shop.run(f"{statement} idempotency_keys")


async def test_a_key_stands_for_one_request(shop: Shop) -> None:
    """Under another hash it is refused, and the answer isn't told."""
    await shop.run(BEGIN, "k")
    await shop.run(END, "k", "secret")
    with shop.refused("DP036") as refusal:
        await shop.run("select begin_request('k', sha256('something else'))")
    assert "secret" not in refusal.detail


async def test_what_is_rolled_back_was_never_asked(shop: Shop, connect: Any) -> None:
    """An answer is kept with its effect or not at all."""
    connection = await connect("service_role", autocommit=False)
    for _ in range(2):
        assert await (await connection.execute(BEGIN, ["k"])).fetchone() == (None,)
        await connection.execute(END, ["k", "answer"])
        await connection.rollback()
    assert await shop.value("select count(*) from idempotency_keys") == 0


async def test_old_keys_are_forgotten(shop: Shop) -> None:
    """What is older than so many hours goes, a bounded number at a time; the rest stays."""
    for key in ("a", "b", "c"):
        await shop.run(END, key, "old")
    await shop.turn_clock(23 * HOUR)
    await shop.run(END, "d", "new")
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.value("select forget_idempotency_keys(24)") == 0
    await shop.turn_clock(2 * HOUR)
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.value("select forget_idempotency_keys(24, 2)") == 2
        assert await shop.value("select forget_idempotency_keys(24, 2)") == 1
        for arguments in ("0", "null", "24, 0", "24, null"):
            with shop.refused("DP015"):
                await shop.run(f"select forget_idempotency_keys({arguments})")
    assert await shop.values("select idempotency_key from idempotency_keys") == ["d"]


async def test_a_version_that_is_not_expected_is_refused(shop: Shop) -> None:
    """Any of those named will do; none of them, and none at all, raises and says what it is."""
    product = await shop.product()
    expect = "select expect_version(version, %s::bigint[]) from products where id = %s"
    await shop.run(f"{expect} for no key update", [3, 1], product)
    for expected in ([2, 3], []):
        with shop.refused("DP035") as refusal:
            await shop.run(expect, expected, product)
        assert "version 1" in refusal.detail


@pytest.mark.parametrize("table", ["products", "warehouses"])
async def test_an_edit_makes_the_next_version(shop: Shop, table: str) -> None:
    """One that changes something, by one, with its time; nobody sets the number."""
    await shop.product()
    rows = f"select version, updated_at from {table} limit 1"
    first = await shop.row(rows)
    await shop.run(f"update {table} set name = name")
    assert await shop.row(rows) == first
    await shop.run(f"update {table} set name = 'Changed', version = 77")
    second = await shop.row(rows)
    assert [first["version"], second["version"]] == [1, 2]
    assert second["updated_at"] > first["updated_at"]


async def test_a_shelf_counts_movements_and_edits(shop: Shop) -> None:
    """The version of an inventory row grows with its units, and with settings that change."""
    product = await shop.product(on_hand=1)

    async def version() -> int:
        found: int = await shop.value("select version from inventory")
        return found

    versions = [await version()]
    await shop.receive(product, 1)
    versions.append(await version())
    await shop.run("update inventory set reorder_point = 77")
    versions.append(await version())
    await shop.run("update inventory set reorder_point = 77")
    assert await version() == versions[-1]
    await shop.order((product, 1))
    await shop.advance()
    versions.append(await version())
    assert versions == list(range(versions[0], versions[0] + 4))


async def test_an_answer_is_found_without_asking_again(ask: Ask, shop: Shop) -> None:
    """Who looks where a request was made finds its answer, and begins nothing by that."""
    async with shop.acting_as("service_role"):
        find = "select find_request('k', sha256('asked'))"
        assert await shop.value(find) is None
        assert await shop.value(find) is None
        await shop.run(END, "k", "the answer")
        assert await shop.value(find) == "the answer"
        with shop.refused("DP036"):
            await shop.run("select find_request('k', sha256('something else'))")
    assert await ask(uuid4(), "k") is None


async def test_a_name_that_is_taken_names_its_law(shop: Shop) -> None:
    """An id and a reference of an order are told, whoever asks; others are free."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1), p_particulars='{"reference": "A-1"}')
    query = "select law_of_names(%s, %s)"
    async with shop.acting_as("authenticated"):
        assert await shop.value(query, order, "A-2") == "orders_pkey"
        assert await shop.value(query, uuid4(), "A-1") == "order_particulars_reference_is_unique"
        assert await shop.value(query, uuid4(), "A-2") is None
        assert await shop.value(query, None, None) is None
