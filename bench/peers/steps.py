"""The work of every peer for an order, and how it is told to: the same SQL, the same few verbs.

A step is one statement in one transaction, which commits together with the engine's checkpoint
where the engine offers that. It starts from the order's status, so that a second try of a step
that had committed does nothing. A peer is a script, run by the Python of a virtual environment that
has its package, psycopg and msgspec:

    prepare URL             install the engine's tables and enqueue every pending order
    work URL CONCURRENCY    connect, say {"version": …, "settings": …}, wait for a line, work
    latency URL ORDERS      work, and meanwhile place orders one at a time
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import psycopg

from darkpearl.gateways import Call
from darkpearl.gateways.mock import MockGateway

PAUSE_SECONDS = 0.05
"""After each order of the latency run: the worker is idle when the next one comes."""

_ORDER = """
with o as (
    select id, warehouse_id, currency, total_amount
    from orders
    where id = %(order)s::uuid and status = '{status}'
    for no key update
)
"""
_SHELVES = """,
line as (
    select l.product_id, l.warehouse_id, sum(l.quantity)::int as quantity
    from o inner join order_items as l on l.order_id = o.id and l.warehouse_id = o.warehouse_id
    group by l.product_id, l.warehouse_id
),
shelf as materialized (
    select i.product_id, i.warehouse_id, l.quantity
    from line as l inner join inventory as i using (product_id, warehouse_id)
    order by i.product_id
    for no key update of i
),
moved as (
    update inventory as i
    set {change}, updated_at = clock_timestamp()
    from shelf as s
    where i.product_id = s.product_id and i.warehouse_id = s.warehouse_id
    returning i.product_id, s.quantity, i.quantity_available, i.quantity_reserved
),
movement as (
    insert into stock_movements (
        correlation_id, warehouse_id, product_id, movement_type, quantity,
        available_after, reserved_after
    )
    select
        o.id, o.warehouse_id, m.product_id, '{movement}', m.quantity,
        m.quantity_available, m.quantity_reserved
    from o, moved as m
)
"""
_STATUS = """
update orders
set status = '{status}', updated_at = clock_timestamp()
from o
where orders.id = o.id and orders.warehouse_id = o.warehouse_id
returning orders.total_amount::text
"""

RESERVE = (
    _ORDER.format(status="pending")
    + _SHELVES.format(
        change="quantity_reserved = i.quantity_reserved + s.quantity", movement="reserve"
    )
    + _STATUS.format(status="reserved")
)
"""Takes order; the first column of its row is the total amount."""

PAY = (
    _ORDER.format(status="reserved")
    + """,
    payment as (
        insert into payments (
            order_id, warehouse_id, status, currency, requested_amount, authorized_amount,
            captured_amount, gateway, gateway_reference, idempotency_key
        )
        select
            id, warehouse_id, 'captured', currency, total_amount, total_amount,
            total_amount, 'mock', %(reference)s, id || ':process_payment'
        from o
    )
    """
    + _STATUS.format(status="paid")
)
"""Takes order and reference."""

FULFIL = (
    _ORDER.format(status="paid")
    + _SHELVES.format(
        change="quantity_available = i.quantity_available - s.quantity,"
        " quantity_reserved = i.quantity_reserved - s.quantity",
        movement="fulfill",
    )
    + _STATUS.format(status="fulfilled")
)
"""Takes order."""

PLACE = """
with o as (
    insert into orders (warehouse_id, total_amount)
    select id, 10 from warehouses order by code limit 1
    returning id, warehouse_id
)
insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)
select o.id, o.warehouse_id, p.id, 1, 10
from o, (select id from products order by sku limit 1) as p
returning order_id::text
"""

FULFILLED = "select status = 'fulfilled' from orders where id = %s"

_gateway = MockGateway(approval_rate=1)


async def charge(order: str, amount: str) -> str:
    """Ask the gateway that DarkPearl asks; its reference."""
    key = f"{order}:process_payment"
    answer = await _gateway.authorize(
        Call(
            operation="authorize",
            idempotency_key=key,
            payment_key=key,
            amount=Decimal(amount),
            currency="USD",
            capture=True,
        )
    )
    if answer.reference is None:
        raise RuntimeError(f"order {order}: {answer.outcome}")
    return answer.reference


def charge_now(order: str, amount: str) -> str:
    """The same without an event loop: the mock answers without waiting for anything."""
    try:
        charge(order, amount).send(None)
    except StopIteration as answered:
        return str(answered.value)
    raise RuntimeError("the gateway waits")


def numbered(statement: str, *names: str) -> str:
    """The statement with `$1` … in place of its named parameters."""
    for number, name in enumerate(names, 1):
        statement = statement.replace(f"%({name})s", f"${number}")
    return statement


async def pending(url: str) -> list[str]:
    """The orders that wait, in the order they came."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        rows = await connection.execute(
            "select id::text from orders where status = 'pending' order by order_number"
        )
        return [order for (order,) in await rows.fetchall()]


Gate = Callable[[], Awaitable[None]]
Submit = Callable[[psycopg.AsyncConnection[Any], str], Awaitable[Any]]


class Peer:
    """An engine: what it is called, how it is set, how it is driven.

    Attributes:
        package: its distribution.
        settings: what differs from its defaults, as its documentation has it.
        joins: whether an order and its job are submitted in one transaction; else one by one.
    """

    package: str
    joins = True

    def __init__(self, url: str, concurrency: int) -> None:
        self.url = url
        self.concurrency = concurrency
        self.settings: dict[str, Any] = {"concurrency": concurrency}

    async def prepare(self) -> None:
        """Install the engine and enqueue every pending order."""
        raise NotImplementedError

    async def work(self, gate: Gate) -> None:
        """Connect, pass the gate, work until cancelled."""
        raise NotImplementedError

    async def submit(self, connection: psycopg.AsyncConnection[Any], order: str) -> None:
        """Enqueue one order."""
        raise NotImplementedError


async def _stdin_gate(peer: Peer) -> None:
    hello = {"version": f"{peer.package} {version(peer.package)}", "settings": peer.settings}
    sys.stdout.write(json.dumps(hello) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)


async def _latency(peer: Peer, orders: int) -> None:
    started = asyncio.Event()

    async def gate() -> None:
        started.set()

    working = asyncio.create_task(peer.work(gate))
    placing = asyncio.create_task(_place(peer, started, orders))
    done, _ = await asyncio.wait([working, placing], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _place(peer: Peer, started: asyncio.Event, orders: int) -> None:
    await started.wait()
    async with await psycopg.AsyncConnection.connect(peer.url, autocommit=True) as connection:
        for _ in range(orders):
            async with connection.transaction():
                rows = await connection.execute(PLACE)
                ((order,),) = await rows.fetchall()
                if peer.joins:
                    await peer.submit(connection, order)
            if not peer.joins:
                await peer.submit(connection, order)
            fulfilled = False
            while not fulfilled:
                await asyncio.sleep(PAUSE_SECONDS)
                rows = await connection.execute(FULFILLED, [order])
                ((fulfilled,),) = await rows.fetchall()


def main(peer: type[Peer], run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run) -> None:
    """Do what the command line says."""
    verb, url, *rest = sys.argv[1:]
    number = int(rest[0]) if rest else 1
    if verb == "prepare":
        run(peer(url, number).prepare())
    elif verb == "work":
        working = peer(url, number)
        run(working.work(lambda: _stdin_gate(working)))
    elif verb == "latency":
        run(_latency(peer(url, 8), number))
    else:
        raise SystemExit(f"prepare, work or latency, not {verb}")
