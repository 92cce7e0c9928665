"""What an installation has on record from before the rules were mended: its evidence still proves itself, its states are told anew."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from gates.engine.checkpoint import Checkpoint, CheckpointOutdated
from gates.engine.compiled import REVISION
from gates.engine.evidence import EvidenceRefused, canonical_bytes, evidence, replay
from gates.engine.fold import fold
from tests.gates.histories import HOUR, START
from tests.gates.test_rules import walk

RECORDED = Path(__file__).parent / "evidence"
DOCUMENTS = sorted(RECORDED.glob("*.json.z"))
OF_REVISION_2 = sorted((RECORDED / "revision_2").glob("*.json.z"))
IN_SENTENCES = sorted((RECORDED / "sentences").glob("*.json.z"))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name.removesuffix(".json.z"))
def test_evidence_made_by_the_first_rules_still_replays_to_the_same_bytes(path: Path) -> None:
    recorded = zlib.decompress(path.read_bytes())

    assert json.loads(recorded)["format"] == 1
    assert replay(recorded) == recorded


@pytest.mark.parametrize("path", IN_SENTENCES, ids=lambda path: path.name.removesuffix(".json.z"))
def test_evidence_that_holds_sentences_still_replays_to_the_same_bytes_whatever_the_words_are_now(path: Path) -> None:
    recorded = zlib.decompress(path.read_bytes())

    assert json.loads(recorded)["format"] == 2
    assert replay(recorded) == recorded


@pytest.mark.parametrize("path", OF_REVISION_2, ids=lambda path: path.name.removesuffix(".json.z"))
def test_evidence_of_before_rows_were_doubted_still_replays_to_the_same_bytes(path: Path) -> None:
    recorded = zlib.decompress(path.read_bytes())
    document = json.loads(recorded)

    assert (document["format"], document["rules"]) == (3, 2)
    assert "srm_tolerance" not in document["policy"]["body"]
    assert replay(recorded) == recorded


def test_a_number_that_was_changed_in_evidence_that_holds_sentences_is_found() -> None:
    document = json.loads(zlib.decompress((RECORDED / "sentences" / "scale_wins.json.z").read_bytes()))
    reading = next(gate["reading"] for gate in document["outcome"]["gates"] if gate["reading"])
    reading["estimate"] += 0.01
    changed = canonical_bytes(document)

    assert replay(changed) != changed


def test_evidence_of_a_format_with_sentences_that_has_none_is_refused() -> None:
    document = json.loads(zlib.decompress((RECORDED / "sentences" / "scale_wins.json.z").read_bytes()))
    del document["outcome"]["recommendation"]["rationale"]

    with pytest.raises(EvidenceRefused, match="rationale"):
        replay(canonical_bytes(document))


def test_evidence_names_the_revision_of_the_rules_and_is_refused_by_a_version_that_does_not_know_them() -> None:
    w = walk(hours=12)
    folded = w.folded()
    document = evidence(w.policy, w.plan, folded, folded.evaluations[-1].slot)

    assert document["rules"] == REVISION == 3
    with pytest.raises(EvidenceRefused, match="revision 4"):
        replay(canonical_bytes({**document, "rules": 4}))


def test_a_state_of_the_first_rules_is_mended_and_has_to_be_told_anew() -> None:
    w = walk(hours=24, effects={("speed", "t1"): -0.2})
    recorded = Checkpoint.from_bytes(zlib.decompress((RECORDED / "state_of_revision_1.z").read_bytes()))

    assert recorded.slot == START + 24 * HOUR
    assert (recorded.revision, recorded.is_mended) == (1, True)
    assert not recorded.fits(w.policy, w.plan)
    with pytest.raises(CheckpointOutdated):
        fold(w.policy, w.plan, w.rows, to=START + 24 * HOUR, checkpoint=recorded)
    assert not w.folded().checkpoint.is_mended
    assert w.folded().checkpoint.fits(w.policy, w.plan)
