"""`darkpearl db size`, `partitions` and `inspect`: how large things are, who is in whose way."""

import rich_click as click

from darkpearl.cli import asking, showing
from darkpearl.cli.statements import Statement
from darkpearl.config import Settings

_SIZES = Statement(
    """
    select
        c.relname as name,
        pg_size_pretty(sum(pg_total_relation_size(t.relid))) as total,
        pg_size_pretty(sum(pg_table_size(t.relid))) as rows_of_it,
        pg_size_pretty(sum(pg_indexes_size(t.relid))) as indexes,
        greatest(sum(k.reltuples), 0)::bigint as about_rows,
        sum(pg_total_relation_size(t.relid))::bigint as bytes
    from pg_class as c
    cross join lateral (
        select p.relid from pg_partition_tree(c.oid) as p where c.relkind = 'p' and p.isleaf
        union all
        select c.oid where c.relkind = 'r'
    ) as t
    inner join pg_class as k on k.oid = t.relid
    where c.relnamespace = 'darkpearl'::regnamespace and c.relkind in ('r', 'p')
        and not c.relispartition
    group by 1
    union all
    select 'the database', pg_size_pretty(d.bytes), null, null, null, d.bytes
    from (select pg_database_size(current_database()) as bytes) as d
""",
    "bytes desc",
)
SIZE_COLUMNS = ("name", "total", "rows_of_it", "indexes", "about_rows")
_PARTITIONS = Statement(
    """
    select
        c.relname as name, pg_get_expr(c.relpartbound, c.oid) as bounds,
        greatest(c.reltuples, 0)::bigint as about_rows,
        pg_size_pretty(pg_total_relation_size(c.oid)) as total,
        pg_total_relation_size(c.oid) as bytes
    from pg_inherits as i
    inner join pg_class as c on c.oid = i.inhrelid
    where i.inhparent = 'darkpearl.saga_events'::regclass
""",
    "name",
)
PARTITION_COLUMNS = ("name", "bounds", "about_rows", "total")
_LOCKS = Statement(
    """
    select pid, user_name, application, state, since, now() - since as for_so_long, holds, blocks
    from blocking_sessions()
""",
    "since nulls first",
)
LOCK_COLUMNS = ("pid", "user_name", "application", "state", "for_so_long", "holds", "blocks")
_LONG = Statement(
    """
    select
        pid, usename as user_name, application_name as application, state,
        now() - xact_start as for_so_long,
        greatest(age(backend_xmin), age(backend_xid)) as transactions,
        wait_event_type, left(query, 100) as query
    from pg_stat_activity
    where xact_start is not null and datname = current_database() and pid <> pg_backend_pid()
    union all
    select
        null, owner, 'prepared ' || gid, 'prepared', now() - prepared, age(transaction), null, null
    from pg_prepared_xacts where database = current_database()
    union all
    select
        active_pid, null, 'slot ' || slot_name, case when active then 'active' else 'unused' end,
        null, greatest(age(xmin), age(catalog_xmin)), null, null
    from pg_replication_slots where coalesce(xmin, catalog_xmin) is not null
""",
    "for_so_long desc nulls last, transactions desc",
)
LONG_COLUMNS = ("pid", "user_name", "application", "state", "for_so_long", "transactions", "query")
_BLOAT = Statement(
    """
    select
        relname as name, n_live_tup as live, n_dead_tup as dead,
        (100.0 * n_dead_tup / nullif(n_live_tup + n_dead_tup, 0))::float8 as dead_percent,
        greatest(last_vacuum, last_autovacuum) as last_vacuum,
        greatest(last_analyze, last_autoanalyze) as last_analyze,
        pg_size_pretty(pg_total_relation_size(relid)) as total
    from pg_stat_user_tables
    where schemaname = 'darkpearl'
""",
    "dead desc, name",
)
BLOAT_COLUMNS = ("name", "live", "dead", "dead_percent", "last_vacuum", "last_analyze", "total")


@click.command()
@showing.as_json
@click.pass_obj
def size(settings: Settings, *, as_json: bool) -> None:
    """Say how large the tables are, the largest first."""
    _show(settings, _SIZES, SIZE_COLUMNS, as_json=as_json, watch=None)


@click.command()
@showing.as_json
@click.pass_obj
def partitions(settings: Settings, *, as_json: bool) -> None:
    """List the partitions of the history."""
    _show(settings, _PARTITIONS, PARTITION_COLUMNS, as_json=as_json, watch=None)


@click.group(no_args_is_help=False)
def inspect() -> None:
    """See who is in whose way."""


@inspect.command()
@showing.as_json
@showing.watch
@click.pass_obj
def locks(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """List the sessions whose locks keep listeners from work, and whom they block."""
    _show(settings, _LOCKS, LOCK_COLUMNS, as_json=as_json, watch=watch)


@inspect.command(name="long")
@showing.as_json
@showing.watch
@click.pass_obj
def long_transactions(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """List open transactions, prepared ones, and replication slots that hold snapshots."""
    _show(settings, _LONG, LONG_COLUMNS, as_json=as_json, watch=watch)


@inspect.command()
@showing.as_json
@showing.watch
@click.pass_obj
def bloat(settings: Settings, *, as_json: bool, watch: float | None) -> None:
    """List tables by their dead rows, and when vacuum was there last."""
    _show(settings, _BLOAT, BLOAT_COLUMNS, as_json=as_json, watch=watch)


def _show(
    settings: Settings,
    statement: Statement,
    columns: tuple[str, ...],
    *,
    as_json: bool,
    watch: float | None,
) -> None:
    look = asking.finding(settings, statement)
    showing.show(look, columns, as_json=as_json, watch=watch)
