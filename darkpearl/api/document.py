"""The description of the API made exact: what the framework leaves out, and names that read well.

It works on the finished document, in place, and once is enough. A parameter that may be left out
can't be sent as null; a body takes no unknown fields, and amounts as numbers or as text; an enum is
a component of its own; a page is named by what it holds; every answer says which headers it has.
"""

import re
from typing import Any

from darkpearl.api.bodies import CSV, choices
from darkpearl.models.catalogue import FulfilmentMethod
from darkpearl.models.feed import Topic
from darkpearl.models.orders import AdjustmentKind, OrderStatus
from darkpearl.models.payments import (
    CaptureMethod,
    DisputeStatus,
    PaymentStatus,
    RefundStatus,
)
from darkpearl.models.sagas import SagaEventType, SagaStatus, SignalDisposition
from darkpearl.models.shipments import ShipmentStatus
from darkpearl.models.stock import MovementType, NewMovementType

_PAGE = re.compile(r"Page_(?:[\w.]+\.)?(?:Listed)?(\w+?)_?")
"""A page's component as the framework names it: Page_Saga, or by the path of a class."""

ENUMS = {
    "OrderStatus": OrderStatus,
    "PaymentStatus": PaymentStatus,
    "RefundStatus": RefundStatus,
    "DisputeStatus": DisputeStatus,
    "CaptureMethod": CaptureMethod,
    "FulfilmentMethod": FulfilmentMethod,
    "AdjustmentKind": AdjustmentKind,
    "ShipmentStatus": ShipmentStatus,
    "SagaStatus": SagaStatus,
    "SagaEventType": SagaEventType,
    "SignalDisposition": SignalDisposition,
    "MovementType": MovementType,
    "NewMovementType": NewMovementType,
    "Topic": Topic,
}
"""The enums, by the names of their components."""

HEADERS = {
    "Location": "Where what was made is",
    "ETag": "The version of the row, for If-Match and If-None-Match",
    "Link": 'The next page: `<…>; rel="next"`; the last has none',
    "Idempotency-Replayed": "`true`: the first answer under this Idempotency-Key",
    "Preference-Applied": "`wait=…`: what was heeded of Prefer",
    "Retry-After": "In how many seconds to try again",
    "WWW-Authenticate": "How to say who calls: `Bearer`",
    "X-Request-ID": "The request's id: the one that was sent, or a new one",
    "RateLimit": "What is left, and when it is full again; there where a limit is set",
}
"""The headers of answers, each a component."""

_AMOUNT_BOUND = 10**12
_DIGITS = r"[0-9]{1,12}(\.[0-9]{1,4})?$"
_OBJECT = "JsonObject"
_ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": {}}
_STREAM = "text/event-stream"
_IMPORTS = "/imports/"
_FILE = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "The same rows as a file in UTF-8; the first line names the columns",
    }
}


