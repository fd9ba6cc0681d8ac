-- A pass: what happens to claimed sagas within one transaction.
--
-- run_groups() takes group after group (see 53_groups.sql), and take_steps() a group through
-- its steps, whose functions run once for all of them, until it is parked.
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
                from tries_of(g.saga_id, g.warehouse_id, name_of(v_step, v_backwards)) as o
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
    v_others constant uuid[] := ids_besides(p_group.saga_ids, v_given_up);
    v_part constant saga_group := split_group(p_group, v_given_up);
    v_became constant saga_group[] := array[apply_outcome(v_part, (wait_in_vain(v_part, 'given_up'))[1], clock())];
begin
    return case when cardinality(v_others) > 0 then split_group(p_group, v_others) || v_became else v_became end;
end
$$;
comment on function give_up_undo(saga_group) is 'Internal: gives up undos that nobody has answered for as long as they are tried.';

-- The wait of a group is over: of a request, since its lease ran out; of a signal, since it
-- came or its deadline passed. Returns what becomes of it.
-- Locks: saga_signals, then as settle_group() and the step function.
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
    v_silent := ids_besides(p_group.saga_ids, v_heard);
    if cardinality(v_silent) > 0 and v_step.on_deadline = 'look_again' then
        v_part := split_group(p_group, v_silent);
        v_became := v_became || split_by_outcome(
            v_part, v_step.step_function, call_step(v_step.step_function, p_warehouse_ids, v_silent), null
        );
    elsif cardinality(v_silent) > 0 then
        p_group := split_group(p_group, v_silent);
        v_became := v_became || split_by_outcome(
            p_group, null,
            wait_in_vain(
                p_group,
                case v_step.on_deadline
                    when 'go_on' then 'done' when 'turn_back' then 'refused' when 'keep_waiting' then 'waiting' else 'stuck'
                end::step_result
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
        if cardinality(v_told) = 0 then
            v_woken := v_woken || v_group;
            continue;
        end if;
        v_untold := ids_besides(v_group.saga_ids, v_told);
        if cardinality(v_untold) > 0 then
            v_woken := v_woken || split_group(v_group, v_untold);
            v_group := split_group(v_group, v_told);
        end if;
        v_group.parked := false;
        v_group.ready_at := clock();
        v_group.wait_seconds := null;
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

-- Whether a request of the step at which a group stands was ever made, for any of its
-- members: one that was given back unasked counts for no attempt, and what was written down
-- for it is to be undone all the same. Locks nothing.
create or replace function was_asked(p_group saga_group, p_warehouse_ids uuid[]) returns boolean
language plpgsql
as $$
declare
    v_step constant plan_step := p_group.plan[p_group.position];
begin
    return is_external(v_step, false) and exists (
        select from saga_events as e
        where e.saga_id = any(p_group.saga_ids) and e.warehouse_id = any(p_warehouse_ids)
            and e.event_type = 'step_waiting' and e.step_name = v_step.step_name
    );
end
$$;
comment on function was_asked(saga_group, uuid[]) is
    'Internal: whether a request was ever made of the step at which a group stands.';

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
            return array[start_compensation(
                p_group, not v_waits and (p_group.attempts > 0 or was_asked(p_group, p_warehouse_ids)), 'cancelled on request'
            )];
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
                name_of(v_step, p_group.status = 'compensating'), s.request
            )::external_request)
        from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.requests)
            as s (saga_id, warehouse_id, lease_token, request)
        where s.request is not null
        having count(*) > 0
    );
end
$$;
comment on function build_requests(saga_group) is 'Internal: the external requests of a group as they are handed out.';

-- Writes when each member of a group is ready again, where they wait for different times:
-- a second update of their rows, so that all others do without the join.
-- Locks: sagas.
create or replace function write_own_waits(p_group saga_group, p_warehouse_ids uuid[]) returns void
language plpgsql
set enable_nestloop = off
as $$
begin
    update sagas as s
    set ready_at = p_group.ready_at + w.seconds * interval '1 second'
    from unnest(p_group.saga_ids, p_group.wait_seconds) as w (saga_id, seconds)
    where s.id = w.saga_id and s.id = any(p_group.saga_ids) and s.warehouse_id = any(p_warehouse_ids);
end
$$;
comment on function write_own_waits(saga_group, uuid[]) is
    'Internal: writes when each member of a group is ready again, where that differs.';

-- Writes what happened to a group, where its sagas stand now and the status of their orders.
-- Returns the requests to make, in one JSON array; none for none.
-- Locks: sagas, orders.
create or replace function write_group(p_group saga_group, p_warehouse_ids uuid[]) returns json[]
language plpgsql
as $$
declare
    -- Not before the moment that ready_at counts from, though the clock was set back since: by that
    -- correct_future_waits() knows a wait that is none.
    v_now constant timestamptz := greatest(
        clock(), (p_group.transitions[cardinality(p_group.transitions)]).created_at,
        case when p_group.wait_seconds is not null then p_group.ready_at end
    );
begin
    with stand as (
        update sagas as s
        set
            status = p_group.status,
            position = p_group.position,
            attempts = p_group.attempts,
            lease_token = s.lease_token + p_group.token_increments,
            ready_at = p_group.ready_at + p_group.spread_seconds * jitter(s.id, p_group.attempts) * interval '1 second',
            updated_at = v_now
        where s.id = any(p_group.saga_ids) and s.warehouse_id = any(p_warehouse_ids)
    ),
    told as (
        update orders as o
        set status = p_group.order_status, updated_at = v_now
        where p_group.order_status is not null
            and o.id = any(p_group.saga_ids) and o.warehouse_id = any(p_warehouse_ids)
            and o.status <> p_group.order_status
    )
    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, error_code, message,
        next_attempt_at, started_at, created_at
    )
    select
        s.saga_id, s.warehouse_id, t.event_type, t.step_name, t.attempt, s.error_code, s.message,
        case
            when t.will_retry
                then p_group.ready_at + interval '1 second'
                    * coalesce(s.wait_seconds, p_group.spread_seconds * jitter(s.saga_id, p_group.attempts))
        end,
        -- A pending answer may have put the end of the lease off.
        case
            when t.lease_seconds is not null
                then least(s.was_ready_at - t.lease_seconds * interval '1 second', t.created_at)
            else t.started_at
        end,
        t.created_at
    from unnest(p_group.transitions) as t
    cross join lateral unnest(
        p_group.saga_ids, p_group.warehouse_ids, p_group.were_ready_at, p_group.wait_seconds, t.error_codes, t.messages
    ) as s (saga_id, warehouse_id, was_ready_at, wait_seconds, error_code, message);
    if p_group.wait_seconds is not null then
        perform write_own_waits(p_group, p_warehouse_ids);
    end if;
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

-- Brings a saga an answer for which no call is out: a person's, or a webhook's to one that is
-- stuck. Of what comes after it p_steps are taken, the rest is advance()'s.
-- Locks: as run_groups(); the caller has locked the saga.
create or replace function answer_saga(p_group saga_group, p_answer jsonb, p_steps integer default 0) returns void
language plpgsql
as $$
begin
    p_group.attempts := 1;
    p_group.were_ready_at := array[coalesce(p_group.were_ready_at[1], clock())];
    p_group.answers := array[p_answer];
    perform run_groups(p_group.warehouse_ids, settle_group(p_group, p_group.warehouse_ids), p_steps);
end
$$;
comment on function answer_saga(saga_group, jsonb, integer) is 'Internal: brings a saga an answer for which no call is out.';
