"""A parcel and whatever else happens to its order at the same moment."""

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from shop import APPROVED, Shop

Connect = Callable[..., Awaitable[Any]]
Waits = Callable[[int], Awaitable[None]]
Race = Callable[..., Awaitable[str]]

SHIP = "select shipped_at from ship_items(%s, %s, null, %s)"
CANCEL = "select status from cancel_order(%s)"
TAKE_OUT = "select count(*) from cancel_items(%s)"


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """Ten units in Lisbon, which packs its orders."""
    await shop.run("update warehouses set fulfilment_method = 'on_shipment'")
    return await shop.product(on_hand=10)


@pytest.fixture
async def paid(shop: Shop, product: UUID) -> UUID:
    """A paid order of three of them."""
    order = await shop.order((product, 3))
    await shop.settle(await shop.advance(), APPROVED)
    return order


def units(product: UUID, count: int) -> str:
    """So many units as a line."""
    return json.dumps([{"product_id": str(product), "quantity": count}])


async def test_two_parcels_of_the_last_unit(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """One leaves with it; the other waits for that and is refused."""
    async with shop.acting_as("darkpearl_app"):
        await shop.run(SHIP, paid, units(product, 2), uuid4())
    last = units(product, 1)
    second = (SHIP, paid, last, uuid4())
    assert await race((SHIP, paid, last, uuid4()), second) == "DP024"
    assert await shop.stock(product) == (7, 0)
    assert await shop.order_status(paid) == "fulfilled"


async def test_two_parcels_of_what_is_left(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """Both take from what is left when their turn comes: together never more than that."""
    two = units(product, 2)
    assert await race((SHIP, paid, two, uuid4()), (SHIP, paid, two, uuid4())) == ("DP029")
    assert await shop.stock(product) == (8, 1)


async def test_one_parcel_that_is_sent_twice_at_once(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """The second finds the parcel that the first made."""
    call = (SHIP, paid, units(product, 1), uuid4())
    assert await race(call, call) == ""
    assert await shop.value("select count(*) from shipments") == 1
    assert await shop.stock(product) == (9, 2)


async def test_a_parcel_that_beats_a_cancel(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """Once a parcel has left the order isn't cancelled any more."""
    parcel = (SHIP, paid, units(product, 1), uuid4())
    assert await race(parcel, (CANCEL, paid)) == "DP007"
    await shop.advance()
    assert await shop.order_status(paid) == "fulfilling"


async def test_a_cancel_that_beats_a_parcel(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """Once an order is to be cancelled no parcel of it leaves."""
    parcel = (SHIP, paid, units(product, 1), uuid4())
    assert await race((CANCEL, paid), parcel) == "DP024"
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.order_status(paid) == "cancelled"
    assert await shop.stock(product) == (10, 0)


@pytest.mark.parametrize("parcel_first", [True, False])
async def test_a_parcel_against_taking_out(
    shop: Shop,
    race: Race,
    paid: UUID,
    product: UUID,
    *,
    parcel_first: bool,
) -> None:
    """What is left is shipped or taken out, never both."""
    async with shop.acting_as("darkpearl_app"):
        await shop.run(SHIP, paid, units(product, 1), uuid4())
    calls = [(SHIP, paid, None, uuid4()), (TAKE_OUT, paid)]
    assert await race(*(calls if parcel_first else reversed(calls))) == "DP024"
    await shop.settle(await shop.advance(), APPROVED)
    assert await shop.stock(product) == ((7, 0) if parcel_first else (9, 0))
    assert await shop.order_status(paid) == "fulfilled"


async def test_an_id_that_a_parcel_and_an_order_take_at_once(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """Who comes second waits for the first, and is refused: an id is one in the database."""
    name = uuid4()
    order = ("select place_order(%s, %s, p_order_id => %s)", shop.lisbon, units(product, 1), name)
    parcel = (SHIP, paid, units(product, 1), name)
    assert await race(parcel, order) == "DP038"
    other = uuid4()
    assert await race((*order[:3], other), (*parcel[:3], other)) == "DP011"
    assert await shop.value("select count(*) from shipments") == 1


async def test_an_id_that_parcels_of_two_orders_take_at_once(
    shop: Shop, race: Race, paid: UUID, product: UUID
) -> None:
    """One of them has it."""
    other = await shop.order((product, 1))
    await shop.settle(await shop.advance(), APPROVED)
    name = uuid4()
    one, two = ((SHIP, order, units(product, 1), name) for order in (paid, other))
    assert await race(one, two) == "DP038"
    assert await shop.values("select order_id from shipments") == [paid]


async def test_a_parcel_against_the_pass_at_its_deadline(
    shop: Shop, connect: Connect, waits: Waits, paid: UUID, product: UUID
) -> None:
    """A parcel that comes while its order is found overdue waits for that, and leaves."""
    await shop.turn_clock(200_000)
    listener = await connect("darkpearl_listener", autocommit=False)
    packer = await connect("darkpearl_app")
    await listener.execute("select advance()")
    async with anyio.create_task_group() as group:
        group.start_soon(packer.execute, SHIP, [paid, None, uuid4()])
        await waits(packer.info.backend_pid)
        await listener.commit()
    assert await shop.order_status(paid) == "fulfilled"
    assert await shop.stock(product) == (7, 0)


async def test_a_packer_that_is_killed_has_sent_nothing(
    shop: Shop, connect: Connect, paid: UUID, product: UUID
) -> None:
    """Parcel, stock and order change together or not at all; the same again sends it."""
    name = uuid4()
    packer = await connect("darkpearl_app", autocommit=False)
    await packer.execute(SHIP, [paid, units(product, 3), name])
    pid = packer.info.backend_pid
    await shop.run("select pg_terminate_backend(%s, 5000)", pid)
    await packer.close()
    assert await shop.order_status(paid) == "paid"
    assert await shop.stock(product) == (10, 3)
    assert await shop.rows("select * from shipments") == []
    async with shop.acting_as("darkpearl_app"):
        await shop.run(SHIP, paid, units(product, 3), name)
    assert await shop.order_status(paid) == "fulfilled"
