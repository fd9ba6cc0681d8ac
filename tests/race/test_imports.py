"""Imports beside a shop that runs: transfers in opposite directions, orders, and passes."""

import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection
from shop import APPROVED, Shop

CLIENTS = 8
TURNS = 6
PRODUCTS = 12
LINES = 40


def transfer_all(session: Connection[Any], products: list[UUID], here: UUID, there: UUID) -> None:
    """One statement that sends a unit of each product, in no order, to the other warehouse."""
    session.execute(
        "insert into stock_movements"
        " (correlation_id, product_id, movement_type, quantity, warehouse_id, reference_id)"
        " select t.id, t.product_id, e.movement_type::movement_type, 1, e.here, e.there"
        " from (select new_id() as id, p as product_id from unnest(%s::uuid[]) as p offset 0) as t"
        " cross join (values ('transfer_out', %s::uuid, %s::uuid), ('transfer_in', %s, %s))"
        " as e (movement_type, here, there)",
        [products, here, there, there, here],
    )


def receive_by_import(session: Connection[Any], products: list[UUID], here: UUID) -> None:
    """An import of receipts, in no order."""
    session.execute("select open_import('movements')")
    copy = "copy movement_imports (product_id, warehouse_id, movement_type, quantity) from stdin"
    with session.cursor().copy(copy) as copied:
        for product in products * (LINES // len(products)):
            copied.write_row((product, here, "receive", 1))
    found = session.execute("select bad, changed from import_movements()").fetchone()
    assert found == (0, len(products) * (LINES // len(products)))


def order_by_import(session: Connection[Any], name: str, products: list[UUID], here: UUID) -> None:
    """An import of orders, a line each."""
    session.execute("select open_import('orders')")
    copy = "copy order_imports (reference, product_id, warehouse_id, quantity) from stdin"
    with session.cursor().copy(copy) as copied:
        for product in products:
            copied.write_row((f"{name} {product}", product, here, 1))
    found = session.execute("select bad, placed from place_imported_orders()").fetchone()
    assert found == (0, len(products))


def run_a_pass(session: Connection[Any]) -> None:
    """A listener's pass, with the answers to what it asks for."""
    rows = session.execute("select requests from advance(200)").fetchall()
    answers = [{**each, "answer": APPROVED} for (requests,) in rows for each in requests or []]
    if answers:
        session.execute("select from settle(%s)", [json.dumps(answers)])


async def test_imports_beside_a_running_shop(shop: Shop, database_url: str) -> None:
    """Eight clients transfer both ways, import and run passes: no deadlock, and nothing is lost."""
    products = [await shop.product(on_hand=500) for _ in range(PRODUCTS)]
    for product in products:
        await shop.receive(product, 500, shop.rotterdam)
    ends = itertools.cycle([(shop.lisbon, shop.rotterdam), (shop.rotterdam, shop.lisbon)])
    failures: list[str] = []

    def client(number: int, here: UUID, there: UUID) -> None:
        dice = random.Random(number)
        options = "-c search_path=darkpearl"
        with psycopg.connect(database_url, autocommit=True, options=options) as session:
            for turn in range(TURNS):
                shuffled = dice.sample(products, PRODUCTS)
                try:
                    transfer_all(session, shuffled, here, there)
                    receive_by_import(session, shuffled, here)
                    order_by_import(session, f"{number}/{turn}", shuffled, here)
                    run_a_pass(session)
                except psycopg.Error as error:
                    failures.append(f"{number}/{turn}: {error}")

    with ThreadPoolExecutor(CLIENTS) as threads:
        for each in [threads.submit(client, number, *next(ends)) for number in range(CLIENTS)]:
            each.result()
    assert failures == []
    for _ in range(100):
        if (await shop.statuses()).keys() == {"fulfilled"}:
            break
        await shop.turn_clock(60)
        await shop.settle(await shop.advance(), APPROVED)
    orders = CLIENTS * TURNS * PRODUCTS
    assert await shop.statuses() == {"fulfilled": orders}
    received = CLIENTS * TURNS * PRODUCTS * (LINES // PRODUCTS)
    assert await shop.value("select sum(quantity_available) from inventory") == (
        1000 * PRODUCTS + received - orders
    )
