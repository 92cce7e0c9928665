"""What is wrong is told once a change, however often somebody looks, and coming and going for a moment is no change."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from decisioning.ledger import snoozing
from decisioning.ledger.alarms import Condition, reconcile
from decisioning.ledger.models import Alarm, OutboxMessage
from tests.conftest import as_role

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 24, 6, 17, tzinfo=UTC)
LATE = Condition(1, 7, "checkout", {"experiment": "checkout"})


def look(minute: float, *wrong: Condition, grace: float = 5, spreads: bool = False) -> list[str]:
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
            spread=(lambda told, found: int(str(found["late"])) > int(str(told["late"]))) if spreads else None,
        )
        return [
            message.type + {"spread": " again", "snooze_ended": " after all"}.get(message.data.get("occasion", ""), "")
            for message in OutboxMessage.objects.exclude(pk__in=before).order_by("id")
        ]


def late(experiments: int) -> Condition:
    return Condition(1, 7, "checkout", {"experiment": "checkout", "late": experiments})


def snoozed(minute: float, until: float) -> None:
    with as_role("worker"):
        at, end = (NOW + timedelta(minutes=minutes) for minutes in (minute, until))
        snoozing.snooze(Alarm.objects.get(), until=end, reason="the vendor mends it", by="ada", now=at)


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


def test_what_spreads_is_told_again_an_hour_after_the_last_message_and_no_sooner() -> None:
    look(0, late(1), spreads=True)
    assert look(5, late(1), spreads=True) == ["freshness.breached"]
    assert look(40, late(9), spreads=True) == []
    assert look(66, late(12), spreads=True) == ["freshness.breached again"]
    assert look(110, late(40), spreads=True) == []
    assert look(130, late(40), spreads=True) == ["freshness.breached again"]
    assert look(300, late(40), spreads=True) == []
    assert look(400, late(3), spreads=True) == []


def test_an_alarm_that_somebody_deals_with_is_told_no_more_until_it_is_over() -> None:
    look(0, late(1), spreads=True)
    look(5, late(1), spreads=True)
    with as_role("worker"):
        snoozing.acknowledge(Alarm.objects.get(), by="ada", now=NOW)
        snoozing.acknowledge(Alarm.objects.get(), by="bob", now=NOW)
        assert Alarm.objects.get().acknowledged_by == "ada"
    assert look(100, late(40), spreads=True) == []
    look(101, spreads=True)
    assert look(107, spreads=True) == ["freshness.recovered"]


def test_a_snoozed_alarm_tells_nothing_and_wakes_with_what_is_so_then() -> None:
    look(0, late(1), spreads=True)
    look(5, late(1), spreads=True)
    snoozed(6, until=180)
    assert look(100, late(40), spreads=True) == []
    assert look(179, late(40), spreads=True) == []
    assert look(180, late(40), spreads=True) == ["freshness.breached after all"]
    assert look(181, late(40), spreads=True) == []
    with as_role("worker"):
        alarm = Alarm.objects.get()
        assert (alarm.snoozed_until, alarm.snoozed_by, alarm.told["late"]) == (None, "", 40)


def test_what_is_over_while_it_is_snoozed_is_told_when_that_ends_and_coming_back_meanwhile_is_not() -> None:
    look(0, LATE)
    look(5, LATE)
    snoozed(6, until=180)
    assert look(20) == []
    assert look(40) == []
    assert look(60, LATE) == []
    assert look(70, LATE) == []
    assert look(80) == []
    assert look(181) == ["freshness.recovered"]
    assert look(182) == []


@pytest.mark.parametrize(
    ("minutes", "reason", "pointer", "code"),
    [
        (0, "known", "/until", "timestamp_in_past"),
        (31 * 24 * 60, "known", "/until", "timestamp_in_future"),
        (60, " ", "/reason", "missing_field"),
        (60, "x" * 501, "/reason", "invalid_text"),
    ],
)
def test_a_snooze_has_an_end_and_a_reason(minutes: int, reason: str, pointer: str, code: str) -> None:
    with pytest.raises(snoozing.SnoozeRefused) as refused:
        snoozing.snooze(Alarm(), until=NOW + timedelta(minutes=minutes), reason=reason, by="ada", now=NOW)
    assert [(fault.pointer, fault.code) for fault in refused.value.errors] == [(pointer, code)]
