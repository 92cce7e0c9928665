"""Rows in: typed rows -> set-based statements in the caller's transaction. The only writer of KPI rows.

What rows have in common is looked at first; only where that may be wrong is each looked at, to say exactly which value is.
"""

import datetime as dt
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from django.conf import settings
from django.db import connection, transaction
from numpy.typing import NDArray
from psycopg import Cursor
from psycopg.errors import UniqueViolation

from decisioning.refusals import Fault
from experiments import registry
from telemetry import arrays, wake
from telemetry.row import EARLIEST, FUTURE, IngestRefused, Row, all_in_range, beyond, check_count, range_fault
from telemetry.spread import DUST


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


Place = Callable[[int], str]


def ingest(
    target: Target,
    rows: Sequence[tuple[int, Row]],
    *,
    now: dt.datetime,
    bad: Sequence[Fault] = (),
    atomic: bool = True,
    place: Place = "row {}".format,
) -> Ingested:
    """Store rows in the caller's transaction and wake the tick when it commits.

    rows: with their index in the batch. bad: faults that decoding found already. atomic: refuse all when one is bad. place: what the sender
    calls the row of an index.
    Raises IngestRefused: 422 `invalid_rows`, 409 `conflicting_row`, 413 `batch_too_large`, 429 `quota_exceeded`.
    """
    check_count(len(rows) + len({fault.index for fault in bad}))
    keys = _Keys.of(rows)
    measured = _metrics(set(keys.metrics))
    faults = list(bad)
    oldest = now - dt.timedelta(days=settings.RETENTION_DAYS)
    kept = rows
    if not (_all_fit(keys, rows, target, measured, now=now, oldest=oldest) and all_in_range([row for _, row in rows])):
        kept = []
        for index, sent in rows:
            row = _rounded(sent, measured.get(sent.metric))
            if found := _misfit(row, target, measured, now=now, oldest=oldest):
                faults.append(found.under(f"/rows/{index}", index))
            else:
                kept.append((index, row))
        keys = _Keys.of(kept)
    faults.sort(key=lambda fault: fault.index)
    if faults and atomic:
        raise IngestRefused("invalid_rows", _summary(faults), errors=faults)
    unique = _in_key_order(kept, keys, place)
    _check_agreed(unique.faults, atomic=atomic)
    _count_sent(target.team_id, len(rows), now=now)
    accepted, changed, stored_otherwise = _stored(target, unique.rows, unique.keys, now=now)
    clash = [Fault(f"/rows/{index}/value", "conflicting_row", _CONFLICT, index) for index in stored_otherwise]
    _check_agreed(clash, atomic=atomic)
    faults = sorted([*faults, *unique.faults, *clash], key=lambda fault: fault.index)
    if accepted or changed:
        transaction.on_commit(wake.tick)
    return Ingested(
        accepted=accepted,
        changed=changed,
        duplicates=len(unique.rows) + unique.repeated - accepted - changed - len(clash),
        last_ts=max((row.ts for _, row in unique.rows), default=None),
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


def _check_agreed(clash: Sequence[Fault], *, atomic: bool) -> None:
    if clash and atomic:
        raise IngestRefused("conflicting_row", clash[0].detail, status=409, errors=clash)


def _summary(faults: Sequence[Fault]) -> str:
    first = faults[0]
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"Row {first.index}: {first.detail.rstrip('.')}{more}. Nothing was stored; mend them, or send the good ones with ?atomic=false."


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


@dataclass(frozen=True)
class _Measured:
    """A registered metric: what a row of it may say. low, high: bounds of its value, infinite where there are none."""

    kind: str
    low: float = -math.inf
    high: float = math.inf


def _all_fit(
    keys: _Keys,
    rows: Sequence[tuple[int, Row]],
    target: Target,
    measured: Mapping[str, _Measured],
    *,
    now: dt.datetime,
    oldest: dt.datetime,
) -> bool:
    """Whether `_misfit` finds nothing in any row, told by what the rows have in common; False may only mean: look closely."""
    if not keys.metrics:
        return True
    first, last = arrays.microseconds([max(oldest, EARLIEST), now + FUTURE])
    return (
        target.variants.issuperset(keys.variants)
        and measured.keys() >= set(keys.metrics)
        and bool(first <= keys.ts.min() and keys.ts.max() <= last)
        and _all_in_bounds(keys, rows, [measured[metric] for metric in keys.metrics])
    )


def _all_in_bounds(keys: _Keys, rows: Sequence[tuple[int, Row]], of: Sequence[_Measured]) -> bool:
    """of: the metrics in the order of their places."""
    low, high = np.array([each.low for each in of]), np.array([each.high for each in of])
    if np.isinf(low).all() and np.isinf(high).all():
        return True
    values = np.array([row.value for _, row in rows])
    return bool(((low[keys.metric - 1] <= values) & (values <= high[keys.metric - 1])).all())


def _rounded(row: Row, of: _Measured | None) -> Row:
    """The row with a share that only adding floats has put outside [0, 1] at the bound."""
    if of is None or of.kind != "proportion" or 0 <= row.value <= 1 or not -DUST <= row.value <= 1 + DUST:
        return row
    return msgspec.structs.replace(row, value=min(max(row.value, 0.0), 1.0))


def _out_of_range(row: Row) -> Fault | None:
    below = row.denominator
    said = [("", "value", row.value), ("", "n", row.n), ("", "variance", row.variance)]
    if below is not None:
        at = "/denominator"
        said += [(at, "value", below.value), (at, "variance", below.variance), (at, "covariance", below.covariance)]
    for prefix, name, number in said:
        if detail := beyond(name, number):
            return Fault(f"{prefix}/{name}", "out_of_range", detail)
    return None


def _misfit(
    row: Row, target: Target, measured: Mapping[str, _Measured], *, now: dt.datetime, oldest: dt.datetime
) -> Fault | None:
    """What is wrong with a well-formed row for this experiment, as of now."""
    if row.variant not in target.variants:
        known = ", ".join(sorted(target.variants))
        return Fault(
            "/variant", "unknown_variant", f"This experiment has no variant {row.variant!r:.80}; it has {known}."
        )
    of = measured.get(row.metric)
    if of is None:
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
    if not of.low <= row.value <= of.high:
        low, high = (None if math.isinf(bound) else bound for bound in (of.low, of.high))
        said = registry.outside(row.value, of.kind, low, high)
        return Fault("/value", "out_of_bounds", f"value {said}. {row.metric} says so; send it in the metric's unit.")
    return _out_of_range(row)


def _in_key_order(rows: Sequence[tuple[int, Row]], keys: _Keys, place: Place) -> "_Ordered":
    """One row a key, in key order (so that opposite batches cannot deadlock)."""
    order = np.lexsort((keys.ts, keys.variant, keys.metric))
    ordered = keys.at(order)
    repeats = (ordered.numbers[1:] == ordered.numbers[:-1]).all(axis=1)
    if not repeats.any():
        return _Ordered([rows[at] for at in order.tolist()], ordered)
    unique, faults = _one_a_key(rows, keys, place)
    repeated = len(rows) - len(unique) - len(faults)
    return replace(_in_key_order(unique, _Keys.of(unique), place), repeated=repeated, faults=tuple(faults))


@dataclass(frozen=True)
class _Ordered:
    """rows: one a key, and their keys. repeated: how many said again what another of them says. faults: of rows that contradict each other."""

    rows: Sequence[tuple[int, Row]]
    keys: _Keys
    repeated: int = 0
    faults: tuple[Fault, ...] = field(default=())


def _one_a_key(rows: Sequence[tuple[int, Row]], keys: _Keys, place: Place) -> tuple[list[tuple[int, Row]], list[Fault]]:
    """The row of each key that holds: the highest revision, as between batches. Of a key whose rows contradict each other there is none, since
    nothing tells which of them came later; each of them has a fault that names two that differ."""
    same: dict[tuple[int, ...], list[tuple[int, Row]]] = {}
    for row, numbers in zip(rows, keys.numbers.tolist(), strict=True):
        same.setdefault(tuple(numbers), []).append(row)
    kept: list[tuple[int, Row]] = []
    faults: list[Fault] = []
    for group in same.values():
        highest = max((row.revision for _, row in group if row.revision is not None), default=None)
        newest = [(index, row) for index, row in group if row.revision in (highest, None)]
        at, held = next(((index, row) for index, row in newest if row.revision == highest), newest[0])
        rival = next(((index, row) for index, row in newest if _facts(row) != _facts(held)), None)
        if rival is None:
            kept.append((at, held))
            continue
        told = _contradiction(sorted([(at, held), rival], key=lambda found: found[0]), place)
        faults += [Fault(f"/rows/{index}/value", "conflicting_row", told, index) for index, _ in group]
    return kept, faults


def _facts(row: Row) -> dict[str, object]:
    said = msgspec.structs.asdict(row)
    return {name: said[name] for name in ("value", "n", "variance", "denominator", "window_s")}


def _contradiction(two: Sequence[tuple[int, Row]], place: Place) -> str:
    first, second = (_facts(row) for _, row in two)
    name = next(name for name in first if first[name] != second[name])
    said = [msgspec.json.encode(facts[name]).decode() for facts in (first, second)]
    both = f"{place(two[0][0])} and {place(two[1][0])}"
    return (
        f"{both[0].upper()}{both[1:]} have the same metric, variant and ts, and differ in {name}: {said[0]} and {said[1]}. Send one row for each, or "
        "the one that holds with a higher revision. A query that groups by a column too many yields such rows."
    )


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


_measured: dict[str, _Measured] = {}
_measured_read_at = float("-inf")
_MEASURED_FOR_S = 5.0


def _metrics(wanted: set[str]) -> Mapping[str, _Measured]:
    """By key; kept for a few seconds, since every batch asks. A key not seen yet is looked up at once."""
    global _measured, _measured_read_at
    if time.monotonic() - _measured_read_at > _MEASURED_FOR_S or not wanted <= _measured.keys():
        with connection.cursor() as cursor:
            cursor.execute("SELECT key, kind, minimum, maximum FROM metadata.metrics")
            found = {key: (kind, *registry.bounds_of(kind, low, high)) for key, kind, low, high in cursor.fetchall()}
        _measured_read_at = time.monotonic()
        _measured = {
            key: _Measured(kind, -math.inf if low is None else low, math.inf if high is None else high)
            for key, (kind, low, high) in found.items()
        }
    return _measured
