-- Returns: goods of a fulfilled order that come back into stock, in parts, each return
-- idempotent by an id that the caller may choose.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Goods of a fulfilled order come back to their warehouse and are stock again:
-- p_items, [{"product_id", "quantity"}, …], or all that has not come back yet.
-- The same p_return_id again returns the movements it made. The money is
-- another matter: see refund_order().
-- Locks: orders, then inventory by (product_id, warehouse_id).
-- Raises: DP010 when there is no such order, DP011 when the id stands for
-- another return, DP015 for items that make no sense, DP019 when the order is
-- not fulfilled, DP021 when more would come back than was sent.
create or replace function return_items(
    p_order_id uuid, p_items jsonb default null, p_reason text default null, p_return_id uuid default new_id()
) returns setof stock_movements
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_order orders;
    v_products uuid[];
    v_quantities integer[];
    v_count integer;
    v_wrong record;
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
    elsif v_order.status <> 'fulfilled' then
        perform refuse(
            'DP019', 'order is not fulfilled',
            format('Order %s is %s.', p_order_id, v_order.status),
            'What has not left cannot come back; cancel_order() stops an order.'
        );
    elsif p_items is not null and jsonb_typeof(p_items) <> 'array' then
        perform refuse(
            'DP015', 'items must be an array',
            format('p_items is a JSON %s.', jsonb_typeof(p_items)),
            'Pass [{"product_id": "…", "quantity": 1}], or null for everything.'
        );
    end if;

    select array_agg(i.product_id), array_agg(i.quantity) into v_products, v_quantities
    from (
        select
            j.product_id,
            -- 0 stands for what makes no sense.
            case
                when j.product_id is not null and bool_and(coalesce(j.quantity, 0) > 0)
                    then least(sum(j.quantity), 2000000000)::integer
                else 0
            end as quantity
        from jsonb_to_recordset(p_items) as j (product_id uuid, quantity integer)
        group by j.product_id
        order by j.product_id
    ) as i;
    if p_items is not null and (v_products is null or 0 = any(v_quantities)) then
        perform refuse(
            'DP015', 'quantity makes no sense',
            'Each returned item needs a product and a positive number of units.',
            'Pass [{"product_id": "…", "quantity": 1}], or null for everything.'
        );
    end if;

    select count(*) into v_count from stock_movements as m where m.correlation_id = p_return_id;
    if v_count > 0 then
        if exists (
            select from stock_movements as m
            where m.correlation_id = p_return_id and (
                m.reference_id is distinct from p_order_id or m.reference_type is distinct from 'return'
                or p_items is not null
                and not exists (
                    select from unnest(v_products, v_quantities) as i (product_id, quantity)
                    where i.product_id = m.product_id and i.quantity = m.quantity
                )
            )
        ) or (p_items is not null and v_count <> cardinality(v_products)) then
            perform refuse(
                'DP011', 'return id already used',
                format('Return %s stands for other goods.', p_return_id),
                'Repeat a return unchanged, or give a new one a new id.'
            );
        end if;
        return query select m.* from stock_movements as m where m.correlation_id = p_return_id order by m.id;
        return;
    end if;

    -- What is still out there, by product.
    for v_wrong in
        with out_there as (
            select m.product_id, sum(m.quantity) as quantity
            from (
                select f.product_id, f.quantity from stock_movements as f
                where f.correlation_id = p_order_id and f.movement_type = 'fulfill'
                union all
                select r.product_id, -r.quantity from stock_movements as r
                where r.reference_id = p_order_id and r.reference_type = 'return' and r.movement_type = 'receive'
            ) as m
            group by m.product_id
        ),
        asked as (
            select i.product_id, i.quantity
            from unnest(v_products, v_quantities) as i (product_id, quantity)
            union all
            select o.product_id, o.quantity from out_there as o where p_items is null and o.quantity > 0
        )
        select
            a.product_id, a.quantity, coalesce(o.quantity, 0) as out_there
        from asked as a
        left join out_there as o using (product_id)
        order by a.product_id
    loop
        if v_wrong.quantity > v_wrong.out_there then
            perform refuse(
                'DP021', 'more would come back than was sent',
                format(
                    'Product %s of order %s: %s units came, %s are out there.',
                    v_wrong.product_id, p_order_id, v_wrong.quantity, v_wrong.out_there
                ),
                'Goods that this order did not send are received with receive_stock().'
            );
        end if;
        return next move_stock(
            'receive', v_order.warehouse_id, v_wrong.product_id, v_wrong.quantity::integer, p_return_id,
            p_reason, 'return', p_order_id
        );
    end loop;
    if not found then
        perform refuse(
            'DP021', 'nothing is left to come back',
            format('All goods of order %s have come back already.', p_order_id),
            'See stock_movements where reference_id is the order.'
        );
    end if;
end
$$;
comment on function return_items(uuid, jsonb, text, uuid) is
    'Goods of a fulfilled order come back into stock, all or a part. Safe to repeat with the same return id.';
