"""Files of one truth as other people's programs write them. Run by test_exporters.py in an environment of its own, which has those programs.

python exporters.py pandas|polars FOLDER PREFIX
"""

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

NOON = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
TRUTH: list[dict[str, Any]] = [
    {
        "experiment": "007",
        "variant": variant,
        "ts": NOON + dt.timedelta(hours=hours),
        "value": value,
        "n": n,
        "variance": variance,
    }
    for hours, variant, value, n, variance in (
        (0, "control", 0.1 + 0.2, 1800, 0.25),
        (0, "treatment", 1 / 3, 10**15 - 1, 2.5e-17),
        (1, "control", -123456789.12345679, 1, None),
        (1, "treatment", 5e-324 + 1e-90, 400, 1.0),
    )
]


def columns() -> dict[str, list[Any]]:
    return {name: [row[name] for row in TRUTH] for name in TRUTH[0]}


def by_pandas(folder: Path, prefix: str) -> dict[str, dict[str, Any]]:
    import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]

    aware = pd.DataFrame(columns())
    aware["n"] = aware["n"].astype("int64")
    naive = aware.assign(ts=aware["ts"].dt.tz_localize(None))
    berlin = aware.assign(ts=aware["ts"].dt.tz_convert("Europe/Berlin"))
    floats = aware.assign(n=aware["n"].astype("float64"))
    said: dict[str, dict[str, Any]] = {}

    def file(name: str, **options: Any) -> Path:
        said[f"{prefix}-{name}"] = options
        return folder / f"{prefix}-{name}"

    aware.to_csv(file("aware.csv"), index=False)
    aware.to_csv(file("index.csv"))
    naive.to_csv(file("naive.csv", time_zone="UTC"), index=False)
    naive.to_csv(file("refused.csv", refused="naive_timestamp"), index=False)
    berlin.to_csv(file("berlin.csv"), index=False)
    berlin.assign(ts=berlin["ts"].dt.tz_localize(None)).to_csv(
        file("local.csv", time_zone="Europe/Berlin"), index=False
    )
    floats.to_csv(file("floats.csv"), index=False)
    aware.to_csv(file("packed.csv.gz"), index=False)
    aware.to_csv(file("quoted.csv"), index=False, quoting=1)
    aware.to_csv(file("nulls.csv", null_words=[r"\N"]), index=False, na_rep=r"\N")
    aware.to_csv(
        file("excel.csv", decimal_comma=True, encoding="utf-16"), index=False, sep=";", decimal=",", encoding="utf-16"
    )
    naive.to_csv(
        file("dates.csv", date_format="%d.%m.%Y %H:%M", time_zone="UTC"), index=False, date_format="%d.%m.%Y %H:%M"
    )
    milliseconds = aware.assign(ts=[int(at.timestamp() * 1000) for at in aware["ts"]])
    milliseconds.to_csv(file("epoch.csv", time_format="epoch_ms"), index=False)
    aware.rename(columns=str.upper).to_csv(file("heads.csv"), index=False)
    aware.to_parquet(file("aware.parquet"))
    naive.to_parquet(file("naive.parquet", time_zone="UTC"))
    naive.to_parquet(file("refused.parquet", refused="time_zone"))
    aware.to_parquet(file("int96.parquet", time_zone="UTC"), use_deprecated_int96_timestamps=True)
    aware.assign(variant=aware["variant"].astype("category")).to_parquet(file("category.parquet"))
    milliseconds.to_parquet(file("epoch.parquet", time_format="epoch_ms"))
    floats.to_parquet(file("floats.parquet"))
    return said


def by_polars(folder: Path, prefix: str) -> dict[str, dict[str, Any]]:
    import polars as pl  # type: ignore[import-not-found,unused-ignore]
    import pyarrow as pa  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from pyarrow import csv, parquet  # type: ignore[import-untyped,import-not-found,unused-ignore]

    aware = pl.DataFrame(columns())
    naive = aware.with_columns(pl.col("ts").dt.replace_time_zone(None))
    said: dict[str, dict[str, Any]] = {}

    def file(name: str, **options: Any) -> str:
        said[f"{prefix}-{name}"] = options
        return str(folder / f"{prefix}-{name}")

    aware.write_csv(file("aware.csv"))
    naive.write_csv(file("naive.csv", time_zone="UTC"))
    naive.write_csv(file("refused.csv", refused="naive_timestamp"))
    aware.write_parquet(file("aware.parquet"))
    naive.with_columns(pl.col("ts").cast(pl.Datetime("ms"))).write_parquet(file("ms.parquet", time_zone="UTC"))
    naive.with_columns(pl.col("ts").cast(pl.Datetime("ns"))).write_parquet(file("ns.parquet", time_zone="UTC"))
    aware.with_columns(pl.col("variant").cast(pl.Categorical)).write_parquet(file("category.parquet"))
    table = pa.table(columns())
    csv.write_csv(table, file("arrow.csv"))
    for unit in ("s", "ms", "us", "ns"):
        ts = table.column("ts").cast(pa.timestamp(unit, "Europe/Berlin"))
        parquet.write_table(table.set_column(2, "ts", ts), file(f"arrow-{unit}.parquet"))
    parquet.write_table(table, file("arrow-int96.parquet", time_zone="UTC"), use_deprecated_int96_timestamps=True)
    parquet.write_table(
        table.set_column(0, "Experiment", table.column("experiment").dictionary_encode()),
        file("arrow-dictionary.parquet"),
    )
    return said


if __name__ == "__main__":
    _, program, place, name = sys.argv
    sys.stdout.write(json.dumps({"pandas": by_pandas, "polars": by_polars}[program](Path(place), name)))
