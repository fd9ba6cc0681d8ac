"""Sessions that want more than they were given: each attempt is refused, or changes nothing.

The attackers are plain SQL connections. `customer` and `visitor` are logins of their own that are
members of authenticated and anon: more than a caller of the API ever gets, who sends no SQL.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row
from shop import Row, Shop

MEMBERS = {"customer": "authenticated", "visitor": "anon"}
ATTACKERS = [*MEMBERS, "darkpearl_app", "darkpearl_reader", "darkpearl_listener"]
WRITERS = ["customer", "darkpearl_app"]
PRIVILEGE = "42501"


@dataclass
class Victim:
    """Bob, and what he has ordered."""

    customer: str
    order: UUID
    product: UUID


@pytest.fixture
async def victim(shop: Shop) -> Victim:
    """Bob's order is paid for; five units are left."""
    product, bob = await shop.product("10", on_hand=7), "bob"
    order = await shop.order((product, 2), p_customer_id=bob, p_notes="for Bob's eyes only")
    await shop.advance()
    return Victim(bob, order, product)


class Attacker:
    """A session, and the means to try things in it."""

    def __init__(self, shop: Shop, connection: AsyncConnection[Row]) -> None:
        self.shop = shop
        self.connection = connection
        self.notices: list[str] = []
        connection.add_notice_handler(
            lambda notice: self.notices.append(notice.message_primary or "")
        )

    async def does(self, statement: str, *parameters: Any) -> list[Row]:
        """Run something that is allowed."""
        cursor = await self.connection.execute(statement.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []

    async def survivors(self, *statements: str) -> list[str]:
        """Of statements that are to be refused for want of a privilege, those that are not."""
        survived = []
        for statement in statements:
            try:
                await self.does(statement)
            except psycopg.Error as error:
                if error.sqlstate != PRIVILEGE:
                    survived.append(f"{statement}: {error.sqlstate} {error}")
            else:
                survived.append(statement)
        return survived

    async def fails(self, statement: str, *parameters: Any, sqlstate: str = PRIVILEGE) -> None:
        """Run something that is refused; it leaves the session as it was."""
        with self.shop.refused(sqlstate):
            await self.does(statement, *parameters)


@pytest.fixture
async def attack(
    connect: Callable[..., Awaitable[Any]], shop: Shop
) -> AsyncIterator[Callable[[str], Awaitable[Attacker]]]:
    """Opens a session of an attacker, under a login of its own."""
    sessions: list[AsyncConnection[Row]] = []
    made: list[str] = []

    async def log_in(name: str) -> Attacker:
        login = name
        if member_of := MEMBERS.get(name):
            login = f"darkpearl_test_{name}"
            await shop.run(f"drop role if exists {login}")
            await shop.run(f"create role {login} login in role {member_of}")
            made.append(login)
        await shop.run(f"alter role {login} password 'secret'")
        options = "-c search_path=darkpearl -c statement_timeout=20s"
        sessions.append(
            await connect(user=login, password="secret", options=options, row_factory=dict_row)
        )
        return Attacker(shop, sessions[-1])

    yield log_in
    for session in sessions:
        await session.close()
    for login in made:
        await shop.run(f"drop owned by {login}")
        await shop.run(f"drop role {login}")


Attack = Callable[[str], Awaitable[Attacker]]


# Others' orders.


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.usefixtures("victim")
async def test_others_orders_are_not_there(attack: Attack, name: str) -> None:
    """Not an order, line, payment, saga or event of Bob's; through no view and no COPY either."""
    attacker = await attack(name)
    for table in ("orders", "order_items", "sagas", "saga_events", "saga_overview"):
        if name == "customer":
            assert await attacker.does(f"select count(*) from {table}") == [{"count": 0}]
        else:
            await attacker.fails(f"select count(*) from {table}")
    copied = []
    if name == "customer":
        async with attacker.connection.cursor().copy("copy orders to stdout") as copy:
            copied = [row async for row in copy.rows()]
    assert copied == []


@pytest.mark.usefixtures("victim")
async def test_no_function_of_the_attackers_sees_others_rows(attack: Attack) -> None:
    """A filter that tells what it is given is asked after row-level security, however cheap."""
    attacker = await attack("customer")
    await attacker.does(
        "create function pg_temp.leak(text) returns boolean language plpgsql cost 0.0000001 as"
        " $$ begin raise notice 'leaked %', $1; return true; end $$"
    )
    assert await attacker.does("select id from orders where pg_temp.leak(notes)") == []
    assert attacker.notices == []


@pytest.mark.usefixtures("victim")
async def test_statistics_tell_nothing(attack: Attack, shop: Shop) -> None:
    """What ANALYZE has sampled of Bob's row is hidden like the row."""
    await shop.run("analyze orders")
    known = "select most_common_vals, histogram_bounds from pg_stats where tablename = 'orders'"
    assert await shop.rows(known)
    attacker = await attack("customer")
    assert await attacker.does(known) == []
    await attacker.fails("select * from pg_statistic")


@pytest.mark.usefixtures("victim")
async def test_row_security_cannot_be_switched_off(attack: Attack) -> None:
    """The setting only turns a filtered answer into an error."""
    attacker = await attack("customer")
    await attacker.does("set row_security = off")
    await attacker.fails("select * from orders")


async def test_orders_in_anothers_name(attack: Attack, victim: Victim, shop: Shop) -> None:
    """A customer whose session has no claims is no customer, and is nobody else either."""
    attacker = await attack("customer")
    for customer in (victim.customer, None):
        await attacker.fails(
            "insert into orders (warehouse_id, customer_id) values (%s, %s)", shop.lisbon, customer
        )
        await attacker.fails(
            "select place_order(%s, %s, %s)",
            shop.lisbon,
            json.dumps([{"product_id": str(victim.product), "quantity": 1}]),
            customer,
        )


async def test_lines_for_anothers_order(attack: Attack, victim: Victim, shop: Shop) -> None:
    """Bob pays for what he ordered: neither a customer nor an application adds to it."""
    line = "insert into order_items (order_id, warehouse_id, product_id, quantity)"
    values = (victim.order, shop.lisbon, victim.product)
    await (await attack("customer")).fails(f"{line} values (%s, %s, %s, 1)", *values)
    await (await attack("darkpearl_app")).fails(
        f"{line} values (%s, %s, %s, 1)", *values, sqlstate="DP012"
    )


async def test_anothers_order_is_not_cancelled(attack: Attack, victim: Victim, shop: Shop) -> None:
    """For who isn't Bob there is no such order; asking doesn't even lock it."""
    attacker = await attack("customer")
    await attacker.does("begin")
    await attacker.does("savepoint here")
    await attacker.fails("select cancel_order(%s)", victim.order, sqlstate="DP010")
    await attacker.does("rollback to here")
    assert await shop.rows("select id from sagas where id = %s for update nowait", victim.order)
    assert not (await shop.saga(victim.order))["cancel_requested"]
    await (await attack("visitor")).fails("select cancel_order(%s)", victim.order)


async def test_nothing_is_told_of_anothers_order(
    attack: Attack, victim: Victim, shop: Shop
) -> None:
    """The functions that see more than their caller tell a customer of their own orders alone."""
    await shop.run("update payments set decline_code = 'fraudulent'")
    event = "select id, created_at from saga_events where saga_id = %s limit 1"
    (row,) = await shop.rows(event, victim.order)
    attacker = await attack("customer")
    for call, *arguments in (
        ("told_message(%s, %s, %s)", victim.order, row["id"], row["created_at"]),
        ("told_decline_code(%s)", victim.order),
    ):
        (told,) = await attacker.does(f"select {call} as told", *arguments)
        assert told["told"] is None
    await attacker.fails("select message from saga_events")
    await attacker.fails("select decline_code from payments")


@pytest.mark.parametrize(
    ("setting", "kept", "wrong"),
    [
        ("request.id", "cart-4:2_a.b", ["x" * 65, "a b", "a\n", "é", "<script>"]),
        (
            "request.traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            [
                "x" * 1_000_000,
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
                f"00-{'0' * 32}-00f067aa0ba902b7-01",
                f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
            ],
        ),
    ],
)
async def test_what_a_session_says_of_its_request_is_checked(
    attack: Attack, victim: Victim, shop: Shop, setting: str, kept: str, wrong: list[str]
) -> None:
    """What is no request id or no trace context doesn't get into the history."""
    attacker = await attack("darkpearl_app")
    written = (
        "select s.traceparent, e.request_id from sagas as s"
        " inner join saga_events as e on e.saga_id = s.id where s.id = %s"
    )
    items = json.dumps([{"product_id": str(victim.product), "quantity": 1}])
    for said in (kept, *wrong):
        await attacker.does("select set_config(%s, %s, false)", setting, said)
        place = "select id from place_order(%s, %s)"
        (order,) = await attacker.does(place, shop.lisbon, items)
        (row,) = await shop.rows(written, order["id"])
        assert [each for each in row.values() if each] == ([kept] if said == kept else [])


