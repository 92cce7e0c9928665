"""Databases that sources read: each can be read and nothing else can, and what goes wrong is said in a sentence without secrets."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from django.conf import LazySettings

from tests.api.conftest import Caller, errors_of
from tests.api.warehouse import warehouse

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
ENV = "WAREHOUSE_URL"
WINDOW = "ts > :since AND ts <= :until"
KEY = "one-page-checkout"
HARMLESS = "nothing that is secret"


@pytest.fixture(autouse=True)
def folder(settings: LazySettings, tmp_path: Path) -> Path:
    """The folder of files, beside it a file that is none of them."""
    settings.SOURCES_DIR = files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "outside.csv").write_text(f"experiment,ts,value\n{HARMLESS},2026-11-24,1\n")
    return files


@pytest.fixture
def tries(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Dry runs of a source with this URL and query."""
    ops.experiment()

    def dry_run(url: str, query: str = f"SELECT * FROM kpis WHERE {WINDOW}", **said: Any) -> Any:  # noqa: S608
        monkeypatch.setenv(ENV, url)
        plan = {"key": "warehouse", "kind": "sql", "url_env": ENV, "query": query, "metrics": ["vrps"], **said}
        return ops.post("/api/sources?dry_run=true", plan)

    return dry_run


def sqlite_in(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE kpis (experiment TEXT, variant TEXT, ts TEXT, value REAL, n INTEGER)")
        database.execute(
            "INSERT INTO kpis VALUES (?, 'control', ?, 0.5, 8)", [KEY, f"{TOP - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"]
        )
    database.close()


def duckdb_in(path: Path) -> None:
    with duckdb.connect(str(path)) as database:
        database.execute("SET TimeZone = 'UTC'")
        database.execute(
            "CREATE TABLE kpis (EXPERIMENT TEXT, variant TEXT, ts TIMESTAMPTZ_NS, value DECIMAL(9, 2), n HUGEINT)"
        )
        database.execute(
            "INSERT INTO kpis VALUES (?, 'control', ?::TIMESTAMPTZ_NS, 0.5, 8)",
            [KEY, (TOP - timedelta(hours=1)).isoformat()],
        )


MAKE = {"sqlite": sqlite_in, "duckdb": duckdb_in}
EVER = "SELECT * FROM kpis WHERE :since <> :until"


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_database_below_the_folder_of_files_is_read(tries: Any, folder: Path, name: str, absolute: bool) -> None:
    MAKE[name](folder / "shop.db")
    before = (folder / "shop.db").read_bytes()
    told = tries(f"{name.upper()}+any_driver:///{folder / 'shop.db' if absolute else 'shop.db'}", EVER).json()
    assert (told["accepted"], told["refused"], told["problems"]) == (1, 0, [])
    assert (folder / "shop.db").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["shop.db"]


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
def test_a_database_anywhere_else_is_refused_whatever_leads_there(
    tries: Any, ops: Caller, folder: Path, name: str
) -> None:
    outside = folder.parent / "outside.db"
    MAKE[name](outside)
    (folder / "link.db").symlink_to(outside)
    for path in ("/../outside.db", f"/{outside}", "/link.db", "", "/", "/:memory:", "/file:outside.db", "/md:shop"):
        for _ in range(2):
            response = tries(f"{name}://{path}", EVER)
            assert (response.status_code, errors_of(response)) == (422, [("/url_env", "invalid")]), path
    plan = {"key": "kept", "kind": "sql", "url_env": ENV, "query": EVER, "metrics": ["vrps"]}
    assert ops.post("/api/sources", plan).status_code == 422


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
def test_a_database_that_is_not_there_is_never_made(tries: Any, folder: Path, name: str) -> None:
    response = tries(f"{name}:///missing.db", EVER)
    assert (response.status_code, response.json()["code"]) == (422, "source_failed")
    assert "There is no such database file" in response.json()["detail"]
    assert list(folder.iterdir()) == []


def test_a_link_in_the_folder_of_files_leads_out_of_it_for_nobody(tries: Any, ops: Caller, folder: Path) -> None:
    (folder / "link.csv").symlink_to(folder.parent / "outside.csv")
    (folder / "inside.csv").write_text("experiment,ts,value\n")
    (folder / "alias.csv").symlink_to(folder / "inside.csv")
    plan = {"key": "exports", "kind": "file", "query": f"SELECT * FROM rows WHERE {WINDOW}", "metrics": ["vrps"]}  # noqa: S608
    assert errors_of(ops.post("/api/sources?dry_run=true", {**plan, "path": "link.csv"})) == [("/path", "invalid")]
    assert ops.post("/api/sources?dry_run=true", {**plan, "path": "alias.csv"}).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "SELECT content AS experiment FROM read_text('{outside}') WHERE :since < :until",
        "SELECT * FROM '{outside}' WHERE :since < :until",
        "SELECT * FROM read_csv('{outside}') WHERE :since < :until",
        "SELECT file AS experiment FROM glob('{outside}') WHERE :since < :until",
        "SELECT * FROM query('SELECT * FROM read_csv(''{outside}'')') WHERE :since < :until",
        "SELECT content AS experiment FROM read_text('/proc/self/environ') WHERE :since < :until",
        "SELECT getenv('HOME') AS experiment WHERE :since < :until",
        "SELECT * FROM options WHERE :since < :until",
        "SELECT * FROM kpis WHERE :since < :until) AS q; COPY kpis TO '{made}'; SELECT (1",
        "SELECT * FROM kpis WHERE :since < :until) AS q; ATTACH '{made}'; SELECT (1",
        "SELECT * FROM kpis WHERE :since < :until) AS q; SET lock_configuration = false; SELECT (1",
    ],
)
def test_a_query_on_duckdb_reaches_its_database_alone(tries: Any, folder: Path, query: str) -> None:
    duckdb_in(folder / "shop.db")
    response = tries("duckdb:///shop.db", query.format(outside=folder.parent / "outside.csv", made=folder / "made.csv"))
    assert response.status_code == 422, response.content
    assert HARMLESS not in response.content.decode()
    assert [path.name for path in folder.iterdir()] == ["shop.db"]


