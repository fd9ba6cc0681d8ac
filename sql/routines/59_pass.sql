-- A pass: what happens to claimed sagas within one transaction.
--
-- run_pass() takes group after group through its step function, apply_outcomes()
-- turns what came out into events and the next place of each saga, and at the
-- end every saga and order row is written once. See 60_engine.sql for who calls.
--
-- Plans: a cached plan takes every array for ten elements long. Functions that
-- join arrays to each other switch nested loops off, so that five hundred are
-- hashed; functions that look rows up by an array keep them, and switch
-- sequential scans off, so that a plan made while a table was small stays good.
-- advance() and settle() plan each statement once per session, and compile none:
-- an order alone would pay for the planning, and a switched-off plan node looks
-- expensive enough to be worth compiling.
--
-- The labels of an enum are given their type where they stand: a CASE of bare
-- literals is text, and would be looked up in the catalogue for every row.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Turns the outcomes of one group into events and the next place of each saga.
-- p_work is the group, p_outcomes one outcome for each saga of it. The lease
-- token moves on with every outcome, so whatever was handed out before is void.
-- p_started_at: when the step began; null for the answer to a request, which
-- began when its lease did. Locks nothing.
create or replace function apply_outcomes(
    p_work saga_work[],
    p_step saga_steps,
    p_forward boolean,
    p_outcomes step_outcome[],
    p_started_at timestamptz
) returns saga_work[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_nestloop = off
as $$
declare
    v_now constant timestamptz := clock();
    v_last_position constant smallint := (
        select max(s.position) from saga_steps as s where s.saga_type = p_step.saga_type
    );
    v_name constant text := case when p_forward then p_step.step_name else p_step.undo_name end;
    -- A step that raised left nothing behind, unless it is external: then the
    -- call may have had its effect, and the step has to be undone as well.
    v_undo_from constant integer := case
        when p_step.settle_function is null then p_step.position - 1 else p_step.position
    end;
    v_next saga_work[];
begin
    select
        array_agg(
            row(
                w.saga_id, w.warehouse_id, w.saga_type,
                -- status
                case
                    when o.result = 'waiting' then
                        case when p_forward then 'waiting'::saga_status else 'compensating' end
                    when p_forward then
                        case
                            when o.result = 'done' then
                                case when p_step.position = v_last_position then 'completed'::saga_status else 'running' end
                            when t.again then 'running'
                            when t.no_way_back then 'stuck'
                            when t.undo_from = 0 then 'compensated'
                            else 'compensating'
                        end
                    when o.result = 'done' then
                        case when p_step.position = 1 then 'compensated'::saga_status else 'compensating' end
                    when t.again then 'compensating'
                    else 'stuck'
                end,
                -- position
                case
                    when o.result = 'waiting' or t.again or t.no_way_back then p_step.position
                    when p_forward then
                        case
                            when o.result <> 'done' then t.undo_from
                            when p_step.position = v_last_position then p_step.position
                            else p_step.position + 1
                        end
                    when o.result = 'done' then p_step.position - 1
                    else p_step.position
                end,
                -- attempts
                case when o.result = 'waiting' or t.again then w.attempts else 0 end,
                w.cancel_requested,
                w.lease_token + 1,
                -- ready_at
                case
                    when o.result = 'waiting'
                        then v_now + coalesce(o.wait_seconds, p_step.timeout_seconds) * interval '1 second'
                    when t.again then next_attempt(p_step.backoff_seconds, w.attempts)
                    else v_now
                end,
                -- order_status
                case
                    when not p_forward then w.order_status
                    when o.result = 'done' then coalesce(p_step.order_status_done, w.order_status)
                    when o.result = 'waiting' then coalesce(p_step.order_status_waiting, w.order_status)
                    when t.again or t.no_way_back then w.order_status
                    else coalesce(p_step.order_status_refused, w.order_status)
                end,
                -- parked: nothing more to do in this pass
                w.parked or o.result = 'waiting' or t.again
            )::saga_work
            order by w.saga_id
        )
    into v_next
    from unnest(p_outcomes) as o
    inner join unnest(p_work) as w using (saga_id)
    cross join lateral (
        select
            o.result = 'failed' and w.attempts < p_step.max_attempts as again,
            -- Refused as the first step is nothing done; anything else has to be seen through.
            p_forward and p_step.forward_only
            and (o.result = 'failed' or (o.result = 'refused' and p_step.position > 1)) as no_way_back,
            case when o.result = 'refused' then p_step.position - 1 else v_undo_from end as undo_from
    ) as t;

    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, error_code, message,
        next_attempt_at, started_at, created_at
    )
    select
        o.saga_id, w.warehouse_id,
        case o.result
            when 'done' then case when p_forward then 'step_completed'::saga_event_type else 'step_compensated' end
            when 'waiting' then 'step_waiting'
            else 'step_failed'
        end,
        v_name, w.attempts, o.error_code, o.message,
        case when o.result = 'waiting' or n.attempts > 0 then n.ready_at end,
        -- A pending answer may have put the end of the lease off.
        coalesce(p_started_at, least(w.ready_at - p_step.timeout_seconds * interval '1 second', v_now)), v_now
    from unnest(p_outcomes) as o
    inner join unnest(p_work) as w using (saga_id)
    inner join unnest(v_next) as n using (saga_id)
    where v_name is not null
    order by o.saga_id;

    v_next := finish_sagas(v_next, p_forward);
    return v_next;
