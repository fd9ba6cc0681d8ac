"""Bulk actions: one call for all that a filter finds, after a look at how much that is.

The database does them, in the background and at a pace; killed in the middle, it goes on.
"""

import asyncio
import functools
import sys
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import rich_click as click

from darkpearl.cli import asking, showing
from darkpearl.cli.asking import Session
from darkpearl.cli.console import out
from darkpearl.cli.statements import Filters, Row, Statement
from darkpearl.config import Settings

PACE = 100
FASTEST = 1000
FUNCTIONS = ("retry_sagas", "skip_steps", "cancel_orders", "resume_sagas", "ack_gateway_events")
_CALL = (
    "select b.batch_id, b.total, b.amounts, b.has_more"
    " from {}(%s::jsonb, %s, p_dry_run => %s, p_pace => %s) as b"
)
_BATCHES = (
    "select id, action, filter, reason, actor, pace_per_second, total, done, failed, left_to_do,"
    " state, created_at, finished_at, stopped_by from batch_overview"
)
BATCH_COLUMNS = (
    *("id", "action", "actor", "reason", "total", "done", "failed", "left_to_do", "state"),
    "created_at",
)
_ITEMS = (
    "select n, saga_id, gateway, event_id, result, error_code, message, ended_at from batch_items"
)
ITEM_COLUMNS = ("n", "saga_id", "event_id", "result", "error_code", "message", "ended_at")
_STOP = "select stop_batch(%s, %s)"
_FIND = "select from batches where id = %s"


