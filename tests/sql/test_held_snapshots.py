"""A snapshot that is held keeps every version of every row: what runs per order doesn't read them.

Entries and pages are counted, never seconds. Where the snapshot is held the clock stands still, but
when a test sets it.
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from psycopg import AsyncConnection
from shop import APPROVED, Shop

BEGAN = datetime.now(UTC)
LEFT_BEHIND = 2000
"""Entries of the claim's index that belong to no ready saga any more: more than are few."""
PACE_SECONDS = 0.04
"""Until the next look from the beginning after one that passed so many."""
CLAIM = "select advance(10)"


@pytest.fixture
async def held(shop: Shop, connect: Any) -> AsyncIterator[None]:
    """A report that has begun and doesn't end."""
    await set_clock(shop, 0)
    report = await connect(autocommit=False)
    await report.execute("set transaction isolation level repeatable read")
    await report.execute("select count(*) from sagas")
    yield
    await report.rollback()


async def set_clock(shop: Shop, seconds: float) -> None:
    """It is so many seconds after the beginning, until it is set again."""
    await shop.run(
        "create or replace function clock() returns timestamptz language sql volatile parallel safe"
        f" return timestamptz '{BEGAN}' + interval '{seconds} seconds'"
    )


async def writer_of(shop: Shop, connect: Any, product: UUID) -> AsyncConnection[Any]:
    """A session that has placed an order and not committed it."""
    writer: AsyncConnection[Any] = await connect(autocommit=False)
    await writer.execute(
        "select place_order(%s, jsonb_build_array("
        "jsonb_build_object('product_id', %s::uuid, 'quantity', 1)))",
        [shop.lisbon, product],
    )
    return writer


async def wear(shop: Shop, saga: UUID, times: int) -> None:
    """A saga has moved so often, and stands as it stood."""
    await shop.run(
        f"""
        do $$ begin
            for n in 1..{times} loop
                update darkpearl.sagas set ready_at = ready_at + interval '1 microsecond'
                where id = '{saga}';
                commit;
            end loop;
            update darkpearl.sagas set ready_at = ready_at - {times} * interval '1 microsecond'
            where id = '{saga}';
        end $$
        """
    )


async def wear_shelf(shop: Shop, product: UUID, times: int) -> None:
    """A unit has come to a shelf so often."""
    await shop.run(
        f"""
        do $$ begin
            for n in 1..{times} loop
                perform darkpearl.receive_stock('{shop.lisbon}', '{product}', 1);
                commit;
            end loop;
        end $$
        """
    )


async def read_by(shop: Shop, index: str, statement: str) -> int:
    """How many entries of an index a statement reads."""
    counter = f"select pg_stat_get_xact_tuples_returned('{index}'::regclass)"
    async with shop.connection.transaction():
        before = await shop.value(counter)
        await shop.run(statement)
        return int(await shop.value(counter)) - before


@pytest.mark.usefixtures("held")
async def test_a_claim_passes_what_is_dead_once(shop: Shop) -> None:
    """Of what sagas have left behind, a session's second claim reads nothing."""
    product = await shop.product(on_hand=10)
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await set_clock(shop, 2)
    assert await read_by(shop, "sagas_ready_idx", CLAIM) > LEFT_BEHIND
    await set_clock(shop, 2 + PACE_SECONDS / 2)
    assert await read_by(shop, "sagas_ready_idx", CLAIM) == 0
    last = await shop.order((product, 1))
    assert await read_by(shop, "sagas_ready_idx", CLAIM) == 1
    assert await shop.order_status(last) == "payment_processing"


async def place_at_once(shop: Shop, product: UUID, count: int) -> None:
    """So many orders, all ready since the same moment."""
    async with shop.connection.transaction():
        await shop.run(
            "insert into orders (warehouse_id) select %s from generate_series(1, %s)",
            *(shop.lisbon, count),
        )
        await shop.run(
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " select id, warehouse_id, %s, 1 from orders where total_amount = 0",
            product,
        )


@pytest.mark.usefixtures("held")
async def test_a_batch_goes_on_where_the_one_before_ended(shop: Shop) -> None:
    """Claims that come to their limit read each saga once, all ready since one moment."""
    product = await shop.product(on_hand=100)
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await set_clock(shop, 1)
    await place_at_once(shop, product, 60)
    read = []
    for n in range(4):
        await set_clock(shop, 3 + n / 1000)
        read.append(await read_by(shop, "sagas_ready_idx", "select advance(20)"))
    assert max(read[1:]) <= 21
    assert await shop.statuses() == {"payment_processing": 61}


@pytest.mark.usefixtures("held")
async def test_who_commits_within_a_second_is_claimed_at_once(shop: Shop, connect: Any) -> None:
    """Claims that began between an order's placing and its commit don't pass it by."""
    product = await shop.product(on_hand=10)
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await set_clock(shop, 10)
    writer = await writer_of(shop, connect, product)
    for seconds in (10.9, 10.91):
        await set_clock(shop, seconds)
        await shop.advance()
    await writer.commit()
    await set_clock(shop, 10.92)
    await shop.advance()
    assert shop.claimed == 1


