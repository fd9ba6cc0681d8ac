-- Views for DBAs: the overviews that people look at. The proof that all of it agrees is in
-- 83_audit.sql.
--
-- What gateways, operators and errors of our own say is for staff. A customer may not
-- select it, and is told in our words by told_message() and told_decline_code(), which
-- the views ask for everybody.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- What went wrong, as customers are told. Words that name their own goods are theirs to read.
-- Locks nothing.
create or replace function public_message(p_error_code text, p_message text) returns text
language sql immutable parallel safe
return case p_error_code
    when 'DP006' then p_message
    when 'DP013' then 'no answer in time'
    when 'DP014' then 'payment declined'
    when 'DP017' then 'an outside system failed'
    when 'DP046' then 'payment given up'
    else 'something went wrong'
end;
comment on function public_message(text, text) is 'Internal: what a customer is told of an error; nothing that an outside system wrote.';

-- Why a payment was declined, as customers are told: what the payer can mend, by the names
-- that it is known by. What a bank suspects of a card is not for who holds it.
-- Locks nothing.
create or replace function public_decline_code(p_code text) returns text
language sql immutable parallel safe
return case
    when p_code is null then null
    when p_code in ('insufficient_funds', 'expired_card', 'authentication_required', 'payment_method_required') then p_code
    when p_code in ('incorrect_number', 'invalid_number') then 'incorrect_number'
    when p_code in ('incorrect_cvc', 'invalid_cvc') then 'incorrect_cvc'
    when p_code in ('invalid_expiry_month', 'invalid_expiry_year') then 'incorrect_expiry'
    else 'card_declined'
end;
comment on function public_decline_code(text) is 'Internal: the few codes that customers are told; card_declined for all others.';

-- Whether the caller may know of an order's payment and saga: a customer of their own
-- order's, whoever else may ask at all of any. Locks nothing.
create or replace function may_know_of(p_order_id uuid) returns boolean
language sql stable
return not acts_as_customer() or exists (
    select from orders as o where o.id = p_order_id and o.customer_id = current_customer()
);
comment on function may_know_of(uuid) is 'Internal: false for a customer and an order that isn''t theirs.';

-- The message of an event: to customers what they said themselves, or what public_message()
-- says. Reads what they may not. Its plan is kept: it is asked for row by row, and to plan a look into
-- all months takes longer than to have it. Locks nothing.
create or replace function told_message(p_saga_id uuid, p_event_id bigint, p_created_at timestamptz) returns text
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
as $$
declare
    v_event saga_events;
begin
    if may_know_of(p_saga_id) then
        select e.* into v_event
        from saga_events as e
        where e.saga_id = p_saga_id and e.id = p_event_id and e.created_at = p_created_at;
    end if;
    return case
        when not acts_as_customer() or v_event.actor = current_actor() then v_event.message
        when v_event.error_code is not null then public_message(v_event.error_code, v_event.message)
    end;
end
$$;
comment on function told_message(uuid, bigint, timestamptz) is
    'The message of an event of a saga, as the caller may read it: customers are told in our words.';

-- The code under which the payment of an order was declined, or one of its refunds: to
-- customers by public_decline_code(). Reads what they may not. Locks nothing.
create or replace function told_decline_code(p_order_id uuid, p_refund_id uuid default null) returns text
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select case when acts_as_customer() then public_decline_code(d.code) else d.code end
    from (
        select p.decline_code from payments as p where p.order_id = p_order_id and p_refund_id is null
        union all
        select r.decline_code from refunds as r where r.id = p_refund_id and r.order_id = p_order_id
    ) as d (code)
    where may_know_of(p_order_id);
end;
comment on function told_decline_code(uuid, uuid) is
    'Why a payment or a refund was declined, as the caller may read it: customers are told a few codes.';

create or replace view order_overview with (security_invoker = true) as
select
    o.id, o.order_number, o.status, o.total_amount, o.currency, o.customer_id,
    w.code as warehouse,
    p.status as payment_status,
    s.status as saga_status,
    coalesce(st.step_name, '') as saga_step,
    o.created_at, o.updated_at, o.warehouse_id,
    s.ready_at as saga_ready_at,
    d.reference
from orders as o
inner join warehouses as w on w.id = o.warehouse_id
left join payments as p on p.order_id = o.id and p.warehouse_id = o.warehouse_id
left join sagas as s on s.id = o.id and s.warehouse_id = o.warehouse_id
left join saga_steps as st
    on st.saga_type = s.saga_type and st.plan_version = s.plan_version and st.position = s.position
