-- Removal of what retention lets go: of whole orders that are over, of movements that people
-- wrote, of payments and events of gateways. Each function takes a bite, some rows of the
-- oldest, and says where the next begins; 72_retention.sql says when.
--
-- Rows that somebody holds are left for another time. An id goes into spent_ids before its
-- rows go, see 15_spent_ids.sql. In the ledger an opening balance stays where movements were,
-- so that each movement still follows from the one before.
--
-- Lock order: sagas, payments, orders; nothing of inventory, which removal doesn't change.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Whether retention may remove a row of a kind: always, or, where the kind is to be exported
-- first, when its month was exported since it last changed. Locks nothing.
create or replace function is_exported(p_kind text, p_created_at timestamptz, p_changed_at timestamptz) returns boolean
language plpgsql stable
as $$
begin
    if not (select r.export_first from retention as r where r.kind = p_kind) then
        return true;
    end if;
    return exists (
        select from retention_exports as e
        where e.kind = p_kind and e.month = date_trunc('month', p_created_at at time zone 'UTC')::date
            and e.exported_at > p_changed_at
    );
end
$$;
comment on function is_exported(text, timestamptz, timestamptz) is
    'Internal: whether a row of a kind was exported since it changed, where that is wanted.';

-- Of some orders those that are over, and were before a moment: fulfilled or cancelled, with
-- nothing stuck, owed, refunded, returned, disputed or told since. Locks nothing.
create or replace function orders_that_are_over(p_order_ids uuid[], p_before timestamptz) returns setof uuid
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select o.id
    from orders as o
    inner join sagas as s on s.id = any(array[o.id]) and s.warehouse_id = o.warehouse_id
    where o.id = any(p_order_ids) and o.status in ('fulfilled', 'cancelled') and o.created_at < p_before
        and s.status in ('completed', 'compensated') and s.updated_at < p_before
        and not exists (
            select from payments as p
            where p.order_id = o.id
                and (p.updated_at >= p_before or (o.status = 'cancelled' and p.captured_amount > p.refunded_amount))
        )
        and not exists (
            select from disputes as d
            where d.order_id = o.id and (d.status = 'open' or d.updated_at >= p_before)
        )
        and not exists (
            select from refunds as r
            left join sagas as t on t.id = r.id
            where r.order_id = o.id and (
                (t.status in ('completed', 'compensated') and t.updated_at < p_before and r.updated_at < p_before)
                is not true
                or (r.status = 'failed' and not exists (
                    select from refunds as n
                    where n.order_id = o.id and n.created_at > r.updated_at and n.status = 'refunded'
                ))
            )
        )
        and not exists (
            select from stock_movements as m
            where m.reference_id = o.id and m.reference_type = 'return' and m.created_at >= p_before
        )
        and is_exported('orders', o.created_at, greatest(s.updated_at, o.updated_at, came_at(o.warehouse_id)));
end;
comment on function orders_that_are_over(uuid[], timestamptz) is
    'Internal: of some orders those that ended before a moment, with nothing open since.';

