"""Reads stay up: the outermost middleware of everything that needs the database.

It keeps the last good answer to every GET and gives that when the database is away; writes are then refused at once. It lets only
so many requests wait for the database at a time, so that what needs no database is always answered.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic

from django.db import OperationalError
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, get_resolver, resolve

from decisioning.access.limits import limited
from decisioning.access.middleware import READS, ROOMS, id_of, owns_transaction
from decisioning.access.proxies import origin
from decisioning.availability.intake import whose
from decisioning.availability.known import KNOWN
from decisioning.availability.read_counter import READ_COUNTER
from decisioning.availability.response_cache import CachedResponse, ResponseCache, key_of, utc_now
from decisioning.database.liveness import PRIMARY, REPLICA, waiting_until
from decisioning.database.replica import REPLICA_STATUS
from decisioning.logs import CAUSE

_log = logging.getLogger(__name__)

_REST_S = 1.0  # after a read that got no answer its copy is given for so long, and after the next one longer
_LONGEST_REST_S = 4.0
_GIVEN_UP_S = 1.0  # who got no answer for so long tells those who wait behind
_TRY_AGAIN_S = 0.3  # a read that failed sooner has lost its connection, and gets another one
_BRIEFLY_S = 0.5  # while the database is unwell, who has a copy waits for so long in all


class StaleIfErrorMiddleware:
    """Above sessions and the bound transaction; below what only touches headers."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.cache, self.known = ResponseCache(), KNOWN
        self._resting_until = 0.0
        self.limits = {
            "reads": ConcurrencyLimit(places=6, of_one=4, patient=4),
            "writes": ConcurrencyLimit(places=5, of_one=3, patient=6),
            **{room: ConcurrencyLimit(places=2, of_one=1, patient=6) for room in ROOMS},
        }

    def __call__(self, request: HttpRequest) -> HttpResponse:
        cause = CAUSE.set(id_of(request))
        try:
            return self._answered(request)
        finally:
            CAUSE.reset(cause)

    def _answered(self, request: HttpRequest) -> HttpResponse:
        if owns_transaction(request):
            response = self.get_response(request)
        else:
            began = monotonic()
            response = self._answer(request)
            seconds, principal = monotonic() - began, getattr(request, "principal", None)
            _log.info(
                "%s %s %s", request.method, request.path, response.status_code,
                extra={"ms": round(seconds * 1000, 1), "who": principal.name if principal else ""},
            )  # fmt: skip
            READ_COUNTER.count(
                method=str(request.method),
                status=response.status_code,
                stale="Warning" in response,
                seconds=seconds,
            )
        response["X-Request-ID"] = id_of(request)
        return response

    def _answer(self, request: HttpRequest) -> HttpResponse:
        reads = request.method in READS
        cached = self._resting(request) if reads else None
        if cached is not None:
            return self._from_cache(request, cached)
        limit, who, began = self.limits[room_of(request)], self._who(request), monotonic()
        briefly = reads and PRIMARY.is_unwell() and self._find(request) is not None
        if _nobody_answers(reads=reads) or not limit.enter(who, at_once=briefly):
            return self._without_database(request)
        entered, given_up = monotonic(), False
        try:
            if _nobody_answers(reads=reads):  # since we began to wait
                return self._without_database(request)
            with waiting_until(began + _BRIEFLY_S if briefly else float("inf")):
                response = self._asked(request)
            no_answer = response.status_code == 503 or "Warning" in response
            given_up = no_answer and (PRIMARY.away or monotonic() - entered > _GIVEN_UP_S)
        finally:
            limit.leave(who, given_up=given_up)
        return response

    def _who(self, request: HttpRequest) -> object:
        """Whom to count it for: who was known a moment ago, else the address it comes from."""
        known = self.known.find(request)
        return whose(known) if known is not None and known.is_authenticated else origin(request)

    def _asked(self, request: HttpRequest) -> HttpResponse:
        """The database's answer; of a read that gets none, the copy."""
        began = monotonic()
        response = self.get_response(request)
        reads = request.method in READS
        elsewhere = REPLICA.away or (PRIMARY.away and REPLICA_STATUS.answers())
        again = elsewhere or monotonic() - began < _TRY_AGAIN_S  # who waited long for a lock would do so again
        if response.status_code in {500, 503} and reads and again and not _nobody_answers(reads=True):
            request.from_primary = True  # type: ignore[attr-defined]  # unless that is what went away
            response = self.get_response(request)
        if response.status_code == 503 and reads:
            return self._without_database(request, instead_of=response)
        if reads and PRIMARY.away:
            return _from_replica(response)
        principal = getattr(request, "principal", None)
        if principal is not None and response.status_code < 500:
            self.known.note(request, principal)
            if request.method == "GET" and not principal.key_error:
                self.cache.keep(key_of(request, principal), response, utc_now())
        return response

    def _resting(self, request: HttpRequest) -> CachedResponse | None:
        """A copy that need not be fetched anew just now."""
        now = monotonic()
        if self._resting_until <= now or (cached := self._find(request)) is None or not cached.failures:
            return None
        if cached.again_at > now:
            return cached
        cached.again_at = now + _LONGEST_REST_S  # this reader tries for all
        return None

    def _find(self, request: HttpRequest) -> CachedResponse | None:
        principal = self.known.find(request)
        return None if principal is None else self.cache.find(key_of(request, principal))

    def _without_database(self, request: HttpRequest, *, instead_of: HttpResponse | None = None) -> HttpResponse:
        if request.method in READS and (cached := self._find(request)) is not None:
            if instead_of is not None and not PRIMARY.is_unwell():  # it answers, just not this
                cached.failures += 1
                cached.again_at = monotonic() + min(_REST_S * 2 ** (cached.failures - 1), _LONGEST_REST_S)
                self._resting_until = cached.again_at + _LONGEST_REST_S
            return self._from_cache(request, cached)
        return instead_of or unavailable(request)

    def _from_cache(self, request: HttpRequest, cached: CachedResponse) -> HttpResponse:
        principal = self.known.find(request)
        if not request.path_info.startswith("/api/") or principal is None:
            return cached.response()
        return limited(request, principal, cached.response)


