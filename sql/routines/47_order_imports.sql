-- Imports of orders: a line of the file is a line of an order, and those with one order_id or
-- reference are one order. They are placed in sets, by the triggers that hold for every client.
-- With a pay_by an order is held until then, as 66_held_orders.sql has it.
-- A reference is the shop's own name for the order, and the order keeps it; but within a batch that has
-- a name it is of that batch alone.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The id of an order that a client knows by a reference of its own, within a batch: the same
-- again is the same order. A UUID of version 8. Locks nothing.
create or replace function referred_order_id(p_batch text, p_reference text) returns uuid
language sql immutable
return overlay(
    overlay(md5(concat_ws(' ', length(p_batch), p_batch, p_reference)) placing '8' from 13 for 1)
    placing '8' from 17 for 1
)::uuid;
comment on function referred_order_id(text, text) is
    'The id of the order that an import places under a reference, within a batch.';

-- Finds the order of each staged line, by its id or its reference, and whether that order is there
-- already with the same lines; writes down where it is there with others. Locks nothing.
create or replace function find_imported_orders(p_batch text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    update pg_temp.order_imports as l
    set found_order = case
        when l.order_id is not null then read_uuid(l.order_id)
        else coalesce(
            (select d.order_id from order_particulars as d where d.reference = l.reference and p_batch = ''),
            referred_order_id(p_batch, l.reference)
        )
    end
    where l.order_id is not null or l.reference is not null;

    update pg_temp.order_imports as l
    set is_placed = a.warehouse_id = o.warehouse_id and a.content = k.content,
        problem = case
            when a.warehouse_id is distinct from o.warehouse_id or a.content is distinct from k.content
                then 'the order is there already, with other lines or in another warehouse'
        end
    from (
        select
            l.found_order, min(l.found_warehouse::text)::uuid as warehouse_id,
            array_agg(format('%s %s', l.found_product, read_integer(l.quantity)) order by l.found_product, read_integer(l.quantity)) as content
        from pg_temp.order_imports as l
        where l.found_order is not null
        group by l.found_order
    ) as a
    inner join orders as o on o.id = any(array[a.found_order])
    cross join lateral (
        select array_agg(format('%s %s', i.product_id, i.quantity) order by i.product_id, i.quantity) as content
        from order_items as i
        where i.order_id = o.id and i.warehouse_id = o.warehouse_id
    ) as k
    where l.found_order = a.found_order and l.problem is null;
end
$$;
comment on function find_imported_orders(text) is
    'Internal: finds the order of each staged line, and which of them are placed already.';

-- Writes down what is wrong with each staged line of an order that isn't placed yet. The
-- triggers of orders and order_items hold all the same. Locks nothing.
create or replace function check_order_lines(p_batch text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    update pg_temp.order_imports as l
    set problem = f.problem
    from (
        select l.line, case
            when l.order_id is null and l.reference is null then 'order_id or reference is missing'
            when l.found_order is null then 'order_id is no UUID'
            when length(l.kept) > 100 then 'reference has more than 100 characters'
            when not is_visible_throughout(l.kept) then 'reference has characters that can''t be seen, or spaces too many'
            when l.kept is not nfc normalized then 'reference is not in Unicode''s normal form C'
            when d.order_id <> l.found_order or l.kept is not null
                and first_value(l.found_order) over (partition by l.kept order by l.line) <> l.found_order
                then 'the reference is that of another order'
            when length(l.customer_id) > 255 then 'customer_id has more than 255 characters'
            when not is_visible_throughout(l.customer_id) then 'customer_id has characters that can''t be seen, or spaces too many'
            when l.currency !~ '^[A-Z]{3}$' then 'currency is no code of ISO 4217'
            when length(l.notes) > 2000 then 'notes have more than 2000 characters'
            when l.pay_by is not null and read_moment(l.pay_by) is null then 'pay_by is no date and time with an offset'
            when not coalesce(read_moment(l.pay_by) between clock() and clock() + interval '366 days', true)
                then 'pay_by is not to come within 366 days'
            when not coalesce(read_integer(l.quantity) between 1 and 1000000, false) then 'quantity is no number from 1 to 1000000'
            when l.unit_price is not null and read_amount(l.unit_price) is null then 'unit_price is no amount'
            when not w.is_active then 'the warehouse takes no orders'
            when not p.is_active then 'the product is not sold any more'
            when p.currency <> coalesce(l.currency, 'USD') then format('the product is priced in %s', p.currency)
            when scale(trim_scale(read_amount(l.unit_price))) > minor_units(p.currency) then 'unit_price has more decimals than its currency'
            when read_amount(l.unit_price) <> p.unit_price and not pg_has_role(current_user, 'service_role', 'usage')
                then 'unit_price is not the catalogue''s'
            when count(*) over (partition by l.found_order, l.found_product) > 1 then 'the product stands in the order twice'
            when concat_ws(' ', l.found_warehouse, l.customer_id, l.currency, l.notes, l.pay_by, l.kept)
                <> first_value(concat_ws(' ', l.found_warehouse, l.customer_id, l.currency, l.notes, l.pay_by, l.kept))
                over (partition by l.found_order order by l.line)
                then 'warehouse, customer_id, currency, notes, pay_by or reference are not those of the order''s first line'
        end as problem
        from (select i.*, case when p_batch = '' then i.reference end as kept from pg_temp.order_imports as i) as l
        left join order_particulars as d on d.reference = l.kept
        left join products as p on p.id = l.found_product
        left join warehouses as w on w.id = l.found_warehouse
        where l.problem is null and l.is_placed is not true
    ) as f
    where f.line = l.line and f.problem is not null;
end
$$;
comment on function check_order_lines(text) is 'Internal: writes down what is wrong with each staged line of an order.';

-- Places the orders of order_imports, in the order of their first lines. An order that is there
-- already with the same lines is left as it is. p_batch: within what references are unique; without
-- one, in all, and the orders keep them.
-- Returns how many lines there are, how many of them are bad, and how many orders were placed;
-- with p_skip_bad those of which no line is bad, else none if there is one.
-- Locks only the rows that it inserts.
create or replace function place_imported_orders(p_batch text default '', p_skip_bad boolean default false)
returns table (lines bigint, bad bigint, placed bigint)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_orders uuid[];
begin
    perform resolve_lines('order_imports');
    perform find_imported_orders(p_batch);
    perform check_order_lines(p_batch);
    select count(*), count(l.problem) into lines, bad from pg_temp.order_imports as l;
    placed := 0;
    if bad = 0 or p_skip_bad then
        with good as materialized (
            select l.found_order, min(l.line) as line
            from pg_temp.order_imports as l
            where l.is_placed is not true and l.found_order is not null
            group by l.found_order
            having count(l.problem) = 0
        ),
        inserted as (
            insert into orders (id, warehouse_id, customer_id, currency, notes, pay_by)
            select l.found_order, l.found_warehouse, l.customer_id, coalesce(l.currency, 'USD'), l.notes, read_moment(l.pay_by)
            from good as g
            inner join pg_temp.order_imports as l on l.line = g.line
            order by l.line
            returning id
        )
        select array_agg(i.id) into v_orders from inserted as i;

        insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)
        select l.found_order, l.found_warehouse, l.found_product, l.quantity::integer, read_amount(l.unit_price)
        from pg_temp.order_imports as l
        inner join unnest(v_orders) as o (id) on o.id = l.found_order
        order by l.line;

        insert into order_particulars (order_id, warehouse_id, reference)
        select distinct on (l.found_order) l.found_order, l.found_warehouse, l.reference
        from pg_temp.order_imports as l
        inner join unnest(v_orders) as o (id) on o.id = l.found_order
        where l.reference is not null and p_batch = ''
        order by l.found_order, l.line;
        placed := coalesce(cardinality(v_orders), 0);
    end if;
    return next;
end
$$;
comment on function place_imported_orders(text, boolean) is
    'Places the orders whose lines are in order_imports. Bad lines have their problem beside them.';

-- What an export writes, and an import reads: a line for each line of an order.
create or replace view exported_orders with (security_invoker = true) as
select
    o.id as order_id, d.reference, w.code as warehouse, o.customer_id, o.currency, o.notes, o.pay_by,
    p.sku, i.quantity, i.unit_price, o.status, o.created_at
from orders as o
inner join order_items as i on i.order_id = o.id and i.warehouse_id = o.warehouse_id
inner join products as p on p.id = i.product_id
inner join warehouses as w on w.id = o.warehouse_id
left join order_particulars as d on d.order_id = o.id and d.warehouse_id = o.warehouse_id
order by o.order_number, i.id;
comment on view exported_orders is 'Every line of every order, as an import reads it.';
