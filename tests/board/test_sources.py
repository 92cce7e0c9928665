"""Sources on the board: whoever may send rows may ask for a pull, and hears when one is under way."""

import csv
import datetime as dt
import io
import uuid
from pathlib import Path

from django.contrib.auth.models import User
from django.test import Client
from pytest_django import Settings

from decisioning.access.models import Team
from telemetry.models import ExperimentKpi, RefreshRun, Source
from tests.api.warehouse import bind
from tests.board.scenes import HOUR, Scene, person
from tests.conftest import as_role


def feed(scene: Scene, key: str, *metrics: str, **said: object) -> Source:
    return Source.objects.create(
        **{"key": key, "team": scene.team, "kind": "file", "path": "rows.csv", "query": "SELECT :since, :until", "schedule_s": 900,
           "metrics": list(metrics), "created_at": scene.now - HOUR, "due_at": scene.now, **said}
    )  # fmt: skip


def ran(source: Source, at: dt.datetime, status: str = "succeeded", **said: object) -> None:
    RefreshRun.objects.create(
        **{"run_id": uuid.uuid4(), "job_name": f"source/{source.key}", "source": source.key, "team": source.team, "started_at": at,
           "finished_at": at, "status": status, **said}
    )  # fmt: skip


def test_an_experiment_shows_the_runs_of_the_sources_that_feed_its_kpis(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=1, rows=False)
    with as_role("owner"):
        for source in (feed(scene, "warehouse", "vrps", "clicks"), feed(scene, "stock", "clicks")):
            ran(source, scene.now - HOUR)

    page, log = board.get(f"/experiments/{e.key}").text, board.get(f"/refresh-log?experiment={e.key}").text
    sheet = board.get(f"/refresh-log.csv?experiment={e.key}").text

    for text in (page, log, sheet):
        assert "source/warehouse" in text
        assert "source/stock" not in text
    assert "source/stock" in board.get("/refresh-log").text


