"""kill -9 of each process while rows are being posted: nothing acknowledged is missing, nothing is doubled."""

import os
import signal
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.conftest import STARTED, create, row
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults
BATCH = 20

# What is killed, and how often in a row.
VICTIMS = {
    "bin/postgres": 5,
    "valkey-server": 5,
    "granian's worker": 9,
    "-m granian": 1,
    "worker .*--concurrency 2": 10,
    "celery .*beat": 1,
}


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
            rows = [row(number + offset) for offset in range(BATCH)]
            while not self._post(rows) and not self.done.is_set():
                self.unanswered += 1
                time.sleep(0.05)
            number += BATCH
            time.sleep(0.1)  # stays under the key's 600 a minute

    def _post(self, rows: list[dict[str, Any]]) -> bool:
        try:
            answer = self.api.post(self.url, json={"rows": rows})
        except httpx.HTTPError:
            return False
        if answer.status_code == 200:
            self.acknowledged |= {sent["ts"]: sent["value"] for sent in rows}
            return True
        assert answer.status_code in {429, 500, 502, 503}, answer.text
        return False


def stored(api: httpx.Client, key: str) -> list[tuple[str, float]]:
    """Every stored row."""
    found: list[tuple[str, float]] = []
    url: str | None = f"/api/experiments/{key}/kpis?limit=10000"
    while url:
        page = api.get(url).raise_for_status().json()
        found += [(datetime.fromisoformat(row["ts"]).isoformat(), row["value"]) for row in page["results"]]
        url = page["next"]
    return found


@pytest.mark.parametrize(("victim", "times"), VICTIMS.items())
def test_nothing_acknowledged_is_lost_or_doubled(
    installation: Installation, api: httpx.Client, victim: str, times: int
) -> None:
    key = f"kill-{list(VICTIMS).index(victim)}x"
    create(api, key)
    poster = Poster(api, key)
    poster.start()
    recovered = soon(lambda: len(poster.acknowledged) >= 100)
    for _ in range(times):
        if not recovered:
            break
        assert soon(lambda: bool(_victims(installation, victim)), 60)
        os.kill(_victims(installation, victim)[0], signal.SIGKILL)
        before = len(poster.acknowledged)
        recovered = soon(lambda before=before: len(poster.acknowledged) >= before + 100, 90)  # type: ignore[misc]
    poster.done.set()
    poster.join()

    assert recovered, "".join(installation.printed)
    rows = stored(api, key)
    batches = Counter(batch for batch, _ in (divmod(_number(ts), BATCH) for ts, _ in rows))
    print(
        f"\n{times} x kill -9 {victim}: {len(poster.acknowledged)} rows acknowledged, {poster.unanswered} batches sent again; "
        f"lost {len(poster.acknowledged.keys() - dict(rows).keys())}, doubled {len(rows) - len(dict(rows))}, "
        f"half batches {sum(count != BATCH for count in batches.values())}"
    )
    assert len(rows) == len(dict(rows)), "a row is there twice"
    assert poster.acknowledged.items() <= dict(rows).items(), "an acknowledged row is missing or another"
    assert set(batches.values()) == {BATCH}, "half of a batch is there"
    assert soon(lambda: api.get("/readyz").json() == {"database": "ok", "broker": "ok", "tick": "ok"}, 90)


def _victims(installation: Installation, victim: str) -> list[int]:
    if victim == "granian's worker":
        return [pid for pid in installation.find("-m granian")[1:] if _parent(pid) in installation.find("-m granian")][
            -1:
        ]
    return installation.find(victim)[:1]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _number(ts: str) -> int:
    return int((datetime.fromisoformat(ts) - STARTED).total_seconds()) - 1
