"""docs/gates.md sections 3 and 5, rule by rule: what is recommended, when, how long it stands, and what takes it away."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest

from gates.engine.checkpoint import Checkpoint
from gates.engine.fold import FoldResult, fold
from gates.engine.narration import Called, Reader, blockers, rationale, sentence
from gates.engine.plan import DAY, Answer, Kpi, Plan, Target, from_us
from gates.engine.policy import Policy
from gates.engine.reasons import blocking
from gates.engine.results import Evaluation, GateState, Recommendation
from gates.engine.series import Series, SeriesKey
from tests.gates.histories import CAP, DENSITY, ERRORS, GOAL, GUARD, HOUR, START, VALUE, plan, policy, rows_of, without

SPEED = Kpi("speed", "guardrail", "mean", "increase", expected_every_s=3600, freshness_target_s=3600, max_harm=0.05)
COUNTED = Kpi("orders", "goal", "mean", "increase", "cumulative", expected_every_s=3600, freshness_target_s=3600)


@dataclass
class Walk:
    """An experiment with hourly rows that may be spoilt before it is judged."""

    plan: Plan
    policy: Policy = field(default_factory=policy)
    hours: int = 60
    effect: float = 0.1
    effects: dict[SeriesKey, float] = field(default_factory=dict)
    units: int = 1000
    seed: int = 1
    rows: dict[SeriesKey, Series] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = rows_of(
            self.plan, hours=self.hours, effect=self.effect, effects=self.effects, units=self.units, seed=self.seed
        )

    def folded(self, hour: float | None = None) -> FoldResult:
        return fold(self.policy, self.plan, self.rows, to=START + int((self.hours if hour is None else hour) * HOUR))

    def at(self, hour: float | None = None) -> Evaluation:
        return self.folded(hour).evaluations[-1]

    def recommended(self, hour: float | None = None) -> Recommendation:
        return self.at(hour).recommendation

    def rationale(self, hour: float | None = None) -> list[str]:
        return rationale(self.recommended(hour).reasons, self.reader)

    def reason(self, name: str, variant: str | None = "t1") -> str:
        return " ".join(sentence(reason, self.reader) for reason in gate(self.at(), name, variant).reasons)

    def blockers(self, hour: float | None = None) -> list[str]:
        return blockers(self.recommended(hour).reasons, self.reader)

    @property
    def reader(self) -> Reader:
        return Reader(metrics={kpi.metric: Called(kpi.name, kpi.unit) for kpi in self.plan.kpis})

    def said(self, hour: float | None = None) -> tuple[str, str, str]:
        r = self.recommended(hour)
        return r.action, r.code, r.state

    def spoil(self, metric: str, variant: str, from_hour: float, **columns: Callable[[int], Any]) -> None:
        """Rewrite cells of the rows after an hour: column -> function of the row's position."""
        series = self.rows[metric, variant]
        cells = {name: list(getattr(series, name)) for name in columns}
        for name, cell in columns.items():
            cells[name] = [
                cell(i) if ts > START + from_hour * HOUR else old
                for i, (ts, old) in enumerate(zip(series.ts, cells[name], strict=True))
            ]
        self.rows[metric, variant] = replace(series, **cells)

    def stop(self, metric: str, variant: str, at_hour: float) -> None:
        series = self.rows[metric, variant]
        self.rows[metric, variant] = without(series, lambda i: series.ts[i] <= START + at_hour * HOUR)

    def answered(
        self, hour: float, action: str, of: tuple[str, str], variant: str | None = "t1", to: str | None = None
    ) -> None:
        answer = Answer(START + int(hour * HOUR), action, of, variant, to)  # type: ignore[arg-type]
        self.plan = msgspec.structs.replace(self.plan, answers=(*self.plan.answers, answer))


def walk(
    *kpis: Kpi, treatments: int = 1, gates: tuple[dict[str, Any], ...] = (GOAL, GUARD, DENSITY), **given: Any
) -> Walk:
    settings = {key: given.pop(key) for key in list(given) if key not in Walk.__dataclass_fields__}
    facts = {key: settings.pop(key) for key in ("ended_at", "pauses", "created_at") if key in settings}
    return Walk(plan(*(kpis or (VALUE, SPEED)), treatments=treatments, **facts), policy(*gates, **settings), **given)


def gate(evaluation: Evaluation, name: str, variant: str | None = "t1") -> GateState:
    return next(g for g in evaluation.gates if g.gate == name and g.variant == variant)


# Rows 6 to 8: what goals and guards decide


