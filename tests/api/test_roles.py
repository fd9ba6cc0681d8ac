"""Each role at the API: its own, no more, and the right refusal for the rest."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from shop import APPROVED, DECLINED, Shop

Json = dict[str, Any]
Client = Callable[..., httpx.AsyncClient]
Problem = Callable[..., Json]
OrderBody = Callable[..., Json]
RunSagas = Callable[..., Awaitable[None]]
Listed = Callable[..., Awaitable[list[Json]]]

ALICE, BOB = uuid4(), uuid4()


async def placed(api: httpx.AsyncClient, body: Json) -> str:
    """Place an order; its id."""
    told = await api.post("/orders", json=body)
    assert told.status_code == 201, told.text
    return str(told.json()["id"])


@pytest.mark.parametrize("role", [None, "anon", "authenticated"])
async def test_what_is_sold_is_open_to_everybody(
    client: Client, shop: Shop, problem: Problem, role: str | None
) -> None:
    """Active products and warehouses, and how much of each can be sold: nothing else of stock."""
    api = client(role, ALICE)
    gone = await shop.product(is_active=False, on_hand=3)
    assert (await api.get("/products")).json()["count"] == 2
    problem(await api.get(f"/products/{gone}"), 404)
    assert (await api.get("/warehouses")).json()["count"] == 1
    await shop.order((shop.products[1], 2))
    await shop.advance()
    rows = (await api.get(f"/inventory?product_id={shop.products[1]}")).json()["data"]
    assert [row["quantity_sellable"] for row in rows] == [3]
    (row,) = rows
    seen = {"id", "product_id", "warehouse_id", "quantity_sellable", "created_at", "version"}
    assert row.keys() == {*seen, "product", "warehouse"}
    assert (await api.get(f"/inventory/{row['id']}")).json() == row
    assert (await api.get("/inventory")).json()["count"] == 2
    if role:
        problem(await api.get("/inventory?low_stock=true"), 403, "42501")
    else:
        problem(await api.get("/inventory?low_stock=true"), 401, "DP030")


async def test_a_reader_reads_everything_and_changes_nothing(
    client: Client, shop: Shop, order_body: OrderBody, problem: Problem
) -> None:
    """A token of darkpearl_reader sees what staff see; the database lets it do nothing."""
    order = await shop.order((shop.products[0], 1), p_customer_id="grace")
    reader = client("darkpearl_reader", "ada")
    for path in ("/orders", "/sagas", "/inventory?low_stock=true", "/stock-movements"):
        assert (await reader.get(path)).status_code == 200, path
    assert (await reader.get(f"/orders/{order}")).json()["customer_id"] == "grace"
    problem(await reader.post("/orders", json=order_body((0, 1))), 403, "42501")
    problem(await reader.delete(f"/orders/{order}"), 403, "42501")


@pytest.mark.parametrize(
    "subject", ["auth0|5f7c8ec7", "José@example.com", "A5F7C8EC-0000-4000-8000-00000000000B"]
)
async def test_a_customer_is_the_subject_of_its_token(
    client: Client, order_body: OrderBody, listed: Listed, subject: str
) -> None:
    """Any text of visible characters is one, to the letter; staff find the orders by it."""
    order = (await client("authenticated", subject).post("/orders", json=order_body((0, 1)))).json()
    assert order["customer_id"] == subject
    seen = (await client("authenticated", subject).get("/orders")).json()["data"]
    assert [each["id"] for each in seen] == [order["id"]]
    assert (await client("authenticated", subject.swapcase()).get("/orders")).json()["data"] == []
    assert [each["id"] for each in await listed("/orders", customer_id=subject)] == [order["id"]]


async def test_customers_place_and_follow_their_orders(
    client: Client, shop: Shop, order_body: OrderBody, run_sagas: RunSagas
) -> None:
    """An order is its customer's without a word, with lines, payment, saga and events."""
    api = client("authenticated", ALICE)
    told = await api.post("/orders", json=order_body((0, 2)))
    assert told.status_code == 201, told.text
    assert told.json()["customer_id"] == str(ALICE)
    order = told.json()["id"]
    assert (await shop.event(UUID(order), "saga_started"))["actor"] == str(ALICE)
    await run_sagas()
    whole = (await api.get(f"/orders/{order}")).json()
    assert (whole["status"], whole["total_amount"]) == ("fulfilled", 20)
    assert [line["product"]["sku"] for line in whole["items"]] == ["P0"]
    assert whole["payment"]["status"] == "captured"
    assert whole["saga"]["status"] == "completed"
    assert [each["id"] for each in (await api.get("/orders")).json()["data"]] == [order]
    assert [each["id"] for each in (await api.get("/sagas")).json()["data"]] == [order]
    assert (await api.get(f"/sagas/{order}")).json()["id"] == order
    assert (await api.get(f"/sagas/{order}/events")).json()["count"] == 6
    assert (await api.get(f"/orders/{order}/events")).text.count("event: ") == 6


