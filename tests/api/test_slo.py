"""The portal's own figures come from what is stored, and what never came cannot flatter them."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection

from decisioning.access.models import Reads
from decisioning.slo import figures as slo
from decisioning.slo.figures import Latency, Share
from experiments.models import Experiment
from gates.models import Cursor, PolicyVersion, Recommendation
from telemetry.models import RefreshRun, Source
from tests.api.conftest import Caller
from tests.conftest import as_role
from tests.walk import Walk

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)


def running(ops: Caller, name: str, *, days: int = 3) -> dict[str, Any]:
    """An experiment that was created and started days ago."""
    made = ops.experiment(name=name)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE metadata.experiments SET created_at = %(at)s, started_at = %(at)s WHERE id = %(id)s",
            {"at": NOW - timedelta(days=days), "id": made["id"]},
        )
    return made


def judged(experiment: dict[str, Any], action: str, code: str) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE metadata.cursors SET shown = jsonb_build_object('recommendation', jsonb_build_object('action', %s, 'code', %s)) "
            "WHERE experiment_id = %s",
            [action, code, experiment["id"]],
        )


def proposed(experiment: dict[str, Any], team: int, *, after: timedelta) -> None:
    with as_role("owner"):
        Recommendation.objects.create(
            experiment_id=experiment["id"], team_id=team, action="scale", code="wins", slot=NOW, proposed_at=NOW - HOUR,
            knowable_at=NOW - HOUR - after, rationale=[], blockers=[], evidence_digest="sha256:0",
            policy_version=PolicyVersion.objects.earliest("id"), fold=1,
        )  # fmt: skip


def arrive(experiment: dict[str, Any], ts: datetime, delay: timedelta) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        for variant in ("control", "treatment"):
            cursor.execute(
                "INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n, first_received_at) "
                "VALUES (%s, 'vrps', %s, %s, 1, 1, %s)",
                [experiment["id"], variant, ts, ts + delay],
            )


def test_budgets_say_how_much_of_the_misses_is_left() -> None:
    assert Share(85, 100, 0.8, at_least=True).budget_left == pytest.approx(0.25)
    assert Share(3, 100, 0.01, at_least=False).holds is False
    assert Share(0, 0, 0.8, at_least=True).share is None
    assert Latency(200.0, 900, 100, 1).budget_left == pytest.approx(0.8)


def test_an_installation_without_anything_promises_nothing_and_says_so(ops: Caller) -> None:
    told = ops.get("/api/slo").json()
    assert (told["telemetry_latency"]["p95_s"], told["telemetry_latency"]["holds"]) == (None, None)
    assert (told["recommended_within_24h"]["share"], told["telemetry_failures"]["share"]) == (None, None)


def test_rows_count_their_delay_and_missing_buckets_their_age(ops: Caller) -> None:
    made = running(ops, "x")
    for k in range(95):
        arrive(made, NOW.replace(second=0, microsecond=0) - (k + 1) * timedelta(minutes=15), timedelta(seconds=60))
    good = ops.get("/api/slo").json()["telemetry_latency"]
    assert (good["p95_s"], good["holds"]) == (60.0, True)

    running(ops, "silent")
    bad = ops.get("/api/slo").json()["telemetry_latency"]
    assert bad["p95_s"] > 20 * 3600
    assert (bad["holds"], bad["budget_left"] < 0) == (False, True)


def test_the_share_counts_decisive_and_calm_apart_and_names_what_blocks_the_rest(ops: Caller) -> None:
    fast, slow, calm, stale, unjudged = (running(ops, name) for name in ("fast", "slow", "calm", "stale", "unjudged"))
    running(ops, "young", days=0)
    proposed(fast, ops.team.pk, after=HOUR)
    proposed(slow, ops.team.pk, after=30 * HOUR)
    judged(calm, "hold", "collecting")
    judged(stale, "hold", "stale")

    told = ops.get("/api/slo").json()
    share = told["recommended_within_24h"]
    assert (share["part"], share["whole"], share["decisive"], share["calm"]) == (2, 5, 1, 1)
    assert (share["share"], share["holds"]) == (0.4, False)
    assert {b["code"]: b["experiments"] for b in share["blocked"]} == {
        "proposed_late": [slow["key"]],
        "stale": [stale["key"]],
        "no_data": [unjudged["key"]],
    }
    assert (told["decision_latency"]["p95_s"], told["decision_latency"]["late"]) == (30 * 3600.0, 1)


def test_what_cannot_be_judged_counts_as_not_judged_and_never_as_a_calm_hold(ops: Caller) -> None:
    held = running(ops, "held")
    judged(held, "hold", "collecting")
    assert ops.get("/api/slo").json()["recommended_within_24h"]["calm"] == 1
    with as_role("owner"):
        Cursor.objects.filter(pk=held["id"]).update(
            unjudgeable={"since": (NOW - 30 * HOUR).isoformat(), "reason": "It cannot be judged.", "row": None},
            due_at=NOW + HOUR,
        )

    told = ops.get("/api/slo").json()
    assert told["recommended_within_24h"]["calm"] == 0
    assert told["recommended_within_24h"]["blocked"] == [
        {"code": "not_judged", "count": 1, "experiments": [held["key"]]}
    ]
    assert (told["decision_latency"]["not_judged"], told["decision_latency"]["late"]) == (1, 1)
    assert told["decision_latency"]["p95_s"] >= 30 * 3600


@pytest.fixture
def walk(ops: Caller) -> Walk:
    return Walk(ops.team)


def told_of(walk: Walk) -> dict[str, Any]:
    """What is promised about an experiment that the portal has known since its start."""
    with as_role("owner"):
        Experiment.objects.filter(key=walk.key).update(created_at=walk.start)
    return walk.get("/api/slo")


def every_second_hour(walk: Walk) -> list[dict[str, Any]]:
    """Half the buckets, the newest among them."""
    kept = {ts.isoformat() for ts in list(walk.hours())[::-2]}
    return [row for row in walk.rows() if row["ts"] in kept]


def test_a_hold_that_lacks_buckets_is_no_calm_one_and_is_listed_by_what_it_lacks(walk: Walk) -> None:
    walk.create()
    walk.send(every_second_hour(walk))
    walk.tick()
    assert walk.recommendation()["code"] == "collecting"

    share = told_of(walk)["recommended_within_24h"]

    assert (share["part"], share["whole"], share["calm"]) == (0, 1, 0)
    assert share["blocked"] == [{"code": "density", "count": 1, "experiments": [walk.key]}]


def test_a_hold_that_lacks_an_estimate_one_can_rely_on_is_no_calm_one(walk: Walk) -> None:
    walk.create()
    walk.send([row | ({"variance": 1e7} if row["metric"] == "vrps" else {}) for row in walk.rows()])
    walk.tick()

    share = told_of(walk)["recommended_within_24h"]

    assert (share["calm"], [(b["code"], b["experiments"]) for b in share["blocked"]]) == (0, [("noisy", [walk.key])])


def test_a_calm_hold_says_how_many_units_it_needs_and_about_when(walk: Walk) -> None:
    walk.create()
    walk.send([row | {"n": 300} for row in walk.rows(uplift=0.01)])
    walk.tick()
    share = told_of(walk)["recommended_within_24h"]
    cursor = Cursor.objects.get()
    assert cursor.shown
    assert cursor.judged_to
    undecided = [g["limits"] for g in cursor.shown["gates"] if g["verdict"] == "inconclusive"]
    assert undecided

    [hold] = share["calm_holds"]

    assert (share["calm"], share["blocked"], hold["experiment"]) == (1, [], walk.key)
    assert hold["units"] == math.ceil(max(lacks["days_left"] * lacks["units_per_day"] for lacks in undecided)) > 0
    days = max(lacks["days_left"] for lacks in undecided)
    assert abs(at(hold) - (cursor.judged_to + timedelta(days=days))) < HOUR


def test_a_calm_hold_never_ends_before_the_days_it_needs_nor_after_a_person_is_asked(ops: Caller) -> None:
    young = Walk(ops.team, days=3)
    young.create()
    young.send(young.rows(uplift=0.5))
    young.tick()
    [hold] = told_of(young)["recommended_within_24h"]["calm_holds"]
    assert at(hold) == young.start + timedelta(days=7)

    slow = Walk(ops.team, days=9)
    slow.key = "slow"
    slow.create()
    slow.send([row | {"n": 4} for row in slow.rows()])
    slow.tick()
    hold = told_of(slow)["recommended_within_24h"]["calm_holds"][-1]
    assert (hold["experiment"], at(hold)) == ("slow", slow.start + timedelta(days=28))


def test_a_calm_hold_with_too_few_units_for_an_interval_says_how_many_are_missing(walk: Walk) -> None:
    goal = {"metric": {"key": "vrps", "expected_every_s": 3600, "freshness_target_s": 3600}}
    walk.create(target_kpis=[goal])
    walk.send([row | {"n": 4} for row in walk.rows(uplift=0.9) if row["metric"] == "vrps"])
    walk.tick()

    [hold] = told_of(walk)["recommended_within_24h"]["calm_holds"]

    arm = 9 * 24 * 4
    assert hold["units"] == pytest.approx(2 * (1000 - arm), abs=20), "of both arms"
    assert abs(at(hold) - NOW - (1000 - arm) / (24 * 4) * timedelta(days=1)) < 3 * HOUR


def at(hold: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(hold["about_at"])


def test_slots_that_nobody_judges_count_as_late_proposals_and_their_holds_are_no_calm_ones(ops: Caller) -> None:
    made = {name: running(ops, name) for name in ("prompt", "unjudged", "proposed", "quiet")}
    proposed(made["prompt"], ops.team.pk, after=HOUR)
    proposed(made["proposed"], ops.team.pk, after=HOUR)
    judged(made["unjudged"], "hold", "open")
    judged(made["quiet"], "hold", "open")
    now = datetime.now(UTC)
    with as_role("owner"):
        for name, hours in (("unjudged", 30.0), ("proposed", 30.0), ("quiet", 0.05)):
            Cursor.objects.filter(experiment=made[name]["id"]).update(due_at=now - hours * HOUR)
    assert ops.post(f"/api/experiments/{made['unjudged']['key']}/evaluate").status_code == 202, "asking hides nothing"

    told = ops.get("/api/slo").json()

    latency, share = told["decision_latency"], told["recommended_within_24h"]
    assert (latency["counted"], latency["late"], latency["not_judged"], latency["holds"]) == (3, 1, 1, False)
    assert latency["p95_s"] == pytest.approx(30 * 3600, abs=60)
    assert (share["decisive"], [hold["experiment"] for hold in share["calm_holds"]]) == (2, [made["quiet"]["key"]])
    assert share["blocked"] == [{"code": "not_judged", "count": 1, "experiments": [made["unjudged"]["key"]]}]


def test_the_second_clock_runs_from_the_first_read_to_a_proposal_and_on_while_there_is_none(
    ops: Caller, stranger: Caller
) -> None:
    decided, waiting, unread = (running(ops, name, days=20) for name in ("decided", "waiting", "unread"))
    for made, days in ((decided, 4), (waiting, 10)):
        with as_role("owner"):
            Cursor.objects.filter(experiment=made["id"]).update(readable_at=NOW - timedelta(days=days))
    proposed(decided, ops.team.pk, after=HOUR)
    proposed(unread, ops.team.pk, after=HOUR)

    told = ops.get("/api/slo").json()["days_to_decide"]

    assert (told["counted"], told["waiting"]) == (2, 1)
    assert (told["median"], told["p95"]) == (4.0, pytest.approx(10, abs=0.01))
    none = stranger.get("/api/slo").json()["days_to_decide"]
    assert (none["median"], none["counted"], none["waiting"]) == (None, 0, 0)


def test_reads_that_failed_or_were_never_counted_use_up_the_budget(ops: Caller) -> None:
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    for age, asked, failed, stale, done in (
        (50, 600, 0, 30, True),
        (40, 600, 1, 0, True),
        (30, 60, 0, 0, False),
        (0, 5, 0, 0, False),
    ):
        Reads.objects.create(
            minute=minute - timedelta(minutes=age),
            process=f"p{age}",
            asked=asked,
            failed=failed,
            stale=stale,
            done=done,
        )
    Reads.objects.create(minute=minute - timedelta(days=31), process="old", asked=9, failed=9, stale=0, done=True)

    told = ops.get("/api/slo").json()["reads"]

    lost = math.ceil((600 + 600 + 60 + 5) / 4 / 6)  # ten seconds of an ordinary minute
    assert (told["whole"], told["part"], told["stale"], told["unknown"]) == (1265 + lost, 1264, 30, lost)
    assert told["holds"] is False
    assert told["budget_left"] < 0
    assert told["burn"][0] == {"over_h": 1.0, "rate": pytest.approx((1 + lost) / (1265 + lost) / 0.001)}


def test_runs_that_were_due_and_never_came_count_as_failed(ops: Caller) -> None:
    with as_role("owner"):
        Source.objects.create(
            key="feed", team=ops.team, kind="file", path="x.csv", query="SELECT 1", schedule_s=3600, metrics=["latency"],
            created_at=NOW - timedelta(hours=10, minutes=1), due_at=NOW,
        )  # fmt: skip
        for number in range(7):
            RefreshRun.objects.create(
                run_id=f"00000000-0000-4000-8000-{number:012d}", job_name="feed", source="feed", team=ops.team, started_at=NOW,
                finished_at=NOW, status="succeeded",
            )  # fmt: skip
    told = ops.get("/api/slo").json()["telemetry_failures"]
    assert (told["part"], told["whole"], told["missed"]) == (3, 10, 3)


def test_failed_runs_and_open_answers_are_counted_for_ones_own_teams(ops: Caller, stranger: Caller) -> None:
    with as_role("worker"):
        for status in ("succeeded", "failed", "running"):
            ended = None if status == "running" else NOW
            RefreshRun.objects.create(
                run_id=f"00000000-0000-4000-8000-{len(status):012d}", job_name="feed", source="feed", team=ops.team, started_at=NOW,
                finished_at=ended, status=status,
            )  # fmt: skip
    made = running(ops, "open")
    proposed(made, ops.team.pk, after=HOUR)
    told = ops.get("/api/slo").json()
    assert (told["telemetry_failures"]["part"], told["telemetry_failures"]["whole"]) == (1, 2)
    assert (told["answers"]["open"], told["answers"]["overdue"]) == (1, 0)
    assert stranger.get("/api/slo").json()["telemetry_failures"]["whole"] == 0


def test_runs_of_the_portal_itself_do_not_water_down_those_of_sources_that_fail(ops: Caller) -> None:
    with as_role("worker"):
        for number in range(100):
            job, team = ("feed", ops.team) if number < 2 else ("portal/evaluate", None)
            RefreshRun.objects.create(
                run_id=f"00000000-0000-4000-8000-{number:012d}", job_name=job, source=job.replace("portal/evaluate", ""), team=team, started_at=NOW, finished_at=NOW,
                status="succeeded" if number else "failed",
            )  # fmt: skip
        whole = slo.figures(now=NOW + HOUR).failures
    told = ops.get("/api/slo").json()["telemetry_failures"]
    assert (told["part"], told["whole"]) == (1, 2)
    assert (whole.part, whole.whole) == (1, 2), "the whole portal counts as a team does"


def test_figures_that_are_dear_to_count_are_kept_for_a_while_for_those_who_see_the_same(
    ops: Caller, stranger: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrive(running(ops, "dear"), NOW - HOUR, timedelta(seconds=1))
    cheap = [ops.get("/api/slo").json()["as_of"] for _ in range(2)]
    monkeypatch.setattr(slo, "_DEAR_S", 0.0)
    monkeypatch.setattr(slo, "_SHARE", 10_000)
    dear = [ops.get("/api/slo").json()["as_of"] for _ in range(2)]
    other = stranger.get("/api/slo").json()

    assert cheap[0] < cheap[1]
    assert cheap[1] < dear[0] == dear[1]
    assert (other["as_of"] > dear[0], other["telemetry_latency"]["p95_s"]) == (True, None), (
        "nobody reads another team's"
    )
