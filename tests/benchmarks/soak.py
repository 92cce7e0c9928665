"""Whether anything grows: memory of the web process and the jobs' lag under a steady stream, and the peak of a large batch.

    uv run python -m tests.benchmarks.soak [--minutes 10] [--home HOME]

A writer sends 100-row batches and a reader documents, as fast as they are answered, for so many minutes. Printed: growth of the web processes' memory
after the first fifth, what waits for the hour sums at the end of each fifth, and how much 10,000-row batches add to the web's peak.
Wanted: less than 50 MB, no growing lag, less than 60 MB.
"""

import json
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks.scene import Scene, parser, rows, say, scene

_MB = 1024
_ROOM = 800_000


def status_kb(on: Scene, field: str) -> int:
    """Sum over the web processes of VmRSS (now) or VmHWM (peak)."""
    found = 0
    for pid in on.installation.find("granian"):
        text = (Path("/proc") / str(pid) / "status").read_text()
        found += next((int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{field}:")), 0)
    return found


def waiting(database: psycopg.Connection[Any]) -> tuple[int, float]:
    """Changes that the hour sums have not seen, and the age of the oldest in seconds."""
    row = database.execute(
        "SELECT count(*), coalesce(extract(epoch FROM now() - min(from_received_at)), 0) FROM metrics.kpi_changes WHERE job = 'hours'"
    ).fetchone()
    assert row
    return int(row[0]), float(row[1])


def stream(on: Scene, experiment: dict[str, Any], until: float, sent: list[int]) -> None:
    caller, place = on.caller(), count(0, 100)
    while time.monotonic() < until:
        if sent[0] and sent[0] % _ROOM == 0:  # what is older than is kept would be refused
            experiment, place = on.experiment(), count(0, 100)
        body = json.dumps({"rows": rows(experiment, start=next(place), count=100)}).encode()
        status, _, content = caller("POST", f"/api/experiments/{experiment['id']}/kpis", body)
        if status != 200:
            raise RuntimeError(content[:300])
        sent[0] += 100


def read(on: Scene, experiment: dict[str, Any], until: float, sent: list[int]) -> None:
    caller = on.caller()
    while time.monotonic() < until:
        caller("GET", f"/api/experiments/{experiment['id']}")
        sent[1] += 1


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--minutes", type=float, default=10.0)
    arguments = known.parse_args()
    with scene(arguments) as on, psycopg.connect(on.dsn("superuser"), autocommit=True) as database:
        experiment = on.experiment()
        sent = [0, 0]
        until = time.monotonic() + arguments.minutes * 60
        threads = [threading.Thread(target=work, args=(on, experiment, until, sent)) for work in (stream, read)]
        for thread in threads:
            thread.start()
        memory: list[int] = []
        for fifth in range(1, 6):
            time.sleep(max(0.0, until - arguments.minutes * 60 * (5 - fifth) / 5 - time.monotonic()))
            memory.append(status_kb(on, "VmRSS"))
            changes, age_s = waiting(database)
            say(
                f"{fifth}/5: {memory[-1] / _MB:.0f} MB, {changes} changes wait, the oldest {age_s:.0f} s; {sent[0]:,} rows, {sent[1]:,} reads"
            )
        for thread in threads:
            thread.join()
        say(
            f"growth after the first fifth: {(memory[-1] - memory[0]) / _MB:+.1f} MB, {memory[-1] / memory[0]:.3f} times; wanted: under 50 MB"
        )
        before = status_kb(on, "VmHWM")
        caller, large = on.caller(), on.experiment()
        for start in (0, 10_000, 20_000):
            body = json.dumps({"rows": rows(large, start=start, count=10_000)}).encode()
            status, _, content = caller("POST", f"/api/experiments/{large['id']}/kpis", body)
            if status != 200:
                raise RuntimeError(content[:300])
        peak = status_kb(on, "VmHWM")
        say(
            f"10,000-row batches add {(peak - before) / _MB:+.1f} MB to the peak, {peak / before:.3f} times; wanted: under 60 MB"
        )


if __name__ == "__main__":
    main()
