-- Rights: who may do what, on one page.
--
--   anon, authenticated, service_role  callers of the HTTP API, which takes
--                                      them on with SET LOCAL ROLE
--   darkpearl_api                      the API's login; can do nothing by itself
--   darkpearl_app                      an application that writes SQL
--   darkpearl_listener                 the listener: runs the engine, reads nothing
--   darkpearl_reader                   DBAs and reports: reads all, writes nothing
--   darkpearl_owner                    owns everything, cannot log in
--
-- Passwords are the administrator's to set: alter role darkpearl_app password '…'.

set local role none;

do $$
declare
    v_role text;
begin
    foreach v_role in array array[
        'anon', 'authenticated', 'service_role', 'darkpearl_app',
        'darkpearl_listener', 'darkpearl_reader', 'darkpearl_api'
    ] loop
        begin
            execute format(
                'create role %I %s', v_role,
                case
                    when v_role = 'darkpearl_api' then 'login noinherit'
                    when v_role like 'darkpearl%' then 'login'
                    else 'nologin'
                end
            );
        exception
            when duplicate_object or unique_violation then null;
        end;
    end loop;
    foreach v_role in array array['anon', 'authenticated', 'service_role', 'darkpearl_reader'] loop
        if not pg_has_role('darkpearl_api', v_role, 'member') then
            begin
                execute format('grant %I to darkpearl_api', v_role);
            exception
                when unique_violation then null;
            end;
        end if;
    end loop;
    -- So that blocking_sessions() says since when; without it, it says who.
    if not pg_has_role('darkpearl_owner', 'pg_read_all_stats', 'usage') then
        begin
            grant pg_read_all_stats to darkpearl_owner;
        exception
            when insufficient_privilege or unique_violation then null;
        end;
    end if;
    -- So that the planner sees statistics of enums under row-level security. The comparison of two
    -- enums, which says nothing of them but whether they are the same, is a superuser's to vouch for.
    if current_setting('is_superuser')::boolean then
        alter function pg_catalog.enum_eq(anyenum, anyenum) leakproof;
    end if;
    -- The login that migrates may act as the others, so that it is enough to try it
    -- all. Roles that somebody else has made are theirs to give.
    foreach v_role in array array[
        'darkpearl_app', 'darkpearl_listener', 'darkpearl_reader', 'darkpearl_api'
    ] loop
        if not pg_has_role(
            current_user, v_role,
            case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end
        ) then
            begin
                execute format('grant %I to %I', v_role, current_user);
            exception
                when insufficient_privilege or unique_violation then null;
            end;
        end if;
    end loop;
    -- So that "select * from saga_events" just works. A setting of the role in
    -- this database: other databases of the server are none of ours.
    foreach v_role in array array[
        'anon', 'authenticated', 'service_role', 'darkpearl_app',
        'darkpearl_listener', 'darkpearl_reader', 'darkpearl_api'
    ] loop
        execute format(
            'alter role %I in database %I set search_path = darkpearl', v_role, current_database()
        );
        -- A plan over all months of events takes longer to compile than to run.
        execute format('alter role %I in database %I set jit = off', v_role, current_database());
    end loop;
end
$$;

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- From nothing …
revoke all on all tables in schema darkpearl from
public, anon, authenticated, service_role, darkpearl_app, darkpearl_listener, darkpearl_reader, darkpearl_api;
revoke all on all functions in schema darkpearl from
public, anon, authenticated, service_role, darkpearl_app, darkpearl_listener, darkpearl_reader, darkpearl_api;

-- … to what each needs.
grant usage on schema darkpearl to
anon, authenticated, service_role, darkpearl_app, darkpearl_listener, darkpearl_reader, darkpearl_api;
grant execute on function
clock(), new_id(), this_cell(), minor_units(text), is_visible(text), is_visible_throughout(text), is_postal_address(jsonb), words_of(text), search_words(text, text),
refuse(text, text, text, text), refuse_unpayable(numeric, text), read_items(jsonb, text[]), read_adjustments(bigint[], jsonb), merge_patch(jsonb, jsonb, integer),
current_actor(), current_customer()
to public;

-- The catalogue.
grant select on products, warehouses to anon, authenticated, service_role, darkpearl_app, darkpearl_reader;
grant insert, update, delete on products, warehouses to service_role;
grant execute on function search_query(text), find_products(text) to
anon, authenticated, service_role, darkpearl_app, darkpearl_reader;

