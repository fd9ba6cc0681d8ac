-- The fast path: what stands beside the pass for an order that comes alone, and nowhere else.
--
-- run_alone() takes one saga through its steps as run_groups() does a group, without
-- arrays of groups, and leaves whatever is unusual to that. A batch gains nothing from it;
-- an order alone is felt to: see docs/decisions/one-fast-path.md.
--
-- A call by name, as call_step() and call_effect() make it in 53_pass.sql, is parsed and
-- planned each time; in a batch that is nothing, for an order alone it is felt. So both are
-- written over from the plans, with a branch for each function that a plan names; what has
-- no branch is called as before. How they read
-- in a new database stands in sql/compiled/calls.sql.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Writes over call_step() and call_effect(), once there are plans. Locks nothing.
create or replace function compile_calls() returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_steps text;
    v_effects text;
begin
    select
        string_agg(
            format(
                e'when %L then\n            return %I(p_warehouse_ids, p_saga_ids%s);\n        ', f.name, f.name,
                case when f.signature like '%jsonb%' then ', p_answers' end
            ),
            '' order by f.name
        ) filter (where f.result <> 'void'),
        string_agg(
            format(e'when %L then\n            v_void := %I(p_warehouse_ids, p_saga_ids, p_effects);\n        ', f.name, f.name),
            '' order by f.name
        ) filter (where f.result = 'void')
    into v_steps, v_effects
    from functions_of_plan(array(select s from saga_steps as s)) as f
    where to_regprocedure(f.signature) is not null;

    if v_steps is not null then
        execute format(
            $code$
            create or replace function call_step(
    p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[] default null
) returns outcome_group[]
language plpgsql
as $body$
begin
    case p_function
        %selse
            return call_step_by_name(p_function, p_warehouse_ids, p_saga_ids, p_answers);
    end case;
end
$body$
            $code$,
            v_steps
        );
    end if;
    if v_effects is not null then
        execute format(
            $code$
            create or replace function call_effect(p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_effects text[])
returns void
language plpgsql
as $body$
declare
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
begin
    case p_function
        %selse
            v_void := call_effect_by_name(p_function, p_warehouse_ids, p_saga_ids, p_effects);
    end case;
end
$body$
            $code$,
            v_effects
        );
    end if;
end
$$;
comment on function compile_calls() is
    'Internal: writes over call_step() and call_effect(), with a branch for each function that a plan names.';

-- Trigger: new plans have their functions called as the old ones are. Locks nothing.
create or replace function compile_new_calls() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    perform compile_calls();
    return null;
end
$$;
comment on function compile_new_calls() is 'Trigger: calls compile_calls() when a plan is declared.';

create or replace trigger saga_steps_compile_calls
after insert on saga_steps
for each statement execute function compile_new_calls();

do $$ begin perform compile_calls(); end $$;

-- What has become of a saga that comes alone when it leaves the fast path: it stands where
-- it would had the engine taken it there, with steps that began at these moments done; the
-- first when its lease did, if that is null. Locks nothing.
create or replace function leave_fast_path(p_group saga_group, p_begun timestamptz[]) returns saga_group
language plpgsql
as $$
declare
    v_begun timestamptz;
begin
    foreach v_begun in array p_begun loop
        p_group.attempts := p_group.attempts + (v_begun is not null)::integer;
        p_group := apply_outcome(p_group, (outcome_for_all('done', p_group.saga_ids))[1], v_begun);
    end loop;
    return p_group;
end
$$;
comment on function leave_fast_path(saga_group, timestamptz[]) is
    'Internal: hands a saga that came alone over to the engine, with the steps that it has taken.';

-- Whether a step came out as steps do: done, or an external one that has not been answered
-- yet waiting. Locks nothing.
create or replace function came_out_as_usual(
    p_step plan_step, p_settles boolean, p_outcomes outcome_group[], p_saga_ids uuid[]
) returns boolean
language sql immutable
return (
    came_out_alike(p_outcomes, p_saga_ids) and (p_outcomes[1]).error_codes is null
    and (p_outcomes[1]).result = case
        when p_step.settle_function is null or p_settles then 'done' else 'waiting'
    end::step_result
) is true;
comment on function came_out_as_usual(plan_step, boolean, outcome_group[], uuid[]) is
    'Internal: whether a step came out as steps do.';

-- Writes what became of a saga on the fast path: where it stands, the status of its order
-- and its events, one for each step. The arrays are aligned. Returns the external request.
-- Locks: the saga, its order.
create or replace function write_alone(
    p_group saga_group, p_names text[], p_begun timestamptz[], p_ended timestamptz[], p_outcome outcome_group
) returns json[]
language plpgsql
as $$
declare
    v_id constant uuid := p_group.saga_ids[1];
    v_warehouse_id constant uuid := p_group.warehouse_ids[1];
    v_step constant plan_step := p_group.plan[p_group.position];
    v_steps constant integer := cardinality(p_names);
    v_waits constant boolean := p_outcome.result = 'waiting';
    v_ready_at constant timestamptz := case
        when v_waits then p_ended[v_steps] + coalesce(p_outcome.wait_seconds[1], v_step.timeout_seconds) * interval '1 second'
    end;
