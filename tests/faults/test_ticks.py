"""Ticks go on: without Valkey, after FLUSHALL, after beat was away."""

import os
import signal
import time

import httpx
import psycopg
import pytest
import redis

from decisioning.embedded import Home, Postgres, Valkey
from tests.faults.conftest import create, frozen, row
from tests.installation import Installation, soon

pytestmark = pytest.mark.faults


def beats(installation: Installation) -> float:
    """When the evaluation last beat, in seconds since the epoch."""
    with psycopg.connect(Postgres(Home(installation.home)).dsn("superuser")) as connection:
        found = connection.execute(
            "SELECT extract(epoch FROM at)::float8 FROM audit.heartbeats WHERE name = 'gates.tick'"
        )
        (at,) = found.fetchone() or (0.0,)
        return float(at)


def test_ticks_go_on_without_valkey_and_return_to_the_worker(installation: Installation, api: httpx.Client) -> None:
    create(api, "no-valkey")
    with frozen(installation.find("valkey-server")):
        began = time.time()
        assert soon(lambda: bool(installation.find("manage.py ticks")), 40)
        started = time.time()
        rows = api.post("/api/experiments/no-valkey/kpis", json={"rows": [row(n) for n in range(50)]})
        first = soon(lambda: beats(installation) > started, 90)
        second_after = beats(installation)
        second = soon(lambda: beats(installation) > second_after, 60)
        took = time.time() - began
    ended = soon(lambda: not installation.find("manage.py ticks"), 30)
    back = time.time()

    print(f"\nticks stood in after {started - began:.0f} s and ticked twice within {took:.0f} s")
    assert rows.status_code == 200
    assert first
    assert second
    assert ended
    assert soon(lambda: beats(installation) > back, 90), "the worker does not tick again"


def test_flushall_loses_no_tick(installation: Installation) -> None:
    valkey = Valkey(Home(installation.home))
    with redis.Redis.from_url(valkey.url()) as client:
        client.flushall()
    flushed = time.time()

    went_on = soon(lambda: beats(installation) > flushed + 1, 90)

    print(f"\nticked {time.time() - flushed:.0f} s after FLUSHALL")
    assert went_on


def test_a_dead_beat_is_replaced(installation: Installation) -> None:
    os.kill(installation.find("celeryd: courier")[0], signal.SIGKILL)
    killed = time.time()
    assert soon(lambda: beats(installation) > killed + 1, 90)
