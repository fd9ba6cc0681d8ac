-- Stock moves here, and for an order alone in move_goods(). lock_stock() takes the
-- rows in one agreed order, apply_movements() writes the ledger and the quantities
-- together, and people and programs call the functions below them.
--
-- Lock order: sagas, then their payments and orders, which the engine locks only
-- with the saga, then inventory by (product_id, warehouse_id).

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Triggers: the ledger is only added to. A row becomes history with the quantities after it, at
-- the end of the statement that inserts it: see 31_movements.sql. Retention alone may take it
-- away, or leave a balance in its place.
create or replace trigger stock_movements_refuse_removal
before delete on stock_movements
for each row
when (old.available_after >= 0)
execute function refuse_change('correlation_id');

create or replace trigger stock_movements_refuse_change
before update on stock_movements
for each row
when (
    old.available_after >= 0 and (
        new.movement_type <> 'balance'
        or (old.id, old.product_id, old.warehouse_id, old.available_after, old.reserved_after, old.created_at)
        is distinct from
        (new.id, new.product_id, new.warehouse_id, new.available_after, new.reserved_after, new.created_at)
    )
)
execute function refuse_change();

create or replace trigger stock_movements_become_balances
before update on stock_movements
for each row
when (new.movement_type = 'balance')
execute function refuse_change('correlation_id');

create or replace trigger stock_movements_refuse_truncate
before truncate on stock_movements
for each statement execute function refuse_change();

-- The reason of a movement is history as the movement is.
create or replace trigger movement_reasons_refuse_change
before update on movement_reasons
for each row execute function refuse_change();

create or replace trigger movement_reasons_refuse_removal
before delete on movement_reasons
for each row execute function refuse_change('correlation_id');

create or replace trigger movement_reasons_refuse_truncate
before truncate on movement_reasons
for each statement execute function refuse_change();

-- Trigger: a reason is of an adjustment, which is written before it. Stands for a foreign key: the
-- ledger keeps its keys, and retention removes both. Locks nothing. Raises: DP010.
create or replace function refuse_reason_of_nothing() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if (find_movement('adjust', new.warehouse_id, new.product_id, new.correlation_id)).id is null then
        perform refuse(
            'DP010', 'no such adjustment',
            format(
                'There is no adjust movement of product %s in warehouse %s with correlation id %s.',
                new.product_id, new.warehouse_id, new.correlation_id
            ),
            'Insert the movement first, then its reason under the same key.'
        );
    end if;
    return new;
end
$$;
comment on function refuse_reason_of_nothing() is 'Trigger: a reason is of an adjust movement that is there.';

create or replace trigger movement_reasons_are_of_adjustments
before insert on movement_reasons
for each row execute function refuse_reason_of_nothing();

-- Trigger: an inventory row goes only when nothing lies there, and where its warehouse is. Raises: DP016; DP050
-- and DP053 of a warehouse that is closed here.
create or replace function refuse_to_drop_stock() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if old.warehouse_id = any(closed_warehouses()) then
        perform refuse_closed(old.warehouse_id);
    elsif old.quantity_available <> 0 then
        perform refuse(
            'DP016', 'inventory row still holds stock',
            format(
                'Product %s has %s units in warehouse %s, %s of them reserved.',
                old.product_id, old.quantity_available, old.warehouse_id, old.quantity_reserved
            ),
            'Bring the quantity to zero with adjust_stock or transfer_stock first.'
        );
    end if;
    return old;
end
$$;
comment on function refuse_to_drop_stock() is 'Trigger: refuses to delete an inventory row that still holds units.';

create or replace trigger inventory_refuse_to_drop_stock
before delete on inventory
for each row execute function refuse_to_drop_stock();

-- Trigger: a shelf stays where it is, for the product that it is for.
create or replace trigger inventory_keeps_its_identity
after update of product_id, warehouse_id on inventory
for each row
when ((old.product_id, old.warehouse_id) is distinct from (new.product_id, new.warehouse_id))
execute function refuse_change();