-- Cells: which there are, and what of theirs isn't to be done here.
grant select on cells, moved_warehouses to service_role, darkpearl_app, darkpearl_reader;
grant execute on function cell_of_id(uuid), closed_warehouses() to service_role, darkpearl_app, darkpearl_reader;
grant execute on function known_cells() to service_role, darkpearl_app, darkpearl_reader, darkpearl_api, darkpearl_listener;
grant execute on function refuse_elsewhere(uuid[]) to authenticated, service_role, darkpearl_app;
grant execute on function moved_cells() to anon, authenticated, service_role, darkpearl_app, darkpearl_reader;
grant execute on function refuse_id_elsewhere(uuid) to anon, authenticated, service_role, darkpearl_app, darkpearl_reader, darkpearl_api;

-- Stock: read; quantities move by the functions, and by movements that are inserted.
grant select on inventory to service_role, darkpearl_app, darkpearl_reader;
grant select (id, product_id, warehouse_id, quantity_sellable, created_at) on inventory to anon, authenticated;
grant insert (product_id, warehouse_id, reorder_point, reorder_quantity) on inventory to service_role;
grant update (reorder_point, reorder_quantity) on inventory to service_role;
grant delete on inventory to service_role;
grant select on stock_movements, movement_reasons, adjustment_reasons to service_role, darkpearl_app, darkpearl_reader;
grant insert, update, delete on adjustment_reasons to service_role;
grant insert (correlation_id, warehouse_id, product_id, movement_type, quantity, reference_type, reference_id, notes)
on stock_movements to service_role, darkpearl_app;
grant insert on movement_reasons to service_role, darkpearl_app;
grant execute on function
receive_stock(uuid, uuid, integer, uuid, text, text, uuid),
adjust_stock(uuid, uuid, integer, uuid, text, text, uuid, text),
count_stock(uuid, uuid, integer, text, integer),
transfer_stock(uuid, uuid, uuid, integer, uuid, text), call_back_transfer(uuid, text)
to service_role;
grant select on transfers, transfer_arrivals to service_role, darkpearl_app, darkpearl_reader;
grant execute on function decide_arrival(uuid, uuid, uuid, uuid, integer, text, text) to darkpearl_listener;
grant execute on function stock_at(uuid, uuid, timestamptz), is_remembered(timestamptz) to service_role, darkpearl_app, darkpearl_reader;

-- Orders: placed and read. Status, total and number are not among the columns.
grant select on orders, order_items to authenticated, service_role, darkpearl_app, darkpearl_reader;
grant insert (id, warehouse_id, customer_id, currency, notes) on orders to
authenticated, service_role, darkpearl_app;
grant insert (pay_by) on orders to service_role, darkpearl_app;
grant insert (order_id, warehouse_id, product_id, quantity, unit_price) on order_items to
authenticated, service_role, darkpearl_app;
grant insert (metadata) on order_items to service_role, darkpearl_app;
grant select on order_adjustments to authenticated, service_role, darkpearl_app, darkpearl_reader;
grant insert (order_id, warehouse_id, item_id, kind, label, amount) on order_adjustments to service_role, darkpearl_app;
grant update (notes) on orders to service_role, darkpearl_app;
grant execute on function
place_order(uuid, jsonb, text, text, text, uuid, text, jsonb, jsonb, timestamptz),
place_sourced_order(jsonb, text, text, text, uuid, text, jsonb, jsonb, timestamptz), source_items(jsonb), offer_of_cell(jsonb),
quote_order(uuid, jsonb, text, jsonb), summed_quote(uuid, jsonb, text, jsonb), quote_lines(uuid, jsonb, text), quote_adjustments(jsonb, integer, numeric, text),
refuse_odd_deadline(timestamptz), order_is_decided(uuid), pay_order(uuid, text), cancel_payment(uuid),
share_of_adjustments(jsonb, bigint[], bigint[], integer) to
authenticated, service_role, darkpearl_app;
grant select on grouped_orders to authenticated, service_role, darkpearl_app, darkpearl_reader;
grant insert (order_id, warehouse_id, group_id) on grouped_orders to authenticated, service_role, darkpearl_app;
grant insert (order_id, warehouse_id, token) on payment_tokens to authenticated, service_role, darkpearl_app;
grant execute on function record_manual_payment(uuid, numeric, text, text) to service_role, darkpearl_app;
grant execute on function cancel_order(uuid, text) to authenticated, service_role, darkpearl_app;

