-- Requests that may be repeated: one that is sent again under its idempotency key
-- gets the first answer, and nothing is done twice.
--
--   begin;
--   select begin_request('key', sha256('what is asked'));  -- the answer, if there was one
--   …                                                      -- else the effect, and then
--   select end_request('key', sha256('what is asked'), 'the answer');
--   commit;
--
-- Keys are the caller's own. A request that was rolled back was never made, so
-- that one that failed can be tried again under its key.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The owner of the keys that a session uses: the role it acts as, and its caller.
-- Locks nothing.
create or replace function current_caller() returns text
language sql stable
return concat_ws(
    '/', coalesce(nullif(current_setting('role'), 'none'), session_user), current_actor()
);
comment on function current_caller() is 'Internal: the owner of idempotency keys, as role/actor.';

-- The answer that was given under a key, for who asks in several cells where a request was made; null
-- for a key that is new here. Locks nothing. Raises: DP036 when the key stands for something else.
create or replace function find_request(p_idempotency_key text, p_request_hash bytea) returns text
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_first idempotency_keys;
begin
    select k.* into v_first
    from idempotency_keys as k
    where k.caller = current_caller() and k.idempotency_key = p_idempotency_key;
    if found and v_first.request_hash is distinct from p_request_hash then
        perform refuse(
            'DP036', 'idempotency key already used',
            format('Key %s stands for another request.', p_idempotency_key),
            'Repeat a request unchanged, or give a new one a new key.'
        );
    end if;
    return v_first.response;
end
$$;
comment on function find_request(text, bytea) is 'The answer that was given under an idempotency key; null when there was none.';

-- Opens a request: null says go on, all else is the answer that was given the
-- first time. A second request of the same key waits until the first one's
-- transaction ends, five seconds at most.
-- Locks: the key (advisory), until the transaction ends.
-- Raises: DP036 when the key stands for something else, DP037 when the first
-- request is still under way.
create or replace function begin_request(p_idempotency_key text, p_request_hash bytea) returns text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set lock_timeout = '5s'
as $$
declare
    v_caller constant text := current_caller();
begin
    begin
        perform pg_advisory_xact_lock(hashtextextended(v_caller || ' ' || p_idempotency_key, 0));
    exception when lock_not_available then
        perform refuse(
            'DP037', 'request is still under way',
            format('The first request under key %s has no answer yet.', p_idempotency_key),
            'Send the same again in a while: it will get the answer of the first.'
        );
    end;

    return find_request(p_idempotency_key, p_request_hash);
end
$$;
comment on function begin_request(text, bytea) is
    'Opens a request under an idempotency key: null the first time, else the answer that was given then.';

-- Of an order that may be placed in one of several cells: has whoever places another under the same key, id or
-- reference wait until this transaction ends, five seconds at most. All who do ask one cell, home.
-- Locks: the names (advisory), until the transaction ends. Raises: DP037.
create or replace function hold_names(p_idempotency_key text, p_order_id uuid, p_reference text) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set lock_timeout = '5s'
as $$
begin
    perform pg_advisory_xact_lock(n.hash)
    from (
        select hashtextextended(u.name, 0) as hash
        from unnest(array[
            current_caller() || ' places under ' || p_idempotency_key, 'order ' || p_order_id, 'reference ' || p_reference
        ]) as u (name)
        where u.name is not null
        order by 1
    ) as n;
exception when lock_not_available then
    perform refuse(
        'DP037', 'request is still under way',
        'Another request under this key, id or reference has no answer yet.',
        'Send the same again in a while.'
    );
end
$$;
comment on function hold_names(text, uuid, text) is
    'Has others that place an order under the same key, id or reference wait until this transaction ends.';

-- Whether a new order can't have an id or a reference in this cell: the law that says so, null when it can.
-- Locks nothing.
create or replace function law_of_names(p_order_id uuid, p_reference text) returns text
language sql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select case
        when exists (select from orders as o where o.id = p_order_id) then 'orders_pkey'
        when exists (select from order_particulars as d where d.reference = p_reference)
            then 'order_particulars_reference_is_unique'
    end;
end;
comment on function law_of_names(uuid, text) is 'The law by which a new order can''t have an id or a reference here; null when it can.';

-- Keeps the answer of a request that begin_request() opened in this
-- transaction. Locks nothing beyond the key.
create or replace function end_request(p_idempotency_key text, p_request_hash bytea, p_response text)
returns void
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    insert into idempotency_keys (caller, idempotency_key, request_hash, response)
    values (current_caller(), p_idempotency_key, p_request_hash, p_response);
end;
comment on function end_request(text, bytea, text) is
    'Keeps the answer of the request that begin_request() opened in this transaction.';

-- Housekeeping: removes keys older than so many hours, the oldest first, and
-- returns how many went. Fewer than p_limit says that there are no more.
-- Locks: the rows that go; those that another session removes are left to it.
-- Raises: DP015.
create or replace function forget_idempotency_keys(p_hours integer, p_limit integer default 10000)
returns bigint
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_before constant timestamptz := clock() - p_hours * interval '1 hour';
    v_forgotten bigint;
begin
    if coalesce(p_hours, 0) < 1 or coalesce(p_limit, 0) < 1 then
        perform refuse(
            'DP015', 'no sensible age or limit',
            format('Asked for keys older than %s hours, %s at most.', p_hours, p_limit),
            'Pass one hour or more, and a limit of one or more.'
        );
    end if;
    delete from idempotency_keys as k
    using (
        select o.caller, o.idempotency_key
        from idempotency_keys as o
        where o.created_at < v_before
        order by o.created_at
        limit p_limit
        for update skip locked
    ) as old
    where k.caller = old.caller and k.idempotency_key = old.idempotency_key;
    get diagnostics v_forgotten = row_count;
    return v_forgotten;
end
$$;
comment on function forget_idempotency_keys(integer, integer) is
    'Housekeeping: removes idempotency keys older than so many hours, and says how many.';
