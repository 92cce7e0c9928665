"""The tick against real rows: whatever the order, the lateness and the moment, what is stored is what a rebuild gives."""

import datetime as dt
import random
import zlib
from typing import Any

import msgspec
import pytest
from django.db import connection

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from experiments.models import Experiment, Metric, TargetKpi, Variant
from gates.consistency import differences
from gates.decisions import DecisionRefused, record_decision
from gates.engine import evidence
from gates.engine.checkpoint import Checkpoint
from gates.engine.policy import DEFAULT_BODY
from gates.engine.reasons import told
from gates.models import (
    Cursor,
    Decision,
    Evaluation,
    Evidence,
    Policy,
    PolicyBinding,
    PolicyVersion,
    Recommendation,
)
from gates.policies import named
from gates.tick import evaluate_due
from telemetry.ingest import Target, ingest
from telemetry.row import Row
from tests.conftest import as_role

START = dt.datetime(2026, 11, 10, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def running(team: Team) -> Target:
    """An experiment under the quick policy with hourly telemetry, known to the portal since its start."""
    with as_role("owner"):
        spec = {"expected_every_s": 3600, "freshness_target_s": 3600, "created_at": START}
        goal = Metric.objects.create(key="vrps", name="Value per session", unit="usd", **spec)
        guard = Metric.objects.create(key="errors", name="Errors", kind="proportion", direction="decrease", **spec)
        experiment = Experiment.objects.create(
            key="checkout",
            name="c",
            hypothesis="h",
            owner="o",
            team=team,
            status="running",
            created_at=START,
            started_at=START,
        )
        Variant.objects.create(experiment=experiment, key="control", control=True, position=0)
        Variant.objects.create(experiment=experiment, key="treatment", position=1)
        TargetKpi.objects.create(experiment=experiment, metric=goal, position=0, baseline_mean=3, baseline_stddev=3)
        TargetKpi.objects.create(experiment=experiment, metric=guard, role="guardrail", max_harm=0.3, position=1)
        policy = named("quick", team)
        assert policy is not None
        Cursor.objects.filter(experiment=experiment).update(due_at=START)
        PolicyBinding.objects.create(experiment=experiment, team=team, policy=policy)
    return Target(experiment.pk, team.pk, frozenset({"control", "treatment"}))


def bucket(ts: dt.datetime, dice: random.Random, *, gain: float = 0.1) -> list[Row]:
    rows = []
    for variant, more in (("control", 0.0), ("treatment", gain)):
        n = dice.randrange(900, 1100)
        rows.append(Row("vrps", ts, 3 * (1 + more) + dice.gauss(0, 3 / n**0.5), variant, n, 9.0))
        rows.append(Row("errors", ts, min(1.0, max(0.0, dice.gauss(0.05, 0.007))), variant, n))
    return rows


def send(target: Target, rows: list[Row], now: dt.datetime) -> None:
    with as_role("worker"):
        ingest(target, list(enumerate(rows)), now=now)


def store(target: Target, rows: list[Row], now: dt.datetime) -> None:
    """As ingest did before rows had a range."""
    with as_role("worker"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("telemetry.ingest.all_in_range", lambda _rows: True)
        ingest(target, list(enumerate(rows)), now=now)


def tick(now: dt.datetime) -> None:
    with as_role("worker"):
        assert evaluate_due(now=now).failed == []


def experiment() -> Experiment:
    return Experiment.objects.get(key="checkout")


@pytest.mark.parametrize("seed", range(4))
def test_late_shuffled_repeated_and_corrected_rows_end_where_a_rebuild_ends(running: Target, seed: int) -> None:
    dice = random.Random(seed)
    waiting: list[tuple[dt.datetime, list[Row]]] = []
    for hour in range(1, 49):
        ts = START + hour * HOUR
        rows = bucket(ts, dice)
        waiting.append((ts + dt.timedelta(minutes=dice.choice([1, 5, 40, 90, 400])), rows))
        if dice.random() < 0.2:
            waiting.append((ts + dt.timedelta(hours=dice.uniform(1, 9)), rows))  # sent again
        if dice.random() < 0.2:
            waiting.append((ts + dt.timedelta(hours=dice.uniform(1, 9)), bucket(ts, dice)))  # corrected
    now = START
    for at, rows in sorted(waiting, key=lambda item: item[0]):
        dice.shuffle(rows)
        send(running, rows, now=at)
        while now < at and dice.random() < 0.7:
            now += dt.timedelta(minutes=dice.choice([5, 5, 60, 180]))
            tick(min(now, at))
    tick(START + 49 * HOUR)
    with as_role("worker"):
        assert differences(experiment()) == []
        assert Evaluation.objects.filter(experiment=experiment()).exists()
        for piece in Evidence.objects.filter(experiment=experiment()):
            body = zlib.decompress(piece.body)
            assert evidence.digest(body) == piece.digest
            assert evidence.replay(body) == body


def test_when_and_how_often_the_tick_runs_does_not_matter(running: Target) -> None:
    """Judged at every slot, or once at the end as of each missed slot: the same proposal at the same slot."""
    for hour in range(1, 40):
        send(
            running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR + dt.timedelta(minutes=2)
        )
    end = START + 40 * HOUR
    tick(end)
    with as_role("worker"):
        once = Cursor.objects.get(experiment=experiment())
        found = Recommendation.objects.values_list("action", "code", "slot", "first_stable_at", "evidence_digest").get()
        with connection.cursor() as cursor:
            cursor.execute("UPDATE metadata.recommendations SET superseded_at = now()")
            cursor.execute("UPDATE metadata.cursors SET state = NULL, judged_to = NULL, due_at = %s", [START])
    at = START + dt.timedelta(minutes=5)
    while at <= end:
        tick(at)
        at += dt.timedelta(minutes=25)
    tick(end)
    with as_role("worker"):
        often = Cursor.objects.get(experiment=experiment())
        again = Recommendation.objects.filter(superseded_at__isnull=True)
        assert again.values_list("action", "code", "slot", "first_stable_at", "evidence_digest").get() == found
        assert often.shown is not None
        assert once.shown is not None
        assert often.shown["gates"] == once.shown["gates"]


@pytest.fixture
def proposed(running: Target) -> Recommendation:
    """A scale that is open as of hour 40."""
    for hour in range(1, 41):
        send(running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR)
    tick(START + 40 * HOUR)
    with as_role("worker"):
        found = Recommendation.objects.get()
        assert found.action == "scale"
        return found


def became(proposal: Recommendation) -> str:
    """Why it was superseded; empty when it was not."""
    with as_role("worker"):
        proposal.refresh_from_db()
    assert (proposal.superseded_at is None) == (proposal.superseded_because == "")
    return proposal.superseded_because


def test_a_proposal_that_a_correction_takes_back_says_so(running: Target, proposed: Recommendation) -> None:
    for hour in range(1, 41):
        send(running, bucket(START + hour * HOUR, random.Random(hour), gain=0.0), now=START + 41 * HOUR)
    tick(START + 41 * HOUR)
    assert became(proposed) == "evidence_corrected"


def test_a_proposal_that_another_policy_would_not_make_says_so(proposed: Recommendation) -> None:
    with as_role("owner"):
        PolicyBinding.objects.update(policy=Policy.objects.get(name="default"))
    tick(START + 41 * HOUR)
    assert became(proposed) == "policy_changed"


def test_a_proposal_that_a_changed_metric_takes_back_says_that_all_was_judged_anew(proposed: Recommendation) -> None:
    with as_role("owner"), connection.cursor() as cursor:  # as it could be changed before its meaning was held
        cursor.execute("SET LOCAL session_replication_role = replica")
        Metric.objects.filter(key="vrps").update(direction="decrease")
        cursor.execute("SET LOCAL session_replication_role = origin")
    tick(START + 41 * HOUR)
    assert became(proposed) == "judged_anew"


def test_a_proposal_in_whose_place_a_newer_one_came_says_so(proposed: Recommendation) -> None:
    with as_role("owner"):
        Recommendation.objects.update(action="review", code="undecided")
    tick(START + 41 * HOUR)
    assert became(proposed) == "newer_proposal"


def test_a_proposal_that_another_answer_settles_says_so(proposed: Recommendation) -> None:
    with as_role("owner"):
        beside = Recommendation.objects.get(pk=proposed.pk)
        beside.pk, beside.variant, beside.evidence_digest = None, None, "sha256:beside"
        beside.save()
        record_decision(
            experiment(),
            digest=proposed.evidence_digest,
            action="override",
            override_to="stop",
            reason="The season is over.",
            by=Principal(kind="user", name="ann", owner="ann"),
            now=START + 40 * HOUR,
        )
    assert (became(beside), became(proposed)) == ("another_answer", "")


def test_a_second_tick_of_the_same_slot_writes_nothing(running: Target) -> None:
    send(running, bucket(START + HOUR, random.Random(1)), now=START + HOUR)
    tick(START + 2 * HOUR)
    with as_role("worker"):
        before = Evaluation.objects.count()
        assert evaluate_due(now=START + 2 * HOUR).experiments == 0
        assert Evaluation.objects.count() == before


def test_the_first_look_that_could_be_read_is_kept_until_its_rows_turn_out_to_be_too_few(running: Target) -> None:
    for hour in range(1, 31):
        ts = START + hour * HOUR
        send(running, bucket(ts, random.Random(hour)), now=ts + dt.timedelta(minutes=2))
        tick(ts + dt.timedelta(minutes=5))
    read = Cursor.objects.values_list("readable_at", flat=True)
    with as_role("worker"):
        first = read.get()
        found = Evaluation.objects.order_by("slot").exclude(code__in=("no_data", "stale", "collecting"))[0]
    assert first is not None
    assert found.slot == first

    few = [
        msgspec.structs.replace(row, n=2)
        for hour in range(1, 31)
        for row in bucket(START + hour * HOUR, random.Random(hour))
    ]
    send(running, few, now=START + 31 * HOUR)
    tick(START + 31 * HOUR)
    with as_role("worker"):
        assert read.get() is None


def test_a_suspended_proposal_is_not_accepted_whatever_it_proposes(running: Target) -> None:
    for hour in range(1, 40):
        sent = bucket(START + hour * HOUR, random.Random(hour), gain=-0.3)
        send(running, sent, now=START + hour * HOUR + dt.timedelta(minutes=2))
    end = START + 40 * HOUR
    tick(end)
    with as_role("worker"):
        proposal, cursor = Recommendation.objects.get(), Cursor.objects.get()
        assert proposal.action == "delete"
        assert cursor.shown is not None
        for part in (cursor.shown["recommendation"], *cursor.shown["variants"]):
            part |= {
                "state": "suspended",
                "reasons": [{**told("Rows that it rests on were restated."), "blocks": True}],
            }
        cursor.save()
    given: dict[str, Any] = {
        "digest": proposal.evidence_digest,
        "by": Principal(kind="user", name="ann", owner="ann"),
        "now": end,
    }
    with as_role("worker"):
        with pytest.raises(DecisionRefused, match=r"Rows that it rests on were restated\.") as refused:
            record_decision(experiment(), action="accept", **given)
        assert refused.value.code == "recommendation_suspended"
        assert experiment().status == "running"
        record_decision(experiment(), action="override", override_to="stop", reason="We end it.", **given)
        assert experiment().status == "stopped", "a person's own reason needs no rows"


def test_what_was_judged_by_an_older_policy_is_compared_by_that_policy(running: Target, team: Team) -> None:
    for hour in range(1, 31):
        send(
            running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR + dt.timedelta(minutes=2)
        )
    tick(START + 31 * HOUR)
    with as_role("owner"):
        other = Policy.objects.create(name="slow", team=team, created_at=START)
        PolicyVersion.objects.create(
            policy=other, team=team, number=1, author="a", created_at=START, activated_at=START, activated_by="a",
            body={"gates": DEFAULT_BODY["gates"], "min_days": 20},
        )  # fmt: skip
        PolicyBinding.objects.update(policy=other)
    with as_role("worker"):
        assert differences(experiment()) == []


def test_missed_slots_are_counted(running: Target) -> None:
    tick(START + dt.timedelta(minutes=5))
    tick(START + dt.timedelta(minutes=30))
    with as_role("worker"):
        assert Cursor.objects.get(experiment=experiment()).missed_slots == 4


def test_an_asked_for_slot_goes_on_record_though_nothing_changed(running: Target) -> None:
    send(running, bucket(START + HOUR, random.Random(1)), now=START + HOUR)
    tick(START + 2 * HOUR)
    asked = START + 2 * HOUR + dt.timedelta(minutes=5)
    with as_role("worker"):
        Cursor.objects.filter(experiment=experiment()).update(asked_slot=asked, due_at=asked)
    tick(asked)
    with as_role("worker"):
        assert Evaluation.objects.filter(experiment=experiment(), slot=asked).exists()
        assert Cursor.objects.get(experiment=experiment()).asked_slot is None


def test_numbers_beyond_reason_hold_up_no_other_experiment(running: Target) -> None:
    for hour in range(1, 30):
        rows = [
            Row("vrps", START + hour * HOUR, 1.7e308 * (-1) ** hour, v, 2**62, 1.7e308)
            for v in ("control", "treatment")
        ]
        store(running, rows, now=START + hour * HOUR)
    with as_role("worker"):
        done = evaluate_due(now=START + 30 * HOUR)
        assert done.experiments == 1
        shown = Cursor.objects.get(experiment=experiment()).shown
        assert done.failed or (shown is not None and shown["recommendation"]["action"] != "scale")


def test_an_answer_given_on_rows_that_were_corrected_since_says_what_would_be_advised_now(running: Target) -> None:
    rows = {h: bucket(START + h * HOUR, random.Random(h), gain=0.2) for h in range(1, 40)}
    for hour, sent in rows.items():
        send(running, sent, now=START + hour * HOUR + dt.timedelta(minutes=2))
    end = START + 40 * HOUR
    tick(end)
    with as_role("worker"):
        proposal = Recommendation.objects.get(superseded_at=None)
        assert proposal.action == "scale"
        record_decision(
            experiment(),
            digest=proposal.evidence_digest,
            action="accept",
            by=Principal(kind="user", name="ann", owner="ann"),
            now=end,
        )
    tick(end + HOUR)
    with as_role("worker"):
        assert Cursor.objects.get().revisions == {}
    worse = [
        msgspec.structs.replace(row, value=row.value * 0.7)
        for r in rows.values()
        for row in r
        if row.variant == "treatment" and row.metric == "vrps"
    ]
    send(running, worse, now=end + 2 * HOUR)
    tick(end + 2 * HOUR)
    with as_role("worker"):
        decision = proposal.decision
        assert Cursor.objects.get().revisions == {str(decision.pk): {"action": "delete", "code": "harmful"}}
        assert experiment().status == "scaled", "an answer is never undone"
        assert not Recommendation.objects.open([experiment()]).exists(), "who has decided is not asked again"
        assert Decision.objects.get().action == "accept"
    better = [row for r in rows.values() for row in r]
    send(running, better, now=end + 3 * HOUR)
    tick(end + 3 * HOUR)
    with as_role("worker"):
        assert Cursor.objects.get().revisions == {}, "corrected back"


def test_the_words_of_a_hold_say_what_is_lacking_now_and_go_on_record_once(running: Target) -> None:
    tick(START + dt.timedelta(minutes=5))
    for variant, n in (("control", 900), ("treatment", 0)):
        send(running, [Row("errors", START + HOUR, 0.05, variant, n)], now=START + HOUR)
    at = START + HOUR
    for _ in range(7):
        at += dt.timedelta(minutes=5)
        tick(at)
    with as_role("worker"):
        shown = Cursor.objects.get(experiment=experiment()).shown
        assert shown is not None
        lacks = [(r["code"], r["metric"], r["variant"]) for r in shown["recommendation"]["reasons"] if r.get("blocks")]
        assert ("no_row", "errors", "treatment") in lacks
        assert ("no_row", "errors", "control") not in lacks
        assert Evaluation.objects.filter(experiment=experiment()).count() == 2


def test_slots_in_which_nothing_can_change_are_passed_over_and_counted(running: Target) -> None:
    for hour in (1, 2):
        send(running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR)
    tick(START + 2 * HOUR + dt.timedelta(minutes=5))
    with as_role("worker"):
        before = Cursor.objects.get(experiment=experiment())
        assert before.quiet_to == START + 2 * HOUR + dt.timedelta(minutes=10)
        done = evaluate_due(now=before.quiet_to)
        assert (done.passed, done.experiments, done.newest_slot) == (1, 0, before.quiet_to)
        after = Cursor.objects.get(experiment=experiment())
        assert (after.judged_to, after.state, after.shown) == (before.quiet_to, before.state, before.shown)
        assert after.missed_slots == before.missed_slots
        assert evaluate_due(now=START + 2 * HOUR + dt.timedelta(minutes=15)).experiments == 1


def test_new_rows_that_change_nothing_before_the_next_look_leave_the_state_as_it_is(running: Target) -> None:
    with as_role("owner"):
        PolicyBinding.objects.all().delete()  # the policy of all others looks once an hour
    for hour in (1, 2):
        send(running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR)
    tick(START + 2 * HOUR + dt.timedelta(minutes=35))
    early, slot = START + 2 * HOUR + dt.timedelta(minutes=50), START + 2 * HOUR + dt.timedelta(minutes=55)
    with as_role("worker"):
        Cursor.objects.filter(experiment=experiment()).update(quiet_to=None)
        before = Cursor.objects.get(experiment=experiment())
    send(running, bucket(early, random.Random(3)), now=early + dt.timedelta(minutes=1))
    with as_role("worker"):
        done = evaluate_due(now=slot)
        assert (done.passed, done.experiments, done.newest_slot) == (1, 1, slot)
        after = Cursor.objects.get(experiment=experiment())
        assert (after.judged_to, after.state, after.shown) == (slot, before.state, before.shown)
        assert after.missed_slots == before.missed_slots + 3
        assert evaluate_due(now=slot).experiments == 0
        assert differences(experiment()) == []
    tick(START + 4 * HOUR)
    with as_role("worker"):
        assert differences(experiment()) == []


@pytest.mark.parametrize("table", ["variants", "target_kpis", "experiments", "metrics", "policy_versions", "pauses"])
def test_no_slot_is_passed_over_once_the_plan_or_the_policy_has_changed(running: Target, table: str) -> None:
    with as_role("worker"):
        Cursor.objects.filter(experiment=experiment()).update(quiet_to=START + HOUR)
    with as_role("owner"), connection.cursor() as cursor:
        if table == "pauses":
            cursor.execute(
                "INSERT INTO metadata.pauses (experiment_id, team_id, paused_at) VALUES (%s, %s, now())",
                [running.experiment_id, running.team_id],
            )
        else:
            column = "activated_at" if table == "policy_versions" else "id"
            cursor.execute(f"UPDATE metadata.{table} SET {column} = {column}")  # noqa: S608 - names of this test
    with as_role("worker"):
        assert Cursor.objects.get(experiment=experiment()).quiet_to is None


def test_a_state_is_compared_unless_nobody_would_go_on_from_it(running: Target) -> None:
    for hour in range(1, 20):
        send(running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR)
    tick(START + 20 * HOUR)
    with as_role("worker"):
        cursor = Cursor.objects.get()
        state = Checkpoint.from_bytes(zlib.decompress(cursor.state or b""))
        for fingerprint, complains in ((state.fingerprint, True), ("of another version", False)):
            wrong = msgspec.structs.replace(state, fingerprint=fingerprint, body=state.body + b"\x00")
            Cursor.objects.update(state=zlib.compress(wrong.to_bytes()))
            assert bool(differences(experiment())) is complains


def test_a_state_that_another_version_left_is_told_anew_from_the_rows(running: Target) -> None:
    for hour in range(1, 30):
        send(running, bucket(START + hour * HOUR, random.Random(hour)), now=START + hour * HOUR)
    tick(START + 30 * HOUR)
    by_name = {"slot": 0, "facts": "", "lags": {}, "needs": {}, "body": b"", "kept": []}
    foreign = zlib.compress(msgspec.msgpack.encode(by_name))
    told = ("id", "action", "code", "slot", "superseded_at")
    with as_role("worker"):
        proposed = list(Recommendation.objects.values_list(*told))
        Cursor.objects.filter(experiment=experiment()).update(state=foreign, quiet_to=None)
        assert differences(experiment()) == [], "what it led to is what the rows give"
    send(running, bucket(START + 30 * HOUR, random.Random(30)), now=START + 30 * HOUR)
    tick(START + 31 * HOUR)

    with as_role("worker"):
        after = Cursor.objects.get(experiment=experiment())
        assert proposed
        assert list(Recommendation.objects.values_list(*told)) == proposed
        assert after.judged_to == START + 31 * HOUR
        assert after.state != foreign
        assert differences(experiment()) == []
    with as_role("owner"):
        Cursor.objects.filter(experiment=experiment()).update(state=foreign)
        Evaluation.objects.filter(experiment=experiment(), slot=proposed[0][3]).delete()
    with as_role("worker"):
        assert "not on record" in " ".join(differences(experiment())), "what it led to is compared all the same"
