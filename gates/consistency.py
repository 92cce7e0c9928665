"""Whether what is stored is what the rows give: rebuilt from the start, compared, and shown as of any slot. Nothing is written."""

import datetime as dt
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from django.db.models import Q, QuerySet
from msgspec.structs import replace

from experiments.models import Experiment
from gates.engine.checkpoint import CheckpointOutdated
from gates.engine.compiled import REVISION
from gates.engine.facts import SlotFacts
from gates.engine.fold import FoldResult, fold
from gates.engine.plan import from_us, rfc3339, to_us
from gates.engine.series import Rows
from gates.loading import JudgingInput, checkpoint_in, load, policy_of, rows_of, series_of
from gates.models import Cursor, Decision, Evaluation, PolicyVersion, Recommendation, Step
from gates.recording import Identity, differ, identity_of, identity_of_judged, is_over, proposals_of
from gates.shown import evaluation_as_json, recommendation_as_json

_STEP = msgspec.msgpack.Decoder(SlotFacts)


def as_of(experiment: Experiment, slot: dt.datetime, version: PolicyVersion) -> dict[str, Any]:
    """What the gates say of a past slot on the rows stored now, by a version of a policy, in the document's words; nothing is written."""
    judging = load([experiment.pk])[0]
    judging.policy = policy_of(version)
    return evaluation_as_json(_rebuilt(judging, slot).evaluated_slots[-1].evaluation)


def differences(experiment: Experiment) -> list[str]:
    """Where the stored state, facts and evaluations are not what a rebuild from the rows gives; there must be nothing.

    What earlier rules judged is not compared: it stays as it is, or is judged anew at the next slot.
    """
    if why := Cursor.objects.filter(pk=experiment.pk).values_list("unjudgeable__reason", flat=True).first():
        return [f"{experiment.key}: {why}"]
    judging = load([experiment.pk])[0]
    if judging.cursor.state is None or judging.cursor.rules != REVISION:
        return []
    if version := judging.cursor.policy_version:  # what is stored was judged by it, whatever is in force now
        judging.policy = policy_of(version)
    slot, stored = to_us(judging.cursor.judged_to) if judging.cursor.judged_to else judging.plan.started_at, None
    with suppress(CheckpointOutdated):
        stored = checkpoint_in(judging.cursor.state)
        slot = stored.slot
    rebuilt = _rebuilt(judging, from_us(slot))
    found = []
    # Nobody goes on from a state of another version, policy or plan; what it led to is compared all the same.
    if stored and stored.fits(judging.policy, judging.plan) and stored.body != rebuilt.checkpoint.body:
        found.append(f"{experiment.key}: the state of {rfc3339(slot)} is not what the rows give.")
    kept = {step.slot: step for step in steps_until(experiment, slot)}
    given = {step.slot: step for step in rebuilt.steps}
    found += [
        f"{experiment.key}: the facts of {rfc3339(slot)} are not what the rows give."
        for slot in sorted(kept.keys() | given.keys())
        if not _same_facts(kept.get(slot), given.get(slot))
    ]
    newest_first = Evaluation.objects.filter(experiment=experiment).order_by("slot", "-fold")
    on_record = {to_us(e.slot): e.found for e in newest_first.distinct("slot")}
    found += [
        f"{experiment.key}: what the rows give at {rfc3339(evaluated.slot)} is not on record."
        for evaluated in rebuilt.evaluated_slots
        if evaluated.changed
        and (
            evaluated.slot not in on_record
            or differ(on_record[evaluated.slot], evaluation_as_json(evaluated.evaluation))
        )
    ]
    return found


def _same_facts(kept: SlotFacts | None, given: SlotFacts | None) -> bool:
    """Whether two facts of a slot are the same; what was unreadable about a row was once kept in words, which are not compared."""
    looks = kept.looks.values() if kept else ()
    if kept is None or given is None or not any(isinstance(why, str) for k in looks for why in k.unreadable.values()):
        return kept == given
    return _without_words(kept) == _without_words(given)


