"""The types of events that are understood, each in its version, and the shape of their `data` as JSON Schema."""

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from telemetry.row import Count, Key, Sent

ExperimentRef = Annotated[str, Meta(min_length=1, max_length=63)] | Annotated[int, Meta(ge=1, le=2**63 - 1)]
Instant = Annotated[dt.datetime, Meta(tz=True)]


class MetricObserved(Sent, frozen=True, kw_only=True):
    """One row of one experiment. `ts` is the END of the bucket it covers; `experiment` a number or a key. Besides `value` one spread, or `sum` with
    `sum_squares` in place of both."""

    experiment: ExperimentRef


class MetricsObserved(msgspec.Struct, frozen=True):
    """Many rows of one experiment, at most 10,000."""

    experiment: ExperimentRef
    rows: list[Sent]


class ExposureCounted(msgspec.Struct, frozen=True):
    """How many units a variant was assigned in the bucket that ended at `ts`."""

    experiment: ExperimentRef
    variant: Key
    ts: Instant
    n: Count


class _Baseline(msgspec.Struct):
    mean: float
    stddev: float


class _Target(msgspec.Struct):
    at_least: float | None = None
    at_most: float | None = None


class _Metric(msgspec.Struct):
    key: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,62}$")]
    name: str = ""
    kind: Literal["mean", "proportion", "ratio", "gauge"] = "mean"
    unit: str = ""
    direction: Literal["increase", "decrease"] | None = "increase"
    temporality: Literal["delta", "cumulative"] = "delta"
    expected_every_s: int = 900
    expected: dict[str, str | int] | None = None
    freshness_target_s: int = 900


class _TargetKpi(msgspec.Struct):
    metric: str | _Metric
    role: Literal["goal", "guardrail", "shown", "exposure"] = "goal"
    minimum_effect: float | None = None
    max_harm: float | None = None
    plausible_to: float | None = None
    baseline: _Baseline | None = None
    target: _Target | None = None
    sparse: bool = False


class _Variant(msgspec.Struct):
    key: Annotated[str, Meta(pattern="^(?=.*[a-z])[a-z0-9][a-z0-9-]{0,62}$")]
    weight: Annotated[float, Meta(gt=0)] = 1.0
    control: bool = False
    name: str = ""


class ExperimentCreated(msgspec.Struct):
    """A new experiment, created as POST /api/experiments does; only name, hypothesis and target_kpis are required."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    hypothesis: Annotated[str, Meta(min_length=1, max_length=10_000)]
    target_kpis: Annotated[list[_TargetKpi | str], Meta(min_length=1)]
    key: str | None = None
    team: str | None = None
    owner: str | None = None
    policy: str | None = None
    variants: list[_Variant] = []
    expected_units_per_day: float | None = None
    start: bool = True
    started_at: Instant | None = None


TYPES: Mapping[str, type[msgspec.Struct]] = {
    "decisioning.metric.observed.v1": MetricObserved,
    "decisioning.metric.observed_many.v1": MetricsObserved,
    "decisioning.exposure.counted.v1": ExposureCounted,
    "decisioning.experiment.created.v1": ExperimentCreated,
}
"""Adding a field to a type keeps its version, since unknown fields are ignored; taking one away or changing its meaning makes
a new version beside the old one."""


def schema(type_: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the data of one type. Raises KeyError for a type that is not understood."""
    found = msgspec.json.schema(TYPES[type_])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"/api/schemas/{type_}",
        "title": type_,
        **found,
    }
