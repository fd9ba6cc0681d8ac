"""An API that is really served, on a socket and in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from darkpearl import serving
from darkpearl.config import Settings

SECRET = "a secret of the tests, and of nothing else"


@contextmanager
def served(database_url: str, settings: Settings) -> Iterator[tuple[str, int]]:
    """The address of an API; it is stopped in order at the end."""
    with serving.taken_socket(settings) as taken:
        taken.listen()  # who comes early waits
        service = serving.api_service(settings, database_url, taken)
        thread = threading.Thread(target=lambda: asyncio.run(service.run()))
        address: tuple[str, int] = taken.getsockname()[:2]
        thread.start()
        try:
            yield address
        finally:
            service.stop()
            thread.join(20)
            assert not thread.is_alive()
