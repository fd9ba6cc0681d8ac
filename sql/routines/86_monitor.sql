-- What the page at /monitor shows: a function for each screen, which gives all of it as one document.
-- Each runs as its caller, who sees of a screen what the tables under it let them see. However large
-- the shop is, a look is short: it finds the ids of a page by an index, then what belongs to these; what
-- no index narrows is looked for among the newest 10,000 rows, and `next` says where to look on.
-- Of thousands that are stuck, the causes are those of the first and the last. What a warehouse that
-- moved to another cell has left here isn't shown.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The line that stands above every screen: engine_health, and the time that it was. Locks nothing.
create or replace function monitor_state() returns json
language sql stable
set search_path = darkpearl, pg_temp
set jit = off
begin atomic
    select to_json(s) from (select h.*, clock() as now from engine_health as h) as s;
end;
comment on function monitor_state() is 'The page: the state of the engine, as engine_health has it.';

-- What went wrong lately, or was done by hand, newest first: a look into the index of troubles for
-- each kind, so that none of the many hides a rare one. The clock is read once, which leads into the
-- index. Locks nothing.
create or replace function monitor_lately()
returns table (
    id bigint, saga_id uuid, event_type saga_event_type, step_name text, error_code text, actor text, created_at timestamptz,
    message text
)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select
        l.id, l.saga_id, l.event_type, l.step_name, l.error_code, l.actor, l.created_at,
        told_message(l.saga_id, l.id, l.created_at)
    from (
        select e.*
        from unnest(enum_range(null::saga_event_type)) as k (event_type)
        cross join lateral (
            select t.* from saga_events as t
            where t.event_type = k.event_type and t.created_at > (select clock()) - interval '1 day' and t.event_type in (
                'step_failed', 'compensation_started', 'saga_stuck', 'retried', 'cancelled', 'skipped', 'reported'
            ) and not array[t.warehouse_id] <@ (select closed_warehouses())
            order by t.created_at desc limit 8
        ) as e
        order by e.created_at desc limit 12
    ) as l;
end;
comment on function monitor_lately() is 'The page: what went wrong in the last day or was done by hand, a few of each kind.';

-- The last hour by the minute; steps of the last quarter, and how long p_step took in each minute, which
-- is the slowest when none is named; webhooks that fail, the last audit, and monitor_lately(). Locks nothing.
create or replace function monitor_overview(p_step text default null) returns json
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    with step as (
        select t.* from step_statistics(clock() - interval '15 minutes') as t where t.step_name is not null
    ),
    chosen as (
        select coalesce(
            p_step, (select t.step_name from step as t where t.event_type = 'step_completed' order by t.p99_seconds desc nulls last limit 1)
        ) as step_name
    )
    select json_build_object(
        'minutes', (
            select coalesce(json_agg(m order by m.minute), '[]')
            from (
                select
                    extract(epoch from s.minute)::bigint as minute,
                    coalesce(sum(s.events) filter (where s.event_type = 'saga_started'), 0) as started,
                    coalesce(sum(s.events) filter (where s.event_type = 'saga_completed'), 0) as completed,
                    coalesce(sum(s.events) filter (where s.event_type = 'saga_compensated'), 0) as compensated,
                    coalesce(sum(s.events) filter (where s.event_type = 'saga_stuck'), 0) as stuck
                from step_minutes as s
                where s.minute > (select clock()) - interval '61 minutes' and s.step_name = ''
                group by s.minute
            ) as m
        ),
        'steps', (select coalesce(json_agg(t order by t.step_name, t.event_type), '[]') from step as t),
        'step', (select c.step_name from chosen as c),
        'latencies', (
            select coalesce(json_agg(l order by l.minute), '[]')
            from (
                select extract(epoch from d.minute)::bigint as minute, d.p50_seconds, d.p99_seconds
                from chosen as c
                cross join lateral step_durations(c.step_name, clock() - interval '60 minutes') as d
            ) as l
        ),
        'webhooks', (
            select coalesce(json_agg(w), '[]') from webhook_overview as w
            where not w.is_enabled or w.failing_since is not null or w.given_up > 0
        ),
        'audit', (
            select to_json(a)
            from (select r.id, r.since, r.ended_at, r.finding_count from audit_runs as r order by r.id desc limit 1) as a
        ),
        'lately', (select coalesce(json_agg(n order by n.created_at desc), '[]') from monitor_lately() as n)
    );
