"""routines/52_plans.sql: how plans are declared, kept, and told by the views."""

from uuid import UUID

import pytest
from releases import Releases, insert, rename
from shop import APPROVED, DECLINED, UNKNOWN, Shop

TYPE = "order_fulfilment"
UNDO = "p_function => 'reserve_stock', p_undo => 'b', p_undo_function => 'request_void'"


async def newest(shop: Shop, saga_type: str = TYPE) -> int:
    """The version that new sagas begin with."""
    return await shop.value("select newest_plan(%s)", saga_type)


async def plan(shop: Shop, saga_type: str, version: int) -> list[str]:
    """The names of the steps of a plan."""
    return await shop.values(
        "select step_name from saga_steps where (saga_type, plan_version) = (%s, %s)"
        " order by position",
        saga_type,
        version,
    )


async def settings(shop: Shop, step: str) -> tuple[float, float]:
    """What an operator may tune: the timeout and the patience of a step."""
    row = await shop.row(
        "select timeout_seconds, give_up_seconds from step_settings"
        " where (saga_type, step_name) = (%s, %s)",
        TYPE,
        step,
    )
    return float(row["timeout_seconds"]), float(row["give_up_seconds"])


async def tune(shop: Shop, step: str, timeout_seconds: float, give_up_seconds: float) -> None:
    """An operator sets the numbers of a step."""
    async with shop.acting_as("service_role"):
        await shop.run(
            "update step_settings set timeout_seconds = %s, give_up_seconds = %s"
            " where (saga_type, step_name) = (%s, %s)",
            *(timeout_seconds, give_up_seconds, TYPE, step),
        )


@pytest.mark.parametrize(
    "statement",
    [
        "update saga_steps set step_name = 'ship_order' where step_name = 'fulfill_order'",
        "update saga_steps set position = position + 10",
        "delete from saga_steps where step_name = 'fulfill_order'",
        "truncate saga_steps",
    ],
)
async def test_a_plan_is_never_edited(shop: Shop, statement: str) -> None:
    """Not even by its owner: what a saga began with is what it ends by."""
    for role in "darkpearl_owner", await shop.value("select session_user"):
        async with shop.acting_as(role):
            with shop.refused("DP005"):
                await shop.run(statement)


async def test_the_same_plan_is_the_same_version(shop: Shop) -> None:
    """Declaring it again adds nothing; another is the next version, and going back one more."""
    one, two = "step('pack', p_on_deadline => 'go_on')", "step('ship', p_on_deadline => 'go_on')"
    declared = [
        await shop.value(f"select define_plan('parcel', {steps})")
        for steps in (one, one, f"{one}, {two}", f"{one}, {two}", f"{two}, {one}", one, one)
    ]
    assert declared == [1, 1, 2, 2, 3, 4, 4]
    assert await newest(shop, "parcel") == 4
    plans = [await plan(shop, "parcel", version) for version in range(1, 5)]
    assert plans == [["pack"], ["pack", "ship"], ["ship", "pack"], ["pack"]]


@pytest.mark.parametrize(
    "change",
    [
        "p_function => 'request_void', p_settle_function => 'record_void'",
        "p_function => 'reserve_stock', p_effect_function => 'move_goods', p_effect => 'fulfill'",
        UNDO,
        "p_function => 'reserve_stock', p_order_status_done => 'paid'",
        "p_function => 'reserve_stock', p_forward_only => true",
        "p_function => 'reserve_stock', p_on_deadline => 'stuck'",
    ],
)
async def test_whatever_differs_is_another_version(shop: Shop, change: str) -> None:
    """A plan is all that it says of its steps, but for the numbers: those are settings."""
    await shop.run("select define_plan('parcel', step('a', p_function => 'reserve_stock'))")
    numbers = (
        "step('a', p_function => 'reserve_stock', p_give_up_seconds => 9, p_timeout_seconds => 9)"
    )
    assert await shop.value(f"select define_plan('parcel', {numbers})") == 1
    assert await shop.value(f"select define_plan('parcel', step('a', {change}))") == 2


