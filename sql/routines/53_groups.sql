-- Groups: sagas that stand at the same place of the same plan, and what happens to them.
--
-- A group is one value: where it stands, and aligned arrays of its members. What comes out
-- of a step alike goes on together: apply_outcome() notes what happened and says where it
-- goes next; conclude() gives up who has been tried for long enough. A group that can go
-- no further is parked. Nothing here writes a row: 53_pass.sql does, once for all.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Where a saga's own share of a spread of time lies, from 0 to 1: random from
-- one saga to the next and from one try to the next, and the same wherever it
-- is worked out.
create or replace function jitter(p_saga_id uuid, p_attempts integer) returns double precision
language sql immutable parallel safe
return (uuid_hash_extended(p_saga_id, p_attempts) & 65535) / 65535.0::double precision;
comment on function jitter(uuid, integer) is 'Internal: a fraction by which sagas that wait together come back apart.';

-- How long to wait before the next try after so many: backoff * 2^(attempts - 1)
-- seconds, up to a minute, so that what is tried for minutes is tried often; a backoff that
-- begins with more stays as it is. Half of it is fixed, half of it each saga's own (see
-- jitter()), so that sagas that failed together do not come back together.
create or replace function backoff_seconds(p_backoff_seconds numeric, p_attempts integer)
returns double precision
language sql immutable parallel safe
return least(p_backoff_seconds * 2 ^ least(p_attempts - 1, 20), greatest(p_backoff_seconds, 60))::double precision;
comment on function backoff_seconds(numeric, integer) is 'The longest wait before the next try: exponential, up to a minute.';

-- The one constructor of a group: sagas that stand at the same place, as they were locked.
-- Locks nothing.
create or replace function new_group(
    p_saga_type text,
    p_plan_version smallint,
    p_status saga_status,
    p_position smallint,
    p_attempts smallint,
    p_cancel_requested boolean,
    p_saga_ids uuid[],
    p_warehouse_ids uuid[],
    p_lease_tokens bigint[],
    p_were_ready_at timestamptz[],
    p_answers jsonb[] default null,
    p_deferred_seconds numeric[] default null
) returns saga_group
language plpgsql
as $$
begin
    return row(
        p_saga_type, plan_of(p_saga_type, p_plan_version), p_status, p_position, p_attempts, p_cancel_requested,
        p_saga_ids, p_warehouse_ids, p_lease_tokens, p_were_ready_at,
        clock(), 0, null, false, null, 0, null, null, p_answers, p_deferred_seconds
    )::saga_group;
end
$$;
comment on function new_group(
    text, smallint, saga_status, smallint, smallint, boolean, uuid[], uuid[], bigint[], timestamptz[], jsonb[], numeric[]
) is 'Internal: a group of sagas that stand at the same place of the same plan.';

-- One saga as a group, as it stands or, with p_status, as if it stood so. Locks nothing.
create or replace function group_of_saga(p_saga sagas, p_status saga_status default null, p_answers jsonb[] default null)
returns saga_group
language plpgsql
as $$
begin
    return new_group(
        p_saga.saga_type, p_saga.plan_version, coalesce(p_status, p_saga.status), p_saga.position, p_saga.attempts,
        p_saga.cancel_requested, array[p_saga.id], array[p_saga.warehouse_id], array[p_saga.lease_token],
        array[p_saga.ready_at], p_answers
    );
end
$$;
comment on function group_of_saga(sagas, saga_status, jsonb[]) is 'Internal: one saga as a group.';

-- These ids but for those, in order. (A condition <> all (array) goes through the array for
-- each of them.) Locks nothing.
create or replace function ids_besides(p_ids uuid[], p_others uuid[]) returns uuid[]
language plpgsql immutable
as $$
begin
    return array(
        select i.id from unnest(p_ids) as i (id)
        except
        select o.id from unnest(p_others) as o (id)
        order by id
    );
