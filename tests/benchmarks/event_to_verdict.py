"""How long it takes from a row to the decision it changes, among many running experiments.

    uv run python -m tests.benchmarks.event_to_verdict [--experiments 1000] [--changes 20] [--home HOME]

Every experiment has a threshold gate on `bench_errors`. A change is one POST of a row above the threshold; it has arrived when
`GET .../decision` proposes delete, polled 20 times a second. Printed beside it: the time of one such request, the least anything can take.
Wanted: p95 under 5 s with 1,000 experiments.
"""

import json
import statistics
import time
from datetime import UTC, datetime, timedelta

from tests.benchmarks.scene import Caller, Scene, p95, parser, say, scene

_METRIC = {
    "key": "bench_errors",
    "name": "Errors",
    "kind": "gauge",
    "direction": "decrease",
    "expected_every_s": 1,
    "freshness_target_s": 86_400,
}
_KPI = {"metric": "bench_errors", "role": "goal", "target": {"at_most": 0.05}}
_POLICY = {"gates": [{"name": "errors", "kind": "threshold", "metric": "bench_errors", "at_most": 0.05, "times": 1}]}


def prepare(on: Scene, count: int) -> list[int]:
    """Running experiments with one row each; the first one makes the policy."""
    caller = on.caller()
    name = f"bench-{time.time_ns()}"
    caller("POST", "/api/metrics", json.dumps(_METRIC).encode())  # there already when the home is not new
    caller.json("POST", "/api/policies", {"name": name, "team": "bench", "body": _POLICY})
    made = []
    for index in range(count):
        body = {
            "name": f"{name} {index}",
            "hypothesis": "It is seen soon",
            "policy": name,
            "target_kpis": [_KPI],
            "started_at": (datetime.now(UTC) - timedelta(hours=2)).isoformat(),
        }
        made.append(int(caller.json("POST", "/api/experiments", body)["id"]))
    for pk in made:
        send(caller, pk, 0.01, ts=datetime.now(UTC) - timedelta(minutes=30))
    return made


def send(caller: Caller, pk: int, value: float, *, ts: datetime) -> None:
    row = {"metric": "bench_errors", "variant": "all", "ts": ts.isoformat(), "value": value}
    caller.json("POST", f"/api/experiments/{pk}/kpis", {"rows": [row]})


def action(caller: Caller, pk: int) -> tuple[str, bool]:
    """What is recommended, and whether anything has been judged."""
    shown = json.loads(caller("GET", f"/api/experiments/{pk}/decision")[2])["recommendation"]
    return shown["action"], shown["evidence_digest"] is not None


def change(caller: Caller, pk: int, *, ts: datetime, patience_s: float) -> float:
    """Seconds from the POST of a bad row until its experiment should be deleted."""
    began = time.perf_counter()
    send(caller, pk, 0.2, ts=ts)
    while action(caller, pk)[0] != "delete":
        if time.perf_counter() - began > patience_s:
            raise RuntimeError(f"experiment {pk} is not proposed for deletion after {patience_s:g} s")
        time.sleep(0.05)
    return time.perf_counter() - began


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--experiments", type=int, default=1_000)
    known.add_argument("--changes", type=int, default=20)
    arguments = known.parse_args()
    with scene(arguments) as on:
        made = prepare(on, arguments.experiments)
        caller = on.caller()
        deadline = time.monotonic() + 300
        while not action(caller, made[-1])[1]:
            if time.monotonic() > deadline:
                raise RuntimeError("The first look has not been judged.")
            time.sleep(1)
        # A row behind the newest slot is judged at once; a newer one waits for its slot, which is not what is measured.
        ts = datetime.now(UTC) - timedelta(minutes=20)
        waits, requests = [], []
        for pk in made[: arguments.changes]:
            waits.append(change(caller, pk, ts=ts, patience_s=60))
            began = time.perf_counter()
            action(caller, pk)
            requests.append(time.perf_counter() - began)
        median = statistics.median(waits)
        say(
            f"{len(made):,} experiments; from row to decision: median {median:.2f} s, p95 {p95(waits):.2f} s; wanted: under 5 s"
        )
        say(f"p95 is {p95(waits) / p95(requests):,.0f} times that of one request ({p95(requests) * 1000:.0f} ms)")


if __name__ == "__main__":
    main()
