"""Several cells: whether the catalogue and goods get to the others, and no move has stopped."""

from darkpearl.cells.catalogue import CATALOGUE
from darkpearl.doctor.check import Check, Patient, Verdict, ago, fail, ok, people, warn

LAG_SECONDS = 60.0
SLOT_BYTES = 2**30
CLOSED_SECONDS = 300.0
"""A move closes a warehouse for seconds."""
COMING_SECONDS = 3600.0
"""A copy of large tables may take longer: that it does is worth knowing, since retention rests."""
TRANSIT_SECONDS = 900.0
"""Goods that go to another cell are there in a moment, unless it is away."""
ADD_AGAIN = "darkpearl cells add again, with its address and name, makes what is missing."
_SENT = "select * from catalogue_state()"
_RECEIVED = """
    select
        s.subenabled as enabled, w.pid is not null as works,
        e.apply_error_count + e.sync_error_count as errors,
        (
            select count(*) from pg_subscription_rel as r
            where r.srsubid = s.oid and r.srsubstate <> 'r'
        ) as unready
    from pg_subscription as s
    left join pg_stat_subscription as w on w.subid = s.oid and w.relid is null
    left join pg_stat_subscription_stats as e on e.subid = s.oid
    where s.subname = %s
        and s.subdbid = (select d.oid from pg_database as d where d.datname = current_database())
"""
_STOPPED = """
    select
        w.code, m.state::text as state, m.other_cell,
        extract(epoch from clock() - m.changed_at)::float8 as seconds
    from moved_warehouses as m
    inner join warehouses as w on w.id = m.warehouse_id
    where m.state in ('coming', 'arrived') or (m.state = 'gone' and w.cell = this_cell())
    order by m.changed_at
"""
_LATE = (
    "select to_warehouse_code as code, quantity, extract(epoch from clock() - since)::float8 as"
    " seconds from stock_in_transit order by since"
)


async def catalogue(patient: Patient) -> Verdict:
    """The catalogue goes from home to every cell, and soon."""
    number = (await patient.row("select this_cell() as number"))["number"]
    return await (_sent(patient) if number == 1 else _received(patient))


async def _sent(patient: Patient) -> Verdict:
    query = "select from pg_publication where pubname = %s"
    if not await patient.rows(query, CATALOGUE):
        return fail(f"there is no publication {CATALOGUE}: no cell hears of a change", ADD_AGAIN)
    found = await patient.rows(_SENT)
    for word, some in (
        ("has no slot", [each for each in found if each["slot_status"] is None]),
        ("has lost what it was to read", [each for each in found if each["slot_status"] == "lost"]),
    ):
        if some:
            return fail(f"{people([each['cell'] for each in some])} {word}", ADD_AGAIN)
    kept = max((each["kept_bytes"] or 0 for each in found), default=0)
    lag = max((each["lag_seconds"] or 0.0 for each in found), default=0.0)
    says = f"{len(found)} cells hear of it; {kept / 2**20:.0f} MB of WAL kept"
    if kept > SLOT_BYTES or lag > LAG_SECONDS:
        late = max(found, key=lambda each: (each["kept_bytes"] or 0, each["lag_seconds"] or 0.0))
        return warn(
            f"{late['cell']} is late: {kept / 2**20:.0f} MB of WAL kept, {ago(lag)} behind",
            "darkpearl doctor says of the cell why; set max_slot_wal_keep_size, so that home's disk"
            " doesn't fill.",
        )
    return ok(says)


async def _received(patient: Patient) -> Verdict:
    found = await patient.rows(_RECEIVED, CATALOGUE)
    if not found:
        return fail(f"there is no subscription {CATALOGUE}: it hears of no change", ADD_AGAIN)
    (one,) = found
    if not one["enabled"]:
        return fail(
            "its subscription is disabled: it hears of no change",
            f"alter subscription {CATALOGUE} enable; as a superuser. If it was an error that"
            " disabled it, the server's log has it.",
        )
    if not one["works"] or one["unready"]:
        errors = f", after {one['errors']} errors" if one["errors"] else ""
        return fail(
            f"its subscription doesn't work{errors}: it hears of no change",
            "The log of this cell's server says why; home may be away, or a row here be in the way"
            " of one of home's.",
        )
    return ok("it hears of every change")


async def moves(patient: Patient) -> Verdict:
    """No warehouse is closed by a move that has stopped."""
    found = await patient.rows(_STOPPED)
    closed = [
        each for each in found if each["state"] != "coming" and each["seconds"] > CLOSED_SECONDS
    ]
    begun = [
        each for each in found if each["state"] == "coming" and each["seconds"] > COMING_SECONDS
    ]
    for verdict, some, word, so in (
        (fail, closed, "closed", ""),
        (warn, begun, "on the way here", "; retention rests in both cells"),
    ):
        if some:
            first = some[0]
            codes = people([each["code"] for each in some])
            return verdict(
                f"{codes}: {word} for {ago(first['seconds'])}{so}",
                f"At home, darkpearl cells move-warehouse {first['code']} --to … goes on where it"
                " was; with --undo it is taken back.",
            )
    return ok(f"{len(found)} under way" if found else "none under way")


async def transfers(patient: Patient) -> Verdict:
    """Goods that left for another cell get there."""
    under_way = await patient.rows(_LATE)
    found = [each for each in under_way if each["seconds"] > TRANSIT_SECONDS]
    if not found:
        return ok("none are late")
    units = sum(each["quantity"] for each in found)
    codes = sorted({each["code"] for each in found})
    return warn(
        f"{units} units for {people(codes)} in transit for {ago(found[0]['seconds'])}",
        "Its cell is away, or refuses: darkpearl stock transit lists them, the listener's log and"
        " darkpearl sagas show say why. darkpearl stock call-back wants them back.",
    )


CELLS: tuple[Check, ...] = (catalogue, moves, transfers)
