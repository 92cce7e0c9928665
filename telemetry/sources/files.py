"""CSV and Parquet files as the table `rows`. A cell of ours is read by what it says itself, never by what the first lines look like.

A CSV is read as text, and so are texts in a Parquet file. The columns that are ours (`definition.COLUMNS`) are then typed: keys stay text,
`ts` is a TIMESTAMPTZ, n, revision and window_s are BIGINT, the other numbers DOUBLE. A line with a cell that cannot be read, and one that
has more or fewer cells than the head, is not in `rows`: it comes first, as it stands in the file, to be refused by its line. A query that
sums lines up fails on such a line instead, since a sum without it would be wrong. A column that is not ours has the type that all of its
cells have.
"""

import bisect
import csv
import datetime as dt
import gzip
import itertools
import json
import re
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TextIO, cast

import duckdb

from telemetry.columns import COLUMNS, misnamed
from telemetry.models import Source
from telemetry.sources.definition import own_name
from telemetry.sources.places import database_file, file_of
from telemetry.sources.query import with_parameters
from telemetry.sources.refusals import SourceFailed
from telemetry.sources.rows import CHUNK, EPOCH, ISO, KEYS, LOCAL, PER_SECOND, WHOLE, Unread

_OPTIONS: dict[str, Any] = {
    "threads": "1",
    "memory_limit": "256MB",
    "max_temp_directory_size": "2GB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_persistent_secrets": "false",
    "python_enable_replacements": "false",  # or a query could name variables of this program as tables
}
_DELIMITERS = ",;\t|"
_LONGEST_HEAD = 1 << 16
_MOST_BROKEN = 100_000
_WHOLE = r"-?(?:0|[1-9]\d{0,17})"
_PLAIN = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?"  # a code such as 007 is no number
Bounds = Mapping[str, object]


