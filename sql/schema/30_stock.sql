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

-- Goods that go to a warehouse of another cell: gone here, and not there yet, or back.
create type transfer_status as enum ('in_transit', 'arrived', 'undone');

-- No row where one database has all warehouses: there goods come in as they go out.
create table transfers (
    id uuid not null,
    warehouse_id uuid not null references warehouses (id),
    to_warehouse_id uuid not null references warehouses (id),
    product_id uuid not null references products (id),
    quantity integer not null,
    status transfer_status not null default 'in_transit',
    refusal note,
    notes note,
    created_at timestamptz not null default clock(),
    updated_at timestamptz not null default clock(),
    constraint transfers_pkey primary key (id, warehouse_id),
    constraint transfers_have_two_ends check (warehouse_id <> to_warehouse_id),
    constraint transfers_move_something check (quantity > 0),
    constraint transfers_that_arrived_were_not_refused check (status <> 'arrived' or refusal is null)
);
create index transfers_newest_idx on transfers (created_at, id);
create index transfers_in_transit_idx on transfers (product_id, to_warehouse_id) where status = 'in_transit';
comment on table transfers is 'Goods sent to a warehouse of another cell, in the cell that they left. Each has a saga with its id.';
comment on column transfers.id is 'The correlation id of its movements, in both cells.';
comment on column transfers.warehouse_id is 'Where the goods left; what is undone is there again.';
comment on column transfers.status is 'in_transit: on the shelf of neither. Arrived and undone are final.';
comment on column transfers.refusal is 'Why it was refused there, or called back; null for one that wasn''t.';

-- What another cell's transfers came to here: decided once, by whoever asks first.
create table transfer_arrivals (
    transfer_id uuid not null,
    warehouse_id uuid not null references warehouses (id),
    from_warehouse_id uuid not null references warehouses (id),
    product_id uuid not null references products (id),
    quantity integer not null,
    refusal note,
    created_at timestamptz not null default clock(),
    constraint transfer_arrivals_pkey primary key (transfer_id, warehouse_id),
    constraint transfer_arrivals_bring_something check (quantity > 0)
);
create index transfer_arrivals_refused_idx on transfer_arrivals (created_at) where refusal is not null;
comment on table transfer_arrivals is 'What became of transfers from other cells: one that is refused here never comes in, however late it is asked for again.';
comment on column transfer_arrivals.refusal is 'Why it was not let in; null: its goods are here.';
