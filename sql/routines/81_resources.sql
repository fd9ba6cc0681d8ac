-- What Python reads: the shapes of the API's resources, and the comparison of our
-- payments with a gateway's books. A client filters, sorts and limits; what a row
-- consists of is said here.
--
-- A view has a column for each field of the JSON, under the same name. It lends
-- nobody its owner's eyes: the tables under it say what its caller may see. Tables
-- that are shapes as they stand (products, warehouses) have no view; saga_history of
-- 80_views is one.
--
-- What a view adds to another stands before that one's columns: a column that a
-- shape gains then comes last in both, as `create or replace view` wants it.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Stock as everybody may see it: how much can be sold. A version stands for what is shown,
-- the names of the product and of the warehouse included. It counts nothing: how often a
-- shelf changes is how much is ordered. A warehouse that another cell has sells nothing here.
create or replace view sellable_inventory with (security_invoker = true) as
select
    i.id, i.product_id, i.warehouse_id, i.quantity_sellable, i.created_at,
    1 + (
        hashtextextended(
            concat_ws(
                ' ', i.quantity_sellable,
                (select p.version from products as p where p.id = i.product_id),
                (select w.version from warehouses as w where w.id = i.warehouse_id)
            ), 0
        ) & 4503599627370495  -- every JSON number of these is exact
    ) as version,
    (
        select json_build_object('id', p.id, 'sku', p.sku, 'name', p.name)
        from products as p where p.id = i.product_id
    ) as product,
    (
        select json_build_object('id', w.id, 'code', w.code, 'name', w.name)
        from warehouses as w where w.id = i.warehouse_id
    ) as warehouse
from inventory as i
where not array[i.warehouse_id] <@ array(select m.warehouse_id from moved_cells() as m where m.cell <> this_cell());
comment on view sellable_inventory is 'How much of each product each warehouse can sell.';

-- The same for staff, who see what lies on the shelf and when to order more. A view of
-- its own: to read a view, one must be allowed every column of a table that it names.
create or replace view inventory_levels with (security_invoker = true) as
select
    i.id, i.product_id, i.warehouse_id, i.quantity_available, i.quantity_reserved, i.quantity_sellable,
    i.reorder_point, i.reorder_quantity, i.created_at, i.updated_at,
    i.version
    + coalesce((select p.version from products as p where p.id = i.product_id), 0)
    + coalesce((select w.version from warehouses as w where w.id = i.warehouse_id), 0) as version,
    (
        select json_build_object('id', p.id, 'sku', p.sku, 'name', p.name)
        from products as p where p.id = i.product_id
    ) as product,
    (
        select json_build_object('id', w.id, 'code', w.code, 'name', w.name)
        from warehouses as w where w.id = i.warehouse_id
    ) as warehouse
from inventory as i;
comment on view inventory_levels is 'How much of each product each warehouse has, promised and to be reordered.';

-- Stocks a product in a warehouse, and receives the units that are there already.
-- Does nothing when there is no such product or no such warehouse.
-- Locks: see receive_stock(). Raises: 23505 when it is stocked there already.
create or replace function stock_product(
    p_product_id uuid, p_warehouse_id uuid, p_quantity_available integer, p_reorder_point integer,
    p_reorder_quantity integer
) returns void
language sql
begin atomic
    insert into inventory (product_id, warehouse_id, reorder_point, reorder_quantity)
    select p.id, w.id, p_reorder_point, p_reorder_quantity
    from products as p, warehouses as w
    where p.id = p_product_id and w.id = p_warehouse_id;
    select receive_stock(i.warehouse_id, i.product_id, p_quantity_available, p_notes => 'opening stock')
    from inventory as i
    where i.product_id = p_product_id and i.warehouse_id = p_warehouse_id and p_quantity_available > 0;
end;
comment on function stock_product(uuid, uuid, integer, integer, integer) is
    'Starts to stock a product in a warehouse, with the units that are there already.';

