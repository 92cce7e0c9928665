"""What a fold reads: plan, policy in force, stored state and the rows after it, for many experiments in a few queries."""

import datetime as dt
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from django.db import connection

from experiments.feeds import parts_of, schedules_of
from experiments.models import Experiment, MetricSchedule, Pause, TargetKpi, Variant
from gates.engine.checkpoint import Checkpoint
from gates.engine.plan import Answer, Baseline, Kpi, Plan, Target, from_us, to_us
from gates.engine.plan import Variant as PlannedVariant
from gates.engine.policy import Policy, parse
from gates.engine.series import Rows, Series, SeriesKey
from gates.models import Cursor, Decision, PolicyVersion
from telemetry.models import Outage, Source
from telemetry.outages import windows


class Unjudgeable(Exception):
    """Policy or plan of an experiment cannot be read; the message says which, and why."""


@dataclass
class JudgingInput:
    """One experiment with everything its fold reads."""

    experiment: Experiment
    cursor: Cursor
    version: PolicyVersion
    policy: Policy
    plan: Plan
    changed: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # (metric, from_ts, from_received_at) in microseconds


def load(ids: Sequence[int]) -> list[JudgingInput]:
    """Experiments with cursor, policy in force and plan, in the order of their ids. Raises Unjudgeable."""
    experiments = {e.pk: e for e in Experiment.objects.select_related("team").filter(pk__in=ids)}
    cursors = {c.pk: c for c in Cursor.objects.filter(pk__in=ids)}
    versions = versions_in_force(ids)
    if without := [e.key for pk, e in experiments.items() if pk not in versions]:
        raise Unjudgeable(f"No version of the policy of {', '.join(without)} is active.")
    policies = {pk: policy_of(version) for pk, version in {v.pk: v for v in versions.values()}.items()}
    plans = plans_of(experiments.values())
    return [
        JudgingInput(experiments[i], cursors[i], versions[i], policies[versions[i].pk], plans[i])
        for i in sorted(experiments)
    ]


