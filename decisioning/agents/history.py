"""Recorded experiments: a CSV file in one of two shapes, and a plan, become calls of the public API.

Wide, one line per arm pair and time, cumulative since the start: experiment_id, variant_id (the treatment; the control
is shared), metric_id, time_since_start (days), count_c, count_t, mean_c, mean_t, variance_c, variance_t.
Long, one line per row: experiment, metric, variant, ts, value, and n, variance where there are units.

Wide files know no dates: each experiment is moved so that its newest checkpoint is now. Long files keep their own dates
unless the plan says `"shift": true`.
"""

import csv
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

from decisioning.agents.client import Json, Portal, PortalError
from decisioning.literals import rfc3339

type Shape = Literal["wide", "long"]

WIDE = [
    "experiment_id",
    "variant_id",
    "metric_id",
    "time_since_start",
    "count_c",
    "count_t",
    "mean_c",
    "mean_t",
    "variance_c",
    "variance_t",
]
LONG = ["experiment", "metric", "variant", "ts", "value"]

_DAILY: Json = {"temporality": "cumulative", "expected_every_s": 86_400, "freshness_target_s": 86_400}
WIDE_PLAN: Json = {
    "prefix": "asos-",
    "target_kpis": [
        {"metric": "metric_4", "role": "goal", "minimum_effect": 0.02},
        {"metric": "metric_1", "role": "guardrail", "max_harm": 0.01},
        {"metric": "metric_2", "role": "shown"},
        {"metric": "metric_3", "role": "shown"},
    ],
    "metrics": [
        {
            "key": "metric_1",
            "name": "Metric 1 (share of users)",
            "kind": "proportion",
            "direction": "increase",
            **_DAILY,
        },
        {"key": "metric_2", "name": "Metric 2 (count per user)", "kind": "mean", "direction": "increase", **_DAILY},
        {"key": "metric_3", "name": "Metric 3 (count per user)", "kind": "mean", "direction": "increase", **_DAILY},
        {"key": "metric_4", "name": "Metric 4 (amount per user)", "kind": "mean", "direction": "increase", **_DAILY},
    ],
}
_MOST = 2**63 - 1
_DUST = 1e-12  # what adding floats leaves beyond a bound; the portal rounds it
_NOTHING_NEW_AFTER_S = 15.0


class FileRefused(ValueError):
    """The file or the plan cannot be read at all; the message says what it must look like."""


@dataclass(frozen=True)
class Plan:
    """How recorded experiments are set up here; `plan_of` makes one from the JSON of --plan.

    metrics: what each metric is, by key, as `POST /api/experiments` takes it.   target_kpis: as there, metrics by key.
    weights: planned share per arm, 1 where it is not named.   experiments: per recorded id, what differs (name,
    hypothesis, weights, started_at and whatever else the create call takes).   shift: move each to end now; None: the
    shape decides.
    """

    metrics: Mapping[str, Json] = field(default_factory=dict)
    target_kpis: Sequence[Json] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    experiments: Mapping[str, Json] = field(default_factory=dict)
    prefix: str = ""
    control: str = "control"
    shift: bool | None = None

    def metric(self, key: str) -> Json:
        """What the metric is; one that the plan does not name is a mean without units or direction of its own."""
        return dict(self.metrics.get(key, {"key": key, "name": key}))


