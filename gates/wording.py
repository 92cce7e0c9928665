"""Who reads what the gates found: the names metrics have now, for `gates.engine.narration`."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from experiments.models import Metric
from gates.engine.narration import Called, Reader, blockers, rationale
from gates.engine.reasons import reasons_in


def reader(found: Iterable[Mapping[str, Any]], now: datetime | None) -> Reader:
    """A reader of these recommendations and gates, in one query. now: None where ages are left out."""
    metrics = {reason.get("metric") for told in found for reason in reasons_in(told)} - {None}
    if not metrics:
        return Reader(now)
    called = Metric.objects.filter(key__in=metrics).values_list("key", "name", "unit", "direction")
    return Reader(now, {key: Called(name, unit, way == "decrease") for key, name, unit, way in called})


def sentences(told: Mapping[str, Any], now: datetime | None) -> tuple[list[str], list[str]]:
    """(rationale, blockers) of one recommendation."""
    who, reasons = reader([told], now), reasons_in(told)
    return rationale(reasons, who), blockers(reasons, who)
