-- A pass: what happens to claimed sagas within one transaction.
--
-- Sagas that stand at the same place of the same plan form a group, and a group is one
-- value: where it stands, and aligned arrays of its members. run_groups() takes group
-- after group, and take_steps() a group through its steps, whose functions run once for
-- all of them. What comes out of it alike goes on together: apply_outcome() notes what
-- happened and says where it goes next. A group that can go no further is parked.
-- At the end every saga and order row is written once, with all events of a group, and
-- the effects of the steps that are done come last, since they lock what others need.
--
-- There is one way through a pass, for one saga as for a thousand.
--
-- Settings: advance() and settle() set the search path and the planner's switches, and all
-- that they call goes by those; a SET clause here would be paid for at every step.
--
-- Plans: a cached plan takes every array for ten elements long. Functions that join arrays
-- to each other switch nested loops off, so that five hundred are hashed. A plan made
-- while a table was small may last until it is large, and the cheapest way to ten rows of
-- a small table is to read it whole, by an index where sequential scans are switched off.
-- So a table that grows is read by its key: by = any(the ids), by a subquery for one row,
-- or joined by = any(array[…]) for each column of the key, which can be planned as a
-- look-up for each row and as nothing else.

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
    p_deferred_seconds numeric default null
) returns saga_group
language plpgsql
as $$
begin
    return row(
        p_saga_type, plan_of(p_saga_type, p_plan_version), p_status, p_position, p_attempts, p_cancel_requested,
        p_saga_ids, p_warehouse_ids, p_lease_tokens, p_were_ready_at,
        clock(), 0, false, null, 0, null, null, p_answers, p_deferred_seconds
    )::saga_group;
end
$$;
comment on function new_group(
    text, smallint, saga_status, smallint, smallint, boolean, uuid[], uuid[], bigint[], timestamptz[], jsonb[], numeric
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
        array_agg(g.lease_token order by g.saga_id), array_agg(g.was_ready_at order by g.saga_id)
    into v_places, p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at
    from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at)
        with ordinality as g (saga_id, warehouse_id, lease_token, was_ready_at, place)
    inner join unnest(p_saga_ids) as i (saga_id) using (saga_id);

    for i in 1..coalesce(cardinality(p_group.transitions), 0) loop
        if (p_group.transitions[i]).error_codes is not null then
            p_group.transitions[i].error_codes := array(select (p_group.transitions[i]).error_codes[n] from unnest(v_places) as n);
        end if;
        if (p_group.transitions[i]).messages is not null then
            p_group.transitions[i].messages := array(select (p_group.transitions[i]).messages[n] from unnest(v_places) as n);
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
        p_result, p_wait_seconds, p_group.saga_ids,
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
    v_name constant text := case when v_backwards then v_step.undo_name else v_step.step_name end;
begin
    p_group.token_increments := p_group.token_increments + 1;
    p_group.ready_at := v_now;
    p_group.spread_seconds := 0;
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
    elsif v_done and v_backwards then
        p_group.position := v_step.position - 1;
        p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
    elsif v_done then
        p_group.order_status := coalesce(v_step.order_status_done, p_group.order_status);
        p_group.status := case when v_step.position = cardinality(p_group.plan) then 'completed' else 'running' end;
        p_group.position := least(v_step.position + 1, cardinality(p_group.plan));
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

-- Whether a step, or with p_backwards its undo, asks somebody outside. Locks nothing.
create or replace function is_external(p_step plan_step, p_backwards boolean) returns boolean
language sql immutable
return case
    when p_backwards then p_step.undo_settle_function is not null
    else p_step.settle_function is not null and p_step.on_deadline is null
