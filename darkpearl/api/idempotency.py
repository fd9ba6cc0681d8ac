"""Requests that may be repeated: under an Idempotency-Key, a POST is done once.

The answer is kept in the transaction of the effect, so a client that never got it sends the same
again and gets it then; nothing is kept of a request that failed. What is kept is the document that
the database answered: status and headers follow from it as they did the first time.
"""

from hashlib import sha256
from typing import Annotated, Any, TypeVar
from uuid import UUID

from litestar import Request
from litestar.di import NamedDependency
from litestar.params import HeaderParameter

from darkpearl.api.access import Caller, Parameters, Statement, document
from darkpearl.api.bodies import JsonResponse, decoder
from darkpearl.api.versions import etag
from darkpearl.errors import NotFoundError

T = TypeVar("T")

IdempotencyKey = Annotated[
    str | None,
    HeaderParameter(
        name="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Made up by the client, such as a UUID: the same again is answered as the first"
        " time, and done once. Visible ASCII; another request under it is 422",
    ),
]

_BEGIN = "select begin_request(%(idempotency_key)s, %(request_hash)s) as document"
_END = "end_request(%(idempotency_key)s, %(request_hash)s, to_json(answer)::text)"


class Once:
    """A write of a caller, done once under a key; without one, done as often as it is sent."""

    def __init__(self, caller: Caller, request: dict[str, Any] | None) -> None:
        self._caller = caller
        self._request = request
        self.replayed = False
        """What was asked for has its answer of the first time."""

    @property
    def request(self) -> Parameters | None:
        """The key, and what it stands for; None without one."""
        return self._request

    def by(self, caller: Caller) -> "Once":
        """The same request, made by a caller in one of several cells."""
        return Once(caller, self._request)

    async def new_id(self) -> UUID:
        """An id for what is to be written; see Caller.new_id()."""
        return await self._caller.new_id()

    async def find(self, kind: type[T], *statements: Statement) -> T | None:
        """The first row of the last statement as a Struct, or as it was the first time.

        One round trip; under a key two.

        Raises:
            DarkPearlError: whatever the database says, such as that the key is taken.
        """
        request = self._request
        if request is None:
            return await self._caller.find(kind, *statements)
        row = await self._caller.act(lambda here: self._done(here, request, *statements))
        if row is None:
            return None
        return decoder(kind).decode(row["document"])  # type: ignore[arg-type, no-any-return]

    async def _done(
        self, here: Caller, request: Parameters, *statements: Statement
    ) -> dict[str, Any] | None:
        """The row of the answer, of now or of the first time; the key is where the effect is."""
        *before, (query, parameters) = statements
        last = document(query, _END)
        async with here.transaction() as execute:
            row: dict[str, Any] | None = await (await execute(_BEGIN, request)).fetchone()
            self.replayed = row is not None and row["document"] is not None
            if not self.replayed:
                for statement in before:
                    await execute(*statement)
                cursor = await execute(last, {**parameters, **request})
        if not self.replayed:
            row = await cursor.fetchone()
        return row

    async def get(self, kind: type[T], *statements: Statement) -> T:
        """The same, of a row that has to be there.

        Raises:
            NotFoundError: it isn't.
        """
        found = await self.find(kind, *statements)
        if found is None:
            raise NotFoundError("There is no such row, or it is not yours to see.")
        return found

    def created(self, row: T, location: str) -> JsonResponse[T]:
        """The response: the row, where it is, its ETag if it has one, whether it is a repeat."""
        response = self.answered(row)
        response.headers["Location"] = location
        if hasattr(row, "version"):
            response.headers["ETag"] = etag(row)
        return response

    def answered(self, row: T) -> JsonResponse[T]:
        """The response: the row, and whether it is a repeat."""
        return JsonResponse(row, headers={"Idempotency-Replayed": "true"} if self.replayed else {})


async def once(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    idempotency_key: IdempotencyKey = None,
) -> Once:
    """The way that a request writes. Its key stands for its method, its path and its body."""
    if idempotency_key is None:
        return Once(caller, None)
    path = request.scope["path"]
    asked = sha256(f"{request.method} {path}\n".encode() + await request.body())
    # The draft's form is a quoted string; most clients send it bare. Both are one key.
    key = idempotency_key.removeprefix('"').removesuffix('"') or idempotency_key
    return Once(caller, {"idempotency_key": key, "request_hash": asked.digest()})
