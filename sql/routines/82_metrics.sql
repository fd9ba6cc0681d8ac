-- Numbers for monitoring, asked for every few seconds by every process: they must
-- cost the hot path nothing, so there is no index and no counter for them. History
-- is only ever added to, so its news is at the end of its newest partition.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The queue in one row, for those who may not read its tables. Locks nothing.
create or replace function engine_state() returns engine_health
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select h.* from engine_health as h;
end;
comment on function engine_state() is 'Monitoring: the row of engine_health.';

-- The same of webhooks. Locks nothing.
create or replace function webhook_state() returns webhook_health
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select h.* from webhook_health as h;
end;
comment on function webhook_state() is 'Monitoring: the row of webhook_health.';

-- Stuck sagas by type. A type of which none is stuck has its row too, so that a series goes back to
-- 0 and doesn't end. Locks nothing.
create or replace function stuck_state() returns table (saga_type text, stuck bigint)
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select t.saga_type, coalesce(k.sagas, 0)
    from (select distinct s.saga_type from saga_steps as s) as t
    left join (
        select s.saga_type, count(*) as sagas
        from sagas as s
        where s.status = 'stuck' and (s.status = 'stuck') is true
            and not array[s.warehouse_id] <@ (select closed_warehouses())
        group by s.saga_type
    ) as k on k.saga_type = t.saga_type;
end;
comment on function stuck_state() is 'Monitoring: how many sagas of each type are stuck.';

-- How far each other cell is with the catalogue, as home sees it: the state of its slot, null where it has
-- none; bytes of WAL that are kept for it, and by how much it is late; no lag while it doesn't read. A cell
-- that hears says so every ten seconds (wal_receiver_status_interval): one that is silent for longer than
-- p_silence is as late as that, since the server's own measure stands still then. Nothing in another cell. Locks nothing.
create or replace function catalogue_state(p_silence interval default '20 seconds')
returns table (
    number smallint, cell text, slot_status text, is_read boolean, kept_bytes bigint, lag_seconds double precision, is_silent boolean
)
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select
        c.number, c.name, s.wal_status, s.active, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint,
        extract(epoch from case when l.silence > p_silence then l.silence else l.lag end)::double precision,
        coalesce(l.silence > p_silence, false)
    from cells as c
    left join pg_replication_slots as s on s.slot_name = 'darkpearl_cell_' || c.number and s.database = current_database()
    left join lateral (
        select clock_timestamp() - r.reply_time as silence, coalesce(r.replay_lag, '0') as lag
        from pg_stat_replication as r
        where r.pid = s.active_pid
    ) as l on true
    where this_cell() = 1 and c.removed_at is null and c.number <> 1
    order by c.number;
end;
comment on function catalogue_state(interval) is 'Monitoring: how much WAL home keeps for each other cell, and how late its catalogue is.';

-- What is to be done now and then: how far the months of the history are made ahead, how old the
-- oldest transaction id is, and for how long nothing was audited, compared with the gateway's books,
-- or backed up. What was never done has no age. Locks nothing.
create or replace function upkeep_state()
returns table (
    partitions_ahead bigint, transaction_id_age bigint, audit_age_seconds double precision, audit_findings bigint,
    reconciliation_age_seconds double precision, reconciliation_differences bigint, backup_age_seconds double precision
)
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    with noted as (
        select t.subject, l.at, l.detail
        from (values ('backup'), ('reconciliation')) as t (subject)
        cross join lateral (
            select a.at, a.detail from action_log as a
            where a.subject = t.subject and a.action = 'record_upkeep' order by a.at desc limit 1
        ) as l
    )
    select
        (
            select count(*) filter (where m.is_there)
            from (
                select bool_and(to_regclass(
                    to_char((clock() at time zone 'UTC') + n * interval '1 month', '"saga_events_"YYYY_MM')
                ) is not null) over (order by n) as is_there
                from generate_series(0, 2) as n
            ) as m
        ),
        (
            select greatest(age(d.datfrozenxid), mxid_age(d.datminmxid))::bigint
            from pg_database as d where d.datname = current_database()
        ),
        extract(epoch from clock() - u.ended_at)::float8,
        u.finding_count::bigint,
        extract(epoch from clock() - r.at)::float8,
        (r.detail ->> 'differences')::bigint,
        extract(epoch from clock() - b.at)::float8
    from (select) as one
    left join (select a.ended_at, a.finding_count from audit_runs as a order by a.id desc limit 1) as u on true
    left join noted as r on r.subject = 'reconciliation'
    left join noted as b on b.subject = 'backup';
end;
comment on function upkeep_state() is
    'Monitoring: months of the history made ahead, the age of the oldest transaction id, and since when nothing was audited, reconciled, backed up; null: never.';

-- Counts the steps and sagas that ended since a moment, by result, with the time
-- that steps took. Reads the pages at the end of the history backwards, until a
-- piece of them is older. Looks up to 5 seconds ago, so that transactions of that
-- time have ended, and 5 minutes back at most. Locks nothing.
--
-- Each row: a step (null for a saga's own events), what happened, the first of
-- the bounds that the duration fits in (counted from 0), how many, their
-- seconds. Each call gives one row of nulls at least, whose `until` is the moment
-- to pass next time.
create or replace function step_tally(p_after timestamptz, p_bounds double precision[])
returns table (
    step_name text, event_type saga_event_type, bucket integer, events bigint, seconds double precision,
    until timestamptz
)
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_piece constant integer := 128;
    v_until constant timestamptz := clock() - interval '5 seconds';
    -- What was told last lies ahead when the clock was set back: counting goes on from here.
    v_from constant timestamptz := greatest(least(p_after, v_until), v_until - interval '5 minutes');
    v_partition regclass;
    v_page bigint;
    v_newest timestamptz;
begin
    return query select null::text, null::saga_event_type, null::integer, 0::bigint, 0::float8, v_until;
    if p_after is null then
        return;
    end if;
    for v_partition in
        select i.inhrelid
        from pg_inherits as i
        inner join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'saga_events'::regclass and c.relname in (
            'saga_events_default',
            to_char(v_from at time zone 'UTC', '"saga_events_"YYYY_MM'),
            to_char(v_until at time zone 'UTC', '"saga_events_"YYYY_MM')
        )
    loop
        v_page := pg_relation_size(v_partition) / current_setting('block_size')::bigint;
        while v_page > 0 loop
            v_page := v_page - v_piece;
            return query execute format(
                'select e.step_name, e.event_type, width_bucket(t.seconds, $3), count(*), sum(t.seconds), $2 '
                'from %s as e '
                'cross join lateral (select greatest(extract(epoch from e.created_at - e.started_at), '
                'case when e.started_at is not null then 0 end)::float8 as seconds) as t '
                'where e.ctid >= ''(%s,0)'' and e.ctid < ''(%s,0)'' '
                'and e.created_at > $1 and e.created_at <= $2 group by 1, 2, 3',
                v_partition, greatest(v_page, 0), v_page + v_piece
            )
            using v_from, v_until, p_bounds;
            execute format(
                'select max(e.created_at) from %s as e where e.ctid >= ''(%s,0)'' and e.ctid < ''(%s,0)''',
                v_partition, greatest(v_page, 0), v_page + v_piece
            )
            into v_newest;
            exit when v_newest <= v_from;
        end loop;
    end loop;
end
$$;
comment on function step_tally(timestamptz, double precision[]) is
    'Monitoring: steps and sagas that ended since a moment, with durations by bucket.';
