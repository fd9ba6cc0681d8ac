"""Inventory: how much of a product a warehouse has. Quantities move through the ledger alone."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Router, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET

from darkpearl.api import access
from darkpearl.api.access import PRODUCT_SUMMARY, WAREHOUSE_SUMMARY, Caller, Filters, Statement
from darkpearl.api.parameters import DEFAULT_LIMIT, Limit, Offset
from darkpearl.api.problems import refusals
from darkpearl.api.wire import JsonResponse
from darkpearl.errors import InvalidError, NotFoundError
from darkpearl.models import CreateInventory, Inventory, Page, UpdateInventory

LowStock = Annotated[
    bool | None,
    QueryParameter(description="Whether the shelf holds its reorder point or less"),
]

_SELECT = f"""
    select i.*, {PRODUCT_SUMMARY.format("i")}, {WAREHOUSE_SUMMARY.format("i")}
    from inventory as i
"""  # noqa: S608 - literals


def _by_id(inventory_id: UUID) -> Statement:
    return f"{_SELECT} where i.id = %(id)s", {"id": inventory_id}


@get("/", summary="List inventory", responses=refusals(400))
async def list_inventory(
    caller: NamedDependency[Caller],
    product_id: FromQuery[UUID | None] = None,
    warehouse_id: FromQuery[UUID | None] = None,
    low_stock: LowStock = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
) -> Page[Inventory]:
    """What lies where, newest rows first."""
    filters = Filters()
    filters.add("i.product_id = %(product_id)s", product_id=product_id)
    filters.add("i.warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    filters.add(
        "(i.quantity_available <= i.reorder_point) = %(low_stock)s::boolean", low_stock=low_stock
    )
    return await caller.page(
        Inventory, _SELECT, filters, order="created_at desc, id desc", limit=limit, offset=offset
    )


@get("/{inventory_id:uuid}", summary="Get an inventory row", responses=refusals(400, 404))
async def get_inventory(caller: NamedDependency[Caller], inventory_id: FromPath[UUID]) -> Inventory:
    """How much there is, with the product and the warehouse."""
    return await caller.get(Inventory, _by_id(inventory_id))


@post("/", summary="Stock a product", responses=refusals(400, 404, 409, 415, 422))
async def create_inventory(
    caller: NamedDependency[Caller], data: JSONBody[CreateInventory]
) -> JsonResponse[Inventory]:
    """Stock a product in a warehouse. Units that are there already are received at once."""
    given = msgspec.structs.asdict(data)
    added = (
        """
        insert into inventory (product_id, warehouse_id, reorder_point, reorder_quantity)
        select p.id, w.id, %(reorder_point)s, %(reorder_quantity)s
        from products as p, warehouses as w
        where p.id = %(product_id)s and w.id = %(warehouse_id)s
        """,
        given,
    )
    received = (
        """
        select receive_stock(i.warehouse_id, i.product_id, %(quantity_available)s,
            p_notes => 'opening stock')
        from inventory as i
        where i.product_id = %(product_id)s and i.warehouse_id = %(warehouse_id)s
            and %(quantity_available)s > 0
        """,
        given,
    )
    made = (
        f"{_SELECT} where i.product_id = %(product_id)s and i.warehouse_id = %(warehouse_id)s",
        given,
    )
    row = await caller.find(Inventory, added, received, made)
    if row is None:
        raise NotFoundError("There is no such product, or no such warehouse.")
    return JsonResponse(row, headers={"Location": f"/inventory/{row.id}"})


@put(
    "/{inventory_id:uuid}", summary="Update inventory", responses=refusals(400, 404, 409, 415, 422)
)
async def update_inventory(
    caller: NamedDependency[Caller], inventory_id: FromPath[UUID], data: JSONBody[UpdateInventory]
) -> Inventory:
    """Change reorder settings, or enter what was counted: the difference is an adjustment."""
    if data.quantity_reserved is not UNSET:
        raise InvalidError(
            "quantity_reserved moves with orders alone.",
            title="Reserved units can't be set",
            hint="Place or cancel an order, or leave quantity_reserved out.",
        )
    statements: list[Statement] = []
    settings = {
        name: value
        for name in ("reorder_point", "reorder_quantity")
        if (value := getattr(data, name)) is not UNSET
    }
    if settings:
        columns = ", ".join(f"{name} = %({name})s" for name in settings)
        query = f"update inventory set {columns} where id = %(id)s"  # noqa: S608
        statements.append((query, {**settings, "id": inventory_id}))
    if data.quantity_available is not UNSET:
        query = """
            select count_stock(i.warehouse_id, i.product_id, %(counted)s)
            from inventory as i where i.id = %(id)s
        """
        statements.append((query, {"counted": data.quantity_available, "id": inventory_id}))
    return await caller.get(Inventory, *statements, _by_id(inventory_id))


@delete("/{inventory_id:uuid}", summary="Delete inventory", responses=refusals(400, 404, 409))
async def delete_inventory(caller: NamedDependency[Caller], inventory_id: FromPath[UUID]) -> None:
    """Stop stocking a product in a warehouse; refused while units lie there."""
    await caller.get(dict, access.delete("inventory", inventory_id))


router = Router(
    "/inventory",
    route_handlers=[
        list_inventory,
        get_inventory,
        create_inventory,
        update_inventory,
        delete_inventory,
    ],
    tags=["inventory"],
)
