"""The release: whether the database is of the one that asks."""

from collections.abc import AsyncIterator

from darkpearl import fingerprint, schema
from darkpearl.doctor.check import Check, Patient, Verdict, fail, ok, people, warn

MIGRATE = "darkpearl db migrate"
_DEFINITIONS = """
    select format(
        'column %s.%s %s %s %s', a.attrelid::regclass, a.attname,
        format_type(a.atttypid, a.atttypmod), case when a.attnotnull then 'not null' end,
        pg_get_expr(d.adbin, d.adrelid)
    )
    from pg_attribute as a
    inner join pg_class as c on c.oid = a.attrelid
    left join pg_attrdef as d on (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p')
        and not c.relispartition and a.attnum > 0 and not a.attisdropped
    union all
    select format(
        'constraint %s of %s: %s', n.conname, n.conrelid::regclass, pg_get_constraintdef(n.oid)
    )
    from pg_constraint as n
    inner join pg_class as c on c.oid = n.conrelid
    where n.connamespace = 'darkpearl'::regnamespace and not c.relispartition
        and n.contype <> 'n'
    union all
    select format('index %s: %s', i.indexrelid::regclass, pg_get_indexdef(i.indexrelid))
    from pg_index as i
    inner join pg_class as c on c.oid = i.indrelid
    where c.relnamespace = 'darkpearl'::regnamespace and not c.relispartition
    union all
    select format('trigger %s: %s', t.tgname, pg_get_triggerdef(t.oid))
    from pg_trigger as t
    inner join pg_class as c on c.oid = t.tgrelid
    where c.relnamespace = 'darkpearl'::regnamespace and not c.relispartition and not t.tgisinternal
    union all
    select format('trigger %s of %s is off', t.tgname, t.tgrelid::regclass)
    from pg_trigger as t
    inner join pg_class as c on c.oid = t.tgrelid
    where c.relnamespace = 'darkpearl'::regnamespace and t.tgenabled in ('D', 'R')
    union all
    select format(
        'type %s: %s', t.typname,
        array(
            select e.enumlabel from pg_enum as e where e.enumtypid = t.oid order by e.enumsortorder
        )
    )
    from pg_type as t where t.typnamespace = 'darkpearl'::regnamespace and t.typtype = 'e'
"""


async def migrations(patient: Patient) -> Verdict:
    """All migrations of this release are applied, and none of another."""
    found = await schema.status(patient.url)
    if found.unknown:
        return fail(
            f"the database is of a newer release: {people(found.unknown)}",
            "Install the release that it is of; this one leaves it alone.",
        )
    if found.pending:
        return fail(f"pending: {people(found.pending)}", MIGRATE)
    return ok(f"{len(found.applied)} applied")


async def routines(patient: Patient) -> Verdict:
    """Functions, views, triggers, policies and grants are this release's, as it left them."""
    async with patient.connect() as connection:
        cursor = await connection.execute(
            b"select to_regclass('darkpearl_migrations.routines') is not null,"
            b" has_table_privilege(to_regclass('darkpearl_migrations.routines'), 'select')"
        )
        ((exists, readable),) = await cursor.fetchall()
        if exists and not readable:
            return warn("this login may not know", "Ask as the login that migrates.")
        if await fingerprint.matches(connection, schema.files("routines")):
            return ok("as the last db migrate left them")
    return fail(
        "of another release, of a copy, or changed by hand since the last db migrate", MIGRATE
    )


async def indexes(patient: Patient) -> Verdict:
    """Every index is whole."""
    broken = await patient.rows(
        """
        select i.indexrelid::regclass::text as name
        from pg_index as i inner join pg_class as c on c.oid = i.indexrelid
        where c.relnamespace = 'darkpearl'::regnamespace and not (i.indisvalid and i.indisready)
            and not exists (
                select from pg_stat_progress_create_index as p where p.index_relid = i.indexrelid
            )
        order by 1
        """
    )
    if broken:
        names = [row["name"] for row in broken]
        return fail(f"not valid: {people(names)}", f"reindex index concurrently {names[0]};")
    return ok("all valid")


async def drift(patient: Patient) -> Verdict:
    """Tables, constraints, indexes and triggers are what the migrations make."""
    here = {line async for line in _definitions(patient, patient.url)}
    async with schema.scratch_database(patient.url) as scratch:
        await schema.migrate(scratch)
        there = {line async for line in _definitions(patient, scratch)}
    changes = [
        *(f"without {each}" for each in sorted(there - here)),
        *(f"with {each}" for each in sorted(here - there)),
    ]
    if changes:
        return fail(
            f"{len(changes)} differences: {people(changes)}",
            "Undo by hand what was changed by hand; a trigger that is off: alter table … enable"
            " trigger ….",
        )
    return ok("none")


async def _definitions(patient: Patient, url: str) -> AsyncIterator[str]:
    async with patient.connect(url) as connection:
        cursor = await connection.execute(_DEFINITIONS.encode())
        for (line,) in await cursor.fetchall():
            yield line


CHECKS: tuple[Check, ...] = (migrations, routines, indexes)
DEEP: tuple[Check, ...] = (drift,)
