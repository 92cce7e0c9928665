"""Webhooks over HTTP: made, tried, listed, sent again and deleted; and what is told when nothing but time passes."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from standardwebhooks.webhooks import Webhook

from decisioning.access.scopes import Scope
from decisioning.ledger import delivery
from decisioning.ledger.models import OutboxMessage
from decisioning.notices import tasks, transports
from decisioning.slo.alarms import tell_broken
from gates import alarms
from gates.models import PolicyVersion, Recommendation
from telemetry import breaches
from tests.api.conftest import Caller, Makes, errors_of
from tests.conftest import as_role
from tests.ledger.receiver import Receiver, receiving

NOW = datetime.now(UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
EVERYTHING = ["decision.proposed", "experiment.changed"]


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
    with receiving() as server:
        yield server


def opened(ops: Caller, url: str, **said: Any) -> dict[str, Any]:
    response = ops.post("/api/webhooks", {"url": url, "events": EVERYTHING, **said})
    assert response.status_code == 201, response.content
    made: dict[str, Any] = response.json()
    return made


def tick(at: datetime | None = None) -> None:
    with as_role("worker"):
        delivery.deliver(transports.send, clock=lambda: at or datetime.now(UTC))


def test_an_experiment_that_is_made_over_http_is_told_to_a_webhook_that_was(ops: Caller, receiver: Receiver) -> None:
    response = ops.post("/api/webhooks", {"url": receiver.url, "events": EVERYTHING})
    made = response.json()
    assert (response.status_code, response["Cache-Control"]) == (201, "no-store")
    assert response["Location"] == f"/api/webhooks/{made['id']}"
    document = ops.experiment()
    tick()
    (got,) = receiver.got
    told = Webhook(made["secret"]).verify(got.body, got.headers)
    assert (told["type"], told["data"]["experiment"], told["data"]["to"]) == (
        "experiment.changed",
        document["key"],
        "running",
    )

    (seen,) = ops.get(f"/api/webhooks/{made['id']}/deliveries").json()["results"]
    assert (seen["message"], seen["state"], seen["attempts"], seen["last_status"]) == (got.id, "delivered", 1, 200)
    again = ops.post(f"/api/webhooks/{made['id']}/deliveries/{seen['id']}/redeliver")
    assert (again.status_code, again.json()["state"]) == (202, "waiting")
    tick()
    assert receiver.ids == [got.id, got.id]


def test_the_secret_is_shown_once_and_is_not_in_the_list(ops: Caller, receiver: Receiver) -> None:
    made = opened(ops, receiver.url)
    assert made["secret"].startswith("whsec_")
    assert made["secret"] not in ops.get("/api/webhooks").content.decode()
    once = {"Idempotency-Key": "a-new-webhook"}
    body = {"url": receiver.url, "events": EVERYTHING}
    assert ops.post("/api/webhooks", body, **once).status_code == 201
    assert ops.post("/api/webhooks", body, **once).json()["code"] == "secret_shown_once"
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(c::text, '') || (SELECT string_agg(e::text, '') FROM audit.entries e) FROM metadata.channels c"
        )
        assert made["secret"].removeprefix("whsec_") not in str(cursor.fetchone())


def test_a_test_arrives_and_says_what_it_is(ops: Caller, receiver: Receiver) -> None:
    made = opened(ops, receiver.url, events=["slo.burning"])
    response = ops.post(f"/api/webhooks/{made['id']}/test")
    assert (response.status_code, response.json()["type"]) == (202, "webhook.test")
    tick()
    told = Webhook(made["secret"]).verify(receiver.got[0].body, receiver.got[0].headers)
    assert (told["type"], told["data"]["experiment"]) == ("webhook.test", None)
    assert (
        ops.get(f"/api/webhooks/{made['id']}/deliveries?state=delivered").json()["results"][0]["state"] == "delivered"
    )
    assert ops.get(f"/api/webhooks/{made['id']}/deliveries?state=lost").status_code == 400


def test_a_deleted_webhook_is_told_nothing_more(ops: Caller, receiver: Receiver) -> None:
    made = opened(ops, receiver.url)
    ops.experiment()
    assert ops.delete(f"/api/webhooks/{made['id']}").status_code == 204
    tick()
    assert receiver.got == []
    assert ops.get(f"/api/webhooks/{made['id']}").status_code == 404
    assert ops.get("/api/webhooks").json()["results"] == []


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"url": "http://169.254.169.254/latest", "events": EVERYTHING}, ("/url", "webhook_blocked")),
        ({"url": "https://127.0.0.1/", "events": EVERYTHING}, ("/url", "webhook_blocked")),
        ({"url": "ftp://example.org/", "events": EVERYTHING}, ("/url", "webhook_blocked")),
        ({"url": "https://example.org/a b", "events": EVERYTHING}, ("/url", "invalid")),
        ({"url": "mailto:nobody", "events": EVERYTHING}, ("/url", "invalid")),
        ({"url": "mailto:ann@example.org", "events": EVERYTHING}, ("/url", "email_off")),
        ({"url": "https://example.org", "events": ["everything"]}, ("/events/0", "invalid")),
        ({"url": "https://example.org", "events": []}, ("/events", "empty")),
        ({"events": EVERYTHING}, ("/url", "missing_field")),
        ({"url": 7, "events": EVERYTHING}, ("/url", "invalid_text")),
    ],
)
def test_what_cannot_be_told_is_refused_when_it_is_asked_for(ops: Caller, body: Any, refused: tuple[str, str]) -> None:
    response = ops.post("/api/webhooks", body)
    assert (response.status_code, errors_of(response)) == (422, [refused])
    if refused[1] == "webhook_blocked":
        assert response.json()["code"] == "webhook_blocked"


def test_a_slack_address_is_a_credential_and_is_cut_off(ops: Caller, settings: Any) -> None:
    made = opened(ops, "https://hooks.slack.com/services/T000/B000/XXXX")
    assert (made["kind"], made["secret"]) == ("slack", None)
    assert "XXXX" not in ops.get("/api/webhooks").content.decode()


def test_only_who_manages_keys_sees_them_and_only_those_of_the_team(
    ops: Caller, stranger: Caller, caller: Makes, receiver: Receiver
) -> None:
    made = opened(ops, receiver.url)
    approver = caller("growth", Scope.READ, Scope.REVIEW)
    for path in ("/api/webhooks", f"/api/webhooks/{made['id']}", f"/api/webhooks/{made['id']}/deliveries"):
        assert approver.get(path).status_code == 403
    assert stranger.get(f"/api/webhooks/{made['id']}").status_code == 404
    assert stranger.delete(f"/api/webhooks/{made['id']}").status_code == 404
    assert stranger.post(f"/api/webhooks/{made['id']}/test").status_code == 404
    assert stranger.get("/api/webhooks").json()["results"] == []
    assert ops.post(f"/api/webhooks/{made['id']}/deliveries/{2**70}/redeliver").status_code == 404


# What only time brings about ----------------------------------------------------------------------------------------------


def told(kind: str) -> list[dict[str, Any]]:
    with as_role("worker"):
        return list(OutboxMessage.objects.filter(type=kind).order_by("id").values_list("data", flat=True))


def running(ops: Caller, *, days: float = 3, **said: Any) -> dict[str, Any]:
    made = ops.experiment(**said)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE metadata.experiments SET created_at = %(at)s, started_at = %(at)s WHERE id = %(id)s",
            {"at": NOW - timedelta(days=days), "id": made["id"]},
        )
    return made


def arrive(experiment: dict[str, Any], ts: datetime) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        for variant in ("control", "treatment"):
            cursor.execute(
                "INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n, first_received_at) "
                "VALUES (%s, 'vrps', %s, %s, 1, 1, %s)",
                [experiment["id"], variant, ts, ts],
            )


def test_data_that_is_late_is_told_once_and_so_is_its_return(ops: Caller) -> None:
    made = running(ops)
    arrive(made, NOW - 20 * MINUTE)  # every 15 minutes, 15 more are allowed

    def look(at: datetime) -> None:
        with as_role("worker"):
            breaches.tell_changes(now=at)

    for minute in (0, 9, 11, 13):
        look(NOW + minute * MINUTE)
    assert told("freshness.breached") == []  # stale since minute 10: not yet for long enough
    for minute in (17, 18, 60):
        look(NOW + minute * MINUTE)
    (breach,) = told("freshness.breached")
    assert breach["experiment"] == made["key"]
    assert [kpi["metric"] for kpi in breach["kpis"]] == ["vrps"]

    arrive(made, NOW + 60 * MINUTE)
    for minute in (61, 67, 70):
        look(NOW + minute * MINUTE)
    (back,) = told("freshness.recovered")
    assert (back["experiment"], back["metrics"]) == (made["key"], ["vrps"])
    assert len(told("freshness.breached")) == 1


def test_an_experiment_that_never_had_a_row_is_late_from_its_start_and_silent_when_it_ends(ops: Caller) -> None:
    made = running(ops, days=0.01)  # 14 minutes
    for minute in (0, 15, 17, 23, 24):
        with as_role("worker"):
            breaches.tell_changes(now=NOW + minute * MINUTE)
    assert [b["experiment"] for b in told("freshness.breached")] == [made["key"]]
    ops.post(f"/api/experiments/{made['id']}/transitions", {"to": "stopped"})
    for minute in (30, 40):
        with as_role("worker"):
            breaches.tell_changes(now=NOW + minute * MINUTE)
    assert told("freshness.recovered") == []


def test_a_proposal_nobody_answers_in_the_teams_time_is_told_once(ops: Caller) -> None:
    made = running(ops)
    with as_role("owner"):
        ops.team.answer_within_h = 24
        ops.team.save()
        row = Recommendation.objects.create(
            experiment_id=made["id"], team_id=ops.team.pk, action="scale", code="wins", slot=NOW, proposed_at=NOW,
            rationale=[], blockers=[], evidence_digest="sha256:0", policy_version=PolicyVersion.objects.earliest("id"), fold=1,
        )  # fmt: skip

    def look(at: datetime) -> None:
        with as_role("worker"):
            alarms.tell_overdue(now=at)

    look(NOW + 23 * HOUR)
    assert told("decision.overdue") == []
    look(NOW + 24 * HOUR)
    look(NOW + 25 * HOUR)
    (late,) = told("decision.overdue")
    assert (late["experiment"], late["action"], late["answer_within_h"]) == (made["key"], "scale", 24)
    with as_role("owner"):
        row.answered_at = NOW + 26 * HOUR
        row.save()
    look(NOW + 27 * HOUR)
    look(NOW + 28 * HOUR)
    assert len(told("decision.overdue")) == 1


def judged(experiment: dict[str, Any], verdict: str) -> None:
    gate = {"gate": "error_rate_guard", "kind": "guard", "variant": "treatment", "metric": "error_rate", "verdict": verdict,
            "since": "2026-11-24T06:00:00Z", "reason": "Harm is proved."}  # fmt: skip
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE metadata.cursors SET shown = jsonb_build_object('gates', jsonb_build_array(%s::jsonb)) WHERE experiment_id = %s",
            [json.dumps(gate), experiment["id"]],
        )


def test_a_guard_that_fails_is_told_at_once_and_not_again_while_it_flickers(ops: Caller) -> None:
    made = running(ops)

    def look(minute: int, verdict: str) -> int:
        judged(made, verdict)
        with as_role("worker"):
            return alarms.tell_failed_guards(now=NOW + minute * MINUTE)

    assert look(0, "pass") == 0
    assert look(1, "fail") == 1
    assert [look(minute, verdict) for minute, verdict in ((2, "fail"), (3, "stale"), (4, "fail"), (5, "fail"))] == [
        0,
        0,
        0,
        0,
    ]
    assert [look(minute, "pass") for minute in (6, 12)] == [0, 0]
    assert look(13, "fail") == 1
    assert [(g["experiment"], g["gate"], g["variant"]) for g in told("guard.failed")] == [
        (made["key"], "error_rate_guard", "treatment")
    ] * 2


def test_a_broken_promise_is_told_to_the_team_it_was_made_to(ops: Caller, stranger: Caller) -> None:
    for name in ("first", "second"):
        running(ops, days=2, name=name)  # never a row
    stranger.experiment()

    def look(at: datetime) -> None:
        with as_role("worker"):
            tell_broken(now=at)

    for minute in (0, 10):
        look(NOW + minute * MINUTE)
    assert told("slo.burning") == []
    for minute in (15, 16, 17):
        look(NOW + minute * MINUTE)
    broken = told("slo.burning")
    assert [b["promise"] for b in broken] == ["telemetry_latency", "recommended_within_24h"]
    assert broken[0]["target"] == "at most 900 s"
    with as_role("worker"):
        assert set(OutboxMessage.objects.filter(type="slo.burning").values_list("team_id", flat=True)) == {ops.team.pk}


def test_the_ticks_themselves_tell_what_has_happened_and_then_nothing(ops: Caller, receiver: Receiver) -> None:
    opened(ops, receiver.url)
    ops.experiment()
    for _ in range(2):
        with as_role("worker"):
            for one in (tasks.watch, tasks.promises, tasks.deliver, tasks.sweep):
                one()
    assert len(receiver.got) == 1
