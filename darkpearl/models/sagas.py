"""Sagas: where each stands, and its history."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta, Struct

SagaStatus = Literal["running", "waiting", "compensating", "completed", "compensated", "stuck"]
SagaEventType = Literal[
    "saga_started", "step_completed", "step_waiting", "step_failed", "compensation_started",
    "step_compensated", "saga_completed", "saga_compensated", "saga_stuck", "retried",
    "cancelled", "skipped",
]  # fmt: skip


class Saga(Struct):
    """Where a saga stands. Its id is the order's."""

    id: UUID
    saga_type: str
    status: SagaStatus
    current_step: Annotated[str | None, Meta(description="Null once the saga has ended")]
    attempts: int
    max_attempts: int | None
    cancel_requested: bool
    error_code: Annotated[str | None, Meta(description="SQLSTATE of the last failure")]
    error_message: str | None
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
    message: str | None
    next_attempt_at: datetime | None
    actor: str | None
    started_at: datetime | None
    created_at: datetime
