"""The gateway that the settings name; only the one in use is loaded."""

from darkpearl.config import ConfigError, Settings
from darkpearl.gateways import Gateway


def make_gateway(settings: Settings) -> Gateway:
    """The gateway that the settings name, without a connection yet.

    Raises:
        ConfigError: a setting or a library that this gateway needs is missing.
    """
    if settings.gateway == "stripe":
        return _stripe(settings)
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
        script=settings.mock_script,
    )


def _stripe(settings: Settings) -> Gateway:
    if settings.stripe_api_key is None:
        raise ConfigError("DARKPEARL_STRIPE_API_KEY is needed when DARKPEARL_GATEWAY is stripe")
    try:
        from darkpearl.gateways.stripe import StripeGateway  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"DARKPEARL_GATEWAY: stripe needs {error.name}; pip install 'darkpearl[stripe]'"
        ) from None
    return StripeGateway(settings.stripe_api_key, settings.webhook_secret)
