"""People and workers at one experiment at the same time: nobody waits for what is only being read and folded."""

import datetime as dt
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from decisioning.access.models import Team
from experiments.models import Experiment
from gates.consistency import differences
from gates.models import Cursor, Evaluation
from gates.tick import TickReport, evaluate
from tests.conftest import as_role
from tests.installation import soon
from tests.walk import HOUR, Walk

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def walk(transactional_db: None, team: Team) -> Walk:
    """A goal that wins, judged once, and an hour of new rows that nobody has judged."""
    made = Walk(team)
    made.create()
    rows = made.rows(uplift=0.1)
    made.send([row for row in rows if row["ts"] < (made.now - 2 * HOUR).isoformat()])
    made.tick()
    made.send([row for row in rows if row["ts"] >= (made.now - 2 * HOUR).isoformat()])
    return made


def judged(walk: Walk) -> TickReport:
    """What a worker makes of it just now."""
    with as_role("worker"), connection.cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '60s'")  # it is kept waiting here for as long as the test likes
        return evaluate([Experiment.objects.get(key=walk.key).pk], now=walk.now)


def elsewhere[T](pool: ThreadPoolExecutor, work: Callable[[], T]) -> Future[T]:
    """In another thread, on a connection of its own."""

    def done() -> T:
        try:
            return work()
        finally:
            connection.close()

    return pool.submit(done)


@contextmanager
def as_owner() -> Iterator["psycopg.Connection[Any]"]:
    """A transaction that is rolled back."""
    with psycopg.connect(settings.ROLE_URLS["owner"], dbname=connection.settings_dict["NAME"]) as made:
        yield made
        made.rollback()


WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"


def waits(database: "psycopg.Connection[Any]") -> bool:
    """Whether somebody waits for what this transaction has locked."""
    return database.execute(WAITING).fetchone() != (0,)


@contextmanager
def judging(walk: Walk) -> Iterator[Future[TickReport]]:
    """A worker that has folded and reads what is on record; it goes on from there when this ends."""
    with ThreadPoolExecutor(1) as pool, as_owner() as lock:
        lock.execute("LOCK TABLE metadata.evaluations")
        future = elsewhere(pool, lambda: judged(walk))
        assert soon(lambda: waits(lock))
        yield future


def test_a_new_name_and_a_slot_that_is_asked_for_leave_what_a_worker_judges_as_it_is(walk: Walk) -> None:
    document = f"/api/experiments/{walk.key}"
    etag = walk.client.get(document)["ETag"]
    with judging(walk) as future:
        named = walk.client.patch(
            document, {"name": "Two"}, content_type="application/json", headers={"If-Match": etag}
        )
        asked = walk.client.post(f"{document}/evaluate")
    done = future.result()

    assert (named.status_code, asked.status_code) == (200, 202)
    assert (done.experiments, done.overtaken) == (1, [])
    with as_role("worker"):
        cursor = Cursor.objects.get()
        assert cursor.asked_slot is not None, "it was asked for after it was judged"
        assert cursor.due_at is not None
        assert cursor.due_at <= dt.datetime.now(dt.UTC)


def test_a_pause_and_an_answer_are_taken_at_once_while_a_worker_judges_and_judged_next(walk: Walk) -> None:
    digest = walk.recommendation()["evidence_digest"]
    with judging(walk) as future:
        paused = walk.post(f"/api/experiments/{walk.key}/transitions", {"to": "paused"})
    first = future.result()
    walk.post(f"/api/experiments/{walk.key}/transitions", {"to": "running"})
    with judging(walk) as future:
        walk.answer(evidence_digest=digest, action="override", override_to="hold", reason="One more day.")
    second = future.result()

    assert paused["status"] == "paused"
    assert [(d.experiments, len(d.overtaken), d.evaluations) for d in (first, second)] == [(0, 1, 0)] * 2
    again = judged(walk)
    assert (again.experiments, again.overtaken) == (1, [])
    with as_role("worker"):
        assert differences(Experiment.objects.get(key=walk.key)) == []
        assert Evaluation.objects.filter(slot__gt=walk.now - 2 * HOUR).exists()


def test_what_a_changed_metric_overtakes_is_judged_by_the_changed_one(walk: Walk) -> None:
    with as_role("worker"):
        Cursor.objects.update(quiet_to=None)  # it is not quiet anyway
    with judging(walk) as future:
        changed = walk.client.patch("/api/metrics/vrps", {"freshness_target_s": 7200}, content_type="application/json")
    assert changed.status_code == 200
    assert len(future.result().overtaken) == 1
    assert judged(walk).experiments == 1


def test_who_writes_while_a_worker_writes_waits_for_it(walk: Walk) -> None:
    with ThreadPoolExecutor(1) as pool, as_role("worker"):
        held = judged(walk)
        pausing = elsewhere(
            pool, lambda: walk.post(f"/api/experiments/{walk.key}/transitions", {"to": "paused"})["status"]
        )
        with connection.cursor() as cursor:

            def waited_for() -> bool:
                cursor.execute(WAITING)
                return bool(cursor.fetchone() != (0,))

            assert soon(waited_for)
    assert held.experiments == 1
    assert pausing.result() == "paused"


def test_a_second_worker_passes_by_what_a_first_one_judges(walk: Walk) -> None:
    with judging(walk) as future:
        second = judged(walk)
    assert second == TickReport()
    assert future.result().experiments == 1


def test_facts_can_be_pointed_at_an_experiment_that_somebody_is_changing(walk: Walk) -> None:
    """Else a worker that holds the cursor waits for who waits for the cursor."""
    with ThreadPoolExecutor(1) as pool, as_owner() as lock, as_owner() as worker:
        lock.execute("LOCK TABLE metadata.target_kpis")  # the change reads it after it has locked the experiment
        changing = elsewhere(
            pool,
            lambda: (
                walk.client.patch(
                    f"/api/experiments/{walk.key}", {"name": "Two"}, content_type="application/json"
                ).status_code
            ),
        )
        assert soon(lambda: waits(lock))
        worker.execute("SELECT access.bind('job', NULL, 'test', '{}', false, '')")
        worker.execute("SELECT FROM metadata.experiments WHERE key = %s FOR KEY SHARE NOWAIT", [walk.key])
        with pytest.raises(psycopg.errors.LockNotAvailable):
            worker.execute("SELECT FROM metadata.experiments WHERE key = %s FOR UPDATE NOWAIT", [walk.key])
    assert changing.result() == 200
