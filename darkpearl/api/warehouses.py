"""Warehouses: where stock lies."""

from uuid import UUID

from litestar import Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.description import ANYBODY
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import IsActive, Period, Search
from darkpearl.api.problems import refusals
from darkpearl.api.routing import CATALOGUE
from darkpearl.api.versions import UNCHANGED, IfMatch, IfNoneMatch, expect, tagged
from darkpearl.models.catalogue import CreateWarehouse, UpdateWarehouse, Warehouse

SORTS = ("-created_at", "updated_at", "code", "name")


@get("/", summary="List warehouses", security=ANYBODY, responses=refusals(400))
async def list_warehouses(
    listing: NamedDependency[Listing],
    created: NamedDependency[Period],
    is_active: IsActive = None,
    code: FromQuery[str | None] = None,
    search: Search = None,
) -> JsonResponse[Page[Warehouse]]:
    """Warehouses, newest first."""
    filters = Filters()
    filters.add("is_active = %(is_active)s", is_active=is_active)
    filters.add("code = %(code)s", code=code)
    filters.add("search_words(code, name) @@ search_query(%(search)s)", search=search)
    filters.within("created_at", created)
    return await listing.page(Warehouse, "warehouses", filters, sorts=SORTS)


@get(
    "/{warehouse_id:uuid}",
    summary="Get a warehouse",
    security=ANYBODY,
    responses=refusals(400, 404) | UNCHANGED,
)
async def get_warehouse(
    caller: NamedDependency[Caller], warehouse_id: FromPath[UUID], if_none_match: IfNoneMatch = None
) -> JsonResponse[Warehouse]:
    """One warehouse."""
    query = "select * from warehouses where id = %(id)s"
    return tagged(await caller.get(Warehouse, (query, {"id": warehouse_id})), if_none_match)


@post("/", summary="Create a warehouse", responses=refusals(400, 409, 413, 415, 422))
async def create_warehouse(
    once: NamedDependency[Once], data: JSONBody[CreateWarehouse]
) -> JsonResponse[Warehouse]:
    """Add a warehouse. Its code must be new."""
    warehouse = await once.get(Warehouse, access.insert("warehouses", data))
    return once.created(warehouse, f"/warehouses/{warehouse.id}")


@put(
    "/{warehouse_id:uuid}",
    summary="Replace a warehouse",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def replace_warehouse(
    caller: NamedDependency[Caller],
    warehouse_id: FromPath[UUID],
    data: JSONBody[CreateWarehouse],
    if_match: IfMatch = None,
) -> JsonResponse[Warehouse]:
    """Write all of it; what is left out gets its default."""
    return await _write(caller, warehouse_id, data, if_match)


@patch(
    "/{warehouse_id:uuid}",
    summary="Change a warehouse",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def update_warehouse(
    caller: NamedDependency[Caller],
    warehouse_id: FromPath[UUID],
    data: JSONBody[UpdateWarehouse],
    if_match: IfMatch = None,
) -> JsonResponse[Warehouse]:
    """Change what is sent; the rest stays. An inactive one takes no new orders."""
    return await _write(caller, warehouse_id, data, if_match)


@delete(
    "/{warehouse_id:uuid}", summary="Delete a warehouse", responses=refusals(400, 404, 409, 412)
)
async def delete_warehouse(
    caller: NamedDependency[Caller], warehouse_id: FromPath[UUID], if_match: IfMatch = None
) -> None:
    """Remove a warehouse that nothing refers to; else make it inactive instead."""
    expected = expect(if_match, "warehouses", warehouse_id)
    await caller.get(dict, *expected, access.delete("warehouses", warehouse_id))


async def _write(
    caller: Caller,
    warehouse_id: UUID,
    data: CreateWarehouse | UpdateWarehouse,
    if_match: str | None,
) -> JsonResponse[Warehouse]:
    expected = expect(if_match, "warehouses", warehouse_id)
    return tagged(
        await caller.get(Warehouse, *expected, access.update("warehouses", warehouse_id, data))
    )


router = Router(
    "/warehouses",
    route_handlers=[
        list_warehouses,
        get_warehouse,
        create_warehouse,
        replace_warehouse,
        update_warehouse,
        delete_warehouse,
    ],
    opt={"cells": CATALOGUE},
    tags=["warehouses"],
)
