"""People's answers: the only writer of decisions. Answer, status, audit and outbox are one transaction."""

import datetime as dt

from django.db import connection

from decisioning.access.principal import Principal
from decisioning.ledger.outbox import publish
from decisioning.refusals import Fault, Refused
from experiments.lifecycle import transition
from experiments.models import Experiment, Variant
from gates import wording
from gates.engine.compiled import compile_plan
from gates.engine.evidence import EvidenceRefused
from gates.engine.plan import to_us
from gates.engine.state import FRESH
from gates.engine.verdicts import freshness
from gates.loading import JudgingInput, Unjudgeable, load
from gates.models import Cursor, Decision, Evidence, Recommendation
from telemetry.freshness import WATERMARK_SQL

OVERRIDES = {
    "scale": Experiment.Status.SCALED,
    "delete": Experiment.Status.DELETED,
    "stop": Experiment.Status.STOPPED,
    "hold": None,
}
"""What an override may ask for, and the status it leads to; `hold` lets the experiment run on."""
_ACCEPTED = {"scale": Experiment.Status.SCALED, "delete": Experiment.Status.DELETED}


class DecisionRefused(Refused):
    """Nothing was answered: what happened, and what to do next."""

    usual_status = 409


def record_decision(
    experiment: Experiment,
    *,
    digest: str,
    action: str,
    by: Principal,
    now: dt.datetime,
    override_to: str = "",
    reason: str = "",
) -> Decision:
    """One person's answer to the recommendation whose evidence they saw.

    digest: the evidence digest that was shown. Of two people who answer at once the second waits, then is told.
    Raises DecisionRefused: 422 `missing_field`, `invalid`; 403 `person_required`; 409 `nothing_to_decide`,
    `already_decided`, `recommendation_replaced`, `recommendation_suspended`.
    """
    _check_complete(action, override_to, reason)
    if by.agent:
        raise DecisionRefused(
            "person_required", "Agents propose, people decide. Ask a person with the approver role.", status=403
        )
    Experiment.objects.select_for_update(no_key=True).get(pk=experiment.pk)  # before the cursor, as a transition does
    cursor = Cursor.objects.select_for_update().get(experiment=experiment)
    if cursor.judged_to is not None:
        now = max(
            now, cursor.judged_to + dt.timedelta(microseconds=1)
        )  # a slot that is judged already did not know of it
    recommendation = _answerable(experiment, digest, cursor)
    scales = (override_to or recommendation.action) == "scale"
    if scales or action == Decision.Action.ACCEPT:
        _check_stands(recommendation, cursor, now)
    if action == Decision.Action.ACCEPT:
        _check_proved(recommendation)
    if scales:
        _check_fresh(experiment, recommendation, now)
    decision = Decision.objects.create(
        experiment=experiment,
        recommendation=recommendation,
        action=action,
        override_to=override_to if action == "override" else "",
        reason=reason,
        by=by.owner,
        by_user_id=by.person_id,
        at=now,
        evidence_digest=digest,
    )
    recommendation.answered_at = now
    recommendation.save(update_fields=["answered_at"])
    status = _apply(
        experiment, recommendation, override_to if action == "override" else None, by=by, now=now, reason=reason
    )
    _show_answer(cursor, recommendation)
    publish(
        team_id=experiment.team_id,
        experiment_id=experiment.pk,
        type="decision.answered",
        data={
            "experiment": experiment.key,
            "variant": recommendation.variant.key if recommendation.variant else None,
            "recommended": recommendation.action,
            "action": action,
            "override_to": decision.override_to or None,
            "reason": reason,
            "by": decision.by,
            "status": status,
            "evidence_digest": digest,
        },
        now=now,
    )
    return decision


def _check_complete(action: str, override_to: str, reason: str) -> None:
    if action not in Decision.Action.values:
        raise DecisionRefused.of(Fault("/action", "invalid", f"action is {action!r}; it must be accept or override."))
    if action == "accept":
        if override_to:
            raise DecisionRefused.of(Fault("/override_to", "invalid", "override_to goes with action override only."))
        return
    if override_to not in OVERRIDES:
        code = "invalid" if override_to else "missing_field"
        message = f"override_to is {override_to!r}; it must be one of {', '.join(OVERRIDES)}."
        raise DecisionRefused.of(Fault("/override_to", code, message))
    if not reason.strip():
        raise DecisionRefused.of(
            Fault("/reason", "missing_field", "An override needs a reason: say why the evidence does not settle it.")
        )


