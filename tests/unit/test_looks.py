"""Statements that are run once for all viewers of the page."""

import asyncio
from typing import Any

import pytest

from darkpearl.errors import UnavailableError
from darkpearl.monitor.looks import Looks

STATEMENT = ("select 1", {"id": 7})


class Clock:
    """A clock that stands until it is turned."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Viewer:
    """Somebody who looks, and counts how often the database was asked in their name."""

    key = "ada"
    may_act = True
    has_expired = False

    def __init__(self, role: str = "service_role") -> None:
        self.role = role
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    async def find(self, kind: Any, *statements: Any) -> Any:
        self.asked += 1
        await self.may_answer.wait()
        if self.error:
            raise self.error
        return {"n": self.asked}


@pytest.fixture
def clock() -> Clock:
    """It stands at 0."""
    return Clock()


async def test_who_looks_within_a_second_shares_an_answer(clock: Clock) -> None:
    """Others get what the first one got, and the next second asks anew."""
    looks, ada, bob = Looks(clock), Viewer(), Viewer()
    assert await looks.look(ada, STATEMENT) == {"n": 1}
    assert await looks.look(bob, STATEMENT) == {"n": 1}
    assert bob.asked == 0
    clock.now = 1.0
    await looks.look(bob, STATEMENT)
    assert (ada.asked, bob.asked) == (1, 1)


async def test_other_roles_and_parameters_share_nothing(clock: Clock) -> None:
    """What one role may see another may not."""
    looks, ada, reader = Looks(clock), Viewer(), Viewer("darkpearl_reader")
    await looks.look(ada, STATEMENT)
    await looks.look(reader, STATEMENT)
    await looks.look(ada, ("select 1", {"id": 8}))
    assert (ada.asked, reader.asked) == (2, 1)


async def test_a_viewer_who_leaves_takes_nobodys_answer_along(clock: Clock) -> None:
    """Whoever waits for the same gets it, though the one who asked is gone."""
    looks, ada, bob = Looks(clock), Viewer(), Viewer()
    ada.may_answer.clear()
    first = asyncio.create_task(looks.look(ada, STATEMENT))
    await asyncio.sleep(0)
    second = asyncio.create_task(looks.look(bob, STATEMENT))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    ada.may_answer.set()
    assert await second == {"n": 1}
    assert bob.asked == 0


async def test_what_takes_long_is_asked_for_less_often(clock: Clock) -> None:
    """An answer of three seconds is good for four times as long."""
    looks, ada = Looks(clock), Viewer()
    ada.may_answer.clear()
    look = asyncio.create_task(looks.look(ada, STATEMENT))
    await asyncio.sleep(0)
    clock.now = 3.0
    ada.may_answer.set()
    await look
    clock.now = 11.0
    await looks.look(ada, STATEMENT)
    assert ada.asked == 1
    clock.now = 13.0
    await looks.look(ada, STATEMENT)
    assert ada.asked == 2


async def test_an_error_is_shared_and_soon_asked_again(clock: Clock) -> None:
    """A database that is away is asked once a second, however long it took to say so."""
    looks, ada, bob = Looks(clock), Viewer(), Viewer()
    ada.error = UnavailableError("away")
    for viewer in (ada, bob):
        with pytest.raises(UnavailableError):
            await looks.look(viewer, STATEMENT)
    assert (ada.asked, bob.asked) == (1, 0)
    clock.now = 1.0
    assert await looks.look(bob, STATEMENT) == {"n": 1}


async def test_after_an_action_all_is_looked_up_anew(clock: Clock) -> None:
    """Whoever has changed something sees that."""
    looks, ada = Looks(clock), Viewer()
    await looks.look(ada, STATEMENT)
    looks.forget()
    await looks.look(ada, STATEMENT)
    assert ada.asked == 2
