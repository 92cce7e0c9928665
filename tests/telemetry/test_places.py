"""Sources know teams: what a team's sources may read is bound to it by the operator, is never the portal itself, and teams take turns."""

import datetime as dt
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from decisioning.access.models import Membership, Team
from experiments.models import Metric
from telemetry.models import RefreshRun, Source, SourcePlace
from telemetry.sources import engines, runs
from telemetry.sources.definition import check
from telemetry.sources.refusals import SourceFailed, SourceRefused
from tests.access.logins import dsn, psql
from tests.api.warehouse import bind, warehouse
from tests.conftest import as_role

pytestmark = pytest.mark.django_db
ENV = "WAREHOUSE_URL"
QUERY = (
    "SELECT 'e' AS experiment, 'vrps' AS metric, 'control' AS variant, now() AS ts, 1 AS value WHERE :since < :until"
)


@pytest.fixture(autouse=True)
def _folder(settings: LazySettings, tmp_path: Path, now: dt.datetime) -> None:
    settings.SOURCES_DIR = tmp_path
    with as_role("owner"):
        Metric.objects.create(key="vrps", name="Value per session", created_at=now)


@pytest.fixture
def search(now: dt.datetime) -> Team:
    with as_role("owner"):
        return Team.objects.create(key="search", name="Search", created_at=now)


def source(team: Team, now: dt.datetime, **said: Any) -> Source:
    plan: dict[str, Any] = {"kind": "sql", "url_env": ENV, "query": QUERY} | said
    return Source(key=f"s-{team.pk}", team=team, metrics=["vrps"], created_at=now, due_at=now, **plan)


def faults(of: Source) -> list[tuple[str, str]]:
    with as_role("worker"):
        try:
            check(of)
        except SourceRefused as refusal:
            return [(fault.pointer, fault.code) for fault in refusal.errors]
    return []


