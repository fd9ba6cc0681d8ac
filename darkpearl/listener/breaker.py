"""The circuit breaker: a gateway that doesn't answer is left alone, until it is seen to be back."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from darkpearl.gateways import Gateway

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
OUTAGE_SECONDS = 30.0
"""Without an answer to more than one payment: an outage, however few payments there are."""
LONGEST_TRY_SECONDS = 5.0
"""How long others wait at most while one call is made to see if the gateway is back."""
UNSEEN_SECONDS = 10.0
"""Without a call by which to see, after which the gateway's books are asked for instead."""
LOOK_SECONDS = 5.0
"""Between two looks whether that is so, and how long the gateway has for its answer."""
_log = logging.getLogger(__name__)


class Breaker:
    """A circuit breaker of one listener: opens when so many payments in a row get no answer.

    Where there are few of them, two are enough when nothing has been answered for a while. Open,
    nothing is asked, longer with each failed try to close it. Half open, one call is let through to
    see, of a payment that hasn't failed yet if there is one. An answer closes it, even a bad one:
    it says that the gateway is up. Where no call comes to see, see_again() does.
    """

    def __init__(self, failures: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = failures
        self._clock = clock
        self._failing: set[str] = set()
        self._silent_since = 0.0
        self._passed_over: set[str] = set()
        self._trying = False
        self._pause_seconds = 0.0
        self._open_until = 0.0
        self._wanted_at = clock()

    @property
    def open(self) -> bool:
        """No call is to be made."""
        return self._clock() < self._open_until

    @property
    def half_open(self) -> bool:
        """One call is to be made, to see."""
        return self._pause_seconds > 0 and not self.open

    @property
    def is_unseen(self) -> bool:
        """It is half open, and for a while no call has come by which to see."""
        return self.half_open and self._clock() - self._wanted_at >= UNSEEN_SECONDS

    @property
    def state(self) -> int:
        """0 while it is closed, 1 while half open, 2 while open."""
        return 2 if self.open else int(self.half_open)

    def wait_seconds(self, payment: str) -> float:
        """How long a call about a payment is to wait; 0: it is to be made now."""
        self._wanted_at = self._clock()
        if self.open:
            return self._open_until - self._clock()
        if not self.half_open:
            return 0.0
        failed_before = payment in self._failing and payment not in self._passed_over
        if self._trying or failed_before:
            self._passed_over.add(payment)  # when it comes again nothing else has come
            return min(self._pause_seconds, LONGEST_TRY_SECONDS)
        self._trying = True
        return 0.0

    def succeeded(self) -> None:
        """The gateway answered."""
        self._failing.clear()
        self._passed_over.clear()
        self._trying = False
        self._pause_seconds = 0.0

    def looked(self) -> None:
        """The gateway answered, though not a call: one more without an answer opens it again."""
        self._pause_seconds = 0.0

    def failed(self, payment: str) -> None:
        """The gateway didn't answer a call about a payment."""
        if not self._failing:
            self._silent_since = self._clock()
        self._failing.add(payment)
        silent = len(self._failing) > 1 and self._clock() - self._silent_since >= OUTAGE_SECONDS
        if self.open or not (silent or len(self._failing) >= self._threshold or self.half_open):
            return
        self._passed_over.clear()
        self._trying = False
        self._pause_seconds = min(
            max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds), LONGEST_PAUSE_SECONDS
        )
        self._open_until = self._clock() + self._pause_seconds
        _log.warning(
            "the gateway fails; this listener asks nothing for %.0f s", self._pause_seconds
        )


async def see_again(gateway: Gateway, breaker: Breaker) -> None:
    """Ask for the gateway's newest payments while nobody pays; ends only by being cancelled.

    Else a listener to which no order comes would say that its gateway fails, long after it is back.
    What isn't answered changes nothing: the next order is tried at once all the same.
    """
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if breaker.is_unseen:
            with contextlib.suppress(Exception):  # whatever it raises, it was no answer
                async with asyncio.timeout(LOOK_SECONDS):
                    await anext(gateway.payments(datetime.now(UTC)), None)
                breaker.looked()
