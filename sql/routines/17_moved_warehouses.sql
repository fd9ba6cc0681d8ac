-- Warehouses that leave this database for another cell, or come to it: see docs/decisions/cells.md.
-- At any moment a warehouse is open in one cell, or for some seconds in none. Where it is closed, no
-- row of it is written, by whoever: no order, no cancellation, no answer of a gateway, no step of a
-- saga. What is being copied comes in past that, as all that is replicated does.
--
-- The guard is a trigger on each table that has a warehouse's rows, made when the first is closed: a
-- database that no warehouse has moved from or to has nothing of it. To make it, and to make it anew for
-- one that is opened, takes locks that wait for who is writing, so that nobody who began before gets past
-- it; who only reads, as a dump does for hours, is in nobody's way.
-- Retention may let old rows go: that changes nothing of what is told of them.
--
-- Who works for all leaves closed warehouses out by `not array[…] <@ …`: the planner takes that to let
-- nearly every row by, as it does, and `<> all (…)` of an array that it can't see to let hardly any.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The tables that have a warehouse's rows, from the catalogue, so that none that is new can be
-- forgotten; and whether the warehouse is in the key, as replication of some rows wants it.
-- Orders first and sagas second, as most who write begin. Locks nothing.
create or replace function warehouse_tables(out name regclass, out is_keyed boolean) returns setof record
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select
        c.oid::regclass,
        exists (select from pg_index as i where i.indrelid = c.oid and i.indisprimary and a.attnum = any(i.indkey))
    from pg_class as c
    inner join pg_attribute as a on a.attrelid = c.oid and a.attname = 'warehouse_id' and not a.attisdropped
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and c.relname <> 'moved_warehouses'
    order by c.relname <> 'orders', c.relname <> 'sagas', c.relname;
end;
comment on function warehouse_tables() is 'Internal: the tables that have a warehouse''s rows, and whether it is in their keys.';

-- What is one in a whole table of a warehouse's rows, and so could be in two cells at once: the columns that
-- are unique by themselves, and the ids of parcels, which spent_ids keeps so. Locks nothing.
create or replace function warehouse_keys(out name regclass, out key text) returns setof record
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select k.name, k.key
    from (
        select t.name, a.attname
        from warehouse_tables() as t
        inner join pg_index as i on i.indrelid = t.name and i.indisunique and i.indnkeyatts = 1
        inner join pg_attribute as a on a.attrelid = t.name and a.attnum = i.indkey[0]
        union all
        select 'shipments'::regclass, 'id'
    ) as k (name, key)
    order by k.name::text, k.key;
end;
comment on function warehouse_keys() is 'Internal: what is one in a whole table of a warehouse''s rows.';

-- The sequences that number those rows, and how far each is; null for one that has not begun. Order
-- numbers have a range for each cell, and stay in it. Locks nothing.
create or replace function warehouse_sequences(out name regclass, out reached bigint) returns setof record
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select q.name, pg_sequence_last_value(q.name)
    from warehouse_tables() as t
    inner join pg_attribute as a on a.attrelid = t.name and a.attnum > 0 and not a.attisdropped and a.attname <> 'order_number'
    cross join lateral (select pg_get_serial_sequence(t.name::text, a.attname)::regclass as name) as q
    where q.name is not null
    order by q.name::text;
end;
comment on function warehouse_sequences() is 'Internal: the sequences that number a warehouse''s rows, and how far they are.';

-- Those tables as a move wants them: owned by who closes them, logged, and with the same columns in both
-- cells. Locks nothing.
create or replace function warehouse_layouts(out name text, out is_owned boolean, out is_logged boolean, out columns text[]) returns setof record
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select
        c.relname, pg_has_role('darkpearl_owner', c.relowner, 'usage'), c.relpersistence = 'p',
        array(select a.attname::text from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attname)
    from warehouse_tables() as t
    inner join pg_class as c on c.oid = t.name;
end;
comment on function warehouse_layouts() is 'Internal: the tables that have a warehouse''s rows: who may close them, whether they are logged, and their columns.';

-- Who holds those tables since more than a second, readers too, which blocking_sessions() leaves out; null
-- where nobody does. Locks nothing.
create or replace function warehouse_holders() returns text
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select string_agg(
        distinct coalesce('pid ' || concat_ws(' ', l.pid, a.usename, nullif(a.application_name, ''), a.state), 'a prepared transaction'), ', '
    )
    from pg_locks as l
    left join pg_stat_activity as a on a.pid = l.pid
    where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.relation in (select t.name from warehouse_tables() as t)
        and (a.pid is null or a.xact_start < clock_timestamp() - interval '1 second');
