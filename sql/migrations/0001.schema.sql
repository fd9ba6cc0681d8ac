-- The schema as it was when 0.2.0 began: all of sql/schema. Older databases are refused,
-- for none of them was released.

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

-- What can be sold, and from where. Reference data: small, shared by every
-- warehouse, the only tables that other tables may point at across warehouses.

-- One row while there is one database; docs/decisions/cells.md.
create table cells (
    number smallint not null,
    name text not null,
    url text,
    created_at timestamptz not null default clock(),
    removed_at timestamptz,
    constraint cells_pkey primary key (number),
    constraint cells_number_fits_an_id check (number between 1 and 255),
    constraint cells_name_is_unique unique (name),
    constraint cells_name_is_a_word check (name ~ '^[a-z][a-z0-9_-]{0,49}$'),
    constraint cells_url_has_no_password check (url !~* 'password' and url !~ '^[a-z]+://[^/@]*:[^/@]*@')
);
comment on table cells is 'The databases that warehouses are divided among. The catalogue is written in the first, and replicated to the others.';
comment on column cells.number is 'The last byte of ids that are made there. Given once: a removed cell keeps its row.';
comment on column cells.url is 'Where the others reach it, without a password. Null: home, while it is alone.';
comment on column cells.removed_at is 'When it was taken out; its number is not given again.';

insert into cells (number, name) values (1, 'home');

create table products (
    id uuid primary key default new_id(),
    sku text not null,
    name text not null,
    description text,
    unit_price amount not null default 0,
    currency currency_code not null default 'USD',
    is_active boolean not null default true,
    metadata metadata not null default '{}',
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint products_sku_is_unique unique (sku),
    constraint products_sku_is_short_and_not_blank check (is_visible(sku) and length(sku) <= 100),
    constraint products_sku_is_visible_throughout check (is_visible_throughout(sku)),
    constraint products_sku_is_normalized_nfc check (sku is nfc normalized),
    constraint products_name_is_short_and_not_blank check (is_visible(name) and length(name) <= 255),
    constraint products_name_is_normalized_nfc check (name is nfc normalized),
    constraint products_description_is_bounded check (length(description) <= 10000),
    constraint products_price_has_the_decimals_of_its_currency
    check (scale(trim_scale(unit_price)) <= minor_units(currency)),
    version bigint not null default 1
);
create index products_newest_idx on products (created_at, id);
create index products_search_idx on products using gin (search_words(sku, name))
with (gin_pending_list_limit = 256);
comment on table products is 'The catalogue. An order line takes its price from here.';
comment on column products.metadata is 'The shop''s own, for its programs; nothing here reads it.';
comment on column products.unit_price is 'Price of one unit, in major units of currency.';
comment on column products.version is 'Grows with every change: says whether the row is still what somebody has read.';
comment on column products.is_active is 'An inactive product stays in old orders and refuses new ones.';

create table warehouses (
    id uuid primary key default new_id(),
    code text not null,
    name text not null,
    address text,
    is_active boolean not null default true,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    capture_method capture_method not null default 'at_payment',
    fulfilment_method fulfilment_method not null default 'automatic',
    priority integer not null default 100,
    constraint warehouses_code_is_unique unique (code),
    constraint warehouses_code_is_short_and_not_blank check (is_visible(code) and length(code) <= 50),
    constraint warehouses_code_is_visible_throughout check (is_visible_throughout(code)),
    constraint warehouses_code_is_normalized_nfc check (code is nfc normalized),
    constraint warehouses_name_is_short_and_not_blank check (is_visible(name) and length(name) <= 255),
    constraint warehouses_name_is_normalized_nfc check (name is nfc normalized),
    constraint warehouses_address_is_bounded check (length(address) <= 1000),
    constraint warehouses_priority_is_sane check (priority between 0 and 1000000),
    version bigint not null default 1,
    cell smallint not null default this_cell() references cells (number)
);
comment on table warehouses is 'Where stock lies. Its id is part of every key of what belongs to it.';
comment on column warehouses.is_active is 'An inactive warehouse refuses new orders; running ones end normally.';
comment on column warehouses.capture_method is
    'at_payment: an order is charged at once. at_fulfilment: it is authorised, and captured right before the goods leave; from then on it only goes forward. Counts for new orders.';
