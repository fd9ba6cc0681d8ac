-- Payments: the steps that take money and give it back, each beside its undo.
--
-- The intent is committed with its idempotency key, then the gateway is asked
-- with no transaction open, then the answer is committed. A key is the saga's
-- id and the name of the step, so every try of a step asks under the same key.
-- An answer is {"outcome": "approved" | "declined" | "pending" | "unknown",
-- "gateway", "reference", "code", "message", "deadline_seconds", "amount",
-- "currency", "captured", "refunded"}. Unknown is never taken for an answer: the
-- step is tried again. Nor is an approval of something else than was asked for: what was
-- taken is written down and undone. A gateway that names no amount is believed.
--
-- Where one that came to nothing may be followed by another (66_held_orders.sql), each try has a key of
-- its own: that of the step and a number, which the calls about it have too. A key that was declined or
-- voided stands in payment_attempts from then on, with what was taken and given back under it.
--
-- Two laws hold for every writer: a payment is never removed, and money that was captured
-- or refunded stays so, but for a refund that failed after all.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger payments_refuse_removal
before delete on payments
for each row execute function refuse_change('order_id');

create or replace trigger payments_refuse_truncate
before truncate on payments
for each statement execute function refuse_change();

-- Trigger: money that was taken, given back or given up does not become less. A
-- voided amount shrinks only by what turns out to have been captured after all, and a
-- refunded one by a refund that failed, or has yet to be made in place of a void that did. A payment
-- under another key begins with nothing, and what was before stands in payment_attempts.
-- Locks nothing. Raises DP005.
create or replace function refuse_less_money() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    if old.idempotency_key = new.idempotency_key and (
        new.captured_amount < old.captured_amount
        or (new.refunded_amount < old.refunded_amount and not exists (
            select
            from refunds as r
            where r.order_id = old.order_id and r.warehouse_id = old.warehouse_id and r.payment_key is null
            having bool_or(r.amount = old.refunded_amount - new.refunded_amount and r.status in ('failed', 'requested'))
                and coalesce(sum(r.amount) filter (where r.status = 'refunded'), 0) <= new.refunded_amount
        ))
        or new.voided_amount + new.captured_amount < old.voided_amount + old.captured_amount
    ) then
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
comment on function refuse_less_money() is
    'Trigger: captured, refunded and voided amounts of a payment never shrink, but by a refund that failed.';

-- Nothing can shrink while nothing was captured or voided. The condition is short,
-- since every statement reads it from text anew. It comes AFTER the update, since
-- before one every row is locked first.
create or replace trigger payments_only_add_up
after update of captured_amount, refunded_amount, voided_amount on payments
for each row
when (old.captured_amount + old.voided_amount > 0)
execute function refuse_less_money();

-- Trigger: a payment stays one for the amount that it was asked for, under its key while something may
-- have been taken under that and isn't back.
create or replace trigger payments_keep_what_was_asked
after update of order_id, warehouse_id, requested_amount, currency, idempotency_key on payments
for each row
when (
    (old.order_id, old.warehouse_id, old.requested_amount, old.currency)
    is distinct from
    (new.order_id, new.warehouse_id, new.requested_amount, new.currency)
    or (
        old.idempotency_key <> new.idempotency_key and not (
            (old.status = 'declined' and old.authorized_amount = 0)
            or (old.status in ('voided', 'refunded') and old.captured_amount = old.refunded_amount)
        )
    )
)
execute function refuse_change();

-- Trigger: what came to nothing under a key stays written when the payment is tried under another.
-- Locks nothing. Raises: DP005 for a key under which a charge came to nothing.
create or replace function keep_attempt() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    insert into payment_attempts (
        order_id, warehouse_id, idempotency_key, status, captured_amount, refunded_amount, gateway, gateway_reference, decline_code,
        ended_at
    )
    values (
        old.order_id, old.warehouse_id, old.idempotency_key, old.status, old.captured_amount, old.refunded_amount, old.gateway,
        old.gateway_reference, old.decline_code, old.updated_at
    );
    if exists (
        select from payment_attempts as a
        where a.order_id = new.order_id and a.idempotency_key = new.idempotency_key and a.warehouse_id = new.warehouse_id
    ) then
        perform refuse(
            'DP005', 'a charge keeps its key', format('Under %s a charge came to nothing already.', new.idempotency_key),
            'Try again under a key of its own: the gateway answers an old one as it did.'
        );
    end if;
    return null;
