"""Writing down what is tried: an experiment with its variants, its target KPIs and the metrics that do not exist yet.

The policy that judges it is bound by the caller (`gates.policies.bind`), in the same transaction.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils.text import slugify
from msgspec import UNSET, UnsetType

from decisioning.access.models import KEY_PATTERN, Team
from decisioning.access.principal import Principal
from decisioning.access.quotas import refuse_one_more
from decisioning.ledger.outbox import publish
from decisioning.refusals import Fault, Refused
from experiments import expected as words
from experiments import feeds, registry
from experiments.models import Experiment, Metric, TargetKpi, Variant

METRIC_KEY_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"
MOST_VARIANTS = 20
MOST_KPIS = 50
MAY_BE_AHEAD = timedelta(minutes=5)
MOST_LATE_S = 10 * 366 * 86_400
LARGEST, SMALLEST = 1e100, 1e-100
"""Between these lies the magnitude of every number but 0 that is kept as a float: three of them can be multiplied, which is what sums
of squares do."""


class PlanRefused(Refused):
    """Nothing was made or changed: of the plan, or of a metric."""


@dataclass(frozen=True, kw_only=True)
class NewMetric:
    """A metric as somebody describes it; what is left unset takes the model's default, or is what the registry has."""

    key: str
    name: str | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    unit: str | UnsetType = UNSET
    direction: str | UnsetType | None = UNSET
    temporality: str | UnsetType = UNSET
    expected_every_s: int | UnsetType = UNSET
    expected: Mapping[str, Any] | UnsetType = UNSET
    """When its buckets end, as experiments.expected reads it; `expected_every_s` is the same for seconds alone."""
    freshness_target_s: int | UnsetType = UNSET
    counts_assignment: bool | UnsetType = UNSET
    definition: str | UnsetType = UNSET
    bounds: Mapping[str, float | None] | UnsetType | None = UNSET
    """`{min, max}` of a row's value."""
    capped_at: float | UnsetType | None = UNSET
    retired_at: datetime | UnsetType | None = UNSET
    replaced_by: str | UnsetType | None = UNSET
    """Key of its successor."""

    def given(self) -> dict[str, object]:
        """Only what was said."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not UNSET}

    def columns(self) -> dict[str, object]:
        """What was said, as the model keeps it, without key, schedule and successor."""
        apart = ("key", "bounds", "replaced_by", *_SCHEDULE)
        said = {name: value for name, value in self.given().items() if name not in apart}
        if self.bounds is UNSET:
            return said
        bounds = self.bounds or {}
        return said | {"minimum": bounds.get("min"), "maximum": bounds.get("max")}

    def schedule(self) -> dict[str, Any] | None:
        """What was said of when its buckets end, as it is kept; None: nothing."""
        if self.expected is not UNSET:
            return words.normal(self.expected)
        return None if self.expected_every_s is UNSET else {"every_s": self.expected_every_s}


@dataclass(frozen=True, kw_only=True)
class NewVariant:
    """One arm. `weight` is its planned share on any positive scale."""

    key: str
    weight: float = 1.0
    control: bool = False
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class NewKpi:
    """One target KPI; a metric key that nobody knows yet becomes a mean that should increase."""

    metric: str | NewMetric
    role: str = TargetKpi.Role.GOAL
    minimum_effect: float | None = None
    max_harm: float | None = None
    plausible_to: float | None = None
    baseline_mean: float | None = None
    baseline_stddev: float | None = None
    target_at_least: float | None = None
    target_at_most: float | None = None
    sparse: bool = False

    @property
    def key(self) -> str:
        return self.metric if isinstance(self.metric, str) else self.metric.key

    @property
    def has_target(self) -> bool:
        return self.target_at_least is not None or self.target_at_most is not None


@dataclass(frozen=True, kw_only=True)
class NewExperiment:
    """What `create` needs. Without a key one is made from the name; without variants there are control and treatment,
    or the single variant `all` when every KPI has a target. `started_at` may lie in the past, within the retention."""

    name: str
    hypothesis: str
    owner: str
    target_kpis: Sequence[NewKpi]
    key: str = ""
    variants: Sequence[NewVariant] = field(default=())
    expected_units_per_day: float | None = None
    start: bool = True
    started_at: datetime | None = None


_OPEN = (Experiment.Status.DRAFT, Experiment.Status.RUNNING, Experiment.Status.PAUSED)


def create(new: NewExperiment, *, team: Team, by: Principal, now: datetime) -> Experiment:
    """The experiment with all its parts, running unless `start` is false.

    Raises PlanRefused: `key_taken`, or `invalid` with one entry in `errors` for each bad value; QuotaExceeded.
    """
    problems = list(_problems(new, now))
    if problems:
        raise PlanRefused.of(*problems)
    refuse_one_more(team, "experiments", has=Experiment.objects.filter(team=team, status__in=_OPEN).count())
    started_at = new.started_at if new.started_at or not new.start else now
    experiment = Experiment(
        name=new.name,
        hypothesis=new.hypothesis,
        owner=new.owner,
        team=team,
        status=Experiment.Status.RUNNING if new.start else Experiment.Status.DRAFT,
        created_at=now,
        started_at=started_at,
        expected_units_per_day=new.expected_units_per_day,
    )
    _insert_under_a_free_key(experiment, new.key)
    _write_parts(experiment, new.target_kpis, new.variants, now=now)
    publish(
        team_id=team.pk,
        experiment_id=experiment.pk,
        type="experiment.changed",
        data={"experiment": experiment.key, "from": None, "to": experiment.status, "by": by.owner, "reason": ""},
        now=now,
    )
    return experiment


def revise(experiment: Experiment, changes: Mapping[str, object], *, now: datetime) -> Experiment:
    """Change name, hypothesis, owner at any time; the plan (variants, target_kpis, expected_units_per_day, started_at)
    while it is a draft.

    Raises PlanRefused: `not_draft` for the plan of an experiment that has started, `invalid`.
    """
    plan = set(changes) - {"name", "hypothesis", "owner"}
    experiment = Experiment.objects.select_for_update(no_key=True).get(pk=experiment.pk)  # as a transition does
    if plan and experiment.status != Experiment.Status.DRAFT:
        raise PlanRefused(
            "not_draft",
            f"{experiment.key} is {experiment.status}: {', '.join(sorted(plan))} can only change while it is a draft. "
            "Create a new experiment for another plan.",
            status=409,
        )
    kpis: Sequence[NewKpi] = changes.get("target_kpis") or _kpis_of(experiment)  # type: ignore[assignment]
    variants: Sequence[NewVariant] = changes.get("variants") or _variants_of(experiment)  # type: ignore[assignment]
    values: dict[str, object] = {
        name: changes.get(name, getattr(experiment, name))
        for name in ("name", "hypothesis", "owner", "expected_units_per_day", "started_at")
    }
    whole = NewExperiment(**values, target_kpis=kpis, variants=variants, start=False)  # type: ignore[arg-type]
    problems = list(_problems(whole, now, started="started_at" in changes))
    if problems:
        raise PlanRefused.of(*problems)
    for name in values.keys() & changes.keys():
        setattr(experiment, name, values[name])
    experiment.save()
    if plan & {"variants", "target_kpis"}:
        experiment.variants.all().delete()
        experiment.targetkpis.all().delete()
        _write_parts(experiment, kpis, variants, now=now)
    return experiment


def register(new: NewMetric, *, team: Team | None, now: datetime) -> Metric:
    """A new metric in the registry. Raises PlanRefused: `key_taken`, `invalid`."""
    problems = list(_metric_problems(new, ""))
    if problems:
        raise PlanRefused.of(*problems)
    try:
        with transaction.atomic():
            metric = _metric(new, team=team, now=now)
            metric.save(force_insert=True)
            if (schedule := new.schedule()) is not None:
                feeds.set_out(metric, schedule, since=None, now=now)
    except IntegrityError as error:
        message = f"There is a metric {new.key!r} already. Use it, or choose another key."
        raise PlanRefused.of(Fault("/key", "key_taken", message), code="key_taken", status=409) from error
    return metric


def redefine(
    metric: Metric, changes: NewMetric, *, now: datetime, since: datetime | UnsetType | None = UNSET
) -> Metric:
    """Change what was given of a metric, beside its key.

    since: from when on a schedule that was given holds; unset: from now on, None: always. Raises PlanRefused: `invalid`, 409 `metric_in_use`.
    """
    problems = list(_metric_problems(changes, "", kind=metric.kind))
    if isinstance(changes.replaced_by, str):
        problems += registry.successor_faults(metric, changes.replaced_by)
    if isinstance(changes.retired_at, datetime) and changes.retired_at > now + MAY_BE_AHEAD:
        problems.append(
            Fault("/retired_at", "timestamp_in_future", f"{changes.retired_at.isoformat()} is in the future.")
        )
    schedule = None if problems else changes.schedule()
    if since is not UNSET and not problems:
        problems += _since_problems(since, schedule, now)
    if problems:
        raise PlanRefused.of(*problems)
    given = changes.columns()
    other = registry.frozen(metric, given)
    if other and (users := registry.users_of([metric])[metric.pk]):
        raise _in_use(metric, other, users)
    if changes.replaced_by is not UNSET:
        given["replaced_by"] = Metric.objects.filter(key=changes.replaced_by).first()
    for name, value in given.items():
        setattr(metric, name, value)
    try:
        with transaction.atomic():
            metric.save(update_fields=list(given))
    except IntegrityError as error:  # an experiment was started in between
        if "metric_in_use" not in str(error):
            raise
        raise _in_use(metric, other, registry.users_of([metric])[metric.pk]) from error
    if schedule is not None and (since is not UNSET or schedule != feeds.expected_of(metric, now=now)):
        feeds.set_out(metric, schedule, since=now if since is UNSET else since, now=now)
    return metric


def _in_use(metric: Metric, names: Sequence[str], users: registry.Users) -> PlanRefused:
    told = registry.in_use(metric, names, users)
    return PlanRefused(
        "metric_in_use",
        told,
        status=409,
        errors=[Fault(f"/{name}", "metric_in_use", told) for name in names],
        extra={"experiments": list(users.experiments), "others": users.others},
    )


_SCHEDULE = ("expected", "expected_every_s")


# Writing ----------------------------------------------------------------------------------------------------


def _insert_under_a_free_key(experiment: Experiment, wanted: str) -> None:
    """A person's key is taken as it is; a generated one gets a suffix. The unique index decides, whoever is faster."""
    for key in [wanted] if wanted else _candidates(experiment.name):
        if _taken(key):
            continue
        experiment.key = key
        try:
            with transaction.atomic():
                experiment.save(force_insert=True)
        except IntegrityError:
            experiment.pk = None
            if not _taken(key):
                raise
        else:
            return
    raise PlanRefused(
        "key_taken",
        f"The key {wanted!r} is taken: keys are unique in the installation. Choose another, or leave it out.",
        status=409,
        errors=[Fault("/key", "key_taken", f"{wanted!r} is taken.")],
    )


