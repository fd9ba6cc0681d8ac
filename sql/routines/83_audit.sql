-- The audit: the proof that all of it agrees. It lists what contradicts the rules, foreign keys
-- left out for speed included, and must be empty.
--
-- Each rule is written once, with what restricts it: a saga's id, a product, or the time of a
-- movement, in columns that a condition reaches the tables through. So the same rules are the
-- whole audit, and the audit of what has changed since a moment.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace view audit_rules with (security_invoker = true) as
-- The shelves are what the ledger says last.
select 'inventory is not the sum of its ledger' as finding, i.product_id as subject,
    format('warehouse %s: %s/%s on the row, %s/%s in the ledger', i.warehouse_id,
        i.quantity_available, i.quantity_reserved, coalesce(m.available_after, 0), coalesce(m.reserved_after, 0)) as detail,
    null::uuid as saga_id, i.product_id, null::timestamptz as moved_at
from inventory as i
left join lateral (
    select l.available_after, l.reserved_after
    from stock_movements as l
    where l.product_id = i.product_id and l.warehouse_id = i.warehouse_id
    order by l.id desc
    limit 1
) as m on true
where (i.quantity_available, i.quantity_reserved) is distinct from (coalesce(m.available_after, 0), coalesce(m.reserved_after, 0))
union all
-- … and the ledger adds up: each movement follows from the one before, and none goes below
-- zero. An opening balance follows from what retention has removed.
select 'movement does not follow from the one before', m.product_id,
    format('movement %s: %s/%s after it, %s/%s before it', m.id, m.available_after, m.reserved_after,
        coalesce(p.available_after, 0), coalesce(p.reserved_after, 0)),
    null, null, m.created_at
from stock_movements as m
left join lateral (
    select l.available_after, l.reserved_after
    from stock_movements as l
    where l.product_id = m.product_id and l.warehouse_id = m.warehouse_id and l.id < m.id
    order by l.id desc
    limit 1
) as p on true
where (
    m.movement_type <> 'balance' and (
        m.available_after - coalesce(p.available_after, 0) <> case
            when m.movement_type in ('receive', 'transfer_in', 'adjust') then m.quantity
            when m.movement_type in ('transfer_out', 'fulfill') then -m.quantity else 0
        end
        or m.reserved_after - coalesce(p.reserved_after, 0) <> case
            when m.movement_type = 'reserve' then m.quantity
            when m.movement_type in ('release', 'fulfill') then -m.quantity else 0
        end
    )
) or m.available_after < 0 or m.reserved_after < 0 or m.reserved_after > m.available_after
    or (m.movement_type = 'balance' and m.quantity <> m.available_after)
union all
select 'movement names no inventory row', m.product_id, format('%s units in warehouse %s', m.available_after, m.warehouse_id),
    null, null, m.created_at
from stock_movements as m
where m.available_after <> 0
    and not exists (
        select from inventory as i where i.product_id = m.product_id and i.warehouse_id = m.warehouse_id
    )
    and not exists (
        select from stock_movements as l
        where l.product_id = m.product_id and l.warehouse_id = m.warehouse_id and l.id > m.id
    )
union all
select 'reason of a movement that does not exist', r.product_id, format('%s of operation %s', r.reason_code, r.correlation_id),
    null, r.product_id, null
from movement_reasons as r
where not exists (
    select from stock_movements as m
    where m.correlation_id = r.correlation_id and m.movement_type = 'adjust'
        and m.product_id = r.product_id and m.warehouse_id = r.warehouse_id
)
union all
-- The catalogue is written elsewhere, where there are several cells, and what it loses there is
-- missing here. What another cell has is at rest here, if anything of it is left.
select 'stock of a product or a warehouse that does not exist', i.product_id, format('%s units in warehouse %s', i.quantity_available, i.warehouse_id),
    null, i.product_id, null
