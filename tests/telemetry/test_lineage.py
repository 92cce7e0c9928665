"""The merge of run events is commutative and idempotent: any order, any repeats, one result."""

import datetime as dt
import uuid
from typing import Any

import pytest
from django.db import transaction
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from telemetry.lineage import RunEvent, merge, read
from telemetry.models import RefreshRun
from tests.conftest import as_role
from tests.examples import examples

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)
RUNS = [uuid.UUID(int=n) for n in range(1, 3)]
ENDS = {"COMPLETE": (1, "succeeded"), "ABORT": (2, "aborted"), "FAIL": (3, "failed")}


def expected(events: list[RunEvent]) -> tuple[Any, ...]:
    """What docs/api.md says of all events of one run, in any order."""
    started = min((e.at for e in events if e.kind == "START"), default=None)
    ends = [e for e in events if e.kind in ENDS]
    if not ends:
        return min(e.job_name for e in events), started, None, "running", None, None
    last = max(ends, key=lambda e: (e.at, ENDS[e.kind][0], -1 if e.rows is None else e.rows, e.error or ""))
    return min(e.job_name for e in events), started, last.at, ENDS[last.kind][1], last.rows, last.error


@st.composite
def run_events(draw: st.DrawFn) -> RunEvent:
    kind = draw(st.sampled_from(["START", "RUNNING", "OTHER", *ENDS]))
    ends = kind in ENDS
    return RunEvent(
        run_id=draw(st.sampled_from(RUNS)),
        job_name=draw(st.sampled_from(["dbt/kpis", "dbt/kpis-renamed"])),
        kind=kind,
        at=NOON + dt.timedelta(seconds=draw(st.integers(0, 3))),
        rows=draw(st.none() | st.integers(0, 3)) if ends else None,
        error=draw(st.none() | st.sampled_from(["a", "é", "B"])) if ends else None,
    )


@pytest.mark.django_db
@examples(25, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(events=st.lists(run_events(), min_size=1, max_size=8), data=st.data())
def test_shuffled_and_repeated_events_end_where_all_of_them_at_once_would(
    team: Team, events: list[RunEvent], data: st.DataObject
) -> None:
    repeated = events + data.draw(st.lists(st.sampled_from(events), max_size=4))
    shuffled = data.draw(st.permutations(repeated))
    cut = data.draw(st.integers(0, len(shuffled)))
    with as_role("worker"), transaction.atomic():
        for part in (shuffled[:cut], shuffled[cut:]):
            merge(part, team=team)
        found = {
            run.run_id: (run.job_name, run.started_at, run.finished_at, run.status, run.rows, run.error or None)
            for run in RefreshRun.objects.all()
        }
        transaction.set_rollback(True)
    assert found == {
        run_id: expected([e for e in events if e.run_id == run_id]) for run_id in {e.run_id for e in events}
    }


def test_rows_are_summed_and_absent_counts_stay_unknown() -> None:
    said = {"eventTime": "2026-11-23T12:00:00Z", "run": {"runId": str(RUNS[0])}, "job": {"namespace": "n", "name": "j"}}
    counted = [{"outputFacets": {"outputStatistics": {"rowCount": 3}}}, {"outputFacets": {}}]
    (some,) = read({**said, "eventType": "COMPLETE", "outputs": counted}, batch=False, now=NOON).events
    (none,) = read({**said, "eventType": "COMPLETE", "outputs": [{}]}, batch=False, now=NOON).events
    (start,) = read({**said, "eventType": "START", "outputs": counted}, batch=False, now=NOON).events
    assert (some.rows, none.rows, start.rows) == (3, None, None)
