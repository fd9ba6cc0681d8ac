"""Retention for people: what would go, its export, and its removal at once.

An export is a file of compressed CSV for each table of a kind and month, all of one snapshot, made
whole before anybody sees it. Only then is it written down, and with it that the month may go.
"""

import gzip
import os
from collections.abc import AsyncIterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import msgspec

from darkpearl import database, schema
from darkpearl.listener import retention

STAFF_ROLE = "service_role"

_OF_ORDERS = (
    " from {0} as t where exists (select from orders as o where o.id = t.{1}"
    " and o.created_at >= %(start)s and o.created_at < %(end)s)"
)
_OF_PAYMENTS = (
    " from {0} as t where exists (select from payments as p where p.order_id = t.order_id"
    " and p.created_at >= %(start)s and p.created_at < %(end)s)"
)
_OF_MOVEMENTS = (
    " from movement_reasons as t where exists (select from stock_movements as m"
    " where m.correlation_id = t.correlation_id and m.movement_type = 'adjust'"
    " and m.product_id = t.product_id and m.warehouse_id = t.warehouse_id"
    " and m.created_at >= %(start)s and m.created_at < %(end)s)"
)
_OF_MONTH = " from {0} as t where t.{1} >= %(start)s and t.{1} < %(end)s"
_TABLES = {
    "orders": {
        "orders": _OF_MONTH.format("orders", "created_at"),
        "order_items": _OF_ORDERS.format("order_items", "order_id"),
        "order_adjustments": _OF_ORDERS.format("order_adjustments", "order_id"),
        "return_metadata": _OF_ORDERS.format("return_metadata", "order_id"),
        "order_particulars": _OF_ORDERS.format("order_particulars", "order_id"),
        "shipments": _OF_ORDERS.format("shipments", "order_id"),
        "shipment_items": _OF_ORDERS.format("shipment_items", "order_id"),
        "grouped_orders": _OF_ORDERS.format("grouped_orders", "order_id"),
        "sagas": _OF_ORDERS.format("sagas", "id"),
        "saga_events": _OF_ORDERS.format("saga_events", "saga_id"),
        "saga_signals": _OF_ORDERS.format("saga_signals", "saga_id"),
        "stock_movements": _OF_ORDERS.format("stock_movements", "correlation_id"),
        "returns": _OF_ORDERS.format("stock_movements", "reference_id")
        + " and t.reference_type = 'return'",
        "parcels": _OF_ORDERS.format("stock_movements", "reference_id")
        + " and t.reference_type in ('shipment', 'cancellation')",
    },
    "payments": {
        "payments": _OF_MONTH.format("payments", "created_at"),
        "payment_attempts": _OF_PAYMENTS.format("payment_attempts"),
        "refunds": _OF_PAYMENTS.format("refunds"),
        "disputes": _OF_PAYMENTS.format("disputes"),
    },
    "movements": {
        "stock_movements": _OF_MONTH.format("stock_movements", "created_at")
        + " and t.movement_type in ('receive', 'adjust', 'transfer_out', 'transfer_in')",
        "movement_reasons": _OF_MOVEMENTS,
    },
    "gateway_events": {"gateway_events": _OF_MONTH.format("gateway_events", "received_at")},
    "action_log": {"action_log": _OF_MONTH.format("action_log", "at")},
    "events": {"saga_events": _OF_MONTH.format("saga_events", "created_at")},
}
"""The tables that an export of a kind has, the one that counts first."""
_COLUMNS = {"gateway_events": "received_at", "action_log": "at"}
"""When a row of a kind was written, if it isn't called created_at."""
KINDS = tuple(_TABLES)
_RULES = "select kind, keep_days, export_first, removed, looked_at from retention order by kind"
_DUE = "select kind, month, row_count, bytes from retention_due()"
_MONTHS = """
    select m.month
    from (
        select distinct date_trunc('month', t.{column} at time zone 'UTC') as month
        from {table} as t
        where t.{column} < clock() - interval '1 day' * (
            select r.keep_days from retention as r where r.kind = %(kind)s
        )
    ) as m
    where m.month + interval '1 month' <= clock() at time zone 'UTC' and not exists (
        select from retention_exports as e where e.kind = %(kind)s and e.month = m.month
    )
    order by m.month
"""
_RECORD = "select record_export(%s, %s, %s, %s)"