# Numbers that are not theirs to write.


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.usefixtures("victim")
async def test_direct_writes_are_refused(attack: Attack, name: str) -> None:
    """Quantities, statuses, totals, prices, the plan and history change by the functions alone."""
    attacker = await attack(name)
    assert not await attacker.survivors(
        "update inventory set quantity_available = 1000",
        "update inventory set quantity_reserved = 0",
        "update orders set status = 'fulfilled'",
        "update orders set total_amount = 0",
        "update orders set customer_id = null",
        "update order_items set unit_price = 0",
        "update payments set captured_amount = 0",
        "update sagas set status = 'completed', ready_at = null",
        "update saga_steps set step_function = 'pg_sleep'",
        "update products set unit_price = 0",
        "delete from saga_events",
        "delete from stock_movements",
        "delete from idempotency_keys",
        "truncate orders cascade",
        "insert into orders (warehouse_id, status) select id, 'fulfilled' from warehouses",
        "insert into orders (warehouse_id, total_amount) select id, 0 from warehouses",
        "insert into orders (warehouse_id, placed_in) select id, '1' from warehouses",
        """
        insert into orders (warehouse_id, order_number) overriding system value
        select id, 1 from warehouses
        """,
        """
        insert into orders (id, warehouse_id) select id, warehouse_id from orders
        on conflict (id, warehouse_id) do update set status = 'cancelled'
        """,
        """
        merge into orders as o using orders as p on o.id = p.id
        when matched then update set status = 'cancelled'
        """,
    )


