"""CloudEvents in: three modes, each event once, nothing dropped, nothing partial unless asked."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import jsonschema
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from django.test import Client
from pytest_django.live_server_helper import LiveServer

from experiments.models import Metric, TargetKpi
from telemetry import schemas
from telemetry.hours import rebuild_changed
from telemetry.models import Event, ExperimentKpi, QuarantinedEvent
from tests.api.conftest import PLAN, Caller, Makes, errors_of
from tests.conftest import as_role

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
OBSERVED = "decisioning.metric.observed.v1"


def at(hours_ago: int = 0) -> str:
    return (TOP - timedelta(hours=hours_ago)).isoformat()


def row(of: dict[str, Any], **said: Any) -> dict[str, Any]:
    return {
        "experiment": of["key"],
        "metric": "vrps",
        "variant": "control",
        "ts": at(),
        "value": 3.0,
        "n": 10,
        "variance": 2.0,
        **said,
    }


def event(id_: str = "1", type_: str = OBSERVED, **said: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": id_, "source": "/jobs/nightly", "type": type_, **said}


def send(ops: Caller, *events: dict[str, Any], query: str = "") -> Any:
    return ops.post(f"/api/events{query}", list(events), Content_Type=BATCH)


def counts(response: Any) -> tuple[int, int, int]:
    told = response.json()
    return told["accepted"], told["duplicates"], told["quarantined"]


def values(experiment: dict[str, Any], metric: str = "vrps") -> list[float]:
    with as_role("worker"):
        rows = ExperimentKpi.objects.filter(experiment_id=experiment["id"], metric=metric).order_by("ts", "variant")
        return [row.value for row in rows]


def test_an_event_in_structured_mode_stores_its_row(ops: Caller) -> None:
    made = ops.experiment()
    response = ops.post("/api/events", event(data=row(made, value=3.25)), Content_Type=STRUCTURED)

    assert (response.status_code, counts(response)) == (200, (1, 0, 0))
    assert response.json()["rows"] == {
        "accepted": 1,
        "changed": 0,
        "duplicates": 0,
        "last_ts": at().replace("+00:00", "Z"),
    }
    assert values(made) == [3.25]


def test_an_event_in_binary_mode_has_its_attributes_in_headers(ops: Caller) -> None:
    made = ops.experiment()
    headers = {"ce-specversion": "1.0", "ce-id": "a%20b", "ce-source": "/jobs", "ce-type": OBSERVED}
    response = ops.post("/api/events", row(made), **headers)

    assert (response.status_code, counts(response)) == (200, (1, 0, 0))
    with as_role("owner"):
        assert Event.objects.get().event_id == "a b"


def test_a_batch_goes_in_together_and_many_rows_fit_into_one_event(ops: Caller) -> None:
    made = ops.experiment()
    many = {"experiment": made["id"], "rows": [{**row(made, ts=at(h)), "experiment": None} for h in range(1, 5)]}
    response = send(ops, event("1", data=row(made)), event("2", "decisioning.metric.observed_many.v1", data=many))

    assert (response.status_code, counts(response)) == (200, (2, 0, 0))
    assert len(values(made)) == 5


def test_an_event_sent_again_is_counted_and_changes_nothing(ops: Caller) -> None:
    made = ops.experiment()
    send(ops, event("1", data=row(made, value=1.0)))
    again = send(ops, event("1", data=row(made, value=9.0)), event("1", data=row(made, value=8.0)))

    assert (again.status_code, counts(again)) == (200, (0, 2, 0))
    assert values(made) == [1.0]


def test_float_dust_in_an_event_is_rounded_to_the_bound(ops: Caller) -> None:
    made = ops.experiment(target_kpis=["vrps", {"metric": {"key": "share", "kind": "proportion"}, "role": "shown"}])
    rows = [row(made, variance=-7e-15), row(made, metric="share", value=1.0000000000000002)]
    assert counts(send(ops, *(event(str(n), data=data) for n, data in enumerate(rows)))) == (2, 0, 0)
    found = ops.get(f"/api/experiments/{made['id']}/kpis").json()["results"]
    assert {r["metric"]: (r["value"], r["variance"]) for r in found}["vrps"][1] == 0
    assert {r["metric"]: r["value"] for r in found}["share"] == 1


def test_another_team_may_use_the_same_source_and_id(ops: Caller, stranger: Caller) -> None:
    mine, theirs = ops.experiment(), stranger.experiment()
    assert counts(send(ops, event(data=row(mine)))) == (1, 0, 0)
    assert counts(send(stranger, event(data=row(theirs)))) == (1, 0, 0)


def test_rows_of_another_teams_experiment_are_refused_as_unknown(ops: Caller, stranger: Caller) -> None:
    theirs = stranger.experiment()
    response = send(ops, event(data=row(theirs)))
    assert (response.status_code, errors_of(response)) == (422, [("/0/data/experiment", "unknown_experiment")])
    assert values(theirs) == []


@pytest.mark.parametrize(
    ("wrong", "pointer", "code"),
    [
        ({"value": "1"}, "/data/value", "invalid_number"),
        ({"value": True}, "/data/value", "invalid_number"),
        ({"value": None}, "/data/value", "invalid_number"),
        ({"value": 1e200}, "/data/value", "out_of_range"),
        ({"value": 1e-200}, "/data/value", "out_of_range"),
        ({"n": 10**15 + 1}, "/data/n", "out_of_range"),
        ({"ts": "2026-11-24T06:00:00"}, "/data/ts", "naive_timestamp"),
        ({"ts": "9999-01-01T00:00:00Z"}, "/data/ts", "invalid_timestamp"),
        ({"ts": "0001-01-01T00:00:00+14:00"}, "/data/ts", "invalid_timestamp"),
        ({"ts": "9999-12-31T23:59:59-14:00"}, "/data/ts", "invalid_timestamp"),
        ({"ts": at(-48)}, "/data/ts", "timestamp_in_future"),
        ({"ts": at(24 * 500)}, "/data/ts", "timestamp_too_old"),
        ({"metric": "nobody_knows"}, "/data/metric", "unknown_metric"),
        ({"metric": "x" * 64}, "/data/metric", "invalid_text"),
        ({"variant": "nobody"}, "/data/variant", "unknown_variant"),
        ({"experiment": True}, "/data/experiment", "invalid"),
        ({"experiment": 10**30}, "/data/experiment", "unknown_experiment"),
        ({"experiment": None}, "/data/experiment", "missing_field"),
    ],
)
def test_a_bad_value_has_its_code_and_its_pointer(ops: Caller, wrong: dict[str, Any], pointer: str, code: str) -> None:
    made = ops.experiment()
    response = ops.post("/api/events", event(data=row(made, **wrong)), Content_Type=STRUCTURED)
    assert (response.status_code, response.json()["code"], errors_of(response)) == (422, "invalid", [(pointer, code)])


@pytest.mark.parametrize(
    ("broken", "errors"),
    [
        ({"id": None}, [("/0/id", "missing_field")]),
        ({"id": ""}, [("/0/id", "invalid_text")]),
        ({"source": 7}, [("/0/source", "invalid_text")]),
        ({"id": "x" * 201}, [("/0/id", "invalid_text")]),
        ({"time": "2026-11-24T06:00:00"}, [("/0/time", "naive_timestamp")]),
        ({"time": "0001-01-01T00:00:00+14:00"}, [("/0/time", "invalid_timestamp")]),
        ({"time": "9999-12-31T23:59:59-14:00"}, [("/0/time", "invalid_timestamp")]),
        ({"datacontenttype": "text/csv"}, [("/0/datacontenttype", "invalid")]),
        ({"data": None}, [("/0/data", "invalid")]),
        ({"data": [1]}, [("/0/data", "invalid")]),
        ({"data_base64": "%%", "data": ...}, [("/0/data_base64", "invalid")]),
        ({"data": ...}, [("/0/data", "missing_field")]),
    ],
)
def test_a_broken_event_says_where(ops: Caller, broken: dict[str, Any], errors: list[tuple[str, str]]) -> None:
    whole = {**event(data={}), **broken}
    response = send(ops, {name: value for name, value in whole.items() if value is not ...})
    assert (response.status_code, response.json()["code"], errors_of(response)) == (422, "invalid_rows", errors)


def test_a_time_outside_the_calendars_years_is_seen_in_an_event_that_is_good_otherwise(ops: Caller) -> None:
    made = ops.experiment()
    response = send(ops, event(data=row(made), time="9999-12-31T00:00:00Z"))
    assert (response.status_code, errors_of(response)) == (422, [("/0/time", "invalid_timestamp")])
    assert counts(send(ops, event(data=row(made), time="2026-11-24T06:00:00Z"))) == (1, 0, 0)


def test_in_binary_mode_a_missing_attribute_is_named_by_its_header(ops: Caller) -> None:
    response = ops.post("/api/events", {}, **{"ce-specversion": "1.0", "ce-id": "1", "ce-type": OBSERVED})
    assert (response.status_code, errors_of(response)) == (422, [("ce-source", "missing_field")])


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"[", BATCH, 400, "invalid_json"),
        (b'[{"a": NaN}]', BATCH, 400, "invalid_json"),
        (b'[{"data": {"value": 1e999}}]', BATCH, 400, "invalid_json"),
        (b'[{"id": "\xff"}]', BATCH, 400, "invalid_json"),
        (b'{"specversion": "1.0"}', BATCH, 422, "invalid"),
        (b"[1, null]", BATCH, 422, "invalid_rows"),
        (b"[" * 100 + b"]" * 100, BATCH, 400, "too_deep"),
        (b'[{"id": "a\\u0000b"}]', BATCH, 422, "invalid"),
        (b"[" + b",".join([b"{}"] * 1001) + b"]", BATCH, 413, "batch_too_large"),
        (b"{}", "application/json", 415, "unsupported_media_type"),
        (b" ", STRUCTURED, 400, "invalid_json"),
    ],
)
def test_a_body_that_is_no_event_is_refused_in_the_contracts_words(
    ops: Caller, body: bytes, kind: str, status: int, code: str
) -> None:
    response = ops("POST", "/api/events", body, Content_Type=kind)
    assert (response.status_code, response.json()["code"]) == (status, code)


def test_one_bad_event_keeps_all_others_out(ops: Caller) -> None:
    made = ops.experiment()
    good, bad = event("1", data=row(made)), event("2", data=row(made, variant="nobody"))
    assert send(ops, good, bad).status_code == 422
    assert values(made) == []
    assert counts(send(ops, good)) == (1, 0, 0), "what was refused was not remembered as seen"


def test_good_events_go_in_beside_bad_ones_when_asked_and_an_event_is_never_halved(ops: Caller) -> None:
    made = ops.experiment()
    half = {"experiment": made["key"], "rows": [row(made, ts=at(1)), row(made, ts=at(2), value="x")]}
    late = {"experiment": made["key"], "rows": [row(made, ts=at(3)), row(made, ts=at(4), variant="nobody")]}
    response = send(
        ops,
        event("1", data=row(made)),
        event("2", "decisioning.metric.observed_many.v1", data=half),
        event("3", "decisioning.metric.observed_many.v1", data=late),
        query="?atomic=false",
    )
    assert (response.status_code, counts(response)) == (207, (1, 0, 0))
    assert [(e["index"], e["pointer"]) for e in response.json()["errors"]] == [
        (1, "/1/data/rows/1/value"),
        (2, "/2/data/rows/1/variant"),
    ]
    assert len(values(made)) == 1
    mended = {**late, "rows": late["rows"][:1]}
    assert counts(send(ops, event("3", "decisioning.metric.observed_many.v1", data=mended))) == (1, 0, 0)


def test_a_revision_that_is_stored_with_another_value_is_a_conflict(ops: Caller) -> None:
    made = ops.experiment()
    send(ops, event("1", data=row(made, revision=1)))
    response = send(ops, event("2", data=row(made, revision=1, value=7.0)))
    assert (response.status_code, response.json()["code"]) == (409, "conflicting_row")
    assert errors_of(response) == [("/0/data/value", "conflicting_row")]


# Exposures and experiments ------------------------------------------------------------------------------------------------


def test_counted_exposures_become_rows_of_the_plans_exposure_kpi(ops: Caller) -> None:
    made = ops.experiment()
    counted = {"experiment": made["key"], "ts": at(), "n": 1200}
    response = send(
        ops,
        event("1", "decisioning.exposure.counted.v1", data={**counted, "variant": "control"}),
        event("2", "decisioning.exposure.counted.v1", data={**counted, "variant": "treatment", "n": 1190}),
    )
    assert counts(response) == (2, 0, 0)
    assert values(made, "exposures") == [1200.0, 1190.0]
    kpi = next(k for k in ops.get(f"/api/experiments/{made['id']}").json()["kpis"] if k["metric"] == "exposures")
    assert kpi["role"] == "exposure"
    assert [v["n"] for v in kpi["values"]] == [1200, 1190]


def test_counted_exposures_of_an_hour_and_a_day_add_up(ops: Caller) -> None:
    made = ops.experiment()
    noon = TOP.replace(hour=12) - timedelta(days=2)
    counted = [(5, 100), (10, 100), (15, 100), (20, 500), (80, 200)]
    for number, (minute, n) in enumerate(counted):
        data = {
            "experiment": made["key"],
            "variant": "control",
            "ts": (noon + timedelta(minutes=minute)).isoformat(),
            "n": n,
        }
        send(ops, event(str(number), "decisioning.exposure.counted.v1", data=data))
    with as_role("worker"):
        rebuild_changed()

    def series(resolution: str) -> list[tuple[float, int, float]]:
        found = ops.get(f"/api/experiments/{made['id']}/kpis?metric=exposures&resolution={resolution}").json()[
            "results"
        ]
        return [(row["value"], row["n"], row["variance"]) for row in found]

    assert series("hour") == [(800, 800, 0), (200, 200, 0)]
    assert series("day") == [(1000, 1000, 0)]


def test_a_plan_that_names_its_own_exposure_kpi_keeps_it(ops: Caller) -> None:
    made = ops.experiment(target_kpis=["vrps", {"metric": "assigned", "role": "exposure"}])
    counted = {"experiment": made["key"], "variant": "control", "ts": at(), "n": 5}
    send(ops, event("1", "decisioning.exposure.counted.v1", data=counted))
    assert values(made, "assigned") == [5.0]
    assert not Metric.objects.filter(key="exposures").exists()
    with as_role("owner"):
        assert TargetKpi.objects.filter(experiment_id=made["id"]).count() == 2


@pytest.mark.parametrize(
    ("said", "pointer", "code"),
    [
        ({"n": -1}, "/data/n", "invalid_number"),
        ({"n": 1.5}, "/data/n", "invalid_number"),
        ({"n": 10**16}, "/data/n", "out_of_range"),
        ({"n": None}, "/data/n", "missing_field"),
    ],
)
def test_a_bad_count_of_exposures_says_so(ops: Caller, said: dict[str, Any], pointer: str, code: str) -> None:
    data = {"experiment": ops.experiment()["key"], "variant": "control", "ts": at(), "n": 1, **said}
    response = ops.post(
        "/api/events", event(type_="decisioning.exposure.counted.v1", data=data), Content_Type=STRUCTURED
    )
    assert (response.status_code, errors_of(response)) == (422, [(pointer, code)])


def test_an_experiment_is_created_as_by_the_api_before_the_rows_of_its_batch(ops: Caller) -> None:
    new = {**PLAN, "key": "from-an-event"}
    response = send(
        ops, event("1", data=row({"key": "from-an-event"})), event("2", "decisioning.experiment.created.v1", data=new)
    )
    assert (response.status_code, counts(response)) == (200, (2, 0, 0))
    document = ops.get("/api/experiments/from-an-event").json()
    assert (document["status"], document["owner"]) == ("running", "ops@example.org")
    assert document["recommendation"]["policy"] == {"name": "default", "version": 1}


def test_an_experiment_that_cannot_be_created_is_refused_as_by_the_api(ops: Caller) -> None:
    ops.experiment(key="taken")
    kind = "decisioning.experiment.created.v1"
    taken = ops.post("/api/events", event("1", kind, data={**PLAN, "key": "taken"}), Content_Type=STRUCTURED)
    assert (taken.status_code, taken.json()["code"]) == (409, "key_taken")
    bad = send(ops, event("2", kind, data={"name": "x"}), event("3", kind, data={**PLAN, "team": "search"}))
    assert bad.status_code == 422
    assert errors_of(bad) == [
        ("/0/data/hypothesis", "missing_field"),
        ("/0/data/target_kpis", "missing_field"),
        ("/1/data/team", "unknown_team"),
    ]


def test_a_key_without_the_scope_to_create_cannot_create_by_an_event(caller: Makes) -> None:
    from decisioning.access.scopes import Scope

    feeder = caller("growth", Scope.TELEMETRY)
    response = send(feeder, event("1", "decisioning.experiment.created.v1", data=PLAN))
    assert response.status_code == 403


# Quarantine ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strange", [event(type_="decisioning.metric.observed.v2", data={"odd": 1}), event(specversion="2.0", data=[1])]
)
def test_what_is_not_understood_waits_in_quarantine_whole(ops: Caller, strange: dict[str, Any]) -> None:
    made = ops.experiment()
    response = send(ops, strange, event("2", data=row(made)))
    assert (response.status_code, counts(response)) == (202, (1, 0, 1))
    (held,) = ops.get("/api/quarantine").json()["results"]
    assert held["event"] == strange
    assert strange["type"] in held["reason"] or strange["specversion"] in held["reason"]
    assert counts(send(ops, strange)) == (0, 1, 0), "it is kept once"
    still = ops.post(f"/api/quarantine/{held['id']}/replay")
    assert (still.status_code, still.json()["code"]) == (409, "not_understood")


def test_an_event_in_quarantine_is_replayed_after_an_upgrade(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ops.experiment()
    future = "decisioning.metric.observed.v2"
    send(ops, event("1", future, data=row(made, value=4.5)))
    (held,) = ops.get("/api/quarantine?replayed=false").json()["results"]

    monkeypatch.setitem(schemas.TYPES, future, schemas.MetricObserved)
    response = ops.post(f"/api/quarantine/{held['id']}/replay")
    assert (response.status_code, counts(response)) == (200, (1, 0, 0))
    assert values(made) == [4.5]
    assert ops.get("/api/quarantine?replayed=false").json()["results"] == []
    assert counts(ops.post(f"/api/quarantine/{held['id']}/replay")) == (0, 1, 0)


def test_the_quarantine_of_another_team_is_not_there(ops: Caller, stranger: Caller) -> None:
    send(ops, event(type_="com.example.unknown"))
    with as_role("owner"):
        held = QuarantinedEvent.objects.get()
    assert stranger.get("/api/quarantine").json()["results"] == []
    assert stranger.post(f"/api/quarantine/{held.pk}/replay").status_code == 404
    assert stranger.post(f"/api/quarantine/{10**30}/replay").status_code == 404


# Schemas ------------------------------------------------------------------------------------------------------------------


def test_every_type_publishes_a_schema_that_takes_what_is_taken(nobody: Caller) -> None:
    good = {
        OBSERVED: row({"key": "checkout"}),
        "decisioning.metric.observed_many.v1": {"experiment": 7, "rows": [row({"key": "x"})]},
        "decisioning.exposure.counted.v1": {"experiment": "checkout", "variant": "control", "ts": at(), "n": 3},
        "decisioning.experiment.created.v1": PLAN,
    }
    listed = nobody.get("/api/schemas").json()["results"]
    assert [entry["type"] for entry in listed] == list(good)
    for entry in listed:
        response = nobody.get(entry["schema"])
        schema = response.json()
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(good[entry["type"]], schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({}, schema)
    assert nobody.get("/api/schemas/decisioning.metric.observed.v9").status_code == 404


# The official client, over HTTP -------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_official_client_is_understood_in_all_modes_and_by_many_at_once(
    live_server: LiveServer, ops: Caller
) -> None:
    made = ops.experiment()
    said = [
        CloudEvent(
            {"specversion": "1.0", "id": str(h), "source": "/sdk", "type": OBSERVED, "time": datetime.now(UTC)},
            row(made, ts=at(h), value=float(h)),
        )
        for h in range(1, 7)
    ]
    messages = [to_structured_event(e) for e in said[:3]] + [to_binary_event(e) for e in said[3:]]
    said_by = {"Authorization": f"Bearer {ops.secret}"}
    batch = [json.loads(to_structured_event(e).body) for e in said]
    with httpx.Client(base_url=live_server.url, headers=said_by, timeout=60) as http, ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda m: http.post("/api/events", content=m.body, headers=dict(m.headers)), messages * 3)
        )
        again = http.post("/api/events", content=json.dumps(batch), headers={"Content-Type": BATCH})
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert sum(answer.json()["accepted"] for answer in answers) == 6
    assert sum(answer.json()["duplicates"] for answer in answers) == 12
    assert again.json()["duplicates"] == 6
    assert sorted(values(made)) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


# Subscriptions of others -----------------------------------------------------------------------------------------------------


def test_an_origin_that_the_operator_names_may_subscribe_and_no_other(ops: Caller, settings: Any) -> None:
    settings.EVENT_ORIGINS, settings.KEY_RATE = {"eventgrid.azure.net"}, "600/m"
    anybody = Client()
    asked = {"WebHook-Request-Origin": "EventGrid.azure.net", "WebHook-Request-Rate": "120"}
    answer = anybody.options("/api/events?code=abc", headers=asked)
    assert (answer.status_code, answer.content) == (200, b"")
    assert (answer["WebHook-Allowed-Origin"], answer["WebHook-Allowed-Rate"]) == ("eventgrid.azure.net", "600")
    refused = anybody.options("/api/events", headers={"WebHook-Request-Origin": "evil.test"})
    assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
    assert "WebHook-Allowed-Origin" not in refused
    assert anybody.options("/api/events").status_code == 405
    assert anybody.post("/api/events?code=abc", b"{}", content_type="application/json").status_code == 401


def test_words_of_a_subscription_in_the_address_change_nothing(ops: Caller) -> None:
    made = ops.experiment()
    said = event(data=row(made))
    assert ops.post("/api/events?code=abc&sig=x", said, Content_Type=STRUCTURED).status_code == 200
    assert ops.post("/api/events?cod=abc", said, Content_Type=STRUCTURED).status_code == 400


def test_a_header_that_is_not_ascii_is_told_apart_from_one_that_is_missing(ops: Caller) -> None:
    made = ops.experiment()
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/%C3%BC", "ce-type": OBSERVED}
    assert ops.post("/api/events", row(made), **headers).status_code == 200
    for wrong in ("/ü", ""):  # the web server hands on nothing in its place
        answer = ops.post("/api/events", row(made), **headers | {"ce-source": wrong})
        assert (answer.status_code, errors_of(answer)) == (422, [("ce-source", "invalid_text")])
        assert "Percent-encode" in answer.json()["detail"]
    missing = ops.post("/api/events", row(made), **{k: v for k, v in headers.items() if k != "ce-source"})
    assert errors_of(missing) == [("ce-source", "missing_field")]


def test_data_that_is_a_text_says_what_it_should_be(ops: Caller) -> None:
    made = ops.experiment()
    answer = ops.post("/api/events", event(data=json.dumps(row(made))), Content_Type=STRUCTURED)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["detail"].startswith("data is a text. Send the JSON object itself")
