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
