"""routines/40_orders.sql: placing, pricing, the transition guard, cancelling."""

import json
from decimal import Decimal
from itertools import product as pairs
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from shop import APPROVED, DECLINED, Shop

LINE = (
    "insert into order_items (order_id, warehouse_id, product_id, quantity) values (%s, %s, %s, %s)"
)
PRICED = (
    "insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)"
    " values (%s, %s, %s, %s, %s)"
)

# One transaction may take several steps: an order that costs nothing is fulfilled in one.
FOLLOWS = {
    "pending": {"reserved", "payment_processing", "paid", "fulfilled", "cancelled"},
    "reserved": {"payment_processing", "paid", "fulfilling", "fulfilled", "cancelled"},
    "payment_processing": {"payment_failed", "paid", "fulfilling", "fulfilled", "cancelled"},
    "payment_failed": {"payment_processing", "paid", "fulfilling", "fulfilled", "cancelled"},
    "paid": {"fulfilling", "fulfilled", "cancelled"},
    "fulfilling": {"fulfilled", "cancelled"},
    "fulfilled": set[str](),
    "cancelled": set[str](),
}


async def insert_order(shop: Shop, **columns: Any) -> UUID:
    """A bare order row, inside a transaction of the test."""
    columns = {"warehouse_id": shop.lisbon, **columns}
    return await shop.value(
        f"insert into orders ({', '.join(columns)}) values ({', '.join(['%s'] * len(columns))})"
        " returning id",
        *columns.values(),
    )


@pytest.mark.parametrize("role", ["darkpearl_app", "service_role"])
async def test_two_inserts_are_an_order(shop: Shop, role: str) -> None:
    """An order inserted with its lines in one transaction is priced, added up and has a saga."""
    product = await shop.product("12.34")
    async with shop.acting_as(role), shop.connection.transaction():
        order = await insert_order(shop)
        await shop.run(LINE, order, shop.lisbon, product, 3)
    row = await shop.row("select * from orders where id = %s", order)
    assert (row["status"], row["total_amount"]) == ("pending", Decimal("37.02"))
    assert (await shop.saga(order))["status"] == "running"
    assert await shop.events(order) == ["saga_started"]
    assert (await shop.event(order, "saga_started"))["actor"] is not None


async def test_place_order_is_the_two_inserts(shop: Shop) -> None:
    """place_order() returns the order as it was written, with the id and the notes it was given."""
    product, order, customer = await shop.product("5"), uuid4(), "auth0|5f7c8ec7"
    async with shop.acting_as("darkpearl_app"):
        row = await shop.row(
            "select * from place_order(%s, %s, %s, 'ring twice', 'USD', %s)",
            shop.lisbon,
            json.dumps([{"product_id": str(product), "quantity": 2}]),
            customer,
            order,
        )
    assert (row["id"], row["customer_id"], row["notes"]) == (order, customer, "ring twice")
    assert (row["status"], row["total_amount"], row["currency"]) == ("pending", 10, "USD")
    assert row == await shop.row("select * from orders")


@pytest.mark.parametrize("customer", ["auth0|5f7c8ec7", "José Núñez", "客", "x" * 255, "é" * 255])
async def test_a_customer_is_any_visible_text(shop: Shop, customer: str) -> None:
    """Whatever a token's subject is made of names a customer, to the letter."""
    order = await shop.order((await shop.product(), 1), p_customer_id=customer)
    found = await shop.values("select id from orders where customer_id = %s", customer)
    assert found == [order]
    other = customer.swapcase() + "1"
    assert await shop.values("select id from orders where customer_id = %s", other) == []


@pytest.mark.parametrize("customer", ["", " ", "a\tb", "a  b", "a ", "a\u200b", "é\x01", "x" * 256])
async def test_a_customer_can_be_told_by_looking(shop: Shop, customer: str) -> None:
    """No empty, invisible, padded or endless text is a customer's id, whoever writes it."""
    product = await shop.product()
    with shop.refused("23514"):
        await shop.order((product, 1), p_customer_id=customer)


