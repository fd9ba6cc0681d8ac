-- Steps that most sagas take say at once what comes out alike.
-- depends: 0008.requests-of-each
-- squawk-ignore-file ban-drop-function
-- (the functions return something else than they did, and those of routines/ replace them)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

drop function if exists reserve_stock(uuid[], uuid[]);
drop function if exists request_payment(uuid[], uuid[]);
drop function if exists record_payment(uuid[], uuid[], jsonb[]);
drop function if exists request_authorization(uuid[], uuid[]);
drop function if exists record_authorization(uuid[], uuid[], jsonb[]);
drop function if exists request_charge(uuid[], uuid[], text, boolean);
drop function if exists record_charge(uuid[], uuid[], jsonb[], boolean);
drop function if exists take_step(saga_group, text, uuid[], jsonb[]);
drop function if exists run_pass(uuid[], saga_group[], boolean);
drop function if exists call_step(text, uuid[], uuid[], jsonb[]);

comment on column saga_steps.step_function is
    'Function of this schema: (warehouse_ids uuid[], saga_ids uuid[]) returns setof step_outcome or outcome_group[]. Null: nothing to decide, the step is done.';
comment on column saga_steps.settle_function is
    'Set for an external step: takes the answers, (warehouse_ids, saga_ids, answers jsonb[]) returns the same.';