comment on column warehouses.fulfilment_method is
    'automatic: the goods of an order leave once they are paid. on_shipment: they leave parcel by parcel, by ship_items(). Counts for new orders.';
comment on column warehouses.priority is
    'An order that names no warehouse goes to the lowest that can serve it; of equal ones the first by code.';
comment on column warehouses.cell is 'The cell that alone takes its orders and moves its stock.';
comment on column warehouses.version is 'Grows with every change: says whether the row is still what somebody has read.';

-- Of a warehouse that another cell has had, or has now. It is open here alone, and nothing of it is
-- written otherwise. coming: it is being copied. arrived: all of it is here. gone: it has left, or is
-- about to.
create type move_state as enum ('coming', 'arrived', 'here', 'gone');

-- No row where no warehouse has left or come; written by close_warehouse() and open_warehouse().
create table moved_warehouses (
    warehouse_id uuid not null,
    other_cell smallint not null,
    state move_state not null,
    told_after bigint,
    changed_at timestamptz not null default clock(),
    constraint moved_warehouses_pkey primary key (warehouse_id)
);
comment on table moved_warehouses is 'Warehouses that have left this database for another cell, or come to it.';
comment on column moved_warehouses.other_cell is 'Where it went to, or came from.';
comment on column moved_warehouses.state is 'here: it is open. Else nothing of it is written: coming, arrived and not open yet, or gone.';
comment on column moved_warehouses.told_after is
    'Of one that came: the feed tells its events after this id; those up to it were told where it was. Null for one that was made here.';

-- Stock: one row per product and warehouse that says how much there is, and
-- the ledger that says why. The ledger is the only writer of the quantities:
-- apply_movements() appends to it and moves the row in the same statement pair.
--
-- quantity_available is what is physically on the shelf, promised units
-- included; quantity_reserved the promised part; the difference can be sold.

-- While a snapshot is held, all versions of a row stay. They share pages as far as these are kept
-- free, and the index says in the order of their places which is the newest: see lock_stock().
create table inventory (
    id uuid not null default new_id(),
    product_id uuid not null references products (id),
    warehouse_id uuid not null references warehouses (id),
    quantity_available integer not null default 0,
    quantity_reserved integer not null default 0,
    quantity_sellable integer not null
    generated always as (quantity_available - quantity_reserved) stored,
    reorder_point stock_level not null default 10,
    reorder_quantity stock_level not null default 50,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint inventory_pkey primary key (id, warehouse_id),
    constraint inventory_product_is_stocked_once unique (product_id, warehouse_id) with (deduplicate_items = off),
    constraint inventory_reserved_within_available
    check (0 <= quantity_reserved and quantity_reserved <= quantity_available),
    constraint inventory_quantity_is_bounded check (quantity_available <= 1000000000),
    version bigint not null default 1
) with (fillfactor = 25, autovacuum_vacuum_scale_factor = 0.05);
create index inventory_newest_idx on inventory (created_at, id);
comment on table inventory is 'How much of a product a warehouse has. Quantities change only through the ledger.';
comment on column inventory.quantity_available is 'Units on the shelf, reserved ones included.';
comment on column inventory.quantity_reserved is 'Units on the shelf that are promised to orders.';
comment on column inventory.quantity_sellable is 'Units that a new order can have: available - reserved.';
comment on column inventory.version is 'Grows with every change, of quantities too: says whether the row is still what somebody has read.';
comment on column inventory.reorder_point is 'At or below this many units that can be sold the row counts as low stock.';

create table stock_movements (
    id bigint generated always as identity,
    correlation_id uuid not null default new_id(),
    warehouse_id uuid not null,
    product_id uuid not null,
    movement_type movement_type not null,
    quantity integer not null,
    available_after integer not null,
    reserved_after integer not null,
    reference_type text,
    reference_id uuid,
    notes note,
    actor text,
    created_at timestamptz not null default clock(),
    constraint stock_movements_happen_once
    primary key (correlation_id, movement_type, product_id, warehouse_id) with (fillfactor = 50),
    constraint stock_movements_quantity_is_signed_by_type
    check (quantity > 0 or (movement_type = 'adjust' and quantity < 0) or (movement_type = 'balance' and quantity = 0)),
    constraint stock_movements_reference_type_is_bounded check (length(reference_type) <= 50)
);
create index stock_movements_newest_idx on stock_movements (id);
create index stock_movements_history_idx on stock_movements (product_id, warehouse_id, id);
create index stock_movements_reference_idx on stock_movements (reference_id)
where reference_id is not null;
-- What people have moved, and no saga; and how much that is, as sagas_stuck_stats.
create index stock_movements_by_hand_idx on stock_movements (movement_type, id)
where movement_type in ('receive', 'transfer_out', 'transfer_in', 'adjust');
create statistics stock_movements_by_hand_stats
on (movement_type in ('receive', 'transfer_out', 'transfer_in', 'adjust')) from stock_movements;
create index stock_movements_time_idx on stock_movements using brin (created_at)
with (autosummarize = on);
comment on table stock_movements is
    'The ledger: append-only, one row per change of stock, with the quantities after it.';
