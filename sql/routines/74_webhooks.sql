-- Webhooks: the feed, sent to whoever wants it. An endpoint is a place in the feed; what came through
-- leaves nothing behind. What did not is kept with its words and tried for a day, and what comes after
-- it of the same subject waits for it. Nothing of one endpoint is in another's way.
--
-- The service that sends (darkpearl/webhooks/) reads and settles by the functions below; what follows
-- from an answer is decided here.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The lock of the service that sends: one at a time, others wait to take its place. Locks nothing.
create or replace function webhooks_lock_key() returns bigint
language sql immutable parallel safe
return idle_lock_key() + 3;
comment on function webhooks_lock_key() is 'The advisory lock of the service that sends webhooks.';

-- A secret as Standard Webhooks writes one: 32 bytes that nobody can guess. Locks nothing.
create or replace function new_webhook_secret() returns text
language sql volatile
return 'whsec_' || encode(
    sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())), 'base64'
);
comment on function new_webhook_secret() is 'Internal: a new secret that signs webhooks.';

-- Makes an endpoint. It is told what happens from now on; replay_webhooks() begins earlier. The secret
-- is told here and nowhere again. Locks: webhook_endpoints, against others that make one.
-- Raises: DP043; a law of the schema; 23505 for an id that is taken.
create or replace function create_webhook_endpoint(p_url text, p_topics feed_topic[] default null, p_id uuid default null)
returns table (id uuid, secret text)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
#variable_conflict use_column
declare
    v_most constant integer := 1000;
    v_id constant uuid := coalesce(p_id, new_id());
begin
    lock table webhook_endpoints in share row exclusive mode;
    if (select count(*) from webhook_endpoints) >= v_most then
        perform refuse(
            'DP043', 'too many webhook endpoints', format('There are %s already.', v_most), 'Delete those that nobody needs.'
        );
    end if;
    perform note_action('create_webhook_endpoint', v_id::text, null, jsonb_build_object('url', p_url, 'topics', p_topics));
    return query
    insert into webhook_endpoints (id, url, topics, secret, position)
    values (v_id, p_url, p_topics, new_webhook_secret(), coalesce(pg_sequence_last_value('saga_events_id_seq'), 0))
    returning id, secret;
end
$$;
comment on function create_webhook_endpoint(text, feed_topic[], uuid) is
    'Has webhooks sent to a URL, of some topics or of all; returns the secret that signs them, which is told only here.';

-- The endpoints of home, with their secrets, as keep_webhook_endpoints() takes them: for the service of
-- another cell, which sends what happens there. Whether one is off by itself is each cell's own. Locks nothing.
create or replace function webhooks_of_home() returns json
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select coalesce(json_agg(json_build_object(
        'id', w.id, 'url', w.url, 'topics', w.topics, 'secret', w.secret, 'previous_secret', w.previous_secret,
        'previous_secret_until', w.previous_secret_until,
        'is_enabled', w.is_enabled or w.off_because is not null, 'created_at', w.created_at,
        'updated_at', w.updated_at
    ) order by w.id), '[]')
    from webhook_endpoints as w
    where not w.is_from_home;
end;
comment on function webhooks_of_home() is 'For the service that sends webhooks of another cell: the endpoints of this one, with their secrets.';

-- Where an endpoint begins that was made at a moment and is known here only now: before all that has happened
-- since, as far as all of it is decided. What the feed doesn't tell, since it came with a warehouse, has numbers of
-- another cell. p_horizon is what look_for_horizon() gave. Locks nothing.
create or replace function feed_place_at(p_moment timestamptz, p_horizon bigint) returns bigint
language sql stable
set search_path = darkpearl, pg_temp
set enable_seqscan = off
begin atomic
    select least(
        p_horizon,
        (
            select min(e.id) - 1 from saga_events as e where e.created_at >= p_moment
            and not exists (select from moved_warehouses as m where m.warehouse_id = e.warehouse_id and (m.state = 'coming' or e.id <= m.told_after))
        ),
        (
            select min(a.id) - 1 from stock_alerts as a where a.created_at >= p_moment
            and not exists (select from moved_warehouses as m where m.warehouse_id = a.warehouse_id and (m.state = 'coming' or a.id <= m.told_after))
        )
    );
