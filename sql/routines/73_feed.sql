-- The feed: what happened to orders, payments, refunds and stock, for everybody else. It is a view
-- of what saga_events says already, and of shelves that ran low; its cursor is the id, of one
-- sequence for both.
--
-- Ids are drawn in one order and committed in another, so the highest id that can be seen is no
-- place to go on from: a lower one may still come. Who follows goes no further than the horizon, up to
-- which all is decided. A writer locks the table before it draws an id, and keeps the lock until its
-- commit can be seen: so when all who held that lock at a moment are gone, every id that was
-- drawn by then is there, or never will be. docs/decisions/feed.md.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger stock_alerts_refuse_change
before update on stock_alerts
for each row execute function refuse_change();

create or replace trigger stock_alerts_refuse_truncate
before truncate on stock_alerts
for each statement execute function refuse_change();

-- Trigger: a shelf has run low. Locks nothing, raises nothing.
create or replace function note_low_stock() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    insert into stock_alerts (warehouse_id, product_id, quantity_sellable, reorder_point)
    values (new.warehouse_id, new.product_id, new.quantity_sellable, new.reorder_point);
    return null;
end
$$;
comment on function note_low_stock() is 'Trigger: writes down that a shelf came down to its reorder point.';

-- Once per crossing, whoever moves the units or the reorder point.
create or replace trigger inventory_tells_when_it_runs_low
after update of quantity_available, quantity_reserved, reorder_point on inventory
for each row
when (new.quantity_sellable <= new.reorder_point and old.quantity_sellable > old.reorder_point)
execute function note_low_stock();

-- A payment has failed when its step has, for good; an order is paid when the step is done that says
-- so in the plan. A parcel has one event, of the transaction in which it left, so that nothing of it
-- comes below the cursor; shipments.shipped_at has no id of that sequence. So has a return, whose
-- movements have none either. What a row is about in short; the rest is read where it stands.
-- What happened to a warehouse before it came here from another cell was told there.
create or replace view feed with (security_invoker = true) as
select
    e.id, t.topic, e.created_at, e.warehouse_id,
    coalesce(o.id, e.saga_id) as subject,
    o.id as order_id, o.order_number, r.id as refund_id,
    case when e.event_type = 'shipped' then e.message::uuid end as shipment_id,
    case when e.event_type = 'returned' then e.message::uuid end as return_id, e.saga_id, s.saga_type,
    null::uuid as product_id, null::integer as quantity_sellable, null::integer as reorder_point,
    e.error_code, case when e.event_type not in ('shipped', 'returned') then e.message end as message
from saga_events as e
inner join sagas as s on s.id = e.saga_id
left join saga_steps as p
    on p.saga_type = s.saga_type and p.plan_version = s.plan_version and p.step_name = e.step_name
left join refunds as r on r.id = e.saga_id
left join orders as o on o.id = coalesce(r.order_id, e.saga_id)
cross join lateral (
    select case
        when e.event_type = 'saga_stuck' then 'saga.stuck'
        when e.event_type = 'reported' then case when e.error_code = 'DP027' then 'payment.disputed' end
        when e.event_type in ('saga_completed', 'saga_compensated') and r.id is not null then 'refund.settled'
        when o.id is null or r.id is not null then null
        when e.event_type = 'saga_started' then 'order.placed'
        when e.event_type = 'saga_completed' then 'order.fulfilled'
        when e.event_type = 'saga_compensated' then 'order.cancelled'
        when e.event_type = 'step_completed' and p.order_status_done = 'paid' then 'order.paid'
        when e.event_type = 'step_failed' and p.order_status_refused = 'payment_failed'
            and e.next_attempt_at is null and e.error_code in ('DP013', 'DP014', 'DP026', 'DP046') then 'payment.failed'
        when e.event_type = 'shipped' then 'order.shipped'
        when e.event_type = 'returned' then 'order.returned'
    end::feed_topic as topic
) as t
where e.event_type in (
    'saga_started', 'step_completed', 'step_failed', 'reported', 'saga_completed', 'saga_compensated', 'saga_stuck',
    'shipped', 'returned'
) and t.topic is not null
    and not exists (select from moved_warehouses as m where m.warehouse_id = e.warehouse_id and (m.state = 'coming' or e.id <= m.told_after))
union all
select
    a.id, 'stock.low', a.created_at, a.warehouse_id, a.product_id,
    null, null, null, null, null, null, null, a.product_id, a.quantity_sellable, a.reorder_point, null, null
