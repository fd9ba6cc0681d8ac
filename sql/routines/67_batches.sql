-- Batches: an action of an operator on all that a filter finds, in the server.
--
--   select * from retry_sagas('{"step": "process_payment", "error_code": "DP017"}');         -- a preview
--   select * from retry_sagas('{"step": "process_payment"}', 'gateway is back', false, 200);  -- 200 a second
--
-- What is found is written down, then listeners work it off in bites, at a pace, each item by the
-- function for one of it, and as a subtransaction: what one meets is that one's. A bite is done
-- and noted in one transaction, so whoever is killed in the middle, another goes on where it was.
--
-- Keys of a filter, each a value or an array of them, of which one must be: ids, saga_type, step,
-- status, error_code, cause (see cause_of()), warehouse (id or code), customer, order_status;
-- created_after, created_before. Of gateway events: ids, gateway, outcome, created_after,
-- created_before, which are of when they came.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- What went wrong, without what differs from one to the next: ids, numbers and what is quoted.
-- Locks nothing.
create or replace function cause_of(p_message text) returns text
language sql immutable parallel safe
return left(
    regexp_replace(
        regexp_replace(
            regexp_replace(p_message, '[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}', '…', 'g'),
            '\m[A-Za-z]*_[A-Za-z0-9]*[0-9][A-Za-z0-9]*\M', '…', 'g'
        ),
        '[0-9]+([.,:][0-9]+)*', '…', 'g'
    ), 200
);
comment on function cause_of(text) is 'A message without ids and numbers, so that what has one cause can be counted together.';

-- The values of a key of a filter; null when it hasn't the key. Locks nothing.
create or replace function filter_values(p_filter jsonb, p_key text) returns text[]
language sql immutable
return case
    when jsonb_typeof(p_filter -> p_key) = 'array' then array(select jsonb_array_elements_text(p_filter -> p_key))
    when p_filter ? p_key then array[p_filter ->> p_key]
end;
comment on function filter_values(jsonb, text) is 'Internal: the values of a key of a filter.';

-- Refuses a filter that is none, or that has a key which the action doesn't know: what was to
-- narrow would narrow nothing. Locks nothing. Raises: DP015.
create or replace function refuse_wrong_filter(p_action batch_action, p_filter jsonb) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_keys constant text[] := case p_action
        when 'ack_gateway_events' then '{ids,gateway,outcome,created_after,created_before}'::text[]
        else '{ids,saga_type,step,status,error_code,cause,warehouse,customer,order_status,created_after,created_before}'
    end;
    v_wrong text;
begin
    if jsonb_typeof(p_filter) is distinct from 'object' then
        perform refuse(
            'DP015', 'filter must be an object', format('p_filter is %s.', coalesce('a JSON ' || jsonb_typeof(p_filter), 'null')),
            'Pass {} for all, or {"step": "…"}.'
        );
    end if;
    select coalesce(
        (select format('has the unknown key %s', left(k, 50)) from jsonb_object_keys(p_filter) as k where k <> all(v_keys) limit 1),
        (
            select format('has a value of %s that is none', f.key)
            from jsonb_each(p_filter) as f
            cross join lateral jsonb_array_elements(
                case jsonb_typeof(f.value) when 'array' then f.value else jsonb_build_array(f.value) end
            ) as v
            where jsonb_typeof(v) not in ('string', 'number') limit 1
        ),
        (
            select format('has no time in %s', t.key)
            from jsonb_each_text(p_filter) as t
            where t.key in ('created_after', 'created_before') and t.value !~ '^[0-9]{4}-[01][0-9]-[0-3][0-9]([T ][0-9:.+Z-]+)?$'
            limit 1
        )
    ) into v_wrong;
    if v_wrong is not null then
        perform refuse(
            'DP015', 'filter makes no sense', format('The filter %s.', v_wrong),
            format('It may have %s; of most also an array of values.', array_to_string(v_keys, ', '))
        );
    end if;
end
$$;
comment on function refuse_wrong_filter(batch_action, jsonb) is 'Internal: refuses a filter with keys or values that are none.';