async def test_one_statement_starts_many_sagas(shop: Shop) -> None:
    """A set of orders inserted at once starts one saga each."""
    product = await shop.product()
    async with shop.connection.transaction():
        orders = await shop.values(
            "insert into orders (warehouse_id) select %s from generate_series(1, 20) returning id",
            shop.lisbon,
        )
        await shop.run(
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " select id, warehouse_id, %s, 1 from orders",
            product,
        )
    assert set(await shop.values("select id from sagas")) == set(orders)
    assert len(await shop.values("select id from saga_events")) == len(set(orders)) == 20


async def test_an_application_cant_name_its_price(shop: Shop) -> None:
    """A price other than the catalogue's is refused from anybody but service_role."""
    product = await shop.product("10")
    with shop.refused("DP002"):
        async with shop.acting_as("darkpearl_app"), shop.connection.transaction():
            order = await insert_order(shop)
            await shop.run(PRICED, order, shop.lisbon, product, 1, "9.99")
    with shop.refused("DP002"):
        async with shop.acting_as("darkpearl_app"):
            await shop.run(
                "select place_order(%s, %s)",
                shop.lisbon,
                json.dumps([{"product_id": str(product), "quantity": 1, "unit_price": 0}]),
            )
    assert await shop.rows("select from orders") == []


async def test_the_catalogues_price_may_be_named(shop: Shop) -> None:
    """An application may write the price as long as it is the catalogue's."""
    product = await shop.product("10")
    async with shop.acting_as("darkpearl_app"), shop.connection.transaction():
        order = await insert_order(shop)
        await shop.run(PRICED, order, shop.lisbon, product, 1, "10.00")
    assert await shop.value("select total_amount from orders") == 10


async def test_staff_may_set_a_price(shop: Shop) -> None:
    """service_role sells at any price, also for nothing."""
    product = await shop.product("10")
    async with shop.acting_as("service_role"):
        for price in ("7.5", "0"):
            items = [{"product_id": str(product), "quantity": 2, "unit_price": price}]
            total = await shop.value(
                "select total_amount from place_order(%s, %s)", shop.lisbon, json.dumps(items)
            )
            assert total == 2 * Decimal(price)


@pytest.mark.parametrize("price", ["-1", "0.00001", "1000000000000", "NaN", "Infinity"])
async def test_no_price_is_nonsense(shop: Shop, price: str) -> None:
    """Not even service_role sells at a price that is no amount of money."""
    product = await shop.product("10")
    with shop.refused("23514"):
        async with shop.acting_as("service_role"), shop.connection.transaction():
            order = await insert_order(shop)
            await shop.run(PRICED, order, shop.lisbon, product, 1, price)


async def test_a_later_price_leaves_placed_orders_alone(shop: Shop) -> None:
    """An order keeps the price of the day it was placed."""
    product = await shop.product("10")
    order = await shop.order((product, 2))
    await shop.run("update products set unit_price = 99")
    assert await shop.value("select total_amount from orders where id = %s", order) == 20
    assert await shop.value("select unit_price from order_items") == 10


@pytest.mark.parametrize("quantity", [0, -1, 1_000_001])
async def test_a_line_asks_for_a_sane_number(shop: Shop, quantity: int) -> None:
    """A line asks for 1 to a million units."""
    with shop.refused("23514"):
        await shop.order((await shop.product(), quantity))


async def test_what_isnt_sold_cant_be_ordered(shop: Shop) -> None:
    """An inactive product and an unknown one are refused."""
    retired = await shop.product(is_active=False)
    for product in (retired, uuid4()):
        with shop.refused("DP003") as refusal:
            await shop.order((product, 1))
        assert str(product) in refusal.detail


