"""Other sessions: who is in the way, and who keeps what is dead from being removed."""

from darkpearl.doctor.check import Check, Patient, Verdict, ago, fail, ok, people, warn

IDLE_SECONDS = 60.0
IDLE_LIMIT_SECONDS = 600.0
BLOCKING_LIMIT_SECONDS = 60.0
SNAPSHOT_SECONDS = 3600.0
SNAPSHOT_TRANSACTIONS = 5_000_000
QUEUE_USED = 0.1
QUEUE_FULL = 0.5
SLOT_BYTES = 10 * 2**30


async def blocking(patient: Patient) -> Verdict:
    """Nobody holds what listeners would change."""
    holders = await patient.rows(
        "select pid, user_name, application, state, holds, blocks,"
        " extract(epoch from clock_timestamp() - since)::float8 as seconds"
        " from blocking_sessions() order by since"
    )
    if not holders:
        return ok("nobody")
    first = holders[0]
    who = f"pid {first['pid']}" if first["pid"] else "a prepared transaction"
    for_long = first["seconds"] is not None and first["seconds"] > BLOCKING_LIMIT_SECONDS
    waiting = f", blocks {people(first['blocks'])}" if first["blocks"] else ""
    words = " ".join(filter(None, (first["user_name"], first["application"], first["state"])))
    return (fail if for_long or first["blocks"] else warn)(
        f"{who} ({words}) holds {people(first['holds'])}{waiting}"
        + (f"; {len(holders) - 1} more" if len(holders) > 1 else ""),
        f"darkpearl db inspect locks; ask whose it is, then darkpearl db end-session {first['pid']}"
        if first["pid"]
        else "See the line prepared.",
    )


async def idle_in_transaction(patient: Patient) -> Verdict:
    """No session rests in the middle of a transaction."""
    found = await patient.rows(
        """
        select pid, usename as name, application_name as application,
            extract(epoch from clock_timestamp() - state_change)::float8 as seconds
        from pg_stat_activity
        where datname = current_database() and state like 'idle in transaction%%'
            and state_change < clock_timestamp() - %s * interval '1 second'
        order by state_change
        """,
        IDLE_SECONDS,
    )
    if not found:
        return ok("none")
    told = [f"pid {row['pid']} ({row['name']} {row['application']})" for row in found]
    oldest = found[0]["seconds"]
    return (fail if oldest > IDLE_LIMIT_SECONDS else warn)(
        f"{people(told)}, for {ago(oldest)}",
        f"darkpearl db end-session {found[0]['pid']}; give its role"
        " idle_in_transaction_session_timeout.",
    )


async def prepared(patient: Patient) -> Verdict:
    """No prepared transaction was forgotten."""
    found = await patient.rows(
        """
        select gid, owner, extract(epoch from clock_timestamp() - prepared)::float8 as seconds
        from pg_prepared_xacts where database = current_database() order by prepared
        """
    )
    if not found:
        return ok("none")
    first = found[0]
    return fail(
        f"{people([row['gid'] for row in found])} of {first['owner']}, for {ago(first['seconds'])}",
        f"commit prepared '{first['gid']}' or rollback prepared '{first['gid']}', as its owner.",
    )


async def snapshots(patient: Patient) -> Verdict:
    """No session keeps vacuum from removing what is dead."""
    found = await patient.rows(
        """
        select pid, usename as name, application_name as application,
            extract(epoch from clock_timestamp() - xact_start)::float8 as seconds,
            greatest(age(backend_xmin), age(backend_xid)) as transactions
        from pg_stat_activity
        where backend_xmin is not null and pid <> pg_backend_pid()
            and (xact_start < clock_timestamp() - %s * interval '1 second'
                or age(backend_xmin) > %s)
        order by age(backend_xmin) desc
        """,
        *(SNAPSHOT_SECONDS, SNAPSHOT_TRANSACTIONS),
    )
    if not found:
        return ok("none held for long")
    first = found[0]
    return warn(
        f"pid {first['pid']} ({first['name']} {first['application']}) holds one for"
        f" {ago(first['seconds'] or 0)}, {first['transactions']} transactions old",
        f"darkpearl db inspect long; darkpearl db end-session {first['pid']}",
    )


async def replication_slots(patient: Patient) -> Verdict:
    """Every replication slot is read."""
    found = await patient.rows(
        """
        select slot_name as name, wal_status as status, active,
            pg_wal_lsn_diff(
                case
                    when pg_is_in_recovery() then pg_last_wal_replay_lsn()
                    else pg_current_wal_lsn()
                end,
                restart_lsn
            )::bigint as bytes
        from pg_replication_slots
        where not temporary
        order by 4 desc nulls last, 1
        """
    )
    lost = [each["name"] for each in found if each["status"] in ("lost", "unreserved")]
    unread = [each for each in found if not each["active"]]
    if lost:
        return fail(
            f"{people(lost)} has lost what it would have read",
            f"Make the standby or subscriber anew; select pg_drop_replication_slot('{lost[0]}').",
        )
    if unread:
        kept = max(each["bytes"] or 0 for each in unread)
        return (fail if kept > SLOT_BYTES else warn)(
            f"{people([each['name'] for each in unread])}: nobody reads it, and it keeps"
            f" {kept / 2**20:.0f} MB of WAL",
            f"Start who reads it, or select pg_drop_replication_slot('{unread[0]['name']}').",
        )
    return ok(f"{len(found)}, all read" if found else "none")


async def notification_queue(patient: Patient) -> Verdict:
    """The bell's queue has room."""
    found = await patient.row("select pg_notification_queue_usage()::float8 as used")
    says = f"{found['used']:.0%} used"
    if found["used"] < QUEUE_USED:
        return ok(says)
    return (fail if found["used"] > QUEUE_FULL else warn)(
        says,
        "A session has listened in one transaction for long: darkpearl db inspect long. Full, it"
        " refuses every order.",
    )


CHECKS: tuple[Check, ...] = (
    *(blocking, idle_in_transaction, prepared, snapshots, replication_slots, notification_queue),
)