-- The ledger with names.
create or replace view stock_ledger with (security_invoker = true) as
select
    m.id, m.correlation_id, m.product_id, m.warehouse_id, m.movement_type, m.quantity,
    m.available_after, m.reserved_after,
    coalesce(m.reference_type, case when m.movement_type in ('reserve', 'release', 'fulfill') then 'order' end)
        as reference_type,
    coalesce(m.reference_id, case when m.movement_type in ('reserve', 'release', 'fulfill') then m.correlation_id end)
        as reference_id,
    m.notes, m.actor, m.created_at,
    (
        select json_build_object('id', p.id, 'sku', p.sku, 'name', p.name)
        from products as p where p.id = m.product_id
    ) as product,
    (
        select json_build_object('id', w.id, 'code', w.code, 'name', w.name)
        from warehouses as w where w.id = m.warehouse_id
    ) as warehouse,
    case when m.movement_type = 'adjust' then (
        select r.reason_code from movement_reasons as r
        where r.correlation_id = m.correlation_id and r.product_id = m.product_id and r.warehouse_id = m.warehouse_id
    ) end as reason_code
from stock_movements as m;
comment on view stock_ledger is
    'Every movement of stock, with its product, its warehouse and its reason; one of a saga has its order as reference.';

-- Goods that went to another cell, but for those whose warehouse has moved: they are told where it is.
create or replace view transfer_states with (security_invoker = true) as
select
    t.id, t.product_id, t.warehouse_id, t.to_warehouse_id, t.quantity, t.status, t.refusal, t.notes,
    t.created_at, t.updated_at,
    (
        select json_build_object('id', p.id, 'sku', p.sku, 'name', p.name)
        from products as p where p.id = t.product_id
    ) as product,
    (
        select json_build_object('id', w.id, 'code', w.code, 'name', w.name)
        from warehouses as w where w.id = t.warehouse_id
    ) as warehouse,
    (
        select json_build_object('id', w.id, 'code', w.code, 'name', w.name)
        from warehouses as w where w.id = t.to_warehouse_id
    ) as to_warehouse
from transfers as t
where not array[t.warehouse_id] <@ (select closed_warehouses());
comment on view transfer_states is 'Transfers to other cells: of what, from where to where, and what became of each.';

-- A movement as whoever asked for it is told: one of a transfer has its counterpart, which
-- refers to the other warehouse under the same correlation id.
create or replace view recorded_movements with (security_invoker = true) as
select
    (
        select to_json(c)
        from stock_ledger as c
        where c.correlation_id = m.correlation_id and c.product_id = m.product_id
            and m.reference_type = 'warehouse' and c.warehouse_id = m.reference_id
            and c.movement_type = case m.movement_type
                when 'transfer_out' then 'transfer_in' when 'transfer_in' then 'transfer_out'
            end::movement_type
    ) as counterpart,
    case when m.movement_type = 'transfer_out' then (
        select to_json(t) from transfer_states as t where t.id = m.correlation_id and t.warehouse_id = m.warehouse_id
    ) end as transfer,
    m.*
from stock_ledger as m;
comment on view recorded_movements is 'Every movement of stock; for a transfer, with the one of the other warehouse, or with what becomes of it in another cell.';

-- Money that goes back.
create or replace view order_refunds with (security_invoker = true) as
select
    r.id, r.order_id, r.status, r.amount, r.currency, r.reason, r.despite_dispute, r.gateway, r.gateway_reference,
    told_decline_code(r.order_id, r.id) as decline_code,
    r.created_at, r.updated_at, coalesce(r.metadata, '{}') as metadata, r.breakdown
from refunds as r;
comment on view order_refunds is 'Every refund, with why it was declined as the caller may read it.';

