"""What the registry says of a metric beside its definition: who judges by it, what it means meanwhile, and between which bounds its values lie."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import connection

from decisioning.refusals import Fault
from experiments.models import Experiment, Metric, TargetKpi

MEANING = ("kind", "direction", "temporality", "counts_assignment")
"""What cannot change while a started experiment is judged by a metric; the database holds it too."""
JUDGED = (Experiment.Status.RUNNING, Experiment.Status.PAUSED)
_SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Users:
    """Started experiments that judge by a metric: those the caller sees by key, and how many others there are."""

    experiments: tuple[str, ...] = field(default=())
    others: int = 0

    def __bool__(self) -> bool:
        return bool(self.experiments or self.others)

    @property
    def words(self) -> str:
        """
        >>> Users(("checkout", "search"), 2).words, Users((), 1).words, Users().words
        ('checkout, search and 2 of other teams', '1 of another team', 'none')
        """
        of = "of another team" if self.others == 1 else "of other teams"
        more = [f"{self.others} {of}"] if self.others else []
        return " and ".join([*([", ".join(self.experiments)] if self.experiments else []), *more]) or "none"


def users_of(metrics: Sequence[Metric]) -> dict[int, Users]:
    """By the metric's id, in two queries. What other teams try is theirs to know: it is counted alone."""
    ids = [metric.pk for metric in metrics]
    seen: dict[int, list[str]] = defaultdict(list)
    kpis = TargetKpi.objects.filter(metric_id__in=ids, experiment__status__in=JUDGED).order_by("experiment__key")
    for pk, key in kpis.values_list("metric_id", "experiment__key"):
        seen[pk].append(key)
    with connection.cursor() as cursor:
        cursor.execute("SELECT metric, users FROM metadata.metric_users(%s)", [ids])
        counted = dict(cursor.fetchall())
    return {pk: Users(tuple(seen[pk]), max(0, counted.get(pk, 0) - len(seen[pk]))) for pk in ids}


def frozen(metric: Metric, given: Mapping[str, object]) -> list[str]:
    """What of a change would make the metric mean something else."""
    return [name for name in MEANING if name in given and given[name] != getattr(metric, name)]


def in_use(metric: Metric, names: Sequence[str], users: Users) -> str:
    """What to say of such a change while the metric is in use."""
    return (
        f"{' and '.join(names)} of {metric.key} cannot change while experiments are judged by it: {users.words}. What it means would change under "
        "them. Make a metric of its own for the new meaning, and name it as replaced_by of this one."
    )


# Bounds -------------------------------------------------------------------------------------------------------------------


def bounds_of(kind: str, minimum: float | None, maximum: float | None) -> tuple[float | None, float | None]:
    """(least, most) that a row's value may be: a proportion's lie within 0 to 1.

    >>> bounds_of("proportion", None, 0.5), bounds_of("mean", 0, None)
    ((0.0, 0.5), (0, None))
    """
    if kind != Metric.Kind.PROPORTION:
        return minimum, maximum
    return _SHARE[0] if minimum is None else max(minimum, 0.0), _SHARE[1] if maximum is None else min(maximum, 1.0)


def outside(value: float, kind: str, minimum: float | None, maximum: float | None) -> str:
    """Where a value should lie, and what may be meant; empty where it does.

    >>> outside(5, "proportion", None, None)
    'is 5, and a proportion lies between 0 and 1: 5% is 0.05'
    >>> outside(-2, "mean", 0, None), outside(2, "mean", 0, None)
    ('is -2, must be at least 0', '')
    """
    low, high = bounds_of(kind, minimum, maximum)
    if (low is None or value >= low) and (high is None or value <= high):
        return ""
    if (low, high) == _SHARE and kind == Metric.Kind.PROPORTION:
        hint = f": {value:g}% is {value / 100:g}" if 1 < value <= 100 else ""
        return f"is {value:g}, and a proportion lies between 0 and 1{hint}"
    if low is not None and high is not None:
        return f"is {value:g}, must be between {low:g} and {high:g}"
    return f"is {value:g}, must be {f'at least {low:g}' if low is not None else f'at most {high:g}'}"


def bounds_faults(bounds: Mapping[str, Any], kind: str, at: str) -> Iterator[Fault]:
    """Of `{min, max}`, each a number or null."""
    low, high = bounds.get("min"), bounds.get("max")
    if low is not None and high is not None and not low < high:
        yield Fault(at, "min_over_max", f"min {low:g} is not below max {high:g}: no value would fit.")
    for name, value in (("min", low), ("max", high)):
        if value is not None and kind == Metric.Kind.PROPORTION and not 0 <= value <= 1:
            yield Fault(f"{at}/{name}", "out_of_bounds", f"{name} {outside(value, kind, None, None)}.")


# Retired ------------------------------------------------------------------------------------------------------------------


def retired_words(metric: Metric) -> str:
    """What to say of a retired metric that a new plan names."""
    instead = f" Use {metric.replaced_by.key}, which replaces it." if metric.replaced_by else " Use another."
    return f"{metric.key} was retired on {metric.retired_at:%Y-%m-%d}: no new plan is judged by it.{instead}"


def successor_faults(metric: Metric, key: str) -> Iterator[Fault]:
    """Of `replaced_by`: a metric that is there, that is not retired, and whose own successors do not lead back."""
    found = Metric.objects.select_related("replaced_by").filter(key=key).first()
    if found is None:
        yield Fault("/replaced_by", "unknown_metric", f"No metric {key!r:.80} is registered.")
        return
    if found.retired_at is not None:
        yield Fault("/replaced_by", "metric_retired", retired_words(found))
    if metric.pk in {each.pk for each in _line(found)}:
        yield Fault("/replaced_by", "invalid", f"{key} is {metric.key} or replaced by it: name another.")


def _line(metric: Metric | None) -> Iterable[Metric]:
    seen: set[int] = set()
    while metric is not None and metric.pk not in seen:
        seen.add(metric.pk)
        yield metric
        metric = metric.replaced_by
