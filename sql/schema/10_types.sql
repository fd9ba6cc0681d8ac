-- The ground everything stands on: the schema, the role that owns it, the
-- enums, and the two functions that column defaults need before any routine
-- exists (the clock and the ids).
--
-- Everything DarkPearl has lives in schema darkpearl and belongs to
-- darkpearl_owner, a role that cannot log in. SECURITY DEFINER functions run
-- as that role, so not even a bug in one of them reaches beyond the schema.

do $$
begin
    create role darkpearl_owner nologin;
exception
    when duplicate_object or unique_violation then null;
end
$$;

do $$
begin
    -- Since 16, who creates a role is a member of it that may not yet act as it.
    if not pg_has_role(
        current_user, 'darkpearl_owner',
        case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end
    ) then
        execute format('grant darkpearl_owner to %I', current_user);
    end if;
end
$$;

create schema darkpearl authorization darkpearl_owner;
set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

comment on schema darkpearl is
    'Order fulfilment: catalogue, stock ledger, orders, payments, sagas. Start with select * from order_overview.';

-- Nobody may call a function of ours unless routines/90_access.sql says so.
alter default privileges for role darkpearl_owner revoke execute on functions from public;

create type order_status as enum (
    'pending', 'reserved', 'payment_processing', 'payment_failed',
    'paid', 'fulfilling', 'fulfilled', 'cancelled'
);

create type movement_type as enum (
    'receive', 'transfer_out', 'transfer_in', 'adjust', 'reserve', 'release', 'fulfill', 'balance'
);

create type payment_status as enum (
    'requested', 'pending', 'authorized', 'capture_requested', 'captured',
    'declined', 'void_requested', 'voided', 'refunded'
);

create type refund_status as enum ('requested', 'refunded', 'declined', 'failed');

-- Of a payer's bank that wants a payment back.
create type dispute_status as enum ('open', 'won', 'lost');

-- When the money of an order is taken: together with the authorisation, or
-- right before the goods leave.
create type capture_method as enum ('at_payment', 'at_fulfilment');

-- When the goods of an order leave: by themselves once they are paid, or parcel by parcel,
-- as somebody packs them.
create type fulfilment_method as enum ('automatic', 'on_shipment');

-- What became of an event that a gateway sent.
create type disposition as enum ('applied', 'stale', 'unmatched', 'acknowledged');

-- Those who still have a way to go, then those who rest.
create type saga_status as enum (
    'running', 'waiting', 'compensating', 'completed', 'compensated', 'stuck'
);

create type saga_event_type as enum (
    'saga_started', 'step_completed', 'step_waiting', 'step_failed', 'step_deferred',
    'compensation_started', 'step_compensated', 'compensation_ended',
    'saga_completed', 'saga_compensated', 'saga_stuck',
    'retried', 'cancelled', 'skipped', 'signalled', 'reported', 'shipped', 'returned'
);

-- What a step says of one saga. 'failed', a try that came to nothing, is also the engine's,
-- of a step that raised or whose lease ran out; 'deferred' only the engine's, of a request
-- that was given back unasked. 'wrong' is a step that was done otherwise than asked, and is
-- undone with those before it. 'stuck' needs a person.
create type step_result as enum ('done', 'refused', 'waiting', 'failed', 'given_up', 'deferred', 'wrong', 'stuck');

-- What an order costs beside its lines; a discount makes it less.
create type adjustment_kind as enum ('shipping', 'discount', 'tax', 'fee');

-- An amount of money in major units. Four decimals hold every ISO 4217
-- currency; the upper bound also refuses 'NaN' and 'Infinity'.
create domain amount as numeric
    constraint amount_is_a_sane_sum check (value >= 0 and value < 1e12 and scale(value) <= 4);

-- The same of what may be taken away.
create domain signed_amount as numeric
constraint signed_amount_is_a_sane_sum check (abs(value) < 1e12 and scale(value) <= 4);

create domain currency_code as text
    constraint currency_is_iso_4217 check (value ~ '^[A-Z]{3}$');

