"""How fast rows come in over HTTP, as a share of COPY and as a multiple of the naive way.

    uv run python -m tests.benchmarks.ingest [--rounds 5] [--bodies 10] [--home HOME]

HTTP: 1,000-point bodies with authentication, scopes, row security, idempotency keys and rate limit, 1 and 4 clients. COPY: the same rows in
binary into the same table, its triggers and partitions included, as superuser (COPY under row security is refused by PostgreSQL). Naive: a
second web server on the same database that differs in one view (tests/benchmarks/naive): DRF serializers and bulk_create. All take turns;
medians are compared.
Wanted: HTTP at least 25% of COPY (goal 50%) and at least 5 times the naive way.
"""

import json
import statistics
import subprocess
import sys
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
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


@contextmanager
def naive_portal(on: Scene) -> Iterator[str]:
    """The URL of a second web server on the same installation that stores rows the obvious way, as long as the block lasts."""
    environment = join(Home(on.installation.home), "web")
    environment |= {"DJANGO_SETTINGS_MODULE": "tests.benchmarks.naive.settings", "DECISIONING_ROLE": "web"}
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "asginl", "--port", str(port), "--workers", "1"]
    command += ["--no-ws", "decisioning.asgi:application"]
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
        found: dict[str, list[float]] = defaultdict(list)
        with psycopg.connect(on.dsn("superuser")) as connection:
            for warm in [True] + [False] * arguments.rounds:
                copied, sent, simple = on.experiment(), on.experiment(), on.experiment()
                size = 4 if warm else arguments.bodies
                batches = [rows(copied, start=k * POINTS, count=POINTS) for k in range(size * 2)]
                bodies = [json.dumps({"rows": batch}).encode() for batch in batches]
                measured = {
                    "COPY": by_copy(connection, copied, batches[:size]),
                    "1 client": over_http(on, on.url, sent, bodies[:size], 1),
                    "1 client, naive": over_http(on, naive, simple, bodies[:size], 1),
                    "4 clients": over_http(on, on.url, sent, bodies[size:], 4),
                    "4 clients, naive": over_http(on, naive, simple, bodies[size:], 4),
                }
                for name, points in measured.items() if not warm else ():
                    found[name].append(points)
        medians = {name: statistics.median(values) for name, values in found.items()}
        for name, points in medians.items():
            say(f"{name:>17}: {points:>9,.0f} points/s, {points / medians['COPY']:.0%} of COPY")
        for clients in ("1 client", "4 clients"):
            say(f"{clients}: {medians[clients] / medians[f'{clients}, naive']:.1f} times the naive way")


if __name__ == "__main__":
    main()