end
$$;
comment on function ids_besides(uuid[], uuid[]) is 'Internal: these ids but for those, each once and in order.';

-- The members of an array that stand at these places, as they are named. An array of texts is
-- gone through from its start for each subscript, so it is joined instead. Locks nothing.
create or replace function texts_at(p_texts text[], p_places integer[]) returns text[]
language plpgsql immutable
set enable_nestloop = off
as $$
begin
    return array(
        select t.text
        from unnest(p_texts) with ordinality as t (text, place)
        inner join unnest(p_places) with ordinality as p (place, n) on p.place = t.place
        order by p.n
    );
end
$$;
comment on function texts_at(text[], integer[]) is 'Internal: the members of an array of texts at these places.';

-- The members of a group that are named, as a group of their own. Locks nothing.
create or replace function split_group(p_group saga_group, p_saga_ids uuid[]) returns saga_group
language plpgsql
set enable_nestloop = off
as $$
declare
    v_places integer[];  -- of the part's sagas in the group's arrays
begin
    select
        array_agg(g.place::integer order by g.saga_id),
        array_agg(g.saga_id order by g.saga_id), array_agg(g.warehouse_id order by g.saga_id),
        array_agg(g.lease_token order by g.saga_id), array_agg(g.was_ready_at order by g.saga_id),
        case when p_group.wait_seconds is not null then array_agg(g.wait_seconds order by g.saga_id) end
    into
        v_places, p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at,
        p_group.wait_seconds
    from unnest(
        p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at, p_group.wait_seconds
    ) with ordinality as g (saga_id, warehouse_id, lease_token, was_ready_at, wait_seconds, place)
    inner join unnest(p_saga_ids) as i (saga_id) using (saga_id);

    for i in 1..coalesce(cardinality(p_group.transitions), 0) loop
        if (p_group.transitions[i]).error_codes is not null then
            p_group.transitions[i].error_codes := texts_at((p_group.transitions[i]).error_codes, v_places);
        end if;
        if (p_group.transitions[i]).messages is not null then
            p_group.transitions[i].messages := texts_at((p_group.transitions[i]).messages, v_places);
        end if;
    end loop;
    return p_group;
end
$$;
comment on function split_group(saga_group, uuid[]) is 'Internal: the named members of a group, as a group of their own.';

-- One outcome for a whole group, with the same code and message for each. Locks nothing.
create or replace function group_outcome(
    p_group saga_group, p_result step_result, p_error_code text, p_message text, p_wait_seconds numeric default null
) returns outcome_group[]
language plpgsql
as $$
begin
    return array[row(
        p_result, case when p_wait_seconds is not null then array_fill(p_wait_seconds, array[cardinality(p_group.saga_ids)]) end,
        p_group.saga_ids,
        array_fill(p_error_code, array[cardinality(p_group.saga_ids)]),
        array_fill(p_message, array[cardinality(p_group.saga_ids)]), null
    )::outcome_group];
end
$$;
comment on function group_outcome(saga_group, step_result, text, text, numeric) is
    'Internal: the outcome that the engine itself gives to all members of a group.';

-- Something that happens to all members of a group. Without a SET clause it is inlined,
-- and costs what its row does. Locks nothing.
create or replace function transition(
    p_event_type saga_event_type,
    p_created_at timestamptz,
    p_step_name text default null,
    p_attempt smallint default null,
    p_error_codes text[] default null,
    p_messages text[] default null,
    p_will_retry boolean default false,
    p_started_at timestamptz default null,
    p_lease_seconds numeric default null,
    p_effect_function text default null,
    p_effect text default null
) returns saga_transition
language sql immutable
return row(
    p_event_type, p_step_name, p_attempt, p_error_codes, p_messages, p_will_retry,
    p_started_at, p_lease_seconds, p_created_at, p_effect_function, p_effect
)::saga_transition;
comment on function transition(
    saga_event_type, timestamptz, text, smallint, text[], text[], boolean, timestamptz, numeric, text, text
) is 'Internal: notes what happens to all members of a group.';