async def test_what_was_ordered_stays_readable(
    client: Client, shop: Shop, order_body: OrderBody, problem: Problem
) -> None:
    """A product or warehouse that is given up is still named in the orders of who bought there."""
    api = client("authenticated", ALICE)
    order = await placed(api, order_body((0, 1)))
    await shop.run("update products set is_active = false")
    await shop.run("update warehouses set is_active = false")
    whole = (await api.get(f"/orders/{order}")).json()
    assert whole["items"][0]["product"]["sku"] == "P0"
    assert whole["warehouse"]["code"] == "W"
    assert (await api.get("/products")).json()["count"] == 1
    assert (await client("authenticated", BOB).get("/products")).json()["count"] == 0
    assert (await api.get("/inventory")).json()["count"] == 0
    problem(await api.post("/orders", json=order_body((0, 1))), 422, "DP003")


async def test_customers_see_nothing_of_others(
    client: Client, order_body: OrderBody, problem: Problem
) -> None:
    """Another's order isn't there: not to read, not to follow, not to cancel."""
    order = await placed(client("authenticated", ALICE), order_body((0, 1)))
    api = client("authenticated", BOB)
    for path in ("/orders", "/sagas", f"/orders?customer_id={ALICE}"):
        page = (await api.get(path)).json()
        assert (page["data"], page["count"], page["next"]) == ([], 0, None)
    for path in ("/orders/{}", "/orders/{}/events", "/sagas/{}", "/sagas/{}/events"):
        problem(await api.get(path.format(order)), 404)
    problem(await api.delete(f"/orders/{order}"), 404, "DP010")
    assert (await client("service_role").get(f"/orders/{order}")).json()["status"] == "pending"


async def test_customers_name_no_other_and_no_price(
    client: Client, shop: Shop, order_body: OrderBody, problem: Problem
) -> None:
    """Nobody orders in another's name, or for less."""
    api = client("authenticated", ALICE)
    body = order_body((0, 1), customer_id=str(BOB))
    problem(await api.post("/orders", json=body), 403, "42501")
    item = {"product_id": str(shop.products[0]), "quantity": 1, "unit_price": 0.01}
    body = {"warehouse_id": str(shop.lisbon), "items": [item]}
    problem(await api.post("/orders", json=body), 403, "DP002")
    await placed(api, order_body((0, 1), customer_id=str(ALICE)))


async def test_customers_cancel_their_own(
    client: Client, shop: Shop, order_body: OrderBody, run_sagas: RunSagas
) -> None:
    """The history says who asked, and the saga gives everything back."""
    api = client("authenticated", ALICE)
    order = await placed(api, order_body((0, 1)))
    assert (await api.delete(f"/orders/{order}?reason=too+late")).status_code == 202
    event = await shop.event(UUID(order), "cancelled")
    assert (event["actor"], event["message"]) == (str(ALICE), "too late")
    await run_sagas()
    assert (await api.get(f"/orders/{order}")).json()["status"] == "cancelled"


@pytest.mark.parametrize("role", ["anon", "authenticated"])
async def test_the_rest_is_for_staff(
    client: Client, shop: Shop, problem: Problem, role: str
) -> None:
    """Ledger and changes of catalogue and stock are refused, whatever row they name."""
    api = client(role, ALICE)
    product, warehouse = shop.products[0], shop.lisbon
    stock = await shop.value("select id from inventory where product_id = %s", product)
    both = {"product_id": str(product), "warehouse_id": str(warehouse)}
    move = {**both, "movement_type": "receive", "quantity": 1}
    for told in (
        await api.get("/stock-movements"),
        await api.post("/stock-movements", json=move),
        await api.post("/products", json={"sku": "X", "name": "X", "unit_price": 1}),
        await api.patch(f"/products/{product}", json={"unit_price": 0}),
        await api.delete(f"/products/{product}"),
        await api.post("/warehouses", json={"code": "X", "name": "X"}),
        await api.patch(f"/warehouses/{warehouse}", json={"name": "X"}),
        await api.delete(f"/warehouses/{warehouse}"),
        await api.post("/inventory", json=both),
        await api.patch(f"/inventory/{stock}", json={"quantity_available": 0}),
        await api.patch(f"/inventory/{stock}", json={"reorder_point": 0}),
        await api.delete(f"/inventory/{stock}"),
    ):
        problem(told, 403, "42501")


