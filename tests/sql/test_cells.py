"""routines/16_cells.sql: what a cell does for its own alone, and what is written at home alone."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, Shop, of_cell

HERE = "(select this_cell())"


@pytest.fixture
async def other(shop: Shop) -> int:
    """Another cell, which has Rotterdam."""
    async with shop.unguarded():
        number = await shop.value(
            f"insert into cells (number, name, url) values ({HERE} + 1, 'north', 'host=north')"
            " returning number"
        )
        await shop.run("update warehouses set cell = %s where code = 'RTM'", number)
    shop.audited = True
    return number


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units in Lisbon; and another product, of which there are none."""
    await shop.product()
    return await shop.product(on_hand=10)


def refusals(product: UUID, shop: Shop) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """What can be asked for of a warehouse's orders and stock, each for Rotterdam."""
    there, items = shop.rotterdam, json.dumps([{"product_id": str(product), "quantity": 1}])
    return {
        "place_order": ("select place_order(%s, %s)", (there, items)),
        "quote_order": ("select quote_order(%s, %s)", (there, items)),
        "insert an order": ("insert into orders (warehouse_id) values (%s)", (there,)),
        "receive": ("select receive_stock(%s, %s, 1)", (there, product)),
        "adjust": ("select adjust_stock(%s, %s, 1)", (there, product)),
        "count": ("select count_stock(%s, %s, 1)", (there, product)),
        "let goods in": (
            "select decide_arrival(%s, %s, %s, %s, 1)",
            (uuid4(), shop.lisbon, there, product),
        ),
        "fetch from there": ("select transfer_stock(%s, %s, %s, 1)", (there, shop.lisbon, product)),
        "insert a movement": (
            (
                "insert into stock_movements (warehouse_id, product_id, movement_type, quantity)"
                " values (%s, %s, 'receive', 1)"
            ),
            (there, product),
        ),
        "make a shelf": (
            (
                "insert into inventory (product_id, warehouse_id)"
                " select id, %s from products where id <> %s limit 1"
            ),
            (there, product),
        ),
        "claim": ("select advance(10, array[%s])", (there,)),
        "start a saga": ("select start_saga('refund', %s, %s)", (uuid4(), there)),
    }


@pytest.mark.parametrize("what", refusals(uuid4(), Shop(None)))  # type: ignore[arg-type]
@pytest.mark.parametrize("was_here", [False, True], ids=["never here", "was here"])
async def test_another_cells_warehouse_is_left_alone(
    shop: Shop, product: UUID, what: str, *, was_here: bool
) -> None:
    """Orders, stock and claims of a warehouse are its cell's; the refusal names that cell."""
    if was_here:
        await shop.receive(product, 5, shop.rotterdam)
    async with shop.unguarded():
        await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
        await shop.run("update warehouses set cell = cell + 1 where code = 'RTM'")
    before = await shop.rows("select * from stock_movements order by id")
    query, values = refusals(product, shop)[what]
    with shop.refused("DP050") as refusal:
        await shop.run(query, *values)
    assert "(north)" in refusal.detail
    assert await shop.rows("select * from stock_movements order by id") == before
    assert await shop.value("select count(*) from orders") == 0


IMPORTS: dict[str, Any] = {
    "movements": {"movement_type": "receive", "quantity": 1},
    "inventory": {"quantity_available": 7},
    "orders": {"reference": "A", "quantity": 1},
}


