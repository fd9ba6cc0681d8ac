"""A shop's week over HTTP, by the client that openapi-python-client generates."""

import io
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

CATALOGUE = b"sku,name,unit_price\nPEN,Pen,2.50\nBOOK,Notebook,12\nINK,Ink,4\n"
PATIENCE_SECONDS = 30.0

Client = Any
Order = Any


def open_shop(client: Client) -> Any:
    """The catalogue by CSV, a warehouse that packs, and goods on its shelves; the warehouse."""
    file = client.types.File(payload=io.BytesIO(CATALOGUE))
    done = client("imports.import_products", body=file)
    assert (done.lines, done.bad, done.changed) == (3, 0, 3)
    packs = client.models.FulfilmentMethod.ON_SHIPMENT
    warehouse = client(
        "warehouses.create_warehouse",
        body=client.models.CreateWarehouse(code="LIS", name="Lisbon", fulfilment_method=packs),
    )
    rows = [
        client.models.MovementRow(sku=sku, warehouse="LIS", movement_type="receive", quantity=100)
        for sku in ("PEN", "BOOK", "INK")
    ]
    received = client("imports.import_movements", body=client.models.ImportMovements(rows=rows))
    assert (received.bad, received.changed) == (0, 3)
    return warehouse


def place(client: Client, warehouse: Any, reference: str, **more: Any) -> Order:
    """An order with all that it can say: three pens and two notebooks for 35.00, with postage."""
    models = client.models
    kinds = models.AdjustmentKind
    address = models.PostalAddress(name="Ann", line1="1 Rua da Rosa", city="Lisboa", country="PT")
    body = models.CreateOrder(
        warehouse_id=warehouse.id,
        items=[
            models.CreateOrderItem(sku="PEN", quantity=3),
            models.CreateOrderItem(sku="BOOK", quantity=2),
        ],
        adjustments=[
            models.CreateAdjustment(kind=kinds.SHIPPING, label="Post", amount=5),
            models.CreateAdjustment(kind=kinds.DISCOUNT, label="Spring", amount="-1.50", item=1),
        ],
        reference=reference,
        email="ann@example.com",
        shipping_address=address,
        metadata=models.JsonObject.from_dict({"channel": "web"}),
        **more,
    )
    quote = client("orders.quote_order", body=body)
    assert (quote.fits, quote.total_amount, len(quote.orders)) == (True, 35, 1)
    order = client("orders.create_order", body=body, idempotency_key=f"place-{reference}")
    assert (order.total_amount, order.shipping_total, order.discount_total) == (35, 5, -1.5)
    assert order.shipping_address.city == "Lisboa"
    again = client("orders.create_order", body=body, idempotency_key=f"place-{reference}")
    assert again.id == order.id
    return order