comment on column stock_movements.correlation_id is
    'The operation this row belongs to; a movement of a saga carries the id of its order. Repeating an operation adds nothing.';
comment on column stock_movements.movement_type is
    'balance: an opening balance, in the place of older movements that retention has removed.';
comment on column stock_movements.quantity is
    'Units moved: positive, except for adjust, which is signed; of a balance, the units that were there.';
comment on column stock_movements.available_after is 'quantity_available of the inventory row after this movement.';
comment on column stock_movements.reserved_after is 'quantity_reserved of the inventory row after this movement.';

-- Why units were written off or found. Users add reasons of their own.
create table adjustment_reasons (
    code text not null,
    description note,
    created_at timestamptz not null default clock(),
    constraint adjustment_reasons_pkey primary key (code),
    constraint adjustment_reasons_code_is_a_word check (code ~ '^[a-z][a-z0-9_]{0,49}$')
);
comment on table adjustment_reasons is 'The reasons that an adjustment may have. Add your own; one that a movement has stays.';

insert into adjustment_reasons (code, description) values
('correction', 'A mistake in the books'),
('count', 'A stock-take found another number'),
('damaged', 'Broken, or not fit for sale'),
('expired', 'Past its date'),
('found', 'Turned up'),
('lost', 'Not to be found'),
('sample', 'Given away, or used ourselves'),
('theft', 'Stolen');

-- Apart from the ledger, whose rows are nearly all of orders and have none.
create table movement_reasons (
    correlation_id uuid not null,
    product_id uuid not null,
    warehouse_id uuid not null,
    reason_code text not null references adjustment_reasons (code),
    constraint movement_reasons_pkey primary key (correlation_id, product_id, warehouse_id)
);
create index movement_reasons_code_idx on movement_reasons (reason_code);
comment on table movement_reasons is 'The reason of each adjust movement that has one, under the key of the movement.';

-- What customers asked for. Inserting an order, with its lines in the same
-- transaction, is all it takes: triggers price the lines, add them up, start
-- the saga and ring the bell.

create table orders (
    id uuid not null default new_id(),
    warehouse_id uuid not null references warehouses (id),
    order_number bigint generated always as identity (maxvalue 1999999999999),
    customer_id customer_id,
    status order_status not null default 'pending',
    currency currency_code not null default 'USD',
    total_amount amount not null default 0,
    notes note,
    placed_in xid8 not null default pg_current_xact_id(),
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    pay_by timestamptz,
    constraint orders_pkey primary key (id, warehouse_id),
    constraint orders_number_is_unique unique (order_number)
) with (fillfactor = 50);
create index orders_customer_idx on orders (customer_id, id) where customer_id is not null;
create index orders_time_idx on orders using brin (created_at) with (autosummarize = on);
comment on table orders is 'One row per order. Insert it with its order_items in one transaction; its saga does the rest.';
comment on column orders.order_number is 'A short number for people. The database gives it; no two orders share one.';
comment on column orders.customer_id is 'Whose order it is: the subject of the customer''s tokens, to the letter.';
comment on column orders.status is 'Set by the saga alone, and only along the allowed transitions.';
comment on column orders.total_amount is 'Always the sum of the lines and adjustments, in major units of currency.';
comment on column orders.placed_in is 'The transaction that placed the order; only it may add lines.';
comment on column orders.pay_by is
    'Until when its stock is held while it waits for its payment, or for another after one was declined. Null: it is paid at once.';

