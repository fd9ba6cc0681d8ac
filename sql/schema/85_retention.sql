-- How long each kind of row is kept, and what is left of what is gone: the ids that must not
-- come again, and which months were copied elsewhere first. Beside it, the audits that ran.

create table retention (
    kind text not null,
    keep_days integer,
    at_least_days integer not null,
    export_first boolean not null default false,
    removed bigint not null default 0,
    removed_before timestamptz,
    next_key text,
    looked_at timestamptz,
    constraint retention_pkey primary key (kind),
    constraint retention_is_of_what_is_over check (keep_days >= at_least_days),
    constraint retention_exports_what_it_can check (not (export_first and kind in ('audit_runs', 'stock_alerts', 'batches', 'step_minutes')))
);
comment on table retention is
    'How long each kind of row is kept, in days; null, for ever. Housekeeping removes what is older: see retention_due().';
comment on column retention.at_least_days is 'Less is refused: what is younger may be asked for, or disputed.';
comment on column retention.export_first is 'A month goes only once record_export() says that it was copied.';
comment on column retention.removed is 'Rows that have gone so far; of events, partitions.';
comment on column retention.removed_before is 'Of what is older some may be gone.';
comment on column retention.next_key is 'Where the next look through a table that is in no order of time begins.';
comment on column retention.looked_at is 'When housekeeping last found nothing more to remove.';

create table spent_ids (
    id uuid not null,
    spent_in xid8 not null default pg_current_xact_id(),
    is_timed boolean not null default false,
    constraint spent_ids_pkey primary key (id)
);
comment on table spent_ids is
    'Ids of what retention has removed, and of shipments, so that none comes again. A row may go only in the transaction that writes its id here. Of what is removed, ids that tell when they were made stay for that transaction alone: see spent_up_to.';
comment on column spent_ids.is_timed is 'The id tells when it was made, so that spent_up_to stands for it.';

create table spent_up_to (
    id uuid not null,
    constraint spent_up_to_pkey primary key (id)
);
comment on table spent_up_to is
    'One row: the highest id, of those that tell when they were made (UUIDv7), that retention has removed. No such id up to it is taken again.';

create table retention_exports (
    kind text not null,
    month date not null,
    exported_at timestamptz not null default clock(),
    actor text not null,
    row_count bigint not null,
    constraint retention_exports_pkey primary key (kind, month, exported_at),
    constraint retention_exports_kind_exists foreign key (kind) references retention (kind),
    constraint retention_exports_are_of_a_month check (month = date_trunc('month', month) and row_count >= 0)
);
comment on table retention_exports is 'The months of each kind that were copied elsewhere. Written by record_export().';

create table audit_runs (
    id bigint generated always as identity,
    since timestamptz,
    started_at timestamptz not null,
    ended_at timestamptz not null,
    finding_count bigint not null,
    findings jsonb not null,
    actor text not null,
    reason note,
    constraint audit_runs_pkey primary key (id)
);
comment on table audit_runs is 'The audits that were run, and what they found: see run_audit().';
comment on column audit_runs.since is 'Only what has changed since then was looked at; null: everything.';
comment on column audit_runs.findings is 'The first hundred, as rows of audit.';
comment on column audit_runs.reason is 'Why it was run, where somebody said so.';
