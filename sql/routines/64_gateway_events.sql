-- Events that gateways tell by webhook. Each is written once, however often it is
-- delivered; it is taken for the answer to a call where that is still open, be it one that
-- a stuck saga has made, and kept for a person where it belongs to nothing we know, or
-- contradicts it.
--
-- News that comes late, of what has an answer already, moves no money by itself: a charge
-- that turns up after its void is voided anew, for the gateway knows what is back; what a
-- refund or a void gave back and then didn't is owed again; a dispute is noted.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

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
-- read, the ends of what people read, and a reference that can be none. An amount that is cut
-- is still none.
-- Locks nothing.
create or replace function bounded_answer(p_answer jsonb) returns jsonb
language sql immutable
return case
    when octet_length(p_answer::text) <= 10000 then p_answer
    else jsonb_strip_nulls(jsonb_build_object(
        'outcome', p_answer -> 'outcome',
        'code', left(p_answer ->> 'code', 255),
        'message', left(p_answer ->> 'message', 1000),
        'reference', case when length(p_answer ->> 'reference') <= 255 then p_answer -> 'reference' end,
        'deadline_seconds', case when length(p_answer ->> 'deadline_seconds') <= 50 then p_answer -> 'deadline_seconds' end,
        'amount', left(p_answer ->> 'amount', 50),
        'currency', left(p_answer ->> 'currency', 50),
        'captured', left(p_answer ->> 'captured', 50),
        'refunded', left(p_answer ->> 'refunded', 50),
        'dispute', left(p_answer ->> 'dispute', 50)
    ))
end;
comment on function bounded_answer(jsonb) is 'Internal: an answer of a gateway, cut to what is kept of it.';

-- The saga whose call an idempotency key is of; null for what is no such key. Locks nothing.
create or replace function id_of_key(p_key text) returns uuid
language sql immutable parallel safe
return case
    when p_key ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}:[a-z0-9_]+(@[0-9]{1,3})?(:[0-9]{1,3})?$'
        then split_part(p_key, ':', 1)::uuid
end;
comment on function id_of_key(text) is 'Internal: the id in the idempotency key of a call of ours.';

-- The call that an idempotency key is of: what is between its id and its number, without the
-- cell. Locks nothing.
create or replace function call_of_key(p_key text) returns text
language sql immutable parallel safe
return split_part(split_part(p_key, ':', 2), '@', 1);
comment on function call_of_key(text) is 'Internal: the name of the call in an idempotency key.';

-- Whether a key is of a call that another cell made, under an id that this one has as well. A
-- warehouse that came from another cell brings its keys along: its payment tells, and charges before that,
-- where another cell has tried the last. Locks nothing.
create or replace function is_of_another_cell(p_saga sagas, p_key text) returns boolean
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if cell_suffix_of(p_key) is not distinct from cell_suffix() then
        return false;
    end if;
    return not exists (
        select from (
            select p.order_id, p.warehouse_id, p.idempotency_key from payments as p
            union all
            select a.order_id, a.warehouse_id, a.idempotency_key from payment_attempts as a
        ) as k
        where k.warehouse_id = p_saga.warehouse_id
            and k.order_id = coalesce(
                (select r.order_id from refunds as r where r.id = p_saga.id and r.warehouse_id = p_saga.warehouse_id), p_saga.id
            )
            and cell_suffix_of(k.idempotency_key) is not distinct from cell_suffix_of(p_key)
    );
end
$$;
comment on function is_of_another_cell(sagas, text) is
    'Internal: whether a gateway tells of a call that was made in another cell.';

-- Whether a key is that of a call of ours: its saga is here, and it is of this cell. Where warehouses are
-- divided among cells, an event goes to the one that knows its call, and is unmatched where none does.
-- Locks nothing.
create or replace function knows_call(p_idempotency_key text) returns boolean
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select exists (
        select from sagas as s
        where s.id = id_of_key(p_idempotency_key) and not is_of_another_cell(s, p_idempotency_key)
    );
end;
comment on function knows_call(text) is 'Whether the idempotency key of a call to a gateway is of a saga of this cell.';