end;
comment on function warehouse_holders() is 'Internal: who holds the tables that have a warehouse''s rows, since more than a second.';

-- The warehouses that are closed here; an empty array where none is. In a query, (select closed_warehouses())
-- asks once for all rows. Locks nothing.
create or replace function closed_warehouses() returns uuid[]
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
begin
    return array(select m.warehouse_id from moved_warehouses as m where m.state <> 'here' order by m.warehouse_id);
end
$$;
comment on function closed_warehouses() is 'The warehouses of which nothing is written here, since another cell has them or will: an empty array where none is.';

-- When a warehouse came here from another cell; null for one that was made here, or isn't here. What it brought
-- was here in no export of before. Locks nothing.
create or replace function came_at(p_warehouse_id uuid) returns timestamptz
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select m.changed_at from moved_warehouses as m where m.warehouse_id = p_warehouse_id and m.state = 'here';
end;
comment on function came_at(uuid) is 'Internal: when a warehouse came here from another cell.';

-- The warehouses that have left for another cell: their sagas that had not ended sleep here for ever, and need
-- nothing any more. Locks nothing.
create or replace function left_warehouses() returns uuid[]
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
begin
    return array(
        select m.warehouse_id
        from moved_warehouses as m
        inner join warehouses as w on w.id = m.warehouse_id
        where m.state = 'gone' and w.cell <> this_cell()
    );
end
$$;
comment on function left_warehouses() is 'Internal: the warehouses that have left for another cell, whose sagas sleep here for ever.';

-- Whether a warehouse is on its way from here or to here: what is removed at one end meanwhile is missed at
-- the other, where rows are counted before anything changes hands. Locks nothing.
create or replace function is_warehouse_moving() returns boolean
language sql stable
set search_path = darkpearl, pg_temp
return exists (select m.warehouse_id from moved_warehouses as m where m.state in ('coming', 'arrived'))
or exists (select from pg_publication as p where p.pubname ^@ 'darkpearl_move_');
comment on function is_warehouse_moving() is 'Internal: whether a warehouse is on its way from here or to here.';