-- Of some orders those that are over and that nobody holds, locked.
-- Locks: sagas, of refunds too, payments, orders; those that are held are left out.
create or replace function lock_orders_that_are_over(p_order_ids uuid[], p_before timestamptz) returns uuid[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_ids uuid[] := array(select o from orders_that_are_over(p_order_ids, p_before) as o);
    v_refunds constant uuid[] := array(select r.id from refunds as r where r.order_id = any(v_ids));
    v_sagas uuid[];
    v_payments uuid[];
begin
    v_sagas := array(
        select s.id from sagas as s where s.id = any(v_ids || v_refunds) order by s.id for update skip locked
    );
    v_payments := array(
        select p.order_id from payments as p where p.order_id = any(v_ids) order by p.order_id for update skip locked
    );
    v_ids := array(
        select i from unnest(v_ids) as i
        where i = any(v_sagas)
            and not exists (select from refunds as r where r.order_id = i and r.id <> all(v_sagas))
            and (i = any(v_payments) or not exists (select from payments as p where p.order_id = any(array[i])))
    );
    v_ids := array(
        select o.id from orders as o where o.id = any(v_ids) order by o.id for update skip locked
    );
    -- What has changed until it was locked is seen now.
    return array(select o from orders_that_are_over(v_ids, p_before) as o);
end
$$;
comment on function lock_orders_that_are_over(uuid[], timestamptz) is
    'Internal: locks those of some orders that are over and held by nobody.';

-- Takes movements out of the ledger, each named by its number and its warehouse: where one has moved here from
-- another cell, two have the same number. The last of each run of neighbours becomes an opening
-- balance, of what was there after it, unless one follows; a balance before them has nothing
-- to say any more. Their correlation ids are spent already. Locks: the movements.
create or replace function fold_movements(p_ids bigint[], p_warehouse_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_last bigint[];
    v_last_in uuid[];
    v_balances bigint[];
    v_balances_in uuid[];
begin
    select array_agg(m.id), array_agg(m.warehouse_id) into v_last, v_last_in
    from unnest(p_ids, p_warehouse_ids) as k (id, warehouse_id)
    inner join stock_movements as m on m.id = any(array[k.id]) and m.warehouse_id = k.warehouse_id
    left join lateral (
        select f.id, f.movement_type
        from stock_movements as f
        where f.product_id = m.product_id and f.warehouse_id = m.warehouse_id and f.id > m.id
        order by f.id
        limit 1
    ) as n on true
    left join unnest(p_ids, p_warehouse_ids) as g (id, warehouse_id) on g.id = n.id and g.warehouse_id = m.warehouse_id
    where n.id is null or (g.id is null and n.movement_type <> 'balance');

    select array_agg(b.id), array_agg(m.warehouse_id) into v_balances, v_balances_in
    from unnest(p_ids, p_warehouse_ids) as k (id, warehouse_id)
    inner join stock_movements as m on m.id = any(array[k.id]) and m.warehouse_id = k.warehouse_id
    cross join lateral (
        select f.id, f.movement_type
        from stock_movements as f
        where f.product_id = m.product_id and f.warehouse_id = m.warehouse_id and f.id < m.id
        order by f.id desc
        limit 1
    ) as b
    left join unnest(p_ids, p_warehouse_ids) as g (id, warehouse_id) on g.id = b.id and g.warehouse_id = m.warehouse_id
    where b.movement_type = 'balance' and g.id is null;

    perform spend_ids(array_agg(m.correlation_id), array_agg(clock()))
    from unnest(v_balances, v_balances_in) as k (id, warehouse_id)
    inner join stock_movements as m on m.id = any(array[k.id]) and m.warehouse_id = k.warehouse_id;
    delete from movement_reasons as r
    using unnest(p_ids, p_warehouse_ids) as k (id, warehouse_id), stock_movements as m
    where m.id = any(array[k.id]) and m.warehouse_id = k.warehouse_id and m.movement_type = 'adjust'
        and r.correlation_id = m.correlation_id and r.product_id = m.product_id and r.warehouse_id = m.warehouse_id;
    update stock_movements as m
    set
        movement_type = 'balance', quantity = m.available_after, correlation_id = new_id(),
        reference_type = null, reference_id = null, notes = null, actor = null
    from unnest(v_last, v_last_in) as k (id, warehouse_id)
    where m.id = any(array[k.id]) and m.warehouse_id = k.warehouse_id;
    delete from stock_movements as m
    using (
        select u.id, u.warehouse_id from unnest(p_ids || v_balances, p_warehouse_ids || v_balances_in) as u (id, warehouse_id)
        except
        select l.id, l.warehouse_id from unnest(v_last, v_last_in) as l (id, warehouse_id)
    ) as k
    where m.id = any(array[k.id]) and m.warehouse_id = k.warehouse_id;
end
$$;
comment on function fold_movements(bigint[], uuid[]) is
    'Internal: takes movements out of the ledger, and leaves opening balances in their place.';

-- Removes whole orders, with all that belongs to them but their payments, refunds and
-- disputes, which have a rule of their own. The orders are locked. Locks: what goes.
create or replace function remove_orders(p_order_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_sagas constant uuid[] := p_order_ids || array(select r.id from refunds as r where r.order_id = any(p_order_ids));
    v_movements bigint[];
    v_warehouses uuid[];
begin
    perform spend_ids(array_agg(s.id), array_agg(s.created_at)) from sagas as s where s.id = any(v_sagas);
    perform spend_ids(array_agg(h.id), array_agg(h.created_at)) from shipments as h where h.order_id = any(p_order_ids);
    -- In halves, so that each is a look-up in an index of its own.
    with going as (
        select m.id, m.warehouse_id, m.correlation_id, m.created_at from stock_movements as m
        where m.correlation_id = any(p_order_ids) and m.movement_type in ('reserve', 'release', 'fulfill')
        union all
        select m.id, m.warehouse_id, m.correlation_id, m.created_at from stock_movements as m
        where m.reference_id = any(p_order_ids) and m.reference_type in ('return', 'shipment', 'cancellation')
    ),
    spent as (
        select spend_ids(array_agg(g.correlation_id), array_agg(g.created_at)) from going as g
    )
    select array_agg(g.id), array_agg(g.warehouse_id) into v_movements, v_warehouses from going as g, spent;
    perform fold_movements(v_movements, v_warehouses);
    delete from payment_tokens as t where t.order_id = any(p_order_ids);
    delete from return_metadata as m where m.order_id = any(p_order_ids);
    delete from order_adjustments as a where a.order_id = any(p_order_ids);
    delete from order_particulars as d where d.order_id = any(p_order_ids);
    delete from order_items as i where i.order_id = any(p_order_ids);
    delete from shipment_items as t where t.order_id = any(p_order_ids);
    delete from shipments as h where h.order_id = any(p_order_ids);
    delete from grouped_orders as g where g.order_id = any(p_order_ids);
    delete from saga_signals as g where g.saga_id = any(v_sagas);
    delete from saga_events as e where e.saga_id = any(v_sagas);
    delete from sagas as s where s.id = any(v_sagas);
    delete from orders as o where o.id = any(p_order_ids);
end
$$;
comment on function remove_orders(uuid[]) is 'Internal: removes orders with all that belongs to them but money.';

-- A bite of orders: of the next p_limit in the order of their numbers those that are over. Returns
-- how many went, and where the next bite begins; nothing, when what follows is too young.
-- Locks: as lock_orders_that_are_over().
create or replace function remove_next_orders(p_before timestamptz, p_next text, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_ids uuid[];
    v_last bigint;
    v_is_old boolean;
begin
    select array_agg(o.id), max(o.order_number), bool_and(o.created_at < p_before) and count(*) = p_limit
    into v_ids, v_last, v_is_old
    from (
        select n.id, n.order_number, n.created_at
        from orders as n
        where n.order_number > coalesce(p_next::bigint, 0)
        order by n.order_number
        limit p_limit
    ) as o;
    v_ids := lock_orders_that_are_over(v_ids, p_before);
    perform remove_orders(v_ids);
    return query select cardinality(v_ids)::bigint, case when v_is_old then v_last::text end;
end
$$;
comment on function remove_next_orders(timestamptz, text, integer) is 'Internal: removes those of the next orders that are over.';

-- Of movements that have some numbers those that people and programs wrote before a moment. Those of a return
-- go with its order, and those of a transfer stay while it is in transit. Locks nothing.
create or replace function old_movements(p_ids bigint[], p_before timestamptz, out id bigint, out warehouse_id uuid) returns setof record
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select m.id, m.warehouse_id
    from stock_movements as m
    where m.id = any(p_ids) and m.created_at < p_before
        and m.movement_type in ('receive', 'adjust', 'transfer_out', 'transfer_in')
        and (m.reference_type is distinct from 'return' or not exists (
            select from orders as o where o.id = any(array[m.reference_id])
        ))
        and not exists (
            select from transfers as t
            where t.id = m.correlation_id and t.warehouse_id = m.warehouse_id and t.status = 'in_transit'
        )
        and is_exported('movements', m.created_at, greatest(m.created_at, came_at(m.warehouse_id)));
end;
comment on function old_movements(bigint[], timestamptz) is
    'Internal: of movements that have some numbers those that people wrote before a moment.';

-- Removes transfers of some warehouses whose movements go, with their sagas; and some of what was
-- refused before a moment, which has no movement. The ids of the former are spent already.
-- Locks: what goes.
create or replace function remove_transfers(p_warehouse_ids uuid[], p_ids uuid[], p_before timestamptz, p_limit integer) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_sagas constant uuid[] := array(
        select t.id from transfers as t where t.id = any(p_ids) and t.warehouse_id = any(p_warehouse_ids)
    );
    v_places uuid[];
    v_refused uuid[];
begin
    select coalesce(array_agg(a.warehouse_id), '{}'), coalesce(array_agg(a.transfer_id), '{}') into v_places, v_refused
    from (
        select r.warehouse_id, r.transfer_id from transfer_arrivals as r
        where r.refusal is not null and r.created_at < p_before
        order by r.created_at
        limit p_limit
    ) as a;
    perform spend_ids(v_refused, array_fill(p_before, array[cardinality(v_refused)]));
    delete from transfer_arrivals as a
    where a.transfer_id = any(p_ids || v_refused) and a.warehouse_id = any(p_warehouse_ids || v_places);
    delete from transfers as t where t.id = any(v_sagas) and t.warehouse_id = any(p_warehouse_ids);
    delete from saga_signals as g where g.saga_id = any(v_sagas) and g.warehouse_id = any(p_warehouse_ids);
    delete from saga_events as e where e.saga_id = any(v_sagas) and e.warehouse_id = any(p_warehouse_ids);
    delete from sagas as s where s.id = any(v_sagas) and s.warehouse_id = any(p_warehouse_ids);
end
$$;
comment on function remove_transfers(uuid[], uuid[], timestamptz, integer) is
    'Internal: removes transfers whose movements go, with their sagas, and what was refused long ago.';

-- A bite of the movements that people and programs wrote, as remove_next_orders().
-- Locks: what goes; rows that somebody holds are left.
create or replace function remove_next_movements(p_before timestamptz, p_next text, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_ids bigint[];
    v_last bigint;
    v_is_old boolean;
    v_gone stock_movements[];
begin
    select array_agg(m.id), max(m.id), bool_and(m.created_at < p_before) and count(*) >= p_limit
    into v_ids, v_last, v_is_old
    from (
        select n.id, n.created_at
        from stock_movements as n
        where n.id > coalesce(p_next::bigint, 0)
        order by n.id
        fetch first p_limit rows with ties
    ) as m;
    v_gone := array(
        select m from stock_movements as m
        where (m.id, m.warehouse_id) in (select o.id, o.warehouse_id from old_movements(v_ids, p_before) as o)
        order by m.id
        for update skip locked
    );
    perform spend_ids(array_agg(g.correlation_id), array_agg(g.created_at)) from unnest(v_gone) as g;
    perform fold_movements(array_agg(g.id), array_agg(g.warehouse_id)) from unnest(v_gone) as g;
    perform remove_transfers(array_agg(g.warehouse_id), array_agg(g.correlation_id), p_before, p_limit)
    from unnest(v_gone) as g
    where g.movement_type in ('transfer_out', 'transfer_in');
    return query select cardinality(v_gone)::bigint, case when v_is_old then v_last::text end;
end
$$;
comment on function remove_next_movements(timestamptz, text, integer) is
    'Internal: removes movements that people wrote, and leaves opening balances.';

-- Of some payments those whose orders are gone, and of which nothing was heard since a moment.
-- Locks nothing.
create or replace function payments_that_are_over(p_order_ids uuid[], p_before timestamptz) returns setof uuid
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select p.order_id
    from payments as p
    where p.order_id = any(p_order_ids) and p.updated_at < p_before
        and not exists (select from orders as o where o.id = any(array[p.order_id]))
        and not exists (
            select from refunds as r where r.order_id = p.order_id and (r.status = 'requested' or r.updated_at >= p_before)
        )
        and not exists (
            select from disputes as d where d.order_id = p.order_id and (d.status = 'open' or d.updated_at >= p_before)
        )
        and is_exported('payments', p.created_at, greatest(p.updated_at, came_at(p.warehouse_id)));
end;
comment on function payments_that_are_over(uuid[], timestamptz) is
    'Internal: of some payments those whose orders are gone and that are long settled.';

-- A bite of payments whose orders are gone, with their refunds and disputes, in the order of
-- their keys, which is no order of time: none is too young to go on. As remove_next_orders().
-- Locks: what goes; payments that somebody holds are left.
create or replace function remove_next_payments(p_before timestamptz, p_next text, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_ids uuid[];
    v_last uuid;
begin
    v_ids := array(
        select p.order_id from payments as p
        where p_next is null or p.order_id > p_next::uuid
        order by p.order_id
        limit p_limit
    );
    v_last := case when cardinality(v_ids) = p_limit then v_ids[p_limit] end;
    v_ids := array(
        select p.order_id from payments as p
        where p.order_id in (select i from payments_that_are_over(v_ids, p_before) as i)
        order by p.order_id
        for update skip locked
    );
    perform spend_ids(array_agg(p.order_id), array_agg(p.created_at)) from payments as p where p.order_id = any(v_ids);
    perform spend_ids(array_agg(r.id), array_agg(r.created_at)) from refunds as r where r.order_id = any(v_ids);
    delete from disputes as d where d.order_id = any(v_ids);
    delete from refunds as r where r.order_id = any(v_ids);
    delete from payment_attempts as a where a.order_id = any(v_ids);
    delete from payments as p where p.order_id = any(v_ids);
    return query select cardinality(v_ids)::bigint, v_last::text;
end
$$;
comment on function remove_next_payments(timestamptz, text, integer) is
    'Internal: removes payments of orders that are gone, with their refunds and disputes.';

-- Whether an event of a gateway came before a moment and needs nobody any more. Locks nothing.
create or replace function is_event_over(p_event gateway_events, p_before timestamptz) returns boolean
language sql stable
return p_event.received_at < p_before and p_event.disposition <> 'unmatched'
    and is_exported('gateway_events', p_event.received_at, p_event.received_at);
comment on function is_event_over(gateway_events, timestamptz) is 'Internal: whether an event of a gateway may go.';

-- Trigger: an event of a gateway goes when retention says so, and no earlier; one that a person
-- has not looked at stays. Locks nothing. Raises: DP005.
create or replace function refuse_early_removal() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if is_event_over(old, clock() - (select r.keep_days from retention as r where r.kind = 'gateway_events') * interval '1 day')
    then
        return old;
    end if;
    perform refuse(
        'DP005', format('%s is append-only', tg_table_name), 'A DELETE was refused; what happened stays written.',
        'See retention for how long it is kept.'
    );
end
$$;
comment on function refuse_early_removal() is 'Trigger: refuses to remove what retention doesn''t let go yet.';

create or replace trigger gateway_events_refuse_removal
before delete on gateway_events
for each row execute function refuse_early_removal();

-- A bite of the events of gateways, in the order of their keys. As remove_next_payments(); an
-- event that is unmatched waits for a person. The next key is a JSON array.
-- Locks: what goes; events that somebody holds are left.
create or replace function remove_next_gateway_events(p_before timestamptz, p_next text, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_gateways text[];
    v_ids text[];
    v_removed bigint;
begin
    select array_agg(e.gateway), array_agg(e.event_id) into v_gateways, v_ids
    from (
        select g.gateway, g.event_id
        from gateway_events as g
        where p_next is null or (g.gateway, g.event_id) > (p_next::jsonb ->> 0, p_next::jsonb ->> 1)
        order by g.gateway, g.event_id
        limit p_limit
    ) as e;
    delete from gateway_events as e
    using (
        select g.gateway, g.event_id
        from gateway_events as g
        inner join unnest(v_gateways, v_ids) as k (gateway, event_id) using (gateway, event_id)
        where is_event_over(g, p_before)
        for update of g skip locked
    ) as old
    where e.gateway = old.gateway and e.event_id = old.event_id;
    get diagnostics v_removed = row_count;
    return query select v_removed, case
        when cardinality(v_ids) = p_limit then jsonb_build_array(v_gateways[p_limit], v_ids[p_limit])::text
    end;
end
$$;
comment on function remove_next_gateway_events(timestamptz, text, integer) is 'Internal: removes events of gateways that are old enough.';

-- A bite of the alerts of shelves that ran low, oldest first. As remove_next_orders(). Locks: what goes.
create or replace function remove_next_alerts(p_before timestamptz, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return query
    with gone as (
        delete from stock_alerts as a
        where a.created_at < p_before and a.id in (select o.id from stock_alerts as o order by o.id limit p_limit)
        returning a.id
    )
    select count(*), case when count(*) >= p_limit then max(g.id)::text end from gone as g;
end
$$;
comment on function remove_next_alerts(timestamptz, integer) is 'Internal: removes alerts of shelves that are old enough.';

-- A bite of the oldest batch that ended before a moment: its items first, then itself. As
-- remove_next_orders(). Locks: what goes.
create or replace function remove_next_batches(p_before timestamptz, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_id constant uuid := (select b.id from batches as b where b.finished_at < p_before order by b.finished_at, b.id limit 1);
    v_items bigint;
    v_removed bigint := 0;
begin
    delete from batch_items as i
    where i.batch_id = v_id
        and i.n in (select o.n from batch_items as o where o.batch_id = v_id order by o.n limit p_limit);
    get diagnostics v_items = row_count;
    if v_items < p_limit then
        delete from batches as b where b.id = v_id;
        get diagnostics v_removed = row_count;
    end if;
    return query select v_removed, v_id::text;
end
$$;
comment on function remove_next_batches(timestamptz, integer) is 'Internal: removes batches that ended long ago, with their items.';

-- A bite of what people have done by hand, oldest first; of months that are to be exported first, only once
-- they were. As remove_next_orders(). Locks: what goes.
create or replace function remove_next_actions(p_before timestamptz, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return query
    with gone as (
        delete from action_log as a
        where a.at < p_before and is_exported('action_log', a.at, a.at)
            and a.id in (select o.id from action_log as o order by o.id limit p_limit)
        returning a.id
    )
    select count(*), case when count(*) = p_limit then max(g.id)::text end from gone as g;
end
$$;
comment on function remove_next_actions(timestamptz, integer) is 'Internal: removes what people did by hand long ago.';

-- A bite of the oldest minutes of the statistics. As remove_next_orders(). Locks: what goes.
create or replace function remove_next_minutes(p_before timestamptz, p_limit integer)
returns table (removed bigint, next_key text)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return query
    with gone as (
        delete from step_minutes as m
        where m.minute < p_before and (m.minute, m.step_name, m.event_type) in (
            select o.minute, o.step_name, o.event_type from step_minutes as o
            order by o.minute, o.step_name, o.event_type limit p_limit
        )
        returning m.minute
    )
    select count(*), case when count(*) = p_limit then max(g.minute)::text end from gone as g;
end
$$;
comment on function remove_next_minutes(timestamptz, integer) is 'Internal: removes statistics of minutes that are old enough.';
