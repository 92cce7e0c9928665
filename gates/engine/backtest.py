"""What a candidate policy would have said of a recorded experiment, look by look, beside the live one. Pure.

Both are folded over the rows stored now, without people's answers: an answer ends or snoozes what follows, so that only what
the gates themselves say is compared. What people answered is then held against both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from gates.engine.fold import EvaluatedSlot, fold
from gates.engine.plan import DAY, Action, Answer, Plan
from gates.engine.policy import Policy
from gates.engine.results import Recommendation
from gates.engine.series import Rows

DECISIVE = ("scale", "delete")


class Decided(msgspec.Struct, frozen=True):
    """The first scale or delete proposed for a variant."""

    action: Action
    code: str
    slot: int


class VariantBacktest(msgspec.Struct, frozen=True):
    """One variant by both policies.

    flip: both decide, and differently. gained, lost: only the candidate, only the live policy decides. days_saved: how much
    earlier the candidate decides the same; None unless both do.
    """

    variant: str
    live: Decided | None
    candidate: Decided | None
    flip: bool
    gained: bool
    lost: bool
    days_saved: float | None


class Disagreement(msgspec.Struct, frozen=True):
    """Slots in [begin, end) over which the two policies recommend different things of the experiment: (action, code)."""

    begin: int
    end: int
    live: tuple[str, str]
    candidate: tuple[str, str]


class Agreement(msgspec.Struct, frozen=True):
    """A person's answer beside what each policy recommended then. person: what they chose; a stop counts as a delete."""

    at: int
    variant: str | None
    person: Action
    live: Action
    candidate: Action


class Backtest(msgspec.Struct, frozen=True):
    """One experiment by both policies."""

    variants: tuple[VariantBacktest, ...]
    stretches: tuple[Disagreement, ...]
    answers: tuple[Agreement, ...]


class Figures(msgspec.Struct, frozen=True):
    """All experiments: counts of variants, mean days saved where both decide the same, share of answers each agrees with."""

    flips: int
    gained: int
    lost: int
    days_saved: float | None
    agreement: float | None
    live_agreement: float | None


def backtest(candidate: Policy, live: Policy, plan: Plan, rows: Rows, *, to: int) -> Backtest:
    """Fold both policies over every look of the experiment up to `to`, an instant, and compare."""
    unanswered = msgspec.structs.replace(
        plan,
        answers=(),
        variants=tuple(msgspec.structs.replace(variant, dropped_at=None) for variant in plan.variants),
    )
    lived = fold(live, unanswered, rows, to=to).evaluated_slots
    tried = fold(candidate, unanswered, rows, to=to).evaluated_slots
    return Backtest(
        variants=tuple(
            _compare(variant.key, _decided(lived, variant.key), _decided(tried, variant.key))
            for variant in plan.judged_variants
        ),
        stretches=tuple(_ranges(lived, tried, to)),
        answers=tuple(_answered(answer, lived, tried) for answer in plan.answers if answer.at <= to),
    )


def figures(backtests: Iterable[Backtest]) -> Figures:
    """The figures over many experiments; None where there is nothing to take a share or mean of."""
    found = list(backtests)
    variants = [variant for one in found for variant in one.variants]
    saved = [variant.days_saved for variant in variants if variant.days_saved is not None]
    answers = [answer for one in found for answer in one.answers]
    return Figures(
        flips=sum(variant.flip for variant in variants),
        gained=sum(variant.gained for variant in variants),
        lost=sum(variant.lost for variant in variants),
        days_saved=sum(saved) / len(saved) if saved else None,
        agreement=_share([answer.person == answer.candidate for answer in answers]),
        live_agreement=_share([answer.person == answer.live for answer in answers]),
    )


def _decided(evaluated_slots: Sequence[EvaluatedSlot], variant: str) -> Decided | None:
    for evaluated in evaluated_slots:
        for recommendation in evaluated.recommended[1]:
            if recommendation.variant == variant and recommendation.action in DECISIVE:
                return Decided(recommendation.action, recommendation.code, evaluated.slot)
    return None


def _compare(variant: str, live: Decided | None, candidate: Decided | None) -> VariantBacktest:
    both = live is not None and candidate is not None
    same = live is not None and candidate is not None and live.action == candidate.action
    return VariantBacktest(
        variant=variant,
        live=live,
        candidate=candidate,
        flip=both and not same,
        gained=live is None and candidate is not None,
        lost=live is not None and candidate is None,
        days_saved=(live.slot - candidate.slot) / DAY if same and live is not None and candidate is not None else None,
    )


def _ranges(lived: Sequence[EvaluatedSlot], tried: Sequence[EvaluatedSlot], to: int) -> list[Disagreement]:
    slots = sorted({evaluated.slot for evaluated in (*lived, *tried)})
    found: list[Disagreement] = []
    for begin, end in pairwise([*slots, to]):
        a, b = _said(lived, begin), _said(tried, begin)
        if a == b:
            continue
        if found and found[-1].end == begin and (found[-1].live, found[-1].candidate) == (a, b):
            found[-1] = msgspec.structs.replace(found[-1], end=end)
        else:
            found.append(Disagreement(begin, end, a, b))
    return found


def _said(evaluated_slots: Sequence[EvaluatedSlot], slot: int) -> tuple[str, str]:
    evaluated = _at(evaluated_slots, slot)
    return (
        ("hold", "no_data") if evaluated is None else (evaluated.recommended[0].action, evaluated.recommended[0].code)
    )


def _at(evaluated_slots: Sequence[EvaluatedSlot], instant: int) -> EvaluatedSlot | None:
    position = bisect_right(evaluated_slots, instant, key=lambda evaluated: evaluated.slot)
    return evaluated_slots[position - 1] if position else None


def _answered(answer: Answer, lived: Sequence[EvaluatedSlot], tried: Sequence[EvaluatedSlot]) -> Agreement:
    person: Action = answer.of[0]
    if answer.action == "override":
        person = "delete" if answer.override_to == "stop" else answer.override_to or "hold"
    return Agreement(
        at=answer.at,
        variant=answer.variant,
        person=person,
        live=_recommended(lived, answer).action,
        candidate=_recommended(tried, answer).action,
    )


def _recommended(evaluated_slots: Sequence[EvaluatedSlot], answer: Answer) -> Recommendation:
    """What was recommended of the answered variant, or of the experiment, when the answer was given."""
    evaluated = _at(evaluated_slots, answer.at)
    if evaluated is None:
        return Recommendation("hold", "no_data", answer.variant, "open", (), None, None, None)
    whole, variants = evaluated.recommended
    return next((recommendation for recommendation in variants if recommendation.variant == answer.variant), whole)


def _share(agrees: Sequence[bool]) -> float | None:
    return sum(agrees) / len(agrees) if agrees else None
