"""What the benchmarks of telemetry share: an installation of their own, a key, experiments, rows, and clients that cost little.

They run against `manage.py up` as a newcomer runs it, on this machine, and print ratios of things measured in the same run, in turns, so
that whatever else the machine does falls on both sides. `--home` reuses an installation that already runs.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.installation import Installation, clean_environment

NOW = datetime.now(UTC).replace(second=0, microsecond=0)


class Caller:
    """One keep-alive connection with a key."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        self.headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def __call__(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        sent = self.headers | {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, sent)
        response = self.connection.getresponse()
        return response.status, response.headers, response.read()

    def json(self, method: str, path: str, value: object = None) -> Any:
        status, _, content = self(method, path, None if value is None else json.dumps(value).encode())
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {content[:500]!r}")
        return json.loads(content) if content else None


class Scene:
    """An installation with one team and one key that no rate limit stops (it is still counted)."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.url = installation.credentials()["url"]
        made = installation.manage("create_key", "--team", "bench", "--scopes", ",".join(_SCOPES), "--rate", "999999/m")
        self.key = made.stdout.strip().splitlines()[-1]
        if not self.key.startswith("dk_"):
            raise RuntimeError(made.stdout + made.stderr)

    def caller(self) -> Caller:
        return Caller(self.url, self.key)

    def dsn(self, role: str) -> str:
        return self.installation.manage("dsn", "--role", role).stdout.strip().splitlines()[-1]

    def experiment(self, *, every_s: int = 60, days: int = 300, **said: Any) -> dict[str, Any]:
        """A running experiment with a goal `bench_value` and two variants."""
        metric = {"key": f"bench_value_{every_s}", "expected_every_s": every_s, "freshness_target_s": every_s}
        body = {
            "name": f"Benchmark {time.time_ns()}",
            "hypothesis": "It is fast",
            "target_kpis": [{"metric": metric, "baseline": {"mean": 3.0, "stddev": 3.0}}],
            "started_at": (NOW - timedelta(days=days)).isoformat(),
            **said,
        }
        made: dict[str, Any] = self.caller().json("POST", "/api/experiments", body)
        return {**made, "metric": metric["key"]}


_SCOPES = (
    "experiments:read",
    "experiments:write",
    "telemetry:write",
    "lineage:write",
    "decisions:review",
    "policies:write",
)


@contextmanager
def scene(arguments: argparse.Namespace) -> Iterator[Scene]:
    """The installation that `--home` names, else a new one for as long as the block lasts."""
    if arguments.home:
        yield Scene(Installation(Path(arguments.home)))
        return
    with tempfile.TemporaryDirectory(prefix="decisioning-bench-") as folder:
        installation = Installation(Path(folder) / "home")
        installation.start()
        try:
            yield Scene(installation)
        finally:
            installation.stop()


def parser(text: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--home", help="home folder of an installation that runs; without it one is started")
    return made


def rows(experiment: dict[str, Any], *, start: int, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rows of both variants, a minute apart, beginning `start` rows before now and going back."""
    found = []
    for index in range(start, start + count):
        minute, variant = divmod(index, 2)
        found.append(
            {
                "metric": experiment["metric"],
                "variant": ("control", "treatment")[variant],
                "ts": (NOW - timedelta(minutes=minute)).isoformat(),
                "value": 3.0 + (index * 7919 + seed) % 1000 / 997,
                "n": 100 + index % 17,
                "variance": 9.0 + index % 13 / 7,
            }
        )
    return found


def django(home: Path) -> None:
    """Let this process use the installation's database as its worker does."""
    os.environ.clear()
    os.environ.update(clean_environment() | {"DECISIONING_HOME": str(home)})
    from decisioning.embedded import Home, join

    os.environ.update(join(Home(home), "shell"))
    os.environ["DECISIONING_ROLE"] = "worker"
    os.environ["DJANGO_SETTINGS_MODULE"] = "decisioning.settings"
    import django as framework

    framework.setup()


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
