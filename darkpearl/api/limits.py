"""How often a caller may ask, and how much it may hold at once, in the memory of this process.

The caller is the subject of a verified token, else the client's address; of IPv6 the /64, which is
what one client has. However long a name is, its key is short. How often is a token bucket for each:
one number, the moment at which it is full again (GCRA).
"""

import functools
import hashlib
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
LONGEST_NAME = 64
NOWHERE = "nowhere"


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

    def take(self, caller: str, *, count: bool = True) -> str:
        """Count one request; the RateLimit header of its answer, empty without a limit.

        Args:
            caller: whose request it is.
            count: without it only look whether there could be one.

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
        if not count:
            return ""
        self._full_at[caller] = full_at
        self._full_at.move_to_end(caller)
        if len(self._full_at) > MAX_BUCKETS:
            self._full_at.popitem(last=False)
        left = int((WINDOW_SECONDS - (full_at - now)) / cost + 1e-6)
        return f'"default";r={left};t={math.ceil(full_at - now)}'


class Shares:
    """Things under way, so many at most of all callers, and of each.

    Args:
        what: these are, in the plural.
        most: of all callers.
        most_each: of each.
    """

    def __init__(self, what: str, most: int, most_each: int) -> None:
        self._what = what
        self._most = most
        self._most_each = most_each
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def check(self, caller: str, *, is_staff: bool) -> None:
        """Look whether there may be one more. Staff, who work for others, have no share.

        Raises:
            UnavailableError: there are too many.
            RateLimitError: the caller has too many.
        """
        if len(self) >= self._most:
            raise UnavailableError(f"This process has {self._most} {self._what} under way already.")
        if not is_staff and self._held[caller] >= self._most_each:
            raise RateLimitError(
                f"{self._most_each} {self._what} are under way already.",
                title=PROBLEMS["DP039"].title,
                code="DP039",
                hint="Wait for one to end, or end it.",
            )

    @contextmanager
    def held(self, caller: str, *, is_staff: bool) -> Iterator[None]:
        """One of a caller, counted until the end of the block. Raises as check()."""
        self.check(caller, is_staff=is_staff)
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]


def subject_key(subject: str) -> str:
    """The caller that tokens of a subject are counted as."""
    if len(subject) > LONGEST_NAME:
        subject = hashlib.sha256(subject.encode()).hexdigest()
    return f"sub {subject}"


def address_key(host: str) -> str:
    """The caller that clients at an address are counted as; what is no address is all one."""
    return _network(host) if len(host) <= LONGEST_NAME else NOWHERE


@functools.lru_cache(MAX_BUCKETS)
def _network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a socket's path, a test, what somebody made up
        return NOWHERE
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped:  # as a socket for both kinds shows it
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
