"""Structured logs: one JSON object a line, with the request or the task that caused it."""

import json
import logging
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from decisioning.literals import rfc3339

CAUSE: ContextVar[str] = ContextVar("cause", default="")
"""The id of the request or task at work here; the audit notes the same one."""
WOKEN_BY: ContextVar[tuple[str, ...]] = ContextVar("woken_by", default=())
"""The ids of the requests, or of the tick, that asked for the task at work here; none when beat did."""
_ALWAYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request", "taskName"}


class Json(logging.Formatter):
    """{"at", "level", "logger", "message", "cause", "woken_by"} and whatever a call adds with `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": rfc3339(datetime.fromtimestamp(record.created, UTC), timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if cause := CAUSE.get():
            line["cause"] = cause
        if woken_by := WOKEN_BY.get():
            line["woken_by"] = woken_by
        line |= {name: value for name, value in vars(record).items() if name not in _ALWAYS}
        if record.exc_info and record.exc_info[0]:
            known = _is_the_database(record.exc_info[0])
            line["exception"] = repr(record.exc_info[1]) if known else self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _is_the_database(kind: type[BaseException]) -> bool:
    """A database that is away says so once a request: where in the code it was noticed tells nothing."""
    return kind.__name__ in {"OperationalError", "InterfaceError"}