end;
comment on function is_external(plan_step, boolean) is 'Internal: whether a step, or its undo, asks somebody outside.';

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
begin
    p_group.parked := true;
    if p_outcome.result = 'waiting' then
        -- Who waits for a signal asks nobody.
        p_group.requests := case when v_step.on_deadline is null then p_outcome.requests end;
        v_seconds := coalesce(p_outcome.wait_seconds, v_step.timeout_seconds);
        if not v_backwards then
            p_group.status := 'waiting';
            p_group.order_status := coalesce(v_step.order_status_waiting, p_group.order_status);
        end if;
    else
        if p_outcome.result = 'deferred' then
            p_group.attempts := p_group.attempts - 1;
            v_seconds := p_outcome.wait_seconds;
            p_group.spread_seconds := least(v_seconds, 1);
        else
            -- Half of the wait is fixed and half of it each saga's own.
            v_seconds := backoff_seconds(v_step.backoff_seconds, p_group.attempts) / 2;
            p_group.spread_seconds := v_seconds;
        end if;
        p_group.status := case when v_backwards then 'compensating' else 'running' end;
    end if;
    p_group.ready_at := p_group.ready_at + v_seconds * interval '1 second';
    return p_group;
end
$$;
comment on function await_retry(saga_group, outcome_group) is
    'Internal: parks sagas until they are answered, or tried again.';

-- What has become of the tries of a step, or of an undo, since it began or a person had it
-- tried again: "asked" (a request went out), "pending" (it was answered so), "failed" (a
-- lock or a time limit too), "deferred" (given back unasked). until is what was meant to
-- come next. A request and a pending answer are events of one type; the answer is a second
-- one in the same try, with a message. Read when something has failed, and never else.
-- Locks nothing.
create or replace function tries_of(p_saga_id uuid, p_warehouse_id uuid, p_name text)
returns table (id bigint, kind text, began_at timestamptz, until timestamptz)
language plpgsql stable
as $$
begin
    return query
        select
            e.id,
            case
                when e.event_type = 'step_failed' or (e.event_type = 'step_deferred' and e.error_code is not null) then 'failed'
                when e.event_type = 'step_deferred' then 'deferred'
                when e.message is not null
                    and (e.event_type, e.attempt) = (lag(e.event_type) over story, lag(e.attempt) over story) then 'pending'
                else 'asked'
            end,
            e.created_at, e.next_attempt_at
        from saga_events as e
        where e.saga_id = p_saga_id and e.warehouse_id = p_warehouse_id and e.step_name = p_name
            and e.event_type in ('step_waiting', 'step_failed', 'step_deferred')
            and e.id > (
                select coalesce(max(r.id), 0) from saga_events as r
                where r.saga_id = p_saga_id and r.warehouse_id = p_warehouse_id and r.event_type = 'retried'
            )
        window story as (order by e.id)
        order by e.id;
end
$$;
comment on function tries_of(uuid, uuid, text) is 'Internal: what has become of the tries of a step or undo, in order.';

-- Whether a saga waits for an answer that is pending: no call of it is out. Locks nothing.
create or replace function is_pending(p_saga sagas) returns boolean
language plpgsql stable
as $$
begin
    return p_saga.status = 'waiting' and coalesce((
        select t.kind = 'pending'
        from tries_of(p_saga.id, p_saga.warehouse_id, (step_of(p_saga)).step_name) as t
        order by t.id desc
        limit 1
    ), false);
end
$$;
comment on function is_pending(sagas) is 'Internal: whether a saga waits for an answer that is pending.';

-- For how long a group's step, or undo, has been tried for one of its sagas: the time in
-- which a call was out, and that between a failure and the try that was due after it. Time
-- in which nobody tried is none: a pause, a breaker that was open, a listener's queue, no
-- listener at all. Nor is a wait for somebody, or for an answer that was pending: each has
-- its own deadline. Locks nothing.
create or replace function seconds_tried(p_saga_id uuid, p_warehouse_id uuid, p_name text, p_asks boolean) returns numeric
language plpgsql
as $$
begin
    return (
        select coalesce(sum(extract(epoch from least(t.ended_at, t.until) - t.began_at)), 0)
        from (
            select
                o.kind, o.began_at, o.until, lead(o.began_at, 1, clock()) over story as ended_at,
                lead(o.kind, 1, 'now') over story as then_was
            from tries_of(p_saga_id, p_warehouse_id, p_name) as o
            window story as (order by o.id)
        ) as t
        where t.kind = 'failed' or (p_asks and t.kind = 'asked' and t.then_was <> 'deferred')
    );
end
$$;
comment on function seconds_tried(uuid, uuid, text, boolean) is
    'Internal: for how long a step or undo has been tried, time in which nobody tried left out.';

