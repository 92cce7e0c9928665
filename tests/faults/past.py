"""Experiments of a running installation that were last judged hours ago, and a record of every time a cursor moves.

What lies in the past is made by the tick itself, with its clock set back: `python -m tests.faults.past` in a process of its own.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from decisioning.embedded import PROJECT
from tests.installation import Installation, clean_environment

SLOT = timedelta(minutes=5)
_NOTED = """
CREATE TABLE IF NOT EXISTS public.moves (experiment_id bigint, from_slot timestamptz, to_slot timestamptz, pid int,
  at timestamptz DEFAULT clock_timestamp());
GRANT INSERT ON public.moves TO decisioning_worker;
CREATE OR REPLACE FUNCTION public.note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO public.moves VALUES (NEW.experiment_id, OLD.judged_to, NEW.judged_to, pg_backend_pid());
  RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER zz_note_move AFTER UPDATE OF judged_to ON metadata.cursors FOR EACH ROW EXECUTE FUNCTION public.note_move();
"""


def lay(installation: Installation, experiments: int, back: timedelta) -> datetime:
    """Lay out experiments that were judged every hour and last at the slot `back` ago; that slot. The worker must not run."""
    last = newest_slot() - back
    environment = clean_environment() | {
        "DECISIONING_HOME": str(installation.home),
        "DECISIONING_ROLE": "worker",
        "DATABASE_WORKER_URL": dsn(installation),
        "DJANGO_SETTINGS_MODULE": "decisioning.settings",
    }
    command = [sys.executable, "-m", "tests.faults.past", last.isoformat(), str(experiments)]
    made = subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    return last


def dsn(installation: Installation) -> str:
    """Of the superuser, wherever the database is."""
    return (
        installation.environment.get("SUPERUSER_URL")
        or installation.manage("dsn", "--role", "superuser").stdout.strip()
    )


def newest_slot() -> datetime:
    return datetime.fromtimestamp(time.time() // SLOT.total_seconds() * SLOT.total_seconds(), UTC)


def early_in_a_slot(within_s: float = 120) -> None:
    """Wait until a slot is young, so that the next one does not begin while something is counted."""
    age_s = time.time() % SLOT.total_seconds()
    if age_s > within_s:
        time.sleep(SLOT.total_seconds() - age_s + 1)


def send_rows(root: "psycopg.Connection[Any]") -> int:
    """A new row of every series, noted as ingest does; how many."""
    at = datetime.now(UTC)
    return root.execute(
        """
        INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value, variant, n, variance, first_received_at, received_at, team_id)
        SELECT DISTINCT ON (experiment_id, metric, variant) experiment_id, %s, metric, value, variant, n, variance, %s, %s, team_id
        FROM metrics.experiment_kpis ORDER BY experiment_id, metric, variant, ts DESC
        """,
        [at, at, at],
    ).rowcount


@dataclass
class Watch:
    """What the tick has done since `began`."""

    root: "psycopg.Connection[Any]"
    began: datetime

    def start(self) -> None:
        """Count from now on."""
        (self.began,) = self.root.execute("SELECT clock_timestamp()").fetchone() or (self.began,)

    def waiting(self) -> int:
        """Experiments that are due or have rows nobody has read."""
        return self._one(
            "SELECT count(*) FROM metadata.cursors c WHERE c.due_at <= now() "
            "OR EXISTS (SELECT FROM metrics.kpi_changes h WHERE h.job = 'fold' AND h.experiment_id = c.experiment_id)"
        )

    def moved(self) -> dict[int, list[tuple[datetime, datetime]]]:
        """By experiment, from which slot to which its cursor was moved, in order."""
        found: dict[int, list[tuple[datetime, datetime]]] = {}
        for pk, before, after in self.root.execute(
            "SELECT experiment_id, from_slot, to_slot FROM public.moves WHERE at >= %s ORDER BY at", [self.began]
        ):
            found.setdefault(pk, []).append((before, after))
        return found

    def often(self) -> Counter[int]:
        """How many experiments were judged how often at one slot: a slot that begins meanwhile makes all due again."""
        return Counter(max(Counter(after for _, after in moves).values()) for moves in self.moved().values())

    def by(self) -> list[int]:
        """How many each process moved."""
        return [
            n
            for (n,) in self.root.execute("SELECT count(*) FROM public.moves WHERE at >= %s GROUP BY pid", [self.began])
        ]

    def claimed(self) -> bool:
        """Whether somebody is judging at this moment."""
        return bool(
            self._one(
                "SELECT count(*) FROM pg_locks WHERE relation = 'metadata.claims'::regclass AND mode = 'RowShareLock'"
            )
        )

    def _one(self, sql: str) -> int:
        (found,) = self.root.execute(sql).fetchone() or (0,)
        return int(found)


@contextmanager
def watching(installation: Installation) -> Iterator[Watch]:
    """From now on every move of a cursor is noted, by a trigger of the superuser's."""
    with psycopg.connect(dsn(installation), autocommit=True) as root:
        root.execute(_NOTED)
        watch = Watch(root, datetime.now(UTC))
        watch.start()
        yield watch


def main() -> None:
    last, experiments = datetime.fromisoformat(sys.argv[1]), int(sys.argv[2])
    from decisioning.embedded import Home, join

    os.environ.update(
        join(Home(os.environ["DECISIONING_HOME"]), "past") | {"DATABASE_WORKER_URL": os.environ["DATABASE_WORKER_URL"]}
    )
    from tests.benchmarks import sweep

    sweep.END = last - 7 * SLOT
    sweep.BEGIN = sweep.END - 12 * sweep.HOUR
    sweep.set_up()
    with psycopg.connect(os.environ["DATABASE_WORKER_URL"], autocommit=True) as root:
        sweep.copied(root, sweep.one(), experiments - 1)
        root.execute("UPDATE metadata.cursors SET missed_slots = 0")  # it was laid out in strides of an hour


if __name__ == "__main__":
    main()
