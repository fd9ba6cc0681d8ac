"""Query parameters that lists share, and what refuses those that nobody takes."""

from datetime import datetime
from functools import cache
from itertools import islice
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar import Request
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter
from msgspec import Meta

from darkpearl.api.bodies import MOST_ERRORS
from darkpearl.errors import BadRequestError, FieldError

MOST_PARAMETERS = 100

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
    moments: dict[str, datetime | None] = {}
    wrong = []
    for name, text in ("created_after", created_after), ("created_before", created_before):
        try:
            # Strictly: the framework would take a number for seconds since 1970.
            moments[name] = None if text is None else msgspec.convert(text, Moment)
        except msgspec.ValidationError as error:
            wrong.append(FieldError(name, str(error)))
    if wrong:
        raise BadRequestError("Some parameters aren't as the schema says.", errors=wrong)
    return Period(*moments.values())


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