create table order_items (
    id bigint generated always as identity,
    order_id uuid not null,
    warehouse_id uuid not null,
    product_id uuid not null references products (id),
    quantity integer not null,
    unit_price amount not null,
    line_total numeric not null generated always as (quantity * unit_price) stored,
    metadata metadata,
    constraint order_items_pkey primary key (order_id, warehouse_id, id),
    constraint order_items_quantity_is_sane check (quantity between 1 and 1000000)
);
comment on table order_items is 'The lines of an order; frozen once the order is placed.';
comment on column order_items.order_id is
    'An order of the same transaction and warehouse: the trigger that adds the lines up refuses any other.';
comment on column order_items.unit_price is
    'Taken from the catalogue when left out. Only service_role may set another.';
comment on column order_items.metadata is 'The shop''s own, such as what is engraved; customers can''t write it.';

create table order_adjustments (
    id bigint generated always as identity,
    order_id uuid not null,
    warehouse_id uuid not null,
    item_id bigint,
    kind adjustment_kind not null,
    label text not null,
    amount signed_amount not null,
    constraint order_adjustments_pkey primary key (order_id, warehouse_id, id),
    constraint order_adjustments_sign_is_that_of_the_kind
    check (case kind when 'discount' then amount <= 0 else amount >= 0 end),
    constraint order_adjustments_label_is_short_and_not_blank check (is_visible(label) and length(label) <= 255)
);
comment on table order_adjustments is
    'What an order costs beside its lines: shipping, discounts, taxes, fees. Written with the order, and frozen once it is placed.';
comment on column order_adjustments.order_id is
    'An order of the same transaction and warehouse: the trigger that adds adjustments up refuses any other.';
comment on column order_adjustments.item_id is 'The line that it is of; null: the whole order''s.';
comment on column order_adjustments.amount is 'In major units of the order''s currency; of a discount 0 or less, else 0 or more.';

-- Stands apart from orders, which the engine rewrites at each step. No foreign key holds a row to
-- its order: a trigger looks, orders never change their keys, and retention removes both.
create table order_particulars (
    order_id uuid not null,
    warehouse_id uuid not null,
    reference text,
    email email_address,
    shipping_address postal_address,
    billing_address postal_address,
    metadata metadata not null default '{}',
    updated_at timestamptz not null default clock(),
    version bigint not null default 1,
    constraint order_particulars_pkey primary key (order_id, warehouse_id),
    constraint order_particulars_reference_is_unique unique (reference),
    constraint order_particulars_reference_is_short check (length(reference) between 1 and 100),
    constraint order_particulars_reference_is_visible_throughout check (is_visible_throughout(reference)),
    constraint order_particulars_reference_is_normalized_nfc check (reference is nfc normalized)
);
create index order_particulars_email_idx on order_particulars (email) where email is not null;
comment on table order_particulars is
    'What orders are for: the shop''s reference, where to send what. Only orders that say so have a row; it changes until the order has ended.';
comment on column order_particulars.reference is 'The shop''s own name for the order; no two orders share one.';
comment on column order_particulars.metadata is 'The shop''s own, for its programs; nothing here reads it.';
comment on column order_particulars.version is 'Grows with every change: says whether the row is still what somebody has read.';

-- A return is its movements; this is what the shop says of it. A function that looks stands for
-- foreign keys.
create table return_metadata (
    order_id uuid not null,
    return_id uuid not null,
    warehouse_id uuid not null,
    metadata metadata not null,
    constraint return_metadata_pkey primary key (order_id, return_id, warehouse_id)
);
comment on table return_metadata is 'The shop''s own of returns, for its programs; nothing here reads it. Written by describe_return().';

-- Parcels: what has left of an order of a warehouse that ships them, or is to leave as soon as
-- the money for it is there. Written by ship_items() alone.
create table shipments (
    id uuid not null default new_id(),
    order_id uuid not null,
    warehouse_id uuid not null,
    carrier text,
    tracking_number text,
    tracking_url text,
    actor text,
    created_at timestamptz not null default clock(),
    shipped_at timestamptz,
    constraint shipments_pkey primary key (id, warehouse_id),
    constraint shipments_carrier_is_short_and_not_blank check (is_visible(carrier) and length(carrier) <= 100),
    constraint shipments_tracking_number_is_short_and_not_blank
    check (is_visible(tracking_number) and length(tracking_number) <= 100),
    constraint shipments_tracking_url_is_a_web_address
    check (tracking_url ~ '^https?://\S+$' and length(tracking_url) <= 2000)
);
create index shipments_order_idx on shipments (order_id, id);
comment on table shipments is 'The parcels of orders. The units of one leave the ledger under its id.';
comment on column shipments.shipped_at is
    'When its units left the shelves. Null: not yet, since the money of the order is just being captured, or never, since that was declined.';

