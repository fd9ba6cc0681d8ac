-- Transfers: goods go from one warehouse to another. Where this database has both, it is two
-- movements in one transaction. Where another cell has the one that they go to, it is a saga in the
-- cell that they leave: they are out here at once, and in transit until that cell has decided.
--
-- decide_arrival() is called there, by a listener of this cell, and decides once: the goods are in,
-- or never will be. Whoever asks later is told the same. So a call may be repeated, come late, or get
-- no answer; and who wants the goods back has the other cell refuse them first, and puts them back
-- only when it has.
--
-- Warehouses may move to another cell meanwhile. Both tables go along, and the listener's call
-- follows the warehouse that it is for.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Triggers: a transfer stays one of these goods between these places, and once over it stays over.
create or replace trigger transfers_keep_their_identity
before update on transfers
for each row
when (
    old.status <> 'in_transit'
    or (old.id, old.warehouse_id, old.to_warehouse_id, old.product_id, old.quantity, old.created_at)
    is distinct from (new.id, new.warehouse_id, new.to_warehouse_id, new.product_id, new.quantity, new.created_at)
)
execute function refuse_change();

create or replace trigger transfers_refuse_removal
before delete on transfers
for each row execute function refuse_change('id');

create or replace trigger transfers_refuse_truncate
before truncate on transfers
for each statement execute function refuse_change();

-- What was decided stays so.
create or replace trigger transfer_arrivals_refuse_change
before update on transfer_arrivals
for each row execute function refuse_change();

create or replace trigger transfer_arrivals_refuse_removal
before delete on transfer_arrivals
for each row execute function refuse_change('transfer_id');

create or replace trigger transfer_arrivals_refuse_truncate
before truncate on transfer_arrivals
for each statement execute function refuse_change();

