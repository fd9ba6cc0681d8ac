"""How commands show rows: as a table or as JSON, once or again and again."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import rich_click as click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from darkpearl import schema
from darkpearl.cli.console import errors, out
from darkpearl.cli.statements import Row

IN_TRANSIT = "in_transit"
"""Of a shelf, where there are several cells: units on their way there from another."""
WATCH_SECONDS = 2.0
LONGEST_LIST = 10_000
PIPE_COLUMNS = 10_000
STYLES = {
    "stuck": "red", "fail": "red", "declined": "red", "payment_failed": "red",
    "compensating": "yellow", "compensated": "yellow", "cancelled": "yellow", "warn": "yellow",
    "completed": "green", "fulfilled": "green", "captured": "green", "ok": "green",
}  # fmt: skip
"""Colours of words that say how something stands; on a terminal alone."""

Look = Callable[[], Awaitable[list[Row]]]


class OrderName(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """An order by its id or its number, a saga by its id."""

    name = "order"

    def convert(self, value: Any, param: Any, ctx: Any) -> UUID | int:  # noqa: D102 - click's
        if isinstance(value, UUID | int):
            return value
        if value.lstrip("#").isdecimal() and len(value) < 19:  # noqa: PLR2004 - a bigint
            return int(value.lstrip("#"))
        try:
            return UUID(value)
        except ValueError:
            self.fail(f"{value!r} is neither an id nor an order's number", param, ctx)


MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])


def in_utc(_context: object, _parameter: object, given: datetime | None) -> datetime | None:
    """For click: what is given is in UTC."""
    return given and given.replace(tzinfo=UTC)


as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
watch = click.option(
    "--watch",
    type=click.FloatRange(0.1, 3600),
    is_flag=False,
    flag_value=WATCH_SECONDS,
    metavar="[SECONDS]",
    help=f"Show it again and again, every {WATCH_SECONDS:g} seconds or as often as you say.",
)
limit = click.option(
    "--limit",
    type=click.IntRange(1, LONGEST_LIST),
    default=50,
    show_default=True,
    help="Rows at most.",
)
reason = click.option(
    "--reason", required=True, help="Why; others read it later in action_log and the history."
)
yes = click.option("--yes", is_flag=True, help="Don't ask, do it.")
since = click.option(
    "--since", type=MOMENT, metavar="TIME", callback=in_utc, help="Leave out what is older; in UTC."
)


def print_rows(rows: list[Row], columns: Sequence[str], *, as_json: bool) -> None:
    """Rows as a table of some of their columns, or each as one JSON object with all of them."""
    if as_json:
        for row in rows:
            out.print(msgspec.json.encode(row).decode(), markup=False, highlight=False)
        return
    print_page(table(rows, columns))


def print_page(page: RenderableType) -> None:
    """Something drawn: as wide as the terminal, or, into a pipe, a line for each row."""
    before = out.width
    if not out.is_terminal:
        out.width = PIPE_COLUMNS
    out.print(page, soft_wrap=False)
    out.width = before


def show(
    look: Look, columns: Sequence[str], *, as_json: bool = False, watch: float | None = None
) -> list[Row]:
    """Look and print what was found; with `watch` so many seconds later again, until Ctrl-C.

    A database that goes away while it is watched is told, and waited for.
    """
    if watch is None:
        found = asyncio.run(_collected(look))
        print_rows(found, columns, as_json=as_json)
        return found
    asyncio.run(watched(look, lambda rows: table(rows, columns), watch, as_json=as_json))
    return []


async def _collected(look: Look) -> list[Row]:
    return await look()


async def watched(
    look: Look, draw: Callable[[list[Row]], RenderableType], seconds: float, *, as_json: bool
) -> None:
    """Look again and again; on a terminal in one place, else one below the other."""
    rows = await look()  # what is wrong with the question ends it
    if as_json or not out.is_terminal:
        while True:
            if as_json:
                print_rows(rows, (), as_json=True)
            else:
                print_page(draw(rows))
            await asyncio.sleep(seconds)
            rows = await _again(look, rows, lambda said: errors.print(said, markup=False))
    with Live(draw(rows), console=out, auto_refresh=False, screen=True) as live:
        while True:
            live.refresh()
            await asyncio.sleep(seconds)
            said: list[str] = []
            rows = await _again(look, rows, said.append)
            live.update(Group(draw(rows), *[Text(each, "red") for each in said]))


async def _again(look: Look, before: list[Row], tell: Callable[[str], object]) -> list[Row]:
    try:
        return await look()
    except schema.SchemaError as error:
        tell(f"{datetime.now(UTC):%H:%M:%S} {error}")
        return before


def table(rows: list[Row], columns: Sequence[str], title: str | None = None) -> Table:
    """Rows as a table; numbers to the right. What rows of several cells say beside is shown too."""
    if rows and "cell" in rows[0] and "cell" not in columns:
        columns = ("cell", *columns)
    if rows and IN_TRANSIT in rows[0]:
        columns = (*columns, IN_TRANSIT)
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        is_number = any(isinstance(row[name], int | float | Decimal) for row in rows)
        drawn.add_column(
            name.replace("_", " "),
            justify="right" if is_number else "left",
            overflow="fold",
            no_wrap=is_number or any(isinstance(row[name], UUID | datetime) for row in rows),
        )
    for row in rows:
        drawn.add_row(*(styled(row[name]) for name in columns))
    return drawn


def details(row: Row, names: Sequence[str]) -> Table:
    """Some of a row's columns, one below the other; those that say nothing are left out."""
    drawn = Table(box=None, pad_edge=False, show_header=False)
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for name in names:
        if row[name] is not None and row[name] != "":
            drawn.add_row(name.replace("_", " "), styled(row[name]))
    return drawn


def styled(value: Any) -> Text:
    """A value with the colour of its word."""
    said = text(value)
    return Text(said, STYLES.get(said, ""))


def text(value: Any) -> str:
    """A value as people read it."""
    kinds: tuple[tuple[type, Callable[[Any], str]], ...] = (
        (bool, lambda is_so: "yes" if is_so else "no"),
        (datetime, lambda at: f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"),
        (timedelta, lambda time: duration(time.total_seconds())),
        (float, "{:.1f}".format),
        (list, lambda values: ", ".join(map(text, values))),
        (dict, lambda fields: ", ".join(f"{name} {text(each)}" for name, each in fields.items())),
    )
    if value is None:
        return ""
    return next((say(value) for kind, say in kinds if isinstance(value, kind)), str(value))


def duration(seconds: float) -> str:
    """Seconds in the largest unit that there are two of: 90 s, 15 min, 36 h, 12 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s" if seconds < 1 else f"{seconds:.0f} s"
