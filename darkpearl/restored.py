"""A database that came from somewhere else: restored, upgraded, replicated, or promoted.

What a dump, a replica or a copy doesn't carry is done here, a line for each. Doing it again changes
nothing. What only a person can decide is left as it is: doctor/restore.py says it.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from psycopg import AsyncConnection, sql

from darkpearl import schema

_COUNTERS = """
    select c.relname, a.attname, pg_get_serial_sequence(c.oid::regclass::text, a.attname)
    from pg_class as c
    inner join pg_attribute as a on a.attrelid = c.oid
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p')
        and not c.relispartition and a.attidentity <> ''
    union all
    -- Their ids are of the same sequence; an endpoint's position is one that it has been told of.
    select t.name, t.id, pg_get_serial_sequence('darkpearl.saga_events', 'id')
    from (values ('stock_alerts', 'id'), ('webhook_endpoints', 'position')) as t (name, id)
    order by 1, 2
"""
_COUNT = """
    select
        -- Order numbers of other cells' warehouses are none of this sequence.
        (
            select max(t.{column})
            from darkpearl.{table} as t where t.{column} between s.seqmin and s.seqmax
        ),
        pg_sequence_last_value(s.seqrelid)
    from pg_sequence as s
    where s.seqrelid = {sequence}::regclass
"""
_PUSH = "select setval(%s::regclass, %s)"
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
_FOREIGN_OWNERS = """
    select distinct pg_get_userbyid(relowner)
    from pg_class
    where relnamespace = to_regnamespace('darkpearl')
        and pg_get_userbyid(relowner) <> 'darkpearl_owner'
    order by 1
"""


class Counter(NamedTuple):
    """A column that is numbered by a sequence, the highest number in it, and the last one given."""

    table: str
    column: str
    sequence: str
    highest: int
    last: int

    @property
    def is_behind(self) -> bool:
        """A number that a row has would be given again."""
        return self.highest > self.last


async def put_in_order(url: str, lost: int = 0) -> AsyncIterator[str]:
    """Do after a restore what it leaves undone; says what, in a line each, as it goes.

    Args:
        url: the database, as the login that migrates.
        lost: how many numbers to leave out, because rows that are lost may have had them.

    Raises:
        ReadOnlyError: the server can't be written to: it is a standby still.
        SchemaError: the database is of another release, can't be reached, or was restored without
            its owner.
    """
    async with schema.connect(url) as connection:
        for owner in await foreign_owners(connection):
            raise schema.SchemaError(
                f"tables belong to {owner}, not to darkpearl_owner: restore as a superuser, without"
                " --no-owner"
            )
    applied = await schema.migrate(url)
    yield f"migrations: {', '.join(applied) or 'nothing new'}"
    yield "routines, rights and the roles' search paths: up to date"
    async with schema.connect(url) as connection:
        async for line in _ids(connection):
            yield line
        async for line in _counters(connection, lost):
            yield line
        for step in (_partitions, _statistics):
            async for line in step(connection):
                yield line


async def foreign_owners(connection: AsyncConnection[Any]) -> list[str]:
    """Who has something in the schema beside darkpearl_owner: functions would fail one by one."""
    return [name for (name,) in await _rows(connection, _FOREIGN_OWNERS)]


async def counters(connection: AsyncConnection[Any]) -> list[Counter]:
    """Every numbered column: a replica gets rows and no counters, a restore the counters of then.

    The login must be a member of darkpearl_owner, whose policy lets it see all rows.
    """
    found = []
    for table, column, sequence in await _rows(connection, _COUNTERS):
        count = sql.SQL(_COUNT).format(
            sequence=sql.Literal(sequence),
            column=sql.Identifier(column),
            table=sql.Identifier(table),
        )
        async with connection.transaction():
            await connection.execute("set local role darkpearl_owner")
            cursor = await connection.execute(count)
            ((highest, last),) = await cursor.fetchall()
        found.append(Counter(table, column, sequence, highest or 0, last or 0))
    return found


async def _rows(connection: AsyncConnection[Any], query: str) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query.encode())).fetchall()


async def _ids(connection: AsyncConnection[Any]) -> AsyncIterator[str]:
    """A schema that was made on a server before 18 has no use of its ids, which are faster."""
    if (await _rows(connection, _OLD_IDS))[0][0]:
        async with connection.transaction():
            await connection.execute("set local role darkpearl_owner")
            await connection.execute(_NEW_IDS)
        yield "ids: PostgreSQL's own, uuidv7(), from now on"


async def _counters(connection: AsyncConnection[Any], lost: int) -> AsyncIterator[str]:
    """Numbers that rows have, or may have had, are not given again."""
    found = await counters(connection)
    behind = [each for each in found if each.is_behind]
    for each in behind:
        yield f"{each.table}.{each.column}: counts on from {each.highest}"
    if not behind:
        yield "counters: none is behind its table"
    reached: dict[str, int] = {}
    for each in found:
        highest = max(each.highest, each.last, reached.get(each.sequence, 0))
        reached[each.sequence] = highest
    pushed = {each.sequence for each in behind} if not lost else set(reached)
    for sequence in sorted(pushed):
        if number := reached[sequence] + lost:
            async with connection.transaction():
                await connection.execute("set local role darkpearl_owner")
                await connection.execute(_PUSH, [sequence, number])
    if lost:
        yield f"counters: {lost} numbers are left out"


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