create table shipment_items (
    shipment_id uuid not null,
    order_id uuid not null,
    warehouse_id uuid not null,
    product_id uuid not null,
    quantity integer not null,
    constraint shipment_items_pkey primary key (order_id, shipment_id, product_id, warehouse_id),
    constraint shipment_items_quantity_is_positive check (quantity > 0)
);
comment on table shipment_items is 'What is in each parcel.';

-- Apart from orders, of which nearly all are in no group.
create table grouped_orders (
    order_id uuid not null,
    warehouse_id uuid not null,
    group_id uuid not null,
    constraint grouped_orders_pkey primary key (order_id, warehouse_id)
);
create index grouped_orders_group_idx on grouped_orders (group_id);
comment on table grouped_orders is
    'Orders that were placed together, since no single warehouse could serve all of it. The group has the id of its first order.';

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

-- Money. One payment per order, written before the gateway is called (the
-- intent, with its idempotency key) and again with the answer. Refunds of
-- fulfilled orders have rows of their own, and so has what gateways report.

create table payments (
    order_id uuid not null,
    warehouse_id uuid not null,
    status payment_status not null default 'requested',
    currency currency_code not null,
    requested_amount amount not null,
    authorized_amount amount not null default 0,
    captured_amount amount not null default 0,
    refunded_amount amount not null default 0,
    voided_amount amount not null default 0,
    gateway text,
    gateway_reference text,
    decline_code text,
    idempotency_key text not null,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    client_action client_action,
    constraint payments_pkey primary key (order_id, warehouse_id),
    constraint payments_amounts_add_up
    check (amounts_add_up(requested_amount, authorized_amount, captured_amount, refunded_amount, voided_amount))
) with (fillfactor = 45);
create index payments_reference_idx on payments using brin (gateway_reference text_bloom_ops (n_distinct_per_range = 400))
with (autosummarize = on, pages_per_range = 16);
comment on table payments is 'What was asked, authorised, captured, refunded and voided for each order, in major units.';
comment on column payments.idempotency_key is 'Sent with every call for this charge, so that asking again never charges again.';
comment on column payments.gateway is 'Who took it; ''manual'': it came by other means, and no gateway knows of it.';
comment on column payments.client_action is
    'While it is pending: what the payer has to do first, such as a page of the bank to go to. In the gateway''s terms.';

-- Stands apart, since hardly any order has a row.
create table payment_attempts (
    order_id uuid not null,
    warehouse_id uuid not null,
    idempotency_key text not null,
    status payment_status not null,
    captured_amount amount not null default 0,
    refunded_amount amount not null default 0,
    gateway text,
    gateway_reference text,
    decline_code text,
    ended_at timestamptz not null,
    constraint payment_attempts_pkey primary key (order_id, idempotency_key, warehouse_id),
    constraint payment_attempts_give_back_what_they_took check (refunded_amount <= captured_amount)
);
comment on table payment_attempts is
    'Charges of orders that came to nothing before another was tried: declined, or given up and voided, each under a key of its own. The last one is the order''s payment.';
comment on column payment_attempts.idempotency_key is 'Under which the gateway knows the charge. It stands for that one alone, for ever.';
comment on column payment_attempts.status is 'declined, voided or refunded; captured while money that turned up late is on its way back.';

create table payment_tokens (
    order_id uuid not null,
    warehouse_id uuid not null,
    token text not null,
    constraint payment_tokens_pkey primary key (order_id, warehouse_id),
    constraint payment_tokens_order_exists
    foreign key (order_id, warehouse_id) references orders (id, warehouse_id),
    constraint payment_tokens_are_bounded check (length(token) between 1 and 500)
);
comment on table payment_tokens is
    'The payer''s means of payment, in the gateway''s terms. Written by place_order(), read by nobody but the engine, removed when the saga has ended.';

