-- Operators: what a person does about a saga that is stuck or waits for its next try, and to hold
-- calls back. The same for many at once stands in 67_batches.sql.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Whether a saga has turned back: what it was stuck at is an undo then. Locks nothing.
create or replace function has_turned_back(p_saga_id uuid) returns boolean
language sql stable
return coalesce((
    select e.event_type = 'compensation_started'
    from saga_events as e
    where e.saga_id = p_saga_id and e.event_type in ('compensation_started', 'compensation_ended')
    order by e.id desc
    limit 1
), false);
comment on function has_turned_back(uuid) is 'Internal: whether the compensation of a saga has begun, and has not led back to a wait.';

-- Whether a saga that turns back goes no further than to a wait, unless somebody asks for more. Locks nothing.
create or replace function is_to_wait_again(p_saga sagas) returns boolean
language sql stable
return p_saga.status = 'compensating' and not p_saga.cancel_requested and exists (
    select from saga_steps as t
    where t.saga_type = p_saga.saga_type and t.plan_version = p_saga.plan_version
        and t.position <= p_saga.position and t.wait_again
);
comment on function is_to_wait_again(sagas) is 'Internal: whether a saga that turns back goes no further than to a wait.';

-- What a saga failed at last, and by what. It is looked for in the months since the saga began, and in all
-- others only if nothing is there, after the clock was set back. Without settings of its own, so that
-- it becomes a part of who asks it of many. Locks nothing.
create or replace function last_failure(p_saga_id uuid, p_began_at timestamptz)
returns table (step_name text, error_code text, message text)
language sql stable
begin atomic
    (
        select e.step_name, e.error_code, e.message from saga_events as e
        where e.saga_id = p_saga_id and e.event_type = 'step_failed' and e.created_at >= p_began_at - interval '1 day'
        order by e.id desc limit 1
    )
    union all
    (
        select e.step_name, e.error_code, e.message from saga_events as e
        where e.saga_id = p_saga_id and e.event_type = 'step_failed'
        order by e.id desc limit 1
    )
    limit 1;
end;
comment on function last_failure(uuid, timestamptz) is 'What a saga that began at a time failed at last: step, SQLSTATE and message.';

-- A saga, locked. Locks: it. Raises: DP010 when there is none.
create or replace function lock_saga(p_saga_id uuid) returns sagas
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
        perform refuse(
            'DP010', 'no such saga', format('There is no saga %s.', p_saga_id),
            'A saga carries the id of what it is about: select id from saga_overview.'
        );
    end if;
    return v_saga;
end
$$;
comment on function lock_saga(uuid) is 'Internal: locks a saga.';

-- A stuck saga as a group, locked for an operator action; its status says which way it
-- went, running or compensating. Locks: the saga. Raises: DP008, DP010.
create or replace function lock_stuck_saga(p_saga_id uuid) returns saga_group
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
        perform refuse(
            'DP010', 'no such saga', format('There is no saga %s.', p_saga_id),
            'A saga carries the id of its order: select id from stuck_sagas.'
        );
    elsif v_saga.status <> 'stuck' then
        perform refuse(
            'DP008', 'saga is not stuck', format('Saga %s is %s.', p_saga_id, v_saga.status),
            'Only a stuck saga needs a person; the engine sees to the others.'
        );
    end if;
    return group_of_saga(v_saga, case when has_turned_back(p_saga_id) then 'compensating' else 'running' end::saga_status);
end
$$;
comment on function lock_stuck_saga(uuid) is 'Internal: locks a stuck saga for an operator action.';

-- Notes what an operator does about a saga, by the function that does it, before it is done.
-- Returns the name of the step, or of the undo, at which the saga stands. Locks nothing.
-- Raises: DP015 without a reason.
create or replace function note_operator_action(p_group saga_group, p_action text, p_reason text) returns text
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_name constant text := name_of(v_step, p_group.status = 'compensating');
begin
    perform refuse_no_reason(p_reason);
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    values (
        p_group.saga_ids[1], p_group.warehouse_ids[1],
        case p_action when 'turn_back_saga' then 'cancelled' when 'skip_step' then 'skipped' else 'retried' end::saga_event_type,
        v_name, p_reason, current_actor()
    );
    perform note_action(p_action, p_group.saga_ids[1]::text, p_reason, jsonb_build_object('step', v_name));
    return v_name;
end
$$;
comment on function note_operator_action(saga_group, text, text) is
    'Internal: writes an operator action into the history of a saga, and into action_log.';

-- Sends a saga that an operator has seen to on its way. Returns it as it stands then.
-- Locks: the saga.
create or replace function send_on(p_group saga_group) returns sagas
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga sagas;
begin
    select s.* into strict v_saga
    from sagas as s
    where s.id = p_group.saga_ids[1] and s.warehouse_id = p_group.warehouse_ids[1];
    perform ring_bell();
    return v_saga;
