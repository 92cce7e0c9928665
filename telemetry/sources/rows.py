"""What a source yields as KPI rows: every cell by what it says itself, every row stored or refused with its place and reason."""

import datetime as dt
import math
import re
import zoneinfo
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from decisioning.literals import number_or_key
from decisioning.refusals import Fault
from telemetry import ingest
from telemetry.columns import COLUMNS, misnamed, number_in, row_of
from telemetry.ingest import Ingested
from telemetry.models import Source
from telemetry.row import MAX_ROWS, IngestRefused, Row, row_faults
from telemetry.sources.definition import CALLED
from telemetry.sources.refusals import SourceFailed
from telemetry.sources.window import Reading

CHUNK = 20_000
"""Rows that are read and stored at a time. Those of one experiment go in together, so that many experiments in a source cost little."""
SHOWN = 20
"""Columns of a ratio's denominator, and their names in it."""
KEYS, WHOLE = ("experiment", "metric", "variant"), ("n", "revision", "window_s")
_DATE, _CLOCK = r"\d{4}(?:-\d{1,2}-|/\d{1,2}/)\d{1,2}", r"[T ](?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,9})?)?"
LOCAL = f"{_DATE}(?:{_CLOCK})?"
ISO = rf"{_DATE}{_CLOCK}(?: ?Z| UTC| ?[+-][01]\d(?::?[0-5]\d)?)"
"""Times that can be read in one way only, in capitals: the year first; LOCAL without an offset. As Python and DuckDB both understand them."""
_DAY_OR_MONTH = r"\d{1,2}[-./]\d{1,2}[-./]\d{2,4}(?:\D.*)?"


class Unread(dict[str, Any]):
    """A line of a file as text, of which a cell that is ours could not be read. summed: the query adds lines up. problem: what is wrong
    with it, where no cell says so."""

    def __init__(self, cells: Any, *, summed: bool = False, problem: str = "It cannot be read.") -> None:
        super().__init__(cells)
        self.summed, self.problem = summed, problem


@dataclass(frozen=True)
class Stored:
    """What became of one chunk. `ignored`: rows of `strangers`, experiments that are not here. `skipped`: had been read before.

    problems: why rows were refused, the first ones. refused_from: the oldest time that a refused row has, the start of the reading where
    one has none.
    """

    accepted: int
    changed: int
    duplicates: int
    refused: int
    ignored: int
    skipped: int
    problems: tuple[str, ...]
    strangers: tuple[str, ...]
    newest: dt.datetime | None
    refused_from: dt.datetime | None


def store(
    source: Source, chunk: Sequence[Mapping[str, Any]], *, reading: Reading, now: dt.datetime, first: int = 1
) -> Stored:
    """Ingest one chunk in the caller's transaction: good rows are stored, each bad one is told, those of other experiments are counted.

    first: the number of the chunk's first row among those that the query yields. Raises SourceFailed.
    """
    refs = [_ref(raw) for raw in chunk]
    targets = ingest.targets({ref for ref in refs if ref is not None}, team_id=source.team_id)
    good: dict[int, list[tuple[str, Row]]] = {}
    problems: list[str] = []
    refused_at: list[dt.datetime] = []
    strangers: Counter[str] = Counter()
    skipped = 0
    for number, (raw, ref) in enumerate(zip(chunk, refs, strict=True), start=first):
        if ref is not None and ref not in targets:
            strangers[str(ref)] += 1
            continue
        place = _place(source, raw, number)
        row, problem, at = understood(source, raw, known=ref is not None)
        if row is None:
            if isinstance(raw, Unread) and raw.summed:
                raise SourceFailed(
                    f"{place}: {problem} The query adds lines up, and without this one a sum would be wrong."
                )
            problems.append(f"{place}: {problem} Row: {_told(raw)}")
            refused_at.append(at or reading.since)
        elif reading.has_read(targets[ref], row):  # type: ignore[index]
            skipped += 1
        else:
            good.setdefault(targets[ref].experiment_id, []).append((place, row))  # type: ignore[index]
    by_number = {target.experiment_id: target for target in targets.values()}
    done: list[Ingested] = []
    batches = ((pk, batch) for pk, rows in sorted(good.items()) for batch in _batched(rows))
    for pk, batch in batches:
        places = [place for place, _ in batch]
        try:
            ingested = ingest.ingest(
                by_number[pk],
                list(enumerate(row for _, row in batch)),
                now=now,
                atomic=False,
                place=places.__getitem__,
            )
        except IngestRefused as refusal:
            raise SourceFailed(refusal.message) from refusal
        for fault in ingested.refused:
            place, row = batch[fault.index]
            problems.append(f"{place}: {fault.detail} Row: {_told(msgspec.to_builtins(row))}"[:300])
            refused_at.append(row.ts)
        done.append(ingested)
    return Stored(
        accepted=sum(d.accepted for d in done),
        changed=sum(d.changed for d in done),
        duplicates=sum(d.duplicates for d in done),
        refused=len(problems),
        ignored=strangers.total(),
        skipped=skipped,
        problems=tuple(problems[:SHOWN]),
        strangers=tuple(name for name, _ in strangers.most_common(SHOWN)),
        newest=max((d.last_ts for d in done if d.last_ts), default=None),
        refused_from=min(refused_at, default=None),
    )


