-- The timeline of an order: all that happened to it, whoever did it, as one sequence.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Whether the caller may read a table of ours, by its own grants. For functions that run as their
-- owner. Locks nothing.
create or replace function caller_may_read(p_table regclass) returns boolean
language sql stable
return has_table_privilege(coalesce(nullif(current_setting('role'), 'none'), session_user::text), p_table, 'select');
comment on function caller_may_read(regclass) is 'Internal: whether the caller may read a table, by its own grants.';

-- What is written of an order beside its events: money as it stands, refunds, disputes, parcels,
-- goods that moved, what gateways told, people did and webhooks failed to tell. p_sagas: the order's
-- and its refunds'. Each part as far as the caller may read it. Locks nothing.
create or replace function records_of_order(p_order_id uuid, p_sagas uuid[])
returns table (happened_at timestamptz, kind text, actor text, what text, detail jsonb)
language sql stable
set search_path = darkpearl, pg_temp
begin atomic
    select p.updated_at, 'payment', p.gateway, p.status::text, jsonb_build_object(
        'currency', p.currency, 'requested', p.requested_amount, 'captured', p.captured_amount, 'refunded', p.refunded_amount,
        'voided', p.voided_amount, 'reference', p.gateway_reference, 'decline_code', told_decline_code(p.order_id)
    )
    from payments as p where p.order_id = p_order_id
    union all
    select r.updated_at, 'refund', r.gateway, r.status::text, jsonb_build_object(
        'refund_id', r.id, 'amount', r.amount, 'currency', r.currency, 'reason', r.reason, 'reference', r.gateway_reference,
        'decline_code', told_decline_code(p_order_id, r.id)
    )
    from refunds as r where r.order_id = p_order_id
    union all
    select d.updated_at, 'dispute', d.gateway, d.status::text, jsonb_build_object(
        'reference', d.reference, 'amount', d.amount, 'currency', d.currency, 'reason', d.reason, 'opened_at', d.opened_at
    )
    from disputes as d where d.order_id = p_order_id
    union all
    select coalesce(h.shipped_at, h.created_at), 'parcel', case when caller_may_read('shipments') then h.actor end,
        case when h.shipped_at is null then 'packed' else 'shipped' end, jsonb_build_object(
            'shipment_id', h.id, 'carrier', h.carrier, 'tracking_number', h.tracking_number, 'tracking_url', h.tracking_url
        )
    from shipments as h where h.order_id = p_order_id
    union all
    select m.created_at, 'movement', m.actor, m.movement_type::text, jsonb_build_object(
        'product_id', m.product_id, 'quantity', m.quantity, 'available_after', m.available_after,
        'reserved_after', m.reserved_after, 'reference_type', m.reference_type, 'notes', m.notes
    )
    from stock_movements as m
    where caller_may_read('stock_movements') and (
        (m.correlation_id = p_order_id and m.movement_type in ('reserve', 'release', 'fulfill'))
        or (m.reference_id = p_order_id and m.reference_type in ('return', 'shipment', 'cancellation'))
    )
    union all
    select g.received_at, 'gateway event', g.gateway, g.disposition::text,
        jsonb_build_object('event_id', g.event_id, 'call', call_of_key(g.idempotency_key), 'answer', g.answer)
    from gateway_events as g
    where caller_may_read('gateway_events') and split_part(g.idempotency_key, ':', 1) = any(p_sagas::text[])
    union all
    select a.at, 'action', a.actor, a.action, jsonb_build_object('reason', a.reason) || coalesce(a.detail, '{}')
    from action_log as a
    where caller_may_read('action_log') and a.subject = any(p_sagas::text[])
    union all
    select t.first_failed_at, 'webhook', w.url, case when t.given_up_at is null then 'failing' else 'given up' end,
        jsonb_build_object('event_id', t.event_id, 'attempts', t.attempts, 'last_error', t.last_error, 'next_attempt_at', t.next_attempt_at)
    from saga_events as e
    cross join webhook_endpoints as w
    inner join webhook_retries as t on t.endpoint_id = w.id and t.event_id = e.id and t.subject = any(p_sagas)
    where caller_may_read('webhook_retries') and e.saga_id = any(p_sagas);
end;
comment on function records_of_order(uuid, uuid[]) is 'Internal: what is written of an order beside its events.';

-- All that happened to an order, or to another saga, oldest first: events of its saga and of those of
-- its refunds, and what records_of_order() has. The id of a refund leads to its order. Customers have
-- their own orders, in the words that are for them. Nothing for what isn't there. Locks nothing.
create or replace function saga_timeline(p_id uuid)
returns table (happened_at timestamptz, kind text, actor text, what text, detail jsonb)
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
set jit = off
as $$
declare
    v_id constant uuid := coalesce((select r.order_id from refunds as r where r.id = p_id), p_id);
    v_sagas constant uuid[] := v_id || array(select r.id from refunds as r where r.order_id = v_id and not acts_as_customer());
begin
    if not may_know_of(v_id) then
        return;
    end if;
    return query
    select t.happened_at, t.kind, t.actor, t.what, jsonb_strip_nulls(t.detail)
    from (
        select
            e.created_at as happened_at, 'event' as kind, e.actor, e.event_type::text as what,
            jsonb_build_object(
                'saga_id', case when e.saga_id <> v_id then e.saga_id end, 'step', e.step_name, 'attempt', e.attempt,
                'error_code', e.error_code, 'started_at', e.started_at, 'next_attempt_at', e.next_attempt_at,
                'message', told_message(e.saga_id, e.id, e.created_at),
                'request_id', case when caller_may_read('saga_events') then e.request_id end
            ) as detail,
            e.id as n
        from saga_events as e
        where e.saga_id = any(v_sagas)
        union all
        select r.happened_at, r.kind, r.actor, r.what, r.detail, null
        from records_of_order(v_id, v_sagas) as r
    ) as t
    order by t.happened_at, t.n nulls last, t.kind;
end
$$;
comment on function saga_timeline(uuid) is
    'All that happened to an order or a saga, by people, the engine, gateways and webhooks, as one sequence.';
