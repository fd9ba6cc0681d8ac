"""routines/67_batches.sql: what an operator does to all that a filter finds."""

import json
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection
from shop import APPROVED, UNKNOWN, Row, Shop

ACTIONS = ("retry_sagas", "skip_steps", "cancel_orders", "resume_sagas", "ack_gateway_events")
DEFECT = "P0001"
"""An error that people mend: whom it meets is stuck."""


async def ask(shop: Shop, action: str, found: Row, reason: str | None = None, **more: Any) -> Row:
    """Staff preview a batch or, with p_dry_run false, start it."""
    named = {"p_filter": json.dumps(found, default=str), "p_reason": reason, **more}
    arguments = ", ".join(f"{name} => %s" for name in named)
    async with shop.acting_as("service_role"):
        return await shop.row(f"select * from {action}({arguments})", *named.values())


async def start(shop: Shop, action: str, found: Row, **more: Any) -> UUID:
    """Staff start a batch; its id."""
    return (await ask(shop, action, found, "gateway is back", p_dry_run=False, **more))["batch_id"]


async def bite(shop: Shop, limit: int = 50) -> list[Row]:
    """The listener does one bite, as soon as one is due."""
    await shop.turn_clock(10)
    async with shop.acting_as("darkpearl_listener"):
        return await shop.rows("select * from work_batches(%s)", limit)


async def work_off(shop: Shop) -> list[int]:
    """The listener works batches off; how many items each bite had."""
    bites = []
    while rows := await bite(shop):
        bites.append(rows[0]["worked"])
    return bites


async def results(shop: Shop, batch: UUID) -> list[tuple[Any, ...]]:
    """What became of each item, in order."""
    rows = await shop.rows(
        "select saga_id, result::text, error_code from batch_items where batch_id = %s order by n",
        batch,
    )
    return [tuple(row.values()) for row in rows]


async def stuck_orders(shop: Shop, count: int, *, price: str = "10") -> list[UUID]:
    """Orders whose stock can't be reserved for a defect, in the order in which they were placed."""
    product = await shop.product(price, on_hand=count)
    orders = [await shop.order((product, 1)) for _ in range(count)]
    await shop.poison("reserve_stock", *orders, sqlstate=DEFECT)
    await shop.advance()
    await shop.cure("reserve_stock")
    assert await shop.value("select count(*) from sagas where status = 'stuck'") == count
    return orders


async def test_a_preview_counts_and_changes_nothing(shop: Shop) -> None:
    """How many and how much money in each currency; no batch, no event, no action is written."""
    await stuck_orders(shop, 3)
    euros = await shop.product("7", on_hand=1, currency="EUR")
    order = await shop.order((euros, 1), p_currency="EUR")
    await shop.poison("reserve_stock", order, sqlstate=DEFECT)
    await shop.advance()
    await shop.cure("reserve_stock")
    seen = await ask(shop, "retry_sagas", {})
    assert seen == {
        "batch_id": None,
        "total": 4,
        "amounts": {"USD": 30, "EUR": 7},
        "has_more": False,
    }
    for table in ("batches", "batch_items", "action_log"):
        assert await shop.value(f"select count(*) from {table}") == 0
    assert await bite(shop) == []
    assert await shop.value("select count(*) from sagas where status = 'stuck'") == 4


async def test_a_batch_retries_what_it_found(shop: Shop) -> None:
    """Each saga is tried again, by who started it and why; each has its result, all are counted."""
    orders = await stuck_orders(shop, 12)
    batch = await start(shop, "retry_sagas", {"step": "reserve_stock"}, p_pace=100)
    assert await work_off(shop) == [5, 5, 2]  # a twentieth of a second's worth at a time
    assert await results(shop, batch) == [(order, "done", None) for order in orders]
    row = await shop.row("select * from batch_overview")
    assert (row["total"], row["done"], row["failed"], row["left_to_do"]) == (12, 12, 0, 0)
    assert (row["state"], row["reason"], row["actor"]) == (
        "finished",
        "gateway is back",
        await shop.value("select session_user"),
    )
    for order in orders:
        event = await shop.event(order, "retried")
        assert (event["message"], event["request_id"]) == ("gateway is back", str(batch))
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.statuses() == {"fulfilled": 12}


