-- What a pass leaves aside: sagas that need what another session holds.
--
-- A pass waits for a lock a moment, see advance(), since nearly always it is another
-- pass that has it. When the moment is over, all that the pass has done is rolled back,
-- and it is done once more the other way round: first it takes the locks that can be had
-- without waiting, puts off the sagas whose rows it can't have, and runs the rest, which
-- has nothing left to wait for.
--
-- A saga that is put off stands where it stood: it loses no attempt and no lease, and a
-- late answer is welcome still. It comes back at a whole second, by which a pass knows to
-- take locks first: where a thousand orders wait for one shelf, nobody else waits for them.
-- What a step of one's own locks isn't known here; there the batch comes apart in halves.
--
-- Nothing here waits for a row, so no order is needed among these locks.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Of these sagas, those of which another session holds the order, the payment or the refund.
-- Locks: orders, payments and refunds of the others, as far as they can be had at once.
create or replace function sagas_with_held_order(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns uuid[]
language plpgsql
set enable_nestloop = off
as $$
declare
    -- A refund is paid from the payment of its order.
    v_paid_by constant uuid[] := p_saga_ids || array(
        select r.order_id from refunds as r where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
    );
    v_orders constant uuid[] := array(
        select o.id from orders as o
        where o.id = any(p_saga_ids) and o.warehouse_id = any(p_warehouse_ids)
        for no key update skip locked
    );
    v_payments constant uuid[] := array(
        select p.order_id from payments as p
        where p.order_id = any(v_paid_by) and p.warehouse_id = any(p_warehouse_ids)
        for no key update skip locked
    );
    v_refunds constant uuid[] := array(
        select r.id from refunds as r
        where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
        for no key update skip locked
    );
begin
    return array(
        (
            select o.id from orders as o
            where o.id = any(p_saga_ids) and o.warehouse_id = any(p_warehouse_ids)
            except select unnest(v_orders)
        )
        union
        (
            select p.order_id from payments as p
            where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
            except select unnest(v_payments)
        )
        union
        (
            select r.id from refunds as r
            where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
            except
            select r.id from refunds as r
            inner join unnest(v_refunds) as had (id) on had.id = r.id
            inner join unnest(v_payments) as paid (id) on paid.id = r.order_id
            where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
        )
    );
end
$$;
comment on function sagas_with_held_order(uuid[], uuid[]) is
    'Internal: the sagas of which another session holds the order, the payment or the refund; locks those of the others.';

-- Of these sagas, those of which another session holds a shelf that their lines are of.
-- Locks: inventory, as far as it can be had at once.
create or replace function sagas_with_held_shelf(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns uuid[]
language plpgsql
set enable_nestloop = off
as $$
declare
    v_had locked_stock[];
begin
    select array_agg(row(s.product_id, s.warehouse_id, s.quantity_available, s.quantity_reserved)::locked_stock) into v_had
    from (
        select i.product_id, i.warehouse_id, i.quantity_available, i.quantity_reserved
        from (
            select distinct l.product_id, l.warehouse_id
            from order_items as l
            where l.order_id = any(p_saga_ids) and l.warehouse_id = any(p_warehouse_ids)
        ) as l
        inner join inventory as i
            on i.product_id = any(array[l.product_id]) and i.warehouse_id = any(array[l.warehouse_id])
        for no key update of i skip locked
    ) as s;
    return array(
        select distinct l.order_id
        from order_items as l
        inner join inventory as i
            on i.product_id = any(array[l.product_id]) and i.warehouse_id = any(array[l.warehouse_id])
        left join unnest(v_had) as h on h.product_id = l.product_id and h.warehouse_id = l.warehouse_id
        where l.order_id = any(p_saga_ids) and l.warehouse_id = any(p_warehouse_ids) and h.product_id is null
    );
end
$$;
comment on function sagas_with_held_shelf(uuid[], uuid[]) is
    'Internal: the sagas of which another session holds a shelf; locks the shelves of the others.';

-- Whether a saga that was ready then had been put off; any other is so once in a million.
-- Without a SET clause it is inlined. Locks nothing.
create or replace function was_put_off(p_was_ready_at timestamptz) returns boolean
language sql stable
return extract(microseconds from p_was_ready_at)::integer % 1000000 = 0;
comment on function was_put_off(timestamptz) is 'Internal: whether a saga that was ready then had been put off.';

-- Puts sagas off that this transaction has locked: for a tenth of the time that they have
-- stood where they are, half a minute at most, to the next whole second. One event tells of it,
-- however often it happens in a row; none for those that wait for an answer, which go on waiting.
-- Locks: the sagas.
create or replace function put_off(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns void
language plpgsql
as $$
declare
    v_now constant timestamptz := clock();
begin
    with put as (
        update sagas as s
        set
            ready_at = interval '1 second' + date_trunc(
                'second', v_now + least(greatest((v_now - s.updated_at) / 10, interval '0'), interval '30 seconds')
            )
        where s.id = any(p_saga_ids) and s.warehouse_id = any(p_warehouse_ids)
        returning s.*
    )
    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, error_code, message, next_attempt_at, created_at
    )
    select
        s.id, s.warehouse_id, 'step_deferred', case s.status when 'compensating' then t.undo_name else t.step_name end,
        s.attempts + 1, '55P03', 'another session holds what it needs: see blocking_sessions()', s.ready_at, v_now
    from put as s
    inner join saga_steps as t
        on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position
    where s.status in ('running', 'compensating') and 'step_deferred' is distinct from (
        select e.event_type from saga_events as e
        where e.saga_id = s.id and e.warehouse_id = s.warehouse_id
        order by e.id desc
        limit 1
    );
end
$$;
comment on function put_off(uuid[], uuid[]) is 'Internal: has sagas come again soon, as they stand, since another session holds what they need.';

-- Of these groups, the members that need nothing of what another session holds; the others
-- are put off. Locks: the orders, payments, refunds and shelves of those that are left.
create or replace function leave_aside_held(p_warehouse_ids uuid[], p_work saga_group[]) returns saga_group[]
language plpgsql
as $$
declare
    v_group saga_group;
    v_saga_ids uuid[] := '{}';
    v_held uuid[];
    v_left saga_group[] := '{}';
begin
    foreach v_group in array p_work loop
        v_saga_ids := v_saga_ids || v_group.saga_ids;
    end loop;
    v_held := sagas_with_held_order(p_warehouse_ids, v_saga_ids) || sagas_with_held_shelf(p_warehouse_ids, v_saga_ids);
    if cardinality(v_held) > 0 then
        perform put_off(p_warehouse_ids, v_held);
    end if;
    foreach v_group in array p_work loop
        v_saga_ids := ids_besides(v_group.saga_ids, v_held);
        if cardinality(v_saga_ids) > 0 then
            v_left := v_left || split_group(v_group, v_saga_ids);
        end if;
    end loop;
    return v_left;
end
$$;
comment on function leave_aside_held(uuid[], saga_group[]) is
    'Internal: puts off the members of groups that need what another session holds, and returns the others.';
