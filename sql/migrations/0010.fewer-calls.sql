-- What the engine calls on every pass does with fewer functions.
-- depends: 0009.outcomes-together
-- squawk-ignore-file ban-drop-function
-- (the functions take or return something else than they did, and those of routines/ replace them)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

drop function if exists are_of(outcome_group[], uuid[]);
drop function if exists move_goods_of(movement_type, uuid[], uuid[]);
drop function if exists run_straight(saga_group, uuid[], jsonb[]);
drop function if exists waiting_saga(uuid[], jsonb);
drop function if exists went_astray(saga_group, text, outcome_group[], integer, timestamptz[]);
drop function if exists write_group(saga_group, uuid[]);
