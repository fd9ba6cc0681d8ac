"""An API over two cells: each request goes to the cell of its warehouse, or of its id.

The API was given home's address, and finds north by itself. All tests of this file have the same
two cells, with things of their own in them.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from network import Road
from places import Place
from shop import APPROVED, Shop

Api = httpx.AsyncClient
Client = Callable[..., Api]
Json = dict[str, Any]
Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
AWAY_SECONDS = 6
"""In which an answer comes, of whatever cell is away: it is 4 on a machine at rest."""


def body(product: UUID, warehouse: UUID, **more: Any) -> Json:
    """An order of one unit."""
    items = [{"product_id": str(product), "quantity": 1}]
    return {"warehouse_id": str(warehouse), "items": items, **more}


async def placed(api: Api, product: UUID, warehouse: UUID, **more: Any) -> Json:
    """An order, as it was answered."""
    response = await api.post("/orders", json=body(product, warehouse, **more))
    assert response.status_code == 201, response.text
    order: Json = response.json()
    return order


async def all_of(api: Api, path: str, **parameters: Any) -> list[Json]:
    """All rows of a list, page by page, by its cursor."""
    rows: list[Json] = []
    cursor = ""
    while cursor is not None:
        response = await api.get(path, params={**parameters, "cursor": cursor})
        assert response.status_code == 200, response.text
        page = response.json()
        assert "missing_cells" not in page
        rows += page["data"]
        cursor = page["next"]
    return rows


async def test_an_order_is_placed_read_and_changed_in_the_cell_of_its_warehouse(
    pair: Pair, api: Api, product: UUID
) -> None:
    """Its id says which cell that is; nothing of it is in the other."""
    here, there = pair
    for shop, other, warehouse, cell in (
        (here, there, here.lisbon, 1),
        (there, here, there.rotterdam, 2),
    ):
        order = await placed(api, product, warehouse)
        assert UUID(order["id"]).bytes[-1] == cell
        query = "select count(*) from orders where id = %s"
        assert await shop.value(query, order["id"]) == 1
        assert await other.value(query, order["id"]) == 0
        path = f"/orders/{order['id']}"
        assert (await api.get(path)).json()["warehouse"]["id"] == str(warehouse)
        changed = await api.patch(path, json={"email": "anna@example.com"})
        assert (changed.status_code, changed.json()["email"]) == (200, "anna@example.com")
        history = await api.get(f"/sagas/{order['id']}/events")
        assert history.json()["data"][0]["event_type"] == "saga_started"
        assert (await api.delete(path)).status_code == 202
        await shop.settle(await shop.advance(), APPROVED)
        assert (await api.get(path)).json()["status"] == "cancelled"
        stream = await api.get(f"{path}/events")
        assert "saga_compensated" in stream.text
        assert (await api.post(f"{path}/refunds", json={})).status_code == 409


async def test_what_belongs_to_an_order_is_where_it_is(pair: Pair, api: Api, product: UUID) -> None:
    """Refunds and returns of an order of another cell are made, read and listed there."""
    _, there = pair
    order = await placed(api, product, there.rotterdam)
    await there.settle(await there.advance(), APPROVED)
    path = f"/orders/{order['id']}"
    assert (await api.get(f"{path}/refunds")).json()["data"] == []
    made = await api.post(f"{path}/refunds", json={"amount": 1})
    assert made.status_code == 201, made.text
    assert (await api.get(made.headers["location"])).json()["id"] == made.json()["id"]
    assert [each["id"] for each in (await api.get(f"{path}/refunds")).json()["data"]] == [
        made.json()["id"]
    ]
    assert (await api.get(f"/sagas/{made.json()['id']}")).json()["saga_type"] == "refund"
    line = {"product_id": str(product), "quantity": 1}
    back = await api.post(f"{path}/returns", json={"items": [line]})
    assert back.status_code == 201, back.text
    movements = (await api.get(back.headers["location"])).json()["data"]
    assert [each["warehouse_id"] for each in movements] == [str(there.rotterdam)]
    await there.settle(await there.advance(), APPROVED)


async def test_an_id_that_a_client_chose_is_found_wherever_it_is(
    pair: Pair, api: Api, product: UUID
) -> None:
    """It says nothing of its cell; an id that nobody has is unknown, as in one database."""
    _, there = pair
    order = await placed(api, product, there.rotterdam, id=str(uuid4()))
    assert (await api.get(f"/orders/{order['id']}")).json()["order_number"] == order["order_number"]
    assert (await api.get(f"/orders/{order['id']}/shipments")).json()["data"] == []
    cancelled = await api.delete(f"/orders/{order['id']}")
    assert (cancelled.status_code, cancelled.json()["id"]) == (202, order["id"])
    for path in ("orders", "sagas", "inventory"):
        assert (await api.get(f"/{path}/{uuid4()}")).status_code == 404
    gone = await api.delete(f"/orders/{uuid4()}")
    assert (gone.status_code, gone.json()["code"]) == (404, "DP010")


async def test_customers_who_chose_one_id_in_two_cells_see_their_own(
    pair: Pair, client: Client, product: UUID
) -> None:
    """An id that somebody else has in another cell leads nobody to it, and shuts nobody out."""
    here, there = pair
    chosen = str(uuid4())
    for subject, warehouse in (("anna", here.lisbon), ("bert", there.rotterdam)):
        await placed(client("authenticated", subject), product, warehouse, id=chosen)
    for subject, warehouse in (("anna", here.lisbon), ("bert", there.rotterdam)):
        own = client("authenticated", subject)
        read = await own.get(f"/orders/{chosen}")
        assert read.status_code == 200, read.text
        assert read.json()["warehouse"]["id"] == str(warehouse)
        assert read.json()["customer_id"] == subject
        assert (await own.delete(f"/orders/{chosen}")).status_code == 202
    stranger = client("authenticated", "carl")
    assert (await stranger.get(f"/orders/{chosen}")).status_code == 404


async def test_what_belongs_to_an_id_of_two_cells_is_listed_for_whose_it_is(
    pair: Pair, client: Client, product: UUID
) -> None:
    """Its history and its refunds, though the cell that is asked first has none for them."""
    here, there = pair
    chosen = uuid4()
    for subject, warehouse in (("anna", here.lisbon), ("bert", there.rotterdam)):
        await placed(client("authenticated", subject), product, warehouse, id=str(chosen))
    await there.settle(await there.advance(), APPROVED)
    refund = await there.refund(chosen, 1)
    own = client("authenticated", "bert")
    refunds = await own.get(f"/orders/{chosen}/refunds")
    assert [each["id"] for each in refunds.json()["data"]] == [str(refund["id"])]
    for subject, least in (("anna", 1), ("bert", 3)):
        history = await all_of(client("authenticated", subject), f"/sagas/{chosen}/events", limit=1)
        assert len(history) >= least
        assert history[0]["event_type"] == "saga_started"
    others = await client("authenticated", "anna").get(f"/orders/{chosen}/refunds")
    assert others.json()["data"] == []
    await there.settle(await there.advance(), APPROVED)


async def test_lists_merge_what_all_cells_have(pair: Pair, api: Api, product: UUID) -> None:
    """By their order, with exact counts, by cursors and by offsets; filters as in one cell."""
    here, there = pair
    mine = str(uuid4())
    made = [
        await placed(api, product, (here.lisbon, there.rotterdam)[at % 2], customer_id=mine)
        for at in range(7)
    ]
    numbers = sorted((each["order_number"] for each in made), reverse=True)
    for limit in (1, 2, 3, 100):
        rows = await all_of(api, "/orders", customer_id=mine, limit=limit)
        assert [each["order_number"] for each in rows] == numbers
        by_offset: list[int] = []
        for offset in range(0, 7, limit):
            asked = {"customer_id": mine, "limit": limit, "offset": offset}
            page = (await api.get("/orders", params=asked)).json()
            assert page.keys() == {"data", "count", "limit", "offset", "next"}
            assert (page["count"], page["offset"]) == (7, offset)
            by_offset += [each["order_number"] for each in page["data"]]
        assert by_offset == numbers
    beyond = {"customer_id": mine, "offset": 7}
    assert (await api.get("/orders", params=beyond)).json()["data"] == []
    far = await api.get("/orders", params={"offset": 10_001})
    assert far.json()["errors"][0]["field"] == "offset"
    for warehouse in (here.lisbon, there.rotterdam):
        asked = {"customer_id": mine, "warehouse_id": str(warehouse)}
        page = (await api.get("/orders", params=asked)).json()
        assert {each["warehouse_id"] for each in page["data"]} == {str(warehouse)}
        assert page["count"] == len(page["data"])
    both = f"{here.lisbon},{there.rotterdam}"
    assert len(await all_of(api, "/orders", customer_id=mine, warehouse_id=both)) == 7
    for sort in ("-created_at", "quantity_sellable", "quantity_available,-created_at"):
        asked = {"product_id": str(product), "sort": sort, "limit": 1}
        shelves = await all_of(api, "/inventory", **asked)
        assert {each["warehouse_id"] for each in shelves} == {
            str(here.lisbon),
            str(there.rotterdam),
        }
        assert len(shelves) == 2


async def test_orders_of_all_cells_are_listed_by_time(pair: Pair, api: Api, product: UUID) -> None:
    """By their ids, though the numbers of one cell are all above those of the other."""
    here, there = pair
    customer = str(uuid4())
    places = [there.rotterdam, here.lisbon, there.rotterdam, here.lisbon]
    made = [(await placed(api, product, each, customer_id=customer))["id"] for each in places]
    for limit in (1, 100):
        of = {"customer_id": customer, "sort": "-id", "limit": limit}
        assert [each["id"] for each in await all_of(api, "/orders", **of)] == made[::-1]


async def test_equal_keys_in_two_cells_are_both_listed_once(
    pair: Pair, api: Api, product: UUID
) -> None:
    """Whatever the page ends with: movements of one number, and sagas of one chosen id."""
    here, there = pair
    chosen = [str(uuid4()) for _ in range(4)]
    for each in chosen:
        for warehouse in (here.lisbon, there.rotterdam):
            await placed(api, product, warehouse, id=each)
    for limit in (1, 2, 3):
        sagas = await all_of(api, "/sagas", limit=limit)
        found = sorted((each["id"], each["warehouse_id"]) for each in sagas if each["id"] in chosen)
        wanted = [(each, str(of)) for each in chosen for of in (here.lisbon, there.rotterdam)]
        assert found == sorted(wanted)
        assert len({(each["id"], each["warehouse_id"]) for each in sagas}) == len(sagas)
    ids = "select id from stock_movements"
    shared = set(await here.values(ids)) & set(await there.values(ids))
    assert shared
    for limit in (1, 5, 1000):
        movements = await all_of(api, "/stock-movements", limit=limit)
        keys = [(each["id"], each["warehouse_id"]) for each in movements]
        assert len(set(keys)) == len(keys)
        assert [each["id"] for each in movements] == sorted(
            (each["id"] for each in movements), reverse=True
        )
        assert len(keys) == sum(
            [await each.value(f"select count(*) from ({ids}) as m") for each in pair]
        )
    number = max(shared)
    assert (await api.get(f"/stock-movements/{number}")).status_code == 409
    for warehouse in (here.lisbon, there.rotterdam):
        asked = {"warehouse_id": str(warehouse)}
        one = await api.get(f"/stock-movements/{number}", params=asked)
        assert one.json()["warehouse_id"] == str(warehouse)
    assert (await api.get(f"/stock-movements/{2**40}")).status_code == 404


async def test_stock_moves_where_it_lies(pair: Pair, api: Api, product: UUID) -> None:
    """A receipt, a count and an import reach the shelf of another cell; none is in two at once."""
    here, there = pair
    move = {"movement_type": "receive", "product_id": str(product), "quantity": 5}
    made = await api.post("/stock-movements", json={**move, "warehouse_id": str(there.rotterdam)})
    assert made.status_code == 201, made.text
    assert (await api.get(made.headers["location"])).json()["id"] == made.json()["id"]
    asked = {"product_id": str(product), "warehouse_id": str(there.rotterdam)}
    (shelf,) = (await api.get("/inventory", params=asked)).json()["data"]
    counted = await api.patch(f"/inventory/{shelf['id']}", json={"quantity_available": 42})
    assert counted.status_code == 200, counted.text
    assert await there.stock(product, there.rotterdam) == (42, 0)
    row = {**move, "warehouse": "RTM"}
    done = await api.post("/imports/movements", json={"rows": [row, row]})
    assert done.status_code == 200, done.text
    assert await there.stock(product, there.rotterdam) == (52, 0)
    mixed = await api.post("/imports/movements", json={"rows": [row, {**row, "warehouse": "LIS"}]})
    assert (mixed.status_code, mixed.json()["code"]) == (422, "DP025")
    assert await there.stock(product, there.rotterdam) == (52, 0)
    assert await here.stock(product, here.lisbon) == (100, 0)


async def test_the_catalogue_is_written_at_home_whoever_is_asked(
    pair: Pair, serve: Callable[..., Client], places: tuple[Place, Place], until: Until
) -> None:
    """An API that was given north's address makes products at home, and finds them soon after."""
    here, _ = pair
    north = serve(places[1])()
    sku = str(uuid4())
    made = await north.post("/products", json={"sku": sku, "name": "Lamp", "unit_price": 5})
    assert made.status_code == 201, made.text
    path = made.headers["location"]
    assert await here.value("select count(*) from products where sku = %s", sku) == 1

    async def is_known() -> bool:
        return (await north.get(path)).status_code == 200

    await until(is_known)
    assert (await north.patch(path, json={"name": "Lantern"})).json()["name"] == "Lantern"
    row = {"sku": sku, "name": "Torch"}
    assert (await north.post("/imports/products", json={"rows": [row]})).status_code == 200
    assert await here.value("select name from products where sku = %s", sku) == "Torch"
    product = await here.value("select id from products where sku = %s", sku)
    await here.receive(product, 3, here.lisbon)
    order = await placed(north, product, here.lisbon)
    assert UUID(order["id"]).bytes[-1] == 1
    assert (await north.get(f"/orders/{order['id']}")).status_code == 200


