"""Databases that divide the warehouses among them: how one joins, and how they are.

docs/decisions/cells.md says why, docs/cells.md how. Home, the first, is written to; what all share
is replicated from there to each cell by PostgreSQL, through

    darkpearl_catalogue    the publication at home, and the subscription in each cell
    darkpearl_cell_<n>     the slot at home that keeps what cell n has not had yet
"""

from darkpearl.cells.joining import CellError, add, refuse_reset, remove
from darkpearl.cells.states import states

__all__ = ["CellError", "add", "refuse_reset", "remove", "states"]
