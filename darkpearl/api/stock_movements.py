"""Stock movements: the ledger, and what people may write into it."""

from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, FromQuery

from darkpearl.api.access import PRODUCT_SUMMARY, WAREHOUSE_SUMMARY, Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Period
from darkpearl.api.problems import refusals
from darkpearl.errors import InvalidError
from darkpearl.models.stock import (
    CreatedStockMovement,
    CreateStockMovement,
    MovementType,
    StockMovement,
)

COLUMNS = f"""
    m.id, m.correlation_id, m.product_id, m.warehouse_id, m.movement_type, m.quantity,
    m.available_after, m.reserved_after, m.reference_type, m.reference_id, m.notes, m.actor,
    m.created_at, {PRODUCT_SUMMARY.format("m")}, {WAREHOUSE_SUMMARY.format("m")}
"""
_SELECT = f"select {COLUMNS} from stock_movements as m"  # noqa: S608 - literals

_MOVE = """
    {function}(
        %(warehouse_id)s, %(product_id)s, %(quantity)s, coalesce(%(correlation_id)s, new_id()),
        %(notes)s, %(reference_type)s, %(reference_id)s
    )
"""
_TRANSFER = """
    transfer_stock(
        %(from_id)s, %(to_id)s, %(product_id)s, %(quantity)s,
        coalesce(%(correlation_id)s, new_id()), %(notes)s
    )
"""

NewMovement = Annotated[
    CreateStockMovement,
    Body(
        examples=[
            Example(
                summary="Goods arrive",
                value={
                    "warehouse_id": "11111111-1111-1111-1111-111111111111",
                    "product_id": "aaaa1111-1111-1111-1111-111111111111",
                    "movement_type": "receive",
                    "quantity": 50,
                    "notes": "delivery 4711",
                },
            )
        ]
    ),
]


@get("/", summary="List stock movements", responses=refusals(400))
async def list_stock_movements(
    listing: NamedDependency[Listing],
    created: NamedDependency[Period],
    product_id: FromQuery[UUID | None] = None,
    warehouse_id: FromQuery[UUID | None] = None,
    movement_type: FromQuery[MovementType | None] = None,
    reference_type: FromQuery[str | None] = None,
    reference_id: FromQuery[UUID | None] = None,
    correlation_id: FromQuery[UUID | None] = None,
) -> JsonResponse[Page[StockMovement]]:
    """The ledger, newest first. An order's id is found as a reference too."""
    filters = Filters()
    filters.add("m.product_id = %(product_id)s", product_id=product_id)
    filters.add("m.warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    filters.add("m.movement_type = %(movement_type)s", movement_type=movement_type)
    filters.add("m.reference_type = %(reference_type)s", reference_type=reference_type)
    filters.add(
        "m.reference_id = %(reference_id)s or m.correlation_id = %(reference_id)s",
        reference_id=reference_id,
    )
    filters.add("m.correlation_id = %(correlation_id)s", correlation_id=correlation_id)
    filters.within("m.created_at", created)
    return await listing.page(StockMovement, _SELECT, filters, sorts=("-id",))


@get("/{movement_id:int}", summary="Get a stock movement", responses=refusals(400, 404))
async def get_stock_movement(
    caller: NamedDependency[Caller], movement_id: FromPath[int]
) -> StockMovement:
    """One line of the ledger. It never changes."""
    return await caller.get(StockMovement, (f"{_SELECT} where m.id = %(id)s", {"id": movement_id}))


@post("/", summary="Move stock", responses=refusals(400, 404, 409, 413, 415, 422))
async def create_stock_movement(
    once: NamedDependency[Once], data: NewMovement
) -> JsonResponse[CreatedStockMovement]:
    """Receive, adjust or transfer. The same again, under its correlation id, moves nothing."""
    parameters = msgspec.structs.asdict(data)
    if data.movement_type in {"receive", "adjust"}:
        _refuse_other_warehouses(data)
        moved = _MOVE.format(function=f"{data.movement_type}_stock")
    elif data.movement_type in {"transfer_out", "transfer_in"}:
        parameters["from_id"], parameters["to_id"] = _ends(data)
        moved = _TRANSFER
    else:
        raise InvalidError(
            f"A {data.movement_type} is written by an order's saga alone.",
            title="Only orders do that",
            hint="Place an order, or cancel it; use receive, adjust or a transfer for the rest.",
        )
    query = f"""
        with moved as (select m.* from {moved} as m),
        told as (select {COLUMNS} from moved as m)
        select asked.*, (
            select to_json(other) from told as other where other.id <> asked.id
        ) as counterpart
        from told as asked
        where asked.movement_type = %(movement_type)s
    """  # noqa: S608 - literals
    movement = await once.get(CreatedStockMovement, (query, parameters))
    return once.created(movement, f"/stock-movements/{movement.id}")


def _refuse_other_warehouses(data: CreateStockMovement) -> None:
    if data.to_warehouse_id or data.from_warehouse_id:
        raise InvalidError(
            f"A {data.movement_type} happens in one warehouse.",
            title="A second warehouse makes no sense",
            hint="Use transfer_out with to_warehouse_id, or transfer_in with from_warehouse_id.",
        )


def _ends(data: CreateStockMovement) -> tuple[UUID, UUID]:
    """Where a transfer starts and where it goes."""
    out = data.movement_type == "transfer_out"
    needed, other = ("to_warehouse_id", "from_warehouse_id")[:: 1 if out else -1]
    counterpart: UUID | None = getattr(data, needed)
    if counterpart is None or getattr(data, other) is not None:
        raise InvalidError(
            f"A {data.movement_type} needs {needed}, and no {other}.",
            title="A transfer needs two warehouses",
            hint=f"Name the other warehouse in {needed}.",
        )
    if data.reference_type is not None or data.reference_id is not None:
        raise InvalidError(
            "A transfer refers to its other warehouse.",
            title="A transfer's reference is given",
            hint="Leave reference_type and reference_id out.",
        )
    return (data.warehouse_id, counterpart) if out else (counterpart, data.warehouse_id)


router = Router(
    "/stock-movements",
    route_handlers=[list_stock_movements, get_stock_movement, create_stock_movement],
    tags=["stock movements"],
)
