"""How old data is, is one question with one answer: document, board, alarm, API, acceptance and gate count by the same clock."""

import datetime as dt
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from decisioning.api.document import document
from decisioning.api.records import _tracked
from decisioning.board.presenters import freshness as board
from experiments.feeds import set_out
from experiments.models import Experiment, Pause, TargetKpi, Variant
from gates.decisions import stale_series
from gates.engine.compiled import CompiledPlan, compile_plan
from gates.engine.plan import DAY as PLAN_DAY
from gates.engine.plan import to_us
from gates.engine.state import FRESH, MISSING, OVERDUE, STALE
from gates.engine.verdicts import freshness
from gates.loading import load
from gates.models import Cursor
from gates.tick import evaluate
from telemetry.breaches import breached
from telemetry.freshness import FRESHNESS_SQL
from telemetry.ingest import Target
from telemetry.models import Outage
from telemetry.outages import NewOutage
from telemetry.outages import plan as plan_outage
from tests.conftest import as_role
from tests.examples import examples
from tests.gates.test_sweeps import HOUR, START, Portal, rows_at, send

MINUTE, DAY = dt.timedelta(minutes=1), dt.timedelta(days=1)


class Situation(NamedTuple):
    """What is true of an experiment with hourly KPIs and a target of an hour at the end of hour `at`.

    fed: hours with rows, by variant. pauses: (from, to) hours. created, ended: hours. without: a metric that has no rows, or none after
    the hour `quiet_from`. sparse: its silence is no event while the goal comes.
    """

    at: float
    control: Sequence[int]
    treatment: Sequence[int]
    pauses: Sequence[tuple[float, float | None]] = ()
    created: float = 0
    ended: float | None = None
    dropped: float | None = None
    without: str = ""
    quiet_from: int = 0
    sparse: bool = False


LIVELY, GONE = range(1, 25), range(1, 11)
SITUATIONS = {
    "fed in time": Situation(24.5, LIVELY, LIVELY),
    "a series has died": Situation(24.5, LIVELY, GONE),
    "all died, and it is not late yet": Situation(12, GONE, GONE),
    "all died, and it is late": Situation(12.2, GONE, GONE),
    "died while it was paused, and it has just been resumed": Situation(24.5, GONE, GONE, [(10.5, 24)]),
    "died while it was paused, and it was resumed long ago": Situation(24.5, GONE, GONE, [(10.5, 20)]),
    "paused now, and silent since": Situation(24, GONE, GONE, [(10.5, None)]),
    "paused twice": Situation(24.5, GONE, GONE, [(10.5, 16), (17, 24)]),
    "paused before its newest row": Situation(24.5, LIVELY, LIVELY, [(3, 8)]),
    "ended, its rows were in time then": Situation(40, GONE, GONE, ended=11),
    "ended, its rows were late then": Situation(40, GONE, GONE, ended=20),
    "a dropped arm is silent": Situation(24.5, LIVELY, LIVELY, dropped=12),
    "history brought in": Situation(24.5, LIVELY, LIVELY, created=24.1),
    "history brought in, and its feed is dead": Situation(24.5, GONE, GONE, created=24.1),
    "a series is missing and was due": Situation(24.5, LIVELY, ()),
    "a series is missing and is not due yet": Situation(1.5, [1], ()),
    "a metric is missing altogether": Situation(24.5, LIVELY, LIVELY, without="errors"),
    "a guard is silent at night": Situation(24.5, LIVELY, LIVELY, without="errors", quiet_from=12),
    "a sparse guard is silent at night": Situation(24.5, LIVELY, LIVELY, without="errors", quiet_from=12, sparse=True),
    "a sparse guard has never said anything": Situation(24.5, LIVELY, LIVELY, without="errors", sparse=True),
    "a sparse guard and its goal have died": Situation(24.5, GONE, GONE, without="errors", quiet_from=8, sparse=True),
    "a sparse guard and the goal of one arm have died": Situation(
        24.5, LIVELY, GONE, without="errors", quiet_from=8, sparse=True
    ),
}


def hours(h: float) -> dt.datetime:
    return START + h * HOUR


