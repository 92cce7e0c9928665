"""Sweeps over real rows: when they ran leaves no trace, and how many statements they take does not grow with the experiments."""

import datetime as dt
import random
import zlib
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from experiments.models import Experiment, Metric, TargetKpi, Variant
from gates.consistency import differences
from gates.engine.checkpoint import Checkpoint
from gates.models import Cursor, Evaluation, Policy, PolicyBinding, PolicyVersion, Recommendation, Step
from gates.tick import due, evaluate, evaluate_due, skip_unchanged
from telemetry.ingest import Target, ingest
from telemetry.row import Row
from tests.conftest import as_role
from tests.examples import examples
from tests.gates.histories import DENSITY, GOAL, GUARD

START = dt.datetime(2026, 11, 10, 7, tzinfo=dt.UTC)
HOUR, SLOT = dt.timedelta(hours=1), dt.timedelta(minutes=10)
RULES = {
    "gates": [{**GOAL, "delete_below": 0.02}, {**GUARD, "max_harm": 0.3}, {**DENSITY, "at_least": 0.7}],
    "slot_s": 600,
    "look_s": 3600,
    "closed_after_s": 600,
    "persist": 2,
    "min_days": 0,
    "max_days": 1,
    "planned_units": 6000,
    "snooze_days": 1,
}


class Portal:
    """Experiments of one team that measure the same and are judged by the same rules."""

    def __init__(self, team: Team) -> None:
        self.team, self.made = team, 0
        with as_role("owner"):
            spec: dict[str, Any] = {"expected_every_s": 3600, "freshness_target_s": 3600, "created_at": START}
            self.goal = Metric.objects.create(key="vrps", name="Value per session", **spec)
            self.guard = Metric.objects.create(
                key="errors", name="Errors", kind="proportion", direction="decrease", **spec
            )
            self.policy = Policy.objects.create(team=team, name="brisk", created_at=START)
            PolicyVersion.objects.create(
                policy=self.policy,
                team=team,
                number=1,
                body=RULES,
                author="ann",
                created_at=START,
                activated_at=START,
            )

    def start(self) -> Target:
        self.made += 1
        with as_role("owner"):
            experiment = Experiment.objects.create(
                key=f"trial-{self.made}",
                name="t",
                hypothesis="h",
                owner="o",
                team=self.team,
                status="running",
                created_at=START,
                started_at=START,
            )
            for position, key in enumerate(("control", "treatment")):
                Variant.objects.create(experiment=experiment, key=key, control=not position, position=position)
            TargetKpi.objects.create(experiment=experiment, metric=self.goal, position=0)
            TargetKpi.objects.create(experiment=experiment, metric=self.guard, role="guardrail", position=1)
            PolicyBinding.objects.create(experiment=experiment, team=self.team, policy=self.policy)
            Cursor.objects.filter(experiment=experiment).update(due_at=START)
        return Target(experiment.pk, self.team.pk, frozenset({"control", "treatment"}))


@pytest.fixture
def portal(team: Team) -> Portal:
    return Portal(team)


def send(target: Target, rows: list[Row], now: dt.datetime) -> None:
    with as_role("worker"):
        ingest(target, list(enumerate(rows)), now=now)


def sweep(target: Target, now: dt.datetime) -> None:
    with as_role("worker"):
        skip_unchanged(now=now)
        assert evaluate([target.experiment_id], now=now).failed == []


