"""The command `darkpearl`: puts the parts together and starts them.

Exit codes: 0 fine, 1 it couldn't be done, 2 the command or a setting is wrong, 3 one of several
cells was left out. Errors are one line on stderr.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from typing import get_args

import msgspec
import rich_click as click
from rich.table import Table

from darkpearl import __version__, database, demo, embedded, schema, serving
from darkpearl.api import tokens
from darkpearl.cli import asking, where
from darkpearl.cli.audit import audit
from darkpearl.cli.bulk import batches
from darkpearl.cli.cells import cells
from darkpearl.cli.console import fail, out
from darkpearl.cli.db import db
from darkpearl.cli.doctor import doctor, restore_check
from darkpearl.cli.elsewhere import Elsewhere
from darkpearl.cli.gateway import gateway
from darkpearl.cli.imports import export_file, import_file
from darkpearl.cli.manual import completion, manual
from darkpearl.cli.orders import orders
from darkpearl.cli.payments import payments
from darkpearl.cli.paysim import paysim
from darkpearl.cli.retention import retention
from darkpearl.cli.sagas import sagas
from darkpearl.cli.stock import stock
from darkpearl.cli.top import listeners, top
from darkpearl.cli.webhooks import webhooks
from darkpearl.config import ConfigError, Settings, variables
from darkpearl.paysim.ledger import LedgerError
from darkpearl.reconcile import ReconcileError
from darkpearl.telemetry import logs

FAILURES = (
    embedded.EmbeddedError,
    schema.SchemaError,
    serving.ServiceError,
    LedgerError,
    ReconcileError,
    OSError,
)
GREETINGS = 5
WATCH_SECONDS = 1.0
TOKEN_SECONDS = 8 * 3600
LONGEST_TOKEN_SECONDS = 366 * 24 * 3600


def main() -> None:
    """Run the command line, and exit."""
    for chatty in ("yoyo", "httpx"):  # httpx would write addresses, which may hold a password
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, in order
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run a command; every expected failure ends as one line and an exit code, which this is."""
    try:
        code = command.main(arguments or ["--help"], prog_name="darkpearl", standalone_mode=False)
    except (ConfigError, schema.ReadOnlyError) as error:
        code = fail(error, 2)
    except click.ClickException as error:
        code = fail(error.format_message(), error.exit_code)
    except FAILURES as error:
        code = fail(error, 1)
    except (KeyboardInterrupt, click.Abort):
        code = fail("stopped", 130)
    return code if isinstance(code, int) else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def command(context: click.Context) -> None:
    """Orders, stock and payments as sagas inside PostgreSQL.

    Settings are environment variables: see `darkpearl settings`.
    """
    settings = context.obj = Settings.from_environment()
    for name in ("database_url", "api_database_url", "listener_database_url"):
        if address := getattr(settings, name):
            database.check_address(f"DARKPEARL_{name.upper()}", address)
    logs.configure(settings.log_level, settings.log_format)


@command.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


@command.command()
def settings() -> None:
    """List the environment variables, their defaults and what they may be."""
    table = Table(box=None, pad_edge=False)
    for name in ("variable", "default", "may be", "what for"):
        table.add_column(name, no_wrap=name == "variable")
    for each in variables():
        table.add_row(each.name, each.default, each.allowed, each.description)
    out.print(table, soft_wrap=False)


@command.command()
def openapi() -> None:
    """Print the description of the HTTP interface (OpenAPI 3.1) as YAML."""
    from darkpearl.api.app import description  # noqa: PLC0415 - other commands would wait for it

    click.echo(description().yaml, nl=False)


@command.command()
@click.pass_obj
def up(settings: Settings) -> None:
    """Run everything in one process: PostgreSQL, schema, API, listener and webhooks.

    With several cells, a listener and webhooks for each.

    In development, with the mock gateway, a new database gets demo data and an order.
    """
    with serving.taken_socket(settings) as taken:
        settings = where.with_keys(settings)
        with where.database(settings, exclusive=True) as url:
            is_new = asyncio.run(_prepare(settings, url))
            api, listener = where.logins(settings)
            asyncio.run(where.check_logins(api, listener))
            services = [
                serving.api_service(settings, api, taken),
                serving.listener_service(settings, listener),
                serving.webhooks_service(settings, listener),
                Elsewhere(
                    listener,
                    url,
                    lambda login: [
                        serving.listener_service(settings, login),
                        serving.webhooks_service(settings, login),
                    ],
                ).service(),
            ]
            if not settings.database_url:
                services.append(_watch(settings))
            asyncio.run(serving.serve(services, _greet(settings, url, taken, is_new=is_new)))


@command.command()
@click.pass_obj
def api(settings: Settings) -> None:
    """Serve the HTTP API alone, on a database that is up."""
    with serving.taken_socket(settings) as taken:
        settings = where.with_keys(settings)
        asyncio.run(
            serving.serve([serving.api_service(settings, where.logins(settings)[0], taken)])
        )


