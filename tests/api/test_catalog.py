"""Products and warehouses."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from shop import Shop

Api = httpx.AsyncClient
Listed = Callable[..., Awaitable[list[dict[str, Any]]]]
Problem = Callable[..., dict[str, Any]]

PRODUCT = {"sku": "LAMP", "name": "Lamp", "unit_price": 19.99}


async def test_a_product_is_created_with_its_location(api: Api) -> None:
    """POST answers 201 with the row and where it is; GET there answers the same."""
    made = await api.post("/products", json=PRODUCT)
    assert made.status_code == 201
    assert made.json() | PRODUCT == made.json()
    assert made.json()["is_active"] is True
    assert made.json()["currency"] == "USD"
    found = await api.get(made.headers["location"])
    assert found.json() == made.json()


async def test_amounts_are_numbers_in_their_exact_text(api: Api) -> None:
    """A price comes back digit by digit as sent, as a JSON number; text is taken too."""
    for sent in ("123456789012.3456", '"0.10"'):
        body = f'{{"sku": "{uuid4()}", "name": "x", "currency": "CLF", "unit_price": {sent}}}'
        made = await api.post(
            "/products", content=body, headers={"content-type": "application/json"}
        )
        assert f'"unit_price":{sent.strip(chr(34))},' in made.text


@pytest.mark.parametrize("price", ["NaN", "-1", "1e400", "0.00001", "1000000000000", "abc"])
async def test_an_amount_that_cannot_be_one_is_refused(
    api: Api, problem: Problem, price: str
) -> None:
    """Not a number, negative, too big or too fine: 400 and the field."""
    told = problem(await api.post("/products", json={**PRODUCT, "unit_price": price}), 400)
    assert "unit_price" in str(told["errors"])


async def test_a_times_offset_is_there(api: Api) -> None:
    """Every time stamp says which time it is."""
    made = await api.post("/products", json=PRODUCT)
    assert made.json()["created_at"].endswith(("Z", "+00:00"))


async def test_a_sku_is_given_once(api: Api, problem: Problem) -> None:
    """A second product of the same SKU is a conflict that names the law."""
    await api.post("/products", json=PRODUCT)
    told = problem(await api.post("/products", json=PRODUCT), 409, "23505")
    assert told["constraint"] == "products_sku_is_unique"
    assert told["detail"] == "There is a product with this SKU already."


async def test_a_law_of_the_schema_is_told(api: Api, problem: Problem) -> None:
    """A value that only a CHECK refuses is 422, without the row's other columns."""
    told = problem(await api.post("/products", json={**PRODUCT, "name": "   "}), 422, "23514")
    assert told["detail"].startswith("A product's name has 1 to 255 characters")
    assert "LAMP" not in str(told)


async def test_every_bad_field_is_named_at_once(api: Api, problem: Problem) -> None:
    """One answer lists each missing, unknown and wrong field."""
    body = {"name": "", "unit_price": True, "is_active": "yes", "price": 1}
    told = problem(await api.post("/products", json=body), 400)
    assert {each["field"] for each in told["errors"]} == {
        "sku",
        "name",
        "unit_price",
        "is_active",
        "price",
    }


async def test_a_patch_changes_what_is_sent_alone(api: Api) -> None:
    """PATCH leaves what is left out; null empties what can be empty."""
    made = (await api.post("/products", json={**PRODUCT, "description": "old"})).json()
    path = f"/products/{made['id']}"
    changed = (await api.patch(path, json={"name": "Lamp 2", "is_active": False})).json()
    assert changed == {
        **made,
        "name": "Lamp 2",
        "is_active": False,
        "version": 2,
        "updated_at": changed["updated_at"],
    }
    assert (await api.patch(path, json={"description": None})).json()["description"] is None
    assert (await api.patch(path, json={})).json()["name"] == "Lamp 2"