class Choice(NamedTuple):
    """How a bulk action is to be made."""

    everything: bool
    pace: int
    dry_run: bool
    yes: bool
    as_json: bool


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a bulk action, handed over as `choice`."""

    @functools.wraps(command)
    def chosen(*given: Any, **named: Any) -> Any:
        choice = Choice(*(named.pop(each) for each in Choice._fields))
        return command(*given, choice=choice, **named)

    for each in (
        showing.as_json,
        showing.yes,
        click.option("--dry-run", is_flag=True, help="Say what it would be, and do nothing."),
        click.option(
            "--pace",
            type=click.IntRange(1, FASTEST),
            default=PACE,
            show_default=True,
            help="In a second at most.",
        ),
        click.option("--all", "everything", is_flag=True, help="Without a filter: all there are."),
    ):
        chosen = each(chosen)
    return chosen


def saga_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """The filters that name sagas, handed over as `filters`."""
    names = (
        *("saga_type", "step", "error_code", "cause", "warehouse", "created_after"),
        "created_before",
    )

    @functools.wraps(command)
    def chosen(*given: Any, **named: Any) -> Any:
        return command(*given, filters={each: named.pop(each) for each in names}, **named)

    moment: dict[str, Any] = {"type": showing.MOMENT, "metavar": "TIME", "callback": showing.in_utc}
    for each in (
        click.option("--before", "created_before", help="Made earlier, in UTC.", **moment),
        click.option("--since", "created_after", help="Made later, in UTC.", **moment),
        click.option("--warehouse", help="By its code or id."),
        click.option("--cause", help="As `sagas causes` tells it."),
        click.option("--error", "error_code", help="SQLSTATE of what went wrong last."),
        click.option("--step", help="The step or undo at which they stand."),
        click.option("--type", "saga_type", help="Such as order_fulfilment or refund."),
    ):
        chosen = each(chosen)
    return chosen


def run(
    settings: Settings,
    function: str,
    filters: dict[str, str | datetime | None],
    reason: str,
    choice: Choice,
) -> int:
    """Say how much a filter finds, ask, and have it done; the exit code.

    Raises:
        click.UsageError: nothing says which, or nobody is there to be asked.
    """
    given = {name: value for name, value in filters.items() if value is not None}
    if not given and not choice.everything:
        raise click.UsageError("say which: by name, by a filter, or --all")
    found = _call(settings, function, given, reason, choice, dry_run=True)
    if not choice.as_json:
        for each in found:
            out.print(_in_cell(each) + _words(each), markup=False)
    total = sum(each["total"] for each in found)
    if choice.dry_run or not total:
        if choice.as_json:
            showing.print_rows(found, (), as_json=True)
        return 0
    if not choice.yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"{total} would be changed; say --yes to do it")
        click.confirm("Go on?", abort=True, err=True)
    some = {each.get("cell") for each in found if each["total"]}
    started = _call(settings, function, given, reason, choice, dry_run=False, cells=some)
    if choice.as_json:
        showing.print_rows(started, (), as_json=True)
        return 0
    for each in started:
        said = f"batch {each['batch_id']}: see darkpearl batches show"
        out.print(_in_cell(each) + said, markup=False)
    return 0


def _call(
    settings: Settings,
    function: str,
    filters: dict[str, Any],
    reason: str,
    choice: Choice,
    *,
    dry_run: bool,
    cells: Collection[str | None] = (),
) -> list[Row]:
    """Its row in each cell; in some, if they are named."""
    if function not in FUNCTIONS:
        raise ValueError(function)
    values = [msgspec.json.encode(filters).decode(), reason, dry_run, choice.pace]
    return asking.act_in_each(
        settings, lambda session: session.rows(_CALL.format(function), values), cells
    )


def _in_cell(row: Row) -> str:
    return f"{row['cell']}: " if "cell" in row else ""


def _words(found: Row) -> str:
    amounts = ", ".join(f"{sum_} {currency}" for currency, sum_ in (found["amounts"] or {}).items())
    more = " or more; the oldest of them first" if found["has_more"] else ""
    return f"{found['total']} found{more}{f', of {amounts}' if amounts else ''}"


@click.group(no_args_is_help=False)
def batches() -> None:
    """See how far bulk actions are, and stop them."""


@batches.command(name="list")
@showing.limit
@showing.as_json
@showing.watch
@click.pass_obj
def list_batches(settings: Settings, limit: int, *, as_json: bool, watch: float | None) -> None:
    """List bulk actions, the newest first."""
    look = asking.finding(settings, Statement(_BATCHES, "created_at desc", limit=limit))
    showing.show(look, BATCH_COLUMNS, as_json=as_json, watch=watch)


@batches.command(name="show")
@click.argument("batch", type=click.UUID)
@click.option("--failed", is_flag=True, help="Only what came to nothing.")
@showing.limit
@showing.as_json
@click.pass_obj
def show_batch(settings: Settings, batch: UUID, limit: int, *, failed: bool, as_json: bool) -> None:
    """Show a bulk action and what became of each of its parts."""
    filters = Filters().add("batch_id = %s", batch)
    if failed:
        filters.add("result = %s", "failed")

    async def look() -> tuple[Row, list[Row]]:
        async with asking.looking(settings) as session:
            query = _BATCHES + " where id = %s"
            await session.seek(_FIND, batch, hint=asking.cell_of(batch))
            found = await session.one(f"there is no batch {batch}", query, batch)
            items = filters.statement(_ITEMS, "n", limit)
            return found, await session.rows(items.query, items.values)

    found, items = asyncio.run(look())
    if as_json:
        showing.print_rows([found | {"items": items}], (), as_json=True)
        return
    showing.print_page(showing.details(found, list(found)))
    out.print()
    showing.print_page(showing.table(items, ITEM_COLUMNS))


@batches.command()
@click.argument("batch", type=click.UUID)
@showing.reason
@click.pass_obj
def stop(settings: Settings, batch: UUID, reason: str) -> None:
    """Stop a bulk action; what it has done stays done."""

    async def call(session: Session) -> list[Row]:
        await session.seek(_FIND, batch, hint=asking.cell_of(batch))
        return await session.rows(_STOP, [batch, reason])

    asking.act(settings, call)
    out.print(f"batch {batch} is stopped", markup=False)