def test_a_winner_with_harmless_guards_is_scaled() -> None:
    w = walk()

    assert w.said() == ("scale", "wins", "proposed")
    assert w.recommended().variant == "t1"


def test_an_experiment_can_be_read_from_its_first_look_that_lacks_nothing_on_and_that_look_stays() -> None:
    w = walk(min_days=1)
    first = next(hour for hour in range(1, 60) if w.said(hour)[1] not in ("no_data", "stale", "collecting"))
    w.stop("value", "t1", 40)

    assert 24 < first < 30
    assert w.folded(first - 1).first_readable_at is None
    assert w.folded(first).first_readable_at == START + first * HOUR
    assert (w.said(59)[1], w.folded(59).first_readable_at) == ("wins", START + first * HOUR)
    assert w.said(59)[2] == "suspended", "it went stale since"


def test_a_proved_loss_is_deleted_as_harmful() -> None:
    assert walk(effect=-0.1).said() == ("delete", "harmful", "proposed")


def test_no_effect_is_deleted_as_not_worth_it() -> None:
    assert walk(effect=0.002, units=4000).said() == ("delete", "not_worth_it", "proposed")


def test_a_real_effect_below_what_is_worth_it_is_reviewed_as_too_small() -> None:
    assert walk(effect=0.01, units=20_000).said() == ("review", "too_small", "proposed")


def test_a_better_goal_waits_while_a_guard_is_not_proved_harmless() -> None:
    w = walk(VALUE, msgspec.structs.replace(SPEED, max_harm=0.001))

    assert w.said() == ("hold", "open", "open")
    assert gate(w.at(), "speed_guard").verdict == "inconclusive"


def test_a_decrease_that_is_wanted_counts_as_better() -> None:
    down = msgspec.structs.replace(VALUE, direction="decrease")

    assert walk(down, SPEED, effect=-0.1).said() == ("scale", "wins", "proposed")
    assert walk(down, SPEED, effect=0.1).said() == ("delete", "harmful", "proposed")


def test_require_all_needs_every_goal_and_require_any_one() -> None:
    second = Kpi("orders", "goal", "mean", "increase", expected_every_s=3600, freshness_target_s=3600)
    effects = {("orders", "t1"): 0.0}

    assert walk(VALUE, second, effects=effects, units=4000).said()[0] == "delete"
    assert walk(VALUE, second, effects=effects, units=4000, require="any").said()[:2] == ("scale", "wins")


def test_several_goals_under_any_and_several_treatments_share_alpha() -> None:
    second = Kpi("orders", "goal", "mean", "increase", expected_every_s=3600, freshness_target_s=3600)

    one = gate(walk().at(), "value_uplift").extra["alpha"]
    three = gate(walk(treatments=3, hours=12).at(), "value_uplift").extra["alpha"]
    both = gate(walk(VALUE, second, require="any", hours=12).at(), "value_uplift").extra["alpha"]
    guard = gate(walk(VALUE, SPEED, treatments=3, hours=12).at(), "speed_guard").extra["alpha"]

    assert (one, round(three, 6), both, guard) == (0.05, 0.016667, 0.025, 0.05)


# Rows 1 to 3: at once


def test_a_threshold_broken_as_often_as_it_says_deletes_within_a_slot() -> None:
    w = walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, CAP), hours=12)
    w.spoil("error_rate", "t1", 9, value=lambda _: 0.2)

    assert w.said(10.5) == ("hold", "collecting", "open")
    assert gate(w.at(10.5), "cap").verdict == "inconclusive"
    assert w.said(11.0) == ("delete", "unsafe", "proposed")
    assert "0.2 at" in w.rationale(11)[0]


def test_controls_broken_threshold_deletes_only_when_the_gate_is_the_experiments() -> None:
    for scope, action in (("variant", "hold"), ("experiment", "delete")):
        w = walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, {**CAP, "scope": scope}), hours=12)
        w.spoil("error_rate", "control", 5, value=lambda _: 0.2)
        assert w.said()[0] == action


def test_an_old_broken_threshold_is_no_reason_to_delete() -> None:
    w = walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, CAP), hours=12)
    w.spoil("error_rate", "t1", 2, value=lambda _: 0.2)
    w.plan = msgspec.structs.replace(w.plan, created_at=START)
    w.rows["error_rate", "t1"] = replace(w.rows["error_rate", "t1"], first_received_at=[START + 20 * HOUR] * 12)

    assert w.said()[:2] == ("hold", "no_data")


