"""How often one may ask: fixed windows counted in Redis by django-ratelimit, per key, per person, else per address.

Redis may be away: then this process counts for itself, and asks Redis again after a pause, so that no request waits for it
twice.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis
from django.conf import settings
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django_ratelimit.core import get_usage
from rest_framework.exceptions import Throttled
from rest_framework.settings import api_settings

from decisioning.access.keys import rate_of
from decisioning.access.principal import ANONYMOUS, Principal
from decisioning.access.proxies import origin

MOST_WORDS, MOST_TEXT = 10, 200
"""Of what is searched for: each word is looked for in every row."""
_PAUSE_S = 5.0
_ONE_TRIES_S = 0.5
_GROUP = "api"
_LINEAGE = ("/api/lineage", "/api/v1/lineage")


@dataclass(frozen=True)
class Usage:
    """The `count`-th request of a window of `window_s` seconds that ends in `resets_s` and lets `limit` pass."""

    policy: str
    limit: int
    window_s: int
    count: int
    resets_s: int

    @property
    def refused(self) -> bool:
        return self.count > self.limit

    @property
    def headers(self) -> dict[str, str]:
        left = max(0, self.limit - self.count)
        return {
            "RateLimit-Policy": f'"{self.policy}";q={self.limit};w={self.window_s}',
            "RateLimit": f'"{self.policy}";r={left};t={self.resets_s}',
        }


class RateLimited:
    """Middleware below BoundTransaction: every request to /api/ is counted once, also one that is then refused."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not request.path_info.startswith("/api/"):
            return self.get_response(request)
        return limited(request, getattr(request, "principal", ANONYMOUS), lambda: self.get_response(request))


def limited(request: HttpRequest, principal: Principal, answer: Callable[[], HttpResponse]) -> HttpResponse:
    """The answer, or 429. A request that has to be answered twice is counted once."""
    if not hasattr(request, "usage"):
        request.usage = used(request, principal)  # type: ignore[attr-defined]
    usage: Usage = request.usage  # type: ignore[attr-defined]
    if usage.refused:
        refusal = Throttled(
            detail=f"{usage.limit} requests per {usage.window_s} s are taken from this {usage.policy}. "
            f"Go on in {usage.resets_s} s.",
        )
        response: HttpResponse = api_settings.EXCEPTION_HANDLER(refusal, {})  # type: ignore[operator]
        response["Retry-After"] = str(max(1, usage.resets_s))
    else:
        response = answer()
    for name, value in usage.headers.items():
        response[name] = value
    return response


def used(request: HttpRequest, principal: Principal) -> Usage:
    """Count this request for its key and those it comes from, its person, or (without a valid key or session) its address."""
    if principal.kind == "key":
        return _of_key(request, principal)
    if principal.kind == "user":
        policy, who, rate = "person", f"user:{principal.id}", settings.KEY_RATE
    else:
        policy, who, rate = "address", f"address:{origin(request)}", settings.ADDRESS_RATE
    return _usage(request, policy, who, rate)


def _of_key(request: HttpRequest, principal: Principal) -> Usage:
    """A key's request counts for the keys it comes from as well, so that many made by one are no faster than that one."""
    usages = []
    for name, rate in ((principal.name, principal.rate), *principal.makers):
        if not rate and request.path_info.startswith(
            _LINEAGE
        ):  # pipelines tell every step of every job, and are not asked again
            usages.append(_usage(request, "lineage", f"lineage:{name}", settings.LINEAGE_RATE))
        else:
            usages.append(_usage(request, "key", f"key:{name}", rate or settings.KEY_RATE))
        if usages[-1].refused:  # it does not go through, so it uses up nothing of the others
            break
    return min(usages, key=lambda usage: usage.limit - usage.count)


def _usage(request: HttpRequest, policy: str, who: str, rate: str) -> Usage:
    limit, window_s = rate_of(rate)
    count, resets_s = _counted(request, who, f"{limit}/{window_s}s")
    return Usage(policy, limit, window_s, count, min(max(resets_s, 0), window_s))


class BoundedSearch:
    """Middleware: what the admin is sent is bounded as everywhere; Django's own lists look for 3,000 words, and fail on a NUL."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path_info.startswith("/admin/"):
            sent = (request.GET, request.POST) if request.method == "POST" else (request.GET,)
            if any("\x00" in text for values in sent for name in values for text in (name, *values.getlist(name))):
                raise BadRequest("No text holds a NUL character.")
            for name in ("q", "term"):
                text = request.GET.get(name, "")
                if len(text) > MOST_TEXT or len(text.split()) > MOST_WORDS:
                    raise BadRequest(f"At most {MOST_WORDS} words and {MOST_TEXT} characters are looked for.")
        return self.get_response(request)


def failures(request: HttpRequest, who: str, rate: str, *, more: bool) -> int:
    """Seconds until somebody who has failed too often may try again; 0 while it is not too often. more: this is one more failure."""
    limit, window_s = rate_of(rate)
    here, _ = _here.count(who, limit, window_s, more=False)  # what Redis was too busy to take is known here
    count, left_s = _counted(request, who, f"{limit}/{window_s}s", more=more)
    return max(1, left_s) if max(count, here) >= limit else 0


def _counted(request: HttpRequest, who: str, rate: str, *, more: bool = True) -> tuple[int, int]:
    """Redis's count; this process's own while Redis does not answer. That one always goes along, so that it never begins at 0."""
    here = _here.count(who, *rate_of(rate), more=more)
    if _breaker.closed():
        try:
            usage = get_usage(request, group=_GROUP, key=lambda _group, _request: who, rate=rate, increment=more)
        except (redis.RedisError, OSError):
            _breaker.open()
        else:
            _breaker.answered()
            if usage and usage["time_left"] >= 0:
                return usage["count"], usage["time_left"] + 1  # its windows end with a second, not before it
    return here


class _Breaker:
    """Open for a while after Redis has failed."""

    def __init__(self) -> None:
        self._until = 0.0
        self._lock = threading.Lock()

    def open(self) -> None:
        self._until = time.monotonic() + _PAUSE_S

    def closed(self) -> bool:
        """After a pause only one request finds out for all."""
        now = time.monotonic()
        with self._lock:
            if self._until and self._until <= now:
                self._until = now + _ONE_TRIES_S
                return True
            return not self._until

    def answered(self) -> None:
        self._until = 0.0


class _Here:
    """The same counting for one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, int, int], list[float]] = {}  # [ends at, count]

    def count(self, who: str, limit: int, window_s: int, *, more: bool = True) -> tuple[int, int]:
        now = time.time()
        with self._lock:
            window = self._windows.setdefault((who, limit, window_s), [0.0, 0])
            if window[0] <= now:
                if len(self._windows) > 10_000:
                    self._windows = {key: kept for key, kept in self._windows.items() if kept[0] > now}
                window[:] = [now - now % window_s + window_s, 0]
                self._windows[(who, limit, window_s)] = window
            window[1] += more
            return int(window[1]), math.ceil(window[0] - now)


_breaker, _here = _Breaker(), _Here()
