"""How often the gates are right: docs/gates.md section 8, with fixed seeds.

    uv run python -m tests.benchmarks.gate_quality              # 10,000 runs of each effect, 2,000 of each A/A
    uv run python -m tests.benchmarks.gate_quality --runs 500 --same 300

Thousands of experiments are read at once: the statistics of `gates.engine.statistics` over arrays of shape (runs, looks), and the
rules of its section 5 that one goal needs. `agreement` folds some of the same experiments with the engine itself; it must
propose the same at the same look.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import numpy as np

from gates.engine.compiled import compile_plan
from gates.engine.fold import fold
from gates.engine.plan import DAY, SECOND, Baseline, Kpi, Plan, Variant
from gates.engine.policy_checks import parse
from gates.engine.series import Series
from gates.engine.statistics.effects import difference, relative_interval, relative_se, with_spread
from gates.engine.statistics.moments import Arm, smoothed_spread
from gates.engine.statistics.sequences import half_width, tuning
from tests.benchmarks import doubt_quality

Floats = Any
HOURS, PERSIST, MIN_DAYS, MIN_UNITS, MAX_RELATIVE_SE = 672, 4, 7, 1000, 0.1
WORTHWHILE = 0.05
EFFECTS = (-0.05, 0.0, 0.025, 0.05, 0.10)
MEAN, STDDEV, UNITS = 3.0, 6.0, 110
START = 20_000 * DAY  # a Saturday
OPEN, SCALE, DELETE, TOO_SMALL = range(4)
POLICY = parse({"gates": [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]})


class Buckets(NamedTuple):
    """Hourly buckets of one arm in many runs: units, mean value and M2, each of shape (runs, hours)."""

    n: Floats
    mean: Floats
    m2: Floats


class Decisions(NamedTuple):
    """what: OPEN, SCALE, DELETE or TOO_SMALL of each run; look: position of the look that proposed it, -1 when open."""

    what: Floats
    look: Floats


class Figures(NamedTuple):
    """Shares of runs, and the median days to a decision among those decided.

    wrong: scale or too_small at no effect or harm, delete or too_small at what is worthwhile. opposite: harm scaled,
    or a worthwhile effect deleted.
    """

    correct: float
    wrong: float
    undecided: float
    opposite: float
    median_days: float


# The 28-day world -----------------------------------------------------------------------------------------------------


def world(effect: float, runs: int, draw: np.random.Generator) -> tuple[Buckets, Buckets]:
    """Control and treatment: weekends are quieter and weaker, the treatment is helped by novelty in its first days."""
    hour = np.arange(HOURS)
    weekend = (hour // 24) % 7 < 2
    traffic = UNITS * (1 + 0.4 * np.sin(2 * np.pi * (hour - 8) / 24)) * np.where(weekend, 0.7, 1.05)
    level = MEAN * np.where(weekend, 0.9, 1.04)
    lift = effect * np.where(weekend, 0.6, 1.1) + 0.04 * np.exp(-hour / 36.0)
    return _arm(traffic, level, runs, draw), _arm(traffic, level * (1 + lift), runs, draw)


def _arm(traffic: Floats, level: Floats, runs: int, draw: np.random.Generator) -> Buckets:
    n = np.maximum(draw.poisson(traffic, size=(runs, len(level))), 2).astype(float)
    mean = level + draw.standard_normal(n.shape) * STDDEV / np.sqrt(n)
    m2 = STDDEV**2 * draw.chisquare(n - 1)
    return Buckets(n, mean, m2)


def late(arm: Buckets) -> tuple[Floats, Floats, Floats]:
    """(n, mean, M2) at each look as it was then: the newest day's conversions have not all come in yet."""
    n, mean, m2 = cumulated(arm)
    mass = arm.n * arm.mean
    missing = np.zeros_like(mass)
    for age in range(24):
        missing[:, age:] += mass[:, : HOURS - age] * 0.3 * np.exp(-age / 6.0)
    return n, mean - missing / n, m2


def cumulated(arm: Buckets) -> tuple[Floats, Floats, Floats]:
    """(n, mean, M2) of all buckets up to each look, shape (runs, looks)."""
    n = np.cumsum(arm.n, axis=1)
    centre = arm.mean.mean(axis=1, keepdims=True)
    mass = np.cumsum(arm.n * (arm.mean - centre), axis=1)
    squares = np.cumsum(arm.m2 + arm.n * (arm.mean - centre) ** 2, axis=1)
    return n, centre + mass / n, squares - mass * mass / n


