"""Sagas: where each one stands, and its history."""

from typing import Annotated
from uuid import UUID

from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.listing import Filters, Listing, Page
from darkpearl.api.problems import refusals
from darkpearl.models.sagas import Saga, SagaEvent, SagaStatus

COLUMNS = """
    s.id, s.saga_type, s.status,
    case when s.completed_at is null then s.current_step end as current_step,
    s.attempts, s.max_attempts, s.cancel_requested, s.last_error_code as error_code,
    s.last_error as error_message, s.ready_at, s.created_at, s.updated_at, s.completed_at,
    s.warehouse_id
"""
EVENT_COLUMNS = """
    e.id, e.saga_id, e.event_type, e.step_name, e.attempt, e.error_code, e.message,
    e.next_attempt_at, e.actor, e.started_at, e.created_at
"""
SagaType = Annotated[
    str | None, QueryParameter(max_length=100, description="Such as order_fulfilment")
]

_SELECT = f"select {COLUMNS} from saga_overview as s"  # noqa: S608 - literals


@get("/", summary="List sagas", responses=refusals(400))
async def list_sagas(
    caller: NamedDependency[Caller],
    listing: NamedDependency[Listing],
    status: FromQuery[SagaStatus | None] = None,
    saga_type: SagaType = None,
    warehouse_id: FromQuery[UUID | None] = None,
) -> JsonResponse[Page[Saga]]:
    """Sagas, newest first (by their ids, which sort by time unless a client chose them)."""
    filters = Filters()
    filters.add("s.status = %(status)s", status=status)
    filters.add("s.saga_type = %(saga_type)s", saga_type=saga_type)
    filters.add("s.warehouse_id = %(warehouse_id)s", warehouse_id=warehouse_id)
    if not caller.is_staff:  # the policies would look at every saga for the few that are its own
        filters.add("s.id in (select o.id from orders as o)")
    return await listing.page(
        Saga,
        _SELECT,
        filters,
        sorts=("-id",),
        counted="sagas as s",  # the view would look for the last failure of every one
    )


@get("/{saga_id:uuid}", summary="Get a saga", responses=refusals(400, 404))
async def get_saga(caller: NamedDependency[Caller], saga_id: FromPath[UUID]) -> Saga:
    """Where a saga stands. It has the id of its order."""
    return await caller.get(Saga, (f"{_SELECT} where s.id = %(id)s", {"id": saga_id}))


@get("/{saga_id:uuid}/events", summary="List a saga's events", responses=refusals(400, 404))
async def list_saga_events(
    caller: NamedDependency[Caller], listing: NamedDependency[Listing], saga_id: FromPath[UUID]
) -> JsonResponse[Page[SagaEvent]]:
    """The history of a saga, oldest first: one event per transition."""
    events = await listing.page(
        SagaEvent,
        f"select {EVENT_COLUMNS} from saga_events as e",  # noqa: S608 - literals
        Filters().add("e.saga_id = %(saga_id)s", saga_id=saga_id),
        sorts=("id",),
    )
    if not events.content.data:
        await get_saga.fn(caller, saga_id)  # every saga has a first event, or isn't there
    return events


router = Router("/sagas", route_handlers=[list_sagas, get_saga, list_saga_events], tags=["sagas"])
