"""Inventory: how much of a product a warehouse has. Quantities move through the ledger alone."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET

from darkpearl.api import access
from darkpearl.api.access import Caller, Statement
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.description import ANYBODY
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Ids
from darkpearl.api.problems import refusals
from darkpearl.api.routing import Routed
from darkpearl.api.versions import UNCHANGED, IfMatch, IfNoneMatch, expect, tagged
from darkpearl.errors import InvalidError, NotFoundError
from darkpearl.models.stock import (
    CreateInventory,
    Inventory,
    OverallInventory,
    OverallSuggestion,
    ReplaceInventory,
    UpdateInventory,
)

_IN_TRANSIT = (
    "select coalesce(json_agg(t), '[]') as shelves from stock_in_transit as t"
    " where product_id = any(%(products)s)"
)


class _UnderWay(msgspec.Struct):
    """Units of a product that have left for a warehouse of another cell."""

    product_id: UUID
    to_warehouse_id: UUID
    quantity: int


class _Transit(msgspec.Struct):
    """What has left a cell."""

    shelves: list[_UnderWay]


LowStock = Annotated[
    bool | None,
    QueryParameter(description="Whether its reorder point or less can be sold"),
]

SORTS = ("-created_at", "quantity_sellable")
SORTS_FOR_STAFF = (*SORTS, "quantity_available")

_FOR_STAFF = "inventory_levels"
_FOR_ALL = "sellable_inventory"
_STOCKED = (
    "select * from inventory_levels"
    " where product_id = %(product_id)s and warehouse_id = %(warehouse_id)s"
)
_COUNT = (
    "select count_stock(warehouse_id, product_id, %(counted)s, p_expected => %(expected)s)"
    " from inventory where id = %(id)s"
)


def _by_id(caller: Caller, inventory_id: UUID) -> Statement:
    visible = _FOR_STAFF if caller.is_staff else _FOR_ALL
    return f"select * from {visible} where id = %(id)s", {"id": inventory_id}  # noqa: S608


@get("/", summary="List inventory", security=ANYBODY, responses=refusals(400))
async def list_inventory(
    caller: NamedDependency[Caller],
    listing: NamedDependency[Listing],
    product_id: Ids = None,
    warehouse_id: Ids = None,
    sku: FromQuery[str | None] = None,
    low_stock: LowStock = None,
) -> JsonResponse[Page[OverallInventory]]:
    """Stock by product and warehouse, newest rows first. Only staff see more than can be sold."""
    filters = Filters()
    filters.any_of("product_id", UUID, product_id, "uuid")
    filters.any_of("warehouse_id", UUID, warehouse_id, "uuid")
    filters.add("product_id in (select p.id from products as p where p.sku = %(sku)s)", sku=sku)
    filters.add(
        "(quantity_sellable <= reorder_point) = %(low_stock)s::boolean", low_stock=low_stock
    )
    sorts = SORTS_FOR_STAFF if caller.is_staff else SORTS
    visible = _FOR_STAFF if caller.is_staff else _FOR_ALL
    page = await listing.page(OverallInventory, visible, filters, sorts=sorts, table="inventory")
    if caller.is_staff:
        await _add_what_is_in_transit(caller, page.content.data)
    return page


@get(
    "/{inventory_id:uuid}",
    summary="Get an inventory row",
    security=ANYBODY,
    responses=refusals(400, 404) | UNCHANGED,
)
async def get_inventory(
    caller: NamedDependency[Caller], inventory_id: FromPath[UUID], if_none_match: IfNoneMatch = None
) -> JsonResponse[Inventory]:
    """How much there is, with the product and the warehouse."""
    return tagged(await caller.get(Inventory, _by_id(caller, inventory_id)), if_none_match)


@post("/", summary="Stock a product", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_inventory(
    once: NamedDependency[Once], data: JSONBody[CreateInventory]
) -> JsonResponse[Inventory]:
    """Stock a product in a warehouse. Units that are there already are received at once."""
    given = msgspec.structs.asdict(data)
    both = {"product_id": data.product_id, "warehouse_id": data.warehouse_id}
    row = await once.find(Inventory, access.call("stock_product", **given), (_STOCKED, both))
    if row is None:
        raise NotFoundError("There is no such product, or no such warehouse.")
    return once.created(row, f"/inventory/{row.id}")


@put(
    "/{inventory_id:uuid}",
    summary="Replace inventory settings",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def replace_inventory(
    caller: NamedDependency[Caller],
    inventory_id: FromPath[UUID],
    data: JSONBody[ReplaceInventory],
    if_match: IfMatch = None,
) -> JsonResponse[Inventory]:
    """Write both reorder settings, and enter what was counted: the difference is an adjustment."""
    return await _write(caller, inventory_id, data, if_match)


@patch(
    "/{inventory_id:uuid}",
    summary="Change inventory",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def update_inventory(
    caller: NamedDependency[Caller],
    inventory_id: FromPath[UUID],
    data: JSONBody[UpdateInventory],
    if_match: IfMatch = None,
) -> JsonResponse[Inventory]:
    """Change a reorder setting, or enter what was counted; what is left out stays."""
    return await _write(caller, inventory_id, data, if_match)


@delete("/{inventory_id:uuid}", summary="Delete inventory", responses=refusals(400, 404, 409, 412))
async def delete_inventory(
    caller: NamedDependency[Caller], inventory_id: FromPath[UUID], if_match: IfMatch = None
) -> None:
    """Stop stocking a product in a warehouse; refused while units lie there."""
    expected = expect(if_match, "inventory", inventory_id, _FOR_STAFF)
    await caller.get(dict, *expected, access.delete("inventory", inventory_id))


async def _write(
    caller: Caller,
    inventory_id: UUID,
    data: ReplaceInventory | UpdateInventory,
    if_match: str | None,
) -> JsonResponse[Inventory]:
    if data.quantity_reserved is not UNSET:
        raise InvalidError(
            "quantity_reserved moves with orders alone.",
            title="Reserved units can't be set",
            hint="Place or cancel an order, or leave quantity_reserved out.",
        )
    statements = expect(if_match, "inventory", inventory_id, _FOR_STAFF)
    settings = {
        name: value
        for name in ("reorder_point", "reorder_quantity")
        if (value := getattr(data, name)) is not UNSET
    }
    if settings:
        columns = ", ".join(f"{name} = %({name})s" for name in settings)
        query = f"update inventory set {columns} where id = %(id)s"  # noqa: S608
        statements.append((query, {**settings, "id": inventory_id}))
    expected = None if data.quantity_expected is UNSET else data.quantity_expected
    if data.quantity_available is not UNSET:
        counted = {"counted": data.quantity_available, "expected": expected}
        statements.append((_COUNT, {**counted, "id": inventory_id}))
    elif expected is not None:
        raise InvalidError(
            "quantity_expected is of a count, and quantity_available isn't there.",
            title="Nothing was counted",
            hint="Send what was counted as quantity_available too.",
        )
    return tagged(await caller.get(Inventory, *statements, _by_id(caller, inventory_id)))


@get("/reorder-suggestions", summary="List what to order", responses=refusals(400))
async def list_reorder_suggestions(
    caller: NamedDependency[Caller],
    listing: NamedDependency[Listing],
    product_id: Ids = None,
    warehouse_id: Ids = None,
) -> JsonResponse[Page[OverallSuggestion]]:
    """What runs out, by what can be sold, and how much of it to order; the shortest first."""
    filters = Filters()
    filters.any_of("product_id", UUID, product_id, "uuid")
    filters.any_of("warehouse_id", UUID, warehouse_id, "uuid")
    page = await listing.page(
        OverallSuggestion, "reorder_suggestions", filters, sorts=("-shortage", "sku")
    )
    await _add_what_is_in_transit(caller, page.content.data)
    return page


async def _add_what_is_in_transit(
    caller: Caller, shelves: Sequence[OverallInventory | OverallSuggestion]
) -> None:
    """Say of each what is on its way there from another cell; only those that it left know.

    While one of them doesn't answer nothing is said: it would be too little.
    """
    if not shelves or not isinstance(caller, Routed):
        return
    about = {"products": [each.product_id for each in shelves]}
    answers = await caller.ask_all(lambda here: here.get(_Transit, (_IN_TRANSIT, about)))
    if answers.away:
        return
    under_way: Counter[tuple[UUID, UUID]] = Counter()
    for found in answers.found.values():
        for each in found.shelves:
            under_way[each.product_id, each.to_warehouse_id] += each.quantity
    for shelf in shelves:
        shelf.quantity_in_transit = under_way[shelf.product_id, shelf.warehouse_id]


router = Router(
    "/inventory",
    route_handlers=[
        list_inventory,
        get_inventory,
        create_inventory,
        replace_inventory,
        update_inventory,
        delete_inventory,
        list_reorder_suggestions,
    ],
    tags=["inventory"],
)