-- Goods that came back: the movements of each return, and the refund that was made with it.
create or replace view order_returns with (security_invoker = true) as
select
    m.correlation_id as id, m.reference_id as order_id,
    json_agg((select to_json(l) from stock_ledger as l where l.id = m.id and l.warehouse_id = m.warehouse_id) order by m.id) as movements,
    min(m.created_at) as created_at,
    bool_and(m.movement_type = 'receive') as restocked,
    json_agg(
        json_build_object('product_id', m.product_id, 'quantity', m.quantity, 'product', (
            select json_build_object('id', p.id, 'sku', p.sku, 'name', p.name) from products as p where p.id = m.product_id
        ))
        order by m.id
    ) filter (where m.movement_type = 'receive') as items,
    (select to_json(r) from order_refunds as r where r.id = refund_of_return(m.correlation_id) and r.order_id = m.reference_id)
        as refund,
    coalesce(
        (
            select d.metadata from return_metadata as d
            where d.order_id = m.reference_id and d.return_id = m.correlation_id
            limit 1
        ),
        '{}'
    ) as metadata
from stock_movements as m
where (m.movement_type in ('receive', 'adjust')) is true and m.reference_type = 'return'
group by m.correlation_id, m.reference_id;
comment on view order_returns is
    'What came back of each order, return by return: the goods, whether they are stock again, and the movements that say so.';

-- Units of a product that have come back of an order. For customers too, who don't read the
-- ledger, of their own orders. Locks nothing.
create or replace function returned_units(p_order_id uuid, p_product_id uuid) returns bigint
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select coalesce(sum(m.quantity), 0)
    from stock_movements as m
    where m.reference_id = p_order_id and m.reference_type = 'return' and (m.movement_type = 'receive') is true
        and m.product_id = p_product_id and may_know_of(p_order_id);
end;
comment on function returned_units(uuid, uuid) is 'Units of a product that have come back of an order, as the caller may know.';

-- The returns of an order, without what staff have noted. As returned_units(). Locks nothing.
create or replace function told_returns(p_order_id uuid) returns json
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select coalesce(
        json_agg(
            json_build_object('id', r.id, 'created_at', r.created_at, 'restocked', r.restocked, 'items', r.items)
            order by r.created_at, r.id
        ),
        '[]'
    )
    from (select v.id, v.created_at, v.restocked, v.items from order_returns as v where v.order_id = p_order_id) as r
    where may_know_of(p_order_id);
end;
comment on function told_returns(uuid) is 'What came back of an order, return by return, as JSON, as the caller may know.';

-- Where a saga stands, in words for clients: an ended one is at no step any more.
create or replace view saga_states with (security_invoker = true) as
select
    s.id, s.saga_type, s.status,
    case when s.completed_at is null then s.current_step end as current_step,
    s.attempts, s.cancel_requested,
    s.last_error_code as error_code,
    s.last_error as error_message,
    s.ready_at, s.created_at, s.updated_at, s.completed_at, s.warehouse_id
from saga_overview as s;
comment on view saga_states is 'Every saga: the step it is at, its tries, what went wrong last.';

-- One look at a saga: whether it has ended, and its events after one of them, some at
-- most. No row when it isn't the caller's to see. Locks nothing.
create or replace function follow_saga(p_saga_id uuid, p_after bigint, p_limit integer)
returns table (ended boolean, events json)
language sql stable
begin atomic
    select
        s.ready_at is null,
        coalesce(
            (
                select json_agg(n order by n.id)
                from (
                    select e.*
                    from saga_history as e
                    where e.saga_id = s.id and e.id > p_after
                    order by e.id
                    limit p_limit
                ) as n
            ),
            '[]'
        )
    from sagas as s
    where s.id = p_saga_id;
end;
comment on function follow_saga(uuid, bigint, integer) is
    'Whether a saga has ended, and what has happened to it since an event.';

-- An order as lists show it.
create or replace view order_summaries with (security_invoker = true) as
select
    o.id, o.order_number, o.status, o.customer_id, o.warehouse_id, o.currency, o.total_amount, o.notes,
    o.created_at, o.updated_at,
    (
        select json_build_object('id', w.id, 'code', w.code, 'name', w.name)
        from warehouses as w where w.id = o.warehouse_id
    ) as warehouse,
    case when o.status in ('cancelled', 'payment_failed') then (
        select json_build_object('code', s.last_error_code, 'message', s.last_error)
        from saga_overview as s
        where s.id = o.id and s.warehouse_id = o.warehouse_id and s.last_error_code is not null and not s.cancel_requested
    ) end as failure,
    p.reference, p.email, o.pay_by
