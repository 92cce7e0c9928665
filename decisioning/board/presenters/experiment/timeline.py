"""What happened to an experiment."""

from datetime import datetime
from typing import Any

from django.db.models import Q

from decisioning.board import words
from decisioning.board.presenters.experiment import feeds
from decisioning.board.presenters.experiment.context import ExperimentContext
from decisioning.ledger.models import Entry
from experiments.models import Experiment, Pause
from gates.engine.narration import rationale
from gates.models import Decision, PolicyVersion, Recommendation

LONGEST_TIMELINE = 60


def answered(a: Decision) -> str:
    of = f" of {a.recommendation.variant.key}" if a.recommendation.variant else ""
    return f"{a.recommendation.action.capitalize()}{of} {'accepted' if a.action == 'accept' else 'overridden'}"


def timeline(context: ExperimentContext) -> list[dict[str, Any]]:
    """Status, recommendations, answers, corrections, newest first."""
    experiment, now = context.experiment, context.now
    told: list[tuple[datetime, dict[str, str]]] = []
    if experiment.started_at:
        detail = "From here on rows are judged."
        told.append((experiment.started_at, {"icon": "play", "tone": "", "what": "Started", "detail": detail}))
    told.append((experiment.created_at, {"icon": "doc", "tone": "", "what": "Created", "detail": _made_by(experiment)}))
    for pause in Pause.objects.filter(experiment=experiment).order_by("paused_at"):
        told.append((pause.paused_at, {"icon": "s-paused", "tone": "hold", "what": "Paused", "detail": ""}))
        if pause.resumed_at:
            told.append((pause.resumed_at, {"icon": "play", "tone": "", "what": "Resumed", "detail": ""}))
    for recommendation in (
        Recommendation.objects.filter(experiment=experiment)
        .select_related("variant", "policy_version__policy")
        .order_by("-pk")[:LONGEST_TIMELINE]
    ):
        told += _proposal_events(context, recommendation)
    for a in (
        Decision.objects.filter(experiment=experiment)
        .select_related("recommendation__variant")
        .order_by("-pk")[:LONGEST_TIMELINE]
    ):
        what = f"{answered(a)} by {a.by}"
        detail = f"{'Decided ' + a.override_to + ' instead. ' if a.override_to else ''}{'“' + a.reason + '”' if a.reason else ''}"
        told.append(
            (
                a.at,
                {
                    "icon": "user",
                    "tone": words.TONES.get(a.override_to or a.recommendation.action, "hold"),
                    "what": what,
                    "detail": detail,
                },
            )
        )
    told += _policy_changes(experiment, context)
    corrections = Entry.objects.filter(
        experiment_id=experiment.pk, content_type__model="experimentkpi", action__gte=Entry.Action.UPDATE
    )
    for entry in corrections.order_by("-id")[:20]:
        rows = (entry.changes or {}).get("rows") or [None, None]
        what = "Rows removed" if entry.action == Entry.Action.DELETE else "Data corrected"
        told.append(
            (
                entry.timestamp,
                {
                    "icon": "edit",
                    "tone": "late",
                    "what": what,
                    "detail": f"{rows[1] or rows[0]} rows, by {entry.actor_name}.",
                },
            )
        )
    told += feeds.events(context)
    if experiment.ended_at:
        told.append(
            (
                experiment.ended_at,
                {
                    "icon": f"s-{experiment.status}",
                    "tone": words.TONES.get({"scaled": "scale", "deleted": "delete"}.get(experiment.status, ""), ""),
                    "what": words.STATUSES[experiment.status],
                    "detail": "The experiment ended.",
                },
            )
        )
    told.sort(key=lambda item: item[0], reverse=True)
    return [{"at": at.isoformat(), "when": words.instant(at, now), **line} for at, line in told[:LONGEST_TIMELINE]]


def _policy_changes(experiment: Experiment, context: ExperimentContext) -> list[tuple[datetime, dict[str, str]]]:
    """Versions of its policy that went live while it was open, and when another policy was chosen for it or its team."""
    version = context.cursor.policy_version if context.cursor else None
    began, ended = experiment.created_at, experiment.ended_at or context.now
    out = []
    if version:
        live = PolicyVersion.objects.filter(policy=version.policy_id, activated_at__range=(began, ended))
        for v in live.order_by("-activated_at")[:LONGEST_TIMELINE]:
            what = f"Policy {version.policy.name}, version {v.number} went live"
            out.append((v.activated_at, what, f"By {v.activated_by or 'the portal'}. It judges from the next slot on."))
    chosen = Entry.objects.filter(
        Q(experiment_id=experiment.pk) | Q(experiment_id=None, team_id=experiment.team_id),
        content_type__app_label="gates",
        content_type__model="policybinding",
        timestamp__range=(began, ended),
    )
    for entry in chosen.order_by("-id")[:LONGEST_TIMELINE]:
        whose = "the experiment" if entry.experiment_id else "its team"
        what = "Policy no longer set" if entry.action == Entry.Action.DELETE else "Policy chosen"
        out.append((entry.timestamp, what, f"For {whose}, by {entry.actor_name}."))
    return [(at, {"icon": "doc", "tone": "", "what": what, "detail": said}) for at, what, said in out if at]


def _made_by(experiment: Experiment) -> str:
    first = Entry.objects.filter(
        experiment_id=experiment.pk, content_type__model="experiment", action=Entry.Action.CREATE
    ).first()
    if first is None:
        return ""
    return (
        f"By {first.actor_name}."
        if first.actor_kind == "user"
        else f"With the key {first.actor_name}."
        if first.actor_kind == "key"
        else ""
    )


def _proposal_events(
    context: ExperimentContext, recommendation: Recommendation
) -> list[tuple[datetime, dict[str, str]]]:
    variant = f" {recommendation.variant.key}" if recommendation.variant else ""
    version = recommendation.policy_version
    why = next(iter(rationale(recommendation.told, context.reader)), "")
    detail = f"{why} Policy {version.policy.name}, version {version.number}."
    out = [
        (
            recommendation.proposed_at,
            {
                "icon": recommendation.action,
                "tone": words.TONES[recommendation.action],
                "what": f"{recommendation.action.capitalize()}{variant} proposed: {words.CODES.get(recommendation.code, recommendation.code).lower()}",
                "detail": detail,
            },
        )
    ]
    if recommendation.superseded_at:
        out.append(
            (
                recommendation.superseded_at,
                {
                    "icon": "edit",
                    "tone": "late",
                    "what": f"{recommendation.action.capitalize()}{variant} superseded",
                    "detail": words.SUPERSEDED.get(recommendation.superseded_because, "Why was not recorded then."),
                },
            )
        )
    if recommendation.withdrawn_at:
        out.append(
            (
                recommendation.withdrawn_at,
                {
                    "icon": "fail",
                    "tone": "hold",
                    "what": f"{recommendation.action.capitalize()}{variant} withdrawn",
                    "detail": "Something more urgent took its place.",
                },
            )
        )
    return out
