"""Checkpoints: where a fold stands, stored, so that the next one goes on from there or goes back to an earlier one. Pure.

A checkpoint names by a fingerprint what it was folded under; one that does not fit is folded anew, from the rows.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from gates.engine.compiled import REVISION, CompiledPlan, compile_plan
from gates.engine.facts import Observations
from gates.engine.plan import Kpi, Plan
from gates.engine.policy import Policy
from gates.engine.reader import SeriesProgress
from gates.engine.series import SeriesKey
from gates.engine.sparse import needs_goal_after
from gates.engine.state import ExperimentState
from gates.engine.statistics.scatter import NO_BUCKETS, Running

FORMAT = 8
"""Of a checkpoint: one of another format is folded anew."""


class Progress(msgspec.Struct, array_like=True):
    """How far all rows are read: per series of the compiled plan, per compared metric its common instant, per watch and target.

    scatter: per compared metric and judged variant. checked: per compared metric the last whole day of age at which it was looked at.
    over: goals that have more units than were exposed.
    """

    series: list[SeriesProgress]
    instants: list[int | None]
    watched: list[Observations]
    watch_verdicts: list[str]
    target_days: list[dict[str, tuple[float, float, bool]]]
    target_seen: list[tuple[int | None, int]]
    target_through: list[int]
    alarmed: list[str] = []
    scatter: list[Running] = []
    checked: list[int] = []
    over: list[str] = []

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
            scatter=[NO_BUCKETS] * (len(compiled.compared) * len(compiled.judged_variants)),
            checked=[0] * len(compiled.compared),
        )


class Body(msgspec.Struct, array_like=True):
    progress: Progress
    state: ExperimentState


ENCODER, BODY = msgspec.msgpack.Encoder(order="deterministic"), msgspec.msgpack.Decoder(Body)


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
        return self.fingerprint == fingerprint_of(compile_plan(policy, plan), self.slot)

    @property
    def is_mended(self) -> bool:
        """Whether the rules that judged it were mended since."""
        return self.revision != REVISION


class CheckpointOutdated(ValueError):
    """The checkpoint was folded under another policy or by another version, or the plan has changed behind its slot."""


def checkpoint_of(compiled: CompiledPlan, body: Body, slot: int, older: tuple[OlderCheckpoint, ...]) -> Checkpoint:
    is_known = slot >= compiled.plan.created_at
    bases = [series_progress.base if is_known else compiled.plan.started_at for series_progress in body.progress.series]
    for spec, series_progress in zip(compiled.specs, body.progress.series, strict=True):
        if (goal := spec.sparse_beside) is not None:
            bases[goal] = min(bases[goal], needs_goal_after(spec, compiled.specs[goal], series_progress))
    return Checkpoint(
        slot=slot,
        fingerprint=fingerprint_of(compiled, slot),
        visibility_lags=compiled.visibility_lags if is_known else compiled.no_lags,
        needs=dict(zip(compiled.series_index, bases, strict=True)),
        body=ENCODER.encode(body),
        older=older,
        revision=REVISION,
    )


def older_checkpoint(compiled: CompiledPlan, body: Body, slot: int) -> OlderCheckpoint:
    return OlderCheckpoint(slot, msgspec.msgpack.encode(checkpoint_of(compiled, body, slot, ())))


def thin_out(older: Sequence[OlderCheckpoint], slot: int) -> tuple[OlderCheckpoint, ...]:
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


def fingerprint_of(compiled: CompiledPlan, slot: int) -> str:
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
            kpis=tuple(_known_of(kpi, slot) for kpi in plan.kpis),
        )
        compiled.fingerprints[turn] = hashlib.sha256(
            msgspec.json.encode([FORMAT, REVISION, policy, happened])
        ).hexdigest()[:16]
    return compiled.fingerprints[turn]


def _known_of(kpi: Kpi, slot: int) -> Kpi:
    """A KPI with what had happened of its outages, of which it does not matter how long one goes on, and of what was set aside."""
    if not kpi.outages and not kpi.trusted:
        return kpi
    return replace(
        kpi,
        outages=tuple((begin, _known_by(end, slot) or -1) for begin, end in kpi.outages if begin <= slot),
        trusted=tuple((begin, _known_by(end, slot), why) for begin, end, why in kpi.trusted if begin <= slot),
    )


def _known_by(instant: int | None, slot: int) -> int | None:
    return instant if instant is not None and instant <= slot else None
