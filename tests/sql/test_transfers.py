"""routines/66_transfers.sql: goods that go to another cell's warehouse, and from one.

One database is both cells, one after the other: Rotterdam is another's when goods leave, and this
one's when they come in.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import LONG, UNKNOWN, Shop

HERE = "(select this_cell())"
DONE = ["saga_started", "step_completed send_goods", "step_waiting bring_in"]
SEND = "select * from transfer_stock(%s, %s, %s, %s, %s)"
DECIDE = "select decide_arrival(%s, %s, %s, %s, %s, null, %s)"
Row = dict[str, Any]


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units in Lisbon; Rotterdam is another cell's, and was never used."""
    async with shop.unguarded():
        await shop.run(f"insert into cells (number, name) values ({HERE} + 1, 'north')")
        await shop.run("update warehouses set cell = cell + 1 where code = 'RTM'")
    shop.audited = True
    return await shop.product(on_hand=10)


@asynccontextmanager
async def in_north(shop: Shop) -> AsyncIterator[None]:
    """What is done inside is done in the cell that has Rotterdam."""
    for change in (-1, 1):
        async with shop.unguarded():
            await shop.run("update warehouses set cell = cell + %s where code = 'RTM'", change)
        shop.audited = True
        if change == -1:
            yield


async def send(shop: Shop, product: UUID, units: int = 4) -> UUID:
    """Goods leave Lisbon for Rotterdam; the transfer's id."""
    transfer = uuid4()
    async with shop.acting_as("service_role"):
        (moved,) = await shop.rows(SEND, *(shop.lisbon, shop.rotterdam, product, units, transfer))
    assert (moved["movement_type"], moved["correlation_id"]) == ("transfer_out", transfer)
    return transfer


async def decide(shop: Shop, request: Row) -> Row:
    """What a listener does with a request, in the cell that it is for; the answer."""
    async with in_north(shop), shop.acting_as("darkpearl_listener"):
        refusal = await shop.value(
            DECIDE,
            *(request["transfer_id"], request["from_warehouse_id"], request["warehouse_id"]),
            *(request["product_id"], request["quantity"], request["refusal"]),
        )
    approved = (refusal is None) == (request["refusal"] is None)
    return {"outcome": "approved" if approved else "declined", "message": refusal}


async def answered(shop: Shop, requests: list[Row]) -> list[Row]:
    """Each request is asked, and its answer brought; the requests that follow."""
    following = []
    for each in requests:
        following += await shop.settle([each], await decide(shop, each["request"]))
    return following


async def transfer_of(shop: Shop, transfer: UUID) -> tuple[str, str | None]:
    """What became of a transfer, and why."""
    row = await shop.row("select status, refusal from transfers where id = %s", transfer)
    return row["status"], row["refusal"]


async def shelves(shop: Shop, product: UUID) -> tuple[int, int, int]:
    """What lies in Lisbon, in Rotterdam and on neither shelf."""
    there = "select sum(quantity_available) from inventory where product_id = %s"
    in_transit = "select coalesce(sum(quantity), 0) from stock_in_transit where product_id = %s"
    here = (await shop.stock(product))[0]
    both = await shop.value(there, product)
    return here, int(both) - here, int(await shop.value(in_transit, product))


async def test_goods_leave_and_come_in(shop: Shop, product: UUID) -> None:
    """Out here at once, in transit until the other cell has decided, then there: under one id."""
    transfer = await send(shop, product)
    assert await shelves(shop, product) == (6, 0, 4)
    seen = await shop.row("select * from stock_in_transit")
    assert (seen["from_warehouse_code"], seen["to_warehouse_code"]) == ("LIS", "RTM")
    assert (seen["id"], seen["quantity"]) == (transfer, 4)
    (request,) = await shop.advance()
    assert request["request"]["operation"] == "decide_arrival"
    assert await shop.audit() == []
    assert await answered(shop, [request]) == []
    assert await shelves(shop, product) == (6, 4, 0)
    assert await transfer_of(shop, transfer) == ("arrived", None)
    assert await shop.events(transfer) == [*DONE, "step_completed bring_in", "saga_completed"]
    moved = await shop.rows(
        "select movement_type, quantity, reference_id from stock_movements"
        " where correlation_id = %s order by id",
        transfer,
    )
    assert [tuple(each.values()) for each in moved] == [
        ("transfer_out", 4, shop.rotterdam),
        ("transfer_in", 4, shop.lisbon),
    ]


