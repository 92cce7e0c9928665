"""A time that Python has not ends no query: whoever can write by SQL may write `infinity`."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.utils import timezone

from decisioning.database.backend.base import EARLIEST, LATEST

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("said", "read"),
    [("infinity", LATEST), ("-infinity", EARLIEST), ("20000-01-01", LATEST), ("0044-03-15 BC", EARLIEST), ("9999-12-31 23:59:59.999999", None),
     ("2026-11-24T06:17:00Z", datetime(2026, 11, 24, 6, 17, tzinfo=UTC))],
)  # fmt: skip
def test_a_time_that_python_has_not_is_read_as_the_nearest(said: str, read: datetime | None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s::timestamptz, array[%s::timestamptz]", [said, said])
        one, several = cursor.fetchone() or (None, [])
    assert several == [one]
    assert read is None or one == read
    assert one is not None
    assert one.utcoffset() == timedelta(0)
    with timezone.override("Europe/Berlin"):
        assert timezone.localtime(one) if one.year < 9999 else True