async def test_a_closed_warehouse_takes_no_orders(shop: Shop) -> None:
    """An inactive warehouse and an unknown one are refused."""
    product = await shop.product()
    await shop.run("update warehouses set is_active = false where id = %s", shop.rotterdam)
    for warehouse in (shop.rotterdam, uuid4()):
        with shop.refused("DP003") as refusal:
            await shop.order((product, 1), warehouse=warehouse)
        assert str(warehouse) in refusal.detail


async def test_one_order_has_one_currency(shop: Shop) -> None:
    """A product priced in another currency than the order's is refused."""
    dollars, euros = await shop.product(), await shop.product(currency="EUR")
    with shop.refused("DP003"):
        await shop.order((dollars, 1), (euros, 1))
    with shop.refused("DP003"):
        await shop.order((dollars, 1), p_currency="EUR")
    order = await shop.order((euros, 1), p_currency="EUR")
    assert await shop.value("select currency from orders where id = %s", order) == "EUR"


async def test_the_total_is_the_sum_of_the_lines(shop: Shop) -> None:
    """Lines add up over duplicate products, several statements and several orders at once."""
    pearl, shell = await shop.product("19.99"), await shop.product("0.01")
    async with shop.acting_as("darkpearl_app"), shop.connection.transaction():
        first, second = await insert_order(shop), await insert_order(shop)
        await shop.run(LINE, first, shop.lisbon, pearl, 2)
        await shop.run(
            LINE + ", (%s, %s, %s, %s), (%s, %s, %s, %s)",
            *(first, shop.lisbon, pearl, 1),
            *(second, shop.lisbon, shell, 7),
            *(first, shop.lisbon, shell, 3),
        )
    totals = "select total_amount from orders where id = %s"
    assert await shop.value(totals, first) == Decimal("60.00")
    assert await shop.value(totals, second) == Decimal("0.07")


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "fulfilled"},
        {"total_amount": 1},
        {"placed_in": "1"},
        {"created_at": "2000-01-01"},
    ],
)
async def test_clients_may_not_name_what_is_the_databases(
    shop: Shop, columns: dict[str, Any]
) -> None:
    """Status, total and times are not among the columns that a client may insert."""
    for role in ("darkpearl_app", "service_role", "authenticated"):
        with shop.refused("42501"):
            async with shop.acting_as(role):
                await insert_order(shop, **columns)


async def test_even_a_superuser_starts_an_order_clean(shop: Shop) -> None:
    """Status and total of a new order are the database's, whoever names others."""
    product = await shop.product("10")
    async with shop.connection.transaction():
        order = await insert_order(shop, status="fulfilled", total_amount=999, placed_in="1")
        await shop.run(LINE, order, shop.lisbon, product, 1)
    row = await shop.row("select status, total_amount from orders")
    assert row == {"status": "pending", "total_amount": 10}


async def test_order_numbers_are_given(shop: Shop) -> None:
    """Nobody chooses an order number, and every order has another one."""
    with shop.refused("428C9"):
        await insert_order(shop, order_number=7)
    product = await shop.product()
    for _ in range(3):
        await shop.order((product, 1))
    assert await shop.value("select count(distinct order_number) from orders") == 3


async def test_lines_are_frozen_once_placed(shop: Shop) -> None:
    """No line is added to an order of an earlier transaction."""
    product = await shop.product()
    order = await shop.order((product, 1))
    for role in ("darkpearl_app", "service_role"):
        with shop.refused("DP012"):
            async with shop.acting_as(role):
                await shop.run(LINE, order, shop.lisbon, product, 1)
    assert await shop.value("select count(*) from order_items") == 1


async def test_a_line_is_of_an_order(shop: Shop) -> None:
    """No line is without its order, in one statement with good lines or alone."""
    product = await shop.product()
    for lines in ([uuid4()], [None, uuid4()], [uuid4(), None]):
        with shop.refused("DP010"):
            async with shop.connection.transaction():
                order = await insert_order(shop)
                await shop.run(
                    "insert into order_items (order_id, warehouse_id, product_id, quantity)"
                    " select coalesce(id, %s), %s, %s, 1 from unnest(%s::uuid[]) as id",
                    order,
                    shop.lisbon,
                    product,
                    lines,
                )
    assert await shop.value("select count(*) from order_items") == 0


