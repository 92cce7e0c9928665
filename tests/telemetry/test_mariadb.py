"""A real MariaDB as a source: read to the last digit, in UTC, read-only and for no longer than it may take."""
# ruff: noqa: S608 - queries of a source are text

import getpass
import socket as sockets
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pymysql
import pytest

from telemetry.models import Source
from telemetry.sources import engines
from telemetry.sources.refusals import SourceFailed
from tests.programs import needs_program
from tests.telemetry.test_recipes import VISITS, check, sourced

pytestmark = pytest.mark.databases
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
WINDOW = "WHERE ts > :since AND ts <= :until"
TABLE = """
CREATE DATABASE shop;
CREATE TABLE shop.kpis (experiment varchar(50), variant varchar(50), ts timestamp, value int, share decimal(20, 18), n bigint);
SET time_zone = '+03:00';
INSERT INTO shop.kpis VALUES ('e', 'control', '2026-11-24 15:00:00', 1, 0.123456789012345678, 10), ('e', 'control', '2026-11-24 15:00:00', 2, 0.3, 10),
  ('e', 'control', '2026-11-24 15:00:00', 2, 0.3, 10);
CREATE USER reader@'127.0.0.1' IDENTIFIED BY 'p@ss/w:rd';
CREATE TABLE shop.visits (experiment varchar(50), variant varchar(50), seen_at timestamp(6), revenue double);
GRANT ALL PRIVILEGES ON shop.* TO reader@'127.0.0.1';
CREATE USER strong@'127.0.0.1' IDENTIFIED BY 'x';
GRANT SELECT, FILE ON *.* TO strong@'127.0.0.1';
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a MariaDB with a shop in it, which stands in the zone +03:00."""
    needs_program("mariadbd", "mariadb-server")
    home, me = tmp_path_factory.mktemp("mariadb"), f"--user={getpass.getuser()}"
    with sockets.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    data, socket = f"--datadir={home}/data", Path(home, "s.sock")
    install = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal", me]
    subprocess.run(install, check=True, capture_output=True)
    where = [f"--socket={socket}", f"--port={port}", "--bind-address=127.0.0.1", "--default-time-zone=+03:00"]
    with subprocess.Popen(["mariadbd", "--no-defaults", me, data, *where], stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while not socket.exists() and time.monotonic() < until:
                time.sleep(0.2)
            with (
                pymysql.connect(unix_socket=str(socket), user="root", autocommit=True) as connection,
                connection.cursor() as cursor,
            ):
                for statement in filter(str.strip, TABLE.split(";\n")):
                    cursor.execute(statement)
                cursor.execute("SET time_zone = '+00:00'")
                cursor.executemany("INSERT INTO shop.visits VALUES (%s, %s, %s, %s)", VISITS)
            yield port
        finally:
            process.terminate()


@pytest.fixture
def ask(server: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Rows of a query; `at` as the URL has it."""

    def rows(
        query: str, at: str = "mariadb://reader:p%40ss%2Fw%3Ard@127.0.0.1:{port}/shop", limit_s: float = 10
    ) -> list[dict[str, Any]]:
        monkeypatch.setenv("SHOP_URL", at.format(port=server))
        source = Source(kind="sql", url_env="SHOP_URL", query=query, metrics=["m"])
        read = engines.read(source, since=NOON.replace(day=1), until=NOON, limit_s=limit_s)
        return [row for chunk in read for row in chunk]

    return rows


@pytest.mark.parametrize("name", ["mysql", "mariadb", "MySQL+mysqldb"])
def test_rows_come_in_utc_whatever_the_zone_of_the_server_and_the_name_in_the_url(ask: Any, name: str) -> None:
    (row, *_) = ask(
        f"SELECT * FROM kpis {WINDOW} ORDER BY value", f"{name}://reader:p%40ss%2Fw%3Ard@127.0.0.1:{{port}}/shop"
    )
    assert row == {
        "experiment": "e", "variant": "control", "ts": NOON, "value": 1, "share": Decimal("0.123456789012345678"), "n": 10,
    }  # fmt: skip


def test_means_of_whole_numbers_have_all_their_digits(ask: Any) -> None:
    (row,) = ask(f"SELECT avg(value) AS value, count(*) AS n, var_samp(value) AS variance FROM kpis {WINDOW}")
    assert (float(row["value"]), row["n"]) == (5 / 3, 3)
    assert float(row["variance"]) == pytest.approx(1 / 3, rel=1e-15)


@pytest.mark.parametrize("name", ["mysql", "mariadb"])
def test_the_recipe_yields_the_truth(server: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("SHOP_URL", f"{name}://reader:p%40ss%2Fw%3Ard@127.0.0.1:{server}/shop")
    check(sourced("sql", name, url_env="SHOP_URL"))


def test_a_query_that_runs_on_is_stopped_by_the_server(ask: Any) -> None:
    with pytest.raises(SourceFailed, match="max_statement_time"):
        ask(f"SELECT sleep(20) AS value FROM kpis {WINDOW}", limit_s=1)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (f"SELECT * FROM kpis {WINDOW} FOR UPDATE", "READ ONLY transaction"),
        ("SELECT * FROM kpis WHERE :since < :until) AS q; DELETE FROM kpis; SELECT (1", "syntax"),
        ("SELECT * FROM kpis WHERE :since < :until INTO OUTFILE '/tmp/decisioning-out.csv'", "syntax"),
        ("SELECT * FROM mysql.user WHERE :since < :until", "grant it SELECT"),
        (f"SELECT * FROM nowhere {WINDOW}", "Table 'shop.nowhere' doesn't exist"),
    ],
)
def test_a_login_that_may_write_reads_all_the_same_and_nothing_else(ask: Any, query: str, said: str) -> None:
    with pytest.raises(SourceFailed, match=said):
        ask(query)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("mariadb://strong:x@127.0.0.1:{port}/shop", "Its login holds FILE"),
        ("mariadb://reader:wrong@127.0.0.1:{port}/shop", "The login was refused"),
        ("mariadb://reader:p%40ss%2Fw%3Ard@127.0.0.1:1/shop", "Nothing answers"),
    ],
)
def test_a_connection_that_cannot_be_is_said_in_a_sentence(ask: Any, at: str, said: str) -> None:
    with pytest.raises(SourceFailed, match=said):
        ask(f"SELECT * FROM kpis {WINDOW}", at)
