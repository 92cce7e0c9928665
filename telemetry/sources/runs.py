"""Runs of sources. Every run is a row of the refresh log before it begins, and says there how it ended, whatever happens.

The row is the lock: a partial unique index lets one run of a source be under way. A run that shows no life for longer than it may
take has lost its worker, and is failed by the next tick.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Coalesce, Least

from decisioning.access.principal import bind_job
from decisioning.ledger.items import alone
from telemetry import wake
from telemetry.models import RefreshRun, Source
from telemetry.sources import folders, rows
from telemetry.sources.definition import LONGEST_S, check
from telemetry.sources.refusals import SourceFailed, SourceRefused
from telemetry.sources.rows import Stored
from telemetry.sources.window import LATE, Reading, everything, reading

Clock = Callable[[], dt.datetime]
MOST_ROWS = 1_000_000
_GRACE = dt.timedelta(seconds=60)
_FIRST_RETRY_S = 30
_LONGEST_REST_S = 3_600


def queue(source: Source, *, now: dt.datetime, since: dt.datetime | None = None) -> RefreshRun:
    """A run of this source, as soon as a worker is free; one that still waits is the same run.

    since: it reads again from here, where it would begin later. Raises SourceRefused 409 `already_running`.
    """
    try:
        with transaction.atomic():
            run = RefreshRun.objects.create(
                run_id=uuid.uuid4(),
                job_name=f"source/{source.key}",
                team_id=source.team_id,
                source=source.key,
                heartbeat_at=now,
            )
    except IntegrityError:
        run = _under_way(source).get()
        if run.started_at is not None:
            message = f"Run {run.run_id} of {source.key} is under way since {run.started_at:%H:%M:%SZ}."
            raise SourceRefused("already_running", message, status=409) from None
    if since is not None:
        Source.objects.filter(pk=source.pk).update(again_from=Least(Coalesce("again_from", since), since))
    transaction.on_commit(lambda: wake.hint("telemetry.sources"))
    return run


def _under_way(source: Source) -> QuerySet[RefreshRun]:
    return RefreshRun.objects.filter(
        team_id=source.team_id, source=source.key, status=RefreshRun.Status.RUNNING, heartbeat_at__isnull=False
    )


def _source_of(run: RefreshRun) -> Source | None:
    return Source.objects.select_related("team").filter(team=run.team, key=run.source).first()


def show_life(taken: Sequence[RefreshRun], *, now: dt.datetime) -> None:
    """These runs go on. One that takes longer than any may shows no life any more."""
    with transaction.atomic():
        bind_job("telemetry.sources")
        RefreshRun.objects.filter(
            pk__in=[run.pk for run in taken],
            status=RefreshRun.Status.RUNNING,
            started_at__gt=now - dt.timedelta(seconds=LONGEST_S) - _GRACE,
        ).update(heartbeat_at=now)


def fail_lost(*, now: dt.datetime, shown: bool = False) -> int:
    """Fail runs whose worker is gone, so that they keep no place and their sources run again. Returns how many.

    shown: their life is shown meanwhile (`show_life`), not only with every chunk, before the first of which a query may take all its time.
    """
    lost = 0
    for run in RefreshRun.objects.select_for_update(skip_locked=True).filter(
        status=RefreshRun.Status.RUNNING, heartbeat_at__lt=now - _GRACE, started_at__isnull=False
    ):
        source = _source_of(run)
        allowed = dt.timedelta(seconds=source.time_limit_s if source and not shown else 0) + _GRACE
        if run.heartbeat_at is not None and run.heartbeat_at + allowed < now:
            with alone(f"Ending lost run {run.run_id}"), transaction.atomic():
                _end(
                    run,
                    source,
                    now=now,
                    status=RefreshRun.Status.FAILED,
                    found=_Found(rows=run.rows),
                    error=f"No sign of life since {run.heartbeat_at:%Y-%m-%d %H:%M:%SZ}.",
                )
                lost += 1
    return lost


# Of each team what is due the longest: a thousand sources of one do not come before the one of another.
_DUE = """
SELECT id FROM metadata.sources WHERE id IN (
  SELECT id FROM metadata.sources s WHERE enabled AND due_at <= %s
    AND NOT EXISTS (SELECT FROM metadata.refresh_log r WHERE r.team_id = s.team_id AND r.source = s.key AND r.status = 'running' AND r.heartbeat_at IS NOT NULL)
  ORDER BY row_number() OVER (PARTITION BY team_id ORDER BY due_at), due_at LIMIT 100)
ORDER BY due_at FOR UPDATE SKIP LOCKED
"""


def queue_due(*, now: dt.datetime) -> int:
    """A run for every source that is due. After a downtime that is one run, which reads all that was missed."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_DUE, [now])
        due = [pk for (pk,) in cursor.fetchall()]
        for source in Source.objects.filter(pk__in=due):
            with alone(f"Queueing source {source.key}", rests=partial(_rest, source, now)), transaction.atomic():
                _queue_due(source, now)
    return len(due)


