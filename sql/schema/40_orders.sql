-- What customers asked for. Inserting an order, with its lines in the same
-- transaction, is all it takes: triggers price the lines, add them up, start
-- the saga and ring the bell.

create table orders (
    id uuid not null default new_id(),
    warehouse_id uuid not null references warehouses (id),
    order_number bigint generated always as identity (maxvalue 1999999999999),
    customer_id customer_id,
    status order_status not null default 'pending',
    currency currency_code not null default 'USD',
    total_amount amount not null default 0,
    notes note,
    placed_in xid8 not null default pg_current_xact_id(),
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    pay_by timestamptz,
    constraint orders_pkey primary key (id, warehouse_id),
    constraint orders_number_is_unique unique (order_number)
) with (fillfactor = 50);
create index orders_customer_idx on orders (customer_id, id) where customer_id is not null;
create index orders_time_idx on orders using brin (created_at) with (autosummarize = on);
comment on table orders is 'One row per order. Insert it with its order_items in one transaction; its saga does the rest.';
comment on column orders.order_number is 'A short number for people. The database gives it; no two orders share one.';
comment on column orders.customer_id is 'Whose order it is: the subject of the customer''s tokens, to the letter.';
comment on column orders.status is 'Set by the saga alone, and only along the allowed transitions.';
comment on column orders.total_amount is 'Always the sum of the lines and adjustments, in major units of currency.';
comment on column orders.placed_in is 'The transaction that placed the order; only it may add lines.';
comment on column orders.pay_by is
    'Until when its stock is held while it waits for its payment, or for another after one was declined. Null: it is paid at once.';

create table order_items (
    id bigint generated always as identity,
    order_id uuid not null,
    warehouse_id uuid not null,
    product_id uuid not null references products (id),
    quantity integer not null,
    unit_price amount not null,
    line_total numeric not null generated always as (quantity * unit_price) stored,
    metadata metadata,
    constraint order_items_pkey primary key (order_id, warehouse_id, id),
    constraint order_items_quantity_is_sane check (quantity between 1 and 1000000)
);
comment on table order_items is 'The lines of an order; frozen once the order is placed.';
comment on column order_items.order_id is
    'An order of the same transaction and warehouse: the trigger that adds the lines up refuses any other.';
comment on column order_items.unit_price is
    'Taken from the catalogue when left out. Only service_role may set another.';
comment on column order_items.metadata is 'The shop''s own, such as what is engraved; customers can''t write it.';

create table order_adjustments (
    id bigint generated always as identity,
    order_id uuid not null,
    warehouse_id uuid not null,
    item_id bigint,
    kind adjustment_kind not null,
    label text not null,
    amount signed_amount not null,
    constraint order_adjustments_pkey primary key (order_id, warehouse_id, id),
    constraint order_adjustments_sign_is_that_of_the_kind
    check (case kind when 'discount' then amount <= 0 else amount >= 0 end),
    constraint order_adjustments_label_is_short_and_not_blank check (is_visible(label) and length(label) <= 255)
);
comment on table order_adjustments is
    'What an order costs beside its lines: shipping, discounts, taxes, fees. Written with the order, and frozen once it is placed.';
comment on column order_adjustments.order_id is
    'An order of the same transaction and warehouse: the trigger that adds adjustments up refuses any other.';
comment on column order_adjustments.item_id is 'The line that it is of; null: the whole order''s.';
comment on column order_adjustments.amount is 'In major units of the order''s currency; of a discount 0 or less, else 0 or more.';

-- Stands apart from orders, which the engine rewrites at each step. No foreign key holds a row to
-- its order: a trigger looks, orders never change their keys, and retention removes both.
create table order_particulars (
    order_id uuid not null,
    warehouse_id uuid not null,
    reference text,
    email email_address,
    shipping_address postal_address,
    billing_address postal_address,
    metadata metadata not null default '{}',
    updated_at timestamptz not null default clock(),
    version bigint not null default 1,
    constraint order_particulars_pkey primary key (order_id, warehouse_id),
    constraint order_particulars_reference_is_unique unique (reference),
    constraint order_particulars_reference_is_short check (length(reference) between 1 and 100),
    constraint order_particulars_reference_is_visible_throughout check (is_visible_throughout(reference)),
    constraint order_particulars_reference_is_normalized_nfc check (reference is nfc normalized)
);
create index order_particulars_email_idx on order_particulars (email) where email is not null;
comment on table order_particulars is
    'What orders are for: the shop''s reference, where to send what. Only orders that say so have a row; it changes until the order has ended.';
comment on column order_particulars.reference is 'The shop''s own name for the order; no two orders share one.';
comment on column order_particulars.metadata is 'The shop''s own, for its programs; nothing here reads it.';
comment on column order_particulars.version is 'Grows with every change: says whether the row is still what somebody has read.';

-- A return is its movements; this is what the shop says of it. A function that looks stands for
-- foreign keys.
create table return_metadata (
    order_id uuid not null,
    return_id uuid not null,
    warehouse_id uuid not null,
    metadata metadata not null,
    constraint return_metadata_pkey primary key (order_id, return_id, warehouse_id)
);
comment on table return_metadata is 'The shop''s own of returns, for its programs; nothing here reads it. Written by describe_return().';

-- Parcels: what has left of an order of a warehouse that ships them, or is to leave as soon as
-- the money for it is there. Written by ship_items() alone.
create table shipments (
    id uuid not null default new_id(),
    order_id uuid not null,
    warehouse_id uuid not null,
    carrier text,
    tracking_number text,
    tracking_url text,
    actor text,
    created_at timestamptz not null default clock(),
    shipped_at timestamptz,
    constraint shipments_pkey primary key (id, warehouse_id),
    constraint shipments_carrier_is_short_and_not_blank check (is_visible(carrier) and length(carrier) <= 100),
    constraint shipments_tracking_number_is_short_and_not_blank
    check (is_visible(tracking_number) and length(tracking_number) <= 100),
    constraint shipments_tracking_url_is_a_web_address
    check (tracking_url ~ '^https?://\S+$' and length(tracking_url) <= 2000)
);
create index shipments_order_idx on shipments (order_id, id);
comment on table shipments is 'The parcels of orders. The units of one leave the ledger under its id.';
comment on column shipments.shipped_at is
    'When its units left the shelves. Null: not yet, since the money of the order is just being captured, or never, since that was declined.';

create table shipment_items (
    shipment_id uuid not null,
    order_id uuid not null,
    warehouse_id uuid not null,
    product_id uuid not null,
    quantity integer not null,
    constraint shipment_items_pkey primary key (order_id, shipment_id, product_id, warehouse_id),
    constraint shipment_items_quantity_is_positive check (quantity > 0)
);
comment on table shipment_items is 'What is in each parcel.';

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
