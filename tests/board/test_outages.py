"""Planned outages on the board: made and taken back by whoever may, and shown where they count; changed schedules on the timeline."""

import datetime as dt
import html
import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from decisioning.access.models import Team
from decisioning.access.principal import bind_user
from decisioning.board import charts
from decisioning.ledger.models import Entry
from experiments import feeds
from experiments.models import Metric
from telemetry import outages
from telemetry.models import Outage, Source
from tests.board.scenes import HOUR, Scene, person
from tests.conftest import as_role


@pytest.fixture
def may(growth: Team) -> Client:
    client = Client()
    client.force_login(person("ola", growth, "operator"))
    return client


@pytest.fixture
def viewer(growth: Team) -> Client:
    client = Client()
    client.force_login(person("vic", growth, "viewer"))
    return client


def form(team: Team, now: dt.datetime, begins: float, ends: float, **said: Any) -> dict[str, Any]:
    """From and to in hours from now, in UTC as a browser sends them."""
    at = {name: f"{now + hours * HOUR:%Y-%m-%dT%H:%M}" for name, hours in (("begins_at", begins), ("ends_at", ends))}
    return {"team": team.pk, **at, "metrics": "vrps", "reason": "The warehouse moves", **said}


def planned(scene: Scene, begins: float, ends: float, *, metrics: tuple[str, ...] = ("vrps",), **more: Any) -> Outage:
    """Written by a person, as a request would."""
    with as_role("owner"):
        user, _ = User.objects.get_or_create(username="mei")
        bind_user(user.pk, f"request {begins}")
        new = outages.NewOutage(
            begins_at=scene.now + begins * HOUR, ends_at=scene.now + ends * HOUR, reason="The warehouse moves", metrics=metrics, **more
        )  # fmt: skip
        return outages.plan(new, team=scene.team, now=scene.now)


