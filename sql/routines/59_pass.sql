-- A pass: what happens to claimed sagas within one transaction.
--
-- Sagas that stand at the same place form a group, and a group is one value:
-- where it stands, and aligned arrays of who is in it. run_pass() takes group
-- after group through its step function. What comes out alike goes on together:
-- apply_outcome() writes its events and says where it goes next. At the end
-- every saga and order row is written once. See 60_engine.sql for who calls.
--
-- Plans: a cached plan takes every array for ten elements long. Functions that
-- join arrays to each other switch nested loops off, so that five hundred are
-- hashed; functions that look rows up by an array keep them, and switch
-- sequential scans off, so that a plan made while a table was small stays good.
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

-- The sagas of a group that are named. Locks nothing.
create or replace function part_of(p_group saga_group, p_saga_ids uuid[]) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
set enable_nestloop = off
as $$
begin
    select
        array_agg(g.saga_id order by g.saga_id), array_agg(g.warehouse_id order by g.saga_id),
        array_agg(g.lease_token order by g.saga_id), array_agg(g.was_ready_at order by g.saga_id)
    into p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at
    from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at)
        as g (saga_id, warehouse_id, lease_token, was_ready_at)
    inner join unnest(p_saga_ids) as i (saga_id) using (saga_id);
    return p_group;
end
$$;
comment on function part_of(saga_group, uuid[]) is 'Internal: the sagas of a group that are named.';

-- Writes the event of a group that has just turned back or ended, and parks an
-- ended one. Locks nothing.
create or replace function finish_sagas(p_group saga_group, p_turned_back boolean, p_message text default null)
returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_now constant timestamptz := clock();
begin
    if p_turned_back then
        insert into saga_events (saga_id, warehouse_id, event_type, message, created_at)
        select s.saga_id, s.warehouse_id, 'compensation_started', p_message, v_now
        from unnest(p_group.saga_ids, p_group.warehouse_ids) as s (saga_id, warehouse_id);
    end if;

    if p_group.status in ('completed', 'compensated', 'stuck') then
        insert into saga_events (saga_id, warehouse_id, event_type, created_at)
        select
            s.saga_id, s.warehouse_id,
            case p_group.status
                when 'completed' then 'saga_completed'::saga_event_type
                when 'compensated' then 'saga_compensated'
                else 'saga_stuck'
            end,
            v_now
        from unnest(p_group.saga_ids, p_group.warehouse_ids) as s (saga_id, warehouse_id);
        p_group.ready_at := null;
        p_group.parked := true;
        if p_group.status = 'compensated' then
            p_group.order_status := 'cancelled';
        end if;
    end if;
    return p_group;
end
$$;
comment on function finish_sagas(saga_group, boolean, text) is
    'Internal: writes compensation_started and the final event of a group, and parks it when it has ended.';

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

-- Writes the events of a group whose sagas all came out of a step alike, and
-- returns it where it goes next. The lease token moves on with every outcome, so
-- whatever was handed out before is void.
-- p_last: whether the step is the last of its plan. p_started_at: when it began;
-- null for the answer to a request, which began when its lease did. Locks nothing.
create or replace function apply_outcome(
    p_group saga_group,
    p_step saga_steps,
    p_last boolean,
    p_forward boolean,
    p_result step_result,
    p_wait_seconds numeric,
    p_error_codes text[],
    p_messages text[],
    p_started_at timestamptz
) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_now constant timestamptz := clock();
    v_attempt constant smallint := p_group.attempts;
    v_name constant text := case when p_forward then p_step.step_name else p_step.undo_name end;
    v_again constant boolean := p_result = 'failed' and v_attempt < p_step.max_attempts;
    v_turned_back boolean := false;
