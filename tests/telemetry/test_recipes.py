"""The queries of docs/sources.md, one a database: each is a source's query; those that can run here yield the truth."""

import re
import sqlite3
import statistics
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from django.conf import LazySettings

from telemetry.models import Source
from telemetry.sources import dialects, engines, query, rows
from tests.api.warehouse import warehouse

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text().partition("\n## Recipes\n")[2]
TITLES = {
    "bigquery": "BigQuery", "clickhouse": "ClickHouse", "databricks": "Databricks", "duckdb": "DuckDB, and files", "mariadb": "MySQL and MariaDB",
    "mssql": "SQL Server", "mysql": "MySQL and MariaDB", "oracle": "Oracle", "postgresql": "PostgreSQL", "redshift": "Redshift", "snowflake": "Snowflake",
    "sqlite": "SQLite", "trino": "Trino",
}  # fmt: skip
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
VISITS = [
    ("search", variant, NOON + timedelta(minutes=minute), revenue)
    for variant, minute, revenue in (
        ("control", 0, 1.5), ("control", 59, 2.25), ("control", 30, 7.0), ("treatment", 5, 4.0), ("control", 60, 3.0), ("control", 61, 5.5),
        ("treatment", 119, 2.0), ("treatment", 119, 2.5), ("control", 125, 9.0),
    )
]  # fmt: skip
"""The last lies in an hour that is not over."""
UNTIL = NOON + timedelta(hours=2, minutes=10)


def recipe(name: str) -> str:
    (found,) = re.findall(rf"^### {re.escape(TITLES[name])}\n.*?^```sql\n(.*?)^```$", PAGE, flags=re.M | re.S)
    return str(found)


def truth() -> list[tuple[str, datetime, float, int, float | None]]:
    """(variant, ts, value, n, variance) of each whole hour."""
    found = []
    for variant in ("control", "treatment"):
        for end in (NOON + timedelta(hours=1), NOON + timedelta(hours=2)):
            of = [revenue for _, v, at, revenue in VISITS if v == variant and end - timedelta(hours=1) <= at < end]
            spread = statistics.variance(of) if len(of) > 1 else None
            found.append((variant, end, statistics.fmean(of), len(of), spread))
    return found


def check(source: Source) -> None:
    """A source with a recipe yields the truth, and of a window only what is in it."""
    for since, expected in (
        (NOON, truth()),
        (NOON + timedelta(hours=1), [row for row in truth() if row[1].hour == 14]),
    ):
        read = [raw for chunk in engines.read(source, since=since, until=UNTIL, limit_s=10) for raw in chunk]
        understood = [rows.understood(source, raw, known=True)[0] for raw in read]
        shown = sorted((row.variant, row.ts, row.value, row.n, row.variance) for row in understood if row)
        assert [row[:4] for row in shown] == [row[:4] for row in expected]
        assert [row[4] for row in shown] == [v if v is None else pytest.approx(v, rel=1e-12) for *_, v in expected]


def sourced(kind: str, name: str, **said: Any) -> Source:
    return Source(kind=kind, query=recipe(name), metrics=["revenue"], **said)


@pytest.mark.parametrize("name", dialects.KNOWN)
def test_every_database_has_a_recipe_that_a_source_takes(name: str) -> None:
    asked = recipe(name)
    assert [*query.faults(asked)] == []
    if name != "duckdb":
        dialect = dialects.of(name)
        assert engines.wrapped(dialect, asked).replace(r"\:", ":") == dialect.wrapped.format(query=asked.strip())
    assert {"experiment", "variant", "ts", "value", "n", "variance"} <= set(re.findall(r"\w+", asked))


@pytest.mark.django_db
def test_that_of_postgresql_yields_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_URL", warehouse())
    with psycopg.connect(warehouse(), autocommit=True) as db, db.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS visits")
        cursor.execute("CREATE TABLE visits (experiment text, variant text, seen_at timestamptz, revenue float8)")
        cursor.executemany("INSERT INTO visits VALUES (%s, %s, %s, %s)", VISITS)
    check(sourced("sql", "postgresql", url_env="SHOP_URL"))


@pytest.fixture
def folder(settings: LazySettings, tmp_path: Path) -> Path:
    settings.SOURCES_DIR = tmp_path
    return tmp_path


def test_that_of_sqlite_yields_the_truth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sqlite3.connect(folder / "shop.db") as db:
        db.execute("CREATE TABLE visits (experiment TEXT, variant TEXT, seen_at TEXT, revenue REAL)")
        db.executemany(
            "INSERT INTO visits VALUES (?, ?, ?, ?)", [(e, v, f"{at:%Y-%m-%d %H:%M:%S}", r) for e, v, at, r in VISITS]
        )
    db.close()
    monkeypatch.setenv("SHOP_URL", "sqlite:///shop.db")
    check(sourced("sql", "sqlite", url_env="SHOP_URL"))


def test_that_of_duckdb_yields_the_truth_of_a_database_and_of_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with duckdb.connect(str(folder / "shop.duckdb")) as db:
        db.execute("CREATE TABLE visits (experiment TEXT, variant TEXT, seen_at TIMESTAMPTZ, revenue DOUBLE)")
        db.executemany("INSERT INTO visits VALUES (?, ?, ?, ?)", VISITS)
        db.execute(f"COPY visits TO '{folder / 'visits.parquet'}'")
    monkeypatch.setenv("SHOP_URL", "duckdb:///shop.duckdb")
    check(sourced("sql", "duckdb", url_env="SHOP_URL"))
    file = sourced("file", "duckdb", path="visits.parquet")
    file.query = file.query.replace("FROM visits", "FROM rows")
    check(file)
