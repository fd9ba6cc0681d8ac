-- Straight ways write what became of their sagas themselves; what may be said of the
-- money of a payment is one function.
-- depends: 0011.cheaper-rules
-- squawk-ignore-file ban-drop-constraint, ban-drop-function, constraint-missing-not-valid
-- (nothing large is there before the first release; routines/ bring functions that take the
-- place of those dropped)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create type external_request as (
    saga_id uuid,
    warehouse_id uuid,
    lease_token bigint,
    attempt smallint,
    timeout_seconds numeric,
    step_name text,
    request json
);

drop function if exists run_pass(uuid[], saga_group[], boolean, jsonb[]);
drop function if exists run_straight(saga_group, uuid[], jsonb[]);
drop function if exists waiting_saga(uuid[], jsonb, boolean);

create function amounts_add_up(
    p_requested amount, p_authorized amount, p_captured amount, p_refunded amount, p_voided amount
) returns boolean
language plpgsql immutable parallel safe
as $$
begin
    return p_refunded <= p_captured and p_captured <= p_authorized and p_authorized <= p_requested
        and p_voided <= p_requested - p_captured;
end
$$;
comment on function amounts_add_up(amount, amount, amount, amount, amount) is
    'Whether refunded <= captured <= authorized <= requested, and no more was voided than was not captured.';
grant execute on function amounts_add_up(amount, amount, amount, amount, amount) to public;
alter table payments
drop constraint payments_never_exceed_what_was_asked,
drop constraint payments_captured_within_authorized,
drop constraint payments_refunded_within_captured,
drop constraint payments_voided_is_what_was_not_captured,
add constraint payments_amounts_add_up
check (amounts_add_up(requested_amount, authorized_amount, captured_amount, refunded_amount, voided_amount));
