"""A storm: a durable server, the processes around it, and what goes wrong with them meanwhile.

Each trouble is a task that goes on until it is cancelled or the storm is over, and is counted.
"""

import asyncio
import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
from psycopg.rows import dict_row

from darkpearl import embedded
from darkpearl.embedded import wheel
from darkpearl.gateways import GatewayPayment
from darkpearl.gateways.http import SIGNATURE_HEADER, sign

KILL_SECONDS = 2.0
"""Of its work a listener has so long alone, and so long again beside the next one."""
SECRET = "whsec_" + "x" * 32
SPARED = "the storm's own"
"""The application name of sessions that nobody ends."""
Rows = list[dict[str, Any]]


@dataclass
class Storm:
    """A durable server, the processes around it, and what was done to them."""

    home: Path
    server: embedded.Server
    counts: Counter[str] = field(default_factory=Counter)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    turn_seconds: float = KILL_SECONDS
    """From one listener killed to the next: what a command needs to begin here comes first."""

    @asynccontextmanager
    async def session(
        self, role: str = "darkpearl_owner", application_name: str = "storm"
    ) -> AsyncIterator[psycopg.AsyncConnection[dict[str, Any]]]:
        """A session of a role's, each statement a transaction.

        Raises:
            OperationalError: the server is away, or somebody ended the session.
        """
        async with await psycopg.AsyncConnection.connect(
            self.server.url,
            row_factory=dict_row,
            autocommit=True,
            application_name=application_name,
            options=f"-c search_path=darkpearl -c role={role}",
        ) as connection:
            yield connection

    async def rows(self, query: str, *parameters: Any) -> Rows:
        """Every row of a query, whatever happens to the server meanwhile."""
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                async with self.session("none", SPARED) as connection:
                    cursor = await connection.execute(query.encode(), parameters or None)
                    return await cursor.fetchall() if cursor.description else []
            await asyncio.sleep(0.05)

    async def value(self, query: str, *parameters: Any) -> Any:
        """The only value of a query."""
        ((value,),) = [each.values() for each in await self.rows(query, *parameters)]
        return value

    async def set_clock(self, ahead: str) -> None:
        """Set the database's clock to so much ahead of the true time."""
        await self.rows(
            "create or replace function clock() returns timestamptz language sql volatile parallel"
            f" safe return clock_timestamp() + interval '{ahead}'"
        )
        self.counts[f"clock set to {ahead} ahead"] += 1

    async def restart(self, mode: str) -> None:
        """Restart the server on the same port; `immediate` is as good as a power cut."""
        account = wheel.account_for(self.home)
        process = await asyncio.create_subprocess_exec(
            *(wheel.binaries_for(account) / "pg_ctl", "restart", "-w", "-s"),
            *("-D", self.server.data, "-m", mode, "-l", os.devnull),
            cwd="/",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
            **account.switch(),
        )
        assert await process.wait() == 0
        self.counts[f"restart {mode}"] += 1

    async def where(self) -> Rows:
        """Where sagas stand."""
        return await self.rows(
            "select saga_type, status::text, position, attempts, count(*), min(ready_at) - clock()"
            " from sagas group by 1, 2, 3, 4"
        )

    async def story(self, order: UUID) -> Rows:
        """The history of an order, here and as the gateway told it."""
        return await self.rows(
            "select created_at, event_type::text, step_name, message from saga_events"
            " where saga_id = %s union all"
            " select received_at, disposition::text, idempotency_key, answer::text"
            " from gateway_events where idempotency_key like %s || ':%%' order by 1",
            order,
            str(order),
        )

    @asynccontextmanager
    async def process(self, *arguments: str, **settings: str) -> AsyncIterator[None]:
        """A darkpearl command, killed at the end."""
        kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "darkpearl", *arguments),
            env={
                **kept,
                "DARKPEARL_DATABASE_URL": self.server.url,
                "DARKPEARL_HOME": str(self.home),
                "DARKPEARL_LOG_LEVEL": "error",
                "DARKPEARL_WEBHOOK_SECRET": SECRET,
                "DARKPEARL_GATEWAY": "http",
                **settings,
            },
            stdout=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def disagreement(row: dict[str, Any], theirs: GatewayPayment | None) -> str:
    """The faults of one order, against what the gateway has of it."""
    charged = theirs.captured - theirs.refunded if theirs else 0
    if theirs and theirs.captured > row["total_amount"]:
        return f"charged more than once: {theirs}"
    if theirs and theirs.captured != row["captured_amount"]:
        return f"captured: {theirs}"
    if theirs and theirs.refunded != row["refunded_amount"]:
        return f"refunded: {theirs}"
    if row["status"] == "fulfilled":
        return "" if charged == row["total_amount"] else f"fulfilled and not paid: {theirs}"
    return "" if (row["status"], charged) == ("cancelled", 0) else f"not cancelled: {theirs}"