from orders as o
left join order_particulars as p on p.order_id = o.id and p.warehouse_id = o.warehouse_id;
comment on view order_summaries is
    'Every order with its warehouse, its reference and its email address, and why it came to nothing.';

-- The orders that a search finds: by its number or id, its reference or email address, its
-- customer's id, or a SKU that it has reserved; of those the newest thousand of each warehouse. A
-- customer's own alone. Runs as its owner for the ledger, whose index leads from products to
-- orders. Locks nothing.
create or replace function find_orders(p_search text) returns setof uuid
language plpgsql stable rows 100
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_customer constant text := current_customer();
    v_is_customer constant boolean := acts_as_customer();
    v_number constant bigint := case when p_search ~ '^#?[0-9]{1,18}$' then ltrim(p_search, '#')::bigint end;
    v_id constant uuid := case when p_search ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then p_search::uuid end;
    v_product constant uuid := (select p.id from products as p where p.sku = normalize(p_search));
begin
    return query
    select o.id from orders as o
    where o.order_number = v_number and (not v_is_customer or o.customer_id = v_customer);
    return query
    select o.id from orders as o where o.id = v_id and (not v_is_customer or o.customer_id = v_customer);
    return query
    select o.id from orders as o where o.customer_id = p_search and (not v_is_customer or p_search = v_customer);
    if v_is_customer then
        return query
        select o.id from orders as o
        inner join order_particulars as d on d.order_id = o.id and d.warehouse_id = o.warehouse_id
        where o.customer_id = v_customer and (d.reference = normalize(p_search) or d.email = p_search);
        return query
        select o.id from orders as o
        inner join order_items as i on i.order_id = o.id and i.warehouse_id = o.warehouse_id
        where o.customer_id = v_customer and i.product_id = v_product;
    else
        return query
        select d.order_id from order_particulars as d where d.reference = normalize(p_search);
        return query
        select d.order_id from order_particulars as d where d.email = p_search;
        return query
        select m.correlation_id
        from warehouses as w
        cross join lateral (
            select l.correlation_id from stock_movements as l
            where l.product_id = v_product and l.warehouse_id = w.id and l.movement_type = 'reserve'
            order by l.product_id desc, l.warehouse_id desc, l.id desc
            limit 1000
        ) as m;
    end if;
end
$$;
comment on function find_orders(text) is
    'The ids of the orders that a number, an id, a reference, an email address, a customer''s id or the SKU of what they have reserved names.';

-- The payment of each order, as customers may see it.
create or replace view order_payments with (security_invoker = true) as
select
    p.order_id, p.warehouse_id,
    json_build_object(
        'status', p.status, 'currency', p.currency,
        'requested_amount', p.requested_amount, 'authorized_amount', p.authorized_amount,
        'captured_amount', p.captured_amount, 'refunded_amount', p.refunded_amount,
        'voided_amount', p.voided_amount, 'gateway', p.gateway,
        'gateway_reference', p.gateway_reference, 'decline_code', told_decline_code(p.order_id),
        'created_at', p.created_at, 'updated_at', p.updated_at,
        'client_action', p.client_action,
        'disputes', (
            select coalesce(
                json_agg(
                    json_build_object(
                        'reference', d.reference, 'status', d.status, 'amount', d.amount, 'currency', d.currency,
                        'reason', d.reason, 'opened_at', d.opened_at, 'updated_at', d.updated_at
                    )
                    order by d.opened_at, d.reference
                ),
                '[]'
            )
            from disputes as d
            where d.order_id = p.order_id and d.warehouse_id = p.warehouse_id
        )
    ) as payment
from payments as p;
comment on view order_payments is 'The payment of every order, with its disputes, as JSON.';

-- Orders that were placed together.
create or replace view order_groups with (security_invoker = true) as
select
    g.group_id as id, o.customer_id, o.currency, sum(o.total_amount) as total_amount,
    json_agg(o order by o.order_number) as orders,
    min(o.created_at) as created_at
