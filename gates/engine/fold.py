"""The fold: stored rows in, evaluations out, slot after slot, as docs/gates.md says. Pure.

`fold` judges every slot up to one, either from the start (a rebuild) or on from the `Checkpoint` of an earlier fold; both give
exactly the same. It is event-driven: slots at which nothing can change are skipped, never approximated. The rows become
facts (`gates.engine.facts`) in `FactExtractor`; what follows from facts is decided in `gates.engine.machine` alone.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple, TypeGuard

import msgspec
import numpy as np
from msgspec.structs import replace

from gates.engine.facts import Days, MetricLook, Observations, SlotFacts, SlotSnapshot, Sums
from gates.engine.machine import (
    FRESH,
    LOG_ALARM,
    OVERDUE,
    REVISION,
    STALE,
    CompiledPlan,
    Evaluation,
    ExperimentState,
    Recommendation,
    SeriesSpec,
    StateMachine,
    Watch,
    compile_plan,
    freshness,
    is_dense,
    split_log_e,
    state_of,
    watch_verdict,
)
from gates.engine.narration import evaluation_of, recommended
from gates.engine.plan import DAY, Plan, rfc3339
from gates.engine.policy import Gate, Policy
from gates.engine.screening import NEAR, MetricTrack
from gates.engine.series import Rows, Series, SeriesKey
from gates.engine.statistics.moments import (
    NO_PAIRS,
    NOTHING,
    Moments,
    PairMoments,
    chain,
    chain_pairs,
    merge,
    merge_pairs,
    of_mean,
    of_proportion,
    of_ratio,
)
from gates.engine.statistics.srm import srm_log_e_at_most

FORMAT = 5
"""Of a checkpoint: one of another format is folded anew."""
NEVER, NO_END = -1, 2**62
"""Instants before and after every row."""
FEW_LOOKS = 6
"""Below this many looks screening costs more than it saves."""
MANY = 64
"""From this many rows on arrays are faster than loops."""
CORRECTED = 1_000
"""A cumulative n that falls by at most one in so many is a correction; users who ask to be forgotten are no restatement."""
EXACT = 2**53
"""Up to this integers are exact as floats."""
EMPTY = Series(ts=(), value=(), n=(), variance=(), first_received_at=())


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


class SeriesProgress(msgspec.Struct, array_like=True):
    """How far one series is read. Rows up to `base` are never needed again; the rest of the fields sum them up.

    row_before: what the newest of them says, of a cumulative series. place_before: its place, NEVER without one. news_before, news_place_before: ts
    and place of the newest that was news. units_before: their units, -1: one does not say. through: ts of the newest row merged
    into `sums`. filled: how many of the due instants expected are settled, filled_to the last of them; gaps: which of them nothing
    answered, counted from 0.
    """

    base: int
    row_before: tuple[float | int | None, ...] | None = None
    place_before: int = -1
    units_before: int = 0
    news_before: int | None = None
    news_place_before: int | None = None
    through: int = 0
    sums: Sums | None = None
    n_through: int | None = None
    unreadable: str = ""
    arrived: int = 0
    watermark: int | None = None
    received_at: int | None = None
    status: int = 2
    filled: int = 0
    filled_to: int = 0
    gaps: list[int] = []
    dense: bool = False


class Progress(msgspec.Struct, array_like=True):
    """How far all rows are read: per series of the compiled plan, per compared metric its common instant, per watch and target."""

    series: list[SeriesProgress]
    instants: list[int | None]
    watched: list[Observations]
    watch_verdicts: list[str]
    target_days: list[dict[str, tuple[float, float, bool]]]
    target_seen: list[tuple[int | None, int]]
    target_through: list[int]
    alarmed: list[str] = []

    @classmethod
    def at_start(cls, compiled: CompiledPlan) -> Progress:
        start = compiled.plan.started_at
        return cls(
            series=[SeriesProgress(base=start, through=start, filled_to=spec.dues.start) for spec in compiled.specs],
            instants=[None] * len(compiled.compared),
            watched=[Observations((), 0)] * len(compiled.watches),
            watch_verdicts=["no_data"] * len(compiled.watches),
            target_days=[{} for _ in compiled.targets],
            target_seen=[(None, 0)] * len(compiled.targets),
            target_through=[start] * len(compiled.targets),
        )


class _Body(msgspec.Struct, array_like=True):
    progress: Progress
    state: ExperimentState


_ENCODER, _BODY = msgspec.msgpack.Encoder(order="deterministic"), msgspec.msgpack.Decoder(_Body)


class OlderCheckpoint(msgspec.Struct, frozen=True, array_like=True):
    """The checkpoint as it was after an earlier slot, to go back to."""

    slot: int
    body: bytes


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Where a fold stands after `slot`. `to_bytes` and `from_bytes` are exact inverses.

    fingerprint: a digest of policy and plan as far as they reach back behind `slot`. visibility_lags: per metric read, how far behind the slot
    its newest instant judged lies. older: earlier checkpoints, newest first, thinning with age. revision: of the rules that judged.
    """

    slot: int
    fingerprint: str
    visibility_lags: dict[str, int]
    needs: dict[str, int]
    body: bytes
    older: tuple[OlderCheckpoint, ...] = ()
    revision: int = 1  # what checkpoints are that do not say it

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Raises CheckpointOutdated when another version wrote it in another shape."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError:
            raise CheckpointOutdated("The checkpoint was written by another version. Rebuild.") from None

    def needs_rows_after(self) -> dict[SeriesKey, int]:
        """Per series the instant: the next fold has to be given every row of it with ts > that (more does no harm)."""
        return {(name.partition("/")[0], name.partition("/")[2]): base for name, base in self.needs.items()}

    def judged_to(self, metric: str) -> int | None:
        """The newest instant judged for a metric; None when no gate reads it.

        A row with ts <= this that appears makes the checkpoint wrong, and so does one with ts <= `slot` that changes, goes, or says
        that it arrived at or before `slot`: continue from `restore_before`.
        """
        overdue_after = self.visibility_lags.get(metric)
        return None if overdue_after is None else self.slot - overdue_after

    def restore_before(self, metric: str, ts: int, *, late: bool = True) -> Checkpoint | None:
        """The newest kept checkpoint that cannot have read a row of `metric` at `ts`; None: rebuild.

        late: the row is new and first arrived after `slot`; False when it changed, went, or arrived before and was not seen.
        """
        overdue_after = self.visibility_lags.get(metric)
        if overdue_after is None:
            return self
        behind = overdue_after if late else 0
        return self if ts > self.slot - behind else self.restore_at(ts + behind - 1)

    def restore_at(self, slot: int) -> Checkpoint | None:
        """The newest kept checkpoint of a slot at or before this one; None: rebuild."""
        if self.slot <= slot:
            return self
        for position, older in enumerate(self.older):
            if older.slot <= slot:
                restored = msgspec.msgpack.decode(older.body, type=Checkpoint)
                return replace(restored, older=self.older[position + 1 :])
        return None

    def fits(self, policy: Policy, plan: Plan) -> bool:
        """Whether policy and plan still say what they said when this was folded; if not, `restore_at` or rebuild.

        One of an earlier revision of the rules (`is_mended`) never fits: rebuild.
        """
        return self.fingerprint == _fingerprint(compile_plan(policy, plan), self.slot)

    @property
    def is_mended(self) -> bool:
        """Whether the rules that judged it were mended since."""
        return self.revision != REVISION


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


class SlotFactsOfRange(NamedTuple):
    """The facts of one range of slots: by slot, and tracks of compared metrics apart."""

    by_slot: dict[int, SlotFacts]
    looks: Sequence[int]
    tracks: dict[str, MetricTrack]

    def steps(self) -> list[SlotFacts]:
        if not self.tracks:
            return [self.by_slot[slot] for slot in sorted(self.by_slot)]
        metric_looks: dict[int, dict[str, MetricLook]] = {}
        for metric, track in self.tracks.items():
            for k, look in enumerate(track.looks):
                metric_looks.setdefault(look, {})[metric] = track.look(k)
        steps = []
        for slot in sorted({*self.by_slot, *self.looks}):
            step = self.by_slot.get(slot) or SlotFacts(slot=slot, look=True)
            steps.append(replace(step, looks=metric_looks[slot]) if slot in metric_looks else step)
        return steps


class CheckpointOutdated(ValueError):
    """The checkpoint was folded under another policy or by another version, or the plan has changed behind its slot."""


def fold(policy: Policy, plan: Plan, rows: Rows, *, to: int, checkpoint: Checkpoint | None = None) -> FoldResult:
    """Judge every slot after `checkpoint` (or the start) up to and including the last one at or before `to`.

    rows: with a checkpoint, at least those of `checkpoint.needs_rows_after()`; else all. Raises CheckpointOutdated when `checkpoint` does not
    `fits` policy and plan.
    """
    compiled = compile_plan(policy, plan)
    if checkpoint is not None and checkpoint.fingerprint != _fingerprint(compiled, checkpoint.slot):
        raise CheckpointOutdated(
            f"The checkpoint of slot {rfc3339(checkpoint.slot)} was folded under other facts. Go back or rebuild."
        )
    newest = compiled.newest_judged(to)
    if checkpoint is not None and checkpoint.slot >= plan.created_at:
        body = _BODY.decode(checkpoint.body)
        slot, older, rebuilt = checkpoint.slot, list(checkpoint.older), False
        if newest is not None and newest > slot:
            older.insert(0, OlderCheckpoint(slot, _ENCODER.encode(replace(checkpoint, older=()))))
    else:
        body = _Body(Progress.at_start(compiled), ExperimentState.at_start(compiled))
        slot, older, rebuilt = plan.started_at, [], True
    found = _Found()
    if newest is not None and newest > slot:
        machine = StateMachine(compiled, body.state)
        for end in _ranges(compiled, slot, newest):
            _advance_range(compiled, machine, body.progress, rows, slot, end, found, newest=newest)
            slot = end
            if end != newest:
                older.insert(0, _keep_checkpoint(compiled, body, end))
    elif newest is not None and checkpoint is not None:  # the newest slot once more
        extractor = FactExtractor(compiled, body.progress, rows, slot, slot)
        found.evaluated_slots.append(EvaluatedSlot(compiled, body.state, extractor, slot, changed=False))
    reached = max(slot, newest or slot)
    return FoldResult(
        checkpoint=_checkpoint_of(compiled, body, reached, _thin_out(older, reached)),
        evaluated_slots=tuple(found.evaluated_slots),
        proposals=_proposals(compiled, body.state),
        first_readable_at=min(
            [s.readable_at for s in body.state.variant_states if s.readable_at is not None], default=None
        ),
        rebuilt=rebuilt,
        ranges=tuple(found.ranges),
    )


def unchanged_until(policy: Policy, plan: Plan, rows: Rows, checkpoint: Checkpoint) -> int:
    """The last slot up to which nothing that people see changes while rows, answers and plan stay as they are.

    rows: what the fold that left `checkpoint` was given. The checkpoint's own slot when the next one has to be judged anyway. A fold
    gives the same whenever it runs, so up to that slot it need not run.
    """
    compiled, slot = compile_plan(policy, plan), checkpoint.slot
    body = _BODY.decode(checkpoint.body)
    latched = any(variant_state.latch is not None for variant_state in body.state.variant_states)
    ages = latched and any(status in (STALE, OVERDUE) for status in body.state.fresh)  # said of what is suspended
    if (
        slot < plan.created_at
        or plan.ended_at is not None
        or ages
        or compiled.newest_judged(slot + compiled.slot_us) == slot
    ):
        return slot
    extractor = FactExtractor(compiled, body.progress, rows, slot, NO_END)
    next_look, next_day = ((slot // width + 1) * width for width in (compiled.look_us, DAY))
    return max(slot, min(next_look, next_day, *extractor.events()) - compiled.slot_us)


def at_start(policy: Policy, plan: Plan) -> Evaluation:
    """The experiment before its first slot: every gate of the plan, none with data, each saying what it waits for."""
    compiled, start = compile_plan(policy, plan), plan.started_at
    extractor = FactExtractor(compiled, Progress.at_start(compiled), {}, start, start)
    return EvaluatedSlot(compiled, ExperimentState.at_start(compiled), extractor, start, changed=False).evaluation


class _Found:
    """What a fold collects on its way."""

    def __init__(self) -> None:
        self.evaluated_slots: list[EvaluatedSlot] = []
        self.ranges: list[SlotFactsOfRange] = []


def _advance_range(
    compiled: CompiledPlan,
    machine: StateMachine,
    progress: Progress,
    rows: Rows,
    after: int,
    to: int,
    found: _Found,
    *,
    newest: int,
) -> None:
    """Judge the slots in (after, to], over which the arms stay the same."""
    extractor = FactExtractor(compiled, progress, rows, after, to)
    with np.errstate(all="ignore") if extractor.is_long else nullcontext():  # numbers beyond reason end as no reading
        _judge_slots(compiled, machine, extractor, found, newest)


def _judge_slots(
    compiled: CompiledPlan, machine: StateMachine, extractor: FactExtractor, found: _Found, newest: int
) -> None:
    facts, state = extractor.facts(), machine.state
    found.ranges.append(facts)
    judged = extractor.after
    if facts.tracks:
        stops = machine.fast_forward(facts.looks, facts.by_slot, facts.tracks)
    else:
        stops = ((step.slot, machine.advance(step)) for step in facts.steps())
    for slot, changed in stops:
        if slot == newest:
            machine.compute_pending()
            found.evaluated_slots.append(EvaluatedSlot(compiled, state, extractor, slot, changed=changed))
        elif changed:
            machine.compute_pending()
            found.evaluated_slots.append(EvaluatedSlot(compiled, _ENCODER.encode(state), extractor, slot, changed=True))
        judged = slot
    machine.fast_forwarding = None
    state.slot = extractor.to
    if extractor.to == newest and judged != newest:
        found.evaluated_slots.append(EvaluatedSlot(compiled, state, extractor, newest, changed=False))
    extractor.close()


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


def _thin_out(older: Sequence[OlderCheckpoint], slot: int) -> tuple[OlderCheckpoint, ...]:
    """Kept states, newest first: all of the last half hour or so, then each half as old again as the one before."""
    thin: list[OlderCheckpoint] = []
    least = 0
    for checkpoint in older:
        age = slot - checkpoint.slot
        if age >= least and age > 0:
            thin.append(checkpoint)
            if len(thin) >= 3:
                least = age * 3 // 2
    return tuple(thin)


def _keep_checkpoint(compiled: CompiledPlan, body: _Body, slot: int) -> OlderCheckpoint:
    return OlderCheckpoint(slot, msgspec.msgpack.encode(_checkpoint_of(compiled, body, slot, ())))


def _checkpoint_of(compiled: CompiledPlan, body: _Body, slot: int, older: tuple[OlderCheckpoint, ...]) -> Checkpoint:
    is_known = slot >= compiled.plan.created_at
    bases = [series_progress.base if is_known else compiled.plan.started_at for series_progress in body.progress.series]
    return Checkpoint(
        slot=slot,
        fingerprint=_fingerprint(compiled, slot),
        visibility_lags=compiled.visibility_lags if is_known else compiled.no_lags,
        needs=dict(zip(compiled.series_index, bases, strict=True)),
        body=_ENCODER.encode(body),
        older=older,
        revision=REVISION,
    )


def _fingerprint(compiled: CompiledPlan, slot: int) -> str:
    """Policy and plan without what happened after `slot`, as one comparable text."""
    policy, plan = compiled.policy, compiled.plan
    turn = bisect_right(compiled.plan_changes, slot)
    if turn not in compiled.fingerprints:
        happened = replace(
            plan,
            variants=tuple(replace(v, dropped_at=_known_by(v.dropped_at, slot)) for v in plan.variants),
            ended_at=_known_by(plan.ended_at, slot),
            pauses=tuple((begin, _known_by(end, slot)) for begin, end in plan.pauses if begin < slot),
            answers=tuple(answer for answer in plan.answers if answer.at <= slot),
        )
        compiled.fingerprints[turn] = hashlib.sha256(
            msgspec.json.encode([FORMAT, REVISION, policy, happened])
        ).hexdigest()[:16]
    return compiled.fingerprints[turn]


def _known_by(instant: int | None, slot: int) -> int | None:
    return instant if instant is not None and instant <= slot else None


def _proposals(compiled: CompiledPlan, state: ExperimentState) -> tuple[Proposal, ...]:
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
                stands_alone=latch.rule in (1, 3),
            )
            for variant, variant_state in zip(compiled.judged_variants, state.variant_states, strict=True)
            if (latch := variant_state.latch) is not None and variant in arms
        ]
    )


# Rows into facts ------------------------------------------------------------------------------------------------------


class SeriesReader:
    """The unread rows of one series within a range of slots, and which of them are news."""

    def __init__(self, spec: SeriesSpec, series: Series, progress: SeriesProgress, to: int) -> None:
        self.spec, self.kpi, self.series, self.progress = spec, spec.kpi, series, progress
        ts, n, received = series.ts, series.n, series.first_received_at
        self.first, self.end = first, end = bisect_right(ts, progress.base), bisect_right(ts, to)
        if first or end < len(ts):
            ts, n, received = ts[first:end], n[first:end], received[first:end]
        self.ts, self.n, self.received = ts, n, received
        self.cumulative = spec.cumulative
        self.places: Sequence[int] = ts
        every = spec.every
        self.is_long = len(ts) >= MANY
        if self.is_long:
            if (self.ts_array % every).any() or progress.place_before >= ts[0]:
                self.places = self._places()
        elif ts:
            behind = progress.place_before
            for at in ts:
                if (
                    at % every or behind >= at
                ):  # else every row bears the instant it answers, so that its ts is its place
                    self.places = self._places()
                    break
        self.news: Sequence[int] = range(len(ts))
        self.news_ts, self.news_places, self.news_receipts = ts, self.places, received
        if self.cumulative or 0 in n:
            news = self._news()
            if len(news) < len(ts):
                self.news, self.news_ts, self.news_receipts = news, [ts[i] for i in news], [received[i] for i in news]
                self.news_places = [self.places[i] for i in news] if self.places is not ts else self.news_ts
        self.position = bisect_right(ts, progress.through)
        self.known: tuple[Sequence[int], Sequence[int | None], Sequence[int | None]] | None = None
        self.late: list[tuple[int, int | None]] = []
        self.steady: tuple[list[int], int, int] | None = None
        self._units: list[int | None] | None = None

    def _places(self) -> list[int]:
        """Where rows stand beside those of other arms, which may be stamped otherwise: the due instant each answers, and how many rows
        of this series answered it before. Strictly rising, like ts."""
        schedule, before = self.spec.schedule, self.progress.place_before
        due, rank = NEVER, 0
        if before > NEVER:
            due = schedule.answered(before)
            rank = before - due
        places = []
        for ts in self.ts:
            answered = schedule.answered(ts)
            rank = rank + 1 if answered == due else 0
            due = answered
            places.append(due + rank)
        return places

    def _news(self) -> list[int]:
        """Positions of rows that say something new: not n = 0, nor a cumulative row that repeats the one before it."""
        if not self.cumulative:
            return [i for i, n in enumerate(self.n) if n != 0]
        news = []
        before = self.progress.row_before
        for i, row in enumerate(zip(*self._columns(slice(self.first, self.end)), strict=True)):
            if row[0] != 0 and (row[0] is None or row != before):
                news.append(i)
            before = row
        return news

    def _columns(self, rows: slice) -> list[Sequence[float | int | None]]:
        """The columns of what rows say, n first; one that the series does not have says nothing."""
        s = self.series
        columns = (s.n, s.value, s.variance, s.denominator_value, s.denominator_variance, s.covariance)
        nothing = [None] * len(s.ts)
        return [(column or nothing)[rows] for column in columns]

    def row(self, i: int) -> tuple[float | int | None, ...]:
        """What unread row i says."""
        return tuple([column[0] for column in self._columns(slice(self.first + i, self.first + i + 1))])

    def newest(self, instant: int) -> int | None:
        """ts of the newest news at or before an instant."""
        i = bisect_right(self.news_ts, instant)
        return self.news_ts[i - 1] if i else self.progress.news_before

    def reach(self, instant: int) -> int | None:
        """Place of the newest news at or before an instant."""
        i = bisect_right(self.news_ts, instant)
        return self.news_places[i - 1] if i else self.progress.news_place_before

    def news_at(self, instant: int) -> tuple[int | None, int | None]:
        """ts and place of the newest news at or before an instant."""
        if i := bisect_right(self.news_ts, instant):
            return self.news_ts[i - 1], self.news_places[i - 1]
        return self.progress.news_before, self.progress.news_place_before

    def units_after(self, rows: int) -> int | None:
        """Units so far after that many unread rows; None when one does not say."""
        if self.is_long and self.units_array is not None:
            return int(self.units_array[rows])
        if self._units is None:
            self._units = self._units_so_far()
        return self._units[rows]

    @cached_property
    def units_array(self) -> Any:
        """Units before the first unread row and after each, of many; None when a row does not say."""
        before = self._n_before if self.cumulative else self.progress.units_before
        if before is None or before < 0 or self.counts is None:
            return None
        return np.concatenate(([before], self.counts if self.cumulative else before + np.cumsum(self.counts)))

    @property
    def _n_before(self) -> int | None:
        return self.progress.row_before[0] if self.progress.row_before else None  # type: ignore[return-value] # n is whole

    def _units_so_far(self) -> list[int | None]:
        if self.cumulative:
            return [self._n_before, *self.n]
        total: int | None = self.progress.units_before if self.progress.units_before >= 0 else None
        if total is None:
            return [None] * (len(self.n) + 1)
        units: list[int | None] = [total]
        for n in self.n:
            total = None if n is None or n < 0 or total is None else total + n
            units.append(total)
        return units

    def read_to(self, place: int, horizon: int) -> bool:
        """Merge closed rows up to a place into the progress, in ts order; True when one restated n on the way."""
        progress, restated = self.progress, False
        i, places, ts = self.position, self.places, self.ts
        while i < len(places) and places[i] <= place and ts[i] <= horizon:
            n, received = self.n[i], self.received[i]
            if received > progress.arrived:
                progress.arrived = received
            if self.cumulative:
                if n is not None:
                    restated = restated or (progress.n_through is not None and is_restated(progress.n_through, n))
                    progress.n_through = n
                bucket = self._bucket(i)
                progress.unreadable = bucket if isinstance(bucket, str) else ""
                if not isinstance(bucket, str):
                    progress.sums = bucket
            elif n != 0 and not progress.unreadable:
                bucket = self._bucket(i)
                if isinstance(bucket, str):
                    progress.unreadable = bucket
                elif progress.sums is None:
                    progress.sums = bucket
                elif isinstance(bucket, PairMoments):
                    progress.sums = merge_pairs(PairMoments(*progress.sums), bucket)  # type: ignore[arg-type]
                else:
                    progress.sums = merge(progress.sums, bucket)  # type: ignore[arg-type]
            i += 1
        if i > self.position:
            progress.through = self.ts[i - 1]
        self.position = i
        return restated

    @cached_property
    def ts_array(self) -> Any:
        return np.fromiter(self.ts, np.int64, len(self.ts))

    @cached_property
    def received_array(self) -> Any:
        return np.fromiter(self.received, np.int64, len(self.received))

    @cached_property
    def news_received(self) -> Any:
        return self.received_array if len(self.news) == len(self.ts) else self.received_array[np.array(self.news)]

    @cached_property
    def news_array(self) -> Any:
        return self.ts_array if self.news_ts is self.ts else np.array(self.news_ts, dtype=np.int64)

    @cached_property
    def places_array(self) -> Any:
        return self.ts_array if self.places is self.ts else np.array(self.places, dtype=np.int64)

    def reach_of(self, horizons: Any) -> Any:
        """`reach` for many instants, NEVER where there is none."""
        places = self.news_array if self.news_places is self.news_ts else np.array(self.news_places, dtype=np.int64)
        before = NEVER if self.progress.news_place_before is None else self.progress.news_place_before
        return np.concatenate(([before], places))[np.searchsorted(self.news_array, horizons, side="right")]

    def all_sums(self) -> _RunningSums | None:
        """The state before and after each unread row, when every row is readable and none is restated; else None."""
        progress, read = self.progress, self.position
        if progress.unreadable or not self.ts or self.counts is None:
            return None
        buckets = self._buckets(read)
        if buckets is None:
            return None
        pairs = self.kpi.kind == "ratio"
        start: Any = progress.sums or (NO_PAIRS if pairs else NOTHING)
        if self.cumulative:
            before = np.concatenate(([progress.n_through or 0], buckets[0][:-1]))
            if is_restated(before, buckets[0]).any():
                return None
            columns = tuple(np.concatenate(([first], column)) for first, column in zip(start, buckets, strict=True))
        else:
            columns = chain_pairs(PairMoments(*start), *buckets) if pairs else chain(Moments(*start), *buckets)
        if read:
            columns = tuple(np.concatenate(([column[0]] * read, column)) for column in columns)
        arrived = np.full(len(self.ts) + 1, progress.arrived)
        arrived[read + 1 :] = np.maximum(np.maximum.accumulate(self.received_array[read:]), progress.arrived)
        return _RunningSums(columns, arrived)

    def _buckets(self, read: int) -> tuple[Any, ...] | None:
        """Columns of the rows from position `read` on as moments; None when one is unreadable."""
        series, rows = self.series, slice(self.first + read, self.end)
        if self.spec.unsupported_because:
            return None
        n = self.counts[read:]
        k = np.maximum(n - 1, 0)
        value = _numbers(series.value[rows])
        if value is None:
            return None
        if self.kpi.kind == "proportion":
            return None if ((value < 0) | (value > 1)).any() else (n, value, n * value * (1.0 - value))
        variance = _numbers(series.variance[rows], k)
        if variance is None or (variance < 0).any():
            return None
        if self.kpi.kind != "ratio":
            return n, value, variance * k
        value_d = _numbers(series.denominator_value[rows])
        variance_d, covariance = _numbers(series.denominator_variance[rows], k), _numbers(series.covariance[rows], k)
        if value_d is None or len(value_d) < len(n) or variance_d is None or covariance is None:
            return None
        return None if (variance_d < 0).any() else (n, value, variance * k, value_d, variance_d * k, covariance * k)

    @cached_property
    def counts(self) -> Any:
        """n as integers; None when one is missing, negative or beyond what a float holds exactly."""
        counts = None if self.n and self.n[0] is None else _numbers(self.n)
        return counts.astype(np.int64) if counts is not None and ((counts >= 0) & (counts < EXACT)).all() else None

    def stand_at(self, rows: _RunningSums, upto: int) -> None:
        """Move the progress to where `read_to` would leave it."""
        progress = self.progress
        if upto > self.position:
            state = tuple(column[upto].item() for column in rows.columns)
            if self.cumulative or state[0]:
                progress.sums = state
            if self.cumulative:
                progress.n_through = self.n[upto - 1]
            progress.arrived = int(rows.arrived[upto])
            progress.through = self.ts[upto - 1]
            self.position = upto

    def _bucket(self, i: int) -> Moments | PairMoments | str:
        """One row as moments, or why it is unreadable."""
        at = self.first + i
        value, n, kind = self.series.value[at], self.n[i], self.kpi.kind
        if self.spec.unsupported_because:
            return self.spec.unsupported_because
        if n is None or n < 0:
            return f"its row of {rfc3339(self.ts[i])} has no n: send it with n and variance"
        if value is None or not isfinite(value):
            return f"its row of {rfc3339(self.ts[i])} has no value"
        if kind == "proportion":
            if not 0 <= value <= 1:
                return f"its row of {rfc3339(self.ts[i])} has {value:g}, which is no proportion"
            return of_proportion(n, value)
        variance = self.series.variance[at]
        if n >= 2 and (variance is None or not isfinite(variance) or variance < 0):
            return f"its row of {rfc3339(self.ts[i])} has no variance: send it again with its variance"
        if kind == "mean":
            return of_mean(n, value, variance or 0.0)
        columns = (self.series.denominator_value, self.series.denominator_variance, self.series.covariance)
        d, v_d, cov = (column[at] if at < len(column) else None for column in columns)
        if not _real(d) or (n >= 2 and (not _real(v_d) or v_d < 0 or not _real(cov))):
            return f"its row of {rfc3339(self.ts[i])} has no denominator with value, variance and covariance"
        return of_ratio(n, value, variance or 0.0, d, v_d or 0.0, cov or 0.0)

    def crossings(self, gate: Gate, first: int) -> Iterable[int]:
        """Which news from position `first` on may change a watch's verdict: all of a few, of many those where sides change."""
        if len(self.news) - first < MANY or self.kpi.kind == "ratio":
            return range(first, len(self.news))
        value = np.array(self.series.value[self.first : self.end], dtype=np.float64)[self.news][first:]
        inside = value >= (-np.inf if gate.at_least is None else gate.at_least)
        inside &= value <= (np.inf if gate.at_most is None else gate.at_most)
        side = np.where(np.isfinite(value), inside, 2)
        changes = [0, *(np.flatnonzero(side[1:] != side[:-1]) + 1).tolist()]
        return {first + at for k in changes for at in range(k, min(k + gate.times, len(side)))}

    def observed(self, i: int) -> float | None:
        """The value a threshold or target sees in news row i; None when unreadable."""
        at = self.first + i
        value = self.series.value[at]
        if self.kpi.kind == "ratio":
            d = self.series.denominator_value[at] if at < len(self.series.denominator_value) else None
            return value / d if _real(value) and _real(d) and d != 0 else None
        return None if value is None or not isfinite(value) else value


