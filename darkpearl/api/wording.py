"""The database's words for callers who speak HTTP: functions are requests, arguments are fields.

What the database says is written for who reads psql. Over HTTP the same advice names a path; a
sentence for which there is none, since it is an operator's to follow, is left out.
"""

import re

PHRASES = {
    "select id, sku from products where is_active": "GET /products?is_active=true",
    "select id, code from warehouses where is_active": "GET /warehouses?is_active=true",
    "select id from stuck_sagas": "GET /sagas?status=stuck",
    "select id from saga_overview": "GET /sagas",
    "Insert the order and its order_items in one transaction, or call place_order().": (
        "Send at least one item."
    ),
    "without order_items": "without items",
    "service_role": "staff",
    "cancel_order()": "DELETE /orders/{id}",
    "place_order()": "POST /orders",
    "return_items()": "POST /orders/{id}/returns",
    "refund_order()": "POST /orders/{id}/refunds",
    "cancel_items()": "POST /orders/{id}/cancellations",
    "receive_stock()": "POST /stock-movements",
    "adjust_stock or transfer_stock": "POST /stock-movements",
    "and say so with record_manual_refund()": "and have an operator write it down",
    "stock_movements where reference_id is the order": "GET /stock-movements?reference_id={id}",
    "disputed_payments": "payment.disputes of the order",
    "order_overview": "GET /orders",
    "orders_to_ship": "GET /orders/to-ship",
    "webhook_overview": "GET /webhook-endpoints",
    "stuck_sagas": "GET /sagas?status=stuck",
    "saga_signals": "GET /sagas/{id}/events",
    "DETAIL names": "detail names",
}
"""What the database says, and what that is over HTTP."""
_PHRASE = re.compile("|".join(map(re.escape, PHRASES)))
_PLAN = re.compile(r"See its plan: select .*")
_ARGUMENT = re.compile(r"\bp_([a-z_]+)")
_DENIED = re.compile(
    r"permission denied for .*|new row violates row-level security policy.*", re.DOTALL
)
_SENTENCE = re.compile(r"(?<=[.;]) ")
_SQL = re.compile(
    r"\b[a-z]+(_[a-z]+)*\(\)|\bselect\b.*\bfrom\b|\b(order|batch)_items\b|\bbatch_overview\b"
)
"""Advice that only who writes SQL can follow."""


def over_http(text: str) -> str:
    """A detail or hint of the database, in words of HTTP."""
    text = _PHRASE.sub(lambda found: PHRASES[found[0]], text)
    text = _DENIED.sub("The role of the token may not do that.", text)
    text = _ARGUMENT.sub(r"\1", _PLAN.sub("See the plan of its saga type.", text))
    if _SQL.search(text):
        text = " ".join(each for each in _SENTENCE.split(text) if not _SQL.search(each))
    return text
