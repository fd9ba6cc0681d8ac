"""Stock movements: the ledger, and what people may write into it."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Request, Router, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import Body, FromPath, FromQuery, QueryParameter
from litestar.status_codes import HTTP_202_ACCEPTED
from msgspec import UNSET

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Ids, Period, several
from darkpearl.api.problems import refusals
from darkpearl.api.routing import Routed
from darkpearl.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from darkpearl.models.stock import (
    CreatedStockMovement,
    CreateStockMovement,
    MovementType,
    StockMovement,
)

BY_HAND = {"receive", "transfer_out", "transfer_in", "adjust"}
"""What people move; an index has just these."""
BY_HAND_IS = "(movement_type in ('receive', 'transfer_out', 'transfer_in', 'adjust')) is true"
_REFERENCE_IS = (
    "coalesce(reference_type, case when movement_type in ('reserve', 'release', 'fulfill')"
    " then 'order' end) = %(reference_type)s"
)
"""As stock_ledger shows it."""
_REASON_IS = (
    "movement_type = 'adjust' and (correlation_id, product_id, warehouse_id) in"
    " (select r.correlation_id, r.product_id, r.warehouse_id"
    " from movement_reasons as r where r.reason_code = %(reason_code)s)"
)
_RECORDED = (
    "select * from recorded_movements where correlation_id = %(id)s and product_id = %(of)s"
    " order by (movement_type, warehouse_id) <> (%(type)s, %(at)s), id limit 1"
)
"""What was asked for; of goods that another cell is to let in, what is made here: they leave."""

OfWarehouse = Annotated[
    UUID | None,
    QueryParameter(description="Its warehouse, where several cells number their movements"),
]
MovementTypes = Annotated[list[str] | None, several(MovementType)]
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
    product_id: Ids = None,
    warehouse_id: Ids = None,
    movement_type: MovementTypes = None,
    reference_type: FromQuery[str | None] = None,
    reference_id: FromQuery[UUID | None] = None,
    correlation_id: FromQuery[UUID | None] = None,
    reason_code: FromQuery[str | None] = None,
) -> JsonResponse[Page[StockMovement]]:
    """The ledger, newest first. An order's id is found as a reference too."""
    filters = Filters()
    filters.any_of("product_id", UUID, product_id, "uuid")
    filters.any_of("warehouse_id", UUID, warehouse_id, "uuid")
    types: list[MovementType] | None = filters.any_of(
        "movement_type", MovementType, movement_type, "movement_type"
    )
    if types is not None and BY_HAND.issuperset(types):
        filters.add(BY_HAND_IS)
    filters.add(_REFERENCE_IS, reference_type=reference_type)
    filters.add(
        "reference_id = %(reference_id)s or correlation_id = %(reference_id)s",
        reference_id=reference_id,
    )
    filters.add("correlation_id = %(correlation_id)s", correlation_id=correlation_id)
    filters.add(_REASON_IS, reason_code=reason_code)
    filters.within("created_at", created)
    return await listing.page(
        StockMovement, "stock_ledger", filters, sorts=("-id",), table="stock_movements"
    )


@get("/{movement_id:int}", summary="Get a stock movement", responses=refusals(400, 404, 409))
async def get_stock_movement(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    movement_id: FromPath[int],
    warehouse_id: OfWarehouse = None,
) -> StockMovement:
    """One line of the ledger. It never changes, and is there for as long as it is kept.

    Movements are numbered by each cell for itself: where there are several, a number needs its
    warehouse.
    """
    filters = Filters().add("id = %(id)s", id=movement_id)
    filters.add("warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    listing = Listing(caller, request, 1, None, "", None)
    page = await listing.page(StockMovement, "stock_ledger", filters, sorts=("id",))
    found = page.content
    if found.next:
        raise ConflictError(
            f"Several warehouses have a movement {movement_id}.",
            title="The number isn't one movement's",
            hint="Add warehouse_id, which says which of them is meant.",
        )
    if found.missing_cells:
        away = ", ".join(found.missing_cells)
        raise UnavailableError(f"{away} may have a movement {movement_id}, and didn't answer.")
    if not found.data:
        raise NotFoundError("There is no such row, or it is not yours to see.")
    return found.data[0]


@post(
    "/",
    summary="Move stock",
    responses=refusals(400, 404, 409, 413, 415, 422)
    | {
        202: ResponseSpec(
            CreatedStockMovement,
            description="The goods have left for another cell",
            generate_examples=False,
        )
    },
)
async def create_stock_movement(
    caller: NamedDependency[Caller], once: NamedDependency[Once], data: NewMovement
) -> JsonResponse[CreatedStockMovement]:
    """Receive, adjust or transfer. The same again, under its correlation id, moves nothing.

    A transfer to another cell is answered with 202: the goods have left, and `/transfers` says
    whether they have arrived.
    """
    correlation_id = data.correlation_id or await once.new_id()
    name = {
        "id": correlation_id,
        "type": data.movement_type,
        "of": data.product_id,
        "at": data.warehouse_id,
    }
    if data.reason_code is not None and data.movement_type != "adjust":
        raise InvalidError(
            f"A {data.movement_type} has no reason_code.",
            title="Only an adjustment has a reason",
            hint="Leave reason_code out; notes say what there is to say.",
        )
    if data.movement_type in {"receive", "adjust"}:
        _refuse_other_warehouses(data)
        why = {"reason_code": data.reason_code} if data.movement_type == "adjust" else {}
        move = access.call(
            "receive_stock" if data.movement_type == "receive" else "adjust_stock",
            **why,
            warehouse_id=data.warehouse_id,
            product_id=data.product_id,
            quantity=data.quantity,
            correlation_id=correlation_id,
            notes=data.notes,
            reference_type=data.reference_type,
            reference_id=data.reference_id,
        )
    elif data.movement_type in {"transfer_out", "transfer_in"}:
        from_warehouse_id, to_warehouse_id = _ends(data)
        move = access.call(
            "transfer_stock",
            from_warehouse_id=from_warehouse_id,
            to_warehouse_id=to_warehouse_id,
            product_id=data.product_id,
            quantity=data.quantity,
            correlation_id=correlation_id,
            notes=data.notes,
        )
    else:
        raise InvalidError(
            f"A {data.movement_type} is written by an order's saga alone.",
            title="Only orders do that",
            hint="Place an order, or cancel it; use receive, adjust or a transfer for the rest.",
        )
    movement = await once.get(CreatedStockMovement, move, (_RECORDED, name))
    if movement.transfer:
        response = once.created(movement, f"/transfers/{movement.correlation_id}")
        response.status_code = HTTP_202_ACCEPTED
        return response
    movement.transfer = UNSET
    location = f"/stock-movements/{movement.id}"
    if isinstance(caller, Routed):
        location += f"?warehouse_id={movement.warehouse_id}"
    return once.created(movement, location)


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
