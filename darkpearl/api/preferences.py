"""How long a client would wait for an order, as it says in a header Prefer (RFC 7240).

The order is committed before anybody waits, so nothing that happens meanwhile takes it back: not
that too many wait, nor that the database goes away. Who doesn't wait is told how it was placed.
"""

import re
import time
from contextlib import suppress
from typing import Annotated
from uuid import UUID

from litestar.datastructures import State
from litestar.params import HeaderParameter

from darkpearl.api.access import Caller
from darkpearl.api.events import POLL_SECONDS, stopping
from darkpearl.errors import RateLimitError, UnavailableError

LONGEST_WAIT_SECONDS = 30
FIRST_LOOK_SECONDS = 0.025
"""After which the first look comes; each next one later, up to POLL_SECONDS."""

Prefer = Annotated[
    str | None,
    HeaderParameter(
        name="Prefer",
        max_length=1000,
        description="`wait=5`: answer when the order's stock is reserved, or the order refused or"
        f" done, or after so many seconds, {LONGEST_WAIT_SECONDS} at most (RFC 7240)."
        " A repeat under an Idempotency-Key is answered at once",
    ),
]

_WAIT = re.compile(r'(?:^|[,\s])wait\s*=\s*"?(\d{1,6})"?\s*(?=[,;]|$)', re.IGNORECASE)
_LOOK = "select order_is_decided(%(id)s) as decided"


def preferred_wait(prefer: str | None) -> int:
    """The seconds that a client would wait; 0 for one that doesn't say, or not in a way of the RFC.

    A preference that can't be read is none: so the RFC has it.
    """
    said = _WAIT.search(prefer or "")
    return min(int(said[1]), LONGEST_WAIT_SECONDS) if said else 0


async def wait_for_order(caller: Caller, state: State, order_id: UUID, seconds: int) -> bool:
    """Wait until an order is reserved, refused or done, or so long; False: it can't be waited for.

    No connection is held between looks.
    """
    until, pause = time.monotonic() + seconds, FIRST_LOOK_SECONDS
    with (
        suppress(RateLimitError, UnavailableError),
        state.waits.held(caller.key, is_staff=caller.is_staff),
    ):
        while (left := until - time.monotonic()) > 0 and not caller.has_expired:
            if await stopping(state, min(pause, left)):
                return False
            row = await caller.run((_LOOK, {"id": order_id}))
            if row is None or row["decided"] is not False:
                break
            pause = min(2 * pause, POLL_SECONDS)
        return True
    return False
