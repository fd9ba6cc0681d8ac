import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shop import Shop
from terminal import Ask, Done, Refused, Run, done

from darkpearl import embedded


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder for a server of its own, in memory where there is some."""
    memory = embedded.MEMORY if os.access(embedded.MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="darkpearl-", dir=memory) as folder:
        Path(folder).chmod(0o711)  # for root's `nobody`
        yield Path(folder)


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on the test's database."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", database_url)

    async def command(*arguments: object) -> Done:
        return await asyncio.to_thread(done, arguments)

    return command


@pytest.fixture
def refused(run: Run) -> Refused:
    """Runs a command that is refused: one line, exit code 2, nothing else. The line."""

    async def command(*arguments: object) -> str:
        ended = await run(*arguments)
        assert (ended.code, ended.said, ended.errors.count("\n")) == (2, "", 1), ended
        return ended.errors

    return command


@pytest.fixture
def ask(run: Run, shop: Shop) -> Ask:
    """Has the doctor make one check; its line."""

    async def of(check: str) -> dict[str, Any]:
        shop.audited = False  # troubles are made on purpose
        done = await run("doctor", "--json", "--only", check)
        lines = {line["check"]: line for line in done.rows}
        assert done.errors == ""
        states = {line["state"] for line in lines.values()}
        assert done.code == int(states != {"ok"})
        return lines[check]

    return of
