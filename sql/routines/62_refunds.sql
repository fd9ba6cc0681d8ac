-- Refunds: money that goes back, each refund a saga of its own and idempotent by an id that
-- the caller may choose. That of a fulfilled order goes back in parts; of a cancelled one
-- all that is left, by a void, which looks at the gateway's books before it moves anything, as long as
-- no part went back by other means.
-- An order of which a part has left is owed what was taken out of it, see 65_shipments.sql, and
-- what has come back.
--
-- What a cancelled order is owed, or one that something was taken out of, never ends as
-- declined: its saga is stuck then, for a person. A refund that the gateway takes back later is
-- failed, and its money is there to be given back again, by the gateway or by hand.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Trigger: a refund stays one of that amount, of that order, and once answered it stays
-- answered, but for one that fails after all.
create or replace trigger refunds_keep_their_identity
before update on refunds
for each row
when (
    (old.id, old.order_id, old.warehouse_id, old.amount, old.currency, old.created_at, old.despite_dispute, old.payment_key)
    is distinct from
    (new.id, new.order_id, new.warehouse_id, new.amount, new.currency, new.created_at, new.despite_dispute, new.payment_key)
    or (
        old.status <> new.status and old.status <> 'requested'
        and not (old.status = 'refunded' and new.status = 'failed')
    )
)
execute function refuse_change();

create or replace trigger refunds_refuse_removal
before delete on refunds
for each row execute function refuse_change('order_id');

create or replace trigger refunds_refuse_truncate
before truncate on refunds
for each statement execute function refuse_change();

-- Refuses a breakdown of a refund that can't be one: an array of what goes back of lines,
-- {"item_id", "quantity", "amount"}, and of adjustments, {"adjustment_id", "amount"}; of each line
-- and adjustment of the order once, no more than it was, and as much as the refund in all.
-- Locks nothing. Raises: DP015 for what is no such array, DP041 when it doesn't add up.
create or replace function refuse_wrong_breakdown(p_order_id uuid, p_amount numeric, p_breakdown jsonb) returns void
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_hint constant text := 'Pass [{"item_id": 1, "quantity": 1, "amount": 10}, {"adjustment_id": 2, "amount": 4.90}].';
    v_place bigint;
    v_sum numeric;
begin
    if jsonb_typeof(p_breakdown) <> 'array' or jsonb_array_length(p_breakdown) not between 1 and 2000 then
        perform refuse('DP015', 'breakdown must be an array', 'It is none, or has no parts, or more than 2000.', v_hint);
    end if;
    select min(e.n) - 1 into v_place
    from jsonb_array_elements(p_breakdown) with ordinality as e (part, n)
    where case when jsonb_typeof(e.part) = 'object' then
        e.part - '{item_id,quantity,amount}'::text[] <> '{}' and e.part - '{adjustment_id,amount}'::text[] <> '{}'
        or (e.part ->> 'amount' ~ '^-?[0-9]{1,12}(\.[0-9]{1,4})?$') is not true
        or coalesce(e.part ->> 'item_id', e.part ->> 'adjustment_id', '') !~ '^[0-9]{1,18}$'
        or e.part ->> 'quantity' !~ '^[0-9]{1,7}$'
    else true end;
    if v_place is not null then
        perform refuse(
            'DP015', 'part makes no sense',
            format('breakdown[%s] is %s.', v_place, left((p_breakdown -> v_place::integer)::text, 200)), v_hint
        );
    end if;

    select sum(b.amount) into v_sum from jsonb_to_recordset(p_breakdown) as b (amount numeric);
    select min(b.n) - 1 into v_place
    from (
        select e.n, (e.part ->> 'item_id')::bigint as item_id, (e.part ->> 'adjustment_id')::bigint as adjustment_id,
            (e.part ->> 'quantity')::integer as quantity, (e.part ->> 'amount')::numeric as amount,
            count(*) over (partition by e.part -> 'item_id', e.part -> 'adjustment_id') as times
        from jsonb_array_elements(p_breakdown) with ordinality as e (part, n)
    ) as b
    left join order_items as i on i.order_id = p_order_id and i.id = b.item_id
    left join order_adjustments as a on a.order_id = p_order_id and a.id = b.adjustment_id
    where b.times > 1 or b.quantity > i.quantity
        or (b.amount between least(coalesce(i.line_total, a.amount), 0) and greatest(coalesce(i.line_total, a.amount), 0)) is not true;
    if v_place is not null or v_sum <> p_amount then
        perform refuse(
            'DP041', 'refund does not add up',
            case when v_place is null then format('The parts are %s in all, the refund %s.', v_sum, p_amount) else
                format('breakdown[%s] is of nothing in the order, or of more than it was, or the second of its kind.', v_place) end,
            'Name lines and adjustments of the order, each once, whose amounts add up to that of the refund.'
        );
    end if;
