"""What the pages of experiments are made of, read for many at once by a constant number of queries."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.db.models import QuerySet
from django.utils.safestring import SafeString

from decisioning.board import charts
from decisioning.board.charts import Point
from decisioning.board.presenters import freshness, history
from decisioning.board.presenters import gates as gate_presenter
from experiments.models import Asset, Experiment
from gates.engine.compiled import compile_plan
from gates.engine.narration import Called, Reader, in_words
from gates.engine.plan import DAY, Clock, Kpi, Plan, from_us, to_us
from gates.engine.policy import Policy
from gates.loading import Unjudgeable, plan_in, plan_texts, policy_of
from gates.models import Cursor, Decision, PolicyVersion, Recommendation

OPEN = ("draft", "running", "paused")
CLOSED = ("scaled", "deleted", "stopped")
PROPOSALS = ("scale", "delete", "review")


@dataclass
class PageData:
    """What the rows of one page are made of, each kind read with one query."""

    experiments: dict[int, Experiment]
    proposals: dict[int, list[Recommendation]] = field(default_factory=dict)
    cursors: dict[int, Cursor] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    ages: dict[int, freshness.Age] = field(default_factory=dict)
    metrics: dict[str, Kpi] = field(default_factory=dict)
    effects: history.Effects = field(default_factory=dict)
    assets: dict[int, dict[str, Asset]] = field(default_factory=dict)
    now: datetime = field(kw_only=True)


def open_proposals() -> QuerySet[Recommendation]:
    """Proposals that wait for a person."""
    return Recommendation.objects.filter(
        answered_at__isnull=True,
        superseded_at__isnull=True,
        withdrawn_at__isnull=True,
        action__in=PROPOSALS,
        experiment__status__in=OPEN,
    )


def load(ids: Sequence[int], *, now: datetime, waiting: Sequence[int] | None = None) -> PageData:
    """Everything the rows of these experiments need; proposals of those that are waiting (None: of all)."""
    data = PageData({e.pk: e for e in Experiment.objects.select_related("team").filter(pk__in=ids)}, now=now)
    asked = ids if waiting is None else waiting
    for r in open_proposals().filter(experiment__in=asked).select_related("variant").order_by("pk"):
        data.proposals.setdefault(r.experiment_id, []).append(r)
    data.cursors = {c.pk: c for c in Cursor.objects.filter(pk__in=ids).defer("state")}
    versions = {c.policy_version_id for c in data.cursors.values() if c.policy_version_id}
    held = PolicyVersion.objects.select_related("policy").in_bulk(versions)
    for cursor in data.cursors.values():
        cursor.policy_version = held.get(cursor.policy_version_id or 0)
    for picture in Asset.objects.filter(experiment__in=ids).select_related("variant").defer("body").order_by("pk"):
        data.assets.setdefault(picture.experiment_id, {})[picture.variant.key] = picture  # the newest of each
    data.plans = {pk: _plan(text) for pk, text in plan_texts(ids).items()}
    data.metrics = {kpi.metric: kpi for plan in data.plans.values() for kpi in plan.kpis}
    closed = [pk for pk, e in data.experiments.items() if e.status in CLOSED]
    for d in Decision.objects.filter(experiment__in=closed).select_related("recommendation").order_by("pk"):
        data.decisions[d.experiment_id] = d
    data.ages = freshness.worst(ids, now=now)
    compiled_plans = {pk: compile_plan(policy, data.plans[pk]) for pk, policy in policies_of(data).items()}
    data.effects = history.effects(compiled_plans, now=now)
    return data


def _plan(text: str) -> Plan:
    """One that cannot be read is shown without its variants and KPIs: its page says why it is suspended."""
    try:
        return plan_in(text)
    except Unjudgeable:
        bare = {**msgspec.json.decode(text), "variants": [], "kpis": [], "expected_units_per_day": None}
        return msgspec.convert(bare, Plan)


def ran_days(plan: Plan, at: datetime) -> int:
    """The age as the gates count it: whole days since the start, pauses not counted."""
    return max(Clock(plan).days(to_us(at)), 0)


def ran_until(plan: Plan, days: int) -> datetime:
    """When it will have run so many days if it is not paused again; the earliest there can be of one that is paused now."""
    clock = Clock(plan)
    at = clock.wall(days * DAY)
    return from_us(clock.started_at + days * DAY if at is None else at)


def policies_of(data: PageData) -> dict[int, Policy]:
    """By experiment: the policy that judged its newest slot, where it can still be read."""
    parsed: dict[int, Policy] = {}
    for cursor in data.cursors.values():
        version = cursor.policy_version
        if version is not None and version.pk not in parsed:
            with suppress(Unjudgeable):
                parsed[version.pk] = policy_of(version)
    return {pk: parsed[c.policy_version_id] for pk, c in data.cursors.items() if c.policy_version_id in parsed}


def trend(data: PageData, pk: int, variant: str | None) -> list[Point]:
    """The first goal's effect for one treatment (the first one by default), day by day."""
    treatments = [v.key for v in data.plans[pk].treatments]
    chosen = variant if variant in treatments else next(iter(treatments), "")
    return [reading.point for reading in data.effects.get((pk, chosen), [])]


def shown_of(data: PageData, pk: int) -> Mapping[str, Any]:
    cursor = data.cursors.get(pk)
    return (cursor.shown if cursor else None) or {}


def reader_of(data: PageData, pk: int) -> Reader:
    """Who reads what the gates say of an experiment: now, or at its end."""
    ended = data.experiments[pk].ended_at
    called = {metric: Called(kpi.name, kpi.unit, kpi.direction == "decrease") for metric, kpi in data.metrics.items()}
    return Reader(min(data.now, ended) if ended else data.now, called)


def said_of(data: PageData, pk: int) -> Mapping[str, Any]:
    """The experiment's recommendation with its reasons in sentences; empty before it was judged."""
    said = shown_of(data, pk).get("recommendation")
    return in_words(said, reader_of(data, pk)) if said else {}


def clock(used: timedelta, promised: timedelta, *, uid: str, width: int = 168) -> SafeString:
    """How much of the answer's time is used."""
    hours, full = used.total_seconds() / 3600, promised.total_seconds() / 3600
    left = f"{hours:.1f} of {full:g} hours used"
    return gate_presenter.svg(
        charts.meter(hours, limit=full, full=full, uid=uid, title="Time to answer", desc=left, width=width)
    )
