"""The description of the API holds: made-up requests get no answer that it doesn't announce.

DARKPEARL_TEST_EXAMPLES sets how many are made up for each operation and role.
"""

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as effort
from schemathesis import Case
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import positive_data_acceptance
from server import SECRET, served

from darkpearl import schema
from darkpearl.api import tokens
from darkpearl.api.app import description
from darkpearl.api.feed import LONGEST_WAIT_SECONDS
from darkpearl.config import Settings

EXAMPLES = int(os.environ.get("DARKPEARL_TEST_EXAMPLES", "4"))
STAFF = "00000000-0000-7000-8000-000000000001"
SETTINGS = Settings(port=0, pool_size=4, jwt_secret=SECRET)
UNTOLD = re.compile(
    r"(cursor|sort|offset|If-Match|If-None-Match): "
    r"|.*Expected an? (unit_price|amount) |.*Expected `int( \| null)?`, got `decimal`"
    r"|.*Expected either product_id or sku"
)
"""Beyond a JSON schema: four decimals, 2.0 is no count, a cursor is one of ours, one of two."""
UNSTORABLE = {"22021", "22P05"}
"""A NUL in a text, or in JSON, which a pattern for every text could say, to nobody's use."""
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {  # 422: well-formed, but the database refuses what it says
            "positive_data_acceptance": {
                "expected-statuses": ["2xx", "3xx", 401, 403, 404, 409, 412, 415, 422]
            }
        }
    }
)
MADE_UP = effort(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def described(database_url: str) -> Iterator[BaseSchema]:
    """The description, as an API in front of the demo data serves it."""
    asyncio.run(schema.seed(database_url))
    with served(database_url, SETTINGS) as (host, port):
        yield schemathesis.openapi.from_url(
            f"http://{host}:{port}/schema/openapi.json", config=CONFIG, timeout=60
        )


def beyond_schemas(answer: schemathesis.Response) -> list[Any]:
    """Checks that make no sense of an answer: a JSON schema can't say what is wrong with these."""
    if answer.status_code == 400:
        if answer.request.headers.get("content-type", "").startswith("text/csv"):
            return [positive_data_acceptance]  # what a file has to say
        errors = answer.json().get("errors", [])
        if answer.json().get("code") in UNSTORABLE:
            return [positive_data_acceptance]
        told = [f"{each['field']}: {each['message']}" for each in errors]
        if told and all(map(UNTOLD.match, told)):
            return [positive_data_acceptance]
    return []


# The server is a thread of this process: its pool draws random numbers while cases are made up.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_the_api_keeps_to_its_description(described: BaseSchema, role: tokens.Role) -> None:
    """Answers are as described; bad requests are refused and good ones are taken."""
    token = tokens.mint(SETTINGS, role, STAFF, 3600)
    failures: list[FailureGroup] = []
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()

        @MADE_UP
        @given(case=operation.as_strategy())
        def holds(case: Case) -> None:
            nonlocal tried
            tried += 1
            wait = case.query.get("wait")
            if isinstance(wait, int | float) and 1 < wait <= LONGEST_WAIT_SECONDS:
                case.query["wait"] = 1
            answer = case.call(headers={"Authorization": f"Bearer {token}"}, timeout=10)
            case.validate_response(answer, excluded_checks=beyond_schemas(answer))

        try:
            holds()
        except FailureGroup as failure:  # every operation is tried before any is blamed
            failures.append(failure)
    assert tried >= 30
    assert not failures, "\n\n".join(map(str, failures))


def test_the_description_in_the_docs_is_current() -> None:
    """docs/openapi.yaml is what the API says of itself; `make openapi` writes it anew."""
    written = Path(__file__).parents[2] / "docs" / "openapi.yaml"
    assert written.read_bytes() == description().yaml
