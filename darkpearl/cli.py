"""The command `darkpearl`: puts the parts together and starts them.

Exit codes: 0 fine, 1 it couldn't be done, 2 the command or a setting is wrong. Both errors are
one line on stderr.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from darkpearl import __version__, database, demo, embedded, logs, schema, serving, tokens, wheel
from darkpearl.api.app import openapi_yaml
from darkpearl.config import ConfigError, Settings, variables
from darkpearl.listener import Listener

FAILURES = (wheel.EmbeddedError, schema.SchemaError, serving.ServiceError, OSError)
GREETINGS = 5
WATCH_SECONDS = 1.0
PIPE_COLUMNS = 120
TOKEN_SECONDS = 8 * 3600
LONGEST_TOKEN_SECONDS = 366 * 24 * 3600


class _Out(Console):
    """Standard output; work goes on when nobody reads it any more, as in `darkpearl up | head`."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from here on."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = _Out(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_COLUMNS)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; every expected failure ends as one line and an exit code."""
    for chatty in ("yoyo", "httpx"):  # httpx would write addresses, which may hold a password
        logging.getLogger(chatty).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, in order
    try:
        code = command.main(
            sys.argv[1:] or ["--help"], prog_name="darkpearl", standalone_mode=False
        )
    except ConfigError as error:
        code = _fail(error, 2)
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code)
    except FAILURES as error:
        code = _fail(error, 1)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("stopped", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: object, code: int) -> int:
    errors.print(f"darkpearl: {' '.join(str(error).split())}", markup=False)
    return code


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
    logs.configure(context.obj)


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
    click.echo(openapi_yaml(), nl=False)


@command.command()
@click.pass_obj
def up(settings: Settings) -> None:
    """Run everything in one process: PostgreSQL, schema, demo data, API and listener."""
    with serving.taken_socket(settings) as taken:
        settings = _with_keys(settings)
        with _database(settings, exclusive=True) as url:
            asyncio.run(_prepare(url))
            api, listener = _logins(settings)
            asyncio.run(_check_logins(api, listener))
            services = [
                serving.api_service(settings, api, taken),
                serving.listener_service(settings, listener),
            ]
            if not settings.database_url:
                services.append(_watch(settings))
            asyncio.run(serving.serve(services, _greet(settings, url, taken)))


@command.command()
@click.pass_obj
def api(settings: Settings) -> None:
    """Serve the HTTP API alone, on a database that is up."""
    with serving.taken_socket(settings) as taken:
        settings = _with_keys(settings)
        asyncio.run(serving.serve([serving.api_service(settings, _logins(settings)[0], taken)]))


@command.command()
@click.pass_obj
def listener(settings: Settings) -> None:
    """Run one listener alone, on a database that is up; start as many as you like."""
    asyncio.run(serving.serve(serving.listener_services(settings, _logins(settings)[1])))


@command.command()
@click.option(
    "--role", type=click.Choice(get_args(tokens.Role)), default="service_role", show_default=True
)
@click.option("--sub", help="Who it is for; a customer's id is a UUID.")
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
    out.print(tokens.mint(_with_keys(settings), role, sub, expires), markup=False)


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


@command.group(no_args_is_help=False)
def db() -> None:
    """Look after the database."""


@db.command()
@click.pass_obj
def start(settings: Settings) -> None:
    """Start the embedded server and leave it running, until `db stop` or the end of an `up`."""
    _needs_embedded(settings)
    with embedded.serve(settings.home, keep=True, say=out.print) as server:
        out.print(server.socket_url(), markup=False)


@db.command()
@click.pass_obj
def stop(settings: Settings) -> None:
    """Stop the embedded server, whoever started it."""
    _needs_embedded(settings)
    server = embedded.running(settings.home)
    if server:
        embedded.stop(server)
    out.print("stopped" if server else "not running")


@db.command()
@click.pass_obj
def url(settings: Settings) -> None:
    """Print the address of the database, for psql."""
    out.print(_running(settings, through_socket=True), markup=False)


@db.command()
@click.pass_obj
def migrate(settings: Settings) -> None:
    """Apply pending migrations, and all routines anew."""
    with _database(settings) as url:
        applied = asyncio.run(schema.migrate(url))
    out.print(f"applied: {', '.join(applied) or 'nothing new'}; routines are up to date")


@db.command()
@click.pass_obj
def seed(settings: Settings) -> None:
    """Load the demo data, into an empty database only."""
    with _database(settings) as url:
        loaded = asyncio.run(schema.seed(url))
    out.print("demo data loaded" if loaded else "there is data already; nothing loaded")


@db.command()
@click.option("--yes", is_flag=True, help="Do it on a database that isn't the embedded one too.")
@click.pass_obj
def reset(settings: Settings, *, yes: bool) -> None:
    """Throw all data away, migrate and load the demo data."""
    if settings.database_url and not yes:
        raise click.UsageError(
            "this deletes all data in DARKPEARL_DATABASE_URL; say --yes to do it"
        )
    with _database(settings) as url:
        asyncio.run(schema.reset(url))
        asyncio.run(schema.seed(url))
    out.print("reset")


@db.command()
@click.pass_obj
def status(settings: Settings) -> None:
    """Print the server's version, and the migrations that are applied and pending."""
    with _database(settings) as url:
        found = asyncio.run(schema.status(url))
    out.print(f"PostgreSQL {found.server}")
    for name in found.applied:
        out.print(f"applied  {name}")
    for name in found.pending:
        out.print(f"pending  {name}")


