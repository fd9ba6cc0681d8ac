"""`darkpearl paysim`: a payment service to try things against."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from darkpearl import serving
from darkpearl.cli.console import out
from darkpearl.config import Settings
from darkpearl.paysim.faults import Behaviour, with_faults
from darkpearl.paysim.ledger import Ledger
from darkpearl.paysim.webhooks import Webhooks


def _options(kind: type[msgspec.Struct]) -> Callable[[Any], Any]:
    """An option for each field: its type, limits, default and description."""

    def decorate(function: Any) -> Any:
        for field in reversed(msgspec.structs.fields(kind)):
            about: Any = msgspec.inspect.type_info(field.type)
            limits = about.type.ge, about.type.le
            function = click.option(
                "--" + field.encode_name.replace("_", "-"),
                type=click.FloatRange(*limits) if isinstance(field.default, float) else int,
                default=field.default,
                show_default=True,
                help=about.extra_json_schema["description"],
            )(function)
        return function

    return decorate


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8100,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--ledger", default="paysim.db", show_default=True, type=Path, help="File with its books."
)
@click.option("--token", help="Bearer token to ask for  [DARKPEARL_GATEWAY_TOKEN]")
@click.option("--webhook-url", help="Where to send webhooks; none are sent without it.")
@click.option("--webhook-secret", help="What to sign them with  [DARKPEARL_WEBHOOK_SECRET]")
@_options(Behaviour)
@click.pass_obj
def paysim(
    settings: Settings,
    /,
    *,
    host: str,
    port: int,
    ledger: Path,
    token: str | None,
    webhook_url: str | None,
    webhook_secret: str | None,
    **chosen: float,
) -> None:
    """Run a payment service to try things against: it takes no money, and fails on demand.

    Rates are shares from 0 to 1. docs/gateway.md has the contract that it keeps.
    """
    from darkpearl.paysim.app import create_app  # noqa: PLC0415 - other commands would wait for it

    try:
        behaviour = msgspec.convert(chosen, Behaviour)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from None
    with serving.bound_socket(host, port, "--port") as taken:
        books = Ledger(ledger)
        secret = (webhook_secret or settings.webhook_secret or "").split(",")[0]
        webhooks = Webhooks(books, behaviour, webhook_url, secret) if webhook_url else None
        app = create_app(books, behaviour, webhooks, token or settings.gateway_token)
        taken.listen()
        out.print(f"paysim   http://{host}:{taken.getsockname()[1]}", markup=False)
        service = serving.paysim_service(settings, with_faults(app, behaviour), taken)
        asyncio.run(serving.serve([service]))
