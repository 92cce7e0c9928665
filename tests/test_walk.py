"""The whole story: an idea becomes an experiment, telemetry flows in, gates propose, a person decides, all is on record."""

import datetime as dt

import pytest
from django.db import connection

from decisioning.access.models import Team
from experiments.models import Experiment
from gates.consistency import differences
from tests.conftest import as_role
from tests.walk import Walk


@pytest.fixture
def walk(transactional_db: None) -> Walk:
    now = dt.datetime.now(dt.UTC)
    with as_role("owner"):
        return Walk(Team.objects.create(key="growth", name="Growth", created_at=now), now=now)


def test_a_new_experiment_has_a_document_gates_and_a_log_without_a_further_step(walk: Walk) -> None:
    walk.create()

    document = walk.document()
    assert (document["status"], document["recommendation"]["action"], document["recommendation"]["code"]) == (
        "running",
        "hold",
        "no_data",
    )
    walk.tick()
    assert {gate["gate"] for gate in walk.document()["gates"]} >= {
        "vrps_uplift",
        "error_rate_guard",
        "density",
        "freshness",
        "srm",
    }
    assert walk.recommendation()["code"] == "no_data"


def test_a_treatment_that_wins_is_proposed_and_scaled_on_a_persons_word(walk: Walk) -> None:
    walk.create()
    walk.send(walk.rows(uplift=0.08))
    walk.tick()

    proposed = walk.recommendation()
    assert (proposed["action"], proposed["code"], proposed["variant"], proposed["state"]) == (
        "scale",
        "wins",
        "treatment",
        "proposed",
    )
    assert proposed["policy"] == {"name": "default", "version": 1}
    decision = walk.answer(evidence_digest=proposed["evidence_digest"], action="accept")
    assert (decision["action"], decision["evidence_digest"]) == ("accept", proposed["evidence_digest"])
    document = walk.document()
    assert (document["status"], document["recommendation"]["state"]) == ("scaled", "answered")
    assert (
        walk.answer(evidence_digest=proposed["evidence_digest"], action="accept", expect=409)["code"]
        == "already_decided"
    )


def test_an_answered_proposal_is_not_asked_again_by_the_slot_that_made_it(walk: Walk) -> None:
    walk.create()
    walk.send(walk.rows(uplift=0.08))
    walk.tick()
    digest = walk.recommendation()["evidence_digest"]
    walk.answer(evidence_digest=digest, action="override", override_to="hold", reason="Wait for the sale to end.")
    walk.post(f"/api/experiments/{walk.key}/evaluate", {}, expect=202)
    walk.tick()

    assert walk.recommendation()["state"] == "answered"
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT count(*), count(answered_at) FROM metadata.recommendations")
        assert cursor.fetchone() == (1, 1)


def test_a_harmful_treatment_is_proposed_for_deletion(walk: Walk) -> None:
    walk.create()
    walk.send(walk.rows(uplift=-0.1))
    walk.tick()
    assert (walk.recommendation()["action"], walk.recommendation()["code"]) == ("delete", "harmful")


def test_new_values_stand_in_the_document_when_the_post_has_answered(walk: Walk) -> None:
    walk.create()
    rows = walk.rows()
    walk.send(rows)
    goal = walk.document()["kpis"][0]
    newest = rows[-4]
    assert goal["metric"] == "vrps"
    assert {v["variant"]: v["value"] for v in goal["values"]}["control"] == pytest.approx(newest["value"])


def test_telemetry_that_dies_after_the_proposal_suspends_it(walk: Walk) -> None:
    walk.create()
    walk.send(walk.rows(uplift=0.08, until=walk.now - dt.timedelta(hours=5)))
    walk.tick()
    shown = walk.recommendation()
    assert shown["state"] != "proposed" or shown["action"] != "scale"
    if shown["action"] == "scale":
        assert (
            walk.answer(evidence_digest=shown["evidence_digest"], action="accept", expect=409)["code"]
            == "recommendation_suspended"
        )


def test_a_correction_takes_the_proposal_back_and_keeps_it_on_record(walk: Walk) -> None:
    walk.create()
    walk.send(walk.rows(uplift=0.08))
    walk.tick()
    before = walk.recommendation()
    walk.send(walk.rows(uplift=0.0))
    walk.tick()

    assert walk.recommendation()["action"] != "scale"
    assert (
        walk.answer(evidence_digest=before["evidence_digest"], action="accept", expect=409)["code"]
        == "recommendation_replaced"
    )
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "SELECT action, superseded_at IS NOT NULL, superseded_because FROM metadata.recommendations ORDER BY id"
        )
        assert cursor.fetchall()[0] == ("scale", True, "evidence_corrected")


def test_rows_sent_in_any_order_and_any_batches_end_in_the_same_state(walk: Walk) -> None:
    walk.create()
    rows = walk.rows(uplift=0.08)
    walk.send(rows[:300])
    walk.tick()
    walk.send(rows[600:])
    walk.tick()
    walk.send(rows[200:700])
    walk.tick()
    walk.tick()
    assert walk.recommendation()["action"] == "scale"
    with as_role("worker"):
        assert differences(Experiment.objects.get()) == []
