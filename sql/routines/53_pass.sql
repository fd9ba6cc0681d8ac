-- A pass: what happens to claimed sagas within one transaction.
--
-- Sagas that stand at the same place form a group, and a group is one value:
-- where it stands, and aligned arrays of who is in it. run_groups() takes group
-- after group through its step function. What comes out alike goes on together:
-- apply_outcome() notes what happened to it and says where it goes next. At the
-- end every saga and order row is written once, and all events of a group at
-- once. One group by itself begins with run_group(), see 52_plans.sql; see
-- 54_engine.sql for who calls.
--
-- Plans: a cached plan takes every array for ten elements long. Functions that
-- join arrays to each other switch nested loops off, so that five hundred are
-- hashed. A plan made while a table was small may last until it is large, and the
-- cheapest way to ten rows of a small table is to read it whole, by an index where
-- sequential scans are switched off. So a table that grows is read by its key: by
-- = any(the ids), by a subquery for one row, or joined by = any(array[…]) for each
-- column of the key, which can be planned as a look-up for each row and as nothing
-- else.
-- advance() and settle() plan each statement once per session, and compile none:
-- an order alone would pay for the planning, and a switched-off plan node looks
-- expensive enough to be worth compiling.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Where a saga's own share of a spread of time lies, from 0 to 1: random from
-- one saga to the next and from one try to the next, and the same wherever it
-- is worked out.
create or replace function jitter(p_saga_id uuid, p_attempts integer) returns double precision
language sql immutable parallel safe
return (uuid_hash_extended(p_saga_id, p_attempts) & 65535) / 65535.0::double precision;
comment on function jitter(uuid, integer) is 'Internal: a fraction by which sagas that wait together come back apart.';

-- Something that happens to all sagas of a group. Without a SET clause it is inlined,
-- and costs what its row does. Locks nothing.
create or replace function transition(
    p_event_type saga_event_type,
    p_created_at timestamptz,
    p_step_name text default null,
    p_attempt smallint default null,
    p_error_codes text[] default null,
    p_messages text[] default null,
    p_goes_again boolean default false,
    p_started_at timestamptz default null,
    p_lease_seconds numeric default null,
    p_effect_function text default null
) returns saga_transition
language sql immutable
return row(
    p_event_type, p_step_name, p_attempt, p_error_codes, p_messages, p_goes_again,
    p_started_at, p_lease_seconds, p_created_at, p_effect_function
)::saga_transition;
comment on function transition(
    saga_event_type, timestamptz, text, smallint, text[], text[], boolean, timestamptz, numeric, text
) is 'Internal: notes what happens to all sagas of a group.';

-- The sagas of a group that are named. Locks nothing.
create or replace function part_of(p_group saga_group, p_saga_ids uuid[]) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
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
comment on function part_of(saga_group, uuid[]) is 'Internal: the sagas of a group that are named.';

-- Notes that a group has just turned back or ended, and parks an ended one.
-- Locks nothing.
create or replace function finish_sagas(p_group saga_group, p_turned_back boolean, p_message text default null)
returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_end constant saga_event_type := case p_group.status
        when 'completed' then 'saga_completed'
        when 'compensated' then 'saga_compensated'
        when 'stuck' then 'saga_stuck'
    end;
begin
    if p_turned_back then
        p_group.transitions := p_group.transitions || transition(
            'compensation_started', clock(),
            p_messages => array_fill(p_message, array[cardinality(p_group.saga_ids)])
        );
    end if;
    if v_end is not null then
        p_group.transitions := p_group.transitions || transition(v_end, clock());
        p_group.ready_at := null;
        p_group.parked := true;
        p_group.order_status := case v_end when 'saga_compensated' then 'cancelled' else p_group.order_status end;
    end if;
    return p_group;
end
$$;
comment on function finish_sagas(saga_group, boolean, text) is
    'Internal: notes the turn back and the end of a group, and parks it when it has ended.';

-- Turns a group back that was asked to stop and stands between two steps.
-- Locks nothing.
create or replace function turn_back(p_group saga_group) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    -- A step that was tried may have had its effect: undo it as well.
    if p_group.attempts = 0 then
        p_group.position := p_group.position - 1;
    end if;
    p_group.attempts := 0;
    p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
    return finish_sagas(p_group, true, 'cancelled on request');
end
$$;
comment on function turn_back(saga_group) is
    'Internal: starts the compensation of sagas whose cancellation was asked for.';

-- For a group whose plan has no step where it stands: raises P0002. Locks nothing.
create or replace function no_step(p_group saga_group) returns saga_steps
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
begin
    raise no_data_found using message = format('%s has no step %s', p_group.saga_type, p_group.position);
