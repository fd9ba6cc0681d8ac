-- Fewer and smaller index entries per order. The law that a movement happens
-- once is the ledger's primary key; of the one it had, lists need the order of
-- ids alone. Payments are written by the engine, from orders it has just read.
-- depends: 0001.baseline
-- squawk-ignore-file require-concurrent-index-creation, adding-serial-primary-key-field, constraint-missing-not-valid, ban-drop-constraint
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
