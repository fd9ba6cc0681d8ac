"""routines/90_access.sql: who may do what, as the catalogue says and as it turns out."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from shop import Shop

LogIn = Callable[[str], Awaitable[AsyncConnection[Any]]]

CUSTOMERS = ("anon", "authenticated")
ROLES = (
    *CUSTOMERS,
    "service_role",
    "darkpearl_app",
    "darkpearl_listener",
    "darkpearl_reader",
    "darkpearl_api",
)
ORDERS = {"orders", "order_items", "payments", "sagas", "saga_events", "saga_steps"}
TABLES = {"products", "warehouses", "inventory", "stock_movements", *ORDERS}
VIEWS = {"order_overview", "saga_overview", "stuck_sagas", "engine_health", "sagas_from_events"}

READS = {
    "anon": {"products", "warehouses", "inventory"},
    "authenticated": {"products", "warehouses", "inventory", *ORDERS},
    "service_role": {*TABLES, *VIEWS, "audit"},
    "darkpearl_app": {*TABLES, *VIEWS},
    "darkpearl_listener": set[str](),
    "darkpearl_reader": {*TABLES, *VIEWS, "audit"},
    "darkpearl_api": set[str](),
}
STAFF_EDITS = {
    (table, action)
    for table in ("products", "warehouses")
    for action in ("INSERT", "UPDATE", "DELETE")
}
PLACES_ORDERS = {("orders", "INSERT"), ("order_items", "INSERT")}
WRITES = {
    "anon": set[tuple[str, str]](),
    "authenticated": PLACES_ORDERS,
    "service_role": {
        *STAFF_EDITS,
        *PLACES_ORDERS,
        ("inventory", "INSERT"),
        ("inventory", "UPDATE"),
        ("inventory", "DELETE"),
        ("orders", "UPDATE"),
        ("saga_steps", "UPDATE"),
    },
    "darkpearl_app": {*PLACES_ORDERS, ("orders", "UPDATE")},
    "darkpearl_listener": set[tuple[str, str]](),
    "darkpearl_reader": set[tuple[str, str]](),
    "darkpearl_api": set[tuple[str, str]](),
}
EVERYBODYS = {"clock", "new_id", "current_actor", "current_customer"}
REQUESTS = {"begin_request", "end_request"}
CALLS = {
    "anon": set[str](),
    "authenticated": {"place_order", *REQUESTS},
    "service_role": {
        "receive_stock",
        "adjust_stock",
        "count_stock",
        "transfer_stock",
        "stock_at",
        "place_order",
        "cancel_order",
        "retry_saga",
        "skip_step",
        "expect_version",
        *REQUESTS,
    },
    "darkpearl_app": {"stock_at", "place_order", "cancel_order", *REQUESTS},
    "darkpearl_listener": {
        "advance",
        "settle",
        "close_gate",
        "open_gate",
        "gate_key",
        "ensure_event_partitions",
        "forget_idempotency_keys",
    },
    "darkpearl_reader": {"stock_at"},
    "darkpearl_api": set[str](),
}
RELATIONS = (
    "select c.oid, c.relname from pg_class as c"
    " where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p', 'v')"
)


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_read(shop: Shop, role: str) -> None:
    """A role may select from the tables and views on its list, whole or in part, and no others."""
    readable = await shop.values(
        f"select c.relname from ({RELATIONS}) as c"
        " where has_any_column_privilege(%s, c.oid, 'SELECT')",
        role,
    )
    assert set(readable) == READS[role]


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_write(shop: Shop, role: str) -> None:
    """A role may insert into, update, delete from what is on its list; nobody truncates."""
    writable = await shop.rows(
        f"select c.relname, p.action from ({RELATIONS}) as c,"
        " unnest(array['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) as p (action)"
        " where case when p.action in ('INSERT', 'UPDATE')"
        " then has_any_column_privilege(%s, c.oid, p.action)"
        " else has_table_privilege(%s, c.oid, p.action) end",
        role,
        role,
    )
    assert {(row["relname"], row["action"]) for row in writable} == WRITES[role]


async def test_which_columns_may_be_written(shop: Shop) -> None:
    """No role may write a quantity, or the status, total or number of an order."""
    rows = await shop.rows(
        "select r.role, c.relname, a.attname, p.action from pg_attribute as a"
        f" inner join ({RELATIONS}) as c on c.oid = a.attrelid,"
        " unnest(array['INSERT', 'UPDATE']) as p (action), unnest(%s::text[]) as r (role)"
        " where a.attnum > 0 and not a.attisdropped"
        " and c.relname in ('inventory', 'orders', 'order_items', 'saga_steps')"
        " and has_column_privilege(r.role, c.oid, a.attnum, p.action)",
        list(ROLES),
    )
    columns: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        columns.setdefault((row["relname"], row["action"]), set()).add(row["attname"])
    assert columns == {
        ("inventory", "INSERT"): {
            "product_id",
            "warehouse_id",
            "reorder_point",
            "reorder_quantity",
        },
        ("inventory", "UPDATE"): {"reorder_point", "reorder_quantity"},
        ("orders", "INSERT"): {"id", "warehouse_id", "customer_id", "currency", "notes"},
        ("orders", "UPDATE"): {"notes"},
        ("order_items", "INSERT"): {
            "order_id",
            "warehouse_id",
            "product_id",
            "quantity",
            "unit_price",
        },
        ("saga_steps", "UPDATE"): {"max_attempts", "backoff_seconds", "timeout_seconds"},
    }


@pytest.mark.parametrize("role", ROLES)
async def test_what_a_role_may_call(shop: Shop, role: str) -> None:
    """A role may call the functions on its list and the four that are everybody's."""
    callable_ = await shop.values(
        "select proname from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " and has_function_privilege(%s, oid, 'EXECUTE')",
        role,
    )
    assert set(callable_) == CALLS[role] | EVERYBODYS


