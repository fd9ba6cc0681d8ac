"""Everybody who moves stock at once: passes over scarce goods, and people at single shelves."""

import json
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection
from shop import APPROVED, Shop

SECONDS = float(os.environ.get("DARKPEARL_TEST_STRESS_SECONDS", "8"))
PEOPLE = 4
PRODUCTS = 8

Act = Callable[[Connection[Any], random.Random], None]


def keep_passing(session: Connection[Any], _: random.Random) -> None:
    """A listener's pass, with the answers to what it asks for."""
    rows = session.execute("select requests from advance(200)").fetchall()
    answers = [{**each, "answer": APPROVED} for (requests,) in rows for each in requests or []]
    if answers:
        session.execute("select from settle(%s)", [json.dumps(answers)])


class Traffic:
    """Sessions that all act at once until their time is over."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = time.monotonic() + SECONDS
        self.failures: list[str] = []
        self.longest_seconds: dict[str, float] = {}

    def run(self, acts: dict[str, Act]) -> None:
        """One session for each act."""
        with ThreadPoolExecutor(len(acts)) as threads:
            for each in [threads.submit(self._keep_at, *named) for named in acts.items()]:
                each.result()

    def _keep_at(self, name: str, act: Act) -> None:
        dice = random.Random(name)
        options = "-c search_path=darkpearl"
        with psycopg.connect(self._url, autocommit=True, options=options) as session:
            while (begun := time.monotonic()) < self._over:
                try:
                    act(session, dice)
                except psycopg.Error as error:
                    if not (error.sqlstate or "").startswith("DP"):
                        self.failures.append(f"{name}: {error}")
                took = time.monotonic() - begun
                self.longest_seconds[name] = max(self.longest_seconds.get(name, 0), took)


async def test_passes_and_people_never_meet_in_a_deadlock(shop: Shop, database_url: str) -> None:
    """Passes lock shelves once and in order, so that nobody's transaction is ended for it."""
    products = [await shop.product(on_hand=20) for _ in range(PRODUCTS)]
    for product in products:
        await shop.receive(product, 20, shop.rotterdam)
    warehouses = [shop.lisbon, shop.rotterdam]

    def order(session: Connection[Any], dice: random.Random) -> None:
        lines = [
            {"product_id": str(each), "quantity": dice.randint(1, 3)}
            for each in dice.sample(products, 3)
        ]
        session.execute("select place_order(%s, %s)", [dice.choice(warehouses), json.dumps(lines)])

    def move(session: Connection[Any], dice: random.Random) -> None:
        product, (one, other) = dice.choice(products), dice.sample(warehouses, 2)
        acts: list[tuple[str, list[Any]]] = [
            ("receive_stock(%s, %s, %s)", [one, product, dice.randint(1, 3)]),
            ("adjust_stock(%s, %s, %s)", [one, product, dice.choice([-1, 1])]),
            ("transfer_stock(%s, %s, %s, 1)", [one, other, product]),
            ("return_items(%s)", [dice.choice(fulfilled(session) or [product])]),
        ]
        name, arguments = dice.choice(acts)
        session.execute(f"select {name}".encode(), arguments)

    traffic = Traffic(database_url)
    traffic.run(
        {"orders": order, "one listener": keep_passing, "another listener": keep_passing}
        | {f"person {number}": move for number in range(PEOPLE)}
    )
    assert traffic.failures == [], traffic.longest_seconds
    assert (await shop.statuses())["fulfilled"] > 0


def fulfilled(session: Connection[Any]) -> list[UUID]:
    """Some orders that goods may come back from."""
    query = "select id from orders where status = 'fulfilled' order by order_number desc limit 20"
    return [order for (order,) in session.execute(query)]
