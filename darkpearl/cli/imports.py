"""`darkpearl import` and `darkpearl export`: files in CSV, in and out."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import rich_click as click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from darkpearl import imports
from darkpearl.cli.console import errors, out
from darkpearl.cli.where import running
from darkpearl.config import Settings
from darkpearl.csvfile import CsvError

CHANGED = {
    "products": "products new or changed",
    "inventory": "shelves new or changed",
    "movements": "lines moved stock",
    "orders": "orders placed",
}

kinds = click.argument("kind", type=click.Choice(tuple(imports.KINDS)))


@click.command(name="import")
@kinds
@click.argument("file")
@click.option("--skip-bad", is_flag=True, help="Leave bad lines out, and import the rest.")
@click.pass_obj
def import_file(settings: Settings, kind: str, file: str, *, skip_bad: bool) -> int:
    """Import FILE, or standard input where it is -: CSV whose first line names the columns.

    All of it or nothing: every bad line is named, and the exit code is 1 if there is one.
    """
    with _opened(file) as (stream, name), _shown(stream) as lines:
        try:
            result = asyncio.run(
                imports.import_lines(
                    running(settings),
                    kind,
                    lines,
                    skip_bad=skip_bad,
                    tell=lambda line, problem: errors.print(
                        f"{name}:{line}: {problem}", markup=False
                    ),
                )
            )
        except CsvError as error:
            raise click.UsageError(f"{name}: {error}") from error
    left_out = f", {result.bad} bad left out" if skip_bad else f", {result.bad} bad: nothing done"
    out.print(
        f"{result.lines} lines{left_out if result.bad else ''}; {result.changed} {CHANGED[kind]}"
    )
    return 1 if result.bad and not skip_bad else 0


@click.command(name="export")
@kinds
@click.argument("file", default="-")
@click.pass_obj
def export_file(settings: Settings, kind: str, file: str) -> None:
    """Export to FILE, or to standard output: CSV that an import takes, and then changes nothing."""

    async def run(stream: BinaryIO) -> None:
        async for piece in imports.export(running(settings), kind):
            stream.write(piece)
        stream.flush()

    if file == "-":
        asyncio.run(run(sys.stdout.buffer))
        return
    unfinished = Path(f"{file}.part")
    try:
        with unfinished.open("wb") as stream:
            asyncio.run(run(stream))
        unfinished.replace(file)
    except OSError as error:
        raise click.UsageError(f"{file} can't be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _opened(file: str) -> Iterator[tuple[BinaryIO, str]]:
    if file == "-":
        yield sys.stdin.buffer, "standard input"
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise click.UsageError(f"{file} can't be read: {error.strerror}") from error
    with stream:
        yield stream, file


@contextmanager
def _shown(stream: BinaryIO) -> Iterator[Iterator[bytes]]:
    """The lines of a stream; on a terminal a bar shows how far they have been read."""
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        size = os.fstat(stream.fileno()).st_size  # 0 of a pipe
        yield iter(progress.wrap_file(stream, total=size) if size else stream)
