"""A restore: what has to be right before listeners start on a database that was one before.

Restored from a dump or to a moment of the past, replicated, promoted. Everything is asked in
sessions that can't write. What `darkpearl db after-restore` mends by itself, and what is a
person's to decide: rows are of then, while the gateway and everybody who was told live now.
"""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

from darkpearl import database, reconcile, restored
from darkpearl.cells.catalogue import CATALOGUE
from darkpearl.config import ConfigError
from darkpearl.doctor.check import Patient, Verdict, ago, fail, ok, people, warn
from darkpearl.doctor.listening import BELL_NAME

SECONDS = 3600.0
"""How long each of these checks may take: the audit and the gateway's books read everything."""
SESSION = "-c default_transaction_read_only=on -c statement_timeout=1h -c lock_timeout=4s"
BOOKS_DAYS = 30
"""How long before the last order the gateway's books are read from, if nothing else is said."""
_MEND = "darkpearl db after-restore"
_ROLES = (
    *("anon", "authenticated", "service_role", "darkpearl_api", "darkpearl_app"),
    *("darkpearl_listener", "darkpearl_reader", "darkpearl_owner"),
)
_HELD = ("captured", "authorized")
"""States in which the gateway has somebody's money."""
_OPEN = ("only_there", "open_here", "refund_open_here")
"""Differences that are looked at one by one, or that listeners end by asking."""
_CALLS = (
    "select (select count(*) from payments where status::text like '%requested')"
    " + (select count(*) from refunds where status = 'requested') as out"
)
_TOLD = (
    "select count(*) filter (where is_enabled) as enabled, coalesce(sum(waiting), 0) as waiting"
    " from webhook_overview"
)
_SUBSCRIPTIONS = """
    select s.subname as name, s.subenabled as is_enabled, o.rolname as owner,
        o.rolsuper or o.rolbypassrls as sees_all, s.runs_as_owner
    from (
        select subname, subenabled, subowner, {runs_as_owner} as runs_as_owner
        from pg_subscription
        where subdbid = (select oid from pg_database where datname = current_database())
    ) as s
    inner join pg_roles as o on o.oid = s.subowner
    order by 1
"""


async def recovery(patient: Patient) -> Verdict:
    """The server has come to the end of its recovery, and takes writes."""
    found = await patient.row(
        "select case when pg_is_in_recovery() then pg_get_wal_replay_pause_state() end as state"
    )
    if found["state"] is None:
        return ok("ended")
    return fail(
        "the server is in recovery" + ("" if found["state"] == "not paused" else ", and paused"),
        "When it has come to where it is to be: select pg_promote(); paused at its target: select"
        " pg_wal_replay_resume().",
    )


async def owners(patient: Patient) -> Verdict:
    """Everything belongs to darkpearl_owner."""
    async with patient.connect() as connection:
        others = await restored.foreign_owners(connection)
    if others:
        return fail(
            f"some tables belong to {people(others)}",
            "Restore anew, as a superuser and without --no-owner.",
        )
    return ok("darkpearl_owner")


async def roles(patient: Patient) -> Verdict:
    """All roles of ours are there."""
    found = await patient.rows(
        "select name from unnest(%s::text[]) as r (name) where to_regrole(name) is null",
        list(_ROLES),
    )
    if found:
        names = [each["name"] for each in found]
        return fail(
            f"{people(names)} missing",
            f"Load the roles of the server before (pg_dumpall --globals-only), or {_MEND} and give"
            f" them passwords.",
        )
    return ok("all there")


async def counters(patient: Patient) -> Verdict:
    """No number that a row has is given again."""
    async with patient.connect() as connection:
        found = await restored.counters(connection)
    behind = [f"{each.table}.{each.column}" for each in found if each.is_behind]
    if behind:
        return fail(f"behind their tables: {people(behind)}", _MEND)
    last = {each.table: each.last for each in found}
    return ok(
        f"the next order is {last['orders'] + 1}, the next event {last['saga_events'] + 1}; if any"
        f" later one was known to anybody: {_MEND} --lost"
    )


