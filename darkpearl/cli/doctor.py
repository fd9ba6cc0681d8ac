"""`darkpearl doctor`: what is wrong, and how it is mended."""

import asyncio
from collections.abc import Sequence

import msgspec
import rich_click as click
from rich.text import Text

from darkpearl import doctor as checks
from darkpearl import embedded
from darkpearl.cli import where
from darkpearl.cli.console import fail, out
from darkpearl.cli.showing import STYLES
from darkpearl.config import Settings
from darkpearl.doctor.check import CHECK_SECONDS, DEEP_SECONDS
from darkpearl.gateways.make import make_gateway

NAMES = [checks.name_of(each) for each in (*checks.CHECKS, *checks.DEEP)]
STATES = ("fail", "warn", "ok")
WIDTH = max(map(len, NAMES))


@click.command()
@click.option(
    "--only", "names", type=click.Choice(NAMES), multiple=True, metavar="CHECK",
    help="Make this check alone; may be given again.",
)  # fmt: skip
@click.option("--deep", is_flag=True, help="Compare the tables with a database made for it, too.")
@click.option("--quiet", is_flag=True, help="Leave out what is well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_obj
def doctor(
    settings: Settings, names: tuple[str, ...], *, deep: bool, quiet: bool, as_json: bool
) -> int:
    """Ask a running system what is wrong with it, and say how each trouble is mended.

    A line for each check: ok, warn or fail. Exit 0 when all is well, 1 when a line says otherwise,
    2 when the database can't be asked.
    """
    try:
        patient = _patient(settings)
    except embedded.EmbeddedError as error:
        return fail(error, 2)
    findings = asyncio.run(_examined(patient, names, deep=deep, quiet=quiet, as_json=as_json))
    if findings[0].state == "fail":
        return fail("the database can't be asked, so nothing else was", 2)
    if not as_json:
        told = [f"{sum(each.state == state for each in findings)} {state}" for state in STATES]
        out.print(", ".join(told), markup=False)
    return 0 if {each.state for each in findings} == {"ok"} else 1


def _patient(settings: Settings) -> checks.Patient:
    api, listener = where.logins(settings)
    return checks.Patient(
        url=where.running(settings),
        listener_url=listener,
        api_url=api,
        make_gateway=lambda: make_gateway(settings),
        has_webhook_secret=bool(settings.webhook_secret),
        in_production=settings.environment == "production",
    )


async def _examined(
    patient: checks.Patient, names: Sequence[str], *, deep: bool, quiet: bool, as_json: bool
) -> list[checks.Finding]:
    """Make the checks and print each as soon as it is made."""
    first, *others = checks.CHECKS
    wanted = [first, *(each for each in others if not names or checks.name_of(each) in names)]
    thorough = [each for each in checks.DEEP if deep or checks.name_of(each) in names]
    found: list[checks.Finding] = []
    for some, seconds in ((wanted, CHECK_SECONDS), (thorough, DEEP_SECONDS)):
        if found and found[0].state == "fail":
            break
        async for each in checks.examine(patient, some, seconds=seconds):
            found.append(each)
            if not (quiet and each.state == "ok"):
                _print(each, as_json=as_json)
    return found


def _print(finding: checks.Finding, *, as_json: bool) -> None:
    if as_json:
        out.print(msgspec.json.encode(finding).decode(), markup=False)
        return
    said = finding.says + (f"  -> {finding.mend}" if finding.mend else "")
    state = (f"{finding.state:4}", STYLES[finding.state])
    out.print(Text.assemble(state, f"  {finding.check:{WIDTH}}  {said}"))
