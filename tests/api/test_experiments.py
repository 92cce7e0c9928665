"""Create, list, read, change and move experiments over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from experiments.models import Metric
from gates.models import Cursor
from tests.api.conftest import PLAN, Caller, Makes, errors_of
from tests.conftest import as_role

GATES_AT_START = {
    "vrps_uplift": "no_data", "density": "inconclusive", "freshness": "no_data", "srm": "no_data", "doubt": "no_data",
}  # fmt: skip


def ago(**delta: float) -> str:
    return (datetime.now(UTC) - timedelta(**delta)).isoformat()


def arrive(experiment: dict[str, Any], metric: str, variant: str, ts: datetime, value: float = 3.0) -> None:
    """A row as ingest would store it."""
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n, variance) VALUES (%s, %s, %s, %s, %s, 10, 2)",
            [experiment["id"], metric, variant, ts, value],
        )


def test_name_hypothesis_and_target_kpis_are_enough(ops: Caller) -> None:
    response = ops.post("/api/experiments", PLAN)

    assert response.status_code == 201
    made = response.json()
    assert response["Location"] == f"/api/experiments/{made['id']}"
    assert (made["key"], made["team"], made["owner"], made["status"]) == (
        "one-page-checkout",
        "growth",
        "ops@example.org",
        "running",
    )
    assert [(v["key"], v["control"], v["weight"]) for v in made["variants"]] == [
        ("control", True, 1),
        ("treatment", False, 1),
    ]
    assert made["kpis"] == [
        {
            "metric": "vrps",
            "name": "Vrps",
            "direction": "increase",
            "role": "goal",
            "unit": "",
            "freshness": {"state": "unknown", "data_watermark": None, "due_at": None, "last_refresh_at": None},
            "values": [],
        }
    ]
    assert {g["gate"]: g["verdict"] for g in made["gates"]} == GATES_AT_START
    told = made["recommendation"]
    assert (told["action"], told["code"], told["state"], told["evidence_digest"]) == ("hold", "no_data", "open", None)
    assert told["policy"] == {"name": "default", "version": 1}
    assert made["links"]["audit"] == f"/api/experiments/{made['id']}/audit"


def test_every_gate_of_the_plan_is_there_at_once_and_says_what_it_waits_for(ops: Caller) -> None:
    made = ops.post("/api/experiments", PLAN).json()

    gates = ops.get(f"/api/experiments/{made['key']}/gates").json()

    assert {g["gate"]: g["verdict"] for g in gates["results"]} == GATES_AT_START
    assert [g["reason"] for g in gates["results"] if g["kind"] in ("uplift", "freshness")] == [
        "Vrps: no closed row of control and treatment yet.",
        " ".join(
            f"vrps of {v} has no row yet (due every 15 min, allowed 15 min more)." for v in ("control", "treatment")
        ),
    ]
    assert made["recommendation"]["action"] == "hold"


def test_the_gates_of_a_draft_follow_its_plan(ops: Caller) -> None:
    draft = ops.post("/api/experiments", {**PLAN, "start": False}).json()
    guard = {"metric": {"key": "errors", "kind": "proportion", "direction": "decrease"}, "role": "guardrail"}

    changed = ops.patch(f"/api/experiments/{draft['key']}", {"target_kpis": [*PLAN["target_kpis"], guard]}).json()

    assert {g["gate"] for g in changed["gates"]} == {*GATES_AT_START, "errors_guard"}


def test_the_whole_plan_of_the_contract_is_taken(ops: Caller) -> None:
    made = ops.experiment(
        key="checkout-one-page",
        team="growth",
        owner="someone@example.org",
        policy="quick",
        variants=[{"key": "control", "weight": 1, "control": True}, {"key": "treatment", "weight": 3}],
        target_kpis=[
            {
                "metric": "vrps",
                "name": "Vrps",
                "direction": "increase",
                "role": "goal",
                "minimum_effect": 0.02,
                "baseline": {"mean": 3.1, "stddev": 22.0},
            },
            {
                "metric": {"key": "error_rate", "name": "Errors", "kind": "proportion", "direction": "decrease"},
                "role": "guardrail",
                "max_harm": 0.05,
            },
        ],
        expected_units_per_day=20000,
        start=True,
        started_at=ago(days=16),
    )
    assert (made["owner"], made["recommendation"]["policy"]["name"]) == ("someone@example.org", "quick")
    metric = Metric.objects.get(key="error_rate")
    assert (metric.kind, metric.direction, metric.name, metric.freshness_target_s) == (
        "proportion",
        "decrease",
        "Errors",
        900,
    )


def test_it_is_found_by_number_and_by_key_under_both_trees(ops: Caller) -> None:
    made = ops.experiment()
    for root in ("/api", "/api/v1"):
        for ref in (made["id"], made["key"]):
            assert ops.get(f"{root}/experiments/{ref}").json()["id"] == made["id"]
    for ref in ("999999", "99999999999999999999999", "9" * 5000, "nothing", "0", "-1", "%00", "a%2Fb", "٣"):
        assert ops.get(f"/api/experiments/{ref}").status_code == 404


def test_a_taken_key_is_409_also_when_another_team_has_it(ops: Caller, stranger: Caller) -> None:
    ops.experiment(key="taken")
    response = stranger.post("/api/experiments", {**PLAN, "key": "taken"})
    assert (response.status_code, response.json()["code"]) == (409, "key_taken")


def test_every_bad_value_is_answered_with_its_place_and_code(ops: Caller) -> None:
    response = ops.post(
        "/api/experiments",
        {
            "hypothesis": 7,
            "target_kpis": [{"metric": "vrps", "minimum_effect": "1"}, {"role": "goal"}, True],
            "variants": [{"key": "a", "weight": True}],
            "started_at": "2026-11-08T00:00:00",
            "expected_units_per_day": None,
            "start": "yes",
        },
    )
    assert (response.status_code, response.json()["code"]) == (422, "invalid")
    assert set(errors_of(response)) == {
        ("/name", "missing_field"),
        ("/hypothesis", "invalid_text"),
        ("/target_kpis/0/minimum_effect", "invalid_number"),
        ("/target_kpis/1/metric", "missing_field"),
        ("/target_kpis/2", "invalid"),
        ("/variants/0/weight", "invalid_number"),
        ("/started_at", "naive_timestamp"),
        ("/start", "invalid"),
    }


def test_dates_outside_what_is_kept_have_codes_of_their_own(ops: Caller) -> None:
    for started_at, code in (
        (ago(days=-1), "timestamp_in_future"),
        (ago(days=500), "timestamp_too_old"),
        ("1969-12-31T23:59:59Z", "invalid_timestamp"),
        ("9999-01-01T00:00:00Z", "invalid_timestamp"),
        ("yesterday", "invalid_timestamp"),
        (12, "invalid_timestamp"),
    ):
        assert errors_of(ops.post("/api/experiments", {**PLAN, "started_at": started_at})) == [("/started_at", code)]


def test_an_unknown_policy_or_team_is_refused(ops: Caller, stranger: Caller) -> None:
    assert errors_of(ops.post("/api/experiments", {**PLAN, "policy": "none"})) == [("/policy", "unknown_policy")]
    assert errors_of(ops.post("/api/experiments", {**PLAN, "team": "search"})) == [("/team", "unknown_team")]
    assert ops.get("/api/experiments").json()["results"] == []


def test_a_goal_on_a_gauge_is_refused_because_nothing_could_judge_it(ops: Caller) -> None:
    gauge = {"metric": {"key": "temperature", "kind": "gauge"}, "role": "goal"}
    assert errors_of(ops.post("/api/experiments", {**PLAN, "target_kpis": [gauge]})) == [("/target_kpis", "gauge_goal")]
    made = ops.experiment(target_kpis=[{**gauge, "target": {"at_least": 3}}])
    assert [v["key"] for v in made["variants"]] == ["all"]


def test_another_teams_experiment_is_404_whatever_one_tries(ops: Caller, stranger: Caller) -> None:
    made = ops.experiment()
    path = f"/api/experiments/{made['id']}"
    assert stranger.get(path).status_code == 404
    assert stranger.patch(path, {"name": "Mine"}).status_code == 404
    assert stranger.post(f"{path}/transitions", {"to": "stopped"}).status_code == 404
    assert stranger.get("/api/experiments").json()["results"] == []
    assert ops.get(path).json()["name"] == PLAN["name"]


def test_values_show_at_once_and_freshness_is_that_of_the_worst_series(ops: Caller) -> None:
    made = ops.experiment(started_at=ago(hours=6))
    now = datetime.now(UTC)
    arrive(made, "vrps", "control", now - timedelta(minutes=20), 3.08)
    half = ops.get(f"/api/experiments/{made['id']}").json()
    assert (half["freshness"]["state"], half["kpis"][0]["values"][0]["value"]) == ("unknown", 3.08)

    arrive(made, "vrps", "treatment", now - timedelta(minutes=5), 3.2)
    arrive(made, "vrps", "treatment", now - timedelta(minutes=40), 9.9)
    whole = ops.get(f"/api/experiments/{made['id']}").json()
    assert whole["freshness"]["state"] == "due"
    kpi = whole["kpis"][0]
    assert [(v["variant"], v["value"], v["n"]) for v in kpi["values"]] == [
        ("control", 3.08, 10),
        ("treatment", 3.2, 10),
    ]
    assert datetime.fromisoformat(kpi["freshness"]["data_watermark"]) == now - timedelta(minutes=20)
    assert datetime.fromisoformat(kpi["freshness"]["due_at"]) == now - timedelta(minutes=5)


def test_a_value_newer_than_what_the_gates_have_read_is_marked_as_not_judged(ops: Caller) -> None:
    shown = {"metric": "clicks", "role": "shown"}
    made = ops.experiment(started_at=ago(hours=6), target_kpis=["vrps", "errors", shown])
    now = datetime.now(UTC)
    read_to = now - timedelta(minutes=35)
    for metric in ("vrps", "errors", "clicks"):
        arrive(made, metric, "control", read_to)
        arrive(made, metric, "treatment", now - timedelta(minutes=5))
    gate: dict[str, Any] = {
        "gate": "x",
        "kind": "uplift",
        "verdict": "pass",
        "since": ago(hours=1),
        "reason": "",
        "reading": None,
        "limits": {},
    }
    seen = [[ago(hours=1), 0.1], [ago(minutes=5), 0.2]]
    gates = [
        {**gate, "metric": "vrps", "variant": "treatment", "reading": {"at": read_to.isoformat()}},
        {**gate, "metric": "vrps", "variant": "treatment-2"},
        {**gate, "metric": "errors", "variant": "control", "limits": {"observed": seen}},
        {**gate, "metric": None, "variant": None, "limits": {"observed": 12}},
    ]
    with as_role("owner"):
        Cursor.objects.update_or_create(
            experiment_id=made["id"], defaults={"team": ops.team, "shown": {"gates": gates}}
        )

    told = {k["metric"]: k["values"] for k in ops.get(f"/api/experiments/{made['id']}").json()["kpis"]}

    assert {metric: [v["judged"] for v in values] for metric, values in told.items()} == {
        "vrps": [True, False],
        "errors": [True, True],
        "clicks": [False, False],
    }
    (row,) = ops.get("/api/experiments").json()["results"]
    assert [v["judged"] for v in row["kpis"][0]["values"]] == [True, False]


def test_an_unchanged_document_is_304_and_a_row_changes_its_tag(ops: Caller) -> None:
    made = ops.experiment()
    path = f"/api/experiments/{made['id']}"
    tag = ops.get(path)["ETag"]
    assert ops.get(path, If_None_Match=f'W/"x", {tag}').status_code == 304

    arrive(made, "vrps", "control", datetime.now(UTC))
    changed = ops.get(path, If_None_Match=tag)
    assert (changed.status_code, changed["ETag"] == tag) == (200, False)


def test_an_edit_on_an_old_copy_is_412_and_rows_do_not_make_a_copy_old(ops: Caller) -> None:
    made = ops.experiment()
    path = f"/api/experiments/{made['id']}"
    tag = ops.get(path)["ETag"]
    arrive(made, "vrps", "control", datetime.now(UTC))
    assert ops.patch(path, {"name": "Other"}, If_Match=tag).json()["name"] == "Other"

    refused = ops.patch(path, {"name": "Third"}, If_Match=tag)
    assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
    assert ops.get(path).json()["name"] == "Other"


def test_the_plan_is_changed_while_draft_only(ops: Caller) -> None:
    made = ops.experiment(start=False)
    path = f"/api/experiments/{made['id']}"
    changed = ops.patch(path, {"target_kpis": ["signup"], "policy": "quick"}).json()
    assert ([k["metric"] for k in changed["kpis"]], changed["recommendation"]["policy"]["name"]) == (
        ["signup"],
        "quick",
    )

    ops.post(f"{path}/transitions", {"to": "running"})
    refused = ops.patch(path, {"target_kpis": ["vrps"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "not_draft")


def test_a_refused_transition_says_what_is_allowed(ops: Caller) -> None:
    path = f"/api/experiments/{ops.experiment()['id']}/transitions"
    assert ops.post(path, {"to": "paused"}).json()["status"] == "paused"
    assert ops.post(path, {"to": "running"}).json()["status"] == "running"
    refused = ops.post(path, {"to": "scaled"})
    assert (refused.status_code, refused.json()["code"], refused.json()["allowed"]) == (
        409,
        "transition_refused",
        ["paused", "stopped"],
    )
    assert ops.post(path, {"to": "stopped"}).json()["status"] == "stopped"
    assert ops.post(path, {"to": "running"}).json()["allowed"] == []
    assert errors_of(ops.post(path, {"to": "asleep"})) == [("/to", "invalid")]


def test_the_list_filters_orders_searches_and_pages(ops: Caller) -> None:
    for number in range(5):
        ops.experiment(name=f"Idea {number}", target_kpis=["vrps" if number % 2 else "signup"], start=number != 4)

    def keys(query: str) -> list[str]:
        return [row["key"] for row in ops.get(f"/api/experiments?{query}").json()["results"]]

    assert keys("") == ["idea-4", "idea-3", "idea-2", "idea-1", "idea-0"]
    assert keys("status=draft") == ["idea-4"]
    assert keys("status=draft,paused,running&metric=vrps&ordering=id") == ["idea-1", "idea-3"]
    assert keys("search=idea+3") == ["idea-3"]
    assert keys("recommendation=hold&ordering=name&limit=2") == ["idea-0", "idea-1"]
    assert keys("recommendation=scale") == []
    assert keys("freshness=unknown&team=growth&owner=ops@example.org&limit=1") == ["idea-4"]
    assert keys("freshness=fresh") == []

    first = ops.get("/api/experiments?limit=3").json()
    second = ops.get(first["next"].removeprefix("http://testserver")).json()
    assert [row["key"] for row in first["results"] + second["results"]] == [f"idea-{n}" for n in (4, 3, 2, 1, 0)]
    assert (second["next"], first["previous"]) == (None, None)


def test_what_the_list_does_not_know_is_400(ops: Caller) -> None:
    for query, code in (
        ("colour=red", "unknown_parameter"),
        ("limit=201", "invalid_parameter"),
        ("limit=0", "invalid_parameter"),
        ("limit=x", "invalid_parameter"),
        ("cursor=x", "invalid_parameter"),
        ("ordering=hypothesis", "invalid_parameter"),
        ("status=asleep", "invalid_parameter"),
        ("freshness=rotten", "invalid_parameter"),
        ("search=%00", "invalid_parameter"),
    ):
        response = ops.get(f"/api/experiments?{query}")
        assert (response.status_code, response.json()["code"]) == (400, code), query


def test_reading_and_writing_need_their_scopes(caller: Makes, ops: Caller) -> None:
    from decisioning.access.scopes import Scope

    made = ops.experiment()
    reader, pusher = caller("growth", Scope.READ), caller("growth", Scope.TELEMETRY)
    assert reader.get(f"/api/experiments/{made['id']}").status_code == 200
    assert reader.post("/api/experiments", PLAN).status_code == 403
    assert reader.patch(f"/api/experiments/{made['id']}", {"name": "x"}).status_code == 403
    assert pusher.get(f"/api/experiments/{made['id']}").status_code == 403


def test_the_document_is_planned_once_a_connection_also_after_a_refused_request(ops: Caller) -> None:
    path = f"/api/experiments/{ops.experiment()['id']}"
    ops.get(path)
    with connection.cursor() as cursor:
        cursor.execute("SELECT name, prepare_time FROM pg_prepared_statements ORDER BY 1")
        planned = cursor.fetchall()
        assert planned
        assert ops.get("/api/experiments/none").status_code == 404
        assert ops.get(path).status_code == 200
        cursor.execute("SELECT name, prepare_time FROM pg_prepared_statements ORDER BY 1")
        assert cursor.fetchall() == planned


def test_a_plan_that_cannot_end_is_made_and_warned_with_the_smallest_effect_that_can(ops: Caller) -> None:
    goal = {"metric": "vrps", "minimum_effect": 0.001, "baseline": {"mean": 3.1, "stddev": 22.0}}
    made = ops.experiment(target_kpis=[goal], expected_units_per_day=20_000)
    (planning,) = made["planning"]

    assert planning["metric"] == "vrps"
    assert planning["days"] > planning["max_days"] == 28
    assert "the smallest effect that is surely decided by then is" in planning["warning"]
    assert ops.experiment()["planning"] == []


GUARD = {
    "metric": {"key": "kept", "kind": "proportion", "direction": "increase", "expected_every_s": 3600},
    "role": "guardrail",
}
VALUE = {"key": "vrps", "expected": {"every": "daily", "at": "06:00"}}


@pytest.mark.parametrize(
    ("kpi", "pointer"),
    [
        ({"metric": "vrps", "minimum_effect": 2}, "/target_kpis/1/minimum_effect"),
        ({**GUARD, "max_harm": 5}, "/target_kpis/1/max_harm"),
        ({**GUARD, "max_harm": 1}, "/target_kpis/1/max_harm"),
    ],
)
def test_percent_where_a_fraction_is_meant_is_refused_when_it_is_made_and_when_it_is_changed(
    ops: Caller, kpi: dict[str, Any], pointer: str
) -> None:
    plan = [{"metric": "signups"}, kpi]
    made = ops.post("/api/experiments", {**PLAN, "target_kpis": plan})
    assert (made.status_code, errors_of(made)) == (422, [(pointer, "over_one")])
    assert "0.05 is 5%" in made.json()["detail"]
    path = f"/api/experiments/{ops.experiment(start=False)['key']}"
    changed = ops.patch(path, {"target_kpis": plan})
    assert (changed.status_code, errors_of(changed)) == (422, [(pointer, "over_one")])
    assert len(ops.get(path).json()["kpis"]) == 1


def test_a_fraction_over_one_half_is_taken_and_warned_of(ops: Caller) -> None:
    kpis = [{"metric": VALUE, "minimum_effect": 0.5}, {**GUARD, "max_harm": 0.6}]
    made = ops.experiment(target_kpis=kpis, start=False)
    assert made["warnings"] == ["kept_guard: max_harm is 0.6, which is 60%. It is a fraction of control: 0.05 is 5%."]
    path = f"/api/experiments/{made['key']}"
    assert ops.patch(path, {"target_kpis": [kpis[0]]}).json()["warnings"] == []
    assert ops.patch(path, {"target_kpis": kpis}).json()["warnings"] == made["warnings"]


def test_an_effect_in_the_metrics_own_unit_is_no_fraction(ops: Caller) -> None:
    gates = [{"name": "g", "kind": "uplift", "for": "goal", "effect": "difference", "delete_below": "plan"}]
    assert ops.post("/api/policies", {"name": "in-units", "body": {"gates": gates}}).status_code == 201
    made = ops.experiment(policy="in-units", target_kpis=[{"metric": VALUE, "minimum_effect": 5}])
    assert made["warnings"] == []


def test_a_number_of_a_plan_that_nothing_could_be_computed_with_is_out_of_range(ops: Caller) -> None:
    goal = {"metric": "vrps", "baseline": {"mean": 1e-200, "stddev": 1e150}, "target": {"at_least": -1e101}}
    variants = [{"key": "control", "control": True}, {"key": "treatment", "weight": 1e-101}]
    refused = ops.post(
        "/api/experiments", {**PLAN, "target_kpis": [goal], "expected_units_per_day": 1e101, "variants": variants}
    )
    assert set(errors_of(refused)) == {
        ("/target_kpis/0/baseline/mean", "out_of_range"),
        ("/target_kpis/0/baseline/stddev", "out_of_range"),
        ("/target_kpis/0/target/at_least", "out_of_range"),
        ("/variants/1/weight", "out_of_range"),
        ("/expected_units_per_day", "out_of_range"),
    }
