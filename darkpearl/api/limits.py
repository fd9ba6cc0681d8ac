"""How often a caller may ask, and how many streams it may hold, in the memory of this process.

The caller is the subject of a verified token, else the client's address; of IPv6 the /64, which is
what one client has. How often is a token bucket for each: one number, the moment at which it is
full again (GCRA).
"""

import functools
import ipaddress
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from darkpearl.errors import PROBLEMS, RateLimitError, UnavailableError

WINDOW_SECONDS = 60
MAX_BUCKETS = 50_000
"""Beyond it the one that rested longest is forgotten, which by then is as good as full."""


class Limiter:
    """So many requests per minute for each caller; 0 is no limit. Bursts up to a minute's worth."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    @property
    def policy(self) -> str:
        """The RateLimit-Policy header; empty without a limit."""
        return f'"default";q={self._per_minute};w={WINDOW_SECONDS}' if self._per_minute else ""

    def take(self, caller: str) -> str:
        """Count one request; the RateLimit header of its answer, empty without a limit.

        Raises:
            RateLimitError: it is one too many; it says when to come back.
        """
        if not self._per_minute:
            return ""
        now = self._clock()
        cost = WINDOW_SECONDS / self._per_minute
        full_at = max(self._full_at.get(caller, now), now) + cost
        excess = full_at - now - WINDOW_SECONDS
        if excess > 1e-6:  # noqa: PLR2004 - what sums of floats are off by
            raise RateLimitError(
                f"More than {self._per_minute} requests in a minute.",
                title=PROBLEMS["DP039"].title,
                code="DP039",
                hint="Slow down; Retry-After says when the next one is welcome.",
                retry_after_seconds=math.ceil(excess),
            )
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        if len(self._full_at) > MAX_BUCKETS:
            self._full_at.popitem(last=False)
        left = int((WINDOW_SECONDS - (full_at - now)) / cost + 1e-6)
        return f'"default";r={left};t={math.ceil(full_at - now)}'


class Streams:
    """Streams under way, so many at most of all callers, and of each."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def check(self, caller: str, *, is_staff: bool) -> None:
        """Look whether there may be one more. Staff, who follow for others, have no share.

        Raises:
            UnavailableError: there are too many.
            RateLimitError: the caller has too many.
        """
        if len(self) >= self._most:
            raise UnavailableError(f"This process follows {self._most} orders already.")
        if not is_staff and self._held[caller] >= self._most_each:
            raise RateLimitError(
                f"{self._most_each} streams are open already.",
                title=PROBLEMS["DP039"].title,
                code="DP039",
                hint="Close one, or read the order now and then.",
            )

    @contextmanager
    def held(self, caller: str, *, is_staff: bool) -> Iterator[None]:
        """One stream of a caller, counted until the end of the block. Raises as check()."""
        self.check(caller, is_staff=is_staff)
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]


@functools.lru_cache(MAX_BUCKETS)
def address_key(host: str) -> str:
    """The caller that clients at an address are counted as."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket's path, a test
        return host
    if address.version == 6:  # noqa: PLR2004 - the version's name
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
