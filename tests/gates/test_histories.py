"""300 seeded histories: what they come to, and what is so of each of them."""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from gates.engine.compiled import compile_plan
from gates.engine.evidence import canonical_bytes, evidence
from gates.engine.machine import StateMachine
from gates.engine.narration import Reader, in_words, sentence
from gates.engine.plan import from_us
from gates.engine.recommendations import RULES
from gates.engine.results import Evaluation
from gates.engine.state import ExperimentState
from tests.gates.golden import SEEDS, Golden, changes, kept, of
from tests.gates.test_reasons import rows_of_codes
from tests.gates.worlds import folded

SOME = SEEDS[:120]


def told() -> Iterator[Evaluation]:
    for seed in SOME:
        yield from folded(seed)[1].evaluations


def every_reason(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for recommendation in (evaluation.recommendation, *evaluation.variants):
        yield from recommendation.reasons
    for gate in evaluation.gates:
        yield from gate.reasons


def test_what_histories_say_is_codes_and_numbers_that_are_documented_and_can_be_told() -> None:
    documented = {code: words for codes_of_line, words in rows_of_codes() for code in codes_of_line}
    names = {"code", "blocks", "of", "metric", "variant", "gate", "control", "expected_every_s", "freshness_target_s"}
    seen = set()
    for evaluation in told():
        for reason in every_reason(evaluation):
            seen.add(reason["code"])
            assert reason.keys() - names <= documented[reason["code"]] | {"ts", "value"}, reason
            said = sentence(reason, Reader(from_us(evaluation.slot)))
            assert said.endswith(".")
            assert not said.startswith(reason["code"] + " ("), "it has no words"
    assert len(seen) > 30


def test_no_reason_of_a_recommendation_is_said_twice() -> None:
    for evaluation in told():
        for recommendation in (evaluation.recommendation, *evaluation.variants):
            said = in_words({"reasons": recommendation.reasons}, Reader())
            together = said["rationale"] + said["blockers"]
            assert len(set(together)) == len(together), together


def test_evidence_holds_no_sentence() -> None:
    for seed in SOME[:40]:
        w, found = folded(seed)
        document = json.loads(canonical_bytes(evidence(w.policy, w.plan, found, found.evaluations[-1].slot)))
        texts = [text for part in ("outcome", "steps", "now") for text in strings(document[part])]
        assert [text for text in texts if " " in text] == []


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(inner)


def test_each_rule_is_reached_and_says_just_what_the_table_has() -> None:
    said: dict[int, set[tuple[str, str]]] = defaultdict(set)
    for seed in SOME:
        w, found = folded(seed)
        compiled = compile_plan(w.policy, w.plan)
        state = ExperimentState.at_start(compiled)
        machine = StateMachine(compiled, state)
        for step in found.steps:
            machine.advance(step)
            for variant_state in state.variant_states:
                said[variant_state.rule].add((variant_state.action, variant_state.code))

    assert dict(said) == {rule.number: set(rule.says) for rule in RULES}


def test_three_hundred_histories_come_to_what_is_committed() -> None:
    assert list(changes({seed: of(seed) for seed in SEEDS})) == [], (
        "If the change is meant: uv run python -m tests.gates.golden"
    )


def test_each_column_tells_its_own_change_apart() -> None:
    found = kept()
    found[7] = Golden("0" * 16, found[7].state, found[7].proposals)

    assert list(changes(found)) == ["evidence: 1 of 300 histories differ, the first is world(7)"]
