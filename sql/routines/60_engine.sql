-- The engine. It knows plans (saga_steps), not what a step does.
--
-- advance() claims what is ready and runs each saga through its SQL steps until
-- it ends or needs an answer from outside; settle() takes the answers and goes
-- on from there. Either is one transaction: the effects of the steps, the
-- events and the next state commit together. Within it every saga and order
-- row is written once, at the end, however many steps were taken.
--
-- A pass works on an array of saga_work. Sagas that stand at the same place
-- form a group; a group's step function runs once for all of them and returns
-- one outcome each, which apply_outcomes() turns into events and the next place.
--
-- A pass that raises is rolled back and tried in halves, until the saga that
-- cannot be done stands alone and is recorded by fail_saga(). An outage
-- (deadlock, shutdown, out of space …) is no saga's fault and is raised.
--
-- Plans: a cached plan takes every array for ten elements long. Functions that
-- join arrays to each other switch nested loops off, so that five hundred are
-- hashed; functions that look rows up by an array keep them, and switch
-- sequential scans off, so that a plan made while a table was small stays good.
--
-- Lock order: sagas, then inventory by (product_id, warehouse_id), then
-- payments, then orders.

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

-- Every warehouse: whom an engine call is for when it names none. On a cluster
-- sharded by warehouse the caller names exactly one instead.
create or replace function all_warehouses() returns uuid[]
language sql stable
set search_path = darkpearl, pg_temp
return array(select w.id from warehouses as w);
comment on function all_warehouses() is 'The ids of all warehouses.';

-- True for errors that say nothing about the saga at hand: connection,
-- rollback, resources, operator intervention, system, lock timeout.
create or replace function is_outage(p_sqlstate text) returns boolean
language sql immutable
return left(p_sqlstate, 2) in ('08', '40', '53', '57', '58') or p_sqlstate = '55P03';
comment on function is_outage(text) is 'Whether a SQLSTATE means that the system failed rather than the saga.';

-- When to try again after so many tries: backoff * 2^(attempts - 1), at most an
-- hour, half of it fixed and half of it random, so that sagas that failed
-- together do not come back together.
create or replace function next_attempt(p_backoff_seconds numeric, p_attempts integer) returns timestamptz
language sql volatile
set search_path = darkpearl, pg_temp
return clock()
+ least(p_backoff_seconds * 2 ^ least(p_attempts - 1, 20), 3600)::float8
* (0.5 + random() / 2) * interval '1 second';
comment on function next_attempt(numeric, integer) is 'The time of the next try: exponential backoff with jitter.';

