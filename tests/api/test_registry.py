"""What a metric means while it is judged by, who uses it, its bounds, its retirement."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.test import Client

from experiments.models import Metric
from telemetry import ingest
from tests.api.conftest import Caller, errors_of
from tests.conftest import as_role

TS = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
MEANINGS = [
    ("direction", "decrease"),
    ("kind", "proportion"),
    ("temporality", "cumulative"),
    ("counts_assignment", False),
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds hold at once, in place of five seconds later."""
    monkeypatch.setattr(ingest, "_MEASURED_FOR_S", -1)


def test_what_a_metric_means_cannot_change_while_started_experiments_are_judged_by_it(
    ops: Caller, stranger: Caller
) -> None:
    made = ops.experiment(key="mine")
    stranger.experiment(key="theirs")
    for name, value in MEANINGS:
        refused = ops.patch("/api/metrics/vrps", {name: value})
        told = refused.json()
        assert (refused.status_code, told["code"], errors_of(refused)) == (
            409,
            "metric_in_use",
            [(f"/{name}", "metric_in_use")],
        )
        assert (told["experiments"], told["others"]) == (["mine"], 1)
        assert "mine and 1 of another team" in told["detail"]
        assert "theirs" not in refused.content.decode()
    same = ops.patch("/api/metrics/vrps", {"direction": "increase", "name": "Value", "unit": "eur"})
    assert (same.status_code, same.json()["name"]) == (200, "Value")
    assert same.json()["used_by"] == {"experiments": ["mine"], "others": 1}
    assert ops.patch("/api/metrics/vrps", {"expected": {"every_s": 3600}}).status_code == 200, "a schedule is dated"
    for of, experiment in ((ops, made["key"]), (stranger, "theirs")):
        assert of.post(f"/api/experiments/{experiment}/transitions", {"to": "stopped"}).status_code < 300
    assert ops.patch("/api/metrics/vrps", {"direction": "decrease"}).json()["direction"] == "decrease"


def test_a_draft_freezes_nothing_and_another_teams_metric_is_not_ones_own_to_change(
    ops: Caller, stranger: Caller
) -> None:
    ops.experiment(start=False)
    assert ops.patch("/api/metrics/vrps", {"direction": "decrease"}).status_code == 200
    assert stranger.patch("/api/metrics/vrps", {"name": "Mine"}).status_code == 403


@pytest.mark.parametrize(("name", "value"), [*MEANINGS, ("key", "other")])
def test_the_database_holds_the_meaning_of_a_metric_too(ops: Caller, name: str, value: object) -> None:
    ops.experiment()
    with as_role("owner"), pytest.raises(IntegrityError, match="metric_in_use"), transaction.atomic():
        Metric.objects.filter(key="vrps").update(**{name: value})
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("UPDATE metadata.metrics SET name = 'x', direction = direction WHERE key = 'vrps'")
        assert cursor.rowcount == 1


def test_a_retired_metric_leaves_the_lists_and_is_taken_by_no_new_plan(ops: Caller) -> None:
    ops.experiment(key="old")
    assert ops.post("/api/metrics", {"key": "revenue", "name": "Revenue"}).status_code == 201
    retired = ops.patch("/api/metrics/vrps", {"retired_at": TS.isoformat(), "replaced_by": "revenue"}).json()
    assert (retired["replaced_by"], retired["retired_at"] is not None) == ("revenue", True)
    listed = [[m["key"] for m in ops.get(f"/api/metrics{query}").json()["results"]] for query in ("", "?retired=true")]
    assert listed == [["revenue"], ["vrps"]]
    refused = ops.post("/api/experiments", {"name": "n", "hypothesis": "h", "target_kpis": ["vrps"]})
    assert errors_of(refused) == [("/target_kpis/0/metric", "metric_retired")]
    assert "Use revenue" in refused.json()["detail"]
    row = {"metric": "vrps", "variant": "control", "ts": TS.isoformat(), "value": 1}
    assert ops.post("/api/experiments/old/kpis", {"rows": [row]}).status_code == 200, "what runs goes on"
    assert errors_of(ops.patch("/api/metrics/revenue", {"replaced_by": "vrps"}))[0] == (
        "/replaced_by",
        "metric_retired",
    )
    assert errors_of(ops.patch("/api/metrics/vrps", {"replaced_by": "none"})) == [("/replaced_by", "unknown_metric")]
    assert ops.patch("/api/metrics/vrps", {"retired_at": None}).json()["retired_at"] is None
    assert errors_of(ops.patch("/api/metrics/revenue", {"replaced_by": "vrps"})) == [("/replaced_by", "invalid")], (
        "a circle"
    )


