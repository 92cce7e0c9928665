"""One experiment walked through the whole portal by its doors: HTTP for programs and people, the tick for the worker."""

import datetime as dt
import random
from collections.abc import Iterator
from typing import Any

from django.test import Client

from decisioning.access.keys import create_key
from decisioning.access.models import Team
from decisioning.access.scopes import Scope
from gates.tasks import tick
from tests.conftest import as_role

HOUR = dt.timedelta(hours=1)


class Walk:
    """Hourly telemetry for a goal `vrps` and a guardrail `error_rate`, `days` long, up to the last full hour."""

    def __init__(self, team: Team, *, days: int = 9, now: dt.datetime | None = None) -> None:
        self.now = now or dt.datetime.now(dt.UTC)
        self.start = (self.now - dt.timedelta(days=days)).replace(minute=0, second=0, microsecond=0)
        with as_role("owner"):
            _, self.secret = create_key(team, scopes=list(Scope), now=self.now)
        self.client = Client(headers={"Authorization": f"Bearer {self.secret}"})
        self.key = "checkout"

    def create(self, **fields: Any) -> dict[str, Any]:
        body = {
            "key": self.key,
            "name": "One-page checkout",
            "hypothesis": "Fewer steps raise value per session",
            "target_kpis": [
                {
                    "metric": {
                        "key": "vrps",
                        "name": "Value per session",
                        "kind": "mean",
                        "direction": "increase",
                        "unit": "usd",
                        "expected_every_s": 3600,
                        "freshness_target_s": 3600,
                    },
                    "role": "goal",
                    "minimum_effect": 0.02,
                    "baseline": {"mean": 3.0, "stddev": 3.0},
                },
                {
                    "metric": {
                        "key": "error_rate",
                        "name": "Errors",
                        "kind": "proportion",
                        "direction": "decrease",
                        "expected_every_s": 3600,
                        "freshness_target_s": 3600,
                    },
                    "role": "guardrail",
                    "max_harm": 0.2,
                    "baseline": {"mean": 0.05, "stddev": 0.22},
                },
            ],
            "expected_units_per_day": 48_000,
            "started_at": self.start.isoformat(),
            **fields,
        }
        return self.post("/api/experiments", body, expect=201)

    def rows(
        self, *, uplift: float = 0.0, harm: float = 0.0, until: dt.datetime | None = None, seed: int = 7
    ) -> list[dict[str, Any]]:
        """Believable rows: 1,000 units an hour and arm, mean 3 with sd 3; 5% errors."""
        dice = random.Random(seed)
        found = []
        for ts in self.hours(until):
            for variant, gain, more in (("control", 0.0, 0.0), ("treatment", uplift, harm)):
                n = 1000 + dice.randrange(-20, 20)
                mean = 3.0 * (1 + gain) + dice.gauss(0, 3 / n**0.5)
                errors = min(1.0, max(0.0, 0.05 * (1 + more) + dice.gauss(0, (0.05 * 0.95 / n) ** 0.5)))
                found.append(
                    {"metric": "vrps", "variant": variant, "ts": ts.isoformat(), "value": mean, "n": n, "variance": 9.0}
                )
                found.append(
                    {"metric": "error_rate", "variant": variant, "ts": ts.isoformat(), "value": errors, "n": n}
                )
        return found

    def hours(self, until: dt.datetime | None = None) -> Iterator[dt.datetime]:
        ts = self.start + HOUR
        while ts <= (until or self.now):
            yield ts
            ts += HOUR

    def send(self, rows: list[dict[str, Any]], expect: int = 200) -> dict[str, Any]:
        return self.post(f"/api/experiments/{self.key}/kpis", {"rows": rows}, expect=expect)

    def tick(self) -> None:
        with as_role("worker"):
            tick()

    def document(self) -> dict[str, Any]:
        return self.get(f"/api/experiments/{self.key}")

    def recommendation(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/api/experiments/{self.key}/decision")["recommendation"]
        return found

    def answer(self, *, expect: int = 201, **body: Any) -> dict[str, Any]:
        return self.post(f"/api/experiments/{self.key}/decision", body, expect=expect)

    def get(self, path: str, expect: int = 200) -> dict[str, Any]:
        response = self.client.get(path)
        assert response.status_code == expect, response.content
        found: dict[str, Any] = response.json()
        return found

    def post(self, path: str, body: dict[str, Any], expect: int = 200) -> dict[str, Any]:
        response = self.client.post(path, body, content_type="application/json")
        assert response.status_code == expect, response.content
        return response.json() if response.content else {}
