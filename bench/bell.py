"""The cost of waking listeners for writers: no bell, NOTIFY on every insert, the idle lock."""

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import psycopg

from bench.harness import Shop
from bench.pgbench import place_orders
from bench.rounds import Variant
from darkpearl import database

SECONDS = 2
PRODUCERS = (1, 8, 32)
NOTIFY = """
create function notify_always() returns trigger language plpgsql as $$
begin
    perform pg_notify('darkpearl_bell', '');
    return null;
end $$;
create trigger per_row after insert on sagas for each row execute function notify_always();
create trigger per_statement after insert on sagas
for each statement execute function notify_always();
grant execute on function notify_always() to public;
"""
TRIGGERS = ("sagas_ring_the_bell", "per_row", "per_statement")


@contextlib.asynccontextmanager
async def _heard(target: Shop, *, asleep: bool) -> AsyncIterator[None]:
    """A connection that listens, and does nothing else; asleep it holds the idle lock, for good."""
    async with await psycopg.AsyncConnection.connect(
        database.with_options(target.url, "-c search_path=darkpearl"), autocommit=True
    ) as connection:
        await connection.execute("listen darkpearl_bell")
        if asleep:
            await connection.execute("select take_idle_lock()")
        yield


async def _insert(
    target: Shop, producers: int, trigger: str | None, *, asleep: bool
) -> dict[str, Any]:
    for name in TRIGGERS:
        able = "enable" if name == trigger else "disable"
        await target.connection.execute(f"alter table sagas {able} trigger {name}".encode())
    async with _heard(target, asleep=asleep):
        run = await place_orders(target, clients=producers, seconds=SECONDS)
    return {"producers": producers, "orders_per_second": round(run.per_second)}


def variants(target: Shop, producers: int) -> tuple[dict[str, Variant], list[str]]:
    """The ways to ring, for so many producers.

    An idle lock that is never given up is the worst case: a listener that is awake holds none.
    """
    insert = partial(_insert, target, producers)
    return {
        f"{name}, {producers} producer{'s' * (producers > 1)}": variant
        for name, variant in {
            "no trigger": partial(insert, None, asleep=False),
            "NOTIFY per row": partial(insert, "per_row", asleep=False),
            "NOTIFY per statement": partial(insert, "per_statement", asleep=False),
            "idle lock, listener awake": partial(insert, "sagas_ring_the_bell", asleep=False),
            "idle lock, listener never wakes": partial(insert, "sagas_ring_the_bell", asleep=True),
        }.items()
    }, [f"no trigger, {producers} producer{'s' * (producers > 1)}"]
