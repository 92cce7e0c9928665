"""How old data may be, and that the database counts as the Python beside it does."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from telemetry.freshness import LATENCIES_SQL, RANK_SQL, STATE_SQL, WORST_LAST, latencies_s, p95, state, worst
from tests.conftest import as_role

AT = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_an_experiment_is_as_fresh_as_its_worst_kpi() -> None:
    assert worst(["fresh", "stale", "unknown"]) == "stale"
    assert worst(["fresh", "unknown", "late"]) == "unknown"
    assert worst([]) == "unknown"


def test_a_row_counts_its_delay_and_a_missing_bucket_its_age_once_over_the_target() -> None:
    every, now = 900, AT + 50 * MINUTE
    came = [(AT, AT + 4 * MINUTE), (AT + 15 * MINUTE, AT + 16 * MINUTE)]
    found = latencies_s(came, every_s=every, target_s=900, began=AT - MINUTE, since=AT - MINUTE, now=now)
    # 06:30 is missing for 20 minutes, over the target of 15; 06:45 for 5 minutes, not yet.
    assert found == [240.0, 60.0, 1200.0]


def test_a_feed_that_dies_worsens_the_figure_by_the_minute() -> None:
    came = [(AT - k * 15 * MINUTE, AT - k * 15 * MINUTE + MINUTE) for k in range(96)]
    figures = [
        p95(latencies_s(came, every_s=900, target_s=900, began=came[-1][0], since=now - timedelta(hours=24), now=now))
        for now in (AT, AT + timedelta(hours=3), AT + timedelta(hours=4))
    ]
    assert figures[0] == 60.0
    assert figures[0] < (figures[1] or 0) < (figures[2] or 0)


def test_rows_off_the_grid_fill_the_bucket_they_fall_in() -> None:
    daily = [(AT + timedelta(days=d), AT + timedelta(days=d, hours=1)) for d in range(3)]
    now = AT + timedelta(days=2, hours=20)
    assert (
        latencies_s(daily, every_s=86_400, target_s=3600, began=AT - MINUTE, since=AT - MINUTE, now=now) == [3600.0] * 3
    )


@pytest.mark.parametrize("every", [timedelta(hours=1), timedelta(days=1), timedelta(days=7)])
@pytest.mark.parametrize("fed", [True, False])
def test_a_feed_that_stays_dead_never_looks_better_than_before(every: timedelta, fed: bool) -> None:
    began, last = EPOCH + 2_900 * timedelta(days=7), EPOCH + 2_910 * timedelta(days=7)
    came = [(last - k * every, last - k * every + 10 * MINUTE) for k in range(30)] if fed else []
    late = (last if fed else began) + every + timedelta(hours=2)
    figures = [
        p95(
            latencies_s(
                came,
                every_s=int(every.total_seconds()),
                target_s=3600,
                began=began,
                since=now - timedelta(hours=24),
                now=now,
            )
        )
        or 0.0
        for now in (late + timedelta(hours=hours) for hours in range(0, 24 * 21, 5))
    ]
    assert figures == sorted(figures)
    if every >= timedelta(days=1):
        assert figures[0] == 7200
        assert figures[-1] == 7200 + (24 * 21 - 4) * 3600, "the age of what is missing longest"


@pytest.mark.django_db
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    offsets=st.lists(st.integers(0, 26 * 3600) | st.integers(0, 30 * 86_400), unique=True, max_size=12),
    age_s=st.integers(0, 40 * 86_400),
    delay=st.integers(0, 7200),
    every_s=st.sampled_from([300, 900, 3600, 86_400, 7 * 86_400]),
    target_s=st.sampled_from([60, 900, 86_400]),
    behind_s=st.integers(0, 5000),
)
def test_the_database_counts_latencies_as_python_does(
    offsets: list[int], age_s: int, delay: int, every_s: int, target_s: int, behind_s: int
) -> None:
    now = AT + timedelta(seconds=behind_s)
    began = now - timedelta(seconds=age_s)
    since = max(began, now - timedelta(hours=24))
    rows = [(now - timedelta(seconds=o), now - timedelta(seconds=o - delay)) for o in offsets]
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE IF NOT EXISTS came (ts timestamptz, first_received_at timestamptz)")
        cursor.execute("TRUNCATE came")
        cursor.executemany("INSERT INTO came VALUES (%s, %s)", rows)
        sql = (
            LATENCIES_SQL.format(
                experiment="1", metric="''", variant="''", every_s=every_s, target_s=target_s, began="%(began)s::timestamptz",
                since="%(since)s::timestamptz", now="%(now)s::timestamptz",
            )
            .replace("metrics.experiment_kpis", "came")
            .replace("r.experiment_id = 1 AND r.metric = '' AND r.variant = ''", "true")
        )  # fmt: skip
        cursor.execute(sql, {"began": began, "since": since, "now": now})
        counted = sorted(latency for (latency,) in cursor.fetchall())
    assert counted == pytest.approx(
        sorted(latencies_s(rows, every_s=every_s, target_s=target_s, began=began, since=since, now=now))
    )


@pytest.mark.django_db
@pytest.mark.parametrize("age_s", [None, 0, 900, 901, 1350, 1351, 1800, 1801, 10**6])
def test_the_database_names_states_as_python_does(age_s: int | None) -> None:
    watermark = None if age_s is None else AT - timedelta(seconds=age_s)
    named = STATE_SQL.format(watermark="%(w)s::timestamptz", now="%(now)s::timestamptz", every_s="900", target_s="900")
    with connection.cursor() as cursor:
        sql = f"SELECT s, {RANK_SQL.format(state='s')} FROM (SELECT {named} AS s) AS q"  # noqa: S608 - constants
        cursor.execute(sql, {"w": watermark, "now": AT})
        (found, rank) = cursor.fetchone() or ("", 0)
    assert found == state(watermark, every_s=900, target_s=900, now=AT)
    assert WORST_LAST[rank - 1] == found
