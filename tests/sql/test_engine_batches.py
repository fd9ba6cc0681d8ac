"""routines/55_engine.sql: limits and cost of a batch, other plans."""

from collections.abc import Awaitable, Callable
from operator import sub
from typing import Any
from uuid import UUID

import pytest
from shop import APPROVED, LONG, UNKNOWN, Shop

# Limits and warehouses.


async def test_advance_takes_no_more_than_its_limit(shop: Shop) -> None:
    """A limit of n claims n sagas, those first that have been ready for longest."""
    product = await shop.product(on_hand=9)
    orders = []
    for _ in range(5):
        orders.append(await shop.order((product, 1)))
        await shop.turn_clock(1)
    await shop.run("update sagas set ready_at = clock() - interval '1 h' where id = %s", orders[4])
    claimed = [each["saga_id"] for each in await shop.advance(2)]
    assert shop.claimed == 2
    assert set(claimed) == {str(orders[4]), str(orders[0])}
    assert len(await shop.advance(2)) == 2
    assert len(await shop.advance(2)) == 1
    assert await shop.advance(2) == []


@pytest.mark.parametrize("limit", [0, -1, 10001, None])
async def test_a_limit_makes_sense(shop: Shop, limit: int | None) -> None:
    """A batch has between 1 and 10,000 sagas."""
    with shop.refused("DP015"):
        await shop.run("select * from advance(%s)", limit)


async def test_an_engine_call_keeps_to_its_warehouses(shop: Shop) -> None:
    """advance and settle touch sagas of the warehouses they are called for, and no others."""
    product = await shop.product(on_hand=1)
    await shop.receive(product, 1, shop.rotterdam)
    here = await shop.order((product, 1))
    there = await shop.order((product, 1), warehouse=shop.rotterdam)
    (request,) = await shop.advance(500, [shop.lisbon])
    assert request["saga_id"] == str(here)
    assert (await shop.saga(there))["status"] == "running"
    await shop.settle([request], APPROVED, [shop.rotterdam])
    assert shop.stale == [(here, "DP009")]
    assert (await shop.saga(here))["status"] == "waiting"
    await shop.settle([request], APPROVED, [shop.lisbon, shop.rotterdam])
    assert await shop.order_status(here) == "fulfilled"
    assert await shop.order_status(there) == "pending"


async def test_sagas_of_one_batch_may_stand_anywhere(shop: Shop) -> None:
    """New ones, retried ones, paid ones and returning ones go on together in one call."""
    product = await shop.product(on_hand=9)
    retried, voided, paid, lost = [await shop.order((product, 1)) for _ in range(4)]
    requests = {UUID(each["saga_id"]): each for each in await shop.advance()}
    await shop.settle([requests[retried], requests[voided]], UNKNOWN)
    await shop.poison("fulfill_order", paid)
    await shop.settle([requests[paid]], APPROVED)
    await shop.cure("fulfill_order")
    await shop.cancel(voided)
    fresh = await shop.order((product, 1))
    free = await shop.order((await shop.product("0", on_hand=1), 1))
    await shop.turn_clock(LONG)
    names = {UUID(each["saga_id"]): each["step_name"] for each in await shop.advance()}
    assert names == {
        retried: "process_payment",
        voided: "void_payment",
        fresh: "process_payment",
    }
    assert await shop.order_status(paid) == await shop.order_status(free) == "fulfilled"
    assert (await shop.saga(lost))["status"] == "running"


# What a batch costs.


async def test_a_batch_is_two_transactions(shop: Shop) -> None:
    """Fifty orders go from placed to fulfilled in one advance and one settle, each atomic."""
    product = await shop.product(on_hand=100)
    for _ in range(50):
        await shop.order((product, 2))
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.value("select count(*) from orders where status = 'fulfilled'") == 50
    writers = "select count(distinct xmin::text) from {} where {}"
    assert await shop.value(writers.format("saga_events", "event_type <> 'saga_started'")) == 2
    assert await shop.value(writers.format("stock_movements", "movement_type <> 'receive'")) == 2
    for table in ("sagas", "orders", "payments", "inventory"):
        assert await shop.value(writers.format(table, "true")) == 1, table


async def test_a_pass_writes_each_row_once(shop: Shop) -> None:
    """However many steps are taken in one call, sagas, orders and shelves are updated once each."""
    products = [await shop.product("0", on_hand=100), await shop.product("1", on_hand=100)]
    for _ in range(10):
        await shop.order((products[1], 1), (products[1], 2), (products[0], 1))
    names = ("sagas", "orders", "payments", "inventory")

    async def updates() -> list[int]:
        return await shop.values(
            "select pg_stat_get_xact_tuples_updated(t::regclass)"
            " from unnest(%s::text[]) with ordinality as t (t, n) order by n",
            list(names),
        )

    async def written_by(call: Callable[[], Awaitable[Any]]) -> dict[str, int]:
        async with shop.connection.transaction():
            before = await updates()
            await call()
            return dict(zip(names, map(sub, await updates(), before), strict=True))

    requests: list[Any] = []

    async def advance() -> None:
        requests.extend(await shop.advance())

    assert await written_by(advance) == {"sagas": 10, "orders": 10, "payments": 0, "inventory": 2}
    settled = await written_by(lambda: shop.settle(requests, APPROVED))
    assert settled == {"sagas": 10, "orders": 10, "payments": 10, "inventory": 2}


