"""Each database by its name: how its query is wrapped, and that every driver is one that an extra of ours brings."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy

from telemetry.sources import dialects
from telemetry.sources.engines import _said_of_connecting, wrapped
from telemetry.sources.refusals import SourceFailed

PLAIN = "SELECT a::int FROM t WHERE ts > :since AND ts <= :until AND note <> '12:30';"
INNER = r"SELECT a\:\:int FROM t WHERE ts > :since AND ts <= :until AND note <> '12\:30'"
SERVERS = [name for name in dialects.KNOWN if name != "duckdb"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_query_is_wrapped_as_its_database_takes_a_table_of_its_own(name: str) -> None:
    asked = wrapped(dialects.of(name), PLAIN)
    assert asked == f"SELECT * FROM ({INNER}\n) {'q' if name == 'oracle' else 'AS q'}"  # noqa: S608


def test_sql_server_is_asked_a_with_as_it_stands() -> None:
    query = "WITH x AS (SELECT 1) SELECT * FROM x WHERE :since < :until"
    assert wrapped(dialects.of("mssql"), query) == query
    with pytest.raises(SourceFailed, match="DELETE"):
        wrapped(dialects.of("mssql"), query.replace("SELECT * FROM", "/* INTO */ DELETE"))
    assert wrapped(dialects.of("postgresql"), query) == f"SELECT * FROM ({query}\n) AS q"  # noqa: S608


@pytest.mark.parametrize("name", SERVERS)
def test_every_driver_comes_with_the_portal_or_by_an_extra_of_the_dialects_name(name: str) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extra = dialects.of(name).extra
    assert extra == name if name in project["optional-dependencies"] else extra == ""


def test_no_extra_is_without_its_database() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert {dialects.of(name).extra for name in SERVERS} - {""} == set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("PostgreSQL+psycopg2://h/d", "postgresql"), ("postgres://h/d", "postgresql"), ("DuckDB+duckdb_engine:///a", "duckdb"),
        ("clickhousedb+connect://h", "clickhouse"), (" mariadb://h", "mariadb"), ("nonsense", "nonsense"),
    ],
)  # fmt: skip
def test_a_database_is_known_by_its_name_whatever_its_driver_and_case(url: str, name: str) -> None:
    assert dialects.named(url) == name


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("trino://me@host:8080/hive", None), ("trino://me:hush@host:8443/hive", "https"), ("trino://host:8443/hive?access_token=hush", "https"),
        ("trino://me:hush@host:8080/hive?allow_insecure_auth=true", None),
    ],
)  # fmt: skip
def test_whoever_logs_in_at_trino_does_so_over_tls(url: str, scheme: str | None) -> None:
    asked = dialects.of("trino").connecting(sqlalchemy.make_url(url), 10)["connect_args"]
    assert (asked.get("http_scheme"), asked["timezone"], asked["session_properties"]) == (
        scheme,
        "UTC",
        {"query_max_run_time": "10s"},
    )


def test_times_are_bound_as_the_database_compares_them() -> None:
    noon = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert dialects.of("sqlite").bound(noon) == "2026-11-24 12:00:00"
    assert dialects.of("mysql").bound(noon) == noon


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('FATAL:  password authentication failed for user "me"', "The login was refused."),
        ("(1045, \"Access denied for user 'me'@'host' (using password: YES)\")", "The login was refused."),
        ('FATAL:  role "me" does not exist', "The login was refused."),
        ("[Errno -2] Name or service not known", "The host is unknown here."),
        ('FATAL:  database "shop" does not exist', "There is no such database."),
        ("(1049, \"Unknown database 'shop'\")", "There is no such database."),
        ("connection refused", "Nothing answers at the host and port of the URL."),
        ("connection timeout expired", "Nothing answers at the host and port of the URL."),
        ("server does not support SSL, but SSL was required", "The encrypted connection failed."),
        ("Your default credentials were not found. See https://h/docs/authentication", "There are no credentials."),
        ("strange hush-hush", "No connection (RuntimeError)."),
    ],
)
def test_what_a_driver_says_while_connecting_becomes_a_sentence_with_what_to_do(text: str, said: str) -> None:
    told = _said_of_connecting(RuntimeError(text))
    assert told.startswith(said)
    assert "hush" not in told
