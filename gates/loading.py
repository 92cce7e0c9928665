"""What a fold reads: plan, policy in force, stored state and the rows after it, for many experiments in a few queries."""

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec
import numpy as np
from django.db import connection

from experiments.models import Experiment
from gates.engine.checkpoint import Checkpoint
from gates.engine.plan import Plan
from gates.engine.policy import Policy
from gates.engine.policy_checks import parse
from gates.engine.series import Rows, Series, SeriesKey
from gates.feeds import with_feeds
from gates.models import Cursor, PolicyVersion
from telemetry import arrays


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
    gates: bytes | None = None  # of `shown`, as JSON, where they alone are other ones


def load(ids: Sequence[int]) -> list[JudgingInput]:
    """Experiments with cursor, policy in force and plan, in the order of their ids. Raises Unjudgeable."""
    experiments = {e.pk: e for e in Experiment.objects.filter(pk__in=ids)}
    cursors = {c.pk: c for c in Cursor.objects.defer("shown").filter(pk__in=ids)}
    versions = versions_in_force(ids)
    if without := [e.key for pk, e in experiments.items() if pk not in versions]:
        raise Unjudgeable(f"No version of the policy of {', '.join(without)} is active.")
    policies = {pk: policy_of(version) for pk, version in {v.pk: v for v in versions.values()}.items()}
    plans = plans_of(ids)
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
    """By experiment, the version that judges it (`metadata.policy_in_force`); one without is left out."""
    with connection.cursor() as db:
        db.execute(
            "SELECT e.id, metadata.policy_in_force(e.id, e.team_id) FROM metadata.experiments e WHERE e.id = ANY (%s)",
            [list(ids)],
        )
        chosen = {pk: version for pk, version in db.fetchall() if version is not None}
    versions = PolicyVersion.objects.select_related("policy").in_bulk(set(chosen.values()))
    return {experiment: versions[version] for experiment, version in chosen.items()}


_PLANS = """
WITH asked AS MATERIALIZED (SELECT * FROM metadata.experiments WHERE id = ANY (%(ids)s)),
variants AS (
  SELECT v.experiment_id, json_agg(json_build_object('key', v.key, 'weight', v.weight, 'control', v.control,
    'position', v.position, 'dropped_at', us(v.dropped_at)) ORDER BY v.position) AS told
  FROM metadata.variants v WHERE v.experiment_id = ANY (%(ids)s) GROUP BY 1),
kpis AS (
  SELECT t.experiment_id, json_agg(json_strip_nulls(json_build_object('metric', m.key, 'role', t.role, 'kind', m.kind,
    'direction', m.direction, 'temporality', m.temporality, 'expected_every_s', m.expected_every_s,
    'freshness_target_s', m.freshness_target_s, 'counts_assignment', m.counts_assignment,
    'minimum_effect', t.minimum_effect, 'max_harm', t.max_harm, 'unit', m.unit, 'name', m.name, 'plausible_to', t.plausible_to,
    'trusted', (SELECT json_agg(json_build_array(us((d ->> 'since')::timestamptz), us((d ->> 'until')::timestamptz), d ->> 'reason'))
      FROM jsonb_array_elements(t.trusted) d),
    'target', CASE WHEN num_nonnulls(t.target_at_least, t.target_at_most) > 0
      THEN json_build_object('at_least', t.target_at_least, 'at_most', t.target_at_most) END,
    'baseline', CASE WHEN t.baseline_mean IS NOT NULL AND t.baseline_stddev <> 0
      THEN json_build_object('mean', t.baseline_mean, 'stddev', t.baseline_stddev) END)) ORDER BY t.position) AS told
  FROM metadata.target_kpis t JOIN metadata.metrics m ON m.id = t.metric_id WHERE t.experiment_id = ANY (%(ids)s) GROUP BY 1),
pauses AS (
  SELECT p.experiment_id, json_agg(json_build_array(us(p.paused_at), us(p.resumed_at)) ORDER BY p.paused_at) AS told
  FROM metadata.pauses p WHERE p.experiment_id = ANY (%(ids)s) GROUP BY 1),
answers AS (
  SELECT d.experiment_id, json_agg(json_build_object('at', us(d.at), 'action', d.action, 'of', json_build_array(r.action, r.code),
    'variant', v.key, 'override_to', nullif(d.override_to, '')) ORDER BY d.at, d.id) AS told
  FROM metadata.decisions d JOIN metadata.recommendations r ON r.id = d.recommendation_id
  LEFT JOIN metadata.variants v ON v.id = r.variant_id WHERE d.experiment_id = ANY (%(ids)s) GROUP BY 1)
SELECT e.id, json_build_object('started_at', us(coalesce(e.started_at, e.created_at)), 'created_at', us(e.created_at),
  'ended_at', us(e.ended_at), 'expected_units_per_day', e.expected_units_per_day, 'variants', coalesce(variants.told, '[]'),
  'kpis', coalesce(kpis.told, '[]'), 'pauses', coalesce(pauses.told, '[]'), 'answers', coalesce(answers.told, '[]'))::text
FROM asked e LEFT JOIN variants ON variants.experiment_id = e.id LEFT JOIN kpis ON kpis.experiment_id = e.id
LEFT JOIN pauses ON pauses.experiment_id = e.id LEFT JOIN answers ON answers.experiment_id = e.id
"""
_PLANS = re.sub(
    r"\bus\(((?:[^()]|\([^()]*\))*)\)",
    r"(CASE WHEN isfinite(\1) THEN extract(epoch FROM \1) * 1000000 END)::bigint",
    _PLANS,
)


