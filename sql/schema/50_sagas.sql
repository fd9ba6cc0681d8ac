-- Sagas: the plan of each type as rows, where each saga stands, and its
-- history. A saga about an order carries the order's id, so that one id leads
-- from the HTTP request to the gateway and to the last event.

-- What becomes of a saga that waits for a signal when nobody has spoken by its deadline.
-- With look_again its step function is asked anew.
create type deadline_action as enum ('go_on', 'turn_back', 'stuck', 'keep_waiting', 'look_again');

create table saga_steps (
    saga_type text not null,
    plan_version smallint not null,
    position smallint not null,
    step_name text not null,
    step_function text,
    settle_function text,
    effect_function text,
    effect text,
    undo_name text,
    undo_function text,
    undo_settle_function text,
    undo_effect_function text,
    undo_effect text,
    order_status_waiting order_status,
    order_status_done order_status,
    order_status_refused order_status,
    forward_only boolean not null,
    on_deadline deadline_action,
    wait_again boolean not null,
    constraint saga_steps_pkey primary key (saga_type, plan_version, position),
    constraint saga_steps_name_is_unique unique (saga_type, plan_version, step_name),
    constraint saga_steps_start_at_one check (position >= 1 and plan_version >= 1),
    constraint saga_steps_do_something check (num_nonnulls(step_function, effect_function, on_deadline) > 0),
    constraint saga_steps_external_have_a_request
    check (settle_function is null or step_function is not null or on_deadline is not null),
    constraint saga_steps_wait_or_call check (on_deadline is null or undo_settle_function is null),
    constraint saga_steps_look_with_a_function check (on_deadline <> 'look_again' or step_function is not null),
    constraint saga_steps_wait_again_on_the_way_back check (not wait_again or (position > 1 and not forward_only)),
    constraint saga_steps_undo_has_a_name
    check ((undo_name is null) = (coalesce(undo_function, undo_effect_function) is null)),
    constraint saga_steps_undo_settle_has_a_request
    check (undo_settle_function is null or undo_function is not null),
    constraint saga_steps_settle_instead_of_effect
    check (settle_function is null or effect_function is null),
    constraint saga_steps_undo_settle_instead_of_effect
    check (undo_settle_function is null or undo_effect_function is null),
    constraint saga_steps_say_their_effect
    check (
        (effect_function is null) = (effect is null) and (undo_effect_function is null) = (undo_effect is null)
    )
);
comment on table saga_steps is
    'The plans: the steps of each version of each saga type, in order, each with its undo. Written by define_plan(), never changed.';
comment on column saga_steps.plan_version is 'A plan that is declared otherwise is the next version; a saga ends by the version it began with.';
comment on column saga_steps.step_function is
    'Function of this schema: (warehouse_ids uuid[], saga_ids uuid[]) returns outcome_group[]. Null: nothing to decide, the step is done.';
comment on column saga_steps.settle_function is
    'Takes the answers to an external step, or the signals that a step waited for: (warehouse_ids, saga_ids, answers jsonb[]) returns the same.';
comment on column saga_steps.effect_function is
    'What is left to do when the step is done: (warehouse_ids uuid[], saga_ids uuid[], effects text[]) returns void. Runs once, at the end of a pass, so that what it locks is locked for the shortest time.';
comment on column saga_steps.effect is 'What the effect function is to do for this step, in its own words: reserve, fulfill, release.';
comment on column saga_steps.forward_only is
    'No way back from here: cancelling is refused, and a step that fails for good leaves the saga stuck.';
comment on column saga_steps.on_deadline is
    'Set for a step that waits for signal_saga(): what becomes of the saga when nobody has spoken within timeout_seconds.';
comment on column saga_steps.wait_again is
    'When this step is refused, or is undone and nobody has asked for more, the saga goes back to the one before it, which waits, instead of turning back.';

create table step_settings (
    saga_type text not null,
    step_name text not null,
    give_up_seconds numeric not null,
    stuck_seconds numeric not null,
    backoff_seconds numeric not null,
    timeout_seconds numeric not null,
    paused_until timestamptz,
    constraint step_settings_pkey primary key (saga_type, step_name),
    constraint step_settings_give_up_is_sane check (give_up_seconds between 0 and 2592000),
    constraint step_settings_stuck_is_sane check (stuck_seconds between 0 and 2592000),
    constraint step_settings_backoff_is_sane check (backoff_seconds between 0 and 3600),
    constraint step_settings_timeout_is_sane check (timeout_seconds between 0.01 and 31622400)
);
comment on table step_settings is
    'The numbers of each step, by name: yours to tune, and the same for every version of the plan that has the step.';
