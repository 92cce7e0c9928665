"""Which worker judges what: experiments are claimed, their cursors locked only to be written.

The lock of its row in `metadata.claims` is the claim: a second worker skips it, and a crash releases it. People, who write to the
cursor's row, meet no lock until all is made; where they were faster, nothing of it is written.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from django.db import connection, transaction
from django.db.models import Value
from django.db.models.functions import Least

from experiments.models import Experiment
from gates.loading import JudgingInput, load
from gates.models import Cursor
from telemetry import arrays, wake


class Claim(NamedTuple):
    """What a cursor was when it was claimed; version: it is another one after whatever writes to it."""

    version: str
    judged_to: dt.datetime | None
    asked_slot: dt.datetime | None


def ask(experiment: Experiment, slot: dt.datetime, *, now: dt.datetime) -> None:
    """Have the slot judged by the next tick, whatever has changed, and wake it when the caller's transaction commits.

    Never later than it was due: asking does not make a slot that is late a punctual one.
    """
    Cursor.objects.filter(pk=experiment.pk).update(asked_slot=slot, due_at=Least("due_at", Value(now)))
    transaction.on_commit(wake.tick)


def claim(ids: Sequence[int], now: dt.datetime) -> dict[int, Claim]:
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
        return {pk: Claim(*of) for pk, *of in db.fetchall()}


_DUE = """
FROM metadata.cursors c
WHERE c.experiment_id = ANY (%s) AND (c.due_at <= %s OR EXISTS (
  SELECT FROM metrics.kpi_changes h WHERE h.job = 'fold' AND h.experiment_id = c.experiment_id))
"""


def hold(claimed: Mapping[int, Claim], judgings: Sequence[JudgingInput]) -> set[int]:
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


def _goes_on(judging: JudgingInput, now: JudgingInput, claim: Claim) -> bool:
    """Whether what was judged is what it would be now: then only a slot that somebody asked for meanwhile is still to come."""
    read = (judging.plan, judging.version.pk, judging.experiment.status, claim.judged_to)
    if read != (now.plan, now.version.pk, now.experiment.status, now.cursor.judged_to):
        return False
    if now.cursor.asked_slot != claim.asked_slot:
        judging.cursor.asked_slot = now.cursor.asked_slot
        judging.cursor.due_at = min(filter(None, (judging.cursor.due_at, now.cursor.due_at)), default=None)
    return True


class Note(NamedTuple):
    """A note of changed rows of one metric; instants in microseconds."""

    pk: int
    metric: str
    from_ts: int
    received: int


def changes(ids: Iterable[int]) -> Mapping[int, list[Note]]:
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
        notes: dict[int, list[Note]] = defaultdict(list)
        for experiment, *note in db.fetchall():
            notes[experiment].append(Note(*note))
        return notes


def take_changes(notes: Sequence[int]) -> None:
    with connection.cursor() as db:
        db.execute("DELETE FROM metrics.kpi_changes WHERE id = ANY (%s)", [list(notes)])


def put_off(ids: Iterable[int]) -> None:
    """Without a state they come with the others that are told from the start (`due`)."""
    Cursor.objects.filter(pk__in=ids).update(state=None, quiet_to=None)


def save_cursors(judgings: Sequence[JudgingInput]) -> None:
    """Write every cursor of the chunk, drafts too: they have nothing due."""
    if not judgings:
        return
    for judging in judgings:
        if judging.experiment.status == Experiment.Status.DRAFT:
            judging.cursor.due_at = judging.cursor.unjudgeable = None
    given = {
        "ids": arrays.int8s([judging.cursor.pk for judging in judgings]),
        "states": arrays.byteas(
            [None if (state := judging.cursor.state) is None else bytes(state) for judging in judgings]
        ),
        "shown": arrays.texts([_shown(judging.cursor) for judging in judgings]),
        "gates": arrays.texts([judging.gates for judging in judgings]),
        "rest": arrays.texts(
            [msgspec.json.encode({n: getattr(judging.cursor, n) for n in _WRITTEN}) for judging in judgings]
        ),
    }
    with connection.wrap_database_errors, arrays.cursor() as db:
        db.execute(_SAVE, given)


_SAVE = """
UPDATE metadata.cursors c SET judged_to = r.judged_to, due_at = r.due_at, quiet_to = r.quiet_to, asked_slot = r.asked_slot,
  fold = r.fold, policy_version_id = r.policy_version_id, state = w.state,
  shown = CASE WHEN w.shown IS NOT NULL THEN w.shown::jsonb
    WHEN w.gates IS NOT NULL THEN jsonb_set(c.shown, '{gates}', w.gates::jsonb) ELSE c.shown END,
  revisions = r.revisions, readable_at = r.readable_at, missed_slots = r.missed_slots, unjudgeable = r.unjudgeable, rules = r.rules,
  on_record = r.on_record
FROM unnest(%(ids)s, %(states)s, %(shown)s, %(gates)s, %(rest)s) AS w(experiment_id, state, shown, gates, rest)
CROSS JOIN LATERAL json_to_record(w.rest::json) AS r(judged_to timestamptz, due_at timestamptz, quiet_to timestamptz,
  asked_slot timestamptz, fold int, policy_version_id bigint, revisions jsonb, readable_at timestamptz, missed_slots bigint,
  unjudgeable jsonb, rules smallint, on_record jsonb)
WHERE c.experiment_id = w.experiment_id AND c.experiment_id = ANY (%(ids)s)
"""  # the ids once more, so that one experiment's cursor is found without reading all of them


def move_on(cursors: Sequence[Cursor]) -> None:
    """Write that nothing was to judge up to a slot; all else, the state above all, stays as it is."""
    if not cursors:
        return
    given = {
        "ids": arrays.int8s([cursor.pk for cursor in cursors]),
        "missed": arrays.int8s([cursor.missed_slots for cursor in cursors]),
    } | {
        name: arrays.instants(arrays.microseconds([getattr(cursor, name) for cursor in cursors]))
        for name in ("judged_to", "due_at", "quiet_to")
    }
    with connection.wrap_database_errors, arrays.cursor() as db:
        db.execute(
            """
            UPDATE metadata.cursors c SET judged_to = w.judged_to, due_at = w.due_at, quiet_to = w.quiet_to, missed_slots = w.missed
            FROM unnest(%(ids)s, %(judged_to)s, %(due_at)s, %(quiet_to)s, %(missed)s) AS w(experiment_id, judged_to, due_at, quiet_to, missed)
            WHERE c.experiment_id = w.experiment_id AND c.experiment_id = ANY (%(ids)s)
            """,
            given,
        )


def _shown(cursor: Cursor) -> bytes | None:
    """What is shown, where it was told anew; what was not read stays as it is."""
    return msgspec.json.encode(cursor.shown) if "shown" in cursor.__dict__ else None


_WRITTEN = (
    "judged_to",
    "due_at",
    "quiet_to",
    "asked_slot",
    "fold",
    "policy_version_id",
    "revisions",
    "readable_at",
    "missed_slots",
    "unjudgeable",
    "rules",
    "on_record",
)
