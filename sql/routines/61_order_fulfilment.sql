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
-- A warehouse whose fulfilment_method is on_shipment packs first: there the wait for parcels
-- stands in the place of fulfill_order, see 65_shipments.sql. An order that says until when it is
-- to be paid waits for that behind reserve_stock, see 66_held_orders.sql.
--
-- Each step stands beside its undo; those of payments are in 60_payments.sql.
-- A step function does what it does for all the sagas it is given and says what came of
-- each; it writes neither sagas nor orders nor events. An undo is
-- safe when there is nothing to undo. Stock, which all orders share, moves at
-- the end of a pass: move_goods().

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Trigger after a set of new orders: starts their sagas, by the newest plan of the type
-- that their warehouses' fulfilment and capture methods, and their own deadlines, ask for. The saga carries the order's id.
-- Locks nothing. Raises: DP038 for the id of an order that retention has removed.
create or replace function start_order_sagas() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
    v_at_payment constant smallint := newest_plan('order_fulfilment');
    v_at_fulfilment constant smallint := newest_plan('order_fulfilment_with_capture');
begin
    with started as (
        insert into sagas (id, warehouse_id, saga_type, plan_version, ready_at, created_at, updated_at)
        select
            o.id, o.warehouse_id, o.saga_type,
            case o.saga_type
                when 'order_fulfilment' then v_at_payment
                when 'order_fulfilment_with_capture' then v_at_fulfilment
                else newest_plan(o.saga_type)
            end,
            v_now, v_now, v_now
        from (
            select
                n.id, n.warehouse_id,
                case when n.pay_by is null then '' else 'held_' end || (
                    select 'order_fulfilment'
                        || case w.fulfilment_method when 'automatic' then '' else '_on_shipment' end
                        || case w.capture_method when 'at_payment' then '' else '_with_capture' end
                    from warehouses as w where w.id = n.warehouse_id
                ) as saga_type
            from new_orders as n
            offset 0  -- so that it is looked up once, and not for each mention
        ) as o
        returning id, warehouse_id
    )
    insert into saga_events (saga_id, warehouse_id, event_type, actor, created_at)
    select s.id, s.warehouse_id, 'saga_started', current_actor(), v_now
    from started as s;
    -- A look for each order; refuse_spent_ids() has the last word, of few or none.
    if exists (
        select from new_orders as n
        where n.id <= (select u.id from spent_up_to as u)
            or exists (select from spent_ids as s where s.id = any(array[n.id]))
    ) then
        perform refuse_spent_ids(array(select n.id from new_orders as n));
    end if;
    return null;
end
$$;
comment on function start_order_sagas() is 'Trigger: every inserted order starts its saga, whoever inserted it.';

create or replace trigger orders_start_sagas
after insert on orders
referencing new table as new_orders
for each statement execute function start_order_sagas();

-- Step 1. Promises each order all of its lines or none, exactly as if the
-- orders were served one by one in id order. move_goods() keeps the promise.
--
-- Shelves are looked at without a lock, and a promise is checked when it is kept: a
-- pass that locked some shelves here and others at its end would wait for one that
-- holds those. Who loses a race for the last units is rolled back by the CHECK on
-- inventory, and tried again with all shelves locked first: see advance().
-- Where each shelf holds what is asked of it, nobody is refused. Each is looked up newest
-- version first, see lock_stock().
-- Locks nothing.
create or replace function reserve_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
as $$
begin
    if not exists (
        select
        from order_items as o
        where o.order_id = any(p_saga_ids) and o.warehouse_id = any(p_warehouse_ids)
        group by o.product_id, o.warehouse_id
        having sum(o.quantity) > coalesce((
            select i.quantity_sellable from inventory as i
            where (i.product_id, i.warehouse_id) >= (o.product_id, o.warehouse_id)
                and (i.product_id, i.warehouse_id) <= (o.product_id, o.warehouse_id)
            order by i.product_id desc, i.warehouse_id desc
            limit 1
        ), 0)
    ) then
        return outcome_for_all('done', p_saga_ids);
    end if;
    return reserve_scarce_stock(p_warehouse_ids, p_saga_ids);
end
$$;
comment on function reserve_stock(uuid[], uuid[]) is
    'Step: promises the lines of each order, wholly or not at all, as one by one in id order would.';

