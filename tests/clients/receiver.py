"""A receiver of webhooks as a shop writes one: a process of its own, that has their library alone.

It prints its port, reads the secret from standard input, and prints each event that the library
believes, as a line of JSON. What it doesn't believe is answered 400, and printed as such.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError


class Handler(BaseHTTPRequestHandler):
    """Answers one webhook."""

    webhook: Webhook

    def do_POST(self) -> None:
        """204 for what is signed as it should be."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.webhook.verify(body, {name.lower(): each for name, each in self.headers.items()})
            status, told = 204, json.loads(body)
        except WebhookVerificationError as error:
            status, told = 400, {"type": "refused", "error": str(error)}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing else."""


def main() -> None:
    """Take webhooks until killed."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        Handler.webhook = Webhook(sys.stdin.readline().strip())
        server.serve_forever()


if __name__ == "__main__":
    main()
