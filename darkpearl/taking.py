"""Everything of ours taken at once or not at all, for who changes it while everybody works.

Whoever locks one table after the other, and keeps them, sooner or later waits for somebody who
waits for him, and under load always: one of both is given up as a deadlock. So all is taken before
anything is changed, and let go again as soon as something can't be had for a moment.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import AsyncConnection

TRY = "200ms"
"""Less than deadlock_timeout, so that nobody else is given up."""
PAUSE_SECONDS = 0.5
TAKE_SECONDS = 30.0
"""How long it is tried."""
_TAKE = """
do $$
declare
    v_each record;
begin
    -- Views first, then where transactions begin: who comes later waits there, and holds nothing.
    for v_each in
        select c.oid::regclass as name, c.relkind, c.relowner::regrole as owner
        from pg_class as c
        where c.relnamespace = to_regnamespace('darkpearl') and not c.relispartition
            and c.relkind in ('r', 'p', 'v')
        order by
            c.relkind = 'v' desc,
            array_position(array['idempotency_keys', 'orders', 'sagas'], c.relname::text), c.oid
    loop
        if v_each.relkind = 'v' then
            -- Locks the view alone; `lock table` would lock what it reads, the catalogues too.
            execute format('alter view %s owner to %s', v_each.name, v_each.owner);
        else
            execute format('lock table %s in access exclusive mode', v_each.name);
        end if;
    end loop;
end
$$
"""


@asynccontextmanager
async def all_taken(connection: AsyncConnection[Any], lock_seconds: float) -> AsyncIterator[None]:
    """A transaction in which nobody else touches a table or a view of ours.

    Args:
        connection: in autocommit, of who owns them.
        lock_seconds: how long a statement in it may wait for a lock of something else.

    Raises:
        LockNotAvailable: somebody held something all the time.
    """
    deadline, is_taken = time.monotonic() + TAKE_SECONDS, False
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = '{TRY}'".encode())
                await connection.execute(_TAKE)
                is_taken = True
                await connection.execute(f"set local lock_timeout = '{lock_seconds}s'".encode())
                yield
                return
        except psycopg.errors.LockNotAvailable:
            if is_taken or time.monotonic() > deadline:
                raise
        await asyncio.sleep(random.uniform(0.2, 1) * PAUSE_SECONDS)  # noqa: S311 - no secret
