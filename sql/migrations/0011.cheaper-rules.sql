-- The same rules for less. Lines are bound to their order by the trigger that adds
-- them up; bounds of single columns are types, which are checked when the column
-- is written; what rests is told by one comparison.
-- depends: 0010.fewer-calls
-- squawk-ignore-file ban-drop-constraint, ban-drop-view, changing-column-type, constraint-missing-not-valid
-- (a table whose column gets such a type is written anew; nothing large is there before the first
-- release. routines/ bring the view back)

set local role darkpearl_owner;
set local search_path = darkpearl, pg_temp;

alter table order_items drop constraint order_items_order_exists;
comment on column order_items.order_id is
    'An order of the same transaction and warehouse: the trigger that adds the lines up refuses any other.';

drop view if exists audit;
create domain note as text
constraint note_is_bounded check (length(value) <= 2000);
alter table orders drop constraint orders_notes_are_bounded, alter column notes type note;
alter table stock_movements drop constraint stock_movements_notes_are_bounded, alter column notes type note;
alter table refunds drop constraint refunds_reason_is_bounded, alter column reason type note;

create domain stock_level as integer
constraint stock_level_is_sane check (value between 0 and 1000000000);
drop trigger if exists inventory_count_versions on inventory;
alter table inventory
drop constraint inventory_reorder_point_is_sane,
drop constraint inventory_reorder_quantity_is_sane,
alter column reorder_point type stock_level,
alter column reorder_quantity type stock_level;

alter table sagas
drop constraint sagas_rest_when_they_end,
add constraint sagas_rest_when_they_end check ((status >= 'completed') = (ready_at is null));
