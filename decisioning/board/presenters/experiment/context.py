"""Everything read about one experiment, for all parts of its page."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from django.urls import reverse

from decisioning.access.principal import Principal
from decisioning.board import words
from decisioning.board.presenters import freshness, history, page_data
from experiments.models import Experiment, Variant
from gates import loading
from gates.engine.forecast import Forecast, forecast
from gates.engine.narration import gate_in_words, narrated
from gates.engine.plan import Kpi, Plan
from gates.engine.policy import Policy
from gates.engine.policy_checks import plan_warnings
from gates.models import Cursor, Evaluation, Recommendation
from telemetry import outages


class Stretch(NamedTuple):
    """A planned outage of one KPI's feed, as a picture and a sentence need it."""

    begins_at: datetime
    ends_at: datetime
    reason: str


class ExperimentContext:
    """Everything read about one experiment, each kind once."""

    def __init__(self, experiment: Experiment, principal: Principal, *, now: datetime) -> None:
        self.experiment, self.principal, self.now = experiment, principal, now
        self.data = page_data.load([experiment.pk], now=now)
        self.cursor: Cursor | None = self.data.cursors.get(experiment.pk)
        self.reader = page_data.reader_of(self.data, experiment.pk)
        shown = page_data.shown_of(self.data, experiment.pk)
        self.shown: Mapping[str, Any] = narrated(shown, self.reader) if shown.get("recommendation") else shown
        self.gates: Sequence[Mapping[str, Any]] = [
            gate_in_words(gate, self.reader) for gate in shown.get("gates") or []
        ]
        self.said: Mapping[str, Any] = self.shown.get("recommendation") or {}
        self.plan = self.data.plans[experiment.pk]
        self.kpis: Sequence[Kpi] = self.plan.kpis
        self.arms = list(Variant.objects.filter(experiment=experiment).order_by("position"))
        self.control = next((v for v in self.arms if v.control), None)
        self.treatments = [v for v in self.arms if not v.control] if self.control else []
        self.metrics: Mapping[str, Kpi] = self.data.metrics
        self.series = history.series((experiment.pk, kpi) for kpi in self.kpis)
        self.proposals: Sequence[Recommendation] = self.data.proposals.get(experiment.pk, [])

    @cached_property
    def _judging(self) -> list[tuple[Policy, Plan]]:
        """Plan and the policy that judges it, or will when it is judged for the first time; none when it is over."""
        if self.experiment.status not in ("draft", "running", "paused"):
            return []
        policy = page_data.policies_of(self.data).get(self.experiment.pk)
        if policy is None:  # not judged yet: by the policy that would
            with suppress(loading.Unjudgeable):
                return [(judging.policy, judging.plan) for judging in loading.load([self.experiment.pk])]
            return []
        return [(policy, self.plan)]

    @cached_property
    def forecast(self) -> list[Forecast]:
        """What each goal needs, said by plan and policy alone."""
        return [found for policy, plan in self._judging for found in forecast(policy, plan)]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with plan and policy before any row."""
        odd = [warning for policy, plan in self._judging for warning in plan_warnings(policy, plan)]
        return [*(found.warning for found in self.forecast if found.warning), *odd]

    @cached_property
    def newest(self) -> Mapping[tuple[str, str], datetime]:
        """The newest row's time of each (metric, variant), whether the gates have read it or not."""
        return freshness.newest(self.experiment.pk)

    @cached_property
    def stretches(self) -> Mapping[str, Sequence[Stretch]]:
        """By metric: the planned outages in the experiment's time, of what has begun."""
        team, began = self.experiment.team_id, self.experiment.started_at or self.experiment.created_at
        ended = self.experiment.ended_at or self.now
        found = outages.windows([team], since=began)
        return {
            kpi.metric: [
                Stretch(outage.begins_at, outage.ends_at, outage.reason)
                for outage in found.get((team, kpi.metric), ())
                if outage.begins_at <= ended
            ]
            for kpi in self.kpis
        }

    @property
    def body(self) -> Mapping[str, Any]:
        return self.cursor.policy_version.body if self.cursor and self.cursor.policy_version else {}

    def url(self, name: str, *args: object) -> str:
        return reverse(name, args=[self.experiment.key, *args])


def as_of(context: ExperimentContext) -> str:
    at = context.cursor.judged_to if context.cursor else None
    return f" at slot {words.instant(at, context.now)}" if at else ""


def slot_of(context: ExperimentContext, digest: str) -> datetime | None:
    """The slot that evidence proves: the one on record with it, and not the newest judged, at which nothing had changed."""
    if not digest:
        return None
    found = Evaluation.objects.filter(experiment=context.experiment, evidence_digest=digest).order_by("-slot", "-fold")
    return found.values_list("slot", flat=True).first()
