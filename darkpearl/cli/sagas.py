"""`darkpearl sagas`: where sagas stand, and what a person does about those that need one."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, get_args
from uuid import UUID

import rich_click as click

from darkpearl import schema
from darkpearl.cli import asking, bulk, showing
from darkpearl.cli.asking import Session
from darkpearl.cli.console import fail, out
from darkpearl.cli.showing import OrderName
from darkpearl.cli.statements import Filters, Row, Statement
from darkpearl.config import Settings
from darkpearl.models.sagas import SagaStatus

FOLLOW_SECONDS = 0.5
_LISTED = (
    "select id, saga_type, status, current_step, attempts, last_error_code, last_error, ready_at,"
    " created_at, updated_at, cancel_requested, warehouse_id, plan_version from saga_overview"
)
_STUCK = (
    "select id, order_number, saga_type, current_step, last_error_code, last_error, total_amount,"
    " currency, amount_held, amount_owed, owed_to, stuck_since from stuck_sagas"
)
COLUMNS = ("id", "saga_type", "status", "current_step", "attempts", "last_error", "updated_at")
STUCK_COLUMNS = (
    *("id", "order_number", "current_step", "last_error_code", "last_error", "amount_held"),
    *("currency", "stuck_since"),
)
_ONE = "select * from saga_overview where id = %s"
EVENTS = (
    "select id, created_at, event_type, step_name, attempt, error_code, message, actor,"
    " next_attempt_at, started_at from saga_history where saga_id = %s and id > %s order by id"
)
EVENT_COLUMNS = (
    "created_at",
    "event_type",
    "step_name",
    "attempt",
    "error_code",
    "message",
    "actor",
)
_CAUSES = (
    "select saga_type, step_name, error_code, cause, sagas, amounts, oldest_since, example"
    " from stuck_by_cause"
)
CAUSE_COLUMNS = (
    "saga_type",
    "step_name",
    "error_code",
    "cause",
    "sagas",
    "amounts",
    "oldest_since",
)
_DONE = "select s.id, s.status, s.ready_at from {}(%s, %s) as s"
DONE_COLUMNS = ("id", "status", "ready_at")

Outcome = tuple[list[Row], list[tuple[str, int]]]
"""What was done, and what came to nothing: why, and the exit code for it."""

names = click.argument("sagas", nargs=-1, type=OrderName())
name = click.argument("saga", type=OrderName())


@click.group(no_args_is_help=False)
def sagas() -> None:
    """See where sagas stand, and mend those that are stuck."""


@sagas.command(name="list")
@click.option(
    "--status", "statuses", type=click.Choice(get_args(SagaStatus)), multiple=True,
    help="May be given again.",
)  # fmt: skip
@click.option("--type", "saga_type", help="Such as order_fulfilment or refund.")
@click.option("--step", help="The step or undo at which they stand.")
@click.option("--error", "error_code", help="SQLSTATE of what went wrong last.")
@click.option("--warehouse", help="By its code.")
@showing.since
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def list_sagas(
    settings: Settings,
    statuses: tuple[str, ...],
    saga_type: str | None,
    step: str | None,
    error_code: str | None,
    warehouse: str | None,
    since: datetime | None,
    limit: int,
    *,
    as_json: bool,
    watch: float | None,
) -> None:
    """List sagas, the newest first; of those that are stuck alone, with what is held and owed."""
    stuck = statuses == ("stuck",)
    filters = Filters()
    if not stuck:
        filters.add("status = any(%s::saga_status[])", statuses)
    filters.add("saga_type = %s", saga_type)
    filters.add("current_step = %s", step)
    filters.add("last_error_code = %s", error_code)
    filters.add("warehouse_id = (select w.id from warehouses as w where w.code = %s)", warehouse)
    filters.add("stuck_since >= %s" if stuck else "created_at >= %s", since)
    look = asking.finding(
        settings,
        filters.statement(_STUCK, "stuck_since", limit)
        if stuck
        else filters.statement(_LISTED, "created_at desc, id desc", limit),
    )
    showing.show(look, STUCK_COLUMNS if stuck else COLUMNS, as_json=as_json, watch=watch)


@sagas.command(name="show")
@name
@showing.as_json
@click.pass_obj
def show_saga(settings: Settings, saga: UUID | int, *, as_json: bool) -> None:
    """Show a saga and its history; SAGA is its id, or the number of its order."""

    async def look() -> tuple[Row, list[Row]]:
        async with asking.looking(settings) as session:
            found = await _found(session, saga)
            return found, await session.rows(EVENTS, [found["id"], 0])

    found, events = asyncio.run(look())
    if as_json:
        showing.print_rows([found | {"events": events}], (), as_json=True)
        return
    showing.print_page(showing.details(found, list(found)))
    out.print()
    showing.print_page(showing.table(events, EVENT_COLUMNS))


@sagas.command(name="watch")
@name
@showing.as_json
@click.pass_obj
def watch_saga(settings: Settings, saga: UUID | int, *, as_json: bool) -> int:
    """Print what happens to a saga until it has ended; exit 1 if it got stuck."""
    return asyncio.run(follow(settings, saga, as_json=as_json))


async def follow(settings: Settings, saga: UUID | int, *, as_json: bool) -> int:
    """Print the events of a saga as they come, until it rests; 1 if that is because it is stuck."""
    last = 0
    async with asking.looking(settings) as session:
        while True:
            found = await _found(session, saga)  # before its events: none is missed at the end
            for event in await session.rows(EVENTS, [found["id"], last]):
                last = event["id"]
                if as_json:
                    showing.print_rows([event], (), as_json=True)
                else:
                    words = (showing.text(event[each]) for each in EVENT_COLUMNS)
                    out.print("  ".join(filter(None, words)), markup=False)
            if found["ready_at"] is None:
                return int(found["status"] == "stuck")
            await asyncio.sleep(FOLLOW_SECONDS)


@sagas.command()
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def causes(settings: Settings, limit: int, *, as_json: bool, watch: float | None) -> None:
    """Group the stuck sagas by what they are stuck at and why, the most first."""
    statement = Statement(_CAUSES, "sagas desc, oldest_since", limit=limit)
    look = asking.finding(settings, statement)
    showing.show(look, CAUSE_COLUMNS, as_json=as_json, watch=watch)


def _mending(name: str, one: str, many: str, says: str) -> None:
    """A command that does something to the sagas that are named, or to all that a filter finds."""

    @sagas.command(name=name, help=says)
    @names
    @bulk.saga_filters
    @showing.reason
    @bulk.options
    @click.pass_obj
    def mend(
        settings: Settings,
        sagas: tuple[UUID | int, ...],
        filters: dict[str, Any],
        reason: str,
        choice: bulk.Choice,
    ) -> int:
        if not sagas:
            return bulk.run(settings, many, filters, reason, choice)
        if choice.everything or any(filters.values()):
            raise click.UsageError("name sagas or give a filter, not both")
        done = do_to_each(settings, _DONE.format(one), sagas, reason)
        return tell(done, DONE_COLUMNS, as_json=choice.as_json)


_mending(
    *("retry", "retry_saga", "retry_sagas"),
    "Try stuck sagas again, once the cause is gone: those named, or all that a filter finds.",
)
_mending(
    *("skip", "skip_step", "skip_steps"),
    "Record as done what stuck sagas asked of the gateway, because somebody did it by hand.",
)
_mending(
    *("resume", "resume_saga", "resume_sagas"), "Try sagas at once that wait for their next try."
)


@sagas.command(name="turn-back")
@click.argument("sagas", nargs=-1, required=True, type=OrderName())
@showing.reason
@showing.as_json
@click.pass_obj
def turn_back(
    settings: Settings, sagas: tuple[UUID | int, ...], reason: str, *, as_json: bool
) -> int:
    """Give stuck sagas up: what they have done is undone."""
    done = do_to_each(settings, _DONE.format("turn_back_saga"), sagas, reason)
    return tell(done, DONE_COLUMNS, as_json=as_json)


def do_to_each(settings: Settings, call: str, named: Sequence[UUID | int], reason: str) -> Outcome:
    """Make a call for each, with its id and a reason: the rows, and what came to nothing.

    One that is refused, or of a cell that is away, keeps no other from it.
    """

    async def run() -> Outcome:
        done, failures = [], []
        for each in named:
            is_there = False
            try:
                async with asking.acting(settings) as session:
                    is_there = True
                    done += await session.rows(call, [await asking.order_id(session, each), reason])
            except asking.Refusal as error:
                failures.append((error.message, error.exit_code))
            except schema.SchemaError as error:
                failures.append((str(error), 1))
                if not is_there:  # nor will it be for the next
                    break
        return done, failures

    return asyncio.run(run())


def tell(outcome: Outcome, columns: Sequence[str], *, as_json: bool) -> int:
    """Print what was done, and each failure as a line; the exit code."""
    done, failures = outcome
    if done:
        showing.print_rows(done, columns, as_json=as_json)
    return max((fail(said, code) for said, code in failures), default=0)


async def _found(session: Session, saga: UUID | int) -> Row:
    return await session.one(f"there is no saga {saga}", _ONE, await asking.order_id(session, saga))
