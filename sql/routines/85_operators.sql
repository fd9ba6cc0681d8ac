-- What an operator looks at first: what the queue is made of, why sagas are stuck, and how far batches
-- have come.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Sagas that have not ended, by where they stand; of those that are stuck p_most_stuck at most, since each
-- has its history looked up for which way it went. The halves lead to an index each. Locks nothing.
create or replace function queue_by_step(p_most_stuck bigint default null)
returns table (
    saga_type text, step_name text, ready bigint, waiting bigint, backing_off bigint, held_by_pause bigint, stuck bigint,
    oldest_unfinished_at timestamptz, oldest_unfinished_seconds double precision, oldest_ready_seconds double precision
)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    with unfinished as (
        select s.id, s.saga_type, s.plan_version, s.position, s.status, s.ready_at, s.created_at
        from sagas as s
        where s.ready_at is not null and not array[s.warehouse_id] <@ (select closed_warehouses())
        union all
        (
            select s.id, s.saga_type, s.plan_version, s.position, s.status, s.ready_at, s.created_at
            from sagas as s
            where s.status = 'stuck' and (s.status = 'stuck') is true
                and not array[s.warehouse_id] <@ (select closed_warehouses())
            limit p_most_stuck
        )
    )
    select
        u.saga_type,
        case
            when u.status = 'compensating' or (u.status = 'stuck' and (
                select e.event_type = 'compensation_started'
                from saga_events as e
                where e.saga_id = u.id and e.event_type in ('compensation_started', 'compensation_ended')
                order by e.id desc
                limit 1
            )) then t.undo_name
            else t.step_name
        end,
        count(*) filter (where u.ready_at <= c.now),
        count(*) filter (where u.ready_at > c.now and u.status = 'waiting'),
        count(*) filter (where u.ready_at > c.now and u.status <> 'waiting' and p.is_held is not true),
        count(*) filter (where p.is_held),
        count(*) filter (where u.status = 'stuck'),
        min(u.created_at),
        greatest(extract(epoch from max(c.now) - min(u.created_at)), 0)::float8,
        greatest(extract(epoch from max(c.now) - min(u.ready_at) filter (where u.ready_at <= c.now)), 0)::float8
    from unfinished as u
    cross join (select clock() as now) as c
    left join saga_steps as t
        on t.saga_type = u.saga_type and t.plan_version = u.plan_version and t.position = u.position
    left join step_settings as g on g.saga_type = u.saga_type and g.step_name = t.step_name
    cross join lateral (
        select g.paused_until > c.now and u.status in ('running', 'compensating')
            and u.ready_at between g.paused_until and g.paused_until + interval '1 second' as is_held
    ) as p
    group by 1, 2;
end;
comment on function queue_by_step(bigint) is
    'The sagas that have not ended, by type and step; of those that are stuck so many at most, or all.';

create or replace view queue_health with (security_invoker = true) as
select
    q.saga_type, q.step_name, q.ready, q.waiting, q.backing_off, q.held_by_pause, q.stuck, q.oldest_unfinished_at,
    q.oldest_unfinished_seconds, q.oldest_ready_seconds
from queue_by_step() as q;
comment on view queue_health is
    'The sagas that have not ended, by type and step: ready, waiting for an answer or a signal, backing off, held by a pause, stuck; and the oldest.';

-- Why sagas are stuck: at what, by which error, with the money that each is about. Looks up
-- each by its id; of others there is no row. Locks nothing.
create or replace function causes_of_stuck(p_saga_ids uuid[])
returns table (
    saga_id uuid, saga_type text, step_name text, error_code text, cause text, amount numeric, currency text, stuck_since timestamptz
)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select
        s.id, s.saga_type, coalesce(f.step_name, t.step_name), f.error_code, cause_of(f.message),
        coalesce(r.amount, o.total_amount), coalesce(r.currency, o.currency), s.updated_at
    from sagas as s
    left join saga_steps as t
        on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position
    left join lateral last_failure(s.id, s.created_at) as f on true
    left join refunds as r on r.id = s.id and r.warehouse_id = s.warehouse_id
    left join orders as o on o.id = coalesce(r.order_id, s.id) and o.warehouse_id = s.warehouse_id
    where s.id = any(p_saga_ids) and s.status = 'stuck';
end;
comment on function causes_of_stuck(uuid[]) is 'At what and why sagas are stuck, messages without their ids, and the money that each is about.';

-- The same by step and cause, with the oldest of each. Locks nothing.
create or replace function count_causes(p_saga_ids uuid[])
returns table (
    saga_type text, step_name text, error_code text, cause text, sagas bigint, amounts jsonb, oldest_since timestamptz, example uuid
)
language sql stable
set search_path = darkpearl, pg_temp
set jit = off
begin atomic
    select
        g.saga_type, g.step_name, g.error_code, g.cause,
        sum(g.sagas)::bigint,
        coalesce(jsonb_object_agg(g.currency, g.amount) filter (where g.currency is not null), '{}'),
        min(g.oldest_since),
        (array_agg(g.example order by g.oldest_since))[1]
    from (
        select
            c.saga_type, c.step_name, c.error_code, c.cause, c.currency,
            count(*) as sagas, sum(c.amount) as amount, min(c.stuck_since) as oldest_since,
            (array_agg(c.saga_id order by c.stuck_since))[1] as example
        from causes_of_stuck(p_saga_ids) as c
        group by 1, 2, 3, 4, 5
    ) as g
    group by g.saga_type, g.step_name, g.error_code, g.cause;
end;
comment on function count_causes(uuid[]) is 'Stuck sagas by step and cause: how many, the money by currency, since when, and one of them.';

-- Stuck sagas by what they are stuck at and why: a row for each thing to mend.
create or replace view stuck_by_cause with (security_invoker = true) as
select c.saga_type, c.step_name, c.error_code, c.cause, c.sagas, c.amounts, c.oldest_since, c.example
from count_causes(array(
    select s.id from sagas as s
    where s.status = 'stuck' and (s.status = 'stuck') is true
        and not array[s.warehouse_id] <@ (select closed_warehouses())
)) as c;
comment on view stuck_by_cause is
    'Stuck sagas by step and cause, messages without their ids: how many, the money by currency, since when, and one of them. Then: retry_sagas(), skip_steps() or cancel_orders() with such a filter.';

create or replace view batch_overview with (security_invoker = true) as
select
    b.id, b.action, b.filter, b.reason, b.actor, b.pace_per_second, b.total, b.done, b.failed,
    b.total - b.done - b.failed as left_to_do,
    case when b.finished_at is not null then case when b.stopped_by is null then 'finished' else 'stopped' end else 'running' end as state,
    b.created_at, b.finished_at, b.stopped_by
from batches as b;
comment on view batch_overview is 'Every batch: what it does to which, why, for whom, and how far it has come. What became of each item: batch_items.';