end;
comment on function feed_place_at(timestamptz, bigint) is 'Internal: the place in the feed before all that happened since a moment.';

-- Has this cell send to the endpoints of home as they are there: those that are new here begin with what
-- has happened since they were made, those that are gone are forgotten. What came through and what failed
-- is this cell's own; one that was switched off here by itself stays so until it is edited.
-- p_endpoints is what webhooks_of_home() says there. Locks: webhook_endpoints, against others that make one.
create or replace function keep_webhook_endpoints(p_endpoints jsonb, p_horizon bigint) returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    lock table webhook_endpoints in share row exclusive mode;
    delete from webhook_endpoints as w
    where w.is_from_home and w.id not in (select (e ->> 'id')::uuid from jsonb_array_elements(p_endpoints) as e);
    insert into webhook_endpoints as w
    (id, url, topics, secret, previous_secret, previous_secret_until, is_enabled, position, is_from_home, created_at, updated_at)
    select
        e.id, e.url, e.topics, e.secret, e.previous_secret, e.previous_secret_until, e.is_enabled,
        feed_place_at(e.created_at, p_horizon), true, e.created_at, e.updated_at
    from jsonb_populate_recordset(null::webhook_endpoints, p_endpoints) as e
    on conflict (id) do nothing;
    update webhook_endpoints as w
    set
        url = e.url, topics = e.topics, secret = e.secret, previous_secret = e.previous_secret,
        previous_secret_until = e.previous_secret_until,
        is_enabled = e.is_enabled and (w.off_because is null or (w.url, w.topics) is distinct from (e.url, e.topics))
    from jsonb_populate_recordset(null::webhook_endpoints, p_endpoints) as e
    where w.id = e.id and w.is_from_home and (
        (w.url, w.topics, w.secret, w.previous_secret, w.previous_secret_until)
        is distinct from (e.url, e.topics, e.secret, e.previous_secret, e.previous_secret_until)
        or (w.off_because is null and w.is_enabled <> e.is_enabled)
    );
end
$$;
comment on function keep_webhook_endpoints(jsonb, bigint) is
    'For the service that sends webhooks: has this cell send to the endpoints of home, as they are there.';

-- A webhook endpoint, locked. Locks: it. Raises: DP010 when there is none.
create or replace function lock_webhook_endpoint(p_endpoint_id uuid) returns webhook_endpoints
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_endpoint webhook_endpoints;
begin
    select w.* into v_endpoint from webhook_endpoints as w where w.id = p_endpoint_id for update;
    if not found then
        perform refuse(
            'DP010', 'no such webhook endpoint', format('There is no webhook endpoint %s.', coalesce(p_endpoint_id::text, 'null')),
            'See webhook_overview.'
        );
    end if;
    return v_endpoint;
end
$$;
comment on function lock_webhook_endpoint(uuid) is 'Internal: locks a webhook endpoint.';

-- Gives an endpoint another secret, from its next webhook on. The one before signs too for a day, so that
-- a receiver that knows either of them believes what comes; where it was stolen, change it twice.
-- Locks: the endpoint. Raises: DP010.
create or replace function rotate_webhook_secret(p_endpoint_id uuid) returns text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_secret text;
begin
    perform lock_webhook_endpoint(p_endpoint_id);
    update webhook_endpoints as w
    set
        secret = new_webhook_secret(), previous_secret = w.secret, previous_secret_until = clock() + interval '1 day',
        version = w.version + 1, updated_at = clock()
    where w.id = p_endpoint_id
    returning w.secret into v_secret;
    perform note_action('rotate_webhook_secret', p_endpoint_id::text, null);
    return v_secret;
end
$$;
comment on function rotate_webhook_secret(uuid) is
    'Gives a webhook endpoint a new secret and returns it, which is told only here. The one before signs too for a day.';

-- Of the webhooks of an endpoint that failed and are tried again, the first of each subject: those that
-- wait for no other. Locks nothing.
create or replace function first_of_subjects(p_endpoint_id uuid) returns setof bigint
language sql stable
begin atomic
    select distinct on (r.subject) r.event_id
    from webhook_retries as r
    where r.endpoint_id = p_endpoint_id and r.given_up_at is null
    order by r.subject, r.event_id;
end;
comment on function first_of_subjects(uuid) is 'Internal: the webhooks of an endpoint that failed and wait for no other of their subject.';