from grouped_orders as g
inner join order_summaries as o on o.id = any(array[g.order_id]) and o.warehouse_id = any(array[g.warehouse_id])
group by g.group_id, o.customer_id, o.currency;
comment on view order_groups is 'Orders that were placed as one, each by the warehouse that serves it, under the id of the first.';

-- What an order costs beside its lines, and what it is for.
create or replace view order_terms with (security_invoker = true) as
select
    a.adjustments, (
        select sum(i.line_total) from order_items as i where i.order_id = o.id and i.warehouse_id = o.warehouse_id
    ) as subtotal,
    a.shipping_total, a.discount_total, a.tax_total, a.fee_total,
    p.shipping_address, p.billing_address, coalesce(p.metadata, '{}') as metadata,
    -- Of what update_order() changes; of an order of which nothing was said, 1.
    coalesce(p.version, 0) + 1 as version,
    o.*
from order_summaries as o
cross join lateral (
    select
        coalesce(
            json_agg(
                json_build_object('id', d.id, 'kind', d.kind, 'label', d.label, 'amount', d.amount, 'item_id', d.item_id)
                order by d.id
            ),
            '[]'
        ) as adjustments,
        coalesce(sum(d.amount) filter (where d.kind = 'shipping'), 0) as shipping_total,
        coalesce(sum(d.amount) filter (where d.kind = 'discount'), 0) as discount_total,
        coalesce(sum(d.amount) filter (where d.kind = 'tax'), 0) as tax_total,
        coalesce(sum(d.amount) filter (where d.kind = 'fee'), 0) as fee_total
    from order_adjustments as d
    where d.order_id = o.id and d.warehouse_id = o.warehouse_id
) as a
left join order_particulars as p on p.order_id = o.id and p.warehouse_id = o.warehouse_id;
comment on view order_terms is 'Every order with what it costs beside its lines, and what it is for.';

-- An order as whoever has placed it is told: nothing of it has come back yet.
create or replace view order_confirmations with (security_invoker = true) as
select
    (
        select
            json_agg(
                json_build_object(
                    'id', i.id, 'product_id', i.product_id, 'quantity', i.quantity,
                    'unit_price', i.unit_price, 'line_total', i.line_total, 'metadata', coalesce(i.metadata, '{}'),
                    'product', json_build_object('id', p.id, 'sku', p.sku, 'name', p.name),
                    'returned_quantity', 0
                )
                order by i.id
            )
        from order_items as i
        inner join products as p on p.id = i.product_id
        where i.order_id = o.id and i.warehouse_id = o.warehouse_id
    ) as items,
    o.*
from order_terms as o;
comment on view order_confirmations is 'Every order with its lines, what it costs beside them, and what it is for, as it was placed.';

-- The lines of orders, with what has come back of each: units of a product come back line by
-- line, in the order of the lines.
create or replace view order_lines with (security_invoker = true) as
select
    i.order_id, i.warehouse_id,
    json_agg(
        json_build_object(
            'id', i.id, 'product_id', i.product_id, 'quantity', i.quantity,
            'unit_price', i.unit_price, 'line_total', i.line_total, 'metadata', coalesce(i.metadata, '{}'),
            'product', json_build_object('id', p.id, 'sku', p.sku, 'name', p.name),
            'returned_quantity', greatest(least(returned_units(i.order_id, i.product_id) - i.before, i.quantity), 0)
        )
        order by i.id
    ) as items
from (
    select l.*, sum(l.quantity) over (partition by l.order_id, l.product_id order by l.id) - l.quantity as before
    from order_items as l
) as i
inner join products as p on p.id = i.product_id
group by i.order_id, i.warehouse_id;
comment on view order_lines is 'The lines of every order, with how many units of each have come back.';

