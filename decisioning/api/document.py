"""The experiment document and the rows of the list: one SQL statement each, building JSON under row security.

Nothing is judged here: gates and recommendation are what the newest evaluation left in `cursors.shown`.
"""

# ruff: noqa: S608 - every statement is made of constants of this file

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from decisioning.api.statements import fetch
from gates.engine.narration import Called, Reader, gate_in_words, in_words
from telemetry.freshness import FRESHNESS_SQL, LATENCIES_SQL, RANK_SQL, WATERMARK_BESIDE_SQL

SLOT_S = 300


@dataclass(frozen=True)
class Document:
    """`text` is the JSON to send. `etag` changes with any change, slot or freshness state; `plan_tag`, its first half, only
    with what PATCH can change, so that a new slot does not refuse an edit."""

    text: bytes
    value: dict[str, Any]
    etag: str
    plan_tag: str


def document(experiment_id: int, *, now: datetime) -> Document | None:
    """The document of one experiment, None when the reader may not see it."""
    found = fetch(_DOCUMENT, {"id": experiment_id, "now": now})
    if not found:
        return None
    value: dict[str, Any] = msgspec.json.decode(found[0][0])
    plan_tag = _digest(
        [
            {name: part for name, part in value.items() if name not in _NOT_PLAN},
            [(k["metric"], k["role"]) for k in value["kpis"]],
        ]
    )
    # The p95 grows with every second in which a bucket is missing; the state beside it says when that matters.
    rest = _digest({**value, "freshness": {**value["freshness"], "telemetry_p95_s": None}})
    told = narrated(value, now)  # after the tag: what a reason says ages, what it is does not
    return Document(msgspec.json.encode(told), told, f'"{plan_tag}.{rest}"', plan_tag)


def rows(experiment_ids: Sequence[int], *, now: datetime) -> list[Any]:
    """The list's rows for these experiments, in their order."""
    found = fetch(_ROWS, {"ids": list(experiment_ids), "now": now})
    return [narrated(msgspec.json.decode(text), now) for (text,) in found]


def narrated(value: dict[str, Any], now: datetime) -> dict[str, Any]:
    """A document or row with its reasons in sentences, too, as of now or of its end."""
    reader = reader_of(value, now)
    gates = [gate_in_words(gate, reader) if "reasons" in gate or "reason" in gate else gate for gate in value["gates"]]
    return {**value, "gates": gates, "recommendation": in_words(value["recommendation"], reader)}


def reader_of(value: Mapping[str, Any], now: datetime) -> Reader:
    """Who reads a document now, or read it at its end."""
    ended = value["ended_at"]
    called = {kpi["metric"]: Called(kpi["name"], kpi["unit"], kpi["direction"] == "decrease") for kpi in value["kpis"]}
    return Reader(min(now, datetime.fromisoformat(ended)) if ended else now, called)


def recommendation_before_the_first_look(policy: dict[str, Any] | None) -> dict[str, Any]:
    """What there is to say before anything was judged."""
    unjudged: dict[str, Any] = msgspec.json.decode(_UNJUDGED)
    return in_words({**unjudged, "policy": policy}, Reader())


def _digest(value: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=12).hexdigest()


_NOT_PLAN = ("as_of", "stale", "freshness", "kpis", "gates", "unjudgeable", "recommendation", "links")

_UNJUDGED = (
    '{"action": "hold", "code": "no_data", "variant": null, "state": "open", "proposed_at": null, "first_stable_at": null, '
    '"reasons": [{"code": "nothing_judged", "blocks": true}], "evidence_digest": null}'
)


def instant(sql: str) -> str:
    """A timestamptz as RFC 3339 text in UTC; null stays null."""
    return f"replace(to_jsonb({sql}) #>> '{{}}', '+00:00', 'Z')"


_NOW = "least(%(now)s::timestamptz, e.ended_at)"

# The newest instant up to which a gate has read a metric. One that is measured says so, one that watches names what it saw; a
# target gate reads days that are over, so what is newest of its metric is still to be judged.
_READ_TO = """
  SELECT max(coalesce(g #>> '{reading,at}', g #>> '{limits,observed,-1,0}')::timestamptz) AS at
  FROM metadata.cursors c CROSS JOIN LATERAL jsonb_array_elements(c.shown -> 'gates') AS g
  WHERE c.experiment_id = e.id AND g ->> 'metric' = m.key
"""