end
$$;
comment on function refuse_wrong_breakdown(uuid, numeric, jsonb) is 'Internal: refuses a breakdown of a refund that doesn''t add up.';

-- Writes a refund and starts its saga; with p_payment_key of what was taken under that of
-- payment_attempts. Locks only the rows that it inserts.
-- Raises: DP011 when the id is that of an order or another saga.
create or replace function start_refund(
    p_payment payments, p_amount numeric, p_reason text, p_refund_id uuid, p_despite_dispute boolean default false,
    p_metadata jsonb default null, p_breakdown jsonb default null, p_payment_key text default null
) returns refunds
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_refund refunds;
begin
    insert into refunds (id, order_id, warehouse_id, amount, currency, reason, despite_dispute, metadata, breakdown, payment_key)
    values (
        p_refund_id, p_payment.order_id, p_payment.warehouse_id, p_amount, p_payment.currency, p_reason, p_despite_dispute,
        p_metadata, p_breakdown, p_payment_key
    )
    returning * into v_refund;
    perform start_saga('refund', v_refund.id, v_refund.warehouse_id, p_reason);
    return v_refund;
end
$$;
comment on function start_refund(payments, numeric, text, uuid, boolean, jsonb, jsonb, text) is 'Internal: writes a refund and starts its saga.';

-- The money of a payment that can still be given back: refunds that have been asked
-- for count as gone. Locks nothing.
create or replace function left_to_refund(p_payment payments) returns numeric
language sql stable
return p_payment.captured_amount - p_payment.refunded_amount - (
    select coalesce(sum(r.amount), 0) from refunds as r
    where r.order_id = p_payment.order_id and r.status = 'requested' and r.payment_key is null
);
comment on function left_to_refund(payments) is 'Internal: the money of a payment that can still be given back.';

-- What units of an order cost, with the adjustments of their lines: of each product those from
-- one place up to before another, counted from 0 in the order of its lines. A line's adjustments
-- go with its units in proportion, rounded by place, so that its parts add up to the whole whatever
-- they are and whichever comes first; a discount takes no line below zero. What is adjusted of
-- the whole order is in no unit. Locks nothing.
create or replace function money_of_units(p_order_id uuid, p_product_ids uuid[], p_begins bigint[], p_ends bigint[]) returns numeric
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    with line as (
        select
            i.product_id, i.quantity, greatest(i.line_total + coalesce(a.amount, 0), 0) as amount,
            (select minor_units(o.currency) from orders as o where o.id = p_order_id) as decimals,
            sum(i.quantity) over up_to - i.quantity as begins, sum(i.quantity) over up_to as ends
        from order_items as i
        left join (
            select d.item_id, sum(d.amount) as amount
            from order_adjustments as d
            where d.order_id = p_order_id
            group by d.item_id
        ) as a on a.item_id = i.id
        where i.order_id = p_order_id
        window up_to as (partition by i.product_id order by i.id)
    )
    select coalesce(sum(
        round(l.amount * (least(l.ends, u.ends) - l.begins) / l.quantity, l.decimals)
        - round(l.amount * (greatest(l.begins, u.begins) - l.begins) / l.quantity, l.decimals)
    ), 0)
    from line as l
    inner join unnest(p_product_ids, p_begins, p_ends) as u (product_id, begins, ends)
        on u.product_id = l.product_id and u.begins < l.ends and l.begins < u.ends;
end;
comment on function money_of_units(uuid, uuid[], bigint[], bigint[]) is
    'Internal: what units of an order cost with the adjustments of their lines, named by their places.';