-- The same where not every shelf holds enough.
--
-- A product whose demand by all of them fits into what can be sold refuses
-- nobody, and an order that touches only such products is reserved. The others
-- are gone through in order, keeping count of what is left of the short
-- products; an order that is refused takes nothing from it.
-- Locks nothing.
create or replace function reserve_scarce_stock(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_sagas uuid[];
    v_warehouses uuid[];
    v_products uuid[];
    v_quantities integer[];
    v_short_products uuid[];
    v_short_warehouses uuid[];
    v_left integer[];
    v_refused step_outcome[] := '{}';
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
    ) as l;

    select array_agg(d.product_id), array_agg(d.warehouse_id), array_agg(d.sellable)
    into v_short_products, v_short_warehouses, v_left
    from (
        select
            l.product_id, l.warehouse_id, sum(l.quantity::bigint) as quantity,
            coalesce((
                select i.quantity_sellable from inventory as i
                where (i.product_id, i.warehouse_id) >= (l.product_id, l.warehouse_id)
                    and (i.product_id, i.warehouse_id) <= (l.product_id, l.warehouse_id)
                order by i.product_id desc, i.warehouse_id desc
                limit 1
            ), 0) as sellable
        from unnest(v_products, v_warehouses, v_quantities) as l (product_id, warehouse_id, quantity)
        group by l.product_id, l.warehouse_id
    ) as d
    where d.quantity > d.sellable;

    if v_short_products is not null then
        -- The lines of orders that touch a short product, in id order. k says
        -- where in v_left its rest is counted.
        for v_line in
            select
                l.saga_id,
                array_agg(s.k::integer order by l.product_id) as ks,
                array_agg(l.quantity order by l.product_id) as quantities,
                array_agg(l.product_id order by l.product_id) as product_ids
            from unnest(v_sagas, v_products, v_warehouses, v_quantities)
                as l (saga_id, product_id, warehouse_id, quantity)
            inner join unnest(v_short_products, v_short_warehouses)
                with ordinality as s (product_id, warehouse_id, k) using (product_id, warehouse_id)
            group by l.saga_id
            order by l.saga_id
        loop
            v_reason := null;
            for i in 1..cardinality(v_line.ks) loop
                if v_left[v_line.ks[i]] < v_line.quantities[i] then
                    v_reason := format(
                        'not enough stock of product %s: %s asked for, %s left',
                        v_line.product_ids[i], v_line.quantities[i], v_left[v_line.ks[i]]
                    );
                    exit;
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
    end if;

    return group_outcomes(v_refused || array(
        select row(i, 'done', null, null, null, null)::step_outcome
        from unnest(p_saga_ids) as i
        where i not in (select r.saga_id from unnest(v_refused) as r)
    ));
end
$$;
comment on function reserve_scarce_stock(uuid[], uuid[]) is
    'Internal: reserve_stock() where some shelf does not hold enough for all.';

-- The type of movement that an effect is, as a plan says it. Locks nothing. Raises: DP015.
create or replace function movement_of(p_effect text) returns movement_type
language plpgsql immutable
as $$
begin
    case p_effect
        when 'reserve', 'fulfill', 'release' then
            return p_effect::movement_type;
        when 'fulfill_unpaid' then
            return 'fulfill';
        else
            perform refuse(
                'DP015', 'unknown effect', format('A plan has move_goods() do %s.', coalesce(quote_literal(p_effect), 'nothing')),
                'Say reserve, fulfill, fulfill_unpaid or release.'
            );
    end case;
end
$$;
comment on function movement_of(text) is 'Internal: the type of movement that an effect is.';