def _batched(rows: Sequence[tuple[str, Row]]) -> Iterator[Sequence[tuple[str, Row]]]:
    """As many at a time as ingest takes. Of more, those of one key go together, so that a contradiction of two is seen."""
    if len(rows) <= MAX_ROWS:
        yield rows
        return
    ordered = sorted(rows, key=_key)
    begin = 0
    while begin < len(ordered):
        end = min(begin + MAX_ROWS, len(ordered))
        while end < len(ordered) and end > begin + 1 and _key(ordered[end]) == _key(ordered[end - 1]):
            end -= 1
        yield ordered[begin:end]
        begin = end


def _key(placed: tuple[str, Row]) -> tuple[str, str, dt.datetime]:
    row = placed[1]
    return row.metric, row.variant, row.ts


def _ref(raw: Mapping[str, Any]) -> str | int | None:
    """The experiment that a row is of, by number or key."""
    ref = _plain(raw.get("experiment"))
    if isinstance(ref, str):
        ref = ref.strip()
        return number_or_key(ref) if ref else None
    if isinstance(ref, float) and ref.is_integer():
        return int(ref)
    return ref if isinstance(ref, int) and not isinstance(ref, bool) else None


def _place(source: Source, raw: Mapping[str, Any], number: int) -> str:
    in_file = raw.get("line") if source.kind == Source.Kind.FILE else None
    if isinstance(in_file, int):
        return f"{'Row' if source.path.lower().endswith('.parquet') else 'Line'} {in_file} of {source.path}"
    return f"Row {number} of the {'answer' if source.kind in CALLED else 'query'}"


def understood(source: Source, raw: Mapping[str, Any], *, known: bool) -> tuple[Row | None, str, dt.datetime | None]:
    """(row, what is wrong, when it is of). known: its experiment is here."""
    said: dict[str, Any] = {}
    faults: list[Fault] = []
    for name in (*COLUMNS[1:], *filter(misnamed, raw)):
        try:
            if (value := _value(source, name, raw.get(name))) is not None:
                said[name] = value
        except _Unfit as unfit:
            faults.append(Fault("", unfit.code, str(unfit)))
    at = said.get("ts")
    at = at if isinstance(at, dt.datetime) and at.tzinfo else None
    if isinstance(raw, Unread):
        fitting = row_faults(
            {"metric": "", "ts": "1970-01-01T00:00:00Z"} | ({} if "sum" in said else {"value": 0}) | said
        )
        wrong = [*faults, *fitting] or [Fault("", "invalid", raw.problem)]
        return None, _in_words(wrong), at
    if "metric" not in said and len(source.metrics) == 1:
        said["metric"] = source.metrics[0]
    if not known:
        faults.append(Fault("", "missing_field", "experiment is missing."))
    elif said.get("metric") not in source.metrics:
        detail = f"The source feeds {', '.join(source.metrics)}, not {said.get('metric')!r:.80}."
        faults.append(Fault("", "unknown_metric", detail))
    row = faults or row_of(said)
    return (None, _in_words(row), at) if isinstance(row, list) else (row, "", at)


