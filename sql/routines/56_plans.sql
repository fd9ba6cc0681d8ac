-- Plans: how the engine reads them, and how it calls what they name.
--
-- A plan is rows of saga_steps; each saga type inserts its own, in a file of its
-- own. What a row names is called by functions that are written from the rows.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- What all sagas that are named came out of a function with, each with its request
-- if there are requests. Without a SET clause it is inlined. Locks nothing.
create or replace function came_out(p_result step_result, p_saga_ids uuid[], p_requests json[] default null)
returns outcome_group
language sql immutable
return row(p_result, null, p_saga_ids, null, null, p_requests, p_requests is not null)::outcome_group;
comment on function came_out(step_result, uuid[], json[]) is
    'For step functions: one outcome for all sagas, with the request of each. The ids are in order.';

-- Whether all sagas that are named came out with this result, and nobody else, without
-- anything to say about it. Inlined as well. Locks nothing.
create or replace function all_came_out(p_result step_result, p_outcomes outcome_group[], p_saga_ids uuid[])
returns boolean
language sql immutable
return (
    cardinality(p_outcomes) = 1 and (p_outcomes[1]).result = p_result
    and (p_outcomes[1]).saga_ids = p_saga_ids and (p_outcomes[1]).error_codes is null
) is true;
comment on function all_came_out(step_result, outcome_group[], uuid[]) is
    'Internal: whether these outcomes are one, of these sagas, and nothing more.';

-- Brings outcomes that are alike together. Locks nothing.
create or replace function alike(p_outcomes step_outcome[]) returns outcome_group[]
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
declare
    v_one constant step_outcome := p_outcomes[1];
begin
    if cardinality(p_outcomes) = 1 then
        -- The preparation of what follows is half of what it would cost.
        return array[
            row(
                v_one.result, v_one.wait_seconds, array[v_one.saga_id],
                case when coalesce(v_one.error_code, v_one.message) is not null then array[v_one.error_code] end,
                case when coalesce(v_one.error_code, v_one.message) is not null then array[v_one.message] end,
                array[v_one.request], v_one.request is not null
            )::outcome_group
        ];
    end if;
    return (
        select array_agg(
            row(
                g.result, g.wait_seconds, g.saga_ids,
                case when g.errors > 0 then g.error_codes end, case when g.errors > 0 then g.messages end,
                g.requests, g.asks > 0
            )::outcome_group
        )
        from (
            select
                o.result, o.wait_seconds, array_agg(o.saga_id order by o.saga_id) as saga_ids,
                array_agg(o.error_code order by o.saga_id) as error_codes,
                array_agg(o.message order by o.saga_id) as messages,
                array_agg(o.request order by o.saga_id) as requests,
                count(coalesce(o.error_code, o.message)) as errors,
                count(o.request) as asks
            from unnest(p_outcomes) as o
            group by o.result, o.wait_seconds
        ) as g
    );
end
$$;
comment on function alike(step_outcome[]) is 'For step functions: the same outcomes, those that are alike together.';

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

-- A branch of run_straight(): the way that most sagas go from the first step, or from an
-- external one with its answers, on to the next external step or the end. Null where
-- the plan has a gap. Locks nothing.
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
    v_code text := '';
    v_transitions text[];
    v_effects text[];
    v_effect_steps text[];
