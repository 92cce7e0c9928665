"""What a person's SQL tool cannot do to everybody else, with its own password and whatever it sets for itself."""

import datetime as dt
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from importlib import import_module
from pathlib import Path

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from decisioning.access.models import Team
from decisioning.access.principal import bind_job
from decisioning.access.readers import Limits, end_beyond_limits
from decisioning.embedded import FOR_READERS, PROJECT, Home, Postgres
from decisioning.ledger import alarms, archive
from experiments.models import Experiment
from telemetry import retention
from telemetry.models import ExperimentKpi
from telemetry.sources import runs
from tests.access.logins import Psql, dsn, psql
from tests.conftest import as_role, log_in_as

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("DATABASE_SUPERUSER_URL" not in os.environ, reason="an own server of this test run is needed"),
]
DENIED = psycopg.errors.InsufficientPrivilege
LONG = dt.timedelta(days=1)
NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
Makes = Callable[[], str]


@pytest.fixture
def make(team: Team, capsys: pytest.CaptureFixture[str]) -> Iterator[Makes]:
    """Makes readers as the operator does; returns their URLs."""
    log_in_as("worker")
    urls: list[str] = []

    def one() -> str:
        call_command("create_reader", team=team.key)
        urls.append(capsys.readouterr().out.splitlines()[-1])
        return urls[-1]

    try:
        yield one
    finally:
        for url in urls:
            with suppress(CommandError):  # some are dropped by their test
                call_command("create_reader", drop=psycopg.conninfo.conninfo_to_dict(url)["user"])
        log_in_as("web")


@pytest.fixture
def reader(make: Makes) -> Iterator[Psql]:
    """One that has put off every limit it can."""
    db = psycopg.connect(make(), autocommit=True)
    with closing(db):
        for setting in (
            "statement_timeout",
            "transaction_timeout",
            "idle_in_transaction_session_timeout",
            "lock_timeout",
        ):
            db.execute(f"SET {setting} = 0")
        db.execute("SET default_transaction_read_only = off")
        yield db


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TEMP TABLE mine AS SELECT 1",
        "SELECT 1 INTO TEMP mine",
        "CREATE TEMP SEQUENCE mine",
        "SELECT lo_create(0)",
        "SELECT lo_creat(-1)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT pg_advisory_lock(1)",
        "SELECT pg_advisory_xact_lock_shared(1, 2)",
        "SELECT pg_try_advisory_lock(n) FROM generate_series(1, 10) AS n",
        "SELECT pg_current_xact_id()",
        "SELECT txid_current()",
        "SELECT pg_logical_emit_message(false, 'x', 'y')",
        "SELECT access.lock('telemetry.take_next')",
        "SELECT FROM access.locks",
        "BEGIN; LOCK TABLE audit.mark IN ACCESS SHARE MODE",
        "BEGIN; LOCK TABLE metadata.experiments IN SHARE MODE",
        "SELECT FROM metadata.teams FOR KEY SHARE",
        "SET temp_file_limit = -1",
        "SET log_min_messages = debug5",
        "SELECT n_live_tup FROM pg_stat_all_tables",
        "SELECT n_tup_ins FROM pg_stat_user_tables",
        "SELECT pg_total_relation_size('metrics.experiment_kpis')",
        "SELECT pg_database_size(current_database())",
        "SELECT usename FROM pg_stat_activity",
        "SELECT objid FROM pg_locks",
    ],
)  # fmt: skip
def test_a_reader_is_refused_what_holds_up_fills_up_or_counts_others(reader: Psql, statement: str) -> None:
    with pytest.raises(DENIED):
        reader.execute(statement)


@pytest.mark.parametrize("database", ["postgres", "template1"])
def test_a_reader_enters_no_other_database(make: Makes, database: str) -> None:
    url = f"{make().rpartition('/')[0]}/{database}"
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url)


def test_what_people_ask_of_their_own_rows_still_works(reader: Psql, team: Team) -> None:
    assert reader.execute("SELECT key FROM teams").fetchall() == [(team.key,)]
    assert reader.execute("SELECT relname FROM pg_class WHERE relname = 'experiments'").fetchall() == [("experiments",)]
    assert (
        reader.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'metadata'").fetchall()[0][
            0
        ]
        > 5
    )


@pytest.mark.parametrize(
    "statement", ["COPY experiment_kpis TO STDOUT", '/* x */ copy Metrics."experiment_kpis" (ts) TO STDOUT']
)
def test_rows_are_copied_by_a_query_and_a_copy_that_would_read_none_says_so(
    reader: Psql, team: Team, statement: str
) -> None:
    with transaction.atomic():
        bind_job("test")
        experiment = Experiment.objects.create(key="copied", team=team, name="C", hypothesis="H", created_at=NOON)
        ExperimentKpi.objects.create(
            experiment_id=experiment.pk,
            team_id=team.pk,
            metric="m",
            variant="all",
            ts=NOON,
            value=1,
            first_received_at=NOON,
            received_at=NOON,
        )
    with pytest.raises(psycopg.errors.WrongObjectType) as refused, reader.cursor().copy(statement) as copy:
        list(copy)
    assert refused.value.diag.message_hint == "Write COPY (SELECT * FROM metrics.experiment_kpis) TO ..."
    with reader.cursor().copy("COPY (SELECT value FROM metrics.experiment_kpis) TO STDOUT") as copy:
        assert [*copy.rows()] == [("1",)]
    assert reader.execute("SELECT 'copy experiment_kpis', count(*) FROM experiment_kpis").fetchall()[0][1] == 1


