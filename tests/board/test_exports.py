"""Every table of the portal is taken along as a spreadsheet, with what the page shows and of the own team alone."""

import csv
import io
from datetime import datetime
from zoneinfo import ZoneInfo

from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from decisioning.access.models import Team
from decisioning.board.downloads import MOST
from decisioning.board.presenters.freshness import ages
from decisioning.ledger import channels
from experiments.feeds import set_out
from gates.models import Backtest
from telemetry.events import exposure_metric
from telemetry.hours import rebuild_changed
from telemetry.models import QuarantinedEvent, Source
from tests.board.scenes import HOUR, Scene, person
from tests.board.test_policies import candidate, finish
from tests.conftest import as_role


def lines(client: Client, path: str) -> list[dict[str, str]]:
    answer = client.get(path)
    assert (answer.status_code, answer["Content-Type"]) == (200, "text/csv; charset=utf-8"), path
    assert answer["Content-Disposition"].startswith("attachment"), path
    return list(csv.DictReader(io.StringIO(answer.text)))


def test_the_tables_of_an_experiment(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="scale", code="wins", days=3)
    scene.proposal(e)
    where = f"/experiments/{e.key}"
    page = board.get(where).text
    for name in ("gates", "effects", "days", "timeline"):
        assert f'href="{where}/{name}.csv"' in page

    gates = lines(board, f"{where}/gates.csv")
    assert [g["gate"] for g in gates][:2] == ["vrps_uplift", "error_rate_guard"]
    assert (gates[0]["verdict"], gates[0]["estimate"], gates[0]["n"]) == ("pass", "0.04", "362000")
    effects = lines(board, f"{where}/effects.csv")
    assert {line["variant"] for line in effects} == {"treatment"}
    assert all(float(line["lower"]) < float(line["estimate"]) < float(line["upper"]) for line in effects)
    days = lines(board, f"{where}/days.csv")
    assert {(line["metric"], line["variant"]) for line in days} == {
        (metric, variant) for metric in ("vrps", "error_rate") for variant in ("control", "treatment")
    }
    assert any("Scale proposed" in line["what"] for line in lines(board, f"{where}/timeline.csv"))


def test_a_feed_with_a_calendar_is_due_in_the_spreadsheet_when_it_is_due_everywhere(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(days=3)
    with as_role("owner"):
        monthly = {"every": "monthly", "on": 1, "at": "00:00", "timezone": "Europe/Berlin"}
        set_out(scene.metric("vrps"), monthly, since=None, now=scene.now)

    told = next(line for line in lines(board, "/freshness.csv") if line["metric"] == "vrps")

    age = next(age for age in ages([e.pk], now=scene.now) if age.metric == "vrps")
    assert age.due_at is not None
    assert datetime.fromisoformat(told["due_at"]) == age.due_at
    assert datetime.fromisoformat(told["stale_at"]) == age.stale_at
    assert age.due_at.astimezone(ZoneInfo("Europe/Berlin")).strftime("%d %H:%M") == "01 00:00"


def test_the_exposures_of_a_day_add_up(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=3, rows=False)
    with as_role("owner"), connection.cursor() as cursor:
        exposure_metric(e, now=scene.now)
        cursor.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n, variance) "
            "SELECT %s, 'exposures', 'control', date_trunc('day', %s::timestamptz, 'UTC') - at, n, n, 0 "
            "FROM (VALUES (interval '2 h', 100), ('3 h', 700), ('30 h', 200)) AS t(at, n)",
            [e.pk, scene.now],
        )
    with as_role("worker"):
        rebuild_changed()

    days = [line for line in lines(board, f"/experiments/{e.key}/days.csv") if line["metric"] == "exposures"]

    assert [(line["value"], line["units_so_far"], line["value_so_far"]) for line in days] == [
        ("200.0", "200", "200.0"),
        ("800.0", "1000", "1000.0"),
    ]


