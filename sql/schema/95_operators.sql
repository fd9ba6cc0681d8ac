-- What operators look at and do at large: which listeners there are and what they are at, what
-- steps took from minute to minute, and actions on many sagas at once, each with its result.

-- A circuit breaker of a listener: half open, one call is made to see.
create type breaker_state as enum ('closed', 'half_open', 'open');

-- What is done to all that a filter finds: see the functions of these names.
create type batch_action as enum ('retry_sagas', 'skip_steps', 'cancel_orders', 'resume_sagas', 'ack_gateway_events');

create type batch_result as enum ('done', 'failed');

-- A row is rewritten every few seconds for as long as its listener lives. No index has what
-- changes, and the page keeps room, so that it never leaves it.
create table listeners (
    id uuid not null,
    host text not null,
    process_id integer not null,
    version text not null,
    gateway text not null,
    breaker breaker_state not null,
    activity text not null,
    activity_since timestamptz not null,
    started_at timestamptz not null default clock(),
    last_seen_at timestamptz not null default clock(),
    constraint listeners_pkey primary key (id),
    constraint listeners_are_bounded check (
        length(host) <= 255 and length(version) <= 100 and length(gateway) <= 50 and length(activity) <= 100
    )
) with (fillfactor = 20, autovacuum_vacuum_threshold = 500);
comment on table listeners is
    'The listeners: one row each, rewritten every few seconds, also while it waits or sleeps. One that stops as it should takes its row away.';
comment on column listeners.activity is 'advance or settle: a pass is under way; idle; backing off, and after which failure.';
comment on column listeners.activity_since is 'Since when it has been at that.';
comment on column listeners.last_seen_at is 'Older than 15 seconds: it is dead, frozen or cut off. A pass that is blocked keeps it from nothing.';

create table step_minutes (
    minute timestamptz not null,
    step_name text not null,
    event_type saga_event_type not null,
    events bigint not null,
    seconds double precision not null,
    buckets smallint[] not null,
    counts bigint[] not null,
    constraint step_minutes_pkey primary key (minute, step_name, event_type),
    constraint step_minutes_are_whole check (minute = date_trunc('minute', minute, 'UTC')),
    constraint step_minutes_buckets_have_counts check (cardinality(buckets) = cardinality(counts))
);
comment on table step_minutes is
    'What saga_events says of each minute, added up: how often what happened, and how long it took. Written by housekeeping, see step_statistics().';
comment on column step_minutes.step_name is 'The step or undo; empty for what sagas do as a whole. Each minute that was counted has saga_started, be it 0.';
comment on column step_minutes.seconds is 'All durations together, of events that have one.';
comment on column step_minutes.buckets is 'The buckets of durations that are not empty, see seconds_bucket(); counts says how many are in each.';

create table batches (
    id uuid not null default new_id(),
    action batch_action not null,
    filter jsonb not null,
    reason note not null,
    actor text not null,
    pace_per_second integer not null,
    total bigint not null,
    position bigint not null default 0,
    done bigint not null default 0,
    failed bigint not null default 0,
    created_at timestamptz not null default clock(),
    next_at timestamptz not null default clock(),
    finished_at timestamptz,
    stopped_by text,
    constraint batches_pkey primary key (id),
    constraint batches_pace_is_sane check (pace_per_second between 1 and 1000),
    constraint batches_do_no_more_than_all check (done >= 0 and failed >= 0 and done + failed <= total)
) with (fillfactor = 50);
create index batches_open_idx on batches (created_at) where finished_at is null;
comment on table batches is
    'Actions on many at once: retry_sagas(), skip_steps(), cancel_orders(), resume_sagas(), ack_gateway_events(). Listeners work them off.';
comment on column batches.position is 'Items up to this n are done with; those that met somebody else''s lock were put behind the last.';
comment on column batches.next_at is 'When the next items are due, by the pace.';
comment on column batches.stopped_by is 'Who stopped it before its end, by stop_batch().';

create table batch_items (
    batch_id uuid not null,
    n bigint not null,
    saga_id uuid,
    gateway text,
    event_id text,
    tries smallint not null default 0,
    result batch_result,
    error_code text,
    message text,
    ended_at timestamptz,
    constraint batch_items_pkey primary key (batch_id, n),
    constraint batch_items_batch_exists foreign key (batch_id) references batches (id) on delete cascade,
    constraint batch_items_are_sagas_or_events check ((saga_id is null) = (gateway is not null and event_id is not null)),
    constraint batch_items_end_with_a_result check ((result is null) = (ended_at is null))
) with (fillfactor = 70);
comment on table batch_items is 'What each batch is about, in its order, and what became of each. Without a result: not yet.';
comment on column batch_items.tries is 'How often it met somebody else''s lock.';
comment on column batch_items.error_code is 'SQLSTATE of why it failed; class DP is ours.';
