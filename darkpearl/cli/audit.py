"""`darkpearl audit`: what contradicts the rules, kept in audit_runs."""

import asyncio
from datetime import UTC, datetime

import msgspec
import rich_click as click

from darkpearl.cells.ends import ENDS, disagreements
from darkpearl.cli import asking
from darkpearl.cli.console import out
from darkpearl.cli.statements import Row
from darkpearl.config import Settings

READER_ROLE = "darkpearl_reader"
_RUN = "select finding_count, findings from run_audit(%s, %s)"


@click.command()
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]),
    help="Look only at what has changed since then; in UTC.",
)
@click.option("--reason", help="Why; kept with what was found.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_obj
def audit(settings: Settings, since: datetime | None, reason: str | None, *, as_json: bool) -> int:
    """Print what contradicts the rules, a hundred at most; exit 1 if anything does.

    Of several cells each is audited, and both ends of each transfer between them are compared.
    """
    when = since and since.replace(tzinfo=UTC)

    async def call(session: asking.Session) -> list[Row]:
        return await session.rows(_RUN, [when, reason])

    async def look(session: asking.Session) -> list[Row]:
        return await session.rows(ENDS)

    async def both() -> tuple[list[Row], list[Row]]:
        audits = await asking.in_each(asking.acting(settings, READER_ROLE), call)
        if not audits or "cell" not in audits[0]:
            return audits, []
        return audits, await asking.in_each(asking.acting(settings, READER_ROLE), look)

    audits, ends = asyncio.run(both())
    if between := disagreements(ends, when, is_whole=not asking.ended(0)):
        audits.append({"findings": between, "finding_count": len(between)})
    count = sum(audit["finding_count"] for audit in audits)
    for audit in audits:
        for each in audit["findings"]:
            told = ({"cell": audit["cell"]} if "cell" in audit else {}) | each
            line = (
                msgspec.json.encode(told).decode()
                if as_json
                else f"{told.get('cell', '')} {each['subject']} {each['finding']}: {each['detail']}"
            )
            out.print(line.lstrip(), markup=False)
    if not as_json:
        out.print(f"{count} findings" if count else "nothing contradicts the rules")
    return 1 if count else 0
