"""The middleware: every request and response goes through it, with a route or without one.

A request gets its id, or keeps a sane one that it brought; the id is in the answer, in problem
documents, in every log line and in the database. The answer gets the headers that keep browsers
from guessing. What happened is one log line: no query, no body, no header.
"""

import logging
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from darkpearl.api import problems
from darkpearl.api.admission import admit, settle
from darkpearl.api.bodies import LONGEST_TEXT
from darkpearl.telemetry import metrics, request_context
from darkpearl.telemetry.request_context import RequestContext

if TYPE_CHECKING:
    from darkpearl.telemetry.tracing import Tracing

SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
TRACE_CONTEXT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}
"""Of every answer, unless it brings its own: nothing is to be run, framed, guessed or kept."""
HSTS = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

logger = logging.getLogger("darkpearl.api")


class Middleware:
    """Wraps the application, its error pages included.

    Args:
        app: what answers.
        state: of the application: its tokens and limits.
        tracing: makes a span of each request; None: no traces.
    """

    def __init__(self, app: ASGIApp, state: State, tracing: "Tracing | None") -> None:
        self._app = app
        self._state = state
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        context = RequestContext(
            request_id(scope["headers"]), traceparent=traceparent(scope["headers"])
        )
        span = None
        if self._tracing:
            span = self._tracing.request(
                str(scope.get("method")), scope["scheme"], _path(scope), context.traceparent
            )
            context.traceparent = span.traceparent
        request_context.begin(context)
        status = 0
        began = time.perf_counter()
        answered = began

        async def answer(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], time.perf_counter()
                message["headers"] = _with_headers(message["headers"], scope, context)
            await send(message)

        try:
            admitted = scope["state"]["admission"] = await admit(scope, self._state)
            await self._app(scope, receive, answer)
            settle(admitted, status)
        except Exception:
            logger.exception("%s %s", scope.get("method"), _path(scope))
            if status:
                raise
            await problems.answer_bug(scope, answer)
        finally:
            route = scope.get("path_template")
            labels = str(route or "none"), str(scope.get("method")), str(status)
            metrics.requests.labels(*labels).observe(answered - began)
            if span:
                span.end(route, status)
            if logger.isEnabledFor(logging.INFO):
                _log(scope, context, status, time.perf_counter() - began)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that a request brings, when it is short and plain; else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            return value.decode()
    return str(uuid4())


def traceparent(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The W3C trace context that a request brings; nothing when it makes no sense."""
    for name, value in headers:
        if name == b"traceparent" and TRACE_CONTEXT.fullmatch(value):
            return value.decode()
    return ""


def _with_headers(
    given: Iterable[tuple[bytes, bytes]], scope: Scope, context: RequestContext
) -> list[tuple[bytes, bytes]]:
    headers = list(given)
    brought = {name.lower() for name, _ in headers}
    headers += [(name, value) for name, value in HEADERS.items() if name not in brought]
    headers.append((b"x-request-id", context.request_id.encode()))
    if scope["scheme"] == "https":
        headers.append(HSTS)
    if context.rate_limit:
        headers.append((b"ratelimit-policy", context.rate_limit_policy.encode()))
        headers.append((b"ratelimit", context.rate_limit.encode()))
    return headers


def _path(scope: Scope) -> str:
    """As it was asked for, without the query, and no longer than is of use."""
    path: bytes = scope.get("raw_path", b"").partition(b"?")[0]
    return path[:LONGEST_TEXT].decode("ascii", "backslashreplace")


def _log(scope: Scope, context: RequestContext, status: int, seconds: float) -> None:
    """One line for a request; status 0 is an answer that was never begun."""
    path = _path(scope)
    method = scope.get("method")
    fields = {
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(seconds * 1000, 1),
        "role": context.role,
    }
    logger.info(
        "%s %s %s in %.1f ms, %s, %s",
        method,
        path,
        status,
        seconds * 1000,
        context.role or "nobody",
        context.request_id,
        extra={"fields": fields},
    )
