"""darkpearl/api/feed.py and webhook_endpoints.py: what happened, and whom it is sent to."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from shop import Shop

from darkpearl.api import feed

Json = dict[str, Any]


async def events(api: httpx.AsyncClient, **parameters: Any) -> Json:
    """An answer of the feed."""
    response = await api.get("/events", params=parameters)
    assert response.status_code == 200, response.text
    document: Json = response.json()
    return document


async def test_the_feed_is_read_in_parts_of_any_size(
    api: httpx.AsyncClient, order_body: Callable[..., Json], run_sagas: Callable[..., Any]
) -> None:
    """From the beginning to the end by `next`, each event once, in the order of their ids."""
    for _ in range(3):
        assert (await api.post("/orders", json=order_body((0, 1)))).status_code == 201
    await run_sagas()
    found: list[Json] = []
    after = 0
    while (part := await events(api, after=after, limit=2))["data"]:
        found += part["data"]
        after = part["next"]
    assert [each["id"] for each in found] == sorted(each["id"] for each in found)
    assert sorted(each["topic"] for each in found) == sorted(
        3 * ["order.placed", "order.paid", "order.fulfilled"]
    )
    assert part["next"] >= found[-1]["id"]


async def test_topics_are_chosen(
    api: httpx.AsyncClient, order_body: Callable[..., Json], run_sagas: Callable[..., Any]
) -> None:
    """Several topics are any of them; the cursor goes past all others."""
    await api.post("/orders", json=order_body((0, 1)))
    await run_sagas()
    chosen = await events(api, topic=["order.paid", "order.placed"])
    assert [each["topic"] for each in chosen["data"]] == ["order.placed", "order.paid"]
    none = await events(api, topic="stock.low")
    assert none["data"] == []
    assert none["next"] >= chosen["next"]


async def test_who_waits_is_told_as_it_happens(
    api: httpx.AsyncClient, order_body: Callable[..., Json]
) -> None:
    """A request that waits is answered by the event, long before its time is over."""
    after = (await events(api))["next"]
    async with asyncio.timeout(10):
        waiting = [asyncio.create_task(events(api, after=after, wait=30)) for _ in range(5)]
        await asyncio.sleep(0)
        placed = (await api.post("/orders", json=order_body((0, 1)))).json()["id"]
        for each in await asyncio.gather(*waiting):
            assert [event["order_id"] for event in each["data"]] == [placed]


async def test_who_waits_in_vain_is_told_so(api: httpx.AsyncClient) -> None:
    """An answer without events comes when the time is over, with where to go on."""
    after = (await events(api))["next"]
    assert await events(api, after=after, wait=0.3) == {"data": [], "next": after}


async def test_requests_that_wait_share_their_looks(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait, the database is asked about as often as for one."""
    looks = 0
    ask = feed.Caller.run

    async def run(self: Any, *statements: Any) -> Any:
        nonlocal looks
        looks += 1
        return await ask(self, *statements)

    monkeypatch.setattr(feed.Caller, "run", run)
    await asyncio.gather(*(events(api, after=0, wait=0.5) for _ in range(60)))
    assert looks < 40


async def test_the_feed_is_for_staff(
    client: Callable[..., httpx.AsyncClient], problem: Callable[..., Json]
) -> None:
    """It tells of everybody's orders: without a token 401, to a customer 403."""
    for path in "/events", "/webhook-endpoints":
        problem(await client().get(path), 401, "DP030")
        problem(await client("authenticated", uuid4()).get(path), 403, "42501")


@pytest.mark.parametrize(
    "query", ["after=-1", "wait=31", "wait=-1", "limit=0", "limit=1001", "topic=order.lost"]
)
async def test_what_is_no_question_is_refused(
    api: httpx.AsyncClient, problem: Callable[..., Json], query: str
) -> None:
    """Each parameter says what it may be."""
    (error,) = problem(await api.get(f"/events?{query}"), 400)["errors"]
    assert error["field"].startswith(query.partition("=")[0])


# Endpoints.


@pytest.fixture
def make(api: httpx.AsyncClient) -> Callable[..., Awaitable[Json]]:
    """Makes an endpoint."""

    async def create(url: str = "https://shop.example/hook", **more: Any) -> Json:
        response = await api.post("/webhook-endpoints", json={"url": url, **more})
        assert response.status_code == 201, response.text
        assert response.headers["Location"] == f"/webhook-endpoints/{response.json()['id']}"
        document: Json = response.json()
        return document

    return create