@pytest.mark.parametrize(
    "query",
    [
        "SELECT load_extension('{outside}') AS experiment WHERE :since < :until",
        "SELECT readfile('{outside}') AS experiment WHERE :since < :until",
        "SELECT file AS experiment FROM pragma_database_list WHERE :since < :until",
        "SELECT * FROM kpis WHERE :since < :until) AS q; ATTACH '{made}' AS made; SELECT * FROM (SELECT 1",
        "WITH x AS (SELECT 1) INSERT INTO kpis SELECT :since, :until, 3, 4, 5",
    ],
)
def test_a_query_on_sqlite_can_do_nothing_but_read(tries: Any, folder: Path, query: str) -> None:
    sqlite_in(folder / "shop.db")
    response = tries("sqlite:///shop.db", query.format(outside=folder.parent / "outside.csv", made=folder / "made.db"))
    assert response.status_code == 422, response.content
    assert [path.name for path in folder.iterdir()] == ["shop.db"]


def test_a_query_on_sqlite_that_runs_on_is_stopped(tries: Any, folder: Path) -> None:
    sqlite_in(folder / "shop.db")
    endless = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT max(n) AS value FROM x WHERE :since < :until"
    response = tries("sqlite:///shop.db", endless, time_limit_s=1)
    assert (response.status_code, "interrupted" in response.json()["detail"]) == (422, True)


@pytest.mark.parametrize(
    "text", ["'12:30'", "':since'", "'{\"a\": [1, 2]}'", "CAST('5' AS TEXT) /* :until :x */", "'100%'", "'it''s :x'"]
)
def test_colons_in_texts_and_comments_of_a_query_are_no_parameters(tries: Any, folder: Path, text: str) -> None:
    for name in ("sqlite", "duckdb"):
        MAKE[name](folder / f"{name}.db")
        told = tries(f"{name}:///{name}.db", f"SELECT *, {text} AS note FROM kpis WHERE :since <> :until").json()  # noqa: S608
        assert told["accepted"] == 1, told


@pytest.mark.parametrize("name", ["sqlite", "duckdb"])
def test_times_that_are_numbers_are_bounded_by_numbers(tries: Any, folder: Path, name: str) -> None:
    rows = [(KEY, int((TOP - timedelta(hours=hours)).timestamp()), hours) for hours in (1, 24 * 1_000)]
    make = "CREATE TABLE kpis (experiment TEXT, ts BIGINT, value INTEGER)"
    if name == "sqlite":
        with sqlite3.connect(folder / "shop.db") as lite:
            lite.execute(make)
            lite.executemany("INSERT INTO kpis VALUES (?, ?, ?)", rows)
        lite.close()
    else:
        with duckdb.connect(str(folder / "shop.db")) as duck:
            duck.execute(make)
            duck.executemany("INSERT INTO kpis VALUES (?, ?, ?)", rows)
    query = f"SELECT *, 'control' AS variant FROM kpis WHERE {WINDOW}"  # noqa: S608
    told = tries(f"{name}:///shop.db", query, time_format="epoch_s").json()
    assert (told["accepted"], told["refused"]) == (1, 0)
    assert errors_of(tries(f"{name}:///shop.db", query, time_format="days")) == [("/time_format", "invalid")]