begin
    p_group.moves := p_group.moves + 1;
    p_group.ready_at := v_now;
    p_group.spread_seconds := 0;

    if p_result = 'waiting' or v_again then
        p_group.parked := true;
        p_group.position := p_step.position;
    else
        p_group.attempts := 0;
    end if;

    if p_result = 'waiting' then
        p_group.status := case when p_forward then 'waiting' else 'compensating' end;
        p_group.ready_at := v_now + coalesce(p_wait_seconds, p_step.timeout_seconds) * interval '1 second';
        if p_forward then
            p_group.order_status := coalesce(p_step.order_status_waiting, p_group.order_status);
        end if;
    elsif v_again then
        p_group.status := case when p_forward then 'running' else 'compensating' end;
        -- Half of the wait is fixed and half of it each saga's own.
        p_group.spread_seconds := backoff_seconds(p_step.backoff_seconds, v_attempt) / 2;
        p_group.ready_at := v_now + p_group.spread_seconds * interval '1 second';
    elsif p_result = 'done' and p_forward then
        if p_last then
            p_group.status := 'completed';
        else
            p_group.status := 'running';
            p_group.position := p_step.position + 1;
        end if;
        p_group.order_status := coalesce(p_step.order_status_done, p_group.order_status);
    elsif p_result = 'done' then
        p_group.position := p_step.position - 1;
        p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
    elsif not p_forward or (p_step.forward_only and (p_result = 'failed' or p_step.position > 1)) then
        -- No way on and none back. (Refused as the first step is nothing done.)
        p_group.status := 'stuck';
    else
        -- A step that was refused left nothing behind, nor did one that raised, unless
        -- it is external: then the call may have had its effect, and is undone as well.
        if p_result = 'refused' or p_step.settle_function is null then
            p_group.position := p_step.position - 1;
        end if;
        p_group.status := case when p_group.position = 0 then 'compensated' else 'compensating' end;
        p_group.order_status := coalesce(p_step.order_status_refused, p_group.order_status);
        v_turned_back := true;
    end if;

    if v_name is not null then
        insert into saga_events (
            saga_id, warehouse_id, event_type, step_name, attempt, error_code, message,
            next_attempt_at, started_at, created_at
        )
        select
            s.saga_id, s.warehouse_id,
            case p_result
                when 'done' then case when p_forward then 'step_completed'::saga_event_type else 'step_compensated' end
                when 'waiting' then 'step_waiting'
                else 'step_failed'
            end,
            v_name, v_attempt, s.error_code, s.message,
            case
                when p_group.attempts > 0
                    then p_group.ready_at + p_group.spread_seconds * jitter(s.saga_id, v_attempt) * interval '1 second'
            end,
            -- A pending answer may have put the end of the lease off.
            coalesce(p_started_at, least(s.was_ready_at - p_step.timeout_seconds * interval '1 second', v_now)), v_now
        from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.were_ready_at, p_error_codes, p_messages)
            as s (saga_id, warehouse_id, was_ready_at, error_code, message);
    end if;

    if v_turned_back or p_group.status in ('completed', 'compensated', 'stuck') then
        return finish_sagas(p_group, v_turned_back);
    end if;
    return p_group;
end
$$;
comment on function apply_outcome(
    saga_group, saga_steps, boolean, boolean, step_result, numeric, text[], text[], timestamptz
) is 'Internal: writes the events of sagas that came out of a step alike and works out where they go next.';

-- Takes a group through a step function or, with its answers, through a settle
-- function. Returns what becomes of it, a group for what came out alike, each
-- with the requests to make (a JSON array, or null).
-- Locks: what the function locks. Raises: XX000 when there is not one outcome
-- for each saga.
create or replace function take_step(
    p_group saga_group,
    p_step saga_steps,
    p_last boolean,
    p_forward boolean,
    p_function text,
    p_warehouse_ids uuid[],
    p_answers jsonb[],
    out became saga_group,
    out done boolean,
    out requests json
) returns setof record
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_started_at constant timestamptz := case when p_answers is null then clock() end;
    v_of record;
    v_part saga_group;
    v_count integer := 0;
