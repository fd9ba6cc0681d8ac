"""What is read and drawn once for all viewers of the page."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from darkpearl.errors import BadRequestError, DarkPearlError, NotFoundError, UnavailableError
from darkpearl.monitor.looks import LOOK_SECONDS, Looks, Watch
from darkpearl.monitor.screens import Sight, find_sight


def sight(path: str = "", **asked: str) -> Sight:
    """What is to be seen at a path."""
    found = find_sight(path, asked)
    assert found is not None
    return found


OVERVIEW, ORDERS, WRONG = sight(), sight("orders"), sight("orders", before="x")


class Viewer:
    """Somebody who looks, and notes what the database was asked in their name."""

    key = "ada"
    may_act = True
    has_expired = False

    def __init__(self, role: str = "service_role") -> None:
        self.role = role
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: DarkPearlError | None = None

    async def find(self, kind: Any, *statements: Any) -> Any:
        ((query, parameters),) = statements
        self.asked.append(query)
        await self.may_answer.wait()
        if self.error:
            raise self.error
        if "x" in parameters.values():
            raise BadRequestError("x is no number")
        seen = [f"{len(self.asked)}"] * (query.count("monitor_") - 1)
        return {"state": {}, "seen": seen}


def draw(of: Sight, _: Any, seen: Any, *__: Any) -> str:
    """What was found, under its path."""
    return f"{of.path}: {seen}"


class Time:
    """Pauses end when they are told to; the clock stands until it is turned."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self._over = asyncio.Event()

    def clock(self) -> float:
        return self.now

    async def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self._over.wait()

    async def goes_on(self) -> None:
        """The pause is over, and what comes then is done."""
        await settled()
        self._over.set()
        self._over = asyncio.Event()
        await settled()


