"""Audit, refresh log, freshness, the registry, keys and policies over HTTP."""

import uuid
from datetime import UTC, datetime, timedelta

from decisioning.access.scopes import Scope
from telemetry.models import RefreshRun, Source
from tests.api.conftest import Caller, Makes, errors_of
from tests.api.test_experiments import ago, arrive
from tests.conftest import as_role

GATES = [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]


def test_every_change_has_its_entry_with_actor_before_and_after(ops: Caller) -> None:
    made = ops.experiment()
    ops.patch(f"/api/experiments/{made['id']}", {"name": "Other"})
    ops.post(
        f"/api/experiments/{made['id']}/kpis",
        {
            "rows": [{"metric": "vrps", "variant": "control", "ts": ago(minutes=1), "value": 1, "n": 2, "variance": 1}]
            * 1
        },
    )
    entries = ops.get(f"/api/experiments/{made['id']}/audit").json()["results"]
    batch, renamed = entries[0], entries[1]
    assert (batch["action"], batch["object"]["type"], batch["after"]["rows"]) == (
        "create",
        "telemetry.experimentkpi",
        1,
    )
    assert (renamed["action"], renamed["before"], renamed["after"]) == (
        "update",
        {"name": "One-page checkout"},
        {"name": "Other"},
    )
    assert renamed["actor"]["kind"] == "key"
    assert {e["object"]["type"] for e in entries} >= {
        "experiments.experiment",
        "experiments.variant",
        "experiments.targetkpi",
    }
    assert all(e["hash"].startswith("sha256:") for e in entries)


def test_the_refresh_log_shows_runs_of_ones_team_and_the_portal(ops: Caller, stranger: Caller) -> None:
    now = datetime.now(UTC)
    with as_role("worker"):
        for job, team in (("feed/growth", ops.team), ("telemetry.hours", None), ("feed/search", stranger.team)):
            RefreshRun.objects.create(
                run_id=uuid.uuid4(),
                job_name=job,
                team=team,
                started_at=now,
                finished_at=now,
                status="succeeded",
                rows=3,
            )

    def jobs(query: str) -> list[str]:
        return [r["job_name"] for r in ops.get(f"/api/refresh-log{query}").json()["results"]]

    assert jobs("") == ["telemetry.hours", "feed/growth"]
    assert jobs("?job=feed/growth&status=succeeded") == ["feed/growth"]
    assert jobs("?status=failed") == []
    assert jobs(f"?from={(now + timedelta(seconds=1)).strftime('%Y-%m-%dT%H:%M:%SZ')}") == []
    assert ops.get("/api/refresh-log?status=lost").status_code == 400


def test_freshness_lists_every_tracked_kpi(ops: Caller) -> None:
    made = ops.experiment(target_kpis=["vrps", {"metric": "signup", "role": "shown"}], started_at=ago(hours=6))
    ops.experiment(name="Draft", start=False)
    now = datetime.now(UTC)
    for variant in ("control", "treatment"):
        arrive(made, "vrps", variant, now - timedelta(minutes=1))
    rows = {r["metric"]: r for r in ops.get("/api/freshness?ordering=id").json()["results"]}
    assert rows.keys() == {"vrps", "signup"}
    assert (rows["vrps"]["state"], rows["signup"]["state"]) == ("fresh", "unknown")
    assert datetime.fromisoformat(rows["vrps"]["stale_at"]) == now + timedelta(minutes=29)
    assert (rows["vrps"]["experiment"], rows["vrps"]["source"], rows["vrps"]["last_run"]) == (made["key"], None, None)
    only = ops.get(f"/api/freshness?state=unknown&experiment={made['key']}").json()["results"]
    assert [r["metric"] for r in only] == ["signup"]


def test_of_several_sources_of_one_kpi_freshness_names_the_one_that_fares_worst(ops: Caller) -> None:
    ops.experiment()
    now = datetime.now(UTC).replace(microsecond=0)
    hour = timedelta(hours=1)
    with as_role("owner"):
        for key, refreshed, enabled in (
            ("good", now, True),
            ("behind", now - 9 * hour, True),
            ("off", now - 99 * hour, False),
        ):
            Source.objects.create(
                key=key, team=ops.team, kind="file", path="x.csv", query="SELECT 1", schedule_s=3600, metrics=["vrps"], enabled=enabled,
                created_at=now - 100 * hour, due_at=now, last_refresh_at=refreshed,
            )  # fmt: skip

    def told() -> tuple[object, ...]:
        (tracked,) = ops.get("/api/freshness").json()["results"]
        return tracked["source"], tracked["last_run"] and tracked["last_run"]["error"], tracked["last_refresh_at"]

    newest = now.isoformat().replace("+00:00", "Z")
    assert told() == ("behind", None, newest)
    with as_role("worker"):
        RefreshRun.objects.create(
            run_id=uuid.uuid4(), job_name="source/good", source="good", team=ops.team, started_at=now, finished_at=now, status="failed",
            error="no such table",
        )  # fmt: skip
    assert told() == ("good", "no such table", newest), "what fails is worse than what is behind"


def test_metrics_are_read_by_all_and_changed_by_their_team(ops: Caller, stranger: Caller) -> None:
    response = ops.post("/api/metrics", {"key": "vrps", "name": "Value per session", "unit": "usd", "kind": "mean"})
    assert (response.status_code, response["Location"]) == (201, "/api/metrics/vrps")
    assert ops.post("/api/metrics", {"key": "vrps"}).json()["code"] == "key_taken"
    assert stranger.get("/api/metrics/vrps").json()["unit"] == "usd"
    assert stranger.patch("/api/metrics/vrps", {"unit": "eur"}).status_code == 403
    assert ops.patch("/api/metrics/vrps", {"unit": "eur", "direction": None}).json()["direction"] is None
    assert [m["unit"] for m in stranger.get("/api/metrics?search=session").json()["results"]] == ["eur"]
    assert errors_of(ops.patch("/api/metrics/vrps", {"expected_every_s": 0})) == [
        ("/expected_every_s", "invalid_number")
    ]
    assert ops.get("/api/metrics/none").status_code == 404
    assert errors_of(ops.post("/api/metrics", {"key": "Bad Key"})) == [("/key", "invalid")]