@pytest.mark.parametrize("kind", IMPORTS)
async def test_an_import_is_of_one_cell(shop: Shop, product: UUID, kind: str, other: int) -> None:
    """A file with another cell's lines is refused as a whole, and each of them is named."""
    lines = [
        IMPORTS[kind] | {"line": at, "warehouse": code, "product_id": str(product)}
        for at, code in enumerate(("LIS", "RTM"), 1)
    ]
    problem = f"the warehouse belongs to another cell, {other}"
    with shop.refused("DP025") as refusal:
        await shop.run("select import_rows(%s, %s)", kind, json.dumps(lines))
    assert json.loads(refusal.detail) == [{"row": 2, "problem": problem}]
    assert await shop.stock(product) == (10, 0)
    assert await shop.value("select count(*) from orders") == 0
    if kind == "movements":
        lines[0] |= {"movement_type": "transfer_out", "to_warehouse": "RTM"}
        with shop.refused("DP025") as refusal:
            await shop.run("select import_rows(%s, %s)", kind, json.dumps(lines[:1]))
        problem = f"to_warehouse belongs to another cell, {other}"
        assert json.loads(refusal.detail) == [{"row": 1, "problem": problem}]


@pytest.mark.usefixtures("other")
async def test_a_shop_without_a_place_goes_by_its_own(shop: Shop, product: UUID) -> None:
    """An order that names no warehouse is served by this cell's, whatever others have left here."""
    async with shop.unguarded():
        await shop.run(
            "insert into inventory (product_id, warehouse_id, quantity_available)"
            " values (%s, %s, 1000)",
            *(product, shop.rotterdam),
        )
        await shop.run("update warehouses set priority = 1 where code = 'RTM'")
    order = await shop.order((product, 1), p_warehouse_id=None)
    assert await shop.value("select warehouse_id from orders where id = %s", order) == shop.lisbon


async def test_what_is_left_of_it_sleeps(shop: Shop, product: UUID, other: int) -> None:
    """A listener that names its own warehouses by leaving some out gets none of another cell's."""
    order = await shop.order((product, 1))
    assert await shop.rows("select * from advance_elsewhere(10, %s)", [shop.rotterdam])
    async with shop.unguarded():
        await shop.run("update warehouses set cell = %s", other)
        await shop.run("update sagas set ready_at = now() where id = %s", order)
    claimed = await shop.rows("select claimed from advance_elsewhere(10, %s)", [uuid4()])
    assert [each["claimed"] for each in claimed] == [0]


SHARED = {
    "products": ("insert into products (sku, name) values ('x', 'x')", "name = 'y'"),
    "warehouses": ("insert into warehouses (code, name) values ('x', 'x')", "name = 'y'"),
    "adjustment_reasons": (
        "insert into adjustment_reasons (code) values ('x')",
        "description = 'y'",
    ),
    "cells": ("insert into cells (number, name) values (200, 'x')", "name = 'y'"),
}


@pytest.mark.usefixtures("product")
@pytest.mark.parametrize("table", SHARED)
async def test_the_catalogue_is_written_at_home(shop: Shop, table: str) -> None:
    """In any other cell nobody writes it, not its superuser; what is copied from home comes in."""
    insert, change = SHARED[table]
    await shop.run(
        "create or replace function this_cell() returns smallint language sql immutable"
        " return 9::smallint"
    )
    await shop.run("alter table products enable trigger user")
    await shop.run("alter table warehouses enable trigger user")
    await shop.run("alter table adjustment_reasons enable trigger user")
    await shop.run("alter table cells enable trigger user")
    for query in (insert, f"update {table} set {change}", f"delete from {table}"):
        with shop.refused("DP051") as refusal:
            await shop.run(query)
        assert refusal.detail == f"This is cell 9; {table} come here from cell 1."
    with shop.refused("DP051"):
        await shop.run(f"truncate {table} cascade")
    async with shop.unguarded():
        await shop.run(insert)


