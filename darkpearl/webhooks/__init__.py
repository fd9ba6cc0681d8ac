"""Webhooks: the feed, sent to whoever wants it.

One process sends (service.py); others wait to take its place. Each endpoint has a courier of its
own (courier.py) with its own connections (sender.py), so that none is in another's way. What became
of a webhook is written down after it was sent: who is killed in between sends it again. What
follows from that is decided in routines/74_webhooks.sql.
"""

from darkpearl.webhooks.service import Webhooks

__all__ = ["Webhooks"]
