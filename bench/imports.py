"""Movements by the thousand: imported, inserted, and copied into a table that asks nothing."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.harness import Meter, Shop, shop
from bench.rounds import Variant
from darkpearl import embedded, imports

PRODUCTS = 1000
COLUMNS = "correlation_id, movement_type, warehouse_id, product_id, quantity"
PLAIN = "create table darkpearl.plain (like darkpearl.stock_movements including all)"
STAGED = (
    f"create temporary table staged as select {COLUMNS}, available_after, reserved_after"
    " from stock_movements limit 0"
)
RECEIPTS = f"""
    insert into stock_movements ({COLUMNS})
    select {COLUMNS} from staged
"""


def _records(movements: int) -> Iterator[tuple[str, str, str]]:
    """Correlation id, SKU and quantity of each movement; ids that sort by time, as ours do."""
    for n in range(movements):
        yield f"01890000-{n >> 16:04x}-7000-8000-{n:012x}", f"{1 + n * 7 % PRODUCTS:06}", "3"


def _file(movements: int) -> Iterator[bytes]:
    """The same as the lines of a file."""
    yield b"correlation_id,movement_type,sku,warehouse,quantity\n"
    for operation, sku, quantity in _records(movements):
        yield f"{operation},receive,{sku},0001,{quantity}\n".encode()


async def _copy(target: Shop, table: str, movements: int) -> None:
    """COPY into a table that has the columns of the ledger."""
    found = await target.connection.execute("select sku, id::text from products")
    products: dict[str, str] = dict(await found.fetchall())
    warehouse = str(await target.value("select id from warehouses"))
    copy = f"copy {table} ({COLUMNS}, available_after, reserved_after) from stdin"
    async with target.connection.cursor().copy(copy.encode()) as copied:
        for operation, sku, quantity in _records(movements):
            row = (operation, "receive", warehouse, products[sku], quantity, "0", "0")
            await copied.write_row(row)


async def _measured(running: embedded.Server, how: str, movements: int) -> dict[str, Any]:
    async with shop(running, products=PRODUCTS) as target:
        await target.connection.execute(PLAIN)
        if how == "insert":
            await target.connection.execute(STAGED)
            await _copy(target, "staged", movements)
        await target.settle_down()
        meter = Meter(target)
        await meter.begin()
        if how == "copy":
            await _copy(target, "plain", movements)
        elif how == "insert":
            await target.connection.execute(RECEIPTS.encode())
        else:
            told = await imports.import_lines(
                target.url, "movements", _file(movements), skip_bad=False, tell=print
            )
            if told != (movements, 0, movements):
                raise SystemExit(f"not imported: {told}")
        await meter.end()
        figures = await meter.per_order(movements)
        await target.check()
        return figures


def variants(running: embedded.Server, movements: int) -> tuple[dict[str, Variant], list[str]]:
    """COPY into a table with the columns and indexes of the ledger; an import; one INSERT."""
    names = ("copy", "import", "insert")
    return {name: partial(_measured, running, name, movements) for name in names}, ["copy"]
