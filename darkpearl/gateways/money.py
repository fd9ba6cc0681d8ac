"""Amounts of money: decimals in major units in here, whole minor units at gateways.

Conversions are exact or refused. Nothing is rounded: to ask for 9.999 EUR is a mistake, and to
answer with another amount than was asked for is a second one.
"""

from decimal import MAX_PREC, Context, Decimal, Inexact

_EXACT = Context(prec=MAX_PREC, traps=[Inexact])
_ZERO = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE = "BHD IQD JOD KWD LYD OMR TND"
_FOUR = "CLF UYW"
_MINOR_UNITS = (
    dict.fromkeys(_ZERO.split(), 0)
    | dict.fromkeys(_THREE.split(), 3)
    | dict.fromkeys(_FOUR.split(), 4)
)


class AmountError(ValueError):
    """An amount that its currency, or whoever is to move it, can't express."""


def minor_units(currency: str) -> int:
    """How many decimals an amount of a currency has, by ISO 4217; the same as in SQL."""
    return _MINOR_UNITS.get(currency, 2)


def to_minor(amount: Decimal, currency: str, decimals: int | None = None) -> int:
    """An amount in minor units: 9.99 USD is 999, 500 JPY is 500.

    Args:
        amount: in major units.
        currency: ISO 4217, upper case.
        decimals: instead of those of the currency.

    Raises:
        AmountError: it has more decimals than that, or is no number.
    """
    decimals = minor_units(currency) if decimals is None else decimals
    if not amount.is_finite():
        raise AmountError(f"{amount} {currency} is no amount")
    whole, parts = amount.as_integer_ratio()
    scale: int = 10**decimals
    minor, rest = divmod(whole * scale, parts)
    if rest:
        raise AmountError(f"{amount} {currency} has more than {decimals} decimals")
    return minor


def from_minor(minor: int, currency: str, decimals: int | None = None) -> Decimal:
    """An amount in major units, with all decimals of its currency: 999 USD cents are 9.99."""
    decimals = minor_units(currency) if decimals is None else decimals
    return Decimal(minor).scaleb(-decimals, _EXACT)
