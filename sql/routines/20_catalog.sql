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

-- What a search asks for: each of its words begins a word of the row. Null when it has none.
create or replace function search_query(p_search text) returns tsquery
language sql immutable parallel safe
return (select string_agg(format('''%s'':*', w.word), ' & ')::tsquery from unnest(words_of(p_search)) as w (word));
comment on function search_query(text) is
    'The words of a search, each as the beginning of one, to be matched with search_words().';

-- The products that a search finds. Runs as its owner: a condition that isn't leakproof, as
-- none of full text search is, reaches no index beneath a policy that looks at rows. It tells
-- nobody more than the policies of products do. Locks nothing.
create or replace function find_products(p_search text) returns setof uuid
language sql stable rows 100
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select p.id
    from products as p
    where search_words(p.sku, p.name) @@ search_query(p_search) and (
        p.is_active
        or not (select acts_as_outsider())
        or p.id in (
            select i.product_id
            from orders as o
            inner join order_items as i on i.order_id = o.id and i.warehouse_id = o.warehouse_id
            where o.customer_id = (select current_customer())
        )
    );
end;
comment on function find_products(text) is
    'The ids of the products in whose SKU and name all words of a search begin a word, in any order.';