@db.command()
@click.pass_obj
def drift(settings: Settings) -> None:
    """Compare what sql/migrations build with what sql/schema says; exit 1 if they differ."""
    pg_dump = find_pg_dump()
    if settings.database_url:
        found = asyncio.run(schema.drift(settings.database_url, pg_dump))
    else:
        with embedded.temporary() as server:
            found = asyncio.run(schema.drift(server.url, pg_dump))
    if found:
        out.print(found, markup=False, end="")
        raise schema.SchemaError("sql/migrations and sql/schema differ, as shown")


def _needs_embedded(settings: Settings) -> None:
    if settings.database_url:
        raise click.UsageError("DARKPEARL_DATABASE_URL is set, so there is no embedded server")


def find_pg_dump() -> Path:
    """The wheel's pg_dump, or the one on PATH."""
    try:
        return wheel.binaries() / "pg_dump"
    except wheel.EmbeddedError:
        if found := shutil.which("pg_dump"):
            return Path(found)
        raise


@contextlib.contextmanager
def _database(settings: Settings, *, exclusive: bool = False) -> Iterator[str]:
    """Address of the database; the embedded server runs at least as long as the block."""
    if settings.database_url:
        yield settings.database_url
        return
    with contextlib.ExitStack() as stack:
        with out.status("starting PostgreSQL"):
            serving_it = embedded.serve(settings.home, exclusive=exclusive, say=out.print)
            server = stack.enter_context(serving_it)
        yield server.url


def _running(settings: Settings, *, through_socket: bool = False) -> str:
    """Address of a database that somebody else keeps running."""
    if settings.database_url:
        return settings.database_url
    server = _server(settings)
    return server.socket_url() if through_socket else server.url


def _server(settings: Settings) -> embedded.Server:
    """The embedded server that somebody else keeps running."""
    if server := embedded.running(settings.home):
        return server
    raise wheel.EmbeddedError(
        f"no server runs in {settings.home}: start one with darkpearl up or darkpearl db start"
    )


def _logins(settings: Settings) -> tuple[str, str]:
    """Where the API and the listener log in; on the embedded server as the roles they are."""
    given = (settings.api_database_url, settings.listener_database_url)
    if settings.database_url:
        api, listener = (each or settings.database_url for each in given)
    else:
        roles = (serving.API_ROLE, serving.LISTENER_ROLE)
        api, listener = (
            each or _server(settings).socket_url(role)
            for each, role in zip(given, roles, strict=True)
        )
    return api, listener


async def _check_logins(api: str, listener: str) -> None:
    """Tell at once of a login that may not be what it has to be."""
    try:
        async with schema.connect(api) as connection:
            await connection.execute(f"set session authorization {serving.API_ROLE}")
    except schema.SchemaError as error:
        raise schema.SchemaError(
            f"the API can't log in as {serving.API_ROLE}: {error};"
            " DARKPEARL_API_DATABASE_URL gives it a login of its own"
        ) from error
    async with schema.connect(database.as_role(listener, serving.LISTENER_ROLE)):
        pass


def _with_keys(settings: Settings) -> Settings:
    """The settings with something to verify tokens with: development makes itself a secret.

    Raises:
        ConfigError: it is for production to be told.
    """
    if settings.jwt_secret or settings.jwt_jwks:
        return settings
    if settings.environment == "production":
        raise ConfigError(
            "in production tokens need DARKPEARL_JWT_SECRET or DARKPEARL_JWT_JWKS to be verified"
        )
    secret = embedded.kept_secret(settings.home, "jwt_secret")
    return msgspec.structs.replace(settings, jwt_secret=secret)


async def _prepare(url: str) -> None:
    with out.status("applying the schema"):
        applied = await schema.migrate(url)
    seeded = await schema.seed(url)
    out.print(
        f"schema: {', '.join(applied) or 'up to date'}" + ("; demo data loaded" if seeded else "")
    )


def _watch(settings: Settings) -> serving.Service:
    """Ends by itself, with an error, when the embedded server does."""
    stopping = asyncio.Event()

    async def run() -> None:
        while not stopping.is_set():
            if embedded.running(settings.home) is None:
                raise wheel.EmbeddedError(f"PostgreSQL has ended; its log is in {settings.home}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), WATCH_SECONDS)

    return serving.Service(run, stop=stopping.set, kill=stopping.set)


async def _greet(settings: Settings, url: str, taken: socket.socket) -> None:
    """Show that it works, with an order that gets through, and where to go from here."""
    try:
        for _ in range(GREETINGS):  # the mock gateway declines some
            story = await demo.follow(url, await demo.place_order(url))
            out.print(story.timeline, soft_wrap=False)
            out.print()
            if story.order_status == "fulfilled":
                break
    except schema.SchemaError as error:
        _fail(f"no demo order: {error}", 1)
    api = f"http://{settings.host}:{taken.getsockname()[1]}"
    out.print(f"API      {api}\nOpenAPI  {api}/schema", markup=False)
    if settings.environment == "development":
        out.print("token    darkpearl token (or make -s token); --help has roles", markup=False)
    if not settings.database_url:
        psql, address = wheel.binaries() / "psql", _running(settings, through_socket=True)
        out.print(f"psql     '{psql}' '{address}'", markup=False)
    out.print("Ctrl-C stops")


async def _demonstrate(settings: Settings, url: str) -> None:
    """Three orders under a gateway that approves, then one under a gateway that declines."""
    await _prepare(url)
    for rate, quantities in ((1.0, (2, 1, demo.PLENTY)), (0.0, (1,))):
        chosen = msgspec.structs.replace(settings, gateway="mock", mock_approval_rate=rate)
        worker = Listener(chosen, database.as_role(url, serving.LISTENER_ROLE))
        running = asyncio.create_task(worker.run())
        try:
            for quantity in quantities:
                order = await demo.place_order(url, quantity)
                out.print((await demo.follow(url, order)).timeline, soft_wrap=False)
                out.print()
        finally:
            worker.stop()
            await running
