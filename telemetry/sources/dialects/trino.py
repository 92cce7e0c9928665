"""Trino, by its own driver. A catalog is made read-only on the server: give the login no more. Not tried by us."""

from telemetry.sources.dialects import Dialect

DIALECT = Dialect(
    driver="trino",
    extra="trino",
    connecting=lambda _url, limit_s: {
        "connect_args": {"timezone": "UTC", "session_properties": {"query_max_run_time": f"{max(1, int(limit_s))}s"}}
    },
)
