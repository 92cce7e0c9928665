"""One team takes no more than its share, and is told clearly; others are not concerned."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from decisioning.access.models import Team
from tests.api.conftest import PLAN, Caller
from tests.conftest import as_role

HOOK = {"url": "https://receiver.example.org/hook", "events": ["decision.proposed"]}


def allow(team: Team, **most: int | None) -> None:
    with as_role("owner"):
        Team.objects.filter(pk=team.pk).update(**{f"most_{what}": number for what, number in most.items()})


def rows(count: int, first: int = 0) -> dict[str, Any]:
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=5)
    return {"rows": [{"metric": "vrps", "variant": "control", "ts": (start + timedelta(seconds=n)).isoformat(), "value": 1, "n": 3, "variance": 1}
                     for n in range(first, first + count)]}  # fmt: skip


def told(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json().get("code", "")


def test_rows_a_day_are_counted_as_they_are_sent_and_what_is_too_many_is_not_stored(
    ops: Caller, stranger: Caller
) -> None:
    made = ops.experiment(started_at=(datetime.now(UTC) - timedelta(days=2)).isoformat())
    theirs = stranger.experiment(started_at=(datetime.now(UTC) - timedelta(days=2)).isoformat())
    allow(ops.team, rows_a_day=10)
    at = f"/api/experiments/{made['id']}/kpis"

    assert told(ops.post(at, rows(6))) == (200, "")
    refused = ops.post(at, rows(5, 6))

    assert told(refused) == (429, "quota_exceeded")
    assert 0 < int(refused["Retry-After"]) <= 86_400
    assert "10 rows a day" in refused.json()["detail"]
    assert told(ops.post(f"{at}?atomic=false", rows(5, 6))) == (429, "quota_exceeded")
    assert told(ops.post(at, rows(4, 6))) == (200, ""), "what was refused was not counted"
    assert told(ops.post(at, rows(1))) == (429, "quota_exceeded"), "what was sent before costs as much"
    assert len(ops.get(at).json()["results"]) == 10
    assert told(stranger.post(f"/api/experiments/{theirs['id']}/kpis", rows(20))) == (200, "")

    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "decisioning.metric.observed_many.v1",
        "data": {"experiment": made["key"], **rows(2, 90)},
    }
    assert told(ops.post("/api/events", event, Content_Type="application/cloudevents+json")) == (429, "quota_exceeded")
    allow(ops.team, rows_a_day=None)
    assert told(ops.post(at, rows(100))) == (200, "")


def test_a_new_day_begins_at_midnight_utc(ops: Caller) -> None:
    made = ops.experiment(started_at=(datetime.now(UTC) - timedelta(days=2)).isoformat())
    allow(ops.team, rows_a_day=10)
    at = f"/api/experiments/{made['id']}/kpis"
    assert told(ops.post(at, rows(10))) == (200, "")
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("UPDATE metadata.rows_sent SET day = day - 1")
    assert told(ops.post(at, rows(10, 20))) == (200, "")


def test_experiments_sources_and_webhooks_have_a_number(
    ops: Caller, stranger: Caller, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.QUOTAS = {**settings.QUOTAS, "experiments": 2, "webhooks": 1}
    first = ops.experiment(name="One")
    ops.experiment(name="Two")
    refused = ops.post("/api/experiments", {**PLAN, "name": "Three"})
    assert told(refused) == (409, "quota_exceeded")
    assert "2 open experiments" in refused.json()["detail"]
    assert told(stranger.post("/api/experiments", {**PLAN, "name": "Theirs"}))[0] == 201
    assert ops.post(f"/api/experiments/{first['key']}/transitions", {"to": "stopped"}).status_code == 200
    assert told(ops.post("/api/experiments", {**PLAN, "name": "Three"}))[0] == 201, "what has ended counts no more"

    assert told(ops.post("/api/webhooks", HOOK))[0] == 201
    assert told(ops.post("/api/webhooks", HOOK)) == (409, "too_many_webhooks")
    allow(ops.team, webhooks=2, sources=0)
    assert told(ops.post("/api/webhooks", HOOK))[0] == 201, "its own comes before the installation's"

    settings.SOURCES_DIR.mkdir(exist_ok=True)
    (settings.SOURCES_DIR / ops.team.key).mkdir(exist_ok=True)
    (settings.SOURCES_DIR / ops.team.key / "a.csv").write_text("experiment,metric,variant,ts,value\n")
    source = {
        "key": "files",
        "kind": "file",
        "path": f"{ops.team.key}/a.csv",
        "query": "SELECT * FROM rows WHERE ts > :since AND ts <= :until",
        "metrics": ["vrps"],
    }
    assert told(ops.post("/api/sources", source)) == (409, "quota_exceeded")


def test_a_form_says_it_as_well(ops: Caller) -> None:
    allow(ops.team, webhooks=0)
    with as_role("owner"):
        person = User.objects.get(username="ops@example.org")
    client = Client()
    client.force_login(person)
    answer = client.post(reverse("webhooks"), {**HOOK, "team": ops.team.pk, "kind": ""})
    assert answer.status_code == 422
    assert "may have 0" in answer.content.decode()