def _queue_due(source: Source, now: dt.datetime) -> None:
    queue(source, now=now)
    missed = (now - source.due_at) // dt.timedelta(seconds=source.schedule_s)
    source.due_at += dt.timedelta(seconds=source.schedule_s * (missed + 1))
    source.save(update_fields=["due_at"])


def give_up(run: RefreshRun, now: dt.datetime, error: str) -> None:
    """Fail a run that broke before it could end itself, so that it keeps no place; its source rests."""
    with transaction.atomic():
        bind_job("telemetry.sources")
        ended = RefreshRun.objects.filter(pk=run.pk, status=RefreshRun.Status.RUNNING).update(
            status=RefreshRun.Status.FAILED, finished_at=now, error=error.replace("\x00", "")
        )
        source = _source_of(run)
        if ended and source is not None:
            Source.objects.filter(pk=source.pk).update(**_resting(source, now))


def _resting(source: Source, now: dt.datetime) -> dict[str, Any]:
    failures = source.failures + 1
    wait_s = min(_LONGEST_REST_S, _FIRST_RETRY_S * 2 ** min(failures, 20))
    return {"failures": failures, "due_at": now + dt.timedelta(seconds=wait_s)}


def _rest(source: Source, now: dt.datetime, error: str) -> None:
    """A run that failed before it began: told in the log, and tried again later and later."""
    with transaction.atomic():
        Source.objects.filter(pk=source.pk).update(**_resting(source, now))
        RefreshRun.objects.create(
            run_id=uuid.uuid4(),
            job_name=f"source/{source.key}",
            team_id=source.team_id,
            source=source.key,
            status=RefreshRun.Status.FAILED,
            started_at=now,
            finished_at=now,
            error=error,
        )


# Teams take turns, the one first whose last pull began the longest ago; where there are several places and teams with sources, none has all of them.
_CLAIM = """
WITH under_way AS (
  SELECT team_id FROM metadata.refresh_log WHERE status = 'running' AND heartbeat_at IS NOT NULL AND started_at IS NOT NULL)
UPDATE metadata.refresh_log SET started_at = %(now)s, heartbeat_at = %(now)s
WHERE id = (SELECT w.id FROM metadata.refresh_log w
            LEFT JOIN LATERAL (SELECT p.started_at FROM metadata.refresh_log p WHERE p.team_id = w.team_id AND p.source <> '' AND p.started_at IS NOT NULL
                               ORDER BY p.id DESC LIMIT 1) AS last ON true
            WHERE w.status = 'running' AND w.heartbeat_at IS NOT NULL AND w.started_at IS NULL
              AND (SELECT count(*) FROM under_way u WHERE u.team_id = w.team_id)
                  < greatest(1, %(most)s - (EXISTS (SELECT FROM metadata.sources s WHERE s.enabled AND s.team_id <> w.team_id))::int)
            ORDER BY last.started_at NULLS FIRST, w.id LIMIT 1 FOR UPDATE OF w SKIP LOCKED)
  AND (SELECT count(*) FROM under_way) < %(most)s
RETURNING id
"""


