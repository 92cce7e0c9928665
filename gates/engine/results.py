"""What judging comes to: the experiment as of one slot. Pure values; their field names are keys of stored evidence."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from gates.engine.plan import Action
from gates.engine.policy import GateKind

DIGITS = 12
Verdict = Literal["pass", "fail", "inconclusive", "no_data", "stale", "invalid"]
RecommendationState = Literal["open", "proposed", "suspended"]
type Reason = dict[str, Any]
"""Why, as data: {"code", names, numbers; "blocks": true if it is one of the blockers}. `gates.engine.reasons` makes them."""


class Reading(msgspec.Struct, frozen=True):
    """What one goal or guard gate measured at one look; 12 significant digits. Up is good.

    estimate, lower, upper: the always-valid interval, fractions for a relative effect; None where nothing bounds it yet.
    running_lower, running_upper: L and U, None until a look counts for them. p: always-valid p for no effect. n: units of both
    arms. at: the common instant.
    """

    at: int
    n: int
    estimate: float
    lower: float | None
    upper: float | None
    running_lower: float | None
    running_upper: float | None
    p: float | None


class GateState(msgspec.Struct, frozen=True):
    """One gate (of one variant, None for gates of the whole experiment) as of a slot.

    since: the slot at which the verdict became this one. reasons: what it rests on. extra: limits to draw
    (`scale_above`, `delete_below`, `max_harm`, `at_least`, `at_most`) and what the kind counts (`observed`, `expected`).
    """

    gate: str
    kind: GateKind
    variant: str | None
    metric: str | None
    verdict: Verdict
    since: int
    reading: Reading | None
    reasons: tuple[Reason, ...]
    extra: dict[str, Any]


class Recommendation(msgspec.Struct, frozen=True):
    """What the gates advise for one variant, or for the experiment (then `variant` is the winner of a scale, else None).

    A latched proposal is `proposed` or `suspended` and has `proposed_slot`; a hold is `open`.
    first_stable_at: data time at which the recommended row had held long enough. knowable_at: when that could be known.
    stands_alone: a variant's delete that a person may answer apart from the experiment (rows 1 and 3).
    """

    action: Action
    code: str
    variant: str | None
    state: RecommendationState
    reasons: tuple[Reason, ...]
    first_stable_at: int | None
    knowable_at: int | None
    proposed_slot: int | None
    stands_alone: bool = False


class Evaluation(msgspec.Struct, frozen=True):
    """The experiment as of one slot. changed: an action, code, state or verdict differs from the slot before."""

    slot: int
    changed: bool
    recommendation: Recommendation
    variants: tuple[Recommendation, ...]
    gates: tuple[GateState, ...]


class Proposal(msgspec.Struct, frozen=True):
    """A latched proposal of one variant. Identity: (variant, action, code, proposed_slot).

    stands_alone: a delete under rows 1 and 3, which a person may answer for this variant apart from the experiment.
    """

    variant: str
    action: str
    code: str
    proposed_slot: int
    state: str
    first_stable_at: int
    knowable_at: int
    stands_alone: bool


def rounded(value: float) -> float:
    """12 significant digits, of which exp and log give the same on every machine.

    >>> rounded(0.1 + 0.2)
    0.3
    """
    return float(f"{value:.{DIGITS}g}")


def rounded_end(value: float | None) -> float | None:
    """An end of an interval as people and evidence read it; None where there is none."""
    return None if value is None or math.isinf(value) else rounded(value)
