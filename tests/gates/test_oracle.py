"""The engine against an oracle of the ten rules that shares nothing with it."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gates.engine.compiled import CompiledPlan, compile_plan
from gates.engine.doubt import doubted
from gates.engine.facts import SlotFacts
from gates.engine.fold import fold
from gates.engine.machine import StateMachine
from gates.engine.policy import canonical
from gates.engine.recommendations import recommended
from gates.engine.results import Recommendation
from gates.engine.state import ExperimentState
from gates.engine.verdicts import gate_verdicts
from tests.examples import examples
from tests.gates.oracle import Oracle
from tests.gates.worlds import world

FRESHNESS = ("fresh", "stale", "missing", "overdue")


def plain(value: object) -> Any:
    """Structs as dicts with every field, tuples as lists."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def said(compiled: CompiledPlan, state: ExperimentState, step: SlotFacts) -> dict[str, Any]:
    """What gates and freshness say after a step, as the oracle reads it."""
    fresh: dict[str, dict[str, str]] = {}
    for (metric, arm), status in zip(compiled.series, state.fresh, strict=True):
        fresh.setdefault(metric, {})[arm] = FRESHNESS[status]
    verdicts = gate_verdicts(compiled, state)
    gates = []
    for gate, variant, verdict in verdicts:
        told: dict[str, Any] = {"name": gate.name, "kind": gate.kind, "metric": gate.metric, "variant": variant}
        told |= {"verdict": verdict, "scope": gate.scope, "delete_below": gate.delete_below, "restated": False}
        if gate.kind in ("uplift", "guard", "target"):
            bounds = state.targets[compiled.targets.index(gate)] if gate.kind == "target" else None
            if bounds is None:
                g = next(g for g, comparison in enumerate(compiled.comparisons) if comparison.gate is gate)
                bounds = state.bounds[g * len(compiled.judged_variants) + compiled.judged_variants.index(str(variant))]
                look = step.looks.get(str(gate.metric))
                told["restated"] = look is not None and bool({compiled.control, variant} & set(look.restated))
            told |= {"why": bounds.why, "at": bounds.at, "arrived": bounds.arrived}
            kpi = compiled.plan.kpi(str(gate.metric))
            told |= {"effect": gate.effect, "plausible_to": kpi.plausible_to if kpi else None}
            told |= {"lower": bounds.running_lower, "upper": bounds.running_upper}
        elif gate.metric is not None:
            told["seen"], _ = state.observed[compiled.watch_index[f"{gate.name}/{variant}"]]
        gates.append(told)
    srm = next((verdict for gate, _, verdict in verdicts if gate.kind == "srm"), "pass")
    slot = {"slot": step.slot, "look": step.look, "final": step.final, "srm": srm, "fresh": fresh, "gates": gates}
    return {**slot, "doubted": [v for v in compiled.judged_variants if doubted(compiled, state, (v,))]}


def shown(r: Recommendation) -> dict[str, Any]:
    return {"shown": (r.action, r.code, r.state), "variant": r.variant}


def against(told: dict[str, Any], of: tuple[Recommendation, tuple[Recommendation, ...]]) -> None:
    """Hold what the oracle says of a slot against what the engine recommends there."""
    whole, variants = of
    assert shown(whole) == told[""]
    for r in variants:
        its = told[str(r.variant)]
        assert shown(r)["shown"] == its["shown"]
        assert (r.proposed_slot, r.first_stable_at, r.stands_alone) == (its["proposed"], its["stable"], its["alone"])


@examples(60)
@given(st.integers(0, 2**32))
def test_the_engine_proposes_at_every_slot_what_the_ten_rules_say(seed: int) -> None:
    w = world(seed)
    compiled = compile_plan(w.policy, w.plan)
    state = ExperimentState.at_start(compiled)
    machine = StateMachine(compiled, state)
    oracle = Oracle(canonical(w.policy), plain(w.plan))
    folded = fold(w.policy, w.plan, w.rows, to=w.end)
    told: dict[int, dict[str, Any]] = {}

    for step in folded.steps:
        machine.advance(step)
        told[step.slot] = oracle.judge(said(compiled, state, step))
        for variant, variant_state in zip(compiled.judged_variants, state.variant_states, strict=True):
            if variant in told[step.slot]:
                its = told[step.slot][variant]
                assert (variant_state.rule, variant_state.action, variant_state.code) == (
                    its["rule"],
                    its["action"],
                    its["code"],
                )
        against(told[step.slot], recommended(compiled, state))
    for evaluated in folded.evaluated_slots:  # the same by the fold, which passes over most looks
        newest = max((slot for slot in told if slot <= evaluated.slot), default=None)
        if newest is not None:
            against(told[newest], evaluated.recommended)
