"""Answers that were good: kept for the moments in which the database does not answer.

A copy belongs to an address and to what its reader may see, never to a reader who may see less. Nothing here outlives the process.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import msgspec
from django.conf import settings
from django.http import HttpRequest, HttpResponse

from decisioning.access.principal import ANONYMOUS, Principal
from decisioning.literals import rfc3339

MOST_BYTES = 64 * 1024 * 1024
LARGEST = 1024 * 1024
CHECK_HOLDS_S = 60.0
MOST_CHECKS = 10_000
_OVERHEAD = 1024  # what a copy takes beside its body
_NOT_KEPT = frozenset(
    {"etag", "last-modified", "x-request-id", "ratelimit", "ratelimit-policy", "content-length", "date"}
)
STALE_MARK = b"<!-- as of -->"
"""Where a page has room to say that it is a copy."""


@dataclass
class CachedResponse:
    """One answer as it was given at `at`. After `failures` to renew it the database is not asked before `again_at` (monotonic)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    at: datetime
    failures: int = 0
    again_at: float = 0.0

    @property
    def size(self) -> int:
        return len(self.body) + _OVERHEAD

    def response(self) -> HttpResponse:
        """The answer, saying that it is old and how old. What can never change is not old."""
        if "immutable" in self.headers.get("Cache-Control", ""):
            return HttpResponse(self.body, status=self.status, headers=dict(self.headers))
        body, kind = self.body, self.headers.get("Content-Type", "")
        if kind.startswith("application/json"):
            body = _restated(body, self.at)
        elif kind.startswith("text/html"):
            body = body.replace(STALE_MARK, _NOTICE.format(at=self.at).encode(), 1)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_KEPT}
        headers = {**kept, "Warning": '110 decisioning "Response is Stale"', "Cache-Control": "no-store"}
        return HttpResponse(body, status=self.status, headers=headers)


_NOTICE = (
    '<div class="note snug tone-late" role="status"><p>The database does not answer. This page is as of '
    '<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%H:%M:%S} UTC</time>; nothing can be saved until it is back.</p></div>'
)


def _restated(body: bytes, at: datetime) -> bytes:
    """The JSON with `stale` true and `as_of`; anything but an object stays as it is."""
    value: Any = msgspec.json.decode(body)
    if not isinstance(value, dict):
        return body
    value = {**value, "stale": True}
    value.setdefault("as_of", rfc3339(at))
    for row in value.get("results") or ():
        if isinstance(row, dict) and "stale" in row:
            row["stale"] = True
    return msgspec.json.encode(value)


class ResponseCache:
    """The newest copies, forgotten from the one that was used longest ago."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes, self.held_bytes = most_bytes, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[object, CachedResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, key: object, response: HttpResponse, at: datetime) -> None:
        """Remember an answer, unless it is too large or holds a secret."""
        if response.streaming or response.status_code != 200 or len(response.content) > LARGEST or _is_secret(response):
            return
        headers = {name: value for name, value in response.items() if name.lower() not in _NOT_KEPT}
        cached = CachedResponse(response.status_code, headers, response.content, at)
        with self._lock:
            if (older := self._kept.pop(key, None)) is not None:
                self.held_bytes -= older.size
            self._kept[key] = cached
            self.held_bytes += cached.size
            while self.held_bytes > self.most_bytes:
                self.held_bytes -= self._kept.popitem(last=False)[1].size

    def find(self, key: object) -> CachedResponse | None:
        """The copy, which is now the one used last."""
        with self._lock:
            if (cached := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
            return cached


def _is_secret(response: HttpResponse) -> bool:
    # Pages are `no-store` for browsers, and belong to one person here as well.
    return "no-store" in response.get("Cache-Control", "") and not response.get("Content-Type", "").startswith(
        "text/html"
    )


class KnownPrincipals:
    """Who was behind a key or a session when the database was last asked, for at most a minute.

    Asked only while the database is away: while it answers, a key that is revoked is nobody's from the next request on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def note(self, request: HttpRequest, principal: Principal) -> None:
        """What the database has just said."""
        credential = _credential(request)
        if credential is None:
            return
        with self._lock:
            self._known.pop(credential, None)
            if principal.is_authenticated:
                self._known[credential] = (monotonic(), principal)
                if len(self._known) > MOST_CHECKS:
                    self._known.popitem(last=False)

    def find(self, request: HttpRequest) -> Principal | None:
        """Who asks; ANONYMOUS when nothing was sent that says so; None when what was sent cannot be checked now."""
        credential = _credential(request)
        if credential is None:
            return ANONYMOUS
        with self._lock:
            at, principal = self._known.get(credential, (0.0, None))
        return principal if principal is not None and monotonic() - at <= CHECK_HOLDS_S else None


def _credential(request: HttpRequest) -> bytes | None:
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return hashlib.sha256(b"key " + secret.strip().encode(errors="surrogateescape")).digest()
    session = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    return hashlib.sha256(b"session " + session.encode(errors="surrogateescape")).digest() if session else None


def key_of(request: HttpRequest, principal: Principal) -> object:
    """The same for two readers only if all they may see is the same: a page shows its reader's name, an answer to a key does not."""
    scope = (principal.kind, principal.id if principal.kind == "user" else None, principal.is_admin, principal.agent)
    teams = frozenset(principal.teams.items())
    asked = (request.get_full_path(), request.headers.get("Accept", ""), request.headers.get("HX-Request", ""))
    return (scope, teams, asked, request.META.get("HTTP_HOST", ""))  # links name the host


def utc_now() -> datetime:
    """The clock of this door."""
    return datetime.now(UTC)  # noqa: TID251 - a door reads the clock
