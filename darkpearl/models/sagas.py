"""Sagas: where each stands, and its history."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from msgspec import Meta, Struct

from darkpearl.models.common import Request

SagaStatus = Literal["running", "waiting", "compensating", "completed", "compensated", "stuck"]
SagaEventType = Literal[
    "saga_started", "step_completed", "step_waiting", "step_failed", "step_deferred",
    "compensation_started", "step_compensated", "compensation_ended", "saga_completed",
    "saga_compensated", "saga_stuck", "retried", "cancelled", "skipped", "signalled", "reported",
    "shipped", "returned",
]  # fmt: skip
SignalDisposition = Literal["applied", "kept", "duplicate", "stale"]
Message = Annotated[
    str | None, Meta(description="For customers in our words; an outside system's are for staff")
]


class Saga(Struct):
    """Where a saga stands. Its id is the order's."""

    id: UUID
    saga_type: str
    status: SagaStatus
    current_step: Annotated[str | None, Meta(description="Null once the saga has ended")]
    attempts: int
    cancel_requested: bool
    error_code: Annotated[str | None, Meta(description="SQLSTATE of the last failure")]
    error_message: Message
    ready_at: Annotated[datetime | None, Meta(description="When it is looked at next")]
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    warehouse_id: UUID


class SagaEvent(Struct):
    """One transition of a saga."""

    id: int
    saga_id: UUID
    event_type: SagaEventType
    step_name: str | None
    attempt: int | None
    error_code: str | None
    message: Message
    next_attempt_at: datetime | None
    actor: str | None
    started_at: datetime | None
    created_at: datetime


class CreateSignal(Request):
    """Something that a saga waits for, or will."""

    step: Annotated[str, Meta(min_length=1, max_length=100, description="The step that waits")]
    payload: (
        Annotated[
            dict[str, Any],
            Meta(description="What there is to say; 64 kB at most. Empty when left out"),
        ]
        | None
    ) = None
    event_id: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=255,
                description="Names the event: told again it changes nothing. Made when left out",
            ),
        ]
        | None
    ) = None


class Signal(Struct):
    """What becomes of a signal."""

    disposition: Annotated[
        SignalDisposition,
        Meta(
            description="applied: the saga goes on with it; kept: it finds it when it comes to the"
            " step; duplicate: it was told before; stale: nobody will wait for it"
        ),
    ]
