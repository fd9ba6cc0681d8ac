"""The way to the database: the role of a request, and statements that become documents.

PostgreSQL writes each answer as one JSON document, which is decoded into its Struct: ids, times
and exact amounts need no code of ours. All statements of a request go out in one pipeline, as one
transaction whose commit is awaited before there is a response.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct

from darkpearl.api.bodies import decoder, encoder
from darkpearl.api.pipeline import pipeline
from darkpearl.api.tokens import ANONYMOUS, Identity
from darkpearl.database import Pool
from darkpearl.errors import (
    PROBLEMS,
    ForbiddenError,
    NotFoundError,
    UnauthorizedError,
    translated,
)
from darkpearl.telemetry import request_context

_BEGIN = b"begin isolation level read committed"
_FOR_THE_CALLER = b"select " + b", ".join(
    b"set_config('%b', %%s, true)" % setting
    for setting in (
        *(b"role", b"request.jwt.claims", b"statement_timeout", b"application_name"),
        b"request.id",
    )
)
"""Settings that tell a transaction of its caller, and are gone with it.

Nothing of a request is told to the session, which behind a pooler is somebody else's next."""
_TRACED = b", set_config('request.traceparent', %s, true)"
_IS_HERE = b", refuse_id_elsewhere(%s::uuid)"

T = TypeVar("T")
Parameters = dict[str, Any]
Statement = tuple[str, Parameters]
Execute = Callable[[str, Parameters], Awaitable[Any]]
"""Runs a statement; a coroutine of its cursor."""


class Caller:
    """The maker of a request: an identity on the pool of a database.

    Args:
        pool: of the database.
        identity: as whom it acts there.
        key: what it is counted under: its subject, else its address.
        of_id: what it is about, if that may be elsewhere: its transactions fail unless it is here.
    """

    def __init__(
        self, pool: Pool, identity: Identity, key: str = "", of_id: UUID | None = None
    ) -> None:
        self._pool = pool
        self._identity = identity
        self.key = key
        """What the caller is counted under: its subject, else its address."""
        self._of_id = of_id

    async def act(self, do: Callable[["Caller"], Awaitable[T]]) -> T:
        """Do something where the request is for: here, or in one of several databases.

        What it does is one transaction, and may be done again elsewhere when that was refused.
        """
        return await do(self)

    @property
    def number(self) -> int:
        """The number of the cell that its database is; 0 while nobody has asked."""
        return self._pool.cell

    @property
    def is_staff(self) -> bool:
        """The caller may read every column."""
        return self._identity.is_staff

    @property
    def role(self) -> str:
        """The role of the database that it acts as."""
        return self._identity.role

    @property
    def may_act(self) -> bool:
        """Its role has functions of operators; the database decides which."""
        return self._identity.role == "service_role"

    @property
    def has_expired(self) -> bool:
        """The token has expired since it was verified."""
        return time.time() >= self._identity.expires_at

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Execute]:
        """One transaction: yields what runs a statement in it. Committed at the end of the block.

        Statements go out together; only fetching from one waits for an answer. Fetch from the last
        one after the block, and all of it is one round trip.

        Raises:
            DarkPearlError: whatever the database says, a constraint checked at commit included.
            UnauthorizedError: it needs a token, and none was given.
        """
        context = request_context.current()
        with self._asked_for_a_token(), translated():
            # BEGIN and COMMIT by hand: the driver's own would end the pipeline's flight twice.
            # All is answered by the end of the block, what a COMMIT finds wrong included.
            async with self._pool.connection() as connection, pipeline(connection) as pipelined:
                pipelined.enqueue(_BEGIN)
                settings = [
                    self._identity.role,
                    self._identity.claims,
                    self._pool.statement_timeout,
                    f"darkpearl api {context.request_id}".rstrip(),
                    context.request_id,
                ]
                query = _FOR_THE_CALLER
                if context.traceparent:
                    query += _TRACED
                    settings.append(context.traceparent)
                if self._of_id:
                    query += _IS_HERE
                    settings.append(str(self._of_id))
                await connection.execute(query, settings)
                yield lambda query, parameters: connection.execute(query.encode(), parameters)
                pipelined.enqueue(b"commit")

    async def run(self, *statements: Statement) -> dict[str, Any] | None:
        """Run statements as one transaction, in one round trip.

        Returns:
            The first row of the last statement, once all is committed.

        Raises:
            DarkPearlError: as transaction().
        """
        async with self.transaction() as execute:
            for statement in statements:
                cursor = await execute(*statement)
        row: dict[str, Any] | None = await cursor.fetchone()
        return row

    @contextmanager
    def _asked_for_a_token(self) -> Iterator[None]:
        try:
            yield
        except ForbiddenError as error:
            if self._identity is not ANONYMOUS:
                raise
            raise token_needed() from error

    async def new_id(self) -> UUID:
        """A UUIDv7, as the function of the same name in SQL makes it, with its cell at the end.

        Made here so that a statement can name what the one before it makes, without waiting for it.

        Raises:
            DarkPearlError: which cell it is was never asked yet, and can't be.
        """
        if not self._pool.cell and (row := await self.run(("select this_cell() as cell", {}))):
            self._pool.cell = row["cell"]
        return made_in(self._pool.cell)

    async def find(self, kind: type[T], *statements: Statement) -> T | None:
        """The first row of the last statement as a Struct; None when there is none."""
        *before, (query, parameters) = statements
        row = await self.run(*before, (document(query), parameters))
        if row is None:
            return None
        return decoder(kind).decode(row["document"])  # type: ignore[arg-type, no-any-return]

    async def get(self, kind: type[T], *statements: Statement) -> T:
        """The same, of a row that has to be there.

        Raises:
            NotFoundError: it isn't.
        """
        found = await self.find(kind, *statements)
        if found is None:
            raise NotFoundError("There is no such row, or it is not yours to see.")
        return found