-- What an order is for. Customers say their part of it by the function, which knows what that is.
grant select on order_particulars to authenticated, service_role, darkpearl_app, darkpearl_reader;
grant insert (order_id, warehouse_id, reference, email, shipping_address, billing_address, metadata) on order_particulars to
service_role, darkpearl_app;
grant update (reference, email, shipping_address, billing_address, metadata) on order_particulars to service_role, darkpearl_app;
grant execute on function update_order(uuid, jsonb, bigint[]) to authenticated, service_role, darkpearl_app;
grant execute on function erase_customer(text, text) to service_role;

-- Imports: each does with the lines that it has staged what its grants above let it do. Their
-- parts run as their caller, on the caller's own tables.
grant execute on function
staging_table(text), read_uuid(text), read_integer(text), read_amount(text), read_moment(text), is_units(text), referred_order_id(text, text),
asked_movement(bigint, uuid, uuid, uuid, movement_type, integer, text, uuid, text),
resolve_lines(text), check_movement_lines(), find_imported_orders(text), check_order_lines(text)
to public;
grant execute on function
open_import(text), record_movements(stock_movements[], boolean), import_movements(boolean), place_imported_orders(text, boolean),
import_rows(text, jsonb, boolean), cell_of_rows(jsonb)
to service_role, darkpearl_app;
grant execute on function
import_products(boolean), count_shelves(uuid[], uuid[], integer[], boolean), import_inventory(boolean)
to service_role;

grant select on exported_products, exported_inventory, exported_movements, exported_orders to
service_role, darkpearl_app, darkpearl_reader;

-- Payments, sagas and history: read; by customers without the engine's keys, and without what
-- gateways, operators and errors say, of which told_message() and told_decline_code() tell them.
grant select on payments, payment_attempts, refunds, disputes, sagas, saga_events, saga_steps, step_settings, saga_signals to
service_role, darkpearl_app, darkpearl_reader;
grant select (
    id, order_id, warehouse_id, status, amount, currency, reason, despite_dispute, gateway, gateway_reference, created_at,
    updated_at, metadata, breakdown
) on refunds to authenticated;
grant select on disputes to authenticated;
grant select (
    order_id, warehouse_id, status, currency, requested_amount, authorized_amount, captured_amount,
    refunded_amount, voided_amount, gateway, gateway_reference, created_at, updated_at, client_action
) on payments to authenticated;
grant select (
    id, warehouse_id, saga_type, plan_version, status, position, attempts, cancel_requested, ready_at, created_at, updated_at
) on sagas to authenticated;
grant select (
    id, saga_id, warehouse_id, event_type, step_name, attempt, error_code, next_attempt_at, actor, started_at, created_at
) on saga_events to authenticated;
grant select on saga_overview to authenticated;
grant execute on function
told_message(uuid, bigint, timestamptz), told_decline_code(uuid, uuid), told_returns(uuid), returned_units(uuid, uuid) to
authenticated, service_role, darkpearl_app, darkpearl_reader;
grant select (saga_type, plan_version, position, step_name, undo_name, forward_only) on saga_steps to authenticated;
grant update (give_up_seconds, stuck_seconds, backoff_seconds, timeout_seconds) on step_settings to service_role;
grant execute on function retry_saga(uuid, text), turn_back_saga(uuid, text), skip_step(uuid, text), resume_saga(uuid, text)
to service_role;
grant execute on function fork_order(uuid, text, text, uuid, timestamptz), note_fork(uuid, uuid, text) to service_role;
grant execute on function signal_saga(uuid, text, jsonb, text) to service_role, darkpearl_app;

-- Parcels: customers see theirs, but not who packed them.
grant select on shipments, shipment_items to service_role, darkpearl_app, darkpearl_reader;
grant select (id, order_id, warehouse_id, carrier, tracking_number, tracking_url, created_at, shipped_at) on shipments to authenticated;
grant select on shipment_items to authenticated;
grant execute on function
ship_items(uuid, jsonb, jsonb, uuid), cancel_items(uuid, jsonb, text, uuid)
to service_role, darkpearl_app;
grant execute on function goods_to_ship(uuid) to service_role, darkpearl_app, darkpearl_reader;

