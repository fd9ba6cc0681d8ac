"""Errors as RFC 9457 problem documents, and what each type of problem stands for."""

import logging
from http import HTTPStatus
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Request, Response, Router, get
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath
from litestar.types import Scope, Send
from msgspec import Meta, Struct

from darkpearl.api.admission import admission
from darkpearl.api.bodies import A_UUID, LONGEST_TEXT, MOST_ERRORS, encoder, missing
from darkpearl.api.wording import over_http
from darkpearl.errors import (
    PROBLEMS,
    BadRequestError,
    DarkPearlError,
    FieldError,
    NotFoundError,
    RateLimitError,
    UnauthorizedError,
    UnavailableError,
    problem_of,
)
from darkpearl.telemetry import request_context

MEDIA_TYPE = "application/problem+json"
LONGEST_FIELD = 200
"""Of the name of a field, and of what is wrong about it, in characters."""
BLANK = "about:blank"
"""The type of problems that say no more than their HTTP status."""

logger = logging.getLogger(__name__)
_Request = Request[Any, Any, Any]


class ProblemType(Struct):
    """The meaning of the `type` of a problem document."""

    code: str
    title: str
    status: int


class FieldProblem(Struct):
    """One field of the request and what is wrong about it."""

    field: Annotated[str, Meta(examples=["items[0].quantity"])]
    message: str


class ProblemDetails(Struct, omit_defaults=True):
    """An error as RFC 9457 wants it, with our extensions."""

    type: Annotated[str, Meta(examples=["/problems/DP006"])]
    title: str
    status: int
    detail: str = ""
    instance: str = ""
    code: Annotated[str, Meta(description="SQLSTATE; class DP is ours")] = ""
    hint: str = ""
    constraint: Annotated[str, Meta(description="The law of the schema that was broken")] = ""
    errors: Annotated[
        list[FieldProblem], Meta(description="Every field that isn't as the schema says")
    ] = msgspec.field(default_factory=list)
    request_id: Annotated[str, Meta(description="As in X-Request-ID and in the log")] = ""


_CHALLENGES = {"DP030": "Bearer", "DP031": 'Bearer error="invalid_token"'}
"""WWW-Authenticate (RFC 6750), by the code of the problem."""

_IDS: dict[type, str] = {UUID: f"a UUID, such as {A_UUID}", int: "a whole number"}
"""What ids in a path are, by their type."""

_MEANINGS = {
    400: "The request isn't what the schema says; every field is named in errors",
    401: "A token or a signature is needed, or the one that was sent isn't valid",
    403: "Not allowed",
    404: "There is no such row",
    409: "It can't be done in the present state",
    412: "The row has changed since the version that If-Match names",
    413: "The body is too long",
    415: "The body isn't JSON",
    422: "The database refuses what the request says",
    429: "Too many requests: try again after Retry-After",
    503: "The database is away or busy: try again after Retry-After",
}


def refusals(
    *statuses: int, needs_token: bool = True, counts: bool = True
) -> dict[int, ResponseSpec]:
    """The answers of a handler besides success, for its description.

    Args:
        statuses: its own; 503 is everybody's.
        needs_token: the answer depends on the caller.
        counts: it counts for the rate limit.
    """
    everybodys = {503} | ({401, 403} if needs_token else set()) | ({429} if counts else set())
    return {
        status: ResponseSpec(
            ProblemDetails,
            description=_MEANINGS[status],
            media_type=MEDIA_TYPE,
            generate_examples=False,
        )
        for status in sorted({*statuses} | everybodys)
    }


def on_error(request: _Request, error: DarkPearlError) -> Response[bytes]:
    """The response for an error of ours."""
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log(request, error)
    headers = {}
    if isinstance(error, UnavailableError | RateLimitError):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = _CHALLENGES[error.code]
    return _response(
        ProblemDetails(
            type=f"/problems/{error.code}" if problem_of(error.code) else BLANK,
            title=error.title,
            status=error.status,
            detail=over_http(error.detail),
            instance=request.scope["path"],
            code=error.code,
            hint=over_http(error.hint),
            constraint=error.constraint,
            errors=[
                FieldProblem(each.field[:LONGEST_FIELD], each.message[:LONGEST_FIELD])
                for each in error.errors[:MOST_ERRORS]
            ],
        ),
        headers,
    )


