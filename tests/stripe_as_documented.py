"""localstripe, a process of its own, and in front of it what Stripe documents and it lacks.

That is: idempotency keys, search, parameters of a confirmation, filters of lists, a refusal for
what a payment isn't in the state for, and the amounts that were captured. Everything else, and all
that is remembered of payments, is localstripe's.
"""

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import stripe

API_KEY = "sk_test_localstripe"
START_SECONDS = 30.0
STATES = {
    "confirm": {"requires_confirmation", "requires_payment_method"},
    "capture": {"requires_capture"},
    "cancel": {
        "requires_confirmation", "requires_payment_method", "requires_capture", "requires_action",
    },
}  # fmt: skip

Json = dict[str, Any]
Response = tuple[bytes, int, Mapping[str, str]]


@contextmanager
def localstripe() -> Iterator[str]:
    """A server of this process alone; yields where it is."""
    with socket.socket(socket.AF_INET6) as free:
        free.bind(("::", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "localstripe", "--port", str(port), "--from-scratch"]
    with (
        TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            _until_it_answers(process, f"http://localhost:{port}", log)
            yield f"http://localhost:{port}"
        finally:
            process.kill()


def _until_it_answers(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            httpx.get(url).raise_for_status()
        except httpx.HTTPStatusError:
            return
        except httpx.TransportError:
            log.seek(0)
            assert process.poll() is None, log.read().decode()
            assert time.monotonic() < deadline, log.read().decode()
            time.sleep(0.02)


class Stripe(stripe.HTTPXClient):
    """The SDK's way to localstripe.

    `requests` has the method and the path of each, `keys` the idempotency keys of those with one.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.requests: list[str] = []
        self.keys: list[str] = []
        self.is_searchable = True
        self.disputed = False
        self.failed: set[str] = set()
        self._saved: dict[str, tuple[Any, Response]] = {}
        self._captured: dict[str, int] = {}
        self._faults: list[tuple[str, str, Response | None]] = []

    def forget(self) -> None:
        """24 hours go by: idempotency keys mean nothing any more."""
        self._saved.clear()

    def lose(self, path: str) -> None:
        """The next request whose path ends so is carried out, but its answer gets lost."""
        self._faults.append(("after", path, None))

    def fail(self, path: str, status: int, **error: str) -> None:
        """The next request whose path ends so gets this error, and nothing is done."""
        response = json.dumps({"error": error}).encode(), status, {}
        self._faults.append(("before", path, response))

    async def request_async(
        self, method: str, url: str, headers: Mapping[str, str], post_data: Any = None
    ) -> Response:
        """Make one request as Stripe would take it."""
        parts = urlsplit(url)
        path = parts.path.removeprefix("/v1")
        self.requests.append(f"{method.upper()} {path}")
        if response := self._fault("before", path):
            return response
        key, asked = headers.get("Idempotency-Key"), (path, post_data)
        self.keys += [key] if key else []
        parameters = dict(parse_qsl(post_data or parts.query))
        if key is None or method != "post":
            response = await self._handle(method, path, parameters)
        elif key not in self._saved:
            response = await self._handle(method, path, parameters)
            self._saved[key] = asked, response
        elif self._saved[key][0] != asked:
            error = {"type": "idempotency_error", "message": "other parameters than before"}
            return json.dumps({"error": error}).encode(), 400, {}
        else:
            body, status, kept = self._saved[key][1]
            response = body, status, {**kept, "idempotent-replayed": "true"}
        self._fault("after", path)
        return response

    async def object(self, path: str, **parameters: str) -> Json:
        """An object as Stripe would put it into a webhook."""
        body, _, _ = await self._handle("get", path, parameters)
        return json.loads(body)

    async def clear(self) -> None:
        """Forget everything."""
        await self._client_async.delete(f"{self.url}/_config/data")

    async def post(self, path: str, **parameters: str) -> Json:
        """A deed of somebody else at Stripe, such as the payer."""
        return json.loads((await self._ask("post", path, parameters))[0])

    def _fault(self, when: str, path: str) -> Response | None:
        for fault in self._faults:
            if fault[0] == when and path.endswith(fault[1]):
                self._faults.remove(fault)
                if fault[2] is None:
                    raise stripe.APIConnectionError("the connection was lost")
                return fault[2]
        return None

    async def _handle(self, method: str, path: str, given: dict[str, str]) -> Response:
        given = {
            name: value
            for name, value in given.items()
            if not name.startswith(("expand", "automatic_payment_methods", "cancellation_reason"))
        }
        if path == "/payment_intents/search":
            return await self._search(given["query"])
        if path == "/payment_intents" and method == "get":
            return await self._list(given)
        if path == "/refunds" and method == "post":
            left = await self._left(given["payment_intent"])
            if int(given["amount"]) > left:
                code = "amount_too_large" if left else "charge_already_refunded"
                return self._refused(code, f"only {left} are left to refund")
        if path == "/refunds" and method == "get":
            return await self._list_refunds(given)
        found = re.fullmatch(r"/payment_intents/(\w+)/(confirm|capture|cancel)", path)
        if found and (refused := await self._prepare(found[1], found[2], given)):
            return refused
        body, status, headers = await self._ask(method, path, given)
        if path.startswith("/payment_intents") and status == httpx.codes.OK:
            body = json.dumps(self._complete(json.loads(body))).encode()
        return body, status, headers

    async def _prepare(self, intent: str, action: str, given: dict[str, str]) -> Response | None:
        """Parameters that Stripe takes with an action, localstripe takes as an update before it."""
        now = json.loads((await self._ask("get", f"/payment_intents/{intent}", {}))[0])
        if now["status"] not in STATES[action]:
            return self._refused("payment_intent_unexpected_state", f"it is {now['status']}")
        if action == "capture":
            self._captured[intent] = int(given.get("amount_to_capture", now["amount"]))
        update = {name: value for name, value in given.items() if name != "amount_to_capture"}
        if update:
            await self._ask("post", f"/payment_intents/{intent}", update)
            for name in update:
                del given[name]
        return None

    async def _list_refunds(self, given: dict[str, str]) -> Response:
        """Those that are in `failed` came to nothing after they had succeeded."""
        body, status, headers = await self._ask("get", "/refunds", given)
        page = json.loads(body)
        for each in page["data"]:
            if each["id"] in self.failed:
                each["status"] = "failed"
        return json.dumps(page).encode(), status, headers

    async def _left(self, intent: str) -> int:
        charge = (await self.object(f"/payment_intents/{intent}"))["latest_charge"]
        return int(charge["amount"] - charge["amount_refunded"])

    async def _intents(self) -> list[Json]:
        body, _, _ = await self._ask("get", "/payment_intents", {"limit": "100000"})
        intents = [self._complete(each) for each in json.loads(body)["data"]]
        return sorted(intents, key=lambda each: each["created"], reverse=True)

    async def _search(self, query: str) -> Response:
        name, value = re.fullmatch(r'metadata\["(\w+)"\]:"(.*)"', query).groups()  # type: ignore[union-attr]
        found = [
            intent
            for intent in await self._intents()
            if self.is_searchable and intent["metadata"].get(name) == value
        ]
        return self._page("search_result", found, 0, len(found))

    async def _list(self, given: dict[str, str]) -> Response:
        since, after = int(given["created[gte]"]), given.get("starting_after")
        intents = [intent for intent in await self._intents() if intent["created"] >= since]
        start = next((n + 1 for n, each in enumerate(intents) if each["id"] == after), 0)
        return self._page("list", intents, start, int(given["limit"]))

    def _page(self, kind: str, found: list[Json], start: int, limit: int) -> Response:
        data, rest = found[start : start + limit], found[start + limit :]
        page = {"object": kind, "data": data, "has_more": bool(rest), "url": "/v1/payment_intents"}
        return json.dumps(page).encode(), 200, {}

    def _complete(self, intent: Json) -> Json:
        """With the amounts that localstripe leaves out."""
        held = intent["status"] == "requires_capture"
        intent["amount_capturable"] = intent["amount"] if held else 0
        if charge := intent["latest_charge"]:
            charge["disputed"] = self.disputed
            succeeded = intent["status"] == "succeeded"
            captured = self._captured.get(intent["id"], intent["amount"]) if succeeded else 0
            charge["amount_captured"] = intent["amount_received"] = captured
            if intent["status"] == "canceled":
                charge["amount_refunded"] = charge["amount"]
        return intent

    @staticmethod
    def _refused(code: str, message: str) -> Response:
        error = {"type": "invalid_request_error", "code": code, "message": message}
        return json.dumps({"error": error}).encode(), 400, {}

    async def _ask(self, method: str, path: str, parameters: dict[str, str]) -> Response:
        url, body = f"{self.url}/v1{path}", urlencode(parameters)
        headers = {
            "Authorization": f"Bearer {API_KEY}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        if method == "get":
            return await super().request_async(method, f"{url}?{body}", headers)
        return await super().request_async(method, url, headers, body)
