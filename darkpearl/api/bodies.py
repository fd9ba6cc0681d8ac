"""Bodies: JSON in, straight into the Struct that the handler declares, and JSON out.

Decoding right from the bytes keeps decimals exact and types strict. What is wrong is looked up
only after it failed, and then every field is named at once.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from functools import cache
from itertools import chain, islice
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from litestar import Request, Response
from litestar.enums import MediaType
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import OpenAPIType, Schema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.types import Empty
from litestar.typing import FieldDefinition
from msgspec import UnsetType

from darkpearl.api.limits import Shares
from darkpearl.errors import BadRequestError, FieldError, MediaTypeError

MAX_BODY_BYTES = 1_000_000
LARGE_BODY_BYTES = 65_536
"""A body above that, or of a length that isn't said, is one of few that are read at once.

Of what is wrong with it, only the first is told.
"""
MOST_LARGE_BODIES = 32
MOST_LARGE_BODIES_EACH = 4
MOST_ERRORS = 50
LONGEST_TEXT = 1000
"""Of what a problem document repeats or explains, in characters."""
JSON = "application/json"
CSV = "text/csv"
MERGE_PATCH = "application/merge-patch+json"

A_UUID = "0190a000-0000-7000-8000-000000000000"
_OF_ONE_FIELD = re.compile(r"Expected an? (unit_price|amount) ")
"""What a body is told that it isn't as a whole, though one field is to blame."""

T = TypeVar("T")

encoder = msgspec.json.Encoder(decimal_format="number")


@cache
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """What decodes a type; numbers that it has no type for are as exact as they were written."""
    return msgspec.json.Decoder(kind, float_hook=Decimal)


class DecimalsAreNumbers(OpenAPISchemaPlugin):
    """Describes amounts as what they are on the wire."""

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        """The plugin describes this type."""
        return value is Decimal

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Schema:
        """A number, as the domains `amount` and `signed_amount` of the database have it."""
        del schema_creator
        said = [getattr(each, "extra", None) or {} for each in field_definition.metadata]
        least = next((each["least"] for each in said if "least" in each), 0)
        return Schema(type=OpenAPIType.NUMBER, minimum=least, exclusive_maximum=10**12)


class JsonRequest(Request[Any, Any, Any]):
    """A request whose body is the Struct that its handler takes as `data`."""

    async def body(self) -> bytes:
        """The body.

        Raises:
            BadRequestError: it ends early; nobody hears that, and it is no failure of ours.
            RateLimitError: the caller sends too many large ones at once.
            UnavailableError: all do.
        """
        if self._body is not Empty:
            return self._body
        with self._share():
            try:
                return await super().body()
            except InternalServerException:
                raise BadRequestError("The body ends early.") from None

    def _share(self) -> AbstractContextManager[None]:
        if int(self.headers.get("content-length", MAX_BODY_BYTES)) <= LARGE_BODY_BYTES:
            return nullcontext()
        sender = self.scope["state"]["admission"]
        bodies: Shares = self.app.state.bodies
        return bodies.held(sender.key, is_staff=sender.identity.is_staff)

    async def json(self) -> Any:
        """The body as the type of the handler's `data`.

        Raises:
            MediaTypeError: it says that it isn't JSON. A browser sends other types across
                origins without asking first, so taking them would let any page write.
            BadRequestError: it isn't what the type wants.
        """
        taken = (JSON, MERGE_PATCH) if self.method == "PATCH" else (JSON,)
        if "csv" in self.route_handler.opt:
            taken = (JSON, CSV)
        if self.content_type[0] not in taken:
            given = self.content_type[0] or "of no type"
            raise MediaTypeError(f"The body is {given}.", hint=f"Send {' or '.join(taken)}.")
        if self.content_type[0] == CSV:
            return self.route_handler.opt["csv"](await self.body())
        field = self.route_handler.parsed_data_field
        hint = "PUT replaces the whole; PATCH changes what is sent." if self.method == "PUT" else ""
        return decode(await self.body(), field.annotation if field else Any, hint=hint)


