"""routines/61_order_fulfilment.sql: each step function by itself, called as the engine calls it."""

import random
from typing import Any
from uuid import UUID

import pytest
from shop import Shop

EVERYWHERE = "array(select id from warehouses)"
STEPS = ["reserve_stock", "release_stock", "fulfill_order", "request_payment", "request_void"]


async def step(shop: Shop, name: str, *sagas: UUID) -> dict[UUID, Any]:
    """Take a step as a pass does, effect included; the outcome of each saga."""
    (plan,) = await shop.rows(
        "select step_function as function, effect_function, effect"
        " from saga_steps where %s in (step_name, step_function)"
        " union select undo_function, undo_effect_function, undo_effect"
        " from saga_steps where %s in (undo_name, undo_function)",
        name,
        name,
    )
    outcomes = {saga: {"result": "done"} for saga in sagas}
    if plan["function"]:
        rows = await shop.rows(
            f"""
            select s.saga_id, g.result, s.error_code, s.message, s.request, s.wait_seconds
            from unnest(call_step(%s, {EVERYWHERE}, %s, null)) as g
            cross join lateral
                unnest(g.saga_ids, g.error_codes, g.messages, g.requests, g.wait_seconds)
                as s (saga_id, error_code, message, request, wait_seconds)
            """,
            plan["function"],
            [*sagas],
        )
        outcomes = {row.pop("saga_id"): row for row in rows}
        assert len(rows) == len(outcomes)
    done = [saga for saga, outcome in outcomes.items() if outcome["result"] == "done"]
    if plan["effect"] and done:
        effect = plan["effect"].replace("fulfill", "fulfill_unpaid")  # its payment is another step
        await shop.run(
            f"select {plan['effect_function']}({EVERYWHERE}, %s, %s)", done, [effect] * len(done)
        )
    return outcomes


async def reserve(shop: Shop, *sagas: UUID) -> list[str]:
    """What became of each order, in the order given."""
    outcomes = await step(shop, "reserve_stock", *sagas)
    return [outcomes[saga]["result"] for saga in sagas]


@pytest.mark.parametrize("name", STEPS)
async def test_a_step_has_one_outcome_per_saga(shop: Shop, name: str) -> None:
    """Whatever state they are in, every saga that was given gets an answer, once."""
    product = await shop.product(on_hand=2)
    done = await shop.fulfilled((product, 1))
    fresh = [await shop.order((product, 1)) for _ in range(3)]
    given = fresh if name in {"reserve_stock", "request_payment"} else [done, *fresh]
    assert set(await step(shop, name, *given)) == set(given)
    shop.audited = False


async def test_an_order_is_reserved_whole_or_not_at_all(shop: Shop) -> None:
    """One line that doesn't fit leaves the others of its order on the shelf."""
    plenty, short = await shop.product(on_hand=9), await shop.product(on_hand=1)
    order = await shop.order((plenty, 3), (short, 2))
    outcome = (await step(shop, "reserve_stock", order))[order]
    assert (outcome["result"], outcome["error_code"]) == ("refused", "DP006")
    assert f"product {short}: 2 asked for, 1 left" in outcome["message"]
    assert await shop.stock(plenty) == (9, 0)
    assert await shop.stock(short) == (1, 0)


async def test_duplicate_products_are_one_demand(shop: Shop) -> None:
    """Two lines of one product are reserved together, by one movement, or refused together."""
    product = await shop.product(on_hand=6)
    big = await shop.order((product, 4), (product, 3))
    fits = await shop.order((product, 4), (product, 2))
    assert await reserve(shop, big, fits) == ["refused", "done"]
    assert await shop.values(
        "select quantity from stock_movements where movement_type = 'reserve'"
    ) == [6]


async def test_running_sums_decide_who_fits(shop: Shop) -> None:
    """Orders are served by id; one that doesn't fit leaves room for a smaller one behind it."""
    product = await shop.product(on_hand=10)
    orders = sorted([await shop.order((product, quantity)) for quantity in (4, 4, 4, 2, 1)])
    assert await reserve(shop, *reversed(orders)) == [
        "refused",
        "done",
        "refused",
        "done",
        "done",
    ]
    movements = await shop.rows(
        "select reserved_after, available_after from stock_movements"
        " where movement_type = 'reserve' order by id"
    )
    assert [each["reserved_after"] for each in movements] == [4, 8, 10]
    assert {each["available_after"] for each in movements} == {10}