from inventory as i
where not exists (select from products as p where p.id = i.product_id)
    or not exists (select from warehouses as w where w.id = i.warehouse_id)
union all
select 'warehouse of a cell that does not exist', w.id, format('%s: cell %s', w.code, w.cell), null, null, null
from warehouses as w
where not exists (select from cells as c where c.number = w.cell)
union all
select 'saga of another cell''s warehouse is at work', s.id, format('warehouse %s of cell %s, ready at %s', w.code, w.cell, s.ready_at),
    s.id, null, null
from sagas as s
inner join warehouses as w on w.id = s.warehouse_id and w.cell <> this_cell()
where s.ready_at < 'infinity'
    and not exists (select from moved_warehouses as m where m.warehouse_id = w.id and m.state in ('coming', 'arrived'))
union all
-- Orders.
select 'order total is not the sum of its lines and adjustments', o.id,
    format('%s, lines %s, adjustments %s', o.total_amount, coalesce(i.total, 0), coalesce(a.total, 0)), o.id, null, null
from orders as o
cross join lateral (
    select sum(l.line_total) as total from order_items as l where l.order_id = o.id and l.warehouse_id = o.warehouse_id
) as i
cross join lateral (
    select sum(d.amount) as total from order_adjustments as d where d.order_id = o.id and d.warehouse_id = o.warehouse_id
) as a
where o.total_amount is distinct from i.total + coalesce(a.total, 0)
union all
select 'adjustment has no order, or no line', a.order_id, format('%s %s', a.kind, a.amount), a.order_id, null, null
from order_adjustments as a
where not exists (select from orders as o where o.id = a.order_id and o.warehouse_id = a.warehouse_id)
    or (a.item_id is not null and not exists (
        select from order_items as i where i.order_id = a.order_id and i.warehouse_id = a.warehouse_id and i.id = a.item_id
    ))
union all
select 'line has no order', i.order_id, format('line %s in warehouse %s', i.id, i.warehouse_id), i.order_id, null, null
from order_items as i
where not exists (select from orders as o where o.id = i.order_id and o.warehouse_id = i.warehouse_id)
union all
select 'particulars have no order', d.order_id, coalesce(d.reference, 'no reference'), d.order_id, null, null
from order_particulars as d
where not exists (select from orders as o where o.id = d.order_id and o.warehouse_id = d.warehouse_id)
union all
select 'grouped order does not exist', g.order_id, format('group %s', g.group_id), g.order_id, null, null
from grouped_orders as g
where not exists (select from orders as o where o.id = g.order_id and o.warehouse_id = g.warehouse_id)
union all
select 'order has no saga', o.id, o.status::text, o.id, null, null
from orders as o
left join sagas as s on s.id = o.id and s.warehouse_id = o.warehouse_id
where s.id is null
union all
select 'saga has no order', s.id, s.status::text, s.id, null, null
from sagas as s
left join orders as o on o.id = s.id and o.warehouse_id = s.warehouse_id
where s.saga_type like 'order\_fulfilment%' and o.id is null
union all
select 'order and saga disagree', o.id, format('order %s, saga %s', o.status, s.status), o.id, null, null
from orders as o
inner join sagas as s on s.id = o.id and s.warehouse_id = o.warehouse_id
where (s.status = 'completed') <> (o.status = 'fulfilled')
    or (s.status = 'compensated') <> (o.status = 'cancelled')
union all
-- A cancelled order holds nothing in the end, a fulfilled one took its lines, but for what was
-- taken out of it. Parcels and what is taken out move under ids of their own, and refer to the order.
select 'ended order does not balance in the ledger', o.id,
    format('%s: reserved %s, released %s, fulfilled %s, ordered %s', o.status, m.reserved, m.released, m.fulfilled, i.quantity),
    o.id, null, null
