-- Sourcing: which warehouses serve an order that names none. The first by priority that can
-- serve all of it, else as few as can, a line divided among them if need be. By what can be sold
-- at this moment: nothing is locked or reserved, which is the work of each order's saga, as it is
-- for an order that names its warehouse.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- What each warehouse has of some goods, as much as is wanted and no more; those in the order of
-- their priority. n is the place of the goods in the arrays. Locks nothing.
create or replace function stock_of_goods(p_product_ids uuid[], p_wanted bigint[])
returns table (warehouse_id uuid, place bigint, n bigint, units bigint)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select w.id, dense_rank() over (order by w.priority, w.code), g.n, least(i.quantity_sellable, g.wanted)
    from unnest(p_product_ids, p_wanted) with ordinality as g (product_id, wanted, n)
    inner join inventory as i on i.product_id = g.product_id and i.quantity_sellable > 0
    inner join warehouses as w on w.id = any(array[i.warehouse_id]) and w.is_active and w.cell = this_cell();
end;
comment on function stock_of_goods(uuid[], bigint[]) is 'Internal: what each warehouse could sell of some goods.';

-- Warehouses that have all of some goods together, two or three of them: the fewest, and of
-- those the first by priority. Looks at the twenty that have most; null when it finds none.
-- Locks nothing.
create or replace function find_pair_or_three(p_product_ids uuid[], p_wanted bigint[]) returns uuid[]
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    with candidate as (
        select
            s.warehouse_id, s.place,
            array_agg(coalesce(t.units, 0) order by g.n) as units
        from (
            select f.warehouse_id, f.place
            from stock_of_goods(p_product_ids, p_wanted) as f
            group by f.warehouse_id, f.place
            order by sum(f.units) desc, f.place
            limit 20
        ) as s
        cross join generate_subscripts(p_product_ids, 1) as g (n)
        left join stock_of_goods(p_product_ids, p_wanted) as t on t.warehouse_id = s.warehouse_id and t.n = g.n
        group by s.warehouse_id, s.place
    ),
    third as (
        select c.* from candidate as c
        union all
        select null, 0, array_fill(0::bigint, array[cardinality(p_wanted)])
    )
    select array_remove(array[a.warehouse_id, b.warehouse_id, c.warehouse_id], null)
    from candidate as a
    inner join candidate as b on b.place > a.place
    inner join third as c on c.place > b.place or c.place = 0
    where not exists (
        select from unnest(p_wanted, a.units, b.units, c.units) as u (wanted, one, two, three)
        where u.one + u.two + u.three < u.wanted
    )
    order by c.place > 0, a.place, b.place, c.place
    limit 1;
end;
comment on function find_pair_or_three(uuid[], bigint[]) is 'Internal: two or three warehouses that have all of some goods together.';

-- The warehouses that serve some goods, p_wanted of each product. Beyond three of them each next
-- is the one that has most of what is left: few, if not always the fewest. Locks nothing.
-- Raises: DP006 when all together have too little.
create or replace function choose_warehouses(p_product_ids uuid[], p_wanted bigint[]) returns uuid[]
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_chosen uuid[];
    v_left bigint[] := p_wanted;
    v_next uuid;
