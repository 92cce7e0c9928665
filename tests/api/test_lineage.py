"""OpenLineage over HTTP: the official client, the batch, and everything that is no lineage."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from openlineage.client import OpenLineageClient
from openlineage.client.event_v2 import Job, JobEvent, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import error_message_run, output_statistics_output_dataset
from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport
from pytest_django.live_server_helper import LiveServer

from telemetry.models import RefreshRun, Source
from tests.api.conftest import Caller, errors_of
from tests.conftest import as_role

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def event(run: uuid.UUID, kind: str | None = "START", minute: int = 0, **said: Any) -> dict[str, Any]:
    return {
        "eventType": kind,
        "eventTime": (NOON + timedelta(minutes=minute)).isoformat(),
        "producer": "https://example.org/airflow",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": str(run)},
        "job": {"namespace": "airflow", "name": "daily_kpis"},
        **said,
    }


def source(ops: Caller, **said: Any) -> None:
    with as_role("owner"):
        Source.objects.create(
            **{"key": "warehouse", "team": ops.team, "kind": "sql", "url_env": "WAREHOUSE_URL", "query": "q", "metrics": ["vrps"],
               "lineage_job": "airflow/daily_kpis", "created_at": NOON, "due_at": NOON, **said}
        )  # fmt: skip


def runs() -> list[RefreshRun]:
    with as_role("worker"):
        return list(RefreshRun.objects.filter(team__isnull=False))


def moved_to() -> datetime | None:
    with as_role("worker"):
        return Source.objects.get().last_refresh_at


def test_a_run_is_told_from_start_to_end(ops: Caller) -> None:
    run = uuid.uuid4()
    assert ops.post("/api/v1/lineage", event(run)).status_code == 200
    (begun,) = runs()
    assert (begun.job_name, begun.status, begun.started_at, begun.finished_at) == (
        "airflow/daily_kpis",
        "running",
        NOON,
        None,
    )
    outputs = [
        {"namespace": "db", "name": "a", "outputFacets": {"outputStatistics": {"rowCount": 40}}},
        {"namespace": "db", "name": "b", "outputFacets": {"outputStatistics": {"rowCount": 2.0}}},
        {"namespace": "db", "name": "c"},
    ]
    ops.post("/api/lineage", event(run, "COMPLETE", 5, outputs=outputs))
    (ended,) = runs()
    assert (ended.status, ended.finished_at, ended.rows) == ("succeeded", NOON + timedelta(minutes=5), 42)
    (shown,) = ops.get("/api/refresh-log?job=airflow/daily_kpis").json()["results"]
    assert (shown["id"], shown["rows"], shown["status"]) == (str(run), 42, "succeeded")


def test_only_a_completed_run_of_a_bound_job_moves_its_source(ops: Caller) -> None:
    source(ops)
    for kind in ("START", "RUNNING", "FAIL", "ABORT", "OTHER", None):
        ops.post("/api/v1/lineage", event(uuid.uuid4(), kind, 9))
    assert moved_to() is None
    other = event(uuid.uuid4(), "COMPLETE", 9, job={"namespace": "airflow", "name": "another"})
    ops.post("/api/v1/lineage", other)
    assert moved_to() is None
    ops.post("/api/v1/lineage", event(uuid.uuid4(), "COMPLETE", 7))
    ops.post("/api/v1/lineage", event(uuid.uuid4(), "COMPLETE", 3))
    assert moved_to() == NOON + timedelta(minutes=7)
    assert {run.source for run in runs() if run.job_name == "airflow/daily_kpis"} == {"warehouse"}


def test_job_and_dataset_events_are_taken_and_say_nothing(ops: Caller) -> None:
    said = {"eventTime": NOON.isoformat(), "producer": "x", "schemaURL": "y"}
    assert ops.post("/api/v1/lineage", {**said, "job": {"namespace": "n", "name": "j"}}).status_code == 200
    assert ops.post("/api/v1/lineage", {**said, "dataset": {"namespace": "n", "name": "d"}}).status_code == 200
    assert runs() == []


def test_a_batch_is_answered_as_openlineage_has_it(ops: Caller) -> None:
    run = uuid.uuid4()
    response = ops.post("/api/v1/lineage/batch", [event(run, "COMPLETE", 4), event(run)])
    assert response.json() == {
        "status": "success",
        "summary": {"received": 2, "successful": 2, "failed": 0, "retriable": 0, "non_retriable": 0},
        "failed_events": [],
    }
    assert [(r.status, r.started_at) for r in runs()] == [("succeeded", NOON)]


RUN = uuid.uuid4()


@pytest.mark.parametrize(
    ("said", "errors"),
    [
        ({"eventTime": "2026-11-24T06:00:00"}, [("/eventTime", "naive_timestamp")]),
        ({"eventTime": 7.5}, [("/eventTime", "invalid_timestamp")]),
        ({"eventTime": "0001-01-01T00:00:00+14:00"}, [("/eventTime", "invalid_timestamp")]),
        ({"eventTime": "9999-12-31T23:59:59-14:00"}, [("/eventTime", "invalid_timestamp")]),
        ({"eventTime": "9997-12-31T00:00:00Z"}, [("/eventTime", "timestamp_in_future")]),
        ({"run": {}}, [("/run/runId", "missing_field")]),
        ({"run": {"runId": "seven"}}, [("/run/runId", "invalid")]),
        ({"run": {"runId": 7}}, [("/run/runId", "invalid")]),
        ({"run": 7}, [("/run", "invalid")]),
        ({"job": None}, [("/job", "missing_field")]),
        ({"job": {"namespace": 1}}, [("/job/namespace", "invalid_text"), ("/job/name", "missing_field")]),
        ({"job": {"namespace": "n", "name": "x\x00"}}, [("/job/name", "invalid_text")]),
        ({"eventType": 7}, [("/eventType", "invalid_text")]),
    ],
)
def test_what_is_no_lineage_is_refused_with_its_place(
    ops: Caller, said: dict[str, Any], errors: list[tuple[str, str]]
) -> None:
    response = ops.post("/api/v1/lineage", {**event(RUN), **said})
    assert (response.status_code, errors_of(response)) == (422, errors)
    assert runs() == []


def test_a_run_that_says_it_ended_ahead_of_now_moves_no_source(ops: Caller) -> None:
    source(ops)
    ahead = (datetime.now(UTC) + timedelta(minutes=6)).isoformat()
    for later in (ahead, "9999-12-31T00:00:00Z"):
        assert ops.post("/api/v1/lineage", event(RUN, "COMPLETE", eventTime=later)).status_code == 422
    assert moved_to() is None


def test_a_bad_event_of_a_batch_refuses_itself_alone(ops: Caller) -> None:
    response = ops.post(
        "/api/v1/lineage/batch", [event(RUN), 7, event(uuid.uuid4(), eventTime="now"), event(RUN, "COMPLETE", 3)]
    )
    told = response.json()
    assert (response.status_code, told["status"]) == (207, "partial_success")
    assert told["summary"] == {"received": 4, "successful": 2, "failed": 2, "retriable": 0, "non_retriable": 2}
    assert [(failed["index"], failed["retriable"]) for failed in told["failed_events"]] == [(1, False), (2, False)]
    assert errors_of(response) == [("/1", "invalid"), ("/2/eventTime", "invalid_timestamp")]
    assert [run.status for run in runs()] == ["succeeded"]


def test_a_batch_without_a_good_event_is_refused_as_a_whole(ops: Caller) -> None:
    response = ops.post("/api/v1/lineage/batch", [7, {}])
    assert (response.status_code, response.json()["code"]) == (422, "invalid_rows")
    assert ops.post("/api/v1/lineage/batch", {}).status_code == 422
    assert ops.post("/api/v1/lineage/batch", [event(RUN)] * 1001).json()["code"] == "batch_too_large"
    assert runs() == []


# What nobody needs --------------------------------------------------------------------------------------------------------


def counted(count: object) -> dict[str, Any]:
    return {"outputFacets": {"outputStatistics": {"rowCount": count}}}


ODD_COUNTS: list[object] = [-1, "many", 2.5, True, [], 2**63, 10**300]


@pytest.mark.parametrize("outputs", [7, {}, [7], [{"outputFacets": 7}], *([counted(count)] for count in ODD_COUNTS)])
def test_a_count_of_rows_that_says_nothing_is_unknown_and_the_run_has_ended(ops: Caller, outputs: object) -> None:
    source(ops)
    assert ops.post("/api/v1/lineage", event(RUN, "COMPLETE", 5, outputs=outputs)).status_code == 200
    assert [(run.status, run.rows) for run in runs()] == [("succeeded", None)]
    assert moved_to() == NOON + timedelta(minutes=5)


def test_counts_that_are_known_are_summed_beside_those_that_are_not(ops: Caller) -> None:
    outputs = [counted(count) for count in (40, -1, 2)]
    ops.post("/api/v1/lineage", event(RUN, "COMPLETE", 5, outputs=outputs))
    assert [run.rows for run in runs()] == [42]


@pytest.mark.parametrize(("letter", "kept"), [("x", 1998), ("ä", 1299), ("\N{ROCKET}", 649)])
def test_a_long_name_is_kept_as_far_as_it_can_be_found_again(ops: Caller, letter: str, kept: int) -> None:
    for long in (kept, 4_000):
        job = {"namespace": "n", "name": letter * long}
        assert ops.post("/api/v1/lineage", event(uuid.uuid4(), "COMPLETE", 5, job=job)).status_code == 200
    assert {run.job_name for run in runs()} == {f"n/{letter * kept}"}


def test_a_source_is_bound_to_a_long_name(ops: Caller) -> None:
    name = "n/" + "".join(chr(97 + n * n % 26) for n in range(1_998))
    source(ops, lineage_job=name)
    ops.post("/api/v1/lineage", event(RUN, "COMPLETE", 5, job={"namespace": "n", "name": name[2:] + "and more"}))
    assert moved_to() == NOON + timedelta(minutes=5)


@pytest.mark.parametrize("depth", [40, 20_000])
def test_facets_of_any_depth_are_skipped_unread(ops: Caller, depth: int) -> None:
    facet = b'{"a":[' * depth + b"1" + b"]}" * depth
    body = json.dumps(
        event(RUN, "FAIL", 5, outputs=[{"outputFacets": {"outputStatistics": {"rowCount": 3}, "deep": "DEEP"}}])
    )
    told = {"errorMessage": {"message": "it broke"}}
    body = body.replace(f'"runId": "{RUN}"', f'"facets": {json.dumps({"plan": "DEEP", **told})}, "runId": "{RUN}"')
    response = ops.post("/api/v1/lineage", body.encode().replace(b'"DEEP"', facet))
    assert response.status_code == 200
    assert [(run.status, run.rows, run.error) for run in runs()] == [("failed", 3, "it broke")]


@pytest.mark.parametrize("odd", [b"NaN", b"-Infinity", b'"\\u0000"', b'"\\ud800"'])
def test_a_facet_that_is_no_strict_json_or_no_text_for_a_database_refuses_nothing(ops: Caller, odd: bytes) -> None:
    facets = {"dataQuality": "ODD", "errorMessage": {"message": "ODD"}}
    body = json.dumps({**event(RUN, "FAIL", 5), "run": {"runId": str(RUN), "facets": facets}}).encode()
    assert ops.post("/api/v1/lineage", body.replace(b'"ODD"', odd)).status_code == 200
    assert [(run.status, run.error or None) for run in runs()] == [("failed", None)]


def test_what_is_no_json_at_all_is_refused(ops: Caller) -> None:
    for body in (b"[" * 8_000, b"{", b"\xff", b"nan("):
        assert (response := ops.post("/api/v1/lineage", body)).json()["code"] == "invalid_json", response.content


def test_another_team_may_have_the_same_run_id_and_moves_no_source_of_mine(ops: Caller, stranger: Caller) -> None:
    source(ops)
    ops.post("/api/v1/lineage", event(RUN))
    assert stranger.post("/api/v1/lineage", event(RUN, "COMPLETE", 5)).status_code == 200
    assert moved_to() is None
    assert sorted(run.status for run in runs()) == ["running", "succeeded"]


@pytest.mark.django_db(transaction=True)
def test_the_official_client_is_understood(live_server: LiveServer, ops: Caller) -> None:
    auth = ApiKeyTokenProvider({"type": "api_key", "apiKey": str(ops.secret)})
    client = OpenLineageClient(transport=HttpTransport(HttpConfig(url=live_server.url, auth=auth)))
    good, bad = str(uuid.uuid4()), str(uuid.uuid4())
    job, at = Job("dbt", "models.kpis"), NOON.isoformat()
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=12)
    written = [OutputDataset("postgres", "kpis", outputFacets={"outputStatistics": statistics})]
    broken = error_message_run.ErrorMessageRunFacet(message="no such table", programmingLanguage="SQL")
    client.emit(RunEvent(eventTime=at, producer="dbt", eventType=RunState.START, run=Run(good), job=job))
    client.emit(JobEvent(eventTime=at, producer="dbt", job=job))
    client.emit(
        RunEvent(eventTime=at, producer="dbt", eventType=RunState.COMPLETE, run=Run(good), job=job, outputs=written)
    )
    failed = Run(bad, facets={"errorMessage": broken})
    client.emit(RunEvent(eventTime=at, producer="dbt", eventType=RunState.FAIL, run=failed, job=job))
    found = {str(run.run_id): (run.status, run.rows, run.error) for run in runs()}
    assert found == {good: ("succeeded", 12, None), bad: ("failed", None, "no such table")}


# What a COMPLETE says ------------------------------------------------------------------------------------------------------

WRITTEN = [{"namespace": "db", "name": "kpis"}]


def complete(ops: Caller, minute: int, name: str = "daily_kpis", **said: Any) -> None:
    job = {"namespace": "airflow", "name": name, **said.pop("job", {})}
    assert ops.post("/api/v1/lineage", event(uuid.uuid4(), "COMPLETE", minute, job=job, **said)).status_code == 200


def test_a_test_and_a_run_that_did_nothing_refresh_nothing(ops: Caller) -> None:
    source(ops)
    complete(ops, 1, outputs=WRITTEN)
    told = {"_producer": "https://example.org", "_schemaURL": "https://example.org"}
    complete(ops, 2, outputs=WRITTEN, job={"facets": {"jobType": {**told, "jobType": "TEST", "integration": "DBT"}}})
    complete(ops, 3, outputs=[])
    for number, facets in enumerate(
        (
            {"airflow": {"taskInstance": {"try_number": 0, "queued_dttm": None, "duration": None}}},
            {"airflow": {"taskInstance": {"state": "skipped"}}},
            {"airflowState": {"dagRunState": "success", "tasksState": {"a": "skipped", "b": None}}},
        ),
        start=4,
    ):
        run = event(uuid.uuid4(), "COMPLETE", number, outputs=WRITTEN)
        run["run"]["facets"] = facets
        ops.post("/api/v1/lineage", run)
    assert moved_to() == NOON + timedelta(minutes=1)
    assert [run.status for run in runs()] == ["succeeded"] * 6, "they are in the log all the same"
    complete(ops, 9, outputs=WRITTEN)
    assert moved_to() == NOON + timedelta(minutes=9)


def test_a_job_whose_runs_never_name_what_they_wrote_refreshes_by_each_and_outputs_of_its_start_count(
    ops: Caller,
) -> None:
    source(ops)
    complete(ops, 1)
    assert moved_to() == NOON + timedelta(minutes=1)
    run = uuid.uuid4()
    ops.post("/api/v1/lineage", event(run, "START", 2, outputs=WRITTEN))
    ops.post("/api/v1/lineage", event(run, "COMPLETE", 3))
    assert moved_to() == NOON + timedelta(minutes=3)
    complete(ops, 4)
    assert moved_to() == NOON + timedelta(minutes=3), "others of the job have written"


@pytest.mark.parametrize(
    ("named", "name", "moves"),
    [
        ("airflow/daily_kpis, airflow/model.kpis", "model.kpis", True),
        ("airflow/other\nairflow/model.*", "model.shop.kpis.build.run", True),
        ("airflow/model.*.run", "model.shop.kpis.build.test", False),
        ("*/model.kpis", "model.kpis", True),
        ("airflow/model?kpis", "model.kpis", False),
        ("airflow/model.[k]pis", "model.kpis", False),
    ],
)
def test_a_source_names_several_jobs_and_parts_of_names(ops: Caller, named: str, name: str, moves: bool) -> None:
    source(ops, lineage_job=named)
    complete(ops, 1, name)
    assert (moved_to() is not None, [run.source for run in runs()]) == (moves, ["warehouse" if moves else ""])


def test_statements_that_dbt_runs_for_a_model_are_no_runs_of_their_own(ops: Caller) -> None:
    facets = {"jobType": {"jobType": "SQL", "integration": "DBT", "processingType": "BATCH"}}
    for number in range(3):
        complete(ops, number, f"model.kpis.sql.{number}", job={"facets": facets})
    complete(ops, 4, "model.kpis")
    assert [run.job_name for run in runs()] == ["airflow/model.kpis"]


def test_only_runs_of_jobs_that_a_source_names_count_as_telemetry_failures(ops: Caller) -> None:
    source(ops, enabled=False)
    now = datetime.now(UTC)
    for name, kind in (("some_test", "FAIL"), ("try_again", "ABORT"), ("daily_kpis", "COMPLETE")):
        told = event(uuid.uuid4(), kind, job={"namespace": "airflow", "name": name})
        ops.post("/api/v1/lineage", told | {"eventTime": now.isoformat()})
    told = ops.get("/api/slo").json()["telemetry_failures"]
    assert told["share"] == 0
    failed = event(uuid.uuid4(), "FAIL") | {"eventTime": now.isoformat()}
    ops.post("/api/v1/lineage", failed)
    assert ops.get("/api/slo").json()["telemetry_failures"]["share"] == 0.5


def test_lineage_has_a_rate_of_its_own_unless_its_key_has_one(ops: Caller, settings: Any) -> None:
    settings.LINEAGE_RATE, settings.KEY_RATE = "7/h", "3/h"
    told = ops.post("/api/v1/lineage", event(uuid.uuid4()))
    assert "q=7;w=3600" in told.headers["RateLimit-Policy"]
    assert "q=3;w=3600" in ops.get("/api/slo").headers["RateLimit-Policy"]
