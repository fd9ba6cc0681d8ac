"""Errors, as classes that a caller can tell apart.

    DarkPearlError              500  the root; by itself: a bug of ours, told without details
    ├── BadRequestError         400  the request isn't what the schema says
    ├── UnauthorizedError       401  no token, or one that isn't valid
    ├── DeclinedError           402  the payment gateway said no
    ├── ForbiddenError          403  this role may not do that
    ├── NotFoundError           404  no such row
    ├── ConflictError           409  it makes sense, but not in the present state
    ├── PreconditionFailedError 412  the row isn't what the request was made from
    ├── MediaTypeError          415  a body that isn't JSON
    ├── InvalidError            422  the request is well formed; the database refuses what it says
    ├── RateLimitError          429  the caller asks too often
    ├── GatewayError            502  what an outside system answered makes no sense
    ├── UnavailableError        503  the database is away, busy or shutting down: try again
    └── NoAnswerError           504  an outside system didn't answer in time

`PROBLEMS` is the one table from SQLSTATE to class and title; the class knows the HTTP status.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import psycopg

from darkpearl.laws import LAWS

RETRY_AFTER_SECONDS = 1
"""The wait that a client is told when the database is away; a reconnect takes about as long."""


class DarkPearlError(Exception):
    """Something went wrong. Also the answer to SQLSTATEs that PROBLEMS doesn't list.

    Args:
        title: what kind of problem this is, the same at each occurrence.
        detail: what is wrong this time, for people; may be shown to the caller.
        hint: what to do about it.
        code: SQLSTATE; class DP is ours.
        constraint: the law of the schema that was broken.
        errors: for BadRequestError, each field with what is wrong about it.
    """

    status: ClassVar[int] = 500
    standard_title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        title: str = "",
        hint: str = "",
        code: str = "",
        constraint: str = "",
        errors: list["FieldError"] | None = None,
    ) -> None:
        super().__init__(detail or title or self.standard_title)
        self.title = title or self.standard_title
        self.detail = detail
        self.hint = hint
        self.code = code
        self.constraint = constraint
        self.errors = errors or []


class FieldError(NamedTuple):
    """One field of a request, as a path such as `items[0].quantity`, and what is wrong about it."""

    field: str
    message: str


class BadRequestError(DarkPearlError):
    """The request isn't what the schema says."""

    status = 400
    standard_title = "The request isn't valid"


class UnauthorizedError(DarkPearlError):
    """No token was given, or one that isn't valid."""

    status = 401
    standard_title = "A token is needed"


class DeclinedError(DarkPearlError):
    """The payment gateway said no."""

    status = 402
    standard_title = "Payment declined"


class ForbiddenError(DarkPearlError):
    """This role may not do that."""

    status = 403
    standard_title = "Not allowed"


class NotFoundError(DarkPearlError):
    """There is no such row."""

    status = 404
    standard_title = "Not found"


class ConflictError(DarkPearlError):
    """The request makes sense, but not in the present state."""

    status = 409
    standard_title = "Conflict with the present state"


class PreconditionFailedError(DarkPearlError):
    """The row isn't any more what the request was made from."""

    status = 412
    standard_title = "The row has changed"


class MediaTypeError(DarkPearlError):
    """The body is no JSON."""

    status = 415
    standard_title = "Not JSON"


class InvalidError(DarkPearlError):
    """The request is well formed; the database refuses what it says."""

    status = 422
    standard_title = "The database refuses this"


class RateLimitError(DarkPearlError):
    """The caller asks too often.

    Args:
        detail: how often is too often.
        retry_after_seconds: when the next request is welcome.
        more: as for every error.
    """

    status = 429
    standard_title = "Too many requests"

    def __init__(
        self, detail: str = "", *, retry_after_seconds: int = RETRY_AFTER_SECONDS, **more: Any
    ) -> None:
        super().__init__(detail, **more)
        self.retry_after_seconds = retry_after_seconds


class GatewayError(DarkPearlError):
    """An outside system failed or answered nonsense."""

    status = 502
    standard_title = "An outside system failed"


class UnavailableError(DarkPearlError):
    """The database is away, busy or shutting down. The same again may work."""

    status = 503
    standard_title = "Try again"
    retry_after_seconds = RETRY_AFTER_SECONDS