async def kill_listeners(storm: Storm, gateway_url: str) -> None:
    """Two listeners, of which the older is killed and replaced every two seconds of work."""
    began = time.monotonic()
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "darkpearl", "version"), stdout=asyncio.subprocess.DEVNULL
    )
    await command.wait()
    storm.turn_seconds = KILL_SECONDS + time.monotonic() - began
    settings = {"DARKPEARL_GATEWAY_URL": gateway_url, "DARKPEARL_PAYMENT_TIMEOUT_SECONDS": "2"}
    async with contextlib.AsyncExitStack() as older:
        while True:
            async with contextlib.AsyncExitStack() as newer:
                await newer.enter_async_context(storm.process("listener", **settings))
                await asyncio.sleep(storm.turn_seconds)
                await older.aclose()
                storm.counts["listeners killed"] += 1
                older.push_async_exit(newer.pop_all())


async def run_a_lost_listener(storm: Storm, nowhere: str) -> None:
    """One more listener, whose gateway's address leads nowhere."""
    async with storm.process("listener", DARKPEARL_GATEWAY_URL=nowhere):
        await asyncio.Event().wait()


async def leave_locks_open(storm: Storm) -> None:
    """Transactions that lock an order, a payment or a shelf, and take their time to end."""
    dice = random.Random(7)
    statements = [
        """
        update orders set notes = 'seen'
        where id in (select id from orders where status < 'fulfilled' order by random() limit 1)
        """,
        """
        select from payments
        where order_id in (select order_id from payments order by random() limit 1)
        for update
        """,
        """
        select from inventory
        where (product_id, warehouse_id) in (
            select product_id, warehouse_id from inventory order by random() limit 1
        )
        for update
        """,
    ]

    async def one(statement: str, seconds: float) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            async with storm.session() as connection, connection.transaction():
                await connection.execute(statement.encode())
                storm.counts["locks left open"] += 1
                await asyncio.sleep(seconds)

    async with asyncio.TaskGroup() as all_of_them:
        while True:
            all_of_them.create_task(one(dice.choice(statements), dice.random() * 4))
            await asyncio.sleep(0.5)


async def end_sessions(storm: Storm) -> None:
    """Five times a second somebody's session is ended."""
    while True:
        ended = await storm.rows(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and backend_type = 'client backend'"
            "     and pid <> pg_backend_pid() and application_name <> %s"
            " order by random() limit 1",
            SPARED,
        )
        storm.counts["sessions ended"] += len(ended)
        await asyncio.sleep(0.2)


async def read_without_end(storm: Storm) -> None:
    """A report that reads the history and never goes; a new one when the server was restarted."""
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            async with storm.session(application_name=SPARED) as connection:
                await connection.execute("begin isolation level repeatable read")
                await connection.execute("select count(*) from saga_events")
                storm.counts["reports begun"] += 1
                while True:
                    await asyncio.sleep(1)
                    await connection.execute("select 1")
        await asyncio.sleep(0.1)


async def send_garbage(storm: Storm, webhooks: str) -> None:
    """Webhooks that are unsigned, signed nonsense, of nobody's payment, or full of odd letters."""
    dice = random.Random(9)
    bodies = [
        b"",
        b"\x00\xff",
        b"{}",
        b'[{"event_id": 1}]',
        b'{"event_id": "%s", "idempotency_key": "x\\u0000y", "answer": {"outcome": "approved"}}',
        b'{"event_id": "%s", "idempotency_key": "nobody", "answer": {"outcome": "approved",'
        b' "message": "' + 20_000 * b"m" + b'"}}',
    ]
    async with httpx.AsyncClient(timeout=5) as client:
        while not storm.over.is_set():
            body = dice.choice(bodies).replace(b"%s", str(uuid4()).encode())
            headers = {"Content-Type": "application/json"}
            if dice.random() < 0.8:
                headers[SIGNATURE_HEADER] = sign(SECRET, body, time.time())
            with contextlib.suppress(httpx.TransportError):
                response = await client.post(webhooks, content=body, headers=headers)
                assert response.status_code in {200, 204, 400, 401, 413, 503}, response.text
                storm.counts[f"garbage answered {response.status_code}"] += 1
            await asyncio.sleep(0.1)
