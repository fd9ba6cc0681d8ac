-- Refunds: money of a fulfilled order that goes back, in parts, each refund a saga of
-- its own and idempotent by an id that the caller may choose.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Trigger: a refund stays one of that amount, of that order, and once answered it stays answered.
create or replace trigger refunds_keep_their_identity
before update on refunds
for each row
when (
    (old.id, old.order_id, old.warehouse_id, old.amount, old.currency, old.created_at)
    is distinct from
    (new.id, new.order_id, new.warehouse_id, new.amount, new.currency, new.created_at)
    or (old.status <> 'requested' and old.status <> new.status)
)
execute function refuse_change();

create or replace trigger refunds_refuse_removal
before delete on refunds
for each row execute function refuse_change();

create or replace trigger refunds_refuse_truncate
before truncate on refunds
for each statement execute function refuse_change();

-- Writes a refund and starts its saga. Locks only the rows that it inserts.
-- Raises: DP011 when the id is that of an order or another saga.
create or replace function start_refund(
    p_payment payments, p_amount numeric, p_reason text, p_refund_id uuid
) returns refunds
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_refund refunds;
begin
    insert into refunds (id, order_id, warehouse_id, amount, currency, reason)
    values (p_refund_id, p_payment.order_id, p_payment.warehouse_id, p_amount, p_payment.currency, p_reason)
    returning * into v_refund;
    perform start_saga('refund', v_refund.id, v_refund.warehouse_id, p_reason);
    return v_refund;
end
$$;
comment on function start_refund(payments, numeric, text, uuid) is 'Internal: writes a refund and starts its saga.';

-- The money of a payment that can still be given back: refunds that have been asked
-- for count as gone. Locks nothing.
create or replace function left_to_refund(p_payment payments) returns numeric
language sql stable
return p_payment.captured_amount - p_payment.refunded_amount - (
    select coalesce(sum(r.amount), 0) from refunds as r
    where r.order_id = p_payment.order_id and r.status = 'requested'
);
comment on function left_to_refund(payments) is 'Internal: the money of a payment that can still be given back.';

-- Gives back money of a fulfilled order: p_amount, or all that is left of it.
-- The same p_refund_id again returns the refund it made. The goods are another
-- matter: see return_items().
-- Locks: payments.
-- Raises: DP010 when there is no such order, DP011 when the id stands for
-- another refund, an order or a saga, DP015 for an amount that makes no sense, DP019 when the order
-- is not fulfilled, DP020 when less than that is left.
create or replace function refund_order(
    p_order_id uuid, p_amount numeric default null, p_reason text default null, p_refund_id uuid default new_id()
) returns refunds
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_payment payments;
    v_refund refunds;
    v_status order_status;
    v_left numeric;
begin
    select p.* into v_payment
    from payments as p
    where p.order_id = p_order_id
    for no key update;

    select r.* into v_refund from refunds as r where r.id = p_refund_id;
    if found then
        if v_refund.order_id is distinct from p_order_id or v_refund.amount <> coalesce(p_amount, v_refund.amount) then
            perform refuse(
                'DP011', 'refund id already used',
                format('Refund %s stands for %s %s of order %s.', v_refund.id, v_refund.amount, v_refund.currency, v_refund.order_id),
                'Repeat a refund unchanged, or give a new one a new id.'
            );
        end if;
        return v_refund;
    end if;

    select o.status into v_status from orders as o where o.id = p_order_id;
    if not found then
        perform refuse(
            'DP010', 'no such order',
            format('There is no order %s.', p_order_id),
            'Look it up in order_overview.'
        );
    elsif v_status <> 'fulfilled' then
        perform refuse(
            'DP019', 'order is not fulfilled',
            format('Order %s is %s.', p_order_id, v_status),
            'An order that is not fulfilled is cancelled, which gives the money back: see cancel_order().'
        );
    end if;

    v_left := left_to_refund(v_payment);
    if p_amount <= 0 then
        perform refuse(
            'DP015', 'amount makes no sense',
            format('A refund of %s was asked for.', p_amount),
            'Give a positive amount, or none for all that is left.'
        );
    elsif p_amount > v_left or v_left = 0 then
        perform refuse(
            'DP020', 'not so much is left to refund',
            format('Of order %s, %s %s can still be given back.', p_order_id, v_left, v_payment.currency),
            'See refunds for what was given back already.'
        );
    end if;
    perform refuse_unpayable(p_amount, v_payment.currency);
    return start_refund(v_payment, coalesce(p_amount, v_left), p_reason, p_refund_id);
end
$$;
comment on function refund_order(uuid, numeric, text, uuid) is
    'Gives back money of a fulfilled order, all that is left or a part. Safe to repeat with the same refund id.';

-- Step, before the call. Locks nothing.
create or replace function request_refund(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return group_outcomes(array(
        select row(
            r.id, 'waiting', null, null,
            json_build_object(
                'operation', 'refund',
                'idempotency_key', concat(r.id, ':refund_payment'),
                'payment_key', p.idempotency_key,
                'amount', r.amount::text,
                'currency', r.currency,
                'reference', p.gateway_reference
            ),
            null
        )::step_outcome
        from refunds as r
        inner join payments as p
            on p.order_id = any(array[r.order_id]) and p.warehouse_id = any(array[r.warehouse_id])
        where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
    ));
end
$$;
comment on function request_refund(uuid[], uuid[]) is 'Step, external: asks for each refund to be paid out.';

-- Step, with the answers. Locks: payments by order, refunds.
create or replace function record_refund(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
begin
    perform p.order_id
    from payments as p
    where p.warehouse_id = any(p_warehouse_ids) and p.order_id = any(array(
        select r.order_id from refunds as r
        where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
    ))
    order by p.order_id
    for no key update;

    with answered as (
        update refunds as r
        set
            status = case a.answer ->> 'outcome' when 'approved' then 'refunded' else 'declined' end::refund_status,
            gateway_reference = a.answer ->> 'reference',
            decline_code = a.answer ->> 'code',
            updated_at = clock()
        from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
        where a.answer ->> 'outcome' in ('approved', 'declined')
            and r.id = a.saga_id and r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
        returning r.order_id, r.warehouse_id, r.status, r.amount
    )
    update payments as p
    set
        refunded_amount = p.refunded_amount + a.amount,
        status = case when p.refunded_amount + a.amount = p.captured_amount then 'refunded' else p.status end,
        updated_at = clock()
    from (
        select t.order_id, t.warehouse_id, sum(t.amount) as amount
        from answered as t
        where t.status = 'refunded'
        group by t.order_id, t.warehouse_id
    ) as a
    where p.order_id = any(array[a.order_id]) and p.warehouse_id = any(array[a.warehouse_id]);

    return outcomes_of_answers(p_saga_ids, p_answers, 'refund');
end
$$;
comment on function record_refund(uuid[], uuid[], jsonb[]) is 'Step, external: records what the gateway answered to each refund.';

select define_plan(
    'refund',
    step('refund_payment', p_function => 'request_refund', p_settle_function => 'record_refund', p_forward_only => true)
);
