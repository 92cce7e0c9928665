"""Sources that are called over HTTP: addresses that answer with JSON rows, and a Prometheus. Through the same guard as webhooks."""

import datetime as dt
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from decisioning.access.calls import client
from decisioning.access.outbound import Blocked
from telemetry.models import Source
from telemetry.sources.definition import own_name
from telemetry.sources.refusals import SourceFailed
from telemetry.sources.rows import CHUNK, EPOCH, KEYS, PER_SECOND, Unread

MOST_BYTES = 32 << 20
_STEP_S = 10
"""Seconds that an address may be silent."""
_POINTS = 5_000
"""Times asked of a Prometheus at once, which gives 11,000 at most."""
Bounds = Mapping[str, dt.datetime]


def read(source: Source, bounds: Bounds, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of the rows in an address's answer, as column -> value. Raises SourceFailed."""
    base = _url(source)
    url = _with_path(base, source.path, {name: _said(source, instant) for name, instant in bounds.items()})
    found = _at(msgspec.Raw(_got(source, url, {}, limit_s)), source.rows_pointer)
    for place in range(0, len(found), CHUNK):
        yield [_row(source, raw) for raw in found[place : place + CHUNK]]


def read_prometheus(source: Source, bounds: Bounds, limit_s: float) -> Iterator[list[dict[str, Any]]]:
    """Chunks of the points of a range query, at multiples of the step. Labels name experiment, metric and variant; a point that is NaN
    says nothing and is none. Raises SourceFailed."""
    url, deadline, step = f"{_url(source)}/api/v1/query_range", time.monotonic() + limit_s, source.step_s
    first = (int(bounds["since"].timestamp()) // step + 1) * step
    last = int(bounds["until"].timestamp()) // step * step
    for start in range(first, last + 1, _POINTS * step):
        asked = {"query": source.query, "start": start, "end": min(last, start + (_POINTS - 1) * step), "step": step}
        body = _got(source, url, asked, deadline - time.monotonic())
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except msgspec.MsgspecError as problem:
            raise SourceFailed(f"{source.url_env} answers with no range of Prometheus: {problem}.") from None
        if answer.status != "success" or answer.data is None:
            raise SourceFailed(f"Prometheus: {answer.error[:1_000]}")
        if answer.warnings:  # of several stores one may be away
            raise SourceFailed(f"Prometheus warns that its answer may not be whole: {answer.warnings[0][:1_000]}")
        points = list[dict[str, Any]]()
        for series in answer.data.result:
            named = {own: text for label, text in series.metric.items() if (own := own_name(source, label)) in KEYS}
            others = (
                {label: None for label in series.metric if own_name(source, label) not in KEYS} if not points else {}
            )
            for at, value in series.values:
                if not math.isnan(number := float(value)):
                    points.append(named | {"ts": EPOCH + dt.timedelta(seconds=at), "value": number} | others)
                if len(points) == CHUNK:
                    yield points
                    points = []
        if points:
            yield points


class _Series(msgspec.Struct):
    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _Data(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""
    warnings: list[str] = []


def _url(source: Source) -> str:
    """What the source's variable says, which is not told: it may hold a secret."""
    text = os.environ.get(source.url_env, "").strip().rstrip("/")
    if not text:
        raise SourceFailed(f"The environment variable {source.url_env} is not set where this runs.")
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and not (parts.username or parts.query or parts.fragment)
        )
    except ValueError:
        good = False
    if not good:
        raise SourceFailed(
            f"The environment variable {source.url_env} holds no address. Write it as https://host/path, without user, ? and #; "
            "a token goes into a variable of its own, token_env."
        )
    return text


def _with_path(base: str, path: str, said: Mapping[str, str]) -> str:
    """The address with what follows it, on the same host whatever that is."""
    for name, text in said.items():
        path = path.replace(f"{{{name}}}", quote(text, safe=""))
    return base + (path if path.startswith("?") or not path else f"/{path.lstrip('/')}")


def _said(source: Source, instant: dt.datetime) -> str:
    if source.time_format:
        return str(int(instant.timestamp() * PER_SECOND[source.time_format]))
    return f"{instant.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _got(source: Source, url: str, asked: Mapping[str, Any], limit_s: float) -> bytes:
    """The body of a good answer. What is told of a bad one names the variable, never the address."""
    headers = {"Accept": "application/json"}
    if source.token_env:
        token = os.environ.get(source.token_env, "").strip()
        if not (token and token.isascii() and token.isprintable()):
            raise SourceFailed(f"The environment variable {source.token_env} holds no token where this runs.")
        headers["Authorization"] = f"Bearer {token}"
    body = bytearray()
    try:
        with (
            client(timeout_s=max(0.001, min(_STEP_S, limit_s)), within_s=max(0.001, limit_s)) as http,
            http.stream("GET", url, params=dict(asked) or None, headers=headers) as answer,
        ):
            for piece in answer.iter_bytes(1 << 16):
                body += piece
                if len(body) > MOST_BYTES:
                    raise SourceFailed(
                        f"{source.url_env} answers with more than {MOST_BYTES >> 20} MB. Ask for less at a time."
                    )
    except Blocked as problem:
        raise SourceFailed(f"{source.url_env}: {problem}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as problem:
        raise SourceFailed(
            f"{source.url_env}: {_NO_ANSWER.get(type(problem), f'no answer ({type(problem).__name__}).')}"
        ) from None
    if answer.status_code != 200:
        raise SourceFailed(_refused(source, answer.status_code, bytes(body)))
    return bytes(body)


_NO_ANSWER: dict[type[Exception], str] = {
    httpx.ConnectError: "nothing answers there, or its name or certificate is not right.",
    httpx.ConnectTimeout: "nothing answers there.",
    httpx.ReadTimeout: "the answer took too long.",
}


def _refused(source: Source, status: int, body: bytes) -> str:
    match status:
        case 401 | 403:
            hint = (
                "Its token may not read this."
                if source.token_env
                else "It asks for a token: name its variable in token_env."
            )
        case 301 | 302 | 303 | 307 | 308:
            hint = "It sends elsewhere, which is not followed. Put that address into the variable."
        case 400 | 422 if source.kind == Source.Kind.PROMETHEUS:
            with_error = _json_or_none(body)
            hint = str(with_error.get("error", ""))[:1_000] if isinstance(with_error, dict) else ""
        case _:
            hint = ""
    return f"{source.url_env} answers with status {status}. {hint}".strip()


def _json_or_none(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _at(found: msgspec.Raw, pointer: str) -> list[msgspec.Raw]:
    """The list at a JSON pointer, each of its items still as it came."""
    said = "The answer" if not pointer else f"The answer at {pointer[:80]}"
    try:
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            try:
                found = msgspec.json.decode(found, type=dict[str, msgspec.Raw])[name]
            except msgspec.ValidationError:
                found = dict(enumerate(msgspec.json.decode(found, type=list[msgspec.Raw])))[
                    int(name) if name.isdecimal() else -1
                ]
        return msgspec.json.decode(found, type=list[msgspec.Raw])
    except (KeyError, IndexError, msgspec.ValidationError):
        raise SourceFailed(
            f"{said} holds no list of rows. Say in rows_pointer where it is, such as /data/rows."
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise SourceFailed(f"The answer is no JSON: {problem}.") from None


def _row(source: Source, raw: msgspec.Raw) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        row = None
    if isinstance(row, dict):
        return {own_name(source, name): value for name, value in row.items()}
    return Unread({"row": bytes(raw)[:80].decode(errors="replace")}, problem="A row must be an object.")
