"""From the moment that an order was due to its fulfilment, at a given rate of orders."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench.harness import Shop, listeners, shop, until_drained
from bench.pgbench import log_files, place_orders
from bench.rounds import Variant
from darkpearl import embedded

RATES = (100, 500, 1000, 2000)
SECONDS = 8
WARM_UP_SECONDS = 1
COOL_DOWN_SECONDS = 0.5
"""The end of the clients' sessions, each a process that has to be taken down, is no load."""
CLIENTS = 16
"""Fewer wait for each other, more cool each other's caches: 8, 16 and 32 in turns had a p99 of 97,
78 and 135 ms at 1,000 orders/s in a slow minute."""

PERCENTILES = """
with due as (
    select client, due, row_number() over (partition by client order by number) as number
    from pgbench_log
),
placed as (
    select
        notes::int as client,
        row_number() over (partition by notes order by order_number) as number,
        extract(epoch from pg_xact_commit_timestamp(xmin)) as fulfilled,
        extract(epoch from pg_xact_commit_timestamp(placed_in::xid)) as committed
    from orders
),
took as (
    select
        (fulfilled - due) * 1000 as since_due, (fulfilled - committed) * 1000 as since_commit,
        (committed - due) * 1000 as until_commit
    from placed
    inner join due using (client, number)
    where due between (select min(due) from due) + %s and (select max(due) from due) - %s
)
select array[
    percentile_cont(0.5) within group (order by since_due),
    percentile_cont(0.95) within group (order by since_due),
    percentile_cont(0.99) within group (order by since_due),
    max(since_due),
    percentile_cont(0.5) within group (order by since_commit),
    percentile_cont(0.99) within group (order by since_commit),
    percentile_cont(0.99) within group (order by until_commit)
]::float8[]
from took
"""
COLUMNS = ("p50", "p95", "p99", "max", "from_commit_p50", "from_commit_p99", "until_commit_p99")


async def _open_loop(running: embedded.Server, rate: int) -> dict[str, Any]:
    """Orders fall due at random moments (Poisson), whether or not the ones before are done.

    pgbench logs for each when it was due; the server knows when its last transaction committed.
    Both are times of this machine's clock. One order waits for another only if all clients are
    busy, and that wait counts.
    """
    async with shop(running) as target:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            options = ("--rate", str(rate), "--log", f"--log-prefix={log}")
            async with listeners(target, 1):
                run = await place_orders(target, *options, clients=CLIENTS, seconds=SECONDS)
                await until_drained(target)
            await _load(target, log)
        await target.check()
        figures = await target.value(PERCENTILES, WARM_UP_SECONDS, COOL_DOWN_SECONDS)
    return {
        "rate": rate,
        "orders_per_second": round(run.per_second),
        **{f"{name}_ms": round(ms, 2) for name, ms in zip(COLUMNS, figures, strict=True)},
    }


async def _load(target: Shop, log: Path) -> None:
    """When each transaction was due: its end less its time, which pgbench takes from then."""
    await target.connection.execute(
        "create temp table pgbench_log (client int, number bigint, due numeric)"
    )
    async with target.connection.cursor().copy(
        "copy pgbench_log (client, number, due) from stdin"
    ) as copy:
        for file in log_files(log):
            for line in file.read_text().splitlines():
                client, number, took, _script, seconds, microseconds, _lag = line.split()
                ended = int(seconds) * 1_000_000 + int(microseconds)
                due = ended - int(took)
                await copy.write_row((int(client), int(number), f"{due / 1e6:.6f}"))


def variants(running: embedded.Server) -> dict[str, Variant]:
    """One for each rate."""
    return {f"{rate:,} orders/s": partial(_open_loop, running, rate) for rate in RATES}
