-- What others are told of. The feed is read from saga_events; here stands what is written nowhere
-- else: shelves that have run low, and whom webhooks are sent to. Of a webhook that came
-- through nothing is kept but how far its endpoint has come; one that failed has a row until it has.

-- What the feed tells. order.shipped is of each parcel, order.returned of each return.
create type feed_topic as enum (
    'order.placed', 'order.paid', 'order.shipped', 'order.fulfilled', 'order.returned', 'order.cancelled',
    'payment.failed', 'payment.disputed', 'refund.settled', 'saga.stuck', 'stock.low'
);

-- Its ids are of the sequence of saga_events: one order for all that the feed tells.
create table stock_alerts (
    id bigint not null default nextval('saga_events_id_seq'),
    warehouse_id uuid not null,
    product_id uuid not null,
    quantity_sellable integer not null,
    reorder_point stock_level not null,
    created_at timestamptz not null default clock(),
    constraint stock_alerts_pkey primary key (id, warehouse_id),
    constraint stock_alerts_are_of_low_shelves check (quantity_sellable between 0 and reorder_point)
);
comment on table stock_alerts is
    'Shelves that ran low: one row each time that what can be sold came down to the reorder point. Append-only.';

create table webhook_endpoints (
    id uuid not null default new_id(),
    url text not null,
    topics feed_topic[],
    secret text not null,
    previous_secret text,
    previous_secret_until timestamptz,
    is_enabled boolean not null default true,
    off_because text,
    position bigint not null,
    is_from_home boolean not null default false,
    failing_since timestamptz,
    last_error text,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    version bigint not null default 1,
    constraint webhook_endpoints_pkey primary key (id),
    constraint webhook_endpoints_url_is_http
    check (
        length(url) <= 2000
        and url ~ '^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][\u0021\u0022\u0024-\u007e]*)?$'
    ),
    constraint webhook_endpoints_topics_are_some check (cardinality(topics) between 1 and 50),
    constraint webhook_endpoints_are_on_or_say_why check (not (is_enabled and off_because is not null))
);
comment on table webhook_endpoints is 'Whom webhooks are sent to. Made by create_webhook_endpoint(), which alone tells the secret.';
comment on column webhook_endpoints.topics is 'What it is told of the feed; null: everything.';
comment on column webhook_endpoints.secret is 'Signs what is sent, as Standard Webhooks has it. Read by the service that sends and by nobody else.';
comment on column webhook_endpoints.previous_secret is 'The one before, which signs too until previous_secret_until, so that receivers can change over.';
comment on column webhook_endpoints.off_because is 'Why the service switched it off.';
comment on column webhook_endpoints.position is 'All of the feed up to this id was sent, or has a row in webhook_retries.';
comment on column webhook_endpoints.is_from_home is 'In another cell: it was made at home, and is kept as it is there.';
comment on column webhook_endpoints.failing_since is 'Nothing has come through since. Null while something does.';

create table webhook_retries (
    endpoint_id uuid not null,
    event_id bigint not null,
    subject uuid not null,
    body text not null,
    attempts smallint not null,
    last_error text,
    first_failed_at timestamptz not null default clock(),
    next_attempt_at timestamptz not null default clock(),
    given_up_at timestamptz,
    constraint webhook_retries_pkey primary key (endpoint_id, event_id),
    constraint webhook_retries_endpoint_exists
    foreign key (endpoint_id) references webhook_endpoints (id) on delete cascade
);
comment on table webhook_retries is
    'Webhooks that did not come through: each is tried for a day, and what comes after it of the same subject waits for it.';
comment on column webhook_retries.subject is 'What it is about: an order, a saga, a product. In the order of its events.';
comment on column webhook_retries.given_up_at is 'It was tried for a day. replay_webhooks() sends it again.';
