"""darkpearl/webhooks/turns.py: who of all couriers is next."""

import asyncio

import pytest

from darkpearl.webhooks.turns import Turns

Tasks = list[asyncio.Task[None]]


@pytest.fixture
def had() -> list[float]:
    """The patience of each who has had a turn."""
    return []


async def queue(turns: Turns, had: list[float], *patiences: float) -> Tasks:
    """Users of what is taken, who come in this order."""

    async def use(patience: float) -> None:
        async with turns.turn(patience):
            had.append(patience)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(use(each)) for each in patiences]
    await asyncio.sleep(0)
    return tasks


async def test_who_takes_long_lets_others_pass(had: list[float]) -> None:
    """The patient come later than those who came after them; else it goes by who came first."""
    turns = Turns()
    async with turns.turn():
        tasks = await queue(turns, had, 5.0, 0.0, 3.0, 0.0)
    await asyncio.gather(*tasks)
    assert had == [0, 0, 3, 5]


async def test_nobody_is_passed_over_for_longer_than_they_take(had: list[float]) -> None:
    """Who comes after that time comes later."""
    turns = Turns()
    async with turns.turn():
        tasks = await queue(turns, had, 0.01)
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 0.02:  # noqa: ASYNC110 - of the clock
            await asyncio.sleep(0)
        tasks += await queue(turns, had, 0.0)
    await asyncio.gather(*tasks)
    assert had == [0.01, 0.0]


@pytest.mark.parametrize("is_next", [False, True])
async def test_who_is_cancelled_leaves_the_turn_to_the_others(
    had: list[float], *, is_next: bool
) -> None:
    """While it waits, and in the moment in which it has its turn."""
    turns = Turns()
    async with turns.turn():
        tasks = await queue(turns, had, 0.0, 1.0)
        if not is_next:
            tasks[0].cancel()
            await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled()
    assert had == [1.0]
    async with asyncio.timeout(1), turns.turn():
        pass


async def test_a_block_that_raises_passes_the_turn_on() -> None:
    """What is shared is free again."""
    turns = Turns()
    with pytest.raises(ValueError, match="no"):
        async with turns.turn():
            raise ValueError("no")
    async with asyncio.timeout(1), turns.turn():
        pass
