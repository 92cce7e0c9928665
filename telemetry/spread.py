"""The spread of a row by its name: `variance`, `stddev`, `standard_error`, or `sum` with `sum_squares`; pure.

What is stored is one thing, the sample variance (n - 1) of one unit's value:

    variance = stddev^2 = standard_error^2 n = (sum_squares - sum^2 / n) / (n - 1),    value = sum / n

The last is worked out in whole numbers and rounded once, so nothing is lost between the sums and the variance. What the sums had lost before
they came stays lost: floats that are added up n at a time are right to n 2^-53 of their size, so a variance below some 1e-12 of the mean's
square cannot be told from none; of such values send `variance`.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from decisioning.refusals import Fault

SPREADS = ("variance", "stddev", "standard_error", "sum_squares")
"""Of these a row has one."""
BY_NAME = ("stddev", "standard_error", "sum", "sum_squares")
"""What a row may say in place of `variance`, or of `value` and `variance`."""
DUST = 1e-12
"""What adding floats may leave beyond a bound: a share is rounded to it from so far outside, a variance from so many times
max(1, value^2) below 0, which is what is left of E[x^2] - E[x]^2 where nothing varies."""
_ROUNDING = 2.0**-53

_ALSO_CALLED: Mapping[str, tuple[str, ...]] = {
    "variance": ("var", "varsamp", "varpop", "variancesamp", "variancepop", "samplevar", "samplevariance"),
    "stddev": ("std", "sd", "stdev", "sigma", "stdsamp", "stddevsamp", "stddevpop", "samplestd", "samplestddev", "samplestdev",
               "samplesd", "standarddeviation", "samplestandarddeviation"),
    "standard_error": ("se", "sem", "stderr", "stderror", "standarderrorofmean", "standarderrorofthemean"),
    "sum": ("mainsum",),
    "sum_squares": ("sumsq", "sumsqs", "sumsquare", "sumsquared", "sumofsquares", "sumofsquared", "mainsumsquares"),
    "value": ("mean", "avg", "average", "val", "meanvalue", "avgvalue", "samplemean"),
    "n": ("count", "cnt", "nobs", "samplesize", "nunits", "numunits"),
    "covariance": ("cov", "covar", "covarsamp", "covarpop"),
    "denominator": (),
    "revision": (),
}  # fmt: skip
_MEANT = {plain: name for name, others in _ALSO_CALLED.items() for plain in (name.replace("_", ""), *others)}
_MEANING = {
    "variance": "variance (of one unit's value, of the sample)",
    "stddev": "stddev (the standard deviation of one unit's value, of the sample)",
    "standard_error": "standard_error (of the mean of n units)",
    "sum_squares": "sum_squares (the sum of the squared values, beside sum)",
    "n": "n (the independent units that value was measured on)",
}


class Unfit(ValueError):
    """A spread of which no variance can be made. at: the field that is wrong, code: as in docs/api.md."""

    def __init__(self, at: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.at, self.code = at, code


@functools.lru_cache(maxsize=4096)
def meant(name: str) -> str | None:
    """The field that a name looks like, None where it looks like none; a field's own name is that field.

    >>> [meant(name) for name in ("std", "StdDev", "standard-error", "SEM", "mean", "count", "sumSquares", "region")]
    ['stddev', 'stddev', 'standard_error', 'standard_error', 'value', 'n', 'sum_squares', None]
    """
    return _MEANT.get(re.sub(r"[^a-z0-9]", "", name.lower())) if len(name) < 64 else None


def misnamed(raw: Mapping[str, Any], fields: frozenset[str]) -> dict[str, str]:
    """Name -> the field it looks like, of what an object says under names that are none of its fields; what says nothing is left out."""
    return {
        name: found
        for name in raw
        if name not in fields and raw[name] is not None and isinstance(name, str) and (found := meant(name))
    }


def name_faults(misnamed: Mapping[str, str]) -> Iterator[Fault]:
    """What to send for each name that looks like another field's, at its place below the row."""
    for name, found in misnamed.items():
        said = f"{name[:60]} is no field of a row: send {_MEANING.get(found, found)}."
        yield Fault(_pointer(name), "unknown_field", said)


