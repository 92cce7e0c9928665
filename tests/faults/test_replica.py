"""A real streaming replica: reads go on from it with the primary killed, and it is not read while it lags."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from decisioning.embedded import Home, Postgres, start
from tests.faults.conftest import Readers, at_port, create, figures, replicated, row, tell, with_children
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, "subprocess.Popen[bytes]"]]:
    """A server of one's own, as an installation with external servers has."""
    home = Home(tmp_path_factory.mktemp("primary") / "home")
    home.make()
    postgres = Postgres(home)
    postgres.prepare()
    process = start(postgres, home.logs / "postgres.log")
    postgres.bootstrap()
    with psycopg.connect(postgres.dsn("superuser"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_keep_size = '256MB'")
        connection.execute("SELECT pg_reload_conf()")
    yield postgres, process
    if process.poll() is None:
        process.send_signal(postgres.stop_signal)
        process.wait(30)


@pytest.fixture(scope="module")
def replica(
    primary: tuple[Postgres, "subprocess.Popen[bytes]"], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Its port."""
    with replicated(primary[0], tmp_path_factory.mktemp("replica") / "data") as port:
        yield port


@pytest.fixture(scope="module")
def installation(
    primary: tuple[Postgres, "subprocess.Popen[bytes]"], replica: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    postgres, _ = primary
    there = {f"DATABASE_{role.upper()}_URL": postgres.dsn(role) for role in ("owner", "worker")}
    there |= {
        "DATABASE_URL": postgres.dsn("web"),
        "DATABASE_REPLICA_URL": at_port(postgres.dsn("web"), postgres.port, replica),
    }
    made = Installation(tmp_path_factory.mktemp("faults") / "home", environment=there)
    made.start()
    yield made
    made.stop()


def transactions(url: str) -> int:
    """How many transactions a database has seen that ended well."""
    with psycopg.connect(url) as connection:
        (count,) = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = 'decisioning'"
        ).fetchall()[0]
        return int(count)


def test_reads_go_to_the_replica_and_on_from_it_when_the_primary_is_killed(
    installation: Installation, primary: tuple[Postgres, "subprocess.Popen[bytes]"], replica: int, tmp_path: Path
) -> None:
    postgres, process = primary
    held = installation.credentials()
    paths = ["/api/experiments/copied", "/api/experiments", "/api/metrics"]
    with httpx.Client(base_url=held["url"], headers={"Authorization": f"Bearer {held['api_key']}"}, timeout=10) as api:
        create(api, "copied")
        api.post("/api/experiments/copied/kpis", json={"rows": [row(n) for n in range(50)]}).raise_for_status()
        assert api.get("/api/experiments/copied").json()["stale"] is False, "one reads what one wrote"
        time.sleep(8)
        replica_url = at_port(postgres.dsn("superuser"), postgres.port, replica)
        before = transactions(replica_url)
        for _ in range(60):
            assert api.get("/api/experiments/copied").json()["stale"] is False
        soon(
            lambda: transactions(replica_url) - before >= 50, 20
        )  # a server process that rests tells what it did within ten seconds
        from_replica = transactions(replica_url) - before

        with Readers(held["url"], held["api_key"], paths, rate=5, threads=4) as readers:
            time.sleep(2)
            killed = time.monotonic()
            tell(with_children(process.pid)[::-1], signal.SIGKILL)
            time.sleep(8)
            unseen = api.get("/api/experiments/copied/kpis?limit=7")
            write = api.post("/api/experiments/copied/kpis", json={"rows": [row(900)]})
            time.sleep(2)

    print(
        f"\n{from_replica} transactions on the replica for 60 reads; primary killed: {figures(readers.since(killed))}"
    )
    assert from_replica >= 50
    assert {r.status for r in readers.since(killed)} == {200}
    assert max(r.seconds for r in readers.since(killed)) <= 1
    assert unseen.status_code == 200, "what no copy has comes from the replica"
    assert unseen.headers["Warning"].startswith("110")
    assert unseen.json()["stale"] is True
    assert write.status_code == 503
