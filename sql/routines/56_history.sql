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

-- Makes sure that events of this month and the next ones have a partition of
-- their own. Returns the names of those it made; nothing when another session
-- is at it.
-- Locks: saga_events, when there is one to make.
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
        execute format(
            'create table %I partition of saga_events for values from (%L) to (%L)', v_name, v_from, v_to
        );
        execute format('alter table %I enable row level security, force row level security', v_name);
        -- Row triggers are inherited, this one is not.
        execute format(
            'create trigger saga_events_refuse_truncate before truncate on %I '
            'for each statement execute function refuse_change()', v_name
        );
        return next v_name;
    end loop;
end
$$;
comment on function ensure_event_partitions(integer) is
    'Housekeeping: makes the monthly partitions of saga_events ahead of time.';

-- Retention: drops the monthly partitions of saga_events that end before a day,
-- oldest first, and returns their names. Stops at the first that still tells
-- of a saga that has not ended.
-- Locks: saga_events, for each partition that goes.
create or replace function drop_event_partitions(p_before date) returns setof text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_name text;
    v_alive boolean;
begin
    for v_name in
        select c.relname
        from pg_inherits as i
        inner join pg_class as c on c.oid = i.inhrelid
        where i.inhparent = 'saga_events'::regclass
            and c.relname ~ '^saga_events_[0-9]{4}_[0-9]{2}$'
            and to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= p_before
        order by c.relname
    loop
        execute format(
            'select exists (select from %I as e inner join sagas as s on s.id = e.saga_id '
            'where s.ready_at is not null or s.status = ''stuck'')', v_name
        )
        into v_alive;
        exit when v_alive;
        execute format('drop table %I', v_name);
        return next v_name;
    end loop;
end
$$;
comment on function drop_event_partitions(date) is
    'Retention: drops the monthly partitions of saga_events that end before a day, sparing sagas that have not ended.';

do $$ begin perform ensure_event_partitions(); end $$;
