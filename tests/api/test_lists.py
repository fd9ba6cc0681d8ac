"""Lists: pages by offset and by cursor, sorts, filters, and parameters that nobody takes."""

import base64
import gc
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from litestar.handlers import HTTPRouteHandler
from shop import DECLINED, LONG, Shop

from darkpearl.api import orders
from darkpearl.api.access import Caller, Statement

Api = httpx.AsyncClient
Json = dict[str, Any]
Listed = Callable[..., Awaitable[list[Json]]]
Problem = Callable[..., Json]

LISTS = ["/products", "/warehouses", "/inventory", "/stock-movements", "/orders", "/sagas"]
SORTS = {
    "/products": ["created_at", "updated_at", "sku", "name", "unit_price", "id"],
    "/warehouses": ["created_at", "updated_at", "code", "name", "id"],
    "/inventory": ["created_at", "quantity_available", "quantity_sellable", "id"],
    "/stock-movements": ["id"],
    "/orders": ["order_number", "id"],
    "/sagas": ["id"],
}


@pytest.fixture
async def catalog(api: Api) -> list[Json]:
    """Seven products; some share a price, some a name."""
    made = []
    for n in range(7):
        price = f"{n // 2}.{'0' * (n % 4)}5"
        body = {"sku": f"S{n}", "name": f"N{n % 3}", "unit_price": price, "currency": "CLF"}
        made.append((await api.post("/products", json=body)).json())
    return made


@pytest.fixture
async def walk(api: Api) -> Callable[..., Awaitable[list[Json]]]:
    """Every row of a list, by following `next` until there is none."""

    async def follow(path: str, **parameters: Any) -> list[Json]:
        rows: list[Json] = []
        cursor: str | None = ""
        while cursor is not None:
            told = await api.get(path, params={**parameters, "cursor": cursor})
            assert told.status_code == 200, told.text
            page = told.json()
            assert page.keys() == {"data", "limit", "next"}, "nothing is counted"
            assert 0 < len(page["data"]) <= page["limit"]
            rows += page["data"]
            cursor = page["next"]
        return rows

    return follow


@pytest.fixture
async def everything(shop: Shop) -> None:
    """A few rows in each list."""
    for _ in range(3):
        await shop.order((shop.products[0], 1), (shop.products[1], 1))
    await shop.run("insert into warehouses (code, name) values ('B', 'B'), ('C', 'C')")
    await shop.advance()


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.usefixtures("everything")
async def test_cursors_lead_through_every_list(
    api: Api, walk: Callable[..., Awaitable[list[Json]]], path: str
) -> None:
    """Row by row, in each order that there is, each row once, in the order of the whole list."""
    usual = (await api.get(path)).json()["data"]
    assert len(usual) >= 2
    assert await walk(path, limit=1) == usual
    for field in SORTS[path]:
        for sort in (field, f"-{field}"):
            whole = (await api.get(path, params={"sort": sort})).json()["data"]
            assert await walk(path, limit=1, sort=sort) == whole, sort
            values = [row[field] for row in whole]
            assert values == sorted(values, reverse=sort.startswith("-")), sort


@pytest.mark.parametrize(
    "sort", ["unit_price,name", "-name,unit_price", "name,-unit_price", "-unit_price,-name,sku"]
)
async def test_lists_are_sorted_by_several_fields(
    api: Api, catalog: list[Json], walk: Callable[..., Awaitable[list[Json]]], sort: str
) -> None:
    """Rising and falling fields mix, and cursors of any size lead through all the same."""
    rows = (await api.get("/products", params={"sort": sort})).json()["data"][:]
    expected = (await api.get("/products")).json()["data"]
    assert len(catalog) <= len(expected)
    for field in reversed(sort.split(",")):
        name = field.removeprefix("-")
        expected.sort(key=lambda row, name=name: row[name], reverse=field.startswith("-"))
    keys = [each.removeprefix("-") for each in sort.split(",")]
    assert [[row[k] for k in keys] for row in rows] == [[row[k] for k in keys] for row in expected]
    for limit in (1, 2, 3, 100):
        assert await walk("/products", sort=sort, limit=limit) == rows


async def test_a_cursor_is_not_moved_by_what_comes_and_goes(api: Api, catalog: list[Json]) -> None:
    """Rows that are added in front, or that are deleted, neither repeat nor hide another."""
    first = (await api.get("/products", params={"limit": 3, "cursor": ""})).json()
    assert [row["sku"] for row in first["data"]] == ["S6", "S5", "S4"]
    await api.post("/products", json={"sku": "NEW", "name": "New", "unit_price": 1})
    for gone in (4, 3):
        await api.delete(f"/products/{catalog[gone]['id']}")
    rest = (await api.get("/products", params={"limit": 2, "cursor": first["next"]})).json()
    assert [row["sku"] for row in rest["data"]] == ["S2", "S1"]


