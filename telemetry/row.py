"""A row as it comes: typed, with its spread by one name, or everything that is wrong with it.

The good path decodes straight into typed rows (msgspec) and never builds a dict. Only where a row says something else than what is stored is
the body read again: all at once where their fields are known ones, else row by row, to say exactly which value is wrong.
"""

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from decisioning.refusals import Fault, Refused
from experiments.plan import LARGEST, SMALLEST
from telemetry import spread
from telemetry.spread import DUST

MAX_ROWS = 10_000
FUTURE = dt.timedelta(minutes=5)
EARLIEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LATEST = dt.datetime(9998, 1, 1, tzinfo=dt.UTC)
_MAX_INT = 2**63 - 1

MOST_UNITS = 10**15
"""Beyond it a float no longer counts units one by one, and sums of counts leave 64 bits."""
Key = Annotated[str, msgspec.Meta(max_length=63)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_UNITS)]
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Spread = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]


class Denominator(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Second moments of a ratio's denominator, per unit of analysis."""

    value: Number
    variance: Spread | None = None
    covariance: Number | None = None


class SentDenominator(msgspec.Struct, frozen=True):
    """Second moments of a ratio's denominator, per unit of analysis. Other fields are ignored."""

    value: Number
    variance: Spread | None = None
    covariance: Number | None = None


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bucket of one series as it is stored. `ts` is the END of the bucket. What says more, or says it otherwise, is `Sent`."""

    metric: Key
    ts: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    value: Number
    variant: Key = "all"
    n: Count | None = None
    variance: Spread | None = None
    revision: Annotated[int, msgspec.Meta(ge=-_MAX_INT, le=_MAX_INT)] | None = None
    denominator: Denominator | None = None
    window_s: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class Sent(msgspec.Struct, frozen=True):
    """One bucket of one series as it may be sent: with its spread by any of its names. Other fields are ignored."""

    metric: Key
    ts: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    value: Number | None = None
    variant: Key = "all"
    n: Count | None = None
    variance: Spread | None = None
    stddev: Spread | None = None
    standard_error: Spread | None = None
    sum: Number | None = None
    sum_squares: Spread | None = None
    revision: Annotated[int, msgspec.Meta(ge=-_MAX_INT, le=_MAX_INT)] | None = None
    denominator: SentDenominator | None = None
    window_s: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


FIELDS = frozenset(Sent.__struct_fields__)
_OF_DENOMINATOR = frozenset(Denominator.__struct_fields__)
_NAMED = 20
"""Ignored fields that are named."""


class Checked(NamedTuple):
    """Good rows with their index, every fault of the others, and the fields of any that mean nothing here, in order."""

    good: list[tuple[int, Row]]
    bad: list[Fault]
    ignored: tuple[str, ...]


class _Body(msgspec.Struct, frozen=True):
    rows: list[Row]


_fast = msgspec.json.Decoder(_Body)


class IngestRefused(Refused):
    """Nothing of the batch was stored."""


def decode(body: bytes) -> list[Row] | None:
    """The rows of a well-formed body, None when anything is wrong with it: `check` then says what."""
    if b"\\" in body and b"\\u0000" in body:  # one character is found ten times as fast as six
        return None
    try:
        return _fast.decode(body).rows
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def names_stand_once(body: bytes, rows: Sequence[Row]) -> bool:
    """Whether it is certain, by counting, that no row of a body that `decode` has read names one of its values twice; False is no proof of it.

    >>> body = b'{"rows": [{"metric": "m", "ts": "2026-11-24T06:00:00Z", "value": 1, "value": 2}]}'
    >>> names_stand_once(body, decode(body)), names_stand_once(body.replace(b', "value": 2', b""), decode(body))
    (False, True)
    """
    if any(b'"%b:' % space in body for space in (b" ", b"\t", b"\n", b"\r")):
        return False
    below = [row.denominator for row in rows if row.denominator is not None]
    left_out = sum(
        [getattr(row, name) for row in rows].count(None)
        for name in ("n", "variance", "revision", "window_s", "denominator")
    )
    left_out += [row.variant for row in rows].count("all")
    left_out += [each.variance for each in below].count(None) + [each.covariance for each in below].count(None)
    names = 1 + 9 * len(rows) + 3 * len(below) - left_out  # that gave a value; every other one is more than these
    return body.count(b'":') == names


def check(payload: object) -> Checked:
    """The rows of a decoded body. Raises IngestRefused when there is no list of rows, or one that is too long."""
    rows = payload.get("rows") if isinstance(payload, Mapping) else None
    if not isinstance(rows, list):
        missing = isinstance(payload, Mapping) and "rows" not in payload
        code, detail = ("missing_field", "The body has no rows.") if missing else ("invalid", "rows must be a list.")
        fault = Fault("/rows", code, f'{detail} Send {{"rows": [{{"metric", "variant", "ts", "value"}}, ...]}}.', 0)
        raise IngestRefused("invalid_rows", fault.detail, errors=[fault])
    check_count(len(rows))
    names = ignored_names(rows)
    if (quick := _at_once(rows, names)) is not None:
        return Checked(list(enumerate(quick)), [], names)
    good: list[tuple[int, Row]] = []
    bad: list[Fault] = []
    for index, raw in enumerate(rows):
        faults = [fault.under(f"/rows/{index}", index) for fault in row_faults(raw)]
        if faults:
            bad += faults
        else:
            good.append((index, row_of(raw)))
    return Checked(good, bad, names)


def check_count(count: int) -> None:
    """Raises IngestRefused 413 `batch_too_large`."""
    if count > MAX_ROWS:
        raise IngestRefused(
            "batch_too_large", f"{count} rows; at most {MAX_ROWS} go in one request. Split the batch.", status=413
        )


def ignored_names(rows: Iterable[object]) -> tuple[str, ...]:
    """Fields of rows that mean nothing here, in order, the first ones; those of a denominator as `denominator.name`."""
    names: set[object] = set()
    below: set[object] = set()
    for raw in rows:
        if isinstance(raw, Mapping):
            names.update(raw)
            if isinstance(denominator := raw.get("denominator"), Mapping):
                below.update(denominator)
    found = [str(name) for name in names - FIELDS] + [f"denominator.{name}" for name in below - _OF_DENOMINATOR]
    return tuple(sorted(name[:80] for name in found))[:_NAMED]


def _at_once(rows: Sequence[object], ignored: Sequence[str]) -> list[Row] | None:
    """All rows, converted together; None where any may be wrong, or dust has to be rounded away."""
    if len(ignored) == _NAMED or any(spread.meant(name.removeprefix("denominator.")) for name in ignored):
        return None
    try:
        made = [_row(sent) for sent in msgspec.convert(rows, list[Sent])]
    except (msgspec.ValidationError, spread.Unfit):
        return None
    names = {row.metric for row in made} | {row.variant for row in made}
    return None if any(map(_text_problem, names)) or not all_in_range(made) else made


def _row(sent: Sent) -> Row:
    """Raises spread.Unfit."""
    value, variance = _moments(sent)
    below = sent.denominator
    denominator = None if below is None else Denominator(below.value, below.variance, below.covariance)
    return Row(
        sent.metric, sent.ts, value, sent.variant, sent.n, variance, sent.revision, denominator, sent.window_s
    )  # fmt: skip


def _moments(sent: Sent) -> tuple[float, float | None]:
    """Value and variance. Raises spread.Unfit."""
    value, variance = spread.moments(
        sent.value, sent.n, sent.variance, sent.stddev, sent.standard_error, sent.sum, sent.sum_squares
    )
    if sent.variance is None and variance is not None and (detail := beyond("variance", variance)):
        name = next(name for name in spread.SPREADS if getattr(sent, name) is not None)
        raise spread.Unfit(name, "out_of_range", f"By {name} the {detail}")
    if sent.value is None and (detail := beyond("value", value)):
        raise spread.Unfit("sum", "out_of_range", f"By sum the {detail}")
    return value, variance


# One row ------------------------------------------------------------------------------------------------------------------


def row_faults(raw: object) -> list[Fault]:
    """Each value of an untyped row that is not of its type, each name that looks like another, with its place below the row."""
    if not isinstance(raw, Mapping):
        return [Fault("", "invalid", "A row must be an object.")]
    if found := list(_faults(raw)):
        return found
    try:
        _moments(_sent(raw))
    except spread.Unfit as unfit:
        return [Fault(f"/{unfit.at}", unfit.code, str(unfit))]
    return []


def _faults(raw: Mapping[str, Any]) -> Iterable[Fault]:
    misnamed = spread.misnamed(raw, FIELDS)
    yield from spread.name_faults(misnamed)
    summed = raw.get("sum") is not None or raw.get("sum_squares") is not None
    for name in ("metric", "ts", "value"):
        if name not in raw and not (name == "value" and (summed or name in misnamed.values())):
            yield Fault(f"/{name}", "missing_field", f"{name} is missing.")
    for name in ("metric", "variant"):
        if name in raw and (problem := _text_problem(raw[name])):
            yield Fault(f"/{name}", "invalid_text", f"{name} {problem}.")
    if "ts" in raw:
        yield from ts_faults(raw["ts"])
    numbers = {name: raw[name] for name in raw if name != "value"} if summed and raw.get("value") is None else raw
    yield from _number_faults(numbers, "", _NUMBERS)
    denominator = raw.get("denominator")
    if isinstance(denominator, Mapping):
        yield from spread.denominator_faults(denominator)
        if "value" not in denominator:
            yield Fault("/denominator/value", "missing_field", "denominator.value is missing.")
        yield from _number_faults(
            denominator, "/denominator", {"value": _real, "variance": _spread, "covariance": _real}
        )
    elif denominator is not None:
        yield Fault("/denominator", "invalid", "denominator must be an object with value, variance and covariance.")


def _text_problem(value: object) -> str:
    if not isinstance(value, str):
        return "must be text"
    if "\x00" in value:
        return "has a NUL character"
    if len(value) > 63:
        return "is longer than 63 characters"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "has a lone surrogate"
    return ""


def instant(value: object) -> dt.datetime:
    """Raises msgspec.ValidationError unless the value is an RFC 3339 time."""
    return msgspec.convert(value, dt.datetime)


def ts_faults(value: object) -> Iterable[Fault]:
    try:
        parsed = instant(value)
    except msgspec.ValidationError:
        yield Fault("/ts", "invalid_timestamp", f"ts {value!r:.60} is no RFC 3339 time such as 2026-11-24T06:00:00Z.")
        return
    if parsed.tzinfo is None:
        yield Fault("/ts", "naive_timestamp", f"ts {value!r:.60} has no offset. Add Z or one such as +01:00.")


def range_fault(ts: dt.datetime, *, now: dt.datetime | None = None) -> tuple[str, str] | None:
    """(code, what is wrong) of a time outside the years that are taken or, where `now` is given, later than it.

    Compared as it came: at the far ends of the calendar it could not be turned into UTC.
    """
    if not EARLIEST <= ts < _LATEST:
        return "invalid_timestamp", f"ts {ts.isoformat()} is outside 1970 to 9998."
    if now and ts > now + FUTURE:
        return "timestamp_in_future", f"ts {ts.isoformat()} is in the future; now is {now.isoformat()}."
    return None


def time_faults(name: str, value: object, *, now: dt.datetime | None = None) -> list[tuple[str, str]]:
    """(code, what to do) of a time that is no row's, by its name: of any age, and for `now` see `range_fault`."""
    found = [(fault.code, fault.detail) for fault in ts_faults(value)]
    if not found and (fault := range_fault(instant(value), now=now)):
        found.append(fault)
    return [(code, detail.replace("ts ", f"{name} ", 1)) for code, detail in found]


def _number_faults(raw: Mapping[str, Any], prefix: str, checks: Mapping[str, Any]) -> Iterable[Fault]:
    for name, problem_of in checks.items():
        if name not in raw or (raw[name] is None and name != "value"):
            continue
        number = 0 if name == "variance" and _is_dust(raw[name], raw.get("value")) else raw[name]
        if detail := beyond(name, number):
            yield Fault(f"{prefix}/{name}", "out_of_range", detail)
        elif problem := problem_of(number):
            yield Fault(f"{prefix}/{name}", "invalid_number", f"{name} is {number!r:.40}; it must be {problem}.")


def all_in_range(rows: Sequence[Row]) -> bool:
    """Whether `beyond` finds nothing in any row."""
    numbers: list[float | None] = [row.n for row in rows]
    numbers += [row.value for row in rows]
    numbers += [row.variance for row in rows]
    for below in [row.denominator for row in rows if row.denominator is not None]:
        numbers += (below.value, below.variance, below.covariance)
    sizes = np.abs(np.array(numbers, np.float64))  # None becomes NaN, which is neither too large nor too small
    odd = (sizes > LARGEST) | ((sizes < SMALLEST) & (sizes > 0))
    return not odd.any() and not (sizes[: len(rows)] > MOST_UNITS).any()


def beyond(name: str, number: object) -> str:
    """What to do about a number that nothing could be computed with; empty where it is none of those, or none at all."""
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) < math.inf:
        return ""
    if name == "n":
        return (
            f"n is {number if number < 10**18 else _brief(number)}; at most 1e15 units are counted in a row."
            if number > MOST_UNITS
            else ""
        )
    if name in ("revision", "window_s") or number == 0 or SMALLEST <= abs(number) <= LARGEST:
        return ""
    return (
        f"{name} is {_brief(number)}; its magnitude must be between 1e-100 and 1e100, or 0. Leave a row out that measured nothing; "
        "a true value comes into range in another unit."
    )


