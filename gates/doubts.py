"""Doubt in a KPI's rows, set aside by a person who knows that they are right. The only writer of `TargetKpi.trusted`."""

import datetime as dt

from decisioning.access.principal import Principal
from decisioning.literals import rfc3339
from decisioning.refusals import Fault, Refused
from experiments.models import Experiment, TargetKpi
from gates.models import Cursor

MOST_REASON = 500
_OPEN = (Experiment.Status.DRAFT, Experiment.Status.RUNNING, Experiment.Status.PAUSED)


class DoubtRefused(Refused):
    """Nothing was changed."""

    usual_status = 409


def set_aside(experiment: Experiment, metric: str, *, reason: str, by: Principal, now: dt.datetime) -> TargetKpi:
    """From now on the rows of a goal or guardrail count whatever they look like; every rationale says so, with the reason.

    Raises DoubtRefused: 403 `person_required`; 404 `unknown_kpi`; 409 `ended`, `set_aside_already`; 422 `missing_field`, `invalid_text`.
    """
    reason = " ".join(reason.split())
    if not reason:
        said = "reason is empty. Say how you know that the rows are right; one sentence is enough."
        raise DoubtRefused.of(Fault("/reason", "missing_field", said))
    if len(reason) > MOST_REASON:
        said = f"reason has {len(reason)} characters, at most {MOST_REASON} fit."
        raise DoubtRefused.of(Fault("/reason", "invalid_text", said))
    kpi, now = _kpi(experiment, metric, by=by, now=now)
    if kpi.trusted and kpi.trusted[-1]["until"] is None:
        newest = kpi.trusted[-1]
        said = f"Doubt in {metric} is set aside since {newest['since']}, by {newest['by']}: {newest['reason'].rstrip('.')}."
        raise DoubtRefused("set_aside_already", said)
    kpi.trusted = [*kpi.trusted, {"since": rfc3339(now), "until": None, "reason": reason, "by": by.owner}]
    kpi.save(update_fields=["trusted"])
    return kpi


def restore(experiment: Experiment, metric: str, *, by: Principal, now: dt.datetime) -> TargetKpi:
    """From now on the rows are doubted again. Raises DoubtRefused: as `set_aside`, and 409 `not_set_aside`."""
    kpi, now = _kpi(experiment, metric, by=by, now=now)
    if not kpi.trusted or kpi.trusted[-1]["until"] is not None:
        raise DoubtRefused("not_set_aside", f"Doubt in {metric} is not set aside.")
    kpi.trusted = [*kpi.trusted[:-1], {**kpi.trusted[-1], "until": rfc3339(now)}]
    kpi.save(update_fields=["trusted"])
    return kpi


def is_set_aside(kpi: TargetKpi) -> bool:
    return bool(kpi.trusted) and kpi.trusted[-1]["until"] is None


def _kpi(experiment: Experiment, metric: str, *, by: Principal, now: dt.datetime) -> tuple[TargetKpi, dt.datetime]:
    if by.agent:
        raise DoubtRefused(
            "person_required", "Agents may say that rows are right, people decide it. Ask a reviewer.", status=403
        )
    experiment = Experiment.objects.select_for_update(no_key=True).get(
        pk=experiment.pk
    )  # before the cursor, as an answer does
    if experiment.status not in _OPEN:
        raise DoubtRefused("ended", f"{experiment.key} is {experiment.status}: its rows are not judged any more.")
    kpi = TargetKpi.objects.filter(
        experiment=experiment, metric__key=metric, role__in=[TargetKpi.Role.GOAL, TargetKpi.Role.GUARDRAIL]
    ).first()
    if kpi is None:
        raise DoubtRefused("unknown_kpi", f"{experiment.key} has no goal or guardrail {metric!r}.", status=404)
    judged_to = (
        Cursor.objects.select_for_update().filter(experiment=experiment).values_list("judged_to", flat=True).first()
    )
    if judged_to is not None:
        now = max(now, judged_to + dt.timedelta(microseconds=1))  # a slot that is judged already did not know of it
    return kpi, now
