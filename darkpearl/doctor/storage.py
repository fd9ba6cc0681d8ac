"""What is kept: vacuum, partitions, disk, backups, audits."""

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from darkpearl.doctor.check import Check, Patient, Verdict, ago, fail, ok, people, warn

DEAD_ROWS = 50_000
FREEZE_LIMIT = 1_200_000_000
"""Of 2,146,483,648 transactions at which the server stops; vacuum begins long before."""
BACKUP_DAYS = 2
AUDIT_DAYS = 7
HOUSEKEEPING_DAYS = 3
LOW_DISK = 0.15
FULL_DISK = 0.05
GIGABYTE = 2**30
_LOCAL = {"", "localhost", "127.0.0.1", "::1"}


async def vacuum(patient: Patient) -> Verdict:
    """Autovacuum is on, and keeps up."""
    found = await patient.row(
        """
        select
            current_setting('autovacuum')::boolean and current_setting('track_counts')::boolean
                as is_on,
            array(
                select c.relname from pg_class as c
                where c.relnamespace = 'darkpearl'::regnamespace
                    and c.reloptions && array['autovacuum_enabled=false', 'autovacuum_enabled=off']
                order by 1
            ) as without,
            array(
                select format('%%s %%s', s.relname, s.n_dead_tup)
                from pg_stat_user_tables as s
                where s.schemaname = 'darkpearl' and s.n_dead_tup > greatest(%s, s.n_live_tup / 2)
                order by s.n_dead_tup desc
            ) as behind
        """,
        DEAD_ROWS,
    )
    if not found["is_on"] or found["without"]:
        which = people(found["without"]) if found["is_on"] else "all tables"
        return fail(
            f"autovacuum is off for {which}",
            "alter system set autovacuum = on; alter table … reset (autovacuum_enabled).",
        )
    if found["behind"]:
        return warn(
            f"dead rows: {people(found['behind'])}",
            "See the lines snapshots, prepared and replication-slots: what they hold can't be"
            " removed. Else vacuum (analyze) the table, and give autovacuum a higher"
            " autovacuum_vacuum_cost_limit.",
        )
    return ok("on, and keeps up")


async def wraparound(patient: Patient) -> Verdict:
    """Transaction ids don't run out."""
    found = await patient.row(
        """
        select age(d.datfrozenxid)::bigint as age,
            mxid_age(d.datminmxid)::bigint as multixacts,
            current_setting('autovacuum_freeze_max_age')::bigint as begins
        from pg_database as d where d.datname = current_database()
        """
    )
    oldest = max(found["age"], found["multixacts"])
    says = f"the oldest is {oldest:,} transactions old"
    if oldest > FREEZE_LIMIT:
        return fail(says, "End what holds snapshots, then vacuum (freeze) in a quiet hour, soon.")
    if oldest > found["begins"] * 1.5:
        return warn(says, "Autovacuum should have been there: see the lines vacuum and snapshots.")
    return ok(says)


async def partitions(patient: Patient) -> Verdict:
    """History has its partitions, of this month and the next two."""
    missing = await patient.rows(
        """
        select to_char(m.month, '"saga_events_"YYYY_MM') as name, n = 0 as is_now
        from generate_series(0, 2) as n
        cross join lateral (
            select date_trunc('month', clock() at time zone 'UTC') + n * interval '1 month' as month
        ) as m
        where to_regclass('darkpearl.' || to_char(m.month, '"saga_events_"YYYY_MM')) is null
        order by n
        """
    )
    if not missing:
        return ok("three months ahead")
    return (fail if missing[0]["is_now"] else warn)(
        f"{people([each['name'] for each in missing])} missing",
        "Start a listener, which makes them hourly: its log says what is in the way.",
    )


async def default_partition(patient: Patient) -> Verdict:
    """No event came without a partition for its month."""
    found = await patient.row("select events_out_of_place() as events")
    if found["events"]:
        return warn(
            f"{found['events']} events in saga_events_default",
            "Listeners move up to 10,000 an hour once the month is over; more: select"
            " place_events(null) as darkpearl_listener.",
        )
    return ok("empty")


