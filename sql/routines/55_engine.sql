-- The engine. It knows plans, not what a step does.
--
-- advance() claims what is ready and runs each saga through its SQL steps until
-- it ends or needs an answer from outside; settle() takes the answers and goes
-- on from there. Either is one transaction: the effects of the steps, the
-- events and the next state commit together. What happens in it is told in
-- 53_pass.sql; what is here says who is in a pass, and what becomes of one that raises.
--
-- A pass that raises is rolled back and tried in halves, until the saga that
-- cannot be done stands alone and is recorded by fail_saga(). A defect (an error in
-- code or in the plan of the database) is mended by people: its saga is set aside as
-- stuck, the way it went. An outage (deadlock, shutdown, out of space …) is no saga's
-- fault and is raised; the caller comes again with less. One saga alone that meets a bound
-- or a lock is put off instead, at no cost of attempts, so that it keeps nobody else.
--
-- Before all that, a pass that met somebody else is done once more with its locks taken
-- first, without what others hold: see 54_left_aside.sql. It waits 200 ms for a lock, less
-- than the server takes to look for a deadlock, so it is always the pass that gives way.
--
-- Naming no warehouses means all of them.
--
-- Lock order: sagas, then their payments and orders, which nobody locks without
-- the saga, then inventory by (product_id, warehouse_id).

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- True for errors that say nothing about the saga at hand: connection,
-- rollback, resources, operator intervention, system, lock timeout. Locks nothing.
create or replace function is_outage(p_sqlstate text) returns boolean
language sql immutable
return left(p_sqlstate, 2) in ('08', '40', '53', '57', '58') or p_sqlstate = '55P03';
comment on function is_outage(text) is 'Whether a SQLSTATE means that the system failed rather than the saga.';

-- True for outages that may be one saga's own: a time limit, a lock, a want of memory or
-- disk, rather than the server's end or a lost connection. Locks nothing.
create or replace function may_be_ones_own(p_sqlstate text) returns boolean
language sql immutable
return left(p_sqlstate, 2) in ('40', '53') or p_sqlstate in ('55P03', '57014');
comment on function may_be_ones_own(text) is 'Whether an outage may come from one saga alone, and is to keep no other.';

-- True for errors that say that another session was in the way: it has a lock, or it took
-- goods that the pass had promised but not taken yet. Locks nothing.
create or replace function is_contention(p_sqlstate text) returns boolean
language sql immutable
return p_sqlstate in ('55P03', '40P01', '23514');
comment on function is_contention(text) is 'Whether a SQLSTATE may mean that another session was in the way.';

-- True for errors that no later try mends, since code or a definition is wrong: raised by
-- hand in PL/pgSQL, syntax or access rule, feature not supported, internal. Data that can't
-- be worked on (22, 23) is no defect. Locks nothing.
create or replace function is_defect(p_sqlstate text) returns boolean
language sql immutable
return left(p_sqlstate, 2) in ('0A', '42', 'P0', 'XX');
comment on function is_defect(text) is 'Whether a SQLSTATE means that code is wrong, which people mend.';

-- For what is to have an id of its own, not that of an order, a refund or any other saga,
-- in whatever warehouse. Locks nothing. Raises: DP011.
create or replace function refuse_id_of_saga(p_id uuid) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if exists (select from sagas as s where s.id = p_id) then
        perform refuse(
            'DP011', 'id already used',
            format('The id %s is that of an order, a refund or another saga.', p_id),
            'An id is one in the whole database: give a new one a new id.'
        );
    end if;
end
$$;
comment on function refuse_id_of_saga(uuid) is 'Internal: refuses an id that an order, a refund or another saga has.';

-- Starts a saga of a type, by its newest plan, and notes who did and why. Its id is that of
-- what it is about. The bell rings at commit. Locks nothing, and waits for another that is
-- just starting one under the id. Raises: DP010 when no plan of the type is declared, DP011
-- when the id is taken, in whatever warehouse, DP038 when it was, before retention removed it,
-- DP050.
create or replace function start_saga(p_saga_type text, p_saga_id uuid, p_warehouse_id uuid, p_reason text default null)
returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_version constant smallint := newest_plan(p_saga_type);
begin
    if v_version is null then
        perform refuse(
            'DP010', 'no such saga type', format('No plan of %s is declared.', p_saga_type),
            'Declare it with define_plan().'
        );
    end if;
    perform refuse_elsewhere(array[p_warehouse_id]);
    insert into sagas (id, warehouse_id, saga_type, plan_version)
    values (p_saga_id, p_warehouse_id, p_saga_type, v_version)
    on conflict do nothing;
    if not found then
        perform refuse_id_of_saga(p_saga_id);
    end if;
    perform refuse_spent_ids(array[p_saga_id]);
    insert into saga_events (saga_id, warehouse_id, event_type, message, actor)
    values (p_saga_id, p_warehouse_id, 'saga_started', p_reason, current_actor());