async def test_new_sagas_begin_with_the_newest_plan(shop: Shop) -> None:
    """A saga carries the version of its type that was the newest when it began."""
    for steps in "step('a', p_on_deadline => 'go_on')", "step('b', p_on_deadline => 'go_on')":
        version = await shop.value(f"select define_plan('parcel', {steps})")
        await shop.run("select start_saga('parcel', new_id(), %s)", shop.lisbon)
        sagas = await shop.values(
            "select plan_version from sagas where saga_type = 'parcel' order by created_at"
        )
        assert sagas[-1] == version
    assert sagas == [1, 2]
    await shop.advance()
    told = await shop.values("select current_step from saga_overview order by plan_version")
    assert told == ["a", "b"]


def nowhere(arguments: str, result: str) -> str:
    """SQL that makes the function with these arguments and this result."""
    return (
        f"drop function if exists nowhere; create function nowhere({arguments}) returns {result}"
        f" language plpgsql as $$ begin return {'' if result == 'void' else 'null'}; end $$"
    )


async def test_a_signal_finds_the_step_of_the_saga_s_own_version(shop: Shop) -> None:
    """Wherever other versions have a step of that name, or whether they have one at all."""
    wait = "step('{}', p_on_deadline => 'stuck')"
    plans = [["approval"], ["label", "approval"], ["label"]]
    sagas = []
    for steps in plans:
        declared = ", ".join(wait.format(step) for step in steps)
        await shop.run(f"select define_plan('parcel', {declared})")
        saga = await shop.value("select new_id()")
        await shop.run("select start_saga('parcel', %s, %s)", saga, shop.lisbon)
        sagas.append(saga)
    await shop.advance()
    signal = "select signal_saga(%s, 'approval')"
    assert await shop.value(signal, sagas[0]) == "applied"
    assert await shop.value(signal, sagas[1]) == "kept"
    with shop.refused("DP010"):
        await shop.run(signal, sagas[2])
    await shop.advance()
    statuses = [(await shop.saga(saga))["status"] for saga in sagas]
    assert statuses == ["completed", "waiting", "waiting"]


SLOTS = {
    "step": ("p_function => 'nowhere'", "nowhere(uuid[], uuid[])", "outcome_group[]"),
    "settle": (
        "p_function => 'reserve_stock', p_settle_function => 'nowhere'",
        "nowhere(uuid[], uuid[], jsonb[])",
        "outcome_group[]",
    ),
    "effect": (
        "p_effect_function => 'nowhere', p_effect => 'x'",
        "nowhere(uuid[], uuid[], text[])",
        "void",
    ),
    "undo": (
        "p_function => 'reserve_stock', p_undo => 'b', p_undo_function => 'nowhere'",
        "nowhere(uuid[], uuid[])",
        "outcome_group[]",
    ),
    "settle of the undo": (
        f"{UNDO}, p_undo_settle_function => 'nowhere'",
        "nowhere(uuid[], uuid[], jsonb[])",
        "outcome_group[]",
    ),
    "effect of the undo": (
        f"{UNDO}, p_undo_effect_function => 'nowhere', p_undo_effect => 'x'",
        "nowhere(uuid[], uuid[], text[])",
        "void",
    ),
}


@pytest.mark.parametrize(("step", "signature", "result"), SLOTS.values(), ids=SLOTS.keys())
async def test_a_plan_names_functions_that_are_there(
    shop: Shop, step: str, signature: str, result: str
) -> None:
    """With the arguments and the result that the engine calls them by; the refusal says which."""
    declare = f"select define_plan('parcel', step('a', {step}))"
    arguments = signature.removeprefix("nowhere(").removesuffix(")")
    with shop.refused("DP022"):
        await shop.run(declare)
    for wrong in ("integer", result), (arguments, "integer"):
        await shop.run(nowhere(*wrong))
        with shop.refused("DP022") as refusal:
            await shop.run(declare)
        assert signature in refusal.detail
        assert result in refusal.detail
    assert await newest(shop, "parcel") is None
    await shop.run(nowhere(arguments, result))
    assert await shop.value(declare) == 1


async def test_a_plan_has_steps(shop: Shop) -> None:
    """A plan without any is refused."""
    with shop.refused("DP022"):
        await shop.run("select define_plan('parcel', variadic '{}'::plan_step[])")


