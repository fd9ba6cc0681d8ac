"""What tests of joining ask of a cell."""

from typing import Any

from places import Place

from darkpearl import cells, schema


async def value(place: Place, query: str) -> Any:
    """The only value of a query."""
    found = await row(place, query)
    return found and found[0]


async def row(place: Place, query: str) -> Any:
    """The only row of a query."""
    async with schema.connect(place.url) as connection:
        return await (await connection.execute(query.encode())).fetchone()


async def added(home: Place, place: Place, name: str) -> list[str]:
    """What adding a cell says."""
    return [line async for line in cells.add(home.url, place.url, name)]
