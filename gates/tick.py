"""The tick: what is due is claimed, read, folded, locked and written, a chunk of experiments in one transaction.

The lock of its row in `metadata.claims` is the claim: a second scheduler skips it, a crash releases it, and nothing is judged twice.
People, who write to the cursor's row, meet no lock until all is made and only its writing is left; where they were faster, what was made is thrown
away. One experiment that cannot be judged, whatever step it fails at, never holds up the others: what it proposes is suspended
(`gates.suspension`), and it is tried again at its next slot, from its rows.
"""

import datetime as dt
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import Q

from decisioning.ledger.models import Heartbeat
from experiments.models import Experiment
from gates.claims import Claim, Note, changes, claim, hold, move_on, put_off, save_cursors, take_changes
from gates.engine.checkpoint import Checkpoint, CheckpointOutdated
from gates.engine.compiled import REVISION, compile_plan
from gates.engine.fold import FoldResult, at_start, fold
from gates.engine.plan import from_us, newest_slot, to_us
from gates.engine.policy import Policy
from gates.engine.quiet import unchanged_until
from gates.engine.series import Rows
from gates.loading import JudgingInput, checkpoint_in, load, rows_of, series_of
from gates.models import Cursor
from gates.recording import FoldOutcome, PendingRecords, Superseded, prepare_records, save, save_steps
from gates.shown import evaluation_as_json
from gates.suspension import cause_of, lifted, suspend

CHUNK, FIRST_CHUNK, LONG_CHUNK, LONG_ROUND, PASSED_AT_ONCE = 250, 10, 1, 10, 5_000
_ANEW = (Superseded.JUDGED_ANEW, Superseded.POLICY_CHANGED, Superseded.RULES_MENDED)
RETRY_S = 300
"""What could not be judged is tried again at the next slot of this width, and when its rows change."""
_LIMITS = "54"
"""The class of SQLSTATE that says that a value or a statement is too large: the one OperationalError that an experiment causes."""


@dataclass
class TickReport:
    """What was dealt with. `failed`: (experiment key, why) that could not be judged.

    passed: experiments for which nothing could have changed, moved on without a fold; those of which rows were read to know
    it are among `experiments`, too. overtaken: experiments judged for nothing, since somebody answered or changed the plan
    meanwhile; alone, which takes a moment, they hardly ever are.
    put_off: histories to tell anew beyond the few that fit in a chunk; they come in the next round. anew: judged from their rows, since
    their state was of another version, policy or plan.
    """

    experiments: int = 0
    passed: int = 0
    evaluations: int = 0
    newest_slot: dt.datetime | None = None
    failed: list[tuple[str, str]] = field(default_factory=list)
    overtaken: list[int] = field(default_factory=list)
    put_off: int = 0
    anew: int = 0


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


def left_anew() -> int:
    """How many experiments are still to be judged anew from their rows, of those that are known to be."""
    judged = Cursor.objects.filter(judged_to__isnull=False, due_at__isnull=False)
    return judged.filter(Q(state=None) | ~Q(rules=REVISION)).count()


def next_size(size: int, seconds: float) -> int:
    """How many to judge in a transaction, when `size` have just taken `seconds`: about a second's worth, never much more than before.

    A chunk that a busy machine cannot finish within the task's time would be begun anew for ever.

    >>> next_size(10, 0.1), next_size(40, 0.5), next_size(40, 10), next_size(1, 60)
    (20, 80, 4, 1)
    """
    return max(1, min(int(size / max(seconds, 0.001)), 2 * size, CHUNK))


def evaluate(ids: Sequence[int], *, now: dt.datetime, report: TickReport | None = None) -> TickReport:
    """Judge those of a chunk that are still due and that no other worker is at, in the caller's transaction.

    Nothing is locked while it is read and folded. Who is overtaken meanwhile is still due.
    """
    report = report or TickReport()
    claimed = claim(ids, now)
    if not claimed:
        return report
    notes, prepared = changes(claimed), _PreparedChunk()
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