from orders as o
cross join lateral (
    select sum(l.quantity) as quantity from order_items as l where l.order_id = o.id and l.warehouse_id = o.warehouse_id
) as i
left join lateral (
    select
        coalesce(sum(quantity) filter (where movement_type = 'reserve'), 0) as reserved,
        coalesce(sum(quantity) filter (where movement_type = 'release'), 0) as released,
        coalesce(sum(quantity) filter (where movement_type = 'fulfill'), 0) as fulfilled
    from stock_movements as m
    where m.correlation_id = o.id and m.warehouse_id = o.warehouse_id
) as m on true
left join lateral (
    select
        coalesce(sum(quantity) filter (where movement_type = 'release'), 0) as taken_out,
        coalesce(sum(quantity) filter (where movement_type = 'fulfill'), 0) as shipped
    from stock_movements as p
    where p.reference_id = o.id and p.warehouse_id = o.warehouse_id and p.reference_type in ('shipment', 'cancellation')
) as p on true
where (
    o.status = 'fulfilled'
    and (m.reserved <> i.quantity or m.fulfilled + p.shipped + p.taken_out <> i.quantity or m.released <> 0)
)
    or (o.status = 'cancelled' and (m.reserved <> m.released or m.fulfilled + p.shipped + p.taken_out <> 0))
union all
select 'movement of a saga that does not exist', m.correlation_id, format('%s of %s', m.movement_type, m.quantity),
    m.correlation_id, null, null
from stock_movements as m
where m.movement_type in ('reserve', 'release', 'fulfill')
    and not exists (
        select from sagas as s
        where s.warehouse_id = m.warehouse_id
            and s.id = case when m.reference_type in ('shipment', 'cancellation') then m.reference_id else m.correlation_id end
    )
union all
-- Parcels.
select 'more was shipped or taken out than was ordered', o.id,
    format('product %s: %s ordered, %s in parcels, %s taken out', g.product_id, g.ordered, g.shipped, g.taken_out),
    o.id, null, null
from orders as o
inner join lateral (
    select
        u.product_id, coalesce(sum(u.quantity) filter (where u.kind = 'ordered'), 0) as ordered,
        coalesce(sum(u.quantity) filter (where u.kind = 'shipped'), 0) as shipped,
        coalesce(sum(u.quantity) filter (where u.kind = 'taken out'), 0) as taken_out
    from (
        select 'ordered' as kind, l.product_id, l.quantity from order_items as l where l.order_id = o.id
        union all
        select 'shipped', t.product_id, t.quantity from shipment_items as t where t.order_id = o.id
        union all
        select 'taken out', m.product_id, m.quantity from stock_movements as m
        where m.reference_id = o.id and m.reference_type = 'cancellation'
    ) as u
    group by u.product_id
) as g on g.shipped + g.taken_out > g.ordered
union all
select 'shipment and ledger disagree', h.id,
    format('product %s: %s in the parcel, %s in the ledger', g.product_id, g.packed, g.moved), h.order_id, null, null
from shipments as h
inner join lateral (
    select
        u.product_id, coalesce(sum(u.quantity) filter (where u.is_packed), 0) as packed,
        coalesce(sum(u.quantity) filter (where not u.is_packed), 0) as moved
    from (
        select true as is_packed, t.product_id, t.quantity from shipment_items as t
        where t.order_id = h.order_id and t.shipment_id = h.id
        union all
        select false, m.product_id, m.quantity from stock_movements as m
        where m.correlation_id = h.id and m.movement_type = 'fulfill' and m.reference_id = h.order_id
    ) as u
    group by u.product_id
) as g on g.moved <> case when h.shipped_at is null then 0 else g.packed end
union all
select 'shipment and order disagree', h.id, format('left at %s, order %s', h.shipped_at, coalesce(o.status::text, 'none')),
    h.order_id, null, null
from shipments as h
left join orders as o on o.id = h.order_id and o.warehouse_id = h.warehouse_id
where o.id is null or not exists (select from shipment_items as t where t.order_id = h.order_id and t.shipment_id = h.id)
    or (h.shipped_at is not null and o.status not in ('fulfilling', 'fulfilled'))
    or (h.shipped_at is null and o.status in ('fulfilling', 'fulfilled'))
