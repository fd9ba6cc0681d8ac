"""Who may look and who may act, from a terminal: what the database lets the login do."""

from collections.abc import Awaitable, Callable

import pytest
from psycopg.conninfo import make_conninfo
from shop import Shop
from terminal import Refused, Run

LogIn = Callable[[str], Awaitable[None]]


@pytest.fixture
def log_in(shop: Shop, database_url: str, monkeypatch: pytest.MonkeyPatch) -> LogIn:
    """Has commands log in as another."""

    async def become(role: str) -> None:
        await shop.run(f"alter role {role} password 'of tests alone'")
        url = make_conninfo(database_url, user=role, password="of tests alone")
        monkeypatch.setenv("DARKPEARL_DATABASE_URL", url)

    return become


async def test_a_reader_looks_and_does_not_act(
    shop: Shop, run: Run, refused: Refused, log_in: LogIn
) -> None:
    """Every list is there; what would change something is refused in a line."""
    await shop.product(sku="TEA", on_hand=1)
    await log_in("darkpearl_reader")
    for command in (
        *("orders list", "orders list --to-ship", "sagas list", "stock show", "stock history"),
        *("stock low", "gateway status", "gateway events", "webhooks list", "db size"),
        *("db partitions", "db inspect locks", "db inspect long", "db inspect bloat"),
    ):
        done = await run(*command.split())
        assert (done.code, done.errors) == (0, ""), command
    for command in ("stock receive LIS TEA 1", "gateway resume --reason x", "orders place TEA"):
        assert "service_role" in await refused(*command.split())
    assert await shop.values("select quantity_available from inventory") == [1]


async def test_a_listeners_login_sees_nothing(refused: Refused, log_in: LogIn) -> None:
    """It reads no table, and is told so in a line."""
    await log_in("darkpearl_listener")
    assert "permission denied" in await refused("orders", "list")
    assert "service_role" in await refused("gateway", "resume", "--reason", "x")


async def test_no_database_is_a_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: the command was right."""
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    for command in ("orders list", "stock receive LIS TEA 1", "webhooks list"):
        done = await run(*command.split())
        assert (done.code, done.said, done.errors.count("\n")) == (1, "", 1)


async def test_looking_cannot_write(shop: Shop, run: Run) -> None:
    """Not even by a function that would: a look is a session that only reads."""
    await shop.order((await shop.product(on_hand=1), 1))
    await shop.run(
        "create or replace function find_orders(p_search text) returns setof uuid language sql"
        " as $$ insert into action_log (actor, action, subject) values ('x', 'x', 'x');"
        " select null::uuid $$"
    )
    done = await run("orders", "list", "--search", "x")
    assert done.code == 2
    assert "read-only" in done.errors
