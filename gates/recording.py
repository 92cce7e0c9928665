"""What a fold leaves to write: evaluations that say something new with their evidence, proposals, and what each document shows.

`prepare_records` makes it all of many experiments at once, reading only; `save` writes it, evidence first, so that an evaluation never
names a digest that is not kept.
"""

import datetime as dt
import hashlib
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import batched
from typing import Any

import msgspec
from django.db import connection

from decisioning.ledger.models import OutboxMessage
from decisioning.ledger.outbox import publish_all
from experiments.models import Experiment, Variant
from gates.engine import evidence
from gates.engine.facts import SlotFacts, SlotSnapshot
from gates.engine.fold import FoldResult, fold
from gates.engine.plan import DAY, Plan, from_us, newest_slot, to_us
from gates.engine.reasons import blocking, reasons_in, subject_of
from gates.engine.results import Evaluation as Judged
from gates.engine.results import Recommendation as JudgedRecommendation
from gates.engine.series import Rows
from gates.loading import JudgingInput, policy_of, rows_of, series_of
from gates.models import Cursor, Decision, Evaluation, Recommendation
from gates.shown import evaluation_as_json, recommendation_as_json, shown
from telemetry import arrays

Superseded = Recommendation.Superseded
MOST_EVIDENCE = 5
"""How much is written by one statement."""
_STEP = msgspec.msgpack.Decoder(SlotFacts)

type Identity = tuple[str | None, str, str, int | None]
"""Of a proposal: (variant, action, code, slot)."""


@dataclass
class FoldOutcome:
    """One experiment folded: what it was read from and what came out.

    after: the slot it went on from, None when it was rebuilt. reprocessed: why facts behind the newest slot are other ones than before.
    """

    judging: JudgingInput
    folded: FoldResult
    after: int | None
    reprocessed: Superseded | None


@dataclass
class PendingRecords:
    """What one experiment's fold leaves to write, and what is on record of it.

    records: evaluations by slot, the last generation of each, those on record from the newest before the fold on and the new ones.
    waiting: recommendations nobody has answered yet. answered: people's answers. variants: by key. evaluations, details: new
    ones and the facts they quote. bodies: their evidence, compressed, by digest.
    """

    outcome: FoldOutcome
    records: dict[int, Evaluation] = field(default_factory=dict)
    waiting: list[Recommendation] = field(default_factory=list)
    answered: list[Decision] = field(default_factory=list)
    variants: dict[str, Variant] = field(default_factory=dict)
    evaluations: list[Evaluation] = field(default_factory=list)
    details: list[SlotSnapshot] = field(default_factory=list)
    bodies: dict[str, bytes] = field(default_factory=dict)
    proposed: list[Recommendation] = field(default_factory=list)

    @property
    def judging(self) -> JudgingInput:
        return self.outcome.judging


def prepare_records(outcomes: Sequence[FoldOutcome], now: dt.datetime) -> list[PendingRecords]:
    """Evaluations that say something new with their evidence, proposals, and what each document shows.

    By a constant number of statements, however many experiments there are.
    """
    batch = _pending_records([o for o in outcomes if o.folded.evaluated_slots and not _is_quiet(o)])
    for pending in batch:
        _choose(pending, now)
    steps = _steps_behind(batch)
    for pending in batch:
        _prove(pending, steps.get(pending.judging.experiment.pk, []))
    rows = _rows_behind_answers(batch)
    for pending in batch:
        _set_proposals(pending, rows, now)
    return batch


def _is_quiet(outcome: FoldOutcome) -> bool:
    """Whether a fold says nothing new but its newest figures, told here: then what is on record need not be read.

    So it is when one slot was judged at which nothing changed, nobody asked, nothing is proposed or answered, and what is on
    record is of the same day and about the same.
    """
    judging, folded = outcome.judging, outcome.folded
    cursor, newest = judging.cursor, folded.evaluated_slots[-1]
    known = cursor.on_record
    if (
        not known
        or known["open"]
        or known["fold"] != cursor.fold
        or known["day"] != newest.slot // DAY
        or outcome.reprocessed
        or newest.changed
        or len(folded.evaluated_slots) > 1
        or folded.proposals
        or judging.plan.answers
        or judging.plan.ended_at is not None
        or cursor.policy_version_id != known["version"]
        or (cursor.asked_slot is not None and cursor.asked_slot <= from_us(newest.slot))
        or "shown" in cursor.__dict__
    ):
        return False
    if known["basis"] == newest.basis:
        return True
    found = evaluation_as_json(newest.evaluation)
    if known["gist"] != digest_of_gist(found):
        return False
    gates = msgspec.json.encode(found["gates"])
    if (digest := _digest(gates)) != known["gates"]:
        judging.gates = gates
    cursor.on_record = {**known, "gates": digest, "basis": newest.basis}
    return True


