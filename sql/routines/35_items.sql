-- Items: goods as callers name them, in JSON. place_order() and return_items() read them here,
-- so that what is misspelt, missing or of the wrong kind is refused alike, and by its place.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The items of an array, [{"product_id": uuid, "quantity": int}, …] in order, each with the
-- product's id or its "sku". p_keys: what an item may have. An argument that is null has none.
-- Locks nothing.
-- Raises: DP003 for a SKU that no product has, DP015 for what is no such array, with the place
-- of the first item that is none, counted from 0.
create or replace function read_items(p_items jsonb, p_keys text[])
returns table (product_id uuid, quantity integer, unit_price numeric, metadata jsonb)
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_hint constant text := format('An item has product_id or sku, and quantity. Its keys are: %s.', array_to_string(p_keys, ', '));
    v_place bigint;
    v_fault text;
begin
    if jsonb_typeof(p_items) <> 'array' then
        perform refuse(
            'DP015', 'items must be an array', format('p_items is a JSON %s.', jsonb_typeof(p_items)),
            'Pass [{"product_id": "…", "quantity": 1}].'
        );
    end if;

    select i.place, i.fault into v_place, v_fault
    from (
        select
            e.n - 1 as place,
            case
                when jsonb_typeof(e.item) <> 'object' then format('is a JSON %s', jsonb_typeof(e.item))
                when e.item - p_keys <> '{}' then format('has what no item has: %s', left((e.item - p_keys)::text, 200))
                when num_nonnulls(e.item ->> 'product_id', e.item ->> 'sku') = 0 then 'has neither product_id nor sku'
                when num_nonnulls(e.item ->> 'product_id', e.item ->> 'sku') = 2 then 'has both product_id and sku'
                when e.item ->> 'product_id' !~* '^\{?[0-9a-f]{4}(-?[0-9a-f]{4}){7}\}?$'
                    then format('has product_id %s, which is no UUID', left(e.item ->> 'product_id', 50))
                when e.item ->> 'quantity' is null then 'has no quantity'
                when e.item ->> 'quantity' !~ '^-?[0-9]{1,10}$' or abs((e.item ->> 'quantity')::bigint) > 2147483647
                    then format('has quantity %s, which is no number of units', left(e.item ->> 'quantity', 50))
                when e.item ->> 'unit_price' !~ '^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$'
                    then format('has unit_price %s, which is no number', left(e.item ->> 'unit_price', 50))
                when jsonb_typeof(e.item -> 'metadata') not in ('object', 'null') then 'has metadata that is no object'
            end as fault
        from jsonb_array_elements(p_items) with ordinality as e (item, n)
    ) as i
    where i.fault is not null
    order by i.place
    limit 1;
    if found then
        perform refuse('DP015', 'item makes no sense', format('items[%s] %s.', v_place, v_fault), v_hint);
    end if;

    if p_items @? '$[*].sku' then
        -- A subquery for each, not a join: see docs/decisions/tables-are-read-by-key.md.
        select e.n - 1, e.item ->> 'sku' into v_place, v_fault
        from jsonb_array_elements(p_items) with ordinality as e (item, n)
        where e.item ->> 'sku' is not null
            and (select p.id from products as p where p.sku = normalize(e.item ->> 'sku')) is null
        order by e.n
        limit 1;
        if found then
            perform refuse(
                'DP003', 'no such product', format('items[%s] has the SKU %s, which no product has.', v_place, left(v_fault, 100)),
                'Choose an active product: select id, sku from products where is_active.'
            );
        end if;
    end if;

    return query
    select coalesce(i.product_id, (select p.id from products as p where p.sku = normalize(i.sku))), i.quantity, i.unit_price,
        nullif(i.metadata, 'null')
    from jsonb_to_recordset(p_items) as i (product_id uuid, sku text, quantity integer, unit_price numeric, metadata jsonb);
end
$$;
comment on function read_items(jsonb, text[]) is
    'Internal: the goods that an array of items names, refused by its place where one makes no sense.';
