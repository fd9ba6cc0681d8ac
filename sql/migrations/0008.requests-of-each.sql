-- A group has the requests of each of its sagas, and becomes JSON when it is written.
-- depends: 0007.transitions
-- squawk-ignore-file changing-column-type, ban-drop-function
-- (the type and the functions are the engine's own; the functions return something else than they
-- did, and those of routines/ replace them)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

alter type saga_group alter attribute requests set data type json[];

drop function if exists write_group(saga_group, uuid[]);
drop function if exists run_pass(uuid[], saga_group[], boolean);
drop function if exists settle_pass(uuid[], jsonb, boolean);
drop function if exists move_goods_of(movement_type, uuid[], uuid[]);
drop function if exists apply_movements(movement_type, uuid[], uuid[], uuid[], integer[], text, text, uuid);
