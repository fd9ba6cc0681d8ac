-- Finished orders, set-based: what the engine would have left of %(orders)s
-- two-line orders, each of which came and went before the next. Triggers and
-- foreign keys are off (session_replication_role); the audit proves the rows.

create temp table past on commit drop as
select
    new_id() as id, n, w.id as warehouse_id, clock_timestamp() as at,
    array[1 + floor(random() * 500)::int, 501 + floor(random() * 500)::int] as products,
    array[1 + floor(random() * 3)::int, 1 + floor(random() * 3)::int] as quantities
from generate_series(1, %(orders)s) as n, (select id from warehouses order by code limit 1) as w;

create temp table product on commit drop as
select id, row_number() over (order by sku) as number from products;
analyze past, product;

create temp table past_line on commit drop as
select
    o.id, o.n, o.warehouse_id, o.at, p.id as product_id, l.quantity,
    i.quantity_available + l.quantity
        - sum(l.quantity) over (partition by p.id order by o.n) as found_available
from past as o
cross join lateral unnest(o.products, o.quantities) as l (product, quantity)
inner join product as p on p.number = l.product
inner join inventory as i on i.product_id = p.id and i.warehouse_id = o.warehouse_id;
analyze past_line;

insert into orders (id, warehouse_id, status, total_amount, created_at, updated_at)
select id, warehouse_id, 'fulfilled', 10 * (quantities[1] + quantities[2]), at, at
from past
order by n;

insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)
select id, warehouse_id, product_id, quantity, 10
from past_line
order by n;

insert into stock_movements (
    correlation_id, warehouse_id, product_id, movement_type, quantity,
    available_after, reserved_after, created_at
)
select
    l.id, l.warehouse_id, l.product_id, m.movement_type, l.quantity,
    l.found_available - case m.movement_type when 'fulfill' then l.quantity else 0 end,
    case m.movement_type when 'reserve' then l.quantity else 0 end, l.at
from past_line as l, (values ('reserve'::movement_type), ('fulfill'::movement_type)) as m (movement_type)
order by l.n, m.movement_type;

update inventory as i
set quantity_available = i.quantity_available - l.quantity
from (
    select product_id, warehouse_id, sum(quantity) as quantity from past_line group by product_id, warehouse_id
) as l
where i.product_id = l.product_id and i.warehouse_id = l.warehouse_id;

insert into payments (
    order_id, warehouse_id, status, currency, requested_amount, authorized_amount, captured_amount,
    gateway, gateway_reference, idempotency_key, created_at, updated_at
)
select
    id, warehouse_id, 'captured', 'USD', a.amount, a.amount, a.amount,
    'mock', 'mock-0123456789abcdef', id || ':process_payment', at, at
from past, lateral (select 10 * (quantities[1] + quantities[2]) as amount) as a
order by n;

insert into sagas (
    id, warehouse_id, saga_type, plan_version, status, position, lease_token, ready_at, created_at, updated_at
)
select id, warehouse_id, 'order_fulfilment', 1, 'completed', 3, 4, null, at, at
from past
order by n;

insert into saga_events (saga_id, warehouse_id, event_type, step_name, attempt, started_at, created_at)
select o.id, o.warehouse_id, e.event_type, e.step_name, e.attempt, o.at, o.at
from past as o, (
    values
    (1, 'saga_started'::saga_event_type, null, null),
    (2, 'step_completed', 'reserve_stock', 1),
    (3, 'step_waiting', 'process_payment', 1),
    (4, 'step_completed', 'process_payment', 1),
    (5, 'step_completed', 'fulfill_order', 1),
    (6, 'saga_completed', null, null)
) as e (k, event_type, step_name, attempt)
order by o.n, e.k;