class JsonResponse(Response[T]):
    """A response whose decimals are JSON numbers in their exact text."""

    def render(self, content: Any, media_type: str, enc_hook: Any = Empty) -> bytes:
        """The content as JSON; bytes and other media types as they are."""
        if isinstance(content, bytes) or media_type != MediaType.JSON:
            return super().render(content, media_type, enc_hook)
        return encoder.encode(content)


def decode(body: bytes, kind: Any, *, hint: str = "") -> Any:
    """The body as a type; the hint is for whom it isn't one.

    Raises:
        BadRequestError: naming the fields that aren't as the type wants them.
    """
    try:
        try:
            return decoder(kind).decode(body)
        except msgspec.ValidationError as error:
            wrong = [_said(error, "")]
            if len(body) <= LARGE_BODY_BYTES:  # a larger one isn't read again for more than that
                wrong = _first(_wrong(decoder(Any).decode(body), kind, "")) or wrong
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"The body can't be read as JSON: {error}") from None
    raise BadRequestError("Some fields aren't as the schema says.", hint=hint, errors=wrong)


def missing(request: Request[Any, Any, Any]) -> BadRequestError:
    """The error for a request without the body that its handler takes."""
    field = request.route_handler.parsed_data_field
    return BadRequestError("The body is missing.", hint=_wanted(field.annotation if field else Any))


def _wanted(kind: Any) -> str:
    """What a body has to be."""
    kind = _bare(kind)
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return f"Send {JSON}."
    needed = [field.name for field in msgspec.structs.fields(kind) if field.required]
    return (
        f"Send {JSON}, an object with {', '.join(needed)}."
        if needed
        else (f"Send {JSON}, an object; {{}} is enough.")
    )


def _bare(kind: Any) -> Any:
    """A type without what annotates it, and without None and UNSET beside it."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    kinds = [each for each in get_args(kind) if each not in {NoneType, UnsetType}]
    if get_origin(kind) in {Union, UnionType} and len(kinds) == 1:
        return _bare(kinds[0])
    return kind


def choices(kind: Any) -> tuple[str, ...]:
    """The values of the enum that a type is, or may be; none of another type."""
    kind = _bare(kind)
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next(filter(None, map(choices, get_args(kind))), ())


def _first(errors: Iterator[FieldError]) -> list[FieldError]:
    """As many as are shown; more are not looked for."""
    return list(islice(errors, MOST_ERRORS))


def _wrong(value: Any, kind: Any, path: str) -> Iterator[FieldError]:
    """The errors of a value, field by field, down to lists of Structs."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        whole = _said(error, path)
    else:
        return
    if isinstance(value, str) and whole.message.startswith("Invalid enum value"):
        whole = FieldError(path, f"{value[:50]!r} is none of {', '.join(choices(kind))}")
    elif isinstance(value, dict) and (of := _OF_ONE_FIELD.match(whole.message)):
        whole = FieldError(f"{path}.{of[1]}" if path else of[1], whole.message)
    inner = _bare(kind)
    parts: Iterator[FieldError] = iter(())
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, dict):
        parts = iter(sorted(_first(_wrong_fields(value, inner, path))))
    elif get_origin(inner) is list and isinstance(value, list):
        (each_kind,) = get_args(inner)
        parts = chain.from_iterable(
            _wrong(each, each_kind, f"{path}[{at}]") for at, each in enumerate(value)
        )
    yield next(parts, whole)  # what is wrong with no part is wrong with the whole
    yield from parts


def _wrong_fields(
    value: dict[str, Any], kind: type[msgspec.Struct], path: str
) -> Iterator[FieldError]:
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in chain(known, (name for name in value if name not in known)):
        where = f"{path}.{name}" if path else name
        if name not in known:
            yield FieldError(where, "There is no such field")
        elif name in value:
            yield from _wrong(value[name], known[name].type, where)
        elif known[name].required:
            yield FieldError(where, "Missing")


def _said(error: Exception, path: str) -> FieldError:
    """A message of msgspec, split into where and what."""
    what, _, where = str(error).partition(" - at `$")
    if what == "Invalid UUID":
        what = f"Expected a UUID, such as {A_UUID}"
    return FieldError((path + where.rstrip("`")).removeprefix("."), what)
