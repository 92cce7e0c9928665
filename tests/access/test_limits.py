"""Exactly as many requests pass as a key's rate says, whatever the concurrency, with Redis or without."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client, RequestFactory
from django_ratelimit import core

from decisioning.access import limits
from decisioning.access.keys import KeyRefused, create_key
from decisioning.access.models import Team
from decisioning.access.principal import ANONYMOUS, Principal
from tests.conftest import as_role

FACTORY = RequestFactory()
_number = iter(range(1_000_000))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_breaker", limits._Breaker())
    monkeypatch.setattr(limits, "_here", limits._Here())


def program(rate: str = "60/h") -> Principal:
    """A key nobody has used, whatever run this is."""
    return Principal("key", id=1, name=f"dk_{time.time_ns()}-{next(_number)}", rate=rate)


def calls(principal: Principal, number: int, *, threads: int = 1) -> Counter[bool]:
    """How many of so many calls at once pass."""
    gate = threading.Barrier(threads)

    def some(share: int) -> list[bool]:
        gate.wait()
        return [not limits.used(FACTORY.get("/api/experiments"), principal).refused for _ in range(share)]

    with ThreadPoolExecutor(threads) as pool:
        return Counter(passed for share in pool.map(some, [number // threads] * threads) for passed in share)


def test_of_200_calls_at_once_at_a_limit_of_60_exactly_60_pass(settings: Any) -> None:
    cache = settings.CACHES["default"]
    patient = {
        **cache["OPTIONS"],
        "socket_timeout": 20,
        "socket_connect_timeout": 20,
    }  # a busy machine is no Redis that is away
    settings.CACHES = {**settings.CACHES, "default": {**cache, "OPTIONS": patient}}
    assert calls(program(), 200, threads=200) == {True: 60, False: 140}


def test_what_redis_has_counted_is_not_forgotten_when_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets a second helping out of an outage."""
    mine = program("60/h")
    assert calls(mine, 50)[True] == 50
    limits._breaker.open()
    assert calls(mine, 50) == {True: 10, False: 40}


def test_another_keys_calls_do_not_count() -> None:
    first, second = program("2/h"), program("2/h")
    assert calls(first, 3)[True] == 2
    assert calls(second, 3)[True] == 2


def test_a_window_ends_and_the_next_is_whole() -> None:
    short = program("3/2s")
    seen = [limits.used(FACTORY.get("/api/"), short) for _ in range(5)]
    assert [usage.refused for usage in seen][-1]
    time.sleep(2.1)
    assert not limits.used(FACTORY.get("/api/"), short).refused


@pytest.fixture
def silent_redis(settings: Any) -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": f"redis://127.0.0.1:{port}/0"}}
        yield port


def test_who_waits_for_as_long_as_the_answer_says_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    began, now = time.time(), [0.0]
    monkeypatch.setattr(core, "time", SimpleNamespace(time=lambda: now[0]))
    for after in (0.0, 0.5, 17.99, 31.2, 59.7):
        who, request, now[0] = program("1/m"), FACTORY.get("/api/experiments"), began + after
        assert not limits.used(request, who).refused
        told = limits.used(request, who)
        assert told.refused
        now[0] += told.resets_s - 1
        assert limits.used(request, who).refused, "a second less would have been too short, or more than was needed"
        now[0] += 1
        assert not limits.used(request, who).refused


def test_without_redis_this_process_counts_for_itself(settings: Any) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9/0"}}
    assert calls(program(), 200, threads=50) == {True: 60, False: 140}


@pytest.mark.usefixtures("silent_redis")
def test_a_redis_that_hangs_is_waited_for_once_and_not_long() -> None:
    one = program()
    began = time.monotonic()
    limits.used(FACTORY.get("/api/"), one)
    first = time.monotonic() - began
    began = time.monotonic()
    assert [limits.used(FACTORY.get("/api/"), one).count for _ in range(20)] == list(range(2, 22))
    assert first < 0.7
    assert time.monotonic() - began < 0.2


def test_redis_is_asked_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PAUSE_S", 0.1)
    one = program()
    limits._breaker.open()
    assert limits.used(FACTORY.get("/api/"), one).count == 1  # counted here
    time.sleep(0.15)
    assert [limits.used(FACTORY.get("/api/"), one).count for _ in range(2)] == [1, 2]  # and there


def test_without_a_valid_key_the_address_is_counted_and_an_ipv6_household_is_one(settings: Any) -> None:
    settings.ADDRESS_RATE = "3/h"
    mark = f"2001:db8:{next(_number):x}:{time.time_ns() % 65_000:x}"
    addresses = [f"{mark}::{last}" for last in range(5)]
    passed = [not limits.used(FACTORY.get("/api/", REMOTE_ADDR=address), ANONYMOUS).refused for address in addresses]
    assert passed == [True, True, True, False, False]


@pytest.fixture
def secret(team: Team, now: datetime) -> str:
    with as_role("owner"):
        return create_key(team, scopes=["experiments:read"], rate="3/h", now=now)[1]


def test_the_contracts_headers_and_the_429(secret: str) -> None:
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    left = []
    for _ in range(3):
        answer = client.get("/api/experiments")
        assert answer.status_code == 200
        assert answer["RateLimit-Policy"] == '"key";q=3;w=3600'
        left.append(answer["RateLimit"].split(";")[1])
    assert left == ["r=2", "r=1", "r=0"]
    refused = client.get("/api/experiments")
    assert (refused.status_code, refused["Content-Type"]) == (429, "application/problem+json")
    assert (refused.json()["code"], refused.json()["status"]) == ("rate_limited", 429)
    assert 1 <= int(refused["Retry-After"]) <= 3600
    assert refused["RateLimit"].startswith('"key";r=0;t=')
    assert client.get("/api/v1/metrics").status_code == 429, "one count for the whole API"
    assert client.get("/healthz").status_code == 200


def test_a_stranger_who_guesses_keys_is_stopped_by_address_and_cannot_forge_it(db: None, settings: Any) -> None:
    settings.ADDRESS_RATE = "3/h"
    here = f"198.51.{next(_number)}.{time.time_ns() % 250}"
    answers = [
        Client(REMOTE_ADDR=here, headers={"Authorization": f"Bearer dk_{n}", "X-Forwarded-For": f"203.0.113.{n}"})
        .get("/api/experiments")
        .status_code
        for n in range(5)
    ]
    assert answers == [401, 401, 401, 429, 429]


def test_a_rate_that_is_none_is_refused_when_the_key_is_made(team: Team, now: datetime) -> None:
    for rate in ("40", "0/m", "m", "40/w", "-1/m", "40/m; DROP"):
        with as_role("owner"), pytest.raises(KeyRefused) as refusal:
            create_key(team, scopes=["experiments:read"], rate=rate, now=now)
        assert [fault.code for fault in refusal.value.errors] == ["invalid_rate"]
    with as_role("owner"):
        call_command("create_key", team="growth", scopes="experiments:read", rate="40/m")
        with connection.cursor() as cursor:
            cursor.execute("SELECT rate FROM metadata.api_keys")
            assert cursor.fetchall() == [("40/m",)]
