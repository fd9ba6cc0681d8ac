"""Quotes: what an order would cost, and whether it fits, before it is placed."""

from litestar import Router, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.orders import NewOrder
from darkpearl.api.problems import refusals
from darkpearl.models.orders import Quote

_SUMS = ("subtotal", "shipping_total", "discount_total", "tax_total", "fee_total", "total_amount")
_SUMMED = ", ".join(f"sum(q.{name}) as {name}" for name in _SUMS)
_QUOTE = (
    f"select min(q.currency) as currency, {_SUMMED}, bool_and(q.fits) as fits,"  # noqa: S608
    " json_agg((to_jsonb(q) - '{{warehouse_id,currency}}'::text[])"
    " || jsonb_build_object('warehouse', ("
    " select jsonb_build_object('id', w.id, 'code', w.code, 'name', w.name)"
    " from warehouses as w where w.id = q.warehouse_id"
    "))) as orders"
    " from quote_order({arguments}) as q"
)


@post(
    "/quote",
    summary="Quote an order",
    status_code=HTTP_200_OK,
    responses=refusals(400, 403, 409, 413, 415, 422),
)
async def quote_order(caller: NamedDependency[Caller], data: NewOrder) -> JsonResponse[Quote]:
    """What the same body would cost if it were posted to /orders, and whether it can be sold now.

    Nothing is written or promised. It is refused as the order would be, but for what only the
    order itself can tell, such as a reference that is taken.
    """
    given = {
        "p_warehouse_id": data.warehouse_id,
        "p_items": access.sent(data.items),
        "p_currency": data.currency,
        "p_adjustments": access.sent(data.adjustments or None),
    }
    arguments = ", ".join(f"{name} => %({name})s" for name in given)
    return JsonResponse(await caller.get(Quote, (_QUOTE.format(arguments=arguments), given)))


router = Router("/orders", route_handlers=[quote_order], tags=["orders"])