async def test_an_application_sets_no_price(attack: Attack, victim: Victim, shop: Shop) -> None:
    """Neither less nor more than the catalogue's, in a line or in a call."""
    attacker = await attack("darkpearl_app")
    for price in ("0", "9.99", "10.01"):
        line = {"product_id": str(victim.product), "quantity": 1, "unit_price": price}
        await attacker.fails(
            "select place_order(%s, %s)", shop.lisbon, json.dumps([line]), sqlstate="DP002"
        )


# Being somebody else.


@pytest.mark.parametrize("name", ATTACKERS)
async def test_forged_claims_are_not_believed(attack: Attack, victim: Victim, name: str) -> None:
    """Whoever sets Bob's claims, as a session or a transaction, is not Bob and doesn't sign so."""
    attacker = await attack(name)
    claims = json.dumps({"sub": victim.customer, "role": "authenticated"})
    for local in (False, True):
        await attacker.does("begin")
        await attacker.does("select set_config('request.jwt.claims', %s, %s)", claims, local)
        (row,) = await attacker.does("select current_customer() as bob, current_actor() as actor")
        assert row["bob"] is None
        assert victim.customer not in row["actor"]
        if name == "customer":
            assert await attacker.does("select id from orders") == []
        await attacker.does("rollback")


@pytest.mark.parametrize("name", ATTACKERS)
async def test_roles_cannot_be_climbed(attack: Attack, name: str) -> None:
    """No login takes on a role that it isn't a member of, by any of the ways to say so."""
    attacker = await attack(name)
    mine = {name, MEMBERS.get(name)}
    for role in (
        "service_role", "authenticated", "darkpearl_owner", "darkpearl_api", "darkpearl_app",
        "darkpearl_listener", "darkpearl_reader", "pg_read_all_data", "darkpearl",
    ):  # fmt: skip
        if role in mine:
            continue
        name_of = sql.Identifier(role).as_string()
        exists = await attacker.shop.value("select count(*) from pg_roles where rolname = %s", role)
        refusal = PRIVILEGE if exists else "22023"
        await attacker.fails(f"set role {name_of}", sqlstate=refusal)
        await attacker.fails("select set_config('role', %s, false)", role, sqlstate=refusal)
        await attacker.fails(f"set session authorization {name_of}", sqlstate=refusal)
        if exists:
            await attacker.fails(f"grant {name_of} to current_user")
    for statement in (
        "alter role current_user superuser",
        "alter role current_user bypassrls",
        "create role darkpearl_test_more superuser",
        "alter role darkpearl_api password 'x'",
    ):
        await attacker.fails(statement)


