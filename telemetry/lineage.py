"""OpenLineage run events -> metadata.refresh_log, one row a run, whatever the order in which events come and how often.

The merge is commutative and idempotent, because every stored field is a maximum or a minimum over the events seen so far:
`started_at` the earliest START; status, finished_at, rows and error those of the greatest terminal event, ordered by
(eventTime, FAIL > ABORT > COMPLETE, rows, error). So a terminal state never reverts and a lost START leaves null.

A COMPLETE says that data arrived, and moves the sources that name its job, unless it is a test's, says that it did nothing, or wrote
nothing where other runs of its job have written. The statements that dbt runs for a model are folded into that model's run.
"""

import datetime as dt
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection

from decisioning.access.models import Team
from decisioning.refusals import Fault, Refused
from telemetry.models import Source
from telemetry.row import instant, time_faults

MAX_EVENTS = 1_000
_STATUS = {"COMPLETE": "succeeded", "ABORT": "aborted", "FAIL": "failed"}
LONGEST_JOB, _LONGEST_ERROR = 2_000, 10_000
_INDEXED = 2_600  # bytes
_MOST_ROWS = 2**63 - 1
_MOST_OUTPUTS = 30_000


@dataclass(frozen=True)
class RunEvent:
    """One event of one run. `kind` is START, RUNNING, COMPLETE, ABORT, FAIL or OTHER; rows and error only of the three that end it.

    outputs: how many datasets it names as written. idle: it says that nothing was done to data. folded: it is a part of another run.
    """

    run_id: uuid.UUID
    job_name: str
    kind: str
    at: dt.datetime
    rows: int | None = None
    error: str | None = None
    outputs: int = 0
    idle: bool = False
    folded: bool = False


class LineageRefused(Refused):
    """What is not OpenLineage; nothing of the request was stored."""


@dataclass(frozen=True)
class Batch:
    """What a request holds: run events, and every fault of the events that are none, by their place. `received`: events of any kind."""

    received: int
    events: tuple[RunEvent, ...]
    faults: Mapping[int, tuple[Fault, ...]]


def read(payload: object, *, batch: bool, now: dt.datetime) -> Batch:
    """Read each event by itself; job and dataset events are well-formed and say nothing here.

    Raises LineageRefused with every fault when there is no good event among them.
    """
    if batch and not isinstance(payload, list):
        raise LineageRefused.of(Fault("", "invalid", "A batch is a JSON array of events."))
    raws = payload if batch and isinstance(payload, list) else [payload]
    if len(raws) > MAX_EVENTS:
        detail = f"{len(raws)} events; at most {MAX_EVENTS} go in one request."
        raise LineageRefused.of(Fault("", "batch_too_large", detail), code="batch_too_large", status=413)
    found: list[RunEvent] = []
    faults: dict[int, tuple[Fault, ...]] = {}
    for index, raw in enumerate(raws):
        place = f"/{index}" if batch else ""
        if wrong := tuple(fault.under(place) for fault in _faults(raw, now)):
            faults[index] = wrong
        elif isinstance(raw, Mapping) and "run" in raw:
            found.append(_run_event(raw))
    if faults and len(faults) == len(raws):
        told = [fault for wrong in faults.values() for fault in wrong]
        raise LineageRefused.of(*told, code="invalid_rows" if batch else "invalid")
    return Batch(len(raws), tuple(found), faults)


def merge(events: Sequence[RunEvent], *, team: Team) -> None:
    """Store what the events say, in the caller's transaction, and move the sources that their jobs refresh."""
    # Two requests with the same runs cannot deadlock.
    ordered = sorted((event for event in events if not event.folded), key=lambda event: event.run_id.bytes)
    sources = _Sources(team)
    with connection.cursor() as cursor:
        cursor.executemany(_MERGE, [_stored(event, team, sources.first(event.job_name)) for event in ordered])
        refreshed: dict[int, dt.datetime] = {}
        for event in ordered:
            if event.kind == "COMPLETE" and not event.idle and (named := sources.of(event.job_name)):
                cursor.execute(_WROTE, {"run_id": event.run_id, "job_name": event.job_name, "team": team.pk})
                if cursor.fetchone() == (True,):
                    refreshed |= {pk: max(event.at, refreshed.get(pk, event.at)) for pk in named}
        for pk, at in sorted(refreshed.items()):
            cursor.execute(_MOVE, {"source": pk, "at": at})