def test_a_source_that_failed_days_ago_says_so_though_nothing_ran_since(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        weekly = feed(
            scene,
            "weekly",
            "vrps",
            schedule_s=7 * 86_400,
            created_at=scene.now - 240 * HOUR,
            read_to=scene.now - 72 * HOUR,
        )
        ran(weekly, scene.now - 73 * HOUR, "failed")
        ran(weekly, scene.now - 72 * HOUR)
        staff = User.objects.create_superuser("root", "root@example.org", "x")

    told = board.get("/sources").text.replace("\N{NO-BREAK SPACE}", " ")
    (line,) = csv.DictReader(io.StringIO(board.get("/sources.csv").text))
    admin = Client()
    admin.force_login(staff)
    listed = admin.get("/admin/telemetry/source/").text

    assert "no run; 50.0% failed or missed in 7 days" in told
    assert (line["failure_share"], line["data_watermark"]) == ("0.5", str(scene.now - 72 * HOUR))
    assert "50.0%" in listed
    assert "column-read_to" in listed


def test_a_kpi_shows_its_last_refresh_and_how_the_last_run_of_its_source_ended(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=1)
    ahead = scene.now + HOUR  # the rows came before
    with as_role("owner"):
        ran(feed(scene, "warehouse", "vrps", last_refresh_at=ahead), scene.now, "failed", error="no such table")

    sheet = {line["metric"]: line for line in csv.DictReader(io.StringIO(board.get("/freshness.csv").text))}
    for page in (board.get("/freshness").text, board.get(f"/experiments/{e.key}").text):
        (row,) = (tr for tr in page.split("<tr")[1:] if "warehouse: no such table" in tr)
        assert f"{ahead:%H:%MZ}" in row.replace("\N{NO-BREAK SPACE}", " ")
        assert "Failed" in row
        assert "no source" in page, "the other KPI has none"

    told = sheet["vrps"]
    assert (told["source"], told["last_run_status"], told["last_run_error"]) == ("warehouse", "failed", "no such table")
    assert told["last_refresh_at"] == str(ahead)
    assert (sheet["error_rate"]["source"], sheet["error_rate"]["last_refresh_at"] != "") == ("", True)


def test_a_source_shows_how_that_which_it_feeds_fares(board: Client, scene: Scene) -> None:
    scene.experiment(days=1)
    with as_role("owner"):
        feed(scene, "warehouse", "vrps")
        feed(scene, "idle", "clicks")

    idle, warehouse = (tr.replace("\N{NO-BREAK SPACE}", " ") for tr in board.get("/sources").text.split("<tr")[2:4])
    told = {line["key"]: line for line in csv.DictReader(io.StringIO(board.get("/sources.csv").text))}

    assert "Fresh" in warehouse or "Due" in warehouse
    assert ">p95 " in warehouse
    assert "nothing that is judged now" in idle
    assert told["warehouse"]["freshness"] in ("fresh", "due")
    assert float(told["warehouse"]["telemetry_p95_s"]) >= 180
    assert told["idle"]["telemetry_p95_s"] == ""


def test_a_source_is_refreshed_from_its_page_by_whoever_may_send_rows(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        source = Source.objects.create(
            key="warehouse", team=scene.team, kind="file", path="rows.csv", query="SELECT :since, :until", schedule_s=900,
            metrics=["vrps"], created_at=scene.now - HOUR, due_at=scene.now,
        )  # fmt: skip
    assert "Refresh warehouse now" in board.get("/sources").text

    answer = board.post(f"/sources/{source.pk}/refresh", follow=True)
    assert "warehouse is asked for" in answer.text
    assert "source/warehouse" in answer.text, "the refresh log shows its runs"
    with as_role("owner"):
        assert list(RefreshRun.objects.values_list("source", "status")) == [("warehouse", "running")]

    onlooker = Client()
    onlooker.force_login(person("vic", scene.team, role="viewer"))
    assert "Refresh warehouse now" not in onlooker.get("/sources").text
    assert onlooker.post(f"/sources/{source.pk}/refresh").status_code == 403


def test_a_dry_run_shows_what_a_run_would_bring_and_keeps_nothing(
    board: Client, scene: Scene, settings: Settings, tmp_path: Path
) -> None:
    settings.SOURCES_DIR = tmp_path
    bind(scene.team, folder="rows.csv")
    e = scene.experiment(days=1, rows=False)
    ts = (scene.now - HOUR).isoformat()
    rows = [f"{e.key},control,{ts},3.5,10,2.0", f"{e.key},nobody,{ts},3.5,10,2.0"]
    (tmp_path / "rows.csv").write_text("\n".join(["experiment,variant,ts,value,n,variance", *rows]))
    query = "SELECT * FROM rows WHERE ts > :since AND ts <= :until"
    with as_role("owner"):
        source = Source.objects.create(
            key="exports", team=scene.team, kind="file", path="rows.csv", query=query, schedule_s=900, metrics=["vrps"],
            created_at=scene.now - HOUR, due_at=scene.now,
        )  # fmt: skip
    assert "Try exports out" in board.get("/sources").text

    tried = board.post(f"/sources/{source.pk}/try")

    assert tried.status_code == 200
    assert "1 new, 0 changed, 0 duplicate, 1 refused." in tried.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "nobody" in tried.text, "the row that would be refused is shown with its reason"
    with as_role("owner"):
        assert not ExperimentKpi.objects.exists()
        assert not RefreshRun.objects.exists()

    (tmp_path / "rows.csv").unlink()
    failed = board.post(f"/sources/{source.pk}/try")
    assert failed.status_code == 422
    assert "exports would fail" in failed.text
    onlooker = Client()
    onlooker.force_login(person("vic", scene.team, role="viewer"))
    assert onlooker.post(f"/sources/{source.pk}/try").status_code == 403


def test_the_portals_own_runs_are_counted_apart_from_those_of_the_own_teams(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        other = Team.objects.create(key="other", name="Other", created_at=scene.now)
        for team, status in ((scene.team, "succeeded"), (scene.team, "failed"), (other, "failed"), (None, "succeeded")):
            RefreshRun.objects.create(
                run_id=uuid.uuid4(), job_name="x", team=team, started_at=scene.now, finished_at=scene.now, status=status
            )

    text = board.get("/freshness").text

    assert "1 of 2 runs of your teams&#x27; sources failed, and 0 of 1 run of the portal&#x27;s own jobs" in text
