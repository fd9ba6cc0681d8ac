"""Stock: what runs low, what there is, and how one shelf came to be as it is."""

from darkpearl.monitor.screens import Asked, Conditions, Screen
from darkpearl.monitor.viewer import Statement

_LOW = """
    select l.*, l.quantity_sellable + l.quantity_reserved as quantity_available
    from low_stock as l where {wanted}
    order by l.shortage desc, l.sku limit %(limit)s
"""
_ALL = """
    select
        i.id, i.product_id, i.warehouse_id, p.sku, p.name as product_name, w.code as warehouse_code,
        i.quantity_available, i.quantity_sellable, i.quantity_reserved, i.reorder_point,
        i.reorder_quantity
    from products as p
    inner join inventory as i on i.product_id = p.id
    inner join warehouses as w on w.id = i.warehouse_id
    where {wanted}
    order by p.sku, w.code limit %(limit)s
"""


def list_stock(asked: Asked) -> Statement:
    """Shelves: those that run low, the shortest first; or all of them, by SKU."""
    everything = asked.get("show") == "all" or "search" in asked
    wanted = Conditions(asked)
    if everything:
        wanted.when("search", "p.id in (select find_products(%(search)s))")
        wanted.when("warehouse", "w.code = %(warehouse)s")
        wanted.when("after", "(p.sku, w.code) > (%(after)s, %(after_warehouse)s)")
        wanted.parameters["after_warehouse"] = asked.get("after_warehouse", "")
    else:
        wanted.when("warehouse", "l.warehouse_code = %(warehouse)s")
    shelves = (_ALL if everything else _LOW).format(wanted=wanted)
    query = f"""
        select
            (select coalesce(json_agg(r), '[]') from ({shelves}) as r) as shelves,
            (select json_agg(w.code order by w.code) from warehouses as w) as warehouses,
            {str(everything).lower()} as everything
    """  # noqa: S608 - of conditions that stand above
    return query, wanted.parameters


def see_shelf(asked: Asked) -> Statement:
    """A product in a warehouse: how much, and the movements that say why, newest first."""
    wanted = Conditions(asked).when("before", "m.id < %(before)s::bigint")
    query = f"""
        select
            i.*,
            (
                select coalesce(json_agg(r order by r.id desc), '[]')
                from (
                    select m.* from stock_ledger as m
                    where m.product_id = i.product_id and m.warehouse_id = i.warehouse_id
                        and {wanted}
                    order by m.id desc limit %(limit)s
                ) as r
            ) as movements
        from inventory_levels as i
        where i.product_id = %(product)s and i.warehouse_id = %(warehouse)s
    """  # noqa: S608 - of conditions that stand above
    return query, {
        **wanted.parameters,
        "product": asked["product"],
        "warehouse": asked["warehouse"],
    }


SCREENS = [
    Screen("stock", "Stock", "stock.html", list_stock),
    Screen("stock/{product}/{warehouse}", "Shelf", "shelf.html", see_shelf),
]