end;
comment on function monitor_overview(text) is
    'The page: the last hour by the minute, what steps took, one of them by the minute, and what went wrong lately.';

-- The ids of orders that filters lead to, null when none does: those that a search finds, that are in a
-- trouble (dispute, failed_refund, overdue), or have a status that only orders on their way have, if no more than
-- p_most are on their way: among so many the newest orders have enough of them. Locks nothing.
create or replace function monitored_orders(p_status order_status, p_trouble text, p_search text, p_most integer) returns uuid[]
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_ids uuid[];
begin
    if p_search is not null then
        v_ids := array(select f.id from find_orders(p_search) as f (id));
    end if;
    if p_trouble is not null then
        v_ids := array(
            select t.id
            from (
                select d.order_id from disputed_payments as d where d.status = 'open' and p_trouble = 'dispute'
                union all
                select f.order_id from failed_refunds as f where p_trouble = 'failed_refund'
                union all
                select o.id from orders_to_ship as o where o.is_overdue and p_trouble = 'overdue'
            ) as t (id)
            where v_ids is null or t.id = any(v_ids)
        );
    end if;
    if v_ids is null and p_status not in ('fulfilled', 'cancelled') then
        v_ids := array(
            select s.id
            from (
                select k.id from sagas as k where k.ready_at is not null
                union all
                select k.id from sagas as k where k.status = 'stuck' and (k.status = 'stuck') is true
            ) as s
            limit p_most + 1
        );
        if cardinality(v_ids) > p_most then
            return null;
        end if;
    end if;
    return v_ids;
end
$$;
comment on function monitored_orders(order_status, text, text, integer) is 'Internal: the ids of the orders that filters of the page lead to.';

-- Orders, newest first: fifty before an order number, of those that filters find, and where the next
-- page begins. Locks nothing.
create or replace function monitor_orders(
    p_status order_status default null, p_warehouse text default null, p_trouble text default null, p_search text default null,
    p_before bigint default null
) returns json
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set jit = off
as $$
declare
    v_page constant integer := 50;
    v_most constant integer := 10000;
    v_warehouse constant uuid := (select w.id from warehouses as w where w.code = p_warehouse);
    v_ids constant uuid[] := monitored_orders(p_status, p_trouble, p_search, 5000);
    v_closed constant uuid[] := closed_warehouses();
    v_numbers bigint[];
    v_next bigint;
begin
    v_numbers := array(
        select s.order_number
        from (
            (
                select o.order_number, o.status, o.warehouse_id from orders as o
                where v_ids is null and (p_before is null or o.order_number < p_before)
                order by o.order_number desc
                limit v_most
            )
            union all
            -- Looked up one by one, whatever the planner thinks of reading them all.
            select o.order_number, o.status, o.warehouse_id
            from unnest(v_ids) as i (id)
            cross join lateral (
                select o.order_number, o.status, o.warehouse_id from orders as o where o.id = i.id offset 0
            ) as o
            where p_before is null or o.order_number < p_before
        ) as s
        where (p_status is null or s.status = p_status) and (p_warehouse is null or s.warehouse_id = v_warehouse)
            and not array[s.warehouse_id] <@ v_closed
        order by s.order_number desc
        limit v_page + 1
    );
    if cardinality(v_numbers) > v_page then
        v_next := v_numbers[v_page];
    elsif v_ids is null then
        select o.order_number into v_next from orders as o
        where p_before is null or o.order_number < p_before
        order by o.order_number desc offset v_most - 1 limit 1;
    end if;
    return json_build_object(
        'orders', (
            select coalesce(json_agg(o order by o.order_number desc), '[]')
            from order_overview as o where o.order_number = any(v_numbers[:v_page])
        ),
        'next', case when v_next is not null then json_build_object('before', v_next) end,
        'warehouses', (select coalesce(json_agg(w.code order by w.code), '[]') from warehouses as w),
        'statuses', enum_range(null::order_status)::text[],
        'troubles', array['dispute', 'failed_refund', 'overdue']
    );