end
$$;
comment on function send_on(saga_group) is 'Internal: rings the bell for a saga that an operator has seen to, and returns it.';

-- Tries the step of a stuck saga again, or the undo that it is stuck at, with all attempts anew.
-- Locks: the saga, which the caller has locked.
create or replace function try_again(p_group saga_group) returns sagas
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    update sagas as s
    set status = p_group.status, attempts = 0, ready_at = clock(), updated_at = clock()
    where s.id = p_group.saga_ids[1] and s.warehouse_id = p_group.warehouse_ids[1];
    return send_on(p_group);
end
$$;
comment on function try_again(saga_group) is 'Internal: tries a stuck saga again.';

-- An operator has removed the cause: tries a stuck saga again. Locks: the saga. Raises: DP008, DP010, DP015.
create or replace function retry_saga(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_group constant saga_group := lock_stuck_saga(p_saga_id);
begin
    perform note_operator_action(v_group, 'retry_saga', p_reason);
    return try_again(v_group);
end
$$;
comment on function retry_saga(uuid, text) is 'Operator: tries a stuck saga again, once its cause is gone. Says who and why in saga_events.';

-- Whether a saga waits for its next try after one that failed, or that was given back unasked. One
-- that waits for an answer, a signal or the end of a pause doesn't. Locks nothing.
create or replace function backs_off(p_saga sagas) returns boolean
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
return p_saga.status in ('running', 'compensating') and p_saga.ready_at > clock() and coalesce((
    select e.event_type in ('step_failed', 'step_deferred')
    from saga_events as e
    where e.saga_id = p_saga.id and e.event_type not in ('cancelled', 'signalled', 'reported', 'shipped')
    order by e.id desc
    limit 1
), false);
comment on function backs_off(sagas) is 'Internal: whether a saga waits for its next try.';

-- An operator knows that the cause is gone: what waits for its next try has it now, with all
-- attempts anew. Locks: the saga. Raises: DP010, DP015; DP044 when it doesn't wait for a try.
create or replace function resume_saga(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga constant sagas := lock_saga(p_saga_id);
    v_group saga_group;
begin
    if not backs_off(v_saga) then
        perform refuse(
            'DP044', 'saga does not wait for a try', format('Saga %s is %s.', p_saga_id, v_saga.status),
            'Only one that backs off after a failure can be resumed; of one that is stuck call retry_saga().'
        );
    end if;
    v_group := group_of_saga(v_saga);
    perform note_operator_action(v_group, 'resume_saga', p_reason);
    update sagas as s
    set attempts = 0, ready_at = clock(), updated_at = clock()
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
    return send_on(v_group);
end
$$;
comment on function resume_saga(uuid, text) is
    'Operator: tries a saga at once that waits for its next try. Says who and why in saga_events.';

-- An operator gives a saga up that is stuck on its way forward: it turns back, as if it had
-- been cancelled, and waits for nobody on its way. Locks: the saga. Raises: DP007 when it only goes forward, or has turned
-- back already; DP008, DP010, DP015.
create or replace function turn_back_saga(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_group saga_group := lock_stuck_saga(p_saga_id);
    v_step constant plan_step := v_group.plan[v_group.position];
begin
    if v_step.forward_only or v_group.status = 'compensating' then
        perform refuse(
            'DP007', 'saga cannot turn back',
            format(
                'Saga %s is stuck at %s, %s.', p_saga_id,
                name_of(v_step, v_group.status = 'compensating'),
                case v_group.status when 'compensating' then 'on its way back' else 'from where it only goes forward' end
            ),
            'Remove the cause and call retry_saga(); or skip_step(), when it was done by hand.'
        );
    end if;
    perform note_operator_action(v_group, 'turn_back_saga', p_reason);
    v_group := start_compensation(v_group, is_external(v_step, false), p_reason);
    perform write_group(v_group, v_group.warehouse_ids);
    update sagas as s
    set cancel_requested = true
    where s.id = p_saga_id and s.warehouse_id = v_group.warehouse_ids[1];
    return send_on(v_group);
end
$$;
comment on function turn_back_saga(uuid, text) is
    'Operator: gives up a saga that is stuck on its way forward; what it has done is undone.';

-- An operator has done by hand, at the gateway, what a stuck saga asked for:
-- that counts as its answer, and the saga goes on. What the step writes down before it
-- asks is written first: it may never have got there. Steps of ours can't be done
-- by hand; their cause is mended and they are retried.
-- Locks: the saga, then as settle_group(). Raises: DP008, DP010, DP015, DP018; what the step does.
create or replace function skip_step(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_group saga_group := lock_stuck_saga(p_saga_id);
    v_step constant plan_step := v_group.plan[v_group.position];
    v_backwards constant boolean := v_group.status = 'compensating';
    v_name text;
begin
    if is_external(v_step, v_backwards) is not true then
        perform refuse(
            'DP018', 'step cannot be skipped',
            format('Saga %s is stuck at a step which nobody can do by hand.', p_saga_id),
            'Remove the cause and call retry_saga().'
        );
    end if;
    v_name := note_operator_action(v_group, 'skip_step', p_reason);
    perform call_step(
        case when v_backwards then v_step.undo_function else v_step.step_function end, v_group.warehouse_ids, v_group.saga_ids
    );
    perform answer_saga(
        v_group, jsonb_build_object('outcome', 'approved', 'gateway', 'by hand', 'message', p_reason)
    );
    return send_on(v_group);
end
$$;
comment on function skip_step(uuid, text) is 'Operator: what a stuck saga asked of the gateway was done by hand; records it and goes on.';

-- Stops calls to the world outside for a while: sagas wait before their next
-- external step, at no cost of attempts, while all other steps go on: for an
-- operator, before maintenance. (A listener that can't reach its gateway stops
-- asking by itself, and nobody else.) A pause may be prolonged but not cut short,
-- so that one operator's doesn't end another's; zero seconds ends it. A person says why.
-- Locks: step_settings, then sagas that wait for the end of a pause; a pass, which holds
-- its sagas, waits for no row of step_settings. Raises: DP015.
create or replace function pause_external_steps(p_seconds numeric, p_reason text default null) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
    v_until timestamptz;
    v_setting step_settings;
begin
    if p_seconds is null or p_seconds not between 0 and 86400 then
        perform refuse(
            'DP015', 'pause makes no sense',
            format('A pause of %s seconds was asked for.', coalesce(p_seconds::text, 'null')),
            'Use 0 to end a pause, at most 86400 for a day.'
        );
    end if;
    if session_user <> 'darkpearl_listener' then
        perform refuse_no_reason(p_reason);
    end if;
    perform note_action(
        'pause_external_steps', 'external steps', p_reason, jsonb_build_object('seconds', p_seconds)
    );
    v_until := v_now + p_seconds * interval '1 second';
    for v_setting in
        select t.* from step_settings as t
        where (p_seconds = 0 or t.paused_until is null or t.paused_until < v_until) and exists (
            select from saga_steps as s
            where s.saga_type = t.saga_type and s.step_name = t.step_name and s.on_deadline is null
                and num_nonnulls(s.settle_function, s.undo_settle_function) > 0
        )
        order by t.saga_type, t.step_name
        for no key update
    loop
        update step_settings as t
        set paused_until = case when p_seconds > 0 then v_until end
        where t.saga_type = v_setting.saga_type and t.step_name = v_setting.step_name;
        -- Sagas that wait for the end of the pause are found by their time, see take_steps(),
        -- and wait for its new end instead.
        update sagas as s
        set ready_at = s.ready_at + (v_until - v_setting.paused_until)
        from saga_steps as p
        where s.saga_type = v_setting.saga_type and p.step_name = v_setting.step_name
            and (p.saga_type, p.plan_version, p.position) = (s.saga_type, s.plan_version, s.position)
            and s.status in ('running', 'compensating')
            and s.ready_at between v_setting.paused_until and v_setting.paused_until + interval '1 second'
            and v_setting.paused_until > v_now;
    end loop;
    if p_seconds = 0 then
        perform ring_bell();
    end if;
end
$$;
comment on function pause_external_steps(numeric, text) is
    'Holds back all calls to the world outside for so many seconds; 0 goes on at once.';

-- Trigger: a change of a plan's numbers is noted with both. Pauses note themselves. Nobody is
-- asked for a reason, since it is a plain update. Locks nothing, raises nothing.
create or replace function note_step_settings() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    perform note_action(
        'update step_settings', format('%s %s', new.saga_type, new.step_name), null,
        jsonb_build_object('from', to_jsonb(old) - 'paused_until', 'to', to_jsonb(new) - 'paused_until')
    );
    return null;
end
$$;
comment on function note_step_settings() is 'Trigger: writes changes of the numbers of a step into action_log.';

create or replace trigger step_settings_note_change
after update on step_settings
for each row
when (to_jsonb(old) - 'paused_until' is distinct from to_jsonb(new) - 'paused_until')
execute function note_step_settings();

-- Writes down that something was seen to which the database can't know of by itself: that a
-- backup is whole, or that the books were compared with the gateway's. Locks nothing. Raises: DP015.
create or replace function record_upkeep(p_what text, p_reason text default null, p_detail jsonb default null) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if p_what is null or p_what not in ('backup', 'reconciliation') then
        perform refuse(
            'DP015', 'no such upkeep', format('%s was to be written down.', coalesce(p_what, 'null')),
            'Pass backup or reconciliation.'
        );
    end if;
    perform note_action('record_upkeep', p_what, p_reason, p_detail);
end
$$;
comment on function record_upkeep(text, text, jsonb) is
    'Writes into action_log that a backup is whole, or that the books were compared; darkpearl doctor asks when it was.';
