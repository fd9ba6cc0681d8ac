-- Imports of stock: movements in a set whose problems are data, counts of many shelves, and the
-- two imports that are made of them. What runs as its owner takes arrays.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- A movement as an import asks for it, with the number of its line for an id. Locks nothing.
create or replace function asked_movement(
    p_line bigint, p_correlation_id uuid, p_warehouse_id uuid, p_product_id uuid, p_movement_type movement_type,
    p_quantity integer, p_reference_type text, p_reference_id uuid, p_notes text
) returns stock_movements
language sql immutable
return row(
    p_line, p_correlation_id, p_warehouse_id, p_product_id, p_movement_type, p_quantity, null, null,
    p_reference_type, p_reference_id, p_notes, null, null
)::stock_movements;
comment on function asked_movement(bigint, uuid, uuid, uuid, movement_type, integer, text, uuid, text) is
    'Internal: a movement as it is asked for, with the number of its line for an id.';

-- Movements in a set, each with what is wrong with it by itself, and whether it was written
-- before: then it is left out. The id of each is the number of its line; the two of a transfer
-- share one. Locks nothing.
create or replace function check_movements(p_movements stock_movements[])
returns table (movement stock_movements, is_known boolean, problem text)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select
        c.m, c.is_known,
        case
            when c.is_known then null
            when c.known_quantity is not null
                then format('the correlation id stands for %s of %s units', (c.m).movement_type, c.known_quantity)
            when c.fault is not null then c.fault
            when is_spent((c.m).correlation_id) then 'the correlation id was used before, or may have been'
            when c.place > 1 then 'another line has the same correlation id, type, product and warehouse'
            when c.ends <> 2 and (c.m).movement_type in ('transfer_out', 'transfer_in')
                then 'the other end of the transfer is missing'
        end
    from (
        select
            m, find_fault(m) as fault, k.quantity as known_quantity,
            k.quantity is not null and (k.quantity, k.reference_type, k.reference_id)
            is not distinct from (m.quantity, m.reference_type, m.reference_id) as is_known,
            row_number() over (
                partition by m.correlation_id, m.movement_type, m.product_id, m.warehouse_id order by m.id
            ) as place,
            count(*) over (
                partition by m.correlation_id, m.product_id, m.quantity,
                least(m.warehouse_id, m.reference_id), greatest(m.warehouse_id, m.reference_id)
            ) as ends
        from unnest(p_movements) as m
        left join lateral (
            select k.quantity, k.reference_type, k.reference_id
            from stock_movements as k
            where (k.correlation_id, k.movement_type, k.product_id, k.warehouse_id)
                >= (m.correlation_id, m.movement_type, m.product_id, m.warehouse_id)
                and (k.correlation_id, k.movement_type, k.product_id, k.warehouse_id)
                <= (m.correlation_id, m.movement_type, m.product_id, m.warehouse_id)
        ) as k on true
    ) as c;
end;
comment on function check_movements(stock_movements[]) is
    'Internal: what is wrong with each movement of a set by itself, and which were written before.';

