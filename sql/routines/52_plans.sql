-- Plans: the steps of each saga type, in versions.
--
--     select define_plan(
--         'order_fulfilment',
--         step('reserve_stock', p_function => 'reserve_stock', …, p_undo => 'release_stock'),
--         step('process_payment', p_function => 'request_payment', p_settle_function => 'record_payment', …),
--         step('fulfill_order', p_effect_function => 'move_goods', p_effect => 'fulfill')
--     );
--
-- A saga type is declared whole, by one call in its own file. The same plan again changes
-- nothing; another one is the next version, and new sagas begin with that. A saga carries
-- the version it began with and ends by it, forward and back. So a step may be inserted,
-- moved, renamed or taken out while sagas are under way, and a release may be rolled back,
-- which makes one more version.
--
-- The numbers of a step, in step_settings, are the operator's. They go by the step's name
-- and are the same for all versions; a plan only says what a new step begins with.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger saga_steps_refuse_change
before update or delete on saga_steps
for each row execute function refuse_change();

create or replace trigger saga_steps_refuse_truncate
before truncate on saga_steps
for each statement execute function refuse_change();

-- A step of a plan, for define_plan(). A step with a settle function is external: its
-- function says what is to be asked, and the settle function takes the answers. A step
-- that says what happens on its deadline waits for signal_saga(); one that waits again goes
-- back to such a step when it is refused. Locks nothing.
create or replace function step(
    p_name text,
    p_function text default null,
    p_settle_function text default null,
    p_effect_function text default null,
    p_effect text default null,
    p_undo text default null,
    p_undo_function text default null,
    p_undo_settle_function text default null,
    p_undo_effect_function text default null,
    p_undo_effect text default null,
    p_order_status_waiting order_status default null,
    p_order_status_done order_status default null,
    p_order_status_refused order_status default null,
    p_forward_only boolean default false,
    p_on_deadline deadline_action default null,
    p_give_up_seconds numeric default 300,
    p_stuck_seconds numeric default 14400,
    p_backoff_seconds numeric default 1,
    p_timeout_seconds numeric default 30,
    p_wait_again boolean default false
) returns plan_step
language sql immutable
set search_path = darkpearl, pg_temp
return row(
    null, p_name, p_function, p_settle_function, p_effect_function, p_effect,
    p_undo, p_undo_function, p_undo_settle_function, p_undo_effect_function, p_undo_effect,
    p_order_status_waiting, p_order_status_done, p_order_status_refused, p_forward_only, p_on_deadline,
    p_wait_again, p_give_up_seconds, p_stuck_seconds, p_backoff_seconds, p_timeout_seconds, null
)::plan_step;
comment on function step(
    text, text, text, text, text, text, text, text, text, text,
    order_status, order_status, order_status, boolean, deadline_action, numeric, numeric, numeric, numeric, boolean
) is 'A step of a plan, for define_plan().';

-- The functions that a plan names, each with the signature that it must have.
-- Locks nothing.
create or replace function functions_of_plan(p_steps saga_steps[])
returns table (name text, signature text, result text)
language sql immutable
set search_path = darkpearl, pg_temp
begin atomic
    select distinct f.name, format('%I(%s)', f.name, f.arguments), f.result
    from unnest(p_steps) as s
    cross join lateral (
        values
        (s.step_function, 'uuid[], uuid[]', 'outcome_group[]'),
        (s.undo_function, 'uuid[], uuid[]', 'outcome_group[]'),
        (s.settle_function, 'uuid[], uuid[], jsonb[]', 'outcome_group[]'),
        (s.undo_settle_function, 'uuid[], uuid[], jsonb[]', 'outcome_group[]'),
        (s.effect_function, 'uuid[], uuid[], text[]', 'void'),
        (s.undo_effect_function, 'uuid[], uuid[], text[]', 'void')
    ) as f (name, arguments, result)
    where f.name is not null;
end;
comment on function functions_of_plan(saga_steps[]) is
    'Internal: the functions that steps name, with the signatures and results that the engine calls them by.';

