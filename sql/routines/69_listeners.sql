-- Listeners: who is there, at what, and seen when. Each says so every few seconds, in a session that
-- does nothing else, so one whose pass is blocked is alive, one that is frozen isn't, and one that
-- has nothing to do doesn't look like either.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- A listener says that it is there, and what it has been at for how many seconds. Its first word
-- takes away the rows of those that weren't seen for a day. Returns whether there is anything of
-- batches or of statistics to be done. Locks: its own row.
create or replace function report_listener(
    p_id uuid, p_host text, p_process_id integer, p_version text, p_gateway text, p_breaker breaker_state,
    p_activity text, p_activity_seconds double precision
) returns boolean
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
    v_since constant timestamptz := v_now - p_activity_seconds * interval '1 second';
begin
    update listeners as l
    set breaker = p_breaker, activity = left(p_activity, 100), activity_since = v_since, last_seen_at = v_now
    where l.id = p_id;
    if not found then
        delete from listeners as l where l.last_seen_at < v_now - interval '1 day';
        insert into listeners (id, host, process_id, version, gateway, breaker, activity, activity_since, started_at, last_seen_at)
        values (
            p_id, left(p_host, 255), p_process_id, left(p_version, 100), left(p_gateway, 50), p_breaker, left(p_activity, 100), v_since, v_now, v_now
        );
    end if;
    return exists (select from batches as b where b.finished_at is null)
        or coalesce(
            (select max(m.minute) from step_minutes as m)
            not between date_trunc('minute', v_now - interval '70 seconds') and v_now, true
        );
end
$$;
comment on function report_listener(uuid, text, integer, text, text, breaker_state, text, double precision) is
    'A listener says that it is there and what it is at; whether batches or statistics are to be done.';

-- A listener that stops as it should takes its row away. Locks: that row.
create or replace function forget_listener(p_id uuid) returns void
language sql
security definer
set search_path = darkpearl, pg_temp
begin atomic
    delete from listeners as l where l.id = p_id;
end;
comment on function forget_listener(uuid) is 'A listener stops, and takes its row away.';

create or replace view listener_activity with (security_invoker = true) as
select
    l.id as listener_id, l.host, l.process_id, l.version, l.gateway, l.breaker, l.activity, l.activity_since,
    l.started_at, l.last_seen_at, s.seconds as seen_seconds_ago, s.seconds <= 15 as is_alive
from listeners as l
cross join lateral (select greatest(extract(epoch from clock() - l.last_seen_at), 0)::float8) as s (seconds);
comment on view listener_activity is
    'The listeners: where each runs, of which version, with which gateway and how that answers, what it is at, and when it was seen. Not alive: dead, frozen or cut off; its row stays for a day.';

-- An operator has seen to a listener that isn't heard of any more: its row goes before the day is
-- over, and nobody is told of it again. One that was only frozen comes back with its next word.
-- Locks: its row. Raises: DP010; DP015 without a reason, or when it is alive.
create or replace function dismiss_listener(p_id uuid, p_reason text) returns listeners
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_listener listeners;
begin
    perform refuse_no_reason(p_reason);
    select l.* into v_listener from listeners as l where l.id = p_id for update;
    if not found then
        perform refuse(
            'DP010', 'no such listener', format('No listener %s was seen in the last day.', p_id),
            'select listener_id, host, process_id from listener_activity where not is_alive.'
        );
    elsif (select a.is_alive from listener_activity as a where a.listener_id = p_id) then
        perform refuse(
            'DP015', 'listener is alive',
            format('Listener %s of %s was seen within 15 seconds.', v_listener.process_id, v_listener.host),
            'Only one that is silent can be dismissed; stop the process first.'
        );
    end if;
    delete from listeners as l where l.id = p_id;
    perform note_action(
        'dismiss_listener', v_listener.host || ' ' || v_listener.process_id, p_reason, to_jsonb(v_listener)
    );
    return v_listener;
end
$$;
comment on function dismiss_listener(uuid, text) is
    'Operator: takes away the row of a listener that is silent, once somebody has seen to it.';

-- Whether any listener is alive, for those who may not know who they are. Locks nothing.
create or replace function has_listener() returns boolean
language sql stable
security definer
set search_path = darkpearl, pg_temp
begin atomic
    select exists (select from listener_activity as l where l.is_alive);
end;
comment on function has_listener() is 'Whether a listener is alive: without one, orders are placed and wait.';