@pytest.mark.usefixtures("other")
async def test_nothing_that_others_have_is_deleted(shop: Shop) -> None:
    """With several cells products, warehouses, reasons and cells stay, and so do their keys."""
    unused = await shop.product()
    gone = await shop.value(
        "insert into cells (number, name, removed_at) values (99, 'gone', now()) returning number"
    )
    for table in ("products", "warehouses", "adjustment_reasons"):
        await shop.run(f"alter table {table} enable trigger {table}_are_kept_for_other_cells")
    for query in (
        f"delete from products where id = '{unused}'",
        "delete from warehouses where code = 'RTM'",
        "delete from adjustment_reasons where code = 'theft'",
        f"update products set id = new_id() where id = '{unused}'",
        "update warehouses set id = new_id() where code = 'RTM'",
        "update adjustment_reasons set code = 'thieves' where code = 'theft'",
        f"delete from cells where number = {gone}",
        f"update cells set number = number + 1 where number = {gone}",
    ):
        with shop.refused("DP016"):
            await shop.run(query)
    await shop.run("update products set id = id, name = 'Renamed' where id = %s", unused)
    await shop.run("update products set is_active = false where id = %s", unused)


async def test_alone_it_may_be_deleted(shop: Shop) -> None:
    """A database that stands alone knows who names what, and lets go of the rest."""
    await shop.run("delete from products where id = %s", await shop.product())
    await shop.run("delete from warehouses where code = 'RTM'")
    await shop.run("delete from adjustment_reasons where code = 'theft'")


@pytest.mark.usefixtures("product")
async def test_a_warehouse_stays_in_its_cell(shop: Shop, other: int) -> None:
    """It goes to another while nothing of it is known; once there is stock or an order, never."""
    await shop.run("insert into warehouses (code, name) values ('NEW', 'New')")
    for code in ("LIS", "RTM"):  # has stock here; may have some there
        with shop.refused("DP016"):
            await shop.run(
                f"update warehouses set cell = {other} + {HERE} - cell where code = %s", code
            )
    await shop.run("update warehouses set cell = %s where code = 'NEW'", other)
    await shop.run("update cells set removed_at = now() where number = %s", other)
    with shop.refused("DP010"):
        await shop.run("insert into warehouses (code, name, cell) values ('B', 'B', %s)", other)


async def test_ids_say_where(shop: Shop, product: UUID) -> None:
    """The last byte of an id that is made is its cell, in the order of time; others say nothing."""
    here = await shop.value("select this_cell()")
    ids = await shop.values("select new_id() from generate_series(1, 500)")
    assert {each.bytes[15] for each in ids} == {here}
    assert {each.version for each in ids} == {7}
    assert len(set(ids)) == 500
    assert ids == sorted(ids) or await shop.value("show server_version_num") < "180000"
    order = await shop.order((product, 1))
    assert await shop.value("select cell_of_id(%s)", order) == here
    assert await shop.value("select cell_of_id(%s)", uuid4()) is None


async def test_an_empty_database_becomes_a_cell(shop: Shop) -> None:
    """Its ids and order numbers are its own then; said again it changes nothing."""
    if await shop.value("select this_cell()") != 1:
        pytest.skip("it is one already")
    with shop.refused("DP052"):  # there are warehouses
        await shop.run("select become_cell(7)")
    await shop.run("delete from warehouses")
    for odd in (None, 0, 1, 256):
        with shop.refused("DP015"):
            await shop.run("select become_cell(%s)", odd)
    for _ in range(2):
        async with shop.acting_as("darkpearl_owner"):
            await shop.run("select become_cell(7)")
        async with shop.unguarded():
            await shop.run(
                "insert into warehouses (id, code, name) values (gen_random_uuid(), 'A', 'A')"
                " on conflict do nothing"
            )
    shop.audited = False
    assert await shop.value("select cell_of_id(new_id())") == 7
    number = "select order_number from place_order((select id from warehouses), %s)"
    async with shop.unguarded():
        product = await shop.value(
            "insert into products (sku, name) values ('a', 'a') returning id"
        )
    items = json.dumps([{"product_id": str(product), "quantity": 1}])
    assert await shop.value(number, items) == 7_000_000_000_001
    with shop.refused("DP052"):
        await shop.run("select become_cell(8)")


