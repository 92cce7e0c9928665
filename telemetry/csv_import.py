"""KPI rows out of a CSV file that a person holds in hand: what they would change, then the change, then what was refused."""

import csv
import datetime as dt
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from django.db import connection, transaction

from decisioning.access.models import Team
from decisioning.literals import number_or_key
from decisioning.refusals import Refused
from telemetry import ingest
from telemetry.columns import COLUMNS, STORED, misnamed, missing_in, number_in, row_of
from telemetry.row import MAX_ROWS, IngestRefused, Row

FACTS = STORED
"""What a row says of its key."""
SHOWN, FIRST = 50, 5
MOST_CELLS, LONGEST_LINE = 300_000, 100_000
"""Of one file, whatever its bytes: read into memory a cell takes tens of times what it takes in the file. A line's in characters."""

Key = tuple[str, str, dt.datetime]
"""(metric, variant, ts) of one experiment's row."""


class FileRefused(Refused):
    """The file as a whole is no CSV of KPI rows."""


@dataclass(frozen=True)
class RefusedLine:
    """One line that was not taken. `line` is its number in the file; `raw` what it held."""

    line: int
    problem: str
    raw: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """One stored row that another replaces. `before`, `after`: what differs, by column."""

    experiment: str
    metric: str
    variant: str
    ts: dt.datetime
    before: Mapping[str, object]
    after: Mapping[str, object]


@dataclass(frozen=True)
class Understood:
    """One row as it is read. mean, sd: of one unit's value, in its unit; sd is None where nothing says the spread."""

    line: int
    experiment: str
    row: Row

    @property
    def sd(self) -> float | None:
        return None if self.row.variance is None else math.sqrt(self.row.variance)


@dataclass(frozen=True)
class Outcome:
    """Counts of rows; the first rows as they are read, and of those that change; every line that was refused; columns that mean nothing here."""

    accepted: int
    changed: int
    duplicates: int
    changes: tuple[Change, ...]
    refused: tuple[RefusedLine, ...]
    first: tuple[Understood, ...] = ()
    ignored: tuple[str, ...] = ()


def load(text: str, *, team: Team, now: dt.datetime, keep: bool) -> Outcome:
    """Ingest the good rows of a CSV text and tell of the others; keep=False undoes it all and tells what it would have done.

    Raises FileRefused.
    """
    lines = list(_lines(text))
    refused: list[RefusedLine] = []
    good: dict[str | int, list[tuple[int, Row]]] = {}
    raws = {number: raw for number, raw, _ in lines}
    for number, raw, wrong in lines:
        ref, row, problem = ("", None, wrong) if wrong else _understood(raw)
        if row is None:
            refused.append(RefusedLine(number, problem, raw))
        else:
            good.setdefault(ref, []).append((number, row))
    targets = ingest.targets(good, team_id=team.pk)
    done: list[ingest.Ingested] = []
    changes: list[Change] = []
    with transaction.atomic():
        for ref, rows in sorted(good.items(), key=lambda item: str(item[0])):
            if ref not in targets:
                refused += [RefusedLine(n, f"{team.key} has no experiment {ref!r}.", raws[n]) for n, _ in rows]
                continue
            pk, sent = targets[ref].experiment_id, [row for _, row in rows]
            before = _stored(pk, sent)
            try:
                result = ingest.ingest(targets[ref], rows, now=now, atomic=False, place="line {}".format)
            except IngestRefused as refusal:
                raise FileRefused(refusal.code, refusal.message) from refusal
            changes += _changes(str(ref), before, _stored(pk, sent))
            refused += [RefusedLine(fault.index, fault.detail, raws[fault.index]) for fault in result.refused]
            done.append(result)
        if not keep:
            transaction.set_rollback(True)
    return Outcome(
        accepted=sum(d.accepted for d in done),
        changed=sum(d.changed for d in done),
        duplicates=sum(d.duplicates for d in done),
        changes=tuple(changes[:SHOWN]),
        refused=tuple(sorted(refused, key=lambda r: r.line)),
        first=tuple(sorted(_first(good), key=lambda each: each.line)[:FIRST]),
        ignored=tuple(
            sorted(
                {name for _, raw, _ in lines[:1] for name in raw if name and name not in COLUMNS and not misnamed(name)}
            )
        ),
    )


def _first(good: Mapping[str | int, Sequence[tuple[int, Row]]]) -> Iterator[Understood]:
    for ref, rows in good.items():
        yield from (Understood(number, str(ref), row) for number, row in rows[:FIRST])


