"""What became of the runs that were due: those that came are in the log, those that did not are counted all the same."""

import datetime as dt
import uuid

from decisioning.access.models import Team
from telemetry.models import RefreshRun, Source
from telemetry.refresh import MOST_SHOWN, failure_shares, missed, newest_runs
from tests.conftest import as_role

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def source(
    team: Team, *, key: str = "feed", every_s: int = 3600, age: dt.timedelta = 8 * HOUR, enabled: bool = True
) -> Source:
    return Source.objects.create(
        key=key, team=team, kind="file", path="x.csv", query="SELECT 1", schedule_s=every_s, metrics=["latency"], enabled=enabled,
        created_at=NOW - age, due_at=NOW,
    )  # fmt: skip


def ran(of: Source, ago: dt.timedelta, status: str = "succeeded") -> None:
    began = NOW - ago
    RefreshRun.objects.create(
        run_id=uuid.uuid4(), job_name=of.key, source=of.key, team=of.team, started_at=began, status=status,
        finished_at=None if status == "running" else began + dt.timedelta(minutes=1),
    )  # fmt: skip


def test_runs_of_the_last_day_in_order_with_those_that_never_came(team: Team) -> None:
    with as_role("owner"):
        feed = source(team)
        for hours, status in (
            (7.0, "succeeded"),
            (6.0, "failed"),
            (5.9, "succeeded"),
            (2.1, "aborted"),
            (0.1, "running"),
        ):
            ran(feed, hours * HOUR, status)

        found = newest_runs([feed], now=NOW)[feed.pk]

    assert found == ["ok", "failed", "ok", "missed", "missed", "missed", "failed", "missed", "running"]


def test_a_source_that_never_ran_has_missed_every_run_unless_it_is_off(team: Team) -> None:
    with as_role("owner"):
        silent, off = source(team, key="silent"), source(team, key="off", enabled=False)
        eager = source(team, key="eager", every_s=60, age=48 * HOUR)

        found = newest_runs([silent, off, eager], now=NOW)

    assert found[silent.pk] == ["missed"] * 7, "the eighth is due now"
    assert found[off.pk] == []
    assert found[eager.pk] == ["missed"] * MOST_SHOWN


def test_runs_of_another_teams_job_by_the_same_name_are_not_its_runs(team: Team) -> None:
    with as_role("owner"):
        feed = source(team)
        for hour in range(8):
            ran(feed, (hour + 0.1) * HOUR)
        RefreshRun.objects.filter(source="feed").update(
            team=Team.objects.create(key="other", name="Other", created_at=NOW)
        )

        assert failure_shares([feed], now=NOW) == {feed.pk: 1.0}
        assert missed([feed], since=NOW - 24 * HOUR, now=NOW) == 8
        assert newest_runs([feed], now=NOW)[feed.pk] == ["missed"] * 7
