"""Reconciliation: our payments against the books of the gateway.

The gateway's list is copied into a temporary table and compared there. No transaction stays open
meanwhile, and nothing is written that anybody else could see.
"""

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
_LONGEST_MESSAGE = 500

Kind = Literal[
    "only_here", "only_there", "charged_twice", "currency", "authorized", "captured", "refunded",
    "status", "open_here", "open_there", "refund_open_here",
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


_TABLE = """
    create temporary table gateway_payments (
        payment_key text not null, reference text not null, currency text not null,
        authorized numeric not null, captured numeric not null, refunded numeric not null,
        voided boolean not null, created_at timestamptz not null
    )
"""
_COPY = "copy gateway_payments from stdin"
_ANALYZE = "analyze gateway_payments"

_DIFFERENCES = """
with theirs as (
    -- One row per payment. What a gateway only prepared, and never charged, adds nothing.
    select
        payment_key,
        string_agg(reference, ' ' order by created_at) as reference,
        min(currency) as currency,
        sum(authorized) as authorized,
        sum(captured) as captured,
        sum(refunded) as refunded,
        coalesce(bool_and(voided) filter (where authorized > 0), bool_or(voided)) as voided,
        count(*) filter (where authorized > 0 and not voided) as charges,
        max(created_at) as created_at
    from gateway_payments
    group by payment_key
), ours as (
    select p.*, r.opened_at as refund_opened_at, r.updated_at as refund_updated_at
    from payments as p
    left join lateral (
        select
            min(r.created_at) filter (where r.status = 'requested') as opened_at,
            max(r.updated_at) as updated_at
        from refunds as r
        where r.order_id = p.order_id and r.warehouse_id = p.warehouse_id
    ) as r on true
    where p.requested_amount > 0 and (p.gateway is null or p.gateway = %(gateway)s) and (
        p.created_at >= %(since)s
        or p.idempotency_key in (select t.payment_key from theirs as t)
    )
), both_sides as (
    select
        coalesce(o.idempotency_key, t.payment_key) as payment_key, t.reference,
        o.idempotency_key is not null as here, t.payment_key is not null as there,
        o.status, o.refund_opened_at,
        o.status in ('requested', 'pending', 'capture_requested', 'void_requested') as undecided,
        o.currency as our_currency, o.authorized_amount, o.captured_amount, o.refunded_amount,
        t.currency, t.authorized, t.captured, t.refunded, t.charges,
        case
            when t.captured > 0 and t.refunded >= t.captured then 'refunded'
            when t.captured > 0 then 'captured'
            when t.voided then 'voided'
            when t.authorized > 0 then 'authorized'
            when t.payment_key is not null then 'not charged'
            else 'unknown'
        end as state
    from ours as o
    full join theirs as t on t.payment_key = o.idempotency_key
    where (o.idempotency_key is not null or t.created_at >= %(since)s)
        and (%(everything)s or coalesce(
            greatest(o.updated_at, o.refund_updated_at, t.created_at) < %(settled)s, true
        ))
)
select b.payment_key, d.kind, d.here, d.there, b.reference
from both_sides as b
cross join lateral (
    values
    ('only_there', not b.here, 'unknown', b.state),
    (
        'only_here', b.here and not b.there and b.status in ('authorized', 'captured', 'refunded'),
        b.status::text, b.state
    ),
    ('charged_twice', b.charges > 1, 'once', b.charges || ' times'),
    (
        -- What waits for the payer's bank is open on both sides.
        'open_here',
        b.undecided and not (b.status = 'pending' and b.state in ('not charged', 'unknown')),
        b.status::text, b.state
    ),
    (
        'open_there', b.status in ('declined', 'voided') and b.state = 'authorized',
        b.status::text, b.state
    ),
    (
        'status', b.status = 'authorized' and b.state in ('voided', 'not charged'),
        b.status::text, b.state
    ),
    ('refund_open_here', b.refund_opened_at is not null, 'requested', b.state),
    ('currency', b.our_currency <> b.currency, b.our_currency, b.currency)
) as d (kind, holds, here, there)
where d.holds
union all
select
    b.payment_key, d.kind,
    round(d.here, greatest(minor_units(b.currency), scale(trim_scale(d.here))))::text,
    round(d.there, greatest(minor_units(b.currency), scale(trim_scale(d.there))))::text,
    b.reference
from both_sides as b
cross join lateral (
    values
    -- A gateway may forget what it released; what both hold has to be the same.
    ('authorized', least(b.authorized_amount, b.authorized) > 0, b.authorized_amount, b.authorized),
    ('captured', true, b.captured_amount, b.captured),
    ('refunded', true, b.refunded_amount, b.refunded)
) as d (kind, counts, here, there)
where d.counts and d.here <> d.there and not b.undecided and b.our_currency = b.currency
order by 1, 2
"""


async def reconcile(
    url: str, gateway: Gateway, since: datetime, grace: timedelta
) -> list[Difference]:
    """Every difference between our payments and the gateway's, by payment key.

    Args:
        url: the database; a login that may read payments and make temporary tables.
        gateway: whose books these are to agree with.
        since: payments made before that are left alone, on both sides.
        grace: those that changed less than so long ago are left alone too: their calls may be in
            flight. None are, if it is zero.

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
        await cursor.execute(_TABLE)
        async for batch in _batches(gateway, since - SKEW):
            async with cursor.copy(_COPY) as copy:
                for row in batch:
                    await copy.write_row(row)
        await cursor.execute(_ANALYZE)
        await cursor.execute(
            _DIFFERENCES,
            {
                "gateway": gateway.name,
                "since": since,
                "settled": started - grace,
                "everything": not grace,
            },
        )
        return [Difference(*row) async for row in cursor]


async def _batches(gateway: Gateway, since: datetime) -> AsyncIterator[list[tuple[Any, ...]]]:
    """The gateway's payments as rows of the table, some at a time."""
    listed: AsyncIterator[GatewayPayment] = gateway.payments(since)
    batch: list[tuple[Any, ...]] = []
    try:
        async for payment in listed:
            batch.append(msgspec.structs.astuple(payment))
            if len(batch) == BATCH:
                yield batch
                batch = []
    except Exception as error:
        said = str(error)[:_LONGEST_MESSAGE] or type(error).__name__
        raise ReconcileError(f"the books of {gateway.name} can't be read: {said}") from error
    yield batch