def exact(document: dict[str, Any]) -> dict[str, Any]:
    """The same description, made exact."""
    _rename(document)
    _flatten(document)
    components = document["components"]
    schemas = components["schemas"]
    enums = {choices(kind): name for name, kind in ENUMS.items()}
    _refer(document["paths"], enums)
    for name, schema in schemas.items():
        if name not in {*ENUMS, _OBJECT}:
            _refer(schema, enums)
            _tell_defaults(schema)
    schemas |= {name: {"type": "string", "enum": list(values)} for values, name in enums.items()}
    schemas[_OBJECT] = {**_ANY_OBJECT, "description": "An object whose members are its owner's"}
    components["headers"] = {
        name: {"description": said, "schema": {"type": "string"}} for name, said in HEADERS.items()
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                for default in ("deprecated", "allowEmptyValue", "allowReserved"):
                    parameter.pop(default, None)
                parameter["schema"] = _without_null(parameter["schema"])
                _limit(parameter["schema"])
            if body := operation.get("requestBody"):
                _close(body, schemas)
                if path.startswith(_IMPORTS):
                    body["content"][CSV] = _FILE
            for status, response in operation["responses"].items():
                _describe(status, response, operation, schemas)
    return document


def _each(part: Any) -> list[Any]:
    """What is in a part of the document, and has parts itself."""
    within = part.values() if isinstance(part, dict) else part
    return [each for each in within if isinstance(each, dict | list)]


def _page(name: str) -> str:
    """The name of a page's component; others as they are."""
    found = _PAGE.fullmatch(name)
    return f"{found[1]}Page" if found else name


def _rename(part: Any) -> None:
    """Rename the components of pages, and all references to them."""
    for each in _each(part):
        _rename(each)
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            where, _, name = part["$ref"].rpartition("/")
            part["$ref"] = f"{where}/{_page(name)}"
        for name in sorted(name for name in part if _PAGE.fullmatch(name)):
            part[_page(name)] = part.pop(name)


def _flatten(part: Any) -> None:
    """Take the only member of a oneOf for the whole."""
    for each in _each(part):
        _flatten(each)
    if isinstance(part, dict) and len(part.get("oneOf", "  ")) == 1:
        (only,) = part.pop("oneOf")
        for key, value in only.items():
            part.setdefault(key, value)


def _refer(part: Any, enums: dict[tuple[str, ...], str]) -> None:
    """Refer to an enum where its values stand, and to one component for an object of any kind."""
    for each in _each(part):
        _refer(each, enums)
    if isinstance(part, dict) and {key: part.get(key) for key in _ANY_OBJECT} == _ANY_OBJECT:
        for key in _ANY_OBJECT:
            del part[key]
        part["$ref"] = f"#/components/schemas/{_OBJECT}"
    if isinstance(part, dict) and isinstance(part.get("enum"), list):
        name = enums.get(tuple(part["enum"]))
        if name:
            del part["enum"], part["type"]
            part["$ref"] = f"#/components/schemas/{name}"


def _describe(
    status: str, response: dict[str, Any], operation: dict[str, Any], schemas: dict[str, Any]
) -> None:
    """Say which headers an answer has, and what a stream is made of."""
    content = response.get("content", {})
    headers = ["X-Request-ID", "RateLimit"]
    named = [each["schema"].get("$ref", "").rpartition("/")[2] for each in content.values()]
    rows = [schemas.get(name, {}).get("properties", {}) for name in named]
    if any(row.get("version", {}).get("type") == "integer" for row in rows):
        headers.append("ETag")
    if any(name.endswith("Page") for name in named):
        headers.append("Link")
    if status == "201":
        headers.append("Location")
    if status in {"200", "201"} and any(
        each["name"] == "Idempotency-Key" for each in operation.get("parameters", ())
    ):
        headers.append("Idempotency-Replayed")
    if status == "201" and any(
        each["name"] == "Prefer" for each in operation.get("parameters", ())
    ):
        headers.append("Preference-Applied")
    headers += {"304": ["ETag"], "401": ["WWW-Authenticate"]}.get(status, [])
    headers += ["Retry-After"] if status in {"429", "503"} else []
    response["headers"] = {
        name: {"$ref": f"#/components/headers/{name}"} for name in sorted(headers)
    }
    if _STREAM in content:
        response["description"] = "The events, until the saga has ended"
        content[_STREAM]["schema"] = {
            "type": "string",
            "description": "Server-sent events: `id` and `event` are the `id` and `event_type` of"
            " a SagaEvent, `data` is all of it as JSON",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/SagaEvent"},
        }


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The values of a parameter that is there."""
    schema = {key: value for key, value in schema.items() if key != "description"}
    kinds = [kind for kind in schema.pop("oneOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema = {**kinds[0], **schema}
    elif kinds:
        schema["oneOf"] = kinds
    if isinstance(schema.get("type"), list):
        (schema["type"],) = set(schema["type"]) - {"null"}
    if "enum" in schema:
        schema["enum"] = [value for value in schema["enum"] if value is not None]
    return schema


def _close(part: Any, schemas: dict[str, Any]) -> None:
    """Say of the objects in a part of the document, and in what it refers to: nothing else."""
    for each in _each(part):
        _close(each, schemas)
    if isinstance(part, dict):
        _limit(part)
        for name, schema in part.get("properties", {}).items():
            part["properties"][name] = _with_text(schema)
    if isinstance(part, dict) and "$ref" in part:
        schema = schemas[part["$ref"].rpartition("/")[2]]
        if schema.get("type") == "object" and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
            _close(schema, schemas)


def _tell_defaults(schema: dict[str, Any]) -> None:
    """Say in words what stands for a property that is left out.

    Who generates types takes one that has a `default` as always there, in what is sent too.
    """
    for each in schema.get("properties", {}).values():
        default = each.pop("default", None)
        if default not in (None, "", []):
            shown = str(default).lower() if isinstance(default, bool) else default
            told = f"`{shown}` when left out"
            each["description"] = "; ".join(filter(None, [each.get("description"), told]))


def _with_text(schema: dict[str, Any]) -> dict[str, Any]:
    """An amount that may be sent as text too, for those whose numbers are floating point."""
    kinds = schema.get("oneOf", [])
    if schema.get("exclusiveMaximum") == _AMOUNT_BOUND:
        number = {key: schema[key] for key in ("type", "minimum", "exclusiveMaximum")}
        rest = {key: value for key, value in schema.items() if key not in number}
        return {"oneOf": [number, _as_text(number)], **rest}
    if any("exclusiveMaximum" in kind for kind in kinds[:1]):
        text = _as_text(kinds[0])
        return schema if text in kinds else {**schema, "oneOf": [kinds[0], text, *kinds[1:]]}
    return schema


def _as_text(number: dict[str, Any]) -> dict[str, Any]:
    """An amount in digits, with a sign where it may be below 0."""
    sign = "-?" if number["minimum"] < 0 else ""
    return {"type": "string", "pattern": f"^{sign}{_DIGITS}"}


def _limit(schema: dict[str, Any]) -> None:
    """Say the lower limit of a whole number that has none: it is 0, for others are said."""
    for each in (schema, *schema.get("oneOf", ())):
        if each.get("type") == "integer":
            each.setdefault("minimum", 0)