left join order_particulars as d on d.order_id = o.id and d.warehouse_id = o.warehouse_id;
comment on view order_overview is 'Every order with its payment, where its saga stands, and the shop''s own reference.';

-- Shelves that run out, by what can be sold. Each reading looks at all shelves: an index over
-- quantities would end the cheap updates that every order makes of them.
create or replace view low_stock with (security_invoker = true) as
select
    i.id, i.product_id, i.warehouse_id, p.sku, p.name as product_name, w.code as warehouse_code,
    i.quantity_sellable, i.quantity_reserved, i.reorder_point, i.reorder_quantity,
    i.reorder_point - i.quantity_sellable as shortage, i.created_at
from inventory as i
inner join products as p on p.id = i.product_id
inner join warehouses as w on w.id = i.warehouse_id
where i.quantity_sellable <= i.reorder_point
    and not array[i.warehouse_id] <@ (select closed_warehouses());
comment on view low_stock is 'Shelves of which the reorder point or less can be sold.';

-- What to order: as many times the reorder quantity as it takes to be above the reorder point.
create or replace view reorder_suggestions with (security_invoker = true) as
select
    l.id, l.product_id, l.warehouse_id, l.sku, l.product_name, l.warehouse_code,
    l.quantity_sellable, l.reorder_point, l.reorder_quantity, l.shortage,
    l.reorder_quantity::bigint * (l.shortage / l.reorder_quantity + 1) as suggested_quantity
from low_stock as l
inner join products as p on p.id = l.product_id and p.is_active
inner join warehouses as w on w.id = l.warehouse_id and w.is_active
where l.reorder_quantity > 0;
comment on view reorder_suggestions is
    'How much to order of what runs out, in multiples of its reorder quantity; of products that are sold, for warehouses that take orders.';

-- Goods that have left for another cell's warehouse and are not there yet, the longest under way first.
create or replace view stock_in_transit with (security_invoker = true) as
select
    t.id, t.created_at as since, p.sku, p.name as product_name, w.code as from_warehouse_code, o.code as to_warehouse_code,
    t.quantity, s.status as saga_status, s.ready_at as saga_ready_at, t.product_id, t.warehouse_id as from_warehouse_id, t.to_warehouse_id
from transfers as t
inner join products as p on p.id = t.product_id
inner join warehouses as w on w.id = t.warehouse_id
inner join warehouses as o on o.id = t.to_warehouse_id
left join sagas as s on s.id = t.id and s.warehouse_id = t.warehouse_id
where t.status = 'in_transit' and not array[t.warehouse_id] <@ (select closed_warehouses());
comment on view stock_in_transit is 'Goods that have left for a warehouse of another cell and are not there yet.';

-- What this cell says of each transfer, of its own and of other cells': for who compares both ends.
create or replace view transfer_ends with (security_invoker = true) as
select t.id, true as is_outgoing, t.warehouse_id, t.product_id, t.quantity, t.status::text as said, t.updated_at as changed_at,
    t.to_warehouse_id as other_warehouse_id
from transfers as t
where not array[t.warehouse_id] <@ (select closed_warehouses())
union all
select
    a.transfer_id, false, a.warehouse_id, a.product_id, a.quantity,
    case when a.refusal is null then 'arrived' else 'refused' end, a.created_at, a.from_warehouse_id
from transfer_arrivals as a
where not array[a.warehouse_id] <@ (select closed_warehouses());
comment on view transfer_ends is 'What this cell says of each transfer between cells: of those that left it, and of those that came.';

create or replace view saga_overview with (security_invoker = true) as
select
    s.id, s.saga_type, s.status,
    case
        when s.status in ('compensating', 'compensated') or (
            s.status = 'stuck' and (
                select b.event_type = 'compensation_started' from saga_events as b
                where b.saga_id = s.id and b.event_type in ('compensation_started', 'compensation_ended')
                order by b.id desc limit 1
            )
        ) then st.undo_name
        else st.step_name
    end as current_step,
    s.attempts, s.cancel_requested,
    s.ready_at,
    failure.error_code as last_error_code,
    case when failure.id is not null then told_message(s.id, failure.id, failure.created_at) end as last_error,
    s.created_at, s.updated_at,
    case when s.ready_at is null and s.status <> 'stuck' then s.updated_at end as completed_at,
    s.warehouse_id, s.plan_version
