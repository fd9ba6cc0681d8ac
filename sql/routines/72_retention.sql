-- Retention: for how long each kind of row is kept, and its removal in small bites, which
-- keeps nobody waiting. For ever, unless somebody says otherwise:
--
--   update retention set keep_days = 730 where kind = 'orders';
--   select * from retention_due();          -- what would go, of which months, and how much it is
--
--   orders          whole orders that are over, from when they ended: lines, adjustments, particulars,
--                   saga, events, movements, returns
--   payments        payments of orders that are gone, with refunds and disputes
--   movements       what people and programs wrote into the ledger
--   gateway_events  what gateways sent
--   events          months of saga_events, also of orders that are kept
--   audit_runs      the audits that were run
--   stock_alerts    shelves that ran low
--   batches         actions on many at once that have ended, with what became of each item
--   step_minutes    statistics by the minute
--   action_log      what people have done by hand, and why
--
-- What is unfinished, stuck, owed, disputed or unmatched stays, however old.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

insert into retention (kind, keep_days, at_least_days)
values
    ('orders', null, 30), ('payments', null, 180), ('movements', null, 30), ('gateway_events', null, 30),
    ('events', null, 62), ('audit_runs', 365, 7), ('stock_alerts', 365, 7), ('batches', 365, 7), ('step_minutes', 90, 7),
    ('action_log', null, 62)
on conflict (kind) do nothing;

-- Trigger: who changes how long something is kept is written down; housekeeping looks anew.
-- Locks nothing.
create or replace function note_retention() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    new.looked_at := null;
    new.next_key := null;
    perform note_action(
        'update retention', new.kind, null, jsonb_build_object(
            'keep_days', jsonb_build_array(old.keep_days, new.keep_days),
            'export_first', jsonb_build_array(old.export_first, new.export_first)
        )
    );
    return new;
end
$$;
comment on function note_retention() is 'Trigger: writes changes of retention into action_log.';

create or replace trigger retention_changes_are_noted
before update of keep_days, export_first on retention
for each row
when ((old.keep_days, old.export_first) is distinct from (new.keep_days, new.export_first))
execute function note_retention();

create or replace trigger retention_refuses_removal
before delete on retention
for each row execute function refuse_change();

-- Trigger: what people have done by hand stays, but for what is older than retention says. Raises DP005.
create or replace function refuse_to_forget_action() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if exists (select from retention as r where r.kind = 'action_log' and old.at < clock() - r.keep_days * interval '1 day') then
        return old;
    end if;
    perform refuse(
        'DP005', 'action_log is append-only', format('A DELETE of what was done at %s was refused.', old.at),
        'What was done by hand is kept for as long as retention says: update retention set keep_days = … where kind = ''action_log''.'
    );
end
$$;
comment on function refuse_to_forget_action() is 'Trigger: refuses to remove what people did by hand, unless it is older than retention says.';

create or replace trigger action_log_refuses_removal
before delete on action_log
for each row execute function refuse_to_forget_action();

-- Writes down that a month of a kind was copied elsewhere, with the number of its rows, as they
-- were at a moment; what changes later is to be copied again. Locks nothing. Raises: DP015 for
-- a month that wasn't over, or a moment to come; a foreign key violation for an unknown kind.
create or replace function record_export(
    p_kind text, p_month date, p_row_count bigint, p_exported_at timestamptz default clock()
) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if (p_month + interval '1 month' <= p_exported_at at time zone 'UTC' and p_exported_at <= clock()) is not true then
        perform refuse(
            'DP015', 'month is not over',
            format('Month %s was to be exported at %s.', coalesce(p_month::text, 'null'), coalesce(p_exported_at::text, 'null')),
            'Name the first day of a month that has passed.'
        );
    end if;
    insert into retention_exports (kind, month, row_count, exported_at, actor)
    values (p_kind, p_month, p_row_count, p_exported_at, current_actor());
end
$$;
comment on function record_export(text, date, bigint, timestamptz) is
    'Writes down that a month of a kind was exported, so that retention may remove it.';

-- The kinds that housekeeping should look at: those that are not kept for ever and were not
-- looked through for a day; or all of the former. Locks nothing.
create or replace function retention_to_do(p_at_once boolean default false) returns setof text
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select r.kind
    from retention as r
    where r.keep_days is not null and (p_at_once or coalesce(r.looked_at < clock() - interval '1 day', true))
    order by r.kind;