-- Takes up to p_limit ready sagas, those that have waited longest first, and
-- returns them in id order. Sagas that another listener holds are skipped.
-- Locks: sagas, until the end of the transaction.
create or replace function claim_sagas(p_warehouse_ids uuid[], p_limit integer) returns saga_work[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
    v_work saga_work[];
begin
    select
        array_agg(
            row(
                s.id, s.warehouse_id, s.saga_type, s.status, s.position, s.attempts,
                s.cancel_requested, s.lease_token, s.ready_at, null, false
            )::saga_work
            order by s.id
        )
    into v_work
    from (
        select * from sagas
        where warehouse_id = any(p_warehouse_ids) and ready_at <= v_now
        order by ready_at, id
        limit p_limit
        for no key update skip locked
    ) as s;
    return v_work;
end
$$;
comment on function claim_sagas(uuid[], integer) is 'Internal: locks ready sagas, skipping those that are taken.';

-- Turns the outcomes of one group into events and the next place of each saga.
-- p_work may hold other sagas too; they are returned as they are. The lease
-- token moves on with every outcome, so whatever was handed out before is void.
-- p_started_at: when the step began; null for the answer to a request, which
-- began when its lease did. Locks nothing.
create or replace function apply_outcomes(
    p_work saga_work[],
    p_step saga_steps,
    p_last_position integer,
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
    v_name constant text := case when p_forward then p_step.step_name else p_step.undo_name end;
    v_lease_until constant timestamptz := v_now + p_step.timeout_seconds * interval '1 second';
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
                    when o.result = 'waiting' then case when p_forward then 'waiting' else 'compensating' end
                    when p_forward then
                        case
                            when o.result = 'done' then
                                case when p_step.position = p_last_position then 'completed' else 'running' end
                            when t.again then 'running'
                            when t.undo_from = 0 then 'compensated'
                            else 'compensating'
                        end
                    when o.result = 'done' then
                        case when p_step.position = 1 then 'compensated' else 'compensating' end
                    when t.again then 'compensating'
                    else 'stuck'
                end,
                -- position
                case
                    when o.result = 'waiting' or t.again then p_step.position
                    when p_forward then
                        case
                            when o.result <> 'done' then t.undo_from
                            when p_step.position = p_last_position then p_step.position
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
                    when o.result = 'waiting' then v_lease_until
                    when t.again then next_attempt(p_step.backoff_seconds, w.attempts)
                    else v_now
                end,
                -- order_status
                case
                    when not p_forward then w.order_status
                    when o.result = 'done' then coalesce(p_step.order_status_done, w.order_status)
                    when o.result = 'waiting' then coalesce(p_step.order_status_waiting, w.order_status)
                    when t.again then w.order_status
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
            case when o.result = 'refused' then p_step.position - 1 else v_undo_from end as undo_from
    ) as t;

    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, error_code, message,
        next_attempt_at, started_at, created_at
    )
    select
        o.saga_id, w.warehouse_id,
        case o.result
            when 'done' then case when p_forward then 'step_completed' else 'step_compensated' end
            when 'waiting' then 'step_waiting'
            else 'step_failed'
        end::saga_event_type,
        v_name, w.attempts, o.error_code, o.message,
        case when o.result = 'waiting' or n.attempts > 0 then n.ready_at end,
        coalesce(p_started_at, w.ready_at - p_step.timeout_seconds * interval '1 second'), v_now
    from unnest(p_outcomes) as o
    inner join unnest(p_work) as w using (saga_id)
    inner join unnest(v_next) as n using (saga_id)
    where v_name is not null
    order by o.saga_id;

    v_next := finish_sagas(v_next, p_forward);

    if cardinality(v_next) < cardinality(p_work) then
        select v_next || array_agg(w)
        into v_next
        from unnest(p_work) as w
        where not exists (select from unnest(p_outcomes) as o where o.saga_id = w.saga_id);
    end if;
    return v_next;
end
$$;
comment on function apply_outcomes(saga_work[], saga_steps, integer, boolean, step_outcome[], timestamptz) is
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
-- writes saga and order rows, once each. Returns the external requests it has
-- committed to, a JSON array per group.
-- Locks: what the step functions lock, then orders.
create or replace function run_pass(p_warehouse_ids uuid[], p_work saga_work[], p_go_on boolean default true)
returns setof json
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_work saga_work[] := p_work;
    v_group saga_work[];
    v_at record;
    v_step saga_steps;
    v_last_position smallint;
    v_function text;
    v_outcomes step_outcome[];
    v_started_at timestamptz;
    v_requests json;
    v_now timestamptz;
