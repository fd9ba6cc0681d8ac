import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

PATIENCE_SECONDS = 10.0

Connect = Callable[..., Awaitable[Any]]


@pytest.fixture
async def waits(connect: Connect) -> Callable[[int], Awaitable[None]]:
    """Returns once the backend with this pid is seen waiting for a lock."""
    observer = await connect()

    async def seen_waiting(pid: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            cursor = await observer.execute(
                "select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'", [pid]
            )
            if cursor.rowcount:
                return
            await anyio.lowlevel.checkpoint()
        raise AssertionError(f"backend {pid} was never seen waiting for a lock")

    return seen_waiting
