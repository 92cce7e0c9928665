"""The fold against the slow engine, and against itself: piecewise, late, corrected, out of order."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.schedule import Part
from gates.engine import buckets, extraction, reader, watermarks
from gates.engine.checkpoint import Checkpoint, CheckpointOutdated
from gates.engine.evidence import canonical_bytes, evidence, replay
from gates.engine.fold import fold
from gates.engine.plan import Plan
from gates.engine.quiet import unchanged_until
from gates.engine.reasons import blocking
from gates.engine.results import Evaluation
from tests.examples import examples
from tests.gates.desk import Desk, arrivals, body_of
from tests.gates.histories import HOUR, without
from tests.gates.naive import Naive
from tests.gates.worlds import MINUTE, World, calendared, world

SEEDS = st.integers(0, 2**32)
WORLDS = st.sampled_from([world, calendared])


@contextmanager
def arrays_from(rows: int) -> Iterator[None]:
    """Let arrays do the work from that many rows and looks on, so that small histories go either way."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (buckets, extraction, reader, watermarks):
            patched.setattr(module, "MANY", rows)
        patched.setattr(extraction, "FEW_LOOKS", rows)
        yield


@examples(14)
@given(SEEDS, WORLDS, st.booleans())
def test_skipping_quiet_slots_gives_what_judging_every_slot_gives(
    seed: int, some: Callable[[int], World], arrays: bool
) -> None:
    w = some(seed)

    slow = Naive(w.policy, w.plan, w.rows, w.end).evaluations(w.end)
    with arrays_from(1 if arrays else 64):
        fast = list(fold(w.policy, w.plan, w.rows, to=w.end).evaluations)

    assert [_told(e) for e in fast] == [_told(e) for e in slow]


@examples(7)
@given(SEEDS, WORLDS)
def test_every_evaluation_replays_from_its_evidence_to_the_same_bytes(seed: int, some: Callable[[int], World]) -> None:
    w = some(seed)
    folded = fold(w.policy, w.plan, w.rows, to=w.end)

    for evaluation in folded.evaluations[-1::-3]:
        document = canonical_bytes(evidence(w.policy, w.plan, folded, evaluation.slot))
        assert replay(document) == document


@examples(4)
@given(SEEDS, WORLDS)
def test_rows_late_corrected_removed_and_sent_twice_end_where_a_rebuild_ends(
    seed: int, some: Callable[[int], World]
) -> None:
    w, draw = some(seed), random.Random(seed)
    desk, queue = Desk(w.policy, w.plan), arrivals(w.rows, draw)
    now, end = w.plan.started_at, w.end + 13 * HOUR
    while now < end:
        now = min(end, now + draw.choice([1, 1, 1, 2, 6, 30]) * 10 * MINUTE)
        while queue and queue[0].at <= now:
            desk.receive(queue.pop(0))
        folded = desk.tick(now)
    rebuilt = fold(w.policy, w.plan, desk.rows(None), to=end)

    assert body_of(folded.checkpoint) == body_of(rebuilt.checkpoint)
    assert folded.proposals == rebuilt.proposals
    assert folded.evaluations[-1].recommendation == rebuilt.evaluations[-1].recommendation
    assert folded.evaluations[-1].gates == rebuilt.evaluations[-1].gates


