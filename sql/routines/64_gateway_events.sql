-- Events that gateways tell by webhook. Each is written once, however often it is
-- delivered; it is taken for the answer to a call where that is still open, and
-- kept for a person where it belongs to nothing we know.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger gateway_events_refuse_removal
before delete on gateway_events
for each row execute function refuse_change();

create or replace trigger gateway_events_refuse_truncate
before truncate on gateway_events
for each statement execute function refuse_change();

-- A name of a gateway's within so many characters: one that is longer is cut, and told from
-- others that begin alike by its hash. Locks nothing.
create or replace function bounded_name(p_name text, p_length integer default 255) returns text
language sql immutable
return case
    when length(p_name) > p_length
        then left(p_name, p_length - 65) || ':' || encode(sha256(convert_to(p_name, 'UTF8')), 'hex')
    else p_name
end;
comment on function bounded_name(text, integer) is 'Internal: a name within so many characters, as unique as it was.';

-- An answer within the bounds of what is kept. One that is too long loses what we don't
-- read, the ends of what people read, and a reference or an amount that can be none.
-- Locks nothing.
create or replace function bounded_answer(p_answer jsonb) returns jsonb
language sql immutable
return case
    when pg_column_size(p_answer) <= 10000 then p_answer
    else jsonb_strip_nulls(jsonb_build_object(
        'outcome', p_answer -> 'outcome',
        'code', left(p_answer ->> 'code', 255),
        'message', left(p_answer ->> 'message', 1000),
        'reference', case when length(p_answer ->> 'reference') <= 255 then p_answer -> 'reference' end,
        'deadline_seconds', case when length(p_answer ->> 'deadline_seconds') <= 50 then p_answer -> 'deadline_seconds' end,
        'captured', case when length(p_answer ->> 'captured') <= 50 then p_answer -> 'captured' end,
        'refunded', case when length(p_answer ->> 'refunded') <= 50 then p_answer -> 'refunded' end
    ))
end;
comment on function bounded_answer(jsonb) is 'Internal: an answer of a gateway, cut to what is kept of it.';

-- Takes an event of a gateway. p_answer is an answer as of 60_payments.sql,
-- p_idempotency_key that of the call it answers. Returns its disposition:
--   applied    it was news: the saga goes on with it, or, for a charge that
--              turned up after its void, a refund has been started
--   duplicate  it was delivered before
--   stale      the answer is known, or no saga waits for it any more
--   unmatched  it names no call of ours; engine_health counts those
-- What is too long is cut, see bounded_name() and bounded_answer(): it would be sent, and
-- refused, for ever.
-- Locks: the event, the saga, then as settle(), each waited for two seconds at most: who
-- sends the event holds a connection meanwhile, and sends it again.
-- Raises: DP015 when the answer has no outcome; 55P03 when a lock can't be had.
create or replace function record_gateway_event(
    p_gateway text, p_event_id text, p_idempotency_key text, p_answer jsonb
) returns text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '2s'
as $$
declare
    v_event_id constant text := bounded_name(p_event_id);
    v_answer constant jsonb := bounded_answer(p_answer);
    v_saga sagas;
    v_disposition disposition;
begin
    if coalesce(p_answer ->> 'outcome', '') not in ('approved', 'declined', 'pending', 'unknown') then
        perform refuse(
            'DP015', 'answer has no outcome',
            format('The answer of event %s says %s.', v_event_id, coalesce(left(p_answer ->> 'outcome', 50), 'nothing')),
            'Pass {"outcome": "approved" | "declined" | "pending" | "unknown", …}.'
        );
    end if;

    insert into gateway_events (gateway, event_id, idempotency_key, answer, disposition)
    values (p_gateway, v_event_id, bounded_name(p_idempotency_key), v_answer, 'unmatched')
    on conflict (gateway, event_id) do nothing;
    if not found then
        return 'duplicate';
    end if;

    if p_idempotency_key ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[a-z0-9_]+$' then
        select s.* into v_saga
        from sagas as s
        where s.id = split_part(p_idempotency_key, ':', 1)::uuid
        for no key update;
        v_disposition := apply_gateway_event(
            v_saga, split_part(p_idempotency_key, ':', 2), v_answer || jsonb_build_object('gateway', p_gateway)
        );
    end if;
    if v_disposition <> 'unmatched' then
        update gateway_events as e
        set disposition = v_disposition
        where e.gateway = p_gateway and e.event_id = v_event_id;
    end if;
    return coalesce(v_disposition, 'unmatched');
end
$$;
comment on function record_gateway_event(text, text, text, jsonb) is
    'Takes an event that a gateway sent: applied, duplicate, stale or unmatched. Safe to repeat.';

