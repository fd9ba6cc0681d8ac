-- What an operator looks at first: what the queue is made of, why sagas are stuck, and how far batches
-- have come.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Sagas that have not ended, by where they stand. The halves lead to an index each.
create or replace view queue_health with (security_invoker = true) as
with unfinished as (
    select s.id, s.saga_type, s.plan_version, s.position, s.status, s.ready_at, s.created_at
    from sagas as s
    where s.ready_at is not null
    union all
    select s.id, s.saga_type, s.plan_version, s.position, s.status, s.ready_at, s.created_at
    from sagas as s
    where s.status = 'stuck' and (s.status = 'stuck') is true
)
select
    u.saga_type,
    case
        when u.status = 'compensating' or (u.status = 'stuck' and (
            select e.event_type = 'compensation_started' from saga_events as e
            where e.saga_id = u.id and e.event_type in ('compensation_started', 'compensation_ended')
            order by e.id desc limit 1
        )) then t.undo_name
        else t.step_name
    end as step_name,
    count(*) filter (where u.ready_at <= c.now) as ready,
    count(*) filter (where u.ready_at > c.now and u.status = 'waiting') as waiting,
    count(*) filter (where u.ready_at > c.now and u.status <> 'waiting' and p.is_held is not true) as backing_off,
    count(*) filter (where p.is_held) as held_by_pause,
    count(*) filter (where u.status = 'stuck') as stuck,
    min(u.created_at) as oldest_unfinished_at,
    greatest(extract(epoch from max(c.now) - min(u.created_at)), 0)::float8 as oldest_unfinished_seconds,
    greatest(extract(epoch from max(c.now) - min(u.ready_at) filter (where u.ready_at <= c.now)), 0)::float8 as oldest_ready_seconds
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
comment on view queue_health is
    'The sagas that have not ended, by type and step: ready, waiting for an answer or a signal, backing off, held by a pause, stuck; and the oldest.';

-- Stuck sagas by what they are stuck at and why: a row for each thing to mend.
create or replace view stuck_by_cause with (security_invoker = true) as
select
    g.saga_type, g.step_name, g.error_code, g.cause,
    sum(g.sagas)::bigint as sagas,
    coalesce(jsonb_object_agg(g.currency, g.amount) filter (where g.currency is not null), '{}') as amounts,
    min(g.oldest_since) as oldest_since,
    (array_agg(g.example order by g.oldest_since))[1] as example
from (
    select
        s.saga_type, coalesce(f.step_name, t.step_name) as step_name, f.error_code, cause_of(f.message) as cause,
        coalesce(r.currency, o.currency) as currency,
        count(*) as sagas, sum(coalesce(r.amount, o.total_amount)) as amount, min(s.updated_at) as oldest_since,
        (array_agg(s.id order by s.updated_at))[1] as example
    from sagas as s
    left join saga_steps as t
        on t.saga_type = s.saga_type and t.plan_version = s.plan_version and t.position = s.position
    left join lateral (
        select e.step_name, e.error_code, e.message
        from saga_events as e
        where e.saga_id = s.id and e.event_type = 'step_failed'
        order by e.id desc
        limit 1
    ) as f on true
    left join refunds as r on r.id = s.id and r.warehouse_id = s.warehouse_id
    left join orders as o on o.id = coalesce(r.order_id, s.id) and o.warehouse_id = s.warehouse_id
    where s.status = 'stuck' and (s.status = 'stuck') is true
    group by 1, 2, 3, 4, 5
) as g
group by g.saga_type, g.step_name, g.error_code, g.cause;
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
