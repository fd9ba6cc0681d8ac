"""The books of the simulated service: one SQLite file, written by one thread at a time.

Whoever wants something done hands in a function of the connection. All that has gathered while
the last commit was under way runs in one transaction, and its outcomes are told after its commit:
many callers share one fsync, and nobody is told what a kill could take back.

Amounts are whole ten-thousandths of the major unit, which is exact for every currency.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import Any, TypeVar

_SCHEMA = """
pragma journal_mode = wal;
pragma synchronous = full;

create table if not exists payments (
    id integer primary key,
    payment_key text not null unique,
    currency text not null,
    authorized integer not null,
    captured integer not null,
    refunded integer not null,
    voided integer not null,
    disputed integer not null default 0,
    created_at text not null,
    check (0 <= refunded and refunded <= captured and captured <= authorized)
) strict;

create table if not exists calls (
    idempotency_key text primary key,
    payment_key text not null,
    request text not null,
    answer text not null,
    decide_at real
) strict, without rowid;
create index if not exists calls_pending_idx on calls (payment_key, decide_at)
where decide_at is not null;

create table if not exists regrets (
    idempotency_key text primary key references calls,
    due_at real not null
) strict, without rowid;
create index if not exists regrets_due_idx on regrets (due_at);

create table if not exists webhooks (
    name text primary key,
    body blob not null,
    attempts integer not null default 0,
    send_at real
) strict, without rowid;
create index if not exists webhooks_send_idx on webhooks (send_at) where send_at is not null;
"""

T = TypeVar("T")


class LedgerError(RuntimeError):
    """The file can't be used."""


class KeyReusedError(ValueError):
    """An idempotency key came again with another request."""


class Ledger:
    """The file. `do()` runs functions of its connection, in the order they were handed in."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            LedgerError: it isn't a ledger, or can't be written.
        """
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: {error}") from None
        self._waiting: list[tuple[Callable[[Connection], Any], asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def do(self, work: Callable[[Connection], T]) -> T:
        """The result of the work, after its commit.

        Raises:
            KeyReusedError: if the work does, before it has written; others go on without it.
            sqlite3.Error: nothing of the transaction was done.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return await done

    async def close(self) -> None:
        """Finish what was handed in."""
        if self._writer:
            await self._writer
        self._db.close()

    async def _write(self) -> None:
        while self._waiting:
            works, self._waiting = self._waiting, []
            try:
                outcomes = await asyncio.to_thread(self._commit, [work for work, _ in works])
            except Exception as error:  # noqa: BLE001 - whoever waits is told
                outcomes = [error] * len(works)
            for (_, done), outcome in zip(works, outcomes, strict=True):
                if done.cancelled():
                    continue
                if isinstance(outcome, Exception):
                    done.set_exception(outcome)
                else:
                    done.set_result(outcome)

    def _commit(self, works: list[Callable[[Connection], Any]]) -> list[Any]:
        outcomes: list[Any] = []
        self._db.execute("begin immediate")
        try:
            for work in works:
                try:
                    outcomes.append(work(self._db))
                except KeyReusedError as error:
                    outcomes.append(error)
            self._db.execute("commit")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("rollback")
            raise
        return outcomes