def decisions(effect: float, runs: int, seed: int, *, as_it_was: bool = True, batch: int = 250) -> Decisions:
    """What one goal with a baseline decides in `runs` worlds of one true effect."""
    whats, looks = [], []
    for first in range(0, runs, batch):
        control, treatment = world(effect, min(batch, runs - first), _draw(seed, first, effect))
        read = late if as_it_was else cumulated
        found = decide(
            read(control), read(treatment), rho2=_comparison().rho2, alpha=_comparison().alpha, min_days=MIN_DAYS
        )
        whats.append(found.what)
        looks.append(found.look)
    return Decisions(np.concatenate(whats), np.concatenate(looks))


def figures(effect: float, found: Decisions) -> Figures:
    right = {SCALE} if effect >= WORTHWHILE else {DELETE} if effect <= 0 else {SCALE, DELETE, TOO_SMALL}
    wrong = {DELETE, TOO_SMALL} if effect >= WORTHWHILE else {SCALE, TOO_SMALL} if effect <= 0 else set()
    opposite = {DELETE} if effect >= WORTHWHILE else {SCALE} if effect < 0 else set()
    decided = found.look[found.what != OPEN]
    return Figures(
        correct=_share(found, right),
        wrong=_share(found, wrong),
        undecided=_share(found, {OPEN}),
        opposite=_share(found, opposite),
        median_days=float(np.median(decided + 1) / 24) if len(decided) else float("nan"),
    )


def _share(found: Decisions, whats: set[int]) -> float:
    return float(np.isin(found.what, list(whats)).mean())


# Section 5 for one goal, over arrays ----------------------------------------------------------------------------------


def decide(
    control: tuple[Floats, Floats, Floats],
    treatment: tuple[Floats, Floats, Floats],
    *,
    rho2: float,
    alpha: float,
    min_days: int,
    scale_above: float = 0.0,
    delete_below: float = WORTHWHILE,
    decrease: bool = False,
) -> Decisions:
    """Rows 5 to 8 and persistence. control, treatment: (n, mean, M2) at each look, shape (runs, looks), a look an hour."""
    c, t = (Arm(mean, m2 / (n - 1), n) for n, mean, m2 in (control, treatment))
    with np.errstate(all="ignore"):
        c, t = with_spread(c, t, xp=np), with_spread(t, c, xp=np)
        lowers, uppers = relative_interval(t, c, half_width(1.0, c.n + t.n, rho2, alpha, xp=np), xp=np)
        larger = np.maximum(np.abs(c.m), np.abs(t.m))
        noise = np.maximum(relative_se(larger, c.v, c.n, xp=np), relative_se(larger, t.v, t.n, xp=np))
        own = relative_se(*c, xp=np)
        spread = difference(t, c, xp=np)[1]
    if decrease:
        lowers, uppers = -uppers, -lowers
    looks = np.arange(noise.shape[1])
    may_fail = (np.minimum(c.n, t.n) >= MIN_UNITS) & (spread > 0) & (noise <= MAX_RELATIVE_SE)
    may_fail &= looks + 1 >= min_days * 24
    may_pass = may_fail & (own <= MAX_RELATIVE_SE)
    lower = np.maximum.accumulate(np.where(may_pass, lowers, -np.inf), axis=1)
    upper = np.minimum.accumulate(np.where(may_fail, uppers, np.inf), axis=1)
    small = may_fail & (upper < delete_below)
    passes = (may_pass | small) & (lower > scale_above)
    action = np.where(
        passes & (upper < delete_below), TOO_SMALL, np.where(passes, SCALE, np.where(small, DELETE, OPEN))
    )
    return _first_held(action)


def _first_held(action: Floats) -> Decisions:
    """The first action other than OPEN that held at PERSIST looks in a row."""
    held = action != OPEN
    for back in range(1, PERSIST):
        held[:, back:] &= action[:, back:] == action[:, :-back]
        held[:, :back] = False
    any_held = held.any(axis=1)
    look = np.where(any_held, held.argmax(axis=1), -1)
    return Decisions(np.where(any_held, action[np.arange(len(action)), look], OPEN), look)


# The engine on the same experiments -----------------------------------------------------------------------------------