async def analysed(patient: Patient) -> Verdict:
    """The planner knows the tables."""
    found = await patient.row(
        """
        select row_security_active('darkpearl.orders') as is_hidden,
            array(
                select c.relname
                from pg_class as c
                where c.relnamespace = 'darkpearl'::regnamespace and c.relkind = 'r'
                    and pg_relation_size(c.oid) > 0
                    and not exists (
                        select from pg_stats as s
                        where s.schemaname = 'darkpearl' and s.tablename = c.relname
                    )
                order by pg_relation_size(c.oid) desc, 1
            ) as unknown
        """
    )
    if found["is_hidden"]:
        return warn("this login may not know", "Ask as the login that migrates, a superuser.")
    if found["unknown"]:
        return warn(
            f"{len(found['unknown'])} tables without statistics: {people(found['unknown'])}", _MEND
        )
    return ok("all tables")


async def collation(patient: Patient) -> Verdict:
    """Texts sort as they did when the indexes were made."""
    found = await patient.row(
        "select datcollversion as was, pg_database_collation_actual_version(oid) as now"
        " from pg_database where datname = current_database()"
    )
    if found["was"] != found["now"]:
        return fail(
            f"by {found['now']}, and the indexes by {found['was']}",
            "reindex database; then alter database … refresh collation version.",
        )
    return ok("as before")


async def subscriptions(patient: Patient) -> Verdict:
    """No other server goes on writing here."""
    async with patient.connect() as connection:
        knows = connection.info.server_version >= database.RUN_AS_OWNER
    found = await patient.rows(
        _SUBSCRIPTIONS.format(runs_as_owner="subrunasowner" if knows else "false")
    )
    for each in found:
        name, runs_as_owner = each["name"], each["runs_as_owner"] or not knows
        if not (each["sees_all"] and runs_as_owner):
            return fail(
                f"{name} of {each['owner']} can't write to tables with row security",
                "Give its owner BYPASSRLS"
                + (f"; alter subscription {name} set (run_as_owner = true)." if knows else "."),
            )
        if each["is_enabled"] and name != CATALOGUE:
            return warn(
                f"{name} goes on writing here",
                f"Where this server leads from now on: alter subscription {name} disable.",
            )
    others = [each for each in found if each["name"] != CATALOGUE]
    return ok(f"{len(others)}, all switched off" if others else "none")


async def cells(patient: Patient) -> Verdict:
    """The catalogue goes on from home to the other cells, where there are several."""
    number = (await patient.row("select this_cell() as number"))["number"]
    if number != 1:
        return warn(
            f"this is cell {number}: of home's catalogue it has what it had then",
            "At home, darkpearl cells add again, with its address and name, brings the rest.",
        )
    found = await patient.rows("select * from catalogue_state()")
    if not found:
        return ok("this is the only one")
    without = [each["cell"] for each in found if each["slot_status"] in {None, "lost"}]
    return warn(
        f"it is home of {people([each['cell'] for each in found])}"
        + (f"; no slot here of {people(without)}" if without else ""),
        "Where it leads from now on: darkpearl cells add again, with the address and the name of"
        " each. A copy beside production: darkpearl cells remove … --gone, for each.",
    )


async def nobody_at_work(patient: Patient) -> Verdict:
    """Nothing has begun to work yet: what is to be decided is decided before."""
    found = await patient.rows(
        "select application_name as name, count(*) as sessions from pg_stat_activity"
        " where datname = current_database() and application_name ~ %s group by 1 order by 1",
        f"^({BELL_NAME}|darkpearl (listener|webhooks|api.*))$",
    )
    if found:
        return warn(
            f"sessions of {people([each['name'] for each in found], 4)}",
            "Stop them until all lines are right: listeners ask the gateway at once.",
        )
    return ok("nobody")


async def moment(patient: Patient) -> Verdict:
    """What the last that is here is of."""
    last = await _last_order(patient)
    if last is None:
        return ok("there is no order")
    seconds = (datetime.now(UTC) - last).total_seconds()
    return ok(f"the last order is of {last:%Y-%m-%d %H:%M:%S} UTC, {ago(seconds)} ago")


async def under_way(patient: Patient) -> Verdict:
    """What goes on by itself once listeners start."""
    sagas = await patient.row("select count(*) as open from sagas where ready_at is not null")
    calls = await patient.row(_CALLS)
    again = "which are made again under their keys when their leases end"
    return ok(f"{sagas['open']} sagas, {calls['out']} calls among them, {again}")


