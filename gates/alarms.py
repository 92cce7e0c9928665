"""What the gates' records say that somebody should know now: proposals nobody answers, guards that fail. Told once a change.

Read from what the tick has written, apart from it: telling never holds up judging.
"""

from datetime import datetime

import msgspec
from django.db import connection

from decisioning.ledger.alarms import STEADY_AFTER, Condition, reconcile
from decisioning.literals import rfc3339

_OVERDUE = """
SELECT r.team_id, r.experiment_id, r.id, e.key, v.key, r.action, r.code, r.proposed_at, t.answer_within_h, r.evidence_digest
FROM metadata.recommendations r
JOIN metadata.experiments e ON e.id = r.experiment_id
JOIN metadata.teams t ON t.id = r.team_id
LEFT JOIN metadata.variants v ON v.id = r.variant_id
WHERE r.answered_at IS NULL AND r.superseded_at IS NULL AND r.withdrawn_at IS NULL AND e.ended_at IS NULL
  AND r.proposed_at <= %s - make_interval(hours => t.answer_within_h)
ORDER BY r.id
"""

_FAILED = """
SELECT e.team_id, e.id, e.key, g ->> 'gate', g ->> 'kind', g ->> 'variant', g ->> 'metric', g -> 'reasons', g ->> 'since', c.judged_to
FROM metadata.cursors c
JOIN metadata.experiments e ON e.id = c.experiment_id AND e.status = 'running'
CROSS JOIN LATERAL jsonb_array_elements(c.shown -> 'gates') AS g
WHERE c.shown @? '$.gates[*] ? ((@.kind == "guard" || @.kind == "threshold") && @.verdict == "fail")'
  AND g ->> 'kind' IN ('guard', 'threshold') AND g ->> 'verdict' = 'fail'
ORDER BY e.id
"""


def tell_overdue(*, now: datetime) -> int:
    """`decision.overdue` for every open proposal older than its team's time to answer, once a proposal. Returns the messages told."""
    return reconcile("decision.overdue", lambda: overdue(now=now), now=now)


def tell_failed_guards(*, now: datetime) -> int:
    """`guard.failed` for every guard and safety limit that fails, once until it has held for a while. Returns the messages told."""
    return reconcile("guard.failed", failed_guards, now=now, keep_firing_for=STEADY_AFTER)


def overdue(*, now: datetime) -> list[Condition]:
    with connection.cursor() as cursor:
        cursor.execute(_OVERDUE, [now])
        return [
            Condition(
                team,
                experiment,
                str(pk),
                {
                    "experiment": key,
                    "variant": variant,
                    "action": action,
                    "code": code,
                    "proposed_at": rfc3339(proposed_at),
                    "answer_within_h": within_h,
                    "evidence_digest": digest,
                },
            )
            for team, experiment, pk, key, variant, action, code, proposed_at, within_h, digest in cursor.fetchall()
        ]


def failed_guards() -> list[Condition]:
    with connection.cursor() as cursor:
        cursor.execute(_FAILED)
        return [
            Condition(
                team,
                experiment,
                f"{key} {gate} {variant or ''}".rstrip(),
                {
                    "experiment": key,
                    "variant": variant,
                    "gate": gate,
                    "kind": kind,
                    "metric": metric,
                    "reasons": msgspec.json.decode(reasons) if isinstance(reasons, str) else reasons or [],
                    "since": since,
                    "slot": rfc3339(judged_to),
                },
            )
            for team, experiment, key, gate, kind, variant, metric, reasons, since, judged_to in cursor.fetchall()
        ]