-- Takes an event of a gateway. p_answer is an answer as of 60_payments.sql,
-- p_idempotency_key that of the call it answers. Of a dispute, p_answer is {"outcome":
-- "disputed", "dispute": "open" | "won" | "lost", "reference", "amount", "currency", "code"},
-- and the key that of the payment. Returns its disposition:
--   applied    it was news: the saga goes on with it, a refund has been started or has
--              failed, a dispute is noted
--   duplicate  it was delivered before
--   stale      the answer is known, or no saga waits for it any more
--   unmatched  it names no call of ours, or contradicts what is known; engine_health counts those
-- What is too long is cut, see bounded_name() and bounded_answer(): it would be sent, and
-- refused, for ever.
-- Locks: the event, the saga, then as settle(), each waited for two seconds at most: who
-- sends the event holds a connection meanwhile, and sends it again.
-- Raises: DP015 when the answer has no outcome; 55P03 when a lock can't be had; DP050 and DP053 of a
-- warehouse that is closed here: its copy knows nothing of what has happened since.
create or replace function record_gateway_event(
    p_gateway text, p_event_id text, p_idempotency_key text, p_answer jsonb
) returns text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set lock_timeout = '2s'
as $$
declare
    v_event_id constant text := bounded_name(p_event_id);
    v_answer constant jsonb := bounded_answer(p_answer);
    v_saga sagas;
    v_disposition disposition;
begin
    if coalesce(p_answer ->> 'outcome', '') not in ('approved', 'declined', 'pending', 'unknown', 'disputed') then
        perform refuse(
            'DP015', 'answer has no outcome',
            format('The answer of event %s says %s.', v_event_id, coalesce(left(p_answer ->> 'outcome', 50), 'nothing')),
            'Pass {"outcome": "approved" | "declined" | "pending" | "unknown" | "disputed", …}.'
        );
    end if;

    insert into gateway_events (gateway, event_id, idempotency_key, answer, disposition)
    values (p_gateway, v_event_id, bounded_name(p_idempotency_key), v_answer, 'unmatched')
    on conflict (gateway, event_id) do nothing;
    if not found then
        return 'duplicate';
    end if;

    if id_of_key(p_idempotency_key) is not null then
        select s.* into v_saga
        from sagas as s
        where s.id = id_of_key(p_idempotency_key)
        for no key update;
        if v_saga.warehouse_id = any(closed_warehouses()) and not is_of_another_cell(v_saga, p_idempotency_key) then
            perform refuse_closed(v_saga.warehouse_id);
        end if;
        v_disposition := coalesce(
            case when is_of_another_cell(v_saga, p_idempotency_key) then 'unmatched'::disposition end,
            apply_to_other_attempt(v_saga, p_idempotency_key, v_answer || jsonb_build_object('gateway', p_gateway)),
            apply_gateway_event(
                v_saga, call_of_key(p_idempotency_key), v_answer || jsonb_build_object('gateway', p_gateway)
            )
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

-- Notes in the history of a saga what a gateway told after the step. Locks nothing.
create or replace function note_report(p_saga sagas, p_call text, p_code text, p_message text) returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, error_code, message, actor)
    values (p_saga.id, p_saga.warehouse_id, 'reported', p_call, p_code, p_message, current_actor());
end;
comment on function note_report(sagas, text, text, text) is
    'Internal: writes what a gateway told after the step into the history of a saga.';

-- A charge that turned up although its payment was voided or declined is written down and
-- voided anew, by a refund; the void looks what is back already. One that turns up while its void
-- is out is written down alone: the answer to that has to give it back, or a person does.
-- Returns whether it was that. Locks: payments; the caller has locked the saga.
create or replace function void_late_charge(p_saga sagas, p_call text, p_answer jsonb) returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_payment payments := lock_payment(p_saga.id);
    v_taken numeric;
begin
    if (v_payment.status in ('voided', 'declined', 'void_requested') and v_payment.captured_amount = 0) is not true then
        return false;
    end if;
    v_taken := coalesce(
        told_taken(p_answer, v_payment.currency), v_payment.requested_amount
    );
    if v_taken = 0 then
        return false;
    end if;
    update payments as p
    set
        status = case p.status when 'void_requested' then p.status else 'captured' end,
        authorized_amount = greatest(p.authorized_amount, v_taken), captured_amount = v_taken,
        voided_amount = least(p.voided_amount, greatest(p.requested_amount - v_taken, 0)), gateway = p_answer ->> 'gateway',
        gateway_reference = coalesce(p.gateway_reference, p_answer ->> 'reference'), updated_at = clock()
    where p.order_id = p_saga.id and p.warehouse_id = p_saga.warehouse_id
    returning p.* into v_payment;
    if v_payment.status <> 'void_requested' then
        perform start_refund(v_payment, v_taken, 'charged although it was voided', new_id());
    end if;
    perform note_report(
        p_saga, p_call, null,
        format(
            'charged %s %s although it %s', v_taken, v_payment.currency,
            case v_payment.status when 'void_requested' then 'is being voided' else 'was voided' end
        )
    );
    return true;