def refused_file(outcome: Outcome) -> str:
    """The refused lines as CSV, with their line and what is wrong before them; mended, it can be imported again."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for refused in outcome.refused for name in refused.raw))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["line", "problem", *names])
    for refused in outcome.refused:
        writer.writerow([refused.line, refused.problem, *(_harmless(refused.raw.get(name, "")) for name in names)])
    return out.getvalue()


def _harmless(text: str) -> str:
    """A spreadsheet runs what begins like a formula; a number may keep its sign."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and number_in(text) == text else text


def _lines(text: str) -> Iterator[tuple[int, dict[str, str], str]]:
    """(line, column -> text, what is wrong with its shape) of each row."""
    plain = text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}")
    reader = csv.DictReader(_short_enough(io.StringIO(plain)), strict=True)
    rows = 0
    try:
        names = [name.strip().lower() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if missing := missing_in(names):
            raise FileRefused("invalid", f"The first line must name the columns; there is no {', '.join(missing)}.")
        if twice := [name for name in COLUMNS if names.count(name) > 1]:
            raise FileRefused("invalid", f"The first line names {', '.join(twice)} twice.")
        for raw in reader:
            more, held = raw.pop(None, ()), [cell for cell in raw.values() if cell is not None]
            if len(held) == 1 and not held[0].strip():  # a line of blanks alone says nothing
                continue
            rows += 1
            if rows > MAX_ROWS:
                raise FileRefused(
                    "too_large",
                    f"More than {MAX_ROWS:,} rows; no more go in at once. Split the file, or make it a source.",
                )
            if rows * len(names) > MOST_CELLS:
                raise FileRefused(
                    "too_large",
                    f"More than {MOST_CELLS:,} cells, in columns of which {len(names):,} are named. Leave out those that are not ours, or split the file.",
                )
            cells = len(held) + len(more)
            problem = "" if cells == len(names) else f"The line has {cells} cells, the first line {len(names)} names."
            yield reader.line_num, {name: value or "" for name, value in raw.items()}, problem
    except csv.Error as error:
        raise FileRefused("invalid", f"Line {reader.line_num} is no CSV: {error}.") from error


def _short_enough(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if len(line) > LONGEST_LINE:
            raise FileRefused(
                "too_large",
                f"Line {number} has {len(line):,} characters; at most {LONGEST_LINE:,} are read. Is it a CSV of KPI rows?",
            )
        yield line


def _understood(raw: Mapping[str, str]) -> tuple[str | int, Row | None, str]:
    said: dict[str, Any] = {
        name: text.strip() for name, text in raw.items() if text.strip() and (name in COLUMNS or misnamed(name))
    }
    ref: str | int = said.pop("experiment", "")
    if not ref:
        return "", None, "experiment is missing."
    for name in set(said) - {"metric", "variant", "ts"}:
        said[name] = number_in(said[name])
    row = row_of(said)
    ref = number_or_key(str(ref))
    return (ref, None, " ".join(fault.detail for fault in row)) if isinstance(row, list) else (ref, row, "")


_STORED = f"""
SELECT k.metric, k.variant, k.ts, {", ".join(f"k.{name}" for name in FACTS)}
FROM json_to_recordset(%s) AS t(metric text, variant text, ts timestamptz)
JOIN metrics.experiment_kpis k ON k.experiment_id = %s AND k.metric = t.metric AND k.variant = t.variant AND k.ts = t.ts
"""  # noqa: S608 - column names are this module's own


def _stored(experiment_id: int, rows: Sequence[Row]) -> dict[Key, dict[str, object]]:
    """What is stored at the keys of these rows."""
    with connection.cursor() as cursor:
        cursor.execute(_STORED, [msgspec.json.encode(rows).decode(), experiment_id])
        found = cursor.fetchall()
    return {(metric, variant, ts): dict(zip(FACTS, facts, strict=True)) for metric, variant, ts, *facts in found}


def _changes(
    ref: str, before: Mapping[Key, Mapping[str, object]], after: Mapping[Key, Mapping[str, object]]
) -> Iterator[Change]:
    for key in sorted(before):
        old, new = before[key], after[key]
        differing = [name for name in FACTS if old[name] != new[name]]
        if differing:
            yield Change(ref, *key, {name: old[name] for name in differing}, {name: new[name] for name in differing})
