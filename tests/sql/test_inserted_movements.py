"""routines/31_movements.sql: applications insert into the ledger themselves."""

import json
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from shop import Row, Shop

INSERT = (
    "insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,"
    " quantity)"
)


async def insert(shop: Shop, *movements: tuple[Any, ...], role: str = "darkpearl_app") -> None:
    """An application inserts movements: (warehouse, product, type, quantity, …columns)."""
    async with shop.acting_as(role):
        await shop.run(
            "insert into stock_movements (warehouse_id, product_id, movement_type, quantity,"
            " correlation_id, reference_id) values "
            + ", ".join(["(%s, %s, %s, %s, coalesce(%s, new_id()), %s)"] * len(movements)),
            *(value for each in movements for value in (*each, None, None)[:6]),
        )


def wrong_rows(error: psycopg.Error) -> list[Row]:
    """What the DETAIL says of each row."""
    return json.loads(error.diag.message_detail or "")


async def test_a_plain_insert_moves_stock(shop: Shop) -> None:
    """An application's insert is a movement like any: signed, numbered, with what is there then."""
    product = await shop.product()
    await insert(shop, (shop.lisbon, product, "receive", 7), (shop.lisbon, product, "adjust", -2))
    assert await shop.stock(product) == (5, 0)
    rows = await shop.rows(
        "select available_after, reserved_after, actor = session_user as signed"
        " from stock_movements order by id"
    )
    assert [tuple(row.values()) for row in rows] == [(7, 0, True), (5, 0, True)]


async def test_a_product_that_was_never_stocked_gets_its_shelf(shop: Shop) -> None:
    """A movement to where a product never lay makes the shelf, as receive_stock() does."""
    product = await shop.product()
    await insert(shop, (shop.rotterdam, product, "receive", 3))
    assert await shop.stock(product, shop.rotterdam) == (3, 0)


async def test_all_offending_rows_are_named_at_once(shop: Shop) -> None:
    """A refused statement names each wrong row by its number, with its reason, and writes none."""
    product, nothing = await shop.product(on_hand=5), uuid4()
    with pytest.raises(psycopg.Error) as raised:
        await insert(
            shop,
            (shop.lisbon, product, "receive", 1),
            (shop.lisbon, product, "adjust", -7),
            (shop.lisbon, nothing, "receive", 1),
            (shop.lisbon, product, "reserve", 1),
            (shop.lisbon, product, "balance", 1),
            (shop.lisbon, product, "receive", 0),
            (shop.lisbon, product, "receive", -1),
            (shop.lisbon, product, "transfer_out", 1),
            (shop.lisbon, product, "transfer_out", 1, None, shop.lisbon),
            (shop.lisbon, product, "transfer_out", 1, None, shop.rotterdam),
            (shop.lisbon, None, "receive", 1),
            (shop.lisbon, product, "adjust", -5),
            (shop.lisbon, product, "receive", None),
        )
    assert raised.value.sqlstate == "DP025"
    told = {row["row"]: (row["code"], row["problem"]) for row in wrong_rows(raised.value)}
    assert {row: code for row, (code, _) in told.items()} == {
        2: "DP006",
        3: "DP010",
        4: "DP015",
        5: "DP015",
        6: "DP015",
        7: "DP015",
        8: "DP015",
        9: "DP015",
        10: "DP015",
        11: "DP015",
        13: "DP015",
    }
    assert told[6] == told[13]
    assert len({problem for _, problem in told.values()}) == 10
    (second, third, *_) = wrong_rows(raised.value)
    assert (second["product_id"], second["warehouse_id"]) == (str(product), str(shop.lisbon))
    assert third["product_id"] == str(nothing)
    assert await shop.stock(product) == (5, 0)
    assert await shop.value("select count(*) from stock_movements") == 1