@dataclass(frozen=True, slots=True)
class Sample:
    """One row to be: `at` is counted from the start of its experiment. `line` is where the file says so."""

    line: int
    metric: str
    arm: str
    at: timedelta
    value: float
    n: int | None
    variance: float | None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that does not go in."""

    line: int
    reason: str


@dataclass
class Recorded:
    """One experiment of a file. `began` is its start where the file has dates."""

    id: str
    samples: list[Sample] = field(default_factory=list)
    began: datetime | None = None

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(sample.arm for sample in self.samples))

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(sample.metric for sample in self.samples))

    @property
    def length(self) -> timedelta:
        """From the start to the newest sample."""
        return max(sample.at for sample in self.samples)

    def rows(self, started_at: datetime) -> list[Json]:
        """The samples as rows of the API, in their order."""
        return [
            {
                "metric": sample.metric,
                "variant": sample.arm,
                "ts": rfc3339(started_at + sample.at),
                "value": sample.value,
                **({} if sample.n is None else {"n": sample.n}),
                **({} if sample.variance is None else {"variance": sample.variance}),
            }
            for sample in self.samples
        ]


@dataclass(frozen=True)
class History:
    """What a file holds."""

    shape: Shape
    experiments: list[Recorded]
    bad: list[BadLine]

    @property
    def samples(self) -> int:
        return sum(len(recorded.samples) for recorded in self.experiments)


# Reading ----------------------------------------------------------------------------------------------------


def plan_of(given: Mapping[str, Any] | None, shape: Shape) -> Plan:
    """The plan of a --plan file, or the default of the shape. Raises FileRefused.

    `metrics` is a list of metric objects; a metric object in place of a key in `target_kpis` works as in the API.
    """
    body = dict(given if given is not None else WIDE_PLAN if shape == "wide" else {})
    known = {"metrics", "target_kpis", "weights", "experiments", "prefix", "control", "shift"}
    if unknown := sorted(set(body) - known):
        raise FileRefused(f"The plan has no setting {unknown[0]!r}. Known are {', '.join(sorted(known))}.")
    metrics = {str(metric["key"]): dict(metric) for metric in body.get("metrics", ())}
    targets: list[Json] = []
    for kpi in body.get("target_kpis", ()):
        entry = {"role": "goal", **(kpi if isinstance(kpi, Mapping) else {"metric": kpi})}
        if isinstance(entry.get("metric"), Mapping):
            metrics[str(entry["metric"]["key"])] = dict(entry["metric"])
            entry["metric"] = entry["metric"]["key"]
        targets.append(entry)
    if given is not None and not targets:
        raise FileRefused('The plan has no target_kpis: add [{"metric": "...", "role": "goal"}].')
    return Plan(
        metrics=metrics,
        target_kpis=targets,
        weights={str(arm): float(weight) for arm, weight in body.get("weights", {}).items()},
        experiments={str(key): dict(more) for key, more in body.get("experiments", {}).items()},
        prefix=str(body.get("prefix", WIDE_PLAN["prefix"] if shape == "wide" else "")),
        control=str(body.get("control", "control")),
        shift=body.get("shift"),
    )


def shape_of(header: str) -> Shape:
    """Which of the two shapes a header line announces. Raises FileRefused.

    >>> shape_of("experiment,metric,variant,ts,value,n,variance")
    'long'
    """
    columns = set(_columns(header))
    for shape, needed in (("wide", WIDE), ("long", LONG)):
        if columns >= set(needed):
            return cast("Shape", shape)
    raise FileRefused(f"The first line must name the columns {', '.join(WIDE)}, or {', '.join(LONG)}, n, variance.")


def read(lines: Iterable[str], plan: Plan) -> History:
    """Every experiment of a file in its order, samples by time, and the lines that are no good. Raises FileRefused."""
    source = iter(lines)
    header = next(source, "")
    shape = shape_of(header)
    parse = _wide if shape == "wide" else _long
    reader = csv.reader(source)
    columns = _columns(header)
    found: dict[str, dict[tuple[str, str, timedelta], Sample]] = {}
    bad: list[BadLine] = []
    for cells in reader:
        line = reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        try:
            name, samples = parse(_record(columns, cells), line, plan)
            held = found.setdefault(name, {})
            for sample in samples:
                _check_against(held.get((sample.metric, sample.arm, sample.at)), sample)
            for sample in samples:
                held.setdefault((sample.metric, sample.arm, sample.at), sample)
        except _Bad as problem:
            bad.append(BadLine(line, str(problem)))
    experiments = []
    for name, held in found.items():
        if not held:
            continue
        recorded = Recorded(name, sorted(held.values(), key=lambda sample: (sample.at, sample.metric, sample.arm)))
        if shape == "long":
            recorded.began = _rebase(recorded, plan)
        experiments.append(recorded)
    return History(shape, experiments, bad)


class _Bad(ValueError):
    """Why one line is no good."""


def _record(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(columns):
        raise _Bad(f"{len(cells)} cells where the header has {len(columns)}")
    return dict(zip(columns, (cell.strip() for cell in cells), strict=True))


def _wide(record: Mapping[str, str], line: int, plan: Plan) -> tuple[str, list[Sample]]:
    days = _number(record["time_since_start"], "time_since_start")
    if not 0 < days < 36_500:
        raise _Bad(f"time_since_start is {days:g} days, must be above 0")
    at = timedelta(seconds=round(days * 86_400))
    metric = _metric_key(f"metric_{record['metric_id']}")
    for side, arm in (("c", plan.control), ("t", "treatment")):
        if not record[f"count_{side}"]:
            raise _Bad(f"{arm}: n is missing")
    arms = ((plan.control, "c"), (_key(f"arm-{record['variant_id']}"), "t"))
    return _name(record["experiment_id"]), [
        _sample(
            line,
            plan,
            metric=metric,
            arm=arm,
            at=at,
            value=record[f"mean_{side}"],
            n=record[f"count_{side}"],
            variance=record[f"variance_{side}"],
        )
        for arm, side in arms
    ]


def _long(record: Mapping[str, str], line: int, plan: Plan) -> tuple[str, list[Sample]]:
    try:
        ts = datetime.fromisoformat(record["ts"])
    except ValueError:
        raise _Bad(f"ts {record['ts']!r} is no RFC 3339 time") from None
    if ts.tzinfo is None:
        raise _Bad(f"ts {record['ts']!r} has no offset, write Z for UTC")
    sample = _sample(
        line,
        plan,
        metric=_metric_key(record["metric"]),
        arm=_key(record["variant"] or "all"),
        at=ts - _EPOCH,
        value=record["value"],
        n=record.get("n", ""),
        variance=record.get("variance", ""),
    )
    return _name(record["experiment"]), [sample]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _rebase(recorded: Recorded, plan: Plan) -> datetime:
    """Count a long file's samples from the start of the first bucket instead of from 1970; returns that start."""
    own = plan.experiments.get(recorded.id, {}).get("started_at")
    first = recorded.samples[0]
    bucket = timedelta(seconds=float(plan.metric(first.metric).get("expected_every_s", 900)))
    began = datetime.fromisoformat(own).astimezone(UTC) if own else _EPOCH + first.at - bucket
    since = began - _EPOCH
    recorded.samples = [
        Sample(s.line, s.metric, s.arm, s.at - since, s.value, s.n, s.variance) for s in recorded.samples
    ]
    return began


