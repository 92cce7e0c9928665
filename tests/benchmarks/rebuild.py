"""How much memory a worker takes that judges long histories from their start, and how long.

    uv run python -m tests.benchmarks.rebuild [--experiments 20] [--days 24] [--against PATH]

Every experiment has a goal and two guards, three variants and a row an hour of each, which came up to three hours late, so that
its freshness changes again and again: more than a hundred evaluations, each with its evidence. A process of its own judges them
a chunk at a time, as the tick does, and says its peak. With --against the same is done by the code of another checkout, one that
has its dependencies, and the ratio follows.
"""

import argparse
import os
import subprocess
import sys
import time
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks import sweep
from tests.benchmarks.scene import say

HERE = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
METRICS = ("value", "errors", "speed")
_ROWS = """
INSERT INTO metrics.experiment_kpis (experiment_id, team_id, ts, metric, value, variant, n, variance, first_received_at, received_at)
SELECT %(id)s, %(team)s, ts, metric, CASE metric WHEN 'errors' THEN 0.05 + 0.01 * random() ELSE 3 + random() END, variant,
  900 + (50 * random())::int, CASE metric WHEN 'errors' THEN NULL ELSE 9.0 END, ts + (1 + 179 * random()) * interval '1 minute',
  ts + interval '3 hours'
FROM generate_series(%(first)s::timestamptz, %(last)s::timestamptz, interval '1 hour') AS ts,
  unnest(%(metrics)s::text[]) AS metric, unnest('{control,t1,t2}'::text[]) AS variant
"""


def laid_out(root: "psycopg.Connection[Any]", experiments: int, days: int) -> None:
    """Experiments with their rows, of which nothing was judged yet."""
    from django.db import connection, transaction

    from decisioning.access.models import Team
    from experiments.models import Experiment, Metric, TargetKpi, Variant

    begin = sweep.END - timedelta(days=days)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL ROLE decisioning_owner")
        team = Team.objects.create(key="rebuild", name="Rebuild", created_at=begin)
        spec: dict[str, Any] = {"expected_every_s": 3600, "freshness_target_s": 3600, "created_at": begin}
        experiment = Experiment.objects.create(
            key="rebuild", name="r", hypothesis="h", owner="o", team=team, status="running", created_at=begin, started_at=begin
        )  # fmt: skip
        for position, key in enumerate(("control", "t1", "t2")):
            Variant.objects.create(experiment=experiment, key=key, control=not position, position=position)
        for position, key in enumerate(METRICS):
            kind: dict[str, Any] = {"kind": "proportion", "direction": "decrease"} if key == "errors" else {}
            metric = Metric.objects.create(key=key, name=key.title(), **kind, **spec)
            role = {"role": "guardrail", "max_harm": 0.3} if position else {"baseline_mean": 3, "baseline_stddev": 3}
            TargetKpi.objects.create(experiment=experiment, metric=metric, position=position, **role)
    root.execute("SET session_replication_role = replica")
    given = {"id": experiment.pk, "team": team.pk, "first": begin + HOUR, "last": sweep.END, "metrics": list(METRICS)}
    root.execute(_ROWS, given)
    root.execute(
        "INSERT INTO metadata.cursors (experiment_id, team_id, due_at, fold, revisions, missed_slots) VALUES (%s, %s, %s, 1, '{}', 0) "
        "ON CONFLICT (experiment_id) DO UPDATE SET due_at = excluded.due_at",
        [experiment.pk, team.pk, sweep.END],
    )
    root.execute("SET session_replication_role = origin")
    sweep.COPIED = ("variants", "target_kpis", "cursors")
    sweep.copied(root, experiment.pk, experiments - 1)


def rebuilt() -> tuple[int, float]:
    """How many were judged from their start, in which CPU seconds."""
    tick = import_module("gates.tick" if find_spec("gates.tick") else "gates.evaluation")  # as older commits named it
    now, began, judged, more = sweep.END + sweep.SLOT, time.process_time(), 0, True
    while more:
        chunks, more = tick.due(now=now)
        for ids in chunks:
            with sweep.job():
                judged += tick.evaluate(ids, now=now).experiments
    return judged, time.process_time() - began


def peak_mb() -> float:
    """The most memory this process has held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def measured(path: Path, experiments: int, days: int) -> tuple[float, float]:
    """(peak in MB, CPU seconds) of the code of a checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    command = [
        "uv",
        "run",
        "python",
        str(Path(__file__)),
        "--own",
        "--experiments",
        str(experiments),
        "--days",
        str(days),
    ]
    found = subprocess.run(
        command, cwd=path, env={**environment, "PYTHONPATH": str(path)}, capture_output=True, text=True, check=True
    )
    peak, seconds = found.stdout.split()[-2:]
    return float(peak), float(seconds)


def main() -> None:
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--experiments", type=int, default=20)
    known.add_argument("--days", type=int, default=24)
    known.add_argument("--against", type=Path, help="another checkout to compare with")
    known.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    options = known.parse_args()
    if options.own:
        with sweep.database() as dsn, psycopg.connect(dsn, autocommit=True) as root:
            sweep.set_up()
            root.execute("GRANT decisioning_owner TO decisioning_worker WITH INHERIT FALSE, SET TRUE")
            laid_out(root, options.experiments, options.days)
            judged, seconds = rebuilt()
            if judged < options.experiments:
                sys.exit(f"only {judged} were judged")
            say(f"{peak_mb():.0f} {seconds:.2f}")
        return
    peak, seconds = measured(HERE, options.experiments, options.days)
    say(f"{options.experiments} histories of {options.days} days: peak {peak:.0f} MB, {seconds:.1f} CPU s")
    if options.against:
        there, longer = measured(options.against, options.experiments, options.days)
        say(
            f"against {options.against}: {there:.0f} MB, {longer:.1f} CPU s; {peak / there:.2f} times its peak, {longer / seconds:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