from stock_alerts as a
where not exists (select from moved_warehouses as m where m.warehouse_id = a.warehouse_id and (m.state = 'coming' or a.id <= m.told_after));
comment on view feed is
    'What happened to orders, payments, refunds and stock, by id. Who goes on from an id asks follow_feed(): a lower one may commit after a higher.';

-- The transactions that may have drawn an id of the feed and not ended, by their virtual ids. A
-- prepared one has another than it had before, which begins with -1. Locks nothing.
create or replace function feed_writers() returns text[]
language sql volatile
set search_path = darkpearl, pg_temp
begin atomic
    select coalesce(array_agg(distinct l.virtualtransaction), '{}')
    from pg_locks as l
    where l.locktype = 'relation' and l.mode = 'RowExclusiveLock' and l.granted
        and l.database = (select d.oid from pg_database as d where d.datname = current_database())
        and l.relation in ('saga_events'::regclass, 'stock_alerts'::regclass);
end;
comment on function feed_writers() is 'Internal: the transactions that may have drawn an id of the feed and not ended.';

-- Has the BRIN index of this month's events tell of all page ranges that are full. autovacuum does it
-- too, a minute later; until then each look would read all that has come. The range that is being
-- filled stays as it is, so that no insert has to update the index.
-- Locks: the partition, against vacuum and changes of it, for some milliseconds; if that isn't to be
-- had at once, it is left to the next look.
create or replace function index_new_events() returns void
language plpgsql
set search_path = darkpearl, pg_temp
set lock_timeout = '10ms'
as $$
declare
    v_part record;
begin
    for v_part in
        select x.indexrelid::regclass as index_name, p.pages, pg_relation_size(x.indrelid) / current_setting('block_size')::integer / p.pages as ranges
        from pg_inherits as h
        inner join pg_index as x on x.indrelid = h.inhrelid
        inner join pg_class as c on c.oid = x.indexrelid
        inner join pg_am as a on a.oid = c.relam and a.amname = 'brin'
        cross join (values (128)) as p (pages)
        where h.inhparent = 'saga_events'::regclass
            and h.inhrelid in ('saga_events_default'::regclass, to_regclass((event_month(clock())).name))
    loop
        while v_part.ranges > 0 and brin_summarize_range(v_part.index_name, (v_part.ranges - 1) * v_part.pages) > 0 loop
            v_part.ranges := v_part.ranges - 1;
        end loop;
    end loop;
exception
    when lock_not_available then null;
end
$$;
comment on function index_new_events() is 'Internal: brings the BRIN index of this month''s events up to date, as far as its page ranges are full.';

-- One look at how far the feed can be read. p_last and p_writers: the mark that the last look left
-- behind, none for the first; whoever looks keeps it. The horizon is null when those who wrote at that
-- mark are still at it: the same mark goes into the next look then, so that newcomers put nothing off.
-- Reads what follows in another statement, whose snapshot is younger than the look.
-- Locks: as index_new_events(). Raises: DP042 where commits of others aren't seen as they come.
create or replace function look_for_horizon(
    p_last bigint default null, p_writers text[] default null,
    out horizon bigint, out last bigint, out writers text[]
)
language plpgsql volatile
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' or pg_is_in_recovery() then
        perform refuse(
            'DP042', 'the feed cannot be followed from here',
            case when pg_is_in_recovery() then 'A standby does not know who is writing.'
                else format('The transaction is %s, and sees nothing of what commits meanwhile.', current_setting('transaction_isolation'))
            end,
            'Follow it on the primary, in read committed.'
        );
    end if;
    last := coalesce(pg_sequence_last_value('saga_events_id_seq'), 0);
    if p_last is not null and p_writers = '{}' and last = p_last then
        horizon := last;
        writers := '{}';
        return;
    end if;
    if p_last is null or last / 2000 <> p_last / 2000 then
        perform index_new_events();
    end if;
    -- After the id: who drew one up to it is among them, or has ended.
    writers := feed_writers();
    if writers = '{}' then
        horizon := last;
    elsif p_last is null then
        return;
    elsif p_writers && writers or exists (select from unnest(writers) as w where w like '-1/%') then
        last := p_last;
        writers := p_writers;
    else
        horizon := p_last;
    end if;
end
$$;
comment on function look_for_horizon(bigint, text[]) is
    'One look at how far the feed can be read: the horizon, or null while writers are under way, and the mark to pass to the next look.';

-- Where the next look at the feed, after an id and up to another, ends: past ids that nobody has, in
-- leaps, then p_ids that are to be looked through. There is no index by id but a BRIN one,
-- which an order doesn't pay for; it finds the pages of a range. Locks nothing.
create or replace function end_of_look(p_after bigint, p_upto bigint, p_ids bigint) returns bigint
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_indexscan = off
set enable_indexonlyscan = off
set plan_cache_mode = force_custom_plan
as $$
declare
    v_leap bigint := p_ids;
    v_from bigint := p_after;
