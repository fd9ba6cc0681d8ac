-- Plans: how the engine reads them, and how it calls what they name.
--
-- A plan is rows of saga_steps; each saga type inserts its own, in a file of its
-- own. What a row names is called by functions that are written from the rows.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Trigger: writes the two functions that call what the plan names. A statement
-- put together at run time would be parsed and planned at every call, which is a
-- good part of what an order alone costs.
create or replace function compile_plan() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    -- Of another version it may return another type.
    drop function if exists call_step(text, uuid[], uuid[], jsonb[]);
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
    case p_function %s
    end case;
end
$body$;
comment on function call_step(text, uuid[], uuid[], jsonb[]) is
    'Internal, written by compile_plan(): the outcomes of a step function, or with answers of a settle function, those that are alike together.';
$code$,
            string_agg(
                format(
                    $branch$
        when %1$L then
            -- One alone needs no bringing together, whose preparation is half of what it costs.
            if cardinality(p_saga_ids) = 1 then
                return array(
                    select row(
                        o.result, o.wait_seconds, array[o.saga_id],
                        case when coalesce(o.error_code, o.message) is not null then array[o.error_code] end,
                        case when coalesce(o.error_code, o.message) is not null then array[o.message] end,
                        array[o.request], o.request is not null
                    )::outcome_group
                    from %2$I(p_warehouse_ids, p_saga_ids%3$s) as o
                );
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
                    from %2$I(p_warehouse_ids, p_saga_ids%3$s) as o
                    group by o.result, o.wait_seconds
                ) as g
            );$branch$,
                    c.name, c.name, case when c.settles then ', p_answers' end
                ),
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
    case p_function %s
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
    return null;
end
$$;
comment on function compile_plan() is 'Trigger: writes call_step() and call_effect(), which call the functions that the plan names.';

create or replace trigger saga_steps_are_compiled
after insert or delete or update of
step_function, settle_function, effect_function, undo_function, undo_settle_function, undo_effect_function
on saga_steps
for each statement execute function compile_plan();
