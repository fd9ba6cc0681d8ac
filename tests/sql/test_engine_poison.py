"""routines/55_engine.sql: a saga that can't be done among others, and what is an outage."""

import pytest
from shop import APPROVED, DECLINED, LONG, Shop


@pytest.mark.parametrize("place", [0, 7, 19])
async def test_a_poisonous_saga_hurts_nobody_else(shop: Shop, place: int) -> None:
    """The batch is halved until it stands alone: all others go on, it alone has a failure."""
    product = await shop.product(on_hand=100)
    orders = [await shop.order((product, 1)) for _ in range(20)]
    bad = orders[place]
    await shop.poison("reserve_stock", bad, sqlstate="22012")
    await shop.give_up_after(7.2, "reserve_stock")
    requests = await shop.advance()
    assert {each["saga_id"] for each in requests} == {str(each) for each in orders} - {str(bad)}
    assert shop.claimed == 20
    failure = await shop.row("select * from saga_events where event_type = 'step_failed'")
    assert (failure["saga_id"], failure["error_code"]) == (bad, "22012")
    assert (failure["message"], failure["attempt"]) == ("poison", 1)
    saga = await shop.saga(bad)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    assert saga["ready_at"] == failure["next_attempt_at"]
    await shop.settle(requests, APPROVED)
    for _ in range(5):
        await shop.turn_clock(LONG)
        await shop.advance()
    assert (await shop.saga(bad))["status"] == "compensated"
    assert await shop.order_status(bad) == "cancelled"
    assert await shop.value("select count(*) from orders where status = 'fulfilled'") == 19
    assert await shop.stock(product) == (81, 0)
    assert await shop.values("select distinct saga_id from saga_events where error_code <> ''") == [
        bad
    ]


async def test_several_poisonous_sagas_are_told_apart(shop: Shop) -> None:
    """Each one that fails is recorded with its own failure, wherever they stand in the batch."""
    product = await shop.product(on_hand=100)
    orders = [await shop.order((product, 1)) for _ in range(16)]
    bad = {orders[0], orders[7], orders[8], orders[15]}
    await shop.poison("reserve_stock", *bad)
    assert len(await shop.advance()) == 12
    failures = await shop.values("select saga_id from saga_events where event_type = 'step_failed'")
    assert sorted(failures) == sorted(bad)


async def test_a_saga_whose_step_is_gone_is_set_aside(shop: Shop) -> None:
    """It stands stuck, as after half a restore, and history tells why; the others go on."""
    product = await shop.product(on_hand=9)
    lost, *others = [await shop.order((product, 1)) for _ in range(3)]
    async with shop.unguarded():
        await shop.run("update sagas set position = 9 where id = %s", lost)
    requests = await shop.advance()
    assert {each["saga_id"] for each in requests} == {str(each) for each in others}
    assert (await shop.saga(lost))["status"] == "stuck"
    assert await shop.events(lost) == ["saga_started", "step_failed", "saga_stuck"]
    failure = await shop.event(lost, "step_failed")
    assert (failure["error_code"], failure["step_name"]) == ("P0002", None)
    assert failure["message"] == "order_fulfilment has no step 9"


