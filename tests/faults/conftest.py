"""One installation for the faults of a file, and people and programs that use it meanwhile."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.installation import Installation

STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("faults") / "home")
    made.start()
    yield made
    made.stop()


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


def create(api: httpx.Client, key: str) -> None:
    body = {
        "key": key,
        "name": key,
        "hypothesis": "Nothing is lost.",
        "started_at": STARTED.isoformat(),
        "target_kpis": [{"metric": "latency", "role": "goal", "minimum_effect": 0.02}],
    }
    answer = api.post("/api/experiments", json=body)
    assert answer.status_code == 201, answer.text


def row(number: int) -> dict[str, Any]:
    ts = (STARTED + timedelta(seconds=number + 1)).isoformat()
    return {"metric": "latency", "variant": "control", "ts": ts, "value": number / 7, "n": 10, "variance": 1.5}


@contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes of our own that neither work nor end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def with_children(pid: int) -> list[int]:
    """A process and what it has started: PostgreSQL's server processes hide their environment and their group."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return [pid, *(child for child, parent in parents.items() if parent == pid)]


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