begin
    select array[s.warehouse_id] into v_chosen
    from stock_of_goods(p_product_ids, p_wanted) as s
    group by s.warehouse_id, s.place
    having count(*) filter (where s.units = p_wanted[s.n]) = cardinality(p_product_ids)
    order by s.place
    limit 1;
    v_chosen := coalesce(v_chosen, find_pair_or_three(p_product_ids, p_wanted));
    if v_chosen is not null then
        return v_chosen;
    end if;
    while 0 < any(v_left) loop
        select s.warehouse_id into v_next
        from stock_of_goods(p_product_ids, v_left) as s
        where s.units > 0 and (s.warehouse_id = any(v_chosen)) is not true
        group by s.warehouse_id, s.place
        order by sum(s.units) desc, s.place
        limit 1;
        if not found then
            perform refuse(
                'DP006', 'not enough stock',
                (
                    select string_agg(
                        format('Product %s: %s units asked for, %s can be sold in all', g.product_id, g.wanted, g.wanted - g.missing), '; '
                        order by g.product_id
                    ) || '.'
                    from (
                        select u.* from unnest(p_product_ids, p_wanted, v_left) as u (product_id, wanted, missing)
                        where u.missing > 0
                        order by u.product_id
                        limit 20
                    ) as g
                ),
                'Order less, or name a warehouse. Nothing was placed.'
            );
        end if;
        v_chosen := v_chosen || v_next;
        v_left := array(
            select u.missing - coalesce(s.units, 0)
            from unnest(v_left) with ordinality as u (missing, n)
            left join stock_of_goods(p_product_ids, v_left) as s on s.n = u.n and s.warehouse_id = v_next
            order by u.n
        );
    end loop;
    return v_chosen;
end
$$;
comment on function choose_warehouses(uuid[], bigint[]) is 'Internal: the warehouses that serve some goods, as few as can.';

-- The goods of an order's items: its products, and how many units of each are wanted.
-- Locks nothing. Raises: as read_items(); DP001 when there are no items, DP003 for a product that isn't
-- sold, DP015 for a quantity that is none.
create or replace function wanted_goods(p_items jsonb, out product_ids uuid[], out wanted bigint[])
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_line record;
begin
    select count(*) as lines, min(i.n) filter (where i.quantity <= 0) - 1 as odd,
        min(i.product_id::text) filter (where not exists (
            select from products as p where p.id = i.product_id and p.is_active
        )) as unsold
    into v_line
    from read_items(p_items, '{product_id, sku, quantity, unit_price, metadata}') with ordinality
        as i (product_id, quantity, unit_price, metadata, n);
    if v_line.lines = 0 then
        perform refuse('DP001', 'order has no lines', 'items is an empty array.', 'Pass at least one item.');
    elsif v_line.odd is not null then
        perform refuse('DP015', 'quantity makes no sense', format('items[%s] is of no units.', v_line.odd), 'Order at least one.');
    elsif v_line.unsold is not null then
        perform refuse(
            'DP003', 'product cannot be ordered', format('There is no product %s, or it is not sold any more.', v_line.unsold),
            'Choose an active product of the catalogue.'
        );
    end if;
    select array_agg(g.product_id), array_agg(g.units) into product_ids, wanted
    from (
        select i.product_id, sum(i.quantity) as units
        from read_items(p_items, '{product_id, sku, quantity, unit_price, metadata}') as i
        group by i.product_id
    ) as g;
end
$$;
comment on function wanted_goods(jsonb) is 'Internal: the products of an order''s items, and how many units of each.';

-- What the warehouses of this cell could serve of an order that names none, for who asks several cells and
-- places it in one: how many of them it would take, null when all together have too little; the
-- priority and the code of the first; and of each product the units that are wanted, and can be sold here.
-- What it tells can be seen by everybody. Locks nothing. Raises: as wanted_goods().
create or replace function offer_of_cell(
    p_items jsonb, out warehouses integer, out priority integer, out code text, out goods jsonb
)
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_goods constant record := wanted_goods(p_items);
    v_chosen uuid[];
begin
    begin
        v_chosen := choose_warehouses(v_goods.product_ids, v_goods.wanted);
    exception when sqlstate 'DP006' then
        null;
    end;
    warehouses := cardinality(v_chosen);
    select w.priority, w.code into priority, code
    from warehouses as w
    where w.id = any(v_chosen)
    order by w.priority, w.code
    limit 1;
    select jsonb_agg(jsonb_build_object('product_id', g.product_id, 'wanted', g.wanted, 'sellable', coalesce(s.units, 0)) order by g.n)
    into goods
    from unnest(v_goods.product_ids, v_goods.wanted) with ordinality as g (product_id, wanted, n)
    left join (
        select f.n, sum(f.units) as units
        from stock_of_goods(v_goods.product_ids, v_goods.wanted) as f
        group by f.n
    ) as s on s.n = g.n;
