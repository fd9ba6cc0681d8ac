-- Ids that stay spent: an id is one in the whole database for ever, also when retention has
-- removed what it was of. A gateway's idempotency keys are made of ids, and a correlation id
-- stands for one operation: a second use would pay, or move goods, as if it were the first.
--
-- Ids that tell when they were made (UUIDv7, the default) need no memory of each: all up to
-- the highest one removed are refused. Any other is kept, in spent_ids.
--
-- A shipment spends its id when it is made: it has no saga that would keep it.
--
-- The same page is the only way past the guards of append-only tables: a row may go in the
-- transaction that writes its id into spent_ids, which is what retention's functions do, and
-- nobody else has the right to.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

-- When an id was made, as it says itself, to the millisecond; null for one that doesn't: only
-- UUIDv7 do. Locks nothing.
create or replace function time_of_id(p_id uuid) returns timestamptz
language sql immutable parallel safe
return case
    when substr(p_id::text, 15, 1) = '7' and substr(p_id::text, 20, 1) in ('8', '9', 'a', 'b')
        then to_timestamp((('x' || substr(replace(p_id::text, '-', ''), 1, 12))::bit(48)::bigint) / 1000.0)
end;
comment on function time_of_id(uuid) is 'Internal: when a UUIDv7 was made; null for any other id.';

-- Whether an id was that of something that retention has removed, or may have been: it tells
-- of a time before the latest of those. Locks nothing.
create or replace function is_spent(p_id uuid) returns boolean
language sql stable
return (p_id <= (select u.id from spent_up_to as u) and time_of_id(p_id) is not null)
    or exists (select from spent_ids as s where s.id = p_id);
comment on function is_spent(uuid) is 'Internal: whether an id may not be used any more, since retention has removed what it was of.';

-- Refuses new uses of ids that are spent. Called once what was written under them can be seen
-- by others, so that a removal under way is waited for and then noticed. Locks nothing.
-- Raises: DP038.
create or replace function refuse_spent_ids(p_ids uuid[]) returns void
language plpgsql
set search_path = darkpearl, pg_temp
set enable_seqscan = off
as $$
declare
    v_id constant uuid := (select i from unnest(p_ids) as i where is_spent(i) limit 1);
begin
    if v_id is not null then
        perform refuse(
            'DP038', 'id was used before, or may have been',
            format(
                'The id %s is %s.', v_id,
                coalesce(
                    'of ' || to_char(time_of_id(v_id), 'YYYY-MM-DD') || ', when retention has removed others that old',
                    'that of a shipment, or of something that retention has removed'
                )
            ),
            'Give something new a new id, and don''t repeat what is so long ago.'
        );
    end if;
end
$$;
comment on function refuse_spent_ids(uuid[]) is
    'Internal: refuses ids of what retention has removed, and those that are as old.';

-- Writes down ids that are spent from now on, each with the time that its rows were made by
-- the database's clock: an id of a later time than that is kept, like one that tells none.
-- Locks: the ids, to the end of the transaction.
create or replace function spend_ids(p_ids uuid[], p_created_at timestamptz[]) returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    insert into spent_ids (id, is_timed)
    select i.id, bool_and(coalesce(time_of_id(i.id) <= i.created_at, false))
    from unnest(p_ids, p_created_at) as i (id, created_at)
    group by i.id
    on conflict (id) do update set spent_in = excluded.spent_in, is_timed = excluded.is_timed;
end;
comment on function spend_ids(uuid[], timestamptz[]) is
    'Internal: writes down ids as spent, which lets what they are of go in this transaction.';

-- The end of what spend_ids() begins, once the rows are gone: of ids that tell their time only
-- the highest is kept. Locks: spent_up_to.
create or replace function forget_timed_ids() returns void
language sql
set search_path = darkpearl, pg_temp
begin atomic
    with forgotten as (
        delete from spent_ids as s
        where s.spent_in = pg_current_xact_id() and s.is_timed
        returning s.id
    ),
    highest as (
        select h.id from (
            select f.id from forgotten as f
            union all
            select u.id from spent_up_to as u
        ) as h
        order by h.id desc
        limit 1
    ),
    lower as (
        delete from spent_up_to as u using highest as h where u.id < h.id
    )
    insert into spent_up_to (id)
    select h.id from highest as h
    on conflict do nothing;
end;
comment on function forget_timed_ids() is 'Internal: keeps of the ids spent in this transaction those that tell no time, and the highest of the others.';