end
$$;
comment on function monitor_orders(order_status, text, text, text, bigint) is
    'The page: orders by status, warehouse, trouble or search, newest first, fifty before a number.';

-- An order: money, goods, all that happened; null when there is none. Locks nothing.
create or replace function monitor_order(p_id uuid) returns json
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select to_json(d)
    from (
        select
            o.*,
            (select to_json(p) from payments as p where p.order_id = o.id) as money,
            (select to_json(v) from order_overview as v where v.id = o.id) as overview,
            (select to_json(s) from saga_overview as s where s.id = o.id) as saga,
            (select coalesce(json_agg(t), '[]') from saga_timeline(o.id) as t) as entries,
            refundable(o.id) as refundable,
            exists (select from orders_to_ship as w where w.id = o.id and w.units_left > 0) as to_ship
        from order_details as o
        where o.id = p_id and not array[o.warehouse_id] <@ (select closed_warehouses())
    ) as d;
end;
comment on function monitor_order(uuid) is 'The page: an order with its money, its goods and all that happened to it.';

-- The ids of sagas before one, newest first, p_limit at most, of a status and a type; and the last that
-- was looked at, when p_most were and there may be more. Locks nothing.
create or replace function monitored_sagas(
    p_status saga_status, p_saga_type text, p_before uuid, p_most integer, p_limit integer, out ids uuid[], out last_id uuid
)
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set jit = off
as $$
declare
    v_before constant uuid := coalesce(p_before, 'ffffffff-ffff-ffff-ffff-ffffffffffff');
    v_closed constant uuid[] := closed_warehouses();
begin
    if p_status in ('running', 'waiting', 'compensating') then
        ids := array(
            select l.id
            from (
                select s.id, s.status, s.saga_type, s.warehouse_id from sagas as s
                where s.ready_at is not null and s.id < v_before offset 0
            ) as l
            where l.saga_type = coalesce(p_saga_type, l.saga_type) and l.status = p_status and not array[l.warehouse_id] <@ v_closed
            order by l.id desc limit p_limit
        );
    elsif p_status in ('compensated', 'stuck') then
        ids := array(
            select l.id
            from (
                select s.id, s.saga_type, s.warehouse_id from sagas as s
                where s.status = p_status and s.id < v_before order by s.id desc limit p_most
            ) as l
            where l.saga_type = coalesce(p_saga_type, l.saga_type) and not array[l.warehouse_id] <@ v_closed
            order by l.id desc limit p_limit
        );
        select s.id into last_id from sagas as s
        where cardinality(ids) < p_limit and s.status = p_status and s.id < v_before
        order by s.id desc offset p_most - 1 limit 1;
    else
        ids := array(
            select l.id
            from (
                select s.id, s.status, s.saga_type, s.warehouse_id from sagas as s
                where s.id < v_before order by s.id desc limit p_most
            ) as l
            where l.saga_type = coalesce(p_saga_type, l.saga_type) and l.status = coalesce(p_status, l.status)
                and not array[l.warehouse_id] <@ v_closed
            order by l.id desc limit p_limit
        );
        select s.id into last_id from sagas as s
        where cardinality(ids) < p_limit and s.id < v_before
        order by s.id desc offset p_most - 1 limit 1;
    end if;
end
$$;
comment on function monitored_sagas(saga_status, text, uuid, integer, integer) is
    'Internal: the ids of the sagas that filters of the page find, newest first.';

