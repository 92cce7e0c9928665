"""What an experiment's document says of its gates and recommendations: the fold's results in its words."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gates.engine.plan import rfc3339, to_us
from gates.engine.reasons import blocking, reasons_in
from gates.engine.results import Evaluation as Judged
from gates.engine.results import Recommendation as JudgedRecommendation
from gates.loading import JudgingInput
from gates.models import Evaluation, Recommendation


def evaluation_as_json(judged: Judged) -> dict[str, Any]:
    """An evaluation in the document's words: RFC 3339 times, plain lists and dicts."""
    return {
        "recommendation": recommendation_as_json(judged.recommendation),
        "variants": [recommendation_as_json(r) for r in judged.variants],
        "gates": [
            {
                "gate": g.gate,
                "kind": g.kind,
                "variant": g.variant,
                "metric": g.metric,
                "verdict": g.verdict,
                "since": rfc3339(g.since),
                "reading": None
                if g.reading is None
                else {**msgspec.to_builtins(g.reading), "at": rfc3339(g.reading.at)},
                "reasons": list(g.reasons),
                "limits": g.extra,
            }
            for g in judged.gates
        ],
    }


def recommendation_as_json(r: JudgedRecommendation) -> dict[str, Any]:
    return {
        "action": r.action,
        "code": r.code,
        "variant": r.variant,
        "state": r.state,
        "first_stable_at": None if r.first_stable_at is None else rfc3339(r.first_stable_at),
        "proposed_slot": None if r.proposed_slot is None else rfc3339(r.proposed_slot),
        "reasons": list(r.reasons),
    }


def shown(
    judging: JudgingInput,
    found: Mapping[str, Any],
    on_record: Evaluation,
    open_: Sequence[Recommendation],
    *,
    is_over: bool,
) -> dict[str, Any]:
    """What the cursor shows: gates as of the newest slot, recommendations as they are on record.

    The words of a recommendation never run ahead of its evidence, so that each of its figures can be proved. found: the newest slot.
    on_record: the newest evaluation on record. open_: what is proposed. is_over: an answer has ended the experiment; it stays.
    """
    before = (judging.cursor.shown or {}) if is_over else {}  # read apart: only then it is needed
    if "recommendation" in before:
        recommendation, variants = before["recommendation"], before["variants"]
    else:
        recorded = {r["variant"]: r for r in on_record.found["variants"]}
        recommendation = _recommendation(
            judging, found["recommendation"], on_record.found["recommendation"], on_record, open_
        )
        variants = [
            _recommendation(judging, r, recorded.get(r["variant"], r), on_record, open_) for r in found["variants"]
        ]
    return {"gates": found["gates"], "recommendation": recommendation, "variants": variants}


def _recommendation(
    judging: JudgingInput,
    now: Mapping[str, Any],
    recorded: Mapping[str, Any],
    on_record: Evaluation,
    open_: Sequence[Recommendation],
) -> dict[str, Any]:
    row = next((r for r in open_ if _is_about(r, now)), None)
    version = row.policy_version if row else judging.version
    return {
        "action": now["action"],
        "code": now["code"],
        "variant": now["variant"],
        "state": "answered" if row and row.answered_at else now["state"],
        "proposed_at": _rfc3339(row.proposed_at) if row else None,
        "first_stable_at": _rfc3339(row.first_stable_at) if row else recorded["first_stable_at"],
        "reasons": [*(reason for reason in row.told if not reason.get("blocks")), *blocking(now["reasons"])]
        if row
        else reasons_in(recorded),
        "evidence_digest": row.evidence_digest if row else on_record.evidence_digest,
        "policy": {"name": version.policy.name, "version": version.number},
    }


def _is_about(row: Recommendation, shown: Mapping[str, Any]) -> bool:
    variant = row.variant.key if row.variant else None
    same = (row.action, row.code) == (shown["action"], shown["code"])
    return same and (variant is None or shown["variant"] is None or variant == shown["variant"])


def _rfc3339(instant: dt.datetime | None) -> str | None:
    return None if instant is None else rfc3339(to_us(instant))