async def settled() -> None:
    """Everything that can be done at once is done."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def time() -> Time:
    """It stands at 0."""
    return Time()


@pytest.fixture
def looks(time: Time) -> Looks:
    """Of nobody yet."""
    return Looks(draw, time.wait, time.clock)


@pytest.fixture
def watches(looks: Looks) -> Iterator[Any]:
    """Watches something until the end of the test."""
    with ExitStack() as stack:
        yield lambda viewer, what: stack.enter_context(looks.watching(viewer, what))


async def test_all_who_look_share_one_statement_a_turn(watches: Any, time: Time) -> None:
    """Of fifty viewers of two screens the first look is two statements, each turn is one."""
    ada = Viewer()
    all_of_them: list[Watch] = [watches(ada, (OVERVIEW, ORDERS)[n % 2]) for n in range(50)]
    await asyncio.gather(*(each.first() for each in all_of_them))
    assert len(ada.asked) == 2
    for turn in (3, 4):
        nexts = [asyncio.create_task(each.next()) for each in all_of_them]
        await time.goes_on()
        said = await asyncio.gather(*nexts)
        assert set(said) == {f": {turn}", f"orders: {turn}"}
        assert len(ada.asked) == turn
        assert ada.asked[-1].count("monitor_state") == 1
    assert time.pauses == [LOOK_SECONDS] * 3


async def test_nobody_looks_and_nothing_is_asked(looks: Looks, time: Time) -> None:
    """The turn after the last has left asks nothing; who comes back begins anew."""
    ada = Viewer()
    with looks.watching(ada, OVERVIEW) as watch:
        await watch.first()
    await time.goes_on()
    await time.goes_on()
    assert (len(ada.asked), len(time.pauses)) == (1, 1)
    with looks.watching(ada, OVERVIEW) as watch:
        assert await watch.first() == ": 2"


async def test_roles_share_nothing(watches: Any) -> None:
    """What one role may see another may not."""
    ada, reader = Viewer(), Viewer("darkpearl_reader")
    await watches(ada, OVERVIEW).first()
    await watches(reader, OVERVIEW).first()
    await watches(Viewer(), OVERVIEW).first()
    assert (len(ada.asked), len(reader.asked)) == (1, 1)


async def test_a_viewer_who_leaves_takes_nobodys_answer_along(watches: Any) -> None:
    """Whoever waits for the same gets it, though the one who asked is gone."""
    ada, bob = Viewer(), Viewer()
    ada.may_answer.clear()
    first = asyncio.create_task(watches(ada, OVERVIEW).first())
    await settled()
    second = asyncio.create_task(watches(bob, OVERVIEW).first())
    await settled()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    ada.may_answer.set()
    assert await second == ": 1"
    assert bob.asked == []


async def test_what_takes_long_is_asked_for_less_often(watches: Any, time: Time) -> None:
    """After a look of three seconds comes a pause of four times as long."""
    ada = Viewer()
    watch = watches(ada, OVERVIEW)
    await watch.first()
    ada.may_answer.clear()
    await time.goes_on()
    time.now = 3.0
    ada.may_answer.set()
    await settled()
    assert time.pauses == [LOOK_SECONDS, 12.0]


async def test_who_asks_what_makes_no_sense_is_alone_with_it(watches: Any, time: Time) -> None:
    """The others of the turn see what they came for."""
    ada = Viewer()
    good, wrong = watches(ada, ORDERS), watches(ada, WRONG)
    await good.first()
    nexts = [asyncio.create_task(each.next()) for each in (good, wrong)]
    await time.goes_on()
    assert (await nexts[0]).startswith("orders: ")
    with pytest.raises(BadRequestError):
        await nexts[1]


async def test_a_database_that_is_away_is_asked_once_a_turn(watches: Any, time: Time) -> None:
    """However many look, and however many screens; then all see what there is again."""
    ada = Viewer()
    both = [watches(ada, OVERVIEW), watches(ada, ORDERS)]
    await asyncio.gather(*(each.first() for each in both))
    ada.error = UnavailableError("away")
    nexts = [asyncio.create_task(each.next()) for each in both]
    await time.goes_on()
    for each in nexts:
        with pytest.raises(UnavailableError):
            await each
    for each in both:  # who opens a screen now isn't a reason to ask
        with pytest.raises(UnavailableError):
            await each.first()
    assert len(ada.asked) == 3
    ada.error = None
    nexts = [asyncio.create_task(each.next()) for each in both]
    await time.goes_on()
    assert await asyncio.gather(*nexts) == [": 4", "orders: 4"]


async def test_who_was_away_for_long_is_soon_asked_again(watches: Any, time: Time) -> None:
    """However long it took to say so."""
    ada = Viewer()
    await watches(ada, OVERVIEW).first()
    ada.may_answer.clear()
    ada.error = UnavailableError("away")
    await time.goes_on()
    time.now = 30.0
    ada.may_answer.set()
    await settled()
    assert time.pauses == [LOOK_SECONDS, LOOK_SECONDS]


async def test_after_an_action_all_is_looked_up_anew(
    looks: Looks, watches: Any, time: Time
) -> None:
    """Whoever has changed something sees that at once, even if a look was under way."""
    ada = Viewer()
    watch = watches(ada, OVERVIEW)
    await watch.first()
    after = asyncio.create_task(watch.next())
    await settled()
    looks.forget()
    assert await after == ": 2"
    ada.may_answer.clear()
    await time.goes_on()
    looks.forget()
    ada.may_answer.set()
    await settled()
    assert len(ada.asked) == 4
    assert await watch.first() == ": 4"


async def test_what_cant_be_drawn_is_an_error_of_that_screen(time: Time) -> None:
    """A screen with a bug, or of a thing that is gone, leaves the others as they are."""

    def careful(of: Sight, *_: Any) -> str:
        if of == OVERVIEW:
            raise ZeroDivisionError
        if of == WRONG:
            raise NotFoundError
        return "fine"

    looks, ada = Looks(careful, time.wait, time.clock), Viewer()
    with looks.watching(ada, OVERVIEW) as broken, looks.watching(ada, ORDERS) as good:
        nexts = [asyncio.create_task(each.next()) for each in (broken, good)]
        await time.goes_on()
        assert await nexts[1] == "fine"
        with pytest.raises(DarkPearlError) as raised:
            await nexts[0]
    assert raised.value.status == 500
