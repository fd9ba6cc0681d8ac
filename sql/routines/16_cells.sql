-- Cells: databases that warehouses are divided among, each a whole DarkPearl of its own; see
-- docs/decisions/cells.md. Each takes orders and moves stock for its own warehouses alone. The
-- catalogue is written in the first, home, and comes to the others by replication, past the
-- triggers here: they hold for who writes, not for what is copied.
--
-- A database that stands alone is home, and asks for nothing of this.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Which cell made an id, as it says itself; null for one that doesn't: only new_id() has it in
-- its ids, and clients may choose any. A hint where to look first, and no proof. Locks nothing.
create or replace function cell_of_id(p_id uuid) returns smallint
language sql immutable parallel safe
return case when time_of_id(p_id) is not null and p_id::text not like '%00' then get_byte(uuid_send(p_id), 15)::smallint end;
comment on function cell_of_id(uuid) is 'The cell that an id of new_id() was made in; null for an id that is none.';

-- What this cell adds to the idempotency keys that gateways get from it: an id that a client chose
-- may be in two cells, and is two payments then. Nothing at home. Inlined. Locks nothing.
create or replace function cell_suffix() returns text
language sql immutable parallel safe
return case when this_cell() > 1 then '@' || this_cell() end;
comment on function cell_suffix() is 'Internal: what names this cell in idempotency keys; null at home.';

-- The same of a key: the cell that first asked under it. Locks nothing.
create or replace function cell_suffix_of(p_key text) returns text
language sql immutable parallel safe
return substring(p_key from '@[0-9]+');
comment on function cell_suffix_of(text) is 'Internal: what names a cell in an idempotency key; null for home''s.';

-- The cells that are there, where each is reached, and which warehouses it has: for programs that go to the
-- one that a request is for. As its owner, since logins of their own see neither table. Locks nothing.
create or replace function known_cells(out number smallint, out name text, out url text, out warehouse_ids uuid[]) returns setof record
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    return query
    select c.number, c.name, c.url, array(select w.id from warehouses as w where w.cell = c.number)
    from cells as c
    where c.removed_at is null
    order by c.number;
end
$$;
comment on function known_cells() is 'The cells that are there: number, name, address without a password (null: home''s, unknown) and warehouses.';

-- Refuses what would be done for a warehouse that another cell has. As its owner, since a customer
-- sees no cells. Locks nothing. Raises: DP050.
create or replace function refuse_elsewhere(p_warehouse_ids uuid[]) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_warehouse record;
begin
    select w.code, w.cell, c.name into v_warehouse
    from warehouses as w
    left join cells as c on c.number = w.cell
    where w.id = any(p_warehouse_ids) and w.cell <> this_cell()
    limit 1;
    if found then
        perform refuse(
            'DP050', 'warehouse belongs to another cell',
            format('Warehouse %s is of cell %s (%s); this is cell %s.', v_warehouse.code, v_warehouse.cell, v_warehouse.name, this_cell()),
            format('Do it in cell %s: it alone takes the orders and moves the stock of its warehouses.', v_warehouse.cell)
        );
    end if;
end
$$;
comment on function refuse_elsewhere(uuid[]) is 'Internal: refuses what is asked for a warehouse of another cell.';

-- Trigger after new rows of a warehouse. Locks nothing. Raises: DP050.
create or replace function refuse_rows_elsewhere() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform refuse_elsewhere(array(select distinct n.warehouse_id from new_rows as n));
    return null;
end
$$;
comment on function refuse_rows_elsewhere() is 'Trigger: refuses rows of warehouses that another cell has.';

create or replace trigger inventory_is_of_this_cell
after insert on inventory
referencing new table as new_rows
for each statement execute function refuse_rows_elsewhere();

-- Trigger: what all cells share is written in one of them. Locks nothing. Raises: DP051.
create or replace function refuse_away_from_home() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    perform refuse(
        'DP051', 'the catalogue is written at home',
        format('This is cell %s; %s come here from cell 1.', this_cell(), tg_table_name),
        'Make the change in cell 1: it is here a moment later.'
    );
    return null;
end
$$;
comment on function refuse_away_from_home() is 'Trigger: refuses to write what is replicated from home.';

do $$
declare
    v_table text;
begin
    foreach v_table in array array['cells', 'products', 'warehouses', 'adjustment_reasons'] loop
        execute format(
            'create or replace trigger %1$s_are_written_at_home '
            'before insert or update or delete or truncate on %1$s '
            'for each statement when (this_cell() <> 1) execute function refuse_away_from_home()',
            v_table
        );
    end loop;
end
$$;

