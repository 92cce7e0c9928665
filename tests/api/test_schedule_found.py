"""The schedule that rows show, over HTTP: found among the rows the caller may read, beside what is configured, taken by one PATCH."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection

from decisioning.access.scopes import Scope
from telemetry.feeds import MOST_ROWS
from tests.api.conftest import Caller, Makes
from tests.conftest import as_role

BERLIN = ZoneInfo("Europe/Berlin")
Stamps = list[datetime]


def weekday_mornings(days: int = 21) -> Stamps:
    """06:10 in Berlin, give or take twenty minutes, up to the day before yesterday."""
    today = datetime.now(BERLIN).replace(hour=6, minute=10, second=0, microsecond=0)
    mornings = [today - timedelta(days=n) for n in range(days, 1, -1)]
    return [
        (at + timedelta(minutes=17 * n % 41 - 20)).astimezone(UTC) for n, at in enumerate(mornings) if at.weekday() < 5
    ]


def hours(days: int = 5) -> Stamps:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return [now - timedelta(hours=n) for n in range(24 * days, 0, -1)]


def measured(caller: Caller, stamps: Stamps, *, metric: Any = "visits", **said: Any) -> str:
    """An experiment on the metric that has these rows."""
    began = min(stamps) - timedelta(hours=1)
    key: str = caller.experiment(target_kpis=[{"metric": metric}], started_at=began.isoformat(), **said)["key"]
    name = metric if isinstance(metric, str) else metric["key"]
    rows = [
        {"metric": name, "variant": arm, "ts": ts.isoformat(), "value": 1.0, "n": 10, "variance": 1.0}
        for ts in stamps
        for arm in ("control", "treatment")
    ]
    assert caller.post(f"/api/experiments/{key}/kpis", {"rows": rows}).status_code == 200
    return key


def test_rows_show_a_schedule_beside_the_configured_one_and_it_is_taken_by_one_patch(ops: Caller) -> None:
    ops.post("/api/metrics", {"key": "berlin", "name": "Another feed", "expected": {"every": "daily", "timezone": "Europe/Berlin"}})  # fmt: skip
    key = measured(ops, weekday_mornings(), name="Mornings")

    told = ops.get("/api/metrics/visits/schedule").json()

    found = told["found"]
    assert (told["state"], told["experiment"], found["told_by"]) == ("differs", key, "team")
    assert (found["expected"]["every"], found["expected"]["timezone"]) == ("weekdays", "Europe/Berlin")
    assert "05:55" <= found["expected"]["at"] <= "06:25"
    assert found["words"] == f"weekdays at about {found['expected']['at']} Europe/Berlin"
    assert found["fit"]["missing"] == found["fit"]["shared"] == 0
    assert told["configured"]["words"] == "every 15 minutes"
    assert told["configured"]["fit"]["missing"] > 900
    assert told["detail"].startswith(f"Rows come {found['words']}: ")

    taken = ops.patch("/api/metrics/visits", {"expected": found["expected"]})
    assert taken.status_code == 200, taken.json()
    assert [schedule["since"] is None for schedule in taken.json()["schedules"]] == [True, False]
    assert ops.get("/api/metrics/visits/schedule").json()["state"] == "as_configured"


def test_rows_that_come_as_configured_say_so(ops: Caller) -> None:
    measured(ops, hours(), metric={"key": "visits", "expected_every_s": 3600})

    told = ops.get("/api/metrics/visits/schedule").json()

    assert (told["state"], told["found"]["expected"]) == ("as_configured", {"every_s": 3600})
    assert told["detail"].startswith("Rows come as configured, every hour: 120 of 120 due instants answered")


def test_without_rows_nothing_is_concluded(ops: Caller) -> None:
    ops.post("/api/metrics", {"key": "visits", "name": "Visits"})
    told = ops.get("/api/metrics/visits/schedule").json()
    assert (told["state"], told["found"], told["configured"]["fit"], told["since"]) == ("not_enough_rows", None, None, None)  # fmt: skip
    assert told["detail"].startswith("0 rows")

    measured(ops, hours()[:5])
    told = ops.get("/api/metrics/visits/schedule").json()
    assert (told["state"], told["configured"]["fit"]["rows"]) == ("not_enough_rows", 5)


def test_irregular_rows_show_none(ops: Caller) -> None:
    start = datetime.now(UTC) - timedelta(days=10)
    measured(ops, [start + timedelta(minutes=(n * n * 7_919) % 14_000) for n in range(40)])

    told = ops.get("/api/metrics/visits/schedule").json()

    assert (told["state"], told["found"]) == ("irregular", None)
    assert told["detail"].startswith("No schedule explains these 40 rows")


def test_experiments_that_get_rows_by_different_schedules_are_told_apart(ops: Caller) -> None:
    first = measured(ops, weekday_mornings(), name="Mornings")
    second = measured(ops, hours(), name="Hours")

    told = ops.get("/api/metrics/visits/schedule").json()

    assert told["state"] == "mixed"
    assert f"{second} every hour" in told["detail"]
    assert f"{first} weekdays at about" in told["detail"]


def test_only_rows_that_the_caller_may_read_are_looked_at(ops: Caller, stranger: Caller, caller: Makes) -> None:
    measured(ops, hours())

    assert stranger.get("/api/metrics/visits/schedule").json()["state"] == "not_enough_rows"
    assert caller("growth", Scope.READ).get("/api/metrics/visits/schedule").json()["experiment"] is not None
    assert caller("growth", Scope.TELEMETRY).get("/api/metrics/visits/schedule").status_code == 403
    assert ops.get("/api/metrics/nothing/schedule").status_code == 404


@pytest.mark.django_db
def test_a_planned_outage_is_no_hole_in_a_schedule(ops: Caller) -> None:
    came = hours()
    measured(ops, [*came[:40], *came[70:]])
    assert ops.get("/api/metrics/visits/schedule").json()["found"]["fit"]["missing"] == 30

    window = {"from": came[40].isoformat(), "to": came[69].isoformat(), "reason": "The warehouse moves"}
    assert ops.post("/api/outages", {**window, "metrics": ["visits"]}).status_code == 201
    assert ops.get("/api/metrics/visits/schedule").json()["found"]["fit"]["missing"] == 0


def test_no_more_rows_are_read_than_it_takes_by_the_index_of_the_series(ops: Caller) -> None:
    key = measured(ops, hours(1))
    with as_role("owner"), connection.cursor() as db:
        db.execute(
            """INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n)
               SELECT e.id, 'visits', 'control', date_trunc('minute', now()) - n * interval '1 minute', 1, 10
               FROM metadata.experiments e, generate_series(1, %s) AS n WHERE e.key = %s ON CONFLICT DO NOTHING""",
            [MOST_ROWS + 4_000, key],
        )

    told = ops.get("/api/metrics/visits/schedule").json()

    assert told["found"]["expected"] == {"every_s": 60}
    assert told["found"]["fit"]["rows"] <= MOST_ROWS
