"""A backup of a running installation, restored into a new home, proves everything again there."""

from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import create, row
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults


def test_a_restored_installation_runs_and_replays_every_verdict(
    installation: Installation, api: httpx.Client, tmp_path: Path
) -> None:
    create(api, "kept")
    assert api.post("/api/experiments/kept/kpis", json={"rows": [row(n * 900) for n in range(500)]}).status_code == 200
    assert soon(lambda: bool(api.get("/api/experiments/kept/evaluations").json()["results"]), 90)
    folder = tmp_path / "backup"

    made = installation.manage("backup", str(folder))
    again = Installation(tmp_path / "restored")
    restored = installation.manage("restore", str(folder), "--home", str(again.home))
    occupied = installation.manage("restore", str(folder), "--home", str(installation.home))
    again.start()
    try:
        replayed, audit = again.manage("replay", "--all"), again.manage("verify_audit")
        held = again.credentials()
        there = httpx.get(
            f"{held['url']}/api/experiments/kept", headers={"Authorization": f"Bearer {held['api_key']}"}, timeout=20
        )
    finally:
        again.stop()

    last = [said.stdout.strip().rpartition("\n")[2] for said in (made, restored, occupied, replayed, audit)]
    print("\n" + "\n".join(last))
    assert (made.returncode, restored.returncode, replayed.returncode, audit.returncode) == (0, 0, 0, 0)
    assert last[1].startswith("restored: ")
    assert (occupied.returncode, last[2].startswith("not restored: An installation runs")) == (1, True)
    assert last[3].endswith("all the same bytes.")
    assert not last[3].startswith("0 ")
    assert last[4].startswith("sound: ")
    assert there.json()["recommendation"] == api.get("/api/experiments/kept").json()["recommendation"]
