-- Statistics by the minute: what saga_events says of each minute, added up once, so that a chart of
-- any period reads rows of minutes and no event. Durations are counted in buckets, each 9 %
-- wider than the one before, so that those of any minutes can be added: a p99 of a day is as exact as
-- one of a minute.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The bucket that a duration falls in: 0 up to a millisecond, and 8 for each doubling; none for
-- none. Locks nothing.
create or replace function seconds_bucket(p_seconds double precision) returns smallint
language sql immutable parallel safe
return case
    when p_seconds > 0.001 then least(ceil(8 * ln(p_seconds * 1000) / ln(2)), 400)
    when p_seconds is not null then 0
end::smallint;
comment on function seconds_bucket(double precision) is 'The bucket of step_minutes that a duration falls in.';

-- The longest duration of a bucket. Locks nothing.
create or replace function bucket_seconds(p_bucket smallint) returns double precision
language sql immutable parallel safe
return 0.001 * 2 ^ (p_bucket / 8.0)::float8;
comment on function bucket_seconds(smallint) is 'The longest duration of a bucket of step_minutes, in seconds.';

-- Up to when all has been committed that happened: the beginning of the oldest transaction that
-- writes, 5 seconds ago at the latest, since a pass tells the time before it writes. One that stays
-- open holds this up for 15 minutes and no longer; what it commits then is in no minute. So is what
-- is hidden, where the owner may not see who is connected. Locks nothing.
create or replace function committed_up_to() returns timestamptz
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select greatest(
        least(
            clock() - interval '5 seconds',
            (select min(a.xact_start) from pg_stat_activity as a where a.backend_xid is not null and a.pid <> pg_backend_pid()),
            (select min(p.prepared) from pg_prepared_xacts as p where p.database = current_database())
        ),
        clock() - interval '15 minutes'
    );
end;
comment on function committed_up_to() is 'Internal: up to when whatever happened has been committed.';

-- Adds the next minutes up that are over, p_limit at most, from where it was left: after an absence of
-- up to a month all of it, bite by bite. The first time it begins an hour ago. Minutes that lie ahead, since
-- the clock was set back, are counted again when they come again, with what happened in them both times. Reads the events of these
-- minutes by their time, planned for it. Returns whether there are more; false too when another
-- session is at it.
-- Locks: an advisory lock, to the end of the transaction. Raises: DP015.
create or replace function fill_step_minutes(p_limit integer default 5) returns boolean
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set timezone = 'UTC'
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set enable_indexscan = off
set jit = off
as $$
declare
    v_minute constant interval := '1 minute';
    v_now constant timestamptz := date_trunc('minute', clock());
    v_from timestamptz;
    v_until timestamptz;
    v_end constant timestamptz := date_trunc('minute', committed_up_to());
begin
    if (p_limit between 1 and 60) is not true then
        perform refuse('DP015', 'no sensible limit', format('Asked for %s minutes.', coalesce(p_limit::text, 'null')), 'Pass 1 to 60.');
    end if;
    if not pg_try_advisory_xact_lock(idle_lock_key() + 4) then
        return false;
    end if;
    delete from step_minutes as m where m.minute >= v_now;
    v_from := greatest(
        (select coalesce(m.minute + v_minute, v_now - 60 * v_minute) from (select max(s.minute) as minute from step_minutes as s) as m),
        v_now - interval '31 days'
    );
    v_until := least(v_from + p_limit * v_minute, v_end);
    if v_until <= v_from then
        return false;
    end if;
    insert into step_minutes (minute, step_name, event_type, events, seconds, buckets, counts)
    select
        b.minute, b.step_name, b.event_type, sum(b.events), sum(b.seconds),
        coalesce(array_agg(b.bucket order by b.bucket) filter (where b.bucket is not null), '{}'),
        coalesce(array_agg(b.events order by b.bucket) filter (where b.bucket is not null), '{}')
    from (
        select
            date_trunc('minute', e.created_at) as minute, coalesce(e.step_name, '') as step_name, e.event_type,
            seconds_bucket(t.seconds) as bucket, count(*) as events, coalesce(sum(t.seconds), 0) as seconds
        from saga_events as e
        cross join lateral (
            select case when e.started_at is not null then greatest(extract(epoch from e.created_at - e.started_at), 0)::float8 end
        ) as t (seconds)
        where e.created_at >= v_from and e.created_at < v_until
        group by 1, 2, 3, 4
        union all
        select m, '', 'saga_started', null, 0, 0 from generate_series(v_from, v_until - v_minute, v_minute) as m
    ) as b
    group by b.minute, b.step_name, b.event_type;
    return v_until < v_end;
