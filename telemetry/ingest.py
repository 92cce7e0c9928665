"""Rows in: bytes -> typed rows -> set-based statements in the caller's transaction. The only writer of KPI rows.

The good path decodes straight into typed rows (msgspec) and never builds a dict. Only when that fails, or a value is out of
its range, is the body read again row by row, to say exactly which value is wrong.
"""

import datetime as dt
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import numpy as np
from django.conf import settings
from django.db import connection, transaction
from numpy.typing import NDArray
from psycopg import Cursor
from psycopg.errors import UniqueViolation

from decisioning.refusals import Fault, Refused
from experiments.plan import LARGEST, SMALLEST
from telemetry import arrays, wake

MAX_ROWS = 10_000
FUTURE = dt.timedelta(minutes=5)
_EARLIEST = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LATEST = dt.datetime(9998, 1, 1, tzinfo=dt.UTC)
_MAX_INT = 2**63 - 1

MOST_UNITS = 10**15
"""Beyond it a float no longer counts units one by one, and sums of counts leave 64 bits."""
DUST = 1e-12
"""What adding floats may leave beyond a bound: a share is rounded to it from so far outside, a variance from so many times
max(1, value^2) below 0, which is what is left of E[x^2] - E[x]^2 where nothing varies."""

Key = Annotated[str, msgspec.Meta(max_length=63)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST_UNITS)]
Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
Spread = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]


class Denominator(msgspec.Struct, frozen=True):
    """Second moments of a ratio's denominator, per unit of analysis."""

    value: Number
    variance: Spread | None = None
    covariance: Number | None = None


class Row(msgspec.Struct, frozen=True):
    """One bucket of one series as sent. `ts` is the END of the bucket."""

    metric: Key
    ts: Annotated[dt.datetime, msgspec.Meta(tz=True)]
    value: Number
    variant: Key = "all"
    n: Count | None = None
    variance: Spread | None = None
    revision: Annotated[int, msgspec.Meta(ge=-_MAX_INT, le=_MAX_INT)] | None = None
    denominator: Denominator | None = None
    window_s: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] | None = None


class _Body(msgspec.Struct, frozen=True):
    rows: list[Row]


_fast = msgspec.json.Decoder(_Body)


class IngestRefused(Refused):
    """Nothing of the batch was stored."""


@dataclass(frozen=True)
class Target:
    """The experiment that rows are for, and what may be said about it."""

    experiment_id: int
    team_id: int
    variants: frozenset[str]


def targets(refs: Iterable[str | int], *, team_id: int | None = None) -> dict[str | int, Target]:
    """Experiments by number and by key, as far as they exist: a team's, or all that the caller sees. Keys hold a letter, so the two never meet."""
    keys, numbers = [r for r in refs if isinstance(r, str)], [r for r in refs if isinstance(r, int) and r < 2**63]
    with connection.cursor() as cursor:
        cursor.execute(_TARGETS, {"team": team_id, "keys": keys, "numbers": numbers})
        found: dict[str | int, Target] = {}
        for pk, key, team, variants in cursor.fetchall():
            found |= dict.fromkeys((pk, key), Target(pk, team, frozenset(variants)))
    return found


_TARGETS = """
SELECT e.id, e.key, e.team_id, array(SELECT v.key::text FROM metadata.variants v WHERE v.experiment_id = e.id)
FROM metadata.experiments e
WHERE (e.key = ANY (%(keys)s::text[]) OR e.id = ANY (%(numbers)s::bigint[])) AND e.team_id = coalesce(%(team)s, e.team_id)
"""


@dataclass(frozen=True)
class Ingested:
    """`accepted` rows were new, `changed` replaced a value, `duplicates` said nothing new. `last_ts`: newest of the batch."""

    accepted: int
    changed: int
    duplicates: int
    last_ts: dt.datetime | None
    refused: tuple[Fault, ...] = field(default=())


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


