"""What an API over two cells does of both at once: the feed, and events of gateways."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from moving import new_warehouse
from network import Road
from places import Place
from shop import APPROVED, DECLINED, PENDING, Shop
from terminal import Run

from darkpearl.gateways.http import SIGNATURE_HEADER, sign

Api = httpx.AsyncClient
Json = dict[str, Any]
Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
SIGNED_WITH = "whsec_of_the_tests"


async def placed(api: Api, product: UUID, warehouse: UUID, **more: Any) -> str:
    """The id of an order of one unit."""
    items = [{"product_id": str(product), "quantity": 1}]
    made = await api.post("/orders", json={"warehouse_id": str(warehouse), "items": items} | more)
    assert made.status_code == 201, made.text
    order: str = made.json()["id"]
    return order


async def done(pair: Pair) -> None:
    """All sagas of both go as far as they can; who pays by `decline` is declined."""
    for shop in pair:
        while requests := await shop.advance():
            for each in requests:
                is_declined = (each["request"].get("token") or "").startswith("decline")
                await shop.settle([each], DECLINED if is_declined else APPROVED)


async def told(api: Api, **parameters: Any) -> Json:
    """An answer of the feed."""
    response = await api.get("/events", params=parameters)
    assert response.status_code == 200, response.text
    document: Json = response.json()
    return document


async def all_told(api: Api, after: Any = 0, **parameters: Any) -> tuple[list[Json], Any]:
    """What the feed tells after a cursor, in parts, and the cursor after it."""
    events: list[Json] = []
    while True:
        part = await told(api, after=after, **parameters)
        events += part["data"]
        if part["next"] == after:  # a part may be empty, and the next one not
            return events, after
        after = part["next"]


def ids(events: list[Json]) -> list[tuple[int, int]]:
    """Of each event the cell and the id."""
    return [(each.get("cell", 1), each["id"]) for each in events]


# The feed.


async def test_one_cursor_reads_the_feeds_of_both(pair: Pair, api: Api, product: UUID) -> None:
    """In parts of any size each event comes once, those of a cell in their order."""
    here, there = pair
    for warehouse in (here.lisbon, there.rotterdam, here.lisbon, there.rotterdam):
        await placed(api, product, warehouse)
    await done(pair)
    wanted = {
        n: await shop.values("select id from feed order by id") for n, shop in enumerate(pair, 1)
    }
    for limit in (1, 3, 1000):
        events, after = await all_told(api, limit=limit)
        found = ids(events)
        assert {n: [of for cell, of in found if cell == n] for n in (1, 2)} == wanted
        assert isinstance(after, str)
    times = [each["created_at"] for each in events]
    assert times == sorted(times)
    chosen, _ = await all_told(api, topic="order.paid", limit=2)
    assert chosen == [each for each in events if each["topic"] == "order.paid"]
    old, _ = await all_told(api, after=wanted[1][-1])
    assert ids(old) == [(2, each) for each in wanted[2]]


async def test_apis_at_two_addresses_read_on_from_each_other(
    pair: Pair, api: Api, serve: Any, places: Places, product: UUID
) -> None:
    """From the very first event: a place is one of its cell, whoever is asked next."""
    here, there = pair
    for warehouse in (here.lisbon, there.rotterdam, there.rotterdam):
        await placed(api, product, warehouse)
    wanted = {
        (n, each)
        for n, shop in enumerate(pair, 1)
        for each in await shop.values("select id from feed")
    }
    apis = [api, serve(places[1])()]
    for first in (0, 1):
        found: list[tuple[int, int]] = []
        after: Any = 0
        for at in range(first, first + len(wanted)):
            part = await told(apis[at % 2], after=after, limit=1)
            found += ids(part["data"])
            after = part["next"]
        assert len(found) == len(set(found))
        assert set(found) == wanted
    await done(pair)


async def test_who_waits_hears_of_either(pair: Pair, api: Api, product: UUID) -> None:
    """A request that waits is answered by what happens in whichever cell."""
    here, there = pair
    _, after = await all_told(api)
    for warehouse in (there.rotterdam, here.lisbon):
        waiting = asyncio.create_task(told(api, after=after, wait=20))
        order = await placed(api, product, warehouse)
        part = await waiting
        assert [each["order_id"] for each in part["data"]] == [order]
        after = part["next"]
    began = time.monotonic()
    assert await told(api, after=after, wait=0.5) == {"data": [], "next": after}
    assert time.monotonic() - began >= 0.5
    await done(pair)


async def test_a_cell_that_is_away_holds_up_nobody(
    pair: Pair, api: Api, product: UUID, road: Road, until: Until
) -> None:
    """It is named, others are told, and what happened there comes later by the same cursor."""
    here, there = pair
    _, after = await all_told(api)
    far = await placed(api, product, there.rotterdam)
    await road.close()
    try:
        near = await placed(api, product, here.lisbon)
        part = await told(api, after=after, wait=20)
        assert [each["order_id"] for each in part["data"]] == [near]
        assert part["missing_cells"] == ["north"]
        begun = await told(api)
        assert begun["missing_cells"] == ["north"]
        assert {each.get("cell") for each in begun["data"]} == {None}
    finally:
        await road.restore()
    parts = [part]

    async def is_back() -> bool:
        parts.append(await told(api, after=parts[-1]["next"]))
        return "missing_cells" not in parts[-1]

    await until(is_back)
    rest, _ = await all_told(api, after=parts[-1]["next"])
    later = [event for each in parts[1:] for event in each["data"]] + rest
    assert [each["order_id"] for each in later] == [far]
    again, _ = await all_told(api, after=begun["next"])
    every, _ = await all_told(api)
    assert sorted(ids(begun["data"] + again)) == sorted(ids(every))
    await done(pair)


@pytest.mark.parametrize("after", ["-1", "x", "1-", "1-2_3", "9223372036854775808"])
async def test_what_is_no_cursor_is_refused(api: Api, after: str) -> None:
    """It says what it may be, and reads nothing."""
    refused = await api.get("/events", params={"after": after})
    assert refused.status_code == 400, refused.text
    assert [each["field"] for each in refused.json()["errors"]] == ["after"]


async def test_what_happened_before_a_move_is_told_once(
    pair: Pair, api: Api, run: Run, until: Until
) -> None:
    """By the cell that it happened in; what happens after it by the other, in one order."""
    code, warehouse, product = await new_warehouse(pair, until)
    _, after = await all_told(api)
    order = await placed(api, product, warehouse)
    moved = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert moved.code == 0, moved
    await done(pair)
    events, _ = await all_told(api, after=after, limit=2)
    mine = [each for each in events if each["order_id"] == order]
    assert [(each["topic"], each.get("cell", 1)) for each in mine] == [
        ("order.placed", 1),
        ("order.paid", 2),
        ("order.fulfilled", 2),
    ]


# Events of gateways.


@pytest.fixture(scope="module")
def paid(serve: Any, places: Places) -> Api:
    """A client of an API whose gateway is our contract's."""
    client = serve(
        places[0], gateway="http", gateway_url="http://127.0.0.1:9", webhook_secret=SIGNED_WITH
    )
    made: Api = client()
    return made