union all
select 'shipment and history disagree', h.id, format('left at %s, told %s times', h.shipped_at, e.times), h.order_id, null, null
from shipments as h
cross join lateral (
    select count(*) as times from saga_events as e
    where e.saga_id = h.order_id and e.event_type = 'shipped' and e.message = h.id::text
) as e
where e.times <> case when h.shipped_at is null then 0 else 1 end
    -- Events that retention has dropped can't be asked, here and below.
    and (e.times = 0 and h.shipped_at < (select r.removed_before from retention as r where r.kind = 'events')) is not true
union all
select 'parcel has no shipment', t.shipment_id, format('product %s', t.product_id), t.order_id, null, null
from shipment_items as t
where not exists (select from shipments as h where h.id = t.shipment_id and h.order_id = t.order_id and h.warehouse_id = t.warehouse_id)
union all
-- Payments.
select 'payment has no order', p.order_id, p.status::text, p.order_id, null, null
from payments as p
where not exists (select from orders as o where o.id = p.order_id and o.warehouse_id = p.warehouse_id)
    -- Payments are kept longer than their orders.
    and is_spent(p.order_id) is not true
union all
select 'earlier charge has no payment', a.order_id, a.idempotency_key, a.order_id, null, null
from payment_attempts as a
where not exists (
    select from payments as p
    where p.order_id = a.order_id and p.warehouse_id = a.warehouse_id and p.idempotency_key <> a.idempotency_key
)
union all
-- As of a payment, failed_refunds tells of money that did not go back after all.
select 'charge that was given up keeps its money', a.order_id,
    format('%s: captured %s, refunded %s', a.idempotency_key, a.captured_amount, a.refunded_amount), a.order_id, null, null
from payment_attempts as a
where a.captured_amount > a.refunded_amount and not exists (
    select from refunds as r
    where r.order_id = a.order_id and r.warehouse_id = a.warehouse_id and r.payment_key = a.idempotency_key
        and r.status in ('requested', 'failed')
)
union all
select 'held order sleeps past its deadline', o.id, format('pay by %s, saga ready at %s', o.pay_by, s.ready_at), o.id, null, null
from sagas as s
inner join saga_steps as t
    on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position and t.settle_function = 'hear_of_payment'
inner join orders as o on o.id = s.id and o.warehouse_id = s.warehouse_id
-- One that was cancelled meanwhile is ready since then, which is late and no sleep.
where s.status = 'waiting' and s.ready_at > o.pay_by + interval '1 minute' and s.ready_at > clock()
    and not array[s.warehouse_id] <@ (select closed_warehouses())
union all
select 'dispute has no payment', d.order_id, d.reference, d.order_id, null, null
from disputes as d
where not exists (select from payments as p where p.order_id = d.order_id and p.warehouse_id = d.warehouse_id)
union all
select 'order and payment disagree', o.id,
    format('order %s over %s, payment %s: captured %s, refunded %s', o.status, o.total_amount,
        coalesce(p.status::text, 'none'), p.captured_amount, p.refunded_amount),
    o.id, null, null
