"""The audit's seals: closed ranges of entries in a hash chain, whose head is also kept outside the database.

Sealing and verifying are `audit.seal` and `audit.verify` in PostgreSQL; here are the head kept in the home folder and what
a page shows.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db import connection

from decisioning.ledger.items import alone

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verified:
    """What a verification found: all of `entries` in `seals` are sound, or `problem` names the first that is not.

    `waiting` entries are too young to be sealed: a tick or two.
    """

    seals: int
    entries: int
    waiting: int
    problem: str

    @property
    def sound(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        if self.problem:
            return f"broken: {self.problem}"
        return f"sound: {self.entries} entries in {self.seals} seals, {self.waiting} not yet sealed"


@dataclass(frozen=True)
class Standing:
    """For the audit page's badge: up to which entry history is sealed, and when it was last found sound."""

    sealed_to: int
    sealed_at: datetime | None
    verified_at: datetime | None
    problem: str


def head_file() -> Path:
    """One line a seal, outside the database: {"n", "to_id", "digest", "sealed_at"}."""
    return Path(settings.HOME) / "audit-head.jsonl"


def seal_closed() -> int:
    """Seal every range that is closed, note each seal in the log and in the head file, and return how many were made.

    Outside a transaction: PostgreSQL refuses it inside one.
    """
    made = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute("SELECT n, to_id, encode(digest, 'hex'), sealed_at FROM audit.seal()")
            seal = cursor.fetchone()
        if seal is None:
            return made
        made += 1
        n, to_id, digest, sealed_at = seal
        _log.info("Audit sealed up to entry %s: seal %s, digest %s", to_id, n, digest)
        with alone(f"Noting seal {n} outside the database"):
            _append({"n": n, "to_id": to_id, "digest": digest, "sealed_at": sealed_at.isoformat()})


def verify() -> Verified:
    """Recompute the whole chain, compare it with the heads noted outside the database, and remember the result."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM audit.verify(%s)", [json.dumps(dict(_heads()))])
        seals, entries, waiting, problem = cursor.fetchone() or (0, 0, 0, "no answer")
    found = Verified(seals, entries, waiting, problem or "")
    if not found.sound:
        _log.error("The audit is broken: %s", problem)
    return found


def standing() -> Standing:
    """What is known without recomputing anything."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.to_id, s.sealed_at, v.at, v.problem FROM (SELECT) AS one "
            "LEFT JOIN LATERAL (SELECT to_id, sealed_at FROM audit.seals ORDER BY n DESC LIMIT 1) AS s ON true "
            "LEFT JOIN audit.verification AS v ON true"
        )
        sealed_to, sealed_at, verified_at, problem = cursor.fetchone() or (None, None, None, None)
    return Standing(sealed_to or 0, sealed_at, verified_at, problem or "")


def _append(head: dict[str, object]) -> None:
    file = os.open(head_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, (json.dumps(head) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def _heads() -> Iterator[tuple[str, str]]:
    if not head_file().exists():
        return
    with head_file().open() as lines:
        for line in lines:
            head = json.loads(line)
            yield str(head["n"]), str(head["digest"])
