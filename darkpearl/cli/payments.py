"""`darkpearl payments`: looks after payments."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import rich_click as click

from darkpearl import reconcile, schema
from darkpearl.cells.directory import Cell, address_of
from darkpearl.cli import asking
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
    """Print every difference between our payments and the gateway's books; exit 1 if any.

    Of several cells each compares its own payments.
    """
    since = since.replace(tzinfo=UTC) if since else datetime.now(UTC) - timedelta(RECONCILED_DAYS)
    here, differs = running(settings), False
    cells: Sequence[Cell | None] = asking.only(
        asking.all_cells(settings, schema.CONNECT_SECONDS)
    ) or [None]
    for cell in cells:
        url, name = (address_of(here, cell.url), cell.name) if cell else (here, "")
        try:
            found = asyncio.run(_differences(settings, url, since, timedelta(minutes=grace)))
        except schema.SchemaError as error:
            if cell is None:
                raise
            asking.tell_away(name, error)
            continue
        differs = differs or bool(found)
        for each in found:
            line = ({"cell": name} if name else {}) | msgspec.structs.asdict(each)
            said = msgspec.json.encode(line).decode() if as_json else f"{name} {each}".lstrip()
            out.print(said, markup=False)
    return 1 if differs else 0


async def _differences(
    settings: Settings, url: str, since: datetime, grace: timedelta
) -> list[reconcile.Difference]:
    gateway = make_gateway(settings)
    try:
        return await reconcile.reconcile(url, gateway, since, grace)
    finally:
        await gateway.close()
