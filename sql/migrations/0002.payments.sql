-- Payments: authorise first and capture later, pending answers, refunds,
-- webhooks, and the decimals of currencies.
-- depends: 0001.baseline
-- squawk-ignore-file constraint-missing-not-valid, ban-drop-function
-- (the catalogue is small enough to be checked at once; the routines that follow make the function
-- anew, with one argument more)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

alter type payment_status add value 'pending' after 'requested';
alter type payment_status add value 'authorized' after 'pending';
alter type payment_status add value 'capture_requested' after 'authorized';

create type refund_status as enum ('requested', 'refunded', 'declined');
create type capture_method as enum ('at_payment', 'at_fulfilment');
create type disposition as enum ('applied', 'stale', 'unmatched');

create function minor_units(p_currency text) returns integer
language sql immutable parallel safe
begin atomic
    select case
        when p_currency in (
            'BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF',
            'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF'
        ) then 0
        when p_currency in ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND') then 3
        when p_currency in ('CLF', 'UYW') then 4
        else 2
    end;
end;
comment on function minor_units(text) is 'How many decimals an amount of a currency has: 2 for USD, 0 for JPY, 3 for KWD.';
grant execute on function minor_units(text) to public;

alter table products add constraint products_price_has_the_decimals_of_its_currency
check (scale(trim_scale(unit_price)) <= minor_units(currency));

alter table warehouses add column capture_method capture_method not null default 'at_payment';
comment on column warehouses.capture_method is
    'at_payment: an order is charged at once. at_fulfilment: it is authorised, and captured right before the goods leave; from then on it only goes forward. Counts for new orders.';

-- It takes the means of payment now.
drop function if exists place_order(uuid, jsonb, uuid, text, text, uuid);

create table payment_tokens (
    order_id uuid not null,
    warehouse_id uuid not null,
    token text not null,
    constraint payment_tokens_pkey primary key (order_id, warehouse_id),
    constraint payment_tokens_order_exists
    foreign key (order_id, warehouse_id) references orders (id, warehouse_id),
    constraint payment_tokens_are_bounded check (length(token) between 1 and 500)
);
comment on table payment_tokens is
    'The payer''s means of payment, in the gateway''s terms. Written by place_order(), read by nobody but the engine.';

create table refunds (
    id uuid not null default new_id(),
    order_id uuid not null,
    warehouse_id uuid not null,
    status refund_status not null default 'requested',
    amount amount not null,
    currency currency_code not null,
    reason text,
    gateway_reference text,
    decline_code text,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint refunds_pkey primary key (id, warehouse_id),
    constraint refunds_order_exists
    foreign key (order_id, warehouse_id) references orders (id, warehouse_id),
    constraint refunds_give_something_back check (amount > 0),
    constraint refunds_reason_is_bounded check (length(reason) <= 2000)
);
create index refunds_order_idx on refunds (order_id, id);
comment on table refunds is 'Money given back after fulfilment, wholly or in part. Each has a saga with its id; refund_order() makes them.';
comment on column refunds.status is 'refunded and declined are final.';

create table gateway_events (
    gateway text not null,
    event_id text not null,
    idempotency_key text,
    answer jsonb not null,
    disposition disposition not null,
    received_at timestamptz not null default clock(),
    constraint gateway_events_pkey primary key (gateway, event_id),
    constraint gateway_events_are_bounded
    check (
        length(gateway) <= 50 and length(event_id) between 1 and 255
        and length(idempotency_key) <= 255 and pg_column_size(answer) <= 10000
    )
);
create index gateway_events_unmatched_idx on gateway_events (received_at) where disposition = 'unmatched';
comment on table gateway_events is 'What gateways sent by webhook: each event once, with what became of it.';
comment on column gateway_events.idempotency_key is 'Of the call that the event answers.';
comment on column gateway_events.disposition is
    'applied: the answer was news; stale: it changed nothing; unmatched: it belongs to nothing we know and wants a look.';

alter table saga_steps add column forward_only boolean not null default false;
alter table saga_steps add column paused_until timestamptz;
comment on column saga_steps.forward_only is
    'No way back from here: cancelling is refused, and a step that fails for good leaves the saga stuck.';
comment on column saga_steps.paused_until is 'Until then the engine starts no call of this step; sagas wait before it. Set by pause_external_steps().';

alter type step_outcome add attribute wait_seconds numeric;
