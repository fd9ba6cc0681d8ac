"""The server: who may ask it, what it promises, and what time it is there."""

import time

from darkpearl import database, schema
from darkpearl.database import API_ROLE, LISTENER_ROLE
from darkpearl.doctor.check import Check, Patient, Verdict, fail, ok, warn

NEWEST_SERVER = 18
CLOCK_SECONDS = 5.0
"""Of difference between here and the database; a token may be that late or early and more."""
CLOCK_LIMIT_SECONDS = 60.0
CROWDED = 0.8
FULL = 0.95
REFUSALS = {
    "No space left on device": "Make room on the server's disk: it lets nobody in without.",
    "too many c": "End sessions that nobody needs, by pg_terminate_backend(); see max_connections"
    " and the limits of roles.",
    "connection slots are reserved": "End sessions that nobody needs; a superuser still gets in.",
    "system is starting up": "Wait: it is starting, or was ended by a crash and makes good for it.",
    "system is in recovery": "Wait: it was ended by a crash and makes good for it.",
    "system is shutting down": "Start PostgreSQL once it has ended.",
}
"""What a server that is there says when it lets nobody in, and what to do then."""
START = (
    "Start PostgreSQL, or correct DARKPEARL_DATABASE_URL; for the embedded one, darkpearl db start."
)


async def connection(patient: Patient) -> Verdict:
    """The database can be reached."""
    began = time.monotonic()
    try:
        async with patient.connect() as opened:
            user = opened.info.user
            await database.refuse_another(opened, patient.cell)
    except schema.SchemaError as error:
        said = str(error)
        mends = (mend for words, mend in REFUSALS.items() if words in said)
        return fail(said, next(mends, START))
    return ok(f"as {user}, in {(time.monotonic() - began) * 1000:.0f} ms")


async def login(patient: Patient) -> Verdict:
    """Whoever asks may read what is to be looked at, and see what other sessions do."""
    found = await patient.row(
        """
        select
            session_user as name,
            coalesce(bool_or(r.rolname <> 'pg_read_all_stats'), false) as reads,
            coalesce(bool_or(r.rolname = 'pg_read_all_stats'), false) as sees
        from pg_roles as r
        where r.rolname in ('darkpearl_reader', 'service_role', 'pg_read_all_stats')
            and pg_has_role(session_user, r.oid, 'member')
        """
    )
    if not found["reads"]:
        return fail(
            f"{found['name']} is in neither darkpearl_reader nor service_role",
            f"Run darkpearl db migrate, if there are no such roles; grant darkpearl_reader to"
            f" {found['name']}; or give another login in DARKPEARL_DATABASE_URL.",
        )
    if not found["sees"]:
        return warn(
            f"{found['name']} doesn't see what other sessions do",
            f"grant pg_monitor to {found['name']}; as a superuser.",
        )
    return ok(f"{found['name']} may read all")


async def listener_login(patient: Patient) -> Verdict:
    """Listeners can log in as what they have to be."""
    try:
        async with patient.connect(database.as_role(patient.listener_url, LISTENER_ROLE)):
            return ok(f"as {LISTENER_ROLE}")
    except schema.SchemaError as error:
        return fail(
            f"not as {LISTENER_ROLE}: {error}",
            "Give DARKPEARL_LISTENER_DATABASE_URL a login of its own, and alter role"
            " darkpearl_listener password.",
        )


async def api_login(patient: Patient) -> Verdict:
    """APIs can log in as what they have to be."""
    try:
        async with schema.connect(patient.api_url) as opened:
            if opened.info.user != API_ROLE:
                await opened.execute(f"set session authorization {API_ROLE}")
            return ok(f"as {API_ROLE}")
    except schema.SchemaError as error:
        return fail(
            f"not as {API_ROLE}: {error}",
            "Give DARKPEARL_API_DATABASE_URL a login of its own, and alter role darkpearl_api"
            " password.",
        )


async def version(patient: Patient) -> Verdict:
    """The server is one that this release was tried with."""
    found = await patient.row(
        "select current_setting('server_version') as name,"
        " current_setting('server_version_num')::integer / 10000 as number"
    )
    if found["number"] > NEWEST_SERVER:
        return warn(
            f"PostgreSQL {found['name']}; this release was tried with {schema.OLDEST_SERVER} to"
            f" {NEWEST_SERVER}",
            "Install a release of DarkPearl that knows it.",
        )
    return ok(f"PostgreSQL {found['name']}")


