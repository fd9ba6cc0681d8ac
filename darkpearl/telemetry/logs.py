"""Log lines: text for people, or JSON for machines with the request that each belongs to."""

import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from darkpearl.telemetry import request_context

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

cell: ContextVar[str] = ContextVar("cell", default="")
"""The cell that this task, and those that it starts, work for, in a process that serves several."""

_encoder = msgspec.json.Encoder(enc_hook=str)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send the lines of this process to stderr, from that level on and in that form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It gives itself a level of its own; what it says below a warning is of no use to anybody.
    logging.getLogger("psycopg").setLevel(max(logging.WARNING, logging.getLogger().level))


class TextLines(logging.Formatter):
    """A line is a text; what is done for another cell says so."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The record as a line, without its traceback."""
        line = super().formatMessage(record)
        return f"{line} [cell {cell.get()}]" if cell.get() else line


class JsonLines(logging.Formatter):
    """A line is one JSON object; `extra={"fields": {…}}` of a log call becomes more members."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a traceback is the member `exception`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = request_context.current()
        if context.request_id:
            line["request_id"] = context.request_id
        if context.traceparent:
            line["trace_id"] = context.traceparent.split("-")[1]
        if cell.get():
            line["cell"] = cell.get()
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encoder.encode(line).decode()
