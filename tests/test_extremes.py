"""One row costs its own series at most, whatever is stored: rows from before ingest had a range stop no job and no page."""

import datetime as dt
import itertools
from collections.abc import Iterator
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.keys import create_key
from decisioning.access.models import Membership, Team
from decisioning.access.scopes import Scope
from decisioning.notices import tasks
from experiments.models import Experiment, Metric, TargetKpi, Variant
from gates.engine.policy import DEFAULT_BODY
from gates.models import Cursor, Policy, PolicyVersion, Recommendation
from gates.tasks import tick
from telemetry import hours
from telemetry.models import KpiHour, RefreshRun
from telemetry.tasks import hours as sum_hours
from telemetry.tasks import keep, partitions
from tests.conftest import as_role
from tests.examples import examples

TOP = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
HOUR = dt.timedelta(hours=1)
ARMS = ("control", "treatment")
KINDS = [
    (kind, temporality) for kind in ("mean", "proportion", "ratio", "gauge") for temporality in ("delta", "cumulative")
]

SIZES = [0.0, 1.0, 5e-324, 1e-310, 1e-200, 1e-160, 1e-100, 1e100, 1e160, 1e200, 1e307, 1.7976931348623157e308]
FLOATS = [*SIZES, *(-size for size in SIZES)]
COUNTS = [0, 1, 2, 1000, 10**15, 2**62, 2**63 - 1]
Cell = tuple[float, int | None, float | None, float | None, float | None, float | None]
"""value, n, variance, denominator_value, denominator_variance, covariance."""
FROM_BUG_REPORTS: list[list[Cell]] = [
    [(1.7976931348623157e308, 1000, 1.0, None, None, None)],
    [(1e-200, 1000, 0.0, None, None, None)],
    [(1.0, 2**63 - 1, 1.0, None, None, None)] * 2,
    [(1e200, None, None, None, None, None), (-1e200, None, None, None, None, None)],
    [(1e-200, None, None, None, None, None)],
    [(1e160, None, None, None, None, None)],
    [(1.0, 10**6, 1e307, None, None, None)],
    [(1.0, 10**6, 5e-324, 1e-200, 1e307, -1e307)],
]
CELLS = st.lists(
    st.tuples(
        st.sampled_from(FLOATS),
        st.none() | st.sampled_from(COUNTS),
        st.none() | st.sampled_from(SIZES),
        st.none() | st.sampled_from(FLOATS),
        st.none() | st.sampled_from(SIZES),
        st.none() | st.sampled_from(FLOATS),
    ),
    min_size=1,
    max_size=6,
)


def made(team: Team, key: str, *metrics: Metric, goal: int = 0) -> Experiment:
    started = TOP - dt.timedelta(days=9)
    experiment = Experiment.objects.create(key=key, name=key, hypothesis="h", owner="o", team=team, status="running", created_at=started,
                                           started_at=started, expected_units_per_day=48_000)  # fmt: skip
    for position, arm in enumerate(ARMS):
        Variant.objects.create(experiment=experiment, key=arm, control=position == 0, position=position)
    for position, metric in enumerate(metrics):
        role = "shown" if metric.kind == "gauge" else "goal" if position == goal else "guardrail"
        TargetKpi.objects.create(
            experiment=experiment, metric=metric, role=role, position=position, baseline_mean=3, baseline_stddev=3
        )
    return experiment


