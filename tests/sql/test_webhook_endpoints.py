"""routines/74_webhooks.sql: how far each endpoint has come, and what becomes of what failed."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from shop import Row, Shop

DAY = 86400


class Endpoint:
    """An endpoint, and the service that sends to it."""

    def __init__(self, shop: Shop, endpoint_id: UUID) -> None:
        self.shop = shop
        self.id = endpoint_id
        self.place = 0
        self.next = 0
        self.version: int | None = None
        self.counts = True

    async def row(self) -> Row:
        """What staff see of it."""
        return await self.shop.row("select * from webhook_overview where id = %s", self.id)

    async def read(self, limit: int = 100) -> list[Row]:
        """What is new."""
        look = await self.shop.row("select * from look_for_horizon()")
        async with self.shop.acting_as("darkpearl_listener"):
            part = await self.shop.row(
                "select * from next_webhooks(%s, %s, %s)", self.id, look["horizon"], limit
            )
        self.place, self.next = part["place"], part["next"]
        self.version = (await self.row())["version"]
        return list(part["events"])

    async def due(self) -> list[Row]:
        """What failed and is to be tried now."""
        self.version = (await self.row())["version"]
        async with self.shop.acting_as("darkpearl_listener"):
            return list(await self.shop.value("select due_webhooks(%s, 100)", self.id))

    async def settle(
        self,
        failed: list[Row],
        error: str | None = "it answered 500",
        came: list[Row] | None = None,
        *,
        new: bool = True,
        is_gone: bool = False,
    ) -> str | None:
        """Some failed, some that had failed came through."""
        results = [
            {"event_id": e["event_id"], "subject": e["subject"], "body": e["body"], "error": error}
            for e in failed
        ]
        async with self.shop.acting_as("darkpearl_listener"):
            settled = await self.shop.row(
                "select * from settle_webhooks(%s, %s, %s, %s, %s, %s, %s)",
                self.id,
                self.version,
                self.next if new else None,
                json.dumps(results),
                [e["event_id"] for e in came or []],
                bool(came),
                is_gone,
            )
        self.counts = settled["counts"]
        because: str | None = settled["off_because"]
        return because

    async def fail(self) -> list[Row]:
        """All that is due fails again."""
        due = await self.due()
        await self.settle(due, new=False)
        return due


@pytest.fixture
async def endpoint(shop: Shop) -> Endpoint:
    """Of all topics."""
    return Endpoint(shop, await make(shop))


async def make(shop: Shop, url: str = "https://shop.example/", topics: Any = None) -> UUID:
    """A new endpoint."""
    async with shop.acting_as("service_role"):
        return UUID(
            str(await shop.value("select id from create_webhook_endpoint(%s, %s)", url, topics))
        )


async def place(shop: Shop, count: int = 1) -> list[UUID]:
    """New orders of one product."""
    product = await shop.product(on_hand=1000)
    return [await shop.order((product, 1)) for _ in range(count)]


async def test_an_endpoint_begins_with_what_comes(shop: Shop) -> None:
    """What happened before it was made is not for it."""
    await place(shop)
    endpoint = Endpoint(shop, await make(shop))
    assert await endpoint.read() == []
    (order,) = await place(shop)
    (event,) = await endpoint.read()
    told = json.loads(event["body"])
    assert (told["type"], told["data"]["order_id"]) == ("order.placed", str(order))
    assert event["subject"] == str(order)


async def test_what_came_through_leaves_nothing_behind(shop: Shop, endpoint: Endpoint) -> None:
    """The place moves on, and that is all."""
    await place(shop, 3)
    events = await endpoint.read(2)
    assert await endpoint.settle([], came=events) is None
    assert await shop.value("select count(*) from webhook_retries") == 0
    assert len(await endpoint.read()) == 1


async def test_a_failure_waits_longer_each_time(shop: Shop, endpoint: Endpoint) -> None:
    """Seconds at first, hours in the end, no two endpoints alike."""
    await place(shop)
    await endpoint.settle(await endpoint.read())
    waits = []
    for _ in range(8):
        assert await endpoint.due() == []
        waits.append(
            await shop.value(
                "select extract(epoch from next_attempt_at - clock())::float from webhook_retries"
            )
        )
        await shop.turn_clock(waits[-1] + 1)
        assert len(await endpoint.fail()) == 1
    assert 3 < waits[0] < 7
    assert waits == sorted(waits)
    assert waits[-1] < 5 * 3600


async def test_what_follows_of_a_subject_waits(shop: Shop, endpoint: Endpoint) -> None:
    """Events of an order that failed are told so when they are read, and come one by one."""
    (order,) = await place(shop)
    await endpoint.settle(await endpoint.read())
    await shop.cancel(order)
    await shop.advance()
    (other,) = await place(shop)
    events = await endpoint.read()
    assert [(e["subject"], e["waits"]) for e in events] == [(str(order), True), (str(other), False)]
    await endpoint.settle(events[:1], error=None, came=events[1:])
    await shop.turn_clock(60)
    (first,) = await endpoint.due()
    await endpoint.settle([], came=[first], new=False)
    (second,) = await endpoint.due()
    assert second["event_id"] == events[0]["event_id"]
    await endpoint.settle([], came=[second], new=False)
    assert (await endpoint.row())["waiting"] == 0


async def test_after_a_day_a_webhook_is_given_up(shop: Shop, endpoint: Endpoint) -> None:
    """While others come through it is counted and tried no more; what waited for it is next."""
    (order,) = await place(shop)
    await endpoint.settle(await endpoint.read())
    await shop.cancel(order)
    await shop.advance()
    await endpoint.settle(await endpoint.read(), error=None)
    await shop.turn_clock(DAY + 60)
    await place(shop)
    await endpoint.settle([], came=await endpoint.read())
    assert len(await endpoint.fail()) == 1
    row = await endpoint.row()
    assert (row["is_enabled"], row["waiting"], row["given_up"]) == (True, 1, 1)
    assert len(await endpoint.due()) == 1
    await shop.turn_clock(31 * DAY)
    await endpoint.settle([], came=await endpoint.due(), new=False)
    assert (await endpoint.row())["given_up"] == 0


async def test_an_edit_begins_anew(shop: Shop, endpoint: Endpoint) -> None:
    """What failed and what was given up has another day, each subject in its order."""
    await place(shop)
    await endpoint.settle(await endpoint.read())
    await shop.turn_clock(DAY + 60)
    because = await endpoint.settle(await endpoint.due(), new=False)
    assert because is not None
    assert because.startswith("nothing came through since")
    row = await endpoint.row()
    assert (row["is_enabled"], row["off_because"], row["given_up"]) == (False, because, 1)
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.rows("select * from webhooks_to_do()") == []
    async with shop.acting_as("service_role"):
        await shop.run("update webhook_endpoints set is_enabled = true")
    row = await endpoint.row()
    assert (row["off_because"], row["failing_since"], row["waiting"]) == (None, None, 1)
    assert len(await endpoint.due()) == 1
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.values("select is_due from webhooks_to_do()") == [True]


async def test_one_that_is_gone_is_off_at_once(shop: Shop, endpoint: Endpoint) -> None:
    """Nothing new is told to it, and what failed is kept for who switches it on again."""
    await place(shop)
    assert await endpoint.settle(await endpoint.read(), is_gone=True) == "it answered 410 Gone"
    await place(shop)
    row = await endpoint.row()
    assert (row["is_enabled"], row["waiting"]) == (False, 1)
    assert await endpoint.read() == []
    async with shop.acting_as("service_role"):
        await shop.run("update webhook_endpoints set is_enabled = true")
    assert len(await endpoint.read()) == 1


async def test_a_thousand_failures_are_enough(shop: Shop, endpoint: Endpoint) -> None:
    """An endpoint that has so many is told nothing new until some have come through."""
    await place(shop)
    await shop.run(
        "insert into webhook_retries (endpoint_id, event_id, subject, body, attempts)"
        " select %s, -n, new_id(), '{}', 1 from generate_series(1, 1000) as n",
        endpoint.id,
    )
    assert await endpoint.read() == []
    assert endpoint.next == endpoint.place
    await endpoint.due()
    await endpoint.settle([], came=[{"event_id": -1}], new=False)
    assert len(await endpoint.read()) == 1


async def test_a_replay_beats_what_is_under_way(shop: Shop, endpoint: Endpoint) -> None:
    """What was read before it counts for nothing, and what failed is sent again in its turn."""
    await place(shop, 3)
    first = await endpoint.read(1)
    await endpoint.settle(first)
    events = await endpoint.read()
    async with shop.acting_as("service_role"):
        await shop.run("select replay_webhooks(%s, '-infinity')", endpoint.id)
    await endpoint.settle(events[:1], came=events[1:])
    assert not endpoint.counts
    assert (await endpoint.row())["waiting"] == 0
    events = await endpoint.read()
    assert len(events) == 3
    async with shop.acting_as("service_role"):
        await shop.run("select replay_webhooks(%s, '-infinity')", endpoint.id)
    await endpoint.settle([], came=events)
    assert len(await endpoint.read()) == 3


async def health(shop: Shop, role: str = "darkpearl_reader") -> Row:
    """Webhooks in one row."""
    async with shop.acting_as(role):
        return await shop.row("select * from webhook_health")


async def test_health_tells_how_far_behind_webhooks_are(shop: Shop, endpoint: Endpoint) -> None:
    """By the oldest that is to be sent, new or failed; one that is off counts for nothing else."""
    assert await health(shop) == {
        "endpoints": 1,
        "endpoints_failing": 0,
        "endpoints_off": 0,
        "webhooks_waiting": 0,
        "webhooks_given_up": 0,
        "oldest_undelivered_seconds": 0,
    }
    await place(shop)
    await shop.turn_clock(100)
    assert 100 <= (await health(shop))["oldest_undelivered_seconds"] < 110
    await endpoint.settle(await endpoint.read())
    await place(shop)
    await shop.turn_clock(100)
    await endpoint.settle([], came=await endpoint.read())
    told = await health(shop, "service_role")
    assert (told["endpoints_failing"], told["webhooks_waiting"]) == (0, 1)
    assert 200 <= told["oldest_undelivered_seconds"] < 220, "the one that failed first"
    await endpoint.settle([], came=await endpoint.due(), new=False)
    assert (await health(shop))["oldest_undelivered_seconds"] == 0
    await place(shop)
    await endpoint.settle(await endpoint.read(), is_gone=True)
    told = await health(shop)
    assert (told["endpoints"], told["endpoints_off"], told["webhooks_waiting"]) == (0, 1, 0)
    assert told["oldest_undelivered_seconds"] == 0
    async with shop.acting_as("darkpearl_listener"):
        assert await shop.row("select * from webhook_state()") == told


async def test_an_unknown_endpoint_is_no_endpoint(shop: Shop) -> None:
    """Functions that take one refuse another, and a moment that is none."""
    for call in "rotate_webhook_secret(%s)", "replay_webhooks(%s, now())":
        with shop.refused("DP010"):
            await shop.run(f"select {call}", uuid4())
    with shop.refused("DP015"):
        await shop.run("select replay_webhooks(%s, null)", uuid4())


async def test_a_thousand_endpoints_are_enough(shop: Shop) -> None:
    """One more is refused."""
    await shop.run(
        "insert into webhook_endpoints (url, secret, position)"
        " select 'https://a.example', 'x', 0 from generate_series(1, 1000)"
    )
    with shop.refused("DP043"):
        await make(shop)


async def test_nobody_reads_a_secret(shop: Shop, endpoint: Endpoint) -> None:
    """Neither staff nor reports, but by what makes it; 32 bytes, each its own."""
    for role in "service_role", "darkpearl_reader", "darkpearl_app":
        async with shop.acting_as(role):
            with shop.refused("42501"):
                await shop.run("select secret from webhook_endpoints")
    async with shop.acting_as("service_role"):
        secrets = {
            await shop.value("select rotate_webhook_secret(%s)", endpoint.id) for _ in range(3)
        }
    assert len(secrets) == 3
    assert all(len(each) == len("whsec_") + 44 for each in secrets)


async def test_a_secret_that_was_changed_signs_for_a_day(shop: Shop, endpoint: Endpoint) -> None:
    """The last two sign, the new one first; changed twice, the first is gone at once."""

    async def secrets() -> Any:
        async with shop.acting_as("darkpearl_listener"):
            return await shop.value("select secrets from webhooks_to_do()")

    (first,) = await secrets()
    rotate = "select rotate_webhook_secret(%s)"
    second = await shop.value(rotate, endpoint.id)
    assert await secrets() == [second, first]
    await shop.turn_clock(DAY - 60)
    assert await secrets() == [second, first]
    await shop.turn_clock(120)
    assert await secrets() == [second]
    third = await shop.value(rotate, endpoint.id)
    assert await secrets() == [third, second]
    fourth = await shop.value(rotate, endpoint.id)
    assert await secrets() == [fourth, third]


async def test_who_did_what_is_written_down(shop: Shop, endpoint: Endpoint) -> None:
    """Making, editing, another secret, a replay: in action_log, without the secret."""
    async with shop.acting_as("service_role"):
        await shop.run("update webhook_endpoints set url = 'https://b.example/'")
        await shop.run("select rotate_webhook_secret(%s)", endpoint.id)
        await shop.run("select replay_webhooks(%s, now())", endpoint.id)
    assert await shop.values(
        "select action from action_log where subject = %s order by id", str(endpoint.id)
    ) == [
        "create_webhook_endpoint",
        "update webhook_endpoints",
        "rotate_webhook_secret",
        "replay_webhooks",
    ]


async def test_what_is_deleted_is_forgotten(shop: Shop, endpoint: Endpoint) -> None:
    """An endpoint takes what failed with it."""
    await place(shop)
    await endpoint.settle(await endpoint.read())
    async with shop.acting_as("service_role"):
        await shop.run("delete from webhook_endpoints where id = %s", endpoint.id)
    assert await shop.value("select count(*) from webhook_retries") == 0
