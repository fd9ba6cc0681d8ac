"""A gateway for tests: approves whatever it is asked; each test says what is otherwise."""

from darkpearl.gateways import Answer, Call


class StandIn:
    """Approves everything, knows nothing of what was before, and keeps what it was asked."""

    name = "test"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def authorize(self, call: Call) -> Answer:
        return self.approve(call)

    async def capture(self, call: Call) -> Answer:
        return self.approve(call)

    async def void(self, call: Call) -> Answer:
        return self.approve(call)

    async def refund(self, call: Call) -> Answer:
        return self.approve(call)

    async def lookup(self, call: Call) -> Answer | None:
        return None

    async def close(self) -> None:
        pass

    def approve(self, call: Call) -> Answer:
        self.asked.append(call.idempotency_key)
        return Answer("approved", gateway=self.name, reference=call.payment_key)


class KeyKeeper(StandIn):
    """Approves every charge and remembers the keys; nothing is to be voided."""

    async def void(self, call: Call) -> Answer:
        raise AssertionError(call)