comment on column step_settings.give_up_seconds is
    'A step that keeps failing is tried for so long, then it has failed for good and the saga turns back. 0: one try.';
comment on column step_settings.stuck_seconds is
    'The same where nothing turns back: a call outside that undoes, or that only goes forward, and a step that keeps meeting locks or time limits. After so long a person is called.';
comment on column step_settings.backoff_seconds is 'Wait before the second try; doubles with each, up to a minute if it began with less, with jitter.';
comment on column step_settings.timeout_seconds is
    'How long an external answer may take before the call is made again, or how long a signal is waited for.';
comment on column step_settings.paused_until is 'Until then the engine starts no call of this step; sagas wait before it. Set by pause_external_steps().';

create table sagas (
    id uuid not null,
    warehouse_id uuid not null,
    saga_type text not null,
    plan_version smallint not null,
    status saga_status not null default 'running',
    position smallint not null default 1,
    attempts smallint not null default 0,
    cancel_requested boolean not null default false,
    lease_token bigint not null default 0,
    ready_at timestamptz default clock(),
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    traceparent text default substring(
        current_setting('request.traceparent', true)
        from '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$'
    ),
    constraint sagas_id_is_one_in_the_database primary key (id) with (fillfactor = 50),
    constraint sagas_rest_when_they_end
    check ((status >= 'completed') = (ready_at is null))
) with (fillfactor = 40, autovacuum_vacuum_scale_factor = 0.05);
create index sagas_ready_idx on sagas (ready_at, id) where ready_at is not null;
create index sagas_troubles_idx on sagas (status, id) where status in ('compensated', 'stuck');
-- How many are stuck: row-level security hides statistics of the status from the planner, these
-- it doesn't; docs/decisions/hidden-statistics.md.
create statistics sagas_stuck_stats on (status = 'stuck') from sagas;
comment on table sagas is 'Where each saga stands. Narrow: what the claim reads. The story is in saga_events.';
comment on column sagas.id is
    'For a saga about an order: the id of the order. One in the whole database, whoever chose it, and so is the id of every order and refund.';
comment on column sagas.plan_version is 'The version of the plan that it began with, and ends by.';
comment on column sagas.position is 'The step of that plan at which it stands; 0 when all of it is undone.';
comment on column sagas.attempts is 'Tries of the current step so far.';
comment on column sagas.lease_token is 'Fencing token: grows with every external request; an answer with an old one is refused.';
comment on column sagas.ready_at is 'When the engine looks at it next: at once, after a backoff, or when a lease runs out. Null once it has ended.';
comment on column sagas.traceparent is 'W3C trace context of the request that started it, when that was traced. What a session set that is none is left out.';

create table saga_events (
    id bigint generated always as identity,
    saga_id uuid not null,
    warehouse_id uuid not null,
    event_type saga_event_type not null,
    step_name text,
    attempt smallint,
    error_code text,
    message text,
    next_attempt_at timestamptz,
    actor text,
    started_at timestamptz,
    created_at timestamptz not null default clock(),
    request_id text default substring(current_setting('request.id', true) from '^[A-Za-z0-9._:-]{1,64}$'),
    constraint saga_events_pkey primary key (saga_id, id, warehouse_id, created_at) with (fillfactor = 20)
) partition by range (created_at);
create table saga_events_default partition of saga_events default;
create index saga_events_time_idx on saga_events using brin (created_at, id) with (autosummarize = on);
-- What is out of the ordinary: no event of an order that goes well.
create index saga_events_troubles_idx on saga_events (event_type, created_at)
where event_type in (
    'step_failed', 'compensation_started', 'saga_stuck', 'retried', 'cancelled', 'skipped', 'reported'
);
comment on table saga_events is 'The history of every saga: append-only, one row per transition.';
comment on column saga_events.error_code is 'SQLSTATE of what went wrong; class DP is ours.';
comment on column saga_events.started_at is 'When the step began; created_at is when it ended.';
comment on column saga_events.next_attempt_at is 'When it is tried again, or when the lease of an external request runs out.';
comment on column saga_events.request_id is 'The HTTP request that caused it (X-Request-ID), or what a session set as request.id: 1 to 64 letters, digits or ._:-, else nothing.';

