"""Every state of a saga leads on: docs/operations.md says how, and each way is walked."""

import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from shop import APPROVED, DECLINED, LONG, UNKNOWN, Row, Shop

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"^\| (`\w+`[^|]*?) \|(.*)\|(.*)\|$", re.MULTILINE)
FUNCTION = re.compile(r"`(\w+)")
BOUND = 20
"""Claims and answers within which a saga ends that nothing holds up any more."""
State = Callable[[Shop], Awaitable[UUID]]
STATES: dict[str, State] = {}


def state(name: str) -> Callable[[State], State]:
    """Names the state into which a function brings a saga."""

    def named(brings: State) -> State:
        STATES[name] = brings
        return brings

    return named


async def order(shop: Shop) -> UUID:
    """An order of one unit, of which there are some."""
    return await shop.order((await shop.product(on_hand=5), 1))


@state("`running`, ready")
async def ready(shop: Shop) -> UUID:
    """Placed, and claimed by nobody."""
    return await order(shop)


@state("`running`, backing off")
async def backing_off(shop: Shop) -> UUID:
    """Its gateway's answer was no answer."""
    saga = await order(shop)
    await shop.settle(await shop.advance(), UNKNOWN)
    return saga


@state("`running`, held by a pause")
async def paused(shop: Shop) -> UUID:
    """Its next step asks somebody outside, which an operator holds back."""
    await shop.run("select pause_external_steps(600, 'maintenance')")
    saga = await order(shop)
    assert await shop.advance() == []
    return saga


@state("`waiting` for an answer")
async def asked(shop: Shop) -> UUID:
    """Its call is out."""
    saga = await order(shop)
    await shop.advance()
    return saga


@state("`waiting` for a signal")
async def unsignalled(shop: Shop) -> UUID:
    """Its plan wants to be told first, and turns back when nobody does."""
    await shop.run(
        "select define_plan('order_fulfilment',"
        " step('await_approval', p_on_deadline => 'turn_back', p_timeout_seconds => 600),"
        " step('reserve_stock', p_function => 'reserve_stock', p_effect_function => 'move_goods',"
        "      p_effect => 'reserve', p_undo => 'release_stock',"
        "      p_undo_effect_function => 'move_goods', p_undo_effect => 'release'),"
        " step('fulfill_order', p_effect_function => 'move_goods', p_effect => 'fulfill_unpaid',"
        "      p_order_status_done => 'fulfilled'))"
    )
    saga = await order(shop)
    assert await shop.advance() == []
    return saga


@state("`waiting` for a payment")
async def unpaid(shop: Shop) -> UUID:
    """Held, with its stock reserved."""
    pay_by = await shop.value("select clock() + interval '1 hour'")
    saga = await shop.order((await shop.product(on_hand=5), 1), p_pay_by=pay_by)
    assert await shop.advance() == []
    return saga


@state("`compensating`")
async def turning_back(shop: Shop) -> UUID:
    """Paid, cancelled, and its void is asked for."""
    saga = await order(shop)
    requests = await shop.advance()
    await shop.cancel(saga)
    assert await shop.settle(requests, APPROVED) != []
    return saga


@state("`stuck` on its way forward")
async def stuck_forward(shop: Shop) -> UUID:
    """Its step's code was wrong, which somebody has mended since."""
    saga = await order(shop)
    await shop.poison("request_payment", saga, sqlstate="42703")
    await shop.advance()  # as far as it goes
    await shop.advance()
    await shop.cure("request_payment")
    return saga


@state("`stuck` behind the pivot")
async def stuck_behind_the_pivot(shop: Shop) -> UUID:
    """Its money is taken, and its goods did not leave; the cause is mended."""
    await shop.capture_at_fulfilment()
    saga = await order(shop)
    (capture,) = await shop.settle(await shop.advance(), APPROVED)
    await shop.poison("fulfill_order", saga, sqlstate="42703")
    await shop.settle([capture], APPROVED)
    await shop.advance()
    await shop.cure("fulfill_order")
    return saga