def save_steps(outcomes: Sequence[FoldOutcome]) -> None:
    """Facts of reprocessed slots replace the old ones, where they differ: evidence is made of what the newest fold read."""
    teams = {o.judging.experiment.pk: o.judging.experiment.team_id for o in outcomes}
    told = {
        (o.judging.experiment.pk, from_us(s.slot)): msgspec.msgpack.encode(s) for o in outcomes for s in o.folded.steps
    }
    reprocessed = [
        (o.judging.experiment.pk, None if o.after is None else from_us(o.after))
        for o in outcomes
        if o.reprocessed or o.folded.rebuilt
    ]
    if reprocessed:
        with connection.cursor() as db:
            db.execute(
                """
                SELECT s.experiment_id, s.slot, s.body FROM unnest(%s::bigint[], %s::timestamptz[]) AS r(experiment_id, after)
                JOIN metadata.steps s ON s.experiment_id = r.experiment_id AND (r.after IS NULL OR s.slot > r.after)
                """,
                [list(column) for column in zip(*reprocessed, strict=True)],
            )
            stored = {(pk, slot): bytes(body) for pk, slot, body in db.fetchall()}
            if gone := [of for of, body in stored.items() if told.get(of) != body]:
                db.execute(
                    """
                    DELETE FROM metadata.steps s USING unnest(%s::bigint[], %s::timestamptz[]) AS g(experiment_id, slot)
                    WHERE s.experiment_id = g.experiment_id AND s.slot = g.slot
                    """,
                    [list(column) for column in zip(*gone, strict=True)],
                )
        told = {of: body for of, body in told.items() if stored.get(of) != body}
    if told:
        given = {
            "experiments": arrays.int8s([pk for pk, _ in told]),
            "teams": arrays.int8s([teams[pk] for pk, _ in told]),
            "slots": arrays.instants(arrays.microseconds([slot for _, slot in told])),
            "bodies": arrays.byteas(list(told.values())),
        }
        with connection.wrap_database_errors, arrays.cursor() as db:
            db.execute(
                """
                INSERT INTO metadata.steps (experiment_id, team_id, slot, body)
                SELECT * FROM unnest(%(experiments)s, %(teams)s, %(slots)s, %(bodies)s)
                """,
                given,
            )


def _pending_records(outcomes: Sequence[FoldOutcome]) -> list[PendingRecords]:
    """What is on record of each experiment, as far as its fold may add to it or take it back."""
    by_id = {o.judging.experiment.pk: PendingRecords(o) for o in outcomes}
    if not by_id:
        return []
    recorded = Evaluation.objects.raw(
        """
        SELECT e.* FROM unnest(%s::bigint[], %s::timestamptz[]) AS a(experiment_id, since)
        CROSS JOIN LATERAL (
          SELECT max(b.slot) AS slot FROM metadata.evaluations b WHERE b.experiment_id = a.experiment_id AND b.slot < a.since) AS newest
        JOIN metadata.evaluations e ON e.experiment_id = a.experiment_id AND e.slot >= coalesce(newest.slot, a.since)
        ORDER BY e.experiment_id, e.slot, e.fold
        """,
        [list(by_id), [from_us(o.folded.evaluated_slots[0].slot) for o in outcomes]],
    )
    for evaluation in recorded:
        by_id[evaluation.experiment_id].records[to_us(evaluation.slot)] = evaluation
    for row in Recommendation.objects.open([o.judging.experiment for o in outcomes]):
        by_id[row.experiment_id].waiting.append(row)
    if answered := [o.judging.experiment for o in outcomes if o.judging.plan.answers]:
        for decision in Decision.objects.filter(experiment__in=answered).select_related(
            "recommendation__variant", "recommendation__policy_version__policy"
        ):
            by_id[decision.experiment_id].answered.append(decision)
    if proposing := [o.judging.experiment for o in outcomes if o.folded.proposals]:
        for variant in Variant.objects.filter(experiment__in=proposing):
            by_id[variant.experiment_id].variants[variant.key] = variant
    return list(by_id.values())


