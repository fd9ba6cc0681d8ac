"""APIs that are really served: on a socket and in a thread, or as a process of their own."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import httpx
import psutil

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


class Process:
    """A command of darkpearl as a process of its own, and what it has printed."""

    def __init__(self, *command: str, descriptors: int = 0, **settings: str) -> None:
        kept = {name: each for name, each in os.environ.items() if not name.startswith("DARKPEARL")}
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end
        self._process = subprocess.Popen(
            [sys.executable, "-m", "darkpearl", *command],
            env={**kept, "DARKPEARL_JWT_SECRET": SECRET, **settings},
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if descriptors:  # long before it has started
            files = (descriptors, descriptors)
            resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, files)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, number: int) -> None:
        """Send it a signal; a process that has ended by it is waited for."""
        self._process.send_signal(number)
        if number in {signal.SIGKILL, signal.SIGTERM}:
            self._process.wait(20)

    def memory(self) -> int:
        """Bytes that it has in memory."""
        rss: int = psutil.Process(self._process.pid).memory_info().rss
        return rss

    def remote_ports(self) -> set[int]:
        """Where those are that it has connections with."""
        process = psutil.Process(self._process.pid)
        return {each.raddr.port for each in process.net_connections("tcp") if each.raddr}

    def runs(self) -> bool:
        """It hasn't ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """It ends in the middle of whatever it does."""
        self._process.kill()

    def printed(self) -> str:
        """All it has said so far."""
        self.output.seek(0)
        return self.output.read()

    def __enter__(self) -> Self:
        return self

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it with a signal; its exit code."""
        self._process.send_signal(how)
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.output.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def answering(
    client: httpx.AsyncClient, path: str = "/health/ready", status: int = 200
) -> None:
    """Return once the API answers so; at most for half a minute."""
    async with asyncio.timeout(30):
        while True:
            try:
                if (await client.get(path)).status_code == status:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)