end
$$;
comment on function no_step(saga_group) is 'Internal: says that a plan has no step where a group stands.';

-- Notes what happened to a group whose sagas all came out of their step alike,
-- and returns it where it goes next. The lease token moves on with every outcome,
-- so whatever was handed out before is void.
-- p_started_at: when the step began; null for the answer to a request, which
-- began when its lease did. Locks nothing.
create or replace function apply_outcome(
    p_group saga_group,
    p_result step_result,
    p_wait_seconds numeric,
    p_error_codes text[],
    p_messages text[],
    p_started_at timestamptz,
    p_requests json[] default null
) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_now constant timestamptz := clock();
    v_step constant saga_steps := p_group.plan[p_group.position];
    v_backwards constant boolean := p_group.status = 'compensating';
    v_name constant text := case when v_backwards then v_step.undo_name else v_step.step_name end;
    v_attempt constant smallint := p_group.attempts;
    v_event saga_event_type;
    v_effect text;
    v_order_status order_status;
    v_goes_again boolean;
    v_turned_back boolean;
begin
    p_group.moves := p_group.moves + 1;
    p_group.ready_at := v_now;
    p_group.spread_seconds := 0;
    p_group.attempts := 0;
    if p_result = 'done' and not v_backwards then
        v_event := 'step_completed';
        v_effect := v_step.effect_function;
        v_order_status := v_step.order_status_done;
        if v_step.position = cardinality(p_group.plan) then
            p_group.status := 'completed';
        else
            p_group.status := 'running';
            p_group.position := v_step.position + 1;
        end if;
    elsif p_result = 'done' then
        v_event := 'step_compensated';
        v_effect := v_step.undo_effect_function;
        p_group.position := v_step.position - 1;
        p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
    elsif p_result = 'waiting' then
        v_event := 'step_waiting';
        p_group.attempts := v_attempt;
        v_goes_again := true;
        p_group.requests := p_requests;
        p_group.ready_at := v_now + coalesce(p_wait_seconds, v_step.timeout_seconds) * interval '1 second';
        if not v_backwards then
            p_group.status := 'waiting';
            v_order_status := v_step.order_status_waiting;
        end if;
    else
        v_event := 'step_failed';
        if p_result = 'failed' and v_attempt < v_step.max_attempts then
            p_group.attempts := v_attempt;
            v_goes_again := true;
            p_group.status := case when v_backwards then 'compensating' else 'running' end;
            -- Half of the wait is fixed and half of it each saga's own.
            p_group.spread_seconds := backoff_seconds(v_step.backoff_seconds, v_attempt) / 2;
            p_group.ready_at := v_now + p_group.spread_seconds * interval '1 second';
        elsif v_backwards or (v_step.forward_only and (p_result = 'failed' or v_step.position > 1)) then
            -- No way on and none back. (Refused as the first step is nothing done.)
            p_group.status := 'stuck';
        else
            -- A step that was refused left nothing behind, nor did one that raised, unless
            -- it is external: then the call may have had its effect, and is undone as well.
            if p_result = 'refused' or v_step.settle_function is null then
                p_group.position := v_step.position - 1;
            end if;
            p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
            v_order_status := v_step.order_status_refused;
            v_turned_back := true;
        end if;
    end if;

    if v_order_status is not null then
        p_group.order_status := v_order_status;
    end if;
    if v_name is not null then
        p_group.transitions := p_group.transitions || transition(
            v_event, v_now, v_name, v_attempt, p_error_codes, p_messages,
            p_goes_again => v_goes_again,
            p_started_at => p_started_at,
            p_lease_seconds => case when p_started_at is null then v_step.timeout_seconds end,
            p_effect_function => v_effect
        );
    end if;
    if v_goes_again then
        p_group.parked := true;
    elsif v_turned_back or p_group.status in ('completed', 'compensated', 'stuck') then
        return finish_sagas(p_group, v_turned_back);
    end if;
    return p_group;
end
$$;
comment on function apply_outcome(saga_group, step_result, numeric, text[], text[], timestamptz, json[]) is
    'Internal: notes what happened to sagas that came out of a step alike and works out where they go next.';

-- What becomes of a group whose sagas came out of a function in one or several ways: a
-- group for what came out alike, each with what it asks for.
-- Locks nothing. Raises: XX000 when there is not one outcome for each saga.
create or replace function came_apart(
    p_group saga_group, p_function text, p_outcomes outcome_group[], p_started_at timestamptz
) returns saga_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_of outcome_group;
    v_became saga_group[];
    v_saga_ids uuid[] := '{}';  -- of the outcomes