-- Notes the end of a group, and parks it; an order whose saga is undone is cancelled.
-- Locks nothing.
create or replace function end_sagas(p_group saga_group) returns saga_group
language plpgsql
as $$
begin
    p_group.transitions := p_group.transitions || transition(
        case p_group.status
            when 'completed' then 'saga_completed'
            when 'compensated' then 'saga_compensated'
            else 'saga_stuck'
        end::saga_event_type,
        clock()
    );
    p_group.ready_at := null;
    p_group.parked := true;
    if p_group.status = 'compensated' then
        p_group.order_status := 'cancelled';
    end if;
    return p_group;
end
$$;
comment on function end_sagas(saga_group) is 'Internal: notes the end of sagas that have come to it.';

-- Turns a group back. p_undo_step: the step at which it stands may have had its effect, and
-- is undone as well. Locks nothing.
create or replace function start_compensation(p_group saga_group, p_undo_step boolean, p_message text default null)
returns saga_group
language plpgsql
as $$
begin
    if not p_undo_step then
        p_group.position := p_group.position - 1;
    end if;
    p_group.attempts := 0;
    p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
    p_group.transitions := p_group.transitions || transition(
        'compensation_started', clock(),
        p_messages => case when p_message is not null then array_fill(p_message, array[cardinality(p_group.saga_ids)]) end
    );
    if p_group.status = 'compensated' then
        return end_sagas(p_group);
    end if;
    return p_group;
end
$$;
comment on function start_compensation(saga_group, boolean, text) is
    'Internal: turns sagas back, from the step at which they stand or from the one before.';

-- Notes what happened to a group whose members all came out of their step alike,
-- and returns it where it goes next. The lease token moves on with every outcome,
-- so whatever was handed out before is void.
-- p_started_at: when the step began; null for the answer to a request, which
-- began when its lease did. Locks nothing.
create or replace function apply_outcome(p_group saga_group, p_outcome outcome_group, p_started_at timestamptz)
returns saga_group
language plpgsql
as $$
declare
    v_now constant timestamptz := clock();
    v_step constant plan_step := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
    v_done constant boolean := p_outcome.result = 'done';
    v_will_retry constant boolean := p_outcome.result in ('waiting', 'failed', 'deferred');
    v_name constant text := name_of(v_step, v_backwards);
begin
    p_group.token_increments := p_group.token_increments + 1;
    p_group.ready_at := v_now;
    p_group.spread_seconds := 0;
    p_group.wait_seconds := null;
    if v_name is not null or not v_done then
        p_group.transitions := p_group.transitions || transition(
            case p_outcome.result
                when 'done' then case when v_backwards then 'step_compensated' else 'step_completed' end
                when 'waiting' then 'step_waiting'
                when 'deferred' then 'step_deferred'
                else 'step_failed'
            end::saga_event_type,
            v_now, v_name, p_group.attempts, p_outcome.error_codes, p_outcome.messages, v_will_retry, p_started_at,
            case when p_started_at is null then v_step.timeout_seconds end,
            case when v_done then case when v_backwards then v_step.undo_effect_function else v_step.effect_function end end,
            case when v_backwards then v_step.undo_effect else v_step.effect end
        );
    end if;
    if v_will_retry then
        return await_retry(p_group, p_outcome);
    elsif v_done and v_backwards and v_step.wait_again and not p_group.cancel_requested then
        -- It is undone: whoever is waited for may try something else.
        p_group.status := 'running';
        p_group.position := v_step.position - 1;
        p_group.transitions := p_group.transitions || transition('compensation_ended', v_now);
    elsif v_done and v_backwards then
        p_group.position := v_step.position - 1;
        p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
    elsif v_done then
        p_group.order_status := coalesce(v_step.order_status_done, p_group.order_status);
        p_group.status := case when v_step.position = cardinality(p_group.plan) then 'completed' else 'running' end;
        p_group.position := least(v_step.position + 1, cardinality(p_group.plan));
    elsif p_outcome.result = 'refused' and v_step.wait_again and not v_backwards then
        -- What was refused left nothing behind: whoever is waited for may try something else.
        p_group.order_status := coalesce(v_step.order_status_refused, p_group.order_status);
        p_group.status := 'running';
        p_group.position := v_step.position - 1;
    elsif v_backwards or p_outcome.result = 'stuck'
        or (v_step.forward_only and (p_outcome.result in ('given_up', 'wrong') or v_step.position > 1))
    then
        -- No way on and none back. (Refused as the first step is nothing done.)
        p_group.status := 'stuck';
    else
        p_group.order_status := coalesce(v_step.order_status_refused, p_group.order_status);
        -- A step that was refused left nothing behind, nor did one that raised, unless
        -- it is external: then the call may have had its effect. What is wrong has.
        return start_compensation(p_group, p_outcome.result in ('given_up', 'wrong') and is_external(v_step, false));
    end if;
    p_group.attempts := 0;
    if p_group.status in ('completed', 'compensated', 'stuck') then
        return end_sagas(p_group);
    end if;
    return p_group;