begin
    for v_of in
        select
            o.result, o.wait_seconds,
            array_agg(o.saga_id order by o.saga_id) as saga_ids,
            array_agg(o.error_code order by o.saga_id) as error_codes,
            array_agg(o.message order by o.saga_id) as messages,
            array_agg(o.request order by o.saga_id) as requests,
            count(o.request) > 0 as asks
        from call_step(p_function, p_warehouse_ids, p_group.saga_ids, p_answers) as o
        group by o.result, o.wait_seconds
    loop
        v_part := case when v_of.saga_ids = p_group.saga_ids then p_group else part_of(p_group, v_of.saga_ids) end;
        exit when v_part.saga_ids is distinct from v_of.saga_ids;
        v_count := v_count + cardinality(v_of.saga_ids);
        done := v_of.result = 'done';
        became := apply_outcome(
            v_part, p_step, p_last, p_forward, v_of.result, v_of.wait_seconds, v_of.error_codes, v_of.messages, v_started_at
        );
        requests := null;
        if v_of.asks then
            select
                json_agg(
                    json_build_object(
                        'saga_id', s.saga_id,
                        'warehouse_id', s.warehouse_id,
                        'lease_token', s.lease_token + became.moves,
                        'attempt', became.attempts,
                        'timeout_seconds', p_step.timeout_seconds,
                        'step_name', case when p_forward then p_step.step_name else p_step.undo_name end,
                        'request', s.request
                    )
                )
            into requests
            from unnest(became.saga_ids, became.warehouse_ids, became.lease_tokens, v_of.requests)
                as s (saga_id, warehouse_id, lease_token, request)
            where s.request is not null;
        end if;
        return next;
    end loop;
    if v_count <> cardinality(p_group.saga_ids) then
        raise exception using
            errcode = 'XX000',
            message = format('%s returned %s outcomes for %s sagas', p_function, v_count, cardinality(p_group.saga_ids)),
            detail = 'A step function returns exactly one outcome per saga.',
            hint = 'Mend the step function; the sagas are tried again.';
    end if;
end
$$;
comment on function take_step(saga_group, saga_steps, boolean, boolean, text, uuid[], jsonb[]) is
    'Internal: runs a step for a group and says where its sagas go, those that came out alike together.';

