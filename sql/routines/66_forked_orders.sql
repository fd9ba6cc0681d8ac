-- Orders that are placed again: a cancelled one stays what it was, and another has its lines.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Notes of both orders that one was placed again as the other. Part of fork_order(), which runs as
-- its caller, so it believes nothing: this transaction has placed the new one.
-- Locks nothing. Raises: DP015.
create or replace function note_fork(p_order_id uuid, p_new_id uuid, p_reason text) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
begin
    perform refuse_no_reason(p_reason);
    if not exists (select from orders as o where o.id = p_order_id and o.status = 'cancelled') or not exists (
        select from orders as o where o.id = p_new_id and o.placed_in = pg_current_xact_id()
    ) then
        perform refuse(
            'DP015', 'orders are not placed again like this',
            format('Order %s was to be noted as placed again as %s.', p_order_id, p_new_id),
            'Call fork_order(), which notes it.'
        );
    end if;
    perform note_action('fork_order', p_order_id::text, p_reason, jsonb_build_object('placed_as', p_new_id));
    perform note_action('fork_order', p_new_id::text, p_reason, jsonb_build_object('placed_from', p_order_id));
end
$$;
comment on function note_fork(uuid, uuid, text) is 'Internal: notes in action_log that an order was placed again as another.';

-- Places a cancelled order again: its lines at the prices that were agreed, its customer, currency,
-- notes and adjustments, in its warehouse, for what it was for. All rules are those of a new order:
-- what isn't sold any more, or a warehouse that takes no orders, is refused. The reference, which no
-- two orders share, stays with the old one. How it is paid is asked anew, for the token is gone: by
-- another, or later, up to p_pay_by.
-- Runs as its caller, so that prices are whose they are. Locks only the rows that it inserts.
-- Raises: DP010, DP015, DP045 when the order isn't cancelled; as place_order().
create or replace function fork_order(
    p_order_id uuid, p_reason text, p_payment_token text default null, p_new_id uuid default new_id(),
    p_pay_by timestamptz default null
) returns orders
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_old orders;
    v_new orders;
begin
    select o.* into v_old from orders as o where o.id = p_order_id;
    if not found then
        perform refuse(
            'DP010', 'no such order', format('There is no order %s.', p_order_id), 'Look it up in order_overview.'
        );
    elsif v_old.status <> 'cancelled' then
        perform refuse(
            'DP045', 'order is not cancelled', format('Order %s is %s.', p_order_id, v_old.status),
            'Only a cancelled order is placed again; any other is still at it, or was sent.'
        );
    end if;
    with line as (
        select i.*, row_number() over (order by i.id) - 1 as place
        from order_items as i
        where i.order_id = v_old.id and i.warehouse_id = v_old.warehouse_id
    )
    select n.* into v_new
    from place_order(
        v_old.warehouse_id,
        (
            select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                'product_id', l.product_id, 'quantity', l.quantity, 'unit_price', l.unit_price, 'metadata', l.metadata
            )) order by l.place)
            from line as l
        ),
        v_old.customer_id, v_old.notes, v_old.currency, p_new_id, p_payment_token,
        (
            select nullif(jsonb_strip_nulls(to_jsonb(p) - '{order_id,warehouse_id,reference,updated_at,version}'::text[]), '{}')
            from order_particulars as p
            where p.order_id = v_old.id and p.warehouse_id = v_old.warehouse_id
        ),
        (
            select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
                'kind', a.kind, 'label', a.label, 'amount', a.amount, 'item', l.place
            )) order by a.id)
            from order_adjustments as a
            left join line as l on l.id = a.item_id
            where a.order_id = v_old.id and a.warehouse_id = v_old.warehouse_id
        ),
        p_pay_by
    ) as n;
    perform note_fork(p_order_id, v_new.id, p_reason);
    return v_new;
end
$$;
comment on function fork_order(uuid, text, text, uuid, timestamptz) is
    'Operator: places a cancelled order again, with its lines, prices, adjustments and customer. Returns the new order.';