-- Money and goods that come back, and events of gateways.
grant execute on function
refund_order(uuid, numeric, text, uuid, boolean, jsonb, jsonb), return_items(uuid, jsonb, text, uuid, boolean, text),
return_and_refund(uuid, jsonb, numeric, text, uuid, boolean, text, boolean)
to service_role, darkpearl_app;
grant select on return_metadata to service_role, darkpearl_app, darkpearl_reader;
grant execute on function describe_return(uuid, jsonb) to service_role, darkpearl_app;
grant execute on function refund_of_return(uuid) to service_role, darkpearl_app, darkpearl_reader;
grant execute on function record_manual_refund(uuid, numeric, text, uuid, jsonb) to service_role;
grant execute on function find_orders(text) to authenticated, service_role, darkpearl_app, darkpearl_reader;
grant execute on function refundable(uuid), find_payments(text) to service_role, darkpearl_app, darkpearl_reader;
grant select on gateway_events to service_role, darkpearl_reader;
grant select (disposition, received_at) on gateway_events to darkpearl_app;
grant execute on function knows_call(text), record_gateway_event(text, text, text, jsonb), ack_gateway_event(text, text, text) to service_role;
grant execute on function pause_external_steps(numeric, text) to service_role;

-- What people have done by hand; written by what they do it with.
grant select on action_log to service_role, darkpearl_reader;
grant execute on function record_upkeep(text, text, jsonb) to service_role, darkpearl_reader;

-- What operators look at, and do to many at once; listeners do it for them.
grant select on listeners, step_minutes, batches, batch_items to service_role, darkpearl_app, darkpearl_reader;
grant execute on function
retry_sagas(jsonb, text, boolean, integer), skip_steps(jsonb, text, boolean, integer), cancel_orders(jsonb, text, boolean, integer),
resume_sagas(jsonb, text, boolean, integer), ack_gateway_events(jsonb, text, boolean, integer), stop_batch(uuid, text),
dismiss_listener(uuid, text)
to service_role;
grant execute on function cause_of(text), last_failure(uuid, timestamptz), queue_by_step(bigint), causes_of_stuck(uuid[]), count_causes(uuid[]), bucket_seconds(smallint),
step_statistics(timestamptz, timestamptz), step_durations(text, timestamptz, timestamptz)
to service_role, darkpearl_app, darkpearl_reader;
grant execute on function has_listener() to anon, authenticated, service_role, darkpearl_app, darkpearl_reader;
grant execute on function saga_timeline(uuid) to authenticated, service_role, darkpearl_app, darkpearl_reader;
grant execute on function
report_listener(uuid, text, integer, text, text, breaker_state, text, double precision), forget_listener(uuid),
fill_step_minutes(integer), work_batches(integer)
to darkpearl_listener;

-- The page. What it shows is as much as its viewer may read.
grant execute on function
monitor_state(), monitor_overview(text), monitor_lately(),
monitor_orders(order_status, text, text, text, bigint), monitored_orders(order_status, text, text, integer), monitor_order(uuid),
monitor_sagas(saga_status, text, uuid), monitored_sagas(saga_status, text, uuid, integer, integer), monitor_saga(uuid),
monitor_stuck(text, text, text, text, uuid), monitor_stock(text, text, text, text, text), monitor_shelf(uuid, uuid, bigint),
monitor_listeners(), monitor_activity(text, text, bigint), monitor_batch(uuid), monitor_audits(), monitor_subject(text, uuid, uuid)
to service_role, darkpearl_reader;

-- Requests: all who write may repeat one, and staff may say which version they change.
grant execute on function
begin_request(text, bytea), end_request(text, bytea, text), find_request(text, bytea), hold_names(text, uuid, text), law_of_names(uuid, text) to
authenticated, service_role, darkpearl_app;
grant execute on function expect_version(bigint, bigint[]) to service_role;

-- The engine.
grant execute on function
advance(integer, uuid[]), advance_elsewhere(integer, uuid[]), settle(jsonb, uuid[]), take_idle_lock(), release_idle_lock(), idle_lock_key(),
correct_future_waits(timestamptz),
ensure_event_partitions(integer), place_events(bigint), forget_idempotency_keys(integer, integer), forget_payment_tokens(integer), trace_contexts(uuid[]),
retention_to_do(boolean), apply_retention(text, integer), sparse_event_indexes(), prepare_dense_index(text)
to darkpearl_listener;

-- Retention: staff say how long things are kept, housekeeping removes them. Nobody writes down
-- ids as spent but the owner's functions.
grant select on retention, retention_exports, spent_ids, spent_up_to, audit_runs to service_role, darkpearl_reader;
grant update (keep_days, export_first) on retention to service_role;
grant execute on function retention_due() to service_role, darkpearl_reader;
grant execute on function record_export(text, date, bigint, timestamptz) to service_role;

