"""A source that stalls and one that floods hold up no other: an installation of its own, real processes, all on loopback."""

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from decisioning.agents.client import Portal
from tests.installation import Installation, soon

pytestmark = pytest.mark.installations
TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HEAD = "experiment,variant,ts,value,n\n"
FLOOD = 600_000


@pytest.fixture
def deaf() -> Iterator[str]:
    """An address that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        yield f"http://127.0.0.1:{door.getsockname()[1]}"


@pytest.fixture
def portal(deaf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Portal]:
    allowed = {"STALLED_URL": deaf, "DECISIONING_OUTBOUND_ALLOW": "127.0.0.0/8"}
    made = Installation(tmp_path_factory.mktemp("stalls") / "home", environment=allowed)
    made.start()
    files = made.home / "files"
    files.mkdir(exist_ok=True)
    (files / "good.csv").write_text(f"{HEAD}searched,control,{TOP:%Y-%m-%dT%H:%M:%SZ},0.5,8\n")
    with (files / "flood.csv").open("w") as flood:
        flood.write(HEAD)
        for minute in range(FLOOD):
            flood.write(f"searched,control,{TOP - timedelta(seconds=30 * minute):%Y-%m-%dT%H:%M:%SZ},0.5,8\n")
    held = made.credentials()
    with Portal(held["url"], held["api_key"]) as found:
        yield found
    made.stop()


def test_a_source_that_stalls_and_one_that_floods_hold_up_no_other(portal: Portal) -> None:
    metrics = [
        {"metric": {"key": f"{name}_share", "kind": "proportion", "freshness_target_s": 3600, "expected_every_s": 3600}}
        for name in ("good", "flood", "stalled")
    ]
    portal.create_experiment({"key": "searched", "name": "S", "hypothesis": "H", "target_kpis": metrics})
    query = "SELECT * FROM rows WHERE ts > :since AND ts <= :until"
    kinds: dict[str, dict[str, Any]] = {
        "stalled": {"kind": "http", "url_env": "STALLED_URL"},
        "flood": {"kind": "file", "path": "flood.csv", "query": query},
        "good": {"kind": "file", "path": "good.csv", "query": query},
    }

    def status(name: str) -> str:
        run: dict[str, Any] = next(iter(portal.pages("/api/refresh-log", job=f"source/{name}")), {})
        return str(run["status"]) if run.get("started_at") else "waits"

    for name, kind in kinds.items():
        portal.post("/api/sources", {"key": name, "metrics": [f"{name}_share"], "time_limit_s": 240, **kind})
        portal.post(f"/api/sources/{name}/refresh")
        if name != "good":
            assert soon(lambda name=name: status(name) == "running", 60)  # type: ignore[misc]

    assert soon(lambda: status("good") == "succeeded", 60)
    assert (status("stalled"), status("flood")) == ("running", "running"), "neither has ended: it was not waited for"
    began = (TOP - timedelta(days=2)).isoformat()
    later = {"key": "later", "name": "L", "hypothesis": "H", "target_kpis": ["good_share"], "started_at": began}
    portal.create_experiment(later)
    judged = soon(lambda: portal.decision("later")["recommendation"]["evidence_digest"] is not None, 60)
    assert judged, "the gates go on meanwhile"
