"""`darkpearl db`: looks after the database."""

import asyncio

import rich_click as click

from darkpearl import cells, embedded, restored, schema
from darkpearl.cli import asking, inspection, where
from darkpearl.cli.console import out, tell
from darkpearl.config import Settings

_END_SESSION = (
    "select coalesce(bool_or(pg_terminate_backend(pid)), false) as ended from pg_stat_activity"
    " where pid = %s and datname = current_database() and backend_type = 'client backend'"
)


@click.group(no_args_is_help=False)
def db() -> None:
    """Look after the database."""


for each in (inspection.size, inspection.partitions, inspection.inspect):
    asking.over_cells(each)
    db.add_command(each)


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
    out.print(where.running(settings, through_socket=True), markup=False)


@db.command()
@click.option(
    "--demo",
    "with_demo",
    is_flag=True,
    help="Load the demo data if this makes the database, in development, with the mock gateway.",
)
@click.pass_obj
def migrate(settings: Settings, *, with_demo: bool) -> None:
    """Apply pending migrations, and all routines anew."""

    async def run(url: str) -> tuple[list[str], bool]:
        applied = await schema.migrate(url)
        wanted = with_demo and where.wants_demo(settings, applied)
        return applied, wanted and await schema.seed(url)

    with where.database(settings) as url:
        applied, seeded = asyncio.run(run(url))
    out.print(
        f"applied: {', '.join(applied) or 'nothing new'}; routines are up to date"
        + ("; demo data loaded" if seeded else "")
    )


@db.command(name="after-restore")
@click.option(
    "--lost",
    type=click.IntRange(0, 1_000_000_000),
    default=0,
    help="Leave out so many numbers of orders and events, which lost ones may have had.",
)
@click.pass_obj
def after_restore(settings: Settings, lost: int) -> None:
    """Do what a restore, an upgrade or a promotion leaves undone; again is harmless.

    With --lost, once: each run leaves out so many more.
    """
    with where.database(settings) as url:
        asyncio.run(tell(restored.put_in_order(url, lost)))
    out.print("next: darkpearl restore-check", markup=False)


@db.command(name="backed-up")
@click.option("--note", help="Of what, and where it is.")
@click.pass_obj
def backed_up(settings: Settings, note: str | None) -> None:
    """Write down that a backup is whole, for who asks when the last one was."""
    query = "select record_upkeep('backup', %s)"
    asking.act(settings, lambda session: session.rows(query, [note]))
    out.print("noted")


@db.command(name="end-session")
@click.argument("pid", type=int)
@click.pass_obj
def end_session(settings: Settings, pid: int) -> None:
    """End a session that is in the way; its transaction is rolled back.

    For a superuser, or a login in pg_signal_backend.
    """

    async def run() -> bool:
        async with asking.looking(settings) as session:
            (row,) = await session.rows(_END_SESSION, [pid])
            return bool(row["ended"])

    if not asyncio.run(run()):
        raise asking.Refusal(f"there is no session {pid} in this database")
    out.print(f"session {pid} is ended")


@db.command()
@click.pass_obj
def seed(settings: Settings) -> None:
    """Load the demo data, into an empty database only."""
    with where.database(settings) as url:
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
    with where.database(settings) as url:
        try:
            asyncio.run(cells.refuse_reset(url))
        except cells.CellError as error:
            raise asking.Refusal(str(error)) from error
        asyncio.run(schema.reset(url))
        asyncio.run(schema.seed(url))
    out.print("reset")


@db.command()
@click.pass_obj
def status(settings: Settings) -> None:
    """Print the server's version, and the migrations that are applied, pending and unknown."""
    with where.database(settings) as url:
        found = asyncio.run(schema.status(url))
    out.print(f"PostgreSQL {found.server}")
    for name in found.applied:
        out.print(f"applied  {name}")
    for name in found.pending:
        out.print(f"pending  {name}")
    for name in found.unknown:
        out.print(f"unknown  {name}")
    if found.hides_statistics:
        out.print("hidden   statistics of enums, from the planner (docs/operations.md)")


@db.command()
@click.pass_obj
def drift(settings: Settings) -> None:
    """Compare what sql/migrations build with what sql/schema says; exit 1 if they differ."""
    pg_dump = where.find_pg_dump()
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
