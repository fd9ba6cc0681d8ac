"""routines/54_fast_path.sql: an order alone goes where a batch of one would, and is told so."""

import json
import os
import re
from uuid import UUID

import pytest
from pages import ROOT
from shop import APPROVED, DECLINED, LONG, PENDING, UNKNOWN, Row, Shop

COMPILED = ROOT / "sql/compiled/calls.sql"
STEP_BY_STEP = """
    create or replace function run_alone(p_group saga_group) returns json[] language plpgsql as $$
    begin
        return run_groups(
            p_group.warehouse_ids,
            case
                when p_group.answers is null then array[p_group]
                else settle_group(p_group, p_group.warehouse_ids)
            end
        );
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


async def declare_a_wait(shop: Shop) -> None:
    """From now on orders wait for a signal before they are fulfilled."""
    for saga_type in ("order_fulfilment", "order_fulfilment_with_capture"):
        steps = await shop.values(
            "select unnest(plan_of(%s, newest_plan(%s)))::text", saga_type, saga_type
        )
        wait = "step('wait_for_it', p_on_deadline => 'go_on', p_timeout_seconds => 60)"
        before = ", ".join(f"$plan${each}$plan$::plan_step" for each in steps[:-1])
        last = f"$plan${steps[-1]}$plan$::plan_step"
        await shop.run(f"select define_plan('{saga_type}', {before}, {wait}, {last})")


async def story(shop: Shop, count: int, last: str) -> list[str]:
    """What is asked for so many orders, and what becomes of them; the last one is special."""
    usual = await shop.product(on_hand=99)
    odd = await shop.product("0" if last == "free" else "10", on_hand=0 if last == "short" else 99)
    orders = [
        await shop.order((usual if n < count - 1 else odd, 1), (usual, 2)) for n in range(count)
    ]
    if last == "paused":
        await shop.run("select pause_external_steps(60, 'test')")
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


@pytest.mark.parametrize("capture_method", ["at_payment", "at_fulfilment"])
@pytest.mark.parametrize(
    "last",
    ["usual", "free", "short", "declined", "pending", "unknown", "paused", "cancelled", "waiting"],
)
async def test_the_fast_path_leads_where_the_engine_does(
    shop: Shop, capture_method: str, last: str
) -> None:
    """Alone on the fast path or step by step, whatever happens: the same is asked and written."""
    await shop.run("update warehouses set capture_method = %s::capture_method", capture_method)
    if last == "waiting":
        await declare_a_wait(shop)
    fast = await story(shop, 1, last)
    await shop.run(STEP_BY_STEP)
    assert fast == await story(shop, 1, last)


async def test_the_fast_path_is_taken(shop: Shop) -> None:
    """An order alone that meets nothing unusual never comes to run_groups()."""
    product = await shop.product(on_hand=9)
    order = await shop.order((product, 1))
    await shop.run(
        "create or replace function run_groups("
        "p_warehouse_ids uuid[], p_work saga_group[], p_steps integer default null)"
        " returns json[] language plpgsql as $$ begin raise 'not to be called'; end $$"
    )
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(order) == "fulfilled"


async def test_a_pause_that_is_over_costs_no_fast_path(shop: Shop) -> None:
    """What was paused once is no different afterwards: an order alone is as quick as before."""
    await shop.run("select pause_external_steps(60, 'test')")
    await shop.turn_clock(LONG)
    await test_the_fast_path_is_taken(shop)


async def test_the_compiled_calls_are_those_of_the_file(shop: Shop) -> None:
    """What plans write in a new database is a file that can be read; `make compiled` writes it."""
    definitions = await shop.values(
        "select pg_get_functiondef(p.oid) from pg_proc as p where p.proname in"
        " ('call_step', 'call_effect') order by p.proname"
    )
    text = "-- Written by compile_calls() from the plans; see sql/routines/54_fast_path.sql.\n\n"
    text += "\n".join(f"{each.strip()};\n" for each in definitions)
    if os.environ.get("DARKPEARL_TEST_WRITE_COMPILED"):
        COMPILED.parent.mkdir(exist_ok=True)
        COMPILED.write_text(text)
    assert COMPILED.read_text() == text


async def test_calls_are_compiled_anew_with_a_plan(shop: Shop) -> None:
    """A function that a new plan names has its branch, and is called without one before."""
    product = await shop.product(on_hand=9)
    await shop.run(
        "create function nothing(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]"
        " language sql return outcome_for_all('done', p_saga_ids)"
    )
    branch = "select pg_get_functiondef('call_step'::regproc) ~ 'when ''nothing'' then'"
    by_name = "select (call_step('nothing', '{}', array[new_id()]))[1].result"
    assert await shop.value(branch) is False
    assert await shop.value(by_name) == "done"
    await shop.run("select define_plan('toy', step('nothing', p_function => 'nothing'))")
    assert await shop.value(branch) is True
    assert await shop.value(by_name) == "done"
    await shop.fulfilled((product, 1))