async def test_a_link_leads_to_the_next_page(api: Api, catalog: list[Json]) -> None:
    """With the filters, the sort and the limit of the first; the last page has none."""
    told = await api.get("/products?limit=2&offset=1&search=s&sort=sku&is_active=true")
    assert told.json()["count"] == len(catalog)
    seen = [row["sku"] for row in told.json()["data"]]
    while "next" in told.links:
        assert told.links["next"]["url"].startswith("/products?limit=2&search=s&sort=sku")
        told = await api.get(told.links["next"]["url"])
        assert told.status_code == 200, told.text
        seen += [row["sku"] for row in told.json()["data"]]
    assert seen == ["S1", "S2", "S3", "S4", "S5", "S6"]
    assert told.json()["next"] is None


async def test_a_cursor_that_is_none_is_refused(api: Api, problem: Problem) -> None:
    """Nonsense, another list's, and values of other types are 400, never an error of the server."""

    def coded(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    wrong = [
        "x",
        "\u2603",
        "%00",
        coded({}),
        coded([]),
        coded([1, [2]]),
        coded(["", ["2026-01-01T00:00:00Z", str(uuid4())]]),
        coded(["", []]),
        coded(["-created_at,-id", []]),
        coded(["-created_at,-id", ["yesterday", str(uuid4())]]),
        coded(["-created_at,-id", ["2026-01-01T00:00:00Z", 5]]),
        coded(["-created_at,-id", [None, None]]),
        coded(["-created_at,-id", ["2026-01-01T00:00:00Z", str(uuid4()), 1]]),
        base64.urlsafe_b64encode(b"[" * 1400).decode(),
        "x" * 2001,
    ]
    for cursor in wrong:
        told = problem(await api.get("/products", params={"cursor": cursor}), 400)
        assert [each["field"] for each in told["errors"]] == ["cursor"], cursor
    foreign = coded(["order_number", [5]])
    told = problem(await api.get("/products", params={"cursor": foreign}), 400)
    assert "order_number" in str(told["errors"])
    nul = coded(["sku,id", ["\0", str(uuid4())]])
    problem(await api.get("/products", params={"cursor": nul}), 400, "22021")


@pytest.mark.usefixtures("shop")
async def test_a_cursor_goes_its_own_way(api: Api, problem: Problem) -> None:
    """It knows its sort: another beside it is refused, and so is an offset, both at once."""
    cursor = (await api.get("/products?limit=1&sort=sku")).json()["next"]
    for same in ("", "&sort=sku", "&sort=sku,id"):
        page = (await api.get(f"/products?cursor={cursor}{same}")).json()
        assert [row["sku"] for row in page["data"]] == ["P1"]
    told = problem(await api.get(f"/products?cursor={cursor}&sort=-sku&offset=1"), 400)
    assert {each["field"] for each in told["errors"]} == {"sort", "offset"}


@pytest.mark.parametrize("path", LISTS)
async def test_a_sort_that_there_is_not_is_refused(api: Api, problem: Problem, path: str) -> None:
    """Fields that aren't on the list of sorts are named, with those that are."""
    for sort in ("nothing", "--id", "id;drop table products", "id,", "+id", "id desc", "\0"):
        told = problem(await api.get(path, params={"sort": sort}), 400)
        assert {each["field"] for each in told["errors"]} == {"sort"}, sort
        assert SORTS[path][0] in str(told["errors"])


async def test_a_parameter_that_nobody_takes_is_refused(api: Api, problem: Problem) -> None:
    """A misspelt filter is named, with what there is, in lists and everywhere else."""
    told = problem(await api.get("/products?is_actve=true&limit=5&serch=x&serch=y"), 400)
    assert [each["field"] for each in told["errors"]] == ["is_actve", "serch"]
    assert "is_active" in told["hint"]
    assert "cursor" in told["hint"]
    for path in (*LISTS, f"/orders/{uuid4()}", f"/sagas/{uuid4()}/events", "/health/live"):
        problem(await api.get(f"{path}?no_such_thing=1"), 400)
    problem(await api.delete(f"/orders/{uuid4()}?reson=x"), 400)
    problem(await api.post("/products?dry_run=1", json={}), 400)
    problem(await api.delete(f"/orders/{uuid4()}?reason=x"), 404, "DP010")


async def test_a_request_with_parameters_leaves_nothing_behind(api: Api) -> None:
    """Knowledge of a handler is kept once, not once for each request."""

    def handlers() -> int:
        gc.collect()
        return sum(isinstance(each, HTTPRouteHandler) for each in gc.get_objects())

    await api.get("/products", params={"limit": 1})
    before = handlers()
    for _ in range(5):
        assert (await api.get("/products", params={"limit": 1})).is_success
    assert handlers() == before


@pytest.mark.parametrize("path", ["/products", "/warehouses", "/stock-movements", "/orders"])
@pytest.mark.usefixtures("everything")
async def test_lists_filter_by_time(api: Api, listed: Listed, problem: Problem, path: str) -> None:
    """created_after takes the moment itself, created_before doesn't; both want an offset."""
    rows = (await api.get(path)).json()["data"]
    newest, moments = rows[0], [row["created_at"] for row in rows]
    assert newest in await listed(path, created_after=newest["created_at"])
    assert newest not in await listed(path, created_before=newest["created_at"])
    both = {"created_after": min(moments), "created_before": max(moments)}
    assert await listed(path, **both) == [r for r in rows if r["created_at"] != max(moments)]
    for wrong in ("yesterday", "2026-01-01", "2026-01-01T00:00:00", "1", ""):
        given = {"created_after": wrong, "created_before": wrong}
        told = problem(await api.get(path, params=given), 400)
        assert [each["field"] for each in told["errors"]] == ["created_after", "created_before"]
    for far in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"):
        assert (await api.get(path, params={"created_after": far})).status_code in {200, 400}


@pytest.mark.usefixtures("everything")
async def test_lists_filter_by_what_names_their_rows(listed: Listed, shop: Shop) -> None:
    """Codes, numbers and references find exactly their rows."""
    assert [row["sku"] for row in await listed("/products", sku="P1")] == ["P1"]
    assert await listed("/products", sku="P") == []
    assert [row["code"] for row in await listed("/warehouses", code="B")] == ["B"]
    assert [row["code"] for row in await listed("/warehouses", search="b")] == ["B"]
    assert [row["product"]["sku"] for row in await listed("/inventory", sku="P0")] == ["P0"]
    orders = await listed("/orders")
    number = orders[1]["order_number"]
    assert await listed("/orders", order_number=number) == [orders[1]]
    assert await listed("/orders", order_number=10**30) == []
    assert len(await listed("/sagas", warehouse_id=shop.lisbon)) == 3
    assert await listed("/sagas", warehouse_id=uuid4()) == []
    await shop.run(
        "select receive_stock(%s, %s, 1, p_reference_type => 'delivery')",
        shop.lisbon,
        shop.products[0],
    )
    assert len(await listed("/stock-movements", reference_type="delivery")) == 1


@pytest.mark.usefixtures("shop")
async def test_nobody_sorts_by_what_it_may_not_see(
    client: Callable[..., Api], problem: Problem
) -> None:
    """The order of rows would tell a visitor how much lies where."""
    told = problem(await client().get("/inventory?sort=quantity_available"), 400)
    assert "quantity_sellable" in str(told["errors"])
    rows = (await client().get("/inventory?sort=-quantity_sellable&limit=1")).json()
    assert rows["data"][0]["quantity_sellable"] == 100
    rows = (await client().get(f"/inventory?cursor={rows['next']}")).json()
    assert rows["data"][0]["quantity_sellable"] == 5


@pytest.fixture
async def many(shop: Shop) -> None:
    """Two thousand rows in each list but that of warehouses."""
    await shop.shelves(2000)
    async with shop.unguarded():
        await shop.run(
            "insert into orders (warehouse_id) select %s from generate_series(1, 2000)", shop.lisbon
        )
        await shop.run(
            "insert into sagas (id, warehouse_id, saga_type, plan_version)"
            " select id, warehouse_id, 'order_fulfilment', 1 from orders"
        )
        await shop.run(
            "insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,"
            " quantity, available_after, reserved_after)"
            " select new_id(), %s, id, 'receive', 1, 1, 0 from products",
            shop.lisbon,
        )
    await shop.run("analyze")


@pytest.mark.parametrize("path", [each for each in LISTS if each != "/warehouses"])
@pytest.mark.usefixtures("many")
async def test_a_page_by_cursor_reads_no_more_than_it_shows(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """An index leads to where the cursor goes on: the server counts the rows that it reads."""
    table = path.strip("/").replace("-", "_")
    read: list[tuple[int, int]] = []

    async def run(caller: Caller, *statements: Statement) -> Json | None:
        counters = (
            "select seq_scan, seq_tup_read + idx_tup_fetch as read from pg_stat_xact_all_tables"
            " where schemaname = 'darkpearl' and relname = %(table)s"
        )
        async with caller.transaction() as execute:
            for statement in statements:
                answered = await execute(*statement)
            counted = await execute(counters, {"table": table})
        row = await counted.fetchone()
        read.append((row["seq_scan"], row["read"]))
        found: Json | None = await answered.fetchone()
        return found

    monkeypatch.setattr(Caller, "run", run)
    page = (await api.get(path, params={"cursor": "", "limit": 10})).json()
    for _ in range(5):
        page = (await api.get(path, params={"cursor": page["next"], "limit": 10})).json()
        assert len(page["data"]) == 10
    assert [scans for scans, _ in read] == [0] * 6
    # The planner's looks at the ends of indexes count too.
    assert max(rows for _, rows in read) < 400, "of all two thousand, at the most"


@pytest.mark.usefixtures("everything")
async def test_a_filter_takes_several_values(
    api: Api,
    shop: Shop,
    listed: Listed,
    problem: Problem,
    run_sagas: Callable[..., Awaitable[None]],
) -> None:
    """With commas or repeated, any of them; one that is none is named, with what there is."""
    for _ in range(2):  # the lease ends, then the wait for the next try
        await shop.turn_clock(LONG)
        await run_sagas()
    every = await listed("/orders")
    numbers = [row["order_number"] for row in every]
    assert await listed("/orders", status="fulfilled,cancelled") == every
    assert await listed("/orders", status=["fulfilled", "cancelled"]) == every
    assert await listed("/orders", status="pending,reserved") == []
    assert await listed("/orders", order_number=",".join(map(str, numbers[1:]))) == every[1:]
    warehouses = [uuid4(), every[0]["warehouse_id"]]
    assert await listed("/orders", warehouse_id=warehouses, status="fulfilled") == every
    moved = await listed("/stock-movements", movement_type="reserve,fulfill")
    assert {row["movement_type"] for row in moved} == {"reserve", "fulfill"}
    assert len(await listed("/sagas", status="completed,stuck")) == len(every)
    for path, wrong, there in (
        ("/orders", {"status": "paid,lost"}, "payment_failed"),
        ("/orders", {"payment_status": ["captured", "x"]}, "refunded"),
        ("/orders", {"include": "items,saga"}, "payment"),
        ("/orders", {"customer_id": "m" * 256}, "is no text of that length"),
        ("/orders", {"order_number": "1,x"}, "no whole number"),
        ("/orders", {"status": ["paid"] * 51}, "50"),
        ("/sagas", {"status": ""}, "compensated"),
        ("/stock-movements", {"movement_type": "move"}, "transfer_in"),
    ):
        told = problem(await api.get(path, params=wrong), 400)
        assert [each["field"] for each in told["errors"]] == list(wrong)
        assert there in told["errors"][0]["message"]


@pytest.mark.usefixtures("everything")
async def test_orders_are_listed_with_what_is_asked_for(
    api: Api, shop: Shop, run_sagas: Callable[..., Awaitable[None]], listed: Listed
) -> None:
    """Lines, payment or both, as the order itself tells them; without asking, neither."""
    for _ in range(2):  # the lease ends, then the wait for the next try
        await shop.turn_clock(LONG)
        await run_sagas()
    plain = await listed("/orders")
    whole = [(await api.get(f"/orders/{row['id']}")).json() for row in plain]
    for include in ([], ["items"], ["payment"], ["items", "payment"]):
        rows = await listed("/orders", include=",".join(include)) if include else plain
        assert rows == [{key: order[key] for key in (*plain[0], *include)} for order in whole], (
            include
        )
    page = (await api.get("/orders?limit=1&include=items&include=payment")).json()
    page = (await api.get(f"/orders?cursor={page['next']}&include=items")).json()
    assert page["data"][0]["items"] == whole[1]["items"]


@pytest.mark.usefixtures("everything")
async def test_orders_are_found_by_what_people_have(
    client: Callable[..., Api], listed: Listed, shop: Shop
) -> None:
    """Number, id, reference, email, customer or SKU; a customer finds its own alone."""
    me, other = "auth0|me, myself", str(uuid4())
    said = {"reference": "W-1", "email": "ann@example.com"}
    mine = await shop.order((shop.products[0], 1), p_customer_id=me, p_particulars=json.dumps(said))
    theirs = await shop.order(
        (shop.products[0], 1),
        p_customer_id=other,
        p_particulars='{"reference": "W-2", "email": "bob@example.com"}',
    )
    await shop.advance()
    (row,) = await listed("/orders", search=str(mine))
    number = row["order_number"]
    assert await listed("/orders", customer_id=me) == [row]
    for search in (f"#{number}", number, me, *said.values()):
        assert await listed("/orders", search=search) == [row]
    found = {each["id"] for each in await listed("/orders", search="P0")}
    assert {str(mine), str(theirs)} < found
    assert await listed("/orders", search="P0", customer_id=[me, uuid4()]) == [row]
    for search in ("P", "0", uuid4(), "1" * 18, "%", "\u2603", "w-1", "ann"):
        assert await listed("/orders", search=search) == []
    customer = client("authenticated", me)
    await shop.order((shop.products[1], 1), p_customer_id=me)
    for search in ("P0", number, mine, *said.values()):
        told = (await customer.get("/orders", params={"search": str(search)})).json()["data"]
        assert [each["id"] for each in told] == [str(mine)]
    for search in (theirs, other, number + 1, "W-2", "bob@example.com"):
        told = await customer.get("/orders", params={"search": str(search)})
        assert told.json()["data"] == []


@pytest.mark.usefixtures("everything")
async def test_orders_are_found_by_their_payment_and_their_last_change(
    api: Api,
    shop: Shop,
    listed: Listed,
    run_sagas: Callable[..., Awaitable[None]],
    problem: Problem,
) -> None:
    """payment_status and updated_after, which takes the moment itself."""
    assert await listed("/orders", payment_status="captured") == []
    waiting = await listed("/orders", payment_status="requested,pending")
    assert len(waiting) == len(await listed("/orders"))
    for _ in range(2):  # the lease ends, then the wait for the next try
        await shop.turn_clock(LONG)
        await run_sagas()
    done = await listed("/orders", payment_status="captured")
    assert len(done) == len(waiting)
    last = max(row["updated_at"] for row in done)
    newest = await listed("/orders", updated_after=last)
    assert newest == [row for row in done if row["updated_at"] == last]
    told = problem(await api.get("/orders?updated_after=2026-01-31"), 400)
    assert "with offset, as 2026-01-31T09:30:00Z" in told["errors"][0]["message"]


async def test_what_changed_lately_is_found_by_what_has_happened(
    shop: Shop,
    listed: Listed,
    run_sagas: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by reading all orders, from any moment on: each changes as an event of it is written."""
    held = await shop.value("select clock() + interval '1 hour'")
    await shop.order((shop.products[0], 1), p_pay_by=held, p_payment_token="tok_1")
    await shop.settle(await shop.advance(), DECLINED)
    await shop.order((shop.products[0], 1))
    for _ in range(2):
        await shop.turn_clock(LONG)
        await run_sagas()
    await shop.cancel(await shop.order((shop.products[0], 1)))
    await shop.advance()
    await shop.order((shop.products[0], 1))
    moments = await shop.values("select distinct updated_at from orders order by 1")
    assert len(moments) > 3

    async def found() -> list[list[str]]:
        return [
            [row["id"] for row in await listed("/orders", updated_after=each.isoformat())]
            for each in moments
        ]

    lately = await found()
    monkeypatch.setattr(orders, "LATELY", timedelta(days=-365))
    assert lately == await found()
    assert sorted(map(len, lately)) == sorted({*map(len, lately)})
    assert not await shop.rows(
        "select from orders as o where not exists (select from saga_events as e"
        " where e.saga_id = o.id and e.created_at > o.updated_at - interval '1 second')"
    )


async def test_an_order_says_why_it_came_to_nothing(
    api: Api,
    client: Callable[..., Api],
    order_body: Callable[..., Json],
    run_sagas: Callable[..., Awaitable[None]],
) -> None:
    """Code and message, to customers in our words; one that somebody cancelled has none."""
    me = uuid4()
    body = order_body((0, 1), customer_id=str(me))
    declined = (await api.post("/orders", json=body)).json()
    assert declined["failure"] is None
    await run_sagas("declined")
    short = (await api.post("/orders", json=order_body((1, 6)))).json()
    await run_sagas()
    stopped = (await api.post("/orders", json=body)).json()
    await api.delete(f"/orders/{stopped['id']}")
    await run_sagas()
    rows = {row["id"]: row for row in (await api.get("/orders")).json()["data"]}
    assert {row["status"] for row in rows.values()} == {"cancelled"}
    assert rows[declined["id"]]["failure"]["code"] == "DP014"
    assert "card_declined" in rows[declined["id"]]["failure"]["message"]
    assert rows[short["id"]]["failure"]["code"] == "DP006"
    assert rows[stopped["id"]]["failure"] is None
    told = (await client("authenticated", me).get(f"/orders/{declined['id']}")).json()
    assert told["failure"] == {"code": "DP014", "message": "payment declined"}
