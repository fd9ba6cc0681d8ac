"""ETags: conditional reads, and writes that overwrite only what their client has seen."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import anyio
import httpx
import pytest
from shop import Shop

Api = httpx.AsyncClient
Json = dict[str, Any]
Problem = Callable[..., Json]

PRODUCT = {"sku": "LAMP", "name": "Lamp", "unit_price": 19.99}
WAREHOUSE = {"code": "X", "name": "X"}


@pytest.fixture(params=["products", "warehouses", "inventory"])
async def resource(request: pytest.FixtureRequest, api: Api, shop: Any) -> tuple[str, Json, Json]:
    """The path of a new row, the whole of it for a PUT, and a change for a PATCH."""
    body: Json = {"products": PRODUCT, "warehouses": WAREHOUSE}.get(request.param, {})
    whole, change = body, {"name": "Changed"}
    if request.param == "inventory":
        spare = (await api.post("/products", json=PRODUCT)).json()["id"]
        body = {"product_id": spare, "warehouse_id": str(shop.lisbon)}
        whole, change = {"reorder_point": 1, "reorder_quantity": 2}, {"reorder_point": 7}
    made = await api.post(f"/{request.param}", json=body)
    assert made.headers["etag"] == f'"{made.json()["version"]}"'
    return made.headers["location"], whole, change


async def test_every_representation_has_its_tag(api: Api, resource: tuple[str, Json, Json]) -> None:
    """It is the same at each read, changes with each change, and a list tells it as version."""
    path, _, change = resource
    first = await api.get(path)
    assert first.headers["cache-control"] == "private, no-cache", "to ask again, one has to keep it"
    assert (await api.get(path)).headers["etag"] == first.headers["etag"]
    changed = await api.patch(path, json=change)
    assert changed.headers["etag"] == f'"{first.json()["version"] + 1}"'
    again = await api.patch(path, json=change)
    assert again.headers["etag"] == changed.headers["etag"], "what changes nothing is no change"
    assert again.json() == changed.json()
    rows = (await api.get(path.rpartition("/")[0])).json()["data"]
    assert changed.json() in rows


async def test_a_known_tag_is_not_sent_again(api: Api, resource: tuple[str, Json, Json]) -> None:
    """If-None-Match answers 304 without a body, for weak tags and lists too, until it changes."""
    path, _, change = resource
    tag = (await api.get(path)).headers["etag"]
    for known in (tag, f"W/{tag}", f'"0", {tag}', "*"):
        told = await api.get(path, headers={"if-none-match": known})
        assert (told.status_code, told.content, told.headers["etag"]) == (304, b"", tag), known
        assert told.headers["cache-control"] == "private, no-cache"
    for unknown in ('"0"', '"abc"', '"99999999999999999999"'):
        assert (await api.get(path, headers={"if-none-match": unknown})).status_code == 200
    await api.patch(path, json=change)
    assert (await api.get(path, headers={"if-none-match": tag})).status_code == 200


async def test_a_write_needs_the_version_it_names(
    api: Api, resource: tuple[str, Json, Json], problem: Problem
) -> None:
    """PUT, PATCH and DELETE under an older, a foreign or a weak tag are 412 and change nothing."""
    path, whole, change = resource
    old = (await api.get(path)).headers["etag"]
    now = (await api.patch(path, json=change, headers={"if-match": old})).headers["etag"]
    before = (await api.get(path)).json()
    for wrong in (old, '"abc"', f"W/{now}", f'{old}, "x"'):
        headers = {"if-match": wrong}
        for told in (
            await api.put(path, json=whole, headers=headers),
            await api.patch(path, json=change, headers=headers),
            await api.delete(path, headers=headers),
        ):
            document = problem(told, 412, "DP035")
            assert now.strip('"') in document["detail"]
    assert (await api.get(path)).json() == before
    assert (await api.put(path, json=whole, headers={"if-match": f"{old}, {now}"})).is_success
    assert (await api.put(path, json=whole, headers={"if-match": "*"})).is_success
    now = (await api.get(path)).headers["etag"]
    assert (await api.delete(path, headers={"if-match": now})).status_code == 204
    for anything in ("*", now):
        problem(await api.delete(path, headers={"if-match": anything}), 404)


async def test_a_tag_that_is_none_is_a_bad_request(api: Api, problem: Problem) -> None:
    """A bare number and other nonsense is 400 and names the header."""
    path = (await api.post("/products", json=PRODUCT)).headers["location"]
    for wrong in ("1", '"1', "", ",", '"1" "2"', "W/1", "*, *", '"' * 999):
        told = problem(await api.patch(path, json={}, headers={"if-match": wrong}), 400)
        assert told["errors"][0]["field"] == "If-Match", wrong
        told = problem(await api.get(path, headers={"if-none-match": wrong}), 400)
        assert told["errors"][0]["field"] == "If-None-Match", wrong


async def test_a_shelfs_tag_changes_with_all_that_it_shows(api: Api, shop: Any) -> None:
    """Units that move and a product that is renamed make another representation."""
    row = (await api.get("/inventory", params={"product_id": shop.products[0]})).json()["data"][0]
    path = f"/inventory/{row['id']}"
    tags = [(await api.get(path)).headers["etag"]]
    await shop.receive(shop.products[0], 1)
    tags.append((await api.get(path)).headers["etag"])
    await api.patch(f"/products/{shop.products[0]}", json={"name": str(uuid4())})
    tags.append((await api.get(path)).headers["etag"])
    await api.patch(f"/warehouses/{shop.lisbon}", json={"name": str(uuid4())})
    tags.append((await api.get(path)).headers["etag"])
    assert len(set(tags)) == 4


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_writer_that_is_quicker_is_seen(
    api: Api, shop: Shop, connect: Callable[..., Awaitable[Any]], problem: Problem, method: str
) -> None:
    """A write under the tag of a row that another is just changing waits, and is then told."""
    path = (await api.post("/products", json=PRODUCT)).headers["location"]
    quicker = await connect(autocommit=False)
    await quicker.execute("update products set name = 'Quicker' where sku = 'LAMP'")
    body = None if method == "DELETE" else {**PRODUCT, "name": "Slower"}
    slower = asyncio.create_task(api.request(method, path, json=body, headers={"if-match": '"1"'}))
    waiting = "select count(*) from pg_locks where not granted"
    while not slower.done() and not await shop.value(waiting):
        await anyio.lowlevel.checkpoint()
    await quicker.commit()
    problem(await slower, 412, "DP035")
    assert (await api.get(path)).json()["name"] == "Quicker"


async def test_of_many_writers_of_one_version_one_wins(api: Api) -> None:
    """Twenty changes at once under one tag: one is made, nineteen are told so."""
    path = (await api.post("/products", json=PRODUCT)).headers["location"]
    headers = {"if-match": '"1"'}
    answers = await asyncio.gather(
        *(api.patch(path, json={"name": f"by {n}"}, headers=headers) for n in range(20))
    )
    assert sorted(each.status_code for each in answers) == [200] + [412] * 19
    won = next(each for each in answers if each.status_code == 200)
    assert (await api.get(path)).json() == won.json()
    assert won.json()["version"] == 2
