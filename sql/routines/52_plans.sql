-- Plans: how the engine reads them, and how it calls what they name.
--
-- A plan is rows of saga_steps; each saga type inserts its own, in a file of its
-- own. What a row names is called by functions that are written from the rows.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- How a function that a plan names is called for the sagas that the expression
-- p_saga_ids gives. What returns single outcomes has them brought together. Locks nothing.
create or replace function call_of(p_function text, p_settles boolean, p_saga_ids text) returns text
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_call constant text := format(
        '%I(p_warehouse_ids, %s%s)', p_function, p_saga_ids, case when p_settles then ', p_answers' else '' end
    );
begin
    if exists (
        select from pg_proc as p
        where p.oid = to_regprocedure(format('%I(uuid[], uuid[]%s)', p_function, case when p_settles then ', jsonb[]' else '' end))
            and p.prorettype = 'outcome_group[]'::regtype
    ) then
        return v_call;
    end if;
    return format('alike(array(select o from %s as o))', v_call);
end
$$;
comment on function call_of(text, boolean, text) is 'Internal, for compile_plan(): the call of a step or settle function.';

-- A branch of run_group(): the way that most sagas go from the first step, or from an
-- external one with its answers, on to the next external step or the end, and all that
-- is to be written about it. Null where the plan has a gap. Locks nothing.
create or replace function straight_way(p_saga_type text, p_position smallint, p_answered boolean) returns text
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_step saga_steps;
    v_function text;
    v_is_answered boolean;
    v_is_asked boolean;
    v_n integer := 0;
    v_clocks integer := 0;  -- how often the time has been taken
    v_begun text[];  -- expressions of when each step began
    v_order_status order_status;
    v_steps text := '';
    v_events text[];
    v_effects text[];
    v_effect_steps text[];