end
$$;
comment on function keep_attempt() is
    'Trigger: writes down what came to nothing under a key when a payment is tried under another.';

create or replace trigger payments_remember_attempts
after update of idempotency_key on payments
for each row
when (old.idempotency_key <> new.idempotency_key)
execute function keep_attempt();

-- What was declined stays so. What was voided may turn out to have been charged, and goes back.
create or replace trigger payment_attempts_refuse_change
before update on payment_attempts
for each row
when (
    (old.order_id, old.warehouse_id, old.idempotency_key, old.gateway, old.gateway_reference, old.decline_code, old.ended_at)
    is distinct from
    (new.order_id, new.warehouse_id, new.idempotency_key, new.gateway, new.gateway_reference, new.decline_code, new.ended_at)
    or old.status = 'declined' or new.captured_amount < old.captured_amount
)
execute function refuse_change();

create or replace trigger payment_attempts_refuse_removal
before delete on payment_attempts
for each row execute function refuse_change('order_id');

create or replace trigger payment_attempts_refuse_truncate
before truncate on payment_attempts
for each statement execute function refuse_change();

create or replace trigger payment_tokens_refuse_change
before update on payment_tokens
for each row execute function refuse_change();

-- Housekeeping: removes the tokens of orders whose sagas have ended, and returns how many
-- went. Fewer than p_limit says that there are no more. A saga that is stuck may ask again.
-- Aside from the passes, which would look for a token of each order that has none. Those of
-- warehouses that are closed here stay: while one moves they are counted at both ends.
-- Locks: the rows that go; those that another session holds are left to it. Raises: DP015.
create or replace function forget_payment_tokens(p_limit integer default 10000) returns bigint
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
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
        ) and not array[e.warehouse_id] <@ (select closed_warehouses())
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

-- An amount of an answer; null where it names none. What can be none of ours (NaN, a word, a
-- negative number) is NaN, which equals nothing that was asked for. Like those that follow it has
-- no SET clause, so that it is inlined. Locks nothing.
create or replace function told_amount(p_answer jsonb, p_field text) returns numeric
language sql immutable
return case
    when length(p_answer ->> p_field) <= 50 and p_answer ->> p_field ~ '^[0-9]+(\.[0-9]+)?([eE][+-]?[0-9][0-9]?)?$'
        then (p_answer ->> p_field)::numeric
    when p_answer ->> p_field is not null then 'NaN'::numeric
end;
comment on function told_amount(jsonb, text) is 'Internal: an amount of an answer; NaN for what is none.';

-- The same for the books: null too for what is no amount of money, or is one of another
-- currency. Locks nothing.
create or replace function told_money(p_answer jsonb, p_field text, p_currency text) returns numeric
language sql immutable
return case
    when upper(coalesce(p_answer ->> 'currency', p_currency)) = p_currency
        and told_amount(p_answer, p_field) < 1e12 and scale(trim_scale(told_amount(p_answer, p_field))) <= 4
        then round(told_amount(p_answer, p_field), least(scale(told_amount(p_answer, p_field)), 4))
end;
comment on function told_money(jsonb, text, text) is 'Internal: an amount of an answer that can be written down.';

-- What an answer says was taken of a payment: in all, else by this call. Null where that is
-- nothing to write down. Locks nothing.
create or replace function told_taken(p_answer jsonb, p_currency text) returns numeric
language sql immutable
return coalesce(told_money(p_answer, 'captured', p_currency), told_money(p_answer, 'amount', p_currency));
comment on function told_taken(jsonb, text) is 'Internal: what an answer says was taken of a payment.';

-- Whether an answer that undoes a payment leaves money with us: less has gone back than was
-- taken, as far as the answer or p_captured says, or an amount is none. Locks nothing.
create or replace function leaves_money(p_answer jsonb, p_captured numeric) returns boolean
language sql immutable
return told_amount(p_answer, 'refunded') < greatest(p_captured, told_amount(p_answer, 'captured'))
    or 'NaN' in (told_amount(p_answer, 'captured'), told_amount(p_answer, 'refunded'));
comment on function leaves_money(jsonb, numeric) is 'Internal: whether an answer that undoes a payment leaves money with us.';

