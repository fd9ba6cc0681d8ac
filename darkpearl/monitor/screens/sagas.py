"""Sagas: a list, those that need a person by what they have in common, and one with its history."""

from darkpearl.monitor.screens import Asked, Conditions, Screen
from darkpearl.monitor.viewer import Statement

ENDED = {"completed", "compensated"}


def list_sagas(asked: Asked) -> Statement:
    """Sagas, newest first."""
    status = asked.get("status")
    wanted = (
        Conditions(asked)
        .when(
            "status",
            "s.status = %(status)s"
            if status in ENDED
            else "s.status = %(status)s and (s.status = 'stuck') is true"
            if status == "stuck"
            else "s.status = %(status)s and s.ready_at is not null",
        )
        .when("saga_type", "s.saga_type = %(saga_type)s")
        .when("before", "s.id < %(before)s::uuid")
    )
    query = f"""
        select
            (
                select coalesce(json_agg(r order by r.id desc), '[]')
                from (
                    select
                        s.*, coalesce(o.order_number, f.order_number) as order_number,
                        coalesce(o.id, f.id) as order_id
                    from saga_overview as s
                    left join orders as o on o.id = s.id
                    left join refunds as b on b.id = s.id
                    left join orders as f on f.id = b.order_id
                    where {wanted}
                    order by s.id desc limit %(limit)s
                ) as r
            ) as sagas,
            (select json_agg(distinct t.saga_type order by t.saga_type) from saga_steps as t) as saga_types,
            enum_range(null::saga_status)::text[] as statuses
    """  # noqa: E501, S608 - of conditions that stand above
    return query, wanted.parameters


def list_stuck(asked: Asked) -> Statement:
    """Stuck sagas, counted by step and cause; and those of one cause, the oldest first."""
    wanted = (
        Conditions(asked)
        .when("saga_type", "s.saga_type = %(saga_type)s")
        .when("step", "s.current_step = %(step)s")
        .when("error_code", "s.last_error_code = %(error_code)s")
        .when("cause", "cause_of(s.last_error) = %(cause)s")
    )
    query = f"""
        select
            (select coalesce(json_agg(c order by c.sagas desc), '[]') from stuck_by_cause as c) as causes,
            (
                select coalesce(json_agg(r order by r.stuck_since), '[]')
                from (
                    select s.* from stuck_sagas as s where {wanted} order by s.stuck_since limit %(limit)s
                ) as r
            ) as sagas
    """  # noqa: E501, S608 - of conditions that stand above
    return query, wanted.parameters


def get_saga(asked: Asked) -> Statement:
    """A saga: where it stands, and all that happened."""
    query = """
        select
            s.*, coalesce(r.order_id, o.id) as order_id,
            (select n.order_number from orders as n where n.id = coalesce(r.order_id, o.id)) as order_number,
            (select coalesce(json_agg(t), '[]') from saga_timeline(s.id) as t) as entries,
            (
                select json_agg(p order by p.position)
                from saga_steps as p
                where p.saga_type = s.saga_type and p.plan_version = s.plan_version
            ) as plan
        from saga_overview as s
        left join orders as o on o.id = s.id
        left join refunds as r on r.id = s.id
        where s.id = %(id)s
    """  # noqa: E501
    return query, {"id": asked["id"]}


SCREENS = [
    Screen("sagas", "Sagas", "sagas.html", list_sagas),
    Screen("sagas/{id}", "Saga", "saga.html", get_saga),
    Screen("stuck", "Stuck", "stuck.html", list_stuck),
]