def _answerable(experiment: Experiment, digest: str, cursor: Cursor) -> Recommendation:
    """The open recommendation with this digest; else the refusal that says what became of it."""
    open_ = Recommendation.objects.open([experiment])
    found = open_.filter(evidence_digest=digest).order_by("variant_id").first()
    if found is not None:
        return found
    if Decision.objects.filter(experiment=experiment, evidence_digest=digest).exists():
        earlier = Decision.objects.filter(experiment=experiment, evidence_digest=digest).latest("at")
        raise DecisionRefused(
            "already_decided",
            f"{earlier.by} answered this recommendation at {earlier.at:%Y-%m-%d %H:%MZ}: {earlier.override_to or earlier.action}. "
            "Reload the experiment to see what became of it.",
        )
    newest = open_.order_by("-id").first()
    if newest is not None:
        raise DecisionRefused(
            "recommendation_replaced",
            f"The evidence you saw was replaced: the newest recommendation is {newest.action}, proposed at "
            f"{newest.proposed_at:%Y-%m-%d %H:%MZ}. Reload the experiment and decide on the newer one.",
        )
    shown = ((cursor.shown or {}).get("recommendation") or {}).get("evidence_digest")
    if shown == digest or shown is None:
        raise DecisionRefused(
            "nothing_to_decide",
            "Nothing is proposed: the recommendation is to hold. To end the experiment, stop it with a transition.",
        )
    raise DecisionRefused(
        "recommendation_replaced",
        "The evidence you saw was replaced, and nothing is proposed now. Reload the experiment.",
    )


def _check_stands(recommendation: Recommendation, cursor: Cursor, now: dt.datetime) -> None:
    """What is suspended as of the newest slot is not accepted, and scales nothing: its rows died, were restated, or break judging."""
    if cursor.unjudgeable:
        raise DecisionRefused(
            "recommendation_suspended",
            f"The proposal is suspended: {cursor.unjudgeable['reason']} Decide when it stands again.",
        )
    shown = (cursor.shown or {}).get("recommendation") or {}
    mine = [
        r
        for r in (shown, *(cursor.shown or {}).get("variants", []))
        if r.get("evidence_digest") == recommendation.evidence_digest
    ]
    if any(r.get("state") == "suspended" for r in mine):
        blockers = " ".join(dict.fromkeys(b for r in mine for b in wording.sentences(r, now)[1]))
        raise DecisionRefused(
            "recommendation_suspended", f"The proposal is suspended: {blockers} Decide when it stands again."
        )


def _check_proved(recommendation: Recommendation) -> None:
    """Who accepts answers for what the evidence says: it has to be there, as its digest names it. An override rests on its own reason."""
    digest = recommendation.evidence_digest
    try:
        Evidence.objects.get(experiment=recommendation.experiment_id, digest=digest).read()
    except (Evidence.DoesNotExist, EvidenceRefused) as error:
        said = "is not kept any more" if isinstance(error, Evidence.DoesNotExist) else "is not what was written"
        raise DecisionRefused(
            "recommendation_suspended",
            f"The proposal is suspended: its evidence {digest} {said}, so nobody can show what it rests on. Restore it from a backup, "
            "or override with a reason of your own.",
        ) from error


def _check_fresh(experiment: Experiment, recommendation: Recommendation, now: dt.datetime) -> None:
    """Nothing is scaled on telemetry that has died or changed since the newest slot, should the tick itself be late."""
    try:
        (judging,) = load([experiment.pk])
    except Unjudgeable as error:
        raise DecisionRefused("recommendation_suspended", f"It cannot be judged now. {error}") from error
    if _correction_waits(judging, recommendation):
        raise DecisionRefused(
            "recommendation_suspended",
            "Rows that were judged have changed a moment ago and are not judged anew yet. Try again in a few seconds.",
        )
    if stale := _stale(judging, now):
        raise DecisionRefused(
            "recommendation_suspended",
            f"The newest rows of {', '.join(stale)} are too old. Decide when fresh rows have arrived.",
        )