def _sample(
    line: int, plan: Plan, *, metric: str, arm: str, at: timedelta, value: str, n: str, variance: str
) -> Sample:
    kind = plan.metric(metric).get("kind", "mean")
    units = _number(n, f"{arm}: n") if n else None
    figure = _number(value, f"{arm}: value")
    spread = _number(variance, f"{arm}: variance") if variance else None
    if units is not None and not (units == int(units) and 0 <= units <= _MOST):
        raise _Bad(f"{arm}: n is {n}, must be a whole number of units, 0 or more")
    if spread is not None and spread < -_DUST * max(1.0, figure * figure):
        raise _Bad(f"{arm}: variance is {variance}, must not be negative")
    if kind == "proportion" and not -_DUST <= figure <= 1 + _DUST:
        raise _Bad(f"{arm}: value is {value}, a proportion lies between 0 and 1")
    if kind == "mean" and spread is None and units is not None and units >= 2:
        raise _Bad(f"{arm}: the variance of {metric} is missing")
    return Sample(line, metric, arm, at, figure, None if units is None else int(units), spread)


def _check_against(held: Sample | None, sample: Sample) -> None:
    """The shared control stands in every arm's line; it has to be the same there."""
    if held is None:
        return
    pairs = ((held.value, sample.value), (held.n, sample.n), (held.variance, sample.variance))
    if not all(a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9)) for a, b in pairs):
        raise _Bad(f"{sample.arm}: {sample.metric} contradicts line {held.line}")


