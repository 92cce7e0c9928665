"""kill -9 of each process while rows are being posted: nothing acknowledged is missing, nothing is doubled."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.installation import Installation, soon

pytestmark = pytest.mark.faults

STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(days=20)
VICTIMS = ["bin/postgres", "valkey-server", "-m granian", "granian's worker", "celery .*worker", "celery .*beat"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("faults") / "home")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def api(installation: Installation) -> Iterator[httpx.Client]:
    held = installation.credentials()
    headers = {"Authorization": f"Bearer {held['api_key']}"}
    with httpx.Client(base_url=held["url"], headers=headers, timeout=5) as client:
        yield client


class Poster(threading.Thread):
    """Posts batches of new rows without a pause; what got no answer is posted again, as clients do."""

    def __init__(self, api: httpx.Client, experiment: str) -> None:
        super().__init__()
        self.api, self.url = api, f"/api/experiments/{experiment}/kpis"
        self.acknowledged: dict[str, float] = {}
        self.unanswered = 0
        self.done = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.done.is_set():
            rows = [self._row(number + offset) for offset in range(20)]
            while not self._post(rows) and not self.done.is_set():
                self.unanswered += 1
                time.sleep(0.05)
            number += 20
            time.sleep(0.1)  # stays under the key's 600 a minute

    def _row(self, number: int) -> dict[str, Any]:
        ts = (STARTED + timedelta(seconds=number + 1)).isoformat()
        return {"metric": "latency", "variant": "control", "ts": ts, "value": number / 7, "n": 10, "variance": 1.5}

    def _post(self, rows: list[dict[str, Any]]) -> bool:
        try:
            answer = self.api.post(self.url, json={"rows": rows})
        except httpx.HTTPError:
            return False
        if answer.status_code == 200:
            self.acknowledged |= {row["ts"]: row["value"] for row in rows}
            return True
        assert answer.status_code in {429, 500, 502, 503}, answer.text
        return False


def create(api: httpx.Client, key: str) -> None:
    body = {
        "key": key,
        "name": key,
        "hypothesis": "Nothing is lost.",
        "started_at": STARTED.isoformat(),
        "target_kpis": [{"metric": "latency", "role": "goal", "minimum_effect": 0.02}],
    }
    answer = api.post("/api/experiments", json=body)
    assert answer.status_code == 201, answer.text


def stored(api: httpx.Client, key: str) -> list[tuple[str, float]]:
    """Every stored row."""
    found: list[tuple[str, float]] = []
    url: str | None = f"/api/experiments/{key}/kpis?limit=10000"
    while url:
        page = api.get(url).raise_for_status().json()
        found += [(datetime.fromisoformat(row["ts"]).isoformat(), row["value"]) for row in page["results"]]
        url = page["next"]
    return found


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_acknowledged_is_lost_or_doubled(installation: Installation, api: httpx.Client, victim: str) -> None:
    key = f"kill-{VICTIMS.index(victim)}x"
    create(api, key)
    poster = Poster(api, key)
    poster.start()
    assert soon(lambda: len(poster.acknowledged) >= 100)

    killed = installation.find("-m granian")[-1] if victim == "granian's worker" else installation.find(victim)[0]
    os.kill(killed, signal.SIGKILL)
    before = len(poster.acknowledged)
    recovered = soon(lambda: len(poster.acknowledged) >= before + 200, 60)
    poster.done.set()
    poster.join()

    assert recovered, "".join(installation.printed)
    rows = stored(api, key)
    assert len(rows) == len(dict(rows)), "a row is there twice"
    assert poster.acknowledged.items() <= dict(rows).items(), "an acknowledged row is missing or another"
    assert soon(lambda: api.get("/readyz").json() == {"database": "ok", "broker": "ok", "tick": "ok"}, 90)
