"""`darkpearl webhooks`: the service that sends them, and whom they are sent to."""

import asyncio
from datetime import datetime
from typing import Any, get_args
from uuid import UUID

import rich_click as click

from darkpearl import serving
from darkpearl.cli import asking, showing, where
from darkpearl.cli.asking import Session
from darkpearl.cli.console import out
from darkpearl.cli.statements import Row, Statement
from darkpearl.config import Settings
from darkpearl.models.feed import Topic
from darkpearl.webhooks.endpoints import HOME

_LISTED = (
    "select id, url, topics::text[], is_enabled, off_because, failing_since, last_error, waiting,"
    " given_up, position, created_at, updated_at from webhook_overview"
)
COLUMNS = (
    *("id", "url", "topics", "is_enabled", "off_because", "failing_since", "waiting", "given_up"),
    "last_error",
)
_RETRIES = (
    "select event_id, subject, attempts, last_error, first_failed_at, next_attempt_at, given_up_at"
    " from webhook_retries where endpoint_id = %s order by event_id limit %s"
)
RETRY_COLUMNS = ("event_id", "subject", "attempts", "last_error", "next_attempt_at", "given_up_at")
_FIND = "select from webhook_endpoints where id = %s"
_ADD = "select id, secret from create_webhook_endpoint(%s, %s::feed_topic[])"
_REMOVE = "delete from webhook_endpoints where id = %s returning id, url"
_ENABLE = "update webhook_endpoints set is_enabled = %s where id = %s returning id, url, is_enabled"
_REPLAY = (
    "select w.id, replay_webhooks(w.id, %s) as position from webhook_endpoints as w where w.id = %s"
)
_ROTATE = "select %s::uuid as id, rotate_webhook_secret(%s) as secret"

endpoint = click.argument("endpoint", type=click.UUID)


@click.group(invoke_without_command=True)
@click.pass_context
def webhooks(context: click.Context) -> None:
    """Send webhooks, on a database that is up; a second one waits to take over.

    With a command: see to whom they are sent.
    """
    if context.invoked_subcommand:
        return
    _, login = where.logins(context.obj)
    asyncio.run(serving.serve([serving.webhooks_service(context.obj, login)]))


@webhooks.command(name="list")
@showing.as_json
@showing.watch
@click.pass_obj
def list_endpoints(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """List the endpoints: which are on, which fail, and why."""
    look = asking.finding(settings, Statement(_LISTED, "created_at, id"))
    showing.show(look, COLUMNS, as_json=as_json, watch=watch)


@webhooks.command(name="show")
@endpoint
@showing.limit
@showing.as_json
@click.pass_obj
def show_endpoint(settings: Settings, endpoint: UUID, limit: int, *, as_json: bool) -> None:
    """Show an endpoint, and what did not come through to it."""

    async def look() -> tuple[Row, list[Row]]:
        async with asking.looking(settings) as session:
            query = _LISTED + " where id = %s"
            await session.seek(_FIND, endpoint, hint=HOME)
            found = await session.one(f"there is no webhook endpoint {endpoint}", query, endpoint)
            return found, await session.rows(_RETRIES, [endpoint, limit])

    found, retries = asyncio.run(look())
    if as_json:
        showing.print_rows([found | {"retries": retries}], (), as_json=True)
        return
    showing.print_page(showing.details(found, list(found)))
    if retries:
        out.print()
        showing.print_page(showing.table(retries, RETRY_COLUMNS))


@webhooks.command()
@click.argument("url")
@click.option(
    "--topic", "topics", type=click.Choice(get_args(Topic)), multiple=True,
    help="What it is told; may be given again  [default: everything]",
)  # fmt: skip
@showing.as_json
@click.pass_obj
def add(settings: Settings, url: str, topics: tuple[str, ...], *, as_json: bool) -> None:
    """Have webhooks sent to URL; prints the secret that signs them, which is told only here."""
    rows = _act(settings, None, _ADD, url, list(topics) or None)
    showing.print_rows(rows, ("id", "secret"), as_json=as_json)


@webhooks.command()
@endpoint
@showing.yes
@click.pass_obj
def remove(settings: Settings, endpoint: UUID, *, yes: bool) -> None:
    """Send no more webhooks to an endpoint, and forget what it was not told."""
    if not yes:
        click.confirm(
            f"Remove {endpoint}, and what is still to be sent to it?", abort=True, err=True
        )
    (row,) = _of(endpoint, _act(settings, endpoint, _REMOVE, endpoint))
    out.print(f"removed {row['url']}", markup=False)


@webhooks.command()
@endpoint
@click.pass_obj
def enable(settings: Settings, endpoint: UUID) -> None:
    """Switch an endpoint on; what it was not told is tried again, for a day.

    With several cells it is switched on in all of them.
    """
    row, *_ = _act_in_each(settings, endpoint, _ENABLE, True, endpoint)  # noqa: FBT003 - a value
    out.print(f"{row['url']} is on", markup=False)


@webhooks.command()
@endpoint
@click.pass_obj
def disable(settings: Settings, endpoint: UUID) -> None:
    """Switch an endpoint off; it is told later what happens meanwhile."""
    (row,) = _of(endpoint, _act(settings, endpoint, _ENABLE, False, endpoint))  # noqa: FBT003 - a value
    out.print(f"{row['url']} is off", markup=False)


@webhooks.command()
@endpoint
@click.option(
    "--from", "moment", required=True, type=showing.MOMENT, metavar="TIME", callback=showing.in_utc,
    help="The first moment that is told again, in UTC.",
)  # fmt: skip
@showing.as_json
@click.pass_obj
def replay(settings: Settings, endpoint: UUID, moment: datetime, *, as_json: bool) -> None:
    """Tell an endpoint again what has happened since a moment, under the same ids.

    With several cells each tells it again.
    """
    rows = _act_in_each(settings, endpoint, _REPLAY, moment, endpoint)
    showing.print_rows(rows, ("id", "position"), as_json=as_json)


@webhooks.command()
@endpoint
@showing.as_json
@click.pass_obj
def rotate(settings: Settings, endpoint: UUID, *, as_json: bool) -> None:
    """Give an endpoint another secret, from its next webhook on; it is told only here."""
    rows = _act(settings, endpoint, _ROTATE, endpoint, endpoint)
    showing.print_rows(rows, ("id", "secret"), as_json=as_json)


def _act(settings: Settings, endpoint: UUID | None, query: str, *values: Any) -> list[Row]:
    """What a statement does at home, or in the cell that alone has the endpoint."""

    async def call(session: Session) -> list[Row]:
        if endpoint:
            await session.seek(_FIND, endpoint, hint=HOME)
        else:
            await session.go_to(HOME)
        return await session.rows(query, values)

    return asking.act(settings, call)


def _act_in_each(settings: Settings, endpoint: UUID, query: str, *values: Any) -> list[Row]:
    """What a statement does in every cell that has an endpoint: how it goes is each one's own."""
    _of(endpoint, _act(settings, endpoint, _FIND, endpoint))
    return asking.act_in_each(settings, lambda session: session.rows(query, values))


def _of(endpoint: UUID, rows: list[Row]) -> list[Row]:
    """The rows.

    Raises:
        asking.Refusal: there are none.
    """
    if not rows:
        raise asking.Refusal(f"there is no webhook endpoint {endpoint}")
    return rows