def _pointer(name: str) -> str:
    return "/" + name[:80].replace("~", "~0").replace("/", "~1")


def denominator_faults(raw: Mapping[str, Any]) -> Iterator[Fault]:
    """Names within a ratio's denominator that look like another field's. Its spread is its variance, beside which goes the covariance."""
    for name in misnamed(raw, frozenset({"value", "variance", "covariance"})):
        said = f"{name[:60]} is no field of a denominator: send value, variance (of the sample) and covariance."
        yield Fault(f"/denominator{_pointer(name)}", "unknown_field", said)


def moments(
    value: float | None,
    n: int | None,
    variance: float | None,
    stddev: float | None,
    standard_error: float | None,
    sum: float | None,  # noqa: A002 - as the field is called
    sum_squares: float | None,
) -> tuple[float, float | None]:
    """(value, variance) of what a row says, of which numbers are finite, spreads 0 or more. Raises Unfit: its spread said twice, half of two sums,
    no n, impossible sums.

    >>> moments(3.02, 1800, None, 21.9, None, None, None)
    (3.02, 479.60999999999996)
    >>> moments(None, 4, None, None, None, 10, 30)
    (2.5, 1.6666666666666667)
    """
    if stddev is None and standard_error is None and sum is None and sum_squares is None and value is not None:
        return value, variance
    spreads = {"variance": variance, "stddev": stddev, "standard_error": standard_error, "sum_squares": sum_squares}
    given = [name for name, said in spreads.items() if said is not None]
    if value is not None and sum is not None:
        raise Unfit(
            "sum", "unknown_field", "value and sum are both there. Send value with one spread, or sum with sum_squares."
        )
    if len(given) > 1:
        told = f"{' and '.join(given)} are both there: a row says its spread once. Send one of them."
        raise Unfit(given[-1], "unknown_field", told)
    if sum is not None and sum_squares is not None:
        return _of_sums(n, sum, sum_squares)
    if sum is not None or sum_squares is not None:
        missing = "sum" if sum is None else "sum_squares"
        raise Unfit(
            missing, "missing_field", f"{missing} is missing: value and variance are made of sum, sum_squares and n."
        )
    if value is None:
        raise Unfit("value", "missing_field", "value is missing.")
    if stddev is not None:
        return value, stddev * stddev
    if n is None:
        raise Unfit(
            "n", "missing_field", "n is missing: a standard error becomes a variance by the n it was taken over."
        )
    return value, (standard_error or 0.0) ** 2 * n


def _of_sums(n: int | None, total: float, squares: float) -> tuple[float, float | None]:
    """Value and variance of n units by their sum and sum of squares. Of one unit there is no variance; of none, both sums are 0."""
    if n is None:
        raise Unfit("n", "missing_field", "n is missing: value and variance are made of sum, sum_squares and n.")
    if n == 0:
        if total or squares:
            raise Unfit("n", "invalid_number", f"n is 0, and sum is {total:g}: of no units both sums are 0.")
        return 0.0, None
    top, below = total.as_integer_ratio()
    top2, below2 = squares.as_integer_ratio()
    over = top2 * below * below * n - top * top * below2  # (sum_squares - sum^2 / n), times this:
    scale = n * below2 * below * below
    off, may = (
        over / scale,
        (DUST + 3 * n * _ROUNDING) * squares,
    )  # three sums of n floats, each off by n roundings at most
    if off < -may or (n == 1 and off > may):
        least = "not the square of sum" if n == 1 else f"less than sum^2 / n = {total * total / n:g}"
        said = f"sum_squares is {squares:g}, {least}: no {n} units have these sums. Sum the squares of their values."
        raise Unfit("sum_squares", "invalid_number", said)
    return total / n, None if n == 1 else max(over, 0) / (scale * (n - 1))
