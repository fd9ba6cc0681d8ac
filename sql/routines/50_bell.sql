-- The bell: how a listener that has nothing to do learns that it has.
-- A notification is a hint, never the delivery: a listener that misses one finds the work
-- by the next poll. Work that lies in the future of a clock which was set back is brought back.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The idle lock stands between listeners that sleep and writers that ring. A listener
-- that is about to sleep holds it exclusively; a writer takes it shared, until its work
-- is visible. Advisory locks are released after the commit shows, so either the
-- sleeper's last look sees the work or the writer sees the sleeper.
create or replace function idle_lock_key() returns bigint
language sql immutable parallel safe
return 4937471022;
comment on function idle_lock_key() is 'The advisory lock that sleeping listeners hold.';

-- Wakes the listeners, if any sleeps: NOTIFY costs every writer a cluster-wide
-- lock at commit, so it is not spent on listeners that are awake anyway.
-- Locks: the idle lock, shared, until the end of the transaction; never waits.
create or replace function ring_bell() returns void
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock_shared(idle_lock_key()) then
        perform pg_notify('darkpearl_bell', '');
    end if;
end
$$;
comment on function ring_bell() is 'Tells sleeping listeners that there is work; silent when none sleeps.';

-- Trigger: new sagas ring the bell. It is called for only when a listener sleeps, since
-- every writer pays for the call. Locks: the idle lock, shared.
create or replace function ring_bell_for_new_sagas() returns trigger
language plpgsql
security definer
set search_path = darkpearl, pg_temp
as $$
begin
    if not pg_try_advisory_xact_lock_shared(idle_lock_key()) then
        perform ring_bell();
    end if;
    return null;
end
$$;
comment on function ring_bell_for_new_sagas() is 'Trigger: rings the bell once per statement that starts sagas.';

create or replace trigger sagas_ring_the_bell
after insert on sagas
for each statement execute function ring_bell_for_new_sagas();

-- Called by a listener that has found nothing to do. True: it may sleep, once
-- it has looked a last time; every writer from here on will ring. False: a
-- writer is at work that will not ring; look again soon.
--
-- Waits a moment at most for writers in flight. While it waits, others already
-- ring. When another listener holds the lock, writers ring already.
-- Locks: the idle lock, exclusively, for the session.
create or replace function take_idle_lock() returns boolean
language plpgsql
set search_path = darkpearl, pg_temp
set lock_timeout = '50ms'
as $$
begin
    perform pg_advisory_lock(idle_lock_key());
    return true;
exception when lock_not_available then
    return exists (
        select from pg_locks as l
        where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted
            and l.database = (select d.oid from pg_database as d where d.datname = current_database())
            and l.classid = (idle_lock_key() >> 32)::oid and l.objid = (idle_lock_key() & 4294967295)::oid
            and l.objsubid = 1
    );
end
$$;
comment on function take_idle_lock() is 'For listeners: announces sleep. True when every writer from now on rings the bell.';

-- For a listener that woke up. Does nothing when the lock is another's.
-- Locks: nothing; releases the idle lock.
create or replace function release_idle_lock() returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    select pg_advisory_unlock(idle_lock_key())
    from pg_locks as l
    where l.locktype = 'advisory' and l.mode = 'ExclusiveLock' and l.granted
        and l.pid = pg_backend_pid()
        and l.classid = (idle_lock_key() >> 32)::oid and l.objid = (idle_lock_key() & 4294967295)::oid
        and l.objsubid = 1;
end;
comment on function release_idle_lock() is 'For listeners: awake again; writers need not ring.';

-- Corrects what was written by a clock that has been set back since: sagas that lie in a future
-- which is far off again wait from now on for as long as they were to, those that were ready
-- not at all, and no pause is longer than any may be. A saga that was changed at a time that is
-- still to come is how such a clock shows.
-- p_seen: what the last call returned, null for the first; while the clock has only gone on since,
-- nothing is looked at. What is returned after it was set back nears the clock by a tenth with each
-- call, so that transactions that were under way are found by one of the next.
-- Locks: sagas that are to be corrected, 10000 at most, and step_settings; rows that are locked
-- are left for a later call. Raises nothing.
create or replace function correct_future_waits(p_seen timestamptz default null) returns timestamptz
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_now constant timestamptz := clock();
    v_longest_pause constant interval := '1 day';
    v_closed constant uuid[] := closed_warehouses();
begin
    if v_now >= p_seen then
        return v_now;
    end if;
    update sagas as s
    set ready_at = v_now + greatest(f.ready_at - f.updated_at, '0'), updated_at = v_now
    from (
        select w.id, w.warehouse_id, w.ready_at, w.updated_at
        from sagas as w
        where w.ready_at > v_now and w.updated_at > v_now and not array[w.warehouse_id] <@ v_closed
        order by w.ready_at, w.id
        limit 10000
        for no key update skip locked
    ) as f
    where s.id = f.id and s.warehouse_id = f.warehouse_id;
    update step_settings as t
    set paused_until = v_now + v_longest_pause
    from (
        select p.saga_type, p.step_name
        from step_settings as p
        where p.paused_until > v_now + v_longest_pause
        for no key update skip locked
    ) as f
    where t.saga_type = f.saga_type and t.step_name = f.step_name;
    return v_now + coalesce((p_seen - v_now) * 0.9, '0');
end
$$;
comment on function correct_future_waits(timestamptz) is
    'For listeners: brings sagas back that wait for a time which is far off again since the clock was set back; returns what to pass next time.';