-- How long the step at which a group stands, or its undo, is tried. Locks nothing.
create or replace function longest_try_seconds(p_group saga_group, p_outage boolean) returns numeric
language plpgsql immutable
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
begin
    return case
        when p_outage or (is_external(v_step, v_backwards) and (v_backwards or v_step.forward_only)) then v_step.stuck_seconds
        else v_step.give_up_seconds
    end;
end
$$;
comment on function longest_try_seconds(saga_group, boolean) is 'Internal: how long the step at which a group stands is tried.';

-- The members of a group that have been tried for as long as their step is. p_outage: what
-- fails is the database, and no fault of the step. Locks nothing.
create or replace function out_of_time(p_group saga_group, p_outage boolean default false) returns uuid[]
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
    v_seconds constant numeric := longest_try_seconds(p_group, p_outage);
begin
    return array(
        select g.saga_id
        from unnest(p_group.saga_ids, p_group.warehouse_ids) as g (saga_id, warehouse_id)
        where v_seconds <= seconds_tried(
            g.saga_id, g.warehouse_id, case when v_backwards then v_step.undo_name else v_step.step_name end,
            is_external(v_step, v_backwards)
        )
        order by g.saga_id
    );
end
$$;
comment on function out_of_time(saga_group, boolean) is 'Internal: the members of a group that were tried for as long as their step is.';

-- The named members of an outcome, as an outcome of their own. Locks nothing.
create or replace function split_outcome(p_outcome outcome_group, p_saga_ids uuid[]) returns outcome_group
language plpgsql immutable
as $$
declare
    v_places constant integer[] := array(
        select o.n::integer from unnest(p_outcome.saga_ids) with ordinality as o (saga_id, n)
        where o.saga_id = any(p_saga_ids) order by o.n
    );
begin
    return row(
        p_outcome.result, p_outcome.wait_seconds,
        array(select p_outcome.saga_ids[n] from unnest(v_places) as n),
        case when p_outcome.error_codes is not null then array(select p_outcome.error_codes[n] from unnest(v_places) as n) end,
        case when p_outcome.messages is not null then array(select p_outcome.messages[n] from unnest(v_places) as n) end,
        case when p_outcome.requests is not null then array(select p_outcome.requests[n] from unnest(v_places) as n) end
    )::outcome_group;
end
$$;
comment on function split_outcome(outcome_group, uuid[]) is 'Internal: the named members of an outcome, as an outcome of their own.';

-- Of a group that was answered "pending" again: those whose time is over, given up. There is
-- one deadline, that of the first such answer; where nothing turns back it is no less than
-- the time for which the step is tried. Locks nothing.
create or replace function not_confirmed(p_group saga_group) returns outcome_group
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
    v_seconds constant numeric := case when v_backwards or v_step.forward_only then longest_try_seconds(p_group, false) else 0 end;
    v_given_up outcome_group;
begin
    select
        'given_up', null, coalesce(array_agg(g.saga_id order by g.saga_id), '{}'),
        array_agg('DP013'::text), array_agg(g.message order by g.saga_id), null
    into v_given_up
    from (
        select
            m.saga_id,
            format('not confirmed within %s s', trim_scale(round(greatest(extract(epoch from t.until - t.began_at), v_seconds), 1))) as message
        from unnest(p_group.saga_ids, p_group.warehouse_ids) as m (saga_id, warehouse_id)
        cross join lateral (
            select o.began_at, o.until
            from tries_of(m.saga_id, m.warehouse_id, case when v_backwards then v_step.undo_name else v_step.step_name end) as o
            where o.kind = 'pending' order by o.id limit 1
        ) as t
        where clock() >= greatest(t.until, t.began_at + v_seconds * interval '1 second')
    ) as g;
    return v_given_up;
end
$$;
comment on function not_confirmed(saga_group) is 'Internal: the members of a group whose answer has been pending for too long.';

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
            return array[p_group];
        elsif p_group.attempts > 1 then
            v_given_up := not_confirmed(p_group);
        end if;
    end if;
    if coalesce(cardinality(v_given_up.saga_ids), 0) = 0 then
        return array[apply_outcome(p_group, p_outcome, p_started_at)];
    end if;
    v_others := array(select i from unnest(p_group.saga_ids) as i where i <> all(v_given_up.saga_ids));
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

