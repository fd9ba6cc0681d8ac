"""The doctor: asks a running system one question after the other, and says how to mend it.

A check is a function of a patient that gives a verdict; its name is the line's, its docstring what
a person knows when it is fine. To add one, write it in the file of its kind and name it in CHECKS
there, and give it its section in the run book of docs/operations.md. Those that a restore
needs besides have their rows there.
"""

from darkpearl.doctor import (
    listening,
    money,
    release,
    restore,
    server,
    sessions,
    several,
    storage,
    work,
)  # fmt: skip
from darkpearl.doctor.check import Check, Finding, Patient, State, examine, name_of

CHECKS: tuple[Check, ...] = (
    *server.CHECKS,
    *release.CHECKS,
    *listening.CHECKS,
    *work.CHECKS,
    *money.CHECKS,
    *sessions.CHECKS,
    *storage.CHECKS,
)
"""In the order of the lines; the first is asked alone, since without it there is no other."""
DEEP: tuple[Check, ...] = release.DEEP
"""Checks that make a database of their own on the server, and take longer."""
CELLS: tuple[Check, ...] = several.CELLS
"""Checks of each cell, where there are several."""
AFTER_RESTORE: tuple[Check, ...] = (
    *(server.connection, restore.recovery, server.version, server.clocks),
    *(release.migrations, restore.owners, restore.roles, release.routines),
    *(server.listener_login, server.api_login, release.indexes, restore.counters),
    *(storage.partitions, storage.default_partition, restore.analysed, server.statistics),
    *(restore.collation, restore.subscriptions, restore.cells),
    *(sessions.prepared, sessions.replication_slots),
    *(restore.nobody_at_work, listening.idle_lock, restore.moment, restore.under_way),
    *(restore.batches, money.pause, money.gateway, restore.payments, restore.webhooks),
    *(restore.requests, restore.books),
)
"""Of a database that was restored, before listeners start: in the order in which it is mended."""

__all__ = [
    "AFTER_RESTORE",
    "CELLS",
    "CHECKS",
    "DEEP",
    "Check",
    "Finding",
    "Patient",
    "State",
    "examine",
    "name_of",
]