-- The money of the units that were taken out of an order, and of so many more of some products:
-- an order's last lines are taken out first, so that what left before cost what its own lines
-- say. It may be more than was paid, where the whole order had a discount. Locks nothing.
create or replace function money_of_cancelled(p_order_id uuid, p_product_ids uuid[] default '{}', p_quantities integer[] default '{}')
returns numeric
language plpgsql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return (
        select money_of_units(
            p_order_id, array_agg(c.product_id), array_agg(i.quantity - c.quantity), array_agg(i.quantity)
        )
        from (
            select g.product_id, sum(g.quantity) as quantity
            from (
                select m.product_id, m.quantity from stock_movements as m
                where m.reference_id = p_order_id and m.reference_type = 'cancellation' and m.movement_type = 'release'
                union all
                select p.product_id, p.quantity from unnest(p_product_ids, p_quantities) as p (product_id, quantity)
            ) as g
            group by g.product_id
        ) as c
        inner join (
            select l.product_id, sum(l.quantity) as quantity from order_items as l where l.order_id = p_order_id group by l.product_id
        ) as i using (product_id)
    );
end
$$;
comment on function money_of_cancelled(uuid, uuid[], integer[]) is
    'Internal: what the units cost that were taken out of an order, and so many more.';

-- The money of the units of an order that have come back, from the first of its lines on. It may be
-- more than was paid too. Locks nothing.
create or replace function money_of_returned(p_order_id uuid) returns numeric
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select money_of_units(
        p_order_id, array_agg(g.product_id), array_fill(0::bigint, array[count(*)::integer]), array_agg(g.quantity)
    )
    from (
        select m.product_id, sum(m.quantity) as quantity
        from stock_movements as m
        where m.reference_id = p_order_id and m.reference_type = 'return' and (m.movement_type = 'receive') is true
        group by m.product_id
    ) as g;
end;
comment on function money_of_returned(uuid) is 'Internal: what the units cost that have come back of an order.';

-- The payment of an order, locked, so that its refunds are one after another; null when
-- there is none. Locks: payments.
create or replace function lock_payment(p_order_id uuid) returns payments
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_payment payments;
begin
    select p.* into v_payment
    from payments as p
    where p.order_id = p_order_id
    for no key update;
    return v_payment;
end
$$;
comment on function lock_payment(uuid) is 'Internal: the payment of an order, locked.';

-- The refund that was made under an id, if one was. Locks nothing. Raises: DP011 when it is
-- of another order or amount.
create or replace function refund_again(p_refund_id uuid, p_order_id uuid, p_amount numeric) returns refunds
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_refund refunds;
begin
    select r.* into v_refund from refunds as r where r.id = p_refund_id;
    if v_refund.order_id <> p_order_id or v_refund.amount <> p_amount then
        perform refuse(
            'DP011', 'refund id already used',
            format('Refund %s stands for %s %s of order %s.', v_refund.id, v_refund.amount, v_refund.currency, v_refund.order_id),
            'Repeat a refund unchanged, or give a new one a new id.'
        );
    end if;
    return v_refund;
end
$$;
comment on function refund_again(uuid, uuid, numeric) is 'Internal: the refund that an id stands for, if it is the one that is asked for.';

-- What can be given back of an order now: all that is left of what a fulfilled or a cancelled one has paid;
-- of one of which a part has left, what was taken out of it or has come back cost; else nothing.
-- Null when it has no payment. Locks nothing.
create or replace function refundable(p_order_id uuid) returns numeric
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select case
        when o.status in ('fulfilled', 'cancelled') then left_to_refund(p)
        when o.status = 'fulfilling' then greatest(
            left_to_refund(p) - greatest(p.captured_amount - money_of_cancelled(o.id) - money_of_returned(o.id), 0), 0
        )
        else 0
    end
    from payments as p
    inner join orders as o on o.id = p.order_id and o.warehouse_id = p.warehouse_id
    where p.order_id = p_order_id;
end;
comment on function refundable(uuid) is 'What can be given back of an order now.';

-- The amount of a refund of an order: p_amount, or all that is left; of one of which a part has left
-- what was taken out of it or has come back costs. Locks nothing.
-- Raises: DP010 when there is no such order, DP015 for an amount that makes no sense, DP019
-- when the order is neither fulfilled nor owed anything, after it was cancelled or something
-- was taken out of it or came back, DP020 when less than that is left.
create or replace function amount_to_refund(p_order_id uuid, p_payment payments, p_amount numeric) returns numeric
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_status order_status;
    v_left constant numeric := refundable(p_order_id);
