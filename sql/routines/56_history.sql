-- The history of sagas: append-only, with a partition per month.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger saga_events_refuse_change
before update or delete on saga_events
for each row execute function refuse_change();

create or replace trigger saga_events_refuse_truncate
before truncate on saga_events
for each statement execute function refuse_change();

create or replace trigger saga_events_refuse_truncate
before truncate on saga_events_default
for each statement execute function refuse_change();

-- Tries five times to lock a table, each time for 20 ms: who comes after waits no longer than
-- that, however long somebody else holds on to it. Returns whether it has the lock.
-- Locks: the table alone, not its partitions.
create or replace function try_to_lock(p_table regclass, p_mode text) returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
set lock_timeout = '20ms'
as $$
begin
    for v_try in 1..5 loop
        begin
            execute format('lock table only %s in %s mode', p_table, p_mode);
            return true;
        exception
            when lock_not_available then
                perform pg_sleep(0.02);
        end;
    end loop;
    return false;
end
$$;
comment on function try_to_lock(regclass, text) is
    'Internal: locks a table if that can be had at once or nearly so; says whether.';

-- Makes one partition of saga_events, beside it, and attaches it when it is whole. Returns false,
-- and leaves nothing behind, when a lock isn't to be had.
-- Locks: saga_events against other changes of it, then saga_events_default against everybody.
create or replace function make_event_partition(p_name text, p_from timestamptz, p_to timestamptz) returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
set lock_timeout = '100ms'
as $$
begin
    -- With the bounds as a check, and without rows of that month in the default partition, there
    -- is nothing to be looked through while that one is locked.
    execute format(
        'create table %I (like saga_events including defaults including constraints including indexes, '
        'constraint %I check (created_at >= %L and created_at < %L))',
        p_name, p_name || '_is_its_month', p_from, p_to
    );
    execute format('alter table %I enable row level security, force row level security', p_name);
    execute format(
        'create policy "the owner''s functions see everything" on %I to darkpearl_owner using (true) with check (true)',
        p_name
    );
    -- Row triggers are inherited, this one is not.
    execute format(
        'create trigger saga_events_refuse_truncate before truncate on %I '
        'for each statement execute function refuse_change()', p_name
    );
    if not (
        try_to_lock('saga_events', 'share update exclusive')
        and try_to_lock('saga_events_default', 'access exclusive')
    ) then
        raise lock_not_available;
    end if;
    execute format(
        'alter table saga_events attach partition %I for values from (%L) to (%L)', p_name, p_from, p_to
    );
    execute format('alter table %I drop constraint %I', p_name, p_name || '_is_its_month');
    return true;
exception
    when lock_not_available then
        return false;
end
$$;
comment on function make_event_partition(text, timestamptz, timestamptz) is
    'Internal: makes a partition of saga_events and attaches it; false when it must wait for another time.';

-- Makes sure that events of this month and the next ones have a partition of
-- their own. Returns the names of those it made; nothing when another session
-- is at it. One that somebody's long transaction is in the way of is left for the
-- next time, with a warning: nobody waits for housekeeping.
-- Locks: as make_event_partition(), when there is one to make.
create or replace function ensure_event_partitions(p_months_ahead integer default 2) returns setof text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    -- Without a zone: a month of a session's time zone is not one of UTC.
    v_this_month constant timestamp := date_trunc('month', clock() at time zone 'UTC');
    v_from timestamptz;
    v_to timestamptz;
    v_name text;
begin
    if not pg_try_advisory_xact_lock(idle_lock_key() + 1) then
        return;
    end if;
    for v_from, v_to in
        select m at time zone 'UTC', (m + interval '1 month') at time zone 'UTC'
        from generate_series(
            v_this_month, v_this_month + p_months_ahead * interval '1 month', interval '1 month'
        ) as m
    loop
        v_name := 'saga_events_' || to_char(v_from at time zone 'UTC', 'YYYY_MM');
        continue when to_regclass(v_name) is not null;
        -- A month that began without its partition stays in the default one.
        continue when exists (
            select from saga_events_default as e where e.created_at >= v_from and e.created_at < v_to
        );
        if make_event_partition(v_name, v_from, v_to) then
            return next v_name;
        else
            raise warning 'partition % is left for later: saga_events is in use', v_name;
        end if;
    end loop;