begin
    foreach v_of in array coalesce(p_outcomes, '{}') loop
        v_saga_ids := v_saga_ids || v_of.saga_ids;
    end loop;
    if array(select i from unnest(v_saga_ids) as i order by i) <> p_group.saga_ids then
        raise exception using
            errcode = 'XX000',
            message = format(
                '%s returned %s outcomes for %s sagas',
                p_function, cardinality(v_saga_ids), cardinality(p_group.saga_ids)
            ),
            detail = 'A step function returns exactly one outcome for each saga.',
            hint = 'Mend the step function; the sagas are tried again.';
    end if;
    foreach v_of in array p_outcomes loop
        v_became := v_became || apply_outcome(
            case when v_of.saga_ids = p_group.saga_ids then p_group else part_of(p_group, v_of.saga_ids) end,
            v_of.result, v_of.wait_seconds, v_of.error_codes, v_of.messages, p_started_at,
            case when v_of.asks then v_of.requests end
        );
    end loop;
    return v_became;
end
$$;
comment on function came_apart(saga_group, text, outcome_group[], timestamptz) is
    'Internal: says where the sagas of a group go that came out of a function, those alike together.';

-- What has become of a group that run_group() took up to a step that came out
-- otherwise than it does as a rule. p_begun says when each step began, up to that one;
-- the first when its lease did, if that is null.
-- Locks nothing. Raises: as came_apart().
create or replace function went_astray(
    p_group saga_group, p_function text, p_outcomes outcome_group[], p_begun timestamptz[]
) returns saga_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_last constant integer := cardinality(p_begun);
begin
    for n in 1..v_last loop
        if p_begun[n] is not null then
            p_group.attempts := p_group.attempts + 1;
        end if;
        exit when n = v_last;
        p_group := apply_outcome(p_group, 'done', null, null, null, p_begun[n]);
    end loop;
    return came_apart(p_group, p_function, p_outcomes, p_begun[v_last]);
end
$$;
comment on function went_astray(saga_group, text, outcome_group[], timestamptz[]) is
    'Internal: what has become of a group when a step on its straight way came out otherwise.';

-- The requests of a group, those of its sagas that ask for something, as they are handed
-- out: one JSON array; none for none. p_moves: what the lease tokens have grown by.
-- Locks nothing.
create or replace function requests_to_make(
    p_saga_ids uuid[], p_warehouse_ids uuid[], p_lease_tokens bigint[], p_moves integer, p_attempt smallint,
    p_timeout_seconds numeric, p_step_name text, p_requests json[]
) returns json[]
language plpgsql stable
as $$
begin
    return array(
        select
            json_agg(row(
                s.saga_id, s.warehouse_id, s.lease_token + p_moves, p_attempt, p_timeout_seconds, p_step_name, s.request
            )::external_request)
        from unnest(p_saga_ids, p_warehouse_ids, p_lease_tokens, p_requests)
            as s (saga_id, warehouse_id, lease_token, request)
        where s.request is not null
        having count(*) > 0
    );
end
$$;
comment on function requests_to_make(uuid[], uuid[], bigint[], integer, smallint, numeric, text, json[]) is
    'Internal: the external requests of a group as they are handed out.';

-- Writes what happened to a group, where its sagas stand now and the status of
-- their orders. Returns the requests to make, in one JSON array; none for none.
-- Locks: sagas, orders.
create or replace function write_group(p_group saga_group, p_warehouse_ids uuid[]) returns json[]
language plpgsql
as $$
declare
    v_step saga_steps;