class _Sources:
    """The sources of a team by the jobs that they name."""

    def __init__(self, team: Team) -> None:
        found = Source.objects.filter(team=team).exclude(lineage_job="").order_by("id")
        self._named = [(pk, key, names_in(jobs)) for pk, key, jobs in found.values_list("pk", "key", "lineage_job")]

    def of(self, job_name: str) -> list[int]:
        return [pk for pk, _, names in self._named if any(_is_named(job_name, name) for name in names)]

    def first(self, job_name: str) -> str:
        """The key of the first of them, "" where there is none."""
        found = (key for _, key, names in self._named if any(_is_named(job_name, name) for name in names))
        return next(found, "")


def names_in(jobs: str) -> list[str]:
    """The names in a source's `lineage_job`, with commas or line breaks between them; * in one stands for anything.

    >>> names_in("dbt/run, dbt/model.*"), _is_named("dbt/model.kpis.build.run", "dbt/model.*.run"), _is_named("dbt/x", "dbt/?")
    (['dbt/run', 'dbt/model.*'], True, False)
    """
    return [name for part in re.split(r"[,\n]", jobs) if (name := part.strip())]


def _is_named(job_name: str, name: str) -> bool:
    if "*" not in name:
        return job_name == name
    return re.fullmatch(".*".join(map(re.escape, name.split("*"))), job_name, re.DOTALL) is not None


# Reading ------------------------------------------------------------------------------------------------------------------


def _faults(raw: object, now: dt.datetime) -> Iterator[Fault]:
    if not isinstance(raw, Mapping):
        yield Fault("", "invalid", "An event must be an object.")
        return
    if "eventTime" not in raw:
        yield Fault("/eventTime", "missing_field", "eventTime is missing.")
    else:
        # A source keeps the latest time that a run told: one ahead of now would have it refreshed until then.
        for code, detail in time_faults("eventTime", raw["eventTime"], now=now):
            yield Fault("/eventTime", code, detail)
    if "run" not in raw:
        if not isinstance(raw.get("job") or raw.get("dataset"), Mapping):
            yield Fault("/run", "missing_field", "The event names no run, job or dataset.")
        return
    yield from _run_faults(raw["run"])
    yield from _job_faults(raw.get("job"))
    kind = raw.get("eventType")
    if kind is not None and not isinstance(kind, str):
        yield Fault("/eventType", "invalid_text", "eventType must be text such as COMPLETE.")


def _run_faults(run: object) -> Iterator[Fault]:
    if not isinstance(run, Mapping):
        yield Fault("/run", "invalid", "run must be an object with a runId.")
        return
    try:
        uuid.UUID(run["runId"])
    except KeyError:
        yield Fault("/run/runId", "missing_field", "runId is missing.")
    except (ValueError, AttributeError, TypeError):
        yield Fault("/run/runId", "invalid", f"runId {str(run['runId'])[:60]!r} is no UUID.")


def _job_faults(job: object) -> Iterator[Fault]:
    if not isinstance(job, Mapping):
        yield Fault("/job", "missing_field", "job must be an object with namespace and name.")
        return
    for name in ("namespace", "name"):
        if job.get(name) is None:
            yield Fault(f"/job/{name}", "missing_field", f"{name} is missing.")
        elif not isinstance(job[name], str) or not job[name]:
            yield Fault(f"/job/{name}", "invalid_text", f"{name} must be text.")
        elif job[name] != _storable(job[name]):
            yield Fault(f"/job/{name}", "invalid_text", f"{name} has a NUL character or half a surrogate pair.")


def _storable(text: str) -> str:
    """The text as PostgreSQL can hold it."""
    return text.replace("\x00", "").encode(errors="ignore").decode()