from orders as o
left join payments as p on p.order_id = o.id and p.warehouse_id = o.warehouse_id
left join sagas as s on s.id = o.id and s.warehouse_id = o.warehouse_id
-- While a saga turns back the order keeps the status it had. A plan may say that goods leave unpaid.
where (o.status in ('paid', 'fulfilling', 'fulfilled') and s.status not in ('compensating', 'stuck')
        and not exists (
            select from saga_steps as t
            where t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.effect = 'fulfill_unpaid'
        )
        and (
            p.captured_amount is distinct from o.total_amount
            or p.refunded_amount <> (
                select coalesce(sum(r.amount), 0) from refunds as r
                where r.order_id = o.id and r.warehouse_id = o.warehouse_id and r.status = 'refunded' and r.payment_key is null
            )
        ))
    or (
        o.status = 'cancelled'
        and (
            -- Money that turned up after its void is on its way back, or failed_refunds tells that it isn't.
            (
                p.captured_amount <> p.refunded_amount + (
                    select coalesce(sum(r.amount), 0) from refunds as r
                    where r.order_id = o.id and r.warehouse_id = o.warehouse_id and r.status = 'requested' and r.payment_key is null
                )
                and not exists (
                    select from refunds as r
                    where r.order_id = o.id and r.warehouse_id = o.warehouse_id and r.status = 'failed' and r.payment_key is null
                )
            )
            or p.status in ('requested', 'pending', 'authorized', 'capture_requested', 'void_requested')
        )
    )
union all
select 'refund is not what its breakdown adds up to', r.id, format('%s of order %s', r.amount, r.order_id), r.id, null, null
from refunds as r
where r.breakdown is not null
    and r.amount is distinct from (select sum((e.part ->> 'amount')::numeric) from jsonb_array_elements(r.breakdown) as e (part))
union all
select 'refund and saga disagree', r.id, format('refund %s, saga %s', r.status, coalesce(s.status::text, 'none')),
    r.id, null, null
from refunds as r
left join sagas as s on s.id = r.id and s.warehouse_id = r.warehouse_id
where (s.id is null and is_spent(r.id) is not true)
    or (s.status = 'completed') <> (r.status in ('refunded', 'failed')) or (s.status = 'compensated') <> (r.status = 'declined')
union all
select 'saga has no refund', s.id, s.status::text, s.id, null, null
from sagas as s
left join refunds as r on r.id = s.id and r.warehouse_id = s.warehouse_id
where s.saga_type = 'refund' and r.id is null
union all
select 'more came back than was sent', o.id, format('product %s: %s returned, %s fulfilled', m.product_id, m.returned, m.fulfilled),
    o.id, null, null
from orders as o
inner join lateral (
    select
        m.product_id,
        sum(m.quantity) filter (where m.movement_type = 'receive') as returned,
        coalesce(sum(m.quantity) filter (where m.movement_type = 'fulfill'), 0) as fulfilled
    from (
        select r.product_id, r.movement_type, r.quantity from stock_movements as r
        where r.reference_id = o.id and r.reference_type = 'return' and (r.movement_type = 'receive') is true
        union all
        select f.product_id, f.movement_type, f.quantity from stock_movements as f
        where f.correlation_id = o.id and f.movement_type = 'fulfill'
        union all
        select p.product_id, p.movement_type, p.quantity from stock_movements as p
        where p.reference_id = o.id and p.reference_type = 'shipment' and p.movement_type = 'fulfill'
    ) as m
    group by m.product_id
) as m on m.returned > m.fulfilled
union all
select 'return and history disagree', b.id, format('told %s times', e.times), b.order_id, null, null
from (
    select m.correlation_id as id, m.reference_id as order_id, max(m.created_at) as created_at
    from stock_movements as m
    where (m.movement_type = 'receive') is true and m.reference_type = 'return'
    group by m.correlation_id, m.reference_id
) as b
cross join lateral (
    select count(*) as times from saga_events as e
    where e.saga_id = b.order_id and e.event_type = 'returned' and e.message = b.id::text
) as e
where e.times <> 1
    and (e.times = 0 and b.created_at < (select r.removed_before from retention as r where r.kind = 'events')) is not true