-- The parcels of orders. One that waits leaves once the money of its order is captured, and one
-- that is refused never, since that was declined or the order was cancelled first.
create or replace view order_shipments with (security_invoker = true) as
select
    h.id, h.order_id,
    case
        when h.shipped_at is not null then 'shipped'
        when (
            select s.status in ('compensating', 'compensated') or s.cancel_requested
            from sagas as s where s.id = h.order_id and s.warehouse_id = h.warehouse_id
        ) then 'refused'
        else 'waiting'
    end as status,
    json_build_object('carrier', h.carrier, 'number', h.tracking_number, 'url', h.tracking_url) as tracking,
    (
        select json_agg(
            json_build_object(
                'product_id', i.product_id, 'quantity', i.quantity,
                'product', json_build_object('id', p.id, 'sku', p.sku, 'name', p.name)
            )
            order by p.sku
        )
        from shipment_items as i
        inner join products as p on p.id = i.product_id
        where i.order_id = h.order_id and i.shipment_id = h.id
    ) as items,
    h.created_at, h.shipped_at
from shipments as h;
comment on view order_shipments is 'The parcels of every order, with what is in them: shipped, waiting for the money, or refused.';

-- What was taken out of orders: the movements that released it, and the refund of its money.
create or replace view order_cancellations with (security_invoker = true) as
select
    m.correlation_id as id, m.reference_id as order_id, json_agg(m order by m.id) as movements,
    (select to_json(r) from order_refunds as r where r.id = m.correlation_id and r.order_id = m.reference_id) as refund
from stock_ledger as m
where m.movement_type = 'release' and m.reference_type = 'cancellation'
group by m.correlation_id, m.reference_id;
comment on view order_cancellations is 'What was taken out of each order after its first parcel, with the refund of its money.';

-- An order with all that belongs to it.
create or replace view order_details with (security_invoker = true) as
select
    (select p.payment from order_payments as p where p.order_id = o.id and p.warehouse_id = o.warehouse_id) as payment,
    (
        select coalesce(json_agg(r order by r.id), '[]')
        from order_refunds as r
        where r.order_id = o.id
    ) as refunds,
    (
        select to_json(s)
        from saga_states as s
        where s.id = o.id and s.warehouse_id = o.warehouse_id
    ) as saga,
    (select l.items from order_lines as l where l.order_id = o.id and l.warehouse_id = o.warehouse_id) as items,
    o.*,
    told_returns(o.id) as returns,
    (select g.group_id from grouped_orders as g where g.order_id = o.id and g.warehouse_id = o.warehouse_id) as group_id,
    (select coalesce(json_agg(h order by h.created_at, h.id), '[]') from order_shipments as h where h.order_id = o.id) as shipments
from order_terms as o;
comment on view order_details is
    'Every order with its lines, what it costs and is for, its payment, its refunds, its parcels, its returns and where its saga stands.';

-- A quote as the API tells it: quote_order() in all, with its orders. Locks nothing. Raises: as that.
create or replace function summed_quote(p_warehouse_id uuid, p_items jsonb, p_currency text, p_adjustments jsonb)
returns table (
    currency text, subtotal numeric, shipping_total numeric, discount_total numeric, tax_total numeric, fee_total numeric,
    total_amount numeric, fits boolean, orders json
)
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select
        min(q.currency), sum(q.subtotal), sum(q.shipping_total), sum(q.discount_total), sum(q.tax_total), sum(q.fee_total),
        sum(q.total_amount), bool_and(q.fits),
        json_agg((to_jsonb(q) - '{warehouse_id,currency}'::text[]) || jsonb_build_object('warehouse', (
            select jsonb_build_object('id', w.id, 'code', w.code, 'name', w.name) from warehouses as w where w.id = q.warehouse_id
        )))
    from quote_order(p_warehouse_id, p_items, p_currency, p_adjustments) as q;
end;
comment on function summed_quote(uuid, jsonb, text, jsonb) is
    'For the API: what an order would cost and whether it fits, in all and for each order that would be placed.';

-- Whether an order, with those that were placed together with it, is decided: its stock is reserved,
-- which a pass may do and go on in one transaction, so any status past pending will do; or it was
-- refused. What gets no further before somebody acts is decided too: its saga has ended or is stuck, or
-- its plan waits for a signal. For whoever has placed it and waits. Null when there is no such order
-- for the caller. Runs as its owner for the plans. Locks nothing.
create or replace function order_is_decided(p_order_id uuid) returns boolean
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select bool_and(
        o.status <> 'pending' or s.ready_at is null
        or (s.status = 'waiting' and (
            select t.on_deadline is not null from saga_steps as t
            where t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position
        ))
    )
    from sagas as s
    inner join orders as o on o.id = s.id and o.warehouse_id = s.warehouse_id
    where s.id = any(array(
        select p_order_id
        union
        select m.order_id from grouped_orders as g
        inner join grouped_orders as m on m.group_id = g.group_id
        where g.order_id = p_order_id
    )) and may_know_of(p_order_id);