-- Trigger: an endpoint that somebody has edited begins anew: what failed has another day, what was given
-- up too. Who did it is written down. Locks: its rows of webhook_retries.
create or replace function begin_webhooks_anew() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    new.version := old.version + 1;
    new.updated_at := clock();
    new.failing_since := null;
    new.last_error := null;
    new.off_because := null;
    update webhook_retries as r
    set attempts = 0, first_failed_at = clock(), given_up_at = null, next_attempt_at = 'infinity'
    where r.endpoint_id = new.id;
    update webhook_retries as r
    set next_attempt_at = clock()
    where r.endpoint_id = new.id and r.event_id in (select first_of_subjects(new.id));
    perform note_action(
        'update webhook_endpoints', new.id::text, null,
        jsonb_build_object('url', new.url, 'topics', new.topics, 'is_enabled', new.is_enabled)
    );
    return new;
end
$$;
comment on function begin_webhooks_anew() is 'Trigger: an edited webhook endpoint begins anew with what failed.';

create or replace trigger webhook_endpoints_begin_anew
before update of url, topics, is_enabled on webhook_endpoints
for each row
when ((old.url, old.topics, old.is_enabled, old.off_because) is distinct from (new.url, new.topics, new.is_enabled, new.off_because)
    and new.off_because is not distinct from old.off_because)
execute function begin_webhooks_anew();

-- Has an endpoint told again what happened from a moment on. What was sent since is sent again, under
-- the same ids. Returns its new place in the feed. Locks: the endpoint. Raises: DP010, DP015.
create or replace function replay_webhooks(p_endpoint_id uuid, p_from timestamptz) returns bigint
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_position bigint;
begin
    if p_from is null then
        perform refuse('DP015', 'no moment to begin at', 'The moment was null.', 'Pass p_from: when what is told again begins.');
    end if;
    v_position := (lock_webhook_endpoint(p_endpoint_id)).position;
    v_position := feed_place_at(p_from, v_position);
    delete from webhook_retries as r where r.endpoint_id = p_endpoint_id and r.event_id > v_position;
    update webhook_endpoints as w
    set position = v_position, version = w.version + 1, updated_at = clock()
    where w.id = p_endpoint_id;
    perform note_action('replay_webhooks', p_endpoint_id::text, null, jsonb_build_object('from', p_from, 'position', v_position));
    return v_position;
end
$$;
comment on function replay_webhooks(uuid, timestamptz) is 'Has a webhook endpoint told again all that happened from a moment on.';

-- The endpoints that are switched on, with what the service needs of them, the secrets that sign, newest
-- first, and whether something that failed is to be tried now. Locks nothing.
create or replace function webhooks_to_do()
returns table (id uuid, url text, secrets text[], version bigint, place bigint, is_failing boolean, is_due boolean)
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select
        w.id, w.url,
        array_remove(array[w.secret, case when w.previous_secret_until > clock() then w.previous_secret end], null),
        w.version, w.position, w.failing_since is not null,
        exists (
            select from webhook_retries as r
            where r.endpoint_id = w.id and r.given_up_at is null and r.next_attempt_at <= clock()
        )
    from webhook_endpoints as w
    where w.is_enabled
    order by w.id;
end;
comment on function webhooks_to_do() is 'For the service that sends webhooks: the endpoints that are switched on.';

-- The next webhooks of an endpoint, up to an id that look_for_horizon() gave: each with its words, and
-- whether it has to wait for one of its subject that failed. An endpoint with a thousand failures is
-- told nothing new. Locks nothing.
create or replace function next_webhooks(
    p_endpoint_id uuid, p_upto bigint, p_limit integer, out events json, out place bigint, out next bigint
)
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_most constant integer := 1000;
    v_endpoint webhook_endpoints;
    v_part record;
