"""Schedules and planned outages over HTTP: taken as they are meant, refused at their field, dated."""

from typing import Any

import pytest

from experiments.models import MetricSchedule
from telemetry.models import Outage
from tests.api.conftest import Caller
from tests.conftest import as_role

BERLIN = {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}
WINDOW = {
    "from": "2026-11-01T00:00:00Z",
    "to": "2026-11-02T06:00:00Z",
    "reason": "The warehouse moves",
    "metrics": ["visits"],
}


def metric(ops: Caller, key: str = "visits", **said: Any) -> Any:
    return ops.post("/api/metrics", {"key": key, "name": key, **said})


def test_a_metric_says_when_its_buckets_end_in_words(ops: Caller) -> None:
    made = metric(ops, expected=BERLIN, freshness_target_s=3600)

    assert made.status_code == 201, made.json()
    told = ops.get("/api/metrics/visits").json()
    assert (told["expected"], told["expected_in_words"]) == (BERLIN, "weekdays at 06:00 Europe/Berlin")
    assert told["expected_every_s"] == 86_400
    assert told["schedules"] == [{"since": None, "expected": BERLIN, "words": "weekdays at 06:00 Europe/Berlin"}]


def test_seconds_are_told_as_a_schedule_too(ops: Caller) -> None:
    told = metric(ops, expected_every_s=3600).json()

    assert (told["expected"], told["expected_in_words"], told["schedules"]) == ({"every_s": 3600}, "every hour", [])


@pytest.mark.parametrize(
    ("said", "pointer", "code"),
    [
        ({"expected": {"cron": "0 6 * * *", "timezone": "Mars/Base"}}, "/expected/timezone", "unknown_timezone"),
        ({"expected": {"cron": "0 0 30 2 *"}}, "/expected/cron", "never_due"),
        ({"expected": {"cron": "*/5 * * * * *"}}, "/expected/cron", "too_often"),
        ({"expected": {"cron": "0 6 * * *", "every_s": 60}}, "/expected", "two_schedules"),
        ({"expected": {"cron": "0 6 * * *"}, "expected_every_s": 60}, "/expected", "two_schedules"),
        ({"expected": {}}, "/expected", "missing_field"),
        ({"expected": "daily"}, "/expected", "invalid"),
    ],
)
def test_a_schedule_that_is_none_is_refused_at_its_field(ops: Caller, said: Any, pointer: str, code: str) -> None:
    refused = metric(ops, **said)

    assert refused.status_code == 422
    assert [(error["pointer"], error["code"]) for error in refused.json()["errors"]] == [(pointer, code)]


def test_a_target_of_more_than_a_year_warns(ops: Caller) -> None:
    late = {"expected": BERLIN, "freshness_target_s": 400 * 86_400}
    (warning,) = metric(ops, **late).json()["warnings"]
    assert "400 days late" in warning
    assert ops.get("/api/metrics/visits").json()["warnings"] == [warning]
    (of_plan,) = ops.experiment(target_kpis=[{"metric": {"key": "seldom", **late}}])["warnings"]
    assert of_plan == warning.replace("visits", "seldom")


def test_a_metric_of_which_nothing_says_how_often_it_comes_says_what_that_means(ops: Caller) -> None:
    made = metric(ops).json()

    assert (made["expected_every_s"], made["expected_in_words"]) == (900, "every 15 minutes")
    (warning,) = made["warnings"]
    assert warning == (
        "Nothing says how often visits comes, so a row is expected every 15 minutes. Say it, such as "
        'expected: {"every": "daily", "at": "06:00", "timezone": "Europe/Berlin"} or {"every_s": 3600}.'
    )
    assert "warnings" not in metric(ops, "hourly", expected_every_s=3600).json()
    of_plan = ops.experiment(target_kpis=["visits", "new_one", {"metric": {"key": "said", "expected": BERLIN}}])
    assert [warning.split()[4] for warning in of_plan["warnings"]] == ["new_one"]
    draft = ops.experiment(target_kpis=["visits"], start=False)
    assert draft["warnings"] == []
    changed = ops.patch(f"/api/experiments/{draft['key']}", {"target_kpis": ["visits", "later_one"]}).json()
    assert [warning.split()[4] for warning in changed["warnings"]] == ["later_one"]


def test_a_new_schedule_is_dated_and_the_old_one_holds_before_it(ops: Caller) -> None:
    metric(ops, expected_every_s=3600)

    changed = ops.patch("/api/metrics/visits", {"expected": BERLIN, "expected_from": "2026-11-20T00:00:00Z"})

    assert changed.status_code == 200, changed.json()
    assert [(s["since"], s["words"]) for s in changed.json()["schedules"]] == [
        (None, "every hour"), ("2026-11-20T00:00:00Z", "weekdays at 06:00 Europe/Berlin"),
    ]  # fmt: skip
    always = ops.patch("/api/metrics/visits", {"expected": {"every_s": 900}, "expected_from": None}).json()
    assert (always["schedules"], always["expected"]) == ([], {"every_s": 900})
    with as_role("owner"):
        assert MetricSchedule.objects.count() == 0


def test_what_says_from_when_has_to_say_what(ops: Caller) -> None:
    metric(ops)
    refused = ops.patch("/api/metrics/visits", {"expected_from": "2026-11-20T00:00:00Z"})
    assert [(e["pointer"], e["code"]) for e in refused.json()["errors"]] == [("/expected_from", "missing_field")]


def test_an_outage_is_planned_changed_and_taken_back(ops: Caller) -> None:
    metric(ops)

    made = ops.post("/api/outages", WINDOW)
    assert made.status_code == 201, made.json()
    assert {name: made.json()[name] for name in WINDOW} == WINDOW
    address = f"/api/outages/{made.json()['id']}"
    assert ops.patch(address, {"to": "2026-11-03T00:00:00Z"}).json()["to"] == "2026-11-03T00:00:00Z"
    assert [outage["id"] for outage in ops.get("/api/outages").json()["results"]] == [made.json()["id"]]
    assert ops.delete(address).status_code == 204
    with as_role("owner"):
        assert not Outage.objects.exists()


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"to": "2026-10-01T00:00:00Z"}, "/to", "window_order"),
        ({"to": WINDOW["from"]}, "/to", "window_order"),
        ({"metrics": ["nothing"]}, "/metrics/0", "unknown_metric"),
        ({"metrics": [], "sources": ["none"]}, "/sources/0", "unknown_source"),
        ({"metrics": []}, "/metrics", "missing_field"),
        ({"reason": " "}, "/reason", "missing_field"),
        ({"from": "2026-11-01T00:00:00"}, "/from", "naive_timestamp"),
    ],
)
def test_an_outage_that_is_none_is_refused_at_its_field(ops: Caller, changes: Any, pointer: str, code: str) -> None:
    metric(ops)
    refused = ops.post("/api/outages", {**WINDOW, **changes})

    assert refused.status_code == 422
    assert [(error["pointer"], error["code"]) for error in refused.json()["errors"]] == [(pointer, code)]
