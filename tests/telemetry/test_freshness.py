"""How old data may be, as the database says it to every door: latencies of buckets that came, and the ages of those that did not."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from experiments.models import Experiment, Pause
from telemetry.freshness import FRESHNESS_SQL, LATENCIES_SQL, RANK_SQL, WORST_LAST
from tests.conftest import as_role
from tests.examples import examples

AT = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)

Pauses = Sequence[tuple[datetime, datetime | None]]


@pytest.fixture
def measured(team: Team) -> int:
    """An experiment whose rows these tests set."""
    with as_role("owner"):
        made = Experiment.objects.create(
            key="feed", name="f", hypothesis="h", owner="o", team=team, status="running",
            created_at=EPOCH + DAY, started_at=EPOCH + DAY,
        )  # fmt: skip
    return made.pk


def latencies(
    experiment: int,
    came: Sequence[tuple[datetime, datetime]],
    *,
    every_s: int,
    target_s: int,
    began: datetime,
    since: datetime,
    now: datetime,
    paused: Pauses = (),
) -> list[float]:
    """What the database counts of one series with these rows: (ts, first_received_at)."""
    values: dict[str, int | datetime] = {"id": experiment, "began": began, "since": since, "now": now}
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM metrics.experiment_kpis")
        cursor.executemany(
            "INSERT INTO metrics.experiment_kpis (experiment_id, team_id, metric, variant, value, ts, first_received_at) "
            "VALUES (%s, (SELECT team_id FROM metadata.experiments), 'm', 'v', 1, %s, %s)",
            [(experiment, *row) for row in came],
        )
        Pause.objects.all().delete()
        team_id = Experiment.objects.values_list("team_id", flat=True).get(pk=experiment)
        Pause.objects.bulk_create(
            [Pause(experiment_id=experiment, team_id=team_id, paused_at=a, resumed_at=b) for a, b in paused]
        )
        cursor.execute(
            LATENCIES_SQL.format(
                experiment="%(id)s::bigint", metric="'m'", variant="'v'", every_s=every_s, target_s=target_s, sparse="false",
                began="%(began)s::timestamptz", since="%(since)s::timestamptz", now="%(now)s::timestamptz",
            ),
            values,
        )  # fmt: skip
        return [latency for (latency,) in cursor.fetchall()]


def p95(values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1] if values else 0.0


def test_a_row_counts_its_delay_and_a_missing_bucket_its_age_once_over_the_target(measured: int) -> None:
    came = [(AT, AT + 4 * MINUTE), (AT + 15 * MINUTE, AT + 16 * MINUTE)]
    found = latencies(
        measured, came, every_s=900, target_s=900, began=AT - MINUTE, since=AT - MINUTE, now=AT + 50 * MINUTE
    )
    # 06:30 is missing for 20 minutes, over the target of 15; 06:45 for 5 minutes, not yet.
    assert found == [240.0, 60.0, 1200.0]


def test_a_bucket_that_ends_in_a_pause_is_not_missed_and_a_pause_ages_none(measured: int) -> None:
    came, now = [(AT, AT + MINUTE)], AT + 10 * HOUR
    paused = [(AT + 70 * MINUTE, AT + 9 * HOUR + 10 * MINUTE)]
    found = latencies(
        measured, came, every_s=3600, target_s=900, began=AT - MINUTE, since=AT - MINUTE, now=now, paused=paused
    )
    # 07:00 is missing for ten minutes before the pause and fifty after it; 08:00 to 15:00 fell into it, 16:00 has just ended.
    assert found == [60.0, 3600.0]


def test_a_feed_that_dies_worsens_the_figure_by_the_minute(measured: int) -> None:
    came = [(AT - k * 15 * MINUTE, AT - k * 15 * MINUTE + MINUTE) for k in range(96)]
    figures = [
        p95(latencies(measured, came, every_s=900, target_s=900, began=came[-1][0], since=now - DAY, now=now))
        for now in (AT, AT + 3 * HOUR, AT + 4 * HOUR)
    ]
    assert figures[0] == 60.0
    assert figures[0] < figures[1] < figures[2]


def test_rows_off_the_grid_fill_the_bucket_whose_end_is_nearest(measured: int) -> None:
    daily = [(AT + d * DAY, AT + d * DAY + HOUR) for d in range(3)]
    found = latencies(
        measured,
        daily,
        every_s=86_400,
        target_s=3600,
        began=AT - MINUTE,
        since=AT - MINUTE,
        now=AT + 2 * DAY + 20 * HOUR,
    )
    assert found == [3600.0] * 3


@pytest.mark.parametrize("every", [HOUR, DAY, 7 * DAY])
@pytest.mark.parametrize("fed", [True, False])
def test_a_feed_that_stays_dead_never_looks_better_than_before(measured: int, every: timedelta, fed: bool) -> None:
    began, last = EPOCH + 2_900 * timedelta(days=7), EPOCH + 2_910 * timedelta(days=7)
    came = [(last - k * every, last - k * every + 10 * MINUTE) for k in range(30)] if fed else []
    late = (last if fed else began) + every + 2 * HOUR
    every_s = int(every.total_seconds())
    figures = [
        p95(latencies(measured, came, every_s=every_s, target_s=3600, began=began, since=now - DAY, now=now))
        for now in (late + timedelta(hours=hours) for hours in range(0, 24 * 21, 20))
    ]
    assert figures == sorted(figures)
    if every >= DAY:
        assert figures[0] == 7200
        assert figures[-1] == 7200 + 25 * 20 * 3600, "the age of what is missing longest"


def expected_latencies(
    came: Sequence[tuple[datetime, datetime]],
    *,
    every_s: int,
    target_s: int,
    began: datetime,
    since: datetime,
    now: datetime,
    paused: Pauses,
) -> list[float]:
    """The same in plain words, bucket by bucket."""

    def bucket(ts: datetime) -> int:  # the nearest end, of two the earlier
        return math.ceil((ts - EPOCH).total_seconds() / every_s - 0.5)

    def next_bucket(at: datetime) -> int:
        return math.floor((at - EPOCH).total_seconds() / every_s) + 1

    def during(ends: datetime) -> tuple[datetime, datetime | None] | None:
        return next(((a, b) for a, b in paused if a < ends and (b is None or b >= ends)), None)

    there = {bucket(ts) for ts, _ in came}
    newest = max((ts for ts, _ in came if ts <= now), default=None)
    behind = timedelta(0) if newest is None else newest - EPOCH - timedelta(seconds=bucket(newest) * every_s)
    found = [(received - ts).total_seconds() for ts, received in came if since < ts <= now]
    oldest = max(max((bucket(ts) for ts, _ in came if ts <= now), default=0) + 1, next_bucket(began))
    pause = during(EPOCH + timedelta(seconds=oldest * every_s))
    if pause is not None and pause[1] is not None:
        oldest = next_bucket(pause[1])
    for one in sorted({oldest, *range(next_bucket(since), next_bucket(now))}):
        ends = EPOCH + timedelta(seconds=one * every_s)
        due = ends + max(behind, timedelta(0))
        age = now - due - sum((max(min(b or now, now) - max(a, due), timedelta(0)) for a, b in paused), timedelta(0))
        if age.total_seconds() > target_s and one not in there and during(ends) is None:
            found.append(age.total_seconds())
    return found


@examples(25, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    offsets=st.lists(st.integers(0, 26 * 3600) | st.integers(0, 30 * 86_400), unique=True, max_size=12),
    age_s=st.integers(0, 40 * 86_400),
    delay=st.integers(0, 7200),
    every_s=st.sampled_from([300, 900, 3600, 86_400, 7 * 86_400]),
    target_s=st.sampled_from([60, 900, 86_400]),
    behind_s=st.integers(0, 5000),
    stops=st.lists(st.integers(60, 3 * 86_400), unique=True, max_size=4),
)
def test_the_database_counts_latencies_bucket_by_bucket(
    measured: int,
    offsets: list[int],
    age_s: int,
    delay: int,
    every_s: int,
    target_s: int,
    behind_s: int,
    stops: list[int],
) -> None:
    now = AT + timedelta(seconds=behind_s)
    began = now - timedelta(seconds=age_s)
    turns = [now - timedelta(seconds=s) for s in sorted(stops, reverse=True)]
    paused = [(a, turns[i + 1] if i + 1 < len(turns) else None) for i, a in enumerate(turns) if i % 2 == 0]
    asked = {
        "every_s": every_s,
        "target_s": target_s,
        "began": began,
        "since": max(began, now - DAY),
        "now": now,
        "paused": paused,
    }
    came = [(now - timedelta(seconds=o), now - timedelta(seconds=o - delay)) for o in offsets]
    assert sorted(latencies(measured, came, **asked)) == pytest.approx(sorted(expected_latencies(came, **asked)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("age_s", "state"),
    [(None, "unknown"), (0, "fresh"), (900, "fresh"), (901, "due"), (1350, "due"), (1351, "late"), (1800, "late"), (1801, "stale"), (10**6, "stale")],
)  # fmt: skip
def test_a_state_is_named_by_its_age(measured: int, age_s: int | None, state: str) -> None:
    asked = FRESHNESS_SQL.format(
        experiment="%(id)s::bigint",
        metric="'other'::text",
        watermark="%(w)s::timestamptz",
        every_s="900",
        target_s="900",
        at="%(now)s::timestamptz",
    )
    watermark = None if age_s is None else AT - timedelta(seconds=age_s)
    with as_role("worker"), connection.cursor() as cursor:
        cursor.execute(
            f"SELECT state, age_s, due_at, stale_at, {RANK_SQL.format(state='state')} FROM {asked}",  # noqa: S608 - constants
            {"id": measured, "w": watermark, "now": AT},
        )
        ((found, age, due_at, stale_at, rank),) = cursor.fetchall()
    assert (found, age, WORST_LAST[rank - 1]) == (state, age_s, state)
    if watermark is not None:
        assert (due_at, stale_at) == (watermark + 15 * MINUTE, watermark + 30 * MINUTE)
