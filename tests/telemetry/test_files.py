"""Files are read by what each cell says: no type, day or number is guessed from the lines before it."""

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from django.conf import LazySettings

from telemetry.models import Source
from telemetry.sources import files
from telemetry.sources.refusals import SourceFailed
from telemetry.sources.rows import Unread, _value

TOP = datetime(2026, 11, 24, 6, tzinfo=UTC)
HEAD = "experiment,metric,variant,ts,value,n"
ALL = "SELECT * FROM rows WHERE ts > :since AND ts <= :until"
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def folder(settings: LazySettings, tmp_path: Path) -> Path:
    settings.SOURCES_DIR = tmp_path
    return tmp_path


def read(path: Path, query: str = ALL, **said: Any) -> tuple[Rows, list[Unread]]:
    """(rows, lines that could not be read)."""
    source = Source(kind="file", path=path.name, query=query, metrics=["m"], **{"time_zone": "UTC"} | said)
    bounds = {"since": TOP - timedelta(days=30), "until": TOP + timedelta(days=30)}
    found = [row for chunk in files.read(source, bounds, 60) for row in chunk]
    return [row for row in found if not isinstance(row, Unread)], [row for row in found if isinstance(row, Unread)]


def write(folder: Path, *lines: str, head: str = HEAD, name: str = "kpis.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([head, *lines, ""]))
    return path


def of(rows: Rows, name: str) -> list[Any]:
    return [row[name] for row in rows]


def test_decimals_after_twenty_thousand_whole_numbers_and_times_after_days_stay_what_they_are(folder: Path) -> None:
    whole = [f"e,m,control,2026-11-20,{i % 3},400" for i in range(21_000)]
    rows, unread = read(write(folder, *whole, "e,m,control,2026-11-24T06:15:00Z,0.31,400"))
    assert (rows[-1]["value"], rows[-1]["ts"], unread) == (0.31, TOP + timedelta(minutes=15), [])
    assert len(rows) == 21_001


def test_keys_are_text_whatever_they_look_like(folder: Path) -> None:
    lines = [f"{key},m,{key},2026-11-24,1,1" for key in ("true", "007", "73e1", "2026-11-24", "NULL", "nan")]
    rows, _ = read(write(folder, *lines))
    assert of(rows, "experiment") == of(rows, "variant") == ["true", "007", "73e1", "2026-11-24", "NULL", "nan"]


def test_heads_are_found_whatever_their_case_delimiter_and_mark(folder: Path) -> None:
    path = write(folder, "e;m;2026-11-24;0.5;8", head="\ufeffEXPERIMENT; Metric;TS;Value;N")
    ((row,), unread) = read(path)
    assert (row, unread) == (
        {"line": 2, "experiment": "e", "metric": "m", "ts": TOP.replace(hour=0), "value": 0.5, "n": 8},
        [],
    )


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("2026-11-24T06:00:00Z", TOP),
        ("2026-11-24t06:00:00z", TOP),
        ("2026-11-24 07:00:00+01", TOP),
        ("2026-11-24 07:30+0130", TOP),
        ("2026-11-24 06:00:00.000 +0000", TOP),
        ("2026-11-24 06:00:00 Z", TOP),
        ("2026-11-24 6:00", TOP),
        ("2026/11/24 06:00:00 UTC", TOP),
        ("2026-11-24T06:00:00.123456789Z", TOP.replace(microsecond=123456)),
        ("2026-11-24", TOP.replace(hour=0)),
    ],
)
def test_a_time_that_begins_with_its_year_is_read_alike_by_the_engine_and_by_us(
    folder: Path, text: str, right: datetime
) -> None:
    ((row,), unread) = read(write(folder, f"e,m,control,{text},1,1"))
    assert (row["ts"], unread) == (right, [])
    assert _value(Source(kind="file", time_zone="UTC"), "ts", text) == right


