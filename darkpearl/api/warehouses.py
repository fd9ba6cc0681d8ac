"""Warehouses: where stock lies."""

from uuid import UUID

from litestar import Router, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from darkpearl.api import access
from darkpearl.api.access import Caller, Filters
from darkpearl.api.parameters import DEFAULT_LIMIT, IsActive, Limit, Offset
from darkpearl.api.problems import refusals
from darkpearl.api.wire import JsonResponse
from darkpearl.models import CreateWarehouse, Page, UpdateWarehouse, Warehouse


@get("/", summary="List warehouses", responses=refusals(400))
async def list_warehouses(
    caller: NamedDependency[Caller],
    is_active: IsActive = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
) -> Page[Warehouse]:
    """Warehouses, newest first."""
    filters = Filters().add("is_active = %(is_active)s", is_active=is_active)
    return await caller.page(
        Warehouse,
        "select * from warehouses",
        filters,
        order="created_at desc, id desc",
        limit=limit,
        offset=offset,
    )


@get("/{warehouse_id:uuid}", summary="Get a warehouse", responses=refusals(400, 404))
async def get_warehouse(caller: NamedDependency[Caller], warehouse_id: FromPath[UUID]) -> Warehouse:
    """One warehouse."""
    return await caller.get(
        Warehouse, ("select * from warehouses where id = %(id)s", {"id": warehouse_id})
    )


@post("/", summary="Create a warehouse", responses=refusals(400, 409, 415, 422))
async def create_warehouse(
    caller: NamedDependency[Caller], data: JSONBody[CreateWarehouse]
) -> JsonResponse[Warehouse]:
    """Add a warehouse. Its code must be new."""
    warehouse = await caller.get(Warehouse, access.insert("warehouses", data))
    return JsonResponse(warehouse, headers={"Location": f"/warehouses/{warehouse.id}"})


@put(
    "/{warehouse_id:uuid}",
    summary="Update a warehouse",
    responses=refusals(400, 404, 409, 415, 422),
)
async def update_warehouse(
    caller: NamedDependency[Caller], warehouse_id: FromPath[UUID], data: JSONBody[UpdateWarehouse]
) -> Warehouse:
    """Change what is sent; the rest stays. An inactive one takes no new orders."""
    return await caller.get(Warehouse, access.update("warehouses", warehouse_id, data))


@delete("/{warehouse_id:uuid}", summary="Delete a warehouse", responses=refusals(400, 404, 409))
async def delete_warehouse(caller: NamedDependency[Caller], warehouse_id: FromPath[UUID]) -> None:
    """Remove a warehouse that nothing refers to; else make it inactive instead."""
    await caller.get(dict, access.delete("warehouses", warehouse_id))


router = Router(
    "/warehouses",
    route_handlers=[
        list_warehouses,
        get_warehouse,
        create_warehouse,
        update_warehouse,
        delete_warehouse,
    ],
    tags=["warehouses"],
)