async def test_a_patch_may_call_itself_a_merge_patch(api: Api, problem: Problem) -> None:
    """application/merge-patch+json (RFC 7396) is taken by PATCH, and by nothing else."""
    path = (await api.post("/products", json=PRODUCT)).headers["location"]
    merge = {"content-type": "application/merge-patch+json"}
    changed = await api.patch(path, content='{"name": "Merged"}', headers=merge)
    assert changed.json()["name"] == "Merged"
    told = problem(await api.put(path, content="{}", headers=merge), 415)
    assert told["hint"] == "Send application/json."
    told = problem(await api.patch(path, content="{}", headers={"content-type": "text/x"}), 415)
    assert "merge-patch" in told["hint"]


async def test_a_patch_is_refused_whole(api: Api, problem: Problem) -> None:
    """Unknown fields, and null where there has to be a value, are named, and nothing changes."""
    made = await api.post("/products", json=PRODUCT)
    path = made.headers["location"]
    body = {"sku": None, "is_active": None, "price": 1, "id": str(uuid4()), "name": "x"}
    told = problem(await api.patch(path, json=body), 400)
    assert {each["field"] for each in told["errors"]} == {"sku", "is_active", "price", "id"}
    assert (await api.get(path)).json() == made.json()


async def test_a_put_replaces_the_whole(api: Api, problem: Problem) -> None:
    """Fields that may be left out get defaults; those that must be there are named, with PATCH."""
    body = {**PRODUCT, "description": "old", "currency": "EUR", "is_active": False}
    made = await api.post("/products", json=body)
    path = made.headers["location"]
    replaced = (await api.put(path, json=PRODUCT)).json()
    assert replaced == {
        **made.json(),
        "description": None,
        "currency": "USD",
        "is_active": True,
        "version": 2,
        "updated_at": replaced["updated_at"],
    }
    told = problem(await api.put(path, json={"name": "Lamp 2"}), 400)
    assert {each["field"] for each in told["errors"]} == {"sku", "unit_price"}
    assert "PATCH" in told["hint"]
    assert (await api.get(path)).json() == replaced


async def test_a_free_product_is_deleted_and_a_used_one_stays(
    api: Api, shop: Any, problem: Problem
) -> None:
    """DELETE answers 204 once; 409 while other rows refer to it."""
    made = (await api.post("/products", json=PRODUCT)).json()
    gone = await api.delete(f"/products/{made['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    problem(await api.delete(f"/products/{made['id']}"), 404)
    problem(await api.delete(f"/products/{shop.products[0]}"), 409, "DP016")


async def test_what_is_not_there_is_404(api: Api, problem: Problem) -> None:
    """Of every resource, read or changed; an id that is none is nowhere too."""
    for path in ("/products", "/warehouses", "/inventory", "/orders", "/sagas"):
        problem(await api.get(f"{path}/{uuid4()}"), 404)
        problem(await api.get(f"{path}/no-id"), 404)
    for path in ("/products", "/warehouses", "/inventory"):
        problem(await api.patch(f"{path}/{uuid4()}", json={}), 404)
        problem(await api.delete(f"{path}/{uuid4()}"), 404)


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("lamp", ["DESK", "LAMP-14/B", "LAMPX1"]),
        ("14 lamp", ["LAMP-14/B"]),
        ("lamp-14", ["LAMP-14/B"]),
        ("b", ["LAMP-14/B"]),
        ("cafe grun", ["LAMP-14/B"]),
        ("CAF\u00c9", ["LAMP-14/B"]),
        ("less", []),
        ("lamp 15", []),
        ("des lampl", ["DESK"]),
        ("100%", ["LAMPX1"]),
        ("'; drop table products; -- | & !", []),
        ("%", []),
        ("\\", []),
    ],
)
async def test_a_search_is_for_the_beginnings_of_words(
    api: Api, client: Callable[..., Api], listed: Listed, search: str, found: list[str]
) -> None:
    """In any order, in SKU and name, without regard to case, accents and signs; for all callers."""
    for sku, name in (
        ("LAMP-14/B", "Lamp, gr\u00fcn, Caf\u00e9"),
        ("LAMPX1", "Lamp 100%"),
        ("DESK", "lampless desk"),
    ):
        await api.post("/products", json={"sku": sku, "name": name, "unit_price": 1})
    rows = await listed("/products", search=search, sort="sku")
    assert [each["sku"] for each in rows] == found
    shown = (await client().get("/products", params={"search": search, "sort": "sku"})).json()
    assert [each["sku"] for each in shown["data"]] == found
    assert shown["count"] == len(found)


