"""The spread of a row by its name, made a variance in one place."""

import json
import math
import statistics
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.row import FIELDS, Row, check
from telemetry.spread import Unfit, misnamed, moments

CASES = Path(__file__).parents[3] / "shared" / "cases" / "rows.json"
AT = {"metric": "vrps", "ts": "2026-11-23T12:00:00Z"}
Told = dict[str, Any]


def read(*rows: Told) -> list[Row]:
    good, bad, _ = check({"rows": [AT | row for row in rows]})
    assert bad == []
    return [row for _, row in good]


def refused(row: Told) -> list[tuple[str, str, str]]:
    good, bad, _ = check({"rows": [AT | row]})
    assert good == []
    return [(fault.code, fault.pointer, fault.detail) for fault in bad]


def sums(values: list[Fraction]) -> Told:
    return {"n": len(values), "sum": float(sum(values)), "sum_squares": float(sum(v * v for v in values))}


def test_each_name_of_a_spread_becomes_the_variance() -> None:
    by_name = {"variance": 4.0}, {"stddev": 2}, {"standard_error": 0.2}
    made = read(*({"value": 3, "n": 100, **said} for said in by_name), {"n": 3, "sum": 6, "sum_squares": 20})
    assert [round(row.variance or 0, 12) for row in made] == [4, 4, 4, 4]
    assert [row.value for row in made] == [3, 3, 3, 2]


@pytest.mark.skipif(not CASES.exists(), reason="the cases are handed beside the project")
@pytest.mark.parametrize(
    ("name", "value", "variance"),
    [
        ("stddev by its name", 3.02, 479.61),
        ("standard error by its name", 3.02, 0.516**2 * 1800),
        ("sums", 2.5, 5 / 3),
    ],
)
def test_a_handed_case_ends_as_it_should(name: str, value: float, variance: float) -> None:
    (case,) = [case for case in json.loads(CASES.read_text()) if case["name"] == name]
    said = dict(part.strip().split(": ") for part in case["rows"].strip("{}").split(","))
    (row,) = read({field: float(number) for field, number in said.items()})
    assert [row.value, row.variance] == pytest.approx([value, variance])


@pytest.mark.parametrize(
    ("row", "code", "pointer", "names"),
    [
        ({"value": 1, "n": 10, "variance": 4, "stddev": 2}, "unknown_field", "/stddev", "variance and stddev"),
        ({"value": 1, "n": 10, "stddev": 4, "standard_error": 2}, "unknown_field", "/standard_error", "stddev and standard_error"),
        ({"n": 4, "sum": 10, "sum_squares": 30, "variance": 2}, "unknown_field", "/sum_squares", "variance and sum_squares"),
        ({"value": 2.5, "n": 4, "sum": 10, "sum_squares": 30}, "unknown_field", "/sum", "value and sum"),
        ({"value": 1, "n": 10, "std": 2}, "unknown_field", "/std", "send stddev"),
        ({"value": 1, "n": 10, "sem": 2}, "unknown_field", "/sem", "send standard_error"),
        ({"value": 1, "n": 10, "var": "2"}, "unknown_field", "/var", "send variance"),
        ({"value": 1, "n": 10, "Variance": 2}, "unknown_field", "/Variance", "send variance"),
        ({"mean": 1, "n": 10}, "unknown_field", "/mean", "send value"),
        ({"value": 1, "count": 10}, "unknown_field", "/count", "send n"),
        ({"value": 1, "a/std": 1, "std/": 1}, "unknown_field", "/std~1", "send stddev"),
        ({"value": 1, "denominator": {"value": 1, "stddev": 2}}, "unknown_field", "/denominator/stddev", "variance"),
        ({"n": 4, "sum": 10}, "missing_field", "/sum_squares", "sum_squares is missing"),
        ({"n": 4, "sum_squares": 10}, "missing_field", "/sum", "sum is missing"),
        ({"sum": 10, "sum_squares": 30}, "missing_field", "/n", "n is missing"),
        ({"value": 1, "standard_error": 2}, "missing_field", "/n", "n is missing"),
        ({"n": 0, "sum": 10, "sum_squares": 100}, "invalid_number", "/n", "n is 0"),
        ({"n": 4, "sum": 10, "sum_squares": 24.9}, "invalid_number", "/sum_squares", "less than sum^2 / n = 25"),
        ({"n": 1, "sum": 10, "sum_squares": 101}, "invalid_number", "/sum_squares", "not the square"),
        ({"value": 1, "n": 10, "stddev": -2}, "invalid_number", "/stddev", "0 or more"),
        ({"value": 1, "n": 10, "standard_error": "2"}, "invalid_number", "/standard_error", "0 or more"),
        ({"n": 4, "sum": True, "sum_squares": 30}, "invalid_number", "/sum", "finite"),
        ({"value": 1, "n": 10, "stddev": 1e60}, "out_of_range", "/stddev", "1e+120"),
        ({"n": 100, "sum": 1e-99, "sum_squares": 1}, "out_of_range", "/sum", "value is 1e-101"),
    ],
)  # fmt: skip
def test_what_is_no_one_spread_is_refused_at_its_place_with_what_is_meant(
    row: Told, code: str, pointer: str, names: str
) -> None:
    ((found, at, detail),) = refused(row)
    assert (found, at) == (code, f"/rows/0{pointer}")
    assert names in detail


