-- The bell: how a listener that has nothing to do learns that it has.
-- A notification is a hint, never the delivery: a listener that misses one finds the work
-- by the next poll.

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
