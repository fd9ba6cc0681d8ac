"""The overview: whether all is well, and what needs a person. Its first row is every screen's."""

from darkpearl.monitor.screens import Asked, Screen
from darkpearl.monitor.viewer import Statement

STATE: Statement = ("select h.*, clock() as now from engine_health as h", {})
"""The state line, which stands above every screen."""

_TROUBLES = (
    "step_failed",
    "compensation_started",
    "saga_stuck",
    "retried",
    "cancelled",
    "skipped",
    "reported",
)
_LATELY = " union all ".join(
    f"(select e.* from saga_events as e where e.event_type = '{each}'"  # noqa: S608
    " and e.created_at > clock() - interval '1 day' order by e.created_at desc limit 8)"
    for each in _TROUBLES
)
"""One look into the index of troubles for each kind, so that none of the many hides a rare one."""


def see_overview(asked: Asked) -> Statement:
    """The last hour by the minute, steps of the last quarter, and what went wrong lately."""
    del asked
    query = f"""
        select
            (
                select coalesce(json_agg(m order by m.minute), '[]')
                from (
                    select
                        extract(epoch from s.minute)::bigint as minute,
                        coalesce(sum(s.events) filter (where s.event_type = 'saga_started'), 0) as started,
                        coalesce(sum(s.events) filter (where s.event_type = 'saga_completed'), 0) as completed,
                        coalesce(sum(s.events) filter (where s.event_type = 'saga_compensated'), 0) as compensated,
                        coalesce(sum(s.events) filter (where s.event_type = 'saga_stuck'), 0) as stuck
                    from step_minutes as s
                    where s.minute > clock() - interval '61 minutes' and s.step_name = ''
                    group by s.minute
                ) as m
            ) as minutes,
            (
                select coalesce(json_agg(t order by t.step_name, t.event_type), '[]')
                from step_statistics(clock() - interval '15 minutes') as t
                where t.step_name is not null
            ) as steps,
            (
                select coalesce(json_agg(w), '[]') from webhook_overview as w
                where not w.is_enabled or w.failing_since is not null or w.given_up > 0
            ) as webhooks,
            (
                select to_json(a)
                from (
                    select r.id, r.since, r.ended_at, r.finding_count from audit_runs as r order by r.id desc limit 1
                ) as a
            ) as audit,
            (
                select coalesce(json_agg(n order by n.created_at desc), '[]')
                from (
                    select
                        e.id, e.saga_id, e.event_type, e.step_name, e.error_code, e.actor, e.created_at,
                        told_message(e.saga_id, e.id, e.created_at) as message
                    from (select l.* from ({_LATELY}) as l order by l.created_at desc limit 12) as e
                ) as n
            ) as lately
    """  # noqa: E501, S608 - of names that stand above
    return query, {}


SCREENS = [Screen("", "Overview", "overview.html", see_overview)]
