"""Rows that cannot be as they say: doubted, told with the cause, set aside by a person; and what is too good to be true."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.engine.compiled import compile_plan
from gates.engine.evidence import canonical_bytes, evidence, replay
from gates.engine.fold import fold
from gates.engine.plan import Kpi
from gates.engine.statistics.scatter import NO_BUCKETS, added, added_many, chi_square_end, told
from gates.engine.verdicts import split_log_e
from tests.benchmarks import doubt_quality
from tests.examples import examples
from tests.gates.histories import GUARD, HOUR, START, VALUE, plan
from tests.gates.test_rules import SPEED, Walk, gate, walk

SEEN = Kpi("seen", "exposure", "mean", "increase", expected_every_s=3600, freshness_target_s=3600)


def as_of(w: Walk, hour: float) -> tuple[tuple[str, str, str], str]:
    """What is recommended, and what the gate says."""
    verdict = gate(w.at(hour), "doubt", None).verdict
    return w.said(hour), verdict


def causes(w: Walk, hour: float) -> list[tuple[str, str]]:
    reasons = gate(w.at(hour), "doubt", None).reasons
    return [(str(r["metric"]), str(r["cause"])) for r in reasons if r["code"] == "rows_doubted"]


def lied(w: Walk, metric: str = "value") -> Walk:
    """A tenth of the deviation, sent as the variance of each row."""
    for variant in ("control", "t1"):
        w.spoil(metric, variant, 0, variance=lambda i: 0.16)
    return w


def test_honest_rows_are_not_doubted_and_win() -> None:
    assert as_of(walk(hours=80), 80) == (("scale", "wins", "proposed"), "pass")


def test_rows_with_too_small_a_variance_hold_from_the_first_whole_day_on_and_say_what_to_do() -> None:
    w = lied(walk(hours=50, units=100))

    assert w.said(24)[:2] == ("hold", "collecting"), "until then nothing can be told"
    assert as_of(w, 26) == (("hold", "doubtful", "open"), "inconclusive")
    (blocker,) = w.blockers(26)
    assert blocker.startswith("value of t1: its buckets scatter ")
    assert "more beside control than their variance allows." in blocker
    assert blocker.endswith("If the rows are right, set the doubt aside for this KPI, with the reason.")


def test_rows_of_a_guard_are_doubted_too() -> None:
    w = lied(walk(hours=50, units=100), "speed")

    assert (w.said(50)[1], causes(w, 50)[0][0]) == ("doubtful", "speed")


def test_once_time_is_over_what_is_doubted_is_for_a_person() -> None:
    w = lied(walk(hours=100, units=100, max_days=3))

    assert w.said(100) == ("review", "undecided", "proposed")
    assert any("scatter" in blocker for blocker in w.blockers(100))


def test_a_scale_that_was_proposed_is_suspended_while_its_rows_are_doubted_and_stands_again_when_they_are_mended() -> (
    None
):
    w = walk(hours=80, min_days=1)
    honest = dict(w.rows)
    assert w.said(40) == ("scale", "wins", "proposed")

    w.spoil("value", "t1", 60, value=lambda i: 30.0 if i == 61 else 11.0)
    assert as_of(w, 80) == (("scale", "wins", "suspended"), "inconclusive")
    assert causes(w, 80) == [("value", "bucket")]
    (why,) = w.blockers(80)
    assert "One bucket, that of 2024-10-06T14:00:00Z, holds" in why, "the hour is named"

    w.rows = honest
    assert as_of(w, 80) == (("scale", "wins", "proposed"), "pass")


def test_harm_is_proposed_all_the_same_and_says_that_its_rows_are_doubted() -> None:
    w = lied(walk(hours=50, units=100, effects={("speed", "t1"): -0.2}), "speed")

    assert w.said(50) == ("delete", "harm", "proposed")
    assert any("scatter" in line for line in w.rationale(50))


def test_scatter_that_is_too_small_is_told_and_holds_nothing_up() -> None:
    w = walk(hours=60)
    for variant, mean in (("control", 10.0), ("t1", 11.0)):
        w.spoil("value", variant, 0, value=lambda i, mean=mean: mean)  # type: ignore[misc]

    assert as_of(w, 60) == (("scale", "wins", "proposed"), "pass")
    assert "scatter less than their variance says" in w.reason("doubt", None)


def test_running_totals_are_told_from_it_because_n_only_grows() -> None:
    w = walk(hours=60)
    for variant in ("control", "t1"):
        series = w.rows["value", variant]
        total = np.cumsum(np.array(series.n))
        mean = np.cumsum(np.array(series.n) * np.array(series.value)) / total
        w.spoil("value", variant, 0, n=lambda i, of=total: int(of[i]), value=lambda i, of=mean: float(of[i]))  # type: ignore[misc]

    assert as_of(w, 60) == (("hold", "doubtful", "open"), "inconclusive")
    assert causes(w, 60) == [("value", "totals")]
    assert "set temporality cumulative" in w.blockers(60)[0]


def test_cumulative_rows_are_not_asked() -> None:
    cumulative = msgspec.structs.replace(VALUE, temporality="cumulative")
    w = walk(cumulative, SPEED, hours=40)

    assert gate(w.at(40), "doubt", None).verdict == "pass"


def set_aside(w: Walk, since: float, until: float | None = None) -> None:
    span = START + int(since * HOUR), None if until is None else START + int(until * HOUR), "Checked against the till."
    kpis = [msgspec.structs.replace(kpi, trusted=(span,)) if kpi.metric == "value" else kpi for kpi in w.plan.kpis]
    w.plan = msgspec.structs.replace(w.plan, kpis=tuple(kpis))


def test_a_person_may_set_it_aside_from_then_on_and_every_rationale_says_so() -> None:
    w = lied(walk(hours=80, units=100))
    set_aside(w, 40.5)

    assert as_of(w, 40) == (("hold", "doubtful", "open"), "inconclusive"), "the past stays as it was judged"
    assert w.said(41)[1] == "open"
    assert as_of(w, 80) == (("scale", "wins", "proposed"), "pass")
    said = "Doubt in the rows of value is set aside since 2024-10-05T16:30:00Z: Checked against the till."
    assert said in w.rationale(80)
    assert said in w.reason("doubt", None)
    assert not any("set aside since" in line for line in w.rationale(40))


def test_what_was_set_aside_can_be_doubted_again() -> None:
    w = lied(walk(hours=80, units=100))
    set_aside(w, 30.5, until=60.5)

    assert w.said(60) == ("scale", "wins", "proposed")
    assert w.said(62) == ("scale", "wins", "suspended")


def test_folding_on_over_a_word_of_a_person_gives_what_a_rebuild_gives_and_its_evidence_replays() -> None:
    w = lied(walk(hours=80, units=100))
    before = w.folded(40)
    set_aside(w, 40.5, until=70.5)
    onward = fold(w.policy, w.plan, w.rows, to=START + 80 * HOUR, checkpoint=before.checkpoint)
    whole = w.folded(80)

    assert onward.checkpoint.body == whole.checkpoint.body
    document = canonical_bytes(evidence(w.policy, w.plan, whole, whole.evaluations[-1].slot))
    assert replay(document) == document


def test_a_goal_with_more_units_than_were_exposed_is_doubted() -> None:
    w = walk(msgspec.structs.replace(VALUE, counts_assignment=True), SPEED, SEEN, hours=60)
    for variant in ("control", "t1"):
        n = w.rows["value", variant].n
        w.spoil("seen", variant, 0, n=lambda i, n=n: int((n[i] or 0) * (1.0 if i < 12 else 0.85)))  # type: ignore[misc]

    assert as_of(w, 30) == (("hold", "doubtful", "open"), "inconclusive")
    assert "units where" in w.blockers(30)[0]
    assert [b.partition(":")[0].split(" has ")[0] for b in w.blockers(30)] == ["value of control", "value of t1"]


def test_as_many_units_as_were_exposed_are_not() -> None:
    w = walk(VALUE, SPEED, SEEN, hours=60)
    for variant in ("control", "t1"):
        n = w.rows["value", variant].n
        w.spoil("seen", variant, 0, n=lambda i, n=n: n[i])  # type: ignore[misc]

    assert as_of(w, 60) == (("scale", "wins", "proposed"), "pass")


# Too good to be true -----------------------------------------------------------------------------------------------------


def test_a_goal_proved_beyond_what_is_believed_is_reviewed_in_place_of_scaled() -> None:
    w = walk(hours=60, effect=0.99, doubt_above=0.5)

    assert w.said() == ("review", "implausible", "proposed")
    assert w.rationale()[0].startswith("value of t1 is proved beyond +9")
    assert "scale it by an override" in w.rationale()[0]


def test_a_policy_of_before_believes_anything() -> None:
    assert walk(hours=60, effect=0.99).said() == ("scale", "wins", "proposed")


def test_a_kpi_says_itself_what_is_believed_of_it() -> None:
    believing = msgspec.structs.replace(VALUE, plausible_to=2.0)
    strict = msgspec.structs.replace(VALUE, plausible_to=0.05)

    assert walk(believing, SPEED, hours=60, effect=0.99, doubt_above=0.5).said()[1] == "wins"
    assert walk(strict, SPEED, hours=60, effect=0.1).said()[1] == "implausible"


def test_of_a_difference_only_the_kpi_says_it() -> None:
    difference = {"name": "gain", "kind": "uplift", "for": "goal", "effect": "difference", "delete_below": "plan"}
    w = walk(hours=60, effect=0.99, gates=(difference, GUARD), doubt_above=0.5)
    assert w.said()[1] == "wins"

    strict = msgspec.structs.replace(VALUE, plausible_to=5.0)
    assert walk(strict, SPEED, hours=60, effect=0.99, gates=(difference, GUARD)).said()[1] == "implausible"


# A split with a tolerance ------------------------------------------------------------------------------------------------


def uneven(tolerance: float, n: tuple[int, int]) -> Walk:
    w = walk(hours=60, units=50_000, srm_tolerance=tolerance)
    for metric in ("value", "speed"):
        for variant, units in zip(("control", "t1"), n, strict=True):
            w.spoil(metric, variant, 0, n=lambda i, units=units: units)  # type: ignore[misc]
    return w


def test_an_imbalance_that_is_real_and_too_small_to_matter_is_a_line_and_no_alarm() -> None:
    w = uneven(0.001, (150_240, 149_760))

    assert w.said()[:2] == ("scale", "wins")
    assert "nearly as planned: control 50.080% : t1 49.920% of 17,700,000 units" in w.reason("srm", None)
    assert "the policy tolerates 0.1 points" in w.reason("srm", None)


def test_without_a_tolerance_it_is_an_alarm_as_before() -> None:
    assert uneven(0.0, (150_240, 149_760)).said() == ("review", "invalid", "proposed")


def test_one_percent_of_an_arm_that_is_lost_is_an_alarm_within_two_weeks() -> None:
    w = walk(srm_tolerance=0.001)

    assert split_log_e(compile_plan(w.policy, plan()), {"control": 14 * 100_500, "t1": 14 * 99_500}) > np.log(1000)


# The sums ----------------------------------------------------------------------------------------------------------------


def buckets(draw: random.Random, count: int, *, ratio: bool) -> list[list[tuple[float, ...]]]:
    def one() -> tuple[float, ...]:
        n = draw.choice([0, 5, 9, 10, 1000]) if draw.random() < 0.3 else draw.randrange(80, 120)
        pair = (draw.random() + 0.5, draw.random() * 10, draw.gauss(0, 1)) if ratio else ()
        return (n, draw.gauss(3, 1), draw.random() * 100, *pair)

    return [[one(), one()] for _ in range(count)]


@examples(40)
@given(st.integers(0, 2**32), st.integers(0, 120), st.booleans())
def test_many_buckets_at_once_give_the_same_bits_as_one_after_the_other(seed: int, count: int, ratio: bool) -> None:
    draw = random.Random(seed)
    rows, cut = buckets(draw, count, ratio=ratio), draw.randrange(count + 1)
    upto = sorted(draw.sample(range(cut, count + 1), min(3, count + 1 - cut)))
    sums, first, each = NO_BUCKETS, NO_BUCKETS, []
    for i, (c, t) in enumerate(rows):
        first = sums if i == cut else first
        each.append(sums)
        sums = added(sums, 1000 + i, c, t)
    each.append(sums)
    first = sums if cut == count else first
    arms = [
        [
            np.array([row[arm][j] for row in rows[cut:]], dtype=np.float64 if j else np.int64)
            for j in range(6 if ratio else 3)
        ]
        for arm in (0, 1)
    ]
    at = np.arange(1000 + cut, 1000 + count)

    found, at_ends = added_many(first, at, arms[0], arms[1], [end - cut for end in upto])

    assert msgspec.msgpack.encode(found) == msgspec.msgpack.encode(sums)
    assert [told(of, ratio=ratio) for of in at_ends] == [told(each[end], ratio=ratio) for end in upto]


@pytest.mark.parametrize(
    ("k", "z", "quantile"), [(15.333, 3.719, 46.1), (100, 3.719, 161.3), (15.333, -3.719, 2.1), (100, -3.719, 54.1)]
)
def test_the_ends_of_chi_square_are_near_the_exact_ones(k: float, z: float, quantile: float) -> None:
    assert chi_square_end(k, z) == pytest.approx(quantile, rel=0.15)


@pytest.mark.parametrize(
    "name", ["days and weekends, +10%", "level swings by 14%, 100,000 units", "daily rows of 100,000, 90 days"]
)
def test_honest_worlds_are_hardly_ever_doubted(name: str) -> None:
    assert doubt_quality.honest(name, 40, seed=3) == 0


@pytest.mark.parametrize("name", doubt_quality.FAULTS)
def test_rows_sent_wrongly_are_doubted_before_anything_is_proposed_and_told_by_their_cause(name: str) -> None:
    _, wanted, _, _ = doubt_quality.FAULTS[name]
    caught, named = doubt_quality.caught(name, 40, seed=3)

    assert caught >= wanted - 0.05
    assert named >= 0.8