@pytest.mark.parametrize("name", ATTACKERS)
async def test_functions_that_are_not_granted_refuse(attack: Attack, name: str) -> None:
    """Every function of ours that the catalogue doesn't open to the login is tried."""
    attacker = await attack(name)
    functions = await attacker.shop.rows(
        "select p.oid::regproc::text as name, array(select"
        " concat(case when p.provariadic <> 0 and n = pronargs then 'variadic ' end, 'null::',"
        " t::regtype) from unnest(proargtypes) with ordinality as a (t, n)) as arguments"
        " from pg_proc as p"
        " where pronamespace = 'darkpearl'::regnamespace"
        " and not has_function_privilege(%s, p.oid, 'execute')",
        MEMBERS.get(name, name),
    )
    assert len(functions) > 30
    for each in functions:
        await attacker.fails(f"select {each['name']}({', '.join(each['arguments'])})")


# Names that mean something else.


@pytest.mark.parametrize("name", ATTACKERS)
async def test_nothing_is_put_where_ours_is_looked_up(attack: Attack, name: str) -> None:
    """No object in our schema, in public or in a schema of one's own; nothing of ours changed."""
    attacker = await attack(name)
    clock = "returns timestamptz language sql return now()"
    assert not await attacker.survivors(
        "create table darkpearl.trap ()",
        "create view darkpearl.trap as select 1",
        "create type darkpearl.trap as (a int)",
        f"create function darkpearl.clock(integer) {clock}",
        f"create or replace function darkpearl.clock() {clock}",
        "create schema trap",
        "create table public.trap ()",
        f"create function public.clock() {clock}",
        "alter function darkpearl.clock() owner to current_user",
        "alter function darkpearl.place_order set search_path = pg_temp",
        "alter schema darkpearl rename to mine",
        "drop function darkpearl.ring_bell()",
        "create rule trap as on insert to darkpearl.orders do instead nothing",
        "create policy everything on darkpearl.orders using (true)",
        "alter role darkpearl_api set search_path = pg_temp",
        "alter database postgres set search_path = pg_temp",
    )


@pytest.mark.parametrize("path", ["pg_temp, darkpearl", "pg_temp", "darkpearl", "''"])
async def test_temporary_objects_shadow_nothing(
    attack: Attack, victim: Victim, shop: Shop, path: str
) -> None:
    """Tables, types, functions and operators in pg_temp are the session's own joke."""
    attacker = await attack("darkpearl_app")
    for statement in (
        """
        create temp table products as
        select id, 0.01 as unit_price, true as is_active, 'USD' as currency from darkpearl.products
        """,
        "create temp table warehouses (id uuid, is_active boolean)",
        "create temp table orders (like darkpearl.orders)",
        "create temp table order_items (like darkpearl.order_items)",
        "create temp table sagas (like darkpearl.sagas)",
        "create type pg_temp.amount as (a int)",
        "create domain pg_temp.order_status as text",
        "create function pg_temp.clock() returns timestamptz language sql return to_timestamp(0)",
        "create function pg_temp.current_actor() returns text language sql return 'eve'",
        "create function pg_temp.ring_bell() returns void language sql return null::void",
        """
        create function pg_temp.differs(numeric, numeric) returns boolean language sql return false
        """,
        """
        create operator pg_temp.<>
        (leftarg = numeric, rightarg = numeric, function = pg_temp.differs)
        """,
        f"set search_path = {path}",
    ):
        await attacker.does(statement)
    line = {"product_id": str(victim.product), "quantity": 2}
    place = "select id, total_amount from darkpearl.place_order(%s, %s)"
    (placed,) = await attacker.does(place, shop.lisbon, json.dumps([line]))
    assert placed["total_amount"] == 20
    event = await shop.event(placed["id"], "saga_started")
    assert (event["actor"], event["created_at"].year > 2000) == ("darkpearl_app", True)
    cheap = json.dumps([{**line, "unit_price": "0.01"}])
    await attacker.fails(place, shop.lisbon, cheap, sqlstate="DP002")
    await attacker.does("begin")
    inserted = await attacker.does(
        "insert into darkpearl.orders (warehouse_id) values (%s) returning id", shop.lisbon
    )
    await attacker.does(
        "insert into darkpearl.order_items (order_id, warehouse_id, product_id, quantity)"
        " values (%s, %s, %s, 1)",
        inserted[0]["id"],
        shop.lisbon,
        victim.product,
    )
    await attacker.does("commit")
    assert (
        await shop.value("select total_amount from orders where id = %s", inserted[0]["id"]) == 10
    )
    await attacker.does("select darkpearl.cancel_order(%s)", placed["id"])
    assert (await shop.saga(placed["id"]))["cancel_requested"]


