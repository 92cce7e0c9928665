"""What cannot be judged is suspended: why, by which row if one is to blame, and that nothing it proposes is accepted meanwhile."""

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import connection

from experiments.models import Experiment
from experiments.plan import LARGEST, SMALLEST
from gates.engine.plan import rfc3339, to_us
from gates.engine.reasons import reasons_in
from gates.loading import Unjudgeable
from gates.models import Cursor
from telemetry.row import MOST_UNITS


@dataclass(frozen=True)
class Cause:
    """Why one experiment cannot be judged. row: {metric, variant, ts, field, value}, all text, of the stored number that is to blame."""

    key: str
    reason: str
    row: Mapping[str, Any] | None


def cause_of(pk: int, error: Exception) -> Cause:
    """What is to blame for an error that stopped an experiment from being judged."""
    key = Experiment.objects.values_list("key", flat=True).get(pk=pk)
    row = None if isinstance(error, Unjudgeable) else _beyond_reason(pk)
    if row is not None:
        number = f"the {row['field']} {row['value']}" if row["field"] != "ts" else "no usable time"
        said = f"The row of {row['metric']} of {row['variant']} at {row['ts']} has {number}, which nothing can be computed with."
        return Cause(key, f"It cannot be judged. {said} Correct that row: it is judged again by itself.", row)
    lines = str(error).strip().splitlines() or [""]
    said = lines[0] if isinstance(error, Unjudgeable) else f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
    return Cause(key, f"It cannot be judged. {said.rstrip('.')}. It is tried again every few minutes.", None)


def suspend(pk: int, cause: Cause, *, now: dt.datetime, retry_at: dt.datetime) -> None:
    """Let nothing that is proposed for the experiment be accepted until a later slot is judged; in the caller's transaction.

    The document goes on saying what was found last, with the cause as its first blocker. The state is dropped: the next fold
    tells all from the rows.
    """
    cursor = Cursor.objects.defer("state").get(pk=pk)
    before = cursor.unjudgeable if isinstance(cursor.unjudgeable, dict) else {}
    cursor.shown = _with_blocker(lifted(cursor.shown), cause.reason)
    cursor.unjudgeable = {
        "since": before.get("since") or rfc3339(to_us(now)),
        "reason": cause.reason,
        "row": cause.row,
    }
    cursor.state = cursor.quiet_to = None
    cursor.due_at = retry_at
    cursor.save(update_fields=["shown", "unjudgeable", "state", "quiet_to", "due_at"])


def lifted(shown: Any) -> Any:
    """What the document said, without a cause that is over. What stood before stands again when it is judged."""
    return _each(shown, lambda told: {**told, "reasons": [r for r in reasons_in(told) if r["code"] != "unjudgeable"]})


def _with_blocker(shown: Any, reason: str) -> Any:
    """What the document said, its proposals suspended; None when it said nothing that can be told again."""
    return _each(
        shown,
        lambda told: {
            **told,
            "state": "suspended" if told["state"] == "proposed" else told["state"],
            "reasons": [{"code": "unjudgeable", "text": reason, "blocks": True}, *told["reasons"]],
        },
    )


def _each(shown: Any, change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    try:
        variants = [change(told) for told in shown["variants"]]
        return {"gates": shown["gates"], "recommendation": change(shown["recommendation"]), "variants": variants}
    except (TypeError, LookupError):
        return None


# Of several the one that came last: what was judged before it came cannot be its fault.
_BEYOND_REASON = """
SELECT k.metric, k.variant, replace(to_jsonb(k.ts) #>> '{}', '+00:00', 'Z'), cell.field, cell.number
FROM metrics.experiment_kpis k
CROSS JOIN LATERAL (VALUES
  ('ts', extract(epoch FROM k.ts)::float8), ('ts', extract(epoch FROM k.first_received_at)::float8), ('value', k.value),
  ('variance', k.variance), ('denominator value', k.denominator_value), ('denominator variance', k.denominator_variance),
  ('covariance', k.covariance), ('n', k.n)) AS cell (field, number)
WHERE k.experiment_id = %(id)s AND (abs(cell.number) > CASE cell.field WHEN 'n' THEN %(units)s ELSE %(largest)s END OR (cell.number <> 0 AND abs(cell.number) < %(smallest)s))
ORDER BY k.received_at DESC, k.metric, k.variant, k.ts LIMIT 1
"""


def _beyond_reason(pk: int) -> dict[str, Any] | None:
    with connection.cursor() as cursor:
        cursor.execute(_BEYOND_REASON, {"id": pk, "largest": LARGEST, "smallest": SMALLEST, "units": MOST_UNITS})
        found = cursor.fetchone()
    if found is None:
        return None
    metric, variant, ts, field, number = found
    return {"metric": metric, "variant": variant, "ts": ts, "field": field, "value": f"{number:g}"}
