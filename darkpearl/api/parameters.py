"""Query parameters that lists share, and what refuses those that nobody takes."""

from datetime import datetime
from functools import cache
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin
from uuid import UUID

import msgspec
from litestar import Request
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from msgspec import Meta

from darkpearl.api.bodies import MOST_ERRORS
from darkpearl.errors import BadRequestError, FieldError

MOST_PARAMETERS = 100
MOST_VALUES = 50
"""Of one filter."""

T = TypeVar("T")

IsActive = Annotated[
    bool | None, QueryParameter(description="Only active ones, or only inactive ones")
]
Moment = Annotated[datetime, Meta(tz=True)]
DATE_TIME = {"format": "date-time"}
CreatedAfter = Annotated[
    str | None,
    QueryParameter(description="Made then or later: RFC 3339, with offset", schema_extra=DATE_TIME),
]
CreatedBefore = Annotated[
    str | None,
    QueryParameter(description="Made before that: RFC 3339, with offset", schema_extra=DATE_TIME),
]
Search = Annotated[
    str | None,
    QueryParameter(
        min_length=1,
        max_length=255,
        description=(
            "Words, each of which begins a word of the code or of the name, in any order."
            " Case, accents and punctuation don't count"
        ),
    ),
]


UpdatedAfter = Annotated[
    str | None,
    QueryParameter(
        description="Changed then or later: RFC 3339, with offset", schema_extra=DATE_TIME
    ),
]


def several(kind: Any, description: str = "") -> QueryParameter:
    """A filter that takes several values: repeated, or with commas between them.

    Args:
        kind: what a value is, a Literal, UUID or int, or an annotated str, which is repeated
            only: it may have commas.
        description: what it filters.
    """
    item: dict[str, Any] = {"type": "string"}
    said = "Any of these: repeated, or with commas between them"
    if _is_text(kind):
        lengths = get_args(kind)[1]
        item |= {"minLength": lengths.min_length, "maxLength": lengths.max_length}
        said = "Any of these: repeated"
    elif get_origin(kind) is Literal:
        item["enum"] = list(get_args(kind))
    elif kind is UUID:
        item["format"] = "uuid"
    elif kind is int:
        item = {"type": "integer", "minimum": 0}
    return QueryParameter(
        description=f"{description}. {said}" if description else said,
        schema_extra={"items": item, "maxItems": MOST_VALUES},
    )


def read_values(
    name: str, kind: type[T] | Any, given: list[str]
) -> tuple[list[T], list[FieldError]]:
    """The values of a filter that takes several, and what is wrong with those that are none."""
    texts = given if _is_text(kind) else [text for each in given for text in each.split(",")]
    wrong = []
    if len(texts) > MOST_VALUES:
        wrong.append(FieldError(name, f"Expected {MOST_VALUES} values at most"))
    found: list[T] = []
    for text in texts[:MOST_VALUES]:
        try:
            found.append(msgspec.convert(text, kind, strict=False))
        except msgspec.ValidationError:
            wrong.append(FieldError(name, f"{text[:50]!r} is {_none_of(kind)}"))
    return found, wrong


def _is_text(kind: Any) -> bool:
    return get_origin(kind) is Annotated and get_args(kind)[0] is str


def _none_of(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"none of {', '.join(get_args(kind))}"
    if _is_text(kind):
        return "no text of that length"
    return "no UUID" if kind is UUID else "no whole number"


Ids = Annotated[list[str] | None, several(UUID)]


class Period(NamedTuple):
    """From a moment on, and until before another; either may be open."""

    start: datetime | None
    end: datetime | None


async def created(
    created_after: CreatedAfter = None, created_before: CreatedBefore = None
) -> Period:
    """When rows were made.

    Raises:
        BadRequestError: naming each time that is none, or that doesn't say of which zone it is.
    """
    return Period(*moments_of(created_after=created_after, created_before=created_before))


def moments_of(**texts: str | None) -> list[datetime | None]:
    """The moments that parameters name, in their order.

    Raises:
        BadRequestError: as created().
    """
    moments: list[datetime | None] = []
    wrong = []
    for name, text in texts.items():
        try:
            # Strictly: the framework would take a number for seconds since 1970.
            moments.append(None if text is None else msgspec.convert(text, Moment))
        except msgspec.ValidationError:
            wrong.append(
                FieldError(name, "Expected a date and time with offset, as 2026-01-31T09:30:00Z")
            )
    if wrong:
        raise BadRequestError("Some parameters aren't as the schema says.", errors=wrong)
    return moments


def refuse_unknown(request: Request[Any, Any, Any], handler: HTTPRouteHandler) -> None:
    """Refuse query parameters that the handler doesn't take: a misspelt filter filters nothing.

    Raises:
        BadRequestError: naming each of them, up to a number, and what there is; or there are too
            many parameters to look at.
    """
    query = request.scope["query_string"]
    if not query:
        return
    if query.count(b"&") >= MOST_PARAMETERS:  # before they are parsed, which the framework keeps
        raise BadRequestError(f"There are more than {MOST_PARAMETERS} parameters.")
    known = _known(handler, frozenset(request.path_params))
    unknown = (name for name in dict.fromkeys(request.query_params) if name not in known)
    if wrong := [
        FieldError(name, "There is no such parameter") for name in islice(unknown, MOST_ERRORS)
    ]:
        takes = f"It takes {', '.join(sorted(known))}." if known else "It takes none."
        raise BadRequestError("Some parameters aren't known here.", hint=takes, errors=wrong)


@cache
def _known(handler: HTTPRouteHandler, path: frozenset[str]) -> set[str]:
    model = handler.create_kwargs_model(dict.fromkeys(path))  # type: ignore[arg-type]
    return {each.field_alias for each in model.expected_query_params}