def reaches(client: Client, order: Order, status: str) -> Order:
    """The order once it has a status."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (shown := client("orders.get_order", order.id)).status != status:
        assert time.monotonic() < deadline, shown
        time.sleep(0.05)
    return shown


def hold(client: Client, warehouse: Any, reference: str) -> Order:
    """A basket whose goods are kept for an hour; its first card is declined, its second is not."""
    order = place(client, warehouse, reference, pay_by=datetime.now(UTC) + timedelta(hours=1))
    reaches(client, order, "reserved")
    for token, status in (("decline:card_declined", "payment_failed"), ("approve", "paid")):
        client("orders.pay_order", order.id, body=client.models.PayOrder(payment_token=token))
        shown = reaches(client, order, status)
        (shelf,) = client("inventory.list_inventory", sku="PEN").data
        assert shelf.quantity_reserved == 3
    assert shown.payment.captured_amount == 35
    return shown


def send_two_parcels(client: Client, order: Order) -> list[Any]:
    """Two pens, then a notebook: of both, one is left."""
    models = client.models
    tracking = models.Tracking(carrier="CTT", number="PT1", url="https://ctt.example/PT1")
    parcels = [
        client(
            "orders.create_shipment",
            order.id,
            body=models.CreateShipment(
                items=[models.ParcelItem(sku=sku, quantity=quantity)], tracking=tracking
            ),
        )
        for sku, quantity in (("PEN", 2), ("BOOK", 1))
    ]
    assert [each.status for each in parcels] == ["shipped", "shipped"]
    assert client("orders.get_order", order.id).status == "fulfilling"
    return [each.id for each in parcels]


def give_back(client: Client, order: Order) -> tuple[Any, list[Any]]:
    """What is left is taken out, a pen comes back broken, and the postage; the ids of all that."""
    models = client.models
    rest = client(
        "orders.create_cancellation", order.id, body=models.CreateCancellation(reason="sold out")
    )
    assert rest.refund.amount == 13.75
    item = models.ReturnedItem(sku="PEN", quantity=1)
    body = models.CreateReturn(items=[item], restock=False, refund=models.RefundOfReturn())
    returned = client("orders.create_return", order.id, body=body)
    assert returned.refund.amount == 2.5
    reaches(client, order, "fulfilled")
    refund = client("orders.create_refund", order.id, body=models.CreateRefund(amount=5))
    return returned.id, [rest.refund.id, returned.refund.id, refund.id]


def feed(client: Client, refunds: int) -> list[Any]:
    """The feed from the beginning, three at a time, until so many refunds are settled."""
    events: list[Any] = []
    after, topic = "0", client.models.Topic.REFUND_SETTLED
    while Counter(each.topic for each in events)[topic] < refunds:
        part = client("events.list_events", after=after, limit=3, wait=5)
        assert part.data
        events += part.data
        after = str(part.next_)
    return events


def test_a_shops_week(client: Client, receiver: Any) -> None:
    """What was done, what orders show, what the feed tells and what webhooks told is one story.

    The webhooks are verified by the library of Standard Webhooks, in a process of somebody else.
    """
    warehouse = open_shop(client)
    made = client(
        "webhook_endpoints.create_webhook_endpoint",
        body=client.models.CreateWebhookEndpoint(url=receiver.url),
    )
    receiver.start(made.secret)

    declined = place(client, warehouse, "W-1", payment_token="decline:card_declined")
    shown = reaches(client, declined, "cancelled")
    assert (shown.failure.code, shown.payment.decline_code) == ("DP014", "card_declined")

    order = hold(client, warehouse, "W-2")
    parcels = send_two_parcels(client, order)
    return_id, refunds = give_back(client, order)
    events = feed(client, len(refunds))

    shown = client("orders.get_order", order.id)
    assert [each.id for each in shown.shipments] == parcels
    assert [(each.id, each.restocked) for each in shown.returns] == [(return_id, False)]
    assert {each.id: each.status for each in shown.refunds} == dict.fromkeys(refunds, "refunded")
    assert shown.payment.refunded_amount == 21.25
    assert [each.returned_quantity for each in shown.items] == [1, 0]
    lines = [client.models.ListOrdersIncludeItem.ITEMS]
    (found,) = client("orders.list_orders", reference="W-2", include=lines).data
    assert (found.id, len(found.items)) == (order.id, 2)
    shelves = client("inventory.list_inventory", sku="PEN").data
    assert [(each.quantity_available, each.quantity_reserved) for each in shelves] == [(98, 0)]

    story = [
        (str(each.topic), each.shipment_id or each.return_id)
        for each in events
        if each.order_id == order.id and each.refund_id is None
    ]
    assert [topic for topic, _ in story[:3]] == ["order.placed", "payment.failed", "order.paid"]
    assert Counter(story[3:]) == Counter(
        [("order.shipped", each) for each in parcels]
        + [("order.returned", return_id), ("order.fulfilled", None)]
    )
    assert {each.refund_id for each in events if each.refund_id} == set(refunds)
    assert [str(each.topic) for each in events if each.order_id == declined.id] == [
        "order.placed",
        "payment.failed",
        "order.cancelled",
    ]

    deadline = time.monotonic() + PATIENCE_SECONDS
    while len({each["data"]["id"] for each in receiver.events}) < len(events):
        assert time.monotonic() < deadline, receiver.events
        time.sleep(0.05)
    told = {each["data"]["id"]: each["data"] for each in receiver.events}
    assert [type(each).from_dict(told[each.id]) for each in events] == events
