-- Payments: the steps that take money and give it back, each beside its undo.
--
-- The intent is committed with its idempotency key, then the gateway is asked
-- with no transaction open, then the answer is committed. A key is the saga's
-- id and the name of the step, so every try of a step asks under the same key.
-- An answer is {"outcome": "approved" | "declined" | "pending" | "unknown",
-- "gateway", "reference", "code", "message", "deadline_seconds", "captured",
-- "refunded"}. Unknown is never taken for an answer: the step is tried again.
--
-- Two laws hold for every writer: a payment is never removed, and money that
-- was captured or refunded stays so.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger payments_refuse_removal
before delete on payments
for each row execute function refuse_change();

create or replace trigger payments_refuse_truncate
before truncate on payments
for each statement execute function refuse_change();

-- Trigger: money that was taken, given back or given up does not become less. A
-- voided amount shrinks only by what turns out to have been captured after all.
-- Locks nothing. Raises DP005.
create or replace function refuse_less_money() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if new.captured_amount < old.captured_amount
        or new.refunded_amount < old.refunded_amount
        or new.voided_amount + new.captured_amount < old.voided_amount + old.captured_amount
    then
        perform refuse(
            'DP005', 'payments only add up',
            format(
                'The payment of order %s was captured %s, refunded %s, voided %s; an UPDATE would leave less.',
                old.order_id, old.captured_amount, old.refunded_amount, old.voided_amount
            ),
            'Money that went back is refunded_amount, or a row of refunds.'
        );
    end if;
    return null;
end
$$;
comment on function refuse_less_money() is 'Trigger: captured, refunded and voided amounts of a payment never shrink.';

-- Nothing can shrink while nothing was captured or voided. The condition is short,
-- since every statement reads it from text anew. It comes AFTER the update, since
-- before one every row is locked first.
create or replace trigger payments_only_add_up
after update of captured_amount, refunded_amount, voided_amount on payments
for each row
when (old.captured_amount + old.voided_amount > 0)
execute function refuse_less_money();

-- Trigger: a payment stays one for the amount that it was asked for, under its key.
create or replace trigger payments_keep_what_was_asked
after update of order_id, warehouse_id, requested_amount, currency, idempotency_key on payments
for each row
when (
    (old.order_id, old.warehouse_id, old.requested_amount, old.currency, old.idempotency_key)
    is distinct from
    (new.order_id, new.warehouse_id, new.requested_amount, new.currency, new.idempotency_key)
)
execute function refuse_change();

create or replace trigger payment_tokens_refuse_change
before update on payment_tokens
for each row execute function refuse_change();

-- Housekeeping: removes the tokens of orders whose sagas have ended, and returns how many
-- went. Fewer than p_limit says that there are no more. A saga that is stuck may ask again.
-- Aside from the passes, which would look for a token of each order that has none.
-- Locks: the rows that go; those that another session holds are left to it. Raises: DP015.
create or replace function forget_payment_tokens(p_limit integer default 10000) returns bigint
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_forgotten bigint;
begin
    if coalesce(p_limit, 0) < 1 then
        perform refuse(
            'DP015', 'no sensible limit', format('Asked for %s tokens at most.', coalesce(p_limit::text, 'null')),
            'Pass a limit of one or more.'
        );
    end if;
    delete from payment_tokens as t
    using (
        select e.order_id, e.warehouse_id
        from payment_tokens as e
        where (
            -- A look-up by key for each, under every plan.
            select s.status in ('completed', 'compensated') from sagas as s
            where s.id = e.order_id and s.warehouse_id = e.warehouse_id
        )
        limit p_limit
        for update skip locked
    ) as ended
    where t.order_id = ended.order_id and t.warehouse_id = ended.warehouse_id;
    get diagnostics v_forgotten = row_count;
    return v_forgotten;
end
$$;
comment on function forget_payment_tokens(integer) is
    'Housekeeping: removes the payment tokens of orders whose sagas have ended, and says how many.';

-- Before a charge or an authorisation. Writes the intent with its idempotency
-- key, and returns the request to the gateway. Asking again asks under the same
-- key. An order that costs nothing is paid already; gateways refuse to charge zero.
-- Locks: payments.
create or replace function request_charge(
    p_warehouse_ids uuid[], p_saga_ids uuid[], p_step_name text, p_capture boolean
) returns outcome_group[]
language plpgsql
as $$
declare
    v_now constant timestamptz := clock();
    v_saga_ids uuid[];
    v_requests json[];