-- Refuses to let goods into a warehouse under the id of a transfer that left it: if that came back, its
-- movement would be taken for the other's. For who has locked the shelf, which whoever sends goods locks as well.
-- Locks nothing. Raises: DP011.
create or replace function refuse_id_that_left(p_warehouse_id uuid, p_transfer_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if exists (select from transfers as t where t.id = p_transfer_id and t.warehouse_id = p_warehouse_id) then
        perform refuse(
            'DP011', 'transfer id already used', format('Transfer %s has left warehouse %s for another cell.', p_transfer_id, p_warehouse_id),
            'Give each transfer an id of its own, in whatever cell.'
        );
    end if;
end
$$;
comment on function refuse_id_that_left(uuid, uuid) is 'Internal: refuses goods that would come in under the id of a transfer that left the warehouse.';

-- Goods leave for a warehouse of another cell: takes them out, and starts the saga that brings them
-- in. One that went out before is not sent again, though it went to a warehouse of this cell then.
-- Locks: inventory. Raises: see move_stock() and start_saga().
create or replace function send_transfer(
    p_from_warehouse_id uuid, p_to_warehouse_id uuid, p_product_id uuid, p_quantity integer, p_transfer_id uuid, p_notes text
) returns stock_movements
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_is_known constant boolean := (find_movement('transfer_out', p_from_warehouse_id, p_product_id, p_transfer_id)).id is not null;
    v_movement constant stock_movements := move_stock(
        'transfer_out', p_from_warehouse_id, p_product_id, p_quantity, p_transfer_id, p_notes, 'warehouse', p_to_warehouse_id
    );
begin
    if v_is_known then
        return v_movement;
    elsif (find_movement('transfer_in', p_from_warehouse_id, p_product_id, p_transfer_id)).id is not null then
        perform refuse(
            'DP011', 'transfer id already used', format('Transfer %s brought goods into warehouse %s.', p_transfer_id, p_from_warehouse_id),
            'Give each transfer an id of its own, in whatever cell.'
        );
    end if;
    insert into transfers (id, warehouse_id, to_warehouse_id, product_id, quantity, notes)
    values (p_transfer_id, p_from_warehouse_id, p_to_warehouse_id, p_product_id, p_quantity, p_notes)
    on conflict do nothing;
    if found then
        perform start_saga('transfer', p_transfer_id, p_from_warehouse_id, p_notes);
        -- Its first step is done with this transaction: whatever stops the saga undoes that.
        insert into saga_events (saga_id, warehouse_id, event_type, step_name)
        values (p_transfer_id, p_from_warehouse_id, 'step_completed', 'send_goods');
        update sagas as s set position = 2 where s.id = p_transfer_id and s.warehouse_id = p_from_warehouse_id;
    elsif not exists (
        select from transfers as t
        where t.id = p_transfer_id and t.warehouse_id = p_from_warehouse_id and t.product_id = p_product_id
    ) then
        perform refuse(
            'DP011', 'transfer id already used', format('Transfer %s is of another product.', p_transfer_id),
            'A transfer to another cell is of one product: give each an id of its own.'
        );
    end if;
    return v_movement;
end
$$;
comment on function send_transfer(uuid, uuid, uuid, integer, uuid, text) is
    'Internal: takes goods out that go to a warehouse of another cell, and starts the saga that brings them in.';

-- Goods go from one warehouse to another. Within this database: both movements or none, under one
-- correlation id; returns the two, transfer_out first. To another cell: returns the one that is made
-- here; transfers says what becomes of it, under the same id.
-- Locks: inventory by (product_id, warehouse_id), both rows before either moves.
-- Raises: see move_stock(); DP011 when the id is that of an order or a saga, and the goods would go to
-- another cell, or of goods that came in where these leave, or left where these come in; DP015 when
-- both warehouses are the same; DP050 when they would leave another cell's.
create or replace function transfer_stock(
    p_from_warehouse_id uuid,
    p_to_warehouse_id uuid,
    p_product_id uuid,
    p_quantity integer,
    p_correlation_id uuid default new_id(),
    p_notes text default null
) returns setof stock_movements
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if p_from_warehouse_id = p_to_warehouse_id then
        perform refuse(
            'DP015', 'a transfer needs two warehouses',
            format('Both ends are warehouse %s.', p_from_warehouse_id),
            'Name another warehouse to transfer to.'
        );
    end if;
    perform refuse_elsewhere(array[p_from_warehouse_id]);
    -- One that was sent to another cell stays that, though the warehouse has come here since.
    if exists (select from warehouses as w where w.id = p_to_warehouse_id and w.cell <> this_cell())
        or exists (select from transfers as t where t.id = p_correlation_id and t.warehouse_id = p_from_warehouse_id)
    then
        return next send_transfer(
            p_from_warehouse_id, p_to_warehouse_id, p_product_id, p_quantity, p_correlation_id, p_notes
        );
        return;
    end if;
    -- The row that receives may be new; both must be there to be locked in order.
    insert into inventory (product_id, warehouse_id)
    select p.id, w.id
    from products as p, warehouses as w
    where p.id = p_product_id and w.id = p_to_warehouse_id
    on conflict (product_id, warehouse_id) do nothing;
    perform lock_stock(
        array[p_from_warehouse_id, p_to_warehouse_id], array[p_product_id, p_product_id]
    );
    perform refuse_id_that_left(p_to_warehouse_id, p_correlation_id);
    return next move_stock(
        'transfer_out', p_from_warehouse_id, p_product_id, p_quantity, p_correlation_id,
        p_notes, 'warehouse', p_to_warehouse_id
    );
    return next move_stock(
        'transfer_in', p_to_warehouse_id, p_product_id, p_quantity, p_correlation_id,
        p_notes, 'warehouse', p_from_warehouse_id
    );
end
$$;
comment on function transfer_stock(uuid, uuid, uuid, integer, uuid, text) is
    'Moves units between two warehouses, both movements or none; to another cell by a saga, see transfers. Safe to repeat with the same correlation id.';

-- Why goods may not come into a warehouse now; null when they may. Locks nothing.
-- Raises: DP010 for what isn't known: the catalogue comes from home, and may be late.
create or replace function why_not_let_in(p_warehouse_id uuid, p_product_id uuid) returns text
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_warehouse constant warehouses := (select w from warehouses as w where w.id = p_warehouse_id);
    v_product constant products := (select p from products as p where p.id = p_product_id);
begin
    if v_warehouse.id is null or v_product.id is null then
        perform refuse(
            'DP010', 'no such warehouse or product',
            format('Warehouse %s or product %s is not known in cell %s.', p_warehouse_id, p_product_id, this_cell()),
            'What was made at home a moment ago is here a moment later: try again.'
        );
    end if;
    return case
        when not v_warehouse.is_active then format('warehouse %s is not active', v_warehouse.code)
        when not v_product.is_active then format('product %s is not active', v_product.sku)
    end;
end
$$;
comment on function why_not_let_in(uuid, uuid) is 'Internal: why goods may not come into a warehouse now; null when they may.';

-- Writes down that a transfer from another cell was refused, unless something else was decided
-- before. Locks: the decision; waits for whoever is just making it.
create or replace function refuse_arrival(
    p_transfer_id uuid, p_from_warehouse_id uuid, p_warehouse_id uuid, p_product_id uuid, p_quantity integer, p_refusal text
) returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    insert into transfer_arrivals (transfer_id, warehouse_id, from_warehouse_id, product_id, quantity, refusal)
    values (p_transfer_id, p_warehouse_id, p_from_warehouse_id, p_product_id, p_quantity, left(p_refusal, 500))
    on conflict do nothing;
end;
comment on function refuse_arrival(uuid, uuid, uuid, uuid, integer, text) is
    'Internal: writes down that a transfer is refused, unless it was decided before.';

-- Whether the goods of a transfer from another cell come in: lets them in, or refuses them, the
-- first time; later it says what was decided then. p_refusal: refuses them, whatever else would be.
-- Returns why they were refused; null: they are in.
-- Called by a listener of the cell that they left. Locks: the decision, then inventory.
-- A transfer under an id that another one came here with is refused: it isn't in, and never will be.
-- Raises: DP010 for what the catalogue doesn't have here yet, DP011 when the transfer was of other goods,
-- DP050, DP053 while the warehouse moves. Nothing is decided then.
create or replace function decide_arrival(
    p_transfer_id uuid, p_from_warehouse_id uuid, p_warehouse_id uuid, p_product_id uuid, p_quantity integer,
    p_notes text default null, p_refusal text default null
) returns text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_refusal text;
    v_arrival transfer_arrivals;
begin
    perform refuse_elsewhere(array[p_warehouse_id]);
    v_refusal := coalesce(p_refusal, why_not_let_in(p_warehouse_id, p_product_id));
    if v_refusal is null then
        begin
            insert into transfer_arrivals (transfer_id, warehouse_id, from_warehouse_id, product_id, quantity)
            values (p_transfer_id, p_warehouse_id, p_from_warehouse_id, p_product_id, p_quantity)
            on conflict do nothing;
            if found then
                perform move_stock(
                    'transfer_in', p_warehouse_id, p_product_id, p_quantity, p_transfer_id, p_notes, 'warehouse', p_from_warehouse_id
                );
                perform refuse_id_that_left(p_warehouse_id, p_transfer_id);
            end if;
        exception
            -- What no other try will change: the shelf would hold too much, the id is of something else.
            when check_violation or sqlstate 'DP011' or sqlstate 'DP038' then v_refusal := sqlerrm;
        end;
    end if;
    if v_refusal is not null then
        perform refuse_arrival(p_transfer_id, p_from_warehouse_id, p_warehouse_id, p_product_id, p_quantity, v_refusal);
    end if;
    select a.* into strict v_arrival
    from transfer_arrivals as a
    where a.transfer_id = p_transfer_id and a.warehouse_id = p_warehouse_id;
    if v_arrival.from_warehouse_id <> p_from_warehouse_id then
        return 'transfer id already used';
    elsif (v_arrival.product_id, v_arrival.quantity) is distinct from (p_product_id, p_quantity) then
        perform refuse(
            'DP011', 'transfer id already used',
            format('Transfer %s was of %s units of product %s.', p_transfer_id, v_arrival.quantity, v_arrival.product_id),
            'A transfer is asked for as it was sent.'
        );
    end if;
    return v_arrival.refusal;
end
$$;
comment on function decide_arrival(uuid, uuid, uuid, uuid, integer, text, text) is
    'For listeners of other cells: lets the goods of a transfer in, or refuses them, once; returns why they were refused, null when they are in.';

-- Step. The goods left in the transaction that started the saga, which begins behind this step: it is
-- there to be undone. Locks nothing.
create or replace function goods_have_left(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    return outcome_for_all('done', p_saga_ids);
end
$$;
comment on function goods_have_left(uuid[], uuid[]) is 'Step: the goods of a transfer have left; its undo puts them back.';

-- What the cell that has the warehouse is asked, for each transfer. p_refusal: that it refuses
-- the goods. Of a cell that was removed nobody can be asked: a person has to know where the goods are,
-- and skips the step if it did as asked, or turns the saga back. Locks nothing.
create or replace function ask_for_arrivals(p_warehouse_ids uuid[], p_saga_ids uuid[], p_refusal text) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return group_outcomes(array(
        select case when c.removed_at is null then row(
            t.id, 'waiting', null, null,
            json_build_object(
                'operation', 'decide_arrival', 'transfer_id', t.id, 'from_warehouse_id', t.warehouse_id,
                'warehouse_id', t.to_warehouse_id, 'product_id', t.product_id, 'quantity', t.quantity,
                'notes', t.notes, 'refusal', p_refusal
            ),
            null
        )::step_outcome else row(
            t.id, 'stuck', 'DP010', format('cell %s was removed: nobody can be asked whether the goods are in there', c.number), null, null
        )::step_outcome end
        from transfers as t
        inner join warehouses as w on w.id = t.to_warehouse_id
        inner join cells as c on c.number = w.cell
        where t.id = any(p_saga_ids) and t.warehouse_id = any(p_warehouse_ids)
    ));
end
$$;
comment on function ask_for_arrivals(uuid[], uuid[], text) is 'Internal: what another cell is asked for each transfer.';

-- Step, before the call. Locks nothing.
create or replace function request_arrival(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    return ask_for_arrivals(p_warehouse_ids, p_saga_ids, null);
end
$$;
comment on function request_arrival(uuid[], uuid[]) is 'Step, external: asks the cell that the goods go to, to let them in.';

-- Writes down what another cell has said of transfers: p_in is the outcome that says that the goods are there, the
-- other of the two that they won't be, and why. Locks: transfers.
create or replace function note_arrivals(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[], p_in text) returns void
language sql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    update transfers as t
    set
        status = case a.answer ->> 'outcome' when p_in then 'arrived' else t.status end,
        refusal = case when a.answer ->> 'outcome' <> p_in then left(a.answer ->> 'message', 500) end,
        updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where t.id = a.saga_id and t.id = any(p_saga_ids) and t.warehouse_id = any(p_warehouse_ids)
        and a.answer ->> 'outcome' in ('approved', 'declined');
end;
comment on function note_arrivals(uuid[], uuid[], jsonb[], text) is 'Internal: writes down whether the goods of transfers are in.';

-- Step, with the answers. Locks: transfers.
create or replace function record_arrival(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[]) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform note_arrivals(p_warehouse_ids, p_saga_ids, p_answers, 'approved');
    return outcomes_of_answers(p_saga_ids, p_answers, 'transfer', 'DP055');
end
$$;
comment on function record_arrival(uuid[], uuid[], jsonb[]) is 'Step, external: records whether the goods of a transfer were let in.';

-- Undo, before the call: what may be in, or may come in yet, is refused first. Locks nothing.
create or replace function request_call_back(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    return ask_for_arrivals(p_warehouse_ids, p_saga_ids, 'called back');
end
$$;
comment on function request_call_back(uuid[], uuid[]) is 'Undo, external: asks the cell that the goods go to, to let them in no more.';

-- Undo, with the answers. Goods that are in already have arrived, and there is nothing to put back.
-- Locks: transfers.
create or replace function record_call_back(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[]) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform note_arrivals(p_warehouse_ids, p_saga_ids, p_answers, 'declined');
    return outcomes_of_answers(
        p_saga_ids,
        array(
            select case a.answer ->> 'outcome' when 'declined' then '{"outcome": "approved"}' else a.answer end
            from unnest(p_answers) with ordinality as a (answer, n)
            order by a.n
        ),
        'transfer'
    );
end
$$;
comment on function record_call_back(uuid[], uuid[], jsonb[]) is
    'Undo, external: records that the goods of a transfer won''t come in any more, or that they are in.';

-- Effect of the undo: the goods of transfers that have not arrived are where they were. What retention
-- calls old is put back too, so the ledger is written past move_stock().
-- Locks: transfers, inventory by (product_id, warehouse_id).
create or replace function put_back_transfers(p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_transfer transfers;
begin
    -- A shelf that was given up meanwhile is made again; all are there, and locked in order.
    perform lock_stock(array_agg(t.warehouse_id), array_agg(t.product_id))
    from transfers as t
    where t.id = any(p_saga_ids) and t.warehouse_id = any(p_warehouse_ids) and t.status = 'in_transit';
    for v_transfer in
        update transfers as t
        set status = 'undone', refusal = coalesce(t.refusal, 'called back'), updated_at = clock()
        where t.id = any(p_saga_ids) and t.warehouse_id = any(p_warehouse_ids) and t.status = 'in_transit'
        returning t.*
    loop
        perform lock_shelf(v_transfer.warehouse_id, v_transfer.product_id);
        perform apply_movements(
            'transfer_in', array[v_transfer.id], array[v_transfer.warehouse_id], array[v_transfer.product_id],
            array[v_transfer.quantity], v_transfer.refusal, 'warehouse', v_transfer.to_warehouse_id
        );
    end loop;
end
$$;
comment on function put_back_transfers(uuid[], uuid[], text[]) is 'Effect: puts the goods of transfers back that did not arrive.';

-- Calls the goods of a transfer back that is under way: the other cell refuses them from then on, if
-- they aren't in yet, and they are put back. While a call is out its answer is waited for. Asking twice
-- is asking once. Returns the transfer as it stands now: of one that is over nothing changes, and of one
-- whose saga is stuck neither, see turn_back_saga().
-- Locks: the saga. Raises: DP010.
create or replace function call_back_transfer(p_transfer_id uuid, p_reason text default null) returns transfers
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga sagas;
    v_transfer transfers;
begin
    select t.* into v_transfer from transfers as t where t.id = p_transfer_id;
    if not found then
        perform refuse(
            'DP010', 'no such transfer', format('There is no transfer %s to another cell.', p_transfer_id),
            'One within a cell is done at once: transfer the goods back.'
        );
    end if;
    select s.* into v_saga
    from sagas as s
    where s.id = v_transfer.id and s.warehouse_id = v_transfer.warehouse_id
    for no key update;
    if v_saga.status in ('running', 'waiting') and not v_saga.cancel_requested then
        insert into saga_events (saga_id, warehouse_id, event_type, message, actor)
        values (v_saga.id, v_saga.warehouse_id, 'cancelled', p_reason, current_actor());
        update sagas as s
        set
            cancel_requested = true, ready_at = case when s.status = 'running' then clock() else s.ready_at end,
            updated_at = clock()
        where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
        perform ring_bell();
    end if;
    select t.* into v_transfer from transfers as t where t.id = v_saga.id and t.warehouse_id = v_saga.warehouse_id;
    return v_transfer;
end
$$;
comment on function call_back_transfer(uuid, text) is
    'Calls the goods of a transfer to another cell back; they are put back unless they are in already.';

-- A listener that can't reach the other cell gives the request back, which costs no try; so what is
-- tried for a week is answered by errors. Either way the goods are known to be in transit.
select define_plan(
    'transfer',
    step(
        'send_goods', p_function => 'goods_have_left',
        p_undo => 'put_back', p_undo_effect_function => 'put_back_transfers', p_undo_effect => 'transfer_in'
    ),
    step(
        'bring_in', p_function => 'request_arrival', p_settle_function => 'record_arrival',
        p_undo => 'call_back', p_undo_function => 'request_call_back', p_undo_settle_function => 'record_call_back',
        p_give_up_seconds => 604800, p_stuck_seconds => 604800
    )
);
