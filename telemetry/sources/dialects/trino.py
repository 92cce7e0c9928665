"""Trino, by its own driver. A catalog is made read-only on the server: give the login no more. Not tried by us."""

from typing import Any

from sqlalchemy import URL

from telemetry.sources.dialects import Dialect

_LOGINS = {"access_token", "cert", "externalAuthentication"}


def _connecting(url: URL, limit_s: float) -> dict[str, Any]:
    """Whoever logs in does so over TLS: by itself the driver takes it at port 443 alone, and refuses a login without it."""
    asked: dict[str, Any] = {
        "timezone": "UTC",
        "session_properties": {"query_max_run_time": f"{max(1, int(limit_s))}s"},
    }
    if (url.password or _LOGINS & url.query.keys()) and "allow_insecure_auth" not in url.query:
        asked["http_scheme"] = "https"
    return {"connect_args": asked}


DIALECT = Dialect(driver="trino", extra="trino", connecting=_connecting, connects_late=True)
