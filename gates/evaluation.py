"""Between PostgreSQL and the pure fold: what is due is locked, read, folded and written in one transaction.

The cursor's row lock is the lease: a second scheduler skips it, a crash releases it, and nothing is judged twice.
"""

import datetime as dt
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from django.db import connection
from django.db.models import QuerySet

from decisioning.ledger.models import Heartbeat
from decisioning.ledger.outbox import tell
from experiments.models import Experiment, TargetKpi, Variant
from gates import evidence
from gates import facts as slot_facts
from gates import plan as facts
from gates.fold import Folded, State, fold
from gates.models import Cursor, Decision, Evaluation, Evidence, PolicyVersion, Recommendation, Step
from gates.plan import Plan, from_us, rfc3339, to_us
from gates.policy import Policy, parse
from gates.rules import Evaluation as Judged
from gates.rules import Recommendation as JudgedRecommendation
from gates.series import Rows, Series, SeriesKey

_CHUNK = 50
_JUDGED = (Experiment.Status.RUNNING,)
_CLOSED = (Experiment.Status.SCALED, Experiment.Status.DELETED, Experiment.Status.STOPPED)


@dataclass
class Done:
    """What one call dealt with; `more` when others may be waiting."""

    experiments: int = 0
    evaluations: int = 0
    newest_slot: dt.datetime | None = None
    more: bool = False


@dataclass
class Judging:
    """One experiment with everything its fold reads."""

    experiment: Experiment
    cursor: Cursor
    version: PolicyVersion
    policy: Policy
    plan: Plan
    changed: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # (metric, from_ts, from_received_at) in microseconds


def newest_slot(now: dt.datetime, slot_s: int) -> dt.datetime:
    """The slot that `now` falls on or after, on the UTC grid.

    >>> newest_slot(dt.datetime(2026, 11, 24, 6, 17, tzinfo=dt.UTC), 300).isoformat()
    '2026-11-24T06:15:00+00:00'
    """
    width = slot_s * facts.SECOND
    return from_us(to_us(now) // width * width)


def evaluate_some(*, now: dt.datetime, chunk: int = _CHUNK) -> Done:
    """Judge up to `chunk` experiments that are due, in the caller's transaction."""
    ids = _claim(now, chunk)
    if not ids:
        return Done()
    changed = _take_changes(ids)
    done = Done(experiments=len(ids), more=len(ids) == chunk)
    for judging in load(ids):
        judging.changed = changed.get(judging.experiment.pk, [])
        count, slot = _judge(judging, now)
        done.evaluations += count
        done.newest_slot = max(filter(None, (done.newest_slot, slot)), default=None)
    return done


def beat(*, now: dt.datetime) -> None:
    """Tell the watchdog that a tick has finished: the newest slot by which nothing is left to judge."""
    oldest_due = Cursor.objects.filter(due_at__lte=now).order_by("due_at").values_list("due_at", flat=True).first()
    slot = newest_slot(oldest_due or now, 300)
    Heartbeat.objects.update_or_create(name="gates.tick", defaults={"at": now, "slot": slot})


def load(ids: Sequence[int]) -> list[Judging]:
    """Experiments with cursor, policy in force and plan, in the order of their ids."""
    experiments = {e.pk: e for e in Experiment.objects.select_related("team").filter(pk__in=ids)}
    cursors = {c.pk: c for c in Cursor.objects.filter(pk__in=ids)}
    versions = versions_in_force(ids)
    plans = plans_of(experiments.values())
    return [
        Judging(
            experiments[i],
            cursors[i],
            versions[i],
            parse(versions[i].body, name=versions[i].policy.name, version=versions[i].number),
            plans[i],
        )
        for i in sorted(experiments)
        if i in versions
    ]


def versions_in_force(ids: Sequence[int]) -> dict[int, PolicyVersion]:
    """By experiment: the newest activated version of its own policy, else its team's default, else the shipped `default`."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT e.id, v.id FROM metadata.experiments e
            CROSS JOIN LATERAL (
              SELECT policy_id FROM (
                SELECT policy_id, 1 AS rank FROM metadata.policy_bindings b WHERE b.experiment_id = e.id
                UNION ALL SELECT policy_id, 2 FROM metadata.policy_bindings b WHERE b.team_id = e.team_id AND b.experiment_id IS NULL
                UNION ALL SELECT id, 3 FROM metadata.policies p WHERE p.team_id IS NULL AND p.name = 'default') AS choices
              ORDER BY rank LIMIT 1) AS chosen
            CROSS JOIN LATERAL (
              SELECT id FROM metadata.policy_versions w WHERE w.policy_id = chosen.policy_id AND w.activated_at IS NOT NULL
              ORDER BY activated_at DESC, number DESC LIMIT 1) AS v
            WHERE e.id = ANY (%s)
            """,
            [list(ids)],
        )
        chosen = dict(cursor.fetchall())
    versions = PolicyVersion.objects.select_related("policy").in_bulk(set(chosen.values()))
    return {experiment: versions[version] for experiment, version in chosen.items()}


