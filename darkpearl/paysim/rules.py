"""The rules of the books: functions of the ledger's connection, inside its transaction."""

import time
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import blake2b
from sqlite3 import Connection
from typing import Any

import msgspec

from darkpearl.gateways import Answer, GatewayPayment, Operation, WebhookEvent
from darkpearl.gateways.http import Page
from darkpearl.paysim.faults import Behaviour, Verdict
from darkpearl.paysim.ledger import KeyReusedError

SCALE = 10_000
PAGE = 500
BATCH = 500
GRACE_SECONDS = 10.0
"""How long a webhook that is about to be sent before an answer is left to whoever answers."""


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call as the books keep it; a void has neither amount nor currency."""

    operation: Operation
    idempotency_key: str
    payment_key: str
    amount: int = 0
    currency: str = ""
    capture: bool = False
    token: str | None = None


_decode_request = msgspec.json.Decoder(Request).decode
_decode_answer = msgspec.json.Decoder(Answer).decode


def ask(db: Connection, request: Request, behaviour: Behaviour) -> Answer:
    """The one answer to an idempotency key.

    Raises:
        KeyReusedError: the key was used for another request.
    """
    known = db.execute(
        "select request, answer from calls where idempotency_key = ?", [request.idempotency_key]
    ).fetchone()
    if known:
        if _decode_request(known[0]) != request:
            raise KeyReusedError(f"{request.idempotency_key} was used for another request")
        return _decode_answer(known[1])
    verdict = _verdict(request, behaviour)
    if verdict.pending:
        decide_at = time.time() + behaviour.pending_seconds
        answer = Answer(
            "pending",
            reference=_reference(request),
            deadline_seconds=behaviour.pending_deadline_seconds,
            client_action=_action(request) if verdict.action else None,
        )
    else:
        decide_at = None
        answer = _decide(db, request, behaviour, verdict.code)
    db.execute(
        "insert into calls values (?, ?, ?, ?, ?)",
        [request.idempotency_key, request.payment_key, _json(request), _json(answer), decide_at],
    )
    _plan_regret(db, request, answer, behaviour)
    if verdict.webhook != "no" and not verdict.pending:
        wait = GRACE_SECONDS if verdict.webhook == "first" else None
        _tell(db, request.idempotency_key, answer, behaviour, wait_seconds=wait)
    return answer


def lookup(db: Connection, idempotency_key: str) -> Answer | None:
    """The answer to a call, as far as there is one; None when it was never heard of."""
    row = db.execute(
        "select answer from calls where idempotency_key = ?", [idempotency_key]
    ).fetchone()
    return _decode_answer(row[0]) if row else None


def decide_due(db: Connection, behaviour: Behaviour) -> bool:
    """Decide pending calls whose time has come, and what is regretted. False for nothing."""
    due = db.execute(
        "select request from calls where decide_at <= ? order by decide_at limit ?",
        [time.time(), BATCH],
    ).fetchall()
    for (text,) in due:
        request = _decode_request(text)
        _settle(db, request, behaviour, _verdict(request, behaviour).code)
    regretted = db.execute(
        "select c.request, c.answer from regrets r join calls c using (idempotency_key)"
        " where r.due_at <= ? order by r.due_at limit ?",
        [time.time(), BATCH],
    ).fetchall()
    for text, answer in regretted:
        _regret(db, _decode_request(text), _decode_answer(answer), behaviour)
    return bool(due or regretted)


def payments(db: Connection, since: datetime, after: int) -> Page:
    """A page of what was authorised since then, beginning after a row."""
    rows = db.execute(
        "select id, payment_key, currency, authorized, captured, refunded, voided, created_at,"
        " disputed from payments where id > ? and created_at >= ? and authorized > 0"
        " order by id limit ?",
        [after, _iso(since), PAGE],
    ).fetchall()
    found = [
        GatewayPayment(
            payment_key=key,
            reference=_name("pay", key),
            currency=currency,
            authorized=_major(authorized),
            captured=_major(captured),
            refunded=_major(refunded),
            voided=bool(voided),
            created_at=datetime.fromisoformat(created_at),
            disputed=bool(disputed),
        )
        for _, key, currency, authorized, captured, refunded, voided, created_at, disputed in rows
    ]
    return Page(found, str(rows[-1][0]) if len(rows) == PAGE else None)


def summary(db: Connection) -> dict[str, Any]:
    """The sums of the books: money by currency, calls by their outcome, webhooks unsent."""
    money = db.execute(
        "select currency, count(*), sum(authorized), sum(captured), sum(refunded), sum(voided)"
        " from payments where authorized > 0 group by currency order by currency"
    ).fetchall()
    calls = db.execute(
        "select json_extract(request, '$.operation'), json_extract(answer, '$.outcome'), count(*)"
        " from calls group by 1, 2 order by 1, 2"
    ).fetchall()
    undelivered = db.execute("select count(*) from webhooks where send_at is not null").fetchone()[
        0
    ]
    return {
        "money": [
            {
                "currency": currency,
                "payments": count,
                "voided": voided,
                "authorized": _major(authorized),
                "captured": _major(captured),
                "refunded": _major(refunded),
            }
            for currency, count, authorized, captured, refunded, voided in money
        ],
        "calls": [
            {"operation": operation, "outcome": outcome, "count": count}
            for operation, outcome, count in calls
        ],
        "undelivered": undelivered,
    }


def _decide(db: Connection, request: Request, behaviour: Behaviour, code: str | None) -> Answer:
    """The final answer: declined for that code, or for what the books say against it."""
    code = code or _act(db, request, behaviour)
    authorized, captured, refunded, currency = db.execute(
        "select coalesce(max(authorized), 0), coalesce(max(captured), 0),"
        " coalesce(max(refunded), 0), max(currency) from payments where payment_key = ?",
        [request.payment_key],
    ).fetchone()
    amount = authorized if request.operation == "authorize" else request.amount
    return Answer(
        "declined" if code else "approved",
        reference=_reference(request),
        code=code,
        captured=_major(captured),
        refunded=_major(refunded),
        amount=_major(amount) if amount and not code else None,
        currency=currency or None,
    )


def _act(db: Connection, request: Request, behaviour: Behaviour) -> str | None:  # noqa: PLR0911
    """Do it, or say why not."""
    key, amount = request.payment_key, request.amount
    if request.operation == "void":
        _void(db, key, behaviour)
        return None
    payment = db.execute(
        "select currency, authorized - captured, captured - refunded, voided"
        " from payments where payment_key = ?",
        [key],
    ).fetchone()
    if request.operation == "authorize":
        if payment:  # voided before it was heard of, or the key would be known
            return "voided"
        other = _verdict(request, behaviour).amount
        amount = amount if other is None else int(other * SCALE)
        taken = amount if request.capture else 0
        _open(db, key, request.currency, amount, taken)
        return None
    if payment is None:
        return "unknown_payment"
    currency, to_capture, to_refund, voided = payment
    if request.operation == "capture" and voided:
        return "voided"
    if currency != request.currency:
        return "currency_mismatch"
    if amount > (to_capture if request.operation == "capture" else to_refund):
        return "amount_too_large"
    column = "captured" if request.operation == "capture" else "refunded"
    db.execute(
        f"update payments set {column} = {column} + ? where payment_key = ?",  # noqa: S608
        [amount, key],
    )
    return None


def _void(db: Connection, key: str, behaviour: Behaviour) -> None:
    """Give back what was taken, and let nothing more happen: not even what is still pending."""
    pending = db.execute(
        "select request from calls where payment_key = ? and decide_at is not null", [key]
    ).fetchall()
    for (text,) in pending:
        _settle(db, _decode_request(text), behaviour, "voided")
    voided = db.execute(
        "update payments set voided = 1, refunded = captured where payment_key = ?", [key]
    )
    if not voided.rowcount:
        _open(db, key, "", 0, 0, voided=True)


def _open(
    db: Connection, key: str, currency: str, authorized: int, captured: int, *, voided: bool = False
) -> None:
    db.execute(
        "insert into payments (payment_key, currency, authorized, captured, refunded, voided,"
        " created_at) values (?, ?, ?, ?, 0, ?, ?)",
        [key, currency, authorized, captured, voided, _iso(datetime.now(UTC))],
    )


def _settle(db: Connection, request: Request, behaviour: Behaviour, code: str | None) -> None:
    """Decide a pending call, and have it told."""
    answer = _decide(db, request, behaviour, code)
    db.execute(
        "update calls set answer = ?, decide_at = null where idempotency_key = ?",
        [_json(answer), request.idempotency_key],
    )
    _plan_regret(db, request, answer, behaviour)
    _tell(db, request.idempotency_key, answer, behaviour)


def _verdict(request: Request, behaviour: Behaviour) -> Verdict:
    return behaviour.verdict(
        request.operation, request.idempotency_key, request.token, _major(request.amount)
    )


def _plan_regret(db: Connection, request: Request, answer: Answer, behaviour: Behaviour) -> None:
    """Note that an approved call will turn out otherwise, if it will and there is money in it."""
    regret = _verdict(request, behaviour).regret
    money = answer.refunded if regret == "failed" else answer.captured
    if regret == "no" or answer.outcome != "approved" or not money:
        return
    db.execute(
        "insert into regrets values (?, ?)",
        [request.idempotency_key, time.time() + behaviour.regret_seconds],
    )


def _regret(db: Connection, request: Request, answer: Answer, behaviour: Behaviour) -> None:
    """The money of a refund or a void comes back; a payment is disputed. Have it told."""
    key = request.idempotency_key
    db.execute("delete from regrets where idempotency_key = ?", [key])
    if request.operation not in ("refund", "void"):
        db.execute("update payments set disputed = 1 where payment_key = ?", [request.payment_key])
        dispute = msgspec.structs.replace(
            answer,
            outcome="disputed",
            dispute="open",
            reference=_name("dp", key),
            code="fraudulent",
        )
        _tell(db, request.payment_key, dispute, behaviour, "disputed")
        return
    back = request.amount or int((answer.refunded or Decimal(0)) * SCALE)
    db.execute(
        "update payments set refunded = max(refunded - ?, 0) where payment_key = ?",
        [back, request.payment_key],
    )
    failed = msgspec.structs.replace(answer, outcome="declined", code="account_closed")
    db.execute("update calls set answer = ? where idempotency_key = ?", [_json(failed), key])
    _tell(db, key, failed, behaviour, "failed")


def _tell(
    db: Connection,
    key: str,
    answer: Answer,
    behaviour: Behaviour,
    news: str = "",
    *,
    wait_seconds: float | None = None,
) -> None:
    """Send a webhook about a call, one of its answer and one of each news that follows."""
    name = f"{key}:{news}" if news else key
    event = WebhookEvent(event_id=_name("evt", name), idempotency_key=key, answer=answer)
    wait = behaviour.webhook_delay(name) if wait_seconds is None else wait_seconds
    db.execute(
        "insert into webhooks (name, body, send_at) values (?, ?, ?)",
        [name, msgspec.json.encode(event), time.time() + wait],
    )


def _reference(request: Request) -> str:
    if request.operation == "refund":
        return _name("ref", request.idempotency_key)
    return _name("pay", request.payment_key)


def _action(request: Request) -> dict[str, str]:
    """What the payer is told to do; whether they do it or not, the call is decided in time."""
    url = f"https://bank.example/confirm/{_name('pay', request.payment_key)}"
    return {"type": "redirect", "url": url}


def _name(kind: str, key: str) -> str:
    return f"{kind}_{blake2b(key.encode(), digest_size=12).hexdigest()}"


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()


def _major(amount: int) -> Decimal:
    return Decimal(amount) / SCALE


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds")
