"""A machine with four times as many busy threads as cores: everybody waits longer, and nobody is told that the database is away."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from gates.engine.policy import DEFAULT_BODY
from tests.benchmarks.sweep import copied
from tests.faults.conftest import STARTED, Readers, Reading, create, figures, row
from tests.faults.past import dsn
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults
SECONDS = float(os.environ.get("FAULTS_SECONDS", "600"))
KEYS = [f"load-{number}" for number in range(8)]
PATHS = ["/api/experiments", "/api/freshness", "/api/slo", "/api/metrics"]
PATHS += [f"/api/experiments/{key}{part}" for key in KEYS[:4] for part in ("", "/decision", "/kpis", "/gates")]
LONG = 60
"""Experiments with a history of twenty days."""
OFTEN = {**DEFAULT_BODY, "slot_s": 60}


@contextmanager
def busy(times: int = 4) -> Iterator[None]:
    """`times` endless loops for each core, each in a session of its own: Linux shares cores out by session."""
    count = times * len(os.sched_getaffinity(0))
    loop = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(loop, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for running in loops:
            running.kill()
            running.wait()


@dataclass
class Writers:
    """`rate` writes a second, each at its own moment: rows, changed names, slots that somebody asks for and, with `pauses`, pauses.

    A pause changes the plan, so that all of its history is judged anew.
    """

    url: str
    key: str
    experiments: Sequence[str]
    pauses: bool = True
    rate: float = 5
    threads: int = 5
    written: list[Reading] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Writers":
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
        every = self.threads / self.rate
        with httpx.Client(base_url=self.url, headers=headers, timeout=30) as client:
            due = time.monotonic() + every * number / self.threads
            for count in itertools.count():
                if self._done.wait(max(0.0, due - time.monotonic())):
                    return
                due += every
                turn, kind = divmod(count, 4 if self.pauses else 3)
                # A thread has its own experiments, so that what it says of one is never refused by what another said.
                mine = self.experiments[number :: self.threads]
                self._write(client, mine[turn % len(mine)], kind, 1_000_000 * number + count)

    def _write(self, client: httpx.Client, key: str, kind: int, count: int) -> None:
        experiment = f"/api/experiments/{key}"
        asked: list[tuple[str, str, dict[str, Any]]] = [
            (
                "POST",
                f"{experiment}/kpis",
                {"rows": [now_of("latency", variant) for variant in ("control", "treatment")]},
            ),
            ("PATCH", experiment, {"name": f"Name {count}"}),
            ("POST", f"{experiment}/evaluate", {}),
            ("POST", f"{experiment}/transitions", {"to": "paused"}),
        ]
        method, path, body = asked[kind]
        self._send(client, method, path, body)
        if kind == 3:
            self._send(client, method, path, {"to": "running"})

    def _send(self, client: httpx.Client, method: str, path: str, body: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            answer = client.request(method, path, json=body)
            status = answer.status_code
            if status >= 400:
                self.refused.append(f"{method} {path} {status} {answer.text[:200]}")
        except httpx.HTTPError as failure:
            status = 0
            self.refused.append(f"{method} {path} {failure!r}")
        self.written.append(Reading(began, time.monotonic() - began, status, False, path))


def now_of(metric: str, variant: str) -> dict[str, Any]:
    """A row of this moment."""
    ts = datetime.now(UTC).isoformat()
    return {"metric": metric, "variant": variant, "ts": ts, "value": 1.0, "n": 10, "variance": 1.5}


@pytest.fixture
def client(installation: Installation, fast_key: str) -> Iterator[httpx.Client]:
    url, headers = installation.credentials()["url"], {"Authorization": f"Bearer {fast_key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as made:
        yield made


def test_beside_busy_loops_no_read_is_stale_and_no_write_refused(
    installation: Installation, client: httpx.Client, fast_key: str
) -> None:
    for key in KEYS:
        create(client, key)
        client.post(f"/api/experiments/{key}/kpis", json={"rows": [row(n) for n in range(200)]}).raise_for_status()
    url = installation.credentials()["url"]
    with busy(), Readers(url, fast_key, PATHS, rate=10) as readers, Writers(url, fast_key, KEYS) as writers:
        began = time.monotonic()
        time.sleep(SECONDS)
        took = time.monotonic() - began
        load = os.getloadavg()[0]

    stale = sum(reading.stale for reading in readers.readings)
    print(
        f"\n{took:.0f} s at a load of {load:.0f}: {figures(readers.readings)}\n  writes: {figures(writers.written)}; "
        f"{Counter(writers.refused).most_common(5)}"
    )
    assert len(readers.readings) > 5 * SECONDS, "hardly anybody read"
    assert len(writers.written) > 2 * SECONDS, "hardly anybody wrote"
    assert {reading.status for reading in readers.readings} == {200}
    assert stale == 0
    assert writers.refused == []


def test_who_writes_while_many_long_histories_are_judged_hardly_waits(
    installation: Installation, client: httpx.Client, fast_key: str
) -> None:
    client.post("/api/policies", json={"name": "often", "body": OFTEN}).raise_for_status()
    create(client, "long", policy="often")
    rows = [
        row | {"variant": variant}
        for variant in ("control", "treatment")
        for row in (hourly(hour) for hour in range(19 * 24))
    ]
    client.post("/api/experiments/long/kpis", json={"rows": rows}).raise_for_status()
    with psycopg.connect(dsn(installation), autocommit=True) as root:
        (of,) = root.execute("SELECT id FROM metadata.experiments WHERE key = 'long'").fetchone() or (0,)
        judged = "SELECT count(*) FROM metadata.cursors WHERE experiment_id = %s AND state IS NOT NULL"
        assert soon(lambda: root.execute(judged, [of]).fetchone() == (1,), 60)
        copied(root, of, LONG - 1)
        root.execute(
            "INSERT INTO metadata.policy_bindings (experiment_id, team_id, policy_id) SELECT c.id, b.team_id, b.policy_id "
            "FROM metadata.policy_bindings b, public.copies c WHERE b.experiment_id = %s",
            [of],
        )
        found = root.execute("SELECT id, key FROM metadata.experiments WHERE key LIKE 'long%'").fetchall()
        ids, keys = [pk for pk, _ in found], [key for _, key in found]

        def judged_after(change: LiteralString, left: LiteralString) -> tuple[float, Writers]:
            """Seconds until this change of the cursors has left none of these, and who wrote meanwhile."""
            began, at = time.monotonic(), datetime.now(UTC)
            with Writers(installation.credentials()["url"], fast_key, keys, pauses=False, rate=10) as writers:
                root.execute(f"UPDATE metadata.cursors c {change} WHERE experiment_id = ANY (%s)", [ids])
                waiting = f"SELECT count(*) FROM metadata.cursors c WHERE experiment_id = ANY (%(ids)s) AND {left}"  # noqa: S608
                assert soon(lambda: root.execute(waiting, {"ids": ids, "at": at}).fetchone() == (0,), 300)
            return time.monotonic() - began, writers

        with busy():
            recorded = judged_after(
                "SET quiet_to = NULL, asked_slot = judged_to, due_at = now()",
                "NOT EXISTS (SELECT FROM metadata.evaluations v WHERE v.experiment_id = c.experiment_id AND computed_at > %(at)s)",
            )
            anew = judged_after("SET quiet_to = NULL, state = NULL, due_at = now()", "state IS NULL")
    for what, (seconds, writers) in (("each put on record", recorded), ("each judged anew", anew)):
        print(f"\n{LONG} long histories, {what} in {seconds:.1f} s: {figures(writers.written)}; {writers.refused[:3]}")
        assert writers.refused == []


def hourly(hour: int) -> dict[str, Any]:
    return row(0) | {"ts": (STARTED + timedelta(hours=hour + 1)).isoformat(), "value": 10.0, "n": 900}