async def test_a_secret_is_told_once(
    api: httpx.AsyncClient, shop: Shop, make: Callable[..., Awaitable[Json]]
) -> None:
    """By the answer that makes it, or changes it; nothing that is read has it."""
    made = await make(topics=["order.paid"])
    assert made["secret"].startswith("whsec_")
    path = f"/webhook-endpoints/{made['id']}"
    shown = (await api.get(path)).json()
    assert (shown["url"], shown["topics"]) == ("https://shop.example/hook", ["order.paid"])
    assert (shown["is_enabled"], shown["waiting"], shown["given_up"]) == (True, 0, 0)
    assert "secret" not in shown
    assert (await api.get("/webhook-endpoints")).json()["data"] == [shown]
    changed = (await api.post(f"{path}/secret")).json()["secret"]
    assert changed != made["secret"]
    assert await shop.value("select secret from webhook_endpoints") == changed
    log = str(await shop.rows("select * from action_log"))
    assert made["secret"] not in log
    assert changed not in log


async def test_endpoints_are_changed_and_deleted(
    api: httpx.AsyncClient,
    make: Callable[..., Awaitable[Json]],
    problem: Callable[..., Json],
) -> None:
    """What is sent changes, if the version is what was read; what is gone is 404."""
    path = f"/webhook-endpoints/{(await make())['id']}"
    shown = await api.get(path)
    etag = {"If-Match": shown.headers["ETag"]}
    new = {"url": "http://other.example:8080/", "topics": ["stock.low"], "is_enabled": False}
    changed = await api.patch(path, json=new, headers=etag)
    assert {name: changed.json()[name] for name in new} == new
    problem(await api.patch(path, json={"topics": None}, headers=etag), 412, "DP035")
    assert (await api.patch(path, json={"topics": None})).json()["topics"] is None
    assert (await api.patch(path, json={})).json()["url"] == new["url"]
    assert (await api.delete(path)).status_code == 204
    problem(await api.get(path), 404)
    problem(await api.patch(path, json={}), 404)
    problem(await api.delete(path), 404)
    problem(await api.post(f"{path}/secret"), 404, "DP010")
    problem(await api.post(f"{path}/replay", json={"since": "2026-01-01T00:00:00Z"}), 404, "DP010")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://shop.example/",
        "https://",
        "https://user:password@shop.example/",
        "https://shop.example/#part",
        "https://shop.example/ path",
        "https://shop.example:port/",
        "https://shop.example/" + 2000 * "x",
    ],
)
async def test_what_is_no_url_is_refused(
    api: httpx.AsyncClient, problem: Callable[..., Json], url: str
) -> None:
    """An endpoint has an http(s) URL without a login, which every log would show."""
    response = await api.post("/webhook-endpoints", json={"url": url})
    code = "" if response.status_code == 400 else "23514"
    problem(response, 400 if code == "" else 422, code)


async def test_an_id_of_the_clients_is_taken_once(
    api: httpx.AsyncClient, make: Callable[..., Awaitable[Json]], problem: Callable[..., Json]
) -> None:
    """Sent again it is 409: its secret isn't told twice."""
    made = await make(id=(chosen := str(uuid4())))
    assert made["id"] == chosen
    again = await api.post("/webhook-endpoints", json={"url": "https://x.example", "id": chosen})
    problem(again, 409, "23505")


async def test_an_endpoint_is_told_again_from_a_moment_on(
    api: httpx.AsyncClient,
    shop: Shop,
    make: Callable[..., Awaitable[Json]],
    order_body: Callable[..., Json],
) -> None:
    """Its place goes back to before the first event since; never forward."""
    await api.post("/orders", json=order_body((0, 1)))
    await shop.turn_clock(3600)
    first = (await api.post("/orders", json=order_body((0, 1)))).json()
    made = await make()
    path = f"/webhook-endpoints/{made['id']}"
    place = (await api.get(path)).json()["position"]
    again = await api.post(f"{path}/replay", json={"since": first["created_at"]})
    event = await shop.value("select min(id) from feed where order_id = %s", UUID(first["id"]))
    assert again.json()["position"] == event - 1 < place
    later = await api.post(f"{path}/replay", json={"since": "2999-01-01T00:00:00Z"})
    assert later.json()["position"] == event - 1