def room_of(request: HttpRequest) -> str:
    """The places that a request takes one of."""
    if request.method in READS:
        return "reads"
    try:
        view = resolve(request.path_info).func
    except Resolver404:
        return "writes"
    for marked in (view, getattr(view, "cls", None), getattr(view, "view_class", None)):
        if room := getattr(marked, "room", ""):
            return str(room)
    return "writes"


def _nobody_answers(*, reads: bool) -> bool:
    return PRIMARY.away and not (reads and REPLICA_STATUS.answers())


def _from_replica(response: HttpResponse) -> HttpResponse:
    """The answer of a replica that has lost its primary: as good as a copy, and newer."""
    if response.status_code != 200 or response.streaming:
        return response
    return CachedResponse(200, dict(response.items()), response.content, REPLICA_STATUS.as_of()).response()


def unavailable(request: HttpRequest) -> HttpResponse:
    """503 in the words of the door that was asked."""
    try:
        raise OperationalError("the database does not answer")  # noqa: TRY301 - the handler tells what is being handled
    except OperationalError:
        response: HttpResponse = get_resolver().resolve_error_handler(500)(request)
        return response


class ConcurrencyLimit:
    """At most `places` requests are inside, of one principal's `of_one`. Others wait while it moves; `patient` of them for a while also
    when it does not.

    Who gives up inside sends those away who wait behind: they would wait for the same. How long it has not moved is counted in
    looks, each for the time it was meant to take: while this process has no turn, nobody could have left.
    """

    STUCK_S, PATIENCE_S, LOOK_S = 0.3, 2.5, 0.1

    def __init__(self, *, places: int, patient: int, of_one: int | None = None) -> None:
        self.places, self.of_one, self.patient = places, places if of_one is None else of_one, patient
        self._moved = threading.Condition()
        self._waiting = self._left = self._given_up = 0
        self._inside: Counter[object] = Counter()

    def enter(self, who: object = None, *, at_once: bool = False) -> bool:
        """Whether there is a place; False when nobody has left for too long, or left without an answer. at_once: does not wait."""
        with self._moved:
            self._waiting += 1
            given_up, left, still_s = self._given_up, self._left, 0.0
            try:
                while self._inside.total() >= self.places or self._inside[who] >= self.of_one:
                    if at_once:
                        return False
                    began = monotonic()
                    self._moved.wait(self.LOOK_S)
                    if self._given_up != given_up:
                        return False
                    still_s = still_s + min(monotonic() - began, self.LOOK_S) if self._left == left else 0.0
                    left = self._left
                    if still_s >= (self.PATIENCE_S if self._waiting <= self.patient else self.STUCK_S):
                        return False
                self._inside[who] += 1
                return True
            finally:
                self._waiting -= 1

    def leave(self, who: object = None, *, given_up: bool = False) -> None:
        """Make a place free."""
        with self._moved:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]
            self._left += 1
            self._given_up += given_up
            self._moved.notify_all()  # the first who waits may be of those who have their share
