"""What readers ask of a large history reads a piece of it, whoever migrated the database."""

import json
import re
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from pages import blocks
from psycopg import AsyncConnection, sql
from shop import Shop

from darkpearl import schema
from darkpearl.api import orders, stock_movements
from darkpearl.cli import db
from darkpearl.config import Settings

ORDERS = 12_000
ELSE = re.compile(r"gset|:'|for no key update|from \w+\(|from audit")
"""Queries that are no reading: of functions, with variables of psql; and audit reads everything."""
ASKED_BY_PEOPLE = [
    "select id from sagas where status = 'compensated' order by id desc limit 100",
    "select id from sagas where status = 'stuck' order by id desc limit 100",
    "select id from stock_movements where movement_type = 'adjust' order by id desc limit 100",
    "select * from order_overview where saga_status = 'stuck'",
    "select id from saga_events where event_type = 'retried' order by created_at desc limit 9",
]
"""What is out of the ordinary, and found by an index that has nothing else."""
ASKED_BY_THE_API = [
    f"select id from {table} where {conditions} order by id desc limit 100"
    for table, conditions in (
        ("sagas", "status = 'stuck' and (status = 'stuck') is true"),
        ("sagas", "status = 'running' and ready_at is not null"),
        ("stock_movements", f"movement_type = 'adjust' and {stock_movements.BY_HAND_IS}"),
        ("orders", f"status = 'pending' and {orders.UNDER_WAY}"),
        (
            "orders",
            f"status = any('{{pending,paid}}'::order_status[]) and {orders.UNDER_WAY}",
        ),
    )
]
"""The same in lists, whose conditions say how few they are."""


def documented() -> list[tuple[str, str]]:
    """Each role and query of the pages for people who write SQL."""
    found = []
    for page in ("docs/sql.md", "docs/operations.md"):
        for block in blocks(page):
            if block.language == "sql" and block.text.startswith("-- as "):
                role = block.text.split("\n")[0].removeprefix("-- as ").split(",")[0]
                queries = [each.strip() for each in block.text.split("\n", 1)[1].split(";\n")]
                found += [(role, each) for each in queries if each.startswith("select")]
    return [
        each
        for each in found
        if re.search(r"\bfrom \w+\b(?!\()", each[1]) and not ELSE.search(each[1])
    ]


async def fill(shop: Shop) -> None:
    """Finished orders of ten days; one in ten came to nothing, seven are stuck, ten under way."""
    await shop.product(on_hand=1_000_000)
    async with shop.unguarded():
        await shop.run(
            """
            create temp table past as
            select new_id() as id, n, now() - interval '10 days' * (1 - n::float8 / %s) as at,
                case when n %% 1700 = 0 then 'stuck' when n %% 10 = 0 then 'compensated'
                    when n %% 1100 = 1 then 'waiting' else 'completed' end::saga_status as status
            from generate_series(1, %s) as n
            """,
            ORDERS,
            ORDERS,
        )
        for statement in (
            """
            insert into orders (id, warehouse_id, status, created_at)
            select id, %(lisbon)s, case status when 'completed' then 'fulfilled'
                when 'compensated' then 'cancelled' else 'payment_processing' end::order_status, at
            from past order by n
            """,
            """
            insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)
            select id, %(lisbon)s, %(product)s, 1, 10 from past order by n
            """,
            """
            insert into payments (order_id, warehouse_id, currency, requested_amount,
                gateway, gateway_reference, idempotency_key)
            select id, %(lisbon)s, 'USD', 10, 'mock', 'ch_' || n, id || ':process_payment'
            from past order by n
            """,
            """
            insert into sagas (id, warehouse_id, saga_type, plan_version, status, ready_at)
            select id, %(lisbon)s, 'order_fulfilment', 1, status,
                case when status < 'completed' then now() + interval '1 hour' end
            from past order by n
            """,
            """
            insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,
                quantity, available_after, reserved_after, created_at)
            select id, %(lisbon)s, %(product)s, m.m, 1, 1, 0, at
            from past, (values ('reserve'::movement_type), ('fulfill')) as m (m) order by n
            """,
            """
            insert into saga_events (saga_id, warehouse_id, event_type, step_name, created_at)
            select id, %(lisbon)s,
                case when e = 'step_failed' and status not in ('stuck', 'compensated')
                    then 'step_completed' else e end,
                'process_payment', at
            from past, unnest(array['saga_started', 'step_completed', 'step_waiting',
                'step_failed']::saga_event_type[]) as e
            order by n
            """,
        ):
            await shop.connection.execute(
                statement.encode(), {"lisbon": shop.lisbon, "product": shop.products[0]}
            )
    await shop.run("vacuum analyze")  # BRIN summarizes what is there