end;
comment on function retention_to_do(boolean) is 'Housekeeping: the kinds of rows that may have become too old.';

-- How much room so many rows of a kind take, with what belongs to them and their indexes, by the
-- average of all that there are; null in tables that were never analysed. Locks nothing.
create or replace function bytes_of(p_kind text, p_row_count bigint) returns bigint
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select (
        p_row_count * sum(pg_total_relation_size(c.oid) + coalesce((
            select sum(pg_total_relation_size(i.inhrelid)) from pg_inherits as i where i.inhparent = c.oid
        ), 0)) / nullif(greatest(max(c.reltuples) filter (where g.n = 1), 0), 0)
    )::bigint
    from unnest(
        case p_kind
            when 'orders' then '{orders,order_items,order_adjustments,order_particulars,sagas,saga_events,stock_movements}'
            when 'payments' then '{payments,payment_attempts,refunds,disputes}'
            when 'movements' then '{stock_movements}'
            when 'batches' then '{batches,batch_items}'
            else array[p_kind]
        end
    ) with ordinality as g (name, n)
    inner join pg_class as c on c.oid = g.name::regclass;
end;
comment on function bytes_of(text, bigint) is 'Internal: an estimate of the room that rows of a kind take.';

-- A dry run: what retention would remove now, by the month that it was made in, and about how
-- much room that takes. It looks at all that is old enough: of a large database, for some
-- seconds. Locks nothing.
create or replace function retention_due()
returns table (kind text, month date, row_count bigint, bytes bigint)
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    with rule as (
        select r.kind, clock() - r.keep_days * interval '1 day' as before from retention as r where r.keep_days is not null
    ),
    due as (
        select r.kind, o.created_at
        from rule as r
        inner join orders as o on o.created_at < r.before
        where r.kind = 'orders'
            and o.id in (select orders_that_are_over(array(select k.id from orders as k where k.created_at < r.before), r.before))
        union all
        select r.kind, p.created_at
        from rule as r
        inner join payments as p on p.created_at < r.before
        where r.kind = 'payments' and p.order_id in (
            select payments_that_are_over(array(select k.order_id from payments as k where k.created_at < r.before), r.before)
        )
        union all
        select r.kind, m.created_at
        from rule as r
        inner join stock_movements as m on m.created_at < r.before
        where r.kind = 'movements' and (m.id, m.warehouse_id) in (
            select o.id, o.warehouse_id
            from old_movements(array(select k.id from stock_movements as k where k.created_at < r.before), r.before) as o
        )
        union all
        select r.kind, g.received_at from rule as r cross join gateway_events as g
        where r.kind = 'gateway_events' and is_event_over(g, r.before)
        union all
        select r.kind, a.started_at from rule as r inner join audit_runs as a on a.started_at < r.before
        where r.kind = 'audit_runs'
        union all
        select r.kind, a.created_at from rule as r inner join stock_alerts as a on a.created_at < r.before
        where r.kind = 'stock_alerts'
        union all
        select r.kind, b.created_at from rule as r inner join batches as b on b.finished_at < r.before
        where r.kind = 'batches'
        union all
        select r.kind, m.minute from rule as r inner join step_minutes as m on m.minute < r.before
        where r.kind = 'step_minutes'
        union all
        select r.kind, a.at from rule as r inner join action_log as a on a.at < r.before
        where r.kind = 'action_log'
    )
    select d.kind, date_trunc('month', d.created_at at time zone 'UTC')::date, count(*), bytes_of(d.kind, count(*))
    from due as d
    group by d.kind, 2
    union all
    select r.kind, to_date(right(p.name, 7), 'YYYY_MM'), p.events, pg_total_relation_size(p.name::regclass)
    from rule as r
    cross join lateral old_event_partitions((r.before at time zone 'UTC')::date) as p
    where r.kind = 'events' and not p.needed
    order by 1, 2;
end;
comment on function retention_due() is
    'What retention would remove now: rows of each kind by month, and about how many bytes that is.';