def read(source: Source, bounds: Bounds, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of what the query yields of the source's file, as column -> value; unread lines of that time come before.

    bounds: `since` and `until`. A row that the query hands on whole has its place in the file as `line`. Raises SourceFailed, duckdb.Error.
    """
    path = file_of(source.path)
    if not path.is_file():  # the engine, which may open this file alone, would speak of permissions
        raise SourceFailed(f"There is no file {source.path[:80]!r} in the folder of files, DECISIONING_FILES.")
    with _opened(":memory:", limit_s, path) as engine:
        table = _parquet(engine, path, source) if path.suffix.lower() == ".parquet" else _csv(path, source)
        yield from _read(engine, table, source, bounds)


def read_database(source: Source, path: str, bounds: Bounds, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of what the query yields of a DuckDB database below the folder of files, which it can only read. Raises as `read`."""
    with _opened(str(database_file(path)), limit_s) as engine:
        query = _query(engine, source, bounds, ours={*COLUMNS})
        for chunk in _chunks(engine.execute(query, bounds)):
            yield [_with_instant(row) for row in chunk]


@contextmanager
def _opened(database: str, limit_s: float, *readable: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An engine that opens nothing but its database, to read, and these files; large sorts go to a folder that ends with it."""
    with TemporaryDirectory() as spilled:
        options = _OPTIONS | {"temp_directory": spilled}
        engine = _connected(database, options)
        with closing(engine), _interrupted_after(engine, limit_s):
            engine.execute(
                "SET TimeZone = 'UTC'"
            )  # that of functions on times; those without offset are told apart from them
            engine.execute(f"SET allowed_paths = [{', '.join(_text(str(path)) for path in readable)}]")
            engine.execute("SET enable_external_access = false")
            engine.execute("SET lock_configuration = true")
            yield engine


def _connected(database: str, options: Mapping[str, str]) -> duckdb.DuckDBPyConnection:
    """Raises SourceFailed, in whose words the place of the file does not stand."""
    try:
        return duckdb.connect(database, read_only=database != ":memory:", config=dict(options))
    except duckdb.Error as failure:
        if "lock" in str(failure):
            raise SourceFailed(
                "Another program has the DuckDB database open to write. Copy it when it is written, and rename the copy into place."
            ) from None
        raise SourceFailed(
            f"The file is no DuckDB database that DuckDB {duckdb.__version__} reads ({type(failure).__name__})."
        ) from None


def _read(
    engine: duckdb.DuckDBPyConnection, table: "_Table", source: Source, bounds: Bounds
) -> Iterator[list[dict[str, Any]]]:
    cells = {name: _cell(name, kind, source) for name, kind in table.columns.items() if name in COLUMNS}
    texts = [name for name in cells if table.columns[name] == "VARCHAR"]
    read = [name for name in texts if name not in KEYS] + [
        name for name in cells if _is_local(name, table.columns[name], source)
    ]
    unread = " OR ".join(_is_unread(name, table.columns[name], cells[name], source) for name in read) or "false"
    numbered = f"SELECT {table.place} AS _line, * FROM {table.source} WHERE {table.touched}"  # noqa: S608
    engine.execute(f"CREATE VIEW file AS SELECT * FROM ({numbered}) WHERE {table.filled}")  # noqa: S608
    others = {name: _one_type(engine, name, table, source) for name in table.columns if name not in COLUMNS}
    line = {} if "line" in map(str.lower, table.columns) else {"line": "_line"}
    shown = ", ".join(f"{sql} AS {_name(name)}" for name, sql in (line | cells | others).items())
    engine.execute(f"CREATE VIEW rows AS SELECT {shown} FROM file WHERE NOT coalesce({unread}, false)")  # noqa: S608
    query = _query(engine, source, bounds, ours={*COLUMNS, *line})
    summed = bool(texts) and _sums(engine, query, bounds)
    lines = table.lines
    if table.rejects:
        engine.execute(f"SELECT count(*) FROM {table.rejects} WHERE {table.touched}").fetchall()  # noqa: S608
        told = engine.execute(
            "SELECT DISTINCT ON (line) line, csv_line, error_message FROM reject_errors ORDER BY line"
        )
        broken = list[int]()
        while found := told.fetchmany(CHUNK):
            broken += [number for number, *_ in found]
            yield [
                _broken(lines.of(number), text, problem, summed=summed)
                for number, text, problem in found
                if text.strip(f"{source.delimiter or _DELIMITERS} \t\r\n")
            ]
        if len(broken) >= _MOST_BROKEN:
            raise SourceFailed(f"{len(broken):,} lines or more have other cells than the first line names.")
        lines = lines.without(broken)
    if read:
        dated = f"({cells['ts']})" if "ts" in cells else "NULL::TIMESTAMPTZ"
        asked = f"SELECT _line AS line, {', '.join(f'{_name(name)}::VARCHAR AS {_name(name)}' for name in cells)}"
        in_time = f"coalesce({dated} > $since AND {dated} <= $until, true)"
        for chunk in _chunks(engine.execute(f"{asked} FROM file WHERE ({unread}) AND {in_time}", bounds)):
            yield [_placed(Unread(row, summed=summed), lines) for row in chunk]
    for chunk in _chunks(engine.execute(query, bounds)):
        yield [_placed(_with_instant(row), lines) for row in chunk]


def _chunks(found: duckdb.DuckDBPyConnection) -> Iterator[list[dict[str, Any]]]:
    names = [column[0] for column in found.description or ()]
    while chunk := found.fetchmany(CHUNK):
        yield [dict(zip(names, row, strict=True)) for row in chunk]


def _query(engine: duckdb.DuckDBPyConnection, source: Source, bounds: Bounds, *, ours: Set[str]) -> str:
    """The source's query, of what it yields only that which is ours; `ts` as microseconds, which need no library of zones."""
    inner = with_parameters(source.query.strip().removesuffix(";"), parameter=r"$\1", colon=":")
    query = f"SELECT * FROM ({inner}\n) AS q"  # noqa: S608 - one SELECT, read-only
    yielded = engine.execute(f"SELECT column_name, column_type FROM (DESCRIBE {query})", bounds).fetchall()  # noqa: S608
    wanted = [
        f"epoch_us({_utc(name, kind, source)}) AS _ts" if own == "ts" and _is_time(kind) else f"{_name(name)} AS {own}"
        for name, kind in yielded
        if (own := name.strip().lower()) in ours
    ]
    # What is not ours goes along by name only, for the dry run to tell; what looks like ours with its values, to be refused.
    wanted += [
        f"{_name(name) if misnamed(name.strip().lower()) else 'NULL'} AS {_name(name)}"
        for name, _ in yielded
        if name.strip().lower() not in ours
    ]
    if not {name.strip().lower() for name, _ in yielded} & set(COLUMNS):
        raise SourceFailed(nothing_known([name for name, _ in yielded]))
    return query.replace("*", ", ".join(wanted), 1)


def _utc(name: str, kind: str, source: Source) -> str:
    if _has_zone(kind):
        return f"{_name(name)}::TIMESTAMPTZ"
    if source.time_zone:
        return _in_zone(f"{_name(name)}::TIMESTAMP", source)
    said = (
        "Say in the source's time_zone where it is meant, such as UTC"
        if source.kind == Source.Kind.FILE
        else "Yield ts AT TIME ZONE 'UTC'"
    )
    raise SourceFailed(f"ts is a time without an offset. {said}, or the zone it is in.")


def nothing_known(names: Sequence[str]) -> str:
    """What to say of a query that yields no column of a KPI row."""
    return f"The query yields {', '.join(names)[:200]}; it must yield experiment, metric, ts and value (or sum and sum_squares)."


def _sums(engine: duckdb.DuckDBPyConnection, query: str, bounds: Bounds) -> bool:
    """Whether a row that the query yields may stand for several lines of the file."""

    def steps(found: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for step in found:
            yield step
            yield from steps(step["children"])

    ((_, plan),) = engine.execute(f"EXPLAIN (FORMAT json) {query}", bounds).fetchall()
    return any(
        step["name"] == "WINDOW" or "AGGREGATE" in step["name"] or step.get("extra_info", {}).get("Aggregates")
        for step in steps(json.loads(plan))
    )


# The file -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Table:
    """How the engine reads a file. source: the table function. rejects: the same, which writes down the lines that are broken.

    place: a row's number in the file. columns: name -> type. touched: holds for every row, of which it reads every cell. filled: holds
    for those that say anything. lines: which line of the file a row's number stands for.
    """

    source: str
    place: str
    columns: Mapping[str, str]
    touched: str = "true"
    filled: str = "true"
    rejects: str = ""
    lines: "_Lines"


def _csv(path: Path, source: Source) -> _Table:
    packed = path.suffix.lower() == ".gz"
    encoding = source.encoding or "utf-8"
    try:
        with _opened_text(path, encoding) as file:
            head = re.split(r"[\r\n]", file.readline(_LONGEST_HEAD), maxsplit=1)[0]
        head.encode()
    except (UnicodeError, EOFError, zlib.error):
        raise SourceFailed(
            "The file's first line is not UTF-8. Export it so, or name its encoding in the source."
        ) from None
    split = [(delimiter, _heads(head, delimiter, source)) for delimiter in source.delimiter or _DELIMITERS]
    delimiter, names = max(split, key=lambda found: (len({*found[1]} & {*COLUMNS}), len(found[1])))
    if not names:
        raise SourceFailed("The file is empty: its first line must name the columns.")
    twice = next((name for i, name in enumerate(names) if name.lower() in [n.lower() for n in names[:i]]), None)
    if twice is not None:
        raise SourceFailed(f"The first line names two columns {twice[:80]!r}.")
    columns = ", ".join(f"{_text(name)}: 'VARCHAR'" for name in names)
    asked = (
        f"read_csv({_text(str(path))}, auto_detect = false, header = true, delim = {_text(delimiter)}, quote = '\"', "
        f"escape = '\"', columns = {{{columns}}}, ignore_errors = true, encoding = '{encoding}', "
        f"compression = '{'gzip' if packed else 'none'}'"
    )
    return _Table(
        source=f"{asked})",
        rejects=f"{asked}, store_rejects = true, rejects_limit = {_MOST_BROKEN})",
        place="row_number() OVER () + 1",
        columns=dict.fromkeys(names, "VARCHAR"),
        touched=f"strlen(concat({', '.join(map(_name, names))})) >= 0",
        filled=f"coalesce({', '.join(map(_name, names))}) IS NOT NULL",
        lines=_lines(path, encoding, delimiter, width=len(names)),
    )


def _opened_text(path: Path, encoding: str) -> TextIO:
    opened = (gzip.open if path.suffix.lower() == ".gz" else open)(
        path, "rt", encoding=encoding.replace("utf-8", "utf-8-sig"), errors="surrogateescape", newline=""
    )
    return cast("TextIO", opened)


class _Lines:
    """Lines of a CSV as an editor counts them. The engine counts records: it knows no line breaks inside of cells, and of rows it counts
    neither blank lines nor broken ones."""

    def __init__(self, skipped: Sequence[int] = (), tall: Sequence[int] = (), heights: Sequence[int] = ()) -> None:
        self._skipped, self._tall = sorted(skipped), tall
        self._heights = [0, *itertools.accumulate(heights)]
        self.plain = not skipped and not tall

    def without(self, broken: Sequence[int]) -> Self:
        """With more records that are no rows."""
        kept = copy(self)
        kept._skipped, kept.plain = sorted([*self._skipped, *broken]), self.plain and not broken
        return kept

    def of(self, record: int) -> int:
        """The first line of a record, blank and broken ones counted."""
        return record + self._heights[bisect.bisect_left(self._tall, record)]

    def of_row(self, row: int) -> int:
        record = row
        while (before := bisect.bisect_right(self._skipped, record)) + row != record:
            record = row + before
        return self.of(record)


def _lines(path: Path, encoding: str, delimiter: str, *, width: int) -> _Lines:
    """Counted record by record only in a file that may have lines which are none."""
    try:
        with _opened_text(path, encoding) as file:
            if not _is_uneven(file):
                return _Lines()
            file.seek(0)
            reader, last, blank, tall, heights = csv.reader(file, delimiter=delimiter), 0, [], [], []
            for record, cells in enumerate(reader, start=1):
                if not cells and width > 1:
                    blank.append(record)
                elif reader.line_num > last + 1:
                    tall.append(record)
                    heights.append(reader.line_num - last - 1)
                last = reader.line_num
            return _Lines(blank, tall, heights)
    except (csv.Error, EOFError, UnicodeError, zlib.error):  # what the engine makes of it is told by the engine
        return _Lines()


_UNEVEN = re.compile(r'"|\n\r?\n|\r\r')


def _is_uneven(file: TextIO) -> bool:
    """Whether there is a quote or a blank line in it."""
    before = "\n"
    while block := file.read(1 << 20):
        if _UNEVEN.search(before + block):
            return True
        before = block[-2:]
    return False


def _heads(line: str, delimiter: str, source: Source) -> list[str]:
    """The columns that a first line names: ours in lower case, the others as they are."""
    named = next(csv.reader([line], delimiter=delimiter), [])
    return [own_name(source, name) or f"column{place}" for place, name in enumerate(named)]


def _parquet(engine: duckdb.DuckDBPyConnection, path: Path, source: Source) -> _Table:
    table = f"read_parquet({_text(str(path))}, file_row_number = true)"
    found = engine.execute(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {table})").fetchall()  # noqa: S608
    columns = {name: kind for name, kind in found if name != "file_row_number"}
    heads = {name: own_name(source, name) for name in columns}
    renamed = ", ".join(f"{_name(name)} AS {_name(head)}" for name, head in heads.items())
    return _Table(
        source=f"(SELECT file_row_number, {renamed} FROM {table})",  # noqa: S608 - quoted where they are made
        place="file_row_number + 1",
        columns={heads[name]: kind for name, kind in columns.items()},
        lines=_Lines(),
    )


def _broken(line: int, text: str, problem: str, *, summed: bool) -> dict[str, Any]:
    told = f"The line cannot be read: {problem}"
    return Unread({"line": line, "text": text.strip()[:200]}, summed=summed, problem=told)


def _placed(row: dict[str, Any], lines: _Lines) -> dict[str, Any]:
    if not lines.plain and "line" in row:
        row["line"] = lines.of_row(row["line"])
    return row


def _with_instant(row: dict[str, Any]) -> dict[str, Any]:
    if "_ts" in row:
        microseconds = row.pop("_ts")
        row["ts"] = None if microseconds is None else EPOCH + dt.timedelta(microseconds=microseconds)
    return row


@contextmanager
def _interrupted_after(engine: duckdb.DuckDBPyConnection, limit_s: float) -> Iterator[None]:
    timer = threading.Timer(limit_s, engine.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


# Cells, in the engine's words ---------------------------------------------------------------------------------------------


def _cell(name: str, kind: str, source: Source) -> str:
    """The value of a cell that is ours; NULL for a text that cannot be read."""
    cell, quoted = _nothing_is_null(name, source), _name(name)
    match kind:
        case _ if name == "ts" and source.time_format and not _is_time(kind):
            seconds = f"TRY_CAST({cell if kind == 'VARCHAR' else quoted} AS DOUBLE) / {PER_SECOND[source.time_format]}"
            return f"CASE WHEN abs({seconds}) < 2e11 THEN to_timestamp({seconds}) END"
        case "VARCHAR" if name in KEYS:
            return cell
        case "VARCHAR" if name == "ts" and source.date_format:
            read = f"try_strptime({cell}, {_text(source.date_format)})"
            return read if "%z" in source.date_format else _in_zone(read, source)
        case "VARCHAR" if name == "ts":
            return _instant(f"upper({cell})", source)
        case "VARCHAR":
            # Of what the engine casts, 1_000 and the infinite are no number here. A pattern would take three times as long.
            if source.decimal_comma:
                cell = f"(CASE WHEN NOT contains({cell}, '.') THEN replace({cell}, ',', '.') END)"
            number = f"CASE WHEN NOT contains({quoted}, '_') THEN TRY_CAST({cell} AS DOUBLE) END"
            if name not in WHOLE:
                return f"CASE WHEN isfinite({number}) THEN {number} END"
            # 1800.0 is whole; what has more digits than a float holds is read as it stands
            return (
                f"CASE WHEN {number} = trunc({number}) AND abs({number}) < 2^53 THEN ({number})::BIGINT "
                f"WHEN regexp_full_match({cell}, '[+-]?\\d+') THEN TRY_CAST({cell} AS BIGINT) END"
            )
        case "FLOAT" | "DOUBLE" if name != "value" and name != "ts":  # a spread that is not defined comes as NaN
            return f"CASE WHEN NOT isnan({quoted}) THEN {quoted} END"
        case _ if name == "ts" and _is_time(kind):
            if _has_zone(kind):
                return f"{quoted}::TIMESTAMPTZ"
            return _in_zone(f"{quoted}::TIMESTAMP", source) if source.time_zone else f"{quoted}::TIMESTAMP"
        case _ if name in KEYS and kind.startswith("ENUM"):
            return f"{quoted}::VARCHAR"
        case _:
            return quoted


def _nothing_is_null(name: str, source: Source) -> str:
    cell = f"NULLIF(trim({_name(name)}), '')"
    return (
        f"(CASE WHEN {cell} NOT IN ({', '.join(map(_text, source.null_words))}) THEN {cell} END)"
        if source.null_words
        else cell
    )


def _is_local(name: str, kind: str, source: Source) -> bool:
    """Whether a column holds times that its zone may have twice or never."""
    return name == "ts" and _is_time(kind) and not _has_zone(kind) and source.time_zone not in ("", "UTC")


def _is_unread(name: str, kind: str, cell: str, source: Source) -> str:
    if kind != "VARCHAR":
        return f"({_name(name)} IS NOT NULL AND ({cell}) IS NULL)"
    undefined = "" if name in ("ts", "value") else f" AND lower(trim({_name(name)})) <> 'nan'"
    return f"({_nothing_is_null(name, source)} IS NOT NULL AND ({cell}) IS NULL{undefined})"


def _is_time(kind: str) -> bool:
    return kind.startswith("TIMESTAMP") or kind == "DATE"


def _has_zone(kind: str) -> bool:
    return kind.startswith(("TIMESTAMPTZ", "TIMESTAMP WITH"))


def _instant(text: str, source: Source) -> str:
    """The instant that a text in capitals is, NULL where it is none; one without offset is in the source's zone."""
    local = _in_zone(f"TRY_CAST({text} AS TIMESTAMP)", source)
    return (
        f"CASE WHEN regexp_full_match({text}, {_text(ISO)}) THEN TRY_CAST(regexp_replace({text}, ' ([Z+-])', '\\1') AS TIMESTAMPTZ) "
        f"WHEN regexp_full_match({text}, {_text(LOCAL)}) THEN {local} END"
    )


def _in_zone(local: str, source: Source) -> str:
    """A time without offset as the source means it; NULL where no zone is named, and for what its clocks show twice or never."""
    if not source.time_zone:
        return "NULL::TIMESTAMPTZ"
    zone = _text(source.time_zone)
    found = f"timezone({zone}, {local})"
    if source.time_zone == "UTC":
        return found
    clock = f"timezone({zone}, {found}"
    twice = " OR ".join(f"{clock} {sign} INTERVAL {minutes} MINUTE) = {local}" for sign in "+-" for minutes in _CHANGES)
    return f"CASE WHEN {clock}) = {local} AND NOT ({twice}) THEN {found} END"


_CHANGES = (20, 30, 40, 60, 120)
"""Minutes by which clocks have been changed."""


def _one_type(engine: duckdb.DuckDBPyConnection, name: str, table: _Table, source: Source) -> str:
    """A column that is not ours, where the query names it: of the type that all of its texts have, each of which is looked at."""
    quoted, cell = _name(name), f"NULLIF(trim({_name(name)}), '')"
    kind = table.columns[name]
    if name.lower() not in source.query.lower():
        return quoted
    if source.time_zone and _is_time(kind) and not _has_zone(kind):
        instant = _in_zone(f"{quoted}::TIMESTAMP", source)
        ((unread,),) = engine.execute(f"SELECT count({quoted}) - count({instant}) FROM file").fetchall()  # noqa: S608 - quoted above
        if unread:
            raise SourceFailed(
                f"{unread:,} times in {name[:80]} are twice or never in {source.time_zone}, where the clocks change then."
            )
        return instant
    if kind != "VARCHAR" or not table.rejects:
        return quoted
    read = {kind: f"CASE WHEN regexp_full_match({cell}, {_text(pattern)}) THEN TRY_CAST({cell} AS {kind}) END"
            for pattern, kind in ((_WHOLE, "BIGINT"), (_PLAIN, "DOUBLE"), (LOCAL, "TIMESTAMP"))}  # fmt: skip
    instant = _instant(f"upper({cell})", source)
    kinds = [read["BIGINT"], read["DOUBLE"], instant, *([] if source.time_zone else [read["TIMESTAMP"]])]
    fits = ", ".join(f"bool_and(({found}) IS NOT NULL) FILTER ({cell} IS NOT NULL)" for found in kinds)
    (all_fit,) = engine.execute(f"SELECT {fits} FROM file").fetchall()  # noqa: S608 - quoted above
    return next((found for found, fit in zip(kinds, all_fit, strict=True) if fit), quoted)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