-- The sagas that an action is for and a filter finds, the oldest first, with the money that each
-- is about: its refund, or its order. Without those that a batch of the same action has in hand, and
-- those of warehouses that are closed here. Looks for why each failed only if the filter asks. Locks nothing. Raises: 22P02 for a value
-- that is no id or status, 22007 and 22008 for one that is no time.
create or replace function find_sagas_to(p_action batch_action, p_filter jsonb, p_limit bigint)
returns table (saga_id uuid, amount numeric, currency text)
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_ids constant uuid[] := filter_values(p_filter, 'ids');
    v_types constant text[] := filter_values(p_filter, 'saga_type');
    v_steps constant text[] := filter_values(p_filter, 'step');
    v_statuses constant saga_status[] := filter_values(p_filter, 'status');
    v_codes constant text[] := filter_values(p_filter, 'error_code');
    v_causes constant text[] := filter_values(p_filter, 'cause');
    v_warehouses constant text[] := filter_values(p_filter, 'warehouse');
    v_customers constant text[] := filter_values(p_filter, 'customer');
    v_order_statuses constant order_status[] := filter_values(p_filter, 'order_status');
    v_after constant timestamptz := p_filter ->> 'created_after';
    v_before constant timestamptz := p_filter ->> 'created_before';
    v_closed constant uuid[] := closed_warehouses();
    v_looks_back constant boolean := num_nonnulls(v_steps, v_codes, v_causes) > 0;
begin
    return query
    with candidate as (
        select s.* from sagas as s
        where p_action in ('retry_sagas', 'skip_steps', 'cancel_orders') and s.status = 'stuck' and (s.status = 'stuck') is true
        union all
        select s.* from sagas as s
        where s.ready_at is not null and (p_action = 'cancel_orders' or (p_action = 'resume_sagas' and backs_off(s)))
    )
    select c.id, coalesce(r.amount, o.total_amount)::numeric, coalesce(r.currency, o.currency)::text
    from candidate as c
    inner join warehouses as w on w.id = c.warehouse_id
    left join saga_steps as t
        on t.saga_type = c.saga_type and t.plan_version = c.plan_version and t.position = c.position
    left join refunds as r on r.id = c.id and r.warehouse_id = c.warehouse_id
    left join orders as o on o.id = coalesce(r.order_id, c.id) and o.warehouse_id = c.warehouse_id
    left join lateral last_failure(c.id, c.created_at) as f on v_looks_back
    where (p_action <> 'cancel_orders' or (o.id = c.id and not c.cancel_requested and (c.status <> 'compensating' or exists (
            select from saga_steps as u
            where u.saga_type = c.saga_type and u.plan_version = c.plan_version and u.position <= c.position and u.wait_again
        ))))
        and not array[c.warehouse_id] <@ v_closed and (v_ids is null or c.id = any(v_ids)) and (v_types is null or c.saga_type = any(v_types))
        and (v_statuses is null or c.status = any(v_statuses))
        and (v_steps is null or case c.status
            when 'stuck' then coalesce(f.step_name, t.step_name) when 'compensating' then t.undo_name else t.step_name
        end = any(v_steps))
        and (v_codes is null or f.error_code = any(v_codes)) and (v_causes is null or cause_of(f.message) = any(v_causes))
        and (v_warehouses is null or w.id::text = any(v_warehouses) or w.code = any(v_warehouses))
        and (v_customers is null or o.customer_id = any(v_customers))
        and (v_order_statuses is null or o.status = any(v_order_statuses))
        and (v_after is null or c.created_at >= v_after) and (v_before is null or c.created_at < v_before)
        and not exists (
            select from batches as b
            inner join batch_items as i on i.batch_id = b.id and i.n > b.position
            where b.finished_at is null and b.action = p_action and i.saga_id = c.id
        )
    order by c.created_at, c.id
    limit p_limit;
end
$$;
comment on function find_sagas_to(batch_action, jsonb, bigint) is 'Internal: the sagas that an action is for and a filter finds.';