begin
    loop
        v_work := turn_back_cancelled(v_work);

        select w.saga_type, w.status, w.position, w.attempts into v_at
        from unnest(v_work) as w
        where not w.parked
        order by w.position desc, w.status, w.attempts
        limit 1;
        exit when not found;

        if v_at.position = 0 then
            -- Its last undo was skipped by an operator: nothing is left to do.
            select
                array_agg(
                    row(
                        w.saga_id, w.warehouse_id, w.saga_type,
                        case when w.position = 0 and not w.parked then 'compensated' else w.status::text end,
                        w.position, w.attempts, w.cancel_requested, w.lease_token, w.ready_at,
                        w.order_status, w.parked
                    )::saga_work
                )
            into v_work
            from unnest(v_work) as w;
            v_work := finish_sagas(v_work, false);
            continue;
        end if;

        select s.* into strict v_step
        from saga_steps as s
        where s.saga_type = v_at.saga_type and s.position = v_at.position;
        select max(s.position) into v_last_position
        from saga_steps as s
        where s.saga_type = v_at.saga_type;

        v_started_at := clock();
        select
            array_agg(
                row(
                    w.saga_id, w.warehouse_id, w.saga_type, w.status, w.position,
                    -- An expired lease was counted when the request was made.
                    w.attempts + case when w.status = 'waiting' or w.attempts >= v_step.max_attempts then 0 else 1 end,
                    w.cancel_requested, w.lease_token, w.ready_at, w.order_status, w.parked
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

        v_function := case when v_at.status = 'compensating' then v_step.undo_function else v_step.step_function end;
        if v_at.status = 'waiting' then
            select
                array_agg(
                    row(
                        w.saga_id, 'failed', 'DP013',
                        format('no answer within %s s', trim_scale(v_step.timeout_seconds)), null
                    )::step_outcome
                )
            into v_outcomes
            from unnest(v_group) as w;
        elsif v_function is null then
            select array_agg(row(w.saga_id, 'done', null, null, null)::step_outcome)
            into v_outcomes
            from unnest(v_group) as w;
        elsif v_at.attempts >= v_step.max_attempts then
            -- The last request to undo was never answered, or the plan was tightened.
            select array_agg(row(w.saga_id, 'failed', 'DP013', 'attempts used up', null)::step_outcome)
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
            v_group, v_step, v_last_position, v_at.status <> 'compensating', v_outcomes, v_started_at
        );

        v_requests := requests_of(
            v_outcomes, v_group, v_step.timeout_seconds,
            case when v_at.status = 'compensating' then v_step.undo_name else v_step.step_name end
        );
        if v_requests is not null then
            return next v_requests;
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
end
$$;
comment on function run_pass(uuid[], saga_work[], boolean) is
    'Internal: runs claimed sagas until each has ended or waits; returns the external requests.';

-- Records that a saga cannot go on from where it stands: a try less, a later
-- one scheduled; when none is left, compensation; when that fails, stuck.
-- Locks: the saga. Does nothing if it has moved since.
create or replace function fail_saga(p_work saga_work, p_sqlstate text, p_message text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga sagas;
    v_step saga_steps;
    v_next saga_work;
begin
    select s.* into v_saga
    from sagas as s
    where s.id = p_work.saga_id and s.warehouse_id = p_work.warehouse_id
        and s.status = p_work.status and s.position = p_work.position and s.lease_token = p_work.lease_token
    for no key update;
    if not found then
        return;
    end if;

    select s.* into v_step
    from saga_steps as s
    where s.saga_type = v_saga.saga_type and s.position = v_saga.position;

    if not found then
        v_next := p_work;
        v_next.status := 'stuck';
        insert into saga_events (saga_id, warehouse_id, event_type, attempt, error_code, message)
        values (v_saga.id, v_saga.warehouse_id, 'step_failed', v_saga.attempts, p_sqlstate, p_message);
        v_next := (finish_sagas(array[v_next], false))[1];
    else
        -- The try was rolled back, and its count with it, unless a request was out.
        p_work.attempts := v_saga.attempts + case when v_saga.status = 'waiting' then 0 else 1 end;
        v_next := (apply_outcomes(
            array[p_work], v_step,
            (select max(s.position) from saga_steps as s where s.saga_type = v_saga.saga_type),
            v_saga.status <> 'compensating',
            array[row(p_work.saga_id, 'failed', p_sqlstate, p_message, null)::step_outcome],
            clock()
        ))[1];
    end if;

    update sagas as s
    set
        status = v_next.status, position = v_next.position, attempts = v_next.attempts,
        lease_token = v_next.lease_token, ready_at = v_next.ready_at, updated_at = clock()
    where s.id = v_next.saga_id and s.warehouse_id = v_next.warehouse_id;

    -- A saga that ends here ends its order too. Should the order be what could
    -- not be written, the saga stands stuck for a person to look at.
    if v_next.status = 'compensated' then
        begin
            update orders as o
            set status = 'cancelled', updated_at = clock()
            where o.id = v_next.saga_id and o.warehouse_id = v_next.warehouse_id and o.status <> 'cancelled';
        exception when sqlstate 'DP004' then
            insert into saga_events (saga_id, warehouse_id, event_type, error_code, message)
            values (v_next.saga_id, v_next.warehouse_id, 'saga_stuck', sqlstate, sqlerrm);
            update sagas as s
            set status = 'stuck'
            where s.id = v_next.saga_id and s.warehouse_id = v_next.warehouse_id;
        end;
    end if;
end
$$;
comment on function fail_saga(saga_work, text, text) is
    'Internal: records the failure of a saga that stands alone, and what follows from it.';

-- Claims up to p_limit ready sagas and takes each as far as it goes without an
-- answer from outside. Returns how many were claimed, and the requests to make
-- (JSON arrays, in rows of their own). Requests are leases: answer them with
-- settle() before timeout_seconds are over, or they are handed out again.
-- Locks: sagas, inventory, payments, orders, in that order.
-- Raises: outages only; a saga that cannot be done becomes its own event.
create or replace function advance(p_limit integer default 500, p_warehouse_ids uuid[] default null)
returns table (claimed integer, requests json)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_warehouse_ids uuid[];
    v_work saga_work[];
    v_sqlstate text;
    v_message text;
begin
    if p_limit is null or p_limit not between 1 and 10000 then
        raise exception using
            errcode = 'DP015',
            message = 'limit makes no sense',
            detail = format('A batch of %s sagas was asked for.', coalesce(p_limit::text, 'null')),
            hint = 'Use 1 to 10000; 500 is a good size.';
    end if;
    v_warehouse_ids := coalesce(p_warehouse_ids, all_warehouses());
    begin
        v_work := claim_sagas(v_warehouse_ids, p_limit);
        claimed := coalesce(cardinality(v_work), 0);
        if claimed = 0 then
            return next;
            return;
        end if;
        return query select 0, r from run_pass(v_warehouse_ids, v_work) as r;
        return query select cardinality(v_work), null::json;
        return;
    exception when others then
        if v_work is null or is_outage(sqlstate) then
            raise;
        end if;
        v_sqlstate := sqlstate;
        v_message := sqlerrm;
    end;

    if cardinality(v_work) = 1 then
        -- Alone. Keep the step that works, so that the one that raises is tried, and blamed, by itself.
        begin
            perform s.id
            from sagas as s
            where s.id = v_work[1].saga_id and s.warehouse_id = v_work[1].warehouse_id
                and s.lease_token = v_work[1].lease_token
            for no key update;
            if found then
                return query select 0, r from run_pass(v_warehouse_ids, v_work, false) as r;
            end if;
            return query select 1, null::json;
            return;
        exception when others then
            if is_outage(sqlstate) then
                raise;
            end if;
            v_sqlstate := sqlstate;
            v_message := sqlerrm;
        end;
        perform fail_saga(v_work[1], v_sqlstate, v_message);
        return query select 1, null::json;
    else
        return query select a.* from advance(cardinality(v_work) / 2, p_warehouse_ids) as a;
        return query select a.* from advance(cardinality(v_work) - cardinality(v_work) / 2, p_warehouse_ids) as a;
    end if;
end
$$;
comment on function advance(integer, uuid[]) is
    'The engine''s step: claims ready sagas, runs their SQL steps and returns the external requests to make.';

-- Records the answers under their present tokens and goes on from them.
-- p_go_on false stops each saga right after its answer is recorded.
-- Locks: sagas by id, then as advance().
create or replace function settle_pass(p_warehouse_ids uuid[], p_answers jsonb, p_go_on boolean)
returns table (requests json, stale uuid)
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_ids uuid[];
    v_tokens bigint[];
    v_answers jsonb[];
    v_work saga_work[];
    v_at record;
    v_step saga_steps;
    v_last_position smallint;
    v_group saga_work[];
    v_group_answers jsonb[];
    v_outcomes step_outcome[];
    v_done saga_work[] := '{}';
begin
    select array_agg(e.saga_id), array_agg(e.lease_token), array_agg(e.answer)
    into v_ids, v_tokens, v_answers
    from (
        -- A token that is no number is nobody's.
        select distinct on (a.saga_id) a.saga_id, t.lease_token, a.answer
        from jsonb_to_recordset(p_answers) as a (saga_id uuid, lease_token text, answer jsonb)
        cross join lateral (
            select case when a.lease_token ~ '^[0-9]{1,18}$' then a.lease_token::bigint end as lease_token
        ) as t
        order by a.saga_id, t.lease_token desc nulls last
    ) as e;

    perform s.id
    from sagas as s
    where s.id = any(v_ids) and s.warehouse_id = any(p_warehouse_ids)
    order by s.id
    for no key update;

    select
        array_agg(
            row(
                s.id, s.warehouse_id, s.saga_type, s.status, s.position, s.attempts,
                s.cancel_requested, s.lease_token, s.ready_at, null, not p_go_on
            )::saga_work
            order by s.id
        ),
        array_agg(a.answer order by s.id)
    into v_work, v_answers
    from unnest(v_ids, v_tokens, v_answers) as a (saga_id, lease_token, answer)
    inner join sagas as s on s.id = a.saga_id and s.lease_token = a.lease_token
    where s.warehouse_id = any(p_warehouse_ids)
        and s.status in ('waiting', 'compensating') and s.attempts > 0;

    if coalesce(cardinality(v_work), 0) < cardinality(v_ids) then
        return query
        select null::json, i
        from unnest(v_ids) as i
        where i not in (select w.saga_id from unnest(v_work) as w);
    end if;

    for v_at in
        select distinct w.saga_type, w.status, w.position from unnest(v_work) as w
    loop
        select s.* into strict v_step
        from saga_steps as s
        where s.saga_type = v_at.saga_type and s.position = v_at.position;
        select max(s.position) into v_last_position
        from saga_steps as s
        where s.saga_type = v_at.saga_type;

        select
            array_agg(
                row(
                    w.saga_id, w.warehouse_id, w.saga_type, w.status, w.position, w.attempts,
                    w.cancel_requested, w.lease_token, w.ready_at, w.order_status, w.parked
                )::saga_work
                order by w.saga_id
            ),
            array_agg(w.answer order by w.saga_id)
        into v_group, v_group_answers
        from unnest(v_work, v_answers) as w (
            saga_id, warehouse_id, saga_type, status, position, attempts,
            cancel_requested, lease_token, ready_at, order_status, parked, answer
        )
        where w.saga_type = v_at.saga_type and w.status = v_at.status and w.position = v_at.position;

        execute format(
            'select array_agg(o) from darkpearl.%I($1, $2, $3) as o',
            case when v_at.status = 'compensating' then v_step.undo_settle_function else v_step.settle_function end
        )
        into v_outcomes
        using p_warehouse_ids, array(select w.saga_id from unnest(v_group) as w order by w.saga_id), v_group_answers;
        v_done := v_done || apply_outcomes(
            v_group, v_step, v_last_position, v_at.status <> 'compensating', v_outcomes, null
        );
    end loop;

    if cardinality(v_done) > 0 then
        return query select r, null::uuid from run_pass(p_warehouse_ids, v_done) as r;
    end if;
end
$$;
comment on function settle_pass(uuid[], jsonb, boolean) is
    'Internal: records the answers to external requests and runs the sagas on.';

-- Takes the answers to external requests and takes each saga as far as it goes.
--
-- p_answers: [{"saga_id": uuid, "lease_token": int, "answer": {…what the
-- step's settle function reads}}]. An answer under a token that is not the saga's present one
-- is refused: it is returned as a row with its saga and error_code DP009, and
-- changes nothing. Further requests come back as from advance().
-- Locks: sagas by id, inventory, payments, orders, in that order.
-- Raises: DP015 when p_answers is no such array; outages.
create or replace function settle(p_answers jsonb, p_warehouse_ids uuid[] default null)
returns table (requests json, saga_id uuid, error_code text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
as $$
declare
    v_warehouse_ids uuid[];
    v_count integer;
    v_work saga_work;
    v_sqlstate text;
    v_message text;
begin
    if p_answers is null or jsonb_typeof(p_answers) <> 'array' then
        raise exception using
            errcode = 'DP015',
            message = 'answers must be an array',
            detail = format('p_answers is %s.', coalesce('a JSON ' || jsonb_typeof(p_answers), 'null')),
            hint = 'Pass [{"saga_id": "…", "lease_token": 2, "answer": {"outcome": "approved"}}].';
    end if;
    if exists (
        select from jsonb_array_elements(p_answers) as a
        where coalesce(a ->> 'saga_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
    ) then
        raise exception using
            errcode = 'DP015',
            message = 'an answer names no saga',
            detail = 'Each element of p_answers needs a saga_id that is a UUID.',
            hint = 'Pass [{"saga_id": "…", "lease_token": 2, "answer": {"outcome": "approved"}}].';
    end if;
    v_count := jsonb_array_length(p_answers);
    v_warehouse_ids := coalesce(p_warehouse_ids, all_warehouses());
    begin
        return query
        select p.requests, p.stale, case when p.stale is not null then 'DP009' end
        from settle_pass(v_warehouse_ids, p_answers, true) as p;
        return;
    exception when others then
        if is_outage(sqlstate) then
            raise;
        end if;
        v_sqlstate := sqlstate;
        v_message := sqlerrm;
    end;

    if v_count > 1 then
        return query select s.* from settle(jsonb_path_query_array(p_answers, format('$[0 to %s]', v_count / 2 - 1)::jsonpath), p_warehouse_ids) as s;
        return query select s.* from settle(jsonb_path_query_array(p_answers, format('$[%s to last]', v_count / 2)::jsonpath), p_warehouse_ids) as s;
        return;
    end if;

    -- Alone. Keep the answer at least; what comes after it is advance()'s.
    begin
        return query
        select p.requests, p.stale, case when p.stale is not null then 'DP009' end
        from settle_pass(v_warehouse_ids, p_answers, false) as p;
        return;
    exception when others then
        if is_outage(sqlstate) then
            raise;
        end if;
    end;
    select
        s.id, s.warehouse_id, s.saga_type, s.status, s.position, s.attempts,
        s.cancel_requested, s.lease_token, s.ready_at, null, false
    into v_work
    from sagas as s
    where s.id = (p_answers -> 0 ->> 'saga_id')::uuid and s.warehouse_id = any(v_warehouse_ids)
        and s.lease_token::text = p_answers -> 0 ->> 'lease_token'
        and s.status in ('waiting', 'compensating') and s.attempts > 0;
    if found then
        perform fail_saga(v_work, v_sqlstate, v_message);
    end if;
end
$$;
comment on function settle(jsonb, uuid[]) is
    'Takes the answers to external requests, records them and runs the sagas on; late answers are refused with DP009.';

-- The gate between those who sleep and those who ring. A listener that is
-- about to sleep holds it exclusively; who makes work takes it shared, until
-- its work is visible. Advisory locks are released after the commit shows, so
-- either the sleeper's last look sees the work or the ringer sees the sleeper.
create or replace function gate_key() returns bigint
language sql immutable parallel safe
return 4937471022;
comment on function gate_key() is 'The advisory lock that sleeping listeners hold.';

-- Wakes the listeners, if any sleeps: NOTIFY costs every writer a cluster-wide
-- lock at commit, so it is not spent on listeners that are awake anyway.
-- Locks: the gate, shared, until the end of the transaction; never waits.
create or replace function ring_bell() returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock_shared(gate_key()) then
        perform pg_notify('darkpearl_bell', '');
    end if;
end
$$;
comment on function ring_bell() is 'Tells sleeping listeners that there is work; silent when none sleeps.';

-- Trigger: new sagas ring the bell.
create or replace function ring_bell_for_new_sagas() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock_shared(gate_key()) then
        perform pg_notify('darkpearl_bell', '');
    end if;
    return null;
end
$$;
comment on function ring_bell_for_new_sagas() is 'Trigger: rings the bell once per statement that starts sagas.';

create or replace trigger sagas_ring_the_bell
after insert on sagas
for each statement execute function ring_bell_for_new_sagas();

-- Called by a listener that has found nothing to do. True: it may sleep, once
-- it has looked a last time; every writer from here on will ring. False: a
-- writer is at work that will not ring; look again soon.
--
-- Waits a moment at most for writers in flight. While it waits, others already
-- ring. When another listener holds the gate, writers ring already.
-- Locks: the gate, exclusively, for the session.
create or replace function close_gate() returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
set lock_timeout = '50ms'
as $$
begin
    perform pg_advisory_lock(gate_key());
    return true;
exception when lock_not_available then
    return exists (
        select from pg_locks as l
        where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted
            and l.database = (select d.oid from pg_database as d where d.datname = current_database())
            and l.classid = (gate_key() >> 32)::oid and l.objid = (gate_key() & 4294967295)::oid
            and l.objsubid = 1
    );
end
$$;
comment on function close_gate() is 'For listeners: announces sleep. True when every writer from now on rings the bell.';

-- For a listener that woke up. Does nothing when the gate is another's.
create or replace function open_gate() returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    select pg_advisory_unlock(gate_key())
    from pg_locks as l
    where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted
        and l.pid = pg_backend_pid()
        and l.classid = (gate_key() >> 32)::oid and l.objid = (gate_key() & 4294967295)::oid
        and l.objsubid = 1;
end;
comment on function open_gate() is 'For listeners: awake again; writers need not ring.';

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

-- An operator has removed the cause: tries the compensation of a stuck saga
-- again, with all attempts anew. Locks: the saga. Raises DP008, DP010.
create or replace function retry_saga(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga sagas := lock_stuck_saga(p_saga_id);
begin
    insert into saga_events (saga_id, warehouse_id, event_type, message, actor)
    values (v_saga.id, v_saga.warehouse_id, 'retried', p_reason, current_actor());
    update sagas as s
    set status = 'compensating', attempts = 0, ready_at = clock(), updated_at = clock()
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id
    returning s.* into v_saga;
    perform ring_bell();
    return v_saga;
end
$$;
comment on function retry_saga(uuid, text) is 'Operator: tries a stuck saga again, once its cause is gone. Says who and why in saga_events.';

-- An operator has undone the step by hand: goes on behind it. Locks: the saga.
-- Raises DP008, DP010.
create or replace function skip_step(p_saga_id uuid, p_reason text) returns sagas
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga sagas := lock_stuck_saga(p_saga_id);
begin
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    select v_saga.id, v_saga.warehouse_id, 'skipped', s.undo_name, p_reason, current_actor()
    from (values (null)) as one
    left join saga_steps as s on s.saga_type = v_saga.saga_type and s.position = v_saga.position;
    -- Position 0 is the end of a compensation; the engine writes it.
    update sagas as s
    set
        status = 'compensating', position = v_saga.position - 1, attempts = 0,
        ready_at = clock(), updated_at = clock()
    where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id
    returning s.* into v_saga;
    perform ring_bell();
    return v_saga;
end
$$;
comment on function skip_step(uuid, text) is 'Operator: the present undo of a stuck saga was done by hand; goes on with the one before it.';

do $$ begin perform ensure_event_partitions(); end $$;
