"""The doctor: asks a running system one question after the other, and says how to mend it.

A check is a function of a patient that gives a verdict; its name is the line's, its docstring what
a person knows when it is fine. To add one, write it in the file of its kind and name it in CHECKS
there, and give it its section in the run book of docs/operations.md.
"""

from darkpearl.doctor import listening, money, release, server, sessions, storage, work
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

__all__ = ["CHECKS", "DEEP", "Check", "Finding", "Patient", "State", "examine", "name_of"]