def stored(experiment: Experiment, metric: str, variant: str, ts: dt.datetime, cell: Cell) -> None:
    """As psql does it: past every door."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, metric, variant, ts, value, n, variance, denominator_value, "
            "denominator_variance, covariance, first_received_at, received_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [experiment.pk, metric, variant, ts, *cell, ts + HOUR / 20, ts + HOUR / 20],
        )


@pytest.fixture
def metrics(db: None) -> list[Metric]:
    with as_role("owner"):
        return [
            Metric.objects.create(
                key=f"{kind}_{temporality}",
                name=kind,
                kind=kind,
                temporality=temporality,
                direction="increase",
                expected_every_s=3600,
                freshness_target_s=3600,
                created_at=TOP,
            )
            for kind, temporality in KINDS
        ]


@pytest.fixture
def calm(team: Team, metrics: list[Metric]) -> Experiment:
    """The experiment of somebody else, whose hours and verdicts must come whatever happens."""
    with as_role("owner"):
        experiment = made(team, "calm", metrics[0])
        for hour, arm in itertools.product(range(1, 9 * 24), ARMS):
            value = (3.0 if arm == "control" else 3.6) + hour % 7 / 100
            stored(
                experiment,
                metrics[0].key,
                arm,
                experiment.created_at + hour * HOUR,
                (value, 1000, 9.0, None, None, None),
            )
    return experiment


@pytest.fixture
def program(team: Team) -> Client:
    with as_role("owner"):
        _, secret = create_key(team, scopes=list(Scope), now=TOP, rate="100000/m")
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def person(team: Team) -> Client:
    with as_role("owner"):
        user = User.objects.create_user("ines", password="x")
        Membership.objects.create(team=team, user=user, role="approver")
    client = Client()
    client.force_login(user)
    return client


def jobs() -> None:
    with as_role("worker"):
        for job in (tick, sum_hours, partitions, keep, tasks.watch, tasks.promises):
            job()
        assert hours.differences() == []


def pages(key: str) -> Iterator[str]:
    yield from (
        "/",
        "/board.csv",
        "/freshness",
        "/freshness.csv",
        "/promises",
        "/promises.csv",
        "/refresh-log",
        "/board/news",
    )
    yield from (
        f"/experiments/{key}{page}" for page in ("", "/report", "/rows.csv", "/gates.csv", "/effects.csv", "/days.csv")
    )


def endpoints(key: str) -> Iterator[str]:
    yield from (
        "/api/experiments",
        "/api/freshness",
        "/api/slo",
        "/api/refresh-log",
        "/api/experiments?freshness=fresh",
    )
    yield from (f"/api/experiments/{key}{part}" for part in ("", "/decision", "/gates", "/evaluations", "/audit"))
    yield from (
        f"/api/experiments/{key}/kpis?limit=10000&resolution={resolution}" for resolution in ("raw", "hour", "day")
    )


def everything_answers(program: Client, person: Client, *keys: str) -> None:
    for key in keys:
        for path in endpoints(key):
            answer = program.get(path)
            assert answer.status_code == 200, (path, answer.content[:500])
            answer.json()
        csv = program.get(f"/api/experiments/{key}/kpis", headers={"Accept": "text/csv"})
        assert csv.status_code == 200
        for page in pages(key):
            assert person.get(page).status_code == 200, page


def calm_is_judged(calm: Experiment) -> None:
    with as_role("worker"):
        assert KpiHour.objects.filter(experiment_id=calm.pk).count() == 2 * (9 * 24 - 1)
        shown = Experiment.objects.select_related("cursor").get(pk=calm.pk).cursor.shown
        assert shown is not None
        assert shown["recommendation"]["action"] == "scale"
        assert not RefreshRun.objects.filter(job_name="portal/hours", status="failed").exists()


def test_no_stored_row_of_the_bug_reports_stops_a_job_or_a_page(
    team: Team, calm: Experiment, metrics: list[Metric], program: Client, person: Client
) -> None:
    with as_role("owner"):
        for report, cells in enumerate(FROM_BUG_REPORTS):
            odd = made(team, f"odd-{report}", *metrics)
            for metric, arm, (number, cell) in itertools.product(metrics, ARMS, enumerate(cells)):
                stored(odd, metric.key, arm, TOP - (number + 2) * HOUR / 6, cell)
    jobs()
    calm_is_judged(calm)
    everything_answers(program, person, *(f"odd-{report}" for report in range(len(FROM_BUG_REPORTS))), "calm")


@examples(1, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(series=st.lists(CELLS, min_size=len(KINDS) * 2, max_size=len(KINDS) * 2))
def test_no_stored_row_stops_a_job_or_a_page(
    team: Team, calm: Experiment, metrics: list[Metric], program: Client, person: Client, series: list[list[Cell]]
) -> None:
    key = f"odd-{uuid4().hex[:8]}"
    with as_role("owner"):
        odd = made(team, key, *metrics)
        for (metric, arm), cells in zip(itertools.product(metrics, ARMS), series, strict=True):
            for number, cell in enumerate(cells):
                stored(odd, metric.key, arm, TOP - number * 7 * HOUR - HOUR / 2, cell)
                stored(odd, metric.key, arm, TOP - number * 7 * HOUR - HOUR / 3, cell)
    jobs()
    calm_is_judged(calm)
    everything_answers(program, person, key, "calm")


def test_a_series_that_cannot_be_summed_is_told_to_its_team_alone_and_costs_no_other_its_hours(
    team: Team, calm: Experiment, metrics: list[Metric], program: Client
) -> None:
    with as_role("owner"):
        other = Team.objects.create(key="other", name="Other", created_at=TOP)
        _, secret = create_key(other, scopes=list(Scope), now=TOP)
        odd = made(other, "odd", metrics[0])
        for arm in ARMS:
            stored(odd, metrics[0].key, arm, TOP - HOUR / 2, (1.0, 10, 1.0, None, None, None))
        with connection.cursor() as cursor:
            cursor.execute(
                f"ALTER TABLE metrics.kpi_hours ADD CONSTRAINT odd CHECK (experiment_id <> {odd.pk} OR variant <> 'control')"
            )
    with as_role("worker"):
        sum_hours()
        assert KpiHour.objects.filter(experiment_id=calm.pk).count() == 2 * (9 * 24 - 1)
        assert list(KpiHour.objects.filter(experiment_id=odd.pk).values_list("variant", flat=True)) == ["treatment"]
    log = "/api/refresh-log?job=portal/hours"
    theirs = Client(headers={"Authorization": f"Bearer {secret}"}).get(log).json()["results"]
    ours = program.get(log).json()["results"]
    assert [run["status"] for run in theirs] == ["failed", "failed"]
    assert theirs[0]["error"].startswith("odd, mean_delta of control: new row for relation")
    assert [run["error"] for run in ours] == ["1 series could not be summed; the log of its team says which and why"]

    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE metrics.kpi_hours DROP CONSTRAINT odd")
        cursor.execute("UPDATE metrics.experiment_kpis SET value = 2 WHERE experiment_id = %s", [odd.pk])
    with as_role("worker"):
        sum_hours()
        assert hours.differences() == [], "a row that changed has its series summed again"


def test_hours_that_were_summed_before_rows_had_a_range_are_read(
    team: Team, calm: Experiment, metrics: list[Metric], program: Client, person: Client
) -> None:
    with as_role("owner"):
        odd = made(team, "odd", *metrics)
        KpiHour.objects.bulk_create(
            KpiHour(experiment_id=odd.pk, metric=metric.key, variant=arm, hour=TOP - number * HOUR, value=value, n=n, variance=variance,
                    rows=1, team_id=team.pk)
            for metric, arm in itertools.product(metrics, ARMS)
            for number, (value, n, variance) in enumerate(itertools.product(FLOATS, (None, 2**63 - 1), (None, 5e-324, 1.7e308)))
        )  # fmt: skip
    everything_answers(program, person, "odd")


def test_the_promises_answer_whatever_the_gates_have_counted(
    team: Team, calm: Experiment, program: Client, person: Client
) -> None:
    with as_role("worker"):
        tick()
    with as_role("owner"):
        Recommendation.objects.all().delete()
        body = {**DEFAULT_BODY, "min_days": 7.0, "max_days": 10**12, "min_units": 10**12}
        policy = Policy.objects.create(name="odd", team=team, created_at=TOP)
        version = PolicyVersion.objects.create(policy=policy, team=team, number=1, body=body, created_at=TOP)
        Cursor.objects.filter(experiment=calm).update(policy_version=version)
    for said in (
        {"why": "units", "arms": [2**63 - 1, 3 * 10**9], "units_per_day": 0.0},
        {"why": "units", "arms": [1, 2**63 - 1], "units_per_day": 5e-324, "days_left_at_most": 5e-324},
        {"why": "", "units_per_day": 1e308, "days_left": 1e308},
    ):
        gate = {"gate": "g", "kind": "uplift", "verdict": "inconclusive", "limits": said}
        with as_role("owner"):
            Cursor.objects.filter(experiment=calm).update(
                shown={"gates": [gate], "recommendation": {"action": "hold", "code": "collecting"}}
            )
        held = program.get("/api/slo").json()["recommended_within_24h"]
        assert [one["experiment"] for one in held["calm_holds"]] == ["calm"]
        assert person.get("/promises").status_code == 200
