"""Sources: pulled on a schedule, read-only, with a run in the refresh log whatever happens."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from django.conf import LazySettings
from django.db import connection

from telemetry.models import ExperimentKpi, RefreshRun, Source
from telemetry.refresh import newest_runs
from telemetry.sources import runs as pulls
from telemetry.tasks import sources as tick
from tests.api.conftest import Caller, errors_of
from tests.api.warehouse import bind, warehouse
from tests.conftest import as_role

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
ENV = "WAREHOUSE_URL"


@pytest.fixture(autouse=True)
def _environment(ops: Caller, monkeypatch: pytest.MonkeyPatch, settings: LazySettings, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV, warehouse())
    settings.SOURCES_DIR = tmp_path
    bind(ops.team, variable=ENV)
    bind(ops.team, folder=".")


def values(hours_ago: int = 1, value: str = "3.5", experiment: str = "one-page-checkout") -> str:
    ts = (TOP - timedelta(hours=hours_ago)).isoformat()
    return (
        f"SELECT * FROM (VALUES ('{experiment}', 'vrps', 'control', '{ts}'::timestamptz, {value}, 10, 2.0::numeric)) "  # noqa: S608
        "AS t(experiment, metric, variant, ts, value, n, variance) WHERE ts > :since AND ts <= :until"
    )


def plan(**said: Any) -> dict[str, Any]:
    return {"key": "warehouse", "kind": "sql", "url_env": ENV, "query": values(), "metrics": ["vrps"], **said}


def create(ops: Caller, **said: Any) -> dict[str, Any]:
    response = ops.post("/api/sources", plan(**said))
    assert response.status_code == 201, response.content
    made: dict[str, Any] = response.json()
    return made


def work() -> None:
    with as_role("worker"):
        tick()


def runs() -> list[RefreshRun]:
    with as_role("worker"):
        return list(RefreshRun.objects.filter(job_name__startswith="source/").order_by("id"))


def stored() -> list[float]:
    with as_role("worker"):
        return list(ExperimentKpi.objects.order_by("ts").values_list("value", flat=True))


def one() -> Source:
    with as_role("worker"):
        return Source.objects.get()


def test_a_source_is_pulled_when_due_and_says_so_in_the_refresh_log(ops: Caller) -> None:
    ops.experiment()
    made = create(ops, lineage_job="dbt/kpis")
    assert (made["url_env"], made["schedule_s"], made["overlap_s"]) == (ENV, 900, 3600)
    work()

    assert stored() == [3.5]
    (run,) = runs()
    assert (run.job_name, run.source, run.status, run.rows, run.error) == (
        "source/warehouse",
        "warehouse",
        "succeeded",
        1,
        None,
    )
    assert run.data_watermark == TOP - timedelta(hours=1)
    told = ops.get("/api/sources/warehouse").json()
    assert told["last_refresh_at"] is not None
    assert told["data_watermark"] == (TOP - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    (tracked,) = ops.get("/api/freshness?metric=vrps").json()["results"]
    assert (tracked["source"], tracked["last_run"]["status"]) == ("warehouse", "succeeded")
    work()
    assert len(runs()) == 1, "it is not due again yet"


def test_a_refresh_is_answered_with_the_run_and_carried_out_by_the_worker(ops: Caller) -> None:
    ops.experiment()
    create(ops)
    first, second = ops.post("/api/sources/warehouse/refresh"), ops.post("/api/sources/warehouse/refresh")
    assert (first.status_code, first.json()["run"]) == (202, second.json()["run"]), "a run that waits is the same run"
    work()
    assert [str(run.run_id) for run in runs()] == [first.json()["run"]]


def test_two_runs_of_one_source_never_overlap(ops: Caller) -> None:
    ops.experiment()
    create(ops)
    ops.post("/api/sources/warehouse/refresh")
    with as_role("worker"):
        assert pulls.take_next(now=datetime.now(UTC), most=1) is not None
    refused = ops.post("/api/sources/warehouse/refresh")
    assert (refused.status_code, refused.json()["code"]) == (409, "already_running")
    work()
    assert [run.status for run in runs()] == ["running"]


def test_every_run_reads_again_what_the_overlap_covers_and_what_a_downtime_missed(ops: Caller) -> None:
    ops.experiment()
    create(ops, overlap_s=1800)
    work()
    later = TOP + timedelta(days=3)
    source = one()
    with as_role("worker"):
        from telemetry.sources.window import window

        assert window(source, now=later) == (TOP - timedelta(hours=1, minutes=30), later)
        Source.objects.update(due_at=later - timedelta(days=2))
        assert pulls.queue_due(now=later) == 1
        assert pulls.queue_due(now=later) == 0, "what was missed is one run"
    assert later < one().due_at <= later + timedelta(seconds=900)


def test_a_query_that_fails_leaves_a_failed_run_and_is_tried_again_with_backoff(ops: Caller) -> None:
    ops.experiment()
    create(ops, query="SELECT * FROM nowhere WHERE ts > :since AND ts <= :until")
    waits = []
    for _ in range(3):
        with as_role("worker"):
            Source.objects.update(due_at=datetime.now(UTC))
        work()
        waits.append(round((one().due_at - datetime.now(UTC)).total_seconds(), -1))
    assert [run.status for run in runs()] == ["failed"] * 3
    assert "nowhere" in str(runs()[0].error)
    assert waits == [30, 60, 120]
    assert one().failures == 3
    assert one().last_refresh_at is None


def test_bad_rows_are_told_and_good_ones_stored_and_the_same_stretch_is_read_again(ops: Caller) -> None:
    ops.experiment()
    create(ops, query=f"{values(1)} UNION ALL {values(2, value="'NaN'::float8")}")
    work()
    (run,) = runs()
    assert (run.status, run.rows, run.refused, stored()) == ("partial", 1, 1, [3.5])
    assert "1 of 2 rows were refused" in str(run.error)
    assert "Row 2 of the query: value is nan; it must be a finite number." in str(run.error)
    assert (one().read_to, one().again_from) == (TOP - timedelta(hours=1), TOP - timedelta(hours=2))
    assert (one().failures, one().last_refresh_at) == (0, run.finished_at)


def test_a_run_that_brought_rows_is_no_failure_wherever_failures_are_counted(ops: Caller) -> None:
    ops.experiment()
    create(ops, query=f"{values(1)} UNION ALL {values(2, value="'NaN'::float8")}", schedule_s=86_400)
    with as_role("worker"):
        Source.objects.update(created_at=datetime.now(UTC) - timedelta(days=1))
    work()
    told = ops.get("/api/sources/warehouse").json()
    assert (told["failure_share"], told["failures"]) == (0.0, 0)
    (tracked,) = ops.get("/api/freshness?metric=vrps").json()["results"]
    assert (tracked["source"], tracked["last_run"]["status"]) == ("warehouse", "partial")
    assert ops.get("/api/slo").json()["telemetry_failures"]["share"] == 0
    (logged,) = ops.get("/api/refresh-log?status=partial").json()["results"]
    assert (logged["rows"], logged["refused"], logged["ignored"]) == (1, 1, 0)
    with as_role("worker"):
        assert newest_runs([one()], now=datetime.now(UTC))[one().pk] == ["partial"]


def test_a_run_whose_every_row_is_refused_has_failed(ops: Caller) -> None:
    ops.experiment()
    create(ops, query=values(1, value="'NaN'::float8"))
    work()
    (run,) = runs()
    assert (run.status, run.refused, one().failures, one().last_refresh_at) == ("failed", 1, 1, None)
    assert str(run.error).startswith("All 1 rows were refused.")


def test_rows_of_experiments_that_are_not_here_are_counted_apart_and_fail_nothing(
    ops: Caller, stranger: Caller
) -> None:
    ops.experiment()
    stranger.experiment(key="theirs", target_kpis=["vrps"])
    others = (values(2, experiment="archived-one", value="'NaN'::float8"), values(3, experiment="theirs"))
    query = " UNION ALL ".join((values(1), *others))
    tried = ops.post("/api/sources?dry_run=true", plan(query=query)).json()
    assert (tried["accepted"], tried["ignored"], tried["ignored_experiments"]) == (1, 2, ["archived-one", "theirs"])
    create(ops, query=query)
    work()
    (run,) = runs()
    assert (run.status, run.rows, run.refused, run.ignored, run.error) == ("succeeded", 1, 0, 2, None)
    assert (stored(), one().read_to) == ([3.5], TOP - timedelta(hours=1))
    assert ops.get("/api/refresh-log?job=source/warehouse").json()["results"][0]["ignored"] == 2


def test_runs_that_failed_and_runs_that_never_were_count_as_failures(ops: Caller) -> None:
    ops.experiment()
    assert create(ops, schedule_s=86_400)["failure_share"] is None
    work()
    assert ops.get("/api/sources/warehouse").json()["failure_share"] == 0.0
    with as_role("worker"):
        Source.objects.update(created_at=datetime.now(UTC) - timedelta(days=4))
    assert ops.get("/api/sources/warehouse").json()["failure_share"] == 0.75, "three of four days left no run"


def test_a_source_says_how_that_which_it_feeds_fares_worst_of_its_metrics(ops: Caller, stranger: Caller) -> None:
    fresh, silent = ops.experiment(name="Fed"), ops.experiment(name="Silent", target_kpis=["clicks"])
    theirs = stranger.experiment(name="Theirs", target_kpis=["vrps"])
    now = datetime.now(UTC)
    top = now.replace(minute=0, second=0, microsecond=0)
    with as_role("owner"), connection.cursor() as cursor:
        for experiment in (fresh, silent, theirs):
            cursor.execute(
                "UPDATE metadata.experiments SET created_at = %(at)s, started_at = %(at)s WHERE id = %(id)s",
                {"at": now - timedelta(hours=2), "id": experiment["id"]},
            )
        cursor.execute("UPDATE metadata.metrics SET expected_every_s = 3600, freshness_target_s = 3600")
        for variant in ("control", "treatment"):
            cursor.execute(
                "INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n, first_received_at) "
                "SELECT %s, 'vrps', %s, at, 1, 1, at + interval '40 s' FROM unnest(%s::timestamptz[]) AS at",
                [fresh["id"], variant, [top, top - timedelta(hours=1), top - timedelta(hours=2)]],
            )
    good = create(ops)["freshness"]
    both = create(ops, key="both", metrics=["vrps", "clicks"])["freshness"]
    bind(stranger.team, variable=ENV)
    none = create(stranger, key="other", metrics=["clicks"])["freshness"]

    assert (good["state"], good["telemetry_p95_s"]) == ("fresh", 40.0)
    assert both["state"] == "unknown"
    assert both["telemetry_p95_s"] > 3600, "what never came counts its age"
    assert none is None, "nothing of that team's is fed by it"


def test_a_run_that_lost_its_worker_is_failed_and_its_source_runs_again(ops: Caller) -> None:
    ops.experiment()
    create(ops)
    ops.post("/api/sources/warehouse/refresh")
    now = datetime.now(UTC)
    with as_role("worker"):
        pulls.take_next(now=now, most=1)
        assert pulls.fail_lost(now=now + timedelta(seconds=100)) == 0
        assert pulls.fail_lost(now=now + timedelta(seconds=200)) == 1
    (run,) = runs()
    assert (run.status, "No sign of life" in str(run.error)) == ("failed", True)
    work()
    assert [run.status for run in runs()] == ["failed", "succeeded"]


# Read-only, bounded, without secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM t WHERE ts > :since AND ts < :until",
        "SELECT 1 WHERE :since < :until; DROP TABLE x",
        "SELECT 1 /* :since :until */",
        "SELECT ':since :until'",
        "SELECT * FROM t",
        "",
    ],
)
def test_only_one_select_bounded_by_since_and_until_is_taken(ops: Caller, query: str) -> None:
    ops.experiment()
    response = ops.post("/api/sources", plan(query=query))
    assert response.status_code == 422
    assert {pointer for pointer, _ in errors_of(response)} == {"/query"}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT lo_create(0) AS value WHERE now() > :since AND :until IS NOT NULL", "read-only transaction"),
        ("WITH x AS (DELETE FROM pg_class RETURNING 1) SELECT * FROM x WHERE now() > :since AND now() < :until", "WITH"),
        ("SELECT pg_sleep(20) AS value WHERE now() > :since AND :until IS NOT NULL", "timeout"),
        ("SELECT set_config('transaction_read_only', 'off', true) AS value, lo_create(0) WHERE now() > :since AND :until IS NOT NULL", "read-write mode"),
        ("SELECT 1 AS value) AS q; DROP TABLE metadata.sources; SELECT (:since < :until", "statement"),
    ],
)  # fmt: skip
def test_a_query_can_neither_write_nor_run_on(ops: Caller, query: str, told: str) -> None:
    ops.experiment()
    response = ops.post("/api/sources?dry_run=true", plan(query=query, time_limit_s=1))
    assert (response.status_code, told in response.json()["detail"]) == (422, True), response.json()


def test_a_login_that_may_do_anything_is_not_used(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    ops.experiment()
    monkeypatch.setenv(ENV, os.environ["DATABASE_SUPERUSER_URL"].rpartition("/")[0] + "/template1")
    response = ops.post("/api/sources?dry_run=true", plan())
    assert "superuser" in response.json()["detail"]


def test_an_error_never_shows_the_password(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    ops.experiment()
    for wrong in (
        "postgresql://me:hush-hush@127.0.0.1:1/db",
        "nonsense://me:hush-hush@host",
        "hush-hush",
        "postgresql://me:hush-hush@[bad",
    ):
        monkeypatch.setenv(ENV, wrong)
        response = ops.post("/api/sources?dry_run=true", plan())
        assert (response.status_code, response.json()["code"]) == (422, "source_failed")
        assert "hush" not in response.content.decode()


@pytest.mark.parametrize(
    ("said", "pointer"),
    [
        ({"url_env": "DATABASE_OWNER_URL"}, "/url_env"),
        ({"url_env": "DECISIONING_SECRET_KEY"}, "/url_env"),
        ({"url_env": "postgres://a:b@c/d"}, "/url_env"),
        ({"url_env": ""}, "/url_env"),
        ({"metrics": ["nobody_knows"]}, "/metrics/0"),
        ({"metrics": []}, "/metrics"),
        ({"schedule_s": 1}, "/schedule_s"),
        ({"schedule_s": "900"}, "/schedule_s"),
        ({"lineage_job": "nameless"}, "/lineage_job"),
        ({"columns": {"users": "units"}}, "/columns"),
        ({"columns": {"a": "n", "b": "n"}}, "/columns"),
        ({"delimiter": "x"}, "/delimiter"),
        ({"delimiter": ",", "decimal_comma": True}, "/delimiter"),
        ({"encoding": "cp1252"}, "/encoding"),
        ({"key": "Not A Key"}, "/key"),
        ({"kind": "ftp"}, "/kind"),
    ],
)
def test_what_a_source_may_not_be_is_said_with_its_place(ops: Caller, said: dict[str, Any], pointer: str) -> None:
    ops.experiment()
    response = ops.post("/api/sources", plan(**said))
    assert (response.status_code, [p for p, _ in errors_of(response)]) == (422, [pointer])


def test_keys_are_unique_and_another_teams_source_is_not_there(ops: Caller, stranger: Caller) -> None:
    ops.experiment()
    create(ops)
    again = ops.post("/api/sources", plan())
    assert (again.status_code, again.json()["code"]) == (409, "key_taken")
    assert stranger.get("/api/sources").json()["results"] == []
    assert stranger.get("/api/sources/warehouse").status_code == 404
    assert stranger.post("/api/sources/warehouse/refresh").status_code == 404
    assert [source["key"] for source in ops.get("/api/sources").json()["results"]] == ["warehouse"]


# Dry run ------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_shows_what_a_run_would_do_and_keeps_nothing(ops: Caller) -> None:
    ops.experiment()
    query = f"{values(1)} UNION ALL {values(2, value="'NaN'::float8")}"
    before = ops.post("/api/sources?dry_run=true", plan(query=query))
    assert (before.status_code, stored(), ops.get("/api/sources").json()["results"]) == (200, [], [])
    told = before.json()
    assert (told["accepted"], told["refused"], len(told["rows"]), told["more"]) == (1, 1, 1, False)
    assert told["rows"][0]["experiment"] == "one-page-checkout"

    create(ops)
    work()
    after = ops.post("/api/sources/warehouse/refresh?dry_run=true").json()
    assert (after["accepted"], after["duplicates"]) == (0, 1)
    assert len(runs()) == 1


# Files --------------------------------------------------------------------------------------------------------------------

FILE_QUERY = "SELECT * FROM rows WHERE ts > :since AND ts <= :until"


def file_plan(path: str, query: str = FILE_QUERY) -> dict[str, Any]:
    return {"key": "exports", "kind": "file", "path": path, "query": query, "metrics": ["vrps"]}


def write_csv(path: Path) -> None:
    lines = [
        f"one-page-checkout,control,{(TOP - timedelta(hours=h)).strftime('%Y-%m-%dT%H:%M:%SZ')},{h}.5,10,2.0"
        for h in (3, 2, 1)
    ]
    path.write_text("\n".join(["experiment,variant,ts,value,n,variance", *lines]))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_is_read_by_the_same_rules(ops: Caller, tmp_path: Path, kind: str) -> None:
    ops.experiment()
    write_csv(tmp_path / "kpis.csv")
    if kind == "parquet":
        copy = f"COPY (FROM '{tmp_path}/kpis.csv') TO '{tmp_path}/kpis.parquet'"
        duckdb.sql(copy)
    response = ops.post("/api/sources", file_plan(f"kpis.{kind}"))
    assert response.status_code == 201, response.content
    work()
    (run,) = runs()
    assert (run.status, run.rows, run.error) == ("succeeded", 3, None)
    assert stored() == [3.5, 2.5, 1.5]


@pytest.mark.parametrize("path", ["/etc/passwd.csv", "../outside.csv", "kpis.txt", "", "http://example.org/kpis.csv"])
def test_a_file_outside_its_folder_is_refused(ops: Caller, path: str) -> None:
    ops.experiment()
    response = ops.post("/api/sources", file_plan(path))
    if path.startswith("http"):  # a relative path like any other, and there is no such file
        response = ops.post("/api/sources?dry_run=true", file_plan(path))
    assert response.status_code == 422


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_that_is_not_there_is_said_to_be_missing(ops: Caller, tmp_path: Path, kind: str) -> None:
    ops.experiment()
    (tmp_path / f"folder.{kind}").mkdir()
    for name, said in ((f"gone.{kind}", "There is no file"), (f"folder.{kind}", "No file matches")):
        response = ops.post("/api/sources?dry_run=true", file_plan(name))
        assert (response.status_code, response.json()["code"]) == (422, "source_failed")
        assert response.json()["detail"] == f"{said} '{name}' in the folder of files, DECISIONING_FILES."


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd') WHERE :since < :until",
        "SELECT * FROM glob('/*') WHERE :since < :until",
        "SELECT * FROM rows WHERE :since < :until) AS q; COPY rows TO '/tmp/decisioning-out.csv'; SELECT (1",
    ],
)
def test_a_files_query_reaches_that_file_alone(ops: Caller, tmp_path: Path, query: str) -> None:
    ops.experiment()
    write_csv(tmp_path / "kpis.csv")
    response = ops.post("/api/sources?dry_run=true", file_plan("kpis.csv", query))
    assert response.status_code == 422
    assert response.json()["code"] in ("source_failed", "invalid")
    assert not Path("/tmp/decisioning-out.csv").exists()  # noqa: S108
