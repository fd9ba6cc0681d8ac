"""The HTTP request in hand, for those that work for it without being handed it: logs, sessions."""

from contextvars import ContextVar

from msgspec import Struct


class RequestContext(Struct):
    """One request and what is known of it so far.

    Attributes:
        request_id: its name, in the answer, the logs and the database.
        role: the role it acts as, once that is known.
        rate_limit: the RateLimit header of the answer, when there is a limit.
        rate_limit_policy: the RateLimit-Policy header that goes with it.
        traceparent: W3C trace context that it brought, or that of its own span; nothing: neither.
    """

    request_id: str = ""
    role: str = ""
    rate_limit: str = ""
    rate_limit_policy: str = ""
    traceparent: str = ""


NONE = RequestContext()
_current: ContextVar[RequestContext] = ContextVar("request_context", default=NONE)


def begin(context: RequestContext) -> None:
    """From here on this task, and those that it starts, work for this request."""
    _current.set(context)


def current() -> RequestContext:
    """The request in hand; NONE where there is none."""
    return _current.get()
