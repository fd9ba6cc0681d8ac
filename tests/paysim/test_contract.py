"""docs/gateway.md, rule by rule: what a service promises, and what HttpGateway makes of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkpearl.config import ConfigError, Settings
from darkpearl.gateways import Answer, AnsweredError, GatewayPayment
from darkpearl.gateways.http import GatewayError, HttpGateway
from darkpearl.gateways.make import make_gateway
from darkpearl.paysim import rules
from darkpearl.paysim.app import create_app
from darkpearl.paysim.faults import Behaviour
from darkpearl.paysim.ledger import KeyReusedError, Ledger

from .conftest import PATIENCE_SECONDS, Start, call

AGES_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def listed(gateway: HttpGateway, since: datetime = AGES_AGO) -> list[GatewayPayment]:
    """All that the gateway lists."""
    return [payment async for payment in gateway.payments(since)]


async def decided(gateway: HttpGateway, key: str) -> Answer:
    """The final answer to a call that is pending."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await gateway.lookup(call("authorize", key))
            if answer and answer.outcome != "pending":
                return answer
            await asyncio.sleep(0.01)


def totals(answer: Answer) -> tuple[str, str | None, Decimal | None, Decimal | None]:
    """Outcome, code, captured and refunded of an answer."""
    return answer.outcome, answer.code, answer.captured, answer.refunded


async def test_money_is_held_taken_and_given_back(gateway: HttpGateway) -> None:
    """Each answer says what was taken and given back so far, and the reference of the payment."""
    held = await gateway.authorize(call("authorize", "p"))
    assert totals(held) == ("approved", None, 0, 0)
    assert (held.gateway, held.message, held.deadline_seconds) == ("http", None, None)
    taken = await gateway.capture(call("capture", "p:capture", "9.99"))
    assert totals(taken) == ("approved", None, Decimal("9.99"), 0)
    assert taken.reference == held.reference
    back = await gateway.refund(call("refund", "p:refund:1", "0.0001"))
    assert totals(back) == ("approved", None, Decimal("9.99"), Decimal("0.0001"))
    assert back.reference not in {None, held.reference}
    (payment,) = await listed(gateway)
    assert (payment.payment_key, payment.reference, payment.currency, payment.voided) == (
        "p", held.reference, "EUR", False,
    )  # fmt: skip
    assert (payment.authorized, payment.captured, payment.refunded) == (
        Decimal(10), Decimal("9.99"), Decimal("0.0001"),
    )  # fmt: skip


async def test_money_can_be_taken_at_once(gateway: HttpGateway) -> None:
    """An authorisation that says so captures too."""
    answer = await gateway.authorize(call("authorize", "p", "99999999999999.9999", capture=True))
    assert totals(answer) == ("approved", None, Decimal("99999999999999.9999"), 0)


async def test_a_void_cancels_what_is_held(gateway: HttpGateway) -> None:
    """Nothing can be taken afterwards; voiding again changes nothing."""
    held = await gateway.authorize(call("authorize", "p"))
    for key in ("p:void", "p:void:again"):
        gone = await gateway.void(call("void", key))
        assert totals(gone) == ("approved", None, 0, 0)
        assert gone.reference == held.reference
    late = await gateway.capture(call("capture", "p:capture"))
    assert totals(late) == ("declined", "voided", 0, 0)
    assert [payment.voided for payment in await listed(gateway)] == [True]


async def test_a_void_gives_back_what_was_taken(gateway: HttpGateway) -> None:
    """All that is left of it."""
    await gateway.authorize(call("authorize", "p", capture=True))
    await gateway.refund(call("refund", "p:refund:1", "4.00"))
    gone = await gateway.void(call("void", "p:void"))
    assert totals(gone) == ("approved", None, 10, 10)
    more = await gateway.refund(call("refund", "p:refund:2", "0.01"))
    assert totals(more) == ("declined", "amount_too_large", 10, 10)


