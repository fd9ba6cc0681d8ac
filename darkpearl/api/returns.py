"""Refunds and returns: money and goods come back, each by itself."""

from uuid import UUID

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Listing, Page
from darkpearl.api.orders import page_of_order
from darkpearl.api.problems import refusals
from darkpearl.models.payments import CreateRefund, Refund
from darkpearl.models.stock import CreateReturn, Return

_REFUND = "select * from order_refunds where order_id = %(order_id)s and id = %(id)s"
_RETURN = "select * from order_returns where order_id = %(order_id)s and id = %(id)s"


@get("/refunds", summary="List an order's refunds", responses=refusals(400, 404))
async def list_refunds(
    listing: NamedDependency[Listing], order_id: FromPath[UUID]
) -> JsonResponse[Page[Refund]]:
    """The refunds of an order, oldest first."""
    return await page_of_order(listing, Refund, "order_refunds", order_id)


@get("/refunds/{refund_id:uuid}", summary="Get a refund", responses=refusals(400, 404))
async def get_refund(
    caller: NamedDependency[Caller], order_id: FromPath[UUID], refund_id: FromPath[UUID]
) -> Refund:
    """A refund; /sagas has its saga, under the same id."""
    return await caller.get(Refund, (_REFUND, {"order_id": order_id, "id": refund_id}))


@post("/refunds", summary="Give money back", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_refund(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateRefund]
) -> JsonResponse[Refund]:
    """Give back money of a fulfilled order, all that is left or a part. Its saga pays it out.

    Of a cancelled order, what it is still owed; of a disputed payment, only if told so.
    """
    refund_id = data.id or await once.new_id()
    give_back = access.call(
        "refund_order",
        order_id=order_id,
        amount=data.amount,
        reason=data.reason,
        refund_id=refund_id,
        despite_dispute=data.despite_dispute,
        metadata=access.sent(data.metadata),
        breakdown=access.sent(data.breakdown),
    )
    made = (_REFUND, {"order_id": order_id, "id": refund_id})
    refund = await once.get(Refund, give_back, made)
    return once.created(refund, f"/orders/{order_id}/refunds/{refund.id}")


@post("/returns", summary="Take goods back", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_return(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateReturn]
) -> JsonResponse[Return]:
    """Goods of a fulfilled order have come back, all or a part: they are stock again.

    With `restock` false they are written off instead: an adjust movement follows each receipt.
    With `refund` what they cost, or another amount, goes back too.
    """
    return_id = data.id or await once.new_id()
    given = {
        "order_id": order_id,
        "items": access.sent(data.items),
        "reason": data.reason,
        "return_id": return_id,
        "restock": data.restock,
        "reason_code": data.reason_code,
    }
    take_back = access.call("return_items", **given)
    if data.refund is not None:
        money = msgspec.structs.asdict(data.refund)
        take_back = access.call("return_and_refund", **given, **money)
    statements = [take_back]
    if data.metadata is not None:
        metadata = access.sent(data.metadata)
        statements += [access.call("describe_return", return_id=return_id, metadata=metadata)]
    made = (_RETURN, {"order_id": order_id, "id": return_id})
    returned = await once.get(Return, *statements, made)
    return once.created(returned, f"/stock-movements?correlation_id={returned.id}")


router = Router(
    "/orders/{order_id:uuid}",
    route_handlers=[list_refunds, get_refund, create_refund, create_return],
    tags=["orders"],
)