end
$$;
comment on function start_saga(text, uuid, uuid, text) is
    'For authors of saga types: starts a saga of a type by its newest plan, under the id of what it is about.';

-- The warehouses of the sagas of some groups, each once. Locks nothing.
create or replace function warehouses_of(p_work saga_group[]) returns uuid[]
language plpgsql
as $$
declare
    v_group saga_group;
    v_ids uuid[] := '{}';
begin
    foreach v_group in array p_work loop
        v_ids := v_ids || v_group.warehouse_ids;
    end loop;
    if cardinality(v_ids) < 2 then
        return v_ids;
    end if;
    return array(select distinct w from unnest(v_ids) as w);
end
$$;
comment on function warehouses_of(saga_group[]) is 'Internal: the warehouses of the sagas of some groups, each once.';

-- Notes in the session where its next claim begins, after one that passed so many dead entries:
-- where this one ended, if it came to its limit, but a second ago at the latest. So who commits
-- within a second of its ready_at is always found. Who takes longer, was given up by another
-- listener, or was passed over for its warehouse, is found by a look from the beginning.
-- p_place: where this one began; null: at the beginning. Locks nothing.
create or replace function keep_place(
    p_place claim_place, p_now timestamptz, p_work saga_group[], p_limit integer, p_passed bigint
) returns void
language plpgsql
as $$
declare
    v_claimed integer;
    v_last_at timestamptz;
    v_last_id uuid;
begin
    select count(*), max(w.ready_at), (array_agg(w.id order by w.ready_at desc, w.id desc))[1]
    into v_claimed, v_last_at, v_last_id
    from unnest(p_work) as g
    cross join lateral unnest(g.were_ready_at, g.saga_ids) as w (ready_at, id);

    if p_place.ready_at is null then
        p_place.looked_at := p_now;
        p_place.passed := p_passed;
    end if;
    p_place.ready_at := p_now - interval '1 second';
    p_place.id := '00000000-0000-0000-0000-000000000000';
    if v_claimed = p_limit and v_last_at < p_place.ready_at then
        p_place.ready_at := v_last_at;
        p_place.id := v_last_id;
    end if;
    perform set_config('darkpearl.claim_place', p_place::text, false);
end
$$;
comment on function keep_place(claim_place, timestamptz, saga_group[], integer, bigint) is
    'Internal: notes in the session where its next claim begins.';

-- Where this session's claim begins now: at the place that it has kept; null for the beginning.
-- The more entries the last look from there passed, the longer it is to the next, so that these
-- take a small part of the time, and a minute at most. It is due when the clock was set back.
-- Locks nothing.
create or replace function claim_from(p_place claim_place, p_now timestamptz) returns claim_place
language plpgsql
as $$
begin
    if p_now > p_place.looked_at
        and p_now < p_place.looked_at + least(p_place.passed * interval '20 microseconds', interval '1 minute')
    then
        return p_place;
    end if;
    return null;
end
$$;
comment on function claim_from(claim_place, timestamptz) is 'Internal: where a claim begins, given where the last one ended.';

-- Takes up to p_limit ready sagas, those that have waited longest first, and
-- returns them in groups, each in id order; the group furthest on is the last.
-- Sagas that another listener holds are skipped, and those of warehouses that are closed here.
--
-- A saga leaves an entry of the index behind whenever it moves, and while a snapshot is held
-- nothing takes them away: a session passes them once, and goes on where it was, see keep_place().
-- Locks: sagas, until the end of the transaction.
create or replace function claim_sagas(p_warehouse_ids uuid[], p_limit integer) returns saga_group[]
language plpgsql
as $$
declare
    v_now constant timestamptz := clock();
    v_index constant regclass := to_regclass('sagas_ready_idx');
    v_kept constant text := current_setting('darkpearl.claim_place', true);
    v_place claim_place;
    v_from_at timestamptz := '-infinity'::timestamptz;
    v_from_id uuid := '00000000-0000-0000-0000-000000000000'::uuid;
    v_passed bigint := pg_stat_get_xact_tuples_returned(v_index) - pg_stat_get_xact_tuples_fetched(v_index);
    v_work saga_group[];
    v_closed constant uuid[] := nullif(closed_warehouses(), '{}');