-- Bounds of single columns stand in types of their own: a CHECK of a table is read
-- and evaluated by every statement that writes to it, whatever it writes.
create domain note as text
constraint note_is_bounded check (length(value) <= 2000);

-- How many units a shelf is to hold.
create domain stock_level as integer
constraint stock_level_is_sane check (value between 0 and 1000000000);

-- How many decimals an amount of a currency has, by ISO 4217.
create function minor_units(p_currency text) returns integer
language sql immutable parallel safe
begin atomic
    select case
        when p_currency in (
            'BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF',
            'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF'
        ) then 0
        when p_currency in ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND') then 3
        when p_currency in ('CLF', 'UYW') then 4
        else 2
    end;
end;
comment on function minor_units(text) is 'How many decimals an amount of a currency has: 2 for USD, 0 for JPY, 3 for KWD.';

-- Data of a shop's own beside ours, which nothing here reads.
create domain metadata as jsonb
constraint metadata_is_a_small_object check (value is null or (jsonb_typeof(value) = 'object' and octet_length(value::text) <= 16384));

-- What a payer has to do before a payment that is pending can be decided, in the gateway's terms.
create domain client_action as jsonb
constraint client_action_is_a_small_object check (value is null or (jsonb_typeof(value) = 'object' and octet_length(value::text) <= 8192));

create domain email_address as text
constraint email_address_has_a_name_and_a_host check (length(value) <= 254 and value ~ '^[^@[:space:]]+@[^@[:space:]]+$');

-- What may be said of the money of one payment; a gateway may take more than was asked for,
-- until that is undone. One function for all of it: a CHECK
-- is read from text by every statement that writes to the table, and four of them
-- took a fortieth of what an order alone does.
create function amounts_add_up(
    p_requested amount, p_authorized amount, p_captured amount, p_refunded amount, p_voided amount
) returns boolean
language plpgsql immutable parallel safe
as $$
begin
    return p_refunded <= p_captured and p_captured <= p_authorized
        and p_voided <= greatest(p_requested - p_captured, 0);
end
$$;
comment on function amounts_add_up(amount, amount, amount, amount, amount) is
    'Whether refunded <= captured <= authorized, and no more was voided than was not captured.';

-- Whether a text shows anything: a character that is neither white space nor one of those
-- that Unicode has for joining, direction, variants and the like, which are seen by nobody.
create function is_visible(p_text text) returns boolean
language sql immutable parallel safe
return p_text ~ (
    '[^\u0001-\u0020\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f'
    '\u2000-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb'
    '\U0001d173-\U0001d17a\U000e0000-\U000e0fff]'
);
comment on function is_visible(text) is 'Whether a text has a character that can be seen; white space and zero-width ones can''t.';

-- Whether what a text is written with can all be told by looking at it: visible characters, and
-- single spaces between them. For what people read off a label and type in.
create function is_visible_throughout(p_text text) returns boolean
language sql immutable parallel safe
return p_text = btrim(p_text) and strpos(p_text, '  ') = 0 and not exists (
    select from regexp_split_to_table(p_text, '') as c where c <> ' ' and not is_visible(c)
);
comment on function is_visible_throughout(text) is 'Whether a text has visible characters alone, and single spaces between them.';