def staged(portal: Portal, of: Situation) -> Target:
    target = portal.start()
    with as_role("owner"):
        e = Experiment.objects.filter(pk=target.experiment_id)
        e.update(created_at=hours(of.created))
        if of.sparse:
            TargetKpi.objects.filter(experiment_id=target.experiment_id, metric__key=of.without).update(sparse=True)
        if of.dropped is not None:
            Variant.objects.create(
                experiment_id=target.experiment_id,
                team=portal.team,
                key="given-up",
                position=2,
                dropped_at=hours(of.dropped),
            )
            target = replace(target, variants=frozenset({"control", "treatment", "given-up"}))
    fed = {"control": of.control, "treatment": of.treatment}
    for hour in sorted({*of.control, *of.treatment}):
        rows = [
            r
            for r in rows_at(hours(hour), random.Random(hour), 0.1)
            if hour in fed[r.variant] and (r.metric != of.without or hour <= of.quiet_from)
        ]
        if of.dropped is not None and hour < of.dropped:
            rows += [msgspec.structs.replace(r, variant="given-up") for r in rows if r.variant == "treatment"]
        send(target, rows, now=max(hours(hour) + MINUTE, hours(of.created)))
    with as_role("owner"):
        for paused, resumed in of.pauses:
            Pause.objects.create(
                experiment_id=target.experiment_id, team=portal.team, paused_at=hours(paused),
                resumed_at=None if resumed is None else hours(resumed),
            )  # fmt: skip
            if resumed is None:
                e.update(status="paused")
        if of.ended is not None:
            e.update(status="stopped", ended_at=hours(of.ended))
        Cursor.objects.filter(pk=target.experiment_id).update(due_at=START)
    return target


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_door_says_of_data_what_the_gate_says(team: Team, name: str) -> None:
    of = SITUATIONS[name]
    target = staged(Portal(team), of)
    now = hours(of.at)
    with as_role("worker"):
        assert evaluate([target.experiment_id], now=now).failed == []
        cursor = Cursor.objects.get(pk=target.experiment_id)
        assert cursor.shown is not None
        gate = next(g["verdict"] for g in cursor.shown["gates"] if g["kind"] == "freshness")
        told = document(target.experiment_id, now=now)
        assert told is not None
        states = {k["metric"]: k["freshness"]["state"] for k in told.value["kpis"]}
        experiment = Experiment.objects.get(pk=target.experiment_id)
        late = stale_series(experiment, now)
        alarms = list(dict.fromkeys(wrong.data["experiment"] for wrong in breached(now=now)))
        ages = {age.metric: age.state for age in board.ages([experiment.pk], now=now)}
        tracked = _tracked(list(TargetKpi.objects.filter(experiment=experiment).values_list("pk", flat=True)), now)

    bad = {metric for metric, state in states.items() if state in ("stale", "unknown")}
    assert (gate == "pass") == (not bad), (gate, states)
    assert {series.partition(" of ")[0] for series in late} == bad
    assert ages == states
    assert {kpi["metric"]: kpi["state"] for kpi in tracked} == states
    if experiment.status == "running":
        assert (alarms == [experiment.key]) == (gate == "stale")


def test_these_situations_are_told_apart(team: Team) -> None:
    """The table above compares doors with each other; this says what is right."""
    portal = Portal(team)
    right = {
        "died while it was paused, and it has just been resumed": "fresh",
        "died while it was paused, and it was resumed long ago": "stale",
        "paused now, and silent since": "fresh",
        "paused twice": "late",
        "ended, its rows were in time then": "fresh",
        "ended, its rows were late then": "stale",
        "a dropped arm is silent": "fresh",
        "a series is missing and was due": "unknown",
        "a guard is silent at night": "stale",
        "a sparse guard is silent at night": "fresh",
        "a sparse guard has never said anything": "fresh",
        "a sparse guard and its goal have died": "stale",
    }
    for name, state in right.items():
        target = staged(portal, SITUATIONS[name])
        with as_role("worker"):
            told = document(target.experiment_id, now=hours(SITUATIONS[name].at))
        assert told is not None
        assert told.value["freshness"]["state"] == state, name


