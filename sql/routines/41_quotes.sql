-- Quotes: what an order would cost, which warehouses would serve it, and whether what it asks for
-- can be sold at this moment. Nothing is written, locked or promised, so it may be asked of a server
-- that can't be written to; what place_order() refuses is refused here with the same words.
--
-- What an order is for isn't looked at, nor is what only a write can tell: a reference that another
-- order has, an id that is taken.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The lines of an order, priced as price_order_item() does, each with what can be sold of its
-- product: a line fits when all lines of its product together do.
-- Locks nothing. Raises: as read_items() and price_order_item(); DP001 when there is no line; DP003
-- when a product is priced in another currency; 23514 for a quantity that is none; 42501 for metadata
-- from a customer.
create or replace function quote_lines(p_warehouse_id uuid, p_items jsonb, p_currency text)
returns table (
    product_id uuid, quantity integer, unit_price numeric, line_total numeric, quantity_sellable integer, fits boolean
)
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_may_price constant boolean := pg_has_role(current_user, 'service_role', 'usage');
    v_line record;
    v_lines integer := 0;
begin
    if p_items @? '$[*].metadata' and not has_column_privilege('order_items', 'metadata', 'insert') then
        perform refuse('42501', 'metadata is the shop''s', 'A customer was to write it.', 'Leave metadata out.');
    end if;
    for v_line in
        select
            i.product_id, i.quantity, i.unit_price::amount as unit_price, p.unit_price as price, p.currency, p.is_active,
            sum(i.quantity) over (partition by i.product_id) as wanted,
            coalesce((
                select s.quantity_sellable from inventory as s
                where s.product_id = i.product_id and s.warehouse_id = p_warehouse_id
            ), 0) as sellable
        from read_items(p_items, '{product_id, sku, quantity, unit_price, metadata}') with ordinality
            as i (product_id, quantity, unit_price, metadata, n)
        left join products as p on p.id = any(array[i.product_id])
        order by i.n
    loop
        if v_line.is_active is not true then
            perform refuse(
                'DP003', 'product cannot be ordered',
                case
                    when v_line.is_active is null then format('There is no product %s.', v_line.product_id)
                    else format('Product %s is not sold any more.', v_line.product_id)
                end,
                'Choose an active product: select id, sku from products where is_active.'
            );
        elsif v_line.unit_price <> v_line.price and not v_may_price then
            perform refuse(
                'DP002', 'price is not the catalogue''s',
                format('Product %s costs %s; the line says %s.', v_line.product_id, v_line.price, v_line.unit_price),
                'Leave unit_price out. Only service_role may set another price.'
            );
        elsif v_line.quantity not between 1 and 1000000 then
            raise check_violation using
                message = format('%s units of product %s can''t be ordered', v_line.quantity, v_line.product_id),
                constraint = 'order_items_quantity_is_sane', table = 'order_items', schema = 'darkpearl';
        end if;
        perform refuse_unpayable(v_line.unit_price, v_line.currency);
        if v_line.currency <> p_currency then
            perform refuse(
                'DP003', 'product is sold in another currency',
                format('Product %s is priced in %s, the order is in %s.', v_line.product_id, v_line.currency, p_currency),
                'Place one order per currency.'
            );
        end if;
        v_lines := v_lines + 1;
        return query select
            v_line.product_id, v_line.quantity, coalesce(v_line.unit_price, v_line.price)::numeric,
            v_line.quantity * coalesce(v_line.unit_price, v_line.price)::numeric, v_line.sellable, v_line.sellable >= v_line.wanted;
    end loop;
    if v_lines = 0 then
        perform refuse('DP001', 'order has no lines', 'p_items is an empty array.', 'Pass at least one item.');
    end if;
end
$$;
comment on function quote_lines(uuid, jsonb, text) is 'Internal: the lines of an order that isn''t placed, with their prices and whether they fit.';

-- What an order would cost beside lines of p_subtotal, as order_adjustments takes it.
-- Locks nothing. Raises: as read_adjustments() and add_up_adjustments(); 23514 for a sign or a label
-- that is none; 42501 from a customer.
create or replace function quote_adjustments(p_adjustments jsonb, p_lines integer, p_subtotal numeric, p_currency text)
returns table (kind adjustment_kind, label text, amount numeric, item integer)
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_adjustment record;
    v_sum numeric := 0;
    v_count integer := 0;