begin
    select w.* into v_endpoint from webhook_endpoints as w where w.id = p_endpoint_id and w.is_enabled;
    place := v_endpoint.position;
    next := place;
    events := '[]';
    if place >= p_upto or place is null or v_most <= (
        select count(*) from webhook_retries as r where r.endpoint_id = p_endpoint_id and r.given_up_at is null
    ) then
        return;
    end if;
    select f.* into v_part from read_feed(place, p_upto, v_endpoint.topics, p_limit) as f;
    next := v_part.next;
    select
        coalesce(json_agg(json_build_object(
            'event_id', f.event -> 'id', 'subject', f.event -> 'subject',
            'waits', exists (
                select from webhook_retries as r
                where r.endpoint_id = p_endpoint_id and r.subject = (f.event ->> 'subject')::uuid and r.given_up_at is null
            ),
            'body', json_build_object('type', f.event -> 'topic', 'timestamp', f.event -> 'created_at', 'data', f.event)::text
        ) order by f.n), '[]')
    into events
    from json_array_elements(v_part.events) with ordinality as f (event, n);
end
$$;
comment on function next_webhooks(uuid, bigint, integer) is
    'For the service that sends webhooks: the next of an endpoint, its place, and the one after them.';

-- The webhooks of an endpoint that failed and are to be tried again now. Locks nothing.
create or replace function due_webhooks(p_endpoint_id uuid, p_limit integer) returns json
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select coalesce(json_agg(json_build_object(
        'event_id', d.event_id, 'subject', d.subject, 'waits', false, 'body', d.body
    ) order by d.event_id), '[]')
    from (
        select r.event_id, r.subject, r.body
        from webhook_retries as r
        where r.endpoint_id = p_endpoint_id and r.given_up_at is null and r.next_attempt_at <= clock()
        order by r.event_id
        limit p_limit
    ) as d;
end;
comment on function due_webhooks(uuid, integer) is 'For the service that sends webhooks: those of an endpoint to be tried again.';

-- Writes down what became of webhooks of an endpoint. p_results is a JSON array of those that failed
-- or wait, {"event_id", "subject", "body", "error"}, where error is null for one that waits and was not
-- tried; p_came_through are those that had failed before; p_any, whether any came through.
-- p_next: the next place of the endpoint; null for such as had failed before. p_version: of the endpoint
-- when they were read. When somebody has changed it since, or had it replayed, nothing of it counts.
-- An endpoint that says it is gone, or that nothing has come through to for a day, is switched off.
-- Returns why, if it is, and whether it still counts. Locks: the endpoint, its rows of webhook_retries.
create or replace function settle_webhooks(
    p_endpoint_id uuid, p_version bigint, p_next bigint, p_results jsonb, p_came_through bigint[], p_any boolean,
    p_is_gone boolean, out counts boolean, out off_because text
)
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
declare
    v_day constant interval := '1 day';
    v_now constant timestamptz := clock();
    v_error constant text := (select max(t ->> 'error') from jsonb_array_elements(p_results) as t);
    v_endpoint webhook_endpoints;
begin
    select w.* into v_endpoint from webhook_endpoints as w where w.id = p_endpoint_id and w.is_enabled for update;
    counts := coalesce(v_endpoint.version = p_version, false);
    if not counts then
        return;
    end if;
    delete from webhook_retries as r where r.endpoint_id = p_endpoint_id
        and (r.event_id = any(p_came_through) or r.given_up_at < v_now - 30 * v_day);
    insert into webhook_retries as r (endpoint_id, event_id, subject, body, attempts, last_error, next_attempt_at)
    select
        p_endpoint_id, t.event_id, t.subject, t.body, (t.error is not null)::integer, left(t.error, 500),
        case when t.error is null then 'infinity' else v_now + webhook_backoff(1) end
    from jsonb_to_recordset(p_results) as t (event_id bigint, subject uuid, body text, error text)
    on conflict (endpoint_id, event_id) do update
    set
        attempts = r.attempts + 1, last_error = excluded.last_error, next_attempt_at = v_now + webhook_backoff(r.attempts + 1),
        given_up_at = case when r.first_failed_at < v_now - v_day then v_now end;

    v_endpoint.failing_since := case
        when p_any then null when v_error is not null then coalesce(v_endpoint.failing_since, v_now)
        else v_endpoint.failing_since
    end;
    v_endpoint.off_because := case
        when p_is_gone then 'it answered 410 Gone'
        when v_endpoint.failing_since < v_now - v_day then format('nothing came through since %s', v_endpoint.failing_since)
    end;
    update webhook_endpoints as w
    set
        position = coalesce(p_next, w.position), failing_since = v_endpoint.failing_since,
        last_error = coalesce(left(v_error, 500), case when not p_any then w.last_error end),
        is_enabled = v_endpoint.off_because is null, off_because = v_endpoint.off_because,
        version = w.version + (v_endpoint.off_because is not null)::integer
    where w.id = p_endpoint_id;
    -- What waited for one that came through, or was given up, is next.
    update webhook_retries as r
    set next_attempt_at = v_now
    where r.endpoint_id = p_endpoint_id and r.next_attempt_at = 'infinity'
        and r.event_id in (select first_of_subjects(p_endpoint_id));
    off_because := v_endpoint.off_because;
