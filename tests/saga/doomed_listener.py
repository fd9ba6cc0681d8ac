"""A listener that kills itself at a boundary: `python doomed_listener.py URL PLACE LOG`.

Every call of its gateway is a line in LOG, flushed before it is answered.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from darkpearl.config import Settings
from darkpearl.gateways import Answer, Call
from darkpearl.listener import Listener
from darkpearl.serving import limits_of

url, place, log = sys.argv[1], sys.argv[2], Path(sys.argv[3])


def die_at(here: str) -> None:
    """End without a word, if this is the place."""
    if here == place:
        os.kill(os.getpid(), signal.SIGKILL)


def write(line: str) -> None:
    """Keep a line, whatever happens next."""
    with log.open("a") as file:
        file.write(line + "\n")


class LoggingGateway:
    """Approves everything and writes down what it was asked."""

    name = "test"

    async def authorize(self, call: Call) -> Answer:
        """Charge, or die before or after."""
        die_at("before the charge")
        write(f"charge {call.idempotency_key}")
        die_at("after the charge")
        return Answer("approved", gateway="test")

    async def void(self, call: Call) -> Answer:
        """Void."""
        write(f"void {call.idempotency_key}")
        return Answer("approved", gateway="test")

    capture = refund = void

    async def lookup(self, call: Call) -> None:
        """It has no memory."""

    async def close(self) -> None:
        """Nothing to close."""


class DoomedListener(Listener):
    """Dies around its two calls of the engine."""

    async def _advance(self, *arguments: Any) -> int:
        die_at("before the claim")
        claimed = await super()._advance(*arguments)
        if claimed:
            die_at("after the first commit")
        return claimed

    async def _settle(self, *arguments: Any) -> int:
        die_at("before settle")
        settled = await super()._settle(*arguments)
        die_at("after settle")
        return settled


asyncio.run(DoomedListener(url, LoggingGateway(), limits_of(Settings())).run())