-- Calls a step function, or with answers a settle function, by its name. Locks what that locks.
create or replace function call_step_by_name(
    p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[] default null
) returns outcome_group[]
language plpgsql
as $$
declare
    v_outcomes outcome_group[];
begin
    if p_answers is null then
        execute format('select %I($1, $2)', p_function) into v_outcomes using p_warehouse_ids, p_saga_ids;
    else
        execute format('select %I($1, $2, $3)', p_function) into v_outcomes using p_warehouse_ids, p_saga_ids, p_answers;
    end if;
    return v_outcomes;
end
$$;
comment on function call_step_by_name(text, uuid[], uuid[], jsonb[]) is
    'Internal: the outcomes of a step function, or with answers of a settle function.';

-- The same for the engine, which 54_fast_path.sql writes over. Locks what the step locks.
create or replace function call_step(
    p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[] default null
) returns outcome_group[]
language plpgsql
as $$
begin
    return call_step_by_name(p_function, p_warehouse_ids, p_saga_ids, p_answers);
end
$$;
comment on function call_step(text, uuid[], uuid[], jsonb[]) is
    'Internal: the outcomes of a step function, or with answers of a settle function; see compile_calls().';

-- Calls an effect function by its name. Locks what that locks.
create or replace function call_effect_by_name(p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[])
returns void
language plpgsql
as $$
begin
    execute format('select %I($1, $2, $3)', p_function) using p_warehouse_ids, p_saga_ids, p_effects;
end
$$;
comment on function call_effect_by_name(text, uuid[], uuid[], text[]) is 'Internal: lets steps that are done have their effect.';

-- The same for the engine, which 54_fast_path.sql writes over. Locks what the effect locks.
create or replace function call_effect(p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[])
returns void
language plpgsql
as $$
begin
    perform call_effect_by_name(p_function, p_warehouse_ids, p_saga_ids, p_effects);
end
$$;
comment on function call_effect(text, uuid[], uuid[], text[]) is
    'Internal: lets steps that are done have their effect; see compile_calls().';

-- Brings a group the answers to its requests, or the signals that it waited for. Returns
-- what becomes of it. A step that waits and takes no signal itself is done with any.
-- Locks: what the settle function locks. Raises: as split_by_outcome().
create or replace function settle_group(p_group saga_group, p_warehouse_ids uuid[]) returns saga_group[]
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_function constant text := case p_group.status
        when 'compensating' then v_step.undo_settle_function
        else v_step.settle_function
    end;
    v_outcomes outcome_group[];
begin
    if p_group.deferred_seconds is not null then
        v_outcomes := array[row(
            'deferred', p_group.deferred_seconds, p_group.saga_ids,
            null, array(select a ->> 'message' from unnest(p_group.answers) as a), null
        )::outcome_group];
    elsif v_function is null then
        v_outcomes := outcome_for_all('done', p_group.saga_ids);
    else
        v_outcomes := call_step(v_function, p_warehouse_ids, p_group.saga_ids, p_group.answers);
    end if;
    return split_by_outcome(p_group, v_function, v_outcomes, null);
end
$$;
comment on function settle_group(saga_group, uuid[]) is
    'Internal: brings answers or signals to a group and says where its members go.';

-- Takes the oldest signal that each member of a group was sent for the step at which it
-- stands. Locks: saga_signals.
create or replace function take_signals(
    p_group saga_group, p_warehouse_ids uuid[], out saga_ids uuid[], out payloads jsonb[]
)
language plpgsql
as $$
declare
    v_step_name constant text := (p_group.plan[p_group.position]).step_name;
begin
    with taken as (
        update saga_signals as g
        set taken_at = clock()
        where g.saga_id = any(p_group.saga_ids) and g.warehouse_id = any(p_warehouse_ids)
            and g.id = (
                select min(f.id) from saga_signals as f
                where f.saga_id = g.saga_id and f.warehouse_id = g.warehouse_id
                    and f.step_name = v_step_name and f.taken_at is null
            )
        returning g.saga_id, g.payload
    )
    select coalesce(array_agg(t.saga_id order by t.saga_id), '{}'), array_agg(t.payload order by t.saga_id)
    into saga_ids, payloads
    from taken as t;