def test_rows_outside_the_bounds_of_their_metric_are_refused_with_what_may_be_meant(ops: Caller) -> None:
    share = {"key": "share", "name": "Share", "kind": "proportion"}
    assert (
        ops.post("/api/metrics", {"key": "revenue", "name": "R", "bounds": {"min": 0}, "capped_at": 500}).json()[
            "capped_at"
        ]
        == 500
    )
    made = ops.experiment(target_kpis=["revenue", {"metric": share}])
    good = [
        {"metric": m, "variant": "control", "ts": TS.isoformat(), "value": v}
        for m, v in (("revenue", 7), ("share", 0.4))
    ]
    bad = [{**good[0], "variant": "treatment", "value": -1}, {**good[1], "variant": "treatment", "value": 5}]
    told = ops.post(f"/api/experiments/{made['id']}/kpis?atomic=false", {"rows": [*good, *bad]}).json()
    assert told["accepted"] == 2
    assert [(e["pointer"], e["code"]) for e in told["errors"]] == [
        (f"/rows/{n}/value", "out_of_bounds") for n in (2, 3)
    ]
    assert "must be at least 0" in told["errors"][0]["detail"]
    assert "5% is 0.05" in told["errors"][1]["detail"]
    assert ops.get("/api/metrics/share").json()["bounds"] == {"min": 0, "max": 1}
    assert errors_of(ops.patch("/api/metrics/revenue", {"bounds": {"min": 3, "max": 2}})) == [
        ("/bounds", "min_over_max")
    ]
    assert errors_of(ops.patch("/api/metrics/share", {"bounds": {"max": 40}})) == [("/bounds/max", "out_of_bounds")]
    assert ops.patch("/api/metrics/revenue", {"bounds": None}).json()["bounds"] == {"min": None, "max": None}


def test_a_baseline_or_target_that_a_share_never_has_is_refused_with_a_hint(ops: Caller) -> None:
    kpi = {"metric": {"key": "share", "kind": "proportion"}, "baseline": {"mean": 5, "stddev": 1}}
    refused = ops.post("/api/experiments", {"name": "n", "hypothesis": "h", "target_kpis": [kpi]})
    assert errors_of(refused) == [("/target_kpis/0/baseline/mean", "out_of_bounds")]
    assert "5% is 0.05" in refused.json()["detail"]


def test_the_admin_shows_who_uses_a_metric_and_asks_no_meaning_of_one_in_use(ops: Caller) -> None:
    ops.experiment(key="mine")
    with as_role("owner"):
        person = User.objects.create_superuser("ada", "ada@example.org", "x")
        metric = Metric.objects.get(key="vrps")
    client = Client()
    client.force_login(person)
    assert "mine" in client.get("/admin/experiments/metric/").content.decode()
    page = client.get(f"/admin/experiments/metric/{metric.pk}/change/")
    form = page.context["adminform"].form
    assert not {"direction", "kind", "temporality", "counts_assignment"} & set(form.fields)
    assert {"name", "unit", "minimum", "retired_at", "replaced_by"} <= set(form.fields)
    with as_role("owner"):
        Metric.objects.filter(key="vrps").update(retired_at=TS)
    shown = [
        client.get(f"/admin/experiments/metric/{query}").context["cl"].result_count
        for query in ("", "?retired=yes", "?retired=all")
    ]
    assert shown == [0, 1, 1]