async def test_the_public_may_call_four_functions(shop: Shop) -> None:
    """No function is left open by the default grant."""
    open_to_all = await shop.values(
        "select proname from pg_proc where pronamespace = 'darkpearl'::regnamespace"
        " and has_function_privilege('public', oid, 'EXECUTE')"
    )
    assert set(open_to_all) == EVERYBODYS


async def test_row_security_is_on_and_forced(shop: Shop) -> None:
    """Every table has row-level security, its owner is under it too, and so are new partitions."""
    tables = (
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and relkind in ('r', 'p') and not (relrowsecurity and relforcerowsecurity)"
    )
    assert await shop.values(tables) == []
    await shop.turn_clock(400 * 86400)
    assert await shop.values("select ensure_event_partitions()") != []
    assert await shop.values(tables) == []


async def test_definers_functions_pin_their_search_path(shop: Shop) -> None:
    """A function that runs as its owner is darkpearl_owner's, and finds what it was written for."""
    definers = await shop.rows(
        "select proname, proconfig, pg_get_userbyid(proowner) as owner from pg_proc"
        " where pronamespace = 'darkpearl'::regnamespace and prosecdef"
    )
    assert len(definers) > 10
    for each in definers:
        assert "search_path=darkpearl, pg_temp" in (each["proconfig"] or []), each["proname"]
        assert each["owner"] == "darkpearl_owner", each["proname"]


async def test_views_show_what_the_caller_may_see(shop: Shop) -> None:
    """No view lends its owner's eyes."""
    lending = await shop.values(
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and relkind = 'v' and not coalesce('security_invoker=true' = any(reloptions), false)"
    )
    assert lending == []


async def test_the_owner_is_no_login_and_no_superuser(shop: Shop) -> None:
    """Everything belongs to a role that can't log in, and no role of ours is more than a role."""
    owner = await shop.row("select * from pg_roles where rolname = 'darkpearl_owner'")
    assert not owner["rolcanlogin"]
    mighty = await shop.values(
        "select rolname from pg_roles where rolname = any(%s)"
        " and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication)",
        [*ROLES, "darkpearl_owner"],
    )
    assert mighty == []
    others = await shop.values(
        "select relname from pg_class where relnamespace = 'darkpearl'::regnamespace"
        " and pg_get_userbyid(relowner) <> 'darkpearl_owner'"
    )
    assert others == []