from sagas as s
left join saga_steps as st
    on st.saga_type = s.saga_type and st.plan_version = s.plan_version and st.position = s.position
left join lateral (
    select e.id, e.error_code, e.created_at
    from saga_events as e
    where e.saga_id = s.id and e.event_type = 'step_failed' and (
        s.status <> 'compensated' or e.id < (
            select max(b.id) from saga_events as b where b.saga_id = s.id and b.event_type = 'compensation_started'
        )
    )
    order by e.id desc
    limit 1
) as failure on true;
comment on view saga_overview is
    'Every saga: where it stands, its tries, its last failure; of one that is undone, the last before it turned back.';

create or replace view saga_history with (security_invoker = true) as
select
    e.id, e.saga_id, e.event_type, e.step_name, e.attempt, e.error_code,
    told_message(e.saga_id, e.id, e.created_at) as message,
    e.next_attempt_at, e.actor, e.started_at, e.created_at
from saga_events as e;
comment on view saga_history is 'The events of every saga, each with its message as the caller may read it.';

create or replace view stuck_sagas with (security_invoker = true) as
select
    v.id, v.saga_type, v.current_step, v.last_error_code, v.last_error,
    o.order_number, o.status as order_status, o.total_amount, o.currency,
    p.status as payment_status,
    p.captured_amount - p.refunded_amount as amount_held,
    v.updated_at as stuck_since, v.warehouse_id,
    o.id as order_id,
    -- The customer that money may have to go back to, and how much.
    o.customer_id as owed_to,
    case
        when r.id is not null then r.amount
        when exists (
            select from saga_steps as t
            where t.saga_type = v.saga_type and t.plan_version = v.plan_version
                and t.undo_name = v.current_step and t.undo_settle_function = 'record_void'
        ) then greatest(p.captured_amount - p.refunded_amount, p.requested_amount)
    end as amount_owed
from saga_overview as v
left join refunds as r on r.id = v.id and r.warehouse_id = v.warehouse_id
left join orders as o on o.id = coalesce(r.order_id, v.id) and o.warehouse_id = v.warehouse_id
left join payments as p on p.order_id = o.id and p.warehouse_id = o.warehouse_id
-- The first condition leads to the index, the second says how few they are: its statistics
-- aren't hidden by row-level security.
where v.status = 'stuck' and (v.status = 'stuck') is true
    and not array[v.warehouse_id] <@ (select closed_warehouses());
comment on view stuck_sagas is 'Sagas that need a person, with what is held and what may be owed to whom. Then: retry_saga(), turn_back_saga() or skip_step().';

-- The state of each saga by its events alone: the last event that moved it.
create or replace view sagas_from_events with (security_invoker = true) as
with step as (
    select saga_type, plan_version, position, step_name as name, true as forward
    from saga_steps
    union all
    select saga_type, plan_version, position, undo_name, false
    from saga_steps
    where undo_name is not null
),
event as (
    select e.*, t.forward
    from saga_events as e
    left join sagas as s on s.id = e.saga_id
    left join step as t on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.name = e.step_name
),
last_move as (
    select distinct on (saga_id) *
    from event
    where event_type not in ('cancelled', 'signalled', 'reported', 'shipped', 'returned')
    order by saga_id, id desc
)
select
    l.saga_id as id,
    case l.event_type
        when 'saga_completed' then 'completed'
        when 'saga_compensated' then 'compensated'
        when 'saga_stuck' then 'stuck'
        when 'compensation_started' then 'compensating'
        when 'step_compensated' then 'compensating'
        when 'retried' then case when l.forward then 'running' else 'compensating' end
        when 'step_waiting' then case when l.forward then 'waiting' else 'compensating' end
        when 'step_failed' then case when l.forward then 'running' else 'compensating' end
        when 'step_deferred' then case when l.forward then 'running' else 'compensating' end
        else 'running'
    end::saga_status as status,
    case
        -- What failed and isn't tried again by itself went back to a wait.
        when l.event_type = 'step_failed' and l.next_attempt_at is null then 0
        when l.event_type in ('step_waiting', 'step_failed') then l.attempt
        when l.event_type = 'step_deferred' then l.attempt - 1
        else 0
    end::smallint as attempts,
    l.created_at as updated_at
from last_move as l;
comment on view sagas_from_events is 'The status of each saga, rebuilt from saga_events alone.';