-- Writes a set of movements, in the order of their lines, as an insert would, with problems as
-- data. The id of each is the number of its line; the two of a transfer share one.
-- Returns the lines that were not written: bad ones with their problem, and those that were
-- written before, without one. Unless p_skip_bad, nothing is written if there is a bad one.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function record_movements(p_movements stock_movements[], p_skip_bad boolean default false)
returns table (line bigint, problem text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_new stock_movements[];
    v_known bigint[];
    v_lines bigint[];
    v_problems text[];
    v_at bigint[];
    v_warehouses uuid[];
    v_products uuid[];
    v_changes integer[];
    v_fit bigint[];
begin
    select
        array_agg(distinct (c.movement).id) filter (where c.is_known and not c.is_bad),
        array_agg((c.movement).id) filter (where c.is_bad), array_agg(c.line_problem) filter (where c.is_bad),
        array_agg(c.movement order by (c.movement).id, (c.movement).movement_type) filter (where not c.is_known and not c.is_bad)
    into v_known, v_lines, v_problems, v_new
    from (
        select m.*, min(m.problem) over w as line_problem, min(m.problem) over w is not null as is_bad
        from check_movements(p_movements) as m
        window w as (partition by (m.movement).id)
    ) as c;

    select
        array_agg(m.id order by m.id, m.movement_type), array_agg(m.product_id order by m.id, m.movement_type),
        array_agg(m.warehouse_id order by m.id, m.movement_type),
        array_agg(case m.movement_type when 'transfer_out' then -m.quantity else m.quantity end order by m.id, m.movement_type)
    into v_at, v_products, v_warehouses, v_changes
    from unnest(v_new) as m;

    begin
        with weighed as materialized (
            select w.*, v_at[w.n] as line from weigh_movements(v_at, v_warehouses, v_products, v_changes) as w
        ),
        written as (
            insert into stock_movements (
                correlation_id, warehouse_id, product_id, movement_type, quantity, reference_type, reference_id,
                notes, actor, available_after, reserved_after
            )
            select
                m.correlation_id, m.warehouse_id, m.product_id, m.movement_type, m.quantity, m.reference_type, m.reference_id,
                m.notes, current_actor(), w.available_after, w.reserved_after
            from (select m.*, row_number() over (order by m.id, m.movement_type) as n from unnest(v_new) as m) as m
            inner join weighed as w on w.n = m.n and w.code is null
            order by m.n
        )
        select f.places, v_lines || b.lines, v_problems || b.problems into v_fit, v_lines, v_problems
        from (select array_agg(w.n) as places from weighed as w where w.code is null) as f
        cross join (
            select array_agg(l.line) as lines, array_agg(describe_misfit(l.code)) as problems
            from (select w.line, min(w.code) as code from weighed as w where w.code is not null group by w.line) as l
        ) as b;
        perform move_shelves(array_agg(v_warehouses[n]), array_agg(v_products[n]), array_agg(v_changes[n]))
        from unnest(v_fit) as n;
        if v_lines is not null and not p_skip_bad then
            perform refuse('DP025', 'some lines are bad', 'Each is returned with what is wrong.', 'Correct them, or leave them out.');
        end if;
    exception when sqlstate 'DP025' then
        null;  -- what was written is taken back, new shelves too; the problems stay
    end;
    return query select distinct l.* from unnest(v_lines || v_known, v_problems) as l (line, problem);
end
$$;
comment on function record_movements(stock_movements[], boolean) is
    'Writes a set of movements as an insert would, and returns the lines that were not: bad ones with their problem, known ones without. All or none, or without the bad.';

-- A stock-take of many shelves: makes those that are missing, and writes the difference of each
-- that was counted as an adjust movement; a null is no count. Returns the places in the arrays
-- of counts that can't be; unless p_skip_bad, nothing is written if there is one.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function count_shelves(
    p_warehouse_ids uuid[], p_product_ids uuid[], p_counted integer[], p_skip_bad boolean default false
) returns table (place bigint, problem text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_nestloop = off
as $$
declare
    v_operation constant uuid := new_id();
    v_counts stock_movements[];
begin
    perform make_shelves(p_warehouse_ids, p_product_ids);
    select array_agg(
        asked_movement(
            c.n, v_operation, s.warehouse_id, s.product_id, 'adjust', c.counted - s.quantity_available, null, null, 'stock-take'
        )
    )
    into v_counts
    from unnest(p_product_ids, p_warehouse_ids, p_counted) with ordinality as c (product_id, warehouse_id, counted, n)
    inner join unnest(lock_stock(p_warehouse_ids, p_product_ids)) as s using (product_id, warehouse_id)
    where c.counted <> s.quantity_available;
    return query
    select r.line, replace(r.problem, 'more would leave than can be sold', 'fewer were counted than are reserved')
    from record_movements(v_counts, p_skip_bad) as r;
end
$$;
comment on function count_shelves(uuid[], uuid[], integer[], boolean) is
    'A stock-take of many shelves: writes what was counted as adjust movements, and returns the counts that cannot be.';

-- Imports the lines of inventory_imports: each is a shelf, new or changed, known by its product
-- and warehouse. quantity_available is a count; reorder settings are set where they are given.
-- Returns as import_products() does. Locks: inventory by (product_id, warehouse_id).
create or replace function import_inventory(p_skip_bad boolean default false)
returns table (lines bigint, bad bigint, changed bigint)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_lines bigint[];
    v_places bigint[];
    v_problems text[];
begin
    perform resolve_lines('inventory_imports');
    update pg_temp.inventory_imports as l
    set problem = f.problem
    from (
        select l.line, case
            when count(*) over (partition by l.found_product, l.found_warehouse) > 1 then 'the shelf stands in another line too'
            when not is_units(l.quantity_available) then 'quantity_available is no number of units'
            when not is_units(l.reorder_point) then 'reorder_point is no number of units'
            when not is_units(l.reorder_quantity) then 'reorder_quantity is no number of units'
        end as problem
        from pg_temp.inventory_imports as l
        where l.problem is null
    ) as f
    where f.line = l.line and f.problem is not null;

    select count(*) into changed
    from pg_temp.inventory_imports as l
    left join inventory as i on i.product_id = l.found_product and i.warehouse_id = l.found_warehouse
    where l.problem is null and (
        i.id is null or l.quantity_available::integer <> i.quantity_available
        or l.reorder_point::integer <> i.reorder_point or l.reorder_quantity::integer <> i.reorder_quantity
    );
    if p_skip_bad or not exists (select from pg_temp.inventory_imports as l where l.problem is not null) then
        begin
            select l.lines, array_agg(c.place), array_agg(c.problem)
            into v_lines, v_places, v_problems
            from (
                select
                    array_agg(l.line order by l.line) as lines, array_agg(l.found_warehouse order by l.line) as warehouses,
                    array_agg(l.found_product order by l.line) as products,
                    array_agg(l.quantity_available::integer order by l.line) as counted
                from pg_temp.inventory_imports as l
                where l.problem is null
            ) as l
            left join lateral count_shelves(l.warehouses, l.products, l.counted, p_skip_bad) as c on true
            group by l.lines;
            if array_remove(v_places, null) <> '{}' and not p_skip_bad then
                perform refuse('DP025', 'some lines are bad', 'Each is returned with what is wrong.', 'Correct them, or leave them out.');
            end if;
            update inventory as i
            set reorder_point = coalesce(l.reorder_point::integer, i.reorder_point),
                reorder_quantity = coalesce(l.reorder_quantity::integer, i.reorder_quantity)
            from pg_temp.inventory_imports as l
            where l.problem is null and i.product_id = l.found_product and i.warehouse_id = l.found_warehouse
                and (l.reorder_point::integer <> i.reorder_point or l.reorder_quantity::integer <> i.reorder_quantity);
        exception when sqlstate 'DP025' then
            null;  -- new shelves are taken back; the problems stay
        end;
        update pg_temp.inventory_imports as l
        set problem = b.problem
        from unnest(v_places, v_problems) as b (place, problem)
        where l.line = v_lines[b.place];
    end if;
    select count(*), count(l.problem) into lines, bad from pg_temp.inventory_imports as l;
    changed := case when bad = 0 then changed when p_skip_bad then greatest(changed - cardinality(array_remove(v_places, null)), 0) else 0 end;
    return next;
end
$$;
comment on function import_inventory(boolean) is
    'Imports the lines of inventory_imports: what was counted, and when to reorder. Bad lines have their problem beside them.';

-- Writes down what is wrong with each staged movement by itself. Locks nothing.
create or replace function check_movement_lines() returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    update pg_temp.movement_imports as l
    set problem = f.problem
    from (
        select l.line, case
            when l.correlation_id is not null and read_uuid(l.correlation_id) is null then 'correlation_id is no UUID'
            when l.movement_type is null then 'movement_type is missing'
            when l.movement_type = 'transfer_in' then 'a transfer is one line: transfer_out with to_warehouse'
            when l.movement_type not in ('receive', 'adjust', 'transfer_out', 'reserve', 'release', 'fulfill')
                then format('there is no movement_type %s', left(l.movement_type, 50))
            when not coalesce(abs(read_integer(l.quantity)) between 1 and 1000000000, false)
                then 'quantity is no number of units'
            when l.movement_type = 'transfer_out' and l.to_warehouse is null then 'to_warehouse is missing'
            when l.movement_type <> 'transfer_out' and l.to_warehouse is not null
                then 'only a transfer_out has a to_warehouse'
            when l.to_warehouse is not null and w.id is null then format('there is no warehouse %s', l.to_warehouse)
            when w.cell <> this_cell() then format('to_warehouse belongs to another cell, %s', w.cell)
            when l.to_warehouse is not null and (l.reference_type is not null or l.reference_id is not null)
                then 'a transfer refers to its other warehouse'
            when l.reference_id is not null and read_uuid(l.reference_id) is null then 'reference_id is no UUID'
            when l.reason_code is not null and l.movement_type <> 'adjust' then 'only an adjust has a reason_code'
            when l.reason_code is not null and r.code is null then format('there is no reason_code %s', left(l.reason_code, 50))
            when length(l.notes) > 2000 then 'notes have more than 2000 characters'
        end as problem
        from pg_temp.movement_imports as l
        left join warehouses as w on w.code = l.to_warehouse
        left join adjustment_reasons as r on r.code = l.reason_code
        where l.problem is null
    ) as f
    where f.line = l.line and f.problem is not null;
end
$$;
comment on function check_movement_lines() is 'Internal: writes down what is wrong with each staged movement by itself.';

-- Imports the lines of movement_imports: each is a movement, or with to_warehouse both of a
-- transfer, in the order of the file. One that was written before, under its correlation id,
-- is left as it is. Returns as import_products() does; changed are the lines that moved stock.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function import_movements(p_skip_bad boolean default false)
returns table (lines bigint, bad bigint, changed bigint)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_movements stock_movements[];
begin
    perform resolve_lines('movement_imports');
    perform check_movement_lines();
    select count(*), count(l.problem) into lines, bad from pg_temp.movement_imports as l;
    changed := 0;
    if bad = 0 or p_skip_bad then
        select array_agg(e.movement)
        into v_movements
        from (
            select l.*, w.id as other, coalesce(read_uuid(l.correlation_id), new_id()) as operation
            from pg_temp.movement_imports as l
            left join warehouses as w on w.code = l.to_warehouse
            where l.problem is null
            offset 0  -- so that both of a transfer get the same operation
        ) as l
        cross join lateral (
            select asked_movement(
                l.line, l.operation, l.found_warehouse, l.found_product, l.movement_type::movement_type, l.quantity::integer,
                case when l.other is null then l.reference_type else 'warehouse' end,
                coalesce(l.other, read_uuid(l.reference_id)), l.notes
            ) as movement
            union all
            select asked_movement(
                l.line, l.operation, l.other, l.found_product, 'transfer_in', l.quantity::integer,
                'warehouse', l.found_warehouse, l.notes
            )
            where l.other is not null
        ) as e;

        with unwritten as materialized (select r.* from record_movements(v_movements, p_skip_bad) as r),
        told as (
            update pg_temp.movement_imports as l
            set problem = u.problem
            from unwritten as u
            where l.line = u.line and u.problem is not null
        ),
        reasoned as (
            insert into movement_reasons (correlation_id, product_id, warehouse_id, reason_code)
            select m.correlation_id, m.product_id, m.warehouse_id, l.reason_code
            from unnest(v_movements) as m
            inner join pg_temp.movement_imports as l on l.line = m.id and l.reason_code is not null
            where (p_skip_bad or not exists (select from unwritten as u where u.problem is not null))
                and not exists (select from unwritten as u where u.line = m.id)
        )
        select lines - bad - count(*), bad + count(u.problem) into changed, bad from unwritten as u;
        if bad > 0 and not p_skip_bad then
            changed := 0;
        end if;
    end if;
    return next;
end
$$;
comment on function import_movements(boolean) is
    'Imports the lines of movement_imports: receipts, corrections and transfers. Bad lines have their problem beside them.';

-- What an export writes, and an import reads: the shelves.
create or replace view exported_inventory with (security_invoker = true) as
select p.sku, w.code as warehouse, i.quantity_available, i.reorder_point, i.reorder_quantity
from inventory as i
inner join products as p on p.id = i.product_id
inner join warehouses as w on w.id = i.warehouse_id
order by w.code, p.sku;
comment on view exported_inventory is 'Every shelf, as an import reads it.';

-- The same of the ledger, in which a transfer is one line.
create or replace view exported_movements with (security_invoker = true) as
select
    m.correlation_id, m.movement_type, p.sku, w.code as warehouse, m.quantity, o.code as to_warehouse,
    case when o.id is null then m.reference_type end as reference_type,
    case when o.id is null then m.reference_id end as reference_id, m.notes, m.created_at, r.reason_code
from stock_movements as m
inner join products as p on p.id = m.product_id
inner join warehouses as w on w.id = m.warehouse_id
left join warehouses as o on m.movement_type = 'transfer_out' and o.id = m.reference_id
left join movement_reasons as r
    on m.movement_type = 'adjust' and r.correlation_id = m.correlation_id and r.product_id = m.product_id and r.warehouse_id = m.warehouse_id
where m.movement_type <> 'transfer_in'
order by m.id;
comment on view exported_movements is 'The ledger, as an import reads it.';
