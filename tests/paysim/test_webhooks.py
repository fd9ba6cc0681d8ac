"""Webhooks: whom they are believed, and that they are told until they are heard."""

import asyncio
import time
from collections import Counter
from functools import partial
from typing import Any

import httpx
import pytest

from darkpearl.gateways import SignatureError
from darkpearl.gateways.http import SIGNATURE_HEADER, HttpGateway, sign
from darkpearl.paysim.app import TICK_SECONDS

from .conftest import PATIENCE_SECONDS, SECRET, Start, call

BODY = b'{"event_id":"e","idempotency_key":"p","answer":{"outcome":"approved","captured":"1.50"}}'


class Shop:
    """Receives webhooks; answers the first of them with `refusals`, the others with 204."""

    def __init__(self, *refusals: int | Exception, seconds: float = 0.0) -> None:
        self.refusals = list(refusals)
        self.seconds = seconds
        self.heard: asyncio.Queue[httpx.Request] = asyncio.Queue()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.heard.put_nowait(request)
        await asyncio.sleep(self.seconds)
        said = self.refusals.pop(0) if self.refusals else 204
        if isinstance(said, Exception):
            raise said
        return httpx.Response(said)

    async def hear(self, number: int) -> list[httpx.Request]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return [await self.heard.get() for _ in range(number)]


def a_gateway(secret: str | None = SECRET) -> HttpGateway:
    """A gateway that is told of webhooks and asks for nothing."""
    return HttpGateway("http://paysim", webhook_secret=secret, transport=httpx.MockTransport(str))


def test_a_signed_webhook_is_an_event() -> None:
    """With what it says of the call, under the gateway's name."""
    signed = {SIGNATURE_HEADER: sign(SECRET, BODY, time.time())}
    event = a_gateway().webhook(signed, BODY)
    assert event
    assert (event.event_id, event.idempotency_key) == ("e", "p")
    assert (event.answer.outcome, event.answer.gateway) == ("approved", "http")
    assert str(event.answer.captured) == "1.50"


@pytest.mark.parametrize("secret", ["new,old", " old , new "])
def test_a_secret_can_be_changed(secret: str) -> None:
    """While both are set, what is signed with either is believed; with several v1 too."""
    now = time.time()
    old, new = sign("old", BODY, now), sign("new", BODY, now)
    both = f"{old},{sign('newest', BODY, now).partition(',')[2]}"
    for header in (old, new, both):
        assert a_gateway(secret).webhook({SIGNATURE_HEADER: header}, BODY)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "there is no"),
        ("", "there is no"),
        ("nonsense", "isn't t="),
        ("t=1", "isn't t="),
        ("v1=00", "isn't t="),
        ("t=x,v1=00", "isn't t="),
        ("t=²,v1=00", "isn't t="),
        ("t=1,t=2,v1=00", "isn't t="),
        ("t=1,v1=00", "the signature is wrong"),
        ("t=1,v1=é", "the signature is wrong"),
    ],
)
def test_what_is_not_signed_is_not_believed(header: str | None, said: str) -> None:
    """A header that is missing, malformed or made up."""
    headers = {} if header is None else {SIGNATURE_HEADER: header}
    with pytest.raises(SignatureError, match=said):
        a_gateway().webhook(headers, BODY)


@pytest.mark.parametrize(
    ("secret", "body", "seconds", "said"),
    [
        ("another", BODY, 0, "the signature is wrong"),
        ("", BODY, 0, "the signature is wrong"),
        (SECRET, BODY + b" ", 0, "the signature is wrong"),
        (SECRET, BODY, -301, "more than 300 s from now"),
        (SECRET, BODY, 310, "more than 300 s from now"),
    ],
)
def test_what_is_signed_wrongly_is_not_believed(
    secret: str, body: bytes, seconds: int, said: str
) -> None:
    """With another secret, for another body, too long ago or ahead of time."""
    header = sign(secret, body, time.time() + seconds)
    with pytest.raises(SignatureError, match=said):
        a_gateway().webhook({SIGNATURE_HEADER: header}, BODY)


def test_a_signature_holds_for_its_time_alone() -> None:
    """An old one can't be made new."""
    now = int(time.time())
    header = sign(SECRET, BODY, now - 400).replace(f"t={now - 400}", f"t={now}")
    with pytest.raises(SignatureError, match="the signature is wrong"):
        a_gateway().webhook({SIGNATURE_HEADER: header}, BODY)


@pytest.mark.parametrize("secret", [None, "", " , "])
def test_without_a_secret_nothing_is_believed(secret: str | None) -> None:
    """Not even what is signed with the empty one."""
    with pytest.raises(SignatureError, match="the signature is wrong"):
        a_gateway(secret).webhook({SIGNATURE_HEADER: sign("", BODY, time.time())}, BODY)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{}", b'{"event_id": 1}'])
