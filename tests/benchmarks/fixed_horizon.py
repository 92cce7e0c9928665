"""What the gates recommend on recorded experiments, beside a fixed-horizon test that looks once, at the end.

    uv run python -m tests.benchmarks.fixed_horizon FILE.csv

FILE has the shapes of `manage.py import_history`, with the plan that command takes by default and the shipped policy. The test is the usual two-sided z-test
of the first goal at alpha 5%, up or down, at the newest checkpoint both arms have. Agreement: scale beside up, delete beside down, hold or review beside neither.
Every disagreement is explained by the numbers both saw. A second count asks the test what the gates ask: scale when it is above 0, delete when it is below the
minimum effect, else neither.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from decisioning.agents.history import History, Recorded, plan_of, read, shape_of
from decisioning.agents.history import Plan as FilePlan
from gates.engine import narration
from gates.engine.fold import fold
from gates.engine.plan import Kpi, Plan, Variant, to_us
from gates.engine.policy import DEFAULT_BODY
from gates.engine.policy_checks import parse
from gates.engine.results import GateState, Recommendation
from gates.engine.series import Rows, Series
from gates.engine.statistics.effects import relative_uplift
from gates.engine.statistics.moments import Arm
from tests.benchmarks.scene import NOW, say

Z = 1.959963984540054
SAYS = {"scale": "up", "delete": "down", "hold": "neither", "review": "neither"}


class Fixed(NamedTuple):
    """The fixed-horizon test of one treatment: relative estimate and 95% interval."""

    estimate: float
    lower: float
    upper: float

    @property
    def says(self) -> str:
        return "up" if self.lower > 0 else "down" if self.upper < 0 else "neither"


def recorded_rows(recorded: Recorded, end: int) -> tuple[int, Rows]:
    """(start, rows) of an experiment moved so that its newest checkpoint is `end`."""
    start = end - round(recorded.length.total_seconds() * 1e6)
    columns: dict[tuple[str, str], list[tuple[int, float, int | None, float | None]]] = {}
    for s in recorded.samples:
        at = start + round(s.at.total_seconds() * 1e6)
        columns.setdefault((s.metric, s.arm), []).append((at, s.value, s.n, s.variance))
    rows = {}
    for key, samples in columns.items():
        ts, value, n, variance = zip(*sorted({sample[0]: sample for sample in samples}.values()), strict=True)
        rows[key] = Series(ts, value, n, variance, ts)
    return start, rows


def kpis_of(plan: FilePlan) -> tuple[Kpi, ...]:
    kpis = []
    for target in plan.target_kpis:
        metric = plan.metric(str(target["metric"]))
        known: dict[str, Any] = {name: metric[name] for name in ("kind", "direction", "temporality", "expected_every_s", "freshness_target_s")}  # fmt: skip
        effects = {name: target[name] for name in ("minimum_effect", "max_harm") if name in target}
        kpis.append(Kpi(metric=str(target["metric"]), role=target["role"], **known, **effects))
    return tuple(kpis)


def fixed_horizon(control: Series | None, treatment: Series | None) -> Fixed | None:
    """The z-test of the relative uplift at the newest checkpoint both have with a variance."""
    if control is None or treatment is None:
        return None
    both = sorted(set(control.ts) & set(treatment.ts), reverse=True)
    for ts in both:
        arms = []
        for series in (control, treatment):
            i = series.ts.index(ts)
            n, mean, variance = series.n[i], series.value[i], series.variance[i]
            if n and mean is not None and variance is not None and n > 1:
                arms.append(Arm(mean, variance, n))
        if len(arms) == 2 and arms[0].m:
            estimate, se = relative_uplift(arms[1], arms[0])
            return Fixed(estimate, estimate - Z * se, estimate + Z * se)
    return None


def _alike(told: Recommendation, fixed: Fixed, minimum_effect: float) -> bool:
    above, below = fixed.lower > 0, fixed.upper < minimum_effect
    return {"scale": above, "delete": below}.get(told.action, not above and not below)


def explained(told: Recommendation, gate: GateState | None, fixed: Fixed, minimum_effect: float) -> str:
    """Why the gates say something else than the test."""
    reading = gate.reading if gate else None
    if told.code in ("invalid", "unsafe", "harm"):
        return f"the test looks at the goal alone: {_said(told)[0]}"
    if told.action == "hold" or reading is None:
        return f"not decidable here: {_said(told, blocking=True)[0]}"
    upper = reading.running_upper
    if told.code == "not_worth_it" and upper is not None:
        return f"the gates ask for {minimum_effect:.0%} and the effect is proved below it (U {upper:+.2%}), which a test against 0 cannot say; it ends here"
    if told.code == "too_small":
        return f"real, but proved below the {minimum_effect:.0%} worth having (U {upper:+.2%})"
    if told.code == "undecided":
        return f"looking once may stop at {fixed.lower:+.2%}; looking at every checkpoint needs the wider interval {reading.lower:+.2%} to {reading.upper:+.2%}"
    return _said(told)[0]


def _said(told: Recommendation, *, blocking: bool = False) -> list[str]:
    who = narration.Reader()
    said = narration.rationale(told.reasons, who)
    return [*narration.blockers(told.reasons, who), *said] if blocking else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    lines = parser.parse_args().file.read_text().splitlines()
    shape = shape_of(lines[0])
    plan = plan_of(None, shape)
    history: History = read(lines, plan)
    policy, end = parse(DEFAULT_BODY, name="default", version=1), to_us(NOW)
    agree: Counter[bool] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    untested = alike = 0
    say(f"{'experiment/arm':<22} {'gates':<22} {'fixed horizon':<34} agrees")
    for recorded in history.experiments:
        start, rows = recorded_rows(recorded, end)
        arms = [arm for arm in recorded.arms if arm != plan.control]
        variants = (Variant(plan.control, control=True), *(Variant(a, position=i) for i, a in enumerate(arms, 1)))
        judged = Plan(started_at=start, created_at=end, variants=variants, kpis=kpis_of(plan))
        evaluation = fold(policy, judged, rows, to=end).evaluations[-1]
        goal = next(kpi for kpi in judged.kpis if kpi.role == "goal")
        for told in evaluation.variants:
            fixed = fixed_horizon(rows.get((goal.metric, plan.control)), rows.get((goal.metric, str(told.variant))))
            if fixed is None:
                untested += 1
                say(
                    f"{recorded.id + '/' + str(told.variant):<22} {told.action + ' ' + told.code:<22} no checkpoint of {goal.metric} can be tested"
                )
                continue
            same = SAYS[told.action] == fixed.says
            agree[same] += 1
            alike += _alike(told, fixed, goal.minimum_effect)
            pairs[told.action, fixed.says] += 1
            test = f"{fixed.says} ({fixed.estimate:+.2%}: {fixed.lower:+.2%} to {fixed.upper:+.2%})"
            say(
                f"{recorded.id + '/' + str(told.variant):<22} {told.action + ' ' + told.code:<22} {test:<34} {'yes' if same else 'no'}"
            )
            if not same:
                gate = next(
                    (g for g in evaluation.gates if g.metric == goal.metric and g.variant == told.variant), None
                )
                say(f"{'':<22} {explained(told, gate, fixed, goal.minimum_effect)}")
    total = sum(agree.values())
    say(f"\n{agree[True]} of {total} arms agree ({agree[True] / max(total, 1):.0%}); {untested} cannot be tested.")
    say(f"Asked what the gates ask, {alike} of {total} agree.")
    for (action, says), count in sorted(pairs.items()):
        say(f"  gates {action:<7} test {says:<8} {count}")
    opposite = pairs["scale", "down"] + pairs["delete", "up"]
    say(f"Scale beside down, or delete beside up: {opposite}.")


if __name__ == "__main__":
    main()
