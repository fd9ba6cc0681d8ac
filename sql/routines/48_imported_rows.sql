-- Imports in one call: what the API takes of a body, staged from JSON instead of by COPY.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The cell of the first warehouse that rows of an import name, for who has several to choose from; null when
-- they name none that is known. Locks nothing.
create or replace function cell_of_rows(p_rows jsonb) returns smallint
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select w.cell
    from jsonb_to_recordset(p_rows) as r (line bigint, warehouse text, warehouse_id text)
    inner join warehouses as w
        on case when coalesce(r.warehouse_id, '') = '' then w.code = r.warehouse else w.id = read_uuid(r.warehouse_id) end
    order by r.line
    limit 1;
end;
comment on function cell_of_rows(jsonb) is 'The cell of the first warehouse that rows of an import name.';

-- Imports rows of a kind: a JSON array of objects whose keys are the columns of the kind. Each
-- has its number as `line`, and a `problem` if it is bad already; what isn't a column is left out.
-- Returns the numbers, and of each row what is wrong with it, null for nothing.
-- Locks: as the import of the kind. Raises: DP015 for another kind; DP025 for bad rows, the first
-- hundred in the DETAIL, unless p_skip_bad.
create or replace function import_rows(p_kind text, p_rows jsonb, p_skip_bad boolean default false)
returns table (lines bigint, bad bigint, changed bigint, results jsonb)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_columns constant text[] := open_import(p_kind);
    v_table constant text := staging_table(p_kind);
begin
    execute format(
        'insert into pg_temp.%1$I (line, problem, %2$s) select r.line, r.problem, %3$s '
        'from jsonb_to_recordset($1) as r (line bigint, problem text, %4$s text)',
        v_table, array_to_string(v_columns, ', '),
        (select string_agg(format('nullif(r.%s, '''')', c), ', ') from unnest(v_columns) as c),
        array_to_string(v_columns, ' text, ')
    )
    using p_rows;
    case p_kind
        when 'products' then select i.* into lines, bad, changed from import_products(p_skip_bad) as i;
        when 'inventory' then select i.* into lines, bad, changed from import_inventory(p_skip_bad) as i;
        when 'movements' then select i.* into lines, bad, changed from import_movements(p_skip_bad) as i;
        when 'orders' then select i.* into lines, bad, changed from place_imported_orders(p_skip_bad => p_skip_bad) as i;
    end case;
    execute format(
        'select coalesce(jsonb_agg(jsonb_build_object(''row'', i.line, ''problem'', i.problem) order by i.line), ''[]'') '
        'from pg_temp.%I as i', v_table
    )
    into results;
    execute format('drop table pg_temp.%I', v_table);
    if bad > 0 and not p_skip_bad then
        perform refuse(
            'DP025', format('%s of %s rows can''t be imported', bad, lines),
            (select jsonb_agg(r) from (select r from jsonb_array_elements(results) as r where r ->> 'problem' <> '' limit 100) as f)::text,
            'Nothing was imported: correct the rows that the DETAIL names, the first hundred, or pass p_skip_bad.'
        );
    end if;
    return next;
end
$$;
comment on function import_rows(text, jsonb, boolean) is
    'Imports rows of products, inventory, movements or orders, given as JSON; returns what became of each.';
