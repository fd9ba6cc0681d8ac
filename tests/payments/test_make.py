"""Settings name a gateway, and say at once what it lacks."""

import sys

import pytest

from darkpearl.config import ConfigError, Settings
from darkpearl.gateways.make import make_gateway


def test_the_mock_takes_its_settings() -> None:
    """Its rate, seed and script are those of the settings; a bad script is refused."""
    assert make_gateway(Settings()).name == "mock"
    with pytest.raises(ConfigError, match="DARKPEARL_MOCK_SCRIPT"):
        make_gateway(Settings(mock_script="13.37"))


async def test_stripe_needs_its_key() -> None:
    """Without an API key there is one line that names the setting; with one there is a gateway."""
    with pytest.raises(ConfigError, match="DARKPEARL_STRIPE_API_KEY is needed"):
        make_gateway(Settings(gateway="stripe"))
    gateway = make_gateway(Settings(gateway="stripe", stripe_api_key="sk_test_1"))
    assert gateway.name == "stripe"
    await gateway.close()


def test_stripe_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the SDK the error says what to install."""
    monkeypatch.delitem(sys.modules, "darkpearl.gateways.stripe", raising=False)
    monkeypatch.setitem(sys.modules, "stripe", None)
    with pytest.raises(ConfigError, match=r"pip install 'darkpearl\[stripe\]'"):
        make_gateway(Settings(gateway="stripe", stripe_api_key="sk_test_1"))


def test_an_api_key_is_not_repeated() -> None:
    """One that can't be right is refused without being shown."""
    with pytest.raises(ConfigError, match="STRIPE_API_KEY: what was given is not allowed") as e:
        Settings.from_environment({"DARKPEARL_STRIPE_API_KEY": "pk_live_secret"})
    assert "secret" not in str(e.value)
