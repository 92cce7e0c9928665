"""kill -9 of who delivers, of the database and of the broker, while things happen and a receiver fails now and then: everything arrives."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from tests.faults.conftest import create
from tests.installation import Installation, soon
from tests.ledger.receiver import Receiver, receiving

pytestmark = pytest.mark.faults

VICTIMS = ["celeryd: courier", "celeryd: courier", "bin/postgres", "valkey-server", "celeryd: courier", "run_celery"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(
        tmp_path_factory.mktemp("notices") / "home", environment={"DECISIONING_OUTBOUND_ALLOW": "127.0.0.0/8"}
    )
    made.start()
    yield made
    made.stop()


class Flaky(threading.Thread):
    """Makes a receiver answer 503 for half a second in every two."""

    def __init__(self, receiver: Receiver) -> None:
        super().__init__()
        self.receiver, self.done = receiver, threading.Event()

    def run(self) -> None:
        for bad in itertools.cycle((False, False, False, True)):
            self.receiver.status = 503 if bad else 200
            if self.done.wait(0.5):
                self.receiver.status = 200
                return


class Mover(threading.Thread):
    """Pauses and starts an experiment again and again; keeps what was acknowledged, in order."""

    def __init__(self, api: httpx.Client, key: str) -> None:
        super().__init__()
        self.api, self.key, self.moved, self.done = api, key, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.4):
            try:
                now = self.api.get(f"/api/experiments/{self.key}").json()["status"]
                to = "paused" if now == "running" else "running"
                answer = self.api.post(f"/api/experiments/{self.key}/transitions", json={"to": to})
                self.moved += answer.status_code == 200
            except (httpx.HTTPError, KeyError):
                time.sleep(0.2)


def test_every_change_is_told_at_least_once_and_in_order_whoever_is_killed(
    installation: Installation, api: httpx.Client
) -> None:
    with receiving() as receiver, receiving() as hung:
        hung.free.clear()
        hooks = [
            api.post("/api/webhooks", json={"url": server.url, "events": ["experiment.changed"]}).json()
            for server in (receiver, hung)
        ]
        flaky, movers = Flaky(receiver), []
        for number in range(3):
            create(api, f"told-{number}")
            movers.append(Mover(api, f"told-{number}"))
        assert receiver.arrived.wait(60)  # whoever delivers is there
        for thread in (flaky, *movers):
            thread.start()
        for victim in VICTIMS:
            time.sleep(6)
            os.kill(installation.find(victim)[0], signal.SIGKILL)
        time.sleep(6)
        for thread in movers:
            thread.done.set()
            thread.join()
        flaky.done.set()
        flaky.join()

        acknowledged = sum(mover.moved + 1 for mover in movers)
        deliveries = f"/api/webhooks/{hooks[0]['id']}/deliveries"

        def all_there() -> bool:
            try:
                waiting = api.get(f"{deliveries}?state=waiting").json()["results"]
                return not waiting and len(set(receiver.ids)) >= acknowledged
            except (httpx.HTTPError, KeyError):
                return False

        assert soon(all_there, 240), api.get(f"{deliveries}?state=waiting").json()["results"][:3]
        told: dict[str, dict[str, Any]] = {}  # by id, in the order of first arrival
        for got in receiver.got:
            said = Webhook(hooks[0]["secret"])
            told.setdefault(got.id, said.verify(got.body, {**got.headers}) if _fresh(got.headers) else _read(got.body))
        print(f"\n{len(told)} messages, {len(receiver.got)} attempts, {len(hung.got)} calls of the hung receiver")
        for mover in movers:
            mine = [t["data"] for t in told.values() if t["data"]["experiment"] == mover.key]
            assert len(mine) >= mover.moved + 1
            assert all(b["from"] == a["to"] for a, b in itertools.pairwise(mine)), "out of order, or one is missing"
        hung.free.set()


def _fresh(headers: dict[str, str]) -> bool:
    return time.time() - float(headers["webhook-timestamp"]) < 240


def _read(body: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)
    return found
