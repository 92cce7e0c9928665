"""One alarm an outage, as a receiver gets it; and answering one: snoozed, acknowledged, over HTTP and from where messages lead."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from decisioning.access.models import Membership
from decisioning.access.scopes import Scope
from decisioning.ledger import channels, delivery
from decisioning.ledger.models import Alarm, Entry, OutboxMessage
from decisioning.ledger.outbox import EVENTS
from decisioning.notices import messages, transports
from experiments.models import Experiment
from telemetry.breaches import tell_changes
from tests.api.conftest import Caller, Makes, errors_of
from tests.conftest import as_role
from tests.ledger.receiver import Receiver, receiving

MINUTE = timedelta(minutes=1)


@pytest.fixture
def receiver(settings: Any, ops: Caller) -> Iterator[Receiver]:
    """Of everything that is told to the team."""
    settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
    with receiving() as server:
        with as_role("worker"):
            channels.open_channel(ops.team, url=server.url, events=list(EVENTS), by="ada", now=datetime.now(UTC))
        yield server


def running(ops: Caller, many: int, *, of: str = "visits", role: str = "goal") -> datetime:
    """So many experiments with one KPI that is due every minute; when the last of them started."""
    metric = {"key": of, "kind": "proportion", "expected_every_s": 60, "freshness_target_s": 60}
    kpis: list[dict[str, Any]] = [{"metric": metric, "role": role}]
    if role == "shown":
        kpis.append({"metric": {"key": "yearly", "kind": "proportion", "expected_every_s": 31_000_000}, "role": "goal"})
    made = [ops.experiment(name=f"Number {n} of {of}", target_kpis=kpis) for n in range(many)]
    return max(datetime.fromisoformat(one["started_at"]) for one in made)


def look(receiver: Receiver, at: datetime) -> list[dict[str, Any]]:
    """What the receiver gets of what a look at this instant finds, but for experiments that were made."""
    before = len(receiver.got)
    with as_role("worker"):
        tell_changes(now=at)
    with as_role("worker"):
        delivery.deliver(transports.send, clock=lambda: datetime.now(UTC))
    told = [json.loads(got.body) for got in receiver.got[before:]]
    return [one for one in told if one["type"] != "experiment.changed"]


def rows_came(at: datetime, *keys: str) -> None:
    """As if its rows had come: what has just begun waits for none yet."""
    with as_role("owner"):
        found = Experiment.objects.filter(key__in=keys) if keys else Experiment.objects.all()
        found.update(started_at=at)


def test_forty_experiments_on_one_dead_feed_are_one_message_out_and_one_back(ops: Caller, receiver: Receiver) -> None:
    start = running(ops, 40)

    assert look(receiver, start + 3 * MINUTE) == []
    (breach,) = look(receiver, start + 9 * MINUTE)
    told = breach["data"]
    assert (breach["type"], told["experiments_late"], told["experiments_waiting"]) == ("freshness.breached", 40, 40)
    assert told["feed"] == {"source": None, "metrics": ["visits"]}
    assert (told["occasion"], told["began_at"][:16]) == ("began", f"{start + 3 * MINUTE:%Y-%m-%dT%H:%M}")
    assert [look(receiver, start + minutes * MINUTE) for minutes in (10, 100, 1_000)] == [[], [], []]
    rows_came(start + 1_001 * MINUTE)
    assert look(receiver, start + 1_001 * MINUTE) == []
    rows_came(start + 1_007 * MINUTE)
    (back,) = look(receiver, start + 1_007 * MINUTE)
    assert (back["type"], back["data"]["feed"]) == ("freshness.recovered", told["feed"])
    assert back["data"]["alarm"] == told["alarm"]


def test_an_outage_that_spreads_is_told_again_after_an_hour_once(ops: Caller, receiver: Receiver) -> None:
    running(ops, 1)
    start = running(ops, 2, of="visits")
    late = list(Experiment.objects.order_by("pk").values_list("key", flat=True))
    rows_came(start + 30 * MINUTE, *late[1:])
    look(receiver, start + 3 * MINUTE)

    (first,) = look(receiver, start + 9 * MINUTE)
    assert first["data"]["experiments_late"] == 1
    with as_role("worker"):
        said = messages.notice_of(OutboxMessage.objects.get(type="freshness.breached"))
    assert said.title == f"Data is late: {late[0]}, visits", "one of several feeds of an experiment is named, too"
    assert look(receiver, start + 40 * MINUTE) == []
    (again,) = look(receiver, start + 70 * MINUTE)
    assert (again["type"], again["data"]["occasion"]) == ("freshness.breached", "spread")
    assert (again["data"]["experiments_late"], again["data"]["alarm"]) == (3, first["data"]["alarm"])
    assert look(receiver, start + 200 * MINUTE) == []


def test_what_did_not_come_while_the_portal_was_away_is_one_message_whatever_the_feed(
    ops: Caller, receiver: Receiver
) -> None:
    start = max(running(ops, 2, of=f"feed_{n}") for n in range(5)).replace(second=0, microsecond=0)
    rows_came(start)
    living = [start - 10 * MINUTE + n * MINUTE for n in range(10)] + [start + n * MINUTE for n in range(180, 400)]
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit.reads")
        cursor.executemany(
            "INSERT INTO audit.reads (minute, process, asked, failed, stale, done) VALUES (%s, 'web', 3, 0, 0, true)",
            [[minute] for minute in living],
        )

    assert look(receiver, start + 181 * MINUTE) == []
    (breach,) = look(receiver, start + 187 * MINUTE)
    told = breach["data"]
    assert (told["feeds_late"], told["experiments_late"], told["feed"]["source"]) == (5, 10, None)
    assert told["portal_away"] == {
        "from": f"{start:%Y-%m-%dT%H:%M:%SZ}",
        "to": f"{start + 180 * MINUTE:%Y-%m-%dT%H:%M:%SZ}",
    }
    with as_role("worker"):
        said = messages.notice_of(OutboxMessage.objects.get(type="freshness.breached"))
    assert said.title == "Data is late: the portal was away"
    assert "5 feeds are late" in said.lines[0]
    assert look(receiver, start + 3 * 1_440 * MINUTE) == [], "also once the minutes it was away in are long ago"
    rows_came(start + 3 * 1_440 * MINUTE)
    assert look(receiver, start + (3 * 1_440 + 1) * MINUTE) == []
    rows_came(start + (3 * 1_440 + 7) * MINUTE)
    (back,) = look(receiver, start + (3 * 1_440 + 7) * MINUTE)
    assert (back["type"], back["data"]["portal_away"]) == ("freshness.recovered", told["portal_away"])


def test_a_feed_that_died_by_itself_is_not_put_down_to_the_portal(ops: Caller, receiver: Receiver) -> None:
    start = running(ops, 1).replace(second=0, microsecond=0)
    rows_came(start)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO audit.reads (minute, process, asked, failed, stale, done) VALUES (%s, 'web', 0, 0, 0, true)",
            [[start + n * MINUTE] for n in (*range(-5, 30), *range(90, 120))],
        )
    look(receiver, start + 3 * MINUTE)
    (breach,) = look(receiver, start + 9 * MINUTE)
    assert breach["data"]["portal_away"] is None
    assert look(receiver, start + 95 * MINUTE) == []


def test_a_stale_kpi_that_is_only_shown_says_of_nothing_that_it_is_not_judged(ops: Caller, receiver: Receiver) -> None:
    start = running(ops, 3, role="shown")
    look(receiver, start + 3 * MINUTE)
    (breach,) = look(receiver, start + 9 * MINUTE)
    assert breach["data"]["experiments_waiting"] == 0
    with as_role("worker"):
        said = messages.notice_of(OutboxMessage.objects.get(type="freshness.breached"))
    assert said.lines[-1] == "Nothing waits for it: it is shown only."
    assert not any("judged" in line or "wait for it" in line for line in said.lines)


# Answering ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alarm(ops: Caller, receiver: Receiver) -> dict[str, Any]:
    """One that is open, as the API tells it."""
    start = running(ops, 2)
    look(receiver, start + 3 * MINUTE)
    look(receiver, start + 9 * MINUTE)
    (found,) = ops.get("/api/alarms").json()["results"]
    return dict(found)


def test_alarms_are_listed_with_what_a_message_would_say(alarm: dict[str, Any], ops: Caller, stranger: Caller) -> None:
    assert (alarm["type"], alarm["subject"], alarm["team"]) == ("freshness.breached", "metric visits", "growth")
    assert (alarm["data"]["experiments_late"], alarm["snoozed"], alarm["acknowledged"]) == (2, None, None)
    assert ops.get("/api/alarms?type=guard.failed").json()["results"] == []
    assert stranger.get("/api/alarms").json()["results"] == []
    assert stranger.get(f"/api/alarms/{alarm['id']}").status_code == 404


def test_an_alarm_is_snoozed_with_a_reason_woken_and_acknowledged_and_the_audit_says_by_whom(
    alarm: dict[str, Any], ops: Caller
) -> None:
    where, until = f"/api/alarms/{alarm['id']}", (datetime.now(UTC) + timedelta(hours=4)).replace(microsecond=0)

    told = ops.post(f"{where}/snooze", {"until": until.isoformat(), "reason": "The vendor mends it"}).json()
    assert {name: told["snoozed"][name] for name in ("until", "reason", "by")} == {
        "until": f"{until:%Y-%m-%dT%H:%M:%SZ}", "reason": "The vendor mends it", "by": "ops@example.org",
    }  # fmt: skip
    assert ops.delete(f"{where}/snooze").status_code == 204
    assert ops.get(where).json()["snoozed"] is None
    assert ops.post(f"{where}/acknowledgement").json()["acknowledged"]["by"] == "ops@example.org"
    assert ops.delete(f"{where}/acknowledgement").status_code == 204
    with as_role("owner"):
        entries = Entry.objects.filter(content_type__model="alarm", object_id=alarm["id"]).order_by("id")
        touched = [sorted(entry.changes or {}) for entry in entries]
    snooze = ["snoozed_at", "snoozed_because", "snoozed_by", "snoozed_until"]
    assert touched == [snooze, snooze, *[["acknowledged_at", "acknowledged_by"]] * 2]


def test_a_snooze_that_is_over_or_says_not_why_is_refused_at_its_field(alarm: dict[str, Any], ops: Caller) -> None:
    refused = ops.post(f"/api/alarms/{alarm['id']}/snooze", {"until": "2026-01-01T00:00:00Z", "reason": "x"})
    assert (refused.status_code, errors_of(refused)) == (422, [("/until", "timestamp_in_past")])
    assert errors_of(ops.post(f"/api/alarms/{alarm['id']}/snooze", {})) == [
        ("/until", "missing_field"), ("/reason", "missing_field"),
    ]  # fmt: skip


def test_an_agent_and_a_reader_do_not_answer_alarms(alarm: dict[str, Any], caller: Makes) -> None:
    for program in (caller("growth", Scope.READ, Scope.WRITE, agent=True), caller("growth", Scope.READ)):
        assert program.post(f"/api/alarms/{alarm['id']}/acknowledgement").status_code == 403
    with as_role("owner"):
        assert Alarm.objects.get().acknowledged_at is None


def test_the_link_of_a_slack_message_opens_the_alarm_after_signing_in_and_it_is_snoozed_there(
    alarm: dict[str, Any], ops: Caller
) -> None:
    with as_role("owner"):
        person = User.objects.create_user("ada", password="a long one for ada")
        Membership.objects.create(team=ops.team, user=person, role="operator")
        body = transports.slack_body(OutboxMessage.objects.get(type="freshness.breached"))
    (buttons,) = [block["elements"] for block in body["blocks"] if block["type"] == "actions"]
    where = re.sub(r"^\w+://[^/]+", "", {b["text"]["text"]: b["url"] for b in buttons}["Snooze or acknowledge"])
    browser = Client()

    asked = browser.get(where)
    assert asked.status_code == 302
    signed_in = browser.post(asked["Location"], {"username": "ada", "password": "a long one for ada"})
    assert signed_in["Location"] == where
    assert "Acknowledge: I deal with it" in browser.get(where).content.decode()
    answered = browser.post(f"{where}/snooze", {"lasts": "24", "reason": "Known <b>outage</b>"}, follow=True)
    shown = answered.content.decode()
    assert "by ada: Known &lt;b&gt;outage&lt;/b&gt;" in shown
    assert browser.post(f"{where}/snooze", {"lasts": "", "reason": ""}).status_code == 422
    browser.cookies["zone"] = "Asia/Tokyo"
    tomorrow = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%d}"
    browser.post(f"{where}/snooze", {"lasts": "", "until": f"{tomorrow}T18:30", "reason": "Known"})
    assert ops.get(f"/api/alarms/{alarm['id']}").json()["snoozed"]["until"] == f"{tomorrow}T09:30:00Z"
    assert "deals with it since" in browser.post(f"{where}/acknowledge", follow=True).content.decode()
    assert "Snoozed until" in browser.get("/alarms").content.decode()


def test_an_alarm_that_is_over_is_said_to_be(ops: Caller) -> None:
    with as_role("owner"):
        person = User.objects.create_user("ada")
        Membership.objects.create(team=ops.team, user=person, role="viewer")
    browser = Client()
    browser.force_login(person)
    gone = browser.get("/alarms/4711")
    assert gone.status_code == 404
    assert "it is over" in gone.content.decode()