-- Sagas, newest first: fifty before one, of those that filters find, and where the next page begins.
-- Locks nothing.
create or replace function monitor_sagas(
    p_status saga_status default null, p_saga_type text default null, p_before uuid default null
) returns json
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_page constant integer := 50;
    v_found constant record := monitored_sagas(p_status, p_saga_type, p_before, 10000, v_page + 1);
    v_next constant uuid := case when cardinality(v_found.ids) > v_page then v_found.ids[v_page] else v_found.last_id end;
begin
    return json_build_object(
        'sagas', (
            select coalesce(json_agg(r order by r.id desc), '[]')
            from (
                select s.*, coalesce(o.order_number, f.order_number) as order_number, coalesce(o.id, f.id) as order_id
                from saga_overview as s
                left join orders as o on o.id = s.id
                left join refunds as b on b.id = s.id
                left join orders as f on f.id = b.order_id
                where s.id = any(v_found.ids[:v_page])
            ) as r
        ),
        'next', case when v_next is not null then json_build_object('before', v_next) end,
        'saga_types', (select json_agg(distinct t.saga_type order by t.saga_type) from saga_steps as t),
        'statuses', enum_range(null::saga_status)::text[]
    );
end
$$;
comment on function monitor_sagas(saga_status, text, uuid) is
    'The page: sagas by status and type, newest first, fifty before one.';

-- A saga: where it stands, its plan, all that happened; null when there is none. Locks nothing.
create or replace function monitor_saga(p_id uuid) returns json
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select to_json(d)
    from (
        select
            s.*, coalesce(r.order_id, o.id) as order_id,
            (select n.order_number from orders as n where n.id = coalesce(r.order_id, o.id)) as order_number,
            (select coalesce(json_agg(t), '[]') from saga_timeline(s.id) as t) as entries,
            (
                select coalesce(json_agg(p order by p.position), '[]')
                from saga_steps as p
                where p.saga_type = s.saga_type and p.plan_version = s.plan_version
            ) as plan
        from saga_overview as s
        left join orders as o on o.id = s.id
        left join refunds as r on r.id = s.id
        where s.id = p_id and not array[s.warehouse_id] <@ (select closed_warehouses())
    ) as d;
end;
comment on function monitor_saga(uuid) is 'The page: a saga with its plan and all that happened to it.';

-- Stuck sagas: the causes of the first and the last 200, how many these are and how many are stuck, counted to
-- 10,000; and fifty after one, the oldest orders first, of those among the next 200 that filters find, with
-- where the next page begins. Locks nothing.
create or replace function monitor_stuck(
    p_saga_type text default null, p_step text default null, p_error_code text default null, p_cause text default null,
    p_after uuid default null
) returns json
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
    v_page constant integer := 50;
    v_most constant integer := 200;
    v_closed constant uuid[] := closed_warehouses();
    v_first constant uuid[] := array(
        select s.id from sagas as s
        where s.status = 'stuck' and not array[s.warehouse_id] <@ v_closed order by s.id limit v_most
    );
    v_looked_at constant uuid[] := v_first || array(
        select s.id from sagas as s
        where s.status = 'stuck' and s.id > v_first[cardinality(v_first)] and not array[s.warehouse_id] <@ v_closed
        order by s.id desc limit v_most
    );
    v_next uuid[] := v_first;
    v_ids uuid[];
    v_after uuid;
begin
    if p_after is not null then
        v_next := array(
            select s.id from sagas as s
            where s.status = 'stuck' and s.id > p_after and not array[s.warehouse_id] <@ v_closed order by s.id limit v_most
        );
    end if;
    if coalesce(p_saga_type, p_step, p_error_code, p_cause) is null then
        v_ids := v_next[:v_page + 1];
    else
        v_ids := array(
            select c.saga_id from causes_of_stuck(v_next) as c
            where (p_saga_type is null or c.saga_type = p_saga_type) and (p_step is null or c.step_name = p_step)
                and (p_error_code is null or c.error_code = p_error_code) and (p_cause is null or c.cause = p_cause)
            order by c.saga_id
            limit v_page + 1
        );
    end if;
    v_after := case when cardinality(v_ids) > v_page then v_ids[v_page] when cardinality(v_next) = v_most then v_next[v_most] end;
    return json_build_object(
        'causes', (select coalesce(json_agg(c order by c.sagas desc, c.oldest_since), '[]') from count_causes(v_looked_at) as c),
        'looked_at', cardinality(v_looked_at),
        -- Of the index alone, where no warehouse is closed.
        'total', case
            when v_closed = '{}' then (select count(*) from (select from sagas as s where s.status = 'stuck' limit 10001) as s)
            else (
                select count(*)
                from (select from sagas as s where s.status = 'stuck' and not array[s.warehouse_id] <@ v_closed limit 10001) as s
            )
        end,
        'sagas', (select coalesce(json_agg(s order by s.id), '[]') from stuck_sagas as s where s.id = any(v_ids[:v_page])),
        'next', case when v_after is not null then json_build_object('after', v_after) end
    );
