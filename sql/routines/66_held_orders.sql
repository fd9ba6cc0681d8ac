-- Held orders: those that say until when they are to be paid (orders.pay_by). Their stock is
-- reserved, and their sagas wait for the payment between that and the step that takes it:
--
--     reserve_stock ──▶ await_payment ──▶ process_payment ──▶ …  as order_fulfilment goes on
--                            ▲──────────────────┘ declined, or given up and voided
--
-- pay_order() says what is tried; a charge that is declined leads back to the wait, with the stock
-- kept, and may be followed by another, under another key. One that is pending, since its payer has
-- something to do, may be given up: by cancel_payment(), by pay_order() with another token, or since
-- the gateway's deadline has passed. It is voided first, as is one of which nobody knows; only then
-- is another tried, or the stock released. record_manual_payment() writes down money that came by
-- other means, and no gateway is asked. At the deadline the saga turns back, but never while a charge
-- or a void is out: then its answer decides. An order that has a token from the beginning tries that
-- first.
--
-- Whoever pays holds the saga, so that neither the deadline nor a cancel nor another payment comes in
-- between. Lock order: the saga, its payment.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Step, a wait: done once there is something to try, or the money, or nothing to pay; refused once
-- the deadline has passed. A token that came while a charge was being voided is tried now.
-- Locks: payments.
create or replace function await_payment(p_warehouse_ids uuid[], p_saga_ids uuid[]) returns outcome_group[]
language plpgsql
set enable_nestloop = off
as $$
declare
    v_now constant timestamptz := clock();
    v_next constant uuid[] := array(
        select p.order_id
        from payments as p
        inner join payment_tokens as t
            on t.order_id = p.order_id and t.order_id = any(p_saga_ids) and t.warehouse_id = any(p_warehouse_ids)
        where p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids) and p.status in ('voided', 'refunded')
    );