def reads_whole(plan: dict[str, Any]) -> list[str]:
    """The large tables that a plan reads from end to end.

    The events of a month that has just begun are a small one.
    """
    found = [reads for each in plan.get("Plans", []) for reads in reads_whole(each)]
    if plan["Node Type"] == "Seq Scan":
        read = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
        if read * plan["Actual Loops"] > ORDERS * 0.9:
            found.append(plan["Relation Name"])
    return found


async def plan_of(connection: AsyncConnection[Any], role: str, query: str) -> dict[str, Any]:
    """How a role's query is carried out, and what that reads; nothing of it stays."""
    async with connection.transaction(force_rollback=True):
        # A small table is read whole for less than a few of its pages in turn, a large one isn't.
        await connection.execute("set local random_page_cost = 1")
        await connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        told = await connection.execute(f"explain (analyze, buffers, format json) {query}".encode())
        row = await told.fetchone()
    assert row is not None
    return dict(row["QUERY PLAN"][0]["Plan"])


def blocks_read(plan: dict[str, Any]) -> int:
    """How many pages were looked at."""
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_no_documented_query_reads_a_large_table_whole(shop: Shop) -> None:
    """Also in a database that no superuser has migrated; audit alone does, and says so."""
    await fill(shop)
    asked = documented()
    assert len(asked) > 15
    for sees_statistics in (True, False):
        for role, query in asked:
            plan = await plan_of(shop.connection, role, query)
            assert reads_whole(plan) == [], f"{query}, statistics are seen: {sees_statistics}"
            assert blocks_read(plan) < 1500, query
        for query in ASKED_BY_PEOPLE if sees_statistics else ASKED_BY_THE_API:
            plan = await plan_of(shop.connection, "darkpearl_reader", query)
            assert reads_whole(plan) == [], query
            assert blocks_read(plan) < 600, query
        await shop.run("alter function enum_eq(anyenum, anyenum) not leakproof")


async def test_a_superuser_shows_statistics_of_statuses(database_url: str, shop: Shop) -> None:
    """A migrate does, once, and the status tells when nobody has; so is a restore found out."""
    assert not (await schema.status(database_url)).hides_statistics
    await schema.migrate(database_url)
    await shop.run("alter function enum_eq(anyenum, anyenum) not leakproof")
    assert (await schema.status(database_url)).hides_statistics
    await schema.migrate(database_url)
    assert not (await schema.status(database_url)).hides_statistics


def test_the_command_line_says_when_statistics_are_hidden(database_url: str) -> None:
    """`db status` has a line for it, and none where all is well."""

    def told() -> str:
        done = CliRunner().invoke(db.status, obj=Settings(database_url=database_url))
        assert done.exit_code == 0, done.output
        return done.output

    assert "hidden" not in told()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("alter function enum_eq(anyenum, anyenum) not leakproof")
    assert "hidden   statistics" in told()