async def test_keys_at_the_gateway_name_the_cell(shop: Shop, product: UUID) -> None:
    """An id that was chosen in two cells is two payments: told of one, the other hears nothing."""
    here = await shop.value("select this_cell()")
    suffix = "" if here == 1 else f"@{here}"
    order = await shop.order((product, 1), p_order_id=uuid4())
    (request,) = await shop.advance()
    key = request["request"]["idempotency_key"]
    assert key == f"{order}:process_payment{suffix}"
    assert await shop.told(f"{order}:process_payment@201", APPROVED) == "unmatched"
    assert (await shop.saga(order))["status"] == "waiting"
    assert await shop.told(key, APPROVED) == "applied"
    await shop.advance()
    refund = await shop.refund(order, 1)
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == f"{refund['id']}:refund_payment{suffix}"
    assert await shop.told(f"{refund['id']}:refund_payment@201", APPROVED) == "unmatched"


async def test_what_was_asked_elsewhere_keeps_its_key(shop: Shop, product: UUID) -> None:
    """A payment whose warehouse came from another cell goes on under the key it has."""
    await shop.capture_at_fulfilment()
    order = await shop.order((product, 1))
    await shop.advance()
    async with shop.unguarded():
        await shop.run("update payments set idempotency_key = %s", f"{order}:authorize_payment@201")
    shop.audited = True
    assert await shop.told(f"{order}:authorize_payment@201", APPROVED) == "applied"
    (request,) = await shop.advance()
    assert request["request"]["idempotency_key"] == f"{order}:capture_payment@201"
    assert request["request"]["payment_key"] == f"{order}:authorize_payment@201"
    assert await shop.told(f"{order}:capture_payment@202", APPROVED) == "unmatched"
    assert await shop.told(f"{order}:capture_payment@201", APPROVED) == "applied"
    await shop.advance()
    assert (await shop.saga(order))["status"] == "completed"


async def test_an_event_is_for_the_cell_that_made_the_call(shop: Shop, product: UUID) -> None:
    """The key of a call says whether it is of this cell, and so does that of a refund."""
    order = await shop.fulfilled((product, 1))
    refund = (await shop.refund(order, 5))["id"]
    await shop.advance()
    for key in (f"{order}:process_payment", f"{refund}:refund_payment"):
        assert await shop.value("select knows_call(%s)", of_cell(key)) is True
    for key in (
        f"{order}:process_payment@200",
        of_cell(f"{uuid4()}:process_payment"),
        "nonsense",
        None,
    ):
        assert await shop.value("select knows_call(%s)", key) is False


async def test_an_event_of_a_closed_warehouse_says_where(shop: Shop, product: UUID) -> None:
    """What its copy would call stale may be news where it is: nothing is written here."""
    order = await shop.fulfilled((product, 1))
    key = (await shop.payment(order))["idempotency_key"]
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    for code in ("DP053", "DP050"):
        with shop.refused(code):
            await shop.told(key, DECLINED)
        if code == "DP053":
            async with shop.unguarded():
                await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
                await shop.run("update warehouses set cell = cell + 1 where code = 'LIS'")
    assert await shop.value("select count(*) from gateway_events") == 0
    assert await shop.value("select knows_call(%s)", key) is True


@pytest.fixture
async def closed(shop: Shop, product: UUID) -> dict[str, UUID]:
    """Lisbon with an order of each kind, all closed for its move; Rotterdam goes on."""
    await shop.receive(product, 5, shop.rotterdam)
    orders = {"done": await shop.fulfilled((product, 1))}
    orders["waits"] = await shop.order((product, 1))
    await shop.advance()
    orders["new"] = await shop.order((product, 1))
    orders["refunded"] = (await shop.refund(orders["done"], 5))["id"]
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    return orders