begin
    with stand as (
        update sagas as s
        set
            status = case when v_waits then 'waiting' else 'completed' end::saga_status,
            position = p_group.position, attempts = v_waits::integer, lease_token = s.lease_token + v_steps,
            ready_at = v_ready_at, updated_at = p_ended[v_steps]
        where s.id = v_id and s.warehouse_id = v_warehouse_id
    ),
    told as (
        update orders as o
        set status = p_group.order_status, updated_at = p_ended[v_steps]
        where o.id = v_id and o.warehouse_id = v_warehouse_id and o.status <> p_group.order_status
    )
    insert into saga_events (
        saga_id, warehouse_id, event_type, step_name, attempt, next_attempt_at, started_at, created_at
    )
    select
        v_id, v_warehouse_id,
        case
            when e.name is null then 'saga_completed'
            when e.n = v_steps and v_waits then 'step_waiting'
            else 'step_completed'
        end::saga_event_type,
        e.name,
        case when e.name is not null then case when e.begun is null then p_group.attempts else 1 end end,
        case when e.n = v_steps then v_ready_at end,
        case
            when e.begun is null and e.name is not null
                then least(
                    p_group.were_ready_at[1] - (p_group.plan[p_group.position - v_steps + 1]).timeout_seconds * interval '1 second',
                    e.ended
                )
            else e.begun
        end,
        e.ended
    from unnest(
        case when v_waits then p_names else p_names || null end, p_begun,
        case when v_waits then p_ended else p_ended || p_ended[v_steps] end
    ) with ordinality as e (name, begun, ended, n);

    if p_outcome.requests[1] is null then
        return '{}';
    end if;
    return array[json_build_array(row(
        v_id, v_warehouse_id, p_group.lease_tokens[1] + v_steps, 1::smallint, v_step.timeout_seconds, v_step.step_name,
        p_outcome.requests[1]
    )::external_request)];
end
$$;
comment on function write_alone(saga_group, text[], timestamptz[], timestamptz[], outcome_group) is
    'Internal: writes what became of a saga on the fast path; returns its external request.';

-- Takes a saga that comes alone through its steps, from the first or from an answer, as
-- long as each comes out as steps do: done, or the external one waiting. run_groups() does
-- the same with it, and a test holds both to that; any other saga, and what comes out
-- otherwise, is left to run_groups().
-- Locks: as run_groups().
create or replace function run_alone(p_group saga_group) returns json[]
language plpgsql
as $$
declare
    v_settles boolean := p_group.answers is not null;
    v_position smallint := p_group.position;
    v_step plan_step;
    v_function text;
    v_begins timestamptz;  -- when the step at hand does; null for an answer
    v_outcomes outcome_group[];
    v_status order_status;
    v_names text[];
    v_begun timestamptz[] := '{}';
    v_ended timestamptz[];
    v_functions text[] := '{}';
    v_effects text[] := '{}';
    v_applied integer;
    v_requests json[];
begin
    loop
        v_step := p_group.plan[v_position];
        v_begins := case when not v_settles then clock() end;
        if not v_settles and (v_step.on_deadline is not null or v_step.paused_until > v_begins) then
            return run_groups(p_group.warehouse_ids, array[leave_fast_path(p_group, v_begun)]);
        end if;
        v_function := case when v_settles then v_step.settle_function else v_step.step_function end;
        v_outcomes := case
            when v_function is null then outcome_for_all('done', p_group.saga_ids)
            else call_step(v_function, p_group.warehouse_ids, p_group.saga_ids, case when v_settles then p_group.answers end)
        end;
        if not came_out_as_usual(v_step, v_settles, v_outcomes, p_group.saga_ids) then
            p_group := leave_fast_path(p_group, v_begun);
            p_group.attempts := p_group.attempts + (not v_settles)::integer;
            return run_groups(p_group.warehouse_ids, split_by_outcome(p_group, v_function, v_outcomes, v_begins));
        end if;
        v_names := v_names || v_step.step_name;
        v_begun := v_begun || v_begins;
        v_ended := v_ended || clock();
        exit when (v_outcomes[1]).result = 'waiting';
        v_status := coalesce(v_step.order_status_done, v_status);
        if v_step.effect_function is not null then
            v_functions := v_functions || v_step.effect_function;
            v_effects := v_effects || v_step.effect;
        end if;
        exit when v_position = cardinality(p_group.plan);
        v_position := v_position + 1;
        v_settles := false;
    end loop;
    p_group.position := v_position;
    p_group.order_status := case when (v_outcomes[1]).result = 'waiting' then coalesce(v_step.order_status_waiting, v_status) else v_status end;
    v_requests := write_alone(p_group, v_names, v_begun, v_ended, v_outcomes[1]);
    v_applied := apply_effects(
        p_group.warehouse_ids, v_functions, array_fill(p_group.saga_ids[1], array[cardinality(v_functions)]), v_effects
    );
    return v_requests;
end
$$;
comment on function run_alone(saga_group) is
    'Internal: takes a saga that comes alone through its steps while they come out as steps do; returns its external request.';
