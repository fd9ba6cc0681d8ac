-- Attempts: for how long a step has been tried, which is a time and no number of tries.
--
-- It is added up from saga_events when something has failed, and never else, so that what
-- goes well pays nothing for it. What becomes of a saga whose time is over stands in
-- 53_groups.sql.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- What has become of the tries of a step, or of an undo, since the saga came to it (the step before
-- was completed, for the last time where a plan goes back to a wait) or a person had it tried again: "asked" (a request went out), "pending" (it was answered so), "failed" (a
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
                where r.saga_id = p_saga_id and r.warehouse_id = p_warehouse_id
                    and r.event_type in ('retried', 'step_completed')
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
            g.saga_id, g.warehouse_id, name_of(v_step, v_backwards),
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
set enable_nestloop = off
as $$
declare
    v_part outcome_group;
begin
    select
        p_outcome.result,
        case when p_outcome.wait_seconds is not null then array_agg(o.wait_seconds order by o.n) end,
        coalesce(array_agg(o.saga_id order by o.n), '{}'),
        case when p_outcome.error_codes is not null then array_agg(o.error_code order by o.n) end,
        case when p_outcome.messages is not null then array_agg(o.message order by o.n) end,
        case when p_outcome.requests is not null then array_agg(o.request order by o.n) end
    into v_part
    from unnest(p_outcome.saga_ids, p_outcome.wait_seconds, p_outcome.error_codes, p_outcome.messages, p_outcome.requests)
        with ordinality as o (saga_id, wait_seconds, error_code, message, request, n)
    inner join unnest(p_saga_ids) as i (saga_id) using (saga_id);
    return v_part;
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
            from tries_of(m.saga_id, m.warehouse_id, name_of(v_step, v_backwards)) as o
            where o.kind = 'pending' order by o.id limit 1
        ) as t
        where clock() >= greatest(t.until, t.began_at + v_seconds * interval '1 second')
    ) as g;
    return v_given_up;
end
$$;
comment on function not_confirmed(saga_group) is 'Internal: the members of a group whose answer has been pending for too long.';
