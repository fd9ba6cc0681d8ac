-- The saga of an order: reserve the stock, take the money, ship.
--
--     reserve_stock ──▶ process_payment ──▶ fulfill_order
--          │                  │ (gateway)
--     release_stock ◀── void_payment           on the way back
--
-- A warehouse whose capture_method is at_fulfilment has the money held first
-- and taken right before the goods leave; from then on its sagas only go
-- forward:
--
--     reserve_stock ──▶ authorize_payment ──▶ capture_payment ══▶ fulfill_order
--          │                  │ (gateway)          │ (gateway)
--     release_stock ◀── void_payment ◀─────────────┘
--
-- Each step stands beside its undo; those of payments are in 50_payments.sql.
-- A step function does its effect for all the sagas it is given and returns one
-- outcome each; it writes neither sagas nor orders nor events. An undo is safe
-- when there is nothing to undo.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The plan. Names are code; the numbers are the operator's once they are there.
insert into saga_steps (
    saga_type, position, step_name, step_function, settle_function,
    undo_name, undo_function, undo_settle_function,
    order_status_waiting, order_status_done, order_status_refused, forward_only
)
values
(
    'order_fulfilment', 1, 'reserve_stock', 'reserve_stock', null,
    'release_stock', 'release_stock', null,
    null, 'reserved', null, false
),
(
    'order_fulfilment', 2, 'process_payment', 'request_payment', 'record_payment',
    'void_payment', 'request_void', 'record_void',
    'payment_processing', 'paid', 'payment_failed', false
),
(
    'order_fulfilment', 3, 'fulfill_order', 'fulfill_order', null,
    null, null, null,
    'fulfilling', 'fulfilled', null, false
),
(
    'order_fulfilment_with_capture', 1, 'reserve_stock', 'reserve_stock', null,
    'release_stock', 'release_stock', null,
    null, 'reserved', null, false
),
(
    'order_fulfilment_with_capture', 2, 'authorize_payment', 'request_authorization', 'record_authorization',
    'void_payment', 'request_void', 'record_void',
    'payment_processing', null, 'payment_failed', false
),
(
    'order_fulfilment_with_capture', 3, 'capture_payment', 'request_capture', 'record_capture',
    null, null, null,
    null, 'paid', 'payment_failed', false
),
(
    'order_fulfilment_with_capture', 4, 'fulfill_order', 'fulfill_order', null,
    null, null, null,
    'fulfilling', 'fulfilled', null, true
)
on conflict (saga_type, position) do update set
    step_name = excluded.step_name,
    step_function = excluded.step_function,
    settle_function = excluded.settle_function,
    undo_name = excluded.undo_name,
    undo_function = excluded.undo_function,
    undo_settle_function = excluded.undo_settle_function,
    order_status_waiting = excluded.order_status_waiting,
    order_status_done = excluded.order_status_done,
    order_status_refused = excluded.order_status_refused,
    forward_only = excluded.forward_only;

-- Trigger after a set of new orders: starts their sagas. The saga carries the
-- order's id. Locks nothing.
create or replace function start_order_sagas() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_now constant timestamptz := clock();
begin
    insert into sagas (id, warehouse_id, saga_type, ready_at, created_at, updated_at)
    select
        o.id, o.warehouse_id,
        case w.capture_method
            when 'at_payment' then 'order_fulfilment' else 'order_fulfilment_with_capture'
        end,
        v_now, v_now, v_now
    from new_orders as o
    inner join warehouses as w on w.id = o.warehouse_id;

    insert into saga_events (saga_id, warehouse_id, event_type, actor, created_at)
    select o.id, o.warehouse_id, 'saga_started', current_actor(), v_now
    from new_orders as o
    order by o.id;
    return null;
end
$$;
comment on function start_order_sagas() is 'Trigger: every inserted order starts its saga, whoever inserted it.';

create or replace trigger orders_start_sagas
after insert on orders
referencing new table as new_orders
for each statement execute function start_order_sagas();

-- Step 1. Promises each order all of its lines or none, exactly as if the
-- orders were served one by one in id order.
--
-- A product whose demand by all of them fits into what can be sold refuses
-- nobody, and an order that touches only such products is reserved. The others
-- are gone through in order, keeping count of what is left of the short
-- products; an order that is refused takes nothing from it.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns setof step_outcome
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_sagas uuid[];
    v_warehouses uuid[];
    v_products uuid[];
    v_quantities integer[];
    v_locked locked_stock[];
    v_refused step_outcome[] := '{}';
    v_left integer[];
    v_line record;
    v_reason text;