create or replace view disputed_payments with (security_invoker = true) as
select
    d.order_id, o.order_number, d.status, d.amount, d.currency, d.reason, d.gateway, d.reference,
    p.captured_amount, p.refunded_amount, d.opened_at, d.updated_at, d.warehouse_id
from disputes as d
inner join orders as o on o.id = d.order_id and o.warehouse_id = d.warehouse_id
inner join payments as p on p.order_id = d.order_id and p.warehouse_id = d.warehouse_id
where not array[d.warehouse_id] <@ (select closed_warehouses());
comment on view disputed_payments is 'Payments that the payer''s bank wants back, or has had back. Refunds of those that are not won are refused.';

create or replace view failed_refunds with (security_invoker = true) as
select
    r.id, r.order_id, o.order_number, o.status as order_status, o.customer_id as owed_to, r.amount, r.currency, r.decline_code,
    r.updated_at as failed_at, r.warehouse_id
from refunds as r
inner join orders as o on o.id = r.order_id and o.warehouse_id = r.warehouse_id
where r.status = 'failed' and not exists (
    select from refunds as n
    where n.order_id = r.order_id and n.created_at > r.updated_at and n.status in ('requested', 'refunded')
) and not array[r.warehouse_id] <@ (select closed_warehouses());
comment on view failed_refunds is 'Refunds that came to nothing after they were paid out, and that no other has followed. Then: refund_order() or record_manual_refund().';

-- Orders that wait for somebody to pack them. A wait began with its first event; each parcel
-- begins it anew.
create or replace view orders_to_ship with (security_invoker = true) as
select
    o.id, o.order_number, o.status, o.warehouse_id, w.code as warehouse, o.customer_id, o.total_amount, o.currency,
    p.status as payment_status,
    (select sum(g.quantity) from goods_to_ship(o.id) as g) as units_left,
    (select count(*) from shipments as h where h.order_id = o.id) as parcels,
    d.waits_since, d.due_at, d.due_at <= clock() as is_overdue,
    exists (select from disputes as x where x.order_id = o.id and x.status <> 'won') as is_disputed
from sagas as s
inner join saga_steps as t
    on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position
        and t.settle_function in ('record_first_parcel', 'record_parcel')
inner join step_settings as c on c.saga_type = s.saga_type and c.step_name = t.step_name
inner join orders as o on o.id = s.id and o.warehouse_id = s.warehouse_id
inner join warehouses as w on w.id = o.warehouse_id
left join payments as p on p.order_id = o.id and p.warehouse_id = o.warehouse_id
cross join lateral (
    select b.waits_since, b.waits_since + c.timeout_seconds * interval '1 second' as due_at
    from (
        select coalesce(min(e.created_at), s.updated_at) as waits_since
        from saga_events as e
        where e.saga_id = s.id and e.event_type = 'step_waiting' and e.step_name = t.step_name and e.error_code is null
            and e.created_at >= coalesce(
                (select max(h.shipped_at) from shipments as h where h.order_id = s.id), '-infinity'
            ) - interval '1 minute'
    ) as b
) as d
where s.status = 'waiting' and s.ready_at is not null and not s.cancel_requested
    and not array[s.warehouse_id] <@ (select closed_warehouses());
comment on view orders_to_ship is
    'Orders that wait for parcels: what is left, since when, whether nobody has packed for longer than timeout_seconds of the step, and whether the payer wants the money back. Then: ship_items().';

-- The sessions whose locks keep a pass from what it would change: those that have been in a
-- transaction for over a second in which they locked rows of ours or a table, and those that
-- somebody waits for right now. A pass gives way after 200 ms, so most that hold something
-- block nobody at the moment that one looks. A prepared transaction has no pid. What a session is
-- doing and since when is hidden from who may not see it: then state and since are null, and
-- only who is waited for is named. Locks nothing.
create or replace function blocking_sessions()
returns table (
    pid integer, user_name name, application text, state text, since timestamptz, holds text[], blocks integer[]
)
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    with holder as (
        select l.pid, array_agg(distinct l.relation::regclass::text) as holds
        from pg_locks as l
        where l.locktype = 'relation' and l.granted and l.mode <> 'AccessShareLock' and l.pid is distinct from pg_backend_pid()
            and l.database = (select d.oid from pg_database as d where d.datname = current_database())
            and l.relation = any(
                array['sagas'::regclass, 'orders', 'payments', 'refunds', 'inventory', 'saga_signals', 'step_settings']
            )
        group by l.pid
    ),
    waiter as (
        select b.pid, array_agg(w.pid order by w.pid) as pids
        from (select distinct l.pid from pg_locks as l where not l.granted) as w
        cross join lateral unnest(pg_blocking_pids(w.pid)) as b (pid)
        group by b.pid
    )
    select h.pid, a.usename, a.application_name, a.state, a.xact_start, h.holds, coalesce(w.pids, '{}')
    from holder as h
    left join pg_stat_activity as a on a.pid = h.pid
    left join waiter as w on w.pid = coalesce(h.pid, 0)
    where h.pid is null or a.xact_start < clock_timestamp() - interval '1 second' or w.pid is not null;