@examples(30, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    watermark_s=st.none() | st.integers(-3600, 5 * 86_400),
    stops=st.lists(st.integers(0, 5 * 86_400), unique=True, max_size=6),
    ended_s=st.none() | st.integers(1, 5 * 86_400),
    at_s=st.integers(1, 6 * 86_400),
    every_s=st.sampled_from([900, 3600, 86_400]),
    target_s=st.sampled_from([60, 901, 86_400]),
)
@example(
    watermark_s=0, stops=[960, 2000], ended_s=None, at_s=961, every_s=900, target_s=60
)  # paused at the last instant
def test_the_database_and_the_gates_count_by_one_clock(
    one: Callable[..., Any],
    watermark_s: int | None,
    stops: list[int],
    ended_s: int | None,
    at_s: int,
    every_s: int,
    target_s: int,
) -> None:
    gate, (state, age_s, due_at, stale_at, overdue), at = one(
        watermark_s, sorted(stops), ended_s, at_s, every_s, target_s
    )

    assert {FRESH: state in ("fresh", "due", "late"), STALE: state == "stale", MISSING: state == "unknown" and not overdue,
            OVERDUE: state == "unknown" and overdue}[gate], (gate, state)  # fmt: skip
    assert overdue == (gate in (STALE, OVERDUE))
    if ended_s is None:
        assert overdue == (stale_at is not None and at > stale_at)
        if state != "unknown":
            assert (state == "fresh") == (due_at is None or at <= due_at)
    assert (age_s is None) == (due_at is None and state == "unknown")


@pytest.fixture
def one(team: Team) -> Callable[..., Any]:
    """What the gates and what the database says of one series of an experiment with such a history, seconds from its start."""
    target = Portal(team).start()

    def asked(
        watermark_s: int | None, stops: list[int], ended_s: int | None, at_s: int, every_s: int, target_s: int
    ) -> tuple[int, Any, dt.datetime]:
        def instant(s: int | None) -> dt.datetime | None:
            return None if s is None else START + dt.timedelta(seconds=s)

        at = START + dt.timedelta(seconds=at_s)
        with as_role("owner"):
            experiment = Experiment.objects.get(pk=target.experiment_id)
            Experiment.objects.filter(pk=experiment.pk).update(
                ended_at=instant(ended_s), status="running" if ended_s is None else "stopped"
            )
            kpi = experiment.targetkpis.select_related("metric").get(metric__key="vrps")
            type(kpi.metric).objects.filter(pk=kpi.metric_id).update(
                expected_every_s=every_s, freshness_target_s=target_s
            )
            Pause.objects.all().delete()
            Pause.objects.bulk_create(
                [
                    Pause(
                        experiment=experiment, team_id=experiment.team_id, paused_at=instant(a) or at,
                        resumed_at=instant(stops[2 * i + 1]) if 2 * i + 1 < len(stops) else None,
                    )
                    for i, a in enumerate(stops[::2])
                ]
            )  # fmt: skip
        with as_role("worker"), connection.cursor() as cursor:
            (judging,) = load([experiment.pk])
            watermark = instant(watermark_s)
            asked_of = FRESHNESS_SQL.format(
                experiment="%s",
                metric="'vrps'::text",
                watermark="%s::timestamptz",
                every_s="%s",
                target_s="%s",
                at="%s",
            )
            cursor.execute(f"SELECT * FROM {asked_of}", [experiment.pk, watermark, every_s, target_s, at])  # noqa: S608 - constants
            (said,) = cursor.fetchall()
        compiled = compile_plan(judging.policy, judging.plan)
        return freshness(compiled, "vrps/control", None if watermark is None else to_us(watermark), to_us(at)), said, at

    return asked


FEEDS: list[list[tuple[float | None, dict[str, Any]]]] = [
    [(None, {"every": "weekdays", "at": "24:00", "timezone": "UTC"})],
    [(None, {"every": "daily", "at": "06:00", "timezone": "Europe/Berlin"})],
    [(None, {"cron": "*/30 8-17 * * 1-5", "timezone": "America/New_York"})],
    [(None, {"every_s": 3_600}), (30.5, {"every": "daily", "at": "02:30", "timezone": "Australia/Lord_Howe"})],
    [(None, {"cron": "10 1-4 * * *", "timezone": "Asia/Kathmandu"}), (20, {"every_s": 5_400}), (70, {"cron": "0 * * * *", "timezone": "UTC"})],
    [(None, {"every_s": 3_600})],
    [(None, {"every_s": 86_400})],
]  # fmt: skip


