"""Reads stay up while the database is silent; nobody sees what is another's; a revoked key is refused while the database answers."""

import asyncio
import ctypes
import socket
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory

from decisioning.access.keys import create_key
from decisioning.access.models import ApiKey, Team
from decisioning.access.principal import ANONYMOUS, Principal
from decisioning.access.scopes import Scope
from decisioning.availability.intake import MOST, SMALL, Intake, Refused
from decisioning.availability.middleware import ConcurrencyLimit, room_of
from decisioning.availability.response_cache import KnownPrincipals, ResponseCache, key_of
from decisioning.database import liveness
from decisioning.database.liveness import PROBE_S, GuardedConnection, Probe, ServerLiveness, ServerSilent
from tests.conftest import as_role
from tests.installation import soon

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
FACTORY = RequestFactory()


class Wire:
    """A way to the test's PostgreSQL that can go silent, as a frozen server does: it still takes what is sent."""

    def __init__(self) -> None:
        self.silent = threading.Event()
        login = settings.DATABASES["default"]
        self._server = (str(login["HOST"]), str(login["PORT"]))
        self._ends: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # who waits in accept() does not hear of a close
        self._threads[0].join()
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._ends):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._ends += [client, server]
            for here, there in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._carry, args=[here, there], daemon=True))
                self._threads[-1].start()

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(65536):
                while self.silent.is_set():
                    time.sleep(0.02)
                there.sendall(data)
        except OSError:
            pass
        finally:
            for end in (here, there):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.silent.clear()
    made.close()


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_watching", True)


@pytest.fixture
def beat(wire: Wire, watching: None) -> ServerLiveness:
    """What is known of the server behind the wire."""
    login, made = settings.DATABASES["default"], ServerLiveness("test database")
    made.parameters = {
        "host": "127.0.0.1", "port": wire.port, "user": login["USER"], "password": login["PASSWORD"], "dbname": "postgres",
    }  # fmt: skip
    return made


def test_a_statement_on_a_silent_server_is_given_up_within_a_second_and_the_server_is_known_to_be_back(
    wire: Wire, beat: ServerLiveness
) -> None:
    held = GuardedConnection.of(beat).connect(**beat.parameters, autocommit=True)
    held.execute("SELECT pg_sleep(1)")  # slow is not silent
    assert not beat.away

    wire.silent.set()
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        held.execute("SELECT 1")
    took = time.monotonic() - began

    assert took < 1.5  # 0.45 s, and what a busy machine adds
    assert beat.away
    assert beat.is_unwell()
    assert held.closed
    wire.silent.clear()
    assert soon(lambda: not beat.away, 5)
    assert beat.is_unwell(), "who has just come back may be slow"


def test_a_cut_connection_makes_a_server_unwell_but_not_away(beat: ServerLiveness) -> None:
    held = GuardedConnection.of(beat).connect(**beat.parameters, autocommit=True)
    held.execute("SELECT pg_sleep(0.4)")  # silent for so long that there is a probe
    assert not beat.is_unwell()

    mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres' AND usename = current_user AND pid <> pg_backend_pid()"
    with psycopg.connect(**beat.parameters, autocommit=True) as connection:
        connection.execute(mine)
    with pytest.raises(psycopg.OperationalError):
        held.execute("SELECT 1")
    again = GuardedConnection.of(beat).connect(**beat.parameters, autocommit=True)
    again.execute("SELECT pg_sleep(0.6)")  # asks the probe, which was cut as well
    again.close()

    assert not beat.away
    assert beat.is_unwell()


def without_a_turn(seconds: float) -> None:
    """No other thread of this process does anything meanwhile: a call that keeps the interpreter's lock."""
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))


def test_a_server_is_not_silent_because_this_process_had_no_turn(wire: Wire, beat: ServerLiveness) -> None:
    probe = Probe.connect(**beat.parameters, autocommit=True)
    stop = threading.Timer(0.02, without_a_turn, [2 * PROBE_S])
    stop.start()
    probe.execute("SELECT pg_sleep(0.2)")  # comes while nobody can look
    stop.join()

    wire.silent.set()
    stop = threading.Timer(0.02, without_a_turn, [2 * PROBE_S])
    stop.start()
    with pytest.raises((ServerSilent, psycopg.OperationalError)):
        probe.execute("SELECT 1")
    stop.join()


def test_who_has_something_else_to_go_by_waits_no_longer_than_they_said(beat: ServerLiveness) -> None:
    held = GuardedConnection.of(beat).connect(**beat.parameters, autocommit=True)

    began = time.monotonic()
    with liveness.waiting_until(began + 0.2), pytest.raises(psycopg.OperationalError):
        held.execute("SELECT pg_sleep(3)")
    took = time.monotonic() - began

    assert held.closed
    assert took < 2
    assert not beat.away


@pytest.mark.django_db(transaction=True)
def test_gets_answer_from_the_last_good_copy_and_writes_are_refused_while_the_database_is_silent(
    wire: Wire, watching: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_role("owner"):
        team = Team.objects.create(key="growth", name="Growth", created_at=NOW)
        _, secret = create_key(team, scopes=[Scope.READ, Scope.WRITE], now=datetime.now(UTC))
        gone, revoked = create_key(team, scopes=[Scope.READ, Scope.WRITE], now=datetime.now(UTC))
        _, narrow = create_key(team, scopes=[Scope.LINEAGE], now=datetime.now(UTC))
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "HOST", "127.0.0.1")
    monkeypatch.setitem(connection.settings_dict, "PORT", str(wire.port))
    client = Client(raise_request_exception=False)

    def get(path: str, key: str) -> Any:
        return client.get(path, headers={"Authorization": f"Bearer {key}"})

    body = {"key": "kept", "name": "Kept", "hypothesis": "It is there.", "target_kpis": ["value"]}
    made = client.post(
        "/api/experiments", body, content_type="application/json", headers={"Authorization": f"Bearer {secret}"}
    )
    assert made.status_code == 201
    good = get("/api/experiments/kept", secret)
    assert get("/api/experiments/kept", revoked).status_code == 200
    assert get("/api/experiments/kept", narrow).status_code == 403
    with as_role("owner"):
        ApiKey.objects.filter(pk=gone.pk).update(revoked_at=datetime.now(UTC))
    assert get("/api/experiments/kept", revoked).status_code == 401

    try:
        wire.silent.set()
        cached = get("/api/experiments/kept", secret)
        again_began = time.monotonic()
        again = get("/api/experiments/kept", secret)
        again_took = time.monotonic() - again_began
        unavailable = [get("/api/experiments/kept", key).status_code for key in (revoked, narrow, "dk_nobody")]
        unseen = get("/api/experiments/kept?unseen=1", secret).status_code
        write = client.post(
            "/api/experiments", {**body, "key": "lost"}, content_type="application/json",
            headers={"Authorization": f"Bearer {secret}"},
        )  # fmt: skip
        page = client.get("/")
    finally:
        wire.silent.clear()
        liveness.PRIMARY.ask()
        assert soon(lambda: not liveness.PRIMARY.away, 5)
        connection.close()

    assert cached.status_code == again.status_code == 200
    assert cached.json() == good.json() | {"stale": True}
    assert cached["Warning"].startswith("110 ")
    assert "ETag" not in cached
    assert again_took < 0.3, "a server that is away is not waited for again"
    assert unavailable == [503, 503, 503]
    assert unseen == 503
    assert (write.status_code, write.json()["code"]) == (503, "database_unavailable")
    assert int(write["Retry-After"]) > 0
    assert (page.status_code, "database is not answering" in page.content.decode()) == (503, True)
    assert soon(lambda: get("/api/experiments/kept", secret).json()["stale"] is False, 5)


def reader(**change: object) -> Principal:
    values: dict[str, object] = {"kind": "key", "id": 1, "name": "dk_1", "teams": {1: frozenset({Scope.READ})}}
    return Principal(**(values | change))  # type: ignore[arg-type]


def test_a_copy_is_for_readers_who_may_see_the_same() -> None:
    request = FACTORY.get("/api/experiments?limit=1")
    same = key_of(request, reader())

    assert key_of(request, reader(id=2, name="dk_2")) == same
    assert key_of(request, reader(teams={2: frozenset({Scope.READ})})) != same
    assert key_of(request, reader(teams={1: frozenset({Scope.READ, Scope.KEYS})})) != same
    assert key_of(request, reader(kind="user")) != key_of(request, reader(kind="user", id=2))
    assert key_of(request, reader(is_admin=True)) != same
    assert key_of(request, ANONYMOUS) != same
    assert key_of(FACTORY.get("/api/experiments?limit=2"), reader()) != same
    assert key_of(FACTORY.get("/api/experiments?limit=1", headers={"Accept": "text/csv"}), reader()) != same


def test_copies_stay_within_their_memory_and_forget_what_was_used_longest_ago() -> None:
    cache = ResponseCache(most_bytes=10_000)
    for number in range(5):
        cache.keep(number, HttpResponse(b"x" * 1_500), NOW)
        cache.find(0)

    assert cache.held_bytes <= 10_000
    assert cache.find(0) is not None
    assert cache.find(1) is None
    cache.keep(
        "secret", HttpResponse(b"{}", content_type="application/json", headers={"Cache-Control": "no-store"}), NOW
    )
    cache.keep("refusal", HttpResponse(b"{}", status=404), NOW)
    assert cache.find("secret") is None
    assert cache.find("refusal") is None


def test_what_can_never_change_is_given_byte_for_byte() -> None:
    cache = ResponseCache()
    headers = {"Cache-Control": "private, immutable, max-age=9", "Content-Type": "application/json"}
    cache.keep("evidence", HttpResponse(b'{"a":1}', headers=headers), NOW)
    cache.keep("list", HttpResponse(b'{"results":[{"stale":false}]}', content_type="application/json"), NOW)

    evidence, listed = cache.find("evidence"), cache.find("list")
    assert evidence is not None and listed is not None  # noqa: PT018
    assert evidence.response().content == b'{"a":1}'
    assert listed.response().content == b'{"results":[{"stale":true}],"stale":true,"as_of":"2026-11-24T12:00:00Z"}'


def test_a_check_of_a_key_holds_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    known, request = KnownPrincipals(), FACTORY.get("/", headers={"Authorization": "Bearer dk_1"})
    known.note(request, reader())
    assert known.find(request) == reader()
    later = time.monotonic() + timedelta(seconds=61).total_seconds()
    monkeypatch.setattr("decisioning.availability.response_cache.monotonic", lambda: later)
    assert known.find(request) is None
    assert known.find(FACTORY.get("/")) is ANONYMOUS


def test_a_full_room_lets_nobody_in_unless_it_moves() -> None:
    limit = ConcurrencyLimit(places=1, patient=0)
    assert limit.enter()
    assert not limit.enter()
    threading.Timer(0.05, limit.leave).start()
    assert limit.enter()


def test_a_room_has_not_stood_still_because_this_process_had_no_turn() -> None:
    limit = ConcurrencyLimit(places=1, patient=0)
    assert limit.enter()
    with ThreadPoolExecutor(1) as pool:
        entered = pool.submit(limit.enter)
        time.sleep(0.05)
        without_a_turn(2 * ConcurrencyLimit.STUCK_S)
        limit.leave()
        assert entered.result()


def test_who_need_not_wait_does_not_wait_for_a_full_room() -> None:
    limit = ConcurrencyLimit(places=1, patient=1)
    assert limit.enter(at_once=True)
    threading.Timer(0.05, limit.leave).start()
    assert not limit.enter(at_once=True)
    assert limit.enter()


def test_who_gives_up_inside_sends_away_who_waits_behind() -> None:
    limit = ConcurrencyLimit(places=1, patient=1)
    assert limit.enter()
    threading.Timer(0.05, lambda: limit.leave(given_up=True)).start()
    began = time.monotonic()
    assert not limit.enter()
    assert time.monotonic() - began < ConcurrencyLimit.PATIENCE_S
    assert limit.enter()


def test_one_principal_never_has_all_places() -> None:
    limit = ConcurrencyLimit(places=3, patient=0, of_one=2)
    assert [limit.enter("a"), limit.enter("a"), limit.enter("a")] == [True, True, False]
    assert limit.enter("b")
    limit.leave("a")
    assert limit.enter("a")


def test_who_has_its_share_keeps_nobody_behind_it_waiting() -> None:
    limit = ConcurrencyLimit(places=2, patient=9, of_one=1)
    assert limit.enter("a")
    with ThreadPoolExecutor(3) as pool:
        first, second = pool.submit(limit.enter, "a"), pool.submit(limit.enter, "a")
        time.sleep(0.05)
        assert limit.enter("b")
        limit.leave("a")
        assert first.result() or second.result()
        limit.leave("a")


# Bodies ------------------------------------------------------------------------------------------------------------------