async def test_an_order_with_lines_stays(shop: Shop) -> None:
    """No order is deleted from under its lines, not even by who has just placed it."""
    product = await shop.product()
    with shop.refused("DP005"):
        async with shop.connection.transaction():
            await shop.order((product, 1))
            await shop.run("delete from orders")
    await shop.order((product, 1))
    for removal in ("delete from orders", "truncate orders cascade"):
        with shop.refused("DP005"):
            await shop.run(removal)


async def test_a_line_belongs_to_its_orders_warehouse(shop: Shop) -> None:
    """A line that names another warehouse than its order is refused."""
    product = await shop.product()
    with shop.refused("DP010"):
        async with shop.connection.transaction():
            order = await insert_order(shop)
            await shop.run(LINE, order, shop.rotterdam, product, 1)


async def test_an_order_without_lines_is_refused_at_commit(shop: Shop) -> None:
    """A bare insert is refused when its transaction ends, not before, and nothing of it stays."""
    connection = shop.connection
    with shop.refused("DP001"):
        async with connection.transaction():
            order = await insert_order(shop)
            assert (await shop.saga(order))["status"] == "running"
    with shop.refused("DP001"):
        await insert_order(shop)
    assert await shop.rows("select id from orders union all select id from sagas") == []
    assert await shop.rows("select from saga_events") == []


@pytest.mark.parametrize(
    ("items", "sqlstate"),
    [("[]", "DP001"), ("{}", "DP015"), ('"pearl"', "DP015"), (None, "DP015")],
)
async def test_place_order_needs_items(shop: Shop, items: str | None, sqlstate: str) -> None:
    """place_order() refuses an empty array at once, and what is no array."""
    with shop.refused(sqlstate):
        await shop.run("select place_order(%s, %s)", shop.lisbon, items)


@pytest.mark.parametrize("item", ["1", "null", "[]", "{}", '{"quantity": 1}', '{"product_id": 7}'])
async def test_place_order_refuses_items_that_are_none(shop: Shop, item: str) -> None:
    """An element that names no product, or is no object, never becomes an order."""
    with pytest.raises(psycopg.Error):
        await shop.run("select place_order(%s, %s)", shop.lisbon, f"[{item}]")
    assert await shop.rows("select from orders") == []


async def test_only_allowed_transitions_are_taken(shop: Shop) -> None:
    """Of the 64 pairs of statuses exactly the allowed ones can follow each other."""
    order = await shop.order((await shop.product(), 1))
    assert set(FOLLOWS) == set(
        await shop.values("select unnest(enum_range(null::order_status))::text")
    )
    taken: dict[str, set[str]] = {status: set() for status in FOLLOWS}
    for before, after in pairs(FOLLOWS, FOLLOWS):
        async with shop.unguarded():
            await shop.run("update orders set status = %s where id = %s", before, order)
        if before == after or after in FOLLOWS[before]:
            await shop.run("update orders set status = %s where id = %s", after, order)
            taken[before].add(after)
        else:
            with shop.refused("DP004"):
                await shop.run("update orders set status = %s where id = %s", after, order)
    assert taken == {status: after | {status} for status, after in FOLLOWS.items()}


