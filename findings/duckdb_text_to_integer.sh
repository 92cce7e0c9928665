#!/usr/bin/env bash
# duckdb 2.0.0: TRY_CAST of a text to BIGINT is no check that the text is a whole number. '0.31' becomes 0 and not NULL, and the same
# 2.5 is 3 when it comes as a text and 2 when it comes as a DOUBLE. PostgreSQL refuses '0.31'::bigint. Who counts units out of a CSV read
# as text, and takes NULL for "no whole number", counts wrong without a word.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.0
"$place/venv/bin/python" - <<'PY'
import sys

import duckdb

seen = duckdb.connect().execute(
    "SELECT TRY_CAST('0.31' AS BIGINT), TRY_CAST('2.5' AS BIGINT), TRY_CAST(2.5::DOUBLE AS BIGINT), TRY_CAST('-0.5' AS BIGINT), TRY_CAST('n/a' AS BIGINT)"
).fetchone()
print(f"duckdb {duckdb.__version__}: '0.31', '2.5', 2.5 as DOUBLE, '-0.5', 'n/a' as BIGINT: {seen}")
sys.exit(seen != (0, 3, 2, -1, None))
PY
