"""From rows to an answered recommendation over HTTP, with the tick run by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from decisioning.access.scopes import Scope
from gates.backtests import run_one
from gates.engine.policy import QUICK_BODY
from gates.models import Cursor, Evaluation, Policy, PolicyVersion, Recommendation
from gates.tick import evaluate_due
from tests.api.conftest import Caller, Makes, errors_of
from tests.conftest import as_role

HOUR = timedelta(hours=1)


def tick() -> None:
    with as_role("worker"):
        evaluate_due(now=datetime.now(UTC))


def rows(means: dict[str, float], since: datetime, until: datetime, **more: object) -> list[dict[str, object]]:
    """Hourly buckets of 2,000 units with standard deviation 2."""
    hours = int((until - since) / HOUR)
    return [
        {"metric": "vrps", "variant": variant, "ts": (since + (i + 1) * HOUR).isoformat(), "value": mean, "n": 2000, "variance": 4.0}
        | more
        for i in range(hours)
        for variant, mean in means.items()
    ]  # fmt: skip


@pytest.fixture
def started(now: datetime) -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 4 * timedelta(days=1)


def begin(ops: Caller, started: datetime, means: dict[str, float]) -> dict[str, Any]:
    """An experiment that has run four days with these means, judged."""
    made = ops.experiment(
        policy="quick",
        started_at=started.isoformat(),
        target_kpis=[{"metric": {"key": "vrps", "expected_every_s": 3600, "freshness_target_s": 3600}}],
        variants=[{"key": key, "control": key == "control"} for key in means],
    )
    answer = ops.post(f"/api/experiments/{made['id']}/kpis", {"rows": rows(means, started, datetime.now(UTC))})
    assert answer.status_code == 200, answer.content
    tick()
    return made


@pytest.fixture
def winner(ops: Caller, started: datetime) -> dict[str, Any]:
    return begin(ops, started, {"control": 3.0, "treatment": 3.3})


def test_before_the_first_look_the_decision_is_hold_without_data(ops: Caller) -> None:
    made = ops.experiment()
    told = ops.get(f"/api/experiments/{made['key']}/decision").json()

    assert (told["experiment"], told["decision"], told["stale"]) == (made["key"], None, False)
    first = told["recommendation"]
    assert (first["action"], first["code"], first["evidence_digest"], first["state"]) == (
        "hold",
        "no_data",
        None,
        "open",
    )
    assert [(v["variant"], v["action"]) for v in told["variants"]] == [("treatment", "hold")]


def test_a_winner_is_proposed_with_rationale_gates_and_evidence(ops: Caller, winner: dict[str, Any]) -> None:
    path = f"/api/experiments/{winner['id']}"
    told = ops.get(f"{path}/decision").json()["recommendation"]
    assert (told["action"], told["code"], told["variant"], told["state"]) == ("scale", "wins", "treatment", "proposed")
    assert told["rationale"]
    assert told["policy"] == {"name": "quick", "version": 1}

    document = ops.get(path).json()
    assert document["recommendation"] == told
    assert document["links"]["evidence"] == f"{path}/evidence/{told['evidence_digest']}"
    gates = {gate["gate"]: gate for gate in ops.get(f"{path}/gates").json()["results"]}
    assert gates["vrps_uplift"]["verdict"] == "pass"
    assert gates["vrps_uplift"]["reading"]["estimate"] == pytest.approx(0.1)
    listed = ops.get("/api/experiments?recommendation=scale&freshness=fresh,due").json()["results"]
    assert [(row["key"], row["recommendation"]["action"]) for row in listed] == [(winner["key"], "scale")]


def test_a_value_is_judged_once_the_gates_reading_has_come_to_its_instant(ops: Caller, winner: dict[str, Any]) -> None:
    path, now = f"/api/experiments/{winner['id']}", datetime.now(UTC)
    (gate,) = [g for g in ops.get(f"{path}/gates").json()["results"] if g["gate"] == "vrps_uplift"]
    read_to = datetime.fromisoformat(gate["reading"]["at"])
    (kpi,) = ops.get(path).json()["kpis"]
    assert [v["judged"] for v in kpi["values"]] == [datetime.fromisoformat(v["ts"]) <= read_to for v in kpi["values"]]

    newer = {"metric": "vrps", "variant": "treatment", "ts": now.isoformat(), "value": 3.3, "n": 10, "variance": 4.0}
    ops.post(f"{path}/kpis", {"rows": [newer]})

    (kpi,) = ops.get(path).json()["kpis"]
    assert {v["variant"]: v["judged"] for v in kpi["values"]}["treatment"] is False


def test_the_evidence_is_what_its_digest_says_and_replays_to_the_same(ops: Caller, winner: dict[str, Any]) -> None:
    import hashlib

    path = f"/api/experiments/{winner['id']}"
    digest = ops.get(f"{path}/decision").json()["recommendation"]["evidence_digest"]
    body = ops.get(f"{path}/evidence/{digest}").content
    assert digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert ops.post(f"{path}/evidence/{digest}/verify").json()["same"] is True
    assert ops.get(f"{path}/evidence/sha256:0").status_code == 404


def test_an_accepted_scale_scales_and_a_second_answer_is_409(ops: Caller, winner: dict[str, Any]) -> None:
    path = f"/api/experiments/{winner['id']}"
    digest = ops.get(f"{path}/decision").json()["recommendation"]["evidence_digest"]
    answer = ops.post(f"{path}/decision", {"evidence_digest": digest, "action": "accept"})
    assert (answer.status_code, answer.json()["status"]) == (201, "scaled")
    assert answer.json()["by"] == "ops@example.org"

    again = ops.post(f"{path}/decision", {"evidence_digest": digest, "action": "accept"})
    assert (again.status_code, again.json()["code"]) == (409, "already_decided")
    told = ops.get(f"{path}/decision").json()
    assert (told["decision"]["action"], told["decision"]["would_now"]) == ("accept", None)
    assert told["recommendation"]["state"] == "answered"
    assert ops.get(path).json()["status"] == "scaled"
    (kept,) = ops.get(f"{path}/decisions").json()["results"]
    assert kept["recommended"]["action"] == "scale"

    worse = rows({"treatment": 2.0}, datetime.fromisoformat(winner["started_at"]), datetime.now(UTC) - HOUR)
    assert ops.post(f"{path}/kpis", {"rows": worse}).status_code == 200
    tick()
    told = ops.get(f"{path}/decision").json()
    assert told["decision"]["action"] == "accept", "an answer is never undone"
    assert told["decision"]["would_now"] == {"action": "delete", "code": "harmful"}


def test_an_override_needs_a_reason_and_the_newest_digest(ops: Caller, winner: dict[str, Any]) -> None:
    path = f"/api/experiments/{winner['id']}/decision"
    digest = ops.get(path).json()["recommendation"]["evidence_digest"]
    assert errors_of(ops.post(path, {"evidence_digest": digest, "action": "override", "override_to": "stop"})) == [
        ("/reason", "missing_field")
    ]
    assert errors_of(ops.post(path, {"evidence_digest": digest, "action": "maybe"})) == [("/action", "invalid")]
    assert errors_of(ops.post(path, {"action": "accept"})) == [("/evidence_digest", "missing_field")]
    other = ops.post(path, {"evidence_digest": "sha256:" + "0" * 64, "action": "accept"})
    assert (other.status_code, other.json()["code"]) == (409, "recommendation_replaced")

    why = {"evidence_digest": digest, "action": "override", "override_to": "stop", "reason": "Season is over."}
    assert ops.post(path, why).json()["status"] == "stopped"


def test_holding_leaves_nothing_to_decide(ops: Caller) -> None:
    path = f"/api/experiments/{ops.experiment()['id']}/decision"
    answer = ops.post(path, {"evidence_digest": "sha256:" + "0" * 64, "action": "accept"})
    assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_decide")


def test_an_agent_may_push_and_read_but_never_decide(ops: Caller, caller: Makes, winner: dict[str, Any]) -> None:
    agent = caller("growth", Scope.READ, Scope.WRITE, Scope.TELEMETRY, agent=True)
    path = f"/api/experiments/{winner['id']}/decision"
    digest = agent.get(path).json()["recommendation"]["evidence_digest"]
    assert agent.post(path, {"evidence_digest": digest, "action": "accept"}).status_code == 403
    assert ops.get(path).json()["decision"] is None


def test_evaluations_list_one_a_slot_and_an_asked_one_too(ops: Caller, winner: dict[str, Any]) -> None:
    path = f"/api/experiments/{winner['id']}"
    before = ops.get(f"{path}/evaluations").json()["results"]
    assert before[0]["action"] == "scale"
    assert len({e["slot"] for e in before}) == len(before)

    asked = ops.post(f"{path}/evaluate")
    assert asked.status_code == 202
    tick()
    newest = ops.get(f"{path}/evaluations").json()["results"][0]["slot"]
    assert newest >= asked.json()["slot"]
    draft = ops.experiment(start=False)
    assert ops.post(f"/api/experiments/{draft['id']}/evaluate").json()["code"] == "not_running"


def test_a_past_slot_is_recomputed(ops: Caller, winner: dict[str, Any], started: datetime) -> None:
    path = f"/api/experiments/{winner['id']}/decision"
    early = (started + 6 * HOUR).strftime("%Y-%m-%dT%H:%M:%SZ")
    told = ops.get(f"{path}?as_of={early}").json()
    assert (told["as_of"], told["recommendation"]["action"]) == (early, "hold")
    for bad in ("2999-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "yesterday", "2026-11-24T00:00:00"):
        assert ops.get(f"{path}?as_of={bad}").json()["code"] == "invalid_parameter"


@pytest.fixture
def first_look(winner: dict[str, Any]) -> str:
    """The address of the decision as of the slot at which the winner was proposed."""
    with as_role("worker"):
        slot = Recommendation.objects.get().slot
    return f"/api/experiments/{winner['id']}/decision?as_of={slot:%Y-%m-%dT%H:%M:%SZ}"


def test_a_past_slot_is_judged_by_the_policy_that_was_in_force_then(
    ops: Caller, winner: dict[str, Any], first_look: str
) -> None:
    then = ops.get(first_look).json()
    assert (then["recommendation"]["action"], then["recommendation"]["policy"]["version"]) == ("scale", 1)
    assert then["recommendation"]["evidence_digest"]

    with as_role("owner"):
        PolicyVersion.objects.create(
            policy=Policy.objects.get(name="quick"), number=2, body=QUICK_BODY | {"min_days": 20}, author="ann",
            created_at=datetime.now(UTC), activated_at=datetime.now(UTC),
        )  # fmt: skip
    ops.post(f"/api/experiments/{winner['id']}/evaluate")
    tick()
    today = ops.get(f"/api/experiments/{winner['id']}/decision").json()["recommendation"]
    assert (today["action"], today["policy"]["version"]) == ("hold", 2)

    assert ops.get(first_look).json() == then


def test_a_past_slot_has_a_digest_only_where_that_evidence_says_the_same(
    ops: Caller, winner: dict[str, Any], started: datetime, first_look: str
) -> None:
    worse = rows({"treatment": 3.0}, started, datetime.now(UTC))
    assert ops.post(f"/api/experiments/{winner['id']}/kpis", {"rows": worse}).json()["changed"] > 0
    told = ops.get(first_look).json()
    assert told["recommendation"]["action"] != "scale"
    assert {part["evidence_digest"] for part in (told["recommendation"], *told["variants"])} == {None}


def test_a_past_slot_of_which_nothing_is_on_record_is_judged_as_today_without_a_digest(
    ops: Caller, winner: dict[str, Any], first_look: str
) -> None:
    with as_role("owner"):
        Evaluation.objects.all().delete()
    told = ops.get(first_look).json()["recommendation"]
    assert (told["action"], told["evidence_digest"], told["policy"]["version"]) == ("scale", None, 1)


def test_what_became_of_a_proposal_stands_at_the_slot_that_made_it(
    ops: Caller, winner: dict[str, Any], started: datetime
) -> None:
    path = f"/api/experiments/{winner['id']}"

    def told() -> list[tuple[str, str, str | None]]:
        results = ops.get(f"{path}/evaluations?limit=200").json()["results"]
        assert all(p["evidence_digest"].startswith("sha256:") for e in results for p in e["proposals"])
        return [(p["action"], p["state"], p["because"]) for e in results for p in e["proposals"]]

    assert told() == [("scale", "proposed", None)]
    worse = rows({"treatment": 2.5}, started, datetime.now(UTC))
    ops.post(f"{path}/kpis", {"rows": worse})
    tick()
    assert told() == [("delete", "proposed", None), ("scale", "superseded", "evidence_corrected")]

    newest = ops.get(f"{path}/decision").json()["recommendation"]["evidence_digest"]
    ops.post(f"{path}/decision", {"evidence_digest": newest, "action": "accept"})
    assert told()[0] == ("delete", "answered", None)

    with as_role("owner"):
        Recommendation.objects.filter(action="delete").update(answered_at=None, withdrawn_at=datetime.now(UTC))
    assert told()[0] == ("delete", "withdrawn", None)


def test_a_proposal_whose_data_went_late_is_told_as_suspended(ops: Caller, winner: dict[str, Any]) -> None:
    with as_role("owner"):
        cursor = Cursor.objects.get()
        assert cursor.shown
        cursor.shown["recommendation"]["state"] = "suspended"
        cursor.save()
    results = ops.get(f"/api/experiments/{winner['id']}/evaluations?limit=200").json()["results"]
    assert [p["state"] for e in results for p in e["proposals"]] == ["suspended"]


def test_another_team_reaches_none_of_it(ops: Caller, stranger: Caller, winner: dict[str, Any]) -> None:
    path = f"/api/experiments/{winner['id']}"
    digest = ops.get(f"{path}/decision").json()["recommendation"]["evidence_digest"]
    for method, below in (
        ("GET", "decision"),
        ("POST", "decision"),
        ("GET", "gates"),
        ("GET", "evaluations"),
        ("GET", "decisions"),
        ("GET", "audit"),
        ("GET", "assets"),
        ("GET", "kpis"),
        ("POST", "kpis"),
        ("POST", "evaluate"),
        ("GET", f"evidence/{digest}"),
        ("POST", f"evidence/{digest}/verify"),
    ):
        assert stranger(method, f"{path}/{below}", {} if method == "POST" else None).status_code == 404, below


def test_a_candidate_is_held_against_the_live_policy_and_then_activated_by_another(
    ops: Caller, caller: Makes, winner: dict[str, Any]
) -> None:
    gates = [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]
    ops.post("/api/policies", {"name": "bold", "body": {"gates": gates, "min_days": 1}})
    ops.post("/api/policies/bold/versions", {"body": {"gates": gates, "min_days": 3, "look_s": 900}})
    path = "/api/policies/bold/versions/2"
    assert ops.get(f"{path}/backtest").status_code == 404

    asked = ops.post(f"{path}/backtest")
    assert (asked.status_code, asked["Location"], asked.json()["state"]) == (202, f"{path}/backtest", "queued")
    assert ops.post(f"{path}/activate").json()["code"] == "backtest_required"
    with as_role("worker"):
        run_one(now=datetime.now(UTC))

    found = ops.get(asked["Location"]).json()
    assert (found["state"], found["flips"], found["lost"]) == ("finished", 0, 0)
    assert found["days_saved"] < 0
    (one,) = found["experiments"]
    assert one["experiment"] == winner["key"]
    assert [(v["variant"], v["live"]["action"], v["candidate"]["action"]) for v in one["variants"]] == [
        ("treatment", "scale", "scale")
    ]
    assert ops.post(f"{path}/activate").json()["code"] == "second_person_required"
    assert (
        caller("growth", owner="bob@example.org").post(f"{path}/activate").json()["activated_by"] == "bob@example.org"
    )


def test_a_backtest_passes_over_what_has_just_begun(ops: Caller) -> None:
    gates = [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]
    made = ops.experiment()
    ops.post("/api/policies", {"name": "bold", "body": {"gates": gates}})
    ops.post("/api/policies/bold/versions", {"body": {"gates": gates, "persist": 2}})
    ops.post("/api/policies/bold/versions/2/backtest")
    with as_role("worker"):
        run_one(now=datetime.now(UTC))
    found = ops.get("/api/policies/bold/versions/2/backtest").json()
    assert (found["state"], found["flips"], [e["experiment"] for e in found["experiments"]]) == (
        "finished",
        0,
        [made["key"]],
    )


def test_a_backtest_that_fails_says_why_and_allows_nothing(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    gates = [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]
    ops.experiment()
    ops.post("/api/policies", {"name": "bold", "body": {"gates": gates}})
    ops.post("/api/policies/bold/versions", {"body": {"gates": gates}})
    ops.post("/api/policies/bold/versions/2/backtest")
    monkeypatch.setattr("gates.backtests.pure.backtest", lambda *_a, **_o: 1 / 0)
    with as_role("worker"):
        run_one(now=datetime.now(UTC))
        assert run_one(now=datetime.now(UTC)) is None

    found = ops.get("/api/policies/bold/versions/2/backtest").json()
    assert (found["state"], found["flips"], "ZeroDivisionError" in found["error"]) == ("failed", None, True)
    assert ops.post("/api/policies/bold/versions/2/activate").json()["code"] == "backtest_required"


def test_a_backtest_right_after_the_answer_that_ended_an_experiment_works(ops: Caller, winner: dict[str, Any]) -> None:
    gates = [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]
    decision = f"/api/experiments/{winner['id']}/decision"
    digest = ops.get(decision).json()["recommendation"]["evidence_digest"]
    assert ops.post(decision, {"evidence_digest": digest, "action": "accept"}).status_code == 201
    ops.post("/api/policies", {"name": "bold", "body": {"gates": gates}})
    ops.post("/api/policies/bold/versions", {"body": {"gates": gates, "persist": 2}})
    ops.post("/api/policies/bold/versions/2/backtest")
    with as_role("worker"):
        run_one(now=datetime.now(UTC))
    found = ops.get("/api/policies/bold/versions/2/backtest").json()
    assert (found["state"], found["error"]) == ("finished", None)


def test_a_policys_fractions_are_refused_over_one_and_warned_of_over_one_half(ops: Caller) -> None:
    def body(**numbers: float) -> dict[str, Any]:
        goal = {"name": "goals", "kind": "uplift", "for": "goal", "scale_above": 0.0, "delete_below": 0.02}
        guard = {"name": "guards", "kind": "guard", "for": "guardrail", "max_harm": 0.1}
        return {"gates": [{**gate, **{k: v for k, v in numbers.items() if k in gate}} for gate in (goal, guard)]}

    for name, gate in (("scale_above", "goals"), ("delete_below", "goals"), ("max_harm", "guards")):
        numbers = {"delete_below": 5.0, name: 2.0}
        refused = ops.post("/api/policies", {"name": "percent", "body": body(**numbers)})
        assert refused.status_code == 422
        assert (f"/body/gates/{gate}", "over_one") in errors_of(refused)
    made = ops.post("/api/policies", {"name": "wide", "body": body(max_harm=0.6)}).json()["versions"][0]
    assert made["warnings"] == ["guards: max_harm is 0.6, which is 60%. It is a fraction of control: 0.05 is 5%."]
    assert ops.post("/api/policies/wide/versions", {"body": body()}).json()["warnings"] == []
    assert errors_of(ops.post("/api/policies/wide/versions", {"body": body(max_harm=60)}))[0][1] == "over_one"


def test_a_policy_that_was_saved_with_fractions_over_one_judges_as_it_is(ops: Caller, started: datetime) -> None:
    with as_role("owner"):
        old = Policy.objects.create(name="old", team=ops.team, created_at=started)
        body = {**QUICK_BODY, "gates": [{"name": "g", "kind": "uplift", "for": "goal", "delete_below": 3.0}]}
        PolicyVersion.objects.create(
            policy=old, team=ops.team, number=1, body=body, created_at=started, activated_at=started
        )
    made = ops.experiment(
        policy="old",
        started_at=started.isoformat(),
        target_kpis=[{"metric": {"key": "vrps", "expected_every_s": 3600, "freshness_target_s": 3600}}],
    )
    assert made["warnings"] == ["g: delete_below is 3, which is 300%. It is a fraction of control: 0.05 is 5%."]
    means = {"control": 3.0, "treatment": 3.3}
    ops.post(f"/api/experiments/{made['id']}/kpis", {"rows": rows(means, started, datetime.now(UTC))})
    tick()
    (gate, *_) = ops.get(f"/api/experiments/{made['id']}/gates").json()["results"]
    assert (gate["gate"], gate["limits"]["delete_below"], gate["verdict"]) == ("g", 3.0, "pass")
