"""`darkpearl sagas`: where they stand, and what is done about those that are stuck."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import pytest
from shop import APPROVED, DECLINED, Shop
from terminal import Refused, Run

Until = Callable[..., Awaitable[None]]


async def stuck_at_void(shop: Shop) -> UUID:
    """A cancelled order whose gateway won't void."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.give_up_after(0)
    requests = await shop.advance()
    await shop.cancel(order)
    await shop.settle(await shop.settle(requests, APPROVED), DECLINED)
    assert (await shop.saga(order))["status"] == "stuck"
    return order


async def test_sagas_are_listed_by_filters(shop: Shop, run: Run) -> None:
    """Each filter leaves out the rest; those that are stuck come with what is held and owed."""
    fine = await shop.fulfilled((await shop.product(on_hand=1), 1))
    stuck = await stuck_at_void(shop)

    async def listed(*filters: str) -> list[str]:
        done = await run("sagas", "list", "--json", *filters)
        assert done.code == 0, done.errors
        return [row["id"] for row in done.rows]

    assert await listed() == [str(stuck), str(fine)]
    assert await listed("--status", "completed") == [str(fine)]
    assert await listed("--status", "completed", "--status", "stuck", "--limit", "1") == [
        str(stuck)
    ]
    assert await listed("--type", "refund") == []
    assert await listed("--step", "void_payment") == [str(stuck)]
    assert await listed("--error", "DP028") == [str(stuck)]
    assert await listed("--warehouse", "RTM") == []
    assert await listed("--since", "2999-01-01") == []
    (held,) = (await run("sagas", "list", "--status", "stuck", "--json")).rows
    assert (held["amount_held"], held["order_number"]) == ("10", 2)
    assert "void_payment" in (await run("sagas", "list", "--status", "stuck")).said
    assert await listed("--status", "stuck", "--error", "DP014") == []


async def test_a_saga_is_shown_with_its_history(shop: Shop, run: Run, refused: Refused) -> None:
    """By the number of its order or its id; one that isn't there is refused in a line."""
    order = await stuck_at_void(shop)
    shown = (await run("sagas", "show", 1)).said
    for word in (str(order), "stuck", "void_payment", "saga_stuck", "DP028"):
        assert word in shown
    (told,) = (await run("sagas", "show", order, "--json")).rows
    assert told["events"][-1]["event_type"] == "saga_stuck"
    assert "there is no saga" in await refused("sagas", "show", uuid4())


async def test_watching_ends_with_the_saga(shop: Shop, run: Run, until: Until) -> None:
    """What happens is printed as it does; 1 for a saga that needs a person."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    watching = asyncio.create_task(run("sagas", "watch", order, "--json"))

    async def looks() -> bool:
        query = "select count(*) from pg_stat_activity where query like '%%saga_history%%'"
        return bool(await shop.value(query + " and pid <> pg_backend_pid() and state = 'idle'"))

    await until(looks)
    assert not watching.done()
    await shop.settle(await shop.advance(), APPROVED)
    done = await watching
    assert (done.code, done.rows[-1]["event_type"]) == (0, "saga_completed")
    assert len(done.rows) == len(await shop.events(order))
    assert (await run("sagas", "watch", await stuck_at_void(shop))).code == 1


@pytest.mark.parametrize(("action", "event"), [("retry", "retried"), ("skip", "skipped")])
async def test_a_stuck_saga_is_seen_to(shop: Shop, run: Run, action: str, event: str) -> None:
    """By its number, with a reason; one that isn't stuck is refused and keeps no other from it."""
    fine = await shop.fulfilled((await shop.product(on_hand=1), 1))
    order = await stuck_at_void(shop)
    done = await run("sagas", action, fine, 2, "--reason", "the bank mended it", "--json")
    assert done.code == 2
    assert f"Saga {fine} is completed" in done.errors
    assert done.errors.count("\n") == 1
    assert [row["id"] for row in done.rows] == [str(order)]
    assert (await shop.event(order, event))["message"] == "the bank mended it"
    await shop.settle(await shop.advance(), APPROVED)
    assert (await shop.saga(order))["status"] == "compensated"


async def test_a_stuck_saga_is_turned_back(shop: Shop, run: Run, refused: Refused) -> None:
    """One that is stuck on its way forward; on its way back it is refused."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.poison("reserve_stock", order, sqlstate="P0001")
    await shop.advance()
    done = await run("sagas", "turn-back", order, "--reason", "out of fashion")
    assert done.code == 0, done.errors
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    back = await stuck_at_void(shop)
    assert "on its way back" in await refused("sagas", "turn-back", back, "--reason", "no")


async def test_an_action_says_which_and_why(refused: Refused) -> None:
    """Neither nothing nor both of names and filters; never without a reason."""
    for action in ("retry", "skip", "resume"):
        assert "say which" in await refused("sagas", action, "--reason", "x")
        assert "not both" in await refused("sagas", action, 1, "--step", "s", "--reason", "x")
        assert "--reason" in await refused("sagas", action, 1)