def _choose(pending: PendingRecords, now: dt.datetime) -> None:
    """The evaluations that go on record."""
    cursor, folded = pending.judging.cursor, pending.outcome.folded
    newest = folded.evaluated_slots[-1].evaluation
    proposed = {r.proposed_slot for r in (newest.recommendation, *newest.variants)}
    newer = pending.records[max(pending.records)] if pending.records else None
    for evaluated in folded.evaluated_slots:
        held = pending.records.get(evaluated.slot)
        if held is not None and held.fold == cursor.fold:
            continue
        if evaluated.changed or evaluated.slot in proposed:
            wanted = held is None or differ(held.found, evaluation_as_json(evaluated.evaluation))
        else:
            wanted = evaluated.slot == newest.slot and _is_due(cursor, newest, newer)
        if wanted:
            newer = _evaluation(pending.judging, evaluated.evaluation, now)
            pending.evaluations.append(newer)
            pending.details.append(evaluated.detail)
    for evaluation in pending.evaluations:
        pending.records[to_us(evaluation.slot)] = evaluation
    if cursor.asked_slot is not None and cursor.asked_slot <= from_us(newest.slot):
        cursor.asked_slot = None


def _is_due(cursor: Cursor, judged: Judged, newer: Evaluation | None) -> bool:
    """Whether an unchanged newest slot goes on record.

    The first ever, when somebody asked, once a day for its new figures, and when what is on record lacks or blames something else.
    """
    slot = from_us(judged.slot)
    asked = cursor.asked_slot is not None and cursor.asked_slot <= slot
    if newer is None or asked or newer.slot.date() != slot.date():
        return True
    return differ(newer.found, evaluation_as_json(judged))


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two evaluations say something else: actions, codes, states, verdicts, and what the blockers are about.

    Blockers of one that was kept in sentences cannot be compared.
    """
    with_blockers = all("reasons" in found["recommendation"] for found in (one, other))
    return _gist(one, with_blockers=with_blockers) != _gist(other, with_blockers=with_blockers)


def _gist(found: Mapping[str, Any], *, with_blockers: bool) -> object:
    told = [found["recommendation"], *found["variants"]]
    return (
        [(r["action"], r["code"], r["variant"], r["state"]) for r in told],
        [[subject_of(reason) for reason in blocking(r["reasons"])] for r in told] if with_blockers else [],
        [(g["gate"], g["variant"], g["verdict"]) for g in found["gates"]],
    )


def digest_of_gist(found: Mapping[str, Any]) -> str:
    return _digest(msgspec.json.encode(_gist(found, with_blockers=True)))


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=12).hexdigest()


def _evaluation(judging: JudgingInput, judged: Judged, now: dt.datetime) -> Evaluation:
    return Evaluation(
        experiment=judging.experiment,
        team_id=judging.experiment.team_id,
        slot=from_us(judged.slot),
        fold=judging.cursor.fold,
        computed_at=now,
        action=judged.recommendation.action,
        code=judged.recommendation.code,
        found=evaluation_as_json(judged),
        policy_version=judging.version,
    )


def _steps_behind(batch: Sequence[PendingRecords]) -> dict[int, list[bytes]]:
    """The facts up to the state that a fold with new evaluations went on from, by experiment, oldest first."""
    onward = {
        pending.judging.experiment.pk: from_us(pending.outcome.after)
        for pending in batch
        if pending.evaluations and pending.outcome.after is not None
    }
    if not onward:
        return {}
    with connection.cursor() as db:
        db.execute(
            """
            SELECT s.experiment_id, array_agg(s.body ORDER BY s.slot)
            FROM unnest(%s::bigint[], %s::timestamptz[]) AS a(experiment_id, until)
            JOIN metadata.steps s ON s.experiment_id = a.experiment_id AND s.slot <= a.until GROUP BY 1
            """,
            [list(onward), list(onward.values())],
        )
        return dict(db.fetchall())


def _prove(pending: PendingRecords, stored: Sequence[bytes]) -> None:
    """The evidence of each new evaluation."""
    if not pending.evaluations:
        return
    judging, folded = pending.judging, pending.outcome.folded
    steps = b",".join([evidence.step_bytes(_STEP.decode(body)) for body in stored])
    onward = deque(folded.steps)
    judged = {evaluated.slot: evaluated for evaluated in folded.evaluated_slots}
    for evaluation, detail in zip(pending.evaluations, pending.details, strict=True):
        newer = []
        while onward and onward[0].slot <= detail.slot:
            newer.append(onward.popleft())
        steps = b",".join([part for part in (steps, *map(evidence.step_bytes, newer)) if part])
        body = evidence.bytes_with(steps, judging.policy, judging.plan, detail, judged[detail.slot].evaluation)
        evaluation.evidence_digest = evidence.digest(body)
        pending.bodies[evaluation.evidence_digest] = zlib.compress(body)


def save(batch: Sequence[PendingRecords], now: dt.datetime) -> None:
    """Evidence first: an evaluation never names a digest that is not kept. One that is on record already is left as it is."""
    _save_evidence(batch, now)
    Evaluation.objects.bulk_create([e for pending in batch for e in pending.evaluations], ignore_conflicts=True)
    if ended := [row for pending in batch for row in pending.waiting if row.superseded_at or row.withdrawn_at]:
        Recommendation.objects.bulk_update(ended, ("superseded_at", "superseded_because", "withdrawn_at"))
    Recommendation.objects.bulk_create([row for pending in batch for row in pending.proposed])
    publish_all([_message(pending.judging.experiment, row, now) for pending in batch for row in pending.proposed])


def _save_evidence(batch: Sequence[PendingRecords], now: dt.datetime) -> None:
    """A few at a time, in binary: of a long history there is much."""
    for pending in batch:
        of = pending.judging.experiment
        for some in batched(pending.bodies.items(), MOST_EVIDENCE):
            given = {
                "experiment": of.pk,
                "team": of.team_id,
                "now": now,
                "digests": arrays.texts([digest.encode() for digest, _ in some]),
                "bodies": arrays.byteas([body for _, body in some]),
            }
            with connection.wrap_database_errors, arrays.cursor() as db:
                db.execute(_SAVE_EVIDENCE, given)


_SAVE_EVIDENCE = """
INSERT INTO metadata.evidence (experiment_id, team_id, digest, body, created_at)
SELECT %(experiment)s::bigint, %(team)s::bigint, e.digest, e.body, %(now)s::timestamptz
FROM unnest(%(digests)s, %(bodies)s) AS e(digest, body) ON CONFLICT DO NOTHING
"""


def _set_proposals(pending: PendingRecords, rows: Mapping[int, Rows], now: dt.datetime) -> None:
    """What people are asked from now on, and what the document says."""
    judging = pending.judging
    if (read := rows.get(judging.experiment.pk)) is not None:
        _revise(pending, read)
    over = is_over(judging.plan)
    open_ = [] if over else _reconcile(pending, now)  # who has decided is not asked again
    found = evaluation_as_json(pending.outcome.folded.evaluated_slots[-1].evaluation)
    newest = pending.records[max(pending.records)]
    judging.cursor.shown = shown(judging, found, newest, open_, is_over=over)
    judging.cursor.on_record = None
    if not over and "reasons" in newest.found["recommendation"]:
        judging.cursor.on_record = {
            "day": to_us(newest.slot) // DAY,
            "fold": newest.fold,
            "version": newest.policy_version_id,
            "gist": digest_of_gist(newest.found),
            "open": len(open_),
            "basis": pending.outcome.folded.evaluated_slots[-1].basis,
            "gates": _digest(msgspec.json.encode(found["gates"])),
        }


def is_over(plan: Plan) -> bool:
    """Whether an answer has ended the experiment."""
    return plan.ended_at is not None and any(answer.at == plan.ended_at for answer in plan.answers)


def _reconcile(pending: PendingRecords, now: dt.datetime) -> list[Recommendation]:
    """Make the open recommendations those the fold has latched: new ones are proposed, others superseded or withdrawn."""
    outcome = pending.outcome
    newest = outcome.folded.evaluated_slots[-1].evaluation
    wanted = {identity_of_judged(r): r for r in proposals_of(outcome.judging.plan, newest, outcome.folded)}
    kept = []
    for row in pending.waiting:
        identity = identity_of(row)
        if wanted.pop(identity, None) is not None:
            kept.append(row)
            continue
        newer = Superseded.NEWER_PROPOSAL if any(variant == identity[0] for variant, *_ in wanted) else None
        if why := outcome.reprocessed or newer:
            row.superseded_at, row.superseded_because = now, why
        else:
            row.withdrawn_at = now
    answered = {identity_of(decision.recommendation): decision.recommendation for decision in pending.answered}
    for proposed, proposal in wanted.items():
        if proposed in answered:  # judged again as of a slot that could not know the answer yet
            kept.append(answered[proposed])
            continue
        at = pending.records.get(proposal.proposed_slot or newest.slot) or pending.records[max(pending.records)]
        row = _proposed(pending, proposal, at, now)
        pending.proposed.append(row)
        kept.append(row)
    return kept


def identity_of_judged(r: JudgedRecommendation) -> Identity:
    return r.variant, r.action, r.code, r.proposed_slot


def identity_of(row: Recommendation) -> Identity:
    return row.variant.key if row.variant else None, row.action, row.code, to_us(row.slot)


def proposals_of(plan: Plan, newest: Judged, folded: FoldResult) -> list[JudgedRecommendation]:
    """What people are asked: the experiment's proposal and, unless that is to scale or delete, deletes of single variants."""
    whole = [newest.recommendation] if newest.recommendation.proposed_slot is not None else []
    if len(plan.judged_variants) == 1 or (whole and whole[0].action != "review"):
        return whole
    alone = {p.variant for p in folded.proposals if p.stands_alone}
    return whole + [r for r in newest.variants if r.variant in alone and r.variant not in {w.variant for w in whole}]