def writers(orders: dict[str, UUID], product: UUID, shop: Shop) -> dict[str, tuple[str, Any]]:
    """Whoever writes of a warehouse, by the functions there are and by plain SQL."""
    items = json.dumps([{"product_id": str(product), "quantity": 1}])
    return {
        "place": ("select place_order(%s, %s)", (shop.lisbon, items)),
        "insert": ("insert into orders (warehouse_id) values (%s)", (shop.lisbon,)),
        "cancel": ("select cancel_order(%s, 'no')", (orders["waits"],)),
        "cancel early": ("select cancel_order(%s, 'no')", (orders["new"],)),
        "refund": ("select refund_order(%s, 1, 'no', %s)", (orders["done"], uuid4())),
        "return": ("select return_items(%s, null, 'no', %s)", (orders["done"], uuid4())),
        "receive": ("select receive_stock(%s, %s, 1)", (shop.lisbon, product)),
        "count": ("select count_stock(%s, %s, 100)", (shop.lisbon, product)),
        "fetch": (
            "select transfer_stock(%s, %s, %s, 1)",
            (shop.lisbon, shop.rotterdam, product),
        ),
        "note": (
            'select update_order(%s, \'{"reference": "x"}\')',
            (orders["new"],),
        ),
        "edit": ("update orders set status = 'cancelled' where id = %s", (orders["new"],)),
        "reorder": (
            "update inventory set reorder_point = 3 where warehouse_id = %s",
            (shop.lisbon,),
        ),
        "wake": ("update sagas set ready_at = now() where id = %s", (orders["done"],)),
    }


async def test_nothing_of_a_closed_warehouse_is_written(
    shop: Shop, product: UUID, closed: dict[str, UUID]
) -> None:
    """Whoever writes by whatever way is refused: for a moment while it moves, then for good."""
    tables = await shop.values("select name::text from warehouse_tables()")

    async def rows() -> list[Any]:
        query = "select coalesce(sum(hashtext(t::text)), 0) from {} as t where warehouse_id = %s"
        return [await shop.value(query.format(table), shop.lisbon) for table in tables]

    before = await rows()
    for code in ("DP053", "DP050"):
        for what, (query, values) in writers(closed, product, shop).items():
            with shop.refused(code):
                await shop.run(query, *values)
            assert await rows() == before, what
        if code == "DP053":
            async with shop.unguarded():
                await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
                await shop.run("update warehouses set cell = cell + 1 where code = 'LIS'")


async def test_a_customer_is_erased_from_what_was_left_behind(shop: Shop, product: UUID) -> None:
    """Of orders that a warehouse took along no address is kept here, whatever they were then."""
    await shop.receive(product, 5, shop.rotterdam)
    said = {"p_customer_id": "ann", "p_particulars": '{"email": "ann@example.com"}'}
    orders = [await shop.order((product, 1), **said) for _ in range(2)]
    await shop.settle((await shop.advance())[:1], APPROVED)
    orders.append(await shop.order((product, 1), warehouse=shop.rotterdam, **said))
    erase = "select erase_customer('ann', 'asked for it')"
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    with shop.refused("DP053"):
        await shop.run(erase)
    async with shop.unguarded():
        await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
        await shop.run("update warehouses set cell = cell + 1 where code = 'LIS'")
    assert await shop.value(erase) == 2
    left = "select order_id from order_particulars where email is not null"
    assert await shop.values(left) == orders[2:]
    with shop.refused("DP050"):
        await shop.run(
            "update order_particulars set reference = 'x' where order_id = %s", orders[0]
        )
    await shop.run("update moved_warehouses set state = 'coming'")
    async with shop.unguarded():
        await shop.run("update order_particulars set email = 'ann@example.com'")
    assert await shop.value(erase) == 0


async def test_what_is_taken_away_is_refused_too(shop: Shop, product: UUID) -> None:
    """Neither a token nor an empty shelf goes where it is closed: it is there where it has gone."""
    hold = await shop.value("select clock() + interval '1 hour'")
    order = await shop.order((product, 1), p_pay_by=hold, p_payment_token="tok_1")
    empty = await shop.product()
    for units in (1, -1):
        await shop.run("select adjust_stock(%s, %s, %s)", shop.lisbon, empty, units)
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    for code in ("DP053", "DP050"):
        async with shop.acting_as("service_role"):
            with shop.refused(code):
                await shop.run("select cancel_payment(%s)", order)
            with shop.refused(code):
                await shop.run("delete from inventory where product_id = %s", empty)
        if code == "DP053":
            async with shop.unguarded():
                await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
                await shop.run("update warehouses set cell = cell + 1 where code = 'LIS'")
    assert await shop.value("select count(*) from payment_tokens") == 1