-- Whether an approval is one of what was asked for, as far as it says: its amount and
-- currency; with p_captured, what is captured in all; and the payment's name, if it has one.
-- Texts that are the same are the rule, and cheap to compare. Locks nothing.
create or replace function is_as_asked(
    p_answer jsonb, p_amount numeric, p_currency text, p_captured boolean, p_reference text
) returns boolean
language sql immutable
return (coalesce(p_answer ->> 'amount', p_amount::text) = p_amount::text or told_amount(p_answer, 'amount') = p_amount)
    and (
        not p_captured or coalesce(p_answer ->> 'captured', p_amount::text) = p_amount::text
        or told_amount(p_answer, 'captured') = p_amount
    )
    and (coalesce(p_answer ->> 'currency', p_currency) = p_currency or upper(p_answer ->> 'currency') = p_currency)
    and (p_reference is null or coalesce(p_answer ->> 'reference', p_reference) = p_reference);
comment on function is_as_asked(jsonb, numeric, text, boolean, text) is
    'Internal: whether an approval names the amount, the currency and the payment that were asked for.';

-- What is told to people of an approval of something else: both sides. Locks nothing.
create or replace function told_otherwise(p_answer jsonb, p_amount numeric, p_currency text, p_reference text) returns text
language sql stable
return format(
    'asked for %s %s%s, the gateway says %s',
    p_amount, p_currency, ' of ' || p_reference,
    left(concat_ws(
        ' ', p_answer ->> 'amount', p_answer ->> 'currency',
        'captured ' || (p_answer ->> 'captured'), 'refunded ' || (p_answer ->> 'refunded'), 'of ' || (p_answer ->> 'reference')
    ), 500)
);
comment on function told_otherwise(jsonb, numeric, text, text) is
    'Internal: what was asked for and what a gateway says of it, for people.';

-- Of answers about payments, the approvals of something else than was asked for: an
-- outcome for each, with both sides. p_captured: the money was to be taken.
-- p_of_payment: the payment has its name already. Locks nothing.
create or replace function wrong_approvals(
    p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[], p_captured boolean, p_of_payment boolean
) returns step_outcome[]
language plpgsql stable
set enable_seqscan = off
as $$
begin
    return array(
        select row(p.order_id, 'wrong', 'DP026', told_otherwise(a.answer, p.requested_amount, p.currency, n.reference), null, null)::step_outcome
        from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
        inner join payments as p on p.order_id = a.saga_id
        cross join lateral (select case when p_of_payment then p.gateway_reference end) as n (reference)
        where a.answer ->> 'outcome' = 'approved'
            and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
            and not is_as_asked(a.answer, p.requested_amount, p.currency, p_captured, n.reference)
    );
end
$$;
comment on function wrong_approvals(uuid[], uuid[], jsonb[], boolean, boolean) is
    'Internal: the approvals of another amount, currency or payment than was asked for.';

-- The outcomes of answers, but for sagas that have one already. Locks nothing.
create or replace function outcomes_besides(
    p_outcomes step_outcome[], p_saga_ids uuid[], p_answers jsonb[], p_what text, p_declined_code text default 'DP014'
) returns outcome_group[]
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
declare
    v_others uuid[];
    v_answers jsonb[];
begin
    select array_agg(a.saga_id order by a.n), array_agg(a.answer order by a.n) into v_others, v_answers
    from unnest(p_saga_ids, p_answers) with ordinality as a (saga_id, answer, n)
    where not exists (select from unnest(p_outcomes) as o where o.saga_id = a.saga_id);
    return outcomes_of_answers(v_others, v_answers, p_what, p_declined_code) || group_outcomes(p_outcomes);
end
$$;
comment on function outcomes_besides(step_outcome[], uuid[], jsonb[], text, text) is
    'Internal: the outcomes of answers, but for the sagas that have one already.';

-- What the payer has to do before a pending answer is decided; null for none, and for what is too
-- much to keep. Locks nothing.
create or replace function told_action(p_answer jsonb) returns jsonb
language sql immutable
return case
    when jsonb_typeof(p_answer -> 'client_action') = 'object' and octet_length((p_answer -> 'client_action')::text) <= 8192
        then p_answer -> 'client_action'
end;
comment on function told_action(jsonb) is 'Internal: what an answer says that the payer has to do.';

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
            o.currency, o.total_amount, concat(o.id, ':', p_step_name, cell_suffix()), v_now, v_now
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