create table saga_signals (
    id bigint generated always as identity,
    saga_id uuid not null,
    warehouse_id uuid not null,
    step_name text not null,
    event_id text not null,
    payload jsonb not null,
    actor text,
    created_at timestamptz not null default clock(),
    taken_at timestamptz,
    constraint saga_signals_pkey primary key (saga_id, event_id, warehouse_id),
    constraint saga_signals_are_bounded
    check (length(event_id) between 1 and 255 and octet_length(payload::text) <= 65536)
);
comment on table saga_signals is 'What sagas were told by signal_saga(): each event once, kept until the step that it is for takes it.';
comment on column saga_signals.step_name is 'The step that waits for it, or will.';
comment on column saga_signals.taken_at is 'When the step went on with it; null while nobody has.';

-- A step of a plan as a pass reads it: a row of saga_steps with its settings.
create type plan_step as (
    position smallint,
    step_name text,
    step_function text,
    settle_function text,
    effect_function text,
    effect text,
    undo_name text,
    undo_function text,
    undo_settle_function text,
    undo_effect_function text,
    undo_effect text,
    order_status_waiting order_status,
    order_status_done order_status,
    order_status_refused order_status,
    forward_only boolean,
    on_deadline deadline_action,
    wait_again boolean,
    give_up_seconds numeric,
    stuck_seconds numeric,
    backoff_seconds numeric,
    timeout_seconds numeric,
    paused_until timestamptz
);

-- Something that happened to all sagas of a group in a pass: the event that each
-- is to have, and the effect that is due. The arrays are aligned with the group's;
-- null where there is nothing to say. A transition that began with a lease has its
-- length, one that is followed by another try is the group's last.
create type saga_transition as (
    event_type saga_event_type,
    step_name text,
    attempt smallint,
    error_codes text[],
    messages text[],
    will_retry boolean,
    started_at timestamptz,
    lease_seconds numeric,
    created_at timestamptz,
    effect_function text,
    effect text
);

-- Sagas of a pass that stand at the same place of the same plan. The arrays of its
-- members are aligned, in order of saga_ids; the lease tokens are those before the
-- pass, and count as higher by token_increments, one for each outcome. Each member is
-- ready again at ready_at, and its share of spread_seconds later, or its own wait_seconds
-- where those differ from one to the next. requests is what
-- each asks for, if any does; answers what each was answered, or told by a signal, and
-- deferred_seconds is set where their requests were given back unasked. A parked group
-- goes no further in this pass.
create type saga_group as (
    saga_type text,
    plan plan_step[],
    status saga_status,
    position smallint,
    attempts smallint,
    cancel_requested boolean,
    saga_ids uuid[],
    warehouse_ids uuid[],
    lease_tokens bigint[],
    were_ready_at timestamptz[],
    ready_at timestamptz,
    spread_seconds double precision,
    wait_seconds double precision[],
    parked boolean,
    order_status order_status,
    token_increments integer,
    transitions saga_transition[],
    requests json[],
    answers jsonb[],
    deferred_seconds numeric[]
);

-- What a step says of one saga.
create type step_outcome as (
    saga_id uuid,
    result step_result,
    error_code text,
    message text,
    request json,
    wait_seconds numeric
);

-- What a step function returns: the sagas that came out of it alike, as aligned arrays in
-- order of saga_ids. wait_seconds, error_codes, messages and requests are null where there are none.
create type outcome_group as (
    result step_result,
    wait_seconds numeric[],
    saga_ids uuid[],
    error_codes text[],
    messages text[],
    requests json[]
);

-- What is to be asked for a saga, as advance() and settle() hand it out.
create type external_request as (
    saga_id uuid,
    warehouse_id uuid,
    lease_token bigint,
    attempt smallint,
    timeout_seconds numeric,
    step_name text,
    request json
);

-- How far a session's claims have come in the order of ready_at and id, when it looked from the
-- beginning for the last time, and how many dead index entries it passed there.
create type claim_place as (
    ready_at timestamptz,
    id uuid,
    looked_at timestamptz,
    passed integer
);

-- An inventory row that this transaction has locked, as it was found.
create type locked_stock as (
    product_id uuid,
    warehouse_id uuid,
    quantity_available integer,
    quantity_reserved integer
);