create table refunds (
    id uuid not null default new_id(),
    order_id uuid not null,
    warehouse_id uuid not null,
    status refund_status not null default 'requested',
    amount amount not null,
    currency currency_code not null,
    reason note,
    despite_dispute boolean not null default false,
    gateway text,
    gateway_reference text,
    decline_code text,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    metadata metadata,
    breakdown jsonb,
    payment_key text,
    constraint refunds_pkey primary key (id, warehouse_id),
    constraint refunds_payment_exists
    foreign key (order_id, warehouse_id) references payments (order_id, warehouse_id),
    constraint refunds_give_something_back check (amount > 0)
);
create index refunds_order_idx on refunds (order_id, id);
create index refunds_failed_idx on refunds (updated_at) where status = 'failed';
comment on table refunds is
    'Money given back, wholly or in part: of fulfilled orders, and of cancelled ones what turned up late. Each has a saga with its id.';
comment on column refunds.status is 'failed: the gateway said refunded, and later that it came to nothing. Declined and failed are final.';
comment on column refunds.despite_dispute is 'Whoever asked for it knew that the payment is disputed, and said to pay all the same.';
comment on column refunds.breakdown is
    'Of which lines and adjustments it is, [{"item_id", "quantity", "amount"}, {"adjustment_id", "amount"}, …], where that was said; it adds up to amount.';
comment on column refunds.payment_key is
    'Of which of payment_attempts the money is; null, as nearly always: of the order''s payment.';
comment on column refunds.metadata is 'The shop''s own, for its programs; nothing here reads it.';
comment on column refunds.gateway is 'Who paid it; ''by hand'': a person, at the gateway; ''other means'': a person, elsewhere.';

create table disputes (
    order_id uuid not null,
    warehouse_id uuid not null,
    reference text not null,
    gateway text not null,
    status dispute_status not null,
    amount amount not null,
    currency currency_code not null,
    reason note,
    opened_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint disputes_pkey primary key (order_id, reference, warehouse_id),
    constraint disputes_are_bounded check (length(reference) between 1 and 255 and length(gateway) <= 50)
);
create index disputes_open_idx on disputes (opened_at) where status = 'open';
comment on table disputes is 'Payments that the payer''s bank wants back, as gateways tell it. Money of one that isn''t won may be gone already.';
comment on column disputes.reference is 'The gateway''s own name for the dispute.';

create table gateway_events (
    gateway text not null,
    event_id text not null,
    idempotency_key text,
    answer jsonb not null,
    disposition disposition not null,
    received_at timestamptz not null default clock(),
    constraint gateway_events_pkey primary key (gateway, event_id),
    constraint gateway_events_are_bounded
    check (
        length(gateway) <= 50 and length(event_id) between 1 and 255
        and length(idempotency_key) <= 255 and octet_length(answer::text) <= 10000
    )
);
create index gateway_events_unmatched_idx on gateway_events (received_at) where disposition = 'unmatched';
create index gateway_events_saga_idx on gateway_events (split_part(idempotency_key, ':', 1)) where idempotency_key is not null;
comment on table gateway_events is 'What gateways sent by webhook: each event once, with what became of it.';
comment on column gateway_events.idempotency_key is 'Of the call that the event answers.';
comment on column gateway_events.disposition is
    'applied: the answer was news; stale: it changed nothing; unmatched: it belongs to nothing we know, or contradicts it, and wants a look; acknowledged: it had one.';

-- Requests that clients may repeat: what was answered under which key. A row is
-- written in the transaction of the effect, so that there is either both or
-- neither.

create table idempotency_keys (
    caller text not null,
    idempotency_key text not null,
    request_hash bytea not null,
    response text not null,
    created_at timestamptz not null default clock(),
    constraint idempotency_keys_pkey primary key (caller, idempotency_key),
    constraint idempotency_keys_key_is_bounded check (length(idempotency_key) between 1 and 255),
    constraint idempotency_keys_request_hash_is_sha256 check (octet_length(request_hash) = 32)
);
create index idempotency_keys_age_idx on idempotency_keys (created_at);
comment on table idempotency_keys is
    'Requests that were answered, each written with its effect; nobody reads it but begin_request().';
comment on column idempotency_keys.caller is 'Whose key it is: the role, and the subject or the login.';
comment on column idempotency_keys.request_hash is 'SHA-256 of what was asked; the same key may not ask for something else.';
comment on column idempotency_keys.response is 'The JSON document that was answered.';

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

