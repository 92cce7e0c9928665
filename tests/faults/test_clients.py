"""Slow clients starve nobody, endless headers are cut off, and a stop waits for what is being answered."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest

from tests.faults.conftest import create, row
from tests.installation import Installation

pytestmark = pytest.mark.faults


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=30)


def test_clients_that_send_slowly_starve_nobody(installation: Installation, api: httpx.Client) -> None:
    create(api, "slow")
    held = installation.credentials()
    slow = [connected(held["url"]) for _ in range(30)]
    for number, connection in enumerate(slow):
        head = b"POST /api/experiments/slow/kpis HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if number % 3:
            head += b"Content-Length: 5000\r\n\r\n{"  # a body that does not come
        connection.sendall(head)
    time.sleep(2)

    took, statuses = [], []
    for path in ["/healthz", "/api/experiments", "/api/experiments/slow"] * 10:
        began = time.monotonic()
        statuses.append(api.get(path).status_code)
        took.append(time.monotonic() - began)

    print(f"\n30 slow clients: 30 reads, worst {max(took) * 1000:.0f} ms")
    assert set(statuses) == {200}
    assert max(took) <= 1
    for connection in slow:
        connection.close()


def test_what_nobody_sends_halfway_stops_no_write_and_is_let_go_of(
    installation: Installation, api: httpx.Client
) -> None:
    """Of any size, with no key, a false one, or that of a session that is none."""
    create(api, "nobody")
    url = installation.credentials()["url"]
    held = []
    for number in range(120):
        size, sent = ((50, b"{"), (60_000, b"x" * 100), (5_000_000, b"x" * 100))[number % 3]
        who = (b"", b"Authorization: Bearer dk_nobody00_x\r\n", b"Cookie: decisioning_session=none\r\n")[
            number // 3 % 3
        ]
        path = (b"/api/experiments/nobody/kpis", b"/sign-in")[number % 2]
        held.append(connected(url))
        held[-1].sendall(
            b"POST "
            + path
            + b" HTTP/1.1\r\nHost: localhost\r\n"
            + who
            + b"Content-Length: "
            + str(size).encode()
            + b"\r\n\r\n"
            + sent
        )
    began = time.monotonic()
    took: list[float] = []
    statuses: list[int] = []
    while time.monotonic() - began < 5:
        few = {"rows": [row(len(statuses))]}
        many = {"rows": [row(5_000 + n) for n in range(2_000)]}
        for method, at, body in (
            ("POST", "/api/experiments/nobody/kpis", few),
            ("POST", "/api/experiments/nobody/kpis", many),
            ("GET", "/healthz", None),
            ("GET", "/api/experiments/nobody", None),
        ):
            asked_at = time.monotonic()
            statuses.append(api.request(method, at, json=body).status_code)
            took.append(time.monotonic() - asked_at)
    ended = []
    for connection in held:
        connection.settimeout(max(0.1, began + 45 - time.monotonic()))
        ended.append(connection.recv(100).split(b" ")[1:2])
        connection.close()

    print(
        f"\n120 half bodies of nobody: {len(statuses)} requests of somebody, {set(statuses)}, worst {max(took) * 1000:.0f} ms; they got {sorted(map(str, ended))[::20]}"
    )
    assert set(statuses) == {200}
    assert max(took) <= 2
    assert all(ended), "nobody holds on for longer than a body of that size may take"


def test_connections_that_say_nothing_cost_nobody_an_answer(installation: Installation, api: httpx.Client) -> None:
    idle = [connected(installation.credentials()["url"]) for _ in range(600)]
    took = []
    for path in ["/healthz", "/api/experiments"] * 10:
        began = time.monotonic()
        with httpx.Client(base_url=api.base_url, headers=api.headers, timeout=30) as newcomer:
            assert newcomer.get(path).status_code == 200
        took.append(time.monotonic() - began)
    for connection in idle:
        connection.close()
    print(f"\n600 idle connections: worst {max(took) * 1000:.0f} ms")
    assert max(took) <= 1


def test_headers_that_do_not_end_are_cut_off(installation: Installation) -> None:
    with connected(installation.credentials()["url"]) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        began = time.monotonic()
        answer = connection.recv(1000)
        took = time.monotonic() - began
    with connected(installation.credentials()["url"]) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 200_000 + b"\r\n\r\n")
        refused = connection.recv(1000)

    print(
        f"\nunfinished headers were cut off after {took:.1f} s with {answer[:40]!r}; large ones with {refused[:40]!r}"
    )
    assert took < 8
    assert b" 200 " not in answer
    assert b" 431 " in refused or not refused


def test_a_stop_waits_for_what_is_being_answered(installation: Installation, api: httpx.Client) -> None:
    """Last in its file: it ends the installation."""
    create(api, "drained")
    body = json.dumps({"rows": [row(number) for number in range(10_000)]})
    answers: list[int] = []

    def post() -> None:
        answers.append(api.post("/api/experiments/drained/kpis", content=body, timeout=20).status_code)

    thread = threading.Thread(target=post)
    thread.start()
    time.sleep(0.15)
    took = installation.stop()
    thread.join()

    print(f"\nstopped in {took:.1f} s while a batch of 10,000 rows was being taken: {answers}")
    assert answers == [200]
    assert took < 15
