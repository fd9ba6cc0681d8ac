"""Reconciliation: our payments against the books of the gateway.

The gateway's list is copied into a temporary table and compared there, by SQL. No transaction stays
open meanwhile; what is written is that it was done, for who asks when.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from darkpearl import database, schema
from darkpearl.gateways import Gateway, GatewayPayment

READER_ROLE = "darkpearl_reader"
SKEW = timedelta(hours=1)
"""The gateway's clock may differ; its list is asked for from so much earlier."""
BATCH = 1000
PAYMENT_SECONDS = 60.0
"""How long the gateway may take for the next payment of its list, a page in between included."""
MOST_PAYMENTS = 10_000_000
"""A list that is longer has no end."""
_LONGEST_MESSAGE = 500

Kind = Literal[
    "only_here", "only_there", "charged_twice", "currency", "authorized", "captured", "refunded",
    "status", "reference", "disputed", "open_here", "open_there", "refund_open_here",
]  # fmt: skip


class ReconcileError(RuntimeError):
    """The gateway's books can't be read."""


class Difference(msgspec.Struct, frozen=True):
    """One thing that our books and the gateway's see differently.

    Attributes:
        payment_key: the name that both sides know the payment by.
        kind: what is different. `only_`: the other side doesn't have the payment. `open_`: money
            is asked for or held on that side while the other is done. Else the field.
        here: what we have.
        there: what the gateway has.
        reference: the gateway's own name for the payment.
    """

    payment_key: str
    kind: Kind
    here: str
    there: str
    reference: str | None

    def __str__(self) -> str:
        """The difference as a line for people."""
        known = f" ({self.reference})" if self.reference else ""
        return f"{self.payment_key} {self.kind}: here {self.here}, there {self.there}{known}"


_OPEN = "select open_gateway_books()"
_COPY = "copy gateway_payments from stdin"
_ANALYZE = "analyze gateway_payments"
_RECONCILE = "select * from reconcile_payments(%s, %s, %s)"
_RECORD = "select record_upkeep('reconciliation', p_detail => %s)"


async def reconcile(
    url: str, gateway: Gateway, since: datetime, grace: timedelta, *, record: bool = True
) -> list[Difference]:
    """Every difference between our payments and the gateway's, by payment key.

    Args:
        url: the database; a login that may read payments and make temporary tables.
        gateway: whose books these are to agree with.
        since: payments made before that are left alone, on both sides.
        grace: those that changed less than so long ago are left alone too: their calls may be in
            flight. None are, if it is zero.
        record: write down that it was done, for who asks when.

    Raises:
        ReconcileError: the gateway's books can't be read.
        ConfigError: the gateway keeps none.
        schema.SchemaError: the database can't be read.
    """
    reader = database.as_role(url, READER_ROLE)
    async with (
        schema.connect(database.with_options(reader, "-c search_path=darkpearl")) as connection,
        connection.cursor() as cursor,
    ):
        await cursor.execute("select clock()")
        ((started,),) = await cursor.fetchall()
        await cursor.execute(_OPEN)
        async for batch in _batches(gateway, since - SKEW):
            async with cursor.copy(_COPY) as copy:
                for row in batch:
                    await copy.write_row(row)
        await cursor.execute(_ANALYZE)
        settled = started - grace if grace else None
        await cursor.execute(_RECONCILE, [gateway.name, since, settled])
        found = [Difference(*row) async for row in cursor]
        detail = {"gateway": gateway.name, "since": since, "differences": len(found)}
        if record:
            await cursor.execute(_RECORD, [msgspec.json.encode(detail).decode()])
        return found


async def _batches(gateway: Gateway, since: datetime) -> AsyncIterator[list[tuple[Any, ...]]]:
    """The gateway's payments as rows of the table, some at a time."""
    listed: AsyncIterator[GatewayPayment] = gateway.payments(since)
    batch: list[tuple[Any, ...]] = []
    try:
        for _ in range(MOST_PAYMENTS):
            async with asyncio.timeout(PAYMENT_SECONDS):
                payment = await anext(listed, None)
            if payment is None:
                break
            batch.append(msgspec.structs.astuple(payment))
            if len(batch) == BATCH:
                yield batch
                batch = []
        else:
            raise ReconcileError(f"more than {MOST_PAYMENTS} payments")  # noqa: TRY301 - below
    except TimeoutError:
        raise ReconcileError(
            f"the books of {gateway.name} can't be read: no answer within {PAYMENT_SECONDS:g} s"
        ) from None
    except Exception as error:
        said = str(error)[:_LONGEST_MESSAGE] or type(error).__name__
        raise ReconcileError(f"the books of {gateway.name} can't be read: {said}") from error
    yield batch
