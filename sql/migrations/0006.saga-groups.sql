-- A pass works on groups of sagas instead of on one row for each.
-- depends: 0001.baseline
-- squawk-ignore-file adding-serial-primary-key-field, constraint-missing-not-valid, ban-drop-constraint, ban-drop-type
-- (what stands beside each says why)
-- The functions that took the old type go with it; those of routines/ replace them.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

drop type saga_work cascade;

-- Sagas of a pass that stand at the same place. The arrays are aligned, in order
-- of saga_ids; the lease tokens are those before the pass, and count as higher by
-- moves. Each is ready again at ready_at, and its share of spread_seconds later.
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
    spread_seconds double precision
);

-- Room on its page for what a row becomes while its saga runs: for the second
-- version of an order and its payment beside the first, for all three of a saga.
alter table orders set (fillfactor = 50);
alter table payments set (fillfactor = 45);
alter table sagas reset (autovacuum_vacuum_scale_factor);
alter table sagas set (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05);

-- And room in the indexes for what comes later between what is there: a saga's
-- further events, the end of a reservation, a saga's next versions. A page that
-- is left half empty is cheaper than one that is filled and then split.
alter index sagas_pkey set (fillfactor = 50);
alter index stock_movements_happen_once set (fillfactor = 50);
-- On a partitioned table that can only be said when the index is made: this
-- builds it anew, and sagas wait meanwhile (about a second per million events).
alter table saga_events drop constraint saga_events_pkey;
alter table saga_events add constraint saga_events_pkey
primary key (saga_id, id, warehouse_id, created_at) with (fillfactor = 20);
