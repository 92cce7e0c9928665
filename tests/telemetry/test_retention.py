"""What is past its time goes, and nothing else; hour sums go with their rows."""

import datetime as dt
import uuid
from typing import Any

import pytest
from django.db import connection

from decisioning.access.models import Team
from experiments.models import Experiment, Metric, Variant
from telemetry import hours, retention
from telemetry.models import Event, QuarantinedEvent, RefreshRun
from telemetry.tasks import keep, partitions
from tests.conftest import as_role

NOW = dt.datetime.now(dt.UTC)
MONTH = (NOW - dt.timedelta(days=400)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@pytest.fixture
def experiment(team: Team) -> Experiment:
    with as_role("owner"):
        Metric.objects.create(key="vrps", name="Value per session", created_at=NOW)
        made = Experiment.objects.create(
            key="checkout", name="Checkout", hypothesis="h", owner="o", team=team, status="running", created_at=NOW, started_at=NOW
        )  # fmt: skip
        Variant.objects.create(experiment=made, team=team, key="control", control=True, position=0)
    return made


def put(experiment: Experiment, *stamps: dt.datetime) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        for ts in stamps:
            cursor.execute(
                "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, variant, value) VALUES (%s, %s, 'vrps', 'control', 1)",
                [experiment.pk, ts],
            )


def one(sql: str) -> Any:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(sql)
        return (cursor.fetchone() or (None,))[0]


def test_months_past_the_retention_go_with_their_hours_and_the_others_stay(experiment: Experiment) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT metrics.make_partitions(%s, %s)", [MONTH - dt.timedelta(days=40), MONTH])
    put(experiment, MONTH - dt.timedelta(days=20), MONTH - dt.timedelta(minutes=1), MONTH, NOW)
    with as_role("worker"):
        while hours.rebuild_changed()[0]:
            pass
        swept = retention.sweep(now=NOW)
        assert len(swept.partitions) >= 2
        assert hours.differences() == []
    assert one("SELECT count(*) FROM metrics.experiment_kpis") == 2
    assert one("SELECT count(*) FROM metrics.kpi_hours") == 2


def test_old_runs_events_and_answers_go_and_an_event_that_waits_stays(team: Team) -> None:
    old, older = NOW - dt.timedelta(days=91), NOW - dt.timedelta(days=1000)
    with as_role("owner"):
        for finished in (old, NOW):
            RefreshRun.objects.create(
                run_id=uuid.uuid4(), job_name="j", team=team, status="failed", finished_at=finished
            )
        RefreshRun.objects.create(run_id=uuid.uuid4(), job_name="still running", team=team, started_at=older)
        for number, received in enumerate((old, NOW)):
            Event.objects.create(team=team, source="s", event_id=str(number), type="t", received_at=received)
        for number, replayed in enumerate((None, old, NOW)):
            QuarantinedEvent.objects.create(
                team=team, source="s", event_id=str(number), type="t", reason="r", body={}, received_at=older, replayed_at=replayed
            )  # fmt: skip
        with connection.cursor() as cursor:
            for hour in (25, 23):
                cursor.execute(
                    "INSERT INTO metadata.idempotency VALUES ('key:1', %s, '', 201, '{}', '', %s)",
                    [str(hour), NOW - dt.timedelta(hours=hour)],
                )
    with as_role("worker"):
        swept = retention.sweep(now=NOW)
    assert (swept.refresh_log, swept.events, swept.quarantined_events, swept.idempotency) == (1, 1, 1, 1)
    with as_role("owner"):
        assert not QuarantinedEvent.objects.filter(replayed_at=old).exists()
    with as_role("worker"):
        keep()
        assert not RefreshRun.objects.filter(job_name="portal/retention").exists(), "what did nothing leaves no run"


def test_a_row_in_the_default_partition_is_kept_and_reported_until_it_has_a_month(experiment: Experiment) -> None:
    with as_role("worker"):
        partitions()
    put(experiment, dt.datetime(1999, 5, 5, tzinfo=dt.UTC))
    with as_role("worker"):
        with pytest.raises(retention.RowsStranded):
            partitions()
        run = RefreshRun.objects.get(job_name="portal/default-partition")
        assert (run.status, "1 rows" in str(run.error)) == ("failed", True)
    with as_role("worker"), connection.cursor() as cursor:
        cursor.execute("SELECT metrics.make_partitions('1999-05-01', '1999-05-31')")
        retention.refuse_stranded_rows()
    assert one("SELECT count(*) FROM metrics.experiment_kpis") == 1
