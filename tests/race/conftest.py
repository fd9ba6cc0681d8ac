import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import psycopg
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


@pytest.fixture
def race(
    connect: Connect, waits: Callable[[int], Awaitable[None]]
) -> Callable[..., Awaitable[str]]:
    """Two calls at once, of which the second is seen to wait for the first; its SQLSTATE."""

    async def raced(
        first: tuple[Any, ...],
        second: tuple[Any, ...],
        role: str = "darkpearl_app",
        second_role: str = "darkpearl_app",
    ) -> str:
        one = await connect(role, autocommit=False)
        other = await connect(second_role)
        await one.execute(first[0], first[1:])
        sqlstate = ""

        async def call() -> None:
            nonlocal sqlstate
            try:
                await other.execute(second[0], second[1:])
            except psycopg.Error as error:
                sqlstate = error.sqlstate or "?"

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await waits(other.info.backend_pid)
            await one.commit()
        return sqlstate

    return raced