begin
    if v_kept <> '' then
        v_place := claim_from(v_kept::claim_place, v_now);
        v_from_at := coalesce(v_place.ready_at, v_from_at);
        v_from_id := coalesce(v_place.id, v_from_id);
    end if;
    v_work := array(
        select new_group(
            s.saga_type, s.plan_version, s.status, s.position, s.attempts, s.cancel_requested,
            array_agg(s.id order by s.id), array_agg(s.warehouse_id order by s.id),
            array_agg(s.lease_token order by s.id), array_agg(s.ready_at order by s.id)
        )
        from (
            select
                s.id, s.warehouse_id, s.saga_type, s.plan_version, s.status, s.position, s.attempts,
                s.cancel_requested, s.lease_token, s.ready_at
            from sagas as s
            where (p_warehouse_ids is null or s.warehouse_id = any(p_warehouse_ids)) and s.ready_at <= v_now
                and (s.ready_at, s.id) > (v_from_at, v_from_id)
                and (v_closed is null or not array[s.warehouse_id] <@ v_closed)
            order by s.ready_at, s.id
            limit p_limit
            for no key update skip locked
        ) as s
        group by s.saga_type, s.plan_version, s.status, s.position, s.attempts, s.cancel_requested
        order by s.position, s.status desc, s.attempts desc, s.saga_type, s.plan_version
    );
    -- Entries of rows that are there, only locked, count for nothing: they are soon free.
    v_passed := pg_stat_get_xact_tuples_returned(v_index) - pg_stat_get_xact_tuples_fetched(v_index) - v_passed;
    -- While few entries are passed, every claim begins at the beginning.
    if v_passed > 500 or v_place.ready_at is not null then
        perform keep_place(v_place, v_now, v_work, p_limit, v_passed);
    end if;
    return v_work;
end
$$;
comment on function claim_sagas(uuid[], integer) is 'Internal: locks ready sagas, skipping those that are taken, and groups them.';

-- One saga as a group, locked, if it still stands where the group says. No group for none.
-- Locks: the saga.
create or replace function lock_saga_again(p_group saga_group) returns saga_group[]
language plpgsql
as $$
begin
    return array(
        select group_of_saga(s)
        from sagas as s
        where s.id = p_group.saga_ids[1] and s.warehouse_id = p_group.warehouse_ids[1]
            and s.status = p_group.status and s.position = p_group.position and s.lease_token = p_group.lease_tokens[1]
        for no key update
    );
end
$$;
comment on function lock_saga_again(saga_group) is 'Internal: the first saga of a group, locked, if it has not moved since.';

-- Records that a saga cannot go on from where it stands: a try less, a later
-- one scheduled; when none is left, compensation; when that fails, stuck. What
-- would break a law is stuck at once, and so is what met a defect: it was no fault of its
-- own. What met an outage is put off, ten times as long as that took, and has failed in
-- nothing. p_counted: the try was counted when its request went out; else it was rolled
-- back, and its count with it.
-- Returns the saga, the error and the step or undo at which it is set aside; nulls if it isn't.
-- Locks: the saga. Does nothing if it has moved since.
create or replace function fail_saga(
    p_group saga_group, p_sqlstate text, p_message text, p_counted boolean default false,
    out saga_id uuid, out error_code text, out step_name text
)
language plpgsql
as $$
declare
    v_group saga_group := (lock_saga_again(p_group))[1];
    v_step constant plan_step := v_group.plan[v_group.position];
    v_result step_result := 'failed';
    v_wait_seconds numeric;
    v_failed saga_group;