@dataclass
class _PreparedChunk:
    """What was made of a chunk, before any of it is written. later: those left for another round, of which nothing was made.
    passed: those whose new rows change nothing yet.
    """

    judgings: list[JudgingInput] = field(default_factory=list)
    later: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)
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
    ids: Sequence[int], notes: Mapping[int, Sequence[Note]], now: dt.datetime, prepared: _PreparedChunk
) -> None:
    """Read and fold, and make all that is to be written."""
    judgings = load(ids)
    for judging in judgings:
        judging.changed = [(note.metric, note.from_ts, note.received) for note in notes[judging.experiment.pk]]
    judged = [j for j in judgings if j.experiment.status != Experiment.Status.DRAFT]
    starts = {j.experiment.pk: _start_of(j) for j in judged}
    later = _beyond_a_few(judged, starts)
    judged = [j for j in judged if j.experiment.pk not in later]
    rows = _rows_after(judged, starts)
    passed = {j.experiment.pk for j in judged if _passes_over(j, starts[j.experiment.pk], rows[j.experiment.pk], now)}
    outcomes = _fold_all([j for j in judged if j.experiment.pk not in passed], starts, rows, now)
    batch = prepare_records(outcomes, now)
    prepared.later |= later
    prepared.passed |= passed
    prepared.judgings += judgings
    prepared.outcomes += outcomes
    prepared.batch += batch


def _write(
    ids: Sequence[int],
    claimed: Mapping[int, Claim],
    notes: Mapping[int, Sequence[Note]],
    prepared: _PreparedChunk,
    now: dt.datetime,
    report: TickReport,
) -> None:
    """Lock and write what was made, unless somebody was faster."""
    locked = hold({pk: claimed[pk] for pk in ids}, prepared.judgings)
    later = locked & prepared.later
    put_off(later)
    held = locked - later
    take_changes([note.pk for pk in held for note in notes[pk]])
    outcomes = [o for o in prepared.outcomes if o.judging.experiment.pk in held]
    batch = [pending for pending in prepared.batch if pending.judging.experiment.pk in held]
    save_steps(outcomes)
    save(batch, now)
    save_cursors([j for j in prepared.judgings if j.experiment.pk in held - prepared.passed])
    move_on([j.cursor for j in prepared.judgings if j.experiment.pk in held & prepared.passed])
    report.experiments += len(held)
    report.passed += len(held & prepared.passed)
    report.overtaken += [pk for pk in ids if pk not in locked and pk not in prepared.later]
    report.put_off += len(later)
    report.anew += sum(outcome.reprocessed in _ANEW for outcome in outcomes)
    report.evaluations += sum(len(pending.evaluations) for pending in batch)
    slots = [j.cursor.judged_to for j in prepared.judgings if j.experiment.pk in held]
    report.newest_slot = max(filter(None, (report.newest_slot, *slots)), default=None)


def _suspend(
    pk: int, claim: Claim, error: Exception, notes: Sequence[Note], now: dt.datetime, report: TickReport
) -> None:
    cause = cause_of(pk, error)
    report.failed.append((cause.key, cause.reason))
    try:
        with transaction.atomic():
            held = hold({pk: claim}, [])
            if held:
                take_changes([note.pk for note in notes])
                suspend(pk, cause, now=now, retry_at=newest_slot(now, RETRY_S) + dt.timedelta(seconds=RETRY_S))
    except Exception as refusal:  # its changes stay noted, so nothing is scaled, and the next tick tries again
        if _is_the_servers(refusal):
            raise
        report.failed.append((cause.key, f"Nor can it be suspended: {refusal}"))
    else:
        report.experiments += len(held)
        report.overtaken += [] if held else [pk]


type _Start = tuple[Checkpoint | None, Superseded | None]
"""The checkpoint to go on from, and why it is reprocessed."""
type Starts = Mapping[int, _Start]
"""By experiment."""


