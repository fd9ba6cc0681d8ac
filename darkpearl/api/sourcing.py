"""Orders that name no warehouse, where several cells have some: placed in one of them.

Each cell is asked what it could serve. The first warehouse by priority that can serve all of it
alone has it, of whatever cell; else the cell that takes the fewest of its own. It is placed there
by the cell itself, which looks again: what was free a moment ago may be gone, and then the next has
it. No order is divided between cells, since it could be half placed.

A key, an id or a reference is one request's, wherever it is placed. Who places under one holds it
at home meanwhile, and asks all cells whether it was done before; where one of them is away, it may
have been done there, and nothing is placed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from darkpearl.api.access import Caller, Execute, Statement, made_in, sent
from darkpearl.api.bodies import decoder
from darkpearl.api.idempotency import Once
from darkpearl.api.routing import HOME, Answers, Routed
from darkpearl.cells.offers import OFFER, TOO_LITTLE, Offer, best_of, too_little
from darkpearl.cells.reach import AwayError
from darkpearl.errors import (
    ConflictError,
    DarkPearlError,
    UnavailableError,
    from_sqlstate,
    translated,
)
from darkpearl.models.orders import CreatedOrder, CreateOrder, Quote

_HOLD = "select hold_names(%(idempotency_key)s, %(id)s, %(reference)s)"
_KNOWN = (
    "select find_request(%(idempotency_key)s, %(request_hash)s) as answer,"
    " law_of_names(%(id)s, %(reference)s) as law"
)

T = TypeVar("T")
Statements = Callable[[UUID], list[Statement]]
"""What places an order under an id, and reads it."""


class _Refusal(NamedTuple):
    """What a cell says of an order that makes no sense there; its catalogue may be late."""

    error: DarkPearlError


class _Within(Caller):
    """A caller whose statements are of a transaction that is under way."""

    def __init__(self, caller: Caller, execute: Execute) -> None:
        super().__init__(caller._pool, caller._identity, caller.key)  # noqa: SLF001 - its own kind
        self._execute = execute

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Execute]:
        """The one that is under way, whose end is not this one's; what is wrong is told here."""
        with translated():
            yield self._execute
            await (await self._execute("select", {})).fetchone()  # all before it is answered


class _GoneError(Exception):
    """What a cell had offered is gone."""

    def __init__(self, cell: int, refusal: ConflictError) -> None:
        super().__init__(str(refusal))
        self.cell = cell
        self.refusal = refusal


