"""Whatever breaks on the way from stored rows to a stored verdict: what was proposed is suspended, and the others are judged."""

# ruff: noqa: S608 - every statement is made of constants of this file

import datetime as dt
import random
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from experiments.models import Experiment
from gates.consistency import differences
from gates.decisions import DecisionRefused, record_decision
from gates.engine.narration import Reader, in_words
from gates.models import Cursor, Policy, PolicyBinding, PolicyVersion, Recommendation
from gates.tick import TickReport, evaluate
from telemetry.ingest import Target
from tests.conftest import as_role
from tests.examples import examples
from tests.gates.test_sweeps import HOUR, RULES, START, Portal, rows_at, send

PROPOSED = START + 8 * HOUR
ANN = Principal(kind="user", name="ann", owner="ann")

Mend = Callable[[], None]
Break = Callable[[int], Mend]
"""Breaks something of what is stored of one experiment, and returns how to mend it."""


def owner_runs(sql: str, values: dict[str, Any]) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(sql, values)


def stored(table: str, column: str, to: str, where: str = "experiment_id = %(id)s") -> Break:
    """One stored value is another one."""

    def spoil(pk: int) -> Mend:
        values: dict[str, Any] = {"id": pk, "ts": PROPOSED - HOUR}
        with as_role("owner"), connection.cursor() as cursor:
            cursor.execute(f"SELECT {column}::text, pg_typeof({column})::text FROM {table} WHERE {where}", values)
            ((values["kept"], kind),) = cursor.fetchall()
        owner_runs(f"UPDATE {table} SET {column} = {to} WHERE {where}", values)
        return lambda: owner_runs(f"UPDATE {table} SET {column} = %(kept)s::{kind} WHERE {where}", values)

    return spoil


def refused(table: str, when: str = "true", also: Break | None = None) -> Break:
    """The database refuses to keep rows of the experiment, as it does when a disk or a constraint is broken."""

    def spoil(pk: int) -> Mend:
        check = f"CHECK (experiment_id <> {pk} OR NOT ({when}))"
        owner_runs(f"ALTER TABLE metadata.{table} ADD CONSTRAINT broken {check} NOT VALID", {})
        mends = [also(pk)] if also else []

        def mend() -> None:
            owner_runs(f"ALTER TABLE metadata.{table} DROP CONSTRAINT broken", {})
            for more in mends:
                more()

        return mend

    return spoil


def jammed(pk: int) -> Mend:
    """The database refuses to move the experiment's cursor on."""
    owner_runs(
        f"""
        CREATE FUNCTION pg_temp.jam() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'jammed'; END $$;
        CREATE TRIGGER jam BEFORE UPDATE ON metadata.cursors FOR EACH ROW
        WHEN (OLD.experiment_id = {pk} AND NEW.judged_to IS DISTINCT FROM OLD.judged_to) EXECUTE FUNCTION pg_temp.jam()
        """,
        {},
    )
    return lambda: owner_runs("DROP FUNCTION pg_temp.jam CASCADE", {})


ROW = "experiment_id = %(id)s AND metric = 'vrps' AND variant = 'treatment' AND ts = %(ts)s"
VERSION = "id = (SELECT v.id FROM metadata.policy_versions v JOIN metadata.policy_bindings b USING (policy_id) WHERE b.experiment_id = %(id)s)"
TREATMENT = "experiment_id = %(id)s AND key = 'treatment'"
WORSE = stored("metrics.experiment_kpis", "value", "-60", ROW.replace("%(ts)s", "%(ts)s - interval '1 hour'"))
BREAKS: dict[str, Break] = {
    "a row that cannot be loaded": stored("metrics.experiment_kpis", "first_received_at", "'infinity'", ROW),
    "a value that overflows": stored("metrics.experiment_kpis", "value", "1.7e308", ROW),
    "a plan that cannot be read": stored("metadata.variants", "weight", "'NaN'", TREATMENT),
    "a role nobody knows": stored("metadata.target_kpis", "role", "'gaol'", "experiment_id = %(id)s AND position = 0"),
    "a policy that cannot be read": stored("metadata.policy_versions", "body", """'{"gates": 7}'""", VERSION),
    "a policy without an active version": stored("metadata.policy_versions", "activated_at", "NULL", VERSION),
    "a state that cannot be read": stored("metadata.cursors", "state", "'garbage'"),
    "a state that cannot be written": jammed,
    "facts that cannot be written": refused("steps"),
    "evidence that cannot be written": refused("evidence"),
    "evaluations that cannot be written": refused("evaluations"),
    "a correction that cannot be told": refused("recommendations", "superseded_at IS NOT NULL OR withdrawn_at IS NOT NULL", WORSE),
}  # fmt: skip
HEALED = "a state that cannot be read"
"""It is made anew from the rows, so that the next slot mends it."""


