-- Shipments: the orders of a warehouse whose fulfilment_method is on_shipment leave parcel by
-- parcel, as somebody packs them. In the place of fulfill_order their sagas have
--
--     … process_payment ──▶ await_parcel ──▶ send_parcel ══▶ ship_order
--     … authorize_payment ──▶ await_parcel ──▶ capture_payment ──▶ send_parcel ══▶ ship_order
--
-- await_parcel waits for the first parcel, and till then the order can be cancelled;
-- ship_order for the others, and the last of them ends the saga. ship_items() writes a parcel
-- and brings it to the saga in the same transaction: its units leave the ledger, under the
-- shipment's id, with everything else or not at all. Where the money is captured right before
-- the goods leave, the first parcel asks for that and waits, with shipped_at null, until it is
-- there. What has not left is taken out of the order by cancel_items(), of which the
-- movements that release the units, and a refund under the same id, are all there is.
--
-- What an order has left to ship is never counted twice, for whoever ships or takes out holds
-- its saga. Lock order: the saga, its payment, the order, inventory by (product_id, warehouse_id).

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Trigger: a parcel stays what it was when it was made; when it left is written once.
create or replace trigger shipments_keep_what_was_packed
before update on shipments
for each row
when (old.shipped_at is not null or to_jsonb(old) - 'shipped_at' is distinct from to_jsonb(new) - 'shipped_at')
execute function refuse_change();

create or replace trigger shipments_refuse_removal
before delete on shipments
for each row execute function refuse_change('order_id');

create or replace trigger shipments_refuse_truncate
before truncate on shipments
for each statement execute function refuse_change();

create or replace trigger shipment_items_refuse_change
before update on shipment_items
for each row execute function refuse_change();

create or replace trigger shipment_items_refuse_removal
before delete on shipment_items
for each row execute function refuse_change('order_id');

create or replace trigger shipment_items_refuse_truncate
before truncate on shipment_items
for each statement execute function refuse_change();

-- The units of an order that are in no parcel and were not taken out. Locks nothing.
create or replace function goods_to_ship(p_order_id uuid) returns table (product_id uuid, quantity integer)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select g.product_id, sum(g.quantity)::integer
    from (
        select i.product_id, i.quantity from order_items as i where i.order_id = p_order_id
        union all
        select s.product_id, -s.quantity from shipment_items as s where s.order_id = p_order_id
        union all
        select m.product_id, -m.quantity from stock_movements as m
        where m.reference_id = p_order_id and m.reference_type = 'cancellation' and m.movement_type = 'release'
    ) as g
    group by g.product_id
    having sum(g.quantity) > 0
    order by g.product_id;
end;
comment on function goods_to_ship(uuid) is 'What an order has left to ship: units that are in no parcel and were not taken out.';

-- Step, a wait: done once the order has a parcel. Locks nothing.
create or replace function await_parcel(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]
language plpgsql
as $$
begin
    return group_outcomes(array(
        select row(
            i, case when exists (select from shipments as s where s.order_id = i) then 'done' else 'waiting' end, null, null, null, null
        )::step_outcome
        from unnest(p_saga_ids) as i
    ));
end
$$;
comment on function await_parcel(uuid[], uuid[]) is 'Step: waits for the first parcel of each order.';

-- The same when a signal came, or ship_items() brings a parcel. Locks nothing.
create or replace function record_first_parcel(p_warehouse_ids uuid[], p_saga_ids uuid[], p_signals jsonb[])
returns outcome_group[]
language sql
return await_parcel(p_warehouse_ids, p_saga_ids);
comment on function record_first_parcel(uuid[], uuid[], jsonb[]) is 'Step: looks whether the first parcel of each order is there.';

-- Step, a wait: done once nothing of the order is left to ship. Locks nothing.
create or replace function await_last_parcel(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]
language plpgsql
as $$
begin
    return group_outcomes(array(
        select row(
            i, case when exists (select from goods_to_ship(i)) then 'waiting' else 'done' end, null, null, null, null
        )::step_outcome
        from unnest(p_saga_ids) as i
    ));
end
$$;
comment on function await_last_parcel(uuid[], uuid[]) is 'Step: waits until all of each order was shipped or taken out.';

-- The same when a signal came, or a parcel left, or something was taken out. Locks nothing.
create or replace function record_parcel(p_warehouse_ids uuid[], p_saga_ids uuid[], p_signals jsonb[])
returns outcome_group[]
language sql
return await_last_parcel(p_warehouse_ids, p_saga_ids);
comment on function record_parcel(uuid[], uuid[], jsonb[]) is 'Step: looks whether anything of each order is left to ship.';