end
$$;
comment on function void_late_charge(sagas, text, jsonb) is
    'Internal: a charge that turned up after its void is written down and voided anew.';

-- A void that had given money back has not: it is owed again, and asked for anew by a refund.
-- Returns whether it was that. Locks: payments; the caller has locked the saga.
create or replace function redo_void(p_saga sagas, p_call text, p_answer jsonb) returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_payment constant payments := lock_payment(p_saga.id);
begin
    if (v_payment.status = 'refunded') is not true or exists (
        select from refunds as r where r.order_id = p_saga.id and r.payment_key is null
    ) then
        return false;
    end if;
    perform start_refund(v_payment, v_payment.refunded_amount, 'its void failed', new_id());
    update payments as p
    set status = 'captured', refunded_amount = 0, updated_at = clock()
    where p.order_id = p_saga.id and p.warehouse_id = p_saga.warehouse_id;
    perform note_report(
        p_saga, p_call, 'DP028',
        format('%s %s did not go back after all: %s', v_payment.refunded_amount, v_payment.currency, coalesce(p_answer ->> 'code', 'no reason given'))
    );
    return true;
end
$$;
comment on function redo_void(sagas, text, jsonb) is 'Internal: a void that came to nothing after all is asked for anew.';

-- Whether an answer that comes late contradicts what is known of a payment or a refund: no
-- where yes is written, yes where no is, or another amount. Locks nothing.
create or replace function contradicts_books(p_saga sagas, p_call text, p_answer jsonb) returns boolean
language sql stable
set search_path = darkpearl, pg_temp
return coalesce(
    case
        when p_call = 'refund_payment' then (
            select case p_answer ->> 'outcome'
                when 'approved' then r.status = 'declined' or (
                    r.status = 'refunded' and not is_as_asked(p_answer, r.amount, r.currency, false, null)
                )
                else false
            end
            from refunds as r where r.id = p_saga.id
        )
        else (
            select case p_answer ->> 'outcome'
                when 'declined' then case p_call
                    when 'void_payment' then p.status = 'voided'
                    else p.status in ('authorized', 'captured')
                end
                when 'approved' then p_call <> 'void_payment' and p.status = 'captured'
                    and not is_as_asked(p_answer, p.requested_amount, p.currency, p_call <> 'authorize_payment', null)
            end
            from payments as p where p.order_id = p_saga.id
        )
    end,
    false
);
comment on function contradicts_books(sagas, text, jsonb) is 'Internal: whether a late answer contradicts what is known.';

-- Notes a dispute of a payment, or what became of one. What was told first and comes last
-- opens none again that is closed. Locks: payments; the caller has locked the saga.
create or replace function record_dispute(p_saga sagas, p_call text, p_answer jsonb) returns disposition
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_payment constant payments := lock_payment(p_saga.id);
    v_dispute disputes;
begin
    if v_payment.order_id is null or coalesce(p_answer ->> 'dispute', '') not in ('open', 'won', 'lost')
        or coalesce(p_answer ->> 'reference', '') = ''
    then
        return 'unmatched';
    end if;
    insert into disputes as d (order_id, warehouse_id, reference, gateway, status, amount, currency, reason)
    select
        v_payment.order_id, v_payment.warehouse_id, bounded_name(p_answer ->> 'reference'), p_answer ->> 'gateway',
        (p_answer ->> 'dispute')::dispute_status, t.amount, t.currency,
        left(p_answer ->> 'code', 2000)
    from (
        select
            coalesce(told_money(p_answer - 'currency', 'amount', v_payment.currency), v_payment.captured_amount) as amount,
            upper(coalesce(substring(p_answer ->> 'currency' from '^[A-Za-z]{3}$'), v_payment.currency)) as currency
    ) as t
    on conflict (order_id, reference, warehouse_id) do update
    set status = excluded.status, amount = excluded.amount, reason = excluded.reason, updated_at = clock()
    where (d.status = 'open' or excluded.status <> 'open')
        and (d.status, d.amount, d.reason) is distinct from (excluded.status, excluded.amount, excluded.reason)
    returning d.* into v_dispute;
    if not found then
        return 'stale';
    end if;
    perform note_report(
        p_saga, p_call, 'DP027',
        format('dispute %s of %s %s is %s: %s', v_dispute.reference, v_dispute.amount, v_dispute.currency, v_dispute.status, v_dispute.reason)
    );
    return 'applied';