async def test_it_comes_in_once(shop: Shop, product: UUID) -> None:
    """A call that got no answer is made again, and one that comes late changes nothing."""
    transfer = await send(shop, product)
    (request,) = await shop.advance()
    assert (await decide(shop, request["request"]))["outcome"] == "approved"
    await shop.settle([request], UNKNOWN)
    assert await transfer_of(shop, transfer) == ("in_transit", None)
    await answered(shop, await shop.ask_again())
    assert (await decide(shop, request["request"]))["outcome"] == "approved"
    assert await shelves(shop, product) == (6, 4, 0)


async def test_asked_for_again_it_is_the_same(shop: Shop, product: UUID) -> None:
    """One id is one transfer, whatever becomes of it; of other goods it is refused."""
    transfer = await send(shop, product)
    again = (shop.lisbon, shop.rotterdam, product, 4, transfer)
    for _ in range(2):
        (moved,) = await shop.rows(SEND, *again)
        assert moved["movement_type"] == "transfer_out"
        assert await shop.value("select count(*) from transfers") == 1
        await answered(shop, await shop.advance())
    # The other warehouse comes here: what is known is no transfer within this cell.
    async with in_north(shop):
        (moved,) = await shop.rows(SEND, *again)
    assert await shelves(shop, product) == (6, 4, 0)
    other = await shop.product(on_hand=3)
    for values in (
        (shop.lisbon, shop.rotterdam, product, 3, transfer),
        (shop.lisbon, shop.rotterdam, other, 3, transfer),
    ):
        with shop.refused("DP011"):
            await shop.run(SEND, *values)
    assert await shop.stock(other) == (3, 0)


async def test_one_that_was_within_the_cell_is_not_sent_again(shop: Shop, product: UUID) -> None:
    """What was done at once stays done, though the warehouse is another cell's by now."""
    values = (shop.lisbon, shop.rotterdam, product, 4, uuid4())
    async with in_north(shop):
        assert len(await shop.rows(SEND, *values)) == 2
    (moved,) = await shop.rows(SEND, *values)
    assert moved["quantity"] == 4
    assert await shop.value("select count(*) from transfers") == 0
    assert await shelves(shop, product) == (6, 4, 0)


REFUSALS = {
    "warehouse": (
        "update warehouses set is_active = false where code = 'RTM'",
        "RTM is not active",
    ),
    "product": ("update products set is_active = false", "is not active"),
    "shelf": (
        (
            "select receive_stock((select id from warehouses where code = 'RTM'), id, 1000000000)"
            " from products"
        ),
        "inventory_quantity_is_bounded",
    ),
    "id": (
        (
            "select move_stock('transfer_in', w.id, p.id, 1, t.id, null, null, null)"
            " from transfers as t, warehouses as w, products as p where w.code = 'RTM'"
        ),
        "correlation id already used",
    ),
}


@pytest.mark.parametrize("why", REFUSALS)
async def test_what_cannot_come_in_is_put_back(shop: Shop, product: UUID, why: str) -> None:
    """Refused there, it is undone here, once, and the transfer says why."""
    transfer = await send(shop, product)
    change, said = REFUSALS[why]
    async with in_north(shop):
        await shop.run(change)
    before = (await shelves(shop, product))[1]
    (request,) = await shop.advance()
    await answered(shop, [request])
    status, refusal = await transfer_of(shop, transfer)
    assert status == "undone"
    assert said in (refusal or "")
    assert await shelves(shop, product) == (10, before, 0)
    failed = await shop.event(transfer, "step_failed")
    assert (failed["error_code"], said in failed["message"]) == ("DP055", True)
    assert (await shop.events(transfer))[-2:] == ["step_compensated put_back", "saga_compensated"]
    # It stays refused, though nothing speaks against it any more.
    async with in_north(shop):
        await shop.run("update warehouses set is_active = true")
        await shop.run("update products set is_active = true")
    assert (await decide(shop, request["request"]))["outcome"] == "declined"
    assert await shelves(shop, product) == (10, before, 0)