-- Whether parcels of an order may leave: what was asked for is captured, and no more of it
-- went back than what was taken out, or came back, cost. Locks nothing.
create or replace function is_paid(p_order_id uuid) returns boolean
language sql stable
return exists (
    select from payments as p
    where p.order_id = p_order_id and p.captured_amount >= p.requested_amount
        and (p.refunded_amount = 0 or p.refunded_amount <= money_of_cancelled(p_order_id) + money_of_returned(p_order_id))
);
comment on function is_paid(uuid) is 'Internal: whether the money is there for what an order has left to ship.';

-- The effect of send_parcel, and of every parcel after the first: the units of all parcels
-- that have not left go from the shelves. Here is the law that a parcel leaves only when the
-- money is there. The history of the order has an event of each, which the feed tells; who
-- packed it stands in shipments alone, which customers read without that.
-- Locks: inventory by (product_id, warehouse_id), for all movements at once; shipments.
-- Raises: DP023 when goods would leave unpaid.
create or replace function send_parcels(p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[]) returns void
language plpgsql
as $$
declare
    v_unpaid constant uuid := (select i from unnest(p_saga_ids) as i where not is_paid(i) limit 1);
    v_parcel record;
    v_moved integer;
begin
    if v_unpaid is not null then
        perform refuse(
            'DP023', 'goods would leave unpaid',
            format('The payment of order %s is not captured in full, or has gone back.', v_unpaid),
            'See payments. Nothing of it leaves until its money is there.'
        );
    end if;
    perform lock_stock(array_agg(i.warehouse_id), array_agg(i.product_id))
    from shipments as s
    inner join shipment_items as i on i.order_id = s.order_id and i.shipment_id = s.id
    where s.order_id = any(p_saga_ids) and s.warehouse_id = any(p_warehouse_ids) and s.shipped_at is null;
    for v_parcel in
        select
            s.id, s.order_id, array_agg(i.warehouse_id order by i.product_id) as warehouses,
            array_agg(i.product_id order by i.product_id) as products, array_agg(i.quantity order by i.product_id) as quantities
        from shipments as s
        inner join shipment_items as i on i.order_id = s.order_id and i.shipment_id = s.id
        where s.order_id = any(p_saga_ids) and s.warehouse_id = any(p_warehouse_ids) and s.shipped_at is null
        group by s.id, s.order_id
        order by s.id
    loop
        v_moved := apply_movements(
            'fulfill', array_fill(v_parcel.id, array[cardinality(v_parcel.products)]), v_parcel.warehouses,
            v_parcel.products, v_parcel.quantities, null, 'shipment', v_parcel.order_id
        );
    end loop;
    with left_now as (
        update shipments as s
        set shipped_at = clock()
        where s.order_id = any(p_saga_ids) and s.warehouse_id = any(p_warehouse_ids) and s.shipped_at is null
        returning s.id, s.order_id, s.warehouse_id
    )
    insert into saga_events (saga_id, warehouse_id, event_type, message)
    select l.order_id, l.warehouse_id, 'shipped', l.id::text
    from left_now as l
    order by l.id;
end
$$;
comment on function send_parcels(uuid[], uuid[], text[]) is
    'Effect: the units of parcels that have not left go from the shelves, once their orders are paid.';

