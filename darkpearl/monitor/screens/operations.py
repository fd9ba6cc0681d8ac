"""What works and what people do: listeners and gateways, activity, audits."""

from darkpearl.monitor.screens import Asked, Conditions, Screen
from darkpearl.monitor.viewer import Statement


def see_listeners(asked: Asked) -> Statement:
    """Who works on what, what waits at which step, what is paused, what gateways told."""
    del asked
    query = """
        select
            (select coalesce(json_agg(l order by l.host, l.process_id), '[]') from listener_activity as l) as listeners,
            (select coalesce(json_agg(q order by q.saga_type, q.step_name), '[]') from queue_health as q) as queue,
            (
                select coalesce(json_agg(p order by p.paused_until), '[]')
                from (
                    select c.paused_until, array_agg(distinct c.step_name order by c.step_name) as steps
                    from step_settings as c where c.paused_until > clock()
                    group by c.paused_until
                ) as p
            ) as pauses,
            (select coalesce(json_agg(b), '[]') from blocking_sessions() as b) as blockers,
            (
                select coalesce(json_agg(g order by g.received_at desc), '[]')
                from (
                    select e.gateway, e.event_id, e.idempotency_key, e.answer, e.received_at
                    from gateway_events as e where e.disposition = 'unmatched'
                    order by e.received_at desc limit 50
                ) as g
            ) as unmatched
    """  # noqa: E501
    return query, {}


def see_activity(asked: Asked) -> Statement:
    """What people have done, newest first, and the batches that are under way or just ended."""
    wanted = (
        Conditions(asked)
        .when("actor", "a.actor = %(actor)s")
        .when("action", "a.action = %(action)s")
        .when("before", "a.id < %(before)s::bigint")
    )
    query = f"""
        select
            (
                select coalesce(json_agg(r order by r.id desc), '[]')
                from (
                    select a.* from action_log as a where {wanted}
                    order by a.id desc limit %(limit)s
                ) as r
            ) as actions,
            (
                select coalesce(json_agg(b order by b.created_at desc), '[]')
                from (select v.* from batch_overview as v order by v.created_at desc limit 10) as b
            ) as batches
    """  # noqa: S608 - of conditions that stand above
    return query, wanted.parameters


def see_batch(asked: Asked) -> Statement:
    """A batch: how far it is, and what failed."""
    query = """
        select
            b.*,
            (
                select coalesce(json_agg(r order by r.n), '[]')
                from (
                    select i.* from batch_items as i
                    where i.batch_id = b.id and i.result = 'failed' order by i.n limit 50
                ) as r
            ) as failures
        from batch_overview as b
        where b.id = %(id)s
    """
    return query, {"id": asked["id"]}


def see_audit(asked: Asked) -> Statement:
    """The last audits, with what they found."""
    del asked
    query = """
        select
            (
                select coalesce(json_agg(r order by r.id desc), '[]')
                from (select a.* from audit_runs as a order by a.id desc limit 20) as r
            ) as runs
    """
    return query, {}


SCREENS = [
    Screen("listeners", "Listeners and gateways", "listeners.html", see_listeners),
    Screen("activity", "Activity", "activity.html", see_activity),
    Screen("activity/{id}", "Batch", "batch.html", see_batch),
    Screen("audit", "Audit", "audit.html", see_audit),
]
