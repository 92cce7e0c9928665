"""Arrays made here are the ones PostgreSQL reads."""

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry import arrays

pytestmark = pytest.mark.django_db

INSTANTS = st.datetimes(
    min_value=dt.datetime(1970, 1, 1), max_value=dt.datetime(9997, 12, 31), timezones=st.timezones()  # noqa: DTZ001 - bounds have no offset of their own
)  # fmt: skip


READ = {
    "int4": "SELECT * FROM unnest(%s::int4[])",
    "int8": "SELECT * FROM unnest(%s::int8[])",
    "float8": "SELECT * FROM unnest(%s::float8[])",
    "timestamptz": "SELECT * FROM unnest(%s::timestamptz[])",
}


def stored(kind: str, sent: arrays.Array | None) -> list[object]:
    with arrays.cursor() as cursor:
        return [value for (value,) in cursor.execute(READ[kind], [sent])]


@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1)))
def test_integers_of_32_bits_arrive_as_sent(values: list[int | None]) -> None:
    assert stored("int4", arrays.int4s(values)) == (values if any(v is not None for v in values) else [])


@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1)))
def test_integers_of_64_bits_arrive_as_sent(values: list[int | None]) -> None:
    assert stored("int8", arrays.int8s(values)) == (values if any(v is not None for v in values) else [])


@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_floats_arrive_to_the_last_bit(values: list[float | None]) -> None:
    assert list(map(repr, stored("float8", arrays.float8s(values)))) == (
        list(map(repr, values)) if any(v is not None for v in values) else []
    )


@given(st.lists(INSTANTS, min_size=1))
def test_instants_arrive_to_the_microsecond_whatever_their_offset(values: list[dt.datetime]) -> None:
    # An hour that a clock skips or repeats is equal to no time of another zone, so they are compared in one.
    assert stored("timestamptz", arrays.instants(arrays.microseconds(values))) == [
        value.astimezone(dt.UTC) for value in values
    ]


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1))
def test_texts_are_sent_once_and_found_at_their_places(texts: list[str]) -> None:
    names, places = arrays.places(texts)
    assert names == sorted(set(texts))
    sent = [names, arrays.numbers(places)]
    with arrays.cursor() as cursor:
        found = cursor.execute("SELECT (%s::text[])[place] FROM unnest(%s::int4[]) AS place", sent)
        assert [text for (text,) in found] == texts