@pytest.mark.parametrize(
    "text", ["11/02/2026", "24.11.2026", "n/a", "2026-02-30", "2026-11-24 24:00", "infinity", "1764000000", "2026-11-24 06:00 Europe/Berlin"]
)  # fmt: skip
def test_no_other_time_is_guessed_at(folder: Path, text: str) -> None:
    rows, (line,) = read(write(folder, "e,m,control,2026-11-24,1,1", f"e,m,control,{text},1,1"))
    assert (len(rows), line["line"], line["ts"]) == (1, 3, text)


@pytest.mark.parametrize(
    ("date_format", "text", "right"),
    [
        ("%m/%d/%Y", "11/02/2026", datetime(2026, 11, 2, tzinfo=UTC)),
        ("%d/%m/%Y", "11/02/2026", None),
        ("%d.%m.%Y %H:%M", "24.11.2026 06:00", TOP),
        ("%d.%m.%y %H:%M %z", "24.11.26 07:00 +0100", TOP),
        ("%b %d %Y %I:%M %p", "Nov 24 2026 06:00 AM", TOP),
    ],
)
def test_the_date_format_of_the_source_settles_what_is_first(
    folder: Path, date_format: str, text: str, right: datetime | None
) -> None:
    rows, unread = read(write(folder, f"e,m,control,{text},1,1"), date_format=date_format)
    assert (of(rows, "ts"), unread) == ([right] if right else [], []), "11 February is out of the window"


def test_numbers_are_numbers_strictly_and_a_spread_that_is_not_defined_is_none(folder: Path) -> None:
    head = "experiment,metric,ts,value,n,variance"
    good = ("-1.5e-3,1800.0,NaN", "+7,9007199254740993,", ".5,,0")
    bad = (
        "1_000,1,1",
        "inf,1,1",
        "0x10,1,1",
        "1e400,1,1",
        '"1,5",1,1',
        "nan,1,1",
        "true,1,1",
        "1,0.5,1",
        "1,1,x",
        "1,1e300,1",
    )
    rows, unread = read(write(folder, *(f"e,m,2026-11-24,{cells}" for cells in good + bad), head=head))
    assert [(row["value"], row["n"], row["variance"]) for row in rows] == [
        (-0.0015, 1800, None), (7, 9007199254740993, None), (0.5, None, 0),
    ]  # fmt: skip
    assert of(list(unread), "line") == list(range(5, 15))


def test_a_line_of_another_shape_is_told_and_the_lines_after_it_keep_their_numbers(folder: Path) -> None:
    lines = [
        "e,m,control,2026-11-24,1",
        "e,m,control,2026-11-24,2,1",
        "e,m,control,2026-11-24,3,1,9",
        "e,m,control,2026-11-24,4,1",
    ]
    rows, unread = read(write(folder, *lines))
    assert [(row["line"], row["value"]) for row in rows] == [(3, 2), (5, 4)]
    assert [(line["line"], line.problem.partition(":")[0]) for line in unread] == [
        (2, "The line cannot be read"), (4, "The line cannot be read"),
    ]  # fmt: skip


def test_a_byte_that_is_no_utf_8_refuses_its_line(folder: Path) -> None:
    path = folder / "kpis.csv"
    path.write_bytes(b"experiment,ts,value,note\ne,2026-11-24,1,caf\xe9\ne,2026-11-24,2,ok\n")
    rows, (line,) = read(path, "SELECT experiment, ts, value FROM rows WHERE ts > :since AND ts <= :until")
    assert (of(rows, "value"), line["line"]) == ([2], 2), "though the query does not ask for that cell"


def test_only_unread_lines_of_the_time_asked_for_are_told_and_those_of_no_time(folder: Path) -> None:
    _, unread = read(write(folder, "e,m,c,2020-01-01,x,1", "e,m,c,2026-11-24,x,1", "e,m,c,soon,1,1"))
    assert of(list(unread), "line") == [3, 4]