-- The events of gateways that want a look and a filter finds, the oldest first, with the money that
-- each tells of. Without those that a batch has in hand. Locks nothing. Raises: as find_sagas_to().
create or replace function find_events_to_ack(p_filter jsonb, p_limit bigint)
returns table (gateway text, event_id text, amount numeric, currency text)
language plpgsql stable
set search_path = darkpearl, pg_temp
set plan_cache_mode = force_custom_plan
as $$
declare
    v_ids constant text[] := filter_values(p_filter, 'ids');
    v_gateways constant text[] := filter_values(p_filter, 'gateway');
    v_outcomes constant text[] := filter_values(p_filter, 'outcome');
    v_after constant timestamptz := p_filter ->> 'created_after';
    v_before constant timestamptz := p_filter ->> 'created_before';
begin
    return query
    select g.gateway, g.event_id, told_money(g.answer, 'amount', c.currency), c.currency
    from gateway_events as g
    cross join lateral (select substring(upper(g.answer ->> 'currency') from '^[A-Z]{3}$') as currency) as c
    where g.disposition = 'unmatched' and (v_ids is null or g.event_id = any(v_ids))
        and (v_gateways is null or g.gateway = any(v_gateways))
        and (v_outcomes is null or g.answer ->> 'outcome' = any(v_outcomes))
        and (v_after is null or g.received_at >= v_after) and (v_before is null or g.received_at < v_before)
        and not exists (
            select from batches as b
            inner join batch_items as i on i.batch_id = b.id and i.n > b.position
            where b.finished_at is null and b.action = 'ack_gateway_events' and i.gateway = g.gateway and i.event_id = g.event_id
        )
    order by g.received_at, g.event_id
    limit p_limit;
end
$$;
comment on function find_events_to_ack(jsonb, bigint) is 'Internal: the events of gateways that want a look and a filter finds.';

-- What an action is for and a filter finds, in its order. Locks nothing. Raises: DP015.
create or replace function find_batch_items(p_action batch_action, p_filter jsonb, p_limit bigint)
returns table (n bigint, saga_id uuid, gateway text, event_id text, amount numeric, currency text)
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
begin
    perform refuse_wrong_filter(p_action, p_filter);
    if p_action = 'ack_gateway_events' then
        return query
        select f.n, null::uuid, f.gateway, f.event_id, f.amount, f.currency
        from find_events_to_ack(p_filter, p_limit) with ordinality as f (gateway, event_id, amount, currency, n);
    else
        return query
        select f.n, f.saga_id, null, null, f.amount, f.currency
        from find_sagas_to(p_action, p_filter, p_limit) with ordinality as f (saga_id, amount, currency, n);
    end if;
exception
    when invalid_text_representation or invalid_datetime_format or datetime_field_overflow then
        perform refuse('DP015', 'filter makes no sense', sqlerrm, 'See the columns that the filter is about.');
end
$$;
comment on function find_batch_items(batch_action, jsonb, bigint) is 'Internal: what an action is for and a filter finds.';

-- A preview of a batch or, without p_dry_run, the batch: what it finds is written down, and
-- listeners begin. Returns how many it is about, the oldest 100,000 at most, and whether there are
-- more; the money of all of these, by currency; and the batch. More come with another batch.
-- Locks nothing. Raises: DP015.
create or replace function start_batch(p_action batch_action, p_filter jsonb, p_reason text, p_dry_run boolean, p_pace integer)
returns table (batch_id uuid, total bigint, amounts jsonb, has_more boolean)
language plpgsql
set search_path = darkpearl, pg_temp
as $$
#variable_conflict use_column
declare
    v_most constant bigint := 100000;
    v_dry_run constant boolean := coalesce(p_dry_run, true);
    v_batch_id constant uuid := case when not v_dry_run then new_id() end;
    v_total bigint;
    v_amounts jsonb;
    v_has_more boolean;
