"""What the API says of itself: names that read well, and all that clients are made from."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml

from darkpearl.api.app import description
from darkpearl.api.document import ENUMS, exact

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    """The description."""
    read: Json = yaml.safe_load(description().yaml)
    return read


def parts(part: Any) -> Iterator[Json]:
    """Every object of a document."""
    if isinstance(part, dict):
        yield part
    for each in part.values() if isinstance(part, dict) else part:
        if isinstance(each, dict | list):
            yield from parts(each)


def answers(document: Json) -> Iterator[tuple[str, Json, Json]]:
    """Every answer, with its status and its operation."""
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                yield status, response, operation


def test_components_have_clean_names(document: Json) -> None:
    """Letters alone, a page by what it holds; and every reference leads to one."""
    assert all(name.isalpha() for name in document["components"]["schemas"])
    assert {"OrderPage", "ProductPage"} <= document["components"]["schemas"].keys()
    for part in parts(document):
        if "$ref" in part:
            _, _, kind, name = part["$ref"].split("/")
            assert name in document["components"][kind]


def test_an_enum_is_one_component(document: Json) -> None:
    """Its values stand once, and wherever else they are referred to."""
    schemas = document["components"]["schemas"]
    for name in ENUMS:
        values = schemas[name]["enum"]
        assert [part for part in parts(document) if part.get("enum") == values] == [schemas[name]]
    assert schemas["Order"]["properties"]["status"]["$ref"].endswith("/OrderStatus")


def test_nothing_is_one_of_one(document: Json) -> None:
    """A choice has two members at least."""
    assert min(len(part["oneOf"]) for part in parts(document) if "oneOf" in part) > 1


def test_amounts_are_sent_as_numbers_or_text(document: Json) -> None:
    """In requests; answers have numbers."""
    schemas = document["components"]["schemas"]
    sent = schemas["CreateProduct"]["properties"]["unit_price"]["oneOf"]
    assert [each["type"] for each in sent] == ["number", "string"]
    sent = schemas["CreateOrderItem"]["properties"]["unit_price"]["oneOf"]
    assert [each["type"] for each in sent] == ["number", "string", "null"]
    assert schemas["Product"]["properties"]["unit_price"]["type"] == "number"


def test_every_answer_says_its_headers(document: Json) -> None:
    """Where to find what was made, which version, the next page, when to try again."""
    for status, response, operation in answers(document):
        headers = response["headers"].keys()
        assert "X-Request-ID" in headers
        assert ("Location" in headers) == (status == "201"), operation["operationId"]
        assert ("Retry-After" in headers) == (status in {"429", "503"})
    paths = document["paths"]
    assert "ETag" in paths["/products/{product_id}"]["get"]["responses"]["200"]["headers"]
    assert "Link" in paths["/orders"]["get"]["responses"]["200"]["headers"]
    replayed = paths["/orders"]["post"]["responses"]["201"]["headers"]
    assert "Idempotency-Replayed" in replayed


def test_the_stream_of_events_says_what_it_has(document: Json) -> None:
    """Its data is a SagaEvent, and 204 that nothing follows."""
    told = document["paths"]["/orders/{order_id}/events"]["get"]["responses"]
    stream = told["200"]["content"]["text/event-stream"]["schema"]
    assert stream["contentSchema"]["$ref"].endswith("/SagaEvent")
    assert "ended" in told["204"]["description"]


def test_an_order_has_a_line(document: Json) -> None:
    """The description says that one is needed."""
    assert document["components"]["schemas"]["CreateOrder"]["properties"]["items"]["minItems"] == 1


def test_exact_is_exact_at_once(document: Json) -> None:
    """A document that is made exact again stays the same."""
    again: Json = yaml.safe_load(description().yaml)
    assert exact(again) == document


async def test_the_first_page_says_what_this_is(
    client: Callable[..., httpx.AsyncClient],
) -> None:
    """Name, version and where it is described; to anybody."""
    visitor = client()
    told = await visitor.get("/")
    assert told.json()["name"] == "DarkPearl"
    for page in ("documentation", "openapi", "monitor"):
        assert (await visitor.get(told.json()[page])).status_code == 200
