-- Requests that clients may repeat: what was answered under which key. A row is
-- written in the transaction of the effect, so that there is either both or
-- neither.

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