async def test_nothing_to_do_writes_nothing(shop: Shop) -> None:
    """A call that finds nothing ready leaves no transaction in the log."""
    async with shop.connection.transaction():
        assert await shop.advance() == []
        assert await shop.settle([], APPROVED) == []
        assert await shop.value("select pg_current_xact_id_if_assigned()") is None


# Another plan.


async def test_the_engine_runs_any_plan(shop: Shop) -> None:
    """A saga type is a plan and its functions; nothing of the engine knows about it."""
    await shop.run(
        """
        create table toys (saga_id uuid primary key, state text);
        grant all on toys to darkpearl_owner;
        create function make_toy(p_warehouse_ids uuid[], p_saga_ids uuid[])
        returns outcome_group[] language plpgsql set search_path = darkpearl as $$
        begin
            insert into toys select unnest(p_saga_ids), 'made';
            return outcome_for_all('done', p_saga_ids);
        end $$;
        create function break_toy(p_warehouse_ids uuid[], p_saga_ids uuid[])
        returns outcome_group[] language plpgsql set search_path = darkpearl as $$
        begin
            update toys set state = 'broken' where saga_id = any(p_saga_ids);
            return outcome_for_all('done', p_saga_ids);
        end $$;
        create function give_toy(p_warehouse_ids uuid[], p_saga_ids uuid[])
        returns outcome_group[] language plpgsql set search_path = darkpearl as $$
        begin
            return group_outcomes(array(
                select row(
                    t.saga_id,
                    case t.n when 1 then 'refused' else 'done' end,
                    'TOY01', 'nobody wants it', null, null
                )::step_outcome
                from unnest(p_saga_ids) with ordinality as t (saga_id, n)
            ));
        end $$;
        select define_plan(
            'toy',
            step('make_toy', p_function => 'make_toy', p_undo => 'break_toy',
                p_undo_function => 'break_toy'),
            step('give_toy', p_function => 'give_toy')
        );
        """
    )
    order = await shop.order((await shop.product(on_hand=1), 1))
    sagas = sorted(
        await shop.values(
            "with toy as materialized (select new_id() as id from generate_series(1, 3))"
            " select id from toy, lateral start_saga('toy', id, %s)",
            shop.lisbon,
        )
    )
    (request,) = await shop.advance()
    assert request["saga_id"] == str(order)
    assert [(await shop.saga(saga))["status"] for saga in sagas] == [
        "compensated",
        "completed",
        "completed",
    ]
    assert await shop.events(sagas[0]) == [
        "saga_started",
        "step_completed make_toy",
        "step_failed give_toy",
        "compensation_started",
        "step_compensated break_toy",
        "saga_compensated",
    ]
    states = await shop.values("select state from toys order by saga_id")
    assert states == ["broken", "made", "made"]


async def test_a_saga_without_a_plan_is_stuck(shop: Shop) -> None:
    """A saga whose type or step isn't in the plan waits for a person, and stops nobody."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    lost = await shop.value(
        "insert into sagas (id, warehouse_id, saga_type, plan_version)"
        " values (new_id(), %s, 'unheard of', 1) returning id",
        shop.lisbon,
    )
    assert len(await shop.advance()) == 1
    assert (await shop.saga(lost))["status"] == "stuck"
    assert await shop.events(lost) == ["step_failed", "saga_stuck"]
    assert (await shop.saga(order))["status"] == "waiting"


async def test_an_order_that_cant_be_written_is_stuck_in_the_end(shop: Shop) -> None:
    """When the order itself refuses the saga's status, a person is called and others go on."""
    await shop.give_up_after(5)
    product = await shop.product(on_hand=9)
    bad, good = await shop.order((product, 1)), await shop.order((product, 1))
    async with shop.unguarded():
        await shop.run("update orders set status = 'fulfilled' where id = %s", bad)
    for _ in range(12):
        await shop.settle(await shop.advance(), APPROVED)
        await shop.turn_clock(LONG)
    assert (await shop.saga(bad))["status"] == "stuck"
    assert await shop.order_status(good) == "fulfilled"
    assert (await shop.events(bad))[-1] == "saga_stuck"
    stuck = await shop.row("select status from sagas_from_events where id = %s", bad)
    assert stuck["status"] == "stuck"


async def test_texts_are_those_of_their_places(shop: Shop) -> None:
    """What is said of each member of a part comes from its place in the whole, nulls too."""
    texts = await shop.value("select texts_at(array['a', 'b', null, 'd'], array[4, 3, 1])")
    assert texts == ["d", None, "a"]
