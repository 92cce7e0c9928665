"""The portal's own figures: the PRD's promises, what is waiting and why, the watchdog, and what people answered."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Any

from django.db import connection
from django.db.models import Count, Q
from django.urls import reverse

from decisioning.access.principal import Principal
from decisioning.board import charts, words
from decisioning.board.presenters import listing
from decisioning.board.presenters.frame import watchdog
from decisioning.board.presenters.gates import svg
from experiments.models import Experiment
from gates.models import Cursor, Decision, Recommendation
from telemetry.models import RefreshRun

WINDOW = timedelta(days=28)
_KEPT_FOR_S = 60.0
_kept: dict[tuple[object, ...], tuple[float, "Figures"]] = {}

_LATENCY = """
SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM k.first_received_at - k.ts)),
       count(*) FILTER (WHERE k.first_received_at - k.ts > interval '15 minutes')
FROM experiment_kpis k JOIN experiments e ON e.id = k.experiment_id
WHERE k.ts > greatest(%s, e.created_at) AND k.revision IS NULL
"""
_PROPOSALS = """
SELECT count(*), percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM proposed_at - knowable_at)),
       count(*) FILTER (WHERE proposed_at - knowable_at <= interval '24 hours')
FROM recommendations WHERE proposed_at > %s AND knowable_at IS NOT NULL
"""


@dataclass(frozen=True)
class Figures:
    """What was counted; seconds and counts, None where there was nothing to count."""

    rows: int
    telemetry_p95_s: float | None
    rows_late: int
    proposals: int
    decision_p95_s: float | None
    within_24h: int
    runs: int
    failed: int


def figures(principal: Principal, *, now: datetime) -> Figures:
    """Of the teams the person sees; counted anew once a minute, because the board shows them on every visit."""
    whose = (principal.is_admin, frozenset(principal.teams))
    held = _kept.get(whose)
    if held and monotonic() - held[0] < _KEPT_FOR_S:
        return held[1]
    with connection.cursor() as cursor:
        cursor.execute(_LATENCY, [now - timedelta(days=1)])
        rows, telemetry, late = cursor.fetchone() or (0, None, 0)
        cursor.execute(_PROPOSALS, [now - WINDOW])
        proposals, decision, within = cursor.fetchone() or (0, None, 0)
    ended = RefreshRun.objects.filter(finished_at__gte=now - WINDOW)
    runs = ended.aggregate(n=Count("id"), bad=Count("id", filter=Q(status__in=("failed", "aborted"))))
    found = Figures(
        rows, _above_zero(telemetry), late, proposals, _above_zero(decision), within, runs["n"], runs["bad"]
    )
    if found.rows or found.runs:  # before the first row every second counts
        _kept[whose] = (monotonic(), found)
    return found


def _above_zero(seconds: float | None) -> float | None:
    return None if seconds is None else max(float(seconds), 0.0)


@dataclass(frozen=True)
class _Level:
    name: str
    short: str
    value: float | None
    limit: float
    at_most: bool
    say: Callable[[float], str]
    target: str
    facts: Sequence[tuple[str, str]]

    @property
    def holds(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def figure(self) -> str:
        return "none yet" if self.value is None else self.say(self.value)

    def meter(self, uid: str, width: int) -> Any:
        if self.value is None:
            return svg("")
        full = self.limit * 1.2 if self.at_most else 1.0
        return svg(
            charts.meter(
                self.value,
                limit=self.limit,
                full=full,
                uid=uid,
                title=f"{self.name}: {self.figure}",
                desc=self.target,
                width=width,
            )
        )


def levels(f: Figures) -> list[_Level]:
    return [
        _Level("Telemetry latency, p95", "Telemetry p95", f.telemetry_p95_s, 900, True, words.duration, "at most 15 min",  # noqa: FBT003
               [("Counted", f"{f.rows:,} rows of the last 24 h, from their own time to their arrival"),
                ("Over 15 min", f"{f.rows_late:,}"), ("Excluded", "corrections sent with a revision, and history from before the experiment was created")]),
        _Level("Decision latency, p95", "Decision p95", f.decision_p95_s, 86_400, True, words.duration, "at most 24 h",  # noqa: FBT003
               [("Counted", f"{words.plural(f.proposals, 'proposal')} of 28 days, from when the stable read could be known"),
                ("Excluded", "paused time")]),
        _Level("Proposed within 24 h", "Within 24 h", f.within_24h / f.proposals if f.proposals else None, 0.8, False, words.share, "at least 80%",  # noqa: FBT003
               [("Counted", f"{f.within_24h} of {words.plural(f.proposals, 'proposal')}"),
                ("Excluded", "nothing; experiments that never got stable are listed below")]),
        _Level("Telemetry failures", "Telemetry failures", f.failed / f.runs if f.runs else None, 0.01, True,  # noqa: FBT003
               lambda x: words.share(x, 2), "under 1%", [("Counted", f"{f.failed:,} of {words.plural(f.runs, 'run')} in 28 days")]),
    ]  # fmt: skip


def pulse(principal: Principal, *, now: datetime) -> list[dict[str, Any]]:
    """The strip on top of the board."""
    return [
        {
            "label": level.short,
            "figure": level.figure,
            "of": level.target,
            "tone": "late" if level.holds is False else "hold",
            "late": level.holds is False,
            "svg": level.meter(f"pulse{i}", 144),
        }
        for i, level in enumerate(levels(figures(principal, now=now)))
    ]


def page(principal: Principal, *, now: datetime) -> dict[str, Any]:
    shown = levels(figures(principal, now=now))
    broken = [level for level in shown if level.holds is False]
    counted = [level for level in shown if level.holds is not None]
    if not counted:
        title = "Nothing to promise yet"
    elif broken:
        title = f"{len(broken)} of {words.plural(len(counted), 'promise')} {'is' if len(broken) == 1 else 'are'} broken"
    else:
        title = f"{'All' if len(counted) > 1 else 'The'} {words.plural(len(counted), 'promise')} hold{'s' if len(counted) == 1 else ''}"
    seen = watchdog(now)
    return {
        "title": title,
        "lead": "What the portal owes its users, counted on the teams you see.",
        "levels": [
            {
                "name": level.name,
                "pill": words.pill("hold", "Not counted yet", line=True)
                if level.holds is None
                else words.pill("pass", "Holds")
                if level.holds
                else words.pill("late", "Broken"),
                "figure": level.figure,
                "target": level.target,
                "tone": "late" if level.holds is False else "scale",
                "svg": level.meter(f"level{i}", 360),
                "facts": [{"label": label, "text": text} for label, text in level.facts],
            }
            for i, level in enumerate(shown)
        ],
        "blockers": _blockers(),
        "watchdog": {
            "pill": words.pill("late" if seen["late"] else "pass", "Late" if seen["late"] else "On time"),
            "facts": _watchdog_facts(seen),
        },
        "people": {"window": "28 days", "facts": _people(now)},
    }


def _blockers() -> list[dict[str, Any]]:
    """Running experiments by the code that holds them."""
    waiting: dict[str, list[Experiment]] = defaultdict(list)
    cursors = Cursor.objects.filter(experiment__status="running").select_related("experiment").defer("state")
    for cursor in cursors.order_by("experiment_id"):
        said = (cursor.shown or {}).get("recommendation") or {"action": "hold", "code": "no_data"}
        if said.get("action") == "hold":
            waiting[said.get("code") or "no_data"].append(cursor.experiment)
    order = sorted(waiting.items(), key=lambda item: len(item[1]), reverse=True)
    return [
        {
            "pill": words.pill({"stale": "stale", "no_data": "no_data"}.get(code, "hold"), words.CODES.get(code, code)),
            "count": len(found),
            "experiments": [{"name": e.name, "url": reverse("experiment", args=[e.key])} for e in found[:12]],
        }
        for code, found in order
    ]


def _watchdog_facts(seen: dict[str, Any]) -> list[dict[str, str]]:
    late = Cursor.objects.filter(missed_slots__gt=0).values_list("missed_slots", flat=True)
    return [
        {"label": "Newest slot", "text": seen["detail"]},
        {"label": "Judged late", "text": f"{words.plural(sum(late), 'slot')}, each as of its own time"},
    ]


def _people(now: datetime) -> list[dict[str, str]]:
    answered = list(
        Decision.objects.filter(at__gte=now - WINDOW).values_list(
            "action", "at", "recommendation__proposed_at", "recommendation__action"
        )
    )
    proposed = Recommendation.objects.filter(proposed_at__gte=now - WINDOW, action__in=listing.PROPOSALS)
    waiting = listing.open_proposals().count()
    kinds = Counter(action for action, *_ in answered)
    took = sorted((at - since).total_seconds() for _, at, since, _ in answered)
    decisive = proposed.filter(action__in=("scale", "delete")).count()
    total = proposed.count()
    facts = [
        {
            "label": "Answered",
            "text": f"{len(answered)} of {words.plural(total, 'proposal')}; {words.plural(waiting, 'is', 'are')} open",
        },
        {"label": "Accepted", "text": str(kinds["accept"])},
        {"label": "Overridden", "text": f"{kinds['override']}, each with a reason"},
    ]
    if took:
        p95 = took[min(int(len(took) * 0.95), len(took) - 1)]
        facts.insert(1, {"label": "p95 to an answer", "text": f"{words.duration(p95)} after the proposal"})
    if total:
        facts.append(
            {"label": "Decisive", "text": f"{words.share(decisive / total)} of proposals were scale or delete"}
        )
    return facts