-- Writes where the sagas of a group stand now. Locks: sagas.
create or replace function write_sagas(p_group saga_group, p_warehouse_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
begin
    update sagas as s
    set
        status = p_group.status,
        position = p_group.position,
        attempts = p_group.attempts,
        lease_token = s.lease_token + p_group.moves,
        ready_at = p_group.ready_at + p_group.spread_seconds * jitter(s.id, p_group.attempts) * interval '1 second',
        updated_at = v_now
    where s.id = any(p_group.saga_ids) and s.warehouse_id = any(p_warehouse_ids);
end
$$;
comment on function write_sagas(saga_group, uuid[]) is 'Internal: writes where the sagas of a group stand now.';

-- Writes the status of their orders. Locks: orders.
create or replace function write_orders(p_group saga_group, p_warehouse_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
begin
    update orders as o
    set status = p_group.order_status, updated_at = v_now
    where o.id = any(p_group.saga_ids) and o.warehouse_id = any(p_warehouse_ids)
        and o.status <> p_group.order_status;
end
$$;
comment on function write_orders(saga_group, uuid[]) is 'Internal: writes the status of the orders of a group.';

-- Runs sagas that this transaction has locked until each is parked, then
-- writes saga and order rows, once each, and lets the steps that were done have
-- their effect, once per effect function. Returns the external requests it has
-- committed to, a JSON array per group.
-- Locks: what the step functions lock, paused steps of saga_steps, orders, then
-- what the effects lock.
create or replace function run_pass(p_warehouse_ids uuid[], p_work saga_group[], p_go_on boolean default true)
returns setof json
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    -- The last is taken first, and what becomes of it next.
    v_todo saga_group[] := p_work;
    v_over saga_group[] := '{}';
    v_group saga_group;
    v_step saga_steps;
    v_last boolean;
    v_at record;
    v_function text;
    v_backwards boolean;
    v_paused boolean;
    v_now timestamptz;
    v_effect text;
    v_sagas uuid[];
    v_effects text[] := '{}';
    v_effect_sagas uuid[] := '{}';
    v_effect_steps text[] := '{}';
begin
    while cardinality(v_todo) > 0 loop
        v_group := v_todo[cardinality(v_todo)];
        v_todo := trim_array(v_todo, 1);
        if v_group.parked then
            v_over := v_over || v_group;
            continue;
        elsif v_group.status = 'running' and v_group.cancel_requested then
            v_todo := v_todo || turn_back(v_group);
            continue;
        end if;

        v_at := step_at(v_group.saga_type, v_group.position);
        v_step := v_at.step;
        v_last := v_at.is_last;
        v_now := clock();
        v_backwards := v_group.status = 'compensating';
        v_paused := coalesce(v_step.paused_until > v_now, false) and v_group.status <> 'waiting'
            and case when v_backwards then v_step.undo_settle_function else v_step.settle_function end is not null;
        if v_paused then
            -- Who ends the pause meanwhile waits, so that it finds those who wait for its end.
            select s.paused_until, coalesce(s.paused_until > v_now, false)
            into v_step.paused_until, v_paused
            from saga_steps as s
            where s.saga_type = v_group.saga_type and s.position = v_group.position
            for share;
        end if;
        if v_paused then
            -- Those that waited out a pause come back one after the other.
            v_group.ready_at := v_step.paused_until;
            v_group.spread_seconds := 1;
            v_over := v_over || v_group;
            continue;
        end if;

        v_function := case when v_backwards then v_step.undo_function else v_step.step_function end;
        if v_group.status = 'waiting' or (v_function is not null and v_group.attempts >= v_step.max_attempts) then
            -- A lease ran out: of a request, which was counted when it was made, or of the
            -- last one to undo; or the plan was tightened.
            v_todo := v_todo || apply_outcome(
                v_group, v_step, v_last, not v_backwards, 'failed', null,
                array_fill('DP013'::text, array[cardinality(v_group.saga_ids)]),
                array_fill(
                    case v_group.status
                        when 'waiting' then format('no answer within %s s', trim_scale(v_step.timeout_seconds))
                        else 'attempts used up'
                    end,
                    array[cardinality(v_group.saga_ids)]
                ),
                v_now
            );
        else
            v_group.attempts := v_group.attempts + 1;
            v_effect := case when v_backwards then v_step.undo_effect_function else v_step.effect_function end;
            if v_function is null then
                v_group := apply_outcome(v_group, v_step, v_last, not v_backwards, 'done', null, null, null, v_now);
                v_todo := v_todo || v_group;
                v_sagas := v_group.saga_ids;
            else
                v_sagas := '{}';
                for v_at in
                    select t.became, t.done, t.requests
                    from take_step(v_group, v_step, v_last, not v_backwards, v_function, p_warehouse_ids, null) as t
                loop
                    v_todo := v_todo || v_at.became;
                    if v_at.done then
                        v_sagas := v_sagas || (v_at.became).saga_ids;
                    end if;
                    if v_at.requests is not null then
                        return next v_at.requests;
                    end if;
                end loop;
            end if;
            if v_effect is not null then
                v_effects := v_effects || array_fill(v_effect, array[cardinality(v_sagas)]);
                v_effect_sagas := v_effect_sagas || v_sagas;
                v_effect_steps := v_effect_steps || array_fill(
                    case when v_backwards then v_step.undo_name else v_step.step_name end, array[cardinality(v_sagas)]
                );
            end if;
        end if;
        exit when not p_go_on;
    end loop;

    foreach v_group in array v_over || v_todo loop
        perform write_sagas(v_group, p_warehouse_ids);
        if v_group.order_status is not null then
            perform write_orders(v_group, p_warehouse_ids);
        end if;
    end loop;

    if cardinality(v_effects) = 0 then
        return;
    elsif v_effects[1] = all(v_effects) then
        perform call_effect(v_effects[1], p_warehouse_ids, v_effect_sagas, v_effect_steps);
    else
        for v_effect, v_sagas, v_effect_steps in
            select e.name, array_agg(e.saga_id), array_agg(e.step_name)
            from unnest(v_effects, v_effect_sagas, v_effect_steps) as e (name, saga_id, step_name)
            group by e.name
            order by e.name
        loop
            perform call_effect(v_effect, p_warehouse_ids, v_sagas, v_effect_steps);
        end loop;
    end if;
end
$$;
comment on function run_pass(uuid[], saga_group[], boolean) is
    'Internal: runs claimed sagas until each has ended or waits; returns the external requests.';
