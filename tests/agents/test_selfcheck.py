"""What the self-check measures and how it judges itself; the walk itself is tried in test_against_portal."""

from datetime import UTC, datetime

import pytest

from decisioning.agents.selfcheck import POLICY, TRIALS, Outcome, Trial, arm_of, asked_rows, rows_of
from gates.engine.policy_checks import lint

SAME, SMALLER, LARGER = TRIALS


def test_its_policy_is_one_that_may_be_saved() -> None:
    assert lint(POLICY, None) == []


def test_a_request_is_put_in_an_arm_by_its_id_alone_half_in_each() -> None:
    ids = [f"request-{number}" for number in range(4_000)]
    treated = sum(arm_of("selfcheck-same-1", each) == "treatment" for each in ids)

    assert 1_880 < treated < 2_120
    assert [arm_of("selfcheck-same-1", each) for each in ids[:50]] == [
        arm_of("selfcheck-same-1", each) for each in ids[:50]
    ]


def test_the_arms_ask_for_what_the_truth_says() -> None:
    ids = [f"request-{number}" for number in range(2_000)]
    means = {}
    for trial in TRIALS:
        asked: dict[str, list[int]] = {"control": [], "treatment": []}
        for each in ids:
            asked[arm_of(trial.name, each)].append(asked_rows(trial, trial.name, each))
        assert all(len(set(rows)) > 10 for rows in asked.values())  # without variance no gate could read it
        means[trial.name] = [sum(rows) / len(rows) for rows in asked.values()]

    assert means["same"][1] == pytest.approx(means["same"][0], rel=0.03)
    assert means["smaller"][1] < means["smaller"][0] / 8
    assert means["larger"][1] > means["larger"][0] * 8


def test_a_bucket_is_mean_units_and_sample_variance_of_what_was_measured() -> None:
    rows = rows_of("control", [(10.0, 400), (14.0, 600)], datetime(2026, 11, 24, 6, tzinfo=UTC))

    assert [(row["metric"], row["value"], row["n"], row["variance"]) for row in rows] == [
        ("selfcheck_latency_ms", 12.0, 2, 8.0),
        ("selfcheck_bytes", 500.0, 2, 20_000.0),
    ]


@pytest.mark.parametrize(
    ("trial", "action", "code", "right"),
    [
        (SAME, "hold", "open", True),
        (SAME, "delete", "not_worth_it", True),
        (SAME, "review", "undecided", True),
        (SAME, "delete", "harmful", False),
        (SAME, "hold", "stale", False),
        (SAME, "scale", "wins", False),
        (SMALLER, "scale", "wins", True),
        (SMALLER, "hold", "open", False),
        (SMALLER, "review", "too_small", False),
        (LARGER, "delete", "harm", True),
        (LARGER, "delete", "harmful", True),
        (LARGER, "hold", "stale", False),
    ],
)
def test_only_the_truth_counts_as_right(trial: Trial, action: str, code: str, right: bool) -> None:
    outcome = Outcome(trial, "k", action=action, code=code, requests={"control": 9, "treatment": 9})

    assert outcome.right is right


def test_a_hold_because_nothing_was_measured_is_not_right() -> None:
    assert not Outcome(SAME, "k", action="hold", code="no_data").right
