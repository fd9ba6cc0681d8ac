-- Returns: goods of a fulfilled order, or of one of which a part has left, that come back, in
-- parts, each return idempotent by an id that the caller may choose. Its movements are all there
-- is of one, but for its metadata: of type receive, with the return's id as correlation id and
-- the order as reference. Goods that can't be sold again come back all the same, and are written
-- off at once, by an adjust movement of the same id and reference that has a reason: the ledger
-- says that they came, and that they are not there. The history of the order has an event of
-- each return, its id, which the feed tells.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The order that goods come back from, locked, so that its returns are one after another.
-- Locks: orders. Raises: DP010 when there is no such order, DP019 when nothing of it has left.
create or replace function lock_fulfilled_order(p_order_id uuid) returns orders
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_order orders;
begin
    select o.* into v_order
    from orders as o
    where o.id = p_order_id
    for no key update;
    if not found then
        perform refuse(
            'DP010', 'no such order',
            format('There is no order %s.', p_order_id),
            'Look it up in order_overview.'
        );
    elsif v_order.status not in ('fulfilling', 'fulfilled') then
        perform refuse(
            'DP019', 'order is not fulfilled',
            format('Order %s is %s.', p_order_id, v_order.status),
            'What has not left cannot come back; cancel_order() stops an order.'
        );
    end if;
    return v_order;
end
$$;
comment on function lock_fulfilled_order(uuid) is 'Internal: locks an order for a return, of which something has left.';

-- The goods that p_items names, a row for each product; none for null. Locks nothing.
-- Raises: as read_items(); DP015 when there are none, or none of a product.
create or replace function goods_of_items(p_items jsonb) returns table (product_id uuid, quantity integer)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_hint constant text := 'Pass [{"product_id": "…", "quantity": 1}], or null for everything.';
    v_place bigint;
begin
    if p_items = '[]' then
        perform refuse('DP015', 'no items are named', 'p_items is an empty array.', v_hint);
    end if;
    select min(i.n) - 1 into v_place
    from read_items(p_items, '{product_id, sku, quantity}') with ordinality as i (product_id, quantity, unit_price, metadata, n)
    where i.quantity <= 0;
    if v_place is not null then
        perform refuse(
            'DP015', 'quantity makes no sense', format('items[%s] names %s units.', v_place, p_items -> v_place::integer ->> 'quantity'),
            v_hint
        );
    end if;
    return query
    select i.product_id, least(sum(i.quantity), 2000000000)::integer
    from read_items(p_items, '{product_id, sku, quantity}') as i
    group by i.product_id;
end
$$;
comment on function goods_of_items(jsonb) is 'Internal: the goods that are asked for, added up by product.';

-- The goods of an order that have left and not come back, some of them 0. `is true` keeps the
-- index of movements by hand out, by which all receipts would be read. Locks nothing.
-- Without a SET clause it is inlined.
create or replace function goods_out_there(p_order_id uuid) returns table (product_id uuid, quantity bigint)
language sql stable
begin atomic
    select m.product_id, sum(m.quantity)
    from (
        select f.product_id, f.quantity from stock_movements as f
        where f.correlation_id = p_order_id and f.movement_type = 'fulfill'
        union all
        select s.product_id, s.quantity from stock_movements as s
        where s.reference_id = p_order_id and s.reference_type = 'shipment' and s.movement_type = 'fulfill'
        union all
        select r.product_id, -r.quantity from stock_movements as r
        where r.reference_id = p_order_id and r.reference_type = 'return' and (r.movement_type = 'receive') is true
    ) as m
    group by m.product_id;
end;
comment on function goods_out_there(uuid) is 'Internal: units of each product that an order has sent and nobody has returned.';

-- Tells a return that is repeated from another one under its id: true when the movements
-- of p_return_id, but for those of a saga that came later under it, are of this order, were
-- stock again or not as asked now, and are these goods unless all were asked for, which
-- p_product_ids null says. Locks nothing.
create or replace function is_same_return(
    p_return_id uuid, p_order_id uuid, p_product_ids uuid[], p_quantities integer[], p_restock boolean
) returns boolean
language sql stable
return (
    select
        bool_and(
            m.reference_id is not distinct from p_order_id and m.reference_type is not distinct from 'return'
            and (p_product_ids is null or exists (
                select from unnest(p_product_ids, p_quantities) as i (product_id, quantity)
                where i.product_id = m.product_id and i.quantity = abs(m.quantity)
            ))
        )
        and (p_product_ids is null or count(*) filter (where m.movement_type = 'receive') = cardinality(p_product_ids))
        and p_restock = (count(*) filter (where m.movement_type = 'adjust') = 0)
    from stock_movements as m
    where m.correlation_id = p_return_id and m.movement_type not in ('reserve', 'release', 'fulfill')
);
comment on function is_same_return(uuid, uuid, uuid[], integer[], boolean) is
    'Internal: tells whether a return id stands for these goods of this order.';