def test_a_guard_that_fails_at_two_looks_with_newer_rows_deletes_before_min_days() -> None:
    w = walk(hours=20, effects={("speed", "t1"): -0.2})
    found = w.folded().evaluations

    first = next(e for e in found if gate(e, "speed_guard").verdict == "fail")
    deleted = next(e for e in found if e.recommendation.action == "delete")
    assert deleted.recommendation.code == "harm"
    assert deleted.slot - first.slot == HOUR
    assert deleted.slot < START + DAY


def test_a_guards_failing_look_repeated_without_newer_rows_is_one_look() -> None:
    w = walk(hours=20, effects={("speed", "t1"): -0.2})
    first = next(e for e in w.folded().evaluations if gate(e, "speed_guard").verdict == "fail")
    hour = (first.slot - START) / HOUR
    for variant in ("control", "t1"):
        w.stop("speed", variant, hour - 0.5)

    assert w.said(hour + 1) == ("hold", "collecting", "open")


def test_at_the_last_look_a_guard_that_fails_once_deletes() -> None:
    w = walk(hours=20, effects={("speed", "t1"): -0.2})
    first = next(e.slot for e in w.folded().evaluations if gate(e, "speed_guard").verdict == "fail")
    w.plan = msgspec.structs.replace(w.plan, ended_at=first - HOUR)

    assert w.said() == ("delete", "harm", "proposed")
    assert w.at().slot == first - HOUR // 2, "half an hour after the end, on the rows that the failing look read"


def test_a_split_that_is_not_the_planned_one_is_reviewed_as_invalid_and_stays_so() -> None:
    w = walk(hours=40)
    w.spoil("value", "t1", 10, n=lambda i: 600)
    w.spoil("value", "t1", 20, n=lambda i: 1900)

    assert w.said(15) == ("review", "invalid", "proposed")
    assert w.said(40) == ("review", "invalid", "proposed")
    assert "did not arrive in the planned split" in w.rationale()[0]


def test_a_split_alarm_names_which_series_since_when_and_with_what_counts() -> None:
    w = walk(hours=40)
    w.spoil("value", "t1", 10, n=lambda i: 600)
    w.spoil("speed", "t1", 20, n=lambda i: 1900)
    (of_value, of_speed) = (s for s in w.rationale() if "planned split" in s)
    alarms = gate(w.at(), "srm", None).extra

    assert of_value.startswith(
        "Units of value did not arrive in the planned split: control 51.62% : t1 48.38% of 23,235 units in place of 50% : 50%. "
    )
    assert f"since {alarms['value']['since']}" in of_value
    assert alarms["value"]["since"] < alarms["speed"]["since"] < "2024-10-05T23"
    assert "Units of speed" in of_speed
    reason = w.reason("srm", None)
    assert all(f"since {alarms[metric]['since']}" in reason for metric in ("value", "speed"))
    assert "counts_assignment" not in reason + of_value, "a goal has lost users"


def test_a_split_alarm_of_a_guard_alone_says_how_to_say_that_its_n_counts_some_users_only() -> None:
    w = walk(hours=40)
    w.spoil("speed", "control", 0, n=always(600))
    w.spoil("speed", "t1", 0, n=always(660))
    why = w.rationale()[0]

    assert w.said() == ("review", "invalid", "proposed")
    assert "n of value came as planned (control" in why
    assert why.endswith("set counts_assignment: false on speed.")
    assert why == w.reason("srm", None)
    w.plan = msgspec.structs.replace(w.plan, kpis=(VALUE, msgspec.structs.replace(SPEED, counts_assignment=False)))
    assert w.said()[0] == "scale"


def test_n_that_does_not_count_assignment_units_is_not_checked_for_its_split() -> None:
    loose = msgspec.structs.replace(VALUE, counts_assignment=False)
    w = walk(loose, SPEED)
    w.spoil("value", "t1", 0, n=lambda i: 1500)

    assert w.said()[0] == "scale"


def test_planned_weights_are_what_the_split_is_checked_against() -> None:
    w = walk(hours=30)
    w.spoil("value", "t1", 0, n=lambda i: 2000 + i % 7)
    w.spoil("speed", "t1", 0, n=lambda i: 2000 - i % 5)
    control, t1 = w.plan.variants
    w.plan = msgspec.structs.replace(w.plan, variants=(control, msgspec.structs.replace(t1, weight=2.0)))

    assert gate(w.at(), "srm", None).verdict == "pass"


def test_a_goal_that_contradicts_itself_beyond_its_bound_is_invalid() -> None:
    w = walk(hours=80, units=3000, effect=0.2, min_days=0)
    w.spoil("value", "t1", 10, value=lambda i: 7.0)

    assert gate(w.at(), "value_uplift").verdict == "invalid"
    assert w.said() == ("review", "invalid", "proposed")


