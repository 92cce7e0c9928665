"""The portal on eleven hosts that are cut off and killed while programs write to it and read from it.

    uv run pytest -m cluster -n 0 -s

Needs root, iproute2, etcd and Caddy; takes a quarter of an hour. CLUSTER_MINUTES says for how long a worker's host is cut off (10).
"""

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from tests.cluster.hosts import Host
from tests.cluster.portal import ClusteredPortal, asks
from tests.cluster.traffic import BATCH, Writer, batch, create
from tests.faults.conftest import Readers, figures

pytestmark = pytest.mark.cluster
MINUTES = float(os.environ.get("CLUSTER_MINUTES", "10"))
WRITES_BACK_S = 30.0
BEGAN = datetime.now(UTC)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    logging.getLogger("httpx").setLevel(logging.WARNING)


@pytest.fixture(scope="module")
def portal() -> Iterator[ClusteredPortal]:
    lacking = [name for name in ("ip", "etcd", "caddy", "unshare", "setpriv") if not shutil.which(name)]
    if os.geteuid() != 0 or lacking:
        pytest.skip(f"needs root and {', '.join(lacking) or 'nothing else'}")
    folder = Path(tempfile.mkdtemp(prefix="portal-cluster-"))
    made = ClusteredPortal(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def traffic(portal: ClusteredPortal, *experiments: str) -> Iterator[tuple[list[Writer], Readers]]:
    """A program that writes to each experiment, and people who read; quiet for ten seconds before and after."""
    for experiment in experiments:
        create(portal.url, portal.key, experiment)
    paths = [f"/api/experiments/{experiments[0]}", "/api/experiments", "/api/metrics"]
    writers = [Writer(portal.url, portal.key, experiment) for experiment in experiments]
    with ExitStack() as stack:
        for writer in writers:
            stack.enter_context(writer)
        readers = stack.enter_context(Readers(portal.url, portal.key, paths, rate=10, threads=6))
        time.sleep(10)
        yield writers, readers
        time.sleep(10)


def is_whole(portal: ClusteredPortal) -> bool:
    return portal.primary() is not None and len(portal.standbys()) == 2


def lost(portal: ClusteredPortal, writers: Sequence[Writer]) -> int:
    """Rows that were acknowledged and are not there."""
    missing = 0
    with psycopg.connect(portal.dsn("superuser")) as connection:
        for writer in writers:
            stored = {
                ts
                for (ts,) in connection.execute(
                    "SELECT k.ts FROM metrics.experiment_kpis k JOIN metadata.experiments e ON e.id = k.experiment_id WHERE e.key = %s",
                    [writer.experiment],
                )
            }
            sent = {
                datetime.fromisoformat(str(row["ts"]))
                for _, number in writer.taken
                for row in batch(writer.began, number)
            }
            missing += len(sent - stored)
    return missing


def posted_inside(portal: ClusteredPortal, web: Host, experiment: str, number: int) -> str:
    """What a web answers to a batch that is sent from its own host: a status, or why there is none."""
    code = (
        "import json, sys, httpx\n"
        "try:\n"
        "    said = httpx.post(sys.argv[1], json=json.load(sys.stdin), headers={'Authorization': 'Bearer ' + sys.argv[2]}, timeout=30)\n"
        "    print(said.status_code)\n"
        "except httpx.HTTPError as problem:\n"
        "    print(type(problem).__name__)\n"
    )
    url = f"http://127.0.0.1:8000/api/experiments/{experiment}/kpis"
    done = web.ask(
        [sys.executable, "-c", code, url, portal.key], given=json.dumps({"rows": batch(BEGAN, number)}), seconds=60
    )
    return done.stdout.strip() or done.stderr


def test_when_the_primarys_host_is_cut_off_writes_come_back_and_nothing_acknowledged_is_lost(
    portal: ClusteredPortal,
) -> None:
    before = portal.primary()
    assert before is not None
    with traffic(portal, "cut-1", "cut-2") as (writers, readers):
        began = time.monotonic()
        before.cut_off()
        elected = asks(lambda: portal.primary() not in (None, before), 60)
        time.sleep(max(0.0, 45 - (time.monotonic() - began)))
        before.join()
        joined = asks(lambda: is_whole(portal), 120)
    away = max(writer.away_s(began, began + 45) for writer in writers)
    print(
        f"\nprimary's host cut off: another after {elected} s, writes away for {away:.1f} s, whole {joined} s after it was back; "
        f"{sum(len(w.taken) for w in writers) * BATCH} rows taken; {figures(readers.since(began))}"
    )
    assert lost(portal, writers) == 0
    assert away <= WRITES_BACK_S
    assert {reading.status for reading in readers.since(began)} == {200}


def test_a_primary_that_lost_the_others_takes_no_rows_though_a_web_still_reaches_it(portal: ClusteredPortal) -> None:
    assert asks(lambda: is_whole(portal), 120) is not None
    primary, web = portal.primary(), portal.webs[0]
    assert primary is not None
    create(portal.url, portal.key, "island")
    assert posted_inside(portal, web, "island", 0) in ("200", "201", "202")
    for host in (primary, web):
        host.strand()
    try:
        answers = [posted_inside(portal, web, "island", number) for number in range(1, 4)]
        elected = asks(lambda: portal.primary() not in (None, primary), 60)
    finally:
        for host in (primary, web):
            host.join()
    print(f"\nalone with the old primary a web answered {answers}; another was elected {elected} s after that")
    assert elected is not None
    assert not [answer for answer in answers if answer.startswith("2")]
    assert asks(lambda: is_whole(portal), 120) is not None


def test_a_worker_cut_off_a_primary_killed_and_a_broker_gone_lose_nothing_and_judge_nothing_twice(
    portal: ClusteredPortal,
) -> None:
    assert asks(lambda: is_whole(portal), 120) is not None
    primary, lonely = portal.primary(), portal.workers[0]
    assert primary is not None
    with traffic(portal, "long-1", "long-2") as (writers, readers):
        began = time.monotonic()
        lonely.cut_off()
        time.sleep(20)
        killed = time.monotonic()
        primary.kill()
        elected = asks(lambda: portal.primary() not in (None, primary), 60)
        time.sleep(30)
        portal.start_etcd(primary)
        portal.start_patroni(primary)
        whole = asks(lambda: is_whole(portal), 180)
        broker = time.monotonic()
        portal.brokers[0].kill()
        portal.brokers[0].cut_off()
        time.sleep(20)
        portal.promote_broker()
        time.sleep(max(0.0, 60 * MINUTES - (time.monotonic() - began)))
        lonely.join()
        time.sleep(60)
    away = max(writer.away_s(killed, killed + 60) for writer in writers)
    without = max(writer.away_s(broker, broker + 60) for writer in writers)
    print(
        f"\nprimary's host killed: another after {elected} s, writes away for {away:.1f} s, whole after {whole} s; "
        f"broker gone: writes away for {without:.1f} s; {sum(len(w.taken) for w in writers) * BATCH} rows taken; {figures(readers.since(began))}"
    )
    assert lost(portal, writers) == 0
    assert away <= WRITES_BACK_S
    assert {reading.status for reading in readers.since(began)} == {200}
    with psycopg.connect(portal.dsn("superuser")) as connection:
        behind, folds = connection.execute(
            "SELECT max(now() - c.judged_to), max(c.fold) FROM metadata.cursors c JOIN metadata.experiments e ON e.id = c.experiment_id WHERE e.key LIKE 'long-%'"
        ).fetchall()[0]
    assert behind.total_seconds() < 15 * 60
    assert folds == 1, "nothing was judged anew"
    for command in ("verify_audit", "rebuild", "replay"):
        done = portal.manage(command, *(["--all"] if command == "replay" else []))
        assert done.returncode == 0, done.stdout + done.stderr
