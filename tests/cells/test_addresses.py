"""The address of a cell that leads to another database, or that nobody can read.

Whoever changes it by hand, or a name that stands for another server after a failover, takes no
cell's rows for another's.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
import pytest
from places import Place
from shop import Shop
from terminal import Run

from darkpearl.cells.joining import without_secrets

Pair = tuple[Shop, Shop]
Serve = Callable[..., Callable[..., httpx.AsyncClient]]


@asynccontextmanager
async def north_at(home: Shop, url: str) -> AsyncIterator[None]:
    """What the directory says of north, for a block."""
    was = await home.value("select url from cells where number = 2")
    await home.run("update cells set url = %s where number = 2", url)
    try:
        yield
    finally:
        await home.run("update cells set url = %s where number = 2", was)


@pytest.mark.parametrize("wrong", ["home's", "north.invalid", "host=/nowhere no=such"])
async def test_a_wrong_address_is_that_of_a_cell_that_is_away(
    pair: Pair, places: tuple[Place, Place], serve: Serve, product: UUID, run: Run, wrong: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An API that begins with it, commands and the doctor name north, and show no row as its."""
    here, there = pair
    home, _ = places
    order = await here.order((product, 1))
    of_north = await there.order((product, 1), warehouse=there.rotterdam)
    monkeypatch.setenv("DARKPEARL_DATABASE_URL", without_secrets(home.url))
    async with north_at(here, without_secrets(home.url) if wrong == "home's" else wrong):
        api = serve(home)()
        for _ in range(2):
            page: dict[str, Any] = (await api.get("/orders", params={"limit": 1000})).json()
            ids = [each["id"] for each in page["data"]]
            assert (page["missing_cells"], ids.count(str(order))) == (["north"], 1)
            assert (await api.get(f"/orders/{of_north}")).status_code == 503
        assert (await api.get("/health/ready")).json()["missing_cells"] == ["north"]
        done = await run("orders", "list", "--json")
        assert (done.code, done.errors.count("cell north is left out")) == (3, 1)
        assert {each["cell"] for each in done.rows} == {"home"}
        for asked in (("orders", "list"), ("gateway", "pause", 5, "--reason", "x")):
            refused = await run(*asked, "--cell", "north")
            assert (refused.code, refused.errors.count("\n"), refused.said) == (1, 1, "")
        found = (await run("doctor", "--only", "version", "--json")).rows
        assert [each["state"] for each in found if each["cell"] == "north"] == ["fail"]
        states = (await run("cells", "status", "--json")).rows
        assert states[1]["trouble"], states