async def test_staff_order_for_others_and_are_no_customers(
    client: Client, shop: Shop, order_body: OrderBody
) -> None:
    """The subject of a member of staff signs the history; it owns no order by itself."""
    api = client("service_role", "clerk")
    order = await placed(api, order_body((0, 1)))
    theirs = await placed(api, order_body((0, 1), customer_id=str(ALICE)))
    assert (await api.get(f"/orders/{order}")).json()["customer_id"] is None
    assert (await shop.event(UUID(order), "saga_started"))["actor"] == "clerk"
    assert (await client("authenticated", ALICE).get(f"/orders/{theirs}")).status_code == 200
    assert (await api.delete(f"/orders/{theirs}")).status_code == 202


SUSPICION = "HTTPError: 403 from https://risk.internal/score?card=4242"


async def test_customers_are_told_in_our_words(
    client: Client, shop: Shop, order_body: OrderBody
) -> None:
    """What a gateway writes is for staff: no payment, refund, saga, event or stream has it."""
    api, staff = client("authenticated", ALICE), client("service_role")
    declined = await placed(api, order_body((0, 1)))
    for answer in (
        {"outcome": "unknown", "message": SUSPICION},
        {"outcome": "declined", "code": "fraudulent", "message": SUSPICION},
    ):
        await shop.settle(await shop.advance(), answer)
        await shop.turn_clock(10)
    paid = await placed(api, order_body((0, 1)))
    await shop.settle(await shop.advance(), APPROVED)
    asked = await staff.post(f"/orders/{paid}/refunds", json={})
    assert asked.status_code == 201
    answer = {"outcome": "declined", "code": "do_not_honor_4242", "message": SUSPICION}
    await shop.settle(await shop.advance(), answer)
    refunds = f"/orders/{paid}/refunds"
    paths = [
        *(f"/{each}/{declined}" for each in ("orders", "sagas")), "/sagas", f"/orders/{paid}",
        *(f"/{each}/{declined}/events" for each in ("orders", "sagas")),
        refunds, f"{refunds}/{asked.json()['id']}",
    ]  # fmt: skip
    told = {path: [(await who.get(path)).text for who in (api, staff)] for path in paths}
    for path, (customers, staffs) in told.items():
        assert not any(each in customers for each in ("HTTPError", "do_not_honor", "fraudulent")), (
            path
        )
        assert any(each in staffs for each in ("HTTPError", "do_not_honor", "fraudulent")), path
    order = (await api.get(f"/orders/{declined}")).json()
    assert order["payment"]["decline_code"] == "card_declined"
    assert order["saga"]["error_message"] == "payment declined"
    assert (await api.get(refunds)).json()["data"][0]["decline_code"] == "card_declined"
    messages = [each["message"] for each in (await api.get(paths[-3])).json()["data"]]
    assert [each for each in messages if each] == ["an outside system failed", "payment declined"]


async def test_customers_read_their_own_words_and_what_was_short(
    client: Client, order_body: OrderBody, run_sagas: RunSagas, shop: Shop
) -> None:
    """Their own reason to cancel and which product is short; not what staff noted."""
    api, staff = client("authenticated", ALICE), client("service_role")
    orders = [await placed(api, order_body((0, 1))) for _ in range(2)]
    await api.delete(f"/orders/{orders[0]}?reason=changed+my+mind")
    await staff.delete(f"/orders/{orders[1]}?reason=looks+like+a+thief")
    orders.append(await placed(api, order_body((1, 6))))
    await run_sagas()
    pages = [(await api.get(f"/sagas/{each}/events")).text for each in orders]
    assert ["changed my mind" in pages[0], "thief" in pages[1]] == [True, False]
    assert f"not enough stock of product {shop.products[1]}" in pages[2]


async def test_a_visitors_version_counts_nothing(client: Client, shop: Shop) -> None:
    """It stands for what is shown: orders that come and go leave it as it was: 304."""
    api = client()
    path = f"/inventory/{(await api.get('/inventory')).json()['data'][0]['id']}"
    product = UUID((await api.get(path)).json()["product_id"])
    tags = []
    for _ in range(3):
        tags.append((await api.get(path)).headers["etag"])
        await shop.order((product, 1))
        asked = await shop.advance()
        changed = (await api.get(path)).headers["etag"]
        assert changed != tags[-1]
        await shop.settle(asked, DECLINED)
        unchanged = await api.get(path, headers={"if-none-match": tags[0]})
        assert unchanged.status_code == 304
    assert len(set(tags)) == 1
