"""Log lines on standard error, one format for all processes: JSON for a collector, text for people on a terminal.

Lines that a request causes carry its trace. Knows nothing of what is logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.telemetry.spans import RequestTrace

AUTO, JSON, TEXT = "auto", "json", "text"

# Of the request that is being served; threads that it waits for inherit it.
current_trace: ContextVar[RequestTrace | None] = ContextVar("current_trace", default=None)


def configure(level: str, log_format: str = AUTO) -> None:
    """Send every logger's records from `level` upwards to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: `JSON`, `TEXT`, or `AUTO`: text where standard error is a terminal.
    """
    is_text = log_format == TEXT or (log_format == AUTO and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_text_formatter() if is_text else _JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    # It tells of its own start and end under the name "uvicorn.error"; the lifecycle's lines say it better.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    # They log requests with their URLs, and a SAS token is a part of those; what fails is told by our own errors.
    for name in ("azure", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _text_formatter() -> logging.Formatter:
    return logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")


class _JsonFormatter(logging.Formatter):
    """One object per line; its times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        trace = current_trace.get()
        if trace is not None:
            line |= {"trace_id": trace.context.trace_id, "span_id": trace.context.span_id}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