def _in_words(faults: Sequence[Fault]) -> str:
    return " ".join(f"{fault.detail} ({fault.code})" for fault in faults)


class _Unfit(ValueError):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def _value(source: Source, name: str, value: object) -> object:
    """The value of one column: a text says what it is by itself, and what is not there or not defined is None. Raises _Unfit."""
    value = _plain(value)
    if name == "ts" and source.time_format and value is not None:
        return _since_1970(source, value)
    if isinstance(value, str):
        value = value.strip()
        if value in source.null_words:
            return None
        if name not in KEYS:
            value = _moment(source, value) if name == "ts" else number_in(_pointed(source, value))
    if isinstance(value, float) and math.isnan(value) and name not in ("ts", "value"):
        return None
    return None if value == "" else value


EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)
PER_SECOND = {Source.TimeFormat.SECONDS.value: 1, Source.TimeFormat.MILLISECONDS.value: 1_000}


def _since_1970(source: Source, value: object) -> dt.datetime:
    if isinstance(value, dt.datetime) and value.tzinfo:  # a file's, which its engine has read
        return value
    number = number_in(value.strip()) if isinstance(value, str) else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        with suppress(OverflowError, ValueError):
            return EPOCH + dt.timedelta(seconds=number / PER_SECOND[source.time_format])
    detail = (
        f"ts {value!r:.60} is no number of {Source.TimeFormat(source.time_format).label}, the source's time_format."
    )
    raise _Unfit("invalid_timestamp", detail)


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def _pointed(source: Source, text: str) -> str:
    """A number with a decimal point. One with both signs stays as it is, and is then none."""
    return text.replace(",", ".") if source.decimal_comma and "." not in text else text


def _moment(source: Source, text: str) -> object:
    """The time that a text is, else the text. One without offset is meant in the source's zone. Raises _Unfit."""
    if source.date_format and text:
        try:
            found = dt.datetime.strptime(text, source.date_format)  # noqa: DTZ007 - it may have %z
        except ValueError:
            detail = f"ts {text!r:.60} is no time of the source's date_format, {source.date_format}."
            raise _Unfit("invalid_timestamp", detail) from None
        return found if found.tzinfo else in_zone(source, found)
    if re.fullmatch(_DAY_OR_MONTH, text, re.ASCII | re.DOTALL):
        detail = (
            f"ts {text!r:.60} may have the day or the month first. Say which by the source's date_format, such as "
            "%d/%m/%Y or %m/%d/%Y, or export it as 2026-11-24T06:00:00Z."
        )
        raise _Unfit("ambiguous_date", detail)
    if source.kind == Source.Kind.SQL or not re.fullmatch(f"{ISO}|{LOCAL}", text.upper(), re.ASCII):
        return text
    date, _, clock = (
        re.sub(" UTC$| Z$", "Z", re.sub(r" (?=[+-]\d)", "", text.upper().replace("/", "-")))
        .replace("T", " ")
        .partition(" ")
    )
    year, month, day = map(int, date.split("-"))
    time = clock if clock[1:2] != ":" else f"0{clock}"
    try:
        found = dt.datetime.fromisoformat(f"{year:04}-{month:02}-{day:02}T{time or '00:00'}")
    except ValueError:
        return text
    return found if found.tzinfo else in_zone(source, found)


def in_zone(source: Source, local: dt.datetime) -> dt.datetime:
    """A time without offset as the source means it. Raises _Unfit."""
    if not source.time_zone:
        detail = (
            f"ts {local.isoformat()} has no offset. Export it with one, such as Z, or say in the source's time_zone where it is "
            "meant, such as UTC or Europe/Berlin."
        )
        raise _Unfit("naive_timestamp", detail)
    zone = zoneinfo.ZoneInfo(source.time_zone)
    found = local.replace(tzinfo=zone)
    if found.utcoffset() != found.replace(fold=1).utcoffset():
        detail = f"ts {local.isoformat()} is twice or never in {source.time_zone}, where the clocks change then. Export it with its offset."
        raise _Unfit("ambiguous_timestamp", detail)
    return found.astimezone(dt.UTC)


def _told(raw: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in raw.items() if name != "line" and value is not None)[:200]