def plans_of(experiments: Iterable[Experiment]) -> dict[int, Plan]:
    """The plan of each experiment as the engine reads it; a constant number of queries. Drafts have the plan they would start with."""
    by_id = {e.pk: e for e in experiments}
    kpis: dict[int, list[TargetKpi]] = defaultdict(list)
    for kpi in TargetKpi.objects.filter(experiment__in=by_id).select_related("metric").order_by("position"):
        kpis[kpi.experiment_id].append(kpi)
    variants: dict[int, list[facts.Variant]] = defaultdict(list)
    for key, weight, control, dropped_at, position, owner in _rows_of(
        "variant", by_id, "key weight control dropped_at position experiment_id"
    ):
        variants[owner].append(facts.Variant(key, weight, control, _us(dropped_at), position))
    pauses: dict[int, list[tuple[int, int | None]]] = defaultdict(list)
    for paused_at, resumed_at, owner in _rows_of("pause", by_id, "paused_at resumed_at experiment_id"):
        pauses[owner].append((to_us(paused_at), _us(resumed_at)))
    answers: dict[int, list[facts.Answer]] = defaultdict(list)
    for decision in (
        Decision.objects.filter(experiment__in=by_id).select_related("recommendation__variant").order_by("at")
    ):
        of = decision.recommendation
        answers[decision.experiment_id].append(
            facts.Answer(
                at=to_us(decision.at),
                action="accept" if decision.action == Decision.Action.ACCEPT else "override",
                of=(of.action, of.code),  # type: ignore[arg-type]
                variant=of.variant.key if of.variant else None,
                override_to=decision.override_to or None,  # type: ignore[arg-type]
            )
        )
    plans = {
        pk: Plan(
            started_at=to_us(e.started_at or e.created_at),
            created_at=to_us(e.created_at),
            variants=tuple(sorted(variants[pk], key=lambda v: v.position)),
            kpis=tuple(_kpi(k) for k in kpis[pk]),
            ended_at=_us(e.ended_at),
            pauses=tuple(sorted(pauses[pk])),
            answers=tuple(answers[pk]),
            expected_units_per_day=e.expected_units_per_day,
        )
        for pk, e in by_id.items()
    }
    return {pk: Plan.from_json(plan.to_json()) for pk, plan in plans.items()}  # texts from the database become the literals


