"""The page and the metrics over cells: one cell at a time by the picker, all on one screen."""

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from moving import new_warehouse
from places import Place
from prometheus_client.parser import text_string_to_metric_families
from psycopg import AsyncConnection
from shop import Shop
from terminal import Run

from darkpearl.telemetry import metrics

Api = httpx.AsyncClient
Pair = tuple[Shop, Shop]
Until = Callable[..., Awaitable[None]]
SIGN = re.compile(r'aria-current="page">(\w+)<')


async def seen(api: Api, path: str, **asked: Any) -> str:
    """A screen as it is first seen."""
    async with api.stream("GET", f"/monitor/live{path}", params=asked) as response:
        assert response.status_code == 200, await response.aread()
        screen = ""
        async for line in response.aiter_lines():
            if screen and not line:
                return screen
            screen += line.removeprefix("data: ") + "\n"
    raise AssertionError(screen)


def of_cell(html: str) -> list[str]:
    """The cells that the picker says are looked at."""
    return SIGN.findall(html.partition("</nav>")[0])


async def test_a_screen_is_of_one_cell(pair: Pair, api: Api, product: UUID) -> None:
    """The address says which, and so does every address on it; without one it is the API's own."""
    _, there = pair
    order = await there.order((product, 1), warehouse=there.rotterdam)
    for asked, name in (({}, "home"), ({"cell": 1}, "home"), ({"cell": 2}, "north")):
        html = await seen(api, "/orders", **asked)
        assert of_cell(html) == [name]
        assert (str(order) in html) == (name == "north")
        screen = html.partition("</nav>")[2]
        addresses = re.findall(r'(?:href|action|hx-get)="(/monitor[^"]*)"', screen)
        assert addresses
        assert all(f"cell={2 if name == 'north' else 1}" in each for each in addresses)
    for none in ("9", "x", "1" * 5000):
        response = await api.get("/monitor/live/orders", params={"cell": none})
        assert response.status_code == 404


async def test_an_order_is_found_in_its_cell(pair: Pair, api: Api, product: UUID) -> None:
    """By its number in the search, and by an address that names no cell."""
    here, there = pair
    for shop, place, name in ((here, here.lisbon, "home"), (there, there.rotterdam, "north")):
        order = await shop.order((product, 1), warehouse=place)
        number = await shop.value("select order_number from orders where id = %s", order)
        for path, asked in (
            ("/orders", {"search": number}), ("/orders", {"search": number, "cell": 1}),
            ("/orders", {"search": number, "cell": 2}),
            (f"/orders/{order}", {}), (f"/sagas/{order}", {}),
        ):  # fmt: skip
            html = await seen(api, path, **asked)
            assert of_cell(html) == [name]
            assert str(number) in html
    gone = await api.get(f"/monitor/live/orders/{uuid4()}")
    assert gone.status_code == 404


async def test_only_orders_are_searched_by_their_number(
    pair: Pair, api: Api, product: UUID
) -> None:
    """A search of shelves stays in its cell, whatever order has that number in another."""
    here, _ = pair
    order = await here.order((product, 1))
    number = await here.value("select order_number from orders where id = %s", order)
    assert of_cell(await seen(api, "/orders", search=number, cell=2)) == ["home"]
    assert of_cell(await seen(api, "/stock", search=number, cell=2)) == ["north"]


async def test_a_shelf_tells_what_left_it_for_another_cell(
    pair: Pair, api: Api, product: UUID
) -> None:
    """Since when, where to, how much, and its saga; a shelf that nothing has left tells of none."""
    here, there = pair
    await there.receive(product, 5, there.rotterdam)
    sent = "select correlation_id from transfer_stock(%s, %s, %s, 2)"
    transfer = await here.value(sent, here.lisbon, here.rotterdam, product)
    assert "In transit" not in await seen(api, f"/stock/{product}/{there.rotterdam}", cell=2)
    html = await seen(api, f"/stock/{product}/{here.lisbon}")
    assert "In transit to another cell" in html
    assert f'id="t{transfer}"' in html
    assert f"/monitor/sagas/{transfer}" in html


async def test_an_action_is_done_in_its_cell(pair: Pair, api: Api, product: UUID) -> None:
    """Its dialog leads there, and nothing is done in the other."""
    here, there = pair
    dialog = await api.get("/monitor/act/pause", params={"cell": 2})
    assert 'hx-post="/monitor/act/pause?cell=2"' in dialog.text
    form = {"minutes": "5", "reason": "test"}
    done = await api.post("/monitor/act/pause", params={"cell": 2}, data=form)
    assert done.status_code == 200, done.text
    is_paused = "select bool_or(coalesce(paused_until > clock(), false)) from step_settings"
    assert [await shop.value(is_paused) for shop in (here, there)] == [False, True]
    assert "Paused" in await seen(api, "", cell=2)
    assert "Paused" not in await seen(api, "", cell=1)
    await there.run("select pause_external_steps(0, 'test')")
    order = await there.order((product, 1), warehouse=there.rotterdam)
    keys = {"id": str(order), "reason": "test"}
    done = await api.post("/monitor/act/cancel_order", params={"cell": 2}, data=keys)
    assert done.status_code == 200, done.text
    assert await there.value("select cancel_requested from sagas where id = %s", order)


