"""`slo.burning`: a tick, which sees every team, tells each team when a promise to it is broken."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import transaction

from decisioning.ledger.alarms import Condition, Unknown, reconcile
from decisioning.ledger.items import alone
from decisioning.slo.figures import Figures, Latency, Share, figures
from experiments.models import Experiment

SETTLED = timedelta(minutes=15)
"""How long a promise must be broken before it is told, and be kept before it can be told anew."""
_NAMES = {
    "reads": "reads answered",
    "telemetry_latency": "telemetry latency, p95",
    "decision_latency": "decision latency, p95",
    "recommended_within_24h": "recommended within 24 h",
    "telemetry_failures": "telemetry failures",
}


def tell_broken(*, now: datetime) -> int:
    """`slo.burning` for every promise to a team whose budget is used up, once until it has held again. Returns the messages told."""

    def look() -> Iterator[Condition | Unknown]:
        # Without the model's own order, which would make every experiment distinct.
        running = Experiment.objects.exclude(status=Experiment.Status.DRAFT).order_by("team_id")
        for team in running.values_list("team_id", flat=True).distinct():
            found: list[Condition | Unknown] = [Unknown(team)]
            with alone(f"Counting what was promised to team {team}"), transaction.atomic():
                found = [*_broken(figures(now=now, team_id=team), team)]
            yield from found

    return reconcile("slo.burning", look, now=now, hold_for=SETTLED, keep_firing_for=SETTLED)


def _broken(found: Figures, team: int) -> list[Condition]:
    promises: dict[str, Latency | Share] = {
        "reads": found.reads,
        "telemetry_latency": found.telemetry,
        "decision_latency": found.decision,
        "recommended_within_24h": found.recommended,
        "telemetry_failures": found.failures,
    }
    return [
        Condition(
            team,
            None,
            promise,
            {"promise": promise, "name": _NAMES[promise], "budget_left": kept.budget_left, **_figure(kept)},
        )
        for promise, kept in promises.items()
        if kept.holds is False
    ]


def _figure(kept: Latency | Share) -> dict[str, object]:
    """The figure and its target, in seconds or as a fraction, and both in words."""
    if isinstance(kept, Latency):
        said = {"figure": f"{kept.p95_s:,.0f} s", "target": f"at most {kept.target_s:,} s"}
        return {"p95_s": kept.p95_s, "target_s": kept.target_s, **said}
    side = "at least" if kept.at_least else "at most"
    said = {"figure": f"{kept.part:,} of {kept.whole:,}", "target": f"{side} {kept.target * 100:g}%"}
    return {"share": kept.share, "target_share": kept.target, **said}