async def deliver(api: Api, key: str | None, answer: Json, event: str = "") -> httpx.Response:
    """What a gateway tells of a call, signed."""
    told = {"event_id": event or str(uuid4()), "idempotency_key": key, "answer": answer}
    content = json.dumps(told).encode()
    headers = {SIGNATURE_HEADER: sign(SIGNED_WITH, content, time.time())}
    return await api.post("/payments/webhooks/http", content=content, headers=headers)


async def pending(shop: Shop, product: UUID, warehouse: UUID, **more: Any) -> str:
    """The key of a payment that the gateway is still to tell of."""
    order = await shop.order((product, 1), warehouse=warehouse, **more)
    await shop.settle(await shop.advance(), PENDING)
    key: str = (await shop.payment(order))["idempotency_key"]
    return key


async def written(pair: Pair, event: str) -> list[str]:
    """What each cell has written down of an event."""
    query = "select disposition::text from gateway_events where event_id = %s"
    return [each for shop in pair for each in await shop.values(query, event)]


async def test_an_event_goes_to_the_cell_that_made_the_call(
    pair: Pair, paid: Api, product: UUID
) -> None:
    """By its key, also where one id is an order in both; once, however often it is delivered."""
    here, there = pair
    chosen = uuid4()
    keys = [
        await pending(here, product, here.lisbon, p_order_id=chosen),
        await pending(there, product, there.rotterdam, p_order_id=chosen),
    ]
    assert keys[1] == f"{keys[0]}@2"
    for key, answer in zip(keys, (DECLINED, APPROVED), strict=True):
        event = str(uuid4())
        for disposition in ("applied", "duplicate"):
            response = await deliver(paid, key, answer, event)
            assert (response.status_code, response.json()) == (200, {"disposition": disposition})
        assert await written(pair, event) == ["applied"]
    await done(pair)
    states = [await shop.order_status(chosen) for shop in pair]
    assert states == ["cancelled", "fulfilled"]


