"""routines/66_forked_orders.sql: a cancelled order is placed again."""

import json
from uuid import UUID, uuid4

from shop import APPROVED, DECLINED, Row, Shop


async def fork(shop: Shop, order: UUID, reason: str = "paid by phone", **more: object) -> Row:
    """Staff place an order again."""
    named = {"p_order_id": order, "p_reason": reason, **more}
    arguments = ", ".join(f"{name} => %s" for name in named)
    async with shop.acting_as("service_role"):
        return await shop.row(f"select * from fork_order({arguments})", *named.values())


async def declined(shop: Shop, *, price: str = "10") -> UUID:
    """An order of two lines, with all that an order can have, which was cancelled."""
    first, second = await shop.product(price, on_hand=5), await shop.product("4", on_hand=5)
    lines = [
        {
            "product_id": str(first),
            "quantity": 2,
            "unit_price": "9.50",
            "metadata": {"engraved": "A"},
        },
        {"product_id": str(second), "quantity": 1},
    ]
    adjustments = [
        {"kind": "shipping", "label": "Post", "amount": 5},
        {"kind": "discount", "label": "Spring", "amount": -1, "item": 1},
    ]
    particulars = {
        "reference": str(uuid4()), "email": "ann@example.org", "metadata": {"channel": "shop"},
        "shipping_address": {"line1": "Rua 1", "country": "PT"},
    }  # fmt: skip
    async with shop.acting_as("service_role"):
        order = await shop.value(
            "select id from place_order(%s, %s, 'ann', 'a gift', 'USD', new_id(), 'tok_1', %s, %s)",
            shop.lisbon,
            json.dumps(lines),
            json.dumps(particulars),
            json.dumps(adjustments),
        )
    await shop.settle(await shop.advance(), DECLINED)
    await shop.advance()
    assert await shop.order_status(order) == "cancelled"
    return order


TERMS = """
    select o.customer_id, o.currency, o.total_amount, o.notes, o.warehouse_id, p.email, p.metadata,
        p.shipping_address,
        array(
            select row(i.product_id, i.quantity, i.unit_price, i.metadata)::text
            from order_items as i where i.order_id = o.id order by i.id
        ) as lines,
        array(
            select row(a.kind, a.label, a.amount, (
                select count(*) from order_items as i where i.order_id = o.id and i.id <= a.item_id
            ))::text
            from order_adjustments as a where a.order_id = o.id order by a.id
        ) as adjustments
    from orders as o left join order_particulars as p on p.order_id = o.id where o.id = %s
"""


async def test_a_fork_has_the_terms_of_the_first(shop: Shop) -> None:
    """Lines, agreed prices, adjustments, customer and particulars are the same; it is paid anew."""
    order = await declined(shop)
    forked = (await fork(shop, order, p_payment_token="tok_2"))["id"]
    assert forked != order
    assert await shop.row(TERMS, forked) == await shop.row(TERMS, order)
    reference = "select reference from order_particulars where order_id = %s"
    assert await shop.value(reference, order)
    assert await shop.value(reference, forked) is None
    (request,) = await shop.advance()
    assert (request["saga_id"], request["request"]["token"]) == (str(forked), "tok_2")
    await shop.settle([request], APPROVED)
    assert await shop.order_status(forked) == "fulfilled"
    assert await shop.order_status(order) == "cancelled"


async def test_a_fork_is_written_down_at_both_ends(shop: Shop) -> None:
    """Either order's history leads to the other, with who and why."""
    order = await declined(shop)
    forked = (await fork(shop, order))["id"]
    rows = await shop.rows(
        "select subject, reason, detail from action_log where action = 'fork_order' order by id"
    )
    assert rows == [
        {
            "subject": str(order),
            "reason": "paid by phone",
            "detail": {"placed_as": str(forked)},
        },
        {
            "subject": str(forked),
            "reason": "paid by phone",
            "detail": {"placed_from": str(order)},
        },
    ]


async def test_only_what_is_cancelled_is_placed_again(shop: Shop) -> None:
    """An order that is still at it, was sent, or isn't there, is refused, and so is no reason."""
    product = await shop.product(on_hand=5)
    waiting, sent = await shop.order((product, 1)), await shop.fulfilled((product, 1))
    for order, code in ((waiting, "DP045"), (sent, "DP045"), (uuid4(), "DP010")):
        with shop.refused(code):
            await fork(shop, order)
    with shop.refused("DP015"):
        await fork(shop, await declined(shop), reason=" ")


async def test_an_id_of_ones_own_makes_it_repeatable(shop: Shop) -> None:
    """Asked for again under the same id it is refused, and there is one order more, not two."""
    order, forked = await declined(shop), uuid4()
    await fork(shop, order, p_new_id=forked)
    with shop.refused("23505"):
        await fork(shop, order, p_new_id=forked)
    assert await shop.value("select count(*) from orders") == 2


async def test_rules_of_new_orders_hold(shop: Shop) -> None:
    """What isn't sold any more can't be ordered again; a price that changed stays as agreed."""
    order = await declined(shop, price="11")
    await shop.run("update products set unit_price = 99")
    assert (await fork(shop, order))["total_amount"] == 27
    await shop.run("update products set is_active = false")
    with shop.refused("DP003"):
        await fork(shop, order)


async def test_only_staff_place_again(shop: Shop) -> None:
    """Nobody else may, and who calls the part that notes it can note nothing that isn't so."""
    order = await declined(shop)
    for role in ("darkpearl_app", "authenticated", "darkpearl_reader"):
        async with shop.acting_as(role):
            with shop.refused("42501"):
                await shop.run("select fork_order(%s, 'mine')", order)
    other = await shop.order((await shop.product(on_hand=1), 1))
    async with shop.acting_as("service_role"):
        with shop.refused("DP015"):
            await shop.run("select note_fork(%s, %s, 'forged')", order, other)


async def test_it_may_be_held_until_it_is_paid(shop: Shop) -> None:
    """Placed again without a means of payment, its goods are kept until the customer has one."""
    order = await declined(shop)
    until = await shop.value("select clock() + interval '1 hour'")
    again = await fork(shop, order, p_pay_by=until)
    assert await shop.advance() == []
    assert await shop.order_status(again["id"]) == "reserved"
    assert await shop.value("select pay_by from orders where id = %s", again["id"]) == until
