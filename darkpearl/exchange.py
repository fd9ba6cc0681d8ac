"""The HTTP request in hand, for whoever works for it without being handed it: logs, sessions."""

from contextvars import ContextVar

from msgspec import Struct


class Exchange(Struct):
    """One request and what is known of it so far.

    Attributes:
        request_id: its name, in the answer, the logs and the database.
        role: whom it acts as, once that is known.
        rate_limit: the RateLimit header of the answer, when there is a limit.
        traceparent: W3C trace context that it brought, or that of its own span; nothing: neither.
    """

    request_id: str = ""
    role: str = ""
    rate_limit: str = ""
    traceparent: str = ""


NONE = Exchange()
_current: ContextVar[Exchange] = ContextVar("exchange", default=NONE)


def begin(exchange: Exchange) -> None:
    """What this task and those it starts do from here on is for this request."""
    _current.set(exchange)


def current() -> Exchange:
    """The request in hand; NONE where there is none."""
    return _current.get()
