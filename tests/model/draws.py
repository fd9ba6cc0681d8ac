"""What a story is made of: the choices that Hypothesis draws, and when there are any."""

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition
from model.orders import Goods, Order
from model.world import ADJUSTMENTS, PRODUCTS, WAREHOUSES

picks = st.integers(0, 20)
few = st.integers(-1, 6)
seldom = st.sampled_from([False, False, False, True])
verdicts = st.sampled_from(["approved", "approved", "approved", "declined", "pending", "half"])
final = st.sampled_from(["approved", "approved", "declined", "half"])
fates = verdicts | st.sampled_from(["approved", "unknown", "lost", "given back"])
goods = st.dictionaries(
    st.sampled_from(PRODUCTS), st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=2
).map(Counter)
parts = st.none() | goods | st.sampled_from([0, 1, 0, 1])
"""Of an order: all of it, any goods, or one unit of its first or last product."""
Part = Goods | int | None
amounts = st.sampled_from([Decimal(each) for each in ("-1", "0", "0.50", "3.00", "4.50", "100")])
warehouses = st.sampled_from(WAREHOUSES)
tokens = st.sampled_from(["tok_visa", "tok_other"])
products = st.sampled_from(PRODUCTS)
adjustments = st.sampled_from(list(ADJUSTMENTS))


def has_order(likely: Callable[[Order], object]) -> Any:
    """A precondition: there is an order like that."""
    return precondition(lambda self: any(map(likely, self.model.orders.values())))


has_stuck_saga = precondition(
    lambda self: any(each.status == "stuck" for each in self.model.sagas.values())
)