def test_drift_that_stays_on_one_side_of_the_bound_is_shown_and_stands() -> None:
    w = walk(hours=80, units=3000, effect=0.5, min_days=0)
    w.spoil("value", "t1", 10, value=lambda i: 11.5)
    state = gate(w.at(), "value_uplift")

    assert state.extra["drift"] is True
    assert state.verdict == "pass"


# Rows 4 and 5: what is missing


def test_a_series_without_rows_is_no_data_and_named() -> None:
    w = walk()
    del w.rows["speed", "t1"]

    assert w.said()[:2] == ("hold", "no_data")
    assert w.blockers()[0].startswith("speed of t1 has no row yet")


def test_a_dead_feed_is_stale_named_and_says_how_old_it_is() -> None:
    w = walk()
    w.stop("speed", "control", 40)

    r = w.recommended(45)
    assert (r.action, r.code) == ("hold", "stale") or r.state == "suspended"
    (why,) = blocking(r.reasons)
    assert (why["code"], why["metric"], why["variant"]) == ("stale", "speed", "control")
    six_later = Reader(from_us(START + 46 * HOUR))
    assert "6 h old" in sentence(why, six_later), "as of when somebody reads, not of when it was judged"


def test_staleness_begins_and_ends_on_the_slot() -> None:
    w = walk(hours=10)
    series = w.rows["speed", "t1"]
    w.rows["speed", "t1"] = without(series, lambda i: i not in (5, 6))

    verdicts = {e.slot: gate(e, "freshness", None).verdict for e in w.folded().evaluations}
    assert verdicts[START + 7 * HOUR + 300 * 1_000_000] == "stale"
    assert verdicts[START + 8 * HOUR + 300 * 1_000_000] == "pass"


def test_before_min_days_and_floors_it_collects_and_says_when_it_will_have() -> None:
    w = walk(units=10, min_units=1000)

    r = w.recommended(10)
    assert (r.action, r.code) == ("hold", "collecting")
    assert any("0 of 1 whole days" in blocker for blocker in w.blockers(10))
    assert any("of 1,000 units in the smaller arm" in blocker and "more days" in blocker for blocker in w.blockers(10))


def test_gaps_in_the_buckets_hold_as_collecting() -> None:
    w = walk()
    for variant in ("control", "t1"):
        w.rows["value", variant] = without(w.rows["value", variant], lambda i: i % 4 or i == 59)

    assert w.said()[:2] == ("hold", "collecting")
    assert any("expected buckets of value of control" in blocker for blocker in w.blockers())


def test_a_control_of_zero_is_collecting_not_missing() -> None:
    w = walk()
    w.spoil("value", "control", 0, value=lambda _: 0.0, variance=lambda _: 0.0)

    assert w.said()[:2] == ("hold", "collecting")


def test_a_heavy_tail_too_noisy_for_an_interval_is_collecting() -> None:
    w = walk()
    for variant in ("control", "t1"):
        w.spoil("value", variant, 0, variance=lambda _: 1e6)

    assert w.said()[:2] == ("hold", "collecting")
    assert any("can be trusted" in blocker for blocker in w.blockers())


def test_a_row_without_variance_is_no_data_until_it_is_corrected() -> None:
    w = walk(hours=40)
    good = w.rows["value", "t1"]
    w.spoil("value", "t1", 20, variance=lambda i: None if i == 20 else 16.0)

    assert w.said(40)[:2] == ("hold", "no_data")
    assert any("send it again with its variance" in blocker for blocker in w.blockers(40))
    w.rows["value", "t1"] = good
    assert w.said(40)[:2] == ("scale", "wins")


def test_from_max_days_on_what_is_missing_is_a_persons_to_review() -> None:
    w = walk(hours=110, max_days=4)
    w.stop("speed", "t1", 40)

    assert w.said(95)[0] != "review" or w.said(95)[1] != "undecided"
    late = w.folded(110).evaluations[-1].variants[0]
    assert late.state == "suspended" or late.code == "undecided"


def test_an_open_experiment_is_reviewed_as_undecided_at_max_days() -> None:
    w = walk(VALUE, msgspec.structs.replace(SPEED, max_harm=0.0001), hours=110, max_days=4)

    assert w.said(96) == ("hold", "open", "open")
    assert w.said(101) == ("review", "undecided", "proposed")
    assert "leans up" in w.rationale(101)[0]