@examples(8)
@given(SEEDS)
def test_outages_entered_late_and_schedules_changed_underway_end_where_a_rebuild_ends(seed: int) -> None:
    w, draw = calendared(seed), random.Random(seed)
    known = {
        (kpi.metric, what): draw.randrange(w.plan.started_at, w.end)
        for kpi in w.plan.kpis
        for what in (*kpi.outages, *kpi.expected[1:])
    }

    def plan_at(now: int) -> Plan:
        """With what had been entered by then: outages, and schedules after the first."""
        kpis = tuple(
            msgspec.structs.replace(
                kpi,
                outages=tuple(outage for outage in kpi.outages if known[kpi.metric, outage] <= now),
                expected=(*kpi.expected[:1], *(p for p in kpi.expected[1:] if known[kpi.metric, p] <= now)),
            )
            for kpi in w.plan.kpis
        )
        return msgspec.structs.replace(w.plan, kpis=kpis)

    desk, queue = Desk(w.policy, plan_at(w.plan.started_at)), arrivals(w.rows, draw)
    now, end = w.plan.started_at, w.end + 13 * HOUR
    while now < end:
        now = min(end, now + draw.choice([1, 1, 2, 6, 30]) * 10 * MINUTE)
        desk.plan = plan_at(now)
        if desk.state is not None and not Checkpoint.from_bytes(desk.state).fits(w.policy, desk.plan):
            desk.state = None
        while queue and queue[0].at <= now:
            desk.receive(queue.pop(0))
        folded = desk.tick(now)
    rebuilt = fold(w.policy, w.plan, desk.rows(None), to=end)

    assert body_of(folded.checkpoint) == body_of(rebuilt.checkpoint)
    assert folded.proposals == rebuilt.proposals
    assert _figures(folded.evaluations[-1]) == _figures(rebuilt.evaluations[-1])


@examples(6)
@given(SEEDS)
def test_seconds_that_are_said_as_a_schedule_give_the_figures_of_seconds(seed: int) -> None:
    w = world(seed)
    kpis = tuple(msgspec.structs.replace(k, expected=(Part(every_s=k.expected_every_s),)) for k in w.plan.kpis)

    said = fold(w.policy, msgspec.structs.replace(w.plan, kpis=kpis), w.rows, to=w.end)

    plain = fold(w.policy, w.plan, w.rows, to=w.end)
    assert said.steps == plain.steps
    assert [_figures(e) for e in said.evaluations] == [_figures(e) for e in plain.evaluations]


@examples(10)
@given(SEEDS, WORLDS)
def test_a_slot_that_is_passed_over_though_rows_arrived_tells_nothing_that_judging_it_would_tell(
    seed: int, some: Callable[[int], World]
) -> None:
    w, draw = some(seed), random.Random(seed)
    policy, patience = msgspec.structs.replace(w.policy, look_s=draw.choice([1, 4]) * 3600), draw.choice([1, 40])
    kpis = [msgspec.structs.replace(k, freshness_target_s=patience * k.freshness_target_s) for k in w.plan.kpis]
    plan = msgspec.structs.replace(w.plan, kpis=tuple(kpis))
    desk, every, queue = Desk(policy, plan), Desk(policy, plan), arrivals(w.rows, draw, corrected=0.01)
    for slot in range(w.plan.started_at + 10 * MINUTE, w.end + 13 * HOUR, 10 * MINUTE):
        while queue and queue[0].at <= slot:
            desk.receive(queue[0])
            every.receive(queue.pop(0))
        judged = every.tick(slot)
        if not desk.passes_over(slot):
            assert desk.tick(slot).proposals == judged.proposals
            said = judged
        elif judged.evaluated_slots:
            assert judged.steps == ()
            assert not any(told.changed for told in judged.evaluated_slots)
            assert _shown(judged.evaluations[-1]) == _shown(said.evaluations[-1])


@examples(20)
@given(SEEDS, WORLDS)
def test_a_history_judged_piece_by_piece_tells_at_every_slot_what_judging_it_at_once_tells(
    seed: int, some: Callable[[int], World]
) -> None:
    w, draw = some(seed), random.Random(seed)
    told: list[Evaluation] = []
    state, now = None, w.plan.started_at
    while now < w.end:
        now = min(w.end, now + draw.choice([1, 1, 6, 18, 40]) * 10 * MINUTE)
        folded = fold(w.policy, w.plan, w.rows, to=now, checkpoint=state)
        told = [] if folded.rebuilt else told
        told += [t.evaluation for t in folded.evaluated_slots if t.changed]
        state = folded.checkpoint
    at_once = fold(w.policy, w.plan, w.rows, to=w.end)

    assert [_told(e) for e in told] == [_told(t.evaluation) for t in at_once.evaluated_slots if t.changed]