begin
    if not v_dry_run then
        perform refuse_no_reason(p_reason);
        if (p_pace between 1 and 1000) is not true then
            perform refuse(
                'DP015', 'pace makes no sense', format('Asked for %s a second.', coalesce(p_pace::text, 'null')),
                'Use 1 to 1000.'
            );
        end if;
        insert into batches (id, action, filter, reason, actor, pace_per_second, total)
        values (v_batch_id, p_action, p_filter, p_reason, current_actor(), p_pace, 0);
    end if;
    with found as materialized (
        select f.* from find_batch_items(p_action, p_filter, v_most + 1) as f
    ),
    added as (
        insert into batch_items (batch_id, n, saga_id, gateway, event_id)
        select v_batch_id, f.n, f.saga_id, f.gateway, f.event_id from found as f where f.n <= v_most and not v_dry_run
    )
    select
        count(*) filter (where f.n <= v_most), count(*) > v_most,
        coalesce((
            select jsonb_object_agg(m.currency, m.amount)
            from (
                select a.currency, sum(a.amount) as amount from found as a
                where a.n <= v_most and a.currency is not null and a.amount is not null group by a.currency
            ) as m
        ), '{}')
    into v_total, v_has_more, v_amounts
    from found as f;
    if not v_dry_run then
        update batches as b
        set total = v_total, finished_at = case when v_total = 0 then clock() end
        where b.id = v_batch_id;
        perform note_action(
            p_action::text, v_batch_id::text, p_reason, jsonb_build_object('filter', p_filter, 'total', v_total, 'amounts', v_amounts)
        );
    end if;
    return query select v_batch_id, v_total, v_amounts, v_has_more;
end
$$;
comment on function start_batch(batch_action, jsonb, text, boolean, integer) is 'Internal: previews or starts a batch.';

-- Tries all stuck sagas that a filter finds again, see retry_saga(). As start_batch().
create or replace function retry_sagas(
    p_filter jsonb, p_reason text default null, p_dry_run boolean default true, p_pace integer default 100
) returns table (batch_id uuid, total bigint, amounts jsonb, has_more boolean)
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select b.batch_id, b.total, b.amounts, b.has_more from start_batch('retry_sagas', p_filter, p_reason, p_dry_run, p_pace) as b;
end;
comment on function retry_sagas(jsonb, text, boolean, integer) is
    'Operator: tries all stuck sagas that a filter finds again; a preview, unless p_dry_run is false.';

-- Takes for done what all stuck sagas that a filter finds have asked for, see skip_step(). As start_batch().
create or replace function skip_steps(
    p_filter jsonb, p_reason text default null, p_dry_run boolean default true, p_pace integer default 100
) returns table (batch_id uuid, total bigint, amounts jsonb, has_more boolean)
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select b.batch_id, b.total, b.amounts, b.has_more from start_batch('skip_steps', p_filter, p_reason, p_dry_run, p_pace) as b;
end;
comment on function skip_steps(jsonb, text, boolean, integer) is
    'Operator: what all stuck sagas that a filter finds asked for was done by hand; a preview, unless p_dry_run is false.';

-- Cancels all orders on their way that a filter finds, see cancel_order(), and turn_back_saga() for
-- those that are stuck. As start_batch().
create or replace function cancel_orders(
    p_filter jsonb, p_reason text default null, p_dry_run boolean default true, p_pace integer default 100
) returns table (batch_id uuid, total bigint, amounts jsonb, has_more boolean)
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select b.batch_id, b.total, b.amounts, b.has_more from start_batch('cancel_orders', p_filter, p_reason, p_dry_run, p_pace) as b;
end;
comment on function cancel_orders(jsonb, text, boolean, integer) is
    'Operator: cancels all orders on their way that a filter finds; a preview, unless p_dry_run is false.';

-- Tries all sagas at once that a filter finds and that wait for their next try, see resume_saga().
-- As start_batch().
create or replace function resume_sagas(
    p_filter jsonb, p_reason text default null, p_dry_run boolean default true, p_pace integer default 100
) returns table (batch_id uuid, total bigint, amounts jsonb, has_more boolean)
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select b.batch_id, b.total, b.amounts, b.has_more from start_batch('resume_sagas', p_filter, p_reason, p_dry_run, p_pace) as b;
end;
comment on function resume_sagas(jsonb, text, boolean, integer) is
    'Operator: tries all sagas at once that a filter finds and that back off; a preview, unless p_dry_run is false.';