end
$$;
comment on function apply_outcome(saga_group, outcome_group, timestamptz) is
    'Internal: notes what happened to sagas that came out of a step alike and works out where they go next.';

-- Parks a group that comes back to the step at which it stands: when it is answered or its
-- lease runs out, after a backoff, or when a request that was given back unasked may be
-- made again, which costs no attempt. Locks nothing.
create or replace function await_retry(p_group saga_group, p_outcome outcome_group) returns saga_group
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
    v_seconds double precision;
    v_own_seconds numeric[];  -- of each member, where they differ
    v_spread_seconds double precision := 0;  -- by how much they come apart then, at the most
begin
    p_group.parked := true;
    if p_outcome.result = 'waiting' then
        -- Who waits for a signal asks nobody.
        p_group.requests := case when v_step.on_deadline is null then p_outcome.requests end;
        v_seconds := v_step.timeout_seconds;
        v_own_seconds := p_outcome.wait_seconds;
        if not v_backwards then
            p_group.status := 'waiting';
            p_group.order_status := coalesce(v_step.order_status_waiting, p_group.order_status);
        end if;
    else
        if p_outcome.result = 'deferred' then
            p_group.attempts := p_group.attempts - 1;
            v_own_seconds := p_outcome.wait_seconds;
            v_spread_seconds := 1;
        else
            -- Half of the wait is fixed and half of it each saga's own.
            v_seconds := backoff_seconds(v_step.backoff_seconds, p_group.attempts) / 2;
            p_group.spread_seconds := v_seconds;
        end if;
        p_group.status := case when v_backwards then 'compensating' else 'running' end;
    end if;
    if v_own_seconds is null then
        p_group.ready_at := p_group.ready_at + v_seconds * interval '1 second';
    else
        p_group.wait_seconds := array(
            select m.seconds + least(m.seconds, v_spread_seconds) * jitter(m.saga_id, p_group.attempts)
            from (
                select w.saga_id, w.n, coalesce(w.seconds::double precision, v_seconds) as seconds
                from unnest(p_group.saga_ids, v_own_seconds) with ordinality as w (saga_id, seconds, n)
            ) as m
            order by m.n
        );
    end if;
    return p_group;
end
$$;
comment on function await_retry(saga_group, outcome_group) is
    'Internal: parks sagas until they are answered, or tried again.';

