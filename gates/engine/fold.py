"""The fold: stored rows in, evaluations out, slot after slot, as docs/gates.md says. Pure.

`fold` judges every slot up to one, either from the start (a rebuild) or on from the `State` of an earlier fold; both give
exactly the same. It is event-driven: slots at which nothing can change are skipped, never approximated. The rows become
facts (`gates.engine.facts`) in `_Stretch`; what follows from facts is decided in `gates.engine.machine` alone.
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

from gates.engine.facts import Days, Detail, MetricLook, Observations, Step
from gates.engine.facts import State as Sums
from gates.engine.machine import (
    FRESH,
    LOG_ALARM,
    OVERDUE,
    REVISION,
    STALE,
    Evaluation,
    Judge,
    Memory,
    Recommendation,
    Rules,
    Source,
    Watch,
    freshness,
    is_dense,
    judge,
    split_log_e,
    state_of,
    watch_verdict,
)
from gates.engine.narration import evaluation_of, recommended
from gates.engine.plan import DAY, Plan, rfc3339
from gates.engine.policy import Gate, Policy
from gates.engine.screening import NEAR, Run
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
"""Of a state: one of another format is folded anew."""
NEVER, NO_END = -1, 2**62
"""Instants before and after every row."""
FEW_LOOKS = 6
"""Below this many looks a preview costs more than it saves."""
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


class Cursor(msgspec.Struct, array_like=True):
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


class Cursors(msgspec.Struct, array_like=True):
    """How far all rows are read: per series of the judge, per compared metric its common instant, per watch and target."""

    series: list[Cursor]
    instants: list[int | None]
    watched: list[Observations]
    watch_verdicts: list[str]
    target_days: list[dict[str, tuple[float, float, bool]]]
    target_seen: list[tuple[int | None, int]]
    target_through: list[int]
    alarmed: list[str] = []

    @classmethod
    def at_start(cls, judge: Judge) -> Cursors:
        start = judge.plan.started_at
        return cls(
            series=[Cursor(base=start, through=start, filled_to=source.dues.start) for source in judge.sources],
            instants=[None] * len(judge.compared),
            watched=[Observations((), 0)] * len(judge.watches),
            watch_verdicts=["no_data"] * len(judge.watches),
            target_days=[{} for _ in judge.targets],
            target_seen=[(None, 0)] * len(judge.targets),
            target_through=[start] * len(judge.targets),
        )


class _Body(msgspec.Struct, array_like=True):
    cursors: Cursors
    memory: Memory


_ENCODER, _BODY = msgspec.msgpack.Encoder(order="deterministic"), msgspec.msgpack.Decoder(_Body)


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """The state as it was after an earlier slot, to go back to."""

    slot: int
    body: bytes


class State(msgspec.Struct, frozen=True, array_like=True):
    """Where a fold stands after `slot`. `to_bytes` and `from_bytes` are exact inverses.

    facts: a digest of policy and plan as far as they reach back behind `slot`. lags: per metric read, how far behind the slot
    its newest instant judged lies. kept: earlier states, newest first, thinning with age. rules: the revision that judged.
    """

    slot: int
    facts: str
    lags: dict[str, int]
    needs: dict[str, int]
    body: bytes
    kept: tuple[Kept, ...] = ()
    rules: int = 1  # what states are that do not say it

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        """Raises StateOutdated when another version wrote it in another shape."""
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError:
            raise StateOutdated("The state was written by another version. Rebuild.") from None

    def needs_rows_after(self) -> dict[SeriesKey, int]:
        """Per series the instant: the next fold has to be given every row of it with ts > that (more does no harm)."""
        return {(name.partition("/")[0], name.partition("/")[2]): base for name, base in self.needs.items()}

    def judged_to(self, metric: str) -> int | None:
        """The newest instant judged for a metric; None when no gate reads it.

        A row with ts <= this that appears makes the state wrong, and so does one with ts <= `slot` that changes, goes, or says
        that it arrived at or before `slot`: continue from `before`.
        """
        lag = self.lags.get(metric)
        return None if lag is None else self.slot - lag

    def before(self, metric: str, ts: int, *, late: bool = True) -> State | None:
        """The newest kept state that cannot have read a row of `metric` at `ts`; None: rebuild.

        late: the row is new and first arrived after `slot`; False when it changed, went, or arrived before and was not seen.
        """
        lag = self.lags.get(metric)
        if lag is None:
            return self
        behind = lag if late else 0
        return self if ts > self.slot - behind else self.at_most(ts + behind - 1)

    def at_most(self, slot: int) -> State | None:
        """The newest kept state of a slot at or before this one; None: rebuild."""
        if self.slot <= slot:
            return self
        for position, kept in enumerate(self.kept):
            if kept.slot <= slot:
                restored = msgspec.msgpack.decode(kept.body, type=State)
                return replace(restored, kept=self.kept[position + 1 :])
        return None

    def fits(self, policy: Policy, plan: Plan) -> bool:
        """Whether policy and plan still say what they said when this was folded; if not, `at_most` or rebuild.

        One of an earlier revision of the rules (`is_mended`) never fits: rebuild.
        """
        return self.facts == _facts(judge(policy, plan), self.slot)

    @property
    def is_mended(self) -> bool:
        """Whether the rules that judged it were mended since."""
        return self.rules != REVISION


class Telling:
    """The experiment as of one slot. What it rests on and says is put together when it is read; memory, which moves on, is kept."""

    def __init__(self, court: Judge, memory: Memory | bytes, stretch: _Stretch, slot: int, *, changed: bool) -> None:
        self.slot, self.changed = slot, changed
        self._court, self._memory, self._stretch = court, memory, stretch

    @cached_property
    def detail(self) -> Detail:
        return self._stretch.detail(self.slot)

    @cached_property
    def memory(self) -> Memory:
        held = self._memory
        return msgspec.msgpack.decode(held, type=Memory) if isinstance(held, bytes) else held

    @cached_property
    def evaluation(self) -> Evaluation:
        return evaluation_of(self._court, self.memory, self.detail, changed=self.changed)

    @cached_property
    def recommended(self) -> tuple[Recommendation, tuple[Recommendation, ...]]:
        """Of the experiment and of each variant, as in `evaluation` but without its sentences, which cost most of it."""
        return recommended(self._court, self.memory)


class Folded(msgspec.Struct, frozen=True, dict=True):
    """What one fold found.

    tellings: oldest first, the slots at which something changed, and always the newest slot judged. steps: the facts of
    every slot of this fold that changed any. proposals: what is latched at the end. rebuilt: from the start, so steps are
    complete. first_readable_at: the first look that was fresh, dense and had its floors and min_days.
    """

    state: State
    tellings: tuple[Telling, ...]
    proposals: tuple[Proposal, ...]
    first_readable_at: int | None
    rebuilt: bool
    stretches: tuple[_Facts, ...]

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        return tuple(telling.evaluation for telling in self.tellings)

    @property
    def details(self) -> tuple[Detail, ...]:
        """The facts each evaluation quotes."""
        return tuple(telling.detail for telling in self.tellings)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Written out when asked for: a few hundred objects that only evidence needs."""
        return tuple(step for facts in self.stretches for step in facts.steps())