end
$$;
comment on function take_signals(saga_group, uuid[]) is 'Internal: takes the oldest signal of each member of a group.';

-- The outcome of a wait that nothing has ended but its time, with how long that was: of a
-- call, of an answer that was pending, of a signal. Locks nothing.
create or replace function wait_in_vain(p_group saga_group, p_result step_result) returns outcome_group[]
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
begin
    return array[row(
        p_result, null, p_group.saga_ids, array_fill('DP013'::text, array[cardinality(p_group.saga_ids)]),
        array(
            select format(
                case when not is_external(v_step, v_backwards) then 'no signal within %s s'
                    when t.kind = 'pending' then 'still pending after %s s' else 'no answer within %s s' end,
                trim_scale(round(coalesce(extract(epoch from t.until - t.began_at), v_step.timeout_seconds), 3))
            )
            from unnest(p_group.saga_ids, p_group.warehouse_ids) with ordinality as g (saga_id, warehouse_id, n)
            left join lateral (
                select o.kind, o.began_at, o.until
                from tries_of(g.saga_id, g.warehouse_id, case when v_backwards then v_step.undo_name else v_step.step_name end) as o
                where o.kind in ('asked', 'pending')
                order by o.id desc limit 1
            ) as t on true
            order by g.n
        ),
        null
    )::outcome_group];
end
$$;
comment on function wait_in_vain(saga_group, step_result) is
    'Internal: the outcome of a wait whose time is over, with how long it was.';

-- Of a group whose undo was asked for and is about to be again: those that were asked for
-- long enough are given up, the others go on. Locks nothing.
create or replace function give_up_undo(p_group saga_group) returns saga_group[]
language plpgsql
as $$
declare
    v_given_up constant uuid[] := out_of_time(p_group);
    v_others constant uuid[] := array(select i from unnest(p_group.saga_ids) as i where i <> all(v_given_up));
    v_part constant saga_group := split_group(p_group, v_given_up);
    v_became constant saga_group[] := array[apply_outcome(v_part, (wait_in_vain(v_part, 'given_up'))[1], clock())];
begin
    return case when cardinality(v_others) > 0 then split_group(p_group, v_others) || v_became else v_became end;
end
$$;
comment on function give_up_undo(saga_group) is 'Internal: gives up undos that nobody has answered for as long as they are tried.';

-- The wait of a group is over: of a request, since its lease ran out; of a signal, since it
-- came or its deadline passed. Returns what becomes of it.
-- Locks: saga_signals, then as settle_group().
create or replace function end_wait(p_group saga_group, p_warehouse_ids uuid[]) returns saga_group[]
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
    v_heard uuid[];
    v_payloads jsonb[];
    v_part saga_group;
    v_silent uuid[];
    v_became saga_group[] := '{}';
begin
    if is_external(v_step, false) then
        return split_by_outcome(p_group, null, wait_in_vain(p_group, 'failed'), clock());
    end if;
    -- A signal makes sagas ready before their deadline: the wait began with its event.
    p_group.were_ready_at := array(
        select case when g.was_ready_at is not null then (
            select max(e.created_at) + v_step.timeout_seconds * interval '1 second'
            from saga_events as e
            where e.saga_id = g.saga_id and e.warehouse_id = g.warehouse_id
                and e.event_type = 'step_waiting' and e.step_name = v_step.step_name
        ) end
        from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.were_ready_at)
            with ordinality as g (saga_id, warehouse_id, was_ready_at, n)
        order by g.n
    );
    select t.saga_ids, t.payloads into v_heard, v_payloads from take_signals(p_group, p_warehouse_ids) as t;
    if cardinality(v_heard) > 0 then
        v_part := split_group(p_group, v_heard);
        v_part.answers := v_payloads;
        v_became := settle_group(v_part, p_warehouse_ids);
    end if;
    v_silent := array(select i from unnest(p_group.saga_ids) as i where i <> all(v_heard));
    if cardinality(v_silent) > 0 then
        p_group := split_group(p_group, v_silent);
        v_became := v_became || split_by_outcome(
            p_group, null,
            wait_in_vain(
                p_group,
                case v_step.on_deadline when 'go_on' then 'done' when 'turn_back' then 'refused' else 'stuck' end::step_result
            ),
            null
        );
    end if;
    return v_became;
