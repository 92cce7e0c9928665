"""Evidence: everything a recommendation rests on, as canonical JSON, and its replay to the same bytes. Pure.

Canonical: sorted keys, no spaces, UTF-8, floats as their shortest round trip, readings and bounds rounded to 12 significant
digits. The facts inside count instants in microseconds since the epoch; `slot`, `from` and `to` are RFC 3339.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from decisioning.refusals import Refused
from gates.engine.compiled import REVISION, compile_plan
from gates.engine.facts import SlotFacts, SlotSnapshot
from gates.engine.fold import FoldResult
from gates.engine.plan import Plan, rfc3339
from gates.engine.policy import Policy, canonical
from gates.engine.policy_checks import parse
from gates.engine.reasons import evaluation_of
from gates.engine.results import Evaluation
from gates.engine.revisions import REVISIONS, SINCE_REVISION_3, machine_of
from gates.engine.state import ExperimentState

FORMAT = 3
"""1 did not name the revision of the rules (`rules`), of which there was one. 1 and 2 held sentences in place of reasons."""


_WITH_REASONS = 3


class EvidenceRefused(Refused):
    """The bytes are no evidence this version can replay, or there is no evidence to make."""

    def __init__(self, message: str) -> None:
        super().__init__("not_replayable", message, status=409)


def evidence(policy: Policy, plan: Plan, folded: FoldResult, slot: int) -> dict[str, Any]:
    """The evidence of the evaluation at `slot` of a rebuild (a fold from the start, so that `folded.steps` are all steps).

    Raises EvidenceRefused when that fold evaluated nothing at `slot` or did not begin at the start.
    """
    evaluation = next((e for e in folded.evaluations if e.slot == slot), None)
    detail = next((d for d in folded.details if d.slot == slot), None)
    if evaluation is None or detail is None:
        raise EvidenceRefused(f"The fold has no evaluation at {rfc3339(slot)}.")
    if not folded.rebuilt:
        raise EvidenceRefused("The fold went on from a state. Evidence needs every step: fold again without it.")
    steps = [step for step in folded.steps if step.slot <= slot]
    return assemble(policy, plan, steps, detail, evaluation)


def replay(document: bytes) -> bytes:
    """The evidence recomputed from itself: the rules it was made by run over its steps again. Equal bytes mean that it proves what
    it says.

    Raises EvidenceRefused for what is no evidence that this version can replay.
    """
    try:
        given = json.loads(document)
        form: int = given["format"]
        revision: int = 1 if form == 1 else given["rules"]
        if form not in range(1, FORMAT + 1) or revision not in REVISIONS:
            raise EvidenceRefused(
                f"Evidence of format {form!r} by rules of revision {revision!r}; this version replays formats 1 to {FORMAT}, "
                f"revisions {REVISIONS[0]} to {REVISIONS[-1]}."
            )
        named = given["policy"]
        policy = parse(named["body"], name=named["name"], version=named["version"])
        plan = msgspec.convert(given["plan"], Plan)
        steps = msgspec.convert(given["steps"], list[SlotFacts])
        detail = msgspec.convert(given["now"], SlotSnapshot)
    except (ValueError, KeyError, TypeError) as error:
        raise EvidenceRefused(f"No evidence: {error}") from error
    compiled = compile_plan(policy, plan, revision)
    state = ExperimentState.at_start(compiled)
    machine = machine_of(compiled, state)
    changed = False
    for step in steps:
        changed = machine.advance(step) and step.slot == detail.slot
    state.slot = detail.slot
    evaluation = evaluation_of(compiled, state, detail, changed=changed)
    again = assemble(policy, plan, steps, detail, evaluation, revision, form)
    if form < _WITH_REASONS:
        try:
            _quote(again["outcome"], given["outcome"])
        except (KeyError, TypeError) as error:
            raise EvidenceRefused(f"No evidence: its outcome lacks {error}") from error
    if again["policy"]["body"] == named["body"]:  # an equal number may have been written otherwise: 100000 and 100000.0
        again["policy"]["body"] = named["body"]
    return canonical_bytes(again)


def canonical_bytes(document: Any) -> bytes:
    """Sorted keys, no spaces, shortest floats; raises ValueError for NaN and infinities.

    >>> canonical_bytes({"b": 0.1, "a": [1, None]})
    b'{"a":[1,null],"b":0.1}'
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def step_bytes(step: SlotFacts) -> bytes:
    """One step as evidence holds it, so that it is made once for all the evidence it is in."""
    return canonical_bytes(msgspec.to_builtins(step))


def bytes_with(steps: bytes, policy: Policy, plan: Plan, detail: SlotSnapshot, evaluation: Evaluation) -> bytes:
    """`canonical_bytes` of `assemble`, its steps made already: `step_bytes` of each, with commas between them."""
    without = canonical_bytes(assemble(policy, plan, [], detail, evaluation))
    return b"".join((without.removesuffix(b"]}"), steps, b"]}"))  # steps come last in the order of keys


def digest(document: bytes) -> str:
    """`sha256:<hex>` of canonical bytes.

    >>> digest(b"{}")[:16]
    'sha256:44136fa35'
    """
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


def outcome(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain JSON values, instants in RFC 3339."""
    plain: dict[str, Any] = msgspec.to_builtins(evaluation)
    plain["slot"] = rfc3339(evaluation.slot)
    for recommendation in (plain["recommendation"], *plain["variants"]):
        for key in ("first_stable_at", "knowable_at", "proposed_slot"):
            if recommendation[key] is not None:
                recommendation[key] = rfc3339(recommendation[key])
    for gate in plain["gates"]:
        gate["since"] = rfc3339(gate["since"])
        if gate["reading"] is not None:
            gate["reading"]["at"] = rfc3339(gate["reading"]["at"])
    return plain


def _quote(outcome: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Put the sentences of old evidence in place of reasons, as they were written: they were made of what is computed again here,
    by words that are nobody's concern any more."""
    for told, was in zip(
        (outcome["recommendation"], *outcome["variants"]), (given["recommendation"], *given["variants"]), strict=False
    ):
        del told["reasons"]
        told |= {"rationale": was["rationale"], "blockers": was["blockers"]}
    for gate, was in zip(outcome["gates"], given["gates"], strict=False):
        del gate["reasons"]
        gate["reason"] = was["reason"]


def assemble(
    policy: Policy,
    plan: Plan,
    steps: list[SlotFacts],
    detail: SlotSnapshot,
    evaluation: Evaluation,
    revision: int = REVISION,
    form: int = FORMAT,
) -> dict[str, Any]:
    """The evidence of one evaluation. steps: those of every slot from the start up to its own, however many folds found them."""
    body = canonical(policy)
    if revision < 3:
        body = {key: value for key, value in body.items() if key not in SINCE_REVISION_3}
    return {
        **({"format": form, "rules": revision} if form > 1 else {"format": form}),
        "slot": rfc3339(detail.slot),
        "policy": {"name": policy.name, "version": policy.version, "body": body},
        # Read back once: which defaults are left out depends on the identity of strings, not on their text alone.
        "plan": msgspec.to_builtins(msgspec.convert(msgspec.to_builtins(plan), Plan)),
        "steps": msgspec.to_builtins(steps),
        "now": msgspec.to_builtins(detail),
        "outcome": outcome(evaluation),
    }