def agreement(effect: float, runs: int, seed: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(arrays, engine) of each run: (what, look) both ways; SRM is left to its own tests."""
    control, treatment = world(effect, runs, _draw(seed, 0, effect))
    comparison = _comparison()
    arrays = decide(
        cumulated(control), cumulated(treatment), rho2=comparison.rho2, alpha=comparison.alpha, min_days=MIN_DAYS
    )
    pairs = []
    for run in range(runs):
        rows = {("value", v): _series(arm, run) for v, arm in (("control", control), ("t1", treatment))}
        proposals = fold(POLICY, PLAN, rows, to=START + HOURS * 3600 * SECOND).proposals
        engine = (OPEN, -1)
        if proposals and proposals[0].code != "undecided":
            what = {"scale": SCALE, "delete": DELETE, "review": TOO_SMALL}[proposals[0].action]
            engine = what, (proposals[0].proposed_slot - START) // (3600 * SECOND) - 2
        pairs.append(((int(arrays.what[run]), int(arrays.look[run])), engine))
    return pairs


def _series(arm: Buckets, run: int) -> Series:
    ts = [START + (hour + 1) * 3600 * SECOND for hour in range(HOURS)]
    n = arm.n[run].astype(int).tolist()
    return Series(
        ts, arm.mean[run].tolist(), n, (arm.m2[run] / (arm.n[run] - 1)).tolist(), [at + 60 * SECOND for at in ts]
    )


PLAN = Plan(
    started_at=START,
    created_at=START,
    variants=(Variant("control", control=True), Variant("t1", position=1)),
    kpis=(
        Kpi(
            "value", "goal", "mean", "increase",
            expected_every_s=3600, freshness_target_s=3600, counts_assignment=False,
            minimum_effect=WORTHWHILE, baseline=Baseline(MEAN, STDDEV),
        ),
    ),
)  # fmt: skip


def _comparison() -> Any:
    return compile_plan(POLICY, PLAN).comparisons[0]


def _draw(seed: int, first: int, effect: float) -> np.random.Generator:
    return np.random.default_rng([seed, first, round(1000 * (effect + 1))])


# No effect at all -----------------------------------------------------------------------------------------------------

LOOKS, UNITS_A_LOOK = 500, 50
Drawer = Callable[[np.random.Generator, tuple[int, ...]], Floats]
SAME: dict[str, Drawer] = {
    "normal": lambda draw, shape: draw.normal(10.0, 4.0, shape),
    "bernoulli": lambda draw, shape: (draw.random(shape) < 0.1).astype(float),
    "lognormal": lambda draw, shape: draw.lognormal(0.0, 1.5, shape),
    "revenue": lambda draw, shape: np.where(draw.random(shape) < 0.1, draw.lognormal(3.0, 1.0, shape), 0.0),
}


def false_decisions(name: str, runs: int, seed: int) -> tuple[float, float]:
    """Shares of A/A experiments decided by the gates, and by a z-test at every look (two-sided 5%)."""
    rho2 = compile_plan(POLICY, _without_baseline()).comparisons[0].rho2
    decided = fooled = 0
    for batch in _batches(runs, 50):
        draw = np.random.default_rng([seed, batch.start, sum(name.encode())])
        arms = [_units(SAME[name], draw, len(batch)) for _ in range(2)]
        found = decide(*arms, rho2=rho2, alpha=0.05, min_days=0, delete_below=0.0)
        decided += int((found.what != OPEN).sum())
        (n_c, m_c, s_c), (n_t, m_t, s_t) = arms
        with np.errstate(all="ignore"):
            z = (m_t - m_c) / np.sqrt(s_c / (n_c - 1) / n_c + s_t / (n_t - 1) / n_t)
        fooled += int((np.abs(z) > 1.959964).any(axis=1).sum())
    return decided / runs, fooled / runs


def _units(drawer: Drawer, draw: np.random.Generator, runs: int) -> tuple[Floats, Floats, Floats]:
    values = drawer(draw, (runs, LOOKS, UNITS_A_LOOK))
    mean = values.mean(axis=2)
    m2 = ((values - mean[:, :, None]) ** 2).sum(axis=2)
    return cumulated(Buckets(np.full(mean.shape, float(UNITS_A_LOOK)), mean, m2))


def _without_baseline() -> Plan:
    return Plan(
        started_at=START,
        created_at=START,
        variants=PLAN.variants,
        kpis=(Kpi("value", "goal", "mean", "increase", minimum_effect=WORTHWHILE),),
    )


def _batches(runs: int, size: int) -> Iterator[range]:
    for first in range(0, runs, size):
        yield range(first, min(first + size, runs))


# How soon harm is seen ------------------------------------------------------------------------------------------------

GUARD_POLICY = parse(
    {
        "gates": [
            {"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"},
            {"name": "{metric}_guard", "kind": "guard", "for": "guardrail"},
        ]
    }
)
LOST = (0.5, 0.7, 0.9, 0.98, 1.0)
"""How much less of what should grow is left."""
RISEN = (2.0, 5.0, 20.0, 30.0)
"""How many times as much there is of what should fall."""
RATE, GUARD_UNITS, GUARD_HOURS, MAX_HARM = 0.03, 200, 26 * 24, 0.1


def hours_until_harm(treatment: float, direction: Any, *, control: float = RATE) -> int | None:
    """By the engine: an hourly guard of 200 users an arm an hour whose shares stand still; None: not in 26 days."""
    kpi = Kpi(
        "share", "guardrail", "proportion", direction, expected_every_s=3600, freshness_target_s=3600, max_harm=MAX_HARM
    )
    plan = msgspec.structs.replace(PLAN, kpis=(kpi,))
    ts = [START + (hour + 1) * 3600 * SECOND for hour in range(GUARD_HOURS)]
    rows = {
        ("share", variant): Series(ts, [share] * len(ts), [GUARD_UNITS] * len(ts), [None] * len(ts), ts)
        for variant, share in (("control", control), ("t1", treatment))
    }
    evaluations = fold(GUARD_POLICY, plan, rows, to=ts[-1]).evaluations
    harmed = next((e.slot for e in evaluations if e.recommendation.code == "harm"), None)
    return None if harmed is None else (harmed - START) // (3600 * SECOND)


def hours_by_floor(
    treatment: float, direction: str, scale: Callable[[float, float], tuple[float, float]]
) -> int | None:
    """The same by the contrast and another floor: against what the errors of treatment and control may be `max_relative_se`."""
    n = GUARD_UNITS * np.arange(1.0, GUARD_HOURS + 1)
    spread = [np.where(0 < p < 1, p * (1 - p), smoothed_spread(n)) for p in (treatment, RATE)]
    against = 1 - MAX_HARM if direction == "increase" else 1 + MAX_HARM
    rho2 = tuning(GUARD_POLICY.planned_units, GUARD_POLICY.alpha)
    half = half_width(np.sqrt(spread[0] / n + against**2 * spread[1] / n), 2 * n, rho2, GUARD_POLICY.alpha, xp=np)
    loss = (treatment - against * RATE) * (1 if direction == "increase" else -1)
    held = n >= MIN_UNITS
    for v, size in zip(spread, scale(treatment, RATE), strict=True):
        held &= np.sqrt(v / n) <= MAX_RELATIVE_SE * size
    seen = np.flatnonzero(held & (loss + half < 0))
    return int(seen[0]) + 3 if len(seen) else None  # rows close half an hour later, and a second look has to say so


FLOORS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "each mean itself": lambda t, c: (t, c),
    "control's mean": lambda t, c: (c, c),
    "the larger mean": lambda t, c: (max(t, c), max(t, c)),
}


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=10_000)
    arguments.add_argument("--same", type=int, default=2_000)
    arguments.add_argument("--doubt", type=int, default=1_000)
    arguments.add_argument("--engine", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    begun = time.perf_counter()
    say(f"A/A, {LOOKS} looks, {given.same} runs: decided by the gates / by a z-test at every look")
    for name in SAME:
        ours, theirs = false_decisions(name, given.same, given.seed)
        say(f"  {name:10} {ours:7.2%} {theirs:7.1%}")
    say(f"28 days, hourly, worthwhile {WORTHWHILE:.0%}, {given.runs} runs each")
    say("  effect   correct   wrong  undecided  opposite  median days")
    for effect in EFFECTS:
        f = figures(effect, decisions(effect, given.runs, given.seed))
        say(
            f"  {effect:+6.1%} {f.correct:9.2%} {f.wrong:7.2%} {f.undecided:10.2%} {f.opposite:9.2%} {f.median_days:9.1f}"
        )
    say(f"hours until harm: {GUARD_UNITS} users an arm an hour, control {RATE:.0%}, max_harm {MAX_HARM:.0%}")
    said = [f"{-lost:+.0%}" for lost in LOST] + [f"x{times:g}" for times in RISEN]
    worlds = [(RATE * (1 - lost), "increase") for lost in LOST] + [(min(1.0, RATE * r), "decrease") for r in RISEN]
    say(f"  {'':34}{''.join(f'{word:>7}' for word in said)}")
    say(f"  {'the gates':34}{''.join(f'{hours_until_harm(*world)!s:>7}' for world in worlds)}")
    for name, scale in FLOORS.items():
        hours = [hours_by_floor(*world, scale) for world in worlds]
        say(f"  {'errors against ' + name:34}{''.join(f'{hour!s:>7}' for hour in hours)}")
    say(f"honest rows doubted on any day of 28, {given.doubt} runs each")
    for name in doubt_quality.HONEST:
        say(f"  {name:44} {doubt_quality.honest(name, given.doubt, given.seed):7.2%}")
    say("rows sent wrongly: doubted by day; told the cause on that day")
    for name, (day, *_) in doubt_quality.FAULTS.items():
        share, named = doubt_quality.caught(name, given.doubt, given.seed)
        say(f"  {name:34} {day:3} {share:8.2%} {named:8.1%}")
    pairs = [pair for effect in EFFECTS for pair in agreement(effect, given.engine, given.seed)]
    same = sum(arrays == engine for arrays, engine in pairs)
    say(f"engine and arrays propose the same at the same look in {same} of {len(pairs)} experiments")
    say(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
