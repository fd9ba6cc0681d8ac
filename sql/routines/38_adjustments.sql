-- Adjustments: what an order costs beside its lines. Shipping, tax and fees make it more,
-- discounts less. They are written by staff and applications, in the transaction that places the
-- order, and the database adds them to its total.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- What is wrong with a new adjustment of an order: code, message, detail and hint; null when
-- nothing is. p_is_placed: by an earlier transaction. p_sum: of all that are new in the order.
-- Locks nothing.
create or replace function fault_of_adjustment(
    p_order orders, p_is_placed boolean, p_order_id uuid, p_warehouse_id uuid, p_item_id bigint, p_amount numeric, p_sum numeric
) returns text[]
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
return case
    when (p_order).id is null then array[
        'DP010', 'order does not exist',
        format('There is no order %s in warehouse %s.', p_order_id, p_warehouse_id),
        'Insert the order and its order_items first, with the same warehouse_id, in one transaction.'
    ]
    when p_is_placed then array[
        'DP012', 'order is already placed',
        format('Order %s was not placed by this transaction; what it costs is frozen.', (p_order).id),
        'Insert an order, its order_items and its order_adjustments in one transaction; later, a refund gives money back.'
    ]
    when scale(trim_scale(p_amount)) > minor_units((p_order).currency) then array[
        'DP015', 'amount has too many decimals',
        format('%s is no amount of %s, which has %s decimals.',
            p_amount, (p_order).currency, minor_units((p_order).currency)),
        'Round it to what can be paid.'
    ]
    when p_item_id is not null and not exists (
        select from order_items as i
        where i.order_id = (p_order).id and i.warehouse_id = (p_order).warehouse_id and i.id = p_item_id
    ) then array[
        'DP010', 'no such line', format('Order %s has no line %s.', (p_order).id, p_item_id),
        'Insert the lines first, returning their ids.'
    ]
    when (p_order).total_amount + p_sum < 0 then array[
        'DP041', 'order would cost less than nothing',
        format('Order %s costs %s, and adjustments add %s.', (p_order).id, (p_order).total_amount, p_sum),
        'Take off no more than the rest costs; adjustments come after the lines.'
    ]
end;
comment on function fault_of_adjustment(orders, boolean, uuid, uuid, bigint, numeric, numeric) is
    'Internal: what is wrong with a new adjustment, as code, message, detail and hint.';

-- Trigger after a set of new adjustments: adds them to their orders' totals. Stands for a
-- foreign key from adjustments to orders and lines, as add_up_order_items() does.
-- Locks: the orders, which this transaction has just inserted.
-- Raises: DP010 when there is no such order or line, DP012 when the order was placed by an earlier
-- transaction, DP015 for an amount that can't be paid, or for more than 1000 of an order, DP041
-- when it would cost less than nothing.
create or replace function add_up_adjustments() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_fault text[];
    v_crowded uuid;
begin
    select f.fault into v_fault
    from (
        select a.order_id, a.warehouse_id, a.item_id, a.amount, sum(a.amount) over (partition by a.order_id, a.warehouse_id) as total
        from new_adjustments as a
    ) as n
    left join orders as o on o.id = any(array[n.order_id]) and o.warehouse_id = any(array[n.warehouse_id])
    cross join lateral fault_of_adjustment(
        o, o.placed_in is distinct from pg_current_xact_id() or age(o.xmin) > age(pg_current_xact_id()::xid),
        n.order_id, n.warehouse_id, n.item_id, n.amount, n.total
    ) as f (fault)
    where f.fault is not null
    limit 1;
    if found then
        perform refuse(v_fault[1], v_fault[2], v_fault[3], v_fault[4]);
    end if;

    update orders as o
    set total_amount = o.total_amount + a.amount
    from (
        select n.order_id, n.warehouse_id, sum(n.amount) as amount
        from new_adjustments as n
        group by n.order_id, n.warehouse_id
    ) as a
    where o.id = any(array[a.order_id]) and o.warehouse_id = any(array[a.warehouse_id]);

    select n.order_id into v_crowded
    from (select distinct n.order_id, n.warehouse_id from new_adjustments as n) as n
    where 1000 < (
        select count(*) from (
            select from order_adjustments as a where a.order_id = n.order_id and a.warehouse_id = n.warehouse_id limit 1001
        ) as a
    )
    limit 1;
    if found then
        perform refuse(
            'DP015', 'order has too many adjustments', format('Order %s would have more than 1000.', v_crowded),
            'Add those of a kind up into one.'
        );
    end if;
    return null;
