"""Orders that wait for their payment, quotes, and who waits for an order, over HTTP."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from litestar import Litestar
from shop import APPROVED, DECLINED, PENDING, Shop

from darkpearl.api.preferences import preferred_wait
from darkpearl.api.wording import PHRASES

Api = httpx.AsyncClient
Body = Callable[..., dict[str, Any]]
Client = Callable[..., Api]
Listed = Callable[..., Awaitable[list[dict[str, Any]]]]
Problem = Callable[..., dict[str, Any]]
RunSagas = Callable[..., Awaitable[None]]


def soon(minutes: float = 15) -> str:
    """A moment to come."""
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()


@pytest.fixture
async def held(api: Api, order_body: Body, run_sagas: RunSagas) -> str:
    """The path of an order of 20.00 that is held for ann."""
    body = order_body((0, 2), customer_id="ann", pay_by=soon())
    made = await api.post("/orders", json=body)
    assert made.status_code == 201, made.text
    await run_sagas()
    return f"/orders/{made.json()['id']}"


async def test_a_basket_is_held_and_paid_with_a_second_card(
    client: Client, shop: Shop, held: str, listed: Listed, problem: Problem
) -> None:
    """Its customer pays, is declined, and pays again; the order tells all of it."""
    ann = client("authenticated", "ann")
    order = (await ann.get(held)).json()
    assert (order["status"], order["payment"]) == ("reserved", None)
    assert order["pay_by"] is not None
    paid = await ann.post(f"{held}/payment", json={"payment_token": "tok_bad"})
    assert paid.status_code == 202, paid.text
    assert paid.json()["status"] == "payment_processing"
    other = await ann.post(f"{held}/payment", json={"payment_token": "tok_other"})
    problem(other, 409, "DP033")
    await shop.settle(await shop.advance(), DECLINED)
    order = (await ann.get(held)).json()
    assert order["status"] == "payment_failed"
    assert order["failure"]["code"] == "DP014"
    assert order["payment"]["decline_code"] == "card_declined"
    assert [each["id"] for each in await listed("/orders", status="payment_failed")] == [
        order["id"]
    ]
    assert [each["id"] for each in await listed("/orders", payment_status="declined")] == [
        order["id"]
    ]

    await ann.post(f"{held}/payment", json={"payment_token": "tok_good"})
    action = {"type": "redirect", "url": "https://bank.example/1"}
    (request,) = await shop.advance()
    await shop.settle([request], PENDING | {"client_action": action})
    assert (await ann.get(held)).json()["payment"]["client_action"] == action
    (pending,) = await listed("/orders", payment_status="pending", include="payment")
    assert pending["payment"]["client_action"] == action
    await shop.told(request["request"]["idempotency_key"], APPROVED)
    await shop.advance()
    order = (await ann.get(held)).json()
    assert (order["status"], order["failure"]) == ("fulfilled", None)
    assert order["payment"]["client_action"] is None
    problem(await ann.post(f"{held}/payment", json={"payment_token": "tok_good"}), 409, "DP033")


async def test_a_pending_payment_is_given_up_and_another_tried(
    client: Client, shop: Shop, held: str, problem: Problem
) -> None:
    """By its customer, twice as well as once; what has no answer yet isn't, nor what is paid."""
    ann = client("authenticated", "ann")
    assert (await ann.delete(f"{held}/payment")).json()["status"] == "reserved"
    await ann.post(f"{held}/payment", json={"payment_token": "tok_slow"})
    problem(await ann.delete(f"{held}/payment"), 409, "DP033")
    await shop.settle(await shop.advance(), PENDING | {"client_action": {"type": "redirect"}})
    problem(await client("authenticated", "bob").delete(f"{held}/payment"), 404, "DP010")
    for _ in range(2):
        given_up = await ann.delete(f"{held}/payment")
        assert given_up.status_code == 202, given_up.text
        order = given_up.json()
        assert (order["status"], order["failure"]["code"]) == ("payment_failed", "DP046")
        assert order["failure"]["message"] == "payment given up"
        assert (order["payment"]["status"], order["payment"]["client_action"]) == (
            "void_requested", None,
        )  # fmt: skip
    await ann.post(f"{held}/payment", json={"payment_token": "tok_good"})
    (request,) = await shop.settle(await shop.advance(), APPROVED)
    assert request["request"]["token"] == "tok_good"
    await shop.settle([request], APPROVED)
    order = (await ann.get(held)).json()
    assert (order["status"], order["failure"], order["refunds"]) == ("fulfilled", None, [])
    problem(await ann.delete(f"{held}/payment"), 409, "DP033")


async def test_others_do_not_pay(client: Client, held: str, problem: Problem) -> None:
    """Neither customers whose order it isn't, nor visitors; nor does a customer say it is paid."""
    body = {"payment_token": "tok"}
    problem(await client("authenticated", "bob").post(f"{held}/payment", json=body), 404, "DP010")
    problem(await client().post(f"{held}/payment", json=body), 401, "DP030")
    money = {"amount": 20, "reference": "T-1"}
    refused = await client("authenticated", "ann").post(f"{held}/manual-payments", json=money)
    problem(refused, 403, "42501")


