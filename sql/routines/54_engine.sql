-- The engine. It knows plans (saga_steps), not what a step does.
--
-- advance() claims what is ready and runs each saga through its SQL steps until
-- it ends or needs an answer from outside; settle() takes the answers and goes
-- on from there. Either is one transaction: the effects of the steps, the
-- events and the next state commit together. Within it every saga and order
-- row is written once, at the end, however many steps were taken, and what locks
-- rows that other sagas need comes last.
--
-- A pass works on groups of sagas that stand at the same place; a group's step
-- function runs once for all of them and returns one outcome each. See 52_plans.sql
-- and 53_pass.sql.
--
-- A pass that raises is rolled back and tried in halves, until the saga that
-- cannot be done stands alone and is recorded by fail_saga(). An outage
-- (deadlock, shutdown, out of space …) is no saga's fault and is raised.
--
-- advance() and settle() set the search path and switch sequential scans off, and what
-- they call on every pass goes by that: to set it anew in each function takes a thirtieth
-- of what an order alone does.
--
-- Who names no warehouses means all of them. On a cluster sharded by warehouse
-- the caller names exactly one.
--
-- Lock order: sagas, then their payments and orders, which nobody locks without
-- the saga, then inventory by (product_id, warehouse_id).

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- True for errors that say nothing about the saga at hand: connection,
-- rollback, resources, operator intervention, system, lock timeout.
create or replace function is_outage(p_sqlstate text) returns boolean
language sql immutable
return left(p_sqlstate, 2) in ('08', '40', '53', '57', '58') or p_sqlstate = '55P03';
comment on function is_outage(text) is 'Whether a SQLSTATE means that the system failed rather than the saga.';

-- How long to wait before the next try after so many: backoff * 2^(attempts - 1)
-- seconds, an hour at most. Half of it is fixed, half of it each saga's own (see
-- jitter()), so that sagas that failed together do not come back together.
create or replace function backoff_seconds(p_backoff_seconds numeric, p_attempts integer)
returns double precision
language sql immutable parallel safe
return least(p_backoff_seconds * 2 ^ least(p_attempts - 1, 20), 3600)::double precision;
comment on function backoff_seconds(numeric, integer) is 'The longest wait before the next try: exponential, an hour at most.';

-- A saga as a group of its own. Without a SET clause it is inlined. Locks nothing.
create or replace function group_of(p_saga sagas, p_plan saga_steps[], p_ready_at timestamptz) returns saga_group
language sql immutable
return row(
    p_saga.saga_type, p_saga.status, p_saga.position, p_saga.attempts, p_saga.cancel_requested, false, null,
    array[p_saga.id], array[p_saga.warehouse_id], array[p_saga.lease_token], array[p_saga.ready_at], 0, p_ready_at, 0,
    p_plan, null, null
)::saga_group;
comment on function group_of(sagas, saga_steps[], timestamptz) is 'Internal: a saga as a group of its own.';

-- Takes up to p_limit ready sagas, those that have waited longest first, and
-- returns them in groups, each in id order; the group furthest on is the last.
-- Sagas that another listener holds are skipped.
-- Locks: sagas, until the end of the transaction.
create or replace function claim_sagas(p_warehouse_ids uuid[], p_limit integer) returns saga_group[]
language plpgsql
as $$
declare
    v_now constant timestamptz := clock();
    v_alone saga_group[];
begin
    -- One alone, which is what most orders find themselves, needs no bringing together.
    v_alone := array(
        select group_of(s, array(select p from saga_steps as p where p.saga_type = s.saga_type order by p.position), v_now)
        from sagas as s
        where (p_warehouse_ids is null or s.warehouse_id = any(p_warehouse_ids)) and s.ready_at <= v_now
        order by s.ready_at, s.id
        limit least(p_limit, 2)
        for no key update of s skip locked
    );
    if cardinality(v_alone) < 2 then
        return v_alone;
    end if;
    return array(
        select row(
            s.saga_type, s.status, s.position, s.attempts, s.cancel_requested, false, null,
            array_agg(s.id order by s.id), array_agg(s.warehouse_id order by s.id),
            array_agg(s.lease_token order by s.id), array_agg(s.ready_at order by s.id), 0, v_now, 0,
            array(select p from saga_steps as p where p.saga_type = s.saga_type order by p.position), null, null
        )::saga_group
        from (
            select
                id, warehouse_id, saga_type, status, position, attempts, cancel_requested, lease_token, ready_at
            from sagas
            where (p_warehouse_ids is null or warehouse_id = any(p_warehouse_ids)) and ready_at <= v_now
            order by ready_at, id
            limit p_limit
            for no key update skip locked
        ) as s
        group by s.saga_type, s.status, s.position, s.attempts, s.cancel_requested
        order by s.position, s.status desc, s.attempts desc, s.saga_type
    );