begin
    select o.status into v_status from orders as o where o.id = p_order_id;
    if v_status is null then
        perform refuse(
            'DP010', 'no such order',
            format('There is no order %s.', p_order_id),
            'Look it up in order_overview.'
        );
    elsif v_status <> 'fulfilled' and (v_status in ('fulfilling', 'cancelled') and v_left > 0) is not true then
        perform refuse(
            'DP019', 'order is not fulfilled',
            format('Order %s is %s.', p_order_id, v_status),
            case v_status
                when 'fulfilling' then
                    'What has not left is taken out by cancel_items(), which gives its money back; what has left comes back first, by return_items().'
                else 'An order that is not fulfilled is cancelled, which gives the money back: see cancel_order().'
            end
        );
    elsif p_amount <= 0 then
        perform refuse(
            'DP015', 'amount makes no sense',
            format('A refund of %s was asked for.', p_amount),
            'Give a positive amount, or none for all that is left.'
        );
    elsif p_amount > v_left or v_left = 0 then
        perform refuse(
            'DP020', 'not so much is left to refund',
            format('Of order %s, %s %s can still be given back.', p_order_id, v_left, p_payment.currency),
            'See refunds for what was given back already.'
        );
    end if;
    perform refuse_unpayable(p_amount, p_payment.currency);
    return coalesce(p_amount, v_left);
end
$$;
comment on function amount_to_refund(uuid, payments, numeric) is 'Internal: the amount of a refund, refused when the order is not owed it.';

-- Gives back money of a fulfilled order, p_amount or all that is left of it; or what a
-- cancelled one is still owed, all of it. The same p_refund_id again returns the refund it
-- made. p_despite_dispute: pays although the payer's bank may have paid already. p_breakdown: of
-- which lines and adjustments it is, see refuse_wrong_breakdown(); it is for who reads it.
-- The goods are another matter: see return_items().
-- Locks: payments.
-- Raises: as amount_to_refund() and refuse_wrong_breakdown(); DP011 when the id stands for another
-- refund, an order or a saga; DP015 for a part of what a cancelled order is owed; DP027 when the
-- payment is disputed.
create or replace function refund_order(
    p_order_id uuid, p_amount numeric default null, p_reason text default null, p_refund_id uuid default new_id(),
    p_despite_dispute boolean default false, p_metadata jsonb default null, p_breakdown jsonb default null
) returns refunds
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_payment constant payments := lock_payment(p_order_id);
    v_refund refunds := refund_again(p_refund_id, p_order_id, p_amount);
    v_amount numeric;
begin
    if v_refund.id is not null and p_breakdown is not null and p_breakdown is distinct from v_refund.breakdown then
        perform refuse(
            'DP011', 'refund id already used', format('Refund %s has another breakdown.', v_refund.id),
            'Repeat a refund unchanged, or give a new one a new id.'
        );
    elsif v_refund.id is not null then
        return v_refund;
    end if;
    v_amount := amount_to_refund(p_order_id, v_payment, p_amount);
    if v_amount < left_to_refund(v_payment)
        and (select o.status from orders as o where o.id = any(array[p_order_id])) = 'cancelled'
    then
        perform refuse(
            'DP015', 'a cancelled order is owed all', format('Order %s is owed more than %s.', p_order_id, v_amount),
            'Name no amount; or pay a part by other means, and say so with record_manual_refund().'
        );
    elsif p_despite_dispute is not true and is_disputed(v_payment.order_id, v_payment.warehouse_id) then
        perform refuse(
            'DP027', 'payment is disputed', format('The payer of order %s has asked their bank for the money.', p_order_id),
            'See disputed_payments. To pay all the same, pass p_despite_dispute.'
        );
    end if;
    if p_breakdown is not null then
        perform refuse_wrong_breakdown(p_order_id, v_amount, p_breakdown);
    end if;
    return start_refund(v_payment, v_amount, p_reason, p_refund_id, coalesce(p_despite_dispute, false), p_metadata, p_breakdown);
end
$$;
comment on function refund_order(uuid, numeric, text, uuid, boolean, jsonb, jsonb) is
    'Gives back money of a fulfilled order, all that is left or a part, or what a cancelled one is owed. Safe to repeat with the same refund id.';

-- An operator has given money back by other means than the gateway: writes it down as a
-- refund that is done, and asks nobody. One that is stuck under an id of its own is skipped
-- instead: skip_step().
-- Locks: payments, then as settle(). Raises: as amount_to_refund(); DP011; DP015 without a reason.
create or replace function record_manual_refund(
    p_order_id uuid, p_amount numeric, p_reason text, p_refund_id uuid default new_id(), p_metadata jsonb default null
) returns refunds
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_payment constant payments := lock_payment(p_order_id);
    v_refund refunds := refund_again(p_refund_id, p_order_id, p_amount);
    v_saga sagas;