async def test_a_failure_is_recorded_under_the_step_that_raised(shop: Shop) -> None:
    """When the second step of a pass raises, the first has been done and is not blamed."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.poison("request_payment", order)
    for _ in range(2):
        await shop.advance()
    assert await shop.events(order) == [
        "saga_started",
        "step_completed reserve_stock",
        "step_failed process_payment",
    ]
    assert await shop.stock(product) == (1, 1)


@pytest.mark.parametrize(
    "sqlstate", ["40P01", "40001", "53100", "55P03", "57P01", "58030", "08006"]
)
async def test_an_outage_is_nobodys_failure(shop: Shop, sqlstate: str) -> None:
    """An error of the system is raised to the listener, and written on no saga."""
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(3)]
    await shop.poison("reserve_stock", orders[1], sqlstate=sqlstate)
    with shop.refused(sqlstate):
        await shop.advance()
    assert await shop.values("select distinct event_type::text from saga_events") == [
        "saga_started"
    ]
    assert await shop.values("select distinct attempts from sagas") == [0]
    await shop.cure("reserve_stock")
    await shop.poison("record_payment", orders[1], sqlstate=sqlstate)
    requests = await shop.advance()
    with shop.refused(sqlstate):
        await shop.settle(requests, APPROVED)
    assert await shop.values("select distinct status::text from sagas") == ["waiting"]
    await shop.cure("record_payment")
    await shop.settle(requests, APPROVED)
    assert await shop.values("select distinct status::text from orders") == ["fulfilled"]


@pytest.mark.parametrize("sqlstate", ["40P01", "55P03"])
async def test_answers_are_kept_while_another_is_in_the_way_of_what_follows(
    shop: Shop, sqlstate: str
) -> None:
    """A lock that the goods of one order wait for keeps no answer from being recorded."""
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(3)]
    await shop.poison("fulfill_order", orders[1], sqlstate=sqlstate)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.statuses() == {"paid": 3}
    with shop.refused(sqlstate):
        await shop.advance()
    await shop.cure("fulfill_order")
    await shop.advance()
    assert await shop.statuses() == {"fulfilled": 3}


async def test_a_step_that_raises_keeps_the_answer_before_it(shop: Shop) -> None:
    """Money that was taken is written down even if what comes next can't be done."""
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(5)]
    await shop.poison("fulfill_order", orders[3])
    await shop.settle(await shop.advance(), APPROVED)
    assert [await shop.order_status(order) for order in orders] == [
        *["fulfilled"] * 3,
        "paid",
        "fulfilled",
    ]
    assert (await shop.payment(orders[3]))["captured_amount"] == 10
    await shop.advance()
    assert (await shop.events(orders[3]))[-2:] == [
        "step_completed process_payment",
        "step_failed fulfill_order",
    ]
    await shop.cure("fulfill_order")
    await shop.turn_clock(LONG)
    await shop.advance()
    assert await shop.order_status(orders[3]) == "fulfilled"


async def test_a_step_that_never_works_is_compensated(shop: Shop) -> None:
    """When fulfilment raises to the last try, the money goes back and the stock as well."""
    await shop.give_up_after(7.2)
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.poison("fulfill_order", order)
    requests = await shop.settle(await shop.advance(), APPROVED)
    for _ in range(8):
        await shop.turn_clock(LONG)
        requests = await shop.settle([*requests, *await shop.advance()], APPROVED)
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.payment(order))["status"] == "refunded"
    assert await shop.stock(product) == (1, 0)
    assert (await shop.events(order)).count("step_failed fulfill_order") == 5


@pytest.mark.parametrize("sqlstate", ["22012", "DP015"])
async def test_an_answer_that_cant_be_recorded_is_asked_for_again(
    shop: Shop, sqlstate: str
) -> None:
    """A settle function that raises for one saga fails that one; the answers of others count.

    Whatever it raises, also what settle() itself says of answers that make no sense.
    """
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(5)]
    await shop.poison("record_payment", orders[0], sqlstate=sqlstate)
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.value("select count(*) from orders where status = 'fulfilled'") == 4
    failure = await shop.event(orders[0], "step_failed")
    assert (failure["error_code"], failure["attempt"]) == (sqlstate, 1)
    await shop.cure("record_payment")
    await shop.turn_clock(LONG)
    (again,) = await shop.advance()
    assert again["attempt"] == 2
    await shop.settle([again], APPROVED)
    assert await shop.order_status(orders[0]) == "fulfilled"


@pytest.mark.parametrize("outcomes", [0, 2])
async def test_a_step_answers_for_each_saga_once(shop: Shop, outcomes: int) -> None:
    """A step that forgets a saga, or answers for it twice, fails; it is no silent success."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.run(
        "create or replace function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language sql as $$"
        " select array_agg((outcome_for_all('done', array[p_saga_ids[1]]))[1])"
        f" from generate_series(1, {outcomes})$$"
    )
    assert await shop.advance() == []
    failure = await shop.event(order, "step_failed")
    assert failure["error_code"] == "XX000"
    assert f"{outcomes} outcomes for 1 sagas" in failure["message"]


async def test_two_outcomes_of_one_saga_are_none_of_another(shop: Shop) -> None:
    """As many outcomes as sagas aren't enough: a saga that was forgotten is told so."""
    product = await shop.product(on_hand=2)
    orders = [await shop.order((product, 1)) for _ in range(2)]
    await shop.run(
        "create or replace function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language sql as $$"
        " select outcome_for_all('done', array[p_saga_ids[1]])"
        " || case when cardinality(p_saga_ids) > 1"
        " then outcome_for_all('done', array[p_saga_ids[1]]) end$$"
    )
    # Together they are refused, in halves each has its outcome.
    assert {each["saga_id"] for each in await shop.advance()} == {str(each) for each in orders}


