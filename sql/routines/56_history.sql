-- The history of sagas: append-only, with a partition per month.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger saga_events_refuse_change
before update on saga_events
for each row execute function refuse_change();

create or replace trigger saga_events_refuse_removal
before delete on saga_events
for each row execute function refuse_change('saga_id');

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

-- The name and the bounds of the partition that events of a moment belong to: a month of UTC,
-- whatever zone the session is in. Locks nothing.
create or replace function event_month(
    p_at timestamptz, out name text, out starts_at timestamptz, out ends_at timestamptz
)
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select
        to_char(m.month, '"saga_events_"YYYY_MM'), m.month at time zone 'UTC',
        (m.month + interval '1 month') at time zone 'UTC'
    from (select date_trunc('month', p_at at time zone 'UTC') as month) as m;
end;
comment on function event_month(timestamptz) is 'Internal: the partition that events of a moment belong to.';

-- Makes a table for events of the month of a moment, beside saga_events. Its bounds are a check,
-- so that nothing is looked through when it is attached. Locks nothing that anybody uses.
create or replace function make_event_table(p_at timestamptz) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_month constant record := event_month(p_at);
begin
    execute format(
        'create table %I (like saga_events including defaults including constraints including indexes, '
        'constraint %I check (created_at >= %L and created_at < %L))',
        v_month.name, v_month.name || '_is_its_month', v_month.starts_at, v_month.ends_at
    );
    execute format('alter table %I enable row level security, force row level security', v_month.name);
    execute format(
        'create policy "the owner''s functions see everything" on %I to darkpearl_owner using (true) with check (true)',
        v_month.name
    );
    -- Row triggers are inherited, this one is not.
    execute format(
        'create trigger saga_events_refuse_truncate before truncate on %I '
        'for each statement execute function refuse_change()', v_month.name
    );
end
$$;
comment on function make_event_table(timestamptz) is
    'Internal: makes a table for the events of a month, which is not a partition yet.';

-- Locks what a partition is attached to. Raises: 55P03 when that isn't to be had.
-- Locks: saga_events against other changes of it, then saga_events_default against everybody.
create or replace function lock_for_attaching() returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if not (
        try_to_lock('saga_events', 'share update exclusive')
        and try_to_lock('saga_events_default', 'access exclusive')
    ) then
        raise lock_not_available;
    end if;
end
$$;
comment on function lock_for_attaching() is 'Internal: locks saga_events and its default partition, or raises soon.';

-- Makes the table of a month a partition, under the locks of lock_for_attaching(). With its
-- check, and without events of that month in the default partition, there is nothing to be
-- looked through. Returns its name.
create or replace function attach_event_table(p_at timestamptz) returns text
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_month constant record := event_month(p_at);
begin
    execute format(
        'alter table saga_events attach partition %I for values from (%L) to (%L)',
        v_month.name, v_month.starts_at, v_month.ends_at
    );
    execute format('alter table %I drop constraint %I', v_month.name, v_month.name || '_is_its_month');
    return v_month.name;
end
$$;
comment on function attach_event_table(timestamptz) is 'Internal: attaches the table of a month to saga_events.';

-- Makes one partition of saga_events. Returns its name; null, and leaves nothing behind, when a
-- lock isn't to be had. Locks: as lock_for_attaching().
create or replace function make_event_partition(p_at timestamptz) returns text
language plpgsql
set search_path = darkpearl, pg_temp
set lock_timeout = '100ms'
as $$
begin
    perform make_event_table(p_at);
    perform lock_for_attaching();
    return attach_event_table(p_at);
exception
    when lock_not_available then
        return null;
end
$$;
comment on function make_event_partition(timestamptz) is
    'Internal: makes a partition of saga_events and attaches it; null when it must wait for another time.';

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
    v_month record;
    v_name text;
begin
    if not pg_try_advisory_xact_lock(idle_lock_key() + 1) then
        return;
    end if;
    for v_month in
        select m.name, m.starts_at, m.ends_at
        from (select date_trunc('month', clock() at time zone 'UTC') as this_month) as c
        cross join generate_series(0, p_months_ahead) as n
        cross join event_month((c.this_month + n * interval '1 month') at time zone 'UTC') as m
        order by n
    loop
        continue when to_regclass(v_month.name) is not null;
        -- A month that began without its partition stays in the default one while it lasts.
        continue when exists (
            select from saga_events_default as e
            where e.created_at >= v_month.starts_at and e.created_at < v_month.ends_at
        );
        v_name := make_event_partition(v_month.starts_at);
        if v_name is not null then
            return next v_name;
        else
            raise warning 'partition % is left for later: saga_events is in use', v_month.name;
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

-- Moves the events that lie in saga_events_default into partitions of their months. It waits until
-- none of this month are among them, to which others may come. They are copied while everybody
-- works; then the copies are attached in place of the originals, which takes the same moment however
-- many there are. Returns the names of the partitions: none when there is nothing to move, or more
-- than p_limit events (null for no limit), or another session or a transaction is in the way, or
-- the transaction is one that doesn't see what others have added since it began.
-- Locks: as lock_for_attaching(), to the end of the transaction.
create or replace function place_events(p_limit bigint default 10000) returns setof text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '100ms'
as $$
declare
    v_months timestamptz[];
    v_at timestamptz;
    v_copied bigint;
    v_events bigint := 0;
    v_names text[] := '{}';
