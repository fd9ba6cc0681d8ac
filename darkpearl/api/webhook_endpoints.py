"""Webhook endpoints: whom the feed is sent to. What gateways send here is in webhooks.py.

With several cells they are made, changed and deleted at home, and each cell sends what happens in
it. How that goes is each cell's own, and so is being switched off.
"""

from typing import Any
from uuid import UUID

import msgspec
from litestar import Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.status_codes import HTTP_200_OK
from msgspec import UNSET

from darkpearl.api import access
from darkpearl.api.access import Caller, Statement
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.problems import refusals
from darkpearl.api.routing import HOME, HOME_ALONE, Routed
from darkpearl.api.versions import UNCHANGED, IfMatch, IfNoneMatch, expect, tagged
from darkpearl.cells.reach import AwayError
from darkpearl.errors import UnavailableError
from darkpearl.models.feed import (
    CreateWebhookEndpoint,
    NewWebhookEndpoint,
    Replay,
    UpdateWebhookEndpoint,
    WebhookEndpoint,
    WebhookSecret,
    WebhooksOfCell,
    written,
)

_UPDATE = "update webhook_endpoints set {} where id = %(row_id)s"
_SWITCH_ON = "update webhook_endpoints set is_enabled = true where id = %(id)s returning id"
_STATES = (
    "select coalesce(json_agg(w), '[]') as states from webhook_overview as w"
    " where w.id = any(%(ids)s::uuid[])"
)
_MAKE = "select * from create_webhook_endpoint(%(url)s, %(topics)s, %(id)s)"


@get("/", summary="List webhook endpoints", responses=refusals(400))
async def list_webhook_endpoints(
    caller: NamedDependency[Caller], listing: NamedDependency[Listing]
) -> JsonResponse[Page[WebhookEndpoint]]:
    """Whom webhooks are sent to, newest first, and how that goes."""
    page = await listing.page(
        WebhookEndpoint, "webhook_overview", Filters(), sorts=("-created_at", "failing_since")
    )
    await _look_elsewhere(caller, page.content.data)
    return page


@get(
    "/{endpoint_id:uuid}",
    summary="Get a webhook endpoint",
    responses=refusals(400, 404) | UNCHANGED,
)
async def get_webhook_endpoint(
    caller: NamedDependency[Caller], endpoint_id: FromPath[UUID], if_none_match: IfNoneMatch = None
) -> JsonResponse[WebhookEndpoint]:
    """One of them."""
    return tagged(await _shown(caller, _get(endpoint_id)), if_none_match)


@post("/", summary="Have webhooks sent", responses=refusals(400, 409, 413, 415, 422))
async def create_webhook_endpoint(
    caller: NamedDependency[Caller], data: JSONBody[CreateWebhookEndpoint]
) -> JsonResponse[NewWebhookEndpoint]:
    """Have a URL told what happens from now on, of some topics or of all.

    The answer has the secret, which is told nowhere else: so it is kept under no Idempotency-Key.
    """
    asked = {"url": data.url, "topics": written(data.topics), "id": data.id}
    made = await caller.get(NewWebhookEndpoint, (_MAKE, asked))
    headers = {"Location": f"/webhook-endpoints/{made.id}", "Cache-Control": "no-store"}
    return JsonResponse(made, headers=headers)


