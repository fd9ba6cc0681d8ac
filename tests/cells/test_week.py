"""A shop's week over two cells: imports, webhooks, and the same story as with one."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from network import Road
from places import Place
from receiving import Receiver
from shop import APPROVED, DECLINED, Shop

from darkpearl.cells.joining import without_secrets
from darkpearl.database import as_role
from darkpearl.models.feed import Event
from darkpearl.webhooks import Webhooks, service

Api = httpx.AsyncClient
Json = dict[str, Any]
Pair = tuple[Shop, Shop]
Places = tuple[Place, Place]
Until = Callable[..., Awaitable[None]]
SKUS = ("PEN", "BOOK")


async def soon(condition: Callable[[], Awaitable[object]]) -> None:
    """Return once a condition holds."""
    for _ in range(2000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen")


@pytest.fixture(scope="module")
async def catalogue(pair: Pair, api: Api) -> list[UUID]:
    """A pen at 2.50 and a notebook at 12, by CSV, known to both cells; Rotterdam packs goods."""
    here, there = pair
    file = b"sku,name,unit_price\nPEN,Pen,2.50\nBOOK,Notebook,12\n"
    done = await api.post("/imports/products", content=file, headers={"Content-Type": "text/csv"})
    assert done.json()["changed"] == 2, done.text
    await here.run("update warehouses set fulfilment_method = 'on_shipment' where code = 'RTM'")
    known = (
        "select p.id from products as p, warehouses as w where p.sku = any(%s)"
        " and w.code = 'RTM' and w.fulfilment_method = 'on_shipment' order by p.unit_price"
    )
    found: list[UUID] = []

    async def are_known() -> bool:
        found[:] = await there.values(known, list(SKUS))
        return len(found) == len(SKUS)

    await soon(are_known)
    return found


@pytest.fixture
async def delivered(pair: Pair, api: Api, catalogue: list[UUID]) -> None:
    """A hundred of each in both warehouses, a file for each."""
    assert len(catalogue) == 2
    for code in ("LIS", "RTM"):
        rows = [
            {"sku": sku, "warehouse": code, "movement_type": "receive", "quantity": 100}
            for sku in SKUS
        ]
        received = await api.post("/imports/movements", json={"rows": rows})
        assert (received.status_code, received.json()["changed"]) == (200, 2), received.text
    for shop, warehouse in zip(pair, (pair[0].lisbon, pair[0].rotterdam), strict=True):
        assert (await shop.stock(catalogue[0], warehouse))[0] >= 100


# Imports.


@pytest.mark.usefixtures("delivered")
async def test_a_file_is_of_one_cell(pair: Pair, api: Api, catalogue: list[UUID]) -> None:
    """Rows of two cells' warehouses are refused, each by its place, and nothing is imported."""
    pen, _ = catalogue
    stock = [await shop.stock(pen, at) for shop, at in _shelves(pair)]
    named = [{"warehouse": "RTM"}, {"warehouse_id": str(pair[0].lisbon)}, {"warehouse": "RTM"}]
    for kind, row in (
        ("movements", {"movement_type": "receive", "quantity": 5}),
        ("inventory", {"quantity_available": 5000}),
        ("orders", {"quantity": 1}),
    ):
        rows = [
            {"sku": "PEN" if at < 2 else "BOOK", **row, **where}
            | ({"reference": f"I-{at}"} if kind == "orders" else {})
            for at, where in enumerate(named)
        ]
        refused = await api.post(f"/imports/{kind}", json={"rows": rows})
        assert (refused.status_code, refused.json()["code"]) == (422, "DP025"), refused.text
        told = [(each["field"], each["message"]) for each in refused.json()["errors"]]
        assert told == [("row 2", "the warehouse belongs to another cell, 1")]
    assert [await shop.stock(pen, at) for shop, at in _shelves(pair)] == stock
    away = [{"sku": "PEN", "warehouse": "LIS", "to_warehouse": "RTM"}]
    away[0] |= {"movement_type": "transfer_out", "quantity": 1}  # type: ignore[dict-item]
    refused = await api.post("/imports/movements", json={"rows": away})
    assert "to_warehouse belongs to another cell" in refused.text
    key = {"Idempotency-Key": str(uuid4())}
    rows = [{"sku": "PEN", "warehouse": "RTM", "quantity": 1, "reference": "I-9"}]
    first, again = [
        await api.post("/imports/orders", json={"rows": rows}, headers=key) for _ in range(2)
    ]
    assert (first.json()["changed"], again.content) == (1, first.content)
    (found,) = (await api.get("/orders", params={"reference": "I-9"})).json()["data"]
    assert UUID(found["warehouse"]["id"]) == pair[0].rotterdam
    assert (await api.delete(f"/orders/{found['id']}")).status_code == 202
    await work(pair)


