"""Orders: a list, and one with all that happened to it."""

from typing import LiteralString

from darkpearl.monitor.screens import Asked, Conditions, Screen
from darkpearl.monitor.viewer import Statement

ENDED = {"fulfilled", "cancelled"}
"""The statuses of orders whose sagas have ended; all others are found by those that haven't."""

TROUBLES: dict[str, LiteralString] = {
    "dispute": "o.id in (select d.order_id from disputed_payments as d where d.status = 'open')",
    "failed_refund": "o.id in (select f.order_id from failed_refunds as f)",
    "overdue": "o.id in (select p.id from orders_to_ship as p where p.is_overdue)",
}
"""Orders that want a look, though no saga is stuck."""

_UNDER_WAY = (
    "o.id in (select s.id from sagas as s where s.ready_at is not null"
    " or (s.status = 'stuck' and (s.status = 'stuck') is true)) and o.status = %(status)s"
)


def list_orders(asked: Asked) -> Statement:
    """Orders, newest first."""
    wanted = (
        Conditions(asked)
        .when("status", "o.status = %(status)s" if asked.get("status") in ENDED else _UNDER_WAY)
        .when(
            "warehouse", "o.warehouse_id = (select id from warehouses where code = %(warehouse)s)"
        )
        .when("trouble", TROUBLES.get(asked.get("trouble", ""), "false"))
        .when("search", "o.id in (select find_orders(%(search)s))")
        .when("before", "o.order_number < %(before)s::bigint")
    )
    query = f"""
        select
            (
                select coalesce(json_agg(r order by r.order_number desc), '[]')
                from (
                    select o.* from order_overview as o where {wanted}
                    order by o.order_number desc limit %(limit)s
                ) as r
            ) as orders,
            (select json_agg(w.code order by w.code) from warehouses as w) as warehouses,
            enum_range(null::order_status)::text[] as statuses,
            array[{", ".join(f"'{each}'" for each in TROUBLES)}] as troubles
    """  # noqa: S608 - of conditions that stand above
    return query, wanted.parameters


def get_order(asked: Asked) -> Statement:
    """An order: money, goods, history."""
    query = """
        select
            o.*,
            (
                select to_json(p) from payments as p where p.order_id = o.id
            ) as money,
            (select to_json(v) from order_overview as v where v.id = o.id) as overview,
            (select to_json(s) from saga_overview as s where s.id = o.id) as saga,
            (
                select coalesce(json_agg(t), '[]') from saga_timeline(o.id) as t
            ) as entries
        from order_details as o
        where o.id = %(id)s
    """
    return query, {"id": asked["id"]}


SCREENS = [
    Screen("orders", "Orders", "orders.html", list_orders),
    Screen("orders/{id}", "Order", "order.html", get_order),
]