union all
select 'metadata of a return that is not there', d.return_id, format('order %s', d.order_id), d.order_id, null, null
from return_metadata as d
where not exists (
    select from stock_movements as m
    where m.correlation_id = d.return_id and m.movement_type = 'receive' and m.reference_id = d.order_id
        and m.warehouse_id = d.warehouse_id
)
union all
-- Transfers to other cells, and from them. Each cell sees its end: what left is there again, or in
-- transit, or has arrived there, where it is in the ledger under the same id.
select 'transfer is in transit without a living saga', t.id, format('%s units to warehouse %s', t.quantity, t.to_warehouse_id), t.id, null, null
from transfers as t
where t.status = 'in_transit' and not exists (
    select from sagas as s
    where s.id = t.id and s.warehouse_id = t.warehouse_id and s.saga_type = 'transfer' and s.status not in ('completed', 'compensated')
)
union all
select 'saga has no transfer', s.id, s.status::text, s.id, null, null
from sagas as s
where s.saga_type = 'transfer' and not exists (select from transfers as t where t.id = s.id and t.warehouse_id = s.warehouse_id)
union all
select 'transfer and ledger disagree', t.id, format('%s: %s units, %s left, %s came back', t.status, t.quantity, m.sent, m.back), t.id, null, null
from transfers as t
cross join lateral (
    select
        coalesce(sum(l.quantity) filter (where l.movement_type = 'transfer_out'), 0) as sent,
        coalesce(sum(l.quantity) filter (where l.movement_type = 'transfer_in'), 0) as back
    from stock_movements as l
    where l.correlation_id = t.id and l.warehouse_id = t.warehouse_id and l.product_id = t.product_id
) as m
where m.sent <> t.quantity or m.back <> case when t.status = 'undone' then t.quantity else 0 end
union all
select 'arrival and ledger disagree', a.transfer_id,
    format('%s: %s units, %s came in', coalesce('refused, ' || a.refusal, 'let in'), a.quantity, coalesce(m.quantity, 0)),
    null, a.product_id, null
from transfer_arrivals as a
left join stock_movements as m
    on m.correlation_id = a.transfer_id and m.warehouse_id = a.warehouse_id and m.product_id = a.product_id and m.movement_type = 'transfer_in'
        and m.reference_id = a.from_warehouse_id
where coalesce(m.quantity, 0) <> case when a.refusal is null then a.quantity else 0 end
    -- What was refused since a transfer of that id had left here may have that one's goods back.
    and not (
        a.refusal is not null
        and exists (select from transfers as t where t.id = a.transfer_id and t.warehouse_id = a.warehouse_id and t.product_id = a.product_id)
    )
union all
-- Both ends are here once one of the warehouses has moved to the other's cell.
select 'transfer and arrival disagree', t.id, format('%s, %s there', t.status, case when a.refusal is null then 'let in' else 'refused' end), t.id, null, null
from transfers as t
inner join transfer_arrivals as a
    on a.transfer_id = t.id and a.warehouse_id = t.to_warehouse_id and a.from_warehouse_id = t.warehouse_id
where t.status <> 'in_transit' and (t.status = 'arrived') <> (a.refusal is null)
union all
-- Events.
select 'event has no saga', e.saga_id, e.event_type::text, e.saga_id, null, null
from saga_events as e
where not exists (select from sagas as s where s.id = e.saga_id and s.warehouse_id = e.warehouse_id)
union all
select 'saga and its events disagree', s.id, format('%s, events say %s', s.status, coalesce(e.status::text, 'nothing')),
    s.id, null, null
from sagas as s
left join lateral (select f.id, f.status from sagas_from_events as f where f.id = s.id) as e on true
where s.status is distinct from e.status
    -- Events that retention has dropped can't be asked: of sagas that have ended, or sleep where they were.
    and (e.id is not null or (s.ready_at is not null and not array[s.warehouse_id] <@ (select closed_warehouses()))
        or (s.created_at < (select r.removed_before from retention as r where r.kind = 'events')) is not true)
union all
-- Signals.
select 'signal has no saga', g.saga_id, format('event %s for %s', g.event_id, g.step_name), g.saga_id, null, null
from saga_signals as g
where not exists (select from sagas as s where s.id = g.saga_id and s.warehouse_id = g.warehouse_id)
union all
select 'saga sleeps on its signal', s.id, format('event %s, ready at %s', g.event_id, s.ready_at), s.id, null, null
from saga_signals as g
inner join sagas as s on s.id = g.saga_id and s.warehouse_id = g.warehouse_id
inner join saga_steps as t
    on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position and t.step_name = g.step_name
