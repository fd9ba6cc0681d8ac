"""A database that came from somewhere else: restored, upgraded, replicated, or promoted.

What a dump, a replica or a copy doesn't carry is done here, a line for each. Doing it again changes
nothing. What only a person can decide is said, and left as it is.
"""

from collections.abc import AsyncIterator
from typing import Any

from psycopg import AsyncConnection, sql

from darkpearl import schema

_IDENTITIES = """
    select c.relname, a.attname, pg_get_serial_sequence(c.oid::regclass::text, a.attname)
    from pg_class as c
    inner join pg_attribute as a on a.attrelid = c.oid
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p')
        and not c.relispartition and a.attidentity <> ''
    union all
    -- Its ids are of the same sequence.
    select 'stock_alerts', 'id', pg_get_serial_sequence('darkpearl.saga_events', 'id')
    order by 1, 2
"""
_PUSH = """
    select setval({sequence}::regclass, highest)
    from (
        -- Order numbers of other cells' warehouses are none of this sequence.
        select max(t.{column}) as highest
        from darkpearl.{table} as t, pg_sequence as s
        where s.seqrelid = {sequence}::regclass and t.{column} between s.seqmin and s.seqmax
    ) as t
    where highest > coalesce(pg_sequence_last_value({sequence}::regclass), 0)
"""
_OLD_IDS = """
    select current_setting('server_version_num')::int >= 180000
        and pg_get_functiondef('darkpearl.new_id()'::regprocedure) not like '%uuidv7()%'
"""
_NEW_IDS = """
    create or replace function darkpearl.new_id() returns uuid
    language sql volatile parallel safe
    return encode(set_byte(uuid_send(uuidv7()), 15, darkpearl.this_cell()), 'hex')::uuid
"""
_TABLES = """
    select relname
    from pg_class
    where relnamespace = 'darkpearl'::regnamespace and relkind in ('r', 'p') and not relispartition
    order by 1
"""
_FOREIGN_OWNED = """
    select distinct pg_get_userbyid(relowner)
    from pg_class
    where relnamespace = to_regnamespace('darkpearl')
        and pg_get_userbyid(relowner) <> 'darkpearl_owner'
"""
_SUBSCRIPTIONS = """
    select s.subname, s.subenabled, o.rolname, o.rolsuper or o.rolbypassrls as sees_all,
        coalesce((to_jsonb(s) ->> 'subrunasowner')::boolean, false) as runs_as_owner
    from (
        select subname, subenabled, subowner, {runs_as_owner} from pg_subscription
        where subdbid = (select oid from pg_database where datname = current_database())
    ) as s
    inner join pg_roles as o on o.oid = s.subowner
    order by 1
"""
_COLLATION_MOVED = """
    select datcollversion is distinct from pg_database_collation_actual_version(oid)
    from pg_database
    where datname = current_database()
"""
_PREPARED = "select gid from pg_prepared_xacts where database = current_database() order by 1"
FIRST_WITH_RUN_AS_OWNER = 160_000


async def put_in_order(url: str) -> AsyncIterator[str]:
    """Do after a restore what it leaves undone; says what, in a line each, as it goes.

    Args:
        url: the database, as the login that migrates.

    Raises:
        ReadOnlyError: the server can't be written to: it is a standby still.
        SchemaError: the database is of another release, can't be reached, or was restored without
            its owner.
    """
    async with schema.connect(url) as connection:
        for (owner,) in await _rows(connection, _FOREIGN_OWNED):
            raise schema.SchemaError(
                f"tables belong to {owner}, not to darkpearl_owner: restore as a superuser, without"
                " --no-owner"
            )
    applied = await schema.migrate(url)
    yield f"migrations: {', '.join(applied) or 'nothing new'}"
    yield "routines, rights and the roles' search paths: up to date"
    async with schema.connect(url) as connection:
        for step in (_ids, _identities, _partitions, _statistics, _questions):
            async for line in step(connection):
                yield line


async def _rows(connection: AsyncConnection[Any], query: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query.encode())).fetchall()


async def _ids(connection: AsyncConnection[Any]) -> AsyncIterator[str]:
    """A schema that was made on a server before 18 has no use of its ids, which are faster."""
    if (await _rows(connection, _OLD_IDS))[0][0]:
        async with connection.transaction():
            await connection.execute("set local role darkpearl_owner")
            await connection.execute(_NEW_IDS)
        yield "ids: PostgreSQL's own, uuidv7(), from now on"


async def _identities(connection: AsyncConnection[Any]) -> AsyncIterator[str]:
    """Numbers that rows have already are not given again: a replica doesn't get the counters."""
    behind = False
    for table, column, sequence in await _rows(connection, _IDENTITIES):
        push = sql.SQL(_PUSH).format(
            sequence=sql.Literal(sequence),
            column=sql.Identifier(column),
            table=sql.Identifier(table),
        )
        # Its function's policy lets the owner see all rows.
        async with connection.transaction():
            await connection.execute("set local role darkpearl_owner")
            found = await (await connection.execute(push)).fetchone()
        if found:
            behind = True
            yield f"{table}.{column}: counts on from {found[0]}"
    if not behind:
        yield "identities: none is behind its table"


async def _partitions(connection: AsyncConnection[Any]) -> AsyncIterator[str]:
    """The months that history needs next, and what came while they had no partition."""
    made: list[str] = []
    for call in ("ensure_event_partitions()", "place_events()"):
        async with connection.transaction():
            await connection.execute("set local role darkpearl_owner")
            made += [name for (name,) in await _rows(connection, f"select darkpearl.{call}")]
    yield f"partitions of saga_events: {', '.join(made) or 'none is missing'}"


async def _statistics(connection: AsyncConnection[Any]) -> AsyncIterator[str]:
    """What the planner knows of the tables isn't in a dump, nor on a subscriber."""
    tables = [name for (name,) in await _rows(connection, _TABLES)]
    await connection.execute("set role darkpearl_owner")
    for each in tables:
        await connection.execute(sql.SQL("analyze darkpearl.{}").format(sql.Identifier(each)))
    await connection.execute("reset role")
    yield f"statistics: {len(tables)} tables analysed"


async def _questions(connection: AsyncConnection[Any]) -> AsyncIterator[str]:
    """What a person has to look at."""
    knows = connection.info.server_version >= FIRST_WITH_RUN_AS_OWNER
    query = _SUBSCRIPTIONS.format(
        runs_as_owner="subrunasowner" if knows else "false as subrunasowner"
    )
    for name, enabled, owner, sees_all, runs_as_owner in await _rows(connection, query):
        if enabled:
            yield f"LOOK: subscription {name} goes on writing here; disable it where this leads now"
        if not (sees_all and (runs_as_owner or not knows)):
            yield (
                f"LOOK: subscription {name} of {owner} can't write to tables with row security:"
                " its owner needs BYPASSRLS"
                + (f", and alter subscription {name} set (run_as_owner = true)" if knows else "")
            )
    for (gid,) in await _rows(connection, _PREPARED):
        yield f"LOOK: a prepared transaction waits: commit prepared or rollback prepared '{gid}'"
    if (await _rows(connection, _COLLATION_MOVED))[0][0]:
        yield (
            "LOOK: texts sort otherwise than when the indexes were made: reindex database, then"
            " alter database refresh collation version"
        )
