"""routines/64_gateway_events.sql: what a gateway tells by webhook counts once, and only as news."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb
from releases import Releases, rename
from shop import APPROVED, COMPENSATED, DECLINED, PENDING, UNKNOWN, Row, Shop, of_cell


@pytest.fixture
async def product(shop: Shop) -> UUID:
    """One unit at 10.00 in Lisbon."""
    return await shop.product("10", on_hand=1)


@pytest.fixture
async def order(shop: Shop, product: UUID) -> UUID:
    """An order for it, whose payment the gateway is being asked for."""
    order = await shop.order((product, 1))
    await shop.advance()
    return order


async def dispositions(shop: Shop) -> list[str]:
    """What became of each event, oldest first."""
    return await shop.values("select disposition::text from gateway_events order by received_at")


async def test_an_event_is_the_answer_that_is_waited_for(shop: Shop, order: UUID) -> None:
    """Pending, then told: the saga goes on as with any answer, at once."""
    await shop.settle([await shop.lease(order)], PENDING)
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    assert await shop.order_status(order) == "paid"
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    payment = await shop.payment(order)
    assert (payment["status"], payment["gateway"]) == ("captured", "mock")


async def test_an_event_may_decline(shop: Shop, order: UUID) -> None:
    """Pending, then told no: the saga turns back."""
    await shop.settle([await shop.lease(order)], PENDING)
    assert await shop.told(f"{order}:process_payment", DECLINED) == "applied"
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    assert (await shop.event(order, "step_failed"))["error_code"] == "DP014"


async def test_an_event_may_overtake_the_answer(shop: Shop, order: UUID) -> None:
    """A webhook that is faster than the call counts; the call's own answer then changes nothing."""
    lease = await shop.lease(order)
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    assert await shop.settle([lease], DECLINED) == []
    assert shop.stale == [(order, "DP009")]
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"


async def test_an_event_between_two_tries_saves_the_next(shop: Shop, order: UUID) -> None:
    """What nobody answered is told after all: nobody is asked again."""
    await shop.settle([await shop.lease(order)], UNKNOWN)
    assert (await shop.saga(order))["status"] == "running"
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    assert await shop.ask_again() == []
    assert await shop.order_status(order) == "fulfilled"


async def test_an_event_of_a_capture(shop: Shop, product: UUID) -> None:
    """The steps of the other plan are told of, too."""
    await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product(on_hand=1), 1))
    await shop.advance()
    assert await shop.told(f"{order}:authorize_payment", APPROVED) == "applied"
    await shop.advance()
    assert await shop.told(f"{order}:authorize_payment", APPROVED) == "stale"
    assert await shop.told(f"{order}:capture_payment", APPROVED) == "applied"
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"
    assert await shop.stock(product) == (1, 0)


async def void_in_flight(shop: Shop, order: UUID) -> None:
    """The order is cancelled while nobody knows of its payment, and the void is out."""
    await shop.settle([await shop.lease(order)], UNKNOWN)
    await shop.cancel(order)
    (void,) = await shop.advance()
    assert void["step_name"] == "void_payment"


async def test_an_event_may_answer_a_void(shop: Shop, order: UUID) -> None:
    """A void is told of like anything else."""
    await void_in_flight(shop, order)
    assert await shop.told(f"{order}:void_payment", APPROVED) == "applied"
    await shop.advance()
    assert (await shop.events(order))[-2:] == COMPENSATED
    assert (await shop.payment(order))["status"] == "voided"


async def test_during_a_void_the_void_decides(shop: Shop, order: UUID) -> None:
    """A charge that is told of while it is being voided goes back by that void, and by no other."""
    await void_in_flight(shop, order)
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    assert (await shop.payment(order))["captured_amount"] == 10
    await shop.settle([await shop.lease(order)], APPROVED | {"captured": "10"})
    payment = await shop.payment(order)
    assert (payment["status"], payment["refunded_amount"]) == ("refunded", 10)
    assert await shop.value("select count(*) from refunds") == 0


async def refunded_in_the_end(shop: Shop, order: UUID) -> None:
    """One refund of the whole charge, by a saga that voids it anew; then nothing is owed."""
    refund = await shop.row("select * from refunds")
    assert (refund["order_id"], refund["amount"]) == (order, 10)
    assert refund["reason"] == "charged although it was voided"
    assert await shop.audit() == []
    (request,) = await shop.advance()
    assert request["request"]["operation"] == "void"
    assert request["request"]["idempotency_key"] == of_cell(f"{refund['id']}:refund_payment")
    assert request["request"]["reference"] == "ch_1"
    await shop.settle([request], APPROVED)
    payment = await shop.payment(order)
    assert payment["status"] == "refunded"
    assert payment["captured_amount"] == payment["refunded_amount"] == 10
    assert await shop.order_status(order) == "cancelled"