def test_a_query_that_adds_lines_up_says_so_of_a_line_that_it_would_miss(folder: Path) -> None:
    path = write(folder, "e,m,c,2026-11-24,1,5", "e,m,c,2026-11-24,x,5")
    for query, summed in (
        (ALL, False),
        (f"{ALL} ORDER BY ts", False),
        ("SELECT DISTINCT experiment, ts, value FROM rows WHERE ts > :since AND ts <= :until", False),
        ("SELECT experiment, ts, sum(n) AS n FROM rows WHERE ts > :since AND ts <= :until GROUP BY ALL", True),
        (
            "SELECT experiment, ts, sum(value) OVER (PARTITION BY n ORDER BY ts) AS value FROM rows WHERE ts > :since AND ts <= :until",
            True,
        ),
    ):
        assert [line.summed for line in read(path, query)[1]] == [summed], query


def test_a_column_that_is_not_ours_has_the_type_that_all_of_its_cells_have(folder: Path) -> None:
    path = write(folder, *(["2026-11-24,5,1,007"] * 21_000), "2026-11-24 06:00,6,0.31,1e3", head="day,users,rate,sku")
    query = "SELECT sku AS experiment, day AS TS, users * 2 AS n, rate + 0 AS Value FROM rows WHERE day > :since AND day <= :until"
    rows, _ = read(path, query)
    assert rows[-1] == {"experiment": "1e3", "ts": TOP, "n": 12, "value": 0.31}
    assert rows[0]["experiment"] == "007"


@pytest.mark.parametrize(
    "kind", ["TIMESTAMP_NS", "TIMESTAMPTZ_NS", "TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP_MS", "DATE", "VARCHAR"]
)
def test_parquet_of_every_clock_unit_compares_with_since(folder: Path, kind: str) -> None:
    path = folder / "kpis.parquet"
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        engine.execute(
            f"COPY (SELECT 'e' AS \"Experiment\", '2026-11-24'::{kind} AS \"TS\", 0.5 AS value, 'NaN'::DOUBLE AS variance, 7.0::DOUBLE AS n) TO '{path}'"
        )
    ((row,), unread) = read(path)
    assert (row["ts"], row["variance"], row["n"], row["experiment"], unread) == (TOP.replace(hour=0), None, 7, "e", [])


@pytest.mark.parametrize("text", ["", "ts,TS,value\n", "a,b\n"])
def test_a_head_that_names_nothing_one_column_twice_or_none_of_ours_is_said(folder: Path, text: str) -> None:
    (folder / "kpis.csv").write_text(text)
    with pytest.raises(SourceFailed):
        read(folder / "kpis.csv", "SELECT * FROM rows WHERE :since < :until")


def test_a_header_alone_is_no_row(folder: Path) -> None:
    assert read(write(folder)) == ([], [])


@pytest.mark.parametrize(("time_format", "scale"), [("epoch_s", 1), ("epoch_ms", 1_000)])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_times_that_are_numbers_are_read_as_the_source_says(
    folder: Path, time_format: str, scale: int, kind: str
) -> None:
    number = int(TOP.timestamp()) * scale
    path = write(folder, f"e,m,c,{number},1,1", f"e,m,c,{number + 3_600 * 24 * 300 * scale},2,1")
    if kind == "parquet":
        path = folder / "kpis.parquet"
        duckdb.sql(f"COPY (FROM '{folder}/kpis.csv') TO '{path}'")
    ((row,), unread) = read(path, time_format=time_format)
    assert (row["ts"], row["value"], unread) == (TOP, 1, [])
    assert _value(Source(kind="sql", time_format=time_format), "ts", number) == TOP


def test_a_number_is_no_time_unless_the_source_says_so(folder: Path) -> None:
    path = write(folder, "e,m,c,1764000000,1,1")
    assert [line["ts"] for line in read(path)[1]] == ["1764000000"]
    (folder / "kpis.csv").write_text("experiment,seen,value\ne,1764000000,1\n")
    ((row,), _) = read(folder / "kpis.csv", "SELECT experiment, seen AS ts, value FROM rows WHERE :since < :until")
    assert row["ts"] == 1764000000, "which is then refused as no time"


# As exporters write them ---------------------------------------------------------------------------------------------------


