"""`darkpearl listeners` and `darkpearl top`: who works, on what, and how fast."""

import asyncio
import contextlib
from uuid import UUID

import rich_click as click
from rich.console import Group, RenderableType
from rich.text import Text

from darkpearl.cli import asking, showing
from darkpearl.cli.asking import Session
from darkpearl.cli.console import out
from darkpearl.cli.statements import Row, Statement
from darkpearl.config import Settings

_LISTENERS = Statement(
    "select listener_id, host, process_id, version, gateway, breaker, activity, activity_since,"
    " started_at, last_seen_at, seen_seconds_ago, is_alive from listener_activity",
    "is_alive desc, started_at",
)
LISTENER_COLUMNS = (
    *("host", "process_id", "version", "gateway", "breaker", "activity", "seen_seconds_ago"),
    *("is_alive", "started_at"),
)
_DISMISS = "select id from dismiss_listener(%s, %s)"
_QUEUES = (
    "select saga_type, step_name, ready, waiting, backing_off, held_by_pause, stuck,"
    " oldest_unfinished_seconds from queue_health order by saga_type, step_name"
)
QUEUE_COLUMNS = (
    *("saga_type", "step_name", "ready", "waiting", "backing_off", "held_by_pause", "stuck"),
    "oldest_unfinished_seconds",
)
_STEPS = (
    "select step_name, event_type, events, per_second, mean_seconds * 1000 as mean_ms,"
    " p50_seconds * 1000 as p50_ms, p99_seconds * 1000 as p99_ms"
    " from step_statistics(clock() - interval '5 minutes')"
    " where step_name is not null order by events desc limit 15"
)
STEP_COLUMNS = ("step_name", "event_type", "events", "per_second", "mean_ms", "p50_ms", "p99_ms")
_HEALTH = "select * from engine_health"
HEALTH = (
    *("ready", "oldest_ready_seconds", "waiting", "backing_off", "stuck", "held_by_pause"),
    *("unmatched_gateway_events", "external_steps_paused_until"),
)
_BATCHES = (
    "select action, total, done, failed, actor, reason from batch_overview"
    " where state = 'running' order by created_at"
)
BATCH_COLUMNS = ("action", "total", "done", "failed", "actor", "reason")


@click.group(invoke_without_command=True)
@showing.as_json
@showing.watch
@click.pass_context
def listeners(context: click.Context, *, as_json: bool, watch: float | None) -> None:
    """List the listeners: which live, what they do, and how their gateway answers."""
    if context.invoked_subcommand is None:
        look = asking.finding(context.obj, _LISTENERS)
        showing.show(look, LISTENER_COLUMNS, as_json=as_json, watch=watch)


@listeners.command()
@click.argument("listener", type=click.UUID)
@showing.reason
@click.pass_obj
def dismiss(settings: Settings, listener: UUID, reason: str) -> None:
    """Take a listener off the list that is silent and won't come back, once it is seen to."""

    async def call(session: Session) -> list[Row]:
        await session.seek("select from listeners where id = %s", listener)
        return await session.rows(_DISMISS, [listener, reason])

    asking.act(settings, call)
    out.print(f"listener {listener} is dismissed", markup=False)


@click.command()
@click.option("--once", is_flag=True, help="Show it once.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 3600),
    default=showing.WATCH_SECONDS,
    show_default=True,
    help="Seconds between two looks.",
)
@showing.as_json
@click.pass_obj
def top(settings: Settings, every: float, *, once: bool, as_json: bool) -> None:
    """Show the queue, the listeners, the steps of five minutes and bulk actions, live."""

    async def one(session: Session) -> list[Row]:
        return [
            {
                "health": await session.first(_HEALTH),
                "queues": await session.rows(_QUEUES),
                "listeners": await session.rows(_LISTENERS.query),
                "steps": await session.rows(_STEPS),
                "batches": await session.rows(_BATCHES),
            }
        ]

    async def look() -> list[Row]:
        return await asking.in_each(asking.looking(settings), one)

    async def run() -> None:
        if not once:
            await showing.watched(look, draw, every, as_json=as_json)
        elif as_json:
            showing.print_rows(await look(), (), as_json=True)
        else:
            showing.print_page(draw(await look()))

    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(run())


def draw(rows: list[Row]) -> RenderableType:
    """One look, cell after cell, as tables below each other; those without rows are left out."""
    return Group(*[part for found in rows for part in _parts(found)])


def _parts(found: Row) -> list[RenderableType]:
    parts: list[RenderableType] = [showing.table([found["health"]], HEALTH, found.get("cell"))]
    for title, columns in (
        ("queues", QUEUE_COLUMNS),
        ("listeners", LISTENER_COLUMNS),
        ("steps", STEP_COLUMNS),
        ("batches", BATCH_COLUMNS),
    ):
        if found[title]:
            parts += [Text(), showing.table(found[title], columns, title)]
    for each in found["health"]["blocked_by"]:
        parts += [Text(f"blocked by {each}", "red")]
    return parts
