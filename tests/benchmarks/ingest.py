"""How fast rows come in over HTTP, as a share of COPY and as a multiple of the naive way.

    uv run python -m tests.benchmarks.ingest [--rounds 5] [--bodies 10] [--home HOME]

HTTP: 1,000-point bodies with authentication, scopes, row security, idempotency keys and rate limit, 1 and 4 clients. COPY: the same rows in
binary into the same table, its triggers and partitions included, as superuser (COPY under row security is refused by PostgreSQL). Naive: a
second web server on the same database that differs in one view (tests/benchmarks/naive): DRF serializers and bulk_create. All take turns,
each when the gates have read what came before; medians are compared.
Wanted: HTTP at least 25% of COPY (goal 50%) and at least 5 times the naive way.
"""

import json
import statistics
import subprocess
import sys
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import count
from typing import Any

import psycopg

from decisioning.embedded import PROJECT, Home, free_port, is_free, join
from tests.benchmarks.scene import Caller, Scene, parser, rows, say, scene, seconds
from tests.installation import clean_environment, soon

POINTS = 1_000
_COPY = """
COPY metrics.experiment_kpis (experiment_id, team_id, metric, variant, ts, value, n, variance, first_received_at, received_at)
FROM STDIN (FORMAT binary)
"""


def over_http(on: Scene, url: str, experiment: dict[str, Any], bodies: list[bytes], clients: int) -> float:
    """Points a second."""
    callers = [Caller(url, on.key) for _ in range(clients)]
    path = f"/api/experiments/{experiment['id']}/kpis"

    def send(caller: Caller, mine: list[bytes]) -> None:
        for body in mine:
            status, _, content = caller("POST", path, body, Idempotency_Key=uuid.uuid4().hex)
            if status != 200 or json.loads(content)["accepted"] != POINTS:
                raise RuntimeError(content[:300])

    threads = [threading.Thread(target=send, args=(c, bodies[i::clients])) for i, c in enumerate(callers)]

    def all_of_them() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return len(bodies) * POINTS / seconds(all_of_them)


def by_copy(
    connection: psycopg.Connection[Any], experiment: dict[str, Any], batches: list[list[dict[str, Any]]]
) -> float:
    """Points a second; one transaction for each batch, as over HTTP."""
    (team,) = connection.execute(
        "SELECT team_id FROM metadata.experiments WHERE id = %s", [experiment["id"]]
    ).fetchone() or (0,)  # fmt: skip
    connection.commit()
    typed = [
        [(experiment["id"], team, r["metric"], r["variant"], datetime.fromisoformat(r["ts"]), r["value"], r["n"], r["variance"])
         for r in batch] for batch in batches
    ]  # fmt: skip
    now = datetime.now().astimezone()

    def copy() -> None:
        for batch in typed:
            with connection.cursor() as cursor, cursor.copy(_COPY) as target:
                target.set_types(
                    [
                        "int8",
                        "int8",
                        "text",
                        "text",
                        "timestamptz",
                        "float8",
                        "int8",
                        "float8",
                        "timestamptz",
                        "timestamptz",
                    ]
                )
                for row in batch:
                    target.write_row((*row, now, now))
            connection.commit()

    return len(typed) * POINTS / seconds(copy)


def read(on: Scene, connection: psycopg.Connection[Any], bell: dict[str, Any]) -> None:
    """Wait until the worker has read all rows there are, which on few cores would fall on whoever comes next. `bell`: wakes it."""
    on.caller().json(
        "POST", f"/api/experiments/{bell['id']}/kpis", {"rows": rows(bell, start=0, count=2, seed=next(_strokes))}
    )
    if not soon(lambda: _waiting(connection) == 0, 120):
        raise RuntimeError("the worker did not come to rest")


def _waiting(connection: psycopg.Connection[Any]) -> int:
    (found,) = connection.execute("SELECT count(*) FROM metrics.kpi_changes").fetchone() or (0,)
    connection.commit()
    return int(found)


_strokes = count(1)


@contextmanager
def naive_portal(on: Scene) -> Iterator[str]:
    """The URL of a second web server on the same installation that stores rows the obvious way, as long as the block lasts."""
    environment = join(Home(on.installation.home), "web")
    environment |= {"DJANGO_SETTINGS_MODULE": "tests.benchmarks.naive.settings", "DECISIONING_ROLE": "web"}
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--port", str(port), "--workers", "1"]
    command += ["--blocking-threads", "32", "--no-ws", "decisioning.wsgi:application"]
    server = subprocess.Popen(command, cwd=PROJECT, env=clean_environment() | environment, stderr=subprocess.DEVNULL)
    try:
        if not soon(lambda: not is_free(port), 60):
            raise RuntimeError("the naive portal did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--rounds", type=int, default=5)
    known.add_argument("--bodies", type=int, default=10, help="bodies of 1,000 points a round and way")
    arguments = known.parse_args()
    with scene(arguments) as on, naive_portal(on) as naive:
        copied, sent, simple, bell = (on.experiment() for _ in range(4))
        found: dict[str, list[float]] = defaultdict(list)
        place = count(0, POINTS)
        with psycopg.connect(on.dsn("superuser")) as connection:
            for warm in [True] + [False] * arguments.rounds:
                size = 4 if warm else arguments.bodies
                batches = [rows(copied, start=next(place), count=POINTS) for _ in range(size * 2)]
                bodies = [json.dumps({"rows": batch}).encode() for batch in batches]
                ways: dict[str, Callable[[], float]] = {
                    "COPY": partial(by_copy, connection, copied, batches[:size]),
                    "1 client": partial(over_http, on, on.url, sent, bodies[:size], 1),
                    "1 client, naive": partial(over_http, on, naive, simple, bodies[:size], 1),
                    "4 clients": partial(over_http, on, on.url, sent, bodies[size:], 4),
                    "4 clients, naive": partial(over_http, on, naive, simple, bodies[size:], 4),
                }
                for name, way in ways.items():
                    read(on, connection, bell)
                    points = way()
                    if not warm:
                        found[name].append(points)
        medians = {name: statistics.median(values) for name, values in found.items()}
        for name, points in medians.items():
            say(f"{name:>17}: {points:>9,.0f} points/s, {points / medians['COPY']:.0%} of COPY")
        for clients in ("1 client", "4 clients"):
            say(f"{clients}: {medians[clients] / medians[f'{clients}, naive']:.1f} times the naive way")


if __name__ == "__main__":
    main()