def check(payload: object) -> tuple[list[tuple[int, Row]], list[Fault]]:
    """Good rows with their index, and every fault of the others. Raises IngestRefused when there is no list of rows."""
    rows = payload.get("rows") if isinstance(payload, Mapping) else None
    if not isinstance(rows, list):
        missing = isinstance(payload, Mapping) and "rows" not in payload
        code, detail = ("missing_field", "The body has no rows.") if missing else ("invalid", "rows must be a list.")
        fault = Fault("/rows", code, f'{detail} Send {{"rows": [{{"metric", "variant", "ts", "value"}}, ...]}}.', 0)
        raise IngestRefused("invalid_rows", fault.detail, errors=[fault])
    _check_count(len(rows))
    good: list[tuple[int, Row]] = []
    bad: list[Fault] = []
    for index, raw in enumerate(rows):
        faults = [fault.under(f"/rows/{index}", index) for fault in row_faults(raw)]
        if faults:
            bad += faults
        else:
            good.append((index, row_of(raw)))
    return good, bad


def ingest(
    target: Target,
    rows: Sequence[tuple[int, Row]],
    *,
    now: dt.datetime,
    bad: Sequence[Fault] = (),
    atomic: bool = True,
) -> Ingested:
    """Store rows in the caller's transaction and wake the tick when it commits.

    rows: with their index in the batch. bad: faults that decoding found already. atomic: refuse all when one is bad.
    Raises IngestRefused: 422 `invalid_rows`, 409 `conflicting_row`, 413 `batch_too_large`, 429 `quota_exceeded`.
    """
    _check_count(len(rows) + len({fault.index for fault in bad}))
    keys = _Keys.of(rows)
    kinds = _metric_kinds(set(keys.metrics))
    faults = list(bad)
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    kept = rows
    if not (_all_fit(keys, target, kinds, now=now, oldest=oldest) and _all_in_range(rows)):
        kept = []
        for index, sent in rows:
            row = _rounded(sent, kinds.get(sent.metric))
            if found := _misfit(row, target, kinds, now=now, oldest=oldest):
                faults.append(found.under(f"/rows/{index}", index))
            else:
                kept.append((index, row))
        keys = _Keys.of(kept)
    faults.sort(key=lambda fault: fault.index)
    if faults and atomic:
        raise IngestRefused("invalid_rows", _summary(faults), errors=faults)
    unique, keys, repeated = _in_key_order(kept, keys, faults, atomic=atomic)
    _count_sent(target.team_id, len(rows), now=now)
    accepted, changed, conflicts = _stored(target, unique, keys, now=now)
    if conflicts:
        clash = [Fault(f"/rows/{index}/value", "conflicting_row", _CONFLICT, index) for index in conflicts]
        if atomic:
            raise IngestRefused("conflicting_row", _CONFLICT, status=409, errors=clash)
        faults = sorted([*faults, *clash], key=lambda fault: fault.index)
    if accepted or changed:
        transaction.on_commit(wake.tick)
    return Ingested(
        accepted=accepted,
        changed=changed,
        duplicates=len(unique) + repeated - accepted - changed - len(conflicts),
        last_ts=max((row.ts for _, row in kept), default=None),
        refused=tuple(faults),
    )


_COUNT = """
WITH counted AS (
  INSERT INTO metadata.rows_sent AS s (team_id, day, part, rows) VALUES (%(team)s, %(day)s, pg_backend_pid() %% 16, %(rows)s)
  ON CONFLICT (team_id, day, part) DO UPDATE SET rows = s.rows + excluded.rows RETURNING part, rows)
SELECT c.rows + coalesce((SELECT sum(o.rows) FROM metadata.rows_sent o WHERE o.team_id = %(team)s AND o.day = %(day)s AND o.part <> c.part), 0),
  (SELECT t.most_rows_a_day FROM metadata.teams t WHERE t.id = %(team)s) FROM counted c
"""


