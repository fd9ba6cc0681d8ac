"""The gateway that the settings name; only the one in use is loaded."""

from darkpearl.config import Settings
from darkpearl.gateways import Gateway


def make_gateway(settings: Settings) -> Gateway:
    """The gateway that the settings name."""
    from darkpearl.gateways.mock import MockGateway  # noqa: PLC0415

    return MockGateway(
        approval_rate=settings.mock_approval_rate,
        latency_seconds=settings.mock_latency_seconds,
        seed=settings.mock_seed,
    )
