"""Pace: a listener that gets nothing done comes less and less often, whatever the trouble is."""

import psycopg
import pytest

from darkpearl.listener.pace import Pace

TROUBLE = ["25006", "53100", "53300", "57P03", "08006", ""]
"""SQLSTATEs; a connection that is lost has none."""


@pytest.mark.parametrize("sqlstate", TROUBLE)
def test_trouble_of_the_server_makes_it_back_off(sqlstate: str) -> None:
    """After ten failures in a row it waits seconds, and is quick again once something was done."""
    pace = Pace(batch_size=500)
    kind = psycopg.errors.lookup(sqlstate) if sqlstate else psycopg.OperationalError
    error = kind("trouble")
    failures, waited = 0, 0.0
    while failures < 10:
        if not pace.halve(error):
            failures += 1
            waited = pace.failed("database: trouble")
    assert waited >= 2.5
    pace.done(1)
    assert pace.failed("database: trouble") <= 0.2


def test_sessions_that_somebody_ends_do_not_add_up() -> None:
    """Whoever ends a listener's sessions one after the other keeps it away for no longer each time.

    They would have kept it from work for seconds each time, though the server is well.
    """
    pace = Pace(batch_size=500)
    ended = psycopg.errors.AdminShutdown("terminating connection due to administrator command")
    assert all(pace.failed("database: ended", ended) <= 0.2 for _ in range(20))
