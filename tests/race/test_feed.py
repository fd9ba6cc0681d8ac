"""Who follows the feed beside those who write it.

DARKPEARL_TEST_FEED_ROUNDS says how many transactions each of sixteen writers makes.
"""

import asyncio
import json
import os
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import Shop

ROUNDS = int(os.environ.get("DARKPEARL_TEST_FEED_ROUNDS", "12"))
FOLLOW = "select id, order_id from follow_feed(%s, %s, null, %s)"
LOOK = "select horizon, last, writers from look_for_horizon(%s, %s)"

Place = Any


@pytest.fixture
async def place(shop: Shop) -> Place:
    """Places an order on a connection; its id."""
    items = json.dumps([{"product_id": str(await shop.product(on_hand=100_000)), "quantity": 1}])

    async def place_order(connection: Any) -> UUID:
        cursor = await connection.execute(
            "select id from place_order(%s, %s)", [shop.lisbon, items]
        )
        (order,) = await cursor.fetchone()
        return UUID(str(order))

    return place_order


async def told(reader: Any, after: int = 0, patience: float = 0) -> list[tuple[int, UUID]]:
    """What a reader is told after an id."""
    return await (await reader.execute(FOLLOW, [after, 1000, patience])).fetchall()


async def test_a_lower_id_that_commits_later_is_waited_for(place: Place, connect: Any) -> None:
    """Nothing above it is told before it is, and then both are, in the order of their ids."""
    late = await connect("darkpearl_app", autocommit=False)
    quick, reader = await connect("darkpearl_app"), await connect("darkpearl_reader")
    first = await place(late)
    second = await place(quick)
    assert await told(reader) == []
    await late.commit()
    assert [order for _, order in await told(reader)] == [first, second]


async def test_one_that_is_rolled_back_is_waited_for_and_never_told(
    place: Place, connect: Any
) -> None:
    """Its ids are gaps; a part of it that was rolled back before holds nothing."""
    late = await connect("darkpearl_app", autocommit=False)
    quick, reader = await connect("darkpearl_app"), await connect("darkpearl_reader")
    await late.execute("savepoint part")
    await place(late)
    await late.execute("rollback to part")
    second = await place(quick)
    assert [order for _, order in await told(reader)] == [second]
    await place(late)
    third = await place(quick)
    after = (await told(reader))[-1][0] if await told(reader) else 0
    assert after == 0
    await late.rollback()
    assert [order for _, order in await told(reader)] == [second, third]


async def test_a_reader_waits_for_a_writer_that_ends_in_time(place: Place, connect: Any) -> None:
    """Its patience is for those that are about to commit."""
    late = await connect("darkpearl_app", autocommit=False)
    reader = await connect("darkpearl_reader")
    order = await place(late)
    waiting = asyncio.create_task(told(reader, 0, 20))
    other = await connect("darkpearl_reader")
    assert await told(other) == []
    assert not waiting.done()
    await late.commit()
    assert [each for _, each in await waiting] == [order]


async def test_who_writes_something_else_holds_nobody_up(
    shop: Shop, place: Place, connect: Any
) -> None:
    """A transaction that is open elsewhere is none of the feed's: nor is a held snapshot."""
    idle = await connect("service_role", autocommit=False)
    await idle.execute("update products set name = 'Other' where id = %s", [shop.products[0]])
    snapshot = await connect("darkpearl_reader", autocommit=False)
    await snapshot.execute("set transaction isolation level repeatable read")
    await snapshot.execute("select count(*) from saga_events")
    reader = await connect("darkpearl_reader")
    order = await place(await connect("darkpearl_app"))
    assert [each for _, each in await told(reader)] == [order]


async def test_an_alert_is_waited_for_too(shop: Shop, place: Place, connect: Any) -> None:
    """A shelf that ran low has an id of the same sequence, whoever moved the goods."""
    product = await shop.product(on_hand=11)
    late = await connect("service_role", autocommit=False)
    reader = await connect("darkpearl_reader")
    await late.execute("select adjust_stock(%s, %s, -1)", [shop.lisbon, product])
    order = await place(await connect("darkpearl_app"))
    assert await told(reader) == []
    await late.commit()
    assert [each for _, each in await told(reader)] == [None, order]


async def test_newcomers_put_nothing_off(place: Place, connect: Any) -> None:
    """Though somebody always writes, a mark is decided when those who wrote at it are gone."""
    one = await connect("darkpearl_app", autocommit=False)
    other = await connect("darkpearl_app", autocommit=False)
    reader = await connect("darkpearl_reader")
    mark: tuple[Any, ...] = (None, None)
    horizons = []
    await place(one)
    for _ in range(4):
        horizon, *mark = await (await reader.execute(LOOK, mark)).fetchone()
        horizons.append(horizon)
        await place(other)
        await one.commit()
        one, other = other, one
    assert horizons[0] is None
    assert None not in horizons[1:]
    assert horizons[1:] == sorted(set(horizons[1:]))


async def test_sixteen_writers_and_four_readers(shop: Shop, place: Place, connect: Any) -> None:
    """Each reader is told everything once, and no id goes back, though commits overtake each other.

    A writer keeps what it wrote until others, that wrote later, have committed.
    """
    writers, rounds = 16, ROUNDS
    committed = asyncio.Condition()
    count = waiting = 0
    left = writers
    placed: set[UUID] = set()

    async def be_overtaken() -> None:
        """Return when four others have committed, or all that are left wait for each other."""
        nonlocal waiting
        async with committed:
            overtaken = count + 4
            waiting += 1
            while count < overtaken and waiting < left:
                await committed.wait()
            waiting -= 1

    async def write(number: int) -> None:
        nonlocal count, left
        connection = await connect("darkpearl_app", autocommit=False)
        for turn in range(rounds):
            orders = [await place(connection) for _ in range(1 + turn % 3 * ROUNDS // 100)]
            if (number + turn) % 3 == 0:
                await be_overtaken()
            if (number + turn) % 7 == 0:
                await connection.rollback()
            else:
                await connection.commit()
                placed.update(orders)
            async with committed:
                count += 1
                left -= turn == rounds - 1
                committed.notify_all()

    async def read() -> list[int]:
        connection = await connect("darkpearl_reader")
        ids: list[int] = []
        while True:
            over = count == writers * rounds
            rows = await told(connection, ids[-1] if ids else 0)
            ids += [number for number, _ in rows]
            if over and not rows:
                return ids

    *found, _ = await asyncio.gather(
        *(read() for _ in range(4)), asyncio.gather(*(write(number) for number in range(writers)))
    )
    there = await shop.values("select id from feed order by id")
    assert len(there) == len(placed)
    assert all(ids == there for ids in found)


async def test_ids_are_drawn_one_by_one(shop: Shop) -> None:
    """No session keeps ids for later: one that it drew before the others' would come too late."""
    assert await shop.values(
        "select seqcache from pg_sequence where seqrelid = 'saga_events_id_seq'::regclass"
    ) == [1]


async def test_a_server_that_prepares_transactions(shop: Shop, place: Place, connect: Any) -> None:
    """What is prepared is not committed: it is waited for, whoever prepared it has gone."""
    if await shop.value("select current_setting('max_prepared_transactions')") == "0":
        pytest.skip("the server prepares none")
    late = await connect("darkpearl_app", autocommit=False)
    reader = await connect("darkpearl_reader")
    name = str(uuid4())
    order = await place(late)
    await late.execute(f"prepare transaction '{name}'".encode())
    assert await told(reader) == []
    await shop.run(f"commit prepared '{name}'")
    assert [each for _, each in await told(reader)] == [order]