async def test_money_by_other_means(
    api: Api, shop: Shop, held: str, run_sagas: RunSagas, problem: Problem
) -> None:
    """Exactly what is due, once per reference; the order goes on."""
    path = f"{held}/manual-payments"
    told = problem(await api.post(path, json={"amount": 19, "reference": "T-1"}), 422, "DP041")
    assert "20" in told["detail"]
    money = {"amount": 20, "reference": "T-1", "reason": "letter"}
    for _ in range(2):
        made = await api.post(path, json=money)
        assert made.status_code == 201, made.text
        assert made.headers["location"] == held
        assert made.json()["payment"]["gateway"] == "manual"
    problem(await api.post(path, json=money | {"reference": "T-2"}), 409, "DP033")
    await run_sagas(None)
    assert (await api.get(held)).json()["status"] == "fulfilled"
    assert await shop.value("select reason from action_log") == "letter"


async def test_how_long_stock_is_held_is_the_shops_to_say(
    api: Api, client: Client, order_body: Body, problem: Problem
) -> None:
    """A customer's pay_by is 403; one that makes no sense, or has no offset, says what is wrong."""
    ann = client("authenticated", "ann")
    refused = await ann.post("/orders", json=order_body((0, 1), pay_by=soon()))
    told = problem(refused, 403, "42501")
    assert "hold" in told["detail"] or "held" in told["detail"]
    gone = await api.post("/orders", json=order_body((0, 1), pay_by=soon(-1)))
    problem(gone, 422, "DP015")
    naive = await api.post("/orders", json=order_body((0, 1), pay_by="2030-01-01T00:00:00"))
    problem(naive, 400)


async def test_errors_speak_of_http(api: Api, held: str, order_body: Body) -> None:
    """No name of a function or a view."""
    plain = await api.post("/orders", json=order_body((0, 1)))
    for path, body in (
        (f"/orders/{plain.json()['id']}/payment", {"payment_token": "t"}),
        (f"/orders/{uuid4()}/payment", {"payment_token": "t"}),
        (f"{held}/manual-payments", {"amount": 20, "reference": "\u200b"}),
    ):
        told = (await api.post(path, json=body)).json()
        text = f"{told['detail']} {told['hint']}"
        assert not any(phrase in text for phrase in PHRASES), text
        assert "p_" not in text
        assert "()" not in text


async def test_a_quote(api: Api, client: Client, order_body: Body, shop: Shop) -> None:
    """The same body as an order's: prices, sums, what fits, and nothing is written."""
    adjustments = [{"kind": "shipping", "label": "Express", "amount": 4.9, "item": 0}]
    body = order_body((0, 3), (1, 6), adjustments=adjustments, reference="W-1", pay_by=soon())
    response = await api.post("/orders/quote", json=body)
    assert response.status_code == 200, response.text
    quote = response.json()
    assert (quote["subtotal"], quote["shipping_total"], quote["total_amount"]) == (90, 4.9, 94.9)
    assert (quote["currency"], quote["fits"]) == ("USD", False)
    (order,) = quote["orders"]
    assert order["warehouse"]["code"] == "W"
    assert [(each["product"]["sku"], each["fits"]) for each in order["items"]] == [
        ("P0", True), ("P1", False),
    ]  # fmt: skip
    assert order["adjustments"][0]["item"] == 0
    ann = client("authenticated", "ann")
    mine = (await ann.post("/orders/quote", json=order_body((0, 1)))).json()
    assert (mine["total_amount"], mine["fits"]) == (10, True)
    assert await shop.rows("select * from orders") == []


async def test_a_quote_is_refused_as_an_order_is(
    api: Api, client: Client, order_body: Body
) -> None:
    """With the same status and code, for visitors too."""
    for who, body in (
        (client(), order_body((0, 1))),
        (api, order_body((0, 101), warehouse_id=None)),
        (api, order_body((0, 1), currency="EUR")),
        (client("authenticated", "ann"), order_body((0, 1), adjustments=[
            {"kind": "fee", "label": "x", "amount": 1}
        ])),
        (api, order_body()),
    ):  # fmt: skip
        answers = [await who.post(path, json=body) for path in ("/orders", "/orders/quote")]
        codes = [(each.status_code, each.json().get("code")) for each in answers]
        assert codes[0] == codes[1]
        assert codes[0][0] >= 400


WAIT = {"Prefer": "wait=5"}


async def answered(api: Api, shop: Shop, body: Any, run: Any, **headers: str) -> httpx.Response:
    """The answer, in time, of an order that is waited for, once a listener works on it."""
    asked = asyncio.create_task(api.post("/orders", json=body, headers=WAIT | headers))
    while not await shop.rows("select id from orders"):  # noqa: ASYNC110 - of another session
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert not asked.done()
    await run()
    async with asyncio.timeout(3):
        return await asked