def rows_of(wanted: Mapping[int, Mapping[SeriesKey, int]]) -> dict[int, Rows]:
    """Rows newer than the given instant (microseconds), by experiment and series, in one query."""
    asked = [
        (e, metric, variant, from_us(after))
        for e, series in wanted.items()
        for (metric, variant), after in series.items()
    ]
    found: dict[int, dict[SeriesKey, Series]] = {e: {} for e in wanted}
    if not asked:
        return dict(found)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT experiment_id, metric, variant, array_agg(us), array_agg(value), array_agg(n), array_agg(variance), array_agg(received),
                   array_agg(denominator_value), array_agg(denominator_variance), array_agg(covariance)
            FROM (
              SELECT k.experiment_id, k.metric, k.variant, (extract(epoch FROM k.ts) * 1000000)::bigint AS us, k.value, k.n, k.variance,
                     (extract(epoch FROM k.first_received_at) * 1000000)::bigint AS received,
                     k.denominator_value, k.denominator_variance, k.covariance
              FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::timestamptz[]) AS a(experiment_id, metric, variant, after)
              JOIN metrics.experiment_kpis k ON k.experiment_id = a.experiment_id AND k.metric = a.metric AND k.variant = a.variant
                AND k.ts > a.after
              ORDER BY k.experiment_id, k.metric, k.variant, k.ts) AS sorted
            GROUP BY 1, 2, 3
            """,
            [list(column) for column in zip(*asked, strict=True)],
        )
        for experiment, metric, variant, ts, value, n, variance, received, dv, dvar, cov in cursor.fetchall():
            found[experiment][metric, variant] = Series(
                ts=ts, value=value, n=n, variance=variance, first_received_at=received,
                denominator_value=dv, denominator_variance=dvar, covariance=cov,
            )  # fmt: skip
    return dict(found)


def _us(instant: dt.datetime | None) -> int | None:
    return None if instant is None else to_us(instant)


def _rows_of(model: str, by_id: Mapping[int, Experiment], columns: str) -> Iterable[tuple[Any, ...]]:
    related = Experiment._meta.get_field(f"{model}s").related_model
    return related.objects.filter(experiment__in=by_id).values_list(*columns.split())  # type: ignore[union-attr,return-value]


def _kpi(kpi: TargetKpi) -> facts.Kpi:
    metric, given = kpi.metric, {}
    if kpi.minimum_effect is not None:
        given["minimum_effect"] = kpi.minimum_effect
    if kpi.max_harm is not None:
        given["max_harm"] = kpi.max_harm
    has_target = kpi.target_at_least is not None or kpi.target_at_most is not None
    return facts.Kpi(
        metric=metric.key,
        role=kpi.role,  # type: ignore[arg-type]
        kind=metric.kind,  # type: ignore[arg-type]
        direction=metric.direction,  # type: ignore[arg-type]
        temporality=metric.temporality,  # type: ignore[arg-type]
        expected_every_s=metric.expected_every_s,
        freshness_target_s=metric.freshness_target_s,
        counts_assignment=metric.counts_assignment,
        target=facts.Target(kpi.target_at_least, kpi.target_at_most) if has_target else None,
        baseline=facts.Baseline(kpi.baseline_mean, kpi.baseline_stddev)
        if kpi.baseline_mean is not None and kpi.baseline_stddev
        else None,
        unit=metric.unit,
        name=metric.name,
        **given,
    )


def as_of(experiment: Experiment, slot: dt.datetime) -> dict[str, Any]:
    """What the gates say of a past slot on the rows stored now, in the document's words; nothing is written."""
    judging = load([experiment.pk])[0]
    return _found(_rebuilt(judging, slot).evaluations[-1])


def differences(experiment: Experiment) -> list[str]:
    """What of the stored state and facts a rebuild from the rows does not give; there must be nothing."""
    judging = load([experiment.pk])[0]
    if judging.cursor.state is None or judging.cursor.judged_to is None:
        return []
    stored = State.from_bytes(zlib.decompress(judging.cursor.state))
    rebuilt = _rebuilt(judging, from_us(stored.slot))
    found = []
    if stored.body != rebuilt.state.body:
        found.append(f"{experiment.key}: the state of {rfc3339(stored.slot)} is not what the rows give.")
    kept = {step.slot: step for step in steps_until(experiment, stored.slot)}
    given = {step.slot: step for step in rebuilt.steps}
    found += [
        f"{experiment.key}: the facts of {rfc3339(slot)} are not what the rows give."
        for slot in sorted(kept.keys() | given.keys())
        if kept.get(slot) != given.get(slot)
    ]
    return found