DEFECTS = ["P0001", "P0004", "42703", "42501", "0A000", "XX000"]


@pytest.mark.parametrize("sqlstate", DEFECTS)
async def test_a_defect_sets_a_saga_aside_as_it_went(shop: Shop, sqlstate: str) -> None:
    """It is stuck forward at once, is told of with its step, and ships once it is mended."""
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(3)]
    await shop.poison("reserve_stock", orders[1], sqlstate=sqlstate)
    async with shop.acting_as("darkpearl_listener"):
        rows = await shop.rows("select * from advance()")
    told = [row for row in rows if row["saga_id"]]
    assert [(row["saga_id"], row["error_code"], row["step_name"]) for row in told] == [
        (orders[1], sqlstate, "reserve_stock")
    ]
    assert [await shop.order_status(order) for order in orders] == [
        "payment_processing", "pending", "payment_processing",
    ]  # fmt: skip
    assert (await shop.events(orders[1]))[1:] == ["step_failed reserve_stock", "saga_stuck"]
    await shop.cure("reserve_stock")
    await shop.run("select retry_saga(%s, 'mended')", orders[1])
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(orders[1]) == "fulfilled"


async def test_a_defect_in_an_undo_sets_a_saga_aside_on_its_way_back(shop: Shop) -> None:
    """It is stuck in its undo at once, and retried it goes on with that undo."""
    product = await shop.product(on_hand=1)
    order = await shop.order((product, 1))
    await shop.poison("release_stock", order, sqlstate="P0001")
    await shop.settle(await shop.advance(), DECLINED)
    await shop.advance()
    assert (await shop.saga(order))["status"] == "stuck"
    assert (await shop.events(order)).count("step_failed release_stock") == 1
    await shop.cure("release_stock")
    await shop.run("select retry_saga(%s, 'mended')", order)
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert await shop.stock(product) == (1, 0)


async def test_a_defect_where_an_answer_is_taken_is_told(shop: Shop) -> None:
    """settle() says which saga it set aside, at which step, beside the requests of others."""
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(3)]
    requests = await shop.advance()
    await shop.poison("record_payment", orders[0], sqlstate="42P01")
    rows = await shop.bring([each | {"answer": APPROVED} for each in requests])
    assert [(row["saga_id"], row["error_code"], row["step_name"]) for row in rows] == [
        (orders[0], "42P01", "process_payment")
    ]
    assert await shop.values("select id from stuck_sagas") == [orders[0]]
    assert (await shop.statuses())["fulfilled"] == 2


@pytest.mark.parametrize("why", ["declined", "out of stock", "tries used up"])
async def test_a_trigger_of_the_shops_own_stops_its_own_order_alone(shop: Shop, why: str) -> None:
    """One that raises when an order is cancelled leaves that saga stuck, and the others done.

    From where it stands retry_saga() leads on, once the trigger is mended.
    """
    product = await shop.product(on_hand=9)
    bad = await shop.order((product, 10 if why == "out of stock" else 1))
    await shop.run(
        f"""
        create function not_today() returns trigger language plpgsql as $$
        begin
            if new.id = '{bad}' and new.status = 'cancelled' then
                raise exception 'not today';
            end if;
            return new;
        end $$;
        create trigger not_today before update on orders
        for each row execute function not_today();
        """
    )
    elsewhere = await shop.product()
    await shop.receive(elsewhere, 3, shop.rotterdam)
    others = [await shop.order((elsewhere, 1), warehouse=shop.rotterdam) for _ in range(3)]
    if why == "tries used up":
        await shop.give_up_after(0)
        await shop.poison("reserve_stock", bad)
    requests = await shop.advance()
    await shop.settle([each for each in requests if each["saga_id"] == str(bad)], DECLINED)
    await shop.settle([each for each in requests if each["saga_id"] != str(bad)], APPROVED)
    for _ in range(3):
        await shop.advance()
        await shop.turn_clock(LONG)
    assert [await shop.order_status(order) for order in others] == ["fulfilled"] * 3
    saga = await shop.saga(bad)
    assert saga["status"] == "stuck"
    assert saga["position"] >= 1
    assert await shop.values("select id from stuck_sagas") == [bad]
    await shop.run("drop trigger not_today on orders")
    await shop.run("select retry_saga(%s, 'mended')", bad)
    await shop.advance()
    assert await shop.order_status(bad) == "cancelled"
    assert await shop.stock(product) == (9, 0)


