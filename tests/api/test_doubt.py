"""Doubt in a KPI's rows, set aside by a person: over the API and on the board, audited, and in the plan that judges."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from decisioning.access.scopes import Scope
from experiments.models import Experiment
from tests.api.conftest import Caller, Makes, errors_of
from tests.api.test_judgement import HOUR, begin, tick
from tests.board.scenes import person
from tests.conftest import as_role

WHY = "Checked against the till of that day"


@pytest.fixture
def started(now: datetime) -> datetime:
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)


@pytest.fixture
def doubted(ops: Caller, started: datetime) -> dict[str, Any]:
    """Two days of rows of 2,000 units whose means move by 10% an hour, and whose variance says that they do not."""
    made = begin(ops, started, {"control": 3.0, "treatment": 3.3})
    told = [
        {"metric": "vrps", "variant": variant, "ts": (started + (hour + 1) * HOUR).isoformat(), "n": 2000, "variance": 4.0,
         "value": mean + 0.3 * (hour % 2 if variant == "treatment" else 0), "revision": 2}
        for hour in range(47)
        for variant, mean in (("control", 3.0), ("treatment", 3.3))
    ]  # fmt: skip
    assert ops.post(f"/api/experiments/{made['id']}/kpis", {"rows": told}).status_code == 200
    tick()
    return made


def doubt(made: dict[str, Any]) -> str:
    return f"/api/experiments/{made['key']}/kpis/vrps/doubt"


def test_what_is_doubted_holds_and_a_reviewer_sets_it_aside_with_a_reason(ops: Caller, doubted: dict[str, Any]) -> None:
    document = ops.get(f"/api/experiments/{doubted['key']}").json()
    assert (document["recommendation"]["action"], document["recommendation"]["code"]) == ("hold", "doubtful")
    assert "scatter" in document["recommendation"]["blockers"][0]
    assert ops.get(doubt(doubted)).json() == {"metric": "vrps", "doubt": "on", "set_aside": []}

    set_aside = ops.post(doubt(doubted), {"doubt": "off", "reason": f"  {WHY} "}).json()
    assert set_aside["doubt"] == "off"
    (span,) = set_aside["set_aside"]
    assert (span["reason"], span["until"]) == (WHY, None)
    assert ops.post(doubt(doubted), {"doubt": "off", "reason": "again"}).json()["code"] == "set_aside_already"

    asked = ops.post(f"/api/experiments/{doubted['key']}/evaluate")
    assert asked.status_code in (202, 409)
    entries = ops.get(f"/api/experiments/{doubted['key']}/audit").json()["results"]
    (entry,) = [e for e in entries if (e["after"] or {}).get("trusted")]
    assert entry["after"]["trusted"][0]["reason"] == WHY

    again = ops.post(doubt(doubted), {"doubt": "on"}).json()
    assert (again["doubt"], again["set_aside"][0]["until"] is not None) == ("on", True)
    assert ops.post(doubt(doubted), {"doubt": "on"}).json()["code"] == "not_set_aside"


def test_what_cannot_be_set_aside_is_refused_with_what_to_do(
    ops: Caller, caller: Makes, doubted: dict[str, Any]
) -> None:
    assert errors_of(ops.post(doubt(doubted), {"doubt": "off"})) == [("/reason", "missing_field")]
    assert errors_of(ops.post(doubt(doubted), {"doubt": "off", "reason": "x" * 501})) == [("/reason", "invalid_text")]
    unknown = ops.post(f"/api/experiments/{doubted['key']}/kpis/clicks/doubt", {"doubt": "off", "reason": WHY})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_kpi")
    reader = caller("growth", Scope.READ)
    assert reader.post(doubt(doubted), {"doubt": "off", "reason": WHY}).status_code == 403


def test_a_plausible_effect_is_of_a_goal(ops: Caller) -> None:
    made = ops.experiment(target_kpis=[{"metric": "vrps", "plausible_to": 0.2}])
    with as_role("owner"):
        assert Experiment.objects.get(pk=made["id"]).targetkpis.get().plausible_to == 0.2
    refused = ops.post(
        "/api/experiments",
        {
            "name": "n",
            "hypothesis": "h",
            "target_kpis": ["vrps", {"metric": "speed", "role": "guardrail", "plausible_to": 0.2}],
        },
    )
    assert errors_of(refused) == [("/target_kpis/1/plausible_to", "invalid")]


def test_on_the_board_the_gate_leads_to_a_form_and_says_who_set_it_aside(ops: Caller, doubted: dict[str, Any]) -> None:
    with as_role("owner"):
        client = Client()
        client.force_login(person("ines", ops.team, "approver"))
    address = f"/experiments/{doubted['key']}/doubt/vrps"
    assert f'href="{address}"' in client.get(f"/experiments/{doubted['key']}").text
    page = client.get(address).text
    assert "its buckets scatter" in page
    assert "Set the doubt aside" in page
    assert "Say how you know that the rows are right" in client.post(address, {"reason": " "}).text

    done = client.post(address, {"reason": WHY}, follow=True).text
    assert "the doubt is set aside" in done
    assert f"set aside by ines: {WHY}" in client.get(address).text
    assert "Doubt its rows again" in client.get(address).text
    client.post(address, {"doubt": "on"})
    assert "Set the doubt aside" in client.get(address).text
