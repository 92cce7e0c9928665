"""Addresses that answer with JSON rows, and a Prometheus: read as files are, by the guard that webhooks have, and without telling secrets."""

import json
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import LazySettings

from tests.api.conftest import Caller, errors_of
from tests.api.warehouse import bind
from tests.programs import needs_program

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
KEY = "one-page-checkout"
HTTP = {"key": "address", "kind": "http", "url_env": "STATS_URL", "metrics": ["vrps"]}
PROMETHEUS = {**HTTP, "kind": "prometheus", "query": "share", "step_s": 60}


class Answering(ThreadingHTTPServer):
    """Answers every GET with `status` and `body`, and keeps what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body, self.stalls, self.headers = 200, b"[]", False, dict[str, str]()
        self.asked: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def says(self, answer: object, status: int = 200) -> None:
        self.body, self.status = answer if isinstance(answer, bytes) else json.dumps(answer).encode(), status

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hung up has done so on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.server.stalls:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n[")
            while not self.server.over.wait(0.1):
                self.wfile.write(b" ")
            return
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Answering]:
    found = Answering()
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.over.set()
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def tries(ops: Caller, server: Answering, monkeypatch: pytest.MonkeyPatch, settings: LazySettings) -> Any:
    """Dry runs of a source that is called at the server."""
    settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
    monkeypatch.setenv("STATS_URL", server.url)
    for variable in ("STATS_URL", "STATS_TOKEN"):
        bind(ops.team, variable=variable)
    ops.experiment(started_at=(TOP - timedelta(days=60)).isoformat())

    def dry_run(plan: dict[str, Any] = HTTP, **said: Any) -> Any:
        return ops.post("/api/sources?dry_run=true", plan | said)

    return dry_run


def row(hours_ago: float = 1, **said: Any) -> dict[str, Any]:
    ts = (TOP - timedelta(hours=hours_ago)).isoformat()
    return {"experiment": KEY, "variant": "control", "ts": ts, "value": 0.5, "n": 8} | said


# JSON ---------------------------------------------------------------------------------------------------------------------


def test_rows_are_found_where_the_pointer_says_and_named_as_the_source_says(tries: Any, server: Answering) -> None:
    theirs = {
        "Test": KEY,
        "arm": "treatment",
        "at": (TOP - timedelta(hours=2)).timestamp(),
        "rate": "0.25",
        "users": 10,
    }
    server.says({"data": [{"rows~/": [theirs, {**theirs, "rate": None}, 5]}]})
    columns = {"test": "experiment", "arm": "variant", "at": "ts", "rate": "value", "users": "n"}
    told = tries(columns=columns, rows_pointer="/data/0/rows~0~1", time_format="epoch_s").json()
    assert (told["accepted"], told["refused"]) == (1, 2), told
    (understood,) = told["rows"]
    assert {**understood, "ts": ""} == {
        "experiment": KEY, "metric": "vrps", "variant": "treatment", "ts": "", "value": 0.25, "n": 10,
    }  # fmt: skip
    assert told["problems"][1].startswith("Row 3 of the answer: A row must be an object.")


def test_an_address_is_asked_for_the_window_and_with_its_token(
    tries: Any, server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATS_TOKEN", "hush-hush")
    server.says([row()])
    for said, form in (({}, "%Y-%m-%dT%H:%M:%SZ"), ({"time_format": "epoch_ms"}, "")):
        tries(path="v1/kpis?from={since}&to={until}", token_env="STATS_TOKEN", **said)
        path, token = server.asked[-1]
        asked = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        assert (urlsplit(path).path, token, set(asked)) == ("/v1/kpis", "Bearer hush-hush", {"from", "to"})
        if form:
            assert abs(datetime.strptime(asked["to"], form).replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(
                minutes=1
            )
        else:
            assert abs(int(asked["to"]) / 1000 - time.time()) < 60


def test_times_without_offset_are_refused_or_meant_where_the_source_says(tries: Any, server: Answering) -> None:
    server.says([row(ts=f"{TOP - timedelta(hours=1):%Y-%m-%d %H:%M}")])
    assert "(naive_timestamp)" in tries().json()["problems"][0]
    assert tries(time_zone="UTC").json()["accepted"] == 1


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ({"rows": []}, 200, "The answer holds no list of rows. Say in rows_pointer where it is"),
        (b"<html>", 200, "The answer is no JSON"),
        (b"[" * 100_000, 200, "The answer is no JSON"),
        ({}, 401, "STATS_URL answers with status 401. It asks for a token: name its variable in token_env."),
        ({}, 302, "STATS_URL answers with status 302. It sends elsewhere, which is not followed."),
        ({}, 503, "STATS_URL answers with status 503."),
        (b" " * (33 << 20), 200, "STATS_URL answers with more than 32 MB."),
    ],
)
def test_what_is_no_answer_is_said_in_a_sentence(
    tries: Any, server: Answering, answer: object, status: int, said: str
) -> None:
    server.headers["Location"] = "http://127.0.0.1:1/"
    server.says(answer, status)
    response = tries()
    assert (response.status_code, response.json()["code"]) == (422, "source_failed")
    assert response.json()["detail"].startswith(said)
    assert len(server.asked) == 1


def test_an_answer_that_comes_a_byte_at_a_time_ends_when_its_time_is_over(tries: Any, server: Answering) -> None:
    server.stalls = True
    response = tries(time_limit_s=1)
    assert response.json()["detail"] == "STATS_URL: the answer took too long."


def test_an_address_of_this_machine_or_its_network_is_not_called(
    tries: Any, server: Answering, settings: LazySettings
) -> None:
    settings.OUTBOUND_ALLOW = []
    for plan in (HTTP, PROMETHEUS):
        response = tries(plan)
        assert (response.status_code, "loopback" in response.json()["detail"]) == (422, True)
    assert server.asked == []


@pytest.mark.parametrize("path", ["@evil.test/", "//evil.test/x", "https://evil.test/", "..//@evil.test"])
def test_what_follows_the_address_leads_to_no_other_host(tries: Any, server: Answering, path: str) -> None:
    server.says([row()])
    assert tries(path=path).json()["accepted"] == 1
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["http://me:hush@127.0.0.1/", "hush", "ftp://hush", "http://h/?hush=1", "http://[hush"])
def test_no_part_of_an_address_is_told(tries: Any, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("STATS_URL", url)
    told = tries().json()["detail"]
    assert told.startswith("The environment variable STATS_URL holds no address.")
    assert "hush" not in told


@pytest.mark.parametrize("token", ["", "hüsh", "hush\nhush"])
def test_a_token_that_is_none_is_said_and_not_told(
    tries: Any, server: Answering, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("STATS_TOKEN", token)
    assert (
        tries(token_env="STATS_TOKEN").json()["detail"]
        == "The environment variable STATS_TOKEN holds no token where this runs."
    )
    assert server.asked == []


@pytest.mark.parametrize(
    ("plan", "said", "pointer", "code"),
    [
        (HTTP, {"query": "SELECT 1"}, "/query", "invalid"),
        (HTTP, {"rows_pointer": "data"}, "/rows_pointer", "invalid"),
        (HTTP, {"token_env": "DECISIONING_SECRET_KEY"}, "/token_env", "invalid"),
        (HTTP, {"token_env": "token"}, "/token_env", "missing_field"),
        (HTTP, {"token_env": "OTHERS_TOKEN"}, "/token_env", "not_bound"),
        (HTTP, {"url_env": "OTHERS_URL"}, "/url_env", "not_bound"),
        (HTTP, {"time_zone": "Nowhere/Land"}, "/time_zone", "invalid"),
        (PROMETHEUS, {"query": " "}, "/query", "missing_field"),
        (PROMETHEUS, {"step_s": 0}, "/step_s", "invalid_number"),
        (PROMETHEUS, {"path": "x"}, "/path", "invalid"),
        (PROMETHEUS, {"time_zone": "UTC"}, "/time_zone", "invalid"),
    ],
)
def test_what_such_a_source_may_not_be_is_said_with_its_place(
    tries: Any, stranger: Caller, plan: dict[str, Any], said: dict[str, Any], pointer: str, code: str
) -> None:
    for variable in ("OTHERS_TOKEN", "OTHERS_URL"):
        bind(stranger.team, variable=variable)
    assert errors_of(tries(plan, **said)) == [(pointer, code)]


# Prometheus ---------------------------------------------------------------------------------------------------------------


def test_a_warning_of_a_prometheus_is_no_answer_and_its_error_is_told(tries: Any, server: Answering) -> None:
    matrix = {"status": "success", "data": {"resultType": "matrix", "result": []}}
    server.says({**matrix, "warnings": ["store away"]})
    assert tries(PROMETHEUS).json()["detail"] == "Prometheus warns that its answer may not be whole: store away"
    server.says({"status": "error", "errorType": "bad_data", "error": "parse error"}, 400)
    assert tries(PROMETHEUS).json()["detail"] == "STATS_URL answers with status 400. parse error"
    server.says([1])
    assert "no range of Prometheus" in tries(PROMETHEUS).json()["detail"]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with an hour of two arms, of which one says nothing in its second half."""
    needs_program("prometheus")
    home = tmp_path_factory.mktemp("prometheus")
    begin = int((TOP - timedelta(hours=3)).timestamp())
    lines = ["# TYPE share gauge"]
    for arm in ("control", "treatment"):
        for minute in range(60):
            value = "NaN" if arm == "treatment" and minute >= 30 else 0.25 + minute / 1000
            lines.append(f'share{{app="{KEY}",variant="{arm}",instance="a:1"}} {value} {begin + 60 * minute}')
    (home / "share.txt").write_text("\n".join([*lines, "# EOF", ""]))
    backfill = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(home / "share.txt"), str(home / "data")]
    subprocess.run(backfill, check=True, capture_output=True)
    (home / "prometheus.yml").write_text("scrape_configs: []\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
    with subprocess.Popen([*command, f"--web.listen-address={url}"], stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 30
            while not _is_up(url) and time.monotonic() < until:
                time.sleep(0.2)
            yield f"http://{url}"
        finally:
            process.terminate()


def _is_up(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://{url}/-/ready", timeout=1).status == 200)
    except OSError:
        return False


@pytest.mark.databases
def test_a_real_prometheus_is_read_to_the_last_digit_point_by_point(
    tries: Any, prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATS_URL", prometheus + "/")
    told = tries(PROMETHEUS, columns={"app": "experiment"}, query=f'share{{app="{KEY}"}}').json()
    assert (told["refused"], told["ignored_columns"]) == (0, ["__name__", "instance"])
    (summary,) = told["summaries"]
    assert told["accepted"] >= 90
    first = told["rows"][0]
    assert (first["variant"], first["value"], first["ts"]) == ("control", 0.25, str(TOP - timedelta(hours=3)))
    assert summary["n"] is None
    wrong = tries(PROMETHEUS, query="share{").json()["detail"]
    assert wrong.startswith("STATS_URL answers with status 400. ")
    assert "parse error" in wrong