end
$$;
comment on function record_dispute(sagas, text, jsonb) is 'Internal: notes a dispute of a payment, or what became of one.';

-- Whether the step or undo at which a saga stands has made a call and takes its answer; a
-- saga that is stuck takes it too. Locks nothing.
create or replace function awaits_answer(p_saga sagas, p_backwards boolean, p_call text) returns boolean
language plpgsql stable
set search_path = darkpearl, pg_temp
as $$
declare
    v_step constant plan_step := step_of(p_saga);
begin
    return v_step.on_deadline is null
        and case
            when p_backwards then takes_answer(v_step.undo_name, v_step.undo_settle_function, p_call)
            else takes_answer(v_step.step_name, v_step.settle_function, p_call)
        end
        and (p_saga.status = 'stuck' or (p_saga.attempts > 0 and p_saga.status in ('running', 'waiting', 'compensating')));
end
$$;
comment on function awaits_answer(sagas, boolean, text) is 'Internal: whether a saga stands where it takes the answer to a call.';

-- Whether the gateway has refused to give money back by the call at which a saga stands. Webhooks come in any
-- order: a yes to the same call may be older than that no, or newer. Locks nothing.
create or replace function has_refused(p_saga sagas, p_call text) returns boolean
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
return p_call in ('void_payment', 'refund_payment') and exists (
    select from saga_events as e
    where e.saga_id = p_saga.id and e.warehouse_id = p_saga.warehouse_id and e.step_name = p_call
        and e.error_code = 'DP028' and e.event_type = 'step_failed'
);
comment on function has_refused(sagas, text) is 'Internal: whether a call that gives money back was refused before.';

-- Has the gateway asked again by the call at which a saga stands, since what it tells can be old: asked
-- under the same key it says what is so. Locks: the saga, which the caller has locked.
create or replace function ask_again(p_saga sagas, p_backwards boolean) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_message constant text := 'told approved after it was declined: it is asked again';
    v_name constant text := name_of(step_of(p_saga), p_backwards);
begin
    if p_saga.status = 'stuck' then
        insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
        values (p_saga.id, p_saga.warehouse_id, 'retried', v_name, v_message, current_actor());
        perform try_again(lock_stuck_saga(p_saga.id));
    else
        perform note_report(p_saga, v_name, null, v_message);
        update sagas as s
        set ready_at = clock(), updated_at = clock()
        where s.id = p_saga.id and s.warehouse_id = p_saga.warehouse_id;
    end if;
end
$$;
comment on function ask_again(sagas, boolean) is 'Internal: has a gateway asked whose news contradict what it said before.';

-- Gives an answer to the saga that made the call: settles the step that waits for it, or is
-- stuck without it; else sees what late news it is.
-- Locks: as settle(); the caller has locked the saga. Raises nothing of its own.
create or replace function apply_gateway_event(p_saga sagas, p_call text, p_answer jsonb) returns disposition
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_backwards constant boolean := p_saga.status = 'compensating' or (p_saga.status = 'stuck' and has_turned_back(p_saga.id));
    v_group saga_group;
    v_news boolean;
