-- A group keeps what happened to it, so that all its events are written at once.
-- depends: 0006.saga-groups
-- squawk-ignore-file ban-drop-type
-- The functions that took the old type go with it; those of routines/ replace them.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

drop type saga_group cascade;

-- Something that happened to all sagas of a group in a pass: the event that each
-- is to have, and the effect that is due. The arrays are aligned with the group's;
-- null where there is nothing to say. A transition that began with a lease has its
-- length, one that is followed by another try is the group's last.
create type saga_transition as (
    event_type saga_event_type,
    step_name text,
    attempt smallint,
    error_codes text[],
    messages text[],
    goes_again boolean,
    started_at timestamptz,
    lease_seconds numeric,
    created_at timestamptz,
    effect_function text
);

-- Sagas of a pass that stand at the same place. The arrays of who is in it are
-- aligned, in order of saga_ids; the lease tokens are those before the pass, and
-- count as higher by the number of outcomes. Each is ready again at ready_at, and
-- its share of spread_seconds later. requests is what they ask for, as JSON.
create type saga_group as (
    saga_type text,
    status saga_status,
    position smallint,
    attempts smallint,
    cancel_requested boolean,
    parked boolean,
    order_status order_status,
    saga_ids uuid[],
    warehouse_ids uuid[],
    lease_tokens bigint[],
    were_ready_at timestamptz[],
    moves integer,
    ready_at timestamptz,
    spread_seconds double precision,
    plan saga_steps[],
    transitions saga_transition[],
    requests json
);

-- What came out alike of a step, as aligned arrays in order of saga_ids.
create type outcome_group as (
    result step_result,
    wait_seconds numeric,
    saga_ids uuid[],
    error_codes text[],
    messages text[],
    requests json[],
    asks boolean
);
