"""`darkpearl gateway`: calls to the world outside held back, and what gateways have told."""

from datetime import datetime

import rich_click as click

from darkpearl.cli import asking, bulk, showing
from darkpearl.cli.asking import Session
from darkpearl.cli.console import out
from darkpearl.cli.statements import Filters, Row
from darkpearl.config import Settings

LONGEST_PAUSE_SECONDS = 86_400
_STEPS = (
    "select t.saga_type, t.step_name, t.paused_until, t.timeout_seconds, t.give_up_seconds"
    " from step_settings as t where exists (select from saga_steps as s"
    " where s.saga_type = t.saga_type and s.step_name = t.step_name and s.on_deadline is null"
    " and num_nonnulls(s.settle_function, s.undo_settle_function) > 0) order by 1, 2"
)
STEP_COLUMNS = ("saga_type", "step_name", "paused_until", "timeout_seconds", "give_up_seconds")
_PAUSED = (
    "select at, actor, reason, detail ->> 'seconds' as seconds from action_log"
    " where action = 'pause_external_steps' order by id desc limit 1"
)
_PAUSE = "select pause_external_steps(%s::numeric, %s)"
_EVENTS = (
    "select gateway, event_id, idempotency_key, disposition, answer, received_at"
    " from gateway_events"
)
EVENT_COLUMNS = ("received_at", "gateway", "event_id", "idempotency_key", "disposition", "answer")
_FIND = (
    "select from gateway_events where gateway = %s and event_id = %s and disposition = 'unmatched'"
)
_ACK = "select e.gateway, e.event_id, e.disposition from ack_gateway_event(%s, %s, %s) as e"
ACK_COLUMNS = ("gateway", "event_id", "disposition")


@click.group(no_args_is_help=False)
def gateway() -> None:
    """Hold calls of gateways back, and look at what they have told."""


@gateway.command()
@showing.as_json
@showing.watch
@click.pass_obj
def status(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """Show the steps that ask somebody outside: paused until when, and by whom."""

    async def one(session: Session) -> list[Row]:
        steps = await session.rows(_STEPS)
        paused = await session.first(_PAUSED)
        by, why = (paused["actor"], paused["reason"]) if paused else (None, None)
        return [
            step
            | {
                "paused_by": by if step["paused_until"] else None,
                "reason": why if step["paused_until"] else None,
            }
            for step in steps
        ]

    async def look() -> list[Row]:
        return await asking.in_each(asking.looking(settings), one)

    showing.show(look, (*STEP_COLUMNS, "paused_by", "reason"), as_json=as_json, watch=watch)


@gateway.command()
@click.argument("seconds", type=click.FloatRange(1, LONGEST_PAUSE_SECONDS))
@showing.reason
@click.pass_obj
def pause(settings: Settings, seconds: float, reason: str) -> None:
    """Hold back all calls to the world outside for SECONDS; a pause may only be prolonged."""
    _pause(settings, seconds, reason)
    out.print(f"calls are held back for {showing.duration(seconds)} at least")


@gateway.command()
@showing.reason
@click.pass_obj
def resume(settings: Settings, reason: str) -> None:
    """End a pause now."""
    _pause(settings, 0, reason)
    out.print("calls go on")


@gateway.command()
@click.option(
    "--disposition",
    type=click.Choice(["applied", "stale", "unmatched", "acknowledged"]),
    default="unmatched",
    show_default=True,
)
@click.option("--gateway", "name", help="That sent them.")
@showing.since
@showing.limit
@showing.as_json
@click.pass_obj
def events(
    settings: Settings,
    disposition: str,
    name: str | None,
    since: datetime | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List what gateways have sent by webhook: what belongs to nothing, or another kind."""
    filters = (
        Filters()
        .add("disposition = %s::disposition", disposition)
        .add("gateway = %s", name)
        .add("received_at >= %s", since)
    )

    look = asking.finding(settings, filters.statement(_EVENTS, "received_at, event_id", limit))
    showing.show(look, EVENT_COLUMNS, as_json=as_json)


@gateway.command()
@click.argument("name", metavar="GATEWAY", required=False)
@click.argument("event_ids", nargs=-1)
@click.option(
    "--before",
    type=showing.MOMENT,
    metavar="TIME",
    callback=showing.in_utc,
    help="Older ones, in UTC.",
)
@showing.reason
@bulk.options
@click.pass_obj
def ack(
    settings: Settings,
    name: str | None,
    event_ids: tuple[str, ...],
    before: datetime | None,
    reason: str,
    choice: bulk.Choice,
) -> int:
    """Acknowledge unmatched events that need nothing more: those named, or all of a gateway's."""
    if not event_ids:
        filters = {"gateway": name, "created_before": before}
        return bulk.run(settings, "ack_gateway_events", filters, reason, choice)

    async def call(session: Session) -> list[Row]:
        rows = []
        for each in event_ids:
            await session.seek(_FIND, name, each)
            rows += await session.rows(_ACK, [name, each, reason])
        return rows

    showing.print_rows(asking.act(settings, call), ACK_COLUMNS, as_json=choice.as_json)
    return 0


def _pause(settings: Settings, seconds: float, reason: str) -> None:
    asking.act_in_each(settings, lambda session: session.rows(_PAUSE, [seconds, reason]))
