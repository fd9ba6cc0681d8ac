-- The ground everything stands on: the schema, the role that owns it, the
-- enums, and the two functions that column defaults need before any routine
-- exists (the clock and the ids).
--
-- Everything DarkPearl has lives in schema darkpearl and belongs to
-- darkpearl_owner, a role that cannot log in. SECURITY DEFINER functions run
-- as that role, so not even a bug in one of them reaches beyond the schema.

do $$
begin
    create role darkpearl_owner nologin;
exception
    when duplicate_object or unique_violation then null;
end
$$;

do $$
begin
    -- Since 16, who creates a role is a member of it that may not yet act as it.
    if not pg_has_role(
        current_user, 'darkpearl_owner',
        case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end
    ) then
        execute format('grant darkpearl_owner to %I', current_user);
    end if;
end
$$;

create schema darkpearl authorization darkpearl_owner;
set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

comment on schema darkpearl is
    'Order fulfilment: catalogue, stock ledger, orders, payments, sagas. Start with select * from order_overview.';

-- Nobody may call a function of ours unless routines/90_access.sql says so.
alter default privileges for role darkpearl_owner revoke execute on functions from public;

create type order_status as enum (
    'pending', 'reserved', 'payment_processing', 'payment_failed',
    'paid', 'fulfilling', 'fulfilled', 'cancelled'
);

create type movement_type as enum (
    'receive', 'transfer_out', 'transfer_in', 'adjust', 'reserve', 'release', 'fulfill'
);

create type payment_status as enum (
    'requested', 'captured', 'declined', 'void_requested', 'voided', 'refunded'
);

create type saga_status as enum (
    'running', 'waiting', 'compensating', 'completed', 'compensated', 'stuck'
);

create type saga_event_type as enum (
    'saga_started', 'step_completed', 'step_waiting', 'step_failed',
    'compensation_started', 'step_compensated',
    'saga_completed', 'saga_compensated', 'saga_stuck',
    'retried', 'cancelled', 'skipped'
);

-- What a step function says of one saga. 'failed' is only ever written by the
-- engine, for a step that raised: steps themselves return or raise.
create type step_result as enum ('done', 'refused', 'waiting', 'failed');

-- An amount of money in major units. Four decimals hold every ISO 4217
-- currency; the upper bound also refuses 'NaN' and 'Infinity'.
create domain amount as numeric
    constraint amount_is_a_sane_sum check (value >= 0 and value < 1e12 and scale(value) <= 4);

create domain currency_code as text
    constraint currency_is_iso_4217 check (value ~ '^[A-Z]{3}$');

-- The only clock. Every timer and time stamp of ours reads it, so that a test
-- can turn it by replacing the function; in production there is nothing to turn.
create function clock() returns timestamptz
language sql volatile parallel safe
begin atomic
    select clock_timestamp();
end;
comment on function clock() is 'The time by which every DarkPearl timer and time stamp goes.';

-- UUIDv7: ids that sort by time keep index inserts at the right edge. Built in
-- since PostgreSQL 18; below, a random UUID whose first bits are the Unix time,
-- to the microsecond.
do $$
begin
    if current_setting('server_version_num')::int >= 180000 then
        create function new_id() returns uuid
        language sql volatile parallel safe
        return uuidv7();
    else
        create function new_id() returns uuid
        language sql volatile parallel safe
        begin atomic
            select encode(
                overlay(
                    overlay(
                        uuid_send(gen_random_uuid())
                        placing substring(int8send(t.us / 1000) from 3) from 1 for 6
                    )
                    -- Version 7 and, in twelve bits, the fraction of the millisecond.
                    placing substring(int8send(28672 + t.us % 1000 * 4096 / 1000) from 7) from 7 for 2
                ),
                'hex'
            )::uuid
            from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as us) as t;
        end;
    end if;
end
$$;
comment on function new_id() is 'A new UUIDv7: unique, and sorted by the time it was made.';

-- Both are called by column defaults, whoever inserts.
grant execute on function clock() to public;
grant execute on function new_id() to public;
-- What can be sold, and from where. Reference data: small, shared by every
-- warehouse, the only tables that other tables may point at across warehouses.