def _beyond_a_few(judgings: Sequence[JudgingInput], starts: Starts) -> set[int]:
    """Those whose state is none to go on from, by another version, policy or plan, but for the first few."""
    told_anew = [j.experiment.pk for j in judgings if j.cursor.state and starts[j.experiment.pk][1] in _ANEW]
    return set(told_anew[LONG_CHUNK:])


def _rows_after(judgings: Sequence[JudgingInput], starts: Starts) -> dict[int, Rows]:
    """The rows that a fold from there reads, of all by one query."""
    return rows_of(
        {
            j.experiment.pk: state.needs_rows_after()
            if (state := starts[j.experiment.pk][0])
            else dict.fromkeys(series_of(j.plan), j.plan.started_at)
            for j in judgings
        }
    )


def _passes_over(judging: JudgingInput, start: _Start, rows: Rows, now: dt.datetime) -> bool:
    """Whether the rows there are change nothing up to the newest slot: then the cursor moves on, and the state stays where it is."""
    state, reprocessed = start
    cursor, to = judging.cursor, newest_slot(now, judging.policy.slot_s)
    if state is None or reprocessed is not None or cursor.asked_slot is not None or cursor.unjudgeable:
        return False
    until = _unchanged_until(judging, rows, state, at_least=to_us(to))
    if until is None or until < to or cursor.judged_to is None or cursor.judged_to > to:
        return False
    _advance(judging, to)
    cursor.quiet_to = until
    return True


def _fold_all(
    judgings: Sequence[JudgingInput], starts: Starts, rows: Mapping[int, Rows], now: dt.datetime
) -> list[FoldOutcome]:
    """Fold every experiment up to its newest slot."""
    outcomes = []
    for judging in judgings:
        state, reprocessed = starts[judging.experiment.pk]
        to = newest_slot(now, judging.policy.slot_s)
        folded = fold(judging.policy, judging.plan, rows[judging.experiment.pk], to=to_us(to), checkpoint=state)
        after = state.slot if state and not folded.rebuilt else None
        outcomes.append(FoldOutcome(judging, folded, after, reprocessed))
        _advance(judging, to, reprocessed=reprocessed is not None)
        _leave_state(judging, folded)
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
        stored = checkpoint_in(judging.cursor.state)
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


def _is_corrected(judging: JudgingInput) -> bool:
    """Whether what could not be judged before was mended by a correction of its rows."""
    judged_to = judging.cursor.judged_to or judging.experiment.created_at
    return bool(judging.cursor.unjudgeable) and any(from_ts <= to_us(judged_to) for _, from_ts, _ in judging.changed)


def _passed_since(judging: JudgingInput, stored: Checkpoint) -> int:
    """Microseconds from the slot of the state to the newest one judged: those passed over since, in which nothing changed."""
    to = judging.cursor.judged_to
    judged = None if to is None else compile_plan(judging.policy, judging.plan).newest_judged(to_us(to))
    return max(0, (judged or stored.slot) - stored.slot)


def _unchanged_until(judging: JudgingInput, rows: Rows, state: Checkpoint, *, at_least: int = 0) -> dt.datetime | None:
    if judging.experiment.status != Experiment.Status.RUNNING:
        return None
    until = unchanged_until(judging.policy, judging.plan, rows, state, at_least=at_least)
    return from_us(until) if until > state.slot else None


def _advance(judging: JudgingInput, to: dt.datetime, *, reprocessed: bool = False) -> None:
    """Move the cursor in memory; `save_cursors` and `move_on` write it."""
    cursor, slot_s = judging.cursor, dt.timedelta(seconds=judging.policy.slot_s)
    if reprocessed:
        cursor.fold += 1
    elif cursor.judged_to is not None and judging.experiment.status == Experiment.Status.RUNNING:
        cursor.missed_slots += max(0, (to - cursor.judged_to) // slot_s - 1)
    cursor.judged_to = to
    cursor.due_at = _next_due(judging.experiment, judging.policy, to)


def _leave_state(judging: JudgingInput, folded: FoldResult) -> None:
    cursor = judging.cursor
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