-- Writes down what a gateway has taken or holds instead of what it was asked for. Its void is
-- next. Money of another currency, or no amount at all, stays out of the books.
-- Locks: payments.
create or replace function record_wrong_charges(
    p_warehouse_ids uuid[], p_wrong_ids uuid[], p_saga_ids uuid[], p_answers jsonb[], p_capture boolean
) returns void
language plpgsql
set enable_seqscan = off
as $$
begin
    update payments as p
    set
        status = case
            when greatest(a.held, a.taken) > 0 then case when a.taken > 0 then 'captured' else 'authorized' end::payment_status
            else p.status
        end,
        authorized_amount = coalesce(greatest(a.held, a.taken), 0),
        captured_amount = coalesce(a.taken, 0),
        gateway = coalesce(a.answer ->> 'gateway', p.gateway),
        gateway_reference = coalesce(a.answer ->> 'reference', p.gateway_reference),
        client_action = null,
        updated_at = clock()
    from (
        select
            q.order_id, t.answer, told_money(t.answer, 'amount', q.currency) as held,
            case when p_capture then told_taken(t.answer, q.currency) end as taken
        from unnest(p_saga_ids, p_answers) as t (saga_id, answer)
        inner join payments as q on q.order_id = t.saga_id
        where q.order_id = any(p_wrong_ids) and q.warehouse_id = any(p_warehouse_ids)
    ) as a
    where p.order_id = a.order_id and p.order_id = any(p_wrong_ids) and p.warehouse_id = any(p_warehouse_ids);
end
$$;
comment on function record_wrong_charges(uuid[], uuid[], uuid[], jsonb[], boolean) is
    'Internal: records what a gateway has taken or holds instead of what it was asked for.';

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
    v_wrong step_outcome[];
begin
    update payments as p
    set
        status = case when p_capture then 'captured' else 'authorized' end::payment_status,
        authorized_amount = p.requested_amount,
        captured_amount = case when p_capture then p.requested_amount else 0 end,
        gateway = coalesce(a.answer ->> 'gateway', p.gateway),
        gateway_reference = coalesce(a.answer ->> 'reference', p.gateway_reference),
        decline_code = a.answer ->> 'code',
        client_action = null,
        updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where a.answer ->> 'outcome' = 'approved' and p.order_id = a.saga_id
        and is_as_asked(a.answer, p.requested_amount, p.currency, p_capture, null)
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
        client_action = case a.answer ->> 'outcome' when 'pending' then told_action(a.answer) end,
        updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where a.answer ->> 'outcome' in ('declined', 'pending') and p.order_id = a.saga_id
        and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    v_wrong := wrong_approvals(p_warehouse_ids, p_saga_ids, p_answers, p_capture, false);
    perform record_wrong_charges(p_warehouse_ids, array(select w.saga_id from unnest(v_wrong) as w), p_saga_ids, p_answers, p_capture);
    return outcomes_besides(v_wrong, p_saga_ids, p_answers, 'payment');
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