def test_a_key_shows_its_secret_once_and_is_nobody_after_delete(ops: Caller) -> None:
    response = ops.post("/api/keys", {"scopes": ["experiments:read"], "rate": "40/m"})
    assert response.status_code == 201
    made = response.json()
    other = Caller(made["key"], ops.team)
    assert other.get("/api/experiments").status_code == 200
    listed = ops.get("/api/keys").json()["results"]
    assert all("key" not in key for key in listed)
    assert made["rate"] == "40/m"

    assert ops.delete(f"/api/keys/{made['id']}").status_code == 204
    refused = other.get("/api/experiments")
    assert (refused.status_code, refused["WWW-Authenticate"]) == (401, 'Bearer realm="decisioning"')


def test_keys_never_grant_more_than_their_maker_holds(ops: Caller, caller: Makes, stranger: Caller) -> None:
    limited = caller("growth", Scope.KEYS, Scope.READ)
    assert errors_of(limited.post("/api/keys", {"scopes": ["experiments:read", "decisions:review"]})) == [
        ("/scopes/1", "scope_not_held")
    ]
    for body, error in (
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["everything"]}, "/scopes/0"),
        ({"scopes": ["experiments:read"], "rate": "many"}, "/rate"),
        ({"scopes": ["experiments:read"], "expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
        ({"scopes": ["decisions:review"], "agent": True}, "/scopes"),
        ({"scopes": ["experiments:read"], "team": "search"}, "/team"),
    ):
        response = ops.post("/api/keys", body)
        assert (response.status_code, errors_of(response)[0][0]) == (422, error)
    mine = ops.get("/api/keys").json()["results"][0]["id"]
    assert stranger.delete(f"/api/keys/{mine}").status_code == 404
    assert caller("growth", Scope.READ).get("/api/keys").status_code == 403


def test_a_policy_starts_active_and_a_new_version_waits_for_a_backtest(ops: Caller, stranger: Caller) -> None:
    made = ops.post("/api/policies", {"name": "careful", "body": {"gates": GATES, "persist": 8}})
    assert made.status_code == 201, made.content
    assert (made.json()["team"], made.json()["active_version"]) == ("growth", 1)
    assert stranger.get("/api/policies/careful").status_code == 404
    assert ops.experiment(policy="careful")["recommendation"]["policy"] == {"name": "careful", "version": 1}

    version = ops.post("/api/policies/careful/versions", {"body": {"gates": GATES, "persist": 2}})
    assert (version.status_code, version.json()["version"], version.json()["activated_at"]) == (201, 2, None)
    refused = ops.post("/api/policies/careful/versions/2/activate")
    assert (refused.status_code, refused.json()["code"]) == (409, "backtest_required")
    assert [p["name"] for p in ops.get("/api/policies?ordering=id").json()["results"]] == [
        "default",
        "quick",
        "careful",
    ]


def test_a_policy_that_lint_refuses_names_gate_and_mend(ops: Caller) -> None:
    response = ops.post("/api/policies", {"name": "x1", "body": {"alpha": 0.7, "gates": []}})
    assert response.status_code == 422
    assert {code for _, code in errors_of(response)} == {"alpha_range", "no_gates"}
    assert ops.post("/api/policies", {"name": "X", "body": {"gates": GATES}}).status_code == 422
    ops.post("/api/policies", {"name": "twice", "body": {"gates": GATES}})
    assert ops.post("/api/policies", {"name": "twice", "body": {"gates": GATES}}).json()["code"] == "key_taken"
    assert ops.post("/api/policies/default/versions", {"body": {"gates": GATES}}).json()["code"] == "shipped"
    assert ops.post("/api/policies/default/versions/1/backtest").status_code == 403


def test_a_dry_run_says_what_a_policy_would_be_or_what_is_wrong_with_it_and_keeps_nothing(ops: Caller) -> None:
    body = {"gates": GATES, "persist": 8}
    tried = ops.post("/api/policies?dry_run=true", {"name": "careful", "body": body})
    told = tried.json()["versions"][0]["body"]
    assert (tried.status_code, tried.json()["name"], told["gates"], told["persist"]) == (200, "careful", GATES, 8)
    assert (told["doubt_above"], told["srm_tolerance"]) == (0.5, 0.001), (
        "what a new version has unless it says otherwise"
    )
    assert ops.get("/api/policies/careful").status_code == 404
    wrong = ops.post("/api/policies?dry_run=true", {"name": "careful", "body": {"alpha": 0.7, "gates": []}})
    assert (wrong.status_code, {code for _, code in errors_of(wrong)}) == (422, {"alpha_range", "no_gates"})

    assert ops.post("/api/policies", {"name": "careful", "body": body}).status_code == 201
    next_one = ops.post("/api/policies/careful/versions?dry_run=true", {"body": body})
    assert (next_one.status_code, next_one.json()["version"]) == (200, 2)
    assert len(ops.get("/api/policies/careful").json()["versions"]) == 1
    assert errors_of(ops.post("/api/policies?dry_run=perhaps", {"name": "x1", "body": body})) == [
        ("?dry_run", "invalid_parameter")
    ]