async def test_an_undo_has_an_effect_of_its_own(shop: Shop) -> None:
    """What undoes a step does what the plan says of the undo, also where the step does nothing."""
    await shop.run(
        "select define_plan('order_fulfilment',"
        " step('reserve_stock', p_function => 'reserve_stock',"
        " p_effect_function => 'move_goods', p_effect => 'reserve'),"
        " step('pick', p_function => 'reserve_stock', p_undo => 'put_back',"
        " p_undo_effect_function => 'move_goods', p_undo_effect => 'release'),"
        " step('process_payment', p_function => 'request_payment',"
        " p_settle_function => 'record_payment', p_undo => 'void_payment',"
        " p_undo_function => 'request_void', p_undo_settle_function => 'record_void'),"
        " step('fulfill_order', p_effect_function => 'move_goods', p_effect => 'fulfill',"
        " p_order_status_done => 'fulfilled'))"
    )
    product = await shop.product(on_hand=9)
    orders = [await shop.order((product, 1)) for _ in range(2)]
    requests = await shop.advance()
    assert await shop.stock(product) == (9, 2)
    await shop.settle(requests[:1], DECLINED)
    assert await shop.stock(product) == (9, 1)
    await shop.settle(requests[1:], APPROVED)
    assert sorted(await shop.statuses()) == ["cancelled", "fulfilled"]
    assert await shop.stock(product) == (8, 0)
    assert len(orders) == len(requests)


@pytest.mark.parametrize("names", ["a - a -", "a a", "a b b -", "a c b c"])
async def test_a_name_stands_for_one_thing_in_a_plan(shop: Shop, names: str) -> None:
    """The history tells steps and undos by their names: which way a saga went must be plain.

    names: of a step and its undo, and of another and its.
    """
    steps = [
        f"step('{step}', p_function => 'reserve_stock'"
        + ("" if undo == "-" else f", p_undo => '{undo}', p_undo_function => 'request_void'")
        + ")"
        for step, undo in zip(names.split()[::2], names.split()[1::2], strict=True)
    ]
    with shop.refused("DP022"):
        await shop.run(f"select define_plan('parcel', {', '.join(steps)})")


@pytest.mark.parametrize(
    "step",
    [
        "step('a')",
        "step('a', p_settle_function => 'record_void')",
        "step('a', p_effect_function => 'move_goods')",
        "step('a', p_on_deadline => 'go_on', p_undo => 'b')",
        "step('a', p_on_deadline => 'go_on', p_undo_function => 'request_void')",
        "step('a', p_on_deadline => 'go_on', p_timeout_seconds => 0)",
        "step('a', p_on_deadline => 'go_on', p_give_up_seconds => -1)",
    ],
)
async def test_what_makes_no_step_is_refused(shop: Shop, step: str) -> None:
    """A step that does nothing, half an undo, an effect that isn't said, numbers out of bounds."""
    with shop.refused("23514"):
        await shop.run(f"select define_plan('parcel', {step})")


async def test_settings_stay_with_their_step(shop: Shop, releases: Releases) -> None:
    """A step inserted before another takes none of its numbers, nor does rolling back."""
    await tune(shop, "process_payment", 77, 3)
    await tune(shop, "fulfill_order", 88, 4)
    fresh = await settings(shop, "reserve_stock")
    before, after = releases.make(), releases.make(insert)
    for release in after, before, after:
        await releases.migrate(release)
        assert await settings(shop, "process_payment") == (77, 3)
        assert await settings(shop, "fulfill_order") == (88, 4)
        assert await settings(shop, "check_goods") == fresh


