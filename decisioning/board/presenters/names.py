"""What people call the objects that audit entries name by number: the object itself and what its fields point to."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from django.contrib.auth.models import User
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Model

from decisioning.access.models import ApiKey, Invitation, Membership, Team
from decisioning.ledger.models import Alarm, Channel, Entry
from experiments.models import Metric, MetricSchedule, TargetKpi, Variant
from gates.models import Policy, PolicyBinding, PolicyVersion
from telemetry.models import Outage

# With what its name is made of. Of others the number says as much as anything.
_NAMED: dict[type[Model], tuple[str, ...]] = {
    User: (), Team: (), Membership: ("user", "team"), Invitation: ("team",), ApiKey: (), Channel: (), Metric: (), TargetKpi: ("metric",), Variant: (),
    MetricSchedule: ("metric",), Outage: (), Alarm: (), Policy: (), PolicyVersion: ("policy",), PolicyBinding: ("policy", "experiment", "team"),
}  # fmt: skip

Names = Mapping[tuple[type[Model], object], str]


def names(entries: Iterable[Entry]) -> Names:
    """By model and number, of all that still is and that the asking person may see; one query for each kind of object."""
    wanted: dict[type[Model], set[Any]] = defaultdict(set)
    for entry in entries:
        model = entry.content_type.model_class()
        if model in _NAMED:
            wanted[model].add(entry.object_id)
        for field, pair in (entry.changes if isinstance(entry.changes, dict) else {}).items():
            if (to := points_to(entry, field)) and isinstance(pair, list):
                wanted[to].update(pair)
    return {
        (model, thing.pk): str(thing)
        for model, numbers in wanted.items()
        for thing in model._default_manager.select_related(*(_NAMED[model] or (None,))).filter(pk__in=numbers - {None})
    }


def points_to(entry: Entry, field: str) -> type[Model] | None:
    """The model that a changed field points to, when its objects have names."""
    model = entry.content_type.model_class()
    if model is None or not field.endswith("_id"):
        return None
    try:
        to = model._meta.get_field(field.removesuffix("_id")).related_model
    except FieldDoesNotExist:
        return None
    return to if isinstance(to, type) and to in _NAMED else None


def name_of(entry: Entry, known: Names) -> str:
    """What the entry is about; the number alone says nothing, so what is gone is said to be."""
    model = entry.content_type.model_class()
    gone = "" if entry.action == Entry.Action.DELETE else ", gone since"
    plain = f"number {entry.object_repr}{gone}" if entry.object_repr.isdecimal() else entry.object_repr
    return known.get((model, entry.object_id), plain) if model else plain