begin
    if v_group.saga_ids is null then
        return;
    elsif v_step.position is null or p_sqlstate = 'DP023' or is_defect(p_sqlstate) then
        v_result := 'stuck';
    elsif is_outage(p_sqlstate) then
        v_result := case when cardinality(out_of_time(v_group, true)) > 0 then 'stuck' else 'deferred' end;
        v_wait_seconds := least(greatest(1, 10 * extract(epoch from clock_timestamp() - statement_timestamp())), 3600);
    end if;
    -- What is put off gives its try back: a request that was made stays counted, so that the
    -- next one looks what became of it.
    if v_result = 'deferred' or (v_group.status <> 'waiting' and not p_counted and v_step.position is not null) then
        v_group.attempts := least(v_group.attempts, 32766) + 1;
    end if;
    if v_result = 'failed' and cardinality(out_of_time(v_group)) > 0 then
        v_result := 'given_up';
    end if;
    v_failed := apply_outcome(v_group, (group_outcome(v_group, v_result, p_sqlstate, p_message, v_wait_seconds))[1], clock());
    -- A saga that ends here ends its order too. Should that be what could not be
    -- written, the saga stands stuck where it was, for a person to look at.
    if v_failed.status <> 'compensated' then
        v_failed.order_status := null;
    end if;
    begin
        perform write_group(v_failed, v_group.warehouse_ids);
    exception when others or assert_failure then
        if is_outage(sqlstate) then
            raise;
        end if;
        v_failed := apply_outcome(v_group, (group_outcome(v_group, 'stuck', sqlstate, sqlerrm))[1], clock());
        perform write_group(v_failed, v_group.warehouse_ids);
    end;
    if v_failed.status = 'stuck' then
        saga_id := v_group.saga_ids[1];
        error_code := p_sqlstate;
        step_name := coalesce(name_of(v_step, v_group.status = 'compensating'), 'no step');
    end if;
end
$$;
comment on function fail_saga(saga_group, text, text, boolean) is
    'Internal: records the failure of a saga that stands alone, and what follows from it.';

-- Runs a saga again that raised while it stood alone, for one step: the one that works is
-- kept, so that the one that raises is tried, and blamed, by itself. After an outage it
-- isn't: a time limit that has struck is none for what follows in its statement.
-- Returns the requests to make, and what fail_saga() returns. Locks: as advance().
create or replace function run_blamed(
    p_group saga_group, p_sqlstate text, p_message text,
    out requests json[], out saga_id uuid, out error_code text, out step_name text
)
language plpgsql
as $$
begin
    requests := '{}';
    if not is_outage(p_sqlstate) then
        begin
            requests := run_groups(p_group.warehouse_ids, lock_saga_again(p_group), 1);
            return;
        exception when others or assert_failure or query_canceled then
            if is_outage(sqlstate) and not may_be_ones_own(sqlstate) then
                raise;
            end if;
            p_sqlstate := sqlstate;
            p_message := sqlerrm;
        end;
    end if;
    select f.* into saga_id, error_code, step_name from fail_saga(p_group, p_sqlstate, p_message) as f;
end
$$;
comment on function run_blamed(saga_group, text, text) is
    'Internal: runs a saga that raised for one step more, or records why it can''t.';

-- Runs claimed groups with their locks taken first, without the sagas that need what
-- another session holds. Returns the requests to make. Locks: as run_groups().
create or replace function run_what_can_be_had(p_work saga_group[]) returns json[]
language plpgsql
as $$
declare
    v_warehouse_ids constant uuid[] := warehouses_of(p_work);
begin
    return run_groups(v_warehouse_ids, leave_aside_held(v_warehouse_ids, p_work));
end
$$;
comment on function run_what_can_be_had(saga_group[]) is
    'Internal: runs claimed sagas with their locks taken first, and puts off those that need what another session holds.';

-- Refuses what is no size of a batch, and warehouses of other cells. Locks nothing. Raises: DP015,
-- DP050.
create or replace function refuse_odd_claim(p_limit integer, p_warehouse_ids uuid[]) returns void
language plpgsql
as $$
begin
    if (p_limit between 1 and 10000) is not true then
        perform refuse(
            'DP015', 'limit makes no sense',
            format('A batch of %s sagas was asked for.', coalesce(p_limit::text, 'null')),
            'Use 1 to 10000; 1000 is a good size.'
        );
    end if;
    perform refuse_elsewhere(p_warehouse_ids);