-- Where a group goes whose members came out of their step alike: as apply_outcome() says,
-- but those that have failed, or waited for a confirmation, for as long as their step is
-- tried are given up. What is pending is no call that is out: a saga that is to be cancelled
-- doesn't wait for it.
-- Locks nothing.
create or replace function conclude(p_group saga_group, p_outcome outcome_group, p_started_at timestamptz)
returns saga_group[]
language plpgsql
as $$
declare
    v_backwards constant boolean := p_group.status = 'compensating';
    v_answered constant boolean := p_outcome.result = 'waiting' and p_started_at is null
        and is_external(p_group.plan[p_group.position], v_backwards);
    v_given_up outcome_group;
    v_others uuid[];
begin
    if p_outcome.result = 'failed' then
        v_given_up := split_outcome(p_outcome, out_of_time(p_group));
        v_given_up.result := 'given_up';
    elsif v_answered then
        -- What asks nothing further is pending, and tries_of() knows it by its message.
        p_outcome.messages := array(
            select case when r.request is null then coalesce(r.message, 'pending') end
            from unnest(p_outcome.saga_ids, p_outcome.messages, p_outcome.requests) with ordinality as r (saga_id, message, request, n)
            order by r.n
        );
        if p_group.cancel_requested and not v_backwards and p_outcome.requests is null then
            p_group := apply_outcome(p_group, p_outcome, p_started_at);
            p_group.parked := false;
            p_group.ready_at := clock();
            p_group.wait_seconds := null;
            return array[p_group];
        elsif p_group.attempts > 1 then
            v_given_up := not_confirmed(p_group);
        end if;
    end if;
    if coalesce(cardinality(v_given_up.saga_ids), 0) = 0 then
        return array[apply_outcome(p_group, p_outcome, p_started_at)];
    end if;
    v_others := ids_besides(p_group.saga_ids, v_given_up.saga_ids);
    if cardinality(v_others) = 0 then
        return array[apply_outcome(p_group, v_given_up, p_started_at)];
    end if;
    return array[
        apply_outcome(split_group(p_group, v_given_up.saga_ids), v_given_up, p_started_at),
        apply_outcome(split_group(p_group, v_others), split_outcome(p_outcome, v_others), p_started_at)
    ];
end
$$;
comment on function conclude(saga_group, outcome_group, timestamptz) is
    'Internal: where a group goes that came out of its step alike, and who of it is given up.';

-- What becomes of a group whose members came out of a function in one or several ways: a
-- group for what came out alike.
-- Locks nothing. Raises: XX000 when there is not one outcome for each saga.
create or replace function split_by_outcome(
    p_group saga_group, p_function text, p_outcomes outcome_group[], p_started_at timestamptz
) returns saga_group[]
language plpgsql
as $$
declare
    v_outcome outcome_group;
    v_became saga_group[];
    v_saga_ids uuid[] := '{}';  -- of the outcomes
begin
    if came_out_alike(p_outcomes, p_group.saga_ids) then
        if (p_outcomes[1]).result in ('failed', 'waiting') then
            return conclude(p_group, p_outcomes[1], p_started_at);
        end if;
        return array[apply_outcome(p_group, p_outcomes[1], p_started_at)];
    end if;
    foreach v_outcome in array coalesce(p_outcomes, '{}') loop
        v_saga_ids := v_saga_ids || v_outcome.saga_ids;
    end loop;
    if array(select i from unnest(v_saga_ids) as i order by i) <> p_group.saga_ids then
        perform refuse(
            'XX000',
            format('%s returned %s outcomes for %s sagas', p_function, cardinality(v_saga_ids), cardinality(p_group.saga_ids)),
            'A step function returns exactly one outcome for each saga.',
            'Mend the step function; the sagas are tried again.'
        );
    end if;
    foreach v_outcome in array p_outcomes loop
        v_became := v_became || conclude(split_group(p_group, v_outcome.saga_ids), v_outcome, p_started_at);
    end loop;
    return v_became;
end
$$;
comment on function split_by_outcome(saga_group, text, outcome_group[], timestamptz) is
    'Internal: says where the members of a group go that came out of a function, those alike together.';
