-- Movements in sets: an application's insert into stock_movements, of one row or of many, and
-- what an import brings. Both are weighed here, by the laws of receive_stock(), adjust_stock()
-- and transfer_stock(), and each shelf is written once.
--
-- A row that an application inserts gets its quantities when the statement ends, once all of
-- its shelves are locked in the order of the house. Until then its available_after is -1, or
-- -2 if there is something wrong with it, and reserved_after is its number in the statement.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Makes the shelves that a set of movements needs and that aren't there; products and
-- warehouses that don't exist get none. Before any shelf is locked, and in key order: who
-- waits here for another's new shelf holds none that the other could wait for.
-- Locks: what it inserts.
create or replace function make_shelves(p_warehouse_ids uuid[], p_product_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    insert into inventory (product_id, warehouse_id)
    select k.product_id, k.warehouse_id
    from (
        select distinct l.product_id, l.warehouse_id
        from unnest(p_product_ids, p_warehouse_ids) as l (product_id, warehouse_id)
        order by l.product_id, l.warehouse_id
    ) as k
    inner join products as p on p.id = any(array[k.product_id])
    inner join warehouses as w on w.id = any(array[k.warehouse_id])
    where not exists (
        select from inventory as i
        where i.product_id = any(array[k.product_id]) and i.warehouse_id = any(array[k.warehouse_id])
    )
    order by k.product_id, k.warehouse_id
    on conflict (product_id, warehouse_id) do nothing;
end
$$;
comment on function make_shelves(uuid[], uuid[]) is
    'Internal: makes the inventory rows that a set of movements needs and that are not there yet.';

-- Goes through movements one by one, in the order given, and says which don't fit where they
-- should go: the numbers of their lines. A line is one movement, or the two of a transfer, next
-- to each other, which stand or fall together. For sets in which something doesn't fit.
-- p_on_hand, p_reserved: what is on each shelf; p_shelves: which of them each movement is for,
-- null for none. Locks nothing.
create or replace function find_misfits(
    p_on_hand bigint[], p_reserved bigint[], p_lines bigint[], p_shelves integer[], p_changes integer[]
) returns bigint[]
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
declare
    v_on_hand bigint[] := p_on_hand;
    v_misfits bigint[] := '{}';
    v_misfit bigint;
    v_left bigint;
begin
    for v_at in 1 .. cardinality(p_lines) loop
        continue when p_lines[v_at] = v_misfit;
        v_left := v_on_hand[p_shelves[v_at]] + p_changes[v_at];
        if p_shelves[v_at] is null or v_left > 1000000000
            or (p_changes[v_at] < 0 and v_left < p_reserved[p_shelves[v_at]])
        then
            v_misfit := p_lines[v_at];
            v_misfits := v_misfits || v_misfit;
            if p_lines[v_at - 1] = v_misfit and p_shelves[v_at - 1] is not null then
                v_on_hand[p_shelves[v_at - 1]] := v_on_hand[p_shelves[v_at - 1]] - p_changes[v_at - 1];
            end if;
        else
            v_on_hand[p_shelves[v_at]] := v_left;
        end if;
    end loop;
    return v_misfits;
end
$$;
comment on function find_misfits(bigint[], bigint[], bigint[], integer[], integer[]) is
    'Internal: the lines of a set of movements that do not fit their shelves, when they are made one by one.';

-- Weighs a set of movements, aligned arrays in the order in which they are to happen: locks
-- their shelves, making those that are missing, and says of each what is on its shelf after
-- it, or why it can't be. What can't be is left out of what comes after it.
-- The answer is aligned with the arrays. Writes nothing but new shelves.
-- Locks: inventory by (product_id, warehouse_id). Raises: DP050.
create or replace function weigh_movements(
    p_lines bigint[], p_warehouse_ids uuid[], p_product_ids uuid[], p_changes integer[]
) returns table (n bigint, available_after integer, reserved_after integer, code text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_nestloop = off
as $$
declare
    v_locked locked_stock[];
    v_shelves integer[];
    v_misfits bigint[] := '{}';
begin
    perform refuse_elsewhere(p_warehouse_ids);
    perform make_shelves(p_warehouse_ids, p_product_ids);
    v_locked := coalesce(lock_stock(p_warehouse_ids, p_product_ids), '{}');

    select array_agg(s.shelf::integer order by m.n)
    into v_shelves
    from unnest(p_product_ids, p_warehouse_ids) with ordinality as m (product_id, warehouse_id, n)
    left join unnest(v_locked) with ordinality
        as s (product_id, warehouse_id, quantity_available, quantity_reserved, shelf)
        using (product_id, warehouse_id);

    if exists (
        select from (
            select
                m.shelf, m.change < 0 as leaves,
                sum(m.change) over (partition by m.shelf order by m.n) as running
            from unnest(v_shelves, p_changes) with ordinality as m (shelf, change, n)
        ) as m
        left join unnest(v_locked) with ordinality
            as s (product_id, warehouse_id, quantity_available, quantity_reserved, shelf)
            using (shelf)
        where s.shelf is null or s.quantity_available + m.running > 1000000000
            or (m.leaves and s.quantity_available + m.running < s.quantity_reserved)
    ) then
        select find_misfits(
            array_agg(s.quantity_available::bigint order by s.n),
            array_agg(s.quantity_reserved::bigint order by s.n), p_lines, v_shelves, p_changes
        )
        into v_misfits
        from unnest(v_locked) with ordinality
            as s (product_id, warehouse_id, quantity_available, quantity_reserved, n);
    end if;
    return query
    select
        m.n,
        s.quantity_available
        + (sum(case when b.line is null then m.change else 0 end) over (partition by m.shelf order by m.n))::integer,
        s.quantity_reserved,
        case
            when b.line is null then null
            when s.shelf is null then 'DP010'
            when m.change < 0 then 'DP006'
            else 'DP015'
        end
    from unnest(v_shelves, p_changes, p_lines) with ordinality as m (shelf, change, line, n)
    left join unnest(v_locked) with ordinality
        as s (product_id, warehouse_id, quantity_available, quantity_reserved, shelf)
        using (shelf)
    left join unnest(v_misfits) as b (line) on b.line = m.line;
end
$$;
comment on function weigh_movements(bigint[], uuid[], uuid[], integer[]) is
    'Internal: locks the shelves of a set of movements, and says what is on each after each, or why it cannot be.';

-- What is wrong with a movement that has one of these codes, in words. Locks nothing.
create or replace function describe_misfit(p_code text) returns text
language sql immutable
return case p_code
    when 'DP006' then 'more would leave than can be sold'
    when 'DP010' then 'there is no such product, or no such warehouse'
    else 'the shelf would hold more than 1000000000 units'
end;
comment on function describe_misfit(text) is 'Internal: why a movement does not fit its shelf, in words.';

-- Moves each shelf of a set of movements once, by the sum of its changes. The shelves are
-- locked, and the movements weighed.
create or replace function move_shelves(p_warehouse_ids uuid[], p_product_ids uuid[], p_changes integer[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    update inventory as i
    set quantity_available = i.quantity_available + m.change, updated_at = clock(), version = i.version + 1
    from (
        select l.product_id, l.warehouse_id, sum(l.change)::integer as change
        from unnest(p_product_ids, p_warehouse_ids, p_changes) as l (product_id, warehouse_id, change)
        group by l.product_id, l.warehouse_id
        order by l.product_id, l.warehouse_id
    ) as m
    where i.product_id = any(array[m.product_id]) and i.warehouse_id = any(array[m.warehouse_id]);
end
$$;
comment on function move_shelves(uuid[], uuid[], integer[]) is
    'Internal: changes the units on the shelves of a set of movements, each shelf once.';

-- Refuses a statement for some of its rows, with all that is wrong: the first hundred rows as a
-- JSON array. The code is that of the rows if it is one, else DP025. Locks nothing.
create or replace function refuse_rows(p_wrong jsonb[], p_rows bigint) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_code text;
    v_detail text;
begin
    select case when count(distinct w ->> 'code') = 1 then min(w ->> 'code') else 'DP025' end
    into v_code
    from unnest(p_wrong) as w;

    select jsonb_agg(w order by (w ->> 'row')::bigint)::text
    into v_detail
    from (select w from unnest(p_wrong) as w order by (w ->> 'row')::bigint limit 100) as f (w);

    perform refuse(
        v_code, format('%s of %s rows can''t be taken', cardinality(p_wrong), p_rows), v_detail,
        'DETAIL names the rows, the first hundred at most. Nothing was written: leave them out or correct them.'
    );
end
$$;
comment on function refuse_rows(jsonb[], bigint) is
    'Internal: refuses a statement for some of its rows, and names them with what is wrong.';

-- A row of a statement that can't be taken, as refuse_rows() tells of it. Locks nothing.
create or replace function describe_row(
    p_row bigint, p_code text, p_problem text, p_product_id uuid, p_warehouse_id uuid
) returns jsonb
language sql immutable
return jsonb_build_object(
    'row', p_row, 'code', p_code, 'problem', p_problem, 'product_id', p_product_id, 'warehouse_id', p_warehouse_id
);
comment on function describe_row(bigint, text, text, uuid, uuid) is
    'Internal: a row of a statement and what is wrong with it, as JSON.';

-- Why a movement as such makes no sense, or null: before anything is looked up. Stable, as the
-- names of enums are, so that it can be inlined. Locks nothing.
create or replace function find_fault(p_movement stock_movements) returns text
language sql stable
return case
    when p_movement.product_id is null then 'product_id is missing'
    when p_movement.warehouse_id is null then 'warehouse_id is missing'
    when p_movement.correlation_id is null then 'correlation_id is null: leave it out or name the operation'
    when p_movement.movement_type is null then 'movement_type is missing'
    when p_movement.movement_type in ('reserve', 'release', 'fulfill')
        then format('a %s is written by an order''s saga alone', p_movement.movement_type)
    when p_movement.movement_type = 'balance' then 'a balance is written by retention alone'
    when coalesce(p_movement.quantity, 0) = 0 then 'quantity is zero or missing'
    when p_movement.quantity < 0 and p_movement.movement_type <> 'adjust' then 'only an adjust may be negative'
    when abs(p_movement.quantity::bigint) > 1000000000 then 'quantity is more than a shelf can hold'
    when length(p_movement.reference_type) > 50 then 'reference_type has more than 50 characters'
    when p_movement.movement_type not in ('transfer_out', 'transfer_in') then null
    when p_movement.reference_id is null then 'a transfer names its other warehouse in reference_id'
    when p_movement.reference_id = p_movement.warehouse_id then 'a transfer needs two warehouses'
    when p_movement.reference_type <> 'warehouse' then 'the reference_type of a transfer is warehouse'
end;
comment on function find_fault(stock_movements) is 'Internal: what is wrong with a movement that is asked for, by itself.';

-- Trigger before the insert of a statement of an application: its rows are counted from one.
create or replace function count_movements_anew() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform set_config('darkpearl.inserted_rows', '0', true), set_config('darkpearl.repeated_rows', '0', true);
    return null;
end
$$;
comment on function count_movements_anew() is 'Trigger: the rows of a statement that inserts movements are counted from one.';

create or replace trigger stock_movements_are_counted
before insert on stock_movements
for each statement when (current_user <> 'darkpearl_owner')
execute function count_movements_anew();

-- Trigger before an application's row: signs it, and leaves it out if it has been written
-- already, under the same correlation id with the same content. What is wrong with it is
-- written into its notes, for move_inserted_stock() to tell of all rows at once.
-- Locks nothing.
create or replace function take_in_movement() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_row constant integer := current_setting('darkpearl.inserted_rows')::integer + 1;
    v_known stock_movements;
    v_code text := 'DP015';
    v_fault text := find_fault(new);
begin
    perform set_config('darkpearl.inserted_rows', v_row::text, true);
    new.created_at := clock();
    new.actor := current_actor();
    new.available_after := -1;
    new.reserved_after := v_row;
    if new.movement_type in ('transfer_out', 'transfer_in') then
        new.reference_type := 'warehouse';
    end if;

    -- As rows, since the index of the key alone can be searched by that, under every plan.
    select m.* into v_known
    from stock_movements as m
    where (m.correlation_id, m.movement_type, m.product_id, m.warehouse_id)
        >= (new.correlation_id, new.movement_type, new.product_id, new.warehouse_id)
        and (m.correlation_id, m.movement_type, m.product_id, m.warehouse_id)
        <= (new.correlation_id, new.movement_type, new.product_id, new.warehouse_id);
    if v_known.correlation_id is not null and v_fault is null then
        if (v_known.quantity, v_known.reference_type, v_known.reference_id)
            is not distinct from (new.quantity, new.reference_type, new.reference_id)
        then
            perform set_config(
                'darkpearl.repeated_rows', (current_setting('darkpearl.repeated_rows')::integer + 1)::text, true
            );
            return null;
        end if;
        v_code := 'DP011';
        v_fault := format('correlation id %s stands for %s of %s units', new.correlation_id, new.movement_type, v_known.quantity);
    end if;
    if v_fault is not null then
        new.notes := describe_row(v_row, v_code, v_fault, new.product_id, new.warehouse_id);
        -- The statement will be refused; until then the row keeps the laws of its table.
        new.available_after := -2;
        new.correlation_id := new_id();
        new.product_id := coalesce(new.product_id, new_id());
        new.warehouse_id := coalesce(new.warehouse_id, new_id());
        new.movement_type := 'adjust';
        new.quantity := 1;
        new.reference_type := null;
    end if;
    return new;
end
$$;
comment on function take_in_movement() is 'Trigger: a movement that an application inserts is signed, and left out if it was written already.';

create or replace trigger stock_movements_are_taken_in
before insert on stock_movements
for each row when (new.available_after is null and current_user <> 'darkpearl_owner')
execute function take_in_movement();

-- Gives the movements of a statement, weighed, what is on their shelves after them. Where
-- somebody else wrote a movement meanwhile, at a shelf that is locked only now, that one came
-- first: those of the statement get later ids. The arrays are in the order of the statement.
create or replace function complete_movements(
    p_ids bigint[], p_warehouse_ids uuid[], p_product_ids uuid[], p_available integer[], p_reserved integer[]
) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_late boolean[];
begin
    select array_agg(s.is_late order by k.n)
    into v_late
    from unnest(p_product_ids, p_warehouse_ids) with ordinality as k (product_id, warehouse_id, n)
    inner join (
        select
            l.product_id, l.warehouse_id,
            exists (
                select from stock_movements as m
                where m.product_id = l.product_id and m.warehouse_id = l.warehouse_id
                    and m.id > p_ids[1] and m.available_after >= 0
            ) as is_late
        from unnest(p_product_ids, p_warehouse_ids) as l (product_id, warehouse_id)
        group by l.product_id, l.warehouse_id
    ) as s using (product_id, warehouse_id);

    if true = any(v_late) then
        update stock_movements as m
        set id = default, available_after = a.available_after, reserved_after = a.reserved_after
        from (
            select a.*
            from unnest(p_ids, p_available, p_reserved, v_late) as a (id, available_after, reserved_after, is_late)
            where a.is_late
            order by a.id
        ) as a
        where m.id = any(array[a.id]) and m.available_after = -1;
    end if;
    update stock_movements as m
    set available_after = a.available_after, reserved_after = a.reserved_after
    from unnest(p_ids, p_available, p_reserved, v_late) as a (id, available_after, reserved_after, is_late)
    where m.id = any(array[a.id]) and m.available_after = -1 and not a.is_late;
end
$$;
comment on function complete_movements(bigint[], uuid[], uuid[], integer[], integer[]) is
    'Internal: writes into the movements of a statement what is on their shelves after each.';

-- Trigger after an application's statement: weighs its movements, moves their shelves once
-- each, and writes into the movements what is there after them; or refuses them all, with all
-- that is wrong.
-- Locks: inventory by (product_id, warehouse_id).
-- Raises: DP006, DP010, DP011, DP015, DP038; DP025 when several of them are the case.
create or replace function move_inserted_stock() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_written constant text[] := string_to_array(current_setting('darkpearl.inserted_rows') || ' ' || current_setting('darkpearl.repeated_rows'), ' ');
    v_ids bigint[];
    v_rows bigint[];
    v_warehouses uuid[];
    v_products uuid[];
    v_changes integer[];
    v_available integer[];
    v_reserved integer[];
    v_wrong jsonb[];
begin
    -- Transfers that have no other end among the rows come first, while that can be told; ids that
    -- are spent are looked for now that others see the rows, see refuse_spent_ids().
    select array_agg(w.problem) into v_wrong
    from (
        select case when i.available_after = -2 then i.notes::jsonb else describe_row(
            i.reserved_after, 'DP038', 'the correlation id was used before, or may have been', i.product_id, i.warehouse_id
        ) end as problem
        from inserted_movements as i where i.available_after = -2 or is_spent(i.correlation_id)
        union all
        select describe_row(
            t.reserved_after, 'DP015', 'the other end of the transfer is missing: a row of its own that names this warehouse',
            t.product_id, t.warehouse_id
        )
        from (
            select i.*, count(*) over (
                partition by i.correlation_id, i.product_id, i.quantity,
                least(i.warehouse_id, i.reference_id), greatest(i.warehouse_id, i.reference_id)
            ) as ends
            from inserted_movements as i
            where i.available_after = -1 and i.movement_type in ('transfer_out', 'transfer_in')
        ) as t
        where t.ends <> 2
    ) as w;

    select
        array_agg(i.id order by i.reserved_after), array_agg(i.reserved_after order by i.reserved_after),
        array_agg(i.warehouse_id order by i.reserved_after), array_agg(i.product_id order by i.reserved_after),
        array_agg(case i.movement_type when 'transfer_out' then -i.quantity else i.quantity end order by i.reserved_after)
    into v_ids, v_rows, v_warehouses, v_products, v_changes
    from inserted_movements as i
    where i.available_after = -1;

    if v_rows is not null then
        select
            array_agg(w.available_after order by w.n), array_agg(w.reserved_after order by w.n),
            v_wrong || array_agg(
                describe_row(v_rows[w.n], w.code, describe_misfit(w.code), v_products[w.n], v_warehouses[w.n])
            ) filter (where w.code is not null)
        into v_available, v_reserved, v_wrong
        from weigh_movements(v_rows, v_warehouses, v_products, v_changes) as w;
    end if;
    if v_wrong <> '{}' then
        perform refuse_rows(v_wrong, v_written[1]::bigint);
    elsif v_rows is not null then
        perform move_shelves(v_warehouses, v_products, v_changes);
        perform complete_movements(v_ids, v_warehouses, v_products, v_available, v_reserved);
    end if;
    if v_written[2] <> '0' then
        raise notice '% of % movements were written before; nothing moves again', v_written[2], v_written[1];
    end if;
    return null;
end
$$;
comment on function move_inserted_stock() is
    'Trigger: an application''s statement moves the shelves of its movements, or is refused with all that is wrong.';

create or replace trigger stock_movements_move_stock
after insert on stock_movements
referencing new table as inserted_movements
for each statement when (current_user <> 'darkpearl_owner')
execute function move_inserted_stock();