-- Acknowledges all unmatched events of gateways that a filter finds, see ack_gateway_event(). As start_batch().
create or replace function ack_gateway_events(
    p_filter jsonb, p_reason text default null, p_dry_run boolean default true, p_pace integer default 100
) returns table (batch_id uuid, total bigint, amounts jsonb, has_more boolean)
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select b.batch_id, b.total, b.amounts, b.has_more from start_batch('ack_gateway_events', p_filter, p_reason, p_dry_run, p_pace) as b;
end;
comment on function ack_gateway_events(jsonb, text, boolean, integer) is
    'Operator: acknowledges all unmatched events of gateways that a filter finds; a preview, unless p_dry_run is false.';

-- Stops a batch where it is; what it has done stays done. Locks: the batch, and waits for the bite
-- that is under way. Raises: DP010, DP015 without a reason, or when it has ended.
create or replace function stop_batch(p_batch_id uuid, p_reason text) returns batches
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_batch batches;
begin
    perform refuse_no_reason(p_reason);
    select b.* into v_batch from batches as b where b.id = p_batch_id for no key update;
    if not found then
        perform refuse('DP010', 'no such batch', format('There is no batch %s.', p_batch_id), 'See batch_overview.');
    elsif v_batch.finished_at is not null then
        perform refuse(
            'DP015', 'batch has ended', format('Batch %s ended at %s.', p_batch_id, v_batch.finished_at), 'See batch_items for what it did.'
        );
    end if;
    update batches as b
    set finished_at = clock(), stopped_by = current_actor()
    where b.id = p_batch_id
    returning b.* into v_batch;
    perform note_action(
        'stop_batch', p_batch_id::text, p_reason, jsonb_build_object('done', v_batch.done, 'failed', v_batch.failed)
    );
    return v_batch;
end
$$;
comment on function stop_batch(uuid, text) is 'Operator: stops a batch where it is; what it has done stays done.';

-- Does to one item of a batch what the batch is for. Locks and raises: as the function for one of it.
create or replace function act_on_item(p_batch batches, p_item batch_items) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    case p_batch.action
        when 'retry_sagas' then perform retry_saga(p_item.saga_id, p_batch.reason);
        when 'skip_steps' then perform skip_step(p_item.saga_id, p_batch.reason);
        when 'resume_sagas' then perform resume_saga(p_item.saga_id, p_batch.reason);
        when 'ack_gateway_events' then perform ack_gateway_event(p_item.gateway, p_item.event_id, p_batch.reason);
        when 'cancel_orders' then
            if exists (select from sagas as s where s.id = p_item.saga_id and s.status = 'stuck') then
                perform turn_back_saga(p_item.saga_id, p_batch.reason);
            else
                perform cancel_order(p_item.saga_id, p_batch.reason);
            end if;
    end case;
end
$$;
comment on function act_on_item(batches, batch_items) is 'Internal: does to an item of a batch what the batch is for.';

-- Sees to one item of a batch, and writes down what became of it. What fails leaves nothing behind
-- but that. One that meets somebody else's lock, or a limit, is put behind the last, ten times at
-- most; then it has failed by that. Returns its result, null when it was put back.
-- Locks: what act_on_item() does. Raises: what says nothing of the item, such as a shutdown.
create or replace function work_item(p_batch batches, p_item batch_items) returns batch_result
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_most_tries constant smallint := 10;
    v_message text;
    v_detail text;
begin
    perform act_on_item(p_batch, p_item);
    update batch_items as i
    set result = 'done', ended_at = clock()
    where i.batch_id = p_batch.id and i.n = p_item.n;
    return 'done';