end
$$;
comment on function offer_of_cell(jsonb) is
    'What the warehouses of this cell could serve of an order that names none: how many it would take, the first of them, and what there is of each product.';

-- The items of an order, divided among the warehouses that serve them, those first by priority.
-- places: which lines of p_items those of items are, counted from 0.
-- Stable: all of it is of one snapshot. What it tells can be seen by everybody. Locks nothing.
-- Raises: as wanted_goods(); DP006 when all warehouses together have too little.
create or replace function source_items(p_items jsonb) returns table (warehouse_id uuid, items jsonb, places bigint[])
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_products uuid[];
    v_wanted bigint[];
    v_chosen uuid[];
begin
    select g.product_ids, g.wanted into v_products, v_wanted from wanted_goods(p_items) as g;
    v_chosen := choose_warehouses(v_products, v_wanted);
    return query
    with line as (
        select i.*, sum(i.quantity) over up_to - i.quantity as begins, sum(i.quantity) over up_to as ends
        from read_items(p_items, '{product_id, sku, quantity, unit_price, metadata}') with ordinality
            as i (product_id, quantity, unit_price, metadata, n)
        window up_to as (partition by i.product_id order by i.n)
    ),
    shelf as (
        select s.*, sum(s.units) over up_to - s.units as begins, sum(s.units) over up_to as ends
        from stock_of_goods(v_products, v_wanted) as s
        where s.warehouse_id = any(v_chosen)
        window up_to as (partition by s.n order by s.place)
    )
    select
        s.warehouse_id,
        jsonb_agg(
            jsonb_strip_nulls(jsonb_build_object(
                'product_id', l.product_id, 'unit_price', l.unit_price,
                'quantity', least(l.ends, s.ends) - greatest(l.begins, s.begins)
            ))
            || case when l.metadata is null then '{}' else jsonb_build_object('metadata', l.metadata) end
            order by l.n
        ),
        array_agg(l.n - 1 order by l.n)
    from line as l
    inner join shelf as s on v_products[s.n] = l.product_id and s.begins < l.ends and l.begins < s.ends
    group by s.warehouse_id, s.place
    order by s.place;
end
$$;
comment on function source_items(jsonb) is 'Internal: the items of an order that names no warehouse, divided among those that serve them.';

-- The adjustments of one of the orders that serve the items of one: those of a line are of the
-- first order that has it, all others of the first order, as are those that make no sense.
-- p_places: as source_items() has them; p_before: of all orders before this one; p_lines: of how
-- many lines the whole is. Locks nothing.
create or replace function share_of_adjustments(p_adjustments jsonb, p_places bigint[], p_before bigint[], p_lines integer)
returns jsonb
language sql immutable
set search_path = darkpearl, pg_temp
begin atomic
    select case when jsonb_typeof(p_adjustments) <> 'array' then p_adjustments else (
        select jsonb_agg(
            case
                when a.place = any(p_places) then jsonb_set(a.said, '{item}', to_jsonb(array_position(p_places, a.place) - 1))
                else a.said
            end
            order by a.n
        )
        from (
            select e.said, e.n, case when e.said ->> 'item' ~ '^[0-9]{1,9}$' then (e.said ->> 'item')::bigint end as place
            from jsonb_array_elements(p_adjustments) with ordinality as e (said, n)
        ) as a
        where (a.place = any(p_places) and a.place <> all(p_before))
            or (p_before = '{}' and coalesce(a.place >= p_lines, true))
    ) end;
end;
comment on function share_of_adjustments(jsonb, bigint[], bigint[], integer) is
    'Internal: the adjustments of one of the orders that serve the items of one.';
