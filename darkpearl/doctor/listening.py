"""The listeners: whether any works, whether all are of one mind, and whether the bell is heard."""

import asyncio
import time

from darkpearl import __version__, database
from darkpearl.doctor.check import Check, Patient, Row, Verdict, ago, fail, ok, people, warn
from darkpearl.errors import translated

CHANNEL = "darkpearl_bell"
BELL_NAME = "darkpearl bell"
"""The application of the sessions that hear the bell."""
BELL_SECONDS = 3.0
SLOW_BELL_SECONDS = 1.0
BACKING_OFF = "backing off"
_ALIVE = (
    "select host, process_id, version, gateway, breaker, activity from listener_activity"
    " where is_alive order by host, process_id"
)


async def listeners(patient: Patient) -> Verdict:
    """A listener works."""
    alive = await patient.rows(_ALIVE)
    if not alive:
        return fail("none is alive: no order moves", "darkpearl listener")
    failing = [each for each in alive if each["activity"].startswith(BACKING_OFF)]
    if failing:
        told = f"{people(_names(failing))} of {len(alive)}: {failing[0]['activity']}"
        return (fail if len(failing) == len(alive) else warn)(
            f"each pass fails of {told}",
            "Mend what it says, which its log says in full: a full disk, see the line disk; orders"
            " wait meanwhile and lose nothing.",
        )
    return ok(f"{len(alive)}: {people(_names(alive))}")


async def silent_listeners(patient: Patient) -> Verdict:
    """Every listener that has begun is still heard of."""
    silent = await patient.rows(
        "select listener_id, host, process_id, seen_seconds_ago as seconds from listener_activity"
        " where not is_alive order by host, process_id"
    )
    if silent:
        (first, *_) = silent
        return warn(
            f"not heard of any more: {people(_names(silent))}, for {ago(first['seconds'])}",
            "It was killed, is frozen or can't reach the database: see its log, end what is left of"
            f" it (kill -9 {first['process_id']} on {first['host']}), start one anew; then"
            f" darkpearl listeners dismiss {first['listener_id']} --reason ….",
        )
    return ok("none")


async def listener_versions(patient: Patient) -> Verdict:
    """All listeners are of this release."""
    alive = await patient.rows(_ALIVE)
    others = [each for each in alive if each["version"] != __version__]
    if others:
        return warn(
            f"{people(_names(others))} of {people(sorted({each['version'] for each in others}))},"
            f" this is {__version__}",
            "Restart those of the older release once its orders have been handed over.",
        )
    return ok(__version__ if alive else "none is alive")


async def listener_gateways(patient: Patient) -> Verdict:
    """All listeners ask the same gateway, and it answers all of them."""
    alive = await patient.rows(_ALIVE)
    gateways = sorted({each["gateway"] for each in alive})
    failing = [each for each in alive if each["breaker"] != "closed"]
    if len(gateways) > 1:
        return fail(
            f"listeners ask different gateways: {', '.join(gateways)}",
            "Give all listeners the same DARKPEARL_GATEWAY settings, and restart them.",
        )
    if failing and len(failing) < len(alive):
        return fail(
            f"the gateway doesn't answer {people(_names(failing))}, but others",
            "Compare its settings and its network with the others', and restart it.",
        )
    if failing:
        return fail(
            f"the gateway answers none of {len(alive)} listeners",
            "See the line gateway; orders wait and lose nothing. Nothing else is to be done here.",
        )
    return ok(f"{', '.join(gateways) or 'nobody'} answers" if alive else "none is alive")


async def pooler(patient: Patient) -> Verdict:
    """Listeners have sessions of their own: no pooler in transaction mode is between."""
    try:
        with translated():
            async with database.connect(patient.listener_url, "darkpearl doctor"):
                return ok("none between")
    except database.PoolerError:
        return fail(
            "the listeners' address leads through a pooler in transaction mode",
            "Give DARKPEARL_LISTENER_DATABASE_URL PostgreSQL's own address.",
        )


async def bell(patient: Patient) -> Verdict:
    """A notification that one session sends is heard by another."""
    heard = asyncio.Event()
    async with patient.connect() as ear, patient.connect() as hand:
        ear.add_notify_handler(lambda _: heard.set())
        await ear.execute(f"listen {CHANNEL}".encode())
        began = time.monotonic()
        await hand.execute(f"notify {CHANNEL}".encode())
        while not heard.is_set() and time.monotonic() - began < BELL_SECONDS:
            await ear.execute(b"select 1")  # what has come is told with any answer
            await asyncio.sleep(0.01)
        took = time.monotonic() - began
    if not heard.is_set():
        return fail(
            f"not heard within {BELL_SECONDS:g} s",
            "See the lines pooler and notification-queue; orders wait for the next poll meanwhile.",
        )
    if took > SLOW_BELL_SECONDS:
        return warn(f"heard after {took:.1f} s", "The server is loaded: see top.")
    return ok(f"heard after {took * 1000:.0f} ms")


async def idle_lock(patient: Patient) -> Verdict:
    """The lock that says that listeners sleep is a living listener's."""
    holders = await patient.rows(
        """
        select l.pid, a.application_name as application, a.usename as name,
            extract(epoch from clock_timestamp() - a.backend_start)::float8 as seconds,
            exists (select from listener_activity as v where v.is_alive) as lives
        from pg_locks as l
        left join pg_stat_activity as a on a.pid = l.pid
        where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted and l.objsubid = 1
            and l.database = (select d.oid from pg_database as d
                where d.datname = current_database())
            and l.classid = (idle_lock_key() >> 32)::oid
            and l.objid = (idle_lock_key() & 4294967295)::oid
        """
    )
    for each in holders:
        if each["application"] != BELL_NAME or not each["lives"]:
            return warn(
                f"held by pid {each['pid']} ({each['application']}), which is no living listener:"
                " every order rings for nobody",
                f"darkpearl db end-session {each['pid']}",
            )
    return ok("a listener sleeps" if holders else "nobody sleeps")


def _names(listeners: list[Row]) -> list[str]:
    return [f"{each['host']} {each['process_id']}" for each in listeners]


CHECKS: tuple[Check, ...] = (
    *(listeners, silent_listeners, listener_versions, listener_gateways, pooler, bell, idle_lock),
)