def _count_sent(team_id: int, rows: int, *, now: dt.datetime) -> None:
    """Add to what the team has sent today, before it costs anything. Raises IngestRefused: 429 `quota_exceeded`."""
    day = now.astimezone(dt.UTC).date()
    with connection.cursor() as cursor:
        cursor.execute(_COUNT, {"team": team_id, "day": day, "rows": rows})
        sent, most = cursor.fetchone() or (0, None)
    most = settings.QUOTAS["rows_a_day"] if most is None else most
    if sent > most:
        tomorrow = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(), dt.UTC)
        raise IngestRefused(
            "quota_exceeded",
            f"The team may send {most:,} rows a day, and these would make {int(sent):,} today. None was stored; go on after midnight UTC, or ask "
            "an admin of the installation for more.",
            status=429,
            extra={"retry_after_s": max(1, int((tomorrow - now).total_seconds()))},
        )


_CONFLICT = "This revision of the row is stored with another value. Send a higher revision to replace it."


def _check_count(count: int) -> None:
    if count > MAX_ROWS:
        raise IngestRefused(
            "batch_too_large", f"{count} rows; at most {MAX_ROWS} go in one request. Split the batch.", status=413
        )


def _summary(faults: Sequence[Fault]) -> str:
    first = faults[0]
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"Row {first.index}: {first.detail.rstrip('.')}{more}. Nothing was stored; mend them, or send the good ones with ?atomic=false."


# One row ------------------------------------------------------------------------------------------------------------------


def row_faults(raw: object) -> Iterable[Fault]:
    """(pointer below the row, code, what to do) for each value of an untyped row that is not of its type."""
    if not isinstance(raw, Mapping):
        yield Fault("", "invalid", "A row must be an object.")
        return
    for name in ("metric", "ts", "value"):
        if name not in raw:
            yield Fault(f"/{name}", "missing_field", f"{name} is missing.")
    for name in ("metric", "variant"):
        if name in raw and (problem := _text_problem(raw[name])):
            yield Fault(f"/{name}", "invalid_text", f"{name} {problem}.")
    if "ts" in raw:
        yield from ts_faults(raw["ts"])
    yield from _number_faults(
        raw, "", {"value": _real, "n": _count, "variance": _spread, "revision": _whole, "window_s": _window}
    )
    denominator = raw.get("denominator")
    if isinstance(denominator, Mapping):
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
    if not _EARLIEST <= ts < _LATEST:
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
        if detail := _beyond(name, number):
            yield Fault(f"{prefix}/{name}", "out_of_range", detail)
        elif problem := problem_of(number):
            yield Fault(f"{prefix}/{name}", "invalid_number", f"{name} is {number!r:.40}; it must be {problem}.")


def _beyond(name: str, number: object) -> str:
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


def row_of(raw: Mapping[str, Any]) -> Row:
    """The row of an untyped one that `row_faults` finds nothing in, with float dust rounded away."""
    said = _without_dust(raw) | {
        name: int(raw[name]) for name in ("n", "revision", "window_s") if raw.get(name) is not None
    }
    if "denominator" in said:
        said["denominator"] = _without_dust(said["denominator"])
    return msgspec.convert(said, Row)


def _without_dust(raw: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in raw.items() if value is not None}
    return said | ({"variance": 0.0} if said.get("variance", 0) < 0 else {})


@dataclass(frozen=True)
class _Keys:
    """The keys of some rows in numbers that sort as they do: places in the sorted names, and microseconds."""

    metrics: list[str]
    metric: NDArray[np.int32]
    variants: list[str]
    variant: NDArray[np.int32]
    ts: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, Row]]) -> "_Keys":
        metrics, metric = arrays.places([row.metric for _, row in rows])
        variants, variant = arrays.places([row.variant for _, row in rows])
        return cls(metrics, metric, variants, variant, arrays.microseconds([row.ts for _, row in rows]))

    def at(self, order: NDArray[np.intp]) -> "_Keys":
        return replace(self, metric=self.metric[order], variant=self.variant[order], ts=self.ts[order])

    @property
    def numbers(self) -> NDArray[np.int64]:
        """One line a row."""
        return np.column_stack((self.metric, self.variant, self.ts))