def _candidates(name: str) -> Iterator[str]:
    slug = slugify(name)[:55].strip("-_").replace("_", "-")
    slug = slug if re.fullmatch(KEY_PATTERN, slug) else f"experiment-{slug}".strip("-")
    yield slug
    yield from (f"{slug}-{number}" for number in count(2))


def _taken(key: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT access.experiment_key_taken(%s)", [key])
        return bool((cursor.fetchone() or (False,))[0])


def _write_parts(
    experiment: Experiment, kpis: Sequence[NewKpi], variants: Sequence[NewVariant], *, now: datetime
) -> None:
    metrics = _metrics_of(kpis, team=experiment.team, now=now)
    Variant.objects.bulk_create(
        Variant(
            experiment=experiment,
            team=experiment.team,
            key=v.key,
            name=v.name,
            weight=v.weight,
            control=v.control,
            position=position,
        )
        for position, v in enumerate(_completed(variants, kpis))
    )
    TargetKpi.objects.bulk_create(
        TargetKpi(
            experiment=experiment,
            team=experiment.team,
            metric=metrics[kpi.key],
            position=position,
            **{f.name: getattr(kpi, f.name) for f in fields(kpi) if f.name != "metric"},
        )
        for position, kpi in enumerate(kpis)
    )


def _metrics_of(kpis: Sequence[NewKpi], *, team: Team, now: datetime) -> dict[str, Metric]:
    wanted = {kpi.key: kpi.metric if isinstance(kpi.metric, NewMetric) else NewMetric(key=kpi.key) for kpi in kpis}
    known = Metric.objects.in_bulk(list(wanted), field_name="key")
    _new_metrics([_as_used(wanted[kpi.key], kpi.role) for kpi in kpis if kpi.key not in known], team=team, now=now)
    found = Metric.objects.filter(key__in=wanted).select_related("replaced_by").prefetch_related("schedules")
    metrics = {metric.key: metric for metric in found}
    problems = [
        Fault(
            f"/target_kpis/{position}/metric/{name}",
            "metric_differs",
            f"{kpi.key} is registered with {name} {_json(registered)}, not {_json(value)}. Use its key.",
        )
        for position, kpi in enumerate(kpis)
        for name, value in _meaning(wanted[kpi.key])
        if (registered := _registered(metrics[kpi.key], name, now)) != value
    ]
    problems += [
        problem for position, kpi in enumerate(kpis) for problem in _sparse_problems(position, kpi, kpis, metrics)
    ]
    for position, kpi in enumerate(kpis):
        problems += _fit_problems(kpi, metrics[kpi.key], f"/target_kpis/{position}")
    if problems:
        raise PlanRefused.of(*problems)
    return metrics


def _fit_problems(kpi: NewKpi, metric: Metric, at: str) -> Iterator[Fault]:
    """What does not fit the metric as it is registered: it is retired, or its values never are such."""
    if metric.retired_at is not None:
        yield Fault(f"{at}/metric", "metric_retired", registry.retired_words(metric))
    for name, value in (
        ("baseline/mean", kpi.baseline_mean),
        ("target/at_least", kpi.target_at_least),
        ("target/at_most", kpi.target_at_most),
    ):
        if value is not None and (said := registry.outside(value, metric.kind, metric.minimum, metric.maximum)):
            yield Fault(f"{at}/{name}", "out_of_bounds", f"{name.replace('/', '.')} of {kpi.key} {said}.")


def _meaning(new: NewMetric) -> list[tuple[str, object]]:
    """What was said of a metric that changes a verdict when it differs; names and units may be told in many ways."""
    said = [(name, value) for name, value in new.given().items() if name in _MEANING]
    return [*said, ("expected", new.schedule())] if new.expected is not UNSET else said


def _registered(metric: Metric, name: str, now: datetime) -> object:
    return feeds.expected_of(metric, now=now) if name == "expected" else getattr(metric, name)


def _sparse_problems(
    position: int, kpi: NewKpi, kpis: Sequence[NewKpi], metrics: Mapping[str, Metric]
) -> Iterator[Fault]:
    """Where nothing may happen, units are those of a goal's rows: both have to be told bucket by bucket."""
    if not kpi.sparse:
        return
    metric, at = metrics[kpi.key], f"/target_kpis/{position}/sparse"
    if metric.kind not in (Metric.Kind.MEAN, Metric.Kind.PROPORTION) or metric.temporality != Metric.Temporality.DELTA:
        said = f"{metric.kind}, {metric.temporality}"
        yield Fault(
            at,
            "invalid",
            f"{kpi.key} is {said}: only a mean or proportion of delta rows can be sparse. Leave it out.",
        )
    elif not any(
        metrics[goal.key].temporality == Metric.Temporality.DELTA and metrics[goal.key].kind != Metric.Kind.GAUGE
        for goal in kpis
        if goal.role == TargetKpi.Role.GOAL
    ):
        yield Fault(
            at,
            "invalid",
            "No goal counts units bucket by bucket, so nothing tells that nothing happened. Leave it out.",
        )


_MEANING = {"kind", "direction", "temporality", "expected_every_s", "freshness_target_s", "counts_assignment"}


def _as_used(new: NewMetric, role: str) -> NewMetric:
    """A new metric as its first plan uses it: unless it is said, n counts assigned units of goals and exposures only, since a guard may
    be counted among some of them."""
    if role in (TargetKpi.Role.GOAL, TargetKpi.Role.EXPOSURE) or new.counts_assignment is not UNSET:
        return new
    return replace(new, counts_assignment=False)


def _new_metrics(new: Sequence[NewMetric], *, team: Team, now: datetime) -> None:
    """Insert those whose key is free, in key order so that two plans never wait for each other."""
    Metric.objects.bulk_create(
        [_metric(m, team=team, now=now) for m in sorted(new, key=lambda m: m.key)], ignore_conflicts=True
    )
    scheduled = {m.key: schedule for m in new if (schedule := m.schedule()) is not None and "every_s" not in schedule}
    for metric in Metric.objects.filter(key__in=scheduled, team=team, created_at=now).order_by("key"):
        if not metric.schedules.exists():  # else somebody else has just made it
            feeds.set_out(metric, scheduled[metric.key], since=None, now=now)


def _metric(new: NewMetric, *, team: Team | None, now: datetime) -> Metric:
    said = new.columns() | {"key": new.key}
    if (schedule := new.schedule()) is not None:
        said["expected_every_s"] = words.nominal_s(schedule)
    return Metric(**{"name": new.key.replace("_", " ").capitalize(), **said}, team=team, created_at=now)


def _completed(variants: Sequence[NewVariant], kpis: Sequence[NewKpi]) -> list[NewVariant]:
    if not variants:
        if all(kpi.has_target for kpi in kpis):
            return [NewVariant(key="all")]
        return [NewVariant(key="control", control=True), NewVariant(key="treatment")]
    if len(variants) > 1 and not any(v.control for v in variants):
        return [NewVariant(key=v.key, weight=v.weight, name=v.name, control=v.key == "control") for v in variants]
    return list(variants)


def _kpis_of(experiment: Experiment) -> list[NewKpi]:
    names = [f.name for f in fields(NewKpi) if f.name != "metric"]
    return [
        NewKpi(metric=kpi.metric.key, **{name: getattr(kpi, name) for name in names})
        for kpi in experiment.targetkpis.select_related("metric")
    ]


def _variants_of(experiment: Experiment) -> list[NewVariant]:
    return [NewVariant(key=v.key, weight=v.weight, control=v.control, name=v.name) for v in experiment.variants.all()]


# What is refused --------------------------------------------------------------------------------------------


def _problems(new: NewExperiment, now: datetime, *, started: bool = True) -> Iterator[Fault]:
    """Everything wrong with a plan, as (JSON pointer, code, detail), in reading order."""
    if new.key and not re.fullmatch(KEY_PATTERN, new.key):
        yield _bad_key("/key", new.key)
    yield from _text_problems("/name", new.name, 200)
    yield from _text_problems("/hypothesis", new.hypothesis, 10_000)
    yield from _text_problems("/owner", new.owner, 200)
    yield from _variant_problems(new)
    if not new.target_kpis:
        yield Fault("/target_kpis", "missing_field", "An experiment needs at least one target KPI to be judged by.")
    if len(new.target_kpis) > MOST_KPIS:
        yield Fault("/target_kpis", "invalid", f"{len(new.target_kpis)} target KPIs are more than {MOST_KPIS}.")
    seen: set[str] = set()
    for position, kpi in enumerate(new.target_kpis):
        yield from _kpi_problems(kpi, f"/target_kpis/{position}")
        if kpi.key in seen:
            yield Fault(
                f"/target_kpis/{position}/metric",
                "duplicate",
                f"{kpi.key} is named twice. Keep one.",
            )
        seen.add(kpi.key)
    units = new.expected_units_per_day
    if units is not None and not (math.isfinite(units) and units > 0):
        yield Fault("/expected_units_per_day", "invalid_number", f"expected_units_per_day is {units}, must be above 0.")
    elif units is not None:
        yield from _range_problems("/expected_units_per_day", "expected_units_per_day", units)
    if started and new.started_at is not None:
        yield from _start_problems(new.started_at, now)


def _start_problems(started_at: datetime, now: datetime) -> Iterator[Fault]:
    if started_at.tzinfo is None:
        yield Fault("/started_at", "naive_timestamp", f"{started_at.isoformat()} has no offset. Add one, such as Z.")
    elif started_at > now + MAY_BE_AHEAD:
        yield Fault(
            "/started_at",
            "timestamp_in_future",
            f"{started_at.isoformat()} is in the future. Create a draft instead.",
        )
    elif started_at < now - timedelta(days=settings.RETENTION_DAYS):
        yield Fault(
            "/started_at",
            "timestamp_too_old",
            f"{started_at.isoformat()} is older than the {settings.RETENTION_DAYS} days that are kept.",
        )


def _variant_problems(new: NewExperiment) -> Iterator[Fault]:
    variants = _completed(new.variants, new.target_kpis)
    if len(variants) > MOST_VARIANTS:
        yield Fault("/variants", "invalid", f"{len(variants)} variants are more than {MOST_VARIANTS}.")
    seen: set[str] = set()
    for position, variant in enumerate(variants):
        if not re.fullmatch(KEY_PATTERN, variant.key):
            yield _bad_key(f"/variants/{position}/key", variant.key)
        elif variant.key in seen:
            yield Fault(f"/variants/{position}/key", "duplicate", f"Two variants are called {variant.key!r}.")
        seen.add(variant.key)
        if not (math.isfinite(variant.weight) and variant.weight > 0):
            yield Fault(
                f"/variants/{position}/weight", "invalid_number", f"weight is {variant.weight}, must be above 0."
            )
        else:
            yield from _range_problems(f"/variants/{position}/weight", "weight", variant.weight)
        yield from _text_problems(f"/variants/{position}/name", variant.name, 200, required=False)
    controls = [v.key for v in variants if v.control]
    if len(variants) > 1 and len(controls) != 1:
        yield Fault(
            "/variants",
            "invalid",
            f"{len(controls)} of {len(variants)} variants are the control. Mark exactly one with control: true.",
        )


def _kpi_problems(kpi: NewKpi, at: str) -> Iterator[Fault]:
    if isinstance(kpi.metric, NewMetric):
        yield from _metric_problems(kpi.metric, f"{at}/metric")
    elif not re.fullmatch(METRIC_KEY_PATTERN, kpi.metric):
        yield _bad_metric_key(f"{at}/metric", kpi.metric)
    if kpi.role not in TargetKpi.Role.values:
        yield Fault(
            f"{at}/role", "invalid", f"role is {_json(kpi.role)}, must be one of {', '.join(TargetKpi.Role.values)}."
        )
    if kpi.plausible_to is not None and kpi.role != TargetKpi.Role.GOAL:
        said = f"plausible_to is of a goal, and this is a {kpi.role}. Leave it out."
        yield Fault(f"{at}/plausible_to", "invalid", said)
    if kpi.sparse and kpi.role != TargetKpi.Role.GUARDRAIL:
        yield Fault(f"{at}/sparse", "invalid", f"sparse is for a guardrail, and this is a {kpi.role}. Leave it out.")
    for name, value, least in (
        ("minimum_effect", kpi.minimum_effect, 0.0),
        ("max_harm", kpi.max_harm, 0.0),
        ("plausible_to", kpi.plausible_to, 0.0),
        ("baseline/stddev", kpi.baseline_stddev, 0.0),
        ("baseline/mean", kpi.baseline_mean, -math.inf),
        ("target/at_least", kpi.target_at_least, -math.inf),
        ("target/at_most", kpi.target_at_most, -math.inf),
    ):
        if value is not None and not (math.isfinite(value) and value > least):
            must = "above 0" if least == 0 else "a finite number"
            yield Fault(f"{at}/{name}", "invalid_number", f"{name.replace('/', '.')} is {value}, must be {must}.")
        elif value is not None:
            yield from _range_problems(f"{at}/{name}", name.replace("/", "."), value)
    if (kpi.baseline_mean is None) != (kpi.baseline_stddev is None):
        yield Fault(f"{at}/baseline", "missing_field", "A baseline needs both mean and stddev.")
    low, high = kpi.target_at_least, kpi.target_at_most
    if low is not None and high is not None and low > high:
        yield Fault(f"{at}/target", "invalid", f"at_least ({low}) is above at_most ({high}): no value fits. Swap them.")


def _range_problems(at: str, name: str, value: float) -> Iterator[Fault]:
    if value != 0 and not SMALLEST <= abs(value) <= LARGEST:
        yield Fault(at, "out_of_range", f"{name} is {value:g}; its magnitude must be between 1e-100 and 1e100, or 0.")


def _metric_problems(new: NewMetric, at: str, *, kind: str = Metric.Kind.MEAN) -> Iterator[Fault]:
    """kind: what it is where nothing is said."""
    given = new.given()
    if not re.fullmatch(METRIC_KEY_PATTERN, new.key):
        yield _bad_metric_key(f"{at}/key", new.key)
    for name, most in (("name", 200), ("unit", 40), ("definition", 10_000)):
        if name in given:
            yield from _text_problems(f"{at}/{name}", str(given[name]), most, required=name == "name")
    for name, choices in (
        ("kind", Metric.Kind.values),
        ("direction", [*Metric.Direction.values, None]),
        ("temporality", Metric.Temporality.values),
    ):
        if name in given and given[name] not in choices:
            listed = ", ".join(str(choice) for choice in choices if choice)
            yield Fault(f"{at}/{name}", "invalid", f"{name} is {_json(given[name])}, must be one of {listed}.")
    for name, most in (("expected_every_s", words.MOST_S), ("freshness_target_s", MOST_LATE_S)):
        value = given.get(name, 1)
        if not isinstance(value, int) or not 1 <= value <= most:
            said = f"{name} is {_json(value)}, must be 1 to {most} whole seconds."
            yield Fault(f"{at}/{name}", "invalid_number", said)
    if isinstance(new.bounds, Mapping):
        yield from registry.bounds_faults(new.bounds, str(given.get("kind", kind)), f"{at}/bounds")
    bounds = new.bounds if isinstance(new.bounds, Mapping) else {}
    for name, number in (
        ("bounds/min", bounds.get("min")),
        ("bounds/max", bounds.get("max")),
        ("capped_at", new.capped_at),
    ):
        if isinstance(number, float):
            yield from _range_problems(f"{at}/{name}", name.rpartition("/")[2], number)
    if new.expected is not UNSET:
        yield from _expected_problems(new.expected, given, f"{at}/expected")


def _expected_problems(expected: Mapping[str, Any], given: Mapping[str, object], at: str) -> Iterator[Fault]:
    faults = list(words.faults(expected))
    yield from (fault.under(at) for fault in faults)
    every_s = given.get("expected_every_s")
    if not faults and every_s is not None and every_s != words.nominal_s(words.normal(expected)):
        said = f"expected_every_s says {_json(every_s)} beside expected. Give one of them."
        yield Fault(at, "two_schedules", said)


def _since_problems(since: datetime | None, schedule: object, now: datetime) -> Iterator[Fault]:
    if schedule is None:
        yield Fault(
            "/expected_from",
            "missing_field",
            "expected_from says from when on, and nothing says what. Give expected.",
        )
    elif since is not None and since > now + timedelta(days=366):
        yield Fault(
            "/expected_from",
            "timestamp_in_future",
            f"{since.isoformat()} is more than a year ahead. Give an earlier one.",
        )


def warnings_of_new(new: Iterable[NewMetric | str], *, made_at: datetime) -> list[str]:
    """Of those that were made at that instant. Where nothing said how often data comes: what that means now, and how to say it."""
    silent = {m if isinstance(m, str) else m.key: isinstance(m, str) or m.schedule() is None for m in new}
    told = []
    for metric in Metric.objects.filter(key__in=silent, created_at=made_at).order_by("key"):
        if silent[metric.key]:
            every = words.in_words({"every_s": metric.expected_every_s})
            told.append(
                f"Nothing says how often {metric.key} comes, so a row is expected {every}. Say it, such as "
                'expected: {"every": "daily", "at": "06:00", "timezone": "Europe/Berlin"} or {"every_s": 3600}.'
            )
        told += warnings(metric)
    return told


def warnings(metric: Metric) -> list[str]:
    """What a metric says and is hardly meant."""
    late_s = metric.freshness_target_s
    if late_s <= 365 * 86_400:
        return []
    return [
        f"{metric.key} may be {late_s // 86_400} days late, so silence is hardly ever noticed. Lower freshness_target_s."
    ]


def _text_problems(at: str, text: str, most: int, *, required: bool = True) -> Iterator[Fault]:
    if required and not text.strip():
        yield Fault(at, "missing_field", f"{at.rpartition('/')[2]} is empty.")
    elif len(text) > most:
        yield Fault(at, "invalid_text", f"{at.rpartition('/')[2]} has {len(text)} characters, at most {most} fit.")
    elif "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        yield Fault(at, "invalid_text", f"{at.rpartition('/')[2]} holds a NUL or half a surrogate pair. Remove it.")


def _bad_key(at: str, key: str) -> Fault:
    return Fault(
        at,
        "invalid",
        f"{key!r} is no key. Use 1 to 63 of a-z, 0-9 and hyphens, no hyphen first, one letter at least.",
    )


def _bad_metric_key(at: str, key: str) -> Fault:
    return Fault(at, "invalid", f"{key!r} is no metric key. Use 1 to 63 of a-z, 0-9 and underscores, a letter first.")


def _json(value: object) -> str:
    """A value as it was sent."""
    return json.dumps(value, ensure_ascii=False, default=str)
