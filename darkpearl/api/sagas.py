"""Sagas: where each one stands, its history, and what it is told."""

from typing import Annotated
from uuid import UUID

from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK

from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.parameters import several
from darkpearl.api.problems import refusals
from darkpearl.models.sagas import CreateSignal, Saga, SagaEvent, SagaStatus, Signal

Statuses = Annotated[list[str] | None, several(SagaStatus)]
SagaType = Annotated[
    str | None, QueryParameter(max_length=100, description="Such as order_fulfilment")
]

UNDER_WAY = {"running", "waiting", "compensating"}
"""The statuses in which a saga is to be looked at again; an index has just these."""
_STATE = "select * from saga_states where id = %(id)s"
_SIGNAL = "select signal_saga(%(saga_id)s, %(step)s, %(payload)s, %(event_id)s) as disposition"


@get("/", summary="List sagas", responses=refusals(400))
async def list_sagas(
    caller: NamedDependency[Caller],
    listing: NamedDependency[Listing],
    status: Statuses = None,
    saga_type: SagaType = None,
    warehouse_id: FromQuery[UUID | None] = None,
) -> JsonResponse[Page[Saga]]:
    """Sagas, newest first (by their ids, which sort by time unless a client chose them)."""
    filters = Filters()
    statuses: list[SagaStatus] | None = filters.any_of("status", SagaStatus, status, "saga_status")
    if statuses is not None and UNDER_WAY.issuperset(statuses):
        filters.add("ready_at is not null")
    elif statuses == ["stuck"]:
        filters.add("(status = 'stuck') is true")  # says how few, as in stuck_sagas
    filters.add("saga_type = %(saga_type)s", saga_type=saga_type)
    filters.add("warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    if not caller.is_staff:  # the policies would look at every saga for the few that are its own
        filters.add("id in (select o.id from orders as o)")
    return await listing.page(
        Saga,
        "saga_states",
        filters,
        sorts=("-id",),
        table="sagas",
    )


@get("/{saga_id:uuid}", summary="Get a saga", responses=refusals(400, 404))
async def get_saga(caller: NamedDependency[Caller], saga_id: FromPath[UUID]) -> Saga:
    """Where a saga stands. It has the id of its order."""
    return await caller.get(Saga, (_STATE, {"id": saga_id}))


@get("/{saga_id:uuid}/events", summary="List a saga's events", responses=refusals(400, 404))
async def list_saga_events(
    listing: NamedDependency[Listing], saga_id: FromPath[UUID]
) -> JsonResponse[Page[SagaEvent]]:
    """The history of a saga, oldest first: one event per transition."""
    filters = Filters().add("saga_id = %(saga_id)s", saga_id=saga_id)
    return await listing.page_of(
        (_STATE, {"id": saga_id}), SagaEvent, "saga_history", filters, sorts=("id",)
    )


@post(
    "/{saga_id:uuid}/signals",
    summary="Signal a saga",
    status_code=HTTP_200_OK,
    responses=refusals(400, 404, 409, 413, 415, 422),
)
async def signal_saga(
    once: NamedDependency[Once], saga_id: FromPath[UUID], data: JSONBody[CreateSignal]
) -> JsonResponse[Signal]:
    """Tell a saga what it waits for at a step, or will: an approval, a parcel handed over."""
    told = {
        "saga_id": saga_id,
        "step": data.step,
        "payload": access.sent(data.payload or {}),
        "event_id": data.event_id or str(await once.new_id()),
    }
    return once.answered(await once.get(Signal, (_SIGNAL, told)))


router = Router(
    "/sagas",
    route_handlers=[list_sagas, get_saga, list_saga_events, signal_saga],
    tags=["sagas"],
)