def test_a_spreadsheets_export_with_semicolons_and_decimal_commas_is_read(folder: Path) -> None:
    path = folder / "kpis.csv"
    head, lines = (
        "Experiment;Metric;TS;Value;Nutzer;Bemerkung",
        ("e;m;24.11.2026 06:00;0,5;1800;für uns", "e;m;24.11.2026 06:00;1.000,5;1;x"),
    )
    path.write_bytes("\r\n".join([head, *lines, ""]).encode("latin-1"))
    said: dict[str, Any] = {
        "date_format": "%d.%m.%Y %H:%M",
        "decimal_comma": True,
        "encoding": "latin-1",
        "columns": {"nutzer": "n"},
    }
    ((row,), (line,)) = read(path, **said)
    assert (row["ts"], row["value"], row["n"]) == (TOP, 0.5, 1800)
    assert (line["line"], line["value"]) == (3, "1.000,5"), "which may be a thousand or one"


def test_unicode_text_of_a_spreadsheet_is_read(folder: Path) -> None:
    path = folder / "kpis.csv"
    path.write_bytes("experiment\tts\tvalue\ne\t2026-11-24\t1\n".encode("utf-16"))
    with pytest.raises(SourceFailed, match="encoding"):
        read(path)
    assert of(read(path, encoding="utf-16")[0], "value") == [1]


def test_words_for_nothing_are_nothing(folder: Path) -> None:
    path = write(folder, "e,m,c,2026-11-24,1,NULL", r"e,m,c,2026-11-24,2,\N", "e,m,c,2026-11-24,3,NA")
    rows, (line,) = read(path, null_words=["NULL", r"\N"])
    assert ([(row["value"], row["n"]) for row in rows], line["n"]) == ([(1, None), (2, None)], "NA")


def test_a_packed_csv_is_read_as_it_is_unpacked(folder: Path) -> None:
    path = folder / "kpis.CSV.gz"
    path.write_bytes(gzip.compress(f"{HEAD}\ne,m,c,2026-11-24,1,5\ne,m,c,2026-11-24,x,5\n".encode()))
    rows, (line,) = read(path)
    assert (of(rows, "n"), line["line"]) == ([5], 3)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises((SourceFailed, duckdb.Error)):
        read(path)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_of_another_name_are_ours_when_the_source_says_so(folder: Path, kind: str) -> None:
    path = write(folder, "007,2026-11-24,0.5,8", head="Test ID,Day,Rate,Users")
    if kind == "parquet":
        path = folder / "kpis.parquet"
        duckdb.sql(f"COPY (FROM read_csv('{folder}/kpis.csv', all_varchar = true)) TO '{path}'")
    ((row,), _) = read(path, columns={"test id": "experiment", "DAY": "ts", "rate": "value", "users": "n"})
    assert row == {"line": row["line"], "experiment": "007", "ts": TOP.replace(hour=0), "value": 0.5, "n": 8}


# Where times are meant, and where lines are ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2026-11-24T06:00:00", "2026-11-24 6:00", "2026-11-24"])
def test_a_time_without_offset_is_refused_unless_the_source_says_where_it_is_meant(folder: Path, text: str) -> None:
    path = write(folder, f"e,m,c,{text},1,1", "e,m,c,2026-11-24T06:00:00Z,2,1")
    rows, (line,) = read(path, time_zone="")
    assert (of(rows, "value"), line["line"], line["ts"]) == ([2], 2, text)
    with pytest.raises(ValueError, match="time_zone"):
        _value(Source(kind="file"), "ts", text)


BERLIN = [
    ("2026-11-24 07:00", TOP),
    ("2026-07-01 02:30", datetime(2026, 7, 1, 0, 30, tzinfo=UTC)),
    ("2026-11-24 07:00:00Z", TOP + timedelta(hours=1)),
    ("2026-10-25 02:30", None),
    ("2026-03-29 02:30", None),
    ("2026-10-25 03:00", datetime(2026, 10, 25, 2, tzinfo=UTC)),
    ("2026-10-25 01:59", datetime(2026, 10, 24, 23, 59, tzinfo=UTC)),
]


