"""Amounts are converted exactly, or not at all."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkpearl.gateways.money import AmountError, from_minor, minor_units, to_minor

CURRENCIES = ["JPY", "USD", "KWD", "CLF"]


@pytest.mark.parametrize(
    ("amount", "currency", "minor"),
    [
        ("9.99", "USD", 999),
        ("500", "JPY", 500),
        ("5.124", "KWD", 5124),
        ("1.2345", "CLF", 12345),
        ("10", "EUR", 1000),
        ("10.5000", "EUR", 1050),
        ("1E+3", "EUR", 100_000),
        ("0", "EUR", 0),
        ("-0.01", "EUR", -1),
        ("999999999999.99", "USD", 99_999_999_999_999),
    ],
)
def test_amounts_have_the_minor_units_of_their_currency(
    amount: str, currency: str, minor: int
) -> None:
    """Zero, two, three or four decimals, by ISO 4217, in both directions."""
    assert to_minor(Decimal(amount), currency) == minor
    assert from_minor(minor, currency) == Decimal(amount)


@pytest.mark.parametrize(
    ("amount", "currency"),
    [
        ("9.999", "USD"),
        ("0.5", "JPY"),
        ("1.2345", "KWD"),
        ("0.00001", "CLF"),
        ("NaN", "USD"),
        ("Infinity", "USD"),
    ],
)
def test_what_does_not_fit_is_refused(amount: str, currency: str) -> None:
    """No amount is rounded: one that its currency can't express is an error that names it."""
    with pytest.raises(AmountError, match=f"{amount} {currency}"):
        to_minor(Decimal(amount), currency)


@given(st.integers(-(10**30), 10**30), st.sampled_from(CURRENCIES))
def test_there_and_back_is_the_same(minor: int, currency: str) -> None:
    """No size of amount loses a unit, and major units show all decimals of the currency."""
    amount = from_minor(minor, currency)
    assert to_minor(amount, currency) == minor
    assert amount.as_tuple().exponent == -minor_units(currency)


def test_a_gateway_may_count_differently() -> None:
    """Decimals given by the caller replace those of the currency."""
    assert to_minor(Decimal(5), "ISK", 2) == 500
    assert from_minor(500, "ISK", 2) == 5