-- What others are told of. The feed is read from saga_events; here stands what is written nowhere
-- else: shelves that have run low, and whom webhooks are sent to. Of a webhook that came
-- through nothing is kept but how far its endpoint has come; one that failed has a row until it has.

-- What the feed tells. order.shipped is of each parcel, order.returned of each return.
create type feed_topic as enum (
    'order.placed', 'order.paid', 'order.shipped', 'order.fulfilled', 'order.returned', 'order.cancelled',
    'payment.failed', 'payment.disputed', 'refund.settled', 'saga.stuck', 'stock.low'
);

-- Its ids are of the sequence of saga_events: one order for all that the feed tells.
create table stock_alerts (
    id bigint not null default nextval('saga_events_id_seq'),
    warehouse_id uuid not null,
    product_id uuid not null,
    quantity_sellable integer not null,
    reorder_point stock_level not null,
    created_at timestamptz not null default clock(),
    constraint stock_alerts_pkey primary key (id, warehouse_id),
    constraint stock_alerts_are_of_low_shelves check (quantity_sellable between 0 and reorder_point)
);
comment on table stock_alerts is
    'Shelves that ran low: one row each time that what can be sold came down to the reorder point. Append-only.';

create table webhook_endpoints (
    id uuid not null default new_id(),
    url text not null,
    topics feed_topic[],
    secret text not null,
    previous_secret text,
    previous_secret_until timestamptz,
    is_enabled boolean not null default true,
    off_because text,
    position bigint not null,
    is_from_home boolean not null default false,
    failing_since timestamptz,
    last_error text,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    version bigint not null default 1,
    constraint webhook_endpoints_pkey primary key (id),
    constraint webhook_endpoints_url_is_http
    check (
        length(url) <= 2000
        and url ~ '^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][\u0021\u0022\u0024-\u007e]*)?$'
    ),
    constraint webhook_endpoints_topics_are_some check (cardinality(topics) between 1 and 50),
    constraint webhook_endpoints_are_on_or_say_why check (not (is_enabled and off_because is not null))
);
comment on table webhook_endpoints is 'Whom webhooks are sent to. Made by create_webhook_endpoint(), which alone tells the secret.';
comment on column webhook_endpoints.topics is 'What it is told of the feed; null: everything.';
comment on column webhook_endpoints.secret is 'Signs what is sent, as Standard Webhooks has it. Read by the service that sends and by nobody else.';
comment on column webhook_endpoints.previous_secret is 'The one before, which signs too until previous_secret_until, so that receivers can change over.';
comment on column webhook_endpoints.off_because is 'Why the service switched it off.';
comment on column webhook_endpoints.position is 'All of the feed up to this id was sent, or has a row in webhook_retries.';
comment on column webhook_endpoints.is_from_home is 'In another cell: it was made at home, and is kept as it is there.';
comment on column webhook_endpoints.failing_since is 'Nothing has come through since. Null while something does.';

create table webhook_retries (
    endpoint_id uuid not null,
    event_id bigint not null,
    subject uuid not null,
    body text not null,
    attempts smallint not null,
    last_error text,
    first_failed_at timestamptz not null default clock(),
    next_attempt_at timestamptz not null default clock(),
    given_up_at timestamptz,
    constraint webhook_retries_pkey primary key (endpoint_id, event_id),
    constraint webhook_retries_endpoint_exists
    foreign key (endpoint_id) references webhook_endpoints (id) on delete cascade
);
comment on table webhook_retries is
    'Webhooks that did not come through: each is tried for a day, and what comes after it of the same subject waits for it.';
comment on column webhook_retries.subject is 'What it is about: an order, a saga, a product. In the order of its events.';
comment on column webhook_retries.given_up_at is 'It was tried for a day. replay_webhooks() sends it again.';

-- What operators look at and do at large: which listeners there are and what they are at, what
-- steps took from minute to minute, and actions on many sagas at once, each with its result.

-- A circuit breaker of a listener: half open, one call is made to see.
create type breaker_state as enum ('closed', 'half_open', 'open');

-- What is done to all that a filter finds: see the functions of these names.
create type batch_action as enum ('retry_sagas', 'skip_steps', 'cancel_orders', 'resume_sagas', 'ack_gateway_events');