@command.command()
@click.pass_obj
def listener(settings: Settings) -> None:
    """Run one listener alone, on a database that is up; start as many as you like."""
    _, login = where.logins(settings)
    asyncio.run(serving.serve(serving.listener_services(settings, login)))


@command.command()
@click.option(
    "--role", type=click.Choice(get_args(tokens.Role)), default="service_role", show_default=True
)
@click.option("--sub", help="Who it is for; a customer must have one.")
@click.option(
    "--expires",
    type=click.IntRange(1, LONGEST_TOKEN_SECONDS),
    default=TOKEN_SECONDS,
    show_default=True,
    help="Seconds from now.",
)
@click.pass_obj
def token(settings: Settings, role: tokens.Role, sub: str | None, expires: int) -> None:
    """Print a token for the API. In development alone: others get theirs from an issuer."""
    out.print(tokens.mint(where.with_known_keys(settings), role, sub, expires), markup=False)


@command.command(name="demo")
@click.pass_obj
def show_demo(settings: Settings) -> None:
    """Run a few orders to their end in a database of their own, and print their sagas."""

    async def in_scratch(url: str) -> None:
        async with schema.scratch_database(url) as scratch:
            await _demonstrate(settings, scratch)

    if settings.database_url:
        asyncio.run(in_scratch(settings.database_url))
        return
    with embedded.temporary() as server:
        asyncio.run(_demonstrate(settings, server.url))


for each in (
    *(audit, batches, doctor, gateway, listeners, orders, payments, sagas, stock, top),
    webhooks,
):
    command.add_command(asking.over_cells(each))
for each in (export_file, import_file, retention):
    command.add_command(asking.over_cells(each, "that of the address"))
for each in (cells, completion, db, manual, paysim, restore_check):
    command.add_command(each)


@command.result_callback()
def _ended(code: object, **_given: object) -> object:
    """Have a command that left out a cell say so by its exit code."""
    return asking.ended(code)


async def _prepare(settings: Settings, url: str) -> bool:
    """Bring the schema up to date; says whether this has made a database with demo data in it."""
    with out.status("applying the schema"):
        applied = await schema.migrate(url)
    seeded = where.wants_demo(settings, applied) and await schema.seed(url)
    out.print(
        f"schema: {', '.join(applied) or 'up to date'}" + ("; demo data loaded" if seeded else "")
    )
    return seeded


def _watch(settings: Settings) -> serving.Service:
    """Ends by itself, with an error, when the embedded server does."""
    stopping = asyncio.Event()

    async def run() -> None:
        while not stopping.is_set():
            if embedded.running(settings.home) is None:
                raise embedded.EmbeddedError(f"PostgreSQL has ended; its log is in {settings.home}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), WATCH_SECONDS)

    return serving.Service(run, stop=stopping.set, kill=stopping.set)


async def _greet(
    settings: Settings, url: str, taken: socket.socket, *, is_new: bool = False
) -> None:
    """Say where to go from here; of a new database also that it works, with an order."""
    if is_new:
        await _order_something(url)
    api = f"http://{settings.host}:{taken.getsockname()[1]}"
    out.print(f"API      {api}\nOpenAPI  {api}/schema", markup=False)
    if settings.environment == "development":
        out.print("token    darkpearl token (or make -s token); --help has roles", markup=False)
    if not settings.database_url:
        psql, address = embedded.binaries() / "psql", where.running(settings, through_socket=True)
        out.print(f"psql     '{psql}' '{address}'", markup=False)
    out.print("Ctrl-C stops")


async def _order_something(url: str) -> None:
    """Demo orders, until one gets through, and their sagas."""
    try:
        for _ in range(GREETINGS):  # the mock gateway declines some
            story = await demo.follow(url, await demo.place_order(url))
            out.print(story.timeline, soft_wrap=False)
            out.print()
            if story.order_status == "fulfilled":
                break
    except schema.SchemaError as error:
        fail(f"no demo order: {error}", 1)


async def _demonstrate(settings: Settings, url: str) -> None:
    """Three orders under a gateway that approves, then one under a gateway that declines."""
    settings = msgspec.structs.replace(settings, environment="development", gateway="mock")
    await _prepare(settings, url)
    for rate, quantities in ((1.0, (2, 1, demo.PLENTY)), (0.0, (1,))):
        chosen = msgspec.structs.replace(settings, mock_approval_rate=rate)
        worker = serving.make_listener(chosen, url)
        running = asyncio.create_task(worker.run())
        try:
            for quantity in quantities:
                order = await demo.place_order(url, quantity)
                out.print((await demo.follow(url, order)).timeline, soft_wrap=False)
                out.print()
        finally:
            worker.stop()
            await running