where g.taken_at is null and s.status = 'waiting' and s.ready_at > clock()
    and not array[s.warehouse_id] <@ (select closed_warehouses())
union all
-- Webhooks.
select 'webhook that failed is ahead of its endpoint', r.subject, format('event %s, endpoint %s is at %s', r.event_id, w.id, w.position),
    null, null, null
from webhook_retries as r
inner join webhook_endpoints as w on w.id = r.endpoint_id
where r.event_id > w.position;
comment on view audit_rules is
    'Internal: the rules of audit, each contradiction with what finds it again: its saga, its product, or when goods moved.';

create or replace view audit with (security_invoker = true) as
select r.finding, r.subject, r.detail from audit_rules as r;
comment on view audit is 'Everything that contradicts the rules. Must be empty: select * from audit.';

-- The same rules for what has changed since a moment: sagas with an event since, the orders of
-- refunds and returns among them, and goods that moved. It takes as long as there was to do.
-- What changed and left no trace is found by audit alone.
-- Planned for the arrays at hand, so that each rule is a look-up by them. Locks nothing.
create or replace function audit_since(p_since timestamptz)
returns table (finding text, subject uuid, detail text)
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_sagas uuid[] := array(
        select e.saga_id from saga_events as e where e.created_at >= p_since
        union
        select m.correlation_id from stock_movements as m
        where m.created_at >= p_since and m.movement_type in ('reserve', 'release', 'fulfill')
        union
        select m.reference_id from stock_movements as m
        where m.created_at >= p_since and m.reference_type in ('return', 'shipment', 'cancellation')
        union
        select o.id from orders as o where o.created_at >= p_since
    );
    v_products constant uuid[] := array(
        select distinct m.product_id from stock_movements as m where m.created_at >= p_since
    );
begin
    v_sagas := v_sagas || array(select r.order_id from refunds as r where r.id = any(v_sagas));
    return query
    select r.finding, r.subject, r.detail from audit_rules as r where r.saga_id = any(v_sagas)
    union all
    select r.finding, r.subject, r.detail from audit_rules as r where r.product_id = any(v_products)
    union all
    select r.finding, r.subject, r.detail from audit_rules as r where r.moved_at >= p_since;
end
$$;
comment on function audit_since(timestamptz) is
    'Everything that contradicts the rules, of what has changed since a moment. The whole is the view audit.';

-- Runs the audit and keeps what it found: of what has changed since a moment, or, without one,
-- of everything, which takes long in a large database. Locks nothing.
create or replace function run_audit(p_since timestamptz default null, p_reason text default null) returns audit_runs
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set jit = off
as $$
declare
    v_run audit_runs;
begin
    v_run.started_at := clock();
    if p_since is null then
        select count(*), jsonb_agg(to_jsonb(a) - 'n') filter (where a.n <= 100) into v_run.finding_count, v_run.findings
        from (select r.*, row_number() over () as n from audit as r) as a;
    else
        select count(*), jsonb_agg(to_jsonb(a) - 'n') filter (where a.n <= 100) into v_run.finding_count, v_run.findings
        from (select r.*, row_number() over () as n from audit_since(p_since) as r) as a;
    end if;
    insert into audit_runs (since, started_at, ended_at, finding_count, findings, actor, reason)
    values (p_since, v_run.started_at, clock(), v_run.finding_count, coalesce(v_run.findings, '[]'), current_actor(), p_reason)
    returning * into v_run;
    return v_run;
end
$$;
comment on function run_audit(timestamptz, text) is
    'Runs the audit, of everything or of what has changed since a moment, and keeps what it found in audit_runs.';