begin
    for v_step in
        select s.* from saga_steps as s
        where s.saga_type = p_saga_type and s.position >= p_position
        order by s.position
    loop
        if v_step.position <> p_position + v_n then
            return null;  -- Of a plan with a gap, run_groups() says where it is.
        end if;
        v_n := v_n + 1;
        v_is_answered := p_answered and v_n = 1;
        v_is_asked := v_step.settle_function is not null and not v_is_answered;
        v_function := case when v_is_answered then v_step.settle_function else v_step.step_function end;
        v_order_status := coalesce(
            case when v_is_asked then v_step.order_status_waiting else v_step.order_status_done end, v_order_status
        );
        if v_n = 1 and not v_is_answered then
            v_clocks := 1;
            v_steps := e'\n            v_at_1 := clock();';
        end if;
        v_begun := v_begun || case when v_is_answered then 'null' else format('v_at_%s', v_clocks) end;
        if v_function is not null then
            v_clocks := v_clocks + 1;
            v_steps := v_steps || format(
                $code$
            v_outcomes := %s;
            if not all_came_out(%L, v_outcomes, p_group.saga_ids) then
                return run_groups(p_warehouse_ids, went_astray(p_group, %L, v_outcomes, array[%s]::timestamptz[]));
            end if;
            v_at_%s := clock();$code$,
                call_of(v_function, v_is_answered, 'p_group.saga_ids'),
                case when v_is_asked then 'waiting' else 'done' end,
                v_function, array_to_string(v_begun, ', '), v_clocks
            );
        end if;
        v_events := v_events || format(
            '(%L::saga_event_type, %L, %s::smallint, %s::timestamptz, %s::timestamptz, v_at_%s)',
            case when v_is_asked then 'step_waiting' else 'step_completed' end, v_step.step_name,
            case when v_is_answered then 'p_group.attempts' else '1' end,
            case when v_is_asked then 'v_ready_at' else 'null' end, v_begun[v_n], v_clocks
        );
        if v_step.effect_function is not null then
            v_effects := v_effects || v_step.effect_function;
            v_effect_steps := v_effect_steps || v_step.step_name;
        end if;
        exit when v_is_asked;
    end loop;
    if not v_is_asked then
        v_events := v_events || format('(''saga_completed'', null, null, null, null, v_at_%s)', v_clocks);
    end if;

    -- To a group that stands here nothing has happened in this pass yet.
    return format(
        $code$
        when p_group.saga_type = %1$L and p_group.position = %2$s and %3$s
            and not p_group.parked and not p_group.cancel_requested%4$s
        then%5$s
            with stand as (
                update sagas as s
                set
                    status = %6$L, position = %7$s, attempts = %8$s, lease_token = s.lease_token + %9$s,
                    ready_at = %10$s, updated_at = v_at_%11$s
                where s.id = any(p_group.saga_ids) and s.warehouse_id = any(p_warehouse_ids)
            )%12$s
            insert into saga_events (
                saga_id, warehouse_id, event_type, step_name, attempt, next_attempt_at, started_at, created_at
            )
            select
                s.saga_id, s.warehouse_id, e.event_type, e.step_name, e.attempt, e.next_attempt_at, %13$s, e.created_at
            from unnest(p_group.saga_ids, p_group.warehouse_ids, p_group.were_ready_at)
                as s (saga_id, warehouse_id, was_ready_at)
            cross join (
                values
                %14$s
            ) as e (event_type, step_name, attempt, next_attempt_at, started_at, created_at);%15$s%16$s$code$,
        p_saga_type, p_position,
        case
            when p_answered then 'p_group.status = ''waiting'' and p_answers is not null'
            else 'p_group.status = ''running'' and p_group.attempts = 0 and p_answers is null'
        end,
        case
            when v_is_asked
                then format(e'\n            and coalesce((p_group.plan[%s]).paused_until <= clock(), true)', v_step.position)
        end,
        v_steps || case
            when v_is_asked then format(
                $code$
            v_ready_at := v_at_%s
                + coalesce((v_outcomes[1]).wait_seconds, (p_group.plan[%s]).timeout_seconds) * interval '1 second';$code$,
                v_clocks, v_step.position
            )
            else ''
        end,
        case when v_is_asked then 'waiting' else 'completed' end, v_step.position, v_is_asked::integer, v_n,
        case when v_is_asked then 'v_ready_at' else 'null' end, v_clocks,
        case
            when v_order_status is not null then format(
                $code$,
            told as (
                update orders as o
                set status = %1$L, updated_at = v_at_%2$s
                where o.id = any(p_group.saga_ids) and o.warehouse_id = any(p_warehouse_ids) and o.status <> %1$L
            )$code$,
                v_order_status, v_clocks
            )
        end,
        -- What is answered began with its lease. A pending answer may have put the end of that off.
        case
            when p_answered then format(
                $code$
                case
                    when e.started_at is null and e.step_name is not null
                        then least(s.was_ready_at - (p_group.plan[%s]).timeout_seconds * interval '1 second', e.created_at)
                    else e.started_at
                end$code$,
                p_position
            )
            else 'e.started_at'
        end,
        array_to_string(v_events, e',\n                '),
        (
            select string_agg(e.code, '' order by e.code)
            from (
                select format(
                    $code$
            v_void := %I(p_warehouse_ids, %s, %s);$code$,
                    f.name,
                    string_agg('p_group.saga_ids', ' || '),
                    string_agg(format('array_fill(%L::text, array[cardinality(p_group.saga_ids)])', f.step_name), ' || ')
                ) as code
                from unnest(v_effects, v_effect_steps) as f (name, step_name)
                group by f.name
            ) as e
        ),
        -- One alone needs no statement, whose start and end are most of what it would cost.
        case
            when v_is_asked then format(
                $code$
            if cardinality(p_group.saga_ids) = 1 and (v_outcomes[1]).asks then
                return array[json_build_array(row(
                    p_group.saga_ids[1], p_group.warehouse_ids[1], p_group.lease_tokens[1] + %1$s, 1::smallint,
                    (p_group.plan[%2$s]).timeout_seconds, %3$L, (v_outcomes[1]).requests[1]
                )::external_request)];
            end if;
            return requests_to_make(
                p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, %1$s, 1::smallint,
                (p_group.plan[%2$s]).timeout_seconds, %3$L, (v_outcomes[1]).requests
            );$code$,
                v_n, v_step.position, v_step.step_name
            )
            else e'\n            return \'{}\';'
        end
    );
end
$$;
comment on function straight_way(text, smallint, boolean) is 'Internal, for compile_plan(): a branch of run_group().';

