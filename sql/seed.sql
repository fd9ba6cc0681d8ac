-- Demo data: two warehouses, a few products, some stock. Applied once, to a
-- database that holds nothing; every id is fixed, so that examples can name them.

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

insert into warehouses (id, code, name, address) values
('11111111-1111-1111-1111-111111111111', 'LIS-1', 'Lisbon harbour', 'Doca de Alcântara, Lisbon'),
('22222222-2222-2222-2222-222222222222', 'RTM-1', 'Rotterdam north', 'Waalhaven 12, Rotterdam');

insert into products (id, sku, name, description, unit_price) values
('aaaa1111-1111-1111-1111-111111111111', 'LAPTOP-14', 'Laptop, 14 inch', 'Aluminium, 32 GB.', 999.99),
('aaaa2222-2222-2222-2222-222222222222', 'MOUSE-BT', 'Mouse, Bluetooth', 'Quiet, three buttons.', 29.90),
('aaaa3333-3333-3333-3333-333333333333', 'KEYB-ISO', 'Keyboard, ISO layout', 'Low profile, backlit.', 89.00),
('aaaa4444-4444-4444-4444-444444444444', 'SCREEN-27', 'Screen, 27 inch', '4K, height adjustable.', 429.00),
('aaaa5555-5555-5555-5555-555555555555', 'PEARL-BLK', 'Black pearl', 'One of a kind: the shelf holds a single one.', 4800.00);

select receive_stock(s.warehouse_id, s.product_id, s.quantity, new_id(), 'opening stock')
from (
    values
    ('11111111-1111-1111-1111-111111111111'::uuid, 'aaaa1111-1111-1111-1111-111111111111'::uuid, 500),
    ('11111111-1111-1111-1111-111111111111', 'aaaa2222-2222-2222-2222-222222222222', 2000),
    ('11111111-1111-1111-1111-111111111111', 'aaaa3333-3333-3333-3333-333333333333', 1500),
    ('11111111-1111-1111-1111-111111111111', 'aaaa4444-4444-4444-4444-444444444444', 300),
    ('11111111-1111-1111-1111-111111111111', 'aaaa5555-5555-5555-5555-555555555555', 1),
    ('22222222-2222-2222-2222-222222222222', 'aaaa1111-1111-1111-1111-111111111111', 200),
    ('22222222-2222-2222-2222-222222222222', 'aaaa2222-2222-2222-2222-222222222222', 800)
) as s (warehouse_id, product_id, quantity);