-- Trigger: a shelf whose settings were edited has its next version.
-- Locks: the row, which this transaction has just updated.
create or replace function count_inventory_version() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    update inventory as i
    set version = i.version + 1, updated_at = clock()
    where i.id = new.id and i.warehouse_id = new.warehouse_id;
    return null;
end
$$;
comment on function count_inventory_version() is
    'Trigger: an inventory row whose settings were edited gets its next version and the time of the change.';

-- Only for the settings that people edit: apply_movements() counts its own.
-- AFTER the update, since a trigger before one has every row locked first, also
-- by updates that it isn't for.
create or replace trigger inventory_count_versions
after update of reorder_point, reorder_quantity on inventory
for each row
when ((old.reorder_point, old.reorder_quantity) is distinct from (new.reorder_point, new.reorder_quantity))
execute function count_inventory_version();

-- Locks the named inventory rows in key order, the first p_limit of them or all, and
-- returns them as they stand. Duplicates in the arguments are fine; rows that do not
-- exist are left out.
--
-- Where a snapshot is held, every version of a row stays, and the index has an entry for each
-- page that it ever was on. Entries of one key lie in the order of those pages, and a table
-- grows at its end: so each row is looked up from the end of its entries, where the newest is.
-- The comparison of rows is what keeps the planner from dropping the order of one key.
-- Locks: inventory by (product_id, warehouse_id).
create or replace function lock_stock(p_warehouse_ids uuid[], p_product_ids uuid[], p_limit integer default null)
returns locked_stock[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_locked locked_stock[];
begin
    -- A record of no named type would go through text to become one.
    select array_agg(row(i.product_id, i.warehouse_id, i.quantity_available, i.quantity_reserved)::locked_stock)
    into v_locked
    from (
        select distinct k.product_id, k.warehouse_id
        from unnest(p_product_ids, p_warehouse_ids) as k (product_id, warehouse_id)
        order by k.product_id, k.warehouse_id
        limit p_limit
    ) as k
    cross join lateral (
        select s.product_id, s.warehouse_id, s.quantity_available, s.quantity_reserved
        from inventory as s
        where (s.product_id, s.warehouse_id) >= (k.product_id, k.warehouse_id)
            and (s.product_id, s.warehouse_id) <= (k.product_id, k.warehouse_id)
        order by s.product_id desc, s.warehouse_id desc
        limit 1
        for no key update
    ) as i;
    return v_locked;
end
$$;
comment on function lock_stock(uuid[], uuid[], integer) is
    'Internal: locks inventory rows in key order and returns their quantities.';

-- What one unit of a movement of a type adds to what is on the shelf. Like the next it is
-- inlined. Locks nothing.
create or replace function available_sign(p_movement_type movement_type) returns integer
language sql immutable parallel safe
return case
    when p_movement_type in ('reserve', 'release') then 0
    when p_movement_type in ('fulfill', 'transfer_out') then -1
    else 1
end;
comment on function available_sign(movement_type) is 'Internal: what one unit of a movement adds to quantity_available.';

-- What one unit of it adds to what is promised. Locks nothing.
create or replace function reserved_sign(p_movement_type movement_type) returns integer
language sql immutable parallel safe
return case
    when p_movement_type = 'reserve' then 1
    when p_movement_type in ('fulfill', 'release') then -1
    else 0
end;
comment on function reserved_sign(movement_type) is 'Internal: what one unit of a movement adds to quantity_reserved.';

-- Writes those of a set of movements that apply_movements() has not written, whose shelves it
-- has locked as another session left them, or which are not stocked. Returns how many they were.
-- Locks: inventory by (product_id, warehouse_id). Raises: DP010 when a row is not stocked.
create or replace function apply_rest(
    p_movement_type movement_type,
    p_correlation_ids uuid[], p_warehouse_ids uuid[], p_product_ids uuid[], p_quantities integer[],
    p_notes text, p_reference_type text, p_reference_id uuid
) returns integer
language plpgsql
set enable_seqscan = off
as $$
declare
    v_movements constant integer := cardinality(p_quantities);
    v_missing integer;
begin
    select
        count(*) filter (where r.id is null), array_agg(r.correlation_id order by r.n),
        array_agg(r.warehouse_id order by r.n), array_agg(r.product_id order by r.n), array_agg(r.quantity order by r.n)
    into v_missing, p_correlation_ids, p_warehouse_ids, p_product_ids, p_quantities
    from (
        select
            l.*,
            (select i.id from inventory as i where i.product_id = l.product_id and i.warehouse_id = l.warehouse_id) as id
        from unnest(p_correlation_ids, p_warehouse_ids, p_product_ids, p_quantities)
            with ordinality as l (correlation_id, warehouse_id, product_id, quantity, n)
    ) as r
    where (find_movement(p_movement_type, r.warehouse_id, r.product_id, r.correlation_id)).id is null;
    if v_missing > 0 then
        perform refuse(
            'DP010', 'product is not stocked in this warehouse',
            format('%s of %s movements name no inventory row.', v_missing, v_movements),
            'Receive stock of the product there first.'
        );
    end if;
    return apply_movements(
        p_movement_type, p_correlation_ids, p_warehouse_ids, p_product_ids, p_quantities, p_notes, p_reference_type, p_reference_id
    );
end
$$;
comment on function apply_rest(movement_type, uuid[], uuid[], uuid[], integer[], text, text, uuid) is
    'Internal: writes the movements of shelves that another session changed meanwhile; see apply_movements().';

-- Writes one set of movements: moves each inventory row once and appends the
-- movements to the ledger, those of a row in the order given, each with the
-- quantities after it. The arrays are aligned, one element per movement.
--
-- A movement that is there already is not looked for: the engine knows by the
-- state of the saga, the functions below look first, and the constraint
-- stock_movements_happen_once has the last word.
--
-- Each row is looked up, newest version first as in lock_stock(), and updated where it was
-- found, in key order. One that another session has changed since the statement began is
-- waited for and locked, and no more, since its newest version lies elsewhere. apply_rest()
-- does it then.
-- Returns how many were written: all of them.
-- Locks: inventory by (product_id, warehouse_id).
-- Raises: DP010 when a row is not stocked; a CHECK violation when a quantity
-- would leave its bounds.
create or replace function apply_movements(
    p_movement_type movement_type,
    p_correlation_ids uuid[], p_warehouse_ids uuid[], p_product_ids uuid[], p_quantities integer[],
    p_notes text default null, p_reference_type text default null, p_reference_id uuid default null
) returns integer
language plpgsql
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    v_now constant timestamptz := clock();
    -- The effect of one unit of this type on each of the two quantities.
    v_available_sign constant integer := available_sign(p_movement_type);
    v_reserved_sign constant integer := reserved_sign(p_movement_type);
    -- The saga's own movements need no signature: the saga is the actor.
    v_actor constant text := case when v_reserved_sign = 0 then current_actor() end;
    v_written integer;
begin
    -- A large batch shares some of its first rows with any other: it waits for that one here,
    -- and not in the middle of its own.
    if cardinality(p_quantities) > 50 then
        perform lock_stock(p_warehouse_ids, p_product_ids, 20);
    end if;
    with moved as (
        update inventory as i
        set
            quantity_available = i.quantity_available + v_available_sign * m.quantity,
            quantity_reserved = i.quantity_reserved + v_reserved_sign * m.quantity,
            updated_at = v_now, version = i.version + 1
        from (
            select f.place, l.quantity
            from (
                select l.product_id, l.warehouse_id, sum(l.quantity)::integer as quantity
                from unnest(p_product_ids, p_warehouse_ids, p_quantities) as l (product_id, warehouse_id, quantity)
                group by l.product_id, l.warehouse_id
                order by l.product_id, l.warehouse_id
            ) as l
            cross join lateral (
                select s.ctid as place from inventory as s
                where (s.product_id, s.warehouse_id) >= (l.product_id, l.warehouse_id)
                    and (s.product_id, s.warehouse_id) <= (l.product_id, l.warehouse_id)
                order by s.product_id desc, s.warehouse_id desc
                limit 1
            ) as f
        ) as m
        where i.ctid = m.place
        returning
            i.product_id, i.warehouse_id,
            i.quantity_available - v_available_sign * m.quantity as available,
            i.quantity_reserved - v_reserved_sign * m.quantity as reserved
    ),
    -- What was on a shelf comes before its movements, and is added up with them.
    running as (
        select
            l.*, sum(l.available) over shelf as available_after, sum(l.reserved) over shelf as reserved_after,
            min(l.n) over shelf as first_n
        from (
            select m.*, null::uuid as correlation_id, null::integer as quantity, 0 as n from moved as m
            union all
            select
                l.product_id, l.warehouse_id, v_available_sign * l.quantity, v_reserved_sign * l.quantity,
                l.correlation_id, l.quantity, l.n
            from unnest(p_product_ids, p_warehouse_ids, p_correlation_ids, p_quantities)
                with ordinality as l (product_id, warehouse_id, correlation_id, quantity, n)
        ) as l
        window shelf as (partition by l.product_id, l.warehouse_id order by l.n)
    )
    insert into stock_movements (
        correlation_id, warehouse_id, product_id, movement_type, quantity,
        available_after, reserved_after, reference_type, reference_id, notes, actor, created_at
    )
    select
        r.correlation_id, r.warehouse_id, r.product_id, p_movement_type, r.quantity,
        r.available_after, r.reserved_after, p_reference_type, p_reference_id, p_notes, v_actor, v_now
    from running as r
    where r.n > 0 and r.first_n = 0;
    get diagnostics v_written = row_count;
    if v_written < cardinality(p_quantities) then
        v_written := v_written + apply_rest(
            p_movement_type, p_correlation_ids, p_warehouse_ids, p_product_ids, p_quantities, p_notes, p_reference_type, p_reference_id
        );
    end if;
    return v_written;
end
$$;
comment on function apply_movements(
    movement_type, uuid[], uuid[], uuid[], integer[], text, text, uuid
) is 'Internal: appends movements to the ledger and moves inventory with them. It writes all stock but that of an order alone, see move_goods().';

-- Makes the inventory row of goods that were never stocked there, if there is none.
-- Locks nothing but what it inserts. Raises: DP010 for an unknown product or warehouse.
create or replace function make_shelf(p_warehouse_id uuid, p_product_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    insert into inventory (product_id, warehouse_id)
    values (p_product_id, p_warehouse_id)
    on conflict (product_id, warehouse_id) do nothing;
exception when foreign_key_violation or not_null_violation then
    perform refuse(
        'DP010', 'unknown product or warehouse',
        format('There is no product %s or no warehouse %s.', p_product_id, p_warehouse_id),
        'Look the ids up in products and warehouses.'
    );
end
$$;
comment on function make_shelf(uuid, uuid) is 'Internal: makes an inventory row where a product is stocked for the first time.';

-- Locks a shelf, and makes it if there is none: not before, since what can fail is a
-- subtransaction, and thousands of those in a transaction keep others waiting.
-- Locks: inventory by (product_id, warehouse_id). Raises: as make_shelf().
create or replace function lock_shelf(p_warehouse_id uuid, p_product_id uuid) returns locked_stock[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_locked locked_stock[] := lock_stock(array[p_warehouse_id], array[p_product_id]);
begin
    if v_locked is null then
        perform make_shelf(p_warehouse_id, p_product_id);
        v_locked := lock_stock(array[p_warehouse_id], array[p_product_id]);
    end if;
    return v_locked;
end
$$;
comment on function lock_shelf(uuid, uuid) is 'Internal: locks an inventory row, which is made if there is none.';

-- The movement that an operation has written already, or a row of nulls. As rows, since the
-- index of the key alone can be searched by that, under every plan; and planned once, since for
-- the newest id of all the planner would look up the ends of that index each time. Locks nothing.
create or replace function find_movement(
    p_movement_type movement_type, p_warehouse_id uuid, p_product_id uuid, p_correlation_id uuid
) returns stock_movements
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_movement stock_movements;
begin
    select m.* into v_movement
    from stock_movements as m
    where (m.correlation_id, m.movement_type, m.product_id, m.warehouse_id)
        >= (p_correlation_id, p_movement_type, p_product_id, p_warehouse_id)
        and (m.correlation_id, m.movement_type, m.product_id, m.warehouse_id)
        <= (p_correlation_id, p_movement_type, p_product_id, p_warehouse_id);
    return v_movement;
end
$$;
comment on function find_movement(movement_type, uuid, uuid, uuid) is
    'Internal: the movement that a correlation id stands for, all null when there is none.';

-- Refuses an operation that is repeated with another content. Locks nothing. Raises: DP011.
create or replace function refuse_other_movement(
    p_movement stock_movements, p_quantity integer, p_reference_type text, p_reference_id uuid, p_reason_code text
) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_reason_code constant text := (
        select r.reason_code from movement_reasons as r
        where r.correlation_id = p_movement.correlation_id and r.product_id = p_movement.product_id
            and r.warehouse_id = p_movement.warehouse_id and p_movement.movement_type = 'adjust'
    );
begin
    if (p_movement.quantity, p_movement.reference_type, p_movement.reference_id, v_reason_code)
        is distinct from (p_quantity, p_reference_type, p_reference_id, p_reason_code)
    then
        perform refuse(
            'DP011', 'correlation id already used',
            format(
                'Correlation id %s stands for %s of %s units%s%s, not %s%s%s.',
                p_movement.correlation_id, p_movement.movement_type,
                p_movement.quantity,
                coalesce(' (' || p_movement.reference_type || ' ' || p_movement.reference_id || ')', ''),
                ', ' || v_reason_code,
                p_quantity, coalesce(' (' || p_reference_type || ' ' || p_reference_id || ')', ''), ', ' || p_reason_code
            ),
            'Repeat an operation unchanged, or give a new one a new correlation id.'
        );
    end if;
end
$$;
comment on function refuse_other_movement(stock_movements, integer, text, uuid, text) is
    'Internal: refuses a correlation id that stands for another movement than the one that is asked for.';

-- Writes down why an adjustment is made. Locks: the reason, against removal.
-- Raises: DP015 when there is no such reason.
create or replace function note_movement_reason(
    p_correlation_id uuid, p_product_id uuid, p_warehouse_id uuid, p_reason_code text
) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    insert into movement_reasons (correlation_id, product_id, warehouse_id, reason_code)
    select p_correlation_id, p_product_id, p_warehouse_id, r.code
    from adjustment_reasons as r
    where r.code = p_reason_code;
    if not found then
        perform refuse(
            'DP015', 'there is no such reason',
            format(
                'The reason %s is none of %s.', left(p_reason_code, 50),
                (
                    select string_agg(r.code, ', ' order by r.code)
                    from (select f.code from adjustment_reasons as f order by f.code limit 30) as r
                )
            ),
            'Choose one of them, or add one to the adjustment reasons first.'
        );
    end if;
end
$$;
comment on function note_movement_reason(uuid, uuid, uuid, text) is 'Internal: writes down why an adjustment is made.';

-- One movement that a person or a program asks for. Idempotent by its
-- correlation id: the same again returns what was written the first time.
-- Makes the inventory row where the product was never stocked; a refusal takes it back.
-- Locks: inventory by (product_id, warehouse_id).
-- Raises: DP006 when more would leave than can be sold, DP010 for an unknown
-- product or warehouse, DP011 when the correlation id stands for another
-- quantity, reason or reference, DP015 for a quantity of zero or below or an unknown
-- reason, DP038 when it stands for something that retention has removed, DP050.
create or replace function move_stock(
    p_movement_type movement_type,
    p_warehouse_id uuid,
    p_product_id uuid,
    p_quantity integer,
    p_correlation_id uuid,
    p_notes text,
    p_reference_type text,
    p_reference_id uuid,
    p_reason_code text default null
) returns stock_movements
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_locked locked_stock[];
    v_movement stock_movements;
    v_change constant integer := case when p_movement_type = 'transfer_out' then -p_quantity else p_quantity end;
begin
    if p_quantity is null or p_quantity = 0 or (p_quantity < 0 and p_movement_type <> 'adjust') then
        perform refuse(
            'DP015', 'quantity makes no sense',
            format('A movement of type %s was asked for %s units.', p_movement_type, coalesce(p_quantity::text, 'null')),
            'Use a positive number of units; only adjust may be negative, and none may be zero.'
        );
    end if;

    perform refuse_elsewhere(array[p_warehouse_id]);
    v_locked := lock_shelf(p_warehouse_id, p_product_id);
    v_movement := find_movement(p_movement_type, p_warehouse_id, p_product_id, p_correlation_id);
    if v_movement.id is not null then
        perform refuse_other_movement(v_movement, p_quantity, p_reference_type, p_reference_id, p_reason_code);
        return v_movement;
    end if;
    perform refuse_spent_ids(array[p_correlation_id]);

    if v_change < 0 and coalesce(v_locked[1].quantity_available - v_locked[1].quantity_reserved, 0) < -v_change then
        perform refuse(
            'DP006', 'not enough stock',
            format(
                'Product %s in warehouse %s: %s units asked for, %s can go (%s on the shelf, %s reserved).',
                p_product_id, p_warehouse_id, -v_change,
                coalesce(v_locked[1].quantity_available - v_locked[1].quantity_reserved, 0),
                coalesce(v_locked[1].quantity_available, 0), coalesce(v_locked[1].quantity_reserved, 0)
            ),
            'Reserved units belong to orders: cancel those, or move fewer units.'
        );
    end if;

    perform apply_movements(
        p_movement_type, array[p_correlation_id], array[p_warehouse_id], array[p_product_id],
        array[p_quantity], p_notes, p_reference_type, p_reference_id
    );
    if p_reason_code is not null then
        perform note_movement_reason(p_correlation_id, p_product_id, p_warehouse_id, p_reason_code);
    end if;
    return find_movement(p_movement_type, p_warehouse_id, p_product_id, p_correlation_id);
end
$$;
comment on function move_stock(movement_type, uuid, uuid, integer, uuid, text, text, uuid, text) is
    'Internal: writes one idempotent movement; receive_stock, adjust_stock and transfer_stock call it.';

-- Goods arrive. Locks and raises: see move_stock.
create or replace function receive_stock(
    p_warehouse_id uuid,
    p_product_id uuid,
    p_quantity integer,
    p_correlation_id uuid default new_id(),
    p_notes text default null,
    p_reference_type text default null,
    p_reference_id uuid default null
) returns stock_movements
language sql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
return move_stock(
    'receive', p_warehouse_id, p_product_id, p_quantity, p_correlation_id,
    p_notes, p_reference_type, p_reference_id
);
comment on function receive_stock(uuid, uuid, integer, uuid, text, text, uuid) is
    'Goods arrive: adds units to a shelf and returns the movement. Safe to repeat with the same correlation id.';

-- A correction by a signed number of units, for one of adjustment_reasons or none.
-- Locks and raises: see move_stock.
create or replace function adjust_stock(
    p_warehouse_id uuid,
    p_product_id uuid,
    p_quantity integer,
    p_correlation_id uuid default new_id(),
    p_notes text default null,
    p_reference_type text default null,
    p_reference_id uuid default null,
    p_reason_code text default null
) returns stock_movements
language sql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
return move_stock(
    'adjust', p_warehouse_id, p_product_id, p_quantity, p_correlation_id,
    p_notes, p_reference_type, p_reference_id, p_reason_code
);
comment on function adjust_stock(uuid, uuid, integer, uuid, text, text, uuid, text) is
    'Corrects a shelf by a signed number of units, for one of adjustment_reasons (lost, damaged, found) or none. Safe to repeat with the same correlation id.';

-- A stock-take: the shelf was counted. Writes the difference as one adjust
-- movement, or nothing when the count agrees; returns the inventory row.
-- p_expected: what the books said when it was counted; goods that have moved since would be
-- written off or found, so another number now is refused.
-- Locks: inventory by (product_id, warehouse_id).
-- Raises: DP006 when fewer were counted than are reserved, DP010 when the
-- product was never stocked there, DP015 for a count below zero, DP032 when the shelf
-- is not as expected, DP050.
create or replace function count_stock(
    p_warehouse_id uuid,
    p_product_id uuid,
    p_quantity_available integer,
    p_notes text default 'stock-take',
    p_expected integer default null
) returns inventory
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_locked locked_stock[];
    v_row inventory;
begin
    perform refuse_elsewhere(array[p_warehouse_id]);
    v_locked := lock_stock(array[p_warehouse_id], array[p_product_id]);
    if p_quantity_available is null or p_quantity_available < 0 then
        perform refuse(
            'DP015', 'quantity makes no sense',
            format('A shelf cannot hold %s units.', coalesce(p_quantity_available::text, 'null')),
            'Give the number of units counted, zero or more.'
        );
    end if;
    if v_locked is null then
        perform refuse(
            'DP010', 'product is not stocked in this warehouse',
            format('Product %s has no inventory row in warehouse %s.', p_product_id, p_warehouse_id),
            'Receive stock of the product there first.'
        );
    end if;
    if p_expected <> v_locked[1].quantity_available then
        perform refuse(
            'DP032', 'stock is not what the count expected',
            format(
                'Product %s in warehouse %s: %s units were expected, %s are on the shelf by now, %s of them reserved.',
                p_product_id, p_warehouse_id, p_expected,
                v_locked[1].quantity_available, v_locked[1].quantity_reserved
            ),
            'Goods have moved since it was counted: count again, or say what is expected now.'
        );
    end if;
    if p_quantity_available <> v_locked[1].quantity_available then
        perform move_stock(
            'adjust', p_warehouse_id, p_product_id, p_quantity_available - v_locked[1].quantity_available,
            new_id(), p_notes, null, null
        );
    end if;
    select i.* into strict v_row
    from inventory as i
    where i.product_id = p_product_id and i.warehouse_id = p_warehouse_id;
    return v_row;
end
$$;
comment on function count_stock(uuid, uuid, integer, text, integer) is
    'Sets a shelf to what was counted, by an adjust movement of the difference; refused where p_expected is not what is there.';

-- Refuses a moment of which the ledger doesn't tell any more. Locks nothing. Raises: DP038.
create or replace function is_remembered(p_moment timestamptz) returns boolean
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_from constant timestamptz := (select max(r.removed_before) from retention as r where r.kind in ('orders', 'movements'));
begin
    if p_moment < v_from then
        perform refuse(
            'DP038', 'history of that time is gone',
            format('Retention has removed movements from before %s.', v_from),
            'Ask for a later moment, or see what was exported.'
        );
    end if;
    return true;
end
$$;
comment on function is_remembered(timestamptz) is 'Internal: true for a moment of which the ledger tells; refuses others.';

-- The stock of a product at a past moment, from the last movement before it.
-- Reads one index entry: it sorts nothing, however few movements of the shelf are expected.
-- Locks nothing. Raises: DP038 for a moment from which retention has removed movements.
create or replace function stock_at(p_warehouse_id uuid, p_product_id uuid, p_moment timestamptz)
returns table (quantity_available integer, quantity_reserved integer)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_sort = off
begin atomic
    select m.available_after, m.reserved_after
    from stock_movements as m
    where (m.product_id, m.warehouse_id) >= (p_product_id, p_warehouse_id)
        and (m.product_id, m.warehouse_id) <= (p_product_id, p_warehouse_id)
        and m.created_at <= p_moment and is_remembered(p_moment)
    order by m.product_id desc, m.warehouse_id desc, m.id desc
    limit 1;
end;
comment on function stock_at(uuid, uuid, timestamptz) is
    'On-hand and reserved units of a product in a warehouse as they were at a moment; no row if it was not stocked yet.';
