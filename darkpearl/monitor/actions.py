"""What a person can do: each action calls one function, and says before what that will do.

The database decides who may and whether it makes sense; what it refuses is told in the dialog.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

import msgspec

from darkpearl.errors import BadRequestError
from darkpearl.monitor.viewer import Statement

TYPED_ABOVE = 100
"""Whoever acts on more than that types how many they are."""

_SAGA = "select * from monitor_subject('saga', %(id)s)"
_ORDER = "select * from monitor_subject('order', %(id)s)"
_SHELF = "select * from monitor_subject('shelf', %(product)s, %(warehouse)s)"
_PARCEL = "select * from monitor_subject('parcel', %(id)s)"
_LISTENER = "select * from monitor_subject('listener', %(id)s)"


@dataclass(frozen=True)
class Field:
    """Something that is asked for beside the reason.

    Args:
        name: of the call's parameter.
        label: for people.
        first: what is there at first, unless the subject says.
        kind: a whole number of `least` at least, a change of either sign, an amount of money, one
            of the subject's choices, or a text, which may be left out.
    """

    name: str
    label: str
    first: str = ""
    kind: Literal["whole", "change", "amount", "choice", "text"] = "whole"
    least: int = 1

    def read(self, asked: Mapping[str, str]) -> str | None:
        """What was given, as the database takes it; None for a text that was left out.

        Raises:
            BadRequestError: it is missing, or no such thing.
        """
        given = asked.get(self.name, "").strip()
        pattern, what = _KINDS[self.kind]
        if not re.fullmatch(pattern, given):
            raise BadRequestError(f"{self.label}: that is no {what}.")
        if self.kind == "whole" and int(given) < self.least:
            raise BadRequestError(f"{self.label}: that is less than {self.least}.")
        return given or None


_KINDS = {
    "whole": (r"\d{1,9}", "whole number"),
    "change": (r"[+-]?\d{1,9}", "whole number"),
    "amount": (r"\d{1,15}(\.\d{1,6})?", "amount"),
    "choice": (r".+", "choice"),
    "text": (r".*", "text"),
}


@dataclass(frozen=True)
class Action:
    """Something to do.

    Args:
        title: what is done, as the dialog's heading.
        verb: the same, as a button.
        effect: what will come of it, in a sentence or two.
        call: does it, and finds a row.
        keys: what the call is told of where it was asked for.
        subject: finds what it is done to: subject, standing, detail.
        fields: what is asked for beside the reason.
        wants_reason: the reason is asked for; without one, what is done says why by itself.
        has_parts: units of the subject's lines are asked for, and are `items` of the call.
        bulk: does it to all that a filter finds; `preview` counts them.

    A call may name `operation`, an id that a dialog has from its first showing: what is sent twice
    is done once.
    """

    title: str
    verb: str
    effect: str
    call: LiteralString
    keys: tuple[str, ...] = ("id",)
    subject: LiteralString = ""
    fields: tuple[Field, ...] = ()
    wants_reason: bool = True
    has_parts: bool = False
    is_dangerous: bool = False
    bulk: LiteralString = ""

    def told(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """What the call is told: its keys, its fields, the reason, the id of the operation.

        Raises:
            BadRequestError: something is missing, or not what was asked for.
        """
        keys = (*self.keys, *(("operation",) if "%(operation)s" in self.call else ()))
        missing = [key for key in keys if not asked.get(key)]
        if missing:
            raise BadRequestError(f"Nothing is said of {', '.join(missing)}.")
        told: dict[str, Any] = {key: asked[key] for key in keys}
        told |= {field.name: field.read(asked) for field in self.fields}
        if self.has_parts:
            told["items"] = _parts(asked)
        told["reason"] = asked.get("reason", "").strip()
        if self.wants_reason and not told["reason"]:
            raise BadRequestError("A reason is needed: it is kept with your name.")
        return told

    def preview(self, asked: Mapping[str, str]) -> Statement:
        """Counts what a filter finds, and its money."""
        return f"select * from {self.bulk}(%(filter)s::jsonb)", {"filter": asked["filter"]}  # noqa: S608

    def statement(self, asked: Mapping[str, str]) -> Statement:
        """Does it. Raises as told()."""
        return self.call, self.told(asked)


def _bulk(function: LiteralString, title: str, verb: str, effect: str, **more: Any) -> Action:
    call = f"select * from {function}(%(filter)s::jsonb, %(reason)s, false, %(pace)s::integer)"  # noqa: S608
    return Action(
        title,
        verb,
        effect,
        call,
        keys=("filter",),
        fields=(Field("pace", "At most so many a second", "100"),),
        bulk=function,
        **more,
    )


ACTIONS: dict[str, Action] = {
    "retry_saga": Action(
        "Retry the step",
        "Retry",
        "The step is tried again with all its attempts anew. For when the cause is gone.",
        "select id from retry_saga(%(id)s, %(reason)s)",
        subject=_SAGA,
    ),
    "turn_back_saga": Action(
        "Turn the saga back",
        "Turn back",
        "What it has done is undone, the last first: stock is released, money is given back.",
        "select id from turn_back_saga(%(id)s, %(reason)s)",
        subject=_SAGA,
        is_dangerous=True,
    ),
    "skip_step": Action(
        "Take the step as done",
        "Take as done",
        "For when somebody has done at the gateway, by hand, what the step asks for. Nothing is"
        " called; the saga goes on.",
        "select id from skip_step(%(id)s, %(reason)s)",
        subject=_SAGA,
        is_dangerous=True,
    ),
    "resume_saga": Action(
        "Try now",
        "Try now",
        "The saga waits for its next try; it is tried at once.",
        "select id from resume_saga(%(id)s, %(reason)s)",
        subject=_SAGA,
    ),
    "cancel_order": Action(
        "Cancel the order",
        "Cancel order",
        "The saga turns back: stock is released, money is given back. Then the order is cancelled.",
        "select cancel_order(%(id)s, %(reason)s) is null as done",
        subject=_ORDER,
        is_dangerous=True,
    ),
    "fork_order": Action(
        "Place the order again",
        "Place again",
        "A new order with the same lines and customer is placed; this one stays cancelled.",
        "select id from fork_order(%(id)s, %(reason)s)",
        subject=_ORDER,
    ),
    "refund_order": Action(
        "Refund",
        "Refund",
        "Money goes back to the payer, through the gateway that took it. The goods are another"
        " matter.",
        "select id from refund_order(%(id)s, %(amount)s, %(reason)s, %(operation)s)",
        subject="select * from monitor_subject('payment', %(id)s)",
        fields=(Field("amount", "Amount", kind="amount"),),
        is_dangerous=True,
    ),
    "ship_items": Action(
        "Send a parcel",
        "Ship",
        "These units leave their shelves, once the money for them is there.",
        "select id from ship_items(%(id)s, %(items)s::jsonb,"
        " jsonb_build_object('carrier', %(carrier)s::text, 'number', %(number)s::text),"
        " %(operation)s)",
        subject=_PARCEL,
        fields=(
            Field("carrier", "Carrier", kind="text"),
            Field("number", "Tracking number", kind="text"),
        ),
        wants_reason=False,
        has_parts=True,
    ),
    "receive_stock": Action(
        "Receive units",
        "Receive",
        "So many units more lie on the shelf.",
        "select id from receive_stock(%(warehouse)s, %(product)s, %(units)s, %(operation)s,"
        " %(reason)s)",
        keys=("product", "warehouse"),
        subject=_SHELF,
        fields=(Field("units", "Units that came"),),
    ),
    "count_stock": Action(
        "Count the shelf",
        "Count",
        "So many units lie there, promised ones included. What is found or missing is written"
        " off; if the shelf has changed meanwhile, it is to be counted again.",
        "select id from count_stock(%(warehouse)s, %(product)s, %(units)s, %(reason)s,"
        " %(expected)s)",
        keys=("product", "warehouse"),
        subject=_SHELF,
        fields=(
            Field("units", "Units that lie there", least=0),
            Field("expected", "Units that there were to be", least=0),
        ),
    ),
    "adjust_stock": Action(
        "Adjust",
        "Adjust",
        "Units are written off (-) or found (+), and the ledger says why.",
        "select id from adjust_stock(%(warehouse)s, %(product)s, %(units)s, %(operation)s,"
        " %(reason)s, null, null, %(reason_code)s)",
        keys=("product", "warehouse"),
        subject=_SHELF,
        fields=(
            Field("units", "Units, with their sign", "-1", kind="change"),
            Field("reason_code", "Kind of reason", kind="choice"),
        ),
        is_dangerous=True,
    ),
    "pause": Action(
        "Pause calls to gateways",
        "Pause",
        "Sagas wait before their next call outside, at no cost of attempts; all else goes on. A"
        " longer pause that is set already stays.",
        "select pause_external_steps(%(minutes)s::numeric * 60, %(reason)s) is null as done",
        keys=(),
        fields=(Field("minutes", "For so many minutes", "15"),),
    ),
    "resume": Action(
        "End the pause",
        "End pause",
        "Calls to gateways are made again, from now on.",
        "select pause_external_steps(0, %(reason)s) is null as done",
        keys=(),
    ),
    "ack_gateway_event": Action(
        "Acknowledge the event",
        "Acknowledge",
        "Somebody has looked at it and has done what was to be done; it is not counted any more.",
        "select ack_gateway_event(%(gateway)s, %(event_id)s, %(reason)s) is null as done",
        keys=("gateway", "event_id"),
    ),
    "dismiss_listener": Action(
        "Dismiss the listener",
        "Dismiss",
        "It is not counted any more. For when its process has ended and another works in its"
        " place; one that was only frozen comes back by itself.",
        "select id from dismiss_listener(%(id)s, %(reason)s)",
        subject=_LISTENER,
    ),
    "stop_batch": Action(
        "Stop the batch",
        "Stop",
        "What it has done stays done; the rest is left as it is.",
        "select id from stop_batch(%(id)s, %(reason)s)",
        is_dangerous=True,
    ),
    "run_audit": Action(
        "Audit the last hours",
        "Run audit",
        "Everything that has changed in that time is checked against every rule. It only reads, and"
        " takes as long as there was to do.",
        "select id, finding_count from run_audit(clock() - %(hours)s::numeric * interval '1 hour',"
        " %(reason)s)",
        keys=(),
        fields=(Field("hours", "So many hours back", "1"),),
    ),
    "retry_sagas": _bulk(
        "retry_sagas", "Retry all of these", "Retry all", "Each is tried again, at a pace."
    ),
    "skip_steps": _bulk(
        "skip_steps",
        "Take all of these as done",
        "Take all as done",
        "For when somebody has done by hand what their steps ask for. Nothing is called.",
        is_dangerous=True,
    ),
    "cancel_orders": _bulk(
        "cancel_orders",
        "Cancel all of these orders",
        "Cancel all",
        "Each turns back and gives back what it took, then it is cancelled.",
        is_dangerous=True,
    ),
    "resume_sagas": _bulk(
        "resume_sagas",
        "Try all of these now",
        "Try all now",
        "Those that wait for their next try are tried at once, at a pace.",
    ),
    "ack_gateway_events": _bulk(
        "ack_gateway_events",
        "Acknowledge all of these events",
        "Acknowledge all",
        "Somebody has looked at them; they are not counted any more.",
    ),
}


def _parts(asked: Mapping[str, str]) -> str:
    """The units of each line that were asked for, as items in JSON.

    Raises:
        BadRequestError: something is no number, or all are none.
    """
    fields = [Field(name, "Units", least=0) for name in asked if name.startswith("units:")]
    units = {each.name.partition(":")[2]: int(each.read(asked) or 0) for each in fields}
    items = [{"product_id": product, "quantity": each} for product, each in units.items() if each]
    if not items:
        raise BadRequestError("Units: say of one line at least how many.")
    return msgspec.json.encode(items).decode()


def filter_in_words(given: str) -> list[tuple[str, str]]:
    """What a filter asks for, as pairs for people.

    Raises:
        BadRequestError: it is no JSON object.
    """
    try:
        wanted = msgspec.json.decode(given, type=dict[str, Any])
    except msgspec.DecodeError:
        raise BadRequestError("The filter is no JSON object.") from None
    return [
        (
            name.replace("_", " "),
            f"{len(value)} chosen" if isinstance(value, list) else str(value),
        )
        for name, value in wanted.items()
    ]