def test_what_the_page_on_tables_says_can_be_read(reader: Psql) -> None:
    page = (PROJECT / "docs" / "bi.md").read_text()
    queries = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(queries) == 2
    for query in queries:
        reader.execute(query)
    for table in re.findall(r"^\| [^|]+ \| `([\w.]+)`", page, re.MULTILINE):
        reader.execute(f"SELECT FROM {table} LIMIT 1")


def test_the_limits_of_a_session_are_those_we_gave_it_and_the_ones_on_disk_stay(make: Makes) -> None:
    url = make()
    with psycopg.connect(url, autocommit=True) as db:
        shown = {
            name: db.execute(f"SHOW {name}").fetchall()[0][0]
            for name in (
                "statement_timeout",
                "transaction_timeout",
                "idle_in_transaction_session_timeout",
                "temp_file_limit",
            )
        }
        assert list(shown.values()) == ["1min", "5min", "1min", "1GB"]
        db.execute("SET default_transaction_read_only = off")
        for statement in ("SET temp_file_limit = -1", "ALTER ROLE CURRENT_USER SET temp_file_limit = -1"):
            with pytest.raises(DENIED):
                db.execute(statement)
        db.execute("ALTER ROLE CURRENT_USER RESET ALL")
    with psycopg.connect(url, autocommit=True) as again:
        assert again.execute("SHOW temp_file_limit").fetchall() == [("1GB",)]


def gone(db: Psql) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with psql("superuser") as everything:
            if not everything.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [db.info.backend_pid]).rowcount:
                return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("limits", "why", "begin"),
    [
        (Limits(dt.timedelta(0), LONG, LONG, LONG), "statement", "SELECT pg_sleep(60)"),
        (Limits(LONG, dt.timedelta(0), LONG, LONG), "idle in transaction", "BEGIN; SELECT 1"),
        (Limits(LONG, LONG, dt.timedelta(0), LONG), "transaction", "BEGIN; SELECT 1"),
        (Limits(LONG, LONG, LONG, dt.timedelta(0)), "idle", "SELECT 1"),
    ],
)
def test_a_reader_that_has_lifted_its_limits_is_ended_all_the_same(
    reader: Psql, make: Makes, limits: Limits, why: str, begin: str
) -> None:
    assert end_beyond_limits() == []
    reader.pgconn.send_query(begin.encode())
    reader.pgconn.flush()
    deadline = time.monotonic() + 10
    ended: list[tuple[str, str]] = []
    while not ended and time.monotonic() < deadline:
        ended = end_beyond_limits(limits)
    assert ended == [(reader.info.user, why)]
    assert gone(reader)
    with psycopg.connect(make()) as another, psql("web") as ours:
        ours.execute("BEGIN; SELECT 1")
        assert end_beyond_limits(Limits(LONG, dt.timedelta(0), dt.timedelta(0), LONG)) == []
        assert ours.execute("SELECT 1").rowcount == 1
        another.execute("SELECT 1")


def test_the_job_ends_what_is_beyond_its_limits_and_says_so(reader: Psql, monkeypatch: pytest.MonkeyPatch) -> None:
    from decisioning.celery import app

    assert app.conf.beat_schedule["readers"]["schedule"] <= 10
    import_module("decisioning.notices.tasks")
    monkeypatch.setattr(end_beyond_limits, "__defaults__", (Limits(LONG, LONG, LONG, dt.timedelta(0)),))
    app.tasks["access.readers"]()
    assert gone(reader)


