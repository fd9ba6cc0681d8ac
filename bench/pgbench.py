"""pgbench from the wheel: many plain SQL clients for little CPU."""

import asyncio
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from bench.harness import Shop
from darkpearl.embedded import wheel

PLACE_ORDER = """
\\set first random(1, 500)
\\set second random(501, 1000)
\\set quantity random(1, 3)
begin;
insert into orders (warehouse_id, notes) values (:warehouse::uuid, :client_id) returning id \\gset
insert into order_items (order_id, warehouse_id, product_id, quantity)
values (
    :id::uuid, :warehouse::uuid,
    (select id from products where sku = to_char(:first::int, 'FM000000')), :quantity::int
), (
    :id::uuid, :warehouse::uuid,
    (select id from products where sku = to_char(:second::int, 'FM000000')), 1
);
commit;
"""
"""A two-line order as an application places it: four statements, one transaction."""


@dataclass(frozen=True)
class Run:
    """The output of pgbench."""

    transactions: int
    per_second: float


async def place_orders(target: Shop, *options: str, **how: Any) -> Run:
    """Clients that place single two-line orders as darkpearl_app; see `pgbench`."""
    warehouse = await target.value("select id from warehouses order by code limit 1")
    options = (*options, "-D", f"warehouse={warehouse}")
    return await pgbench(target, PLACE_ORDER, *options, role="darkpearl_app", **how)


async def pgbench(
    target: Shop,
    script: str,
    *options: str,
    clients: int,
    seconds: int | None = None,
    transactions: int | None = None,
    role: str | None = None,
) -> Run:
    """Run a script with so many clients, for so long or so many times altogether."""
    extent = ["--time", str(seconds)] if seconds else []
    if transactions:
        if transactions % clients:
            raise ValueError(f"{transactions} transactions for {clients} clients")
        extent = ["--transactions", str(transactions // clients)]
    parts = conninfo_to_dict(target.url)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *(wheel.binaries() / "pgbench", "--no-vacuum", "--file", file.name),
            *("--client", str(clients), "--jobs", str(min(2, clients)), "--protocol", "prepared"),
            *extent,
            *options,
            env={
                "PGHOST": str(parts["host"]),
                "PGPORT": str(parts["port"]),
                "PGUSER": str(parts["user"]),
                "PGPASSWORD": str(parts.get("password") or ""),
                "PGDATABASE": str(parts["dbname"]),
                "PGOPTIONS": "-c search_path=darkpearl" + (f" -c role={role}" if role else ""),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            output, errors = (text.decode() for text in await process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
    processed = re.search(r"actually processed: (\d+)", output)
    rate = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
    if process.returncode or not processed or not rate:
        raise SystemExit(f"pgbench failed: {errors[-1000:] or output[-1000:]}")
    return Run(int(processed[1]), float(rate[1]))


def log_files(prefix: Path) -> list[Path]:
    """The lines that `--log --log-prefix` wrote: one file for each thread."""
    return sorted(prefix.parent.glob(f"{prefix.name}.*"))
