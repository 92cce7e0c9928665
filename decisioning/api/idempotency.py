"""Idempotency-Key: a POST that is sent again is answered again, and done once.

The answer is stored in the transaction of its effect, so that one never exists without the other. A refusal stores nothing: the same key
may be used for the mended request. Whoever comes while the first request still runs is told so by a lock that ends with it.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.http import HttpResponse
from django.http.response import HttpResponseBase
from django.utils.crypto import salted_hmac
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.principal import Principal
from decisioning.api.problems import Problem

KEPT = timedelta(hours=24)
LONGEST_KEY = 255
_HEADERS = ("Content-Type", "Location", "ETag")

# Two statements that travel together: the second has to see what was committed before the lock was free.
_LOCK_AND_FIND = """
SELECT pg_try_advisory_xact_lock(%s);
SELECT fingerprint, status, headers::text, body FROM metadata.idempotency WHERE principal = %s AND key = %s AND created_at > %s
"""
_KEEP = """
INSERT INTO metadata.idempotency (principal, key, fingerprint, status, headers, body, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (principal, key) DO UPDATE SET fingerprint = excluded.fingerprint, status = excluded.status, headers = excluded.headers,
  body = excluded.body, created_at = excluded.created_at
"""


def once[Post: Callable[..., HttpResponseBase]](post: Post) -> Post:
    """Give a Door's `post` the Idempotency-Key of docs/api.md. It runs after authentication, scopes and rate limits."""

    @functools.wraps(post)
    def repeatable(self: Any, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return post(self, request, *args, **kwargs)
        if not (1 <= len(key) <= LONGEST_KEY and key.isascii() and key.isprintable()):
            detail = f"An Idempotency-Key has 1 to {LONGEST_KEY} printable ASCII characters."
            raise Problem(400, "invalid_idempotency_key", detail)
        principal, fingerprint, now = _name(self.principal), _fingerprint(request), self.now
        stored = _stored(principal, key, fingerprint, now=now)
        if stored is not None:
            return stored
        response = post(self, request, *args, **kwargs)

        def keep(rendered: HttpResponseBase) -> None:
            if 200 <= rendered.status_code < 300 and isinstance(rendered, HttpResponse):
                _keep(principal, key, fingerprint, rendered, now=now)

        if isinstance(response, Response):
            response.add_post_render_callback(keep)
        else:
            keep(response)
        return response

    return repeatable  # type: ignore[return-value]


def _name(principal: Principal) -> str:
    return f"{principal.kind}:{principal.id}"


def _lock_of(principal: str, key: str) -> int:
    """64 bits that nobody else can work out: whoever may log in may take any advisory lock."""
    digest = salted_hmac("decisioning.api.idempotency", f"{principal} {key}", algorithm="sha256").digest()
    return int.from_bytes(digest[:8], signed=True)


def _fingerprint(request: Request) -> bytes:
    sent = request._request
    start = f"{sent.method} {sent.get_full_path()} {sent.content_type}\n".encode()
    return hashlib.sha256(start + sent.body).digest()


def _stored(principal: str, key: str, fingerprint: bytes, *, now: datetime) -> HttpResponse | None:
    """The answer given before. Raises Problem: 409 `in_progress`, 422 `idempotency_key_reused`, 409 `secret_shown_once`."""
    with connection.cursor() as cursor:
        cursor.execute(_LOCK_AND_FIND, [_lock_of(principal, key), principal, key, now - KEPT])
        (free,) = cursor.fetchone() or (False,)
        if not free:
            detail = "The first request with this Idempotency-Key still runs. Ask again in a moment."
            raise Problem(409, "in_progress", detail, headers={"Retry-After": "1"})
        cursor.nextset()
        found = cursor.fetchone()
    if found is None:
        return None
    was, status, headers, body = found
    if bytes(was) != fingerprint:
        detail = "This Idempotency-Key was used for another request. Use a new key for a new request."
        raise Problem(422, "idempotency_key_reused", detail)
    if body is None:
        detail = (
            "This was done before. Its answer held a secret, which is shown once; delete what was made and begin again."
        )
        raise Problem(409, "secret_shown_once", detail)
    again = HttpResponse(bytes(body), status=status, headers=json.loads(headers))
    again["Idempotent-Replayed"] = "true"
    return again


def _keep(principal: str, key: str, fingerprint: bytes, response: HttpResponse, *, now: datetime) -> None:
    headers = {name: response[name] for name in _HEADERS if name in response}
    secret = "no-store" in response.get("Cache-Control", "")
    body = None if secret else response.content
    with connection.cursor() as cursor:
        cursor.execute(
            _KEEP, [principal, key, fingerprint, response.status_code, json.dumps(headers), body, now]
        )  # fmt: skip
