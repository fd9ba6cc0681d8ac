"""`darkpearl doctor` and `restore-check`: what is wrong, and how it is mended."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import rich_click as click
from rich.text import Text

from darkpearl import doctor as checks
from darkpearl import embedded
from darkpearl.cells.directory import Cell, address_of
from darkpearl.cli import asking, where
from darkpearl.cli.console import fail, out
from darkpearl.cli.showing import STYLES
from darkpearl.config import Settings
from darkpearl.doctor.check import CHECK_SECONDS, DEEP_SECONDS, Check
from darkpearl.doctor.restore import BOOKS_DAYS, SECONDS, SESSION
from darkpearl.gateways.make import make_gateway

STATES = ("fail", "warn", "ok")
WIDTH = max(
    len(checks.name_of(each))
    for each in (*checks.CHECKS, *checks.CELLS, *checks.DEEP, *checks.AFTER_RESTORE)
)


Stages = Sequence[tuple[Sequence[Check], float]]
"""Checks that are made together, and how long each of them may take."""


def _shared(*those: Check) -> Callable[[Any], Any]:
    """The options that choose among checks, and how they are told."""
    names = click.Choice([checks.name_of(each) for each in those])

    def decorate(command: Any) -> Any:
        for option in (
            click.option("--json", "as_json", is_flag=True, help="One JSON object per line."),
            click.option("--quiet", is_flag=True, help="Leave out what is well."),
            click.option(
                "--only", "names", type=names, multiple=True, metavar="CHECK",
                help="Make this check alone; may be given again.",
            ),
        ):  # fmt: skip
            command = option(command)
        return command

    return decorate


@click.command()
@_shared(*checks.CHECKS, *checks.CELLS, *checks.DEEP)
@click.option("--deep", is_flag=True, help="Compare the tables with a database made for it, too.")
@click.pass_obj
def doctor(
    settings: Settings, names: tuple[str, ...], *, deep: bool, quiet: bool, as_json: bool
) -> int:
    """Ask a running system what is wrong with it, and say how each trouble is mended.

    A line for each check: ok, warn or fail. Exit 0 when all is well, 1 when a line says otherwise,
    2 when the database can't be asked. Of several cells each is asked, after its name.
    """
    cells = asking.all_cells(settings, CHECK_SECONDS)
    first, *others = (*checks.CHECKS, *(checks.CELLS if cells else ()))
    wanted = [first, *(each for each in others if not names or checks.name_of(each) in names)]
    thorough = [each for each in checks.DEEP if deep or checks.name_of(each) in names]
    stages = ((wanted, CHECK_SECONDS), (thorough, DEEP_SECONDS))
    return _told(settings, stages, asking.only(cells), quiet=quiet, as_json=as_json)


@click.command()
@_shared(*checks.AFTER_RESTORE)
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]),
    help="Read the gateway's books from then on; in UTC"
    f"  [default: {BOOKS_DAYS} days before the last order]",
)
@click.pass_obj
def restore_check(
    settings: Settings,
    names: tuple[str, ...],
    since: datetime | None,
    *,
    quiet: bool,
    as_json: bool,
) -> int:
    """Ask a restored database whether listeners may start on it. Changes nothing.

    As the login that migrates, after `db after-restore` and before anything else is started. A
    line for each check, and exit codes, as of the doctor. Everything is audited, and the gateway's
    books are compared: it takes as long as that.
    """
    first, *others = checks.AFTER_RESTORE
    wanted = [first, *(each for each in others if not names or checks.name_of(each) in names)]
    asked = {"session": SESSION, "since": since and since.replace(tzinfo=UTC)}
    return _told(settings, ((wanted, SECONDS),), [], quiet=quiet, as_json=as_json, **asked)


def _told(
    settings: Settings,
    stages: Stages,
    cells: list[Cell],
    *,
    quiet: bool,
    as_json: bool,
    **asked: Any,
) -> int:
    """Make checks, in each of several cells, and tell of them; the exit code."""
    try:
        patient = _patient(settings, **asked)
    except embedded.EmbeddedError as error:
        return fail(error, 2)
    findings: list[checks.Finding] = []
    places: Sequence[Cell | None] = cells or [None]
    for cell in places:
        each = patient if cell is None else _in_cell(patient, cell)
        name = cell.name if cell else ""
        findings += asyncio.run(_examined(each, stages, name, quiet=quiet, as_json=as_json))
    if not cells and findings[0].state == "fail":
        return fail("the database can't be asked, so nothing else was", 2)
    if not as_json:
        told = [f"{sum(each.state == state for each in findings)} {state}" for state in STATES]
        out.print(", ".join(told), markup=False)
    return 0 if {each.state for each in findings} == {"ok"} else 1


def _patient(settings: Settings, **asked: Any) -> checks.Patient:
    api, listener = where.logins(settings)
    return checks.Patient(
        url=where.running(settings),
        listener_url=listener,
        api_url=api,
        make_gateway=lambda: make_gateway(settings),
        has_webhook_secret=bool(settings.webhook_secret),
        in_production=settings.environment == "production",
        **asked,
    )


def _in_cell(patient: checks.Patient, cell: Cell) -> checks.Patient:
    """The same questions for another cell, which is reached by the same logins."""
    return replace(
        patient,
        cell=cell.number,
        url=address_of(patient.url, cell.url),
        listener_url=address_of(patient.listener_url, cell.url),
        api_url=address_of(patient.api_url, cell.url),
    )


async def _examined(
    patient: checks.Patient, stages: Stages, cell: str, *, quiet: bool, as_json: bool
) -> list[checks.Finding]:
    """Make the checks and print each as soon as it is made."""
    found: list[checks.Finding] = []
    for some, seconds in stages:
        if found and found[0].state == "fail":
            break
        async for each in checks.examine(patient, some, seconds=seconds):
            found.append(each)
            if not (quiet and each.state == "ok"):
                _print(each, cell, as_json=as_json)
    return found


def _print(finding: checks.Finding, cell: str, *, as_json: bool) -> None:
    if as_json:
        line = ({"cell": cell} if cell else {}) | msgspec.structs.asdict(finding)
        out.print(msgspec.json.encode(line).decode(), markup=False)
        return
    said = finding.says + (f"  -> {finding.mend}" if finding.mend else "")
    state = (f"{finding.state:4}", STYLES[finding.state])
    of_cell = f"  {cell}" if cell else ""
    out.print(Text.assemble(state, f"{of_cell}  {finding.check:{WIDTH}}  {said}"))