end
$$;
comment on function end_wait(saga_group, uuid[]) is
    'Internal: what becomes of sagas whose lease ran out, whose signal came or whose deadline passed.';

-- Of groups that came to a step that waits for a signal: the members that were sent one
-- already don't wait for it, and go on in this pass.
-- Locks nothing; the sagas are locked, and so is whoever signals them.
create or replace function wake_signalled(p_groups saga_group[], p_warehouse_ids uuid[]) returns saga_group[]
language plpgsql
as $$
declare
    v_group saga_group;
    v_step plan_step;
    v_told uuid[];
    v_untold uuid[];
    v_woken saga_group[] := '{}';
begin
    foreach v_group in array p_groups loop
        v_step := v_group.plan[v_group.position];
        v_told := array(
            select distinct g.saga_id
            from saga_signals as g
            where v_group.status = 'waiting' and g.saga_id = any(v_group.saga_ids) and g.warehouse_id = any(p_warehouse_ids)
                and g.step_name = v_step.step_name and g.taken_at is null
        );
        v_untold := array(select i from unnest(v_group.saga_ids) as i where i <> all(v_told));
        if cardinality(v_told) = 0 then
            v_woken := v_woken || v_group;
            continue;
        elsif cardinality(v_untold) > 0 then
            v_woken := v_woken || split_group(v_group, v_untold);
            v_group := split_group(v_group, v_told);
        end if;
        v_group.parked := false;
        v_group.ready_at := clock();
        -- What began in this pass had no lease, and isn't tried again.
        v_group.were_ready_at := array_fill(null::timestamptz, array[cardinality(v_told)]);
        v_group.transitions[cardinality(v_group.transitions)].will_retry := false;
        v_woken := v_woken || v_group;
    end loop;
    return v_woken;
end
$$;
comment on function wake_signalled(saga_group[], uuid[]) is
    'Internal: lets sagas that came to a wait go on whose signal is there already.';

-- Until when calls of a step are paused still; null when they aren't. The row is locked, so
-- that the end of the pause finds the sagas that wait for it. Somebody who is just changing
-- the row isn't waited for, since that may be waiting for the sagas of this pass: they look
-- again in a second.
-- Locks: a paused row of step_settings, shared, without waiting.
create or replace function end_of_pause(p_group saga_group, p_step plan_step) returns timestamptz
language plpgsql
as $$
declare
    v_paused_until timestamptz;
begin
    if is_external(p_step, p_group.status = 'compensating') is not true then
        return null;
    end if;
    select t.paused_until into v_paused_until
    from step_settings as t
    where t.saga_type = p_group.saga_type and t.step_name = p_step.step_name
    for share skip locked;
    if not found then
        return clock() + interval '1 second';
    end if;
    return case when v_paused_until > clock() then v_paused_until end;
end
$$;
comment on function end_of_pause(saga_group, plan_step) is
    'Internal: until when calls of the step at which a group stands are paused; null when they are not.';

-- Takes a group through its steps as long as its members come out of them alike, until it
-- is parked. Returns what becomes of it: one group as a rule, more when members came out
-- differently, which then go on by themselves. p_once: takes one step at the most.
-- Locks: what the step functions lock, saga_signals, paused rows of step_settings.
-- Raises: P0002 when the plan has no such step; what a step function raises.
create or replace function take_steps(p_group saga_group, p_warehouse_ids uuid[], p_once boolean) returns saga_group[]
language plpgsql
as $$
declare
    v_started_at timestamptz;
    v_step plan_step;
    v_backwards boolean;
    v_waits boolean;
    v_function text;
    v_pause_ends timestamptz;
    v_outcomes outcome_group[];
