"""Adjustment reasons: why units are written off or found. Users add their own."""

from typing import Annotated

from litestar import Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.problems import refusals
from darkpearl.api.routing import CATALOGUE
from darkpearl.models.stock import AdjustmentReason, CreateAdjustmentReason

Code = Annotated[str, Meta(max_length=50)]

_REASON = "select * from adjustment_reasons where code = %(code)s"
_DELETE = "delete from adjustment_reasons where code = %(code)s returning code"


@get("/", summary="List adjustment reasons", responses=refusals(400))
async def list_adjustment_reasons(
    listing: NamedDependency[Listing],
) -> JsonResponse[Page[AdjustmentReason]]:
    """The reasons that an adjustment may have, by their codes."""
    return await listing.page(
        AdjustmentReason, "adjustment_reasons", Filters(), sorts=("code",), unique="code"
    )


@get("/{code:str}", summary="Get an adjustment reason", responses=refusals(400, 404))
async def get_adjustment_reason(
    caller: NamedDependency[Caller], code: FromPath[Code]
) -> AdjustmentReason:
    """One reason."""
    return await caller.get(AdjustmentReason, (_REASON, {"code": code}))


@post("/", summary="Add an adjustment reason", responses=refusals(400, 409, 413, 415, 422))
async def create_adjustment_reason(
    once: NamedDependency[Once], data: JSONBody[CreateAdjustmentReason]
) -> JsonResponse[AdjustmentReason]:
    """Add a reason of one's own. Its code must be new."""
    reason = await once.get(AdjustmentReason, access.insert("adjustment_reasons", data))
    return once.created(reason, f"/adjustment-reasons/{reason.code}")


@delete("/{code:str}", summary="Delete an adjustment reason", responses=refusals(400, 404, 409))
async def delete_adjustment_reason(caller: NamedDependency[Caller], code: FromPath[Code]) -> None:
    """Remove a reason that no movement has."""
    await caller.get(dict, (_DELETE, {"code": code}))


router = Router(
    "/adjustment-reasons",
    route_handlers=[
        list_adjustment_reasons,
        get_adjustment_reason,
        create_adjustment_reason,
        delete_adjustment_reason,
    ],
    opt={"cells": CATALOGUE},
    tags=["stock movements"],
)