_WATERMARK = WATERMARK_BESIDE_SQL.format(
    row="r", experiment="e.id", metric="m.key", variant="a.key", temporality="m.temporality", sparse="k.sparse"
)

_AGE = FRESHNESS_SQL.format(
    experiment="e.id",
    metric="m.key",
    watermark="v.watermark",
    every_s="m.expected_every_s",
    target_s="m.freshness_target_s",
    at="%(now)s::timestamptz",
)

# The newest row of each series, then of each KPI its watermark: the least over the variants that still run.
_KPIS = f"""
  SELECT k.position, m.key AS metric, m.name, m.direction, k.role, m.unit, v.*, age.state, age.due_at
  FROM metadata.target_kpis k
  JOIN metadata.metrics m ON m.id = k.metric_id
  CROSS JOIN LATERAL ({_READ_TO}) AS read_to
  CROSS JOIN LATERAL (
    SELECT coalesce(json_agg(json_build_object('variant', a.key, 'value', r.value, 'n', r.n, 'ts', {instant("r.ts")},
                                               'judged', coalesce(r.ts <= read_to.at, false))
                             ORDER BY a.position) FILTER (WHERE r.ts IS NOT NULL), '[]') AS newest,
           CASE WHEN bool_and(news.ts IS NOT NULL) FILTER (WHERE a.dropped_at IS NULL)
                THEN min(news.ts) FILTER (WHERE a.dropped_at IS NULL) END AS watermark,
           greatest(max(r.received_at), (SELECT max(o.last_refresh_at) FROM metadata.sources o
                                         WHERE o.team_id = e.team_id AND m.key = ANY (o.metrics))) AS last_refresh_at
    FROM metadata.variants a
    LEFT JOIN LATERAL (
      SELECT r.ts, r.value, r.n, r.received_at FROM metrics.experiment_kpis r
      WHERE r.experiment_id = e.id AND r.metric = m.key AND r.variant = a.key ORDER BY r.ts DESC LIMIT 1) AS r ON true
    CROSS JOIN LATERAL (SELECT {_WATERMARK} AS ts) AS news
    WHERE a.experiment_id = e.id) AS v
  CROSS JOIN LATERAL {_AGE} AS age
  WHERE k.experiment_id = e.id
"""

_FRESHNESS = f"""
  SELECT coalesce((array['fresh', 'due', 'late', 'unknown', 'stale'])[max({RANK_SQL.format(state="kpi.state")})], 'unknown') AS state,
         CASE WHEN bool_and(kpi.watermark IS NOT NULL) THEN min(kpi.watermark) END AS watermark,
         max(kpi.last_refresh_at) AS last_refresh_at,
         coalesce(json_agg(json_build_object(
           'metric', kpi.metric, 'name', kpi.name, 'direction', kpi.direction, 'role', kpi.role, 'unit', kpi.unit,
           'freshness', json_build_object('state', kpi.state, 'data_watermark', {instant("kpi.watermark")},
                                          'due_at', {instant("kpi.due_at")},
                                          'last_refresh_at', {instant("kpi.last_refresh_at")}),
           'values', kpi.newest) ORDER BY kpi.position), '[]') AS kpis
  FROM ({_KPIS}) AS kpi
"""

# Over all series of an experiment that runs: from its start, and not over history that was brought in later.
_SINCE = "greatest(%(now)s::timestamptz - interval '24 hours', e.started_at, e.created_at)"
_LATENCY = f"""
  SELECT percentile_disc(0.95) WITHIN GROUP (ORDER BY l.latency_s) AS p95_s
  FROM metadata.target_kpis k
  JOIN metadata.metrics m ON m.id = k.metric_id
  JOIN metadata.variants a ON a.experiment_id = e.id AND a.dropped_at IS NULL
  CROSS JOIN LATERAL ({LATENCIES_SQL}) AS l
  WHERE k.experiment_id = e.id AND e.status IN ('running', 'paused')
""".format(
    experiment="e.id",
    metric="m.key",
    variant="a.key",
    every_s="m.expected_every_s",
    target_s="m.freshness_target_s",
    sparse="k.sparse",
    began="greatest(e.started_at, e.created_at)",
    since=_SINCE,
    now=_NOW,
)

