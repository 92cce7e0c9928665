"""What the database itself refuses, whoever asks and however: no row of another team, by any road."""
# ruff: noqa: S608 - names out of the catalogue, no values

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from django.core.management import CommandError, call_command
from psycopg import sql

from decisioning.access.models import Team
from tests.access.logins import Psql, bound, psql
from tests.access.scene import FOREIGN, OURS, OWN, lay_out, team_tables
from tests.conftest import as_role, log_in_as

SHARED = {"metadata.metrics", "metadata.metric_schedules"}  # read by every team, by design
DENIED = psycopg.errors.InsufficientPrivilege


def table(name: str) -> sql.Identifier:
    return sql.Identifier(*name.split("."))


def relations(db: Psql) -> dict[str, str]:
    """Everything rows could be read from: tables, partitions, views, materialised views, foreign tables; and its team column."""
    return dict(
        db.execute(
            f"""
            SELECT format('%I.%I', n.nspname, c.relname), CASE WHEN c.relname = 'teams' THEN 'id' ELSE coalesce(
                (SELECT attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'team_id' AND NOT a.attisdropped), '') END
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS}
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1"""
        ).fetchall()
    )


def sights(db: Psql, *, names: dict[str, str]) -> dict[str, set[int | None]]:
    """The teams whose rows this login sees, by relation; relations it may not read at all are left out."""
    seen: dict[str, set[int | None]] = {}
    for name, column in names.items():
        try:
            with db.transaction():
                if not column:
                    db.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table(name)))
                    seen[name] = set()
                    continue
                rows = db.execute(sql.SQL("SELECT DISTINCT {} FROM {}").format(sql.Identifier(column), table(name)))
                seen[name] = {row[0] for row in rows}
        except DENIED:
            continue
    return seen


def foreign(seen: dict[str, set[int | None]], team: int) -> dict[str, set[int | None]]:
    return {name: teams - {team} for name, teams in seen.items() if name not in SHARED and teams - {team, None}}


@pytest.fixture
def names(transactional_db: None) -> dict[str, str]:
    """The scene is laid out; every relation with its team column."""
    with psql("superuser") as db:
        lay_out(db)
        return relations(db)


