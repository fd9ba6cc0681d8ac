"""bench/: what stands outside the package and would break unseen."""

from bench.peers import steps


def test_other_engines_can_ask_the_gateway() -> None:
    """The steps that other engines are measured with charge by the gateway's present contract."""
    order = "01890000-0000-7000-8000-000000000001"
    assert steps.charge_now(order, "20.00").startswith("mock-")
