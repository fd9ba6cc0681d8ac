"""Products: the catalogue."""

from typing import Annotated
from uuid import UUID

from litestar import Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, FromQuery, JSONBody

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
from darkpearl.models.catalogue import CreateProduct, Product, UpdateProduct

SORTS = ("-created_at", "updated_at", "sku", "name", "unit_price")

NewProduct = Annotated[
    CreateProduct,
    Body(
        examples=[
            Example(
                summary="A product",
                value={"sku": "LAPTOP-16", "name": "Laptop, 16 inch", "unit_price": 1299.50},
            )
        ]
    ),
]


@get("/", summary="List products", security=ANYBODY, responses=refusals(400))
async def list_products(
    listing: NamedDependency[Listing],
    created: NamedDependency[Period],
    is_active: IsActive = None,
    sku: FromQuery[str | None] = None,
    search: Search = None,
) -> JsonResponse[Page[Product]]:
    """Products, newest first."""
    filters = Filters()
    filters.add("is_active = %(is_active)s", is_active=is_active)
    filters.add("sku = %(sku)s", sku=sku)
    filters.add("id in (select find_products(%(search)s))", search=search)
    filters.within("created_at", created)
    return await listing.page(Product, "products", filters, sorts=SORTS)


@get(
    "/{product_id:uuid}",
    summary="Get a product",
    security=ANYBODY,
    responses=refusals(400, 404) | UNCHANGED,
)
async def get_product(
    caller: NamedDependency[Caller], product_id: FromPath[UUID], if_none_match: IfNoneMatch = None
) -> JsonResponse[Product]:
    """One product."""
    query = "select * from products where id = %(id)s"
    return tagged(await caller.get(Product, (query, {"id": product_id})), if_none_match)


@post("/", summary="Create a product", responses=refusals(400, 409, 413, 415, 422))
async def create_product(once: NamedDependency[Once], data: NewProduct) -> JsonResponse[Product]:
    """Add a product to the catalogue. Its SKU must be new."""
    product = await once.get(Product, access.insert("products", data))
    return once.created(product, f"/products/{product.id}")


@put(
    "/{product_id:uuid}",
    summary="Replace a product",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def replace_product(
    caller: NamedDependency[Caller],
    product_id: FromPath[UUID],
    data: JSONBody[CreateProduct],
    if_match: IfMatch = None,
) -> JsonResponse[Product]:
    """Write all of it; what is left out gets its default."""
    return await _write(caller, product_id, data, if_match)


@patch(
    "/{product_id:uuid}",
    summary="Change a product",
    responses=refusals(400, 404, 409, 412, 413, 415, 422),
)
async def update_product(
    caller: NamedDependency[Caller],
    product_id: FromPath[UUID],
    data: JSONBody[UpdateProduct],
    if_match: IfMatch = None,
) -> JsonResponse[Product]:
    """Change what is sent; the rest stays. Orders keep the price they were placed with."""
    return await _write(caller, product_id, data, if_match)


@delete("/{product_id:uuid}", summary="Delete a product", responses=refusals(400, 404, 409, 412))
async def delete_product(
    caller: NamedDependency[Caller], product_id: FromPath[UUID], if_match: IfMatch = None
) -> None:
    """Remove a product that nothing refers to; else make it inactive instead."""
    expected = expect(if_match, "products", product_id)
    await caller.get(dict, *expected, access.delete("products", product_id))


async def _write(
    caller: Caller, product_id: UUID, data: CreateProduct | UpdateProduct, if_match: str | None
) -> JsonResponse[Product]:
    expected = expect(if_match, "products", product_id)
    merged = ("metadata",) if isinstance(data, UpdateProduct) else ()
    change = access.update("products", product_id, data, merged)
    return tagged(await caller.get(Product, *expected, change))


router = Router(
    "/products",
    route_handlers=[
        list_products,
        get_product,
        create_product,
        replace_product,
        update_product,
        delete_product,
    ],
    opt={"cells": CATALOGUE},
    tags=["products"],
)