end;
comment on function order_is_decided(uuid) is
    'Whether an order, with those placed together with it, is decided: its stock is reserved, or it was refused, or somebody is waited for.';

-- Reconciliation. The gateway's list goes into a table of the session's own, which is
-- gone with it: it may be long, and nothing is written that anybody else could see.

-- Makes that table, gateway_payments, empty. For `copy gateway_payments from stdin`.
create or replace function open_gateway_books() returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    create temporary table gateway_payments (
        payment_key text not null,
        reference text not null,
        currency text not null,
        authorized numeric not null,
        captured numeric not null,
        refunded numeric not null,
        voided boolean not null,
        created_at timestamptz not null,
        disputed boolean
    );
end
$$;
comment on function open_gateway_books() is
    'Makes the session''s table gateway_payments, for what a gateway says of its payments.';

-- Every difference between our payments through a gateway and what gateway_payments
-- says of them, by payment key. Leaves alone what was made before p_since, on both
-- sides, and what has changed since p_settled, unless it is null: its calls may be in
-- flight. What another cell answers for is its own to compare: payments of which a copy was left here, and keys
-- that it has named; home for those that no cell has. For each kind of difference, see darkpearl/reconcile.py. Locks nothing.
create or replace function reconcile_payments(p_gateway text, p_since timestamptz, p_settled timestamptz)
returns table (payment_key text, kind text, here text, there text, reference text)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    return query
    with theirs as (
        -- One row per payment. What a gateway only prepared, and never charged, adds nothing.
        select
            g.payment_key,
            array_agg(g.reference order by g.created_at) as refs,
            min(g.currency) as currency,
            sum(g.authorized) as authorized,
            sum(g.captured) as captured,
            sum(g.refunded) as refunded,
            coalesce(bool_and(g.voided) filter (where g.authorized > 0), bool_or(g.voided)) as voided,
            count(*) filter (where g.authorized > 0 and not g.voided) as charges,
            max(g.created_at) as created_at,
            bool_or(g.disputed) as disputed
        from pg_temp.gateway_payments as g
        group by g.payment_key
    ),
    ours as (
        select
            p.*, array[p.warehouse_id] <@ (select closed_warehouses()) as is_copy, r.opened_at as refund_opened_at, r.updated_at as refund_updated_at,
            -- What went back by other means is none of the gateway's business.
            p.refunded_amount - coalesce(r.by_other_means, 0) as refunded_there,
            exists (
                select from disputes as d where d.order_id = p.order_id and d.warehouse_id = p.warehouse_id
            ) as disputed
        from (
            select
                q.order_id, q.warehouse_id, q.idempotency_key, q.gateway, q.gateway_reference, q.status, q.currency, q.requested_amount,
                q.authorized_amount, q.captured_amount, q.refunded_amount, q.created_at, q.updated_at, null as attempt_key
            from payments as q
            union all
            -- What came to nothing before another was tried kept nothing.
            select
                a.order_id, a.warehouse_id, a.idempotency_key, a.gateway, a.gateway_reference, a.status, q.currency, q.requested_amount,
                a.captured_amount, a.captured_amount, a.refunded_amount, q.created_at, a.ended_at, a.idempotency_key
            from payment_attempts as a
            inner join payments as q on q.order_id = a.order_id and q.warehouse_id = a.warehouse_id
        ) as p
        left join lateral (
            select
                min(r.created_at) filter (where r.status = 'requested') as opened_at,
                sum(r.amount) filter (where r.status = 'refunded' and r.gateway = 'other means') as by_other_means,
                max(r.updated_at) as updated_at
            from refunds as r
            where r.order_id = p.order_id and r.warehouse_id = p.warehouse_id and r.payment_key is not distinct from p.attempt_key
        ) as r on true
        where p.requested_amount > 0 and (p.gateway is null or p.gateway = p_gateway) and (
            p.created_at >= p_since
            or p.idempotency_key in (select t.payment_key from theirs as t)
        )
    ),
    both_sides as (
        select
            coalesce(o.idempotency_key, t.payment_key) as payment_key, array_to_string(t.refs, ' ') as reference,
            o.gateway_reference as our_reference, o.gateway_reference <> all(t.refs) as renamed,
            o.disputed as our_disputed, t.disputed,
            o.idempotency_key is not null as here, t.payment_key is not null as there,
            o.status, o.refund_opened_at,
            o.status in ('requested', 'pending', 'capture_requested', 'void_requested') as undecided,
            o.currency as our_currency, o.authorized_amount, o.captured_amount, o.refunded_there,
            t.currency, t.authorized, t.captured, t.refunded, t.charges,
            case
                when t.captured > 0 and t.refunded >= t.captured then 'refunded'
                when t.captured > 0 then 'captured'
                when t.voided then 'voided'
                when t.authorized > 0 then 'authorized'
                when t.payment_key is not null then 'not charged'
                else 'unknown'
            end as state
        from ours as o
        full join theirs as t on t.payment_key = o.idempotency_key
        where o.is_copy is not true
            and (
                o.idempotency_key is not null
                or t.created_at >= p_since and this_cell() = coalesce(
                    (select c.number from cells as c where c.number::text = substring(t.payment_key from '@([0-9]+)')), 1
                )
            )
            and coalesce(greatest(o.updated_at, o.refund_updated_at, t.created_at) < p_settled, true)
    )
    select b.payment_key, d.kind, d.here, d.there, b.reference
    from both_sides as b
    cross join lateral (
        values
        ('only_there', not b.here, 'unknown', b.state),
        (
            'only_here', b.here and not b.there and b.status in ('authorized', 'captured', 'refunded'),
            b.status::text, b.state
        ),
        ('charged_twice', b.charges > 1, 'once', b.charges || ' times'),
        (
            -- What waits for the payer's bank is open on both sides.
            'open_here',
            b.undecided and not (b.status = 'pending' and b.state in ('not charged', 'unknown')),
            b.status::text, b.state
        ),
        (
            'open_there', b.status in ('declined', 'voided') and b.state = 'authorized',
            b.status::text, b.state
        ),
        (
            'status', b.status = 'authorized' and b.state in ('voided', 'not charged'),
            b.status::text, b.state
        ),
        ('refund_open_here', b.refund_opened_at is not null, 'requested', b.state),
        ('currency', b.our_currency <> b.currency, b.our_currency, b.currency),
        ('reference', b.renamed, b.our_reference, b.reference),
        -- Not of a gateway that doesn't say.
        (
            'disputed', b.our_disputed <> b.disputed,
            case when b.our_disputed then 'yes' else 'no' end, case when b.disputed then 'yes' else 'no' end
        )
    ) as d (kind, holds, here, there)
    where d.holds
    union all
    select
        b.payment_key, d.kind,
        round(d.here, greatest(minor_units(b.currency), scale(trim_scale(d.here))))::text,
        round(d.there, greatest(minor_units(b.currency), scale(trim_scale(d.there))))::text,
        b.reference
    from both_sides as b
    cross join lateral (
        values
        -- A gateway may forget what it released; what both hold has to be the same.
        ('authorized', least(b.authorized_amount, b.authorized) > 0, b.authorized_amount, b.authorized),
        ('captured', true, b.captured_amount, b.captured),
        ('refunded', true, b.refunded_there, b.refunded)
    ) as d (kind, counts, here, there)
    where d.counts and d.here <> d.there and not b.undecided and b.our_currency = b.currency
    order by 1, 2;
end
$$;
comment on function reconcile_payments(text, timestamptz, timestamptz) is
    'Every difference between our payments and a gateway''s books, which open_gateway_books() made a table for.';
