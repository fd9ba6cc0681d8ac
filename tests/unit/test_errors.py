"""SQLSTATE to exception to HTTP status: one table, and nothing leaks through it."""

import re
from pathlib import Path

import psycopg
import psycopg_pool
import pytest

from darkpearl import errors, schema

ROUTINES = schema.files("routines")


def test_every_sqlstate_of_ours_is_in_the_table() -> None:
    """A DP code that any routine raises or returns has a line in PROBLEMS, and no line is idle."""
    used = {code for path in ROUTINES for code in re.findall(r"'(DP\d{3})'", path.read_text())}
    listed = {code for code in errors.PROBLEMS if code.startswith("DP")}
    documented = set(re.findall(r"--   (DP\d{3})", ROUTINES[0].read_text()))
    assert used <= listed
    assert documented == listed


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """The picture at the top names every class with its status."""
    text = Path(errors.__file__).read_text().split('"""')[1]
    drawn = dict(re.findall(r"(\w+Error) +(\d{3})", text))
    classes = {errors.DarkPearlError, *errors.DarkPearlError.__subclasses__()}
    assert drawn == {each.__name__: str(each.status) for each in classes}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("23505", 409),
        ("23503", 409),
        ("23514", 422),
        ("23502", 422),
        ("22P02", 422),
        ("22003", 422),
        ("22001", 422),
        ("42501", 403),
        ("40001", 503),
        ("40P01", 503),
        ("55P03", 503),
        ("57P01", 503),
        ("08006", 503),
        ("25006", 503),
        ("53100", 503),
        ("53300", 503),
        ("57P03", 503),
        ("57014", 503),
        ("P0001", 500),
        ("XX000", 500),
        ("42P01", 500),
        ("DP001", 422),
        ("DP006", 409),
        ("DP010", 404),
    ],
)
def test_a_sqlstate_has_its_http_status(code: str, status: int) -> None:
    """An error that a client can cause is 4xx, an outage is 503, and all else is a bug of ours."""
    assert errors.from_sqlstate(code).status == status


@pytest.mark.parametrize("code", ["XX000", "42P01", "57P01", "P0001"])
def test_what_is_not_the_callers_fault_says_nothing_about_the_inside(code: str) -> None:
    """Bugs and outages carry neither message, detail, hint nor constraint of the server."""
    error = errors.from_sqlstate(
        code, message="secret", detail="secret", hint="secret", constraint="secret"
    )
    told = (str(error), error.title, error.detail, error.hint, error.constraint)
    assert "secret" not in " ".join(told)


def test_a_broken_law_is_told_in_its_own_words() -> None:
    """A CHECK's detail would be the whole row; its name is a sentence instead."""
    error = errors.from_sqlstate(
        "23514", message="new row …", detail="Failing row contains (…)", constraint="a_is_not_b"
    )
    assert error.detail == "a is not b"


@pytest.mark.parametrize(
    "away", [psycopg.OperationalError("no route"), psycopg_pool.PoolTimeout("30 s")]
)
def test_a_server_that_is_away_is_a_reason_to_try_again(away: psycopg.Error) -> None:
    """Errors without a SQLSTATE are outages when the driver says that it can't get through."""
    told = errors.from_psycopg(away)
    assert isinstance(told, errors.UnavailableError)
    assert "route" not in str(told)


def test_errors_of_the_driver_leave_as_ours_with_their_cause() -> None:
    """Translation keeps the original for the log."""
    original = psycopg.errors.UniqueViolation("twice")
    with pytest.raises(errors.ConflictError) as caught, errors.translated():
        raise original
    assert caught.value.__cause__ is original


def test_other_exceptions_pass_untouched() -> None:
    """Only what the driver raises is translated."""
    with pytest.raises(KeyError), errors.translated():
        raise KeyError


def test_what_is_missing_is_named() -> None:
    """The server's detail of a null would be the whole row; the column is what its writer needs."""
    error = errors.from_sqlstate(
        "23502", message="null value …", detail="Failing row contains (…)", column="name"
    )
    assert error.detail == "name is needed, and is null."


def test_a_law_says_what_is_allowed() -> None:
    """Bounds and letters, in place of the name of a constraint."""
    error = errors.from_sqlstate("23514", constraint="order_items_quantity_is_sane")
    assert error.detail == "A line is of 1 to 1000000 units."