def _rebuilt(judging: Judging, slot: dt.datetime) -> Folded:
    rows = rows_of({judging.experiment.pk: dict.fromkeys(_series(judging.plan), judging.plan.started_at)})
    return fold(judging.policy, judging.plan, rows[judging.experiment.pk], to=to_us(slot))


# One tick -----------------------------------------------------------------------------------------------------------------


def _claim(now: dt.datetime, chunk: int) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT experiment_id FROM metadata.cursors
            WHERE due_at <= %s OR experiment_id IN (SELECT experiment_id FROM metrics.kpi_changes WHERE job = 'fold')
            ORDER BY due_at NULLS LAST LIMIT %s FOR UPDATE SKIP LOCKED
            """,
            [now, chunk],
        )
        return [pk for (pk,) in cursor.fetchall()]


def _take_changes(ids: Sequence[int]) -> dict[int, list[tuple[str, int, int]]]:
    """Notes of changed rows, taken before the rows are read: what commits in between is read now and noted again later."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            DELETE FROM metrics.kpi_changes WHERE job = 'fold' AND experiment_id = ANY (%s)
            RETURNING experiment_id, metric, from_ts, from_received_at
            """,
            [list(ids)],
        )
        changes: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
        for experiment, metric, from_ts, received in cursor.fetchall():
            changes[experiment].append((metric, to_us(from_ts), to_us(received)))
    return changes


def _judge(judging: Judging, now: dt.datetime) -> tuple[int, dt.datetime | None]:
    """Fold one experiment up to the newest slot and write what was found: (evaluations written, newest slot)."""
    experiment, cursor, policy, plan = judging.experiment, judging.cursor, judging.policy, judging.plan
    if experiment.status == Experiment.Status.DRAFT:
        cursor.due_at = None
        cursor.save(update_fields=["due_at"])
        return 0, None
    to = newest_slot(now, policy.slot_s)
    state, rewound = _state(judging)
    wanted = state.needs_rows_after() if state else dict.fromkeys(_series(plan), plan.started_at)
    rows = rows_of({experiment.pk: wanted})[experiment.pk]
    folded = fold(policy, plan, rows, to=to_us(to), state=state)
    if rewound:
        cursor.fold += 1
    if cursor.judged_to is not None and not rewound and experiment.status == Experiment.Status.RUNNING:
        cursor.missed_slots += max(0, (to - cursor.judged_to) // dt.timedelta(seconds=policy.slot_s) - 1)
    _keep_steps(experiment, folded.steps, after=state.slot if state else None)
    _keep_steps(experiment, folded.steps, after=state.slot if state else None)
    written = _record(judging, folded, retold=rewound, now=now)
    cursor.judged_to = to
    cursor.due_at = _next_due(experiment, policy, to)
    cursor.policy_version = judging.version
    cursor.state = zlib.compress(folded.state.to_bytes(), 1)
    cursor.save()
    return written, to


def _state(judging: Judging) -> tuple[State | None, bool]:
    """The state to go on from, and whether the fold is retold: rows or plan changed behind what was judged."""
    if judging.cursor.state is None:
        return None, False
    stored = State.from_bytes(zlib.decompress(judging.cursor.state))
    if not stored.fits(judging.policy, judging.plan):
        return None, True
    state: State | None = stored
    for metric, from_ts, received in judging.changed:
        judged_to = state.judged_to(metric) if state else None
        if state is None or judged_to is None:
            continue
        if from_ts <= judged_to:
            state = state.before(metric, from_ts)
        if state is not None and received <= state.slot:  # it moves the freshness of slots that are judged
            state = state.at_most(received - 1)
    return state, state is not stored


def _keep_steps(experiment: Experiment, steps: Sequence[slot_facts.Step], *, after: int | None) -> None:
    """Facts of a retold stretch replace the old ones: evidence is made of what the newest fold read."""
    old = Step.objects.filter(experiment=experiment)
    (old if after is None else old.filter(slot__gt=from_us(after))).delete()
    Step.objects.bulk_create(
        [
            Step(
                experiment=experiment,
                team_id=experiment.team_id,
                slot=from_us(step.slot),
                body=msgspec.msgpack.encode(step),
            )
            for step in steps
        ]
    )


def steps_until(experiment: Experiment, slot: int) -> list[slot_facts.Step]:
    """The facts of every slot up to one, oldest first."""
    bodies = (
        Step.objects.filter(experiment=experiment, slot__lte=from_us(slot))
        .order_by("slot")
        .values_list("body", flat=True)
    )
    return [msgspec.msgpack.decode(body, type=slot_facts.Step) for body in bodies]


def _series(plan: Plan) -> list[SeriesKey]:
    return [(kpi.metric, variant.key) for kpi in plan.kpis for variant in plan.variants]


def _next_due(experiment: Experiment, policy: Policy, judged: dt.datetime) -> dt.datetime | None:
    """Running: the next slot. Ended: the last look, then nothing. Paused: nothing until it runs again."""
    if experiment.status == Experiment.Status.RUNNING:
        return judged + dt.timedelta(seconds=policy.slot_s)
    if experiment.ended_at is None:
        return None
    last = experiment.ended_at + dt.timedelta(seconds=policy.closed_after_s + policy.slot_s)
    return last if judged < last - dt.timedelta(seconds=policy.slot_s) else None


# What is written ----------------------------------------------------------------------------------------------------------


def _record(judging: Judging, folded: Folded, *, retold: bool, now: dt.datetime) -> int:
    """Evaluations that say something new with their evidence, proposals, and what the document shows. Returns how many."""
    experiment, cursor = judging.experiment, judging.cursor
    if not folded.evaluations:
        return 0
    newest = folded.evaluations[-1]
    recorded = _recorded(experiment, folded.evaluations[0].slot)
    proposed = {r.proposed_slot for r in (newest.recommendation, *newest.variants)}
    written: list[Evaluation] = []
    for judged, detail in zip(folded.evaluations, folded.details, strict=True):
        if judged.slot in proposed or _says_something_new(judged, recorded, cursor, is_newest=judged is newest):
            written.append(_evaluation(judging, judged, detail, now))
    _save(experiment, written, now)
    by_slot = {to_us(e.slot): e for e in (*recorded, *written)}
    open_ = _reconcile(judging, newest, folded, by_slot, retold=retold, now=now)
    _show(judging, newest, by_slot[max(by_slot)], open_)
    if cursor.asked_slot is not None and cursor.asked_slot <= from_us(newest.slot):
        cursor.asked_slot = None
    return len(written)


def _evaluation(judging: Judging, judged: Judged, detail: slot_facts.Detail, now: dt.datetime) -> Evaluation:
    steps = steps_until(judging.experiment, judged.slot)
    body = evidence.canonical_bytes(evidence.assemble(judging.policy, judging.plan, steps, detail, judged))
    evaluation = Evaluation(
        experiment=judging.experiment,
        team_id=judging.experiment.team_id,
        slot=from_us(judged.slot),
        fold=judging.cursor.fold,
        computed_at=now,
        action=judged.recommendation.action,
        code=judged.recommendation.code,
        found=_found(judged),
        evidence_digest=evidence.digest(body),
        policy_version=judging.version,
    )
    evaluation.body = body  # type: ignore[attr-defined]
    return evaluation


def _save(experiment: Experiment, written: Sequence[Evaluation], now: dt.datetime) -> None:
    """Evidence first: an evaluation never names a digest that is not kept. One that is on record already is left as it is."""
    bodies = {e.evidence_digest: e.body for e in written}  # type: ignore[attr-defined]
    Evidence.objects.bulk_create(
        [
            Evidence(
                experiment=experiment,
                team_id=experiment.team_id,
                digest=digest,
                body=zlib.compress(body),
                created_at=now,
            )
            for digest, body in bodies.items()
        ],
        ignore_conflicts=True,
    )
    Evaluation.objects.bulk_create(written, ignore_conflicts=True)


def _recorded(experiment: Experiment, since_us: int) -> list[Evaluation]:
    """Evaluations on record from the newest before `since_us` on, the last retelling of each slot, oldest first."""
    since = from_us(since_us)
    before = Evaluation.objects.filter(experiment=experiment, slot__lt=since).order_by("-slot", "-fold")[:1]
    after = Evaluation.objects.filter(experiment=experiment, slot__gte=since).order_by("slot", "fold")
    return [*before, *{e.slot: e for e in after}.values()]


def _says_something_new(judged: Judged, recorded: Sequence[Evaluation], cursor: Cursor, *, is_newest: bool) -> bool:
    """Changes that are not on record, what somebody asked for, and for a hold once a day its new figures."""
    slot = from_us(judged.slot)
    at_slot = next((e for e in recorded if e.slot == slot), None)
    if at_slot is not None and at_slot.fold == cursor.fold:
        return False
    if judged.changed:
        return at_slot is None or _gist(at_slot.found) != _gist(_found(judged))
    if not is_newest:
        return False
    last = recorded[-1] if recorded else None
    asked = cursor.asked_slot is not None and cursor.asked_slot <= slot
    return last is None or asked or last.slot.date() != slot.date()


def _gist(found: Mapping[str, Any]) -> object:
    """What makes two evaluations differ for a reader: actions, codes, states and verdicts."""
    told = [found["recommendation"], *found["variants"]]
    return (
        [(r["action"], r["code"], r["variant"], r["state"]) for r in told],
        [(g["gate"], g["variant"], g["verdict"]) for g in found["gates"]],
    )


def _found(judged: Judged) -> dict[str, Any]:
    """An evaluation in the document's words: RFC 3339 times, plain lists and dicts."""
    return {
        "recommendation": _told(judged.recommendation),
        "variants": [_told(r) for r in judged.variants],
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
                "reason": g.reason,
                "limits": g.extra,
            }
            for g in judged.gates
        ],
    }


