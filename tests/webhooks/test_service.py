"""darkpearl/webhooks/: what is sent, to receivers that do as they like."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from shop import Shop

Json = dict[str, Any]
Receivers = Callable[..., Awaitable[Any]]
Orders = Callable[..., Awaitable[list[Any]]]
Until = Callable[..., Awaitable[None]]
DAY = 86400


async def fed(shop: Shop) -> list[int]:
    """The ids of all that happened."""
    return await shop.values("select id from feed order by id")


def arrived(receiver: Any, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many different events came through."""

    async def condition() -> bool:
        return len(set(receiver.ids)) >= count

    return condition


def found(shop: Shop, condition: str) -> Callable[[], Awaitable[bool]]:
    """Whether there is an endpoint of which a condition holds."""

    async def condition_holds() -> bool:
        return bool(await shop.values(f"select id from webhook_overview where {condition}"))

    return condition_holds


def by_order(receiver: Any) -> dict[str, list[int]]:
    """What came through, by order, each event where it came first."""
    found: dict[str, list[int]] = {}
    for each in receiver.events:
        seen = found.setdefault(each["data"]["subject"], [])
        if each["data"]["id"] not in seen:
            seen.append(each["data"]["id"])
    return found


async def test_what_happens_is_sent_signed_and_in_order(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """Each event once, of all topics or of those that were chosen; nothing is left to be tried."""
    every, paid = await receivers(), await receivers(topics="{order.paid}")
    async with sending():
        placed = await orders(5)
        await until(arrived(every, 15))
        await until(arrived(paid, 5))
    ids = await fed(shop)
    assert sorted(every.ids) == ids
    assert all(each == sorted(each) for each in by_order(every).values())
    assert {each["type"] for each in paid.events} == {"order.paid"}
    assert {each["data"]["order_id"] for each in paid.events} == {str(each) for each in placed}
    row = await shop.row("select * from feed order by id limit 1")
    first = next(each for each in every.events if each["data"]["id"] == row["id"])
    assert first["type"] == first["data"]["topic"] == "order.placed"
    assert first["timestamp"] == first["data"]["created_at"]
    assert await shop.value("select count(*) from webhook_retries") == 0
    assert await shop.values("select position from webhook_overview") == [ids[-1], ids[-1]]


async def test_what_fails_is_tried_again_in_the_order_of_its_order(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """An event that is answered with 500 holds up those of its order, and no other's."""
    is_mended = False

    async def answer(event: Json) -> int:
        return 204 if is_mended or event["data"]["order_number"] != number else 500

    receiver = await receivers(answer)
    number = (await shop.value("select coalesce(max(order_number), 0) from orders")) + 2
    async with sending():
        await orders(3)
        await until(arrived(receiver, 6))

        async def all_wait() -> bool:
            return bool(await shop.value("select count(*) = 3 from webhook_retries"))

        await until(all_wait)
        waiting = await shop.rows(
            "select event_id, attempts from webhook_retries order by event_id"
        )
        assert [row["attempts"] >= 1 for row in waiting] == [True, False, False]
        assert set(receiver.ids).isdisjoint(row["event_id"] for row in waiting)
        is_mended = True
        await shop.turn_clock(60)
        await until(arrived(receiver, 9))
    assert receiver.ids[-3:] == [row["event_id"] for row in waiting]
    assert await shop.values("select waiting from webhook_overview") == [0]


async def test_a_receiver_that_dies_misses_nothing(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """Connections that are refused or cut are tries that failed; back again, it is told all."""
    receiver = await receivers()
    async with sending():
        await orders(2)
        await until(arrived(receiver, 6))
        await receiver.stop()

        async def hang_up(_: Json) -> bytes:
            return b""

        receiver.answer = hang_up
        await orders(2)

        async def failing() -> bool:
            return bool(
                await shop.values("select id from webhook_overview where failing_since < now()")
            )

        await until(found(shop, "failing_since is not null"))
        receiver.answer = None
        await receiver.start()
        await shop.turn_clock(3600)
        await until(arrived(receiver, 12))
    assert sorted(set(receiver.ids)) == await fed(shop)
    assert await shop.values("select failing_since from webhook_overview") == [None]


async def test_a_hundred_slow_endpoints_hold_up_no_quick_one(
    receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """While each of them has yet to answer the first event, the quick one has all."""
    over = asyncio.Event()

    async def never(_: Json) -> int:
        await over.wait()
        return 204

    slow = [await receivers(never) for _ in range(100)]
    quick = await receivers()
    async with sending(timeout_seconds=60):
        await orders(10)
        await until(arrived(quick, 30))
        assert not any(each.events for each in slow)
        over.set()


async def test_a_receiver_that_takes_too_long_has_failed(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """Its answer is waited for so long and no longer."""
    over = asyncio.Event()

    async def never(_: Json) -> int:
        await over.wait()
        return 204

    await receivers(never)
    async with sending(timeout_seconds=0.2):
        await orders()

        async def failed() -> bool:
            return "no answer within 0.2 s" in await shop.values(
                "select last_error from webhook_overview"
            )

        await until(failed)
        over.set()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            "it answered 307, a redirect, which is not followed",
        ),
        (b"HTTP/1.1 500 X\r\ncontent-length: 3\r\n\r\nbad", "it answered 500"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
    ],
    ids=["redirect", "error", "nonsense"],
)
async def test_what_is_no_success_is_a_failure(
    shop: Shop,
    receivers: Receivers,
    sending: Any,
    orders: Orders,
    until: Until,
    answer: bytes,
    error: str,
) -> None:
    """Nothing but 2xx counts; a redirect is followed nowhere."""

    async def say(_: Json) -> bytes:
        return answer

    await receivers(say)
    async with sending():
        await orders()

        async def failed() -> bool:
            return any(
                (each or "").startswith(error)
                for each in await shop.values("select last_error from webhook_retries")
            )

        await until(failed)


async def test_one_that_is_gone_is_switched_off(
    shop: Shop,
    receivers: Receivers,
    sending: Any,
    orders: Orders,
    until: Until,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """410 is for good: it is sent nothing more, and log and view say why. Nothing is lost by it."""
    status = 410

    async def answer(_: Json) -> int:
        return status

    receiver = await receivers(answer)

    async with sending():
        await orders()
        await until(found(shop, "not is_enabled"))
        assert await shop.values("select off_because from webhook_overview") == [
            "it answered 410 Gone"
        ]
        assert "are switched off: it answered 410 Gone" in caplog.text
        tried = list(receiver.tried)
        await orders()
        status = 204
        assert receiver.tried == tried
        async with shop.acting_as("service_role"):
            await shop.run("update webhook_endpoints set is_enabled = true")
        await until(arrived(receiver, 6))
    assert sorted(set(receiver.ids)) == await fed(shop)


async def test_one_that_fails_for_a_day_is_switched_off(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """It is listed, and goes on where it stopped when somebody switches it on."""
    status = 503

    async def answer(_: Json) -> int:
        return status

    receiver = await receivers(answer)

    async def failing() -> bool:
        return bool(
            await shop.values("select id from webhook_overview where failing_since < now()")
        )

    async def is_off() -> bool:
        return bool(
            await shop.values("select id from webhook_overview where off_because like 'nothing%'")
        )

    async with sending():
        await orders()
        await until(found(shop, "failing_since is not null"))
        await shop.turn_clock(DAY + 60)
        await until(found(shop, "off_because like 'nothing %%'"))
        status = 204
        async with shop.acting_as("service_role"):
            await shop.run("update webhook_endpoints set is_enabled = true")
        await until(arrived(receiver, 3))
    assert sorted(set(receiver.ids)) == await fed(shop)
    assert receiver.ids == sorted(receiver.ids)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"])
async def test_private_addresses_are_refused(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until, host: str
) -> None:
    """By the address, whatever name leads to it: nobody is connected to."""
    receiver = await receivers()
    url = receiver.url.replace("127.0.0.1", host)
    await shop.run("update webhook_endpoints set url = %s", url)
    async with sending(to_private=False):
        await orders()

        async def refused() -> bool:
            return any(
                "not a public address" in (each or "")
                for each in await shop.values("select last_error from webhook_retries")
            )

        await until(refused)
    assert receiver.tried == []


async def test_a_name_is_sent_to_where_it_leads(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """The request names the host that the URL has, at the address that was looked up."""
    receiver = await receivers()
    url = receiver.url.replace("127.0.0.1", "localhost")
    await shop.run("update webhook_endpoints set url = %s", url)
    async with sending():
        await orders()
        await until(arrived(receiver, 3))


async def test_what_is_replayed_comes_again(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """From a moment on, under the same ids, while the service runs."""
    receiver = await receivers()
    async with sending():
        await orders(2)
        await until(arrived(receiver, 6))
        moment = await shop.value("select created_at from feed order by id offset 3 limit 1")
        again = await shop.values("select id from feed order by id offset 3")
        receiver.events.clear()
        await shop.run("select replay_webhooks(id, %s) from webhook_endpoints", moment)
        await until(arrived(receiver, len(again)))
    assert sorted(receiver.ids) == again


async def test_two_secrets_sign_for_a_day(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """A receiver that has either of them believes what comes, until the day is over.

    The service runs all the while; what it sent before is signed once.
    """
    receiver = await receivers()

    def signed(times: int) -> Callable[[], Awaitable[bool]]:
        async def condition() -> bool:
            await orders()
            await until(arrived(receiver, len(await fed(shop))))
            return bool(receiver.signatures == times)

        return condition

    async with sending():
        await until(signed(1))
        secret = await shop.value("select rotate_webhook_secret(id) from webhook_endpoints")
        await until(signed(2))
        receiver.secret = secret
        await until(signed(2))
        await shop.turn_clock(DAY + 1)
        await until(signed(1))
    assert sorted(set(receiver.ids)) == await fed(shop)


async def test_another_takes_over(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """Of two services one sends; when it has ended, the other goes on where it stopped."""
    receiver = await receivers()
    async with sending():
        async with sending():
            await orders(2)
            await until(arrived(receiver, 6))
        await orders(1)
        await until(arrived(receiver, 9))
    assert sorted(receiver.ids) == await fed(shop)


async def test_a_lost_connection_is_made_anew(
    shop: Shop, receivers: Receivers, sending: Any, orders: Orders, until: Until
) -> None:
    """A session that is ended by the server costs nothing but a moment."""
    receiver = await receivers()
    async with sending():
        await orders()
        await until(arrived(receiver, 3))
        await shop.run(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name = 'darkpearl webhooks' and datname = current_database()"
        )
        await orders()
        await until(arrived(receiver, 6))
    assert sorted(set(receiver.ids)) == await fed(shop)
