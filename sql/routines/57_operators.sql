-- Operators: what a person does about a saga that is stuck, and to hold calls back.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

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

-- Stops calls to the world outside for a while: sagas wait before their next
-- external step, at no cost of attempts, while all other steps go on. A
-- listener calls it when its gateway fails again and again; an operator may
-- before maintenance. A pause may be prolonged but not cut short, so that one
-- listener's doesn't end an operator's; zero seconds ends it.
-- Locks: saga_steps, sagas that wait for the end of a pause. Raises DP015.
create or replace function pause_external_steps(p_seconds numeric) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_now constant timestamptz := clock();
    v_until timestamptz;
    v_step saga_steps;
begin
    if p_seconds is null or p_seconds not between 0 and 86400 then
        raise exception using
            errcode = 'DP015',
            message = 'pause makes no sense',
            detail = format('A pause of %s seconds was asked for.', coalesce(p_seconds::text, 'null')),
            hint = 'Use 0 to end a pause, at most 86400 for a day.';
    end if;
    v_until := v_now + p_seconds * interval '1 second';
    for v_step in
        select s.* from saga_steps as s
        where (s.settle_function is not null or s.undo_settle_function is not null)
            and (p_seconds = 0 or s.paused_until is null or s.paused_until < v_until)
        order by s.saga_type, s.position
        for no key update
    loop
        update saga_steps as s
        set paused_until = case when p_seconds > 0 then v_until end
        where s.saga_type = v_step.saga_type and s.position = v_step.position;
        -- Those who wait for the end of the pause are found by their time, see
        -- run_groups(), and wait for its new end instead.
        update sagas as s
        set ready_at = s.ready_at + (v_until - v_step.paused_until)
        where s.saga_type = v_step.saga_type and s.position = v_step.position
            and s.status in ('running', 'compensating')
            and s.ready_at between v_step.paused_until and v_step.paused_until + interval '1 second'
            and v_step.paused_until > v_now;
    end loop;
    if p_seconds = 0 then
        perform ring_bell();
    end if;
end
$$;
comment on function pause_external_steps(numeric) is
    'Holds back all calls to the world outside for so many seconds; 0 goes on at once.';
