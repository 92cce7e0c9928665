"""A candidate policy beside the live one: what flips, what is gained and lost, how much earlier, with whom it agrees."""

from gates.engine.backtest import backtest, figures
from gates.engine.plan import DAY
from tests.gates.histories import DENSITY, GOAL, GUARD, HOUR, START, VALUE, policy
from tests.gates.test_rules import SPEED, Walk, walk

LIVE = policy()
END = START + 60 * HOUR


def test_the_same_policy_changes_nothing() -> None:
    w = walk()
    found = backtest(LIVE, LIVE, w.plan, w.rows, to=END)

    assert found.stretches == ()
    assert (found.variants[0].flip, found.variants[0].gained, found.variants[0].lost) == (False, False, False)
    assert found.variants[0].days_saved == 0.0


def test_a_more_patient_policy_decides_later_by_its_days() -> None:
    w = walk(hours=80)
    patient = policy(min_days=2)
    found = backtest(patient, LIVE, w.plan, w.rows, to=START + 80 * HOUR)

    assert found.variants[0].days_saved == -1.0
    assert [(s.live, s.candidate) for s in found.stretches] == [
        (("hold", "open"), ("hold", "collecting")),
        (("scale", "wins"), ("hold", "collecting")),
        (("scale", "wins"), ("hold", "open")),
    ]


def test_a_policy_that_asks_for_more_flips_a_scale_into_a_delete() -> None:
    w = walk(effect=0.1, units=4000)
    strict = policy({**GOAL, "scale_above": 0.05, "delete_below": 0.3}, GUARD, DENSITY)
    lenient = backtest(LIVE, strict, w.plan, w.rows, to=END)
    found = backtest(
        policy({**GOAL, "scale_above": 0.2, "delete_below": 0.3}, GUARD, DENSITY), LIVE, w.plan, w.rows, to=END
    )

    assert (found.variants[0].flip, found.variants[0].candidate.action) == (True, "delete")  # type: ignore[union-attr]
    assert not lenient.variants[0].lost


def test_what_only_one_of_them_decides_is_gained_or_lost() -> None:
    w = walk(VALUE, SPEED)
    never = policy(min_units=10**9)

    assert backtest(never, LIVE, w.plan, w.rows, to=END).variants[0].lost
    assert backtest(LIVE, never, w.plan, w.rows, to=END).variants[0].gained


def test_answers_are_held_against_both_and_do_not_end_what_is_compared() -> None:
    w = answered(walk())
    found = backtest(policy(min_days=2), LIVE, w.plan, w.rows, to=END)
    answer = found.answers[0]

    assert (answer.person, answer.live, answer.candidate) == ("scale", "scale", "hold")
    assert found.variants[0].candidate is not None
    assert found.variants[0].candidate.slot > answer.at


def test_figures_add_up_over_experiments() -> None:
    w = answered(walk())
    one = backtest(policy(min_days=2), LIVE, w.plan, w.rows, to=END)
    none = backtest(LIVE, policy(min_units=10**9), walk().plan, w.rows, to=END)
    total = figures([one, none])

    assert (total.flips, total.gained, total.lost) == (0, 1, 0)
    assert total.days_saved == -1.0
    assert (total.agreement, total.live_agreement) == (0.0, 1.0)
    assert figures([]).agreement is None


def answered(w: Walk) -> Walk:
    w.answered(35.0, "accept", ("scale", "wins"))
    assert w.plan.answers[0].at > START + DAY
    return w
