"""A streaming replica for reads: used while it is fresh enough, and alone when the primary is away.

Who asks is found out on the primary as long as it answers, so that a revoked key is nobody's from the next request on; what is read
comes from the replica. It is fresh when it has replayed all that the primary had written `FRESH_S` ago, measured by WAL positions: a
quiet primary makes a replay timestamp old without making the data old.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import Any

import psycopg
from django.conf import settings
from django.db import connections

from decisioning.database.liveness import PRIMARY, REPLICA, Probe, ServerSilent

FRESH_S = 5.0
EVERY_S = 1.0
_FORGOTTEN_S = 3.0  # what was not heard of for so long is not known
_MOST_WRITERS = 10_000
_log = logging.getLogger(__name__)


class ReplicaStatus:
    """What this process knows about the replica; nothing is known where none is configured."""

    def __init__(self) -> None:
        self._seen_at = self._fresh_at = 0.0
        self._as_of = datetime.min.replace(tzinfo=UTC)
        self._writers: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Follow it, where there is one. In a web server, once a process."""
        if "replica" in settings.DATABASES:
            threading.Thread(target=self._follow, name="replica", daemon=True).start()

    def answers(self) -> bool:
        """Whether it answered just now, however old its data."""
        return not REPLICA.away and monotonic() - self._seen_at < _FORGOTTEN_S

    def is_fresh(self) -> bool:
        """Whether it may stand for the primary."""
        return self.answers() and monotonic() - self._fresh_at < _FORGOTTEN_S

    def as_of(self) -> datetime:
        """The last instant whose writes it may hold in full, while the primary is away."""
        return self._as_of

    def wrote(self, who: str) -> None:
        """Somebody wrote, and shall read what they wrote."""
        if not self._seen_at:
            return
        with self._lock:
            self._writers.pop(who, None)
            self._writers[who] = monotonic()
            if len(self._writers) > _MOST_WRITERS:
                self._writers.popitem(last=False)

    def suits(self, who: str) -> bool:
        """Whether this reader may be served from it."""
        return self.is_fresh() and monotonic() - self._writers.get(who, -FRESH_S) >= FRESH_S

    def _follow(self) -> None:
        positions: deque[tuple[float, int]] = deque()
        held: dict[str, Probe] = {}
        while True:
            now = monotonic()
            replayed = _ask(
                held, "replica", "SELECT pg_last_wal_replay_lsn() - '0/0'::pg_lsn WHERE pg_is_in_recovery()"
            )
            written = None if PRIMARY.away else _ask(held, "default", "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
            if written is not None:
                positions.append((now, written))
            while positions and now - positions[0][0] > FRESH_S and not PRIMARY.away:
                positions.popleft()
            if replayed is not None:
                self._seen_at = monotonic()
                caught_up = [at for at, position in positions if position <= replayed]
                if caught_up:
                    self._fresh_at = monotonic()
                    self._as_of = max(self._as_of, datetime.fromtimestamp(_wall(max(caught_up)), UTC))
            sleep(EVERY_S)


def _wall(at: float) -> float:
    return datetime.now(UTC).timestamp() - (monotonic() - at)  # noqa: TID251 - the clock of a door


def _ask(held: dict[str, Probe], alias: str, question: str) -> int | None:
    """The answer of one server, None when it gives none in time."""
    try:
        if alias not in held:
            parameters: dict[str, Any] = connections[alias].get_connection_params()
            for name in ("context", "cursor_factory", "prepare_threshold"):
                parameters.pop(name, None)
            held[alias] = Probe.connect(**parameters, autocommit=True)
        row = held[alias].execute(question).fetchone()
        return int(row[0]) if row and row[0] is not None else None
    except (psycopg.Error, ServerSilent) as failure:
        _log.debug("No position of %s: %s", alias, failure)
        if (probe := held.pop(alias, None)) is not None:
            probe.pgconn.finish()
        return None


@contextmanager
def instead_of_primary() -> Iterator[None]:
    """In this thread everything that asks the database asks the replica."""
    primary = connections["default"]
    connections["default"] = connections["replica"]
    try:
        yield
    finally:
        connections["default"] = primary


REPLICA_STATUS = ReplicaStatus()