class Scene:
    """Two experiments with a proposal to scale, each under a policy of its own."""

    def __init__(self, portal: Portal, team: Team) -> None:
        self.broken, self.other = portal.start(), portal.start()
        with as_role("owner"):
            policy = Policy.objects.create(team=team, name="brisk-too", created_at=START)
            PolicyVersion.objects.create(
                policy=policy, team=team, number=1, body=RULES, author="ann", created_at=START, activated_at=START
            )
            PolicyBinding.objects.filter(experiment=self.broken.experiment_id).update(policy=policy)
        for hour in range(1, 9):
            self.feed(START + hour * HOUR)
        self.now = PROPOSED
        assert self.sweep(PROPOSED + HOUR).failed == []
        for target in (self.broken, self.other):
            assert self.said(target)["state"] == "proposed"
            assert self.said(target)["action"] == "scale"

    def feed(self, ts: dt.datetime) -> None:
        for target in (self.broken, self.other):
            send(target, rows_at(ts, random.Random(ts.hour), 0.3), now=ts)

    def sweep(self, now: dt.datetime) -> TickReport:
        """Judge both in one chunk, at a slot that goes on record."""
        self.now = now
        ids = [self.broken.experiment_id, self.other.experiment_id]
        with as_role("worker"):
            Cursor.objects.filter(pk__in=ids).update(quiet_to=None, asked_slot=now, due_at=now)
            return evaluate(ids, now=now)

    def said(self, target: Target) -> dict[str, Any]:
        with as_role("worker"):
            shown = Cursor.objects.get(pk=target.experiment_id).shown
        assert shown is not None
        return in_words(shown["recommendation"], Reader())

    def accepted(self, target: Target, action: str = "accept", **more: Any) -> str:
        """The status after an answer to the open proposal, or the code it is refused with; nothing is kept of either."""
        with as_role("worker"), transaction.atomic():
            experiment = Experiment.objects.select_related("team").get(pk=target.experiment_id)
            (proposal,) = Recommendation.objects.open([experiment])
            given: dict[str, Any] = {"digest": proposal.evidence_digest, "by": ANN, "now": self.now}
            try:
                record_decision(experiment, action=action, **given, **more)
            except DecisionRefused as refusal:
                return refusal.code
            else:
                experiment.refresh_from_db()
                return experiment.status
            finally:
                transaction.set_rollback(True)


@pytest.fixture
def scene(team: Team) -> Scene:
    return Scene(Portal(team), team)


def said_by(command: str, *args: str) -> str:
    """What a command prints; of one that exits 1, what it says of that too."""
    out = StringIO()
    with as_role("worker"):
        try:
            call_command(command, *args, stdout=out)
        except CommandError as error:
            return f"{out.getvalue()}exit 1: {error}"
    return out.getvalue()


@pytest.mark.parametrize("fault", BREAKS)
def test_what_cannot_be_judged_is_suspended_alone_and_until_it_can_be_again(scene: Scene, fault: str) -> None:
    mend = BREAKS[fault](scene.broken.experiment_id)
    scene.feed(PROPOSED + HOUR)
    done = scene.sweep(PROPOSED + 2 * HOUR)

    assert [key for key, _ in done.failed] == ["trial-1"]
    with as_role("worker"):
        cursor = Cursor.objects.get(pk=scene.broken.experiment_id)
        assert Cursor.objects.get(pk=scene.other.experiment_id).judged_to == PROPOSED + 2 * HOUR
    assert cursor.unjudgeable is not None
    reason = cursor.unjudgeable["reason"]
    if cursor.shown is not None:
        said = scene.said(scene.broken)
        assert (said["state"], said["blockers"][0]) == ("suspended", reason)
    assert scene.accepted(scene.broken) == "recommendation_suspended"
    assert scene.accepted(scene.broken, "override", override_to="scale", reason="r") == "recommendation_suspended"
    assert scene.accepted(scene.broken, "override", override_to="stop", reason="r") == "stopped"
    assert scene.accepted(scene.other) == "scaled"
    assert f"trial-1: {reason}" in said_by("rebuild")
    assert "exit 1" in said_by("rebuild")
    assert f"trial-1: {reason}" in said_by("replay", "--all")
    assert "exit 1" in said_by("replay", "--all")

    if fault != HEALED:
        later = scene.sweep(PROPOSED + 2 * HOUR + dt.timedelta(minutes=10))
        assert [key for key, _ in later.failed] == ["trial-1"], "it stays so while the fault is there"
        mend()
    scene.feed(PROPOSED + 2 * HOUR)
    assert scene.sweep(PROPOSED + 3 * HOUR).failed == []
    with as_role("worker"):
        assert Cursor.objects.get(pk=scene.broken.experiment_id).unjudgeable is None
        assert differences(Experiment.objects.get(pk=scene.broken.experiment_id)) == []
    assert scene.said(scene.broken)["state"] == "proposed"
    assert scene.accepted(scene.broken) == "scaled"


