"""The fold against the slow engine, and against itself: piecewise, late, corrected, out of order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gates.evidence import canonical_bytes, evidence, replay
from gates.fold import fold
from tests.gates.naive import Naive
from tests.gates.worlds import world

SEEDS = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS)
def test_skipping_quiet_slots_gives_what_judging_every_slot_gives(seed: int) -> None:
    w = world(seed)

    slow = Naive(w.policy, w.plan, w.rows).evaluations(w.end)
    fast = list(fold(w.policy, w.plan, w.rows, to=w.end).evaluations)

    assert [_plain(e) for e in fast] == [_plain(e) for e in slow]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS)
def test_every_evaluation_replays_from_its_evidence_to_the_same_bytes(seed: int) -> None:
    w = world(seed)
    folded = fold(w.policy, w.plan, w.rows, to=w.end)

    for evaluation in folded.evaluations:
        document = canonical_bytes(evidence(w.policy, w.plan, folded, evaluation.slot))
        assert replay(document) == document


def _plain(evaluation: object) -> object:
    return evaluation
