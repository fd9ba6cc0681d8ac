-- Outcomes: what authors of step functions return, and what brings them together.

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
