-- Placing and cancelling. An order is placed by inserting it; place_order() is
-- the same in one call. The triggers here are the rules that hold for every
-- client: lines are priced by the catalogue, frozen once placed, added up by
-- the database, and an order has at least one.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Refuses an amount that cannot be paid, since it has more decimals than its
-- currency. Locks nothing. Raises: DP015.
create or replace function refuse_unpayable(p_amount numeric, p_currency text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if scale(trim_scale(p_amount)) > minor_units(p_currency) then
        perform refuse(
            'DP015', 'amount has too many decimals',
            format('%s is no amount of %s, which has %s decimals.', p_amount, p_currency, minor_units(p_currency)),
            'Round it to what can be paid.'
        );
    end if;
end
$$;
comment on function refuse_unpayable(numeric, text) is 'Internal: raises for an amount with more decimals than its currency has.';

-- Trigger on each new line: takes the price from the catalogue.
-- Locks nothing. Raises: DP002 when anybody but service_role names
-- another price, DP003 when the product is unknown or not sold any more,
-- DP015 when the price has more decimals than its currency.
create or replace function price_order_item() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_price amount;
    v_currency currency_code;
    v_active boolean;
begin
    select p.unit_price, p.currency, p.is_active into v_price, v_currency, v_active
    from products as p
    where p.id = new.product_id;

    if v_active is not true then
        perform refuse(
            'DP003', 'product cannot be ordered',
            case
                when new.product_id is null then 'A line has no product_id.'
                when v_active is null then format('There is no product %s.', new.product_id)
                else format('Product %s is not sold any more.', new.product_id)
            end,
            'Choose an active product: select id, sku from products where is_active.'
        );
    end if;

    if new.unit_price is null then
        new.unit_price := v_price;
    elsif new.unit_price <> v_price and not pg_has_role(current_user, 'service_role', 'usage') then
        perform refuse(
            'DP002', 'price is not the catalogue''s',
            format('Product %s costs %s; the line says %s.', new.product_id, v_price, new.unit_price),
            'Leave unit_price out. Only service_role may set another price.'
        );
    elsif new.unit_price <> v_price then
        perform refuse_unpayable(new.unit_price, v_currency);
    end if;
    return new;
end
$$;
comment on function price_order_item() is 'Trigger: gives each order line the price of the catalogue.';

create or replace trigger order_items_take_the_catalogue_price
before insert on order_items
for each row execute function price_order_item();

-- Trigger after a set of new lines: adds them to their orders' totals.
-- It stands for a foreign key from lines to orders, and does more: orders are
-- never deleted, and their keys never change.
-- Sets no plan_cache_mode: the check of the order's warehouse, which its update brings
-- about, would be planned under it, and then anew for each order that is inserted.
-- Locks: the orders, which this transaction has just inserted.
-- Raises: DP003 when a product is priced in another currency than its order,
-- DP010 when there is no such order, DP012 when it was placed by an earlier
-- transaction.
create or replace function add_up_order_items() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_wrong record;
begin
    update orders as o
    set total_amount = o.total_amount + i.line_total
    from (
        select n.order_id, n.warehouse_id, sum(n.line_total) as line_total
        from new_items as n
        group by n.order_id, n.warehouse_id
    ) as i
    where o.id = any(array[i.order_id]) and o.warehouse_id = any(array[i.warehouse_id])
        and o.placed_in = pg_current_xact_id() and age(o.xmin) <= age(pg_current_xact_id()::xid);

    select
        n.order_id, n.warehouse_id, n.product_id, p.currency as product_currency, o.currency as order_currency,
        -- The age of the row tells apart a transaction of this cluster from one of the cluster
        -- that an order was restored from. A time wouldn't: clocks are set back.
        o.placed_in is distinct from pg_current_xact_id() or age(o.xmin) > age(pg_current_xact_id()::xid) as late
    into v_wrong
    from new_items as n
    left join orders as o on o.id = any(array[n.order_id]) and o.warehouse_id = any(array[n.warehouse_id])
    left join products as p on p.id = any(array[n.product_id])
    where o.placed_in is distinct from pg_current_xact_id()
        or age(o.xmin) > age(pg_current_xact_id()::xid)
        or p.currency <> o.currency
    limit 1;
    if found and v_wrong.order_currency is null then
        perform refuse(
            'DP010', 'order does not exist',
            format('There is no order %s in warehouse %s.', v_wrong.order_id, v_wrong.warehouse_id),
            'Insert the order first, then its order_items with the same warehouse_id, in one transaction.'
        );
    elsif found and v_wrong.late then
        perform refuse(
            'DP012', 'order is already placed',
            format('Order %s was not placed by this transaction; its lines are frozen.', v_wrong.order_id),
            'Insert an order and its order_items, with the same warehouse_id, in one transaction, or place a new order.'
        );
    elsif found then
        perform refuse(
            'DP003', 'product is sold in another currency',
            format(
                'Product %s is priced in %s, order %s is in %s.',
                v_wrong.product_id, v_wrong.product_currency, v_wrong.order_id, v_wrong.order_currency
            ),
            'Place one order per currency.'
        );
    end if;
    return null;
end
$$;
comment on function add_up_order_items() is 'Trigger: keeps total_amount the sum of the lines and the lines of placed orders frozen.';

create or replace trigger order_items_add_up
after insert on order_items
referencing new table as new_items
for each statement execute function add_up_order_items();

create or replace trigger order_items_refuse_change
before update on order_items
for each row execute function refuse_change();

create or replace trigger order_items_refuse_removal
before delete on order_items
for each row execute function refuse_change('order_id');

create or replace trigger order_items_refuse_truncate
before truncate on order_items
for each statement execute function refuse_change();

-- Trigger at commit: an order has lines. Locks nothing. Raises DP001.
create or replace function refuse_empty_order() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if not exists (
        select from order_items as i
        where i.order_id = new.id and i.warehouse_id = new.warehouse_id
    ) then
        perform refuse(
            'DP001', 'order has no lines',
            format('Order %s was to be committed without order_items.', new.id),
            'Insert the order and its order_items in one transaction, or call place_order().'
        );
    end if;
    return null;
end
$$;
comment on function refuse_empty_order() is 'Constraint trigger, checked at commit: an order has at least one line.';

do $$
begin
    if not exists (
        select from pg_trigger
        where tgrelid = 'orders'::regclass and tgname = 'orders_have_items'
    ) then
        create constraint trigger orders_have_items
        after insert on orders
        deferrable initially deferred
        for each row execute function refuse_empty_order();
    end if;
end
$$;

-- Trigger: refuses a status that cannot follow the present one. One transaction
-- may take several steps, so the pairs skip the statuses that nobody could have
-- seen (pending to payment_processing passes reserved). Locks nothing. Raises DP004.
create or replace function refuse_status() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if old.status <> new.status and new.status <> all (
        case old.status
            when 'pending' then '{reserved, payment_processing, paid, fulfilled, cancelled}'::order_status[]
            when 'reserved' then '{payment_processing, paid, fulfilling, fulfilled, cancelled}'
            when 'payment_processing' then '{payment_failed, paid, fulfilling, fulfilled, cancelled}'
            when 'payment_failed' then '{payment_processing, paid, fulfilling, fulfilled, cancelled}'
            when 'paid' then '{fulfilling, fulfilled, cancelled}'
            when 'fulfilling' then '{fulfilled, cancelled}'
            else '{}'
        end
    ) then
        perform refuse(
            'DP004', format('order cannot go from %s to %s', old.status, new.status),
            format('Order %s is %s.', old.id, old.status),
            'The status is the saga''s to set. To stop an order, call cancel_order().'
        );
    end if;
    return null;
end
$$;
comment on function refuse_status() is 'Trigger: raises for an order status that cannot follow the present one.';

-- Skips the two ways that nearly every order goes: from anywhere up to
-- payment_processing on to there, and on to fulfilled. The condition is short, since
-- every statement reads it from text anew. It comes AFTER the update, since before one
-- every row is locked first.
create or replace trigger orders_follow_the_allowed_transitions
after update of status on orders
for each row
when (new.status <> all ('{payment_processing, fulfilled}') or old.status > 'payment_processing')
execute function refuse_status();

-- Trigger: an order never changes its warehouse, its number, its currency, its customer or its deadline.
create or replace trigger orders_keep_their_identity
after update of id, warehouse_id, order_number, placed_in, created_at, currency, customer_id, pay_by on orders
for each row
when (
    (old.id, old.warehouse_id, old.order_number, old.placed_in, old.created_at, old.currency)
    is distinct from
    (new.id, new.warehouse_id, new.order_number, new.placed_in, new.created_at, new.currency)
    or (old.customer_id, old.pay_by) is distinct from (new.customer_id, new.pay_by)
)
execute function refuse_change();

create or replace trigger orders_refuse_removal
before delete on orders
for each row execute function refuse_change('id');

create or replace trigger orders_refuse_truncate
before truncate on orders
for each statement execute function refuse_change();

-- Refuses a moment until which no stock can be held. Locks nothing. Raises: DP015.
create or replace function refuse_odd_deadline(p_pay_by timestamptz) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if p_pay_by <= clock() or p_pay_by > clock() + interval '366 days' then
        perform refuse(
            'DP015', 'pay_by makes no sense', format('pay_by is %s, now is %s.', p_pay_by, date_trunc('second', clock())),
            'Name a moment to come, a year from now at most.'
        );
    end if;
end
$$;
comment on function refuse_odd_deadline(timestamptz) is 'Internal: refuses a moment until which no stock can be held.';

-- Trigger: a new order is pending, worth nothing yet, goes to a warehouse that
-- takes orders, and a customer's is the customer's own. Locks nothing.
-- Raises: DP003, DP015 for a pay_by that makes no sense, DP050.
create or replace function start_order_clean() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    new.status := 'pending';
    new.total_amount := 0;
    new.placed_in := pg_current_xact_id();
    new.customer_id := coalesce(new.customer_id, current_customer());
    if new.pay_by is not null then
        perform refuse_odd_deadline(new.pay_by);
    end if;
    if not exists (select from warehouses as w where w.id = new.warehouse_id and w.is_active and w.cell = this_cell()) then
        perform refuse_elsewhere(array[new.warehouse_id]);
        perform refuse(
            'DP003', 'warehouse takes no orders',
            format('Warehouse %s is unknown or inactive.', new.warehouse_id),
            'Choose an active one: select id, code from warehouses where is_active.'
        );
    end if;
    return new;
end
$$;
comment on function start_order_clean() is 'Trigger: a new order starts pending with a total of zero, in an active warehouse.';

create or replace trigger orders_start_clean
before insert on orders
for each row execute function start_order_clean();

-- Trigger: orders are grouped by the transaction that places them, those of one customer, under
-- the id of one of them. Locks nothing. Raises: DP015.
create or replace function refuse_group_of_strangers() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if not exists (
        select from orders as o
        inner join orders as f on f.id = any(array[new.group_id])
        where o.id = new.order_id and o.warehouse_id = new.warehouse_id
            and o.placed_in = pg_current_xact_id() and f.placed_in = pg_current_xact_id()
            and o.customer_id is not distinct from f.customer_id
    ) then
        perform refuse(
            'DP015', 'orders were not placed together',
            format('Order %s was to be in group %s.', new.order_id, new.group_id),
            'Group orders in the transaction that places them, under the id of the first.'
        );
    end if;
    return new;
end
$$;
comment on function refuse_group_of_strangers() is 'Trigger: refuses to group orders that one transaction has not placed for one customer.';

create or replace trigger grouped_orders_are_placed_together
before insert on grouped_orders
for each row execute function refuse_group_of_strangers();

create or replace trigger grouped_orders_refuse_change
before update on grouped_orders
for each row execute function refuse_change();

create or replace trigger grouped_orders_refuse_removal
before delete on grouped_orders
for each row execute function refuse_change('order_id');

create or replace trigger grouped_orders_refuse_truncate
before truncate on grouped_orders
for each statement execute function refuse_change();

-- Places an order that names no warehouse: by the first that can serve all of it, else by as few
-- as can, as one order for each, in a group that has the id of the first. All or nothing: what
-- all together can't serve is refused, and nothing is placed; there is nothing to undo then, and
-- the same may be asked for again under the same id. All are for what p_particulars says, but the
-- reference, which no two orders share, is the first's. Of p_adjustments see share_of_adjustments().
-- Locks only the rows that it inserts. Raises: as source_items() and place_order().
create or replace function place_sourced_order(
    p_items jsonb, p_customer_id text, p_notes text, p_currency text, p_order_id uuid, p_payment_token text,
    p_particulars jsonb, p_adjustments jsonb, p_pay_by timestamptz
) returns orders
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_part record;
    v_orders orders[] := '{}';
    v_before bigint[] := '{}';
    v_id uuid := p_order_id;
    v_particulars jsonb := p_particulars;
begin
    for v_part in select s.warehouse_id, s.items, s.places from source_items(p_items) as s loop
        v_orders := v_orders || place_order(
            v_part.warehouse_id, v_part.items, p_customer_id, p_notes, p_currency, v_id, p_payment_token, v_particulars,
            share_of_adjustments(p_adjustments, v_part.places, v_before, jsonb_array_length(p_items)), p_pay_by
        );
        v_before := v_before || v_part.places;
        v_id := new_id();
        v_particulars := nullif(p_particulars - 'reference', '{}');
    end loop;
    if cardinality(v_orders) > 1 then
        insert into grouped_orders (order_id, warehouse_id, group_id)
        select o.id, o.warehouse_id, p_order_id
        from unnest(v_orders) as o;
    end if;
    return v_orders[1];
end
$$;
comment on function place_sourced_order(jsonb, text, text, text, uuid, text, jsonb, jsonb, timestamptz) is
    'Internal: places an order that names no warehouse, with those that can serve it.';

-- Places an order in one call, as the two inserts would: all rules are the
-- tables' own. Without a warehouse see place_sourced_order().
--
-- p_items: [{"product_id": uuid, "quantity": int, "unit_price": number}, …], or "sku"
-- instead of product_id; unit_price only from service_role, and "metadata" not from customers.
-- p_payment_token: the payer's means of payment, as the gateway calls it. p_particulars: what
-- the order is for, as update_order() takes it. p_adjustments: what it costs beside its lines,
-- [{"kind": "shipping", "label": "…", "amount": number, "item": place}, …]. p_pay_by: until when
-- its stock is held for a payment that comes later, see 66_held_orders.sql.
-- Locks only the rows that it inserts.
-- Raises: DP001, DP002, DP003, DP006 when no warehouse is named and none has enough, DP015 for
-- items that are no such array: see read_items(), or a pay_by that makes no sense; 42501 for a
-- customer's pay_by; as refuse_wrong_particulars().
create or replace function place_order(
    p_warehouse_id uuid default null,
    p_items jsonb default null,
    p_customer_id text default null,
    p_notes text default null,
    p_currency text default 'USD',
    p_order_id uuid default new_id(),
    p_payment_token text default null,
    p_particulars jsonb default null,
    p_adjustments jsonb default null,
    p_pay_by timestamptz default null
) returns orders
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if p_items is null then
        perform refuse('DP015', 'items must be an array', 'p_items is null.', 'Pass [{"product_id": "…", "quantity": 1}].');
    end if;

    if p_warehouse_id is null then
        return place_sourced_order(
            p_items, p_customer_id, p_notes, p_currency, p_order_id, p_payment_token, p_particulars, p_adjustments, p_pay_by
        );
    end if;

    -- Customers may not so much as name pay_by, nor an item's metadata.
    if p_pay_by is not null and not has_column_privilege('orders', 'pay_by', 'insert') then
        perform refuse('42501', 'pay_by is the shop''s', 'A customer was to say how long stock is held.', 'Leave pay_by out.');
    elsif p_pay_by is not null then
        insert into orders (id, warehouse_id, customer_id, notes, currency, pay_by)
        values (p_order_id, p_warehouse_id, p_customer_id, p_notes, p_currency, p_pay_by);
    else
        insert into orders (id, warehouse_id, customer_id, notes, currency)
        values (p_order_id, p_warehouse_id, p_customer_id, p_notes, p_currency);
    end if;

    if p_items @? '$[*].metadata' then
        insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price, metadata)
        select p_order_id, p_warehouse_id, i.product_id, i.quantity, i.unit_price, i.metadata
        from read_items(p_items, '{product_id, sku, quantity, unit_price, metadata}') as i;
    else
        insert into order_items (order_id, warehouse_id, product_id, quantity, unit_price)
        select p_order_id, p_warehouse_id, i.product_id, i.quantity, i.unit_price
        from read_items(p_items, '{product_id, sku, quantity, unit_price}') as i;
    end if;
    if not found then
        perform refuse('DP001', 'order has no lines', 'p_items is an empty array.', 'Pass at least one item.');
    end if;

    if p_payment_token is not null then
        insert into payment_tokens (order_id, warehouse_id, token)
        values (p_order_id, p_warehouse_id, p_payment_token);
    end if;

    if p_adjustments is not null then
        insert into order_adjustments (order_id, warehouse_id, kind, label, amount, item_id)
        select p_order_id, p_warehouse_id, a.kind, a.label, a.amount, a.item_id
        from read_adjustments(
            array(select i.id from order_items as i where (i.order_id, i.warehouse_id) = (p_order_id, p_warehouse_id) order by i.id), p_adjustments
        ) as a;
    end if;

    if p_particulars is not null then
        perform update_order(p_order_id, p_particulars);
    end if;
    return (select o from orders as o where o.id = p_order_id and o.warehouse_id = p_warehouse_id);
end
$$;
comment on function place_order(uuid, jsonb, text, text, text, uuid, text, jsonb, jsonb, timestamptz) is
    'Places an order: place_order(warehouse_id, ''[{"product_id": "…", "quantity": 2}]''). Returns the order; its saga starts at commit. Without a warehouse, the first order of those that serve it: see order_groups.';