begin
    select
        array_agg(l.order_id), array_agg(l.warehouse_id),
        array_agg(l.product_id), array_agg(l.quantity)
    into v_sagas, v_warehouses, v_products, v_quantities
    from (
        select i.order_id, i.warehouse_id, i.product_id, least(sum(i.quantity), 2000000000)::integer as quantity
        from order_items as i
        where i.order_id = any(p_saga_ids) and i.warehouse_id = any(p_warehouse_ids)
        group by i.order_id, i.warehouse_id, i.product_id
        order by i.order_id, i.product_id
    ) as l;

    v_locked := lock_stock(v_warehouses, v_products);

    -- The lines of orders that touch a short product, in id order. k numbers
    -- the short products, so that v_left can be looked up by it.
    for v_line in
        with demand as (
            select l.product_id, l.warehouse_id, sum(l.quantity::bigint) as quantity
            from unnest(v_products, v_warehouses, v_quantities) as l (product_id, warehouse_id, quantity)
            group by l.product_id, l.warehouse_id
        ),
        short as (
            select
                d.product_id, d.warehouse_id,
                coalesce(s.quantity_available - s.quantity_reserved, 0) as sellable,
                row_number() over () as k
            from demand as d
            left join unnest(v_locked) as s using (product_id, warehouse_id)
            where d.quantity > coalesce(s.quantity_available - s.quantity_reserved, 0)
        ),
        line as (
            select l.saga_id, l.quantity, s.product_id, s.sellable, s.k
            from unnest(v_sagas, v_products, v_warehouses, v_quantities)
                as l (saga_id, product_id, warehouse_id, quantity)
            inner join short as s using (product_id, warehouse_id)
        )
        select
            l.saga_id,
            array_agg(l.k::integer order by l.product_id) as ks,
            array_agg(l.quantity order by l.product_id) as quantities,
            array_agg(l.product_id order by l.product_id) as product_ids,
            array_agg(l.sellable order by l.product_id) as sellables
        from line as l
        group by l.saga_id
        order by l.saga_id
    loop
        v_reason := null;
        for i in 1..cardinality(v_line.ks) loop
            if v_left[v_line.ks[i]] is null then
                v_left[v_line.ks[i]] := v_line.sellables[i];
            end if;
            if v_reason is null and v_left[v_line.ks[i]] < v_line.quantities[i] then
                v_reason := format(
                    'not enough stock of product %s: %s asked for, %s left',
                    v_line.product_ids[i], v_line.quantities[i], v_left[v_line.ks[i]]
                );
            end if;
        end loop;
        if v_reason is null then
            for i in 1..cardinality(v_line.ks) loop
                v_left[v_line.ks[i]] := v_left[v_line.ks[i]] - v_line.quantities[i];
            end loop;
        else
            v_refused := v_refused || row(v_line.saga_id, 'refused', 'DP006', v_reason, null, null)::step_outcome;
        end if;
    end loop;

    if cardinality(v_refused) > 0 then
        select
            array_agg(l.saga_id order by l.ordinality), array_agg(l.warehouse_id order by l.ordinality),
            array_agg(l.product_id order by l.ordinality), array_agg(l.quantity order by l.ordinality)
        into v_sagas, v_warehouses, v_products, v_quantities
        from unnest(v_sagas, v_warehouses, v_products, v_quantities)
            with ordinality as l (saga_id, warehouse_id, product_id, quantity, ordinality)
        where l.saga_id not in (select r.saga_id from unnest(v_refused) as r);
    end if;

    perform apply_movements('reserve', v_sagas, v_warehouses, v_products, v_quantities, v_locked);

    return query select r.* from unnest(v_refused) as r;
    return query
    select i, 'done'::step_result, null::text, null::text, null::json, null::numeric
    from unnest(p_saga_ids) as i
    where i not in (select r.saga_id from unnest(v_refused) as r);
end
$$;
comment on function reserve_stock(uuid[], uuid[]) is
    'Step: reserves the lines of each order, wholly or not at all, as one by one in id order would.';

-- Undo of step 1. Gives back what the ledger says each saga still holds.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function release_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns setof step_outcome
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform end_reservations('release', p_warehouse_ids, p_saga_ids);
    return query
    select i, 'done'::step_result, null::text, null::text, null::json, null::numeric
    from unnest(p_saga_ids) as i;
end
$$;
comment on function release_stock(uuid[], uuid[]) is 'Undo: returns what each order has reserved to what can be sold.';

-- Step 3. The goods leave: reserved units go from the shelf.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function fulfill_order(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns setof step_outcome
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform end_reservations('fulfill', p_warehouse_ids, p_saga_ids);
    return query
    select i, 'done'::step_result, null::text, null::text, null::json, null::numeric
    from unnest(p_saga_ids) as i;
end
$$;
comment on function fulfill_order(uuid[], uuid[]) is 'Step: takes what each order has reserved from the shelf.';

-- Turns the open reservations of sagas into releases or into goods that left.
-- The ledger is what is believed: a saga with no reservation moves nothing,
-- one whose reservation has ended moves nothing again.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function end_reservations(
    p_movement_type movement_type, p_warehouse_ids uuid[], p_saga_ids uuid[]
) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_sagas uuid[];
    v_warehouses uuid[];
    v_products uuid[];
    v_quantities integer[];
begin
    select
        array_agg(m.correlation_id), array_agg(m.warehouse_id),
        array_agg(m.product_id), array_agg(m.quantity)
    into v_sagas, v_warehouses, v_products, v_quantities
    from (
        select m.correlation_id, m.warehouse_id, m.product_id, sum(m.quantity)::integer as quantity
        from (
            select
                r.correlation_id, r.warehouse_id, r.product_id,
                case r.movement_type when 'reserve' then r.quantity else -r.quantity end as quantity
            from stock_movements as r
            where r.correlation_id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
                and r.movement_type in ('reserve', 'release', 'fulfill')
        ) as m
        group by m.correlation_id, m.warehouse_id, m.product_id
        having sum(m.quantity) > 0
        order by m.correlation_id, m.product_id
    ) as m;

    perform apply_movements(
        p_movement_type, v_sagas, v_warehouses, v_products, v_quantities,
        lock_stock(v_warehouses, v_products)
    );
end
$$;
comment on function end_reservations(movement_type, uuid[], uuid[]) is
    'Internal: ends the open reservations of sagas, by release or by fulfill.';
