"""A disk that is full: nothing acknowledged is lost, reads go on, it is said, and with room all goes on by itself."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.conftest import WIDE, create, installed, row
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults

SIZE = "900m" if WIDE else "420m"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small one of its own."""
    at = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(at)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


@pytest.fixture(scope="module")
def installation(disk: Path) -> Iterator[Installation]:
    with installed(disk / "home") as made:
        yield made


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """To the last byte."""
    ballast = disk / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        with (disk / "crumbs").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x")
        yield
    finally:
        (disk / "crumbs").unlink(missing_ok=True)
        ballast.unlink()


def test_a_full_disk_loses_nothing_stops_no_read_and_is_over_when_there_is_room(
    installation: Installation, api: httpx.Client, disk: Path
) -> None:
    create(api, "room")
    sent, acknowledged, codes = 0, 0, set[str]()

    def send() -> int:
        nonlocal sent, acknowledged
        rows = [row(sent + n) for n in range(2_000)]
        sent += len(rows)
        answer = api.post("/api/experiments/room/kpis", json={"rows": rows}, timeout=30)
        acknowledged += len(rows) if answer.status_code == 200 else 0
        if answer.status_code != 200:
            codes.add(answer.json()["code"])
        return answer.status_code

    assert send() == 200
    assert api.get("/api/experiments/room").status_code == 200
    with full(disk):
        told = {send() for _ in range(10)}
        assert soon(lambda: api.get("/readyz").status_code == 503, 30)
        ready = api.get("/readyz").json()
        read = [api.get("/api/experiments/room").status_code for _ in range(20)]
        killed = installation.find("granian")
        os.kill(killed[0], signal.SIGKILL)
        assert soon(lambda: not set(killed) & set(installation.find("granian")), 60)
        back = soon(lambda: _status(api, "/healthz") == 200, 60)
        again = [_status(api, "/api/experiments/room") for _ in range(20)]
        running = installation.process is not None and installation.process.poll() is None

    print(f"\nfull: writes {told} {codes}, readyz {ready}, reads {set(read)}")
    assert told <= {200, 503}
    assert 503 in told
    assert codes <= {"storage_full", "database_unavailable"}
    assert ready["writes"] in {"disk_full", "down"}
    assert set(read) == {200}
    assert running, "the supervisor outlives it"
    assert set(again) == {200}
    assert back, "a web process that dies meanwhile is started again"
    assert soon(lambda: _status(api, "/readyz") == 200, 90)
    assert soon(lambda: send() == 200, 60)
    kept = api.get(
        "/api/experiments/room/kpis", params={"metric": "latency"}, headers={"Accept": "text/csv"}, timeout=30
    ).text
    assert len(kept.splitlines()) - 1 >= acknowledged
    assert installation.manage("verify_audit").returncode == 0


def _status(api: httpx.Client, path: str) -> int:
    try:
        return api.get(path).status_code
    except httpx.HTTPError:
        return 0