@pytest.mark.usefixtures("held")
async def test_who_commits_late_is_found_from_the_beginning(shop: Shop, connect: Any) -> None:
    """A saga that was ready long before it could be seen is claimed when the next look is due."""
    product = await shop.product(on_hand=10)
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await set_clock(shop, 10)
    writer = await writer_of(shop, connect, product)
    await set_clock(shop, 15)
    await shop.advance()
    await writer.commit()
    claimed = []
    for seconds in (15 + PACE_SECONDS / 2, 15 + PACE_SECONDS * 2):
        await set_clock(shop, seconds)
        await shop.advance()
        claimed.append(shop.claimed)
    assert claimed == [0, 1]


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(
    ("passed", "seconds"), [(LEFT_BEHIND, PACE_SECONDS), (100_000, 2), (50_000_000, 60)]
)
async def test_looks_are_paced_by_what_they_pass(shop: Shop, passed: int, seconds: float) -> None:
    """A claim looks from the beginning 20 us after the last look for each entry that it passed.

    A minute after it at the latest, and at once when the clock was set back.
    """
    from_place = [
        await shop.value(
            "select (claim_from(row(%s::timestamptz, %s::uuid, %s::timestamptz, %s)::claim_place,"
            " %s::timestamptz + %s * interval '1 second')).id is not null",
            *(BEGAN, shop.lisbon, BEGAN, passed, BEGAN, since),
        )
        for since in (0.9 * seconds, 1.1 * seconds, -1)
    ]
    assert from_place == [True, False, False]


@pytest.mark.usefixtures("held")
async def test_a_claim_goes_on_when_the_clock_is_set_back(shop: Shop) -> None:
    """What is ready by a clock that was set back is claimed by the next claim."""
    product = await shop.product(on_hand=10)
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await set_clock(shop, 10)
    await shop.advance()
    await set_clock(shop, -3600)
    await shop.order((product, 1))
    await shop.advance()
    assert shop.claimed == 1


@pytest.mark.usefixtures("held")
async def test_a_pass_that_is_rolled_back_moves_no_place(shop: Shop) -> None:
    """What a claim took, and its transaction gave back, the session's next claim takes again."""
    product = await shop.product(on_hand=10)
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await set_clock(shop, 1)
    await place_at_once(shop, product, 2)
    await set_clock(shop, 3)
    await shop.advance(2)
    await set_clock(shop, 3.001)
    async with shop.connection.transaction(force_rollback=True):
        await shop.run("select advance(1)")
    await set_clock(shop, 3.002)
    await shop.advance(1)
    assert await shop.statuses() == {"payment_processing": 3}


async def test_where_few_are_passed_each_claim_begins_at_the_beginning(
    shop: Shop, connect: Any
) -> None:
    """Without a held snapshot a saga is claimed at once, however late its transaction commits."""
    product = await shop.product(on_hand=10)
    await shop.fulfilled((product, 1))
    writer = await writer_of(shop, connect, product)
    await shop.turn_clock(5)
    await shop.advance()
    await writer.commit()
    await shop.advance()
    assert shop.claimed == 1


async def test_what_others_held_is_claimed_when_they_let_go(shop: Shop, connect: Any) -> None:
    """A claim that finds very many ready sagas locked keeps no place behind them."""
    await set_clock(shop, 0)
    product = await shop.product(on_hand=LEFT_BEHIND)
    await place_at_once(shop, product, LEFT_BEHIND)
    other = await connect("darkpearl_owner", autocommit=False)
    await other.execute("select from sagas for no key update")
    await set_clock(shop, 5)
    await shop.advance()
    assert shop.claimed == 0
    await other.rollback()
    await set_clock(shop, 5.001)
    await shop.advance(LEFT_BEHIND)
    assert shop.claimed == LEFT_BEHIND


@pytest.mark.usefixtures("held")
async def test_a_pass_reads_the_newest_version_of_a_shelf(shop: Shop) -> None:
    """An order reads as many rows of a shelf that has changed often as of one that hasn't."""
    product = await shop.product(on_hand=10)
    shelves = "inventory_product_is_stocked_once"

    async def read_by_an_order() -> int:
        order = await shop.order((product, 1))
        read = await read_by(shop, shelves, CLAIM)
        return read + await read_by(
            shop,
            shelves,
            "select settle(jsonb_agg(jsonb_build_object('saga_id', id, 'lease_token', lease_token,"
            f""" 'answer', '{{"outcome": "approved"}}'::jsonb))) from sagas where id = '{order}'""",
        )

    assert await read_by_an_order() == 3  # looked at, reserved, taken
    await wear_shelf(shop, product, 300)
    assert await read_by_an_order() == 3


@pytest.mark.usefixtures("held")
async def test_an_order_touches_no_more_pages_after_many(shop: Shop) -> None:
    """The pages that a pass looks at don't grow with the sagas and movements that are done."""
    product = await shop.product(on_hand=10_000)

    async def pages() -> int:
        await shop.order((product, 1))
        explained = await shop.value(f"explain (analyze, buffers, format json) {CLAIM}")
        buffers = explained[0]["Plan"]
        return int(buffers["Shared Hit Blocks"]) + int(buffers["Shared Read Blocks"])

    await shop.fulfilled((product, 1))
    before = await pages()
    await wear(shop, await shop.order((product, 1)), LEFT_BEHIND)
    await wear_shelf(shop, product, 300)
    await set_clock(shop, 2)
    await shop.settle(await shop.advance(), APPROVED)
    await set_clock(shop, 2.01)
    await shop.fulfilled((product, 1))  # with its plans, which another clock has made void
    assert await pages() <= 1.2 * before
