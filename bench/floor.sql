-- The floor: what order-by-order work costs on this server. The same three
-- steps on the same tables, leaving the same rows as the engine leaves, one
-- order and one transaction at a time, each by a function of its own.
--
-- It is kind to itself: the gateway is asked nothing, so payment needs one
-- transaction instead of two, and a payment row is written once; who reserved
-- an order takes the two other steps by its id; row security, security definer
-- and batches of one cost nothing, because there are none.
--
-- Lock order as the engine's: the saga, its inventory rows by key, the order.

create schema floor;
set search_path = floor, darkpearl, pg_temp;

-- Claims the saga that has waited longest, and reserves its lines.
-- Returns the order's id.
create function reserve() returns uuid
language plpgsql
as $$
declare
    v_saga darkpearl.sagas;
    v_line record;
    v_stock darkpearl.inventory;
    v_now timestamptz := clock_timestamp();
begin
    select s.* into v_saga
    from darkpearl.sagas as s
    where s.ready_at <= v_now
    order by s.ready_at, s.id
    limit 1
    for no key update skip locked;
    if not found then
        raise exception 'nothing is ready';
    end if;

    for v_line in
        select i.product_id, sum(i.quantity)::integer as quantity
        from darkpearl.order_items as i
        where i.order_id = v_saga.id and i.warehouse_id = v_saga.warehouse_id
        group by i.product_id
        order by i.product_id
    loop
        update darkpearl.inventory as i
        set quantity_reserved = i.quantity_reserved + v_line.quantity, updated_at = v_now
        where i.product_id = v_line.product_id and i.warehouse_id = v_saga.warehouse_id
        returning i.* into strict v_stock;
        insert into darkpearl.stock_movements (
            correlation_id, warehouse_id, product_id, movement_type, quantity,
            available_after, reserved_after, created_at
        )
        values (
            v_saga.id, v_saga.warehouse_id, v_line.product_id, 'reserve', v_line.quantity,
            v_stock.quantity_available, v_stock.quantity_reserved, v_now
        );
    end loop;

    insert into darkpearl.saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, started_at, created_at
    )
    values (v_saga.id, v_saga.warehouse_id, 'step_completed', 'reserve_stock', 1, v_now, clock_timestamp());
    update darkpearl.sagas as s
    -- Out of the others' sight, as under a lease.
    set position = 2, ready_at = v_now + interval '10 minutes', updated_at = v_now
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
    update darkpearl.orders as o
    set status = 'reserved', updated_at = v_now
    where o.id = v_saga.id and o.warehouse_id = v_saga.warehouse_id;
    return v_saga.id;
end
$$;

-- Writes the payment, taken.
create function pay(p_order_id uuid) returns void
language plpgsql
as $$
declare
    v_saga darkpearl.sagas;
    v_now timestamptz := clock_timestamp();
begin
    select s.* into strict v_saga from darkpearl.sagas as s where s.id = p_order_id for no key update;
    insert into darkpearl.payments (
        order_id, warehouse_id, status, currency, requested_amount, authorized_amount, captured_amount,
        gateway, gateway_reference, idempotency_key, created_at, updated_at
    )
    select
        o.id, o.warehouse_id, 'captured', o.currency, o.total_amount, o.total_amount, o.total_amount,
        'mock', 'mock-0123456789abcdef', o.id || ':process_payment', v_now, v_now
    from darkpearl.orders as o
    where o.id = v_saga.id and o.warehouse_id = v_saga.warehouse_id;

    insert into darkpearl.saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, next_attempt_at, started_at, created_at
    )
    values
    (
        v_saga.id, v_saga.warehouse_id, 'step_waiting', 'process_payment', 1,
        v_now + interval '30 seconds', v_now, clock_timestamp()
    ),
    (v_saga.id, v_saga.warehouse_id, 'step_completed', 'process_payment', 1, null, v_now, clock_timestamp());
    update darkpearl.sagas as s
    set position = 3, lease_token = s.lease_token + 1, updated_at = v_now
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
    update darkpearl.orders as o
    set status = 'paid', updated_at = v_now
    where o.id = v_saga.id and o.warehouse_id = v_saga.warehouse_id;
end
$$;

-- The goods leave and the saga ends.
create function fulfil(p_order_id uuid) returns void
language plpgsql
as $$
declare
    v_saga darkpearl.sagas;
    v_line record;
    v_stock darkpearl.inventory;
    v_now timestamptz := clock_timestamp();
begin
    select s.* into strict v_saga from darkpearl.sagas as s where s.id = p_order_id for no key update;
    for v_line in
        select m.product_id, m.quantity
        from darkpearl.stock_movements as m
        where m.correlation_id = v_saga.id and m.movement_type = 'reserve'
            and m.warehouse_id = v_saga.warehouse_id
        order by m.product_id
    loop
        update darkpearl.inventory as i
        set
            quantity_available = i.quantity_available - v_line.quantity,
            quantity_reserved = i.quantity_reserved - v_line.quantity,
            updated_at = v_now
        where i.product_id = v_line.product_id and i.warehouse_id = v_saga.warehouse_id
        returning i.* into strict v_stock;
        insert into darkpearl.stock_movements (
            correlation_id, warehouse_id, product_id, movement_type, quantity,
            available_after, reserved_after, created_at
        )
        values (
            v_saga.id, v_saga.warehouse_id, v_line.product_id, 'fulfill', v_line.quantity,
            v_stock.quantity_available, v_stock.quantity_reserved, v_now
        );
    end loop;

    insert into darkpearl.saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, started_at, created_at
    )
    values
    (v_saga.id, v_saga.warehouse_id, 'step_completed', 'fulfill_order', 1, v_now, clock_timestamp()),
    (v_saga.id, v_saga.warehouse_id, 'saga_completed', null, null, null, clock_timestamp());
    update darkpearl.sagas as s
    set status = 'completed', ready_at = null, updated_at = v_now
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
    update darkpearl.orders as o
    set status = 'fulfilled', updated_at = v_now
    where o.id = v_saga.id and o.warehouse_id = v_saga.warehouse_id;
end
$$;
