"""Imports: many rows in one request, as JSON or as CSV, all of them or none."""

from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Router, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, QueryParameter
from litestar.status_codes import HTTP_200_OK

from darkpearl import csvfile
from darkpearl.api import access
from darkpearl.api.access import Caller
from darkpearl.api.bodies import JsonResponse
from darkpearl.api.idempotency import Once
from darkpearl.api.problems import refusals
from darkpearl.api.routing import CATALOGUE, Routed
from darkpearl.errors import BadRequestError, FieldError, InvalidError
from darkpearl.models.imports import (
    Imported,
    ImportedRow,
    ImportInventory,
    ImportMovements,
    ImportOrders,
    ImportProducts,
    InventoryRow,
    MovementRow,
    OrderRow,
    ProductRow,
)

Body = TypeVar("Body", bound=msgspec.Struct)
SkipBad = Annotated[bool, QueryParameter(description="Leave bad rows out, and import the rest")]

_IMPORT = "select * from import_rows(%(kind)s, %(rows)s, %(skip_bad)s)"
_CELL = "select cell_of_rows(%(rows)s) as cell"
_READ_ONLY = ["created_at", "status"]
"""Columns that only an export has."""
_BAD_ROWS = "DP025"

_told = msgspec.json.Decoder(list[ImportedRow]).decode
_REFUSALS = refusals(400, 403, 409, 413, 415, 422)


def _of_csv(kind: type[Body], row: type[msgspec.Struct], body: bytes) -> Body:
    """A body in CSV, whose rows are known by their lines.

    Raises:
        BadRequestError: it is none.
    """
    columns = [*row.__struct_fields__, *_READ_ONLY]
    try:
        header, records = csvfile.read(body.splitlines(keepends=True), columns)
        rows = [
            {
                **dict(zip(header, each.fields, strict=True)),
                "line": each.line,
                "problem": each.problem,
            }
            for each in records
        ]
    except csvfile.CsvError as error:
        raise BadRequestError(f"The body can't be read as CSV: {error}.") from None
    return kind(rows=rows)  # as text: the database reads it


def _numbered(rows: list[Any]) -> list[dict[str, Any]]:
    """Rows as they are staged; those of JSON get their places in the array, from 1."""
    return [
        row if isinstance(row, dict) else {**msgspec.to_builtins(row, builtin_types=()), "line": at}
        for at, row in enumerate(rows, 1)
    ]


async def _import(
    caller: Caller, once: Once, kind: str, data: Any, *, skip_bad: bool
) -> JsonResponse[Imported]:
    """Import rows, all of them in one cell: that of the first row's warehouse."""
    rows = access.sent(_numbered(data.rows))
    if isinstance(caller, Routed) and kind != "products":
        anywhere = caller.in_cell(caller.cell, is_anywhere=True)
        found = await anywhere.run((_CELL, {"rows": rows}))
        if found and found["cell"] in caller.cells:
            caller.cell = found["cell"]
    try:
        done = await once.get(
            Imported, (_IMPORT, {"kind": kind, "rows": rows, "skip_bad": skip_bad})
        )
    except InvalidError as error:
        if error.code != _BAD_ROWS:
            raise
        wrong = [FieldError(f"row {each.row}", each.problem or "") for each in _told(error.detail)]
        raise InvalidError(
            "Some rows are bad, so nothing was imported.",
            title=error.title,
            code=error.code,
            hint="Correct the rows that errors names, or send skip_bad=true to leave them out.",
            errors=wrong,
        ) from error
    return once.answered(done)


@post(
    "/products",
    summary="Import products",
    status_code=HTTP_200_OK,
    responses=_REFUSALS,
    opt={"csv": partial(_of_csv, ImportProducts, ProductRow), "cells": CATALOGUE},
)
async def import_products(
    caller: NamedDependency[Caller],
    once: NamedDependency[Once],
    data: JSONBody[ImportProducts],
    *,
    skip_bad: SkipBad = False,
) -> JsonResponse[Imported]:
    """Make and change products by their SKUs; text/csv is taken too."""
    return await _import(caller, once, "products", data, skip_bad=skip_bad)


@post(
    "/inventory",
    summary="Import inventory",
    status_code=HTTP_200_OK,
    responses=_REFUSALS,
    opt={"csv": partial(_of_csv, ImportInventory, InventoryRow)},
)
async def import_inventory(
    caller: NamedDependency[Caller],
    once: NamedDependency[Once],
    data: JSONBody[ImportInventory],
    *,
    skip_bad: SkipBad = False,
) -> JsonResponse[Imported]:
    """Enter what was counted, and when to reorder; text/csv is taken too."""
    return await _import(caller, once, "inventory", data, skip_bad=skip_bad)


@post(
    "/movements",
    summary="Import movements",
    status_code=HTTP_200_OK,
    responses=_REFUSALS,
    opt={"csv": partial(_of_csv, ImportMovements, MovementRow)},
)
async def import_movements(
    caller: NamedDependency[Caller],
    once: NamedDependency[Once],
    data: JSONBody[ImportMovements],
    *,
    skip_bad: SkipBad = False,
) -> JsonResponse[Imported]:
    """Receive, adjust and transfer, in the order of the rows; text/csv is taken too."""
    return await _import(caller, once, "movements", data, skip_bad=skip_bad)


@post(
    "/orders",
    summary="Import orders",
    status_code=HTTP_200_OK,
    responses=_REFUSALS,
    opt={"csv": partial(_of_csv, ImportOrders, OrderRow)},
)
async def import_orders(
    caller: NamedDependency[Caller],
    once: NamedDependency[Once],
    data: JSONBody[ImportOrders],
    *,
    skip_bad: SkipBad = False,
) -> JsonResponse[Imported]:
    """Place orders, a row for each of their lines; text/csv is taken too."""
    return await _import(caller, once, "orders", data, skip_bad=skip_bad)


router = Router(
    "/imports",
    route_handlers=[import_products, import_inventory, import_movements, import_orders],
    tags=["imports"],
)