end
$$;
comment on function refuse_odd_claim(integer, uuid[]) is 'Internal: refuses a limit or warehouses that advance() cannot take.';

-- Claims up to p_limit ready sagas and takes each as far as it goes without an
-- answer from outside. Returns how many were claimed, and the requests to make
-- (JSON arrays, in rows of their own). Requests are leases: answer them with
-- settle() before timeout_seconds are over, or they are handed out again. A saga that
-- raised and is set aside as stuck is a row with its saga_id, error_code and step_name.
-- Locks: sagas, payments, orders, inventory, in that order, each waited for 200 ms at most.
-- Raises: outages, and DP050 when a warehouse of another cell is named; a saga that cannot be done becomes its
-- own event, and one that meets an outage of its own when it is claimed alone is put off.
create or replace function advance(p_limit integer default 1000, p_warehouse_ids uuid[] default null)
returns table (claimed integer, requests json, saga_id uuid, error_code text, step_name text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '200ms'
as $$
declare
    v_work saga_group[];
    v_group saga_group;
    v_held boolean := false;  -- Another session holds what one of them needs.
    v_requests json[] := '{}';
    v_sqlstate text;
    v_message text;
begin
    if p_limit is null or p_limit not between 1 and 10000 or p_warehouse_ids is not null then
        perform refuse_odd_claim(p_limit, p_warehouse_ids);
    end if;
    for v_try in 1..2 loop
        claimed := 0;
        begin
            v_work := claim_sagas(p_warehouse_ids, p_limit);
            foreach v_group in array v_work loop
                claimed := claimed + cardinality(v_group.saga_ids);
                v_held := v_held or was_put_off(v_group.were_ready_at[1]);
            end loop;
            if claimed > 0 then
                v_requests := case
                    when v_held then run_what_can_be_had(v_work)
                    when claimed = 1 and v_group.status = 'running' and v_group.attempts = 0 and not v_group.cancel_requested
                        then run_alone(v_group)
                    else run_groups(warehouses_of(v_work), v_work)
                end;
            end if;
            v_sqlstate := null;
        exception when others or assert_failure or query_canceled then
            v_sqlstate := sqlstate;
            v_message := sqlerrm;
            if claimed = 0 or (is_outage(sqlstate) and not (claimed = 1 and may_be_ones_own(sqlstate))
                and not (v_try = 1 and is_contention(sqlstate)))
            then
                raise;
            end if;
        end;
        exit when v_sqlstate is null or not is_contention(v_sqlstate);
        v_held := true;
    end loop;

    if v_sqlstate is not null and claimed > 1 then
        return query select a.* from advance(claimed / 2, p_warehouse_ids) as a;
        return query select a.* from advance(claimed - claimed / 2, p_warehouse_ids) as a;
        return;
    elsif v_sqlstate is not null then
        select r.* into v_requests, saga_id, error_code, step_name from run_blamed(v_group, v_sqlstate, v_message) as r;
    end if;

    return next;
    claimed := 0;
    saga_id := null;
    error_code := null;
    step_name := null;
    foreach requests in array v_requests loop
        return next;
    end loop;
end
$$;
comment on function advance(integer, uuid[]) is
    'The engine''s step: claims ready sagas, runs their SQL steps and returns the external requests to make.';

-- advance() for all warehouses but some: for a listener that has as many calls to make for
-- those as it gets to. Returns, locks and raises: as advance().
create or replace function advance_elsewhere(p_limit integer, p_warehouse_ids uuid[])
returns table (claimed integer, requests json, saga_id uuid, error_code text, step_name text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    return query select a.* from advance(p_limit, array(select w.id from warehouses as w where w.id <> all(p_warehouse_ids) and w.cell = this_cell())) as a;
end
$$;
comment on function advance_elsewhere(integer, uuid[]) is
    'The engine''s step for all warehouses but these; see advance().';

-- What is in an array of answers: one for each saga, that under the highest
-- token. A token that is no number is nobody's. deferred_seconds is set for a request
-- that was given back unasked. Inlined where it is used. Locks nothing.
create or replace function answers_of(p_answers jsonb)
returns table (saga_id uuid, lease_token bigint, answer jsonb, deferred_seconds numeric)
language sql stable
begin atomic
    select distinct on ((e.value ->> 'saga_id')::uuid)
        (e.value ->> 'saga_id')::uuid,
        case when e.value ->> 'lease_token' ~ '^[0-9]{1,18}$' then (e.value ->> 'lease_token')::bigint end as token,
        e.value -> 'answer',
        case
            when jsonb_typeof(e.value -> 'deferred_seconds') = 'number'
                then least(greatest((e.value ->> 'deferred_seconds')::numeric, 0), 3600)
        end
    from jsonb_array_elements(p_answers) as e
    order by (e.value ->> 'saga_id')::uuid, token desc nulls last;
end;
comment on function answers_of(jsonb) is 'Internal: the answers that settle() was given, one for each saga.';

-- Refuses what is no array of answers. Locks nothing. Raises: DP015.
create or replace function refuse_odd_answers(p_answers jsonb) returns void
language plpgsql
as $$
declare
    v_hint constant text := 'Pass [{"saga_id": "…", "lease_token": 2, "answer": {"outcome": "approved"}}].';
begin
    if p_answers is null or jsonb_typeof(p_answers) <> 'array' then
        perform refuse(
            'DP015', 'answers must be an array',
            format('p_answers is %s.', coalesce('a JSON ' || jsonb_typeof(p_answers), 'null')), v_hint
        );
    elsif exists (
        select from jsonb_array_elements(p_answers) as a
        where coalesce(a ->> 'saga_id', '') !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
    ) then
        perform refuse('DP015', 'an answer names no saga', 'Each element of p_answers needs a saga_id that is a UUID.', v_hint);
    end if;
end
$$;
comment on function refuse_odd_answers(jsonb) is 'Internal: refuses what settle() cannot take for answers.';

-- The sagas that wait for these answers under their present tokens, in groups, each with
-- its answers in the order of its members. Those that were given back unasked are apart. Those of
-- warehouses that are closed here wait for nothing here.
-- Locks: sagas by id.
create or replace function lock_answered(p_warehouse_ids uuid[], p_answers jsonb) returns saga_group[]
language plpgsql
set enable_nestloop = off
as $$
declare
    v_closed constant uuid[] := nullif(closed_warehouses(), '{}');
begin
    return array(
        with answers as materialized (select * from answers_of(p_answers))
        select new_group(
            s.saga_type, s.plan_version, s.status, s.position, s.attempts, s.cancel_requested,
            array_agg(s.id order by s.id), array_agg(s.warehouse_id order by s.id),
            array_agg(s.lease_token order by s.id), array_agg(s.ready_at order by s.id),
            array_agg(s.answer order by s.id),
            case when s.was_deferred then array_agg(s.deferred_seconds order by s.id) end
        )
        from (
            select
                s.id, s.warehouse_id, s.saga_type, s.plan_version, s.status, s.position, s.attempts,
                s.cancel_requested, s.lease_token, s.ready_at, a.answer, a.deferred_seconds,
                a.deferred_seconds is not null as was_deferred
            from answers as a
            inner join sagas as s on s.id = a.saga_id and s.lease_token = a.lease_token
            where s.id = any(array(select b.saga_id from answers as b))
                and (p_warehouse_ids is null or s.warehouse_id = any(p_warehouse_ids))
                and (v_closed is null or not array[s.warehouse_id] <@ v_closed)
                and s.status in ('waiting', 'compensating') and s.attempts > 0
            order by s.id
            for no key update of s
        ) as s
        group by s.saga_type, s.plan_version, s.status, s.position, s.attempts, s.cancel_requested, s.was_deferred
        order by s.position, s.status desc, s.attempts desc, s.saga_type, s.plan_version
    );
end
$$;
comment on function lock_answered(uuid[], jsonb) is
    'Internal: locks the sagas that wait for these answers, in groups with their answers.';

-- Records the answers under their present tokens and goes on from them, as many steps as
-- p_steps at the most; null for no bound.
-- requests: what is to be asked next, JSON arrays. stale: sagas whose answers came
-- under another token, and changed nothing.
-- Locks: sagas by id, then as advance(). Raises: DP015.
create or replace function settle_pass(
    p_warehouse_ids uuid[], p_answers jsonb, p_steps integer default null, out requests json[], out stale uuid[]
)
language plpgsql
as $$
declare
    v_answered constant saga_group[] := lock_answered(p_warehouse_ids, p_answers);
    v_warehouse_ids constant uuid[] := warehouses_of(v_answered);
    v_group saga_group;
    v_settled uuid[] := '{}';
    v_work saga_group[] := '{}';
begin
    stale := '{}';
    v_group := v_answered[1];
    if p_steps is null and cardinality(v_answered) = 1 and cardinality(v_group.saga_ids) = 1
        and jsonb_array_length(p_answers) = 1 and v_group.status = 'waiting' and not v_group.cancel_requested
        and v_group.deferred_seconds is null and is_external(v_group.plan[v_group.position], false)
    then
        requests := run_alone(v_group);
        return;
    end if;
    foreach v_group in array v_answered loop
        -- Nobody was asked anything at another step: what waits there waits for a signal.
        continue when not is_external(v_group.plan[v_group.position], v_group.status = 'compensating');
        v_settled := v_settled || v_group.saga_ids;
        v_work := v_work || settle_group(v_group, v_warehouse_ids);
    end loop;
    requests := run_groups(v_warehouse_ids, v_work, p_steps);
    if cardinality(v_settled) < jsonb_array_length(p_answers) then
        perform refuse_odd_answers(p_answers);
        stale := ids_besides(array(select a.saga_id from answers_of(p_answers) as a), v_settled);
    end if;
end
$$;
comment on function settle_pass(uuid[], jsonb, integer) is
    'Internal: records the answers to external requests and runs the sagas on.';

-- An array of answers but for those of some sagas. Locks nothing.
create or replace function answers_besides(p_answers jsonb, p_saga_ids uuid[]) returns jsonb
language plpgsql stable
set enable_nestloop = off
as $$
begin
    return coalesce((
        select jsonb_agg(a.value)
        from jsonb_array_elements(p_answers) as a
        where not exists (select from unnest(p_saga_ids) as s (id) where s.id = (a.value ->> 'saga_id')::uuid)
    ), '[]');
end
$$;
comment on function answers_besides(jsonb, uuid[]) is 'Internal: an array of answers but for those of some sagas.';

-- Records those of these answers whose sagas, orders and payments nobody else holds; what
-- comes after them is advance()'s. held: the sagas of the others, to which the answers are to
-- be brought again; the leases of those that can be had last 10 s more for it.
-- Locks: as settle_pass(), and waits for none of it.
create or replace function settle_what_can_be_had(
    p_warehouse_ids uuid[], p_answers jsonb, out requests json[], out stale uuid[], out held uuid[]
)
language plpgsql
as $$
declare
    v_answered constant uuid[] := array(select a.saga_id from answers_of(p_answers) as a);
    v_had uuid[];
    v_warehouse_ids uuid[];
begin
    select array_agg(l.id), array_agg(distinct l.warehouse_id) into v_had, v_warehouse_ids
    from (
        select s.id, s.warehouse_id from sagas as s
        where s.id = any(v_answered)
        for no key update skip locked
    ) as l;
    held := sagas_with_held_order(v_warehouse_ids, v_had);
    update sagas as s
    set ready_at = greatest(s.ready_at, clock() + interval '10 seconds')
    where s.id = any(held) and s.warehouse_id = any(v_warehouse_ids) and s.status in ('waiting', 'compensating');
    held := held || ids_besides(array(select s.id from sagas as s where s.id = any(v_answered)), v_had);
    select p.requests, p.stale into requests, stale
    from settle_pass(
        p_warehouse_ids,
        answers_besides(p_answers, held),
        0
    ) as p;
end
$$;
comment on function settle_what_can_be_had(uuid[], jsonb) is
    'Internal: records the answers whose sagas, orders and payments no other session holds, and names the other sagas.';

-- Records an answer that raised while it stood alone, at least; what comes after it is
-- advance()'s. Or it records why that can't be. After a time limit it isn't tried: nothing
-- bounds the statement any more.
-- Returns what settle_pass() does, and what fail_saga() returns. Locks: as settle_pass().
create or replace function settle_blamed(
    p_warehouse_ids uuid[], p_answers jsonb, p_sqlstate text, p_message text,
    out requests json[], out stale uuid[], out saga_id uuid, out error_code text, out step_name text
)
language plpgsql
as $$
begin
    if p_sqlstate <> '57014' then
        begin
            select p.requests, p.stale into requests, stale from settle_pass(p_warehouse_ids, p_answers, 0) as p;
            return;
        exception when others or assert_failure or query_canceled then
            if is_outage(sqlstate) and not may_be_ones_own(sqlstate) then
                raise;
            end if;
        end;
    end if;
    requests := '{}';
    stale := '{}';
    select f.* into saga_id, error_code, step_name
    from unnest(lock_answered(p_warehouse_ids, p_answers)) as g
    cross join lateral fail_saga(g, p_sqlstate, p_message, true) as f;
end
$$;
comment on function settle_blamed(uuid[], jsonb, text, text) is
    'Internal: records an answer that raised, and no more, or why it can''t be recorded.';

-- Takes the answers to external requests and takes each saga as far as it goes.
--
-- p_answers: [{"saga_id": uuid, "lease_token": int, "answer": {…what the step's settle
-- function reads}}]. An element with "deferred_seconds" gives the request back: it was not
-- asked, and costs no attempt; its answer says why in "message". An answer under a token
-- that is not the saga's present one is refused: it is returned as a row with its saga and
-- error_code DP009, and changes nothing. So is one that can't be recorded now since another
-- session holds its saga, order or payment, with 55P03: bring it again in a second. Further
-- requests, and sagas that are set aside, come back as from advance().
-- Locks: sagas by id, payments, orders, inventory, in that order, each waited for 200 ms at most.
-- Raises: DP015 when p_answers is no such array; outages.
create or replace function settle(p_answers jsonb, p_warehouse_ids uuid[] default null)
returns table (requests json, saga_id uuid, error_code text, step_name text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
set lock_timeout = '200ms'
as $$
declare
    v_pass record;
    v_held uuid[] := '{}';
    v_sqlstate text;
    v_message text;
    v_count integer;
begin
    if jsonb_typeof(p_answers) is distinct from 'array' then
        perform refuse_odd_answers(p_answers);
    end if;
    for v_try in 1..2 loop
        begin
            if v_try = 1 then
                v_pass := settle_pass(p_warehouse_ids, p_answers);
            else
                v_pass := settle_what_can_be_had(p_warehouse_ids, p_answers);
                v_held := v_pass.held;
            end if;
            v_sqlstate := null;
        exception when others or assert_failure or query_canceled then
            v_sqlstate := sqlstate;
            v_message := sqlerrm;
            if is_outage(sqlstate) and not (jsonb_array_length(p_answers) = 1 and may_be_ones_own(sqlstate))
                and not (v_try = 1 and is_contention(sqlstate))
            then
                raise;
            end if;
        end;
        exit when v_sqlstate is null or not is_contention(v_sqlstate);
    end loop;

    if v_sqlstate is not null then
        perform refuse_odd_answers(p_answers);
        v_count := jsonb_array_length(p_answers);
    end if;
    if v_count > 1 then
        return query select s.* from settle(jsonb_path_query_array(p_answers, format('$[0 to %s]', v_count / 2 - 1)::jsonpath), p_warehouse_ids) as s;
        return query select s.* from settle(jsonb_path_query_array(p_answers, format('$[%s to last]', v_count / 2)::jsonpath), p_warehouse_ids) as s;
        return;
    elsif v_sqlstate is not null then
        v_pass := settle_blamed(p_warehouse_ids, p_answers, v_sqlstate, v_message);
        return query select null::json, v_pass.saga_id, v_pass.error_code, v_pass.step_name where v_pass.saga_id is not null;
    end if;

    foreach requests in array v_pass.requests loop
        return next;
    end loop;
    requests := null;
    error_code := 'DP009';
    foreach saga_id in array v_pass.stale loop
        return next;
    end loop;
    error_code := '55P03';
    foreach saga_id in array v_held loop
        return next;
    end loop;
end
$$;
comment on function settle(jsonb, uuid[]) is
    'Takes the answers to external requests, records them and runs the sagas on; late answers are refused with DP009.';

-- Which requests these sagas came from, where that was traced: for a listener
-- that traces, and otherwise never asked. Locks nothing.
create or replace function trace_contexts(p_saga_ids uuid[])
returns table (saga_id uuid, traceparent text)
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
    select s.id, s.traceparent
    from sagas as s
    where s.id = any(p_saga_ids) and s.traceparent is not null
$$;
comment on function trace_contexts(uuid[]) is 'The W3C trace contexts that started these sagas, where there were any.';