async def test_a_void_comes_before_an_authorisation_that_is_late(gateway: HttpGateway) -> None:
    """A payment that was never heard of is voided for good; its authorisation is declined."""
    assert (await gateway.void(call("void", "p:void"))).outcome == "approved"
    late = await gateway.authorize(call("authorize", "p", capture=True))
    assert totals(late) == ("declined", "voided", 0, 0)
    assert totals(await gateway.capture(call("capture", "c"))) == ("declined", "voided", 0, 0)
    assert await listed(gateway) == []


async def test_what_cannot_be_is_declined(gateway: HttpGateway) -> None:
    """More than is there, another currency, a payment that isn't; the books stay as they were."""
    await gateway.authorize(call("authorize", "p"))
    before = await listed(gateway)
    for key, code, more in (
        ("1", "amount_too_large", {"amount": "10.01"}),
        ("2", "currency_mismatch", {"currency": "USD"}),
        ("3", "unknown_payment", {"payment_key": "q"}),
    ):
        captured = await gateway.capture(call("capture", f"capture:{key}", **more))
        assert totals(captured) == ("declined", code, 0, 0)
        refunded = await gateway.refund(call("refund", f"refund:{key}", **more))
        assert totals(refunded) == ("declined", code, 0, 0)
    assert await listed(gateway) == before


async def test_a_token_says_what_is_decided(start: Start) -> None:
    """Before any rate does; a declined payment can't be captured and isn't listed."""
    async with start(decline_rate=1) as gateway:
        for token, code in (
            (None, "card_declined"),
            ("tok_visa", "card_declined"),
            ("decline:insufficient_funds", "insufficient_funds"),
        ):
            answer = await gateway.authorize(call("authorize", f"with.{token}", token=token))
            assert (answer.outcome, answer.code) == ("declined", code)
        assert await listed(gateway) == []
        well = await gateway.authorize(call("authorize", "p", token="approve"))
        assert well.outcome == "approved"


async def test_the_same_key_is_the_same_answer(start: Start) -> None:
    """However often, whatever happened since, and after a restart; nothing is done again."""
    asked = [
        call("authorize", "p", capture=True), call("refund", "r", "3.00"), call("void", "v"),
        call("capture", "c"), call("authorize", "q", token="decline:stolen_card"),
    ]  # fmt: skip
    async with start() as gateway:
        first = [await getattr(gateway, each.operation)(each) for each in asked]
        books = await listed(gateway)
        assert [await getattr(gateway, each.operation)(each) for each in asked] == first
    async with start(decline_rate=1) as gateway:
        assert [await getattr(gateway, each.operation)(each) for each in asked] == first
        assert [await gateway.lookup(each) for each in asked] == first
        assert await listed(gateway) == books


async def test_the_same_key_at_once_is_done_once(start: Start) -> None:
    """Each of many callers hears of one payment."""
    async with start(socket=True, latency_ms=2) as gateway:
        asked = [call("authorize", "p"), *[call("refund", "r", "0.01")] * 20]
        await gateway.authorize(call("authorize", "p", capture=True))
        answers = await asyncio.gather(*(gateway.refund(each) for each in asked[1:]))
        assert {totals(answer) for answer in answers} == {
            ("approved", None, Decimal(10), Decimal("0.01"))
        }


async def test_a_key_is_for_one_request(gateway: HttpGateway) -> None:
    """409 for any other, which is an error of the caller and no answer; nothing is done."""
    await gateway.authorize(call("authorize", "p", capture=True))
    await gateway.refund(call("refund", "r", "1.00"))
    await gateway.refund(call("refund", "r", "1.0000"))
    before = await listed(gateway)
    wrong = [
        call("authorize", "p", "11.00", capture=True), call("authorize", "p"),
        call("authorize", "p", capture=True, token="tok"), call("authorize", "r"),
        call("refund", "r", "2.00"), call("capture", "r", "1.00"), call("void", "r"),
        call("refund", "r", "1.00", payment_key="q"), call("refund", "r", "1.00", currency="USD"),
    ]  # fmt: skip
    for each in wrong:
        with pytest.raises(GatewayError, match=r"409 [pr] was used for another request"):
            await getattr(gateway, each.operation)(each)
    assert await listed(gateway) == before


