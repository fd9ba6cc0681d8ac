-- Outcomes: what authors of step functions return.
--
-- A step function is given sagas and answers with groups: sagas that came out of it alike,
-- each group with one result. Most steps come out the same for all, and say so in one line;
-- others say what became of each saga, and have that brought together.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- One outcome for all sagas that are named, in order, each with its request if there are
-- any. Without a SET clause it is inlined. Locks nothing.
create or replace function outcome_for_all(p_result step_result, p_saga_ids uuid[], p_requests json[] default null)
returns outcome_group[]
language sql immutable
return array[row(p_result, null, p_saga_ids, null, null, p_requests)::outcome_group];
comment on function outcome_for_all(step_result, uuid[], json[]) is
    'For step functions: one outcome for all sagas, with the request of each. The ids are in order.';

-- Single outcomes, those that are alike together. Locks nothing.
create or replace function group_outcomes(p_outcomes step_outcome[]) returns outcome_group[]
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
begin
    return (
        select array_agg(
            row(
                g.result, case when g.waits > 0 then g.wait_seconds end, g.saga_ids,
                case when g.errors > 0 then g.error_codes end, case when g.errors > 0 then g.messages end,
                case when g.asking > 0 then g.requests end
            )::outcome_group
        )
        from (
            select
                o.result, array_agg(o.saga_id order by o.saga_id) as saga_ids,
                array_agg(o.wait_seconds order by o.saga_id) as wait_seconds,
                array_agg(o.error_code order by o.saga_id) as error_codes,
                array_agg(o.message order by o.saga_id) as messages,
                array_agg(o.request order by o.saga_id) as requests,
                count(coalesce(o.error_code, o.message)) as errors,
                count(o.wait_seconds) as waits, count(o.request) as asking
            from unnest(p_outcomes) as o
            group by o.result
        ) as g
    );
end
$$;
comment on function group_outcomes(step_outcome[]) is
    'For step functions: brings what is said of single sagas together, those that came out alike in one group.';

-- Whether all sagas that are named came out alike, and no others did: one group. Without a
-- SET clause it is inlined. Locks nothing.
create or replace function came_out_alike(p_outcomes outcome_group[], p_saga_ids uuid[]) returns boolean
language sql immutable
return (cardinality(p_outcomes) = 1 and (p_outcomes[1]).saga_ids = p_saga_ids) is true;
comment on function came_out_alike(outcome_group[], uuid[]) is
    'Internal: whether these outcomes are one, of these sagas.';

-- What the answers of an external service mean for the sagas that asked: "approved" is
-- done, "declined" refused, "pending" waited for, all else a try that failed.
-- p_what names what was refused, p_declined_code is its SQLSTATE. A pending answer is
-- waited for at most a week, and of what the service says 500 characters are kept.
-- Locks nothing.
create or replace function outcomes_of_answers(
    p_saga_ids uuid[], p_answers jsonb[], p_what text, p_declined_code text default 'DP014'
) returns outcome_group[]
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
begin
    return group_outcomes(array(
        select row(
            a.saga_id,
            case a.answer ->> 'outcome'
                when 'approved' then 'done'
                when 'declined' then 'refused'
                when 'pending' then 'waiting'
                else 'failed'
            end,
            case
                when a.answer ->> 'outcome' in ('approved', 'pending') then null
                when a.answer ->> 'outcome' = 'declined' then p_declined_code
                else 'DP017'
            end,
            case a.answer ->> 'outcome'
                when 'approved' then null
                when 'pending' then 'pending at the gateway'
                when 'declined' then
                    p_what || ' declined: ' || left(coalesce(a.answer ->> 'code', a.answer ->> 'message', 'no reason given'), 500)
                else left(coalesce(a.answer ->> 'message', 'the gateway gave no usable answer'), 500)
            end,
            null,
            -- least() and greatest() pass over nulls: no deadline is the step's own.
            case when a.answer ->> 'outcome' = 'pending' and a.answer ->> 'deadline_seconds' is not null
                then least(greatest((a.answer ->> 'deadline_seconds')::numeric, 1), 604800)
            end
        )::step_outcome
        from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    ));
end
$$;
comment on function outcomes_of_answers(uuid[], jsonb[], text, text) is
    'For settle functions: the outcome of each saga by the answer of an external service, {"outcome": "approved" | "declined" | "pending" | "unknown", …}.';