@examples(12, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    feed=st.sampled_from(FEEDS),
    outages=st.lists(st.tuples(st.integers(-600, 6 * 1_440), st.integers(1, 2_000)), max_size=3),
    stops=st.lists(st.integers(0, 6 * 1_440), unique=True, max_size=4),
    watermark_m=st.none() | st.integers(-600, 6 * 1_440),
    at_m=st.integers(1, 12 * 1_440),
    target_s=st.sampled_from([60, 3_600, 86_400]),
    ask=st.integers(-3 * 1_440, 12 * 1_440),
)
def test_the_database_and_the_gates_have_the_same_calendars_and_outages(
    team: Team,
    calendar: Callable[..., tuple[CompiledPlan, Callable[[str, Sequence[Any]], Any]]],
    feed: list[tuple[float | None, dict[str, Any]]],
    outages: list[tuple[int, int]],
    stops: list[int],
    watermark_m: int | None,
    at_m: int,
    target_s: int,
    ask: int,
) -> None:
    compiled, asked = calendar(feed, outages, sorted(stops), target_s)
    watermark = None if watermark_m is None else START + watermark_m * MINUTE
    at, instant = START + at_m * MINUTE, START + ask * MINUTE
    every_s = compiled.kpis["vrps"].expected_every_s
    spec = compiled.specs[compiled.series_index["vrps/control"]]

    state, age_s, due_at, stale_at, overdue = asked(
        f"SELECT * FROM {FRESHNESS_SQL}".format(experiment="%s", metric="'vrps'", watermark="%s::timestamptz", every_s="%s", target_s="%s", at="%s"),  # noqa: S608 - constants
        ["experiment", watermark, every_s, target_s, at],
    )  # fmt: skip
    gate = freshness(compiled, "vrps/control", None if watermark is None else to_us(watermark), to_us(at))
    nearest, before, after, expected = asked(
        "SELECT metrics.due_nearest(m.id, %s, t), metrics.due_before(m.id, %s, t), metrics.due_after(m.id, %s, t), "
        "(SELECT array_agg(d ORDER BY d) FROM metrics.dues(m.id, %s, t, t + interval '3 days') AS d) "
        "FROM metadata.metrics m, (SELECT %s::timestamptz AS t) AS asked WHERE m.key = 'vrps'",
        [every_s, every_s, every_s, every_s, instant],
    )

    assert overdue == (gate in (STALE, OVERDUE)), (state, age_s, due_at, stale_at)
    assert {FRESH: state in ("fresh", "due", "late"), STALE: state == "stale"}.get(gate, state == "unknown")
    us, schedule = to_us(instant), spec.schedule
    assert (to_us(nearest), to_us(before), to_us(after)) == (
        schedule.answered(us),
        schedule.before(us),
        schedule.after(us),
    )
    assert [to_us(due) for due in expected or []] == list(schedule.between(us, us + 3 * PLAN_DAY))


@pytest.fixture
def calendar(team: Team) -> Callable[..., tuple[CompiledPlan, Callable[[str, Sequence[Any]], Any]]]:
    """An experiment whose metric is due by these schedules, with outages and pauses, minutes from its start; and how to ask the database."""
    target = Portal(team).start()

    def staged(
        feed: list[tuple[float | None, dict[str, Any]]], outages: list[tuple[int, int]], stops: list[int], target_s: int
    ) -> tuple[CompiledPlan, Callable[[str, Sequence[Any]], Any]]:
        with as_role("owner"):
            experiment = Experiment.objects.get(pk=target.experiment_id)
            metric = experiment.targetkpis.select_related("metric").get(metric__key="vrps").metric
            type(metric).objects.filter(pk=metric.pk).update(freshness_target_s=target_s)
            for since, expected in feed:
                set_out(metric, expected, since=None if since is None else hours(since), now=START + 10 * DAY)
            Outage.objects.all().delete()
            for begins, lasts in outages:
                new = NewOutage(
                    begins_at=START + begins * MINUTE, ends_at=START + (begins + lasts) * MINUTE, reason="moved", metrics=["vrps"]
                )  # fmt: skip
                plan_outage(new, team=team, now=START)
            Pause.objects.all().delete()
            for i in range(0, len(stops) - 1, 2):
                Pause.objects.create(
                    experiment=experiment, team_id=experiment.team_id, paused_at=START + stops[i] * MINUTE,
                    resumed_at=START + stops[i + 1] * MINUTE,
                )  # fmt: skip
        with as_role("worker"):
            (judging,) = load([experiment.pk])

        def asked(sql: str, values: Sequence[Any]) -> Any:
            with as_role("worker"), connection.cursor() as cursor:
                cursor.execute(sql, [experiment.pk if value == "experiment" else value for value in values])
                return cursor.fetchone()

        return compile_plan(judging.policy, judging.plan), asked

    return staged
