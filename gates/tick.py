"""The tick: what is due is claimed, read, folded, locked and written, a chunk of experiments in one transaction.

The lock of its row in `metadata.claims` is the claim: a second scheduler skips it, a crash releases it, and nothing is judged twice.
People, who write to the cursor's row, meet no lock until all is made and only its writing is left; where they were faster, what was made is thrown
away. One experiment that cannot be judged, whatever step it fails at, never holds up the others: what it proposes is suspended
(`gates.suspension`), and it is tried again at its next slot, from its rows.
"""

import datetime as dt
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Q, QuerySet
from msgspec.structs import replace

from decisioning.ledger.models import Heartbeat, OutboxMessage
from decisioning.ledger.outbox import publish_all
from experiments.models import Experiment, Variant
from gates.engine import evidence
from gates.engine.checkpoint import Checkpoint, CheckpointOutdated
from gates.engine.compiled import REVISION, compile_plan
from gates.engine.facts import SlotFacts, SlotSnapshot
from gates.engine.fold import FoldResult, at_start, fold, unchanged_until
from gates.engine.plan import SECOND, Plan, from_us, rfc3339, to_us
from gates.engine.policy import Policy
from gates.engine.reasons import blocking, reasons_in, subject_of
from gates.engine.results import Evaluation as Judged
from gates.engine.results import Recommendation as JudgedRecommendation
from gates.engine.series import Rows
from gates.loading import JudgingInput, Unjudgeable, load, policy_of, rows_of, series_of
from gates.models import Cursor, Decision, Evaluation, Evidence, PolicyVersion, Recommendation, Step
from gates.suspension import cause_of, lifted, suspend

CHUNK, FIRST_CHUNK, LONG_CHUNK, LONG_ROUND, PASSED_AT_ONCE = 50, 10, 2, 10, 5_000
RETRY_S = 300
"""What could not be judged is tried again at the next slot of this width, and when its rows change."""
_LIMITS = "54"
"""The class of SQLSTATE that says that a value or a statement is too large: the one OperationalError that an experiment causes."""
Superseded = Recommendation.Superseded
_STEP = msgspec.msgpack.Decoder(SlotFacts)

type Identity = tuple[str | None, str, str, int | None]
"""Of a proposal: (variant, action, code, slot)."""


@dataclass
class TickReport:
    """What was dealt with. `failed`: (experiment key, why) that could not be judged.

    passed: experiments for which nothing could have changed, moved on without a fold. overtaken: experiments judged for
    nothing, since somebody answered or changed the plan meanwhile; alone, which takes a moment, they hardly ever are.
    put_off: histories to tell anew beyond the few that fit in a chunk; they come in the next round.
    """

    experiments: int = 0
    passed: int = 0
    evaluations: int = 0
    newest_slot: dt.datetime | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    overtaken: list[int] = field(default_factory=list)
    put_off: int = 0


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