async def test_nothing_leaves_that_is_not_there(shop: Shop, product: UUID) -> None:
    """More than can be sold, from elsewhere, under an order's id: refused, and nothing begins."""
    order = await shop.order((product, 1))
    await shop.advance()
    with shop.refused("DP006"):
        await shop.run(SEND, *(shop.lisbon, shop.rotterdam, product, 10, uuid4()))
    with shop.refused("DP050"):
        await shop.run(SEND, *(shop.rotterdam, shop.lisbon, product, 1, uuid4()))
    with shop.refused("DP011"):
        await shop.run(SEND, *(shop.lisbon, shop.rotterdam, product, 1, order))
    with shop.refused("DP015"):
        await shop.run(SEND, *(shop.rotterdam, shop.rotterdam, product, 1, uuid4()))
    assert await shop.value("select count(*) from transfers") == 0
    assert await shop.stock(product) == (10, 1)


async def call_back(shop: Shop, transfer: UUID) -> str:
    """Staff want the goods back; what has become of the transfer by now."""
    async with shop.acting_as("service_role"):
        return await shop.value("select status from call_back_transfer(%s, 'no')", transfer)


async def test_called_back_it_is_refused_there_first(shop: Shop, product: UUID) -> None:
    """The goods are put back once the other cell has promised, and no call lets them in later."""
    transfer = await send(shop, product)
    (late,) = await shop.advance()
    assert await call_back(shop, transfer) == "in_transit"
    assert await call_back(shop, transfer) == "in_transit"
    await shop.settle([late], UNKNOWN)
    (request,) = await shop.ask_again()
    assert request["request"]["refusal"] == "called back"
    assert await shelves(shop, product) == (6, 0, 4)
    await shop.settle([request], UNKNOWN)
    assert await shelves(shop, product) == (6, 0, 4)
    assert await answered(shop, await shop.ask_again()) == []
    assert await transfer_of(shop, transfer) == ("undone", "called back")
    assert (await decide(shop, late["request"]))["outcome"] == "declined"
    assert await shelves(shop, product) == (10, 0, 0)
    assert await call_back(shop, transfer) == "undone"
    with shop.refused("DP010"):
        await call_back(shop, uuid4())


async def test_called_back_too_late_it_has_arrived(shop: Shop, product: UUID) -> None:
    """Goods that are in, which nobody here had heard, stay there, and are not put back."""
    transfer = await send(shop, product)
    (request,) = await shop.advance()
    await decide(shop, request["request"])
    await call_back(shop, transfer)
    await shop.settle([request], UNKNOWN)
    assert await answered(shop, await shop.ask_again()) == []
    assert await transfer_of(shop, transfer) == ("arrived", None)
    assert await shelves(shop, product) == (6, 4, 0)
    assert (await shop.saga(transfer))["status"] == "compensated"


async def test_called_back_at_once_nobody_is_asked(shop: Shop, product: UUID) -> None:
    """Before the first call was made the goods are put back as they are."""
    transfer = await send(shop, product)
    await call_back(shop, transfer)
    assert await shop.advance() == []
    assert await transfer_of(shop, transfer) == ("undone", "called back")
    assert await shelves(shop, product) == (10, 0, 0)


async def test_no_try_is_spent_on_a_cell_that_is_away(shop: Shop, product: UUID) -> None:
    """A request that is given back costs nothing, for however long; then the goods come in."""
    transfer = await send(shop, product)
    requests = await shop.advance()
    for _ in range(3):
        given_back = await shop.lease(transfer) | {
            "answer": {"message": "not asked"},
            "deferred_seconds": 30,
        }
        await shop.bring([given_back])
        await shop.turn_clock(10 * 24 * 3600)
        requests = await shop.advance()
    assert await answered(shop, requests) == []
    assert await transfer_of(shop, transfer) == ("arrived", None)