async def test_nobody_creates_in_the_schema(shop: Shop) -> None:
    """None of the roles may put an object where our functions look for theirs."""
    for role in ROLES:
        allowed = "select has_schema_privilege(%s, 'darkpearl', 'CREATE')"
        assert not await shop.value(allowed, role), role


async def test_the_apis_login_can_do_nothing_by_itself(shop: Shop) -> None:
    """Its rights are those of the role it takes on, and it may take on the three callers' roles."""
    roles = await shop.rows(
        "select r.rolname, a.rolinherit from pg_auth_members as m"
        " inner join pg_roles as r on r.oid = m.roleid"
        " inner join pg_roles as a on a.oid = m.member where a.rolname = 'darkpearl_api'"
    )
    assert {row["rolname"] for row in roles} == {"anon", "authenticated", "service_role"}
    assert not any(row["rolinherit"] for row in roles)
    async with shop.acting_as("darkpearl_api"):
        with shop.refused("42501"):
            await shop.run("select * from products")


async def test_the_listener_runs_the_engine_and_sees_nothing(shop: Shop) -> None:
    """advance works for the listener though it can read none of the tables that it moves."""
    await shop.order((await shop.product(on_hand=1), 1))
    assert len(await shop.advance()) == 1
    async with shop.acting_as("darkpearl_listener"):
        for table in sorted(TABLES):
            with shop.refused("42501"):
                await shop.run(f"select from {table}")


@pytest.mark.parametrize(
    "statement",
    [
        "update inventory set quantity_available = 1000",
        (
            "insert into inventory (product_id, warehouse_id, quantity_available)"
            " values (:product, :warehouse, 1)"
        ),
        (
            "insert into stock_movements (correlation_id, warehouse_id, product_id, movement_type,"
            " quantity, available_after, reserved_after)"
            " values (new_id(), :warehouse, :product, 'receive', 1, 1, 0)"
        ),
        (
            "insert into saga_events (saga_id, warehouse_id, event_type)"
            " values (new_id(), :warehouse, 'retried')"
        ),
        (
            "insert into sagas (id, warehouse_id, saga_type)"
            " values (new_id(), :warehouse, 'order_fulfilment')"
        ),
        "update sagas set status = 'completed'",
        "update orders set status = 'fulfilled'",
    ],
    ids=lambda statement: " ".join(statement.split()[:3]),
)
async def test_only_functions_write_what_is_the_engines(shop: Shop, statement: str) -> None:
    """Quantities, ledger, sagas and events are out of every role's direct reach."""
    product = await shop.product()
    statement = statement.replace(":product", f"'{product}'")
    statement = statement.replace(":warehouse", f"'{shop.lisbon}'")
    for role in ROLES:
        with shop.refused("42501"):
            async with shop.acting_as(role):
                await shop.run(statement)


async def test_visitors_see_what_can_be_sold_and_no_more(shop: Shop) -> None:
    """anon sees what is sold and how many can be had, and not how many are promised."""
    product = await shop.product(on_hand=5)
    retired = await shop.product(is_active=False)
    await shop.order((product, 2))
    await shop.advance()
    await shop.run("update warehouses set is_active = false where id = %s", shop.rotterdam)
    async with shop.acting_as("anon"):
        assert await shop.values("select id from products") == [product] != [retired]
        assert await shop.values("select id from warehouses") == [shop.lisbon]
        assert await shop.values("select quantity_sellable from inventory") == [3]
        for column in ("quantity_reserved", "quantity_available", "*"):
            with shop.refused("42501"):
                await shop.run(f"select {column} from inventory")


@pytest.fixture
async def as_customer(log_in: LogIn) -> Callable[..., Awaitable[list[Any]]]:
    """Runs a statement as the API does for a customer: role and claims in a transaction."""
    connection = await log_in("darkpearl_api")

    async def run(customer: UUID | None, query: str, *parameters: Any) -> list[Any]:
        async with connection.transaction():
            await connection.execute("set local role authenticated")
            if customer:
                await connection.execute(
                    "select set_config('request.jwt.claims', %s, true)",
                    [json.dumps({"sub": str(customer)})],
                )
            cursor = await connection.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description else []

    return run