def take_next(*, now: dt.datetime, most: int) -> RefreshRun | None:
    """Claim a waiting run, unless as many as `most` are under way."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT access.lock('telemetry.take_next')")
        cursor.execute(_CLAIM, {"now": now, "most": most})
        row = cursor.fetchone()
    return RefreshRun.objects.get(pk=row[0]) if row else None


def pull(run: RefreshRun, *, clock: Clock) -> None:
    """Carry out a claimed run: chunk by chunk, each in a transaction of its own, together with its sign of life."""
    source = _source_of(run)
    found = _Found()
    status, error = RefreshRun.Status.SUCCEEDED, None
    try:
        if source is None:
            raise SourceFailed("The source is gone.")  # noqa: TRY301
        check(source)
        if folders.is_many(source):
            _pull_many(run, source, found, clock)
        else:
            _pull_one(run, source, found, clock, asked=reading(source, now=clock()), limit_s=source.time_limit_s)
        if found.problems:
            status, error = _with_problems(found)
    except (SourceFailed, SourceRefused) as failure:
        status, error = RefreshRun.Status.FAILED, str(failure)
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"[:2_000]
        _end(run, source, now=clock(), status=RefreshRun.Status.FAILED, found=found, error=error)
        raise
    _end(run, source, now=clock(), status=status, found=found, error=error)


def _pull_one(
    run: RefreshRun, source: Source, found: "_Found", clock: Clock, *, asked: Reading, limit_s: float
) -> None:
    from telemetry.sources import engines  # half a second and tens of megabytes, only where a run is

    first, before = found.seen, found.read - found.ignored
    for chunk in engines.read(source, since=asked.since, until=asked.until, limit_s=limit_s):
        with transaction.atomic():
            bind_job("telemetry.sources")
            stored = rows.store(source, chunk, reading=asked, now=clock(), first=found.seen - first + 1)
            found.add(stored, len(chunk))
            _check_ours(run, rows=found.rows, now=clock())
        if found.read - found.ignored - before > MOST_ROWS:
            raise SourceFailed(f"It yields more than {MOST_ROWS:,} rows. Narrow the query.")


def _pull_many(run: RefreshRun, source: Source, found: "_Found", clock: Clock) -> None:
    """The files that were not read yet, newest first: all that may be stored of each. One that fails holds up no other; one of which rows
    were refused is read again for as long as those of any source are. What is left when half of the time is gone, the next run reads."""
    now = clock()
    with transaction.atomic():
        bind_job("telemetry.sources")
        files, found.known = folders.unread(source, again_from=source.again_from)
    asked = everything(now=now)
    half = now + dt.timedelta(seconds=source.time_limit_s / 2)
    for place, file in enumerate(files):
        if place and (clock() > half or found.read > MOST_ROWS / 2):
            found.left = len(files) - place
            return
        refused = found.refused
        try:
            left_s = source.time_limit_s - (clock() - now).total_seconds()
            _pull_one(run, file.alone(source), found, clock, asked=asked, limit_s=left_s)
        except _GivenUp:
            raise
        except SourceFailed as failure:
            found.failed += 1
            found.problems.append(f"{file.path}: {failure}")
            continue
        found.whole += 1
        if found.refused == refused or file.modified_ns < (now - LATE).timestamp() * 1e9:
            with transaction.atomic():
                bind_job("telemetry.sources")
                folders.note_read(source, file, now=now)


def _with_problems(found: "_Found") -> tuple[RefreshRun.Status, str]:
    """(status, error) of a run that refused rows, or files."""
    good = found.read > found.refused + found.ignored or found.seen > found.read or found.known
    good = good or (found.whole and not found.refused)
    told = []
    if found.failed:
        told.append(f"{found.failed} of {found.failed + found.whole + found.known} files could not be read.")
    if found.refused:
        told.append(
            f"{found.refused} of {found.read} rows were refused; the others are stored."
            if good
            else f"All {found.refused} rows were refused."
        )
    return RefreshRun.Status.PARTIAL if good else RefreshRun.Status.FAILED, " ".join([*told, *found.problems[:5]])[
        :4_000
    ]


@dataclass
class _Found:
    """What a run has come upon so far. Of the rows that were `seen`, `read` are those that no earlier run had read.

    Of many files `known` had been read by an earlier run, `whole` were read to their end, `failed` were not, and `left` are for the next.
    """

    seen: int = 0
    read: int = 0
    rows: int | None = 0
    refused: int = 0
    ignored: int = 0
    newest: dt.datetime | None = None
    refused_from: dt.datetime | None = None
    known: int = 0
    whole: int = 0
    failed: int = 0
    left: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, stored: Stored, seen: int) -> None:
        self.seen, self.read = self.seen + seen, self.read + seen - stored.skipped
        self.rows = (self.rows or 0) + stored.accepted + stored.changed
        self.refused, self.ignored = self.refused + stored.refused, self.ignored + stored.ignored
        self.newest = max(filter(None, (self.newest, stored.newest)), default=None)
        self.problems += stored.problems[: max(0, 5 - len(self.problems))]
        self.refused_from = min(filter(None, (self.refused_from, stored.refused_from)), default=None)


class _GivenUp(SourceFailed):
    """Another has ended this run: its worker was taken for lost."""


def _check_ours(run: RefreshRun, *, rows: int | None, now: dt.datetime) -> None:
    kept = RefreshRun.objects.filter(pk=run.pk, status=RefreshRun.Status.RUNNING).update(heartbeat_at=now, rows=rows)
    if not kept:
        raise _GivenUp("The run was given up while it went on.")


def _end(
    run: RefreshRun,
    source: Source | None,
    *,
    now: dt.datetime,
    status: RefreshRun.Status,
    found: _Found,
    error: str | None,
) -> None:
    """Close a run. One that brought rows has refreshed what the source feeds, whatever it refused: that is read again by the next."""
    with transaction.atomic():
        bind_job("telemetry.sources")
        ended = RefreshRun.objects.filter(pk=run.pk, status=RefreshRun.Status.RUNNING).update(
            status=status,
            finished_at=now,
            rows=found.rows,
            refused=found.refused,
            ignored=found.ignored,
            error=error,
            data_watermark=found.newest,
        )
        if not ended or source is None:
            return
        held = Source.objects.select_for_update().get(pk=source.pk)
        if status == RefreshRun.Status.FAILED:
            held.failures += 1
            wait_s = min(held.schedule_s, _FIRST_RETRY_S * 2 ** min(held.failures - 1, 20))
            held.due_at = min(held.due_at, now + dt.timedelta(seconds=wait_s))
        else:
            held.failures = 0
            held.last_refresh_at = max(filter(None, (held.last_refresh_at, now)))
            held.read_to = max(filter(None, (held.read_to, found.newest)), default=None)
            held.again_from = None
            if found.left:
                held.due_at = min(held.due_at, now)
            if found.refused_from and not found.whole and held.read_to and found.refused_from < held.read_to:
                held.again_from = max(found.refused_from, held.read_to - LATE)
        held.save(update_fields=["failures", "due_at", "last_refresh_at", "read_to", "again_from"])