-- Refuses a return of more than is out there. Locks nothing. Raises: DP021.
create or replace function refuse_excess(p_order_id uuid, p_product_ids uuid[], p_quantities integer[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_line record;
begin
    select i.product_id, i.quantity, coalesce(o.quantity, 0) as out_there into v_line
    from unnest(p_product_ids, p_quantities) as i (product_id, quantity)
    left join goods_out_there(p_order_id) as o using (product_id)
    where i.quantity > coalesce(o.quantity, 0)
    order by i.product_id
    limit 1;
    if found then
        perform refuse(
            'DP021', 'more would come back than was sent',
            format(
                'Product %s of order %s: %s units came, %s are out there.',
                v_line.product_id, p_order_id, v_line.quantity, v_line.out_there
            ),
            'Goods that this order did not send are received with receive_stock().'
        );
    end if;
end
$$;
comment on function refuse_excess(uuid, uuid[], integer[]) is
    'Internal: refuses a return of more than an order has sent and nobody has returned.';

-- Goods of a fulfilled order come back to their warehouse: p_items,
-- [{"product_id", "quantity"}, …], or all that has not come back yet. They are stock again, or,
-- unless p_restock, written off for p_reason_code, one of adjustment_reasons.
-- The same p_return_id again returns the movements it made. The money is
-- another matter: see refund_order(), and return_and_refund() for both.
-- Locks: orders, then inventory by (product_id, warehouse_id).
-- Raises: DP003 for an unknown SKU, DP010 when there is no such order, DP011 when the id stands
-- for another return, an order or a saga, DP015 for items that make no sense or an unknown reason
-- code, DP019 when the order is not fulfilled, DP021 when more would come back than was sent.
create or replace function return_items(
    p_order_id uuid, p_items jsonb default null, p_reason text default null, p_return_id uuid default new_id(),
    p_restock boolean default true, p_reason_code text default 'damaged'
) returns setof stock_movements
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_order orders := lock_fulfilled_order(p_order_id);
    v_products uuid[];
    v_quantities integer[];
    v_line record;
begin
    select array_agg(g.product_id), array_agg(g.quantity) into v_products, v_quantities
    from goods_of_items(p_items) as g;

    return query
    select m.* from stock_movements as m
    where m.correlation_id = p_return_id and m.movement_type not in ('reserve', 'release', 'fulfill') order by m.id;
    if found then
        if is_same_return(p_return_id, p_order_id, v_products, v_quantities, p_restock) is not true then
            perform refuse(
                'DP011', 'return id already used',
                format('Return %s stands for other goods.', p_return_id),
                'Repeat a return unchanged, or give a new one a new id.'
            );
        end if;
        return;
    end if;
    perform refuse_id_of_saga(p_return_id);

    if p_items is null then
        select array_agg(o.product_id), array_agg(o.quantity) into v_products, v_quantities
        from goods_out_there(p_order_id) as o
        where o.quantity > 0;
        if v_products is null then
            perform refuse(
                'DP021', 'nothing is left to come back',
                format('All goods of order %s have come back already.', p_order_id),
                'See stock_movements where reference_id is the order.'
            );
        end if;
    end if;
    perform refuse_excess(p_order_id, v_products, v_quantities);
    for v_line in
        select i.product_id, i.quantity
        from unnest(v_products, v_quantities) as i (product_id, quantity)
        order by i.product_id
    loop
        return next move_stock(
            'receive', v_order.warehouse_id, v_line.product_id, v_line.quantity, p_return_id,
            p_reason, 'return', p_order_id
        );
        if not p_restock then
            return next move_stock(
                'adjust', v_order.warehouse_id, v_line.product_id, -v_line.quantity, p_return_id,
                p_reason, 'return', p_order_id, p_reason_code
            );
        end if;
    end loop;
    insert into saga_events (saga_id, warehouse_id, event_type, message)
    values (p_order_id, v_order.warehouse_id, 'returned', p_return_id::text);
end
$$;
comment on function return_items(uuid, jsonb, text, uuid, boolean, text) is
    'Goods of a fulfilled order come back, all or a part: into stock, or written off when p_restock is false. Safe to repeat with the same return id.';

-- What the goods of a return cost, with the adjustments of their lines: units of a product come back
-- line by line, in the order of the lines, and return by return. All together no more than was
-- paid for what has left: where the whole order had a discount, the first to come back have their
-- price, and the last what remains. Locks nothing.
create or replace function value_of_return(p_order_id uuid, p_return_id uuid) returns numeric
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    with returned as (
        select
            array_agg(g.product_id) as product_ids, array_fill(0::bigint, array[count(*)::integer]) as begins,
            array_agg(g.before) as before, array_agg(g.ends) as ends
        from (
            select
                m.product_id, sum(m.quantity) as ends,
                coalesce(sum(m.quantity) filter (where m.correlation_id <> p_return_id), 0) as before
            from stock_movements as m
            where m.reference_id = p_order_id and m.reference_type = 'return' and (m.movement_type = 'receive') is true
                and m.id <= (
                    select max(r.id) from stock_movements as r
                    where r.correlation_id = p_return_id and r.reference_type = 'return' and r.movement_type = 'receive'
                )
            group by m.product_id
        ) as g
    ),
    paid as (
        select greatest(p.captured_amount - money_of_cancelled(p_order_id), 0) as amount from payments as p where p.order_id = p_order_id
    )
    select coalesce(sum(
        least(money_of_units(p_order_id, r.product_ids, r.begins, r.ends), p.amount)
        - least(money_of_units(p_order_id, r.product_ids, r.begins, r.before), p.amount)
    ), 0)
    from returned as r
    cross join paid as p;
end;
comment on function value_of_return(uuid, uuid) is 'Internal: what the goods of a return cost when they were ordered, with the adjustments of their lines.';

-- The id of the refund that a return brings about, made of the return's: asked for again under
-- that, it is the same. It sorts by time as the other does. Locks nothing.
create or replace function refund_of_return(p_return_id uuid) returns uuid
language sql immutable parallel safe
return encode(
    overlay(uuid_send(p_return_id) placing substring(sha256(uuid_send(p_return_id)) from 1 for 7) from 10), 'hex'
)::uuid;
comment on function refund_of_return(uuid) is 'Internal: the id of the refund that return_and_refund() makes with a return.';

-- Goods come back and their money goes back, both or neither: as return_items(), then as
-- refund_order() over p_amount, or over what the goods cost with the adjustments of their lines.
-- Returns the refund; null when the goods cost nothing. The same p_return_id again does nothing again.
-- Locks: payments, orders, then inventory by (product_id, warehouse_id).
-- Raises: as those two.
create or replace function return_and_refund(
    p_order_id uuid, p_items jsonb default null, p_amount numeric default null, p_reason text default null,
    p_return_id uuid default new_id(), p_restock boolean default true, p_reason_code text default 'damaged',
    p_despite_dispute boolean default false
) returns refunds
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_amount numeric;
begin
    perform lock_payment(p_order_id);
    perform return_items(p_order_id, p_items, p_reason, p_return_id, p_restock, p_reason_code);
    v_amount := coalesce(p_amount, nullif(value_of_return(p_order_id, p_return_id), 0));
    if v_amount is null then
        return null;
    end if;
    return refund_order(p_order_id, v_amount, p_reason, refund_of_return(p_return_id), p_despite_dispute);
end
$$;
comment on function return_and_refund(uuid, jsonb, numeric, text, uuid, boolean, text, boolean) is
    'Takes goods of a fulfilled order back and refunds what they cost, or another amount: both or neither. Safe to repeat with the same return id.';

-- Says something of a return that nothing here reads: metadata, changed by a merge patch. The same
-- again changes nothing.
-- Locks: the order. Raises: DP010 when there is no such return, DP015 as merge_patch(); the laws of
-- metadata.
create or replace function describe_return(p_return_id uuid, p_metadata jsonb) returns return_metadata
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_order_id constant uuid := (
        select m.reference_id from stock_movements as m
        where m.correlation_id = p_return_id and m.movement_type = 'receive' and m.reference_type = 'return'
        limit 1
    );
    v_order orders;
    v_said return_metadata;
begin
    if v_order_id is null then
        perform refuse(
            'DP010', 'no such return', format('There is no return %s.', p_return_id), 'See order_returns.'
        );
    end if;
    v_order := lock_fulfilled_order(v_order_id);
    insert into return_metadata as r (order_id, return_id, warehouse_id, metadata)
    values (v_order.id, p_return_id, v_order.warehouse_id, merge_patch('{}', p_metadata))
    on conflict on constraint return_metadata_pkey do update set metadata = merge_patch(r.metadata, p_metadata)
    returning r.* into v_said;
    return v_said;
end
$$;
comment on function describe_return(uuid, jsonb) is 'Gives a return metadata, or changes it by a merge patch.';