@pytest.mark.parametrize("sqlstate", ["40P01", "53200", "55P03", "57014"])
async def test_a_saga_alone_that_meets_an_outage_is_put_off(shop: Shop, sqlstate: str) -> None:
    """It costs no attempt, says why, and others that are claimed after it have their turn."""
    product = await shop.product(on_hand=9)
    bad, sound = [await shop.order((product, 1)) for _ in range(2)]
    await shop.poison("reserve_stock", bad, sqlstate=sqlstate)
    for _ in range(8):
        assert await shop.advance(1) == []
        await shop.turn_clock(1.5)
        saga = await shop.saga(bad)
        assert (saga["status"], saga["attempts"]) == ("running", 0)
        if await shop.order_status(sound) != "pending":
            break
        await shop.settle(await shop.advance(1), APPROVED)
    assert await shop.order_status(sound) == "fulfilled"
    event = await shop.row("select * from saga_events where event_type = 'step_deferred' limit 1")
    assert (event["saga_id"], event["error_code"], event["message"]) == (bad, sqlstate, "poison")
    await shop.cure("reserve_stock")
    await shop.turn_clock(LONG)
    await shop.settle(await shop.advance(1), APPROVED)
    assert await shop.order_status(bad) == "fulfilled"


async def test_an_outage_that_is_one_saga_s_own_has_an_end(shop: Shop) -> None:
    """Put off for as long as it may be, it is stuck the way it went, and a retry goes on."""
    await shop.run("update step_settings set give_up_seconds = 0, stuck_seconds = 5")
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order, sqlstate="55P03")
    tries = 0
    while (await shop.saga(order))["status"] == "running":
        tries += 1
        assert tries < 20
        await shop.advance(1)
        await shop.turn_clock(2)
    assert tries > 2
    assert (await shop.saga(order))["status"] == "stuck"
    assert (await shop.row("select last_error_code from stuck_sagas"))["last_error_code"] == "55P03"
    await shop.cure("reserve_stock")
    await shop.run("select retry_saga(%s, 'the lock is gone')", order)
    await shop.settle(await shop.advance(1), APPROVED)
    assert await shop.order_status(order) == "fulfilled"


@pytest.mark.parametrize("sqlstate", ["55P03", "57014"])
async def test_an_answer_that_meets_an_outage_alone_is_looked_up_later(
    shop: Shop, sqlstate: str
) -> None:
    """What was asked counts as asked: the next request is a later attempt under the same key."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    await shop.poison("record_payment", order, sqlstate=sqlstate)
    await shop.settle(requests, APPROVED)
    await shop.cure("record_payment")
    await shop.turn_clock(LONG)
    (again,) = await shop.advance()
    assert again["attempt"] == 2
    await shop.settle([again], APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_a_time_limit_that_strikes_one_saga_strikes_no_other(shop: Shop) -> None:
    """A step that waits for a lock without end is put off when the role's time is over."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.run(
        "create or replace function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language plpgsql as $$ begin loop end loop; end $$"
    )
    await shop.run("set statement_timeout = '50ms'")
    assert await shop.advance(1) == []
    await shop.run("set statement_timeout = 0")
    event = await shop.event(order, "step_deferred")
    assert event["error_code"] == "57014"
    assert (await shop.saga(order))["attempts"] == 0