-- Trigger: what other cells may have rows of is not deleted, nor known by another key, since home can't
-- see them; a cell's own number, which is in ids and keys, never. Its argument is the key. Locks nothing. Raises: DP016.
create or replace function refuse_to_drop_what_is_shared() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if tg_op = 'UPDATE' and to_jsonb(new) -> tg_argv[0] = to_jsonb(old) -> tg_argv[0] then
        return new;
    elsif exists (select from cells as c where c.number <> 1) then
        perform refuse(
            'DP016', format('%s of several cells', rtrim(tg_table_name, 's')),
            case tg_table_name
                when 'cells' then 'Its number is in ids and in keys at the gateway, and would be given again.'
                else 'Other cells may have stock and orders that name it.'
            end,
            case tg_table_name
                when 'cells' then 'Run darkpearl cells remove, which leaves its row.'
                else 'Set is_active to false instead; a reason stays.'
            end
        );
    end if;
    return case when tg_op = 'UPDATE' then new else old end;
end
$$;
comment on function refuse_to_drop_what_is_shared() is
    'Trigger: with more than one cell, refuses to delete what the others have a copy of, or to change its key.';

do $$
declare
    v_shared record;
begin
    for v_shared in
        select * from (
            values ('products', 'id'), ('warehouses', 'id'), ('adjustment_reasons', 'code'), ('cells', 'number')
        ) as t (name, key)
    loop
        execute format(
            'create or replace trigger %1$s_are_kept_for_other_cells before delete or update of %2$s on %1$s '
            'for each row execute function refuse_to_drop_what_is_shared(%2$L)',
            v_shared.name, v_shared.key
        );
    end loop;
end
$$;

-- Trigger: a warehouse belongs to a cell that is there, and changes it only while nothing of it is
-- known: home sees its own rows alone, so another cell's stays that cell's. Whoever is just making its first
-- stock or order is waited for, and who comes later sees the new cell.
-- Locks: the warehouse. Raises: DP010 for a cell that was removed, DP016.
create or replace function refuse_odd_cell() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if tg_op = 'UPDATE' then
        perform from warehouses as w where w.id = old.id for update;
    end if;
    if exists (select from cells as c where c.number = new.cell and c.removed_at is not null) then
        perform refuse(
            'DP010', 'no such cell', format('Cell %s was removed.', new.cell), 'Choose one of the cells that are there.'
        );
    elsif tg_op = 'UPDATE' and (
        old.cell <> this_cell()
        or exists (select from inventory as i where i.warehouse_id = old.id)
        or exists (select from orders as o where o.warehouse_id = old.id)
    ) then
        perform refuse(
            'DP016', 'warehouse is at work in its cell',
            format('Warehouse %s has stock or orders in cell %s, or may have.', old.code, old.cell),
            format('Make another warehouse in cell %s, and set this one''s is_active to false.', new.cell)
        );
    end if;
    return new;
end
$$;
comment on function refuse_odd_cell() is 'Trigger: a warehouse stays in the cell that has its stock and orders.';

create or replace trigger warehouses_begin_in_a_cell_that_is_there
before insert on warehouses
for each row when (new.cell <> 1) execute function refuse_odd_cell();

create or replace trigger warehouses_stay_in_their_cell
before update of cell on warehouses
for each row when (old.cell <> new.cell) execute function refuse_odd_cell();

-- Makes this database, which holds nothing yet, a cell beside home: its ids and its order numbers
-- are its own from then on. What it is already it stays, so that it may be said again. For who
-- owns the schema. Locks: orders. Raises: DP015 for a number that is none, DP052 when there is data.
create or replace function become_cell(p_number integer) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if p_number is null or p_number not between 2 and 255 then
        perform refuse('DP015', 'number makes no sense', format('A cell was to be %s.', coalesce(p_number::text, 'null')), 'Use 2 to 255; 1 is home.');
    elsif p_number = this_cell() then
        return;
    elsif this_cell() <> 1 or exists (select from warehouses) or exists (select from products)
        or exists (select from orders) or exists (select from stock_movements)
    then
        perform refuse(
            'DP052', 'database can''t become a cell',
            format('It is cell %s, and has %s.', this_cell(), case when this_cell() = 1 then 'data already' else 'its ids by that' end),
            'Take an empty database.'
        );
    end if;
    execute format(
        'alter table orders alter column order_number set maxvalue %2$s set minvalue %1$s set start %1$s restart',
        p_number * 1000000000000 + 1, (p_number + 1) * 1000000000000 - 1
    );
    execute format(
        'create or replace function this_cell() returns smallint language sql immutable parallel safe return %s::smallint', p_number
    );
end
$$;
comment on function become_cell(integer) is 'Makes an empty database a cell of this number, with ids and order numbers of its own.';
