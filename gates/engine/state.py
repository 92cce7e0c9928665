"""What earlier slots left of an experiment: all that later ones depend on beside policy, plan and rows. Pure.

Stored in checkpoints as arrays: the order of fields is the format, their names are free.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from gates.engine.compiled import CompiledPlan
from gates.engine.facts import Unreadable
from gates.engine.plan import DAY, Action
from gates.engine.results import Verdict
from gates.engine.statistics.scatter import Scattered

Why = Literal["", "missing", "unreadable", "units", "denominator", "spread", "zero", "noisy", "young", "day"]
"""What a gate lacks before its interval is believed; "": nothing."""

FRESH, STALE, MISSING, OVERDUE = range(4)
"""Freshness of a series: watermark young enough; too old; no row yet; no row and past due."""

RATE_SAMPLES = 8


class RunningBounds(msgspec.Struct, array_like=True):
    """A goal or guard gate of one treatment: its newest reading and its running bounds."""

    verdict: Verdict = "no_data"
    why: Why = "missing"
    at: int | None = None
    n: int = 0
    estimate: float = 0.0
    se: float = 0.0
    lower: float = 0.0
    upper: float = 0.0
    readable: bool = False
    floor: bool = False
    running_lower: float | None = None
    running_upper: float | None = None
    p: float | None = None
    small: bool = False
    """U is below what is worth it."""
    lost: bool = False
    """U is below 0."""
    invalid: bool = False
    fails: int = 0
    arrived: int = 0
    arms: tuple[int, int] = (0, 0)
    noise: float = 0.0
    reasons: list[tuple[str, Unreadable | str]] = []
    """Variants whose series are unreadable, and why."""
    rate_samples: list[int] = []
    """Instants about a day apart, oldest first, each followed by the units until then: the present units a day."""
    beyond: bool = False
    """L is beyond what is plausible."""


class Latch(msgspec.Struct, array_like=True):
    """A proposal that stands until it is answered or withdrawn."""

    rule: int
    action: Action
    code: str
    slot: int
    stable_at: int
    knowable_at: int
    lower: float = -math.inf
    restated: bool = False


class VariantState(msgspec.Struct, array_like=True):
    """One judged variant: the rule that matches now, how long its action has held, and what is latched.

    hold_code: what a hold is called while nothing is latched. held, streak: the action of the last looks and at how many of
    them it held. hold_streak: at how many looks rule 10 held. counted: per gate, its common instant at the last look that counted.
    readable_at: the first look at which rows 1 to 5 did not match. snoozed: (action, code, until).
    """

    rule: int = 4
    action: Action = "hold"
    code: str = "no_data"
    hold_code: str = "no_data"
    held: Action = "hold"
    streak: int = 0
    stable_at: int = 0
    knowable_at: int = 0
    counted: list[int | None] = []
    hold_streak: int = 0
    hold_stable_at: int = 0
    hold_knowable_at: int = 0
    readable_at: int | None = None
    latch: Latch | None = None
    snoozed: list[tuple[str, str, int]] = []


class ExperimentState(msgspec.Struct, array_like=True):
    """Everything later slots depend on; lists run over the compiled plan's series, watches, comparisons x treatments, judged variants.

    scatter: by "metric/variant" what was found last where it is out of the ordinary; doubts: those of them that are doubted, with the cause. exposed: goals that have more
    units than were exposed, (units, exposed) by variant.
    """

    slot: int
    fresh: list[int]
    dense: list[bool]
    watched: list[Verdict]
    observed: list[tuple[int, int]]
    bounds: list[RunningBounds]
    targets: list[RunningBounds]
    variant_states: list[VariantState]
    alarm: dict[str, dict[str, int]] = {}
    answered: int = 0
    since: dict[str, tuple[Verdict, int]] = {}
    shown: list[tuple[str, str, str]] = []
    alarm_at: dict[str, int] = {}
    scatter: dict[str, Scattered] = {}
    doubts: dict[str, str] = {}
    exposed: dict[str, dict[str, tuple[int, int]]] = {}

    @classmethod
    def at_start(cls, compiled: CompiledPlan) -> ExperimentState:
        gates = len(compiled.comparisons)
        counted = gates + len(compiled.targets)
        return cls(
            slot=compiled.plan.started_at,
            fresh=[MISSING] * len(compiled.series),
            dense=[False] * len(compiled.series),
            watched=["no_data"] * len(compiled.watches),
            observed=[(0, 0)] * len(compiled.watches),
            bounds=[RunningBounds() for _ in range(gates * len(compiled.judged_variants))],
            targets=[RunningBounds() for _ in compiled.targets],
            variant_states=[VariantState(counted=[None] * counted) for _ in compiled.judged_variants],
        )


def sample_rate(bounds: RunningBounds, at: int, n: int) -> None:
    """Keep units about a day apart, for the present rate."""
    if not bounds.rate_samples or at - bounds.rate_samples[-2] >= DAY:
        bounds.rate_samples += (at, n)
        if len(bounds.rate_samples) > 2 * RATE_SAMPLES:
            del bounds.rate_samples[:2]
