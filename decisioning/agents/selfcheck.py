"""Three experiments on this portal's own traffic, with truth known: does the whole walk find it?

Every request is put in an arm by a hash of its id, its latency and size are measured, and each arm's buckets go in through
the public API like anybody's telemetry. One experiment compares a thing with itself, in one the treatment asks for a fortieth
of the rows, in one for forty times as many. What the gates recommend has to match.
"""

import hashlib
import math
import statistics
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

import httpx

from decisioning.agents.client import Json, Portal, PortalError
from decisioning.literals import rfc3339

BUCKET_S = 2.0
PROBES = 1_000
WARM_UP_S = 1.0
LATENCY, SIZE, PROBE = "selfcheck_latency_ms", "selfcheck_bytes", "selfcheck_probe_ms"
_FEW, _MANY = (10, 30), (700, 1_000)
_THREADS = 4
_PACE_S = 0.01

POLICY: Json = {
    "alpha": 0.05,
    "slot_s": 2,
    "look_s": 2,
    "closed_after_s": 2,
    "persist": 3,
    "min_days": 0,
    "max_days": 1,
    "min_units": 50,
    "max_relative_se": 0.1,
    "planned_units": 2_000,
    "gates": [
        {"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "scale_above": 0.0, "delete_below": "plan"},
        {"name": "{metric}_guard", "kind": "guard", "for": "guardrail", "max_harm": "plan"},
        {"name": "density", "kind": "density", "at_least": 0.5},
    ],
}
_QUICK: Json = {"expected_every_s": 5, "freshness_target_s": 20, "temporality": "delta", "direction": "decrease"}


@dataclass(frozen=True)
class Trial:
    """One experiment with known truth. `rows`: how many rows each arm asks for, (least, most).

    right: the recommendations that match the truth, as (action, code); code "" is any.
    """

    name: str
    title: str
    hypothesis: str
    rows: dict[str, tuple[int, int]]
    minimum_effect: float
    right: Sequence[tuple[str, str]]

    def judged_right(self, action: str, code: str) -> bool:
        return any(action == a and c in ("", code) for a, c in self.right)


TRIALS = (
    Trial(
        "same",
        "Self-check: the same against itself",
        "Nothing differs, so nothing may be found.",
        {"control": _MANY, "treatment": _MANY},
        0.25,
        (("hold", "open"), ("hold", "collecting"), ("review", ""), ("delete", "not_worth_it")),
    ),
    Trial(
        "smaller",
        "Self-check: few rows against many",
        "Few rows are answered faster than many.",
        {"control": _MANY, "treatment": _FEW},
        0.05,
        (("scale", ""),),
    ),
    Trial(
        "larger",
        "Self-check: many rows against few",
        "Many rows are answered faster than few. (They are not.)",
        {"control": _FEW, "treatment": _MANY},
        0.05,
        (("delete", ""),),
    ),
)


@dataclass
class Outcome:
    """What the gates said of one trial, and what was measured: mean latency in ms and size in bytes per arm."""

    trial: Trial
    key: str
    action: str = "hold"
    code: str = "no_data"
    digest: str | None = None
    rationale: Sequence[str] = ()
    blockers: Sequence[str] = ()
    requests: dict[str, int] = field(default_factory=dict)
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    after_s: float = 0.0

    @property
    def right(self) -> bool:
        return self.trial.judged_right(self.action, self.code) and sum(self.requests.values()) > 0


def arm_of(experiment: str, request_id: str) -> str:
    """The arm of one request: a hash of its id, so that the same id always lands in the same arm.

    >>> arm_of("selfcheck-same", "a"), arm_of("selfcheck-same", "a")
    ('control', 'control')
    """
    return ("control", "treatment")[_hash(experiment, request_id) & 1]


def asked_rows(trial: Trial, experiment: str, request_id: str) -> int:
    """How many rows this request asks for: it varies, as real requests do, and depends on nothing but the id and its arm."""
    least, most = trial.rows[arm_of(experiment, request_id)]
    return least + (_hash(experiment, request_id) >> 8) % (most - least + 1)


def _hash(experiment: str, request_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{experiment}/{request_id}".encode()).digest()[:8])


class Sums:
    """Requests of one bucket by (trial, arm), from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    def add(self, trial: str, arm: str, latency_ms: float, size: int) -> None:
        with self._lock:
            self._open[trial, arm].append((latency_ms, float(size)))

    def close(self) -> dict[tuple[str, str], list[tuple[float, float]]]:
        """What was measured since the last call."""
        with self._lock:
            closed, self._open = dict(self._open), defaultdict(list)
        return closed


def rows_of(arm: str, measured: Sequence[tuple[float, float]], ts: datetime) -> list[Json]:
    """One arm's bucket as rows of the API: mean, n and sample variance of latency and of size."""
    return [
        {
            "metric": metric,
            "variant": arm,
            "ts": rfc3339(ts),
            "window_s": round(BUCKET_S),
            "value": statistics.fmean(values),
            "n": len(values),
            **({"variance": statistics.variance(values)} if len(values) > 1 else {}),
        }
        for metric, values in (
            (LATENCY, [latency for latency, _ in measured]),
            (SIZE, [size for _, size in measured]),
        )
    ]


def run(
    portal: Portal,
    *,
    team: str = "",
    suffix: str,
    clock: Callable[[], datetime],
    within_s: float = 150.0,
    told: Callable[[Sequence[Outcome], float], None] = lambda _outcomes, _seconds: None,
) -> list[Outcome]:
    """Create the three, drive them until each is decided or the time is over, stop them; raises PortalError.

    suffix: of their keys, so that it can be run again.   told: hears the state and the seconds after each bucket.
    """
    policy = portal.ensure_policy("selfcheck", POLICY, team=team or None)
    outcomes = [Outcome(trial, f"selfcheck-{trial.name}-{suffix}") for trial in TRIALS]
    try:
        probed = _probe(portal, clock)
        for outcome in outcomes:
            portal.create_experiment(_creation(outcome, policy, team))
        source = outcomes[0].key
        portal.push(source, probed)
        _drive(portal, outcomes, source, clock, within_s, told)
    finally:
        for outcome in outcomes:
            _stop(portal, outcome.key)
    return outcomes


def _creation(outcome: Outcome, policy: str, team: str) -> Json:
    trial = outcome.trial
    kpis: list[Json] = [
        {
            "metric": {"key": LATENCY, "name": "Latency of a request", "kind": "mean", "unit": "ms", **_QUICK},
            "role": "goal",
            "minimum_effect": trial.minimum_effect,
        },
        {
            "metric": {"key": SIZE, "name": "Size of an answer", "kind": "mean", "unit": "bytes", **_QUICK},
            "role": "guardrail",
            "max_harm": 0.2,
        },
    ]
    if trial is TRIALS[0]:  # its history of probes is what all requests ask for
        kpis.append(
            {
                "metric": {"key": PROBE, "name": "Latency of one probe", "kind": "gauge", "unit": "ms", **_QUICK},
                "role": "shown",
            }
        )
    return {
        "key": outcome.key,
        "name": trial.title,
        "hypothesis": trial.hypothesis,
        "policy": policy,
        "target_kpis": kpis,
        **({"team": team} if team else {}),
    }


def _probe(portal: Portal, clock: Callable[[], datetime]) -> list[Json]:
    """Measure the portal's pulse, probe by probe: rows that are worth asking for."""
    rows = []
    for _ in range(PROBES):
        began = time.perf_counter()
        portal.http.get("/healthz")
        rows.append(
            {
                "metric": PROBE,
                "variant": "control",
                "ts": rfc3339(clock()),
                "value": (time.perf_counter() - began) * 1_000,
            }
        )
    return rows


def _drive(
    portal: Portal,
    outcomes: Sequence[Outcome],
    source: str,
    clock: Callable[[], datetime],
    within_s: float,
    told: Callable[[Sequence[Outcome], float], None],
) -> None:
    sums, done = Sums(), threading.Event()
    began = time.monotonic()
    totals: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    with ThreadPoolExecutor(_THREADS) as threads:
        callers = [threads.submit(_call, portal, outcomes, source, sums, done) for _ in range(_THREADS)]
        try:
            time.sleep(WARM_UP_S)
            sums.close()  # the first calls open connections
            due = time.monotonic() + BUCKET_S
            while (elapsed := time.monotonic() - began) < within_s and not _decided(outcomes, elapsed):
                for caller in callers:
                    if caller.done():
                        caller.result()  # raises what ended it
                time.sleep(max(0.0, due - time.monotonic()))
                due, ts = time.monotonic() + BUCKET_S, clock()
                closed = sums.close()
                for outcome in outcomes:
                    _bucket(portal, outcome, closed, totals, ts)
                    _look(portal, outcome, began)
                told(outcomes, time.monotonic() - began)
        finally:
            done.set()


def _call(portal: Portal, outcomes: Sequence[Outcome], source: str, sums: Sums, done: threading.Event) -> None:
    """One caller: request after request, each for one of the trials, in the arm that its id says."""
    with httpx.Client(base_url=portal.url, headers=portal.http.headers, timeout=10, trust_env=False) as http:
        while not done.wait(_PACE_S):
            request_id = uuid.uuid4().hex
            outcome = outcomes[_hash("trial", request_id) % len(outcomes)]
            limit = asked_rows(outcome.trial, outcome.key, request_id)
            began = time.perf_counter()
            answer = http.get(f"/api/experiments/{source}/kpis", params={"metric": PROBE, "limit": limit})
            latency_ms = (time.perf_counter() - began) * 1_000
            if answer.is_success:
                arm = arm_of(outcome.key, request_id)
                sums.add(outcome.trial.name, arm, latency_ms, len(answer.content))


def _bucket(
    portal: Portal,
    outcome: Outcome,
    closed: dict[tuple[str, str], list[tuple[float, float]]],
    totals: dict[tuple[str, str], list[tuple[float, float]]],
    ts: datetime,
) -> None:
    """Send what one trial's arms measured; nothing is sent unless both measured something."""
    arms = {arm: closed.get((outcome.trial.name, arm), []) for arm in outcome.trial.rows}
    if not all(arms.values()):
        return
    portal.push(outcome.key, [row for arm, measured in arms.items() for row in rows_of(arm, measured, ts)])
    for arm, measured in arms.items():
        total = totals[outcome.trial.name, arm]
        total += measured
        outcome.requests[arm] = len(total)
        outcome.means[arm] = (statistics.fmean(m[0] for m in total), statistics.fmean(m[1] for m in total))


def _look(portal: Portal, outcome: Outcome, began: float) -> None:
    """What is recommended now."""
    found = portal.decision(outcome.key)["recommendation"]
    if (outcome.action, outcome.code) != (found["action"], found["code"]):
        outcome.after_s = time.monotonic() - began
    outcome.action, outcome.code, outcome.digest = found["action"], found["code"], found["evidence_digest"]
    outcome.rationale, outcome.blockers = found["rationale"], found["blockers"]


def _decided(outcomes: Sequence[Outcome], elapsed: float) -> bool:
    """Two have their proposal and the comparison with itself had its time: as long again, so that it could have erred."""
    same, *others = outcomes
    if any(outcome.action not in ("scale", "delete") for outcome in others):
        return False
    return same.action != "hold" or elapsed > 2 * max(outcome.after_s for outcome in others) + 10


def _stop(portal: Portal, key: str) -> None:
    try:
        portal.transition(key, "stopped")
    except PortalError as refusal:
        if refusal.status not in (404, 409):
            raise


def spread(outcome: Outcome) -> str:
    """The measured means in words, for the report.

    >>> outcome = Outcome(TRIALS[1], "k", requests={"control": 100, "treatment": 90})
    >>> outcome.means = {"control": (10.0, 4000.0), "treatment": (5.0, 400.0)}
    >>> spread(outcome)
    'control 10.00 ms, 4,000 B (100 requests); treatment 5.00 ms, 400 B (90 requests): latency -50.0%'
    """
    told = [
        f"{arm} {latency:.2f} ms, {size:,.0f} B ({outcome.requests[arm]} requests)"
        for arm, (latency, size) in outcome.means.items()
    ]
    if len(told) < 2:
        return "nothing was measured"
    change = outcome.means["treatment"][0] / max(outcome.means["control"][0], math.ulp(1.0)) - 1
    return f"{'; '.join(told)}: latency {change * 100:+.1f}%"