begin
    for v_step in
        select s.* from saga_steps as s
        where s.saga_type = p_saga_type and s.position >= p_position
        order by s.position
    loop
        if v_step.position <> p_position + v_n then
            return null;  -- Of a plan with a gap, run_pass() says where it is.
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
            v_code := e'\n            v_at[1] := clock();';
        end if;
        v_begun := v_begun || case when v_is_answered then 'null' else format('v_at[%s]', v_clocks) end;
        if v_function is not null then
            v_clocks := v_clocks + 1;
            v_code := v_code || format(
                $code$
            v_outcomes := %s;
            if not all_came_out(%L, v_outcomes, p_group.saga_ids) then
                astray := went_astray(p_group, %L, v_outcomes, array[%s]::timestamptz[]);
                return;
            end if;
            v_at[%s] := clock();$code$,
                call_of(v_function, v_is_answered, 'p_group.saga_ids'),
                case when v_is_asked then 'waiting' else 'done' end,
                v_function, array_to_string(v_begun, ', '), v_clocks
            );
        end if;
        v_transitions := v_transitions || format(
            'transition(%L, v_at[%s], %L, %s, %s)',
            case when v_is_asked then 'step_waiting' else 'step_completed' end, v_clocks, v_step.step_name,
            case when v_is_answered then 'p_group.attempts' else '1::smallint' end,
            case
                when v_is_answered
                    then format('p_lease_seconds => (p_group.plan[%s]).timeout_seconds', v_step.position)
                else format('p_started_at => %s', v_begun[v_n]) || case when v_is_asked then ', p_goes_again => true' else '' end
            end
        );
        if v_step.effect_function is not null then
            v_effects := v_effects || v_step.effect_function;
            v_effect_steps := v_effect_steps || v_step.step_name;
        end if;
        exit when v_is_asked;
    end loop;
    if not v_is_asked then
        v_transitions := v_transitions || format('transition(''saga_completed'', v_at[%s])', v_clocks);
    end if;

    -- The group is made anew at once: each assignment to a field of it would cost as much.
    return format(
        $code$
        when p_group.saga_type = %L and p_group.position = %s and %s
            and not p_group.parked and not p_group.cancel_requested%s
        then$code$,
        p_saga_type, p_position,
        case
            when p_answered then 'p_group.status = ''waiting'' and p_answers is not null'
            else 'p_group.status = ''running'' and p_group.attempts = 0 and p_answers is null'
        end,
        case
            when v_is_asked
                then format(e'\n            and coalesce((p_group.plan[%s]).paused_until <= clock(), true)', v_step.position)
        end
    )
    || v_code
    || format(
        $code$
            requests := write_group(
                row(
                    p_group.saga_type, %L, %s, %s, false, false, %s,
                    p_group.saga_ids, p_group.warehouse_ids, p_group.lease_tokens, p_group.were_ready_at,
                    p_group.moves + %s, %s, p_group.spread_seconds, p_group.plan,
                    p_group.transitions || array[
                        %s
                    ],
                    %s
                )::saga_group,
                p_warehouse_ids
            );$code$,
        case when v_is_asked then 'waiting' else 'completed' end, v_step.position, v_is_asked::integer,
        coalesce(quote_literal(v_order_status), 'p_group.order_status'), v_n,
        case
            when v_is_asked then format(
                'v_at[%s] + coalesce((v_outcomes[1]).wait_seconds, (p_group.plan[%s]).timeout_seconds) * interval ''1 second''',
                v_clocks, v_step.position
            )
            else 'null'
        end,
        array_to_string(v_transitions, e',\n                        '),
        case when v_is_asked then '(v_outcomes[1]).requests' else 'null' end
    )
    || coalesce(
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
        ''
    )
    || $code$
            return;$code$;
end
$$;
comment on function straight_way(text, smallint, boolean) is 'Internal, for compile_plan(): a branch of run_straight().';

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
-- Takes sagas that stand at the same place as far as they go without an answer from
-- outside, while each step comes out as it does as a rule: done, or an external one
-- waiting. Writes what became of them, and lets the steps have their effect.
-- p_answers: those to their requests; null for none.
-- requests: what is to be asked, JSON arrays. astray: where a step comes out otherwise,
-- or no straight way begins, what is left for run_pass() to go on with; null for nothing.
-- Locks: what the functions lock, orders, then what the effects lock.
create or replace function run_straight(
    p_group saga_group, p_warehouse_ids uuid[], p_answers jsonb[], out requests json[], out astray saga_group[]
)
language plpgsql
as $body$
declare
    v_at timestamptz[];  -- When each step began; the last, when the last one ended.
    v_outcomes outcome_group[];
    v_void text;  -- An assignment does without the executor, which PERFORM starts.
begin
    case%s
        else null;
    end case;
    astray := case
        when p_answers is null then array[p_group] else settle_group(p_group, p_warehouse_ids, p_answers)
    end;
end
$body$;
comment on function run_straight(saga_group, uuid[], jsonb[]) is
    'Internal, written by compile_plan(): takes sagas along the straight way of their plan.';
$code$,
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
    'Trigger: writes call_step(), call_effect() and run_straight(), which call the functions that the plans name.';

create or replace trigger saga_steps_are_compiled
after insert or delete or update of
saga_type, position, step_name, step_function, settle_function, effect_function,
undo_function, undo_settle_function, undo_effect_function, order_status_waiting, order_status_done
on saga_steps
for each statement execute function compile_plan();