async def test_a_customer_sees_what_was_ordered_in_whatever_cell(
    pair: Pair, api: Api, client: Client, product: UUID, until: Until
) -> None:
    """A product that isn't sold any more is shown to who has it in an order, and to nobody else."""
    _, there = pair
    path, mine = f"/products/{product}", client("authenticated", "fay")
    await placed(mine, product, there.rotterdam)
    assert (await api.patch(path, json={"is_active": False})).status_code == 200

    async def is_known() -> bool:
        return not await there.value("select is_active from products where id = %s", product)

    await until(is_known)
    assert (await mine.get(path)).json()["id"] == str(product)
    for others in (client("authenticated", "gus"), client(None)):
        assert (await others.get(path)).status_code == 404


async def test_a_warehouse_that_is_new_is_found(
    pair: Pair, api: Api, product: UUID, until: Until
) -> None:
    """Made in another cell after the API has begun, it takes orders once that cell knows it."""
    _, there = pair
    code = str(uuid4())[:8]
    made = await api.post("/warehouses", json={"code": code, "name": "N", "cell": 2})
    assert made.status_code == 201, made.text
    warehouse = UUID(made.json()["id"])

    async def is_known() -> bool:
        return bool(await there.values("select id from warehouses where id = %s", warehouse))

    await until(is_known)
    stocked = {"product_id": str(product), "warehouse_id": str(warehouse), "quantity_available": 3}
    assert (await api.post("/inventory", json=stocked)).status_code == 201
    await placed(api, product, warehouse)
    assert await there.stock(product, warehouse) == (3, 0)


