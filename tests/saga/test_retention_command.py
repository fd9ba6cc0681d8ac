"""`darkpearl retention` and `darkpearl audit`, and what listeners remove by themselves."""

import asyncio
import csv
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from shop import Shop

from darkpearl import database
from darkpearl.cli.main import command
from darkpearl.gateways.mock import MockGateway
from darkpearl.listener import retention

DAY = 86400

Run = Callable[..., Awaitable[Result]]


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on the shop's database."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", database_url)

    async def invoke(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, command, arguments)

    return invoke


@pytest.fixture
async def old(shop: Shop) -> list[UUID]:
    """Two orders of two months ago, one partly returned, and one of today."""
    product = await shop.product(on_hand=9)
    orders = [await shop.fulfilled((product, 2)), await shop.fulfilled((product, 1))]
    await shop.take_back(orders[0], (product, 1))
    await shop.turn_clock(62 * DAY)
    await shop.fulfilled((product, 1))
    await shop.run("update retention set keep_days = 30, export_first = true where kind = 'orders'")
    await shop.run("analyze")
    return orders


def rows(path: Path) -> list[dict[str, str]]:
    """What a file holds."""
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


async def test_a_month_is_exported_and_then_goes(
    shop: Shop, run: Run, old: list[UUID], tmp_path: Path
) -> None:
    """What is written has every row of the orders; only then do they go."""
    month = (await shop.value("select min(created_at at time zone 'UTC') from orders")).strftime(
        "%Y-%m"
    )
    assert "orders: 0 removed" in (await run("retention", "apply")).output
    told = await run("retention", "export", str(tmp_path / "archive"))
    assert told.output == f"orders of {month}: 2\n"
    files = {each.name: rows(each) for each in (tmp_path / "archive").iterdir()}
    counts = {name.split("-")[-1].partition(".")[0]: len(read) for name, read in files.items()}
    events = sum([len(await shop.events(order)) for order in old])
    assert counts == {
        "orders": 2,
        "order_items": 2,
        "order_adjustments": 0,
        "order_particulars": 0,
        "return_metadata": 0,
        "shipments": 0,
        "shipment_items": 0,
        "parcels": 0,
        "grouped_orders": 0,
        "sagas": 2,
        "saga_events": events,
        "saga_signals": 0,
        "stock_movements": 4,
        "returns": 1,
    }
    assert {row["id"] for row in files[f"orders-{month}-orders.csv.gz"]} == set(map(str, old))
    shown = (await run("retention")).output
    assert f"2 of {month}" in shown
    assert '"kind":"orders"' in (await run("retention", "--json")).output
    assert "orders: 2 removed" in (await run("retention", "apply")).output
    assert await shop.value("select count(*) from orders") == 1
    assert (await run("retention", "export", str(tmp_path / "archive"))).output == ""


async def test_a_month_is_exported_again_by_name(run: Run, old: list[UUID], tmp_path: Path) -> None:
    """A month that isn't over, or without its kind, is refused in one line."""
    assert old
    wrong = await run("retention", "export", str(tmp_path), "--month", "2026-01")
    assert wrong.exit_code == 2
    with pytest.raises(Exception, match="month is not over"):
        raise (
            await run(
                *("retention", "export", str(tmp_path), "--kind", "orders", "--month", "2999-01")
            )
        ).exception or AssertionError


async def test_the_audit_says_what_it_found(shop: Shop, run: Run, old: list[UUID]) -> None:
    """Nothing, and exit code 0; or a line for each contradiction, and 1. Both runs are kept."""
    fine = await run("audit")
    assert (fine.exit_code, fine.output) == (0, "nothing contradicts the rules\n")
    async with shop.unguarded():
        await shop.run("update orders set total_amount = 1 where id = %s", old[0])
    assert (await run("audit", "--since", "2999-01-01")).exit_code == 0
    wrong = await run("audit", "--json")
    assert '"finding":"order total is not the sum of its lines and adjustments"' in wrong.output
    assert await shop.values("select finding_count from audit_runs order by id") == [0, 0, 2]


async def test_listeners_remove_what_is_too_old(
    shop: Shop, old: list[UUID], listening: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside their work, without being asked."""
    await shop.run("update retention set export_first = false")
    monkeypatch.setattr("darkpearl.listener.retention.FIRST_SECONDS", 0)
    await listening(MockGateway(1.0))

    async def gone() -> bool:
        left: list[UUID] = await shop.values("select id from orders")
        return not set(left) & set(old)

    await until(gone)


async def test_one_kind_that_fails_keeps_no_other(
    shop: Shop, old: list[UUID], database_url: str
) -> None:
    """What another session holds is tried again later; the other kinds are seen to."""
    await shop.run("update retention set export_first = false")
    await shop.run("update retention set keep_days = 30 where kind = 'gateway_events'")
    await shop.run("alter function remove_next_gateway_events rename to gone")
    listener = database.as_role(database_url, "darkpearl_listener")
    async with database.connect(listener, "test") as connection:
        with shop.refused("42883"):
            await retention.keep(connection)
    assert not set(await shop.values("select id from orders")) & set(old)


async def test_keys_of_closed_months_are_built_dense(shop: Shop, database_url: str) -> None:
    """The primary key of a month that is over takes less room, and the month reads as before."""
    product = await shop.product(on_hand=9)
    order = await shop.fulfilled((product, 1))
    await shop.run(
        "insert into saga_events (saga_id, warehouse_id, event_type) select %s, %s, 'reported'"
        " from generate_series(1, 6000)",
        *(order, shop.lisbon),
    )
    name = await shop.value("select tableoid::regclass::text || '_pkey' from saga_events limit 1")
    before = await shop.value("select pg_relation_size(%s::regclass)", name)
    told = await shop.events(order)
    listener = database.as_role(database_url, "darkpearl_listener")
    async with database.connect(listener, "test") as connection:
        await shop.run("analyze")
        await retention.keep(connection)
        assert await shop.value("select pg_relation_size(%s::regclass)", name) == before
        await shop.turn_clock(40 * DAY)
        await retention.keep(connection)
        after = await shop.value("select pg_relation_size(%s::regclass)", name)
        assert after < before / 3
        assert await database.fetch_all(connection, "select sparse_event_indexes()") == []
    assert await shop.events(order) == told
    assert await shop.value(
        "select bool_and(indisvalid) from pg_index where indrelid = (select indrelid from pg_index"
        " where indexrelid = %s::regclass)",
        name,
    )
    for wrong in ("orders_pkey", "nothing"):
        with shop.refused("DP010"):
            await shop.run("select prepare_dense_index(%s)", wrong)
