"""What a check is, whom it asks, and how all of them are made in a bounded time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from darkpearl import database, schema
from darkpearl.gateways import Gateway

CHECK_SECONDS = 5.0
"""How long a check may take; one that takes longer is a trouble of its own."""
DEEP_SECONDS = 120.0
AT_ONCE = 3
"""Checks that are made at the same time, each with a connection."""
BOUNDED = "-c statement_timeout=4s -c lock_timeout=4s"
"""Options of a patient's sessions: nothing is waited for without a bound."""
_CANCELS = 20
_INSUFFICIENT_PRIVILEGE = "42501"

State = Literal["ok", "warn", "fail"]
Row = dict[str, Any]


class Verdict(NamedTuple):
    """What a check has found, in a sentence, and how that is mended."""

    state: State
    says: str
    mend: str = ""


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor: the check, and its verdict."""

    check: str
    state: State
    says: str
    mend: str


def ok(says: str) -> Verdict:
    """All is well."""
    return Verdict("ok", says)


def warn(says: str, mend: str) -> Verdict:
    """It works, and somebody should look."""
    return Verdict("warn", says, mend)


def fail(says: str, mend: str) -> Verdict:
    """Something doesn't work, or will soon not."""
    return Verdict("fail", says, mend)


@dataclass(frozen=True)
class Patient:
    """The system that is examined.

    Attributes:
        url: the database, as the login of whoever asks.
        listener_url: where listeners log in.
        api_url: where APIs log in.
        make_gateway: of the settings; may raise ConfigError.
        has_webhook_secret: webhooks of the gateway can be verified.
        in_production: whether others rely on it.
        cell: the number of the cell that it is to be; 0: whichever it is.
        session: options of the sessions in which it is asked.
        since: how far back the gateway's books are read; None: as far as is likely to matter.
    """

    url: str
    listener_url: str
    api_url: str
    make_gateway: Callable[[], Gateway]
    has_webhook_secret: bool
    in_production: bool
    cell: int = 0
    session: str = BOUNDED
    since: datetime | None = None

    @contextlib.asynccontextmanager
    async def connect(self, url: str | None = None) -> AsyncIterator[Any]:
        """A connection with the patient's options.

        Raises:
            schema.SchemaError: it can't be had, or a statement fails.
        """
        options = f"-c search_path=darkpearl,pg_catalog {self.session}"
        async with schema.connect(database.with_options(url or self.url, options)) as connection:
            yield connection

    async def rows(self, query: str, *parameters: Any) -> list[Row]:
        """The rows of one statement."""
        async with self.connect() as connection:
            cursor = await connection.execute(query.encode(), parameters or None)
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def row(self, query: str, *parameters: Any) -> Row:
        """The only row of one statement."""
        (row,) = await self.rows(query, *parameters)
        return row


Check = Callable[[Patient], Awaitable[Verdict]]


def name_of(check: Check) -> str:
    """How a check is called in its line."""
    return check.__name__.replace("_", "-")


async def examine(
    patient: Patient, checks: Sequence[Check], *, seconds: float = CHECK_SECONDS
) -> AsyncIterator[Finding]:
    """Make the checks, some at once, and tell what they have found in their order.

    The first is made alone, and where it fails none of the others is: without it they would all
    say the same.

    Args:
        patient: whom to ask.
        checks: what to ask.
        seconds: how long each may take.
    """
    if not checks:
        return
    turn = asyncio.Semaphore(AT_ONCE)

    async def made(check: Check) -> Finding:
        async with turn:
            return await _bounded(patient, check, seconds)

    first = await made(checks[0])
    yield first
    if first.state == "fail":
        return
    others = [asyncio.create_task(made(each)) for each in checks[1:]]
    try:
        for each in others:
            yield await each
    finally:
        for each in others:
            each.cancel()


async def _bounded(patient: Patient, check: Check, seconds: float) -> Finding:
    """The finding of one check, whatever it does."""
    asked = asyncio.ensure_future(check(patient))
    try:
        await asyncio.wait({asked}, timeout=seconds)
        verdict = _verdict(asked, seconds)
    finally:
        await _abandon(asked)
    return Finding(name_of(check), *verdict)


def _verdict(asked: "asyncio.Future[Verdict]", seconds: float) -> Verdict:
    if not asked.done():
        return fail(
            f"no answer within {seconds:g} s",
            "Look at db inspect locks and at the load of the server, and ask again.",
        )
    try:
        return asked.result()
    except schema.SchemaError as error:
        if getattr(error.__cause__, "sqlstate", None) == _INSUFFICIENT_PRIVILEGE:
            return warn(
                f"this login may not ask: {error}",
                "Ask as a superuser, or as a login in darkpearl_reader and pg_monitor.",
            )
        return fail(f"it can't be asked: {error}", "Mend what it says, and ask again.")
    except Exception as error:  # noqa: BLE001 - what a check doesn't expect is its finding
        said = " ".join(str(error).split())[:200]
        return fail(
            f"it can't be asked: {type(error).__name__} {said}".rstrip(),
            "Mend what it says, and ask again.",
        )


async def _abandon(asked: "asyncio.Future[Verdict]") -> None:
    """Leave a check that doesn't end: each cancel ends one wait of its cleaning up, too."""
    for _ in range(_CANCELS):
        if asked.done():
            return
        asked.cancel()
        await asyncio.wait({asked}, timeout=0.05)


def people(names: Sequence[Any], most: int = 3) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(str(each) for each in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def ago(seconds: float) -> str:
    """Seconds in the largest unit that there are two of."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
