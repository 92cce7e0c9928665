"""The state machine: the facts of one slot after the other move the state of an experiment. Pure.

Nothing else decides: the fold only finds the facts, replay runs the same facts again, and `gates.engine.screening` says at which
looks the machine need not stop.
"""

from __future__ import annotations

from collections.abc import Callable

from gates.engine.compiled import CompiledPlan
from gates.engine.facts import SlotFacts
from gates.engine.recommendations import Recommender, shown_of
from gates.engine.state import ExperimentState
from gates.engine.verdicts import Verdicts, gate_verdicts


class StateMachine:
    """`advance` takes the facts of one slot after the other, and moves `state` over them.

    verdicts: those of an earlier revision of the rules, to replay what it judged.
    """

    def __init__(self, compiled: CompiledPlan, state: ExperimentState, verdicts: Verdicts | None = None) -> None:
        self.compiled, self.state = compiled, state
        self.verdicts = verdicts or Verdicts(compiled, state)
        self.recommender = Recommender(compiled, state)
        self.is_new = not state.shown

    def advance(self, facts: SlotFacts, apply_look: Callable[[], None] | None = None) -> bool:
        """Move the state over one slot; True when an action, code, state or verdict changed.

        1. What people answered by now is taken away. 2. The slot's facts give the verdicts of freshness, density, thresholds and
        the split. 3. At a look, goals, guards and targets are read (apply_look: in another way). 4. Each variant is held against
        the rules, which propose. 5. What changed is recorded.
        """
        state, verdicts, recommender = self.state, self.verdicts, self.recommender
        state.slot = facts.slot
        if state.answered < len(self.compiled.answers):
            recommender.apply_answers(facts.slot)
        if facts.fresh or facts.dense or facts.watched or facts.split:
            verdicts.apply_slot_facts(facts)
        if facts.scatter or facts.exposed or facts.slot in self.compiled.trust_slots:
            verdicts.apply_doubts(facts)
        if facts.look:
            if apply_look is not None:
                apply_look()
            else:
                verdicts.apply_look(facts)
                recommender.withdraw_restated(facts)
        recommender.update(facts)
        may_differ = self.is_new or verdicts.changed or recommender.changed
        self.is_new = verdicts.changed = recommender.changed = False
        return may_differ and self._record_changes(facts.slot)

    def _record_changes(self, slot: int) -> bool:
        """Record since when each verdict stands; True when anything a person sees is other than before."""
        state, compiled = self.state, self.compiled
        changed = False
        for gate, variant, verdict in gate_verdicts(compiled, state):
            name = f"{gate.name}/{variant or ''}"
            before = state.since.get(name)
            if before is None or before[0] != verdict:
                state.since[name] = (verdict, slot)
                changed = True
        arms = compiled.arms(slot)
        shown = [
            shown_of(s)
            for s, variant in zip(state.variant_states, compiled.judged_variants, strict=True)
            if variant in arms
        ]
        if shown != state.shown:
            state.shown = shown
            changed = True
        return changed