async def test_all_cells_are_on_one_screen(
    pair: Pair, api: Api, product: UUID, places: tuple[Place, Place], until: Until
) -> None:
    """How each is, in a row; one that is away has its row and costs the other nothing."""
    _, there = pair
    order = await there.order((product, 1), warehouse=there.rotterdam)
    await there.poison("reserve_stock", order, sqlstate="P0001")
    await there.advance()
    assert (await there.saga(order))["status"] == "stuck"
    html = await seen(api, "/cells")
    assert re.search(r"<nav class=.cells.*aria-current=.page.>All cells<", html)
    row = html.partition('id="c2"')[2].partition("</tr>")[0]
    assert "/monitor/stuck?cell=2" in row
    assert "a person is needed in home, north" in html  # neither has a listener
    assert re.search(r'class="number">\d+</td>\s*$', row)
    await there.cure("reserve_stock")
    await there.run("select turn_back_saga(%s, 'test')", order)
    north = places[1].server
    nobody = "alter database north allow_connections {}"
    await _run(north.url, nobody.format("false"))
    await _run(
        north.url,
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'north'"
        " and application_name = 'darkpearl api'",
    )
    try:

        async def is_away() -> bool:
            return "north away" in await seen(api, "/cells")

        await until(is_away)
        assert of_cell(await seen(api, "/orders")) == ["home"]
        away = await seen(api, "/orders", cell=2)
        assert of_cell(away) == ["north"]
        assert "answer" in away
        for path in (f"/orders/{order}", f"/sagas/{order}"):  # it may be there
            gone = await api.get(f"/monitor/live{path}")
            assert (gone.status_code, "north" in gone.text) == (503, True)
    finally:
        await _run(north.url, nobody.format("true"))

    async def is_back() -> bool:
        return "away" not in await seen(api, "/cells")

    await until(is_back)


async def _run(url: str, statement: str) -> None:
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement.encode())


async def test_metrics_are_of_all_cells(
    api: Api, pair: Pair, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each series of a database has the label of its cell, and each family comes once."""
    assert pair
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)

    async def all_answer() -> bool:  # one of them was away in the test before
        return 'darkpearl_database_up{cell="north"} 1' in (await api.get("/metrics")).text

    await until(all_answer)
    page = (await api.get("/metrics")).text
    assert len(re.findall("^# TYPE darkpearl_sagas_ready ", page, re.MULTILINE)) == 1
    samples = [each for family in text_string_to_metric_families(page) for each in family.samples]
    for name in ("darkpearl_database_up", "darkpearl_sagas_ready", "darkpearl_listeners_alive"):
        assert {each.labels["cell"] for each in samples if each.name == name} == {"home", "north"}
    for name in ("darkpearl_cell_kept_bytes", "darkpearl_cell_lag_seconds"):
        assert [each.labels for each in samples if each.name == name] == [{"cell": "north"}]


async def test_what_has_moved_is_no_trouble_here(
    pair: Pair, api: Api, places: tuple[Place, Place], until: Until, run: Run
) -> None:
    """A stuck saga and a shelf of before are neither counted nor shown where they were."""
    here, there = pair
    code, warehouse, product = await new_warehouse(pair, until)
    order = await here.order((product, 1), warehouse=warehouse)
    await here.poison("reserve_stock", order, sqlstate="P0001")
    await here.advance()
    number = await here.value("select order_number from orders where id = %s", order)
    assert f"#{number}" in await seen(api, "/stuck", cell=1)
    moved = await run("cells", "move-warehouse", code, "--to", "north", "--yes")
    assert moved.code == 0, moved.errors

    async def has_been_looked_up_again() -> bool:
        return f"#{number}" not in await seen(api, "/stuck", cell=1)

    await until(has_been_looked_up_again)
    for path, asked in (
        ("/stuck", {}), ("/orders", {"warehouse": code}), ("/sagas", {"status": "stuck"}),
        ("/stock", {"show": "all", "warehouse": code}),
    ):  # fmt: skip
        was, has = [
            (await seen(api, path, cell=cell, **asked)).partition("</nav>")[2] for cell in (1, 2)
        ]
        mark = "/stock/" if path == "/stock" else str(order)
        assert mark not in was
        assert mark in has
    assert (
        await here.value(
            "select count(*) from sellable_inventory where warehouse_id = %s", warehouse
        )
        == 0
    )
    assert (
        await there.value(
            "select count(*) from sellable_inventory where warehouse_id = %s", warehouse
        )
        == 1
    )
    html = await seen(api, f"/orders/{order}", cell=2)
    assert str(number) in html
    gone = await api.get(f"/monitor/live/orders/{order}", params={"cell": 1})
    assert gone.status_code == 404
    await here.cure("reserve_stock")
    await there.run("select turn_back_saga(%s, 'test')", order)
    assert places