@pytest.fixture
def readers(names: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Iterator[dict[int, Psql]]:
    """A person's SQL tool in each team, logged in by the URL that create_reader prints."""
    log_in_as("worker")
    logins: list[str] = []
    found: dict[int, Psql] = {}
    try:
        for team in (OWN, FOREIGN):
            call_command("create_reader", team=f"x{team}")
            url = capsys.readouterr().out.splitlines()[-1]
            found[team] = psycopg.connect(url, autocommit=True)
            found[team].execute("SET default_transaction_read_only = off")  # a convenience, no fence
            logins.append(found[team].info.user)
        yield found
    finally:
        for db in found.values():
            db.close()
        for login in logins:
            call_command("create_reader", drop=login)
        log_in_as("web")


def test_a_readers_login_sees_its_own_team_and_no_other_anywhere(
    readers: dict[int, Psql], names: dict[str, str]
) -> None:
    for team, db in readers.items():
        seen = sights(db, names=names)
        assert foreign(seen, team) == {}
        assert {name for name, column in names.items() if not column} & set(seen) <= {
            "audit.seals",
            "metrics.due_instants",
        }
        of_nobody = ("audit.seals", "metrics.due_instants")
        empty = [name for name, teams in seen.items() if team not in teams and name not in of_nobody]
        assert empty == [], "granted, yet not even its own rows: nothing is shown"
        assert {"metadata.experiments", "metrics.experiment_kpis", "audit.entries", "metadata.decisions"} <= set(seen)
        assert not {"metadata.api_keys", "metadata.memberships", "public.auth_user", "public.django_session"} & set(
            seen
        )


def test_a_reader_learns_nothing_by_copy_settings_roles_or_statistics(readers: dict[int, Psql]) -> None:
    db = readers[OWN]
    for name in ("metadata.experiments", "metrics.experiment_kpis", "audit.entries", "metadata.teams"):
        with db.cursor().copy(sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(table(name))) as copy:
            text = b"".join(bytes(part) for part in copy).decode()
        assert str(OWN) in text
        fields = {field for line in text.splitlines() for field in line.split("\t")}
        assert not fields & {str(FOREIGN), f"x{FOREIGN}"}, "a time may hold these digits"
    db.execute("SELECT set_config('app.teams', %s, false), set_config('app.admin', 'on', false)", [f"{{{FOREIGN}}}"])
    assert db.execute("SELECT id FROM metadata.teams").fetchall() == [(OWN,)]
    assert db.execute("SELECT login FROM access.readers").fetchall() == [(db.info.user,)]
    for role in ("decisioning_owner", "decisioning_web", "decisioning_worker", "decisioning_backup"):
        with pytest.raises(DENIED):
            db.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
    db.execute("SET ROLE decisioning_reader")  # its own group: a name that no team has
    assert db.execute("SELECT id FROM metadata.teams").fetchall() == []
    db.execute("RESET ROLE")
    with psql("owner") as owner:
        owner.execute("ANALYZE metadata.experiments, metrics.experiment_kpis")
    assert (
        db.execute(
            "SELECT tablename FROM pg_stats WHERE schemaname = ANY ('{metadata,metrics,audit,access}')"
        ).fetchall()
        == []
    )


def test_a_reader_writes_nowhere(readers: dict[int, Psql], names: dict[str, str]) -> None:
    db = readers[OWN]
    for name in names:
        for statement in ("DELETE FROM {}", "TRUNCATE {}", "INSERT INTO {} DEFAULT VALUES"):
            with pytest.raises(DENIED):
                db.execute(sql.SQL(statement).format(table(name)))
    for statement in (
        "UPDATE metadata.experiments SET name = 'mine'",
        "UPDATE access.readers SET team_id = 902",
        "CREATE TABLE public.mine (id int)",
        "CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql RETURN 1",
    ):
        with pytest.raises(DENIED):
            db.execute(statement)


def test_a_dropped_readers_login_is_gone_at_once(names: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    log_in_as("worker")
    try:
        call_command("create_reader", team=f"x{OWN}")
        url = capsys.readouterr().out.splitlines()[-1]
        with closing(psycopg.connect(url, autocommit=True)) as db:
            call_command("create_reader", drop=db.info.user)
            with pytest.raises(psycopg.OperationalError):
                db.execute("SELECT 1")
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
        with pytest.raises(CommandError):
            call_command("create_reader", drop="decisioning_web")
    finally:
        log_in_as("web")


def test_requests_see_the_bound_team_and_no_other_anywhere(names: dict[str, str]) -> None:
    with psql("web") as db:
        with db.transaction():
            bound(db, teams=[OWN])
            seen = sights(db, names=names)
            assert foreign(seen, OWN) == {}
            assert [name for name, column in names.items() if column and name in seen and OWN not in seen[name]] == []
        with db.transaction():
            assert foreign(sights(db, names=names), 0) == {}, "what one transaction was bound to is left in the next"
        with db.transaction():
            bound(db, teams=[])
            assert foreign(sights(db, names=names), 0) == {}


def test_requests_change_no_row_of_another_team(names: dict[str, str]) -> None:
    with psql("superuser") as everything:
        tables = team_tables(everything)

        def count() -> dict[str, int]:
            return {
                name: everything.execute(
                    sql.SQL("SELECT count(*) FROM {} WHERE {} = %s").format(table(name), sql.Identifier(column)),
                    [FOREIGN],
                ).fetchall()[0][0]
                for name, column in tables.items()
            }

        before = count()
        assert set(before.values()) == {1}
        with psql("web") as db:
            for name, column in tables.items():
                where = sql.SQL("WHERE {} = %s").format(sql.Identifier(column))
                for statement in ("DELETE FROM {} ", f"UPDATE {{}} SET {column} = {column} "):
                    assert _affected(db, sql.SQL(statement).format(table(name)) + where, [FOREIGN]) == 0, name
                # Giving a row away, and writing one into the other team.
                assert (
                    _affected(
                        db,
                        sql.SQL("UPDATE {} SET {} = %s ").format(table(name), sql.Identifier(column)) + where,
                        [FOREIGN, OWN],
                    )
                    == 0
                )
                assert _affected(db, _copied_over(everything, name, column), []) == 0, name
                assert _affected(db, sql.SQL("TRUNCATE {}").format(table(name)), []) == 0, name
        assert count() == before


def _affected(db: Psql, statement: sql.SQL | sql.Composed, values: list[object]) -> int:
    """Rows changed by a statement bound to OWN and rolled back; 0 when PostgreSQL refuses it by right or by policy."""
    try:
        with db.transaction(force_rollback=True):
            bound(db, teams=[OWN])
            return db.execute(statement, values).rowcount
    except DENIED:
        return 0


def _copied_over(db: Psql, name: str, column: str) -> sql.Composed:
    """INSERT of the own row again, as the foreign team's, with a key of its own."""
    columns = [
        row[0]
        for row in db.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''",
            [name],
        )
    ]
    values = [sql.Literal(FOREIGN) if c == column else sql.Identifier(c) for c in columns]
    return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}").format(
        table(name), sql.SQL(", ").join(map(sql.Identifier, columns)), sql.SQL(", ").join(values), table(name)
    )


