"""Ready orders, and listeners that work them off."""

from typing import Any

import psycopg

from bench.harness import BATCH_SIZE, Meter, Shop, listeners, until_drained


async def drain(
    target: Shop,
    orders: int,
    count: int,
    *,
    batch_size: int = BATCH_SIZE,
    audit: bool = True,
    settings: dict[str, Any] | None = None,
    **filling: Any,
) -> dict[str, Any]:
    """Fill, then measure from the moment that the held-back sagas can be claimed to the last end.

    Args:
        target: where.
        orders: how many.
        count: of listeners.
        batch_size: of each.
        audit: whether to check at the end; who passes False checks himself.
        settings: more of the listeners'.
        filling: for `Shop.fill`.
    """
    await target.fill(orders, **filling)
    await target.settle_down()
    async with await psycopg.AsyncConnection.connect(target.url) as holder:
        # Listeners start first and find nothing, since a claim skips what is locked: their start is
        # not what is measured, and the rows stay as the orders left them.
        await holder.execute("select from darkpearl.sagas for update")
        async with listeners(target, count, batch_size=batch_size, **settings or {}) as processes:
            meter = Meter(target, processes)
            await meter.begin()
            await holder.execute("select darkpearl.ring_bell()")
            await holder.commit()
            await until_drained(target)
            await meter.end()
    figures = await meter.per_order(orders)
    if audit:
        await target.check()
    return {"listeners": count, "batch_size": batch_size, **figures}
