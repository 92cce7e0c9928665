"""What the audit costs where it could hurt: a batch of 1,000 KPI rows, with its entry and without."""

import datetime as dt
import statistics
import time

import pytest
from django.db import connection

from decisioning.access.models import Team
from experiments.models import Experiment, Metric
from telemetry.ingest import Target, ingest
from telemetry.row import Row
from tests.conftest import as_role

pytestmark = [pytest.mark.benchmarks, pytest.mark.django_db]

_WITHOUT = """CREATE OR REPLACE FUNCTION audit.write(label text, action int, pk text, repr text, changes jsonb, team bigint, experiment bigint)
RETURNS bigint LANGUAGE sql AS $$ SELECT NULL::bigint $$"""
BATCH, ROUNDS = 1000, 40


def test_the_audit_entry_costs_a_batch_at_most_5_percent(team: Team, now: dt.datetime) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        Metric.objects.create(key="vrps", name="Value per session", created_at=now)
        start = now - dt.timedelta(days=200)
        experiment = Experiment.objects.create(
            key="checkout", name="Checkout", hypothesis="h", owner="o", team=team, status="running", created_at=now, started_at=start
        )  # fmt: skip
        target = Target(experiment.pk, team.pk, frozenset({"control"}))
        cursor.execute("SELECT pg_get_functiondef('audit.write'::regproc)")
        (with_entry,) = cursor.fetchone() or ("",)
        seconds: dict[bool, list[float]] = {True: [], False: []}
        at = start
        for turn in range(2 * ROUNDS):
            audited = turn % 2 == 0
            cursor.execute(with_entry if audited else _WITHOUT)
            rows = []
            for _ in range(BATCH):
                at += dt.timedelta(minutes=1)
                rows.append(Row(metric="vrps", variant="control", ts=at, value=1.0, n=10, variance=2.0))
            began = time.perf_counter()
            ingest(target, list(enumerate(rows)), now=now)
            seconds[audited].append(time.perf_counter() - began)
        cursor.execute(with_entry)
        cursor.execute("SELECT count(*) FROM audit.entries WHERE object_pk = 'batch'")
        assert cursor.fetchone() == (ROUNDS,)
    took, bare = (statistics.median(seconds[audited]) for audited in (True, False))
    print(f"\n{BATCH} rows: {took * 1000:.2f} ms with the entry, {bare * 1000:.2f} ms without: {took / bare - 1:+.1%}")  # noqa: T201
    assert took / bare <= 1.05
