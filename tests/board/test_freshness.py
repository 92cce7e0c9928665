"""The freshness page: feeds, worst first, each with what was due, what came of it and what is due next; found schedules taken in one step."""

import datetime as dt
import html
import re

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from decisioning.access.models import Team
from decisioning.board import charts
from decisioning.board.presenters import strips
from decisioning.board.presenters.freshness import ages
from decisioning.ledger.models import Alarm
from experiments import feeds
from experiments.models import Experiment, Metric, MetricSchedule, Pause, TargetKpi, Variant
from gates.models import Cursor
from telemetry.models import Outage, Source
from tests.board.scenes import HOUR, Scene, person
from tests.conftest import as_role

MINUTE = dt.timedelta(minutes=1)
AT = dt.datetime(2026, 11, 25, 12, 20, tzinfo=dt.UTC)  # a Wednesday


def said(page: str) -> str:
    """Its words alone."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).replace("\N{NO-BREAK SPACE}", " ").split())


def running(
    team: Team, metric: str, now: dt.datetime, *, days: float = 3, role: str = "goal", **fields: object
) -> Experiment:
    """An experiment of two variants with one KPI and no rows; the metric is due every hour unless it says otherwise."""
    with as_role("owner"):
        common: dict[str, object] = {"expected_every_s": 3600, "freshness_target_s": 3600}
        made, _ = Metric.objects.get_or_create(
            key=metric,
            defaults={
                "name": metric.replace("_", " ").capitalize(),
                "created_at": now,
                "team": team,
                **common,
                **fields,
            },
        )
        start = now - dt.timedelta(days=days)
        n = Experiment.objects.count()
        e = Experiment.objects.create(key=f"of-{metric}-{n}".replace("_", "-"), name=f"Number {n} of {metric}", hypothesis="h", owner="o", team=team,
                                      status="running", created_at=start, started_at=start)  # fmt: skip
        for i, arm in enumerate(("control", "treatment")):
            Variant.objects.create(experiment=e, key=arm, control=i == 0, position=i)
        TargetKpi.objects.create(experiment=e, metric=made, role=role, position=0)
    return e


def came(e: Experiment, metric: str, ts: dt.datetime, *arms: str, after: dt.timedelta = 2 * MINUTE) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, variant, value, n, team_id, first_received_at, received_at) "
            "VALUES (%s, %s, %s, %s, 1, 100, %s, %s, %s)",
            [(e.pk, ts, metric, arm, e.team_id, ts + after, ts + after) for arm in arms or ("control", "treatment")],
        )


def states(now: dt.datetime) -> list[str]:
    with as_role("owner"):
        (age,) = ages(None, now=now)
        (line,) = strips.dues([age], now=now)
    return [f"{due.at:%a %H:%M} {due.state}" for due in line]


# The calendar of one feed -----------------------------------------------------------------------------------------------


def test_the_strip_says_of_each_due_instant_what_came_of_it_and_what_is_due_next(growth: Team) -> None:
    e = running(growth, "visits", AT, days=0.3)  # since 05:08
    came(e, "visits", AT.replace(hour=6, minute=0))
    came(e, "visits", AT.replace(hour=7, minute=10))  # stamped after the instant that it answers
    came(e, "visits", AT.replace(hour=8, minute=0), after=90 * MINUTE)
    came(e, "visits", AT.replace(hour=9, minute=0), "control")
    with as_role("owner"):
        for begins, ends in ((10, 10), (14, 20)):
            Outage.objects.create(team=growth, begins_at=AT.replace(hour=begins, minute=0), ends_at=AT.replace(hour=ends, minute=30),
                                  metrics=["visits"], reason="r", created_at=AT)  # fmt: skip

    assert states(AT) == [
        "Wed 06:00 arrived", "Wed 07:00 arrived", "Wed 08:00 late", "Wed 09:00 missing", "Wed 10:00 outage", "Wed 11:00 missing",
        "Wed 12:00 awaited", "Wed 13:00 next", "Wed 14:00 outage", "Wed 15:00 outage",
    ]  # fmt: skip


def test_a_feed_of_weekdays_shows_no_weekend_and_follows_its_clocks(growth: Team) -> None:
    e = running(growth, "visits", AT, days=9)
    with as_role("owner"):
        weekdays = {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}
        feeds.set_out(Metric.objects.get(key="visits"), weekdays, since=None, now=AT)
    came(e, "visits", AT.replace(day=20, hour=5, minute=10))

    line = states(AT)

    assert [due.partition(" ")[0] for due in line] == [
        "Tue",
        "Wed",
        "Thu",
        "Fri",
        "Mon",
        "Tue",
        "Wed",
        "Thu",
        "Fri",
        "Mon",
    ]
    assert {due.split()[1] for due in line} == {"05:00"}
    assert [due.split()[2] for due in line[2:5]] == ["missing", "arrived", "missing"]


def test_what_was_due_in_a_pause_is_said_to_be_and_rows_that_came_in_an_outage_count(growth: Team) -> None:
    e = running(growth, "visits", AT, days=0.25)
    with as_role("owner"):
        Pause.objects.create(
            experiment=e, team=growth, paused_at=AT.replace(hour=8, minute=30), resumed_at=AT.replace(hour=9, minute=30)
        )
        Outage.objects.create(team=growth, begins_at=AT.replace(hour=10, minute=0), ends_at=AT.replace(hour=11, minute=0), metrics=["visits"],
                              reason="r", created_at=AT)  # fmt: skip
    came(e, "visits", AT.replace(hour=11, minute=0))
    assert [due.split()[2] for due in states(AT)[:5]] == [
        "missing", "missing", "paused", "outage", "arrived",
    ]  # fmt: skip


def test_every_mark_has_a_shape_of_its_own_and_a_word() -> None:
    assert len({charts.due_key(state) for state in strips.WORDS}) == len(strips.WORDS)
    drawn = charts.due_strip(
        ["arrived", "missing", "next"], past=2, first="", uid="a", title="visits: 1 of 2 came", desc="all in words"
    )
    assert 'role="img" aria-labelledby="a-t a-d"' in drawn
    assert '<title id="a-t">visits: 1 of 2 came</title>' in drawn


# The page ---------------------------------------------------------------------------------------------------------------


def feed_names(page: str) -> list[str]:
    return [said(part).split("  ")[0] for part in re.findall(r'<h3 id="feed-\d+">(.*?)<span', page)]


def test_feeds_stand_worst_first_a_source_with_all_it_feeds_and_what_never_sent_apart(
    board: Client, growth: Team, moment: dt.datetime
) -> None:
    fresh, late, silent = (running(growth, key, moment) for key in ("fresh_one", "late_one", "silent_one"))
    beside = running(growth, "beside_one", moment)
    hour = moment.replace(minute=0, second=0, microsecond=0)
    for e, key, at in (
        (fresh, "fresh_one", hour),
        (late, "late_one", hour - 9 * HOUR),
        (beside, "beside_one", hour - 4 * HOUR),
    ):
        came(e, key, at)
    with as_role("owner"):
        Source.objects.create(key="nightly", team=growth, kind="file", path="x.csv", query="SELECT 1", metrics=["fresh_one", "beside_one"],
                              created_at=moment, due_at=moment)  # fmt: skip
    page = board.get("/freshness").text

    assert feed_names(page) == ["Late one", "nightly", "Silent one"]
    assert "2 of 3 feeds are late, 1 never sent anything" in page
    assert feed_names(board.get("/freshness?state=never").text) == ["Silent one"]
    assert "Never sent 1" in said(page)
    assert feed_names(board.get("/freshness?state=late").text) == ["Late one", "nightly"]
    assert feed_names(board.get("/freshness?q=beside").text) == ["nightly"]
    assert feed_names(board.get(f"/freshness?q={silent.key}").text) == ["Silent one"]
    nothing = board.get("/freshness?q=nothing+like+it").text
    assert "No feed matches" in nothing
    assert "Show every feed" in nothing


def test_nothing_tracked_yet_says_what_will_be_here(board: Client) -> None:
    page = board.get("/freshness").text
    assert "No KPI is tracked yet" in page
    assert "what is due and what came" in page


def test_a_late_kpi_that_is_only_shown_holds_up_nothing_and_the_page_says_so(
    board: Client, growth: Team, moment: dt.datetime
) -> None:
    e = running(growth, "visits", moment, role="shown")
    came(e, "visits", moment - 9 * HOUR)
    page = board.get("/freshness").text
    assert "Nothing waits for what is late: it is shown only." in page
    assert "cannot be judged" not in page
    with as_role("owner"):
        Cursor.objects.filter(experiment=e).update(shown={"gates": [{"metric": "visits", "kind": "threshold"}]})
    assert f"{e.name} cannot be judged on what is late" in said(board.get("/freshness").text), (
        "a gate of the policy reads it"
    )


def test_a_snoozed_alarm_and_a_planned_outage_are_shown_with_whose_and_why(
    board: Client, growth: Team, moment: dt.datetime
) -> None:
    e = running(growth, "visits", moment)
    came(e, "visits", moment - 9 * HOUR)
    with as_role("owner"):
        Alarm.objects.create(team_id=growth.pk, type="freshness.breached", subject="metric visits", began_at=moment, told_at=moment,
                             snoozed_until=moment + 4 * HOUR, snoozed_by="ada", snoozed_because="The vendor mends it")  # fmt: skip
        Outage.objects.create(team=growth, begins_at=moment + HOUR, ends_at=moment + 9 * HOUR, metrics=["visits"], reason="The warehouse moves",
                              created_at=moment)  # fmt: skip
    page = said(board.get("/freshness").text)
    assert re.search(r"Snoozed until .* by ada: The vendor mends it", page)
    assert re.search(r"Planned outage .*: The warehouse moves", page)
    assert "Plan an outage" in page


def test_a_page_of_feeds_asks_no_more_of_the_database_for_more_feeds(
    board: Client, growth: Team, moment: dt.datetime
) -> None:
    from django.test.utils import CaptureQueriesContext

    counted = []
    for many in (2, 6):
        for n in range(many):
            came(running(growth, f"feed_{many}_{n}", moment), f"feed_{many}_{n}", moment - 9 * HOUR)
        with CaptureQueriesContext(connection) as asked:
            board.get("/freshness")
        counted.append(len(asked))
    assert counted[0] == counted[1]


# A schedule that rows show ----------------------------------------------------------------------------------------------


@pytest.fixture
def daily(growth: Team, moment: dt.datetime) -> Experiment:
    """Rows come once a day, and the metric says every hour."""
    e = running(growth, "visits", moment, days=14)
    for day in range(1, 14):
        came(e, "visits", (moment - day * 24 * HOUR).replace(hour=3, minute=0, second=0, microsecond=0))
    return e


def test_a_found_schedule_is_shown_beside_the_late_feed_and_taken_in_one_step(
    board: Client, daily: Experiment, growth: Team
) -> None:
    page = board.get("/freshness").text
    (where,) = set(re.findall(r'hx-get="(/freshness/schedules/[^"]+)"', page))
    part = board.get(where, headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert "Take it: daily at 03:00 UTC" in part

    taken = board.post(where, follow=True)
    assert "visits is due daily at 03:00 UTC from now on. Before: every hour." in taken.text
    assert [s.expected for s in MetricSchedule.objects.filter(since__isnull=False)] == [
        {"every": "daily", "at": "03:00", "timezone": "UTC"}
    ]


def test_only_the_metrics_own_team_takes_a_schedule(daily: Experiment, growth: Team, moment: dt.datetime) -> None:
    for role, team in (("viewer", growth), ("operator", Team(key="search", name="Search", created_at=moment))):
        with as_role("owner"):
            team.save()
        browser = Client()
        browser.force_login(User.objects.get(pk=person(f"{role}-1", team, role).pk))
        assert "Take it" not in browser.get("/freshness/schedules/visits").text
        assert browser.post("/freshness/schedules/visits").status_code == 403
    assert not MetricSchedule.objects.exists()


def test_the_scene_of_the_gallery_has_a_strip_for_each_feed(board: Client, scene: Scene) -> None:
    scene.experiment(days=2)
    assert board.get("/freshness").text.count('class="chart chart--dues"') == 2