@patch(
    "/{endpoint_id:uuid}",
    summary="Change a webhook endpoint",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def update_webhook_endpoint(
    caller: NamedDependency[Caller],
    endpoint_id: FromPath[UUID],
    data: JSONBody[UpdateWebhookEndpoint],
    if_match: IfMatch = None,
) -> JsonResponse[WebhookEndpoint]:
    """Change what is sent. One that was switched off goes on where it stopped."""
    expected = expect(if_match, "webhook_endpoints", endpoint_id)
    given = msgspec.structs.asdict(data)
    if data.topics is not UNSET:
        given["topics"] = written(data.topics)
    columns = [f"{name} = %({name})s" for name, value in given.items() if value is not UNSET]
    change = (_UPDATE.format(", ".join(columns) or "url = url"), {**given, "row_id": endpoint_id})
    shown = await caller.get(WebhookEndpoint, *expected, change, _get(endpoint_id))
    if data.is_enabled is True and (others := _others(caller)):
        await others.ask_all(
            lambda there: there.run((_SWITCH_ON, {"id": endpoint_id})), _numbers(others)
        )
    await _look_elsewhere(caller, [shown])
    return tagged(shown)


@delete(
    "/{endpoint_id:uuid}", summary="Delete a webhook endpoint", responses=refusals(400, 404, 412)
)
async def delete_webhook_endpoint(
    caller: NamedDependency[Caller], endpoint_id: FromPath[UUID], if_match: IfMatch = None
) -> None:
    """Send it nothing any more, and forget what failed."""
    expected = expect(if_match, "webhook_endpoints", endpoint_id)
    await caller.get(dict, *expected, access.delete("webhook_endpoints", endpoint_id))


@post(
    "/{endpoint_id:uuid}/replay",
    status_code=HTTP_200_OK,
    summary="Send webhooks again",
    responses=refusals(400, 404, 413, 415),
)
async def replay_webhooks(
    caller: NamedDependency[Caller], endpoint_id: FromPath[UUID], data: JSONBody[Replay]
) -> JsonResponse[WebhookEndpoint]:
    """Tell an endpoint again what happened since a moment, under the same ids."""
    again = access.call("replay_webhooks", endpoint_id=endpoint_id, **{"from": data.since})
    if others := _others(caller):
        await _replay_elsewhere(others, endpoint_id, again)
    return JsonResponse(await _shown(caller, again, _get(endpoint_id)))


@post(
    "/{endpoint_id:uuid}/secret",
    status_code=HTTP_200_OK,
    summary="Change the secret",
    responses=refusals(400, 404),
)
async def rotate_webhook_secret(
    caller: NamedDependency[Caller], endpoint_id: FromPath[UUID]
) -> JsonResponse[WebhookSecret]:
    """Sign with another secret from now on. The answer alone tells it.

    The one before signs too for a day; where it was stolen, change it twice.
    """
    query = "select rotate_webhook_secret(%(id)s) as secret"
    made = await caller.get(WebhookSecret, (query, {"id": endpoint_id}))
    return JsonResponse(made, headers={"Cache-Control": "no-store"})


def _get(endpoint_id: UUID) -> Statement:
    return "select * from webhook_overview where id = %(id)s", {"id": endpoint_id}


async def _shown(caller: Caller, *statements: Statement) -> WebhookEndpoint:
    """An endpoint as home has it, and how it goes elsewhere."""
    shown = await caller.get(WebhookEndpoint, *statements)
    await _look_elsewhere(caller, [shown])
    return shown


def _others(caller: Caller) -> Routed | None:
    """The caller, if there are other cells than home for it to ask."""
    return caller if isinstance(caller, Routed) and _numbers(caller) else None


def _numbers(caller: Routed) -> list[int]:
    return [each for each in caller.cells if each != HOME]


async def _look_elsewhere(caller: Caller, endpoints: list[WebhookEndpoint]) -> None:
    """Write down how it goes in the cells other than home."""
    others = _others(caller)
    if others is None or not endpoints:
        return
    ids = [str(each.id) for each in endpoints]

    async def look(there: Caller) -> dict[str, Any]:
        row = await there.run((_STATES, {"ids": ids}))
        return {each["id"]: each for each in row["states"]} if row else {}

    answers = await others.ask_all(look, _numbers(others))
    for endpoint in endpoints:
        endpoint.other_cells = [
            msgspec.convert(
                states[str(endpoint.id)] | {"cell": others.cells[number].name}, WebhooksOfCell
            )
            for number, states in answers.found.items()
            if str(endpoint.id) in states
        ]
        if answers.away:
            endpoint.missing_cells = [each.name for each in answers.away]


async def _replay_elsewhere(others: Routed, endpoint_id: UUID, again: Statement) -> None:
    """Have the other cells tell an endpoint again.

    Raises:
        UnavailableError: not all have: one is away, or hasn't heard of the endpoint yet. Whoever
            asks again has the rest tell again too.
    """

    async def replay(there: Caller) -> bool:
        if await there.find(WebhookEndpoint, _get(endpoint_id)) is None:
            return False
        await there.run(again)
        return True

    answers = await others.ask_all(replay, _numbers(others))
    if answers.away:
        raise AwayError(*answers.away)
    if all(answers.found.values()):
        return
    if await others.find(WebhookEndpoint, _get(endpoint_id)) is not None:
        raise UnavailableError("Some cells haven't heard of the endpoint yet.")


router = Router(
    "/webhook-endpoints",
    route_handlers=[
        list_webhook_endpoints,
        get_webhook_endpoint,
        create_webhook_endpoint,
        update_webhook_endpoint,
        delete_webhook_endpoint,
        replay_webhooks,
        rotate_webhook_secret,
    ],
    opt={"cells": HOME_ALONE},
    tags=["webhook endpoints"],
)