begin
    if p_adjustments is null then
        return;
    elsif not has_any_column_privilege('order_adjustments', 'insert') then
        perform refuse('42501', 'adjustments are the shop''s', 'A customer was to write one.', 'Leave adjustments out.');
    end if;
    for v_adjustment in
        select a.kind, a.label, a.amount::signed_amount as amount, a.item_id
        from read_adjustments(array(select i.n from generate_series(0::bigint, p_lines - 1) as i (n)), p_adjustments) as a
    loop
        if (case v_adjustment.kind when 'discount' then v_adjustment.amount > 0 else v_adjustment.amount < 0 end)
            or not (is_visible(v_adjustment.label) and length(v_adjustment.label) <= 255)
        then
            raise check_violation using
                message = format('%s %s can''t be adjusted', v_adjustment.kind, v_adjustment.amount),
                constraint = 'order_adjustments_' || case
                    when is_visible(v_adjustment.label) and length(v_adjustment.label) <= 255 then 'sign_is_that_of_the_kind'
                    else 'label_is_short_and_not_blank'
                end,
                table = 'order_adjustments', schema = 'darkpearl';
        end if;
        perform refuse_unpayable(v_adjustment.amount, p_currency);
        v_sum := v_sum + v_adjustment.amount;
        v_count := v_count + 1;
        return query select v_adjustment.kind, v_adjustment.label, v_adjustment.amount::numeric, v_adjustment.item_id::integer;
    end loop;
    if p_subtotal + v_sum < 0 then
        perform refuse(
            'DP041', 'order would cost less than nothing',
            format('The lines cost %s, and adjustments add %s.', p_subtotal, v_sum),
            'Take off no more than the rest costs.'
        );
    elsif v_count > 1000 then
        perform refuse(
            'DP015', 'order has too many adjustments', format('There are %s, and 1000 at most.', v_count),
            'Add those of a kind up into one.'
        );
    end if;
end
$$;
comment on function quote_adjustments(jsonb, integer, numeric, text) is
    'Internal: what an order that isn''t placed would cost beside its lines.';

-- What place_order() would place with the same arguments, one row for each order: its lines,
-- [{"product_id", "quantity", "unit_price", "line_total", "quantity_sellable", "fits", "product"}, …],
-- and adjustments, what they add up to, and whether all of it can be sold there now. An order that
-- names its warehouse and doesn't fit can be placed all the same, and is refused then by its saga.
-- Locks nothing. Raises: as quote_lines() and quote_adjustments(); DP003 for a warehouse that takes
-- no orders; as source_items() when none is named; 23514 for a currency that is none.
create or replace function quote_order(
    p_warehouse_id uuid default null, p_items jsonb default null, p_currency text default 'USD', p_adjustments jsonb default null
)
returns table (
    warehouse_id uuid, items jsonb, adjustments jsonb, subtotal numeric, shipping_total numeric, discount_total numeric,
    tax_total numeric, fee_total numeric, total_amount numeric, currency text, fits boolean
)
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_currency constant currency_code := p_currency;
    v_part record;
    v_before bigint[] := '{}';
begin
    if p_items is null then
        perform refuse('DP015', 'items must be an array', 'p_items is null.', 'Pass [{"product_id": "…", "quantity": 1}].');
    elsif p_warehouse_id is null then
        for v_part in select s.warehouse_id, s.items, s.places from source_items(p_items) as s loop
            return query
            select q.* from quote_order(
                v_part.warehouse_id, v_part.items, p_currency,
                share_of_adjustments(p_adjustments, v_part.places, v_before, jsonb_array_length(p_items))
            ) as q;
            v_before := v_before || v_part.places;
        end loop;
        return;
    elsif not exists (select from warehouses as w where w.id = p_warehouse_id and w.is_active and w.cell = this_cell()) then
        perform refuse_elsewhere(array[p_warehouse_id]);
        perform refuse(
            'DP003', 'warehouse takes no orders', format('Warehouse %s is unknown or inactive.', p_warehouse_id),
            'Choose an active one: select id, code from warehouses where is_active.'
        );
    end if;
    select
        count(*)::integer as lines, sum(l.line_total) as subtotal, bool_and(l.fits) as fits,
        jsonb_agg(to_jsonb(l) || jsonb_build_object('product', (
            select jsonb_build_object('id', p.id, 'sku', p.sku, 'name', p.name) from products as p where p.id = l.product_id
        ))) as items
    into v_part
    from quote_lines(p_warehouse_id, p_items, v_currency) as l;
    return query
    select
        p_warehouse_id, v_part.items, coalesce(jsonb_agg(to_jsonb(a)) filter (where a.kind is not null), '[]'), v_part.subtotal,
        coalesce(sum(a.amount) filter (where a.kind = 'shipping'), 0),
        coalesce(sum(a.amount) filter (where a.kind = 'discount'), 0),
        coalesce(sum(a.amount) filter (where a.kind = 'tax'), 0),
        coalesce(sum(a.amount) filter (where a.kind = 'fee'), 0),
        v_part.subtotal + coalesce(sum(a.amount), 0), p_currency, v_part.fits
    from quote_adjustments(p_adjustments, v_part.lines, v_part.subtotal, v_currency) as a;
end
$$;
comment on function quote_order(uuid, jsonb, text, jsonb) is
    'What an order would cost, line by line, and whether it fits now; a row for each order that place_order() would place. Writes nothing.';
