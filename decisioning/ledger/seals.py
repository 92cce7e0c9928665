"""The audit's seals: closed ranges of entries in a hash chain, whose head is also kept outside the database, in the anchor.

Sealing and verifying are `audit.seal` and `audit.verify` in PostgreSQL; here are the anchor and what a page shows.
"""

import errno
import fcntl
import json
import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db import connection

from decisioning.ledger.items import alone

_log = logging.getLogger(__name__)
_END = 4096  # bytes at the end of the anchor, in which its last line is


@dataclass(frozen=True)
class Verified:
    """What a verification found: all of `entries` in `seals` are sound, or `problem` names the first that is not.

    `waiting` entries are too young to be sealed: a tick or two. `erased` sealed entries hold a pseudonym since, of `people` who were deleted.
    """

    seals: int
    entries: int
    waiting: int
    problem: str
    erased: int = 0
    people: int = 0

    @property
    def sound(self) -> bool:
        return not self.problem

    def __str__(self) -> str:
        if self.problem:
            return f"broken: {self.problem}"
        erased = f", names erased in {self.erased} of {self.people} people who were deleted" if self.people else ""
        return f"sound: {self.entries} entries in {self.seals} seals, {self.waiting} not yet sealed{erased}"


@dataclass(frozen=True)
class Standing:
    """For the audit page's badge: up to which entry history is sealed, and when it was last found sound."""

    sealed_to: int
    sealed_at: datetime | None
    verified_at: datetime | None
    problem: str


@dataclass(frozen=True)
class Anchor:
    """What is noted outside the database. heads: seal numbers to digests (hex). torn: the lines that say nothing, stepped over."""

    heads: dict[int, str]
    torn: list[int]


def anchor_file() -> Path:
    """One line a head: {"n", "to_id", "digest", "sealed_at"}. One file for all workers, or one each; either is whole."""
    return Path(settings.ANCHOR)


def read_anchor(file: Path) -> Anchor:
    """The heads in a file that may be missing, and may have been cut off in the middle of a line."""
    heads: dict[int, str] = {}
    torn = []
    for number, line in enumerate(file.read_bytes().split(b"\n") if file.exists() else (), start=1):
        try:
            head = json.loads(line)
            heads[int(head["n"])] = str(head["digest"])
        except (ValueError, KeyError, TypeError):
            if line.strip():
                torn.append(number)
    return Anchor(heads, torn)


def seal_closed() -> int:
    """Seal every range that is closed, note the chain's head in the log and in the anchor, and return how many seals were made.

    Outside a transaction: PostgreSQL refuses it inside one.
    """
    made = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute("SELECT n, to_id, encode(digest, 'hex') FROM audit.seal()")
            seal = cursor.fetchone()
        if seal is None:
            break
        made += 1
        _log.info("Audit sealed up to entry %s: seal %s, digest %s", seal[1], seal[0], seal[2])
    with alone("Noting the audit's head outside the database"):
        _note_head()
    return made


def verify() -> Verified:
    """Recompute the whole chain, compare it with the heads noted outside the database, and remember the result."""
    anchor = read_anchor(anchor_file())
    if anchor.torn:
        _log.warning("%s: lines that say nothing, stepped over: %s", anchor_file(), anchor.torn)
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM audit.verify(%s)", [json.dumps(anchor.heads)])
        seals, entries, waiting, problem = cursor.fetchone() or (0, 0, 0, "no answer")
        cursor.execute("SELECT count(DISTINCT id), count(DISTINCT person) FROM audit.erased")
        erased, people = cursor.fetchone() or (0, 0)
    found = Verified(seals, entries, waiting, problem or "", erased, people)
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


def _note_head() -> None:
    """Bring the anchor up to the newest seal, whoever made it and whatever hindered him from noting it: it vouches for all before."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT n, to_id, encode(digest, 'hex'), sealed_at FROM audit.seals ORDER BY n DESC LIMIT 1")
        newest = cursor.fetchone()
    if newest is None:
        return
    n, to_id, digest, sealed_at = newest
    line = json.dumps({"n": n, "to_id": to_id, "digest": digest, "sealed_at": sealed_at.isoformat()}) + "\n"
    file = os.open(anchor_file(), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # of two workers with one anchor the second sees what the first has noted
        noted, size = _last_noted(file)
        if noted >= n:
            return
        _append(file, size, line.encode())
    finally:
        os.close(file)


def _last_noted(file: int) -> tuple[int, int]:
    """The newest seal at the end of the anchor, 0 where there is none, and the anchor's size in bytes."""
    size = os.fstat(file).st_size
    for line in reversed(os.pread(file, _END, max(0, size - _END)).splitlines()):
        try:
            return int(json.loads(line)["n"]), size
        except (ValueError, KeyError, TypeError):
            continue
    return 0, size


def _append(file: int, size: int, line: bytes) -> None:
    """A whole line or none: what a full disk has cut off is taken back, and what was torn before stands on a line of its own."""
    whole = size == 0 or os.pread(file, 1, size - 1) == b"\n"
    line = line if whole else b"\n" + line
    written = 0
    try:
        written = os.write(file, line)
        os.fsync(file)
    finally:
        if written < len(line):
            os.ftruncate(file, size)
    if written < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(anchor_file()))
