"""POST /orders without a framework: what HTTP, the pool and the database cost by themselves.

`python -m bench.bare api`, with the settings of `darkpearl api`, serves an ASGI function that does
for an order what the API does: the same statements in one transaction, pipelined as the driver does
it, the same document back, on uvicorn and a pool of the same settings. It routes nothing, checks
nothing, and knows no error.
"""

import asyncio
import json
import logging
from functools import partial
from typing import Any

import uvicorn

from bench import http_clients
from bench.harness import Meter, shop
from bench.rounds import Variant
from darkpearl import database, embedded
from darkpearl.api import access, orders
from darkpearl.api.access import document
from darkpearl.config import Settings
from darkpearl.connections import Http
from darkpearl.database import API_ROLE

CLIENTS = 16
SECONDS = 5
PLACED = document(orders._PLACED).encode()


async def handle(pool: database.Pool, receive: Any, send: Any) -> None:
    """Place the order of one request."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    given = json.loads(body)
    order_id = access.new_id()
    place, arguments = access.call(
        "place_order",
        order_id=order_id,
        warehouse_id=given["warehouse_id"],
        items=json.dumps(given["items"]),
        currency="USD",
    )
    async with pool.connection() as connection, connection.pipeline():
        await connection.execute("begin")
        await connection.execute("set local role service_role")
        await connection.execute(place.encode(), arguments)
        cursor = await connection.execute(PLACED, {"id": order_id, "message": "Placed."})
        await connection.execute("commit")
    row = await cursor.fetchone()
    answer = row["document"].encode() if row else b""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(answer)).encode()),
    ]
    await send({"type": "http.response.start", "status": 201, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


async def serve() -> None:
    """Serve until a signal."""
    settings = Settings.from_environment()
    url = database.as_role(settings.database_url, API_ROLE)
    async with database.open_pool(url, size=settings.pool_size, name="bare api") as pool:

        async def app(_scope: Any, receive: Any, send: Any) -> None:
            await handle(pool, receive, send)

        config = uvicorn.Config(
            app, http=Http, port=settings.port, lifespan="off", log_level=logging.WARNING
        )
        await uvicorn.Server(config).serve()


async def _post(running: embedded.Server, *, bare: bool) -> dict[str, Any]:
    async with shop(running) as target:
        meter = Meter(target)
        await meter.begin()
        run = await http_clients.place_orders(
            target, clients=CLIENTS, seconds=SECONDS, module="bench.bare" if bare else "darkpearl"
        )
        await meter.end()
        figures = await meter.per_order(run.transactions)
        await target.check()
    # The API process is in neither CPU column, and its start and end are in the clock's time.
    del figures["client_cpu_us_per_order"], figures["seconds"]
    return {**figures, "orders_per_second": round(run.per_second)}


def variants(running: embedded.Server) -> tuple[dict[str, Variant], list[str]]:
    """The API and the bare handler; no listener works meanwhile."""
    return {
        "bare ASGI": partial(_post, running, bare=True),
        "DarkPearl's API": partial(_post, running, bare=False),
    }, ["bare ASGI"]


if __name__ == "__main__":
    asyncio.run(serve())