@pytest.mark.parametrize("is_in", [True, False])
async def test_a_person_says_where_the_goods_are_of_a_cell_that_is_gone(
    shop: Shop, product: UUID, *, is_in: bool
) -> None:
    """Nobody can be asked any more: the saga is stuck, and ends with the goods there, or back."""
    transfer = await send(shop, product)
    (request,) = await shop.advance()
    async with shop.unguarded():
        await shop.run(f"update cells set removed_at = clock() where number = {HERE} + 1")
    shop.audited = True
    await shop.settle([request], UNKNOWN)
    assert await shop.ask_again() == []
    assert (await shop.saga(transfer))["status"] == "stuck"
    said = "select message from saga_events where saga_id = %s and error_code = 'DP010'"
    assert "was removed" in await shop.value(said, transfer)
    async with shop.acting_as("service_role"):
        if not is_in:
            await shop.run("select turn_back_saga(%s, 'its shelf was empty')", transfer)
    if not is_in:
        assert await shop.ask_again() == []
        assert (await shop.saga(transfer))["status"] == "stuck"
    async with shop.acting_as("service_role"):
        await shop.run("select skip_step(%s, 'somebody has looked')", transfer)
    await shop.advance()
    assert (await transfer_of(shop, transfer))[0] == ("arrived" if is_in else "undone")
    assert await shelves(shop, product) == (6 if is_in else 10, 0, 0)


async def test_given_up_after_a_week_of_errors(shop: Shop, product: UUID) -> None:
    """Only what is answered by errors for so long turns back, by way of the other cell."""
    transfer = await send(shop, product)
    await shop.give_up_after(0, "bring_in")
    (request,) = await shop.settle(await shop.advance(), UNKNOWN)
    assert request["request"]["refusal"] == "called back"
    await shop.settle([request], UNKNOWN)
    assert (await shop.saga(transfer))["status"] == "stuck"
    assert await shelves(shop, product) == (6, 0, 4)
    assert await shop.audit() == []
    await shop.run("select retry_saga(%s, 'they are back')", transfer)
    await answered(shop, await shop.advance())
    assert await shelves(shop, product) == (10, 0, 0)


async def test_many_are_one_batch(shop: Shop, product: UUID) -> None:
    """Transfers of several products come out of a pass each by its own answer."""
    goods = [product, *[await shop.product(on_hand=10) for _ in range(4)]]
    sent = {await send(shop, each, 3): each for each in goods for _ in range(2)}
    answers = [
        {
            "saga_id": each["saga_id"],
            "lease_token": each["lease_token"],
            "answer": await decide(shop, each["request"] | {"refusal": "no" if n % 2 else None}),
        }
        for n, each in enumerate(await shop.advance())
    ]
    for n, each in enumerate(answers):
        each["answer"] = {"outcome": "declined", "message": "no"} if n % 2 else each["answer"]
    await shop.bring(answers)
    ended = {transfer: (await transfer_of(shop, transfer))[0] for transfer in sent}
    assert sorted(ended.values()) == ["arrived"] * 5 + ["undone"] * 5
    for each in goods:
        here, there, under_way = await shelves(shop, each)
        assert (here + there, under_way) == (10, 0)


async def test_the_other_cell_lets_in_only_what_was_sent(shop: Shop, product: UUID) -> None:
    """Another quantity is refused there, and what the catalogue lacks decides nothing."""
    transfer = await send(shop, product)
    (request,) = await shop.advance()
    asked = request["request"]
    async with in_north(shop):
        with shop.refused("DP010"):
            await shop.run(DECIDE, *(transfer, shop.lisbon, shop.rotterdam, uuid4(), 4, None))
    await answered(shop, [request])
    async with in_north(shop):
        with shop.refused("DP011"):
            await shop.run(
                DECIDE, *(transfer, shop.lisbon, shop.rotterdam, asked["product_id"], 5, None)
            )


async def test_an_id_that_left_does_not_come_in(shop: Shop, product: UUID) -> None:
    """Two cells that use one id for goods to each other: each gets its own back."""
    transfer = await send(shop, product)
    (request,) = await shop.advance()
    came = (transfer, shop.rotterdam, shop.lisbon, product, 4, None)
    for _ in range(2):
        assert await shop.value(DECIDE, *came) == "transfer id already used"
    third = await shop.value("insert into warehouses (code, name) values ('C', 'C') returning id")
    await shop.receive(product, 5, third)
    with shop.refused("DP011"):
        await shop.rows(SEND, third, shop.lisbon, product, 4, transfer)
    await shop.settle([request], {"outcome": "declined"})
    assert await shop.stock(product, shop.lisbon) == (10, 0)
    assert await shop.value(DECIDE, *came) == "transfer id already used"
    assert await shop.audit() == []


