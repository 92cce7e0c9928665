"""How far data reaches: only rows that say something new move a watermark, wherever it is told."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from experiments.models import Experiment
from gates.decisions import stale_series
from telemetry.breaches import breached
from telemetry.freshness import WATERMARK_SQL
from telemetry.models import Source
from telemetry.refresh import fed
from tests.api.conftest import Caller
from tests.conftest import as_role
from tests.examples import examples

AT = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def measured(ops: Caller) -> dict[str, Any]:
    return ops.experiment()


Said = tuple[int | None, float]


def newest_news(rows: list[Said], *, cumulative: bool) -> int | None:
    """Position of the newest row that counts, as the gates read a series: not n = 0, nor a cumulative row equal to the one before."""
    found, before = None, None
    for i, (n, value) in enumerate(rows):
        if n != 0 and (not cumulative or n is None or (n, value) != before):
            found = i
        before = (n, value)
    return found


@examples(25, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    rows=st.lists(st.tuples(st.sampled_from([None, 0, 0, 5, 5, 7]), st.sampled_from([1.0, 1.0, 2.0])), max_size=8),
    temporality=st.sampled_from(["delta", "cumulative"]),
)
def test_the_database_finds_the_row_that_the_gates_find(
    measured: dict[str, Any], rows: list[Said], temporality: str
) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM metrics.experiment_kpis")
        for i, (n, value) in enumerate(rows):
            cursor.execute(
                "INSERT INTO metrics.experiment_kpis (experiment_id, team_id, metric, variant, ts, value, n) VALUES (%s, (SELECT team_id FROM metadata.experiments), 'm', 'v', %s, %s, %s)",
                [measured["id"], AT + i * HOUR, value, n],
            )
        cursor.execute(
            "SELECT "
            + WATERMARK_SQL.format(
                experiment=str(measured["id"]),
                metric="'m'",
                variant="'v'",
                temporality=f"'{temporality}'",
                sparse="false",
            )
        )
        found = cursor.fetchone()
    place = newest_news(rows, cumulative=temporality == "cumulative")
    assert (found and found[0]) == (None if place is None else AT + place * HOUR)


@pytest.mark.parametrize("temporality", ["delta", "cumulative"])
def test_a_feed_that_goes_on_without_new_units_is_late_everywhere(ops: Caller, temporality: str) -> None:
    now = datetime.now(UTC)
    metric = {"key": "empty", "temporality": temporality, "expected_every_s": 3600, "freshness_target_s": 600}
    made = ops.experiment(name="Feed", target_kpis=[{"metric": metric}], started_at=(now - 20 * HOUR).isoformat())
    rows = [
        {"metric": "empty", "variant": variant, "ts": (now - hours * HOUR).isoformat(), "value": 1.0, "variance": 1.0,
         "n": (500 if hours > 5 else 0) if temporality == "delta" else min(500, 100 * (21 - hours))}
        for variant in ("control", "treatment")
        for hours in range(1, 20)
    ]  # fmt: skip
    assert ops.post(f"/api/experiments/{made['id']}/kpis", {"rows": rows}).status_code == 200

    document = ops.get(f"/api/experiments/{made['id']}").json()
    (kpi,) = document["kpis"]
    assert kpi["freshness"]["state"] == document["freshness"]["state"] == "stale"
    assert kpi["values"][0]["ts"].startswith(f"{now - HOUR:%Y-%m-%dT%H:%M}"), "the newest row is shown all the same"
    with as_role("worker"):
        assert [wrong.data["experiment"] for wrong in breached(now=now)] == [made["key"]]
        assert stale_series(Experiment.objects.get(pk=made["id"]), now) == ["empty of control", "empty of treatment"]
    assert ops.get("/api/freshness").json()["results"][0]["state"] == "stale"
    with as_role("owner"):
        source = Source.objects.create(
            key="feed", team=ops.team, kind="file", path="x.csv", query="SELECT :since, :until", schedule_s=3600, metrics=["empty"],
            created_at=now, due_at=now,
        )  # fmt: skip
    assert fed([source], now=now)[source.pk].state == "stale"
