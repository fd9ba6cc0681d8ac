-- Particulars: what an order is for, beside what is ordered. The shop's own reference, an email
-- address, where to send goods and bill, and metadata, an object that nothing here reads. They
-- are said when the order is placed, or later, until it has ended; then they are only erased.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- A document changed by a JSON merge patch (RFC 7396): members of objects are changed, null
-- takes one away, all else is replaced. Locks nothing. Raises: DP015 for a patch of objects in
-- objects, deeper than p_depth.
create or replace function merge_patch(p_target jsonb, p_patch jsonb, p_depth integer default 32) returns jsonb
language plpgsql immutable
set search_path = darkpearl, pg_temp
as $$
declare
    v_target constant jsonb := case jsonb_typeof(p_target) when 'object' then p_target else '{}' end;
begin
    if jsonb_typeof(p_patch) is distinct from 'object' then
        return p_patch;
    elsif p_depth < 1 then
        perform refuse(
            'DP015', 'patch is nested too deeply', 'It has objects in objects, more than 32 of them.',
            'Keep what is in metadata flat.'
        );
    end if;
    return (
        select
            v_target - coalesce(array_agg(m.key) filter (where m.value = 'null'), '{}')
            || coalesce(
                jsonb_object_agg(m.key, merge_patch(v_target -> m.key, m.value, p_depth - 1)) filter (where m.value <> 'null'),
                '{}'
            )
        from jsonb_each(p_patch) as m
    );
end
$$;
comment on function merge_patch(jsonb, jsonb, integer) is 'A JSON document changed by a merge patch (RFC 7396).';

-- Trigger: particulars are of an order, and change until it has ended; then what is personal can
-- be erased, and nothing else. Stands for a foreign key: orders keep their keys, and retention
-- removes both.
-- Locks: the order, so that it doesn't end meanwhile. Raises: DP010, DP040.
create or replace function refuse_late_particulars() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_status order_status;
begin
    select o.status into v_status
    from orders as o
    where o.id = any(array[new.order_id]) and o.warehouse_id = any(array[new.warehouse_id])
    for no key update;
    if not found then
        perform refuse(
            'DP010', 'order does not exist',
            format('There is no order %s in warehouse %s.', new.order_id, new.warehouse_id),
            'Insert the order first, then its particulars with the same warehouse_id.'
        );
    elsif v_status in ('fulfilled', 'cancelled') and (
        tg_op = 'UPDATE' and (new.reference, new.metadata) is not distinct from (old.reference, old.metadata)
        and (new.email is null or new.email is not distinct from old.email)
        and (new.shipping_address is null or new.shipping_address is not distinct from old.shipping_address)
        and (new.billing_address is null or new.billing_address is not distinct from old.billing_address)
    ) is not true then
        perform refuse(
            'DP040', 'order has ended', format('Order %s is %s.', new.order_id, v_status),
            'What it was for stays as it was; say something else of a new order.'
        );
    end if;
    return new;
end
$$;
comment on function refuse_late_particulars() is 'Trigger: particulars belong to an order, and change until it has ended.';

create or replace trigger order_particulars_end_with_their_order
before insert or update on order_particulars
for each row execute function refuse_late_particulars();

create or replace trigger order_particulars_count_versions
before update on order_particulars
for each row
when (old.* is distinct from new.*)
execute function count_version();

create or replace trigger order_particulars_keep_their_order
before update on order_particulars
for each row
when ((old.order_id, old.warehouse_id) is distinct from (new.order_id, new.warehouse_id))
execute function refuse_change();

-- Refuses changes of an order that can't be any. Locks nothing. Raises: DP015 for what is no
-- object, has a name that there isn't, or a text that is none; 42501 when a customer says what
-- is the shop's to say.
create or replace function refuse_wrong_particulars(p_changes jsonb) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_keys constant text[] := '{reference,email,shipping_address,billing_address,metadata,notes}';
    v_fault constant text := case
        when jsonb_typeof(p_changes) is distinct from 'object'
            then format('They are %s.', coalesce('a JSON ' || jsonb_typeof(p_changes), 'null'))
        when p_changes - v_keys <> '{}' then format('There is no %s.', left((p_changes - v_keys)::text, 200))
        when jsonb_typeof(p_changes -> 'reference') not in ('string', 'null') then 'The reference is no text.'
        when jsonb_typeof(p_changes -> 'email') not in ('string', 'null') then 'The email address is no text.'
        when jsonb_typeof(p_changes -> 'notes') not in ('string', 'null') then 'The notes are no text.'
    end;