def made_in(cell: int) -> UUID:
    """A new id that says that it was made in a cell."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(72) << 8 | cell
    version, variant = 7 << 76, 2 << 62
    return UUID(int=value & ~(0xF << 76) & ~(3 << 62) | version | variant)


def token_needed() -> UnauthorizedError:
    """The error for who needs a token and sent none."""
    return UnauthorizedError(
        "Without a token that isn't allowed.",
        title=PROBLEMS["DP030"].title,
        code="DP030",
        hint="Send Authorization: Bearer and a token.",
    )


def sent(value: Any) -> Any:
    """A value as a statement takes it: objects and lists as JSON text, with exact numbers."""
    if isinstance(value, dict | list | Struct):
        return encoder.encode(value).decode()
    return value


def insert(table: LiteralString, row: Struct) -> Statement:
    """The statement that inserts a row and returns it; what isn't set gets its default there."""
    given = {
        name: sent(value)
        for name, value in msgspec.structs.asdict(row).items()
        if value is not UNSET
    }
    columns, values = ", ".join(given), ", ".join(f"%({name})s" for name in given)
    return f"insert into {table} ({columns}) values ({values}) returning *", given  # noqa: S608


def update(
    table: LiteralString, row_id: Any, changes: Struct, merged: tuple[str, ...] = ()
) -> Statement:
    """The statement that changes the given columns of a row and returns it.

    Those of `merged` are objects, of which members are changed; null empties one.
    """
    given = {
        name: sent(value)
        for name, value in msgspec.structs.asdict(changes).items()
        if value is not UNSET
    }
    changed = (
        f"{name} = coalesce(merge_patch({name}, %({name})s), '{{}}')"
        if name in merged
        else f"{name} = %({name})s"
        for name in given
    )
    columns = ", ".join(["id = id", *changed])
    query = f"update {table} set {columns} where id = %(row_id)s returning *"  # noqa: S608
    return query, {**given, "row_id": row_id}


def delete(table: LiteralString, row_id: Any) -> Statement:
    """The statement that removes a row and returns its id."""
    return f"delete from {table} where id = %(row_id)s returning id", {"row_id": row_id}  # noqa: S608


def call(function: LiteralString, **arguments: Any) -> Statement:
    """The statement that calls a function, whose arguments are called p_ and these names.

    Those that are None keep their defaults. It returns nothing: what came of it is read afterwards.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    named = ", ".join(f"p_{name} => %({name})s" for name in given)
    return f"select from {function}({named})", given


def document(query: str, *more: LiteralString) -> str:
    """The query, answering each row, `answer`, as a JSON `document` with more columns after it."""
    columns = ", ".join(("to_json(answer)::text as document", *more))
    return f"with answer as ({query}) select {columns} from answer"  # noqa: S608
