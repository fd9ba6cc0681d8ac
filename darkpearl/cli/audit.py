"""`darkpearl audit`: what contradicts the rules, kept in audit_runs."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
import rich_click as click

from darkpearl import database, schema
from darkpearl.cli.console import out
from darkpearl.cli.where import running
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
    """Print what contradicts the rules, a hundred at most; exit 1 if anything does."""
    when = since and since.replace(tzinfo=UTC)
    count, findings = asyncio.run(_run(running(settings), when, reason))
    for each in findings:
        line = (
            msgspec.json.encode(each).decode()
            if as_json
            else f"{each['subject']} {each['finding']}: {each['detail']}"
        )
        out.print(line, markup=False)
    if not as_json:
        out.print(f"{count} findings" if count else "nothing contradicts the rules")
    return 1 if count else 0


async def _run(
    url: str, since: datetime | None, reason: str | None
) -> tuple[int, list[dict[str, Any]]]:
    options = "-c search_path=darkpearl"
    reader = database.with_options(database.as_role(url, READER_ROLE), options)
    async with schema.connect(reader) as connection:
        ((count, findings),) = await (await connection.execute(_RUN, [since, reason])).fetchall()
    return count, findings
