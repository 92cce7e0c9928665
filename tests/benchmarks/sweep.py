"""What one tick over many running experiments costs, database and compute together, against judging them one by one.

    uv run python -m tests.benchmarks.sweep [--experiments 10000] [--sample 100] [--workers 1 2 4]
    uv run python -m tests.benchmarks.sweep --against PATH [--experiments 2000] [--rounds 3]

A PostgreSQL of its own gets one experiment with twelve hours of rows, judged by the tick, and copies of it with their cursors, facts
and evidence. Then, wall seconds in one run: a slot at which nothing is new, one at which 1% have new rows (a sweep as it is in life), and
looking anew at a sample of experiments, one by one in a transaction each and as many together in one. Two ratios follow: one by one,
extrapolated to all, against the sweep as it is in life, and per experiment, one by one against together. Without --quick
also: all looked at anew, all with new rows, and all with new rows that a look reads. With --against, PATH is another checkout with its dependencies (`git worktree add`, `uv sync`): both
are measured in turn, each by its own code, and of each figure the best of the rounds is compared. With --workers, several processes share the slot at which all have new rows, as workers of
the tick do; what they did is added up, so that nothing was judged twice.
"""

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg

from decisioning.embedded import Home, Postgres, Server, Valkey, start
from tests.benchmarks.scene import say

HOUR, SLOT = timedelta(hours=1), timedelta(minutes=5)
END = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 2 * HOUR
BEGIN = END - 12 * HOUR
COPIED: tuple[str, ...] = ("variants", "target_kpis", "cursors", "steps", "evaluations", "evidence")


@contextmanager
def database() -> Iterator[str]:
    """A migrated installation without its processes; the DSN of its superuser. Sets the environment for Django."""
    with tempfile.TemporaryDirectory(prefix="decisioning-sweep-") as folder:
        home = Home(Path(folder) / "home")
        home.make()
        postgres, valkey = Postgres(home), Valkey(home)
        running: list[tuple[Server, Any]] = []
        try:
            for server in (postgres, valkey):
                server.prepare()
                running.append((server, start(server, home.logs / f"{server.name}.log")))
            postgres.bootstrap()
            os.environ |= {
                "DECISIONING_HOME": str(home.path),
                "DECISIONING_SECRET_KEY": secrets.token_urlsafe(48),
                "DATABASE_URL": postgres.dsn("web"),
                "DATABASE_OWNER_URL": postgres.dsn("owner"),
                "DATABASE_WORKER_URL": postgres.dsn("worker"),
                "REDIS_URL": valkey.url(),
                "DJANGO_SETTINGS_MODULE": "decisioning.settings",
            }
            environment = {**os.environ, "DECISIONING_ROLE": "owner"}
            subprocess.run([sys.executable, "manage.py", "migrate", "--verbosity", "0"], check=True, env=environment)
            yield postgres.dsn("superuser")
        finally:
            for server, process in reversed(running):
                process.send_signal(server.stop_signal)
                process.wait(60)


def one() -> int:
    """The experiment that is copied: a goal, a guard, and hourly rows that arrive a minute after their hour; judged by the tick."""
    from django.db import connection, transaction

    from decisioning.access.models import Team
    from experiments.models import Experiment, Metric, TargetKpi, Variant
    from telemetry.ingest import Target, ingest
    from telemetry.row import Row

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL ROLE decisioning_owner")
        team = Team.objects.create(key="sweep", name="Sweep", created_at=BEGIN)
        spec: dict[str, Any] = {"expected_every_s": 3600, "freshness_target_s": 3600, "created_at": BEGIN}
        goal = Metric.objects.create(key="value", name="Value", **spec)
        guard = Metric.objects.create(key="errors", name="Errors", kind="proportion", direction="decrease", **spec)
        experiment = Experiment.objects.create(
            key="sweep",
            name="s",
            hypothesis="h",
            owner="o",
            team=team,
            status="running",
            created_at=BEGIN,
            started_at=BEGIN,
        )
        for position, key in enumerate(("control", "treatment")):
            Variant.objects.create(experiment=experiment, key=key, control=not position, position=position)
        TargetKpi.objects.create(experiment=experiment, metric=goal, position=0, baseline_mean=3, baseline_stddev=3)
        TargetKpi.objects.create(experiment=experiment, metric=guard, role="guardrail", max_harm=0.3, position=1)
    target = Target(experiment.pk, team.pk, frozenset({"control", "treatment"}))
    for hour in range(1, 13):
        rows = [
            row
            for variant in ("control", "treatment")
            for row in (
                Row("value", BEGIN + hour * HOUR, 3 + hour % 5 / 20, variant, 900 + hour, 9.0),
                Row("errors", BEGIN + hour * HOUR, 0.05, variant, 900 + hour),
            )
        ]
        with transaction.atomic():
            ingest(target, list(enumerate(rows)), now=BEGIN + hour * HOUR + timedelta(minutes=1))
        judged(BEGIN + hour * HOUR + SLOT)
    judged(END + 7 * SLOT)
    return int(experiment.pk)


