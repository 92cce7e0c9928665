"""What a proposal rests on: its evidence, replayed, and every row."""

from datetime import datetime
from typing import Any

from django.urls import reverse

from decisioning.board import words
from decisioning.board.presenters.experiment.context import ExperimentContext, slot_of
from experiments.models import Experiment
from gates.engine import evidence
from gates.models import Evidence, Recommendation


def evidence_card(context: ExperimentContext) -> dict[str, Any] | None:
    digest = (
        next((recommendation.evidence_digest for recommendation in context.proposals), "")
        or context.said.get("evidence_digest")
        or ""
    )
    if not digest:
        last = (
            Recommendation.objects.filter(experiment=context.experiment)
            .order_by("-pk")
            .values_list("evidence_digest", flat=True)
            .first()
        )
        digest = last or ""
    if not digest:
        return None
    version = context.cursor.policy_version if context.cursor else None
    facts: list[dict[str, Any]] = [{"label": "Digest", "text": digest, "code": True}]
    if slot := slot_of(context, digest):
        facts.append({"label": "Of the slot", "text": words.instant(slot, context.now)})
    if version:
        url = reverse("policy_version", args=[version.policy_id, version.number])
        facts.append({"label": "Policy", "text": f"{version.policy.name}, version {version.number}", "url": url})
    plan = [words.plural(len(context.arms), "variant"), words.plural(len(context.kpis), "KPI")]
    if context.experiment.expected_units_per_day:
        plan.append(f"{words.count(context.experiment.expected_units_per_day)} units a day expected")
    facts.append({"label": "Plan", "text": ", ".join(plan)})
    facts += [{"label": f"Planned for {o.metric}", "text": words.forecast(o)} for o in context.forecast]
    if context.cursor and context.cursor.judged_to:
        facts.append({"label": "Judged to", "text": words.instant(context.cursor.judged_to, context.now)})
        facts.append({"label": "Judged late", "text": words.plural(context.cursor.missed_slots, "slot")})
    stored = Evidence.objects.filter(experiment=context.experiment, digest=digest).exists()
    return {
        "facts": facts,
        "url": context.url("evidence", digest) if stored else "",
        "rows_url": context.url("rows_csv"),
        "replay_url": context.url("replay", digest) if stored else "",
        "replayed": "",
    }


def evidence_body(experiment: Experiment, digest: str) -> bytes | None:
    """The canonical JSON of one evidence, as it was hashed. Raises EvidenceRefused when it is not that any more."""
    found = Evidence.objects.filter(experiment=experiment, digest=digest).first()
    return None if found is None else found.read()


def replayed(experiment: Experiment, digest: str, *, now: datetime) -> dict[str, Any] | None:
    """Whether the evidence, computed anew, gives the same bytes; None when there is no such evidence."""
    try:
        body = evidence_body(experiment, digest)
        if body is None:
            return None
        again = evidence.replay(body)
    except evidence.EvidenceRefused as refusal:
        return {"same": False, "text": f"Not replayed: {refusal}"}
    same = again == body and evidence.digest(again) == digest
    text = (
        f"Replayed {now:%H:%M:%SZ}: same bytes"
        if same
        else f"Replayed {now:%H:%M:%SZ}: the bytes differ; tell an admin"
    )
    return {"same": same, "text": text}