class _Facts(NamedTuple):
    """The facts of one stretch: by slot, and runs of compared metrics apart."""

    by_slot: dict[int, Step]
    looks: Sequence[int]
    runs: dict[str, Run]

    def steps(self) -> list[Step]:
        if not self.runs:
            return [self.by_slot[slot] for slot in sorted(self.by_slot)]
        metric_looks: dict[int, dict[str, MetricLook]] = {}
        for metric, run in self.runs.items():
            for k, look in enumerate(run.looks):
                metric_looks.setdefault(look, {})[metric] = run.look(k)
        steps = []
        for slot in sorted({*self.by_slot, *self.looks}):
            step = self.by_slot.get(slot) or Step(slot=slot, look=True)
            steps.append(replace(step, looks=metric_looks[slot]) if slot in metric_looks else step)
        return steps


class StateOutdated(ValueError):
    """The state was folded under another policy or by another version, or the plan has changed behind its slot."""


def fold(policy: Policy, plan: Plan, rows: Rows, *, to: int, state: State | None = None) -> Folded:
    """Judge every slot after `state` (or the start) up to and including the last one at or before `to`.

    rows: with a state, at least those of `state.needs_rows_after()`; else all. Raises StateOutdated when `state` does not
    `fits` policy and plan.
    """
    court = judge(policy, plan)
    if state is not None and state.facts != _facts(court, state.slot):
        raise StateOutdated(
            f"The state of slot {rfc3339(state.slot)} was folded under other facts. Go back or rebuild."
        )
    newest = court.newest_judged(to)
    if state is not None and state.slot >= plan.created_at:
        body = _BODY.decode(state.body)
        slot, kept, rebuilt = state.slot, list(state.kept), False
        if newest is not None and newest > slot:
            kept.insert(0, Kept(slot, _ENCODER.encode(replace(state, kept=()))))
    else:
        body = _Body(Cursors.at_start(court), Memory.at_start(court))
        slot, kept, rebuilt = plan.started_at, [], True
    found = _Found()
    if newest is not None and newest > slot:
        rules = Rules(court, body.memory)
        for end in _stretches(court, slot, newest):
            _walk(court, rules, body.cursors, rows, slot, end, found, newest=newest)
            slot = end
            if end != newest:
                kept.insert(0, _keep(court, body, end))
    elif newest is not None and state is not None:  # the newest slot once more
        stretch = _Stretch(court, body.cursors, rows, slot, slot)
        found.tellings.append(Telling(court, body.memory, stretch, slot, changed=False))
    reached = max(slot, newest or slot)
    return Folded(
        state=_state(court, body, reached, _thinned(kept, reached)),
        tellings=tuple(found.tellings),
        proposals=_proposals(court, body.memory),
        first_readable_at=min([s.readable_at for s in body.memory.standing if s.readable_at is not None], default=None),
        rebuilt=rebuilt,
        stretches=tuple(found.stretches),
    )


