-- Products and warehouses are plain tables that service_role edits. An edit
-- leaves its time and a version, and a row that the ledger speaks of stays, so
-- that history can always be read.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger products_count_versions
before update on products
for each row
when (old.* is distinct from new.*)
execute function count_version();

create or replace trigger warehouses_count_versions
before update on warehouses
for each row
when (old.* is distinct from new.*)
execute function count_version();

-- Trigger: a product or a warehouse that the ledger names is not deleted.
-- Locks nothing. Raises DP016.
create or replace function refuse_to_drop_history() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if (tg_table_name = 'products' and exists (select from stock_movements as m where m.product_id = old.id))
        or (tg_table_name = 'warehouses' and exists (select from stock_movements as m where m.warehouse_id = old.id))
    then
        perform refuse(
            'DP016', format('%s has a history', rtrim(tg_table_name, 's')),
            format('The ledger has movements of %s %s.', rtrim(tg_table_name, 's'), old.id),
            'Set is_active to false instead.'
        );
    end if;
    return old;
end
$$;
comment on function refuse_to_drop_history() is 'Trigger: refuses to delete products and warehouses that stock movements name.';

create or replace trigger products_refuse_to_drop_history
before delete on products
for each row execute function refuse_to_drop_history();

create or replace trigger warehouses_refuse_to_drop_history
before delete on warehouses
for each row execute function refuse_to_drop_history();