end
$$;
comment on function apply_outcomes(saga_work[], saga_steps, boolean, step_outcome[], timestamptz) is
    'Internal: writes the events of one group and works out where each saga goes next.';

-- Writes the event of each saga that has just turned back or ended, and parks
-- the ended ones. Locks nothing.
create or replace function finish_sagas(p_work saga_work[], p_forward boolean, p_message text default null)
returns saga_work[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_nestloop = off
as $$
declare
    v_now constant timestamptz := clock();
    v_work saga_work[];
begin
    if not exists (
        select from unnest(p_work) as w
        where w.status in ('completed', 'compensated', 'stuck')
            or (p_forward and w.status = 'compensating')
    ) then
        return p_work;
    end if;

    insert into saga_events (saga_id, warehouse_id, event_type, message, created_at)
    select w.saga_id, w.warehouse_id, e.event_type, case when e.rank = 1 then p_message end, v_now
    from unnest(p_work) as w
    cross join lateral (
        values
        (1, 'compensation_started'::saga_event_type, p_forward and w.status in ('compensating', 'compensated')),
        (2, 'saga_completed', w.status = 'completed'),
        (2, 'saga_compensated', w.status = 'compensated'),
        (2, 'saga_stuck', w.status = 'stuck')
    ) as e (rank, event_type, happened)
    where e.happened
    order by w.saga_id, e.rank;

    select
        array_agg(
            row(
                w.saga_id, w.warehouse_id, w.saga_type, w.status, w.position, w.attempts,
                w.cancel_requested, w.lease_token,
                case when e.ended then null else w.ready_at end,
                case when w.status = 'compensated' then 'cancelled' else w.order_status end,
                w.parked or e.ended
            )::saga_work
            order by w.saga_id
        )
    into v_work
    from unnest(p_work) as w
    cross join lateral (select w.status in ('completed', 'compensated', 'stuck') as ended) as e;
    return v_work;
end
$$;
comment on function finish_sagas(saga_work[], boolean, text) is
    'Internal: writes compensation_started and the final events, and parks the sagas that have ended.';

-- Turns sagas back that were asked to stop and stand between two steps.
-- Locks nothing.
create or replace function turn_back_cancelled(p_work saga_work[]) returns saga_work[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_turned saga_work[];
begin
    select
        array_agg(
            row(
                w.saga_id, w.warehouse_id, w.saga_type,
                case when w.undo_from = 0 then 'compensated' else 'compensating' end,
                w.undo_from, 0, w.cancel_requested, w.lease_token, w.ready_at, w.order_status, false
            )::saga_work
        )
    into v_turned
    from (
        -- A step that was tried may have had its effect: undo it as well.
        select u.*, u.position - case when u.attempts > 0 then 0 else 1 end as undo_from
        from unnest(p_work) as u
    ) as w
    where w.status = 'running' and w.cancel_requested and not w.parked;
    if v_turned is null then
        return p_work;
    end if;
    v_turned := finish_sagas(v_turned, true, 'cancelled on request');
    select v_turned || array_agg(w)
    into v_turned
    from unnest(p_work) as w
    where w.saga_id not in (select t.saga_id from unnest(v_turned) as t);
    return v_turned;
end
$$;
comment on function turn_back_cancelled(saga_work[]) is
    'Internal: starts the compensation of sagas whose cancellation was asked for.';

-- What a group asks of the world outside: a JSON array, or null. Locks nothing.
create or replace function requests_of(
    p_outcomes step_outcome[], p_work saga_work[], p_timeout_seconds numeric, p_step_name text
) returns json
language plpgsql
set search_path = darkpearl, pg_temp
set enable_nestloop = off
as $$
begin
    return (
        select
            json_agg(
                json_build_object(
                    'saga_id', w.saga_id,
                    'warehouse_id', w.warehouse_id,
                    'lease_token', w.lease_token,
                    'attempt', w.attempts,
                    'timeout_seconds', p_timeout_seconds,
                    'step_name', p_step_name,
                    'request', o.request
                )
            )
        from unnest(p_outcomes) as o
        inner join unnest(p_work) as w using (saga_id)
        where o.request is not null
    );
end
$$;
comment on function requests_of(step_outcome[], saga_work[], numeric, text) is
    'Internal: the external requests of one group, as the listener gets them.';

-- Runs sagas that this transaction has locked until each is parked, then
-- writes saga and order rows, once each, and lets the steps that were done have
-- their effect, once per effect function. Returns the external requests it has
-- committed to, a JSON array per group.
-- Locks: what the step functions lock, paused steps of saga_steps, orders, then
-- what the effects lock.
create or replace function run_pass(p_warehouse_ids uuid[], p_work saga_work[], p_go_on boolean default true)
returns setof json
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_work saga_work[] := turn_back_cancelled(p_work);
    v_group saga_work[];
    v_at record;
    v_step saga_steps;
    v_function text;
    v_name text;
    v_outcomes step_outcome[];
    v_started_at timestamptz;
    v_backwards boolean;
    v_paused boolean;
    v_requests json;
    v_now timestamptz;
    v_effect text;
    v_sagas uuid[];
    v_effects text[] := '{}';
    v_effect_sagas uuid[] := '{}';
    v_effect_steps text[] := '{}';
begin
    loop
        select w.saga_type, w.status, w.position, w.attempts into v_at
        from unnest(v_work) as w
        where not w.parked
        order by w.position desc, w.status, w.attempts
        limit 1;
        exit when not found;

        select s.* into strict v_step
        from saga_steps as s
        where s.saga_type = v_at.saga_type and s.position = v_at.position;
        v_started_at := clock();
        v_backwards := v_at.status = 'compensating';
        v_paused := coalesce(v_step.paused_until > v_started_at, false) and v_at.status <> 'waiting'
            and case when v_backwards then v_step.undo_settle_function else v_step.settle_function end is not null;
        if v_paused then
            -- Who ends the pause meanwhile waits, so that it finds those who wait for its end.
            select s.paused_until, s.paused_until > v_started_at
            into v_step.paused_until, v_paused
            from saga_steps as s
            where s.saga_type = v_at.saga_type and s.position = v_at.position
            for share;
            v_paused := coalesce(v_paused, false);
        end if;
        select
            array_agg(
                row(
                    w.saga_id, w.warehouse_id, w.saga_type, w.status, w.position,
                    -- An expired lease was counted when the request was made.
                    w.attempts
                    + case when v_paused or w.status = 'waiting' or w.attempts >= v_step.max_attempts then 0 else 1 end,
                    w.cancel_requested, w.lease_token,
                    -- Those that waited out a pause come back one after the other.
                    case when v_paused then v_step.paused_until + random() * interval '1 second' else w.ready_at end,
                    w.order_status, w.parked or v_paused
                )::saga_work
            )
        into v_group
        from unnest(v_work) as w
        where not w.parked
            and (w.saga_type, w.status, w.position, w.attempts)
            = (v_at.saga_type, v_at.status, v_at.position, v_at.attempts);
        if cardinality(v_group) < cardinality(v_work) then
            select array_agg(w) into v_work
            from unnest(v_work) as w
            where w.parked
                or (w.saga_type, w.status, w.position, w.attempts)
                <> (v_at.saga_type, v_at.status, v_at.position, v_at.attempts);
        else
            v_work := '{}';
        end if;

        if v_paused then
            v_work := v_work || v_group;
            continue;
        end if;

        v_function := case when v_backwards then v_step.undo_function else v_step.step_function end;
        if v_at.status = 'waiting' then
            select
                array_agg(
                    row(
                        w.saga_id, 'failed', 'DP013',
                        format('no answer within %s s', trim_scale(v_step.timeout_seconds)), null, null
                    )::step_outcome
                )
            into v_outcomes
            from unnest(v_group) as w;
        elsif v_function is null then
            select array_agg(row(w.saga_id, 'done', null, null, null, null)::step_outcome)
            into v_outcomes
            from unnest(v_group) as w;
        elsif v_at.attempts >= v_step.max_attempts then
            -- The last request to undo was never answered, or the plan was tightened.
            select array_agg(row(w.saga_id, 'failed', 'DP013', 'attempts used up', null, null)::step_outcome)
            into v_outcomes
            from unnest(v_group) as w;
        else
            execute format('select array_agg(o) from darkpearl.%I($1, $2) as o', v_function)
            into v_outcomes
            using p_warehouse_ids, array(select w.saga_id from unnest(v_group) as w order by w.saga_id);
            if coalesce(cardinality(v_outcomes), 0) <> cardinality(v_group) then
                raise exception using
                    errcode = 'XX000',
                    message = format('%s returned %s outcomes for %s sagas',
                        v_function, coalesce(cardinality(v_outcomes), 0), cardinality(v_group)),
                    detail = 'A step function returns exactly one outcome per saga.',
                    hint = 'Mend the step function; the sagas are tried again.';
            end if;
        end if;

        v_group := apply_outcomes(
            v_group, v_step, not v_backwards, v_outcomes, v_started_at
        );

        v_name := case when v_backwards then v_step.undo_name else v_step.step_name end;
        v_effect := case when v_backwards then v_step.undo_effect_function else v_step.effect_function end;
        if v_effect is not null then
            v_sagas := array(select o.saga_id from unnest(v_outcomes) as o where o.result = 'done');
            v_effects := v_effects || array_fill(v_effect, array[cardinality(v_sagas)]);
            v_effect_sagas := v_effect_sagas || v_sagas;
            v_effect_steps := v_effect_steps || array_fill(v_name, array[cardinality(v_sagas)]);
        end if;

        if v_step.settle_function is not null or v_step.undo_settle_function is not null then
            v_requests := requests_of(v_outcomes, v_group, v_step.timeout_seconds, v_name);
            if v_requests is not null then
                return next v_requests;
            end if;
        end if;
        v_work := v_work || v_group;
        exit when not p_go_on;
    end loop;

    v_now := clock();
    update sagas as s
    set
        status = w.status,
        position = w.position,
        attempts = w.attempts,
        lease_token = w.lease_token,
        ready_at = w.ready_at,
        updated_at = v_now
    from unnest(v_work) as w
    where s.id = w.saga_id and s.warehouse_id = w.warehouse_id;

    update orders as o
    set status = w.order_status, updated_at = v_now
    from unnest(v_work) as w
    where w.order_status is not null
        and o.id = w.saga_id and o.warehouse_id = w.warehouse_id and o.status <> w.order_status;

    for v_effect, v_sagas, v_effect_steps in
        select e.name, array_agg(e.saga_id), array_agg(e.step_name)
        from unnest(v_effects, v_effect_sagas, v_effect_steps) as e (name, saga_id, step_name)
        group by e.name
        order by e.name
    loop
        execute format('select darkpearl.%I($1, $2, $3)', v_effect)
        using p_warehouse_ids, v_sagas, v_effect_steps;
    end loop;
end
$$;
comment on function run_pass(uuid[], saga_work[], boolean) is
    'Internal: runs claimed sagas until each has ended or waits; returns the external requests.';
