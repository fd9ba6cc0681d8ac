"""The page that lists what bounds a request."""

import re
from pathlib import Path

import pytest

from darkpearl import connections
from darkpearl.api import app, bodies, events, limits, listing, parameters, problems, tokens

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
BOUNDS = {
    "connections": [connections.MOST_CONNECTIONS, connections.PATIENCE_SECONDS],
    "head": [
        connections.LARGEST_HEAD_BYTES,
        connections.PATIENCE_SECONDS,
        connections.MOST_PIPELINED,
    ],
    "path and query": [connections.LARGEST_TARGET_BYTES, parameters.MOST_PARAMETERS],
    "body": [
        bodies.MAX_BODY_BYTES,
        bodies.LARGE_BODY_BYTES,
        bodies.MOST_LARGE_BODIES,
        bodies.MOST_LARGE_BODIES_EACH,
        connections.PATIENCE_SECONDS,
    ],
    "trailers, and what stands between pieces of a body": [connections.LARGEST_HEAD_BYTES],
    "rest of a body after its answer": [connections.LARGEST_REST_BYTES],
    "tokens": [tokens.LONGEST_TOKEN, tokens.FETCH_SECONDS, tokens.MOST_VERIFIED],
    "errors": [bodies.LONGEST_TEXT, problems.LONGEST_FIELD, bodies.MOST_ERRORS],
    "rows left out (`offset`)": [listing.MAX_OFFSET, listing.MAX_OFFSET_OF_OTHERS],
    "rows counted": [listing.MOST_COUNTED],
    "statements": [app.STATEMENT_TIMEOUT, app.VISITORS_STATEMENT_TIMEOUT],
    "answer": [connections.PATIENCE_SECONDS, connections.LEAST_TAKEN_BYTES],
    "streams of events": [events.MAX_STREAMS, events.MAX_STREAMS_EACH],
    "what is kept of a caller": [limits.LONGEST_NAME, limits.MAX_BUCKETS],
}


@pytest.mark.parametrize(("phase", "bounds"), BOUNDS.items(), ids=BOUNDS)
def test_the_docs_list_the_bounds_that_hold(phase: str, bounds: list[float | str]) -> None:
    """Each phase has a row in docs/operations.md, with the figures of the code."""
    (row,) = re.findall(rf"^\| {re.escape(phase)} \|(.*)$", OPERATIONS.read_text(), re.MULTILINE)
    said = set(re.findall(r"\d+", row))
    assert {
        re.sub(r"\D", "", f"{each:g}" if isinstance(each, float) else str(each)) for each in bounds
    } <= said