begin
    loop
        if v_from + v_leap >= p_upto then
            return p_upto;
        elsif exists (select from saga_events as e where e.id > v_from and e.id <= v_from + v_leap)
            or exists (select from stock_alerts as a where a.id > v_from and a.id <= v_from + v_leap)
        then
            exit when v_leap = p_ids;
            v_leap := greatest(v_leap / 4, p_ids);
        else
            v_from := v_from + v_leap;
            v_leap := v_leap * 4;
        end if;
    end loop;
    return v_from + v_leap;
end
$$;
comment on function end_of_look(bigint, bigint, bigint) is 'Internal: up to which id the feed is looked through next.';

-- The feed after an id, up to another that the horizon allows: some rows at most, and from where to
-- go on, for which no row need be there. It looks through as many ids as so many rows are found among,
-- so that no topic that is rare takes long. Rows of a cell beside home say which one it is: ids are
-- one in a cell, and not over all. Locks nothing.
create or replace function read_feed(
    p_after bigint, p_upto bigint, p_topics feed_topic[], p_limit integer, out events json, out next bigint
)
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set max_parallel_workers_per_gather = 0
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_end constant bigint := end_of_look(
        p_after, p_upto, greatest(p_limit * case when p_topics is null then 2 else 10 end, 100)
    );
    v_count bigint;
begin
    select
        coalesce(
            json_agg(
                case when this_cell() = 1 then to_json(n) else (to_jsonb(n) || jsonb_build_object('cell', this_cell()))::json end
                order by n.id
            ),
            '[]'
        ),
        count(*), max(n.id)
    into events, v_count, next
    from (
        select f.* from feed as f
        where f.id > p_after and f.id <= v_end and (p_topics is null or f.topic = any(p_topics))
        order by f.id
        limit p_limit
    ) as n;
    if v_count < p_limit then
        next := greatest(v_end, p_after);
    end if;
end
$$;
comment on function read_feed(bigint, bigint, feed_topic[], integer) is
    'The feed after an id and up to one that look_for_horizon() gave: rows as JSON, and from where to go on.';

-- For SQL: the feed after an id, some rows at most, all of it that is decided. A transaction that has
-- written to it and stays open holds it up for everybody, see blocking_sessions(); it is waited for
-- up to p_patience_seconds, then nothing is returned, and nothing lost: ask again.
-- Locks nothing. Raises: DP015, DP042.
create or replace function follow_feed(
    p_after bigint default 0, p_limit integer default 100, p_topics feed_topic[] default null,
    p_patience_seconds numeric default 1
)
returns table (
    id bigint, topic feed_topic, created_at timestamptz, warehouse_id uuid, subject uuid, order_id uuid,
    order_number bigint, refund_id uuid, shipment_id uuid, return_id uuid, saga_id uuid, saga_type text, product_id uuid,
    quantity_sellable integer, reorder_point integer, error_code text, message text
)
language plpgsql volatile
set search_path = darkpearl, pg_temp
as $$
#variable_conflict use_column
declare
    v_until constant timestamptz := clock_timestamp() + p_patience_seconds * interval '1 second';
    v_look record;
    v_part record;
    v_after bigint := p_after;
begin
    if (p_limit between 1 and 10000 and p_after >= 0 and p_patience_seconds between 0 and 60) is not true then
        perform refuse(
            'DP015', 'feed cannot be read like that',
            format('Asked for %s rows after %s, within %s seconds.', p_limit, p_after, p_patience_seconds),
            'Pass an id from 0 on, 1 to 10000 rows, and 0 to 60 seconds.'
        );
    end if;
    select h.* into v_look from look_for_horizon() as h;
    while v_look.horizon is null loop
        if clock_timestamp() >= v_until then
            return;
        end if;
        perform pg_sleep(0.002);
        select h.* into v_look from look_for_horizon(v_look.last, v_look.writers) as h;
    end loop;
    while v_after < v_look.horizon loop
        select f.* into v_part from read_feed(v_after, v_look.horizon, p_topics, p_limit) as f;
        return query select r.* from json_populate_recordset(null::feed, v_part.events) as r;
        exit when json_array_length(v_part.events) > 0;
        v_after := v_part.next;
    end loop;
end
$$;
comment on function follow_feed(bigint, integer, feed_topic[], numeric) is
    'The feed after an id, as far as all of it is decided. Go on from the last id: nothing is missed.';
