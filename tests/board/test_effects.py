"""What the effect's picture is drawn from: the gates' own readings, for every kind of goal."""

import datetime as dt
import random

import msgspec
import pytest
from django.db import connection
from django.test import Client

from decisioning.access.models import Team
from decisioning.board.presenters import history, page_data
from experiments.models import Experiment, Metric, TargetKpi, Variant
from experiments.plan import LARGEST
from gates.loading import plans_of
from gates.models import Cursor, Step
from gates.tick import evaluate_due
from tests.board.scenes import HOUR, Scene
from tests.conftest import as_role

VALUES = ", ".join(["%s"] * 13)
COLUMNS = "experiment_id, ts, metric, variant, value, n, variance, denominator_value, denominator_variance, covariance, team_id, first_received_at, received_at"


def judged(team: Team, now: dt.datetime, *, kind: str, direction: str = "increase", every_s: int = 3600) -> Experiment:
    """An experiment with three days of rows of one goal, judged by the tick."""
    start = (now - dt.timedelta(days=3)).replace(minute=0, second=0, microsecond=0)
    with as_role("owner"):
        metric = Metric.objects.create(key="goal", name="The goal", kind=kind, direction=direction, expected_every_s=every_s,
                                       freshness_target_s=every_s, created_at=start)  # fmt: skip
        e = Experiment.objects.create(key="ratio", name="A ratio", hypothesis="It is drawn", owner="Ines", team=team, status="running",
                                      created_at=start, started_at=start)  # fmt: skip
        for i, arm in enumerate(("control", "treatment")):
            Variant.objects.create(experiment=e, key=arm, control=i == 0, position=i)
        TargetKpi.objects.create(experiment=e, metric=metric, role="goal", position=0, minimum_effect=0.02, baseline_mean=0.3, baseline_stddev=0.4)  # fmt: skip
        dice, rows, ts = random.Random(7), [], start + dt.timedelta(seconds=every_s)
        while ts <= now:
            for arm, mean in (("control", 0.30), ("treatment", 0.31)):
                below = (2.0, 1.5, 0.1) if kind == "ratio" else (None, None, None)
                rows.append((e.pk, ts, "goal", arm, mean + dice.gauss(0, 0.01), 1000, 0.2, *below, team.pk, ts + dt.timedelta(minutes=3), ts + dt.timedelta(minutes=3)))  # fmt: skip
            ts += dt.timedelta(seconds=every_s)
        with connection.cursor() as cursor:
            cursor.executemany(
                f"INSERT INTO metrics.experiment_kpis ({COLUMNS}) VALUES ({VALUES})",  # noqa: S608 - names alone
                rows,
            )
        Cursor.objects.get_or_create(experiment=e, defaults={"team": team, "due_at": start})
    with as_role("worker"):
        assert evaluate_due(now=now).failed == []
    return e


@pytest.mark.parametrize(
    ("kind", "direction", "every_s"),
    [
        ("mean", "increase", 3600),
        ("proportion", "decrease", 3600),
        ("ratio", "increase", 3600),
        ("ratio", "decrease", 3600),
        ("mean", "increase", 43_200),
    ],
)
def test_the_newest_point_of_the_picture_is_what_the_gate_has_read(
    board: Client, growth: Team, moment: dt.datetime, kind: str, direction: str, every_s: int
) -> None:
    e = judged(growth, moment, kind=kind, direction=direction, every_s=every_s)

    with as_role("worker"):
        data = page_data.load([e.pk], now=moment)
        read = next(g["reading"] for g in page_data.shown_of(data, e.pk)["gates"] if g["kind"] == "uplift")
    drawn = data.effects[e.pk, "treatment"]
    assert [round(value, 11) for value in drawn[-1].point] == pytest.approx(
        [read["lower"], read["estimate"], read["upper"]], rel=1e-9
    )
    assert drawn[-1].n == read["n"]
    assert len(drawn) >= 3
    text = board.get("/experiments/ratio").text
    assert "Uplift of The goal" in text
    assert "Uplift as a table" in text
    assert "chart--spark" in board.get("/").text


def test_a_ratios_value_is_its_numerator_by_its_denominator(board: Client, growth: Team, moment: dt.datetime) -> None:
    e = judged(growth, moment, kind="ratio")

    with as_role("worker"):
        data = page_data.load([e.pk], now=moment)
        days = history.series((e.pk, kpi) for kpi in data.plans[e.pk].kpis)[e.pk, "goal", "control"]
    assert days[-1].so_far == pytest.approx(0.15, rel=0.02)
    assert all(day.value == pytest.approx(0.15, rel=0.05) for day in days)
    assert 71_000 <= days[-1].units <= 73_000


def test_the_boards_plan_is_the_gates_plan(scene: Scene, board: Client) -> None:
    e = scene.experiment(days=2, treatments=("one", "two"))
    with as_role("owner"):
        TargetKpi.objects.create(
            experiment=e,
            metric=scene.metric("load", kind="gauge", direction=None),
            role="shown",
            position=2,
            target_at_most=0.1,
        )
    with as_role("worker"):
        assert page_data.load([e.pk], now=scene.now).plans == plans_of([e.pk])


def test_a_day_without_a_look_is_left_out(scene: Scene, board: Client) -> None:
    e = scene.experiment(days=5, lag=50 * HOUR)

    with as_role("worker"):
        data = page_data.load([e.pk], now=scene.now)
    days = [r.day for r in data.effects[e.pk, "treatment"]]
    assert days == sorted(set(days))
    assert days[-1] < (scene.now - 24 * HOUR).date()


@pytest.mark.parametrize("extreme", [1e-200, 1.7e308, float("nan")])
def test_effects_of_states_that_nothing_can_be_computed_with_are_left_out_and_the_pages_answer(
    board: Client, growth: Team, moment: dt.datetime, extreme: float
) -> None:
    e = judged(growth, moment, kind="mean")
    with as_role("owner"):
        for step in Step.objects.filter(experiment=e):
            body = msgspec.msgpack.decode(step.body)
            for look in body.get("looks", {}).values():
                for state in look["states"].values():
                    state[1:3] = [extreme, abs(extreme)]
            step.body = msgspec.msgpack.encode(body)
            step.save()
    with as_role("worker"):
        drawn = page_data.load([e.pk], now=moment).effects.get((e.pk, "treatment"), [])
    assert all(abs(value) <= LARGEST for reading in drawn for value in reading.point)
    for page in ("/", "/experiments/ratio", "/experiments/ratio/report", "/experiments/ratio/effects.csv"):
        assert board.get(page).status_code == 200
