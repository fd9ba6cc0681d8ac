-- The history of sagas: append-only, a partition per month, and what operators
-- write into it when a saga is stuck.

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
    if not pg_try_advisory_xact_lock(gate_key() + 1) then
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

-- The stuck saga of an operator action, locked. Raises DP008, DP010.
create or replace function lock_stuck_saga(p_saga_id uuid) returns sagas
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga sagas;
begin
    select s.* into v_saga
    from sagas as s
    where s.id = p_saga_id
    for no key update;
    if not found then
        raise exception using
            errcode = 'DP010',
            message = 'no such saga',
            detail = format('There is no saga %s.', p_saga_id),
            hint = 'A saga carries the id of its order: select id from stuck_sagas.';
    end if;
    if v_saga.status <> 'stuck' then
        raise exception using
            errcode = 'DP008',
            message = 'saga is not stuck',
            detail = format('Saga %s is %s.', p_saga_id, v_saga.status),
            hint = 'Only a stuck saga needs a person; the engine sees to the others.';
    end if;
    return v_saga;
end
$$;
comment on function lock_stuck_saga(uuid) is 'Internal: locks a stuck saga for an operator action.';

-- An operator has removed the cause: tries the step of a stuck saga again, an
-- undo as a rule, with all attempts anew. Locks: the saga. Raises DP008, DP010.
create or replace function retry_saga(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga sagas := lock_stuck_saga(p_saga_id);
    v_step saga_steps := step_of(v_saga);
begin
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    values (
        v_saga.id, v_saga.warehouse_id, 'retried',
        case when v_step.forward_only then v_step.step_name else v_step.undo_name end,
        p_reason, current_actor()
    );
    update sagas as s
    set
        status = case when v_step.forward_only then 'running' else 'compensating' end::saga_status,
        attempts = 0, ready_at = clock(), updated_at = clock()
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id
    returning s.* into v_saga;
    perform ring_bell();
    return v_saga;
end
$$;
comment on function retry_saga(uuid, text) is 'Operator: tries a stuck saga again, once its cause is gone. Says who and why in saga_events.';

-- An operator has done by hand, at the gateway, what a stuck saga asked for:
-- that counts as its answer, and the saga goes on. Steps of ours can't be done
-- by hand; their cause is mended and they are retried.
-- Locks: sagas, payments. Raises DP008, DP010, DP018.
create or replace function skip_step(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga sagas := lock_stuck_saga(p_saga_id);
    v_step saga_steps := step_of(v_saga);
    v_name constant text := case when v_step.forward_only then v_step.step_name else v_step.undo_name end;
    v_settle_function constant text := case
        when v_step.forward_only then v_step.settle_function else v_step.undo_settle_function
    end;
begin
    if v_settle_function is null then
        raise exception using
            errcode = 'DP018',
            message = 'step cannot be skipped',
            detail = format('Saga %s is stuck at %s, which nobody can do by hand.', p_saga_id, coalesce(v_name, 'no step')),
            hint = 'Remove the cause and call retry_saga().';
    end if;
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    values (v_saga.id, v_saga.warehouse_id, 'skipped', v_name, p_reason, current_actor());
    update sagas as s
    set
        status = case when v_step.forward_only then 'waiting' else 'compensating' end::saga_status,
        attempts = 1, ready_at = clock()
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
    perform settle_pass(
        array[v_saga.warehouse_id],
        jsonb_build_array(jsonb_build_object(
            'saga_id', v_saga.id,
            'lease_token', v_saga.lease_token,
            'answer', jsonb_build_object('outcome', 'approved', 'gateway', 'by hand', 'message', p_reason)
        )),
        false
    );
    select s.* into strict v_saga
    from sagas as s
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
    perform ring_bell();
    return v_saga;
end
$$;
comment on function skip_step(uuid, text) is 'Operator: what a stuck saga asked of the gateway was done by hand; records it and goes on.';

-- Which requests these sagas came from, where that was traced: for a listener
-- that traces, and otherwise never asked. Locks nothing.
create or replace function trace_contexts(p_saga_ids uuid[])
returns table (saga_id uuid, traceparent text)
language sql stable
security definer
set search_path = darkpearl, pg_temp
as $$
    select s.id, s.traceparent
    from sagas as s
    where s.id = any(p_saga_ids) and s.traceparent is not null
$$;
comment on function trace_contexts(uuid[]) is 'The W3C trace contexts that started these sagas, where there were any.';

-- The step at which a saga stands; of nulls when its plan has none there.
-- Locks nothing.
create or replace function step_of(p_saga sagas) returns saga_steps
language sql stable
set search_path = darkpearl, pg_temp
return (
    select s from saga_steps as s
    where s.saga_type = p_saga.saga_type and s.position = p_saga.position
);
comment on function step_of(sagas) is 'Internal: the step of the plan at which a saga stands.';

do $$ begin perform ensure_event_partitions(); end $$;