end
$$;
comment on function ensure_event_partitions(integer) is
    'Housekeeping: makes the monthly partitions of saga_events ahead of time. Keeps nobody waiting.';

-- How many events lie in the partition for those that fit no other, counted to 10,000: their
-- month had no partition when they came. Locks nothing.
create or replace function events_out_of_place() returns bigint
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select count(*) from (select from saga_events_default as e limit 10000) as few;
end;
comment on function events_out_of_place() is
    'Monitoring: events that lie in saga_events_default because their month has no partition, up to 10,000.';

-- The monthly partitions of saga_events that end before a day, oldest first, with the number of
-- their events, up to the first that tells of a saga that has not ended, which is `needed`.
-- Locks nothing.
create or replace function old_event_partitions(p_before date)
returns table (name text, events bigint, needed boolean)
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
begin
    for name in
        select c.relname
        from pg_inherits as i
        inner join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'saga_events'::regclass
            and c.relname ~ '^saga_events_[0-9]{4}_[0-9]{2}$'
            and to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= p_before
        order by c.relname
    loop
        execute format(
            'select count(*), coalesce(bool_or(s.ready_at is not null or s.status = ''stuck''), false) '
            'from %I as e left join sagas as s on s.id = e.saga_id', name
        )
        into events, needed;
        return next;
        exit when needed;
    end loop;
end
$$;
comment on function old_event_partitions(date) is
    'Internal: partitions of saga_events that end before a day, up to the first that is still needed.';

-- Retention: drops the monthly partitions of saga_events that end before a day, oldest first.
-- Returns each with the number of its events and what became of it:
--   would go   with p_dry_run, which changes nothing and needs no reason
--   dropped    detached and gone; action_log says who, why and how many
--   needed     it tells of a saga that has not ended; neither it nor any later one goes
--   busy       somebody is at saga_events; neither it nor any later one went, call it again
-- This month and the one before never go.
-- Locks: saga_events, saga_events_default and each partition that goes, to the end of the
-- transaction: call it in one of its own. Raises: DP015.
create or replace function drop_event_partitions(
    p_before date, p_reason text default null, p_dry_run boolean default false
)
returns table (name text, events bigint, outcome text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '100ms'
as $$
declare
    v_latest constant date := date_trunc('month', clock() at time zone 'UTC') - interval '1 month';
    v_old record;
begin
    if p_before is null or p_before > v_latest then
        perform refuse(
            'DP015', 'history is too young to go',
            format('All before %s was to go.', coalesce(p_before::text, 'null')),
            format('This month and the one before stay: name a day up to %s.', v_latest)
        );
    end if;
    if not p_dry_run then
        perform refuse_no_reason(p_reason);
    end if;
    -- All of it is counted before anything is locked.
    for v_old in
        select o.name, o.events, o.needed from old_event_partitions(p_before) as o
    loop
        name := v_old.name;
        events := v_old.events;
        outcome := case when v_old.needed then 'needed' when p_dry_run then 'would go' else 'dropped' end;
        if outcome = 'dropped' then
            if try_to_lock('saga_events', 'access exclusive')
                and try_to_lock('saga_events_default', 'access exclusive')
                and try_to_lock(name::regclass, 'access exclusive')
            then
                execute format('alter table saga_events detach partition %I', name);
                execute format('drop table %I', name);
                perform note_action('drop_event_partitions', name, p_reason, jsonb_build_object('events', events));
            else
                outcome := 'busy';
            end if;
        end if;
        return next;
        exit when outcome in ('needed', 'busy');
    end loop;
end
$$;
comment on function drop_event_partitions(date, text, boolean) is
    'Retention: drops the monthly partitions of saga_events that end before a day, sparing sagas that have not ended. A dry run tells what would go.';

do $$ begin perform ensure_event_partitions(); end $$;
