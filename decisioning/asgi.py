"""What the web server calls: a request is read whole, then Django answers it in one of a fixed number of threads.

Django's own ASGI handler would hold a thread while a body comes in; here a client that is slow holds none.
"""

import asyncio
import contextlib
import functools
import io
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote_to_bytes

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse

from decisioning import wsgi

django = wsgi.application  # loaded before what needs it

from decisioning.access.proxies import TrustedProxies  # noqa: E402
from decisioning.api.problems import BEFORE_READING  # noqa: E402
from decisioning.availability.intake import Gone, Intake, Refused  # noqa: E402
from decisioning.availability.known import asked  # noqa: E402
from decisioning.availability.read_counter import READ_COUNTER  # noqa: E402
from decisioning.database.replica import REPLICA_STATUS  # noqa: E402

THREADS = int(os.environ.get("DECISIONING_WEB_THREADS", "32"))
MOST_WAITING = 512
"""Requests that wait for a thread; more are refused at once."""

type Message = Mapping[str, Any]
type Receive = Callable[[], Awaitable[Message]]
type Send = Callable[[dict[str, Any]], Awaitable[None]]
type Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

threading.stack_size(16 * 1024 * 1024)  # what nests deep raises RecursionError before it ends the process
_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="web")
_aside = ThreadPoolExecutor(2, thread_name_prefix="aside")
"""For what needs no database and has to be answered whatever the others wait for."""
_asking = ThreadPoolExecutor(2, thread_name_prefix="asking")
"""Find out who is behind a large body."""
_ASIDE = ("/healthz", "/static/")
_waiting = 0


@functools.cache
def _start_threads() -> None:
    """What a web server does besides answering, from its first request on: whoever only imports this module does not."""
    READ_COUNTER.start()
    REPLICA_STATUS.start()


async def application(scope: Message, receive: Receive, send: Send) -> None:
    """One request."""
    _start_threads()
    environ = environ_of(scope)
    with contextlib.suppress(Gone):
        try:
            if _has_body(environ):
                body = await _intake.body(_behind_proxies(WSGIRequest(dict(environ))), receive) or b""
                environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
            told = await _answered(environ)
        except Refused as refused:
            told = refusal(refused.status, environ)
        await send({"type": "http.response.start", "status": told[0], "headers": told[1]})
        await send({"type": "http.response.body", "body": told[2]})


async def _answered(environ: dict[str, Any]) -> Answer:
    global _waiting
    aside = environ["PATH_INFO"].startswith(_ASIDE)
    if _waiting >= MOST_WAITING + THREADS and not aside:
        return refusal(503, environ)
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_aside if aside else _threads, answer, environ)
    finally:
        _waiting -= 1


def answer(environ: dict[str, Any]) -> Answer:
    """Django's answer, whole."""
    begun: list[tuple[int, list[tuple[bytes, bytes]]]] = []

    def start(status: str, headers: list[tuple[str, str]], _failed: Any = None, /) -> Callable[[bytes], object]:
        begun[:] = [(int(status.partition(" ")[0]), _as_bytes(headers))]
        return lambda _chunk: None

    response = django(environ, start)
    try:
        body = b"".join(response)
    finally:
        response.close()
    return (*begun[0], body)


def refusal(status: int, environ: Mapping[str, Any]) -> Answer:
    """In the words of the door that was asked, before anything of it is. The connection ends: what is still to come is not read."""
    problem = BEFORE_READING[status]
    told = problem.response()
    if not environ["PATH_INFO"].startswith("/api/"):
        told = HttpResponse(
            f"{status} {problem.code}. {problem.text}\n",
            status=status,
            content_type="text/plain",
            headers=problem.headers,
        )
    told["Connection"] = "close"
    return status, _as_bytes(told.items()), told.content


def _as_bytes(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _who(request: HttpRequest) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_asking, asked, request)


_intake = Intake(_who)
_proxies = TrustedProxies(lambda _request: HttpResponse())


def _behind_proxies(request: HttpRequest) -> HttpRequest:
    """The same with its client's address, when that is known; Django does it again for itself."""
    _proxies(request)
    return request


def environ_of(scope: Message) -> dict[str, Any]:
    """PEP 3333 of an ASGI scope. A header with an underscore is dropped: it would pass for another one's name."""
    server, client = scope.get("server") or ("localhost", 80), scope.get("client") or ("", 0)
    path = unquote_to_bytes(scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": path.partition("?")[0],
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "REMOTE_ADDR": str(client[0]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        if b"_" in name:
            continue
        key, text = name.decode("latin-1").upper().replace("-", "_"), value.decode("latin-1")
        key = key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"
        joint = "; " if key == "HTTP_COOKIE" else ","
        environ[key] = f"{environ[key]}{joint}{text}" if key in environ else text
    return environ


def _has_body(environ: Mapping[str, Any]) -> bool:
    return environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ
