"""`/readyz` and `/metrics`: what machines ask the portal about itself."""

import dataclasses
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test import Client
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from decisioning import health
from decisioning.access.models import Reads
from decisioning.ledger.models import Heartbeat
from decisioning.slo import figures as slo
from tests.conftest import as_role
from tests.programs import needs_program

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_COUNTED_FOR_S", -1.0)
    monkeypatch.setattr(health._Writes, "TRIED_FOR_S", -1.0)


def scraped(client: Client) -> dict[str, float]:
    """Every sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


def test_metrics_tell_the_promises_and_the_watchdog(client: Client) -> None:
    now = datetime.now(UTC)
    with as_role("owner"):
        Heartbeat.objects.create(name="gates.tick", at=now, slot=now - timedelta(seconds=120))
        Reads.objects.create(minute=now - timedelta(minutes=9), process="p", asked=1000, failed=2, stale=0, done=True)

    found = scraped(client)

    assert found["decisioning_database_up"] == found["decisioning_broker_up"] == 1
    assert 120 <= found["decisioning_newest_slot_age_seconds"] < 180
    assert found["decisioning_share reads"] == 0.998
    assert found["decisioning_slo_holds reads"] == 0
    assert found["decisioning_slo_budget_left reads"] == pytest.approx(-1)
    assert found["decisioning_reads_burn 1h"] == pytest.approx(2)
    assert "decisioning_latency_p95_seconds telemetry" not in found, "nothing was counted for it"


def test_metrics_are_for_loopback_and_for_those_with_the_token(client: Client, settings: object) -> None:
    settings.METRICS_TOKEN = "let-me-see"  # type: ignore[attr-defined]
    far = {"REMOTE_ADDR": "203.0.113.9"}
    assert client.get("/metrics", **far).status_code == 401  # type: ignore[arg-type]
    assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer other"}, **far).status_code == 401  # type: ignore[arg-type]
    assert client.get("/metrics", headers={"Authorization": "Bearer let-me-see"}, **far).status_code == 200  # type: ignore[arg-type]


@pytest.mark.parametrize(("age_s", "tick"), [(60, "ok"), (1000, "late")])
def test_readyz_watches_the_newest_slot(client: Client, age_s: int, tick: str) -> None:
    now = datetime.now(UTC)
    with as_role("owner"):
        Heartbeat.objects.create(name="gates.tick", at=now, slot=now - timedelta(seconds=age_s))
    assert client.get("/readyz").json() == {"database": "ok", "writes": "ok", "broker": "ok", "tick": tick}


def test_readyz_says_when_a_database_takes_no_writes(client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL transaction_read_only = on")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["database"], answer.json()["writes"]) == (503, "ok", "read_only")


def test_metrics_are_openmetrics_for_whoever_asks_for_it(client: Client) -> None:
    asked = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    answer = client.get("/metrics", headers={"Accept": asked})
    assert answer["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name for family in openmetrics(answer.content.decode())}  # type: ignore[no-untyped-call]
    assert {"decisioning_share", "decisioning_database_up"} <= families
    assert client.get("/metrics")["Content-Type"].startswith("text/plain")


@pytest.mark.databases
def test_prometheus_finds_nothing_wrong_with_the_metrics(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    real, decided = slo.recent, slo.Days(3.0, 9.0, 4, 0)
    monkeypatch.setattr(slo, "recent", lambda *of, **said: dataclasses.replace(real(*of, **said), days=decided))
    assert scraped(client)["decisioning_time_to_decide_seconds 95"] == 9 * 86_400
    text = client.get("/metrics").content
    said = subprocess.run(
        [needs_program("promtool", "prometheus"), "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (said.returncode, said.stdout + said.stderr) == (0, b"")