async def test_who_works_for_all_goes_past_it(
    shop: Shop, product: UUID, closed: dict[str, UUID]
) -> None:
    """Neither a claim nor an answer moves a closed warehouse's saga; others' go on beside it."""
    before = await shop.rows("select * from sagas where warehouse_id = %s order by id", shop.lisbon)
    lease = await shop.lease(closed["waits"])
    there = await shop.order((product, 1), warehouse=shop.rotterdam)
    (request,) = await shop.ask_again()
    assert request["saga_id"] == str(there)
    await shop.settle([lease, request], APPROVED)
    assert shop.stale == [(closed["waits"], "DP009")]
    assert await shop.order_status(there) == "fulfilled"
    assert before == await shop.rows(
        "select * from sagas where warehouse_id = %s order by id", shop.lisbon
    )
    await shop.run("select open_warehouse(%s)", shop.lisbon)
    asked = {each["saga_id"] for each in await shop.ask_again()}
    assert {str(closed["new"]), str(closed["refunded"])} <= asked


async def test_a_clock_that_was_set_back_stops_at_no_copy(
    shop: Shop, product: UUID, closed: dict[str, UUID]
) -> None:
    """Waits of a closed warehouse's sagas are left as they are; others' are brought back."""
    there = await shop.order((product, 1), warehouse=shop.rotterdam)
    async with shop.unguarded():
        await shop.run(
            "update sagas set updated_at = clock() + interval '1 hour',"
            " ready_at = clock() + interval '2 hours' where id in (%s, %s)",
            *(closed["new"], there),
        )
    async with shop.acting_as("darkpearl_listener"):
        await shop.run("select correct_future_waits()")
    late = "select id from sagas where updated_at > clock()"
    assert await shop.values(late) == [closed["new"]]


async def test_a_pass_that_met_the_close_blames_nobody(shop: Shop, product: UUID) -> None:
    """A pass that had claimed before the close writes nothing: no saga is stuck or loses a try."""
    orders = [await shop.order((product, 1)) for _ in range(3)]
    before = await shop.rows("select * from sagas order by id")
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    await shop.run("delete from moved_warehouses")  # what its claim doesn't see yet
    for limit in (3, 1):
        with shop.refused("DP053"):
            await shop.advance(limit)
    assert await shop.rows("select * from sagas order by id") == before
    assert [await shop.events(order) for order in orders] == [["saga_started"]] * 3


async def test_every_table_of_a_warehouse_is_guarded(shop: Shop) -> None:
    """Whatever table has a warehouse's rows goes along, and is closed; a new one, too."""
    await shop.run("create table novelties (id int, warehouse_id uuid)")
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    columns = (
        "select count(*) from information_schema.columns where table_schema = 'darkpearl'"
        " and column_name = 'warehouse_id'"
        " and table_name in (select relname from pg_class where relkind in ('r', 'p')"
        " and not relispartition) and table_name <> 'moved_warehouses'"
    )
    guarded = (
        "select count(*) from pg_trigger where tgname = 'moved_warehouses_are_closed'"
        " and tgparentid = 0"
    )
    assert await shop.value(guarded) == await shop.value(columns) > 15
    with shop.refused("DP053"):
        await shop.run("insert into novelties values (1, %s)", shop.lisbon)
    await shop.run("insert into novelties values (1, %s)", shop.rotterdam)
    await shop.run("drop table novelties")