async def test_what_a_batch_does_is_done_by_who_started_it(shop: Shop, log_in: Any) -> None:
    """Events and action_log name the operator, though a listener's login does it; after it, not."""
    (order,) = await stuck_orders(shop, 1)
    api: AsyncConnection[Row] = await log_in("darkpearl_api")
    async with api.transaction():
        await api.execute("set local role service_role")
        await api.execute("select set_config('request.jwt.claims', %s, true)", ['{"sub": "ann"}'])
        await api.execute("select retry_sagas('{}', 'mended', false)")
    listener: AsyncConnection[Row] = await log_in("darkpearl_listener")
    async with listener.transaction():
        await listener.execute("select work_batches()")
        cursor = await listener.execute("select current_actor() as actor")
        assert await cursor.fetchone() == {"actor": "darkpearl_listener"}
    assert (await shop.event(order, "retried"))["actor"] == "ann"
    assert await shop.values("select distinct actor from action_log") == ["ann"]


async def test_nobody_but_a_listener_acts_for_another(shop: Shop, log_in: Any) -> None:
    """The setting by which a listener says for whom it acts says nothing for anybody else."""
    for role in ("darkpearl_app", "darkpearl_api", "darkpearl_reader"):
        connection: AsyncConnection[Row] = await log_in(role)
        await connection.execute("set darkpearl.on_behalf_of = 'ann'")
        cursor = await connection.execute("select darkpearl.current_actor() as actor")
        assert await cursor.fetchone() == {"actor": role}
    assert await shop.value("select current_actor()") != "ann"


async def test_one_that_fails_is_its_own_trouble(shop: Shop) -> None:
    """Of a batch in which one can't be retried any more the others are; that one says why."""
    orders = await stuck_orders(shop, 3)
    batch = await start(shop, "retry_sagas", {})
    async with shop.acting_as("service_role"):
        await shop.run("select retry_saga(%s, 'by hand')", orders[1])
    await work_off(shop)
    assert await results(shop, batch) == [
        (orders[0], "done", None),
        (orders[1], "failed", "DP008"),
        (orders[2], "done", None),
    ]
    row = await shop.row("select done, failed, finished_at is not null as ended from batches")
    assert row == {"done": 2, "failed": 1, "ended": True}
    assert (await shop.events(orders[1])).count("retried reserve_stock") == 1


async def test_one_that_somebody_holds_comes_last(shop: Shop, connect: Any) -> None:
    """A saga that a session has locked keeps nobody waiting: it is tried again after the others."""
    orders = await stuck_orders(shop, 3)
    batch = await start(shop, "retry_sagas", {})
    holder = await connect()
    async with holder.transaction():
        await holder.execute("select from sagas where id = %s for update", [orders[0]])
        assert [row["worked"] for row in await bite(shop)] == [3]
        assert await shop.values("select saga_id from batch_items where result is null") == [
            orders[0]
        ]
    await work_off(shop)
    assert await results(shop, batch) == [
        (order, "done", None) for order in (*orders[1:], orders[0])
    ]


async def test_one_that_stays_held_fails_in_the_end(shop: Shop, connect: Any) -> None:
    """After ten tries a saga that is still locked has failed by that, and the batch ends."""
    (order,) = await stuck_orders(shop, 1)
    batch = await start(shop, "retry_sagas", {})
    holder = await connect()
    async with holder.transaction():
        await holder.execute("select from sagas where id = %s for update", [order])
        assert await work_off(shop) == [1] * 11
    assert await results(shop, batch) == [(order, "failed", "55P03")]


async def test_a_pace_is_kept(shop: Shop) -> None:
    """After a bite the next is due when the pace says so, and not before, whoever asks."""
    await stuck_orders(shop, 3)
    await start(shop, "retry_sagas", {}, p_pace=1)
    (first,) = await bite(shop)
    assert first["worked"] == 1
    assert 0.5 < first["wait_seconds"] <= 1
    async with shop.acting_as("darkpearl_listener"):
        (early,) = await shop.rows("select * from work_batches()")
    assert (early["worked"], 0 < early["wait_seconds"] <= 1) == (0, True)


async def test_a_pace_is_kept_by_who_comes_late(shop: Shop) -> None:
    """A bite has what has become due since the last was: a fifth of a second's worth at most.

    After an absence it begins anew, so that nothing is let go in a heap.
    """
    await stuck_orders(shop, 90)
    moment = await shop.value("select clock()")
    bites = []
    await at(shop, moment)
    await start(shop, "retry_sagas", {}, p_pace=100)
    for seconds in (0, 0.05, 0.25, 1.25, 60):
        await at(shop, moment + timedelta(seconds=seconds))
        async with shop.acting_as("darkpearl_listener"):
            bites.append(await shop.value("select worked from work_batches()"))
    assert bites == [5, 5, 20, 25, 5]


