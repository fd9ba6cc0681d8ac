-- Plans: how the engine reads them, and how it calls what they name.
--
-- A plan is rows of saga_steps; each saga type inserts its own, in a file of its
-- own. What a row names is called by functions that are written from the rows.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- A step of a plan, and whether it is the last. Raises P0002 when there is none.
-- Locks nothing.
create or replace function step_at(
    p_saga_type text, p_position smallint, out step saga_steps, out is_last boolean
) returns record
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_at record;
begin
    select
        s as step,
        not exists (
            select from saga_steps as n where n.saga_type = p_saga_type and n.position > p_position
        ) as is_last
    into strict v_at
    from saga_steps as s
    where s.saga_type = p_saga_type and s.position = p_position;
    step := v_at.step;
    is_last := v_at.is_last;
end
$$;
comment on function step_at(text, smallint) is 'Internal: a step of a plan, and whether it is the last.';

-- Trigger: writes the two functions that call what the plan names. A statement
-- put together at run time would be parsed and planned at every call, which is a
-- good part of what an order alone costs.
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
) returns setof step_outcome
language plpgsql
set search_path = darkpearl, pg_temp
as $body$
begin
    case p_function %s
    end case;
end
$body$;
comment on function call_step(text, uuid[], uuid[], jsonb[]) is
    'Internal, written by compile_plan(): the outcomes of a step function, or with answers of a settle function.';
$code$,
            string_agg(
                format(
                    e'\n        when %L then return query select * from %I(p_warehouse_ids, p_saga_ids%s);',
                    c.name, c.name, case when c.settles then ', p_answers' end
                ),
                '' order by c.name
            )
        )
        from (
            select s.step_function as name, false as settles from saga_steps as s
            union
            select s.undo_function, false from saga_steps as s
            union
            select s.settle_function, true from saga_steps as s
            union
            select s.undo_settle_function, true from saga_steps as s
        ) as c
        where c.name is not null
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
begin
    case p_function %s
    end case;
end
$body$;
comment on function call_effect(text, uuid[], uuid[], text[]) is
    'Internal, written by compile_plan(): lets steps that are done have their effect.';
$code$,
            string_agg(
                format(e'\n        when %L then perform %I(p_warehouse_ids, p_saga_ids, p_step_names);', c.name, c.name),
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