async def test_no_month_goes_by_hand_while_a_warehouse_moves(shop: Shop) -> None:
    """Events are counted at both ends of a move: it says busy, and goes once that is over."""
    await shop.turn_clock(200 * 86400)
    day = await shop.value("select (clock() - interval '100 days')::date")
    drop = "select outcome from drop_event_partitions(%s, 'disk')"
    for state, outcomes in (("coming", {"busy"}), ("arrived", {"busy"}), ("gone", {"dropped"})):
        await shop.run("select close_warehouse(%s, 200, %s)", shop.lisbon, state)
        assert set(await shop.values(drop, day)) == outcomes


@pytest.mark.usefixtures("closed")
async def test_what_has_left_keeps_nothing_here(shop: Shop) -> None:
    """Sagas of a warehouse that another cell has keep no function, no month and no audit busy."""
    hold = await shop.value("select clock() + interval '1 day'")
    await shop.run("select open_warehouse(%s)", shop.lisbon)
    product = await shop.product(on_hand=1)
    await shop.order((product, 1), p_pay_by=hold)
    await shop.advance()
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    query = (
        "select (select count(*) > 0 from functions_in_use()) as functions,"
        " (select bool_or(needed) from old_event_partitions('2100-01-01')) as months"
    )
    assert await shop.row(query) == {"functions": True, "months": True}
    async with shop.unguarded():
        await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
        await shop.run("update warehouses set cell = cell + 1 where code = 'LIS'")
        await shop.run("update sagas set ready_at = 'infinity' where ready_at is not null")
    shop.audited = True
    assert await shop.row(query) == {"functions": False, "months": False}
    assert await shop.audit() == []
    await shop.turn_clock(200 * 86400)
    latest = "select date_trunc('month', clock() - interval '40 days')::date"
    await shop.run("select drop_event_partitions(%s, 'disk')", await shop.value(latest))
    assert await shop.values("select finding from audit") == []
    shop.audited = False  # what was dropped can't be rebuilt


async def test_what_came_stays_until_it_is_exported_here(shop: Shop, product: UUID) -> None:
    """A month that this cell exported before a warehouse came doesn't have what that brought."""
    order = await shop.fulfilled((product, 1))
    await shop.turn_clock(70 * 86400)
    export = (
        "select record_export('orders', date_trunc('month', o.created_at)::date, 1)"
        " from orders as o where o.id = %s"
    )
    await shop.run("update retention set keep_days = 30, export_first = true where kind = 'orders'")
    await shop.run(export, order)
    await shop.run("select close_warehouse(%s, 200, 'coming')", shop.lisbon)
    await shop.run("update moved_warehouses set state = 'arrived', told_after = 0")
    await shop.run("select open_warehouse(%s)", shop.lisbon)
    for removed in (0, 1):
        assert await shop.value("select removed from apply_retention('orders')") == removed
        await shop.run(export, order)


async def test_what_was_told_elsewhere_is_not_told_again(shop: Shop, product: UUID) -> None:
    """The feed of the cell that a warehouse came to begins with what happened there."""
    await shop.fulfilled((product, 1))
    last = await shop.value("select max(id) from saga_events")
    await shop.run("select close_warehouse(%s, 200, 'coming')", shop.lisbon)
    assert await shop.rows("select * from feed") == []
    await shop.run("update moved_warehouses set state = 'arrived', told_after = %s", last)
    await shop.run("select open_warehouse(%s)", shop.lisbon)
    assert await shop.rows("select * from feed") == []
    after = await shop.fulfilled((product, 1))
    told = await shop.rows("select subject from follow_feed(0)")
    assert {each["subject"] for each in told} == {after}


