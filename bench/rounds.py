"""Variants measured in turns, so that what the machine does meanwhile meets all of them alike."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from statistics import median
from typing import Any

Figures = dict[str, Any]
Variant = Callable[[], Awaitable[Figures]]


async def interleaved(
    rounds: int, variants: dict[str, Variant], base: Sequence[str] = ()
) -> AsyncIterator[Figures]:
    """Measure every variant once per round, each round in the other order; then the medians.

    Args:
        rounds: how many.
        variants: what to measure, by name.
        base: the variants whose best, by orders_per_second, the others are compared with.

    Yields:
        The figures of each measurement, and at last per variant the medians of all numbers;
        `ratio` is the median of the ratios to the base of the same round.
    """
    measured: dict[str, list[Figures]] = {name: [] for name in variants}
    for number in range(1, rounds + 1):
        for name in list(variants)[:: 1 if number % 2 else -1]:
            figures = await variants[name]()
            measured[name].append(figures)
            yield {"variant": name, "round": number, **figures}
    for name, figures_of in measured.items():
        row = {key: _median([figures[key] for figures in figures_of]) for key in figures_of[0]}
        if base:
            row["ratio"] = median(
                figures_of[n]["orders_per_second"]
                / max(measured[best][n]["orders_per_second"] for best in base)
                for n in range(rounds)
            )
            row["ratio"] = round(row["ratio"], 3)
        yield {"variant": name, "round": f"median of {rounds}", **row}


def _median(values: list[Any]) -> Any:
    if not all(isinstance(value, int | float) for value in values):
        return values[0]
    middle = median(values)
    return round(middle) if all(isinstance(value, int) for value in values) else round(middle, 5)