def newest_slot(now: dt.datetime, slot_s: int) -> dt.datetime:
    """The slot that `now` falls on or after, on the UTC grid.

    >>> newest_slot(dt.datetime(2026, 11, 24, 6, 17, tzinfo=dt.UTC), 300).isoformat()
    '2026-11-24T06:15:00+00:00'
    """
    width = slot_s * SECOND
    return from_us(to_us(now) // width * width)


def evaluate_due(*, now: dt.datetime) -> TickReport:
    """Judge all that is due, in the caller's transaction."""
    report = TickReport()
    while (passed := skip_unchanged(now=now)).passed:
        report.passed, report.newest_slot = report.passed + passed.passed, passed.newest_slot
    more = True
    while more:
        chunks, more = due(now=now)
        before, put_off = report.experiments, report.put_off
        for ids in chunks:
            evaluate(ids, now=now, report=report)
        more = (more or report.put_off > put_off) and report.experiments > before
    return report


def skip_unchanged(*, now: dt.datetime) -> TickReport:
    """Move on experiments that are due, of which nothing can have changed, by one statement: not more than it holds only for a moment.

    Its state stays where it is: a fold gives the same from there. Who holds a cursor meanwhile keeps it.
    """
    with connection.cursor() as db:
        db.execute(
            """
            WITH quiet AS MATERIALIZED (
              SELECT c.experiment_id, c.due_at - c.judged_to AS width,
                     floor(extract(epoch FROM %(now)s - c.judged_to) / extract(epoch FROM c.due_at - c.judged_to))::int AS slots
              FROM metadata.cursors c
              WHERE c.due_at <= %(now)s AND c.due_at <= c.quiet_to AND c.asked_slot IS NULL AND c.state IS NOT NULL
                AND c.rules = %(rules)s
                AND c.quiet_to + (c.due_at - c.judged_to) > %(now)s
                AND NOT EXISTS (SELECT FROM metrics.kpi_changes h WHERE h.job = 'fold' AND h.experiment_id = c.experiment_id)
              LIMIT %(most)s FOR UPDATE OF c SKIP LOCKED),
            moved AS (
              UPDATE metadata.cursors c SET judged_to = c.judged_to + q.width * q.slots, due_at = c.due_at + q.width * q.slots,
                missed_slots = c.missed_slots + q.slots - 1
              FROM quiet q WHERE q.experiment_id = c.experiment_id RETURNING c.judged_to)
            SELECT count(*), max(judged_to) FROM moved
            """,
            {"now": now, "rules": REVISION, "most": PASSED_AT_ONCE},
        )
        passed, newest = db.fetchone() or (0, None)
        return TickReport(passed=passed, newest_slot=newest)


def due(*, now: dt.datetime) -> tuple[list[list[int]], bool]:
    """What there is to judge, in chunks for a transaction each, and whether there was more; nothing is locked yet.

    First those whose rows changed, since somebody waits for them. Histories to tell from the start, or from far back, come last,
    a few a chunk and some of them a time, because new rows wait for their turn.
    """
    with connection.cursor() as db:
        db.execute(
            """
            WITH changed AS MATERIALIZED (
              SELECT experiment_id, min(from_ts) AS from_ts FROM metrics.kpi_changes WHERE job = 'fold' GROUP BY 1)
            SELECT c.experiment_id,
                   c.state IS NULL OR c.rules <> %s OR coalesce(h.from_ts < c.judged_to - interval '1 day', false) AS is_long
            FROM metadata.cursors c LEFT JOIN changed h ON h.experiment_id = c.experiment_id
            WHERE c.due_at <= %s OR h.experiment_id IS NOT NULL
            ORDER BY h.experiment_id IS NULL, c.due_at NULLS LAST
            """,
            [REVISION, now],
        )
        found = db.fetchall()
    short = [pk for pk, is_long in found if not is_long]
    long = [pk for pk, is_long in found if is_long]
    told = long[:LONG_ROUND]
    chunks = [short[i : i + CHUNK] for i in range(0, len(short), CHUNK)]
    return chunks + [told[i : i + LONG_CHUNK] for i in range(0, len(told), LONG_CHUNK)], len(long) > len(told)


def next_size(size: int, seconds: float) -> int:
    """How many to judge in a transaction, when `size` have just taken `seconds`: about a second's worth, never much more than before.

    A chunk that a busy machine cannot finish within the task's time would be begun anew for ever.

    >>> next_size(10, 0.1), next_size(40, 0.5), next_size(40, 10), next_size(1, 60)
    (20, 50, 4, 1)
    """
    return max(1, min(int(size / max(seconds, 0.001)), 2 * size, CHUNK))


def evaluate(ids: Sequence[int], *, now: dt.datetime, report: TickReport | None = None) -> TickReport:
    """Judge those of a chunk that are still due and that no other worker is at, in the caller's transaction.

    Nothing is locked while it is read and folded. Who is overtaken meanwhile is still due.
    """
    report = report or TickReport()
    claimed = _claim(ids, now)
    if not claimed:
        return report
    notes, prepared = _changes(claimed), _PreparedChunk()
    broken = _each(list(claimed), lambda some: _prepare(some, notes, now, prepared))
    whole = {pk: claim for pk, claim in claimed.items() if pk not in broken}
    broken |= _each(list(whole), lambda some: _write(some, whole, notes, prepared, now, report))
    for pk, error in broken.items():
        _suspend(pk, claimed[pk], error, notes[pk], now, report)
    return report


def show_plan(experiment: Experiment) -> None:
    """Show every gate of a plan that was just made or changed, before its first slot is judged; what is judged stays as it is."""
    for judging in load([experiment.pk]):
        gates = evaluation_as_json(at_start(judging.policy, judging.plan))["gates"]
        Cursor.objects.filter(pk=experiment.pk, judged_to__isnull=True).update(shown={"gates": gates})


def heartbeat(*, now: dt.datetime) -> None:
    """Tell the watchdog that a tick has finished: the newest slot by which nothing is left to judge."""
    oldest_due = Cursor.objects.filter(due_at__lte=now).order_by("due_at").values_list("due_at", flat=True).first()
    slot = newest_slot(oldest_due or now, 300)
    Heartbeat.objects.update_or_create(name="gates.tick", defaults={"at": now, "slot": slot})


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
        stored = _stored(judging.cursor.state)
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
            or _differ(on_record[evaluated.slot], evaluation_as_json(evaluated.evaluation))
        )
    ]
    return found