def _number(text: str, what: str) -> float:
    if not text:
        raise _Bad(f"{what} is missing")
    try:
        number = float(text)
    except ValueError:
        raise _Bad(f"{what} is {text!r}, no number") from None
    if not math.isfinite(number):
        raise _Bad(f"{what} is {text}, must be finite")
    return number


def _columns(header: str) -> list[str]:
    return [column.strip() for column in next(csv.reader([header.lstrip("\ufeff")]), [])]


def _name(text: str) -> str:
    if not text:
        raise _Bad("the experiment is not named")
    return text


def _key(text: str, word: str = "arm") -> str:
    """A key of an experiment or a variant as docs/api.md wants it, as near to the text as it can be.

    >>> _key("One-Page Checkout!"), _key("2")
    ('one-page-checkout', 'arm-2')
    """
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")
    if not slug:
        raise _Bad(f"{text!r} makes no key: it has no letter or digit")
    return slug if re.search("[a-z]", slug) else f"{word}-{slug}"


def _metric_key(text: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:63].rstrip("_")
    if not slug or not slug[0].isalpha():
        raise _Bad(f"{text!r} makes no metric key: it must begin with a letter")
    return slug


# Bringing in ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """What the portal recommends for one treatment of one experiment that was brought in."""

    experiment: str
    arm: str
    action: str
    code: str
    state: str
    proposed_at: str | None
    first_stable_at: str | None
    reason: str
    digest: str | None


@dataclass
class Brought:
    """What became of one experiment of the file."""

    recorded: Recorded
    key: str
    existed: bool = False
    accepted: int = 0
    duplicates: int = 0
    refused: list[BadLine] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problem: str = ""


def creation(recorded: Recorded, plan: Plan, *, now: datetime, shape: Shape, team: str = "", policy: str = "") -> Json:
    """The body of `POST /api/experiments` for one recorded experiment."""
    own = dict(plan.experiments.get(recorded.id, {}))
    weights = {**plan.weights, **own.pop("weights", {})}
    targets = [dict(kpi) for kpi in plan.target_kpis]
    named = {kpi["metric"] for kpi in targets}
    shown = [key for key in recorded.metrics if key not in named]
    if not targets:  # no plan for a long file: the first metric decides, which the table says
        targets, shown = [{"metric": shown[0], "role": "goal"}], shown[1:]
    targets += [{"metric": key, "role": "shown"} for key in shown]
    for kpi in targets:
        if len(plan.metric(kpi["metric"])) > 2:
            kpi["metric"] = plan.metric(kpi["metric"])
    arms = recorded.arms
    if plan.control in arms:
        arms = [plan.control, *sorted(arm for arm in arms if arm != plan.control)]
    started = now - recorded.length if _shifted(plan, shape) or recorded.began is None else recorded.began
    body = {
        "key": key_of(recorded, plan),
        "name": f"Recorded experiment {recorded.id}",
        "hypothesis": "Brought in from a recorded history; its hypothesis was not recorded.",
        "variants": [
            {"key": arm, "weight": weights.get(arm, 1.0), **({"control": True} if arm == plan.control else {})}
            for arm in arms
        ],
        "target_kpis": targets,
        "start": True,
        "started_at": rfc3339(started),
    }
    return body | ({"team": team} if team else {}) | ({"policy": policy} if policy else {}) | own