def test_the_tables_of_the_portal(board: Client, scene: Scene, growth: Team, ines: User) -> None:
    e = scene.experiment(days=1)
    with as_role("owner"):
        Source.objects.create(key="warehouse", team=growth, kind="file", path="rows.csv", query="SELECT :since, :until", schedule_s=900,
                              metrics=["vrps"], created_at=scene.now - HOUR, due_at=scene.now)  # fmt: skip
        QuarantinedEvent.objects.create(team=growth, source="shop", event_id="1", type="x.v9", reason="unknown type", body={"a": 1},
                                        received_at=scene.now)  # fmt: skip
    fresh = lines(board, "/freshness.csv")
    assert {(line["experiment"], line["metric"]) for line in fresh} == {(e.key, "error_rate"), (e.key, "vrps")}
    assert all(line["state"] in ("fresh", "due") and float(line["telemetry_p95_s"]) >= 180 for line in fresh)
    assert [line["key"] for line in lines(board, "/sources.csv")] == ["warehouse"]
    assert [(line["type"], line["body"]) for line in lines(board, "/quarantine.csv")] == [("x.v9", '{"a": 1}')]
    assert "Telemetry latency, p95" in [line["promise"] for line in lines(board, "/promises.csv")]
    judged = {(line["policy"], line["version"]): line["judges"] for line in lines(board, "/policies.csv")}
    assert judged["default", "1"] == "1"
    for page, export in (("freshness", "freshness"), ("sources", "sources"), ("quarantine", "quarantine"),
                        ("promises", "promises"), ("policies", "policies")):  # fmt: skip
        assert f'href="/{export}.csv"' in board.get(f"/{page}").text


def test_what_a_backtest_found_is_taken_along_whole(board: Client, scene: Scene, ines: User) -> None:
    e = scene.experiment(days=1, rows=False)
    version = candidate(scene, ines)
    where = f"/policies/{version.policy_id}/2"
    board.post(f"{where}/backtest")
    assert lines(board, f"{where}/backtest.csv") == []
    finish(scene, version, e.key)
    with as_role("owner"):
        assert Backtest.objects.count() == 1

    (line,) = lines(board, f"{where}/backtest.csv")

    assert f'href="{where}/backtest.csv"' in board.get(where).text
    assert (line["experiment"], line["variant"]) == (e.key, "treatment")
    assert (line["live_action"], line["candidate_action"], line["candidate_code"]) == ("hold", "delete", "harm")


def test_keys_and_receivers_are_taken_along_by_who_manages_them(board: Client, growth: Team, scene: Scene) -> None:
    with as_role("worker"):
        hook, _ = channels.open_channel(
            growth, url="https://93.184.216.34/x", events=["decision.proposed"], by="ada", now=scene.now
        )
        channels.try_out(hook, by="ada", now=scene.now)
    ada = Client()
    ada.force_login(person("ada", growth, "admin"))
    ada.post("/keys", {"team": growth.pk, "scopes": ["experiments:read"]})

    (key,) = lines(ada, "/keys.csv")
    assert (key["team"], key["scopes"]) == ("growth", "experiments:read")
    (told,) = lines(ada, "/webhooks.csv")
    assert told["events"] == "decision.proposed"
    (sent,) = lines(ada, f"/webhooks/{hook.pk}/deliveries.csv?state=waiting")
    assert sent["state"] == "waiting"
    assert lines(ada, f"/webhooks/{hook.pk}/deliveries.csv?state=dead") == []
    for path in ("/keys.csv", "/webhooks.csv", f"/webhooks/{hook.pk}/deliveries.csv"):
        assert board.get(path).status_code == 403


def test_a_name_that_a_spreadsheet_would_run_is_only_a_name(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=1)
    with as_role("owner"):
        QuarantinedEvent.objects.create(team=scene.team, source="=HYPERLINK(1)", event_id="1", type="x", reason="r", body={},
                                        received_at=scene.now)  # fmt: skip
    assert lines(board, "/quarantine.csv")[0]["source"] == "'=HYPERLINK(1)"
    assert e.key in board.get("/freshness.csv").text


def test_a_table_that_is_cut_off_says_so_in_its_last_line(board: Client, growth: Team, scene: Scene) -> None:
    with as_role("owner"):
        kept = {
            "team": growth,
            "source": "shop",
            "type": "x.v9",
            "reason": "unknown type",
            "body": {},
            "received_at": scene.now,
        }
        QuarantinedEvent.objects.bulk_create(QuarantinedEvent(event_id=str(n), **kept) for n in range(MOST))
    assert len(lines(board, "/quarantine.csv")) == MOST
    assert board.get("/quarantine.csv").text.splitlines()[-1].endswith(",0,unknown type,,{}"), "all of it is there"
    with as_role("owner"):
        QuarantinedEvent.objects.create(event_id="one more", **kept)
    answer = board.get("/quarantine.csv").text.splitlines()
    assert len(answer) == 1 + MOST + 1
    assert answer[-1].startswith('"Cut off after 10,000 rows')


def test_the_effects_are_those_of_every_goal_and_guardrail(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=3)

    effects = lines(board, f"/experiments/{e.key}/effects.csv")

    assert {(line["metric"], line["role"]) for line in effects} == {("vrps", "goal"), ("error_rate", "guardrail")}
    days = [line["day"] for line in effects if line["metric"] == "error_rate"]
    assert days == [line["day"] for line in effects if line["metric"] == "vrps"]
    assert len(days) >= 3
