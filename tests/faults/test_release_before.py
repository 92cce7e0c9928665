"""The version before goes on beside the schema of this one: it reads, takes rows and answers, and its ticks judge. Started anew it is refused."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest

from decisioning.embedded import PROJECT, Home, Postgres
from tests.faults.conftest import create, row
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults

BEFORE = "9f35728"
"""The version before, as a commit of this repository. Moved on with each release."""
PAGES = ("/api/experiments", "/api/experiments/kept", "/api/experiments/kept/decision", "/api/experiments/kept/gates", "/api/experiments/kept/kpis",
         "/api/experiments/kept/audit", "/api/freshness", "/api/refresh-log", "/api/metrics", "/api/policies", "/api/sources", "/api/webhooks", "/api/keys",
         "/api/slo", "/metrics", "/readyz")  # fmt: skip


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its code."""
    archive = subprocess.run(["git", "archive", BEFORE], cwd=PROJECT, check=False, capture_output=True)
    if archive.returncode:
        pytest.skip("the history of this repository is not here")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def installation(before: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("home") / "home", code=before)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def test_the_version_before_goes_on_beside_the_newest_schema(
    installation: Installation, api: httpx.Client, tmp_path: Path
) -> None:
    create(api, "kept")
    assert _send(api, range(200)) == 200
    assert soon(lambda: bool(_slots(api)), 90)

    assert installation.manage("migrate", code=PROJECT).returncode == 0
    migrated_at = datetime.now(UTC)
    with psycopg.connect(Postgres(Home(installation.home)).dsn("superuser")) as root:
        newest = root.execute(
            "SELECT count(*) FROM django_migrations WHERE app IN ('access', 'ledger', 'telemetry', 'gates', 'experiments')"
        ).fetchone()
    logs = {log: log.stat().st_size for log in installation.home.glob("logs/*.log")}

    assert _send(api, range(200, 1_900)) == 200
    create(api, "made-later")
    webhook = {"url": "https://receiver.example.org/hook", "events": ["decision.proposed"]}
    told = {
        "reads": {path: api.get(path, timeout=20).status_code for path in PAGES},
        "key": api.post("/api/keys", json={"scopes": ["experiments:read"]}).status_code,
        "webhook": api.post("/api/webhooks", json=webhook).status_code,
        "paused": api.post("/api/experiments/made-later/transitions", json={"to": "paused"}).status_code,
        "corrected": _send(api, range(100, 110), revision=1),
    }
    assert api.post("/api/experiments/kept/evaluate").status_code == 202
    judged = soon(lambda: _judged_since(installation, migrated_at), 330)

    said = "".join(log.read_bytes()[start:].decode(errors="replace") for log, start in logs.items())
    wrong = [line[:300] for line in said.splitlines() if '"level": "ERROR"' in line or "Traceback" in line]
    print(f"\n{newest} migrations; {told}")
    assert set(told.pop("reads").values()) == {200}  # type: ignore[attr-defined]
    assert set(told.values()) <= {200, 201}
    assert judged, "its ticks judge"
    assert wrong == []


def test_the_version_before_started_anew_is_refused_where_it_knows_to_look_and_this_one_goes_on(
    installation: Installation,
) -> None:
    installation.stop()
    now = Installation(installation.home)
    now.start()
    try:
        held = now.credentials()
        answer = httpx.get(
            f"{held['url']}/api/experiments/kept", headers={"Authorization": f"Bearer {held['api_key']}"}, timeout=20
        )
        assert answer.status_code == 200
        with psycopg.connect(Postgres(Home(now.home)).dsn("owner")) as owner:
            owner.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('gates', '0099_future', now())")
        assert now.api(held["api_key"]) == 200, "what runs goes on"
    finally:
        now.stop()
    with pytest.raises(AssertionError, match=r"newer than this code, which does not know gates\.0099_future"):
        now.start()


def _send(api: httpx.Client, numbers: range, **said: object) -> int:
    return api.post(
        "/api/experiments/kept/kpis", json={"rows": [row(n * 900) | said for n in numbers]}, timeout=20
    ).status_code


def _slots(api: httpx.Client) -> list[str]:
    return [found["slot"] for found in api.get("/api/experiments/kept/evaluations").json()["results"]]


def _judged_since(installation: Installation, at: datetime) -> bool:
    with psycopg.connect(Postgres(Home(installation.home)).dsn("superuser")) as root:
        return (
            root.execute(
                "SELECT FROM metadata.evaluations WHERE computed_at > %s", [at + timedelta(seconds=1)]
            ).rowcount
            > 0
        )