# The server.


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.usefixtures("victim")
async def test_the_server_stays_out_of_reach(attack: Attack, name: str) -> None:
    """No file, no program, no other session, no setting of the server's."""
    attacker = await attack(name)
    await attacker.does("create temp table t (a text)")
    assert not await attacker.survivors(
        "copy t to program 'cat'",
        "copy t from program 'id'",
        "copy t from '/etc/passwd'",
        "copy t to '/tmp/darkpearl_trap'",
        "copy (select 1) to program 'id'",
        "select pg_read_file('postgresql.conf')",
        "select pg_ls_dir('.')",
        "select lo_import('/etc/passwd')",
        "select lo_export(lo_from_bytea(0, 'trap'), '/tmp/darkpearl_trap')",
        "select pg_reload_conf()",
        "select pg_terminate_backend(pid) from pg_stat_activity where usesysid = 10",
        "alter system set fsync = off",
        "set log_statement = 'none'",
        "create subscription trap connection '' publication trap with (connect = false)",
    )


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.usefixtures("victim")
async def test_guards_cannot_be_switched_off(attack: Attack, name: str) -> None:
    """No trigger, policy or foreign key is disabled, replaced or dropped."""
    attacker = await attack(name)
    assert not await attacker.survivors(
        "set session_replication_role = replica",
        "alter table darkpearl.orders disable trigger all",
        "alter table darkpearl.orders disable row level security",
        "alter table darkpearl.orders no force row level security",
        "alter table darkpearl.order_items drop constraint order_items_product_id_fkey",
        """
        create trigger trap before insert on darkpearl.orders
        for each row execute function suppress_redundant_updates_trigger()
        """,
        "drop trigger orders_have_items on darkpearl.orders",
        "drop table darkpearl.orders cascade",
        "drop schema darkpearl cascade",
    )


@pytest.mark.parametrize("name", ATTACKERS)
@pytest.mark.usefixtures("victim")
async def test_nobody_locks_what_the_engine_writes(attack: Attack, name: str) -> None:
    """No lock on stock, sagas or payments that a listener would have to wait for."""
    attacker = await attack(name)
    tables = ("inventory", "sagas", "payments", "stock_movements", "saga_events")
    assert not await attacker.survivors(
        *(f"select * from darkpearl.{table} for key share" for table in tables),
        *(f"do $$ begin lock table darkpearl.{table} in share mode; end $$" for table in tables),
    )


# What anybody may do, and what comes of it.