async def test_orders_are_found_without_reading_them_all(shop: Shop) -> None:
    """By a number, a customer or a product that is in each of them, and read a page at a time."""
    await fill(shop)
    number = await shop.value("select max(order_number) from orders")
    sku = await shop.value("select sku from products")
    for search, found in ((number, 1), ("no such thing", 0), (shop.lisbon, 0), (sku, 1000)):
        query = f"select find_orders('{search}')"
        for _ in range(2):  # the first reads the catalogues, too
            plan = await plan_of(shop.connection, "darkpearl_reader", query)
        assert plan["Actual Rows"] == found
        assert blocks_read(plan) < 60 + found / 2, search
    for shown in orders._INCLUDED.values():
        query = (
            f"select row.* from (select order_number from orders order by order_number desc"
            f" limit 50) as cut, lateral (select * from (select {shown}, o.order_number"
            f" from order_summaries as o) as r where r.order_number = cut.order_number offset 0)"
            f" as row"
        )
        plan = await plan_of(shop.connection, "darkpearl_reader", query)
        assert reads_whole(plan) == [], query
        assert plan["Actual Rows"] == 50
        assert blocks_read(plan) < 50 * 25, query


async def test_a_payment_is_found_by_its_reference(shop: Shop) -> None:
    """Among many: whole ranges of the table are left out, and no row is missed."""
    await fill(shop)
    query = "select order_id from find_payments('ch_7000')"
    for _ in range(2):
        plan = await plan_of(shop.connection, "darkpearl_reader", query)
    assert plan["Actual Rows"] == 1
    size = await shop.value("select pg_relation_size('payments') / 8192")
    assert blocks_read(plan) < size / 2


async def test_an_update_of_a_payment_stays_on_its_page(shop: Shop) -> None:
    """The index of references is a summary: writing one down touches no other index."""
    if await shop.value("select current_setting('server_version_num')::int") < 160000:
        pytest.skip("summarizing indexes end HOT updates before PostgreSQL 16")
    product = await shop.product(on_hand=100)
    for _ in range(5):
        await shop.fulfilled((product, 1))
    await shop.run("select pg_stat_force_next_flush()")
    counted = await shop.row(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'payments'"
    )
    assert counted["n_tup_upd"] == counted["n_tup_hot_upd"] > 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("LAPTOP-14", ["laptop", "14"]),
        ("ACME/X.5  _a_", ["acme", "x", "5", "a"]),
        ("27\u00d730cm \u201cGr\u00f6\u00dfe\u201d", ["27", "30cm", "gro\u00dfe"]),
        ("\u8d64\u3044\u30e9\u30f3\u30d7\u3001\uff2c", ["\u8d64\u3044\u30e9\u30f3\u30d7", "l"]),
        ("- . \u2026", []),
        ("", []),
    ],
)
async def test_words_are_letters_and_digits(shop: Shop, text: str, words: list[str]) -> None:
    """Of any script, in lower case, without accents, and cut at every sign."""
    assert await shop.value("select words_of(%s::text)", text) == words


async def test_a_search_is_one_look_into_an_index(shop: Shop) -> None:
    """For visitors too, whose policy keeps a condition of their own from reaching it."""
    await shop.shelves(5000)
    await shop.product(sku="LAPTOP-14", name="Laptop")
    await shop.run("vacuum analyze products")
    query = "select find_products('14 lap')"
    for _ in range(2):  # the first reads the catalogues, too
        plan = await plan_of(shop.connection, "anon", query)
    assert plan["Actual Rows"] == 1
    assert blocks_read(plan) < 30, json.dumps(plan)


async def test_a_visitors_page_reads_no_catalogue(shop: Shop) -> None:
    """The policy of inventory looks up the products of a page, and not all there are."""
    await shop.shelves(5000)
    await shop.run("vacuum analyze")
    query = "select id from inventory order by created_at desc, id desc limit 20"
    for _ in range(2):
        plan = await plan_of(shop.connection, "anon", query)
    assert blocks_read(plan) < 150, json.dumps(plan)
