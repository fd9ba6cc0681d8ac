"""Who calls, and whether it may ask: found out before anything is looked up, read or parsed.

At the edge every request gets its identity and is counted, whatever becomes of it. What came of
that is told where the application's own errors are told: before a handler's parameters and body
are read, or instead of "there is no such path".
"""

from functools import cache
from typing import Any, NamedTuple

from litestar import Request
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.types import Scope

from darkpearl.api.access import Caller, token_needed
from darkpearl.api.limits import Limiter, address_key, subject_key
from darkpearl.api.parameters import refuse_unknown
from darkpearl.api.routing import Routed, route
from darkpearl.api.tokens import ANONYMOUS, Identity
from darkpearl.cells.reach import Reach
from darkpearl.config import ANY_PROXY
from darkpearl.errors import (
    PROBLEMS,
    DarkPearlError,
    ForbiddenError,
    RateLimitError,
    UnauthorizedError,
    UnavailableError,
)
from darkpearl.telemetry import request_context

OTHERS = "darkpearl api"
VISITORS = "darkpearl api visitors"
"""The kinds of pools: visitors take no connection of the others."""
PROBES = "/health/"
"""Who looks whether the process runs is not counted."""
WEBHOOKS = "/payments/webhooks/"
"""A gateway is known by its signature: its requests are only counted when they are refused."""


class Admission(NamedTuple):
    """What the edge has found out about a request."""

    key: str
    """What the caller is counted under."""
    identity: Identity = ANONYMOUS
    limiter: Limiter | None = None
    """Where it is counted when it is refused; None: it has been counted."""
    error: DarkPearlError | None = None
    """Its token isn't valid, or can't be checked."""
    limit: RateLimitError | None = None
    """It is one request too many."""


def admission(scope: Scope) -> Admission:
    """What the edge has found out about a request."""
    found: Admission = scope["state"]["admission"]
    return found


async def admit(scope: Scope, state: State) -> Admission:
    """Find out who calls, and count it: by its subject, else by its address."""
    if state.settings.trusted_proxies == ANY_PROXY:
        _believe(scope)
    client = scope["client"]
    address = address_key(client[0] if client else "")
    if scope["path"].startswith(PROBES):
        return Admission(address)
    identity, error, counts = ANONYMOUS, None, True
    try:
        identity = await state.tokens.identify(
            [
                value.decode("latin-1")
                for name, value in scope["headers"]
                if name == b"authorization"
            ]
        )
    except (UnauthorizedError, UnavailableError) as told:
        error = told
    key = subject_key(identity.subject) if identity.subject else address
    limiter: Limiter = state.visitors_limiter if identity.is_visitor else state.limiter
    if scope["path"].startswith(WEBHOOKS):
        key, counts = f"webhook {address}", False
    context = request_context.current()
    try:
        context.rate_limit = limiter.take(key, count=counts)
        context.rate_limit_policy = limiter.policy
    except RateLimitError as told:
        return Admission(key, limit=told)
    return Admission(key, identity, None if counts else limiter, error)


def settle(admitted: Admission, status: int) -> None:
    """Count a request that has turned out to be refused, where only those are counted."""
    if admitted.limiter and 400 <= status < 500:  # noqa: PLR2004 - the class of refusals
        try:
            admitted.limiter.take(admitted.key)
        except RateLimitError:  # others have filled it meanwhile
            return


async def let_in(request: Request[Any, Any, Any]) -> None:
    """Refuse who asks too often or isn't known, then parameters that the handler doesn't take.

    A coroutine, though it waits for nothing: Litestar gives a function that is none to a thread.
    No guard either, since each of those is given a copy of the handler.

    Raises:
        RateLimitError: it is one request too many.
        UnauthorizedError: the token isn't valid, or there is none where one is needed.
        ForbiddenError: the token is a visitor's.
        BadRequestError: there are unknown parameters.
    """
    found = admission(request.scope)
    if found.limit:
        raise found.limit
    handler = request.route_handler
    if not isinstance(handler, HTTPRouteHandler) or not handler.resolve_include_in_schema():
        return
    looks_at_tokens, needs_one = _tokens(handler)
    if looks_at_tokens and found.error:
        raise found.error
    if needs_one and found.identity is ANONYMOUS:
        raise token_needed()
    if needs_one and found.identity.is_visitor:
        raise ForbiddenError(
            "The role anon may not do that.", title=PROBLEMS["42501"].title, code="42501"
        )
    refuse_unknown(request, handler)


async def caller(request: Request[Any, Any, Any], state: State) -> Caller:
    """The caller of a request: the one that its token names, or anon."""
    found = admission(request.scope)
    request_context.current().role = found.identity.role
    return await caller_of(request, state.reach, found)


async def caller_of(request: Request[Any, Any, Any], reach: Reach, found: Admission) -> Caller:
    """Who asks, with the way to the cell that the request is for, where there are several."""
    kind = VISITORS if found.identity.is_visitor else OTHERS
    known = await reach.directory()
    if len(reach.cells) < 2:  # noqa: PLR2004 - alone
        return Caller(reach.own[kind], found.identity, found.key)
    where = await route(request, reach, known)
    return Routed(reach, kind, found.identity, found.key, where)


async def staff(request: Request[Any, Any, Any], state: State) -> Caller:
    """The caller of a request that only staff may make.

    Raises:
        UnauthorizedError: the token isn't valid, or there is none.
        ForbiddenError: it is a customer's or a visitor's.
    """
    found = admission(request.scope)
    if found.error:
        raise found.error
    if found.identity is ANONYMOUS:
        raise token_needed()
    if not found.identity.is_staff:
        raise ForbiddenError(
            f"The role {found.identity.role} may not do that.",
            title=PROBLEMS["42501"].title,
            code="42501",
        )
    return await caller(request, state)


@cache
def _tokens(handler: HTTPRouteHandler) -> tuple[bool, bool]:
    """Whether a handler looks at tokens, and whether it needs one: as its description says."""
    security = handler.resolve_security()
    return security != [{}], {} not in security


def _believe(scope: Scope) -> None:
    """Take over what the proxy right before us says: the last address, which it has added."""
    headers = dict(scope["headers"])
    last = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip().decode("latin-1")
    if last:
        scope["client"] = last, 0
    if headers.get(b"x-forwarded-proto") in {b"http", b"https"}:
        scope["scheme"] = headers[b"x-forwarded-proto"].decode()
