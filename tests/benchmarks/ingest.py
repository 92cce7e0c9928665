"""How fast rows come in over HTTP, as a share of COPY and as a multiple of the naive way.

    uv run python -m tests.benchmarks.ingest [--rounds 5] [--bodies 10] [--home HOME]

HTTP: 1,000-point bodies with authentication, scopes, row security, idempotency keys and rate limit, 1 and 4 clients. COPY: the same rows in
binary into the same table, its triggers and partitions included, as superuser (COPY under row security is refused by PostgreSQL). Naive: DRF
serializers and bulk_create in one transaction, without HTTP, which flatters it. The three take turns; medians are compared.
Wanted: HTTP at least 25% of COPY (goal 50%) and at least 5 times the naive way.
"""

import json
import statistics
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from itertools import count
from typing import Any

import psycopg

from tests.benchmarks.scene import Caller, Scene, django, parser, rows, say, scene, seconds

POINTS = 1_000
_COPY = """
COPY metrics.experiment_kpis (experiment_id, team_id, metric, variant, ts, value, n, variance, first_received_at, received_at)
FROM STDIN (FORMAT binary)
"""


def over_http(on: Scene, experiment: dict[str, Any], bodies: list[bytes], clients: int) -> float:
    """Points a second."""
    callers = [on.caller() for _ in range(clients)]
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


def naive(experiment: dict[str, Any]) -> Callable[[list[bytes]], float]:
    """What one writes first: a serializer for each row, then bulk_create."""
    from django.db import transaction
    from django.utils import timezone
    from rest_framework import serializers

    from experiments.models import Experiment
    from telemetry.models import ExperimentKpi

    class RowIn(serializers.Serializer[Any]):
        metric = serializers.CharField(max_length=63)
        variant = serializers.CharField(max_length=63)
        ts = serializers.DateTimeField()
        value = serializers.FloatField()
        n = serializers.IntegerField(min_value=0)
        variance = serializers.FloatField(min_value=0)

    of = Experiment.objects.get(pk=experiment["id"])

    def store(bodies: list[bytes]) -> None:
        for body in bodies:
            parsed = RowIn(data=json.loads(body)["rows"], many=True)
            parsed.is_valid(raise_exception=True)
            now = timezone.now()
            known = {"experiment_id": of.pk, "team_id": of.team_id, "first_received_at": now, "received_at": now}
            with transaction.atomic():
                ExperimentKpi.objects.bulk_create(
                    [ExperimentKpi(**known, **row) for row in parsed.validated_data],
                    update_conflicts=True,
                    unique_fields=["experiment_id", "metric", "variant", "ts"],
                    update_fields=["value", "n", "variance", "received_at"],
                )

    return lambda bodies: len(bodies) * POINTS / seconds(lambda: store(bodies))


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--rounds", type=int, default=5)
    known.add_argument("--bodies", type=int, default=10, help="bodies of 1,000 points a round and way")
    arguments = known.parse_args()
    with scene(arguments) as on:
        django(on.installation.home)
        copied, sent, simple = on.experiment(), on.experiment(), on.experiment()
        simply = naive(simple)
        found: dict[str, list[float]] = {"COPY": [], "1 client": [], "4 clients": [], "naive": []}
        place = count(0, POINTS)
        with psycopg.connect(on.dsn("superuser")) as connection:
            for warm in [True] + [False] * arguments.rounds:
                size = 2 if warm else arguments.bodies
                batches = [rows(copied, start=next(place), count=POINTS) for _ in range(size * 2)]
                bodies = [json.dumps({"rows": batch}).encode() for batch in batches]
                measured = {
                    "COPY": by_copy(connection, copied, batches[:size]),
                    "1 client": over_http(on, sent, bodies[:size], 1),
                    "4 clients": over_http(on, sent, bodies[size:], 4),
                    "naive": simply(bodies[: max(1, size // 2)]),
                }
                for name, points in measured.items() if not warm else ():
                    found[name].append(points)
        medians = {name: statistics.median(values) for name, values in found.items()}
        for name, points in medians.items():
            say(
                f"{name:>10}: {points:>9,.0f} points/s, {points / medians['COPY']:.0%} of COPY, {points / medians['naive']:.1f} x naive"
            )


if __name__ == "__main__":
    main()
