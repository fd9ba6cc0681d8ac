"""`darkpearl paysim` as a process of its own, and what it says to a wrong command."""

import asyncio
import sys
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
import rich_click as click

from darkpearl.cli import main as cli
from darkpearl.gateways import Answer, Call
from darkpearl.gateways.http import HttpGateway

from .conftest import PATIENCE_SECONDS, Start

CALLS, ENOUGH = 200, 40


async def test_kill_9_loses_nothing_that_was_said(start: Start, tmp_path: Path) -> None:
    """Killed amid calls: what was answered is in the books, done once, and told by webhook yet."""

    def asked(number: int) -> Call:
        key = f"order-{number}"
        return Call(
            operation="authorize", idempotency_key=key, payment_key=key, amount=Decimal(1),
            currency="EUR", capture=True, token="pending" if number % 2 else None,
        )  # fmt: skip

    answers: dict[int, Answer] = {}
    enough = asyncio.Event()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "darkpearl", "paysim", "--port=0", "--pending-seconds=0",
        f"--ledger={tmp_path / 'paysim.db'}", "--token=sesame",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            name, url = (await process.stdout.readline()).decode().split()
            assert name == "paysim"
            doomed = HttpGateway(url, token="sesame", concurrency=16)

            async def ask(number: int) -> None:
                answers[number] = await doomed.authorize(asked(number))
                if len(answers) == ENOUGH:
                    enough.set()

            callers = [asyncio.create_task(ask(number)) for number in range(CALLS)]
            await enough.wait()
    finally:
        process.kill()
        await process.wait()
    await asyncio.gather(*callers)
    await doomed.close()
    said = {number: each for number, each in answers.items() if each.outcome != "unknown"}
    assert ENOUGH <= len(said) < CALLS

    told: set[str] = set()
    all_told = asyncio.Event()

    async def hear(request: httpx.Request) -> httpx.Response:
        event = gateway.webhook(request.headers, request.content)
        assert event
        assert event.answer.outcome == "approved"
        told.add(str(event.idempotency_key))
        if told >= {
            f"order-{number}" for number, each in said.items() if each.outcome == "pending"
        }:
            all_told.set()
        return httpx.Response(204)

    async with start(heard=hear) as gateway:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await all_told.wait()
        for number, answer in said.items():
            known = await gateway.lookup(asked(number))
            assert known
            assert (known.outcome, known.captured) == ("approved", 1)
            assert known == answer or answer.outcome == "pending"


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--drop-rate=2"], click.UsageError, "--drop-rate"),
        (["--drop-rate=0.6", "--late-rate=0.6"], click.UsageError, "exceed 1 together"),
        (["--ledger=/"], cli.FAILURES, "unable to open database file"),
        (["--ledger={junk}"], cli.FAILURES, "file is not a database"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str],
    error: type[Exception] | tuple[type[Exception], ...],
    said: str,
    tmp_path: Path,
) -> None:
    """An option out of range is the command's fault, a file that can't be used the world's."""
    junk = tmp_path / "junk"
    junk.write_text("neither empty nor a database, but long enough to be looked at " * 20)
    words = ["paysim", "--port=0", *(each.format(junk=junk) for each in arguments)]
    with pytest.raises(error) as caught:
        cli.command.main(words, standalone_mode=False)
    shown = caught.value.format_message() if error is click.UsageError else str(caught.value)
    assert said in shown
