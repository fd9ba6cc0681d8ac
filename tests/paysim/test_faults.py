"""Faults on the way: what they leave behind, and that they can be had again."""

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest
from litestar.types import Receive, Scope, Send

from darkpearl.gateways.http import HttpGateway
from darkpearl.paysim.faults import Behaviour

from .conftest import PATIENCE_SECONDS, Start, call, served

RATES = {"drop": 0.1, "error": 0.2, "reset": 0.05, "late": 0.15}


def test_everything_follows_from_seed_key_and_try() -> None:
    """The same three, the same fault; any other one of them, another course of events."""

    def course(seed: int, key: str) -> list[object]:
        how = Behaviour(
            seed=seed, latency_ms=5, decline_rate=0.5, pending_rate=0.5, answer_twice_rate=0.5,
            reorder_seconds=1, duplicate_webhook_rate=0.5,
            drop_rate=0.1, error_rate=0.2, reset_rate=0.3, late_rate=0.2,
        )  # fmt: skip
        told = how.webhook_delay(key), how.webhook_copies(key), how.verdict("authorize", key)
        return [told, *(how.fault(key, number) for number in range(1, 6))]

    assert course(1, "a") == course(1, "a")
    courses = [course(1, "a"), course(2, "a"), course(1, "b")]
    assert len({str(each) for each in courses}) == 3
    assert len({str(each) for each in courses[0][1:]}) == 5


def test_rates_are_what_they_say() -> None:
    """Of many calls; half of what can come before a call is made does."""
    how = Behaviour(
        latency_ms=20, decline_rate=0.1, pending_rate=0.3, webhook_first_rate=0.2,
        answer_twice_rate=0.4, **{f"{kind}_rate": rate for kind, rate in RATES.items()},
    )  # fmt: skip
    keys = [f"key-{number}" for number in range(5000)]
    faults = [how.fault(key, 1) for key in keys]
    kinds = Counter(fault.kind for fault in faults)
    for kind, rate in (*RATES.items(), ("answer", 0.5)):
        assert kinds[kind] / 5000 == pytest.approx(rate, abs=0.03)
    before = Counter(fault.kind for fault in faults if fault.before)
    assert before.keys() == {"error", "reset", "late"}
    assert before["error"] / kinds["error"] == pytest.approx(0.5, abs=0.1)
    latencies = sorted(fault.latency_seconds for fault in faults)
    assert latencies[2500] == pytest.approx(0.020, rel=0.1)
    assert latencies[4500] > 1.5 * latencies[2500]
    verdicts = [how.verdict("authorize", key) for key in keys]
    assert sum(each.code is not None for each in verdicts) / 5000 == pytest.approx(0.1, abs=0.03)
    assert sum(each.pending for each in verdicts) / 5000 == pytest.approx(0.3, abs=0.03)
    told = Counter(each.webhook for each in verdicts)
    assert told["first"] / 5000 == pytest.approx(0.2, abs=0.03)
    assert told["after"] / 5000 == pytest.approx(0.4, abs=0.03)
    assert {how.verdict("void", key).pending for key in keys} == {False}


def test_no_more_than_all_can_go_wrong() -> None:
    """Exclusive rates that exceed 1 together are refused."""
    with pytest.raises(ValueError, match="exceed 1 together"):
        Behaviour(drop_rate=0.5, late_rate=0.6)
    with pytest.raises(ValueError, match="exceed 1 together"):
        Behaviour(webhook_first_rate=0.5, answer_twice_rate=0.6)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ("drop_rate", "RemoteProtocolError: Server disconnected without sending a response."),
        ("reset_rate", "ReadError"),
        ("error_rate", "POST /v1/payments: 500"),
    ],
)
async def test_a_call_that_goes_wrong_is_unknown(start: Start, rate: str, said: str) -> None:
    """It may have been done or not; asking what became of it tells, asking again does it once."""
    keys = [f"key-{number}" for number in range(12)]
    async with start(socket=True, **{rate: 1}) as gateway:
        for key in keys:
            answer = await gateway.authorize(call("authorize", key))
            assert (answer.outcome, answer.message) == ("unknown", said)
    async with start() as gateway:
        found = [await gateway.lookup(call("authorize", key)) for key in keys]
        assert {each.outcome for each in found if each} == {"approved"}
        assert (None in found) is (rate != "drop_rate")
        for key, known in zip(keys, found, strict=True):
            answer = await gateway.authorize(call("authorize", key))
            assert answer.outcome == "approved"
            assert known in {None, answer}


async def test_a_later_try_meets_another_fault(start: Start) -> None:
    """So asking again gets through at last."""
    async with start(socket=True, reset_rate=0.4, drop_rate=0.4) as gateway:
        for number in range(5):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    answer = await gateway.authorize(call("authorize", f"key-{number}"))
                    if answer.outcome == "approved":
                        break
        assert answer.captured == 0


async def test_a_late_call_is_made_after_its_caller_has_gone(
    start: Start, tmp_path: Path, until: Callable[..., Awaitable[None]]
) -> None:
    """Half of them: nothing is known of it when the caller gives up, and yet it is done then."""
    how = {"late_rate": 1.0, "late_seconds": 2.0}
    keys = [f"key-{number}" for number in range(6)]
    at_once = sum(not Behaviour(**how).fault(key, 1).before for key in keys)
    assert 0 < at_once < 6
    sent: asyncio.Queue[str] = asyncio.Queue()

    async def sending(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.put_nowait(event)

    async def watch(request: httpx.Request) -> None:
        request.extensions["trace"] = sending

    async def done(number: int) -> bool:
        with closing(sqlite3.connect(tmp_path / "paysim.db")) as books:
            count: int = books.execute("select count(*) from calls").fetchone()[0]
            return count == number

    async with start(socket=True, **how) as gateway, asyncio.timeout(PATIENCE_SECONDS):
        gateway._client.event_hooks["request"].append(watch)
        calls = [asyncio.ensure_future(gateway.authorize(call("authorize", key))) for key in keys]
        for _ in keys:
            await sent.get()
        await until(partial(done, at_once))
        for each in calls:
            assert each.cancel()
        await asyncio.wait(calls)
        assert await done(at_once)
        await until(partial(done, 6))


async def test_silence_has_an_end(start: Start) -> None:
    """A service that doesn't answer in time gave no answer."""
    async with start(socket=True, late_rate=1, late_seconds=0.5) as gateway:
        url = str(gateway._client.base_url)
        hasty = HttpGateway(url, token="sesame", timeout_seconds=0.1)
        answer = await hasty.authorize(call("authorize", "p"))
        assert answer.outcome == "unknown"
        assert str(answer.message).endswith("Timeout")
        await hasty.close()


async def test_a_call_that_was_given_up_does_not_hold_its_connection() -> None:
    """The only one there is serves the next call."""
    asked = 0

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        if scope["type"] != "http":
            return
        asked += 1
        while asked == 1 and (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = b'{"outcome": "approved"}'
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async with served(slow) as url:
        gateway = HttpGateway(url, concurrency=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await gateway.authorize(call("authorize", "p"))
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await gateway.authorize(call("authorize", "p"))).outcome == "approved"
        await gateway.close()