def _correction_waits(judging: JudgingInput, recommendation: Recommendation) -> bool:
    """Whether rows up to the newest slot changed and no tick has looked at them yet: they may be such as cannot be judged."""
    newest = max(filter(None, (recommendation.slot, judging.cursor.judged_to)))
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT EXISTS (SELECT FROM metrics.kpi_changes WHERE job = 'fold' AND experiment_id = %s
                           AND from_ts <= %s - make_interval(secs => %s))
            """,
            [judging.experiment.pk, newest, judging.policy.closed_after_s],
        )
        return bool((cursor.fetchone() or (False,))[0])


_WATERMARKS = f"""
SELECT m.key, v.key, {WATERMARK_SQL.format(experiment="v.experiment_id", metric="m.key", variant="v.key", temporality="m.temporality", sparse="t.sparse")}
FROM metadata.target_kpis t JOIN metadata.metrics m ON m.id = t.metric_id JOIN metadata.variants v ON v.experiment_id = t.experiment_id
WHERE t.experiment_id = %s
"""  # noqa: S608 - constants


def stale_series(experiment: Experiment, now: dt.datetime) -> list[str]:
    """Series ("metric of variant") that the gates read and that are missing or older than their target allows, as the gates would say
    now. Raises Unjudgeable."""
    (judging,) = load([experiment.pk])
    return _stale(judging, now)


def _stale(judging: JudgingInput, now: dt.datetime) -> list[str]:
    compiled, at = compile_plan(judging.policy, judging.plan), to_us(now)
    with connection.cursor() as cursor:
        cursor.execute(_WATERMARKS, [judging.experiment.pk])
        watermarks = {(metric, variant): ts and to_us(ts) for metric, variant, ts in cursor.fetchall()}
    arms = compiled.arms(at)
    return sorted(
        f"{metric} of {variant}"
        for metric, variant in compiled.series
        if variant in arms
        and freshness(compiled, f"{metric}/{variant}", watermarks.get((metric, variant)), at) != FRESH
    )


def _apply(
    experiment: Experiment,
    recommendation: Recommendation,
    override_to: str | None,
    *,
    by: Principal,
    now: dt.datetime,
    reason: str,
) -> str:
    """Do what was decided; returns the experiment's status afterwards."""
    goes_to = OVERRIDES[override_to] if override_to else _ACCEPTED.get(recommendation.action)
    one_variant_only = (
        not override_to and recommendation.action == "delete" and _others_run_on(experiment, recommendation)
    )
    if one_variant_only and recommendation.variant:
        recommendation.variant.dropped_at = now
        recommendation.variant.save(update_fields=["dropped_at"])
    elif goes_to and experiment.status != goes_to:
        transition(experiment, goes_to, by=by, now=now, reason=reason)
        Recommendation.objects.open([experiment]).update(
            superseded_at=now, superseded_because=Recommendation.Superseded.ANOTHER_ANSWER
        )
    return experiment.status


def _others_run_on(experiment: Experiment, recommendation: Recommendation) -> bool:
    """Whether treatments would be left after this variant's delete; a delete of the experiment names no variant."""
    if recommendation.variant is None:
        return False
    left = Variant.objects.filter(experiment=experiment, control=False, dropped_at__isnull=True)
    return left.exclude(key=recommendation.variant.key).exists()


def _show_answer(cursor: Cursor, recommendation: Recommendation) -> None:
    """The document says `answered` at once, not only from the next slot on."""
    shown = cursor.shown or {}
    for part in (shown.get("recommendation"), *shown.get("variants", [])):
        if (
            part
            and part.get("evidence_digest") == recommendation.evidence_digest
            and part.get("action") == recommendation.action
        ):
            part["state"] = "answered"
    cursor.shown = shown
    cursor.save(update_fields=["shown"])