@pytest.mark.parametrize(
    "change",
    [
        "id = gen_random_uuid()",
        "warehouse_id = (select id from warehouses where id <> warehouse_id)",
        "customer_id = gen_random_uuid()",
        "customer_id = null",
        "currency = 'EUR'",
        "placed_in = '3'",
        "created_at = created_at - interval '1 day'",
    ],
)
@pytest.mark.parametrize("when", ["at once", "later"])
async def test_an_order_keeps_its_identity(shop: Shop, change: str, when: str) -> None:
    """Whose an order is, where it belongs and when it was placed never change.

    Nor do they while it is being placed: its lines refer to it, and no foreign key holds it.
    """
    product = await shop.product()
    with shop.refused("DP005"):
        async with shop.connection.transaction():
            await shop.order((product, 1), p_customer_id="alice")
            if when == "at once":
                await shop.run(f"update orders set {change}")
        await shop.run(f"update orders set {change}")
    assert await shop.value("select count(*) from orders") == (0 if when == "at once" else 1)


async def test_an_order_number_stays(shop: Shop) -> None:
    """The number of an order can't be given anew."""
    await shop.order((await shop.product(), 1))
    with shop.refused("DP005"):
        await shop.run("update orders set order_number = default")


async def test_an_order_can_be_annotated(shop: Shop) -> None:
    """Applications may change the notes of an order, and nothing else of it."""
    order = await shop.order((await shop.product(), 1))
    async with shop.acting_as("darkpearl_app"):
        await shop.run("update orders set notes = 'ring twice' where id = %s", order)
        for change in ("status = 'cancelled'", "total_amount = 0"):
            with shop.refused("42501"):
                await shop.run(f"update orders set {change}")
    assert await shop.value("select notes from orders") == "ring twice"


async def test_cancelling_is_written_with_who_and_why(shop: Shop) -> None:
    """The request is an event with actor and reason; the order follows when its saga does."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    assert await shop.cancel(order) == "pending"
    event = await shop.event(order, "cancelled")
    assert event["message"] == "changed my mind"
    assert event["actor"] == await shop.value("select session_user")
    assert (await shop.saga(order))["cancel_requested"]


async def test_cancelling_twice_is_cancelling_once(shop: Shop) -> None:
    """While it runs, waits, turns back and when it is cancelled, asking again adds nothing."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.cancel(order)
    assert await shop.cancel(order) == "pending"
    assert (await shop.events(order)).count("cancelled") == 1
    await shop.advance()
    assert await shop.cancel(order) == "cancelled"

    order = await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    assert await shop.cancel(order) == "payment_processing"
    assert await shop.cancel(order) == "payment_processing"
    requests = await shop.settle(requests, APPROVED)
    assert (await shop.saga(order))["status"] == "compensating"
    await shop.cancel(order)
    await shop.settle(requests, APPROVED)
    assert await shop.cancel(order) == "cancelled"
    assert (await shop.events(order)).count("cancelled") == 1


async def test_an_order_turning_back_needs_no_cancelling(shop: Shop) -> None:
    """An order whose compensation has begun by itself is not asked to stop as well."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("release_stock", order)
    await shop.settle(await shop.advance(), DECLINED)
    assert (await shop.saga(order))["status"] == "compensating"
    await shop.cancel(order)
    assert "cancelled" not in await shop.events(order)


async def test_a_fulfilled_order_cant_be_cancelled(shop: Shop) -> None:
    """What has been fulfilled stays so."""
    order = await shop.fulfilled((await shop.product(on_hand=1), 1))
    with shop.refused("DP007") as refusal:
        await shop.cancel(order)
    assert "is fulfilled" in refusal.detail
    assert "cancelled" not in await shop.events(order)


async def test_a_stuck_order_cant_be_cancelled(shop: Shop) -> None:
    """An order that waits for an operator is the operator's."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.give_up_after(0)
    await shop.poison("release_stock", order)
    await shop.settle(await shop.advance(), DECLINED)
    await shop.advance()
    assert (await shop.saga(order))["status"] == "stuck"
    with shop.refused("DP007") as refusal:
        await shop.cancel(order)
    assert "stuck_sagas" in refusal.hint


async def test_an_unknown_order_cant_be_cancelled(shop: Shop) -> None:
    """There is no such order."""
    with shop.refused("DP010"):
        await shop.cancel(uuid4())