async def payments(patient: Patient) -> Verdict:
    """The gateway knows of no money that isn't known here."""
    gateway = patient.make_gateway()
    try:
        if gateway.name == "mock":
            return ok("the mock, which keeps no books")
        last = await _last_order(patient) or datetime.now(UTC)
        since = patient.since or min(last, datetime.now(UTC)) - timedelta(BOOKS_DAYS)
        found = await reconcile.reconcile(patient.url, gateway, since, timedelta(0), record=False)
    except ConfigError as error:
        return warn(str(error), "Compare by hand what it was asked since the last order here.")
    finally:
        await gateway.close()
    charged = [each for each in found if each.kind == "only_there" and each.there in _HELD]
    not_asked = await _not_asked_yet(patient, [each.payment_key for each in charged])
    lost = [each.payment_key for each in charged if _order_of(each.payment_key) not in not_asked]
    others = Counter(each.kind for each in found if each.kind not in _OPEN)
    waits = sum(each.kind in _OPEN[1:] for each in found) + len(charged) - len(lost)
    open_here = f"{waits} wait for an answer, which listeners ask for under their keys"
    if not lost and not others:
        return ok(open_here if waits else "no difference")
    told = [f"{len(lost)} of orders that are lost: {people(lost)}"] if lost else []
    told += [f"{number} {kind}" for kind, number in others.items()]
    return fail(
        "; ".join([*told, open_here]),
        "darkpearl payments reconcile --grace 0 lists them. Give back at the gateway what lost"
        " orders have paid, or place them again; what it has given back since must not go twice.",
    )


async def _not_asked_yet(patient: Patient, keys: list[str]) -> set[str]:
    """Orders under way whose payment isn't asked for yet here: it will be, under the same key."""
    orders = [order for order in map(_order_of, keys) if order]
    query = "select id::text from sagas where id = any(%s::uuid[]) and ready_at is not null"
    return {each["id"] for each in await patient.rows(query, orders)}


def _order_of(key: str) -> str:
    """The order's id that a payment's key begins with; nothing of a key that isn't ours."""
    found = re.match(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=:)", key)
    return found[0] if found else ""


async def webhooks(patient: Patient) -> Verdict:
    """Who is told of what happens is meant to be."""
    found = await patient.row(_TOLD)
    says = f"{found['enabled']} endpoints are told, {found['waiting']} webhooks are tried again"
    if found["enabled"] and not patient.in_production:
        return warn(
            f"{says}; this isn't production",
            "A copy tells the same receivers: switch its endpoints off, PATCH is_enabled.",
        )
    return ok(says)


async def requests(patient: Patient) -> Verdict:
    """Requests that are sent again get the answers of then."""
    found = await patient.row(
        "select count(*) as answers, max(created_at) as last from idempotency_keys"
    )
    if not found["answers"]:
        return ok("no answer is kept: what is sent again is done")
    last = found["last"].astimezone(UTC)
    return ok(
        f"{found['answers']} answers are kept, the last of {last:%Y-%m-%d %H:%M:%S} UTC; what was"
        " answered since is done when it is sent again"
    )


async def batches(patient: Patient) -> Verdict:
    """No action on many sagas goes on by itself."""
    found = await patient.rows(
        "select id::text as id, action::text as action from batches where finished_at is null"
        " order by created_at"
    )
    if found:
        return warn(
            f"{people([each['action'] for each in found])} go on once listeners start",
            f"Let them, or select stop_batch('{found[0]['id']}', 'restored').",
        )
    return ok("none")


async def books(patient: Patient) -> Verdict:
    """Stock, ledger, payments, orders, sagas and events agree with each other."""
    found = await patient.rows(
        "select finding, count(*) as findings from audit group by 1 order by 2 desc, 1"
    )
    if found:
        told = [f"{each['findings']} {each['finding']}" for each in found]
        return fail(people(told), "darkpearl audit; keep the rows, and restore another backup.")
    return ok("nothing contradicts the rules")


async def _last_order(patient: Patient) -> datetime | None:
    last: datetime | None = (await patient.row("select max(created_at) as last from orders"))[
        "last"
    ]
    return last
