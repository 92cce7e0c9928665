"""What is wrong is told once a change, however often somebody looks, and coming and going for a moment is no change."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from decisioning.ledger.alarms import Condition, reconcile
from decisioning.ledger.models import Alarm, OutboxMessage
from tests.conftest import as_role

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 24, 6, 17, tzinfo=UTC)
LATE = Condition(1, 7, "checkout", {"experiment": "checkout"})


def look(minute: float, *wrong: Condition, grace: float = 5) -> list[str]:
    """What is told when these things are wrong at this minute."""

    def say(alarms: Sequence[Alarm]) -> Mapping[int, Mapping[str, object]]:
        return {alarm.pk: {"experiment": alarm.subject} for alarm in alarms}

    with as_role("worker"):
        before = set(OutboxMessage.objects.values_list("pk", flat=True))
        reconcile(
            "freshness.breached",
            lambda: wrong,
            now=NOW + timedelta(minutes=minute),
            hold_for=timedelta(minutes=grace),
            keep_firing_for=timedelta(minutes=grace),
            on_resolved=("freshness.recovered", say),
        )
        return list(OutboxMessage.objects.exclude(pk__in=before).order_by("id").values_list("type", flat=True))


def test_it_is_told_when_it_has_lasted_and_once() -> None:
    assert look(0, LATE) == []
    assert look(4, LATE) == []
    assert look(5, LATE) == ["freshness.breached"]
    assert look(6, LATE) == []
    assert look(600, LATE) == []


def test_its_end_is_told_when_it_has_lasted_and_a_new_beginning_is_a_new_change() -> None:
    look(0, LATE)
    look(5, LATE)
    assert look(6) == []
    assert look(12) == ["freshness.recovered"]
    assert look(13) == []
    assert look(14, LATE) == []
    assert look(19, LATE) == ["freshness.breached"]


def test_flapping_is_told_as_nothing_before_and_nothing_after() -> None:
    for minute in range(0, 42, 2):
        assert look(minute, *([LATE] if minute % 4 else [])) == []
    look(50, LATE)
    assert look(55, LATE) == ["freshness.breached"]
    for minute in range(56, 96, 2):
        assert look(minute, *([LATE] if minute % 4 else [])) == []


def test_each_thing_has_a_memory_of_its_own() -> None:
    other = Condition(2, 7, "checkout", {})
    assert look(0, LATE, other, grace=0) == ["freshness.breached"] * 2
    assert look(1, other, grace=0) == ["freshness.recovered"]