class NoAnswerError(DarkPearlError):
    """An outside system didn't answer in time."""

    status = 504
    standard_title = "No answer in time"


class Problem(NamedTuple):
    """One line of the table."""

    kind: type[DarkPearlError]
    title: str


PROBLEMS: dict[str, Problem] = {
    "DP001": Problem(InvalidError, "An order needs lines"),
    "DP002": Problem(ForbiddenError, "The price is the catalogue's"),
    "DP003": Problem(InvalidError, "This can't be ordered"),
    "DP004": Problem(ConflictError, "The order can't go there from where it is"),
    "DP005": Problem(ConflictError, "History doesn't change"),
    "DP006": Problem(ConflictError, "Not enough stock"),
    "DP007": Problem(ConflictError, "The order can't be cancelled any more"),
    "DP008": Problem(ConflictError, "The saga isn't stuck"),
    "DP009": Problem(ConflictError, "The lease has passed to another"),
    "DP010": Problem(NotFoundError, "Not found"),
    "DP011": Problem(ConflictError, "The correlation id stands for something else"),
    "DP012": Problem(ConflictError, "The order is placed; its lines are frozen"),
    "DP013": Problem(NoAnswerError, "No answer in time"),
    "DP014": Problem(DeclinedError, "Payment declined"),
    "DP015": Problem(InvalidError, "An argument makes no sense"),
    "DP016": Problem(ConflictError, "The row is still in use"),
    "DP017": Problem(GatewayError, "An outside system failed"),
    "DP018": Problem(ConflictError, "The step can't be skipped"),
    "DP019": Problem(ConflictError, "The order isn't fulfilled"),
    "DP020": Problem(ConflictError, "Not so much is left to refund"),
    "DP021": Problem(ConflictError, "More would come back than was sent"),
    "DP022": Problem(InvalidError, "The plan names what isn't there"),
    "DP023": Problem(ConflictError, "The goods would leave unpaid"),
    "DP024": Problem(ConflictError, "The order isn't to be shipped now"),
    "DP025": Problem(InvalidError, "Some rows can't be taken"),
    "DP026": Problem(GatewayError, "The gateway did something else than it was asked"),
    "DP027": Problem(ConflictError, "The payment is disputed"),
    "DP028": Problem(GatewayError, "Money that is owed did not go back"),
    "DP029": Problem(ConflictError, "Not so much is left to ship"),
    "DP030": Problem(UnauthorizedError, "A token is needed"),
    "DP031": Problem(UnauthorizedError, "The token isn't valid"),
    "DP032": Problem(ConflictError, "The stock isn't what the count expected"),
    "DP033": Problem(ConflictError, "The order isn't to be paid now"),
    "DP034": Problem(ConflictError, "The order wasn't paid in time"),
    "DP035": Problem(PreconditionFailedError, "The row has changed"),
    "DP036": Problem(InvalidError, "The idempotency key stands for another request"),
    "DP037": Problem(ConflictError, "The first request is still under way"),
    "DP038": Problem(ConflictError, "It belongs to a time that is gone"),
    "DP039": Problem(RateLimitError, "Too many requests"),
    "DP040": Problem(ConflictError, "The order has ended; what it was for stays"),
    "DP041": Problem(InvalidError, "The money doesn't add up"),
    "DP042": Problem(ConflictError, "The feed can't be followed from here"),
    "DP043": Problem(ConflictError, "There are too many webhook endpoints"),
    "DP044": Problem(ConflictError, "The saga doesn't wait for a try"),
    "DP045": Problem(ConflictError, "The order isn't cancelled"),
    "DP046": Problem(ConflictError, "The payment was given up"),
    "DP050": Problem(ConflictError, "The warehouse belongs to another cell"),
    "DP051": Problem(ConflictError, "The catalogue is written at home"),
    "DP052": Problem(ConflictError, "The database can't become a cell"),
    "DP053": Problem(UnavailableError, "The warehouse is moving to another cell"),
    "DP056": Problem(ConflictError, "Only several cells together have it"),
    "22001": Problem(InvalidError, "A text is too long"),
    "22003": Problem(InvalidError, "A number is out of range"),
    "22007": Problem(InvalidError, "A date or time can't be read"),
    "22008": Problem(InvalidError, "A date or time is out of range"),
    "22021": Problem(BadRequestError, "A text holds a character that can't be stored"),
    "22P02": Problem(InvalidError, "A value can't be read"),
    "22P05": Problem(BadRequestError, "A text holds a character that can't be stored"),
    "23001": Problem(ConflictError, "Other rows refer to this one"),
    "23502": Problem(InvalidError, "A value is missing"),
    "23503": Problem(ConflictError, "Other rows refer to this one, or it to one that isn't there"),
    "23505": Problem(ConflictError, "There is one already"),
    "23514": Problem(InvalidError, "A rule of the schema is broken"),
    "25006": Problem(UnavailableError, "The database can't be written to at present; try again"),
    "42501": Problem(ForbiddenError, "Not allowed"),
    "55P03": Problem(UnavailableError, "The row is being changed by another; try again"),
    "57014": Problem(UnavailableError, "It took too long; try again"),
}
"""One line per SQLSTATE that a caller can cause or has to expect."""