async def test_a_search_finds_nobody_what_they_may_not_see(
    client: Callable[..., Api], listed: Listed, shop: Shop
) -> None:
    """An inactive product is found by staff, by customers who have ordered it, and nobody else."""
    lamp = await shop.product(sku="LAMP-1", name="Lamp", on_hand=1)
    mine, other = str(uuid4()), str(uuid4())
    await shop.order((lamp, 1), p_customer_id=mine)
    await shop.run("update products set is_active = false where id = %s", lamp)
    assert len(await listed("/products", search="lamp")) == 1
    for caller, seen in (
        (client(), 0), (client("authenticated", other), 0), (client("authenticated", mine), 1)
    ):  # fmt: skip
        assert len((await caller.get("/products?search=lamp")).json()["data"]) == seen
    await shop.run("set session authorization darkpearl_api")
    for claims, seen in (({}, 0), ({"sub": other}, 0), ({"sub": mine}, 1)):
        await shop.run("select set_config('request.jwt.claims', %s, false)", json.dumps(claims))
        async with shop.acting_as("authenticated" if claims else "anon"):
            assert await shop.value("select count(*) from find_products('lamp')") == seen
    await shop.run("reset session authorization")


async def test_lists_filter_by_is_active(api: Api, listed: Listed) -> None:
    """Of products and of warehouses."""
    for path, body in (("/products", PRODUCT), ("/warehouses", {"code": "A", "name": "A"})):
        one = (await api.post(path, json=body)).json()["id"]
        key = "sku" if path == "/products" else "code"
        two = (await api.post(path, json={**body, key: "B", "is_active": False})).json()["id"]
        assert [each["id"] for each in await listed(path, is_active="true")] == [one]
        assert [each["id"] for each in await listed(path, is_active="false")] == [two]
        assert [each["id"] for each in await listed(path)] == [two, one]


async def test_count_is_of_all_rows_that_match(api: Api) -> None:
    """A page behind the end is empty and still says how many there are."""
    for number in range(3):
        await api.post("/products", json={**PRODUCT, "sku": f"S{number}"})
    page = (await api.get("/products?limit=1&offset=1")).json()
    assert [page["count"], page["limit"], page["offset"]] == [3, 1, 1]
    assert [each["sku"] for each in page["data"]] == ["S1"]
    behind = (await api.get("/products?offset=7")).json()
    assert [behind["count"], behind["data"]] == [3, []]


@pytest.mark.parametrize(
    "path",
    ["/products", "/warehouses", "/inventory", "/stock-movements", "/orders", "/sagas"],
)
async def test_bad_paging_names_every_parameter(api: Api, problem: Problem, path: str) -> None:
    """limit is 1 to 1000, offset 0 or more."""
    told = problem(await api.get(f"{path}?limit=0&offset=-1"), 400)
    assert {each["field"] for each in told["errors"]} == {"limit", "offset"}
    problem(await api.get(f"{path}?limit=1001"), 400)
    assert (await api.get(f"{path}?limit=1000")).status_code == 200


async def test_a_warehouse_lives_as_a_product_does(api: Api, shop: Any, problem: Problem) -> None:
    """Created with its location, read, changed, refused twice, deleted when nothing is in it."""
    body = {"code": "LIS", "name": "Lisbon", "address": "Doca"}
    made = await api.post("/warehouses", json=body)
    assert made.status_code == 201
    path = made.headers["location"]
    assert (await api.get(path)).json() == made.json()
    problem(await api.post("/warehouses", json=body), 409, "23505")
    assert (await api.patch(path, json={"address": None})).json()["address"] is None
    assert (await api.put(path, json=body)).json()["address"] == "Doca"
    assert (await api.delete(path)).status_code == 204
    problem(await api.delete(f"/warehouses/{shop.lisbon}"), 409, "DP016")