def _proposed(
    pending: PendingRecords, proposal: JudgedRecommendation, at: Evaluation, now: dt.datetime
) -> Recommendation:
    """A proposal in the words of the slot it was made at."""
    judging = pending.judging
    told = next(
        (
            r
            for r in (at.found["recommendation"], *at.found["variants"])
            if (r["action"], r["variant"]) == (proposal.action, proposal.variant)
        ),
        recommendation_as_json(proposal),
    )
    return Recommendation(
        experiment=judging.experiment,
        team_id=judging.experiment.team_id,
        variant=pending.variants[proposal.variant] if proposal.variant else None,
        action=proposal.action,
        code=proposal.code,
        slot=from_us(proposal.proposed_slot or to_us(at.slot)),
        proposed_at=now,
        first_stable_at=None if proposal.first_stable_at is None else from_us(proposal.first_stable_at),
        knowable_at=None if proposal.knowable_at is None else from_us(proposal.knowable_at),
        reasons=reasons_in(told),
        evidence_digest=at.evidence_digest,
        policy_version=judging.version,
        fold=judging.cursor.fold,
    )


def _message(experiment: Experiment, row: Recommendation, now: dt.datetime) -> OutboxMessage:
    return OutboxMessage(
        team_id=experiment.team_id,
        experiment_id=experiment.pk,
        type="decision.proposed",
        data={
            "experiment": experiment.key,
            "variant": row.variant.key if row.variant else None,
            "action": row.action,
            "code": row.code,
            "reasons": row.reasons,
            "evidence_digest": row.evidence_digest,
        },
        created_at=now,
    )