def _without_words(facts: SlotFacts) -> SlotFacts:
    looks = {m: replace(look, unreadable=dict.fromkeys(look.unreadable, "")) for m, look in facts.looks.items()}
    return replace(facts, looks=looks)


@dataclass(frozen=True)
class Change:
    """What the present rules make of one experiment that was judged by earlier ones, as of the newest slot that was judged.

    before, after: {action, code, state} of the experiment (variant None) and of each variant, where they differ.
    superseded: open proposals that will not be made any more; proposed: those that will be made. Each {variant, action, code, slot}.
    """

    experiment: str
    before: list[dict[str, Any]]
    after: list[dict[str, Any]]
    superseded: list[dict[str, Any]]
    proposed: list[dict[str, Any]]


def to_be_mended() -> QuerySet[Experiment]:
    """Experiments that go on and were judged by earlier rules: these are judged anew, once."""
    going_on = Q(status__in=(Experiment.Status.RUNNING, Experiment.Status.PAUSED)) | Q(cursor__due_at__isnull=False)
    judged = Experiment.objects.exclude(status=Experiment.Status.DRAFT).filter(
        going_on, cursor__judged_to__isnull=False
    )
    return judged.exclude(cursor__rules=REVISION).order_by("id")


def change(experiment: Experiment) -> Change | None:
    """What changes for an experiment once it is judged by the present rules; None when nothing does. Nothing is written."""
    judging = load([experiment.pk])[0]
    cursor = judging.cursor
    if cursor.judged_to is None:
        return None
    folded = _rebuilt(judging, cursor.judged_to)
    if not folded.evaluated_slots:
        return None
    newest = folded.evaluated_slots[-1].evaluation
    shown = cursor.shown or {"recommendation": None, "variants": []}
    said = [shown["recommendation"], *shown["variants"]]
    before = {None if not i else told["variant"]: _brief(told) for i, told in enumerate(said) if told}
    told = [newest.recommendation, *newest.variants]
    after = {None if not i else r.variant: _brief(recommendation_as_json(r)) for i, r in enumerate(told)}
    differ = [variant for variant in after if variant in before and before[variant] != after[variant]]
    over = is_over(judging.plan)
    asked = {} if over else {identity_of_judged(r): r for r in proposals_of(judging.plan, newest, folded)}
    waiting = {identity_of(row) for row in Recommendation.objects.open([experiment])}
    decisions = Decision.objects.filter(experiment=experiment).select_related("recommendation__variant")
    answered = {identity_of(decision.recommendation) for decision in decisions}
    superseded, proposed = waiting - asked.keys(), asked.keys() - waiting - answered
    if not differ and not superseded and not proposed:
        return None
    return Change(
        experiment.key,
        [{"variant": variant, **before[variant]} for variant in differ],
        [{"variant": variant, **after[variant]} for variant in differ],
        [_proposal(identity) for identity in sorted(superseded, key=str)],
        [_proposal(identity) for identity in sorted(proposed, key=str)],
    )


def _brief(told: Mapping[str, Any]) -> dict[str, Any]:
    state = "proposed" if told["state"] == "answered" else told["state"]
    return {"action": told["action"], "code": told["code"], "state": state}


def _proposal(identity: Identity) -> dict[str, Any]:
    variant, action, code, slot = identity
    return {"variant": variant, "action": action, "code": code, "slot": None if slot is None else rfc3339(slot)}


def _rebuilt(judging: JudgingInput, slot: dt.datetime) -> FoldResult:
    return fold(judging.policy, judging.plan, _all_rows(judging), to=to_us(slot))


def _all_rows(judging: JudgingInput) -> Rows:
    pk = judging.experiment.pk
    return rows_of({pk: dict.fromkeys(series_of(judging.plan), judging.plan.started_at)})[pk]


def steps_until(experiment: Experiment, slot: int) -> list[SlotFacts]:
    """The facts of every slot up to one, oldest first."""
    steps = Step.objects.filter(experiment=experiment, slot__lte=from_us(slot)).order_by("slot")
    return [_STEP.decode(body) for body in steps.values_list("body", flat=True)]