@examples(4)
@given(SEEDS, WORLDS)
def test_a_state_survives_its_bytes_and_its_kept_states_lead_to_the_same_end(
    seed: int, some: Callable[[int], World]
) -> None:
    w = some(seed)
    folded = fold(w.policy, w.plan, w.rows, to=w.end)

    assert Checkpoint.from_bytes(folded.checkpoint.to_bytes()) == folded.checkpoint
    for kept in folded.checkpoint.older:
        back = folded.checkpoint.restore_at(kept.slot)
        assert back is not None
        again = fold(w.policy, w.plan, w.rows, to=w.end, checkpoint=back)
        assert body_of(again.checkpoint) == body_of(folded.checkpoint)


def test_a_plan_that_changed_behind_the_state_is_refused() -> None:
    w = world(7)
    state = fold(w.policy, w.plan, w.rows, to=w.end).checkpoint
    paused = msgspec.structs.replace(w.plan, pauses=((w.plan.started_at + HOUR, w.plan.started_at + 2 * HOUR),))

    assert not state.fits(w.policy, paused)
    with pytest.raises(CheckpointOutdated, match="Go back or rebuild"):
        fold(w.policy, paused, w.rows, to=w.end, checkpoint=state)


def test_what_happens_after_the_slot_of_a_state_does_not_outdate_it() -> None:
    w = world(7)
    state = fold(w.policy, w.plan, w.rows, to=w.end).checkpoint

    later = msgspec.structs.replace(w.plan, pauses=(*w.plan.pauses, (w.end + HOUR, None)))

    assert state.fits(w.policy, later)


@examples(10)
@given(SEEDS, WORLDS)
def test_up_to_the_slot_a_fold_calls_quiet_nothing_changes_unless_a_row_arrives(
    seed: int, some: Callable[[int], World]
) -> None:
    w, draw = some(seed), random.Random(seed)
    policy = msgspec.structs.replace(w.policy, look_s=4 * 3600)
    for _ in range(6):
        now = draw.randrange(w.plan.started_at + 600_000_000, w.end)
        here = {k: without(s, lambda i, s=s, now=now: s.first_received_at[i] <= now) for k, s in w.rows.items()}
        before = fold(policy, w.plan, here, to=now)
        until = unchanged_until(policy, w.plan, here, before.checkpoint)
        assert until >= before.checkpoint.slot
        for slot in range(before.checkpoint.slot + 600_000_000, until + 1, 600_000_000):
            after = fold(policy, w.plan, here, to=slot, checkpoint=before.checkpoint)
            assert after.steps == ()
            assert [t.changed for t in after.evaluated_slots] == [False]
            assert _shown(after.evaluations[-1]) == _shown(before.evaluations[-1])


def _figures(evaluation: Evaluation) -> object:
    """What is recommended, and what each gate says and read."""
    told = [(r.action, r.code, r.state, r.proposed_slot) for r in (evaluation.recommendation, *evaluation.variants)]
    return evaluation.slot, told, [(gate.gate, gate.variant, gate.verdict, gate.reading) for gate in evaluation.gates]


def _shown(evaluation: Evaluation) -> object:
    """What the document takes from an evaluation that is not on record."""
    told = [evaluation.recommendation, *evaluation.variants]
    return evaluation.gates, [
        msgspec.structs.replace(r, reasons=tuple(blocking(r.reasons)) if r.proposed_slot is not None else ())
        for r in told
    ]


def _told(evaluation: Evaluation) -> object:
    """An evaluation without what it says of single rows, which the slow engine does not say."""
    plain = msgspec.to_builtins(evaluation)
    for recommendation in (plain["recommendation"], *plain["variants"]):
        del recommendation["reasons"]
    return plain


@examples(10)
@given(SEEDS)
def test_slots_that_follow_from_the_same_say_the_same(seed: int) -> None:
    w = world(seed)
    told: dict[str, Evaluation] = {}
    checkpoint = None
    for slot in range(w.plan.started_at + 600_000_000, w.end + 1, 600_000_000):
        folded = fold(w.policy, w.plan, w.rows, to=slot, checkpoint=checkpoint)
        checkpoint = folded.checkpoint
        if w.plan.answers or w.plan.ended_at is not None or not folded.evaluated_slots:
            continue
        newest = folded.evaluated_slots[-1]
        said = msgspec.structs.replace(newest.evaluation, slot=0, changed=False)
        assert told.setdefault(newest.basis, said) == said