begin
    loop
        v_started_at := clock();
        v_step := p_group.plan[p_group.position];
        v_backwards := p_group.status = 'compensating';
        v_waits := v_step.on_deadline is not null and not v_backwards;
        v_function := case when v_backwards then v_step.undo_function else v_step.step_function end;
        v_pause_ends := case when v_step.paused_until > v_started_at then end_of_pause(p_group, v_step) end;
        if v_step.position is null then
            raise no_data_found using message = format('%s has no step %s', p_group.saga_type, p_group.position);
        elsif p_group.cancel_requested and p_group.status in ('running', 'waiting') then
            -- No call is out any more. A step that was tried may have had its effect, but not
            -- one that waits for a signal.
            return array[start_compensation(p_group, p_group.attempts > 0 and not v_waits, 'cancelled on request')];
        elsif p_group.status = 'waiting' then
            return case
                when v_waits then wake_signalled(end_wait(p_group, p_warehouse_ids), p_warehouse_ids)
                else end_wait(p_group, p_warehouse_ids)
            end;
        elsif v_pause_ends is not null then
            -- Those that waited out a pause come back one after the other.
            p_group.ready_at := v_pause_ends;
            p_group.spread_seconds := 1;
            p_group.parked := true;
            return array[p_group];
        elsif p_group.attempts > 0 and v_backwards and is_external(v_step, true) and cardinality(out_of_time(p_group)) > 0 then
            -- The leases of requests to undo ran out, which nothing else notes.
            return give_up_undo(p_group);
        else
            p_group.attempts := least(p_group.attempts, 32766) + 1;
            v_outcomes := case
                when v_function is not null then call_step(v_function, p_warehouse_ids, p_group.saga_ids)
                else outcome_for_all(case when v_waits then 'waiting' else 'done' end::step_result, p_group.saga_ids)
            end;
        end if;

        if v_waits then
            return wake_signalled(split_by_outcome(p_group, v_function, v_outcomes, v_started_at), p_warehouse_ids);
        elsif (v_outcomes[1]).result = 'failed' or not came_out_alike(v_outcomes, p_group.saga_ids) then
            return split_by_outcome(p_group, v_function, v_outcomes, v_started_at);
        end if;
        p_group := apply_outcome(p_group, v_outcomes[1], v_started_at);
        exit when p_group.parked or p_once;
    end loop;
    return array[p_group];
end
$$;
comment on function take_steps(saga_group, uuid[], boolean) is
    'Internal: takes a group through its steps while its members come out alike, and says what becomes of it.';

-- The requests of a group, those of its members that ask for something, as they are handed
-- out: one JSON array; none for none. Locks nothing.
create or replace function build_requests(p_group saga_group) returns json[]
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
begin
    return array(
        select
            json_agg(row(
                s.saga_id, s.warehouse_id, s.lease_token + p_group.token_increments, p_group.attempts, v_step.timeout_seconds,
                case p_group.status when 'compensating' then v_step.undo_name else v_step.step_name end, s.request
            )::external_request)
        from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.requests)
            as s (saga_id, warehouse_id, lease_token, request)
        where s.request is not null
        having count(*) > 0
    );
end
$$;
comment on function build_requests(saga_group) is 'Internal: the external requests of a group as they are handed out.';

-- Writes what happened to a group, where its sagas stand now and the status of their orders.
-- Returns the requests to make, in one JSON array; none for none.
-- Locks: sagas, orders.
create or replace function write_group(p_group saga_group, p_warehouse_ids uuid[]) returns json[]
language plpgsql
as $$
begin
    with stand as (
        update sagas as s
        set
            status = p_group.status,
            position = p_group.position,
            attempts = p_group.attempts,
            lease_token = s.lease_token + p_group.token_increments,
            ready_at = p_group.ready_at + p_group.spread_seconds * jitter(s.id, p_group.attempts) * interval '1 second',
            updated_at = clock()
        where s.id = any(p_group.saga_ids) and s.warehouse_id = any(p_warehouse_ids)
    ),
    told as (
        update orders as o
        set status = p_group.order_status, updated_at = clock()
        where p_group.order_status is not null
            and o.id = any(p_group.saga_ids) and o.warehouse_id = any(p_warehouse_ids)
            and o.status <> p_group.order_status
    )
    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, error_code, message,
        next_attempt_at, started_at, created_at
    )
    select
        s.saga_id, s.warehouse_id, t.event_type, t.step_name, t.attempt, t.error_codes[s.n], t.messages[s.n],
        case
            when t.will_retry
                then p_group.ready_at + p_group.spread_seconds * jitter(s.saga_id, p_group.attempts) * interval '1 second'
        end,
        -- A pending answer may have put the end of the lease off.
        case
            when t.lease_seconds is not null
                then least(s.was_ready_at - t.lease_seconds * interval '1 second', t.created_at)
            else t.started_at
        end,
        t.created_at
    from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.were_ready_at)
        with ordinality as s (saga_id, warehouse_id, was_ready_at, n)
    cross join unnest(p_group.transitions) as t;
    return case when p_group.requests is null then '{}' else build_requests(p_group) end;