class Rule(msgspec.Struct, frozen=True):
    """How long a kind is kept.

    Attributes:
        kind: of rows.
        keep_days: None: for ever.
        export_first: a month goes only once it was exported.
        removed: rows that went so far; of events, months.
        looked_at: when housekeeping last found nothing more.
    """

    kind: str
    keep_days: int | None
    export_first: bool
    removed: int
    looked_at: datetime | None


class Due(msgspec.Struct, frozen=True):
    """What would go now of a kind, made in a month.

    Attributes:
        kind: of rows.
        month: its first day.
        row_count: how many.
        bytes: about how much room they take; None: not known.
    """

    kind: str
    month: date
    row_count: int
    bytes: int | None


class Exported(msgspec.Struct, frozen=True):
    """A month of a kind that was exported.

    Attributes:
        kind: of rows.
        month: its first day.
        row_count: of the kind's own table.
        files: where it is.
    """

    kind: str
    month: date
    row_count: int
    files: list[Path]


async def look(url: str) -> tuple[list[Rule], list[Due]]:
    """The rules, and a dry run of them.

    Raises:
        schema.SchemaError: the database can't be read.
    """
    async with _connect(url, STAFF_ROLE) as connection, connection.cursor() as cursor:
        await cursor.execute(_RULES)
        rules = [Rule(*row) async for row in cursor]
        await cursor.execute(_DUE)
        return rules, [Due(*row) async for row in cursor]


async def apply(url: str) -> dict[str, int]:
    """Remove what is due now, as housekeeping does; how many rows of each kind went.

    Raises:
        schema.SchemaError: it can't be done.
    """
    async with (
        schema.connect(database.as_role(url, database.LISTENER_ROLE)),
        database.connect(
            database.as_role(url, database.LISTENER_ROLE), retention.NAME
        ) as connection,
    ):
        return await retention.keep(connection, at_once=True)


async def export(
    url: str, folder: Path, kinds: tuple[str, ...] = (), month: date | None = None
) -> AsyncIterator[Exported]:
    """Export months one after another, each once it is whole on the disk.

    Args:
        url: the database; a login that may act as staff.
        folder: where to.
        kinds: which; none: those that are to be exported first.
        month: its first day, exported before or not; None: those that are too old to be kept, and
            were not exported yet.

    Raises:
        schema.SchemaError: the database can't be read, or says that the month isn't over.
        OSError: a file can't be written.
    """
    async with _connect(url, STAFF_ROLE) as connection:
        cursor = await connection.execute(_RULES)
        rules = [Rule(*row) async for row in cursor]
        for kind in kinds or [each.kind for each in rules if each.export_first]:
            for each in [month] if month else await _months(connection, kind):
                yield await _export_month(connection, folder, kind, each)


def _connect(url: str, role: str) -> Any:
    options = "-c search_path=darkpearl -c timezone=UTC"
    return schema.connect(database.with_options(database.as_role(url, role), options))


async def _months(connection: Any, kind: str) -> list[date]:
    """The months of a kind that are too old to be kept and were not exported."""
    table = next(iter(_TABLES[kind]))
    column = _COLUMNS.get(kind, "created_at")
    query = _MONTHS.format(table=table, column=column)
    cursor = await connection.execute(query.encode(), {"kind": kind})
    return [row[0].date() async for row in cursor]


async def _export_month(connection: Any, folder: Path, kind: str, month: date) -> Exported:
    end = date(month.year + month.month // 12, month.month % 12 + 1, 1)
    bounds = {"start": f"{month}T00:00:00Z", "end": f"{end}T00:00:00Z"}
    counts, files = [], []
    async with connection.transaction():
        await connection.execute("set transaction isolation level repeatable read read only")
        ((snapshot,),) = await (await connection.execute("select clock()")).fetchall()
        for table, rest in _TABLES[kind].items():
            path = folder / f"{kind}-{month:%Y-%m}-{table}.csv.gz"
            counts.append(await _copy(connection, f"select t.*{rest}", bounds, path))
            files.append(path)
    await connection.execute(_RECORD, [kind, month, counts[0], snapshot])
    return Exported(kind, month, counts[0], files)


async def _copy(connection: Any, query: str, bounds: dict[str, str], path: Path) -> int:
    """Write the rows of a query into a file that is there whole or not at all; how many."""
    partial = path.with_suffix(".partial")
    cursor = connection.cursor()
    with partial.open("wb") as file:
        with gzip.GzipFile(fileobj=file, mode="wb", filename="") as packed:
            statement = f"copy ({query} order by 1) to stdout (format csv, header)"
            async with cursor.copy(statement.encode(), bounds) as copy:
                async for block in copy:
                    packed.write(block)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return int(cursor.rowcount)