def _all_fit(keys: _Keys, target: Target, kinds: Mapping[str, str], *, now: dt.datetime, oldest: dt.datetime) -> bool:
    """Whether `_misfit` finds nothing in any row, told by what the rows have in common; False may only mean: look closely."""
    if not keys.metrics:
        return True
    first, last = arrays.microseconds([max(oldest, _EARLIEST), now + FUTURE])
    return (
        target.variants.issuperset(keys.variants)
        and all(kinds.get(metric, "proportion") != "proportion" for metric in keys.metrics)
        and bool(first <= keys.ts.min() and keys.ts.max() <= last)
    )


def _all_in_range(rows: Sequence[tuple[int, Row]]) -> bool:
    """Whether `_beyond` finds nothing in any row."""
    numbers: list[float | None] = [row.n for _, row in rows]
    numbers += [row.value for _, row in rows]
    numbers += [row.variance for _, row in rows]
    for below in [row.denominator for _, row in rows if row.denominator is not None]:
        numbers += (below.value, below.variance, below.covariance)
    sizes = np.abs(np.array(numbers, np.float64))  # None becomes NaN, which is neither too large nor too small
    odd = (sizes > LARGEST) | ((sizes < SMALLEST) & (sizes > 0))
    return not odd.any() and not (sizes[: len(rows)] > MOST_UNITS).any()


def _rounded(row: Row, kind: str | None) -> Row:
    """The row with a share that only adding floats has put outside [0, 1] at the bound."""
    if kind != "proportion" or 0 <= row.value <= 1 or not -DUST <= row.value <= 1 + DUST:
        return row
    return msgspec.structs.replace(row, value=min(max(row.value, 0.0), 1.0))


def _out_of_range(row: Row) -> Fault | None:
    below = row.denominator
    said = [("", "value", row.value), ("", "n", row.n), ("", "variance", row.variance)]
    if below is not None:
        at = "/denominator"
        said += [(at, "value", below.value), (at, "variance", below.variance), (at, "covariance", below.covariance)]
    for prefix, name, number in said:
        if detail := _beyond(name, number):
            return Fault(f"{prefix}/{name}", "out_of_range", detail)
    return None


def _misfit(
    row: Row, target: Target, kinds: Mapping[str, str], *, now: dt.datetime, oldest: dt.datetime
) -> Fault | None:
    """What is wrong with a well-formed row for this experiment, as of now."""
    if row.variant not in target.variants:
        known = ", ".join(sorted(target.variants))
        return Fault(
            "/variant", "unknown_variant", f"This experiment has no variant {row.variant!r:.80}; it has {known}."
        )
    kind = kinds.get(row.metric)
    if kind is None:
        return Fault(
            "/metric",
            "unknown_metric",
            f"No metric {row.metric!r:.80} is registered. Create it with POST /api/metrics.",
        )
    if fault := range_fault(row.ts, now=now):
        return Fault("/ts", *fault)
    if row.ts < oldest:
        return Fault(
            "/ts",
            "timestamp_too_old",
            f"ts {row.ts.isoformat()} is older than the {settings.RETENTION_DAYS} days kept.",
        )
    if kind == "proportion" and not 0 <= row.value <= 1:
        return Fault("/value", "invalid_number", f"value is {row.value!r}; a proportion lies between 0 and 1.")
    return _out_of_range(row)


def _in_key_order(
    rows: Sequence[tuple[int, Row]], keys: _Keys, faults: list[Fault], *, atomic: bool
) -> tuple[Sequence[tuple[int, Row]], _Keys, int]:
    """One row a key, in key order (so that opposite batches cannot deadlock), their keys, and how many rows repeated one."""
    order = np.lexsort((keys.ts, keys.variant, keys.metric))
    ordered = keys.at(order)
    repeats = (ordered.numbers[1:] == ordered.numbers[:-1]).all(axis=1)
    if repeats.any():
        unique, repeated = _deduplicated(rows, keys, faults, atomic=atomic)
        return *_in_key_order(unique, _Keys.of(unique), faults, atomic=atomic)[:2], repeated
    return [rows[place] for place in order.tolist()], ordered, 0


