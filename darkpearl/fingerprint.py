"""The fingerprint of the routines: what a migrate that has nothing to do is known by.

It is kept beside the books of the migrations, and says how the last migrate left the files and the
database. Asking for it reads catalogues and the plans, and locks nothing that anybody waits for.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection

from darkpearl import __version__

TABLE = "darkpearl_migrations.routines"
STATE = """
    with ours as (
        select oid, relname, relkind, relacl, reloptions, relrowsecurity, relforcerowsecurity
        from pg_class
        where relnamespace = to_regnamespace('darkpearl') and not relispartition
            and relkind in ('r', 'p', 'v')
    )
    select coalesce(line, '') collate "C" from (
        select oid::text from pg_database where datname = current_database()
        union all
        select nspacl::text from pg_namespace where nspname = 'darkpearl'
        union all
        select p::text from pg_proc as p
        where pronamespace = to_regnamespace('darkpearl') and proname <> 'this_cell'
        union all
        select o::text from ours as o
        union all
        select r::text from pg_rewrite as r inner join ours as o on o.oid = r.ev_class
        union all
        select format('%s %s %s', o.oid, a.attname, a.attacl)
        from pg_attribute as a inner join ours as o on o.oid = a.attrelid
        where a.attacl is not null
        union all
        select t::text from pg_trigger as t inner join ours as o on o.oid = t.tgrelid
        where t.tgname <> 'moved_warehouses_are_closed'
        union all
        select p::text from pg_policy as p inner join ours as o on o.oid = p.polrelid
        union all
        select s::text
        from pg_db_role_setting as s inner join pg_database as d on d.oid = s.setdatabase
        where d.datname = current_database()
        union all
        select format('enum_eq %s', proleakproof)
        from pg_proc where oid = 'pg_catalog.enum_eq(anyenum,anyenum)'::regprocedure
        union all
        select format('%s %s %s', m.rolname, r.rolname, pg_has_role(m.oid, r.oid, 'member'))
        from pg_roles as m, pg_roles as r
        where m.rolname in (current_user, 'darkpearl_api')
            and r.rolname ~ '^(darkpearl_.*|anon|authenticated|service_role)$'
    ) as lines (line)
    order by 1
"""
"""What a database has of the routines and their rights, as lines; read of catalogues alone.

Whoever changes a function by hand is undone by the next migrate, and a copy isn't taken for its
original: it has lost the settings that roles have in it. Which cell it is, and what closes the
warehouses that have left it, no migrate makes.
"""


async def matches(connection: AsyncConnection[Any], paths: Sequence[Path]) -> bool:
    """Whether the files at `paths`, the plans and the database are as the last migrate left them.

    False as well for a login that may not read it all. The connection must be in autocommit.
    """
    found = await connection.execute("select to_regclass(%s) is not null", [TABLE])
    if not ((row := await found.fetchone()) and row[0]):
        return False
    try:
        found = await connection.execute(f"select fingerprint from {TABLE}")  # noqa: S608
        return await found.fetchall() == [(await _fingerprint(connection, paths),)]
    except psycopg.ProgrammingError:
        return False


async def hides_statistics(connection: AsyncConnection[Any]) -> bool:
    """Whether the planner has to guess how many rows have a status, under row-level security."""
    found = await connection.execute(
        "select proleakproof from pg_proc where oid = 'enum_eq(anyenum,anyenum)'::regprocedure"
    )
    return await found.fetchone() != (True,)


async def forget(connection: AsyncConnection[Any]) -> None:
    """Say that nobody knows how things are, before they are changed."""
    await connection.execute(f"create table if not exists {TABLE} (fingerprint text not null)")
    await connection.execute(f"delete from {TABLE}")  # noqa: S608


async def write(connection: AsyncConnection[Any], paths: Sequence[Path]) -> None:
    """Say that this is how a migrate has left things; nothing, where the login can't read it all.

    The connection must be in autocommit.
    """
    with contextlib.suppress(psycopg.ProgrammingError):
        now = await _fingerprint(connection, paths)
        await connection.execute(f"insert into {TABLE} values (%s)", [now])  # noqa: S608


async def plans(connection: AsyncConnection[Any]) -> list[str]:
    """The newest plan of each saga type, a line a step; nothing where there is no such table."""
    found = await connection.execute("select to_regclass('darkpearl.saga_steps') is not null")
    if not ((row := await found.fetchone()) and row[0]):
        return []
    steps = await connection.execute(
        "select to_jsonb(s) - 'plan_version' from darkpearl.saga_steps as s"
        " where (saga_type, plan_version) in"
        " (select saga_type, max(plan_version) from darkpearl.saga_steps group by saga_type)"
        " order by saga_type, position"
    )
    return [f"{json.dumps(step)}\n" for (step,) in await steps.fetchall()]


async def _fingerprint(connection: AsyncConnection[Any], paths: Sequence[Path]) -> str:
    """SHA-256 of the release, the files' names and texts, and what the database has of them."""
    parts = [__version__, *await plans(connection)]
    for path in paths:
        parts += [path.name, path.read_text(encoding="utf-8")]
    found = await connection.execute(STATE)
    parts += [line for (line,) in await found.fetchall()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
