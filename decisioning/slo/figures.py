"""The portal's promises about itself: each with its target, its budget and what it leaves out.

Counted from what is stored, under the row security of the caller: a team sees its own figures, an admin all of them.
"""

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from django.db import connection

from decisioning.slo.queries import (
    ANSWERS,
    BLOCKED,
    CALM_HOLDS,
    CURSORS,
    DAYS,
    DECISION,
    DECISION_TARGET_S,
    FAILURES,
    READS,
    RECOMMENDED,
    TELEMETRY,
    TELEMETRY_TARGET_S,
    WINDOW,
    parameters,
    row,
)
from telemetry.models import Source
from telemetry.refresh import missed

WITHIN_TARGET = 0.80
FAILURE_TARGET = 0.01
READS_TARGET = 0.999
BURNS_OVER = (timedelta(hours=1), timedelta(hours=6), timedelta(days=3))


@dataclass(frozen=True)
class Latency:
    """p95_s: None when there was nothing to count. counted: how many; late: how many were over the target."""

    p95_s: float | None
    target_s: int
    counted: int
    late: int

    @property
    def holds(self) -> bool | None:
        return None if self.p95_s is None else self.p95_s <= self.target_s

    @property
    def budget_left(self) -> float | None:
        """Of the 5% that may be late, the fraction that is not used up; below 0 when the promise is broken."""
        return None if not self.counted else 1 - self.late / (0.05 * self.counted)


@dataclass(frozen=True)
class Share:
    """part of whole; `at_least` says on which side of the target the promise lies."""

    part: int
    whole: int
    target: float
    at_least: bool

    @property
    def share(self) -> float | None:
        return self.part / self.whole if self.whole else None

    @property
    def holds(self) -> bool | None:
        if self.share is None:
            return None
        return self.share >= self.target if self.at_least else self.share <= self.target

    @property
    def budget_left(self) -> float | None:
        """Of the misses that are allowed, the fraction that is not used up; below 0 when the promise is broken."""
        if not self.whole:
            return None
        allowed = (1 - self.target if self.at_least else self.target) * self.whole
        missed = self.whole - self.part if self.at_least else self.part
        return 1 - missed / allowed


@dataclass(frozen=True)
class Burn:
    """How fast the budget of reads was used over the last `over`: 1 uses it up in exactly the window; None when nothing was asked."""

    over: timedelta
    rate: float | None


@dataclass(frozen=True)
class Blocked:
    """Experiments whose read is not stable, by what blocks them."""

    code: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Calm:
    """An experiment that is held for units or days alone. units: still needed, of control and treatment together, if the effect
    stays, else whatever it is. about_at: when the hold ends at the present units a day, never before min_days; at max_days a person
    is asked, whatever is lacking then. None: cannot be said, or it does not run."""

    experiment: str
    units: int | None
    about_at: datetime | None


@dataclass(frozen=True)
class Days:
    """From the first look that could be read to the first proposal from there on, or to now while there is none (`waiting`)."""

    median: float | None
    p95: float | None
    counted: int
    waiting: int


@dataclass(frozen=True)
class Answers:
    """People's own promise: proposals answered in the team's time. p95_s from proposal to answer."""

    p95_s: float | None
    answered: int
    open: int
    overdue: int


@dataclass(frozen=True)
class Figures:
    """telemetry: rows and missing buckets of the last 24 h. decision: from the moment a stable read could be known to its
    proposal; `not_judged` of them are experiments without one whose next slot is late, counted as late as it is. days: the second
    clock, since the first begins at a settled answer and says nothing of how long it took to settle. recommended: experiments with a
    recommendation within 24 h, of which `decisive` (scale, delete, review) and `calm` (hold for units or days; `calm_holds` are those
    one by one). failures: runs of the teams' telemetry jobs that failed, and of scheduled sources those that were due and never came
    (`missed`). reads: of the whole portal, whoever asks; `stale` of the good ones came from a copy, `unknown` are those a process was
    cut off before it could count, taken as failed. unjudgeable: experiments that cannot be judged now, which count as not judged."""

    as_of: datetime
    reads: Share
    stale: int
    unknown: int
    burns: tuple[Burn, ...]
    telemetry: Latency
    decision: Latency
    not_judged: int
    days: Days
    recommended: Share
    decisive: int
    calm: int
    calm_holds: tuple[Calm, ...]
    blocked: tuple[Blocked, ...]
    failures: Share
    missed_runs: int
    answers: Answers
    missed_slots: int
    unjudgeable: int