def _same_facts(kept: SlotFacts | None, given: SlotFacts | None) -> bool:
    """Whether two facts of a slot are the same; what was unreadable about a row was once kept in words, which are not compared."""
    if (
        kept is None
        or given is None
        or not any(isinstance(why, str) for look in kept.looks.values() for why in look.unreadable.values())
    ):
        return kept == given
    return _without_words(kept) == _without_words(given)


def _without_words(step: SlotFacts) -> SlotFacts:
    looks = {
        metric: replace(look, unreadable=dict.fromkeys(look.unreadable, "")) for metric, look in step.looks.items()
    }
    return replace(step, looks=looks)


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
    after = {None if not i else r.variant: _brief(_as_json(r)) for i, r in enumerate(told)}
    differ = [variant for variant in after if variant in before and before[variant] != after[variant]]
    over = _is_over(judging.plan)
    asked = {} if over else {_key(r): r for r in _asked(judging.plan, newest, folded)}
    waiting = {_identity(row) for row in open_recommendations([experiment])}
    decisions = Decision.objects.filter(experiment=experiment).select_related("recommendation__variant")
    answered = {_identity(decision.recommendation) for decision in decisions}
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


def open_recommendations(experiments: Sequence[Experiment]) -> QuerySet[Recommendation]:
    """What nobody has answered and nothing has taken back."""
    return Recommendation.objects.select_related("variant", "policy_version__policy").filter(
        experiment__in=experiments, answered_at__isnull=True, superseded_at__isnull=True, withdrawn_at__isnull=True
    )


def steps_until(experiment: Experiment, slot: int) -> list[SlotFacts]:
    """The facts of every slot up to one, oldest first."""
    steps = Step.objects.filter(experiment=experiment, slot__lte=from_us(slot)).order_by("slot")
    return [_STEP.decode(body) for body in steps.values_list("body", flat=True)]


# What is due --------------------------------------------------------------------------------------------------------------


def _beyond_a_few(judgings: Sequence[JudgingInput]) -> set[int]:
    """Those whose state is none to go on from, by another version, policy or plan, but for the first few."""
    anew = (Superseded.JUDGED_ANEW, Superseded.POLICY_CHANGED)
    return {j.experiment.pk for j in [j for j in judgings if j.cursor.state and _start_of(j)[1] in anew][LONG_CHUNK:]}


def _put_off(ids: Iterable[int]) -> None:
    """Without a state they come with the others that are told from the start (`due`)."""
    Cursor.objects.filter(pk__in=ids).update(state=None, quiet_to=None)


class _Claim(NamedTuple):
    """What a cursor was when it was claimed; version: it is another one after whatever writes to it."""

    version: str
    judged_to: dt.datetime | None
    asked_slot: dt.datetime | None


def _claim(ids: Sequence[int], now: dt.datetime) -> dict[int, _Claim]:
    """Claim what another worker has neither dealt with meanwhile nor claimed.

    Asked again once it is claimed: who was done a moment before was still to do by what the first statement could see.
    """
    with connection.cursor() as db:
        db.execute(
            f"INSERT INTO metadata.claims SELECT c.experiment_id {_DUE} "  # noqa: S608 - a constant
            "AND NOT EXISTS (SELECT FROM metadata.claims k WHERE k.experiment_id = c.experiment_id) ON CONFLICT DO NOTHING",
            [list(ids), now],
        )
        db.execute(
            f"""
            WITH due AS MATERIALIZED (SELECT c.experiment_id {_DUE})
            SELECT k.experiment_id FROM metadata.claims k JOIN due ON due.experiment_id = k.experiment_id FOR UPDATE OF k SKIP LOCKED
            """,  # noqa: S608 - a constant
            [list(ids), now],
        )
        claimed = [pk for (pk,) in db.fetchall()]
        db.execute(f"SELECT c.experiment_id, c.xmin::text, c.judged_to, c.asked_slot {_DUE}", [claimed, now])
        return {pk: _Claim(*of) for pk, *of in db.fetchall()}


_DUE = """
FROM metadata.cursors c
WHERE c.experiment_id = ANY (%s) AND (c.due_at <= %s OR EXISTS (
  SELECT FROM metrics.kpi_changes h WHERE h.job = 'fold' AND h.experiment_id = c.experiment_id))
"""