def copied(root: "psycopg.Connection[Any]", of: int, count: int) -> None:
    """Lay out `count` copies, whole tables at a time; no trigger has anything to do for them."""
    root.execute("SET session_replication_role = replica")
    root.execute("CREATE TABLE public.copies (n int, id bigint)")
    root.execute("INSERT INTO public.copies SELECT n, n + 1000000 FROM generate_series(1, %s) AS n", [count])

    def insert(table: str, **said: str) -> None:
        schema, _, name = table.partition(".")
        columns = [
            c
            for (c,) in root.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s "
                "AND (column_name <> 'id' OR %s)",
                [schema, name, "id" in said],
            )
        ]
        chosen = ", ".join(said.get(c, f"x.{c}") for c in columns)
        key = "id" if "id" in said else "experiment_id"
        root.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE SELECT {chosen} "  # noqa: S608 - names of our own
            f"FROM {table} x CROSS JOIN public.copies WHERE x.{key} = {of}"
        )

    insert("metadata.experiments", id="copies.id", key="x.key || '-' || copies.n")
    for table in COPIED:
        insert(f"metadata.{table}", experiment_id="copies.id")
    insert("metrics.experiment_kpis", experiment_id="copies.id")
    root.execute("SET session_replication_role = origin")
    root.execute("VACUUM ANALYZE")


def sent(root: "psycopg.Connection[Any]", at: datetime, share: float) -> None:
    """A new row of every series of a share of the experiments, noted as ingest does."""
    root.execute(
        """
        INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value, variant, n, variance, first_received_at, received_at, team_id)
        SELECT experiment_id, %s, metric, value, variant, n, variance, %s, %s, team_id FROM metrics.experiment_kpis
        WHERE ts = %s AND experiment_id %% 1000 < 1000 * %s
        """,
        [at, at, at, END, share],
    )
    root.execute("ANALYZE metrics.kpi_changes")


def judged(now: datetime) -> tuple[int, int, int]:
    """The tick until nothing is left: experiments folded, experiments passed over, evaluations written."""
    from gates.tick import PASSED_AT_ONCE, due, evaluate, skip_unchanged

    passed, moved = 0, PASSED_AT_ONCE
    while moved == PASSED_AT_ONCE:
        with job():
            moved = skip_unchanged(now=now).passed
        passed += moved
    folded = written = 0
    more = True
    while more:
        chunks, more = due(now=now)
        for ids in chunks:
            with job():
                done = evaluate(ids, now=now)
            if done.failed:
                raise RuntimeError(done.failed[:3])
            folded, written = folded + done.experiments - done.passed, written + done.evaluations
            passed += done.passed
    return folded, passed, written


def in_full(now: datetime, count: int, at_once: int) -> float:
    """Seconds an experiment for the first `count` that are due, each looked at anew, `at_once` in a transaction."""
    from gates.tick import due, evaluate

    chunks, _ = due(now=now)
    ids = [pk for chunk in chunks for pk in chunk][:count]
    began = time.perf_counter()
    for first in range(0, count, at_once):
        with job():
            done = evaluate(ids[first : first + at_once], now=now)
        if done.failed or done.experiments != at_once:
            raise RuntimeError(done)
    return (time.perf_counter() - began) / count


@contextmanager
def job() -> Iterator[None]:
    """A transaction as the tick's."""
    from django.db import transaction

    from decisioning.access.principal import bind_job

    with transaction.atomic():
        bind_job("gates.tick")
        yield


def one_worker(now: datetime) -> None:
    """A process of its own: one sweep, reported in one line."""
    set_up()
    sys.stdin.readline()
    began = time.perf_counter()
    folded, passed, written = judged(now)
    say(f"{time.perf_counter() - began} {folded} {passed} {written}")


def shared(workers: int, now: datetime) -> tuple[float, list[tuple[int, int, int]]]:
    """Seconds until the last of several processes has finished the same sweep, and what each did."""
    command = [sys.executable, "-m", "tests.benchmarks.sweep", "--as-worker", now.isoformat()]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(workers)
    ]
    time.sleep(5)  # all have started and wait
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=1800)[0].split() for process in running]
    return max(float(words[0]) for words in said), [(int(w[1]), int(w[2]), int(w[3])) for w in said]