begin
    if p_saga.id is null or not exists (
        select from saga_steps as s
        where s.saga_type = p_saga.saga_type and s.plan_version = p_saga.plan_version and s.on_deadline is null and (
            takes_answer(s.step_name, s.settle_function, p_call)
            or takes_answer(s.undo_name, s.undo_settle_function, p_call)
        )
    ) then
        return 'unmatched';
    elsif p_answer ->> 'outcome' = 'disputed' then
        return record_dispute(p_saga, p_call, p_answer);
    elsif p_answer ->> 'outcome' not in ('approved', 'declined') then
        return 'stale';
    elsif awaits_answer(p_saga, v_backwards, p_call) then
        if p_answer ->> 'outcome' = 'approved' and has_refused(p_saga, p_call) then
            perform ask_again(p_saga, v_backwards);
        elsif p_saga.status = 'stuck' then
            perform answer_saga(lock_stuck_saga(p_saga.id), p_answer);
        else
            v_group := group_of_saga(p_saga, p_answers => array[p_answer]);
            perform run_groups(v_group.warehouse_ids, settle_group(v_group, v_group.warehouse_ids), 0);
        end if;
        perform ring_bell();
        return 'applied';
    elsif contradicts_books(p_saga, p_call, p_answer) then
        return 'unmatched';
    end if;

    v_news := case
        when p_answer ->> 'outcome' = 'approved' and p_call in ('process_payment', 'capture_payment')
            then void_late_charge(p_saga, p_call, p_answer)
        when p_answer ->> 'outcome' = 'declined' and p_call = 'void_payment' then redo_void(p_saga, p_call, p_answer)
        when p_answer ->> 'outcome' = 'declined' and p_call = 'refund_payment'
            then fail_refund(p_saga.id, p_answer ->> 'code')
    end;
    if v_news and p_call = 'refund_payment' then
        perform note_report(p_saga, p_call, 'DP028', 'refund failed after all: ' || coalesce(p_answer ->> 'code', 'no reason given'));
    end if;
    return case when v_news then 'applied' else 'stale' end;
end
$$;
comment on function apply_gateway_event(sagas, text, jsonb) is
    'Internal: settles the step that an answer is for, or sees to what it tells late.';

-- A charge that was given up and voided took money all the same, or its void gave none back: written down,
-- and voided anew by a refund of its own. Whatever else the order is paid with stays as it is.
-- Locks: payment_attempts; the caller has locked the saga and the payment.
create or replace function give_attempt_back(
    p_saga sagas, p_payment payments, p_key text, p_call text, p_amount numeric, p_code text, p_message text
) returns disposition
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    update payment_attempts as a
    set status = 'captured', captured_amount = p_amount, refunded_amount = 0
    where a.order_id = p_saga.id and a.idempotency_key = p_key and a.warehouse_id = p_saga.warehouse_id;
    perform start_refund(p_payment, p_amount, p_message, new_id(), p_payment_key => p_key);
    perform note_report(p_saga, p_call, p_code, format('%s %s: %s', p_amount, p_payment.currency, p_message));
    return 'applied';
end
$$;
comment on function give_attempt_back(sagas, payments, text, text, numeric, text, text) is
    'Internal: money of a charge that was given up goes back, beside what else the order is paid with.';

-- What is told of a charge that came to nothing, when another has been tried since. One that was declined
-- and is said to have been made is nobody's to guess about: it is unmatched, for a person. One that was
-- voided keeps no money. Locks: as give_attempt_back(). Raises nothing of its own.
create or replace function apply_to_earlier_attempt(
    p_saga sagas, p_payment payments, p_attempt payment_attempts, p_call text, p_answer jsonb
) returns disposition
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_taken constant numeric := coalesce(told_taken(p_answer, p_payment.currency), p_payment.requested_amount);
    v_is_void constant boolean := p_call = 'void_payment';
begin
    if p_answer ->> 'outcome' = 'disputed' then
        return 'unmatched';
    elsif p_answer ->> 'outcome' = 'approved' and not v_is_void then
        return case
            when p_attempt.status = 'declined' then 'unmatched'
            when p_attempt.captured_amount > 0 or p_call = 'authorize_payment' or v_taken = 0 then 'stale'
            else give_attempt_back(
                p_saga, p_payment, p_attempt.idempotency_key, p_call, v_taken, null, 'charged although it was voided'
            )
        end;
    elsif p_answer ->> 'outcome' = 'declined' and v_is_void then
        return case
            when exists (select from refunds as r where r.order_id = p_saga.id and r.payment_key = p_attempt.idempotency_key) then 'stale'
            when p_attempt.status <> 'refunded' then 'unmatched'
            else give_attempt_back(
                p_saga, p_payment, p_attempt.idempotency_key, p_call, p_attempt.refunded_amount, 'DP028', 'its void failed'
            )
        end;
    end if;
    return 'stale';
