"""routines/52_plans.sql: the straight ways that are written from the plans."""

import json
import re
from uuid import UUID

import pytest
from shop import APPROVED, DECLINED, LONG, PENDING, UNKNOWN, Row, Shop

STEP_BY_STEP = """
    create or replace function run_group(
        p_group saga_group, p_warehouse_ids uuid[], p_answers jsonb[] default null
    ) returns json[] language plpgsql as $$
    begin
        if p_answers is null then
            return run_groups(p_warehouse_ids, array[p_group]);
        end if;
        return run_groups(p_warehouse_ids, settle_group(p_group, p_warehouse_ids, p_answers));
    end $$
"""
# Moments are told to ten seconds: each saga has its own share of a wait.
STORY = """
    select jsonb_build_array(
        o.status, o.total_amount, s.status, s.position, s.attempts, s.lease_token,
        round(extract(epoch from s.ready_at - s.updated_at) / 10),
        (
            select to_jsonb(p) - array['created_at', 'updated_at']
            from payments as p where p.order_id = o.id
        ),
        (
            select jsonb_agg(
                to_jsonb(e) - array['id', 'created_at', 'started_at', 'next_attempt_at']
                || jsonb_build_object(
                    'took', round(extract(epoch from e.created_at - e.started_at) / 10),
                    'again', round(extract(epoch from e.next_attempt_at - e.created_at) / 10)
                )
                order by e.id
            )
            from saga_events as e where e.saga_id = o.id
        ),
        (
            select jsonb_agg(to_jsonb(m) - array['id', 'created_at'] order by m.id)
            from stock_movements as m where m.correlation_id = o.id
        )
    )
    from orders as o inner join sagas as s on s.id = o.id
    where o.id = any(%s)
    order by o.order_number
"""
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ANSWERS = {"declined": DECLINED, "pending": PENDING, "unknown": UNKNOWN}


async def story(shop: Shop, count: int, last: str) -> list[str]:
    """What is asked for so many orders, and what becomes of them; the last one is special."""
    usual = await shop.product(on_hand=99)
    odd = await shop.product("0" if last == "free" else "10", on_hand=0 if last == "short" else 99)
    orders = [
        await shop.order((usual if n < count - 1 else odd, 1), (usual, 2)) for n in range(count)
    ]
    if last == "paused":
        await shop.run("select pause_external_steps(60)")
    if last == "gap":
        await shop.run("delete from saga_steps where position = 2")
    told: list[Row] = []
    for claim in range(3):
        requests = await shop.advance()
        while requests:
            requests.sort(key=lambda each: orders.index(UUID(each["saga_id"])))
            told += requests
            if last == "cancelled" and claim == 0:
                await shop.cancel(orders[-1])
            rows = await shop.bring(
                [
                    {
                        "saga_id": each["saga_id"],
                        "lease_token": each["lease_token"],
                        "answer": ANSWERS.get(last, APPROVED)
                        if each["saga_id"] == str(orders[-1]) and claim == 0
                        else APPROVED,
                    }
                    for each in requests
                ]
            )
            requests = [each for row in rows for each in row["requests"] or []]
        told += [{"then": await shop.values(STORY, orders)}]
        await shop.turn_clock(LONG)
    names: dict[str, str] = {}  # ids are numbered as they come
    return [
        ID.sub(
            lambda found: names.setdefault(found[0], f"id {len(names)}"),
            json.dumps(each, default=str),
        )
        for each in told
    ]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("capture_method", ["at_payment", "at_fulfilment"])
@pytest.mark.parametrize(
    "last",
    ["usual", "free", "short", "declined", "pending", "unknown", "paused", "cancelled", "gap"],
)
async def test_a_straight_way_leads_where_its_steps_do(
    shop: Shop, capture_method: str, count: int, last: str
) -> None:
    """Straight on or step by step, alone or together, whatever happens: the same is written."""
    await shop.run("update warehouses set capture_method = %s::capture_method", capture_method)
    straight = await story(shop, count, last)
    await shop.run(STEP_BY_STEP)
    assert straight == await story(shop, count, last)


async def test_a_changed_plan_has_other_straight_ways(shop: Shop) -> None:
    """What an operator calls a step, or has it do, counts from the next saga on."""
    product = await shop.product(on_hand=9)
    await shop.run(
        "create function nothing(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]"
        " language sql return array[came_out('done', p_saga_ids)];"
        "update saga_steps"
        " set step_name = 'ask_nobody', step_function = 'nothing', settle_function = null"
        " where step_name = 'process_payment'"
    )
    order = await shop.order((product, 1))
    assert await shop.advance() == []
    assert await shop.events(order) == [
        "saga_started",
        "step_completed reserve_stock",
        "step_completed ask_nobody",
        "step_completed fulfill_order",
        "saga_completed",
    ]
    assert await shop.stock(product) == (8, 0)
    shop.audited = False  # it was never paid for
