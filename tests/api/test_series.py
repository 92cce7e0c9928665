"""Rows come out as they went in: as JSON in pages, as CSV in one piece, or summed."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.conftest import Caller
from tests.conftest import as_role

START = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
BUCKET = timedelta(minutes=15)


@pytest.fixture
def path(ops: Caller) -> str:
    made = ops.experiment(target_kpis=["vrps", {"metric": "signup", "role": "shown"}], started_at=START.isoformat())
    rows = [
        {"metric": metric, "variant": variant, "ts": (START + (i + 1) * BUCKET).isoformat(), "value": i + 0.25, "n": 10, "variance": 2.0}
        for i in range(8)
        for metric in ("vrps", "signup")
        for variant in ("treatment", "control")
    ]  # fmt: skip
    path = f"/api/experiments/{made['id']}/kpis"
    assert ops.post(path, {"rows": rows}).json()["accepted"] == 32
    return path


def test_pages_follow_ts_metric_variant_and_lose_nothing(ops: Caller, path: str) -> None:
    seen: list[dict[str, Any]] = []
    url = f"{path}?limit=5"
    while url:
        answer = ops.get(url.removeprefix("http://testserver")).json()
        assert len(answer["results"]) <= 5
        seen += answer["results"]
        url = answer["next"]
    order = [(r["ts"], r["metric"], r["variant"]) for r in seen]
    assert len(order) == 32
    assert order == sorted(set(order))
    assert seen[0].keys() == {"metric", "variant", "ts", "value", "n", "variance", "revision", "received_at"}
    assert (seen[0]["value"], seen[0]["n"], seen[0]["variance"], seen[0]["revision"]) == (0.25, 10, 2.0, None)


def test_the_range_names_both_its_ends(ops: Caller, path: str) -> None:
    since, until = START + BUCKET, START + 2 * BUCKET
    query = f"metric=vrps&variant=control&from={since.isoformat()}&to={until.strftime('%Y-%m-%dT%H:%M:%SZ')}"
    assert [r["value"] for r in ops.get(f"{path}?{query}").json()["results"]] == [0.25, 1.25]
    assert ops.get(f"{path}?metric=none").json() == {"results": [], "next": None}


def test_csv_is_the_whole_range_whatever_the_limit(ops: Caller, path: str) -> None:
    answer = ops.get(f"{path}?limit=2&metric=vrps", Accept="text/csv")
    assert answer["Content-Type"].startswith("text/csv")
    lines = answer.content.decode().splitlines()
    assert lines[0] == "metric,variant,ts,value,n,variance,revision,received_at"
    assert len(lines) == 17
    assert lines[1].startswith(f"vrps,control,{(START + BUCKET).strftime('%Y-%m-%dT%H:%M:%SZ')},0.25,10,2,,2026")
    assert ops.get(path, Accept="image/png").status_code == 406


def test_hours_and_days_are_merged_by_units(ops: Caller, path: str) -> None:
    from telemetry.hours import rebuild_changed

    with as_role("worker"):
        rebuild_changed()
    hours = ops.get(f"{path}?resolution=hour&metric=vrps&variant=control").json()["results"]
    assert [(h["value"], h["n"]) for h in hours] == [(1.75, 40), (5.75, 40)]
    assert hours[0]["ts"] == (START + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    days = ops.get(f"{path}?resolution=day&metric=vrps&variant=control").json()["results"]
    assert sum(d["n"] for d in days) == 80
    if len(days) == 1:
        # between the eight means 0.25 to 7.25: 10 * sum((i - 3.5)^2) = 420; within: 8 * 9 * 2 = 144
        assert (days[0]["value"], days[0]["variance"]) == (3.75, pytest.approx((420 + 144) / 79))


def test_what_it_does_not_know_is_400(ops: Caller, path: str) -> None:
    for query in (
        "resolution=week",
        "limit=10001",
        "from=now",
        "to=2026-11-24T00:00:00",
        "cursor=x",
        "cursor=eHx5fHo=",
    ):
        assert ops.get(f"{path}?{query}").json()["code"] == "invalid_parameter", query
    assert ops.get(f"{path}?format=csv").json()["code"] == "unknown_parameter"


def test_what_rows_do_not_say_their_sums_do_not_say_either(ops: Caller) -> None:
    from telemetry.hours import rebuild_changed

    share = {"metric": {"key": "signup", "kind": "proportion", "direction": "increase"}, "role": "shown"}
    load = {"metric": {"key": "load", "kind": "gauge"}, "role": "shown"}
    made = ops.experiment(target_kpis=[share, load], started_at=START.isoformat())
    path = f"/api/experiments/{made['id']}/kpis"
    rows = [
        {"metric": metric, "variant": "control", "ts": (START + i * BUCKET).isoformat(), "value": value, **units}
        for metric, units in (("signup", {"n": 10}), ("load", {}))
        for i, value in ((1, 0.25), (2, 0.75))
    ]
    assert ops.post(path, {"rows": rows}).json()["accepted"] == 4
    with as_role("worker"):
        rebuild_changed()

    for resolution in ("hour", "day"):
        found = {r["metric"]: r for r in ops.get(f"{path}?resolution={resolution}&variant=control").json()["results"]}
        assert (found["signup"]["value"], found["signup"]["n"], found["signup"]["variance"]) == (0.5, 20, None)
        assert (found["load"]["value"], found["load"]["n"], found["load"]["variance"]) == (0.5, None, None)