async def disk(patient: Patient) -> Verdict:
    """There is room on the server's disk."""
    async with patient.connect() as connection:
        host = connection.info.host
        cursor = await connection.execute(b"select pg_database_size(current_database())")
        ((size,),) = await cursor.fetchall()
        if host not in _LOCAL and not host.startswith("/"):
            return ok(f"{size / GIGABYTE:.1f} GB; its disk can't be seen from here")
        cursor = await connection.execute(
            b"select setting from pg_settings where name = 'data_directory'"
        )
        folder = next((each for (each,) in await cursor.fetchall()), None)
    if not folder:
        return ok(f"{size / GIGABYTE:.1f} GB; this login may not know where it is")
    shares = await asyncio.to_thread(_shares, Path(folder))
    if not shares:
        return ok(f"{size / GIGABYTE:.1f} GB; its disk can't be seen from here")
    share, free, place = min(shares)
    says = f"{free / GIGABYTE:.1f} GB free, {share:.0%} of {place}"
    if share > LOW_DISK:
        return ok(says)
    return (fail if share < FULL_DISK else warn)(
        says,
        "Make room or give it more: darkpearl db size; darkpearl retention. Full, nothing is lost,"
        " and nothing moves until there is room.",
    )


def _shares(folder: Path) -> list[tuple[float, int, Path]]:
    """Of the disks of data and of WAL that can be seen: the free share, the free bytes, where."""
    found = []
    for place in (folder, folder / "pg_wal"):
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(os.path.realpath(place))
            found.append((usage.free / usage.total, usage.free, place))
    return found


async def checksums(patient: Patient) -> Verdict:
    """No page was found broken."""
    found = await patient.row(
        "select coalesce(sum(checksum_failures), 0)::bigint as failures,"
        " current_setting('data_checksums') as on"
        " from pg_stat_database where datname = current_database() or datname is null"
    )
    if found["failures"]:
        return fail(
            f"{found['failures']} pages were broken when they were read",
            "Save what can be read, restore from a backup, and replace the disk.",
        )
    return ok("none" if found["on"] == "on" else "none; the server has no checksums")


async def backup(patient: Patient) -> Verdict:
    """There is a backup, and it is fresh."""
    found = await patient.row(
        """
        select
            current_setting('archive_mode') <> 'off' as archives, a.last_archived_wal as archived,
            a.last_failed_time > coalesce(a.last_archived_time, '-infinity') as is_failing,
            a.last_failed_wal as failed,
            extract(epoch from clock() - b.at)::float8 as seconds, b.reason
        from pg_stat_archiver as a
        left join lateral (
            select l.at, l.reason from action_log as l
            where l.action = 'record_upkeep' and l.subject = 'backup' order by l.id desc limit 1
        ) as b on true
        """
    )
    note = "Have whatever makes backups run darkpearl db backed-up when one is whole."
    if found["archives"] and found["is_failing"]:
        return fail(
            f"{found['failed']} can't be archived: WAL stays until it is",
            "See the server's log for what archive_command says; the disk fills meanwhile.",
        )
    if found["seconds"] is None:
        return warn("none was ever noted here", note)
    says = f"noted {ago(found['seconds'])} ago" + (
        f": {found['reason']}" if found["reason"] else ""
    )
    if found["seconds"] > BACKUP_DAYS * 86_400:
        return warn(says, f"Make one. {note}")
    return ok(says + ("; WAL is archived" if found["archives"] else ""))


async def audit(patient: Patient) -> Verdict:
    """The last audit is fresh, and found nothing."""
    found = await patient.rows(
        "select finding_count as findings, extract(epoch from clock() - ended_at)::float8 as"
        " seconds"
        " from audit_runs order by id desc limit 1"
    )
    if not found:
        return warn("never run", "darkpearl audit")
    (last,) = found
    if last["findings"]:
        return fail(
            f"{last['findings']} findings {ago(last['seconds'])} ago",
            "darkpearl audit; keep the rows, and report them.",
        )
    if last["seconds"] > AUDIT_DAYS * 86_400:
        return warn(f"{ago(last['seconds'])} ago", "darkpearl audit --since, or of everything.")
    return ok(f"nothing found {ago(last['seconds'])} ago")


async def housekeeping(patient: Patient) -> Verdict:
    """What is too old to be kept is removed."""
    found = await patient.rows(
        "select kind from retention where keep_days is not null"
        " and coalesce(looked_at, '-infinity') < clock() - %s * interval '1 day' order by kind",
        HOUSEKEEPING_DAYS,
    )
    if found:
        return warn(
            f"nobody has looked at {people([each['kind'] for each in found])}",
            "A listener does once a day: see its log; or darkpearl retention apply.",
        )
    return ok("done")


CHECKS: tuple[Check, ...] = (
    *(vacuum, wraparound, partitions, default_partition, disk, checksums, backup, audit),
    housekeeping,
)
