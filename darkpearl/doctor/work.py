"""The work: what is stuck, what is late, and by what plans it ends."""

from darkpearl.doctor.check import Check, Patient, Verdict, ago, fail, ok, people, warn

LATE_SECONDS = 30.0
TOO_LATE_SECONDS = 300.0
UNFINISHED_SECONDS = 7 * 86_400
OLD_PLAN_DAYS = 7


async def stuck(patient: Patient) -> Verdict:
    """No saga needs a person."""
    causes = await patient.rows(
        "select saga_type, step_name, cause, sagas from stuck_by_cause order by sagas desc, 1, 2"
    )
    if causes:
        told = [f"{each['sagas']} at {each['step_name']} ({each['cause']})" for each in causes]
        return fail(
            people(told),
            "darkpearl sagas causes; mend the cause, then darkpearl sagas retry --all --reason ….",
        )
    return ok("none")


async def ready(patient: Patient) -> Verdict:
    """What is to be done is done at once."""
    found = await patient.row("select ready, oldest_ready_seconds as seconds from engine_health")
    says = f"{found['ready']} sagas, the oldest for {ago(found['seconds'])}"
    if found["seconds"] < LATE_SECONDS:
        return ok(says)
    verdict = fail if found["seconds"] > TOO_LATE_SECONDS else warn
    return verdict(says, "See the lines listeners and blocking; start more listeners.")


async def oldest_unfinished(patient: Patient) -> Verdict:
    """No saga has been under way for longer than it should."""
    found = await patient.rows(
        """
        select saga_type, step_name, oldest_unfinished_seconds as seconds
        from queue_health
        where ready + backing_off + held_by_pause > 0
        order by oldest_unfinished_seconds desc nulls last limit 1
        """
    )
    if not found or found[0]["seconds"] is None:
        return ok("none")
    (oldest,) = found
    says = f"at {oldest['step_name']} for {ago(oldest['seconds'])}"
    if oldest["seconds"] < UNFINISHED_SECONDS:
        return ok(says)
    return warn(
        says,
        f"darkpearl sagas list --step {oldest['step_name']}; see its last error.",
    )


async def plan_versions(patient: Patient) -> Verdict:
    """No saga still follows a plan that was replaced long ago."""
    old = await patient.rows(
        """
        with newest as (
            select saga_type, max(plan_version) as plan_version from saga_steps group by 1
        ),
        unfinished as (
            select saga_type, plan_version, created_at from sagas where ready_at is not null
            union all
            select saga_type, plan_version, created_at from sagas where status = 'stuck'
        )
        select u.saga_type, u.plan_version, count(*) as sagas
        from unfinished as u inner join newest as n on n.saga_type = u.saga_type
        where u.plan_version < n.plan_version and u.created_at < clock() - %s * interval '1 day'
        group by 1, 2 order by 1, 2
        """,
        OLD_PLAN_DAYS,
    )
    if old:
        told = [f"{row['sagas']} of {row['saga_type']} {row['plan_version']}" for row in old]
        return warn(
            people(told),
            "Their functions can't be removed until they end: see them in sagas list, and retry"
            " or turn back what is stuck.",
        )
    return ok("none older than a week")


async def parcels(patient: Patient) -> Verdict:
    """Orders that wait to be packed are packed in time."""
    found = await patient.row(
        "select count(*) as waiting, count(*) filter (where is_overdue) as overdue"
        " from orders_to_ship"
    )
    if found["overdue"]:
        return warn(
            f"{found['overdue']} orders have waited for too long",
            "darkpearl orders list --to-ship; then darkpearl orders ship.",
        )
    return ok(f"{found['waiting']} wait")


CHECKS: tuple[Check, ...] = (stuck, ready, oldest_unfinished, plan_versions, parcels)
