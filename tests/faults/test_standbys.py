"""A primary whose standbys do not answer: what only it has is not called done."""

import httpx
import psycopg
import pytest

from decisioning.embedded import Home, Postgres
from tests.faults.conftest import create, row
from tests.installation import Installation

pytestmark = pytest.mark.faults


def test_rows_that_no_standby_confirms_are_not_acknowledged_and_are_there_once_when_sent_again(
    installation: Installation, api: httpx.Client
) -> None:
    create(api, "confirmed")
    rows = {"rows": [row(number) for number in range(5)]}
    with psycopg.connect(Postgres(Home(installation.home)).dsn("superuser"), autocommit=True) as root:
        root.execute("ALTER SYSTEM SET synchronous_standby_names = 'a_standby_that_is_away'")
        root.execute("SELECT pg_reload_conf()")
        try:
            alone = api.post("/api/experiments/confirmed/kpis", json=rows, timeout=60)
        finally:
            root.execute("ALTER SYSTEM RESET synchronous_standby_names")
            root.execute("SELECT pg_reload_conf()")
    again = api.post("/api/experiments/confirmed/kpis", json=rows, timeout=60)
    stored = api.get("/api/experiments/confirmed/kpis").json()["results"]

    assert (alone.status_code, alone.json()["code"]) == (503, "database_unavailable")
    assert again.status_code == 200
    assert len(stored) == 5
