"""What stands around every page: the way about, the watchdog, the person; and the links of a paged, filtered list."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.http import QueryDict
from django.urls import reverse
from django.utils import timezone

from decisioning.access import restored
from decisioning.access.principal import Principal
from decisioning.board import words
from decisioning.ledger.models import Heartbeat
from decisioning.literals import whole_number
from gates.engine.figures import span

LATE_AFTER_S = 900
_NAV = (
    ("board", "Board"),
    ("freshness", "Freshness"),
    ("promises", "Promises"),
    ("policies", "Policies"),
    ("audit", "Audit"),
)


def frame(principal: Principal, *, here: str, exact: bool, now: datetime) -> dict[str, Any]:
    """`here` is the name of the section the page belongs to; `exact` says that the page is that section's first."""
    seen, restored_at = watchdog(now), restored.since()
    return {
        "copy_since": words.instant(restored_at, now) if restored_at else "",
        "nav": [
            {"url": reverse(name), "label": label, "here": ("page" if exact else "true") if name == here else ""}
            for name, label in _NAV
        ],
        "watch": seen,
        "person": {"initials": words.initials(principal.name), "label": principal.name},
        "foot": [_times(), seen["detail"], f"Page made {now:%H:%M:%SZ}."],
    }


def _times() -> str:
    zone = timezone.get_current_timezone_name()
    return "All times UTC." if zone == "UTC" else f"Times in {zone}, UTC beside them; the days of a chart are UTC's."


def watchdog(now: datetime) -> dict[str, Any]:
    """Whether the newest slot was judged in time, in words."""
    beat = Heartbeat.objects.filter(name="gates.tick").first()
    url = f"{reverse('promises')}#watchdog"
    if beat is None or beat.slot is None:
        return {
            "tone": "late",
            "text": "No slot judged yet",
            "detail": "No slot was judged yet.",
            "url": url,
            "late": True,
        }
    behind = (now - beat.slot).total_seconds()
    slot = words.instant(beat.slot, now)
    if behind > LATE_AFTER_S:
        detail = f"The newest slot judged is {slot}, {span(behind)} ago. Verdicts are as of then."
        return {"tone": "late", "text": f"Evaluation is late: {slot}", "detail": detail, "url": url, "late": True}
    detail = f"Read as of slot {slot}, judged {beat.at:%H:%M:%SZ}."
    return {"tone": "scale", "text": f"Slot {slot} on time", "detail": detail, "url": url, "late": False}


def query(params: QueryDict, **changes: object) -> str:
    """The same query with some parts changed; None or empty takes a part out."""
    kept = params.copy()
    for name, value in changes.items():
        if value in (None, ""):
            kept.pop(name, None)
        else:
            kept[name] = str(value)
    return f"?{kept.urlencode()}"


def options(choices: Sequence[tuple[str, str]] | Mapping[str, str], chosen: str) -> list[dict[str, Any]]:
    """The options of a select, the chosen one marked."""
    pairs = choices.items() if isinstance(choices, Mapping) else choices
    return [{"value": value, "label": label, "here": value == chosen} for value, label in pairs]


def older(params: QueryDict, shown: Sequence[Any], *, size: int, noun: str, nouns: str = "") -> dict[str, str]:
    """Links of a list read newest first by id; `shown` has up to `size` + 1 objects, the last only a sign of more.

    The list itself has the id `list`, so that its next page begins where it stood.
    """
    more = len(shown) > size
    return {
        "note": f"{words.plural(min(len(shown), size), noun, nouns)}, newest first",
        "older": f"{query(params, before=shown[size - 1].pk)}#list" if more else "",
        "newest": f"{query(params, before=None)}#list" if params.get("before") else "",
    }


def before(params: QueryDict) -> int | None:
    """The id in `?before=`, when it is one."""
    return whole_number(params.get("before", ""))