def test_undecided_counts_looks_without_newer_rows() -> None:
    w = walk(VALUE, msgspec.structs.replace(SPEED, max_harm=0.0001), hours=110, max_days=4)
    for key in w.rows:
        w.stop(*key, 60)

    assert w.said(101) == ("review", "undecided", "proposed")


# Persistence, latch, suspension, withdrawal


def test_a_winner_is_proposed_when_it_has_held_persist_looks() -> None:
    w = walk()
    found = w.folded().evaluations

    won = next(e.slot for e in found if gate(e, "value_uplift").verdict == "pass")
    proposed = next(e for e in found if e.recommendation.action == "scale")
    assert proposed.slot - won == 3 * HOUR
    assert proposed.recommendation.first_stable_at == proposed.slot - HOUR // 2
    assert proposed.recommendation.knowable_at == proposed.slot


def test_looks_without_newer_rows_do_not_count_towards_persistence() -> None:
    slow = msgspec.structs.replace(VALUE, expected_every_s=4 * 3600, freshness_target_s=8 * 3600)
    w = walk(slow, SPEED)
    for variant in ("control", "t1"):
        series = w.rows["value", variant]
        w.rows["value", variant] = without(series, lambda i: i % 4 == 3)

    found = w.folded().evaluations
    won = next(e.slot for e in found if gate(e, "value_uplift").verdict == "pass")
    proposed = next(e.slot for e in found if e.recommendation.action == "scale")
    assert proposed - won == 12 * HOUR


def test_a_frozen_cumulative_feed_never_scales() -> None:
    w = walk(COUNTED, hours=60)
    for variant in ("control", "t1"):
        w.rows["orders", variant] = cumulative(w.rows["orders", variant])
    frozen = {variant: w.rows["orders", variant] for variant in ("control", "t1")}
    hour = 25.0
    for variant, series in frozen.items():
        last = max(i for i, ts in enumerate(series.ts) if ts <= START + hour * HOUR)
        value, n, variance = series.value[last], series.n[last], series.variance[last]
        w.spoil("orders", variant, hour, value=always(value), n=always(n), variance=always(variance))

    assert all(e.recommendation.action != "scale" for e in w.folded().evaluations)
    assert w.said()[:2] == ("hold", "stale")


def test_a_scale_is_suspended_while_telemetry_is_dead_and_stands_again_when_it_is_back() -> None:
    w = walk(hours=80)
    for variant in ("control", "t1"):
        w.rows["speed", variant] = without(w.rows["speed", variant], lambda i: not 34 <= i < 44)

    assert w.said(34) == ("scale", "wins", "proposed")
    assert w.said(40) == ("scale", "wins", "suspended")
    assert w.said(80) == ("scale", "wins", "proposed")
    assert w.recommended(80).proposed_slot == w.recommended(34).proposed_slot


def test_a_restated_cumulative_count_suspends_until_it_has_held_again() -> None:
    w = walk(COUNTED, hours=60)
    for variant in ("control", "t1"):
        w.rows["orders", variant] = cumulative(w.rows["orders", variant])
    w.spoil("orders", "t1", 40, n=lambda i: w.rows["orders", "t1"].n[i] - 2000)  # type: ignore[operator]
    w.spoil("orders", "control", 40, n=lambda i: w.rows["orders", "control"].n[i] - 2000)  # type: ignore[operator]

    assert w.said(41) == ("scale", "wins", "proposed")
    assert w.said(42) == ("scale", "wins", "suspended")
    (blocker,) = w.blockers(42)
    assert "were restated; it stands again when scale has held at 4 looks" in blocker
    assert w.blockers(46) == []
    assert gate(w.at(42), "orders_uplift").reading.running_lower is not None  # type: ignore[union-attr]
    assert w.said(44) == ("scale", "wins", "suspended")
    assert w.said(46) == ("scale", "wins", "proposed")


def closed_cohort(**given: Any) -> Walk:
    """Enrolment ends after hour 20; what the same users do goes on."""
    w = walk(COUNTED, hours=60, **given)
    for variant in ("control", "t1"):
        w.rows["orders", variant] = series = cumulative(w.rows["orders", variant])
        w.spoil("orders", variant, 20, n=always(series.n[19]))
    return w


def test_a_cohort_whose_enrolment_has_closed_lives_on() -> None:
    w = closed_cohort()

    assert w.said() == ("scale", "wins", "proposed")
    assert gate(w.at(), "freshness", None).verdict == "pass"
    for variant in ("control", "t1"):  # their spread alone is news as well
        value = w.rows["orders", variant].value[19]
        w.spoil("orders", variant, 20, value=always(value), variance=lambda i: 16.0 + i / 100)
    assert w.said() == ("scale", "wins", "proposed")


