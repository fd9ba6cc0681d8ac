"""The plans of sagas, which a new cell has under the numbers that they have at home.

Each database numbers the plans that it was given: home, since its first release, more of them than
a new one. A saga moves with the number of its plan, so that has to stand for the same steps.
"""

from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from darkpearl.cells.queries import value

_TYPES = "select array_agg(distinct saga_type) from darkpearl.saga_steps"
_PLANS = (
    "select jsonb_agg(to_jsonb(s) order by s.saga_type, s.plan_version, s.position)"
    " from darkpearl.saga_steps as s where s.saga_type = any(%s)"
)
_SETTINGS = (
    "select jsonb_agg(to_jsonb(s) - 'paused_until') from darkpearl.step_settings as s"
    " where s.saga_type = any(%s)"
)
_HAS_SAGAS = "select exists (select from darkpearl.sagas)"
_TAKE_PLANS = (
    "insert into darkpearl.saga_steps"
    " select * from jsonb_populate_recordset(null::darkpearl.saga_steps, %s)"
)
_TAKE_SETTINGS = (
    "insert into darkpearl.step_settings"
    " select * from jsonb_populate_recordset(null::darkpearl.step_settings, %s)"
    " on conflict do nothing"
)


async def take_plans(at_home: AsyncConnection[Any], there: AsyncConnection[Any]) -> bool:
    """Give a cell that has no sagas yet the plans of home, of the types that it knows.

    Steps that only an old plan has come with the numbers that home has for them.

    Returns:
        Whether it had others: then another migrate declares what home hasn't heard of yet.
    """
    types = await value(there, _TYPES)
    plans = await value(at_home, _PLANS, types)
    if await value(there, _HAS_SAGAS) or await value(there, _PLANS, types) == plans:
        return False
    settings = await value(at_home, _SETTINGS, types)
    async with there.transaction():
        await there.execute("set local session_replication_role = replica")
        await there.execute("delete from darkpearl.saga_steps")
        await there.execute(_TAKE_PLANS, [Jsonb(plans)])
        await there.execute(_TAKE_SETTINGS, [Jsonb(settings)])
    return True