def test_of_one_unit_there_is_no_variance_and_of_none_there_is_nothing_to_vary() -> None:
    one, none = read({"n": 1, "sum": 10, "sum_squares": 100}, {"n": 0, "sum": 0, "sum_squares": 0})
    assert [(row.n, row.value, row.variance) for row in (one, none)] == [(1, 10.0, None), (0, 0.0, None)]


def test_fields_that_mean_nothing_are_named_and_empty_ones_that_look_like_ours_refuse_nothing() -> None:
    said = {"value": 1, "region": "eu", "std": None, "denominator": {"value": 2, "note": "x"}}
    good, bad, ignored = check({"rows": [AT | said, AT | {"value": 1, "app": 2}]})
    assert (len(good), bad, ignored) == (2, [], ("app", "denominator.note", "region", "std"))


@given(st.lists(st.fractions(-1000, 1000, max_denominator=64), min_size=2, max_size=30), st.integers(0, 12))
def test_sums_give_the_variance_of_the_values_to_the_last_digits_that_the_sums_hold(
    values: list[Fraction], shift: int
) -> None:
    values = [value + 10**shift for value in values]
    said = sums(values)
    value, variance = moments(None, said["n"], None, None, None, said["sum"], said["sum_squares"])
    lost = said["sum_squares"] * 2.0**-52 / (len(values) - 1)
    assert math.isclose(value, float(statistics.mean(values)), rel_tol=1e-15, abs_tol=1e-300)
    assert abs((variance or 0) - float(statistics.variance(values))) <= 4 * lost


def test_sums_of_the_same_value_added_up_one_by_one_do_not_vary() -> None:
    total = squares = 0.0
    for _ in range(100_000):
        total, squares = total + 0.1, squares + 0.1 * 0.1
    assert (total - 10_000.0) / 10_000 > 1e-12, "the rounding adds up"
    _, variance = moments(None, 100_000, None, None, None, total, squares)
    assert variance == 0 or (variance or 1) < 1e-12


@given(
    st.dictionaries(
        st.sampled_from(["variance", "stddev", "standard_error", "sum", "sum_squares", "value"]), st.just(1.0)
    )
)
def test_of_all_that_may_be_said_exactly_the_five_ways_are_taken(said: dict[str, float]) -> None:
    names = ("value", "n", "variance", "stddev", "standard_error", "sum", "sum_squares")
    ways = [{"value"}, {"value", "variance"}, {"value", "stddev"}, {"value", "standard_error"}, {"sum", "sum_squares"}]
    try:
        moments(*({**said, "n": 1}.get(name) for name in names))  # type: ignore[arg-type]
    except Unfit:
        taken = False
    else:
        taken = True
    assert taken is (set(said) in ways)


def test_rows_that_are_read_together_end_as_each_does_alone() -> None:
    rows = [
        AT | {"value": 3, "n": 100, "stddev": 2},
        AT | {"n": 3, "sum": 6, "sum_squares": 20},
        AT | {"value": 3, "n": None, "variance": None, "note": 1},
    ]
    together = [row for _, row in check({"rows": rows}).good]
    careful = [row for _, row in check({"rows": [*rows, AT | {"value": 0.1, "variance": -1e-17}]}).good]
    assert together == careful[:3]


def test_every_field_is_its_own_and_no_other() -> None:
    assert misnamed(dict.fromkeys(FIELDS, 1), FIELDS) == {}
