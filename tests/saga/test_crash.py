"""Listeners are killed with SIGKILL at each boundary; the next one finishes their work."""

from pathlib import Path
from typing import Any

import pytest
from shop import Shop
from stand_in import KeyKeeper

BOUNDARIES = [
    "before the claim",
    "after the first commit",
    "before the charge",
    "after the charge",
    "before settle",
    "after settle",
]


@pytest.mark.parametrize("place", BOUNDARIES)
async def test_a_killed_listener_loses_nothing_and_does_nothing_twice(
    place: str, shop: Shop, killed_listener: Any, listening: Any, until: Any, tmp_path: Path
) -> None:
    """A listener killed at any boundary: every order is fulfilled once, under one charge key."""
    log = tmp_path / "log"
    log.touch()
    one, two = await shop.product(on_hand=100), await shop.product(on_hand=100)
    await shop.run("update step_settings set timeout_seconds = 0.5, backoff_seconds = 0")
    orders = [await shop.order((one, 1), (two, 2)) for _ in range(5)]

    await killed_listener(place, log)
    gateway = KeyKeeper()
    await listening(gateway)

    async def all_ended() -> bool:
        return await shop.statuses() == {"fulfilled": 5}

    await until(all_ended)
    assert await shop.stock(one) == (95, 0)
    assert await shop.stock(two) == (90, 0)
    assert (
        await shop.value("select count(*) from stock_movements where movement_type = 'fulfill'")
        == 10
    )
    charged = [line.removeprefix("charge ") for line in log.read_text().splitlines()]
    assert {*charged, *gateway.asked} == {f"{order}:process_payment" for order in orders}
    assert len(gateway.asked) == len(set(gateway.asked))


async def test_a_killed_listener_holds_no_lock(
    shop: Shop, killed_listener: Any, until: Any, tmp_path: Path
) -> None:
    """A listener killed in the middle leaves no session behind that others would wait for."""
    await shop.order((await shop.product(on_hand=10), 1))
    await killed_listener("after the first commit", tmp_path / "log")

    async def gone() -> bool:
        return bool(
            await shop.value(
                "select count(*) = 0 from pg_stat_activity where datname = current_database()"
                " and application_name like 'darkpearl%'"
            )
        )

    await until(gone)
    assert await shop.value("select count(*) from pg_locks where locktype = 'advisory'") == 0
