"""Several web processes on one port are one web server to those who ask it."""

import os
import re
import signal
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.conftest import parent
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("several") / "home", options=("--web", "2"))
    made.start()
    yield made
    made.stop()


def reads(url: str) -> int:
    """Good reads by /metrics, over a connection of its own."""
    told = httpx.get(f"{url}/metrics", timeout=20).text
    found = re.search(r'^decisioning_reads_total\{answer="good"\} (\S+)$', told, re.MULTILINE)
    return int(float(found[1])) if found else 0


def test_metrics_count_what_every_process_has_answered_also_one_that_was_killed(installation: Installation) -> None:
    held = installation.credentials()
    headers = {"Authorization": f"Bearer {held['api_key']}"}
    before = reads(held["url"])
    for _ in range(40):
        httpx.get(f"{held['url']}/api/metrics", headers=headers, timeout=20).raise_for_status()
    everywhere = {reads(held["url"]) - before for _ in range(12)}

    webs = installation.find("granian asgi")
    os.kill(next(pid for pid in webs if parent(pid) in webs), signal.SIGKILL)
    back = soon(lambda: len(installation.find("granian asgi")) == len(webs), 30)
    after = {reads(held["url"]) - before for _ in range(12)}

    print(f"\n40 reads by two processes, {everywhere} told; one killed: {after}")
    assert everywhere == {40}
    assert back
    assert after == {40}