def judge_each_slot(target: Target, now: dt.datetime) -> None:
    """One slot, in full: nothing is ever passed over."""
    with as_role("worker"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("gates.tick._passes_over", lambda *_: False)
        Cursor.objects.filter(experiment_id=target.experiment_id).update(quiet_to=None)
        assert evaluate([target.experiment_id], now=now).failed == []


def rows_at(ts: dt.datetime, dice: random.Random, gain: float) -> list[Row]:
    rows = []
    for variant, more in (("control", 0.0), ("treatment", gain)):
        n = dice.randrange(950, 1050)
        rows.append(Row("vrps", ts, 3 * (1 + more) + dice.gauss(0, 3 / n**0.5), variant, n, 9.0))
        rows.append(Row("errors", ts, min(1.0, max(0.0, dice.gauss(0.2, 0.0126))), variant, n))
    return rows


def story(dice: random.Random) -> list[tuple[dt.datetime, list[Row]]]:
    """What arrives when: hours in time, late, never, twice, or corrected after they were judged."""
    gain, sent = dice.choice([-0.3, 0.0, 0.3]), []
    for hour in range(1, 10):
        ts = START + hour * HOUR
        rows = rows_at(ts, dice, gain)
        if dice.random() < 0.1:
            del rows[dice.randrange(len(rows))]
        at = ts + dt.timedelta(minutes=dice.choice([0, 1, 5, 5, 25, 90, 200]))
        sent.append((at, rows))
        if dice.random() < 0.15:
            again = rows if dice.random() < 0.5 else rows_at(ts, dice, gain)
            sent.append((at + dt.timedelta(minutes=dice.randrange(1, 300)), again))
    return sorted(sent, key=lambda item: item[0])


def found(target: Target) -> object:
    """What people see now: gates with readings, recommendations, and the proposals that wait for them."""
    with as_role("worker"):
        cursor = Cursor.objects.get(experiment_id=target.experiment_id)
        assert cursor.shown is not None
        told = [cursor.shown["recommendation"], *cursor.shown["variants"]]
        return (
            cursor.judged_to,
            cursor.shown["gates"],
            [(r["action"], r["code"], r["variant"], r["state"], r["first_stable_at"]) for r in told],
            list(
                Recommendation.objects.open([Experiment.objects.get(pk=target.experiment_id)]).values_list(
                    "variant__key", "action", "code", "slot", "first_stable_at", "knowable_at"
                )
            ),
        )


def state_of(target: Target) -> object:
    with as_role("worker"):
        state = Checkpoint.from_bytes(
            zlib.decompress(Cursor.objects.get(experiment_id=target.experiment_id).state or b"")
        )
    return state.slot, state.body, state.needs, state.visibility_lags


@examples(2, ignore=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_when_and_how_often_sweeps_ran_leaves_no_trace(portal: Portal, seed: int) -> None:
    dice = random.Random(seed)
    swept, watched = portal.start(), portal.start()
    arriving, end, wake = story(dice), START + 10 * HOUR + dice.randrange(6) * SLOT, START
    for slot in range(1, (end - START) // SLOT + 1):
        now = START + slot * SLOT
        while arriving and arriving[0][0] <= now:
            at, rows = arriving.pop(0)
            dice.shuffle(rows)
            for target in (swept, watched):
                send(target, rows, now=at)
        judge_each_slot(watched, now)
        if now >= wake or now == end:
            for _ in range(dice.choice([1, 1, 2])):
                sweep(swept, now + dt.timedelta(seconds=dice.randrange(600)))
            assert found(swept) == found(watched)
            wake = now + dice.choice([1, 1, 2, 3, 6, 18]) * SLOT

    for target in (swept, watched):
        with as_role("worker"):
            Cursor.objects.filter(experiment_id=target.experiment_id).update(quiet_to=None)
        judge_each_slot(target, end + SLOT)
    assert state_of(swept) == state_of(watched)
    with as_role("worker"):
        Cursor.objects.update(due_at=None)


@pytest.mark.parametrize("new", [False, True], ids=["with nothing new", "with new rows"])
def test_a_sweep_takes_as_many_statements_for_six_experiments_as_for_two(portal: Portal, new: bool) -> None:
    targets = [portal.start() for _ in range(8)]
    for hour in range(1, 4):
        for target in targets:
            send(target, rows_at(START + hour * HOUR, random.Random(hour), -0.3), now=START + hour * HOUR)
        with as_role("worker"):
            evaluate([t.experiment_id for t in targets], now=START + hour * HOUR + SLOT)

    counts = []
    for some in (targets[:2], targets[2:]):
        with as_role("worker"):
            Cursor.objects.update(due_at=None)
            ids = [t.experiment_id for t in some]
            Cursor.objects.filter(pk__in=ids).update(due_at=START + 3 * HOUR + 2 * SLOT)
        now = START + (4 * HOUR + SLOT if new else 3 * HOUR + 2 * SLOT)
        if new:
            for target in some:
                send(target, rows_at(START + 4 * HOUR, random.Random(4), -0.3), now=now)
        with as_role("worker"), CaptureQueriesContext(connection) as statements:
            passed = skip_unchanged(now=now).passed
            chunks, _ = due(now=now)
            done = [evaluate(ids, now=now) for ids in chunks]
        counts.append(len(statements))
        assert passed + sum(d.experiments for d in done) == len(some)
        assert bool(sum(d.evaluations for d in done)) == new
        assert bool(passed) != new

    assert counts[0] == counts[1]
    with as_role("worker"):
        assert Recommendation.objects.count() == (8 if new else 0)
        assert Evaluation.objects.filter(slot__gt=START + 3 * HOUR).exists() == new


def test_of_many_histories_to_tell_anew_a_chunk_takes_a_few_and_the_others_come_in_the_next_round(
    portal: Portal,
) -> None:
    targets = [portal.start() for _ in range(5)]
    for hour in range(1, 7):
        for target in targets:
            send(target, rows_at(START + hour * HOUR, random.Random(hour), -0.3), now=START + hour * HOUR)
    with as_role("worker"):
        evaluate_due(now=START + 6 * HOUR + SLOT)
    with as_role("owner"):
        PolicyVersion.objects.create(
            policy=portal.policy, team=portal.team, number=2, body={**RULES, "min_days": 1}, author="ann",
            created_at=START, activated_at=START + 6 * HOUR,
        )  # fmt: skip
    now = START + 6 * HOUR + 2 * SLOT
    with as_role("worker"):
        facts = list(Step.objects.order_by("pk").values_list("pk", "slot"))
        first = evaluate([t.experiment_id for t in targets], now=now)
        rest, more = due(now=now)
        done = evaluate_due(now=now)

    assert (first.experiments, first.put_off, first.overtaken) == (1, 4, [])
    assert [len(ids) for ids in rest] == [1, 1, 1, 1]
    assert not more
    assert (done.experiments, done.put_off) == (4, 0)
    with as_role("worker"):
        assert all(
            because == "policy_changed"
            for because in Recommendation.objects.exclude(superseded_at=None).values_list(
                "superseded_because", flat=True
            )
        )
        assert Recommendation.objects.exclude(superseded_at=None).count() == 5
        assert (
            list(Step.objects.filter(pk__in=[pk for pk, _ in facts]).order_by("pk").values_list("pk", "slot")) == facts
        ), "facts that are the same stay"
        assert [differences(Experiment.objects.get(pk=t.experiment_id)) for t in targets] == [[]] * 5