@state("`stuck` on its way back, asking somebody outside")
async def stuck_at_a_void(shop: Shop) -> UUID:
    """Its gateway will not void."""
    saga = await order(shop)
    requests = await shop.advance()
    await shop.cancel(saga)
    await shop.settle(await shop.settle(requests, APPROVED), DECLINED)
    return saga


@state("`stuck` on its way back, at an undo of ours")
async def stuck_at_a_release(shop: Shop) -> UUID:
    """Its stock could not be released; the cause is mended."""
    saga = await order(shop)
    await shop.poison("release_stock", saga, sqlstate="42703")
    await shop.settle(await shop.advance(), DECLINED)
    await shop.advance()
    await shop.cure("release_stock")
    return saga


BY_HAND: dict[str, str] = {
    "cancel_order": "select cancel_order(%s, 'changed my mind')",
    "pay_order": "select pay_order(%s, 'tok_visa')",
    "record_manual_payment": "select record_manual_payment(%s, 10, 'T-1')",
    "pause_external_steps": "select pause_external_steps(0, 'over, for %s')",
    "resume_saga": "select resume_saga(%s, 'gateway is back')",
    "retry_saga": "select retry_saga(%s, 'mended')",
    "signal_saga": "select signal_saga(%s, 'await_approval', '{}', 'a-1')",
    "skip_step": "select skip_step(%s, 'done by hand')",
    "turn_back_saga": "select turn_back_saga(%s, 'given up')",
}


def documented() -> Iterator[tuple[str, str, set[str]]]:
    """Each state of the page, what leads on by itself, and the functions that do."""
    section = DOCUMENT.read_text().partition("## Where a saga can stand")[2].partition("\n## ")[0]
    for name, by_itself, by_hand in ROW.findall(section):
        yield name, by_itself.strip(), set(FUNCTION.findall(by_hand))


WALKS = [
    (name, way)
    for name, by_itself, by_hand in documented()
    for way in sorted(by_hand | ({"by itself"} if by_itself else set()))
]


async def reaches_its_end(shop: Shop, saga: UUID) -> str:
    """The status in which a saga rests, when listeners work, calls are answered and time passes."""
    requests: list[Row] = []
    for _ in range(BOUND):
        status = str((await shop.saga(saga))["status"])
        if status in {"completed", "compensated"}:
            return status
        requests = await shop.settle(requests, APPROVED) if requests else await shop.advance()
        if not requests:
            await shop.turn_clock(LONG)
    raise AssertionError(await shop.events(saga))


def test_the_page_knows_every_state() -> None:
    """The table of docs/operations.md has a row for each state that a saga rests or waits in."""
    assert {name for name, _, _ in documented()} == {*STATES, "`completed`, `compensated`"}


async def test_the_page_knows_every_status(shop: Shop) -> None:
    """No saga can have a status that the table doesn't tell of."""
    there = await shop.values("select unnest(enum_range(null::saga_status))::text")
    assert {each for name, _, _ in documented() for each in FUNCTION.findall(name)} == set(there)


@pytest.mark.parametrize(("name", "way"), [walk for walk in WALKS if walk[0] in STATES])
async def test_every_way_out_leads_to_an_end(shop: Shop, name: str, way: str) -> None:
    """From each state, by each way that its row names, a saga comes to its end, and all adds up."""
    saga = await STATES[name](shop)
    status = (await shop.saga(saga))["status"]
    assert f"`{status}`" in name
    if way == "by itself":
        assert await reaches_its_end(shop, saga)
        return
    if status == "stuck":
        await shop.turn_clock(LONG)
        assert await shop.advance() == []
        assert (await shop.saga(saga))["status"] == "stuck"
    async with shop.acting_as("service_role"):
        await shop.run(BY_HAND[way].replace("%s", f"'{saga}'" if "(%s" in BY_HAND[way] else "it"))
    end = await reaches_its_end(shop, saga)
    if way in {"cancel_order", "turn_back_saga"}:
        assert end == "compensated"