def quiet_to(policy: Policy, plan: Plan, rows: Rows, state: State) -> int:
    """The last slot up to which nothing that people see changes while rows, answers and plan stay as they are.

    rows: what the fold that left `state` was given. The state's own slot when the next one has to be judged anyway. A fold
    gives the same whenever it runs, so up to that slot it need not run.
    """
    court, slot = judge(policy, plan), state.slot
    body = _BODY.decode(state.body)
    latched = any(standing.latch is not None for standing in body.memory.standing)
    ages = latched and any(status in (STALE, OVERDUE) for status in body.memory.fresh)  # said of what is suspended
    if slot < plan.created_at or plan.ended_at is not None or ages or court.newest_judged(slot + court.slot_us) == slot:
        return slot
    stretch = _Stretch(court, body.cursors, rows, slot, NO_END)
    next_look, next_day = ((slot // width + 1) * width for width in (court.look_us, DAY))
    return max(slot, min(next_look, next_day, *stretch.events()) - court.slot_us)


def at_start(policy: Policy, plan: Plan) -> Evaluation:
    """The experiment before its first slot: every gate of the plan, none with data, each saying what it waits for."""
    court, start = judge(policy, plan), plan.started_at
    stretch = _Stretch(court, Cursors.at_start(court), {}, start, start)
    return Telling(court, Memory.at_start(court), stretch, start, changed=False).evaluation


class _Found:
    """What a fold collects on its way."""

    def __init__(self) -> None:
        self.tellings: list[Telling] = []
        self.stretches: list[_Facts] = []


def _walk(
    court: Judge, rules: Rules, cursors: Cursors, rows: Rows, after: int, to: int, found: _Found, *, newest: int
) -> None:
    """Judge the slots in (after, to], over which the arms stay the same."""
    stretch = _Stretch(court, cursors, rows, after, to)
    with np.errstate(all="ignore") if stretch.is_long else nullcontext():  # numbers beyond reason end as no reading
        _judge(court, rules, stretch, found, newest)


def _judge(court: Judge, rules: Rules, stretch: _Stretch, found: _Found, newest: int) -> None:
    facts, memory = stretch.facts(), rules.memory
    found.stretches.append(facts)
    judged = stretch.after
    if facts.runs:
        stops = rules.glide(facts.looks, facts.by_slot, facts.runs)
    else:
        stops = ((step.slot, rules.step(step)) for step in facts.steps())
    for slot, changed in stops:
        if slot == newest:
            rules.catch_up()
            found.tellings.append(Telling(court, memory, stretch, slot, changed=changed))
        elif changed:
            rules.catch_up()
            found.tellings.append(Telling(court, _ENCODER.encode(memory), stretch, slot, changed=True))
        judged = slot
    rules.gliding = None
    memory.slot = stretch.to
    if stretch.to == newest and judged != newest:
        found.tellings.append(Telling(court, memory, stretch, newest, changed=False))
    stretch.close()


def _stretches(court: Judge, after: int, to: int) -> list[int]:
    """Ends of the stretches (after, to] falls into: where arms change, and in a long one where a state is worth keeping."""
    is_long = to - after >= DAY
    if not is_long and not court.dropped:
        return [to]
    ends = {court.slot_at(dropped_at) - court.slot_us for dropped_at in court.dropped.values()}
    if is_long:
        ends.add(max((to - court.look_us) // court.slot_us * court.slot_us, court.created))
    judged = {newest for end in ends if (newest := court.newest_judged(end)) is not None}
    return sorted({to, *(end for end in judged if after < end < to)})


def _thinned(kept: Sequence[Kept], slot: int) -> tuple[Kept, ...]:
    """Kept states, newest first: all of the last half hour or so, then each half as old again as the one before."""
    thin: list[Kept] = []
    least = 0
    for state in kept:
        age = slot - state.slot
        if age >= least and age > 0:
            thin.append(state)
            if len(thin) >= 3:
                least = age * 3 // 2
    return tuple(thin)


def _keep(court: Judge, body: _Body, slot: int) -> Kept:
    return Kept(slot, msgspec.msgpack.encode(_state(court, body, slot, ())))


def _state(court: Judge, body: _Body, slot: int, kept: tuple[Kept, ...]) -> State:
    is_known = slot >= court.plan.created_at
    bases = [cursor.base if is_known else court.plan.started_at for cursor in body.cursors.series]
    return State(
        slot=slot,
        facts=_facts(court, slot),
        lags=court.lags if is_known else court.no_lags,
        needs=dict(zip(court.series_index, bases, strict=True)),
        body=_ENCODER.encode(body),
        kept=kept,
        rules=REVISION,
    )


def _facts(court: Judge, slot: int) -> str:
    """Policy and plan without what happened after `slot`, as one comparable text."""
    policy, plan = court.policy, court.plan
    turn = bisect_right(court.turns, slot)
    if turn not in court.facts_at:
        happened = replace(
            plan,
            variants=tuple(replace(v, dropped_at=_by(v.dropped_at, slot)) for v in plan.variants),
            ended_at=_by(plan.ended_at, slot),
            pauses=tuple((begin, _by(end, slot)) for begin, end in plan.pauses if begin < slot),
            answers=tuple(answer for answer in plan.answers if answer.at <= slot),
        )
        court.facts_at[turn] = hashlib.sha256(msgspec.json.encode([FORMAT, REVISION, policy, happened])).hexdigest()[
            :16
        ]
    return court.facts_at[turn]


def _by(instant: int | None, slot: int) -> int | None:
    return instant if instant is not None and instant <= slot else None


def _proposals(court: Judge, memory: Memory) -> tuple[Proposal, ...]:
    arms = court.arms(memory.slot)
    return tuple(
        [
            Proposal(
                variant=variant,
                action=latch.action,
                code=latch.code,
                proposed_slot=latch.slot,
                state=state_of(standing),
                first_stable_at=latch.stable_at,
                knowable_at=latch.knowable_at,
                stands_alone=latch.row in (1, 3),
            )
            for variant, standing in zip(court.subjects, memory.standing, strict=True)
            if (latch := standing.latch) is not None and variant in arms
        ]
    )


# Rows into facts ------------------------------------------------------------------------------------------------------


class _Strand:
    """The unread rows of one series within a stretch, and which of them are news."""

    def __init__(self, source: Source, series: Series, cursor: Cursor, to: int) -> None:
        self.source, self.kpi, self.series, self.cursor = source, source.kpi, series, cursor
        ts, n, received = series.ts, series.n, series.first_received_at
        self.first, self.end = first, end = bisect_right(ts, cursor.base), bisect_right(ts, to)
        if first or end < len(ts):
            ts, n, received = ts[first:end], n[first:end], received[first:end]
        self.ts, self.n, self.received = ts, n, received
        self.cumulative = source.cumulative
        self.places: Sequence[int] = ts
        every = source.every
        self.is_long = len(ts) >= MANY
        if self.is_long:
            if (self.ts_array % every).any() or cursor.place_before >= ts[0]:
                self.places = self._places()
        elif ts:
            behind = cursor.place_before
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
        self.position = bisect_right(ts, cursor.through)
        self.known: tuple[Sequence[int], Sequence[int | None], Sequence[int | None]] | None = None
        self.late: list[tuple[int, int | None]] = []
        self.steady: tuple[list[int], int, int] | None = None
        self._units: list[int | None] | None = None

    def _places(self) -> list[int]:
        """Where rows stand beside those of other arms, which may be stamped otherwise: the due instant each answers, and how many rows
        of this series answered it before. Strictly rising, like ts."""
        schedule, before = self.source.schedule, self.cursor.place_before
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
        before = self.cursor.row_before
        for i, row in enumerate(zip(*self._told(slice(self.first, self.end)), strict=True)):
            if row[0] != 0 and (row[0] is None or row != before):
                news.append(i)
            before = row
        return news

    def _told(self, rows: slice) -> list[Sequence[float | int | None]]:
        """The columns of what rows say, n first; one that the series does not have says nothing."""
        s = self.series
        columns = (s.n, s.value, s.variance, s.denominator_value, s.denominator_variance, s.covariance)
        nothing = [None] * len(s.ts)
        return [(column or nothing)[rows] for column in columns]

    def row(self, i: int) -> tuple[float | int | None, ...]:
        """What unread row i says."""
        return tuple([column[0] for column in self._told(slice(self.first + i, self.first + i + 1))])

    def newest(self, instant: int) -> int | None:
        """ts of the newest news at or before an instant."""
        i = bisect_right(self.news_ts, instant)
        return self.news_ts[i - 1] if i else self.cursor.news_before

    def reach(self, instant: int) -> int | None:
        """Place of the newest news at or before an instant."""
        i = bisect_right(self.news_ts, instant)
        return self.news_places[i - 1] if i else self.cursor.news_place_before

    def news_at(self, instant: int) -> tuple[int | None, int | None]:
        """ts and place of the newest news at or before an instant."""
        if i := bisect_right(self.news_ts, instant):
            return self.news_ts[i - 1], self.news_places[i - 1]
        return self.cursor.news_before, self.cursor.news_place_before

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
        before = self._n_before if self.cumulative else self.cursor.units_before
        if before is None or before < 0 or self.counts is None:
            return None
        return np.concatenate(([before], self.counts if self.cumulative else before + np.cumsum(self.counts)))

    @property
    def _n_before(self) -> int | None:
        return self.cursor.row_before[0] if self.cursor.row_before else None  # type: ignore[return-value] # n is whole

    def _units_so_far(self) -> list[int | None]:
        if self.cumulative:
            return [self._n_before, *self.n]
        total: int | None = self.cursor.units_before if self.cursor.units_before >= 0 else None
        if total is None:
            return [None] * (len(self.n) + 1)
        units: list[int | None] = [total]
        for n in self.n:
            total = None if n is None or n < 0 or total is None else total + n
            units.append(total)
        return units

    def read_to(self, place: int, horizon: int) -> bool:
        """Merge closed rows up to a place into the cursor, in ts order; True when one restated n on the way."""
        cursor, restated = self.cursor, False
        i, places, ts = self.position, self.places, self.ts
        while i < len(places) and places[i] <= place and ts[i] <= horizon:
            n, received = self.n[i], self.received[i]
            if received > cursor.arrived:
                cursor.arrived = received
            if self.cumulative:
                if n is not None:
                    restated = restated or (cursor.n_through is not None and is_restated(cursor.n_through, n))
                    cursor.n_through = n
                bucket = self._bucket(i)
                cursor.unreadable = bucket if isinstance(bucket, str) else ""
                if not isinstance(bucket, str):
                    cursor.sums = bucket
            elif n != 0 and not cursor.unreadable:
                bucket = self._bucket(i)
                if isinstance(bucket, str):
                    cursor.unreadable = bucket
                elif cursor.sums is None:
                    cursor.sums = bucket
                elif isinstance(bucket, PairMoments):
                    cursor.sums = merge_pairs(PairMoments(*cursor.sums), bucket)  # type: ignore[arg-type]
                else:
                    cursor.sums = merge(cursor.sums, bucket)  # type: ignore[arg-type]
            i += 1
        if i > self.position:
            cursor.through = self.ts[i - 1]
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
        before = NEVER if self.cursor.news_place_before is None else self.cursor.news_place_before
        return np.concatenate(([before], places))[np.searchsorted(self.news_array, horizons, side="right")]

    def all_sums(self) -> _Sums | None:
        """The state before and after each unread row, when every row is readable and none is restated; else None."""
        cursor, read = self.cursor, self.position
        if cursor.unreadable or not self.ts or self.counts is None:
            return None
        buckets = self._buckets(read)
        if buckets is None:
            return None
        pairs = self.kpi.kind == "ratio"
        start: Any = cursor.sums or (NO_PAIRS if pairs else NOTHING)
        if self.cumulative:
            before = np.concatenate(([cursor.n_through or 0], buckets[0][:-1]))
            if is_restated(before, buckets[0]).any():
                return None
            columns = tuple(np.concatenate(([first], column)) for first, column in zip(start, buckets, strict=True))
        else:
            columns = chain_pairs(PairMoments(*start), *buckets) if pairs else chain(Moments(*start), *buckets)
        if read:
            columns = tuple(np.concatenate(([column[0]] * read, column)) for column in columns)
        arrived = np.full(len(self.ts) + 1, cursor.arrived)
        arrived[read + 1 :] = np.maximum(np.maximum.accumulate(self.received_array[read:]), cursor.arrived)
        return _Sums(columns, arrived)

    def _buckets(self, read: int) -> tuple[Any, ...] | None:
        """Columns of the rows from position `read` on as moments; None when one is unreadable."""
        series, rows = self.series, slice(self.first + read, self.end)
        if self.source.unfit:
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

    def stand_at(self, rows: _Sums, upto: int) -> None:
        """Move the cursor to where `read_to` would leave it."""
        cursor = self.cursor
        if upto > self.position:
            state = tuple(column[upto].item() for column in rows.columns)
            if self.cumulative or state[0]:
                cursor.sums = state
            if self.cumulative:
                cursor.n_through = self.n[upto - 1]
            cursor.arrived = int(rows.arrived[upto])
            cursor.through = self.ts[upto - 1]
            self.position = upto

    def _bucket(self, i: int) -> Moments | PairMoments | str:
        """One row as moments, or why it is unreadable."""
        at = self.first + i
        value, n, kind = self.series.value[at], self.n[i], self.kpi.kind
        if self.source.unfit:
            return self.source.unfit
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

    def turns(self, gate: Gate, first: int) -> Iterable[int]:
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


class _Sums(NamedTuple):
    """columns: n, mean, M2 of a strand before its first unread row and after each. arrived: latest arrival so far."""

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

    __slots__ = ("court", "known")

    def __init__(self, court: Judge) -> None:
        self.court = court
        self.known: dict[tuple[int, int, int], int] = {}

    def closed(self, source: Source, slot: int) -> int:
        """Those that are overdue at a slot."""
        grid = source.every, source.lag, slot
        found = self.known.get(grid)
        if found is None:
            found = self.known[grid] = source.dues.count(self.court.overdue(source, slot))
        return found

    def final(self, source: Source, horizon: int) -> int:
        """Those that no row after a horizon can answer any more."""
        grid = source.every, -1, horizon
        found = self.known.get(grid)
        if found is None:
            found = self.known[grid] = source.dues.count(horizon - source.every // 2)
        return found


class _Buckets:
    """Which of the expected due instants of one series have been answered, as of any slot of a stretch.

    A due instant is awaited until `lag` after it, and by a feed that stamps its rows after the instants they answer that much longer.
    """

    __slots__ = ("answered", "counts", "court", "cursor", "dues", "is_late", "since", "source", "strand")

    def __init__(self, counts: _Counts, strand: _Strand) -> None:
        self.counts, self.court, self.strand = counts, counts.court, strand
        self.source, self.cursor = source, cursor = strand.source, strand.cursor
        self.dues, places, ts = source.dues, strand.news_places, strand.news_ts
        before, settled, every = cursor.news_before, cursor.filled, source.every
        self.is_late = before is not None and before % every > 0 and before > source.schedule.answered(before)
        """Rows are stamped after the instants they answer."""
        if places is not ts:
            self.is_late = self.is_late or any(at > source.schedule.answered(at) for at in ts)
        self.since: Sequence[int] = ts
        if places is ts and not self.dues.pauses:
            behind = self.dues.start + every
            if len(ts) >= MANY:
                self.answered: list[int] = ((strand.news_array - behind) // every).tolist()
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
            due = self.source.schedule.answered(place)
            if self.dues.expects(due):
                number = self.dues.count(due) - 1
                if number >= settled and (not numbers or number > numbers[-1]):
                    numbers.append(number)
                    since.append(ts)
        return numbers, since

    def closed(self, slot: int) -> int:
        """How many due instants are overdue at a slot."""
        closed = self.counts.closed(self.source, slot)
        if self.is_late:
            newest = self.strand.newest(self.court.horizon(slot))
            due = None if newest is None else self.source.schedule.answered(newest)
            if newest is not None and due is not None and newest > due:
                limit = self.court.overdue(self.source, slot)
                return self.dues.count(max(min(due, limit), limit - (newest - due)))
        return closed

    def at(self, slot: int) -> tuple[int, int]:
        """(observed, expected) buckets over the last min_days whole days."""
        closed, settled, gaps = self.closed(slot), self.cursor.filled, self.cursor.gaps
        first = max(0, closed - self.source.window) if self.source.window else 0
        missing = bisect_left(gaps, closed) - bisect_left(gaps, first) if gaps else 0
        if closed > settled:
            begin = max(first, settled)
            upto = bisect_left(self.answered, closed)
            if self.is_late:
                upto = min(upto, bisect_right(self.since, self.court.horizon(slot)))
            missing += closed - begin - max(0, upto - bisect_left(self.answered, begin))
        return closed - first - missing, closed - first

    def is_whole(self, to: int) -> bool:
        """Whether nothing is missing up to a slot, at any slot before it either."""
        if self.cursor.gaps or self.is_late:
            return False
        unsettled = self.closed(to) - self.cursor.filled
        return unsettled <= 0 or bool(bisect_left(self.answered, unsettled + self.cursor.filled) == unsettled)

    def closings(self, after: int, to: int) -> Iterable[int]:
        """Instants after a slot up to another at which the counts may change; at least the next."""
        first = self.closed(after)
        last = first if to > after and self.is_whole(to) else self.counts.closed(self.source, to)
        overdue = [
            due + self.source.lag
            for number in range(first + 1, max(first, last) + 2)
            if (due := self.dues.at(number)) is not None
        ]
        return [*overdue, *self._awaited(overdue)] if self.is_late else overdue

    def _awaited(self, overdue: Sequence[int]) -> Iterable[int]:
        """When rows that are stamped late close, and due instants that wait for such rows."""
        schedule, stamps = self.source.schedule, list(self.strand.news_ts)
        for ts in stamps:
            yield ts + self.court.closed_after
        if self.cursor.news_before is not None:
            stamps.insert(0, self.cursor.news_before)
        newest = 0
        for instant in overdue:
            while newest + 1 < len(stamps) and schedule.answered(stamps[newest + 1]) < instant - self.source.lag:
                newest += 1
            if stamps:
                yield instant + max(0, stamps[newest] - schedule.answered(stamps[newest]))

    def settled(self, slot: int, horizon: int) -> tuple[list[int], int, int]:
        """(positions of those that stay unanswered and may still count, how many are settled, the last of these) once a slot is judged."""
        answered, filled, gaps = self.answered, self.cursor.filled, self.cursor.gaps
        final = self.counts.final(self.source, horizon)
        position = 0
        if final > filled:
            position = bisect_left(answered, final)
            if position < final - filled:
                there = set(answered[:position])
                gaps = [*gaps, *(number for number in range(filled, final) if number not in there)]
            filled = final
        while position < len(answered) and answered[position] == filled and self.since[position] <= horizon:
            position, filled = position + 1, filled + 1
        if gaps and self.source.window:
            first = self.closed(slot) - self.source.window - 1
            gaps = [number for number in gaps if number >= first]
        return gaps, filled, self.dues.at(filled) or self.cursor.filled_to


class _Stretch:
    """Facts over the slots in (after, to]: first when they change, then as they stand at any of these slots."""

    def __init__(self, court: Judge, cursors: Cursors, rows: Rows, after: int, to: int) -> None:
        self.court, self.cursors, self.after, self.to = court, cursors, after, to
        self.is_lived = after >= court.created
        self.arms = court.arms(after if to == NO_END else to)
        self.watched, self.verdicts = list(cursors.watched), list(cursors.watch_verdicts)
        self.strands = [
            _Strand(source, rows.get(key, EMPTY), cursor, to)
            for key, source, cursor in zip(court.series, court.sources, cursors.series, strict=True)
        ]
        self.read = self.strands
        if len(self.arms) < len(court.variants):
            self.read = [strand for strand in self.strands if strand.source.variant in self.arms]
        self.by_metric: dict[str, dict[str, _Strand]] = {metric: {} for metric in court.metrics}
        for strand in self.read:
            self.by_metric[strand.source.metric][strand.source.variant] = strand
        self.commons: dict[tuple[str, int], int | None] = {}
        self.buckets: dict[str, _Buckets] = {}
        self.counts = _Counts(court)
        self.observed: dict[tuple[int, int], Observations] = {}
        self.pending: dict[int, dict[str, Any]] = {}

    @property
    def is_long(self) -> bool:
        """Whether arrays are worth their while."""
        if self.to - self.after >= FEW_LOOKS * self.court.look_us:
            return True
        return max([len(strand.ts) for strand in self.read], default=0) >= MANY

    def facts(self) -> _Facts:
        """The facts of every slot at which anything may change."""
        court = self.court
        looks = court.looks(self.after, self.to)
        runs = self._runs(looks) if len(looks) >= FEW_LOOKS and not court.targets else {}
        if not runs:
            for look in looks:
                self._at(look)["look"] = True
            self._compared(looks)
        self._freshness()
        if court.targets:
            self._targets(looks)
        self._watched()
        if court.density is not None:
            self._density()
        self._split()
        for slot in court.stirring[bisect_right(court.stirring, self.after) : bisect_right(court.stirring, self.to)]:
            self._at(slot)
        if court.final_slot is not None and court.final_slot in (*self.pending, *looks[-1:]):
            self._at(court.final_slot)["final"] = True
        if runs:
            at_looks = set(looks)
            for slot in self.pending:
                if slot in at_looks:
                    self.pending[slot]["look"] = True
        return _Facts({slot: Step(slot=slot, **facts) for slot, facts in self.pending.items()}, looks, runs)

    def detail(self, slot: int) -> Detail:
        """Every slot fact as it stands at a slot of this stretch, now or after it is closed."""
        court = self.court
        return Detail(
            slot=slot,
            fresh={strand.source.name: self._watermark(strand, slot) for strand in self.read},
            watched={
                watch.name: self._observations(w, watch, slot)
                for w, watch in enumerate(court.watches)
                if watch.variant in self.arms
            },
            dense={strand.source.name: self._buckets(strand).at(slot) for strand in self.read if strand.source.counted},
            split={metric: units for metric in court.counting if (units := self._split_at(metric, slot)) is not None},
        )

    def close(self) -> None:
        """Leave cursors at the end of the stretch. They are new ones, so that details can be asked for later."""
        court, to, cursors = self.court, self.to, self.cursors
        horizon, present, is_known = court.horizon(to), court.present(to), to >= court.created
        commons = {metric: self._common(metric, horizon) for metric in court.counting}
        for i, strand in enumerate(self.strands):
            source, cursor = strand.source, strand.cursor
            if source.variant not in self.arms:
                continue
            gaps, filled, filled_to = cursor.gaps, cursor.filled, cursor.filled_to
            floor, (watermark, received_at) = cursor.base, self._watermark(strand, to)
            base = floor if watermark is None or not is_known else watermark
            if source.compared and cursor.through < base:
                base = cursor.through
            if source.splits:
                common = commons[source.metric]
                counted = 0 if common is None else bisect_right(strand.places, common)
                if not counted or strand.ts[counted - 1] < base:
                    base = strand.ts[counted - 1] if counted else floor
            if source.counted:
                gaps, filled, filled_to = strand.steady or self._buckets(strand).settled(to, horizon)
                if filled_to < base or horizon < base:
                    base = min(filled_to, horizon)
            if source.at_horizon:
                base = min(base, horizon)
            if source.at_present:
                base = min(base, present)
            if source.targets:
                base = min(base, *[cursors.target_through[t] for t in source.targets])
            if base < floor:
                base = floor
            news_before, news_place_before = strand.news_at(base)
            read = bisect_right(strand.ts, base)
            units = strand.units_after(read) if source.splits else None
            cursors.series[i] = replace(
                cursor,
                base=base,
                row_before=strand.row(read - 1) if read and strand.cumulative else cursor.row_before,
                place_before=strand.places[read - 1] if read else cursor.place_before,
                units_before=-1 if units is None else units,
                news_before=news_before,
                news_place_before=news_place_before,
                watermark=watermark,
                received_at=received_at,
                filled=filled,
                filled_to=filled_to,
                gaps=gaps,
            )
        for w, watch in enumerate(court.watches):
            if watch.variant in self.arms:
                cursors.watched[w] = self._observations(w, watch, to)

    def _at(self, slot: int) -> dict[str, Any]:
        return self.pending.setdefault(slot, {})

    def _tell(self, slot: int, kind: str, name: str, fact: Any) -> None:
        self._at(slot).setdefault(kind, {})[name] = fact

    def _judged(self, slot: int) -> int | None:
        """The judged slot of this stretch at which an event of `slot` is first seen; None: not in this stretch."""
        judged = slot if self.court.is_steady else self.court.next_judged(slot)
        return judged if judged is not None and self.after < judged <= self.to else None

    def events(self) -> Iterable[int]:
        """Slots after the beginning from which on rows that are there, or the passing of time, may say something else."""
        court = self.court
        instants = list(court.stirring)
        for strand in self.read:
            for ts, received in zip(strand.ts, strand.received, strict=True):
                instants += [ts, received, ts + court.closed_after]
            instants += self._onset(self._watermark(strand, self.after)[0], strand.source.allowed)
            if strand.source.counted:
                instants += self._buckets(strand).closings(self.after, self.after)
        return [slot for at in instants if (slot := court.slot_at(at)) > self.after]

    # Goals and guards, at looks

    def _compared(self, looks: Sequence[int]) -> None:
        court = self.court
        for m, metric in enumerate(court.compared):
            newest_seen = self.cursors.instants[m]
            for look in looks:
                horizon = court.horizon(look)
                common = self._common(metric, horizon)
                if common is None or (newest_seen is not None and common <= newest_seen):
                    continue
                newest_seen = common
                self._tell(
                    look, "looks", metric, self._metric_look(self.by_metric[metric], common, court.horizon(look))
                )
            self.cursors.instants[m] = newest_seen

    def _runs(self, looks: Sequence[int]) -> dict[str, Run]:
        """The compared metrics as runs; empty when any row asks for a closer look: unreadable, restated, an arm missing."""
        court = self.court
        horizons = np.array([court.horizon(look) for look in looks], dtype=np.int64)
        found: dict[str, tuple[Run, int, list[tuple[_Strand, Any, int]]]] = {}
        for m, metric in enumerate(court.compared):
            arms = list(self.by_metric[metric].items())
            sums = [strand.all_sums() for _, strand in arms]
            newest = [strand.reach_of(horizons) for _, strand in arms]
            if any(s is None for s in sums) or any(((at <= NEVER) != (newest[0] <= NEVER)).any() for at in newest):
                return {}
            commons = np.minimum.reduce(newest)
            seen = self.cursors.instants[m]
            before = np.concatenate(([NEVER if seen is None else seen], commons[:-1]))
            where = np.flatnonzero(commons > np.maximum.accumulate(before))
            common = commons[where]
            at = np.full(len(common), NO_END)
            columns, arrived, ends = {}, np.zeros(len(common), dtype=np.int64), []
            for (variant, strand), rows in zip(arms, sums, strict=True):
                if rows is None:
                    return {}
                upto = np.searchsorted(strand.places_array, common, side="right")
                columns[variant] = tuple(column[upto] for column in rows.columns)
                arrived = np.maximum(arrived, rows.arrived[upto])
                if len(strand.ts):
                    newest_read = np.maximum(upto - 1, 0)
                    at = np.where(
                        strand.places_array[newest_read] == common, np.minimum(at, strand.ts_array[newest_read]), at
                    )
                ends.append((strand, rows, int(upto[-1]) if len(upto) else -1))
            run = Run([looks[k] for k in where.tolist()], at, arrived, columns)
            found[metric] = run, int(common[-1]) if len(common) else NEVER, ends
        for m, metric in enumerate(court.compared):
            run, reached, ends = found[metric]
            if run.looks:
                self.cursors.instants[m] = reached
                for strand, rows, upto in ends:
                    strand.stand_at(rows, upto)
        return {metric: run for metric, (run, _, _) in found.items()}

    def _metric_look(self, strands: Mapping[str, _Strand], common: int, horizon: int) -> MetricLook:
        states, unreadable, restated, arrived, instant = {}, {}, [], 0, NO_END
        for variant, strand in strands.items():
            if strand.read_to(common, horizon):
                restated.append(variant)
            read = strand.position
            if read and strand.places[read - 1] == common and strand.ts[read - 1] < instant:
                instant = strand.ts[read - 1]
            cursor = strand.cursor
            if cursor.unreadable:
                unreadable[variant] = cursor.unreadable
            elif cursor.sums is not None:
                states[variant] = cursor.sums
            if cursor.arrived > arrived:
                arrived = cursor.arrived
        return MetricLook(instant, states, arrived, unreadable, tuple(restated))

    def _common(self, metric: str, horizon: int) -> int | None:
        """The least, over arms that have rows, of the places of their newest news at or before the horizon."""
        asked = metric, horizon
        if asked in self.commons:
            return self.commons[asked]
        common = None
        for strand in self.by_metric[metric].values():
            newest = strand.reach(horizon)
            if newest is not None and (common is None or newest < common):
                common = newest
        self.commons[asked] = common
        return common

    # Targets, at looks

    def _targets(self, looks: Sequence[int]) -> None:
        court = self.court
        for t, gate in enumerate(court.targets):
            strand = self.strands[court.series_index[f"{gate.metric}/{court.subjects[0]}"]]
            seen = self.cursors.target_seen[t]
            for look in looks:
                horizon = court.present(look) if strand.kpi.kind == "gauge" else court.horizon(look)
                newest = strand.newest(horizon)
                closed = court.clock.running(horizon) // DAY
                if newest is None or (newest, closed) == seen:
                    continue
                seen = (newest, closed)
                self._tell(look, "days", gate.name, self._days(t, gate, strand, horizon, newest, closed))
            self.cursors.target_seen[t] = seen

    def _days(self, t: int, gate: Gate, strand: _Strand, horizon: int, newest: int, closed: int) -> Days:
        """Mean value of each of the last closed days of running time; of a cumulative KPI the newest one."""
        clock, days = self.court.clock, self.cursors.target_days[t]
        cursor = strand.cursor
        for i in strand.news:
            ts = strand.ts[i]
            if not self.cursors.target_through[t] < ts <= horizon:
                continue
            day_of = str((max(clock.running(ts), 1) - 1) // DAY)
            value = strand.observed(i)
            n = strand.n[i]
            weight, total, good = days.get(day_of, (0.0, 0.0, True))
            add = 1.0 if n is None else float(n)
            if strand.cumulative:
                weight, total = 0.0, 0.0
            days[day_of] = (weight + add, total + add * (value or 0.0), good and value is not None)
            cursor.arrived = max(cursor.arrived, strand.received[i])
        self.cursors.target_through[t] = max(self.cursors.target_through[t], horizon)
        for old in [day for day in days if int(day) < closed - gate.days]:
            del days[old]
        values = []
        for day in range(max(0, closed - gate.days), closed):
            weight, total, good = days.get(str(day), (0.0, 0.0, False))
            values.append((day, total / weight if good and weight else None))
        return Days(at=newest, closed=tuple(values), arrived=cursor.arrived)

    # Freshness, at slots

    def _freshness(self) -> None:
        court = self.court
        for i, strand in enumerate(self.strands):
            source, cursor = strand.source, strand.cursor
            if source.variant not in self.arms:
                continue
            marks = (strand.known or self._know(strand))[1]
            newest = marks[-1] if marks else cursor.watermark
            status = cursor.status
            if status == FRESH and not strand.late and newest is not None and self.to - newest <= source.allowed:
                continue
            interesting = {self.after + court.slot_us}
            for k, before in strand.late:
                interesting.add(k)
                interesting.update(self._onset(before, source.allowed))
            interesting.update(self._onset(newest, source.allowed))
            if court.final_slot is not None:
                interesting.add(court.final_slot)
            judged = {slot for k in interesting if (slot := self._judged(k)) is not None}
            for slot in sorted(judged):
                mark, received = self._watermark(strand, slot)
                now = freshness(court, source.name, mark, slot)
                if now != status:
                    status = now
                    self._tell(slot, "fresh", source.name, (mark, received))
            self.cursors.series[i].status = status

    def _onset(self, watermark: int | None, allowed: int) -> list[int]:
        """The first slot at which a watermark is too old."""
        clock = self.court.clock
        ran = 0 if watermark is None else max(clock.running(watermark), 0)
        late = clock.wall(ran + allowed + 1)
        return [] if late is None else [self.court.slot_at(late)]

    def _know(self, strand: _Strand) -> tuple[Sequence[int], Sequence[int | None], Sequence[int | None]]:
        """When which watermark was known: (slots, watermarks, arrivals), in order; None where history gives way to facts.

        Leaves in `strand.late` the slots at which one became known that was old already or came after a gap, with the one
        before it.
        """
        strand.known = self._known_in_turn(strand) or self._known_long(strand)
        return strand.known

    def _known_in_turn(self, strand: _Strand) -> tuple[list[int], Sequence[int], Sequence[int]] | None:
        """Of a few rows, each known after the one before it; else None."""
        mark, marks, receipts = strand.cursor.watermark, strand.news_ts, strand.news_receipts
        if mark is None or not self.is_lived or len(marks) >= MANY:
            return None
        if marks and marks[0] <= mark:
            seen = bisect_right(marks, mark)
            marks, receipts = marks[seen:], receipts[seen:]
        width, allowed, newest = self.court.slot_us, strand.source.allowed, self.court.created
        slots: list[int] = []
        late: list[tuple[int, int | None]] = []
        for i, ts in enumerate(marks):
            slot = -(-(receipts[i] if receipts[i] > ts else ts) // width) * width
            if slot < newest:
                return None
            if slot > mark + allowed or slot - ts > allowed:
                late.append((slot, mark))
            slots.append(slot)
            mark, newest = ts, slot
        strand.late = late
        return slots, marks, receipts

    def _known(
        self,
        strand: _Strand,
        slots: list[int],
        marks: list[int | None],
        receipts: list[int | None],
        mark: int | None,
    ) -> tuple[list[int], list[int | None], list[int | None]]:
        """Row by row, in the order in which they were known."""
        created, allowed = self.court.created, strand.source.allowed
        arrivals = sorted(
            (max(self.court.slot_at(max(ts, received)), created), ts, received)
            for ts, received in zip(strand.news_ts, strand.news_receipts, strict=True)
        )
        for slot, ts, received in arrivals:
            if mark is None or ts > mark:
                if mark is None or slot > mark + allowed or slot - ts > allowed:
                    strand.late.append((slot, mark))
                mark = ts
                slots.append(slot)
                marks.append(ts)
                receipts.append(received)
        return slots, marks, receipts

    def _known_long(self, strand: _Strand) -> tuple[Sequence[int], Sequence[int | None], Sequence[int | None]]:
        """The same for many rows, and where history was brought in: before the experiment was created each is known at once."""
        court, mark = self.court, strand.cursor.watermark
        slots: list[int] = []
        marks: list[int | None] = []
        receipts: list[int | None] = []
        if self.after < court.created:
            for i in strand.news:
                if (slot := court.slot_at(strand.ts[i])) >= court.created:
                    break
                slots.append(slot)
                marks.append(strand.ts[i])
                receipts.append(strand.received[i])
            if court.created <= self.to:
                slots.append(court.created)
                marks.append(None)
                receipts.append(None)
            strand.late += [
                (k, before)
                for k, now, before in zip(slots, marks, [mark, *marks], strict=False)
                if before is None
                or now is None
                or k > before + strand.source.allowed
                or k - now > strand.source.allowed
            ]
            mark = None
        if len(strand.news) >= MANY and not slots and mark is None:
            in_order = self._known_in_order(strand)
            if in_order is not None:
                return in_order
        return self._known(strand, slots, marks, receipts, mark)

    def _known_in_order(self, strand: _Strand) -> tuple[list[int], Sequence[int], Sequence[int]] | None:
        """By arrays, when there was no row before and every row became known after the one before it; else None."""
        court, allowed, marks = self.court, strand.source.allowed, strand.news_array
        known_at = np.maximum(marks, strand.news_received)
        known_at = np.maximum(-(-known_at // court.slot_us) * court.slot_us, court.created)
        if (known_at[1:] < known_at[:-1]).any():
            return None
        late = (known_at - marks > allowed) | (known_at > np.concatenate(([NEVER - 2 * allowed], marks[:-1])) + allowed)
        slots = known_at.tolist()
        strand.late = [(slots[k], strand.news_ts[k - 1] if k else None) for k in np.flatnonzero(late).tolist()]
        return slots, strand.news_ts, strand.news_receipts

    def _watermark(self, strand: _Strand, slot: int) -> tuple[int | None, int | None]:
        slots, marks, receipts = strand.known or self._know(strand)
        i = bisect_right(slots, slot)
        if not i:
            return strand.cursor.watermark, strand.cursor.received_at
        return marks[i - 1], receipts[i - 1]

    # Thresholds and densities of a metric, at slots

    def _watch_horizon(self, watch: Watch, slot: int) -> int:
        return self.court.horizon(slot) if watch.closed else self.court.present(slot)

    def _watched(self) -> None:
        court = self.court
        for w, watch in enumerate(court.watches):
            if watch.variant not in self.arms:
                continue
            strand = self.strands[watch.series]
            lag = court.closed_after if watch.closed else 0
            first = bisect_right(strand.news_ts, self._watch_horizon(watch, self.after))
            slots = {
                slot
                for p in strand.turns(watch.gate, first)
                if (slot := self._judged(court.slot_at(strand.news_ts[p] + lag))) is not None
            }
            verdict = self.verdicts[w]
            for slot in sorted(slots):
                observations = self._observations(w, watch, slot)
                now = watch_verdict(watch.gate, observations)
                if now != verdict:
                    verdict = now
                    self._tell(slot, "watched", watch.name, observations)
            self.cursors.watch_verdicts[w] = verdict

    def _observations(self, w: int, watch: Watch, slot: int) -> Observations:
        found = self.observed.get((w, slot))
        if found is not None:
            return found
        strand, found = self.strands[watch.series], self.watched[w]
        end = bisect_right(strand.news_ts, self._watch_horizon(watch, slot))
        last = found.newest[-1][0] if found.newest else self.court.plan.started_at
        first = max(bisect_right(strand.news_ts, last), end - watch.gate.times)
        if first < end:
            fresh = [(strand.news_ts[p], strand.observed(strand.news[p])) for p in range(first, end)]
            found = Observations(
                tuple([*found.newest, *fresh][-watch.gate.times :]), strand.received[strand.news[end - 1]]
            )
        self.observed[w, slot] = found
        return found

    # Density of buckets, at slots

    def _buckets(self, strand: _Strand) -> _Buckets:
        name = strand.source.name
        if name not in self.buckets:
            self.buckets[name] = _Buckets(self.counts, strand)
        return self.buckets[name]

    def _steady(self, strand: _Strand, horizon: int) -> tuple[list[int], int, int] | None:
        """What `settled` of its buckets would say of a series of which each row of this stretch came for the next due instant, and
        nothing is missing; else None."""
        cursor, source, stamps = strand.cursor, strand.source, strand.news_ts
        if cursor.gaps or strand.news_places is not stamps or strand.is_long:
            return None
        every, filled = source.every, cursor.filled
        due = cursor.filled_to + every
        for ts in stamps:
            if ts >= due:
                if ts > horizon:
                    break
                if ts > due:
                    return None
                due += every
                filled += 1
        if due <= self.to - source.lag or due <= horizon - every // 2:
            return None
        return [], filled, due - every

    def _density(self) -> None:
        court, horizon = self.court, self.court.horizon(self.to)
        is_running = not court.clock.pauses
        for i, strand in enumerate(self.strands):
            source, dense = strand.source, strand.cursor.dense
            if not source.counted or source.variant not in self.arms:
                continue
            strand.steady = self._steady(strand, horizon) if is_running else None
            if dense and strand.steady:
                continue
            buckets = self._buckets(strand)
            if dense and buckets.is_whole(self.to):
                continue
            slots = {self._judged(court.slot_at(instant)) for instant in buckets.closings(self.after, self.to)}
            for slot in sorted(slot for slot in slots if slot is not None):
                counted = buckets.at(slot)
                if is_dense(court, counted) != dense:
                    dense = not dense
                    self._tell(slot, "dense", source.name, counted)
            self.cursors.series[i].dense = dense

    # The split, at slots

    def _split_at(self, metric: str, slot: int) -> dict[str, int] | None:
        """Units per arm at the metric's common instant of a slot; None while an arm is missing or does not say."""
        horizon = self.court.horizon(slot)
        common = self._common(metric, horizon)
        if common is None:
            return None
        split: dict[str, int] = {}
        for variant, strand in self.by_metric[metric].items():
            has_news = strand.cursor.news_before is not None or bool(
                strand.news_ts and strand.news_places[0] <= common and strand.news_ts[0] <= horizon
            )
            units = strand.units_after(bisect_right(strand.places, common)) if has_news else None
            if units is None:
                return None
            split[variant] = units
        return split if len(split) > 1 else None

    def _split(self) -> None:
        court = self.court
        floor = court.horizon(self.after)
        for metric in court.counting:
            if metric in self.cursors.alarmed:
                continue
            lag = court.closed_after
            slots = {self._judged(court.slot_at(ts + lag)) for ts in self._suspicious(self.by_metric[metric], floor)}
            for slot in sorted([slot for slot in slots if slot is not None]):
                units = self._split_at(metric, slot)
                if units is None:
                    continue
                weights = [court.weights[variant] for variant in units]
                if srm_log_e_at_most(list(units.values()), weights) < LOG_ALARM:
                    continue
                if split_log_e(court, units) >= LOG_ALARM:
                    self._tell(slot, "split", metric, units)
                    self.cursors.alarmed = sorted([*self.cursors.alarmed, metric])
                    break

    def _suspicious(self, of: Mapping[str, _Strand], floor: int) -> Iterable[int]:
        """Instants of news after `floor` where the split may be off: each of a few, of many those arrays point at."""
        for strand in of.values():
            if len(strand.n) < MANY or strand.units_array is None:
                newest = self.to - self.court.closed_after
                return {ts for other in of.values() for ts in other.news_ts if floor < ts <= newest}
        arms = list(of.items())
        every = arms[0][1].news_array
        if any(not np.array_equal(strand.news_array, every) for _, strand in arms[1:]):
            every = np.unique(np.concatenate([strand.news_array for _, strand in arms]))
        every = every[every > floor]
        common = np.minimum.reduce([strand.reach_of(every) for _, strand in arms])
        share = math.fsum(self.court.weights[variant] for variant, _ in arms)
        units = [
            strand.units_array[np.searchsorted(strand.places_array, common, side="right")].astype(np.float64)
            for _, strand in arms
        ]
        total = np.add.reduce(units)
        chi_square = np.zeros(len(every))
        for (variant, _), n in zip(arms, units, strict=True):
            planned = total * (self.court.weights[variant] / share)
            chi_square += (n - planned) ** 2 / np.maximum(planned, 1e-9)
        suspicious: list[int] = every[(common > NEVER) & (chi_square >= LOG_ALARM * (1 - NEAR))].tolist()
        return suspicious
