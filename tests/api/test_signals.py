"""Signals over HTTP: staff and systems tell a saga what it waits for."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import httpx
import pytest
from shop import Shop

Api = httpx.AsyncClient
Json = dict[str, Any]
Problem = Callable[..., Json]
RunSagas = Callable[..., Awaitable[None]]

PLAN = """
    create table letters (payload jsonb);
    grant all on letters to darkpearl_owner;
    create function read(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
    returns outcome_group[] language plpgsql set search_path = darkpearl as $$
    begin
        insert into letters select unnest(p_answers);
        return outcome_for_all('done', p_saga_ids);
    end $$;
    select define_plan(
        'errand', step('approval', p_on_deadline => 'stuck', p_settle_function => 'read')
    );
"""


@pytest.fixture
async def errand(shop: Shop) -> str:
    """The path of a saga that waits for its approval."""
    await shop.run(PLAN)
    saga = uuid4()
    await shop.run("select start_saga('errand', %s, %s)", saga, shop.lisbon)
    await shop.advance()
    return f"/sagas/{saga}"


async def test_a_saga_is_signalled(api: Api, shop: Shop, errand: str) -> None:
    """200 with what becomes of it; the saga goes on with the payload, and its history tells."""
    told = await api.post(
        f"{errand}/signals",
        json={"step": "approval", "payload": {"by": "the boss"}, "event_id": "letter 7"},
    )
    assert (told.status_code, told.json()) == (200, {"disposition": "applied"})
    await shop.advance()
    assert await shop.values("select payload from letters") == [{"by": "the boss"}]
    assert (await api.get(errand)).json()["status"] == "completed"
    events = (await api.get(f"{errand}/events")).json()["data"]
    (event,) = [each for each in events if each["event_type"] == "signalled"]
    assert (event["step_name"], event["message"]) == ("approval", "letter 7")


async def test_it_says_what_becomes_of_it(api: Api, shop: Shop, errand: str) -> None:
    """Kept, when the saga isn't there yet; duplicate, when it was told; stale, when it is late."""
    body = {"step": "approval", "event_id": "e1"}
    early = uuid4()
    await shop.run("select start_saga('errand', %s, %s)", early, shop.lisbon)
    assert (await api.post(f"/sagas/{early}/signals", json=body)).json() == {"disposition": "kept"}
    assert (await api.post(f"{errand}/signals", json=body)).json() == {"disposition": "applied"}
    again = await api.post(f"{errand}/signals", json={**body, "payload": {"other": 1}})
    assert (again.status_code, again.json()) == (200, {"disposition": "duplicate"})
    await shop.advance()
    late = await api.post(f"{errand}/signals", json={"step": "approval"})
    assert late.json() == {"disposition": "stale"}
    assert await shop.values("select payload from letters") == [{}, {}]


async def test_without_an_event_id_each_request_is_an_event(
    api: Api, shop: Shop, errand: str
) -> None:
    """Two requests that name no event are two signals."""
    for disposition in ("applied", "kept"):
        told = await api.post(f"{errand}/signals", json={"step": "approval"})
        assert told.json() == {"disposition": disposition}
    assert await shop.value("select count(distinct event_id) from saga_signals") == 2


async def test_under_a_key_it_is_told_once(api: Api, shop: Shop, errand: str) -> None:
    """A repeat under its Idempotency-Key is answered as the first time, and says so."""
    key = {"Idempotency-Key": "k1"}
    first, again = [
        await api.post(f"{errand}/signals", json={"step": "approval"}, headers=key)
        for _ in range(2)
    ]
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json() == {"disposition": "applied"}
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert await shop.value("select count(*) from saga_signals") == 1


async def test_numbers_arrive_as_they_were_written(api: Api, shop: Shop, errand: str) -> None:
    """A payload's numbers lose no digit on their way."""
    written = '{"amount": 12345678901234567.890, "count": 123456789012345678901, "tax": 0.10}'
    told = await api.post(
        f"{errand}/signals",
        content=f'{{"step": "approval", "payload": {written}}}',
        headers={"content-type": "application/json"},
    )
    assert told.status_code == 200, told.text
    assert await shop.value("select payload::text from saga_signals") == await shop.value(
        "select %s::jsonb::text", written
    )


async def test_what_is_no_signal_is_refused(api: Api, errand: str, problem: Problem) -> None:
    """404 for a saga or a step that isn't there, 422 for a payload without end, else 400."""
    body = {"step": "approval"}
    problem(await api.post(f"/sagas/{uuid4()}/signals", json=body), 404, "DP010")
    problem(await api.post(f"{errand}/signals", json={"step": "nothing"}), 404, "DP010")
    large = {**body, "payload": {"text": "x" * 70_000}}
    problem(await api.post(f"{errand}/signals", json=large), 422, "DP015")
    nul = {**body, "payload": {"text": "\0"}}
    problem(await api.post(f"{errand}/signals", json=nul), 400, "22P05")
    for wrong in (
        {},
        {"step": ""},
        {"step": 1},
        {**body, "event_id": ""},
        {**body, "event_id": "x" * 256},
        {**body, "payload": [1]},
        {**body, "payload": "yes"},
        {**body, "event": "e1"},
    ):
        told = problem(await api.post(f"{errand}/signals", json=wrong), 400)
        assert len(told["errors"]) == 1, json.dumps(wrong)
    problem(await api.post("/sagas/1/signals", json=body), 404)


@pytest.mark.parametrize(
    ("role", "status", "code"),
    [(None, 401, "DP030"), ("anon", 403, "42501"), ("authenticated", 403, "42501")],
)
async def test_customers_signal_nothing(
    client: Callable[..., Api], shop: Shop, errand: str, problem: Problem,
    role: str | None, status: int, code: str,
) -> None:  # fmt: skip
    """Signals are for staff."""
    api = client(role, uuid4())
    problem(await api.post(f"{errand}/signals", json={"step": "approval"}), status, code)
    assert await shop.value("select count(*) from saga_signals") == 0