def said(page: str) -> str:
    """Its words alone."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_an_outage_is_planned_listed_and_taken_back_with_a_question(may: Client, growth: Team, scene: Scene) -> None:
    scene.experiment()
    assert "No outage was planned yet" in may.get("/outages").text

    made = may.post("/outages", form(growth, scene.now, -1, 20), follow=True)
    assert "1 planned outage is on" in made.text
    found = Outage.objects.get()
    assert (found.metrics, found.reason) == (["vrps"], "The warehouse moves")
    asked = may.get(f"/outages/{found.pk}/take-back").text
    assert "Take back the outage of vrps?" in asked
    assert Outage.objects.exists()
    may.post(f"/outages/{found.pk}/take-back")
    assert not Outage.objects.exists()
    with as_role("owner"):
        entries = Entry.objects.filter(content_type__model="outage").order_by("id")
        assert [(entry.action, entry.actor_name) for entry in entries] == [(0, "ola"), (2, "ola")]
    assert "Planned outage made" in may.get("/audit?what=outage").text


def test_one_that_is_on_is_ended_and_what_is_due_from_then_on_is_expected(
    may: Client, growth: Team, scene: Scene
) -> None:
    scene.experiment()
    may.post("/outages", form(growth, scene.now, -1, 20))
    may.post(f"/outages/{Outage.objects.get().pk}/end")
    assert Outage.objects.get().ends_at <= dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"ends_at": "2026-01-01T00:00"}, "ends_at", "not after it begins"),
        ({"metrics": "vrps, nothing_like_it"}, "metrics", "There is no metric"),
        ({"metrics": ""}, "metrics", "Name one at least"),
        ({"reason": ""}, "reason", "required"),
        ({"begins_at": "soon"}, "begins_at", "valid date"),
    ],
)
def test_an_outage_that_is_none_is_refused_at_its_field_and_keeps_what_was_written(
    may: Client, growth: Team, scene: Scene, changes: dict[str, str], field: str, words: str
) -> None:
    scene.experiment()
    refused = may.post("/outages", {**form(growth, scene.now, 1, 20), **changes})
    assert refused.status_code == 422
    assert words in html.unescape(refused.text.partition(f'id="id_{field}_error"')[2][:300])
    assert not Outage.objects.exists()


def test_whoever_may_only_look_is_offered_nothing(viewer: Client, growth: Team, scene: Scene) -> None:
    scene.experiment()
    outage = planned(scene, -1, 20)
    page = viewer.get("/outages").text
    assert "you need the right telemetry:write" in page
    assert "Take back" not in page
    assert viewer.post("/outages", form(growth, scene.now, -1, 20)).status_code == 403
    assert viewer.post(f"/outages/{outage.pk}/take-back").status_code == 403


def test_the_admin_plans_one_by_the_same_rules(growth: Team, scene: Scene) -> None:
    scene.experiment()
    root = Client()
    root.force_login(person("root", growth, admin=True))
    add = reverse("admin:telemetry_outage_add")
    at = {"begins_at_0": "2026-11-01", "begins_at_1": "00:00:00", "ends_at_0": "2026-11-02", "ends_at_1": "00:00:00"}
    sent = {"team": growth.pk, **at, "metrics": "vrps", "sources": "", "reason": "The warehouse moves"}
    assert "There is no metric" in html.unescape(root.post(add, sent | {"metrics": "nothing"}).text)
    assert root.post(add, sent).status_code == 302
    assert Outage.objects.get().metrics == ["vrps"]


# Where they count -------------------------------------------------------------------------------------------------------


def test_an_outage_is_on_the_timeline_hatched_in_the_charts_and_beside_what_is_recommended(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(days=9)
    planned(scene, -60, -36)
    page = board.get(f"/experiments/{e.key}").text

    trail = said(page.partition('class="trail"')[2].partition("</ol>")[0])
    assert "Planned outage of vrps" in trail
    assert "Outage of vrps entered afterwards" in trail
    assert "By mei. What it reaches back to was judged anew." in trail
    assert "Planned outage of Value per session" in said(page.partition('class="because')[2].partition("</ul>")[0])
    assert page.count("Hatched: planned outage") >= 4, "in words below each picture and for who does not see it"
    goal, *others = page.split("by day</title>")[1:]
    assert "url(#v0w-h)" in goal
    assert not any("-h)" in other.partition("</svg>")[0] for other in others[1:]), "of no other KPI"


def test_who_takes_one_back_is_on_the_timeline_and_another_kpis_outage_is_not(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=9)
    with as_role("owner"):
        scene.metric("elsewhere")
    planned(scene, -2, 20, metrics=("elsewhere",))
    taken = planned(scene, -3, 20)
    with as_role("owner"):
        bind_user(User.objects.get(username="mei").pk, "another request")
        outages.take_back(taken)
    trail = said(board.get(f"/experiments/{e.key}").text.partition('class="trail"')[2].partition("</ol>")[0])
    assert "Outage of vrps taken back" in trail
    assert "elsewhere" not in trail


def test_an_outage_of_a_source_is_one_of_all_it_feeds(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=9)
    with as_role("owner"):
        Source.objects.create(key="nightly", team=scene.team, kind="file", path="x.csv", query="SELECT 1", metrics=["error_rate"],
                              created_at=scene.now, due_at=scene.now)  # fmt: skip
    planned(scene, -60, -36, metrics=(), sources=["nightly"])
    assert "Planned outage of error_rate" in said(board.get(f"/experiments/{e.key}").text)


def test_a_changed_schedule_is_on_the_timeline_of_every_experiment_that_uses_the_metric_also_of_another_team(
    board: Client, growth: Team, scene: Scene
) -> None:
    mine = scene.experiment(days=9)
    with as_role("owner"):
        owners = Team.objects.create(key="data", name="Data", created_at=scene.now)
        Metric.objects.filter(key="vrps").update(team=owners)
        bind_user(User.objects.create(username="dee").pk, "one request")
        weekdays = {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}
        feeds.set_out(Metric.objects.get(key="vrps"), weekdays, since=scene.now - 24 * HOUR, now=scene.now)
    trail = said(board.get(f"/experiments/{mine.key}").text.partition('class="trail"')[2].partition("</ol>")[0])
    assert "Value per session is due weekdays at 06:00 Europe/Berlin, from" in trail
    assert "By dee. What it reaches back to was judged anew. Before: every hour." in trail
    assert "Schedule of a metric made" in board.get("/audit?what=metricschedule").text
    with as_role("owner"):
        bind_user(User.objects.get(username="dee").pk, "two requests")
        feeds.set_out(Metric.objects.get(key="vrps"), {"every_s": 900}, since=None, now=scene.now)
    trail = said(board.get(f"/experiments/{mine.key}").text.partition('class="trail"')[2].partition("</ol>")[0])
    assert "Value per session is due every 15 minutes, from the beginning" in trail


def test_hatching_is_a_pattern_with_an_id_of_its_own_in_each_picture() -> None:
    drawn = charts.values([("control", [1.0, 2.0, 3.0])], days=["1 Nov", "2 Nov", "3 Nov"], show=str, shaded=[(0.5, 1.5)], uid="a",
                          title="t", desc="d")  # fmt: skip
    assert '<pattern id="a-h"' in drawn
    (hatch,) = re.findall(r'<rect x="([\d.]+)"[^>]* width="([\d.]+)"[^>]*fill="url\(#a-h\)"/>', drawn)
    assert float(hatch[1]) > 50
