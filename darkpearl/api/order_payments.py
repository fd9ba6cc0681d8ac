"""Money of orders that wait for it: paid later, paid again, paid by other means."""

from uuid import UUID

from litestar import Router, delete, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.status_codes import HTTP_202_ACCEPTED

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.orders import DETAILS, tagged
from darkpearl.api.problems import refusals
from darkpearl.models.orders import OrderDetails
from darkpearl.models.payments import CreateManualPayment, PayOrder


@post(
    "/payment",
    summary="Pay an order",
    status_code=HTTP_202_ACCEPTED,
    responses=refusals(400, 404, 409, 413, 415, 422),
)
async def pay_order(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[PayOrder]
) -> JsonResponse[OrderDetails]:
    """Pay an order that was placed with `pay_by`, or try again after a payment came to nothing.

    It is under way once this is answered; what becomes of it shows the order. The same token again
    while it is under way changes nothing, once it was declined it is another try. Another token
    while a payment is `pending` gives that up: it is voided, then the other is tried.
    """
    pay = access.call("pay_order", order_id=order_id, payment_token=data.payment_token)
    return once.answered(await once.get(OrderDetails, pay, (DETAILS, {"id": order_id})))


@delete(
    "/payment",
    summary="Give up the payment of an order",
    status_code=HTTP_202_ACCEPTED,
    responses=refusals(400, 404, 409),
)
async def cancel_payment(
    caller: NamedDependency[Caller], order_id: FromPath[UUID]
) -> JsonResponse[OrderDetails]:
    """The payer won't do what a `pending` payment asks: it is voided, and another may be tried.

    The order is `payment_failed` and keeps its stock until its `pay_by`. Where nothing is under way
    this changes nothing.
    """
    cancel = access.call("cancel_payment", order_id=order_id)
    return tagged(await caller.get(OrderDetails, cancel, (DETAILS, {"id": order_id})))


@post(
    "/manual-payments",
    summary="Write down money that came by other means",
    responses=refusals(400, 404, 409, 413, 415, 422),
)
async def create_manual_payment(
    once: NamedDependency[Once], order_id: FromPath[UUID], data: JSONBody[CreateManualPayment]
) -> JsonResponse[OrderDetails]:
    """The money of an order that waits for it has come by a transfer, in cash: exactly all of it.

    No gateway is asked, now or later: what is given back of it a person gives, and says so.
    """
    record = access.call(
        "record_manual_payment",
        order_id=order_id,
        amount=data.amount,
        reference=data.reference,
        reason=data.reason,
    )
    order = await once.get(OrderDetails, record, (DETAILS, {"id": order_id}))
    return once.created(order, f"/orders/{order_id}")


router = Router(
    "/orders/{order_id:uuid}",
    route_handlers=[pay_order, cancel_payment, create_manual_payment],
    tags=["orders"],
)