-- How many of these orders are paid: what was asked for is captured, and none of it given
-- back. An order that costs nothing has a payment too. Locks nothing.
create or replace function count_paid(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns integer
language plpgsql
as $$
begin
    return (
        select count(*) from payments as p
        where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
            and p.captured_amount >= p.requested_amount and p.refunded_amount = 0 and p.status in ('captured', 'refunded')
    );
end
$$;
comment on function count_paid(uuid[], uuid[]) is 'Internal: how many of these orders are paid in full.';

-- Reserves the lines of orders. Returns how many movements that made.
-- Locks and raises: see apply_movements().
create or replace function reserve_lines(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns integer
language plpgsql
as $$
declare
    v_sagas uuid[];
    v_warehouses uuid[];
    v_products uuid[];
    v_quantities integer[];
begin
    select array_agg(m.order_id), array_agg(m.warehouse_id), array_agg(m.product_id), array_agg(m.quantity)
    into v_sagas, v_warehouses, v_products, v_quantities
    from (
        select i.order_id, i.warehouse_id, i.product_id, sum(i.quantity)::integer as quantity
        from order_items as i
        where i.order_id = any(p_saga_ids) and i.warehouse_id = any(p_warehouse_ids)
        group by i.order_id, i.warehouse_id, i.product_id
        order by i.order_id, i.product_id
    ) as m;
    return apply_movements('reserve', v_sagas, v_warehouses, v_products, v_quantities);
end
$$;
comment on function reserve_lines(uuid[], uuid[]) is 'Internal: reserves the lines of orders.';

-- Ends reservations by a movement of a type: what the ledger says is open. A saga with no
-- reservation moves nothing, nor does one whose reservation has ended. Returns how many
-- movements that made. Locks and raises: see apply_movements().
create or replace function end_reservations(p_movement_type movement_type, p_warehouse_ids uuid[], p_saga_ids uuid[])
returns integer
language plpgsql
as $$
declare
    v_sagas uuid[];
    v_warehouses uuid[];
    v_products uuid[];
    v_quantities integer[];
begin
    select array_agg(m.correlation_id), array_agg(m.warehouse_id), array_agg(m.product_id), array_agg(m.quantity)
    into v_sagas, v_warehouses, v_products, v_quantities
    from (
        select
            r.correlation_id, r.warehouse_id, r.product_id,
            sum(case r.movement_type when 'reserve' then r.quantity else -r.quantity end)::integer as quantity
        from stock_movements as r
        where r.correlation_id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
            and r.movement_type in ('reserve', 'release', 'fulfill')
        group by r.correlation_id, r.warehouse_id, r.product_id
        having sum(case r.movement_type when 'reserve' then r.quantity else -r.quantity end) > 0
        order by r.correlation_id, r.product_id
    ) as m;
    return apply_movements(p_movement_type, v_sagas, v_warehouses, v_products, v_quantities);
end
$$;
comment on function end_reservations(movement_type, uuid[], uuid[]) is
    'Internal: fulfils or releases what sagas have reserved and neither fulfilled nor released.';

-- The effect of the steps reserve_stock (units become reserved) and fulfill_order (they go
-- from the shelf), and of the undo release_stock (they can be sold again). Here is the law
-- that goods leave only when their money is there, unless the plan says otherwise.
-- Locks: inventory by (product_id, warehouse_id), for all movements at once.
-- Raises: DP010 when a product is not stocked, DP015 for an unknown effect, DP023 when
-- goods would leave unpaid.
create or replace function move_goods(p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[])
returns void
language plpgsql
as $$
declare
    v_type constant movement_type := movement_of(p_effects[1]);
    v_moved integer;
begin
    if (p_effects[1] = all(p_effects)) is not true then
        perform lock_stock(array_agg(i.warehouse_id), array_agg(i.product_id))
        from order_items as i
        where i.order_id = any(p_saga_ids) and i.warehouse_id = any(p_warehouse_ids);
        perform move_goods(p_warehouse_ids, array_agg(e.saga_id), array_agg(e.effect))
        from unnest(p_saga_ids, p_effects) as e (saga_id, effect)
        group by e.effect
        order by movement_of(e.effect);
    elsif v_type = 'reserve' then
        v_moved := reserve_lines(p_warehouse_ids, p_saga_ids);
    elsif p_effects[1] = 'fulfill' and count_paid(p_warehouse_ids, p_saga_ids) < cardinality(p_saga_ids) then
        perform refuse(
            'DP023', 'goods would leave unpaid',
            format('Of %s orders, not all have a payment that is captured in full.', cardinality(p_saga_ids)),
            'See payments. Then retry_saga(), or turn_back_saga() to give the order up.'
        );
    else
        v_moved := end_reservations(v_type, p_warehouse_ids, p_saga_ids);
    end if;
end
$$;
comment on function move_goods(uuid[], uuid[], text[]) is
    'Effect: moves the stock of sagas as their plans say: reserve, fulfill (what is paid), fulfill_unpaid, release.';

-- Asks for an order to be stopped. The saga turns back at its next step: what
-- it reserved is released, what it charged is given back. While a call of the gateway is
-- out, it waits for the answer first; one that is pending is voided at once. One that has turned
-- back to wait for another payment goes on all the way. Asking twice is asking once.
-- Where the money is captured right before the goods leave, nothing stops the
-- order once that was asked for.
-- For customers the orders of others aren't there.
--
-- Returns the order as it stands now; it is cancelled once its saga is.
-- Locks: the saga.
-- Raises: DP007 when the order is fulfilled, on its way or its saga is stuck,
-- DP010 when there is none.
create or replace function cancel_order(p_order_id uuid, p_reason text default null) returns orders
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga sagas;
    v_order orders;
    v_pivot integer;  -- the step before the first that only goes forward
begin
    if not exists (
        select from orders as o
        where o.id = p_order_id and (o.customer_id = current_customer() or not acts_as_customer())
    ) then
        perform refuse(
            'DP010', 'no such order', format('There is no order %s.', p_order_id), 'Look it up in order_overview.'
        );
    end if;

    select s.* into v_saga
    from sagas as s
    where s.id = p_order_id
    for no key update;

    select o.* into v_order
    from orders as o
    where o.id = p_order_id;

    select min(s.position) - 1 into v_pivot
    from saga_steps as s
    where s.saga_type = v_saga.saga_type and s.plan_version = v_saga.plan_version and s.forward_only;

    if v_saga.status in ('completed', 'stuck')
        or (
            v_saga.status in ('running', 'waiting')
            and (
                v_saga.position > v_pivot
                or (v_saga.position = v_pivot and v_saga.attempts > 0 and (step_of(v_saga)).on_deadline is null)
            )
        )
    then
        perform refuse(
            'DP007', 'order cannot be cancelled any more',
            format('Order %s is %s, its saga is %s.', p_order_id, v_order.status, v_saga.status),
            case v_saga.status
                when 'stuck' then 'An operator has to look at it first: see stuck_sagas.'
                else 'What leaves can only come back: return_items() takes the goods, refund_order() gives the money.'
                    || case when v_order.status = 'fulfilling' then ' What has not left is taken out by cancel_items().' else '' end
            end
        );
    end if;

    if not v_saga.cancel_requested and (v_saga.status in ('running', 'waiting') or is_to_wait_again(v_saga)) then
        insert into saga_events (saga_id, warehouse_id, event_type, message, actor)
        values (v_saga.id, v_saga.warehouse_id, 'cancelled', p_reason, current_actor());
        update sagas as s
        set
            cancel_requested = true,
            ready_at = case
                when s.status = 'running' or (step_of(s)).on_deadline is not null or is_pending(s) then clock()
                else s.ready_at
            end,
            updated_at = clock()
        where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
        perform ring_bell();
    end if;
    return v_order;
end
$$;
comment on function cancel_order(uuid, text) is
    'Asks for an order to be stopped; its saga releases and refunds. Refused once it is fulfilled.';

-- The plans. Names are code; the numbers are the operator's once they are there.
select define_plan(
    'order_fulfilment',
    step(
        'reserve_stock',
        p_function => 'reserve_stock', p_effect_function => 'move_goods', p_effect => 'reserve',
        p_undo => 'release_stock', p_undo_effect_function => 'move_goods', p_undo_effect => 'release',
        p_order_status_done => 'reserved'
    ),
    step(
        'process_payment',
        p_function => 'request_payment', p_settle_function => 'record_payment',
        p_undo => 'void_payment', p_undo_function => 'request_void', p_undo_settle_function => 'record_void',
        p_order_status_waiting => 'payment_processing', p_order_status_done => 'paid',
        p_order_status_refused => 'payment_failed'
    ),
    step(
        'fulfill_order',
        p_effect_function => 'move_goods', p_effect => 'fulfill',
        p_order_status_done => 'fulfilled'
    )
);

select define_plan(
    'order_fulfilment_with_capture',
    step(
        'reserve_stock',
        p_function => 'reserve_stock', p_effect_function => 'move_goods', p_effect => 'reserve',
        p_undo => 'release_stock', p_undo_effect_function => 'move_goods', p_undo_effect => 'release',
        p_order_status_done => 'reserved'
    ),
    step(
        'authorize_payment',
        p_function => 'request_authorization', p_settle_function => 'record_authorization',
        p_undo => 'void_payment', p_undo_function => 'request_void', p_undo_settle_function => 'record_void',
        p_order_status_waiting => 'payment_processing', p_order_status_refused => 'payment_failed'
    ),
    step(
        'capture_payment',
        p_function => 'request_capture', p_settle_function => 'record_capture',
        p_order_status_done => 'paid', p_order_status_refused => 'payment_failed'
    ),
    step(
        'fulfill_order',
        p_effect_function => 'move_goods', p_effect => 'fulfill',
        p_order_status_done => 'fulfilled', p_forward_only => true
    )
);