begin
    perform refuse_no_reason(p_reason);
    if v_refund.id is not null then
        return v_refund;
    end if;
    v_refund := start_refund(v_payment, amount_to_refund(p_order_id, v_payment, p_amount), p_reason, p_refund_id, true, p_metadata);
    perform note_action('record_manual_refund', p_order_id::text, p_reason, to_jsonb(v_refund));
    select s.* into strict v_saga
    from sagas as s
    where s.id = v_refund.id and s.warehouse_id = v_refund.warehouse_id
    for no key update;
    perform answer_saga(group_of_saga(v_saga), jsonb_build_object('outcome', 'approved', 'gateway', 'other means'));
    select r.* into strict v_refund
    from refunds as r
    where r.id = v_saga.id and r.warehouse_id = v_saga.warehouse_id;
    return v_refund;
end
$$;
comment on function record_manual_refund(uuid, numeric, text, uuid, jsonb) is
    'Operator: money of an order went back by other means than the gateway; writes it down. Safe to repeat with the same refund id.';

-- Whether a refund goes back by a void, which gives back all that the gateway has: of a charge that was
-- given up, or of an order that was cancelled, unless a part went back by other means, of which no
-- gateway knows. Locks nothing.
create or replace function goes_back_by_void(p_refund refunds, p_status order_status) returns boolean
language sql stable
return p_refund.payment_key is not null or (p_status not in ('fulfilling', 'fulfilled') and not exists (
    select from refunds as r
    where r.order_id = p_refund.order_id and r.status = 'refunded' and r.gateway = 'other means'
));
comment on function goes_back_by_void(refunds, order_status) is 'Internal: whether a refund gives back all that the gateway has of a payment.';