async def test_settings_count_for_sagas_of_every_version(shop: Shop, releases: Releases) -> None:
    """What an operator changes is the step's, whichever version of the plan a saga follows."""
    product = await shop.product(on_hand=9)
    old = await shop.order((product, 1))
    await shop.settle(await shop.advance(), UNKNOWN)
    await releases.migrate(releases.make(insert))
    new = await shop.order((product, 1))
    await tune(shop, "process_payment", 77, 0.5)
    asked = {UUID(each["saga_id"]): each for each in await shop.ask_again()}
    assert {order: each["timeout_seconds"] for order, each in asked.items()} == {old: 77, new: 77}
    versions = await shop.rows("select id, plan_version from sagas")
    assert {row["id"]: row["plan_version"] for row in versions} == {old: 1, new: 2}
    # The old order has waited out its backoff; the new one's first try takes no time.
    await shop.settle(asked.values(), UNKNOWN)
    statuses = [(await shop.saga(order))["status"] for order in (old, new)]
    assert statuses == ["compensating", "running"]


async def test_a_pause_holds_sagas_of_every_version(shop: Shop, releases: Releases) -> None:
    """A step is paused by its name: sagas that wait go on at its end, whatever their version."""
    product = await shop.product(on_hand=9)
    old = await shop.order((product, 1))
    await shop.run("select pause_external_steps(60, 'test')")
    assert await shop.advance() == []
    await releases.migrate(releases.make(insert))
    new = await shop.order((product, 1))
    assert await shop.advance() == []
    await shop.run("select pause_external_steps(600, 'test')")
    await shop.turn_clock(599)
    assert await shop.advance() == []
    assert shop.claimed == 0
    await shop.run("select pause_external_steps(0, 'test')")
    await shop.turn_clock(2)
    asked = await shop.advance()
    assert {UUID(each["saga_id"]) for each in asked} == {old, new}


async def test_views_show_the_step_of_the_saga_s_own_version(
    shop: Shop, releases: Releases
) -> None:
    """Forward and stuck on the way back: the names are those that the saga began with."""
    product = await shop.product(on_hand=9)
    await shop.give_up_after(0)

    async def waiting_and_stuck() -> list[UUID]:
        waiting, stuck = [await shop.order((product, 1)) for _ in range(2)]
        requests = [each for each in await shop.advance() if each["saga_id"] == str(stuck)]
        await shop.cancel(stuck)
        await shop.settle(await shop.settle(requests, APPROVED), DECLINED)
        return [waiting, stuck]

    orders = await waiting_and_stuck()
    await releases.migrate(releases.make(insert))
    await shop.give_up_after(0)
    orders += await waiting_and_stuck()
    await releases.migrate(releases.make(rename, with_check=True))
    orders += await waiting_and_stuck()
    ways = [("process_payment", "void_payment")] * 2 + [("new_process_payment", "new_void_payment")]
    forward = [step for step, _ in ways for _ in range(2)]
    here = [name for way in ways for name in way]

    shown = await shop.rows("select id, saga_step from order_overview")
    assert {row["id"]: row["saga_step"] for row in shown} == dict(zip(orders, forward, strict=True))
    shown = await shop.rows("select id, current_step from saga_overview")
    assert {row["id"]: row["current_step"] for row in shown} == dict(zip(orders, here, strict=True))
    shown = await shop.rows("select id, current_step, amount_owed from stuck_sagas")
    assert {row["id"]: row["current_step"] for row in shown} == dict(
        zip(orders[1::2], here[1::2], strict=True)
    )
    assert [row["amount_owed"] for row in shown] == [10, 10, 10]


A = "step('a', p_on_deadline => 'stuck')"
AGAIN = "p_function => 'reserve_stock', p_wait_again => true"


@pytest.mark.parametrize(
    ("steps", "sqlstate"),
    [
        (f"step('a', p_function => 'reserve_stock'), step('b', {AGAIN})", "DP022"),
        (f"{A}, step('b', p_function => 'reserve_stock'), step('c', {AGAIN})", "DP022"),
        (f"step('a', {AGAIN})", "DP022"),
        (f"{A}, step('b', {AGAIN}, p_forward_only => true)", "23514"),
        ("step('a', p_on_deadline => 'look_again')", "23514"),
    ],
)
async def test_who_waits_again_has_a_wait_to_go_back_to(
    shop: Shop, steps: str, sqlstate: str
) -> None:
    """Right before it, and a way back; who is to look again has something to look with."""
    with shop.refused(sqlstate):
        await shop.run(f"select define_plan('parcel', {steps})")
