"""The ten rules of docs/gates.md section 5, and what follows of them: streaks, proposals, the experiment's recommendation. Pure.

A judged variant is held against `RULES` at every slot; the first that matches says what to do. What it says is latched at once or
after a streak of looks, and stands until it is answered. `experiment_of` makes the experiment's recommendation of its variants'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gates.engine.compiled import CompiledPlan
from gates.engine.doubt import doubted
from gates.engine.facts import SlotFacts
from gates.engine.plan import DAY, Action, Answer
from gates.engine.results import Proposal, Reason, Recommendation, RecommendationState
from gates.engine.state import FRESH, MISSING, ExperimentState, Latch, RunningBounds, VariantState
from gates.engine.verdicts import concerns, dense_everywhere, is_fresh

HARM_LOOKS = 2
"""At how many looks in a row a guard has to fail before its harm is acted on."""

Said = tuple[Action, str]
"""(action, code)."""


class Case:
    """One judged variant with the experiment around it, as the rules ask of it at a slot."""

    __slots__ = (
        "arms",
        "compiled",
        "goals",
        "guards",
        "is_final",
        "measured",
        "state",
        "treatments",
        "variant",
        "variant_state",
    )

    def __init__(self, compiled: CompiledPlan, state: ExperimentState, index: int) -> None:
        width = len(compiled.judged_variants)
        self.compiled, self.state, self.variant = compiled, state, compiled.judged_variants[index]
        self.variant_state = state.variant_states[index]
        self.treatments = compiled.judged_variants if compiled.control is not None else ()
        self.measured: list[RunningBounds] = state.bounds[index::width] if self.treatments else state.targets
        self.goals = [self.measured[g] for g in compiled.goals]
        self.guards = [self.measured[g] for g in compiled.guards]
        self.arms: tuple[str, ...] = ()
        self.is_final = False

    @property
    def is_over(self) -> bool:
        """Whether the experiment has ended, or has run for max_days at the horizon."""
        compiled = self.compiled
        return self.is_final or compiled.clock.running(compiled.horizon(self.state.slot)) >= compiled.max_age

    @property
    def needs_every_goal(self) -> bool:
        return self.compiled.policy.require == "all" or not self.treatments

    @property
    def goals_pass(self) -> bool:
        passed = [bounds.verdict == "pass" for bounds in self.goals]
        return bool(passed) and (all(passed) if self.needs_every_goal else any(passed))


# When a rule matches, and what it says then ------------------------------------------------------------------------------


def _unsafe(case: Case) -> Said | None:
    state = case.state
    is_unsafe = "fail" in state.watched and any(
        verdict == "fail"
        and watch.gate.kind == "threshold"
        and state.fresh[watch.series] == FRESH
        and concerns(watch, case.variant, case.arms)
        for watch, verdict in zip(case.compiled.watches, state.watched, strict=True)
    )
    return ("delete", "unsafe") if is_unsafe else None


def _invalid(case: Case) -> Said | None:
    return ("review", "invalid") if case.state.alarm or True in [b.invalid for b in case.measured] else None


def _harmful(case: Case) -> Said | None:
    needed, compiled = 1 if case.is_final else HARM_LOOKS, case.compiled
    for comparison, bounds in zip(compiled.comparisons, case.measured, strict=False):
        if (
            bounds.fails >= needed
            and bounds.verdict == "fail"
            and not comparison.goal
            and is_fresh(compiled, case.state, comparison.kpi.metric, (compiled.control or "", case.variant))
        ):
            return "delete", "harm"
    return None


def _missing(case: Case) -> Said | None:
    compiled, state, arms = case.compiled, case.state, case.arms
    own = (compiled.control or case.variant, case.variant)
    stale = False
    if any(state.fresh):
        for (_, arm), fresh in zip(compiled.series, state.fresh, strict=True):
            if fresh == FRESH or arm not in arms:
                continue
            if fresh >= MISSING and arm in own:
                return "hold", "no_data"
            stale = stale or fresh != MISSING
    if "no_data" in [bounds.verdict for bounds in case.measured]:
        return "hold", "no_data"
    if "no_data" in state.watched:
        for watch, verdict in zip(compiled.watches, state.watched, strict=True):
            if verdict == "no_data" and (watch.variant in own or concerns(watch, case.variant, arms)):
                return "hold", "no_data"
    return ("hold", "stale") if stale else None


def _collecting(case: Case) -> Said | None:
    compiled, state = case.compiled, case.state
    if (state.doubts or state.exposed) and doubted(compiled, state, (case.variant,)):
        return "hold", "doubtful"
    lacking = (
        any(bounds.why for bounds in case.measured)
        or (compiled.density is not None and not dense_everywhere(compiled, state, case.arms))
        or any(
            watch.gate.kind == "density" and watch.variant in case.arms and verdict != "pass"
            for watch, verdict in zip(compiled.watches, state.watched, strict=True)
        )
    )
    return ("hold", "collecting") if lacking else None


def _too_small(case: Case) -> Said | None:
    if not case.treatments or not case.goals_pass:
        return None
    every = case.needs_every_goal
    small = [bounds.small for bounds in case.goals if every or bounds.verdict == "pass"]
    return ("review", "too_small") if (any(small) if every else all(small)) else None


def _wins(case: Case) -> Said | None:
    if not case.goals_pass:
        return None
    compiled, state = case.compiled, case.state
    others_pass = (
        all(bounds.verdict == "pass" for bounds in case.guards)
        and all(
            verdict == "pass"
            for watch, verdict in zip(compiled.watches, state.watched, strict=True)
            if concerns(watch, case.variant, case.arms)
        )
        and all(
            fresh == FRESH for (_, arm), fresh in zip(compiled.series, state.fresh, strict=True) if arm in case.arms
        )
    )
    if not others_pass:
        return None
    if True in [bounds.beyond and bounds.verdict == "pass" for bounds in case.goals]:
        return "review", "implausible"
    return "scale", "wins" if case.treatments else "on_target"


def _fails(case: Case) -> Said | None:
    failed = [bounds.verdict == "fail" for bounds in case.goals]
    if not failed or not (any(failed) if case.needs_every_goal else all(failed)):
        return None
    if not case.treatments:
        return "delete", "off_target"
    lost = any(bounds.lost for bounds, fails in zip(case.goals, failed, strict=True) if fails)
    return "delete", "harmful" if lost else "not_worth_it"


def _over(case: Case) -> Said | None:
    return UNDECIDED if case.is_over else None


def _open(_case: Case) -> Said | None:
    return "hold", "open"


UNDECIDED: Said = ("review", "undecided")
"""Once time is over."""


class Rule(NamedTuple):
    """One of the ten rules of docs/gates.md section 5.

    number: 1 to 10, in checkpoints. when: in a few words. says: each (action, code) it may say. matches: what it says of a case;
    None: it does not match. at_once: it proposes at the first slot it matches; the others at a look, after a streak.
    alone: what it proposes for a variant may be answered apart from the experiment. measured: what it proposes rests on running
    bounds, so restated rows suspend it. readable: everything it rests on is there, fresh, dense and above its floors.
    suspends_scale: a latched scale is suspended while it matches. past_due: what it says once time is over.
    holds_open: holding with it is worth telling once it has lasted.
    """

    number: int
    when: str
    says: tuple[Said, ...]
    matches: Callable[[Case], Said | None]
    at_once: bool = False
    alone: bool = False
    measured: bool = True
    readable: bool = False
    suspends_scale: bool = False
    past_due: Said | None = None
    holds_open: bool = False

    @property
    def acts(self) -> str:
        """How it acts, in the words of docs/gates.md; empty when it only holds."""
        if self.at_once:
            return "at once"
        if self.suspends_scale:
            return "suspends a scale"
        return "after a streak" if any(action != "hold" for action, _ in self.says) else ""


RULES = (
    Rule(1, "a safety limit is broken", (("delete", "unsafe"),), _unsafe, at_once=True, alone=True, measured=False),
    Rule(2, "the split or a reading is invalid", (("review", "invalid"),), _invalid, at_once=True, measured=False),
    Rule(3, "a guard is proved to be harmed", (("delete", "harm"),), _harmful, at_once=True, alone=True),
    Rule(4, "data is missing or too old", (("hold", "no_data"), ("hold", "stale"), UNDECIDED), _missing, suspends_scale=True, past_due=UNDECIDED),
    Rule(5, "rows are doubted, or buckets, days or units are lacking", (("hold", "doubtful"), ("hold", "collecting"), UNDECIDED), _collecting, suspends_scale=True, past_due=UNDECIDED),
    Rule(6, "the goals pass, by too little", (("review", "too_small"),), _too_small, readable=True),
    Rule(7, "the goals pass, and all else", (("scale", "wins"), ("scale", "on_target"), ("review", "implausible")), _wins, readable=True),
    Rule(8, "the goals fail", (("delete", "harmful"), ("delete", "not_worth_it"), ("delete", "off_target")), _fails, readable=True),
    Rule(9, "time is over", (UNDECIDED,), _over, readable=True),
    Rule(10, "else", (("hold", "open"),), _open, readable=True, holds_open=True),
)  # fmt: skip
"""The first that matches says what to do. Tests hold the table to what the machine does, and docs/gates.md to the table."""
AT_ONCE_CODES = frozenset(code for rule in RULES if rule.at_once for _, code in rule.says)
"""Danger is proposed again at once, whatever was answered before."""


def rule_of(number: int) -> Rule:
    return RULES[number - 1]


# Rules into what is proposed ---------------------------------------------------------------------------------------------


class Recommender:
    """Holds each judged variant against the rules, counts streaks, and latches what is proposed.

    changed: whether anything people see changed; whoever reads it resets it. measure_pending: brings numbers that a fast-forward
    has left behind up to date, before one is read.
    """

    def __init__(self, compiled: CompiledPlan, state: ExperimentState) -> None:
        self.compiled, self.state = compiled, state
        self.cases = [Case(compiled, state, index) for index in range(len(compiled.judged_variants))]
        self.changed = False
        self.measure_pending: Callable[[], None] | None = None

    def withdraw_restated(self, facts: SlotFacts) -> None:
        """Rows of these variants were restated: what holds is counted anew, and what was proposed on them waits until it has held again."""
        control, arms = self.compiled.control, self.compiled.arms(facts.slot)
        for look in facts.looks.values():
            for case in self.cases if look.restated else ():
                if case.variant in arms and (control in look.restated or case.variant in look.restated):
                    case.variant_state.streak = case.variant_state.hold_streak = 0
                    latch = case.variant_state.latch
                    if latch is not None and rule_of(latch.rule).measured:
                        latch.restated = self.changed = True

    def update(self, facts: SlotFacts) -> None:
        """What each variant still read says at a slot, once its verdicts are up to date."""
        arms = self.compiled.arms(facts.slot)
        for case in self.cases:
            if case.variant in arms:
                case.arms, case.is_final = arms, facts.final
                self._update_variant(case, facts)

    def _update_variant(self, case: Case, facts: SlotFacts) -> None:
        variant_state = case.variant_state
        rule, action, code, hold_code = self._match(case)
        if code != variant_state.code or rule.number != variant_state.rule or hold_code != variant_state.hold_code:
            variant_state.rule, variant_state.action = rule.number, action
            variant_state.code, variant_state.hold_code = code, hold_code
            self.changed = True
        if facts.look:
            self._count(case, rule, facts)
        if rule.at_once:
            self._propose_at_once(case, rule, facts)
        elif facts.look and action != "hold":
            self._propose_when_held(case, rule, facts)

    @staticmethod
    def _match(case: Case) -> tuple[Rule, Action, str, str]:
        """The first rule that matches, its (action, code), and what a hold is called meanwhile."""
        for rule in RULES:
            said = rule.matches(case)
            if said is not None:
                action, code = said
                hold_code = code if action == "hold" else "open"
                if rule.past_due is not None and case.is_over:
                    action, code = rule.past_due
                return rule, action, code, hold_code
        raise AssertionError("The last rule always matches.")

    def _count(self, case: Case, rule: Rule, facts: SlotFacts) -> None:
        """At how many looks in a row the action has held: those that brought newer rows to every goal and guard.

        Counted to `persist` and no further: more says nothing.
        """
        variant_state = case.variant_state
        instants = [b.at for b in case.measured]
        newer = is_newer(instants, variant_state.counted)
        persist = self.compiled.policy.persist
        if variant_state.action != variant_state.held:
            variant_state.held, variant_state.streak = variant_state.action, 0
        if not rule.holds_open:
            variant_state.hold_streak = 0
        if variant_state.readable_at is None and rule.readable:
            variant_state.readable_at = facts.slot
        counts = newer or variant_state.code == "undecided"
        if variant_state.action != "hold" and variant_state.streak < persist and (counts or facts.final):
            variant_state.streak = persist if facts.final else variant_state.streak + 1
            if variant_state.streak == persist:
                variant_state.stable_at, variant_state.knowable_at = self._held_at(case, facts)
        if rule.holds_open and newer and variant_state.hold_streak < persist:
            variant_state.hold_streak += 1
            if variant_state.hold_streak == persist:
                variant_state.hold_stable_at, variant_state.hold_knowable_at = self._held_at(case, facts)
        if newer:
            variant_state.counted = instants

    def _held_at(self, case: Case, facts: SlotFacts) -> tuple[int, int]:
        """Up to which instant a look reads, and when that could be known."""
        return self.compiled.horizon(facts.slot), max([facts.slot, *[b.arrived for b in case.measured]])

    def _propose_at_once(self, case: Case, rule: Rule, facts: SlotFacts) -> None:
        latch = case.variant_state.latch
        if latch is not None and rule_of(latch.rule).at_once and latch.action == case.variant_state.action:
            if latch.restated and latch.rule == rule.number:
                latch.restated = False
                self.changed = True
            return
        stable_at, arrived = self.compiled.horizon(facts.slot), 0
        if case.variant_state.code != "unsafe":
            arrived = max((b.arrived for b in case.measured), default=0)
        else:  # known with the newest observation that broke the limit
            state = self.state
            stable_at, arrived = max(
                seen
                for seen, verdict, watch in zip(state.observed, state.watched, self.compiled.watches, strict=True)
                if verdict == "fail" and concerns(watch, case.variant, case.arms)
            )
        self._propose(case, rule, facts.slot, stable_at, max(facts.slot, arrived))

    def _propose_when_held(self, case: Case, rule: Rule, facts: SlotFacts) -> None:
        variant_state = case.variant_state
        if variant_state.streak < self.compiled.policy.persist:
            return
        latch = variant_state.latch
        if latch is not None:
            if latch.restated and latch.action == variant_state.action:
                latch.restated = False
                self.changed = True
                return
            replaceable = latch.code == "undecided" and variant_state.action in ("scale", "delete")
            if not latch.restated and not replaceable:
                return
        self._propose(case, rule, facts.slot, variant_state.stable_at, variant_state.knowable_at)

    def _propose(self, case: Case, rule: Rule, slot: int, stable_at: int, knowable_at: int) -> None:
        variant_state = case.variant_state
        if any(
            (action, code) == (variant_state.action, variant_state.code) and slot < until
            for action, code, until in variant_state.snoozed
        ):
            return
        lower = -math.inf
        if variant_state.action == "scale" and case.treatments:
            if self.measure_pending is not None:
                self.measure_pending()
            lower = max((b.running_lower for b in case.goals if b.running_lower is not None), default=lower)
        variant_state.latch = Latch(
            rule=rule.number,
            action=variant_state.action,
            code=variant_state.code,
            slot=slot,
            stable_at=stable_at,
            knowable_at=knowable_at,
            lower=lower,
        )
        self.changed = True

    def apply_answers(self, slot: int) -> None:
        """Take what people have answered by a slot away from what is proposed."""
        state, compiled = self.state, self.compiled
        while state.answered < len(compiled.answers) and compiled.answers[state.answered].at <= slot:
            answer = compiled.answers[state.answered]
            state.answered += 1
            self.changed = True
            for variant, variant_state in zip(compiled.judged_variants, state.variant_states, strict=True):
                if answer.variant is None or answer.variant == variant:
                    self._apply_answer(answer, variant_state)

    def _apply_answer(self, answer: Answer, variant_state: VariantState) -> None:
        """Take an answered proposal away, and do not ask the same again for a while."""
        answered = [answer.of]
        latch = variant_state.latch
        if (
            latch is not None
            and latch.action == answer.of[0]
            and (answer.variant is None or latch.code == answer.of[1])
        ):
            answered.append((latch.action, latch.code))
            variant_state.latch = None
        until = answer.at + self.compiled.policy.snooze_days * DAY
        variant_state.snoozed = [entry for entry in variant_state.snoozed if entry[2] > answer.at]
        for action, code in dict.fromkeys(answered):
            acknowledged = answer.action == "accept" and action == "review"
            if acknowledged or (answer.action == "override" and code not in AT_ONCE_CODES):
                variant_state.snoozed.append((action, code, until))

    def is_counting(self) -> bool:
        """Whether the next look may change something even if no verdict changes: something is being counted."""
        persist, arms = self.compiled.policy.persist, self.compiled.arms(self.state.slot)
        for case in self.cases:
            variant_state = case.variant_state
            if case.variant not in arms:
                continue
            rule, latch = rule_of(variant_state.rule), variant_state.latch
            waits = latch is None or latch.restated or (latch.code == "undecided" and variant_state.action != "review")
            if not rule.at_once and variant_state.action != "hold" and (waits or variant_state.streak < persist):
                return True
            if variant_state.action != variant_state.held or (rule.at_once and variant_state.streak < persist):
                return True
            if variant_state.readable_at is None and rule.readable:
                return True
            if rule.holds_open != (variant_state.hold_streak > 0) or 0 < variant_state.hold_streak < persist:
                return True
            for comparison, bounds in zip(self.compiled.comparisons, case.measured, strict=True):
                if not comparison.goal and bounds.verdict == "fail" and bounds.fails < HARM_LOOKS:
                    return True
        return False


# What is recommended -----------------------------------------------------------------------------------------------------


def is_newer(instants: Sequence[int | None], counted: Sequence[int | None]) -> bool:
    """Whether every gate has read newer rows than at the last look that counted."""
    for at, was in zip(instants, counted, strict=False):
        if at is None or (was is not None and at <= was):
            return False
    return bool(instants)


def state_of(variant_state: VariantState) -> RecommendationState:
    """A latched scale is suspended while what it needs is missing, anything measured while its rows were restated."""
    latch = variant_state.latch
    if latch is None:
        return "open"
    suspended = latch.restated or (latch.action == "scale" and rule_of(variant_state.rule).suspends_scale)
    return "suspended" if suspended else "proposed"


def shown_of(variant_state: VariantState) -> tuple[str, str, str]:
    """(action, code, state) of a judged variant as people see it."""
    latch = variant_state.latch
    if latch is None:
        return "hold", variant_state.hold_code, "open"
    return latch.action, latch.code, state_of(variant_state)


def recommended(compiled: CompiledPlan, state: ExperimentState) -> tuple[Recommendation, tuple[Recommendation, ...]]:
    """What is recommended of the experiment and of each variant, without a word why."""
    arms = compiled.arms(state.slot)
    variants = tuple(
        recommendation_of(compiled, variant_state, variant, ())
        for variant_state, variant in zip(state.variant_states, compiled.judged_variants, strict=True)
        if variant in arms
    )
    return experiment_of(compiled, state, variants), variants


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
        lead = min(variants, key=lambda r: _leading_rule(variant_state[str(r.variant)]))
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
        lead = min(reviews, key=lambda r: (_leading_rule(variant_state[str(r.variant)]), r.proposed_slot or 0))
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


def recommendation_of(
    compiled: CompiledPlan, variant_state: VariantState, variant: str, reasons: tuple[Reason, ...]
) -> Recommendation:
    action, code, state = shown_of(variant_state)
    latch = variant_state.latch
    stable_at: int | None = None
    knowable_at: int | None = None
    if latch is not None:
        stable_at, knowable_at = latch.stable_at, latch.knowable_at
    elif rule_of(variant_state.rule).holds_open and variant_state.hold_streak >= compiled.policy.persist:
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
        stands_alone=latch is not None and rule_of(latch.rule).alone,
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


def _leading_rule(variant_state: VariantState) -> int:
    return variant_state.latch.rule if variant_state.latch is not None else variant_state.rule


def proposals(compiled: CompiledPlan, state: ExperimentState) -> tuple[Proposal, ...]:
    """What is latched, of the variants still read."""
    arms = compiled.arms(state.slot)
    return tuple(
        [
            Proposal(
                variant=variant,
                action=latch.action,
                code=latch.code,
                proposed_slot=latch.slot,
                state=state_of(variant_state),
                first_stable_at=latch.stable_at,
                knowable_at=latch.knowable_at,
                stands_alone=rule_of(latch.rule).alone,
            )
            for variant, variant_state in zip(compiled.judged_variants, state.variant_states, strict=True)
            if (latch := variant_state.latch) is not None and variant in arms
        ]
    )
