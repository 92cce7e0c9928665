"""Up to which slot nothing can change, so that nothing need be folded. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gates.engine.checkpoint import BODY, Checkpoint
from gates.engine.compared import NO_END
from gates.engine.compiled import compile_plan
from gates.engine.extraction import FactExtractor
from gates.engine.plan import DAY, Plan
from gates.engine.policy import Policy
from gates.engine.reader import SeriesReader
from gates.engine.series import Rows
from gates.engine.state import FRESH, OVERDUE, STALE
from gates.engine.watermarks import Watermarks


def unchanged_until(policy: Policy, plan: Plan, rows: Rows, checkpoint: Checkpoint, *, at_least: int = 0) -> int:
    """The last slot up to which nothing that people see changes while rows, answers and plan stay as they are.

    rows: those after `checkpoint.needs_rows_after()`, newer ones than its fold was given among them. The checkpoint's own slot when the
    next one has to be judged anyway. A fold gives the same whenever it runs, so up to that slot it need not run. at_least: a slot; when something is sure to be judged before it,
    the rows are not looked at.
    """
    compiled, slot = compile_plan(policy, plan), checkpoint.slot
    next_look, next_day = ((slot // width + 1) * width for width in (compiled.look_us, DAY))
    next_slot = slot + compiled.slot_us
    is_last = plan.ended_at is not None or compiled.newest_judged(next_slot) == slot
    if slot < plan.created_at or is_last or min(next_look, next_day) <= max(next_slot, at_least):
        return slot
    body = BODY.decode(checkpoint.body)
    latched = any(variant_state.latch is not None for variant_state in body.state.variant_states)
    if latched and any(status in (STALE, OVERDUE) for status in body.state.fresh):  # said of what is suspended
        return slot
    extractor = FactExtractor(compiled, body.progress, rows, slot, NO_END)
    return max(slot, min(next_look, next_day, *_events(extractor)) - compiled.slot_us)


def _events(extractor: FactExtractor) -> Iterable[int]:
    """Slots after the beginning from which on rows that are there, or the passing of time, may say something else."""
    compiled, after = extractor.compiled, extractor.after
    instants = list(compiled.scheduled_slots)
    for reader in extractor.read:
        spec, known = reader.spec, extractor.watermarks[reader.spec.name]
        stays_fresh = _stays_fresh(extractor, reader, known)
        instants += known.onset(known.newest if stays_fresh else known.at(after)[0])
        if spec.counted:
            instants += extractor.buckets_of(reader).closings(after, after)
        if spec.splits or spec.at_horizon or not stays_fresh:
            instants += [ts + compiled.closed_after for ts in reader.ts]
        if spec.at_present or not stays_fresh:
            instants += reader.ts
        if not stays_fresh:
            instants += reader.received
    return [slot for at in instants if (slot := compiled.slot_at(at)) > after]


def _stays_fresh(extractor: FactExtractor, reader: SeriesReader, known: Watermarks) -> bool:
    """Whether the arrival of its rows changes nothing: each came while the one before it was young enough, and was young itself."""
    if reader.seen_ts is not reader.news_ts or (reader.spec.counted and extractor.buckets_of(reader).is_late):
        return False
    return known.newest is not None and not known.late and reader.progress.status == FRESH
