"""Reads stay up: the database frozen, killed, locked, its connections cut; Valkey frozen."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from decisioning.embedded import Home, Postgres
from tests.faults.conftest import Readers, create, figures, frozen, row, with_children
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults
RATE = float(os.environ.get("FAULTS_READS", "50"))  # a second
PATHS = ["/api/experiments/reads", "/api/experiments", "/api/experiments/reads/decision", "/api/experiments/reads/kpis"]
PATHS += ["/api/experiments/reads/gates", "/api/freshness", "/api/metrics", "/api/slo"]


@pytest.fixture(scope="module")
def laid_out(installation: Installation, fast_key: str) -> None:
    held = installation.credentials()
    with httpx.Client(base_url=held["url"], headers={"Authorization": f"Bearer {fast_key}"}, timeout=20) as api:
        create(api, "reads")
        assert api.post("/api/experiments/reads/kpis", json={"rows": [row(n) for n in range(200)]}).status_code == 200


@pytest.fixture
def readers(installation: Installation, fast_key: str, laid_out: None) -> Iterator[Readers]:
    with Readers(installation.credentials()["url"], fast_key, PATHS, rate=RATE) as made:
        time.sleep(4)
        yield made


@pytest.fixture
def writer(installation: Installation, fast_key: str) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=installation.credentials()["url"], headers={"Authorization": f"Bearer {fast_key}"}, timeout=30
    ) as client:
        yield client


def post(writer: httpx.Client, number: int) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    answer = writer.post("/api/experiments/reads/kpis", json={"rows": [row(number)]})
    return answer, time.monotonic() - began


def test_a_frozen_database_costs_no_read(installation: Installation, readers: Readers, writer: httpx.Client) -> None:
    began = time.monotonic()
    with frozen(with_children(installation.find("bin/postgres")[0])):
        time.sleep(1)
        refused, took = post(writer, 1_000)
        health = [_timed(writer, "/healthz") for _ in range(10)]
        ready = writer.get("/readyz")
        copy = writer.get("/api/experiments/reads")
        time.sleep(17)
    thawed = time.monotonic()
    time.sleep(6)

    during, after = readers.since(began, thawed), readers.since(thawed + 5)
    print(f"\nfrozen 20 s: {figures(during)}\nafter: {figures(after)}; healthz worst {max(health) * 1000:.0f} ms")
    assert {r.status for r in readers.since(began)} == {200}
    assert max(r.seconds for r in readers.since(began)) <= 1
    assert copy.json()["stale"] is True
    assert copy.headers["Warning"].startswith("110")
    assert "as_of" in copy.json()
    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert took <= 1
    assert "Retry-After" in refused.headers
    assert ready.status_code == 503
    assert max(health) <= 0.2
    assert not any(r.stale for r in after), "still stale 5 s after"
    assert post(writer, 1_000)[0].status_code == 200


def test_a_killed_database_costs_no_read(installation: Installation, readers: Readers, writer: httpx.Client) -> None:
    began = time.monotonic()
    os.kill(installation.find("bin/postgres")[0], signal.SIGKILL)
    back = soon(lambda: post(writer, 2_000)[0].status_code == 200, 30)
    recovered = time.monotonic()
    time.sleep(6)

    print(f"\nkilled, writes back after {recovered - began:.1f} s: {figures(readers.since(began))}")
    assert back
    assert {r.status for r in readers.since(began)} == {200}
    assert max(r.seconds for r in readers.since(began)) <= 1
    assert not any(r.stale for r in readers.since(recovered + 5))


def test_cut_connections_cost_no_read(installation: Installation, readers: Readers) -> None:
    began = time.monotonic()
    postgres = Postgres(Home(installation.home))
    while time.monotonic() < began + 30:
        with psycopg.connect(postgres.dsn("superuser"), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'decisioning_web' AND pid <> pg_backend_pid()"
            )
        time.sleep(2)

    print(f"\ncut every 2 s: {figures(readers.since(began))}")
    assert {r.status for r in readers.since(began)} == {200}


def test_a_locked_table_refuses_writes_in_time_and_leaves_the_rest_alone(
    installation: Installation, readers: Readers, writer: httpx.Client, fast_key: str
) -> None:
    postgres, began = Postgres(Home(installation.home)), time.monotonic()
    took: list[float] = []
    statuses: set[int] = set()

    def write() -> None:
        with httpx.Client(base_url=writer.base_url, headers=writer.headers, timeout=30) as client:
            while time.monotonic() < began + 28:
                answer, seconds = post(client, 3_000)
                statuses.add(answer.status_code)
                took.append(seconds)

    writers = [threading.Thread(target=write) for _ in range(8)]
    with psycopg.connect(postgres.dsn("superuser")) as connection:
        connection.execute("LOCK TABLE metrics.experiment_kpis IN ACCESS EXCLUSIVE MODE")
        for thread in writers:
            thread.start()
        health = []
        while time.monotonic() < began + 29:
            health.append(_timed(writer, "/healthz"))
            time.sleep(0.1)
        for thread in writers:
            thread.join()
    unlocked = time.monotonic()
    time.sleep(6)

    print(
        f"\nlocked 30 s: {len(took)} writes, statuses {statuses}, worst {max(took):.2f} s; healthz worst {max(health) * 1000:.0f} ms; "
        f"{figures(readers.since(began, unlocked))}"
    )
    assert statuses == {503}
    assert max(took) <= 3
    assert max(health) <= 0.2
    assert {r.status for r in readers.since(began)} == {200}
    assert not any(r.stale for r in readers.since(unlocked + 5))
    assert post(writer, 3_000)[0].status_code == 200


def test_a_frozen_valkey_costs_nobody_anything(
    installation: Installation, readers: Readers, writer: httpx.Client
) -> None:
    began = time.monotonic()
    written: list[tuple[httpx.Response, float]] = []
    with frozen(installation.find("valkey-server")):
        while time.monotonic() < began + 20:
            written.append(post(writer, 4_000 + len(written)))
            time.sleep(0.5)
        ready = writer.get("/readyz")

    print(
        f"\nValkey frozen 20 s: {figures(readers.since(began))}; worst write {max(s for _, s in written) * 1000:.0f} ms"
    )
    assert {answer.status_code for answer, _ in written} == {200}
    assert {r.status for r in readers.since(began)} == {200}
    assert not any(r.stale for r in readers.since(began))
    assert max(r.seconds for r in readers.since(began)) <= 0.5
    assert (ready.status_code, ready.json()["broker"]) == (200, "down")


def _timed(client: httpx.Client, path: str) -> float:
    began = time.monotonic()
    assert client.get(path).status_code == 200
    return time.monotonic() - began