TRANSIENT_CLASSES: dict[str, Problem] = {
    "08": Problem(UnavailableError, "The database is away; try again"),
    "40": Problem(UnavailableError, "Two changes collided; try again"),
    "53": Problem(UnavailableError, "The database is full or too busy; try again later"),
    "57": Problem(UnavailableError, "The database is restarting; try again"),
    "58": Problem(UnavailableError, "The database has trouble with its system; try again later"),
}
"""By the first two characters, for codes that PROBLEMS doesn't list."""

UNKNOWN = Problem(DarkPearlError, DarkPearlError.standard_title)
AWAY = TRANSIENT_CLASSES["08"]


def problem_of(code: str) -> Problem | None:
    """The problem that a SQLSTATE stands for; None for those that are bugs of ours."""
    return PROBLEMS.get(code) or TRANSIENT_CLASSES.get(code[:2])


def from_sqlstate(
    code: str,
    *,
    message: str = "",
    detail: str = "",
    hint: str = "",
    constraint: str = "",
    column: str = "",
) -> DarkPearlError:
    """The error that a SQLSTATE stands for. What a caller must not see is left out."""
    kind, title = problem_of(code) or UNKNOWN
    if kind in {UnavailableError, DarkPearlError}:
        return kind(title=title, code=code)
    said = detail or message
    if code in {"23505", "23514"} and constraint:
        # A law of the schema reads like one; the server's detail would be the whole row.
        said, hint = LAWS.get(constraint, (constraint.replace("_", " "), hint))
    elif code == "23502" and column:  # the same of null
        said = f"{column} is needed, and is null."
    return kind(said, title=title, hint=hint, code=code, constraint=constraint)


def from_psycopg(error: psycopg.Error) -> DarkPearlError:
    """The error of ours that an error of the driver or the server stands for."""
    if error.sqlstate:
        told = error.diag
        return from_sqlstate(
            error.sqlstate,
            message=told.message_primary or "",
            detail=told.message_detail or "",
            hint=told.message_hint or "",
            constraint=told.constraint_name or "",
            column=told.column_name or "",
        )
    if isinstance(error, psycopg.OperationalError):  # no server to speak of, or the pool is empty
        return AWAY.kind(title=AWAY.title)
    if isinstance(error, psycopg.DataError):  # the driver can't even send it, such as a NUL in text
        return from_sqlstate("22021", message=str(error))
    return DarkPearlError()


READ_ONLY = {
    "in_hot_standby": "it is a standby",
    "default_transaction_read_only": "default_transaction_read_only is on",
}
"""The settings of a server with which nothing can be written to it, in words."""


def why_read_only(setting: Callable[[str], str | None]) -> str:
    """Why nothing can be written to a server; '' if it can.

    Args:
        setting: what the server says of itself under a name of READ_ONLY.
    """
    return " and ".join(why for name, why in READ_ONLY.items() if setting(name) == "on")


def refuse_read_only(connection: psycopg.AsyncConnection[Any]) -> None:
    """For who has come to write.

    Raises:
        psycopg.errors.ReadOnlySqlTransaction: it can't be done here.
    """
    if why := why_read_only(connection.info.parameter_status):
        raise psycopg.errors.ReadOnlySqlTransaction(f"the server can't be written to: {why}")


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the driver leave this block as ours, with the original as their cause."""
    try:
        yield
    except psycopg.Error as error:
        raise from_psycopg(error) from error
