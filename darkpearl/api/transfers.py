"""Transfers to other cells: goods that have left, until they have arrived or are back."""

from typing import Annotated
from uuid import UUID

from litestar import Router, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from litestar.status_codes import HTTP_202_ACCEPTED

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import Ids, Period, several
from darkpearl.api.problems import refusals
from darkpearl.models.stock import Transfer, TransferStatus

Statuses = Annotated[list[str] | None, several(TransferStatus)]
Reason = Annotated[str | None, QueryParameter(max_length=500, description="For the history")]

_TRANSFER = "select * from transfer_states where id = %(id)s"


@get("/", summary="List transfers", responses=refusals(400))
async def list_transfers(
    listing: NamedDependency[Listing],
    created: NamedDependency[Period],
    status: Statuses = None,
    product_id: Ids = None,
    warehouse_id: Ids = None,
    to_warehouse_id: Ids = None,
) -> JsonResponse[Page[Transfer]]:
    """Goods that went to another cell, newest first; `status=in_transit` are under way.

    A transfer within a cell is done at once: it is two movements, and none of these.
    """
    filters = Filters()
    filters.any_of("status", TransferStatus, status, "transfer_status")
    filters.any_of("product_id", UUID, product_id, "uuid")
    filters.any_of("warehouse_id", UUID, warehouse_id, "uuid")
    filters.any_of("to_warehouse_id", UUID, to_warehouse_id, "uuid")
    filters.within("created_at", created)
    return await listing.page(Transfer, "transfer_states", filters, sorts=("-created_at",))


@get("/{transfer_id:uuid}", summary="Get a transfer", responses=refusals(400, 404))
async def get_transfer(caller: NamedDependency[Caller], transfer_id: FromPath[UUID]) -> Transfer:
    """What has become of goods that went to another cell; /sagas has its saga, under this id."""
    return await caller.get(Transfer, (_TRANSFER, {"id": transfer_id}))


@delete(
    "/{transfer_id:uuid}",
    summary="Call a transfer back",
    status_code=HTTP_202_ACCEPTED,
    responses=refusals(400, 404, 422),
)
async def call_back_transfer(
    caller: NamedDependency[Caller], transfer_id: FromPath[UUID], reason: Reason = None
) -> Transfer:
    """Ask for goods back that are in transit. Its saga puts them back, unless they are in already.

    Of a transfer that is over nothing changes.
    """
    call_back = access.call("call_back_transfer", transfer_id=transfer_id, reason=reason)
    return await caller.get(Transfer, call_back, (_TRANSFER, {"id": transfer_id}))


router = Router(
    "/transfers",
    route_handlers=[list_transfers, get_transfer, call_back_transfer],
    tags=["stock movements"],
)