def policy_of(version: PolicyVersion) -> Policy:
    """The policy of a stored version. Raises Unjudgeable."""
    try:
        return parse(version.body, name=version.policy.name, version=version.number)
    except (ValueError, LookupError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise Unjudgeable(f"Policy {version} cannot be read: {error}") from error


def versions_in_force(ids: Sequence[int]) -> dict[int, PolicyVersion]:
    """By experiment: the newest activated version of its own policy, else its team's default, else the shipped `default`."""
    with connection.cursor() as db:
        db.execute(
            """
            SELECT e.id, v.id FROM metadata.experiments e
            CROSS JOIN LATERAL (
              SELECT policy_id FROM (
                SELECT policy_id, 1 AS rank FROM metadata.policy_bindings b WHERE b.experiment_id = e.id
                UNION ALL SELECT policy_id, 2 FROM metadata.policy_bindings b WHERE b.team_id = e.team_id AND b.experiment_id IS NULL
                UNION ALL SELECT id, 3 FROM metadata.policies p WHERE p.team_id IS NULL AND p.name = 'default') AS choices
              ORDER BY rank LIMIT 1) AS chosen
            CROSS JOIN LATERAL (
              SELECT id FROM metadata.policy_versions w WHERE w.policy_id = chosen.policy_id AND w.activated_at IS NOT NULL
              ORDER BY activated_at DESC, number DESC LIMIT 1) AS v
            WHERE e.id = ANY (%s)
            """,
            [list(ids)],
        )
        chosen = dict(db.fetchall())
    versions = PolicyVersion.objects.select_related("policy").in_bulk(set(chosen.values()))
    return {experiment: versions[version] for experiment, version in chosen.items()}


def plans_of(experiments: Iterable[Experiment]) -> dict[int, Plan]:
    """The plan of each experiment as the engine reads it; a constant number of queries. Drafts have the plan they would start with.

    Raises Unjudgeable.
    """
    by_id = {e.pk: e for e in experiments}
    kpis: dict[int, list[TargetKpi]] = defaultdict(list)
    for kpi in TargetKpi.objects.filter(experiment__in=by_id).select_related("metric").order_by("position"):
        kpis[kpi.experiment_id].append(kpi)
    variants: dict[int, list[PlannedVariant]] = defaultdict(list)
    for v in Variant.objects.filter(experiment__in=by_id):
        variants[v.experiment_id].append(PlannedVariant(v.key, v.weight, v.control, _us(v.dropped_at), v.position))
    pauses: dict[int, list[tuple[int, int | None]]] = defaultdict(list)
    for pause in Pause.objects.filter(experiment__in=by_id):
        pauses[pause.experiment_id].append((to_us(pause.paused_at), _us(pause.resumed_at)))
    answers: dict[int, list[Answer]] = defaultdict(list)
    for decision in (
        Decision.objects.filter(experiment__in=by_id).select_related("recommendation__variant").order_by("at")
    ):
        of = decision.recommendation
        answers[decision.experiment_id].append(
            Answer(
                at=to_us(decision.at),
                action="accept" if decision.action == Decision.Action.ACCEPT else "override",
                of=(of.action, of.code),  # type: ignore[arg-type]
                variant=of.variant.key if of.variant else None,
                override_to=decision.override_to or None,  # type: ignore[arg-type]
            )
        )
    feeds = _feeds(by_id.values(), [kpi for of in kpis.values() for kpi in of])
    plans = {
        pk: Plan(
            started_at=to_us(e.started_at or e.created_at),
            created_at=to_us(e.created_at),
            variants=tuple(sorted(variants[pk], key=lambda v: v.position)),
            kpis=tuple(_kpi(k, kpis[pk], e, feeds) for k in kpis[pk]),
            ended_at=_us(e.ended_at),
            pauses=tuple(sorted(pauses[pk])),
            answers=tuple(answers[pk]),
            expected_units_per_day=e.expected_units_per_day,
        )
        for pk, e in by_id.items()
    }
    try:
        return {
            pk: Plan.from_json(plan.to_json()) for pk, plan in plans.items()
        }  # texts from the database become the literals
    except msgspec.MsgspecError as error:
        raise Unjudgeable(f"A plan cannot be read: {error}") from error


def rows_of(wanted: Mapping[int, Mapping[SeriesKey, int]]) -> dict[int, Rows]:
    """Rows newer than the given instant (microseconds), by experiment and series, in one query."""
    asked = [
        (e, metric, variant, from_us(after))
        for e, series in wanted.items()
        for (metric, variant), after in series.items()
    ]
    found: dict[int, dict[SeriesKey, Series]] = {e: {} for e in wanted}
    if not asked:
        return dict(found)
    with connection.cursor() as db:
        db.execute(
            """
            SELECT experiment_id, metric, variant, array_agg(us), array_agg(value), array_agg(n), array_agg(variance), array_agg(received),
                   array_agg(denominator_value), array_agg(denominator_variance), array_agg(covariance)
            FROM (
              SELECT k.experiment_id, k.metric, k.variant, (extract(epoch FROM k.ts) * 1000000)::bigint AS us, k.value, k.n, k.variance,
                     (extract(epoch FROM k.first_received_at) * 1000000)::bigint AS received,
                     k.denominator_value, k.denominator_variance, k.covariance
              FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::timestamptz[]) AS a(experiment_id, metric, variant, after)
              JOIN metrics.experiment_kpis k ON k.experiment_id = a.experiment_id AND k.metric = a.metric AND k.variant = a.variant
                AND k.ts > a.after
              ORDER BY k.experiment_id, k.metric, k.variant, k.ts) AS sorted
            GROUP BY 1, 2, 3
            """,
            [list(column) for column in zip(*asked, strict=True)],
        )
        for experiment, metric, variant, ts, value, n, variance, received, dv, dvar, cov in db.fetchall():
            found[experiment][metric, variant] = Series(
                ts=ts, value=value, n=n, variance=variance, first_received_at=received,
                denominator_value=dv, denominator_variance=dvar, covariance=cov,
            )  # fmt: skip
    return dict(found)


def _us(instant: dt.datetime | None) -> int | None:
    return None if instant is None else to_us(instant)


class _Feeds(NamedTuple):
    """When what feeds the KPIs is due: schedules by metric, outages by team and metric, and by team what each source feeds."""

    schedules: Mapping[int, Sequence[MetricSchedule]]
    outages: Mapping[tuple[int, str], Sequence[Outage]]
    sources: Mapping[int, Sequence[Collection[str]]]


def _feeds(experiments: Iterable[Experiment], kpis: Sequence[TargetKpi]) -> _Feeds:
    started = {e.pk: e.started_at or e.created_at for e in experiments}
    if not kpis:
        return _Feeds({}, {}, {})
    teams = {kpi.team_id for kpi in kpis}
    sources: dict[int, list[Collection[str]]] = defaultdict(list)
    if sparse := {kpi.team_id for kpi in kpis if kpi.sparse}:
        for team, metrics in Source.objects.filter(team__in=sparse).values_list("team_id", "metrics"):
            sources[team].append(set(metrics))
    return _Feeds(
        schedules_of(kpi.metric_id for kpi in kpis), windows(teams, since=min(started.values())), dict(sources)
    )


def _kpi(kpi: TargetKpi, kpis: Sequence[TargetKpi], experiment: Experiment, feeds: _Feeds) -> Kpi:
    metric = kpi.metric
    started_at = experiment.started_at or experiment.created_at
    outages = feeds.outages.get((kpi.team_id, metric.key), ())
    has_target = kpi.target_at_least is not None or kpi.target_at_most is not None
    told = Kpi(
        metric=metric.key,
        role=kpi.role,  # type: ignore[arg-type]
        kind=metric.kind,  # type: ignore[arg-type]
        direction=metric.direction,  # type: ignore[arg-type]
        temporality=metric.temporality,  # type: ignore[arg-type]
        expected_every_s=metric.expected_every_s,
        freshness_target_s=metric.freshness_target_s,
        counts_assignment=metric.counts_assignment,
        target=Target(kpi.target_at_least, kpi.target_at_most) if has_target else None,
        baseline=Baseline(kpi.baseline_mean, kpi.baseline_stddev)
        if kpi.baseline_mean is not None and kpi.baseline_stddev
        else None,
        unit=metric.unit,
        name=metric.name,
        expected=parts_of(feeds.schedules.get(kpi.metric_id, ()), around=started_at),
        outages=tuple((to_us(o.begins_at), to_us(o.ends_at)) for o in outages if o.ends_at > started_at),
        sparse_beside=_goal_beside(kpi, kpis, feeds.sources.get(kpi.team_id, ())) if kpi.sparse else "",
    )
    given = {name: v for name in ("minimum_effect", "max_harm") if (v := getattr(kpi, name)) is not None}
    return msgspec.structs.replace(told, **given)


def _goal_beside(kpi: TargetKpi, kpis: Sequence[TargetKpi], sources: Sequence[Collection[str]]) -> str:
    """The first goal that counts units bucket by bucket and comes from where the KPI comes from; empty: none does."""
    feeding = [metrics for metrics in sources if kpi.metric.key in metrics]
    for goal in kpis:
        key, counts = goal.metric.key, goal.metric.temporality == "delta" and goal.metric.kind != "gauge"
        together = any(key in metrics for metrics in feeding) if feeding else all(key not in of for of in sources)
        if goal.role == TargetKpi.Role.GOAL and counts and together:
            return key
    return ""


def series_of(plan: Plan) -> list[SeriesKey]:
    return [(kpi.metric, variant.key) for kpi in plan.kpis for variant in plan.variants]


def checkpoint_in(state: bytes | memoryview) -> Checkpoint:
    """Raises StateOutdated for one that another version wrote, Unjudgeable for bytes that are not what was written."""
    try:
        return Checkpoint.from_bytes(zlib.decompress(state))
    except zlib.error as error:
        raise Unjudgeable("Its stored state cannot be read; the next time it is judged anew from its rows.") from error
