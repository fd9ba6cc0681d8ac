"""The file behind the simulator: many callers, one transaction."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection

import pytest

from darkpearl.paysim.ledger import KeyReusedError, Ledger


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    """An empty one."""
    ledger = Ledger(tmp_path / "paysim.db")
    yield ledger
    await ledger.close()


def write(key: str) -> Callable[[Connection], str]:
    """Writes a call down, and returns its key."""

    def work(db: Connection) -> str:
        db.execute("insert into calls values (?, 'p', '{}', '{}', null)", [key])
        return key

    return work


def fail(error: Exception) -> Callable[[Connection], None]:
    """Does nothing but fail."""

    def work(_: Connection) -> None:
        raise error

    return work


def keys(path: Path) -> list[str]:
    """The file as somebody else reads it."""
    with closing(sqlite3.connect(path)) as reader:
        return [key for (key,) in reader.execute("select idempotency_key from calls order by 1")]


async def test_who_is_answered_is_in_the_file(ledger: Ledger, tmp_path: Path) -> None:
    """Another process sees it by then."""
    for each in "abc":
        assert await ledger.do(write(each)) == each
        assert each in keys(tmp_path / "paysim.db")


async def test_callers_at_once_share_a_transaction(ledger: Ledger, tmp_path: Path) -> None:
    """Work that was handed in together is committed once, in that order."""
    statements: list[str] = []
    ledger._db.set_trace_callback(statements.append)
    answers = await asyncio.gather(*(ledger.do(write(each)) for each in "cab"))
    assert answers == ["c", "a", "b"]
    assert keys(tmp_path / "paysim.db") == ["a", "b", "c"]
    assert [each for each in statements if each == "commit"] == ["commit"]


async def test_a_refusal_is_its_callers_alone(ledger: Ledger, tmp_path: Path) -> None:
    """The others of the transaction are committed."""
    works = [write("a"), fail(KeyReusedError("b")), write("c")]
    answers = await asyncio.gather(*map(ledger.do, works), return_exceptions=True)
    assert [type(each) for each in answers] == [str, KeyReusedError, str]
    assert keys(tmp_path / "paysim.db") == ["a", "c"]


async def test_a_failure_is_everybodys(ledger: Ledger, tmp_path: Path) -> None:
    """Nobody is told of what isn't committed; the next transaction is a new one."""
    works = [write("a"), fail(ZeroDivisionError()), write("c")]
    answers = await asyncio.gather(*map(ledger.do, works), return_exceptions=True)
    assert [type(each) for each in answers] == [ZeroDivisionError] * 3
    assert await ledger.do(write("d")) == "d"
    assert keys(tmp_path / "paysim.db") == ["d"]


async def test_whoever_goes_away_is_not_waited_for(ledger: Ledger, tmp_path: Path) -> None:
    """The work that they handed in is done; the others hear of theirs."""
    gone = asyncio.create_task(ledger.do(write("a")))
    stays = asyncio.create_task(ledger.do(write("b")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == "b"
    assert keys(tmp_path / "paysim.db") == ["a", "b"]