end
$$;
comment on function monitor_stuck(text, text, text, text, uuid) is
    'The page: stuck sagas by step and cause, and those of one cause, fifty after one.';

-- The shelves that run low, the shortest first; or with a search or p_all those by SKU, fifty after one, and
-- where the next page begins. Locks nothing.
create or replace function monitor_stock(
    p_search text default null, p_show text default null, p_warehouse text default null, p_after text default null,
    p_after_warehouse text default null
) returns json
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_page constant integer := 50;
    v_all constant boolean := p_search is not null or p_show is not distinct from 'all';
    v_found constant uuid[] := case when p_search is not null then array(select f.id from find_products(p_search) as f (id)) end;
    v_closed constant uuid[] := closed_warehouses();
    v_shelves json;
    v_next json;
begin
    if v_all then
        with shelf as (
            select
                i.id, i.product_id, i.warehouse_id, p.sku, p.name as product_name, w.code as warehouse_code,
                i.quantity_available, i.quantity_sellable, i.quantity_reserved, i.reorder_point, i.reorder_quantity,
                row_number() over (order by p.sku, w.code) as n
            from (
                -- As many products as shelves on a page, each in one warehouse at least, or in none.
                select q.* from products as q
                where (v_found is null or q.id = any(v_found)) and (p_after is null or q.sku >= p_after)
                    and exists (
                        select from inventory as k inner join warehouses as x on x.id = k.warehouse_id
                        where k.product_id = q.id and (p_warehouse is null or x.code = p_warehouse)
                            and not array[k.warehouse_id] <@ v_closed
                            and (p_after is null or (q.sku, x.code) > (p_after, coalesce(p_after_warehouse, '')))
                    )
                order by q.sku limit v_page + 1
            ) as p
            inner join inventory as i on i.product_id = p.id
            inner join warehouses as w on w.id = i.warehouse_id
            where (p_warehouse is null or w.code = p_warehouse) and not array[i.warehouse_id] <@ v_closed
                and (p_after is null or (p.sku, w.code) > (p_after, coalesce(p_after_warehouse, '')))
            order by p.sku, w.code limit v_page + 1
        )
        select
            json_agg(s order by s.n) filter (where s.n <= v_page),
            json_agg(json_build_object('after', s.sku, 'after_warehouse', s.warehouse_code)) filter (where s.n = v_page and t.has_more) -> 0
        into v_shelves, v_next
        from shelf as s
        cross join (select count(*) > v_page as has_more from shelf) as t;
    else
        select json_agg(s order by s.shortage desc, s.sku) into v_shelves
        from (
            select l.*, l.quantity_sellable + l.quantity_reserved as quantity_available from low_stock as l
            where p_warehouse is null or l.warehouse_code = p_warehouse
            order by l.shortage desc, l.sku limit v_page
        ) as s;
    end if;
    return json_build_object(
        'shelves', coalesce(v_shelves, '[]'), 'next', v_next, 'everything', v_all,
        'warehouses', (select coalesce(json_agg(w.code order by w.code), '[]') from warehouses as w)
    );
end
$$;
comment on function monitor_stock(text, text, text, text, text) is
    'The page: shelves that run low, or all and those that a search finds, fifty after one.';

