"""action_log: what people do by hand is written down, with a reason, and stays written."""

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from shop import APPROVED, Shop


async def refused(shop: Shop, query: str, *parameters: Any) -> str | None:
    """The SQLSTATE with which a query is refused."""
    with pytest.raises(psycopg.Error) as error:
        await shop.rows(query, *parameters)
    return error.value.sqlstate


async def noted(shop: Shop) -> list[tuple[Any, ...]]:
    """Actions, subjects and reasons of action_log in order."""
    rows = await shop.rows("select action, subject, reason from action_log order by id")
    return [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("reason", [None, "", " \n"])
async def test_a_reason_is_needed(shop: Shop, reason: str | None) -> None:
    """Pausing and acknowledging without a reason is refused, and nothing is done."""
    await shop.told("none:of_ours", APPROVED, "evt_1")
    acknowledge = "select ack_gateway_event('mock', 'evt_1', %s)"
    assert await refused(shop, "select pause_external_steps(60, %s)", reason) == "DP015"
    assert await refused(shop, acknowledge, reason) == "DP015"
    assert await noted(shop) == []
    health = await shop.row("select * from engine_health")
    assert health["external_steps_paused_until"] is None
    assert health["unmatched_gateway_events"] == 1


async def test_pauses_are_noted(shop: Shop) -> None:
    """Who holds calls back, for how long and why; also their end."""
    await shop.run("select pause_external_steps(60, 'maintenance')")
    await shop.run("select pause_external_steps(0, 'it is over')")
    assert await noted(shop) == [
        ("pause_external_steps", "external steps", "maintenance"),
        ("pause_external_steps", "external steps", "it is over"),
    ]
    seconds = "select detail ->> 'seconds' from action_log order by id"
    assert await shop.values(seconds) == ["60", "0"]


async def test_changes_of_the_plans_numbers_are_noted(shop: Shop) -> None:
    """An update of step_settings leaves what was and what is; one that changes nothing doesn't."""
    update = "update step_settings set give_up_seconds = %s where step_name = 'process_payment'"
    async with shop.acting_as("service_role"):
        await shop.run(update, 9)
        await shop.run(update, 9)
    (row,) = await shop.rows(
        "select action, detail #>> '{to,give_up_seconds}' as after, actor = session_user as ours"
        " from action_log where subject = 'order_fulfilment process_payment'"
    )
    assert row == {"action": "update step_settings", "after": "9", "ours": True}


async def test_an_unmatched_event_is_acknowledged(shop: Shop) -> None:
    """It is counted no longer, and says by whom and why; twice is refused, and so is another's."""
    await shop.told("none:of_ours", APPROVED, "evt_1")
    call = "select disposition::text from ack_gateway_event('mock', %s, 'of the other shop')"
    async with shop.acting_as("service_role"):
        assert await shop.value(call, "evt_1") == "acknowledged"
    assert await shop.value("select unmatched_gateway_events from engine_health") == 0
    assert await noted(shop) == [("ack_gateway_event", "mock evt_1", "of the other shop")]
    assert await shop.told("none:of_ours", APPROVED, "evt_1") == "duplicate"
    assert await refused(shop, call, "evt_1") == "DP015"
    assert await refused(shop, call, "evt_2") == "DP010"


async def test_an_acknowledgement_is_of_one_event(shop: Shop) -> None:
    """Neither the gateway's other events nor another gateway's of that name have been looked at."""
    for gateway, event in (("mock", "evt_1"), ("mock", "evt_2"), ("other", "evt_1")):
        await shop.run(
            "select record_gateway_event(%s, %s, 'none:of_ours', %s)",
            gateway,
            event,
            Jsonb(APPROVED),
        )
    async with shop.acting_as("service_role"):
        await shop.run("select ack_gateway_event('mock', 'evt_1', 'of the other shop')")
    assert await shop.values(
        "select gateway || ' ' || event_id from gateway_events where disposition = 'unmatched'"
        " order by 1"
    ) == ["mock evt_2", "other evt_1"]


@pytest.mark.parametrize(
    "change", ["update action_log set actor = 'x'", "delete from action_log", "truncate action_log"]
)
async def test_the_log_is_append_only(shop: Shop, change: str) -> None:
    """What was noted stays noted, for a superuser too."""
    await shop.run("select pause_external_steps(0, 'a row')")
    assert await refused(shop, change) == "DP005"
