"""The plan of one experiment as the gates read it: variants, target KPIs, pauses and people's answers. Pure values.

Every instant in the engine is an integer: microseconds since 1970-01-01T00:00:00Z (`datetime.timestamp()` loses bits, so use
`to_us`). RFC 3339 text appears only in evidence and in what people read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Literal

import msgspec

from experiments.schedule import Part, Schedule

SECOND = 1_000_000
DAY = 86_400 * SECOND
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

Kind = Literal["mean", "proportion", "ratio", "gauge"]
Direction = Literal["increase", "decrease"]
Temporality = Literal["delta", "cumulative"]
Role = Literal["goal", "guardrail", "shown", "exposure"]
Action = Literal["scale", "delete", "review", "hold"]


class Variant(msgspec.Struct, frozen=True, omit_defaults=True):
    """One arm. `weight` is its planned share on any positive scale; `dropped_at` the instant its delete was accepted."""

    key: str
    weight: float = 1.0
    control: bool = False
    dropped_at: int | None = None
    position: int = 0


class Target(msgspec.Struct, frozen=True, omit_defaults=True):
    """The band a KPI of an experiment without treatments has to stay in, both ends inclusive, in the KPI's unit."""

    at_least: float | None = None
    at_most: float | None = None


class Baseline(msgspec.Struct, frozen=True):
    """What the KPI was before: mean and standard deviation per unit."""

    mean: float
    stddev: float