def bring_in(
    portal: Portal,
    history: History,
    plan: Plan,
    *,
    now: datetime,
    team: str = "",
    policy: str = "",
    sent: Callable[[int], None] = lambda _rows: None,
) -> Iterator[Brought]:
    """Create each experiment, or use the one that has its key, and send its rows; bad ones are listed, good ones go in.

    Running it again changes nothing: an existing experiment keeps its start, so the same rows come at the same times.
    """
    for recorded in history.experiments:
        brought = Brought(recorded, key_of(recorded, plan))
        body = creation(recorded, plan, now=now, shape=history.shape, team=team, policy=policy)
        try:
            try:
                document = portal.create_experiment(body)
                brought.warnings = list(document.get("warnings", ()))
            except PortalError as refusal:
                if refusal.code != "key_taken":
                    raise
                document, brought.existed = portal.experiment(brought.key), True
            started = datetime.fromisoformat(str(document["started_at"]))
            if recorded.began is not None and not _shifted(plan, history.shape):
                started = recorded.began
            receipt = portal.push(brought.key, recorded.rows(started), atomic=False, sent=sent)
        except PortalError as refusal:
            brought.problem = str(refusal)
        else:
            brought.accepted, brought.duplicates = receipt.accepted, receipt.duplicates
            brought.refused = [
                BadLine(recorded.samples[place].line, f"{recorded.samples[place].arm}: {detail}")
                for place, (_code, detail) in receipt.refused.items()
            ]
        yield brought


def settle(
    portal: Portal,
    brought: Sequence[Brought],
    *,
    within_s: float = 300.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    settled: Callable[[str], None] = lambda _key: None,
) -> list[str]:
    """Wait until each is evaluated with all that was sent; returns those that were not within the time."""
    asked_at = clock()
    before = {each.key: _newest_evaluation(portal, each.key) for each in brought if each.accepted}
    waiting = {each.key: portal.evaluate(each.key) for each in brought}
    while waiting and clock() - asked_at <= within_s:
        for key, slot in list(waiting.items()):
            newest = _newest_evaluation(portal, key)
            # The slot may have been judged already, before the last rows: then there comes a newer judgement of it, unless
            # they changed nothing, which a tick or two would have shown.
            news = key not in before or newest != before[key] or clock() - asked_at > _NOTHING_NEW_AFTER_S
            if newest and news and _instant(newest["slot"]) >= _instant(slot):
                del waiting[key]
                settled(key)
        if waiting:
            sleep(0.5)
    return list(waiting)


def _newest_evaluation(portal: Portal, key: str) -> Json | None:
    found: list[Json] = portal.get(f"/api/experiments/{key}/evaluations", limit=1)["results"]
    return found[0] if found else None


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def arms(portal: Portal, key: str) -> list[Arm]:
    """What is recommended for each treatment of one experiment."""
    found = portal.decision(key)
    return [
        Arm(
            experiment=key,
            arm=str(each["variant"]),
            action=each["action"],
            code=each["code"],
            state=each["state"],
            proposed_at=each["proposed_at"],
            first_stable_at=each["first_stable_at"],
            reason=" ".join(_reasons(each)),
            digest=each["evidence_digest"],
        )
        for each in found["variants"] or [found["recommendation"]]
    ]


def _reasons(recommendation: Json) -> list[str]:
    """Why, in one or two sentences: of a hold what it waits for, else the verdict and the figure it rests on."""
    told: list[str] = recommendation["rationale"]
    if recommendation["action"] == "hold" and recommendation["blockers"]:
        told = recommendation["blockers"]
    arm = recommendation["variant"]
    own = [line.partition("): ")[2] for line in told if line.startswith(f"{arm} (")]
    return (own or told)[:2]


def key_of(recorded: Recorded, plan: Plan) -> str:
    """The experiment's key in the portal."""
    slug = _key(f"{plan.prefix}{recorded.id}", "experiment")
    return str(plan.experiments.get(recorded.id, {}).get("key", slug))


def _shifted(plan: Plan, shape: Shape) -> bool:
    return plan.shift if plan.shift is not None else shape == "wide"