end
$$;
comment on function add_up_adjustments() is 'Trigger: adds new adjustments to what their order costs, and freezes those of placed orders.';

create or replace trigger order_adjustments_add_up
after insert on order_adjustments
referencing new table as new_adjustments
for each statement execute function add_up_adjustments();

create or replace trigger order_adjustments_refuse_change
before update on order_adjustments
for each row execute function refuse_change();

create or replace trigger order_adjustments_refuse_removal
before delete on order_adjustments
for each row execute function refuse_change('order_id');

create or replace trigger order_adjustments_refuse_truncate
before truncate on order_adjustments
for each statement execute function refuse_change();

-- The adjustments of an array, [{"kind": "shipping", "label": "…", "amount": number, "item": place},
-- …]; item, which may be left out, is the place of a line in the order, counted from 0, of which
-- p_item_ids has the ids. An argument that is null has none. Locks nothing.
-- Raises: DP015 for what is no such array, with the place of the first that is none.
create or replace function read_adjustments(p_item_ids bigint[], p_adjustments jsonb)
returns table (kind adjustment_kind, label text, amount numeric, item_id bigint)
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_keys constant text[] := '{kind,label,amount,item}';
    v_place bigint;
    v_fault text;
begin
    if jsonb_typeof(p_adjustments) <> 'array' then
        perform refuse(
            'DP015', 'adjustments must be an array', format('p_adjustments is a JSON %s.', jsonb_typeof(p_adjustments)),
            'Pass [{"kind": "shipping", "label": "…", "amount": 4.90}].'
        );
    end if;
    select a.place, a.fault into v_place, v_fault
    from (
        select
            e.n - 1 as place,
            case
                when jsonb_typeof(e.a) <> 'object' then format('is a JSON %s', jsonb_typeof(e.a))
                when e.a - v_keys <> '{}' then format('has what no adjustment has: %s', left((e.a - v_keys)::text, 200))
                when e.a ->> 'kind' is null or e.a ->> 'kind' <> all (enum_range(null::adjustment_kind)::text[])
                    then format('has no kind of %s', array_to_string(enum_range(null::adjustment_kind), ', '))
                when e.a ->> 'label' is null then 'has no label'
                when e.a ->> 'amount' is null then 'has no amount'
                when e.a ->> 'amount' !~ '^-?[0-9]{1,12}(\.[0-9]{1,4}0{0,8})?$'
                    then format('has amount %s, which is none', left(e.a ->> 'amount', 50))
                when e.a ->> 'item' !~ '^[0-9]{1,9}$' or (e.a ->> 'item')::integer >= cardinality(p_item_ids)
                    then format('is of item %s, which the order doesn''t have', left(e.a ->> 'item', 50))
            end as fault
        from jsonb_array_elements(p_adjustments) with ordinality as e (a, n)
    ) as a
    where a.fault is not null
    order by a.place
    limit 1;
    if found then
        perform refuse(
            'DP015', 'adjustment makes no sense', format('adjustments[%s] %s.', v_place, v_fault),
            'An adjustment has kind, label and amount, and item if it is of one.'
        );
    end if;
    return query
    select a.kind, a.label, a.amount, p_item_ids[a.item + 1]
    from jsonb_to_recordset(p_adjustments) as a (kind adjustment_kind, label text, amount numeric, item integer);
end
$$;
comment on function read_adjustments(bigint[], jsonb) is
    'Internal: the adjustments of an array, refused by their place where one makes no sense.';