end
$$;
comment on function fill_step_minutes(integer) is
    'Housekeeping: adds up what happened in the next minutes that are over; whether there are more.';

-- What happened in a period, by step and outcome: how often, how many a second, and how long it took,
-- the median and the 99th percentile at most 9 % too long. Of whole minutes: from the one that p_from
-- is in, to the one before p_to. Outcomes are types of events: those of sagas have no step_name.
-- Locks nothing.
create or replace function step_statistics(p_from timestamptz, p_to timestamptz default clock())
returns table (
    step_name text, event_type saga_event_type, events bigint, per_second double precision,
    mean_seconds double precision, p50_seconds double precision, p99_seconds double precision
)
language sql stable
set search_path = darkpearl, pg_temp
set jit = off
begin atomic
    with chosen as (
        select m.* from step_minutes as m
        where m.minute >= date_trunc('minute', p_from) and m.minute < date_trunc('minute', p_to)
    ),
    bucket as (
        select
            b.step_name, b.event_type, b.bucket,
            sum(b.n) over (partition by b.step_name, b.event_type order by b.bucket) as so_far,
            sum(b.n) over (partition by b.step_name, b.event_type) as in_all
        from (
            select c.step_name, c.event_type, u.bucket, sum(u.n) as n
            from chosen as c
            cross join lateral unnest(c.buckets, c.counts) as u (bucket, n)
            group by c.step_name, c.event_type, u.bucket
        ) as b
    ),
    quantile as (
        select
            b.step_name, b.event_type, max(b.in_all) as timed,
            bucket_seconds(min(b.bucket) filter (where b.so_far >= 0.5 * b.in_all)) as p50,
            bucket_seconds(min(b.bucket) filter (where b.so_far >= 0.99 * b.in_all)) as p99
        from bucket as b
        group by b.step_name, b.event_type
    )
    select
        nullif(s.step_name, ''), s.event_type, s.events,
        s.events / extract(epoch from date_trunc('minute', p_to) - date_trunc('minute', p_from))::float8,
        s.seconds / q.timed::float8, q.p50, q.p99
    from (
        select c.step_name, c.event_type, sum(c.events)::bigint as events, sum(c.seconds) as seconds
        from chosen as c
        group by c.step_name, c.event_type
    ) as s
    left join quantile as q on q.step_name = s.step_name and q.event_type = s.event_type
    where s.events > 0
    order by s.step_name, s.event_type;
end;
comment on function step_statistics(timestamptz, timestamptz) is
    'What happened in a period, by step and outcome: how often, how many a second, how long on average, p50 and p99.';

-- How long a step took in each minute of a period that has it: the median and the 99th percentile of
-- the times it was done, at most 9 % too long. Of whole minutes, as step_statistics(). Locks nothing.
create or replace function step_durations(p_step_name text, p_from timestamptz, p_to timestamptz default clock())
returns table (minute timestamptz, events bigint, p50_seconds double precision, p99_seconds double precision)
language sql stable
set search_path = darkpearl, pg_temp
set jit = off
begin atomic
    select
        b.minute, max(b.in_all)::bigint,
        bucket_seconds(min(b.bucket) filter (where b.so_far >= 0.5 * b.in_all)),
        bucket_seconds(min(b.bucket) filter (where b.so_far >= 0.99 * b.in_all))
    from (
        select
            m.minute, u.bucket,
            sum(u.n) over (partition by m.minute order by u.bucket) as so_far,
            sum(u.n) over (partition by m.minute) as in_all
        from step_minutes as m
        cross join lateral unnest(m.buckets, m.counts) as u (bucket, n)
        where m.minute >= date_trunc('minute', p_from) and m.minute < date_trunc('minute', p_to)
            and m.step_name = p_step_name and m.event_type = 'step_completed'
    ) as b
    group by b.minute
    order by b.minute;
end;
comment on function step_durations(text, timestamptz, timestamptz) is
    'How long a step took in each minute of a period: how often it was done, p50 and p99.';
