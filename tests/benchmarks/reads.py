"""How much the experiment document costs above the least a view can do, and whether that grows with the table.

    uv run python -m tests.benchmarks.reads [--requests 300] [--rows 1000000] [--more 10000000] [--home HOME]

The document (`GET /api/experiments/{id}`) takes turns with `GET /api/schemas` - the same server, middleware, transaction, key and role, and no
query beside the `SELECT` that binds the key - and with the document under If-None-Match. p95 of each; wanted: at most 3.5 times, goal 2.
With --more the table is then filled up to that many rows (COPY, as superuser) and read again; wanted: at most 1.2 times.
"""

import time
from typing import Any

import psycopg

from tests.benchmarks.scene import NOW, Caller, Scene, p95, parser, rows, say, scene

_FILL = """
INSERT INTO metrics.experiment_kpis (experiment_id, team_id, metric, variant, ts, value, n, variance)
SELECT e.id, e.team_id, %(metric)s, v, %(now)s::timestamptz - make_interval(mins => m::int), 3 + m %% 7, 100, 9
FROM (SELECT id, team_id FROM metadata.experiments WHERE id = ANY (%(ids)s)) AS e, unnest('{control,treatment}'::text[]) AS v,
  generate_series(%(first)s::int, %(last)s::int) AS m
"""


def measured(caller: Caller, path: str, requests: int) -> dict[str, list[float]]:
    """Seconds of each request, the kinds in turns."""
    _, headers, _ = caller("GET", path)
    tag = headers["ETag"]
    kinds: dict[str, tuple[str, dict[str, str]]] = {
        "least": ("/api/schemas", {}),
        "document": (path, {}),
        "not modified": (path, {"If_None_Match": tag}),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(requests + 20):
        for name, (address, sent) in kinds.items():
            began = time.perf_counter()
            status, _, _ = caller("GET", address, None, **sent)
            taken = time.perf_counter() - began
            if status not in (200, 304):
                raise RuntimeError(f"{address}: {status}")
            if turn >= 20:
                found[name].append(taken)
    return found


def told(found: dict[str, list[float]]) -> float:
    """Say the ratios; the document's p95 over the least's."""
    least = p95(found["least"])
    for name, values in found.items():
        say(f"{name:>14}: p95 {p95(values) * 1000:6.2f} ms, {p95(values) / least:.2f} times the least")
    return p95(found["document"]) / least


def fill(on: Scene, experiments: list[dict[str, Any]], total: int) -> None:
    """Rows for these experiments until the table holds `total`."""
    with psycopg.connect(on.dsn("superuser"), autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # no triggers: these rows are ballast
        (held,) = connection.execute("SELECT count(*) FROM metrics.experiment_kpis").fetchone() or (0,)
        (mine,) = connection.execute(
            "SELECT count(*) FROM metrics.experiment_kpis WHERE experiment_id = %s", [experiments[0]["id"]]
        ).fetchone() or (0,)  # fmt: skip
        first, last = mine // 2, mine // 2 + max(0, total - held) // (2 * len(experiments))
        for start in range(first, last, 20_000):
            connection.execute(
                _FILL,
                {
                    "metric": experiments[0]["metric"],
                    "now": NOW,
                    "ids": [experiment["id"] for experiment in experiments],
                    "first": start + 1,
                    "last": min(start + 20_000, last),
                },
            )
        connection.execute("VACUUM (ANALYZE) metrics.experiment_kpis")  # now, and not while somebody reads
        connection.execute("CHECKPOINT")
    time.sleep(10)


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--requests", type=int, default=300)
    known.add_argument("--rows", type=int, default=1_000_000)
    known.add_argument("--more", type=int, default=0)
    arguments = known.parse_args()
    with scene(arguments) as on:
        read = on.experiment(every_s=900, days=10)
        caller = on.caller()
        caller.json("POST", f"/api/experiments/{read['id']}/kpis", {"rows": rows(read, start=0, count=2_000)})
        others = [on.experiment(every_s=900, days=10) for _ in range(20)]
        path = f"/api/experiments/{read['id']}"
        fill(on, others, arguments.rows)
        say(f"{arguments.rows:,} rows")
        first = measured(on.caller(), path, arguments.requests)
        told(first)
        if arguments.more:
            fill(on, others, arguments.more)
            say(f"{arguments.more:,} rows")
            second = measured(on.caller(), path, arguments.requests)  # the server closes what is idle
            grown = told(second) / (p95(first["document"]) / p95(first["least"]))
            say(f"growth of the document, beside the least: {grown:.2f} times")


if __name__ == "__main__":
    main()
