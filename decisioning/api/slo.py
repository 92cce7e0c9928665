"""The portal's promises over HTTP."""

from typing import Any

from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.literals import rfc3339
from decisioning.slo import figures as slo
from decisioning.slo.queries import WINDOW


class Promises(PortalView):
    """The portal's own figures."""

    scopes = {"GET": Scope.READ}

    def get(self, request: Request) -> Response:
        """Each figure with its target, the budget that is left and what it leaves out."""
        found = slo.recent(self.principal.sees, now=self.now)
        return Response(
            {
                "as_of": rfc3339(found.as_of),
                "window_days": WINDOW.days,
                "reads": {
                    **_share(found.reads),
                    "stale": found.stale,
                    "unknown": found.unknown,
                    "burn": [{"over_h": burn.over.total_seconds() / 3600, "rate": burn.rate} for burn in found.burns],
                    "counts": "Reads of API and board in the whole portal that were not answered with a 5xx; `stale` of them came from "
                    "a copy while the database was away. `unknown`: what a process that was killed could not count, taken as failed.",
                    "excludes": "Requests that reached no web process, and time in which none ran.",
                },
                "telemetry_latency": {
                    **_latency(found.telemetry),
                    "window_h": 24,
                    "counts": "Rows of running experiments, from the end of their bucket to their first arrival; a bucket that is "
                    "missing beyond its target counts its age so far, the one missing longest however long ago it ended.",
                    "excludes": "Rows older than the experiment's own creation (history brought in), and buckets that end while an experiment is paused.",
                },
                "decision_latency": {
                    **_latency(found.decision),
                    "not_judged": found.not_judged,
                    "counts": "From the moment a stable read could be known to its proposal. `not_judged`: experiments that nothing is "
                    "proposed for and whose next slot is late, or that cannot be judged; what it would propose cannot be known, so each counts as late as its slot.",
                    "excludes": "Experiments without a stable read: see recommended_within_24h.blocked.",
                },
                "days_to_decide": {
                    "median": found.days.median,
                    "p95": found.days.p95,
                    "counted": found.days.counted,
                    "waiting": found.days.waiting,
                    "counts": "Days from an experiment's first look that could be read (fresh, dense, with its floors and min_days) to its "
                    "first proposal from there on; while there is none (`waiting`) to now, or to its end.",
                    "excludes": "Experiments that could not be read yet, and proposals made before: what is unsafe, invalid or harmful "
                    "is proposed at once.",
                },
                "recommended_within_24h": {
                    **_share(found.recommended),
                    "decisive": found.decisive,
                    "calm": found.calm,
                    "calm_holds": [
                        {"experiment": hold.experiment, "units": hold.units, "about_at": rfc3339(hold.about_at)}
                        for hold in found.calm_holds
                    ],
                    "blocked": [
                        {"code": b.code, "count": len(b.experiments), "experiments": b.experiments}
                        for b in found.blocked
                    ],
                    "counts": "Experiments that have run for 24 h: proposed within 24 h, or held for units or days alone; `blocked` by code of the "
                    "hold, or by what a collecting one lacks beside units and days: density, noisy, spread, zero; not_judged: "
                    "its slots have not been judged for a day. `calm_holds`: "
                    "the units a calm hold still needs, of control and treatment together, and about when it ends, at max_days the latest.",
                    "excludes": "Drafts and experiments that have not run for 24 h yet.",
                },
                "telemetry_failures": {
                    **_share(found.failures),
                    "missed": found.missed_runs,
                    "counts": "Runs in the refresh log that failed or were aborted, and runs of scheduled sources that were due and "
                    "never came (`missed`).",
                    "excludes": "Runs that have not ended, and the portal's own jobs, which the watchdog sees to.",
                },
                "answers": {
                    "p95_s": found.answers.p95_s,
                    "answered": found.answers.answered,
                    "open": found.answers.open,
                    "overdue": found.answers.overdue,
                    "excludes": "Proposals that were withdrawn or superseded before anybody answered.",
                },
                "missed_slots": found.missed_slots,
            }
        )


def _latency(latency: slo.Latency) -> dict[str, Any]:
    return {
        "p95_s": latency.p95_s,
        "target_s": latency.target_s,
        "counted": latency.counted,
        "late": latency.late,
        "holds": latency.holds,
        "budget_left": latency.budget_left,
    }


def _share(share: slo.Share) -> dict[str, Any]:
    return {
        "share": share.share,
        "target": share.target,
        "part": share.part,
        "whole": share.whole,
        "holds": share.holds,
        "budget_left": share.budget_left,
    }