def _hold(claimed: Mapping[int, _Claim], judgings: Sequence[JudgingInput]) -> set[int]:
    """Lock those of which nothing that was judged has changed, until the transaction ends: there is only to write.

    Whatever a fold reads beside rows, who changes it writes to the cursor, too (`metadata.disturb`); what was written to is read once
    more. Nobody is waited for: who has the row locked is about to change it.
    """
    with connection.cursor() as db:
        db.execute(
            "SELECT experiment_id, xmin::text FROM metadata.cursors WHERE experiment_id = ANY (%s) FOR UPDATE SKIP LOCKED",
            [list(claimed)],
        )
        locked = dict(db.fetchall())
    touched = [pk for pk, version in locked.items() if version != claimed[pk].version]
    if not touched or not judgings:
        return locked.keys() - set(touched)
    now = {j.experiment.pk: j for j in load(touched)}
    then = {j.experiment.pk: j for j in judgings}
    same = [pk for pk in now.keys() & then.keys() if _goes_on(then[pk], now[pk], claimed[pk])]
    return locked.keys() - (set(touched) - set(same))


def _goes_on(judging: JudgingInput, now: JudgingInput, claim: _Claim) -> bool:
    """Whether what was judged is what it would be now: then only a slot that somebody asked for meanwhile is still to come."""
    read = (judging.plan, judging.version.pk, judging.experiment.status, claim.judged_to)
    if read != (now.plan, now.version.pk, now.experiment.status, now.cursor.judged_to):
        return False
    if now.cursor.asked_slot != claim.asked_slot:
        judging.cursor.asked_slot = now.cursor.asked_slot
        judging.cursor.due_at = min(filter(None, (judging.cursor.due_at, now.cursor.due_at)), default=None)
    return True


class _Note(NamedTuple):
    """A note of changed rows of one metric; instants in microseconds."""

    pk: int
    metric: str
    from_ts: int
    received: int


def _changes(ids: Iterable[int]) -> Mapping[int, list[_Note]]:
    """Notes of changed rows, by experiment; read before the rows are: what commits in between is read now and its note next time."""
    with connection.cursor() as db:
        db.execute(
            """
            SELECT experiment_id, id, metric, (extract(epoch FROM greatest(least(from_ts, '9999-12-31'), '0001-01-01')) * 1000000)::bigint,
                   (extract(epoch FROM greatest(least(from_received_at, '9999-12-31'), '0001-01-01')) * 1000000)::bigint
            FROM metrics.kpi_changes WHERE job = 'fold' AND experiment_id = ANY (%s) ORDER BY id
            """,  # a note may be of a row that lies beyond all instants
            [list(ids)],
        )
        notes: dict[int, list[_Note]] = defaultdict(list)
        for experiment, *note in db.fetchall():
            notes[experiment].append(_Note(*note))
        return notes


def _take_changes(notes: Sequence[int]) -> None:
    with connection.cursor() as db:
        db.execute("DELETE FROM metrics.kpi_changes WHERE id = ANY (%s)", [list(notes)])


# One chunk ----------------------------------------------------------------------------------------------------------------


@dataclass
class _PreparedChunk:
    """What was made of a chunk, before any of it is written. later: those left for another round, of which nothing was made."""

    judgings: list[JudgingInput] = field(default_factory=list)
    later: set[int] = field(default_factory=set)
    outcomes: list[FoldOutcome] = field(default_factory=list)
    batch: list[PendingRecords] = field(default_factory=list)


def _each(ids: Sequence[int], work: Callable[[Sequence[int]], None]) -> dict[int, Exception]:
    """Do a piece of work for many experiments at once. Those at which it fails, whatever it is, are found by halves, and left out."""
    if not ids:
        return {}
    try:
        with transaction.atomic():
            work(ids)
    except Exception as error:
        if _is_the_servers(error):
            raise
        if len(ids) == 1:
            return {ids[0]: error}
        half = len(ids) // 2
        return _each(ids[:half], work) | _each(ids[half:], work)
    return {}


def _is_the_servers(error: Exception) -> bool:
    """Whether no experiment is to blame: the server is away or overloaded, or a lock or a deadline was not met. The next tick tries again."""
    code = getattr(error.__cause__, "sqlstate", None) or ""
    return isinstance(error, (OperationalError, InterfaceError)) and not code.startswith(_LIMITS)


