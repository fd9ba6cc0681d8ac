"""Stripe, through its official SDK.

A payment is one payment intent, made in two phases. The first creates it, unconfirmed, under the
idempotency key `<payment_key>:create` and with nothing in it that a later call wouldn't know; the
second confirms it, under `<payment_key>:confirm`. So a void of a payment that Stripe may not have
heard of yet creates the same intent and cancels it: a confirmation that arrives later is refused.

Stripe finds a payment under our key in two ways. Creating it again is immediately consistent, but
Stripe forgets idempotency keys after 24 hours. Searching its metadata finds the oldest payment,
but a new one only after a minute or more. Where Stripe says that it made a new intent instead of
repeating an old answer, both are done.

Stripe repeats what it answered to an idempotency key, 500s too, so where a call may be made again
after its payment has changed, the key says which state it was made for.

Amounts are exact: what Stripe can't charge to the last unit is declined before it is asked.
"""

from collections.abc import AsyncIterator, Awaitable, Mapping
from datetime import UTC, datetime

import msgspec
import stripe

from darkpearl.gateways import (
    Answer,
    Call,
    GatewayPayment,
    Outcome,
    SignatureError,
    WebhookEvent,
    whole_characters,
)
from darkpearl.gateways.money import AmountError
from darkpearl.gateways.stripe_objects import CANCEL, NAME, Event, Intent, Refund, to_stripe
from darkpearl.outside import NOT_COMPRESSED, reading

TOLERANCE_SECONDS = 300
"""How old a webhook may be, against replays; Stripe signs each try anew."""
LONGEST_ANSWER_BYTES = 2 * 1_048_576
"""A page of a hundred payments, each with its charge, is half of that."""
UNEXPECTED_STATE = "payment_intent_unexpected_state"
_EXPAND = ["latest_charge"]
_RANK = ("approved", "pending", "declined")


class _Bounded(stripe.HTTPXClient):
    """The SDK's client, which reads no answer further than it may be long."""

    def __init__(self) -> None:
        super().__init__()
        self._client_async.headers.update(NOT_COMPRESSED)
        self._client_async.event_hooks = reading(LONGEST_ANSWER_BYTES)