begin
    if cardinality(v_next) > 0 then
        perform begin_payments(p_warehouse_ids, v_next, 'requested');
    end if;
    return group_outcomes(array(
        select case
            when o.total_amount = 0 or p.status in ('requested', 'authorized', 'captured') or (p.status is null and t.order_id is not null)
                then row(o.id, 'done', null, null, null, null)::step_outcome
            when o.pay_by <= v_now
                then row(
                    o.id, 'refused', 'DP034',
                    format('not paid by %s', to_char(o.pay_by at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), null, null
                )::step_outcome
            else row(o.id, 'waiting', null, null, null, extract(epoch from o.pay_by - v_now))::step_outcome
        end
        from orders as o
        left join payments as p
            on p.order_id = o.id and p.order_id = any(p_saga_ids) and p.warehouse_id = any(p_warehouse_ids)
        left join payment_tokens as t
            on t.order_id = o.id and t.order_id = any(p_saga_ids) and t.warehouse_id = any(p_warehouse_ids)
        where o.id = any(p_saga_ids) and o.warehouse_id = any(p_warehouse_ids)
    ));
end
$$;
comment on function await_payment(uuid[], uuid[]) is
    'Step: waits until each order has a payment to try, or is paid, or its deadline has passed.';

-- The same when a signal came, or pay_order() or record_manual_payment() bring news. Locks: payments.
create or replace function hear_of_payment(p_warehouse_ids uuid[], p_saga_ids uuid[], p_signals jsonb[])
returns outcome_group[]
language sql
return await_payment(p_warehouse_ids, p_saga_ids);
comment on function hear_of_payment(uuid[], uuid[], jsonb[]) is 'Step: looks whether each order has a payment to try, or is paid.';

-- The saga of a held order, locked. For customers the orders of others aren't there. Locks: the saga.
-- Raises: DP010 when there is no such order, DP033 when it isn't held, DP050 and DP053 of a warehouse that is
-- closed here, since a token that is forgotten writes nothing that would be refused.
create or replace function lock_held_order(p_order_id uuid) returns saga_group
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga sagas;
    v_group saga_group;
begin
    if not exists (
        select from orders as o
        where o.id = p_order_id and (o.customer_id = current_customer() or not acts_as_customer())
    ) then
        perform refuse('DP010', 'no such order', format('There is no order %s.', p_order_id), 'Look it up in order_overview.');
    end if;
    select s.* into v_saga
    from sagas as s
    where s.id = p_order_id
    for no key update;
    if v_saga.warehouse_id = any(closed_warehouses()) then
        perform refuse_closed(v_saga.warehouse_id);
    end if;
    v_group := group_of_saga(v_saga);
    if place_of_step(v_group.plan, 'hear_of_payment') is null then
        perform refuse(
            'DP033', 'order is not paid later', format('Order %s was placed to be paid at once.', p_order_id),
            'Say pay_by when an order is placed that is to wait for its payment.'
        );
    end if;
    return v_group;
end
$$;
comment on function lock_held_order(uuid) is 'Internal: locks the saga of an order that is held until it is paid.';

-- Refuses to pay an order that is paid, whose payment is being tried, or that has turned back, or is to.
-- Locks nothing. Raises: DP033; DP034 when it has turned back since its deadline has passed.
create or replace function refuse_unpayable_order(p_group saga_group, p_payment payments, p_is_tried boolean) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_order constant orders := (select o from orders as o where o.id = p_group.saga_ids[1]);
    v_place constant integer := place_of_step(p_group.plan, 'hear_of_payment');
begin
    if p_payment.status in ('authorized', 'capture_requested', 'captured') and p_group.status <> 'compensating' then
        perform refuse(
            'DP033', 'order is paid already',
            format('Order %s is %s, its payment %s.', v_order.id, v_order.status, p_payment.status), 'There is nothing to pay.'
        );
    elsif p_group.status in ('compensating', 'compensated') and exists (
        select from saga_events as e where e.saga_id = v_order.id and e.event_type = 'step_failed' and e.error_code = 'DP034'
    ) then
        perform refuse(
            'DP034', 'deadline has passed', format('Order %s was to be paid by %s, and is %s.', v_order.id, v_order.pay_by, v_order.status),
            'Place it again; money that came since goes back to its payer.'
        );
    elsif p_group.cancel_requested or p_group.position > v_place + 1
        or not (p_group.status in ('running', 'waiting') or (p_group.status = 'compensating' and p_group.position > v_place))
    then
        perform refuse(
            'DP033', 'order cannot be paid any more',
            format(
                'Order %s is %s, its saga is %s%s.', v_order.id, v_order.status, p_group.status,
                case when p_group.cancel_requested then ', and it is to be cancelled' else '' end
            ),
            case p_group.status
                when 'stuck' then 'An operator has to look at it first: see stuck_sagas.'
                else 'What was cancelled is ordered anew.'
            end
        );
    elsif p_is_tried then
        perform refuse(
            'DP033', 'a payment is under way', format('Another payment of order %s has not been answered yet.', v_order.id),
            'Wait for what becomes of it: when it is declined, or its payer has to act, another can be tried.'
        );
    end if;
end
$$;
comment on function refuse_unpayable_order(saga_group, payments, boolean) is
    'Internal: refuses to pay an order that is paid, is being paid, or has turned back.';

-- Notes in the history of an order who pays it, and how. Locks nothing.
create or replace function note_payer(p_group saga_group, p_message text default null) returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    values (
        p_group.saga_ids[1], p_group.warehouse_ids[1], 'signalled',
        (p_group.plan[place_of_step(p_group.plan, 'hear_of_payment')]).step_name, p_message, current_actor()
    );
end;
comment on function note_payer(saga_group, text) is 'Internal: notes in the history of an order who pays it.';

-- Takes the saga of an order whose money is there past the wait and the step that would ask for it,
-- paused or not: from then on a way back leads by the undo of that, which sees what is owed.
-- Locks: as run_groups(); the caller has locked the saga, which stands at the wait.
create or replace function pass_payment(p_group saga_group) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_done constant outcome_group := (outcome_for_all('done', p_group.saga_ids))[1];
begin
    p_group.attempts := 1;
    p_group := apply_outcome(p_group, v_done, null);
    p_group.attempts := 1;
    p_group := apply_outcome(p_group, v_done, clock());
    perform run_groups(p_group.warehouse_ids, array[p_group], 0);
    perform ring_bell();
end
$$;
comment on function pass_payment(saga_group) is 'Internal: takes the saga of an order whose money is there past the steps that wait and ask for it.';

-- Gives up the payment of a held order that waits for its payer: it is voided, and the order is
-- payment_failed until another is tried. Locks: payments, payment_tokens, then as run_groups(); the caller
-- has locked the saga.
create or replace function give_up_payment(p_group saga_group, p_message text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    perform give_up_payments(p_group.warehouse_ids, p_group.saga_ids);
    p_group := apply_outcome(p_group, (group_outcome(p_group, 'given_up', 'DP046', p_message))[1], null);
    perform run_groups(p_group.warehouse_ids, array[p_group], 0);
    perform ring_bell();
end
$$;
comment on function give_up_payment(saga_group, text) is 'Internal: gives up the payment of a held order that waits for its payer.';

-- Has a held order paid with a token, the payer's means of payment as the gateway calls it. While it
-- is being tried the same token again changes nothing; once it is declined it is another try. While
-- the payment is pending, another token gives that up: it is tried once the first is voided. An order
-- of which the stock isn't reserved yet is paid when it is.
-- For customers the orders of others aren't there. Returns the order as it stands now.
-- Locks: the saga, payments, payment_tokens.
-- Raises: DP010, DP015 for a token that is none, DP033 when it is paid, can't be paid or another
-- payment has no answer yet, or after twenty that came to nothing; DP034 after its deadline.
create or replace function pay_order(p_order_id uuid, p_payment_token text) returns orders
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_group constant saga_group := lock_held_order(p_order_id);
    v_payment constant payments := lock_payment(p_order_id);
    v_order constant orders := (select o from orders as o where o.id = p_order_id);
    v_token constant text := (
        select t.token from payment_tokens as t where t.order_id = p_order_id and t.warehouse_id = v_group.warehouse_ids[1]
    );
    v_is_voided constant boolean := v_group.status = 'compensating';
    v_is_tried constant boolean := v_token is not null and not v_is_voided
        and coalesce(v_payment.status in ('requested', 'pending'), v_payment.order_id is null);
    v_is_pending constant boolean := v_payment.status = 'pending' and (select is_pending(s) from sagas as s where s.id = p_order_id);
    v_attempts constant bigint := (select count(*) from payment_attempts as a where a.order_id = p_order_id);
begin
    if coalesce(length(p_payment_token), 0) not between 1 and 500 then
        perform refuse('DP015', 'no payment token', 'It is missing, or longer than 500 characters.', 'Pass what the gateway calls the payer''s means of payment.');
    end if;
    perform refuse_unpayable_order(v_group, v_payment, v_is_tried and v_token <> p_payment_token and v_is_pending is not true);
    if v_token = p_payment_token and (v_is_tried or (v_is_voided and v_payment.status = 'void_requested')) then
        return v_order;
    elsif v_order.pay_by <= clock() then
        perform refuse(
            'DP034', 'deadline has passed', format('Order %s was to be paid by %s.', p_order_id, v_order.pay_by), 'Place it again.'
        );
    elsif v_attempts >= 19 then
        perform refuse(
            'DP033', 'order was declined too often', format('Twenty payments of order %s came to nothing.', p_order_id),
            'Write down money that comes by other means, or place it again.'
        );
    elsif v_is_tried then
        perform give_up_payment(v_group, 'another payment is tried');
    elsif v_is_voided then
        perform give_up_payments(v_group.warehouse_ids, v_group.saga_ids);
    end if;

    delete from payment_tokens as t where t.order_id = p_order_id and t.warehouse_id = v_group.warehouse_ids[1];
    insert into payment_tokens (order_id, warehouse_id, token) values (p_order_id, v_group.warehouse_ids[1], p_payment_token);
    perform begin_payments(v_group.warehouse_ids, v_group.saga_ids, 'requested');
    perform note_payer(v_group);
    if v_group.position = place_of_step(v_group.plan, 'hear_of_payment') then
        perform tell_order(v_group);
    end if;
    return (select o from orders as o where o.id = p_order_id);
end
$$;
comment on function pay_order(uuid, text) is
    'Has an order paid that is held until its pay_by, with a payment token; after one was declined, or instead of one that is pending, with another. Safe to repeat.';

-- Gives up the payment of a held order that is pending, as of a payer who has left the page of the bank:
-- it is voided at the gateway, and whatever comes of it late goes back. The order keeps its stock until
-- its deadline, and another may be tried. A token that is not tried yet is forgotten. Nothing under way
-- is nothing to do. For customers the orders of others aren't there. Returns the order as it stands now.
-- Locks: the saga, payments, payment_tokens.
-- Raises: DP010, DP033 when the order is paid, can't be paid or the gateway has not answered yet, DP034
-- when it turned back at its deadline.
create or replace function cancel_payment(p_order_id uuid) returns orders
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_group constant saga_group := lock_held_order(p_order_id);
    v_payment constant payments := lock_payment(p_order_id);
    v_place constant integer := place_of_step(v_group.plan, 'hear_of_payment');
    v_is_pending constant boolean := v_payment.status = 'pending' and (select is_pending(s) from sagas as s where s.id = p_order_id);
    v_is_voided constant boolean := v_group.status = 'compensating';
begin
    perform refuse_unpayable_order(v_group, v_payment, v_group.position > v_place and v_is_pending is not true and not v_is_voided);
    if v_is_voided or v_group.position < v_place then
        delete from payment_tokens as t where t.order_id = p_order_id and t.warehouse_id = v_group.warehouse_ids[1];
    elsif v_is_pending then
        perform note_payer(v_group);
        perform give_up_payment(v_group, 'given up by its payer');
    end if;
    return (select o from orders as o where o.id = p_order_id);
end
$$;
comment on function cancel_payment(uuid) is
    'Gives up the payment of a held order that is pending: it is voided, and another may be tried until the order''s pay_by. Safe to repeat.';

-- Somebody has received the money of a held order by other means than the gateway: a bank transfer,
-- cash. Writes it down as a payment of gateway 'manual', which no gateway is asked about; the order
-- goes on. It is exactly what is due. p_reference says where it is found, such as the transfer's. The
-- same again returns the payment. Money that came before the order has turned back is welcome, though
-- its deadline has passed. What is given back of it later, a person does: see stuck_sagas.
-- Locks: the saga, payments.
-- Raises: DP010, DP015 without a reference, DP033 when it is paid, is being paid, can't be paid or has
-- no stock yet, DP034 when it turned back at its deadline, DP041 for another amount than is due.
create or replace function record_manual_payment(p_order_id uuid, p_amount numeric, p_reference text, p_reason text default null)
returns payments
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_group constant saga_group := lock_held_order(p_order_id);
    v_payment payments := lock_payment(p_order_id);
    v_order constant orders := (select o from orders as o where o.id = p_order_id);
    v_is_tried constant boolean := coalesce(
        v_group.status = 'compensating' or v_payment.status in ('requested', 'pending'), exists (select from payment_tokens as t where t.order_id = p_order_id)
    );
begin
    if (is_visible_throughout(p_reference) and length(p_reference) between 1 and 255) is not true then
        perform refuse(
            'DP015', 'no reference', 'It is missing, longer than 255 characters, or has some that can''t be seen.',
            'Pass p_reference: by what the money is found, such as the number of the transfer.'
        );
    elsif v_payment.gateway = 'manual' and (v_payment.gateway_reference, v_payment.captured_amount) = (p_reference, p_amount) then
        return v_payment;
    end if;
    perform refuse_unpayable_order(v_group, v_payment, v_is_tried);
    if p_amount is distinct from v_order.total_amount then
        perform refuse(
            'DP041', 'amount is not what is due',
            format('Order %s costs %s %s; %s was said.', p_order_id, v_order.total_amount, v_order.currency, coalesce(p_amount::text, 'nothing')),
            'Write it down once all of it is there; give back what is too much.'
        );
    elsif v_group.position <> place_of_step(v_group.plan, 'hear_of_payment') then
        perform refuse(
            'DP033', 'order has no stock yet', format('Order %s is %s.', p_order_id, v_order.status),
            'Try again in a moment: its stock is being reserved, or there is none.'
        );
    end if;

    insert into payments as p (
        order_id, warehouse_id, status, currency, requested_amount, authorized_amount, captured_amount, gateway, gateway_reference,
        idempotency_key
    )
    values (
        p_order_id, v_order.warehouse_id, 'captured', v_order.currency, p_amount, p_amount, p_amount, 'manual', p_reference,
        concat(p_order_id, ':manual_payment', cell_suffix())
    )
    on conflict on constraint payments_pkey do update
    set status = excluded.status, authorized_amount = excluded.authorized_amount, captured_amount = excluded.captured_amount,
        refunded_amount = 0, voided_amount = 0, gateway = excluded.gateway, gateway_reference = excluded.gateway_reference,
        decline_code = null, idempotency_key = excluded.idempotency_key, updated_at = excluded.updated_at
    returning p.* into v_payment;
    perform note_action('record_manual_payment', p_order_id::text, p_reason, to_jsonb(v_payment));
    perform note_payer(v_group, p_reference);
    perform pass_payment(v_group);
    return v_payment;
end
$$;
comment on function record_manual_payment(uuid, numeric, text, text) is
    'Writes down that the money of a held order came by other means than the gateway. Safe to repeat with the same reference.';

-- The plans: those of orders that are paid at once, with the wait before the step that takes the
-- money, which goes back to it when it is declined. How long is waited says each order.
do $$
declare
    v_type text;
    v_plan plan_step[];
    v_place integer;
begin
    foreach v_type in array array[
        'order_fulfilment', 'order_fulfilment_with_capture',
        'order_fulfilment_on_shipment', 'order_fulfilment_on_shipment_with_capture'
    ] loop
        v_plan := plan_of(v_type, newest_plan(v_type));
        v_place := coalesce(place_of_step(v_plan, 'record_payment'), place_of_step(v_plan, 'record_authorization'));
        v_plan[v_place].wait_again := true;
        perform define_plan(
            'held_' || v_type,
            variadic v_plan[:v_place - 1] || step(
                'await_payment',
                p_function => 'await_payment', p_settle_function => 'hear_of_payment',
                p_order_status_done => 'payment_processing', p_on_deadline => 'look_again', p_timeout_seconds => 86400
            ) || v_plan[v_place:]
        );
    end loop;
end
$$;
