-- The ground of all other routines: refusals, the actor, history that refuses
-- changes, versions of rows that are edited.
--
-- These files are applied in name order, in one transaction, after every
-- migration. Nothing in them holds data, so all of it can be replaced.
--
-- SQLSTATEs of our own, class DP. Each is raised by refuse(), with DETAIL and HINT.
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
--   DP022  a plan that names what isn't there
--   DP023  goods that would leave before their money is there
--   DP024  a parcel of an order that isn't to be shipped now
--   DP025  rows of a set that can't be taken, for several reasons
--   DP026  an answer of a gateway about another amount than was asked for
--   DP027  money of a disputed payment
--   DP028  money that is owed and did not go back
--   DP029  a parcel of more than is left to ship
--   DP030  no token where one is needed (over HTTP)
--   DP031  a token that is not valid (over HTTP)
--   DP032  stock that is not what a count expected
--   DP033  an order that is not to be paid now
--   DP034  an order that was not paid by its deadline
--   DP035  a row that has changed since it was read
--   DP036  an idempotency key that stands for another request
--   DP037  an idempotency key whose first request is still under way
--   DP038  an id, or a moment, of what retention has removed
--   DP039  too many requests (over HTTP)
--   DP040  an order that has ended, and was to be for something else
--   DP041  an order that would cost less than nothing, a refund or a payment that doesn't add up
--   DP042  a feed that is followed from where commits of others aren't seen
--   DP043  too many webhook endpoints
--   DP044  a saga that doesn't wait for its next try
--   DP045  an order that was to be placed again, and isn't cancelled
--   DP046  a payment that its payer has given up
--   DP050  a warehouse that belongs to another cell
--   DP051  the catalogue, written away from home
--   DP052  a database with data, which was to become a cell
--   DP053  a warehouse that is moving to another cell, and open in none
--   DP056  an order that only several cells together could serve (over HTTP)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- The name that the audit trail gets: the subject of the caller's token where
-- the API has set one, else the login role. Only the API's login may carry
-- claims; for anyone else they would be a forged signature. What a listener does of
-- a batch, it does for who started that: see work_batches().
-- No SET clause: the body is bound when it is made, and can be inlined.
create or replace function current_actor() returns text
language sql stable
return coalesce(
    case
        when session_user = 'darkpearl_api'
            then nullif(nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub', '')
        when coalesce(nullif(current_setting('role'), 'none'), session_user) = 'darkpearl_listener'
            then nullif(current_setting('darkpearl.on_behalf_of', true), '')
    end,
    session_user
);
comment on function current_actor() is
    'The actor: the token''s subject for API sessions, else the login role; in a batch, who started it.';

-- The customer that the caller's token names, or null. Same rule as above; the
-- subject of a member of staff is no customer. The setting `role` is what the
-- session acts as, inside of its functions too, where current_user is another.
create or replace function current_customer() returns text
language sql stable
return case
    when session_user = 'darkpearl_api' and current_setting('role') = 'authenticated'
        then nullif(nullif(current_setting('request.jwt.claims', true), '')::json ->> 'sub', '')
end;
comment on function current_customer() is 'The customer the caller''s token names; null for sessions that carry none.';

-- True for a session that may do with an order only what its customer may. For
-- functions that run as their owner, whom row-level security lets see all.
create or replace function acts_as_customer() returns boolean
language sql stable
return (
    select
        pg_has_role(caller.role, 'authenticated', 'usage')
        and not pg_has_role(caller.role, 'service_role', 'usage')
        and not pg_has_role(caller.role, 'darkpearl_app', 'usage')
    from (select coalesce(nullif(current_setting('role'), 'none'), session_user)) as caller (role)
);
comment on function acts_as_customer() is 'Internal: true when the session has no more rights over orders than a customer.';

-- True for a session that sees of the catalogue what is sold and no more, but for what it has
-- ordered itself. For functions that run as their owner, whom row-level security lets see all.
create or replace function acts_as_outsider() returns boolean
language sql stable
return (
    select bool_and(not pg_has_role(caller.role, insider.role, 'usage'))
    from (select coalesce(nullif(current_setting('role'), 'none'), session_user)) as caller (role),
        (values ('service_role'), ('darkpearl_app'), ('darkpearl_reader')) as insider (role)
);
comment on function acts_as_outsider() is 'Internal: true when the session is a visitor''s or a customer''s.';

-- Raises an error of ours, with all that its reader needs: message says what was refused,
-- detail the case at hand, hint the way out. Nothing after a call of it runs.
-- Rules in triggers call it under the role of the writer, so everybody may.
create or replace function refuse(p_code text, p_message text, p_detail text, p_hint text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    raise exception using errcode = p_code, message = p_message, detail = p_detail, hint = p_hint;
end
$$;
comment on function refuse(text, text, text, text) is
    'Raises an error of ours: SQLSTATE, message, detail and hint. For functions that refuse what was asked.';

-- Trigger: history is only ever added to. An argument names a column: the rows whose id there
-- is spent by this transaction are retention's to remove, see 15_spent_ids.sql. Raises DP005.
create or replace function refuse_change() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if tg_nargs = 1 then
        if exists (
            select from spent_ids as s
            where s.id = (to_jsonb(old) ->> tg_argv[0])::uuid and s.spent_in = pg_current_xact_id()
        ) then
            return case tg_op when 'DELETE' then old else new end;
        end if;
    end if;
    perform refuse(
        'DP005', format('%s is append-only', tg_table_name),
        format('A %s was refused; what happened stays written.', tg_op),
        'Write a new row that corrects the old one, such as an adjust movement.'
    );
end
$$;
comment on function refuse_change() is 'Trigger of append-only tables: refuses UPDATE, DELETE and TRUNCATE, but for what retention removes.';

-- What is old enough retention may remove, see 72_retention.sql.
create or replace trigger action_log_refuses_change
before update on action_log
for each row execute function refuse_change();

create or replace trigger action_log_refuses_truncate
before truncate on action_log
for each statement execute function refuse_change();

-- Who does by hand what the engine doesn't do by itself says why. Raises DP015.
create or replace function refuse_no_reason(p_reason text) returns void
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    if coalesce(p_reason, '') !~ '\S' then
        perform refuse(
            'DP015', 'a reason is needed', 'What operators do is read by others, later.',
            'Pass p_reason: what was seen, or the number of a ticket.'
        );
    end if;
end
$$;
comment on function refuse_no_reason(text) is 'Internal: refuses an action of an operator that says no reason.';

-- Notes what somebody does by hand: p_action is the function, or the command and table;
-- p_subject what it is done to. Runs in the functions and triggers that do it, so that
-- nobody can forget to. Locks nothing.
create or replace function note_action(p_action text, p_subject text, p_reason text, p_detail jsonb default null) returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    insert into action_log (actor, action, subject, reason, detail)
    values (current_actor(), p_action, p_subject, p_reason, p_detail);
end;
comment on function note_action(text, text, text, jsonb) is 'Internal: writes what somebody did by hand into action_log.';

-- Trigger: a row that was edited has its next version and the time of the edit.
-- Locks nothing, raises nothing.
create or replace function count_version() returns trigger
language plpgsql
set search_path = darkpearl, pg_temp
as $$
begin
    new.version := old.version + 1;
    new.updated_at := clock();
    return new;
end
$$;
comment on function count_version() is 'Trigger: an edited row gets its next version and the time of the change.';

-- For writers of a row that was read before: select expect_version(version, …)
-- from products where id = … for no key update. With the row locked, a writer
-- that was quicker is seen, whenever it commits. Raises DP035.
create or replace function expect_version(p_version bigint, p_expected bigint[]) returns void
language plpgsql
immutable
set search_path = darkpearl, pg_temp
as $$
begin
    if p_version = any(p_expected) then
        return;
    end if;
    perform refuse(
        'DP035', 'row has changed',
        format(
            'It is version %s now; %s.', p_version,
            coalesce('expected was ' || nullif(array_to_string(p_expected, ' or '), ''), 'no version was named')
        ),
        'Read it again, and make the change from what it is now.'
    );
end
$$;
comment on function expect_version(bigint, bigint[]) is
    'Refuses a version that is none of those expected; select it from the row, for no key update, before writing.';