end
$$;
comment on function claim_sagas(uuid[], integer) is 'Internal: locks ready sagas, skipping those that are taken.';

-- Records that a saga cannot go on from where it stands: a try less, a later
-- one scheduled; when none is left, compensation; when that fails, stuck.
-- Locks: the saga. Does nothing if it has moved since.
create or replace function fail_saga(p_group saga_group, p_sqlstate text, p_message text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_id constant uuid := p_group.saga_ids[1];
    v_warehouse_id constant uuid := p_group.warehouse_ids[1];
    v_saga sagas;
begin
    select s.* into v_saga
    from sagas as s
    where s.id = v_id and s.warehouse_id = v_warehouse_id
        and s.status = p_group.status and s.position = p_group.position
        and s.lease_token = p_group.lease_tokens[1]
    for no key update;
    if not found then
        return;
    end if;

    if (p_group.plan[p_group.position]).position is distinct from p_group.position then
        p_group.transitions := array[transition(
            'step_failed', clock(),
            p_attempt => v_saga.attempts, p_error_codes => array[p_sqlstate], p_messages => array[p_message]
        )];
        p_group.status := 'stuck';
        p_group := finish_sagas(p_group, false);
    else
        -- The try was rolled back, and its count with it, unless a request was out.
        p_group.attempts := case when v_saga.status = 'waiting' then v_saga.attempts else p_group.attempts + 1 end;
        p_group := apply_outcome(p_group, 'failed', null, array[p_sqlstate], array[p_message], clock());
    end if;

    -- A saga that ends here ends its order too. Should the order be what could
    -- not be written, the saga stands stuck for a person to look at.
    if p_group.status <> 'compensated' then
        p_group.order_status := null;
    end if;
    begin
        perform write_group(p_group, array[v_warehouse_id]);
    exception when sqlstate 'DP004' then
        p_group.status := 'stuck';
        p_group.order_status := null;
        p_group.transitions := p_group.transitions || transition(
            'saga_stuck', clock(), p_error_codes => array[sqlstate], p_messages => array[sqlerrm]
        );
        perform write_group(p_group, array[v_warehouse_id]);
    end;
end
$$;
comment on function fail_saga(saga_group, text, text) is
    'Internal: records the failure of a saga that stands alone, and what follows from it.';

-- Claims up to p_limit ready sagas and takes each as far as it goes without an
-- answer from outside. Returns how many were claimed, and the requests to make
-- (JSON arrays, in rows of their own). Requests are leases: answer them with
-- settle() before timeout_seconds are over, or they are handed out again.
-- Locks: sagas, payments, orders, inventory, in that order.
-- Raises: outages only; a saga that cannot be done becomes its own event.
create or replace function advance(p_limit integer default 1000, p_warehouse_ids uuid[] default null)
returns table (claimed integer, requests json)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
    v_warehouse_ids uuid[];
    v_work saga_group[];
    v_group saga_group;
    v_requests json[];
    v_sqlstate text;
    v_message text;
begin
    if p_limit is null or p_limit not between 1 and 10000 then
        raise exception using
            errcode = 'DP015',
            message = 'limit makes no sense',
            detail = format('A batch of %s sagas was asked for.', coalesce(p_limit::text, 'null')),
            hint = 'Use 1 to 10000; 1000 is a good size.';
    end if;
    claimed := 0;
    begin
        v_work := claim_sagas(p_warehouse_ids, p_limit);
        foreach v_group in array v_work loop
            claimed := claimed + cardinality(v_group.saga_ids);
        end loop;
        if claimed > 0 then
            v_warehouse_ids := case claimed when 1 then v_group.warehouse_ids else p_warehouse_ids end;
            if v_warehouse_ids is null then
                v_warehouse_ids := array(select w.id from warehouses as w);
            end if;
            if cardinality(v_work) = 1 then
                v_requests := run_group(v_group, v_warehouse_ids);
            else
                v_requests := run_groups(v_warehouse_ids, v_work);
            end if;
        end if;
    exception when others then
        if claimed = 0 or is_outage(sqlstate) then
            raise;
        end if;
        v_sqlstate := sqlstate;
        v_message := sqlerrm;
    end;

    if v_sqlstate is not null then
        if claimed > 1 then
            return query select a.* from advance(claimed / 2, p_warehouse_ids) as a;
            return query select a.* from advance(claimed - claimed / 2, p_warehouse_ids) as a;
            return;
        end if;
        -- Alone. Keep the step that works, so that the one that raises is tried, and blamed, by itself.
        begin
            perform s.id
            from sagas as s
            where s.id = v_group.saga_ids[1] and s.warehouse_id = v_group.warehouse_ids[1]
                and s.lease_token = v_group.lease_tokens[1]
            for no key update;
            if found then
                v_requests := run_groups(v_warehouse_ids, v_work, false);
            end if;
        exception when others then
            if is_outage(sqlstate) then
                raise;
            end if;
            perform fail_saga(v_group, sqlstate, sqlerrm);
        end;
    end if;

    return next;
    claimed := 0;
    foreach requests in array coalesce(v_requests, '{}') loop
        return next;
    end loop;
end
$$;
comment on function advance(integer, uuid[]) is
    'The engine''s step: claims ready sagas, runs their SQL steps and returns the external requests to make.';

-- What is in an array of answers: one for each saga, that under the highest
-- token. A token that is no number is nobody's. Locks nothing.
create or replace function answers_of(p_answers jsonb)
returns table (saga_id uuid, lease_token bigint, answer jsonb)
language sql stable
begin atomic
    select distinct on (a.saga_id) a.saga_id, t.lease_token, a.answer
    from jsonb_to_recordset(p_answers) as a (saga_id uuid, lease_token text, answer jsonb)
    cross join lateral (
        select case when a.lease_token ~ '^[0-9]{1,18}$' then a.lease_token::bigint end as lease_token
    ) as t
    order by a.saga_id, t.lease_token desc nulls last;
end;
comment on function answers_of(jsonb) is 'Internal: the answers that settle() was given, one for each saga.';

-- The saga that an answer is for, as a group; null when it waits for no such answer.
-- Locks: the saga.
create or replace function waiting_saga(p_warehouse_ids uuid[], p_answer jsonb) returns saga_group
language plpgsql
as $$
begin
    return (
        select group_of(s, array(select p from saga_steps as p where p.saga_type = s.saga_type order by p.position), null)
        from sagas as s
        where s.id = (p_answer ->> 'saga_id')::uuid and (p_warehouse_ids is null or s.warehouse_id = any(p_warehouse_ids))
            and s.lease_token::text = p_answer ->> 'lease_token' and s.status in ('waiting', 'compensating') and s.attempts > 0
        for no key update
    );
end
$$;
comment on function waiting_saga(uuid[], jsonb) is 'Internal: locks the saga that waits for an answer.';

-- Brings a group the answers to its requests. Returns what becomes of it, a group for
-- what came out alike.
-- Locks: what the settle function locks. Raises: as came_apart().
create or replace function settle_group(p_group saga_group, p_warehouse_ids uuid[], p_answers jsonb[])
returns saga_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_step saga_steps := p_group.plan[p_group.position];
    v_function text;
begin
    if v_step.position is distinct from p_group.position then
        v_step := no_step(p_group);
    end if;
    v_function := case p_group.status when 'compensating' then v_step.undo_settle_function else v_step.settle_function end;
    return came_apart(p_group, v_function, call_step(v_function, p_warehouse_ids, p_group.saga_ids, p_answers), null);
end
$$;
comment on function settle_group(saga_group, uuid[], jsonb[]) is
    'Internal: brings the answers to a group and says where its sagas go, those that came out alike together.';

-- Records the answers under their present tokens and goes on from them.
-- p_go_on false stops each saga right after its answer is recorded.
-- requests: what is to be asked next, JSON arrays. stale: sagas whose answers came
-- under another token, and changed nothing; null for none.
-- Locks: sagas by id, then as advance(). Raises: 23502 when an answer names no saga.
create or replace function settle_pass(
    p_warehouse_ids uuid[], p_answers jsonb, p_go_on boolean, out requests json[], out stale uuid[]
)
language plpgsql
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_at record;
    v_group saga_group;
    v_settled uuid[];
    v_work saga_group[];
begin
    requests := '{}';
    stale := '{}';
    v_settled := '{}';
    v_work := '{}';
    if p_warehouse_ids is null then
        p_warehouse_ids := array(select w.id from warehouses as w);
    end if;

    for v_at in
        with answers as materialized (select * from answers_of(p_answers))
        select
            row(
                s.saga_type, s.status, s.position, s.attempts, s.cancel_requested, not p_go_on, null,
                array_agg(s.id order by s.id), array_agg(s.warehouse_id order by s.id),
                array_agg(s.lease_token order by s.id), array_agg(s.ready_at order by s.id), 0, null, 0,
                array(select p from saga_steps as p where p.saga_type = s.saga_type order by p.position), null, null
            )::saga_group as work,
            array_agg(s.answer order by s.id) as answers,
            count(*) over () as groups
        from (
            select
                s.id, s.warehouse_id, s.saga_type, s.status, s.position, s.attempts, s.cancel_requested,
                s.lease_token, s.ready_at, a.answer
            from answers as a
            inner join sagas as s on s.id = a.saga_id and s.lease_token = a.lease_token
            where s.id = any(array(select saga_id from answers)) and s.warehouse_id = any(p_warehouse_ids)
                and s.status in ('waiting', 'compensating') and s.attempts > 0
            order by s.id
            for no key update of s
        ) as s
        group by s.saga_type, s.status, s.position, s.attempts, s.cancel_requested
        order by s.position, s.status desc, s.attempts desc, s.saga_type
    loop
        v_group := v_at.work;
        v_settled := v_settled || v_group.saga_ids;
        if v_at.groups = 1 then
            requests := run_group(v_group, p_warehouse_ids, v_at.answers);
        else
            v_work := v_work || settle_group(v_group, p_warehouse_ids, v_at.answers);
        end if;
    end loop;
    if cardinality(v_work) > 0 then
        requests := run_groups(p_warehouse_ids, v_work);
    end if;

    if cardinality(v_settled) < jsonb_array_length(p_answers) then
        stale := array(select a.saga_id from answers_of(p_answers) as a where a.saga_id is null or a.saga_id <> all(v_settled));
        if array_position(stale, null) is not null then
            raise not_null_violation using message = 'an answer names no saga';
        end if;
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
-- Locks: sagas by id, payments, orders, inventory, in that order.
-- Raises: DP015 when p_answers is no such array; outages.
create or replace function settle(p_answers jsonb, p_warehouse_ids uuid[] default null)
returns table (requests json, saga_id uuid, error_code text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
    v_count integer;
    v_group saga_group;
    v_requests json[];
    v_stale uuid[];
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
    begin
        -- An answer alone needs no bringing together, which is most of what the other way costs it.
        if jsonb_array_length(p_answers) = 1 then
            v_group := waiting_saga(p_warehouse_ids, p_answers -> 0);
        end if;
        if v_group.saga_ids is not null then
            v_requests := run_group(v_group, v_group.warehouse_ids, array[p_answers -> 0 -> 'answer']);
        else
            select p.requests, p.stale into v_requests, v_stale
            from settle_pass(p_warehouse_ids, p_answers, true) as p;
        end if;
    exception when others then
        if is_outage(sqlstate) then
            raise;
        end if;
        v_sqlstate := sqlstate;
        v_message := sqlerrm;
    end;

    if v_sqlstate is not null then
        v_count := jsonb_array_length(p_answers);
        if exists (
            select from jsonb_array_elements(p_answers) as a
            where coalesce(a ->> 'saga_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        ) then
            raise exception using
                errcode = 'DP015',
                message = 'an answer names no saga',
                detail = 'Each element of p_answers needs a saga_id that is a UUID.',
                hint = 'Pass [{"saga_id": "…", "lease_token": 2, "answer": {"outcome": "approved"}}].';
        elsif v_count > 1 then
            return query select s.* from settle(jsonb_path_query_array(p_answers, format('$[0 to %s]', v_count / 2 - 1)::jsonpath), p_warehouse_ids) as s;
            return query select s.* from settle(jsonb_path_query_array(p_answers, format('$[%s to last]', v_count / 2)::jsonpath), p_warehouse_ids) as s;
            return;
        end if;

        -- Alone. Keep the answer at least; what comes after it is advance()'s.
        begin
            select p.requests, p.stale into v_requests, v_stale
            from settle_pass(p_warehouse_ids, p_answers, false) as p;
        exception when others then
            if is_outage(sqlstate) then
                raise;
            end if;
            v_group := waiting_saga(p_warehouse_ids, p_answers -> 0);
            if v_group.saga_ids is not null then
                -- The try was counted when its request went out.
                v_group.attempts := v_group.attempts - 1;
                perform fail_saga(v_group, v_sqlstate, v_message);
            end if;
            return;
        end;
    end if;

    foreach requests in array v_requests loop
        return next;
    end loop;
    if v_stale is not null then
        requests := null;
        error_code := 'DP009';
        foreach saga_id in array v_stale loop
            return next;
        end loop;
    end if;
end
$$;
comment on function settle(jsonb, uuid[]) is
    'Takes the answers to external requests, records them and runs the sagas on; late answers are refused with DP009.';