def test_a_signed_body_has_to_make_sense(body: bytes) -> None:
    """Else it is an error of whoever signed it."""
    with pytest.raises(ValueError, match=r".") as error:
        a_gateway().webhook({SIGNATURE_HEADER: sign(SECRET, body, time.time())}, body)
    assert not isinstance(error.value, SignatureError)


async def test_a_decision_is_told_until_it_is_heard(start: Start, until: Any) -> None:
    """Refusals, redirects and broken connections don't count; the event stays the same."""
    shop = Shop(500, 302, httpx.ConnectError("gone"))
    async with start(heard=shop, pending_seconds=0.01) as gateway:
        asked = call("authorize", "p", token="pending", capture=True)
        await gateway.authorize(asked)
        requests = await shop.hear(4)
        events = [gateway.webhook(each.headers, each.content) for each in requests]
        assert events[0]
        assert events == [events[0]] * 4
        assert events[0].idempotency_key == "p"
        assert events[0].answer == await gateway.lookup(asked)
        await until(partial(told_all, gateway))
    assert shop.heard.empty()


async def test_what_is_to_be_told_survives_a_restart(start: Start, until: Any) -> None:
    """A decision too that comes due while nobody runs."""
    async with start(pending_seconds=0, answer_twice_rate=1) as gateway:
        await gateway.authorize(call("authorize", "p"))
    async with start(pending_seconds=0) as gateway:
        await gateway.authorize(call("authorize", "q", token="pending:decline:no"))
    shop = Shop()
    async with start(heard=shop) as gateway:
        found = [gateway.webhook(each.headers, each.content) for each in await shop.hear(2)]
        told = {each.idempotency_key: each.answer.outcome for each in found if each}
        assert told == {"p": "approved", "q": "declined"}
        await until(partial(told_all, gateway))
    assert shop.heard.empty()


async def test_webhooks_can_go_unsigned(start: Start) -> None:
    """Without a secret, to see them refused; each delivery is refused alike."""
    shop = Shop(401)
    async with start(heard=shop, secret=None, answer_twice_rate=1) as gateway:
        await gateway.authorize(call("authorize", "p"))
        for request in await shop.hear(2):
            with pytest.raises(SignatureError, match="there is no"):
                gateway.webhook(request.headers, request.content)


async def test_a_webhook_can_come_before_the_answer(start: Start) -> None:
    """It is heard while the caller still waits, and only then, however long that takes."""
    shop = Shop(seconds=3 * TICK_SECONDS)
    async with start(heard=shop, webhook_first_rate=1) as gateway:
        for key in ("p", "q"):
            answer = await gateway.authorize(call("authorize", key))
            assert shop.heard.qsize() == 1
            (request,) = await shop.hear(1)
            event = gateway.webhook(request.headers, request.content)
            assert event
            assert (event.idempotency_key, event.answer) == (key, answer)
            assert await gateway.authorize(call("authorize", key)) == answer
            assert shop.heard.empty()


async def test_an_answer_can_come_twice(start: Start, until: Any) -> None:
    """By webhook as well, once for each call however often it is asked; a declined one too."""
    shop = Shop()
    async with start(heard=shop, answer_twice_rate=1) as gateway:
        for key, token in (("p", None), ("q", "decline:no"), ("p", None)):
            await gateway.authorize(call("authorize", key, token=token))
        await until(partial(told_all, gateway))
        found = [gateway.webhook(each.headers, each.content) for each in await shop.hear(2)]
        assert {each.idempotency_key for each in found if each} == {"p", "q"}
    assert shop.heard.empty()


async def test_webhooks_can_come_twice_and_out_of_order(start: Start) -> None:
    """Each of them the same both times."""
    shop = Shop()
    keys = [f"key-{number}" for number in range(8)]
    how = {"answer_twice_rate": 1, "duplicate_webhook_rate": 1, "reorder_seconds": 0.5}
    async with start(heard=shop, **how) as gateway:
        for key in keys:
            await gateway.authorize(call("authorize", key))
        requests = await shop.hear(16)
        assert set(Counter(each.content for each in requests).values()) == {2}
        events = [gateway.webhook(each.headers, each.content) for each in requests]
    order = list(dict.fromkeys(str(each.idempotency_key) for each in events if each))
    assert order != keys
    assert sorted(order) == keys


async def told_all(gateway: HttpGateway) -> bool:
    """The ledger has nothing more to tell."""
    return not (await gateway._client.get("/v1/ledger")).json()["undelivered"]
