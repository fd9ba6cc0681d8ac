"""Databases that divide the warehouses among them: how one joins, and how they are.

docs/decisions/cells.md says why, docs/cells.md how. Home, the first, is written to; what all share
is replicated from there to each cell by PostgreSQL, through

    darkpearl_catalogue    the publication at home, and the subscription in each cell
    darkpearl_cell_<n>     the slot at home that keeps what cell n has not had yet
    darkpearl_move_<id>    the publication, slot and subscription of a warehouse on its way

What of all cells is read in one query, views.py makes at the database that is asked.
"""

from darkpearl.cells.joining import add, refuse_reset
from darkpearl.cells.leaving import remove
from darkpearl.cells.moving import move, undo
from darkpearl.cells.replication import CellError
from darkpearl.cells.states import states
from darkpearl.cells.views import VIEWS, drop_views, make_views

__all__ = [
    "VIEWS",
    "CellError",
    "add",
    "drop_views",
    "make_views",
    "move",
    "refuse_reset",
    "remove",
    "states",
    "undo",
]