def _brief(number: float) -> str:
    """A number of any length; there are integers that no float holds."""
    try:
        return f"{number:g}"
    except OverflowError:
        return f"{'-' if number < 0 else ''}1e{int(math.log10(abs(number)))} or more"


def _is_dust(variance: object, value: object) -> bool:
    if _real(variance) or _real(value):
        return False
    scale = float(value)  # type: ignore[arg-type]
    return -DUST * max(1.0, scale * scale) <= variance < 0  # type: ignore[operator]


def _real(value: object) -> str:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    return "" if good else "a finite number"


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _spread(value: object) -> str:
    return "" if not _real(value) and value >= 0 else "a finite number of 0 or more"  # type: ignore[operator]


def _whole(value: object) -> str:
    good = not _real(value) and float(value).is_integer() and abs(value) <= _MAX_INT  # type: ignore[arg-type]
    return "" if good else "a whole number"


def _count(value: object) -> str:
    return "" if not _whole(value) and value >= 0 else "a whole number of 0 or more"  # type: ignore[operator]


def _window(value: object) -> str:
    return "" if not _whole(value) and 1 <= value < 2**31 else "a whole number of seconds, 1 or more"  # type: ignore[operator]


_NUMBERS = {
    "value": _real, "n": _count, "variance": _spread, "stddev": _spread, "standard_error": _spread, "sum": _real, "sum_squares": _spread,
    "revision": _whole, "window_s": _window,
}  # fmt: skip


def row_of(raw: Mapping[str, Any]) -> Row:
    """The row of an untyped one that `row_faults` finds nothing in, with float dust rounded away."""
    return _row(_sent(raw))


def _sent(raw: Mapping[str, Any]) -> Sent:
    said = _without_dust(raw) | {
        name: int(raw[name]) for name in ("n", "revision", "window_s") if raw.get(name) is not None
    }
    if "denominator" in said:
        said["denominator"] = _without_dust(said["denominator"])
    return msgspec.convert(said, Sent)


def _without_dust(raw: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in raw.items() if value is not None}
    return said | ({"variance": 0.0} if said.get("variance", 0) < 0 else {})