def set_up() -> None:
    os.environ["DECISIONING_ROLE"] = "worker"
    import django

    django.setup()


def timed(what: str, now: datetime, count: int) -> float:
    began = time.perf_counter()
    folded, passed, written = judged(now)
    seconds = time.perf_counter() - began
    say(
        f"{what}: {seconds:.3f} s ({folded} folded, {passed} passed over, {written} evaluations written; {count / seconds:,.0f} a second)"
    )
    return seconds


_FIGURE = re.compile(r"^  (?P<what>[^:]+): (?P<seconds>[\d.]+) s \(", re.M)


def figures(path: Path, experiments: int) -> dict[str, float]:
    """The sweeps of a checkout by what was new, in seconds."""
    command = [
        "uv",
        "run",
        "python",
        "-m",
        "tests.benchmarks.sweep",
        "--experiments",
        str(experiments),
        "--sample",
        "50",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    said = subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, check=True).stdout
    return {found["what"]: float(found["seconds"]) for found in _FIGURE.finditer(said)}


def compared(path: Path, experiments: int, rounds: int) -> None:
    """How many times as fast as another checkout each sweep is."""
    best: list[dict[str, float]] = [{}, {}]
    for _ in range(rounds):
        for of, checkout in zip(best, (path, Path(__file__).parents[2]), strict=True):
            for what, seconds in figures(checkout, experiments).items():
                of[what] = min(seconds, of.get(what, seconds))
    there, here = best
    for what in here:
        say(f"{what}: {there[what]:.3f} s there, {here[what]:.3f} s here: {there[what] / here[what]:.2f} times as fast")


def main() -> None:
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--experiments", type=int, default=10_000)
    known.add_argument(
        "--sample", type=int, default=100, help="experiments looked at anew, one by one and then together"
    )
    known.add_argument("--workers", type=int, nargs="*", default=[])
    known.add_argument("--quick", action="store_true", help="leave out the sweeps that look at all of them")
    known.add_argument("--against", type=Path, help="another checkout to compare with")
    known.add_argument("--rounds", type=int, default=3)
    known.add_argument("--as-worker", help=argparse.SUPPRESS)
    options = known.parse_args()
    if options.as_worker:
        one_worker(datetime.fromisoformat(options.as_worker))
        return
    count = options.experiments
    if options.against:
        compared(options.against, count, options.rounds)
        return
    with database() as dsn, psycopg.connect(dsn, autocommit=True) as root:
        set_up()
        root.execute("GRANT decisioning_owner TO decisioning_worker WITH INHERIT FALSE, SET TRUE")
        of = one()
        root.execute("REVOKE decisioning_owner FROM decisioning_worker")
        copied(root, of, count - 1)
        say(f"{count} running experiments, as of {END + 7 * SLOT:%H:%M}; wall seconds of one sweep:")
        timed("  nothing is new", END + 8 * SLOT, count)
        sent(root, END + 9 * SLOT - timedelta(seconds=20), 0.01)
        lived = timed("  1% have new rows", END + 9 * SLOT, count)
        root.execute("UPDATE metadata.cursors SET quiet_to = NULL")
        root.execute("ANALYZE metadata.cursors")
        each = in_full(END + 10 * SLOT, options.sample, 1)
        together = in_full(END + 10 * SLOT, options.sample, options.sample)
        say(
            f"  looked at anew, one by one: {each * 1000:.2f} ms each by {options.sample} of them, so {each * count:.1f} s for all; "
            f"{each * count / lived:.0f} times the sweep in which 1% have new rows"
        )
        say(
            f"  looked at anew, {options.sample} together: {together * 1000:.2f} ms each; one by one {each / together:.1f} times that"
        )
        if not options.quick:
            timed("  all looked at anew, nothing new", END + 10 * SLOT, count)
            sent(root, END + 11 * SLOT - timedelta(seconds=20), 1)
            timed("  all have new rows", END + 11 * SLOT, count)
            sent(root, END + 12 * SLOT - timedelta(seconds=20), 1)
            timed("  all have new rows, at a look", END + 12 * SLOT, count)
        for turn, workers in enumerate(options.workers):
            at = END + (13 + turn) * SLOT
            sent(root, at - timedelta(seconds=20), 1)
            seconds, did = shared(workers, at)
            twice = sum(folded + passed for folded, passed, _ in did) - count
            say(
                f"  all have new rows, {workers} workers: {seconds:.2f} s; dealt with by each {[d[0] + d[1] for d in did]}, {twice} more than once"
            )


if __name__ == "__main__":
    main()