begin
    with asked as (
        insert into payments as p (
            order_id, warehouse_id, status, currency, requested_amount, idempotency_key, created_at, updated_at
        )
        select
            o.id, o.warehouse_id, case when o.total_amount = 0 then 'captured' else 'requested' end::payment_status,
            o.currency, o.total_amount, concat(o.id, ':', p_step_name), v_now, v_now
        from orders as o
        where o.id = any(p_saga_ids) and o.warehouse_id = any(p_warehouse_ids)
        on conflict (order_id, warehouse_id) do update set updated_at = excluded.updated_at
        returning
            p.order_id,
            case
                when p.status not in ('authorized', 'captured') then json_build_object(
                    'operation', 'authorize',
                    'idempotency_key', p.idempotency_key,
                    'payment_key', p.idempotency_key,
                    'amount', p.requested_amount::text,
                    'currency', p.currency,
                    'capture', p_capture,
                    'token', (
                        select t.token from payment_tokens as t
                        where t.order_id = p.order_id and t.warehouse_id = p.warehouse_id
                    )
                )
            end as request
    )
    select array_agg(a.order_id order by a.order_id), array_agg(a.request order by a.order_id)
    into v_saga_ids, v_requests
    from asked as a;

    if num_nulls(variadic v_requests) = 0 then
        return outcome_for_all('waiting', v_saga_ids, v_requests);
    end if;
    return group_outcomes(array(
        select row(a.saga_id, case when a.request is null then 'done' else 'waiting' end, null, null, a.request, null)::step_outcome
        from unnest(v_saga_ids, v_requests) as a (saga_id, request)
    ));
end
$$;
comment on function request_charge(uuid[], uuid[], text, boolean) is
    'Internal: writes the intent to take the money of each order and hands out the calls.';

-- After it, with the answers of the gateway.
-- Locks: payments.
create or replace function record_charge(
    p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[], p_capture boolean
) returns outcome_group[]
language plpgsql
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_approved integer;
begin
    update payments as p
    set
        status = case when p_capture then 'captured' else 'authorized' end::payment_status,
        authorized_amount = p.requested_amount,
        captured_amount = case when p_capture then p.requested_amount else 0 end,
        gateway = coalesce(a.answer ->> 'gateway', p.gateway),
        gateway_reference = coalesce(a.answer ->> 'reference', p.gateway_reference),
        decline_code = a.answer ->> 'code',
        updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where a.answer ->> 'outcome' = 'approved' and p.order_id = a.saga_id
        and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    get diagnostics v_approved = row_count;
    if v_approved = cardinality(p_saga_ids) then
        return outcome_for_all('done', p_saga_ids);
    end if;

    update payments as p
    set
        status = (a.answer ->> 'outcome')::payment_status,
        authorized_amount = 0,
        captured_amount = 0,
        gateway = coalesce(a.answer ->> 'gateway', p.gateway),
        gateway_reference = coalesce(a.answer ->> 'reference', p.gateway_reference),
        decline_code = a.answer ->> 'code',
        updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where a.answer ->> 'outcome' in ('declined', 'pending') and p.order_id = a.saga_id
        and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    return outcomes_of_answers(p_saga_ids, p_answers, 'payment');
end
$$;
comment on function record_charge(uuid[], uuid[], jsonb[], boolean) is
    'Internal: records what the gateway answered to each charge or authorisation.';

