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
    notes note,
    placed_in xid8 not null default pg_current_xact_id(),
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint orders_pkey primary key (id, warehouse_id),
    constraint orders_number_is_unique unique (order_number, warehouse_id)
) with (fillfactor = 50);
create index orders_customer_idx on orders (customer_id, id) where customer_id is not null;
create index orders_time_idx on orders using brin (created_at) with (autosummarize = on);
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
    constraint order_items_quantity_is_sane check (quantity between 1 and 1000000)
);
comment on table order_items is 'The lines of an order; frozen once the order is placed.';
comment on column order_items.order_id is
    'An order of the same transaction and warehouse: the trigger that adds the lines up refuses any other.';
comment on column order_items.unit_price is
    'Taken from the catalogue when left out. Only service_role may set another.';

-- Apart from orders, of which nearly all are in no group.
create table grouped_orders (
    order_id uuid not null,
    warehouse_id uuid not null,
    group_id uuid not null,
    constraint grouped_orders_pkey primary key (order_id, warehouse_id)
);
create index grouped_orders_group_idx on grouped_orders (group_id);
comment on table grouped_orders is
    'Orders that were placed together, since no single warehouse could serve all of it. The group has the id of its first order.';