async def test_who_waits_is_answered_when_the_stock_is_reserved(
    api: Api, shop: Shop, order_body: Body
) -> None:
    """Though the money isn't there yet: as the order is then, with what was heeded."""
    response = await answered(api, shop, order_body((0, 1)), shop.advance)
    assert response.status_code == 201
    assert response.json()["status"] == "payment_processing"
    assert response.headers["preference-applied"] == "wait=5"
    assert response.headers["location"] == f"/orders/{response.json()['id']}"


async def test_who_waits_is_answered_when_the_order_is_held(
    api: Api, shop: Shop, order_body: Body
) -> None:
    """It has come as far as it comes by itself."""
    body = order_body((0, 1), pay_by=soon())
    response = await answered(api, shop, body, shop.advance)
    assert response.json()["status"] == "reserved"


async def test_who_waits_is_answered_when_the_order_is_done(
    api: Api, shop: Shop, order_body: Body
) -> None:
    """One that costs nothing is reserved and fulfilled in one transaction."""
    adjustments = [{"kind": "discount", "label": "gift", "amount": -10}]
    body = order_body((0, 1), adjustments=adjustments)
    response = await answered(api, shop, body, shop.advance)
    assert response.json()["status"] == "fulfilled"


async def test_who_waits_is_answered_when_the_order_is_refused(
    api: Api, shop: Shop, order_body: Body
) -> None:
    """With the reason."""
    response = await answered(api, shop, order_body((1, 6)), shop.advance)
    assert (response.json()["status"], response.json()["failure"]["code"]) == ("cancelled", "DP006")


async def test_who_waits_is_answered_when_the_order_is_stuck(
    api: Api, shop: Shop, order_body: Body
) -> None:
    """Before its stock was reserved, which needs a person."""
    await shop.run(
        "create or replace function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])"
        " returns outcome_group[] language sql return outcome_for_all('stuck', p_saga_ids)"
    )
    response = await answered(api, shop, order_body((0, 1)), shop.advance)
    assert response.json()["status"] == "pending"
    assert response.headers["preference-applied"] == "wait=5"


async def test_who_waits_is_answered_when_the_time_is_over(
    api: Api, order_body: Body, app: Litestar
) -> None:
    """Though nobody works; the order is placed all the same, and no wait is left counted."""
    body = order_body((0, 1))
    response = await api.post("/orders", json=body, headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 201
    assert (response.json()["status"], response.headers["preference-applied"]) == (
        "pending", "wait=1",
    )  # fmt: skip
    assert len(app.state.waits) == 0


async def test_all_orders_of_a_group_are_waited_for(api: Api, shop: Shop, order_body: Body) -> None:
    """One of two that is reserved is not both."""
    other = await shop.value("insert into warehouses (code, name) values ('V', 'V') returning id")
    await shop.receive(shop.products[1], 5, other)

    async def run() -> None:
        await shop.run("select * from advance(500, %s)", [other])
        await asyncio.sleep(0.5)
        assert await shop.statuses() == {"pending": 1, "payment_processing": 1}
        await shop.advance()

    response = await answered(api, shop, order_body((1, 8), warehouse_id=None), run)
    statuses = {each["status"] for each in response.json()["group"]["orders"]}
    assert statuses == {"payment_processing"}


async def test_a_repeat_is_answered_as_the_first_time(
    api: Api, shop: Shop, order_body: Body
) -> None:
    """At once, and to the letter as it was kept: of that a preference changes nothing."""
    body, key = order_body((0, 1)), {"Idempotency-Key": str(uuid4())}
    first = await answered(api, shop, body, shop.advance, **key)
    assert first.json()["status"] == "payment_processing"
    again = await api.post("/orders", json=body, headers=WAIT | key)
    assert again.headers["idempotency-replayed"] == "true"
    assert "preference-applied" not in again.headers
    assert (again.json()["id"], again.json()["status"]) == (first.json()["id"], "pending")
    assert await shop.value("select count(*) from orders") == 1


async def test_where_too_many_wait_nobody_does(
    api: Api, order_body: Body, app: Litestar, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is placed, and told as it was."""
    monkeypatch.setattr(app.state.waits, "_most", 0)
    response = await api.post("/orders", json=order_body((0, 1)), headers=WAIT)
    assert response.status_code == 201
    assert "preference-applied" not in response.headers


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, 0), ("", 0), ("wait=5", 5), ("WAIT = 5", 5), ('wait="7"', 7), ("wait=100", 30),
        ("respond-async, wait=10", 10), ("wait=10; x=1, respond-async", 10), ("wait", 0),
        ("wait=soon", 0), ("wait=-1", 0), ("await=5", 0), ("wait=5s", 0), ("return=minimal", 0),
    ],
)  # fmt: skip
def test_preferences_are_read_as_the_rfc_has_them(said: str | None, seconds: int) -> None:
    """Bounded, and what can't be read is no preference."""
    assert preferred_wait(said) == seconds
