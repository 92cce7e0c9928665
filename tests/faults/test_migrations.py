"""Migrations beside people and programs that write: nobody waits for two seconds, also when a long read is in the way."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from decisioning.embedded import PROJECT, Home, Postgres, start
from tests.installation import clean_environment

pytestmark = pytest.mark.faults

EARLIER = (("access", "0003"), ("ledger", "0003"), ("telemetry", "0002"), ("gates", "0003"))
"""The first state that has every table a writer of rows needs; all that came later is migrated beside the writers."""
EXPERIMENTS, ROWS = 2_000, 400_000


@dataclass
class Writers:
    """One who sends rows, one who moves cursors and tells of it, without a pause. `took`: by who, of each write the seconds and when it began."""

    dsn: str
    took: dict[str, list[tuple[float, datetime]]] = field(default_factory=lambda: {"rows": [], "cursors": []})
    failed: list[str] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Writers":
        self._running = [threading.Thread(target=self._run, args=[who]) for who in self.took]
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._running:
            thread.join()

    def _run(self, who: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            number = 0
            while not self._done.is_set():
                number += 1
                began, at = time.monotonic(), datetime.now(UTC)
                try:
                    with connection.transaction():
                        getattr(self, f"_{who}")(connection, number)
                except psycopg.Error as refusal:
                    self.failed.append(f"{who}: {refusal}")
                self.took[who].append((time.monotonic() - began, at))
                time.sleep(0.01)

    def longest(self) -> dict[str, float]:
        """Seconds of the longest write, by who."""
        return {who: max(took)[0] for who, took in self.took.items()}

    def _rows(self, connection: "psycopg.Connection[Any]", number: int) -> None:
        connection.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value, variant, n, variance, first_received_at, received_at, team_id) "
            "SELECT id, now() - make_interval(secs => %s / 1000.0), 'value', 1, 'control', 9, 1, now(), now(), team_id "
            "FROM metadata.experiments WHERE id %% 100 = %s",
            [number, number % 100],
        )

    def _cursors(self, connection: "psycopg.Connection[Any]", number: int) -> None:
        connection.execute("UPDATE metadata.cursors SET due_at = now() WHERE experiment_id %% 100 = %s", [number % 100])
        connection.execute(
            "UPDATE metadata.experiments SET name = 'n' || %s WHERE id %% 500 = %s", [number, number % 500]
        )
        connection.execute(
            "INSERT INTO audit.outbox (team_id, type, data, created_at) SELECT id, 'experiment.changed', '{}', now() FROM metadata.teams"
        )


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """As it was at EARLIER, with rows."""
    home = Home(tmp_path_factory.mktemp("migrations") / "home")
    home.make()
    made = Postgres(home)
    made.prepare()
    process = start(made, home.logs / "postgres.log")
    made.bootstrap()
    for state in EARLIER:
        assert migrate(made, *state).returncode == 0
    with psycopg.connect(made.dsn("superuser"), autocommit=True) as root:
        root.execute(
            "INSERT INTO metadata.teams (key, name, answer_within_h, second_person, created_at) VALUES ('t', 't', 24, true, now())"
        )
        root.execute(
            "INSERT INTO metadata.experiments (key, name, hypothesis, owner, team_id, status, created_at, started_at) "
            "SELECT 'e' || n, 'e', 'h', 'o', t.id, 'running', now(), now() FROM metadata.teams t, generate_series(1, %s) AS n",
            [EXPERIMENTS],
        )
        root.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value, variant, n, variance, first_received_at, received_at, team_id) "
            "SELECT e.id, now() - make_interval(mins => n), 'value', 1, 'control', 9, 1, now(), now(), e.team_id "
            "FROM metadata.experiments e, generate_series(1, %s) AS n",
            [ROWS // EXPERIMENTS],
        )
        root.execute(
            "INSERT INTO audit.outbox (team_id, type, data, created_at) SELECT t.id, 'experiment.changed', '{}', now() "
            "FROM metadata.teams t, generate_series(1, 100000)"
        )
    yield made
    process.send_signal(made.stop_signal)
    process.wait(30)


def migrate(postgres: Postgres, *state: str) -> "subprocess.CompletedProcess[str]":
    """As an upgrade does it."""
    environment = clean_environment() | {
        "DECISIONING_HOME": str(postgres.home.path),
        "DECISIONING_ROLE": "owner",
        "DECISIONING_SECRET_KEY": os.urandom(24).hex(),
        **{f"DATABASE{name}_URL": postgres.dsn("owner") for name in ("", "_OWNER")},
    }
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0", *state]
    return subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, check=False)


def test_a_migration_behind_a_long_read_gives_up_before_writers_have_waited_for_two_seconds(postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn("superuser")) as reader, Writers(postgres.dsn("superuser")) as writers:
        reader.execute("SELECT count(*) FROM metadata.cursors")  # and its transaction stays open
        refused = migrate(postgres, "gates", "0005")
    longest = writers.longest()

    print(f"\nbehind a long read: the migration ended with {refused.returncode}; longest write {_ms(longest)}")
    assert refused.returncode != 0
    assert "lock timeout" in refused.stderr
    assert longest["cursors"] > 1, "it was in the way"
    assert max(longest.values()) < 2
    assert writers.failed == []


def test_all_later_migrations_beside_writers_hold_none_up_for_two_seconds(postgres: Postgres) -> None:
    with Writers(postgres.dsn("superuser")) as writers:
        time.sleep(2)
        before = writers.longest()
        began = time.monotonic()
        done = migrate(postgres)
        took = time.monotonic() - began
    longest = writers.longest()
    with psycopg.connect(postgres.dsn("superuser")) as root:
        applied = root.execute(
            "SELECT app || '.' || left(name, 4), applied FROM django_migrations ORDER BY applied"
        ).fetchall()
    beside = {
        who: next((name for name, at in applied if at > max(times)[1]), "none") for who, times in writers.took.items()
    }

    print(
        f"\n{ROWS:,} rows, {sum(map(len, writers.took.values()))} writes beside {took:.1f} s of migrations; "
        f"longest write {_ms(longest)}, beside {beside}; before {_ms(before)}"
    )
    assert done.returncode == 0, done.stderr
    assert max(longest.values()) < 2
    assert writers.failed == []


def _ms(longest: dict[str, float]) -> str:
    return ", ".join(f"{who} {seconds * 1000:.0f} ms" for who, seconds in longest.items())