-- Raises DP022 for the first function that a plan names and that isn't there. Locks nothing.
create or replace function refuse_unknown_functions(p_steps saga_steps[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_missing record;
begin
    select f.* into v_missing
    from functions_of_plan(p_steps) as f
    left join pg_proc as p on p.oid = to_regprocedure(f.signature)
    where p.prorettype is distinct from f.result::regtype
    order by f.signature
    limit 1;
    if found then
        perform refuse(
            'DP022', 'plan names a function that is not there',
            format('The plan of %s calls %s, which must return %s.', p_steps[1].saga_type, v_missing.signature, v_missing.result),
            'Create the function in schema darkpearl first, or mend its arguments or its result.'
        );
    end if;
end
$$;
comment on function refuse_unknown_functions(saga_steps[]) is
    'Internal: refuses a plan whose functions are not there with the signatures that the engine calls.';

-- Raises DP022 when a plan has a name twice: events and signals tell steps and undos by
-- their names, so each must stand for one of them. Locks nothing.
create or replace function refuse_repeated_names(p_steps saga_steps[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_repeated text;
begin
    select n.name into v_repeated
    from unnest(p_steps) as s
    cross join lateral (values (s.step_name), (s.undo_name)) as n (name)
    where n.name is not null
    group by n.name
    having count(*) > 1
    order by n.name
    limit 1;
    if found then
        perform refuse(
            'DP022', 'plan has a name twice',
            format('The plan of %s has more than one step or undo called %s.', p_steps[1].saga_type, v_repeated),
            'Give each step and each undo a name of its own; they may share functions.'
        );
    end if;
end
$$;
comment on function refuse_repeated_names(saga_steps[]) is
    'Internal: refuses a plan in which a name stands for more than one step or undo.';

-- Raises DP022 when a plan has a step that waits again, and the one before it doesn't wait.
-- Locks nothing.
create or replace function refuse_waits_for_nobody(p_steps saga_steps[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_step saga_steps;
begin
    foreach v_step in array p_steps loop
        if v_step.wait_again and (p_steps[v_step.position - 1]).on_deadline is null then
            perform refuse(
                'DP022', 'plan waits where nobody is waited for',
                format('In the plan of %s, step %s waits again, and the one before it does not wait.', v_step.saga_type, v_step.step_name),
                'Put a step that has p_on_deadline right before it.'
            );
        end if;
    end loop;
end
$$;
comment on function refuse_waits_for_nobody(saga_steps[]) is
    'Internal: refuses a plan in which a step goes back to a wait that is none.';

-- Declares the plan of a saga type. Returns its version: a new one when the plan differs
-- from the newest, which new sagas begin with from here on.
-- Locks: saga_steps, against another declaration.
-- Raises: DP022 when a function is not there, a name is there twice, a step waits again where
-- none waits before it, or no step is given; the CHECKs of saga_steps.
create or replace function define_plan(p_saga_type text, variadic p_steps plan_step[]) returns smallint
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_newest smallint;
    v_steps saga_steps[];
begin
    lock table saga_steps in share row exclusive mode;
    v_newest := coalesce(newest_plan(p_saga_type), 0);
    v_steps := array(
        select row(
            p_saga_type, v_newest, s.ordinality, s.step_name, s.step_function, s.settle_function, s.effect_function, s.effect,
            s.undo_name, s.undo_function, s.undo_settle_function, s.undo_effect_function, s.undo_effect,
            s.order_status_waiting, s.order_status_done, s.order_status_refused, s.forward_only, s.on_deadline, s.wait_again
        )::saga_steps
        from unnest(p_steps) with ordinality as s
        order by s.ordinality
    );
    if cardinality(v_steps) = 0 then
        perform refuse('DP022', 'plan has no steps', format('The plan of %s is empty.', p_saga_type), 'Give at least one step(…).');
    end if;
    perform refuse_unknown_functions(v_steps);
    perform refuse_repeated_names(v_steps);
    perform refuse_waits_for_nobody(v_steps);

    insert into step_settings (saga_type, step_name, give_up_seconds, stuck_seconds, backoff_seconds, timeout_seconds)
    select p_saga_type, s.step_name, s.give_up_seconds, s.stuck_seconds, s.backoff_seconds, s.timeout_seconds
    from unnest(p_steps) as s
    on conflict (saga_type, step_name) do nothing;

    if v_steps = array(
        select s from saga_steps as s where s.saga_type = p_saga_type and s.plan_version = v_newest order by s.position
    ) then
        return v_newest;
    end if;
    insert into saga_steps
    select (jsonb_populate_record(s, jsonb_build_object('plan_version', v_newest + 1))).*
    from unnest(v_steps) as s;
    return v_newest + 1;
end
$$;
comment on function define_plan(text, plan_step[]) is
    'Declares the plan of a saga type, step by step; another plan than the newest is its next version. Returns the version.';

-- The version that new sagas of a type begin with; null when none is declared. Locks nothing.
create or replace function newest_plan(p_saga_type text) returns smallint
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
begin
    return (select max(s.plan_version) from saga_steps as s where s.saga_type = p_saga_type);
end
$$;
comment on function newest_plan(text) is 'The version of the plan that new sagas of a type begin with.';

-- A plan as a pass reads it: the steps of a version in order, with their settings.
-- Locks nothing.
create or replace function plan_of(p_saga_type text, p_version smallint) returns plan_step[]
language plpgsql stable
as $$
begin
    return array(
        select row(
            s.position, s.step_name, s.step_function, s.settle_function, s.effect_function, s.effect,
            s.undo_name, s.undo_function, s.undo_settle_function, s.undo_effect_function, s.undo_effect,
            s.order_status_waiting, s.order_status_done, s.order_status_refused, s.forward_only, s.on_deadline, s.wait_again,
            t.give_up_seconds, t.stuck_seconds, t.backoff_seconds, t.timeout_seconds, t.paused_until
        )::plan_step
        from saga_steps as s
        left join step_settings as t on t.saga_type = s.saga_type and t.step_name = s.step_name
        where s.saga_type = p_saga_type and s.plan_version = p_version
        order by s.position
    );
end
$$;
comment on function plan_of(text, smallint) is 'Internal: the steps of a version of a plan in order, with their settings.';

-- The step at which a saga stands; null when its plan has none there. Locks nothing.
create or replace function step_of(p_saga sagas) returns plan_step
language sql stable
set search_path = darkpearl, pg_temp
return (plan_of(p_saga.saga_type, p_saga.plan_version))[p_saga.position];
comment on function step_of(sagas) is 'Internal: the step of its plan at which a saga stands.';

-- The functions that must stay, for sagas that have not ended follow plans that name them:
-- those that are stuck count, and those of warehouses that have left don't. Each with its arguments:
-- another of its name is no stand-in. `db migrate` asks before it removes a function. Locks nothing.
create or replace function functions_in_use()
returns table (function regprocedure, saga_type text, plan_version smallint, sagas bigint)
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select distinct to_regprocedure(f.signature), p.saga_type, p.plan_version, p.sagas
    from (
        select s.saga_type, s.plan_version, count(*) as sagas
        from sagas as s
        where (s.ready_at is not null or s.status = 'stuck') and not array[s.warehouse_id] <@ (select left_warehouses())
        group by s.saga_type, s.plan_version
    ) as p
    cross join lateral functions_of_plan(array(
        select s from saga_steps as s where s.saga_type = p.saga_type and s.plan_version = p.plan_version
    )) as f;
end;
comment on function functions_in_use() is
    'The functions that sagas which have not ended still need, with how many of which version of a plan.';

-- Whether a step, or with p_backwards its undo, asks somebody outside. Locks nothing.
create or replace function is_external(p_step plan_step, p_backwards boolean) returns boolean
language sql immutable
return case
    when p_backwards then p_step.undo_settle_function is not null
    else p_step.settle_function is not null and p_step.on_deadline is null
end;
comment on function is_external(plan_step, boolean) is 'Internal: whether a step, or its undo, asks somebody outside.';

-- The name of a step, or with p_backwards of its undo. Locks nothing.
create or replace function name_of(p_step plan_step, p_backwards boolean) returns text
language sql immutable
return case when p_backwards then p_step.undo_name else p_step.step_name end;
comment on function name_of(plan_step, boolean) is 'Internal: the name of a step, or of its undo.';