def _told(r: JudgedRecommendation) -> dict[str, Any]:
    return {
        "action": r.action,
        "code": r.code,
        "variant": r.variant,
        "state": r.state,
        "first_stable_at": None if r.first_stable_at is None else rfc3339(r.first_stable_at),
        "proposed_slot": None if r.proposed_slot is None else rfc3339(r.proposed_slot),
        "rationale": list(r.rationale),
        "blockers": list(r.blockers),
    }


def _reconcile(
    judging: Judging,
    newest: Judged,
    folded: Folded,
    evaluations: Mapping[int, Evaluation],
    *,
    retold: bool,
    now: dt.datetime,
) -> list[Recommendation]:
    """Make the open recommendations those the fold has latched: new ones are proposed, others superseded or withdrawn."""
    variants = {v.key: v for v in judging.experiment.variants.all()}
    wanted = {(r.variant, r.action, r.code, r.proposed_slot): r for r in _asked(judging.plan, newest, folded)}
    kept = []
    for row in open_recommendations(judging.experiment):
        identity = (row.variant.key if row.variant else None, row.action, row.code, to_us(row.slot))
        if wanted.pop(identity, None) is not None:
            kept.append(row)
            continue
        replaced = retold or any(variant == identity[0] for variant, *_ in wanted)
        ended = "superseded_at" if replaced else "withdrawn_at"
        setattr(row, ended, now)
        row.save(update_fields=[ended])
    for proposal in wanted.values():
        at = evaluations.get(proposal.proposed_slot or newest.slot) or evaluations[max(evaluations)]
        kept.append(_propose(judging, proposal, variants.get(proposal.variant or ""), at, now))
    return kept