exception
    when others then
        get stacked diagnostics v_message = message_text, v_detail = pg_exception_detail;
        if is_outage(sqlstate) and not may_be_ones_own(sqlstate) then
            raise;
        elsif may_be_ones_own(sqlstate) and p_item.tries < v_most_tries then
            update batch_items as i
            set n = 1 + (select max(l.n) from batch_items as l where l.batch_id = p_batch.id), tries = i.tries + 1
            where i.batch_id = p_batch.id and i.n = p_item.n;
            return null;
        end if;
        update batch_items as i
        set result = 'failed', error_code = sqlstate, message = left(concat_ws(': ', v_message, nullif(v_detail, '')), 1000),
            ended_at = clock()
        where i.batch_id = p_batch.id and i.n = p_item.n;
        return 'failed';
end
$$;
comment on function work_item(batches, batch_items) is 'Internal: sees to one item of a batch, and writes down what became of it.';

-- A bite of the batch that is due first: its next items, a twentieth of a second's worth by its pace, so
-- that what they set going comes to the engine in a stream and not in heaps beside new orders, and as
-- many more as have become due since, of a fifth of a second at most: who comes late because bites take long
-- keeps the pace by larger ones, and who comes after an absence begins anew. 50 at most, since each is a
-- subtransaction. Who started the batch is the actor of all that is done,
-- and its id the request. Returns the batch, how many items were seen to, and in how many seconds a
-- batch is due again; no row, when there is none that nobody else is at.
-- Call it in a transaction of its own.
-- Locks: the batch, then what act_on_item() does, which waits 200 ms at most.
create or replace function work_batches(p_limit integer default 50)
returns table (batch_id uuid, worked integer, wait_seconds double precision)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '200ms'
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
    v_batch batches;
    v_item batch_items;
    v_results text[] := '{}';
    v_late interval;
begin
    select b.* into v_batch from batches as b
    where b.finished_at is null
    order by b.next_at, b.id
    limit 1
    for no key update skip locked;
    if not found then
        return;
    end if;
    -- A clock that was set back leaves what is due far off.
    if v_batch.next_at > v_now and v_batch.next_at < v_now + interval '1 minute' then
        return query select v_batch.id, 0, extract(epoch from v_batch.next_at - v_now)::float8;
        return;
    end if;
    v_late := case
        when v_now - v_batch.next_at between interval '0' and interval '5 seconds'
            then least(v_now - v_batch.next_at, interval '0.2 seconds')
        else interval '0'
    end;
    perform set_config('darkpearl.on_behalf_of', v_batch.actor, true);
    perform set_config('request.id', v_batch.id::text, true);
    for v_item in
        select i.* from batch_items as i
        where i.batch_id = v_batch.id and i.n > v_batch.position
        order by i.n
        limit least(greatest(p_limit, 1), 50, ceil(v_batch.pace_per_second * extract(epoch from interval '0.05 seconds' + v_late)))
    loop
        v_results := v_results || coalesce(work_item(v_batch, v_item)::text, 'put back');
        v_batch.position := v_item.n;
    end loop;
    perform set_config('darkpearl.on_behalf_of', '', true);
    perform set_config('request.id', '', true);
    v_batch.next_at := case when v_batch.next_at between v_now - interval '1 second' and v_now then v_batch.next_at else v_now end
        + cardinality(v_results) * interval '1 second' / v_batch.pace_per_second
        + case when 'put back' = any(v_results) then interval '1 second' else interval '0' end;
    update batches as b
    set position = v_batch.position, next_at = v_batch.next_at,
        done = b.done + cardinality(array_positions(v_results, 'done')),
        failed = b.failed + cardinality(array_positions(v_results, 'failed')),
        finished_at = case
            when not exists (select from batch_items as i where i.batch_id = b.id and i.n > v_batch.position) then clock()
        end
    where b.id = v_batch.id;
    return query select v_batch.id, cardinality(v_results), greatest(extract(epoch from v_batch.next_at - clock()), 0)::float8;
end
$$;
comment on function work_batches(integer) is
    'Housekeeping: a bite of the batch that is due first; how many items, and in how many seconds the next is due.';