-- Trigger: writes the functions that call what the plans name. A statement put together
-- at run time would be parsed and planned at every call, and to find out at every step
-- where a saga goes is a tenth of what an order alone costs.
create or replace function compile_plan() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    execute (
        select format($code$
-- Runs a step function, or with answers a settle function. Locks what that locks.
create or replace function call_step(
    p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[]
) returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
as $body$
begin
    case p_function%s
    end case;
end
$body$;
comment on function call_step(text, uuid[], uuid[], jsonb[]) is
    'Internal, written by compile_plan(): the outcomes of a step function, or with answers of a settle function, those that are alike together.';
$code$,
            string_agg(
                format(e'\n        when %L then return %s;', c.name, call_of(c.name, c.settles, 'p_saga_ids')),
                '' order by c.backwards, c.saga_type, c.position, c.name
            )
        )
        from (
            -- What most sagas call is looked for first.
            select
                f.name, f.settles,
                bool_and(f.backwards) as backwards, min(s.saga_type) as saga_type, min(s.position) as position
            from saga_steps as s
            cross join lateral (
                values
                (s.step_function, false, false), (s.settle_function, true, false),
                (s.undo_function, false, true), (s.undo_settle_function, true, true)
            ) as f (name, settles, backwards)
            where f.name is not null
            group by f.name, f.settles
        ) as c
    );
    execute (
        select format($code$
-- Runs an effect function. Locks what that locks.
create or replace function call_effect(
    p_function text, p_warehouse_ids uuid[], p_saga_ids uuid[], p_step_names text[]
) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $body$
declare
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
begin
    case p_function%s
    end case;
end
$body$;
comment on function call_effect(text, uuid[], uuid[], text[]) is
    'Internal, written by compile_plan(): lets steps that are done have their effect.';
$code$,
            string_agg(
                format(e'\n        when %L then v_void := %I(p_warehouse_ids, p_saga_ids, p_step_names);', c.name, c.name),
                '' order by c.name
            )
        )
        from (
            select s.effect_function as name from saga_steps as s
            union
            select s.undo_effect_function from saga_steps as s
        ) as c
        where c.name is not null
    );
    execute (
        select format($code$
-- Takes a group as far as it goes without an answer from outside: on the straight way of
-- its plan while each step comes out as it does as a rule, done or an external one
-- waiting; step by step, by run_groups(), where one comes out otherwise, or no straight
-- way begins. Writes what became of it, and lets the steps have their effect.
-- p_answers: those to the group's requests; null for none.
-- Returns the requests to make, JSON arrays.
-- Locks: what the step functions lock, sagas, orders, then what the effects lock.
create or replace function run_group(
    p_group saga_group, p_warehouse_ids uuid[], p_answers jsonb[] default null
) returns json[]
language plpgsql
as $body$
declare
    -- When each step began; the last, when the last one ended.%s
    v_ready_at timestamptz;
    v_outcomes outcome_group[];
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
begin
    case%s
        else null;
    end case;
    return run_groups(
        p_warehouse_ids,
        case when p_answers is null then array[p_group] else settle_group(p_group, p_warehouse_ids, p_answers) end
    );
end
$body$;
comment on function run_group(saga_group, uuid[], jsonb[]) is
    'Internal, written by compile_plan(): takes sagas that stand at one place as far as they go; returns the external requests.';
$code$,
            (
                select string_agg(format(e'\n    v_at_%s timestamptz;', n), '' order by n)
                from generate_series(1, (select max(s.position) + 1 from saga_steps as s)) as n
            ),
            string_agg(straight_way(w.saga_type, w.position, w.answered), '' order by w.saga_type, w.position, w.answered)
        )
        from (
            select s.saga_type, s.position, false as answered from saga_steps as s where s.position = 1
            union all
            select s.saga_type, s.position, true from saga_steps as s where s.settle_function is not null
        ) as w
    );
    return null;
end
$$;
comment on function compile_plan() is
    'Trigger: writes call_step(), call_effect() and run_group(), which call the functions that the plans name.';

create or replace trigger saga_steps_are_compiled
after insert or delete or update of
saga_type, position, step_name, step_function, settle_function, effect_function,
undo_function, undo_settle_function, undo_effect_function, order_status_waiting, order_status_done
on saga_steps
for each statement execute function compile_plan();

-- The step at which a saga stands; of nulls when its plan has none there.
-- Locks nothing.
create or replace function step_of(p_saga sagas) returns saga_steps
language sql stable
set search_path = darkpearl, pg_temp
return (
    select s from saga_steps as s
    where s.saga_type = p_saga.saga_type and s.position = p_saga.position
);
comment on function step_of(sagas) is 'Internal: the step of the plan at which a saga stands.';
