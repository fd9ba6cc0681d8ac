"""What comes back of a fulfilled order: money as refunds, goods as returns, each by itself."""

from uuid import UUID

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from darkpearl.api import stock_movements
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.orders import get_order
from darkpearl.api.problems import refusals
from darkpearl.models.payments import CreateRefund, Refund
from darkpearl.models.stock import CreateReturn, Return

_COLUMNS = ", ".join(f"r.{name}" for name in Refund.__struct_fields__)
_SELECT = f"select {_COLUMNS} from refunds as r"  # noqa: S608 - literals
_REFUND = f"""
    select {_COLUMNS}
    from refund_order(%(order_id)s, %(amount)s, %(reason)s, coalesce(%(id)s, new_id())) as r
"""  # noqa: S608 - literals
_RETURN = f"""
    with moved as materialized (
        select m.*
        from return_items(
            %(order_id)s, %(items)s::jsonb, %(reason)s, coalesce(%(id)s, new_id())
        ) as m
    ),
    told as (select {stock_movements.COLUMNS} from moved as m)
    select
        t.correlation_id as id, %(order_id)s::uuid as order_id,
        json_agg(t order by t.id) as movements
    from told as t
    group by t.correlation_id
"""  # noqa: S608 - literals

_encode = msgspec.json.Encoder().encode


@get("/refunds", summary="List an order's refunds", responses=refusals(400, 404))
async def list_refunds(
    caller: NamedDependency[Caller], listing: NamedDependency[Listing], order_id: FromPath[UUID]
) -> JsonResponse[Page[Refund]]:
    """The refunds of an order, oldest first."""
    refunds = await listing.page(
        Refund,
        _SELECT,
        Filters().add("r.order_id = %(order_id)s", order_id=order_id),
        sorts=("created_at",),
    )
    if not refunds.content.data:
        await get_order.fn(caller, order_id)
    return refunds


@get("/refunds/{refund_id:uuid}", summary="Get a refund", responses=refusals(400, 404))
async def get_refund(
    caller: NamedDependency[Caller], order_id: FromPath[UUID], refund_id: FromPath[UUID]
) -> Refund:
    """A refund; /sagas has its saga, under the same id."""
    query = f"{_SELECT} where r.order_id = %(order_id)s and r.id = %(id)s"
    return await caller.get(Refund, (query, {"order_id": order_id, "id": refund_id}))


@post("/refunds", summary="Give money back", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_refund(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateRefund]
) -> JsonResponse[Refund]:
    """Give back money of a fulfilled order, all that is left or a part. Its saga pays it out."""
    parameters = {"order_id": order_id, **msgspec.structs.asdict(data)}
    refund = await once.get(Refund, (_REFUND, parameters))
    return once.created(refund, f"/orders/{order_id}/refunds/{refund.id}")


@post("/returns", summary="Take goods back", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_return(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateReturn]
) -> JsonResponse[Return]:
    """Goods of a fulfilled order have come back, all or a part: they are stock again."""
    parameters = {
        "order_id": order_id,
        "items": None if data.items is None else _encode(data.items).decode(),
        "reason": data.reason,
        "id": data.id,
    }
    returned = await once.get(Return, (_RETURN, parameters))
    return once.created(returned, f"/stock-movements?correlation_id={returned.id}")


router = Router(
    "/orders/{order_id:uuid}",
    route_handlers=[list_refunds, get_refund, create_refund, create_return],
    tags=["orders"],
)
