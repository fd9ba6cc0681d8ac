"""Products: what can be sold."""

from typing import Annotated
from uuid import UUID

from litestar import Router, delete, get, post, put
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, JSONBody, QueryParameter

from darkpearl.api import access
from darkpearl.api.access import Caller, Filters
from darkpearl.api.parameters import DEFAULT_LIMIT, IsActive, Limit, Offset
from darkpearl.api.problems import refusals
from darkpearl.api.wire import JsonResponse
from darkpearl.models import CreateProduct, Page, Product, UpdateProduct

Search = Annotated[
    str | None,
    QueryParameter(
        min_length=1, max_length=255, description="Part of the SKU or of the name, in any case"
    ),
]

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


@get("/", summary="List products", responses=refusals(400, 422))
async def list_products(
    caller: NamedDependency[Caller],
    is_active: IsActive = None,
    search: Search = None,
    limit: Limit = DEFAULT_LIMIT,
    offset: Offset = 0,
) -> Page[Product]:
    """Products, newest first."""
    filters = Filters()
    filters.add("is_active = %(is_active)s", is_active=is_active)
    filters.add(
        "sku ilike %(pattern)s or name ilike %(pattern)s",
        pattern=None if search is None else f"%{_escaped(search)}%",
    )
    return await caller.page(
        Product,
        "select * from products",
        filters,
        order="created_at desc, id desc",
        limit=limit,
        offset=offset,
    )


@get("/{product_id:uuid}", summary="Get a product", responses=refusals(400, 404))
async def get_product(caller: NamedDependency[Caller], product_id: FromPath[UUID]) -> Product:
    """One product."""
    return await caller.get(
        Product, ("select * from products where id = %(id)s", {"id": product_id})
    )


@post("/", summary="Create a product", responses=refusals(400, 409, 415, 422))
async def create_product(
    caller: NamedDependency[Caller], data: NewProduct
) -> JsonResponse[Product]:
    """Add a product to the catalogue. Its SKU must be new."""
    product = await caller.get(Product, access.insert("products", data))
    return JsonResponse(product, headers={"Location": f"/products/{product.id}"})


@put("/{product_id:uuid}", summary="Update a product", responses=refusals(400, 404, 409, 415, 422))
async def update_product(
    caller: NamedDependency[Caller], product_id: FromPath[UUID], data: JSONBody[UpdateProduct]
) -> Product:
    """Change what is sent; the rest stays. Orders keep the price they were placed with."""
    return await caller.get(Product, access.update("products", product_id, data))


@delete("/{product_id:uuid}", summary="Delete a product", responses=refusals(400, 404, 409))
async def delete_product(caller: NamedDependency[Caller], product_id: FromPath[UUID]) -> None:
    """Remove a product that nothing refers to; else make it inactive instead."""
    await caller.get(dict, access.delete("products", product_id))


def _escaped(text: str) -> str:
    """Text that LIKE takes literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


router = Router(
    "/products",
    route_handlers=[list_products, get_product, create_product, update_product, delete_product],
    tags=["products"],
)
