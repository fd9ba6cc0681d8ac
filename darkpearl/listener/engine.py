"""The engine's functions as a listener calls them, each a transaction of its own.

There are two sessions, so that an advance and a settle may be under way at once.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

import msgspec
import psycopg

from darkpearl.listener.calls import Request, Settlement
from darkpearl.listener.pace import first_line
from darkpearl.listener.sessions import Begun, Rows, Sessions
from darkpearl.telemetry import metrics

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

NAME = "darkpearl listener"
_HELD = b"55P03"
"""What settle() says of an answer that it couldn't record, for another session's lock."""
_STATEMENTS = {
    "advance": "select requests::text, saga_id, error_code, step_name, claimed from advance($1)",
    "advance_elsewhere": "select requests::text, saga_id, error_code, step_name, claimed"
    " from advance_elsewhere($1, $2)",
    "settle": "select requests::text, saga_id, error_code, step_name from settle($1)",
}
_log = logging.getLogger(__name__)
_requests = msgspec.json.Decoder(list[Request], strict=False)
_encoder = msgspec.json.Encoder()
_NO_SPAN = contextlib.nullcontext()


class Engine:
    """The engine over the sessions of one listener.

    Every method raises psycopg.Error when its statement failed or the connection is lost.
    """

    def __init__(
        self, sessions: Sessions, tracing: "Tracing | None", complained: set[tuple[str, str]]
    ) -> None:
        self._sessions = sessions
        self._tracing = tracing
        self._complained = complained
        self._begun: Begun | None = None
        # Finding a series in the registry costs more than measuring.
        self._timers = {name: metrics.passes.labels(name) for name in ("advance", "settle")}

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str, tracing: "Tracing | None", complained: set[tuple[str, str]]
    ) -> AsyncIterator[Self]:
        """Connect; directly, since a pooler loses what is prepared.

        Args:
            url: where to.
            tracing: makes spans of passes.
            complained: the steps and SQLSTATEs that were logged already; outlives connections.
        """
        async with Sessions.connect(url, NAME, _STATEMENTS, count=2) as sessions:
            yield cls(sessions, tracing, complained)

    @property
    def has_begun(self) -> bool:
        """A claim has begun, and advance() is to take what comes of it."""
        return self._begun is not None

    def begin_advance(self, limit: int, crowded: Collection[str] = ()) -> None:
        """Have a claim of so many sagas begin, and return at once.

        Args:
            limit: how many at most.
            crowded: warehouses whose sagas are left where they are.
        """
        self._begun = self._begin(limit, crowded)

    async def advance(self, limit: int, crowded: Collection[str] = ()) -> tuple[int, list[Request]]:
        """Claim so many sagas at most; or wait for the claim that has begun already.

        Args:
            limit: how many at most.
            crowded: warehouses whose sagas are left where they are.

        Returns:
            How many were claimed, and the requests that the transaction has committed to.
        """
        counts = {"claimed": 0}
        with self._span("advance", counts), self._timers["advance"].time():
            begun, self._begun = self._begun, None
            rows = await (begun or self._begin(limit, crowded))()
            counts["claimed"] = sum([int(row[4] or 0) for row in rows])
        return counts["claimed"], self._heard(rows)

    def _begin(self, limit: int, crowded: Collection[str]) -> Begun:
        if crowded:
            warehouses = b"{%b}" % ",".join(crowded).encode()
            return self._sessions.begin("advance_elsewhere", b"%d" % limit, warehouses)
        return self._sessions.begin("advance", b"%d" % limit)

    async def settle(self, answers: list[Settlement]) -> tuple[list[Request], set[str]]:
        """Bring answers.

        Returns:
            The requests that the transaction has committed to, and the sagas whose answers are to
            be brought again, since another session holds what they would change.
        """
        with self._span("settle", {"answers": len(answers)}), self._timers["settle"].time():
            rows = await self._sessions.call("settle", _encoder.encode(answers))
        held = {saga.decode() for _, saga, code, *_ in rows if saga and code == _HELD}
        return self._heard(rows), held

    async def with_traces(self, requests: list[Request]) -> list[Request]:
        """The same requests with the traces that started them, if anything is traced.

        Those that can't be had are left out: a trace is no reason to lose a request.
        """
        if not (self._tracing and requests):
            return requests
        try:
            rows = await self._sessions.fetch(
                "select saga_id::text, traceparent from trace_contexts(%s::uuid[])",
                [request.saga_id for request in requests],
            )
        except psycopg.Error as error:
            _log.warning("traces begin anew: %s", first_line(error))
            return requests
        known: dict[str, str] = dict(rows)
        return [
            msgspec.structs.replace(request, traceparent=known.get(request.saga_id, ""))
            for request in requests
        ]

    async def ensure_event_partitions(self) -> list[str]:
        """Make the partitions that history will need next; the names of those that were made."""
        rows = await self._sessions.fetch("select ensure_event_partitions()")
        return [name for (name,) in rows]

    async def place_events(self) -> list[str]:
        """Move history into the partitions of its months; the names of those that were made."""
        rows = await self._sessions.fetch("select place_events()")
        return [name for (name,) in rows]

    async def forget_idempotency_keys(self, hours: int, limit: int) -> int:
        """Remove so many keys at most that are older than that; how many they were."""
        ((forgotten,),) = await self._sessions.fetch(
            "select forget_idempotency_keys(%s, %s)", hours, limit
        )
        return int(forgotten)

    async def forget_payment_tokens(self, limit: int) -> int:
        """Remove so many tokens at most of orders whose sagas have ended; how many they were."""
        ((forgotten,),) = await self._sessions.fetch("select forget_payment_tokens(%s)", limit)
        return int(forgotten)

    def _heard(self, rows: Rows) -> list[Request]:
        """The requests in what a pass returned. What else it says of sagas is logged."""
        requests: list[Request] = []
        for document, saga, code, step, *_ in rows:
            if document:
                requests += _requests.decode(document)
            if saga and code and step:
                self._complain(saga.decode(), code.decode(), step.decode())
            elif saga and code == _HELD:
                self._complain_of_locks()
            elif saga:
                # A webhook was faster, or the lease had run out.
                _log.info("saga %s: answer refused, it has moved on", saga.decode())
        return requests

    def _complain(self, saga: str, code: str, step: str) -> None:
        """A saga was set aside: said once for each step and error, however many follow."""
        if (step, code) not in self._complained:
            self._complained.add((step, code))
            _log.error(
                "%s raises %s: saga %s is set aside as stuck, and so are those that follow;"
                " stuck_sagas lists them, retry_saga() goes on once the cause is gone",
                step, code, saga,
            )  # fmt: skip

    def _complain_of_locks(self) -> None:
        """Answers can't be recorded yet: said once, and `engine_health` says it as it is."""
        if ("settle", "55P03") not in self._complained:
            self._complained.add(("settle", "55P03"))
            _log.warning(
                "answers wait for what another session holds; blocking_sessions() says which"
            )

    def _span(self, name: str, counts: dict[str, int]) -> AbstractContextManager[None]:
        """A span of one transaction, with its counts at the end, if anything is traced."""
        return self._tracing.engine_pass(name, counts) if self._tracing else _NO_SPAN