@pytest.mark.parametrize("body", [None, "'garbage'", "substring(body for 40)"])
def test_a_proposal_whose_evidence_is_not_there_as_it_was_written_is_not_accepted(
    scene: Scene, body: str | None
) -> None:
    with as_role("worker"):
        digest = (
            Recommendation.objects.open([Experiment.objects.get(pk=scene.broken.experiment_id)]).get().evidence_digest
        )
    of_it = f"experiment_id = %(id)s AND digest = '{digest}'"
    if body is None:
        owner_runs(f"DELETE FROM metadata.evidence WHERE {of_it}", {"id": scene.broken.experiment_id})
    else:
        stored("metadata.evidence", "body", body, of_it)(scene.broken.experiment_id)

    assert scene.accepted(scene.broken) == "recommendation_suspended"
    assert scene.accepted(scene.broken, "override", override_to="stop", reason="r") == "stopped"
    assert scene.accepted(scene.other) == "scaled"


def test_a_row_that_changed_since_it_was_judged_is_judged_anew_before_anything_is_scaled(scene: Scene) -> None:
    scene.feed(PROPOSED + HOUR)
    scene.feed(PROPOSED + 2 * HOUR)
    assert scene.sweep(PROPOSED + 3 * HOUR).failed == []
    newer = ROW.replace("%(ts)s", "%(ts)s + interval '2 hours'")
    stored("metrics.experiment_kpis", "value", "1.7e308", newer)(scene.broken.experiment_id)

    assert scene.accepted(scene.broken) == "recommendation_suspended", "a tick has not looked at it yet"
    assert scene.accepted(scene.other) == "scaled"
    scene.sweep(PROPOSED + 3 * HOUR)
    assert scene.accepted(scene.broken) == "recommendation_suspended", "it cannot be judged"


def test_a_cause_that_cannot_be_read_hinders_neither_its_experiment_nor_the_others(scene: Scene) -> None:
    stored("metadata.cursors", "unjudgeable", "'5'")(scene.broken.experiment_id)
    BREAKS["a value that overflows"](scene.broken.experiment_id)

    assert [key for key, _ in scene.sweep(PROPOSED + 2 * HOUR).failed] == ["trial-1"]
    assert scene.accepted(scene.broken) == "recommendation_suspended"
    with as_role("worker"):
        assert Cursor.objects.get(pk=scene.other.experiment_id).judged_to == PROPOSED + 2 * HOUR


def test_an_answer_that_ended_it_is_shown_as_it_was_once_the_cause_is_mended(scene: Scene) -> None:
    with as_role("worker"):
        experiment = Experiment.objects.select_related("team").get(pk=scene.broken.experiment_id)
        (proposal,) = Recommendation.objects.open([experiment])
        record_decision(experiment, digest=proposal.evidence_digest, action="accept", by=ANN, now=scene.now)
    answered = scene.said(scene.broken)
    mend = BREAKS["a value that overflows"](scene.broken.experiment_id)
    assert [key for key, _ in scene.sweep(scene.now + HOUR).failed] == ["trial-1"]
    assert scene.said(scene.broken)["blockers"]
    mend()
    assert scene.sweep(scene.now + HOUR).failed == []
    assert scene.said(scene.broken) == answered


@examples(4, ignore=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(st.sampled_from([f for f in BREAKS if f != HEALED]), min_size=2, max_size=3, unique=True),
    seed=st.integers(0, 2**16),
)
def test_whatever_breaks_at_once_and_in_whatever_order_it_is_mended_nothing_is_acceptable_meanwhile(
    scene: Scene, faults: list[str], seed: int
) -> None:
    """Each sweep at a later slot; rows keep coming, so that staleness suspends nothing here."""
    mends = [BREAKS[fault](scene.broken.experiment_id) for fault in faults]
    random.Random(seed).shuffle(mends)
    hour = (scene.now - START) // HOUR
    try:
        while mends:
            scene.feed(START + hour * HOUR)
            hour += 1
            assert [key for key, _ in scene.sweep(START + hour * HOUR).failed] == ["trial-1"]
            assert scene.accepted(scene.broken) == "recommendation_suspended"
            assert scene.accepted(scene.other) == "scaled"
            mends.pop()()
    finally:
        for mend in mends:
            mend()
    scene.feed(START + hour * HOUR)
    hour += 1
    assert scene.sweep(START + hour * HOUR).failed == []
    assert scene.accepted(scene.broken) == "scaled"


@pytest.mark.parametrize("when", ["infinity", "-infinity", "20000-01-01"])
@pytest.mark.parametrize(
    ("table", "column", "where"),
    [
        ("metadata.experiments", "started_at", "id = %(id)s"),
        ("metadata.experiments", "created_at", "id = %(id)s"),
        ("metadata.cursors", "due_at", "experiment_id = %(id)s"),
        ("metadata.policy_versions", "activated_at", VERSION),
        ("metadata.recommendations", "proposed_at", "experiment_id = %(id)s"),
    ],
)
def test_a_time_without_end_that_somebody_wrote_by_sql_stops_no_other(
    scene: Scene, table: str, column: str, where: str, when: str
) -> None:
    stored(table, column, f"'{when}'", where)(scene.broken.experiment_id)
    scene.feed(PROPOSED + HOUR)
    scene.sweep(PROPOSED + 2 * HOUR)
    with as_role("worker"):
        assert Cursor.objects.get(pk=scene.other.experiment_id).judged_to == PROPOSED + 2 * HOUR
    assert scene.said(scene.other)["action"] == "scale"