async def test_what_was_told_elsewhere_takes_no_place(shop: Shop, product: UUID) -> None:
    """Webhooks are told again from a moment on, and nothing of before, whatever came since."""
    await shop.receive(product, 5, shop.rotterdam)
    for later in (-7200, 10800):
        await shop.turn_clock(later)
        await shop.fulfilled((product, 1))
    last = await shop.value("select max(id) from saga_events")
    moment = await shop.value("select clock() - interval '30 minutes'")
    await shop.turn_clock(-3600)
    await shop.order((product, 1), warehouse=shop.rotterdam)
    end = await shop.value("select max(id) from saga_events")
    endpoint = await shop.value(
        "select id from create_webhook_endpoint('https://a.example/', null)"
    )
    await shop.run("select close_warehouse(%s, 200, 'coming')", shop.lisbon)
    await shop.run("update moved_warehouses set state = 'arrived', told_after = %s", last)
    await shop.run("select open_warehouse(%s)", shop.lisbon)
    await shop.run("update webhook_endpoints set position = %s", end)
    assert await shop.value("select replay_webhooks(%s, %s)", endpoint, moment) == end
    await shop.run("update webhook_endpoints set position = 0")
    oldest = "select min(created_at) from saga_events where warehouse_id = %s"
    assert await shop.value("select oldest_undelivered()") == await shop.value(
        oldest, shop.rotterdam
    )


async def test_what_others_have_to_do_is_not_counted_here(shop: Shop, product: UUID) -> None:
    """Stuck sagas, failed refunds and disputes of a closed warehouse are its own cell's to mend."""
    done = await shop.fulfilled((product, 1))
    await shop.refund(done, 1)
    dispute = {"outcome": "disputed", "dispute": "open", "reference": "d", "code": "fraud"}
    key = (await shop.payment(done))["idempotency_key"]
    await shop.told(key, dispute | {"amount": "10", "currency": "USD"})
    await shop.run("update inventory set reorder_point = 100 where product_id = %s", product)
    await shop.run("update warehouses set fulfilment_method = 'on_shipment' where code = 'LIS'")
    await shop.order((product, 1))
    await shop.settle(await shop.advance(), APPROVED)
    stuck = await shop.order((product, 1))
    await shop.poison("reserve_stock", stuck, sqlstate="P0001")
    await shop.advance()
    async with shop.unguarded():
        await shop.run("update refunds set status = 'failed'")
    views = ("stuck_sagas", "stuck_by_cause", "queue_health", "failed_refunds", "disputed_payments")
    views += ("orders_to_ship", "low_stock")
    counts = [f"(select count(*) from {view})" for view in views]
    counts += ["(select stuck from engine_health)", "(select sum(stuck) from stuck_state())"]
    counts += ["(select waiting from engine_health)"]
    batches = ("retry_sagas", "skip_steps", "cancel_orders")
    counts += [f"(select total from {batch}('{{}}'))" for batch in batches]
    query = f"select array[{', '.join(counts)}]"
    before = await shop.value(query)
    assert min(before) > 0, before
    await shop.run("select close_warehouse(%s, 200)", shop.lisbon)
    assert await shop.value(query) == [0] * len(before)
    await shop.run("select open_warehouse(%s)", shop.lisbon)
    assert await shop.value(query) == before


async def test_a_number_of_two_warehouses_shows_one(shop: Shop, product: UUID) -> None:
    """A warehouse from another cell brings its movements' numbers: each shelf shows its own."""
    await shop.receive(product, 10, shop.rotterdam)
    orders = {}
    for warehouse in (shop.lisbon, shop.rotterdam):
        orders[warehouse] = await shop.order((product, 2), warehouse=warehouse)
        await shop.settle(await shop.advance(), APPROVED)
        await shop.take_back(orders[warehouse])
    await shop.number_alike()
    assert await shop.values("select distinct count(*) from stock_movements group by id") == [2]
    for warehouse, order in orders.items():
        (returned,) = await shop.values(
            "select movements from order_returns where order_id = %s", order
        )
        assert [each["warehouse_id"] for each in returned] == [str(warehouse)]
        shelf = await shop.value("select monitor_shelf(%s, %s)", product, warehouse)
        shown = [each["warehouse_id"] for each in shelf["movements"]]
        assert shown == [str(warehouse)] * 4