end
$$;
comment on function settle_webhooks(uuid, bigint, bigint, jsonb, bigint[], boolean, boolean) is
    'For the service that sends webhooks: what became of some. Switches an endpoint off that is gone, or has failed for a day, and says why.';

-- The wait after a webhook that failed so many times: from seconds to hours, no two alike. Locks nothing.
create or replace function webhook_backoff(p_attempts integer) returns interval
language sql volatile
return least(5 * 3.0 ^ least(p_attempts - 1, 10), 14400) * (0.75 + random() / 2) * interval '1 second';
comment on function webhook_backoff(integer) is 'Internal: how long a webhook that failed so many times waits.';

create or replace view webhook_overview with (security_invoker = true) as
select
    w.id, w.url, w.topics, w.is_enabled, w.off_because, w.failing_since, w.last_error, r.waiting, r.given_up, w.position,
    w.created_at, w.updated_at, w.version
from webhook_endpoints as w
cross join lateral (
    select
        count(*) filter (where f.given_up_at is null) as waiting,
        count(*) filter (where f.given_up_at is not null) as given_up
    from webhook_retries as f
    where f.endpoint_id = w.id
) as r;
comment on view webhook_overview is
    'Every webhook endpoint: whether it is on and why not, since when nothing comes through, how many failed and are tried again, and were given up.';

-- When the oldest happened that an endpoint which is switched on is still to be told: of what failed
-- and is tried again, and of what comes after the place that is furthest behind, whatever its topic.
-- Null when there is nothing. Locks nothing.
create or replace function oldest_undelivered() returns timestamptz
language plpgsql stable
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
set plan_cache_mode = force_custom_plan
as $$
declare
    v_last constant bigint := coalesce(pg_sequence_last_value('saga_events_id_seq'), 0);
    v_place constant bigint := (select min(w.position) from webhook_endpoints as w where w.is_enabled);
    v_end constant bigint := case when v_place < v_last then end_of_look(v_place, v_last, 100) end;
begin
    return least(
        (
            select min(e.created_at) from saga_events as e where e.id > v_place and e.id <= v_end
            and not exists (select from moved_warehouses as m where m.warehouse_id = e.warehouse_id and (m.state = 'coming' or e.id <= m.told_after))
        ),
        (
            select min(a.created_at) from stock_alerts as a where a.id > v_place and a.id <= v_end
            and not exists (select from moved_warehouses as m where m.warehouse_id = a.warehouse_id and (m.state = 'coming' or a.id <= m.told_after))
        ),
        (
            select min((f.body::json ->> 'timestamp')::timestamptz)
            from webhook_endpoints as w
            cross join lateral (
                select r.body from webhook_retries as r
                where r.endpoint_id = w.id and r.given_up_at is null
                order by r.event_id
                limit 1
            ) as f
            where w.is_enabled
        )
    );
end
$$;
comment on function oldest_undelivered() is 'When the oldest happened of what some webhook endpoint that is switched on is still to be told; null, nothing.';

create or replace view webhook_health with (security_invoker = true) as
select
    count(*) filter (where w.is_enabled) as endpoints,
    count(*) filter (where w.is_enabled and w.failing_since is not null) as endpoints_failing,
    count(*) filter (where w.off_because is not null) as endpoints_off,
    coalesce(sum(w.waiting) filter (where w.is_enabled), 0)::bigint as webhooks_waiting,
    coalesce(sum(w.given_up), 0)::bigint as webhooks_given_up,
    coalesce(greatest(extract(epoch from clock() - oldest_undelivered()), 0), 0)::float8 as oldest_undelivered_seconds
from webhook_overview as w;
comment on view webhook_health is
    'Webhooks in one row: endpoints that are on, to which nothing comes through, and that were switched off by themselves; webhooks that failed and are tried again, or were given up; and how old the oldest is that is still to be sent.';