def test_copy_into_a_teams_table_is_refused(names: dict[str, str]) -> None:
    with psql("web") as db, db.transaction(force_rollback=True):
        bound(db, teams=[OWN])
        with pytest.raises((DENIED, psycopg.errors.FeatureNotSupported)):
            db.cursor().copy(
                "COPY metrics.experiment_kpis (experiment_id, ts, metric, value, team_id) FROM STDIN"
            ).__enter__()


def test_partitions_old_and_new_are_nobodys_to_read(names: dict[str, str]) -> None:
    with psql("worker") as worker, psql("web") as web:
        worker.execute("SELECT metrics.make_partitions('2031-01-15', '2031-02-15')")
        partitions = [
            row[0]
            for row in worker.execute(
                "SELECT 'metrics.' || c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid "
                "WHERE inhparent = 'metrics.experiment_kpis'::regclass"
            )
        ]
        assert {"metrics.experiment_kpis_2031_02", "metrics.experiment_kpis_default"} <= set(partitions)
        try:
            for name in partitions:
                for db in (worker, web):
                    for statement in ("SELECT FROM {}", "DELETE FROM {}", "INSERT INTO {} DEFAULT VALUES"):
                        with pytest.raises(DENIED):
                            db.execute(sql.SQL(statement).format(table(name)))
        finally:
            with psql("owner") as owner:
                owner.execute("DROP TABLE metrics.experiment_kpis_2031_01, metrics.experiment_kpis_2031_02")
        for call in ("make_partitions(now(), now())", "drop_partitions(now())", "default_partition_rows()"):
            with pytest.raises(DENIED):
                web.execute(f"SELECT metrics.{call}")


WEAKENED = (
    ("decisioning_web", "ALTER POLICY team ON metadata.experiments USING (true)"),
    (
        "decisioning_web",
        "ALTER POLICY team ON metadata.api_keys USING (access.is_admin() OR team_id IS NOT NULL)",
    ),
    ("decisioning_web", "ALTER TABLE audit.entries DISABLE ROW LEVEL SECURITY"),
    ("decisioning_web", "CREATE POLICY more ON metadata.decisions FOR SELECT TO decisioning_web USING (true)"),
    (
        "decisioning_web",
        """GRANT SELECT ON metrics.experiment_kpis_2026_11 TO decisioning_web;
           ALTER TABLE metrics.experiment_kpis_2026_11 DISABLE ROW LEVEL SECURITY""",
    ),
    (
        "decisioning_web",
        """CREATE VIEW metadata.everything AS SELECT * FROM metadata.experiments;
           GRANT SELECT ON metadata.everything TO decisioning_web""",
    ),
    ("decisioning_reader", "ALTER POLICY reader ON metrics.experiment_kpis USING (true)"),
)


@pytest.mark.usefixtures("names")
def test_one_weakened_policy_is_noticed() -> None:
    with psql("superuser") as db:
        for role, weakening in WEAKENED:
            with db.transaction(force_rollback=True):
                db.execute(weakening)
                names = relations(db)
                db.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
                db.execute("SELECT set_config('app.teams', %s, true)", [f"{{{OWN}}}"])
                assert len(foreign(sights(db, names=names), OWN)) == 1, weakening


def test_a_request_bound_to_nobody_sees_no_team(team: Team) -> None:
    assert not Team.objects.exists()
    with as_role("worker"):
        assert Team.objects.get() == team
