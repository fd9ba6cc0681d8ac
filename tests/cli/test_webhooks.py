"""`darkpearl webhooks`: whom webhooks are sent to, from a terminal."""

from uuid import uuid4

from shop import Shop
from terminal import Refused, Run


async def test_an_endpoint_lives(shop: Shop, run: Run, refused: Refused) -> None:
    """Added with its secret, shown, switched off and on, told again, given another, removed."""
    url = "https://shop.example/hook"
    (made,) = (await run("webhooks", "add", url, "--topic", "order.paid", "--json")).rows
    endpoint = made["id"]
    assert made["secret"].startswith("whsec_")
    (listed,) = (await run("webhooks", "list", "--json")).rows
    assert (listed["url"], listed["topics"], listed["is_enabled"]) == (url, ["order.paid"], True)
    assert url in (await run("webhooks", "list")).said
    await shop.run(
        "insert into webhook_retries (endpoint_id, event_id, subject, body, attempts, last_error)"
        " values (%s, 0, %s, '{}', 3, '500 from there')",
        *(endpoint, uuid4()),
    )
    assert "500 from there" in (await run("webhooks", "show", endpoint)).said
    (shown,) = (await run("webhooks", "show", endpoint, "--json")).rows
    assert shown["retries"][0]["attempts"] == 3
    assert f"{url} is off" in (await run("webhooks", "disable", endpoint)).said
    assert await shop.values("select is_enabled from webhook_endpoints") == [False]
    assert f"{url} is on" in (await run("webhooks", "enable", endpoint)).said
    assert await shop.values("select is_enabled from webhook_endpoints") == [True]
    (told,) = (await run("webhooks", "replay", endpoint, "--from", "2026-01-01", "--json")).rows
    assert told["id"] == endpoint
    (other,) = (await run("webhooks", "rotate", endpoint, "--json")).rows
    assert other["secret"] != made["secret"]
    assert "removed" in (await run("webhooks", "remove", endpoint, "--yes")).said
    for gone in ("show", "enable", "disable", "rotate"):
        assert await refused("webhooks", gone, endpoint)
    assert await refused("webhooks", "remove", endpoint, "--yes")
    assert await refused("webhooks", "add", "no address")


async def test_a_topic_that_is_none_is_refused(refused: Refused) -> None:
    """By the choices that there are."""
    assert "order.placed" in await refused("webhooks", "add", "https://a.example", "--topic", "x")