-- Refuses an id under which goods have moved. Locks nothing. Raises: DP011.
create or replace function refuse_id_of_movements(p_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if exists (select from stock_movements as m where m.correlation_id = p_id) then
        perform refuse(
            'DP011', 'id already used', format('Under the id %s goods have moved already.', p_id),
            'An id is one in the whole database: give a new one a new id.'
        );
    end if;
end
$$;
comment on function refuse_id_of_movements(uuid) is 'Internal: refuses an id under which goods have moved.';

-- Takes an id for what has no saga, so that no other has it: it is spent from now on. A row of
-- sagas that is gone again makes whoever is just taking the same id there wait for this
-- transaction, and see that. Locks: the id. Raises: DP011, DP038 when it is taken.
create or replace function take_id(p_id uuid, p_warehouse_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    insert into sagas (id, warehouse_id, saga_type, plan_version, status, ready_at)
    values (p_id, p_warehouse_id, 'none', 1, 'completed', null)
    on conflict do nothing;
    if not found then
        perform refuse_id_of_saga(p_id);
    end if;
    perform refuse_spent_ids(array[p_id]);
    perform refuse_id_of_movements(p_id);
    insert into spent_ids (id) values (p_id);
    delete from sagas as s where s.id = p_id and s.warehouse_id = p_warehouse_id;
end
$$;
comment on function take_id(uuid, uuid) is 'Internal: takes an id for what has no saga; no other can have it then.';

-- The place in a plan of the step that a function settles; null when it has none. Locks nothing.
create or replace function place_of_step(p_plan plan_step[], p_settle_function text) returns integer
language sql immutable
return (select min(s.position) from unnest(p_plan) as s where s.settle_function = p_settle_function);
comment on function place_of_step(plan_step[], text) is 'Internal: the place in a plan of the step that a function settles.';

-- How many steps follow that at which a group stands before one that asks somebody outside:
-- those that whoever is no listener may take. Locks nothing.
create or replace function steps_before_call(p_group saga_group) returns integer
language sql immutable
return (
    select coalesce(min(s.position) filter (where is_external(s, false)), cardinality(p_group.plan) + 1) - p_group.position - 1
    from unnest(p_group.plan) as s
    where s.position > p_group.position
);
comment on function steps_before_call(saga_group) is 'Internal: how many steps a saga takes before it asks somebody outside.';

-- The saga of an order, locked, which stands at the step that p_settle_function settles or
-- between that and ship_order. Locks: the saga.
-- Raises: DP010 when there is no such order, DP024 when its saga stands elsewhere.
create or replace function lock_shippable_order(p_order_id uuid, p_settle_function text) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga sagas;
    v_status constant order_status := (select o.status from orders as o where o.id = p_order_id);
    v_group saga_group;
begin
    if v_status is null then
        perform refuse('DP010', 'no such order', format('There is no order %s.', p_order_id), 'Look it up in order_overview.');
    end if;
    select s.* into v_saga
    from sagas as s
    where s.id = p_order_id
    for no key update;
    v_group := group_of_saga(v_saga);
    if place_of_step(v_group.plan, 'record_parcel') is null then
        perform refuse(
            'DP024', 'order is not shipped by parcels',
            format('Order %s leaves by itself once it is paid: so its warehouse said when it was placed.', p_order_id),
            'Set fulfilment_method of the warehouse to on_shipment; it counts for new orders.'
        );
    elsif v_saga.cancel_requested or v_saga.status not in ('running', 'waiting')
        or v_saga.position not between place_of_step(v_group.plan, p_settle_function) and place_of_step(v_group.plan, 'record_parcel')
    then
        perform refuse(
            'DP024', 'order cannot be shipped or taken apart now',
            format(
                'Order %s is %s, its saga is %s%s.', p_order_id, v_status, v_saga.status,
                case when v_saga.cancel_requested then ', and it is to be cancelled' else '' end
            ),
            case
                when v_saga.status = 'stuck' then 'An operator has to look at it first: see stuck_sagas.'
                when v_saga.status not in ('running', 'waiting') or v_saga.cancel_requested
                    then 'What has left comes back by return_items(); what was cancelled is ordered anew.'
                when p_settle_function = 'record_parcel' then 'Until its first parcel has left, cancel_order() stops the whole order.'
                else 'Wait until its money is there or held: see orders_to_ship.'
            end
        );
    end if;
    return v_group;
end
$$;
comment on function lock_shippable_order(uuid, text) is 'Internal: locks the saga of an order that is to be shipped or taken apart.';

-- The goods that p_items names, which the order has left to ship; all of them for null.
-- Locks nothing. Raises: as goods_of_items(); DP029 when that is more than is left, or nothing is.
create or replace function goods_of_parcel(p_order_id uuid, p_items jsonb, out product_ids uuid[], out quantities integer[])
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_short record;
begin
    if p_items is null then
        select array_agg(g.product_id), array_agg(g.quantity) into product_ids, quantities
        from goods_to_ship(p_order_id) as g;
        if product_ids is null then
            perform refuse(
                'DP029', 'nothing is left to ship', format('All of order %s is in parcels, or was taken out.', p_order_id),
                'See shipments, and stock_movements where reference_id is the order.'
            );
        end if;
        return;
    end if;
    select array_agg(g.product_id order by g.product_id), array_agg(g.quantity order by g.product_id) into product_ids, quantities
    from goods_of_items(p_items) as g;
    select g.product_id, g.quantity, coalesce(l.quantity, 0) as has_left into v_short
    from unnest(product_ids, quantities) as g (product_id, quantity)
    left join goods_to_ship(p_order_id) as l using (product_id)
    where g.quantity > coalesce(l.quantity, 0)
    order by g.product_id
    limit 1;
    if found then
        perform refuse(
            'DP029', 'more than is left to ship',
            format(
                'Product %s of order %s: %s units were named, %s are left.',
                v_short.product_id, p_order_id, v_short.quantity, v_short.has_left
            ),
            'Name what is left, or no items for all of it.'
        );
    end if;
end
$$;
comment on function goods_of_parcel(uuid, jsonb) is 'Internal: goods that an order has left to ship, as named, or all of them.';

-- What a caller says of a parcel: {"carrier", "number", "url"}, each of them text or left out.
-- Locks nothing. Raises: DP015.
create or replace function read_tracking(p_tracking jsonb, out carrier text, out number text, out url text)
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
begin
    if p_tracking is null then
        return;
    elsif jsonb_typeof(p_tracking) <> 'object' or p_tracking - '{carrier, number, url}'::text[] <> '{}'
        or p_tracking @? '$.* ? (@.type() != "string" && @.type() != "null")'
    then
        perform refuse(
            'DP015', 'tracking makes no sense', format('p_tracking is %s.', left(p_tracking::text, 200)),
            'Pass {"carrier": "…", "number": "…", "url": "https://…"}, or less of it.'
        );
    end if;
    carrier := p_tracking ->> 'carrier';
    number := p_tracking ->> 'number';
    url := p_tracking ->> 'url';
end
$$;
comment on function read_tracking(jsonb) is 'Internal: carrier, number and web address of a parcel, as callers say them.';

-- Whether what stands under an id is what is asked for again: units of these products, or any
-- where all were asked for, which p_items null says. Locks nothing. Raises: as goods_of_items().
create or replace function are_same_goods(p_items jsonb, p_product_ids uuid[], p_quantities integer[]) returns boolean
language sql
set search_path = darkpearl, pg_temp
return p_items is null or (
    select array_agg(row(g.product_id, g.quantity) order by g.product_id) from goods_of_items(p_items) as g
) = (
    select array_agg(row(i.product_id, i.quantity) order by i.product_id) from unnest(p_product_ids, p_quantities) as i (product_id, quantity)
);
comment on function are_same_goods(jsonb, uuid[], integer[]) is 'Internal: whether items name these goods, or none.';

-- The parcel that was made under an id, if one was. Locks nothing. Raises: DP011 when it is
-- another one than that which is asked for; as goods_of_items() and read_tracking().
create or replace function shipment_again(p_shipment_id uuid, p_order_id uuid, p_items jsonb, p_tracking jsonb) returns shipments
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_shipment shipments;
    v_tracking constant record := read_tracking(p_tracking);
    v_is_same boolean;
begin
    select s.* into v_shipment from shipments as s where s.id = p_shipment_id;
    if not found then
        return null;
    end if;
    select are_same_goods(p_items, array_agg(i.product_id), array_agg(i.quantity)) into v_is_same
    from shipment_items as i
    where i.order_id = v_shipment.order_id and i.shipment_id = v_shipment.id;
    if v_is_same is not true or v_shipment.order_id <> p_order_id
        or (v_shipment.carrier, v_shipment.tracking_number, v_shipment.tracking_url)
        is distinct from (v_tracking.carrier, v_tracking.number, v_tracking.url)
    then
        perform refuse(
            'DP011', 'shipment id already used', format('Shipment %s stands for another parcel.', p_shipment_id),
            'Repeat a shipment unchanged, or give a new one a new id.'
        );
    end if;
    return v_shipment;
end
$$;
comment on function shipment_again(uuid, uuid, jsonb, jsonb) is
    'Internal: the parcel that an id stands for, if it is the one that is asked for.';

-- Takes the saga of an order on if it waits for what was done to the order. Locks: as
-- run_groups(); the caller has locked the saga.
create or replace function tell_order(p_group saga_group) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
begin
    if p_group.status = 'waiting' and v_step.on_deadline is not null then
        perform answer_saga(p_group, '{}', steps_before_call(p_group));
        perform ring_bell();
    end if;
end
$$;
comment on function tell_order(saga_group) is 'Internal: takes the saga of an order on, of which something was shipped or taken out.';

-- Somebody has packed a parcel of an order: p_items, [{"product_id", "quantity"}, …], or "sku",
-- or all that is left; p_tracking {"carrier", "number", "url"}. Its units leave the shelves, and
-- the last parcel fulfils the order. The same p_shipment_id again returns the parcel it made.
-- A parcel may go once shipped_at says so. Captured at fulfilment, the first one asks for the
-- money and leaves when that is there; others that are packed meanwhile leave with it.
-- Locks: the saga, orders, inventory by (product_id, warehouse_id).
-- Raises: DP003 for an unknown SKU, DP010 when there is no such order, DP011 when the id stands
-- for something else, DP015 for arguments that make no sense or after a thousand parcels, DP023
-- when the goods would leave unpaid, DP024 when the order isn't to be shipped, DP029 when less
-- is left, DP038; the CHECKs of shipments.
create or replace function ship_items(
    p_order_id uuid, p_items jsonb default null, p_tracking jsonb default null, p_shipment_id uuid default new_id()
) returns shipments
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_shipment shipments := shipment_again(p_shipment_id, p_order_id, p_items, p_tracking);
    v_tracking constant record := read_tracking(p_tracking);
    v_group saga_group;
    v_goods record;
begin
    if v_shipment.id is not null then
        return v_shipment;
    end if;
    v_group := lock_shippable_order(p_order_id, 'record_first_parcel');
    -- It may have been made while the saga was waited for.
    v_shipment := shipment_again(p_shipment_id, p_order_id, p_items, p_tracking);
    if v_shipment.id is not null then
        return v_shipment;
    end if;
    v_goods := goods_of_parcel(p_order_id, p_items);
    if 1000 <= (select count(*) from shipments as s where s.order_id = p_order_id) then
        perform refuse(
            'DP015', 'order has too many parcels', format('Order %s has 1000 parcels.', p_order_id), 'Pack more into one.'
        );
    end if;
    perform take_id(p_shipment_id, v_group.warehouse_ids[1]);
    insert into shipments (id, order_id, warehouse_id, carrier, tracking_number, tracking_url, actor)
    values (
        p_shipment_id, p_order_id, v_group.warehouse_ids[1], v_tracking.carrier, v_tracking.number, v_tracking.url, current_actor()
    );
    insert into shipment_items (shipment_id, order_id, warehouse_id, product_id, quantity)
    select p_shipment_id, p_order_id, v_group.warehouse_ids[1], g.product_id, g.quantity
    from unnest(v_goods.product_ids, v_goods.quantities) as g (product_id, quantity);
    perform tell_order(v_group);
    if v_group.position = place_of_step(v_group.plan, 'record_parcel') then
        perform send_parcels(v_group.warehouse_ids, v_group.saga_ids, '{fulfill}');
    end if;
    select s.* into strict v_shipment
    from shipments as s
    where s.id = p_shipment_id and s.warehouse_id = v_group.warehouse_ids[1];
    return v_shipment;
end
$$;
comment on function ship_items(uuid, jsonb, jsonb, uuid) is
    'A parcel of an order was packed: its units leave, all that is left or a part. It may go once shipped_at is set. Safe to repeat with the same shipment id.';

-- The movements of what was taken out of an order under an id, in order. Locks nothing.
-- Raises: DP011 when it was another order or other goods; as goods_of_items().
create or replace function cancellation_again(p_cancellation_id uuid, p_order_id uuid, p_items jsonb) returns stock_movements[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_movements constant stock_movements[] := array(
        select m from stock_movements as m
        where m.correlation_id = p_cancellation_id and m.reference_type = 'cancellation' and m.movement_type = 'release'
        order by m.id
    );
begin
    if v_movements <> '{}' and (
        (v_movements[1]).reference_id <> p_order_id or (
            select are_same_goods(p_items, array_agg(m.product_id), array_agg(m.quantity)) from unnest(v_movements) as m
        ) is not true
    ) then
        perform refuse(
            'DP011', 'cancellation id already used', format('Cancellation %s stands for something else.', p_cancellation_id),
            'Repeat a cancellation unchanged, or give a new one a new id.'
        );
    end if;
    return v_movements;
end
$$;
comment on function cancellation_again(uuid, uuid, jsonb) is
    'Internal: what was taken out of an order under an id, if it is what is asked for.';

-- Takes goods out of an order that have not left, once a part of it has: p_items, or all that
-- is left to ship. The units can be sold again; what they cost, with the adjustments of their
-- lines and no more than is left, goes back by a refund under the same id; and when nothing is
-- left to ship the order is fulfilled. The same p_cancellation_id again returns the movements
-- it made.
-- Locks: the saga, payments, orders, inventory by (product_id, warehouse_id).
-- Raises: DP003 for an unknown SKU, DP010 when there is no such order, DP011 when the id stands
-- for something else, DP015 for items that make no sense, DP024 when no part of the order has
-- left or nothing is to leave any more, DP029 when less is left, DP038.
create or replace function cancel_items(
    p_order_id uuid, p_items jsonb default null, p_reason text default null, p_cancellation_id uuid default new_id()
) returns setof stock_movements
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_movements stock_movements[] := cancellation_again(p_cancellation_id, p_order_id, p_items);
    v_group saga_group;
    v_goods record;
    v_payment payments;
    v_amount numeric;
begin
    if v_movements = '{}' then
        v_group := lock_shippable_order(p_order_id, 'record_parcel');
        v_movements := cancellation_again(p_cancellation_id, p_order_id, p_items);
    end if;
    if v_movements <> '{}' then
        return query select m.* from unnest(v_movements) as m;
        return;
    end if;
    v_goods := goods_of_parcel(p_order_id, p_items);
    v_payment := lock_payment(p_order_id);
    perform o.id from orders as o where o.id = p_order_id for no key update;
    v_amount := least(
        money_of_cancelled(p_order_id, v_goods.product_ids, v_goods.quantities) - money_of_cancelled(p_order_id),
        left_to_refund(v_payment)
    );
    if v_amount > 0 then
        perform refuse_id_of_movements(p_cancellation_id);
        perform start_refund(v_payment, v_amount, p_reason, p_cancellation_id);
    else
        perform take_id(p_cancellation_id, v_group.warehouse_ids[1]);
    end if;
    perform apply_movements(
        'release', array_fill(p_cancellation_id, array[cardinality(v_goods.product_ids)]),
        array_fill(v_group.warehouse_ids[1], array[cardinality(v_goods.product_ids)]), v_goods.product_ids, v_goods.quantities,
        p_reason, 'cancellation', p_order_id
    );
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    values (
        p_order_id, v_group.warehouse_ids[1], 'signalled', (v_group.plan[v_group.position]).step_name, p_cancellation_id::text,
        current_actor()
    );
    perform tell_order(v_group);
    return query select m.* from unnest(cancellation_again(p_cancellation_id, p_order_id, null)) as m;
end
$$;
comment on function cancel_items(uuid, jsonb, text, uuid) is
    'Takes goods out of an order that have not left, after its first parcel: releases them and gives their money back. Safe to repeat with the same id.';

-- The plans. Names are code; the numbers are the operator's once they are there.
select define_plan(
    'order_fulfilment_on_shipment',
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
        'await_parcel',
        p_function => 'await_parcel', p_settle_function => 'record_first_parcel',
        p_on_deadline => 'keep_waiting', p_timeout_seconds => 172800
    ),
    step(
        'send_parcel',
        p_effect_function => 'send_parcels', p_effect => 'fulfill',
        p_order_status_done => 'fulfilling', p_forward_only => true
    ),
    step(
        'ship_order',
        p_function => 'await_last_parcel', p_settle_function => 'record_parcel',
        p_order_status_done => 'fulfilled', p_forward_only => true,
        p_on_deadline => 'keep_waiting', p_timeout_seconds => 172800
    )
);

select define_plan(
    'order_fulfilment_on_shipment_with_capture',
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
        'await_parcel',
        p_function => 'await_parcel', p_settle_function => 'record_first_parcel',
        p_on_deadline => 'keep_waiting', p_timeout_seconds => 172800
    ),
    step(
        'capture_payment',
        p_function => 'request_capture', p_settle_function => 'record_capture',
        p_order_status_done => 'paid', p_order_status_refused => 'payment_failed'
    ),
    step(
        'send_parcel',
        p_effect_function => 'send_parcels', p_effect => 'fulfill',
        p_order_status_done => 'fulfilling', p_forward_only => true
    ),
    step(
        'ship_order',
        p_function => 'await_last_parcel', p_settle_function => 'record_parcel',
        p_order_status_done => 'fulfilled', p_forward_only => true,
        p_on_deadline => 'keep_waiting', p_timeout_seconds => 172800
    )
);
