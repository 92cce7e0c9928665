"""What is recommended: of each variant what it stands at, of the experiment what follows from its variants (docs/gates.md section 5). Pure."""

from __future__ import annotations

import math

from gates.engine.machine import (
    HOLD_OPEN,
    CompiledPlan,
    ExperimentState,
    Reason,
    Recommendation,
    VariantState,
    shown_of,
)


def recommended(compiled: CompiledPlan, state: ExperimentState) -> tuple[Recommendation, tuple[Recommendation, ...]]:
    """What is recommended of the experiment and of each variant, without a word why."""
    arms = compiled.arms(state.slot)
    variants = tuple(
        recommendation_of(compiled, variant_state, variant, ())
        for variant_state, variant in zip(state.variant_states, compiled.judged_variants, strict=True)
        if variant in arms
    )
    return experiment_of(compiled, state, variants), variants


def recommendation_of(
    compiled: CompiledPlan, variant_state: VariantState, variant: str, reasons: tuple[Reason, ...]
) -> Recommendation:
    action, code, state = shown_of(variant_state)
    latch = variant_state.latch
    stable_at: int | None = None
    knowable_at: int | None = None
    if latch is not None:
        stable_at, knowable_at = latch.stable_at, latch.knowable_at
    elif variant_state.rule == HOLD_OPEN and variant_state.hold_streak >= compiled.policy.persist:
        stable_at, knowable_at = variant_state.hold_stable_at, variant_state.hold_knowable_at
    return Recommendation(
        action=action,  # type: ignore[arg-type]
        code=code,
        variant=variant,
        state=state,  # type: ignore[arg-type]
        reasons=reasons,
        first_stable_at=stable_at,
        knowable_at=knowable_at,
        proposed_slot=None if latch is None else latch.slot,
        stands_alone=latch is not None and latch.rule in (1, 3),
    )


def experiment_of(
    compiled: CompiledPlan, state: ExperimentState, variants: tuple[Recommendation, ...]
) -> Recommendation:
    """The experiment's recommendation from its variants': the first winner, else delete of all, else a review, else hold."""
    variant_state = {variant: state.variant_states[index] for index, variant in enumerate(compiled.judged_variants)}
    if not variants:
        return Recommendation("hold", "open", None, "open", ({"code": "no_variant_left"},), None, None, None)
    only = variants[0].variant if len(compiled.judged_variants) == 1 else None
    winners = [r for r in variants if r.action == "scale"]
    if winners:
        first = min(winners, key=lambda r: (r.proposed_slot or 0, -_lower(variant_state[str(r.variant)])))
        others = [str(r.variant) for r in variants if r is not first]
        reasons = first.reasons
        if others and compiled.control is not None:
            reasons = (*reasons, {"code": "others_go", "variant": first.variant, "others": others})
        return _experiment(first, reasons, variant=first.variant)
    if all(r.action == "delete" for r in variants):
        lead = min(variants, key=lambda r: _rule(variant_state[str(r.variant)]))
        last = max(variants, key=lambda r: r.proposed_slot or 0)
        return Recommendation(
            action="delete",
            code=lead.code,
            variant=only,
            state="suspended" if any(r.state == "suspended" for r in variants) else "proposed",
            reasons=_joined(variants),
            first_stable_at=max(r.first_stable_at or 0 for r in variants),
            knowable_at=max(r.knowable_at or 0 for r in variants),
            proposed_slot=last.proposed_slot,
        )
    reviews = [r for r in variants if r.action == "review"]
    if reviews:
        lead = min(reviews, key=lambda r: (_rule(variant_state[str(r.variant)]), r.proposed_slot or 0))
        return _experiment(lead, _joined(variants, blocks_of=lead), variant=only)
    holds = [r for r in variants if r.action == "hold"] or list(variants)
    lead = min(holds, key=lambda r: variant_state[str(r.variant)].rule)
    calm = all(r.first_stable_at is not None for r in holds)
    return Recommendation(
        action="hold",
        code=lead.code if lead.action == "hold" else "open",
        variant=None,
        state="open",
        reasons=_joined(variants),
        first_stable_at=max(r.first_stable_at or 0 for r in holds) if calm else None,
        knowable_at=max(r.knowable_at or 0 for r in holds) if calm else None,
        proposed_slot=None,
    )


def _experiment(of: Recommendation, reasons: tuple[Reason, ...], *, variant: str | None) -> Recommendation:
    return Recommendation(
        action=of.action,
        code=of.code,
        variant=variant,
        state=of.state,
        reasons=reasons,
        first_stable_at=of.first_stable_at,
        knowable_at=of.knowable_at,
        proposed_slot=of.proposed_slot,
    )


def _joined(variants: tuple[Recommendation, ...], blocks_of: Recommendation | None = None) -> tuple[Reason, ...]:
    """One variant's reasons as they are, of several each under its variant (`of`); what blocks names its series itself, once."""
    if len(variants) == 1:
        return variants[0].reasons
    said: list[Reason] = []
    blocks: list[Reason] = []
    for r in variants:
        of = {"variant": r.variant, "action": r.action, "code": r.code}
        said += [{**reason, "of": of} for reason in r.reasons if not reason.get("blocks")]
        if blocks_of is None or r is blocks_of:
            blocks += [reason for reason in r.reasons if reason.get("blocks") and reason not in blocks]
    return (*said, *blocks)


def _lower(variant_state: VariantState) -> float:
    return variant_state.latch.lower if variant_state.latch is not None else -math.inf


def _rule(variant_state: VariantState) -> int:
    return variant_state.latch.rule if variant_state.latch is not None else variant_state.rule