async def test_a_key_is_where_its_effect_is(pair: Pair, api: Api, product: UUID) -> None:
    """The same again under an Idempotency-Key is answered from the cell that did it."""
    _, there = pair
    key = {"Idempotency-Key": str(uuid4())}
    asked = body(product, there.rotterdam)
    first, again = [await api.post("/orders", json=asked, headers=key) for _ in range(2)]
    assert (first.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    query = "select count(*) from idempotency_keys where idempotency_key = %s"
    counts = [await shop.value(query, key["Idempotency-Key"]) for shop in pair]
    assert counts == [0, 1]


async def timed(asked: Awaitable[httpx.Response]) -> tuple[httpx.Response, float]:
    """An answer, and the seconds that it took."""
    began = time.monotonic()
    response = await asked
    return response, time.monotonic() - began


@pytest.mark.parametrize("how", ["close", "swallow"])
async def test_a_cell_that_is_away_costs_its_own_warehouses(
    pair: Pair, api: Api, product: UUID, road: Road, until: Until, how: str
) -> None:
    """Others' orders go on; what is its own is 503 and names it; lists say what is missing."""
    here, there = pair
    mine = str(uuid4())
    orders = [
        await placed(api, product, warehouse, customer_id=mine)
        for warehouse in (here.lisbon, there.rotterdam)
    ]
    number = await here.value("select max(id) from stock_movements")
    try:
        if how == "close":
            await road.close()
        else:
            road.swallow()
        for within in (AWAY_SECONDS, 1, 1):  # once it is known to be away nobody waits
            page, took = await timed(api.get("/orders", params={"customer_id": mine}))
            assert took < within
            told = page.json()
            assert (told["missing_cells"], told["count_relation"]) == (["north"], "at_least")
            assert (told["count"], told["data"][0]["id"]) == (1, orders[0]["id"])
        await placed(api, product, here.lisbon)
        assert (await api.get(f"/orders/{orders[0]['id']}")).status_code == 200
        for asked in (
            api.post("/orders", json=body(product, there.rotterdam)),
            api.get(f"/orders/{orders[1]['id']}"),
            api.delete(f"/orders/{orders[1]['id']}"),
            api.get(f"/orders/{uuid4()}"),
            api.get(f"/stock-movements/{number}"),
        ):
            refused, took = await timed(asked)
            assert took < 1
            assert refused.status_code == 503, refused.text
            assert "north" in refused.json()["detail"]
            assert "retry-after" in refused.headers
        none = await api.get("/orders", params={"warehouse_id": str(there.rotterdam)})
        assert none.status_code == 503
        known = {"warehouse_id": str(here.lisbon)}
        assert (await api.get(f"/stock-movements/{number}", params=known)).status_code == 200
        # What is on its way to Lisbon north would know.
        shelves = await api.get("/inventory", params={"warehouse_id": str(here.lisbon)})
        assert "quantity_in_transit" not in shelves.json()["data"][0]
        ready = await api.get("/health/ready")
        assert (ready.status_code, ready.json()["missing_cells"]) == (200, ["north"])
    finally:
        await road.restore()

    async def is_back() -> bool:
        return (await api.get(f"/orders/{orders[1]['id']}")).status_code == 200

    await until(is_back)
    page = await api.get("/orders", params={"customer_id": mine})
    assert (page.json()["count"], page.json().keys() & {"missing_cells"}) == (2, set())
    assert "missing_cells" not in (await api.get("/health/ready")).json()


async def test_whose_id_it_is_isnt_told_while_a_cell_is_away(
    pair: Pair, api: Api, client: Client, product: UUID, road: Road, until: Until
) -> None:
    """What a customer may have there isn't called missing, whoever has the id elsewhere."""
    here, _ = pair
    order = await placed(api, product, here.lisbon)
    mine = client("authenticated", "hal")
    own = await placed(mine, product, here.lisbon)
    await road.close()
    try:
        for unknown in (order["id"], uuid4()):
            assert (await mine.get(f"/orders/{unknown}")).status_code == 503
            assert (await mine.delete(f"/orders/{unknown}")).status_code == 503
        assert (await mine.get(f"/orders/{own['id']}")).status_code == 200
        missing = f"/orders/{order['id']}/refunds/{uuid4()}"
        assert (await api.get(missing)).status_code == 404
    finally:
        await road.restore()

    async def is_back() -> bool:
        return (await mine.get(f"/orders/{order['id']}")).status_code == 404

    await until(is_back)


async def test_every_list_is_of_all_cells(
    pair: Pair, api: Api, client: Client, product: UUID
) -> None:
    """Whoever asks: staff, customers for their own, and whoever comes without a token."""
    here, there = pair
    warehouses = {str(here.lisbon), str(there.rotterdam)}
    for shop, warehouse in ((here, here.lisbon), (there, there.rotterdam)):
        await shop.run(
            "update inventory set reorder_point = 1000, reorder_quantity = 10"
            " where product_id = %s and warehouse_id = %s",
            *(product, warehouse),
        )
    for sort in ("-shortage", "sku"):
        asked = {"product_id": str(product), "sort": sort, "limit": 1}
        found = await all_of(api, "/inventory/reorder-suggestions", **asked)
        assert sorted(each["warehouse_id"] for each in found) == sorted(warehouses)
    everybody = await all_of(client(None), "/inventory", product_id=str(product), limit=1)
    assert sorted(each["warehouse_id"] for each in everybody) == sorted(warehouses)
    for subject in ("dora", "emil"):
        own = client("authenticated", subject)
        for warehouse in (here.lisbon, there.rotterdam):
            await placed(own, product, warehouse)
        for path in ("/orders", "/sagas"):
            page = (await own.get(path)).json()
            assert (page["count"], len(page["data"])) == (2, 2), path
            assert {each["warehouse_id"] for each in page["data"]} == warehouses
    assert (await api.get("/orders/to-ship")).json()["data"] == []
