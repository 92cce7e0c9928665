"""Evidence holds all a recommendation rests on, and proves it again to the same bytes; changed evidence does not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gates.engine import narration
from gates.engine.evidence import EvidenceRefused, canonical_bytes, digest, evidence, replay
from gates.engine.fold import fold
from gates.engine.policy_checks import parse
from tests.gates.histories import CAP, DENSITY, ERRORS, GOAL, GUARD, HOUR, START, VALUE
from tests.gates.test_rules import SPEED, Walk, walk


def scaled() -> Walk:
    return walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, DENSITY, CAP), hours=40)


def document_of(w: Walk, hour: float | None = None) -> dict[str, Any]:
    folded = w.folded(hour)
    return evidence(w.policy, w.plan, folded, folded.evaluations[-1].slot)


def test_evidence_replays_to_the_same_bytes_and_digest() -> None:
    stored = canonical_bytes(document_of(scaled()))

    assert replay(stored) == stored
    assert digest(replay(stored)) == digest(stored)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest(stored))


def test_evidence_of_a_policy_that_leaves_settings_out_replays_however_their_numbers_were_written() -> None:
    w = scaled()
    w.policy = parse({"gates": [GOAL, GUARD, DENSITY, CAP]}, name="short", version=1)
    document = document_of(w)
    stored = canonical_bytes(document)
    document["policy"]["body"]["planned_units"] = 100_000
    written_otherwise = canonical_bytes(document)
    document["policy"]["body"]["planned_units"] = 100_001
    document["outcome"]["recommendation"]["code"] = "open"

    assert b'"planned_units":100000.0' in stored
    assert replay(stored) == stored
    assert replay(written_otherwise) == written_otherwise != stored
    assert replay(canonical_bytes(document)) != canonical_bytes(document)


def test_evidence_says_policy_plan_slot_outcome_and_when_rows_arrived() -> None:
    document = document_of(scaled())

    assert document["policy"]["version"] == 1
    assert document["policy"]["body"]["persist"] == 4
    assert document["slot"] == "2024-10-05T16:00:00Z"
    assert document["outcome"]["recommendation"]["action"] == "scale"
    watermark, received = document["now"]["fresh"]["value/t1"]
    assert received - watermark == 5 * 60 * 1_000_000
    looks = [step["looks"]["value"] for step in document["steps"] if "value" in step.get("looks", {})]
    assert len(looks[-1]["states"]["t1"]) == 3


def test_readings_are_rounded_to_twelve_digits_and_states_are_exact() -> None:
    w = scaled()
    document = json.loads(canonical_bytes(document_of(w)))
    reading = next(g for g in document["outcome"]["gates"] if g["gate"] == "value_uplift")["reading"]
    state = document["steps"][-1]["looks"]["value"]["states"]["t1"]

    assert all(float(f"{reading[key]:.12g}") == reading[key] for key in ("estimate", "lower", "upper"))
    assert state[1] != float(f"{state[1]:.12g}")


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("a state", lambda d: d["steps"][-1]["looks"]["value"]["states"].update(t1=[40_000, 9.0, 600_000.0])),
        ("the policy", lambda d: d["policy"]["body"].update(persist=40)),
        ("the outcome", lambda d: d["outcome"]["recommendation"].update(action="delete")),
        ("a reason", lambda d: d["outcome"]["recommendation"]["reasons"].append({"code": "told", "text": "Trust me."})),
        ("a watermark", lambda d: d["now"]["fresh"].update({"value/t1": [START, START]})),
        ("the plan", lambda d: d["plan"]["kpis"][0].update(direction="decrease")),
    ],
)
def test_changed_evidence_no_longer_replays_to_itself(where: str, change: Any) -> None:
    document = json.loads(canonical_bytes(document_of(scaled())))
    change(document)
    changed = canonical_bytes(document)

    assert replay(changed) != changed, where


def test_the_evidence_of_a_slot_is_the_same_however_far_the_fold_went() -> None:
    w = scaled()
    early, late = w.folded(33), w.folded(40)
    proposed = next(e.slot for e in early.evaluations if e.recommendation.action == "scale")

    assert canonical_bytes(evidence(w.policy, w.plan, early, proposed)) == canonical_bytes(
        evidence(w.policy, w.plan, late, proposed)
    )


def test_a_fold_that_went_on_from_a_state_has_not_all_the_evidence() -> None:
    w = scaled()
    state = w.folded(30).checkpoint
    on = fold(w.policy, w.plan, w.rows, to=START + 36 * HOUR, checkpoint=state)

    with pytest.raises(EvidenceRefused, match="fold again without it"):
        evidence(w.policy, w.plan, on, on.evaluations[-1].slot)
    with pytest.raises(EvidenceRefused, match="no evaluation"):
        evidence(w.policy, w.plan, w.folded(), START + 7)


@pytest.mark.parametrize("bad", [b"", b"{}", b"[]", b'{"format": 99}', b"\xff", b'{"format":1,"policy":{}}'])
def test_what_is_no_evidence_is_refused(bad: bytes) -> None:
    with pytest.raises(EvidenceRefused):
        replay(bad)


def test_every_number_of_the_rationale_is_in_the_evidence_as_a_gates_reading() -> None:
    w = scaled()
    document = document_of(w)
    said = narration.rationale(document["outcome"]["recommendation"]["reasons"], narration.Reader())
    sentence = next(s for s in said if s.startswith("value:"))
    reading = next(g for g in document["outcome"]["gates"] if g["gate"] == "value_uplift")["reading"]
    percents = [float(p.replace("−", "-")) / 100 for p in re.findall(r"([+−][\d.]+)%", sentence)]

    known = [reading[key] for key in ("estimate", "lower", "upper", "running_lower", "running_upper")]
    assert percents
    assert all(any(abs(p - value) < 6e-4 for value in known) for p in percents)