class Sourcing:
    """The placing, or the quoting, of one order that names no warehouse.

    Args:
        caller: who asks.
        data: what is asked for.
    """

    def __init__(self, caller: Routed, data: CreateOrder) -> None:
        self._caller = caller
        self._data = data
        self._home: Caller | None = None
        """Home, in the transaction that holds the names of the request."""

    async def quote(self, statement: Statement) -> Quote:
        """What the order would cost where it would be placed.

        Raises:
            ConflictError: no cell can serve it.
            DarkPearlError: whatever the database says.
        """
        return await self._in_turn(lambda cell: self._ask(cell, _getting(Quote, statement)))

    async def place(self, once: Once, statements: Statements) -> CreatedOrder:
        """The order, placed, or as it was the first time; the caller acts in its cell from then on.

        Args:
            once: how often it is placed; says whether it was placed before.
            statements: what places it.

        Raises:
            ConflictError: no cell can serve it, or its id or reference is taken.
            UnavailableError: it may have been placed in a cell that is away.
            DarkPearlError: whatever the database says.
        """
        names = {
            "idempotency_key": None,
            "request_hash": None,
            **(once.request or {}),
            "id": self._data.id,
            "reference": self._data.reference,
        }
        if not any(names.values()):
            return await self._in_turn(lambda cell: self._place(cell, once, statements))
        if HOME not in self._caller.cells:
            raise UnavailableError("Where home is isn't known.")
        try:
            return await self._in_turn(
                lambda cell: self._place(cell, once, statements),
                within=lambda go_on: self._holding(names, once, go_on),
            )
        except AwayError:
            found = await self._find(names, once)  # home may be what is away
            if found is None:
                raise
            return found

    async def _in_turn(
        self,
        do: Callable[[int], Awaitable[T]],
        within: Callable[[Callable[[], Awaitable[T]]], Awaitable[T]] | None = None,
    ) -> T:
        """Do something in the cell whose offer is best; where it is gone by then, in the next."""
        tried: dict[int, ConflictError] = {}

        async def attempt() -> T:
            cell = await self._best(tried)
            try:
                return await do(cell)
            except ConflictError as error:
                if error.code != TOO_LITTLE:
                    raise
                raise _GoneError(cell, error) from error

        while True:
            try:
                return await (within(attempt) if within else attempt())
            except _GoneError as gone:
                tried[gone.cell] = gone.refusal

    async def _holding(
        self, names: dict[str, Any], once: Once, go_on: Callable[[], Awaitable[CreatedOrder]]
    ) -> CreatedOrder:
        """Go on while nobody else places under the same names, unless it was done before."""

        async def held(home: Caller) -> CreatedOrder:
            async with home.transaction() as execute:
                await (await execute(_HOLD, names)).fetchone()
                self._home = _Within(home, execute)
                try:
                    found = await self._find(names, once)
                    if found is not None:
                        return found
                    return await go_on()
                finally:
                    self._home = None

        return await self._caller.ask(HOME, held)

    async def _place(self, cell: int, once: Once, statements: Statements) -> CreatedOrder:
        """Place the order in a cell, under the key of its request."""

        async def placed(here: Caller) -> CreatedOrder:
            there = once.by(here)
            order = await there.get(CreatedOrder, *statements(self._data.id or made_in(cell)))
            once.replayed = there.replayed
            return order

        order = await self._ask(cell, placed)
        self._caller.cell = cell
        return order

    async def _find(self, names: dict[str, Any], once: Once) -> CreatedOrder | None:
        """The order as it was placed before under the key, in whatever cell; None: it wasn't.

        Raises:
            ConflictError: its id or its reference is another order's.
            InvalidError: the key stands for something else.
            AwayError: a cell doesn't say.
        """
        answers = await self._ask_all(lambda here: here.run((_KNOWN, names)))
        rows = {number: row for number, row in answers.found.items() if row}
        for number, row in rows.items():
            if row["answer"] is not None:
                once.replayed = True
                self._caller.cell = number
                answer: CreatedOrder = decoder(CreatedOrder).decode(row["answer"])
                return answer
        for law in (row["law"] for row in rows.values() if row["law"]):
            raise from_sqlstate("23505", constraint=law)
        if answers.away:
            raise AwayError(*answers.away)
        return None

    async def _best(self, tried: dict[int, ConflictError]) -> int:
        """The cell that is to have the order, but for those that were tried.

        Raises:
            ConflictError: there is none.
            DarkPearlError: the order makes no sense; home's word counts for that.
        """
        asked = (OFFER, {"items": sent(self._data.items)})

        async def offer(here: Caller) -> Offer | _Refusal:
            try:
                return await here.get(Offer, asked)
            except UnavailableError:
                raise
            except DarkPearlError as error:
                return _Refusal(error)

        answers = await self._ask_all(offer, tried)
        offers = {n: each for n, each in answers.found.items() if isinstance(each, Offer)}
        refused = {n: each.error for n, each in answers.found.items() if isinstance(each, _Refusal)}
        if (best := best_of(offers, refused, tried)) is not None:
            return best
        if not offers:
            raise AwayError(*answers.away)
        raise too_little(offers.values(), [each.name for each in answers.away])

    async def _ask(self, cell: int, do: Callable[[Caller], Awaitable[T]]) -> T:
        """Do something in one cell; at home in the transaction that holds the names."""
        if self._home is not None and cell == HOME:
            return await do(self._home)
        return await self._caller.ask(cell, do)

    async def _ask_all(
        self, do: Callable[[Caller], Awaitable[T]], but: dict[int, Any] | None = None
    ) -> Answers[T]:
        """Do something in all cells, but for some."""
        asked = [each for each in self._caller.cells if each not in (but or {})]
        found: dict[int, T] = {}
        if self._home is not None and HOME in asked:
            asked.remove(HOME)
            found[HOME] = await do(self._home)
        if not asked:
            return Answers(found, [])
        others = await self._caller.ask_all(do, asked)
        return Answers(found | others.found, others.away)


def _getting(kind: type[T], statement: Statement) -> Callable[[Caller], Awaitable[T]]:
    return lambda here: here.get(kind, statement)
