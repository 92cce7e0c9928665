"""The portal's own figures: its promises, what is waiting and why, the watchdog, and what people answered."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.urls import reverse
from django.utils.safestring import SafeString

from decisioning.access.principal import Principal
from decisioning.board import charts, words
from decisioning.board.presenters.frame import watchdog
from decisioning.board.presenters.gates import svg
from decisioning.slo import figures as slo
from decisioning.slo.queries import WINDOW
from experiments.models import Experiment
from gates.engine.figures import span
from gates.models import Decision

_KEPT_FOR_S = 60.0
_CALM_SHOWN = 50
_DAYS = f"{WINDOW.days} days"
_LACKS = {
    "denominator": "A denominator is 0",
    "density": "Buckets are missing",
    "noisy": "Too noisy to judge",
    "spread": "Every unit has the same value",
    "zero": "The control is still 0",
    "not_judged": "Not judged for a day",
    "proposed_late": "Proposed after 24 h",
}
"""What blocks a stable read beside the codes of a recommendation."""


def figures(principal: Principal, *, now: datetime) -> slo.Figures:
    """Of the teams the person sees; counted anew once a minute, because the board shows them on every visit."""
    return slo.recent(principal.sees, now=now, at_least_s=_KEPT_FOR_S)


@dataclass(frozen=True)
class _Level:
    """One promise in words. `full` is the end of its meter, in the unit of `value`."""

    name: str
    short: str
    value: float | None
    limit: float
    full: float
    holds: bool | None
    budget_left: float | None
    say: Callable[[float], str]
    target: str
    facts: Sequence[tuple[str, str]]

    @property
    def figure(self) -> str:
        return "none yet" if self.value is None else self.say(self.value)

    def meter(self, uid: str, width: int) -> SafeString:
        if self.value is None:
            return svg("")
        title = f"{self.name}: {self.figure}"
        drawn = charts.meter(
            self.value, limit=self.limit, full=self.full, uid=uid, title=title, desc=self.target, width=width
        )
        return svg(drawn)


def levels(f: slo.Figures) -> list[_Level]:
    t, d, r, x, a = f.telemetry, f.decision, f.recommended, f.failures, f.reads
    return [
        _Level(
            "Reads answered", "Reads answered", a.share, a.target, 1.0, a.holds, a.budget_left,
            lambda share: words.share(share, 3), f"at least {words.share(a.target, 1)}",
            [("Counted", f"{words.plural(a.whole, 'read')} of the whole portal in {_DAYS}, {a.whole - a.part:,} failed"),
             ("Of them", f"{f.stale:,} from a copy while the database was away"),
             ("Burn", "; ".join(f"{burn.rate:.1f} over {span(burn.over.total_seconds())}" for burn in f.burns if burn.rate is not None) or "none")],
        ),
        _Level(
            "Telemetry latency, p95", "Telemetry p95", t.p95_s, t.target_s, t.target_s * 1.2, t.holds, t.budget_left,
            span, f"at most {span(t.target_s)}",
            [("Counted", f"{words.plural(t.counted, 'bucket')} of the last 24 h, arrived or missing, and those missing longest"),
             ("Over the target", f"{t.late:,}"), ("Excluded", "history from before the experiment was created; what is paused")],
        ),
        _Level(
            "Decision latency, p95", "Decision p95", d.p95_s, d.target_s, d.target_s * 1.2, d.holds, d.budget_left,
            span, f"at most {span(d.target_s)}",
            [("Counted", f"{words.plural(d.counted - f.not_judged, 'proposal')} of {_DAYS}, from when the stable read could be known"),
             *([("Not judged yet", f"{words.plural(f.not_judged, 'experiment')} more, each counted as late as its next slot is")] if f.not_judged else []),
             ("Over the target", f"{d.late:,}"), ("From the first read", _days(f.days))],
        ),
        _Level(
            "Recommended within 24 h", "Within 24 h", r.share, r.target, 1.0, r.holds, r.budget_left,
            words.share, f"at least {words.share(r.target)}",
            [("Counted", f"{r.part} of {words.plural(r.whole, 'experiment')} that ran for a day or more"),
             ("Of them", f"{f.decisive} decisive, {f.calm} held calmly for units or days"),
             ("Excluded", "nothing; what never got stable is listed below")],
        ),
        _Level(
            "Telemetry failures", "Telemetry failures", x.share, x.target, x.target * 1.2, x.holds, x.budget_left,
            lambda share: words.share(share, 2), f"at most {words.share(x.target)}",
            [("Counted", f"{x.part:,} of {words.plural(x.whole, 'run')} in {_DAYS}, {f.missed_runs:,} of them missed"),
             ("Excluded", "the portal's own jobs, which the watchdog sees to")],
        ),
    ]  # fmt: skip


def _days(d: slo.Days) -> str:
    """The second clock: a latency that begins at a settled answer says nothing of how long it took to settle."""
    if d.median is None or d.p95 is None:
        return "nothing could be read yet"
    waiting = f", {d.waiting} of them not proposed yet" if d.waiting else ""
    return f"median {d.median:.1f} days to a proposal, p95 {d.p95:.1f}, of {words.plural(d.counted, 'experiment')}{waiting}"


def summary(principal: Principal, *, now: datetime) -> list[dict[str, Any]]:
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
        for i, level in enumerate(levels(figures(principal, now=now))[1:])  # the reads have their place on the page
    ]


def page(principal: Principal, *, now: datetime) -> dict[str, Any]:
    found = figures(principal, now=now)
    shown = levels(found)
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
                "facts": [{"label": label, "text": text} for label, text in _facts(level)],
            }
            for i, level in enumerate(shown)
        ],
        "blockers": _blockers(found),
        "calm": _calm(found),
        "watchdog": {
            "pill": words.pill("late" if seen["late"] else "pass", "Late" if seen["late"] else "On time"),
            "facts": _watchdog_facts(seen, found),
        },
        "people": {"window": _DAYS, "facts": _people(found, now)},
    }


def _facts(level: _Level) -> Sequence[tuple[str, str]]:
    if level.budget_left is None:
        return level.facts
    left = words.share(max(level.budget_left, 0))
    return [("Budget left", left if level.budget_left >= 0 else f"{left}, overdrawn"), *level.facts]


def _blockers(f: slo.Figures) -> list[dict[str, Any]]:
    """What is not stable, by what blocks it."""
    keys = [key for blocked in f.blocked for key in blocked.experiments[:12]]
    names = dict(Experiment.objects.filter(key__in=keys).values_list("key", "name"))
    tones = {
        "stale": "stale",
        "no_data": "no_data",
        "invalid": "invalid",
        "proposed_late": "late",
        "not_judged": "late",
    }
    said = words.CODES | _LACKS
    return [
        {
            "pill": words.pill(tones.get(b.code, "hold"), said.get(b.code, b.code)),
            "count": len(b.experiments),
            "experiments": [
                {"name": names[key], "url": reverse("experiment", args=[key])}
                for key in b.experiments[:12]
                if key in names
            ],
        }
        for b in f.blocked
    ]


def _calm(f: slo.Figures) -> dict[str, Any]:
    """Holds for units or days alone, those that end first on top."""
    shown = f.calm_holds[:_CALM_SHOWN]
    names = dict(Experiment.objects.filter(key__in=[hold.experiment for hold in shown]).values_list("key", "name"))
    return {
        "more": len(f.calm_holds) - len(shown),
        "holds": [
            {
                "name": names[hold.experiment],
                "url": reverse("experiment", args=[hold.experiment]),
                "units": "days alone"
                if hold.units == 0
                else "not known"
                if hold.units is None
                else words.count(hold.units),
                "when": words.day(hold.about_at) if hold.about_at else "not while it does not run",
            }
            for hold in shown
            if hold.experiment in names
        ],
    }


def _watchdog_facts(seen: dict[str, Any], f: slo.Figures) -> list[dict[str, str]]:
    return [
        {"label": "Newest slot", "text": seen["detail"]},
        {"label": "Judged late", "text": f"{words.plural(f.missed_slots, 'slot')}, each as of its own time"},
    ]


def _people(f: slo.Figures, now: datetime) -> list[dict[str, str]]:
    answered = Decision.objects.filter(at__gte=now - WINDOW).values_list("action", flat=True)
    kinds, a = Counter(answered), f.answers
    facts = [
        ("Answered", f"{a.answered} of {words.plural(a.answered + a.open, 'proposal')}"),
        ("Open", f"{a.open}, of which {a.overdue} are overdue"),
        ("Accepted", str(kinds["accept"])),
        ("Overridden", f"{kinds['override']}, each with a reason"),
    ]
    if a.p95_s is not None:
        facts.insert(1, ("p95 to an answer", f"{span(a.p95_s)} after the proposal"))
    return [{"label": label, "text": text} for label, text in facts]
