"""Where an endpoint is, and whether it may be there.

Somebody who may name a URL could have us ask what only we can reach. So the address itself is
looked at, each time, and it is that address that is connected to: what a name leads to later
is of no use.
"""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_resolvers = ThreadPoolExecutor(max_workers=1000, thread_name_prefix="resolver")
"""As many as there may be endpoints: each looks its own name up, once at a time. Threads are
started when they are needed, so that names that take long keep no other waiting."""


class RefusedAddressError(OSError):
    """An address that nothing is sent to."""


async def resolve(host: str, port: int, *, to_private: bool) -> str:
    """The address that a host has now.

    Raises:
        RefusedAddressError: it is one of a private network, or of this machine.
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().run_in_executor(_resolvers, _look_up, host, port)
    for address in found:
        if to_private or is_public(address):
            return address
    raise RefusedAddressError(f"{host} is at {found[0]}, which is not a public address")


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]


def is_public(text: str) -> bool:
    """Whether everybody reaches the same by an address. One that wraps another is as that is."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo or address.scope_id:
            return False
        if inner:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast and not address.is_reserved
