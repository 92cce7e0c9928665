"""Small versions of `tests.benchmarks.gate_quality`: how often the gates are right, and that the arrays there are the engine."""

from __future__ import annotations

import pytest

from tests.benchmarks.gate_quality import EFFECTS, SAME, agreement, decisions, false_decisions, figures


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_decision_is_rarely_wrong(effect: float) -> None:
    found = figures(effect, decisions(effect, 250, seed=11))

    assert found.wrong <= 0.05
    assert found.opposite <= 0.02
    assert found.undecided < 0.5
    if effect not in (0.0, 0.025, 0.05):
        assert found.correct >= 0.9
        assert found.median_days <= 14


@pytest.mark.parametrize("name", SAME)
def test_no_effect_is_rarely_decided_however_often_one_looks(name: str) -> None:
    ours, theirs = false_decisions(name, 60, seed=5)

    assert ours <= 0.05
    assert theirs >= 0.25


@pytest.mark.parametrize("effect", [-0.05, 0.025, 0.1])
def test_the_arrays_of_the_benchmark_propose_what_the_engine_proposes(effect: float) -> None:
    assert [pair for pair in agreement(effect, 2, seed=3) if pair[0] != pair[1]] == []