# Dry runs -----------------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_it_has_understood_and_what_it_leaves_out(tries: Any) -> None:
    query = f"SELECT '{KEY}' AS experiment, 'control' AS variant, now() - interval '1 hour' * i AS ts, i AS value, 10 AS n, 'x' AS note FROM generate_series(1, 3) AS i WHERE :since < :until"  # noqa: S608
    told = tries(warehouse(), query).json()
    (summary,) = told["summaries"]
    assert {name: summary[name] for name in ("metric", "rows", "n", "mean", "sd")} == {
        "metric": "vrps", "rows": 3, "n": 30, "mean": 2, "sd": 1,
    }  # fmt: skip
    assert summary["newest"] > (datetime.now(UTC) - timedelta(hours=2)).isoformat()
    assert (told["ignored_columns"], told["warnings"]) == (["note"], [])


def test_a_dry_run_of_a_file_names_the_columns_it_leaves_out(ops: Caller, folder: Path) -> None:
    ops.experiment()
    (folder / "kpis.csv").write_text(f"experiment,variant,ts,value,users,note\n{KEY},control,{TOP.isoformat()},1,5,x\n")
    plan = {
        "key": "x",
        "kind": "file",
        "path": "kpis.csv",
        "query": "SELECT * FROM rows WHERE ts > :since AND ts <= :until",
        "metrics": ["vrps"],
    }
    told = ops.post("/api/sources?dry_run=true", plan).json()
    assert (told["accepted"], told["ignored_columns"]) == (1, ["note", "users"])
    assert "note" not in told["rows"][0]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("now() + interval '2 hours' AS ts, 1 AS value, 10 AS n", "Times look local"),
        ("now() AS ts, 1 AS value, 1 AS n, 0 AS variance", "Variances look like a population's"),
        ("now() AS ts, 0.25 AS value, 10 AS n, 0.1875 AS variance", "Variances look like a population's"),
        ("now() AS ts, 0.25 AS value, 10 AS n, 0.1875 * 10 / 9 AS variance", ""),
        ("now() + interval '20 hours' AS ts, 1 AS value, 10 AS n", ""),
    ],
)
def test_a_dry_run_warns_of_what_looks_wrong(tries: Any, columns: str, said: str) -> None:
    query = f"SELECT '{KEY}' AS experiment, 'control' AS variant, {columns} WHERE :since < :until"
    warnings = tries(warehouse(), query).json()["warnings"]
    assert [warning.startswith(said) for warning in warnings] == ([True] if said else [])


# What is said -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", ["hush-hush", "a", "p@ss/w:rd", "relation", "ü%25$1", "p@ss", "x?y#z", "1:2"])
def test_no_password_is_told_and_no_text_mangled(tries: Any, password: str) -> None:
    response = tries(f"postgresql://me:{password}@127.0.0.1:1/db", "SELECT * FROM relation WHERE :since < :until")
    told = response.json()["detail"]
    assert (response.status_code, response.json()["code"]) == (422, "source_failed")
    badly_written = (
        f"The environment variable {ENV} holds no database URL. Write it as name://user:password@host/database, "
        "with : / @ ? # and % in a password as %3A %2F %40 %3F %23 %25."
    )
    assert told in (
        badly_written,
        f"{ENV}: Nothing answers at the host and port of the URL.",
        f"{ENV}: The host is unknown here. Check the host in the URL.",
    )


def test_what_the_database_says_of_a_query_is_told_as_it_says_it(tries: Any) -> None:
    missing = tries(warehouse(), f"SELECT * FROM relation WHERE {WINDOW}").json()["detail"]  # noqa: S608
    assert 'relation "relation" does not exist' in missing
    secret = tries(warehouse(), "SELECT rolpassword AS experiment FROM pg_authid WHERE :since < :until").json()[
        "detail"
    ]
    assert secret.startswith("The login may not read what the query asks for: grant it SELECT.")
    assert "permission denied for table pg_authid" in secret


def test_sqlite_compares_times_in_its_own_form(tries: Any, folder: Path) -> None:
    sqlite_in(folder / "shop.db")
    told = tries(
        "sqlite:///shop.db", "SELECT * FROM kpis WHERE datetime(ts) > :since AND datetime(ts) <= :until"
    ).json()
    assert told["accepted"] == 1
    assert (
        tries("sqlite:///shop.db", "SELECT * FROM kpis WHERE ts < :since OR ts > datetime(:until, '+1 day')").json()[
            "accepted"
        ]
        == 0
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nonsense://me@host/db", f"{ENV} names no database that can be read: bigquery, clickhouse"),
        (
            "oracle://me:hush@host/db",
            "The driver for oracle is not installed here. Run: uv sync --locked --extra oracle (in a project",
        ),
        ("postgresql://me:hush@no-such-host.invalid/db", f"{ENV}: The host is unknown here."),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(tries: Any, place: str, said: str) -> None:
    response = tries(place)
    assert response.status_code == 422
    assert response.json()["detail"].startswith(said)
    assert "hush" not in response.content.decode()
