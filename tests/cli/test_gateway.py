"""`darkpearl gateway`: calls held back, and what belongs to nothing, from a terminal."""

from shop import APPROVED, Shop
from terminal import Refused, Run


async def test_calls_are_held_back_and_go_on(shop: Shop, run: Run, refused: Refused) -> None:
    """A pause and its end, each with a reason; the status says until when and by whom."""
    done = await run("gateway", "pause", 600, "--reason", "maintenance")
    assert (done.code, done.said) == (0, "calls are held back for 10 min at least\n")
    steps = (await run("gateway", "status", "--json")).rows
    assert {row["reason"] for row in steps} == {"maintenance"}
    user = await shop.value("select session_user::text")
    assert {row["paused_by"] for row in steps} == {user}
    assert "process_payment" in (await run("gateway", "status")).said
    assert (await run("gateway", "resume", "--reason", "it is over")).said == "calls go on\n"
    steps = (await run("gateway", "status", "--json")).rows
    assert {(row["paused_until"], row["paused_by"]) for row in steps} == {(None, None)}
    assert await shop.values("select reason from action_log order by id") == [
        "maintenance",
        "it is over",
    ]
    assert "reason" in await refused("gateway", "pause", 600)
    assert "DP" not in await refused("gateway", "pause", 600, "--reason", " ")
    assert await refused("gateway", "pause", 100_000, "--reason", "too long")


async def test_what_belongs_to_nothing_is_seen_and_acknowledged(
    shop: Shop, run: Run, refused: Refused
) -> None:
    """Listed with what it says, by gateway; one by name is acknowledged with a reason."""
    await shop.told("none:of_ours", APPROVED, "evt_1")
    (event,) = (await run("gateway", "events", "--json")).rows
    assert (event["event_id"], event["answer"]["outcome"]) == ("evt_1", "approved")
    assert "evt_1" in (await run("gateway", "events", "--gateway", "mock")).said
    assert (await run("gateway", "events", "--gateway", "other", "--json")).rows == []
    acked = ("gateway", "ack", "mock", "evt_1", "--reason", "of the old shop")
    (done,) = (await run(*acked, "--json")).rows
    assert done["disposition"] == "acknowledged"
    assert (await run("gateway", "events", "--json")).rows == []
    assert await refused("gateway", "ack", "mock", "evt_2", "--reason", "none")
    (kept,) = (await run("gateway", "events", "--disposition", "acknowledged", "--json")).rows
    assert kept["event_id"] == "evt_1"