async def test_one_reason_is_the_code(shop: Shop) -> None:
    """Rows that are refused for one reason raise its own code, as the functions do."""
    product = await shop.product(on_hand=5)
    for movement, code in [
        ((shop.lisbon, product, "adjust", -6), "DP006"),
        ((shop.lisbon, uuid4(), "receive", 6), "DP010"),
        ((shop.lisbon, product, "release", 6), "DP015"),
        ((shop.lisbon, product, "receive", 1_000_000_000), "DP015"),
    ]:
        with shop.refused(code):
            await insert(shop, movement)


async def test_no_more_than_a_hundred_rows_are_named(shop: Shop) -> None:
    """The DETAIL is bounded; the message counts what it leaves out."""
    product = await shop.product()
    async with shop.acting_as("darkpearl_app"):
        with shop.refused("DP006") as refusal:
            await shop.run(
                f"{INSERT} select new_id(), %s, %s, 'adjust', -1 from generate_series(1, 150)",
                shop.lisbon,
                product,
            )
    assert refusal.message.startswith("150 of 150 ")
    assert [row["row"] for row in json.loads(refusal.detail)] == [*range(1, 101)]


async def test_reserved_units_stay(shop: Shop) -> None:
    """What is promised to orders can't be taken away by an insert."""
    product = await shop.product(on_hand=5)
    await shop.order((product, 4))
    await shop.advance()
    with shop.refused("DP006"):
        await insert(shop, (shop.lisbon, product, "adjust", -2))
    await insert(shop, (shop.lisbon, product, "adjust", -1))
    assert await shop.stock(product) == (4, 4)


async def test_rows_count_in_the_order_of_the_statement(shop: Shop) -> None:
    """A row may take what one before it has brought, and not what one after it brings."""
    product = await shop.product()
    with shop.refused("DP006") as refusal:
        await insert(
            shop, (shop.lisbon, product, "adjust", -1), (shop.lisbon, product, "receive", 1)
        )
    assert [row["row"] for row in json.loads(refusal.detail)] == [1]
    await insert(shop, (shop.lisbon, product, "receive", 1), (shop.lisbon, product, "adjust", -1))
    assert await shop.stock(product) == (0, 0)


async def test_a_transfer_is_two_rows(shop: Shop) -> None:
    """Both ends of a transfer move, each naming the other's warehouse under one correlation id."""
    product, operation = await shop.product(on_hand=5), uuid4()
    await insert(
        shop,
        (shop.rotterdam, product, "transfer_in", 2, operation, shop.lisbon),
        (shop.lisbon, product, "transfer_out", 2, operation, shop.rotterdam),
    )
    assert await shop.stock(product) == (3, 0)
    assert await shop.stock(product, shop.rotterdam) == (2, 0)
    row = await shop.row("select * from recorded_movements where movement_type = 'transfer_out'")
    assert row["counterpart"]["warehouse_id"] == str(shop.rotterdam)
    transfer = "select quantity from transfer_stock(%s, %s, %s, 2, %s)"  # the same again
    assert await shop.values(transfer, shop.lisbon, shop.rotterdam, product, operation) == [2, 2]
    assert await shop.stock(product) == (3, 0)


async def test_the_same_again_moves_nothing_and_says_so(shop: Shop) -> None:
    """A correlation id with the same content is a no-op with a notice, whoever wrote it first."""
    product, operation = await shop.product(), uuid4()
    told: list[str] = []
    shop.connection.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
    receipt = (shop.lisbon, product, "receive", 3, operation)
    await insert(shop, receipt)
    assert told == []
    await insert(shop, receipt, (shop.lisbon, product, "receive", 1), receipt)
    assert told == ["2 of 3 movements were written before; nothing moves again"]
    assert await shop.stock(product) == (4, 0)
    await shop.run("select receive_stock(%s, %s, 3, %s)", shop.lisbon, product, operation)
    assert await shop.stock(product) == (4, 0)