end;
comment on function blocking_sessions() is
    'Who holds, in a transaction that stays open, what the engine would change: pid, who, since when, which tables, and whom it blocks now.';

create or replace view cell_overview with (security_invoker = true) as
select
    c.number, c.name, c.url, c.number = this_cell() as is_here,
    (select count(*) from warehouses as w where w.cell = c.number) as warehouses, c.created_at, c.removed_at
from cells as c;
comment on view cell_overview is 'The databases that warehouses are divided among, with how many each has.';

create or replace view engine_health with (security_invoker = true) as
select
    count(*) filter (where s.ready_at <= t.now) as ready,
    coalesce(extract(epoch from t.now - min(s.ready_at) filter (where s.ready_at <= t.now)), 0)::float8
        as oldest_ready_seconds,
    count(*) filter (where s.ready_at > t.now and s.status = 'waiting') as waiting,
    count(*) filter (where s.ready_at > t.now and s.status <> 'waiting') as backing_off,
    stuck.n as stuck,
    pg_notification_queue_usage() as notification_queue_usage,
    (select max(p.paused_until) from step_settings as p where p.paused_until > clock()) as external_steps_paused_until,
    (select count(*) from gateway_events as g where g.disposition = 'unmatched') as unmatched_gateway_events,
    events_out_of_place() as events_out_of_place,
    (select count(*) from disputed_payments as d where d.status = 'open') as open_disputes,
    (select count(*) from failed_refunds) as failed_refunds,
    array(
        select concat_ws(
            ' ', 'pid', coalesce(b.pid::text, 'none, prepared'), b.user_name, quote_ident(b.application), b.state,
            'since ' || to_char(b.since, 'YYYY-MM-DD HH24:MI:SSOF'), 'holds', array_to_string(b.holds, ', '),
            'blocks ' || nullif(array_to_string(b.blocks, ', '), '')
        )
        from blocking_sessions() as b
    ) as blocked_by,
    -- Sagas that wait for the end of a pause have its time, see pause_external_steps().
    (
        select count(*)
        from step_settings as p
        inner join saga_steps as k on k.saga_type = p.saga_type and k.step_name = p.step_name
        inner join sagas as h
            on h.saga_type = k.saga_type and h.plan_version = k.plan_version and h.position = k.position
                and h.status in ('running', 'compensating')
                and h.ready_at between p.paused_until and p.paused_until + interval '1 second'
        where p.paused_until > clock()
    ) as held_by_pause,
    coalesce(extract(epoch from greatest(t.now - least(
        min(s.created_at), stuck.oldest_at
    ), interval '0')), 0)::float8 as oldest_unfinished_seconds,
    coalesce((
        select extract(epoch from max(p.paused_until) - clock()) from step_settings as p where p.paused_until > clock()
    ), 0)::float8 as external_steps_paused_seconds,
    (select count(*) from listener_activity as l where l.is_alive) as listeners_alive,
    (select count(*) from listener_activity as l where not l.is_alive) as listeners_silent,
    (select min(l.seen_seconds_ago) from listener_activity as l) as listener_seen_seconds,
    (select count(*) from listener_activity as l where l.is_alive and l.breaker <> 'closed') as breakers_open,
    (select count(*) from batches as b where b.finished_at is null) as batches_running,
    (select count(*) from listener_activity as l where l.is_alive and starts_with(l.activity, 'backing off')) as listeners_failing
from (select clock() as now) as t
cross join (
    select count(*) as n, min(k.created_at) as oldest_at
    from sagas as k
    where k.status = 'stuck' and not array[k.warehouse_id] <@ (select closed_warehouses())
) as stuck
left join sagas as s
    on s.ready_at is not null
    and not array[s.warehouse_id] <@ (select closed_warehouses())
group by t.now, stuck.n, stuck.oldest_at;
comment on view engine_health is 'The queue in one row: what is ready, how long it has been, what waits, what is stuck.';
