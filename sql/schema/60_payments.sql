-- Money. One payment per order, written before the gateway is called (the
-- intent, with its idempotency key) and again with the answer. Refunds of
-- fulfilled orders have rows of their own, and so has what gateways report.

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
    client_action client_action,
    constraint payments_pkey primary key (order_id, warehouse_id),
    constraint payments_amounts_add_up
    check (amounts_add_up(requested_amount, authorized_amount, captured_amount, refunded_amount, voided_amount))
) with (fillfactor = 45);
create index payments_reference_idx on payments using brin (gateway_reference text_bloom_ops (n_distinct_per_range = 400))
with (autosummarize = on, pages_per_range = 16);
comment on table payments is 'What was asked, authorised, captured, refunded and voided for each order, in major units.';
comment on column payments.idempotency_key is 'Sent with every call for this charge, so that asking again never charges again.';
comment on column payments.gateway is 'Who took it; ''manual'': it came by other means, and no gateway knows of it.';
comment on column payments.client_action is
    'While it is pending: what the payer has to do first, such as a page of the bank to go to. In the gateway''s terms.';

-- Stands apart, since hardly any order has a row.
create table payment_attempts (
    order_id uuid not null,
    warehouse_id uuid not null,
    idempotency_key text not null,
    status payment_status not null,
    captured_amount amount not null default 0,
    refunded_amount amount not null default 0,
    gateway text,
    gateway_reference text,
    decline_code text,
    ended_at timestamptz not null,
    constraint payment_attempts_pkey primary key (order_id, idempotency_key, warehouse_id),
    constraint payment_attempts_give_back_what_they_took check (refunded_amount <= captured_amount)
);
comment on table payment_attempts is
    'Charges of orders that came to nothing before another was tried: declined, or given up and voided, each under a key of its own. The last one is the order''s payment.';
comment on column payment_attempts.idempotency_key is 'Under which the gateway knows the charge. It stands for that one alone, for ever.';
comment on column payment_attempts.status is 'declined, voided or refunded; captured while money that turned up late is on its way back.';

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
    'The payer''s means of payment, in the gateway''s terms. Written by place_order(), read by nobody but the engine, removed when the saga has ended.';

create table refunds (
    id uuid not null default new_id(),
    order_id uuid not null,
    warehouse_id uuid not null,
    status refund_status not null default 'requested',
    amount amount not null,
    currency currency_code not null,
    reason note,
    despite_dispute boolean not null default false,
    gateway text,
    gateway_reference text,
    decline_code text,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    metadata metadata,
    breakdown jsonb,
    payment_key text,
    constraint refunds_pkey primary key (id, warehouse_id),
    constraint refunds_payment_exists
    foreign key (order_id, warehouse_id) references payments (order_id, warehouse_id),
    constraint refunds_give_something_back check (amount > 0)
);
create index refunds_order_idx on refunds (order_id, id);
create index refunds_failed_idx on refunds (updated_at) where status = 'failed';
comment on table refunds is
    'Money given back, wholly or in part: of fulfilled orders, and of cancelled ones what turned up late. Each has a saga with its id.';
comment on column refunds.status is 'failed: the gateway said refunded, and later that it came to nothing. Declined and failed are final.';
comment on column refunds.despite_dispute is 'Whoever asked for it knew that the payment is disputed, and said to pay all the same.';
comment on column refunds.breakdown is
    'Of which lines and adjustments it is, [{"item_id", "quantity", "amount"}, {"adjustment_id", "amount"}, …], where that was said; it adds up to amount.';
comment on column refunds.payment_key is
    'Of which of payment_attempts the money is; null, as nearly always: of the order''s payment.';
comment on column refunds.metadata is 'The shop''s own, for its programs; nothing here reads it.';
comment on column refunds.gateway is 'Who paid it; ''by hand'': a person, at the gateway; ''other means'': a person, elsewhere.';

create table disputes (
    order_id uuid not null,
    warehouse_id uuid not null,
    reference text not null,
    gateway text not null,
    status dispute_status not null,
    amount amount not null,
    currency currency_code not null,
    reason note,
    opened_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint disputes_pkey primary key (order_id, reference, warehouse_id),
    constraint disputes_are_bounded check (length(reference) between 1 and 255 and length(gateway) <= 50)
);
create index disputes_open_idx on disputes (opened_at) where status = 'open';
comment on table disputes is 'Payments that the payer''s bank wants back, as gateways tell it. Money of one that isn''t won may be gone already.';
comment on column disputes.reference is 'The gateway''s own name for the dispute.';

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
        and length(idempotency_key) <= 255 and octet_length(answer::text) <= 10000
    )
);
create index gateway_events_unmatched_idx on gateway_events (received_at) where disposition = 'unmatched';
create index gateway_events_saga_idx on gateway_events (split_part(idempotency_key, ':', 1)) where idempotency_key is not null;
comment on table gateway_events is 'What gateways sent by webhook: each event once, with what became of it.';
comment on column gateway_events.idempotency_key is 'Of the call that the event answers.';
comment on column gateway_events.disposition is
    'applied: the answer was news; stale: it changed nothing; unmatched: it belongs to nothing we know, or contradicts it, and wants a look; acknowledged: it had one.';