async def writable(patient: Patient) -> Verdict:
    """The server can be written to."""
    found = await patient.row(
        "select pg_is_in_recovery() as standby,"
        " current_setting('default_transaction_read_only')::boolean as read_only"
    )
    if found["standby"]:
        return fail(
            "it is a standby",
            "Give the address of the primary, or promote this one: select pg_promote().",
        )
    if found["read_only"]:
        return fail(
            "default_transaction_read_only is on",
            "Find out why somebody set it; alter system reset default_transaction_read_only.",
        )
    return ok("it takes writes")


async def fsync(patient: Patient) -> Verdict:
    """What is written survives a crash of the machine."""
    found = await patient.row(
        "select current_setting('fsync')::boolean as fsync,"
        " current_setting('full_page_writes')::boolean as full_page_writes"
    )
    off = [name for name, is_on in found.items() if not is_on]
    if off:
        return fail(
            f"{' and '.join(off)} off: a crash of the machine ruins the database",
            f"{'; '.join(f'alter system set {name} = on' for name in off)}; select"
            f" pg_reload_conf(). For tests alone it may stay.",
        )
    return ok("fsync and full_page_writes are on")


async def synchronous_commit(patient: Patient) -> Verdict:
    """What is committed, payments above all, survives a crash of the server."""
    found = await patient.row(
        """
        select
            reset_val as server,
            array(
                select format('role %s', coalesce(nullif(s.setrole, 0)::regrole::text, 'all'))
                from pg_db_role_setting as s
                where 'synchronous_commit=off' = any(s.setconfig)
                    and s.setdatabase in (
                        0, (select d.oid from pg_database as d where d.datname = current_database())
                    )
            ) as others
        from pg_settings where name = 'synchronous_commit'
        """
    )
    off = [*(["the server"] if found["server"] == "off" else []), *found["others"]]
    if off:
        return fail(
            f"off for {', '.join(off)}: a crash loses commits, and with them what was asked of the"
            f" gateway",
            "alter system set synchronous_commit = on; select pg_reload_conf(); alter role … reset"
            " synchronous_commit.",
        )
    return ok(str(found["server"]))


async def clocks(patient: Patient) -> Verdict:
    """This machine and the database agree about the time, and it was not set back."""
    async with patient.connect() as opened:
        before = time.time()
        cursor = await opened.execute(b"select extract(epoch from clock())::float8")
        ((there,),) = await cursor.fetchall()
        after = time.time()
        cursor = await opened.execute(
            b"select count(*) from (select from sagas where ready_at is not null"
            b" and updated_at > clock() + interval '1 second' limit 1000) as s"
        )
        ((ahead,),) = await cursor.fetchall()
    apart = max(there - after, before - there, 0.0)
    if apart > CLOCK_SECONDS:
        verdict = fail if apart > CLOCK_LIMIT_SECONDS else warn
        return verdict(
            f"the database's clock and this machine's are {apart:.0f} s apart",
            "Have both set their clocks by NTP: tokens are refused, and listeners elsewhere look"
            " alive or dead when they aren't.",
        )
    if ahead:
        return warn(
            f"{ahead} sagas were changed at a time that is still to come: the clock was set back",
            "Start a listener: it brings them back within a second.",
        )
    return ok(f"{apart * 1000:.0f} ms apart at most")


async def connections(patient: Patient) -> Verdict:
    """There is room for more sessions."""
    found = await patient.row(
        """
        select
            count(*)::integer as used,
            current_setting('max_connections')::integer
            - current_setting('superuser_reserved_connections')::integer as most
        from pg_stat_activity where backend_type = 'client backend'
        """
    )
    share = found["used"] / found["most"]
    says = f"{found['used']} of {found['most']} in use"
    if share < CROWDED:
        return ok(says)
    return (fail if share >= FULL else warn)(
        says,
        "Find who holds them in pg_stat_activity; a pooler for the API, connection limit for"
        " roles, or more max_connections.",
    )


async def statistics(patient: Patient) -> Verdict:
    """The planner sees how many rows have a status."""
    found = await patient.row(
        "select proleakproof from pg_proc where oid = 'enum_eq(anyenum,anyenum)'::regprocedure"
    )
    if found["proleakproof"]:
        return ok("not hidden by row-level security")
    return warn(
        "row-level security hides statistics of statuses: lists may read whole tables",
        "alter function pg_catalog.enum_eq(anyenum, anyenum) leakproof; as a superuser.",
    )


CHECKS: tuple[Check, ...] = (
    *(connection, login, listener_login, api_login, version, writable, fsync, synchronous_commit),
    *(clocks, connections, statistics),
)