_POLICY = """
  SELECT json_build_object('name', p.name, 'version', v.number) AS policy
  FROM metadata.policy_versions v JOIN metadata.policies p ON p.id = v.policy_id
  WHERE v.id = metadata.policy_in_force(e.id, e.team_id)
"""

_AS_OF = f"""coalesce(c.judged_to, to_timestamp(floor(extract(epoch FROM {_NOW}) / {SLOT_S}) * {SLOT_S}))"""

_RECOMMENDATION = f"""
  coalesce((c.shown -> 'recommendation')::json, (SELECT json_object_agg(key, value) FROM (
    SELECT key, CASE WHEN key = 'reasons' AND c.unjudgeable IS NOT NULL
                     THEN json_build_array(json_build_object('code', 'unjudgeable', 'text', c.unjudgeable ->> 'reason', 'blocks', true))
                     ELSE value END
    FROM json_each('{_UNJUDGED}') UNION ALL SELECT 'policy', p.policy) AS unjudged (key, value)))
"""

_VARIANTS = f"""
  SELECT coalesce(json_agg(json_build_object('key', a.key, 'name', a.name, 'weight', a.weight, 'control', a.control,
                                             'dropped_at', {instant("a.dropped_at")}) ORDER BY a.position), '[]') AS variants
  FROM metadata.variants a WHERE a.experiment_id = e.id
"""

_HEAD = f"""
  'id', e.id, 'key', e.key, 'name', e.name, 'hypothesis', e.hypothesis, 'owner', e.owner, 'team', t.key, 'status', e.status,
  'created_at', {instant("e.created_at")}, 'started_at', {instant("e.started_at")}, 'ended_at', {instant("e.ended_at")}"""

_FROM = f"""
FROM metadata.experiments e
JOIN metadata.teams t ON t.id = e.team_id
LEFT JOIN metadata.cursors c ON c.experiment_id = e.id
LEFT JOIN LATERAL ({_POLICY}) AS p ON true
CROSS JOIN LATERAL ({_FRESHNESS}) AS f
"""

_DOCUMENT = f"""
SELECT json_build_object({_HEAD},
  'expected_units_per_day', e.expected_units_per_day, 'variants', arms.variants, 'as_of', {instant(_AS_OF)}, 'stale', false,
  'freshness', json_build_object('state', f.state, 'last_refresh_at', {instant("f.last_refresh_at")},
                                 'data_watermark', {instant("f.watermark")}, 'telemetry_p95_s', late.p95_s),
  'kpis', f.kpis,
  'gates', coalesce((c.shown -> 'gates')::json, '[]'),
  'unjudgeable', c.unjudgeable,
  'recommendation', {_RECOMMENDATION},
  'links', json_build_object(
    'board', '/experiments/' || e.key,
    'evidence', '/api/experiments/' || e.id || '/evidence/' || (c.shown #>> '{{recommendation,evidence_digest}}'),
    'audit', '/api/experiments/' || e.id || '/audit'))::text
{_FROM}
CROSS JOIN LATERAL ({_VARIANTS}) AS arms
CROSS JOIN LATERAL ({_LATENCY}) AS late
WHERE e.id = %(id)s::bigint
"""

_ROWS = f"""
SELECT json_build_object({_HEAD},
  'as_of', {instant(_AS_OF)}, 'stale', false,
  'freshness', json_build_object('state', f.state, 'last_refresh_at', {instant("f.last_refresh_at")},
                                 'data_watermark', {instant("f.watermark")}),
  'kpis', f.kpis,
  'gates', coalesce((SELECT json_agg(json_build_object('gate', g -> 'gate', 'kind', g -> 'kind', 'variant', g -> 'variant',
                                                       'verdict', g -> 'verdict', 'reading', g -> 'reading'))
                     FROM jsonb_array_elements(c.shown -> 'gates') AS g), '[]'),
  'unjudgeable', c.unjudgeable,
  'recommendation', {_RECOMMENDATION})::text
{_FROM}
JOIN unnest(%(ids)s::bigint[]) WITH ORDINALITY AS wanted (id, place) ON wanted.id = e.id
ORDER BY wanted.place
"""

STATE_OF_EXPERIMENT = f"""
(SELECT f.state FROM metadata.experiments e CROSS JOIN LATERAL ({_FRESHNESS}) AS f WHERE e.id = experiments.id)
"""
"""The freshness state as a column of a query over experiments. Parameter: now."""
