"""`darkpearl payments reconcile`, against a payment service that runs."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from shop import Shop

from darkpearl.config import Settings
from darkpearl.gateways import Call, Gateway
from darkpearl.gateways.make import make_gateway

PATIENCE_SECONDS = 30.0

Run = Callable[..., Awaitable[tuple[int | None, str, str]]]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[str]:
    """A payment service as a process of its own; where it is."""
    command = [sys.executable, "-m", "darkpearl", "paysim", "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command, "--ledger", str(tmp_path / "books.db"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        async with asyncio.timeout(PATIENCE_SECONDS):
            line = (await process.stdout.readline()).decode()
        yield line.split()[1]
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
def run(database_url: str) -> Run:
    """Runs the command with some settings; its exit code, and what it says on both outputs."""

    async def command(*arguments: str, **settings: str) -> tuple[int | None, str, str]:
        given = {f"DARKPEARL_{name.upper()}": value for name, value in settings.items()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "darkpearl", "payments", "reconcile", *arguments),
            env={**os.environ, "DARKPEARL_DATABASE_URL": database_url, **given},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, errors = await process.communicate()
        return process.returncode, said.decode(), errors.decode()

    return command


@pytest.fixture
async def gateway(service: str) -> AsyncIterator[Gateway]:
    """A client of the service."""
    gateway = make_gateway(Settings(gateway="http", gateway_url=service))
    yield gateway
    await gateway.close()


async def test_it_reports_what_happened_behind_our_back(
    shop: Shop, service: str, gateway: Gateway, run: Run
) -> None:
    """Exit 0 and silence while both agree; 1 and a line when money went back by another hand."""
    order = await shop.order((await shop.product("20.00", on_hand=1), 1))
    requests = await shop.advance()
    call = msgspec.convert(requests[0]["request"], Call, strict=False)
    await shop.settle(requests, msgspec.to_builtins(await gateway.authorize(call)))
    assert await shop.order_status(order) == "fulfilled"
    where: dict[str, Any] = {"gateway": "http", "gateway_url": service}
    assert await run("--grace", "0", **where) == (0, "", "")

    by_hand = msgspec.structs.replace(
        call, operation="refund", idempotency_key="by-hand", amount=Decimal("10.00")
    )
    assert (await gateway.refund(by_hand)).outcome == "approved"
    payment = await shop.payment(order)
    code, said, errors = await run("--grace", "0", **where)
    assert (code, errors) == (1, "")
    assert said.startswith(f"{payment['idempotency_key']} refunded: here 0.00, there 10.00 (")
    assert said.count("\n") == 1
    code, said, _ = await run("--grace", "0", "--json", **where)
    assert code == 1
    assert json.loads(said) == {
        "payment_key": payment["idempotency_key"],
        "kind": "refunded",
        "here": "0.00",
        "there": "10.00",
        "reference": payment["gateway_reference"],
    }
    assert await run("--since", "2999-01-01", **where) == (0, "", "")


@pytest.mark.parametrize("taken", ["1.00", "299.00"])
@pytest.mark.parametrize("method", ["at_payment", "at_fulfilment"])
async def test_another_amount_is_undone_on_both_sides(
    shop: Shop, service: str, gateway: Gateway, run: Run, taken: str, method: str
) -> None:
    """A service that takes less or more than it is asked: nothing ships, and the books agree."""
    await shop.run("update warehouses set capture_method = %s::capture_method", method)
    product = await shop.product("29.90", on_hand=1)
    order = await shop.order((product, 1), p_payment_token=f"approve:{taken}")
    requests = await shop.advance()
    while requests:
        call = msgspec.convert(requests[0]["request"], Call, strict=False)
        answer = await getattr(gateway, call.operation)(call)
        requests = await shop.settle(requests, msgspec.to_builtins(answer)) + await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.event(order, "step_failed"))["error_code"] == "DP026"
    held = taken if method == "at_payment" else "0"
    assert (await shop.payment(order))["captured_amount"] == Decimal(held)
    assert await shop.audit() == []
    assert await run("--grace", "0", gateway="http", gateway_url=service) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "complaint"),
    [
        (["--since", "yesterday"], {}, 2, "yesterday"),
        (["--grace", "-1"], {}, 2, "grace"),
        ([], {}, 2, "mock keeps no books"),
        ([], {"mock_script": "1=perhaps"}, 2, "DARKPEARL_MOCK_SCRIPT"),
        ([], {"gateway": "http", "gateway_url": "http://127.0.0.1:9"}, 1, "can't be read"),
        ([], {"gateway": "stripe"}, 2, "DARKPEARL_STRIPE_API_KEY"),
    ],
)
async def test_what_cannot_be_compared_is_told_in_a_line(
    run: Run, arguments: list[str], settings: dict[str, str], code: int, complaint: str
) -> None:
    """2 for a wrong command or setting, 1 for a gateway that is away; nothing on the output."""
    found, said, errors = await run(*arguments, **settings)
    assert (found, said) == (code, "")
    assert complaint in errors
    assert errors.count("\n") == 1