def _in(value: object, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _job_name(job: Mapping[str, Any]) -> str:
    return kept_name(f"{job['namespace']}/{job['name']}")


def kept_name(name: str) -> str:
    """A job's name as it is kept: 2,000 characters of it, or what an index of PostgreSQL can hold.

    >>> len(kept_name("n/" + "x" * 3_000)), kept_name("airflow/daily")
    (2000, 'airflow/daily')
    """
    return name[:LONGEST_JOB].encode()[:_INDEXED].decode(errors="ignore")


def _count(said: object) -> int | None:
    """Rows written, as far as that is said: drivers that do not know say -1."""
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not 0 <= said <= _MOST_ROWS:
        return None
    return int(said) if said == int(said) else None


def _run_event(raw: Mapping[str, Any]) -> RunEvent:
    kind = str(raw.get("eventType") or "OTHER").upper()
    outputs = found if isinstance(found := raw.get("outputs"), list) else ()
    counts = (_count(_in(output, "outputFacets", "outputStatistics", "rowCount")) for output in outputs)
    known = [count for count in counts if count is not None]
    message = _in(raw, "run", "facets", "errorMessage", "message")
    ends = kind in _STATUS
    kind_of_job = _in(raw, "job", "facets", "jobType", "jobType")
    integration = _in(raw, "job", "facets", "jobType", "integration")
    return RunEvent(
        run_id=uuid.UUID(raw["run"]["runId"]),
        job_name=_job_name(raw["job"]),
        kind=kind,
        at=instant(raw["eventTime"]).astimezone(dt.UTC),
        rows=min(sum(known), _MOST_ROWS) if known and ends else None,
        error=_storable(message)[:_LONGEST_ERROR] if isinstance(message, str) and ends else None,
        outputs=min(len(outputs), _MOST_OUTPUTS),
        idle=_is(kind_of_job, "TEST") or _did_nothing(raw),
        folded=_is(kind_of_job, "SQL") and _is(integration, "DBT"),
    )


def _is(said: object, word: str) -> bool:
    return isinstance(said, str) and said.upper() == word


def _did_nothing(raw: Mapping[str, Any]) -> bool:
    """Whether Airflow says so: a task that was skipped, or never queued; a DAG of which no task succeeded."""
    task = _in(raw, "run", "facets", "airflow", "taskInstance")
    if isinstance(task, Mapping):
        if _is(task.get("state"), "SKIPPED"):
            return True
        if "queued_dttm" in task and task["queued_dttm"] is None and not task.get("duration"):
            return True
    states = _in(raw, "run", "facets", "airflowState", "tasksState")
    return isinstance(states, Mapping) and bool(states) and not any(_is(state, "SUCCESS") for state in states.values())


# Storing ------------------------------------------------------------------------------------------------------------------

_RANK = "CASE {0}.status WHEN 'failed' THEN 3 WHEN 'aborted' THEN 2 WHEN 'succeeded' THEN 1 ELSE 0 END"
_ORDER = f"(coalesce({{0}}.finished_at, '-infinity'), {_RANK}, coalesce({{0}}.rows, -1), coalesce({{0}}.error, '') COLLATE \"C\")"
_NEWER = f"{_ORDER.format('excluded')} > {_ORDER.format('r')}"
_MERGE = f"""
INSERT INTO metadata.refresh_log AS r (run_id, team_id, job_name, source, started_at, finished_at, status, rows, error, outputs)
VALUES (%(run_id)s, %(team)s, %(job_name)s, %(source)s, %(started_at)s, %(finished_at)s, %(status)s, %(rows)s, %(error)s, %(outputs)s)
ON CONFLICT (team_id, run_id) DO UPDATE SET
  job_name = least(r.job_name COLLATE "C", excluded.job_name),
  source = CASE WHEN excluded.job_name COLLATE "C" < r.job_name THEN excluded.source ELSE r.source END,
  started_at = least(r.started_at, excluded.started_at),
  status = CASE WHEN {_NEWER} THEN excluded.status ELSE r.status END,
  finished_at = CASE WHEN {_NEWER} THEN excluded.finished_at ELSE r.finished_at END,
  rows = CASE WHEN {_NEWER} THEN excluded.rows ELSE r.rows END,
  error = CASE WHEN {_NEWER} THEN excluded.error ELSE r.error END,
  outputs = greatest(r.outputs, excluded.outputs)
WHERE r.heartbeat_at IS NULL
"""  # noqa: S608 - no value is interpolated
# Only COMPLETE says that data arrived; greatest keeps the order of events out of it.
_MOVE = """
UPDATE metadata.sources SET last_refresh_at = greatest(last_refresh_at, %(at)s::timestamptz)
WHERE id = %(source)s AND last_refresh_at IS DISTINCT FROM greatest(last_refresh_at, %(at)s::timestamptz)
"""
_WROTE = """
SELECT coalesce(outputs, 0) > 0 OR NOT EXISTS (
  SELECT FROM metadata.refresh_log o WHERE o.team_id = %(team)s AND o.job_name = %(job_name)s AND o.outputs > 0)
FROM metadata.refresh_log WHERE team_id = %(team)s AND run_id = %(run_id)s
"""


def _stored(event: RunEvent, team: Team, source: str) -> dict[str, Any]:
    ended = event.kind in _STATUS
    return {
        "run_id": event.run_id,
        "team": team.pk,
        "job_name": event.job_name,
        "source": source,
        "outputs": event.outputs or None,
        "started_at": event.at if event.kind == "START" else None,
        "finished_at": event.at if ended else None,
        "status": _STATUS.get(event.kind, "running"),
        "rows": event.rows,
        "error": event.error,
    }