-- Step, before the call. What no gateway has taken, or is disputed, needs a person. Locks nothing.
create or replace function request_refund(p_warehouse_ids uuid[], p_saga_ids uuid[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    return group_outcomes(array(
        select case
            when p.gateway = 'manual' and r.payment_key is null
                then row(r.id, 'stuck', 'DP028', 'paid by other means: give it back, then skip this step', null, null)::step_outcome
            when not r.despite_dispute and r.payment_key is null and is_disputed(r.order_id, r.warehouse_id)
                then row(r.id, 'stuck', 'DP027', 'the payment is disputed: to refund it may pay twice', null, null)::step_outcome
            else row(
                r.id, 'waiting', null, null,
                json_build_object(
                    'operation', case when v.void then 'void' else 'refund' end,
                    'idempotency_key', concat(r.id, ':refund_payment', cell_suffix_of(coalesce(r.payment_key, p.idempotency_key))),
                    'payment_key', coalesce(r.payment_key, p.idempotency_key),
                    'amount', (case when v.void then p.requested_amount else r.amount end)::text,
                    'currency', r.currency,
                    'reference', case when r.payment_key is null then p.gateway_reference else (
                        select a.gateway_reference from payment_attempts as a
                        where a.order_id = r.order_id and a.idempotency_key = r.payment_key and a.warehouse_id = r.warehouse_id
                    ) end
                ),
                null
            )::step_outcome
        end
        from refunds as r
        inner join payments as p
            on p.order_id = any(array[r.order_id]) and p.warehouse_id = any(array[r.warehouse_id])
        inner join orders as o
            on o.id = any(array[r.order_id]) and o.warehouse_id = any(array[r.warehouse_id])
        cross join lateral (select goes_back_by_void(r, o.status) as void) as v
        where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
    ));
end
$$;
comment on function request_refund(uuid[], uuid[]) is 'Step, external: asks for each refund to be paid out.';

-- Of answers to refunds, those that need a person: an approval of another amount or currency
-- than was asked for, or of a void that leaves money with us; and a decline of what an order
-- is owed that was cancelled, or that something was taken out of, or of a charge that was given up.
-- Locks nothing.
create or replace function owed_refunds(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[]) returns step_outcome[]
language plpgsql stable
set enable_seqscan = off
as $$
begin
    return array(
        select row(
            r.id, 'stuck', case a.answer ->> 'outcome' when 'approved' then 'DP026' else 'DP028' end,
            case a.answer ->> 'outcome'
                when 'approved' then told_otherwise(a.answer, r.amount, r.currency || ' back', null)
                else format(
                    'refund declined: %s; the order is %s, and is owed %s %s',
                    coalesce(a.answer ->> 'code', a.answer ->> 'message', 'no reason given'), o.status, r.amount, r.currency
                )
            end,
            null, null
        )::step_outcome
        from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
        inner join refunds as r on r.id = a.saga_id
        inner join orders as o
            on o.id = any(array[r.order_id]) and o.warehouse_id = any(array[r.warehouse_id])
        where r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
            and case a.answer ->> 'outcome'
                when 'declined' then o.status <> 'fulfilled' or r.payment_key is not null or exists (
                    select from stock_movements as m where m.correlation_id = r.id and m.movement_type = 'release'
                )
                when 'approved' then case
                    when goes_back_by_void(r, o.status) then leaves_money(a.answer, 0)
                    else not is_as_asked(a.answer, r.amount, r.currency, false, null)
                end
            end
    );
end
$$;
comment on function owed_refunds(uuid[], uuid[], jsonb[]) is 'Internal: the answers to refunds that leave somebody without their money.';

-- Step, with the answers. Locks: payments by order, refunds, payment_attempts.
create or replace function record_refund(p_warehouse_ids uuid[], p_saga_ids uuid[], p_answers jsonb[])
returns outcome_group[]
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set enable_nestloop = off
as $$
declare
    v_owed constant step_outcome[] := owed_refunds(p_warehouse_ids, p_saga_ids, p_answers);
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
            gateway = a.answer ->> 'gateway',
            gateway_reference = a.answer ->> 'reference',
            decline_code = a.answer ->> 'code',
            updated_at = clock()
        from unnest(p_saga_ids, p_answers) as a (saga_id, answer)
        where a.answer ->> 'outcome' in ('approved', 'declined') and r.id = a.saga_id
            and not exists (select from unnest(v_owed) as o where o.saga_id = r.id)
            and r.id = any(p_saga_ids) and r.warehouse_id = any(p_warehouse_ids)
        returning r.order_id, r.warehouse_id, r.status, r.amount, r.payment_key
    ),
    of_attempts as (
        update payment_attempts as b
        set refunded_amount = b.captured_amount, status = 'refunded'
        from answered as t
        where t.status = 'refunded' and b.order_id = any(array[t.order_id]) and b.idempotency_key = any(array[t.payment_key])
            and b.warehouse_id = any(array[t.warehouse_id])
    )
    update payments as p
    set
        refunded_amount = p.refunded_amount + a.amount,
        status = case when p.refunded_amount + a.amount = p.captured_amount then 'refunded' else p.status end,
        updated_at = clock()
    from (
        select t.order_id, t.warehouse_id, sum(t.amount) as amount
        from answered as t
        where t.status = 'refunded' and t.payment_key is null
        group by t.order_id, t.warehouse_id
    ) as a
    where p.order_id = any(array[a.order_id]) and p.warehouse_id = any(array[a.warehouse_id]);

    return outcomes_besides(v_owed, p_saga_ids, p_answers, 'refund');
end
$$;
comment on function record_refund(uuid[], uuid[], jsonb[]) is 'Step, external: records what the gateway answered to each refund.';

-- The gateway takes back that it has refunded: the money is there to be given back again. What a
-- person gave back, at the gateway or elsewhere, is none of that: it tells of its own call, which had
-- been declined. Returns whether it was news. Locks: payments, the refund, payment_attempts; the caller has
-- locked the saga.
create or replace function fail_refund(p_refund_id uuid, p_code text) returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_refund refunds;
begin
    perform lock_payment((select r.order_id from refunds as r where r.id = p_refund_id));
    update refunds as r
    set status = 'failed', decline_code = p_code, updated_at = clock()
    where r.id = p_refund_id and r.status = 'refunded' and coalesce(r.gateway, '') not in ('by hand', 'other means')
    returning r.* into v_refund;
    if not found then
        return false;
    end if;
    update payments as p
    set status = 'captured', refunded_amount = p.refunded_amount - v_refund.amount, updated_at = clock()
    where p.order_id = v_refund.order_id and p.warehouse_id = v_refund.warehouse_id and v_refund.payment_key is null;
    update payment_attempts as a
    set status = 'captured', refunded_amount = a.refunded_amount - v_refund.amount
    where a.order_id = v_refund.order_id and a.idempotency_key = v_refund.payment_key and a.warehouse_id = v_refund.warehouse_id;
    return true;
end
$$;
comment on function fail_refund(uuid, text) is 'Internal: a refund that was paid out came to nothing after all.';

select define_plan(
    'refund',
    step('refund_payment', p_function => 'request_refund', p_settle_function => 'record_refund', p_forward_only => true)
);
