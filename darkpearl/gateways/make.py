"""The gateway that the settings name; only the one in use is loaded."""

from darkpearl.config import ConfigError, Settings
from darkpearl.gateways import Gateway


def make_gateway(settings: Settings) -> Gateway:
    """The gateway that the settings name, without a connection yet.

    Raises:
        ConfigError: a setting that this gateway needs is missing.
    """
    if settings.gateway == "http":
        from darkpearl.gateways.http import HttpGateway  # noqa: PLC0415

        if settings.gateway_url is None:
            raise ConfigError("DARKPEARL_GATEWAY_URL is needed when DARKPEARL_GATEWAY is http")
        return HttpGateway(
            settings.gateway_url,
            token=settings.gateway_token,
            webhook_secret=settings.webhook_secret,
            concurrency=settings.payment_concurrency,
            timeout_seconds=settings.payment_timeout_seconds,
        )
    from darkpearl.gateways.mock import MockGateway  # noqa: PLC0415

    return MockGateway(
        approval_rate=settings.mock_approval_rate,
        latency_seconds=settings.mock_latency_seconds,
        seed=settings.mock_seed,
    )
