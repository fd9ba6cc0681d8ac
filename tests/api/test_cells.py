"""Several databases, as HTTP tells of them."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from shop import Shop

Json = dict[str, Any]
Api = httpx.AsyncClient
Problem = Callable[..., Json]


@pytest.fixture
async def elsewhere(api: Api, shop: Shop) -> str:
    """A warehouse of another cell, made over HTTP."""
    await shop.run("insert into cells (number, name) values (7, 'north')")
    made = await api.post("/warehouses", json={"code": "N", "name": "N", "cell": 7})
    assert (made.status_code, made.json()["cell"]) == (201, 7)
    return str(made.json()["id"])


async def test_another_cells_warehouse_is_a_conflict_that_says_where(
    api: Api, client: Callable[..., Api], elsewhere: str, problem: Problem, shop: Shop
) -> None:
    """Whoever asks, for whatever: 409 DP050, which names the cell and no address."""
    line = {"product_id": str(shop.products[0]), "quantity": 1}
    order = {"warehouse_id": elsewhere, "items": [line]}
    customer = client("authenticated", uuid4())
    for asked in (
        await api.post("/orders", json=order),
        await customer.post("/orders", json=order),
        await customer.post("/orders/quote", json=order),
        await api.post(
            "/stock-movements",
            json={"movement_type": "receive", "warehouse_id": elsewhere} | line,
        ),
    ):
        told = problem(asked, 409, "DP050")
        assert told["detail"] == "Warehouse N is of cell 7 (north); this is cell 1."
        assert told["hint"].startswith("Do it in cell 7")


async def test_a_warehouse_keeps_its_cell(api: Api, elsewhere: str, problem: Problem) -> None:
    """Replaced without a word of it, it stays where it is; with another one it is refused."""
    whole = {"code": "N", "name": "North"}
    kept = await api.put(f"/warehouses/{elsewhere}", json=whole)
    assert (kept.status_code, kept.json()["cell"], kept.json()["name"]) == (200, 7, "North")
    moved = await api.put(f"/warehouses/{elsewhere}", json=whole | {"cell": 1})
    problem(moved, 409, "DP016")
    problem(await api.delete(f"/warehouses/{elsewhere}"), 409, "DP016")
    unknown = await api.post("/warehouses", json={"code": "X", "name": "X", "cell": 200})
    problem(unknown, 409, "23503")
    beyond = await api.post("/warehouses", json={"code": "X", "name": "X", "cell": 256})
    problem(beyond, 400)
