-- Which request caused an event, and which trace a saga belongs to: nothing, not even a byte,
-- where there is none.
-- depends: 0001.baseline

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

alter table saga_events add column request_id text;
alter table saga_events alter column request_id
set default nullif(current_setting('request.id', true), '');
comment on column saga_events.request_id is
    'The HTTP request that caused it (X-Request-ID), or what a session set as request.id.';

alter table sagas add column traceparent text;
alter table sagas alter column traceparent
set default nullif(current_setting('request.traceparent', true), '');
comment on column sagas.traceparent is
    'W3C trace context of the request that started it, when that was traced.';
