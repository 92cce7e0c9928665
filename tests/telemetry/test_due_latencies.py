"""How late data comes over what was expected: the database's figures against every due instant, looked at one by one."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from django.db import connection
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from experiments.feeds import schedule, set_out
from experiments.models import Experiment, Metric, Pause
from experiments.plan import NewMetric, register
from gates.engine.plan import to_us
from telemetry.freshness import LATENCIES_SQL
from telemetry.models import Outage
from tests.conftest import as_role
from tests.examples import examples

AT = datetime(2026, 10, 27, 6, 0, tzinfo=UTC)
"""The Tuesday after clocks in Berlin changed, three weeks after those in Lord Howe did."""
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)

type Stretch = tuple[datetime, datetime | None]


class Asked(NamedTuple):
    """One series: (ts, first arrival) of its rows, and what is asked about it."""

    came: Sequence[tuple[datetime, datetime]]
    target_s: int
    began: datetime
    since: datetime
    now: datetime
    paused: Sequence[Stretch] = ()
    outages: Sequence[tuple[datetime, datetime]] = ()


@pytest.fixture
def measured(team: Team) -> Experiment:
    """An experiment on a metric that these tests let be due."""
    began = AT - 40 * DAY
    with as_role("owner"):
        register(NewMetric(key="m", name="M"), team=team, now=began)
        return Experiment.objects.create(
            key="feed", name="f", hypothesis="h", owner="o", team=team, status="running", created_at=began, started_at=began
        )  # fmt: skip


def lay(measured: Experiment, feed: Sequence[tuple[datetime | None, dict[str, Any]]], of: Asked) -> list[datetime]:
    """Let the metric be due like this, with these rows, pauses and outages; its due instants from long before on."""
    with as_role("owner"), connection.cursor() as db:
        metric = Metric.objects.get(key="m")
        for since, expected in feed:
            set_out(metric, expected, since=since, now=AT)
        db.execute("DELETE FROM metrics.experiment_kpis")
        db.executemany(
            "INSERT INTO metrics.experiment_kpis (experiment_id, team_id, metric, variant, value, ts, first_received_at) "
            "VALUES (%s, %s, 'm', 'v', 1, %s, %s)",
            [(measured.pk, measured.team_id, *row) for row in of.came],
        )
        Pause.objects.all().delete()
        Pause.objects.bulk_create(
            Pause(experiment=measured, team_id=measured.team_id, paused_at=a, resumed_at=b) for a, b in of.paused
        )
        Outage.objects.all().delete()
        Outage.objects.bulk_create(
            Outage(team_id=measured.team_id, begins_at=a, ends_at=b, reason="moved", metrics=["m"], created_at=AT)
            for a, b in of.outages
        )
        found = schedule(Metric.objects.get(pk=metric.pk), around=AT)
    first, last = to_us(AT - 90 * DAY), to_us(AT + 40 * DAY)
    return [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=due) for due in found.between(first, last)]


def told(measured: Experiment, of: Asked) -> list[float]:
    """What the database counts."""
    asked = LATENCIES_SQL.format(
        experiment="%s::bigint", metric="'m'", variant="'v'", every_s="(SELECT expected_every_s FROM metadata.metrics WHERE key = 'm')",
        target_s="%s", sparse="false", began="%s::timestamptz", since="%s::timestamptz", now="%s::timestamptz",
    )  # fmt: skip
    with as_role("worker"), connection.cursor() as db:
        db.execute(asked, [measured.pk, of.target_s, of.began, of.since, of.now])
        return sorted(latency for (latency,) in db.fetchall())


def looked_at(dues: Sequence[datetime], of: Asked, *, nominal: timedelta) -> list[float]:
    """The same by looking at every due instant: rows by their delay, instants that nothing answered by their age."""

    def nearest(ts: datetime) -> datetime:
        return min(dues, key=lambda due: (abs(due - ts), due))

    def is_out(due: datetime) -> bool:
        return any(a <= due <= b for a, b in of.outages)

    def expected(after: datetime) -> datetime:
        return next(due for due in dues if due > after and not is_out(due))

    def pause(due: datetime) -> Stretch | None:
        return next(((a, b) for a, b in of.paused if a < due and (b is None or b >= due)), None)

    def age_s(due: datetime) -> float:
        ran = of.now - due
        for a, b in of.paused:
            ran -= max(min(b or of.now, of.now) - max(a, due), timedelta(0))
        return ran.total_seconds()

    def missing() -> Iterator[datetime]:
        reach = max((due for due in dues if due <= of.since), default=of.since)
        recent = [ts for ts, _ in of.came if reach < ts <= of.now]
        there = {nearest(ts) for ts in recent}
        last = of.now - timedelta(seconds=of.target_s)
        yield from (due for due in dues if of.since < due <= last and due not in there and not is_out(due))
        if not recent:
            behind = [nearest(newest)] if newest else []
            behind += [due for due in dues if due <= of.began][-1:]
            oldest = expected(max(*behind, of.began - nominal))
            stopped = pause(oldest)
            if stopped is not None and stopped[1] is not None:
                oldest = expected(stopped[1])
            if oldest <= of.since:
                yield oldest

    newest = max((ts for ts, _ in of.came if ts <= of.now), default=None)
    late = timedelta(0)
    if newest is not None and newest > nearest(newest):
        due = expected(nearest(newest))
        late = min(newest - nearest(newest), expected(due) - due)
    found = [(received - ts).total_seconds() for ts, received in of.came if of.since < ts <= of.now]
    ages = (age_s(due + late) for due in missing() if pause(due) is None)
    return sorted([*found, *(age for age in ages if age > of.target_s)])


FEEDS: list[list[tuple[datetime | None, dict[str, Any]]]] = [
    [(None, {"every": "weekdays", "at": "24:00", "timezone": "Europe/Berlin"})],
    [(None, {"every": "daily", "at": "02:30", "timezone": "Europe/Berlin"})],
    [(None, {"cron": "*/30 8-17 * * 1-5", "timezone": "America/New_York"})],
    [(None, {"cron": "15 * * * *", "timezone": "Australia/Lord_Howe"})],
    [(None, {"every": "weekly", "on": "monday", "at": "06:00", "timezone": "Asia/Kathmandu"})],
    [(None, {"every_s": 3_600}), (AT - 2 * DAY, {"every": "daily", "at": "06:00", "timezone": "UTC"})],
    [(None, {"every": "daily", "at": "06:00", "timezone": "UTC"}), (AT - 20 * 60 * MINUTE, {"every_s": 900})],
]
NOMINAL = [86_400, 86_400, 1_800, 3_600, 604_800, 86_400, 900]


@examples(12, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    n=st.integers(0, len(FEEDS) - 1),
    minutes=st.lists(st.integers(0, 40 * 60) | st.integers(0, 20 * 1_440), unique=True, max_size=12),
    on_time=st.booleans(),
    delay=st.integers(0, 300),
    age_m=st.integers(10, 30 * 1_440),
    target_s=st.sampled_from([60, 3_600, 86_400]),
    stops=st.lists(st.integers(60, 5 * 1_440), unique=True, max_size=3),
    outages=st.lists(st.tuples(st.integers(0, 10 * 1_440), st.integers(1, 3 * 1_440)), max_size=2),
)
def test_latencies_over_due_instants_are_those_of_looking_at_each(
    measured: Experiment,
    n: int,
    minutes: list[int],
    on_time: bool,
    delay: int,
    age_m: int,
    target_s: int,
    stops: list[int],
    outages: list[tuple[int, int]],
) -> None:
    began = AT - age_m * MINUTE
    turns = [AT - stop * MINUTE for stop in sorted(stops, reverse=True)]
    came = [(AT - m * MINUTE, AT - m * MINUTE + delay * MINUTE) for m in minutes]
    of = Asked(
        came, target_s, began, max(began, AT - DAY), AT,
        [(a, turns[i + 1] if i + 1 < len(turns) else None) for i, a in enumerate(turns) if i % 2 == 0],
        [(AT - a * MINUTE, AT - a * MINUTE + lasts * MINUTE) for a, lasts in outages],
    )  # fmt: skip
    dues = lay(measured, FEEDS[n], of)
    if on_time:  # as it mostly is: rows near the due instants, some missing
        some = [due for due in dues if began < due <= AT][::-1][: 2 * len(minutes)]
        stamped = [(due + (m % 20 - 10) * MINUTE) for due, m in zip(some, minutes * 2, strict=False) if m % 4]
        of = of._replace(came=[(ts, ts + delay * MINUTE) for ts in sorted({ts for ts in stamped if ts <= AT})])
        lay(measured, [], of)

    assert told(measured, of) == pytest.approx(looked_at(dues, of, nominal=timedelta(seconds=NOMINAL[n])))


def test_a_weekday_feed_has_nothing_missing_on_sunday_and_a_missing_monday_ages(measured: Experiment) -> None:
    weekdays = [(None, {"every": "weekdays", "at": "24:00", "timezone": "Europe/Berlin"})]
    sunday = datetime(2026, 10, 25, 18, 0, tzinfo=UTC)
    ends = [datetime(2026, 10, day, 22, tzinfo=UTC) for day in (19, 20, 21, 22, 23)]
    of = Asked([(ts, ts + 8 * MINUTE) for ts in ends], 3_600, AT - 9 * DAY, sunday - DAY, sunday)
    dues = lay(measured, weekdays, of)

    assert told(measured, of) == looked_at(dues, of, nominal=DAY) == []
    tuesday = of._replace(since=AT - DAY, now=AT)
    assert told(measured, tuesday) == [7 * 3_600.0], "midnight that ended Monday, by the clocks of winter"
