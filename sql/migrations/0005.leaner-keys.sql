-- Fewer and smaller index entries per order. The law that a movement happens
-- once is the ledger's primary key; of the one it had, lists need the order of
-- ids alone. Payments are written by the engine, from orders it has just read.
-- depends: 0001.baseline
-- squawk-ignore-file require-concurrent-index-creation, adding-serial-primary-key-field, constraint-missing-not-valid, ban-drop-constraint, ban-drop-not-null
-- (a migration is one transaction, in which an index can't be built beside its writers; what the
-- dropped constraints guaranteed is said above)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

alter table stock_movements drop constraint stock_movements_pkey;
alter table stock_movements drop constraint stock_movements_happen_once;
alter table stock_movements add constraint stock_movements_happen_once
primary key (correlation_id, movement_type, product_id, warehouse_id);
create index stock_movements_newest_idx on stock_movements (id);

alter table payments drop constraint payments_order_exists;

-- What locks rows that all orders share is done at the end of a pass.
alter table saga_steps
alter column step_function drop not null,
add column effect_function text,
add column undo_effect_function text,
drop constraint saga_steps_undo_has_a_name,
add constraint saga_steps_do_something check (coalesce(step_function, effect_function) is not null),
add constraint saga_steps_undo_has_a_name
check ((undo_name is null) = (coalesce(undo_function, undo_effect_function) is null)),
add constraint saga_steps_settle_instead_of_effect
check (settle_function is null or effect_function is null),
add constraint saga_steps_undo_settle_instead_of_effect
check (undo_settle_function is null or undo_effect_function is null);
comment on column saga_steps.step_function is
    'Function of this schema: (warehouse_ids uuid[], saga_ids uuid[]) returns setof step_outcome. Null: nothing to decide, the step is done.';
comment on column saga_steps.effect_function is
    'What is left to do when the step is done: (warehouse_ids uuid[], saga_ids uuid[], step_names text[]) returns void. Runs once, at the end of a pass, so that what it locks is locked for the shortest time.';
