"""schema/50_sagas.sql: an id is one in the whole database, whoever chose it."""

from uuid import UUID, uuid4

import pytest
from shop import APPROVED, Shop


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units at 10.00 in each warehouse."""
    product = await shop.product("10", on_hand=10)
    await shop.receive(product, 10, shop.rotterdam)
    return product


async def test_an_order_id_is_one_in_all_warehouses(shop: Shop, product: UUID) -> None:
    """The same id in another warehouse is refused, and the law that says so is named."""
    order = await shop.order((product, 1))
    with shop.refused("23505") as refusal:
        await shop.order((product, 1), warehouse=shop.rotterdam, p_order_id=order)
    assert "sagas_id_is_one_in_the_database" in refusal.message
    (request,) = await shop.advance()
    await shop.settle([request], APPROVED)
    assert await shop.values("select warehouse_id from orders") == [shop.lisbon]
    assert await shop.stock(product) == (9, 0)
    assert await shop.stock(product, shop.rotterdam) == (10, 0)


async def test_plain_inserts_are_held_to_it_too(shop: Shop, product: UUID) -> None:
    """An application that inserts orders itself can't take an id twice, not in one statement."""
    order = await shop.order((product, 1))
    async with shop.acting_as("darkpearl_app"):
        for ids in ([order], [same := uuid4(), same]):
            warehouses = [shop.rotterdam, shop.lisbon][: len(ids)]
            with shop.refused("23505"):
                await shop.run(
                    "insert into orders (id, warehouse_id) select * from unnest(%s::uuid[], %s)",
                    ids,
                    warehouses,
                )
    assert await shop.values("select id from orders") == [order]


async def test_an_idempotency_key_is_of_one_payment(shop: Shop, product: UUID) -> None:
    """However orders come by their ids, no two ask the gateway under one key."""
    chosen = uuid4()
    await shop.order((product, 1), p_order_id=chosen)
    with shop.refused("23505"):
        await shop.order((product, 1), warehouse=shop.rotterdam, p_order_id=chosen)
    await shop.order((product, 1), warehouse=shop.rotterdam)
    keys = [each["request"]["idempotency_key"] for each in await shop.advance()]
    assert len(keys) == len(set(keys)) == 2
    assert keys == await shop.values("select idempotency_key from payments order by order_id")


async def test_a_refund_takes_no_id_of_an_order(shop: Shop, product: UUID) -> None:
    """Neither that of its own order nor of one elsewhere; no money moves, nothing is left."""
    order = await shop.fulfilled((product, 1))
    other = await shop.order((product, 1), warehouse=shop.rotterdam)
    for taken in (order, other):
        with shop.refused("DP011"):
            await shop.refund(order, 5, taken)
    assert await shop.value("select count(*) from refunds") == 0
    assert await shop.value("select count(*) from sagas") == 2


async def test_an_order_takes_no_id_of_a_refund(shop: Shop, product: UUID) -> None:
    """What a refund was called, no order can be called, in its warehouse or another."""
    order = await shop.fulfilled((product, 1))
    refund = await shop.refund(order, 5)
    for warehouse in (shop.lisbon, shop.rotterdam):
        with shop.refused("23505"):
            await shop.order((product, 1), warehouse=warehouse, p_order_id=refund["id"])


async def test_a_refund_id_is_one_in_all_warehouses(shop: Shop, product: UUID) -> None:
    """A refund of another warehouse's order under a known id is refused."""
    order = await shop.fulfilled((product, 1))
    other = await shop.order((product, 1), warehouse=shop.rotterdam)
    await shop.settle(await shop.advance(), APPROVED)
    refund = await shop.refund(order, 5)
    with shop.refused("DP011"):
        await shop.refund(other, 5, refund["id"])


async def test_a_saga_of_any_type_takes_no_known_id(shop: Shop, product: UUID) -> None:
    """start_saga() refuses the id of an order, whatever type and warehouse the saga has."""
    order = await shop.order((product, 1))
    with shop.refused("DP011"):
        await shop.run("select start_saga('refund', %s, %s)", order, shop.rotterdam)


async def test_a_return_takes_no_id_of_a_saga(shop: Shop, product: UUID) -> None:
    """A return under an order's or a refund's id is refused, moved goods or not."""
    order = await shop.fulfilled((product, 2))
    refund = await shop.refund(order, 5)
    waiting = await shop.order((product, 1), warehouse=shop.rotterdam)
    for taken in (order, waiting, refund["id"]):
        with shop.refused("DP011"):
            await shop.take_back(order, (product, 1), return_id=taken)
    assert await shop.stock(product) == (8, 0)


async def test_a_return_is_repeated_whoever_took_its_id_since(shop: Shop, product: UUID) -> None:
    """An order that came later under a return's id doesn't change what the return was."""
    order = await shop.fulfilled((product, 2))
    come_back = uuid4()
    first = await shop.take_back(order, (product, 1), return_id=come_back)
    await shop.order((product, 1), p_order_id=come_back)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.take_back(order, (product, 1), return_id=come_back) == first
    assert await shop.stock(product) == (8, 0)