def items(product: UUID, **more: Any) -> str:
    """One line, as place_order() takes it."""
    return json.dumps([{"product_id": str(product), "quantity": 1, **more}])


async def test_customers_see_their_own(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """A customer sees its order with lines, payment, saga and events; of others' not a row."""
    alice, bob = uuid4(), uuid4()
    product = await shop.product(on_hand=5)
    place = "select id from place_order(%s, %s, %s)"
    (hers,) = await as_customer(alice, place, shop.lisbon, items(product), alice)
    (his,) = await as_customer(bob, place, shop.lisbon, items(product), bob)
    await shop.order((product, 1))
    await shop.advance()
    for table, column in [
        ("orders", "id"),
        ("order_items", "order_id"),
        ("payments", "order_id"),
        ("sagas", "id"),
        ("saga_events", "saga_id"),
    ]:
        seen = f"select distinct {column} as id from {table}"
        assert await as_customer(alice, seen) == [hers], table
        assert await as_customer(bob, seen) == [his], table
        assert await as_customer(None, seen) == [], table


async def test_customers_act_for_themselves_alone(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """Nobody orders in another's name or in none, adds to another's order, or sets a price."""
    alice, bob = uuid4(), uuid4()
    product = await shop.product()
    place = "select id from place_order(%s, %s, %s)"
    for customer in (bob, None):
        with shop.refused("42501"):
            await as_customer(alice, place, shop.lisbon, items(product), customer)
    with shop.refused("42501"):
        await as_customer(None, place, shop.lisbon, items(product), alice)
    with shop.refused("DP002"):
        await as_customer(alice, place, shop.lisbon, items(product, unit_price=1), alice)
    order = await shop.order((product, 1), p_customer_id=bob)
    with shop.refused("42501"):
        await as_customer(
            alice,
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " values (%s, %s, %s, 1)",
            order,
            shop.lisbon,
            product,
        )


async def test_customers_dont_order_what_isnt_sold(
    shop: Shop, as_customer: Callable[..., Awaitable[list[Any]]]
) -> None:
    """What a customer doesn't see, because it isn't sold or is closed, is refused as such."""
    alice = uuid4()
    retired = await shop.product(is_active=False)
    place = "select id from place_order(%s, %s, %s)"
    with shop.refused("DP003"):
        await as_customer(alice, place, shop.lisbon, items(retired), alice)
    product = await shop.product()
    await shop.run("update warehouses set is_active = false where id = %s", shop.rotterdam)
    with shop.refused("DP003"):
        await as_customer(alice, place, shop.rotterdam, items(product), alice)


async def test_reports_change_nothing(shop: Shop) -> None:
    """The reader reads every table and view whole, and can't write one of them."""
    await shop.fulfilled((await shop.product(on_hand=1), 1))
    async with shop.acting_as("darkpearl_reader"):
        for relation in sorted(READS["darkpearl_reader"]):
            rows = await shop.rows(f"select * from {relation}")
            assert bool(rows) == (relation not in {"audit", "stuck_sagas"}), relation
        for table in sorted(TABLES):
            with shop.refused("42501"):
                await shop.run(f"delete from {table}")


async def test_staff_run_the_warehouse(shop: Shop) -> None:
    """service_role edits the catalogue, moves stock by the functions and sets reorder points."""
    async with shop.acting_as("service_role"):
        product = await shop.product(on_hand=4)
        await shop.run("update products set unit_price = 11 where id = %s", product)
        await shop.run("update inventory set reorder_point = 3 where product_id = %s", product)
        await shop.run("select count_stock(%s, %s, 3)", shop.lisbon, product)
        assert await shop.stock(product) == (3, 0)
        spare = await shop.product()
        await shop.run("delete from products where id = %s", spare)
        with shop.refused("DP016"):
            await shop.run("delete from products where id = %s", product)