-- Refuses what is asked for a warehouse that is closed here. Locks nothing. Raises: DP050 when another
-- cell has it, DP053 while none has, or this one not yet.
create or replace function refuse_closed(p_warehouse_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform refuse_elsewhere(array[p_warehouse_id]);
    perform refuse(
        'DP053', 'warehouse is moving to another cell',
        format('Warehouse %s is closed in cell %s.', p_warehouse_id, this_cell()),
        'Try again in some seconds: it is open again then, here or in another cell.'
    );
end
$$;
comment on function refuse_closed(uuid) is 'Internal: refuses what is asked for a warehouse that is closed here, and says where it is.';

-- The warehouses that have left this database or come to it, and the cell that has each, as this one
-- has heard. One that another cell has is not to be shown here: what there is of it is an old
-- copy, or one that isn't whole yet. As its owner, since customers see neither table. Locks nothing.
create or replace function moved_cells(out warehouse_id uuid, out cell smallint) returns setof record
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    return query
    select m.warehouse_id, w.cell
    from moved_warehouses as m
    inner join warehouses as w on w.id = m.warehouse_id;
end
$$;
comment on function moved_cells() is 'The warehouses that have left this cell or come to it, and the number of the cell that has each: what is here of another''s is an old copy.';

-- Refuses an order, a saga or a shelf whose rows are not here, or only as a copy of another cell's: for
-- who asks cell by cell, in the transaction that would go on with it. As its owner, and so it
-- tells who may not see the row that there is one. Locks nothing. Raises: DP050, which names the other cell if it is known.
create or replace function refuse_id_elsewhere(p_id uuid) returns void
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_warehouse_id uuid;
    v_is_here boolean;
begin
    select s.warehouse_id, w.cell = this_cell() into v_warehouse_id, v_is_here
    from sagas as s
    inner join warehouses as w on w.id = s.warehouse_id
    where s.id = p_id;
    if v_is_here then
        return;
    elsif v_warehouse_id is null then
        select i.warehouse_id into v_warehouse_id from inventory as i where i.id = p_id;
    end if;
    if v_warehouse_id is null then
        perform refuse(
            'DP050', 'not in this cell',
            format('This is cell %s, and nothing here has the id %s.', this_cell(), p_id),
            'Look in the other cells.'
        );
    end if;
    perform refuse_elsewhere(array[v_warehouse_id]);
end
$$;
comment on function refuse_id_elsewhere(uuid) is 'Refuses an order, a saga or a shelf that isn''t here, or only as a copy: for who asks cell by cell.';

-- Trigger: nothing is written of a warehouse that is closed here. Locks nothing. Raises: as
-- refuse_closed().
create or replace function refuse_moved() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    -- Retention folds what it removes into a balance; any other change of a movement is refused.
    if tg_op = 'UPDATE' and tg_table_name = 'stock_movements' then
        return new;
    end if;
    -- So does who erases a customer from what was left behind.
    if tg_op = 'UPDATE' and tg_table_name = 'order_particulars' and array[new.warehouse_id] <@ left_warehouses()
        and to_jsonb(new) = to_jsonb(old) || '{"email": null, "shipping_address": null, "billing_address": null}'
    then
        return new;
    end if;
    perform refuse_closed(new.warehouse_id);
    return null;
end
$$;
comment on function refuse_moved() is 'Trigger: refuses to write what is of a warehouse that is closed here.';

-- Has every table that there is refuse the rows of the warehouses that are closed now. Where none is any
-- more the guard lets all by: to drop it would wait for who reads.
-- Locks: the tables, orders and sagas first, against all who write; waits for those who do.
create or replace function guard_moved_warehouses() returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_closed constant uuid[] := closed_warehouses();
    v_table regclass;
begin
    for v_table in
        select t.name from warehouse_tables() as t
        where v_closed <> '{}'
            or exists (select from pg_trigger as g where g.tgrelid = t.name and g.tgname = 'moved_warehouses_are_closed')
    loop
        execute format(
            'create or replace trigger moved_warehouses_are_closed before insert or update on %s '
            'for each row when (new.warehouse_id = any(%L::uuid[])) execute function refuse_moved()',
            v_table, v_closed
        );
    end loop;
end
$$;
comment on function guard_moved_warehouses() is 'Internal: has every table refuse the rows of warehouses that are closed here.';

-- Closes a warehouse here: when this returns and commits, all that was written of it is committed,
-- and nothing more will be. p_other_cell: where it goes to, or comes from. For who owns the schema.
-- Locks: as guard_moved_warehouses().
create or replace function close_warehouse(p_warehouse_id uuid, p_other_cell integer, p_state move_state default 'gone') returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    insert into moved_warehouses as m (warehouse_id, other_cell, state)
    values (p_warehouse_id, p_other_cell, p_state)
    on conflict (warehouse_id) do update
    set
        other_cell = excluded.other_cell, state = excluded.state, changed_at = clock(),
        told_after = case when excluded.state <> 'coming' then m.told_after end;
    perform guard_moved_warehouses();
end
$$;
comment on function close_warehouse(uuid, integer, move_state) is 'Closes a warehouse in this database: nothing of it is written any more.';

-- Opens it again, or lets it be forgotten that it was to come: one that was made here, or isn't here,
-- has no row. For who owns the schema. Locks: as guard_moved_warehouses().
create or replace function open_warehouse(p_warehouse_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    delete from moved_warehouses as m where m.warehouse_id = p_warehouse_id and m.told_after is null;
    update moved_warehouses as m set state = 'here', changed_at = clock() where m.warehouse_id = p_warehouse_id;
    perform guard_moved_warehouses();
end
$$;
comment on function open_warehouse(uuid) is 'Opens a warehouse in this database that close_warehouse() closed.';

-- The webhook endpoints that are on and have not been sent all that happened here to a warehouse: for
-- who moves it back here, and would remove what they are still to be told. By their addresses.
-- Locks nothing.
create or replace function endpoints_behind(p_warehouse_id uuid) returns setof text
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_last constant bigint := greatest(
        (select max(e.id) from saga_events as e where e.warehouse_id = p_warehouse_id),
        (select max(a.id) from stock_alerts as a where a.warehouse_id = p_warehouse_id)
    );
begin
    return query
    select w.url from webhook_endpoints as w where w.is_enabled and w.position < v_last order by w.url;
end
$$;
comment on function endpoints_behind(uuid) is 'Internal: the webhook endpoints that have not been sent all that happened here to a warehouse.';