async def at(shop: Shop, moment: datetime) -> None:
    """The database's clock stands there."""
    await shop.run(
        "create or replace function clock() returns timestamptz language sql volatile parallel safe"
        f" return timestamptz '{moment.isoformat()}'"
    )


async def test_a_clock_that_is_set_back_holds_nothing_up(shop: Shop) -> None:
    """A batch whose next bite lies a day ahead goes on at once: the clock was set back."""
    await stuck_orders(shop, 2)
    await start(shop, "retry_sagas", {}, p_pace=1)
    await shop.turn_clock(86400)
    await bite(shop)
    await shop.turn_clock(-86400)
    assert [row["worked"] for row in await bite(shop)] == [1]


async def test_two_listeners_share_no_item(shop: Shop, connect: Any) -> None:
    """While one is at a batch another finds nothing to do; none is done twice."""
    await stuck_orders(shop, 2)
    await start(shop, "retry_sagas", {})
    other = await connect("darkpearl_listener")
    async with other.transaction():
        cursor = await other.execute("select worked from work_batches(1)")
        assert await cursor.fetchone() == (1,)
        assert await bite(shop) == []
    assert await work_off(shop) == [1]
    assert await shop.value("select count(*) from saga_events where event_type = 'retried'") == 2


async def test_a_bite_that_is_rolled_back_is_done_again(shop: Shop, connect: Any) -> None:
    """Who is killed in the middle of a bite has done nothing; another does it, once."""
    await stuck_orders(shop, 4)
    batch = await start(shop, "retry_sagas", {})
    await bite(shop, 1)
    victim = await connect("darkpearl_listener")
    await victim.execute("begin")
    await victim.execute("select work_batches(2)")
    await shop.run("select pg_terminate_backend(%s, 10000)", victim.info.backend_pid)
    await victim.close()
    await work_off(shop)
    assert [result for _, result, _ in await results(shop, batch)] == ["done"] * 4
    assert await shop.value("select count(*) from saga_events where event_type = 'retried'") == 4


async def test_a_batch_can_be_stopped(shop: Shop) -> None:
    """What it has done stays done, the rest is left; who and why are in action_log; once."""
    await stuck_orders(shop, 3)
    batch = await start(shop, "retry_sagas", {})
    await bite(shop, 1)
    async with shop.acting_as("service_role"):
        with shop.refused("DP015"):
            await shop.run("select stop_batch(%s, ' ')", batch)
        await shop.run("select stop_batch(%s, 'wrong filter')", batch)
        with shop.refused("DP015"):
            await shop.run("select stop_batch(%s, 'again')", batch)
        with shop.refused("DP010"):
            await shop.run("select stop_batch(%s, 'which')", uuid4())
    assert await bite(shop) == []
    assert await shop.value("select state from batch_overview") == "stopped"
    assert [result for _, result, _ in await results(shop, batch)] == ["done", None, None]
    assert "wrong filter" in await shop.values("select reason from action_log")


async def test_what_is_in_hand_is_not_found_again(shop: Shop) -> None:
    """A second batch of the same action takes what the first hasn't; once that ends, it may."""
    orders = await stuck_orders(shop, 2)
    await start(shop, "retry_sagas", {"ids": [orders[0]]})
    assert (await ask(shop, "retry_sagas", {}))["total"] == 1
    assert (await ask(shop, "cancel_orders", {}))["total"] == 2
    await work_off(shop)
    assert (await ask(shop, "retry_sagas", {}))["total"] == 1


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_reason_and_a_sane_pace_are_needed(shop: Shop, action: str) -> None:
    """A batch without a reason, or with a pace that is none, isn't started; a preview is free."""
    for more in (
        {},
        {"p_reason": " "},
        {"p_reason": "x", "p_pace": 0},
        {"p_reason": "x", "p_pace": 1001},
    ):
        with shop.refused("DP015"):
            await shop.run(
                f"select {action}(p_filter => '{{}}', p_dry_run => false"
                + "".join(f", {name} => %s" for name in more)
                + ")",
                *more.values(),
            )
    assert (await ask(shop, action, {}))["total"] == 0
    assert await shop.value("select count(*) from batches") == 0