def open_recommendations(experiment: Experiment) -> QuerySet[Recommendation]:
    """What nobody has answered and nothing has taken back."""
    return Recommendation.objects.select_related("variant", "policy_version__policy").filter(
        experiment=experiment, answered_at__isnull=True, superseded_at__isnull=True, withdrawn_at__isnull=True
    )


def _asked(plan: Plan, newest: Judged, folded: Folded) -> list[JudgedRecommendation]:
    """What people are asked: the experiment's proposal and, unless that is to delete, deletes of single variants."""
    whole = [newest.recommendation] if newest.recommendation.proposed_slot is not None else []
    if len(plan.subjects) == 1 or (whole and whole[0].action != "review"):
        return whole
    alone = {p.variant for p in folded.proposals if p.stands_alone}
    return whole + [r for r in newest.variants if r.variant in alone and r.variant not in {w.variant for w in whole}]


def _propose(
    judging: Judging, proposal: JudgedRecommendation, variant: Variant | None, at: Evaluation, now: dt.datetime
) -> Recommendation:
    """Write a proposal down in the words of the slot it was made at, and tell whoever listens."""
    experiment = judging.experiment
    told = next(
        r
        for r in (at.found["recommendation"], *at.found["variants"])
        if (r["action"], r["variant"]) == (proposal.action, proposal.variant)
    )
    row = Recommendation.objects.create(
        experiment=experiment,
        variant=variant,
        action=proposal.action,
        code=proposal.code,
        slot=at.slot,
        proposed_at=now,
        first_stable_at=None if proposal.first_stable_at is None else from_us(proposal.first_stable_at),
        knowable_at=None if proposal.knowable_at is None else from_us(proposal.knowable_at),
        rationale=told["rationale"],
        blockers=told["blockers"],
        evidence_digest=at.evidence_digest,
        policy_version=judging.version,
        fold=judging.cursor.fold,
    )
    tell(
        team_id=experiment.team_id,
        experiment_id=experiment.pk,
        type="decision.proposed",
        data={
            "experiment": experiment.key,
            "variant": proposal.variant,
            "action": row.action,
            "code": row.code,
            "rationale": row.rationale,
            "evidence_digest": row.evidence_digest,
        },
        now=now,
    )
    return row