-- A product in a warehouse: how much, what has left it for another cell and isn't there yet, and fifty movements
-- before one, which say why; null when it isn't stocked there. Locks nothing.
create or replace function monitor_shelf(p_product uuid, p_warehouse uuid, p_before bigint default null) returns json
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set jit = off
as $$
declare
    v_page constant integer := 50;
    v_ids constant bigint[] := array(
        select m.id from stock_movements as m
        where m.product_id = p_product and m.warehouse_id = p_warehouse and (p_before is null or m.id < p_before)
        order by m.id desc limit v_page + 1
    );
begin
    return (
        select to_json(d)
        from (
            select
                i.*,
                (
                    select coalesce(json_agg(m order by m.id desc), '[]')
                    from stock_ledger as m where m.id = any(v_ids[:v_page]) and m.warehouse_id = p_warehouse
                ) as movements,
                case when cardinality(v_ids) > v_page then json_build_object('before', v_ids[v_page]) end as next,
                (select json_agg(a.code order by a.code) from adjustment_reasons as a) as reasons,
                (
                    select coalesce(json_agg(t order by t.since, t.id), '[]')
                    from stock_in_transit as t
                    where t.product_id = p_product and t.from_warehouse_id = p_warehouse
                ) as under_way
            from inventory_levels as i
            where i.product_id = p_product and i.warehouse_id = p_warehouse and not array[p_warehouse] <@ closed_warehouses()
        ) as d
    );
end
$$;
comment on function monitor_shelf(uuid, uuid, bigint) is
    'The page: how much of a product a warehouse has, what of it is on its way to another cell, and the movements, fifty before one.';

-- Who works on what, what waits at which step but for what is stuck, what is paused, who blocks, what gateways told and nobody
-- has looked at. Locks nothing.
create or replace function monitor_listeners() returns json
language sql stable
set search_path = darkpearl, pg_temp
set jit = off
begin atomic
    select json_build_object(
        'listeners', (select coalesce(json_agg(l order by l.host, l.process_id), '[]') from listener_activity as l),
        'queue', (select coalesce(json_agg(q order by q.saga_type, q.step_name), '[]') from queue_by_step(0) as q),
        'pauses', (
            select coalesce(json_agg(p order by p.paused_until), '[]')
            from (
                select c.paused_until, array_agg(distinct c.step_name order by c.step_name) as steps
                from step_settings as c where c.paused_until > clock()
                group by c.paused_until
            ) as p
        ),
        'blockers', (select coalesce(json_agg(b), '[]') from blocking_sessions() as b),
        'unmatched', (
            select coalesce(json_agg(g order by g.received_at desc), '[]')
            from (
                select e.gateway, e.event_id, e.idempotency_key, e.answer, e.received_at
                from gateway_events as e where e.disposition = 'unmatched'
                order by e.received_at desc limit 50
            ) as g
        )
    );
end;
comment on function monitor_listeners() is
    'The page: listeners, the queue by step, pauses, sessions that block, and unmatched events of gateways.';

-- What people have done, newest first, fifty before one, of those that filters find, and where the next
-- page begins; and the batches that began last. Locks nothing.
create or replace function monitor_activity(p_actor text default null, p_action text default null, p_before bigint default null)
returns json
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set enable_seqscan = off
set jit = off
as $$
declare
    v_page constant integer := 50;
    v_most constant integer := 10000;
    v_ids constant bigint[] := array(
        select l.id
        from (
            select a.id, a.actor, a.action from action_log as a
            where p_before is null or a.id < p_before
            order by a.id desc limit v_most
        ) as l
        where (p_actor is null or l.actor = p_actor) and (p_action is null or l.action = p_action)
        order by l.id desc limit v_page + 1
    );
    v_next bigint := v_ids[v_page];
