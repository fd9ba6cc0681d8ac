"""A payment gateway that is played: its books, what it has decided, and what it has to tell.

It keeps the contract of docs/gateway.md: one answer for one key, a void is for ever, never more
than there is. What it decides is up to whoever plays it.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

CENT = Decimal("0.01")
Answer = dict[str, Any]
Request = dict[str, Any]


@dataclass
class Account:
    """What the gateway has of one payment, in major units."""

    held: Decimal = Decimal(0)
    captured: Decimal = Decimal(0)
    refunded: Decimal = Decimal(0)
    voided: bool = False


@dataclass
class Decision:
    """What became of a call.

    Attributes:
        request: what was asked.
        answer: as the gateway gives it, however often it is asked.
        given_back: money that this call returned to the payer, and that stayed there.
    """

    request: Request
    answer: Answer
    given_back: Decimal = Decimal(0)

    @property
    def outcome(self) -> str:
        """approved, declined or pending."""
        return str(self.answer["outcome"])


@dataclass
class PlayedGateway:
    """Books by payment key, decisions by idempotency key, events as (key, answer)."""

    accounts: dict[str, Account] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    events: list[tuple[str, Answer]] = field(default_factory=list)
    lost: dict[str, Request] = field(default_factory=dict)
    """Calls that nobody waits for any more, as far as they are known here."""
    unasked: set[str] = field(default_factory=set)
    """The keys of payments whose money came after their void, or came back."""

    def ask(self, request: Request, verdict: str) -> Answer:
        """A call arrives: approved, approved by half, declined, or pending for 60 s."""
        key = request["idempotency_key"]
        if key not in self.decisions:
            account = self._account(request)
            if verdict == "pending" and not account.voided:
                answer = {"outcome": "pending", "gateway": "played", "deadline_seconds": 60}
                self.decisions[key] = Decision(request, answer)
            else:
                self._decide(request, verdict)
        return self.decisions[key].answer

    def decide(self, key: str, verdict: str) -> None:
        """What was pending is decided, and told."""
        self._decide(self.decisions[key].request, verdict)

    def regret(self, key: str) -> None:
        """What was given back comes to nothing after all, which is told as declined."""
        decision = self.decisions[key]
        self._account(decision.request).refunded -= decision.given_back
        decision.given_back = Decimal(0)
        self.unasked.add(decision.request["payment_key"])
        decision.answer = {"outcome": "declined", "gateway": "played", "code": "account_closed"}
        self.events.append((key, decision.answer))

    def lose(self, request: Request) -> None:
        """Whoever has made this call is gone."""
        self.lost[request["idempotency_key"]] = request

    def stragglers(self) -> list[str]:
        """The keys of charges that got lost on their way, whose payments were voided since."""
        return [
            key
            for key, request in self.lost.items()
            if key not in self.decisions
            and request.get("capture")
            and self._account(request).voided
        ]

    def charge_late(self, key: str) -> None:
        """A charge arrives after its void, which is no reason here to decline it."""
        self._account(self.lost[key]).voided = False
        self.unasked.add(key)
        self._decide(self.lost[key], "approved")

    def do_by_hand(self, request: Request) -> None:
        """A person at the gateway does what was asked, unless it is done; nothing is told."""
        decision = self.decisions.get(request["idempotency_key"])
        if decision and decision.outcome == "approved" and request["operation"] != "void":
            return
        if decision and decision.outcome == "pending":
            self.decide(request["idempotency_key"], "declined")
        self._do(request, Decimal(request["amount"]))

    def pending(self) -> list[str]:
        """The keys of calls that are to be decided."""
        return [key for key, each in self.decisions.items() if each.outcome == "pending"]

    def regrettable(self) -> list[str]:
        """The keys of calls that gave money back."""
        return [key for key, each in self.decisions.items() if each.given_back]

    def _account(self, request: Request) -> Account:
        return self.accounts.setdefault(request["payment_key"], Account())

    def _decide(self, request: Request, verdict: str) -> None:
        key = request["idempotency_key"]
        amount = Decimal(request["amount"])
        if verdict == "half" and request["operation"] in {"authorize", "capture"}:
            amount = (amount / 2).quantize(CENT)
        before = self._account(request).refunded
        if verdict != "declined" and self._do(request, amount):
            account = self._account(request)
            answer = {"outcome": "approved", "gateway": "played", "currency": "USD"}
            if request["operation"] != "void":
                answer["amount"] = str(amount)
            answer |= {"captured": str(account.captured), "refunded": str(account.refunded)}
            if request["operation"] != "refund":
                answer["reference"] = "ch_" + request["payment_key"]
            decision = Decision(request, answer, account.refunded - before)
        else:
            answer = {"outcome": "declined", "gateway": "played", "code": "card_declined"}
            decision = Decision(request, answer)
        self.decisions[key] = decision
        self.events.append((key, answer))

    def _do(self, request: Request, amount: Decimal) -> bool:
        """Move the money; False when there is too little of it, or the payment was voided."""
        account = self._account(request)
        operation = request["operation"]
        if operation == "void":
            for key in self.pending():
                pending = self.decisions[key].request
                if pending["payment_key"] == request["payment_key"] and pending is not request:
                    self.decide(key, "declined")
            account.voided, account.held, account.refunded = True, Decimal(0), account.captured
        elif operation == "refund":
            if amount > account.captured - account.refunded:
                return False
            account.refunded += amount
        elif account.voided:
            return False
        elif operation == "authorize" and not request["capture"]:
            account.held = amount
        elif operation == "authorize":
            account.captured = amount
        else:
            if amount > account.held:
                return False
            account.held -= amount
            account.captured += amount
        return True
