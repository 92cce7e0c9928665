"""What grows with what: experiments and rows against time, memory, disk and vacuum, on one PostgreSQL.

    uv run python -m tests.benchmarks.scale [--experiments 100 1000 10000] [--rows 1000000 10000000]

For each number of experiments an installation without its processes gets as many running ones, copies of one with twelve hours of rows
(`tests.benchmarks.sweep`). Measured: a slot at which nothing is new, one at which all have new rows, the worker's peak of memory, and
the bytes on disk that an experiment takes. In the largest the table of rows is then filled, as far back as rows are kept, up to each of
--rows: bytes a row of table and index, seconds of a VACUUM, the same two slots again, and the document's rows of one experiment read. A
hundred million rows take some 30 GB and half an hour.
"""

import argparse
import resource
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import psycopg

from tests.benchmarks.scene import say
from tests.benchmarks.sweep import BEGIN, END, SLOT, copied, database, judged, one, sent, set_up

_FILL = """
INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value, variant, n, variance, first_received_at, received_at, team_id)
SELECT e.id, %(end)s::timestamptz - make_interval(mins => m::int), 'value', 3 + m %% 7, v, 100, 9, %(end)s, %(end)s, e.team_id
FROM metadata.experiments e, unnest('{control,treatment}'::text[]) AS v, generate_series(%(first)s::int, %(last)s::int) AS m
WHERE e.key LIKE 'sweep%%'
"""


def slots(root: "psycopg.Connection[Any]", first: int) -> tuple[float, float]:
    """Seconds of a slot at which nothing is new, and of one at which all have new rows; from the first slot after END on."""
    found = []
    for turn, new in enumerate((False, True)):
        now = END + (first + turn) * SLOT
        if new:
            sent(root, now - timedelta(seconds=20), 1)
        began = time.perf_counter()
        judged(now)
        found.append(time.perf_counter() - began)
    return found[0], found[1]


def sizes(root: "psycopg.Connection[Any]") -> tuple[int, int, int]:
    """Rows of telemetry as PostgreSQL estimates them, and the bytes of their tables and of their indexes."""
    found = root.execute(
        """
        SELECT sum(c.reltuples)::bigint, sum(pg_table_size(c.oid))::bigint, sum(pg_indexes_size(c.oid))::bigint FROM pg_class c
        JOIN pg_inherits i ON i.inhrelid = c.oid WHERE i.inhparent = 'metrics.experiment_kpis'::regclass
        """
    ).fetchone()
    assert found is not None
    rows, table, index = found
    return int(rows), int(table), int(index)


def fill(root: "psycopg.Connection[Any]", experiments: int, first: int, rows: int) -> int:
    """Lay down so many rows more, a minute apart and each minute of all experiments together, as they come in life. The next minute."""
    last = first + rows // (2 * experiments)
    root.execute("SET session_replication_role = replica")
    for start in range(first, last, 20):
        root.execute(_FILL, {"end": BEGIN, "first": start + 1, "last": min(start + 20, last)})
    root.execute("SET session_replication_role = origin")
    return last


def main() -> None:
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--experiments", type=int, nargs="+", default=[100, 1_000, 10_000])
    known.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 10_000_000])
    options = known.parse_args()
    counts = sorted(options.experiments)
    if len(counts) > 1:  # each in a process of its own, as its memory is measured
        for count in counts:
            rows = [str(rows) for rows in options.rows] if count == counts[-1] else []
            command = [sys.executable, "-m", "tests.benchmarks.scale", "--experiments", str(count), "--rows", *rows]
            subprocess.run(command, check=True)
        return
    with database() as dsn, psycopg.connect(dsn, autocommit=True) as root:
        set_up()
        root.execute("GRANT decisioning_owner TO decisioning_worker WITH INHERIT FALSE, SET TRUE")
        of = one()
        root.execute("REVOKE decisioning_owner FROM decisioning_worker")
        before = _bytes(root)
        copied(root, of, counts[0] - 1)
        each = (_bytes(root) - before) / counts[0]
        quiet, new = slots(root, 8)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(
            f"{counts[0]:>7,} experiments: nothing new {quiet:.3f} s, all new {new:.2f} s ({new / counts[0] * 1000:.2f} ms each); "
            f"worker's peak {peak:.0f} MB; {each / 1024:.0f} kB on disk each"
        )
        _grow(root, counts[0], sorted(options.rows))


def _grow(root: "psycopg.Connection[Any]", count: int, steps: list[int]) -> None:
    minute, slot = 0, 8
    for rows in steps:
        held, _, _ = sizes(root)
        began = time.perf_counter()
        minute = fill(root, count, minute, max(0, rows - held))
        filled = time.perf_counter() - began
        began = time.perf_counter()
        root.execute("VACUUM (ANALYZE) metrics.experiment_kpis")
        vacuumed = time.perf_counter() - began
        stored, table, index = sizes(root)
        slot += 12  # the same minutes of the hour
        judged(END + (slot - 1) * SLOT)  # the look in between
        quiet, new = slots(root, slot)
        say(
            f"{stored:>13,} rows: laid down at {(stored - held) / max(filled, 0.001):,.0f} a second; {table / stored:.0f} + {index / stored:.0f} bytes each, {(table + index) / 2**30:.1f} GB; "
            f"VACUUM {vacuumed:.0f} s; nothing new {quiet:.3f} s, all new {new:.2f} s"
        )


def _bytes(root: "psycopg.Connection[Any]") -> int:
    found = root.execute("SELECT pg_database_size('decisioning')").fetchone()
    assert found is not None
    return int(found[0])


if __name__ == "__main__":
    main()