def _deduplicated(
    rows: Sequence[tuple[int, Row]], keys: _Keys, faults: list[Fault], *, atomic: bool
) -> tuple[list[tuple[int, Row]], int]:
    """One row a key, and how many repeated it.

    Within a batch the rules are those between batches: the highest revision wins, without one the later row.
    """
    best: dict[tuple[int, ...], tuple[int, Row]] = {}
    repeated = 0
    for (index, row), numbers in zip(rows, keys.numbers.tolist(), strict=True):
        key = tuple(numbers)
        if key not in best:
            best[key] = (index, row)
            continue
        held = best[key][1]
        repeated += 1
        if row.revision is not None and held.revision == row.revision and row != held:
            fault = Fault(f"/rows/{index}/value", "conflicting_row", _CONFLICT, index)
            if atomic:
                raise IngestRefused("conflicting_row", _CONFLICT, status=409, errors=[fault])
            faults.append(fault)
            repeated -= 1
        elif row.revision is None or held.revision is None or row.revision > held.revision:
            newest = row if row.revision is not None else msgspec.structs.replace(row, revision=held.revision)
            best[key] = (index, newest)
    return list(best.values()), repeated


# The database -------------------------------------------------------------------------------------------------------------

_COLUMNS = (
    "ts", "metric", "variant", "value", "n", "variance", "denominator_value", "denominator_variance", "covariance",
    "window_s", "revision",
)  # fmt: skip
_FACTS = ("value", "n", "variance", "denominator_value", "denominator_variance", "covariance", "window_s")
# Rows travel as one binary array a column, the names as places in a short list: PostgreSQL took a third longer over one JSON text,
# and COPY into a temporary table was no faster than that.
_SENT = """
SELECT ts, (%(metrics)s::text[])[metric], (%(variants)s::text[])[variant], value, n, variance, denominator_value, denominator_variance,
  covariance, window_s, revision, position
FROM unnest(%(ts)s::timestamptz[], %(metric)s::int4[], %(variant)s::int4[], %(value)s::float8[], %(n)s::int8[], %(variance)s::float8[],
  %(denominator_value)s::float8[], %(denominator_variance)s::float8[], %(covariance)s::float8[], %(window_s)s::int4[], %(revision)s::int8[])
WITH ORDINALITY AS sent(ts, metric, variant, value, n, variance, denominator_value, denominator_variance, covariance, window_s, revision, position)
"""
_DIFFERS = f"({', '.join(f'k.{c}' for c in _FACTS)}) IS DISTINCT FROM ({', '.join(f'excluded.{c}' for c in _FACTS)})"

_INSERT = f"""
INSERT INTO metrics.experiment_kpis AS k (experiment_id, team_id, first_received_at, received_at, {", ".join(_COLUMNS)})
SELECT %(experiment)s, %(team)s, %(now)s, %(now)s, {", ".join(f"t.{c}" for c in _COLUMNS)} FROM ({_SENT}) AS t({", ".join((*_COLUMNS, "position"))})
"""  # noqa: S608 - column names are this module's own

_UPSERT = f"""
WITH written AS ({_INSERT}ON CONFLICT (experiment_id, metric, variant, ts) DO UPDATE SET
  {", ".join(f"{c} = excluded.{c}" for c in _FACTS)},
  revision = coalesce(excluded.revision, k.revision), received_at = excluded.received_at
WHERE CASE WHEN excluded.revision IS NULL OR k.revision IS NULL THEN {_DIFFERS} OR (k.revision IS NULL AND excluded.revision IS NOT NULL)
           ELSE excluded.revision > k.revision END
RETURNING old.ts IS NULL AS is_new)
SELECT count(*) FILTER (WHERE is_new), count(*) FILTER (WHERE NOT is_new) FROM written
"""  # noqa: S608