@pytest.mark.parametrize(
    ("action", "found"),
    [
        ("retry_sagas", None),
        ("retry_sagas", []),
        ("retry_sagas", {"stepp": "reserve_stock"}),
        ("retry_sagas", {"gateway": "mock"}),
        ("ack_gateway_events", {"step": "x"}),
        ("retry_sagas", {"step": None}),
        ("retry_sagas", {"step": {"a": 1}}),
        ("retry_sagas", {"ids": ["nonsense"]}),
        ("retry_sagas", {"status": "stucked"}),
        ("retry_sagas", {"created_after": "yesterday-ish"}),
        ("retry_sagas", {"created_after": "2026-19-39"}),
        ("retry_sagas", {"created_after": ["2026-01-01"]}),
    ],
)
async def test_a_filter_that_makes_no_sense_is_refused(shop: Shop, action: str, found: Any) -> None:
    """An unknown key or a value that is none finds nothing and everything: it is refused."""
    with shop.refused("DP015"):
        await shop.run(f"select {action}(%s)", None if found is None else json.dumps(found))


async def test_filters_narrow(shop: Shop) -> None:
    """Each key finds what it names and leaves what it doesn't, alone and with others."""
    mine, other = await stuck_orders(shop, 2)
    await shop.run("alter table sagas disable trigger user")
    await shop.run("update sagas set created_at = '2020-02-02' where id = %s", mine)
    await shop.run("alter table sagas enable trigger user")
    lisbon = await shop.value("select code from warehouses where id = %s", shop.lisbon)
    for found, count in [
        ({"ids": [mine]}, 1),
        ({"ids": [mine, other, uuid4()]}, 2),
        ({"saga_type": "order_fulfilment"}, 2),
        ({"saga_type": ["refund", "order_fulfilment"]}, 2),
        ({"saga_type": "refund"}, 0),
        ({"step": "reserve_stock"}, 2),
        ({"step": "process_payment"}, 0),
        ({"status": "stuck"}, 2),
        ({"status": "running"}, 0),
        ({"error_code": DEFECT}, 2),
        ({"error_code": ["DP014", "22012"]}, 0),
        ({"cause": "poison"}, 2),
        ({"cause": "antidote"}, 0),
        ({"warehouse": lisbon}, 2),
        ({"warehouse": str(shop.lisbon)}, 2),
        ({"warehouse": "RTM"}, 0),
        ({"customer": "ann"}, 0),
        ({"order_status": "pending"}, 2),
        ({"order_status": ["paid"]}, 0),
        ({"created_before": "2021-01-01"}, 1),
        ({"created_after": "2021-01-01T00:00:00Z"}, 1),
        ({"created_before": "2021-01-01", "step": "process_payment"}, 0),
    ]:
        assert (await ask(shop, "retry_sagas", found))["total"] == count, found


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("Saga 0198c0de-1111-7000-8000-00000000000a is stuck.", "Saga … is stuck."),
        ("refund re_1Abc2 of ch_9x: 12.50 USD", "refund … of …: … USD"),
        ("process_payment: no answer in 30 s", "process_payment: no answer in … s"),
        ("poison", "poison"),
        (None, None),
    ],
)
async def test_causes_have_no_ids_in_them(shop: Shop, message: str, cause: str) -> None:
    """What differs from one to the next is left out; what doesn't stays."""
    assert await shop.value("select cause_of(%s)", message) == cause


async def test_skip_steps_takes_them_for_done(shop: Shop) -> None:
    """What stuck sagas asked of the gateway counts as answered; steps of ours are refused."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.give_up_after(0)
    await shop.settle(await shop.settle(await shop.advance(), UNKNOWN), UNKNOWN)
    assert (await shop.saga(order))["status"] == "stuck"
    (ours,) = await stuck_orders_beside(shop)
    batch = await start(shop, "skip_steps", {})
    await work_off(shop)
    assert sorted(await results(shop, batch)) == sorted(
        [(order, "done", None), (ours, "failed", "DP018")]
    )
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"


async def stuck_orders_beside(shop: Shop) -> list[UUID]:
    """One more order that is stuck at reserving."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order, sqlstate=DEFECT)
    await shop.advance()
    await shop.cure("reserve_stock")
    return [order]


async def test_cancel_orders_stops_them_wherever_they_are(shop: Shop) -> None:
    """Those on their way are cancelled, those stuck turned back, and no others found."""
    product = await shop.product(on_hand=9)
    ended = await shop.fulfilled((product, 1))
    (stuck,) = await stuck_orders_beside(shop)
    waiting = await shop.order((product, 1))
    requests = await shop.advance()
    fresh = await shop.order((product, 1))
    preview = await ask(shop, "cancel_orders", {})
    assert (preview["total"], preview["amounts"]) == (3, {"USD": 30})
    batch = await start(shop, "cancel_orders", {})
    await work_off(shop)
    assert {saga for saga, result, _ in await results(shop, batch) if result == "done"} == {
        stuck,
        waiting,
        fresh,
    }
    await shop.advance()
    voids = await shop.settle(requests, APPROVED)
    await shop.settle(voids, APPROVED)
    await shop.advance()
    assert await shop.statuses() == {"fulfilled": 1, "cancelled": 3}
    assert await shop.order_status(ended) == "fulfilled"