def _prepare(
    ids: Sequence[int], notes: Mapping[int, Sequence[_Note]], now: dt.datetime, prepared: _PreparedChunk
) -> None:
    """Read and fold, and make all that is to be written."""
    judgings = load(ids)
    for judging in judgings:
        judging.changed = [(note.metric, note.from_ts, note.received) for note in notes[judging.experiment.pk]]
    later = _beyond_a_few(judgings)
    judged = [j for j in judgings if j.experiment.pk not in later and j.experiment.status != Experiment.Status.DRAFT]
    outcomes = _fold_all(judged, now)
    batch = _prepare_records(outcomes, now)
    prepared.later |= later
    prepared.judgings += judgings
    prepared.outcomes += outcomes
    prepared.batch += batch


def _write(
    ids: Sequence[int],
    claimed: Mapping[int, _Claim],
    notes: Mapping[int, Sequence[_Note]],
    prepared: _PreparedChunk,
    now: dt.datetime,
    report: TickReport,
) -> None:
    """Lock and write what was made, unless somebody was faster."""
    locked = _hold({pk: claimed[pk] for pk in ids}, prepared.judgings)
    later = locked & prepared.later
    _put_off(later)
    held = locked - later
    _take_changes([note.pk for pk in held for note in notes[pk]])
    outcomes = [o for o in prepared.outcomes if o.judging.experiment.pk in held]
    batch = [pending for pending in prepared.batch if pending.judging.experiment.pk in held]
    _save_steps(outcomes)
    _save(batch, now)
    _save_cursors([j for j in prepared.judgings if j.experiment.pk in held])
    report.experiments += len(held)
    report.overtaken += [pk for pk in ids if pk not in locked and pk not in prepared.later]
    report.put_off += len(later)
    report.evaluations += sum(len(pending.evaluations) for pending in batch)
    slots = [o.judging.cursor.judged_to for o in outcomes]
    report.newest_slot = max(filter(None, (report.newest_slot, *slots)), default=None)


def _suspend(
    pk: int, claim: _Claim, error: Exception, notes: Sequence[_Note], now: dt.datetime, report: TickReport
) -> None:
    cause = cause_of(pk, error)
    report.failed.append((cause.key, cause.reason))
    try:
        with transaction.atomic():
            held = _hold({pk: claim}, [])
            if held:
                _take_changes([note.pk for note in notes])
                suspend(pk, cause, now=now, retry_at=newest_slot(now, RETRY_S) + dt.timedelta(seconds=RETRY_S))
    except Exception as refusal:  # its changes stay noted, so nothing is scaled, and the next tick tries again
        if _is_the_servers(refusal):
            raise
        report.failed.append((cause.key, f"Nor can it be suspended: {refusal}"))
    else:
        report.experiments += len(held)
        report.overtaken += [] if held else [pk]


# The fold -----------------------------------------------------------------------------------------------------------------


def _fold_all(judgings: Sequence[JudgingInput], now: dt.datetime) -> list[FoldOutcome]:
    """Fold every experiment up to its newest slot; the rows of all are read by one query."""
    starts = {j.experiment.pk: _start_of(j) for j in judgings}
    rows = rows_of(
        {
            j.experiment.pk: state.needs_rows_after()
            if (state := starts[j.experiment.pk][0])
            else dict.fromkeys(series_of(j.plan), j.plan.started_at)
            for j in judgings
        }
    )
    outcomes = []
    for judging in judgings:
        state, reprocessed = starts[judging.experiment.pk]
        to = newest_slot(now, judging.policy.slot_s)
        folded = fold(judging.policy, judging.plan, rows[judging.experiment.pk], to=to_us(to), checkpoint=state)
        after = state.slot if state and not folded.rebuilt else None
        outcomes.append(FoldOutcome(judging, folded, after, reprocessed))
        _advance(judging, folded, to, reprocessed=reprocessed is not None)
        judging.cursor.quiet_to = _unchanged_until(judging, rows[judging.experiment.pk], folded.checkpoint)
    return outcomes