begin
    with stand as (
        update sagas as s
        set
            status = p_group.status,
            position = p_group.position,
            attempts = p_group.attempts,
            lease_token = s.lease_token + p_group.moves,
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
            when t.goes_again
                then p_group.ready_at + p_group.spread_seconds * jitter(s.saga_id, t.attempt) * interval '1 second'
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

    if p_group.requests is null then
        return '{}';
    end if;
    v_step := p_group.plan[p_group.position];
    return requests_to_make(
        p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.moves, p_group.attempts,
        v_step.timeout_seconds,
        case p_group.status when 'compensating' then v_step.undo_name else v_step.step_name end,
        p_group.requests
    );
end
$$;
comment on function write_group(saga_group, uuid[]) is
    'Internal: writes the events of a group, where its sagas stand and the status of their orders; returns the external requests.';

-- Takes groups that this transaction has locked through their steps, one group after the
-- other, until each is parked; then writes what became of it, every row once, and lets the
-- steps that were done have their effect, once per effect function.
-- p_go_on false stops each saga after one step.
-- Returns the external requests it has committed to, JSON arrays.
-- Locks: what the step functions lock, paused steps of saga_steps, sagas, orders, then
-- what the effects lock.
create or replace function run_groups(p_warehouse_ids uuid[], p_work saga_group[], p_go_on boolean default true)
returns json[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    -- The last is taken first, and what becomes of it next.
    v_todo saga_group[] := p_work;
    v_group saga_group;
    v_step saga_steps;
    v_function text;
    v_started_at timestamptz;
    v_go_on boolean := true;
    v_transition saga_transition;
    v_effect text;
    v_sagas uuid[];
    v_effects text[] := '{}';
    v_effect_sagas uuid[];
    v_effect_steps text[];
    v_requests json[] := '{}';
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
begin
    <<groups>>
    while cardinality(v_todo) > 0 loop
        v_group := v_todo[cardinality(v_todo)];
        v_todo := trim_array(v_todo, 1);
        while v_go_on and not v_group.parked loop
            if v_group.status = 'running' and v_group.cancel_requested then
                v_group := turn_back(v_group);
                continue;
            end if;

            v_step := v_group.plan[v_group.position];
            if v_step.position is distinct from v_group.position then
                v_step := no_step(v_group);
            elsif v_step.paused_until > clock() then
                -- Who ends the pause meanwhile waits, so that it finds those who wait for its end.
                select s.paused_until into v_step.paused_until
                from saga_steps as s
                where s.saga_type = v_group.saga_type and s.position = v_group.position and v_group.status <> 'waiting'
                    and case v_group.status when 'compensating' then s.undo_settle_function else s.settle_function end is not null
                for share;
                if v_step.paused_until > clock() then
                    -- Those that waited out a pause come back one after the other.
                    v_group.ready_at := v_step.paused_until;
                    v_group.spread_seconds := 1;
                    exit;
                end if;
            end if;

            v_go_on := p_go_on;
            v_started_at := clock();
            v_function := case v_group.status when 'compensating' then v_step.undo_function else v_step.step_function end;
            if v_group.status = 'waiting' or (v_function is not null and v_group.attempts >= v_step.max_attempts) then
                -- A lease ran out: of a request, which was counted when it was made, or of the
                -- last one to undo; or the plan was tightened.
                v_group := apply_outcome(
                    v_group, 'failed', null,
                    array_fill('DP013'::text, array[cardinality(v_group.saga_ids)]),
                    array_fill(
                        case v_group.status
                            when 'waiting' then format('no answer within %s s', trim_scale(v_step.timeout_seconds))
                            else 'attempts used up'
                        end,
                        array[cardinality(v_group.saga_ids)]
                    ),
                    v_started_at
                );
            else
                v_group.attempts := v_group.attempts + 1;
                if v_function is null then
                    v_group := apply_outcome(v_group, 'done', null, null, null, v_started_at);
                else
                    v_todo := v_todo || came_apart(
                        v_group, v_function, call_step(v_function, p_warehouse_ids, v_group.saga_ids, null), v_started_at
                    );
                    continue groups;
                end if;
            end if;
        end loop;

        v_requests := v_requests || write_group(v_group, p_warehouse_ids);
        foreach v_transition in array coalesce(v_group.transitions, '{}') loop
            if v_transition.effect_function is not null then
                v_effects := v_effects || array_fill(v_transition.effect_function, array[cardinality(v_group.saga_ids)]);
                v_effect_sagas := v_effect_sagas || v_group.saga_ids;
                v_effect_steps := v_effect_steps || array_fill(v_transition.step_name, array[cardinality(v_group.saga_ids)]);
            end if;
        end loop;
    end loop;

    if cardinality(v_effects) = 0 then
        return v_requests;
    elsif v_effects[1] = all(v_effects) then
        v_void := call_effect(v_effects[1], p_warehouse_ids, v_effect_sagas, v_effect_steps);
    else
        for v_effect, v_sagas, v_effect_steps in
            select e.name, array_agg(e.saga_id), array_agg(e.step_name)
            from unnest(v_effects, v_effect_sagas, v_effect_steps) as e (name, saga_id, step_name)
            group by e.name
            order by e.name
        loop
            v_void := call_effect(v_effect, p_warehouse_ids, v_sagas, v_effect_steps);
        end loop;
    end if;
    return v_requests;
end
$$;
comment on function run_groups(uuid[], saga_group[], boolean) is
    'Internal: runs claimed sagas step by step; returns the external requests.';
