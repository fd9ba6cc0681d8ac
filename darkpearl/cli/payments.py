"""`darkpearl payments`: looks after payments."""

import asyncio
from datetime import UTC, datetime, timedelta

import msgspec
import rich_click as click

from darkpearl import reconcile
from darkpearl.cli.console import out
from darkpearl.cli.where import running
from darkpearl.config import Settings
from darkpearl.gateways.make import make_gateway

RECONCILED_DAYS = 30


@click.group(no_args_is_help=False)
def payments() -> None:
    """Look after payments."""


@payments.command(name="reconcile")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]),
    help=f"Leave older payments alone; in UTC  [default: {RECONCILED_DAYS} days ago]",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 100_000),
    default=5.0,
    show_default=True,
    help="Minutes for which a change is left alone, because calls may be in flight.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_obj
def reconcile_payments(
    settings: Settings, since: datetime | None, grace: float, *, as_json: bool
) -> int:
    """Print every difference between our payments and the gateway's books; exit 1 if any."""
    since = since.replace(tzinfo=UTC) if since else datetime.now(UTC) - timedelta(RECONCILED_DAYS)
    found = asyncio.run(_differences(settings, since, timedelta(minutes=grace)))
    for each in found:
        out.print(msgspec.json.encode(each).decode() if as_json else str(each), markup=False)
    return 1 if found else 0


async def _differences(
    settings: Settings, since: datetime, grace: timedelta
) -> list[reconcile.Difference]:
    gateway = make_gateway(settings)
    try:
        return await reconcile.reconcile(running(settings), gateway, since, grace)
    finally:
        await gateway.close()
