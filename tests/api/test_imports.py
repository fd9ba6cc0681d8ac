"""Many rows in one request."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from shop import Shop

Api = httpx.AsyncClient
Problem = Callable[..., dict[str, Any]]
CSV = {"Content-Type": "text/csv"}


async def test_rows_are_imported_with_a_result_each(api: Api, shop: Shop) -> None:
    """A batch in JSON says of each row what became of it; bad ones can be left out."""
    rows = [{"sku": "P0", "unit_price": 12.5}, {"sku": "N", "name": "New"}, {"sku": "O"}]
    made = await api.post("/imports/products?skip_bad=true", json={"rows": rows})
    assert made.status_code == 200, made.text
    assert made.json() == {
        "lines": 3,
        "bad": 1,
        "changed": 2,
        "results": [
            {"row": 1, "problem": None},
            {"row": 2, "problem": None},
            {"row": 3, "problem": "name is missing, and the product is new"},
        ],
    }
    prices = "select unit_price::text from products where sku in ('P0', 'N') order by sku"
    assert await shop.values(prices) == ["0", "12.5"]


async def test_one_bad_row_keeps_all_out(api: Api, shop: Shop, problem: Problem) -> None:
    """All or nothing: a refusal names each bad row, and keeps nothing under a key."""
    rows = [
        {"movement_type": "receive", "sku": "P0", "warehouse": "W", "quantity": 1},
        {"movement_type": "receive", "sku": "X", "warehouse": "W", "quantity": 1},
        {"movement_type": "adjust", "sku": "P1", "warehouse": "W", "quantity": -7},
    ]
    key = {"Idempotency-Key": "delivery-1"}
    told = problem(
        await api.post("/imports/movements", json={"rows": rows}, headers=key), 422, "DP025"
    )
    assert told["errors"] == [{"field": "row 2", "message": "there is no product X"}]
    rows[1]["sku"] = "P1"
    told = problem(await api.post("/imports/movements", json={"rows": rows}), 422, "DP025")
    assert [each["field"] for each in told["errors"]] == ["row 3"]
    assert await shop.stock(shop.products[0]) == (100, 0)
    await shop.product(sku="X")
    del rows[2], rows[1]
    done = await api.post("/imports/movements", json={"rows": rows}, headers=key)
    assert done.json()["changed"] == 1
    again = await api.post("/imports/movements", json={"rows": rows}, headers=key)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == done.json()
    assert await shop.stock(shop.products[0]) == (101, 0)


async def test_csv_is_taken_too(api: Api, shop: Shop, problem: Problem) -> None:
    """The body of a file: rows are named by their lines, and what is no CSV is 400."""
    text = "sku,warehouse,quantity_available\nP0,W,90\n\nP1,W\n"
    told = problem(await api.post("/imports/inventory", content=text, headers=CSV), 422, "DP025")
    assert told["errors"] == [{"field": "row 4", "message": "has 2 fields, and the header has 3"}]
    done = await api.post("/imports/inventory", content=text.replace("P1,W", "P1,W,7"), headers=CSV)
    assert (done.status_code, done.json()["changed"]) == (200, 2)
    assert await shop.stock(shop.products[1]) == (7, 0)
    for body in (b"", b"sku,shelf\n", b"sku\n\xff\n", b'sku\n"P0\n'):
        problem(await api.post("/imports/inventory", content=body, headers=CSV), 400)
    problem(await api.post("/products", content=b"sku\nP0\n", headers=CSV), 415)


async def test_orders_are_placed_by_sku(api: Api, shop: Shop) -> None:
    """Lines of one reference are an order; the same again places nothing."""
    rows = [
        {"reference": "web-1", "warehouse": "W", "sku": "P0", "quantity": 2},
        {"reference": "web-1", "warehouse": "W", "sku": "P1", "quantity": 1, "unit_price": "1.5"},
        {"reference": "web-2", "warehouse": "W", "sku": "P0", "quantity": 1},
    ]
    pay_by = datetime.now(UTC) + timedelta(hours=1)
    rows[-1]["pay_by"] = pay_by.isoformat()
    done = await api.post("/imports/orders", json={"rows": rows})
    assert done.json()["changed"] == 2, done.text
    assert (await api.post("/imports/orders", json={"rows": rows})).json()["changed"] == 0
    totals = "select total_amount::text from orders order by order_number"
    assert await shop.values(totals) == ["21.5", "10"]
    held = await shop.values("select pay_by from orders order by order_number")
    assert held == [None, pay_by]


async def test_a_batch_is_bounded(api: Api, problem: Problem) -> None:
    """A thousand rows in JSON at most, of fields that there are."""
    told = problem(await api.post("/imports/products", json={"rows": [{"sku": "A"}] * 1001}), 400)
    assert [each["field"] for each in told["errors"]] == ["rows"]
    told = problem(await api.post("/imports/products", json={"rows": [{"skew": "A"}]}), 400)
    assert [each["field"] for each in told["errors"]] == ["rows[0].skew"]


async def test_imports_are_for_staff(client: Callable[..., Api], problem: Problem) -> None:
    """A customer imports nothing."""
    customer = client("authenticated", "01890000-0000-7000-8000-000000000001")
    for kind in ("products", "inventory", "movements", "orders"):
        problem(await customer.post(f"/imports/{kind}", json={"rows": []}), 403, "42501")