-- Step, captured at payment: the money is taken at once. Locks: payments.
-- Like the next three it has no SET clause, so that it is inlined.
create or replace function request_payment(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language sql
return request_charge(p_warehouse_ids, p_saga_ids, 'process_payment', true);
comment on function request_payment(uuid[], uuid[]) is 'Step, external: asks for the money of each order.';

-- After it, with the answers. Locks: payments.
create or replace function record_payment(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language sql
return record_charge(p_warehouse_ids, p_saga_ids, p_answers, true);
comment on function record_payment(uuid[], uuid[], jsonb[]) is 'Step, external: records what the gateway answered to each charge.';

-- Step, captured at fulfilment: the money is held. Locks: payments.
create or replace function request_authorization(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language sql
return request_charge(p_warehouse_ids, p_saga_ids, 'authorize_payment', false);
comment on function request_authorization(uuid[], uuid[]) is 'Step, external: asks to hold the money of each order.';

-- After it, with the answers. Locks: payments.
create or replace function record_authorization(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language sql
return record_charge(p_warehouse_ids, p_saga_ids, p_answers, false);
comment on function record_authorization(uuid[], uuid[], jsonb[]) is 'Step, external: records what the gateway answered to each authorisation.';

-- A call about a payment that the gateway knows. Locks nothing.
create or replace function payment_call(p_operation text, p_step_name text, p_payment payments) returns json
language sql stable
return json_build_object(
    'operation', p_operation,
    'idempotency_key', concat(p_payment.order_id, ':', p_step_name),
    'payment_key', p_payment.idempotency_key,
    'amount', p_payment.requested_amount::text,
    'currency', p_payment.currency,
    'reference', p_payment.gateway_reference
);
comment on function payment_call(text, text, payments) is 'Internal: what the gateway is asked about a payment.';

-- Step, captured at fulfilment: money that is held is taken. The pivot: once it
-- is done the saga only goes forward. Locks: payments.
create or replace function request_capture(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    update payments as p
    set status = 'capture_requested', updated_at = clock()
    where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids) and p.status = 'authorized';

    return group_outcomes(array(
        select row(
            p.order_id, case when p.status = 'captured' then 'done' else 'waiting' end, null, null,
            case when p.status <> 'captured' then payment_call('capture', 'capture_payment', p) end, null
        )::step_outcome
        from payments as p
        where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
    ));
end
$$;
comment on function request_capture(uuid[], uuid[]) is 'Step, external: asks to take what was held for each order.';

-- After it, with the answers. Locks: payments.
create or replace function record_capture(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
begin
    update payments as p
    set
        -- Money that could not be taken is still held, until it is voided.
        status = case a.answer ->> 'outcome' when 'approved' then 'captured' else 'authorized' end::payment_status,
        captured_amount = case a.answer ->> 'outcome' when 'approved' then p.authorized_amount else 0 end,
        decline_code = a.answer ->> 'code',
        updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where a.answer ->> 'outcome' in ('approved', 'declined') and p.order_id = a.saga_id
        and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    return outcomes_of_answers(p_saga_ids, p_answers, 'capture');
end
$$;
comment on function record_capture(uuid[], uuid[], jsonb[]) is 'Step, external: records what the gateway answered to each capture.';

-- Undo, before the call: in the end nothing is to be held or kept, whatever
-- became of the payment. One that was declined, voided or never asked for needs no call.
-- Locks: payments.
create or replace function request_void(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
begin
    update payments as p
    set status = 'void_requested', updated_at = clock()
    where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
        and p.status in ('requested', 'pending', 'authorized', 'capture_requested', 'captured')
        and p.requested_amount > 0;

    return group_outcomes(array(
        select row(
            i, case when p.order_id is null then 'done' else 'waiting' end, null, null,
            case when p.order_id is not null then payment_call('void', 'void_payment', p) end, null
        )::step_outcome
        from unnest(p_saga_ids) as i
        left join payments as p
            on p.order_id = i and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
                and p.status = 'void_requested'
    ));
end
$$;
comment on function request_void(uuid[], uuid[]) is 'Undo, external: asks for the payment of each order to be voided or refunded.';

-- Undo, with the answers. Money that had been captured counts as refunded, the
-- rest as voided; the gateway knows better than we do which it was. One that
-- will not void needs a person.
-- Locks: payments.
create or replace function record_void(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
begin
    update payments as p
    set
        status = case when greatest(p.captured_amount, a.captured) > 0 then 'refunded' else 'voided' end::payment_status,
        authorized_amount = greatest(p.authorized_amount, p.captured_amount, a.captured),
        captured_amount = greatest(p.captured_amount, a.captured),
        refunded_amount = greatest(p.captured_amount, a.captured),
        voided_amount = p.requested_amount - greatest(p.captured_amount, a.captured),
        gateway = coalesce(p.gateway, a.gateway),
        gateway_reference = coalesce(p.gateway_reference, a.reference),
        updated_at = clock()
    from (
        select
            s.saga_id, (s.answer ->> 'captured')::numeric as captured,
            s.answer ->> 'gateway' as gateway, s.answer ->> 'reference' as reference
        from unnest(p_saga_ids, p_answers) as s (saga_id, answer)
        where s.answer ->> 'outcome' = 'approved'
    ) as a
    where p.order_id = a.saga_id
        and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    return outcomes_of_answers(p_saga_ids, p_answers, 'void', 'DP017');
end
$$;
comment on function record_void(uuid[], uuid[], jsonb[]) is 'Undo, external: records what the gateway answered to each void.';