async def test_one_id_of_two_cells_comes_in_once(shop: Shop, product: UUID) -> None:
    """Goods of a third cell under an id that came in are refused, and so put back."""
    transfer, third = uuid4(), uuid4()
    for refusal in (None, "called back"):
        first = (transfer, shop.rotterdam, shop.lisbon, product, 4, None)
        assert await shop.value(DECIDE, *first) is None
        second = (transfer, third, shop.lisbon, product, 4, refusal)
        assert await shop.value(DECIDE, *second) == "transfer id already used"
    assert await shop.stock(product) == (14, 0)


async def test_an_id_that_came_in_does_not_leave(shop: Shop, product: UUID) -> None:
    """Put back, the goods would have been taken for those that came: so it is refused at once."""
    transfer = uuid4()
    came = (transfer, shop.rotterdam, shop.lisbon, product, 4, None)
    assert await shop.value(DECIDE, *came) is None
    with shop.refused("DP011"):
        await shop.rows(SEND, shop.lisbon, shop.rotterdam, product, 4, transfer)
    assert await shop.stock(product, shop.lisbon) == (14, 0)


async def test_what_was_decided_stays(shop: Shop, product: UUID) -> None:
    """What is over, and what was decided, is neither changed nor removed by hand."""
    await send(shop, product)
    await answered(shop, await shop.advance())
    for statement in (
        "update transfers set status = 'in_transit'",
        "update transfers set quantity = 5",
        "delete from transfers",
        "truncate transfers",
        "update transfer_arrivals set refusal = 'no'",
        "delete from transfer_arrivals",
        "truncate transfer_arrivals",
    ):
        with shop.refused("DP005"):
            await shop.run(statement)


LIES = {
    "delete from sagas": "transfer is in transit without a living saga",
    "update transfers set status = 'undone'": "transfer and ledger disagree",
    "delete from transfers": "saga has no transfer",
    "delete from stock_movements": "transfer and ledger disagree",
    "insert into transfer_arrivals select id, to_warehouse_id, warehouse_id, product_id, quantity"
    " from transfers": "arrival and ledger disagree",
    "update transfers set status = 'arrived';"
    " insert into transfer_arrivals select id, to_warehouse_id, warehouse_id, product_id, quantity,"
    " 'no' from transfers": "transfer and arrival disagree",
}


@pytest.mark.parametrize("lie", LIES)
async def test_the_audit_sees_what_is_wrong(shop: Shop, product: UUID, lie: str) -> None:
    """Goods in transit that nobody brings in, and ends that the ledger doesn't know."""
    await send(shop, product)
    await shop.advance()
    assert await shop.audit() == []
    async with shop.unguarded():
        for each in lie.split(";"):
            await shop.run(each)
    findings = await shop.values("select finding from audit")
    assert LIES[lie] in findings
    assert LIES[lie] in await shop.values(
        "select finding from audit_since(clock() - interval '1 hour')"
    )


async def test_retention_removes_what_is_over(shop: Shop, product: UUID) -> None:
    """With its movements a transfer goes, its saga and its decision; what is in transit stays."""
    over, open_ = await send(shop, product), None
    await answered(shop, await shop.advance())
    refused = await send(shop, product)
    async with in_north(shop):
        await shop.run("update products set is_active = false")
    await answered(shop, await shop.advance())
    open_ = await send(shop, product)
    requests = await shop.advance()
    await shop.run("update retention set keep_days = 30 where kind = 'movements'")
    await shop.turn_clock(40 * 24 * 3600)
    await shop.run("select apply_retention('movements', 100)")
    assert await shop.values("select id from transfers") == [open_]
    assert await shop.values("select id from sagas") == [open_]
    assert await shop.value("select count(*) from transfer_arrivals") == 0
    assert {over, refused} <= set(await shop.values("select id from spent_ids"))
    assert await shop.audit() == []
    # What was asked for so long ago comes in no more, under any of these ids.
    for each in (over, refused):
        with shop.refused("DP038"):
            await shop.run(SEND, *(shop.lisbon, shop.rotterdam, product, 1, each))
    await shop.settle(requests, UNKNOWN)
    await shop.turn_clock(LONG)
    await answered(shop, await shop.advance())
    assert (await transfer_of(shop, open_))[0] == "undone"
    assert await shelves(shop, product) == (6, 4, 0)