begin
    if cardinality(v_ids) <= v_page then
        select a.id into v_next from action_log as a
        where p_before is null or a.id < p_before
        order by a.id desc offset v_most - 1 limit 1;
    end if;
    return json_build_object(
        'actions', (select coalesce(json_agg(a order by a.id desc), '[]') from action_log as a where a.id = any(v_ids[:v_page])),
        'next', case when v_next is not null then json_build_object('before', v_next) end,
        'batches', (
            select coalesce(json_agg(b order by b.created_at desc), '[]')
            from (select v.* from batch_overview as v order by v.created_at desc limit 10) as b
        )
    );
end
$$;
comment on function monitor_activity(text, text, bigint) is
    'The page: what people have done by hand, fifty before one, and the latest batches.';

-- A batch: how far it is, and what failed first; null when there is none. Locks nothing.
create or replace function monitor_batch(p_id uuid) returns json
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select to_json(d)
    from (
        select
            b.*,
            (
                select coalesce(json_agg(r order by r.n), '[]')
                from (
                    select i.* from batch_items as i
                    where i.batch_id = b.id and i.result = 'failed' and b.failed > 0 order by i.n limit 50
                ) as r
            ) as failures
        from batch_overview as b
        where b.id = p_id
    ) as d;
end;
comment on function monitor_batch(uuid) is 'The page: how far a batch is, and what failed in it.';

-- The last audits, with what they found. Locks nothing.
create or replace function monitor_audits() returns json
language sql stable
set search_path = darkpearl, pg_temp
set jit = off
begin atomic
    select json_build_object(
        'runs', (
            select coalesce(json_agg(r order by r.id desc), '[]')
            from (select a.* from audit_runs as a order by a.id desc limit 20) as r
        )
    );
end;
comment on function monitor_audits() is 'The page: the last audits, and what they found.';

-- What an action of the page is about, for its dialog: subject, standing and detail of a saga, an order, its
-- payment, the parcel that it waits for, or a shelf, which has a warehouse beside its product. What its
-- fields hold at first, what one of them may be, and of which lines there are how many units.
-- No row when there is none. Locks nothing.
create or replace function monitor_subject(p_kind text, p_id uuid, p_warehouse uuid default null)
returns table (subject text, standing text, detail text, first jsonb, choices text[], lines jsonb)
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set jit = off
begin atomic
    select
        'Saga of order ' || coalesce('#' || o.order_number, '?'), concat_ws(' ', s.status, 'at', replace(s.current_step, '_', ' ')),
        s.last_error, null::jsonb, null::text[], null::jsonb
    from saga_overview as s
    left join refunds as r on r.id = s.id
    left join orders as o on o.id = coalesce(r.order_id, s.id)
    where p_kind = 'saga' and s.id = p_id
    union all
    select
        'Order #' || o.order_number, replace(o.status::text, '_', ' '), concat_ws(' ', o.total_amount, o.currency, 'of ' || o.customer_id),
        case when p_kind = 'payment' then jsonb_build_object('amount', refundable(o.id)::text) end, null,
        case when p_kind = 'parcel' then (
            select jsonb_agg(
                jsonb_build_object('product_id', g.product_id, 'sku', p.sku, 'quantity', g.quantity) order by p.sku
            )
            from goods_to_ship(o.id) as g inner join products as p on p.id = g.product_id
        ) end
    from orders as o
    where p_kind in ('order', 'payment', 'parcel') and o.id = p_id
    union all
    select
        concat(p.sku, ' in ', w.code), concat(i.quantity_available, ' on hand, ', i.quantity_reserved, ' reserved'), p.name,
        jsonb_build_object('expected', i.quantity_available, 'reason_code', 'correction'),
        array(select a.code from adjustment_reasons as a order by a.code), null
    from inventory as i
    inner join products as p on p.id = i.product_id
    inner join warehouses as w on w.id = i.warehouse_id
    where p_kind = 'shelf' and i.product_id = p_id and i.warehouse_id = p_warehouse
    union all
    select concat_ws(' ', l.host, l.process_id), l.activity, l.version, null, null, null
    from listener_activity as l
    where p_kind = 'listener' and l.listener_id = p_id;
end;
comment on function monitor_subject(text, uuid, uuid) is 'The page: what an action is about, in words, and what is asked for at first.';
