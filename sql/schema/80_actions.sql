-- What people have done by hand, for those who ask later: who, when, to what, and why.

create table action_log (
    id bigint generated always as identity,
    at timestamptz not null default clock(),
    actor text not null,
    action text not null,
    subject text not null,
    reason text,
    detail jsonb,
    constraint action_log_pkey primary key (id)
);
create index action_log_subject_idx on action_log (subject);
comment on table action_log is 'What people have done by hand: who, when, to what and why. Append-only; written by what they do it with.';
comment on column action_log.action is 'The function that was called, or what was changed where.';
comment on column action_log.subject is 'The saga, event, step or partition that it was done to.';
comment on column action_log.reason is 'Null only for changes of the plan''s numbers, and for pauses of a listener.';