async def test_what_nobody_knows_is_written_once(pair: Pair, paid: Api) -> None:
    """In the cell that its key names, else at home; and a repeat of it is one."""
    for key in (f"{uuid4()}:process_payment", f"{uuid4()}:process_payment@2", "odd", None):
        event = str(uuid4())
        for disposition in ("unmatched", "duplicate"):
            response = await deliver(paid, key, APPROVED, event)
            assert response.json() == {"disposition": disposition}, response.text
        assert await written(pair, event) == ["unmatched"]
        async with pair[key is not None and key.endswith("@2")].acting_as("service_role"):
            shop = pair[key is not None and key.endswith("@2")]
            await shop.run("select ack_gateway_event('http', %s, 'a test')", event)


async def test_an_event_follows_its_payment(pair: Pair, paid: Api, run: Run, until: Until) -> None:
    """Where the warehouse has moved it is taken where the payment is, and so is what comes late."""
    here, there = pair
    code, warehouse, product = await new_warehouse(pair, until)
    key = await pending(here, product, warehouse)
    moved = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert moved.code == 0, moved
    event = str(uuid4())
    response = await deliver(paid, key, APPROVED, event)
    assert (response.status_code, response.json()) == (200, {"disposition": "applied"})
    await done(pair)
    assert await there.order_status(UUID(key.partition(":")[0])) == "fulfilled"
    late = await deliver(paid, key, APPROVED)
    assert late.json() == {"disposition": "stale"}
    assert await here.values("select event_id from gateway_events where event_id = %s", event) == []


async def test_an_event_for_a_cell_that_is_away_comes_again(
    pair: Pair, paid: Api, product: UUID, road: Road, until: Until
) -> None:
    """503 while it may be that cell's; what is the other's is taken meanwhile."""
    here, there = pair
    near, far = [
        await pending(here, product, here.lisbon),
        await pending(there, product, there.rotterdam),
    ]
    await road.close()
    try:
        for key in (far, f"{uuid4()}:process_payment"):
            response = await deliver(paid, key, APPROVED)
            assert response.status_code == 503, response.text
            assert "north" in response.json()["detail"]
        assert (await deliver(paid, near, APPROVED)).json() == {"disposition": "applied"}
    finally:
        await road.restore()

    async def is_taken() -> bool:
        return (await deliver(paid, far, APPROVED)).status_code == 200

    await until(is_taken)
    await done(pair)
    assert await there.order_status(UUID(far.partition(":")[0])) == "fulfilled"