async def test_a_charge_that_turns_up_after_its_void_goes_back(shop: Shop, order: UUID) -> None:
    """Money that was taken although it was voided is refunded, once, however often it is told."""
    await void_in_flight(shop, order)
    await shop.settle([await shop.lease(order)], APPROVED)
    assert (await shop.payment(order))["status"] == "voided"
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    assert await shop.told(f"{order}:process_payment", APPROVED) == "stale"
    await refunded_in_the_end(shop, order)


async def test_a_charge_that_turns_up_after_its_decline_goes_back(shop: Shop, order: UUID) -> None:
    """Money that was taken although the gateway said no is refunded as well."""
    await shop.settle([await shop.lease(order)], DECLINED)
    assert await shop.told(f"{order}:process_payment", APPROVED) == "applied"
    await refunded_in_the_end(shop, order)


async def test_a_capture_that_turns_up_after_its_void_goes_back(shop: Shop) -> None:
    """What was held, said to be let go of, and then taken after all is refunded."""
    await shop.capture_at_fulfilment()
    order = await shop.order((await shop.product("10", on_hand=1), 1))
    captures = await shop.settle(await shop.advance(), APPROVED)
    voids = await shop.settle(captures, DECLINED)
    await shop.settle(voids, APPROVED)
    assert await shop.told(f"{order}:capture_payment", APPROVED) == "applied"
    await refunded_in_the_end(shop, order)


@pytest.mark.parametrize("method", ["at_payment", "at_fulfilment"])
async def test_an_event_finds_its_step_whatever_the_plan_calls_it(
    shop: Shop, product: UUID, releases: Releases, method: str
) -> None:
    """A plan may rename its steps; what gateways tell names the call, and is taken all the same."""
    await releases.migrate(releases.make(rename))
    await shop.run("update warehouses set capture_method = %s::capture_method", method)
    await shop.receive(product, 1)
    paid, cancelled = [await shop.order((product, 1)) for _ in range(2)]
    told = {UUID(each["saga_id"]): each for each in await shop.advance()}
    await shop.cancel(cancelled)
    while told:
        for each in told.values():
            key = each["request"]["idempotency_key"]
            assert await shop.told(key, APPROVED) == "applied"
        told = {UUID(each["saga_id"]): each for each in await shop.advance()}
    assert await shop.order_status(paid) == "fulfilled"
    assert await shop.order_status(cancelled) == "cancelled"


async def test_an_event_is_taken_once(shop: Shop, order: UUID) -> None:
    """However often it is delivered, before or after the saga has ended."""
    told = (of_cell(f"{order}:process_payment"), APPROVED, "evt_1")
    assert await shop.told(*told) == "applied"
    assert await shop.told(*told) == "duplicate"
    await shop.advance()
    assert await shop.told(*told) == "duplicate"
    assert await dispositions(shop) == ["applied"]
    assert (await shop.events(order)).count("step_completed process_payment") == 1


async def test_gateways_number_their_events_each_by_itself(shop: Shop, order: UUID) -> None:
    """An id that another gateway has used before is another event."""
    tell = "select record_gateway_event(%s, 'evt_1', %s, %s)"
    assert await shop.value(tell, "other", "none:of_ours", Jsonb(APPROVED)) == "unmatched"
    assert (
        await shop.value(tell, "mock", of_cell(f"{order}:process_payment"), Jsonb(APPROVED))
        == "applied"
    )
    assert await dispositions(shop) == ["unmatched", "applied"]


@pytest.mark.parametrize(("first", "then"), [(APPROVED, DECLINED), (DECLINED, APPROVED)])
async def test_a_second_answer_never_undoes_the_first(
    shop: Shop, order: UUID, first: Row, then: Row
) -> None:
    """The first of two that contradict counts; money of a second goes back, a no is for people."""
    key = of_cell(f"{order}:process_payment")
    await shop.told(key, first)
    await shop.advance()
    status = await shop.order_status(order)
    second = await shop.told(key, then)
    assert second == ("unmatched" if first is APPROVED else "applied")
    assert await shop.order_status(order) == status
    assert await shop.value("select count(*) from refunds") == (0 if first is APPROVED else 1)


@pytest.mark.parametrize("answer", [PENDING, UNKNOWN], ids=["pending", "unknown"])
async def test_what_is_no_answer_changes_nothing(shop: Shop, order: UUID, answer: Row) -> None:
    """Pending and unknown are kept as told, and the answer is still due."""
    before = await shop.saga(order)
    assert await shop.told(f"{order}:process_payment", answer) == "stale"
    assert await shop.saga(order) == before
    assert await dispositions(shop) == ["stale"]