def _show(judging: Judging, newest: Judged, on_record: Evaluation, open_: Sequence[Recommendation]) -> None:
    """What the document says: gates as of the newest slot, recommendations as they are on record.

    The words of a recommendation never run ahead of its evidence, so that each of its figures can be proved.
    """
    experiment, cursor = judging.experiment, judging.cursor
    found = _found(newest)
    answered = (cursor.shown or {}).get("recommendation")
    ended_by_answer = experiment.decisions.filter(at=experiment.ended_at).exists() if experiment.ended_at else False
    if ended_by_answer and answered:
        recommendation, variants = answered, (cursor.shown or {})["variants"]
    else:
        recommendation = _shown(judging, found["recommendation"], on_record.found["recommendation"], on_record, open_)
        recorded = {r["variant"]: r for r in on_record.found["variants"]}
        variants = [_shown(judging, r, recorded.get(r["variant"], r), on_record, open_) for r in found["variants"]]
    cursor.shown = {"gates": found["gates"], "recommendation": recommendation, "variants": variants}


def _shown(
    judging: Judging,
    now: Mapping[str, Any],
    recorded: Mapping[str, Any],
    on_record: Evaluation,
    open_: Sequence[Recommendation],
) -> dict[str, Any]:
    version, policy = judging.version, judging.version.policy
    row = next(
        (
            r
            for r in open_
            if r.action == now["action"]
            and r.code == now["code"]
            and now["variant"] in (None, r.variant.key if r.variant else None)
        ),
        None,
    )
    if row is not None:
        words = {
            "rationale": row.rationale,
            "blockers": now["blockers"],
            "first_stable_at": _rfc3339(row.first_stable_at),
            "proposed_at": _rfc3339(row.proposed_at),
            "evidence_digest": row.evidence_digest,
        }
        version = row.policy_version if row.policy_version_id != version.pk else version
        policy = version.policy
    else:
        words = {
            "rationale": recorded["rationale"],
            "blockers": recorded["blockers"],
            "first_stable_at": recorded["first_stable_at"],
            "proposed_at": None,
            "evidence_digest": on_record.evidence_digest,
        }
    return {
        "action": now["action"],
        "code": now["code"],
        "variant": now["variant"],
        "state": now["state"],
        **words,
        "policy": {"name": policy.name, "version": version.number},
    }


def _rfc3339(instant: dt.datetime | None) -> str | None:
    return None if instant is None else rfc3339(to_us(instant))