def _start_of(judging: JudgingInput) -> tuple[Checkpoint | None, Superseded | None]:
    """The state to go on from, and why it is reprocessed: rows, policy or plan changed behind what was judged."""
    if judging.cursor.judged_to is None:
        return None, None
    same = judging.cursor.policy_version_id == judging.version.pk
    anew = Superseded.JUDGED_ANEW if same else Superseded.POLICY_CHANGED
    if judging.cursor.rules != REVISION:
        return None, Superseded.RULES_MENDED
    if judging.cursor.state is None:
        return None, Superseded.EVIDENCE_CORRECTED if _is_corrected(judging) else anew
    try:
        stored = _stored(judging.cursor.state)
    except CheckpointOutdated:
        return None, anew
    if not stored.fits(judging.policy, judging.plan):
        return None, anew
    state: Checkpoint | None = stored
    passed = _passed_since(judging, stored)
    reprocessed = False
    for metric, from_ts, received in judging.changed:
        behind = stored.judged_to(metric)
        if behind is None:
            continue
        reprocessed = reprocessed or received <= stored.slot + passed or from_ts <= behind + passed
        if state is None:
            continue
        unseen = received <= state.slot  # changed, gone, or on its way while its slot was judged
        state = state.restore_before(metric, from_ts, late=not unseen)
        if state is not None and unseen:
            state = state.restore_at(received - 1)
    return state, Superseded.EVIDENCE_CORRECTED if reprocessed or state is not stored else None


def _stored(state: bytes | memoryview) -> Checkpoint:
    """Raises StateOutdated for one that another version wrote, Unjudgeable for bytes that are not what was written."""
    try:
        return Checkpoint.from_bytes(zlib.decompress(state))
    except zlib.error as error:
        raise Unjudgeable("Its stored state cannot be read; the next time it is judged anew from its rows.") from error


def _is_corrected(judging: JudgingInput) -> bool:
    """Whether what could not be judged before was mended by a correction of its rows."""
    judged_to = judging.cursor.judged_to or judging.experiment.created_at
    return bool(judging.cursor.unjudgeable) and any(from_ts <= to_us(judged_to) for _, from_ts, _ in judging.changed)


def _passed_since(judging: JudgingInput, stored: Checkpoint) -> int:
    """Microseconds from the slot of the state to the newest one judged: those passed over since, in which nothing changed."""
    to = judging.cursor.judged_to
    judged = None if to is None else compile_plan(judging.policy, judging.plan).newest_judged(to_us(to))
    return max(0, (judged or stored.slot) - stored.slot)


def _unchanged_until(judging: JudgingInput, rows: Rows, state: Checkpoint) -> dt.datetime | None:
    if judging.experiment.status != Experiment.Status.RUNNING:
        return None
    until = unchanged_until(judging.policy, judging.plan, rows, state)
    return from_us(until) if until > state.slot else None