async def test_an_event_of_a_step_not_yet_taken_is_stale(shop: Shop) -> None:
    """Nobody was asked, so nothing can have been answered."""
    order = await shop.order((await shop.product(on_hand=1), 1))
    for step in ("process_payment", "void_payment"):
        assert await shop.told(f"{order}:{step}", APPROVED) == "stale"
    assert (await shop.saga(order))["status"] == "running"
    assert await shop.events(order) == ["saga_started"]


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "ch_1",
        "{order}",
        "{order}:",
        "{order}:reserve_stock",
        "{order}:refund_payment",
        "{order}:no_such_step",
        "{order}:process_payment; drop table orders",
        "{order}:process_payment:1",
        "not-a-uuid:process_payment",
        "{stranger}:process_payment",
    ],
)
async def test_what_belongs_to_nothing_is_kept_for_a_person(
    shop: Shop, order: UUID, key: str | None
) -> None:
    """A key that names no call of ours is written down, counted, and changes nothing."""
    before = await shop.saga(order)
    named: Any = key and of_cell(key.format(order=order, stranger=uuid4()))
    assert await shop.told(named, APPROVED) == "unmatched"
    assert await shop.saga(order) == before
    event = await shop.row("select * from gateway_events")
    assert (event["idempotency_key"], event["disposition"]) == (named, "unmatched")
    assert event["answer"] == APPROVED
    assert await shop.value("select unmatched_gateway_events from engine_health") == 1


@pytest.mark.parametrize(
    "answer", [{}, {"outcome": "perhaps"}, {"outcome": 1}, [], "approved", None]
)
async def test_an_event_has_an_outcome(shop: Shop, order: UUID, answer: Any) -> None:
    """What says nothing is refused and not written down: its sender has to mend it."""
    with shop.refused("DP015"):
        await shop.told(f"{order}:process_payment", answer)
    assert await dispositions(shop) == []


async def test_a_long_event_is_cut_and_told_from_others(shop: Shop, order: UUID) -> None:
    """Ids that begin alike are two events, each delivered once; what people read loses its end."""
    await shop.settle([await shop.lease(order)], PENDING)
    key, ids = of_cell(f"{order}:process_payment"), ["x" * 300 + each for each in "ab"]
    wordy = APPROVED | {"message": "m" * 20_000, "code": "c" * 300, "reference": "re_1", "more": 1}
    assert await shop.told(key, wordy, ids[0]) == "applied"
    assert await shop.told(key, wordy, ids[0]) == "duplicate"
    assert await shop.told(key, wordy, ids[1]) == "stale"
    assert await shop.told("k" * 300, APPROVED, "evt") == "unmatched"
    events = await shop.rows("select * from gateway_events where event_id <> 'evt'")
    assert [len(each["event_id"]) for each in events] == [255, 255]
    assert [len(each["answer"]["message"]) for each in events] == [1000, 1000]
    assert (await shop.payment(order))["gateway_reference"] == "re_1"
    await shop.advance()
    assert await shop.order_status(order) == "fulfilled"


async def test_what_can_be_no_reference_is_left_out(shop: Shop, order: UUID) -> None:
    """The payment has its key all the same."""
    await shop.settle([await shop.lease(order)], PENDING)
    assert await shop.told(f"{order}:process_payment", APPROVED | {"reference": "9" * 20_000})
    assert "reference" not in await shop.value("select answer from gateway_events")
    assert (await shop.payment(order))["captured_amount"] == 10


async def test_what_is_kept_fits_whatever_it_is_made_of(shop: Shop, order: UUID) -> None:
    """A cut answer is within the bound by its text, which is the same on every server."""
    await shop.settle([await shop.lease(order)], PENDING)
    wordy = APPROVED | dict.fromkeys(("code", "message", "more"), "\u0001" * 20_000)
    wordy["reference"] = "\u0001" * 255
    assert await shop.told(f"{order}:process_payment", wordy) == "applied"
    assert await shop.value("select octet_length(answer::text) <= 10000 from gateway_events")


async def test_a_long_amount_is_still_none(shop: Shop, order: UUID) -> None:
    """Cut to what is kept, it is no approval of what was asked for."""
    await shop.settle([await shop.lease(order)], PENDING)
    assert await shop.told(f"{order}:process_payment", APPROVED | {"captured": "9" * 20_000})
    assert (await shop.event(order, "step_failed"))["error_code"] == "DP026"
    assert (await shop.payment(order))["captured_amount"] == 0


async def test_events_are_history(shop: Shop, order: UUID) -> None:
    """What a gateway told stays told."""
    await shop.told(f"{order}:process_payment", APPROVED)
    for change in ("delete from gateway_events", "truncate gateway_events"):
        with shop.refused("DP005"):
            await shop.run(change)


@pytest.mark.parametrize("role", ["anon", "authenticated", "darkpearl_app", "darkpearl_reader"])
async def test_nobody_but_staff_brings_events(shop: Shop, order: UUID, role: str) -> None:
    """Who may not act for a gateway can't say that money has come."""
    async with shop.acting_as(role):
        with shop.refused("42501"):
            await shop.run(
                "select record_gateway_event('mock', 'evt_1', %s, '{\"outcome\": \"approved\"}')",
                of_cell(f"{order}:process_payment"),
            )
