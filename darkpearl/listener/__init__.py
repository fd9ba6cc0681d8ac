"""The listener: wait, claim, ask, settle, repeat.

An order's saga stands in the database and goes on by itself as far as SQL can take it. Where it
needs an answer from outside, somebody has to ask: that is the listener. It sleeps until the bell
rings (bell.py), claims what is ready and gets the requests that the engine has committed to
(engine.py, over sessions.py), makes those calls with no transaction open (calls.py), unless nobody
answers (breaker.py), and brings the answers back; worker.py says what is done when. What follows
from an answer is the engine's to decide.

All state is in the database, so any number of listeners may run, and any of them may be killed at
any moment: what it had claimed is handed out again when its leases run out.
"""

from darkpearl.listener.calls import Operation
from darkpearl.listener.limits import Limits
from darkpearl.listener.worker import Listener

__all__ = ["Limits", "Listener", "Operation"]