-- The feed, and who has it sent by webhook. Secrets are told by what makes them; the service that sends
-- has the listener's login.
grant select on feed, stock_alerts to service_role, darkpearl_app, darkpearl_reader;
grant execute on function
look_for_horizon(bigint, text[]), end_of_look(bigint, bigint, bigint), read_feed(bigint, bigint, feed_topic[], integer),
follow_feed(bigint, integer, feed_topic[], numeric)
to service_role, darkpearl_app, darkpearl_reader;
grant select (
    id, url, topics, is_enabled, off_because, position, is_from_home, failing_since, last_error, created_at, updated_at, version
) on webhook_endpoints to service_role, darkpearl_reader;
grant update (url, topics, is_enabled), delete on webhook_endpoints to service_role;
grant select on webhook_retries, webhook_overview, webhook_health to service_role, darkpearl_reader;
grant execute on function oldest_undelivered() to service_role, darkpearl_reader;
grant execute on function
create_webhook_endpoint(text, feed_topic[], uuid), rotate_webhook_secret(uuid), replay_webhooks(uuid, timestamptz)
to service_role;
grant execute on function
look_for_horizon(bigint, text[]), webhooks_lock_key(), webhooks_to_do(), next_webhooks(uuid, bigint, integer),
webhooks_of_home(), keep_webhook_endpoints(jsonb, bigint), due_webhooks(uuid, integer), settle_webhooks(uuid, bigint, bigint, jsonb, bigint[], boolean, boolean)
to darkpearl_listener;

grant execute on function events_out_of_place(), blocking_sessions() to service_role, darkpearl_app, darkpearl_reader;
grant execute on function idle_lock_key() to service_role, darkpearl_reader;
grant execute on function engine_state(), webhook_state(), stuck_state(), upkeep_state(), catalogue_state(interval), step_tally(timestamptz, double precision[])
to darkpearl_listener, service_role, darkpearl_reader;

-- Views show what the caller may see of the tables under them.
grant select on
low_stock, reorder_suggestions, stock_in_transit, transfer_states, order_overview, orders_to_ship, saga_overview, stuck_sagas, disputed_payments, failed_refunds,
engine_health, sagas_from_events, listener_activity, queue_health, stuck_by_cause, batch_overview, cell_overview
to service_role, darkpearl_app, darkpearl_reader;
grant select on audit, audit_rules, transfer_ends to service_role, darkpearl_reader;
grant execute on function is_spent(uuid), time_of_id(uuid), audit_since(timestamptz) to service_role, darkpearl_reader;
grant execute on function run_audit(timestamptz, text) to service_role, darkpearl_reader;

-- So do the shapes of the API's resources, which all of its callers may ask for.
grant select on
sellable_inventory, inventory_levels, stock_ledger, recorded_movements, order_returns, order_shipments, order_cancellations,
saga_states, saga_history, order_refunds, order_lines, order_payments, order_groups, order_summaries, order_terms,
order_confirmations, order_details
to anon, authenticated, service_role, darkpearl_app, darkpearl_reader;
grant execute on function
follow_saga(uuid, bigint, integer), stock_product(uuid, uuid, integer, integer, integer)
to anon, authenticated, service_role;
grant execute on function
open_gateway_books(), reconcile_payments(text, timestamptz, timestamptz)
to darkpearl_reader;

-- Row-level security: on every table, for its owner too. A row that no policy
-- allows is not there; a policy that is not on this page goes.
do $$
declare
    v_table regclass;
    v_policy record;
begin
    for v_policy in
        select p.policyname, p.tablename from pg_policies as p where p.schemaname = 'darkpearl'
    loop
        execute format('drop policy %I on %I', v_policy.policyname, v_policy.tablename);
    end loop;
    for v_table in
        select c.oid
        from pg_class as c
        where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p')
    loop
        execute format('alter table %s enable row level security, force row level security', v_table);
        execute format(
            'create policy "the owner''s functions see everything" on %s to darkpearl_owner using (true) with check (true)',
            v_table
        );
    end loop;
end
$$;

do $$
declare
    v_table text;