async def test_the_exact_rest_fits(shop: Shop) -> None:
    """The last unit can be had."""
    product = await shop.product(on_hand=5)
    orders = [await shop.order((product, 1)) for _ in range(6)]
    assert await reserve(shop, *orders) == ["done"] * 5 + ["refused"]
    assert await shop.stock(product) == (5, 5)


async def test_a_refused_order_takes_nothing_from_the_next(shop: Shop) -> None:
    """An order refused for one product doesn't count against the demand for its other ones."""
    wanted, missing = await shop.product(on_hand=1), await shop.product()
    first = await shop.order((wanted, 1), (missing, 1))
    second = await shop.order((wanted, 1))
    third = await shop.order((wanted, 1))
    assert await reserve(shop, first, second, third) == ["refused", "done", "refused"]


async def test_a_demand_beyond_all_bounds_is_refused(shop: Shop) -> None:
    """Lines that add up to more than an integer holds are a shortage, not an error."""
    product = await shop.product("0.01", on_hand=1_000_000_000)
    small = await shop.order((product, 1))
    async with shop.connection.transaction():
        huge = await shop.value(
            "insert into orders (warehouse_id) values (%s) returning id", shop.lisbon
        )
        await shop.run(
            "insert into order_items (order_id, warehouse_id, product_id, quantity)"
            " select %s, %s, %s, 1000000 from generate_series(1, 2500)",
            huge,
            shop.lisbon,
            product,
        )
    assert await reserve(shop, small, huge) == ["done", "refused"]


async def test_a_shortage_is_of_one_shelf(shop: Shop) -> None:
    """In one pass over two warehouses, who finds enough where they ordered is not refused."""
    orders: dict[UUID, str] = {}
    for short in (shop.rotterdam, shop.lisbon, shop.lisbon, shop.rotterdam):
        product = await shop.product()
        for warehouse in (shop.lisbon, shop.rotterdam):
            await shop.receive(product, 1 if warehouse == short else 10, warehouse)
            order = await shop.order((product, 2), warehouse=warehouse)
            orders[order] = "refused" if warehouse == short else "done"
    assert await reserve(shop, *orders) == list(orders.values())


async def test_stock_of_another_warehouse_doesnt_count(shop: Shop) -> None:
    """An order is served from its own warehouse alone."""
    product = await shop.product(on_hand=5)
    order = await shop.order((product, 1), warehouse=shop.rotterdam)
    assert await reserve(shop, order) == ["refused"]
    here = await shop.order((product, 5))
    await shop.receive(product, 3, shop.rotterdam)
    there = await shop.order((product, 3), warehouse=shop.rotterdam)
    assert await reserve(shop, here, there) == ["done", "done"]


@pytest.mark.parametrize("seed", range(5))
async def test_a_batch_is_what_one_by_one_would_give(shop: Shop, seed: int) -> None:
    """Random orders with shortages are decided in one batch as by a loop over them in id order."""
    dice = random.Random(seed)
    left = {await shop.product(on_hand=count): count for count in (3, 10, 15, 200)}
    orders = {}
    for _ in range(40):
        lines = [(dice.choice(list(left)), dice.randint(1, 5)) for _ in range(dice.randint(1, 4))]
        orders[await shop.order(*lines)] = lines
    expected = {}
    for order in sorted(orders):
        demand = dict.fromkeys(left, 0)
        for product, quantity in orders[order]:
            demand[product] += quantity
        fits = all(demand[product] <= left[product] for product in left)
        expected[order] = "done" if fits else "refused"
        if fits:
            left = {product: left[product] - demand[product] for product in left}
    outcomes = await step(shop, "reserve_stock", *orders)
    assert {order: each["result"] for order, each in outcomes.items()} == expected
    for product, rest in left.items():
        available, reserved = await shop.stock(product)
        assert available - reserved == rest