def _shelves(pair: Pair) -> list[tuple[Shop, UUID]]:
    return list(zip(pair, (pair[0].lisbon, pair[0].rotterdam), strict=True))


async def work(pair: Pair) -> None:
    """All sagas of both go as far as they can; who pays by `decline` is declined."""
    for shop in pair:
        while requests := await shop.advance():
            for each in requests:
                is_declined = (each["request"].get("token") or "").startswith("decline")
                await shop.settle([each], DECLINED if is_declined else APPROVED)


# Webhooks.


@pytest.fixture
async def sending(places: Places, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the service of each cell for a block."""
    monkeypatch.setattr(service, "HOME_SECONDS", 0.1)

    @asynccontextmanager
    async def run(*numbers: int) -> AsyncIterator[None]:
        services = [
            Webhooks(
                as_role(without_secrets(places[number - 1].url), "darkpearl_listener"),
                to_private=True,
                shutdown_seconds=1,
            )
            for number in numbers
        ]
        tasks = [asyncio.create_task(each.run()) for each in services]
        try:
            yield
        finally:
            for each in services:
                each.stop()
            await asyncio.gather(*tasks)

    return run


@asynccontextmanager
async def receiver(api: Api, **more: Any) -> AsyncIterator[tuple[str, Receiver]]:
    """Somebody who is told by webhook, and the path of the endpoint."""
    async with AsyncExitStack() as stack:
        taking = Receiver()
        await taking.start()
        stack.push_async_callback(taking.stop)
        made = await api.post("/webhook-endpoints", json={"url": taking.url, **more})
        assert made.status_code == 201, made.text
        taking.secret = made.json()["secret"]
        yield made.headers["location"], taking


def came(taking: Receiver) -> set[tuple[int, int]]:
    """The events that came, each by its cell and its id."""
    return {(each["data"].get("cell", 1), each["data"]["id"]) for each in taking.events}


def is_there(shop: Shop, column: str, value: object) -> Callable[[], Awaitable[bool]]:
    """Whether a cell's only endpoint has something."""

    async def look() -> bool:
        return await shop.values(f"select {column} from webhook_endpoints") == [value]

    return look


@pytest.mark.usefixtures("delivered")
async def test_an_endpoint_hears_of_both(
    pair: Pair, api: Api, catalogue: list[UUID], sending: Any
) -> None:
    """Made once, it is told by each cell what has happened there since, also after a change."""
    _, there = pair
    async with receiver(api, topics=["order.placed"]) as (path, taking):
        orders = [
            await order(api, (catalogue[0], 1), warehouse_id=str(at)) for _, at in _shelves(pair)
        ]

        def have_come(count: int) -> Callable[[], Awaitable[bool]]:
            async def look() -> bool:
                return len(came(taking)) == count

            return look

        assert (await api.get(path)).json()["other_cells"] == []
        async with sending(1, 2):  # north hears of it only now
            await soon(have_come(2))
            assert {each["data"]["order_id"] for each in taking.events} == set(orders)
            changed = await api.patch(path, json={"topics": ["order.cancelled"]})
            assert changed.status_code == 200, changed.text
            await soon(is_there(there, "topics::text", "{order.cancelled}"))
            for each in orders:
                assert (await api.delete(f"/orders/{each}")).status_code == 202
            await work(pair)
            await soon(have_come(4))
            secret = (await api.post(f"{path}/secret")).json()["secret"]
            await soon(is_there(there, "secret", secret))
            since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
            before = Counter(each["data"]["order_id"] for each in taking.events)
            again = await api.post(f"{path}/replay", json={"since": since})
            assert again.status_code == 200, again.text

            async def replayed() -> bool:
                now = Counter(each["data"]["order_id"] for each in taking.events)
                return all(now[each] == before[each] + 1 for each in orders)

            await soon(replayed)
        assert (await api.delete(path)).status_code == 204
        async with sending(2):
            await soon(lambda: _has_none(there))


async def _has_none(shop: Shop) -> bool:
    return not await shop.values("select id from webhook_endpoints")


@pytest.mark.usefixtures("catalogue")
async def test_how_it_goes_is_each_cells_own(
    pair: Pair, api: Api, sending: Any, road: Road
) -> None:
    """One that is off in a cell is shown so, and stays so until somebody switches it on."""
    here, there = pair
    async with receiver(api) as (path, taking):
        async with sending(2):
            await soon(is_there(there, "url", taking.url))
        (shown,) = (await api.get("/webhook-endpoints")).json()["data"]
        (north,) = shown["other_cells"]
        assert (north["cell"], north["is_enabled"], north["waiting"]) == ("north", True, 0)
        await there.run(
            "update webhook_endpoints set is_enabled = false, off_because = 'it answered 410 Gone'"
        )
        secret = (await api.post(f"{path}/secret")).json()["secret"]
        async with sending(2):  # another secret is no reason to begin anew
            await soon(is_there(there, "secret", secret))
        (north,) = (await api.get(path)).json()["other_cells"]
        assert (north["is_enabled"], north["off_because"]) == (False, "it answered 410 Gone")
        assert (await api.get(path)).json()["is_enabled"] is True
        switched = await api.patch(path, json={"is_enabled": True})
        assert switched.status_code == 200, switched.text
        on = switched.json()["other_cells"]
        assert [(each["is_enabled"], each["off_because"]) for each in on] == [(True, None)]
        await road.close()
        try:
            lost = (await api.get(path)).json()
            assert (lost["other_cells"], lost["missing_cells"]) == ([], ["north"])
            since = datetime.now(UTC).isoformat()
            refused = await api.post(f"{path}/replay", json={"since": since})
            assert (refused.status_code, "north" in refused.json()["detail"]) == (503, True)
            assert (await api.delete(path)).status_code == 204
        finally:
            await road.restore()
        async with sending(2):
            await soon(lambda: _has_none(there))

        async def is_back() -> bool:
            return "missing_cells" not in (await api.get("/events")).json()

        await soon(is_back)
    assert await _has_none(here)


# The week.


async def order(api: Api, *lines: tuple[UUID, int], **more: Any) -> str:
    """The id of an order, whose quote was the same."""
    body = {
        "items": [{"product_id": str(each), "quantity": count} for each, count in lines],
        **more,
    }
    quote = await api.post("/orders/quote", json=body)
    assert quote.status_code == 200, quote.text
    key = {"Idempotency-Key": str(uuid4())}
    made, again = [await api.post("/orders", json=body, headers=key) for _ in range(2)]
    assert made.status_code == 201, made.text
    assert (again.json()["id"], made.json()["total_amount"]) == (
        made.json()["id"],
        quote.json()["total_amount"],
    )
    placed: str = made.json()["id"]
    return placed


async def shown(api: Api, order_id: str) -> Json:
    """An order as it is."""
    response = await api.get(f"/orders/{order_id}")
    assert response.status_code == 200, response.text
    document: Json = response.json()
    return document


async def held(pair: Pair, api: Api, pen: UUID, book: UUID, code: str) -> str:
    """A basket whose goods are kept; its first card is declined, its second is not."""
    at = dict(zip(("LIS", "RTM"), (pair[0].lisbon, pair[0].rotterdam), strict=True))[code]
    basket = await order(
        api,
        (pen, 3),
        (book, 2),
        warehouse_id=str(at),
        reference=f"W-{code}",
        email=f"ann@{code.lower()}.example",
        pay_by=(datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        adjustments=[
            {"kind": "shipping", "label": "Post", "amount": 5},
            {"kind": "discount", "label": "Spring", "amount": "-1.50", "item": 1},
        ],
    )
    await work(pair)
    assert (await shown(api, basket))["status"] == "reserved"
    statuses = {"LIS": "fulfilled", "RTM": "paid"}
    for token, status in (("decline", "payment_failed"), ("approve", statuses[code])):
        paying = await api.post(f"/orders/{basket}/payment", json={"payment_token": token})
        assert paying.status_code in {200, 202}, paying.text
        await work(pair)
        assert (await shown(api, basket))["status"] == status
    return basket


async def packed(pair: Pair, api: Api, basket: str, pen: UUID, book: UUID) -> list[str]:
    """Two pens, then a notebook; what is left is taken out. The ids of the parcels."""
    parcels = []
    for product, count in ((pen, 2), (book, 1)):
        items = [{"product_id": str(product), "quantity": count}]
        parcel = await api.post(f"/orders/{basket}/shipments", json={"items": items})
        assert parcel.status_code == 201, parcel.text
        parcels.append(parcel.json()["id"])
    rest = await api.post(f"/orders/{basket}/cancellations", json={"reason": "sold out"})
    assert rest.status_code == 201, rest.text
    await work(pair)
    return parcels


async def fed(api: Api, orders: list[str]) -> list[Json]:
    """The feed from the beginning, three at a time: what it tells of some orders."""
    events: list[Json] = []
    after: Any = 0
    while True:
        part = (await api.get("/events", params={"after": after, "limit": 3})).json()
        events += [each for each in part["data"] if each["order_id"] in orders]
        after = part["next"]
        if not part["data"]:
            return events


@pytest.mark.usefixtures("delivered")
async def test_a_shops_week(
    pair: Pair, api: Api, catalogue: list[UUID], sending: Any, until: Until
) -> None:
    """What was done, what orders show, what the feed and webhooks tell is one story over both."""
    pen, book = catalogue
    async with receiver(api) as (path, taking), sending(1, 2):
        baskets = [await held(pair, api, pen, book, code) for code in ("LIS", "RTM")]
        declined = await order(api, (pen, 1), payment_token="decline")
        parcels = await packed(pair, api, baskets[1], pen, book)
        returns, refunds = [], []
        for basket in baskets:
            back = await api.post(
                f"/orders/{basket}/returns",
                json={
                    "items": [{"product_id": str(pen), "quantity": 1}],
                    "restock": False,
                    "refund": {},
                },
            )
            assert back.status_code == 201, back.text
            returns.append(back.json()["id"])
            refund = await api.post(f"/orders/{basket}/refunds", json={"amount": 5})
            assert refund.status_code == 201, refund.text
            refunds += [back.json()["refund"]["id"], refund.json()["id"]]
        await work(pair)

        after = [await shown(api, each) for each in baskets]
        assert [each["status"] for each in after] == ["fulfilled", "fulfilled"]
        assert [each["total_amount"] for each in after] == [35, 35]
        assert [each["payment"]["refunded_amount"] for each in after] == [7.5, 21.25]
        assert [[each["id"] for each in one["returns"]] for one in after] == [
            [each] for each in returns
        ]
        assert [each["id"] for each in after[1]["shipments"]] == parcels
        assert (await shown(api, declined))["failure"]["code"] == "DP014"
        for code, basket in zip(("LIS", "RTM"), baskets, strict=True):
            for query in (
                {"reference": f"W-{code}"},
                {"search": f"ann@{code.lower()}.example"},
                {
                    "search": str(
                        next(each["order_number"] for each in after if each["id"] == basket)
                    )
                },
            ):
                found = (await api.get("/orders", params=query)).json()
                assert [each["id"] for each in found["data"]] == [basket], query

        events = await fed(api, [*baskets, declined])
        told = {
            each: [event["topic"] for event in events if event["order_id"] == each]
            for each in (*baskets, declined)
        }
        assert told[declined] == ["order.placed", "payment.failed", "order.cancelled"]
        for basket, shipped in zip(baskets, (0, 2), strict=True):
            assert told[basket][:3] == ["order.placed", "payment.failed", "order.paid"]
            assert Counter(told[basket][3:]) == Counter(
                {
                    "order.shipped": shipped,
                    "order.fulfilled": 1,
                    "order.returned": 1,
                    "refund.settled": 3 if shipped else 2,
                }
            )
        assert {each["refund_id"] for each in events if each["refund_id"]} >= set(refunds)
        assert {each.get("cell", 1) for each in events} == {1, 2}
        wanted = {(each.get("cell", 1), each["id"]) for each in events}

        async def all_came() -> bool:
            return wanted <= came(taking)

        await until(all_came)
        bodies = {(each["data"].get("cell", 1), each["data"]["id"]): each for each in taking.events}
        for event in events:
            body = bodies[event.get("cell", 1), event["id"]]["data"]
            assert msgspec.convert(body, Event) == msgspec.convert(event, Event)
        assert (await api.delete(path)).status_code == 204
    for shop in pair:
        assert await shop.audit() == []