-- A call about a payment that the gateway knows, under the number of the try. Locks nothing.
create or replace function payment_call(p_operation text, p_step_name text, p_payment payments) returns json
language sql stable
return json_build_object(
    'operation', p_operation,
    'idempotency_key',
    concat_ws(
        ':', p_payment.order_id, p_step_name || coalesce(cell_suffix_of(p_payment.idempotency_key), ''),
        nullif(split_part(p_payment.idempotency_key, ':', 3), '')
    ),
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
declare
    v_captured integer;
    v_wrong step_outcome[];
begin
    update payments as p
    set status = 'captured', captured_amount = p.authorized_amount, decline_code = null, updated_at = clock()
    from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
    where a.answer ->> 'outcome' = 'approved' and p.order_id = a.saga_id
        and is_as_asked(a.answer, p.requested_amount, p.currency, true, p.gateway_reference)
        and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    get diagnostics v_captured = row_count;
    if v_captured = cardinality(p_saga_ids) then
        return outcome_for_all('done', p_saga_ids);
    end if;

    v_wrong := wrong_approvals(p_warehouse_ids, p_saga_ids, p_answers, true, true);
    update payments as p
    set
        -- Money that could not be taken is still held, until it is voided.
        status = case when a.taken > 0 then 'captured' else 'authorized' end::payment_status,
        authorized_amount = greatest(p.authorized_amount, a.taken),
        captured_amount = a.taken,
        decline_code = a.answer ->> 'code',
        updated_at = clock()
    from (
        select
            q.order_id, t.answer,
            case
                when w.saga_id is not null and coalesce(t.answer ->> 'reference' = q.gateway_reference, true)
                    then coalesce(told_taken(t.answer, q.currency), 0)
                else 0
            end as taken
        from unnest(p_saga_ids, p_answers) as t (saga_id, answer)
        inner join payments as q on q.order_id = t.saga_id
        left join unnest(v_wrong) as w on w.saga_id = t.saga_id
        where q.order_id = any(p_saga_ids) and q.warehouse_id = any(p_warehouse_ids)
            and (w.saga_id is not null or t.answer ->> 'outcome' = 'declined')
    ) as a
    where p.order_id = a.order_id and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    return outcomes_besides(v_wrong, p_saga_ids, p_answers, 'capture');
end
$$;
comment on function record_capture(uuid[], uuid[], jsonb[]) is 'Step, external: records what the gateway answered to each capture.';

-- Whether the payer's bank wants the money of a payment back, or has it: to give it back then
-- is to pay twice. One that was won is none. Locks nothing.
create or replace function is_disputed(p_order_id uuid, p_warehouse_id uuid) returns boolean
language sql stable
return exists (
    select from disputes as d
    where d.order_id = p_order_id and d.warehouse_id = p_warehouse_id and d.status <> 'won'
);
comment on function is_disputed(uuid, uuid) is 'Internal: whether the money of a payment is disputed, or was lost in a dispute.';

-- Writes down that payments are to be voided, which were asked for. The tokens that were tried are
-- of no use from then on. Locks: payments, payment_tokens.
create or replace function give_up_payments(p_warehouse_ids uuid[], p_order_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    with given_up as (
        update payments as p
        set status = 'void_requested', client_action = null, updated_at = clock()
        where p.order_id = any(p_order_ids) and p.warehouse_id = any(p_warehouse_ids)
            and p.status in ('requested', 'pending', 'authorized', 'capture_requested', 'captured')
            and p.requested_amount > 0
        returning p.order_id
    )
    delete from payment_tokens as t
    using given_up as g
    where t.order_id = g.order_id and t.order_id = any(p_order_ids) and t.warehouse_id = any(p_warehouse_ids);
end
$$;
comment on function give_up_payments(uuid[], uuid[]) is 'Internal: writes down that payments are to be voided.';

-- Undo, before the call: in the end nothing is to be held or kept, whatever
-- became of the payment. One that was declined, voided or never asked for needs no call;
-- what is disputed needs a person, and so does what no gateway has.
-- Locks: payments, payment_tokens.
create or replace function request_void(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_persons constant step_outcome[] := array(
        select row(
            p.order_id, 'stuck', case p.gateway when 'manual' then 'DP028' else 'DP027' end,
            case p.gateway
                when 'manual' then 'paid by other means: give it back, then skip this step'
                else 'the payment is disputed: to void it may pay twice'
            end,
            null, null
        )::step_outcome
        from payments as p
        where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
            and p.captured_amount > p.refunded_amount
            and (p.gateway = 'manual' or is_disputed(p.order_id, p.warehouse_id))
    );
begin
    -- What a person undoes is not tried again with the token that paid for it, only with one that came since.
    if cardinality(v_persons) > 0 then
        delete from payment_tokens as t
        using payments as p
        where t.order_id = any(array(select d.saga_id from unnest(v_persons) as d)) and t.warehouse_id = any(p_warehouse_ids)
            and (p.order_id, p.warehouse_id) = (t.order_id, t.warehouse_id) and p.status <> 'void_requested';
    end if;
    perform give_up_payments(p_warehouse_ids, ids_besides(p_saga_ids, array(select d.saga_id from unnest(v_persons) as d)));
    return group_outcomes(v_persons || array(
        select row(
            i, case when p.order_id is null then 'done' else 'waiting' end, null, null,
            case when p.order_id is not null then payment_call('void', 'void_payment', p) end, null
        )::step_outcome
        from unnest(p_saga_ids) as i
        left join payments as p
            on p.order_id = i and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
                and p.status = 'void_requested'
        where not exists (select from unnest(v_persons) as d where d.saga_id = i)
    ));
end
$$;
comment on function request_void(uuid[], uuid[]) is 'Undo, external: asks for the payment of each order to be voided or refunded.';

-- Of answers that say a payment is undone, those that don't make it so: less has gone back
-- than was taken, an amount is none, or it is another payment. Locks nothing.
create or replace function wrong_voids(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[]) returns step_outcome[]
language plpgsql stable
set enable_seqscan = off
as $$
begin
    return array(
        select row(
            p.order_id, 'wrong', 'DP026', told_otherwise(a.answer, p.captured_amount, p.currency || ' back', p.gateway_reference), null, null
        )::step_outcome
        from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
        inner join payments as p on p.order_id = a.saga_id
        where a.answer ->> 'outcome' = 'approved'
            and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
            and (leaves_money(a.answer, p.captured_amount) or p.gateway_reference <> a.answer ->> 'reference')
    );
end
$$;
comment on function wrong_voids(uuid[], uuid[], jsonb[]) is 'Internal: the approvals of a void that leave money with us.';

-- Undo, with the answers. Money that had been captured counts as refunded, the
-- rest as voided; the gateway knows better than we do which it was. One that
-- will not void needs a person, and so does one that leaves something.
-- Locks: payments.
create or replace function record_void(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_wrong constant step_outcome[] := wrong_voids(p_warehouse_ids, p_saga_ids, p_answers);
begin
    update payments as p
    set
        status = case when a.wrong then p.status when a.captured > 0 then 'refunded' else 'voided' end::payment_status,
        authorized_amount = greatest(p.authorized_amount, a.captured),
        captured_amount = a.captured,
        refunded_amount = case when a.wrong then greatest(p.refunded_amount, least(a.refunded, a.captured)) else a.captured end,
        voided_amount = case when a.wrong then p.voided_amount else greatest(p.requested_amount - a.captured, 0) end,
        gateway = coalesce(p.gateway, a.answer ->> 'gateway'),
        gateway_reference = coalesce(p.gateway_reference, a.answer ->> 'reference'),
        updated_at = clock()
    from (
        select
            q.order_id, s.answer, w.saga_id is not null as wrong,
            greatest(q.captured_amount, told_money(s.answer, 'captured', q.currency)) as captured,
            coalesce(told_money(s.answer, 'refunded', q.currency), 0) as refunded
        from unnest(p_saga_ids, p_answers) as s (saga_id, answer)
        inner join payments as q on q.order_id = s.saga_id
        left join unnest(v_wrong) as w on w.saga_id = s.saga_id
        where s.answer ->> 'outcome' = 'approved' and (q.gateway_reference <> s.answer ->> 'reference') is not true
            and q.order_id = any(p_saga_ids) and q.warehouse_id = any(p_warehouse_ids)
    ) as a
    where p.order_id = a.order_id and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids);
    return outcomes_besides(v_wrong, p_saga_ids, p_answers, 'void', 'DP028');
end
$$;
comment on function record_void(uuid[], uuid[], jsonb[]) is 'Undo, external: records what the gateway answered to each void.';

-- Begins the next charge of orders whose payment came to nothing, under a key of its own; the trigger keeps
-- what was before. As 'requested' it is to be asked for, as 'voided' it stands for none that was.
-- Locks: payments.
create or replace function begin_payments(p_warehouse_ids uuid[], p_order_ids uuid[], p_status payment_status) returns void
language sql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    update payments as p
    set
        status = p_status, authorized_amount = 0, captured_amount = 0, refunded_amount = 0, voided_amount = 0, gateway = null,
        gateway_reference = null, decline_code = null, updated_at = clock(),
        idempotency_key = concat_ws(
            ':', p.order_id, split_part(p.idempotency_key, ':', 2),
            2 + (select count(*) from payment_attempts as a where a.order_id = p.order_id)
        )
    where p.order_id = any(p_order_ids) and p.warehouse_id = any(p_warehouse_ids) and p.status in ('declined', 'voided', 'refunded');
end;
comment on function begin_payments(uuid[], uuid[], payment_status) is
    'Internal: the next charge of orders whose payment came to nothing, under a key of its own.';

-- The payments that a gateway calls by a name of its own. Their index is a summary by bloom
-- filters, which an update of a payment leaves as cheap as it was; the planner takes such a
-- summary for no better than reading the table. Locks nothing.
create or replace function find_payments(p_gateway_reference text) returns setof payments
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select p.* from payments as p where p.gateway_reference = p_gateway_reference;
end;
comment on function find_payments(text) is 'The payments that a gateway calls by this name; the quick way to them.';