class Kpi(msgspec.Struct, frozen=True, omit_defaults=True):
    """One target KPI: its metric's definition and the part it plays here.

    `minimum_effect` and `max_harm` are fractions of the control for a relative effect, in the KPI's unit for a difference.
    `counts_assignment`: n counts assigned units, so the sample ratio is checked on it. `expected`: when its buckets are due, one schedule
    after the other; empty: every `expected_every_s` from the epoch. `outages`: (from, to), both included, in which none is expected.
    `sparse_beside`: where a row of that goal came and none of its own, nothing happened. `plausible_to`: the largest effect of a goal that is
    believed, up is good. `trusted`: (from, to, why) of each time a person set doubt in its rows aside; to None: still.
    """

    metric: str
    role: Role = "goal"
    kind: Kind = "mean"
    direction: Direction | None = None
    temporality: Temporality = "delta"
    expected_every_s: int = 900
    freshness_target_s: int = 900
    counts_assignment: bool = True
    minimum_effect: float = 0.02
    max_harm: float = 0.01
    target: Target | None = None
    baseline: Baseline | None = None
    unit: str = ""
    name: str = ""
    expected: tuple[Part, ...] = ()
    outages: tuple[tuple[int, int], ...] = ()
    sparse_beside: str = ""
    plausible_to: float | None = None
    trusted: tuple[tuple[int, int | None, str], ...] = ()


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A person's answer, a fact from `at` on.

    `variant` None: the answer to the experiment's recommendation. `of`: the (action, code) that was answered.
    """

    at: int
    action: Literal["accept", "override"]
    of: tuple[Action, str]
    variant: str | None = None
    override_to: Literal["scale", "delete", "stop", "hold"] | None = None


class Plan(msgspec.Struct, frozen=True, omit_defaults=True, cache_hash=True):
    """Everything about an experiment, beside its rows, that a verdict depends on.

    `pauses`: (from, to) in order, not overlapping; `to` None while paused now. `created_at`: when the portal first knew the
    experiment (history brought in is older). Hashable; `to_json` and `from_json` are exact inverses.
    """

    started_at: int
    created_at: int
    variants: tuple[Variant, ...]
    kpis: tuple[Kpi, ...]
    ended_at: int | None = None
    pauses: tuple[tuple[int, int | None], ...] = ()
    answers: tuple[Answer, ...] = ()
    expected_units_per_day: float | None = None

    @property
    def control(self) -> Variant | None:
        """The control, None in an experiment without treatments."""
        return next((v for v in self.variants if v.control), None) if len(self.variants) > 1 else None

    @property
    def treatments(self) -> tuple[Variant, ...]:
        """Variants compared with the control, in plan order (dropped ones too); empty without a control."""
        if self.control is None:
            return ()
        return tuple(sorted((v for v in self.variants if not v.control), key=lambda v: v.position))

    @property
    def judged_variants(self) -> tuple[Variant, ...]:
        """Variants that get a recommendation: the treatments, or the only variant."""
        return self.treatments or self.variants[:1]

    def kpi(self, metric: str) -> Kpi | None:
        return next((k for k in self.kpis if k.metric == metric), None)

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> Plan:
        return msgspec.json.decode(text, type=cls)


class Clock:
    """Running time of an experiment: wall time since `started_at` without its pauses."""

    def __init__(self, plan: Plan) -> None:
        self.started_at = plan.started_at
        self.pauses = tuple((a, b) for a, b in plan.pauses if b is None or b > plan.started_at)

    def running(self, instant: int) -> int:
        """Microseconds the experiment had run at `instant`; negative before the start.

        >>> clock = Clock(Plan(started_at=0, created_at=0, variants=(), kpis=(), pauses=((10, 20),)))
        >>> [clock.running(t) for t in (5, 10, 15, 20, 25)]
        [5, 10, 10, 10, 15]
        """
        ran = instant - self.started_at
        for begin, end in self.pauses:
            if instant <= begin:
                break
            ran -= (instant if end is None or instant < end else end) - max(begin, self.started_at)
        return ran

    def wall(self, running: int) -> int | None:
        """The first instant by which the experiment had run that long; None when a pause without end comes before.

        >>> clock = Clock(Plan(started_at=0, created_at=0, variants=(), kpis=(), pauses=((10, 20),)))
        >>> [clock.wall(t) for t in (5, 10, 11)]
        [5, 10, 21]
        """
        instant = self.started_at + running
        for begin, end in self.pauses:
            if instant <= begin:
                break
            if end is None:
                return None
            instant += end - max(begin, self.started_at)
        return instant

    def days(self, instant: int) -> int:
        """Age: whole days run at `instant`."""
        return self.running(instant) // DAY

    def judged(self, slot: int) -> bool:
        """Whether a slot is judged: after the start and not inside a pause."""
        return slot > self.started_at and not any(a < slot and (b is None or slot < b) for a, b in self.pauses)


class Dues:
    """The due instants of one feed that are expected of an experiment: those after the one that a row of its start would answer,
    without those in a pause or an outage. Counted from 1.

    without: (from, to] of pauses and outages together, in order, apart from each other; to None: a pause that goes on.
    """

    def __init__(self, schedule: Schedule, clock: Clock, outages: Sequence[tuple[int, int]] = ()) -> None:
        self.schedule, self.clock = schedule, clock
        self.outages = _joined([(begin - 1, end) for begin, end in outages])
        self.without = _joined([*clock.pauses, *self.outages]) if self.outages else clock.pauses
        self.start = schedule.answered(clock.started_at)

    def count(self, upto: int) -> int:
        """How many are due up to an instant.

        >>> from experiments.schedule import Grid
        >>> clock = Clock(Plan(started_at=12, created_at=0, variants=(), kpis=(), pauses=((30, 50),)))
        >>> [Dues(Grid(10), clock).count(t) for t in (19, 20, 30, 40, 50, 60)]
        [0, 1, 2, 2, 2, 3]
        >>> [Dues(Grid(10), clock, [(20, 30)]).count(t) for t in (20, 30, 50, 60)]
        [0, 0, 0, 1]
        """
        due = self.schedule.count(self.start, upto)
        for begin, end in self.without:
            if upto <= begin:
                break
            due -= self.schedule.count(max(begin, self.start), upto if end is None or upto < end else end)
        return due

    def at(self, n: int) -> int | None:
        """The n-th; None when a pause without end comes before.

        >>> from experiments.schedule import Grid
        >>> clock = Clock(Plan(started_at=12, created_at=0, variants=(), kpis=(), pauses=((30, 50),)))
        >>> [Dues(Grid(10), clock).at(n) for n in (0, 1, 2, 3)]
        [10, 20, 30, 60]
        """
        due = self.schedule.nth(self.start, n)
        for begin, end in self.without:
            if due <= begin:
                break
            if end is None:
                return None
            due = self.schedule.nth(due, self.schedule.count(max(begin, self.start), end))
        return due

    def expects(self, due: int) -> bool:
        """Whether a due instant is one of them."""
        return due > self.start and not any(a < due and (b is None or due <= b) for a, b in self.without)

    def final(self, horizon: int) -> int:
        """How many of them no row after a horizon can answer."""
        if every := self.schedule.every:
            return self.count(horizon - every // 2)
        return self.count(self.schedule.answered(horizon + 1) - 1)

    def behind(self, ts: int) -> int:
        """How much longer the next row is awaited because this one is stamped after the instant it answers."""
        answered = self.schedule.answered(ts)
        if ts <= answered or self.schedule.every:
            return max(0, ts - answered)
        due = self._after(answered)
        return min(ts - answered, self._after(due) - due)

    def wait(self, ts: int | None) -> int:
        """How long after a row, or after the start (None), the next one is awaited, in running time.

        >>> from experiments.schedule import Grid
        >>> clock = Clock(Plan(started_at=12, created_at=0, variants=(), kpis=()))
        >>> [Dues(Grid(10), clock, [(25, 39)]).wait(ts) for ts in (None, 21, 29, 40)]
        [10, 19, 11, 10]
        """
        every = self.schedule.every
        if every and not self.outages:
            return every
        since = self.clock.started_at if ts is None else ts
        answered = self.schedule.answered(since)
        due = self._after(answered)
        is_next = due == self.schedule.after(answered)
        if every:
            return every if is_next and not self._is_out(answered) else max(every, due - since)
        return due - since + (self.behind(ts) if ts is not None and is_next else 0)

    def since(self, upto: int, age: int) -> int:
        """How many are due by the instant `age` of running time before another one: those a window of that width leaves behind."""
        since = self.clock.wall(max(0, self.clock.running(upto) - age))
        return 0 if since is None else self.count(since)

    def _after(self, instant: int) -> int:
        """The first after an instant that is in no outage; a pause moves clocks, not what is due."""
        due = self.schedule.after(instant)
        for begin, end in self.outages:
            if begin < due and end is not None and due <= end:
                due = self.schedule.after(end)
        return due

    def _is_out(self, due: int) -> bool:
        return any(begin < due and end is not None and due <= end for begin, end in self.outages)


def _joined(stretches: Sequence[tuple[int, int | None]]) -> tuple[tuple[int, int | None], ...]:
    """Stretches (from, to] in order, those that meet as one.

    >>> _joined([(5, 9), (1, 3), (8, None), (2, 4)])
    ((1, 4), (5, None))
    """
    found: list[tuple[int, int | None]] = []
    for begin, end in sorted(stretches, key=lambda stretch: stretch[0]):
        if found and (found[-1][1] is None or begin <= found[-1][1]):
            last = found[-1][1]
            found[-1] = found[-1][0], None if last is None or end is None else max(last, end)
        else:
            found.append((begin, end))
    return tuple(found)


def to_us(instant: dt.datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exactly.

    >>> to_us(dt.datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=dt.UTC))
    1000005
    """
    return (instant - _EPOCH) // dt.timedelta(microseconds=1)


def from_us(us: int) -> dt.datetime:
    """The aware UTC datetime of an engine instant."""
    return _EPOCH + dt.timedelta(microseconds=us)


def rfc3339(us: int) -> str:
    """An instant as people and evidence read it.

    >>> rfc3339(1_000_005), rfc3339(0)
    ('1970-01-01T00:00:01.000005Z', '1970-01-01T00:00:00Z')
    """
    return from_us(us).isoformat().replace("+00:00", "Z")


def newest_slot(now: dt.datetime, slot_s: int) -> dt.datetime:
    """The slot that `now` falls on or after, on the UTC grid.

    >>> newest_slot(dt.datetime(2026, 11, 24, 6, 17, tzinfo=dt.UTC), 300).isoformat()
    '2026-11-24T06:15:00+00:00'
    """
    width = slot_s * SECOND
    return from_us(to_us(now) // width * width)
