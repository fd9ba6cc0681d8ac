-- Signals: what people and other systems tell a saga that waits for it, or will: an
-- approval, a parcel that was handed over, a payment that came late.
--
-- A signal is written once per event id, in the caller's transaction. A saga that waits at
-- the step goes on with it at the next pass; one that isn't there yet finds it when it
-- comes. A step takes one signal at a time, the oldest first, and may wait for more.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger saga_signals_refuse_removal
before delete on saga_signals
for each row execute function refuse_change('saga_id');

create or replace trigger saga_signals_refuse_truncate
before truncate on saga_signals
for each statement execute function refuse_change();

-- The saga that a signal is for, locked. Raises: DP010 when there is none, or its plan has
-- no such step that waits.
create or replace function lock_signalled_saga(p_saga_id uuid, p_step_name text) returns sagas
language plpgsql
set search_path = darkpearl, pg_temp
as $$
declare
    v_saga constant sagas := lock_saga(p_saga_id);
begin
    if not exists (
        select from saga_steps as t
        where t.saga_type = v_saga.saga_type and t.plan_version = v_saga.plan_version
            and t.step_name = p_step_name and t.on_deadline is not null
    ) then
        perform refuse(
            'DP010', 'no such step waits', format('The plan of saga %s has no step %s that waits for a signal.', p_saga_id, p_step_name),
            format(
                'See its plan: select step_name, on_deadline from saga_steps where saga_type = %L and plan_version = %s.',
                v_saga.saga_type, v_saga.plan_version
            )
        );
    end if;
    return v_saga;
end
$$;
comment on function lock_signalled_saga(uuid, text) is 'Internal: locks the saga that a signal is for.';

-- Tells a saga what it waits for at a step, or will. p_event_id names the event, for
-- senders that repeat what they send. Returns what becomes of it:
--   applied    the saga waits there, and goes on with it
--   kept       the saga is not there yet, or has others to hear first; it finds the signal then
--   duplicate  the event was told before
--   stale      nobody will wait for it: the saga has ended, passed the step, or turned or
--              is to turn back
-- Locks: the saga. Raises: DP010; DP015 when there is no event id, the payload is too large, or
-- a thousand signals are kept that nobody has taken.
create or replace function signal_saga(
    p_saga_id uuid, p_step_name text, p_payload jsonb default '{}', p_event_id text default new_id()::text
) returns text
language plpgsql
security definer
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_saga constant sagas := lock_signalled_saga(p_saga_id, p_step_name);
    v_position smallint;
begin
    if coalesce(length(p_event_id), 0) not between 1 and 255 or octet_length(p_payload::text) > 65536 then
        perform refuse(
            'DP015', 'signal makes no sense',
            format('Event %s for saga %s.', coalesce(nullif(left(p_event_id, 40), ''), 'without an id'), p_saga_id),
            'Give an event id of 1 to 255 characters and a payload of 64 kB at most.'
        );
    end if;
    insert into saga_signals (saga_id, warehouse_id, step_name, event_id, payload, actor)
    values (v_saga.id, v_saga.warehouse_id, p_step_name, p_event_id, coalesce(p_payload, '{}'), current_actor())
    on conflict (saga_id, event_id, warehouse_id) do nothing;
    if not found then
        return 'duplicate';
    elsif 1000 < (
        select count(*) from saga_signals as g
        where g.saga_id = v_saga.id and g.warehouse_id = v_saga.warehouse_id and g.taken_at is null
    ) then
        perform refuse(
            'DP015', 'saga has too many signals', format('Saga %s was sent 1000 signals that no step has taken.', p_saga_id),
            'A step takes as many as it waits for: see saga_signals.'
        );
    end if;
    insert into saga_events (saga_id, warehouse_id, event_type, step_name, message, actor)
    values (v_saga.id, v_saga.warehouse_id, 'signalled', p_step_name, p_event_id, current_actor());

    select t.position into strict v_position
    from saga_steps as t
    where t.saga_type = v_saga.saga_type and t.plan_version = v_saga.plan_version and t.step_name = p_step_name;
    if v_saga.status in ('completed', 'compensating', 'compensated') or v_saga.cancel_requested
        or v_saga.position > v_position or (v_saga.status = 'stuck' and has_turned_back(p_saga_id))
    then
        return 'stale';
    elsif v_saga.status = 'waiting' and v_saga.position = v_position and not exists (
        select from saga_signals as g
        where g.saga_id = v_saga.id and g.warehouse_id = v_saga.warehouse_id and g.step_name = p_step_name
            and g.taken_at is null and g.event_id <> p_event_id
    ) then
        update sagas as s
        set ready_at = clock(), updated_at = clock()
        where s.id = v_saga.id and s.warehouse_id = v_saga.warehouse_id;
        perform ring_bell();
        return 'applied';
    end if;
    return 'kept';
end
$$;
comment on function signal_saga(uuid, text, jsonb, text) is
    'Tells a saga what it waits for at a step, or will: applied, kept, duplicate or stale. Once per event id.';