class StripeGateway:
    """Payments through Stripe.

    A payer who has to confirm the payment with their bank (3-D Secure) makes it pending: the
    shop's front end shows them the payment intent that is the payment's reference.

    Not tried against Stripe itself, but against localstripe, which has no search, no idempotency
    keys and fewer checks; the tests stand in for the first two as Stripe's documentation has them.

    Args:
        api_key: secret or restricted; it needs to write payment intents and refunds.
        webhook_secret: of the webhook endpoint; several, divided by commas, while it is being
            changed. Without one every webhook is refused.
        api_base: another address of the API, for tests.
        http_client: another way of making requests, for tests.
    """

    name = NAME

    def __init__(
        self,
        api_key: str,
        webhook_secret: str | None = None,
        *,
        api_base: str = stripe.DEFAULT_API_BASE,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        self._secrets = [each.strip() for each in (webhook_secret or "").split(",")]
        self._http = http_client or _Bounded()
        client = stripe.StripeClient(
            api_key,
            http_client=self._http,
            base_addresses={"api": api_base},
            max_network_retries=0,  # the engine asks again, after a look
        )
        self._intents = client.v1.payment_intents
        self._refunds = client.v1.refunds

    async def authorize(self, call: Call) -> Answer:
        """Create and confirm."""
        return await _answered(self._authorize(call), refusal="declined")

    async def capture(self, call: Call) -> Answer:
        """Take all or a part of what was authorised; the rest is released."""
        return await _answered(self._capture(call), refusal="declined")

    async def void(self, call: Call) -> Answer:
        """Cancel, or refund what isn't refunded yet of what was captured.

        Without a reference the amount has to be that of the authorisation.
        """
        return await _answered(self._void(call), refusal="unknown")

    async def refund(self, call: Call) -> Answer:
        """Give back a part; pending while Stripe waits for funds or for the bank."""
        return await _answered(self._refund(call), refusal="declined")

    async def lookup(self, call: Call) -> Answer | None:
        """The outcome of a call, by the present state of its payment.

        Leaves an unconfirmed payment intent behind where there was none. It holds no money, and
        the call uses it when it is made after all.
        """
        try:
            return await self._found(call)
        except AmountError:  # it was never asked for
            return None
        except LookupError as error:
            return _unsure(str(error), "not_found")
        except stripe.InvalidRequestError as error:
            return _unsure(str(error), error.code or "invalid_request")
        except stripe.StripeError as error:
            return _unsure(str(error))

    async def payments(self, since: datetime) -> AsyncIterator[GatewayPayment]:
        """Every payment of ours that Stripe has had since then, newest first."""
        intents = await self._intents.list_async(
            {
                "created": {"gte": int(since.timestamp())},
                "limit": 100,
                "expand": ["data.latest_charge"],
            }
        )
        async for each in intents.auto_paging_iter():
            intent = _intent(each)
            if intent.payment_key is not None:
                yield GatewayPayment(
                    payment_key=intent.payment_key,
                    reference=intent.id,
                    currency=intent.currency.upper(),
                    authorized=intent.money(
                        intent.amount if intent.charge.status == "succeeded" else 0
                    ),
                    captured=intent.money(intent.amount_received),
                    refunded=intent.money(intent.returned),
                    voided=intent.status == "canceled",
                    created_at=datetime.fromtimestamp(intent.created, UTC),
                    disputed=intent.charge.disputed,
                )

    def webhook(self, headers: Mapping[str, str], body: bytes) -> WebhookEvent | None:
        """The event of a webhook, if it is about a payment intent, a refund or a dispute.

        A refund that was made by hand, in the dashboard, is told without an idempotency key, and
        so is a dispute, which names its payment intent.

        Raises:
            SignatureError: the signature is missing, wrong or older than five minutes.
            ValueError: the body is no event.
        """
        for secret in self._secrets:
            try:
                stripe.WebhookSignature.verify_header(
                    body, headers.get("stripe-signature"), secret, TOLERANCE_SECONDS
                )
                break
            except stripe.SignatureVerificationError as error:
                wrong = str(error)
        else:
            raise SignatureError(wrong)
        return msgspec.json.decode(whole_characters(body), type=Event).told()

    async def payment_key(self, reference: str) -> str | None:
        """What stands in the metadata of a payment intent.

        Raises:
            stripe.StripeError: Stripe is away, or busy.
        """
        try:
            return (await self._retrieve(reference)).payment_key
        except stripe.InvalidRequestError:
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def _authorize(self, call: Call) -> Answer:
        if call.token is None:
            return Answer("declined", gateway=NAME, code="payment_method_required")
        reference, _ = await self._create(call)
        try:
            confirmed = await self._intents.confirm_async(
                reference,
                {
                    "payment_method": call.token,
                    "capture_method": "automatic" if call.capture else "manual",
                    "expand": _EXPAND,
                },
                {"idempotency_key": f"{call.payment_key}:confirm"},
            )
        except stripe.CardError as error:
            return msgspec.structs.replace(_declined(error), reference=reference)
        except stripe.InvalidRequestError as error:
            if error.code != UNEXPECTED_STATE:
                raise
            intent = await self._retrieve(reference)
        else:
            intent = _intent(confirmed)
        return intent.authorization() or _unsure(f"the payment {intent.status}", intent.status)

    async def _capture(self, call: Call) -> Answer:
        amount = to_stripe(call.amount, call.currency)
        reference = await self._reference(call)
        try:
            captured = await self._intents.capture_async(
                reference,
                {
                    "amount_to_capture": amount,
                    "metadata": {"capture_key": call.idempotency_key},
                    "expand": _EXPAND,
                },
                {"idempotency_key": call.idempotency_key},
            )
        except stripe.InvalidRequestError as error:
            if error.code != UNEXPECTED_STATE:
                raise
            intent = await self._retrieve(reference)
        else:
            intent = _intent(captured)
        return intent.capture() or _unsure(f"the payment {intent.status}", intent.status)

    async def _void(self, call: Call) -> Answer:
        try:
            intents = await self._all(call)
        except AmountError:  # it was never asked for
            return Answer("approved", gateway=NAME)
        answers = [await self._undo(call, intent) for intent in intents]
        return next((each for each in answers if each.outcome != "approved"), answers[0])

    async def _undo(self, call: Call, intent: Intent) -> Answer:
        returned = await self._returned(intent)
        if (undone := intent.void(returned)) is not None:
            return undone
        if intent.status != "succeeded":
            cancelled = await self._intents.cancel_async(
                intent.id,
                {"cancellation_reason": "abandoned"},
                {"idempotency_key": f"{call.idempotency_key}{CANCEL}{intent.status}"},
            )
            return _intent(cancelled).voided()
        rest = intent.amount_received - returned
        key = f"{call.idempotency_key}:refund:{returned}"
        refund = await self._give_back(intent.id, rest, {"void_key": call.idempotency_key}, key)
        # One that waits for the bank, or for funds, is on its way all the same.
        return refund if refund.outcome == "declined" else intent.voided()

    async def _refund(self, call: Call) -> Answer:
        amount = to_stripe(call.amount, call.currency)
        reference = await self._reference(call)
        names = {"idempotency_key": call.idempotency_key}
        return await self._give_back(reference, amount, names, call.idempotency_key)

    async def _give_back(
        self, reference: str, amount: int, names: dict[str, str], key: str
    ) -> Answer:
        refund = await self._refunds.create_async(
            {"payment_intent": reference, "amount": amount, "metadata": names},
            {"idempotency_key": key},
        )
        return msgspec.convert(refund.to_dict(), Refund).answer()

    async def _found(self, call: Call) -> Answer | None:
        if call.operation == "refund":
            async for refund in self._refunds_of(await self._reference(call)):
                if refund.idempotency_key == call.idempotency_key:
                    return refund.answer()
            return None
        if call.operation == "capture":
            return (await self._retrieve(await self._reference(call))).capture()
        intents = await self._all(call)
        if call.operation == "void":
            undone = [intent.void(await self._returned(intent)) for intent in intents]
            return None if None in undone else undone[0]
        answers = [answer for intent in intents if (answer := intent.authorization())]
        return min(answers, key=lambda answer: _RANK.index(answer.outcome), default=None)

    async def _refunds_of(self, reference: str) -> AsyncIterator[Refund]:
        refunds = await self._refunds.list_async({"payment_intent": reference, "limit": 100})
        async for each in refunds.auto_paging_iter():
            yield msgspec.convert(each.to_dict(), Refund)

    async def _returned(self, intent: Intent) -> int:
        """What was given back of a payment; of refunds that failed after all, nothing was."""
        if not intent.returned:
            return 0
        refunds = [each async for each in self._refunds_of(intent.id)]
        return min(intent.returned, sum(each.amount for each in refunds if not each.failed))

    async def _reference(self, call: Call) -> str:
        """Stripe's name for the payment of a call that only makes sense after an approval.

        Raises:
            LookupError: Stripe doesn't have it, or can't find it yet.
        """
        if call.reference:
            return call.reference
        async for intent in self._search(call.payment_key):
            return intent.id
        raise LookupError(f"Stripe finds no payment {call.payment_key}")

    async def _all(self, call: Call) -> list[Intent]:
        """All payment intents under the payment key; at least one, made now if there is none."""
        if call.reference:
            return [await self._retrieve(call.reference)]
        try:
            created, repeated = await self._create(call)
        except stripe.IdempotencyError:  # there is one, of another amount
            if found := [intent async for intent in self._search(call.payment_key)]:
                return found
            raise
        if repeated:
            return [await self._retrieve(created)]
        return [await self._retrieve(created)] + [
            intent async for intent in self._search(call.payment_key) if intent.id != created
        ]

    async def _create(self, call: Call) -> tuple[str, bool]:
        """The id of the unconfirmed intent, and whether Stripe had made it before."""
        created = await self._intents.create_async(
            {
                "amount": to_stripe(call.amount, call.currency),
                "currency": call.currency.lower(),
                "capture_method": "manual",
                # Nobody is there to be sent elsewhere and to come back.
                "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
                "metadata": {"payment_key": call.payment_key},
            },
            {"idempotency_key": f"{call.payment_key}:create"},
        )
        headers = created.last_response.headers if created.last_response else {}
        return created.id, headers.get("idempotent-replayed") == "true"

    async def _retrieve(self, reference: str) -> Intent:
        return _intent(await self._intents.retrieve_async(reference, {"expand": _EXPAND}))

    async def _search(self, payment_key: str) -> AsyncIterator[Intent]:
        quoted = payment_key.replace("\\", r"\\").replace('"', r"\"")
        found = await self._intents.search_async(
            {"query": f'metadata["payment_key"]:"{quoted}"', "expand": ["data.latest_charge"]}
        )
        async for each in found.auto_paging_iter():
            yield _intent(each)


async def _answered(call: Awaitable[Answer], *, refusal: Outcome) -> Answer:
    """The answer, errors included; a refusal is a request that Stripe finds wrong."""
    try:
        return await call
    except AmountError as error:
        return Answer("declined", gateway=NAME, code="amount_not_chargeable", message=str(error))
    except stripe.CardError as error:
        return _declined(error)
    except stripe.InvalidRequestError as error:
        code = error.code or "invalid_request"
        return Answer(refusal, gateway=NAME, code=code, message=error.user_message)
    except (LookupError, stripe.IdempotencyError) as error:
        found = not isinstance(error, LookupError)
        return _unsure(str(error), "idempotency_error" if found else "not_found")
    except stripe.StripeError as error:
        # Away, busy, at it already, or not open to this API key: none of it says what became of it.
        return _unsure(str(error))


def _declined(error: stripe.CardError) -> Answer:
    code = (error.error and error.error.decline_code) or error.code
    return Answer("declined", gateway=NAME, code=code, message=error.user_message)


def _unsure(message: str, code: str | None = None) -> Answer:
    """Not known; with a code: for a reason that is Stripe's answer."""
    return Answer("unknown", gateway=NAME, code=code, message=message)


def _intent(said: stripe.PaymentIntent) -> Intent:
    return msgspec.convert(said.to_dict(), Intent)
