"""Reads are counted by minute and told to the database; what is told twice is counted once."""

from datetime import UTC, datetime, timedelta

import pytest

from decisioning.access.models import Reads
from decisioning.availability import read_counter
from decisioning.availability.read_counter import ReadCounter

pytestmark = pytest.mark.django_db


def test_counts_are_told_again_and_again_until_their_minute_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    minute = datetime.now(UTC).replace(second=0, microsecond=0)
    monkeypatch.setattr(read_counter, "_minute", lambda: minute)
    counter = ReadCounter()
    for status, stale in ((200, False), (200, True), (404, False), (503, False)):
        counter.count(method="GET", status=status, stale=stale, seconds=0.01)
    counter.count(method="POST", status=503, stale=False, seconds=0.01)

    counter.flush()
    counter.flush()

    counts = Reads.objects.get()
    assert (counts.asked, counts.failed, counts.stale, counts.done) == (4, 1, 1, False)
    monkeypatch.setattr(read_counter, "_minute", lambda: minute + timedelta(minutes=1))
    counter.flush()
    assert Reads.objects.get(minute=minute).done
    counter.flush(ending=True)
    assert not Reads.objects.filter(done=False).exists()