def test_a_variable_is_read_by_the_team_it_is_bound_to_and_no_other(
    team: Team, search: Team, now: dt.datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    assert faults(source(team, now)) == [("/url_env", "not_bound")]
    with as_role("worker"):
        call_command("bind_source", team="growth", variable=ENV)
    assert "WAREHOUSE_URL is bound to growth." in capsys.readouterr().out
    assert faults(source(team, now)) == []
    assert faults(source(search, now)) == [("/url_env", "not_bound")]
    with as_role("worker"):
        call_command("bind_source", team="growth", variable=ENV, drop=True)
        with pytest.raises(CommandError, match="not bound to growth"):
            call_command("bind_source", team="growth", variable=ENV, drop=True)
    assert faults(source(team, now)) == [("/url_env", "not_bound")]


def test_a_file_is_read_by_the_team_whose_folder_it_lies_in(
    team: Team, search: Team, now: dt.datetime, tmp_path: Path
) -> None:
    for folder in ("growth", "search", "shared"):
        (tmp_path / folder).mkdir()
    (tmp_path / "growth" / "link.csv").symlink_to(tmp_path / "search" / "theirs.csv")
    (tmp_path / "growth" / "out").symlink_to(tmp_path / "search")
    bind(team, folder="shared")

    def of(path: str, whose: Team = team) -> list[tuple[str, str]]:
        return faults(source(whose, now, kind="file", url_env="", path=path))

    assert of("growth/mine.csv") == of("shared/a/b.csv") == of("search/theirs.csv", search) == []
    for path in (
        "search/theirs.csv",
        "growth/../search/theirs.csv",
        "growth/link.csv",
        "growth/out/theirs.csv",
        "nobodys/rows.csv",
    ):
        assert of(path) == [("/path", "not_bound")], path
    assert of("shared/a/b.csv", search) == [("/path", "not_bound")]


def test_what_lies_in_the_root_is_every_teams_unless_it_is_bound_to_another(
    team: Team, search: Team, now: dt.datetime
) -> None:
    shared = source(team, now, kind="file", url_env="", path="rows.csv")
    assert faults(shared) == []
    bind(search, folder="rows.csv")
    assert faults(shared) == [("/path", "not_bound")]


def test_the_only_team_binds_nothing_and_keeps_out_of_the_demos_folder(team: Team, now: dt.datetime) -> None:
    with as_role("owner"):
        Team.objects.exclude(pk=team.pk).delete()
        Team.objects.create(key="demo", name="Demo", created_at=now)
    assert faults(source(team, now)) == []
    assert faults(source(team, now, kind="file", url_env="", path="any/where.csv")) == []
    assert faults(source(team, now, kind="file", url_env="", path="demo/feed.csv")) == [("/path", "not_bound")]


def test_a_source_that_lost_its_binding_fails_at_its_next_run(team: Team, search: Team, now: dt.datetime) -> None:
    of = source(team, now)
    with as_role("worker"):
        of.save()
        runs.queue(of, now=now)
        run = runs.take_next(now=now, most=1)
        assert run is not None
        runs.pull(run, clock=lambda: now)
        run.refresh_from_db()
    assert (run.status, "not bound to team growth" in str(run.error)) == ("failed", True)


def test_only_an_admin_of_the_installation_binds(team: Team, now: dt.datetime) -> None:
    with as_role("owner"):
        staff = User.objects.create_user("staff", is_staff=True)
        boss = User.objects.create_superuser("boss")
        Membership.objects.create(team=team, user=staff, role="admin")
    form = {"team": team.pk, "kind": "variable", "name": ENV}
    for person, status in ((staff, 403), (boss, 302)):
        browser = Client()
        browser.force_login(person)
        assert browser.post("/admin/telemetry/sourceplace/add/", form).status_code == status
    with as_role("owner"):
        assert SourcePlace.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_database_itself_lets_no_team_bind(team: Team) -> None:
    with psql("web") as db, db.transaction():
        db.execute("SELECT access.bind('user', 1, 'ann', %s, false, 'r')", ([team.pk],))
        with pytest.raises(psycopg.errors.InsufficientPrivilege), db.transaction():
            db.execute(
                "INSERT INTO metadata.source_places (team_id, kind, name, created_at) VALUES (%s, 'variable', 'X', now())",
                [team.pk],
            )


def own_urls() -> dict[str, str]:
    """Ways to our own database and by our own roles, however they are spelled."""
    here = str(connection.settings_dict["NAME"])
    worker = dsn("worker")
    login, at = worker.removeprefix("postgresql://").split("@")
    port = at.partition(":")[2].partition("/")[0]
    foreign = warehouse()
    return {
        "plain": worker,
        "another driver": worker.replace("postgresql://", "postgresql+psycopg://"),
        "an alias of the host": f"postgresql://{login}@localhost:{port}/{here}",
        "another address of the host": f"postgresql://{login}@127.1:{port}/{here}",
        "the host as an option": f"postgresql://{login}@/{here}?host=127.0.0.1&port={port}",
        "a service": f"postgresql://{login}@/?service=portal",
        "another database, our role": f"{worker.rpartition('/')[0]}/postgres",
        "our database, a foreign role": f"{foreign.rpartition('/')[0]}/{here}",
    }


@pytest.mark.parametrize("way", ["plain", "another driver", "an alias of the host", "another address of the host",
                                      "the host as an option", "a service", "another database, our role", "our database, a foreign role"])  # fmt: skip
def test_the_portal_itself_is_no_source_whatever_the_url(
    team: Team, now: dt.datetime, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services = tmp_path / "services"
    at = dsn("worker").rpartition("@")[2]
    services.write_text(
        f"[portal]\nhost=127.0.0.1\nport={at.partition(':')[2].partition('/')[0]}\ndbname={connection.settings_dict['NAME']}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    monkeypatch.setenv(ENV, own_urls()[way])
    with as_role("worker"), pytest.raises(SourceFailed, match="portal's own database, or a login of the portal's"):
        list(engines.read(source(team, now), since=now, until=now + dt.timedelta(hours=1), limit_s=5))


def test_a_readers_login_of_another_team_is_no_source(
    team: Team, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psql("superuser") as db:
        db.execute("CREATE ROLE decisioning_reader_99 LOGIN PASSWORD 'x' IN ROLE decisioning_reader")
        try:
            foreign = warehouse()
            where, name = foreign.rpartition("@")[2].split("/")
            monkeypatch.setenv(ENV, f"postgresql://decisioning_reader_99:x@{where}/{name}")
            with as_role("worker"), pytest.raises(SourceFailed, match="a login of the portal's"):
                list(engines.read(source(team, now), since=now, until=now + dt.timedelta(hours=1), limit_s=5))
        finally:
            db.execute("DROP ROLE decisioning_reader_99")


def test_another_database_of_the_same_server_is_a_source(
    team: Team, now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV, warehouse())
    with as_role("worker"):
        (chunk,) = engines.read(source(team, now), since=now, until=now + dt.timedelta(hours=1), limit_s=5)
    assert chunk[0]["value"] == 1


def waiting(team: Team, now: dt.datetime, number: int) -> list[str]:
    """So many sources of a team, each with a run that waits."""
    keys = []
    with as_role("worker"):
        for n in range(number):
            of = source(team, now)
            of.key = f"{team.key}-{n}"
            of.save()
            runs.queue(of, now=now)
            keys.append(of.key)
    return keys


def taken(now: dt.datetime, most: int = 1) -> str:
    with as_role("worker"):
        run = runs.take_next(now=now, most=most)
        assert run is not None
        return run.source


def ended(key: str, now: dt.datetime) -> None:
    with as_role("worker"):
        RefreshRun.objects.filter(source=key).update(status="succeeded", finished_at=now)


def test_teams_take_turns_however_many_sources_one_has(team: Team, search: Team, now: dt.datetime) -> None:
    waiting(team, now, 5)
    waiting(search, now, 2)
    order = []
    for minute in range(5):
        at = now + dt.timedelta(minutes=minute)
        order.append(taken(at))
        ended(order[-1], at)
    assert order == ["growth-0", "search-0", "growth-1", "search-1", "growth-2"]


def test_of_several_places_one_is_kept_from_a_team_that_has_the_others(
    team: Team, search: Team, now: dt.datetime
) -> None:
    waiting(team, now, 3)
    waiting(search, now, 1)
    with as_role("worker"):
        Source.objects.filter(team=search).update(enabled=True)
        RefreshRun.objects.filter(team=search).update(status="succeeded", finished_at=now)
    assert taken(now, most=2) == "growth-0"
    with as_role("worker"):
        assert runs.take_next(now=now, most=2) is None, "the second is for the other team, whenever it comes"
        runs.queue(Source.objects.get(team=search), now=now)
    assert taken(now, most=2) == "search-0"


def test_a_team_that_is_alone_has_all_places_and_another_process_none_beside_them(team: Team, now: dt.datetime) -> None:
    waiting(team, now, 4)
    assert [taken(now, most=3) for _ in range(3)] == ["growth-0", "growth-1", "growth-2"]
    with as_role("worker"):
        assert runs.take_next(now=now, most=3) is None
        RefreshRun.objects.filter(source__in=["growth-0", "growth-1"]).update(status="succeeded", finished_at=now)
        assert runs.take_next(now=now, most=1) is None, (
            "one is under way: whoever carries it out goes on with the others"
        )


def test_a_run_whose_life_is_shown_keeps_its_place_and_one_whose_worker_is_gone_loses_it_within_two_minutes(
    team: Team, now: dt.datetime
) -> None:
    waiting(team, now, 2)
    minute = dt.timedelta(minutes=1)
    for _ in range(2):
        taken(now, most=3)
    with as_role("worker"):
        kept, lost = RefreshRun.objects.order_by("id")
        for minutes in (1, 2, 3):
            runs.show_life([kept], now=now + minutes * minute)
        assert runs.fail_lost(now=now + 3 * minute, shown=True) == 1
        lost.refresh_from_db()
        kept.refresh_from_db()
        assert (lost.status, kept.status) == ("failed", "running")
        runs.show_life([kept], now=now + 6 * minute)
        assert runs.fail_lost(now=now + 6 * minute, shown=True) == 1, "none takes that long: what hangs keeps no place"


def test_a_thousand_due_sources_of_one_team_do_not_keep_anothers_from_the_queue(
    team: Team, search: Team, now: dt.datetime
) -> None:
    with as_role("worker"):
        many = [source(team, now - dt.timedelta(days=1)) for _ in range(150)]
        for n, of in enumerate(many):
            of.key = f"many-{n}"
        Source.objects.bulk_create([*many, source(search, now)])
        runs.queue_due(now=now)
        assert RefreshRun.objects.filter(team=search).count() == 1