-- Whether an object is a postal address: some of these fields, each a text that shows something,
-- country a code of ISO 3166-1.
create function is_postal_address(p_address jsonb) returns boolean
language sql immutable strict parallel safe
return case when jsonb_typeof(p_address) = 'object' then
    p_address <> '{}'
    and p_address - '{name,company,line1,line2,city,region,postal_code,country,phone}'::text[] = '{}'
    and coalesce(p_address ->> 'country' ~ '^[A-Z]{2}$', true)
    and not exists (
        select from jsonb_each(p_address) as f (name, value)
        where jsonb_typeof(f.value) <> 'string' or length(f.value #>> '{}') > 255 or not is_visible(f.value #>> '{}')
    )
else false end;
comment on function is_postal_address(jsonb) is 'Whether a JSON object is a postal address.';

create domain postal_address as jsonb
constraint postal_address_has_its_fields check (is_postal_address(value));

-- Whom an order is for, by the subject of a token. One of ASCII alone, as nearly all are, is
-- told by one pattern; any other is looked at character by character. Null is told first, since
-- most orders of a shop's own programs have none.
create domain customer_id as text
constraint customer_id_is_visible_throughout check (
    value is null or (length(value) between 1 and 255 and (value ~ '^[!-~]+$' or is_visible_throughout(value)))
);

-- The words of a text, as a search compares them: lower case, without accents, and cut at
-- whatever is neither letter nor digit. The cuts are named, so that they are the same in
-- a database of any locale; a script without spaces is one word up to the next sign.
create function words_of(p_text text) returns text[]
language sql immutable parallel safe
return array_remove(
    regexp_split_to_array(
        lower(normalize(regexp_replace(normalize(p_text, nfkd), '[\u0300-\u036f]+', '', 'g'), nfkc)),
        '[\u0001-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00bf\u00d7\u00f7\u2000-\u2bff\u3000-\u303f]+'
    ), ''
);
comment on function words_of(text) is 'The words of a text: letters and digits, in lower case and without accents.';

-- What a search looks through.
create function search_words(p_code text, p_name text) returns tsvector
language sql immutable parallel safe
return array_to_tsvector(words_of(p_code || ' ' || p_name));
comment on function search_words(text, text) is 'The words of a code and a name, as search_query() is matched with.';

-- The only clock. Every timer and time stamp of ours reads it, so that a test
-- can turn it by replacing the function; in production there is nothing to turn.
create function clock() returns timestamptz
language sql volatile parallel safe
begin atomic
    select clock_timestamp();
end;
comment on function clock() is 'The time by which every DarkPearl timer and time stamp goes.';

-- Which of several databases this is: docs/decisions/cells.md. A constant, and no row: all that
-- is made here has it in its id, and the planner folds it in. become_cell() writes it anew.
create function this_cell() returns smallint
language sql immutable parallel safe
return 1::smallint;
comment on function this_cell() is 'The number of the cell that this database is, of 1 to 255; 1 is home, and a database that stands alone.';

-- UUIDv7: ids that sort by time keep index inserts at the right edge. Built in
-- since PostgreSQL 18; below, a random UUID whose first bits are the Unix time,
-- to the microsecond. The last byte, random else, is the cell.
do $$
begin
    if current_setting('server_version_num')::int >= 180000 then
        create function new_id() returns uuid
        language sql volatile parallel safe
        return encode(set_byte(uuid_send(uuidv7()), 15, this_cell()), 'hex')::uuid;
    else
        create function new_id() returns uuid
        language sql volatile parallel safe
        begin atomic
            select encode(
                overlay(
                    overlay(
                        set_byte(uuid_send(gen_random_uuid()), 15, this_cell())
                        placing substring(int8send(t.us / 1000) from 3) from 1 for 6
                    )
                    -- Version 7 and, in twelve bits, the fraction of the millisecond.
                    placing substring(int8send(28672 + t.us % 1000 * 4096 / 1000) from 7) from 7 for 2
                ),
                'hex'
            )::uuid
            from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as us) as t;
        end;
    end if;
end
$$;
comment on function new_id() is 'A new UUIDv7: unique, and sorted by the time it was made. Its last byte is the cell that made it.';

-- Called by column defaults and constraints, whoever inserts.
grant execute on function amounts_add_up(amount, amount, amount, amount, amount) to public;
grant execute on function clock() to public;
grant execute on function is_postal_address(jsonb) to public;
grant execute on function is_visible_throughout(text) to public;
grant execute on function is_visible(text) to public;
grant execute on function minor_units(text) to public;
grant execute on function new_id() to public;
grant execute on function search_words(text, text) to public;
grant execute on function this_cell() to public;
grant execute on function words_of(text) to public;