async def test_deferring_constraints_defers_no_rule(
    attack: Attack, victim: Victim, shop: Shop
) -> None:
    """Only the rule that is made to be deferred is, and it still holds at commit."""
    attacker = await attack("darkpearl_app")
    place = "insert into orders (warehouse_id) values (%s) returning id"
    line = "insert into order_items (order_id, warehouse_id, product_id, quantity)"
    await attacker.does("begin")
    await attacker.does("set constraints all deferred")
    (order,) = await attacker.does(place, shop.lisbon)
    await attacker.fails(
        f"{line} values (%s, %s, %s, 1)", order["id"], shop.lisbon, uuid4(), sqlstate="DP003"
    )
    await attacker.does("rollback")
    await attacker.does("begin")
    await attacker.does("set constraints all deferred")
    await attacker.does(place, shop.lisbon)
    await attacker.fails("commit", sqlstate="DP001")
    await attacker.does("begin")
    await attacker.does("set constraints all immediate")
    await attacker.fails(place, shop.lisbon, sqlstate="DP001")
    await attacker.does("rollback")
    assert await shop.values("select id from orders") == [victim.order]


async def test_a_held_gate_makes_writers_ring(
    attack: Attack, victim: Victim, shop: Shop, connect: Callable[..., Awaitable[Any]]
) -> None:
    """Who holds the gate looks like a sleeping listener: writers ring, and listeners sleep."""
    attacker = await attack("visitor")
    await attacker.does("select pg_advisory_lock(4937471022)")
    listening = await connect()
    await listening.execute("listen darkpearl_bell")
    await shop.order((victim.product, 1))
    heard = [each async for each in listening.notifies(timeout=10, stop_after=1)]
    assert [(each.channel, each.payload) for each in heard] == [("darkpearl_bell", "")]
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.value("select take_idle_lock()") is True
    await shop.advance()
    assert shop.claimed == 1


async def test_a_shared_gate_keeps_listeners_awake(
    attack: Attack, victim: Victim, shop: Shop
) -> None:
    """Who takes it shared looks like a writer at work: listeners look again soon, and find all."""
    attacker = await attack("visitor")
    await attacker.does("select pg_advisory_lock_shared(4937471022)")
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.value("select take_idle_lock()") is False
    await shop.order((victim.product, 1))
    await shop.advance()
    assert shop.claimed == 1


async def test_false_alarms_do_nothing(attack: Attack, victim: Victim, shop: Shop) -> None:
    """A bell that anybody rings, with whatever payload, is a look at an empty queue."""
    attacker = await attack("visitor")
    events = await shop.value("select count(*) from saga_events")
    for number in range(100):
        await attacker.does("select pg_notify('darkpearl_bell', %s)", f"{victim.order} {number}")
        await shop.advance()
        assert shop.claimed == 0
    assert await shop.value("select count(*) from saga_events") == events


async def test_the_bell_tells_an_eavesdropper_nothing(
    attack: Attack, victim: Victim, shop: Shop
) -> None:
    """Who listens hears that there is work, not whose or what."""
    eavesdropper = await attack("visitor")
    await eavesdropper.does("listen darkpearl_bell")
    await eavesdropper.does("select pg_advisory_lock(4937471022)")
    await shop.order((victim.product, 1))
    heard = [each async for each in eavesdropper.connection.notifies(timeout=10, stop_after=1)]
    assert [each.payload for each in heard] == [""]


async def test_settings_of_the_planner_change_no_answer(
    attack: Attack, victim: Victim, shop: Shop
) -> None:
    """Plans are the session's to spoil, for itself; what is reserved and charged stays right."""
    attacker = await attack("darkpearl_app")
    for setting in ("seqscan", "indexscan", "bitmapscan", "nestloop", "hashjoin", "mergejoin"):
        await attacker.does(f"set enable_{setting} = off")
    for setting, value in (
        ("plan_cache_mode", "force_custom_plan"), ("work_mem", "64kB"),
        ("default_transaction_isolation", "serializable"), ("check_function_bodies", "off"),
        ("timezone", "Asia/Tokyo"), ("extra_float_digits", "-15"),
        ("xmlbinary", "hex"), ("bytea_output", "escape"), ("standard_conforming_strings", "on"),
    ):  # fmt: skip
        await attacker.does(f"set {setting} = '{value}'")
    line = json.dumps([{"product_id": str(victim.product), "quantity": 1}])
    (placed,) = await attacker.does("select * from place_order(%s, %s)", shop.lisbon, line)
    assert placed["total_amount"] == 10
    await shop.advance()
    assert await shop.stock(victim.product) == (7, 3)