def figures(*, now: datetime, team_id: int | None = None) -> Figures:
    """Every promise, as of now; of one team, or of all the caller sees."""
    asked = parameters(now, team_id)
    with connection.cursor() as cursor:
        read, failed_reads, stale, unknown = row(cursor, READS, asked)
        burns = tuple(_burn(cursor, over, asked) for over in BURNS_OVER)
        telemetry = row(cursor, TELEMETRY, asked)
        decision = row(cursor, DECISION, asked)
        days = row(cursor, DAYS, asked)
        in_time, decisive, calm, whole = row(cursor, RECOMMENDED, asked)
        cursor.execute(CALM_HOLDS, asked)
        calm_holds = tuple(Calm(*hold) for hold in cursor.fetchall())
        cursor.execute(BLOCKED, asked)
        blocked = tuple(Blocked(code, tuple(keys)) for code, keys in cursor.fetchall())
        failed, runs = row(cursor, FAILURES, asked)
        sources = Source.objects.all() if team_id is None else Source.objects.filter(team=team_id)
        missed_runs = missed(sources, since=now - WINDOW, now=now)
        answers = row(cursor, ANSWERS, asked)
        missed_slots, unjudgeable = row(cursor, CURSORS, asked)
    return Figures(
        as_of=now,
        reads=Share(read - failed_reads, read, READS_TARGET, at_least=True),
        stale=stale,
        unknown=unknown,
        burns=burns,
        telemetry=Latency(telemetry[0], TELEMETRY_TARGET_S, telemetry[1], telemetry[2]),
        decision=Latency(decision[0], DECISION_TARGET_S, decision[1], decision[2]),
        not_judged=decision[3],
        days=Days(*days),
        recommended=Share(in_time, whole, WITHIN_TARGET, at_least=True),
        decisive=decisive,
        calm=calm,
        calm_holds=calm_holds,
        blocked=blocked,
        failures=Share(failed + missed_runs, runs + missed_runs, FAILURE_TARGET, at_least=False),
        missed_runs=missed_runs,
        answers=Answers(*answers),
        missed_slots=int(missed_slots),
        unjudgeable=unjudgeable,
    )


_DEAR_S, _SHARE, _LONGEST_S = 1.0, 20, 300.0
_kept: dict[Hashable, tuple[float, float, Figures]] = {}
_counting = threading.Lock()
_counted: set[Hashable] = set()


def recent(whose: Hashable, *, now: datetime, at_least_s: float = 0) -> Figures:
    """`figures` of all that the caller sees, whom `whose` names; `as_of` says when they were counted.

    What is cheap is counted anew each time unless it is younger than `at_least_s`; what is dear is kept so long that counting takes at
    most a twentieth of the time, and while one counts the others read what there is. Before the first row nothing is kept.
    """
    held = _kept.get(whose)
    if held and monotonic() < held[0] + max(at_least_s, held[1]):
        return held[2]
    with _counting:
        if held and whose in _counted:
            return held[2]
        _counted.add(whose)
    try:
        began = monotonic()
        found = figures(now=now)
        took = monotonic() - began
    finally:
        _counted.discard(whose)
    if found.telemetry.counted or found.failures.whole:
        _kept[whose] = (monotonic(), min(took * _SHARE, _LONGEST_S) if took > _DEAR_S else 0, found)
    return found


def _burn(cursor: Any, over: timedelta, asked: dict[str, Any]) -> Burn:
    read, failed, _, _ = row(cursor, READS, asked | {"since": asked["now"] - over})
    return Burn(over, failed / read / (1 - READS_TARGET) if read else None)