async def test_reserving_twice_is_stopped_by_the_ledger(shop: Shop) -> None:
    """Should the engine ever ask twice, the ledger's uniqueness refuses, and nothing is lost."""
    product = await shop.product(on_hand=5)
    order = await shop.order((product, 2))
    await step(shop, "reserve_stock", order)
    with shop.refused("23505"):
        await step(shop, "reserve_stock", order)
    assert await shop.stock(product) == (5, 2)
    assert await shop.value("select count(*) from stock_movements") == 2


@pytest.mark.parametrize(("end", "left"), [("release_stock", (5, 0)), ("fulfill_order", (3, 0))])
async def test_a_reservation_ends_once(shop: Shop, end: str, left: tuple[int, int]) -> None:
    """Releasing or fulfilling what has been released or fulfilled moves nothing again."""
    product = await shop.product(on_hand=5)
    order = await shop.order((product, 2))
    await step(shop, "reserve_stock", order)
    for again in (end, end, "release_stock", "fulfill_order"):
        assert (await step(shop, again, order))[order]["result"] == "done"
        assert await shop.stock(product) == left


async def test_an_undo_of_nothing_is_done(shop: Shop) -> None:
    """An order that reserved nothing and asked for no money has nothing to give back."""
    product = await shop.product(on_hand=5)
    order = await shop.order((product, 2))
    assert (await step(shop, "release_stock", order))[order]["result"] == "done"
    assert (await step(shop, "request_void", order))[order]["result"] == "done"
    assert await shop.stock(product) == (5, 0)


async def test_only_what_may_have_been_charged_is_voided(shop: Shop) -> None:
    """A void is asked for what was charged or may have been, not for a decline or for zero."""
    product = await shop.product(on_hand=9)
    captured = await shop.fulfilled((product, 1))
    declined = await shop.order((product, 1))
    await shop.settle(await shop.advance(), {"outcome": "declined"})
    requested = await shop.order((product, 1))
    free = await shop.order((await shop.product("0"), 1))
    await step(shop, "request_payment", requested, free)
    outcomes = await step(shop, "request_void", captured, declined, requested, free)
    assert {order: outcome["result"] for order, outcome in outcomes.items()} == {
        captured: "waiting",
        declined: "done",
        requested: "waiting",
        free: "done",
    }
    assert outcomes[captured]["request"]["reference"] == "ch_1"
    assert (await shop.payment(declined))["status"] == "declined"
    assert (await shop.payment(free))["status"] == "captured"
    shop.audited = False


async def test_who_owes_nothing_is_done_and_who_owes_is_asked(shop: Shop) -> None:
    """In one batch each order has its own outcome: paid already, or a call to make."""
    free = await shop.order((await shop.product("0", on_hand=1), 1))
    other = await shop.order((await shop.product("10", on_hand=1), 1))
    outcomes = await step(shop, "process_payment", free, other)
    assert {saga: outcome["result"] for saga, outcome in outcomes.items()} == {
        free: "done",
        other: "waiting",
    }
    assert outcomes[free]["request"] is None
    assert outcomes[other]["request"]["amount"] == "10"


async def test_asking_for_money_again_asks_the_same(shop: Shop) -> None:
    """The second request for a charge is the first one, word for word."""
    order = await shop.order((await shop.product("3", on_hand=2), 2))
    first = await step(shop, "request_payment", order)
    assert first == await step(shop, "request_payment", order)
    assert first[order]["result"] == "waiting"
    assert first[order]["request"]["amount"] == "6"
    assert await shop.value("select count(*) from payments") == 1


async def test_the_plan_can_be_tuned_and_stays_tuned(shop: Shop) -> None:
    """Staff set patience, backoff and timeout of a step; its names are code and stay."""
    async with shop.acting_as("service_role"):
        await shop.run(
            "update step_settings"
            " set give_up_seconds = 9, backoff_seconds = 0.5, timeout_seconds = 7"
            " where step_name = 'process_payment'"
        )
        with shop.refused("42501"):
            await shop.run("update saga_steps set step_function = 'pg_sleep'")
    await shop.order((await shop.product(on_hand=1), 1))
    (request,) = await shop.advance()
    assert request["timeout_seconds"] == 7