begin
    if current_setting('transaction_isolation') <> 'read committed'
        or not pg_try_advisory_xact_lock(idle_lock_key() + 1)
        or (select count(*) from (select from saga_events_default as e limit p_limit + 1) as few) > p_limit
    then
        return;
    end if;
    v_months := array(select distinct (event_month(e.created_at)).starts_at from saga_events_default as e);
    if (event_month(clock())).starts_at = any(v_months) then
        return;
    end if;
    begin
        foreach v_at in array v_months loop
            perform make_event_table(v_at);
            execute format(
                'insert into %I select e.* from saga_events_default as e where e.created_at >= $1 and e.created_at < $2',
                (event_month(v_at)).name
            ) using v_at, (event_month(v_at)).ends_at;
            get diagnostics v_copied = row_count;
            v_events := v_events + v_copied;
        end loop;
        perform lock_for_attaching();
        if (select count(*) from saga_events_default as e) <> v_events then
            raise lock_not_available;  -- somebody's has come since
        end if;
        alter table saga_events_default disable trigger saga_events_refuse_truncate;
        truncate saga_events_default;
        alter table saga_events_default enable trigger saga_events_refuse_truncate;
        foreach v_at in array v_months loop
            v_names := v_names || attach_event_table(v_at);
        end loop;
    exception
        when lock_not_available then
            raise warning 'events stay in saga_events_default for now: saga_events is in use';
            return;
    end;
    return query select n from unnest(v_names) as n;
end
$$;
comment on function place_events(bigint) is
    'Housekeeping: moves events that came when their month had no partition into one of their own. Keeps nobody waiting.';

-- The monthly partitions of saga_events that end before a day, oldest first, with the number of
-- their events, up to the first that tells of a saga that has not ended, which is `needed`; those of
-- warehouses that have left never will. Locks nothing.
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
            'from %I as e left join sagas as s on s.id = e.saga_id and not array[s.warehouse_id] <@ $1', name
        )
        using left_warehouses()
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
--   busy       somebody is at saga_events, or a warehouse moves to another cell, where its events are
--              counted; neither it nor any later one went, call it again
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
    v_is_locked boolean;
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
            v_is_locked := try_to_lock('saga_events', 'access exclusive')
                and try_to_lock('saga_events_default', 'access exclusive')
                and try_to_lock(name::regclass, 'access exclusive');
            -- A move that begins waits for these locks: so it is looked for under them.
            if v_is_locked and not is_warehouse_moving() then
                execute format('alter table saga_events detach partition %I', name);
                execute format('drop table %I', name);
                perform note_action('drop_event_partitions', name, p_reason, jsonb_build_object('events', events));
                update retention as r
                set
                    removed = r.removed + 1,
                    removed_before = (to_date(right(name, 7), 'YYYY_MM') + interval '1 month') at time zone 'UTC'
                where r.kind = 'events';
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

-- The primary keys of months of saga_events that are closed, where they take twice the room
-- that they would when built anew: events of many sagas come at once, each amid those of its
-- own, so there is room left on each page, which nobody needs any more. None where the caller
-- may not rebuild them, who needs to own them before PostgreSQL 17. Locks nothing.
create or replace function sparse_event_indexes() returns setof text
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select i.relname::text
    from pg_inherits as h
    inner join pg_class as c on c.oid = h.inhrelid
    inner join pg_index as x on x.indrelid = c.oid and x.indisprimary
    inner join pg_class as i on i.oid = x.indexrelid
    where h.inhparent = 'saga_events'::regclass and c.relname ~ '^saga_events_[0-9]{4}_[0-9]{2}$'
        and to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' < clock() at time zone 'UTC' - interval '1 day'
        and c.reltuples > 0 and pg_relation_size(i.oid) > 1000000 and pg_relation_size(i.oid) > 130 * c.reltuples
        and (current_setting('server_version_num')::int >= 170000 or pg_has_role(c.relowner, 'usage'))
    order by i.relname;
end;
comment on function sparse_event_indexes() is
    'Housekeeping: primary keys of closed months of saga_events that take more room than they need.';

-- Makes ready that reindex index concurrently, which no function can call, builds an index of
-- sparse_event_indexes() dense: its pages are to be full, the listener may do it, and what an
-- attempt that failed has left is gone. Locks: the index; the partition if there is such a rest,
-- and raises 55P03 when that isn't to be had. Raises: DP010 for any other index.
create or replace function prepare_dense_index(p_index text) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '200ms'
as $$
declare
    v_table constant regclass := (
        select x.indrelid
        from pg_index as x
        inner join pg_inherits as h on h.inhrelid = x.indrelid and h.inhparent = 'saga_events'::regclass
        where x.indexrelid = to_regclass(quote_ident(p_index)) and x.indisprimary
    );
    v_rest name;
begin
    if v_table is null then
        perform refuse(
            'DP010', 'no such index', format('There is no primary key %s of a month of saga_events.', p_index),
            'See sparse_event_indexes().'
        );
    end if;
    for v_rest in
        select c.relname from pg_index as x inner join pg_class as c on c.oid = x.indexrelid
        where x.indrelid = v_table and not x.indisvalid
    loop
        execute format('drop index %I', v_rest);
    end loop;
    execute format('alter index %I set (fillfactor = 100)', p_index);
    if current_setting('server_version_num')::int >= 170000 then
        execute format('grant maintain on %s to darkpearl_listener', v_table);
    end if;
end
$$;
comment on function prepare_dense_index(text) is
    'Housekeeping: makes ready that a listener rebuilds the primary key of a closed month of saga_events.';

do $$ begin perform ensure_event_partitions(); end $$;