create table products (
    id uuid primary key default new_id(),
    sku text not null,
    name text not null,
    description text,
    unit_price amount not null default 0,
    currency currency_code not null default 'USD',
    is_active boolean not null default true,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint products_sku_is_unique unique (sku),
    constraint products_sku_is_short_and_not_blank check (sku ~ '\S' and length(sku) <= 100),
    constraint products_name_is_short_and_not_blank check (name ~ '\S' and length(name) <= 255),
    constraint products_description_is_bounded check (length(description) <= 10000)
);
comment on table products is 'The catalogue. An order line takes its price from here.';
comment on column products.unit_price is 'Price of one unit, in major units of currency.';
comment on column products.is_active is 'An inactive product stays in old orders and refuses new ones.';

create table warehouses (
    id uuid primary key default new_id(),
    code text not null,
    name text not null,
    address text,
    is_active boolean not null default true,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint warehouses_code_is_unique unique (code),
    constraint warehouses_code_is_short_and_not_blank check (code ~ '\S' and length(code) <= 50),
    constraint warehouses_name_is_short_and_not_blank check (name ~ '\S' and length(name) <= 255),
    constraint warehouses_address_is_bounded check (length(address) <= 1000)
);
comment on table warehouses is 'Where stock lies. Its id is part of every key of what belongs to it.';
comment on column warehouses.is_active is 'An inactive warehouse refuses new orders; running ones end normally.';
-- Stock: one row per product and warehouse that says how much there is, and
-- the ledger that says why. The ledger is the only writer of the quantities:
-- apply_movements() appends to it and moves the row in the same statement pair.
--
-- quantity_available is what is physically on the shelf, promised units
-- included; quantity_reserved the promised part; the difference can be sold.