end
$$;
comment on function write_group(saga_group, uuid[]) is
    'Internal: writes the events of a group, where its sagas stand and the status of their orders; returns the requests to make.';

-- Lets the steps that are done have their effect, once per effect function. The arrays are
-- aligned. Returns how many effects there were. Locks: what the effect functions lock.
create or replace function apply_effects(
    p_warehouse_ids uuid[], p_functions text[], p_saga_ids uuid[], p_effects text[]
) returns integer
language plpgsql
as $$
declare
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
    v_function text;
    v_saga_ids uuid[];
    v_effects text[];
begin
    if p_functions[1] is not null and p_functions[1] = all(p_functions) then
        v_void := call_effect(p_functions[1], p_warehouse_ids, p_saga_ids, p_effects);
    elsif cardinality(p_functions) > 1 then
        for v_function, v_saga_ids, v_effects in
            select e.name, array_agg(e.saga_id), array_agg(e.effect)
            from unnest(p_functions, p_saga_ids, p_effects) as e (name, saga_id, effect)
            group by e.name
            order by e.name
        loop
            v_void := call_effect(v_function, p_warehouse_ids, v_saga_ids, v_effects);
        end loop;
    end if;
    return cardinality(p_functions);
end
$$;
comment on function apply_effects(uuid[], text[], uuid[], text[]) is
    'Internal: lets the steps that are done have their effect, once per effect function.';

-- Takes groups that this transaction has locked through their steps, one group after the
-- other, until each is parked; then writes what became of it, every row once, and lets the
-- steps that were done have their effect.
-- p_steps: how many steps are taken at the most; null for no bound.
-- Returns the external requests it has committed to, JSON arrays.
-- Locks: as take_steps(), then sagas, orders, then what the effects lock.
create or replace function run_groups(p_warehouse_ids uuid[], p_work saga_group[], p_steps integer default null)
returns json[]
language plpgsql
as $$
declare
    -- The last is taken first, and what becomes of it next.
    v_todo saga_group[] := p_work;
    v_group saga_group;
    v_steps integer := 0;
    v_transition saga_transition;
    v_functions text[] := '{}';
    v_saga_ids uuid[] := '{}';
    v_effects text[] := '{}';
    v_applied integer;
    v_requests json[] := '{}';
begin
    while cardinality(v_todo) > 0 loop
        v_group := v_todo[cardinality(v_todo)];
        v_todo := trim_array(v_todo, 1);
        if not v_group.parked and v_steps is distinct from p_steps then
            v_steps := v_steps + 1;
            v_todo := v_todo || take_steps(v_group, p_warehouse_ids, p_steps is not null);
            continue;
        end if;

        v_requests := v_requests || write_group(v_group, p_warehouse_ids);
        foreach v_transition in array coalesce(v_group.transitions, '{}') loop
            if v_transition.effect_function is not null then
                v_functions := v_functions || array_fill(v_transition.effect_function, array[cardinality(v_group.saga_ids)]);
                v_saga_ids := v_saga_ids || v_group.saga_ids;
                v_effects := v_effects || array_fill(v_transition.effect, array[cardinality(v_group.saga_ids)]);
            end if;
        end loop;
    end loop;
    v_applied := apply_effects(p_warehouse_ids, v_functions, v_saga_ids, v_effects);
    return v_requests;
end
$$;
comment on function run_groups(uuid[], saga_group[], integer) is
    'Internal: runs claimed sagas step by step; returns the external requests.';