-- Whether a step, or an undo, takes the answer to a call, by the name in the call's
-- idempotency key. Calls about payments have names of their own, whatever a plan calls
-- its steps; others have that of their step. Locks nothing.
create or replace function takes_answer(p_name text, p_settle_function text, p_call text) returns boolean
language sql immutable
return p_settle_function is not null and case p_call
    when 'process_payment' then p_settle_function = 'record_payment'
    when 'authorize_payment' then p_settle_function = 'record_authorization'
    when 'capture_payment' then p_settle_function = 'record_capture'
    when 'void_payment' then p_settle_function = 'record_void'
    when 'refund_payment' then p_settle_function = 'record_refund'
    else p_name = p_call
end;
comment on function takes_answer(text, text, text) is
    'Internal: whether a step takes the answer to a call, by the name in the idempotency key.';

-- Gives an answer to the saga that made the call: settles the step that waits for it, or
-- starts a refund of a charge that turned up late.
-- Locks: as settle(); the caller has locked the saga. Raises nothing of its own.
create or replace function apply_gateway_event(p_saga sagas, p_call text, p_answer jsonb) returns disposition
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_step constant plan_step := step_of(p_saga);
    v_here constant boolean := v_step.on_deadline is null and case p_saga.status
        when 'compensating' then takes_answer(v_step.undo_name, v_step.undo_settle_function, p_call)
        else takes_answer(v_step.step_name, v_step.settle_function, p_call)
    end;
    v_payment payments;
    v_group saga_group;
begin
    if p_saga.id is null or not exists (
        select from saga_steps as s
        where s.saga_type = p_saga.saga_type and s.plan_version = p_saga.plan_version and s.on_deadline is null and (
            takes_answer(s.step_name, s.settle_function, p_call)
            or takes_answer(s.undo_name, s.undo_settle_function, p_call)
        )
    ) then
        return 'unmatched';
    end if;
    if p_answer ->> 'outcome' not in ('approved', 'declined') then
        return 'stale';
    end if;

    if v_here and p_saga.attempts > 0 and p_saga.status in ('running', 'waiting', 'compensating') then
        v_group := group_of_saga(p_saga, p_answers => array[p_answer]);
        perform run_groups(v_group.warehouse_ids, settle_group(v_group, v_group.warehouse_ids), 0);
        perform ring_bell();
        return 'applied';
    end if;

    -- Money that was taken although its payment was voided or declined goes back.
    if p_call in ('process_payment', 'capture_payment') and p_answer ->> 'outcome' = 'approved' then
        update payments as p
        set
            status = 'captured', authorized_amount = p.requested_amount, captured_amount = p.requested_amount,
            voided_amount = 0, gateway = p_answer ->> 'gateway',
            gateway_reference = coalesce(p.gateway_reference, p_answer ->> 'reference'), updated_at = clock()
        where p.order_id = p_saga.id and p.warehouse_id = p_saga.warehouse_id
            and p.status in ('voided', 'declined') and p.captured_amount = 0
        returning p.* into v_payment;
        if found then
            perform start_refund(v_payment, v_payment.captured_amount, 'charged although it was voided', new_id());
            return 'applied';
        end if;
    end if;
    return 'stale';
end
$$;
comment on function apply_gateway_event(sagas, text, jsonb) is
    'Internal: settles the step that waits for the answer, or refunds a charge that turned up late.';

-- An operator has seen to an event that belongs to nothing we know: engine_health counts it no
-- longer. Locks: the event. Raises: DP010; DP015 without a reason, or when it isn't unmatched.
create or replace function ack_gateway_event(p_gateway text, p_event_id text, p_reason text) returns gateway_events
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_event gateway_events;
begin
    perform refuse_no_reason(p_reason);
    select e.* into v_event
    from gateway_events as e
    where e.gateway = p_gateway and e.event_id = p_event_id
    for no key update;
    if not found then
        perform refuse(
            'DP010', 'no such event', format('%s has sent no event %s.', p_gateway, p_event_id),
            'select gateway, event_id from gateway_events where disposition = ''unmatched''.'
        );
    elsif v_event.disposition <> 'unmatched' then
        perform refuse(
            'DP015', 'event wants no look', format('Event %s is %s.', p_event_id, v_event.disposition),
            'Only an unmatched event needs a person.'
        );
    end if;
    update gateway_events as e
    set disposition = 'acknowledged'
    where e.gateway = p_gateway and e.event_id = p_event_id
    returning e.* into v_event;
    perform note_action('ack_gateway_event', p_gateway || ' ' || p_event_id, p_reason, v_event.answer);
    return v_event;
end
$$;
comment on function ack_gateway_event(text, text, text) is
    'Operator: acknowledges an event of a gateway that belongs to nothing we know.';