@pytest.mark.parametrize(("text", "right"), BERLIN)
def test_a_local_time_is_the_instant_that_its_clocks_show_once(folder: Path, text: str, right: datetime | None) -> None:
    rows, unread = read(
        write(folder, f"e,m,c,{text},1,1"), ALL.replace(":since", "'2026-01-01'::TIMESTAMPTZ + 0 * (:since - :until)"),
        time_zone="Europe/Berlin",
    )  # fmt: skip
    assert (of(rows, "ts"), [line["ts"] for line in unread]) == (([right], []) if right else ([], [text]))
    source = Source(kind="file", time_zone="Europe/Berlin")
    if right:
        assert _value(source, "ts", text) == right
    else:
        with pytest.raises(ValueError, match="twice or never"):
            _value(source, "ts", text)


def test_local_times_of_a_date_format_and_of_parquet_are_meant_where_the_source_says(folder: Path) -> None:
    rows, _ = read(write(folder, "e,m,c,24.11.2026 07:00,1,1"), date_format="%d.%m.%Y %H:%M", time_zone="Europe/Berlin")
    assert of(rows, "ts") == [TOP]
    path = folder / "kpis.parquet"
    shown = "VALUES ('e', TIMESTAMP '2026-11-24 07:00', 1), ('e', '2026-11-24 08:00', 1), ('e', '2026-10-25 02:30', 9)"
    duckdb.sql(f"COPY (SELECT * FROM ({shown}) t(experiment, ts, value)) TO '{path}'")  # noqa: S608
    rows, (line,) = read(path, time_zone="Europe/Berlin")
    assert (of(rows, "ts"), line["ts"]) == ([TOP, TOP + timedelta(hours=1)], "2026-10-25 02:30:00")
    with pytest.raises(SourceFailed, match="time_zone"):
        read(path, time_zone="")


def test_a_column_of_another_name_is_meant_there_too_and_compares_as_what_it_means(folder: Path) -> None:
    query = "SELECT e AS experiment, day AS ts, 1 AS value FROM rows WHERE day > :since AND day <= least(:until, TIMESTAMPTZ '2026-11-24 06:30Z')"
    path = folder / "kpis.parquet"
    duckdb.sql(f"COPY (SELECT 'e' AS e, TIMESTAMP '2026-11-24 07:00' AS day) TO '{path}'")
    for found in (path, write(folder, "e,2026-11-24 07:00", head="e,day")):
        ((row,), _) = read(found, query, time_zone="Europe/Berlin")
        assert row["ts"] == TOP
    duckdb.sql(f"COPY (SELECT 'e' AS e, TIMESTAMP '2026-10-25 02:30' AS day) TO '{path}'")
    with pytest.raises(SourceFailed, match="1 times in day are twice or never"):
        read(path, query, time_zone="Europe/Berlin")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_no_rows_and_every_line_is_told_as_an_editor_counts_it(folder: Path, end: str) -> None:
    path = folder / "kpis.csv"
    good, bad = "e,m,c,2026-11-24,1,5", "e,m,c,2026-11-24,x,5"
    lines = [HEAD, good, "", good, "   ", ",,,,,", '"e\n\ne",m,c,2026-11-24,1,5', bad, "", "e,m", bad, good, ""]
    path.write_bytes(end.join(lines).encode())
    rows, unread = read(path)
    assert of(rows, "line") == [2, 4, 7, 14]
    assert sorted(of(list(unread), "line")) == [10, 12, 13]


def test_numbers_of_lines_hold_beyond_the_first_million_of_characters(folder: Path) -> None:
    good = "e,m,c,2026-11-24,1,5"
    path = write(folder, *[good] * 80_000, "", good, "e,m,c,2026-11-24,x,5")
    rows, (line,) = read(path)
    assert (rows[-1]["line"], line["line"]) == (80_003, 80_004)
