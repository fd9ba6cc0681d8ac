"""Quotes: what an order would cost, and whether it fits, before it is placed."""

from litestar import Router, post
from litestar.di import NamedDependency
from litestar.status_codes import HTTP_200_OK

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.orders import NewOrder
from darkpearl.api.problems import refusals
from darkpearl.api.routing import Routed
from darkpearl.api.sourcing import Sourcing
from darkpearl.models.orders import Quote

_QUOTE = "select * from summed_quote(%(warehouse)s, %(items)s, %(currency)s, %(adjustments)s)"


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
    asked = {
        "warehouse": data.warehouse_id,
        "items": access.sent(data.items),
        "currency": data.currency,
        "adjustments": access.sent(data.adjustments or None),
    }
    if data.warehouse_id is None and isinstance(caller, Routed):
        return JsonResponse(await Sourcing(caller, data).quote((_QUOTE, asked)))
    return JsonResponse(await caller.get(Quote, (_QUOTE, asked)))


router = Router("/orders", route_handlers=[quote_order], tags=["orders"])