begin
    -- Staff, applications and reports see every row of what they may select.
    foreach v_table in array array[
        'cells', 'moved_warehouses', 'products', 'warehouses', 'inventory', 'stock_movements', 'movement_reasons', 'adjustment_reasons', 'transfers', 'transfer_arrivals', 'orders', 'grouped_orders',
        'order_items', 'order_adjustments', 'order_particulars', 'return_metadata', 'shipments', 'shipment_items',
        'payments', 'payment_attempts', 'refunds', 'disputes', 'gateway_events', 'saga_steps', 'step_settings', 'sagas', 'saga_events',
        'saga_signals', 'action_log', 'retention', 'retention_exports', 'spent_ids', 'spent_up_to', 'audit_runs',
        'stock_alerts', 'webhook_endpoints', 'webhook_retries', 'listeners', 'step_minutes', 'batches', 'batch_items'
    ] loop
        execute format(
            'create policy "staff, applications and reports read everything" on %I for select '
            'to service_role, darkpearl_app, darkpearl_reader using (true)', v_table
        );
    end loop;
    -- Staff edit what their grants let them edit.
    foreach v_table in array array[
        'products', 'warehouses', 'inventory', 'adjustment_reasons', 'step_settings', 'retention', 'webhook_endpoints'
    ] loop
        execute format(
            'create policy "staff edit" on %I to service_role using (true) with check (true)', v_table
        );
    end loop;
end
$$;

create policy "staff and applications place orders" on orders
for insert to service_role, darkpearl_app with check (true);

create policy "staff and applications move stock" on stock_movements
for insert to service_role, darkpearl_app with check (true);

create policy "staff and applications say why they adjust stock" on movement_reasons
for insert to service_role, darkpearl_app with check (true);

create policy "staff and applications annotate orders" on orders
for update to service_role, darkpearl_app using (true) with check (true);

create policy "staff and applications say what orders cost beside their lines" on order_adjustments
for insert to service_role, darkpearl_app with check (true);

create policy "staff and applications say what orders are for" on order_particulars
for insert to service_role, darkpearl_app with check (true);

create policy "staff and applications change what orders are for" on order_particulars
for update to service_role, darkpearl_app using (true) with check (true);

create policy "staff and applications add lines" on order_items
for insert to service_role, darkpearl_app with check (true);

create policy "everybody sees what is sold" on products
for select to anon, authenticated using (is_active);

create policy "everybody sees where from" on warehouses
for select to anon, authenticated using (is_active);

-- Warehouses are few, and read once for all rows. Products aren't: they are looked up, row by
-- row, by a subquery that can't be turned into a hash of the whole catalogue for one page.
create policy "everybody sees what can be sold" on inventory
for select to anon, authenticated
using (
    warehouse_id in (select w.id from warehouses as w where w.is_active)
    and (select p.is_active from products as p where p.id = product_id)
);

-- Products that aren't sold any more too. Evaluated last, and from the customer's orders.
create policy "customers see what they have ordered" on products
for select to authenticated
using (
    not is_active and id in (
        select i.product_id
        from orders as o
        inner join order_items as i on i.order_id = o.id and i.warehouse_id = o.warehouse_id
        where o.customer_id = (select current_customer())
    )
);

create policy "customers see where they have ordered" on warehouses
for select to authenticated
using (
    not is_active and id in (select o.warehouse_id from orders as o where o.customer_id = (select current_customer()))
);

create policy "customers see the plan" on saga_steps
for select to authenticated using (true);

create policy "customers see their own orders" on orders
for select to authenticated using (customer_id = (select current_customer()));

create policy "customers place orders for themselves" on orders
for insert to authenticated with check (customer_id = (select current_customer()));

-- Rows that belong to an order are seen by those who see the order.
do $$
declare
    v_table text;
    v_column text;
begin
    for v_table, v_column in
        values
            ('order_items', 'order_id'), ('order_adjustments', 'order_id'), ('order_particulars', 'order_id'),
            ('grouped_orders', 'order_id'), ('shipments', 'order_id'), ('shipment_items', 'order_id'),
            ('payments', 'order_id'), ('refunds', 'order_id'), ('disputes', 'order_id'),
            ('sagas', 'id'), ('saga_events', 'saga_id')
    loop
        execute format(
            'create policy "customers see what belongs to their orders" on %1$I for select to authenticated '
            'using (exists (select from darkpearl.orders as o where o.id = %1$I.%2$I))',
            v_table, v_column
        );
    end loop;
end
$$;

create policy "customers add lines to their orders" on order_items
for insert to authenticated
with check (exists (select from orders as o where o.id = order_id));

create policy "who places orders together says so" on grouped_orders
for insert to authenticated, service_role, darkpearl_app
with check (exists (select from orders as o where o.id = order_id));

create policy "who places an order says how it is paid" on payment_tokens
for insert to authenticated, service_role, darkpearl_app
with check (exists (select from orders as o where o.id = order_id));