def _rows_behind_answers(batch: Sequence[PendingRecords]) -> dict[int, Rows]:
    """All rows of reprocessed experiments that somebody has answered. What people answered under earlier rules stays as it is."""
    return rows_of(
        {
            pending.judging.experiment.pk: dict.fromkeys(
                series_of(pending.judging.plan), pending.judging.plan.started_at
            )
            for pending in batch
            if pending.answered and pending.outcome.reprocessed not in (None, Superseded.RULES_MENDED)
        }
    )


def _revise(pending: PendingRecords, rows: Rows) -> None:
    """Set beside each answer what would be advised on the rows stored now, when that is another action than was answered.

    The answer stays: people are told, nothing is undone.
    """
    judging = pending.judging
    since = min((ts for _, ts, _ in judging.changed), default=0) if pending.outcome.after is not None else 0
    for decision in pending.answered:
        of, name = decision.recommendation, str(decision.pk)
        slot = newest_slot(decision.at - dt.timedelta(microseconds=1), judging.policy.slot_s)
        if to_us(slot) < since:
            continue
        would = fold(policy_of(of.policy_version), judging.plan, rows, to=to_us(slot)).evaluated_slots[-1].evaluation
        told = next(
            (r for r in (would.recommendation, *would.variants) if of.variant is None or r.variant == of.variant.key),
            would.recommendation,
        )
        action = "hold" if told.state == "suspended" else told.action
        judging.cursor.revisions.pop(name, None)
        if action != of.action:
            judging.cursor.revisions[name] = {"action": action, "code": told.code}
