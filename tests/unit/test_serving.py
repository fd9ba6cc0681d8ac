"""The socket that the API is served on."""

import socket

from darkpearl.config import Settings
from darkpearl.serving import taken_socket


def test_the_api_answers_without_waiting_for_acknowledgements() -> None:
    """The listening socket is known as TCP, so that asyncio switches Nagle's algorithm off."""
    with taken_socket(Settings(port=0)) as taken:
        assert taken.proto == socket.IPPROTO_TCP