async def test_resume_sagas_cuts_a_backoff_short(shop: Shop) -> None:
    """What waits for its next try has it now, all attempts anew; what waits for an answer not."""
    product = await shop.product(on_hand=5)
    failing = await shop.order((product, 1))
    await shop.poison("reserve_stock", failing)
    await shop.advance()
    saga = await shop.saga(failing)
    assert (saga["status"], saga["attempts"]) == ("running", 1)
    asked = await shop.order((product, 1))
    requests = await shop.advance()
    assert [request["saga_id"] for request in requests] == [str(asked)]
    await shop.cure("reserve_stock")
    preview = await ask(shop, "resume_sagas", {})
    assert preview["total"] == 1
    with shop.refused("DP044"):
        await shop.run("select resume_saga(%s, 'gateway is back')", asked)
    with shop.refused("DP010"):
        await shop.run("select resume_saga(%s, 'gateway is back')", uuid4())
    with shop.refused("DP015"):
        await shop.run("select resume_saga(%s, '')", failing)
    await start(shop, "resume_sagas", {})
    async with shop.acting_as("darkpearl_listener"):
        await shop.run("select work_batches()")
    saga = await shop.saga(failing)
    assert saga["attempts"] == 0
    requests += await shop.advance()
    assert {request["saga_id"] for request in requests} == {str(asked), str(failing)}
    assert await shop.values("select action from action_log where subject = %s", str(failing)) == [
        "resume_saga"
    ]
    await shop.settle(requests, APPROVED)
    assert await shop.statuses() == {"fulfilled": 2}


async def test_a_void_that_backs_off_can_be_resumed(shop: Shop) -> None:
    """On its way back too: a void that failed is asked again at once, one that is out is not."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    requests = await shop.advance()
    await shop.cancel(order)
    (void,) = await shop.settle(requests, APPROVED)
    assert (await ask(shop, "resume_sagas", {}))["total"] == 0
    await shop.settle([void], UNKNOWN)
    assert (await shop.saga(order))["status"] == "compensating"
    assert (await ask(shop, "resume_sagas", {}))["total"] == 1
    async with shop.acting_as("service_role"):
        await shop.run("select resume_saga(%s, 'gateway is back')", order)
    (again,) = await shop.advance()
    await shop.settle([again], APPROVED)
    assert await shop.order_status(order) == "cancelled"


async def test_ack_gateway_events_acknowledges_them(shop: Shop) -> None:
    """Unmatched events that a filter finds are acknowledged, with the money that they tell of."""
    money = {**APPROVED, "amount": "12.50", "currency": "usd"}
    for number in range(3):
        assert await shop.told("none:of_ours", money, f"evt_{number}") == "unmatched"
    preview = await ask(shop, "ack_gateway_events", {"gateway": "mock", "outcome": "approved"})
    assert (preview["total"], preview["amounts"]) == (3, {"USD": 37.5})
    assert (await ask(shop, "ack_gateway_events", {"gateway": "stripe"}))["total"] == 0
    await start(shop, "ack_gateway_events", {"ids": ["evt_0", "evt_2"]})
    await work_off(shop)
    rows = await shop.rows("select event_id, disposition::text from gateway_events order by 1")
    assert [row["disposition"] for row in rows] == ["acknowledged", "unmatched", "acknowledged"]


@pytest.mark.parametrize("action", ACTIONS)
async def test_only_staff_do_many_at_once(shop: Shop, action: str) -> None:
    """Not even a preview is for anybody else."""
    for role in ("darkpearl_app", "darkpearl_reader", "authenticated", "darkpearl_listener"):
        async with shop.acting_as(role):
            with shop.refused("42501"):
                await shop.run(f"select {action}('{{}}')")


async def test_more_than_the_most_is_said(shop: Shop) -> None:
    """A batch takes the oldest 100,000, and says that there are more; the next takes those."""
    await shop.run(
        "insert into gateway_events (gateway, event_id, answer, disposition)"
        " select 'mock', n, '{\"outcome\": \"approved\"}', 'unmatched'"
        " from generate_series(1, 100001) as n"
    )
    seen = await ask(shop, "ack_gateway_events", {})
    assert (seen["total"], seen["has_more"]) == (100_000, True)
    await start(shop, "ack_gateway_events", {})
    left = await ask(shop, "ack_gateway_events", {})
    assert (left["total"], left["has_more"]) == (1, False)