-- Months of events that are too old, up to the first that is to be exported and wasn't: see
-- drop_event_partitions(). Locks: as that.
create or replace function remove_next_events(p_before timestamptz) returns bigint
language sql
set search_path = darkpearl, pg_temp
begin atomic
    select count(*)
    from drop_event_partitions(
        least(
            p_before at time zone 'UTC', date_trunc('month', clock() at time zone 'UTC') - interval '1 month',
            (
                select min(to_date(right(c.relname, 7), 'YYYY_MM'))
                from pg_inherits as i
                inner join pg_class as c on c.oid = i.inhrelid
                cross join lateral event_month(to_date(right(c.relname, 7), 'YYYY_MM')::timestamp at time zone 'UTC') as m
                where i.inhparent = 'saga_events'::regclass and c.relname ~ '^saga_events_[0-9]{4}_[0-9]{2}$'
                    and not is_exported('events', m.starts_at, greatest(
                        m.ends_at, (select max(came_at(h.warehouse_id)) from moved_warehouses as h)
                    ))
            )
        )::date,
        'retention'
    ) as d
    where d.outcome = 'dropped';
end;
comment on function remove_next_events(timestamptz) is 'Internal: drops the months of saga_events that end before a moment.';

-- A bite: removes some of the oldest rows of a kind, of p_limit that are looked at. Returns how
-- many went, and whether there may be more; nothing, when another session is at it, or while a
-- warehouse moves to another cell. Call it in a transaction of its own.
-- Locks: the row of retention, then what goes; waits 200 ms at most. Raises: DP010 for an
-- unknown kind, DP015, 55P03.
create or replace function apply_retention(p_kind text, p_limit integer default 100)
returns table (removed bigint, has_more boolean)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '200ms'
as $$
declare
    v_rule retention;
    v_before timestamptz;
    v_bite record;
begin
    if p_limit is null or p_limit not between 1 and 10000 then
        perform refuse(
            'DP015', 'no sensible limit', format('Asked to look at %s rows.', coalesce(p_limit::text, 'null')), 'Pass 1 to 10000.'
        );
    end if;
    select r.* into v_rule from retention as r where r.kind = p_kind;
    if not found then
        perform refuse(
            'DP010', 'no such kind', format('There is no retention of %s.', coalesce(p_kind, 'null')), 'See retention.'
        );
    end if;
    if is_warehouse_moving() or not pg_try_advisory_xact_lock(idle_lock_key() + 2) then
        return query select 0::bigint, false;
        return;
    end if;
    v_before := clock() - v_rule.keep_days * interval '1 day';
    case
        when v_before is null then select 0::bigint as removed, null as next_key into v_bite;
        when p_kind = 'orders' then select * into v_bite from remove_next_orders(v_before, v_rule.next_key, p_limit);
        when p_kind = 'payments' then select * into v_bite from remove_next_payments(v_before, v_rule.next_key, p_limit);
        when p_kind = 'movements' then select * into v_bite from remove_next_movements(v_before, v_rule.next_key, p_limit);
        when p_kind = 'gateway_events'
            then select * into v_bite from remove_next_gateway_events(v_before, v_rule.next_key, p_limit);
        when p_kind = 'stock_alerts' then select * into v_bite from remove_next_alerts(v_before, p_limit);
        when p_kind = 'batches' then select * into v_bite from remove_next_batches(v_before, p_limit);
        when p_kind = 'action_log' then select * into v_bite from remove_next_actions(v_before, p_limit);
        when p_kind = 'step_minutes' then select * into v_bite from remove_next_minutes(v_before, p_limit);
        when p_kind = 'events' then select remove_next_events(v_before) as removed, null as next_key into v_bite;
        when p_kind = 'audit_runs' then
            with gone as (delete from audit_runs as a where a.started_at < v_before returning a.id)
            select count(*) as removed, null as next_key into v_bite from gone;
    end case;
    perform forget_timed_ids();
    update retention as r
    set
        removed = r.removed + case when p_kind = 'events' then 0 else v_bite.removed end,
        removed_before = case
            when v_bite.removed > 0 and p_kind <> 'events' then greatest(r.removed_before, v_before) else r.removed_before
        end,
        next_key = v_bite.next_key,
        looked_at = case when v_bite.next_key is null then clock() else r.looked_at end
    where r.kind = p_kind;
    return query select v_bite.removed, v_bite.next_key is not null;
end
$$;
comment on function apply_retention(text, integer) is
    'Housekeeping: removes a bite of the oldest rows of a kind, as retention says; how many went, and whether there may be more.';
