"""Versions of rows as entity tags: no news need not be sent, and no change is overwritten unseen.

The tag of a row is its version. A write under If-Match locks the row and compares in its own
transaction, so that no other write fits in between.
"""

import re
from typing import Annotated, Any, LiteralString, Protocol, TypeVar
from uuid import UUID

from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter
from litestar.status_codes import HTTP_304_NOT_MODIFIED

from darkpearl.api.access import Statement
from darkpearl.api.bodies import JsonResponse
from darkpearl.errors import BadRequestError, FieldError

_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_TAGS = re.compile(rf"(?:{_TAG.pattern}|\*)(?:[ \t]*,[ \t]*{_TAG.pattern})*")
_OURS = re.compile(r"[1-9]\d{0,17}")


class Versioned(Protocol):
    """A row that counts its changes."""

    version: int


V = TypeVar("V", bound=Versioned)

IfMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-Match",
        max_length=1000,
        description="ETags of which the row must still have one, else 412; * is any",
    ),
]
IfNoneMatch = Annotated[
    str | None,
    HeaderParameter(
        name="If-None-Match", max_length=1000, description="ETags that are known: 304 if it is one"
    ),
]


KEPT_BY_WHO_ASKED = "private, no-cache"
"""The caller's own cache may keep a row with its ETag, and asks each time if it still holds."""
UNCHANGED = {HTTP_304_NOT_MODIFIED: ResponseSpec(None, description="It is what If-None-Match says")}
"""The answer of tagged() besides the row, for a handler's description."""


def etag(row: Versioned) -> str:
    """The entity tag of a row."""
    return f'"{row.version}"'


def tagged(row: V, if_none_match: str | None = None) -> JsonResponse[V]:
    """A row with its ETag; 304 without it when the client has it already.

    Raises:
        BadRequestError: If-None-Match is no list of entity tags.
    """
    headers = {"ETag": etag(row), "Cache-Control": KEPT_BY_WHO_ASKED}
    if if_none_match is not None and (
        if_none_match.strip() == "*" or row.version in _versions("If-None-Match", if_none_match)
    ):
        return JsonResponse[Any](None, status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    return JsonResponse(row, headers=headers)


def expect(
    if_match: str | None, table: LiteralString, row_id: UUID, shown: LiteralString = ""
) -> list[Statement]:
    """The statement before a write under If-Match: locks the row, raises when it has changed.

    Nothing when there is no such condition; no row is left to the write itself to find out.

    Args:
        if_match: the header; weak tags in it never match.
        table: where the row is.
        row_id: its id.
        shown: the view whose version clients see, when it isn't the table's.

    Raises:
        BadRequestError: If-Match is no list of entity tags.
    """
    expected = expected_versions(if_match)
    if expected is None:
        return []
    shown = shown or table
    lock = f"select from {table} where id = %(id)s for no key update"
    # Once it is locked: a statement sees what was committed before it began.
    check = f"select expect_version(version, %(expected)s::bigint[]) from {shown} where id = %(id)s"  # noqa: S608 - literals
    return [(lock, {"id": row_id}), (check, {"id": row_id, "expected": expected})]


def expected_versions(if_match: str | None) -> list[int] | None:
    """The versions that If-Match names; None without a condition.

    Raises:
        BadRequestError: If-Match is no list of entity tags.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    return _versions("If-Match", if_match, strong=True)


def _versions(header: str, text: str, *, strong: bool = False) -> list[int]:
    """The versions that a list of entity tags names; tags that aren't ours match nothing."""
    if not _TAGS.fullmatch(text.strip()):
        wrong = FieldError(header, 'Expected entity tags, such as "3"')
        raise BadRequestError("A header isn't as RFC 9110 says.", errors=[wrong])
    found: list[Any] = _TAG.findall(text)
    return [int(tag) for weak, tag in found if _OURS.fullmatch(tag) and not (strong and weak)]
