"""How fast a source brings rows of many experiments, beside HTTP, and how much memory its worker takes.

    uv run python -m tests.benchmarks.sources [--rows 1000000] [--experiments 100] [--home HOME]

A CSV of that many rows, ordered by time so that every chunk holds all experiments, read by one run. HTTP: 1,000-point bodies of one
experiment by one client, before and after. Memory: the largest that the worker's process had above what it had before the run.
Wanted: at most 150 MB more.
"""

import json
import re
import sys
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.benchmarks.ingest import POINTS, over_http
from tests.benchmarks.scene import NOW, parser, rows, say, scene
from tests.installation import soon

ARMS = ("control", "treatment")


def bodies_of(experiment: dict[str, Any], *, seed: int) -> list[bytes]:
    """Twenty, of rows that are new."""
    batches = (rows(experiment, start=(20 * seed + place) * POINTS, count=POINTS, seed=seed) for place in range(20))
    return [json.dumps({"rows": batch}).encode() for batch in batches]


def write(path: Path, keys: list[str], count: int) -> None:
    """Rows of both arms of every experiment, minute after minute."""
    each = 2 * len(keys)
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        file.write("experiment,variant,ts,value,n,variance\n")
        for number in range(count):
            minute, place = divmod(number, each)
            ts = f"{NOW - timedelta(minutes=count // each - minute):%Y-%m-%dT%H:%M:%SZ}"
            file.write(
                f"{keys[place // 2]},{ARMS[place % 2]},{ts},{3 + number * 7919 % 1000 / 997},{100 + number % 17},9.5\n"
            )


def resident_mb(pid: int) -> float:
    """What a process has in memory of its own; 0 of one that has ended."""
    try:
        told = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(told[1]) / 1024 if told else 0.0


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--rows", type=int, default=1_000_000)
    asked.add_argument("--experiments", type=int, default=100)
    arguments = asked.parse_args()
    with scene(arguments) as on:
        caller = on.caller()
        plain = on.experiment()
        before = over_http(on, on.url, plain, bodies_of(plain, seed=1), 1)
        keys = [str(on.experiment(key=f"bench-{uuid.uuid4().hex[:12]}")["key"]) for _ in range(arguments.experiments)]
        write(on.installation.home / "files" / "million.csv", keys, arguments.rows)
        plan = {
            "key": f"bench-{uuid.uuid4().hex[:12]}", "team": "bench", "kind": "file", "path": "million.csv", "time_limit_s": 240, "metrics": [plain["metric"]],
            "query": "SELECT * FROM rows WHERE ts > :since AND ts <= :until", "schedule_s": 86_400,
        }  # fmt: skip
        workers = {pid: line for pid, line in on.installation.processes().items() if "worker" in line}
        most, over = dict.fromkeys(workers, 0.0), threading.Event()
        idle = {pid: resident_mb(pid) for pid in workers}

        def watch() -> None:
            while not over.wait(0.2):
                for pid in workers:
                    most[pid] = max(most[pid], resident_mb(pid))

        watching = threading.Thread(target=watch)
        watching.start()
        began = time.monotonic()
        caller.json("POST", "/api/sources", plan)
        caller.json("POST", f"/api/sources/{plan['key']}/refresh")

        def newest() -> dict[str, object]:
            found: list[dict[str, object]] = caller.json("GET", f"/api/refresh-log?job=source/{plan['key']}")["results"]
            return found[0] if found else {"status": "running"}

        soon(lambda: newest()["status"] != "running", 400)
        took, run = time.monotonic() - began, newest()
        over.set()
        watching.join()
        after = over_http(on, on.url, plain, bodies_of(plain, seed=2), 1)
        say(f"run: {run['status']}, {run['rows']} rows in {took:.0f} s, {run['error'] or 'no error'}")
        rate, http = float(str(run["rows"] or 0)) / took, (before + after) / 2
        say(
            f"a source brings {rate:,.0f} rows a second, {rate / http:.2f} of what one client sends over HTTP ({http:,.0f} points a second)"
        )
        for pid in workers:
            say(
                f"{workers[pid].strip()[-60:]} {pid}: {idle[pid]:.0f} MB before, at most {most[pid]:.0f} MB, {most[pid] - idle[pid]:+.0f} MB"
            )
        if run["status"] != "succeeded" or any(most[pid] - idle[pid] > 150 for pid in workers):
            sys.exit(1)


if __name__ == "__main__":
    main()