async def test_different_requests_for_a_key_at_once(gateway: HttpGateway) -> None:
    """One is done, the others are refused."""
    asked = [call("authorize", "p", f"{amount}.00") for amount in range(1, 11)]
    told = await asyncio.gather(*map(gateway.authorize, asked), return_exceptions=True)
    assert sum(isinstance(each, Answer) for each in told) == 1
    assert sum(isinstance(each, GatewayError) for each in told) == 9
    assert len(await listed(gateway)) == 1


async def test_what_became_of_a_call_can_be_asked(gateway: HttpGateway) -> None:
    """None is known of a key that was never heard of."""
    assert await gateway.lookup(call("authorize", "p")) is None
    answer = await gateway.authorize(call("authorize", "p"))
    assert await gateway.lookup(call("authorize", "p")) == answer


async def test_payments_are_listed_in_pages(
    gateway: HttpGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, once each, from a moment on that counts itself."""
    monkeypatch.setattr(rules, "PAGE", 2)
    for number in range(5):
        await gateway.authorize(call("authorize", f"p{number}"))
    found = await listed(gateway)
    assert [each.payment_key for each in found] == ["p0", "p1", "p2", "p3", "p4"]
    assert await listed(gateway, found[3].created_at) == found[3:]
    elsewhere = timedelta(microseconds=1) + found[3].created_at.astimezone()
    assert await listed(gateway, elsewhere) == found[4:]


async def test_a_pending_call_is_decided_later(start: Start) -> None:
    """The answer says how late that may be; until then nothing has happened."""
    async with start(pending_seconds=0.1, pending_deadline_seconds=7) as gateway:
        asked = call("authorize", "p", token="pending", capture=True)
        answer = await gateway.authorize(asked)
        assert (answer.outcome, answer.deadline_seconds) == ("pending", 7)
        assert await gateway.lookup(asked) == answer
        assert await listed(gateway) == []
        assert totals(await decided(gateway, "p")) == ("approved", None, 10, 0)
        assert totals(await gateway.authorize(asked)) == ("approved", None, 10, 0)
        await gateway.authorize(call("authorize", "q", token="pending:decline:lost_card"))
        assert totals(await decided(gateway, "q")) == ("declined", "lost_card", 0, 0)


async def test_a_payer_is_told_what_to_do(start: Start) -> None:
    """`client_action`: an object, while the call is pending and not after."""
    async with start(pending_seconds=0.1) as gateway:
        asked = call("authorize", "p", token="action", capture=True)
        answer = await gateway.authorize(asked)
        assert answer.outcome == "pending"
        assert answer.client_action is not None
        assert answer.client_action["type"] == "redirect"
        known = await decided(gateway, "p")
        assert (known.outcome, known.client_action) == ("approved", None)
        await gateway.authorize(call("authorize", "q", token="action:decline:lost_card"))
        assert totals(await decided(gateway, "q")) == ("declined", "lost_card", 0, 0)


async def test_a_void_decides_what_is_pending(start: Start) -> None:
    """Whatever was under way is declined at once and never happens."""
    async with start(pending_seconds=60) as gateway:
        asked = call("authorize", "p", token="pending")
        await gateway.authorize(asked)
        await gateway.void(call("void", "v"))
        gone = await gateway.authorize(asked)
        assert totals(gone) == ("declined", "voided", 0, 0)
        assert await listed(gateway) == []


@pytest.fixture
async def raw(tmp_path: Path) -> Any:
    """A simulator without a client that knows the contract."""
    app = create_app(Ledger(tmp_path / "paysim.db"), Behaviour())
    transport: Any = httpx.ASGITransport(app)  # type: ignore[arg-type]
    async with app.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://p") as raw:
        yield raw


WELL = {"amount": "1.00", "currency": "EUR"}


@pytest.mark.parametrize(
    ("path", "key", "body"),
    [
        ("", None, WELL),
        ("", "a key", WELL),
        ("", "k" * 201, WELL),
        ("", "k", {"amount": "1.00"}),
        ("", "k", WELL | {"amount": 1}),
        ("", "k", WELL | {"amount": "-1.00"}),
        ("", "k", WELL | {"amount": "1e3"}),
        ("", "k", WELL | {"amount": "0.00001"}),
        ("", "k", WELL | {"amount": "٣"}),
        ("", "k", WELL | {"currency": "eur"}),
        ("", "k", WELL | {"capture": "yes"}),
        ("", "k", WELL | {"captured": True}),
        ("/p/capture", "k", WELL | {"capture": True}),
        ("/p/refunds", "k", None),
        ("/a key/void", "k", None),
    ],
)
async def test_what_makes_no_sense_is_refused(
    raw: httpx.AsyncClient, path: str, key: str | None, body: Any
) -> None:
    """400 as a problem document, and the key stays free."""
    headers = {"Idempotency-Key": key} if key else {}
    told = await raw.post(f"/v1/payments{path}", json=body, headers=headers)
    assert told.status_code == 400, told.text
    assert told.headers["content-type"] == "application/problem+json"
    assert told.json()["title"] == "Bad Request"
    assert (await raw.get("/v1/calls/k")).status_code == 404


async def test_a_time_has_a_zone(raw: httpx.AsyncClient) -> None:
    """Else it would be somebody's."""
    assert (await raw.get("/v1/payments?since=2026-01-01T00:00:00")).status_code == 400


async def test_the_books_add_up(gateway: HttpGateway) -> None:
    """/v1/ledger sums what the list has, and counts the calls."""
    await gateway.authorize(call("authorize", "p", capture=True))
    await gateway.authorize(call("authorize", "q", "5.50", currency="USD"))
    await gateway.void(call("void", "v", payment_key="q"))
    await gateway.void(call("void", "w", payment_key="unheard-of"))
    summary = (await gateway._client.get("/v1/ledger")).json()
    assert summary["undelivered"] == 0
    assert summary["money"] == [
        {
            "currency": "EUR", "payments": 1, "voided": 0,
            "authorized": "10", "captured": "10", "refunded": "0",
        },
        {
            "currency": "USD", "payments": 1, "voided": 1,
            "authorized": "5.5", "captured": "0", "refunded": "0",
        },
    ]  # fmt: skip
    assert {"operation": "void", "outcome": "approved", "count": 2} in summary["calls"]


asked = st.builds(
    call,
    st.sampled_from(["authorize", "capture", "capture", "refund", "refund", "void"]),
    st.sampled_from(["p", *"abcdefgh"]),
    st.sampled_from(["0", "3.00", "7.00", "10.00"]),
    capture=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(calls=st.lists(asked, max_size=30))
def test_no_course_of_events_loses_or_makes_money(calls: list[Any]) -> None:
    """Refunded never exceeds captured, captured never authorised; what is voided keeps nothing."""
    ledger = Ledger(Path(":memory:"))
    behaviour = Behaviour(pending_rate=0.3, pending_seconds=0, refund_decline_rate=0.1)

    def ask(each: Any) -> Answer | None:
        asked = rules.Request(
            each.operation, each.idempotency_key, each.payment_key,
            int(each.amount * rules.SCALE), "EUR", each.capture,
        )  # fmt: skip
        try:
            return rules.ask(ledger._db, asked, behaviour)
        except KeyReusedError:
            return None

    for number, each in enumerate(calls):
        answer = ask(each)
        if number % 3 == 0:
            rules.decide_due(ledger._db, behaviour)
        again = ask(each)
        assert again == answer or (answer and answer.outcome == "pending")
        for payment in rules.payments(ledger._db, AGES_AGO, 0).payments:
            assert 0 <= payment.refunded <= payment.captured <= payment.authorized
            assert not payment.voided or payment.captured == payment.refunded


async def test_a_service_that_cannot_be_reached_gives_no_answer() -> None:
    """Nobody knows what became of the call: unknown, and never a decline."""
    gateway = HttpGateway("http://127.0.0.1:9")
    for ask in (gateway.authorize, gateway.lookup):
        answer = await ask(call("authorize", "p"))
        assert answer
        assert answer.outcome == "unknown"
        assert str(answer.message).startswith("ConnectError")
    with pytest.raises(GatewayError, match="ConnectError"):
        await listed(gateway)
    await gateway.close()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"detail": "no"}', "POST /v1/payments: 401 no"),
        (404, b"", "is the URL right?"),
        (302, b"", "302"),
        (200, b"<html>", "200"),
        (200, b'{"outcome": "perhaps"}', "perhaps"),
        (200, b"\xff", "200"),
    ],
)
async def test_what_is_no_answer_is_an_error(status: int, body: bytes, said: str) -> None:
    """Outside of the contract nothing is guessed."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content=body))
    gateway = HttpGateway("http://paysim", transport=transport)
    with pytest.raises(GatewayError) as error:
        await gateway.authorize(call("authorize", "p"))
    assert said in str(error.value)


@pytest.mark.parametrize("status", [400, 402, 403, 422])
async def test_a_bad_request_is_declined(status: int) -> None:
    """It would be as bad the next time; but to look it up wrongly says nothing of the call."""
    transport = httpx.MockTransport(lambda _: httpx.Response(status, json={"detail": "no card"}))
    gateway = HttpGateway("http://paysim", transport=transport)
    told = await gateway.authorize(call("authorize", "p"))
    assert (told.outcome, told.code) == ("declined", f"http_{status}")
    assert told.message == f"POST /v1/payments: {status} no card"
    with pytest.raises(AnsweredError):
        await gateway.lookup(call("authorize", "p"))


@pytest.mark.parametrize(
    ("status", "answered"), [(401, False), (404, False), (409, True), (302, True)]
)
async def test_who_answers_oddly_is_up(status: int, *, answered: bool) -> None:
    """Only who doesn't let us in, or isn't there, counts with those that are silent."""
    gateway = HttpGateway(
        "http://paysim", transport=httpx.MockTransport(lambda _: httpx.Response(status))
    )
    with pytest.raises(GatewayError) as error:
        await gateway.authorize(call("authorize", "p"))
    assert isinstance(error.value, AnsweredError) is answered


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_a_service_in_trouble_is_asked_again(status: int) -> None:
    """By the engine: the gateway itself asks once."""
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json={"detail": "busy"})

    gateway = HttpGateway("http://paysim", transport=httpx.MockTransport(answer))
    told = await gateway.authorize(call("authorize", "p"))
    assert told == Answer("unknown", gateway="http", message=f"POST /v1/payments: {status} busy")
    assert len(asked) == 1


async def test_the_token_is_asked_for(start: Start) -> None:
    """A caller without it hears 401, which is no answer."""
    async with start(socket=True) as gateway:
        stranger = HttpGateway(str(gateway._client.base_url), token="open")
        with pytest.raises(GatewayError, match="401 the bearer token is missing or wrong"):
            await stranger.authorize(call("authorize", "p"))
        await stranger.close()


async def test_the_settings_make_a_gateway() -> None:
    """With its URL, or not at all."""
    with pytest.raises(ConfigError, match="DARKPEARL_GATEWAY_URL is needed"):
        make_gateway(Settings(gateway="http"))
    gateway = make_gateway(Settings(gateway="http", gateway_url="http://paysim/shop"))
    assert isinstance(gateway, HttpGateway)
    assert str(gateway._client.base_url) == "http://paysim/shop/"
    await gateway.close()