class Sent:
    """A client that sends `pieces`, each after `pause_s`, and then nothing more, or the end."""

    def __init__(self, *pieces: bytes, pause_s: float = 0, ends: bool = True) -> None:
        self.pieces, self.pause_s, self.ends = list(pieces), pause_s, ends

    async def receive(self) -> dict[str, object]:
        await asyncio.sleep(self.pause_s)
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or not self.ends}
        await asyncio.sleep(3600)
        raise AssertionError


def intake(principal: Principal, **said: int) -> Intake:
    async def asks(_request: object) -> Principal:
        return principal

    return Intake(asks, **said)


def run[T](work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: a browser's test has left a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def posting(length: int | str = "") -> HttpRequest:
    request = FACTORY.post("/api/experiments", b"", content_type="application/json")
    request.META |= {"CONTENT_LENGTH": str(length), "REMOTE_ADDR": "192.0.2.1"}
    return request


def test_a_body_is_read_whole_in_however_many_pieces() -> None:
    assert run(intake(ANONYMOUS).body(posting(4), Sent(b"a", b"bc", b"d").receive)) == b"abcd"
    assert run(intake(ANONYMOUS).body(posting(), Sent(b"a", b"bc").receive)) == b"abc", "one in chunks"


@pytest.mark.parametrize("sent", [Sent(b"a", ends=False), Sent(*[b"a"] * 50, pause_s=0.05)], ids=["half", "dripping"])
def test_a_body_has_a_time_as_a_whole(monkeypatch: pytest.MonkeyPatch, sent: Sent) -> None:
    monkeypatch.setattr("decisioning.availability.intake.GRACE_S", 0.3)
    with pytest.raises(Refused) as refused:
        run(intake(reader()).body(posting(50), sent.receive))
    assert refused.value.status == 408


@pytest.mark.parametrize("length", [SMALL + 1, ""])
def test_of_nobody_no_more_than_a_forms_worth_is_read(length: int | str) -> None:
    pieces = [b"x" * (SMALL // 2)] * 40
    sent = Sent(*pieces)
    assert run(intake(ANONYMOUS).body(posting(length), sent.receive)) is None
    assert len(sent.pieces) >= 37
    assert run(intake(reader()).body(posting(length), Sent(*pieces).receive)) == b"x" * (SMALL // 2) * 40


def test_what_is_too_long_is_not_read() -> None:
    sent = Sent(b"x")
    for request in (posting(MOST + 1), posting("9" * 19)):
        with pytest.raises(Refused) as refused:
            run(intake(reader()).body(request, sent.receive))
        assert refused.value.status == 413
    assert sent.pieces
    with pytest.raises(Refused):
        run(intake(reader()).body(posting(), Sent(*[b"x" * SMALL] * 200).receive))


def test_large_bodies_of_one_team_leave_places_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decisioning.availability.intake.PATIENCE_S", 0.1)
    mine, other = reader(), Principal("key", id=9, name="dk_9", teams={99: frozenset()})

    async def scenario() -> Sequence[object]:
        asked = iter([mine, mine, mine, other])

        async def asks(_request: object) -> Principal:
            return next(asked)

        door = Intake(asks, places=3, of_one=2)
        held = [asyncio.create_task(door.body(posting(SMALL + 1), Sent(b"x", ends=False).receive)) for _ in range(2)]
        await asyncio.sleep(0.02)
        results = await asyncio.gather(
            door.body(posting(SMALL + 1), Sent(b"x").receive),
            door.body(posting(SMALL + 1), Sent(b"y").receive),
            return_exceptions=True,
        )
        for task in held:
            task.cancel()
        return results

    first, second = run(scenario())
    assert isinstance(first, Refused)
    assert first.status == 503
    assert second == b"y"


# What is slow or heavy by itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "room"),
    [
        ("POST", "/sign-in", "passwords"),
        ("POST", "/admin/login/", "passwords"),
        ("POST", "/password", "passwords"),
        ("POST", "/join", "passwords"),
        ("GET", "/sign-in", "reads"),
        ("POST", "/api/sources", "files"),
        ("POST", "/api/sources/x/refresh", "files"),
        ("POST", "/sources/1/try", "files"),
        ("POST", "/experiments/x/variants/control/picture", "files"),
        ("POST", "/admin/telemetry/source/import/", "files"),
        ("POST", "/api/experiments", "writes"),
        ("POST", "/nowhere", "writes"),
    ],
)
def test_what_is_slow_or_heavy_has_places_of_its_own(method: str, path: str, room: str) -> None:
    assert room_of(FACTORY.generic(method, path)) == room
