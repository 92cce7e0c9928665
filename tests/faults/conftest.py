"""One installation for the faults of a file, and people and programs that use it meanwhile.

With FAULTS_WIDE=1 in the environment every one of them has two web processes, two workers and a streaming replica: what holds for one of
each has to hold for them.
"""

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from decisioning.embedded import Home, Postgres, free_port, launch
from tests.installation import Installation, soon

WIDE = os.environ.get("FAULTS_WIDE") == "1"
STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("faults") / "home") as made:
        yield made


@contextmanager
def installed(home: Path, **environment: str) -> Iterator[Installation]:
    """An installation that runs, wide if that is asked for."""
    made = Installation(home, environment=environment, options=("--web", "2", "--worker", "2") if WIDE else ())
    made.start()
    try:
        if not WIDE:
            yield made
            return
        postgres = Postgres(Home(home))
        with psycopg.connect(postgres.dsn("superuser"), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET wal_keep_size = '256MB'")
            connection.execute("SELECT pg_reload_conf()")
        with replicated(postgres, home.with_name("replica")) as port:
            made.stop()
            made.environment["DATABASE_REPLICA_URL"] = at_port(postgres.dsn("web"), postgres.port, port)
            made.start()
            yield made
    finally:
        made.stop()


@contextmanager
def replicated(postgres: Postgres, folder: Path) -> Iterator[int]:
    """The port of a streaming replica of a server that runs, made as an operator would."""
    copy = [str(postgres.bin / "pg_basebackup"), "-D", str(folder), "-R", "-X", "stream", "-c", "fast"]
    made = launch(
        [*copy, "-d", postgres.dsn("superuser", "postgres")], account=postgres.account, output=subprocess.PIPE
    )
    said, _ = made.communicate()
    assert made.returncode == 0, said.decode()
    log, port = folder.with_suffix(".log"), free_port()
    command = [str(postgres.bin / "postgres"), "-D", str(folder), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    command += ["-c", "unix_socket_directories=", "-c", "hot_standby=on", "-c", "max_connections=200"]
    process = launch(command, account=postgres.account, stop_signal=signal.SIGINT, output=log)
    try:
        ready = [str(postgres.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        assert soon(lambda: subprocess.run(ready, check=False).returncode == 0, 60), log.read_text()
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def at_port(url: str, port: int, other: int) -> str:
    return url.replace(f":{port}/", f":{other}/")


@pytest.fixture
def api(installation: Installation) -> Iterator[httpx.Client]:
    held = installation.credentials()
    headers = {"Authorization": f"Bearer {held['api_key']}"}
    with httpx.Client(base_url=held["url"], headers=headers, timeout=5) as client:
        yield client


@pytest.fixture(scope="module")
def fast_key(installation: Installation) -> str:
    """A key that no rate stops."""
    scopes = "experiments:read,experiments:write,telemetry:write,decisions:review,policies:write,keys:manage"
    made = installation.manage("create_key", "--team", "main", "--scopes", scopes, "--rate", "1000000/m")
    return made.stdout.strip().rpartition("\n")[2]


def create(api: httpx.Client, key: str, **said: object) -> None:
    body = {
        "key": key,
        "name": key,
        "hypothesis": "Nothing is lost.",
        "started_at": STARTED.isoformat(),
        "target_kpis": [{"metric": "latency", "role": "goal", "minimum_effect": 0.02}],
        **said,
    }
    answer = api.post("/api/experiments", json=body)
    assert answer.status_code == 201, answer.text


def row(number: int) -> dict[str, Any]:
    ts = (STARTED + timedelta(seconds=number + 1)).isoformat()
    return {"metric": "latency", "variant": "control", "ts": ts, "value": number / 7, "n": 10, "variance": 1.5}


def tell(pids: Sequence[int], number: signal.Signals) -> None:
    """A signal to each that is still there: a server's children come and go."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes of our own that neither work nor end."""
    tell(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        tell(pids, signal.SIGCONT)


def parent(pid: int) -> int:
    """0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def with_children(pid: int) -> list[int]:
    """A process and what it has started: PostgreSQL's server processes hide their environment and their group."""
    everybody = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [pid, *(child for child in everybody if parent(child) == pid)]


@dataclass
class Reading:
    """One read: when it was asked (monotonic), for how long it took, and what came."""

    at: float
    seconds: float
    status: int
    stale: bool
    path: str


@dataclass
class Readers:
    """`rate` reads a second over `threads` threads, each at its own moment whether the one before has come back or not."""

    url: str
    key: str
    paths: Sequence[str]
    rate: float = 50
    threads: int = 8
    readings: list[Reading] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Readers":
        self._running = [threading.Thread(target=self._run, args=[n]) for n in range(self.threads)]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._running:
            thread.join()

    def _run(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=30) as client:
            every, count = self.threads / self.rate, 0
            due = time.monotonic() + every * number / self.threads
            while not self._done.is_set():
                time.sleep(max(0.0, due - time.monotonic()))
                due += every
                path = self.paths[(number + count) % len(self.paths)]
                count += 1
                began = time.monotonic()
                try:
                    answer = client.get(path)
                    status, stale = answer.status_code, "Warning" in answer.headers
                except httpx.HTTPError:
                    status, stale = 0, False
                self.readings.append(Reading(began, time.monotonic() - began, status, stale, path))

    def since(self, at: float, until: float = float("inf")) -> list[Reading]:
        return [reading for reading in self.readings if at <= reading.at < until]


def figures(readings: Sequence[Reading]) -> str:
    """What a person wants to know of them, in a line."""
    times = sorted(reading.seconds for reading in readings) or [0.0]
    statuses: dict[int, int] = {}
    for reading in readings:
        statuses[reading.status] = statuses.get(reading.status, 0) + 1
    return (
        f"{len(readings)} reads, statuses {statuses}, stale {sum(r.stale for r in readings)}, "
        f"p50 {times[len(times) // 2] * 1000:.0f} ms, p95 {times[len(times) * 95 // 100] * 1000:.0f} ms, p99 {times[len(times) * 99 // 100] * 1000:.0f} ms, "
        f"worst {times[-1] * 1000:.0f} ms"
    )