def on_http_exception(request: _Request, error: HTTPException) -> Response[bytes]:
    """The response for an error of the framework: no such route or method, a bad parameter.

    It comes before a handler is asked whether the request is one too many.
    """
    if limit := admission(request.scope).limit:
        return on_error(request, limit)
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        if any(each.get("key") == "data" for each in error.extra):
            return on_error(request, missing(request))
        wrong = [FieldError(_parameter(each), each["message"]) for each in error.extra]
        told = BadRequestError("Some parameters aren't as the schema says.", errors=wrong)
        return on_error(request, told)
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        _log(request, error)
    if error.status_code == HTTPStatus.NOT_FOUND and (wrong := _misread_ids(request)):
        unread = NotFoundError("There is nothing under this path: an id isn't one.", errors=wrong)
        return on_error(request, unread)
    title = HTTPStatus(error.status_code).phrase
    secret = error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _response(
        ProblemDetails(
            type=BLANK,
            title=title,
            status=error.status_code,
            detail="" if secret or error.detail == title else error.detail,
            instance=request.scope["path"],
        ),
        error.headers,
    )


def _misread_ids(request: _Request) -> list[FieldError]:
    """The ids in a path that aren't, had it led somewhere."""
    parts = [part for part in request.scope["path"].split("/") if part]
    for route in request.app.routes:
        names = route.path_components
        if len(names) == len(parts) and all(
            name == part or not isinstance(name, str)
            for name, part in zip(names, parts, strict=True)
        ):
            return [
                FieldError(name.name, f"Expected {_IDS[name.type]}, got {part[:50]!r}")
                for name, part in zip(names, parts, strict=True)
                if not isinstance(name, str) and name.type in _IDS
            ]
    return []


def on_exception(request: _Request, error: Exception) -> Response[bytes]:
    """The response for a bug: it says nothing, the log says all."""
    _log(request, error)
    return _response(_bug(request.scope))


async def answer_bug(scope: Scope, send: Send) -> None:
    """Answer for a bug where the framework itself failed."""
    headers = [(b"content-type", MEDIA_TYPE.encode())]
    await send({"type": "http.response.start", "status": DarkPearlError.status, "headers": headers})
    await send({"type": "http.response.body", "body": _encoded(_bug(scope)), "more_body": False})


def _bug(scope: Scope) -> ProblemDetails:
    return ProblemDetails(
        type=BLANK,
        title=DarkPearlError.standard_title,
        status=DarkPearlError.status,
        instance=scope["path"],
    )


def _response(problem: ProblemDetails, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(
        _encoded(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers
    )


def _encoded(problem: ProblemDetails) -> bytes:
    """The document, with its request id, and nothing in it longer than is of use."""
    for repeats in ("detail", "hint", "instance"):
        setattr(problem, repeats, getattr(problem, repeats)[:LONGEST_TEXT])
    problem.request_id = request_context.current().request_id
    return encoder.encode(problem)


def _parameter(wrong: dict[str, str]) -> str:
    """The client's name for a parameter that the framework refuses."""
    name = wrong.get("key", "")
    return name.replace("_", "-").title() if wrong.get("source") == "header" else name


def _log(request: _Request, error: Exception) -> None:
    where = f"{request.method} {request.scope['path'][:LONGEST_TEXT]}"
    if isinstance(error, UnavailableError):
        logger.warning("%s: %s (%s)", where, error, error.__cause__)
    else:
        logger.error("%s: %s", where, error, exc_info=error)


@get("/", summary="List the types of problems")
async def list_problem_types() -> list[ProblemType]:
    """Every type of problem that the database can tell of."""
    return [
        ProblemType(code=code, title=problem.title, status=problem.kind.status)
        for code, problem in PROBLEMS.items()
    ]


@get(
    "/{code:str}",
    summary="What a type of problem stands for",
    responses=refusals(400, 404, needs_token=False),
)
async def get_problem_type(code: FromPath[str]) -> ProblemType:
    """The meaning of the `type` of a problem document."""
    problem = problem_of(code)
    if problem is None:
        raise NotFoundError(f"There is no problem {code}.")
    return ProblemType(code=code, title=problem.title, status=problem.kind.status)


router = Router(
    "/problems",
    route_handlers=[list_problem_types, get_problem_type],
    tags=["problems"],
    security=[{}],
)
