"""The fold: stored rows in, evaluations out, slot after slot, as docs/gates.md says. Pure.

`fold` judges every slot up to one, either from the start (a rebuild) or on from the `Checkpoint` of an earlier fold; both give
exactly the same. It is event-driven: slots at which nothing can change are skipped, never approximated. The rows become
facts (`gates.engine.facts`) in `FactExtractor`; what follows from facts is decided by `StateMachine` alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cached_property

import msgspec
import numpy as np
from msgspec.structs import replace

from gates.engine.checkpoint import (
    BODY,
    ENCODER,
    Body,
    Checkpoint,
    CheckpointOutdated,
    OlderCheckpoint,
    Progress,
    checkpoint_of,
    fingerprint_of,
    older_checkpoint,
    thin_out,
)
from gates.engine.compiled import CompiledPlan, compile_plan
from gates.engine.extraction import FactExtractor, SlotFactsOfRange
from gates.engine.facts import SlotFacts, SlotSnapshot
from gates.engine.machine import StateMachine
from gates.engine.plan import DAY, Plan, rfc3339
from gates.engine.policy import Policy
from gates.engine.reasons import evaluation_of
from gates.engine.recommendations import proposals, recommended
from gates.engine.results import Evaluation, Proposal, Recommendation
from gates.engine.screening import FastForward
from gates.engine.series import Rows
from gates.engine.state import FRESH, ExperimentState


class EvaluatedSlot:
    """The experiment as of one slot. What it rests on and says is put together when it is read; state, which moves on, is kept."""

    def __init__(
        self,
        compiled: CompiledPlan,
        state: ExperimentState | bytes,
        extractor: FactExtractor,
        slot: int,
        *,
        changed: bool,
    ) -> None:
        self.slot, self.changed = slot, changed
        self._compiled, self._checkpoint_of, self._extractor = compiled, state, extractor

    @cached_property
    def detail(self) -> SlotSnapshot:
        return self._extractor.detail(self.slot)

    @cached_property
    def state(self) -> ExperimentState:
        held = self._checkpoint_of
        return msgspec.msgpack.decode(held, type=ExperimentState) if isinstance(held, bytes) else held

    @cached_property
    def basis(self) -> str:
        """A digest of all that `evaluation` follows from beside policy and plan: where it is the same, nothing is told anew.

        Of a series that is fresh it does not matter which row makes it so.
        """
        detail, state = self.detail, replace(self.state, slot=0)
        late = {
            name: detail.fresh[name]
            for name, status in zip(self._compiled.series_index, state.fresh, strict=True)
            if status != FRESH and name in detail.fresh
        }
        told = ENCODER.encode((state, late, detail.watched, detail.dense, detail.split))
        return hashlib.blake2b(told, digest_size=12).hexdigest()

    @cached_property
    def evaluation(self) -> Evaluation:
        return evaluation_of(self._compiled, self.state, self.detail, changed=self.changed)

    @cached_property
    def recommended(self) -> tuple[Recommendation, tuple[Recommendation, ...]]:
        """Of the experiment and of each variant, as in `evaluation` but without its sentences, which cost most of it."""
        return recommended(self._compiled, self.state)


class FoldResult(msgspec.Struct, frozen=True, dict=True):
    """What one fold found.

    evaluated_slots: oldest first, the slots at which something changed, and always the newest slot judged. steps: the facts of
    every slot of this fold that changed any. proposals: what is latched at the end. rebuilt: from the start, so steps are
    complete. first_readable_at: the first look that was fresh, dense and had its floors and min_days.
    """

    checkpoint: Checkpoint
    evaluated_slots: tuple[EvaluatedSlot, ...]
    proposals: tuple[Proposal, ...]
    first_readable_at: int | None
    rebuilt: bool
    ranges: tuple[SlotFactsOfRange, ...]

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return tuple(evaluated.evaluation for evaluated in self.evaluated_slots)

    @property
    def details(self) -> tuple[SlotSnapshot, ...]:
        """The facts each evaluation quotes."""
        return tuple(evaluated.detail for evaluated in self.evaluated_slots)

    @cached_property
    def steps(self) -> tuple[SlotFacts, ...]:
        """Written out when asked for: a few hundred objects that only evidence needs."""
        return tuple(step for facts in self.ranges for step in facts.steps())


def fold(policy: Policy, plan: Plan, rows: Rows, *, to: int, checkpoint: Checkpoint | None = None) -> FoldResult:
    """Judge every slot after `checkpoint` (or the start) up to and including the last one at or before `to`.

    rows: with a checkpoint, at least those of `checkpoint.needs_rows_after()`; else all. Raises CheckpointOutdated when `checkpoint` does not
    `fits` policy and plan.
    """
    compiled = compile_plan(policy, plan)
    if checkpoint is not None and checkpoint.fingerprint != fingerprint_of(compiled, checkpoint.slot):
        raise CheckpointOutdated(
            f"The checkpoint of slot {rfc3339(checkpoint.slot)} was folded under other facts. Go back or rebuild."
        )
    newest = compiled.newest_judged(to)
    if checkpoint is not None and checkpoint.slot >= plan.created_at:
        body = BODY.decode(checkpoint.body)
        slot, older, rebuilt = checkpoint.slot, list(checkpoint.older), False
        if newest is not None and newest > slot:
            older.insert(0, OlderCheckpoint(slot, ENCODER.encode(replace(checkpoint, older=()))))
    else:
        body = Body(Progress.at_start(compiled), ExperimentState.at_start(compiled))
        slot, older, rebuilt = plan.started_at, [], True
    ranges: list[SlotFactsOfRange] = []
    evaluated: list[EvaluatedSlot] = []
    if newest is not None and newest > slot:
        machine = StateMachine(compiled, body.state)
        for end in _ranges(compiled, slot, newest):
            extractor = FactExtractor(compiled, body.progress, rows, slot, end)
            # numbers beyond reason end as no reading
            with np.errstate(all="ignore") if extractor.is_long else nullcontext():
                facts, told = _judge_range(machine, extractor, newest)
            ranges.append(facts)
            evaluated += told
            slot = end
            if end != newest:
                older.insert(0, older_checkpoint(compiled, body, end))
    elif newest is not None and checkpoint is not None:  # the newest slot once more
        extractor = FactExtractor(compiled, body.progress, rows, slot, slot)
        evaluated.append(EvaluatedSlot(compiled, body.state, extractor, slot, changed=False))
    reached = max(slot, newest or slot)
    return FoldResult(
        checkpoint=checkpoint_of(compiled, body, reached, thin_out(older, reached)),
        evaluated_slots=tuple(evaluated),
        proposals=proposals(compiled, body.state),
        first_readable_at=min(
            [s.readable_at for s in body.state.variant_states if s.readable_at is not None], default=None
        ),
        rebuilt=rebuilt,
        ranges=tuple(ranges),
    )


def at_start(policy: Policy, plan: Plan) -> Evaluation:
    """The experiment before its first slot: every gate of the plan, none with data, each saying what it waits for."""
    compiled, start = compile_plan(policy, plan), plan.started_at
    extractor = FactExtractor(compiled, Progress.at_start(compiled), {}, start, start)
    return EvaluatedSlot(compiled, ExperimentState.at_start(compiled), extractor, start, changed=False).evaluation


def _judge_range(
    machine: StateMachine, extractor: FactExtractor, newest: int
) -> tuple[SlotFactsOfRange, list[EvaluatedSlot]]:
    """Judge the slots of a range, over which the arms stay the same: its facts, and those slots that are to be told."""
    compiled, state = machine.compiled, machine.state
    facts, evaluated = extractor.facts(), []
    stops: Iterable[tuple[int, bool]]
    if facts.tracks:
        stops = FastForward(machine, facts.looks, facts.tracks).stops(facts.by_slot)
    else:
        stops = ((step.slot, machine.advance(step)) for step in facts.steps())
    judged = extractor.after
    for slot, changed in stops:
        if slot == newest or changed:
            if (measure_pending := machine.recommender.measure_pending) is not None:
                measure_pending()
            kept = state if slot == newest else ENCODER.encode(state)
            evaluated.append(EvaluatedSlot(compiled, kept, extractor, slot, changed=changed))
        judged = slot
    state.slot = extractor.to
    if extractor.to == newest and judged != newest:
        evaluated.append(EvaluatedSlot(compiled, state, extractor, newest, changed=False))
    extractor.close()
    return facts, evaluated


def _ranges(compiled: CompiledPlan, after: int, to: int) -> list[int]:
    """Ends of the ranges (after, to] falls into: where arms change, and in a long one where a checkpoint is worth keeping."""
    is_long = to - after >= DAY
    if not is_long and not compiled.dropped:
        return [to]
    ends = {compiled.slot_at(dropped_at) - compiled.slot_us for dropped_at in compiled.dropped.values()}
    if is_long:
        ends.add(max((to - compiled.look_us) // compiled.slot_us * compiled.slot_us, compiled.created))
    judged = {newest for end in ends if (newest := compiled.newest_judged(end)) is not None}
    return sorted({to, *(end for end in judged if after < end < to)})