def test_a_count_that_falls_by_a_thousandth_is_corrected_and_by_more_is_restated() -> None:
    for fall, state in ((0.001, "proposed"), (0.0015, "suspended")):
        w = closed_cohort()
        for variant in ("control", "t1"):
            series = w.rows["orders", variant]
            w.spoil("orders", variant, 41, n=always(math.ceil((series.n[40] or 0) * (1 - fall))))
        assert w.said(43) == ("scale", "wins", state)


def test_a_blocker_never_says_that_the_newest_row_is_older_than_one_that_is_stored() -> None:
    w = closed_cohort()
    for variant in ("control", "t1"):
        w.spoil("orders", variant, 40, n=always(w.rows["orders", variant].n[39]), value=always(11.0))
    blockers = w.blockers(50)

    assert w.rows["orders", "control"].ts[49] == START + 50 * HOUR
    assert any("orders of control is stale: nothing new since its row of 2024-10-05T17:00:00Z" in b for b in blockers)
    assert not any("newest row" in blocker for blocker in blockers)


def test_a_threshold_that_is_off_for_now_is_named_where_it_alone_holds_back_a_scale() -> None:
    often = {**CAP, "times": 3}
    w = walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, DENSITY, often), hours=40)
    for variant in ("control", "t1"):
        w.spoil("error_rate", variant, 0, value=lambda i: 0.5 if i % 2 else 0.05)

    assert w.said(38)[:2] == ("hold", "open")
    assert any(
        said.startswith("Scale needs cap to pass: error_rate of t1 is outside its limit") for said in w.rationale(38)
    )
    w.spoil("error_rate", "t1", 0, value=lambda _: 0.05)
    w.spoil("error_rate", "control", 0, value=lambda _: 0.05)
    assert w.said(38)[:2] == ("scale", "wins"), "what was named was what held it back"


def test_a_goal_or_guard_that_nothing_can_judge_is_never_judged_however_it_is_folded() -> None:
    gauge = msgspec.structs.replace(VALUE, kind="gauge")
    neither = msgspec.structs.replace(VALUE, direction=None)
    for kpi, why in ((gauge, "is a gauge"), (neither, "does not say which direction is better")):
        w = walk(kpi, SPEED)
        state: Checkpoint | None = None
        told: list[Recommendation] = []
        for hour in range(1, 61):
            folded = fold(w.policy, w.plan, w.rows, to=START + hour * HOUR, checkpoint=state)
            state, told = folded.checkpoint, [*told, folded.evaluations[-1].recommendation]
        assert {(r.action, r.code) for r in told} == {("hold", "no_data")}
        assert {(r.action, r.code) for e in w.folded().evaluations for r in [e.recommendation]} == {("hold", "no_data")}
        assert why in w.blockers()[0]


def test_a_latched_scale_is_withdrawn_by_harm() -> None:
    w = walk(hours=80)
    w.spoil("speed", "t1", 40, value=lambda _: 2.0)

    assert w.said(40) == ("scale", "wins", "proposed")
    assert w.said(80)[0] != "scale"


def test_a_latched_scale_is_withdrawn_by_a_broken_threshold() -> None:
    w = walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, CAP), hours=50)
    w.spoil("error_rate", "t1", 45, value=lambda _: 0.3)

    assert w.said(45) == ("scale", "wins", "proposed")
    assert w.said(50) == ("delete", "unsafe", "proposed")


def test_an_undecided_review_gives_way_to_a_scale_that_holds() -> None:
    w = walk(VALUE, msgspec.structs.replace(SPEED, max_harm=0.0045), hours=160, max_days=4)
    codes = list(dict.fromkeys(e.recommendation.code for e in w.folded().evaluations))

    assert codes[-2:] == ["undecided", "wins"]


# Answers


def test_an_overridden_proposal_is_not_proposed_again_for_snooze_days() -> None:
    w = walk(hours=60, snooze_days=1)
    w.answered(30.1, "override", ("scale", "wins"), to="hold")

    assert w.said(30)[0] == "scale"
    assert w.said(31) == ("hold", "open", "open")
    assert w.said(53) == ("hold", "open", "open")
    assert w.said(56) == ("scale", "wins", "proposed")
    assert any("not proposed again before" in sentence for sentence in w.rationale(40))


def test_an_override_is_no_answer_to_a_proposal_with_another_code() -> None:
    w = walk(hours=60, effect=-0.1, snooze_days=7)
    w.answered(27.0, "override", ("delete", "not_worth_it"), to="hold")

    assert w.said(40) == ("delete", "harmful", "proposed")


