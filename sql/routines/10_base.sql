-- What every other routine leans on: who is acting, how history refuses
-- changes, how time stamps of edited rows are kept.
--
-- These files are applied in name order, in one transaction, after every
-- migration. Nothing in them holds data, so all of it can be replaced.
--
-- SQLSTATEs of our own, class DP. Each is raised with DETAIL and HINT.
--   DP001  an order without lines
--   DP002  a price that only service_role may set
--   DP003  a product, a warehouse or a currency that cannot be ordered
--   DP004  an order status that cannot follow the present one
--   DP005  history that was to be changed
--   DP006  not enough stock
--   DP007  an order that cannot be cancelled any more
--   DP008  a saga that is not stuck
--   DP009  an answer under an old lease token
--   DP010  no such row
--   DP011  a correlation id that already stands for something else
--   DP012  lines added to an order that has been placed
--   DP013  no answer within the time allowed
--   DP014  payment declined
--   DP015  an argument that makes no sense
--   DP016  a row that is still in use
--   DP017  what an outside system answered makes no sense, or it failed
--   DP018  a step that nobody can do by hand
--   DP019  a refund or return of an order that is not fulfilled
--   DP020  a refund of more than is left
--   DP021  a return of more than was sent
--   DP030  no token where one is needed (over HTTP)
--   DP031  a token that is not valid (over HTTP)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- Who to write into the audit trail: the subject of the caller's token where
-- the API has set one, else the login role. Only the API's login may carry
-- claims; for anyone else they would be a forged signature.
-- No SET clause: the body is bound when it is made, and can be inlined.
create or replace function current_actor() returns text
language sql stable
return coalesce(
    case
        when session_user = 'darkpearl_api'
            then nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub'
    end,
    session_user
);
comment on function current_actor() is 'Who acts: the token''s subject for API sessions, else the login role.';

-- The customer that the caller's token names, or null. Same rule as above.
create or replace function current_customer() returns uuid
language sql stable
return case
    when session_user = 'darkpearl_api'
        then nullif(nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub', '')::uuid
end;
comment on function current_customer() is 'The customer the caller''s token names; null for sessions that carry none.';

-- Trigger: history is only ever added to. Raises DP005.
create or replace function refuse_change() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    raise exception using
        errcode = 'DP005',
        message = format('%s is append-only', tg_table_name),
        detail = format('A %s was refused; what happened stays written.', tg_op),
        hint = 'Write a new row that corrects the old one, such as an adjust movement.';
end
$$;
comment on function refuse_change() is 'Trigger of append-only tables: refuses UPDATE, DELETE and TRUNCATE.';

-- Trigger: keeps updated_at. Locks nothing, raises nothing.
create or replace function touch_updated_at() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    new.updated_at := clock();
    return new;
end
$$;
comment on function touch_updated_at() is 'Trigger: sets updated_at to the time of the change.';