async def test_a_correlation_id_stands_for_one_thing(shop: Shop) -> None:
    """Another quantity or another reference under a correlation id is refused, row by row."""
    product, operation = await shop.product(), uuid4()
    await insert(shop, (shop.lisbon, product, "receive", 3, operation))
    with shop.refused("DP011") as refusal:
        await insert(
            shop,
            (shop.lisbon, product, "receive", 4, operation),
            (shop.lisbon, product, "receive", 3, operation, uuid4()),
        )
    assert [row["row"] for row in json.loads(refusal.detail)] == [1, 2]
    assert await shop.stock(product) == (3, 0)


@pytest.mark.parametrize("column", ["available_after", "reserved_after", "actor", "created_at"])
async def test_what_follows_is_the_databases_to_say(shop: Shop, column: str) -> None:
    """No role says what lies on a shelf after a movement, who made it, or when."""
    for role in ("darkpearl_app", "service_role"):
        async with shop.acting_as(role):
            with shop.refused("42501"):
                await shop.run(
                    "insert into stock_movements (warehouse_id, product_id, movement_type,"
                    f" quantity, {column}) select %s, %s, 'receive', 1, null",
                    shop.lisbon,
                    uuid4(),
                )


async def test_returning_names_the_movement(shop: Shop) -> None:
    """RETURNING has the id and the correlation id, as libraries that map rows ask for them."""
    product = await shop.product()
    async with shop.acting_as("darkpearl_app"):
        told = await shop.row(
            "insert into stock_movements (warehouse_id, product_id, movement_type, quantity)"
            " values (%s, %s, 'receive', 1) returning id, correlation_id",
            shop.lisbon,
            product,
        )
    assert await shop.row("select id, correlation_id from stock_movements") == told


async def test_a_written_movement_is_history(shop: Shop) -> None:
    """Once its statement has ended, an inserted movement refuses change like any other."""
    await insert(shop, (shop.lisbon, await shop.product(), "receive", 1))
    for change in (
        "update stock_movements set available_after = -1",
        "delete from stock_movements",
    ):
        with shop.refused("DP005"):
            await shop.run(change)


async def read_by(shop: Shop, rows: int) -> int:
    """How many rows an insert of so many movements reads, over a tenth as many products."""
    reads = (
        "select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))"
        " from pg_stat_xact_all_tables where schemaname = 'darkpearl'"
    )
    async with shop.connection.transaction(force_rollback=True):
        await shop.run(
            "insert into products (id, sku, name)"
            " select ('aaaaaaaa-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid, n, n"
            " from generate_series(1, %s) as n",
            rows // 10,
        )
        before = await shop.value(reads)
        await shop.run(
            f"{INSERT} select new_id(), %s,"
            " ('aaaaaaaa-0000-0000-0000-' || lpad((1 + n %% %s)::text, 12, '0'))::uuid,"
            " 'receive', 1 from generate_series(1, %s) as n",
            shop.lisbon,
            rows // 10,
            rows,
        )
        return int(await shop.value(reads) - before)


async def test_sets_are_linear(shop: Shop) -> None:
    """Ten times as many movements in a statement read ten times as much, within a fifth.

    In a session whose plans were made for the small set.
    """
    few, many = await read_by(shop, 500), await read_by(shop, 5000)
    assert few > 500
    assert many <= 12 * few


async def test_one_shelf_is_linear_too(shop: Shop) -> None:
    """The same when all rows of a statement are for one shelf, and others moved meanwhile."""
    product = await shop.product()
    reads = (
        "select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)"
        " from pg_stat_xact_all_tables where schemaname = 'darkpearl'"
    )
    read: list[int] = []
    for rows in (500, 5000):
        async with shop.connection.transaction():
            before = await shop.value(reads)
            await shop.run(
                f"{INSERT} select new_id(), %s, %s, 'receive', 1 from generate_series(1, %s)",
                shop.lisbon,
                product,
                rows,
            )
            read.append(int(await shop.value(reads) - before))
    assert read[1] <= 12 * read[0]
    assert await shop.stock(product) == (5500, 0)