def test_danger_is_proposed_again_whatever_was_overridden() -> None:
    w = walk(VALUE, SPEED, ERRORS, gates=(GOAL, GUARD, CAP), hours=12)
    w.spoil("error_rate", "t1", 5, value=lambda _: 0.2)
    w.answered(8.0, "override", ("delete", "unsafe"), to="hold")

    assert w.said(9) == ("delete", "unsafe", "proposed")


def test_an_acknowledged_review_is_left_alone_for_snooze_days() -> None:
    w = walk(hours=60, snooze_days=1)
    w.spoil("value", "t1", 5, n=lambda _: 400)
    w.answered(20.0, "accept", ("review", "invalid"))

    assert w.said(19) == ("review", "invalid", "proposed")
    assert w.said(21)[0] == "hold"
    assert w.said(45) == ("review", "invalid", "proposed")


def test_an_accepted_scale_ends_the_judging() -> None:
    w = walk()
    w.answered(35.0, "accept", ("scale", "wins"))

    assert w.at(60).slot == START + 35 * HOUR


# Several treatments


def test_the_first_winner_is_scaled_and_the_others_are_deleted_with_it() -> None:
    w = walk(treatments=2, effects={("value", "t1"): 0.1, ("value", "t2"): 0.2})
    r = w.recommended()

    assert (r.action, r.variant) == ("scale", "t2")
    assert w.rationale()[-1] == "t1 goes with it: only t2 is scaled."


def test_a_losing_variant_alone_does_not_delete_the_experiment() -> None:
    w = walk(treatments=2, effects={("value", "t1"): 0.1, ("value", "t2"): -0.2})
    w.plan = msgspec.structs.replace(w.plan, kpis=(VALUE, msgspec.structs.replace(SPEED, max_harm=0.0001)))
    evaluation = w.at()

    assert evaluation.recommendation.action == "hold"
    assert [(v.variant, v.action) for v in evaluation.variants] == [("t1", "hold"), ("t2", "delete")]
    assert not evaluation.variants[1].stands_alone


def test_when_every_variant_loses_the_experiment_is_deleted() -> None:
    w = walk(treatments=2, effects={("value", "t1"): -0.1, ("value", "t2"): -0.2})

    assert w.said() == ("delete", "harmful", "proposed")


def test_a_harmful_variant_may_be_deleted_alone_at_once_and_then_leaves_everything() -> None:
    w = walk(treatments=2, effects={("speed", "t2"): -0.3, ("value", "t2"): -0.3})
    assert w.at(10).variants[1].stands_alone
    assert w.at(10).variants[1].code == "harm"
    w.answered(12.0, "accept", ("delete", "harm"), "t2")
    for metric in ("value", "speed"):
        w.stop(metric, "t2", 12)

    evaluation = w.at()
    assert [v.variant for v in evaluation.variants] == ["t1"]
    assert (evaluation.recommendation.action, evaluation.recommendation.variant) == ("scale", "t1")
    assert "t2" not in gate(evaluation, "srm", None).extra["value"]["units"]


# The end, pauses, history


def test_the_last_look_after_the_end_needs_no_persistence() -> None:
    w = walk(ended_at=START + 25 * HOUR, hours=25)

    assert w.said(25)[0] == "hold"
    assert w.said(25.5) == ("scale", "wins", "proposed")
    assert w.at(40).slot == START + int(25.5 * HOUR)


def test_an_end_without_a_decision_is_reviewed() -> None:
    w = walk(ended_at=START + 12 * HOUR, hours=12)

    assert w.said(13) == ("review", "undecided", "proposed")
    assert w.rationale(13)[0].startswith("The experiment has ended")


def test_pauses_are_not_judged_and_do_not_age() -> None:
    w = walk(pauses=((START + 10 * HOUR, START + 30 * HOUR),), hours=60)
    for key in w.rows:
        series = w.rows[key]
        w.rows[key] = without(series, lambda i: not 10 <= i < 30)

    assert w.at(20).slot == START + 10 * HOUR
    assert w.said(44)[:2] == ("hold", "collecting")
    assert w.said(50) == ("scale", "wins", "proposed")
    assert all(gate(e, "freshness", None).verdict != "stale" for e in w.folded().evaluations)


def test_history_brought_in_is_judged_as_of_each_look_and_known_when_it_arrived() -> None:
    w = walk(created_at=START + 60 * HOUR)
    for key, series in w.rows.items():
        w.rows[key] = replace(series, first_received_at=[START + 60 * HOUR + 60_000_000] * 60)

    proposal = w.folded(61).proposals[0]
    assert (proposal.action, proposal.code) == ("scale", "wins")
    assert proposal.proposed_slot < START + 40 * HOUR
    assert proposal.knowable_at == START + 60 * HOUR + 60_000_000


