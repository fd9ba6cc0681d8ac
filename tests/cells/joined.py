"""What tests of joining ask of a cell."""

from typing import Any

from places import Place

from darkpearl import cells, schema


async def value(place: Place, query: str) -> Any:
    """The only value of a query."""
    async with schema.connect(place.url) as connection:
        row = await (await connection.execute(query.encode())).fetchone()
        return row and row[0]


async def added(home: Place, place: Place, name: str) -> list[str]:
    """What adding a cell says."""
    return [line async for line in cells.add(home.url, place.url, name)]
