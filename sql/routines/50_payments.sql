-- What holds for a payment row whoever writes it: it is never removed, and
-- money that was captured, refunded or voided stays so. The steps that move
-- money are in 61_order_fulfilment.sql.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

create or replace trigger payments_refuse_removal
before delete on payments
for each row execute function refuse_change();

create or replace trigger payments_refuse_truncate
before truncate on payments
for each statement execute function refuse_change();

create or replace trigger payments_only_add_up
before update on payments
for each row
when (
    new.captured_amount < old.captured_amount
    or new.refunded_amount < old.refunded_amount
    or new.voided_amount < old.voided_amount
    or (old.order_id, old.warehouse_id, old.requested_amount, old.currency, old.idempotency_key)
    is distinct from
    (new.order_id, new.warehouse_id, new.requested_amount, new.currency, new.idempotency_key)
)
execute function refuse_change();