create table inventory (
    id uuid not null default new_id(),
    product_id uuid not null references products (id),
    warehouse_id uuid not null references warehouses (id),
    quantity_available integer not null default 0,
    quantity_reserved integer not null default 0,
    quantity_sellable integer not null
    generated always as (quantity_available - quantity_reserved) stored,
    reorder_point integer not null default 10,
    reorder_quantity integer not null default 50,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint inventory_pkey primary key (id, warehouse_id),
    constraint inventory_product_is_stocked_once unique (product_id, warehouse_id),
    constraint inventory_reserved_within_available
    check (0 <= quantity_reserved and quantity_reserved <= quantity_available),
    constraint inventory_quantity_is_bounded check (quantity_available <= 1000000000),
    constraint inventory_reorder_point_is_sane check (reorder_point between 0 and 1000000000),
    constraint inventory_reorder_quantity_is_sane check (reorder_quantity between 0 and 1000000000)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
comment on table inventory is 'How much of a product a warehouse has. Quantities change only through the ledger.';
comment on column inventory.quantity_available is 'Units on the shelf, reserved ones included.';
comment on column inventory.quantity_reserved is 'Units on the shelf that are promised to orders.';
comment on column inventory.quantity_sellable is 'Units that a new order can have: available - reserved.';
comment on column inventory.reorder_point is 'At or below this many units on the shelf the row counts as low stock.';

create table stock_movements (
    id bigint generated always as identity,
    correlation_id uuid not null,
    warehouse_id uuid not null,
    product_id uuid not null,
    movement_type movement_type not null,
    quantity integer not null,
    available_after integer not null,
    reserved_after integer not null,
    reference_type text,
    reference_id uuid,
    notes text,
    actor text,
    created_at timestamptz not null default clock(),
    constraint stock_movements_pkey primary key (id, warehouse_id),
    constraint stock_movements_happen_once
    unique (correlation_id, movement_type, product_id, warehouse_id),
    constraint stock_movements_quantity_is_signed_by_type
    check (quantity > 0 or (movement_type = 'adjust' and quantity < 0)),
    constraint stock_movements_notes_are_bounded check (length(notes) <= 2000),
    constraint stock_movements_reference_type_is_bounded check (length(reference_type) <= 50)
);
create index stock_movements_history_idx on stock_movements (product_id, warehouse_id, id);
create index stock_movements_reference_idx on stock_movements (reference_id)
where reference_id is not null;
comment on table stock_movements is
    'The ledger: append-only, one row per change of stock, with the quantities after it.';
comment on column stock_movements.correlation_id is
    'The operation this row belongs to; a movement of a saga carries the id of its order. Repeating an operation adds nothing.';
comment on column stock_movements.quantity is 'Units moved: positive, except for adjust, which is signed.';
comment on column stock_movements.available_after is 'quantity_available of the inventory row after this movement.';
comment on column stock_movements.reserved_after is 'quantity_reserved of the inventory row after this movement.';
-- What customers asked for. Inserting an order, with its lines in the same
-- transaction, is all it takes: triggers price the lines, add them up, start
-- the saga and ring the bell.

create table orders (
    id uuid not null default new_id(),
    warehouse_id uuid not null references warehouses (id),
    order_number bigint generated always as identity,
    customer_id uuid,
    status order_status not null default 'pending',
    currency currency_code not null default 'USD',
    total_amount amount not null default 0,
    notes text,
    placed_in xid8 not null default pg_current_xact_id(),
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint orders_pkey primary key (id, warehouse_id),
    constraint orders_number_is_unique unique (order_number, warehouse_id),
    constraint orders_notes_are_bounded check (length(notes) <= 2000)
) with (fillfactor = 60);
create index orders_customer_idx on orders (customer_id, id) where customer_id is not null;
comment on table orders is 'One row per order. Insert it with its order_items in one transaction; its saga does the rest.';
comment on column orders.order_number is 'A short number for people. The database gives it; no two orders share one.';
comment on column orders.status is 'Set by the saga alone, and only along the allowed transitions.';
comment on column orders.total_amount is 'Always the sum of the lines, in major units of currency.';
comment on column orders.placed_in is 'The transaction that placed the order; only it may add lines.';

create table order_items (
    id bigint generated always as identity,
    order_id uuid not null,
    warehouse_id uuid not null,
    product_id uuid not null references products (id),
    quantity integer not null,
    unit_price amount not null,
    line_total numeric not null generated always as (quantity * unit_price) stored,
    constraint order_items_pkey primary key (order_id, warehouse_id, id),
    constraint order_items_order_exists
    foreign key (order_id, warehouse_id) references orders (id, warehouse_id),
    constraint order_items_quantity_is_sane check (quantity between 1 and 1000000)
);
comment on table order_items is 'The lines of an order; frozen once the order is placed.';
comment on column order_items.unit_price is
    'Taken from the catalogue when left out. Only service_role may set another.';
-- Money. One payment per order, written before the gateway is called (the
-- intent, with its idempotency key) and again with the answer.

create table payments (
    order_id uuid not null,
    warehouse_id uuid not null,
    status payment_status not null default 'requested',
    currency currency_code not null,
    requested_amount amount not null,
    authorized_amount amount not null default 0,
    captured_amount amount not null default 0,
    refunded_amount amount not null default 0,
    voided_amount amount not null default 0,
    gateway text,
    gateway_reference text,
    decline_code text,
    idempotency_key text not null,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint payments_pkey primary key (order_id, warehouse_id),
    constraint payments_order_exists
    foreign key (order_id, warehouse_id) references orders (id, warehouse_id),
    constraint payments_never_exceed_what_was_asked check (authorized_amount <= requested_amount),
    constraint payments_captured_within_authorized check (captured_amount <= authorized_amount),
    constraint payments_refunded_within_captured check (refunded_amount <= captured_amount),
    constraint payments_voided_is_what_was_not_captured
    check (voided_amount <= requested_amount - captured_amount)
) with (fillfactor = 70);
comment on table payments is 'What was asked, authorised, captured, refunded and voided for each order, in major units.';
comment on column payments.idempotency_key is 'Sent with every call for this charge, so that asking again never charges again.';
-- Sagas: the plan of each type as rows, where each saga stands, and its
-- history. A saga about an order carries the order's id, so that one id leads
-- from the HTTP request to the gateway and to the last event.

create table saga_steps (
    saga_type text not null,
    position smallint not null,
    step_name text not null,
    step_function text not null,
    settle_function text,
    undo_name text,
    undo_function text,
    undo_settle_function text,
    order_status_waiting order_status,
    order_status_done order_status,
    order_status_refused order_status,
    max_attempts smallint not null default 5,
    backoff_seconds numeric not null default 1,
    timeout_seconds numeric not null default 30,
    constraint saga_steps_pkey primary key (saga_type, position),
    constraint saga_steps_name_is_unique unique (saga_type, step_name),
    constraint saga_steps_start_at_one check (position >= 1),
    constraint saga_steps_undo_has_a_name check ((undo_name is null) = (undo_function is null)),
    constraint saga_steps_max_attempts_is_sane check (max_attempts between 1 and 100),
    constraint saga_steps_backoff_is_sane check (backoff_seconds between 0 and 3600),
    constraint saga_steps_timeout_is_sane check (timeout_seconds between 0.01 and 86400)
);
comment on table saga_steps is 'The plan of each saga type: its steps in order, each with its undo.';
comment on column saga_steps.step_function is 'Function of this schema: (warehouse_ids uuid[], saga_ids uuid[]) returns setof step_outcome.';
comment on column saga_steps.settle_function is
    'Set for an external step: takes the answers, (warehouse_ids, saga_ids, answers jsonb[]) returns setof step_outcome.';
comment on column saga_steps.max_attempts is 'After so many tries a step counts as failed for good. Yours to tune.';
comment on column saga_steps.backoff_seconds is 'Wait before the second try; doubles with each, at most an hour, with jitter. Yours to tune.';
comment on column saga_steps.timeout_seconds is 'How long an external answer may take before the call is made again. Yours to tune.';

create table sagas (
    id uuid not null,
    warehouse_id uuid not null,
    saga_type text not null,
    status saga_status not null default 'running',
    position smallint not null default 1,
    attempts smallint not null default 0,
    cancel_requested boolean not null default false,
    lease_token bigint not null default 0,
    ready_at timestamptz default clock(),
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint sagas_pkey primary key (id, warehouse_id),
    constraint sagas_rest_when_they_end
    check ((status in ('completed', 'compensated', 'stuck')) = (ready_at is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
create index sagas_ready_idx on sagas (ready_at, id) where ready_at is not null;
create index sagas_stuck_idx on sagas (updated_at) where status = 'stuck';
comment on table sagas is 'Where each saga stands. Narrow: what the claim reads. The story is in saga_events.';
comment on column sagas.id is 'For a saga about an order: the id of the order.';
comment on column sagas.position is 'The step it is at (saga_steps.position).';
comment on column sagas.attempts is 'Tries of the current step so far.';
comment on column sagas.lease_token is 'Fencing token: grows with every external request; an answer with an old one is refused.';
comment on column sagas.ready_at is 'When the engine looks at it next: at once, after a backoff, or when a lease runs out. Null once it has ended.';

create table saga_events (
    id bigint generated always as identity,
    saga_id uuid not null,
    warehouse_id uuid not null,
    event_type saga_event_type not null,
    step_name text,
    attempt smallint,
    error_code text,
    message text,
    next_attempt_at timestamptz,
    actor text,
    started_at timestamptz,
    created_at timestamptz not null default clock(),
    constraint saga_events_pkey primary key (saga_id, id, warehouse_id, created_at)
) partition by range (created_at);
create table saga_events_default partition of saga_events default;
comment on table saga_events is 'The history of every saga: append-only, one row per transition.';
comment on column saga_events.error_code is 'SQLSTATE of what went wrong; class DP is ours.';
comment on column saga_events.started_at is 'When the step began; created_at is when it ended.';
comment on column saga_events.next_attempt_at is 'When it is tried again, or when the lease of an external request runs out.';

-- One row of a pass: a saga that has been claimed and what became of it so far.
create type saga_work as (
    saga_id uuid,
    warehouse_id uuid,
    saga_type text,
    status saga_status,
    position smallint,
    attempts smallint,
    cancel_requested boolean,
    lease_token bigint,
    ready_at timestamptz,
    order_status order_status,
    parked boolean
);

-- What a step function returns, one row per saga it was given.
create type step_outcome as (
    saga_id uuid,
    result step_result,
    error_code text,
    message text,
    request json
);

-- An inventory row that this transaction has locked, as it was found.
create type locked_stock as (
    product_id uuid,
    warehouse_id uuid,
    quantity_available integer,
    quantity_reserved integer
);
