"""What programs do with a portal while its hosts fail: they send rows again until they are taken, and read all the while."""

import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import httpx

BATCH, EVERY_S = 5, 0.3


def create(url: str, key: str, experiment: str) -> None:
    """A running experiment with one goal."""
    body = {
        "key": experiment,
        "name": experiment,
        "hypothesis": "Nothing is lost.",
        "started_at": (datetime.now(UTC) - timedelta(hours=1)).isoformat(),
        "target_kpis": [{"metric": "latency", "role": "goal", "minimum_effect": 0.02}],
    }
    answer = httpx.post(f"{url}/api/experiments", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    assert answer.status_code == 201, answer.text


def batch(began: datetime, number: int) -> list[dict[str, object]]:
    """Rows that no other batch has, of the moment at which they would be sent if nothing held them up."""
    first = began + timedelta(seconds=number * EVERY_S)
    return [
        {
            "metric": "latency",
            "variant": "treatment" if place % 2 else "control",
            "ts": (first + timedelta(milliseconds=10 * place)).isoformat(),
            "value": 1 + place / 7,
            "n": 10,
            "variance": 1.5,
        }
        for place in range(BATCH)
    ]


@dataclass
class Writer:
    """One program that sends one batch after the other, each until it is taken. taken: (when, monotonic; batch)."""

    url: str
    key: str
    experiment: str
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    taken: list[tuple[float, int]] = field(default_factory=list)
    refused: list[tuple[float, str]] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Writer":
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        number, headers = 0, {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=10) as client:
            while not self._done.is_set():
                if self._send(client, number):
                    self.taken.append((time.monotonic(), number))
                    number += 1
                self._done.wait(EVERY_S)

    def _send(self, client: httpx.Client, number: int) -> bool:
        try:
            answer = client.post(f"/api/experiments/{self.experiment}/kpis", json={"rows": batch(self.began, number)})
        except httpx.HTTPError as problem:
            self.refused.append((time.monotonic(), type(problem).__name__))
            return False
        if answer.status_code >= 300:
            self.refused.append((time.monotonic(), f"{answer.status_code} {answer.json().get('code', '')}"))
        return answer.status_code < 300

    def away_s(self, since: float, until: float) -> float:
        """The longest time between two batches that were taken, of those that reaches into a stretch."""
        instants = [at for at, _ in self.taken]
        gaps = [later - earlier for earlier, later in pairwise(instants) if later > since and earlier < until]
        return max(gaps, default=float("inf"))