begin
    if v_fault is not null then
        perform refuse(
            'DP015', 'particulars make no sense', v_fault,
            format('Pass an object of some of %s; null takes one away.', array_to_string(v_keys, ', '))
        );
    elsif p_changes ?| '{reference,metadata,notes}' and acts_as_customer() then
        perform refuse(
            '42501', 'reference, metadata and notes are the shop''s', 'A customer was to write one of them.',
            'Customers say email, shipping_address and billing_address.'
        );
    end if;
end
$$;
comment on function refuse_wrong_particulars(jsonb) is 'Internal: refuses changes of an order''s particulars that can''t be any.';

-- Changes what an order is for, by a merge patch: {"email": "…", "shipping_address": {…}}; its notes too,
-- which stand in orders. The version of the order counts both, but not notes that others update there.
-- p_expected: the versions of which it must still have one; that of an order of which nothing
-- was said yet is 1. For customers the orders of others aren't there.
-- Locks: the order.
-- Raises: as refuse_wrong_particulars() and merge_patch(); DP010 when there is no such order,
-- DP035 when it has another version, DP040 when it has ended; the laws of order_particulars.
create or replace function update_order(p_order_id uuid, p_changes jsonb, p_expected bigint[] default null)
returns order_particulars
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_order orders;
    v_now order_particulars;
    v_new jsonb;
    v_is_noted boolean;
begin
    select o.* into v_order
    from orders as o
    where o.id = p_order_id and (o.customer_id = current_customer() or not acts_as_customer())
    for no key update;
    if not found then
        perform refuse(
            'DP010', 'no such order', format('There is no order %s.', p_order_id), 'Look it up in order_overview.'
        );
    end if;
    perform refuse_wrong_particulars(p_changes);
    select p.* into v_now
    from order_particulars as p
    where p.order_id = v_order.id and p.warehouse_id = v_order.warehouse_id;
    if p_expected is not null then
        perform expect_version(coalesce(v_now.version, 0) + 1, p_expected);
    end if;

    v_is_noted := p_changes ? 'notes' and p_changes ->> 'notes' is distinct from v_order.notes;
    if v_is_noted then
        update orders as o
        set notes = p_changes ->> 'notes'
        where o.id = v_order.id and o.warehouse_id = v_order.warehouse_id;
    end if;
    v_new := merge_patch(to_jsonb(v_now), p_changes);
    insert into order_particulars as p (order_id, warehouse_id, reference, email, shipping_address, billing_address, metadata)
    values (
        v_order.id, v_order.warehouse_id, v_new ->> 'reference', v_new ->> 'email',
        nullif(v_new -> 'shipping_address', 'null'), nullif(v_new -> 'billing_address', 'null'),
        coalesce(nullif(v_new -> 'metadata', 'null'), '{}')
    )
    on conflict on constraint order_particulars_pkey do update
    set reference = excluded.reference, email = excluded.email, shipping_address = excluded.shipping_address,
        billing_address = excluded.billing_address, metadata = excluded.metadata,
        updated_at = case when v_is_noted then clock() else p.updated_at end
    returning p.* into v_now;
    return v_now;
end
$$;
comment on function update_order(uuid, jsonb, bigint[]) is
    'Changes what an order is for until it has ended: update_order(id, ''{"email": "…", "shipping_address": {…}}''), a merge patch.';

-- Takes email and addresses out of the orders of a customer that have ended; those under way
-- are still needed. What a warehouse has left here that another cell has is a copy, which needs neither.
-- Says why in action_log. Returns of how many orders.
-- Locks: the orders, in the order of their ids. Raises: DP015 without a reason, DP053 while a warehouse
-- that has some of them moves: a copy of them may be on its way.
create or replace function erase_customer(p_customer_id text, p_reason text) returns bigint
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_orders uuid[];
    v_erased bigint;
begin
    perform refuse_no_reason(p_reason);
    v_orders := array(
        select o.id
        from orders as o
        where o.customer_id = p_customer_id
            and (o.status in ('fulfilled', 'cancelled') or o.warehouse_id = any(left_warehouses()))
        order by o.id
        for no key update
    );
    update order_particulars as p
    set email = null, shipping_address = null, billing_address = null
    where p.order_id = any(v_orders) and num_nonnulls(p.email, p.shipping_address, p.billing_address) > 0;
    get diagnostics v_erased = row_count;
    perform note_action('erase_customer', p_customer_id, p_reason, jsonb_build_object('orders', v_erased));
    return v_erased;
end
$$;
comment on function erase_customer(text, text) is
    'Erases email and addresses from the orders of a customer that have ended; returns from how many.';
