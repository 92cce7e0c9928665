"""What cannot be judged, as people and programs meet it: suspended with the reason and the row, in every answer, until it is mended."""

from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from decisioning import health
from gates.tick import evaluate_due
from tests.api.conftest import Caller
from tests.api.test_judgement import begin, started
from tests.conftest import as_role
from tests.test_health import scraped

__all__ = ["started"]  # a fixture


@pytest.fixture(autouse=True)
def _counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_COUNTED_FOR_S", -1.0)


def spoil(metric: str, value: float) -> str:
    """A number that nothing can be computed with, as an older version may have stored it; returns the time of its row."""
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE metrics.experiment_kpis SET value = %(value)s WHERE metric = %(metric)s AND variant = 'treatment' AND ts = "
            "(SELECT max(ts) - interval '9 hours' FROM metrics.experiment_kpis WHERE metric = %(metric)s) RETURNING ts",
            {"metric": metric, "value": value},
        )
        ((ts,),) = cursor.fetchall()
        return f"{ts:%Y-%m-%dT%H:%M:%SZ}"


def tick() -> list[tuple[str, str]]:
    with as_role("worker"):
        return evaluate_due(now=datetime.now(UTC)).failed


@pytest.fixture
def winner(ops: Caller, started: datetime) -> dict[str, Any]:
    return begin(ops, started, {"control": 3.0, "treatment": 3.3})


def test_a_proposal_whose_rows_cannot_be_computed_with_is_suspended_and_names_the_row(
    ops: Caller, winner: dict[str, Any], client: Client
) -> None:
    path = f"/api/experiments/{winner['key']}"
    before = ops.get(path)
    assert before.json()["unjudgeable"] is None
    assert before.json()["recommendation"]["state"] == "proposed"
    at = spoil("vrps", 1.7e308)
    ((key, why),) = tick()
    assert key == winner["key"]

    document = ops.get(path, HTTP_IF_NONE_MATCH=before["ETag"]).json()
    assert document["unjudgeable"]["row"] == {
        "metric": "vrps",
        "variant": "treatment",
        "ts": at,
        "field": "value",
        "value": "1.7e+308",
    }
    assert document["unjudgeable"]["reason"] == why
    assert f"The row of vrps of treatment at {at} has the value 1.7e+308" in why
    told = document["recommendation"]
    assert (told["action"], told["state"], told["blockers"][0]) == ("scale", "suspended", why)
    decision = ops.get(f"{path}/decision").json()
    assert decision["unjudgeable"] == document["unjudgeable"]
    assert [v["state"] for v in decision["variants"]] == ["suspended"]
    (row,) = ops.get("/api/experiments").json()["results"]
    assert (row["recommendation"]["state"], row["unjudgeable"]) == ("suspended", document["unjudgeable"])
    proposals = [p for e in ops.get(f"{path}/evaluations").json()["results"] for p in e["proposals"]]
    assert [p["state"] for p in proposals] == ["suspended"]

    refused = ops.post(f"{path}/decision", {"action": "accept", "evidence_digest": told["evidence_digest"]})
    assert (refused.status_code, refused.json()["code"]) == (409, "recommendation_suspended")
    assert why in refused.json()["detail"]
    assert scraped(client)["decisioning_unjudgeable_experiments"] == 1.0


def test_it_stands_again_by_itself_once_the_row_is_corrected(
    ops: Caller, winner: dict[str, Any], client: Client
) -> None:
    path = f"/api/experiments/{winner['key']}"
    before = ops.get(path).json()["recommendation"]
    spoil("vrps", -1.7e308)
    assert tick()
    spoil("vrps", 3.3)
    assert tick() == []

    document = ops.get(path).json()
    assert document["unjudgeable"] is None
    assert document["recommendation"] == before
    assert scraped(client)["decisioning_unjudgeable_experiments"] == 0.0
    answer = {"action": "accept", "evidence_digest": before["evidence_digest"]}
    assert ops.post(f"{path}/decision", answer).status_code == 201


def test_an_experiment_that_was_never_judged_says_what_keeps_it_from_it(ops: Caller, winner: dict[str, Any]) -> None:
    other = ops.experiment(name="Never judged", target_kpis=[{"metric": {"key": "vrps"}}])
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("UPDATE metadata.variants SET weight = 'NaN' WHERE experiment_id = %s", [other["id"]])
        cursor.execute(
            "UPDATE metadata.cursors SET due_at = now() - interval '1 second' WHERE experiment_id = %s", [other["id"]]
        )
    assert [key for key, _ in tick()] == [other["key"]]

    told = ops.get(f"/api/experiments/{other['key']}/decision").json()
    assert (told["recommendation"]["action"], told["recommendation"]["code"]) == ("hold", "no_data")
    assert told["recommendation"]["blockers"] == [told["unjudgeable"]["reason"]]
    assert "A plan cannot be read" in told["unjudgeable"]["reason"]
    assert told["unjudgeable"]["row"] is None


def test_evidence_that_is_not_what_its_digest_names_is_refused_and_not_shown(
    ops: Caller, winner: dict[str, Any]
) -> None:
    path = f"/api/experiments/{winner['key']}"
    digest = ops.get(path).json()["recommendation"]["evidence_digest"]
    for body in ("substr(body, 1, 40)", "'\\x789c030000000001'"):  # cut off, and something else
        with as_role("owner"), connection.cursor() as cursor:
            cursor.execute(f"UPDATE metadata.evidence SET body = {body} WHERE digest = %s", [digest])  # noqa: S608 - constants
        for answer in (ops.get(f"{path}/evidence/{digest}"), ops.post(f"{path}/evidence/{digest}/verify", {})):
            assert (answer.status_code, answer.json()["code"]) == (409, "not_replayable")