def test_of_a_readers_connections_there_are_five_and_of_all_readers_a_few_and_the_rest_are_for_web_and_worker(
    make: Makes,
) -> None:
    with ExitStack() as open_:
        refused = {_fill(make(), open_) for _ in range(FOR_READERS // 5)} | {_fill(make(), open_)}
        assert refused == {"too many connections for role", "remaining connection slots are reserved"}
        for role in ("web", "worker", "owner", "backup"):
            open_.enter_context(psycopg.connect(_dsn(role)))


def _fill(url: str, stack: ExitStack) -> str:
    """Connect until it is refused; why it is."""
    for _ in range(6):
        try:
            stack.enter_context(psycopg.connect(url))
        except psycopg.OperationalError as refusal:
            told = str(refusal)
            return next(
                why
                for why in ("too many connections for role", "remaining connection slots are reserved")
                if why in told
            )
    return "never"


def _dsn(role: str) -> str:
    return dsn(role) if role != "backup" else Postgres(Home(os.environ["DECISIONING_HOME"])).dsn("backup")


def test_a_reader_cannot_keep_itself_from_being_dropped(reader: Psql) -> None:
    reader.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
    with psql("superuser") as db:
        (loid,) = db.execute("SELECT lo_from_bytea(0, 'from before')").fetchall()[0]
        db.execute(f"ALTER LARGE OBJECT {loid} OWNER TO {reader.info.user}")
    call_command("create_reader", drop=reader.info.user)
    with psql("superuser") as db:
        assert not db.execute("SELECT FROM pg_roles WHERE rolname = %s", [reader.info.user]).rowcount
        assert not db.execute("SELECT FROM pg_largeobject_metadata").rowcount


def test_no_login_tells_a_teams_name(make: Makes, team: Team) -> None:
    make()
    with psql("superuser") as db:
        names = {name for (name,) in db.execute("SELECT rolname FROM pg_roles WHERE rolname ~ '^decisioning_reader_'")}
    assert names
    assert not [name for name in names if team.key in name]


def test_a_backup_is_made_though_somebody_has_made_a_large_object(tmp_path: Path) -> None:
    postgres = Postgres(Home(os.environ["DECISIONING_HOME"]))
    here = str(connection.settings_dict["NAME"])
    with psql("superuser") as db:
        (loid,) = db.execute("SELECT lo_from_bytea(0, 'x')").fetchall()[0]
        try:
            archive.back_up(
                postgres.dsn("backup", here),
                tmp_path / "b",
                heads=tmp_path / "none",
                binaries=postgres.bin,
                say=lambda _: None,
            )
        finally:
            db.execute("SELECT lo_unlink(%s)", [loid])
    assert (tmp_path / "b" / archive.MANIFEST).exists()


def looking() -> tuple[list[int], Callable[[], list[alarms.Condition]]]:
    """A look that finds nothing wrong, and notes that it looked."""
    looked: list[int] = []

    def look() -> list[alarms.Condition]:
        looked.append(1)
        return []

    return looked, look


def test_nothing_of_ours_waits_for_an_advisory_lock(reader: Psql, now: dt.datetime) -> None:
    """Held by a superuser here, as on a server where nobody could take these functions from everybody."""
    log_in_as("worker")
    with psql("superuser") as db:
        db.execute(
            "SELECT pg_advisory_lock(hashtext(n)) FROM unnest('{telemetry.take_next,metrics.make_partitions,audit.seal}'::text[]) AS n"
        )
        db.execute("SELECT pg_advisory_lock(hashtextextended('alarms decision.overdue', 0))")
        looked, look = looking()
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '1s'")
            assert runs.take_next(now=now, most=1) is None
            retention.make_partitions(now=now)
            alarms.reconcile("decision.overdue", look, now=now)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM audit.seal()")
    assert looked == [1]


def test_of_two_looks_for_alarms_at_once_the_second_does_not_even_look(now: dt.datetime) -> None:
    looked, look = looking()
    with psql("superuser") as db, db.transaction():
        db.execute("SELECT access.lock('alarms decision.overdue')")
        with as_role("worker"):
            assert alarms.reconcile("decision.overdue", look, now=now) == 0
    assert looked == []
    with as_role("worker"):
        alarms.reconcile("decision.overdue", look, now=now)
    assert looked == [1]


def test_readers_made_before_are_held_by_the_next_start(make: Makes) -> None:
    """What `up` and docker/roles.sh run as a superuser; a login as an earlier release made it, that has lifted its own limits for good."""
    from decisioning.embedded import READERS

    url = make()
    login = psycopg.conninfo.conninfo_to_dict(url)["user"]
    with psql("superuser") as db:
        db.execute(f'ALTER ROLE "{login}" RESET ALL')
        db.execute(f'ALTER ROLE "{login}" CONNECTION LIMIT 10')
        db.execute("GRANT EXECUTE ON FUNCTION lo_create(oid) TO PUBLIC")
        name = connection.settings_dict["NAME"]
        db.execute(f'GRANT TEMPORARY ON DATABASE "{name}" TO PUBLIC')
    with psycopg.connect(url, autocommit=True) as old:
        old.execute(f'ALTER ROLE CURRENT_USER IN DATABASE "{name}" SET statement_timeout = 0')
        old.execute("CREATE TEMP TABLE mine AS SELECT 1")
    with psql("superuser") as db:
        db.execute(READERS.read_bytes())
    with psycopg.connect(url, autocommit=True) as now_:
        assert now_.execute("SHOW statement_timeout").fetchall() == [("1min",)]
        assert now_.execute("SHOW temp_file_limit").fetchall() == [("1GB",)]
        now_.execute("SET default_transaction_read_only = off")
        for statement in ("CREATE TEMP TABLE mine AS SELECT 1", "SELECT lo_create(0)"):
            with pytest.raises(DENIED):
                now_.execute(statement)
        with ExitStack() as more:
            for _ in range(4):
                more.enter_context(psycopg.connect(url))
            with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
                psycopg.connect(url)
