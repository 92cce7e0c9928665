"""Counting reads: in memory, told to the database every ten seconds, so that a process that is killed takes ten seconds with it."""

import atexit
import logging
import threading
import uuid
from datetime import UTC, datetime, timedelta
from time import sleep

from django.db import DatabaseError, connection
from prometheus_client import Counter, Histogram

from decisioning.database.liveness import PRIMARY

EVERY_S = 10.0
KEPT = timedelta(days=90)

READS = Counter("decisioning_reads", "Reads of API and board, by how they were answered.", ["answer"])
REQUESTS = Counter(
    "decisioning_requests", "Requests that need the database, by method and class of status.", ["method", "status"]
)
SECONDS = Histogram(
    "decisioning_request_seconds",
    "Time to answer a request that needs the database.",
    ["method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_log = logging.getLogger(__name__)

_UPSERT = """
INSERT INTO audit.reads AS r (minute, process, asked, failed, stale, done) VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT (minute, process) DO UPDATE SET asked = excluded.asked, failed = excluded.failed, stale = excluded.stale, done = excluded.done
"""


class ReadCounter:
    """What one process has answered, by minute. Minutes wait here while the database is away."""

    def __init__(self) -> None:
        self.process = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._minutes: dict[datetime, list[int]] = {}  # [asked, failed, stale]
        self._flusher: threading.Thread | None = None

    def count(self, *, method: str, status: int, stale: bool, seconds: float) -> None:
        """One request."""
        method = method if method in _METHODS else "other"
        REQUESTS.labels(method, f"{status // 100}xx").inc()
        SECONDS.labels(method).observe(seconds)
        if method not in {"GET", "HEAD"}:
            return
        READS.labels("failed" if status >= 500 else "stale" if stale else "good").inc()
        with self._lock:
            counted = self._minutes.setdefault(_minute(), [0, 0, 0])
            counted[0] += 1
            counted[1] += status >= 500
            counted[2] += stale

    def flush(self, *, ending: bool = False) -> None:
        """Write the counts so far. Raises DatabaseError, and keeps them. ending: nothing will be counted any more."""
        now = _minute()
        with self._lock:
            self._minutes.setdefault(now, [0, 0, 0])
            counts = {minute: tuple(counted) for minute, counted in self._minutes.items()}
        with connection.cursor() as cursor:
            for minute, counted in counts.items():
                cursor.execute(_UPSERT, [minute, self.process, *counted, ending or minute < now])
            cursor.execute("DELETE FROM audit.reads WHERE minute < %s", [now - KEPT])
        with self._lock:
            for minute in counts:
                if minute < now:
                    del self._minutes[minute]

    def start(self) -> None:
        """Tell every ten seconds from now on. In a web server, once a process."""
        with self._lock:
            if self._flusher is None:
                self._flusher = threading.Thread(target=self._keep_telling, name="read counter", daemon=True)
                self._flusher.start()
                atexit.register(self._end)

    def _keep_telling(self) -> None:
        while True:
            sleep(EVERY_S)
            self._try(ending=False)

    def _end(self) -> None:
        self._try(ending=True)

    def _try(self, *, ending: bool) -> None:
        if PRIMARY.away:
            return
        try:
            self.flush(ending=ending)
        except DatabaseError as failure:
            _log.warning("The count of reads is told later: %s", failure)
        finally:
            connection.close()


def _minute() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0)  # noqa: TID251 - a door counts when it answers


READ_COUNTER = ReadCounter()
