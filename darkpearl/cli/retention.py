"""`darkpearl retention`: how long things are kept, their export, and their end."""

import asyncio
from datetime import date, datetime
from pathlib import Path

import msgspec
import rich_click as click
from rich.table import Table

from darkpearl import retention as kept
from darkpearl.cli.console import out
from darkpearl.cli.where import running
from darkpearl.config import Settings

MEGABYTE = 1_000_000


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line: what would go.")
@click.pass_context
def retention(context: click.Context, *, as_json: bool) -> None:
    """Say how long things are kept, and what would go now; nothing is removed.

    The numbers are set in SQL: update retention set keep_days = 730 where kind = 'orders'.
    """
    if context.invoked_subcommand:
        return
    rules, due = asyncio.run(kept.look(running(context.obj)))
    if as_json:
        for each in due:
            out.print(msgspec.json.encode(each).decode(), markup=False)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("kind", "kept for", "exported first", "removed so far", "would go now", "MB"):
        table.add_column(name, no_wrap=True)
    for rule in rules:
        of_kind = [each for each in due if each.kind == rule.kind]
        size = sum(each.bytes or 0 for each in of_kind) / MEGABYTE
        table.add_row(
            rule.kind,
            f"{rule.keep_days} days" if rule.keep_days else "ever",
            "yes" if rule.export_first else "",
            str(rule.removed),
            _months(of_kind),
            f"{size:.1f}" if of_kind else "",
        )
    out.print(table)


def _months(due: list[kept.Due]) -> str:
    """How many rows, and of which months."""
    if not due:
        return ""
    first, last = min(each.month for each in due), max(each.month for each in due)
    months = f"{first:%Y-%m}" + (f" to {last:%Y-%m}" if last != first else "")
    return f"{sum(each.row_count for each in due)} of {months}"


@retention.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--kind", "kinds", type=click.Choice(kept.KINDS), multiple=True, help="May be given again."
)
@click.option(
    "--month",
    type=click.DateTime(["%Y-%m"]),
    help="Only this one, exported before or not  [default: all that are too old]",
)
@click.pass_obj
def export(
    settings: Settings, folder: Path, kinds: tuple[str, ...], month: datetime | None
) -> None:
    """Write months that are too old to be kept into FOLDER, as compressed CSV.

    Of every kind that is to be exported first, or of those named. From then on they may go.
    """
    if month and not kinds:
        raise click.UsageError("say of which --kind the month is")
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(_export(settings, folder, kinds, month.date() if month else None))


async def _export(
    settings: Settings, folder: Path, kinds: tuple[str, ...], month: date | None
) -> None:
    async for each in kept.export(running(settings), folder, kinds, month):
        out.print(f"{each.kind} of {each.month:%Y-%m}: {each.row_count}", markup=False)


@retention.command()
@click.pass_obj
def apply(settings: Settings) -> None:
    """Remove what is too old now, as a listener's housekeeping does once a day."""
    removed = asyncio.run(kept.apply(running(settings)))
    for kind, count in removed.items():
        out.print(f"{kind}: {count} removed", markup=False)
    if not removed:
        out.print("everything is kept for ever")
