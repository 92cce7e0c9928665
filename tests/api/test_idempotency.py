"""Idempotency-Key: done once, answered as often as asked."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event, Thread

import httpx
import pytest
from django.db import connection
from pytest_django.live_server_helper import LiveServer

from decisioning.access.models import ApiKey
from decisioning.access.scopes import Scope
from decisioning.api.idempotency import _lock_of
from experiments.models import Experiment
from tests.api.conftest import PLAN, Caller, Makes
from tests.conftest import as_role

KEY = {"Idempotency-Key": "one"}


def experiments() -> int:
    with as_role("owner"):
        return Experiment.objects.count()


def test_the_same_request_is_answered_again_and_done_once(ops: Caller) -> None:
    first = ops.post("/api/experiments", PLAN, **KEY)
    again = ops.post("/api/experiments", PLAN, **KEY)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert [again[name] for name in ("Location", "ETag", "Content-Type")] == [
        first[name] for name in ("Location", "ETag", "Content-Type")
    ]
    assert ("Idempotent-Replayed" in first, again["Idempotent-Replayed"]) == (False, "true")
    assert experiments() == 1


def test_rows_sent_again_under_a_key_get_the_first_answer(ops: Caller) -> None:
    made = ops.experiment()
    rows = {"rows": [{"metric": "vrps", "variant": "control", "ts": datetime.now(UTC).isoformat(), "value": 1.0}]}
    first = ops.post(f"/api/experiments/{made['id']}/kpis", rows, **KEY)
    again = ops.post(f"/api/experiments/{made['id']}/kpis", rows, **KEY)
    assert (first.json()["accepted"], again.json()) == (1, first.json())


def test_another_body_under_the_same_key_is_refused(ops: Caller) -> None:
    ops.post("/api/experiments", PLAN, **KEY)
    other = ops.post("/api/experiments", {**PLAN, "name": "Another"}, **KEY)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert experiments() == 1


def test_two_programs_may_use_the_same_key(ops: Caller, caller: Makes) -> None:
    ops.post("/api/experiments", PLAN, **KEY)
    second = caller("growth").post("/api/experiments", PLAN, **KEY)
    assert (second.status_code, "Idempotent-Replayed" in second) == (201, False)
    assert experiments() == 2


def test_a_refusal_is_not_kept_so_the_mended_request_may_use_the_key(ops: Caller) -> None:
    assert ops.post("/api/experiments", {}, **KEY).status_code == 422
    assert ops.post("/api/experiments", PLAN, **KEY).status_code == 201


def test_after_a_day_the_key_is_free_again(ops: Caller) -> None:
    ops.post("/api/experiments", PLAN, **KEY)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("UPDATE metadata.idempotency SET created_at = %s", [datetime.now(UTC) - timedelta(hours=24.1)])
    assert "Idempotent-Replayed" not in ops.post("/api/experiments", {**PLAN, "name": "Another"}, **KEY)
    assert experiments() == 2


def test_the_secret_of_a_new_key_is_shown_once_and_never_stored(ops: Caller) -> None:
    body = {"scopes": [str(Scope.READ)]}
    first = ops.post("/api/keys", body, **KEY)
    again = ops.post("/api/keys", body, **KEY)
    assert (first.status_code, again.status_code, again.json()["code"]) == (201, 409, "secret_shown_once")
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT count(*), count(body) FROM metadata.idempotency")
        assert cursor.fetchone() == (1, 0)
        assert ApiKey.objects.count() == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
def test_a_key_that_is_none_is_refused(ops: Caller, key: str) -> None:
    response = ops.post("/api/experiments", PLAN, **{"Idempotency-Key": key})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_idempotency_key")


def test_nobody_reads_the_answers_of_another_program(ops: Caller, stranger: Caller) -> None:
    ops.post("/api/experiments", PLAN, **KEY)
    with connection.cursor() as cursor:
        cursor.execute("SELECT access.bind('key', 999999, 'x', '{}', false, '')")
        cursor.execute("SELECT count(*) FROM metadata.idempotency")
        assert cursor.fetchone() == (0,)


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_is_done_and_the_others_are_told_or_answered_the_same(
    live_server: LiveServer, ops: Caller
) -> None:
    said = {"Authorization": f"Bearer {ops.secret}", **KEY}
    with httpx.Client(base_url=live_server.url, headers=said, timeout=60) as http, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: http.post("/api/experiments", json=PLAN), range(16)))
    done = [answer for answer in answers if answer.status_code == 201]
    told = [answer for answer in answers if answer.status_code != 201]
    assert {answer.json()["code"] for answer in told} <= {"in_progress"}
    assert len({answer.content for answer in done}) == 1
    assert sum("Idempotent-Replayed" not in answer.headers for answer in done) == 1
    assert experiments() == 1


@pytest.mark.django_db(transaction=True)
def test_while_the_first_still_runs_a_second_is_told_so(ops: Caller) -> None:
    held, release = Event(), Event()
    with as_role("owner"):
        name = f"key:{ApiKey.objects.get().pk}"

    def first_request() -> None:
        with as_role("worker"), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_lock_of(name, "one")])
            held.set()
            release.wait(30)
        connection.close()

    thread = Thread(target=first_request)
    thread.start()
    held.wait(30)
    second = ops.post("/api/experiments", PLAN, **KEY)
    release.set()
    thread.join()
    assert (second.status_code, second.json()["code"], second["Retry-After"]) == (409, "in_progress", "1")
    assert ops.post("/api/experiments", PLAN, **KEY).status_code == 201
