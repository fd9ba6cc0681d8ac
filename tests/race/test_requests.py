"""Two sessions, one request; two sessions, one row."""

from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from shop import Shop

BEGIN = "select begin_request('k', sha256('asked'))"
END = "select end_request('k', sha256('asked'), 'the answer')"
EXPECT = "select expect_version(version, array[1]) from products where id = %s for no key update"


async def test_a_duplicate_waits_for_the_first(connect: Any, waits: Any) -> None:
    """It is seen waiting while the first has not committed, and then gets its answer."""
    first = await connect("service_role", autocommit=False)
    second = await connect("service_role")
    await first.execute(BEGIN)
    await first.execute(END)
    answers = []

    async def repeat() -> None:
        answers.append(await (await second.execute(BEGIN)).fetchone())

    async with anyio.create_task_group() as group:
        group.start_soon(repeat)
        await waits(second.info.backend_pid)
        await first.commit()
    assert answers == [("the answer",)]


async def test_old_keys_go_but_for_one_that_somebody_is_at(shop: Shop, connect: Any) -> None:
    """Two that clean up at once share the work, and wait for nobody."""
    for key in ("a", "b", "c"):
        await shop.run("select end_request(%s, sha256('x'), 'old')", key)
    await shop.turn_clock(7200)
    one, other = await connect(autocommit=False), await connect()
    await one.execute("select from idempotency_keys where idempotency_key = 'b' for update")
    await other.execute("set lock_timeout = '200ms'")
    cursor = await other.execute("select forget_idempotency_keys(1)")
    assert await cursor.fetchone() == (2,)
    assert await shop.values("select idempotency_key from idempotency_keys") == ["b"]


async def test_a_duplicate_goes_on_when_the_first_failed(connect: Any, waits: Any) -> None:
    """It waits for a first that is then rolled back, and is the first itself."""
    first = await connect("service_role", autocommit=False)
    second = await connect("service_role")
    await first.execute(BEGIN)
    await first.execute(END)
    answers = []

    async def repeat() -> None:
        answers.append(await (await second.execute(BEGIN)).fetchone())

    async with anyio.create_task_group() as group:
        group.start_soon(repeat)
        await waits(second.info.backend_pid)
        await first.rollback()
    assert answers == [(None,)]


@pytest.mark.parametrize(
    "quicker", ["update products set name = 'quicker'", "delete from products"]
)
async def test_a_writer_that_is_quicker_is_seen(
    shop: Shop, connect: Any, waits: Any, quicker: str
) -> None:
    """Whoever expects a version waits for the writer before it, and is told of what it did."""
    product = await shop.product()
    one = await connect("service_role", autocommit=False)
    other = await connect("service_role")
    await one.execute(quicker)
    told: list[Any] = []

    async def expect() -> None:
        try:
            told.extend(await (await other.execute(EXPECT, [product])).fetchall())
        except psycopg.Error as error:
            told.append(error.sqlstate)

    async with anyio.create_task_group() as group:
        group.start_soon(expect)
        await waits(other.info.backend_pid)
        await one.commit()
    assert told == (["DP035"] if quicker.startswith("update") else [])


async def test_a_version_that_was_expected_stays_until_the_end(
    shop: Shop, connect: Any, waits: Any
) -> None:
    """Nobody writes the row between the check and the write that follows it."""
    product = await shop.product()
    one = await connect("service_role", autocommit=False)
    other = await connect("service_role")
    await one.execute(EXPECT, [product])
    async with anyio.create_task_group() as group:
        group.start_soon(other.execute, "update products set name = 'other'")
        await waits(other.info.backend_pid)
        await one.execute("update products set name = 'one' where id = %s", [product])
        await one.commit()
    assert await shop.row("select name, version from products") == {"name": "other", "version": 3}


HELD = "select hold_names(%s, %s, %s)"


@pytest.mark.parametrize("name", [("k", None, None), (None, uuid4(), None), (None, None, "A-1")])
async def test_who_places_under_a_name_waits_for_who_does(
    connect: Any, waits: Any, name: tuple[Any, ...]
) -> None:
    """A key, an id and a reference are each one request's at a time; others wait for nobody."""
    first = await connect("service_role", autocommit=False)
    second, third = await connect("service_role"), await connect("service_role")
    await first.execute(HELD, name)
    async with anyio.create_task_group() as group:
        group.start_soon(second.execute, HELD, name)
        await waits(second.info.backend_pid)
        await third.execute(HELD, ("another", uuid4(), "B-1"))
        await first.commit()


async def test_who_waits_too_long_is_told_so(connect: Any) -> None:
    """After five seconds it is refused, with nothing done, and may come again."""
    first, second = await connect("service_role", autocommit=False), await connect("service_role")
    await first.execute(HELD, ("k", None, None))
    with pytest.raises(psycopg.Error) as refusal:
        await second.execute(HELD, ("k", None, None))
    assert refusal.value.sqlstate == "DP037"