def _advance(judging: JudgingInput, folded: FoldResult, to: dt.datetime, *, reprocessed: bool) -> None:
    """Move the cursor in memory; `_save_cursors` writes it."""
    cursor, slot_s = judging.cursor, dt.timedelta(seconds=judging.policy.slot_s)
    if reprocessed:
        cursor.fold += 1
    elif cursor.judged_to is not None and judging.experiment.status == Experiment.Status.RUNNING:
        cursor.missed_slots += max(0, (to - cursor.judged_to) // slot_s - 1)
    cursor.judged_to = to
    cursor.due_at = _next_due(judging.experiment, judging.policy, to)
    cursor.policy_version = judging.version
    cursor.readable_at = None if folded.first_readable_at is None else from_us(folded.first_readable_at)
    cursor.state = zlib.compress(folded.checkpoint.to_bytes(), 1)
    cursor.rules = REVISION
    if cursor.unjudgeable:
        cursor.shown, cursor.unjudgeable = lifted(cursor.shown), None


def _next_due(experiment: Experiment, policy: Policy, judged: dt.datetime) -> dt.datetime | None:
    """Running: the next slot. Ended: the last look, then nothing. Paused: nothing until it runs again."""
    slot_s = dt.timedelta(seconds=policy.slot_s)
    if experiment.status == Experiment.Status.RUNNING:
        return judged + slot_s
    if experiment.ended_at is None:
        return None
    last = newest_slot(experiment.ended_at + dt.timedelta(seconds=policy.closed_after_s) + slot_s, policy.slot_s)
    return last if judged < last else None


def _rebuilt(judging: JudgingInput, slot: dt.datetime) -> FoldResult:
    return fold(judging.policy, judging.plan, _all_rows(judging), to=to_us(slot))


def _all_rows(judging: JudgingInput) -> Rows:
    pk = judging.experiment.pk
    return rows_of({pk: dict.fromkeys(series_of(judging.plan), judging.plan.started_at)})[pk]


# What is written ----------------------------------------------------------------------------------------------------------


def _prepare_records(outcomes: Sequence[FoldOutcome], now: dt.datetime) -> list[PendingRecords]:
    """Evaluations that say something new with their evidence, proposals, and what each document shows.

    By a constant number of statements, however many experiments there are.
    """
    batch = _pending_records([o for o in outcomes if o.folded.evaluated_slots])
    for pending in batch:
        _choose(pending, now)
    steps = _steps_behind(batch)
    for pending in batch:
        _prove(pending, steps.get(pending.judging.experiment.pk, []))
    rows = _rows_behind_answers(batch)
    for pending in batch:
        _set_proposals(pending, rows, now)
    return batch


def _save_steps(outcomes: Sequence[FoldOutcome]) -> None:
    """Facts of reprocessed slots replace the old ones, where they differ: evidence is made of what the newest fold read."""
    by_id = {o.judging.experiment.pk: o.judging.experiment for o in outcomes}
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
    Step.objects.bulk_create(
        [
            Step(experiment=by_id[pk], team_id=by_id[pk].team_id, slot=slot, body=body)
            for (pk, slot), body in told.items()
        ]
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
    for row in open_recommendations([o.judging.experiment for o in outcomes]):
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
            wanted = held is None or _differ(held.found, evaluation_as_json(evaluated.evaluation))
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
    return _differ(newer.found, evaluation_as_json(judged))


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
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
    steps = [*(_STEP.decode(body) for body in stored), *folded.steps]
    judged = {evaluated.slot: evaluated for evaluated in folded.evaluated_slots}
    for evaluation, detail in zip(pending.evaluations, pending.details, strict=True):
        behind = [step for step in steps if step.slot <= detail.slot]
        assembled = evidence.assemble(judging.policy, judging.plan, behind, detail, judged[detail.slot].evaluation)
        body = evidence.canonical_bytes(assembled)
        evaluation.evidence_digest = evidence.digest(body)
        pending.bodies[evaluation.evidence_digest] = zlib.compress(body)


def _save(batch: Sequence[PendingRecords], now: dt.datetime) -> None:
    """Evidence first: an evaluation never names a digest that is not kept. One that is on record already is left as it is."""
    Evidence.objects.bulk_create(
        [
            Evidence(
                experiment=pending.judging.experiment,
                team_id=pending.judging.experiment.team_id,
                digest=digest,
                body=body,
                created_at=now,
            )
            for pending in batch
            for digest, body in pending.bodies.items()
        ],
        ignore_conflicts=True,
    )
    Evaluation.objects.bulk_create([e for pending in batch for e in pending.evaluations], ignore_conflicts=True)
    if ended := [row for pending in batch for row in pending.waiting if row.superseded_at or row.withdrawn_at]:
        Recommendation.objects.bulk_update(ended, ("superseded_at", "superseded_because", "withdrawn_at"))
    Recommendation.objects.bulk_create([row for pending in batch for row in pending.proposed])
    publish_all([_message(pending.judging.experiment, row, now) for pending in batch for row in pending.proposed])


def evaluation_as_json(judged: Judged) -> dict[str, Any]:
    """An evaluation in the document's words: RFC 3339 times, plain lists and dicts."""
    return {
        "recommendation": _as_json(judged.recommendation),
        "variants": [_as_json(r) for r in judged.variants],
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


def _as_json(r: JudgedRecommendation) -> dict[str, Any]:
    return {
        "action": r.action,
        "code": r.code,
        "variant": r.variant,
        "state": r.state,
        "first_stable_at": None if r.first_stable_at is None else rfc3339(r.first_stable_at),
        "proposed_slot": None if r.proposed_slot is None else rfc3339(r.proposed_slot),
        "reasons": list(r.reasons),
    }


# Proposals ----------------------------------------------------------------------------------------------------------------


def _set_proposals(pending: PendingRecords, rows: Mapping[int, Rows], now: dt.datetime) -> None:
    """What people are asked from now on, and what the document says."""
    judging = pending.judging
    if (read := rows.get(judging.experiment.pk)) is not None:
        _revise(pending, read)
    over = _is_over(judging.plan)
    open_ = [] if over else _reconcile(pending, now)  # who has decided is not asked again
    _show(pending, open_, over=over)


def _is_over(plan: Plan) -> bool:
    """Whether an answer has ended the experiment."""
    return plan.ended_at is not None and any(answer.at == plan.ended_at for answer in plan.answers)


def _reconcile(pending: PendingRecords, now: dt.datetime) -> list[Recommendation]:
    """Make the open recommendations those the fold has latched: new ones are proposed, others superseded or withdrawn."""
    outcome = pending.outcome
    newest = outcome.folded.evaluated_slots[-1].evaluation
    wanted = {_key(r): r for r in _asked(outcome.judging.plan, newest, outcome.folded)}
    kept = []
    for row in pending.waiting:
        identity = _identity(row)
        if wanted.pop(identity, None) is not None:
            kept.append(row)
            continue
        newer = Superseded.NEWER_PROPOSAL if any(variant == identity[0] for variant, *_ in wanted) else None
        if why := outcome.reprocessed or newer:
            row.superseded_at, row.superseded_because = now, why
        else:
            row.withdrawn_at = now
    answered = {_identity(decision.recommendation): decision.recommendation for decision in pending.answered}
    for proposed, proposal in wanted.items():
        if proposed in answered:  # judged again as of a slot that could not know the answer yet
            kept.append(answered[proposed])
            continue
        at = pending.records.get(proposal.proposed_slot or newest.slot) or pending.records[max(pending.records)]
        row = _proposed(pending, proposal, at, now)
        pending.proposed.append(row)
        kept.append(row)
    return kept


def _key(r: JudgedRecommendation) -> Identity:
    return r.variant, r.action, r.code, r.proposed_slot


def _identity(row: Recommendation) -> Identity:
    return row.variant.key if row.variant else None, row.action, row.code, to_us(row.slot)


def _asked(plan: Plan, newest: Judged, folded: FoldResult) -> list[JudgedRecommendation]:
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
        _as_json(proposal),
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


# Answers on older data ------------------------------------------------------------------------------------------------------


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


# What the document says ---------------------------------------------------------------------------------------------------


def _show(pending: PendingRecords, open_: Sequence[Recommendation], *, over: bool) -> None:
    """Gates as of the newest slot, recommendations as they are on record.

    The words of a recommendation never run ahead of its evidence, so that each of its figures can be proved.
    """
    judging, found = pending.judging, evaluation_as_json(pending.outcome.folded.evaluated_slots[-1].evaluation)
    on_record = pending.records[max(pending.records)]
    cursor = judging.cursor
    before = cursor.shown or {}
    if over and "recommendation" in before:
        recommendation, variants = before["recommendation"], before["variants"]  # the answer that ended it stays
    else:
        recorded = {r["variant"]: r for r in on_record.found["variants"]}
        recommendation = _shown(judging, found["recommendation"], on_record.found["recommendation"], on_record, open_)
        variants = [_shown(judging, r, recorded.get(r["variant"], r), on_record, open_) for r in found["variants"]]
    cursor.shown = {"gates": found["gates"], "recommendation": recommendation, "variants": variants}


def _shown(
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


def _save_cursors(judgings: Sequence[JudgingInput]) -> None:
    """Write every cursor of the chunk, drafts too: they have nothing due."""
    if not judgings:
        return
    for judging in judgings:
        if judging.experiment.status == Experiment.Status.DRAFT:
            judging.cursor.due_at = judging.cursor.unjudgeable = None
    with connection.cursor() as db:
        db.execute(
            """
            UPDATE metadata.cursors c SET judged_to = w.judged_to, due_at = w.due_at, quiet_to = w.quiet_to, asked_slot = w.asked_slot,
              fold = w.fold, policy_version_id = w.policy_version_id, state = decode(w.state, 'base64'), shown = w.shown,
              revisions = w.revisions, readable_at = w.readable_at, missed_slots = w.missed_slots, unjudgeable = w.unjudgeable,
              rules = w.rules
            FROM json_to_recordset(%s) AS w(experiment_id bigint, judged_to timestamptz, due_at timestamptz, quiet_to timestamptz,
              asked_slot timestamptz, fold int, policy_version_id bigint, state text, shown jsonb, revisions jsonb, readable_at timestamptz,
              missed_slots bigint, unjudgeable jsonb, rules smallint)
            WHERE c.experiment_id = w.experiment_id AND c.experiment_id = ANY (%s)
            """,  # the ids once more, so that one experiment's cursor is found without reading all of them
            [
                msgspec.json.encode([_written(judging.cursor) for judging in judgings]).decode(),
                [judging.cursor.pk for judging in judgings],
            ],
        )


_WRITTEN = (
    "judged_to",
    "due_at",
    "quiet_to",
    "asked_slot",
    "fold",
    "policy_version_id",
    "shown",
    "revisions",
    "readable_at",
    "missed_slots",
    "unjudgeable",
    "rules",
)


def _written(cursor: Cursor) -> dict[str, Any]:
    state = None if cursor.state is None else bytes(cursor.state)
    return {"experiment_id": cursor.pk, "state": state, **{name: getattr(cursor, name) for name in _WRITTEN}}