create type batch_result as enum ('done', 'failed');

-- A row is rewritten every few seconds for as long as its listener lives. No index has what
-- changes, and the page keeps room, so that it never leaves it.
create table listeners (
    id uuid not null,
    host text not null,
    process_id integer not null,
    version text not null,
    gateway text not null,
    breaker breaker_state not null,
    activity text not null,
    activity_since timestamptz not null,
    started_at timestamptz not null default clock(),
    last_seen_at timestamptz not null default clock(),
    constraint listeners_pkey primary key (id),
    constraint listeners_are_bounded check (
        length(host) <= 255 and length(version) <= 100 and length(gateway) <= 50 and length(activity) <= 100
    )
) with (fillfactor = 20, autovacuum_vacuum_threshold = 500);
comment on table listeners is
    'The listeners: one row each, rewritten every few seconds, also while it waits or sleeps. One that stops as it should takes its row away.';
comment on column listeners.activity is 'advance or settle: a pass is under way; idle; backing off, and after which failure.';
comment on column listeners.activity_since is 'Since when it has been at that.';
comment on column listeners.last_seen_at is 'Older than 15 seconds: it is dead, frozen or cut off. A pass that is blocked keeps it from nothing.';

create table step_minutes (
    minute timestamptz not null,
    step_name text not null,
    event_type saga_event_type not null,
    events bigint not null,
    seconds double precision not null,
    buckets smallint[] not null,
    counts bigint[] not null,
    constraint step_minutes_pkey primary key (minute, step_name, event_type),
    constraint step_minutes_are_whole check (minute = date_trunc('minute', minute, 'UTC')),
    constraint step_minutes_buckets_have_counts check (cardinality(buckets) = cardinality(counts))
);
comment on table step_minutes is
    'What saga_events says of each minute, added up: how often what happened, and how long it took. Written by housekeeping, see step_statistics().';
comment on column step_minutes.step_name is 'The step or undo; empty for what sagas do as a whole. Each minute that was counted has saga_started, be it 0.';
comment on column step_minutes.seconds is 'All durations together, of events that have one.';
comment on column step_minutes.buckets is 'The buckets of durations that are not empty, see seconds_bucket(); counts says how many are in each.';

create table batches (
    id uuid not null default new_id(),
    action batch_action not null,
    filter jsonb not null,
    reason note not null,
    actor text not null,
    pace_per_second integer not null,
    total bigint not null,
    position bigint not null default 0,
    done bigint not null default 0,
    failed bigint not null default 0,
    created_at timestamptz not null default clock(),
    next_at timestamptz not null default clock(),
    finished_at timestamptz,
    stopped_by text,
    constraint batches_pkey primary key (id),
    constraint batches_pace_is_sane check (pace_per_second between 1 and 1000),
    constraint batches_do_no_more_than_all check (done >= 0 and failed >= 0 and done + failed <= total)
) with (fillfactor = 50);
create index batches_open_idx on batches (created_at) where finished_at is null;
comment on table batches is
    'Actions on many at once: retry_sagas(), skip_steps(), cancel_orders(), resume_sagas(), ack_gateway_events(). Listeners work them off.';
comment on column batches.position is 'Items up to this n are done with; those that met somebody else''s lock were put behind the last.';
comment on column batches.next_at is 'When the next items are due, by the pace.';
comment on column batches.stopped_by is 'Who stopped it before its end, by stop_batch().';

create table batch_items (
    batch_id uuid not null,
    n bigint not null,
    saga_id uuid,
    gateway text,
    event_id text,
    tries smallint not null default 0,
    result batch_result,
    error_code text,
    message text,
    ended_at timestamptz,
    constraint batch_items_pkey primary key (batch_id, n),
    constraint batch_items_batch_exists foreign key (batch_id) references batches (id) on delete cascade,
    constraint batch_items_are_sagas_or_events check ((saga_id is null) = (gateway is not null and event_id is not null)),
    constraint batch_items_end_with_a_result check ((result is null) = (ended_at is null))
) with (fillfactor = 70);
comment on table batch_items is 'What each batch is about, in its order, and what became of each. Without a result: not yet.';
comment on column batch_items.tries is 'How often it met somebody else''s lock.';
comment on column batch_items.error_code is 'SQLSTATE of why it failed; class DP is ours.';