class _RunningSums(NamedTuple):
    """columns: n, mean, M2 of a series before its first unread row and after each. arrived: latest arrival so far."""

    columns: tuple[Any, ...]
    arrived: Any


def is_restated(before: Any, n: Any) -> Any:
    """Whether a cumulative count takes back more of the one before it than a correction does: numbers, or arrays of them.

    >>> [is_restated(10_000, n) for n in (10_001, 9_990, 9_989)]
    [False, False, True]
    """
    return (before - n) * CORRECTED > before


def _numbers(column: Sequence[float | None], where: Any = None) -> Any:
    """A column as floats; None when a cell is missing or not finite where `where` is not 0 (there, such cells become 0)."""
    numbers = np.array(column, dtype=np.float64)  # None becomes NaN
    good = np.isfinite(numbers)
    if where is not None and len(numbers):
        numbers[~good & (where == 0)] = 0.0
        good |= where == 0
    return numbers if good.all() else None


def _real(value: float | None) -> TypeGuard[float]:
    return value is not None and isfinite(value)


class _Counts:
    """How many due instants are expected up to where, counted once for the many series that have the same."""

    __slots__ = ("compiled", "known")

    def __init__(self, compiled: CompiledPlan) -> None:
        self.compiled = compiled
        self.known: dict[tuple[int, int, int], int] = {}

    def closed(self, spec: SeriesSpec, slot: int) -> int:
        """Those that are overdue at a slot."""
        grid = spec.every, spec.overdue_after, slot
        found = self.known.get(grid)
        if found is None:
            found = self.known[grid] = spec.dues.count(self.compiled.overdue(spec, slot))
        return found

    def final(self, spec: SeriesSpec, horizon: int) -> int:
        """Those that no row after a horizon can answer any more."""
        grid = spec.every, -1, horizon
        found = self.known.get(grid)
        if found is None:
            found = self.known[grid] = spec.dues.count(horizon - spec.every // 2)
        return found


class _Buckets:
    """Which of the expected due instants of one series have been answered, as of any slot of a range.

    A due instant is awaited until `overdue_after` after it, and by a feed that stamps its rows after the instants they answer that much longer.
    """

    __slots__ = ("answered", "compiled", "counts", "dues", "is_late", "progress", "reader", "since", "spec")

    def __init__(self, counts: _Counts, reader: SeriesReader) -> None:
        self.counts, self.compiled, self.reader = counts, counts.compiled, reader
        self.spec, self.progress = spec, series_progress = reader.spec, reader.progress
        self.dues, places, ts = spec.dues, reader.news_places, reader.news_ts
        before, settled, every = series_progress.news_before, series_progress.filled, spec.every
        self.is_late = before is not None and before % every > 0 and before > spec.schedule.answered(before)
        """Rows are stamped after the instants they answer."""
        if places is not ts:
            self.is_late = self.is_late or any(at > spec.schedule.answered(at) for at in ts)
        self.since: Sequence[int] = ts
        if places is ts and not self.dues.pauses:
            behind = self.dues.start + every
            if len(ts) >= MANY:
                self.answered: list[int] = ((reader.news_array - behind) // every).tolist()
            else:
                self.answered = [(at - behind) // every for at in ts]
            if ts and self.answered[0] < settled:
                first = bisect_left(self.answered, settled)
                self.answered, self.since = self.answered[first:], ts[first:]
        else:
            self.answered, self.since = self._answered(places, ts, settled)

    def _answered(self, places: Sequence[int], stamps: Sequence[int], settled: int) -> tuple[list[int], list[int]]:
        """Positions of the unsettled due instants that rows answer, and the ts of the first row that does."""
        numbers: list[int] = []
        since: list[int] = []
        for place, ts in zip(places, stamps, strict=True):
            due = self.spec.schedule.answered(place)
            if self.dues.expects(due):
                number = self.dues.count(due) - 1
                if number >= settled and (not numbers or number > numbers[-1]):
                    numbers.append(number)
                    since.append(ts)
        return numbers, since

    def closed(self, slot: int) -> int:
        """How many due instants are overdue at a slot."""
        closed = self.counts.closed(self.spec, slot)
        if self.is_late:
            newest = self.reader.newest(self.compiled.horizon(slot))
            due = None if newest is None else self.spec.schedule.answered(newest)
            if newest is not None and due is not None and newest > due:
                limit = self.compiled.overdue(self.spec, slot)
                return self.dues.count(max(min(due, limit), limit - (newest - due)))
        return closed

    def at(self, slot: int) -> tuple[int, int]:
        """(observed, expected) buckets over the last min_days whole days."""
        closed, settled, gaps = self.closed(slot), self.progress.filled, self.progress.gaps
        first = max(0, closed - self.spec.window) if self.spec.window else 0
        missing = bisect_left(gaps, closed) - bisect_left(gaps, first) if gaps else 0
        if closed > settled:
            begin = max(first, settled)
            upto = bisect_left(self.answered, closed)
            if self.is_late:
                upto = min(upto, bisect_right(self.since, self.compiled.horizon(slot)))
            missing += closed - begin - max(0, upto - bisect_left(self.answered, begin))
        return closed - first - missing, closed - first

    def is_whole(self, to: int) -> bool:
        """Whether nothing is missing up to a slot, at any slot before it either."""
        if self.progress.gaps or self.is_late:
            return False
        unsettled = self.closed(to) - self.progress.filled
        return unsettled <= 0 or bool(bisect_left(self.answered, unsettled + self.progress.filled) == unsettled)

    def closings(self, after: int, to: int) -> Iterable[int]:
        """Instants after a slot up to another at which the counts may change; at least the next."""
        first = self.closed(after)
        last = first if to > after and self.is_whole(to) else self.counts.closed(self.spec, to)
        overdue = [
            due + self.spec.overdue_after
            for number in range(first + 1, max(first, last) + 2)
            if (due := self.dues.at(number)) is not None
        ]
        return [*overdue, *self._awaited(overdue)] if self.is_late else overdue

    def _awaited(self, overdue: Sequence[int]) -> Iterable[int]:
        """When rows that are stamped late close, and due instants that wait for such rows."""
        schedule, stamps = self.spec.schedule, list(self.reader.news_ts)
        for ts in stamps:
            yield ts + self.compiled.closed_after
        if self.progress.news_before is not None:
            stamps.insert(0, self.progress.news_before)
        newest = 0
        for instant in overdue:
            while (
                newest + 1 < len(stamps) and schedule.answered(stamps[newest + 1]) < instant - self.spec.overdue_after
            ):
                newest += 1
            if stamps:
                yield instant + max(0, stamps[newest] - schedule.answered(stamps[newest]))

    def settled(self, slot: int, horizon: int) -> tuple[list[int], int, int]:
        """(positions of those that stay unanswered and may still count, how many are settled, the last of these) once a slot is judged."""
        answered, filled, gaps = self.answered, self.progress.filled, self.progress.gaps
        final = self.counts.final(self.spec, horizon)
        position = 0
        if final > filled:
            position = bisect_left(answered, final)
            if position < final - filled:
                there = set(answered[:position])
                gaps = [*gaps, *(number for number in range(filled, final) if number not in there)]
            filled = final
        while position < len(answered) and answered[position] == filled and self.since[position] <= horizon:
            position, filled = position + 1, filled + 1
        if gaps and self.spec.window:
            first = self.closed(slot) - self.spec.window - 1
            gaps = [number for number in gaps if number >= first]
        return gaps, filled, self.dues.at(filled) or self.progress.filled_to


class FactExtractor:
    """Facts over the slots in (after, to]: first when they change, then as they stand at any of these slots."""

    def __init__(self, compiled: CompiledPlan, progress: Progress, rows: Rows, after: int, to: int) -> None:
        self.compiled, self.progress, self.after, self.to = compiled, progress, after, to
        self.is_live = after >= compiled.created
        self.arms = compiled.arms(after if to == NO_END else to)
        self.watched, self.verdicts = list(progress.watched), list(progress.watch_verdicts)
        self.readers = [
            SeriesReader(spec, rows.get(key, EMPTY), series_progress, to)
            for key, spec, series_progress in zip(compiled.series, compiled.specs, progress.series, strict=True)
        ]
        self.read = self.readers
        if len(self.arms) < len(compiled.variants):
            self.read = [reader for reader in self.readers if reader.spec.variant in self.arms]
        self.by_metric: dict[str, dict[str, SeriesReader]] = {metric: {} for metric in compiled.metrics}
        for reader in self.read:
            self.by_metric[reader.spec.metric][reader.spec.variant] = reader
        self.commons: dict[tuple[str, int], int | None] = {}
        self.buckets: dict[str, _Buckets] = {}
        self.counts = _Counts(compiled)
        self.observed: dict[tuple[int, int], Observations] = {}
        self.pending: dict[int, dict[str, Any]] = {}

    @property
    def is_long(self) -> bool:
        """Whether arrays are worth their while."""
        if self.to - self.after >= FEW_LOOKS * self.compiled.look_us:
            return True
        return max([len(reader.ts) for reader in self.read], default=0) >= MANY

    def facts(self) -> SlotFactsOfRange:
        """The facts of every slot at which anything may change."""
        compiled = self.compiled
        looks = compiled.looks(self.after, self.to)
        tracks = self._tracks(looks) if len(looks) >= FEW_LOOKS and not compiled.targets else {}
        if not tracks:
            for look in looks:
                self._at(look)["look"] = True
            self._compared(looks)
        self._freshness()
        if compiled.targets:
            self._targets(looks)
        self._watched()
        if compiled.density is not None:
            self._density()
        self._split()
        for slot in compiled.scheduled_slots[
            bisect_right(compiled.scheduled_slots, self.after) : bisect_right(compiled.scheduled_slots, self.to)
        ]:
            self._at(slot)
        if compiled.final_slot is not None and compiled.final_slot in (*self.pending, *looks[-1:]):
            self._at(compiled.final_slot)["final"] = True
        if tracks:
            at_looks = set(looks)
            for slot in self.pending:
                if slot in at_looks:
                    self.pending[slot]["look"] = True
        return SlotFactsOfRange(
            {slot: SlotFacts(slot=slot, **facts) for slot, facts in self.pending.items()}, looks, tracks
        )

    def detail(self, slot: int) -> SlotSnapshot:
        """Every slot fact as it stands at a slot of this range, now or after it is closed."""
        compiled = self.compiled
        return SlotSnapshot(
            slot=slot,
            fresh={reader.spec.name: self._watermark(reader, slot) for reader in self.read},
            watched={
                watch.name: self._observations(w, watch, slot)
                for w, watch in enumerate(compiled.watches)
                if watch.variant in self.arms
            },
            dense={reader.spec.name: self._buckets(reader).at(slot) for reader in self.read if reader.spec.counted},
            split={
                metric: units for metric in compiled.counting if (units := self._split_at(metric, slot)) is not None
            },
        )

    def close(self) -> None:
        """Leave the progress at the end of the range. It is made of new ones, so that details can be asked for later."""
        compiled, to, progress = self.compiled, self.to, self.progress
        horizon, freshness_instant, is_known = (
            compiled.horizon(to),
            compiled.freshness_instant(to),
            to >= compiled.created,
        )
        commons = {metric: self._common(metric, horizon) for metric in compiled.counting}
        for i, reader in enumerate(self.readers):
            spec, series_progress = reader.spec, reader.progress
            if spec.variant not in self.arms:
                continue
            gaps, filled, filled_to = series_progress.gaps, series_progress.filled, series_progress.filled_to
            floor, (watermark, received_at) = series_progress.base, self._watermark(reader, to)
            base = floor if watermark is None or not is_known else watermark
            if spec.compared and series_progress.through < base:
                base = series_progress.through
            if spec.splits:
                common = commons[spec.metric]
                counted = 0 if common is None else bisect_right(reader.places, common)
                if not counted or reader.ts[counted - 1] < base:
                    base = reader.ts[counted - 1] if counted else floor
            if spec.counted:
                gaps, filled, filled_to = reader.steady or self._buckets(reader).settled(to, horizon)
                if filled_to < base or horizon < base:
                    base = min(filled_to, horizon)
            if spec.at_horizon:
                base = min(base, horizon)
            if spec.at_present:
                base = min(base, freshness_instant)
            if spec.targets:
                base = min(base, *[progress.target_through[t] for t in spec.targets])
            if base < floor:
                base = floor
            news_before, news_place_before = reader.news_at(base)
            read = bisect_right(reader.ts, base)
            units = reader.units_after(read) if spec.splits else None
            progress.series[i] = replace(
                series_progress,
                base=base,
                row_before=reader.row(read - 1) if read and reader.cumulative else series_progress.row_before,
                place_before=reader.places[read - 1] if read else series_progress.place_before,
                units_before=-1 if units is None else units,
                news_before=news_before,
                news_place_before=news_place_before,
                watermark=watermark,
                received_at=received_at,
                filled=filled,
                filled_to=filled_to,
                gaps=gaps,
            )
        for w, watch in enumerate(compiled.watches):
            if watch.variant in self.arms:
                progress.watched[w] = self._observations(w, watch, to)

    def _at(self, slot: int) -> dict[str, Any]:
        return self.pending.setdefault(slot, {})

    def _record(self, slot: int, kind: str, name: str, fact: Any) -> None:
        self._at(slot).setdefault(kind, {})[name] = fact

    def _judged(self, slot: int) -> int | None:
        """The judged slot of this range at which an event of `slot` is first seen; None: not in this range."""
        judged = slot if self.compiled.is_steady else self.compiled.next_judged(slot)
        return judged if judged is not None and self.after < judged <= self.to else None

    def events(self) -> Iterable[int]:
        """Slots after the beginning from which on rows that are there, or the passing of time, may say something else."""
        compiled = self.compiled
        instants = list(compiled.scheduled_slots)
        for reader in self.read:
            for ts, received in zip(reader.ts, reader.received, strict=True):
                instants += [ts, received, ts + compiled.closed_after]
            instants += self._onset(self._watermark(reader, self.after)[0], reader.spec.allowed)
            if reader.spec.counted:
                instants += self._buckets(reader).closings(self.after, self.after)
        return [slot for at in instants if (slot := compiled.slot_at(at)) > self.after]

    # Goals and guards, at looks

    def _compared(self, looks: Sequence[int]) -> None:
        compiled = self.compiled
        for m, metric in enumerate(compiled.compared):
            newest_seen = self.progress.instants[m]
            for look in looks:
                horizon = compiled.horizon(look)
                common = self._common(metric, horizon)
                if common is None or (newest_seen is not None and common <= newest_seen):
                    continue
                newest_seen = common
                self._record(
                    look, "looks", metric, self._metric_look(self.by_metric[metric], common, compiled.horizon(look))
                )
            self.progress.instants[m] = newest_seen

    def _tracks(self, looks: Sequence[int]) -> dict[str, MetricTrack]:
        """The compared metrics as runs; empty when any row asks for a closer look: unreadable, restated, an arm missing."""
        compiled = self.compiled
        horizons = np.array([compiled.horizon(look) for look in looks], dtype=np.int64)
        found: dict[str, tuple[MetricTrack, int, list[tuple[SeriesReader, Any, int]]]] = {}
        for m, metric in enumerate(compiled.compared):
            arms = list(self.by_metric[metric].items())
            sums = [reader.all_sums() for _, reader in arms]
            newest = [reader.reach_of(horizons) for _, reader in arms]
            if any(s is None for s in sums) or any(((at <= NEVER) != (newest[0] <= NEVER)).any() for at in newest):
                return {}
            commons = np.minimum.reduce(newest)
            seen = self.progress.instants[m]
            before = np.concatenate(([NEVER if seen is None else seen], commons[:-1]))
            where = np.flatnonzero(commons > np.maximum.accumulate(before))
            common = commons[where]
            at = np.full(len(common), NO_END)
            columns, arrived, ends = {}, np.zeros(len(common), dtype=np.int64), []
            for (variant, reader), rows in zip(arms, sums, strict=True):
                if rows is None:
                    return {}
                upto = np.searchsorted(reader.places_array, common, side="right")
                columns[variant] = tuple(column[upto] for column in rows.columns)
                arrived = np.maximum(arrived, rows.arrived[upto])
                if len(reader.ts):
                    newest_read = np.maximum(upto - 1, 0)
                    at = np.where(
                        reader.places_array[newest_read] == common, np.minimum(at, reader.ts_array[newest_read]), at
                    )
                ends.append((reader, rows, int(upto[-1]) if len(upto) else -1))
            track = MetricTrack([looks[k] for k in where.tolist()], at, arrived, columns)
            found[metric] = track, int(common[-1]) if len(common) else NEVER, ends
        for m, metric in enumerate(compiled.compared):
            track, reached, ends = found[metric]
            if track.looks:
                self.progress.instants[m] = reached
                for reader, rows, upto in ends:
                    reader.stand_at(rows, upto)
        return {metric: track for metric, (track, _, _) in found.items()}

    def _metric_look(self, readers: Mapping[str, SeriesReader], common: int, horizon: int) -> MetricLook:
        states, unreadable, restated, arrived, instant = {}, {}, [], 0, NO_END
        for variant, reader in readers.items():
            if reader.read_to(common, horizon):
                restated.append(variant)
            read = reader.position
            if read and reader.places[read - 1] == common and reader.ts[read - 1] < instant:
                instant = reader.ts[read - 1]
            series_progress = reader.progress
            if series_progress.unreadable:
                unreadable[variant] = series_progress.unreadable
            elif series_progress.sums is not None:
                states[variant] = series_progress.sums
            if series_progress.arrived > arrived:
                arrived = series_progress.arrived
        return MetricLook(instant, states, arrived, unreadable, tuple(restated))

    def _common(self, metric: str, horizon: int) -> int | None:
        """The least, over arms that have rows, of the places of their newest news at or before the horizon."""
        asked = metric, horizon
        if asked in self.commons:
            return self.commons[asked]
        common = None
        for reader in self.by_metric[metric].values():
            newest = reader.reach(horizon)
            if newest is not None and (common is None or newest < common):
                common = newest
        self.commons[asked] = common
        return common

    # Targets, at looks

    def _targets(self, looks: Sequence[int]) -> None:
        compiled = self.compiled
        for t, gate in enumerate(compiled.targets):
            reader = self.readers[compiled.series_index[f"{gate.metric}/{compiled.judged_variants[0]}"]]
            seen = self.progress.target_seen[t]
            for look in looks:
                horizon = compiled.freshness_instant(look) if reader.kpi.kind == "gauge" else compiled.horizon(look)
                newest = reader.newest(horizon)
                closed = compiled.clock.running(horizon) // DAY
                if newest is None or (newest, closed) == seen:
                    continue
                seen = (newest, closed)
                self._record(look, "days", gate.name, self._days(t, gate, reader, horizon, newest, closed))
            self.progress.target_seen[t] = seen

    def _days(self, t: int, gate: Gate, reader: SeriesReader, horizon: int, newest: int, closed: int) -> Days:
        """Mean value of each of the last closed days of running time; of a cumulative KPI the newest one."""
        clock, days = self.compiled.clock, self.progress.target_days[t]
        series_progress = reader.progress
        for i in reader.news:
            ts = reader.ts[i]
            if not self.progress.target_through[t] < ts <= horizon:
                continue
            day_of = str((max(clock.running(ts), 1) - 1) // DAY)
            value = reader.observed(i)
            n = reader.n[i]
            weight, total, good = days.get(day_of, (0.0, 0.0, True))
            add = 1.0 if n is None else float(n)
            if reader.cumulative:
                weight, total = 0.0, 0.0
            days[day_of] = (weight + add, total + add * (value or 0.0), good and value is not None)
            series_progress.arrived = max(series_progress.arrived, reader.received[i])
        self.progress.target_through[t] = max(self.progress.target_through[t], horizon)
        for old in [day for day in days if int(day) < closed - gate.days]:
            del days[old]
        values = []
        for day in range(max(0, closed - gate.days), closed):
            weight, total, good = days.get(str(day), (0.0, 0.0, False))
            values.append((day, total / weight if good and weight else None))
        return Days(at=newest, closed=tuple(values), arrived=series_progress.arrived)

    # Freshness, at slots

    def _freshness(self) -> None:
        compiled = self.compiled
        for i, reader in enumerate(self.readers):
            spec, series_progress = reader.spec, reader.progress
            if spec.variant not in self.arms:
                continue
            watermarks = (reader.known or self._know(reader))[1]
            newest = watermarks[-1] if watermarks else series_progress.watermark
            status = series_progress.status
            if status == FRESH and not reader.late and newest is not None and self.to - newest <= spec.allowed:
                continue
            interesting = {self.after + compiled.slot_us}
            for k, before in reader.late:
                interesting.add(k)
                interesting.update(self._onset(before, spec.allowed))
            interesting.update(self._onset(newest, spec.allowed))
            if compiled.final_slot is not None:
                interesting.add(compiled.final_slot)
            judged = {slot for k in interesting if (slot := self._judged(k)) is not None}
            for slot in sorted(judged):
                watermark, received = self._watermark(reader, slot)
                now = freshness(compiled, spec.name, watermark, slot)
                if now != status:
                    status = now
                    self._record(slot, "fresh", spec.name, (watermark, received))
            self.progress.series[i].status = status

    def _onset(self, watermark: int | None, allowed: int) -> list[int]:
        """The first slot at which a watermark is too old."""
        clock = self.compiled.clock
        ran = 0 if watermark is None else max(clock.running(watermark), 0)
        late = clock.wall(ran + allowed + 1)
        return [] if late is None else [self.compiled.slot_at(late)]

    def _know(self, reader: SeriesReader) -> tuple[Sequence[int], Sequence[int | None], Sequence[int | None]]:
        """When which watermark was known: (slots, watermarks, arrivals), in order; None where history gives way to facts.

        Leaves in `reader.late` the slots at which one became known that was old already or came after a gap, with the one
        before it.
        """
        reader.known = self._known_in_turn(reader) or self._known_long(reader)
        return reader.known

    def _known_in_turn(self, reader: SeriesReader) -> tuple[list[int], Sequence[int], Sequence[int]] | None:
        """Of a few rows, each known after the one before it; else None."""
        watermark, watermarks, receipts = reader.progress.watermark, reader.news_ts, reader.news_receipts
        if watermark is None or not self.is_live or len(watermarks) >= MANY:
            return None
        if watermarks and watermarks[0] <= watermark:
            seen = bisect_right(watermarks, watermark)
            watermarks, receipts = watermarks[seen:], receipts[seen:]
        width, allowed, newest = self.compiled.slot_us, reader.spec.allowed, self.compiled.created
        slots: list[int] = []
        late: list[tuple[int, int | None]] = []
        for i, ts in enumerate(watermarks):
            slot = -(-(receipts[i] if receipts[i] > ts else ts) // width) * width
            if slot < newest:
                return None
            if slot > watermark + allowed or slot - ts > allowed:
                late.append((slot, watermark))
            slots.append(slot)
            watermark, newest = ts, slot
        reader.late = late
        return slots, watermarks, receipts

    def _known(
        self,
        reader: SeriesReader,
        slots: list[int],
        watermarks: list[int | None],
        receipts: list[int | None],
        watermark: int | None,
    ) -> tuple[list[int], list[int | None], list[int | None]]:
        """Row by row, in the order in which they were known."""
        created, allowed = self.compiled.created, reader.spec.allowed
        arrivals = sorted(
            (max(self.compiled.slot_at(max(ts, received)), created), ts, received)
            for ts, received in zip(reader.news_ts, reader.news_receipts, strict=True)
        )
        for slot, ts, received in arrivals:
            if watermark is None or ts > watermark:
                if watermark is None or slot > watermark + allowed or slot - ts > allowed:
                    reader.late.append((slot, watermark))
                watermark = ts
                slots.append(slot)
                watermarks.append(ts)
                receipts.append(received)
        return slots, watermarks, receipts

    def _known_long(self, reader: SeriesReader) -> tuple[Sequence[int], Sequence[int | None], Sequence[int | None]]:
        """The same for many rows, and where history was brought in: before the experiment was created each is known at once."""
        compiled, watermark = self.compiled, reader.progress.watermark
        slots: list[int] = []
        watermarks: list[int | None] = []
        receipts: list[int | None] = []
        if self.after < compiled.created:
            for i in reader.news:
                if (slot := compiled.slot_at(reader.ts[i])) >= compiled.created:
                    break
                slots.append(slot)
                watermarks.append(reader.ts[i])
                receipts.append(reader.received[i])
            if compiled.created <= self.to:
                slots.append(compiled.created)
                watermarks.append(None)
                receipts.append(None)
            reader.late += [
                (k, before)
                for k, now, before in zip(slots, watermarks, [watermark, *watermarks], strict=False)
                if before is None or now is None or k > before + reader.spec.allowed or k - now > reader.spec.allowed
            ]
            watermark = None
        if len(reader.news) >= MANY and not slots and watermark is None:
            in_order = self._known_in_order(reader)
            if in_order is not None:
                return in_order
        return self._known(reader, slots, watermarks, receipts, watermark)

    def _known_in_order(self, reader: SeriesReader) -> tuple[list[int], Sequence[int], Sequence[int]] | None:
        """By arrays, when there was no row before and every row became known after the one before it; else None."""
        compiled, allowed, watermarks = self.compiled, reader.spec.allowed, reader.news_array
        known_at = np.maximum(watermarks, reader.news_received)
        known_at = np.maximum(-(-known_at // compiled.slot_us) * compiled.slot_us, compiled.created)
        if (known_at[1:] < known_at[:-1]).any():
            return None
        late = (known_at - watermarks > allowed) | (
            known_at > np.concatenate(([NEVER - 2 * allowed], watermarks[:-1])) + allowed
        )
        slots = known_at.tolist()
        reader.late = [(slots[k], reader.news_ts[k - 1] if k else None) for k in np.flatnonzero(late).tolist()]
        return slots, reader.news_ts, reader.news_receipts

    def _watermark(self, reader: SeriesReader, slot: int) -> tuple[int | None, int | None]:
        slots, watermarks, receipts = reader.known or self._know(reader)
        i = bisect_right(slots, slot)
        if not i:
            return reader.progress.watermark, reader.progress.received_at
        return watermarks[i - 1], receipts[i - 1]

    # Thresholds and densities of a metric, at slots

    def _watch_horizon(self, watch: Watch, slot: int) -> int:
        return self.compiled.horizon(slot) if watch.closed else self.compiled.freshness_instant(slot)

    def _watched(self) -> None:
        compiled = self.compiled
        for w, watch in enumerate(compiled.watches):
            if watch.variant not in self.arms:
                continue
            reader = self.readers[watch.series]
            overdue_after = compiled.closed_after if watch.closed else 0
            first = bisect_right(reader.news_ts, self._watch_horizon(watch, self.after))
            slots = {
                slot
                for p in reader.crossings(watch.gate, first)
                if (slot := self._judged(compiled.slot_at(reader.news_ts[p] + overdue_after))) is not None
            }
            verdict = self.verdicts[w]
            for slot in sorted(slots):
                observations = self._observations(w, watch, slot)
                now = watch_verdict(watch.gate, observations)
                if now != verdict:
                    verdict = now
                    self._record(slot, "watched", watch.name, observations)
            self.progress.watch_verdicts[w] = verdict

    def _observations(self, w: int, watch: Watch, slot: int) -> Observations:
        found = self.observed.get((w, slot))
        if found is not None:
            return found
        reader, found = self.readers[watch.series], self.watched[w]
        end = bisect_right(reader.news_ts, self._watch_horizon(watch, slot))
        last = found.newest[-1][0] if found.newest else self.compiled.plan.started_at
        first = max(bisect_right(reader.news_ts, last), end - watch.gate.times)
        if first < end:
            fresh = [(reader.news_ts[p], reader.observed(reader.news[p])) for p in range(first, end)]
            found = Observations(
                tuple([*found.newest, *fresh][-watch.gate.times :]), reader.received[reader.news[end - 1]]
            )
        self.observed[w, slot] = found
        return found

    # Density of buckets, at slots

    def _buckets(self, reader: SeriesReader) -> _Buckets:
        name = reader.spec.name
        if name not in self.buckets:
            self.buckets[name] = _Buckets(self.counts, reader)
        return self.buckets[name]

    def _steady(self, reader: SeriesReader, horizon: int) -> tuple[list[int], int, int] | None:
        """What `settled` of its buckets would say of a series of which each row of this range came for the next due instant, and
        nothing is missing; else None."""
        series_progress, spec, stamps = reader.progress, reader.spec, reader.news_ts
        if series_progress.gaps or reader.news_places is not stamps or reader.is_long:
            return None
        every, filled = spec.every, series_progress.filled
        due = series_progress.filled_to + every
        for ts in stamps:
            if ts >= due:
                if ts > horizon:
                    break
                if ts > due:
                    return None
                due += every
                filled += 1
        if due <= self.to - spec.overdue_after or due <= horizon - every // 2:
            return None
        return [], filled, due - every

    def _density(self) -> None:
        compiled, horizon = self.compiled, self.compiled.horizon(self.to)
        is_running = not compiled.clock.pauses
        for i, reader in enumerate(self.readers):
            spec, dense = reader.spec, reader.progress.dense
            if not spec.counted or spec.variant not in self.arms:
                continue
            reader.steady = self._steady(reader, horizon) if is_running else None
            if dense and reader.steady:
                continue
            buckets = self._buckets(reader)
            if dense and buckets.is_whole(self.to):
                continue
            slots = {self._judged(compiled.slot_at(instant)) for instant in buckets.closings(self.after, self.to)}
            for slot in sorted(slot for slot in slots if slot is not None):
                counted = buckets.at(slot)
                if is_dense(compiled, counted) != dense:
                    dense = not dense
                    self._record(slot, "dense", spec.name, counted)
            self.progress.series[i].dense = dense

    # The split, at slots

    def _split_at(self, metric: str, slot: int) -> dict[str, int] | None:
        """Units per arm at the metric's common instant of a slot; None while an arm is missing or does not say."""
        horizon = self.compiled.horizon(slot)
        common = self._common(metric, horizon)
        if common is None:
            return None
        split: dict[str, int] = {}
        for variant, reader in self.by_metric[metric].items():
            has_news = reader.progress.news_before is not None or bool(
                reader.news_ts and reader.news_places[0] <= common and reader.news_ts[0] <= horizon
            )
            units = reader.units_after(bisect_right(reader.places, common)) if has_news else None
            if units is None:
                return None
            split[variant] = units
        return split if len(split) > 1 else None

    def _split(self) -> None:
        compiled = self.compiled
        floor = compiled.horizon(self.after)
        for metric in compiled.counting:
            if metric in self.progress.alarmed:
                continue
            overdue_after = compiled.closed_after
            slots = {
                self._judged(compiled.slot_at(ts + overdue_after))
                for ts in self._suspicious(self.by_metric[metric], floor)
            }
            for slot in sorted([slot for slot in slots if slot is not None]):
                units = self._split_at(metric, slot)
                if units is None:
                    continue
                weights = [compiled.weights[variant] for variant in units]
                if srm_log_e_at_most(list(units.values()), weights) < LOG_ALARM:
                    continue
                if split_log_e(compiled, units) >= LOG_ALARM:
                    self._record(slot, "split", metric, units)
                    self.progress.alarmed = sorted([*self.progress.alarmed, metric])
                    break

    def _suspicious(self, of: Mapping[str, SeriesReader], floor: int) -> Iterable[int]:
        """Instants of news after `floor` where the split may be off: each of a few, of many those arrays point at."""
        for reader in of.values():
            if len(reader.n) < MANY or reader.units_array is None:
                newest = self.to - self.compiled.closed_after
                return {ts for other in of.values() for ts in other.news_ts if floor < ts <= newest}
        arms = list(of.items())
        every = arms[0][1].news_array
        if any(not np.array_equal(reader.news_array, every) for _, reader in arms[1:]):
            every = np.unique(np.concatenate([reader.news_array for _, reader in arms]))
        every = every[every > floor]
        common = np.minimum.reduce([reader.reach_of(every) for _, reader in arms])
        share = math.fsum(self.compiled.weights[variant] for variant, _ in arms)
        units = [
            reader.units_array[np.searchsorted(reader.places_array, common, side="right")].astype(np.float64)
            for _, reader in arms
        ]
        total = np.add.reduce(units)
        chi_square = np.zeros(len(every))
        for (variant, _), n in zip(arms, units, strict=True):
            planned = total * (self.compiled.weights[variant] / share)
            chi_square += (n - planned) ** 2 / np.maximum(planned, 1e-9)
        suspicious: list[int] = every[(common > NEVER) & (chi_square >= LOG_ALARM * (1 - NEAR))].tolist()
        return suspicious
