"""Files as other people's programs write them: what is stored is the truth to the last digit, or is refused by its line."""

import gzip
import json
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from django.conf import LazySettings

from telemetry.models import Source
from telemetry.sources import files, rows
from telemetry.sources.refusals import SourceFailed
from tests.api.warehouse import warehouse
from tests.installation import clean_environment
from tests.telemetry import exporters
from tests.telemetry.exporters import NOON, TRUTH

BOUNDS = {"since": NOON - timedelta(days=30), "until": NOON + timedelta(days=30)}
HEAD = "experiment,variant,ts,value,n,variance"


@pytest.fixture(autouse=True)
def folder(settings: LazySettings, tmp_path: Path) -> Path:
    settings.SOURCES_DIR = tmp_path
    return tmp_path


def stored(path: str, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows as they would be stored, what is told of the others)."""
    query = "SELECT * FROM rows WHERE ts > :since AND ts <= :until"
    source = Source(kind="file", path=path, query=query, metrics=["m"], **options)
    good, told = [], []
    for raw in (raw for chunk in files.read(source, BOUNDS, 60) for raw in chunk):
        row, problem, _ = rows.understood(source, raw, known=True)
        if row is None:
            told.append(problem)
        else:
            good.append(
                {
                    "experiment": raw["experiment"],
                    "variant": row.variant,
                    "ts": row.ts,
                    "value": row.value,
                    "n": row.n,
                    "variance": row.variance,
                }
            )
    return good, told


def check(path: str, *, refused: str = "", **options: Any) -> None:
    """A file holds the truth, or each of its lines is refused with this word."""
    if refused == "time_zone":
        with pytest.raises(SourceFailed, match="time_zone"):
            stored(path, **options)
        return
    good, told = stored(path, **options)
    if refused:
        assert (good, [refused in problem for problem in told]) == ([], [True] * len(TRUTH)), path
    else:
        assert (good, told) == (TRUTH, []), path


@pytest.mark.packages
@pytest.mark.parametrize(
    ("program", "wanted", "least"),
    [("pandas", ["pandas>=2,<3", "pyarrow"], 21), ("pandas", ["pandas>=3,<4", "pyarrow"], 21), ("polars", ["polars", "pyarrow"], 14)],
)  # fmt: skip
def test_what_other_peoples_programs_write_is_read_to_the_last_digit(
    folder: Path, program: str, wanted: list[str], least: int
) -> None:
    brought = [word for package in wanted for word in ("--with", package)]
    command = [
        "uv",
        "run",
        "--isolated",
        "--no-project",
        *brought,
        "python",
        exporters.__file__,
        program,
        str(folder),
        program,
    ]
    made = subprocess.run(command, cwd=folder, env=clean_environment(), text=True, capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    found: dict[str, dict[str, Any]] = json.loads(made.stdout)
    assert len(found) >= least
    for name, options in found.items():
        check(name, **options)


def lines(form: str, *, comma: str = ",", point: str = ".", null: str = "") -> list[str]:
    """The truth as lines; form: how a time is written, by strftime."""
    return [
        comma.join(
            [row["experiment"], row["variant"], f"{row['ts']:{form}}", repr(row["value"]).replace(".", point), str(row["n"]),
             null if row["variance"] is None else repr(row["variance"]).replace(".", point)]
        ) for row in TRUTH
    ]  # fmt: skip


# As their documentation and their users' files have them.
WRITTEN: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "BigQuery": (HEAD, lines("%Y-%m-%d %H:%M:%S UTC"), {}),
    "Snowflake": (HEAD.upper(), lines("%Y-%m-%d %H:%M:%S.000 +0000", null=r"\N"), {"null_words": [r"\N"]}),
    "Snowflake, Z": (f'"{HEAD.upper().replace(",", chr(34) + "," + chr(34))}"', lines("%Y-%m-%d %H:%M:%S.000 Z"), {}),
    "Redshift": (HEAD.replace(",", "|"), lines("%Y-%m-%d %H:%M:%S+00", comma="|"), {}),
    "Spark": (HEAD, lines("%Y-%m-%dT%H:%M:%S.000Z", null='""'), {}),
    "psql": (HEAD, lines("%Y-%m-%d %H:%M:%S+00"), {}),
    "MySQL": (HEAD.replace(",", "\t"), lines("%Y-%m-%d %H:%M:%S", comma="\t", null="NULL"), {"null_words": ["NULL"], "time_zone": "UTC"}),
    "MySQL, no zone": (HEAD.replace(",", "\t"), lines("%Y-%m-%d %H:%M:%S", comma="\t"), {"refused": "naive_timestamp"}),
    "ClickHouse": (HEAD, lines('"%Y-%m-%d %H:%M:%S"', null=r"\N"), {"null_words": [r"\N"], "time_zone": "UTC"}),
    "Excel, German": (HEAD.replace(",", ";"), lines("%d.%m.%Y %H:%M", comma=";", point=","),
                      {"decimal_comma": True, "date_format": "%d.%m.%Y %H:%M", "time_zone": "UTC"}),
    "Excel, American": (HEAD, lines("%m/%d/%Y %I:%M %p"), {"date_format": "%m/%d/%Y %I:%M %p", "time_zone": "UTC"}),
    "Excel, American, unsaid": (HEAD, lines("%m/%d/%Y %I:%M %p"), {"refused": "ambiguous_date"}),
    "Sheets": (HEAD, lines("%Y-%m-%d %H:%M:%S"), {"refused": "naive_timestamp"}),
    "a mark and blank lines": (f"\ufeff{HEAD}", [part for line in lines("%Y-%m-%dT%H:%M:%SZ") for part in (line, "", ",,,,,")], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_databases_and_spreadsheets_write_is_read_to_the_last_digit(folder: Path, name: str, end: str) -> None:
    head, body, options = WRITTEN[name]
    (folder / "export.csv").write_bytes(end.join([head, *body, ""]).encode())
    check("export.csv", **options)
    (folder / "export.csv.gz").write_bytes(gzip.compress((folder / "export.csv").read_bytes()))
    check("export.csv.gz", **options)


def test_what_duckdb_and_postgresql_copy_is_read_to_the_last_digit(folder: Path) -> None:
    values = [tuple(row.values()) for row in TRUTH]
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'Europe/Berlin'")
        engine.execute(
            "CREATE TABLE t (experiment TEXT, variant TEXT, ts TIMESTAMPTZ, value DOUBLE, n BIGINT, variance DOUBLE)"
        )
        engine.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", values)
        for name in ("duck.csv", "duck.parquet"):
            engine.execute(f"COPY t TO '{folder / name}'")
            check(name)
    with psycopg.connect(warehouse()) as db, (folder / "psql.csv").open("wb") as file:
        db.execute("SET TIME ZONE 'Asia/Kolkata'")
        db.execute(
            "CREATE TEMP TABLE t (experiment text, variant text, ts timestamptz, value float8, n bigint, variance float8)"
        )
        with db.cursor() as cursor:
            cursor.executemany("INSERT INTO t VALUES (%s, %s, %s, %s, %s, %s)", values)
            with cursor.copy("COPY t TO STDOUT (FORMAT csv, HEADER)") as copy:
                file.writelines(copy)
    check("psql.csv")
