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
    constraint payments_never_exceed_what_was_asked check (authorized_amount <= requested_amount),
    constraint payments_captured_within_authorized check (captured_amount <= authorized_amount),
    constraint payments_refunded_within_captured check (refunded_amount <= captured_amount),
    constraint payments_voided_is_what_was_not_captured
    check (voided_amount <= requested_amount - captured_amount)
) with (fillfactor = 70);
comment on table payments is 'What was asked, authorised, captured, refunded and voided for each order, in major units.';
comment on column payments.idempotency_key is 'Sent with every call for this charge, so that asking again never charges again.';
