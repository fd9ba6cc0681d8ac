"""darkpearl/webhooks/addresses.py: which addresses are everybody's."""

import socket
from typing import Any

import pytest

from darkpearl.webhooks import addresses


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    """An address of the internet is public, one of IPv4 in IPv6 too."""
    assert addresses.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.0.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2002:a00:1::",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    """This machine, its networks, multicast, what is reserved, and any of them in IPv6."""
    assert not addresses.is_public(address)


async def test_a_name_that_leads_to_both_leads_to_the_public_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address that was looked at is the one that is returned to be connected to."""

    def found(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, 0, 0, "", (each, 0)) for each in ("10.0.0.1", "93.184.215.14")]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", found)
    assert await addresses.resolve("both.example", 80, to_private=False) == "93.184.215.14"
    assert await addresses.resolve("both.example", 80, to_private=True) == "10.0.0.1"


async def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where it leads."""

    def found(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, 0, 0, "", ("169.254.169.254", 0))]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", found)
    with pytest.raises(addresses.RefusedAddressError, match="is not a public address"):
        await addresses.resolve("metadata.example", 80, to_private=False)