_YEAR_9998 = 253_339_228_800_000_000  # microseconds since the epoch


def plan_texts(ids: Sequence[int]) -> dict[int, str]:
    """Plans by experiment, as JSON that `Plan.from_json` reads; in two queries, more where a feed follows a calendar. Drafts have the plan they would start with."""
    with connection.cursor() as db:
        db.execute(_PLANS, {"ids": list(ids)})
        return with_feeds(dict(db.fetchall()))


@lru_cache(maxsize=4096)
def plan_in(text: str) -> Plan:
    """The plan that a text of `plan_texts` holds; the same object for the same text. Raises Unjudgeable."""
    try:
        plan = Plan.from_json(text.encode())
    except msgspec.MsgspecError as error:
        raise Unjudgeable(f"A plan cannot be read: {error}") from error
    if not 0 <= plan.started_at < _YEAR_9998:  # by SQL: no door takes such a time
        raise Unjudgeable("A plan cannot be read: it begins at a time that is none.")
    return plan


def plans_of(ids: Sequence[int]) -> dict[int, Plan]:
    """The plan of each experiment as the engine reads it. Raises Unjudgeable."""
    return {pk: plan_in(text) for pk, text in plan_texts(ids).items()}


_ROWS = """
SELECT a.place::int, k.*
FROM unnest(%(ids)s, %(metrics)s, %(variants)s, %(afters)s) WITH ORDINALITY AS a(experiment_id, metric, variant, after, place)
CROSS JOIN LATERAL (
  SELECT array_agg(us) AS ts, array_agg(value), array_agg(n), array_agg(variance), array_agg(received),
         CASE WHEN bool_or(is_ratio) THEN array_agg(denominator_value) END,
         CASE WHEN bool_or(is_ratio) THEN array_agg(denominator_variance) END,
         CASE WHEN bool_or(is_ratio) THEN array_agg(covariance) END
  FROM (
    SELECT (extract(epoch FROM k.ts) * 1000000)::bigint AS us, k.value, k.n, k.variance,
           (extract(epoch FROM k.first_received_at) * 1000000)::bigint AS received,
           k.denominator_value, k.denominator_variance, k.covariance,
           num_nonnulls(k.denominator_value, k.denominator_variance, k.covariance) > 0 AS is_ratio
    FROM metrics.experiment_kpis k
    WHERE k.experiment_id = a.experiment_id AND k.metric = a.metric AND k.variant = a.variant AND k.ts > a.after
    ORDER BY k.ts) AS sorted) AS k
WHERE k.ts IS NOT NULL
"""  # each series by the index of the partitions it is in, however many rows all others have


def rows_of(wanted: Mapping[int, Mapping[SeriesKey, int]]) -> dict[int, Rows]:
    """Rows newer than the given instant (microseconds), by experiment and series, in one query."""
    asked = [(e, metric, variant, after) for e, series in wanted.items() for (metric, variant), after in series.items()]
    found: dict[int, dict[SeriesKey, Series]] = {e: {} for e in wanted}
    if not asked:
        return dict(found)
    ids, metrics, variants, afters = zip(*asked, strict=True)
    given = {
        "ids": arrays.int8s(ids),
        "metrics": arrays.texts([metric.encode() for metric in metrics]),
        "variants": arrays.texts([variant.encode() for variant in variants]),
        "afters": arrays.instants(np.array(afters, np.int64) - arrays.EPOCH_US),
    }
    with connection.wrap_database_errors, arrays.cursor() as db:
        db.execute(_ROWS, given)
        for place, ts, value, n, variance, received, dv, dvar, cov in db.fetchall():
            experiment, metric, variant, _ = asked[place - 1]
            found[experiment][metric, variant] = Series(
                ts=ts, value=value, n=n, variance=variance, first_received_at=received,
                denominator_value=dv or (), denominator_variance=dvar or (), covariance=cov or (),
            )  # fmt: skip
    return dict(found)


def series_of(plan: Plan) -> list[SeriesKey]:
    return [(kpi.metric, variant.key) for kpi in plan.kpis for variant in plan.variants]


def checkpoint_in(state: bytes | memoryview) -> Checkpoint:
    """Raises StateOutdated for one that another version wrote, Unjudgeable for bytes that are not what was written."""
    try:
        return Checkpoint.from_bytes(zlib.decompress(state))
    except zlib.error as error:
        raise Unjudgeable("Its stored state cannot be read; the next time it is judged anew from its rows.") from error