end
$$;
comment on function apply_to_earlier_attempt(sagas, payments, payment_attempts, text, jsonb) is
    'Internal: what is told of a charge that came to nothing before another was tried.';

-- Whether what is told of the last charge of an order moves money that it is rid of: the order waits for
-- another, and the charge that was voided is made, or its void came to nothing. Locks nothing.
create or replace function moves_what_was_voided(p_saga sagas, p_payment payments, p_call text, p_answer jsonb) returns boolean
language sql stable
set search_path = darkpearl, pg_temp
return p_saga.status in ('running', 'waiting') and case p_call
    when 'void_payment' then p_payment.status = 'refunded' and p_answer ->> 'outcome' = 'declined'
    else p_payment.status = 'voided' and p_answer ->> 'outcome' = 'approved' and p_call <> 'authorize_payment'
end;
comment on function moves_what_was_voided(sagas, payments, text, jsonb) is
    'Internal: whether news of the last charge moves money of an order that waits for another.';

-- What is told of a charge of a held order that came to nothing, or of its void: of one before the last, or
-- of the last, after which another may be tried. Null for all else, which apply_gateway_event() takes,
-- but for a number behind a key that has none.
-- One that was declined, is the last and was made was the payment after all, while the order waits: the
-- saga goes on with it. One that was voided gives back what it took.
-- Locks: payments, payment_attempts, then as run_groups(); the caller has locked the saga. Raises nothing
-- of its own.
create or replace function apply_to_other_attempt(p_saga sagas, p_key text, p_answer jsonb) returns disposition
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_call constant text := call_of_key(p_key);
    v_is_charge constant boolean := v_call in ('process_payment', 'authorize_payment');
    v_payment payments;
    v_attempt payment_attempts;
begin
    if not (v_is_charge or v_call in ('capture_payment', 'void_payment')) or not exists (
        select from orders as o where o.id = p_saga.id and o.warehouse_id = p_saga.warehouse_id and o.pay_by is not null
    ) then
        return case when split_part(p_key, ':', 3) <> '' then 'unmatched' end;
    end if;
    v_payment := lock_payment(p_saga.id);
    select a.* into v_attempt
    from payment_attempts as a
    where a.order_id = p_saga.id and split_part(a.idempotency_key, ':', 3) = split_part(p_key, ':', 3)
        and (a.idempotency_key = p_key or not v_is_charge);
    if v_payment.order_id is null then
        return null;
    elsif v_attempt.order_id is not null then
        return apply_to_earlier_attempt(p_saga, v_payment, v_attempt, v_call, p_answer);
    elsif split_part(p_key, ':', 3) <> split_part(v_payment.idempotency_key, ':', 3)
        or (v_is_charge and p_key <> v_payment.idempotency_key)
    then
        return 'unmatched';
    elsif moves_what_was_voided(p_saga, v_payment, v_call, p_answer) then
        perform begin_payments(array[p_saga.warehouse_id], array[p_saga.id], 'voided');
        return apply_to_other_attempt(p_saga, p_key, p_answer);
    elsif not v_is_charge or v_payment.status <> 'declined' or p_answer ->> 'outcome' <> 'approved' or p_saga.cancel_requested
        or p_saga.status not in ('running', 'waiting', 'stuck') or (p_saga.status = 'stuck' and has_turned_back(p_saga.id))
    then
        return null;
    elsif p_saga.status = 'stuck'
        or not is_as_asked(p_answer, v_payment.requested_amount, v_payment.currency, v_call = 'process_payment', null)
    then
        return 'unmatched';
    end if;
    perform record_charge(array[p_saga.warehouse_id], array[p_saga.id], array[p_answer], v_call = 'process_payment');
    if p_saga.status = 'waiting' then
        perform answer_saga(group_of_saga(p_saga), '{}');
        perform ring_bell();
    end if;
    return 'applied';
end
$$;
comment on function apply_to_other_attempt(sagas, text, jsonb) is
    'Internal: what is told of a charge of a held order that came to nothing, where another was tried or may be.';

-- An operator has seen to an event that belongs to nothing we know, or contradicts it: engine_health counts it no
-- longer. Locks: the event. Raises: DP010; DP015 without a reason, or when it isn't unmatched.
create or replace function ack_gateway_event(p_gateway text, p_event_id text, p_reason text) returns gateway_events
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
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
