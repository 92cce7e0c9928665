"""What people name is called only where it is public, looked at when the connection is made."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from decisioning.access import calls, outbound


class Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
        self.end_headers()
        self.wfile.write(self.headers["Host"].encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        pass


@pytest.fixture
def server() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Echo) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield listening.server_port
        listening.shutdown()
        thread.join()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A resolver of our own: each name gives its answers in turn."""
    answers: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host in answers:
            address = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in address.split("+")]
        return real(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return answers


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "[::1]", "[::]", "[fe80::1]", "[fd00::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "2130706433", "0x7f.1", "0177.0.0.1", "224.0.0.1", "192.0.2.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused_however_they_are_written(host: str) -> None:
    with pytest.raises(outbound.Blocked):
        outbound.check_url(f"https://{host}/hook")
    with calls.client() as client, pytest.raises((outbound.Blocked, httpx.InvalidURL)):
        client.get(f"http://{host}:9/hook")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "gopher://example.org/", "https://", "https://user:secret@example.org/", "http://[::1"],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(outbound.Blocked):
        outbound.check_url(url)


def test_a_name_is_looked_at_again_when_it_is_called(server: int, names: dict[str, list[str]]) -> None:
    names["hook.example"] = ["93.184.216.34", "127.0.0.1"]
    outbound.check_url(f"http://hook.example:{server}/")
    with calls.client() as client, pytest.raises(outbound.Blocked):
        client.get(f"http://hook.example:{server}/")


def test_one_private_answer_among_public_ones_is_enough(names: dict[str, list[str]]) -> None:
    names["mixed.example"] = ["93.184.216.34+10.0.0.1"]
    with pytest.raises(outbound.Blocked):
        outbound.check_url("https://mixed.example/")


def test_an_allowed_network_is_called_by_its_name_and_redirects_are_not_followed(
    server: int, names: dict[str, list[str]], settings: Any
) -> None:
    settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
    names["inside.example"] = ["127.0.0.1"]
    with calls.client() as client:
        assert client.get(f"http://inside.example:{server}/").text == f"inside.example:{server}"
        assert client.get(f"http://inside.example:{server}/away").status_code == 302
        with pytest.raises(outbound.Blocked):
            client.get("http://10.0.0.1/")


def test_a_proxy_of_the_environment_is_not_asked(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{server}")
    with calls.client(timeout_s=0.3) as client, pytest.raises(outbound.Blocked):
        client.get("http://198.51.100.1/")