def test_rows_at_or_before_the_start_are_never_judged() -> None:
    w = walk(hours=10)
    for key, series in w.rows.items():
        w.rows[key] = replace(series, ts=[ts - 10 * HOUR for ts in series.ts])

    assert w.said(5)[:2] == ("hold", "no_data")


# Without treatments


def on_target(at_most: float, **given: Any) -> Walk:
    latency = Kpi(
        "value", "goal", "gauge", None, expected_every_s=3600, freshness_target_s=3600, target=Target(at_most=at_most)
    )
    target = {"name": "{metric}_target", "kind": "target", "days": 2}
    w = walk(latency, treatments=0, gates=(target, DENSITY), hours=100, max_days=10, **given)
    w.spoil("value", "all", 0, value=lambda i: 5.0)
    return w


def test_a_kpi_inside_its_target_every_day_is_on_target_and_called_descriptive() -> None:
    w = on_target(6.0)

    assert w.said() == ("scale", "on_target", "proposed")
    assert gate(w.at(), "value_target", "all").extra["descriptive"] is True
    assert "does not prove a cause" in w.rationale()[0]


def test_a_kpi_outside_its_target_every_day_is_off_target() -> None:
    assert on_target(4.0).said() == ("delete", "off_target", "proposed")


def test_a_kpi_inside_on_some_days_is_open() -> None:
    w = on_target(6.0)
    w.spoil("value", "all", 72, value=lambda i: 9.0)

    assert gate(w.at(100), "value_target", "all").verdict == "inconclusive"


# Numbers


def test_swapping_the_arms_of_a_difference_flips_its_sign() -> None:
    difference = {**GOAL, "effect": "difference"}
    w = walk(gates=(difference, DENSITY), hours=30)
    swapped = walk(gates=(difference, DENSITY), hours=30)
    swapped.rows = {(m, {"control": "t1", "t1": "control"}[v]): series for (m, v), series in w.rows.items()}

    a, b = gate(w.at(), "value_uplift").reading, gate(swapped.at(), "value_uplift").reading
    assert a is not None
    assert b is not None
    assert b.lower is not None
    assert b.upper is not None
    assert (a.estimate, a.lower, a.upper) == pytest.approx((-b.estimate, -b.upper, -b.lower), rel=1e-9)


def test_a_relative_uplift_does_not_depend_on_the_unit() -> None:
    w, cents = walk(hours=30), walk(hours=30)
    for key, series in w.rows.items():
        cents.rows[key] = replace(
            series,
            value=[v * 100 for v in series.value if v is not None],
            variance=[v * 1e4 for v in series.variance if v is not None],
        )

    a, b = gate(w.at(), "value_uplift").reading, gate(cents.at(), "value_uplift").reading
    assert a is not None
    assert b is not None
    assert (a.estimate, a.lower, a.upper) == pytest.approx((b.estimate, b.lower, b.upper), rel=1e-9)


def test_the_days_a_rationale_promises_do_flip_the_verdict() -> None:
    """Go on as the rationale says - the same effect, the same units a day - for the days it names: the goal passes."""
    w = walk(VALUE, gates=(GOAL, DENSITY), hours=400, effect=0.0, units=300, max_days=28)
    mean = {"control": 10.0, "t1": 10.18}
    for variant in mean:
        w.spoil("value", variant, 0, value=always(mean[variant]), n=always(300))
    evaluation = w.at(30)
    promise = next(s for s in w.rationale(30) if s.startswith("Scale needs"))
    days = float(re.search(r"about ([\d.]+) more days", promise).group(1))  # type: ignore[union-attr]

    assert gate(evaluation, "value_uplift").verdict == "inconclusive"
    assert gate(w.at(30 + 24 * days), "value_uplift").verdict == "pass"
    assert gate(w.at(30 + 24 * max(days - 1.5, 0.05)), "value_uplift").verdict == "inconclusive"


def always(cell: Any) -> Callable[[int], Any]:
    return lambda _: cell


def cumulative(series: Series) -> Series:
    """Hourly buckets as the cumulative snapshots of the same units."""
    n, value, total, mass = [], [], 0, 0.0
    for units, mean in zip(series.n, series.value, strict=True):
        assert units is not None
        assert mean is not None
        total, mass = total + units, mass + units * mean
        n.append(total)
        value.append(mass / total)
    return replace(series, n=n, value=value)