# Whether no row can be one that the batch would change: none is at its times, of its metrics and variants. Asked for in the index's order, since
# for EXISTS the planner may read a whole partition where it expects many rows and there are none.
_MEETS_NONE = """
(SELECT true FROM metrics.experiment_kpis WHERE experiment_id = %(experiment)s AND metric = ANY (%(metrics)s) AND variant = ANY (%(variants)s)
 AND ts BETWEEN %(first)s AND %(last)s ORDER BY metric, variant, ts LIMIT 1) IS NULL
"""

_CONFLICTS = f"""
SELECT t.position - 1 FROM ({_SENT}) AS t({", ".join((*_COLUMNS, "position"))})
JOIN metrics.experiment_kpis k ON k.experiment_id = %(experiment)s AND k.metric = t.metric AND k.variant = t.variant AND k.ts = t.ts
WHERE t.revision = k.revision AND ({", ".join(f"k.{c}" for c in _FACTS)}) IS DISTINCT FROM ({", ".join(f"t.{c}" for c in _FACTS)})
"""  # noqa: S608


def _stored(
    target: Target, rows: Sequence[tuple[int, Row]], keys: _Keys, *, now: dt.datetime
) -> tuple[int, int, list[int]]:
    """(new, changed, batch indexes whose revision is stored with another value)."""
    if not rows:
        return 0, 0, []
    sent = _columns([row for _, row in rows], keys)
    sent |= {"experiment": target.experiment_id, "team": target.team_id, "now": now}
    conflicts: list[int] = []
    with connection.wrap_database_errors, arrays.cursor() as cursor:
        if _all_new(cursor, sent):
            return len(rows), 0, []
        new, changed = cursor.execute(_UPSERT, sent).fetchone() or (0, 0)
        if sent["revision"]:
            conflicts = [rows[position][0] for (position,) in cursor.execute(_CONFLICTS, sent)]
    return new, changed, conflicts


def _all_new(cursor: Cursor[Any], sent: Mapping[str, Any]) -> bool:
    """Whether the rows met none of their keys and are stored: most batches are such, and ON CONFLICT takes nearly twice as long."""
    try:
        with transaction.atomic():
            cursor.execute(f"{_INSERT} WHERE {_MEETS_NONE}", sent)
    except UniqueViolation:  # another batch came in between
        return False
    return cursor.rowcount > 0


def _columns(rows: Sequence[Row], keys: _Keys) -> dict[str, Any]:
    below = [row.denominator for row in rows]
    return {
        "metrics": keys.metrics,
        "metric": arrays.numbers(keys.metric),
        "variants": keys.variants,
        "variant": arrays.numbers(keys.variant),
        "ts": arrays.instants(keys.ts),
        "first": rows[int(keys.ts.argmin())].ts,
        "last": rows[int(keys.ts.argmax())].ts,
        "value": arrays.float8s([row.value for row in rows]),
        "n": arrays.int8s([row.n for row in rows]),
        "variance": arrays.float8s([row.variance for row in rows]),
        "denominator_value": arrays.float8s([d.value if d else None for d in below]),
        "denominator_variance": arrays.float8s([d.variance if d else None for d in below]),
        "covariance": arrays.float8s([d.covariance if d else None for d in below]),
        "window_s": arrays.int4s([row.window_s for row in rows]),
        "revision": arrays.int8s([row.revision for row in rows]),
    }


_kinds: dict[str, str] = {}
_kinds_read_at = float("-inf")
_KINDS_FOR_S = 5.0


def _metric_kinds(wanted: set[str]) -> Mapping[str, str]:
    """Kind by metric key; kept for a few seconds, since every batch asks. A key not seen yet is looked up at once."""
    global _kinds, _kinds_read_at
    if time.monotonic() - _kinds_read_at > _KINDS_FOR_S or not wanted <= _kinds.keys():
        with connection.cursor() as cursor:
            cursor.execute("SELECT key, kind FROM metadata.metrics")
            _kinds, _kinds_read_at = dict(cursor.fetchall()), time.monotonic()
    return _kinds
