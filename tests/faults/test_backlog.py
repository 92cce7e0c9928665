"""Nothing that was due is lost, done twice or judged as of another time: beat away for two hours, FLUSHALL, two beats at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import redis

from decisioning.embedded import PROJECT, Home, Valkey
from tests.faults.conftest import frozen
from tests.faults.past import SLOT, Watch, early_in_a_slot, lay, newest_slot, send_rows, watching
from tests.installation import Installation, clean_environment, soon

pytestmark = pytest.mark.faults

EXPERIMENTS = 200
WORKER, BEAT = "celeryd: worker", "celeryd: courier"  # beat is a thread of the courier's


def ticks_since(installation: Installation, since: datetime) -> int:
    """Ticks that have ended since then, by the workers' logs."""
    lines = [line for log in (installation.home / "logs").glob("worker*.log") for line in log.read_text().splitlines()]
    found = [
        json.loads(line)
        for line in lines
        if line.startswith("{") and "Task gates.tick[" in line and "succeeded" in line
    ]
    return sum(datetime.fromisoformat(line["at"]) >= since for line in found)


@contextmanager
def second_beat(installation: Installation) -> Iterator[None]:
    """As somebody would start one by mistake."""
    environment = json.loads((installation.home / "environment.json").read_text()) | {"DECISIONING_ROLE": "worker"}
    command = [sys.executable, "-m", "celery", "-A", "decisioning.celery", "beat", "--pidfile=", "--loglevel", "INFO"]
    log = installation.home / "logs" / "second-beat.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--schedule", str(installation.home / "second-beat")],
            cwd=PROJECT, env=clean_environment() | environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        assert soon(lambda: "gates.tick" in log.read_text(), 90), log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(20)


def each_once(watch: Watch) -> None:
    """Every experiment was judged, none twice at a slot."""
    often = watch.often()
    assert sum(often.values()) == EXPERIMENTS, "one was not judged"
    assert set(often) == {1}, "one was judged twice"


def test_two_hours_without_beat_are_caught_up_as_of_each_slot(installation: Installation, api: httpx.Client) -> None:
    away = installation.find(BEAT) + installation.find(WORKER)
    for pid in away:
        os.kill(pid, signal.SIGSTOP)
    last = lay(installation, EXPERIMENTS, timedelta(hours=2))
    early_in_a_slot()
    slots = (newest_slot() - last) // SLOT

    with watching(installation) as watch:
        assert watch.waiting() == EXPERIMENTS
        began = time.monotonic()
        for pid in away:
            os.kill(pid, signal.SIGKILL)  # the supervisor starts both again
        done = soon(lambda: not watch.waiting(), 150)
        took = time.monotonic() - began
        missed = dict(watch.root.execute("SELECT missed_slots, count(*) FROM metadata.cursors GROUP BY 1").fetchall())
        # The last rows ended 35 minutes before the last slot: two hours later they are stale, half an hour before anybody looked.
        stale = watch.root.execute(
            "SELECT slot, count(*), min(computed_at) FROM metadata.evaluations WHERE slot > %s AND code = 'stale' GROUP BY 1",
            [last],
        ).fetchall()
        moved = watch.moved()
        each_once(watch)
    told = re.search(r"^decisioning_missed_slots (\S+)$", api.get("/metrics", timeout=20).text, re.MULTILINE)
    counted = float(told[1]) if told else None
    rebuilt = installation.manage("rebuild")

    print(
        f"\n{EXPERIMENTS} experiments, {slots} slots behind: caught up {took:.0f} s after beat and worker started again; missed {missed}, "
        f"{counted} in all by /metrics; stale since {[(slot.isoformat(), count) for slot, count, _ in stale]}; {rebuilt.stdout.strip()}"
    )
    assert done
    assert took <= 120
    assert slots >= 24
    assert {tuple(moves) for moves in moved.values()} == {((last, last + slots * SLOT),)}
    assert missed == {slots - 1: EXPERIMENTS}, "the slot that is judged in time is not missed"
    assert counted == (slots - 1) * EXPERIMENTS
    assert [(slot, count) for slot, count, _ in stale] == [(last + 18 * SLOT, EXPERIMENTS)]
    assert stale[0][2] - stale[0][0] > timedelta(minutes=25), "it was judged late, as of its slot"
    assert rebuilt.returncode == 0, rebuilt.stdout


def test_flushall_while_200_are_due_loses_none(installation: Installation) -> None:
    early_in_a_slot()
    with redis.Redis.from_url(Valkey(Home(installation.home)).url()) as valkey, watching(installation) as watch:
        with frozen(installation.find(WORKER)):
            rows = send_rows(watch.root)
            assert watch.waiting() == EXPERIMENTS
            assert soon(lambda: valkey.llen("celery") > 0, 45), "beat puts hints into the queue"
            valkey.flushall()
        began, at = time.monotonic(), datetime.now(UTC)
        claimed = soon(watch.claimed, 60)
        valkey.flushall()
        between = watch.waiting()
        done = soon(lambda: not watch.waiting(), 90)
        took = time.monotonic() - began
        time.sleep(1)
        ticks = ticks_since(installation, at)
        each_once(watch)

    print(
        f"\n{rows} rows of {EXPERIMENTS} experiments; FLUSHALL with hints queued, and again with {between} claimed and not done: "
        f"all judged once, {took:.0f} s and {ticks} ticks later"
    )
    assert claimed
    assert between == EXPERIMENTS, "the second FLUSHALL came between claim and work"
    assert done
    assert 1 <= ticks <= 2


def test_two_beats_at_once_do_nothing_twice(installation: Installation) -> None:
    early_in_a_slot()
    with (
        second_beat(installation),
        watching(installation) as watch,
        redis.Redis.from_url(Valkey(Home(installation.home)).url()) as valkey,
    ):

        def hints() -> int:
            return sum(b"gates.tick" in message for message in valkey.lrange("celery", 0, -1))

        with frozen(installation.find(WORKER)):
            send_rows(watch.root)
            assert soon(lambda: hints() >= 2, 75), "both beats put hints into the queue"
            queued = hints()
        done = soon(lambda: not watch.waiting(), 90)
        time.sleep(5)  # the second hint has found nothing
        at_once = watch.by()
        each_once(watch)
        missed = watch.root.execute("SELECT count(DISTINCT missed_slots) FROM metadata.cursors").fetchone()

    print(f"\ntwo beats, {queued} hints at once: {at_once} experiments moved by each process, each once")
    assert done
    assert missed == (1,), "a slot was counted as missed for some and not for others"
