"""A database whose default is serializable: for who chose that; ours are read committed."""

from collections.abc import Awaitable, Callable

import httpx
import pytest
from litestar import Litestar
from psycopg import AsyncConnection
from shop import Shop

from darkpearl.api import tokens
from darkpearl.api.app import create_app
from darkpearl.config import Settings
from darkpearl.gateways.mock import MockGateway
from darkpearl.listener import Listener

SECRET = "a secret of the tests, and of nothing else"
ORDERS = 20


@pytest.fixture
async def strict(shop: Shop, database_url: str) -> Shop:
    """The shop, in a database that makes every session serializable which says nothing else."""
    name = await shop.value("select current_database()")
    await shop.run(f"alter database {name} set default_transaction_isolation = 'serializable'")
    async with await AsyncConnection.connect(database_url) as session:
        found = await session.execute("show transaction_isolation")
        assert await found.fetchone() == ("serializable",)
    return shop


async def test_a_listener_works_in_a_serializable_database(
    strict: Shop,
    listening: Callable[..., Awaitable[Listener]],
    until: Callable[..., Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fulfils orders beside the writers of others, and not one of its passes is in vain."""
    product = await strict.product(on_hand=ORDERS)
    await listening(MockGateway(approval_rate=1.0))
    for _ in range(ORDERS):
        await strict.order((product, 1))

    async def all_fulfilled() -> bool:
        return await strict.statuses() == {"fulfilled": ORDERS}

    await until(all_fulfilled)
    assert "database:" not in caplog.text


async def test_the_api_is_read_committed(strict: Shop, database_url: str) -> None:
    """Requests take place at read committed: none is answered 503 for another one's rows."""
    app: Litestar = create_app(Settings(jwt_secret=SECRET), database_url)
    token = tokens.mint(Settings(jwt_secret=SECRET), "service_role", None, 60)
    product = await strict.product()
    await strict.run(
        "create function say_isolation() returns trigger language plpgsql as"
        " $$ begin new.notes := current_setting('transaction_isolation'); return new; end $$;"
        " create trigger zz_say before insert on orders"
        " for each row execute function say_isolation()"
    )
    async with (
        app.lifespan(),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),  # type: ignore[arg-type]
            base_url="http://api",
            headers={"Authorization": f"Bearer {token}"},
        ) as client,
    ):
        items = [{"product_id": str(product), "quantity": 1}]
        body = {"warehouse_id": str(strict.lisbon), "items": items}
        placed = await client.post("/orders", json=body)
    assert placed.json()["notes"] == "read committed"
