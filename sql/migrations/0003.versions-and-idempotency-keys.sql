-- Rows that people edit get a version, so that a change can say what it was
-- made from; requests get a memory, so that they can be repeated; lists get the
-- indexes of their order. The triggers are named anew in the routines.
-- depends: 0001.baseline
-- squawk-ignore-file require-concurrent-index-creation
-- (a migration is one transaction, in which an index can't be built beside its writers)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

alter table products add column version bigint not null default 1;
alter table warehouses add column version bigint not null default 1;
alter table inventory add column version bigint not null default 1;
comment on column products.version is 'Grows with every change: says whether the row is still what somebody has read.';
comment on column warehouses.version is 'Grows with every change: says whether the row is still what somebody has read.';
comment on column inventory.version is 'Grows with every change, of quantities too: says whether the row is still what somebody has read.';

drop trigger if exists products_touch_updated_at on products;
drop trigger if exists warehouses_touch_updated_at on warehouses;

create index products_newest_idx on products (created_at, id);
create index inventory_newest_idx on inventory (created_at, id);
create index stock_movements_time_idx on stock_movements using brin (created_at)
with (autosummarize = on);
create index orders_time_idx on orders using brin (created_at) with (autosummarize = on);

create table idempotency_keys (
    caller text not null,
    idempotency_key text not null,
    request_hash bytea not null,
    response text not null,
    created_at timestamptz not null default clock(),
    constraint idempotency_keys_pkey primary key (caller, idempotency_key),
    constraint idempotency_keys_key_is_bounded check (length(idempotency_key) between 1 and 255),
    constraint idempotency_keys_request_hash_is_sha256 check (octet_length(request_hash) = 32)
);
create index idempotency_keys_age_idx on idempotency_keys (created_at);
comment on table idempotency_keys is
    'Requests that were answered, each written with its effect; nobody reads it but begin_request().';
comment on column idempotency_keys.caller is 'Whose key it is: the role, and the subject or the login.';
comment on column idempotency_keys.request_hash is 'SHA-256 of what was asked; the same key may not ask for something else.';
comment on column idempotency_keys.response is 'The JSON document that was answered.';
